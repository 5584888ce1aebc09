use std::net::SocketAddr;
use std::ops::Deref;
use std::process::{Child, Command, Stdio};

use super::{Client, free_address, until};

/// HAProxy with `deploy/haproxy.cfg` in front of three addresses. Killed with the test.
pub struct Balancer {
    child: Child,
    client: Client,
    operations: SocketAddr,
}

impl Balancer {
    /// Returns once it answers.
    pub async fn start(replicas: [SocketAddr; 3], token: &str) -> Self {
        let program = std::env::var("HAPAX_HAPROXY").unwrap_or_else(|_| "haproxy".to_owned());
        let (bind, operations) = (free_address(), free_address());
        let mut command = Command::new(program);
        command.args(["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/haproxy.cfg")]);
        command.env("HAPAX_LB_BIND", bind.to_string()).env("HAPAX_LB_OPERATIONS_BIND", operations.to_string());
        for (number, replica) in replicas.iter().enumerate() {
            command.env(format!("HAPAX_REPLICA_{}", number + 1), replica.to_string());
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("haproxy, or HAPAX_HAPROXY naming it; `make test` fetches it");
        let balancer = Self { child, client: Client::new(bind, token), operations };
        until("the load balancer answers", async || balancer.metrics_text().await).await;
        balancer
    }

    /// Returns once it sends requests to this many replicas.
    pub async fn until_ready(&self, replicas: usize) {
        until(format!("{replicas} replicas are ready"), async || {
            let ready = self.sum(r#"haproxy_server_status{proxy="ready","#, r#"state="UP"}"#).await;
            (ready == replicas).then_some(())
        })
        .await;
    }

    /// How often it retried a connection attempt, which hides a failure from the client.
    pub async fn hidden_failures(&self) -> usize {
        let retries = self.sum("haproxy_server_retry_warnings_total", "").await;
        retries + self.sum("haproxy_server_redispatch_warnings_total", "").await
    }

    /// The sum of all series with this prefix and suffix.
    async fn sum(&self, beginning: &str, end: &str) -> usize {
        let text = self.metrics_text().await.unwrap_or_default();
        let series = text.lines().filter_map(|line| line.rsplit_once(' '));
        let wanted = series.filter(|(name, _)| name.starts_with(beginning) && name.ends_with(end));
        wanted.map(|(_, value)| value.parse::<usize>().unwrap()).sum()
    }

    async fn metrics_text(&self) -> Option<String> {
        reqwest::get(format!("http://{}/metrics", self.operations)).await.ok()?.text().await.ok()
    }
}

impl Deref for Balancer {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

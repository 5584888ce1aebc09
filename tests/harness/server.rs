use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Answer, Client, HANG_TIMEOUT, until};

/// For tests that send more than the quotas allow.
pub const NO_QUOTAS: [(&str, &str); 3] = [
    ("HAPAX__QUOTA__REQUESTS_PER_SECOND", "0"),
    ("HAPAX__QUOTA__CREATIONS_PER_SECOND", "0"),
    ("HAPAX__QUOTA__REPLAYS_PER_SECOND", "0"),
];

const REPLAY_CACHE: &str = "HAPAX__IDEMPOTENCY__REPLAY_CACHE_BYTES";

/// For tests of the replay cache.
pub const REPLAY_CACHE_ON: [(&str, &str); 1] = [(REPLAY_CACHE, "1000000")];

/// The default for all tests: deadlines that no request reaches, even on a slow machine.
const LONG_DEADLINES: [(&str, &str); 8] = [
    ("HAPAX__SERVER__BODY_DEADLINE", "10m"),
    ("HAPAX__SERVER__WRITE_DEADLINE", "10m"),
    ("HAPAX__SERVER__REQUEST_DEADLINE", "10m"),
    ("HAPAX__SERVER__SHUTDOWN_DEADLINE", "10m"),
    ("HAPAX__DATABASE__CONNECT_TIMEOUT", "5m"),
    ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "10m"),
    ("HAPAX__DATABASE__STATEMENT_TIMEOUT", "9m"),
    ("HAPAX__INTAKE__LOCK_WAIT", "8m"),
];

/// For tests that reach deadlines: 1.5 s for an attempt, 2 s for a request.
pub const SHORT_DEADLINES: [(&str, &str); 6] = [
    ("HAPAX__SERVER__REQUEST_DEADLINE", "2s"),
    ("HAPAX__DATABASE__STATEMENT_TIMEOUT", "1s"),
    ("HAPAX__INTAKE__LOCK_WAIT", "500ms"),
    ("HAPAX__ACCESS__CACHE_LIFE", "1h"),
    ("HAPAX__DATABASE__CONNECT_TIMEOUT", "1s"),
    ("HAPAX__DATABASE__ACQUIRE_TIMEOUT", "1s"),
];

/// A `hapax serve` process. Killed with the test.
pub struct Server {
    child: Child,
    client: Client,
    operations: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

impl Server {
    pub async fn start(url: &str, token: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), url, token, settings).await
    }

    pub async fn start_at(address: SocketAddr, url: &str, token: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_with_default_deadlines(address, url, token, &[&LONG_DEADLINES, settings].concat()).await
    }

    /// With the service's default deadlines, for programs that demonstrate them.
    pub async fn start_with_default_deadlines(
        address: SocketAddr,
        url: &str,
        token: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let mut command = hapax();
        command.args(["serve", "--bind", &address.to_string()]).env("DATABASE_URL", url);
        command.env("HAPAX__DATABASE__ALLOW_LOSING_ACKNOWLEDGED_JOBS", "true");
        command.env("HAPAX__METRICS__BIND", "127.0.0.1:0").env("HAPAX__SERVER__DRAIN_DELAY", "0s");
        // Without the replay cache, so that answers come from the database, unless a test enables it.
        command.env(REPLAY_CACHE, "0");
        command.envs(settings.iter().copied());
        Self::spawn(command, token).await
    }

    /// Starts a command that serves. Returns once it serves.
    pub async fn spawn(mut command: Command, token: &str) -> Self {
        command.env("HAPAX__SERVER__WORKERS", "1");
        Self::spawn_with_defaults(command, token).await
    }

    /// The same with one worker per core.
    pub async fn spawn_with_defaults(mut command: Command, token: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        command.current_dir(folder.path()).env("HAPAX__LOG__FORMAT", "json");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (log, output) = (Arc::<Mutex<Vec<String>>>::default(), child.stdout.take().unwrap());
        let (tell, told) = mpsc::channel();
        let collected = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.contains(r#""message":"serving""#) {
                    let _gone = tell.send(serde_json::from_str::<Value>(&line).unwrap());
                }
                collected.lock().unwrap().push(line);
            }
        });
        let serving = tokio::task::spawn_blocking(move || told.recv_timeout(HANG_TIMEOUT));
        let serving =
            serving.await.unwrap().unwrap_or_else(|_| panic!("the server did not start: {:?}", log.lock().unwrap()));
        let address = |name: &str| serving[name].as_str().unwrap().parse().unwrap();
        Self { child, client: Client::new(address("api"), token), operations: address("metrics"), log, _folder: folder }
    }

    /// The same process, called with another token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.client = self.client.as_caller(token);
        self
    }

    /// The value of a metric, with labels as in Prometheus' text; 0 if it does not exist yet.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics_text().await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Returns once a metric has reached a value.
    pub async fn until_metric(&self, name: &str, reached: f64) {
        until(format!("{name} reaches {reached}"), async || (self.metric(name).await >= reached).then_some(())).await;
    }

    /// Returns once a metric has exactly this value.
    pub async fn until_metric_is(&self, name: &str, value: f64) {
        until(format!("{name} is {value}"), async || (self.metric(name).await == value).then_some(())).await;
    }

    /// The resident memory of the process.
    pub fn resident_bytes(&self) -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
    }

    /// Polls a path until it returns this status.
    /// A client for the operations address.
    pub fn operations(&self) -> Client {
        self.client.at(self.operations)
    }

    pub async fn metrics_text(&self) -> String {
        reqwest::get(format!("http://{}/metrics", self.operations)).await.unwrap().text().await.unwrap()
    }

    /// The log lines up to and including the one of this request.
    pub async fn log_until(&self, request_id: &str) -> Vec<Value> {
        let written = || {
            let lines = self.log.lock().unwrap();
            let parsed: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let answered = |line: &Value| line["message"] == "answered" && line["span"]["request_id"] == request_id;
            parsed.iter().any(answered).then_some(parsed)
        };
        until(format!("the log has request {request_id}"), async || written()).await
    }

    /// The warnings and errors of all requests up to this one.
    pub async fn warnings_of_requests(&self, last: &Answer) -> Vec<Value> {
        let mut lines = self.log_until(last.header("x-request-id")).await;
        lines.retain(|line| line["level"] != "INFO" && line["span"]["request_id"].is_string());
        lines
    }

    /// Returns once the log contains these words.
    pub async fn until_logged(&self, words: &str) {
        until(format!("the log says: {words}"), async || self.log_text().contains(words).then_some(())).await;
    }

    /// Polls `/readyz` until it fails for this reason. On a busy machine it may first fail for another.
    pub async fn until_not_ready(&self, reason: &str) -> Answer {
        until(format!("not ready: {reason}"), async || {
            let answer = self.client.get("/readyz").await;
            (answer.status == 503 && answer.json()["detail"].as_str().unwrap().contains(reason)).then_some(answer)
        })
        .await
    }

    /// The raw log so far.
    pub fn log_text(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.process(), signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the process to end. Returns whether it succeeded.
    pub async fn ended(mut self) -> bool {
        tokio::task::spawn_blocking(move || self.child.wait().unwrap().success()).await.unwrap()
    }
}

impl Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        if !std::thread::panicking() {
            self.log.lock().unwrap().iter().for_each(|line| assert_no_repeated_member(line));
        }
    }
}

/// Asserts that no member is repeated in a log line, because readers differ in which one they use. `serde_json` accepts
/// them.
fn assert_no_repeated_member(line: &str) {
    fn check(value: hapax::json::Value<'_, '_>, line: &str) {
        let mut names = std::collections::HashSet::new();
        for (name, value) in value.members() {
            assert!(names.insert(name.clone()), "{name} is given twice in {line}");
            check(value, line);
        }
        value.elements().for_each(|element| check(element, line));
    }
    // The kill may have cut off the last line.
    if let Ok(document) = hapax::json::Document::parse(line.as_bytes()) {
        check(document.root(), line);
    }
}

/// Runs a command of the binary to its end.
pub async fn run_hapax(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = hapax();
    command.args(arguments).envs(environment.iter().copied()).current_dir(folder.path());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The binary, without the environment of the person who tests.
pub fn hapax() -> Command {
    // `make demo` uses the release binary.
    let named = std::env::var("HAPAX_BINARY");
    hapax_through(named.as_deref().unwrap_or(env!("CARGO_BIN_EXE_hapax")))
}

/// A program that runs the binary, also without that environment.
pub fn hapax_through(program: &str) -> Command {
    let mut command = Command::new(program);
    // The location of PostgreSQL's programs depends on the machine.
    let kept = ["PATH", "HAPAX_POSTGRES_BIN"].map(|name| (name, std::env::var_os(name).unwrap_or_default()));
    command.env_clear().envs(kept);
    command
}

//! Generates docs/retries.md from real answers: what a retry of each call returns.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::Barrier;

use crate::harness::{Answer, Client, Ledger, Server, job};

/// A call, its name in the table, and why a retry of it is safe.
#[derive(Clone, Copy)]
struct Call {
    name: &'static str,
    why: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Submission,
    Unique,
    BatchItem,
    Put,
    Change,
    KeyedChange,
    Delete,
    Cancel,
    Retry,
    Claim,
    Heartbeat,
    Results,
    Release,
    Show,
    ConditionalShow,
}

const CALLS: [Call; 15] = [
    Call { name: "`POST /jobs`", why: "`Idempotency-Key`, required", kind: Kind::Submission },
    Call {
        name: "`POST /jobs` with `unique`, each copy with its own key",
        why: "the content is unique",
        kind: Kind::Unique,
    },
    Call { name: "an item of `POST /jobs/batch`", why: "its `idempotency_key`, required", kind: Kind::BatchItem },
    Call { name: "`PUT /jobs/{id}`", why: "the client chooses the id", kind: Kind::Put },
    Call { name: "`PATCH /jobs/{id}`", why: "`If-Match`, required", kind: Kind::Change },
    Call { name: "`PATCH /jobs/{id}` with a key", why: "`If-Match` and `Idempotency-Key`", kind: Kind::KeyedChange },
    Call { name: "`DELETE /jobs/{id}`", why: "idempotent by nature", kind: Kind::Delete },
    Call { name: "`POST /jobs/{id}/cancel`", why: "idempotent by nature", kind: Kind::Cancel },
    Call { name: "`POST /jobs/{id}/retry`", why: "`Idempotency-Key`, required", kind: Kind::Retry },
    Call { name: "`PUT /claims/{claim_id}`", why: "the worker chooses the id", kind: Kind::Claim },
    Call { name: "`POST /claims/{claim_id}/heartbeat`", why: "it only extends the lease", kind: Kind::Heartbeat },
    Call { name: "`POST /claims/{claim_id}/results`", why: "the first result of a job stays", kind: Kind::Results },
    Call { name: "`DELETE /claims/{claim_id}`", why: "idempotent by nature", kind: Kind::Release },
    Call { name: "`GET /jobs/{id}`", why: "it changes nothing", kind: Kind::Show },
    Call { name: "`GET /jobs/{id}` with `If-None-Match`", why: "it changes nothing", kind: Kind::ConditionalShow },
];

const COPIES: usize = 20;

const HEAD: &str = "# What a retry is answered

The table shows what each call gets: the first time, when repeated on another replica, when repeated after another
client changed the job, with 20 new copies at once on two replicas, and with other content. *Same bytes* means that the
body equals the body of the first answer. `make retries-page` generates this page from the answers of two servers, and a
test compares it with them.

| call | why a retry is safe | first | again, elsewhere | again, after a change | 20 at once | other content |
|---|---|---|---|---|---|---|
";

const FOOT: &str = "
The change is a PATCH of `max_attempts`. For cancellation and deletion of a job, it is a deletion; for the calls of a worker,
the release of the claim. *recorded* and the like are the `status` of the job in the answer to its result.

If there is no answer, or an error whose body says `\"retryable\": true`, send the same request again: it may not have
been carried out. Every such error has `Retry-After`. Wait for at least that long, and back off exponentially with jitter:
before attempt *n*, wait for a random time of up to 2ⁿ⁻² seconds, at most 60, or for `Retry-After` if that is longer.
Without jitter, clients that failed together retry together. Without backoff, retries keep an overloaded service down.
Stop before the key expires.
";

impl Call {
    /// The job that the call refers to, if it needs one.
    async fn target(self, client: &Client) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        if matches!(self.kind, Kind::Submission | Kind::Unique | Kind::BatchItem | Kind::Put) {
            return id;
        }
        // A claim, its job and its queue have the same name.
        let mut job = job(1);
        job["queue"] = id.as_str().into();
        assert_eq!(client.put(&id, job).await.status, 201);
        match self.kind {
            Kind::Retry => assert_eq!(client.cancel(&id).await.status, 200),
            Kind::Heartbeat | Kind::Results | Kind::Release => {
                let claim = Self { kind: Kind::Claim, ..self };
                assert_eq!(Box::pin(claim.send(client, &id, 1)).await.status, 201);
            }
            _ => {}
        }
        id
    }

    /// Sends the call. `n` makes contents different. `target` provides every name that the call needs.
    async fn send(self, client: &Client, target: &str, n: u64) -> Answer {
        let change = json!({ "priority": n });
        match self.kind {
            Kind::Submission => client.submit(target, job(n)).await,
            Kind::Unique => {
                let mut body = job(n);
                body["unique"] = json!({ "by": ["/payload"] });
                body["queue"] = target.into();
                client.submit(&uuid::Uuid::new_v4().to_string(), body).await
            }
            Kind::BatchItem => {
                let line = json!({ "idempotency_key": target, "job": job(n) });
                client.submit_batch(line).await.items().remove(0)
            }
            Kind::Put => client.put(target, job(n)).await,
            Kind::Change => client.patch(target, "\"1\"", change).await,
            Kind::KeyedChange => {
                client.send(client.patch_job(target, "\"1\"", change).header("idempotency-key", target)).await
            }
            Kind::Delete => client.delete(target).await,
            Kind::Cancel => client.cancel(target).await,
            Kind::Retry => {
                let retry = client.request("POST", &format!("/jobs/{target}/retry"));
                client.send(retry.header("idempotency-key", target)).await
            }
            Kind::Claim => {
                let claim = client.request("PUT", &format!("/claims/{target}"));
                client.send(claim.json(&json!({ "queues": [target], "max_jobs": n }))).await
            }
            Kind::Heartbeat => client.send(client.request("POST", &format!("/claims/{target}/heartbeat"))).await,
            Kind::Results => {
                let outcome = if n == 1 { "succeeded" } else { "failed" };
                let results = json!({ "results": [{ "job_id": target, "outcome": outcome }] });
                client.send(client.request("POST", &format!("/claims/{target}/results")).json(&results)).await
            }
            Kind::Release => client.send(client.request("DELETE", &format!("/claims/{target}"))).await,
            Kind::Show => client.get(&format!("/jobs/{target}")).await,
            Kind::ConditionalShow => {
                let request = client.request("GET", &format!("/jobs/{target}"));
                client.send(request.header("if-none-match", "\"1\"")).await
            }
        }
    }

    fn has_content(self) -> bool {
        matches!(
            self.kind,
            Kind::Submission
                | Kind::Unique
                | Kind::BatchItem
                | Kind::Put
                | Kind::Change
                | Kind::KeyedChange
                | Kind::Claim
                | Kind::Results
        )
    }

    async fn row(self, one: &Server, two: &Server) -> String {
        let target = self.target(one).await;
        let first = self.send(one, &target, 1).await;
        let elsewhere = self.send(two, &target, 1).await;
        let other = if self.has_content() { said(&self.send(two, &target, 2).await, &first) } else { "".to_owned() };
        let changed = self.after_a_change(one, two).await;
        let at_once = self.at_once([one, two]).await;
        let cells = [self.name.to_owned(), self.why.to_owned(), status(&first), said(&elsewhere, &first)];
        format!("| {} |\n", [&cells[..], &[changed, at_once, other]].concat().join(" | "))
    }

    async fn after_a_change(self, one: &Server, two: &Server) -> String {
        let target = self.target(one).await;
        let first = self.send(one, &target, 1).await;
        let id = match self.kind {
            Kind::Submission | Kind::Unique | Kind::BatchItem => first.job_id(),
            _ => target.clone(),
        };
        match self.kind {
            Kind::Delete | Kind::Cancel => assert_eq!(two.delete(&id).await.status, 204),
            Kind::Claim | Kind::Heartbeat | Kind::Results | Kind::Release => {
                let release = Self { kind: Kind::Release, ..self };
                assert_eq!(release.send(two, &id, 1).await.status, 204);
            }
            _ => assert_eq!(two.patch(&id, "*", r#"{"max_attempts":7}"#).await.status, 200),
        }
        said(&self.send(two, &target, 1).await, &first)
    }

    async fn at_once(self, servers: [&Server; 2]) -> String {
        let target = self.target(servers[0]).await;
        let start = Arc::new(Barrier::new(COPIES));
        let copies: Vec<_> = (0..COPIES)
            .map(|n| {
                let (client, target, start) = ((**servers[n % 2]).clone(), target.clone(), start.clone());
                tokio::spawn(async move {
                    start.wait().await;
                    self.send(&client, &target, 1).await
                })
            })
            .collect();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for copy in copies {
            *counts.entry(status(&copy.await.unwrap())).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| *count);
        counts.into_iter().map(|(status, count)| format!("{count} × {status}")).collect::<Vec<_>>().join(", ")
    }
}

fn status(answer: &Answer) -> String {
    match answer.status {
        status @ 200..400 if answer.body.starts_with(b"{\"results\"") => {
            format!("{status} *{}*", answer.json()["results"][0]["status"].as_str().unwrap())
        }
        status @ 200..400 => status.to_string(),
        status => format!("{status} `{}`", answer.problem()),
    }
}

/// The status, and whether the body has the same bytes.
fn said(answer: &Answer, first: &Answer) -> String {
    let same = answer.status < 300 && !answer.body.is_empty() && answer.body == first.body;
    format!("{}{}", status(answer), if same { ", same bytes" } else { "" })
}

#[tokio::test]
async fn the_retries_page_matches_real_answers() {
    let ledger = Ledger::new().await;
    let (one, two) = (ledger.serve().await, ledger.serve().await);
    let mut page = HEAD.to_owned();
    for call in CALLS {
        write!(page, "{}", call.row(&one, &two).await).unwrap();
    }
    page.push_str(FOOT);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/retries.md");
    if std::env::var_os("HAPAX_WRITE_PAGES").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), page, "`make retries-page` writes it anew");
}

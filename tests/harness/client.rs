use std::net::SocketAddr;

use tokio::task::JoinHandle;

use super::{Answer, Contract, HANG_TIMEOUT, RawConnection, until};

/// A client with a token, for one server.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    token: String,
    http: reqwest::Client,
}

impl Client {
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let http = reqwest::Client::builder().http1_only().timeout(HANG_TIMEOUT).build().unwrap();
        Self { address, token: token.to_owned(), http }
    }

    /// The same server with another token.
    pub fn as_caller(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// The same token at another address.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// A valid `POST /jobs`, which a test may change.
    pub fn post_jobs(&self, key: &str, body: impl ToString) -> reqwest::RequestBuilder {
        self.request("POST", "/jobs")
            .header("idempotency-key", key)
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        self.http.request(method.parse().unwrap(), url).bearer_auth(&self.token)
    }

    pub async fn submit(&self, key: &str, body: impl ToString) -> Answer {
        self.send(self.post_jobs(key, body)).await
    }

    /// Submits and retries without pauses, until the answer is neither 429 nor 503. Then it must be 201, or 200 if an
    /// earlier attempt with an unknown outcome was committed.
    pub async fn submit_with_retries(&self, key: &str, body: impl ToString) -> Answer {
        let body = body.to_string();
        let answer = until(format!("{key} is done"), async || {
            let answer = self.submit(key, &body).await;
            (![429, 503].contains(&answer.status)).then_some(answer)
        })
        .await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        answer
    }

    /// Submits in a background task.
    pub fn submit_in_background(&self, key: &str, body: impl ToString) -> JoinHandle<Answer> {
        let (client, key, body) = (self.clone(), key.to_owned(), body.to_string());
        tokio::spawn(async move { client.submit(&key, body).await })
    }

    /// `PUT /jobs/{id}`.
    pub async fn put(&self, id: impl ToString, body: impl ToString) -> Answer {
        let request = self.request("PUT", &format!("/jobs/{}", id.to_string()));
        self.send(request.header("content-type", "application/json").body(body.to_string())).await
    }

    /// A valid PATCH, which a test may change.
    pub fn patch_job(&self, id: &str, if_match: &str, body: impl ToString) -> reqwest::RequestBuilder {
        let request = self.request("PATCH", &format!("/jobs/{id}")).header("if-match", if_match);
        request.header("content-type", "application/merge-patch+json").body(body.to_string())
    }

    pub async fn patch(&self, id: &str, if_match: &str, body: impl ToString) -> Answer {
        self.send(self.patch_job(id, if_match, body)).await
    }

    /// `POST /jobs/batch` with these lines.
    pub async fn submit_batch(&self, lines: impl ToString) -> Answer {
        let request = self.request("POST", "/jobs/batch").header("content-type", "application/x-ndjson");
        self.send(request.body(lines.to_string())).await
    }

    pub async fn cancel(&self, id: &str) -> Answer {
        self.send(self.request("POST", &format!("/jobs/{id}/cancel"))).await
    }

    pub async fn delete(&self, id: &str) -> Answer {
        self.send(self.request("DELETE", &format!("/jobs/{id}"))).await
    }

    /// Repeats a GET until it has this status. A probe must be asked like this: on a busy machine a check of the database
    /// can take longer than a probe waits.
    pub async fn until_status(&self, path: &str, status: u16) -> Answer {
        until(format!("{path} answers {status}"), async || {
            let answer = self.get(path).await;
            (answer.status == status).then_some(answer)
        })
        .await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path)).await
    }

    /// Sends a request and checks the answer against the contract.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let request = request.build().unwrap();
        let (method, path) = (request.method().to_string(), request.url().path().to_owned());
        let answer = Answer::of(self.http.execute(request).await.unwrap()).await;
        Contract::get().check(&method, &path, &answer);
        answer
    }

    /// A connection for bytes that no client library would send.
    pub async fn raw(&self) -> RawConnection {
        RawConnection::open(self.address, &self.token).await
    }
}

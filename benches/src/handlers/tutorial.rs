//! A handler as popular tutorials write it: one transaction that inserts the key, inserts the job, stores the answer
//! and commits, with a round trip for each step, on a connection from a pool.
//!
//! It has no log, token, quota or fingerprint, so it does less work than Hapax.

use actix_web::error::{ErrorBadRequest, ErrorInternalServerError};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::postgres::{PgPool, PgPoolOptions};
use uuid::Uuid;

use super::queries;

#[derive(Deserialize)]
struct NewJob {
    r#type: String,
    payload: Value,
}

pub async fn serve(database_url: &str, pool: u32) -> anyhow::Result<()> {
    let pool = PgPoolOptions::new().max_connections(pool).connect(database_url).await?;
    queries::make_tables(&pool).await?;
    let pool = web::Data::new(pool);
    let server = HttpServer::new(move || App::new().app_data(pool.clone()).route("/jobs", web::post().to(submit)));
    let server = server.disable_signals().bind(("127.0.0.1", 0))?;
    super::say(server.addrs()[0])?;
    Ok(server.run().await?)
}

async fn submit(
    request: HttpRequest,
    job: web::Json<NewJob>,
    pool: web::Data<PgPool>,
) -> Result<HttpResponse, actix_web::Error> {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.ok_or_else(|| ErrorBadRequest("an Idempotency-Key is required"))?;
    let (status, body) = submit_once(&pool, key, &job).await.map_err(ErrorInternalServerError)?;
    let status = status.try_into().map_err(ErrorInternalServerError)?;
    Ok(HttpResponse::build(status).content_type("application/json").body(body))
}

async fn submit_once(pool: &PgPool, key: &str, job: &NewJob) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut transaction = pool.begin().await?;
    if !queries::insert_key(&mut transaction, key).await? {
        return Ok((200, queries::kept_answer(&mut transaction, key).await?));
    }
    let id = Uuid::new_v4();
    queries::insert_job(&mut transaction, id, &job.r#type, &job.payload).await?;
    let answer = answer(id, job);
    queries::keep_answer(&mut transaction, key, &answer).await?;
    transaction.commit().await?;
    Ok((201, answer))
}

/// Has the length of Hapax's answer.
fn answer(id: Uuid, job: &NewJob) -> Vec<u8> {
    json!({
        "id": id, "type": job.r#type, "queue": "default", "priority": 2, "max_attempts": 25, "state": "queued",
        "attempt": 0, "run_at": "2026-11-21T22:53:23.723110Z", "created_at": "2026-11-21T22:53:23.723110Z",
    })
    .to_string()
    .into_bytes()
}

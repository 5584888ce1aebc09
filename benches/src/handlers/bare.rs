//! A handler that reads a body and always answers with the same bytes: the upper limit of the framework.

use std::fs;
use std::path::Path;

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::Context;

/// Headers that the framework adds.
const ITS_OWN: [&str; 3] = ["content-length", "date", "connection"];

#[derive(Clone)]
struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: web::Bytes,
}

pub async fn serve(answer: &Path) -> anyhow::Result<()> {
    let answer = web::Data::new(parse(&fs::read(answer)?)?);
    let server = HttpServer::new(move || App::new().app_data(answer.clone()).default_service(web::post().to(constant)));
    let server = server.disable_signals().bind(("127.0.0.1", 0))?;
    super::say(server.addrs()[0])?;
    Ok(server.run().await?)
}

async fn constant(answer: web::Data<Answer>, body: web::Bytes) -> HttpResponse {
    drop(body);
    let mut response = HttpResponse::build(answer.status);
    for header in &answer.headers {
        response.append_header(header.clone());
    }
    response.body(answer.body.clone())
}

fn parse(whole: &[u8]) -> anyhow::Result<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(body_at) = head.parse(whole)? else { anyhow::bail!("the answer is not whole") };
    let mut kept = Vec::new();
    for header in head.headers.iter() {
        if !ITS_OWN.contains(&header.name.to_ascii_lowercase().as_str()) {
            kept.push((HeaderName::from_bytes(header.name.as_bytes())?, HeaderValue::from_bytes(header.value)?));
        }
    }
    let status = StatusCode::from_u16(head.code.context("an answer has a status")?)?;
    Ok(Answer { status, headers: kept, body: whole[body_at..].to_vec().into() })
}

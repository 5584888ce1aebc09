//! `GET /queues`: queue depths, counted up to a limit.

use hapax::access::Scope;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

use crate::harness::{Client, Ledger, Server};
use crate::lists::next;
use crate::schema::{plan, statements};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    (ledger, server)
}

async fn submit(client: &Client, queue: &str) -> String {
    let key = uuid::Uuid::new_v4().to_string();
    client.submit(&key, json!({ "type": "t", "queue": queue, "payload": 1 })).await.job_id()
}

async fn depths(client: &Client) -> Vec<(String, i64, bool)> {
    let answer = client.get("/queues").await.json();
    let of = |queue: &Value| {
        let name = queue["queue"].as_str().unwrap().to_owned();
        (name, queue["depth"].as_i64().unwrap(), queue["depth_capped"].as_bool().unwrap())
    };
    answer["queues"].as_array().unwrap().iter().map(of).collect()
}

/// Adds this many waiting jobs to a queue.
async fn fill(ledger: &Ledger, queue: &str, count: u32) {
    let sql = format!(
        "insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at) \
         select id, gen_random_uuid(), '{queue}', 2, now(), 25, now() \
         from tenants cross join generate_series(1, {count}) where name = 'acme'"
    );
    ledger.execute(&sql).await;
}

#[tokio::test]
async fn the_tenants_queues_with_waiting_jobs_are_listed_by_name() {
    let (ledger, server) = serve().await;
    let globex = server.as_caller(&ledger.token_for("globex", &Scope::ALL).await);
    assert_eq!(depths(&server).await, []);
    for queue in ["b", "a", "~", "b", "B", "over"] {
        submit(&server, queue).await;
    }
    server.cancel(&submit(&server, "over").await).await;
    server.cancel(&submit(&server, "gone").await).await;
    submit(&globex, "theirs").await;
    let wanted = [("B", 1), ("a", 1), ("b", 2), ("over", 1), ("~", 1)];
    assert_eq!(depths(&server).await, wanted.map(|(queue, depth)| (queue.to_owned(), depth, false)));
    assert_eq!(depths(&globex).await, [("theirs".to_owned(), 1, false)]);
}

#[tokio::test]
async fn the_age_is_that_of_the_oldest_job() {
    let (ledger, server) = serve().await;
    let ids = [submit(&server, "q").await, submit(&server, "q").await, submit(&server, "q").await];
    let oldest = format!("update job_queue set created_at = now() - interval '1 hour' where job_id = '{}'", ids[1]);
    ledger.execute(&oldest).await;
    let age = async || server.get("/queues").await.json()["queues"][0]["oldest_age_seconds"].as_f64().unwrap();
    assert!((3600.0..3660.0).contains(&age().await), "{}", age().await);
    server.cancel(&ids[1]).await;
    assert!((0.0..60.0).contains(&age().await), "{}", age().await);
    // A replica's clock may be ahead of the database's.
    ledger.execute("update job_queue set created_at = now() + interval '1 hour'").await;
    assert_eq!(age().await, 0.0);
}

#[tokio::test]
async fn the_depth_is_capped_at_ten_thousand() {
    let (ledger, server) = serve().await;
    fill(&ledger, "even", 10_000).await;
    fill(&ledger, "more", 10_001).await;
    let wanted = [("even".to_owned(), 10_000, false), ("more".to_owned(), 10_000, true)];
    assert_eq!(depths(&server).await, wanted);
}

#[tokio::test]
async fn a_page_ends_after_counting_ten_thousand_jobs() {
    let (ledger, server) = serve().await;
    fill(&ledger, "a", 1).await;
    fill(&ledger, "b", 10_001).await;
    fill(&ledger, "c", 10_001).await;
    fill(&ledger, "d", 1).await;
    let (mut path, mut pages) = (Some("/queues".to_owned()), Vec::new());
    while let Some(page) = path {
        let answer = server.get(&page).await;
        let queues = answer.json()["queues"].as_array().unwrap().clone();
        pages.push(queues.into_iter().map(|queue| queue["queue"].as_str().unwrap().to_owned()).collect::<Vec<_>>());
        path = next(&answer);
    }
    assert_eq!(pages, [vec!["a", "b"], vec!["c"], vec!["d"]]);
}

#[tokio::test]
async fn the_pages_of_queues_are_followed_by_their_links() {
    let (_ledger, server) = serve().await;
    let names = ["a", "a&b=c", "b", "c", "d"];
    for name in names {
        submit(&server, name).await;
    }
    let (mut path, mut shown) = (Some("/queues?limit=2".to_owned()), Vec::new());
    while let Some(page) = path {
        let answer = server.get(&page).await;
        let queues = answer.json()["queues"].as_array().unwrap().clone();
        assert!(queues.len() <= 2);
        shown.extend(queues.into_iter().map(|queue| queue["queue"].as_str().unwrap().to_owned()));
        path = next(&answer);
    }
    assert_eq!(shown, names);
    for bad in ["limit=0", "cursor=", "cursor=0a", "cursor=zz", "cursor=61&cursor=61"] {
        server.get(&format!("/queues?{bad}")).await.is_problem(400, "invalid-parameter");
    }
    server.get("/queues?queue=a").await.is_problem(400, "unknown-parameter");
}

fn statement() -> (String, usize) {
    statements().into_iter().find(|(sql, _)| sql.contains("with recursive names")).unwrap()
}

#[tokio::test]
async fn names_and_jobs_are_found_through_the_index_of_queues() {
    let ledger = Ledger::new().await;
    let (sql, parameters) = statement();
    let plan = plan(&ledger, &sql, parameters).await;
    // The first name and the jobs. Only an executed plan shows the step to the next name, as below.
    assert_eq!(plan.matches("using job_queue_claim_idx").count(), 2, "{plan}");
    assert!(!plan.contains("Seq Scan") && plan.matches("Index Cond").count() == 2, "{plan}");
}

#[tokio::test]
async fn only_counted_rows_are_read() {
    let ledger = Ledger::new().await;
    fill(&ledger, "many", 30_000).await;
    fill(&ledger, "one", 1).await;
    let mut connection = ledger.connect().await;
    sqlx::raw_sql("analyze").execute(&mut connection).await.unwrap();
    let tenant: String = sqlx::raw_sql("select id::text from tenants").fetch_one(&mut connection).await.unwrap().get(0);
    let prepare = format!("set plan_cache_mode = force_generic_plan; prepare s as {}", statement().0);
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.unwrap();
    let explain = format!("explain (analyze, timing off, format json) execute s('{tenant}', '', 51)");
    let row = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut connection).await.unwrap();
    let plan = row.get::<sqlx::types::Json<Value>, _>(0).0.to_string();
    assert!(plan.contains("SubPlan") && plan.matches("\"Index Name\":\"job_queue_claim_idx\"").count() == 3, "{plan}");
    assert!(plan.contains("\"Actual Rows\":10001") && !plan.contains("30000") && !plan.contains("15000"), "{plan}");
}

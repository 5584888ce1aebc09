//! `GET /jobs`, page by page, with concurrent writes.

use hapax::access::Scope;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, Ledger, Server, job};

async fn serve() -> (Ledger, Server) {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    (ledger, server)
}

/// Submits a job of this type and queue. Returns its id.
async fn submit(client: &Client, kind: &str, queue: &str) -> String {
    let key = uuid::Uuid::new_v4().to_string();
    let made = client.submit(&key, json!({ "type": kind, "queue": queue, "payload": { "large": "or secret" } })).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.job_id()
}

fn ids(page: &Answer) -> Vec<String> {
    assert_eq!(page.status, 200, "{page:?}");
    page.json()["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

/// The link to the next page.
pub fn next(page: &Answer) -> Option<String> {
    page.headers.contains_key("link").then(|| {
        let link = page.header("link").strip_prefix('<').unwrap();
        link.strip_suffix(">; rel=\"next\"").unwrap().to_owned()
    })
}

/// Follows the links of the pages. Calls `between` after each page.
async fn follow(client: &Client, path: &str, mut between: impl AsyncFnMut(usize)) -> Vec<Answer> {
    let mut pages = vec![client.get(path).await];
    while let Some(next) = next(pages.last().unwrap()) {
        between(pages.len()).await;
        pages.push(client.get(&next).await);
        assert!(pages.len() < 100, "the list ends");
    }
    pages
}

async fn all(client: &Client, path: &str) -> Vec<String> {
    follow(client, path, async |_| {}).await.iter().flat_map(ids).collect()
}

#[tokio::test]
async fn jobs_are_listed_by_id_in_their_current_state_without_payloads() {
    let (_ledger, server) = serve().await;
    let (first, second) = (submit(&server, "a", "q").await, submit(&server, "b", "r").await);
    server.cancel(&first).await;
    let page = server.get("/jobs").await;
    assert_eq!(page.header("content-type"), "application/json");
    assert_eq!((ids(&page), next(&page)), (vec![first.clone(), second.clone()], None));
    for (shown, id) in page.json()["jobs"].as_array().unwrap().iter().zip([first, second]) {
        let mut alone = server.get(&format!("/jobs/{id}")).await.json();
        assert!(alone.as_object_mut().unwrap().remove("payload").is_some());
        assert_eq!(*shown, alone);
    }
}

#[tokio::test]
async fn a_list_read_during_writes_is_complete_and_has_no_duplicates() {
    let (ledger, server) = serve().await;
    for (tenant, path) in [
        ("all", "/jobs?limit=2"),
        ("type", "/jobs?type=t&limit=3"),
        ("queued", "/jobs?state=queued&limit=2"),
        ("queue", "/jobs?queue=q&limit=2"),
    ] {
        let client = server.as_caller(&ledger.token_for(tenant, &Scope::ALL).await);
        let mut there = Vec::new();
        for _ in 0..25 {
            there.push(submit(&client, "t", "q").await);
        }
        // Jobs on pages that the list has already returned, and on later ones.
        let [cancelled, deleted] =
            [1, 3].map(|nth| there.iter().skip(nth).step_by(5).cloned().collect::<Vec<String>>());
        let (mut to_cancel, mut to_delete) = (cancelled.iter().rev(), deleted.iter());
        let pages = follow(&client, path, async |_| {
            submit(&client, "t", "q").await;
            if let (Some(cancelled), Some(deleted)) = (to_cancel.next(), to_delete.next()) {
                client.cancel(cancelled).await;
                client.delete(deleted).await;
            }
        });
        let shown: Vec<String> = pages.await.iter().flat_map(ids).collect();
        assert!(to_cancel.next().is_none(), "{path}: all of it happened");
        assert!(shown.is_sorted_by(|one, next| one < next), "{path}: {shown:?}");
        let fits_no_more = |id| deleted.contains(id) || (tenant == "queued" && cancelled.contains(id));
        for id in there.iter().filter(|id| !fits_no_more(id)) {
            assert!(shown.contains(id), "{path} lacks {id} of {there:?}");
        }
        let left = all(&client, path).await;
        assert!(there.iter().all(|id| left.contains(id) != fits_no_more(id)), "{path}");
    }
}

#[tokio::test]
async fn each_filter_and_each_pair_of_filters_shows_exactly_the_matches() {
    let (_ledger, server) = serve().await;
    let mut jobs: Vec<Value> = Vec::new();
    for (kind, queue) in [("a", "q"), ("a", "r"), ("b", "q"), ("b", "r")] {
        for cancel in [false, true] {
            let id = submit(&server, kind, queue).await;
            if cancel {
                server.cancel(&id).await;
            }
            jobs.push(server.get(&format!("/jobs/{id}")).await.json());
        }
    }
    let time = jobs[4]["created_at"].as_str().unwrap();
    let filters = [
        ("state", "queued"),
        ("state", "cancelled"),
        ("state", "running"),
        ("state", "failed"),
        ("type", "a"),
        ("queue", "r"),
        ("created_after", time),
        ("created_before", time),
    ];
    let fits = |job: &Value, (name, value): (&str, &str)| match name {
        "created_after" => job["created_at"].as_str().unwrap() > value,
        "created_before" => job["created_at"].as_str().unwrap() < value,
        name => job[name] == value,
    };
    for one in filters {
        for other in filters.into_iter().filter(|other| other.0 != one.0).chain([("limit", "2")]) {
            let path = format!("/jobs?{}={}&{}={}", one.0, one.1, other.0, other.1);
            let fitting = jobs.iter().filter(|job| fits(job, one) && (other.0 == "limit" || fits(job, other)));
            let wanted: Vec<&str> = fitting.map(|job| job["id"].as_str().unwrap()).collect();
            assert_eq!(all(&server, &path).await, wanted, "{path}");
        }
    }
}

#[tokio::test]
async fn the_link_carries_every_filter_however_it_is_spelled() {
    let (_ledger, server) = serve().await;
    let odd = "a&b=c+d%\"<>#/?;";
    let mut there = Vec::new();
    for _ in 0..3 {
        there.push(submit(&server, odd, odd).await);
        submit(&server, odd, "another").await;
    }
    let odd: String = url::form_urlencoded::byte_serialize(odd.as_bytes()).collect();
    let path = format!("/jobs?queue={odd}&limit=1&type={odd}&state=queued&created_after=2020-01-01T00:00:00%2B01:00");
    assert_eq!(all(&server, &path).await, there);
    assert_eq!(follow(&server, &path, async |_| {}).await.len(), 3);
}

#[tokio::test]
async fn a_cursor_of_another_tenant_shows_nothing() {
    let (ledger, server) = serve().await;
    let globex = server.as_caller(&ledger.token_for("globex", &Scope::ALL).await);
    for _ in 0..3 {
        submit(&server, "t", "q").await;
    }
    let theirs = submit(&globex, "t", "q").await;
    for path in ["/jobs?limit=1", "/jobs?limit=1&queue=q", "/jobs?limit=1&type=t", "/jobs?limit=1&state=queued"] {
        assert_eq!(all(&globex, path).await, vec![theirs.clone()]);
        let cursor = next(&server.get(path).await).unwrap();
        assert_eq!(ids(&globex.get(&cursor).await), vec![theirs.clone()]);
        assert_eq!(all(&server, path).await.len(), 3);
    }
}

#[tokio::test]
async fn the_default_limit_is_50_and_the_maximum_200() {
    let (ledger, server) = serve().await;
    fill(&ledger, 250, "t").await;
    for (query, shown) in [("", 50), ("?limit=1", 1), ("?limit=200", 200)] {
        assert_eq!(ids(&server.get(&format!("/jobs{query}")).await).len(), shown);
    }
    assert_eq!(all(&server, "/jobs").await.len(), 250);
}

#[tokio::test]
async fn an_invalid_parameter_is_refused_and_named() {
    let (_ledger, server) = serve().await;
    let long = "x".repeat(200);
    for (name, values) in [
        ("limit", &["0", "201", "-1", "abc", "1.5", "", "1e2", "050", "%2B5"][..]),
        ("state", &["", "Queued", "waiting", "queued,failed"]),
        ("queue", &["", "a%20b", "a+b", "%C3%BC", "%FF", &long]),
        ("type", &["", "%00", "%0A", &long]),
        ("created_after", &["", "yesterday", "2026-11-21", "2026-11-21T22:57:04+01:00", "0000-01-01T00:00:00Z"]),
        ("created_before", &["2026-13-01T00:00:00Z", "10000-01-01T00:00:00Z"]),
        ("cursor", &["", "x", "00", &long, "01A20053D9577108AF22B2E931E75377", "01a20053-d957-7108-af22-b2e931e75377"]),
    ] {
        for value in values {
            let refused = server.get(&format!("/jobs?{name}={value}")).await;
            assert_eq!(refused.status, 400, "{name}={value}: {refused:?}");
            refused.is_problem(400, "invalid-parameter");
            let detail = refused.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.starts_with(&format!("{name}: ")) && !detail.contains(&long), "{detail}");
        }
        let twice = server.get(&format!("/jobs?{name}=1&{name}=1")).await;
        twice.is_problem(400, "invalid-parameter");
    }
    server.get("/jobs?%6Cimit=1&offset=3").await.is_problem(400, "unknown-parameter");
}

#[tokio::test]
async fn time_filters_apply_to_client_chosen_ids_too() {
    let (_ledger, server) = serve().await;
    let mut times = Vec::new();
    let mut made = Vec::new();
    for n in 0..4 {
        let job = server.submit(&format!("key-{n}"), job(n)).await.json();
        made.push(job["id"].as_str().unwrap().to_owned());
        times.push(job["created_at"].as_str().unwrap().to_owned());
    }
    let between = format!("/jobs?created_after={}&created_before={}&limit=1", times[0], times[3]);
    assert_eq!(all(&server, &between).await, made[1..3]);
    // The lowest and the highest possible job ids, for jobs that are newer than all others.
    let named = ["00000000-0000-0000-0000-000000000001", "ffffffff-ffff-ffff-ffff-fffffffffffe"];
    for id in named {
        assert_eq!(server.put(id, job(9)).await.status, 201);
    }
    let wanted = [named[0], &made[2], &made[3], named[1]];
    for more in ["", "&state=queued", "&type=demo.count", "&queue=default"] {
        assert_eq!(all(&server, &format!("/jobs?created_after={}&limit=2{more}", times[1])).await, wanted);
        assert_eq!(all(&server, &format!("{between}{more}")).await, made[1..3]);
    }
    assert_eq!(all(&server, "/jobs?created_before=2020-01-01T00:00:00Z").await, [""; 0]);
}

/// Inserts this many waiting jobs into the queue `default`, with ids before all that we create.
async fn fill(ledger: &Ledger, count: u32, kind: &str) {
    let sql = format!(
        "insert into jobs (tenant_id, id, type, payload, created_at, named) \
         select tenants.id, lpad(to_hex(n), 32, '0')::uuid, '{kind}', '1', now(), true \
         from tenants cross join generate_series(1, {count}) as n; \
         insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at) \
         select tenant_id, id, 'default', 2, now(), 25, now() from jobs"
    );
    ledger.execute(&sql).await;
}

#[tokio::test]
async fn a_page_reads_at_most_10_000_jobs_and_links_to_the_rest() {
    let (ledger, server) = serve().await;
    fill(&ledger, 20_005, "noise").await;
    let rare = submit(&server, "rare", "default").await;
    for path in ["/jobs?queue=default&type=rare", "/jobs?state=queued&type=rare"] {
        let pages = follow(&server, path, async |_| {}).await;
        let shown: Vec<_> = pages.iter().map(ids).collect();
        assert_eq!(shown, [vec![], vec![], vec![rare.clone()]], "{path}");
        // The end of the scan, although the row there has been deleted since.
        assert!(next(&pages[0]).unwrap().ends_with("cursor=00000000000000000000000000002711"), "{path}");
    }
    ledger.execute("update jobs set payload = null, deleted_at = now() ; delete from job_queue").await;
    for path in ["/jobs", "/jobs?type=noise"] {
        let pages = follow(&server, path, async |_| {}).await;
        assert_eq!((pages.len(), pages.iter().flat_map(ids).count()), (3, 0), "{path}");
    }
}

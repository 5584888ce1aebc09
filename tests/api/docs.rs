//! The page at `/docs`: it works without other sites, and its policy blocks requests to them.

use std::collections::BTreeMap;

use crate::harness::{Answer, Client, Contract, Ledger, run_hapax};

/// The page's assets are not part of the contract, so the answer is not checked against it.
async fn fetch(client: &Client, method: &str, path: &str, encoding: &str) -> Answer {
    Answer::of(client.request(method, path).header("accept-encoding", encoding).send().await.unwrap()).await
}

async fn text(client: &Client, path: &str) -> String {
    String::from_utf8(fetch(client, "GET", path, "identity").await.body.to_vec()).unwrap()
}

/// The paths that a page loads.
fn loaded(page: &str) -> Vec<String> {
    let tags = page.split('<').filter(|tag| tag.starts_with("link ") || tag.starts_with("script "));
    let urls = tags.map(|tag| tag.split_once("src=\"").or_else(|| tag.split_once("href=\"")).unwrap().1);
    let urls = urls.map(|url| url.split('"').next().unwrap()).filter(|url| *url != "data:,");
    // Relative to the page, because a gateway may publish it below a path.
    urls.inspect(|url| assert!(url.starts_with("docs/"), "{url}")).map(|url| format!("/{url}")).collect()
}

#[tokio::test]
async fn the_content_security_policy_allows_only_own_resources() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let answer = server.get("/docs").await;
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    assert_eq!((answer.header("x-content-type-options"), answer.header("referrer-policy")), ("nosniff", "no-referrer"));
    let policy = answer.header("content-security-policy");
    let policy: BTreeMap<&str, &str> = policy.split("; ").map(|part| part.split_once(' ').unwrap()).collect();
    for directive in ["default-src", "base-uri", "form-action", "frame-ancestors"] {
        assert_eq!(policy[directive], "'none'", "{directive}");
    }
    for (directive, sources) in policy {
        let from_here = sources == "'none'" || sources == "'self'" || (directive, sources) == ("img-src", "data:");
        assert!(from_here, "{directive} {sources}");
    }
}

#[tokio::test]
async fn the_page_complies_with_its_content_security_policy() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let page = text(&server, "/docs").await;
    assert_eq!(page.matches("<script ").count(), page.matches(" defer></script>").count());
    for forbidden in ["<script>", "<style", " style=", " onload=", " onclick=", "javascript:", "//"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    for path in loaded(&page).iter().filter(|path| path.ends_with(".css")) {
        let style = text(&server, path).await;
        assert!(!style.contains("@import"), "{path}");
        for url in style.split("url(").skip(1) {
            assert!(url.trim_start_matches(['"', '\'']).starts_with("data:"), "{path}: {}", &url[..40]);
        }
    }
}

#[tokio::test]
async fn every_asset_of_the_page_is_served_with_its_type() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let page = text(&server, "/docs").await;
    let types: Vec<_> = loaded(&page).iter().map(|path| path.rsplit('.').next().unwrap().to_owned()).collect();
    assert_eq!(types, ["css", "css", "js", "js"]);
    for path in loaded(&page) {
        let answer = fetch(&server, "GET", &path, "identity").await;
        let media_type = if path.ends_with(".js") { "text/javascript" } else { "text/css" };
        assert_eq!((answer.status, answer.header("content-type")), (200, &*format!("{media_type}; charset=utf-8")));
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!((answer.header("cache-control"), answer.header("vary")), ("max-age=3600", "accept-encoding"));
        fetch(&server, "POST", &path, "identity").await.is_problem(405, "method-not-allowed");
        fetch(&server, "GET", &format!("{path}?x"), "identity").await.is_problem(400, "unknown-parameter");
    }
    // The start script finds the library, its element in the page, and the contract.
    let (library, start) = (text(&server, "/docs/swagger-ui-bundle.js").await, text(&server, "/docs/page.js").await);
    assert!(library.contains("SwaggerUIBundle") && start.contains("SwaggerUIBundle({"));
    assert!(page.contains("id=\"api\"") && start.contains("dom_id: '#api'") && start.contains("url: 'openapi.yaml'"));
    let version = page.split("Swagger UI ").nth(1).unwrap().split(',').next().unwrap();
    assert!(library.contains(&format!("\"{version}\"")), "{version}");
}

/// Checked as far as possible without a browser: the part above "Authorize" is folded, and "Submit a job" is among the
/// first operations below it. ADR 0011 has the result in a browser.
#[tokio::test]
async fn authorize_and_submit_a_job_are_on_the_first_screen() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let (library, start) = (text(&server, "/docs/swagger-ui-bundle.js").await, text(&server, "/docs/page.js").await);
    // Of the parts above the button, only this component has more than one line.
    assert!(library.contains("class InfoContainer extends") && library.contains("wrapComponents"));
    assert!(start.contains("plugins: [foldedDescription]") && start.contains("InfoContainer: (Original,"));
    let (folded, shown) = start.split_once("'details'").unwrap().1.split_once("'summary'").unwrap();
    assert!(!folded.contains("open"), "{folded}");
    assert!(shown.contains("React.createElement(Original, props)"));
    // In document order.
    let contract: yaml_serde::Value = yaml_serde::from_str(&text(&server, "/openapi.yaml").await).unwrap();
    assert_eq!(contract["tags"][0]["name"], *"jobs");
    let paths = contract["paths"].as_mapping().unwrap().values();
    let operations = paths.flat_map(|path| path.as_mapping().unwrap().values());
    let of_jobs = operations.filter(|it| it.get("tags").is_some_and(|tags| tags[0] == *"jobs"));
    let first: Vec<_> = of_jobs.take(2).map(|operation| operation["summary"].as_str().unwrap()).collect();
    assert!(first.contains(&"Submit a job"), "{first:?}");
}

#[tokio::test]
async fn large_files_are_compressed_if_the_client_accepts_it() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    for path in ["/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"] {
        let plain = fetch(&server, "GET", path, "identity").await;
        for refusing in ["gzip;q=0", "br", ""] {
            let answer = fetch(&server, "GET", path, refusing).await;
            assert!(!answer.headers.contains_key("content-encoding") && answer.body == plain.body, "{refusing}");
        }
        let compressed = fetch(&server, "GET", path, "br, gzip, deflate").await;
        assert_eq!((compressed.header("content-encoding"), compressed.header("vary")), ("gzip", "accept-encoding"));
        // RFC 1952, section 2.3.1: the last four bytes are the uncompressed length.
        let (_, length) = compressed.body.split_last_chunk().unwrap();
        assert_eq!(u32::from_le_bytes(*length) as usize, plain.body.len());
        assert!(compressed.body.len() * 3 < plain.body.len());
    }
}

#[tokio::test]
async fn each_error_code_has_a_page_that_needs_no_token() {
    let ledger = Ledger::new().await;
    let server = ledger.serve().await;
    let nobody = server.as_caller("");
    for code in Contract::get().codes() {
        let answer = nobody.get(&format!("/problems/{code}")).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "text/html; charset=utf-8"));
        let page = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(page.contains(&format!("<dd><code>{code}</code></dd>")) && !page.contains('`'), "{page}");
    }
    // The `type` of an error leads to it.
    let refused = nobody.get("/jobs").await.json();
    let page = nobody.get(refused["type"].as_str().unwrap()).await;
    assert!(String::from_utf8(page.body.to_vec()).unwrap().contains(refused["title"].as_str().unwrap()));
    // Errors of the operations address lead there, too.
    assert_eq!(server.operations().get("/problems/not-ready").await.status, 200);
    nobody.get("/problems/nothing").await.is_problem(404, "route-not-found");
}

#[tokio::test]
async fn the_errors_page_equals_the_programs_output() {
    let printed = run_hapax(&["errors"], &[]).await.stdout;
    assert!(String::from_utf8(printed).unwrap() == include_str!("../../docs/errors.md"), "run `make errors-page`");
}

/// Readers copy the worker from either of them.
#[test]
fn the_page_for_authors_of_workers_shows_the_example() {
    let page = include_str!("../../docs/workers.md");
    let blocks: Vec<_> = page.split("```python\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    assert!(
        blocks.join("\n") == include_str!("../../examples/worker.py"),
        "change docs/workers.md and examples/worker.py alike: the file is the page's Python, with empty lines between"
    );
}

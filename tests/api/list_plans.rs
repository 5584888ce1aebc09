//! The query plans of lists: each filter combination has its index, and a page reads only its own rows.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Row};

use crate::harness::Ledger;
use crate::schema::{plan, statements};

/// A page of a list through one index, identified by a part of its SQL.
struct Shape {
    marker: &'static str,
    indexes: &'static [&'static str],
    /// Type, state and queue, as the statement's parameters.
    filters: &'static str,
    /// The most rows that a page of fifty reads of one table.
    most: f64,
}

const SHAPES: [Shape; 6] = [
    Shape {
        marker: "from hapax.jobs where tenant_id = $1 and id between",
        indexes: &["jobs_pkey"],
        filters: "null, null, null",
        most: 52.0,
    },
    Shape {
        marker: "from ( select job_id as id from hapax.job_queue where tenant_id = $1 and job_id between",
        indexes: &["job_queue_pkey"],
        filters: "null, 'queued', null",
        most: 52.0,
    },
    Shape {
        marker: "from hapax.job_outcomes where tenant_id = $1 and state <> 'succeeded' and (state, job_id) >=",
        indexes: &["job_outcomes_state_idx"],
        filters: "null, 'failed', null",
        most: 52.0,
    },
    Shape {
        marker: "from ( select job_id as id from hapax.job_leases where tenant_id = $1 and job_id between",
        indexes: &["job_leases_pkey"],
        filters: "null, 'running', null",
        most: 52.0,
    },
    BY_QUEUE,
    // A third of the finished jobs in this test have succeeded.
    Shape {
        marker: "from ( select job_id as id from hapax.job_outcomes where tenant_id = $1 and job_id between",
        indexes: &["job_outcomes_pkey"],
        filters: "null, 'succeeded', null",
        most: 156.0,
    },
];

/// Reads all waiting jobs of a queue if they are at most 10,000, and sorts their ids; otherwise all waiting jobs in the
/// order of ids. And running jobs of all queues until the page is full.
const BY_QUEUE: Shape = Shape {
    marker: "from hapax.job_outcomes where tenant_id = $1 and (queue, job_id) >=",
    indexes: &["job_queue_claim_idx", "job_queue_pkey", "job_leases_pkey", "job_outcomes_queue_idx"],
    filters: "null, null, 'queue-2'",
    most: 1001.0,
};

fn statement(marker: &str) -> (String, usize) {
    let words = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found =
        statements().into_iter().filter(|(sql, _)| words(sql).contains(marker) && sql.contains("looked_at"));
    let one = found.next().unwrap_or_else(|| panic!("no statement has {marker}"));
    assert!(found.next().is_none(), "several have {marker}");
    one
}

#[tokio::test]
async fn each_list_query_uses_its_index_without_sorting() {
    let ledger = Ledger::new().await;
    for shape in SHAPES {
        let (sql, parameters) = statement(shape.marker);
        let plan = plan(&ledger, &sql, parameters).await;
        for index in shape.indexes {
            assert!(plan.contains(&format!("Scan using {index} ")), "{index}:\n{plan}");
        }
        assert!(!plan.contains("Seq Scan") && !plan.contains("Bitmap"), "{plan}");
        assert_eq!(plan.matches(" Scan using ").count(), plan.matches("Index Cond").count(), "{plan}");
        // The waiting jobs of one queue are few, and in the order of claims.
        let by_queue = shape.indexes.len() > 1;
        assert!(by_queue || !plan.contains("Sort  (") && !plan.contains("Incremental Sort"), "{plan}");
    }
}

/// Thirty thousand jobs of a tenant, a third of them finished and a third running, with ten types in ten queues.
async fn fill(ledger: &Ledger) {
    ledger
        .execute(
            "insert into jobs (tenant_id, id, type, payload, created_at) \
             select tenants.id, lpad(to_hex(n), 32, '0')::uuid, 'type-' || n % 10, '1', now() \
             from tenants cross join generate_series(1, 30000) as n; \
             create temporary table numbered as \
             select tenant_id, id, row_number() over (order by id) as n from jobs; \
             insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at) \
             select tenant_id, id, 'queue-' || n / 3 % 10, 2, now(), 25, now() from numbered where n % 3 = 0; \
             insert into job_leases (tenant_id, job_id, claim_id, token, queue, priority, run_at, max_attempts, attempt, \
             version, created_at, releases, started_at) \
             select tenant_id, id, gen_random_uuid(), 2, 'queue-' || n / 3 % 10, 2, now(), 25, 1, 2, now(), 0, now() \
             from numbered where n % 3 = 2; \
             insert into job_outcomes (tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, version, \
             finished_at) \
             select tenant_id, id, case n % 9 when 1 then 'failed' when 4 then 'cancelled' else 'succeeded' end, \
             'queue-' || n / 3 % 10, 2, now(), 25, 1, 2, now() from numbered where n % 3 = 1; \
             analyze",
        )
        .await;
}

/// The most rows that one table scan returned, over all its loops.
async fn most_rows_of_a_scan(ledger: &Ledger, shape: &Shape, filters: &str, mode: &str) -> f64 {
    let mut connection = ledger.connect().await;
    let (sql, _) = statement(shape.marker);
    let prepare = format!("set plan_cache_mode = {mode}; prepare s as {sql}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.unwrap();
    // From the middle on, so that a scan from the start of the index would show.
    let from = "00000000-0000-0000-0000-000000001388";
    let until = "ffffffff-ffff-ffff-ffff-ffffffffffff";
    let tenant = sqlx::raw_sql("select id::text from tenants").fetch_one(&mut connection).await.unwrap();
    let tenant: String = tenant.get(0);
    let execute = format!(
        "explain (analyze, timing off, format json) execute s('{tenant}', '{from}', '{until}', 51, {filters}, null, null)"
    );
    let row = sqlx::raw_sql(AssertSqlSafe(execute)).fetch_one(&mut connection).await.unwrap();
    let plan: Value = row.get::<sqlx::types::Json<Value>, _>(0).0;
    most_rows(&plan[0]["Plan"])
}

fn most_rows(node: &Value) -> f64 {
    let number = |name: &str| node[name].as_f64().unwrap_or(0.0);
    let read = number("Actual Rows") + number("Rows Removed by Filter") + number("Rows Removed by Index Recheck");
    let own = if node["Relation Name"].is_string() { read * number("Actual Loops") } else { 0.0 };
    node["Plans"].as_array().into_iter().flatten().map(most_rows).fold(own, f64::max)
}

#[tokio::test]
async fn a_page_of_fifty_reads_fifty_one_rows_of_each_index_and_a_rare_one_ten_thousand() {
    let ledger = Ledger::new().await;
    fill(&ledger).await;
    for mode in ["force_custom_plan", "force_generic_plan"] {
        for shape in SHAPES {
            let most = most_rows_of_a_scan(&ledger, &shape, shape.filters, mode).await;
            assert!((51.0..=shape.most).contains(&most), "{mode}, {}: {most}", shape.marker);
        }
        let queued = &SHAPES[1];
        // Fewer than 10,000 waiting jobs follow from the middle on.
        let rare = most_rows_of_a_scan(&ledger, queued, "'none', 'queued', null", mode).await;
        assert!((7_000.0..=10_002.0).contains(&rare), "{mode}: {rare}");
        let all = most_rows_of_a_scan(&ledger, &SHAPES[0], "'none', null, null", mode).await;
        assert!((10_000.0..=10_002.0).contains(&all), "{mode}: {all}");
    }
}

#[tokio::test]
async fn a_missing_value_is_searched_in_its_own_index_only() {
    let ledger = Ledger::new().await;
    let alike = "insert into jobs (tenant_id, id, type, payload, created_at) \
                 select tenants.id, lpad(to_hex(n), 32, '0')::uuid, 'type', '1', now() \
                 from tenants cross join generate_series(1, 20000) as n; \
                 insert into job_outcomes (tenant_id, job_id, state, queue, priority, run_at, max_attempts, attempt, \
                 version, finished_at) \
                 select tenant_id, id, 'cancelled', 'queue', 2, now(), 25, 1, 2, now() from jobs; \
                 insert into job_queue (tenant_id, job_id, queue, priority, run_at, max_attempts, created_at) \
                 select tenant_id, gen_random_uuid(), 'queue', 2, now(), 25, now() from jobs; \
                 analyze";
    ledger.execute(alike).await;
    for (shape, filters) in [(2, "null, 'failed', null"), (4, "null, null, 'none'")] {
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let most = most_rows_of_a_scan(&ledger, &SHAPES[shape], filters, mode).await;
            assert_eq!(most, 0.0, "{mode}, {}", SHAPES[shape].marker);
        }
    }
}

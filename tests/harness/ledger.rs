use std::net::SocketAddr;
use std::ops::Range;
use std::str::FromStr;

use hapax::access::queries::NewToken;
use hapax::access::{Scope, TenantName, TenantSettings, Token, queries};
use hapax::audit::{self, CHECKS};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use url::Url;

use super::{Proxy, Server, until};

/// A migrated database for one test, with a tenant `acme` and a token of it with all scopes. Dropped with the test.
pub struct Ledger {
    pub name: String,
    pub url: String,
    pub token: String,
    /// The server that the database is on.
    server: String,
}

impl Ledger {
    pub async fn new() -> Self {
        Self::on(&base_url()).await
    }

    /// Creates the database on another server.
    pub async fn on(server: &str) -> Self {
        let mut ledger = Self::empty_on(server).await;
        hapax::database::migrate_at_once(&mut PgConnection::connect(&ledger.url).await.unwrap()).await.unwrap();
        ledger.token = ledger.token_for("acme", &Scope::ALL).await;
        ledger
    }

    /// A database without tables.
    pub async fn empty() -> Self {
        Self::empty_on(&base_url()).await
    }

    async fn empty_on(server: &str) -> Self {
        let name = format!("hapax_test_{}", uuid::Uuid::new_v4().simple());
        let mut connection = PgConnection::connect(server).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut connection).await.unwrap();
        let mut url = Url::parse(server).unwrap();
        url.set_path(&name);
        Self { name, url: url.into(), token: String::new(), server: server.to_owned() }
    }

    /// A session that finds the tables of Hapax without naming their schema. Sessions of the service must name it.
    pub async fn connect(&self) -> PgConnection {
        session(&self.url).await.unwrap()
    }

    /// Runs SQL on the test's database.
    pub async fn execute(&self, sql: &str) -> u64 {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap().rows_affected()
    }

    /// Runs SQL with the connection of another role.
    pub async fn execute_as(&self, url: &str, sql: &str) -> sqlx::Result<()> {
        let mut connection = session(url).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
        connection.close().await
    }

    /// The single number that a query returns.
    pub async fn number(&self, sql: &str) -> i64 {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap().get(0)
    }

    /// The one text that a query answers.
    pub async fn text(&self, sql: &str) -> String {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap().get(0)
    }

    pub async fn jobs(&self) -> i64 {
        self.number("select count(*) from jobs").await
    }

    pub async fn keys(&self) -> i64 {
        self.number("select count(*) from idempotency_keys").await
    }

    /// Asserts that there are this many jobs, each with its idempotency key and its place in the queue, and nothing
    /// else, and that no invariant is violated.
    pub async fn assert_consistent(&self, jobs: i64) {
        let joined = "select count(*) from idempotency_keys k \
            join jobs j on j.tenant_id = k.tenant_id and j.id = k.job_id \
            join job_queue q on q.tenant_id = j.tenant_id and q.job_id = j.id";
        let queued = self.number("select count(*) from job_queue").await;
        assert_eq!([self.number(joined).await, self.keys().await, self.jobs().await, queued], [jobs; 4]);
        self.assert_no_violations().await;
    }

    /// Asserts what `hapax audit` checks. It may be called while servers write.
    pub async fn assert_no_violations(&self) {
        let mut connection = self.connect().await;
        for check in &CHECKS {
            let found = audit::violations(&mut connection, check).await.unwrap();
            assert_eq!(found.count, 0, "{}: {:#?}", check.name, found.shown);
        }
    }

    /// A new token. Creates the tenant if it does not exist.
    pub async fn token_for(&self, tenant: &str, scopes: &[Scope]) -> String {
        let mut connection = self.connect().await;
        let (name, token): (TenantName, _) = (tenant.parse().unwrap(), Token::mint());
        queries::create_tenant(&mut connection, &name, &TenantSettings::default()).await.unwrap();
        let scopes = scopes.iter().copied().collect();
        let new = NewToken { tenant: &name, scopes, name: None, life: None };
        queries::create_token(&mut connection, &token.digest(), new).await.unwrap().unwrap();
        token.expose().to_owned()
    }

    /// Makes an idempotency key expire: moves its expiry into the past, and ends its job as if it had been cancelled long
    /// ago.
    pub async fn expire(&self, key: &str) {
        self.pass_expiry(key).await;
        let job =
            format!("(tenant_id, job_id) in (select tenant_id, job_id from idempotency_keys where key = '{key}')");
        self.execute(&format!(
            "with ended as (delete from job_queue where {job} returning *) insert into job_outcomes (tenant_id, job_id, \
             state, queue, priority, run_at, max_attempts, attempt, version, finished_at) select tenant_id, job_id, \
             'cancelled', queue, priority, run_at, max_attempts, attempt, version + 1, now() from ended"
        ))
        .await;
        self.execute(&format!("delete from job_uniques where {job}")).await;
        self.execute(&format!("update job_outcomes set finished_at = now() - interval '2 years' where {job}")).await;
    }

    /// Moves an idempotency key's expiry into the past. If its job is not over, or not for long, the key is still kept.
    pub async fn pass_expiry(&self, key: &str) {
        let sql = format!(
            "update idempotency_keys set expires_at = clock_timestamp() - interval '1 second' where key = '{key}'"
        );
        assert_eq!(self.execute(&sql).await, 1);
    }

    /// Holds an idempotency key, as another replica's uncommitted submission would. Takes over an expired row.
    pub async fn hold_key(&self, key: &str) -> OpenTransaction {
        self.hold_key_of("POST /jobs", key).await
    }

    /// The same for a key of another route.
    pub async fn hold_key_of(&self, route: &str, key: &str) -> OpenTransaction {
        self.hold_rows(1, &holding(route, &format!("'{key}'"), "tenants")).await
    }

    /// The same for many keys, whose names end in numbers.
    pub async fn hold_keys(&self, name: &str, numbers: Range<u64>) -> OpenTransaction {
        let numbered = format!("tenants, generate_series({}, {} - 1) as number", numbers.start, numbers.end);
        let keys = numbers.end - numbers.start;
        self.hold_rows(keys, &holding("POST /jobs", &format!("'{name}' || number"), &numbered)).await
    }

    /// Locks all jobs, as a transaction that moves them would.
    pub async fn hold_jobs(&self) -> OpenTransaction {
        self.hold("select from jobs for update; select from job_queue for update").await
    }

    /// Holds a job id, as another replica's uncommitted PUT would.
    pub async fn hold_new_job(&self, id: &str) -> OpenTransaction {
        let sql = format!(
            "insert into jobs (tenant_id, id, type, payload, created_at, named) \
             select id, '{id}', 't', '1', now(), true from tenants where name = 'acme'"
        );
        self.hold(&sql).await
    }

    /// Runs SQL in a transaction and leaves it open.
    pub async fn hold(&self, sql: &str) -> OpenTransaction {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(format!("begin; {sql}"))).execute(&mut connection).await.unwrap();
        OpenTransaction { connection }
    }

    /// The same. Asserts that it has written this many rows for each tenant.
    async fn hold_rows(&self, rows: u64, sql: &str) -> OpenTransaction {
        let rows = rows * self.number("select count(*) from tenants").await.unsigned_abs();
        let mut held = self.hold("").await;
        let written = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut held.connection).await.unwrap();
        assert_eq!(written.rows_affected(), rows, "{sql}");
        held
    }

    /// Returns once this many of the servers' statements wait for a lock.
    pub async fn until_waiting(&self, statements: i64) {
        let sql = "select count(*) from pg_stat_activity \
                   where datname = current_database() and wait_event_type = 'Lock'";
        self.until(sql, |waiting| waiting >= statements).await;
    }

    /// Returns once the statement of a request waits for a lock for longer than the initial lock wait.
    pub async fn until_waiting_long(&self) {
        let sql = "select count(*) from pg_stat_activity where datname = current_database() \
                   and query !~ 'hapax.(reclaim|purge_keys)' \
                   and wait_event_type = 'Lock' and clock_timestamp() - query_start > interval '100 ms'";
        self.until(sql, |waiting| waiting == 1).await;
    }

    /// Returns once the query's number satisfies `wanted`.
    pub async fn until(&self, sql: &str, wanted: impl Fn(i64) -> bool) {
        let mut connection = self.connect().await;
        until(sql, async || {
            let row = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap();
            wanted(row.get(0)).then_some(())
        })
        .await;
    }

    /// Changes a PostgreSQL setting for new sessions on this database, and ends the servers' sessions.
    pub async fn set(&self, setting: &str, value: &str) {
        // Works even if the setting forbids writes.
        let sql = format!("set transaction read write; alter database {} set {setting} = {value}", self.name);
        self.execute(&sql).await;
        self.end_sessions().await;
    }

    /// The URL of an ordinary role. Its connections can be limited, unlike a superuser's.
    pub async fn url_of_ordinary_user(&self) -> String {
        let (name, password) = (&self.name, uuid::Uuid::new_v4().simple());
        let sql = format!(
            "create role {name} login password '{password}'; \
             grant usage on schema hapax to {name}; \
             grant select, insert, update, delete on all tables in schema hapax to {name}"
        );
        self.execute(&sql).await;
        let mut url = Url::parse(&self.url).unwrap();
        url.set_username(name).unwrap();
        url.set_password(Some(&password.to_string())).unwrap();
        url.into()
    }

    /// Limits the ordinary role's connections; -1: no limit. Open connections stay.
    pub async fn limit_connections(&self, limit: i32) {
        self.execute(&format!("alter role {} connection limit {limit}", self.name)).await;
    }

    /// Makes every statement that inserts jobs wait, until the returned transaction ends. It does not wait for a lock, so the
    /// lock timeout does not end it.
    pub async fn block_inserts(&self) -> OpenTransaction {
        self.block("insert on jobs").await
    }

    /// The same for another event, such as `update on claims`.
    pub async fn block(&self, event: &str) -> OpenTransaction {
        let gate = format!(
            "create or replace function wait_at_gate() returns trigger language plpgsql as $$ begin \
             while not pg_try_advisory_xact_lock_shared(1) loop perform pg_sleep(0.005); end loop; \
             return null; end $$; \
             create or replace trigger gate before {event} for each statement execute function wait_at_gate()"
        );
        self.execute(&gate).await;
        self.hold("select pg_advisory_xact_lock(1)").await
    }

    /// Returns once this many statements wait at [`Ledger::block`].
    pub async fn until_blocked(&self, statements: i64) {
        let sql = "select count(*) from pg_stat_activity \
                   where datname = current_database() and wait_event = 'PgSleep'";
        self.until(sql, |waiting| waiting >= statements).await;
    }

    /// Locks a table, in one of PostgreSQL's lock modes.
    pub async fn lock_table(&self, table: &str, mode: &str) -> OpenTransaction {
        self.hold(&format!("lock table {table} in {mode} mode")).await
    }

    /// Cancels the servers' statements that wait for a lock, as `statement_timeout` would.
    pub async fn cancel_waiting(&self) -> i64 {
        let sql = "select count(pg_cancel_backend(pid)) from pg_stat_activity \
                   where datname = current_database() and application_name = 'hapax' and wait_event_type = 'Lock'";
        self.number(sql).await
    }

    /// New tokens of an existing tenant, created in one statement.
    pub async fn tokens_for(&self, tenant: &str, count: usize) -> Vec<String> {
        let tokens: Vec<Token> = (0..count).map(|_| Token::mint()).collect();
        let digests: Vec<Vec<u8>> = tokens.iter().map(|token| token.digest().as_bytes().to_vec()).collect();
        let sql = "insert into access_tokens (id, tenant_id, digest, scopes) \
                   select gen_random_uuid(), id, digest, '{submit,read}' \
                   from tenants cross join unnest($1::bytea[]) as digest where name = $2";
        let made = sqlx::query(sql).bind(digests).bind(tenant).execute(&mut self.connect().await).await.unwrap();
        assert_eq!(made.rows_affected(), count as u64);
        tokens.iter().map(|token| token.expose().to_owned()).collect()
    }

    /// Ends the servers' sessions and returns their number.
    pub async fn end_sessions(&self) -> i64 {
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                   where datname = current_database() and application_name = 'hapax'";
        self.number(sql).await
    }

    /// Returns once all of the servers' sessions have been idle for a while.
    pub async fn until_idle(&self) {
        let busy = "select count(*) from pg_stat_activity \
                    where datname = current_database() and application_name = 'hapax' \
                    and (state <> 'idle' or clock_timestamp() - state_change < interval '50 ms')";
        self.until(busy, |sessions| sessions == 0).await;
    }

    /// A checksum of the servers' sessions, which changes with every new session.
    pub async fn sessions(&self) -> i64 {
        let sql = "select coalesce(sum(hashtextextended(pid::text || backend_start::text, 0) / 1000), 0)::bigint \
                   from pg_stat_activity where datname = current_database() and application_name = 'hapax'";
        self.number(sql).await
    }

    /// Makes the database unreachable for its servers, as a failover would.
    pub async fn rename_to(&self, name: &str) {
        rename(&self.name, name).await;
    }

    pub async fn rename_back_from(&self, name: &str) {
        rename(name, &self.name).await;
    }

    pub async fn serve(&self) -> Server {
        self.serve_with(&[]).await
    }

    pub async fn serve_with(&self, settings: &[(&str, &str)]) -> Server {
        Server::start(&self.url, &self.token, settings).await
    }

    /// A server at this address.
    pub async fn serve_at(&self, address: SocketAddr, settings: &[(&str, &str)]) -> Server {
        Server::start_at(address, &self.url, &self.token, settings).await
    }

    /// A server that reaches the database through a proxy.
    pub async fn serve_through(&self, proxy: &Proxy, settings: &[(&str, &str)]) -> Server {
        Server::start(&proxy.url(self), &self.token, settings).await
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let sql = format!("drop database if exists {} with (force)", self.name);
        let users = format!("drop role if exists {0}, {0}_owner", self.name);
        let server = self.server.clone();
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&server).await.unwrap();
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
                sqlx::raw_sql(AssertSqlSafe(users)).execute(&mut connection).await.unwrap();
            });
        });
        dropping.join().unwrap();
    }
}

/// Ends all sessions on a database and renames it.
async fn rename(from: &str, to: &str) {
    let mut server = PgConnection::connect(&base_url()).await.unwrap();
    for sql in [
        // Prevents servers from reconnecting in between.
        format!("alter database {from} with allow_connections false"),
        format!("select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '{from}'"),
        format!("alter database {from} rename to {to}"),
        format!("alter database {to} with allow_connections true"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await.unwrap();
    }
}

/// The statement by which another replica would write an idempotency key.
fn holding(route: &str, key: &str, from: &str) -> String {
    format!(
        "insert into idempotency_keys (tenant_id, route, key, fingerprint, effect, job_id, job_version, body, \
         request_id, created_at, expires_at, time_to_live_seconds) select id, '{route}', {key}, sha256('another'), 'created', \
         gen_random_uuid(), 1, '{{}}', 'the-holder', now(), now() + interval '1 day', 86400 from {from} \
         on conflict (tenant_id, route, key) do update set fingerprint = excluded.fingerprint, \
         job_id = excluded.job_id, body = excluded.body, request_id = excluded.request_id, \
         created_at = excluded.created_at, expires_at = excluded.expires_at \
         where idempotency_keys.expires_at <= clock_timestamp()"
    )
}

/// An uncommitted transaction of another session.
pub struct OpenTransaction {
    connection: PgConnection,
}

impl OpenTransaction {
    /// Runs more SQL in it.
    pub async fn execute(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection).await.unwrap();
    }

    pub async fn commit(mut self) {
        sqlx::raw_sql("commit").execute(&mut self.connection).await.unwrap();
    }

    pub async fn roll_back(mut self) {
        sqlx::raw_sql("rollback").execute(&mut self.connection).await.unwrap();
    }
}

fn base_url() -> String {
    std::env::var("DATABASE_URL").expect("DATABASE_URL must name a PostgreSQL to test on; `make test` starts one")
}

async fn session(url: &str) -> sqlx::Result<PgConnection> {
    PgConnectOptions::from_str(url)?.options([("search_path", "hapax, public")]).connect().await
}

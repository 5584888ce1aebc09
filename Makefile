# The two commands of the README are `make run` and `make test`; the rest is what they and .ci/run are made of.

SQLX_CLI_VERSION := 0.9.0
TOOLS := target/tools
export PATH := $(CURDIR)/$(TOOLS)/bin:$(PATH)

# The folder of PostgreSQL's programs, where pg_config and Debian's own place would not find them.
WITH_BINARIES = bin="$$(scripts/postgres-binaries)" && export HAPAX_POSTGRES_BIN="$$bin"
# Tests wait for deadlines more than they compute.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))

# A database for one command: the one that DATABASE_URL names, else one that is thrown away.
WITH_DATABASE = $(WITH_BINARIES); [ -n "$$DATABASE_URL" ] && with="" || with="target/debug/hapax with-postgres --"; $$with

# The load balancer that the tests put in front of replicas.
WITH_BALANCER = haproxy="$$(scripts/debian-program haproxy haproxy)" && export HAPAX_HAPROXY="$$haproxy"
# The pooler that they put in front of PostgreSQL. Where it cannot be had its tests are left out, which the runner's last
# line says ("filtered out").
WITH_POOLER = pgbouncer="$$(scripts/pgbouncer)" && without="" || without="--skip pooler::"; \
    export HAPAX_PGBOUNCER="$$pgbouncer"

.PHONY: run test demo drill siege bench bench-full bench-smoke bench-build release check fmt lint api contract alerts load-balancer containers docs supply-chain sqlx-check sqlx-prepare metrics-page retries-page build

## run: the service on http://127.0.0.1:8080, with a PostgreSQL of its own in .hapax/
run: build
	@$(WITH_BINARIES); exec target/debug/hapax dev

## test: the whole suite, on a PostgreSQL that is thrown away (or on DATABASE_URL's server, a database for each test)
test: build $(TOOLS)/bin/sqlx
	@$(WITH_BALANCER); $(WITH_POOLER); $(WITH_DATABASE) cargo test --locked --workspace --no-fail-fast -- $$without

## demo: three release replicas behind a load balancer: copies, different requests, a rolling restart under load
demo: release
	@$(WITH_BINARIES); $(WITH_BALANCER); HAPAX_BINARY="$(CURDIR)/target/release/hapax" cargo test --locked --quiet --test demo

## drill: the database killed and silenced, and ten times the load, with figures; about a minute
drill: release
	@$(WITH_BINARIES); $(WITH_BALANCER); HAPAX_BINARY="$(CURDIR)/target/release/hapax" cargo test --locked --quiet --test demo -- drill

## siege: attacks by one caller, with figures for another tenant before and during each; four minutes. ATTACKS="queues …" runs some
siege: $(if $(HAPAX_BINARY),,release)
	@$(WITH_BINARIES); HAPAX_BINARY="$${HAPAX_BINARY:-$(CURDIR)/target/release/hapax}" cargo test --locked --quiet --test siege -- $(ATTACKS)

# On a disk, and no memory that pretends to be one.
BENCH_DATA ?= /var/tmp
WITH_BENCH = $(WITH_BINARIES); target/release/hapax-bench run --data "$(BENCH_DATA)"

## bench: the measured claims, into docs/benchmarks.md; about ten minutes on a machine that does nothing else
bench: bench-build
	@$(WITH_BENCH) short

## bench-full: the same with peers, a million keys replayed and ten million stored; half an hour and more
bench-full: bench-build
	@$(WITH_BENCH) full

## bench-smoke: whether that still works, on debug builds; its figures mean nothing
bench-smoke: build
	@$(WITH_BINARIES); target/debug/hapax-bench run --data "$(BENCH_DATA)" --server target/debug/hapax smoke

bench-build:
	cargo build --locked --release --package hapax --package hapax-bench

release:
	cargo build --locked --release --bin hapax

# With the benchmarks, as the tests and lints are: they give a dependency of the service a feature that it would not have
# by itself, and two sets of features would be two builds of it.
build:
	cargo build --locked --workspace

## check: everything that .ci/run checks besides the tests
check: fmt lint docs sqlx-check supply-chain api contract alerts load-balancer containers

fmt:
	cargo fmt --all --check

lint:
	cargo clippy --locked --workspace --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

## sqlx-check: .sqlx is what the queries say, on a database that `sqlx migrate run` made
sqlx-check: build $(TOOLS)/bin/sqlx
	@$(WITH_DATABASE) scripts/sqlx-prepare --check

## sqlx-prepare: bring .sqlx up to date after a change of SQL
sqlx-prepare: $(TOOLS)/bin/sqlx
	@$(WITH_DATABASE) scripts/sqlx-prepare

## metrics-page: bring docs/metrics.md up to date
metrics-page: build
	target/debug/hapax metrics >docs/metrics.md

## retries-page: bring docs/retries.md up to date, by asking
retries-page: build
	@$(WITH_DATABASE) env HAPAX_WRITE_PAGES=1 cargo test --locked --test api -- retries::

## supply-chain: licences, sources and bans of all dependencies
supply-chain:
	scripts/cargo-deny check licenses sources bans

## api: the contract is well formed, its examples fit, and POST /jobs demands its key
api:
	npm ci --prefix api-design --no-audit --no-fund --loglevel=error
	npm --prefix api-design run lint
	npm --prefix api-design test

## contract: a running server keeps to the contract, asked by schemathesis; about a minute
contract: build
	scripts/contract-check

## alerts: the alert rules are well formed, and fire when they should
alerts:
	@promtool="$$(scripts/debian-program prometheus promtool)"; \
	    "$$promtool" check rules deploy/prometheus-alerts.yaml && \
	    "$$promtool" test rules deploy/prometheus-alerts-test.yaml

## load-balancer: its file is well formed
load-balancer:
	@$(WITH_BALANCER); HAPAX_LB_BIND=:8080 HAPAX_LB_OPERATIONS_BIND=:8404 HAPAX_REPLICA_1=127.0.0.1:8081 \
	    HAPAX_REPLICA_2=127.0.0.1:8082 HAPAX_REPLICA_3=127.0.0.1:8083 "$$haproxy" -c -V -f deploy/haproxy.cfg

## containers: the Dockerfile and docker-compose.yml, without an engine
containers:
	scripts/container-check

$(TOOLS)/bin/sqlx: Makefile
	@echo "Installing sqlx-cli $(SQLX_CLI_VERSION) into $(TOOLS); once, about two minutes"
	cargo install sqlx-cli --version $(SQLX_CLI_VERSION) --locked --no-default-features \
	    --features postgres,rustls,sqlx-toml --root $(TOOLS) --target-dir $(TOOLS)/build --quiet
	@rm -rf $(TOOLS)/build && touch $@

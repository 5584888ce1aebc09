# `make run` and `make test` are the commands of the README. The other targets serve them and .ci/run. See
# CONTRIBUTING.md.

SQLX_CLI_VERSION := 0.9.0
CARGO_FUZZ_VERSION := 0.13.2
TOOLS := target/tools
export PATH := $(CURDIR)/$(TOOLS)/bin:$(PATH)

# The folder of PostgreSQL's programs; the script installs or fetches them if the machine has none.
# Hapax reads HAPAX_POSTGRES_BIN. The tests of private-postgres, which does not know Hapax, read POSTGRES_BIN.
WITH_BINARIES = bin="$$(scripts/postgres-binaries)" && export HAPAX_POSTGRES_BIN="$$bin" POSTGRES_BIN="$$bin"
# Two tests per CPU: tests mostly wait for deadlines.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))

# A database server for one command: the one of DATABASE_URL, else a temporary one.
WITH_DATABASE = $(WITH_BINARIES); [ -n "$$DATABASE_URL" ] && with="" || with="target/debug/hapax with-postgres --"; $$with

# HAProxy, for the tests with a load balancer.
WITH_BALANCER = haproxy="$$(scripts/debian-program haproxy haproxy)" && export HAPAX_HAPROXY="$$haproxy"
# PgBouncer, for the tests with a pooler. If it cannot be found or fetched, these tests are skipped. The last line of the
# test run counts them ("filtered out").
WITH_POOLER = pgbouncer="$$(scripts/pgbouncer)" && without="" || without="--skip pooler::"; \
    export HAPAX_PGBOUNCER="$$pgbouncer"
# The example worker is a Python program. Without python3, its test is skipped in the same way.
WITH_PYTHON = command -v python3 >/dev/null || without="$$without --skip example_worker::"

.PHONY: run test demo drill siege bench bench-full bench-workers bench-smoke bench-build release check fmt lint api contract alerts load-balancer containers docs supply-chain sqlx-check functions sqlx-prepare metrics-page errors-page retries-page build fuzz

## run: serve on http://127.0.0.1:8080, with a private PostgreSQL in .hapax/
run: build
	@$(WITH_BINARIES); exec target/debug/hapax dev

## test: run the whole suite on a temporary PostgreSQL, or on DATABASE_URL's server; each test has its own database
test: build $(TOOLS)/bin/sqlx
	@$(WITH_BALANCER); $(WITH_POOLER); $(WITH_PYTHON); $(WITH_DATABASE) cargo test --locked --workspace --no-fail-fast -- $$without

## demo: run jobs on three release replicas and three workers, kill one of each, restart all replicas, count; needs python3
demo: release
	@$(WITH_BINARIES); $(WITH_BALANCER); HAPAX_BINARY="$(CURDIR)/target/release/hapax" cargo test --locked --quiet --test demo

## drill: kill the database, cut its network, send ten times the load, and print figures; about a minute
drill: release
	@$(WITH_BINARIES); $(WITH_BALANCER); HAPAX_BINARY="$(CURDIR)/target/release/hapax" cargo test --locked --quiet --test demo -- drill

## siege: attack a replica as one caller, measure another tenant before and during; four minutes. ATTACKS="queues …" runs some
siege: $(if $(HAPAX_BINARY),,release)
	@$(WITH_BINARIES); HAPAX_BINARY="$${HAPAX_BINARY:-$(CURDIR)/target/release/hapax}" cargo test --locked --quiet --test siege -- $(ATTACKS)

# A folder on a disk, not in memory (tmpfs).
BENCH_DATA ?= /var/tmp
WITH_BENCH = $(WITH_BINARIES); target/release/hapax-bench run --data "$(BENCH_DATA)"

## bench: measure the claims of docs/benchmarks.md and write the page; a quarter of an hour on an idle machine
bench: bench-build
	@$(WITH_BENCH) short

## bench-full: the same, with other job queues, a million keys replayed and ten million stored; about an hour
bench-full: bench-build
	@$(WITH_BENCH) full

## bench-workers: measure the rows with workers as in bench-full; a quarter of an hour. The page is target/bench/benchmarks.md
bench-workers: bench-build
	@mkdir -p target/bench; $(WITH_BENCH) --docs target/bench workers

## bench-smoke: check that the benchmarks run, on debug builds; the figures mean nothing
bench-smoke: build
	@$(WITH_BINARIES); target/debug/hapax-bench run --data "$(BENCH_DATA)" --server target/debug/hapax smoke

bench-build:
	cargo build --locked --release --package hapax --package hapax-bench

release:
	cargo build --locked --release --bin hapax

# The whole workspace, as for the tests and lints. The benchmarks enable a feature of a shared dependency. Each set of
# features is a separate build.
build:
	cargo build --locked --workspace

## check: run all checks of .ci/run, without the tests and benchmarks
check: fmt lint docs sqlx-check functions supply-chain api contract alerts load-balancer containers

fmt:
	cargo fmt --all --check

lint:
	cargo clippy --locked --workspace --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

## sqlx-check: check that .sqlx fits the queries and the migrations
sqlx-check: build $(TOOLS)/bin/sqlx
	@$(WITH_DATABASE) scripts/sqlx-prepare --check

## functions: check the bodies of the database functions
functions: $(TOOLS)/bin/sqlx build
	@$(WITH_DATABASE) scripts/function-check

## sqlx-prepare: update .sqlx after a change of SQL
sqlx-prepare: $(TOOLS)/bin/sqlx
	@$(WITH_DATABASE) scripts/sqlx-prepare

## metrics-page: write docs/metrics.md
metrics-page: build
	target/debug/hapax metrics >docs/metrics.md

## errors-page: write docs/errors.md
errors-page: build
	target/debug/hapax errors >docs/errors.md

## retries-page: write docs/retries.md, from the answers of two servers
retries-page: build
	@$(WITH_DATABASE) env HAPAX_WRITE_PAGES=1 cargo test --locked --test api -- retries::

## supply-chain: check licences, sources and bans of all dependencies
supply-chain:
	scripts/cargo-deny check licenses sources bans

## api: check that the contract is well formed, that its examples fit, and that POST /jobs requires an Idempotency-Key
api:
	npm ci --prefix api-design --no-audit --no-fund --loglevel=error
	npm --prefix api-design run lint
	npm --prefix api-design test

## contract: test a running server against the contract with schemathesis; about a minute
contract: build
	scripts/contract-check

## alerts: check the alert rules, and that they fire when they should
alerts:
	@promtool="$$(scripts/debian-program prometheus promtool)"; \
	    "$$promtool" check rules deploy/prometheus-alerts.yaml && \
	    "$$promtool" test rules deploy/prometheus-alerts-test.yaml

## load-balancer: check deploy/haproxy.cfg
load-balancer:
	@$(WITH_BALANCER); HAPAX_LB_BIND=:8080 HAPAX_LB_OPERATIONS_BIND=:8404 HAPAX_REPLICA_1=127.0.0.1:8081 \
	    HAPAX_REPLICA_2=127.0.0.1:8082 HAPAX_REPLICA_3=127.0.0.1:8083 "$$haproxy" -c -V -f deploy/haproxy.cfg

## containers: check the Dockerfile and docker-compose.yml; no container engine needed
containers:
	scripts/container-check

# How long to fuzz each target, in seconds.
FUZZ_SECONDS ?= 60

## fuzz: fuzz the JSON scanner and the fingerprint for FUZZ_SECONDS each (60); needs a nightly toolchain of Rust
fuzz: $(TOOLS)/bin/cargo-fuzz
	@for target in json fingerprint; do \
	    mkdir -p fuzz/corpus/$$target; \
	    cargo +nightly fuzz run --target-dir target/fuzz $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	        -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1 || exit; \
	done

$(TOOLS)/bin/cargo-fuzz: Makefile
	@echo "Installing cargo-fuzz $(CARGO_FUZZ_VERSION) into $(TOOLS) (once, about two minutes)"
	cargo install cargo-fuzz --version $(CARGO_FUZZ_VERSION) --locked --root $(TOOLS) --target-dir $(TOOLS)/build --quiet
	@rm -rf $(TOOLS)/build && touch $@

$(TOOLS)/bin/sqlx: Makefile
	@echo "Installing sqlx-cli $(SQLX_CLI_VERSION) into $(TOOLS) (once, about two minutes)"
	cargo install sqlx-cli --version $(SQLX_CLI_VERSION) --locked --no-default-features \
	    --features postgres,rustls,sqlx-toml --root $(TOOLS) --target-dir $(TOOLS)/build --quiet
	@rm -rf $(TOOLS)/build && touch $@

# The image of Hapax: one binary, on a base that has no shell and no package manager, run by a user without rights.
#
#     docker build --tag hapax .

FROM rust:1.95.0-bookworm AS builder
WORKDIR /build

# The dependencies, with stubs for our own sources: a layer that is kept until one of these files changes.
# rust-toolchain.toml stays out of the image (see .dockerignore): the base is that toolchain, and rustup would fetch
# rustfmt and clippy, which nothing here needs.
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
# A member of the workspace, so Cargo wants to know of it; it is not built.
COPY benches/Cargo.toml benches/
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked

# Besides the sources, what they have compiled in: checked queries, the schema and the contract.
COPY .sqlx .sqlx
COPY migrations migrations
COPY api-design/jobs-api.yaml api-design/
COPY src src
# Cargo goes by times, and what was just copied may be older than the stubs.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked


FROM gcr.io/distroless/cc-debian12:nonroot

COPY --from=builder /build/target/release/hapax /usr/local/bin/hapax

# The base's own, said again by number, so that it can be seen here and checked by an orchestrator.
USER 65532:65532

# A container's loopback is its own, so both listeners take any address; what is published is decided outside.
ENV HAPAX__SERVER__BIND=0.0.0.0:8080 \
    HAPAX__METRICS__BIND=0.0.0.0:9080 \
    HAPAX__LOG__FORMAT=json
# The API, and /metrics.
EXPOSE 8080 9080

# Alive, whatever the database does: a restart would not mend a database.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/hapax", "health"]

ENTRYPOINT ["/usr/local/bin/hapax"]
CMD ["serve"]

# Last, because a new revision must not cost a layer above: --build-arg REVISION="$(git rev-parse HEAD)"
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Hapax" \
      org.opencontainers.image.description="An HTTP job service on PostgreSQL on which every retry is harmless" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION"

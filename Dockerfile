# The image of Hapax: one binary on a base without a shell and a package manager, run by a user without privileges.
#
#     docker build --tag hapax .

FROM rust:1.95.0-bookworm AS builder
WORKDIR /build

# The dependencies, with stubs for our own sources. Docker reuses this layer until one of these files changes.
# rust-toolchain.toml is not copied (see .dockerignore): the base image is that toolchain, and rustup would fetch
# rustfmt and clippy, which the build does not need.
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
# A member of the workspace: Cargo needs its manifest but does not build it.
COPY benches/Cargo.toml benches/
# A member that the service depends on. It changes as rarely as the other dependencies.
COPY private-postgres private-postgres
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked

# The sources, and what they compile in: checked queries, migrations (sqlx.toml names their schema) and the contract.
COPY .sqlx .sqlx
COPY sqlx.toml ./
COPY migrations migrations
COPY api-design/jobs-api.yaml api-design/
COPY src src
# Cargo compares times, and the copied files may be older than the stubs.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked


FROM gcr.io/distroless/cc-debian12:nonroot

COPY --from=builder /build/target/release/hapax /usr/local/bin/hapax

# The base image's own user, by number, so that an orchestrator can check that it is not root.
USER 65532:65532

# Both listeners take any address, because a container's loopback is private to it. The engine decides what is
# published.
ENV HAPAX__SERVER__BIND=0.0.0.0:8080 \
    HAPAX__METRICS__BIND=0.0.0.0:9080 \
    HAPAX__LOG__FORMAT=json
# The API, and /metrics.
EXPOSE 8080 9080

# Liveness does not depend on the database: a restart of the replica does not repair a database.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/hapax", "health"]

ENTRYPOINT ["/usr/local/bin/hapax"]
CMD ["serve"]

# Last, so that a new revision does not invalidate the layers above: --build-arg REVISION="$(git rev-parse HEAD)"
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Hapax" \
      org.opencontainers.image.description="An HTTP job service on PostgreSQL on which every retry is harmless" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION"

# Bursar alone: one binary, no shell, an unprivileged user.
#
#   docker build -t bursar .
#   docker run --rm -p 6432:6432 -e BURSAR_LISTEN_ADDRESS=0.0.0.0:6432 \
#       -v "$PWD/config.toml:/etc/bursar/config.toml:ro" bursar

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin bursar

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/bursar /usr/local/bin/bursar
# Bursar looks for config.toml in its working directory; without one it runs on its defaults.
WORKDIR /etc/bursar
USER 65532:65532
EXPOSE 6432 9432
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/bursar", "health"]
ENTRYPOINT ["/usr/local/bin/bursar"]

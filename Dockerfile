# Bursar alone: one static binary, the public certificate authorities, an unprivileged user. No shell, no libc.
#
#   docker build -t bursar .
#   docker run --rm --read-only -p 6432:6432 -e BURSAR_LISTEN_ADDRESS=0.0.0.0:6432 \
#       -v "$PWD/config.toml:/etc/bursar/config.toml:ro" bursar
#
# docs/install.md says why it is made so; scripts/check-image builds it and holds it to what is said there.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# glibc in the binary: it resolves names by files and DNS without a library of its own in the image
# (from 2.34 on; here 2.36), and its allocator and string functions are the ones that are measured.
ENV RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_STRIP=symbols

# What Bursar is built from, in a layer of its own: it lasts until Cargo.toml, Cargo.lock or the profile changes. Benches and
# tests are not in the context, so they leave the manifest. A target that is named keeps RUSTFLAGS off build scripts.
COPY .cargo .cargo
COPY scripts/rustc-profiled scripts/
COPY benches/bursar.profdata benches/
COPY Cargo.toml Cargo.lock ./
RUN sed -i -e '/^\[\[bench\]\]/,/^$/d' -e '/^\[\[test\]\]/,/^$/d' Cargo.toml \
    && rustc -vV | sed -n 's/^host: //p' >/target \
    && mkdir src && echo 'fn main() {}' >src/main.rs && : >src/lib.rs \
    && cargo build --release --locked --bin bursar --target "$(cat /target)"

COPY src src
# Cargo goes by times, and the sources are older than the stand-ins above.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin bursar --target "$(cat /target)" \
    && mkdir -p /image/usr/local/bin /image/etc/bursar /image/etc/ssl/certs \
    && cp "target/$(cat /target)/release/bursar" /image/usr/local/bin/ \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && echo 'hosts: files dns' >/image/etc/nsswitch.conf \
    && echo 'bursar:x:65532:65532:Bursar:/etc/bursar:/sbin/nologin' >/image/etc/passwd \
    && echo 'bursar:x:65532:' >/image/etc/group

FROM scratch
COPY --from=build /image /
# Bursar looks for config.toml in its working directory; without one it runs on its defaults.
WORKDIR /etc/bursar
USER 65532:65532
EXPOSE 6432 9432
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/bursar", "health"]
ENTRYPOINT ["/usr/local/bin/bursar"]

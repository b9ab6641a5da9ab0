# Each target does all its own set-up on a Debian or Ubuntu machine with Rust (scripts/setup).
#
#   make demo  [SECONDS=20]   a throwaway PostgreSQL, Bursar, a tagged workload with one leak in it
#   make test                 formatting, lints, documentation, every test
#   make lint                 formatting, lints and documentation alone
#   make versus [ROWS=a,b] [PAIRS=5] [SECONDS=3] [PGBOUNCER=path]
#                             Bursar against PgBouncer on the same PostgreSQL (docs/benchmarks.md)
#   make experiments [ROWS=e1,e2] [SECONDS=10] [OPERATIONS=100000] [SEED=1] [PGBOUNCER=path]
#                             the session budgets under load, beside PgBouncer (docs/experiments.md)
#   make setup                what all of them need

.DEFAULT_GOAL := test
.PHONY: demo test lint versus experiments setup

demo:
	@scripts/setup demo
	@cargo run --quiet --locked -- demo $(if $(SECONDS),--seconds $(SECONDS))

test:
	@scripts/test

lint:
	@scripts/setup lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

versus:
	@scripts/setup versus
	cargo build --release --locked
	@ulimit -n 8192 2>/dev/null; cargo bench --quiet --locked --profile dev --bench versus -- \
		$(if $(ROWS),--rows $(ROWS)) $(if $(PAIRS),--pairs $(PAIRS)) $(if $(SECONDS),--seconds $(SECONDS))

experiments:
	@scripts/setup versus
	cargo build --release --locked
	@ulimit -n 20000 2>/dev/null; cargo bench --quiet --locked --profile dev --bench experiments -- \
		$(if $(ROWS),--rows $(ROWS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(PGBOUNCER),--pgbouncer $(PGBOUNCER)) \
		$(if $(OPERATIONS),--operations $(OPERATIONS)) $(if $(SEED),--seed $(SEED))

setup:
	@scripts/setup all

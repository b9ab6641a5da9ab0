//! Process tests: the real program between real clients and a private PostgreSQL.
//!
//! One crate, so that the cluster is started once; one module a topic. How to run it, and what it
//! needs: `make test`, or `scripts/test-env` once and then `cargo test --test postgres`.
//! `BURSAR_TEST_PROGRAMS` is the number of random programs of [`differential`] and
//! `BURSAR_TEST_SEED` the first of them; `BURSAR_PG_BIN` names PostgreSQL's `bin` directory.

mod support;

mod auth;
mod auth_methods;
mod auth_query;
mod backend_dies;
mod breaker;
mod budgets;
mod cancel;
mod cli;
mod clients_gone;
mod commit_random;
mod compatibility;
mod console_commands;
mod console_views;
mod damping;
mod deadlocks;
mod differential;
mod drain;
mod drivers;
mod drivers_kept;
mod drivers_rust;
mod drivers_sqlx;
mod examples;
mod fairness;
mod fence;
mod fence_block;
mod fence_lent;
mod fence_random;
mod fence_roles;
mod groups;
mod hostile;
mod hostile_logins;
mod http;
mod lazy_begin;
mod leak_classes;
mod leak_matrix;
mod leaks;
mod life;
mod life_drain;
mod life_hand_over;
mod life_notify;
mod limits;
mod load;
mod outages;
mod overload;
mod overstay;
mod parking;
mod parking_random;
mod policies;
mod prepared;
mod recipes;
mod reload;
mod replication;
mod requests;
mod rights;
mod scopes;
mod secrets;
mod server_passwords;
mod settings;
mod soft_abort;
mod sql_files;
mod startup;
mod state;
mod statement_budgets;
mod statement_mode;
mod stress;
mod tag_channels;
mod tag_commands;
mod tenant_keys;
mod tls;
mod tls_drivers;
mod traces;
mod unix_sockets;
mod upstreams;

//! Bursar: a PostgreSQL connection-pool proxy sidecar that enforces session budgets.
//!
//! # The house
//!
//! One crate, a library with a thin binary. A file imports from its own floor or below, never above.
//! `tests/tidy.rs` holds the rule, and which rooms are *pure*: no sockets, tasks, locks or logging,
//! and `now` is an argument.
//!
//! | floor | rooms |
//! |---|---|
//! | 6 house | [`server`], [`drain`], [`reload`], [`notify`], [`cli`], `main.rs` |
//! | 5 faces | [`console`], [`http`] |
//! | 4 session | [`session`]: handshake → tag → serve → close, the relay, the tracker |
//! | 3 doors | [`net`], [`backend`], [`pool`], [`auth`] |
//! | 2 rules (pure) | [`book`], [`breaker`], [`adapt`], [`statements`], [`state`] |
//! | 1 wire (pure) | [`wire`] |
//! | 0 ground | [`tag`], [`config`], [`metrics`], [`clock`], [`log`] |
//!
//! # The walk of one query (transaction mode)
//!
//! 1. [`net`] reads whatever the client has sent.
//! 2. [`wire::walk`] finds message boundaries in place.
//! 3. [`session::tracker`] takes each header: pass, need a backend, answer here, hold, reject.
//!    [`tag`] and [`wire::sql`] glance at the few messages they care about.
//! 4. [`pool`] asks the [`book`] for a backend: ready, dial, wait, or refuse.
//! 5. [`state`] lists which settings the backend lacks.
//! 6. The relay sends **one** write: injected segment + the client's bytes, untouched.
//! 7. Backend bytes are walked the same way and go to the client in **one** write.
//! 8. On ReadyForQuery the tracker says release.
//! 9. The lease drops: ask for settings that were changed, scrub if dirty, then the book hands the
//!    backend to the next waiter, in order.
//! 10. Back to 1, holding no buffer.
//!
//! # Invariants
//!
//! * No byte of one client reaches another: a backend enters idle only with nothing outstanding,
//!   status `I`, every dirty bit scrubbed and verified, and known settings; otherwise it is closed.
//! * A session's settings are the session's: on whatever backend it runs, and on nobody else's.
//! * A client that was told COMMIT has its data committed: Bursar never invents a CommandComplete
//!   for a statement PostgreSQL did not run (answers to `SET bursar.*` excepted, which hold no data).
//! * Nobody waits for ever without being told why: every wait has a deadline and every refusal a
//!   SQLSTATE, a DETAIL with its numbers and a HINT.

pub mod clock;
pub mod config;
pub mod log;
pub mod metrics;
pub mod tag;

pub mod wire;

pub mod adapt;
pub mod book;
pub mod breaker;
pub mod state;
pub mod statements;

pub mod auth;
pub mod backend;
pub mod net;
pub mod pool;

pub mod session;

pub mod console;
pub mod http;

pub mod cli;
pub mod drain;
pub mod notify;
pub mod reload;
pub mod server;

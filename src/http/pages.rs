//! What is served under which path, and the right that it takes.

use crate::config::{Config, Right};
use crate::console::views::{self, View};

/// The views under `/api/`. CONFIG and the rest are for keepers, who log in to the console.
pub(super) const API: [&str; 16] = [
    "pools",
    "clients",
    "servers",
    "tenants",
    "requests",
    "leases",
    "queue",
    "leaks",
    "callsites",
    "advice",
    "deadlocks",
    "budgets",
    "pins",
    "prepared",
    "stats",
    "upstreams",
];

/// What a path names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Page {
    /// `/livez`
    Live,
    /// `/readyz`
    Ready,
    /// `/healthz/db`
    Database,
    /// `/metrics`
    Metrics,
    /// `/`
    Board,
    /// `/api/NAME`
    View(&'static View),
    /// Nothing.
    Nothing,
}

impl Page {
    pub(super) fn of(path: &str) -> Page {
        match path {
            "/livez" => Page::Live,
            "/readyz" => Page::Ready,
            "/healthz/db" => Page::Database,
            "/metrics" => Page::Metrics,
            "/" => Page::Board,
            _ => {
                let view = path.strip_prefix("/api/").filter(|name| API.contains(name)).and_then(views::find);
                view.map_or(Page::Nothing, Page::View)
            }
        }
    }

    /// The right that it takes; `None` = anybody may. No wildcard: a new page must say.
    pub(super) fn right(self, config: &Config) -> Option<Right> {
        match self {
            // Probes have no password, and learn no name here.
            Page::Live | Page::Ready | Page::Database | Page::Nothing => None,
            Page::Metrics => config.admin.metrics_login.then_some(Right::View),
            Page::Board | Page::View(_) => Some(Right::View),
        }
    }
}

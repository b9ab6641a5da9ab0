//! What instruments read over HTTP: metrics and health.

use crate::support::watch::{get, metric, series, status};
use crate::support::{Config, Db, Proxy, until};
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../docs/metrics.md");
const LEAK: &str = "bursar_leaks_open{class=\"idle_in_tx\"}";

#[test]
fn metrics_have_every_family_of_the_page() {
    let db = Db::new();
    let config = Config::of_size(2).with("pool", "max_wait = \"2s\"").with("leak", "idle = \"50ms\"");
    let proxy = Proxy::start(&db, config);
    // A family without series is not shown: so one of each, of what need not happen.
    let mut client = proxy.connect_for("acme", "r-1");
    let limits = "bursar_server_max_connections{";
    until("limits are read", || series(&proxy).keys().any(|name| name.starts_with(limits)));
    client.batch("begin; select 1");
    let mut pinned = proxy.connect_for("acme", "r-2");
    pinned.batch("listen bell");
    assert_eq!(proxy.connect_for("acme", "r-3").query("select 1").code(), "53300");
    until("the idle transaction is reported", || metric(&proxy, LEAK) == 1.0);
    let (code, text) = get(&proxy, "/metrics").expect("an answer");
    assert_eq!(code, 200);
    let typed: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let documented: Vec<(&str, &str)> = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter_map(|(name, rest)| Some((name, rest.split(" |").next()?)))
        .filter(|(_, kind)| ["gauge", "counter", "histogram"].contains(kind))
        .collect();
    assert!(documented.len() > 40, "{documented:?}");
    let absent: Vec<&str> = documented
        .iter()
        .filter(|(name, kind)| !typed.contains(format!("{name} {kind}").as_str()))
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(absent, [""; 0], "on the page only");
    let names: BTreeSet<&str> = documented.iter().map(|(name, _)| *name).collect();
    for each in typed {
        let name = each.split(' ').next().unwrap_or_default();
        assert!(name.starts_with("process_") || names.contains(name), "{name} is not on the page");
    }
    let series = series(&proxy);
    assert_eq!(series.get("bursar_panics_total"), Some(&0.0));
    let tenant = format!("bursar_tenant_leases_in_use{{pool=\"app@{}\",tenant=\"acme\"}}", db.name());
    assert_eq!(series.get(&tenant), Some(&2.0));
    assert!(series.keys().all(|name| !name.contains("r-1")), "a request id is never a label");
    drop((client, pinned));
    proxy.stop();
}

#[test]
fn health_answers() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    proxy.connect().batch("select 1");
    until("healthy", || status(&proxy, "/healthz/db") == 200);
    assert_eq!((status(&proxy, "/livez"), status(&proxy, "/readyz")), (200, 200));
    let (_, body) = get(&proxy, "/healthz/db").expect("an answer");
    let health: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&health["status"], &health["draining"]), (&"ok".into(), &false.into()), "{body}");
    assert_eq!(status(&proxy, "/nowhere"), 404);
    proxy.stop();
}

//! The text of /metrics held to the rules of `promtool check metrics` (Prometheus, "Metric and label
//! naming"), and to the names that budgets.md §8 promises.

use super::tests::{body, get};
use crate::metrics::FAMILIES;
use std::collections::{BTreeMap, BTreeSet};

/// Units that are not the base unit, and abbreviations of those that are.
const UNITS: [&str; 16] = [
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "days",
    "kilobytes",
    "megabytes",
    "percent",
    "ms",
    "us",
    "ns",
    "sec",
    "secs",
    "kb",
    "mb",
];

/// Everything that is wrong with a text in Prometheus's format.
fn faults(text: &str) -> Vec<String> {
    let (mut faults, mut types, mut helped, mut series) =
        (Vec::new(), BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let mut current = "";
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap_or((help, ""));
            let first = helped.insert(name);
            if words.trim().is_empty() || !first {
                faults.push(format!("{name}: no help, or twice"));
            }
        } else if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap_or((declared, ""));
            current = name;
            if types.insert(name, kind).is_some() || !helped.contains(name) {
                faults.push(format!("{name}: declared twice, or before its help"));
            }
            faults.extend(named(name, kind));
        } else {
            let (sample, _) = line.rsplit_once(' ').unwrap_or((line, ""));
            let name = sample.split('{').next().unwrap_or_default();
            let suffix = name.strip_prefix(current);
            let histogram = types.get(current) == Some(&"histogram");
            if !(suffix == Some("") && !histogram
                || histogram && matches!(suffix, Some("_bucket" | "_sum" | "_count")))
            {
                faults.push(format!("{sample}: stands under {current}"));
            }
            if !series.insert(sample) {
                faults.push(format!("{sample}: twice"));
            }
        }
    }
    faults
}

/// What is wrong with the name of a family of this type.
fn named(name: &str, kind: &str) -> Vec<String> {
    let words: Vec<&str> = name.split('_').collect();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let reserved = ["count", "sum", "bucket", "info"].iter().find(|word| words.last() == Some(word));
    // OpenTelemetry's name, which promtool remarks on; and the one customary use of `info`.
    let customary = ["db_client_connection_count", "bursar_build_info"].contains(&name);
    let rules = [
        (!name.chars().all(plain), "other than lower case, digits and _"),
        ((kind == "counter") != name.ends_with("_total"), "_total is for counters, and for all of them"),
        (kind == "histogram" && !name.ends_with("_seconds"), "a histogram here is of times, in seconds"),
        (words.iter().any(|word| UNITS.contains(word)), "not a base unit"),
        (words.iter().any(|word| ["gauge", "counter", "histogram"].contains(word)), "its type in its name"),
        (reserved.is_some() && !customary, "a suffix that samples have"),
    ];
    rules.iter().filter(|(broken, _)| *broken).map(|(_, why)| format!("{name}: {why}")).collect()
}

#[tokio::test]
async fn the_text_is_clean() {
    let answer = get("/metrics").await;
    let text = body(&answer);
    assert_eq!(faults(text), [""; 0]);
    let types =
        text.lines().filter(|line| line.starts_with("# TYPE bursar_") || line.starts_with("# TYPE db_"));
    assert_eq!(types.count(), FAMILIES.len());
}

#[test]
fn each_rule_finds_its_fault() {
    for (text, fault) in [
        ("# TYPE a_total counter\na_total 1\n", "a_total: declared twice, or before its help"),
        ("# HELP a \n# TYPE a gauge\na 1\n", "a: no help, or twice"),
        ("# HELP a x\n# TYPE a gauge\na 1\na 1\n", "a: twice"),
        ("# HELP a x\n# TYPE a gauge\nb 1\n", "b: stands under a"),
        ("# HELP a x\n# TYPE a counter\na 1\n", "a: _total is for counters, and for all of them"),
        ("# HELP a_ms x\n# TYPE a_ms gauge\na_ms 1\n", "a_ms: not a base unit"),
        ("# HELP a_count x\n# TYPE a_count gauge\na_count 1\n", "a_count: a suffix that samples have"),
        ("# HELP aB x\n# TYPE aB gauge\naB 1\n", "aB: other than lower case, digits and _"),
    ] {
        assert_eq!(faults(text), [fault]);
    }
}

/// Name, type and labels of budgets.md §8.1 and §8.2, as far as what they measure exists; the page of
/// the metrics says what does not.
#[test]
fn promised_names_are_kept() {
    let promised = "\
        db_client_connection_count gauge state\n\
        db_client_connection_max gauge\n\
        db_client_connection_idle_max gauge\n\
        db_client_connection_idle_min gauge\n\
        db_client_connection_pending_requests gauge\n\
        db_client_connection_timeouts_total counter\n\
        db_client_connection_wait_time_seconds histogram\n\
        db_client_connection_use_time_seconds histogram\n\
        bursar_lease_wait_seconds histogram pool class\n\
        bursar_lease_hold_seconds histogram pool class\n\
        bursar_lease_idle_seconds_total counter pool tenant\n\
        bursar_lease_active_seconds_total counter pool tenant\n\
        bursar_leases_in_use gauge pool\n\
        bursar_leases_peak gauge pool\n\
        bursar_queue_length gauge pool\n\
        bursar_tenant_leases_in_use gauge pool tenant\n\
        bursar_tenant_queue_length gauge pool tenant\n\
        bursar_tenant_lease_seconds_total counter pool tenant\n\
        bursar_tenant_wait_seconds_total counter pool tenant\n\
        bursar_tenant_rejections_total counter pool tenant\n\
        bursar_parkable_seconds_total counter pool\n\
        bursar_parks_total counter pool result\n\
        bursar_budget_total counter dimension outcome\n\
        bursar_lease_timeouts_total counter pool\n\
        bursar_rejections_total counter pool sqlstate\n\
        bursar_leaks_total counter class action outcome\n\
        bursar_deadlocks_total counter kind resolution\n\
        bursar_isolation_violations_total counter kind\n\
        bursar_tenant_context_mismatch_total counter\n\
        bursar_stale_tags_total counter\n\
        bursar_untagged_leases_total counter pool\n\
        bursar_backend_connects_total counter result\n\
        bursar_backend_connect_seconds histogram\n\
        bursar_backend_resets_total counter kind\n\
        bursar_client_sessions gauge state\n\
        bursar_client_pool_saturated_total counter\n\
        bursar_breaker_state gauge upstream\n\
        bursar_breaker_transitions_total counter upstream reason\n\
        bursar_pins gauge reason";
    for line in promised.lines() {
        let mut words = line.split_ascii_whitespace();
        let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let family = FAMILIES.iter().find(|family| family.name == name);
        let family = family.unwrap_or_else(|| panic!("{name} is not exported"));
        assert_eq!(family.kind.name(), kind, "{name}");
        for label in words {
            assert!(family.labels.contains(&label), "{name} has no label {label}");
        }
    }
}

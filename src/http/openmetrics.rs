//! Families as text: Prometheus 0.0.4 by the metrics library, OpenMetrics 1.0 by the few lines here,
//! because the library has no encoder for it.
//!
//! No exemplars: Bursar keeps no trace id per bucket.

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use std::fmt::Write;

/// Content type of OpenMetrics text.
pub(super) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether an Accept header asks for OpenMetrics. Whoever lists it can read it, and the other format
/// is only preferred by those who do not list it, so quality values do not matter.
pub(super) fn is_asked_for(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let media = range.split(';').next().unwrap_or_default();
        media.trim().eq_ignore_ascii_case("application/openmetrics-text")
    })
}

/// Families in OpenMetrics 1.0 text format.
pub(super) fn encode(families: &[MetricFamily]) -> String {
    let mut out = String::new();
    for family in families {
        // The family of a counter is named without the suffix that its samples have.
        let name = match family.get_field_type() {
            MetricType::COUNTER => family.name().strip_suffix("_total").unwrap_or(family.name()),
            _ => family.name(),
        };
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::HISTOGRAM => "histogram",
            _ => "gauge",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {}", escaped(family.help()));
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for metric in family.get_metric() {
            sample(&mut out, name, family.get_field_type(), metric);
        }
    }
    out.push_str("# EOF\n");
    out
}

fn sample(out: &mut String, name: &str, kind: MetricType, metric: &Metric) {
    let labels = metric.get_label();
    match kind {
        MetricType::COUNTER => line(out, name, "_total", labels, None, metric.get_counter().get_value()),
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            for bucket in histogram.get_bucket() {
                // A bound is a float in its canonical form: `1.0`, not `1`.
                let bound = format!("{:?}", bucket.upper_bound());
                line(out, name, "_bucket", labels, Some(&bound), bucket.cumulative_count() as f64);
            }
            let count = histogram.get_sample_count() as f64;
            line(out, name, "_bucket", labels, Some("+Inf"), count);
            line(out, name, "_sum", labels, None, histogram.get_sample_sum());
            line(out, name, "_count", labels, None, count);
        }
        _ => line(out, name, "", labels, None, metric.get_gauge().get_value()),
    }
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &[LabelPair], bound: Option<&str>, value: f64) {
    let pairs = labels.iter().map(|label| (label.name(), label.value())).chain(bound.map(|b| ("le", b)));
    let pairs: Vec<_> = pairs.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    let _ = match &pairs[..] {
        [] => writeln!(out, "{name}{suffix} {value}"),
        pairs => writeln!(out, "{name}{suffix}{{{}}} {value}", pairs.join(",")),
    };
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_headers() {
        assert!(is_asked_for(
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        assert!(is_asked_for("text/plain, Application/OpenMetrics-Text"));
        assert!(!is_asked_for("text/plain;version=0.0.4"));
        assert!(!is_asked_for("*/*"));
        assert!(!is_asked_for(""));
    }

    #[test]
    fn counters_lose_their_suffix_and_labels_are_escaped() {
        let mut pair = LabelPair::default();
        pair.set_name("pool".into());
        pair.set_value("a\"b\\c\nd".into());
        let mut counter = prometheus::proto::Counter::default();
        counter.set_value(3.0);
        let mut metric = Metric::from_label(vec![pair]);
        metric.set_counter(counter);
        let mut family = MetricFamily::default();
        family.set_name("x_total".into());
        family.set_help("Two\nlines.".into());
        family.set_field_type(MetricType::COUNTER);
        family.set_metric(vec![metric]);
        let text = "# HELP x Two\\nlines.\n# TYPE x counter\nx_total{pool=\"a\\\"b\\\\c\\nd\"} 3\n# EOF\n";
        assert_eq!(encode(&[family]), text);
    }
}

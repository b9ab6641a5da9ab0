//! Metric families and process counters.

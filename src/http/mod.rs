//! Metrics, health, JSON.

//! What a reload changes: key by key, from two configurations.

use super::{Config, NeedsRestart, Setting, reload_faults};
use std::collections::BTreeMap;
use std::fmt;

/// A key that has another value than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key with its tables.
    pub key: String,
    /// Its value before; empty if there was none. A secret shows as being there only.
    pub was: String,
    /// Its value now, likewise.
    pub is: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, was, is } = self;
        if was == is { write!(f, "{key}: changed") } else { write!(f, "{key}: {was:?} → {is:?}") }
    }
}

/// What came of a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// In force now.
    pub made: Vec<Change>,
    /// Waiting for the next start.
    pub needs_restart: Vec<NeedsRestart>,
}

impl Changes {
    /// From a running configuration to one that was read. Of a table that is new or gone, keys that have their
    /// default value are left out.
    #[must_use]
    pub fn between(running: &Config, new: &Config) -> Changes {
        let by_key = |config: &Config| -> BTreeMap<String, Setting> {
            let changeable = config.show().into_iter().filter(|setting| setting.changeable);
            changeable.map(|setting| (setting.key.clone(), setting)).collect()
        };
        let (before, now) = (by_key(running), by_key(new));
        let said = |setting: &&Setting| setting.value != setting.default || setting.hidden.is_some();
        let value = |setting: Option<&Setting>| setting.map(|s| s.value.clone()).unwrap_or_default();
        let mut made = Vec::new();
        for (key, setting) in &before {
            let other = now.get(key);
            let differs = match other {
                Some(other) => (&other.value, &other.hidden) != (&setting.value, &setting.hidden),
                None => said(&setting),
            };
            if differs {
                made.push(Change { key: key.clone(), was: setting.value.clone(), is: value(other) });
            }
        }
        for (key, setting) in now.iter().filter(|(key, setting)| !before.contains_key(*key) && said(setting))
        {
            made.push(Change { key: key.clone(), was: String::new(), is: value(Some(setting)) });
        }
        made.sort_by(|a, b| a.key.cmp(&b.key));
        Changes { made, needs_restart: reload_faults(running, new) }
    }
}

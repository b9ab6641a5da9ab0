//! Budgets that hold for part of the work (budgets.md §2.3): for a tenant, a route, a class, a role or a
//! database.
//!
//! Such a table says some keys of `[budget]`, and the rest is inherited. Who belongs to several is
//! judged by the most specific: default < database < user < class < route < tenant, where a later one
//! has a key. Which scopes a piece of work is in is looked up once ([`Scopes::places`]) and is a handful
//! of numbers bounded by the configuration, whatever clients say; what they come to is [`Scopes::lay`].

use super::keys::scoped_budget_keys;
use super::rules::Raw;
use super::{Budgets, Mode};
use std::collections::BTreeMap;

/// The tables that may have a `budget` below a name, the least specific first.
pub(super) const TABLES: [&str; 5] = ["database", "user", "class", "route", "tenant"];

/// What a name for everybody is written as.
const ANY: &str = "*";

const ROUTE: usize = 3;

/// Whose work it is that a budget is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope<'a> {
    /// Database as the client names it.
    pub database: &'a str,
    /// Role as the client names it.
    pub user: &'a str,
    /// Scheduling class, if any.
    pub class: Option<&'a str>,
    /// Route, if any.
    pub route: Option<&'a str>,
    /// Tenant.
    pub tenant: &'a str,
}

/// The scopes that a piece of work is in: in each table, a number of a name; 0 for none.
pub type Places = [u32; TABLES.len()];

/// The keys that one table says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Overlay(pub(super) Vec<(String, Raw)>);

/// Every scope that is configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scopes {
    tables: [BTreeMap<String, Overlay>; TABLES.len()],
    /// `[mode] routes`: a mode for every budget of a route.
    modes: BTreeMap<String, Mode>,
}

impl Scopes {
    /// Whether there is one at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.modes.is_empty() && self.tables.iter().all(BTreeMap::is_empty)
    }

    pub(super) fn add(&mut self, table: &str, name: &str, overlay: Overlay) {
        if let Some(at) = TABLES.iter().position(|known| *known == table) {
            self.tables[at].insert(name.to_owned(), overlay);
        }
    }

    pub(super) fn add_mode(&mut self, route: &str, mode: Mode) {
        self.modes.insert(route.to_owned(), mode);
    }

    /// Which scopes work of this sort is in.
    #[must_use]
    pub fn places(&self, scope: &Scope<'_>) -> Places {
        let names = [Some(scope.database), Some(scope.user), scope.class, scope.route, Some(scope.tenant)];
        let mut places = Places::default();
        for (at, name) in names.into_iter().enumerate() {
            let Some(name) = name else { continue };
            let found = if at == ROUTE {
                let best = self.route_of(name);
                best.and_then(|best| self.routes().position(|route| route == best))
            } else {
                self.tables[at].keys().position(|known| known == name)
            };
            places[at] = found.map_or(0, |found| found as u32 + 1);
        }
        places
    }

    /// Routes with a table or a mode, each once, in order.
    fn routes(&self) -> impl Iterator<Item = &str> {
        let alone = self.modes.keys().filter(|route| !self.tables[ROUTE].contains_key(*route));
        self.tables[ROUTE].keys().chain(alone).map(String::as_str)
    }

    /// The pattern that says most about a route: the longest.
    fn route_of(&self, name: &str) -> Option<&str> {
        self.routes().filter(|pattern| matches(pattern, name)).max_by_key(|pattern| pattern.len())
    }

    /// What the scopes make of the budgets that hold for everybody.
    #[must_use]
    pub fn lay(&self, base: &Budgets, places: Places) -> Budgets {
        let mut budgets = base.clone();
        let keys = scoped_budget_keys();
        for (at, table) in self.tables.iter().enumerate() {
            let place = places[at] as usize;
            let name = if at == ROUTE {
                self.routes().nth(place.wrapping_sub(1)).map(str::to_owned)
            } else {
                table.keys().nth(place.wrapping_sub(1)).cloned()
            };
            if at == ROUTE
                && let Some(mode) = name.as_ref().and_then(|name| self.modes.get(name))
            {
                budgets.set_modes(*mode);
            }
            let written = [table.get(ANY), name.and_then(|name| table.get(&name))];
            for (key, raw) in written.into_iter().flatten().flat_map(|overlay| &overlay.0) {
                if let Some(key) = keys.iter().find(|known| known.name == *key) {
                    // It was read without a fault when the file was.
                    let _ = key.write(&mut budgets, raw);
                }
            }
        }
        budgets
    }

    /// Whether a scope says something of parking.
    #[must_use]
    pub fn park(&self) -> bool {
        self.written().any(|(.., overlay)| overlay.0.iter().any(|(key, _)| key.starts_with("parking.")))
    }

    /// Every scope with its table and name, and whether a key is said there.
    pub(super) fn written(&self) -> impl Iterator<Item = (&'static str, &str, &Overlay)> {
        let tables = TABLES.into_iter().zip(&self.tables);
        tables
            .flat_map(|(table, rows)| rows.iter().map(move |(name, overlay)| (table, name.as_str(), overlay)))
    }

    /// `[mode] routes`.
    pub(super) fn modes(&self) -> impl Iterator<Item = (&str, Mode)> {
        self.modes.iter().map(|(route, mode)| (route.as_str(), *mode))
    }

    /// Each scope that is configured, as a person names it, and where its work is.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Places)> {
        let mut rows = Vec::new();
        for (at, table) in TABLES.into_iter().enumerate() {
            let names: Vec<&str> = match at {
                ROUTE => self.routes().collect(),
                _ => self.tables[at].keys().map(String::as_str).collect(),
            };
            for (number, name) in names.into_iter().enumerate() {
                let mut places = Places::default();
                places[at] = number as u32 + 1;
                rows.push((format!("{table} {name}"), places));
            }
        }
        rows
    }
}

/// Whether a name is as the pattern says, where `*` stands for any characters, also none.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            let Some(at) = rest.find(middle) else { return false };
            rest = &rest[at + middle.len()..];
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, is) in [
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/a*", "/ab", true),
            ("*", "", true),
            ("/a*/c*", "/a/b/c", true),
            ("/a*/c*e", "/a/b/cde", true),
            ("/a*/c", "/a/c/d", false),
            ("*orders", "/api/orders", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
    }
}

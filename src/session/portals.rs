//! What is known of portals from the statements they were bound to: no more than matters when they are executed.

use super::lend::Turn;
use super::named::Name;

/// Portals of which something is known; what it is of others shows when they have been executed, if at all.
const MOST: usize = 64;

/// What one is known to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Known {
    /// Every SET in its text is a local one.
    pub(super) local: bool,
    /// What it does to the transaction in which the tenant context is lent.
    pub(super) turn: Option<Turn>,
}

/// The portals of one lease; mostly, nothing is known of any.
#[derive(Debug, Default)]
pub(super) struct Portals(Vec<(Name, Known)>);

impl Portals {
    pub(super) fn of(&self, name: &[u8]) -> Known {
        let found = self.0.iter().find(|(other, _)| **other == *name);
        found.map_or_else(Known::default, |(_, known)| *known)
    }

    /// A portal is about to be bound.
    pub(super) fn note(&mut self, name: &[u8], note: impl FnOnce(&mut Known)) {
        let mut known = self.of(name);
        note(&mut known);
        self.0.retain(|(other, _)| **other != *name);
        if known != Known::default() && self.0.len() < MOST {
            self.0.push((name.into(), known));
        }
    }

    /// The transaction has ended that some of them have begun, or might end.
    pub(super) fn forget_turns(&mut self) {
        self.0.retain_mut(|(_, known)| {
            known.turn = None;
            *known != Known::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_portal_is_known_by_what_it_was_bound_to_last() {
        let mut portals = Portals::default();
        let both = Known { local: true, turn: Some(Turn::Ends) };
        for name in [&b""[..], b"a", b"b"] {
            assert_eq!(portals.of(name), Known::default());
            portals.note(name, |known| known.turn = both.turn);
            portals.note(name, |known| known.local = true);
            assert_eq!(portals.of(name), both);
        }
        portals.note(b"a", |known| *known = Known::default());
        portals.forget_turns();
        let local = Known { turn: None, ..both };
        assert_eq!([portals.of(b""), portals.of(b"a"), portals.of(b"b")], [local, Known::default(), local]);
        for number in 0..2 * MOST {
            portals.note(format!("{number}").as_bytes(), |known| known.local = true);
        }
        assert_eq!(portals.0.len(), MOST);
    }
}

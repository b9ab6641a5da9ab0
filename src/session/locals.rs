//! Prepared statements and portals of texts that are answered here (`SET bursar.…`).
//!
//! Pure. In the extended protocol such a text is parsed, bound, described and executed like any
//! other; the backend never hears of it. Nearly every session has none, so that looking is one test.

use crate::wire::sql::local::Local;
use smallvec::SmallVec;

/// Statements of one text.
pub type Text = SmallVec<[Local; 1]>;

/// Most statements and portals one session may have here; older ones are forgotten.
const MAX: usize = 64;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Locals {
    statements: Vec<(Box<[u8]>, Text)>,
    portals: Vec<(Box<[u8]>, Text)>,
}

impl Locals {
    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.portals.is_empty()
    }

    /// A Parse of such a text.
    pub fn parse(&mut self, name: &[u8], text: Text) {
        put(&mut self.statements, name, text);
    }

    /// A Bind: of a statement that lives here, the portal does too. Returns whether it does.
    pub fn bind(&mut self, portal: &[u8], statement: &[u8]) -> bool {
        match find(&self.statements, statement).cloned() {
            Some(text) => {
                put(&mut self.portals, portal, text);
                true
            }
            None => {
                self.portals.retain(|(name, _)| **name != *portal);
                false
            }
        }
    }

    /// The statement of this name.
    #[must_use]
    pub fn statement(&self, name: &[u8]) -> Option<&Text> {
        find(&self.statements, name)
    }

    /// The portal of this name.
    #[must_use]
    pub fn portal(&self, name: &[u8]) -> Option<&Text> {
        find(&self.portals, name)
    }

    /// A Close, or a Parse of the same name that goes to the backend. Returns whether it was here.
    pub fn forget_statement(&mut self, name: &[u8]) -> bool {
        remove(&mut self.statements, name)
    }

    /// A Close of a portal. Returns whether it was here.
    pub fn forget_portal(&mut self, name: &[u8]) -> bool {
        remove(&mut self.portals, name)
    }
}

fn find<'a>(list: &'a [(Box<[u8]>, Text)], name: &[u8]) -> Option<&'a Text> {
    list.iter().find(|(other, _)| **other == *name).map(|(_, text)| text)
}

fn remove(list: &mut Vec<(Box<[u8]>, Text)>, name: &[u8]) -> bool {
    let before = list.len();
    list.retain(|(other, _)| **other != *name);
    before != list.len()
}

fn put(list: &mut Vec<(Box<[u8]>, Text)>, name: &[u8], text: Text) {
    remove(list, name);
    if list.len() >= MAX {
        list.remove(0);
    }
    list.push((name.into(), text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tag::Key;

    fn text() -> Text {
        SmallVec::from_elem(Local::Show { key: Key::Tenant }, 1)
    }

    #[test]
    fn a_portal_lives_where_its_statement_lives() {
        let mut locals = Locals::default();
        assert!(locals.is_empty());
        locals.parse(b"", text());
        assert!(locals.bind(b"p", b""));
        assert!(locals.portal(b"p").is_some());
        assert!(!locals.bind(b"p", b"other"));
        assert!(locals.portal(b"p").is_none());
        assert!(locals.forget_statement(b""));
        assert!(locals.is_empty());
    }

    #[test]
    fn their_number_is_bounded() {
        let mut locals = Locals::default();
        for i in 0..1000u32 {
            locals.parse(&i.to_be_bytes(), text());
        }
        assert_eq!(locals.statements.len(), MAX);
    }
}

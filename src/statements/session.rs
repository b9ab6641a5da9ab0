//! Which prepared statements a session has, as PostgreSQL would keep them.
//!
//! Pure. Named statements stay on the backend that parsed them, so a session that has any keeps its
//! backend. The unnamed statement belongs to the session that parsed it: its Parse message is
//! remembered, and sent again (or the backend's leftover closed) before the session uses it on a
//! backend that does not hold it. So the unnamed statement of one session never serves another, and
//! a session that never parsed one gets PostgreSQL's own error.
//!
//! Prepared statements are not transactional: what the server has acknowledged stays, what an error
//! swept away never happened.

use std::collections::{HashSet, VecDeque};

/// Names one session may have at once; one more pins its backend until the session ends.
const MAX_NAMES: usize = 1000;

/// A statement message on its way, in the order of the tracker's noted ops.
#[derive(Debug)]
enum Flight {
    Named(Box<[u8]>),
    Closed(Box<[u8]>),
    /// The unnamed statement's whole Parse message; `None` = too large to keep.
    Unnamed {
        message: Option<Vec<u8>>,
        local: bool,
    },
    /// Afterwards there is no unnamed statement: a Close of it, or a simple Query.
    Dropped,
    /// Bursar's own Parse of what the session has already.
    Again,
}

impl Flight {
    fn is_unnamed(&self) -> bool {
        !matches!(self, Flight::Named(_) | Flight::Closed(_))
    }
}

/// The unnamed statement.
#[derive(Debug, Default, PartialEq, Eq)]
enum Unnamed {
    #[default]
    None,
    /// The Parse message that makes it.
    Kept(Vec<u8>),
    /// There is one, too large to keep: it lives on the session's backend only.
    There,
}

/// What must precede a use of the unnamed statement.
#[derive(Debug, PartialEq, Eq)]
pub enum Before<'a> {
    /// Nothing: the backend's unnamed statement is this session's, or an error sweeps both the
    /// message that makes it so and the one that uses it.
    Nothing,
    /// This Parse message.
    Parse(&'a [u8]),
    /// A Close of whatever unnamed statement the backend has: this session has none.
    Close,
    /// The replies to an earlier segment: only they tell which unnamed statement there is.
    Replies,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Statements {
    names: HashSet<Box<[u8]>>,
    overflow: bool,
    unnamed: Unnamed,
    /// Every SET in its text is a local one.
    local: bool,
    /// The unnamed statement of the backend at hand is this session's, acknowledged.
    here: bool,
    /// Segments (up to a Sync) sent on this lease.
    segment: u64,
    /// The segment of the last message in flight that concerns the unnamed statement.
    pending: u64,
    /// The segment of a Query in flight that leaves the backend without an unnamed statement, as the
    /// session is.
    queried: Option<u64>,
    flight: VecDeque<Flight>,
}

impl Statements {
    /// Whether the session has statements that exist on its backend only.
    #[must_use]
    pub fn pins(&self) -> bool {
        self.overflow || !self.names.is_empty() || self.unnamed == Unnamed::There
    }

    /// Another backend is at hand from now on.
    pub fn moved(&mut self) {
        self.here = false;
        self.queried = None;
        self.flight.clear();
    }

    /// A Parse is sent. `message` is all of it, or `None` if it is too large to keep; `local`: every
    /// SET in its text is a local one.
    pub fn parse(&mut self, name: &[u8], message: Option<&[u8]>, local: bool) {
        if name.is_empty() {
            self.send_unnamed(Flight::Unnamed { message: message.map(<[u8]>::to_vec), local });
        } else {
            self.flight.push_back(Flight::Named(name.into()));
        }
    }

    /// A Close of a statement is sent.
    pub fn close(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.send_unnamed(Flight::Dropped);
        } else {
            self.flight.push_back(Flight::Closed(name.into()));
        }
    }

    /// A simple Query is sent: PostgreSQL drops the unnamed statement when it runs one. Returns
    /// whether that is to be noted with its op, because there is something to drop.
    #[must_use]
    pub fn query(&mut self) -> bool {
        let noted = self.unnamed != Unnamed::None || !self.flight.is_empty();
        if noted {
            self.send_unnamed(Flight::Dropped);
        } else if !self.here {
            self.queried = Some(self.segment);
        }
        noted
    }

    /// A Query has run: the backend has no unnamed statement any more. `noted` as [`Statements::query`]
    /// said.
    pub fn ran_query(&mut self, noted: bool) {
        if noted {
            self.acknowledged();
        } else if self.queried.take().is_some() {
            self.here = true;
        }
    }

    /// A Sync is sent.
    pub fn sync(&mut self) {
        self.segment += 1;
    }

    fn send_unnamed(&mut self, flight: Flight) {
        self.flight.push_back(flight);
        self.pending = self.segment;
    }

    /// What must precede a Bind or Describe of the unnamed statement. A Parse or Close is noted
    /// with its op.
    pub fn use_unnamed(&mut self) -> Before<'_> {
        if self.flight.iter().any(Flight::is_unnamed) {
            return if self.pending == self.segment { Before::Nothing } else { Before::Replies };
        }
        if self.here {
            return Before::Nothing;
        }
        if let Some(segment) = self.queried {
            return if segment == self.segment { Before::Nothing } else { Before::Replies };
        }
        match &self.unnamed {
            Unnamed::Kept(message) => {
                self.flight.push_back(Flight::Again);
                self.pending = self.segment;
                Before::Parse(message)
            }
            Unnamed::None | Unnamed::There => {
                self.flight.push_back(Flight::Dropped);
                self.pending = self.segment;
                Before::Close
            }
        }
    }

    /// Whether a Bind sent now would bind a statement whose every SET is a local one.
    #[must_use]
    pub fn is_unnamed_local(&self) -> bool {
        let sent = self.flight.iter().rev().find_map(|flight| match flight {
            Flight::Unnamed { local, .. } => Some(*local),
            Flight::Dropped => Some(false),
            Flight::Named(_) | Flight::Closed(_) | Flight::Again => None,
        });
        sent.unwrap_or(self.local)
    }

    /// The oldest noted message has been acknowledged.
    pub fn acknowledged(&mut self) {
        let Some(flight) = self.flight.pop_front() else { return };
        self.here |= flight.is_unnamed();
        match flight {
            Flight::Named(name) => {
                self.overflow |= self.names.len() >= MAX_NAMES;
                if !self.overflow {
                    self.names.insert(name);
                }
            }
            Flight::Closed(name) => {
                self.names.remove(&name);
            }
            Flight::Unnamed { message, local } => {
                self.unnamed = message.map_or(Unnamed::There, Unnamed::Kept);
                self.local = local;
            }
            Flight::Dropped => (self.unnamed, self.local) = (Unnamed::None, false),
            Flight::Again => {}
        }
    }

    /// An error has swept the oldest `count` noted messages; `failed` = the first of them raised it
    /// itself. A failed unnamed Parse leaves no unnamed statement behind; what was swept behind an
    /// error never ran, and leaves everything as it was.
    pub fn swept(&mut self, count: usize, failed: bool) {
        self.queried = None;
        let count = count.min(self.flight.len());
        if failed && count > 0 && self.flight[0].is_unnamed() {
            (self.unnamed, self.local) = (Unnamed::None, false);
            self.here = true;
        }
        self.flight.drain(..count);
    }

    /// `DISCARD ALL` or `DEALLOCATE ALL` has run.
    pub fn forget_names(&mut self) {
        self.names.clear();
        self.overflow = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unnamed_statement_follows_its_session() {
        let mut statements = Statements::default();
        assert_eq!(statements.use_unnamed(), Before::Close);
        assert_eq!(statements.use_unnamed(), Before::Nothing);
        statements.parse(b"", Some(b"P1"), false);
        statements.acknowledged();
        statements.acknowledged();
        assert_eq!(statements.use_unnamed(), Before::Nothing);
        statements.moved();
        assert_eq!(statements.use_unnamed(), Before::Parse(b"P1"));
        statements.acknowledged();
        assert!(statements.query());
        statements.acknowledged();
        assert!(!statements.query());
        statements.moved();
        assert_eq!(statements.use_unnamed(), Before::Close);
        assert!(!statements.pins());
    }

    #[test]
    fn a_failed_parse_leaves_none_and_a_swept_one_the_old() {
        let mut statements = Statements::default();
        statements.parse(b"", Some(b"P1"), false);
        statements.acknowledged();
        statements.parse(b"", Some(b"P2"), false);
        statements.swept(1, false);
        statements.moved();
        assert_eq!(statements.use_unnamed(), Before::Parse(b"P1"));
        statements.parse(b"", Some(b"bad"), false);
        statements.swept(1, true);
        statements.moved();
        assert_eq!(statements.use_unnamed(), Before::Close);
    }

    #[test]
    fn what_a_bind_binds_is_the_last_parse_that_was_not_swept() {
        let mut statements = Statements::default();
        statements.parse(b"", Some(b"set"), false);
        statements.acknowledged();
        statements.parse(b"", Some(b"set local"), true);
        assert!(statements.is_unnamed_local());
        statements.swept(1, false);
        assert!(!statements.is_unnamed_local());
        statements.parse(b"", Some(b"set local"), true);
        statements.acknowledged();
        statements.moved();
        assert!(statements.is_unnamed_local());
        assert!(statements.query());
        assert!(!statements.is_unnamed_local());
    }

    #[test]
    fn names_pin_until_they_are_closed() {
        let mut statements = Statements::default();
        statements.parse(b"a", Some(b"P"), false);
        assert!(!statements.pins());
        statements.acknowledged();
        assert!(statements.pins());
        statements.close(b"a");
        statements.acknowledged();
        assert!(!statements.pins());
        statements.parse(b"b", None, false);
        statements.swept(1, true);
        assert!(!statements.pins());
        statements.parse(b"", None, false);
        statements.acknowledged();
        assert!(statements.pins());
    }

    /// The Parse may be swept by an error before it; what the Bind then meets would be the unnamed
    /// statement of whoever had the backend before.
    #[test]
    fn a_use_behind_a_sync_waits_for_the_parse_before_it() {
        let mut statements = Statements::default();
        statements.parse(b"", Some(b"P1"), false);
        assert_eq!(statements.use_unnamed(), Before::Nothing);
        statements.sync();
        assert_eq!(statements.use_unnamed(), Before::Replies);
        statements.swept(1, false);
        assert_eq!(statements.use_unnamed(), Before::Close);
    }

    #[test]
    fn a_query_drops_what_was_parsed_before_it() {
        let mut statements = Statements::default();
        statements.parse(b"", Some(b"P1"), false);
        assert!(statements.query());
        statements.acknowledged();
        statements.acknowledged();
        statements.moved();
        assert_eq!(statements.use_unnamed(), Before::Close);
    }

    #[test]
    fn names_are_bounded() {
        let mut statements = Statements::default();
        for i in 0..=MAX_NAMES {
            statements.parse(format!("s{i}").as_bytes(), None, false);
            statements.acknowledged();
        }
        assert_eq!(statements.names.len(), MAX_NAMES);
        assert!(statements.pins());
        statements.forget_names();
        assert!(!statements.pins());
    }
}

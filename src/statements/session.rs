//! Which prepared statements a session has, as PostgreSQL would keep them.
//!
//! Pure. A name stands for a shared [`Statement`], which is parsed on whatever backend the session
//! uses it on. A statement too long to be held whole is *private*: it exists on the backend that
//! parsed it only, and keeps the session there. The unnamed statement belongs to the session that
//! parsed it: its Parse message is remembered, and sent again (or the backend's leftover closed) before
//! the session uses it on a backend that does not hold it. So the unnamed statement of one session
//! never serves another, and a session that never parsed one gets PostgreSQL's own error.
//!
//! Prepared statements are not transactional: what the server has acknowledged stays, what an error
//! swept away never happened. So names and what a backend [`Held`] are changed when a message is sent,
//! and changed back if an error sweeps it. A message behind the next Sync may run or be skipped
//! independently; where it would rely on what is not acknowledged yet, it waits ([`Look::Replies`],
//! [`Need::Replies`], [`Before::Replies`]).

use super::count::Count;
use super::held::Held;
use super::table::{Statement, StatementId};
use crate::wire::sql::scan::Scan;
use foldhash::quality::RandomState;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// Names one session may have at once.
pub const MAX_NAMES: usize = 10_000;

/// Bytes of names one session may have at once: 1 MiB.
pub const MAX_NAME_BYTES: usize = 1 << 20;

/// Private statements one session may have at once; one more pins its backend until the session ends.
const MAX_PRIVATE: usize = 1000;

/// PostgreSQL tells names apart by this many bytes (NAMEDATALEN - 1).
const NAME_LEN: usize = 63;

/// A statement message on its way, in the order of the tracker's noted ops.
#[derive(Debug)]
enum Flight {
    /// A name was given.
    Named(Box<[u8]>),
    /// A name was taken away.
    Closed(Box<[u8]>, Arc<Statement>),
    /// Bursar's own Parse of a shared statement.
    Parsed(StatementId),
    /// Bursar's own Parse that is sure to fail.
    Probe,
    /// Bursar's own Close of one.
    Evicted(StatementId),
    /// A private statement was parsed.
    Private(Box<[u8]>),
    /// A private statement was closed.
    PrivateClosed(Box<[u8]>),
    /// The unnamed statement's whole Parse message; `None` = too large to keep.
    Unnamed { message: Option<Vec<u8>>, scan: Scan },
    /// The client parses anew what is its unnamed statement already, word for word: what made it so stands so many
    /// messages before, or, with 0 or more than there are, is no longer on its way.
    Same { back: usize },
    /// Afterwards there is no unnamed statement: a Close of it, or a simple Query.
    Dropped,
    /// Bursar's own Parse of the unnamed statement that the session has already.
    Again,
}

impl Flight {
    fn is_unnamed(&self) -> bool {
        matches!(self, Flight::Unnamed { .. } | Flight::Same { .. } | Flight::Dropped | Flight::Again)
    }

    fn names(&self, name: &[u8]) -> bool {
        matches!(self, Flight::Named(other) | Flight::Closed(other, _) | Flight::Private(other)
            | Flight::PrivateClosed(other) if **other == *name)
    }

    fn concerns(&self, id: StatementId) -> bool {
        matches!(self, Flight::Parsed(other) | Flight::Evicted(other) if *other == id)
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

/// What a name stands for.
#[derive(Debug)]
pub enum Look {
    /// This statement.
    Shared(Arc<Statement>),
    /// One that lives on the session's backend only, under the client's own name.
    Private,
    /// Nothing.
    None,
    /// Only the replies to an earlier segment tell.
    Replies,
}

/// What must precede a use of a shared statement.
#[derive(Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the backend has it.
    Nothing,
    /// Its Parse; before that the Close of another one, where the backend has as many as it may.
    Parse {
        /// The one to close.
        evict: Option<StatementId>,
    },
    /// The replies to an earlier segment: only they tell whether the backend has it.
    Replies,
}

/// The session has as many names as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many prepared statements of one session")]
pub struct TooMany;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Statements {
    names: HashMap<Box<[u8]>, Arc<Statement>, RandomState>,
    name_bytes: usize,
    count: Count,
    private: Vec<Box<[u8]>>,
    overflow: bool,
    unnamed: Unnamed,
    /// What its text says.
    scan: Scan,
    /// The unnamed statement of the backend at hand is this session's, acknowledged.
    here: bool,
    /// Segments (up to a Sync) sent on this lease.
    segment: u64,
    /// The segment of the last message in flight that concerns the unnamed statement.
    pending: u64,
    /// The segment of a Query in flight that leaves the backend without an unnamed statement, as the
    /// session is.
    queried: Option<u64>,
    /// Each with its segment.
    flight: VecDeque<(u64, Flight)>,
}

impl Statements {
    /// No statements yet; `count` is told how many names there are.
    #[must_use]
    pub fn counted(count: Count) -> Statements {
        Statements { count, ..Statements::default() }
    }

    /// Whether the session has statements that exist on its backend only.
    #[must_use]
    pub fn pins(&self) -> bool {
        self.overflow || !self.private.is_empty() || self.unnamed == Unnamed::There
    }

    /// Names of shared statements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no name of a shared statement.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> impl Iterator<Item = (&[u8], StatementId)> {
        self.names.iter().map(|(name, statement)| (&**name, statement.id))
    }

    /// Another backend is at hand from now on.
    pub fn moved(&mut self) {
        self.here = false;
        self.queried = None;
        self.flight.clear();
    }

    /// A Query of Bursar's own has dropped the backend's unnamed statement, with nothing in flight that
    /// concerns it.
    pub fn unnamed_is_gone(&mut self) {
        self.here = false;
        self.queried = None;
    }

    /// What a name stands for, for a message sent now.
    #[must_use]
    pub fn look(&self, name: &[u8]) -> Look {
        let name = significant(name);
        if self.flight.iter().any(|(segment, flight)| *segment != self.segment && flight.names(name)) {
            return Look::Replies;
        }
        match self.names.get(name) {
            Some(statement) => Look::Shared(statement.clone()),
            None if self.private.iter().any(|known| **known == *name)
                || self.flight.iter().any(|(_, f)| f.names(name)) =>
            {
                // A private one in flight, unless what is in flight took the name away.
                match self.flight.iter().rev().find(|(_, flight)| flight.names(name)) {
                    Some((_, Flight::Closed(..) | Flight::PrivateClosed(_))) => Look::None,
                    _ => Look::Private,
                }
            }
            None => Look::None,
        }
    }

    /// Gives a name to a statement; noted with the op.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn name(&mut self, name: &[u8], statement: Arc<Statement>) -> Result<(), TooMany> {
        let name = significant(name);
        if self.names.len() >= MAX_NAMES || self.name_bytes + name.len() > MAX_NAME_BYTES {
            return Err(TooMany);
        }
        self.insert(name, statement);
        self.send(Flight::Named(name.into()));
        Ok(())
    }

    /// Takes a name away; noted with the op if `in_flight`, else for good at once.
    pub fn unname(&mut self, name: &[u8], in_flight: bool) {
        let name = significant(name);
        if let Some(statement) = self.remove(name)
            && in_flight
        {
            self.send(Flight::Closed(name.into(), statement));
        }
    }

    fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        if self.names.insert(name.into(), statement).is_none() {
            self.name_bytes += name.len();
            self.count.set(self.names.len());
        }
    }

    fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let removed = self.names.remove(name)?;
        self.name_bytes -= name.len();
        self.count.set(self.names.len());
        Some(removed)
    }

    /// What must precede a use of a shared statement on the backend at hand, which may have `cap` of
    /// them. A Parse and a Close are each noted with their op.
    pub fn need(&mut self, id: StatementId, held: &mut Held, cap: usize) -> Need {
        if self.is_unsure(id) {
            return Need::Replies;
        }
        if held.touch(id) {
            return Need::Nothing;
        }
        let evict = held.surplus(cap.max(1));
        // Were its Parse swept and then this Close, undoing the Close would bring back what never was.
        if evict.is_some_and(|old| self.is_unsure(old)) {
            return Need::Replies;
        }
        if let Some(old) = evict {
            held.remove(old);
            self.send(Flight::Evicted(old));
        }
        held.add(id);
        self.send(Flight::Parsed(id));
        Need::Parse { evict }
    }

    /// Whether an earlier segment in flight decides if the backend has a statement.
    fn is_unsure(&self, id: StatementId) -> bool {
        self.flight.iter().any(|(segment, flight)| *segment != self.segment && flight.concerns(id))
    }

    /// A Parse is sent that is sure to fail, and with it what follows.
    pub fn probe(&mut self) {
        self.send(Flight::Probe);
    }

    /// A Parse is sent that cannot be shared. `message` is all of it, or `None` if it is too large to
    /// keep; `scan`: what its text says.
    pub fn parse(&mut self, name: &[u8], message: Option<&[u8]>, scan: Scan) {
        if name.is_empty() {
            let same = message.and_then(|message| self.same(message));
            let anew = || Flight::Unnamed { message: message.map(<[u8]>::to_vec), scan };
            self.send_unnamed(same.unwrap_or_else(anew));
        } else {
            self.send(Flight::Private(significant(name).into()));
        }
    }

    /// A Parse that changes nothing: of what the session will have if nothing before it fails, and if something does,
    /// the error sweeps both. So it is within one segment only.
    fn same(&self, message: &[u8]) -> Option<Flight> {
        if self.flight.front().is_some_and(|(segment, _)| *segment != self.segment) {
            return None;
        }
        let end = self.flight.len();
        let back = match self.last_unnamed() {
            Some((at, Flight::Unnamed { message: Some(sent), .. })) if sent == message => end - at,
            Some((at, Flight::Same { back })) if self.repeated(at, *back).1? == message => match *back {
                0 => 0,
                back => back + end - at,
            },
            None if self.kept().1? == message => 0,
            _ => return None,
        };
        Some(Flight::Same { back })
    }

    /// The last message on its way that says what the unnamed statement is, and its place.
    fn last_unnamed(&self) -> Option<(usize, &Flight)> {
        let says = |flight: &Flight| flight.is_unnamed() && !matches!(flight, Flight::Again);
        if let Some((_, flight)) = self.flight.back()
            && says(flight)
        {
            // As in any pipeline of unnamed statements.
            return Some((self.flight.len() - 1, flight));
        }
        let flights = self.flight.iter().map(|(_, flight)| flight).enumerate();
        flights.rev().find(|(_, flight)| says(flight))
    }

    /// What the [`Flight::Same`] at `at` repeats.
    fn repeated(&self, at: usize, back: usize) -> (Scan, Option<&[u8]>) {
        match at.checked_sub(back).and_then(|from| self.flight.get(from)) {
            Some((_, Flight::Unnamed { message, scan })) => (*scan, message.as_deref()),
            // It has been acknowledged, and is what the session has.
            _ => self.kept(),
        }
    }

    /// What the text of this Parse message says, if that is known because it has made the session's unnamed
    /// statement: drivers that do not name statements send the same one again and again.
    #[must_use]
    pub fn known(&self, message: &[u8]) -> Option<Scan> {
        matches!(&self.unnamed, Unnamed::Kept(kept) if *kept == message).then_some(self.scan)
    }

    /// A Close of a statement that is not shared is sent.
    pub fn close(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.send_unnamed(Flight::Dropped);
        } else {
            self.send(Flight::PrivateClosed(significant(name).into()));
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

    /// A simple Query has been answered without the server, with nothing in flight: the session has no
    /// unnamed statement any more, and what the backend has is a leftover.
    pub fn drop_unnamed(&mut self) {
        (self.unnamed, self.scan, self.here) = (Unnamed::None, Scan::default(), false);
        self.queried = None;
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

    fn send(&mut self, flight: Flight) {
        self.flight.push_back((self.segment, flight));
    }

    fn send_unnamed(&mut self, flight: Flight) {
        self.send(flight);
        self.pending = self.segment;
    }

    /// What must precede a Bind or Describe of the unnamed statement. A Parse or Close is noted
    /// with its op.
    pub fn use_unnamed(&mut self) -> Before<'_> {
        if self.flight.iter().any(|(_, flight)| flight.is_unnamed()) {
            return if self.pending == self.segment { Before::Nothing } else { Before::Replies };
        }
        if self.here {
            return Before::Nothing;
        }
        if let Some(segment) = self.queried {
            return if segment == self.segment { Before::Nothing } else { Before::Replies };
        }
        let kept = matches!(self.unnamed, Unnamed::Kept(_));
        self.send_unnamed(if kept { Flight::Again } else { Flight::Dropped });
        match &self.unnamed {
            Unnamed::Kept(message) => Before::Parse(message),
            Unnamed::None | Unnamed::There => Before::Close,
        }
    }

    /// What the text says that a Bind of the unnamed statement would bind now, and its Parse message,
    /// if it could be kept.
    #[must_use]
    pub fn unnamed(&self) -> (Scan, Option<&[u8]>) {
        match self.last_unnamed() {
            Some((_, Flight::Unnamed { message, scan })) => (*scan, message.as_deref()),
            Some((at, Flight::Same { back })) => self.repeated(at, *back),
            Some(_) => (Scan::default(), None),
            None => self.kept(),
        }
    }

    fn kept(&self) -> (Scan, Option<&[u8]>) {
        match &self.unnamed {
            Unnamed::Kept(message) => (self.scan, Some(message)),
            Unnamed::None | Unnamed::There => (self.scan, None),
        }
    }

    /// The oldest noted message has been acknowledged.
    pub fn acknowledged(&mut self) {
        let Some((_, flight)) = self.flight.pop_front() else { return };
        self.here |= flight.is_unnamed();
        match flight {
            Flight::Private(name) => {
                self.overflow |= self.private.len() >= MAX_PRIVATE;
                if !self.overflow {
                    self.private.retain(|known| *known != name);
                    self.private.push(name);
                }
            }
            Flight::PrivateClosed(name) => {
                self.private.retain(|known| *known != name);
            }
            Flight::Unnamed { message, scan } => {
                self.unnamed = message.map_or(Unnamed::There, Unnamed::Kept);
                self.scan = scan;
            }
            Flight::Dropped => (self.unnamed, self.scan) = (Unnamed::None, Scan::default()),
            Flight::Named(_)
            | Flight::Closed(..)
            | Flight::Parsed(_)
            | Flight::Probe
            | Flight::Evicted(_)
            | Flight::Same { .. }
            | Flight::Again => {}
        }
    }

    /// An error has swept the oldest `count` noted messages; `failed` = the first of them raised it
    /// itself. A failed unnamed Parse leaves no unnamed statement behind, if it was the client's: where
    /// Bursar's own fails, the client has its statement still, though it may not run. What was swept
    /// behind an error never ran, and leaves everything as it was.
    pub fn swept(&mut self, count: usize, failed: bool, held: &mut Held) {
        self.queried = None;
        let count = count.min(self.flight.len());
        match self.flight.front().filter(|_| failed && count > 0) {
            Some((_, Flight::Again)) => self.here = false,
            Some((_, flight)) if flight.is_unnamed() => {
                (self.unnamed, self.scan) = (Unnamed::None, Scan::default());
                self.here = true;
            }
            _ => {}
        }
        let kept = self.flight.split_off(count);
        // The last change is undone first.
        while let Some((_, flight)) = self.flight.pop_back() {
            match flight {
                Flight::Named(name) => drop(self.remove(&name)),
                Flight::Closed(name, statement) => self.insert(&name, statement),
                Flight::Parsed(id) => held.remove(id),
                Flight::Evicted(id) => held.add(id),
                _ => {}
            }
        }
        self.flight = kept;
    }

    /// `DISCARD ALL` or `DEALLOCATE ALL` has run.
    pub fn forget_names(&mut self) {
        self.names.clear();
        self.name_bytes = 0;
        self.count.set(0);
        self.private.clear();
        self.overflow = false;
    }
}

/// As much of a name as PostgreSQL looks at.
fn significant(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_LEN)]
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

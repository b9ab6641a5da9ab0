//! The Query that a session has sent last: most often the next one is the same but for its numbers, and then what the
//! looks at its text have come to is known.

use super::claim::First;
use crate::wire::sql::comment;
use crate::wire::sql::lead::Deallocates;
use crate::wire::sql::numbers::differ_in_numbers;
use crate::wire::sql::scan::Scan;
use crate::wire::sql::transaction::Verb;

/// Longer texts are looked at each time. Every session keeps one, so it is no more than this.
const LONGEST: usize = 256;

/// A session whose queries are different each time remembers one in so many.
const OFTEN: u8 = 8;

/// See the module's page. What is remembered is a text about which there is nothing to know: no comment, nothing that
/// is answered here, begins or ends a transaction or leaves something behind.
#[derive(Debug, Default)]
pub(super) struct Usual {
    text: Vec<u8>,
    fingerprint: Option<u64>,
    others: u8,
}

impl Usual {
    /// Whether this text is the one that is remembered, but for numbers.
    pub(super) fn is(&self, text: &[u8]) -> bool {
        !self.text.is_empty() && differ_in_numbers(&self.text, text)
    }

    /// This text, which it is not, has been looked at and will be sent as it is.
    pub(super) fn learn(&mut self, text: &[u8], scan: Scan, deallocates: Option<&Deallocates<'_>>) {
        let others = self.others;
        self.others = (others + 1) % OFTEN;
        let nothing = || {
            let leaves_nothing = scan == Scan::default() && deallocates.is_none();
            leaves_nothing && Verb::of(text) == Verb::Other && comment::find(text).is_none()
        };
        if others == 0 && text.len() <= LONGEST && nothing() {
            self.text.clear();
            self.text.extend_from_slice(text);
            self.fingerprint = None;
        }
    }

    /// The fingerprint of a text that [is](Usual::is) it.
    pub(super) fn fingerprint(&mut self, first: &mut First, text: &[u8]) -> u64 {
        *self.fingerprint.get_or_insert_with(|| first.of(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sql::lead::deallocates;
    use crate::wire::sql::scan::scan;

    fn learn(usual: &mut Usual, text: &str) {
        let text = text.as_bytes();
        usual.learn(text, scan(text), deallocates(text).as_ref());
    }

    #[test]
    fn what_has_something_to_say_is_not_remembered() {
        for text in [
            "set a = 1",
            "select set_config('a', '1', true)",
            "select pg_advisory_lock(1)",
            "create temp table t (a int)",
            "deallocate \"1\"",
            "begin",
            "commit",
            "select 1 /* request_id:r1 */",
            &format!("select {}", "1".repeat(300)),
        ] {
            let mut usual = Usual::default();
            learn(&mut usual, text);
            assert!(!usual.is(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn one_in_eight_of_the_others_is_remembered() {
        let mut usual = Usual::default();
        assert!(!usual.is(b""));
        learn(&mut usual, "select 1");
        assert!(usual.is(b"select 22"));
        for at in 0..7 {
            learn(&mut usual, &format!("update {at}"));
            assert!(usual.is(b"select 3"), "after {at}");
        }
        learn(&mut usual, "delete 1");
        assert!(usual.is(b"delete 2") && !usual.is(b"select 3"));
    }

    #[test]
    fn its_fingerprint_is_that_of_its_text() {
        let (mut usual, mut first) = (Usual::default(), First::default());
        learn(&mut usual, "select 1 from t");
        let one = usual.fingerprint(&mut first, b"select 2 from t");
        assert_eq!(one, First::default().of(b"select 3 from t"));
        assert_eq!(usual.fingerprint(&mut first, b"select 4 from t"), one);
    }
}

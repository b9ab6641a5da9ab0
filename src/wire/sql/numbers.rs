//! Whether two texts are the same but for their numbers.
//!
//! Who builds a statement from a template and values (a loop over ids, a driver that writes numbers into the text) sends
//! the same text again and again, with other numbers in it. No glance of this room sees a difference between two such
//! texts: no keyword and no telling name has a digit that begins a number, and no digit opens or closes anything. The
//! tests hold each glance to that.

use super::lex::is_word;

/// Whether `one` and `other` differ at most in numbers: in runs of digits that do not belong to a word, each of them at
/// least one digit long in both.
#[must_use]
pub fn differ_in_numbers(one: &[u8], other: &[u8]) -> bool {
    let (mut at, mut there) = (0, 0);
    loop {
        let same = common(&one[at..], &other[there..]);
        (at, there) = (at + same, there + same);
        if (at, there) == (one.len(), other.len()) {
            return true;
        }
        let (here, beside) = (digits(&one[at..]), digits(&other[there..]));
        // The first digits of a number may be the same.
        let before = one[..at].iter().rev().take_while(|b| b.is_ascii_digit()).count();
        let begins = at == before || !is_word(one[at - before - 1]);
        let both = before > 0 || here.min(beside) > 0;
        if here.max(beside) == 0 || !begins || !both {
            return false;
        }
        (at, there) = (at + here, there + beside);
    }
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|b| b.is_ascii_digit()).count()
}

/// How many bytes two texts have in common from their start.
fn common(one: &[u8], other: &[u8]) -> usize {
    let (words, others) = (one.as_chunks::<8>().0, other.as_chunks::<8>().0);
    let mut same = 0;
    for (word, other) in words.iter().zip(others) {
        let differ = u64::from_le_bytes(*word) ^ u64::from_le_bytes(*other);
        if differ != 0 {
            return same + differ.trailing_zeros() as usize / 8;
        }
        same += 8;
    }
    let rest = one[same..].iter().zip(&other[same..]);
    same + rest.take_while(|(byte, other)| byte == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sql::lead::{deallocates, is_of_rows};
    use crate::wire::sql::scan::scan;
    use crate::wire::sql::transaction::{Verb, ends_block};
    use crate::wire::sql::{comment, local};
    use proptest::prelude::*;

    #[test]
    fn numbers_may_differ_and_nothing_else() {
        let alike = |one: &str, other: &str| {
            let found = differ_in_numbers(one.as_bytes(), other.as_bytes());
            assert_eq!(found, differ_in_numbers(other.as_bytes(), one.as_bytes()), "{one} {other}");
            found
        };
        for (one, other) in [
            ("", ""),
            ("select 1", "select 1"),
            ("select 1", "select 22"),
            ("where a = 12 and b = 3", "where a = 129 and b = 34567890123"),
            ("1,2,3", "4,5,6"),
            ("12", "1"),
            ("x = 'of 1'", "x = 'of 2'"),
            ("0.5e7", "1.25e7"),
            (
                "select * from t_with_a_long_name where id = 1234567",
                "select * from t_with_a_long_name where id = 1234568",
            ),
        ] {
            assert!(alike(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("select 1", "select "),
            ("select 1", "select a"),
            ("select 1", "select 1;"),
            ("from t1", "from t2"),
            ("from t_1", "from t_12"),
            ("$1", "$2"),
            ("1e5", "1e6"),
            ("1.5", "15"),
            ("1 2", "12"),
            ("'a'", "'b'"),
            ("\u{e9}1", "\u{e9}2"),
        ] {
            assert!(!alike(one, other), "{one} {other}");
        }
    }

    /// What may matter to a glance, and what surrounds it.
    fn texts() -> impl Strategy<Value = Vec<String>> {
        let part = prop::sample::select(vec![
            "select",
            "set",
            "set local",
            "set_config(",
            "begin",
            "commit",
            "rollback",
            "deallocate",
            "deallocate all",
            "prepare",
            "listen",
            "do",
            "call",
            "insert into",
            "create temp table",
            "pg_temp",
            "pg_advisory_lock(",
            "discard all",
            "declare c cursor with hold for",
            "bursar.request_id",
            "/*",
            "*/",
            "--",
            "\n",
            " ",
            " ",
            " ",
            "'",
            "''",
            "\"",
            "$$",
            "$a$",
            "$",
            "\\",
            "E'",
            "U&'",
            ";",
            ";",
            "(",
            ")",
            ",",
            "=",
            "-",
            ".",
            ":",
            "@",
            "e",
            "t",
            "_",
            "/*request_id='r",
            "'*/",
            "\u{e9}",
            "0",
            "7",
            "42",
            "007",
            "9",
            "1",
            "10",
        ]);
        prop::collection::vec(part.prop_map(str::to_owned), 0..24)
    }

    fn is_number(part: &str) -> bool {
        part.bytes().all(|b| b.is_ascii_digit())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Of texts that are alike no glance sees which is which.
        #[test]
        fn no_glance_sees_a_difference(parts in texts(), numbers in prop::collection::vec("[0-9]{1,3}", 24)) {
            let one = parts.concat();
            let other: String =
                parts.iter().zip(&numbers).map(|(part, number)| if is_number(part) { number } else { part }.as_str()).collect();
            let (one, other) = (one.as_bytes(), other.as_bytes());
            if differ_in_numbers(one, other) {
                prop_assert_eq!(scan(one), scan(other));
                prop_assert_eq!(comment::find(one).is_some(), comment::find(other).is_some());
                prop_assert_eq!(local::parse(one).is_some(), local::parse(other).is_some());
                prop_assert_eq!(deallocates(one).is_some(), deallocates(other).is_some());
                prop_assert_eq!(Verb::of(one), Verb::of(other));
                prop_assert_eq!(ends_block(one), ends_block(other));
                prop_assert_eq!(is_of_rows(one), is_of_rows(other));
            }
        }
    }
}

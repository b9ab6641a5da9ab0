//! SHOW PREPARED: the statements that the sessions of a pool share.

use super::{View, row};
use crate::console::table::{int, text};

pub(super) static PREPARED: View = View {
    name: "prepared",
    what: "one row a prepared statement that sessions share, most named first",
    columns: &[
        int("id"),
        text("name"),
        int("names"),
        int("bytes"),
        text("fp"),
        text("statement"),
        text("database"),
        text("user"),
    ],
    quotes: &["statement"],
    rows: |source| {
        let rows = source.prepared().into_iter().map(|prepared| {
            row![
                prepared.number,
                format!("bursar_{}", prepared.number),
                prepared.names,
                prepared.bytes,
                format!("{:016x}", prepared.fingerprint),
                prepared.text,
                &prepared.database,
                &prepared.user,
            ]
        });
        rows.collect()
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    #[test]
    fn a_statement_has_its_name_on_the_server_and_no_text_unless_that_is_allowed() {
        let rows = PREPARED.table(&Fake::planted(), Rights::ALL).rows;
        let texts: Vec<_> = rows[0].iter().map(|value| value.to_text().map(String::from)).collect();
        let expected =
            ["3", "bursar_3", "40", "37", "@", "@", "app", "web"].map(|text| Some(text.to_owned()));
        assert_eq!((&texts[..4], &texts[6..]), (&expected[..4], &expected[6..]));
        assert_eq!((texts[4].as_ref().map(String::len), &texts[5]), (Some(16), &None));
    }
}

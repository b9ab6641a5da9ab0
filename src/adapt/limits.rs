//! What a server says of its limits: the questions, and what its answers mean.
//!
//! Each question stands alone, because a role may be kept from one and not from another. What is not
//! answered, or is no number, is unknown: a pooler in PostgreSQL's place, a version before 9.6.

use bytes::Bytes;

/// What to ask, in order. Values of the server's settings may be read by everybody; of the catalogs that needs a
/// right which everybody has until it is revoked.
pub const QUESTIONS: [&str; 4] = [
    "SELECT pg_catalog.current_setting('server_version', true), \
     pg_catalog.current_setting('max_connections', true), \
     pg_catalog.current_setting('superuser_reserved_connections', true), \
     pg_catalog.current_setting('reserved_connections', true)",
    "SELECT rolconnlimit, rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user",
    "SELECT datconnlimit FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()",
    "SELECT pg_catalog.min(pg_catalog.split_part(name, '.', 1)) FROM pg_catalog.pg_settings \
     WHERE pg_catalog.split_part(name, '.', 1) IN ('rds', 'cloudsql', 'azure')",
];

/// Columns of each.
const COLUMNS: [usize; QUESTIONS.len()] = [4, 2, 1, 1];

/// All of them as one, which costs one way to the server and back; [`Limits::of`] reads the answer.
#[must_use]
pub fn together() -> String {
    let [first, others @ ..] = QUESTIONS;
    let join =
        |all: String, question: &str| format!("{all} LEFT JOIN ({question}) AS q{} ON true", all.len());
    others.into_iter().fold(format!("SELECT * FROM ({first}) AS q"), join)
}

/// What a server has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// `server_version`, its first word.
    pub version: Option<String>,
    /// `max_connections`
    pub max_connections: Option<u32>,
    /// `superuser_reserved_connections`, and from PostgreSQL 16 on `reserved_connections`.
    pub reserved: u32,
    /// The role's limit; `None` = it has none, or that is unknown.
    pub role: Option<u32>,
    /// The database's, likewise.
    pub database: Option<u32>,
    /// The role is a superuser: neither of the two is heeded.
    pub superuser: bool,
    /// Who runs it.
    pub managed: Option<Managed>,
}

/// Services whose settings show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Managed {
    /// Amazon RDS and Aurora.
    Rds,
    /// Google Cloud SQL.
    CloudSql,
    /// Azure Database for PostgreSQL.
    Azure,
}

impl Managed {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Managed::Rds => "Amazon RDS",
            Managed::CloudSql => "Cloud SQL",
            Managed::Azure => "Azure Database",
        }
    }

    /// Where `max_connections` is set there.
    pub(super) fn place(self) -> &'static str {
        match self {
            Managed::Rds => "Amazon RDS: in the DB parameter group",
            Managed::CloudSql => "Cloud SQL: a database flag of the instance",
            Managed::Azure => "Azure Database: a server parameter",
        }
    }
}

impl Limits {
    /// From the answer to [`together`].
    #[must_use]
    pub fn of(mut row: &[Option<Bytes>]) -> Limits {
        let mut limits = Limits::default();
        for (question, columns) in COLUMNS.into_iter().enumerate() {
            let (own, rest) = row.split_at(columns.min(row.len()));
            limits.learn(question, Some(own));
            row = rest;
        }
        limits
    }

    /// Takes over the answer to a question by its number; `None` = it was refused.
    pub fn learn(&mut self, question: usize, row: Option<&[Option<Bytes>]>) {
        let text = |at: usize| std::str::from_utf8(row?.get(at)?.as_deref()?).ok();
        // -1 is no limit, and so is any other number below 0.
        let number = |at: usize| text(at)?.parse::<u32>().ok();
        match question {
            0 => {
                let word = |text: &str| text.split_whitespace().next().map(str::to_owned);
                self.version = text(0).and_then(word).filter(|word| word.len() <= 32);
                self.max_connections = number(1);
                self.reserved = number(2).unwrap_or(0).saturating_add(number(3).unwrap_or(0));
            }
            1 => (self.role, self.superuser) = (number(0), text(1) == Some("t")),
            2 => self.database = number(0),
            _ => {
                self.managed = match text(0) {
                    Some("rds") => Some(Managed::Rds),
                    Some("cloudsql") => Some(Managed::CloudSql),
                    Some("azure") => Some(Managed::Azure),
                    _ => None,
                }
            }
        }
    }

    /// What a role without privileges can have of the server; `None` = unknown.
    #[must_use]
    pub fn free(&self) -> Option<u32> {
        self.max_connections.map(|max| max.saturating_sub(self.reserved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[Option<&str>]) -> Vec<Option<Bytes>> {
        values.iter().map(|value| value.map(|value| Bytes::copy_from_slice(value.as_bytes()))).collect()
    }

    #[test]
    fn what_a_server_says_is_taken_over() {
        let mut limits = Limits::default();
        limits.learn(0, Some(&row(&[Some("16.4 (Debian 16.4-1)"), Some("100"), Some("3"), Some("5")])));
        limits.learn(1, Some(&row(&[Some("7"), Some("f")])));
        limits.learn(2, Some(&row(&[Some("-1")])));
        limits.learn(3, Some(&row(&[Some("rds")])));
        let expected = Limits {
            version: Some("16.4".into()),
            max_connections: Some(100),
            reserved: 8,
            role: Some(7),
            database: None,
            superuser: false,
            managed: Some(Managed::Rds),
        };
        assert_eq!(limits, expected);
        assert_eq!(limits.free(), Some(92));
        let all =
            [Some("16.4"), Some("100"), Some("3"), Some("5"), Some("7"), Some("f"), Some("-1"), Some("rds")];
        assert_eq!(Limits::of(&row(&all)), expected);
        assert_eq!(Limits::of(&row(&all[..4])), Limits { role: None, managed: None, ..expected.clone() });
        assert_eq!(Limits::of(&[]), Limits::default());
        limits.learn(1, Some(&row(&[Some("7"), Some("t")])));
        assert!(limits.superuser);
    }

    #[test]
    fn what_is_refused_or_no_number_is_unknown() {
        let mut limits = Limits::default();
        for question in 0..QUESTIONS.len() {
            limits.learn(question, None);
            limits.learn(question, Some(&[]));
            limits.learn(question, Some(&row(&[None, None, None, None])));
            limits.learn(question, Some(&[Some(Bytes::from_static(b"\xff"))]));
        }
        assert_eq!(limits, Limits::default());
        limits.learn(0, Some(&row(&[Some("PgBouncer 1.25"), Some("many"), Some("-4"), None])));
        assert_eq!(limits, Limits { version: Some("PgBouncer".into()), ..Limits::default() });
        assert_eq!(limits.free(), None);
        // Before PostgreSQL 16 there is no reserved_connections.
        limits.learn(0, Some(&row(&[Some("15.14"), Some("20"), Some("3"), None])));
        assert_eq!(limits.free(), Some(17));
        limits.learn(0, Some(&row(&[None, Some("2"), Some("4294967295"), Some("9")])));
        assert_eq!(limits.free(), Some(0));
    }
}

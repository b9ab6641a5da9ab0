//! What a server says of what may be done on it: `in_hot_standby` and `default_transaction_read_only`, which
//! PostgreSQL 14 and newer report at login and with the first ReadyForQuery after a change.
//!
//! Two bytes, because it is held against what a client has been told at each ReadyForQuery: after a failover its
//! next backend is of another server, and drivers go by what they were told (libpq's `target_session_attrs`).

use bytes::Bytes;

const NAMES: [&str; 2] = ["in_hot_standby", "default_transaction_read_only"];

/// See the module's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stance([Option<bool>; NAMES.len()]);

impl Stance {
    /// As reported at login.
    #[must_use]
    pub fn of(parameters: &[(Bytes, Bytes)]) -> Stance {
        let mut stance = Stance::default();
        for (name, value) in parameters {
            stance.hear(name, value);
        }
        stance
    }

    /// A parameter is reported. Whether it is one of these.
    pub fn hear(&mut self, name: &[u8], value: &[u8]) -> bool {
        let at = NAMES.iter().position(|known| known.as_bytes() == name);
        if let Some(at) = at {
            self.0[at] = Some(value == b"on");
        }
        at.is_some()
    }

    /// Whether the server is a standby, and whether its transactions may only read by default; `None` = it does not
    /// say.
    #[must_use]
    pub fn known(self) -> Option<(bool, bool)> {
        Some((self.0[0]?, self.0[1]?))
    }

    /// Names and values to report to who believes this, now that it is `now`.
    pub fn news(self, now: Stance) -> impl Iterator<Item = (&'static str, &'static str)> {
        let both = self.0.into_iter().zip(now.0).zip(NAMES);
        both.filter_map(|((before, now), name)| {
            let now = now.filter(|_| before != now)?;
            Some((name, if now { "on" } else { "off" }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_and_another_is_news() {
        let mut standby = Stance::default();
        assert!(standby.hear(b"in_hot_standby", b"on"));
        assert_eq!(standby.known(), None);
        assert!(standby.hear(b"default_transaction_read_only", b"off"));
        assert!(!standby.hear(b"TimeZone", b"on"));
        assert_eq!(standby.known(), Some((true, false)));

        let pair = |name: &'static str, value: &'static str| (Bytes::from(name), Bytes::from(value));
        let reported = [
            pair("in_hot_standby", "off"),
            pair("TimeZone", "UTC"),
            pair("default_transaction_read_only", "on"),
        ];
        let reader = Stance::of(&reported);
        assert_eq!(reader.known(), Some((false, true)));
        let told = |before: Stance, now| before.news(now).collect::<Vec<_>>();
        assert_eq!(
            told(standby, reader),
            [("in_hot_standby", "off"), ("default_transaction_read_only", "on")]
        );
        assert_eq!(told(reader, reader), []);
        assert_eq!(told(reader, Stance::default()), [], "an old server says nothing");
        assert_eq!(told(Stance::default(), standby).len(), 2);
    }
}

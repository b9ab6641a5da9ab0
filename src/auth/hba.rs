//! Who is asked for what: the first `[[auth.rule]]` that fits a login decides, and where none does, nobody is
//! let in (PostgreSQL, "The pg_hba.conf File").

use crate::config::{Alias, Auth, AuthMethod, Connection, LoginRule};
use std::net::IpAddr;

/// A login, as far as rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// Where from; `None` = through the Unix socket.
    pub address: Option<IpAddr>,
    /// Over TLS.
    pub tls: bool,
    /// The database, as the client calls it.
    pub database: &'a str,
    /// The user, without a tenant's suffix.
    pub user: &'a str,
    /// For physical replication, which has no database: only rules that name it are for it.
    pub replication: bool,
}

/// How this login is to prove itself; `None` if no rule is for it.
#[must_use]
pub fn method(auth: &Auth, attempt: &Attempt<'_>) -> Option<AuthMethod> {
    match auth.method {
        AuthMethod::Hba => auth.rules.iter().find(|rule| is_for(rule, attempt)).map(|rule| rule.method),
        method => Some(method),
    }
}

fn is_for(rule: &LoginRule, attempt: &Attempt<'_>) -> bool {
    let connection = match (rule.connection, attempt.address) {
        (Connection::Any, _) | (Connection::Local, None) | (Connection::Host, Some(_)) => true,
        (Connection::HostSsl, Some(_)) => attempt.tls,
        (Connection::HostNoSsl, Some(_)) => !attempt.tls,
        _ => false,
    };
    let address = match (rule.address, attempt.address) {
        (None, _) => true,
        (Some(network), Some(address)) => network.contains(address),
        (Some(_), None) => false,
    };
    let database = |name: &String| match name.as_str() {
        "replication" => attempt.replication,
        _ if attempt.replication => false,
        "all" => true,
        "sameuser" => attempt.database == attempt.user,
        name => name == attempt.database,
    };
    let user = |name: &String| name == "all" || name == attempt.user;
    connection && address && rule.databases.iter().any(database) && rule.users.iter().any(user)
}

/// Whether this user of the system may be that one of the database: those of the same name, and as mapped.
#[must_use]
pub fn may_be(map: &[Alias], uid: u32, name: Option<&str>, user: &str) -> bool {
    let number = uid.to_string();
    let is = |system: &str| system == number || Some(system) == name;
    name == Some(user) || map.iter().any(|alias| alias.database == user && is(&alias.system))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::Network;
    use proptest::prelude::*;

    const NAMES: [&str; 3] = ["a", "b", "c"];
    const NETWORKS: [&str; 3] = ["10.0.0.0/8", "10.1.0.0/16", "::1/128"];
    const ADDRESSES: [&str; 4] = ["10.1.2.3", "10.2.2.3", "::1", "192.0.2.1"];
    const METHODS: [AuthMethod; 3] = [AuthMethod::Trust, AuthMethod::Reject, AuthMethod::ScramSha256];

    /// Which attempts there are: every one, and each is a number.
    fn attempts() -> Vec<Attempt<'static>> {
        let mut all = Vec::new();
        for address in [None].into_iter().chain(ADDRESSES.iter().map(Some)) {
            for tls in [false, true] {
                for database in NAMES {
                    for user in NAMES {
                        for replication in [false, true] {
                            let address = address.map(|address| address.parse().unwrap());
                            all.push(Attempt { address, tls, database, user, replication });
                        }
                    }
                }
            }
        }
        all
    }

    fn rule() -> impl Strategy<Value = LoginRule> {
        let connection = prop::sample::select(vec![
            Connection::Any,
            Connection::Local,
            Connection::Host,
            Connection::HostSsl,
            Connection::HostNoSsl,
        ]);
        let words = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            prop::collection::vec(prop::sample::select(words), 1..3)
        };
        let databases = words(&["a", "b", "all", "sameuser", "replication"]);
        let users = words(&["a", "b", "all"]);
        let address = prop::option::of(prop::sample::select(NETWORKS.to_vec()));
        let method = prop::sample::select(METHODS.to_vec());
        (connection, databases, users, address, method).prop_map(
            |(connection, databases, users, address, method)| LoginRule {
                connection,
                databases,
                users,
                address: address.and_then(Network::parse),
                method,
            },
        )
    }

    /// The attempts that a rule is for, by taking away those it is not for, one column after the other.
    fn naive(rule: &LoginRule) -> Vec<bool> {
        let keep = |attempt: &Attempt<'_>| {
            let unix = attempt.address.is_none();
            if rule.connection == Connection::Local && !unix {
                return false;
            }
            if rule.connection != Connection::Local && rule.connection != Connection::Any && unix {
                return false;
            }
            if rule.connection == Connection::HostSsl && !attempt.tls {
                return false;
            }
            if rule.connection == Connection::HostNoSsl && attempt.tls {
                return false;
            }
            if let Some(network) = rule.address {
                let shown = attempt.address.map(|address| address.to_string()).unwrap_or_default();
                let inside: &[&str] = match network.to_string().as_str() {
                    "10.0.0.0/8" => &["10.1.2.3", "10.2.2.3"],
                    "10.1.0.0/16" => &["10.1.2.3"],
                    _ => &["::1"],
                };
                if !inside.contains(&shown.as_str()) {
                    return false;
                }
            }
            let mut meant: Vec<&str> = Vec::new();
            for name in &rule.databases {
                match (name.as_str(), attempt.replication) {
                    ("replication", true) => meant.extend(NAMES),
                    ("all", false) => meant.extend(NAMES),
                    ("sameuser", false) => meant.push(attempt.user),
                    ("a" | "b", false) => meant.push(name),
                    _ => {}
                }
            }
            let anybody = rule.users.contains(&"all".to_owned());
            meant.contains(&attempt.database) && (anybody || rule.users.contains(&attempt.user.to_owned()))
        };
        attempts().iter().map(keep).collect()
    }

    proptest! {
        /// Against a table that is filled from the last rule to the first, each over the ones behind it.
        #[test]
        fn the_first_rule_that_fits_decides(rules in prop::collection::vec(rule(), 0..6)) {
            let mut expected = vec![None; attempts().len()];
            for rule in rules.iter().rev() {
                for (slot, fits) in expected.iter_mut().zip(naive(rule)) {
                    if fits {
                        *slot = Some(rule.method);
                    }
                }
            }
            let auth = Auth { method: AuthMethod::Hba, rules, ..Config::default().auth };
            let found: Vec<_> = attempts().iter().map(|attempt| method(&auth, attempt)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn without_rules_the_one_method_is_for_all() {
        let auth = Auth { method: AuthMethod::Md5, ..Config::default().auth };
        assert!(attempts().iter().all(|attempt| method(&auth, attempt) == Some(AuthMethod::Md5)));
    }

    #[test]
    fn a_user_of_the_system_is_himself_or_whom_the_map_says() {
        let alias = |system: &str, database: &str| Alias { system: system.into(), database: database.into() };
        let map = [alias("www", "app"), alias("1000", "batch")];
        assert!(may_be(&[], 5, Some("app"), "app") && !may_be(&[], 5, Some("www"), "app"));
        assert!(may_be(&map, 5, Some("www"), "app") && !may_be(&map, 5, Some("www"), "batch"));
        assert!(may_be(&map, 1000, None, "batch") && !may_be(&map, 1001, None, "batch"));
        // A number is nobody's name.
        assert!(!may_be(&[], 5, None, "5"));
    }
}

//! `[[auth.rule]]` and `auth.peer_map`: who is asked for what, after PostgreSQL's `pg_hba.conf` and
//! `pg_ident.conf` ("The pg_hba.conf File", "User Name Maps").
//!
//! What PostgreSQL has and this has not is refused by name: groups (`+`), files (`@`), regular expressions
//! (`/`), `samerole`, `samegroup`, `samehost` and `samenet`.

use super::rules::{Raw, Rule};
use super::{AuthMethod, Config, Wrong};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Most rules: they are read one by one at every login.
const MAX_RULES: usize = 1_000;
/// A name or keyword is at most so long (PostgreSQL's NAMEDATALEN).
const MAX_NAME: usize = 63;

/// The kind of connection a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// Every kind.
    Any,
    /// The Unix socket.
    Local,
    /// TCP, with TLS or without.
    Host,
    /// TCP with TLS.
    HostSsl,
    /// TCP without TLS.
    HostNoSsl,
}

/// Addresses that have their first bits in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// One `[[auth.rule]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRule {
    /// `connection`
    pub connection: Connection,
    /// `database`: names as clients say them, `all`, `sameuser`, or `replication` for physical replication.
    pub databases: Vec<String>,
    /// `user`: names, or `all`.
    pub users: Vec<String>,
    /// `address`; `None` = every one.
    pub address: Option<Network>,
    /// `method`
    pub method: AuthMethod,
}

/// One user of the system who may be one of the database: `"www-data=app"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Name or number of the system's user.
    pub system: String,
    /// The database's.
    pub database: String,
}

impl Network {
    /// Reads `10.0.0.0/8`, `fd00::/8`, or one address.
    #[must_use]
    pub fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) if bits.bytes().all(|b| b.is_ascii_digit()) => (address, Some(bits)),
            Some(_) => return None,
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok()).filter(|bits| *bits <= most)?;
        Some(Network { address, bits })
    }

    /// Whether an address is one of these. One of IPv4 that came in over IPv6 is taken for what it is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let common = match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            _ => return false,
        };
        common >= u32::from(self.bits)
    }

    /// Whether all of it is this machine.
    fn is_loopback(&self) -> bool {
        match self.address {
            IpAddr::V4(address) => address.octets()[0] == 127 && self.bits >= 8,
            IpAddr::V6(address) => address == Ipv6Addr::LOCALHOST && self.bits == 128,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

const CONNECTIONS: [(&str, Connection); 5] = [
    ("any", Connection::Any),
    ("local", Connection::Local),
    ("host", Connection::Host),
    ("hostssl", Connection::HostSsl),
    ("hostnossl", Connection::HostNoSsl),
];
const METHODS: [(&str, AuthMethod); 7] = [
    ("trust", AuthMethod::Trust),
    ("reject", AuthMethod::Reject),
    ("plain", AuthMethod::Plain),
    ("md5", AuthMethod::Md5),
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("cert", AuthMethod::Cert),
    ("peer", AuthMethod::Peer),
];

fn word<V: PartialEq>(words: &'static [(&'static str, V)], value: &V) -> &'static str {
    words.iter().find(|(_, known)| known == value).map_or("", |(word, _)| word)
}

fn one_of<V>(words: &[(&str, V)]) -> String {
    let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    format!("one of {}", words.join(", "))
}

/// Shows the rules; they are read by [`read_rules`], which says which of them is at fault.
pub(super) struct LoginRules;

impl Rule for LoginRules {
    type Value = Vec<LoginRule>;
    fn read(&self, raw: &Raw) -> Option<Vec<LoginRule>> {
        read_rules(raw).ok()
    }
    fn show(&self, value: &Vec<LoginRule>) -> String {
        let names = |names: &[String]| match names {
            [one] => format!("{one:?}"),
            many => format!("{many:?}"),
        };
        let show = |rule: &LoginRule| {
            let address =
                rule.address.map(|network| format!(", address = \"{network}\"")).unwrap_or_default();
            format!(
                "{{ connection = \"{}\", database = {}, user = {}{address}, method = \"{}\" }}",
                word(&CONNECTIONS, &rule.connection),
                names(&rule.databases),
                names(&rule.users),
                word(&METHODS, &rule.method)
            )
        };
        if value.is_empty() {
            return String::new();
        }
        format!("[{}]", value.iter().map(show).collect::<Vec<_>>().join(", "))
    }
    fn expected(&self) -> String {
        format!("at most {MAX_RULES} tables [[auth.rule]]")
    }
}

/// Reads the rules.
///
/// # Errors
/// [`Wrong::Invalid`], which names the first rule at fault and its key.
pub(super) fn read_rules(raw: &Raw) -> Result<Vec<LoginRule>, Wrong> {
    match raw {
        Raw::List(items) if items.len() <= MAX_RULES => {
            items.iter().enumerate().map(|(at, item)| read_rule(at + 1, item)).collect()
        }
        Raw::Loose(none) if none.is_empty() => Ok(Vec::new()),
        other => Err(Wrong::Invalid { got: other.kind().to_owned(), expected: LoginRules.expected() }),
    }
}

fn read_rule(number: usize, raw: &Raw) -> Result<LoginRule, Wrong> {
    const KEYS: &str = "connection, database, user, address and method";
    let wrong = |what: &str, expected: String| {
        Err(Wrong::Invalid { got: format!("{what} of rule {number}"), expected })
    };
    let Raw::Table(pairs) = raw else {
        return wrong(raw.kind(), format!("a table with {KEYS}"));
    };
    let mut rule = LoginRule {
        connection: Connection::Any,
        databases: vec!["all".to_owned()],
        users: vec!["all".to_owned()],
        address: None,
        method: AuthMethod::Reject,
    };
    let mut has_method = false;
    for (key, raw) in pairs {
        let (text, got) = (raw.text().map(str::trim), format!("{key} = {}", raw.quoted()));
        match key.as_str() {
            "connection" => match CONNECTIONS.iter().find(|(word, _)| text == Some(word)) {
                Some((_, connection)) => rule.connection = *connection,
                None => return wrong(&got, one_of(&CONNECTIONS)),
            },
            "method" => match METHODS.iter().find(|(word, _)| text == Some(word)) {
                Some((_, method)) => (rule.method, has_method) = (*method, true),
                None => return wrong(&got, one_of(&METHODS)),
            },
            "address" => match text {
                Some("all") => rule.address = None,
                text => match text.and_then(Network::parse) {
                    Some(network) => rule.address = Some(network),
                    None => {
                        return wrong(
                            &got,
                            "\"all\", an IP address, or one with its bits, such as \"10.0.0.0/8\"".into(),
                        );
                    }
                },
            },
            "database" | "user" => match names(raw, key == "database") {
                Some(names) if key == "database" => rule.databases = names,
                Some(names) => rule.users = names,
                None => return wrong(&got, name_expected(key == "database")),
            },
            _ => return wrong(&format!("the key {key}"), KEYS.to_owned()),
        }
    }
    if !has_method {
        return wrong("no method", one_of(&METHODS));
    }
    fits(&rule).map_or(Ok(rule), |(what, expected)| wrong(what, expected.to_owned()))
}

/// A name or a list of them.
fn names(raw: &Raw, database: bool) -> Option<Vec<String>> {
    let items = match raw {
        Raw::List(items) if items.is_empty() => return None,
        Raw::List(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let unknown: &[&str] = if database { &["samerole", "samegroup"] } else { &["sameuser"] };
    let read = |item: &Raw| {
        let name = item.text()?;
        let fits = (1..=MAX_NAME).contains(&name.len())
            && !name.contains('\0')
            && !name.starts_with(['+', '@', '/'])
            && !unknown.contains(&name);
        fits.then(|| name.to_owned())
    };
    items.iter().map(read).collect()
}

fn name_expected(database: bool) -> String {
    let words = if database { "\"all\", \"sameuser\", \"replication\"" } else { "\"all\"" };
    format!("{words}, or names of 1 to {MAX_NAME} bytes that do not begin with +, @ or /")
}

/// What cannot go together within a rule.
fn fits(rule: &LoginRule) -> Option<(&'static str, &'static str)> {
    match (rule.connection, rule.method) {
        (Connection::Local, _) if rule.address.is_some() => {
            Some(("an address", "none, because the Unix socket has no addresses"))
        }
        (Connection::Local, AuthMethod::Peer) | (Connection::HostSsl, AuthMethod::Cert) => None,
        (_, AuthMethod::Peer) => {
            Some(("the connection", "\"local\" with method \"peer\", which is for the Unix socket"))
        }
        (_, AuthMethod::Cert) => {
            Some(("the connection", "\"hostssl\" with method \"cert\", which is for TLS"))
        }
        _ => None,
    }
}

/// What the methods need and do not have, with the key to say it at.
pub(super) fn faults(config: &Config) -> Vec<(&'static str, Wrong)> {
    let auth = &config.auth;
    let hba = auth.method == AuthMethod::Hba;
    let mut found = Vec::new();
    let mut say = |key, what: String, remedy| found.push((key, Wrong::Login { what, remedy }));
    if hba && auth.rules.is_empty() {
        say("auth.method", "\"hba\" without [[auth.rule]] lets nobody in".into(), "write a rule");
    }
    if !hba && !auth.rules.is_empty() {
        let what = "the rules are read with auth.method = \"hba\" only".into();
        say("auth.rule", what, "set that, or remove them");
    }
    let key = if hba { "auth.rule" } else { "auth.method" };
    let uses = |method| {
        if hba { auth.rules.iter().any(|rule| rule.method == method) } else { auth.method == method }
    };
    if uses(AuthMethod::Cert) && !config.tls.client.mode.verifies() {
        let what = "method \"cert\" needs a verified certificate of every client over TCP".into();
        say(key, what, "set tls.client.mode = \"verify-ca\" with cert_file, key_file and ca_file");
    }
    if uses(AuthMethod::Peer) && config.listen.unix_dir.is_none() {
        let what = "method \"peer\" is for the Unix socket, and there is none".into();
        say(key, what, "set listen.unix_dir, or choose another method");
    }
    found
}

/// The first rule that trusts who comes from another machine, where such can come.
pub(super) fn open_rule(config: &Config) -> Option<usize> {
    let reachable = config.listen.addresses.iter().any(|address| !address.ip().is_loopback());
    let open = |rule: &LoginRule| {
        rule.method == AuthMethod::Trust
            && rule.connection != Connection::Local
            && !rule.address.is_some_and(|network| network.is_loopback())
    };
    config.auth.rules.iter().position(open).filter(|_| reachable).map(|at| at + 1)
}

/// `"www-data=app"`.
pub(super) struct AliasRule;

impl Rule for AliasRule {
    type Value = Alias;
    fn read(&self, raw: &Raw) -> Option<Alias> {
        let (system, database) = raw.text()?.split_once('=')?;
        let (system, database) = (system.trim(), database.trim());
        let fits = |name: &str| (1..=MAX_NAME).contains(&name.len()) && !name.contains(['\0', ',']);
        let alias = || Alias { system: system.to_owned(), database: database.to_owned() };
        (fits(system) && fits(database)).then(alias)
    }
    fn show(&self, value: &Alias) -> String {
        format!("{}={}", value.system, value.database)
    }
    fn expected(&self) -> String {
        "a user of the system, by name or number, and a user of the database, such as \"www-data=app\"".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_network_is_its_first_bits(
            own in any::<u32>(), near in any::<u32>(), bits in 0u8..=32, keep in 0u32..=32, mapped in any::<bool>()
        ) {
            // An address that shares at least `keep` bits, so that both outcomes are common.
            let mask = u32::MAX.checked_shr(keep).unwrap_or(0);
            let other = (own & !mask) | (near & mask);
            let network = Network::parse(&format!("{}/{bits}", std::net::Ipv4Addr::from(own))).unwrap();
            let digits = |n: u32| format!("{n:032b}")[..usize::from(bits)].to_owned();
            let address = std::net::Ipv4Addr::from(other);
            let address = if mapped { IpAddr::V6(address.to_ipv6_mapped()) } else { IpAddr::V4(address) };
            prop_assert_eq!(network.contains(address), digits(own) == digits(other));
        }
    }

    #[test]
    fn networks_are_read_or_refused() {
        let contains = |network: &str, address: &str| {
            Network::parse(network).map(|network| network.contains(address.parse().unwrap()))
        };
        assert_eq!(contains("10.1.2.3", "10.1.2.3"), Some(true));
        assert_eq!(contains("10.1.2.3", "10.1.2.4"), Some(false));
        assert_eq!(contains("0.0.0.0/0", "::1"), Some(false));
        assert_eq!(contains("fd00::/8", "fdff::1"), Some(true));
        assert_eq!(contains("fd00::/8", "fe00::1"), Some(false));
        for text in
            ["10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "host", ""]
        {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }
}

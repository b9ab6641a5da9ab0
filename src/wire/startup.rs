//! The first packet of a connection: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.
//!
//! Reads one exact packet, under PostgreSQL's own rules (`ProcessStartupPacket` in
//! backend_startup.c, `process_postgres_switches` in postgres.c, `pg_split_opts` in postinit.c; wire.md
//! F1 to F6). It decides nothing about TLS, protocol negotiation or whether anybody may log in, and
//! which `bursar.*` keys exist is [`crate::tag`]'s business. SQLSTATEs are named in [`StartupError`]'s
//! docs; only the session's reply table sends them.
//!
//! Our own walk, not pgwire's decoder: that one loses order and duplicates, reads over the end of an
//! unterminated packet and replaces what is not UTF-8. A property test holds the two against each
//! other where they must agree.

use super::walk::cstr;
use smallvec::SmallVec;

/// The smallest packet in bytes, its length field included: length and code.
pub const MIN: usize = 8;
/// The largest packet in bytes, its length field included: PostgreSQL's
/// `MAX_STARTUP_PACKET_LENGTH` counts without it.
pub const MAX: usize = 10_000 + 4;
/// The shortest and longest cancel key, in bytes (protocol 3.2).
const CANCEL_KEY: std::ops::RangeInclusive<usize> = 4..=256;

const CANCEL_CODE: u32 = 80_877_102;
const SSL_CODE: u32 = 80_877_103;
const GSSENC_CODE: u32 = 80_877_104;

/// Why a first packet is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length field is out of bounds. PostgreSQL closes without a word.
    #[error("invalid length of startup packet")]
    Length,
    /// A malformed SSLRequest, GSSENCRequest or CancelRequest. PostgreSQL closes without a word.
    #[error("invalid length of request packet")]
    Request,
    /// FATAL 0A000.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Protocol {
        /// Major version asked for.
        major: u16,
        /// Minor version asked for.
        minor: u16,
    },
    /// FATAL 08P01.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// FATAL 28000.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// FATAL 22021: a name, the user, the database or a tag is not UTF-8. PostgreSQL takes any bytes
    /// here; names are text to Bursar, and a lossy copy could name somebody else.
    #[error("startup parameter \"{0}\" is not valid UTF-8")]
    Encoding(String),
    /// FATAL 22023.
    #[error("invalid value for parameter \"replication\": \"{0}\"")]
    Replication(String),
    /// FATAL 42601: a switch in `options` other than `-c name=value` and `--name=value`. PostgreSQL has
    /// a few more (`-S`, `-f`, …), all with a name of their own.
    #[error("unsupported command-line switch in options: \"{0}\"")]
    Switch(String),
    /// FATAL 42601: `-c name` or `--name` without a value.
    #[error("{0} requires a value")]
    SwitchValue(String),
}

/// A first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// SSLRequest.
    Ssl,
    /// GSSENCRequest.
    GssEnc,
    /// CancelRequest.
    Cancel {
        /// The process id of BackendKeyData.
        pid: u32,
        /// The key of BackendKeyData, 4 to 256 bytes.
        key: SmallVec<[u8; 32]>,
    },
    /// StartupMessage.
    Startup(Startup),
}

/// Whether a client asks for a replication connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replication {
    /// An ordinary one.
    #[default]
    No,
    /// `replication=on`.
    Physical,
    /// `replication=database`.
    Logical,
}

impl Replication {
    /// As a value of `replication` in a StartupMessage.
    #[must_use]
    pub fn value(self) -> &'static str {
        match self {
            Replication::No => "false",
            Replication::Physical => "true",
            Replication::Logical => "database",
        }
    }

    /// As `SHOW CLIENTS` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Replication::No => "none",
            Replication::Physical => "physical",
            Replication::Logical => "logical",
        }
    }
}

/// A setting asked for at start-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The name as written; names compare ASCII case-insensitively.
    pub name: String,
    /// The value, in whatever encoding the client speaks.
    pub value: Vec<u8>,
}

/// A StartupMessage, protocol 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// Minor protocol version asked for.
    pub minor: u16,
    /// `user`, never empty.
    pub user: String,
    /// `database`, or the user's name.
    pub database: String,
    /// `replication`.
    pub replication: Replication,
    /// Settings from `options`, then from the packet: the order in which PostgreSQL applies them. A
    /// name that comes again takes the place and the value of its last occurrence. `user`, `database`,
    /// `options`, `replication` and what the next two fields hold are left out.
    pub parameters: Vec<Parameter>,
    /// Settings `bursar.*`, from either place, in the same order: the name behind the dot, in lower
    /// case, and the value. Nothing says that such a key exists.
    pub tags: Vec<(String, String)>,
    /// Names of protocol extensions (`_pq_.*`) asked for; Bursar knows none.
    pub extensions: Vec<String>,
}

impl Startup {
    /// The value of a parameter.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&[u8]> {
        let found = self.parameters.iter().find(|p| p.name.eq_ignore_ascii_case(name));
        found.map(|p| p.value.as_slice())
    }

    /// The minor version to speak: 3.2 if asked for that or more, else 3.0 (3.1 never existed).
    #[must_use]
    pub fn agreed_minor(&self) -> u16 {
        if self.minor >= 2 { 2 } else { 0 }
    }

    /// Whether NegotiateProtocolVersion is due before authentication: the client asked for a version
    /// or an extension that it will not get.
    #[must_use]
    pub fn must_negotiate(&self) -> bool {
        self.minor != self.agreed_minor() || !self.extensions.is_empty()
    }
}

/// The length of the packet, length field included, from its first four bytes.
///
/// # Errors
/// [`StartupError::Length`] outside [`MIN`] to [`MAX`].
pub fn length(first: [u8; 4]) -> Result<usize, StartupError> {
    usize::try_from(i32::from_be_bytes(first))
        .ok()
        .filter(|len| (MIN..=MAX).contains(len))
        .ok_or(StartupError::Length)
}

/// Reads one whole packet, length field included.
///
/// # Errors
/// See [`StartupError`].
pub fn parse(packet: &[u8]) -> Result<First, StartupError> {
    let (len, rest) = packet.split_first_chunk::<4>().ok_or(StartupError::Length)?;
    if length(*len)? != packet.len() {
        return Err(StartupError::Length);
    }
    let (code, body) = rest.split_first_chunk::<4>().ok_or(StartupError::Length)?;
    match u32::from_be_bytes(*code) {
        SSL_CODE if body.is_empty() => Ok(First::Ssl),
        GSSENC_CODE if body.is_empty() => Ok(First::GssEnc),
        SSL_CODE | GSSENC_CODE => Err(StartupError::Request),
        CANCEL_CODE => {
            let (pid, key) = body.split_first_chunk::<4>().ok_or(StartupError::Request)?;
            if !CANCEL_KEY.contains(&key.len()) {
                return Err(StartupError::Request);
            }
            Ok(First::Cancel { pid: u32::from_be_bytes(*pid), key: key.into() })
        }
        version => {
            let (major, minor) = ((version >> 16) as u16, version as u16);
            if major != 3 {
                return Err(StartupError::Protocol { major, minor });
            }
            startup(minor, body).map(First::Startup)
        }
    }
}

fn startup(minor: u16, body: &[u8]) -> Result<Startup, StartupError> {
    let mut user: &[u8] = b"";
    let mut database: &[u8] = b"";
    let mut options: &[u8] = b"";
    let mut replication = Replication::No;
    let mut extensions = Vec::new();
    let mut written = Vec::new();
    let mut rest = body;
    while rest.first().is_some_and(|&b| b != 0) {
        let (name, after) = cstr(rest).ok_or(StartupError::Layout)?;
        let (value, after) = cstr(after).ok_or(StartupError::Layout)?;
        rest = after;
        // PostgreSQL compares these names exactly; in other spellings they are settings.
        match name {
            b"user" => user = value,
            b"database" => database = value,
            b"options" => options = value,
            b"replication" => replication = replication_of(value)?,
            _ if name.starts_with(b"_pq_.") => extensions.push(text(name, name)?),
            _ => written.push((text(name, name)?, value.to_vec())),
        }
    }
    if rest != [0] {
        return Err(StartupError::Layout);
    }
    if user.is_empty() {
        return Err(StartupError::NoUser);
    }
    let user = text(b"user", user)?;
    let database = if database.is_empty() { user.clone() } else { text(b"database", database)? };
    let mut startup =
        Startup { minor, user, database, replication, parameters: vec![], tags: vec![], extensions };
    let switches = settings_of(options)?;
    for (name, value) in switches.into_iter().chain(written) {
        startup.put(name, value)?;
    }
    Ok(startup)
}

impl Startup {
    /// Adds a setting; it replaces an earlier one of the same name.
    fn put(&mut self, name: String, value: Vec<u8>) -> Result<(), StartupError> {
        const PREFIX: &str = "bursar.";
        if let Some((_, key)) =
            name.split_at_checked(PREFIX.len()).filter(|(prefix, _)| prefix.eq_ignore_ascii_case(PREFIX))
        {
            let key = key.to_ascii_lowercase();
            let value = String::from_utf8(value).map_err(|_| StartupError::Encoding(name))?;
            self.tags.retain(|(known, _)| *known != key);
            self.tags.push((key, value));
        } else {
            self.parameters.retain(|known| !known.name.eq_ignore_ascii_case(&name));
            self.parameters.push(Parameter { name, value });
        }
        Ok(())
    }
}

fn text(name: &[u8], value: &[u8]) -> Result<String, StartupError> {
    String::from_utf8(value.to_vec())
        .map_err(|_| StartupError::Encoding(String::from_utf8_lossy(name).into_owned()))
}

/// `database`, or what PostgreSQL's `parse_bool` takes: `true`, `false`, `yes`, `no`, `on`, `off` and
/// their unambiguous beginnings, `1`, `0`.
fn replication_of(value: &[u8]) -> Result<Replication, StartupError> {
    if value == b"database" {
        return Ok(Replication::Logical);
    }
    let value = String::from_utf8_lossy(value);
    let is = |word: &str, least: usize| {
        value.len() >= least
            && word.get(..value.len()).is_some_and(|start| start.eq_ignore_ascii_case(&value))
    };
    if is("true", 1) || is("yes", 1) || is("on", 2) || value == "1" {
        Ok(Replication::Physical)
    } else if is("false", 1) || is("no", 1) || is("off", 2) || value == "0" {
        Ok(Replication::No)
    } else {
        Err(StartupError::Replication(value.into_owned()))
    }
}

/// The settings in an `options` value: `-c name=value`, `-cname=value`, `--name=value`, where a dash in
/// a name stands for an underscore.
fn settings_of(options: &[u8]) -> Result<Vec<(String, Vec<u8>)>, StartupError> {
    let mut words = split(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let refused = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        if word == b"--" {
            // The end of switches, as for getopt; nothing may follow.
            return words.next().map_or(Ok(settings), |next| Err(StartupError::Switch(refused(&next))));
        }
        let (setting, shown) = if word == b"-c" {
            let next = words.next().ok_or_else(|| StartupError::SwitchValue("-c".to_owned()))?;
            (next.clone(), [b"-c ", &next[..]].concat())
        } else if let Some(setting) = word.strip_prefix(b"-c").or_else(|| word.strip_prefix(b"--")) {
            (setting.to_vec(), word.clone())
        } else {
            return Err(StartupError::Switch(refused(&word)));
        };
        let Some(equals) = memchr::memchr(b'=', &setting).filter(|&at| at > 0) else {
            return Err(StartupError::SwitchValue(refused(&shown)));
        };
        let name = text(&setting[..equals], &setting[..equals])?.replace('-', "_");
        settings.push((name, setting[equals + 1..].to_vec()));
    }
    Ok(settings)
}

/// Splits at white space that no backslash escapes; a backslash before any byte goes away
/// (`pg_split_opts`).
fn split(options: &[u8]) -> Vec<Vec<u8>> {
    let is_space = |b: u8| matches!(b, b' ' | b'\t'..=b'\r');
    let mut words = Vec::new();
    let mut bytes = options.iter().copied().skip_while(|&b| is_space(b)).peekable();
    while bytes.peek().is_some() {
        let mut word = Vec::new();
        while let Some(b) = bytes.next() {
            match b {
                b'\\' => word.extend(bytes.next()),
                _ if is_space(b) => break,
                _ => word.push(b),
            }
        }
        words.push(word);
        while bytes.next_if(|&b| is_space(b)).is_some() {}
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let len = (body.len() + 8) as u32;
        [&len.to_be_bytes(), &code.to_be_bytes(), body].concat()
    }

    fn read(body: &[u8]) -> Result<Startup, StartupError> {
        match parse(&packet(0x0003_0000, body))? {
            First::Startup(startup) => Ok(startup),
            other => panic!("{other:?}"),
        }
    }

    fn pairs(startup: &Startup) -> Vec<(&str, &[u8])> {
        startup.parameters.iter().map(|p| (p.name.as_str(), p.value.as_slice())).collect()
    }

    #[test]
    fn lengths_are_postgresqls() {
        assert_eq!(length(8i32.to_be_bytes()), Ok(8));
        assert_eq!(length(10_004i32.to_be_bytes()), Ok(10_004));
        for bad in [-1, 0, 7, 10_005, i32::MAX, i32::MIN] {
            assert_eq!(length(bad.to_be_bytes()), Err(StartupError::Length));
        }
        assert_eq!(parse(b""), Err(StartupError::Length));
        assert_eq!(parse(b"\0\0\0\x09\0\x03\0\0"), Err(StartupError::Length));
    }

    #[test]
    fn requests() {
        assert_eq!(parse(&packet(SSL_CODE, b"")), Ok(First::Ssl));
        assert_eq!(parse(&packet(GSSENC_CODE, b"")), Ok(First::GssEnc));
        assert_eq!(parse(&packet(SSL_CODE, b"x")), Err(StartupError::Request));
        let key: SmallVec<[u8; 32]> = SmallVec::from_slice(b"abcd");
        assert_eq!(parse(&packet(CANCEL_CODE, b"\0\0\x01\0abcd")), Ok(First::Cancel { pid: 256, key }));
        for len in [0, 3, 257] {
            let body = [&[0; 4][..], &vec![1; len]].concat();
            assert_eq!(parse(&packet(CANCEL_CODE, &body)), Err(StartupError::Request));
        }
        assert_eq!(parse(&packet(CANCEL_CODE, b"\0\0")), Err(StartupError::Request));
        let old = StartupError::Protocol { major: 2, minor: 0 };
        assert_eq!(parse(&packet(0x0002_0000, b"user\0a\0\0")), Err(old));
    }

    #[test]
    fn names_defaults_and_duplicates() {
        let startup = read(b"user\0bob\0DateStyle\0ISO\0datestyle\0German\0x.y\0\xff\0\0").unwrap();
        assert_eq!((startup.user.as_str(), startup.database.as_str()), ("bob", "bob"));
        assert_eq!(pairs(&startup), [("datestyle", &b"German"[..]), ("x.y", b"\xff")]);
        assert_eq!(startup.parameter("DATESTYLE"), Some(&b"German"[..]));
        let twice = read(b"user\0a\0user\0b\0database\0x\0database\0\0User\0c\0\0").unwrap();
        assert_eq!((twice.user.as_str(), twice.database.as_str()), ("b", "b"));
        assert_eq!(pairs(&twice), [("User", &b"c"[..])]);
    }

    #[test]
    fn malformed_packets() {
        for body in
            [&b""[..], b"user\0a", b"user\0a\0", b"user\0a\0\0x", b"user", b"user\0", b"user\0a\0x\0\0"]
        {
            assert_eq!(read(body), Err(StartupError::Layout), "{body:?}");
        }
        assert_eq!(read(b"\0"), Err(StartupError::NoUser));
        assert_eq!(read(b"user\0\0database\0d\0\0"), Err(StartupError::NoUser));
        assert_eq!(read(b"user\0\xff\0\0"), Err(StartupError::Encoding("user".into())));
        assert_eq!(read(b"user\0a\0database\0\xff\0\0"), Err(StartupError::Encoding("database".into())));
        let tag = Err(StartupError::Encoding("bursar.tenant".into()));
        assert_eq!(read(b"user\0a\0bursar.tenant\0\xff\0\0"), tag);
    }

    #[test]
    fn options_come_first_and_packet_settings_override_them() {
        let body =
            b"user\0a\0work_mem\x001MB\0options\0 -c work_mem=2MB  -cgeqo=off --search-path=a\\ b\\\\c \
            -c bursar.tenant=t -c Bursar.Class=x\0bursar.tenant\0u\0\0";
        let startup = read(body).unwrap();
        let expected: [(&str, &[u8]); 3] =
            [("geqo", b"off"), ("search_path", b"a b\\c"), ("work_mem", b"1MB")];
        assert_eq!(pairs(&startup), expected);
        assert_eq!(startup.tags, [("class".into(), "x".into()), ("tenant".into(), "u".to_owned())]);
    }

    #[test]
    fn other_switches_are_refused_by_name() {
        let options = |text: &str| read(&[b"user\0a\0options\0", text.as_bytes(), b"\0\0"].concat());
        let value = |shown: &str| Err(StartupError::SwitchValue(shown.into()));
        let switch = |shown: &str| Err(StartupError::Switch(shown.into()));
        assert_eq!(options("-S 1024"), switch("-S"));
        assert_eq!(options("endpoint=x"), switch("endpoint=x"));
        assert_eq!(options("-"), switch("-"));
        assert_eq!(options("-c"), value("-c"));
        assert_eq!(options("-c geqo"), value("-c geqo"));
        assert_eq!(options("--geqo"), value("--geqo"));
        assert_eq!(options("-c a.b=c --").unwrap().parameters.len(), 1);
        assert_eq!(options("-- -c a.b=c"), switch("-c"));
        assert_eq!(options("-c =x"), value("-c =x"));
        assert_eq!(options("  \t").unwrap().parameters, []);
        assert_eq!(pairs(&options("-c a.b=\\").unwrap()), [("a.b", &b""[..])]);
        assert_eq!(pairs(&options("--a=b=c").unwrap()), [("a", &b"b=c"[..])]);
    }

    #[test]
    fn versions_and_extensions() {
        let First::Startup(new) = parse(&packet(0x0003_0002, b"user\0a\0\0")).unwrap() else { panic!() };
        assert_eq!((new.agreed_minor(), new.must_negotiate()), (2, false));
        let First::Startup(newer) = parse(&packet(0x0003_270f, b"user\0a\0\0")).unwrap() else { panic!() };
        assert_eq!((newer.agreed_minor(), newer.must_negotiate()), (2, true));
        let First::Startup(odd) = parse(&packet(0x0003_0001, b"user\0a\0\0")).unwrap() else { panic!() };
        assert_eq!((odd.agreed_minor(), odd.must_negotiate()), (0, true));
        let extended = read(b"user\0a\0_pq_.x\x001\0\0").unwrap();
        assert_eq!(extended.extensions, ["_pq_.x"]);
        assert!(extended.must_negotiate() && extended.parameters.is_empty());
    }

    #[test]
    fn replication() {
        let of = |value: &str| {
            read(&[b"user\0a\0replication\0", value.as_bytes(), b"\0\0"].concat()).map(|s| s.replication)
        };
        for value in ["1", "on", "ON", "t", "true", "y", "yes"] {
            assert_eq!(of(value), Ok(Replication::Physical), "{value}");
        }
        for value in ["0", "of", "off", "f", "n", "no", "FALSE"] {
            assert_eq!(of(value), Ok(Replication::No), "{value}");
        }
        assert_eq!(of("database"), Ok(Replication::Logical));
        for value in ["", "o", "2", "yess", "Database"] {
            assert_eq!(of(value), Err(StartupError::Replication(value.into())), "{value}");
        }
    }

    proptest! {
        /// Where pgwire keeps everything (distinct names, UTF-8, no options), the two agree.
        #[test]
        fn agrees_with_pgwire(
            parameters in prop::collection::btree_map("[a-z]{1,9}\\.[a-z]{1,5}", "[^\\x00]{0,20}", 0..8),
            user in "[^\\x00]{1,20}", database in prop::option::of("[^\\x00]{1,20}"), minor in 0u16..4,
        ) {
            use pgwire::messages::{DecodeContext, Message, ProtocolVersion, startup::Startup as Theirs};
            let mut body = Vec::new();
            let special = [("user", Some(&user)), ("database", database.as_ref())];
            let special = special.into_iter().filter_map(|(name, value)| Some((name, value?)));
            for (name, value) in special.chain(parameters.iter().map(|(n, v)| (n.as_str(), v))) {
                body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
            }
            body.push(0);
            let bytes = packet(0x0003_0000 | u32::from(minor), &body);
            let context = DecodeContext::new(ProtocolVersion::PROTOCOL3_2);
            let mut buffer = bytes::BytesMut::from(&bytes[..]);
            let theirs = Theirs::decode(&mut buffer, &context).unwrap().unwrap();
            let First::Startup(ours) = parse(&bytes).unwrap() else { panic!() };
            prop_assert_eq!(ours.minor, theirs.protocol_number_minor);
            prop_assert_eq!(&ours.user, &theirs.parameters["user"]);
            prop_assert_eq!(Some(&ours.database), theirs.parameters.get("database").or(Some(&user)));
            for (name, value) in &parameters {
                prop_assert_eq!(&theirs.parameters[name], value);
                prop_assert_eq!(ours.parameter(name), Some(value.as_bytes()));
            }
            prop_assert_eq!(ours.parameters.len(), parameters.len());
        }

        /// Any words, escaped, are split back.
        #[test]
        fn escaped_words_are_split_back(words in prop::collection::vec("[a \\\\\\t\\n'=-]{1,8}", 0..6)) {
            let escaped: Vec<String> = words
                .iter()
                .map(|word| word.chars().flat_map(|c| {
                    (c.is_whitespace() || c == '\\').then_some('\\').into_iter().chain([c])
                }).collect())
                .collect();
            let found = split(format!("  {} ", escaped.join(" \t")).as_bytes());
            prop_assert_eq!(found, words.into_iter().map(String::into_bytes).collect::<Vec<_>>());
        }
    }
}

//! Who asks over HTTP: Basic credentials (RFC 7617), checked against the passwords of `[user.NAME]`.
//!
//! A check against a SCRAM verifier costs a key derivation, so there is one at a time, and who was let in is
//! remembered for a while by a keyed hash of his credentials. Neither they nor the header are kept or logged.

use crate::auth::exchange::Step;
use crate::auth::keys::{self, Key};
use crate::auth::{Failure, Users};
use crate::clock;
use crate::config::{Config, Right, Rights};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// How long somebody waits for the checks before his.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a check stands: a board asks for seven pages every two seconds.
const STANDS: Duration = Duration::from_secs(30);
/// Users remembered at once.
const REMEMBERED: usize = 64;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Address, for the log.
    pub(super) peer: String,
    /// Whether that is this machine.
    pub(super) local: bool,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// He has not said who he is, or not proved it.
    Unknown,
    /// He has, and may not.
    Missing(Right),
    /// Too many want to prove it at once.
    Busy,
}

/// Who lets in.
pub(super) struct Door {
    checks: Arc<Semaphore>,
    passed: Mutex<Passed>,
}

impl Door {
    pub(super) fn new() -> Door {
        Door { checks: Arc::new(Semaphore::new(1)), passed: Mutex::new(Passed::new(keys::random())) }
    }

    /// Keeps it busy.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> tokio::sync::OwnedSemaphorePermit {
        self.checks.clone().acquire_owned().await.expect("never closed")
    }

    /// The rights of a caller, if this one is among them.
    ///
    /// # Errors
    /// [`Refusal`]. Cancel safe; a check that has begun goes on to its end.
    pub(super) async fn let_in(
        &self,
        right: Right,
        (config, users): (&Config, Arc<Users>),
        caller: &Caller,
        headers: &HeaderMap,
    ) -> Result<Rights, Refusal> {
        let anonymous = config.anonymous_rights(caller.local);
        // Nobody has more of what is served here than these.
        if anonymous.has(right) {
            return Ok(anonymous);
        }
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let (Some(header), None) = (given.next(), given.next()) else { return Err(Refusal::Unknown) };
        let credentials = Credentials::read(header.as_bytes()).ok_or(Refusal::Unknown)?;
        self.check(&users, &credentials, caller).await?;
        let rights = config.admin.rights(credentials.user());
        if rights.has(right) { Ok(rights) } else { Err(Refusal::Missing(right)) }
    }

    async fn check(
        &self,
        users: &Arc<Users>,
        credentials: &Credentials,
        caller: &Caller,
    ) -> Result<(), Refusal> {
        let mark = self.passed.lock().mark(credentials);
        // Remembered or not, a password that has expired since is none.
        let passed = || {
            let lasts = users.lasts(credentials.user(), clock::since_epoch());
            lasts && self.passed.lock().knows(users, &mark, clock::now())
        };
        if passed() {
            return Ok(());
        }
        let permit = tokio::time::timeout(PATIENCE, self.checks.clone().acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok).ok_or(Refusal::Busy)?;
        // The one before may have been the same.
        if passed() {
            return Ok(());
        }
        let mut exchange = users.begin_clear(credentials.user(), clock::since_epoch());
        let password = credentials.message();
        // A task of its own, which keeps its place until the derivation is over, whether somebody still waits or not.
        let checked = tokio::spawn(async move {
            let _permit = permit;
            let mut unsent = BytesMut::new();
            match exchange.first(&mut unsent) {
                Step::More => exchange.step(&password, &mut unsent).await,
                step => step,
            }
        });
        match checked.await.unwrap_or(Step::Failed(Failure::Interrupted)) {
            Step::Done => {
                self.passed.lock().learn(users, mark, clock::now());
                Ok(())
            }
            Step::Failed(failure) => {
                let user = credentials.user();
                tracing::info!(client = caller.peer, user, %failure, "authentication over HTTP failed");
                Err(Refusal::Unknown)
            }
            Step::More => Err(Refusal::Unknown),
        }
    }
}

/// `user:password`, wiped when dropped.
struct Credentials {
    text: Zeroizing<Vec<u8>>,
    user: String,
}

impl Credentials {
    /// Of an Authorization header: `Basic`, in any case, and base64.
    fn read(header: &[u8]) -> Option<Credentials> {
        let at = header.iter().position(|byte| *byte == b' ')?;
        let (scheme, rest) = header.split_at(at);
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return None;
        }
        let text = Zeroizing::new(STANDARD.decode(rest.trim_ascii()).ok()?);
        if text.iter().any(u8::is_ascii_control) {
            return None;
        }
        // A user's name has no colon; his password may.
        let colon = text.iter().position(|byte| *byte == b':')?;
        let user = std::str::from_utf8(&text[..colon]).ok()?.to_owned();
        Some(Credentials { text, user })
    }

    fn user(&self) -> &str {
        &self.user
    }

    /// The password as the body of a PasswordMessage.
    fn message(&self) -> Zeroizing<Vec<u8>> {
        let password = &self.text[self.user.len() + 1..];
        let mut message = Zeroizing::new(Vec::with_capacity(password.len() + 1));
        message.extend_from_slice(password);
        message.push(0);
        message
    }
}

/// Credentials that were right a short time ago, each as a hash that is of no use without the key.
struct Passed {
    key: Zeroizing<Key>,
    /// Whose passwords they are: with another configuration everybody proves himself again.
    users: Weak<Users>,
    until: HashMap<Key, Instant>,
}

impl Passed {
    fn new(key: Key) -> Passed {
        Passed { key: Zeroizing::new(key), users: Weak::new(), until: HashMap::new() }
    }

    fn mark(&self, credentials: &Credentials) -> Key {
        keys::hmac(&self.key[..], &credentials.text)
    }

    fn knows(&self, users: &Arc<Users>, mark: &Key, now: Instant) -> bool {
        std::ptr::eq(self.users.as_ptr(), Arc::as_ptr(users))
            && self.until.get(mark).is_some_and(|until| now < *until)
    }

    fn learn(&mut self, users: &Arc<Users>, mark: Key, now: Instant) {
        // The weak count keeps the address from being another's.
        if !std::ptr::eq(self.users.as_ptr(), Arc::as_ptr(users)) {
            self.until.clear();
            self.users = Arc::downgrade(users);
        }
        self.until.retain(|_, until| now < *until);
        if self.until.len() >= REMEMBERED {
            let oldest = self.until.iter().min_by_key(|(_, until)| **until).map(|(mark, _)| *mark);
            oldest.map(|mark| self.until.remove(&mark));
        }
        self.until.insert(mark, now + STANDS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use proptest::prelude::*;

    fn read(header: &str) -> Option<(String, String)> {
        let credentials = Credentials::read(header.as_bytes())?;
        let message = credentials.message();
        let password = String::from_utf8_lossy(message.strip_suffix(b"\0")?).into_owned();
        Some((credentials.user().to_owned(), password))
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn credentials_are_those_of_rfc_7617() {
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        // RFC 7617 §2 and §2.1.
        assert_eq!(read("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), pair("Aladdin", "open sesame"));
        assert_eq!(read("Basic dGVzdDoxMjPCow=="), pair("test", "123\u{a3}"));
        assert_eq!(read("bAsIc  QWxhZGRpbjpvcGVuIHNlc2FtZQ== "), pair("Aladdin", "open sesame"));
        assert_eq!(read(&basic("a:b:c")), pair("a", "b:c"));
        assert_eq!(read(&basic("a:")), pair("a", ""));
        assert_eq!(read(&basic(":b")), pair("", "b"));
        for wrong in [
            "",
            "Basic",
            "Basic ",
            "Basic %%%%",
            "Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ",
            &basic("no colon"),
            &basic("a:b\0"),
            &basic("a\n:b"),
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        assert!(Credentials::read(&[b"Basic ", STANDARD.encode(b"\xff:b").as_bytes()].concat()).is_none());
    }

    proptest! {
        #[test]
        fn what_was_sent_is_what_is_checked(user in "[^:\\p{Cc}]{0,20}", password in "[^\\p{Cc}]{0,40}") {
            prop_assert_eq!(read(&basic(&format!("{user}:{password}"))), Some((user, password)));
        }

        #[test]
        fn any_header_is_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..60), honest in any::<bool>(), colon in 0_usize..60
        ) {
            let text = [b"Basic ", STANDARD.encode(&bytes).as_bytes()].concat();
            let read = Credentials::read(if honest { &text } else { &bytes });
            if let Some(credentials) = &read {
                prop_assert!(!credentials.user().contains(':'));
                prop_assert_eq!(credentials.message().iter().filter(|byte| **byte == 0).count(), 1);
            }
            // Without control characters and with a name before its colon, nothing is refused.
            let mut printable: Vec<u8> = bytes.iter().map(|byte| byte % 0x5f + b' ').collect();
            printable.insert(colon.min(printable.len()), b':');
            let header = [b"basic ", STANDARD.encode(&printable).as_bytes()].concat();
            prop_assert!(Credentials::read(&header).is_some());
        }
    }

    #[test]
    fn who_has_passed_is_remembered_for_a_while_and_not_beyond_a_reload() {
        let users = || Arc::new(Users::new(&Config::default()).unwrap());
        let (first, second, start) = (users(), users(), Instant::now());
        let mut passed = Passed::new([7; 32]);
        let marks = ["a:b", "a:c", "ab:"]
            .map(|text| passed.mark(&Credentials::read(basic(text).as_bytes()).unwrap()));
        assert!(!passed.knows(&first, &marks[0], start));
        passed.learn(&first, marks[0], start);
        assert!(passed.knows(&first, &marks[0], start + STANDS - Duration::from_millis(1)));
        assert!(!passed.knows(&first, &marks[0], start + STANDS));
        assert!(!passed.knows(&first, &marks[1], start) && !passed.knows(&first, &marks[2], start));
        assert!(!passed.knows(&second, &marks[0], start), "another configuration");
        passed.learn(&second, marks[1], start);
        assert!(!passed.knows(&first, &marks[0], start) && !passed.knows(&second, &marks[0], start));
        assert!(passed.knows(&second, &marks[1], start));
        assert_ne!(Passed::new([8; 32]).mark(&Credentials::read(basic("a:b").as_bytes()).unwrap()), marks[0]);
    }

    #[test]
    fn only_so_many_are_remembered() {
        let users = Arc::new(Users::new(&Config::default()).unwrap());
        let (mut passed, start) = (Passed::new([7; 32]), Instant::now());
        let mark = |n: usize| keys::hmac(b"", &n.to_be_bytes());
        let at = |n: usize| start + Duration::from_millis(n as u64);
        for n in 0..REMEMBERED + 3 {
            passed.learn(&users, mark(n), at(n));
        }
        assert_eq!(passed.until.len(), REMEMBERED);
        let known = |n: usize| passed.knows(&users, &mark(n), at(REMEMBERED + 3));
        assert_eq!((known(2), known(3), known(REMEMBERED + 2)), (false, true, true), "the oldest go");
    }
}

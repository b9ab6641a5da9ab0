//! Every user of a configuration, with the secrets read and ready.
//!
//! Built at start and at every reload; sessions hold the one they logged in with.

use super::exchange::{Exchange, Failure, begin};
use super::verifier::{MockKey, SecretKind, Verifier, VerifierError};
use crate::config::{AuthMethod, Config, Secret, User};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// The users that may log in, and how.
#[derive(Debug)]
pub struct Users {
    known: HashMap<String, Known>,
    mock: MockKey,
}

/// What a login of one of them is checked against.
#[derive(Debug)]
struct Known {
    verifier: Verifier,
    /// The one before, which will do as well.
    previous: Option<Verifier>,
    /// Time since the epoch until which it is good.
    until: Option<Duration>,
}

/// A user whose secret cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("user \"{user}\": {reason}")]
pub struct UserError {
    /// `[user.NAME]`
    pub user: String,
    /// What is wrong with it.
    pub reason: VerifierError,
}

impl Known {
    fn verifiers(&self) -> impl Iterator<Item = &Verifier> {
        std::iter::once(&self.verifier).chain(&self.previous)
    }

    fn verifier_of(&self, secret: &Secret) -> Option<&Verifier> {
        self.verifiers().find(|verifier| verifier.is_of(secret))
    }
}

impl Users {
    /// Reads every `[user.*]` of a configuration.
    ///
    /// With method `scram-sha-256` this derives a verifier for each clear password, 0.8 ms each:
    /// not for a thread that serves sessions.
    ///
    /// # Errors
    /// The first user, in the order of names, whose secret cannot be used.
    pub fn new(config: &Config) -> Result<Users, UserError> {
        Users::read(config.auth.method, &config.users, MockKey::random(), &HashMap::new())
            .map(|users| users.beside(config))
    }

    /// Reads a new configuration, keeping what was derived for users whose secret is the same, and
    /// every salt.
    ///
    /// # Errors
    /// As [`Users::new`].
    pub fn renew(&self, config: &Config) -> Result<Users, UserError> {
        Users::read(config.auth.method, &config.users, self.mock.clone(), &self.known)
            .map(|users| users.beside(config))
    }

    fn read(
        method: AuthMethod,
        users: &BTreeMap<String, User>,
        mut mock: MockKey,
        old: &HashMap<String, Known>,
    ) -> Result<Users, UserError> {
        let mut known = HashMap::new();
        for (name, user) in users {
            let Some(secret) = &user.password else { continue };
            let fault = |reason| UserError { user: name.clone(), reason };
            // What was derived serves on where a password has become the previous one.
            let old = old.get(name);
            let verifier_of = |secret: &Secret| match old.and_then(|old| old.verifier_of(secret)) {
                Some(same) => Ok(same.clone()),
                None => Verifier::parse(secret).map_err(fault),
            };
            let mut verifier = verifier_of(secret)?;
            let mut previous = user.previous_password.as_ref().map(verifier_of).transpose()?;
            // By rules it may be any method.
            if matches!(method, AuthMethod::ScramSha256 | AuthMethod::Hba) {
                let given = verifier.given().or(previous.as_ref().and_then(Verifier::given)).cloned();
                verifier = verifier.prepared(name, &mock, given.as_ref());
                previous = previous.map(|previous| previous.prepared(name, &mock, given.as_ref()));
            }
            known.insert(name.clone(), Known { verifier, previous, until: user.valid_until });
        }
        mock.derive_always = matches!(method, AuthMethod::Plain | AuthMethod::Hba)
            && known.values().flat_map(Known::verifiers).any(|verifier| verifier.kind() == SecretKind::Scram);
        Ok(Users { known, mock })
    }

    /// Users that the server is asked about have verifiers too, as a rule.
    fn beside(mut self, config: &Config) -> Users {
        let plain = matches!(config.auth.method, AuthMethod::Plain | AuthMethod::Hba);
        self.mock.derive_always |= plain && config.auth.query.is_some();
        self
    }

    /// Starts a login of a user that the server was asked about.
    #[must_use]
    pub fn begin_as(&self, method: AuthMethod, user: &str, secret: Result<&Verifier, Failure>) -> Exchange {
        beginning(method, user, secret, &self.mock)
    }

    /// The secret of a user; `None` if there is no such user or he has no password.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Verifier> {
        self.known.get(name).map(|user| &user.verifier)
    }

    /// Starts a login by a password in clear where the configuration's method is another one: over HTTP. As long
    /// for a user who does not exist as for one who does.
    #[must_use]
    pub fn begin_clear(&self, user: &str, now: Duration) -> Exchange {
        let derive_always =
            self.known.values().flat_map(Known::verifiers).any(|it| it.kind() == SecretKind::Scram);
        let mut mock = self.mock.clone();
        mock.derive_always = derive_always;
        let (secret, previous) = self.secrets(user, now);
        beginning(AuthMethod::Plain, user, secret, &mock).or(previous)
    }

    /// Whether there is such a user whose password is still good at this time since the epoch.
    #[must_use]
    pub fn lasts(&self, user: &str, now: Duration) -> bool {
        self.secrets(user, now).0.is_ok()
    }

    /// What will do at this time since the epoch.
    fn secrets(&self, user: &str, now: Duration) -> (Result<&Verifier, Failure>, Option<&Verifier>) {
        let known = self.known.get(user).ok_or(Failure::NoSecret);
        let lasts = |known: &&Known| known.until.is_none_or(|until| until >= now);
        let known = known.and_then(|known| Some(known).filter(lasts).ok_or(Failure::Expired));
        (known.map(|known| &known.verifier), known.ok().and_then(|known| known.previous.as_ref()))
    }

    /// Starts a login by this method at this time since the epoch.
    #[must_use]
    pub fn begin(&self, method: AuthMethod, user: &str, now: Duration) -> Exchange {
        let (secret, previous) = self.secrets(user, now);
        self.begin_as(method, user, secret).or(previous)
    }
}

fn beginning(method: AuthMethod, user: &str, secret: Result<&Verifier, Failure>, mock: &MockKey) -> Exchange {
    let exchange = begin(method, user, secret.ok(), mock);
    match secret {
        Err(failure) => exchange.failing(failure),
        Ok(_) => exchange,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: AuthMethod, users: &[(&str, Option<&str>)]) -> Result<Users, UserError> {
        Users::read(method, &configured(users), MockKey::random(), &HashMap::new())
    }

    fn configured(users: &[(&str, Option<&str>)]) -> BTreeMap<String, User> {
        let user = |text: &str| Secret::new(text.to_owned());
        users
            .iter()
            .map(|(name, text)| ((*name).to_owned(), User { password: text.map(user), ..User::default() }))
            .collect()
    }

    #[test]
    fn a_secret_that_cannot_be_used_is_named_with_its_user_and_not_quoted() {
        let error = read(AuthMethod::Plain, &[("a", Some("fine")), ("b", Some("SCRAM-SHA-256$hunter2"))]);
        let error = error.unwrap_err();
        assert_eq!((&error.user[..], error.reason), ("b", VerifierError::Scram));
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_user_without_a_password_has_no_verifier() {
        let users = read(AuthMethod::Plain, &[("a", Some("x")), ("b", None)]).unwrap();
        assert!(users.get("a").is_some());
        assert!(users.get("b").is_none());
        assert!(users.get("c").is_none());
    }

    #[test]
    fn a_reload_derives_again_only_what_changed_and_keeps_every_salt() {
        let method = AuthMethod::ScramSha256;
        let old = read(method, &[("a", Some("x")), ("b", Some("x"))]).unwrap();
        let salt = |users: &Users, name: &str| {
            users.get(name).and_then(|v| v.scram(name, &users.mock)).map(|v| v.salt.clone())
        };
        let users = configured(&[("a", Some("x")), ("b", Some("y"))]);
        let new = Users::read(method, &users, old.mock.clone(), &old.known).unwrap();
        let verifier = |users: &Users, name: &str| {
            std::ptr::from_ref(users.get(name).unwrap().scram(name, &users.mock).unwrap())
        };
        assert_eq!(verifier(&old, "a"), verifier(&new, "a"));
        assert_ne!(verifier(&old, "b"), verifier(&new, "b"));
        assert_eq!(salt(&old, "b"), salt(&new, "b"));
        assert_eq!(old.mock.salt("ghost"), new.mock.salt("ghost"));
    }

    #[test]
    fn two_passwords_of_a_user_have_one_salt_whatever_they_were_before() {
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
            WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let mut old = read(AuthMethod::ScramSha256, &[]).unwrap();
        // Each step starts from what the one before has derived.
        for (password, previous) in [("x", "w"), (text, "x"), ("y", text), ("y", "x"), ("x", "y")] {
            let mut users = configured(&[("a", Some(password))]);
            users.get_mut("a").unwrap().previous_password = Some(Secret::new(previous.to_owned()));
            old = Users::read(AuthMethod::ScramSha256, &users, old.mock.clone(), &old.known).unwrap();
            let known = &old.known["a"];
            let scram = |verifier: &Verifier| verifier.scram("a", &old.mock).unwrap().clone();
            let (now, before) = (scram(&known.verifier), scram(known.previous.as_ref().unwrap()));
            assert!(now.costs_as(&before), "{password} {previous}");
            let salt = if [password, previous].contains(&text) {
                before.salt.clone()
            } else {
                old.mock.salt("a").to_vec()
            };
            assert_eq!(now.salt, salt, "{password} {previous}");
        }
    }

    #[test]
    fn one_scram_verifier_makes_every_clear_login_as_dear() {
        let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
            WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let dear = |method, secret| read(method, &[("a", Some(secret))]).unwrap().mock.derive_always;
        assert!(dear(AuthMethod::Plain, verifier));
        assert!(!dear(AuthMethod::Plain, "x"));
        assert!(!dear(AuthMethod::ScramSha256, verifier));
    }
}

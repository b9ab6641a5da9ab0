//! Who may do what on the console and over HTTP, as `[admin]` says. What needs which right is said where it is
//! done: in `console` and in `http`.

use super::fault::Wrong;
use super::{Admin, AuthMethod, Config};

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// See the views.
    View,
    /// Change something: every command.
    Act,
    /// See the texts of statements in the views.
    Sql,
}

impl Right {
    /// All there are.
    pub const ALL: [Right; 3] = [Right::View, Right::Act, Right::Sql];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Right::View => "view",
            Right::Act => "act",
            Right::Sql => "sql",
        }
    }

    /// The key whose users have it.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Right::View => "admin.view",
            Right::Act => "admin.act",
            Right::Sql => "admin.sql",
        }
    }
}

/// A set of rights. Every other right implies [`Right::View`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights {
    view: bool,
    act: bool,
    sql: bool,
}

impl Rights {
    /// None at all.
    pub const NONE: Rights = Rights { view: false, act: false, sql: false };
    /// Every one.
    pub const ALL: Rights = Rights { view: true, act: true, sql: true };
    /// To see everything, and to change nothing.
    pub const SEES_ALL: Rights = Rights { act: false, ..Rights::ALL };

    /// These, and what they imply.
    #[must_use]
    pub fn of(rights: &[Right]) -> Rights {
        let has = |right| rights.contains(&right);
        Rights { view: !rights.is_empty(), act: has(Right::Act), sql: has(Right::Sql) }
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn has(self, right: Right) -> bool {
        match right {
            Right::View => self.view,
            Right::Act => self.act,
            Right::Sql => self.sql,
        }
    }
}

/// Who has opened the console. What that is good for is asked anew for each statement, because a reload may change
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeper {
    /// The role that has logged in.
    pub user: Box<str>,
    /// Whether from this machine.
    pub local: bool,
}

impl Keeper {
    /// What it may do on the console. While `[admin]` names nobody the console is open to this machine where nobody
    /// is asked for a password, and closed otherwise.
    #[must_use]
    pub fn rights(&self, config: &Config) -> Rights {
        if config.admin.names_anybody() {
            config.admin.rights(&self.user)
        } else if self.local && config.auth.method == AuthMethod::Trust {
            Rights::ALL
        } else {
            Rights::NONE
        }
    }
}

impl Admin {
    /// Those who have this right, but for the users who have all.
    fn list(&self, right: Right) -> &[String] {
        match right {
            Right::View => &self.view,
            Right::Act => &self.act,
            Right::Sql => &self.sql,
        }
    }

    fn names_anybody(&self) -> bool {
        !self.users.is_empty() || Right::ALL.iter().any(|right| !self.list(*right).is_empty())
    }

    /// What a user may do who has proved who he is.
    #[must_use]
    pub fn rights(&self, user: &str) -> Rights {
        let named = |names: &[String]| names.iter().any(|name| name == user);
        if named(&self.users) {
            return Rights::ALL;
        }
        let has: Vec<Right> = Right::ALL.into_iter().filter(|right| named(self.list(*right))).collect();
        Rights::of(&has)
    }
}

impl Config {
    /// What may be done over HTTP by somebody who does not say who he is: on this machine everything is shown
    /// while `[admin]` names nobody.
    #[must_use]
    pub fn anonymous_rights(&self, local: bool) -> Rights {
        if local && !self.admin.names_anybody() { Rights::SEES_ALL } else { Rights::NONE }
    }

    /// Whether such a user can log in over HTTP, where only `[user.NAME]` is known.
    fn has_password(&self, user: &String) -> bool {
        self.users.get(user).is_some_and(|user| user.password.is_some())
    }
}

/// Users named in vain, by the key that names them. Those of `admin.users` have never had to be known.
pub(super) fn faults(config: &Config) -> Vec<(&'static str, Wrong)> {
    let mut faults = Vec::new();
    // By rules, each may be asked for something else.
    let asks = config.auth.method.asks_passwords() && config.auth.query.is_none();
    for right in Right::ALL {
        let unknown = config.admin.list(right).iter().find(|user| !config.users.contains_key(*user));
        if let Some(user) = unknown.filter(|_| asks) {
            let what = format!("there is no [user.{user}], so {user:?} cannot log in");
            faults.push((
                right.key(),
                Wrong::Login { what, remedy: "add one with a password, or take the name out" },
            ));
        }
    }
    let admin = &config.admin;
    let named = [&admin.users, &admin.view, &admin.act, &admin.sql].into_iter().flatten();
    if admin.metrics_login
        && admin.address.is_some()
        && !named.into_iter().any(|user| config.has_password(user))
    {
        let what = "nobody who is named in admin.view, act, sql or users has a password in a [user.NAME], so nobody \
                    could read /metrics"
            .to_owned();
        faults.push((
            "admin.metrics_login",
            Wrong::Login { what, remedy: "add such a user, or set it to false" },
        ));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(method: AuthMethod) -> Config {
        let mut config = Config::default();
        config.auth.method = method;
        config
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn shown(rights: Rights) -> String {
        Right::ALL
            .into_iter()
            .filter(|right| rights.has(*right))
            .map(Right::name)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_right_comes_with_the_sight_of_views() {
        for (given, has) in [
            (&[][..], ""),
            (&[Right::View][..], "view"),
            (&[Right::Act], "view act"),
            (&[Right::Sql], "view sql"),
            (&[Right::Act, Right::Sql], "view act sql"),
        ] {
            assert_eq!(shown(Rights::of(given)), has);
        }
        assert_eq!((shown(Rights::ALL), shown(Rights::NONE)), ("view act sql".into(), String::new()));
        assert_eq!(shown(Rights::SEES_ALL), "view sql");
    }

    #[test]
    fn lists_add_up_and_hold_for_whom_they_name() {
        let mut config = config(AuthMethod::Trust);
        config.admin.users = names(&["all"]);
        config.admin.view = names(&["viewer", "all"]);
        config.admin.act = names(&["operator", "both"]);
        config.admin.sql = names(&["reader", "both"]);
        for (user, has) in [
            ("all", "view act sql"),
            ("viewer", "view"),
            ("operator", "view act"),
            ("reader", "view sql"),
            ("both", "view act sql"),
            ("nobody", ""),
            ("", ""),
            ("All", ""),
        ] {
            for local in [true, false] {
                let keeper = Keeper { user: user.into(), local };
                assert_eq!(shown(keeper.rights(&config)), has, "{user}");
            }
        }
        assert_eq!([true, false].map(|local| config.anonymous_rights(local)), [Rights::NONE; 2]);
    }

    #[test]
    fn while_nobody_is_named_this_machine_is_let_in() {
        let keeper = |local| Keeper { user: "anybody".into(), local };
        for method in [
            AuthMethod::Trust,
            AuthMethod::Plain,
            AuthMethod::Md5,
            AuthMethod::ScramSha256,
            AuthMethod::Cert,
            AuthMethod::Peer,
            AuthMethod::Hba,
        ] {
            let config = config(method);
            let open = if method == AuthMethod::Trust { Rights::ALL } else { Rights::NONE };
            assert_eq!(keeper(true).rights(&config), open, "{method:?}");
            assert_eq!(keeper(false).rights(&config), Rights::NONE, "{method:?}");
            assert_eq!(config.anonymous_rights(true), Rights::SEES_ALL);
            assert_eq!(config.anonymous_rights(false), Rights::NONE);
        }
        // One name in any list closes both.
        for list in 0..4 {
            let mut config = config(AuthMethod::Trust);
            let admin = &mut config.admin;
            *[&mut admin.users, &mut admin.view, &mut admin.act, &mut admin.sql][list] = names(&["other"]);
            assert_eq!(keeper(true).rights(&config), Rights::NONE);
            assert_eq!(config.anonymous_rights(true), Rights::NONE);
        }
    }
}

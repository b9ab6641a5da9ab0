//! Classes of work and the slots kept for short work: the nouns, how they are written, and the classes
//! that are always there (budgets.md §2.3 B14, §3.2). Which lease belongs to which class, and what
//! that is worth, is the book's business.

use super::Share;
use super::rules::{Raw, Rule, ShareOf};
use regex_lite::Regex;
use std::collections::BTreeMap;
use std::time::Duration;

/// The class of what names none.
pub const NORMAL: &str = "normal";

/// `[class.NAME]`: a scheduling class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassRule {
    /// B14: leases kept free for this class in each pool.
    pub reserve: Reserve,
    /// B14: leases of this class at once in one pool; always enforced.
    pub cap: Share,
    /// Who goes first, the higher the sooner; `None` = 75 with a reserve, 40 without. `critical` has
    /// 100, `normal` 50, `batch` 10.
    pub priority: Option<u32>,
    /// B9 of this class; `None` = the pool's.
    pub max_wait: Option<Duration>,
    /// What belongs to the class without naming it; any of them.
    pub matches: Vec<ClassMatch>,
}

impl Default for ClassRule {
    fn default() -> Self {
        ClassRule {
            reserve: Reserve::Off,
            cap: Share::Percent(100.0),
            priority: None,
            max_wait: None,
            matches: Vec::new(),
        }
    }
}

impl ClassRule {
    /// Leases kept free in a pool of this size; one is always left to everybody else.
    #[must_use]
    pub fn reserved(&self, size: usize) -> usize {
        let wanted = match self.reserve {
            Reserve::Off => return 0,
            Reserve::Auto => size.div_ceil(20),
            Reserve::Of(Share::Count(count)) => return count as usize,
            Reserve::Of(Share::Percent(percent)) => (size as f64 * percent / 100.0).ceil() as usize,
        };
        wanted.min(size.saturating_sub(1))
    }

    /// `priority`, or what it comes to if it was left out.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.priority.unwrap_or(if self.reserve == Reserve::Off { 40 } else { 75 })
    }
}

/// The classes that exist without being written.
pub(super) fn built_in() -> BTreeMap<String, ClassRule> {
    let critical = ClassRule {
        reserve: Reserve::Auto,
        cap: Share::Percent(50.0),
        priority: Some(100),
        ..ClassRule::default()
    };
    let normal = ClassRule { priority: Some(50), ..ClassRule::default() };
    let batch = ClassRule { cap: Share::Percent(50.0), priority: Some(10), ..ClassRule::default() };
    [("critical", critical), (NORMAL, normal), ("batch", batch)]
        .into_iter()
        .map(|(name, rule)| (name.to_owned(), rule))
        .collect()
}

/// Leases kept free for a class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reserve {
    /// None.
    Off,
    /// 5 % of the pool, at least 1, from the moment the class is first seen in the pool: who never uses
    /// it pays nothing.
    Auto,
    /// So many, always.
    Of(Share),
}

/// How a reserve is written.
pub(super) struct Reserved;

impl Rule for Reserved {
    type Value = Reserve;
    fn read(&self, raw: &Raw) -> Option<Reserve> {
        match raw.text().map(str::trim) {
            Some("off") => Some(Reserve::Off),
            Some("auto") => Some(Reserve::Auto),
            _ => ShareOf.read(raw).map(Reserve::Of),
        }
    }
    fn show(&self, value: &Reserve) -> String {
        match value {
            Reserve::Off => "off".to_owned(),
            Reserve::Auto => "auto".to_owned(),
            Reserve::Of(share) => ShareOf.show(share),
        }
    }
    fn expected(&self) -> String {
        format!("{}, \"auto\" or \"off\"", ShareOf.expected())
    }
}

/// One way to recognise work of a class.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassMatch {
    /// `tag:KEY=VALUE`: the tag has this value.
    Tag(MatchKey, String),
    /// `route:REGEX`: found in the route.
    Route(Pattern),
    /// `first_stmt:REGEX`: found in the first statement, in lower case, blanks in front cut off, its
    /// first [`STATEMENT_PREFIX`] bytes.
    FirstStatement(Pattern),
}

/// Of a first statement, so much is looked at.
pub const STATEMENT_PREFIX: usize = 128;

/// A tag a class may be recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchKey {
    /// `class`
    Class,
    /// `tenant`
    Tenant,
    /// `route`
    Route,
    /// `user_id`
    UserId,
}

impl MatchKey {
    const NAMES: [(&'static str, MatchKey); 4] = [
        ("class", MatchKey::Class),
        ("tenant", MatchKey::Tenant),
        ("route", MatchKey::Route),
        ("user_id", MatchKey::UserId),
    ];
}

/// A regular expression that compiles; equal if written alike.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles it; `None` if it is none.
    #[must_use]
    pub fn new(text: &str) -> Option<Pattern> {
        Regex::new(text).ok().map(Pattern)
    }

    /// Whether it is found anywhere in a text.
    #[must_use]
    pub fn is_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// How one of `match` is written.
pub(super) struct Matching;

impl Rule for Matching {
    type Value = ClassMatch;
    fn read(&self, raw: &Raw) -> Option<ClassMatch> {
        match raw.text()?.split_once(':')? {
            ("tag", tag) => {
                let (key, value) = tag.split_once('=')?;
                let (_, key) = MatchKey::NAMES.into_iter().find(|(name, _)| *name == key.trim())?;
                (!value.is_empty()).then(|| ClassMatch::Tag(key, value.to_owned()))
            }
            ("route", pattern) => Pattern::new(pattern).map(ClassMatch::Route),
            ("first_stmt", pattern) => Pattern::new(pattern).map(ClassMatch::FirstStatement),
            _ => None,
        }
    }
    fn show(&self, value: &ClassMatch) -> String {
        match value {
            ClassMatch::Tag(key, value) => {
                let name =
                    MatchKey::NAMES.iter().find(|(_, other)| other == key).map_or("", |(name, _)| name);
                format!("tag:{name}={value}")
            }
            ClassMatch::Route(pattern) => format!("route:{}", pattern.0.as_str()),
            ClassMatch::FirstStatement(pattern) => format!("first_stmt:{}", pattern.0.as_str()),
        }
    }
    fn expected(&self) -> String {
        "\"tag:KEY=VALUE\" (class, tenant, route or user_id), \"route:REGEX\" or \"first_stmt:REGEX\" \
         with a regular expression that compiles"
            .to_owned()
    }
}

/// Slots of a pool that are never given to work predicted to be long (budgets.md §3.2, F4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Express {
    /// A tenth of the pool, at least 1, in pools of 8 and more.
    Auto,
    /// So many; fewer if the pool is not larger than that.
    Slots(usize),
    /// None.
    Off,
}

impl Express {
    /// Slots of a pool of this size; at least one is left to long work.
    #[must_use]
    pub fn of(self, size: usize) -> usize {
        match self {
            Express::Auto if size >= 8 => size.div_ceil(10),
            Express::Auto | Express::Off => 0,
            Express::Slots(slots) => slots.min(size.saturating_sub(1)),
        }
    }
}

/// How express slots are written.
pub(super) struct Expressly;

impl Rule for Expressly {
    type Value = Express;
    fn read(&self, raw: &Raw) -> Option<Express> {
        match raw.text().map(str::trim) {
            Some("auto") => Some(Express::Auto),
            Some("off") => Some(Express::Off),
            _ => super::rules::count(1_usize, 1_000).read(raw).map(Express::Slots),
        }
    }
    fn show(&self, value: &Express) -> String {
        match value {
            Express::Auto => "auto".to_owned(),
            Express::Off => "off".to_owned(),
            Express::Slots(slots) => slots.to_string(),
        }
    }
    fn expected(&self) -> String {
        "a whole number from 1 to 1000, \"auto\" or \"off\"".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    #[test]
    fn a_match_is_a_tag_or_a_pattern_that_compiles() {
        for shown in ["tag:class=billing", "route:^/api/.*", "first_stmt:^insert into llm_requests"] {
            assert_eq!(Matching.show(&Matching.read(&text(shown)).unwrap()), shown);
        }
        for wrong in ["billing", "tag:class", "tag:class=", "tag:color=red", "route:(", "comment:x"] {
            assert_eq!(Matching.read(&text(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn express_slots_begin_at_eight_and_never_take_the_whole_pool() {
        let auto: Vec<usize> = [1, 7, 8, 10, 11, 20, 30].map(|size| Express::Auto.of(size)).into();
        assert_eq!(auto, [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!((Express::Slots(4).of(20), Express::Slots(4).of(3), Express::Slots(4).of(1)), (4, 2, 0));
        assert_eq!(Express::Off.of(100), 0);
        assert_eq!(Expressly.read(&Raw::Integer(3)), Some(Express::Slots(3)));
    }

    #[test]
    fn a_class_with_a_reserve_stands_before_normal() {
        let classes = built_in();
        let rank = |name: &str| classes[name].rank();
        let own = ClassRule { reserve: Reserve::Of(Share::Count(1)), ..ClassRule::default() };
        assert!(rank("critical") > own.rank() && own.rank() > rank("normal"));
        assert!(rank("normal") > ClassRule::default().rank() && ClassRule::default().rank() > rank("batch"));
        assert_eq!(Reserved.read(&text("5%")), Some(Reserve::Of(Share::Percent(5.0))));
        assert_eq!(Reserved.read(&text("off")), Some(Reserve::Off));
    }
}

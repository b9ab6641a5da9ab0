//! Classes of work (B14): which class a claim belongs to, who goes before whom, and what each has of
//! a pool (budgets.md §3.2).
//!
//! A class is known by its number for as long as the process lives, also when a reload takes it out of
//! the configuration: then it is like any class without reserve or cap until its last lease is back.

use super::limits::part;
use super::turns::{Key, Kind, Ranking};
use super::{Claim, WaiterId};
use crate::config::{ClassMatch, ClassRule, Config, MatchKey, NORMAL, Reserve, Share};
use crate::tag::Tag;
use std::sync::Arc;

/// A class's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClassId(u16);

impl ClassId {
    pub(super) fn at(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(super) struct Class {
    pub(super) name: Arc<str>,
    pub(super) rule: ClassRule,
    /// The configuration has it.
    known: bool,
}

/// Every class there is.
#[derive(Debug)]
pub(super) struct Classes {
    all: Vec<Class>,
    /// By priority, the highest first.
    order: Vec<ClassId>,
    rules: Vec<(ClassMatch, ClassId)>,
    normal: ClassId,
    /// Claims with a class that nobody configured: they are normal.
    pub(super) unknown: u64,
}

impl Classes {
    pub(super) fn of(config: &Config) -> Self {
        let mut classes =
            Classes { all: Vec::new(), order: Vec::new(), rules: Vec::new(), normal: ClassId(0), unknown: 0 };
        classes.take_over(config);
        classes
    }

    pub(super) fn take_over(&mut self, config: &Config) {
        for class in &mut self.all {
            (class.known, class.rule) = (false, ClassRule::default());
        }
        for (name, rule) in &config.classes {
            let at = self.all.iter().position(|class| *class.name == **name).unwrap_or_else(|| {
                let rule = ClassRule::default();
                self.all.push(Class { name: name.as_str().into(), rule, known: false });
                self.all.len() - 1
            });
            (self.all[at].known, self.all[at].rule) = (true, rule.clone());
        }
        self.order = (0..self.all.len() as u16).map(ClassId).collect();
        // Of equal priority, the one whose name comes first.
        self.order.sort_by_key(|id| {
            let class = &self.all[id.at()];
            (std::cmp::Reverse(class.rule.rank()), class.name.clone())
        });
        self.rules.clear();
        for &id in &self.order {
            let matches = self.all[id.at()].rule.matches.iter();
            self.rules.extend(matches.map(|each| (each.clone(), id)));
        }
        self.normal = self.find(NORMAL).unwrap_or(ClassId(0));
    }

    fn find(&self, name: &str) -> Option<ClassId> {
        let at = self.all.iter().position(|class| class.known && *class.name == *name)?;
        Some(ClassId(at as u16))
    }

    /// The class of a claim: the one it names, else the first with a rule for it, else normal.
    pub(super) fn of_claim(&mut self, claim: &Claim) -> ClassId {
        if claim.tag.class.is_none() && self.rules.is_empty() {
            return self.normal;
        }
        if let Some(id) = claim.tag.class.as_ref().and_then(|name| self.find(name)) {
            return id;
        }
        let rule = self.rules.iter().find(|(rule, _)| holds(rule, claim));
        self.unknown += u64::from(rule.is_none() && claim.tag.class.is_some());
        rule.map_or(self.normal, |(_, id)| *id)
    }

    /// By priority, the highest first.
    pub(super) fn order(&self) -> &[ClassId] {
        &self.order
    }

    /// By number.
    pub(super) fn all(&self) -> &[Class] {
        &self.all
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get(&self, id: ClassId) -> &Class {
        &self.all[id.at()]
    }
}

fn holds(rule: &ClassMatch, claim: &Claim) -> bool {
    match rule {
        ClassMatch::Tag(key, value) => tagged(&claim.tag, *key).is_some_and(|tag| **tag == **value),
        ClassMatch::Route(pattern) => claim.tag.route.as_ref().is_some_and(|route| pattern.is_in(route)),
        ClassMatch::FirstStatement(pattern) => {
            claim.statement.as_ref().is_some_and(|statement| pattern.is_in(statement))
        }
    }
}

fn tagged(tag: &Tag, key: MatchKey) -> Option<&Arc<str>> {
    match key {
        MatchKey::Class => tag.class.as_ref(),
        MatchKey::Tenant => Some(&tag.tenant),
        MatchKey::Route => tag.route.as_ref(),
        MatchKey::UserId => tag.user_id.as_ref(),
    }
}

/// One class in one pool.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) in_use: u32,
    /// Leases kept free for it now.
    pub(super) reserve: u32,
    pub(super) cap: u32,
    /// Somebody has asked for it.
    seen: bool,
    /// Virtual time: no tenant that begins to wait starts before it.
    pub(super) v_now: u64,
    /// Tenants that may have the next backend, by what they have had, for each kind of line.
    pub(super) lines: [Ranking<Key, (u32, WaiterId)>; Kind::COUNT],
}

impl Part {
    /// Of its reserve, what nobody uses.
    pub(super) fn unmet(&self) -> u32 {
        self.reserve.saturating_sub(self.in_use)
    }

    /// Takes over its rule for a pool of this size.
    fn rule(&mut self, rule: &ClassRule, size: usize) {
        // All of a pool is all of it, overflow included.
        self.cap = if rule.cap == Share::Percent(100.0) { u32::MAX } else { part(rule.cap, size) };
        let held = rule.reserve != Reserve::Auto || self.seen;
        self.reserve = if held { rule.reserved(size).min(size.saturating_sub(1)) as u32 } else { 0 };
    }
}

/// All classes in one pool.
#[derive(Debug, Default)]
pub(super) struct Parts {
    parts: Vec<Part>,
    /// Σ reserves.
    pub(super) reserves: u32,
    /// Of these, what nobody uses.
    pub(super) unmet: u32,
}

impl Parts {
    pub(super) fn rules(&mut self, classes: &Classes, size: usize) {
        self.parts.resize_with(classes.len(), Part::default);
        for (part, class) in self.parts.iter_mut().zip(&classes.all) {
            part.rule(&class.rule, size);
        }
        // Somebody without a reserve must be able to go on, whatever was promised.
        let mut left = size.saturating_sub(1) as u32;
        for id in classes.order() {
            let part = &mut self.parts[id.at()];
            part.reserve = part.reserve.min(left);
            left -= part.reserve;
        }
        self.sum();
    }

    fn sum(&mut self) {
        self.reserves = self.parts.iter().map(|part| part.reserve).sum();
        self.unmet = self.parts.iter().map(Part::unmet).sum();
    }

    /// A claim of this class: from now on an automatic reserve is held. True if that is new.
    pub(super) fn see(&mut self, id: ClassId) -> bool {
        !std::mem::replace(&mut self.parts[id.at()].seen, true)
    }

    pub(super) fn of(&self, id: ClassId) -> &Part {
        &self.parts[id.at()]
    }

    pub(super) fn of_mut(&mut self, id: ClassId) -> &mut Part {
        &mut self.parts[id.at()]
    }

    pub(super) fn take(&mut self, id: ClassId) {
        let part = &mut self.parts[id.at()];
        self.unmet -= u32::from(part.unmet() > 0);
        part.in_use += 1;
    }

    pub(super) fn give(&mut self, id: ClassId) {
        let part = &mut self.parts[id.at()];
        part.in_use -= 1;
        self.unmet += u32::from(part.unmet() > 0);
    }

    /// Whether this class may have one of so many free slots, those kept for others left alone.
    pub(super) fn reserve_allows(&self, id: ClassId, spare: u32) -> bool {
        let own = self.parts[id.at()].unmet();
        own > 0 || spare > self.unmet
    }
}

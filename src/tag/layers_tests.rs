//! Layers and their resolution, against PostgreSQL's rules for SET and a naive twin.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(5);

fn rules() -> TagRules {
    TagRules { idle_ttl: TTL, ..TagRules::default() }
}

const WHO: Identity<'_> =
    Identity { user: "app", database: "db", application_name: "web", user_suffix: None };

fn session(key: Key, value: &str, now: Instant) -> Tags {
    let mut tags = Tags::default();
    tags.set(Scope::Session, key, Some(value), now).unwrap();
    tags
}

fn request(tags: &mut Tags, now: Instant) -> Option<String> {
    tags.resolve(&rules(), &WHO, now).request.as_deref().map(str::to_owned)
}

#[test]
fn untagged_work_belongs_to_the_user() {
    let now = Instant::now();
    let tag = Tags::default().resolve(&rules(), &WHO, now).clone();
    assert_eq!(*tag, Tag { tenant: "app".into(), ..Tag::default() });
    let odd = Identity { user: "a\nb", ..WHO };
    assert_eq!(&*Tags::default().resolve(&rules(), &odd, now).tenant, "a?b");
    let none = TagRules { tenant: vec![], ..rules() };
    assert_eq!(&*Tags::default().resolve(&none, &WHO, now).tenant, "app");
}

#[test]
fn the_configured_order_names_the_tenant() {
    let now = Instant::now();
    let who = Identity { user_suffix: Some("suffix"), ..WHO };
    let mut tags = Tags::default();
    tags.comment([("tenant", "comment")]);
    assert_eq!(&*tags.resolve(&rules(), &who, now).tenant, "suffix");
    tags.set(Scope::Startup, Key::Tenant, Some("startup"), now).unwrap();
    assert_eq!(&*tags.resolve(&rules(), &who, now).tenant, "startup");
    tags.set(Scope::Session, Key::Tenant, Some("set"), now).unwrap();
    assert_eq!(&*tags.resolve(&rules(), &who, now).tenant, "set");
    tags.set(Scope::Session, Key::Tenant, Some(""), now).unwrap();
    assert_eq!(&*tags.resolve(&rules(), &who, now).tenant, "startup");
    let reversed = TagRules { tenant: rules().tenant.into_iter().rev().collect(), ..rules() };
    tags.invalidate();
    assert_eq!(&*tags.resolve(&reversed, &who, now).tenant, "app");
}

#[test]
fn a_reset_of_all_takes_every_tag_back_to_the_start_up_and_ends_nothing() {
    let now = Instant::now();
    let mut tags = Tags::default();
    tags.set(Scope::Startup, Key::Tenant, Some("startup"), now).unwrap();
    assert!(!tags.is_set());
    tags.set(Scope::Session, Key::Tenant, Some("set"), now).unwrap();
    tags.set(Scope::Session, Key::RequestId, Some("r1"), now).unwrap();
    assert!(tags.is_set() && &*tags.resolve(&rules(), &WHO, now).tenant == "set");
    tags.reset_all();
    assert_eq!((tags.show(Key::Tenant), tags.show(Key::RequestId)), ("startup", ""));
    assert_eq!(&*tags.resolve(&rules(), &WHO, now + 2 * TTL).tenant, "startup");
    assert_eq!((tags.is_set(), tags.take_ended(), tags.stale()), (false, None, 0));
}

#[test]
fn settings_of_the_application_go_behind_set_and_before_the_rest() {
    let now = Instant::now();
    let tenant = |tags: &mut Tags| tags.resolve(&rules(), &WHO, now).tenant.to_string();
    let mut tags = Tags::default();
    tags.set(Scope::Startup, Key::Tenant, Some("startup"), now).unwrap();
    tags.set_tenant_key(false, Some("session"));
    assert_eq!(tenant(&mut tags), "session");
    assert!(tags.denies_tenant(&rules(), "session") && !tags.denies_tenant(&rules(), "startup"));
    tags.end_statement(true);
    tags.set_tenant_key(true, Some("local"));
    assert_eq!(tenant(&mut tags), "local");
    tags.set(Scope::Session, Key::Tenant, Some("set"), now).unwrap();
    assert_eq!(tenant(&mut tags), "set");
    tags.set(Scope::Session, Key::Tenant, Some(""), now).unwrap();
    tags.end_statement(false);
    assert_eq!((tenant(&mut tags).as_str(), tags.tenant_key(true)), ("session", None));
    for nothing in [None, Some(""), Some("a\nb")] {
        tags.set_tenant_key(false, nothing);
        assert_eq!(tenant(&mut tags), "startup");
    }
}

#[test]
fn a_transaction_has_one_tenant_by_its_own_word() {
    let mut tags = Tags::default();
    tags.set_tenant_key(false, Some("before"));
    assert!(!tags.denies_tenant(&rules(), "a"), "what the session had is over");
    tags.set_tenant_key(true, Some("a"));
    assert!(tags.denies_tenant(&rules(), "b") && !tags.denies_tenant(&rules(), "a"));
    tags.set_tenant_key(false, Some("b"));
    assert_eq!((tags.tenant_key(true), tags.tenant_key(false)), (None, Some("b")));
}

#[test]
fn local_values_end_with_the_transaction() {
    let now = Instant::now();
    let mut tags = session(Key::Class, "batch", now);
    tags.set(Scope::Startup, Key::Class, Some("normal"), now).unwrap();
    tags.end_statement(true);
    tags.set(Scope::Local, Key::Class, Some("critical"), now).unwrap();
    tags.end_statement(true);
    assert_eq!(tags.show(Key::Class), "critical");
    assert_eq!(tags.resolve(&rules(), &WHO, now).class.as_deref(), Some("critical"));
    tags.set(Scope::Local, Key::Class, None, now).unwrap();
    assert_eq!(tags.show(Key::Class), "normal");
    tags.end_statement(false);
    assert_eq!(tags.show(Key::Class), "batch");
    assert_eq!(tags.resolve(&rules(), &WHO, now).class.as_deref(), Some("batch"));
    tags.set(Scope::Session, Key::Class, None, now).unwrap();
    assert_eq!(tags.show(Key::Class), "normal");
    assert_eq!(tags.show(Key::Route), "");
}

#[test]
fn a_comment_lasts_for_its_statement_or_the_transaction_it_opened() {
    let now = Instant::now();
    let mut tags = Tags::default();
    tags.comment([("request_id", "r1"), ("controller", "carts"), ("action", "show")]);
    assert_eq!(tags.resolve(&rules(), &WHO, now).route.as_deref(), Some("carts#show"));
    tags.end_statement(false);
    assert_eq!(request(&mut tags, now), None);

    tags.comment([("request_id", "r2"), ("route", "/x"), ("deadline_ms", "50")]);
    tags.end_statement(true);
    assert_eq!(request(&mut tags, now).as_deref(), Some("r2"));
    tags.comment([("request_id", "r3")]);
    assert_eq!(request(&mut tags, now).as_deref(), Some("r3"));
    assert_eq!(tags.resolve(&rules(), &WHO, now).deadline_ms, Some(50));
    tags.end_statement(true);
    assert_eq!(request(&mut tags, now).as_deref(), Some("r2"));
    tags.end_transaction();
    assert_eq!(request(&mut tags, now), None);
    assert_eq!(tags.resolve(&rules(), &WHO, now).route, None);
}

#[test]
fn the_first_statement_with_a_backend_opens_what_a_begin_without_one_began() {
    let now = Instant::now();
    let mut tags = Tags::default();
    tags.end_statement(true);
    tags.end_statement(true);
    tags.comment([("request_id", "r1")]);
    tags.leased();
    tags.end_statement(true);
    assert_eq!(request(&mut tags, now).as_deref(), Some("r1"));
    tags.comment([("request_id", "r2")]);
    tags.leased();
    tags.end_statement(true);
    assert_eq!(request(&mut tags, now).as_deref(), Some("r1"), "the transaction has an opener");
    tags.end_transaction();
    assert_eq!(request(&mut tags, now), None);

    // A single statement opens nothing that outlives it.
    tags.comment([("request_id", "r3")]);
    tags.leased();
    tags.end_statement(false);
    assert_eq!(request(&mut tags, now), None);
}

#[test]
fn a_comment_says_where_in_the_application_in_one_of_three_ways() {
    let now = Instant::now();
    let mut tags = session(Key::CallSite, "set.py:1", now);
    for (comment, expected) in [
        (vec![("call_site", "orders.ts:88"), ("file", "other.ts")], "orders.ts:88"),
        (vec![("source_location", "app/a.rb:3")], "app/a.rb:3"),
        (vec![("file", "a.go"), ("line", "7")], "a.go:7"),
        (vec![("line", "/app/x.rb:12:in `index'")], "/app/x.rb:12:in `index'"),
        (vec![("route", "/x")], "set.py:1"),
    ] {
        tags.comment(comment);
        assert_eq!(tags.resolve(&rules(), &WHO, now).call_site.as_deref(), Some(expected));
        tags.end_statement(false);
    }
}

#[test]
fn comments_with_values_that_cannot_be_are_ignored() {
    let now = Instant::now();
    let mut tags = Tags::default();
    let long = "x".repeat(MAX_VALUE + 1);
    tags.comment([("deadline_ms", "soon"), ("route", &long), ("org", "a\u{7}"), ("tenant", "")]);
    assert_eq!(*tags.resolve(&rules(), &WHO, now).clone(), Tag { tenant: "app".into(), ..Tag::default() });
}

#[test]
fn an_unused_request_tag_becomes_stale() {
    let start = Instant::now();
    let mut tags = session(Key::RequestId, "r", start);
    assert_eq!(request(&mut tags, start + TTL).as_deref(), Some("r"));
    assert_eq!(request(&mut tags, start + 2 * TTL).as_deref(), Some("r"));
    // A lease that lasted longer than the limit was use.
    tags.used(start + 4 * TTL);
    assert_eq!(request(&mut tags, start + 5 * TTL).as_deref(), Some("r"));
    assert_eq!(tags.stale(), 0);
    assert_eq!(request(&mut tags, start + 6 * TTL + Duration::from_nanos(1)), None);
    assert_eq!((tags.stale(), tags.show(Key::RequestId)), (1, ""));
    assert_eq!(tags.take_ended(), None);
    assert_eq!(request(&mut tags, start + 60 * TTL), None);
    assert_eq!(tags.stale(), 1);
}

#[test]
fn a_tag_does_not_become_stale_inside_a_transaction_or_at_startup() {
    let start = Instant::now();
    let mut tags = session(Key::RequestId, "r", start);
    tags.end_statement(true);
    assert_eq!(request(&mut tags, start + 10 * TTL).as_deref(), Some("r"));
    let mut tags = Tags::default();
    tags.set(Scope::Startup, Key::RequestId, Some("s"), start).unwrap();
    assert_eq!(request(&mut tags, start + 10 * TTL).as_deref(), Some("s"));
    assert_eq!(tags.stale(), 0);
}

#[test]
fn a_closed_request_makes_its_tag_stale() {
    let now = Instant::now();
    let mut tags = session(Key::RequestId, "r", now);
    tags.request_closed("other");
    assert_eq!(request(&mut tags, now).as_deref(), Some("r"));
    tags.request_closed("r");
    assert_eq!(request(&mut tags, now), None);
    assert_eq!(tags.stale(), 1);
}

#[test]
fn an_empty_request_ends_it() {
    let now = Instant::now();
    let mut tags = session(Key::RequestId, "r1", now);
    tags.set(Scope::Session, Key::RequestId, Some("r2"), now).unwrap();
    assert_eq!(tags.take_ended(), None);
    tags.set(Scope::Session, Key::RequestId, Some(""), now).unwrap();
    tags.set(Scope::Session, Key::Tenant, None, now).unwrap();
    assert_eq!(tags.take_ended().as_deref(), Some("r2"));
    assert_eq!(tags.take_ended(), None);
    tags.set(Scope::Session, Key::RequestId, None, now).unwrap();
    assert_eq!(tags.take_ended(), None);
    tags.set(Scope::Session, Key::RequestId, Some("r3"), now).unwrap();
    tags.set(Scope::Session, Key::RequestId, None, now).unwrap();
    assert_eq!(tags.take_ended().as_deref(), Some("r3"));
    tags.set(Scope::Startup, Key::RequestId, Some("s"), now).unwrap();
    tags.set(Scope::Session, Key::RequestId, None, now).unwrap();
    assert_eq!(tags.take_ended(), None);
}

#[test]
fn refused_values_change_nothing() {
    let now = Instant::now();
    let mut tags = session(Key::DeadlineMs, "50", now);
    let error = tags.set(Scope::Session, Key::DeadlineMs, Some("soon"), now).unwrap_err();
    assert_eq!(error, TagError::Number { key: Key::DeadlineMs, least: 1, most: 3_600_000 });
    assert_eq!(tags.resolve(&rules(), &WHO, now).deadline_ms, Some(50));
    tags.set(Scope::Session, Key::DeadlineMs, Some(""), now).unwrap();
    assert_eq!(tags.resolve(&rules(), &WHO, now).deadline_ms, None);
}

#[test]
fn the_same_tag_is_handed_out_until_something_changes() {
    let now = Instant::now();
    let mut tags = session(Key::Tenant, "t", now);
    let first = tags.resolve(&rules(), &WHO, now).clone();
    tags.end_statement(true);
    tags.end_statement(false);
    assert!(Arc::ptr_eq(&first, tags.resolve(&rules(), &WHO, now)));
    tags.set(Scope::Session, Key::UserId, Some("u"), now).unwrap();
    assert!(!Arc::ptr_eq(&first, tags.resolve(&rules(), &WHO, now)));
}

#[test]
fn sessions_with_the_same_tag_keep_it_once() {
    let now = Instant::now();
    let mut last = Arc::default();
    let mut resolved = |value: &str| {
        let mut tags = session(Key::Tenant, value, now);
        tags.resolve(&rules(), &WHO, now);
        tags.share(&mut last);
        tags.resolve(&rules(), &WHO, now).clone()
    };
    let tags = ["t", "t", "u", "t"].map(&mut resolved);
    assert!(Arc::ptr_eq(&tags[0], &tags[1]));
    assert_eq!(tags.map(|tag| tag.tenant.to_string()), ["t", "t", "u", "t"]);
}

#[test]
fn a_suffix_is_split_off_only_where_configured() {
    assert_eq!(split_user("app.acme", &rules()), ("app", Some("acme")));
    assert_eq!(split_user("a.b.c", &rules()), ("a.b", Some("c")));
    for whole in ["app", "app.", ".acme", ""] {
        assert_eq!(split_user(whole, &rules()), (whole, None));
    }
    let without = TagRules { tenant: vec![TagSource::User], ..rules() };
    assert_eq!(split_user("app.acme", &without), ("app.acme", None));
}

#[test]
fn configured_comment_keys() {
    assert!(reads_comment(&rules(), "traceparent") && reads_comment(&rules(), "tenant"));
    assert!(!reads_comment(&rules(), "route"));
}

#[derive(Debug, Clone)]
enum Op {
    Set(Scope, Key, Option<String>),
    End(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let scope = prop::sample::select(vec![Scope::Startup, Scope::Session, Scope::Session, Scope::Local]);
    let key = prop::sample::select(vec![Key::Tenant, Key::RequestId]);
    prop_oneof![
        3 => (scope, key, prop::option::of("[abc]?")).prop_map(|(s, k, v)| Op::Set(s, k, v)),
        1 => any::<bool>().prop_map(Op::End),
    ]
}

/// What SHOW must say, from the whole history: no layers, only what was said when.
fn show_by_history(history: &[Op], key: Key) -> String {
    let mut shown: Option<String> = None;
    let (mut startup, mut committed) = (String::new(), None::<String>);
    for op in history {
        match op {
            Op::Set(scope, k, value) if *k == key => match scope {
                Scope::Startup => startup = value.clone().unwrap_or_default(),
                Scope::Session => {
                    committed.clone_from(value);
                    shown = None;
                }
                Scope::Local => shown = Some(value.clone().unwrap_or_else(|| startup.clone())),
            },
            Op::End(false) => shown = None,
            _ => {}
        }
    }
    shown.or(committed).unwrap_or(startup)
}

proptest! {
    #[test]
    fn show_and_resolve_agree_with_the_history(history in prop::collection::vec(op(), 0..30)) {
        let now = Instant::now();
        let only_set = TagRules { tenant: vec![TagSource::Set, TagSource::Startup], ..rules() };
        let mut tags = Tags::default();
        for (i, op) in history.iter().enumerate() {
            match op {
                Op::Set(scope, key, value) => tags.set(*scope, *key, value.as_deref(), now).unwrap(),
                Op::End(in_transaction) => tags.end_statement(*in_transaction),
            }
            for key in [Key::Tenant, Key::RequestId] {
                prop_assert_eq!(tags.show(key), show_by_history(&history[..=i], key));
            }
            let shown = tags.show(Key::Tenant).to_owned();
            let tenant = &*tags.resolve(&only_set, &WHO, now).tenant;
            if !shown.is_empty() {
                prop_assert_eq!(tenant, shown);
            }
        }
    }
}

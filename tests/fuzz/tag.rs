//! Tag values from clients.

use bursar::config::{TagRules, TagSource};
use bursar::tag::{Identity, Key, MAX_VALUE, Scope, Tags, split_user};
use std::time::{Duration, Instant};

#[test]
fn any_values() {
    let rules = TagRules {
        tenant: vec![TagSource::UserSuffix, TagSource::Comment("tenant".into()), TagSource::User],
        request: vec![TagSource::Set, TagSource::Comment("request_id".into()), TagSource::ApplicationName],
        tenant_keys: Vec::new(),
        strip_comments: true,
        idle_ttl: Duration::from_secs(5),
    };
    let now = Instant::now();
    bolero::check!().with_type::<(u8, String, bool)>().for_each(|(key, value, local)| {
        let mut tags = Tags::default();
        let key = Key::ALL[usize::from(*key) % Key::ALL.len()];
        let scope = if *local { Scope::Local } else { Scope::Session };
        if tags.set(scope, key, Some(value), now).is_ok() {
            assert_eq!(tags.show(key), value);
            assert!(value.len() <= MAX_VALUE);
        }
        tags.comment([("tenant", value.as_str()), (value.as_str(), "x")]);
        let (user, user_suffix) = split_user(value, &rules);
        let identity = Identity { user, database: value, application_name: value, user_suffix };
        let tag = tags.resolve(&rules, &identity, now);
        assert!(!tag.tenant.is_empty() && tag.tenant.len() <= MAX_VALUE);
        assert!(tag.request.as_ref().is_none_or(|request| !request.contains(char::is_control)));
    });
}

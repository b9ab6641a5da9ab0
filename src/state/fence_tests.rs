//! The messages, and that no order of them leads a backend from one tenant to another.

use super::*;
use crate::wire::frontend::bind_names;
use crate::wire::walk::{HEADER, Header};
use proptest::prelude::*;

fn fence(key: &str, request_key: Option<&str>, policy: ContextPolicy) -> Arc<Fence> {
    let request_key = request_key.map(str::to_owned);
    let rules = TenantContext { key: Some(key.to_owned()), policy, request_key, ..TenantContext::default() };
    Arc::new(Fence::of(&rules).unwrap())
}

fn of(tenant: &str) -> Context {
    let tenant = (!tenant.is_empty()).then(|| tenant.into());
    Context { tenant, request: None }
}

fn kinds(mut bytes: &[u8]) -> String {
    let mut kinds = String::new();
    while let Some(head) = Header::read(bytes) {
        kinds.push(char::from(head.kind));
        bytes = &bytes[head.total().unwrap()..];
    }
    kinds
}

#[test]
fn a_segment_is_one_statement_with_its_values_bound() {
    let fence = fence("app.tenant_id", Some("app.request_id"), ContextPolicy::Strict);
    let (mut held, mut out) = (Held::default(), BytesMut::new());
    let context = Context { tenant: Some("acme".into()), request: Some("r-1".into()) };
    let segments = held.bring(Some((&fence, &context)), true, &mut out);
    assert_eq!((&segments[..], kinds(&out).as_str()), (&[true, false][..], "PBESBES"));
    let sql = b"SELECT pg_catalog.set_config('app.tenant_id',$1,false),\
                pg_catalog.set_config('app.request_id',$2,false)\0\0\x02\0\0\0\x19\0\0\0\x19B";
    assert!(memchr::memmem::find(&out, sql).is_some());
    assert!(
        memchr::memmem::find(&out, b"\0\0\0\x02\0\0\0\0\0\0\0\0\0\0E").is_some(),
        "first the empty values"
    );
    assert!(memchr::memmem::find(&out, b"\0\0\0\x02\0\0\0\x04acme\0\0\0\x03r-1\0\0E").is_some());
    let mut text = Vec::new();
    fence.restore(&context, 1, &mut text);
    assert_eq!(text, br#"SET "app"."tenant_id" TO E'acme';SET "app"."request_id" TO E'r-1';"#);
}

#[test]
fn what_a_backend_has_is_sent_again_only_where_it_is_asked_for() {
    let fence = fence("a.b", None, ContextPolicy::Trusted);
    let (mut held, mut out) = (Held::default(), BytesMut::new());
    let mut bring = |held: &mut Held, tenant: &str, again| {
        out.clear();
        held.bring(Some((&fence, &of(tenant))), again, &mut out);
        kinds(&out)
    };
    assert_eq!(bring(&mut held, "", false), "PBESBES", "nobody knows what it has");
    assert_eq!(bring(&mut held, "", false), "");
    assert_eq!(bring(&mut held, "", true), "BES", "its session may have changed it");
    held.denied();
    assert_eq!(bring(&mut held, "", true), "");
    assert_eq!(bring(&mut held, "one", false), "BES");
    assert_eq!(bring(&mut held, "one", false), "");
    assert_eq!(bring(&mut held, "one", true), "BES");
    assert_eq!(bring(&mut held, "two", false), "BESBES", "the old one is taken back first");
    held.doubt();
    assert_eq!(bring(&mut held, "two", false), "BESBES");
    held.lose_statements();
    assert_eq!(bring(&mut held, "", false), "PBESBES");
}

#[test]
fn another_fence_takes_back_what_the_old_one_had_set() {
    let (one, two) =
        (fence("a.one", None, ContextPolicy::Trusted), fence("a.two", None, ContextPolicy::Strict));
    let (mut held, mut out) = (Held::default(), BytesMut::new());
    held.bring(Some((&one, &of("acme"))), false, &mut out);
    out.clear();
    held.bring(Some((&two, &of("acme"))), false, &mut out);
    assert_eq!(kinds(&out), "BESBESPBESBES");
    assert!(held.is_to_be_denied());
    held.denied();
    assert!(!held.is_to_be_denied());
    held.bring(Some((&two, &of(""))), true, &mut out);
    assert!(held.is_to_be_denied(), "nobody's session may have changed it");
    held.bring(Some((&two, &of("acme"))), true, &mut out);
    out.clear();
    assert_eq!(held.bring(None, true, &mut out)[..], [false, false]);
    assert!(!held.is_to_be_denied() && held.write_deny(&mut out).is_none());
}

#[test]
fn a_signed_tenant_is_worth_something_on_one_backend() {
    let with = |secret: &str| {
        let secret = Some(crate::config::Secret::new(secret.to_owned()));
        Arc::new(
            Fence::of(&TenantContext { secret, policy: ContextPolicy::Trusted, ..rules_of("a.b") }).unwrap(),
        )
    };
    let (one, two) = (with("key"), with("other"));
    // By openssl: printf 'acme|7' | openssl dgst -sha256 -hmac key
    let signed = "acme|7|e79b28abc05c38974527c694d330885698e59b3aec7631981672183066b583b7";
    let mut held = Held::of(7);
    let mut bring = |fence: &Arc<Fence>, tenant| {
        let mut out = BytesMut::new();
        held.bring(Some((fence, &of(tenant))), false, &mut out);
        (kinds(&out), held.known()[0].1.clone())
    };
    assert_eq!(bring(&one, "acme"), ("PBESBES".to_owned(), signed.to_owned()));
    assert_eq!(bring(&one, "acme").0, "");
    let (sent, other) = bring(&two, "acme");
    assert!(
        sent == "BESBES" && other.starts_with("acme|7|") && other != signed,
        "a new secret: {sent} {other}"
    );
    assert_eq!(bring(&two, ""), ("BESBES".to_owned(), String::new()), "nobody is not signed");
}

#[test]
fn values_are_plain_and_a_login_role_is_no_tenant() {
    for (value, good) in [
        ("acme", true),
        ("A-1_b.c:d", true),
        (&"x".repeat(128), true),
        (&"x".repeat(129), false),
        ("", false),
        ("a b", false),
        ("a'b", false),
        ("é", false),
        ("a\0", false),
    ] {
        assert_eq!(fits(value), good, "{value}");
    }
    let with = |from| {
        let rules = TenantContext { key: Some("a.b".to_owned()), from, ..TenantContext::default() };
        Fence::of(&rules).unwrap()
    };
    let fence = with(ContextSource::Tenant);
    let mut tag = Tag { tenant: "app".into(), ..Tag::default() };
    assert_eq!(fence.context(&tag, "app"), Ok(Context::DENY));
    assert_eq!(with(ContextSource::User).context(&tag, "app"), Ok(of("app")));
    assert_eq!(with(ContextSource::UserId).context(&tag, "app"), Ok(Context::DENY));
    tag.has_tenant = true;
    assert_eq!(fence.context(&tag, "app"), Ok(of("app")));
    tag.tenant = "a b".into();
    assert_eq!(fence.context(&tag, "app"), Err(BadValue));
    assert_eq!(Fence::of(&TenantContext { policy: ContextPolicy::Off, ..rules_of("a.b") }), None);
    assert_eq!(Fence::of(&TenantContext::default()), None);
}

fn rules_of(key: &str) -> TenantContext {
    TenantContext { key: Some(key.to_owned()), ..TenantContext::default() }
}

/// What a server makes of the bytes: the value of the setting after each segment, where those that fail
/// leave it as it was.
fn run(bytes: &[u8], value: &mut String, fails: &[bool]) -> Vec<String> {
    let mut after = Vec::new();
    let (mut rest, mut next) = (bytes, None);
    while let Some(head) = Header::read(rest) {
        let total = head.total().unwrap();
        if head.kind == b'B' {
            let (_, name) = bind_names(&rest[HEADER..total]).unwrap();
            // Behind the two names, the number of formats, of values, and the length of this one.
            let value = &rest[HEADER + 1 + name.len() + 1 + 2 + 2 + 4..total - 2];
            next = Some(String::from_utf8(value.to_vec()).unwrap());
        }
        if head.kind == b'S' {
            if !fails.get(after.len()).copied().unwrap_or(false) {
                *value = next.take().unwrap();
            }
            after.push(value.clone());
        }
        rest = &rest[total..];
    }
    after
}

proptest! {
    /// With one segment failing, what follows runs as nobody or as the tenant it is meant for.
    #[test]
    fn one_failure_never_shows_another_tenant(
        leases in prop::collection::vec((0usize..4, any::<bool>(), 0usize..3, any::<bool>()), 1..30)) {
        let fence = fence("a.b", None, ContextPolicy::Trusted);
        let (mut held, mut value) = (Held::default(), String::new());
        for (who, again, failing, hidden) in leases {
            let tenant = ["", "a", "b", "c"][who];
            let mut out = BytesMut::new();
            let count = held.bring(Some((&fence, &of(tenant))), again, &mut out).len();
            let mut fails = vec![false; count];
            if failing < count {
                fails[failing] = true;
            }
            run(&out, &mut value, &fails);
            prop_assert!(value == tenant || value.is_empty(), "{} runs as {}", tenant, value);
            if fails.contains(&true) {
                // It is closed, and another one takes its place.
                (held, value) = (Held::default(), String::new());
            } else if hidden {
                held.doubt();
                value = "x".to_owned();
                let mut out = BytesMut::new();
                prop_assert!(held.write_deny(&mut out).is_some());
                run(&out, &mut value, &[]);
                held.denied();
                prop_assert_eq!(&value, "");
            }
        }
    }
}

//! The messages, and that no order of them leads a backend from one tenant to another.

use super::*;
use crate::wire::frontend::bind_names;
use crate::wire::walk::{HEADER, Header, cstr};
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
    let has = |out: &[u8], bytes: &[u8]| memchr::memmem::find(out, bytes).is_some();
    assert!(has(&out, sql));
    assert!(has(&out, b"\0\0\0\x02\0\0\0\0\0\0\0\0\0\0E"), "first the empty values");
    assert!(has(&out, b"\0\0\0\x02\0\0\0\x04acme\0\0\0\x03r-1\0\0E"));
    held.denied();
    out.clear();
    assert_eq!((held.lend(&fence, &context, &mut out), kinds(&out).as_str()), (Some(true), "PBE"));
    let sql = b"SELECT pg_catalog.current_setting('app.tenant_id',true),\
                pg_catalog.set_config('app.tenant_id',$1,true),\
                pg_catalog.set_config('app.request_id',$2,true)\0\0\x02\0\0\0\x19\0\0\0\x19B";
    assert!(has(&out, sql), "for its transaction, behind what there was");
    assert!(has(&out, b"\0\0\0\x02\0\0\0\x04acme\0\0\0\x03r-1\0\0E"));
    let restored = |scope| {
        let mut text = Vec::new();
        fence.restore(&context, 1, scope, &mut text);
        String::from_utf8(text).unwrap()
    };
    let set = r#"SET "app"."tenant_id" TO E'acme';SET "app"."request_id" TO E'r-1';"#;
    assert_eq!(restored(Scope::Session), set);
    assert_eq!(restored(Scope::Transaction), set.replace("SET ", "SET LOCAL "));
}

#[test]
fn what_was_found_before_a_context_was_lent_is_nothing_or_the_same() {
    let fence = fence("a.b", None, ContextPolicy::Strict);
    let (mut held, mut out) = (Held::of(7), BytesMut::new());
    held.bring(Some((&fence, &of("acme"))), true, &mut out);
    assert!(!held.may_lend(&fence), "it is brought");
    held.denied();
    assert!(held.may_lend(&fence) && held.lend(&fence, &of("acme"), &mut out).is_some());
    let may = |held: &Held, value: Option<&str>| held.may_have_had(value.map(str::as_bytes), &of("acme"));
    assert!(may(&held, None) && may(&held, Some("")) && may(&held, Some("acme")));
    assert!(!may(&held, Some("other")) && !may(&held, Some("acme2")));
    // Lent within a transaction it is gone with it; set for the session it is to be taken back.
    held.set_within(Scope::Transaction);
    assert!(held.may_lend(&fence) && !held.is_to_be_denied());
    held.set_within(Scope::Session);
    assert!(!held.may_lend(&fence) && held.is_to_be_denied());
    out.clear();
    held.lend_again(&fence, &of("acme"), &mut out);
    assert!(kinds(&out) == "BE" && held.is_to_be_denied());
    held.lose_lending();
    out.clear();
    held.lend_again(&fence, &of("acme"), &mut out);
    assert_eq!(kinds(&out), "PBE");
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
    assert_eq!(fence.context(&tag, &"app".into()), Ok(Context::DENY));
    assert_eq!(with(ContextSource::User).context(&tag, &"app".into()), Ok(of("app")));
    assert_eq!(with(ContextSource::UserId).context(&tag, &"app".into()), Ok(Context::DENY));
    tag.has_tenant = true;
    assert_eq!(fence.context(&tag, &"app".into()), Ok(of("app")));
    tag.tenant = "a b".into();
    assert_eq!(fence.context(&tag, &"app".into()), Err(BadValue));
    assert_eq!(Fence::of(&TenantContext { policy: ContextPolicy::Off, ..rules_of("a.b") }), None);
    assert_eq!(Fence::of(&TenantContext::default()), None);
}

fn rules_of(key: &str) -> TenantContext {
    TenantContext { key: Some(key.to_owned()), ..TenantContext::default() }
}

#[test]
fn a_context_is_lent_only_where_the_backend_has_no_other() {
    let (strict, other) =
        (fence("a.b", None, ContextPolicy::Strict), fence("a.c", None, ContextPolicy::Strict));
    let (mut held, mut out) = (Held::default(), BytesMut::new());
    assert_eq!(held.lend(&strict, &of("acme"), &mut out), None, "nobody knows what it has");
    held.bring(Some((&strict, &of("acme"))), true, &mut out);
    out.clear();
    assert_eq!(held.lend(&strict, &of("acme"), &mut out), None, "it has it for its session");
    held.denied();
    for (tenant, parses) in [("acme", true), ("", false), ("other", false)] {
        assert_eq!(held.lend(&strict, &of(tenant), &mut out), Some(parses));
        assert!(!held.is_to_be_denied() && held.is_doubtful(), "there is nothing to take back");
    }
    assert_eq!(held.lend(&other, &of("acme"), &mut out), None, "it has another setting");
    assert!(held.known().is_empty(), "what a function has left is not known");
    out.clear();
    held.bring(Some((&strict, &of("acme"))), true, &mut out);
    assert_eq!(kinds(&out), "BESBES", "and taken back before the next one is brought");
    assert!(held.is_to_be_denied());
    held.denied();
    out.clear();
    assert_eq!(held.lend(&strict, &of("acme"), &mut out), Some(false));
    held.doubt();
    assert!(held.is_to_be_denied(), "a RESET ALL, say");
    assert_eq!(held.lend(&strict, &of("acme"), &mut out), None);
    held.denied();
    held.lose_statements();
    out.clear();
    assert_eq!((held.lend(&strict, &of("acme"), &mut out), kinds(&out).as_str()), (Some(true), "PBE"));
}

/// The setting on a server: what the session has, and what its transaction has in place of it.
#[derive(Debug, Default)]
struct Server {
    session: String,
    local: Option<String>,
    /// An error has been raised, and no Sync has come since.
    skips: bool,
    /// The statement that sets it for a transaction.
    lends: Vec<u8>,
    /// What the session had when that ran last.
    found: String,
}

impl Server {
    fn sees(&self) -> String {
        self.local.clone().unwrap_or_else(|| self.session.clone())
    }

    /// Runs what Bursar has written, of which the Execute with that number fails.
    fn run(&mut self, bytes: &[u8], failing: Option<usize>) {
        let (mut rest, mut bound, mut executes) = (bytes, (String::new(), false), 0);
        while let Some(head) = Header::read(rest) {
            let total = head.total().unwrap();
            let message = &rest[..total];
            rest = &rest[total..];
            match head.kind {
                b'P' => {
                    let (name, text) = cstr(&message[HEADER..]).unwrap();
                    if memchr::memmem::find(text, b",true)").is_some() {
                        self.lends = name.to_vec();
                    }
                }
                b'B' => bound = self.bound(&message[HEADER..]),
                b'E' => {
                    self.skips |= failing == Some(executes);
                    executes += 1;
                    match &bound {
                        _ if self.skips => {}
                        (value, true) => {
                            self.found = self.session.clone();
                            self.local = Some(value.clone());
                        }
                        (value, false) => (self.session, self.local) = (value.clone(), None),
                    }
                }
                b'S' => (self.local, self.skips) = (None, false),
                _ => {}
            }
        }
    }

    /// The value of one key, and whether it is a local one.
    fn bound(&self, body: &[u8]) -> (String, bool) {
        let (_, name) = bind_names(body).unwrap();
        // Behind the two names, the number of formats and of values.
        let values = &body[1 + name.len() + 1 + 2 + 2..];
        let (len, values) = values.split_first_chunk().unwrap();
        let value = &values[..u32::from_be_bytes(*len) as usize];
        (String::from_utf8(value.to_vec()).unwrap(), *name == self.lends)
    }

    /// A Query, in which a function may set the setting for the session: the tenant that it sees, unless
    /// it does not run.
    fn query(&mut self, hidden: Option<&str>) -> Option<String> {
        let seen = (!self.skips).then(|| self.sees());
        if let (Some(value), false) = (hidden, self.skips) {
            self.session = value.to_owned();
        }
        self.local = None;
        seen
    }
}

/// One lease: who has it, whether it is known to be one statement, which of Bursar's words fails, and what
/// a function does to the setting.
type Turn = (usize, bool, Option<usize>, Option<usize>);

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let hidden = prop::option::weighted(0.2, 0usize..4);
    prop::collection::vec((0usize..4, any::<bool>(), prop::option::weighted(0.2, 0usize..3), hidden), 1..30)
}

const TENANTS: [&str; 4] = ["", "a", "b", "c"];

proptest! {
    /// With one of Bursar's words failing, what follows does not run, or runs as nobody or as the tenant it
    /// is meant for; whatever a function has left behind it. With none, it runs as that tenant.
    #[test]
    fn one_failure_never_shows_another_tenant(leases in turns(), strict in any::<bool>()) {
        let policy = if strict { ContextPolicy::Strict } else { ContextPolicy::Trusted };
        let fence = fence("a.b", None, policy);
        let (mut held, mut server) = (Held::default(), Server::default());
        for (who, alone, failing, hidden) in leases {
            let tenant = TENANTS[who];
            // What the functions of a trusted tenant do is trusted.
            let hidden = hidden.filter(|_| strict).map(|who| TENANTS[who]);
            let mut out = BytesMut::new();
            let lent = alone && strict && held.lend(&fence, &of(tenant), &mut out).is_some();
            if !lent {
                held.bring(Some((&fence, &of(tenant))), strict, &mut out);
            }
            let said = kinds(&out).matches('E').count();
            let failing = failing.filter(|which| *which < said);
            server.run(&out, failing);
            if lent && failing.is_none() {
                let own = server.found.is_empty() || server.found == tenant;
                prop_assert_eq!(held.may_have_had(Some(server.found.as_bytes()), &of(tenant)), own);
            }
            let seen = server.query(hidden);
            match (&seen, failing) {
                (Some(seen), None) => prop_assert_eq!(seen, tenant),
                (Some(seen), Some(_)) => prop_assert!(!lent && (seen == tenant || seen.is_empty())),
                (None, _) => prop_assert!(lent && failing.is_some()),
            }
            if failing.is_some() {
                // It is closed, and another one takes its place.
                (held, server) = (Held::default(), Server::default());
                continue;
            }
            if held.is_to_be_denied() {
                let mut out = BytesMut::new();
                prop_assert!(held.write_deny(&mut out).is_some());
                server.run(&out, None);
                held.denied();
                prop_assert_eq!(server.sees(), "");
            }
        }
    }

    /// Where no function meddles, an idle backend of a strict fence has no tenant, taken back or not.
    #[test]
    fn an_idle_backend_has_no_tenant(leases in turns()) {
        let fence = fence("a.b", None, ContextPolicy::Strict);
        let (mut held, mut server) = (Held::default(), Server::default());
        for (who, alone, ..) in leases {
            let mut out = BytesMut::new();
            if !alone || held.lend(&fence, &of(TENANTS[who]), &mut out).is_none() {
                held.bring(Some((&fence, &of(TENANTS[who]))), true, &mut out);
            }
            server.run(&out, None);
            prop_assert_eq!(server.query(None), Some(TENANTS[who].to_owned()));
            if held.is_to_be_denied() {
                out.clear();
                held.write_deny(&mut out);
                server.run(&out, None);
                held.denied();
            }
            prop_assert_eq!(server.sees(), "");
        }
    }
}

//! The tenant that an application tells its policies, read along the way: `[tag] tenant_keys`
//! (budgets.md §2.2), and V1 where a tag says another one (§2.7).

use crate::support::watch::{metric, row};
use crate::support::{Config, Db, Proxy, Wire, msg, until};

fn start(mode: &str, lazy: bool) -> (Db<'static>, Proxy) {
    let config = Config::of_size(2)
        .with("tag", "tenant_keys = [\"app.tenant_id\", \"app.org\"]")
        .with("isolation", &format!("mode = \"{mode}\""));
    let db = Db::new();
    let proxy = Proxy::start(&db, if lazy { config.lazy() } else { config });
    (db, proxy)
}

fn lease_of(proxy: &Proxy) -> String {
    row(&mut proxy.console(), "select tenant from bursar.leases").concat()
}

fn violations(proxy: &Proxy) -> f64 {
    metric(proxy, "bursar_isolation_violations_total{kind=\"V1\"}")
}

#[test]
fn what_a_transaction_tells_its_policies_names_its_tenant() {
    let (_db, proxy) = start("enforce", true);
    let mut wire = proxy.connect();
    let call = "select set_config('app.tenant_id', $1, true)";
    wire.ask(&[msg::parse("context", call), msg::describe_statement("context"), msg::sync()].concat());
    let run = |bind: Vec<u8>| [bind, msg::execute("", 0), msg::sync()].concat();
    let by_parameter = |name: &str| msg::bind_with("", name, &[Some("acme")]);
    for (first, how) in [
        (msg::query("set local app.tenant_id = 'acme'"), "SET LOCAL"),
        (msg::query("select 1; SELECT set_config('App.Org', 'acme', true)"), "set_config"),
        (run([msg::parse("", call), by_parameter("")].concat()), "a parameter"),
        (
            run([msg::parse("", call), msg::describe_statement(""), by_parameter("")].concat()),
            "a parameter, described",
        ),
        (run(by_parameter("context")), "a statement with a name"),
    ] {
        wire.batch("begin");
        assert_eq!(wire.ask(&first).error(), None, "{how}");
        assert_eq!(lease_of(&proxy), "acme", "{how}");
        wire.batch("commit");
        wire.batch("begin; select 1");
        assert_eq!(lease_of(&proxy), "app", "after {how}");
        wire.batch("rollback");
    }
    // For the session, until it is taken back.
    for reset in ["reset app.tenant_id", "reset all", "discard all", "set app.tenant_id = ''"] {
        wire.batch("set app.tenant_id = 'acme'");
        wire.batch("begin; select 1");
        assert_eq!(lease_of(&proxy), "acme");
        wire.batch("commit");
        wire.batch(reset);
        wire.batch("begin; select 1");
        assert_eq!(lease_of(&proxy), "app", "{reset}");
        wire.batch("commit");
    }
    assert_eq!(violations(&proxy), 0.0);
    proxy.stop();
}

#[test]
fn it_has_its_place_among_the_other_sources() {
    let (_db, proxy) = start("observe", true);
    let mut wire = Wire::login(proxy.addr(), &proxy.as_app().with("bursar.tenant", "home"));
    wire.batch("begin; set local app.tenant_id = 'acme'");
    assert_eq!(lease_of(&proxy), "acme", "before the start-up packet");
    wire.batch("commit");
    wire.batch("set bursar.tenant = 'told'");
    wire.batch("begin; set local app.tenant_id = 'acme'");
    assert_eq!(lease_of(&proxy), "told", "behind SET of the tag");
    wire.batch("commit");
    proxy.stop();
}

#[test]
fn a_tag_and_a_setting_that_name_two_tenants_mix_their_work() {
    for (mode, lazy) in [("enforce", true), ("enforce", false), ("warn", true), ("observe", false)] {
        let (_db, proxy) = start(mode, lazy);
        let refused = mode == "enforce";
        let mut found = 0.0;
        let by_parameter = [
            msg::parse("", "select set_config('app.tenant_id', $1, true)"),
            msg::bind_with("", "", &[Some("b")]),
            msg::execute("", 0),
            msg::sync(),
        ]
        .concat();
        for (said, write, how) in [
            ("set bursar.tenant = 'a'", msg::query("set local app.tenant_id = 'b'"), "another than the tag"),
            ("set bursar.tenant = 'a'", by_parameter, "another than the tag, by a parameter"),
            ("", msg::query("select 1 /*tenant='b'*/"), "a comment says nothing of it"),
            ("", msg::query("set local app.tenant_id = 'b'"), "another than before"),
        ] {
            let mut wire = proxy.connect();
            if !said.is_empty() {
                wire.batch(said);
            }
            wire.batch("begin; select 1");
            wire.batch("set local app.tenant_id = 'a'");
            wire.batch("select set_config('app.tenant_id', 'a', true)");
            let clean = how.starts_with("a comment");
            found += f64::from(u8::from(!clean));
            let reply = wire.ask(&write);
            assert_eq!(reply.code() == "42501", refused && !clean, "{mode}: {how}: {reply:?}");
            assert_eq!(violations(&proxy), found, "{mode}: {how}");
            wire.batch("rollback");
            wire.batch("set bursar.tenant = ''");
            wire.batch("begin; set local app.tenant_id = 'b'; rollback");
        }
        // The other way round.
        let mut wire = proxy.connect();
        wire.batch("begin; set local app.tenant_id = 'a'");
        assert_eq!(wire.query("set bursar.tenant = 'a'").code(), "");
        let code = wire.query("set bursar.tenant = 'b'").code();
        assert_eq!((code.as_str(), violations(&proxy)), (if refused { "42501" } else { "" }, found + 1.0));
        wire.batch("rollback");
        let event = "event=\"isolation_violation\" kind=\"V1\"";
        until("it is in the log, or is not to be", || proxy.log().contains(event) == (mode != "observe"));
        proxy.stop();
    }
}

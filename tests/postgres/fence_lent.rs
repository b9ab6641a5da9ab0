//! Where all that a client has sent is a transaction of its own, its tenant context is lent to that
//! transaction, and nothing else shows it: not a cancel, not an error, not what comes behind.

use crate::fence::{LOOK, fenced, look, of, revoke, start, warm};
use crate::support::watch::metric;
use crate::support::{Login, Wire, msg, until};

/// Whether the transaction had begun before its statement: with the context that is lent to it.
const LENT: &str = "select case when now() < statement_timestamp() then 'lent' else 'brought' end";

fn unnamed(sql: &str) -> Vec<u8> {
    [msg::unnamed(sql), msg::sync()].concat()
}

#[test]
fn a_statement_that_is_a_transaction_of_its_own_shares_it_with_its_context() {
    let (_db, proxy) = start(fenced(1, "strict"));
    let mut wire = of(&proxy, "a");
    assert_eq!(wire.query(LENT).value(), "brought", "what a new backend has nobody knows");
    let named = [msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat();
    for _ in 0..3 {
        assert_eq!(wire.query(LENT).value(), "lent");
        assert_eq!(wire.ask(&unnamed(LENT)).value(), "lent");
        assert_eq!(wire.ask(&[msg::parse("s", LENT), named.clone()].concat()).value(), "lent");
        assert_eq!(wire.ask(&named).value(), "lent");
        wire.ask(&[msg::close_statement("s"), msg::sync()].concat());
        assert_eq!(wire.query(&format!("{LENT}; select 1")).value(), "brought", "several statements");
        // The first one behind it finds the backend as it was left.
        let block = wire.query(&format!("begin; {LENT}; commit")).value();
        assert_eq!(block, "brought");
        assert_eq!(look(&mut wire, 0), "a3");
    }
    proxy.stop();
    let (_db, proxy) = start(fenced(1, "trusted"));
    let mut wire = of(&proxy, "a");
    for _ in 0..3 {
        assert_eq!(wire.query(LENT).value(), "brought", "it stays");
    }
    proxy.stop();
}

#[test]
fn without_its_context_nothing_runs() {
    let (db, proxy) = start(fenced(1, "strict"));
    for (round, insert) in
        ["insert into log values ('query')", "insert into log values ('unnamed')"].into_iter().enumerate()
    {
        warm(&proxy);
        let mut wire = of(&proxy, "a");
        let (mut superuser, grant) = revoke(&db);
        wire.send(&if round == 0 { msg::query(insert) } else { unnamed(insert) });
        assert_eq!(wire.recv_to_end().trace(), "E(FATAL 42501) EOF", "{insert}");
        until("the backend is closed", || db.backends("usename = 'app'") == 0);
        assert_eq!(metric(&proxy, "bursar_tenant_context_mismatch_total"), (round + 1) as f64);
        superuser.batch(&grant);
        assert_eq!(db.value("select count(*) from log"), "0", "{insert}");
    }
    assert_eq!(look(&mut of(&proxy, "b"), 0), "b3");
    proxy.stop();
}

/// The server does not say that the context is there before it says what came of the statement.
#[test]
fn a_statement_is_cancelled_like_any_other() {
    let (db, proxy) = start(fenced(1, "strict"));
    warm(&proxy);
    let mut wire = of(&proxy, "a");
    let sleep = "select pg_sleep(60)";
    for (sent, cancelled) in [(msg::query(sleep), "T E(57014) Z(I)"), (unnamed(sleep), "1 2 T E(57014) Z(I)")]
    {
        wire.send(&sent);
        until("it runs", || db.running("pg_sleep") == 1);
        wire.cancel();
        assert_eq!(wire.recv_reply().trace(), cancelled);
        assert_eq!(look(&mut wire, 0), "a3");
    }
    proxy.stop();
}

#[test]
fn an_error_is_the_statements_and_what_comes_behind_has_its_tenant() {
    let (db, proxy) = start(fenced(1, "strict"));
    warm(&proxy);
    let (mut wire, mut other) = (of(&proxy, "a"), of(&proxy, "b"));
    for _ in 0..3 {
        assert_eq!(wire.query("select 1 / 0").trace(), "E(22012) Z(I)");
        assert_eq!(wire.query("select nothing").trace(), "E(42703) Z(I)");
        assert_eq!(wire.ask(&unnamed("insert into log values (1 / 0)")).trace(), "1 E(22012) Z(I)");
        assert_eq!(look(&mut wire, 0), "a3");
        // No portal but the client's own.
        let portal = [msg::execute("", 0), msg::sync()].concat();
        assert_eq!(wire.ask(&portal).trace(), "E(34000) Z(I)");
        let mixed = [msg::parse("", LOOK), msg::bind("p", ""), msg::execute("", 0), msg::sync()].concat();
        assert_eq!(wire.ask(&mixed).trace(), "1 2 E(34000) Z(I)");
        assert_eq!(look(&mut other, 1), "b3");
    }
    // Sent while the statement before runs, whose transaction has the context.
    let mut superuser = Wire::login(db.cluster().addr(), &Login::new("postgres", db.name()));
    superuser.batch("begin; lock table log");
    wire.send(&msg::query(&format!("{LOOK} left join log on true")));
    until("it waits", || db.backends("wait_event_type = 'Lock'") == 1);
    wire.send(&[msg::query(LOOK), msg::unnamed(LOOK), msg::sync()].concat());
    superuser.batch("commit");
    assert_eq!(wire.recv_reply().value(), "a3");
    assert_eq!(wire.recv_reply().value(), "a3");
    assert_eq!(wire.recv_reply().value(), "a3");
    proxy.stop();
}

#[test]
fn what_a_function_leaves_behind_it_is_nobodys() {
    let (_db, proxy) = start(fenced(1, "strict"));
    warm(&proxy);
    let (mut a, mut b, mut nobody) = (of(&proxy, "a"), of(&proxy, "b"), proxy.connect());
    for how in [0, 1, 2, 3, 4] {
        for wire in [&mut b, &mut nobody] {
            assert_eq!(a.query("select secretly('c')").value(), "c");
            let expected = wire.query("select current_setting('app.tenant_id')").value();
            assert_eq!(a.query("select secretly('c')").value(), "c");
            let seen = if expected.is_empty() { "none0".to_owned() } else { format!("{expected}3") };
            assert_eq!(look(wire, how), seen);
            assert!(expected != "c" && expected != "a", "{expected}");
        }
    }
    proxy.stop();
}

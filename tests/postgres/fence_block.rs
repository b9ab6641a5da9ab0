//! A transaction that a client begins is lent its tenant context with the first statement, however it is begun,
//! ended or gone on with; what comes behind it has a context of its own.

use crate::fence::{LOOK, SETUP, fenced, look, of, revoke, start, violations, warm};
use crate::support::watch::{leases, metric};
use crate::support::{Cluster, Db, Proxy, Reply, Stop, Wire, msg, until};

/// A message or more, with the Sync that ends them.
fn synced(messages: &[Vec<u8>]) -> Vec<u8> {
    [messages.concat(), msg::sync()].concat()
}

/// Ways to begin a transaction. The last one sends its first look with the BEGIN.
const BEGINNINGS: usize = 5;

/// Begins in one of the [`BEGINNINGS`] and looks.
fn begin(wire: &mut Wire, how: usize) -> String {
    let named = synced(&[msg::parse("begins", "begin"), msg::bind("", "begins"), msg::execute("", 0)]);
    let closed = synced(&[msg::close_statement("begins")]);
    match how {
        0 => drop(wire.batch("begin")),
        1 => drop(wire.batch("begin isolation level repeatable read")),
        2 => assert_eq!(
            wire.ask(&synced(&[msg::unnamed("start transaction")])).trace(),
            "1 2 n C(START TRANSACTION) Z(T)"
        ),
        3 => {
            assert_eq!(wire.ask(&named).trace(), "1 2 C(BEGIN) Z(T)");
            assert_eq!(wire.ask(&closed).trace(), "3 Z(T)");
        }
        _ => return wire.ask(&synced(&[msg::unnamed("begin"), msg::unnamed(LOOK)])).value(),
    }
    look_within(wire)
}

fn look_within(wire: &mut Wire) -> String {
    wire.query(LOOK).value()
}

/// Ends a transaction in one of four ways.
fn end(wire: &mut Wire, verb: &str, how: usize) {
    let tag = if verb == "commit" { "C(COMMIT)" } else { "C(ROLLBACK)" };
    let named = [
        msg::parse("ends", verb),
        msg::bind("p", "ends"),
        msg::execute("p", 0),
        msg::close_statement("ends"),
    ];
    let trace = match how {
        0 => wire.query(verb).trace(),
        1 => wire.ask(&synced(&[msg::unnamed(verb)])).trace(),
        2 => wire.ask(&synced(&named)).trace(),
        _ => wire.query(&format!("select 1; {verb}")).trace(),
    };
    assert!(trace.contains(tag) && trace.ends_with("Z(I)"), "{verb} {how}: {trace}");
}

#[test]
fn it_has_its_context_however_it_begins_and_ends() {
    for lazy in [true, false] {
        let config = fenced(1, "strict");
        let (_db, proxy) = start(if lazy { config.lazy() } else { config });
        warm(&proxy);
        let (mut a, mut b) = (of(&proxy, "a"), of(&proxy, "b"));
        for how in 0..BEGINNINGS {
            assert_eq!(begin(&mut a, how), "a3");
            assert_eq!(last_value(&a.query(&format!("rollback; {LOOK}"))), "none0", "{how}: it is lent");
            for verb in ["commit", "rollback"] {
                for ends in 0..4 {
                    assert_eq!(begin(&mut a, how), "a3", "{how} {verb} {ends}");
                    assert_eq!(look_within(&mut a), "a3", "{how} {verb} {ends}");
                    end(&mut a, verb, ends);
                    assert_eq!(look(&mut b, how), "b3", "{how} {verb} {ends}");
                    assert_eq!(look(&mut a, ends), "a3", "{how} {verb} {ends}");
                }
            }
        }
        assert_eq!(metric(&proxy, "bursar_tenant_context_mismatch_total"), 0.0);
        assert_eq!(violations(&proxy, "V4"), 0.0);
        proxy.stop();
    }
}

/// What is sent between BEGIN and the end; `LOOK` sees the tenant's rows, `NOTHING` is a look that sees none.
#[test]
fn it_keeps_its_context_whatever_the_client_does() {
    let (_db, proxy) = start(fenced(1, "strict").lazy());
    warm(&proxy);
    let (mut a, mut b) = (of(&proxy, "a"), of(&proxy, "b"));
    for program in [
        "set transaction isolation level serializable|LOOK|commit",
        "set transaction isolation level repeatable read, read only|lock table log in access share mode|LOOK|commit",
        "LOOK|set transaction isolation level serializable|rollback",
        "savepoint s|LOOK|rollback to s|LOOK|release s|LOOK|commit",
        "LOOK|savepoint s|select 1/0|rollback to s|LOOK|commit",
        "select 1/0|rollback and chain|LOOK|commit",
        "LOOK|commit and chain|LOOK|rollback and chain|LOOK|commit and chain|rollback",
        "LOOK|commit and chain|set transaction isolation level serializable|LOOK|commit",
        "LOOK|commit; begin|LOOK|commit; begin isolation level serializable|LOOK|rollback",
        "LOOK|rollback; begin|LOOK|rollback; begin; select 1|LOOK|commit",
        "LOOK|commit; LOOK",
        "select 1; LOOK|commit; LOOK",
        "LOOK|rollback; NOTHING",
        "LOOK|select 1/0|rollback; NOTHING",
        "LOOK|reset all|LOOK|savepoint s|reset all|LOOK|rollback to s|LOOK|commit",
        "LOOK|set local work_mem = '5MB'|LOOK|set work_mem = '6MB'|LOOK|commit",
        "LOOK|select secretly('b')|rollback",
        "LOOK|do $$ begin perform secretly('b'); end $$|commit",
        "LOOK|call commits()|rollback",
        "LOOK|begin|LOOK|commit",
        "LOOK|copy (select 1) to stdout|LOOK|commit",
        "insert into log values ('x')|LOOK|commit",
        "declare c cursor for select 1|fetch c|LOOK|commit",
        "listen news|LOOK|commit|LOOK|unlisten *",
    ] {
        for beginning in [
            "begin",
            "begin isolation level read committed",
            "start transaction isolation level serializable",
        ] {
            a.query(beginning);
            for statement in program.split('|') {
                let sql = statement.replace("LOOK", LOOK).replace("NOTHING", LOOK);
                let reply = a.query(&sql);
                assert!(!reply.closed, "{program}: {statement}: {reply:?}");
                if statement.ends_with("LOOK") {
                    assert!(!reply.trace().contains("E("), "{program}: {reply:?}");
                    assert_eq!(last_value(&reply), "a3", "{beginning}|{program}: {statement}");
                } else if statement.ends_with("NOTHING") {
                    assert_eq!(last_value(&reply), "none0", "{beginning}|{program}: {statement}");
                }
            }
            until("the lease is over", || leases(&proxy) == 0);
            for how in 0..3 {
                assert_eq!(look(&mut b, how), "b3", "{program}");
                assert_eq!(look(&mut a, how), "a3", "{program}");
            }
        }
    }
    assert_eq!(metric(&proxy, "bursar_tenant_context_mismatch_total"), 0.0);
    proxy.stop();
}

fn last_value(reply: &Reply) -> String {
    let rows = reply.rows();
    rows.last().and_then(|row| row[0].clone()).unwrap_or_default()
}

/// What a pipeline executes behind the end of its transaction is another one, of the same tenant.
#[test]
fn a_pipeline_that_ends_it_goes_on_with_its_context() {
    let (_db, proxy) = start(fenced(1, "strict").lazy());
    warm(&proxy);
    let (mut a, mut b) = (of(&proxy, "a"), of(&proxy, "b"));
    let named = [msg::bind("", "undoes"), msg::execute("", 0)].concat();
    a.ask(&synced(&[msg::parse("undoes", "rollback")]));
    for how in 0..BEGINNINGS {
        for (ending, status) in [
            (msg::unnamed("commit"), "Z(I)"),
            (named.clone(), "Z(I)"),
            (msg::unnamed("commit and chain"), "Z(T)"),
            (msg::unnamed("rollback and chain"), "Z(T)"),
        ] {
            assert_eq!(begin(&mut a, how), "a3");
            let reply = a.ask(&synced(&[msg::unnamed(LOOK), ending.clone(), msg::unnamed(LOOK)]));
            let rows = reply.rows();
            assert_eq!(rows.len(), 2, "{reply:?}");
            assert!(rows.iter().all(|row| row[0].as_deref() == Some("a3")), "{reply:?}");
            assert!(reply.trace().ends_with(status), "{}", reply.trace());
            if status == "Z(T)" {
                assert_eq!(look_within(&mut a), "a3");
                end(&mut a, "commit", how % 4);
            }
            assert_eq!(look(&mut b, how), "b3");
        }
        // Two segments in one write: the second one waits until it is known what the first has come to.
        assert_eq!(begin(&mut a, how), "a3");
        a.send(&[synced(&[msg::unnamed("commit")]), msg::query(LOOK), msg::query(LOOK)].concat());
        assert_eq!(a.recv_reply().trace(), "1 2 n C(COMMIT) Z(I)");
        assert_eq!((a.recv_reply().value(), a.recv_reply().value()), ("a3".into(), "a3".into()));
        // The end does not run: neither does what comes behind it.
        assert_eq!(begin(&mut a, how), "a3");
        let reply = a.ask(&synced(&[msg::unnamed("select 1/0"), msg::unnamed("commit"), msg::unnamed(LOOK)]));
        assert!(reply.trace().ends_with("E(22012) Z(E)"), "{}", reply.trace());
        assert_eq!(a.query("rollback and chain").trace(), "C(ROLLBACK) Z(T)");
        assert_eq!(look_within(&mut a), "a3");
        end(&mut a, "rollback", 0);
        assert_eq!(look(&mut b, how), "b3");
    }
    proxy.stop();
}

#[test]
fn without_its_context_nothing_runs_in_it() {
    let (db, proxy) = start(fenced(1, "strict").lazy());
    for how in 0..3 {
        warm(&proxy);
        let mut wire = of(&proxy, "a");
        let (mut superuser, grant) = revoke(&db);
        let insert = "insert into log values ('x')";
        match how {
            0 => drop(wire.batch("begin")),
            1 => drop(wire.batch("begin isolation level serializable")),
            _ => assert_eq!(wire.ask(&synced(&[msg::unnamed("begin")])).trace(), "1 2 n C(BEGIN) Z(T)"),
        }
        wire.send(&if how == 2 { synced(&[msg::unnamed(insert)]) } else { msg::query(insert) });
        assert_eq!(wire.recv_to_end().trace(), "E(FATAL 42501) EOF", "{how}");
        until("the backend is closed", || db.backends("usename = 'app'") == 0);
        superuser.batch(&grant);
        assert_eq!(db.value("select count(*) from log"), "0", "{how}");
    }
    assert_eq!(look(&mut of(&proxy, "b"), 0), "b3");
    proxy.stop();
}

/// A function has named a tenant for its session, which nobody may: it is found with the next transaction, which
/// has its own context, and where that would end in the middle of a Query, the Query is refused.
#[test]
fn what_another_session_has_left_is_found_and_never_seen() {
    let (_db, proxy) = start(fenced(1, "strict").lazy());
    warm(&proxy);
    let (mut a, mut b) = (of(&proxy, "a"), of(&proxy, "b"));
    for (round, statement) in
        ["rollback; LOOK", "commit; LOOK", "select 1; commit and chain", "rollback"].iter().enumerate()
    {
        assert_eq!(a.ask(&synced(&[msg::unnamed("select secretly('c')")])).value(), "c");
        b.batch("begin");
        assert_eq!(look_within(&mut b), "b3");
        until("it is told of", || violations(&proxy, "V4") == (round + 1) as f64);
        let reply = b.query(&statement.replace("LOOK", LOOK));
        if *statement == "rollback" {
            assert_eq!(reply.trace(), "C(ROLLBACK) Z(I)");
        } else {
            assert_eq!(reply.trace(), "E(42501) Z(E)", "{statement}");
            assert_eq!(b.query("rollback").trace(), "C(ROLLBACK) Z(I)");
        }
        until("its lease has ended", || leases(&proxy) == 0);
        b.batch("begin");
        assert_eq!(look_within(&mut b), "b3");
        let reply = b.query(&format!("rollback; {LOOK}"));
        assert_eq!(last_value(&reply), "none0", "it has been taken back");
    }
    proxy.stop();
}

/// The statement that lends is prepared in the transaction whose BEGIN the server refuses: it is not there.
#[test]
fn a_begin_that_is_refused_takes_nothing_along() {
    let cluster = Cluster::new();
    let db = Db::within(&cluster);
    db.run(SETUP);
    cluster.stop(Stop::Fast);
    std::fs::write(cluster.socket_dir().join("data/standby.signal"), "").expect("standby.signal");
    cluster.start();
    let proxy = Proxy::start(&db, fenced(1, "strict").lazy());
    let mut wire = of(&proxy, "a");
    assert_eq!(look(&mut wire, 0), "a3");
    until("its lease has ended", || leases(&proxy) == 0);
    for _ in 0..3 {
        wire.batch("begin read write");
        assert_eq!(wire.query(LOOK).trace(), "E(0A000) Z(E)");
        assert_eq!(wire.query("rollback").trace(), "C(ROLLBACK) Z(I)");
        assert_eq!(look(&mut wire, 3), "a3");
    }
    proxy.stop();
}

/// Cancelled with its first statement, before or after the context is there.
#[test]
fn its_first_statement_is_cancelled_like_any_other() {
    let (db, proxy) = start(fenced(1, "strict").lazy());
    warm(&proxy);
    let (mut a, mut b) = (of(&proxy, "a"), of(&proxy, "b"));
    for how in 0..4 {
        match how {
            0 => drop(a.batch("begin")),
            1 => drop(a.batch("begin isolation level serializable")),
            _ => drop(a.ask(&synced(&[msg::unnamed("begin")]))),
        }
        a.send(&if how == 3 {
            synced(&[msg::unnamed("select pg_sleep(60)")])
        } else {
            msg::query("select pg_sleep(60)")
        });
        until("it runs", || db.running("pg_sleep") == 1);
        a.cancel();
        assert!(a.recv_reply().trace().ends_with("E(57014) Z(E)"));
        assert_eq!(a.query("rollback").trace(), "C(ROLLBACK) Z(I)");
        assert_eq!((look(&mut b, how), look(&mut a, how)), ("b3".into(), "a3".into()));
    }
    proxy.stop();
}

/// A session whose transaction Bursar has ended has a backend in a failed one, if it asks for more than that: no
/// context can be set there, and none is needed.
#[test]
fn in_a_transaction_that_has_failed_there_is_none() {
    for policy in ["strict", "trusted"] {
        let config = fenced(1, policy).lazy();
        let idle = "max_idle = { warn = \"20ms\", abort = \"40ms\", abort_alone = \"40ms\", mode = \"enforce\", force = true }";
        let (_db, proxy) = start(config.with("budget.transaction", idle));
        warm(&proxy);
        let (mut a, mut b) = (of(&proxy, "a"), of(&proxy, "b"));
        a.ask(&synced(&[msg::parse("own", LOOK)]));
        let named = synced(&[msg::bind("", "own"), msg::execute("", 0)]);
        for how in 0..BEGINNINGS {
            assert_eq!(begin(&mut a, how), "a3");
            // Waits for the backend, which is taken from the silent one.
            assert_eq!(look(&mut b, how), "b3");
            assert!(!a.query(LOOK).code().is_empty(), "it is told of it");
            for _ in 0..2 {
                assert_eq!(a.ask(&named).trace(), "E(25P02) Z(E)");
                assert_eq!(a.query(LOOK).trace(), "E(25P02) Z(E)");
            }
            let reply = if how % 2 == 0 {
                a.ask(&synced(&[msg::unnamed("rollback and chain"), msg::unnamed(LOOK)]))
            } else {
                a.query(&format!("rollback and chain; {LOOK}"))
            };
            assert_eq!(last_value(&reply), "a3", "{policy}: {reply:?}");
            end(&mut a, "commit", how % 4);
            assert_eq!((look(&mut b, how), look(&mut a, how)), ("b3".into(), "a3".into()));
        }
        proxy.stop();
    }
}

/// A BEGIN that Bursar refuses itself: what comes behind its Sync has a context of its own.
#[test]
fn behind_a_begin_that_is_not_sent_there_is_one() {
    let (db, proxy) = start(fenced(1, "strict").lazy());
    let mut a = of(&proxy, "a");
    a.ask(&synced(&[msg::parse("begins", "begin /* \u{e9} */")]));
    a.batch("set client_encoding = 'latin1'");
    until("its lease has ended", || leases(&proxy) == 0);
    db.terminate_backends();
    warm(&proxy);
    a.send(&[synced(&[msg::bind("", "begins"), msg::execute("", 0)]), msg::query(LOOK)].concat());
    assert_eq!(a.recv_reply().trace(), "E(0A000) Z(I)", "it would be read as something else");
    assert_eq!(a.recv_reply().value(), "a3");
    proxy.stop();
}

//! A process changes, is emptied and leaves under load, and no transaction fails for it: reloads, new
//! certificates, RECONNECT, PAUSE and a drain, each beside clients that count what they were told
//! (docs/operations.md).

use crate::support::watch::{metric, printed};
use crate::support::{Cluster, Config, Db, Proxy, signal, until};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const CLIENTS: usize = 8;

/// Writes once in a transaction of several statements.
const TRANSACTION: &str = "\\set n random(1, 1000)
begin;
insert into written values (:n);
select count(*) from (select from written limit 10) as few;
commit;
";

fn busy() -> Config {
    Config::of_size(4).lazy().with("pool", "max_wait = \"30s\"").with("tenant.\"*\"", "max = \"100%\"")
}

fn table(db: &Db<'_>) {
    db.run(&["create table written (n int)"]);
}

/// Runs pgbench with so many transactions a client, `churn` again and again beside it, and counts: none
/// has failed, and each has written.
fn under_load(
    db: &Db<'_>,
    proxy: &mut Proxy,
    more: &[&str],
    each: usize,
    mut churn: impl FnMut(&mut Proxy, usize),
) {
    let before = written(db);
    let script = proxy.config_file().with_file_name("transaction.sql");
    std::fs::write(&script, TRANSACTION).expect("a script");
    let mut pgbench = Command::new(Cluster::shared().program("pgbench"));
    // A thread each: it prepares statements without serving its other clients meanwhile.
    let clients = CLIENTS.to_string();
    pgbench.args(["-n", "-j", &clients, "-c", &clients, "-t", &each.to_string(), "-f"]);
    pgbench.arg(script).args(&more[1..]);
    pgbench.arg(format!(
        "host=127.0.0.1 port={} user=app dbname={} {}",
        proxy.addr().port(),
        db.name(),
        more[0]
    ));
    let output = std::thread::scope(|scope| {
        let bench = scope.spawn(move || pgbench.output().expect("pgbench runs"));
        let mut turns = 0;
        while !bench.is_finished() {
            churn(proxy, turns);
            turns += 1;
        }
        assert!(turns >= 3, "{more:?}: only {turns} turns beside the load");
        bench.join().expect("pgbench")
    });
    let report = printed(&output);
    assert!(output.status.success(), "{more:?}: {report}");
    let done = format!("number of transactions actually processed: {0}/{0}\n", CLIENTS * each);
    assert!(report.contains(&done), "{more:?}: {report}");
    assert!(report.contains("number of failed transactions: 0 (0.000%)"), "{more:?}: {report}");
    assert_eq!(written(db) - before, CLIENTS * each, "{more:?}: rows");
}

fn written(db: &Db<'_>) -> usize {
    db.value("select count(*) from written").parse().expect("a count")
}

fn reloads(proxy: &Proxy) -> f64 {
    metric(proxy, "bursar_reloads_total{result=\"ok\"}")
}

#[test]
fn reloads_in_a_loop_fail_nothing() {
    let db = Db::new();
    table(&db);
    let mut proxy = Proxy::start(&db, busy());
    let mut console = proxy.console();
    for protocol in ["simple", "extended", "prepared"] {
        under_load(&db, &mut proxy, &["", "-M", protocol], 150, |proxy, turn| {
            proxy.change("pool", &format!("size = {}", 1 + turn % 5));
            proxy.change("pool", &format!("max_wait = \"{}s\"", 30 + turn % 7));
            proxy.change("pool", &format!("max_prepared = {}", 5 + turn % 50));
            proxy.change("pool", &format!("lazy_begin = {}", turn.is_multiple_of(2)));
            proxy.change("pool", ["reuse = \"lifo\"", "reuse = \"round_robin\""][turn % 2]);
            proxy.change("server", &format!("max_backends = {}", 5 + turn % 3));
            proxy.change("tenant.\"*\"", &format!("max = \"{}%\"", 50 + turn % 50));
            proxy.change("budget.transaction", &format!("max_age = {{ warn = \"{}s\" }}", 20 + turn % 9));
            proxy.change("parking", ["mode = \"observe\"", "mode = \"off\"", "mode = \"enforce\""][turn % 3]);
            if turn.is_multiple_of(2) {
                assert_eq!(console.query("reload").code(), "");
            } else {
                let before = reloads(proxy);
                signal(proxy.pid(), "HUP");
                until("it is reloaded", || reloads(proxy) > before);
            }
        });
    }
    console.bye();
    proxy.stop();
}

/// Each transaction of its own connection: handshakes under way while the certificate changes.
#[test]
fn certificates_in_a_loop_fail_nothing() {
    let db = Db::new();
    table(&db);
    let dir = tempfile::tempdir().expect("a directory");
    let issue = || {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        for (name, text) in [("crt", made.cert.pem()), ("key", made.signing_key.serialize_pem())] {
            std::fs::write(dir.path().join(name), text).expect("a file");
        }
        std::fs::set_permissions(dir.path().join("key"), PermissionsExt::from_mode(0o600)).expect("a mode");
    };
    issue();
    let file = |key: &str, name: &str| format!("{key}_file = \"{}\"", dir.path().join(name).display());
    let config = busy()
        .with("tls.client", "mode = \"require\"")
        .with("tls.client", &file("cert", "crt"))
        .with("tls.client", &file("key", "key"));
    let mut proxy = Proxy::start(&db, config);
    // The console itself must come in encrypted here, so a signal.
    for (more, each) in [(&["sslmode=require", "-C"][..], 40), (&["sslmode=require", "-M", "prepared"], 400)]
    {
        under_load(&db, &mut proxy, more, each, |proxy, _| {
            issue();
            let before = reloads(proxy);
            signal(proxy.pid(), "HUP");
            until("it is reloaded", || reloads(proxy) > before);
        });
    }
    proxy.stop();
}

#[test]
fn reconnects_in_a_loop_fail_nothing() {
    let db = Db::new();
    table(&db);
    let mut proxy = Proxy::start(&db, busy());
    let mut console = proxy.console();
    let mut seen = BTreeSet::new();
    for protocol in ["simple", "extended", "prepared"] {
        under_load(&db, &mut proxy, &["", "-M", protocol], 150, |_, _| {
            seen.extend(db.pids());
            assert_eq!(console.query("reconnect").trace(), "C(RECONNECT) Z(I)");
        });
    }
    assert!(seen.len() >= 20, "only {} backends have been seen", seen.len());
    console.bye();
    proxy.stop();
}

#[test]
fn pauses_in_a_loop_fail_nothing() {
    let db = Db::new();
    table(&db);
    let mut proxy = Proxy::start(&db, busy());
    let mut console = proxy.console();
    for protocol in ["simple", "extended", "prepared"] {
        under_load(&db, &mut proxy, &["", "-M", protocol], 150, |_, turn| {
            let name = if turn.is_multiple_of(2) { "" } else { db.name() };
            assert_eq!(console.query(&format!("pause {name}")).trace(), "C(PAUSE) Z(I)");
            assert_eq!(db.backends("state <> 'idle'"), 0, "nothing runs in a paused pool");
            assert_eq!(console.query(&format!("resume {name}")).trace(), "C(RESUME) Z(I)");
        });
    }
    console.bye();
    proxy.stop();
}

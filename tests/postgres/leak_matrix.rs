//! Each kind of state a session can leave behind, by each way it can end: a second client on the same
//! backend sees nothing of it.
//!
//! One table of kinds, one of ends; a failure names the cell. [`super::state`] has more ways to make the
//! same state, [`super::clients_gone`] what becomes of a leaver's data.

use crate::support::{Config, Db, Login, Msg, Proxy, SETTINGS, STATEMENTS, Wire, msg, trace, until};
use std::collections::BTreeMap;

const SETUP: &[&str] = &[
    "create table t (id int)",
    "create sequence counter",
    "create schema elsewhere",
    "create table big as select repeat('x', 1000) as x from generate_series(1, 20000)",
];

/// What a session is in the middle of when it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Rest,
    Transaction,
    Failed,
    CopyIn,
    CopyOut,
}

/// Whether a session that has it keeps its backend (docs/compatibility.md).
#[derive(Clone, Copy)]
enum Keeps {
    No,
    /// Were statements not to go where their session goes.
    Statement,
    /// Until settings do.
    Setting,
    Always,
}

struct Kind {
    name: &'static str,
    make: Vec<u8>,
    at: At,
    keeps: Keeps,
    /// Nothing shows it: only `reset = "always"` removes it.
    unseen: bool,
    superuser: bool,
}

/// Made by a simple query, at rest.
fn by(name: &'static str, sql: &str) -> Kind {
    Kind { keeps: Keeps::Setting, ..within(name, At::Rest, msg::query(sql)) }
}

fn pinning(name: &'static str, sql: &str) -> Kind {
    Kind { keeps: Keeps::Always, ..by(name, sql) }
}

fn within(name: &'static str, at: At, make: Vec<u8>) -> Kind {
    Kind { name, make, at, keeps: Keeps::No, unseen: false, superuser: false }
}

fn kinds() -> Vec<Kind> {
    let named = [msg::parse("named", "select 'named'"), msg::sync()].concat();
    let unnamed = [msg::parse("", "select 'unnamed'"), msg::sync()].concat();
    let portal = [
        msg::query("begin"),
        msg::parse("", "select generate_series(1, 9)"),
        msg::bind("portal", ""),
        msg::execute("portal", 2),
        msg::sync(),
    ];
    let kept = "begin; insert into t values (1); savepoint a; insert into t values (2)";
    let failed = "begin; insert into t values (1); set work_mem = '7MB'; select 1 / 0";
    let half = [msg::query("copy t from stdin"), msg::copy_data("1\n2\n"), msg::message(b'd', b"3")].concat();
    vec![
        by("SET", "set work_mem = '7MB'"),
        by("SET of a reported setting", "set datestyle = 'German'"),
        by("SET of a custom setting", "set app.mark = 'secret'"),
        by("SET search_path", "set search_path = elsewhere"),
        by("SET ROLE", "set role group_role"),
        by("SET SESSION CHARACTERISTICS", "set session characteristics as transaction read only"),
        by("set_config", "select set_config('work_mem', '7MB', false)"),
        by("set_config of a custom setting", "select set_config('app.mark', 'secret', false)"),
        pinning("LISTEN", "listen bell"),
        pinning("a temporary table", "create temp table mine as select 'secret' as word"),
        pinning("a temporary view", "create temp view mine as select 'secret' as word"),
        pinning("a session advisory lock", "select pg_advisory_lock(7)"),
        pinning("a cursor with hold", "begin; declare held cursor with hold for select 'secret'; commit"),
        pinning("SQL PREPARE", "prepare mine as select 'secret'"),
        Kind { keeps: Keeps::Statement, ..within("a named statement", At::Rest, named) },
        within("the unnamed statement", At::Rest, unnamed),
        within("an open portal", At::Transaction, portal.concat()),
        within("a transaction with a savepoint", At::Transaction, msg::query(kept)),
        within("a failed transaction", At::Failed, msg::query(failed)),
        Kind { unseen: true, keeps: Keeps::No, ..by("a sequence's last value", "select nextval('counter')") },
        Kind { superuser: true, ..pinning("LOAD", "load 'auto_explain'") },
        within("COPY OUT, unread", At::CopyOut, msg::query("copy big to stdout")),
        within("half a COPY IN", At::CopyIn, half),
    ]
}

/// How the first session ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    Terminate,
    Close,
    Reset,
    CloseBehindAPipeline,
    KillClient,
    KillDatabase,
    IdleBudget,
    ServerTerminates,
    CancelThenClose,
    /// It does not end: its backend serves others between its transactions.
    Lives,
}

const ENDS: &[End] = &[
    End::Terminate,
    End::Close,
    End::Reset,
    End::CloseBehindAPipeline,
    End::KillClient,
    End::KillDatabase,
    End::IdleBudget,
    End::ServerTerminates,
    End::CancelThenClose,
    End::Lives,
];

/// Asked by the second client and by a virgin one: one row of everything.
const LOOK: &str = "select current_setting('work_mem'), current_setting('datestyle'), \
    coalesce(current_setting('app.mark', true), ''), current_setting('search_path'), \
    current_setting('transaction_read_only'), current_user, session_user, \
    (select string_agg(c, ',') from pg_listening_channels() c), \
    to_regclass('pg_temp.mine'), to_regclass('mine'), \
    (select count(*) from pg_locks where locktype = 'advisory' \
        and database = (select oid from pg_database where datname = current_database())), \
    (select count(*) from pg_cursors where name <> ''), \
    (select count(*) from pg_prepared_statements where from_sql), \
    pg_current_xact_id_if_assigned() is null, (select count(*) from t), \
    current_setting('auto_explain.log_min_duration', true) is null";

/// What else it tries, by name, and what PostgreSQL says to whoever has none of it.
fn probes() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let sync = msg::sync();
    vec![
        ("Bind of the named statement", [msg::bind("", "named"), sync.clone()].concat(), "E(26000) Z(I)"),
        (
            "Describe of the named statement",
            [msg::describe_statement("named"), sync.clone()].concat(),
            "E(26000) Z(I)",
        ),
        ("Bind of the unnamed statement", [msg::bind("", ""), sync.clone()].concat(), "E(26000) Z(I)"),
        ("Execute of the portal", [msg::execute("portal", 0), sync.clone()].concat(), "E(34000) Z(I)"),
        ("Execute of the unnamed portal", [msg::execute("", 0), sync].concat(), "E(34000) Z(I)"),
        ("EXECUTE", msg::query("execute mine"), "E(26000) Z(I)"),
        ("FETCH", msg::query("fetch all from held"), "E(34000) Z(I)"),
        ("lastval", msg::query("select lastval()"), "T E(55000) Z(I)"),
        ("ROLLBACK TO", msg::query("rollback to a"), "E(25P01) Z(I)"),
        (
            "COPY data",
            [msg::copy_data("4\n"), msg::copy_done(), msg::query("select 4")].concat(),
            "T D C(SELECT 1) Z(I)",
        ),
    ]
}

/// What a cell needs of the proxy: an idle budget, a short wait, a scrub of everything.
type Wants = (bool, bool, bool);

struct Matrix<'a> {
    db: &'a Db<'a>,
    proxies: BTreeMap<Wants, Proxy>,
    same_backend: usize,
}

#[test]
fn nothing_reaches_the_next_client_on_the_backend() {
    let db = Db::new();
    db.run(SETUP);
    let mut matrix = Matrix { db: &db, proxies: BTreeMap::new(), same_backend: 0 };
    let mut cells = 0;
    for kind in &kinds() {
        for &end in ENDS.iter().filter(|end| applies(kind, **end)) {
            matrix.cell(kind, end);
            cells += 1;
        }
    }
    println!("{cells} cells, {} on the same backend", matrix.same_backend);
    assert!(cells > 180, "{cells} cells");
    assert!(matrix.same_backend * 2 > cells, "on the same backend only {} of {cells}", matrix.same_backend);
    for proxy in matrix.proxies.into_values() {
        proxy.stop();
    }
}

/// Not every state can meet every end.
fn applies(kind: &Kind, end: End) -> bool {
    match end {
        // What is in the middle of something is not idle, or keeps its backend in any case.
        End::IdleBudget => !matches!(kind.at, At::CopyIn | At::CopyOut),
        End::Lives => kind.at == At::Rest,
        _ => true,
    }
}

impl Matrix<'_> {
    fn cell(&mut self, kind: &Kind, end: End) {
        let cell = format!("{}, {end:?}", kind.name);
        let wants = (end == End::IdleBudget, end == End::Lives, kind.unseen);
        let proxy = self.proxies.entry(wants).or_insert_with(|| start(self.db, wants));
        let user = if kind.superuser { "postgres" } else { "app" };
        let login = Login::new(user, self.db.name());
        let mut first = Wire::login(proxy.addr(), &login);
        let before = first.query("select pg_backend_pid()").value();
        first.send(&kind.make);
        reaches(&mut first, kind, &cell);
        let lives = finish(self.db, proxy, first, kind, end, &cell);
        let mut second = Wire::login(proxy.addr(), &login);
        let keeps = match kind.keeps {
            Keeps::No => false,
            Keeps::Statement => !STATEMENTS,
            Keeps::Setting => !SETTINGS,
            Keeps::Always => true,
        };
        if lives.is_some() && keeps {
            assert_eq!(second.query("select 1").code(), "53300", "{cell}: its backend is its own");
            return;
        }
        if second.query("select pg_backend_pid()").value() == before {
            self.same_backend += 1;
        }
        let mut virgin = Wire::login(self.db.cluster().addr(), &login);
        for (what, bytes, expected) in probes() {
            assert_eq!(second.ask(&bytes).trace(), expected, "{cell}: {what}");
        }
        assert_eq!(second.query(LOOK).rows(), virgin.query(LOOK).rows(), "{cell}");
        self.db.run(&["notify bell, 'secret'"]);
        assert_eq!(second.query("select 1").trace(), "T D C(SELECT 1) Z(I)", "{cell}: a notification");
        second.bye();
        virgin.bye();
    }
}

fn start(db: &Db<'_>, (idle_budget, impatient, scrubs): Wants) -> Proxy {
    let mut config = Config::one_backend().with("tenant.\"*\"", "mode = \"observe\"");
    if idle_budget {
        let idle =
            "max_idle = { abort = \"50ms\", abort_alone = \"50ms\", mode = \"enforce\", force = true }";
        config = config.with("budget.transaction", idle);
    }
    if impatient {
        config = config.with("pool", "max_wait = \"400ms\"");
    } else {
        config = config.with("pool", "max_wait = \"15s\"");
    }
    if scrubs {
        config = config.with("pool", "reset = \"always\"");
    }
    Proxy::start(db, config)
}

/// Reads until the state is there.
fn reaches(first: &mut Wire, kind: &Kind, cell: &str) {
    let ends = |message: &Msg| match kind.at {
        At::CopyIn => message.kind == b'G',
        At::CopyOut => message.kind == b'H',
        At::Rest => message.to_string() == "Z(I)",
        At::Transaction => message.to_string() == "Z(T)",
        At::Failed => message.to_string() == "Z(E)",
    };
    let mut seen = Vec::new();
    loop {
        seen.push(first.recv().unwrap_or_else(|| panic!("{cell}: closed after {}", trace(&seen))));
        let last = seen.last().expect("just pushed");
        assert!(last.kind != b'E' || kind.at == At::Failed, "{cell}: {last:?}");
        // The portal's transaction has a ReadyForQuery of its own before the last one.
        if ends(last)
            && (kind.name != "an open portal" || seen.iter().filter(|m| m.kind == b'Z').count() == 2)
        {
            return;
        }
    }
}

/// Ends the first session; gives it back where it lives on.
fn finish(db: &Db<'_>, proxy: &Proxy, mut first: Wire, kind: &Kind, end: End, cell: &str) -> Option<Wire> {
    match end {
        End::Terminate => first.send(&msg::terminate()),
        End::Close => {}
        End::Reset => first.reset_when_dropped(),
        End::CloseBehindAPipeline => {
            let work = match kind.at {
                At::CopyIn => msg::copy_data("5\n"),
                _ => [msg::query("select 1"), msg::unnamed("select 2"), msg::sync(), msg::query("select 3")]
                    .concat(),
            };
            first.send(&[work, msg::terminate()].concat());
        }
        End::KillClient => {
            let mut console = proxy.console();
            let named = format!("select id from bursar.clients where port = {}", first.local_port());
            let id = console.query(&named).value();
            console.batch(&format!("kill_client {id}"));
            until(cell, || console.query(&named).rows().is_empty());
        }
        End::KillDatabase => drop(proxy.console().batch(&format!("kill {}", db.name()))),
        End::IdleBudget => {
            if kind.at == At::Rest {
                first.batch("begin");
            }
            let mut console = proxy.console();
            let idle = "select id from bursar.leases where state = 'idle_in_tx'";
            until(cell, || console.batch(idle).rows().is_empty());
            assert_eq!(first.query("select 1").trace(), "E(25P03) Z(E)", "{cell}");
        }
        End::ServerTerminates => db.terminate_backends(),
        End::CancelThenClose => {
            if matches!(kind.at, At::Rest | At::Transaction) {
                first.send(&msg::query("select pg_sleep(60)"));
                until(cell, || db.backends("wait_event = 'PgSleep'") == 1);
            }
            first.cancel();
        }
        End::Lives => return Some(first),
    }
    None
}

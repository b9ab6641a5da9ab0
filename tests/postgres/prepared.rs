//! Prepared statements that sessions share: one copy of a text on a backend, and nobody notices.

use crate::support::{Config, Db, Proxy, Wire, msg, signal, until};

fn start() -> (Db<'static>, Proxy) {
    let db = Db::new();
    db.run(&["create table t (a int)", "insert into t values (1)"]);
    let proxy = Proxy::start(&db, Config::one_backend().lazy());
    (db, proxy)
}

fn prepare(wire: &mut Wire, name: &str, text: &str) -> String {
    wire.ask(&[msg::parse(name, text), msg::sync()].concat()).trace()
}

fn run(wire: &mut Wire, name: &str) -> String {
    wire.ask(&[msg::bind("", name), msg::execute("", 0), msg::sync()].concat()).trace()
}

#[test]
fn one_text_is_one_statement_whatever_it_is_called() {
    let (_db, proxy) = start();
    let mut clients: Vec<Wire> = (0..3).map(|_| proxy.connect()).collect();
    for (number, wire) in clients.iter_mut().enumerate() {
        let name = format!("s{number}");
        assert_eq!(prepare(wire, &name, "select 1"), "1 Z(I)");
        assert_eq!(run(wire, &name), "2 D C(SELECT 1) Z(I)");
    }
    let held = "select count(*) from pg_prepared_statements where statement = 'select 1'";
    assert_eq!(clients[0].query(held).value(), "1");
    // Each has its own name, and nobody has Bursar's.
    assert_eq!(run(&mut clients[0], "s1"), "E(26000) Z(I)");
    assert_eq!(run(&mut clients[0], "bursar_1"), "E(26000) Z(I)");
    proxy.stop();
}

/// Directly, who prepares after the change gets the new rows, and who prepared before gets an error.
#[test]
fn a_text_prepared_after_a_table_was_changed_means_the_new_one() {
    let (_db, proxy) = start();
    let (mut old, mut new) = (proxy.connect(), proxy.connect());
    assert_eq!(prepare(&mut old, "s", "select * from t"), "1 Z(I)");
    assert_eq!(run(&mut old, "s"), "2 D C(SELECT 1) Z(I)");
    new.batch("alter table t add column b int default 7");
    assert_eq!(prepare(&mut new, "s", "select * from t"), "1 Z(I)");
    let row = new.ask(&[msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat());
    assert_eq!(row.trace(), "2 D C(SELECT 1) Z(I)");
    assert_eq!(row.rows(), [[Some("1".into()), Some("7".into())]]);
    assert_eq!(run(&mut old, "s"), "E(0A000) Z(I)");
    proxy.stop();
}

/// Who was told what the rows look like, and reads them so, is not sent others: not on a backend either that
/// parses the statement only now.
#[test]
fn described_rows_keep_their_shape_on_every_backend() {
    let db = Db::new();
    db.run(&["create table t (a int, b int)", "insert into t values (1, 2)"]);
    let proxy = Proxy::start(&db, Config::of_size(3).with("pool", "reuse = \"round_robin\""));
    let (mut told, mut other) = (proxy.connect(), proxy.connect());
    let describe = [msg::parse("s", "select * from t"), msg::describe_statement("s"), msg::sync()];
    assert_eq!(told.ask(&describe.concat()).trace(), "1 t T Z(I)");
    for _ in 0..4 {
        assert_eq!(run(&mut told, "s"), "2 D C(SELECT 1) Z(I)");
    }
    // Not through the proxy: nobody tells it.
    db.run(&["alter table t alter b type text"]);
    for _ in 0..6 {
        let reply = told.ask(&[msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat());
        assert_eq!(reply.trace(), "E(0A000) Z(I)");
        let text = reply.error().and_then(|error| error.field(b'M'));
        assert_eq!(text.as_deref(), Some("cached plan must not change result type"));
    }
    // And on backends that never had it.
    db.terminate_backends();
    for _ in 0..4 {
        let reply = told.ask(&[msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat());
        assert_eq!(reply.trace(), "E(0A000) Z(I)");
        // By this drivers know that they may prepare again.
        let routine = reply.error().and_then(|error| error.field(b'R'));
        assert_eq!(routine.as_deref(), Some("RevalidateCachedQuery"));
    }
    assert_eq!(prepare(&mut other, "s", "select * from t"), "1 Z(I)");
    for _ in 0..4 {
        assert_eq!(run(&mut other, "s"), "2 D C(SELECT 1) Z(I)");
    }
    // It closes the old one and prepares again, as drivers do.
    let again = [msg::close_statement("s"), describe.concat()].concat();
    assert_eq!(told.ask(&again).trace(), "3 1 t T Z(I)");
    assert_eq!(run(&mut told, "s"), "2 D C(SELECT 1) Z(I)");
    // The same shape is no reason to complain, wherever it is parsed.
    db.terminate_backends();
    for _ in 0..4 {
        assert_eq!(run(&mut told, "s"), "2 D C(SELECT 1) Z(I)");
    }
    proxy.stop();
}

/// A backend that is asked for the shape has begun something: where its answer comes together with the
/// ReadyForQuery of the segment before, that one is not the end of the lease.
#[test]
fn a_backend_is_kept_from_the_question_for_a_shape_to_the_end_of_the_segment() {
    let db = Db::new();
    db.run(&["create table t (a int)", "insert into t values (1)", "create table locked (a int)"]);
    // Each time the next of three, so that one which is left in a transaction stays so.
    let proxy = Proxy::start(&db, Config::of_size(3).with("pool", "reuse = \"round_robin\""));
    let mut clients = [(); 3].map(|()| proxy.connect());
    for sql in ["begin", "commit"] {
        clients.iter_mut().for_each(|client| drop(client.batch(sql)));
    }
    let ([told, ..], mut locker) = (&mut clients, db.direct());
    let describe = [msg::parse("s", "select * from t"), msg::describe_statement("s"), msg::sync()];
    assert_eq!(told.ask(&describe.concat()).trace(), "1 t T Z(I)");
    locker.batch("begin; lock locked");
    let first = [msg::parse("", "select * from locked"), msg::bind("", ""), msg::execute("", 0), msg::sync()];
    let second = [msg::bind("", "s"), msg::execute("", 0), msg::sync()];
    told.send(&[first.concat(), second.concat()].concat());
    until("it waits for the lock", || db.backends("wait_event_type = 'Lock'") == 1);
    signal(proxy.pid(), "STOP");
    locker.batch("rollback");
    until("all has been answered", || {
        db.backends("state = 'active' and wait_event = 'ClientRead' and query = 'select * from t'") == 1
    });
    signal(proxy.pid(), "CONT");
    assert_eq!(told.recv_reply().trace(), "1 2 C(SELECT 0) Z(I)");
    assert_eq!(told.recv_reply().trace(), "2 D C(SELECT 1) Z(I)");
    assert_eq!(db.backends("xact_start is not null"), 0);
    proxy.stop();
}

/// Which statement an answer is about does not depend on errors that come in between.
#[test]
fn a_shape_is_compared_with_that_of_its_own_statement() {
    let db = Db::new();
    db.run(&["create table locked (a int, b int)"]);
    let proxy = Proxy::start(&db, Config::of_size(3).with("pool", "reuse = \"round_robin\""));
    let mut clients = [(); 3].map(|()| proxy.connect());
    for sql in ["begin", "commit"] {
        clients.iter_mut().for_each(|client| drop(client.batch(sql)));
    }
    let ([told, ..], mut locker) = (&mut clients, db.direct());
    for (name, sql) in [("two", "select * from locked"), ("one", "select 1")] {
        let describe = [msg::parse(name, sql), msg::describe_statement(name)];
        told.ask(&[describe.concat(), msg::sync()].concat());
    }
    // The third backend has neither.
    locker.batch("begin; lock locked");
    let run = |name: &str| [msg::bind("", name), msg::execute("", 0), msg::sync()].concat();
    told.send(&[run("none"), run("two"), run("one")].concat());
    assert_eq!(told.recv_reply().trace(), "E(26000) Z(I)");
    until("it waits for the lock", || db.backends("wait_event_type = 'Lock'") == 1);
    locker.batch("rollback");
    assert_eq!(told.recv_reply().trace(), "2 C(SELECT 0) Z(I)");
    assert_eq!(told.recv_reply().trace(), "2 D C(SELECT 1) Z(I)");
    proxy.stop();
}

/// A pipeline that begins with the ROLLBACK of a failed transaction is not in one.
#[test]
fn a_parse_behind_a_rollback_is_as_any_other() {
    let (db, proxy) = start();
    let mut other = proxy.connect();
    assert_eq!(prepare(&mut other, "s", "select 1"), "1 Z(I)");
    let back = |sql: &str| [msg::parse("", sql), msg::bind("", ""), msg::execute("", 0)].concat();
    for mut wire in [db.direct(), proxy.connect()] {
        wire.batch("begin; savepoint a");
        assert_eq!(run(&mut wire, "none"), "E(26000) Z(E)");
        let parse = |sql: &str| [back(sql), msg::parse("s", "select 1"), msg::sync()].concat();
        assert_eq!(wire.ask(&parse("select 2")).trace(), "E(25P02) Z(E)");
        assert_eq!(prepare(&mut wire, "s", "select 1"), "E(25P02) Z(E)");
        assert_eq!(wire.ask(&parse("rollback to a")).trace(), "1 2 C(ROLLBACK) 1 Z(T)");
        assert_eq!(run(&mut wire, "none"), "E(26000) Z(E)");
        let again = [back("rollback"), msg::close_statement("s"), msg::parse("s", "select 1"), msg::sync()];
        assert_eq!(wire.ask(&again.concat()).trace(), "1 2 C(ROLLBACK) 3 1 Z(I)");
        assert_eq!(run(&mut wire, "s"), "2 D C(SELECT 1) Z(I)");
    }
    proxy.stop();
}

/// It is not transactional, and its command tag does not come: PostgreSQL sends that after the commit.
#[test]
fn deallocate_all_has_run_where_its_transaction_cannot_commit() {
    let (db, proxy) = start();
    db.run(&[
        "create table parent (id int primary key)",
        "create table child (id int references parent deferrable initially deferred)",
    ]);
    let mut other = proxy.connect();
    assert_eq!(prepare(&mut other, "s", "select 1"), "1 Z(I)");
    let insert = [msg::parse("", "insert into child values (1)"), msg::bind("", ""), msg::execute("", 0)];
    let deallocate = [insert.concat(), msg::query("deallocate all")].concat();
    let said = [db.direct(), proxy.connect()].map(|mut wire| {
        assert_eq!(prepare(&mut wire, "s", "select 1"), "1 Z(I)");
        // From PostgreSQL 18 on the transaction ends with the COMMIT and not before.
        let said = [wire.ask(&deallocate).trace(), wire.query("commit").trace(), run(&mut wire, "s")];
        assert_eq!(prepare(&mut wire, "s", "select 1"), "1 Z(I)");
        said
    });
    let [direct, proxied] = &said;
    assert_eq!(direct, proxied);
    assert_eq!(direct[2], "E(26000) Z(I)");
    assert!(direct[..2].concat().contains("E(23503)"), "{direct:?}");
    assert_eq!(run(&mut other, "s"), "2 D C(SELECT 1) Z(I)");
    proxy.stop();
}

/// A type of the same name is another type: what was parsed for the old one is of no use.
#[test]
fn nor_does_it_mean_a_type_that_is_gone() {
    let (_db, proxy) = start();
    for _ in 0..3 {
        let mut wire = proxy.connect();
        wire.batch("begin; create type mood as enum ('sad'); create table moods (m mood)");
        assert_eq!(prepare(&mut wire, "s", "insert into moods values ($1)"), "1 Z(T)");
        let bind = [msg::bind_with("", "s", &[Some("sad")]), msg::execute("", 0), msg::sync()].concat();
        assert_eq!(wire.ask(&bind).trace(), "2 C(INSERT 0 1) Z(T)");
        wire.batch("rollback");
        wire.bye();
    }
    proxy.stop();
}

/// A statement that says when it was read is not the one that another session read earlier.
#[test]
fn what_is_dated_is_nobody_elses() {
    let (_db, proxy) = start();
    let text = "select 'now'::timestamptz";
    let mut read = Vec::new();
    for _ in 0..2 {
        let mut wire = proxy.connect();
        assert_eq!(prepare(&mut wire, "s", text), "1 Z(I)");
        let bind = [msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat();
        read.push(wire.ask(&bind).value());
        assert_eq!(wire.ask(&bind).value(), *read.last().expect("just read"), "read once");
        wire.bye();
    }
    assert_ne!(read[0], read[1]);
    proxy.stop();
}

/// Directly each Bind looks again whether the text still means something.
#[test]
fn an_unnamed_statement_that_has_become_wrong_stays_and_says_so_each_time() {
    let (db, proxy) = start();
    let mut other = proxy.connect();
    let bind = [msg::bind("", ""), msg::sync()].concat();
    for mut wire in [db.direct(), proxy.connect()] {
        assert_eq!(prepare(&mut wire, "", "select a from t"), "1 Z(I)");
        other.batch("alter table t rename a to b");
        assert_eq!([(); 3].map(|()| wire.ask(&bind).trace()), ["E(42703) Z(I)"; 3]);
        other.batch("alter table t rename b to a");
        assert_eq!(wire.ask(&bind).trace(), "2 Z(I)");
    }
    proxy.stop();
}

/// A named statement's Parse is Bursar's own on the backend, but what PostgreSQL remarks is said to who sent it.
#[test]
fn what_postgresql_remarks_about_a_text_reaches_who_parses_it() {
    let (db, proxy) = start();
    let told = |mut wire: Wire, name: &str| {
        wire.batch("set standard_conforming_strings = off");
        let reply = wire.ask(&[msg::parse(name, "select 'a\\\\b'"), msg::sync()].concat());
        (reply.trace(), reply.messages[0].field(b'M'))
    };
    let direct = told(db.direct(), "s");
    assert_eq!(direct.0, "N(22P06) 1 Z(I)");
    assert_eq!(told(proxy.connect(), "s"), direct);
    // Where it is parsed because somebody uses it, they have been told.
    let mut user = proxy.connect();
    user.batch("set standard_conforming_strings = off");
    let first = [msg::parse("s", "select 'c\\\\d'"), msg::sync()].concat();
    assert_eq!(user.ask(&first).trace(), "N(22P06) 1 Z(I)");
    proxy.connect().batch("discard all");
    db.terminate_backends();
    assert_eq!(run(&mut user, "s"), "2 D C(SELECT 1) Z(I)");
    proxy.stop();
}

/// As on a direct connection: what the text says was settled by its Parse.
#[test]
fn a_text_is_not_read_again_when_settings_that_matter_for_reading_change() {
    let (db, proxy) = start();
    let told = |mut wire: Wire| {
        assert_eq!(prepare(&mut wire, "s", "select '\\xdead'::bytea, 'na\u{ef}ve'"), "1 Z(I)");
        wire.batch("set standard_conforming_strings = off");
        let backslash = run(&mut wire, "s");
        wire.batch("set client_encoding = 'latin1'");
        let all = [msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat();
        (backslash, wire.ask(&all).messages)
    };
    let direct = told(db.direct());
    assert_eq!(direct.0, "2 D C(SELECT 1) Z(I)");
    assert_eq!(told(proxy.connect()), direct);
    proxy.stop();
}

/// A Close of a name is answered by Bursar. PostgreSQL ends the connection of a client that sends one into its COPY.
#[test]
fn a_close_in_the_middle_of_a_copy_ends_the_connection() {
    let (db, proxy) = start();
    let copies = [
        msg::query("copy t from stdin"),
        [msg::parse("", "copy t from stdin"), msg::bind("", ""), msg::execute("", 0)].concat(),
    ];
    for copy in copies {
        for syncs in [true, false] {
            for (mut wire, who) in [(db.direct(), "directly"), (proxy.connect(), "through Bursar")] {
                assert_eq!(prepare(&mut wire, "s", "select 1"), "1 Z(I)");
                let sync = if syncs { msg::sync() } else { msg::flush() };
                wire.send(&[copy.clone(), msg::close_statement("s"), sync].concat());
                let errors = std::iter::from_fn(|| wire.recv()).filter(|message| message.kind == b'E');
                let codes: Vec<_> = errors.filter_map(|message| message.field(b'C')).collect();
                assert_eq!(codes, ["08P01", "08P01"], "{who}");
            }
        }
    }
    assert_eq!(proxy.connect().query("select 7").value(), "7");
    proxy.stop();
}

/// The backend that has it has it as it was read; another one would read it with the session's settings of now.
#[test]
fn a_text_is_never_read_as_something_else_than_it_was() {
    let db = Db::new();
    db.run(&["create table t (a int)"]);
    let proxy = Proxy::start(&db, Config::one_backend().with("pool", "size = 2"));
    let (mut wire, mut holder) = (proxy.connect(), proxy.connect());
    wire.batch("set client_encoding = 'latin1'");
    assert_eq!(prepare(&mut wire, "s", "select length('é')"), "1 Z(I)");
    wire.batch("set client_encoding = 'utf8'");
    let length = |wire: &mut Wire| wire.ask(&[msg::bind("", "s"), msg::execute("", 0), msg::sync()].concat());
    assert_eq!(length(&mut wire).value(), "2", "in Latin 1 these are two letters");
    holder.batch("begin; insert into t values (1)");
    assert_eq!(length(&mut wire).trace(), "E(0A000) Z(I)");
    assert_eq!(wire.ask(&[msg::describe_statement("s"), msg::sync()].concat()).trace(), "E(0A000) Z(I)");
    holder.batch("commit");
    // Prepared anew, as drivers do that read this error, it is what it says now, on every backend.
    wire.ask(&[msg::close_statement("s"), msg::sync()].concat());
    assert_eq!(prepare(&mut wire, "s", "select length('é')"), "1 Z(I)");
    for hold in ["begin; insert into t values (1)", "commit"] {
        holder.batch(hold);
        // Another way to the same tables is no other way to read.
        wire.batch("set search_path = public");
        assert_eq!(length(&mut wire).value(), "1", "{hold}");
    }
    proxy.stop();
}

//! Prepared statements that sessions share: one copy of a text on a backend, and nobody notices.

use crate::support::{Config, Db, Proxy, Wire, msg};

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
        assert_eq!(run(&mut told, "s"), "E(0A000) Z(I)");
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

//! The files that a database's administrator runs (`deploy/sql`): in any order, and again after an update.

use crate::support::{Cluster, Db, Login, Wire};
use std::path::Path;

/// All of them, by name.
fn files() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/sql");
    let entries = std::fs::read_dir(dir).expect("deploy/sql").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = entries
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).expect("a text")))
        .collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    files
}

#[test]
fn they_run_in_any_order_and_again() {
    let cluster = Cluster::new();
    for backwards in [false, true] {
        let db = Db::within(&cluster);
        let mut files = files();
        if backwards {
            files.reverse();
        }
        let mut superuser = Wire::login(cluster.addr(), &Login::new("postgres", db.name()));
        for round in ["first", "again"] {
            for (name, text) in &files {
                let reply = superuser.query(text);
                assert_eq!(reply.code(), "", "{name}, {round}, backwards: {backwards}: {reply:?}");
            }
            if round == "first" {
                superuser.batch("select bursar.set_secret('hush')");
            }
        }
        let mut ask = |sql: &str| superuser.query(sql).value();
        assert_eq!(ask("select count(*) from bursar.secret"), "1", "a secret that is set stays");
        assert_eq!(ask("select name from bursar.verifier('app')"), "app");
        assert_eq!(ask("select bursar.tenant() is null"), "t");
    }
}

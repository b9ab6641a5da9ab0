//! One login role for each tenant (L3): policies ask who is logged in, which nobody who can run SQL can
//! change, and each role has a pool of its own.

use crate::support::watch::metric;
use crate::support::{Config, Db, Login, Proxy, Wire, msg, until};

const TENANTS: [&str; 3] = ["a", "b", "c"];

/// Whose rows a session sees, and how many.
const LOOK: &str = "select coalesce(string_agg(distinct tenant, ','), 'none') || count(*) from docs";

/// Roles belong to the cluster that tests share: these are this database's.
fn role(db: &Db<'_>, tenant: &str) -> String {
    format!("{}_{tenant}", db.name())
}

/// Three rows of each tenant, which its role may see and write.
fn prepare() -> Db<'static> {
    let db = Db::new();
    let mut superuser = Wire::login(db.cluster().addr(), &Login::new("postgres", db.name()));
    superuser.batch("create table docs (tenant text not null default current_user, id int)");
    superuser.batch("alter table docs enable row level security");
    superuser.batch("create policy own on docs using (tenant = current_user)");
    for tenant in TENANTS {
        let role = role(&db, tenant);
        superuser.batch(&format!("create role {role} login; grant select, insert on docs to {role}"));
        superuser.batch(&format!("insert into docs select '{role}', id from generate_series(1, 3) id"));
    }
    db
}

fn login(db: &Db<'_>, proxy: &Proxy, tenant: &str) -> Wire {
    Wire::login(proxy.addr(), &Login::new(&role(db, tenant), db.name()))
}

#[test]
fn each_role_sees_its_own_rows_on_backends_of_its_own() {
    let db = prepare();
    // Fewer backends than roles: one role's is closed for another's.
    let config = Config::of_size(2).lazy().with("server", "max_backends = 2");
    let proxy = Proxy::start(&db, config.with("pool", "min_idle = 0"));
    let mut wires = TENANTS.map(|tenant| login(&db, &proxy, tenant));
    let named = [msg::bind("", "look"), msg::execute("", 0), msg::sync()].concat();
    for wire in &mut wires {
        wire.ask(&[msg::parse("look", LOOK), msg::sync()].concat());
    }
    for round in 0..6 {
        for (tenant, wire) in TENANTS.iter().zip(&mut wires) {
            let expected = format!("{}{}", role(&db, tenant), 3 + round);
            assert_eq!(wire.query(LOOK).value(), expected, "round {round}");
            assert_eq!(wire.ask(&named).value(), expected, "prepared, round {round}");
            wire.batch("begin");
            assert_eq!(
                wire.query(&format!("insert into docs values (default, {round})")).trace(),
                "C(INSERT 0 1) Z(T)"
            );
            wire.batch("commit");
        }
        // One that is closed takes a moment to leave.
        until("there are two", || db.pids().len() <= 2);
    }
    drop(wires);
    proxy.stop();
}

#[test]
fn no_role_gets_at_what_is_anothers() {
    let db = prepare();
    let mut config = Config::of_size(1);
    for tenant in TENANTS {
        config = config.with(&format!("tenant.{tenant}"), &format!("users = [\"{}\"]", role(&db, tenant)));
    }
    let proxy = Proxy::start(&db, config);
    let (own, other) = (role(&db, "a"), role(&db, "b"));
    for (statement, code) in [
        (format!("set role {other}"), "42501"),
        (format!("set session authorization {other}"), "42501"),
        (format!("insert into docs values ('{other}', 1)"), "42501"),
        (format!("set role {own}"), "00000"),
        ("reset role".to_owned(), "00000"),
        ("reset session authorization".to_owned(), "00000"),
        ("set row_security = off".to_owned(), "00000"),
    ] {
        let mut wire = login(&db, &proxy, "a");
        let reply = wire.query(&statement);
        assert_eq!(reply.error().map_or("00000".to_owned(), |_| reply.code()), code, "{statement}");
        if statement.contains("row_security") {
            assert_eq!(wire.query(LOOK).code(), "42501", "PostgreSQL refuses what a policy would filter");
        } else {
            assert_eq!(wire.query(LOOK).value(), format!("{own}3"), "{statement}");
        }
        wire.bye();
        assert_eq!(login(&db, &proxy, "b").query(LOOK).value(), format!("{other}3"), "behind {statement}");
        assert_eq!(login(&db, &proxy, "a").query(LOOK).value(), format!("{own}3"), "behind {statement}");
    }
    // V5: the tenant that a session names must be its role's.
    let mut wire = login(&db, &proxy, "a");
    wire.batch("set bursar.tenant = 'a'");
    assert_eq!(wire.query(LOOK).value(), format!("{own}3"));
    wire.batch("set bursar.tenant = 'b'");
    assert_eq!(wire.query(LOOK).trace(), "E(42501) Z(I)");
    assert_eq!(metric(&proxy, "bursar_isolation_violations_total{kind=\"V5\"}"), 1.0);
    proxy.stop();
}

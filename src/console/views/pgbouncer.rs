//! Views that PgBouncer has too, except connections (`sockets.rs`) and statistics (`stats.rs`).

use super::sockets::server_state;
use super::{View, row};
use crate::book::PoolId;
use crate::book::view::{PoolView, View as Book};
use crate::config::{Config, Database, PoolMode, show_moment};
use crate::console::source::Source;
use crate::console::table::{Row, int, text, truth};
use crate::session::registry::ClientRow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The rules that a database name falls under.
fn database<'a>(config: &'a Config, name: &str) -> Option<&'a Arc<Database>> {
    config.databases.get(name).or(config.any_database.as_ref())
}

fn mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
        PoolMode::Statement => "statement",
        PoolMode::Request => "request",
    }
}

/// Whether a session belongs to a pool: by name, or by name and a tenant suffix (`app.acme`).
fn belongs(client: &ClientRow, pool: &PoolView) -> bool {
    let suffix = client.user.strip_prefix(&*pool.user);
    client.database == pool.database && suffix.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

pub(super) static POOLS: View = View {
    name: "pools",
    what: "one row a pool: clients, backends, waits",
    columns: &[
        text("database"),
        text("user"),
        int("cl_active"),
        int("cl_waiting"),
        int("cl_active_cancel_req"),
        int("cl_waiting_cancel_req"),
        int("sv_active"),
        int("sv_active_cancel"),
        int("sv_being_canceled"),
        int("sv_idle"),
        int("sv_used"),
        int("sv_tested"),
        int("sv_login"),
        int("maxwait"),
        int("maxwait_us"),
        text("pool_mode"),
        text("load_balance_hosts"),
        int("size"),
        int("leases_peak"),
        int("leases_total"),
        int("timeouts"),
        truth("paused"),
    ],
    quotes: &[],
    rows: pools,
};

/// Leases of a pool, beyond those in plain use, as PgBouncer tells its servers apart.
#[derive(Debug, Clone, Copy, Default)]
struct Apart {
    /// Being made fit for the next session.
    tested: usize,
    /// Held back until the cancel requests sent to them have been delivered.
    being_canceled: usize,
    /// Cancel requests on their way.
    cancels: u64,
}

fn apart(source: &dyn Source, book: &Book) -> HashMap<PoolId, Apart> {
    let pools: HashMap<_, _> = book.leases.iter().map(|lease| (lease.id, lease.pool)).collect();
    let mut apart: HashMap<PoolId, Apart> = HashMap::new();
    for detail in source.leases() {
        let Some(pool) = pools.get(&detail.lease) else { continue };
        let pool = apart.entry(*pool).or_default();
        pool.cancels += u64::from(detail.cancels);
        match server_state(&detail) {
            "tested" => pool.tested += 1,
            "being_canceled" => pool.being_canceled += 1,
            _ => {}
        }
    }
    apart
}

fn pools(source: &dyn Source) -> Vec<Row> {
    let (config, clients, book) = (source.config(), source.clients(), source.view());
    let apart = apart(source, &book);
    let row = |pool: PoolView| {
        let active = clients.iter().filter(|c| belongs(c, &pool) && c.state != "waiting").count();
        let apart = apart.get(&pool.id).copied().unwrap_or_default();
        row![
            &pool.database,
            &pool.user,
            active,
            pool.waiting,
            apart.cancels,
            0,
            pool.leased.saturating_sub(apart.tested + apart.being_canceled),
            apart.cancels,
            apart.being_canceled,
            pool.idle,
            0,
            apart.tested,
            pool.dialling,
            pool.oldest_wait.as_secs(),
            pool.oldest_wait.subsec_micros(),
            mode(config.pool_rules(&pool.database, &pool.user).map_or(config.pool.mode, |rules| rules.mode)),
            "",
            pool.size,
            pool.leases_peak,
            pool.leases_total,
            pool.timeouts,
            pool.paused,
        ]
    };
    book.pools.into_iter().map(row).collect()
}

pub(super) static DATABASES: View = View {
    name: "databases",
    what: "one row a database: where it lives, how its pools behave",
    columns: &[
        text("name"),
        text("host"),
        int("port"),
        text("database"),
        text("force_user"),
        int("pool_size"),
        int("min_pool_size"),
        int("reserve_pool_size"),
        int("server_lifetime"),
        text("pool_mode"),
        text("load_balance_hosts"),
        int("max_connections"),
        int("current_connections"),
        int("max_client_connections"),
        int("current_client_connections"),
        int("paused"),
        int("disabled"),
    ],
    quotes: &[],
    rows: databases,
};

fn databases(source: &dyn Source) -> Vec<Row> {
    let (config, view) = (source.config(), source.view());
    let (backends, clients) = (source.backends(), source.clients());
    let mut names: BTreeSet<String> = config.databases.keys().cloned().collect();
    names.extend(view.pools.iter().map(|pool| pool.database.to_string()));
    let row = |name: String| {
        let rules = database(&config, &name)?;
        let pools = || view.pools.iter().filter(|pool| *pool.database == *name);
        Some(row![
            name.clone(),
            rules.host.clone(),
            rules.port,
            rules.dbname.clone().unwrap_or_else(|| name.clone()),
            rules.user.clone(),
            rules.pool.size,
            rules.pool.min_idle,
            rules.pool.overflow,
            rules.pool.lifetime.map_or(0, |lifetime| lifetime.as_secs()),
            mode(rules.pool.mode),
            "",
            0,
            backends.iter().filter(|backend| *backend.database == *name).count(),
            0,
            clients.iter().filter(|client| *client.database == *name).count(),
            i64::from(pools().count() > 0 && pools().all(|pool| pool.paused)),
            0,
        ])
    };
    names.into_iter().filter_map(row).collect()
}

pub(super) static USERS: View = View {
    name: "users",
    what: "one row a role",
    columns: &[
        text("name"),
        text("pool_size"),
        text("reserve_pool_size"),
        text("pool_mode"),
        int("max_user_connections"),
        int("current_connections"),
        int("max_user_client_connections"),
        int("current_client_connections"),
        text("valid_until"),
    ],
    quotes: &[],
    rows: users,
};

fn users(source: &dyn Source) -> Vec<Row> {
    let (config, view) = (source.config(), source.view());
    let mut names: BTreeMap<String, (usize, usize)> =
        config.users.keys().map(|name| (name.clone(), (0, 0))).collect();
    for pool in &view.pools {
        names.entry(pool.user.to_string()).or_default();
    }
    for backend in source.backends() {
        names.entry(backend.user.to_string()).or_default().0 += 1;
    }
    for client in source.clients() {
        let pool = view.pools.iter().find(|pool| belongs(&client, pool));
        names.entry(pool.map_or(&client.user, |pool| &pool.user).to_string()).or_default().1 += 1;
    }
    let row = |(name, (backends, clients))| {
        // Empty, as in PgBouncer, where the database decides.
        let rule = config.users.get(&name);
        let own = rule.and_then(|user| user.mode).map_or("", mode);
        let until = rule.and_then(|user| user.valid_until).map_or_else(String::new, show_moment);
        row![name, "", "", own, 0, backends, 0, clients, until]
    };
    names.into_iter().map(row).collect()
}

pub(super) static LISTS: View = View {
    name: "lists",
    what: "how many there are of everything",
    columns: &[text("list"), int("items")],
    quotes: &[],
    rows: |source| {
        let (backends, clients) = (source.backends(), source.clients());
        let login = clients.iter().filter(|client| client.state == "login").count();
        let used = backends.iter().filter(|backend| backend.lease.is_some()).count();
        let view = source.view();
        vec![
            row!["databases", (DATABASES.rows)(source).len()],
            row!["users", (USERS.rows)(source).len()],
            row!["peers", 0],
            row!["pools", view.pools.len()],
            row!["peer_pools", 0],
            row!["free_clients", 0],
            row!["used_clients", clients.len()],
            row!["login_clients", login],
            row!["free_servers", backends.len() - used],
            row!["used_servers", used],
            row!["dns_names", 0],
            row!["dns_zones", 0],
            row!["dns_queries", 0],
            row!["dns_pending", 0],
            row!["requests", view.requests.len()],
            row!["leases", view.leases.len()],
            row!["waiters", view.waiters.len()],
        ]
    },
};

pub(super) static CONFIG: View = View {
    name: "config",
    what: "every setting in force",
    columns: &[text("key"), text("value"), text("default"), text("changeable")],
    quotes: &[],
    rows: |source| {
        let config = source.config();
        let ours = config.show().into_iter().map(|setting| {
            let changeable = if setting.changeable { "yes" } else { "no" };
            row![setting.key, setting.value, setting.default, changeable]
        });
        // The two keys that PgBouncer's exporter reads, under PgBouncer's names.
        let max_clients = config.listen.max_clients.to_string();
        let theirs =
            [row!["max_client_conn", max_clients, "", "no"], row!["max_user_connections", "0", "0", "no"]];
        ours.chain(theirs).collect()
    },
};

pub(super) static MEM: View = View {
    name: "mem",
    what: "memory of the process, in bytes",
    columns: &[text("name"), int("size"), int("used"), int("free"), int("memtotal")],
    quotes: &[],
    rows: |_| {
        // Bursar has no slabs; the kernel's own count of the process is what there is to show.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
        };
        [("resident", "VmRSS:"), ("resident_peak", "VmHWM:")]
            .into_iter()
            .filter_map(|(name, field)| bytes(field).map(|used| row![name, 1, used, 0, used]))
            .collect()
    },
};

pub(super) static STATE: View = View {
    name: "state",
    what: "active, paused, draining",
    columns: &[text("key"), text("value")],
    quotes: &[],
    rows: |source| {
        let pools = source.view().pools;
        let paused = !pools.is_empty() && pools.iter().all(|pool| pool.paused);
        let word = |yes| if yes { "yes" } else { "no" };
        vec![
            row!["active", word(!paused && !source.draining())],
            row!["paused", word(paused)],
            row!["suspended", "no"],
            row!["draining", word(source.draining())],
        ]
    },
};

pub(super) static VERSION: View = View {
    name: "version",
    what: "Bursar's version",
    columns: &[text("version")],
    quotes: &[],
    rows: |_| vec![row![concat!("Bursar ", env!("CARGO_PKG_VERSION"))]],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rights;
    use crate::console::fake::Fake;

    fn names(columns: &[crate::console::Column]) -> Vec<&str> {
        columns.iter().map(|column| &*column.name).collect()
    }

    #[test]
    fn pools_begin_with_pgbouncers_columns() {
        let theirs = [
            "database",
            "user",
            "cl_active",
            "cl_waiting",
            "cl_active_cancel_req",
            "cl_waiting_cancel_req",
            "sv_active",
            "sv_active_cancel",
            "sv_being_canceled",
            "sv_idle",
            "sv_used",
            "sv_tested",
            "sv_login",
            "maxwait",
            "maxwait_us",
            "pool_mode",
            "load_balance_hosts",
        ];
        assert_eq!(names(POOLS.columns)[..theirs.len()], theirs);
    }

    #[test]
    fn pools_count_clients_backends_and_the_oldest_wait() {
        let rows = POOLS.table(&Fake::planted(), Rights::ALL).rows;
        let first: Vec<_> =
            rows[0][..16].iter().map(|v| v.to_text().unwrap_or_default().into_owned()).collect();
        let expected = ["app", "web", "2", "1", "0", "0", "2", "0", "0", "1", "0", "0", "1", "1", "500000"];
        assert_eq!(first[..15], expected);
        assert_eq!(first[15], "transaction");
    }

    #[test]
    fn pools_tell_backends_apart_by_what_is_done_to_them() {
        let mut fake = Fake::planted();
        fake.cleaning = vec![0, 1];
        let table = POOLS.table(&fake, Rights::ALL);
        let cell = |name: &str| {
            let at = names(POOLS.columns).iter().position(|column| *column == name).unwrap();
            table.rows[0][at].clone()
        };
        for (column, count) in [
            ("sv_active", 0),
            ("sv_tested", 1),
            ("sv_being_canceled", 1),
            ("sv_active_cancel", 1),
            ("cl_active_cancel_req", 1),
        ] {
            assert_eq!(cell(column), count.into(), "{column}");
        }
    }
}

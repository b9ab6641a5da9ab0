//! Findings over random servers, roles and configurations: what they name is there, and following them ends them.

use super::*;
use proptest::prelude::*;

/// A configuration and servers, from which [`Sizes`] are made.
#[derive(Debug, Clone)]
struct World {
    /// `size`, `overflow`, `deadlock_overflow`, `min_idle` of databases `d0`, `d1` …
    tables: Vec<[usize; 4]>,
    max_backends: usize,
    /// Database, role, server.
    pools: Vec<(usize, usize, usize)>,
    /// `max_connections` and what is reserved.
    servers: Vec<(u32, u32)>,
    /// On every server alike.
    roles: Vec<Option<u32>>,
    databases: Vec<Option<u32>>,
    beside: bool,
}

fn place(server: &str, dbname: &str, role: &str) -> Place {
    Place { server: server.into(), dbname: dbname.into(), role: role.into() }
}

const KEYS: [&str; 4] = ["size", "overflow", "deadlock_overflow", "min_idle"];

impl World {
    fn sizes(&self) -> Sizes {
        let pool = |(number, &(database, role, server)): (usize, &(usize, usize, usize))| {
            let [size, overflow, extra, min_idle] = self.tables[database];
            let (max, reserved) = self.servers[server];
            let limits = Limits {
                max_connections: Some(max),
                reserved,
                role: self.roles[role],
                database: self.databases[database],
                ..Limits::default()
            };
            Demand {
                database: format!("d{database}").into(),
                place: place(&format!("s{server}"), &format!("d{database}"), &format!("r{role}")),
                size,
                overflow,
                extra,
                min_idle,
                limits: Some((number as u64, Arc::new(limits))),
            }
        };
        Sizes {
            pools: self.pools.iter().enumerate().map(pool).collect(),
            max_backends: self.max_backends,
            beside: if self.beside { vec![place("s0", "d0", "r0")] } else { Vec::new() },
        }
    }

    /// As it is when this is written into it; of two values the lower.
    fn follow(&mut self, key: &str, value: usize) {
        let place = match key.strip_prefix("database.d") {
            None => {
                assert_eq!(key, "server.max_backends");
                &mut self.max_backends
            }
            Some(rest) => {
                let (table, key) = rest.split_once('.').expect("two names");
                let at = KEYS.iter().position(|known| *known == key).expect("a key");
                &mut self.tables[table.parse::<usize>().expect("a number")][at]
            }
        };
        *place = value.min(*place);
    }

    /// Whether something is more than a limit lets in, as one would count it by hand.
    fn over(&self, whose: &Whose, server: usize) -> Option<usize> {
        let name = |letter: char, at: usize| format!("{letter}{at}");
        let under = |&&(database, role, at): &&(usize, usize, usize)| {
            at == server
                && match whose {
                    Whose::Role(own) => **own == name('r', role),
                    Whose::Database(own) => **own == name('d', database),
                    Whose::Server => true,
                }
        };
        let most = self.pools.iter().filter(under).map(|&(database, ..)| self.tables[database]);
        let all: usize = most.map(|[size, overflow, extra, _]| size + overflow + extra).sum();
        let number = |name: &str| name[1..].parse::<usize>().expect("a number");
        let (limit, beside) = match whose {
            Whose::Role(own) => (self.roles[number(own)]? as usize, &**own == "r0"),
            Whose::Database(own) => (self.databases[number(own)]? as usize, &**own == "d0"),
            Whose::Server => {
                let (max, reserved) = self.servers[server];
                (max.saturating_sub(reserved) as usize * 4 / 5, true)
            }
        };
        let used = all.min(self.max_backends) + usize::from(self.beside && beside && server == 0);
        (used > limit).then_some(used)
    }
}

fn world() -> impl Strategy<Value = World> {
    let table = (1..40_usize, 0..10_usize, 0..4_usize, 0..5_usize)
        .prop_map(|(size, overflow, extra, idle)| [size, overflow, extra, idle.min(size)]);
    let limit = || prop::option::of(0..60_u32);
    (
        prop::collection::vec(table, 3),
        1..120_usize,
        prop::collection::btree_set((0..3_usize, 0..3_usize, 0..2_usize), 1..8),
        prop::collection::vec((0..120_u32, 0..10_u32), 2),
        prop::collection::vec(limit(), 3),
        prop::collection::vec(limit(), 3),
        any::<bool>(),
    )
        .prop_map(|(tables, max_backends, pools, servers, roles, databases, beside)| World {
            tables,
            max_backends,
            pools: pools.into_iter().collect(),
            servers,
            roles,
            databases,
            beside,
        })
}

proptest! {
    /// What is found is what one would count by hand.
    #[test]
    fn every_limit_that_does_not_fit_is_found_and_no_other(world in world()) {
        let found = findings(&world.sizes());
        let mut expected = Vec::new();
        for server in 0..2 {
            let here = world.pools.iter().filter(|pool| pool.2 == server);
            let (databases, roles): (Vec<_>, Vec<_>) = here.map(|&(database, role, _)| (database, role)).unzip();
            let mut all: Vec<Whose> = roles.iter().map(|role| Whose::Role(format!("r{role}").into())).collect();
            all.extend(databases.iter().map(|database| Whose::Database(format!("d{database}").into())));
            all.extend((!roles.is_empty()).then_some(Whose::Server));
            all.sort();
            all.dedup();
            for whose in all {
                if let Some(most) = world.over(&whose, server) {
                    expected.push((format!("s{server}"), whose, most));
                }
            }
        }
        let told = found.iter().map(|it| (it.server.to_string(), it.whose.clone(), it.most));
        prop_assert_eq!(told.collect::<Vec<_>>(), expected);
    }

    /// Nothing above a limit is proposed, and nothing above what there is.
    #[test]
    fn no_proposal_is_above_a_limit_and_following_them_all_leaves_no_finding(world in world()) {
        let mut better = world.clone();
        for finding in findings(&world.sizes()) {
            prop_assert!(finding.severity == Severity::Tight || finding.most > finding.limit);
            for (key, value) in finding.set {
                prop_assert!(value <= finding.limit, "{key} = {value}");
                prop_assert!(!key.ends_with("size") && key != "server.max_backends" || value > 0, "{key}");
                better.follow(&key, value);
            }
        }
        // Only a higher limit would end these.
        let left = findings(&better.sizes());
        prop_assert!(left.iter().all(|finding| finding.set.is_empty()), "{left:?}");
        let none = |finding: &Finding| match finding.whose {
            Whose::Server => share(finding.limit),
            _ => finding.limit,
        } <= usize::from(world.beside);
        prop_assert!(left.iter().all(none), "{left:?}");
    }

    /// More room never makes a finding, nor a smaller proposal.
    #[test]
    fn more_room_never_asks_for_less(world in world(), more in 1..40_u32) {
        let mut wider = world.clone();
        wider.servers.iter_mut().for_each(|(max, _)| *max += more);
        wider.roles.iter_mut().chain(&mut wider.databases).flatten().for_each(|limit| *limit += more);
        let follow = |world: &World| {
            let mut better = world.clone();
            let found = findings(&world.sizes());
            found.iter().flat_map(|it| &it.set).for_each(|(key, value)| better.follow(key, *value));
            (found, better)
        };
        let ((tight, tight_world), (wide, wide_world)) = (follow(&world), follow(&wider));
        for finding in &wide {
            let known = |it: &&Finding| (&it.server, &it.whose) == (&finding.server, &finding.whose);
            prop_assert!(tight.iter().any(|it| known(&it)), "{finding:?}");
        }
        // Where no size would do, nothing is proposed: only what is proposed in both can be compared.
        if tight.iter().all(|it| !it.set.is_empty()) {
            let sum = |world: &World| world.sizes().pools.iter().map(Demand::most).sum::<usize>();
            prop_assert!(sum(&wide_world).min(wide_world.max_backends) >= sum(&tight_world).min(tight_world.max_backends));
        }
    }
}

fn one(size: usize, limits: Limits) -> Sizes {
    let pool = Demand {
        database: "app".into(),
        place: place("db:5432", "app_live", "web"),
        size,
        overflow: 0,
        extra: 0,
        min_idle: 0,
        limits: Some((1, Arc::new(limits))),
    };
    Sizes { pools: vec![pool], max_backends: 100, beside: Vec::new() }
}

fn told(sizes: &Sizes) -> Vec<[String; 3]> {
    findings(sizes).iter().map(|it| [it.scope(), it.finding(), it.advice()]).collect()
}

#[test]
fn a_finding_says_what_was_read_what_is_configured_and_what_to_write() {
    let server = Limits { max_connections: Some(20), reserved: 3, ..Limits::default() };
    let expected = [
        "server db:5432",
        "1 pool may open 30 backends; max_connections = 20, of which 3 are reserved",
        "Set server.max_backends = 13 and database.app.size = 13, or raise max_connections.",
    ];
    assert_eq!(told(&one(30, server.clone())), [expected]);
    assert_eq!(findings(&one(30, server.clone()))[0].severity, Severity::Refusals);
    assert_eq!(findings(&one(14, server.clone()))[0].severity, Severity::Tight);
    assert_eq!(findings(&one(13, server.clone())), []);
    let there = Limits { managed: Some(limits::Managed::Rds), ..server };
    assert!(
        told(&one(30, there))[0][2]
            .ends_with("or raise max_connections (Amazon RDS: in the DB parameter group).")
    );

    let role = Limits { role: Some(5), ..Limits::default() };
    let expected = [
        "role web at db:5432",
        "1 pool may open 10 backends; the role's CONNECTION LIMIT is 5",
        "Set database.app.size = 5, or raise it (ALTER ROLE … CONNECTION LIMIT 10).",
    ];
    assert_eq!(told(&one(10, role.clone())), [expected]);
    assert_eq!(findings(&one(5, role.clone())), []);
    assert_eq!(findings(&one(10, Limits { superuser: true, ..role })), []);
    let database = Limits { database: Some(0), ..Limits::default() };
    let expected = [
        "database app_live at db:5432",
        "1 pool may open 10 backends; the database's CONNECTION LIMIT is 0",
        "No size fits: raise it (ALTER DATABASE … CONNECTION LIMIT 10).",
    ];
    assert_eq!(told(&one(10, database)), [expected]);
    assert_eq!(findings(&one(10_000, Limits::default())), [], "nothing is known");
}

#[test]
fn sizes_give_way_last_and_pools_of_one_role_alike() {
    let mut sizes = one(10, Limits { role: Some(12), ..Limits::default() });
    (sizes.pools[0].overflow, sizes.pools[0].extra, sizes.pools[0].min_idle) = (3, 2, 10);
    let set = |sizes: &Sizes| findings(sizes)[0].set.clone();
    let key = |name: &str, value| (format!("database.app.{name}"), value);
    assert_eq!(set(&sizes), [key("overflow", 2), key("deadlock_overflow", 0)]);
    sizes.pools[0].limits = Some((2, Arc::new(Limits { role: Some(7), ..Limits::default() })));
    let all = [key("size", 7), key("overflow", 0), key("deadlock_overflow", 0), key("min_idle", 7)];
    assert_eq!(set(&sizes), all);
    // Another pool of the role, which was read later.
    let other = Demand {
        database: "my app".into(),
        place: place("db:5432", "other", "web"),
        size: 2,
        overflow: 0,
        extra: 0,
        min_idle: 0,
        limits: Some((3, Arc::new(Limits { role: Some(9), ..Limits::default() }))),
    };
    sizes.pools.push(other);
    assert_eq!(set(&sizes)[0], key("size", 7), "the other keeps its 2 of 9");
    sizes.pools[1].size = 9;
    let four = ("database.\"my app\".size".to_owned(), 4);
    assert_eq!((set(&sizes)[0].clone(), set(&sizes)[4].clone()), (key("size", 4), four));
}

#[test]
fn only_another_limit_or_severity_is_news() {
    let finding = |size, max| {
        let server = Limits { max_connections: Some(max), ..Limits::default() };
        findings(&one(size, server)).remove(0)
    };
    assert!(finding(30, 20).repeats(&finding(31, 20)));
    assert!(!finding(30, 20).repeats(&finding(30, 21)));
    assert!(!finding(30, 20).repeats(&finding(17, 20)), "that fits, tightly");
}

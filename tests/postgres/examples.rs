//! The examples of `examples/`, each by its own check: with Bursar's budgets it passes, on a pool without them
//! it fails in the way its README shows.

use super::drivers::{installed, output_within, url};
use crate::support::{Config, Db, Proxy};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How long a check may take, in seconds: a few where the machine is idle, a hundred where it has a tenth of a core.
const PATIENCE: u32 = 300;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// The configuration that the example comes with, line by line.
fn config_of(name: &str) -> Config {
    let text = std::fs::read_to_string(example(name).join("bursar.toml")).expect("the example's bursar.toml");
    let mut table = "";
    let mut config = Config::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => table = name,
            // Its server is another one here.
            None if line.starts_with("host =") || line.starts_with("port =") => {}
            None => config = config.with(table, line),
        }
    }
    // A hundred clients that connect at once are slow where the machine is busy.
    config.with("listen", "login_timeout = \"1m\"").with("drain", "deadline = \"5s\"")
}

/// Runs the example's check with this environment: whether it passes, and what it prints.
fn check(name: &str, url: &str, environment: &[(&str, &str)]) -> (bool, String) {
    let python = example(name).join("check.py");
    let mut command = if python.exists() {
        let mut command = Command::new(installed("python/bin/python"));
        command.arg(python).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    } else {
        let mut command = Command::new(installed("prisma/node"));
        command.arg(example(name).join("check.js")).env("NODE_PATH", installed("prisma/node_modules"));
        command
    };
    command.env("DATABASE_URL", url).envs(environment.iter().copied());
    let output = output_within(PATIENCE, &command);
    let error = String::from_utf8_lossy(&output.stderr);
    println!("{name} {environment:?}: {}\n{error}", output.status);
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Through Bursar, configured like this.
fn through(name: &str, config: Config) -> (bool, String) {
    through_with(name, config, &[])
}

fn through_with(name: &str, config: Config, environment: &[(&str, &str)]) -> (bool, String) {
    through_to(&Db::new(), name, config, environment)
}

fn through_to(db: &Db<'_>, name: &str, config: Config, environment: &[(&str, &str)]) -> (bool, String) {
    let proxy = Proxy::start(db, config);
    let result = check(name, &url(proxy.addr(), db), environment);
    proxy.stop();
    result
}

/// Against PostgreSQL itself, with as many connections in a pool of the application's own.
fn with_a_pool(name: &str, environment: &[(&str, &str)]) -> (bool, String) {
    let db = Db::new();
    check(name, &url(db.cluster().addr(), &db), environment)
}

#[test]
fn provisioning_succeeds_within_its_budgets() {
    let printed = "50 of 50 calls succeeded\nevery user is complete\n26 sessions a call, at most 3 at once\n";
    assert_eq!(through("provisioning", config_of("provisioning")), (true, printed.to_owned()));
}

#[test]
fn provisioning_fails_with_a_pool_of_the_same_size() {
    let (passed, printed) = with_a_pool("provisioning", &[("POOL_SIZE", "10"), ("POOL_TIMEOUT", "3")]);
    assert!(!passed, "{printed}");
    assert!(printed.contains("QueuePool limit of size 10 overflow 0 reached"), "{printed}");
}

/// A pooler that does not know which sessions belong together.
#[test]
fn provisioning_fails_where_nobody_knows_its_requests() {
    let config = config_of("provisioning").with("tag", "request = []").with("pool", "max_wait = \"2s\"");
    let (passed, printed) = through("provisioning", config);
    assert!(!passed, "{printed}");
    assert!(printed.contains("bursar: no backend became available in time"), "{printed}");
}

#[test]
fn an_agents_bills_are_written_within_its_budgets() {
    let printed =
        "20 of 20 questions answered\n20 of 20 questions billed\none bill and two tool runs a question\n";
    // A bill's patience is about the pool, not about how busy this machine is.
    let environment = [("BILLING_LIMIT", "30")];
    let config = config_of("agent-tools");
    assert_eq!(through_with("agent-tools", config, &environment), (true, printed.to_owned()));
}

#[test]
fn an_agents_bills_are_lost_with_a_pool_of_the_same_size() {
    let (passed, printed) = with_a_pool("agent-tools", &[("POOL_SIZE", "5")]);
    assert!(!passed, "{printed}");
    assert!(printed.starts_with("20 of 20 questions answered\n"), "{printed}");
    assert!(!printed.contains("20 of 20 questions billed"), "{printed}");
}

#[test]
fn a_shops_tenants_share_its_backends_without_a_transaction_around_each_request() {
    let printed = "80 of 80 users served\n80 of them at once, and no backend was held\n\
                   nobody saw another tenant's row\n";
    assert_eq!(through("prisma-tenants", config_of("prisma-tenants")), (true, printed.to_owned()));
}

#[test]
fn a_shop_with_a_transaction_around_each_request_runs_out_of_its_pool() {
    let environment = [("WRAPPER", "1"), ("POOL_SIZE", "17"), ("MAX_WAIT", "2000")];
    let (passed, printed) = with_a_pool("prisma-tenants", &environment);
    assert!(!passed, "{printed}");
    assert!(printed.contains("P2028: Transaction API error"), "{printed}");
    assert!(printed.ends_with("nobody saw another tenant's row\n"), "{printed}");
}

/// A pooler that shares backends between transactions has nothing to share.
#[test]
fn a_shop_with_a_transaction_around_each_request_runs_out_of_a_poolers_backends_too() {
    let config =
        config_of("prisma-tenants").with("tenant_context", "key = \"off\"").with("pool", "max_wait = \"2s\"");
    let (passed, printed) = through_with("prisma-tenants", config, &[("WRAPPER", "1")]);
    assert!(!passed, "{printed}");
    assert!(printed.contains("bursar: no backend became available in time"), "{printed}");
    assert!(printed.ends_with("nobody saw another tenant's row\n"), "{printed}");
}

/// The application as it was; its transactions have no backend while their requests wait for somebody else.
#[test]
fn a_shop_with_a_transaction_around_each_request_parks_it() {
    let config = config_of("prisma-tenants").with("tenant_context", "key = \"off\"");
    let config = config.with("parking", "mode = \"enforce\"");
    let printed = "80 of 80 users served\nnobody saw another tenant's row\n";
    assert_eq!(through_with("prisma-tenants", config, &[("WRAPPER", "1")]), (true, printed.to_owned()));
}

/// A database that takes no more than so many connections.
fn database_for(connections: usize) -> Db<'static> {
    let db = Db::new();
    let limit = format!("alter database {} connection limit {connections}", db.name());
    db.cluster().admin().batch(&limit);
    db
}

#[test]
fn a_hundred_sessions_of_requests_share_twenty_backends() {
    let (passed, printed) =
        through_to(&database_for(25), "fastapi-sessions", config_of("fastapi-sessions"), &[]);
    let expected = "100 sessions at once\n\
                    10 times 100 requests served\n\
                    at most 20 backends, and none that is new after the first time\n\
                    each is known by its tenant, user and route, with two transactions, one at a time\n\
                    a forgotten session was found: leaked soft_abort reclaimed globex /exports\n\
                    its connection lives on\n";
    assert_eq!((passed, printed.as_str()), (true, expected));
}

#[test]
fn a_hundred_sessions_of_requests_are_too_many_for_their_server() {
    let db = database_for(25);
    let (passed, printed) = check("fastapi-sessions", &url(db.cluster().addr(), &db), &[]);
    assert!(!passed, "{printed}");
    assert!(printed.contains("too many connections for database"), "{printed}");
}

//! The configuration from outside: `config.toml` is the code's, every fault is told at once with its
//! place, the environment goes over the file, and no secret is ever shown.

use bursar::config::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// 2026-11-22T20:35:17Z
const NOW: Duration = Duration::from_secs(1_795_379_717);

type Env = BTreeMap<String, String>;

fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn read(text: &str) -> Config {
    parse(text, "c.toml", &Env::new()).unwrap_or_else(|faults| panic!("{faults}"))
}

/// The report, one line for each fault.
fn report(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    match parse(text, "c.toml", &env(pairs)) {
        Ok(_) => vec![],
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

fn reference() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml")
}

#[test]
fn the_reference_file_is_the_built_in_configuration() {
    assert_eq!(load(Some(&reference()), &Env::new()).unwrap(), Config::default());
    assert_eq!(read(""), Config::default());
}

/// With its commented-out keys brought in, the reference has every key the code knows and no other,
/// each with a comment on its line.
#[test]
fn the_reference_file_has_every_key() {
    let mut table = String::new();
    let mut seen: Vec<String> = Vec::new();
    for line in std::fs::read_to_string(reference()).unwrap().lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((header, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            if !header.contains("restart") {
                table = header
                    .replace("\"*\"", "NAME")
                    .replace("user.app", "user.NAME")
                    .replace("class.billing", "class.NAME")
                    .replace("database.app", "database.NAME");
            }
        } else if let Some((key, value)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            let key = if key.starts_with("routes.") { "routes.NAME" } else { key };
            match value.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                Some((inner, _)) => seen.extend(inner.split(',').filter_map(|pair| {
                    pair.split_once('=').map(|(name, _)| format!("{table}.{key}.{}", name.trim()))
                })),
                None => {
                    assert!(value.contains('#'), "{key} says nothing about when to change it");
                    seen.push(format!("{table}.{key}"));
                }
            }
        }
    }
    // A database takes every pool key; saying them twice would say less.
    let pool = |key: &str| {
        key.strip_prefix("database.NAME.")
            .is_some_and(|key| seen.contains(&format!("pool.{key}")) || seen.iter().any(|other| other == key))
    };
    // Nor is a budget said again for every table that may have its own; B9 is [pool]'s elsewhere, and parking
    // a table beside it.
    let scoped = |key: &str| {
        key.split_once(".NAME.budget.").is_some_and(|(_, key)| {
            let own = key == "request.max_wait" || key.starts_with("parking.");
            seen.contains(&format!("budget.{key}")) || own
        })
    };
    let missing: Vec<String> =
        known_keys().into_iter().filter(|key| !seen.contains(key) && !pool(key) && !scoped(key)).collect();
    assert_eq!(missing, Vec::<String>::new());
    let invented: Vec<&String> = seen.iter().filter(|key| !known_keys().contains(key)).collect();
    assert_eq!(invented, Vec::<&String>::new());
    assert!(seen.len() > 50, "only {} keys seen", seen.len());
}

#[test]
fn parking_is_switched_on_for_a_part_of_the_work() {
    let config =
        read("[parking]\nmin_gap = \"20ms\"\n[route.\"/api/*\".budget.parking]\nmode = \"enforce\"\n");
    let of = |route| config.budgets(&Scope { route: Some(route), ..Scope::default() }).parking;
    assert_eq!((of("/api/orders").mode, of("/other").mode), (ParkMode::Enforce, ParkMode::Observe));
    assert_eq!(of("/api/orders").min_gap, Duration::from_millis(20));
    assert!(config.scopes.park() && !Config::default().scopes.park());
}

#[test]
fn every_fault_is_told_at_once_with_its_place() {
    let text = "\
[pool]
sise = 5
size = 0
max_wait = 3

[pol]
size = 3
overflow = 4
[server]
max_backend = 1
size = 1
[drain]
notice = \"30s\"
";
    assert_eq!(
        report(text, &[("BURSAR_POOL_REUSE", "fifo"), ("BURSAR_POOL_SISE", "1")]),
        [
            "c.toml:2:1: pool.sise: there is no such key; did you mean pool.size?",
            "c.toml:3:8: pool.size: 0 is not accepted; expected a whole number from 1 to 262143",
            "c.toml:4:12: pool.max_wait: 3 is not accepted; expected a duration with its unit \
             (ms, s, m, h, d) from \"0s\" to \"1d\"",
            "c.toml:6:2: pol: there is no such table; did you mean pool?",
            "c.toml:10:1: server.max_backend: there is no such key; did you mean server.max_backends?",
            "c.toml:11:1: server.size: there is no such key; did you mean database.NAME.size?",
            "c.toml:13:10: drain.notice: 30s is more than drain.deadline, which is 25s; lower this one \
             or raise that one",
            "environment variable BURSAR_POOL_REUSE: pool.reuse: \"fifo\" is not accepted; expected one \
             of \"lifo\", \"round_robin\"",
            "environment variable BURSAR_POOL_SISE: there is no such environment variable; did you mean \
             BURSAR_POOL_SIZE?",
        ]
    );
}

#[test]
fn a_tenant_context_is_checked_and_inherited() {
    let text = "\
[tenant_context]
key = \"tenant_id\"
policy = \"lenient\"
[database.a.tenant_context]
key = \"bursar.tenant\"
from = \"tag:class\"
[database.b.tenant_context]
key = \"app.id\"
request_key = \"APP.id\"
";
    let name = "expected a setting of your own with a dot in its name, such as \"app.tenant_id\", of at most 63 \
                bytes and not \"bursar.…\", or \"off\"";
    assert_eq!(
        report(text, &[]),
        [
            format!("c.toml:2:7: tenant_context.key: \"tenant_id\" is not accepted; {name}"),
            "c.toml:3:10: tenant_context.policy: \"lenient\" is not accepted; expected one of \"strict\", \
             \"trusted\", \"off\""
                .to_owned(),
            format!("c.toml:5:7: database.a.tenant_context.key: \"bursar.tenant\" is not accepted; {name}"),
            "c.toml:6:8: database.a.tenant_context.from: \"tag:class\" is not accepted; expected one of \
             \"tag:tenant\", \"tag:user_id\", \"user\""
                .to_owned(),
            "c.toml:9:15: database.b.tenant_context.request_key: sets the same thing as \
             database.b.tenant_context.key; keep one of them"
                .to_owned(),
        ]
    );
    let text = "\
[tenant_context]
key = \"App.Tenant_Id\"
policy = \"trusted\"
[database.\"*\"]
[database.a.tenant_context]
policy = \"strict\"
[database.b.tenant_context]
policy = \"off\"
";
    let config = bursar::config::parse(text, "c.toml", &BTreeMap::new()).expect("a good file");
    let kept = |name: &str| {
        let context = config.database(name).expect("a database").pool.tenant_context.clone();
        (context.kept().map(str::to_owned), context.policy)
    };
    let key = || Some("app.tenant_id".to_owned());
    assert_eq!(kept("any"), (key(), bursar::config::ContextPolicy::Trusted));
    assert_eq!(kept("a"), (key(), bursar::config::ContextPolicy::Strict));
    assert_eq!(kept("b"), (None, bursar::config::ContextPolicy::Off));
}

#[test]
fn broken_toml_is_told_beside_the_other_faults_and_never_quoted() {
    let lines = report("[user.app]\npassword = hunter2\n[pool]\nsize = \n[server]\nmax_backends = 0\n", &[]);
    assert!(lines[0].starts_with("c.toml:2:12: not valid TOML: "), "{lines:?}");
    assert!(lines[1].starts_with("c.toml:4:"), "{lines:?}");
    assert!(lines[2].starts_with("c.toml:6:16: server.max_backends: 0 is not accepted"), "{lines:?}");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(!lines.concat().contains("hunter2"), "{lines:?}");
}

#[test]
fn secrets_are_never_echoed() {
    for text in [
        "[user.app]\npassword = 12345678",
        "[user.app]\npasword = \"12345678\"",
        "[user.app]\npassword = \"12345678\\u0000\"",
        "[user.app]\npassword = \"12345678\nsize = 2",
        "[user.app]\npassword = \"12345678\" x",
        "[user.app]\npassword = \"12345678\"\npassword = \"12345678\"",
        "[user.app]\npassword = \"12345678\"\npassword_file = \"/nonexistent\"",
        "[database.a]\npassword = [\"12345678\"]",
        "[user.app]\npassword = \"md512345678123456781234567812345678\"",
    ] {
        let lines = report(text, &[]);
        assert!(!lines.is_empty(), "{text}");
        assert!(!lines.concat().contains("12345678"), "{lines:?}");
    }
    let config = read("[user.app]\npassword = \"12345678\"\n[database.\"*\"]\npassword = \"12345678\"");
    assert!(!format!("{config:?}").contains("12345678"));
    let shown = config.show();
    assert!(shown.iter().all(|row| !row.value.contains("12345678")));
    let password = shown.iter().find(|row| row.key == "user.app.password").unwrap();
    assert_eq!((password.value.as_str(), password.default.as_str()), ("(set)", ""));
}

#[test]
fn what_a_later_version_brings_is_refused_by_name() {
    let text = "\
[readiness]
requires_backend = true
[fleet]
cap = 3
[pool]
tls = \"require\"
[tenant.acme]
burst = 4
";
    assert_eq!(
        report(text, &[("BURSAR_LISTEN_TLS", "x"), ("BURSAR_TENANT_ACME_BURST", "2")]),
        [
            "c.toml:1:2: readiness: this key is not available in this version; remove it",
            "c.toml:3:2: fleet: this key is not available in this version; remove it",
            "c.toml:6:1: pool.tls: this key is not available in this version; remove it",
            "c.toml:8:1: tenant.acme.burst: this key is not available in this version; remove it",
            "environment variable BURSAR_LISTEN_TLS: this key is not available in this version; remove it",
            "environment variable BURSAR_TENANT_ACME_BURST: this key is not available in this version; \
             remove it",
        ]
    );
}

#[test]
fn a_role_has_a_mode_of_its_own_above_its_databases() {
    let text = "\
[pool]
mode = \"session\"
[database.\"*\"]
[database.app]
mode = \"transaction\"
[user.batch]
mode = \"statement\"
[user.jobs]
mode = \"request\"
[user.web]
";
    let config = read(text);
    let mode = |database, user| config.pool_rules(database, user).unwrap().mode;
    assert_eq!(mode("app", "batch"), PoolMode::Statement);
    assert_eq!(mode("other", "batch"), PoolMode::Statement);
    assert_eq!(mode("app", "jobs"), PoolMode::Request);
    assert_eq!(mode("app", "web"), PoolMode::Transaction);
    assert_eq!(mode("other", "stranger"), PoolMode::Session);
    assert_eq!(
        report("[user.web]\nmode = \"fast\"", &[]),
        [
            "c.toml:2:8: user.web.mode: \"fast\" is not accepted; expected one of \"session\", \"transaction\", \"statement\", \"request\""
        ]
    );
}

#[test]
fn environment_goes_over_file_goes_over_default() {
    let text = "[pool]\nsize = 7\noverflow = 1\n[database.My-App]\nsize = 5\n[database.\"*\"]\n";
    let vars = env(&[
        ("BURSAR_LISTEN_ADDRESS", "127.0.0.1:1, [::1]:2"),
        ("BURSAR_POOL_SIZE", "9"),
        ("BURSAR_POOL_MAX_WAIT", "250ms"),
        ("BURSAR_DATABASE_MY_APP_SIZE", "4"),
        ("BURSAR_DATABASE_OTHER_ONE_HOST", "db.internal"),
        ("BURSAR_DATABASE_PORT", "5433"),
        ("BURSAR_USER_APP_PASSWORD", "pw"),
        ("BURSAR_BUDGET_REQUEST_MAX_CONCURRENT", "1"),
        ("BURSAR_BUDGET_REQUEST_MAX_LEASES_REJECT", "9"),
        ("BURSAR_BUDGET_REQUEST_MAX_LEASES_WARN", "off"),
        ("BURSAR_TENANT_MODE", "enforce"),
        ("BURSAR_LOG", "debug"),
        ("BURSAR_CONFIG", "/not/read/by/parse"),
        ("BURSAR_PORT_6432_TCP_ADDR", "10.0.0.1"),
        ("BURSAR_TEST_SEED", "1"),
        ("PGHOST", "ignored"),
    ]);
    let config = parse(text, "c.toml", &vars).unwrap();
    assert_eq!(config.listen.addresses.len(), 2);
    assert_eq!((config.pool.size, config.pool.overflow, config.pool.min_idle), (9, 1, 0));
    assert_eq!(config.pool.max_wait, Duration::from_millis(250));
    let app = config.database("My-App").unwrap();
    assert_eq!((app.pool.size, app.pool.max_wait), (4, Duration::from_millis(250)));
    assert_eq!(config.database("other_one").unwrap().host, "db.internal");
    assert_eq!(config.database("anything").unwrap().port, 5433);
    assert_eq!(app.port, 5433, "a named table starts from the wildcard");
    assert_eq!(config.users["app"].password.as_ref().unwrap().expose(), "pw");
    assert_eq!(config.budget.max_concurrent, 1);
    assert_eq!((config.budget.leases_warn, config.budget.leases_reject), (None, Some(9)));
    assert_eq!(config.tenant("anyone").mode, Mode::Enforce);
    assert_eq!(config.log.level, "debug");
}

#[test]
fn a_variable_that_could_mean_two_keys_is_a_fault() {
    let text = "[database.my-db]\n[database.my_db]\n";
    assert_eq!(
        report(text, &[("BURSAR_DATABASE_MY_DB_SIZE", "4")]),
        ["environment variable BURSAR_DATABASE_MY_DB_SIZE: could mean database.my-db.size or \
          database.my_db.size; set the one you mean in the file"]
    );
    assert_eq!(
        report("", &[("BURSAR_LOG", "debug"), ("BURSAR_LOG_LEVEL", "info")]),
        ["environment variable BURSAR_LOG_LEVEL: log.level: sets the same thing as BURSAR_LOG; keep one \
          of them"]
    );
}

#[test]
fn a_key_ending_in_file_reads_its_value_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "s3cret \n\n").unwrap();
    let text = format!("[user.app]\npassword_file = {:?}", file.display().to_string());
    let config = read(&text);
    // One newline is the editor's; the rest is the secret's.
    assert_eq!(config.users["app"].password.as_ref().unwrap().expose(), "s3cret \n");

    std::fs::write(&file, "12\n").unwrap();
    let vars = [("BURSAR_POOL_SIZE_FILE", file.to_str().unwrap())];
    assert_eq!(parse("", "c.toml", &env(&vars)).unwrap().pool.size, 12);

    std::fs::write(&file, "s3cret\n").unwrap();
    assert_eq!(
        report("", &vars),
        ["environment variable BURSAR_POOL_SIZE_FILE: pool.size: the content of the file is not accepted; \
          expected a whole number from 1 to 262143"]
    );
    assert_eq!(
        report(&format!("{text}\npassword = \"x\""), &[]),
        ["c.toml:2:17: user.app.password_file: sets the same thing as user.app.password; keep one of them"]
    );

    std::fs::write(&file, vec![b'x'; 1_048_577]).unwrap();
    assert!(report(&text, &[])[0].contains("must exist, be UTF-8, be at most 1048576 bytes long"));
    std::fs::remove_file(&file).unwrap();
    assert!(report(&text, &[])[0].starts_with("c.toml:2:17: user.app.password_file: the file "));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault_if_somebody_named_it() {
    let path = Path::new("/nonexistent/bursar.toml");
    let faults = load(Some(path), &Env::new()).unwrap_err();
    assert_eq!(
        faults.to_string(),
        "/nonexistent/bursar.toml: cannot be read (entity not found); check the path and its permissions"
    );
    let vars = env(&[("BURSAR_CONFIG", "/nonexistent/bursar.toml")]);
    assert_eq!(load(None, &vars).unwrap_err(), faults);
}

#[test]
fn profiles_set_numbers_and_explicit_keys_win() {
    for (profile, size, overflow, wait) in
        [("high_performance", 15, 25, 3), ("standard", 10, 15, 5), ("prisma", 17, 4, 10)]
    {
        let pool = read(&format!("[pool]\nprofile = \"{profile}\"")).pool;
        assert_eq!((pool.size, pool.overflow, pool.max_wait), (size, overflow, Duration::from_secs(wait)));
    }
    let config = read(
        "[pool]\nmax_wait = \"1s\"\nprofile = \"prisma\"\n[database.a]\nprofile = \"standard\"\nsize = 3",
    );
    assert_eq!((config.pool.size, config.pool.max_wait), (17, Duration::from_secs(1)));
    let a = &config.database("a").unwrap().pool;
    assert_eq!((a.size, a.overflow, a.max_wait), (3, 15, Duration::from_secs(5)));
}

#[test]
fn a_file_that_names_databases_means_those() {
    assert!(read("[database.a]").database("b").is_none());
    assert!(read("[database.a]\n[database.\"*\"]").database("b").is_some());
    assert!(read("").database("b").is_some());
    let config = parse("", "c.toml", &env(&[("BURSAR_DATABASE_A_SIZE", "2")])).unwrap();
    assert!(config.database("b").is_some(), "a variable alone does not take the wildcard away");
}

#[test]
fn budgets_take_a_number_or_a_table_and_the_default_mode() {
    let config = read(
        "[mode]
default = \"observe\"
[budget.request]
max_concurrent = 1
max_leases = { reject = 9, mode = \"enforce\" }
max_wait = \"2s\"
[budget.transaction]
max_idle = { abort_alone = \"off\" }
[tenant.acme]
max = 4
[tenant.\"*\"]
max = \"10%\"",
    );
    let budget = &config.budget;
    assert_eq!((budget.max_concurrent, budget.max_concurrent_mode), (1, Mode::Observe));
    // The default warning at 10 never comes to act before the refusal at 9; that is no fault.
    assert_eq!((budget.leases_warn, budget.leases_reject), (Some(10), Some(9)));
    assert_eq!(budget.leases_mode, Mode::Enforce);
    assert_eq!(budget.idle_abort_alone, None);
    assert_eq!(budget.idle.abort, Some(Duration::from_secs(10)));
    assert_eq!(config.pool.max_wait, Duration::from_secs(2));
    assert_eq!((config.tenant("acme").max, config.tenant("acme").mode), (Share::Count(4), Mode::Observe));
    assert_eq!(config.tenant("other").max, Share::Percent(10.0));
}

#[test]
fn values_that_contradict_each_other_are_faults() {
    for (text, start) in [
        ("[pool]\nmin_idle = 30", "2:12: pool.min_idle: 30 is more than pool.size, which is 20"),
        (
            "[pool]\nmin_idle = 3\n[database.a]\nsize = 2",
            "4:8: database.a.min_idle: 3 is more than database.a.size, which is 2",
        ),
        (
            "[budget.request]\nmax_leases = { warn = 10, reject = 5 }",
            "2:23: budget.request.max_leases.warn: 10 is more than budget.request.max_leases.reject",
        ),
        (
            "[budget.transaction]\nmax_age = { warn = \"3s\", abort = \"2s\" }",
            "2:20: budget.transaction.max_age.warn: 3s is more than budget.transaction.max_age.abort",
        ),
        (
            "[admin]\naddress = \"127.0.0.1:6432\"",
            "2:11: admin.address: the address is already used by listen.address; choose another port",
        ),
        (
            "[pool]\nsize = 6\n[tenant.a]\nmin = 3\n[tenant.b]\nmin = 2\n[class.billing]\nreserve = 1",
            "4:7: tenant.a.min: the minimums of tenants and the reserves of classes come to 7, more than \
             pool.size, which is 6; lower this one or raise that one",
        ),
        ("[database.bursar]", "1:11: database.bursar: the name \"bursar\" is taken by the admin console"),
        ("[database.\"\"]\nsize = 1", "1:11: database.\"\": the name is empty; write [database.NAME]"),
        ("[database]\nhost = \"x\"", "2:1: database.host: a text is not accepted; expected a table"),
        ("pool = 3", "1:1: pool: a number is not accepted; expected a table [pool]"),
        (
            "[auth]\nmethod = \"md5\"\n[user.a]\npassword = \"SCRAM-SHA-256$4096:x$y:z\"",
            "4:12: user.a.password: a stored SCRAM verifier cannot be checked by auth.method = \"md5\"",
        ),
    ] {
        let lines = report(text, &[]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(&format!("c.toml:{start}")), "{lines:?}");
    }
}

#[test]
fn who_is_given_a_right_must_be_able_to_log_in() {
    let fault = |text: &str| match report(text, &[]) {
        lines if lines.len() == 1 => lines.into_iter().next().unwrap_or_default(),
        lines => panic!("{text}: {lines:?}"),
    };
    for right in ["view", "act", "sql"] {
        assert_eq!(
            fault(&format!("[admin]\n{right} = [\"known\", \"ghost\"]\n[user.known]\npassword = \"x\"")),
            format!(
                "c.toml:2:{}: admin.{right}: there is no [user.ghost], so \"ghost\" cannot log in; add one with a \
                 password, or take the name out",
                right.len() + 4
            )
        );
    }
    assert!(
        fault("[admin]\nviewers = [\"a\"]").contains("admin.viewers: there is no such key"),
        "a right that there is not"
    );
    // Who is not asked for a password, or is known to the server, needs no table; admin.users never did.
    read("[auth]\nmethod = \"trust\"\n[admin]\nview = [\"ghost\"]");
    read(
        "[auth]\nquery = \"SELECT * FROM f($1)\"\nquery_user = \"a\"\n[admin]\nview = [\"ghost\"]\n[user.a]\npassword = \"x\"",
    );
    read("[admin]\nusers = [\"ghost\"]");
    // Of a method that is wrong itself nothing else is said.
    assert!(fault("[auth]\nmethod = \"scrum\"\n[admin]\nview = [\"ghost\"]").contains("auth.method"));

    let metrics = "nobody who is named in admin.view, act, sql or users has a password in a [user.NAME], so nobody could \
                   read /metrics; add such a user, or set it to false";
    for admin in ["", "users = [\"ghost\"]\n", "view = [\"bare\"]\n"] {
        let text = format!("[admin]\n{admin}metrics_login = true\n[user.bare]");
        assert!(fault(&text).ends_with(&format!("admin.metrics_login: {metrics}")), "{text}");
    }
    read("[admin]\nview = [\"a\"]\nmetrics_login = true\n[user.a]\npassword = \"x\"");
    read("[admin]\naddress = \"off\"\nmetrics_login = true");
}

#[test]
fn show_can_be_written_back() {
    let text = "\
[listen]
address = [\"127.0.0.1:1\", \"127.0.0.1:2\"]
[pool]
profile = \"ci\"
idle_timeout = \"off\"
[database.a-b]
dbname = \"c\"
lifetime = \"90m\"
[tenant.\"x y\"]
max = \"12.5%\"
";
    let config = read(text);
    let rows = config.show();
    let row = |key: &str| rows.iter().find(|row| row.key == key).unwrap_or_else(|| panic!("no {key}"));
    assert_eq!(row("listen.address").value, "127.0.0.1:1,127.0.0.1:2");
    assert_eq!(row("listen.address").default, "127.0.0.1:6432");
    assert!(!row("listen.address").changeable && row("pool.size").changeable);
    assert_eq!((row("pool.size").value.as_str(), row("pool.size").default.as_str()), ("5", "20"));
    assert_eq!(row("database.a-b.lifetime").value, "90m");
    assert_eq!(row("database.a-b.size").default, "5");
    assert_eq!(row("tenant.\"x y\".max").value, "12.5%");

    // The fixed rows, written as variables, make the same configuration again.
    let vars: Env = rows
        .iter()
        .filter(|row| !["class.", "database.", "tenant."].iter().any(|table| row.key.starts_with(table)))
        .map(|row| (format!("BURSAR_{}", row.key.replace('.', "_").to_uppercase()), row.value.clone()))
        .collect();
    assert!(vars.len() > 40);
    let again = parse("", "c.toml", &vars).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!((&again.listen, &again.pool, &again.budget), (&config.listen, &config.pool, &config.budget));
    assert_eq!((&again.tag, &again.leak, &again.drain), (&config.tag, &config.leak, &config.drain));
    assert_eq!((&again.admin, &again.server, &again.log), (&config.admin, &config.server, &config.log));
}

#[test]
fn a_reload_keeps_what_needs_a_restart_and_says_so() {
    let old = read("");
    let new = read("[listen]\naddress = \"127.0.0.1:7000\"\nworkers = 2\n[pool]\nsize = 3");
    let told: Vec<String> = reload_faults(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "listen.address: stays \"127.0.0.1:6432\" until the next start; the new value \"127.0.0.1:7000\" \
             needs a restart",
            "listen.workers: stays \"1\" until the next start; the new value \"2\" needs a restart",
        ]
    );
    let kept = new.keeping(&old);
    assert_eq!(reload_faults(&old, &kept), []);
    assert_eq!((kept.listen, kept.pool.size), (old.listen, 3));
}

#[test]
fn login_rules_are_read_in_order_and_shown_again() {
    let text = "\
[listen]
unix_dir = \"/run\"
[auth]
method = \"hba\"
peer_map = [\"www-data=app\", \"1000=batch\"]
[[auth.rule]]
connection = \"local\"
method = \"peer\"
[[auth.rule]]
connection = \"host\"
database = [\"app\", \"sameuser\"]
user = \"app\"
address = \"10.0.0.0/8\"
method = \"scram-sha-256\"
[[auth.rule]]
address = \"all\"
method = \"reject\"
";
    let config = read(text);
    let rows = config.show();
    let value = |key: &str| rows.iter().find(|row| row.key == key).map(|row| row.value.as_str());
    assert_eq!(value("auth.peer_map"), Some("www-data=app,1000=batch"));
    let shown = "[{ connection = \"local\", database = \"all\", user = \"all\", method = \"peer\" }, \
        { connection = \"host\", database = [\"app\", \"sameuser\"], user = \"app\", \
        address = \"10.0.0.0/8\", method = \"scram-sha-256\" }, \
        { connection = \"any\", database = \"all\", user = \"all\", method = \"reject\" }]";
    assert_eq!(value("auth.rule"), Some(shown));
    // What is shown means the same in one line.
    let again = format!("[listen]\nunix_dir = \"/run\"\n[auth]\nmethod = \"hba\"\nrule = {shown}");
    assert_eq!(read(&again).auth.rules, config.auth.rules);
}

#[test]
fn faults_of_login_rules_name_the_rule_and_its_key() {
    let hba = "[auth]\nmethod = \"hba\"\n[[auth.rule]]\nmethod = \"trust\"\n[[auth.rule]]\n";
    for (rule, said) in [
        (
            "method = \"gss\"",
            "method = \"gss\" of rule 2 is not accepted; expected one of \"trust\", \"reject\", ",
        ),
        ("user = \"app\"", "no method of rule 2 is not accepted; expected one of \"trust\", "),
        (
            "type = \"host\"\nmethod = \"md5\"",
            "the key type of rule 2 is not accepted; expected connection, ",
        ),
        (
            "connection = \"tcp\"\nmethod = \"md5\"",
            "connection = \"tcp\" of rule 2 is not accepted; expected one of \"any\", ",
        ),
        (
            "address = \"10.0.0.0/33\"\nmethod = \"md5\"",
            "address = \"10.0.0.0/33\" of rule 2 is not accepted; expected \"all\", an IP ",
        ),
        (
            "user = \"+staff\"\nmethod = \"md5\"",
            "user = \"+staff\" of rule 2 is not accepted; expected \"all\", or names ",
        ),
        (
            "database = []\nmethod = \"md5\"",
            "database = a list of rule 2 is not accepted; expected \"all\", \"sameuser\", ",
        ),
        (
            "method = \"peer\"",
            "the connection of rule 2 is not accepted; expected \"local\" with method \"peer\"",
        ),
        (
            "connection = \"host\"\nmethod = \"cert\"",
            "the connection of rule 2 is not accepted; expected \"hostssl\" ",
        ),
        (
            "connection = \"local\"\naddress = \"::1\"\nmethod = \"md5\"",
            "an address of rule 2 is not accepted; expected none, ",
        ),
    ] {
        let found = report(&format!("{hba}{rule}\n"), &[]);
        let expected = format!("c.toml:3:1: auth.rule: {said}");
        assert!(found.len() == 1 && found[0].starts_with(&expected), "{rule}: {found:#?}\n{expected}");
    }
}

#[test]
fn a_method_needs_what_it_asks_for() {
    let hba = "[auth]\nmethod = \"hba\"\n";
    for (text, said) in [
        (hba, "2:10: auth.method: \"hba\" without [[auth.rule]] lets nobody in; write a rule"),
        (
            "[[auth.rule]]\nmethod = \"trust\"",
            "1:1: auth.rule: the rules are read with auth.method = \"hba\" only; set that, or remove them",
        ),
        (
            "[auth]\nmethod = \"cert\"",
            "2:10: auth.method: method \"cert\" needs a verified certificate of every client over TCP; set \
             tls.client.mode = \"verify-ca\" with cert_file, key_file and ca_file",
        ),
        (
            "[auth]\nmethod = \"peer\"",
            "2:10: auth.method: method \"peer\" is for the Unix socket, and there is none; set \
             listen.unix_dir, or choose another method",
        ),
        (
            "[auth]\nmethod = \"hba\"\nrule = { method = \"trust\" }",
            "3:8: auth.rule: a table is not accepted; expected at most 1000 tables [[auth.rule]]",
        ),
    ] {
        let expected = format!("c.toml:{said}");
        assert!(report(text, &[]).contains(&expected), "{:#?}\n{expected}", report(text, &[]));
    }
}

#[test]
fn two_passwords_of_a_user_must_fit_in_one_login() {
    let (a, b) = ("SCRAM-SHA-256$4096:W22Z$y:z", "SCRAM-SHA-256$4096:c2Fs$y:z");
    let said = |method: &str, password: &str, previous: &str| {
        report(
            &format!(
                "[auth]\nmethod = \"{method}\"\n[user.a]\n{password}\nprevious_password = \"{previous}\""
            ),
            &[],
        )
    };
    let scram = |text: &str| format!("password = \"{text}\"");
    assert_eq!(
        said("scram-sha-256", &scram(a), b),
        [
            "c.toml:5:21: user.a.previous_password: two SCRAM verifiers of different salts or rounds cannot be checked \
          in one login; write one of the two passwords in clear, or make one verifier with the other's salt and rounds"
        ]
    );
    assert_eq!(
        said("plain", "", "old"),
        [
            "c.toml:5:21: user.a.previous_password: there is no password beside it; write it as password, if it is the \
          only one"
        ]
    );
    assert!(
        said("md5", &scram("new"), a)[0]
            .contains("previous_password: a stored SCRAM verifier cannot be checked")
    );
    for previous in [a, "old", "md512345678123456781234567812345678"] {
        assert_eq!(said("plain", &scram(a), previous), [""; 0]);
    }
    let config = read("[user.a]\npassword = \"new\"\nprevious_password = \"0ldSecret\"");
    assert!(!format!("{config:?} {:?}", config.show()).contains("0ldSecret"));
}

#[test]
fn a_command_for_the_password_stands_in_its_place() {
    let text = "\
[database.\"*\"]
password_command = [\"/opt/token\", \"--secret=hunter2\"]
[database.a]
[database.b]
password = \"own\"
[database.c]
password_command = \"/opt/other\"
password_command_ttl = \"0s\"
";
    let config = read(text);
    assert!(!format!("{config:?}").contains("hunter2"));
    let rows = config.show();
    let value = |key: &str| rows.iter().find(|row| row.key == key).map(|row| row.value.as_str());
    assert_eq!(value("database.a.password_command"), Some("/opt/token …"));
    // The nearer one is meant.
    assert_eq!(
        (value("database.b.password"), value("database.b.password_command")),
        (Some("(set)"), Some(""))
    );
    assert_eq!(value("database.c.password_command"), Some("/opt/other"));
    assert_eq!(
        report(
            "[database.a]\npassword = \"x\"\npassword_command = [\"y\"]\n[database.b]\npassword_command = []",
            &[]
        ),
        [
            "c.toml:3:20: database.a.password_command: sets the same thing as database.a.password; keep one of them",
            "c.toml:5:20: database.b.password_command: the value is not accepted; expected a list of a program and \
             its arguments, such as [\"/opt/token\", \"--db\"]; there is no shell",
        ]
    );
}

/// Faults in the very keys that hold secrets, by every way that leads there, and lines that are no TOML.
#[test]
fn no_fault_quotes_a_secret() {
    let mut refused = 0;
    for key in secret_keys() {
        let (table, last) = key.rsplit_once('.').unwrap();
        let table = table.replace("NAME", "a");
        let values = [
            "7141828",
            "[7141828]",
            "[[\"7141828\"]]",
            "71.41828",
            "{ it = \"7141828\" }",
            "7141828-01",
            "true7141828",
            "\"7141828",
            "'7141828",
            "\"71\\q7141828\"",
            "7141828\"",
            "\"\"\"\n7141828\n=7141828",
            "\"7141828\" 7141828",
            "\"7141828\" # \n 7141828",
            "\"x\n7141828\nMII7141828+/=\n\"",
            "\"\\u0000 7141828\"",
        ];
        for value in values {
            for name in [last.to_owned(), format!("{last}_file")] {
                let text = format!("[{table}]\n{name} = {value}\n");
                match parse(&text, "c.toml", &Env::new()) {
                    // What a `_file` key has is a path, and no secret.
                    Err(faults) if name == last || !value.starts_with("\"71") => {
                        refused += 1;
                        let (said, raw) = (faults.to_string(), format!("{faults:?}"));
                        assert!(!(said + &raw).contains("7141828"), "{text}\n{faults}");
                    }
                    Err(_) => {}
                    Ok(config) => {
                        let shown = format!("{config:?} {:?}", config.show());
                        assert!(!shown.contains("7141828"), "{text}\n{shown}");
                    }
                }
            }
        }
        let variable = format!("BURSAR_{table}_{last}").replace('.', "_").to_uppercase();
        let said = report("", &[(&variable, "\0 7141828"), ("BURSAR_USER_A_PASWORD", "7141828")]);
        assert!(!said.is_empty() && !format!("{said:?}").contains("7141828"), "{said:?}");
    }
    assert!(refused > 100, "{refused}");
}

/// A command that was written in one text with its arguments, and other arguments.
#[test]
fn arguments_of_a_command_are_secret_however_they_are_written() {
    let read = |value: &str| read(&format!("[database.a]\npassword_command = {value}\n"));
    let one = read("\"/opt/token --secret=hunter2\"");
    assert!(!format!("{one:?} {:?}", one.show()).contains("hunter2"), "{one:?}");
    let (old, new) = (read("[\"/opt/token\", \"one\"]"), read("[\"/opt/token\", \"other\"]"));
    let changes: Vec<String> = Changes::between(&old, &new).made.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["database.a.password_command: changed"]);
}

#[test]
fn cautions_do_not_refuse() {
    assert_eq!(read("").cautions(NOW), [Caution::NobodyCanLogIn]);
    let open = read("[auth]\nmethod = \"trust\"\n[listen]\naddress = \"0.0.0.0:6432\"");
    assert_eq!(open.cautions(NOW), [Caution::OpenToAll { address: "0.0.0.0:6432".parse().unwrap() }]);
    let rules = "rule = [{ connection = \"local\", method = \"trust\" }, { address = \"127.0.0.1\", method = \"trust\" },";
    let text = |last: &str| {
        format!("[auth]\nmethod = \"hba\"\n{rules} {last}]\n[listen]\naddress = \"0.0.0.0:6432\"")
    };
    assert_eq!(read(&text("{ method = \"reject\" }")).cautions(NOW), []);
    assert_eq!(read(&text("{ method = \"trust\" }")).cautions(NOW), [Caution::OpenRule { rule: 3 }]);
    let expired = read("[user.a]\npassword = \"x\"\nvalid_until = \"2026-11-22T20:35:16Z\"");
    let said = Caution::Expired { user: "a".into(), until: "2026-11-22T20:35:16Z".into() };
    assert_eq!(expired.cautions(NOW), [said]);
    let lasting = read("[user.a]\npassword = \"x\"\nvalid_until = \"2026-11-22 21:35:17+01:00\"");
    assert_eq!(lasting.cautions(NOW), []);
    let shown = lasting.show();
    let until = shown.iter().find(|row| row.key == "user.a.valid_until").unwrap();
    assert_eq!((&until.value[..], &until.default[..]), ("2026-11-22T20:35:17Z", ""));
    for wrong in ["\"2026-11-22\"", "\"2026-11-22T20:35:17\"", "\"soon\"", "\"9999-12-31T23:00:00-02\"", "7"]
    {
        let lines = report(&format!("[user.a]\nvalid_until = {wrong}"), &[]);
        assert!(lines.len() == 1 && lines[0].contains("expected a moment with its offset"), "{lines:?}");
    }
    let many = read("[auth]\nmethod = \"trust\"\n[pool]\nsize = 60\n[database.a]\n[database.b]");
    assert_eq!(many.cautions(NOW), [Caution::PoolsOverServer { wanted: 120, max: 100 }]);
}

proptest! {
    /// Whatever stands in the file, the answer is a configuration or faults with places in it.
    #[test]
    fn no_text_breaks_the_reader(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}=\".,#\\n\"'*0-9a-zé-]{0,3}", 0..4_usize), 1..6)
    ) {
        let mut text: Vec<char> = std::fs::read_to_string(reference()).unwrap().chars().collect();
        for (at, insert, delete) in cuts {
            let at = at.index(text.len());
            let end = (at + delete).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        let lines = text.split('\n').count();
        if let Err(faults) = parse(&text, "c.toml", &Env::new()) {
            for fault in faults.iter() {
                let Place::File { line, column, .. } = fault.place else { panic!("{fault}") };
                prop_assert!(line >= 1 && line <= lines && column >= 1, "{}", fault);
            }
        }
    }
}

#[test]
fn classes_start_from_the_built_in_ones_and_take_the_environment() {
    let config = read(
        "[class.billing]\nreserve = 1\nmatch = [\"first_stmt:^insert into llm_requests\"]\n[class.batch]\ncap = 2",
    );
    let names: Vec<&str> = config.classes.keys().map(String::as_str).collect();
    assert_eq!(names, ["batch", "billing", "critical", "normal"]);
    let (batch, billing) = (&config.classes["batch"], &config.classes["billing"]);
    assert_eq!((batch.cap, batch.rank()), (Share::Count(2), 10));
    assert_eq!((billing.reserve, billing.rank()), (Reserve::Of(Share::Count(1)), 75));
    let config = parse("", "c.toml", &env(&[("BURSAR_CLASS_BILLING_MAX_WAIT", "500ms")])).unwrap();
    assert_eq!(config.classes["billing"].max_wait, Some(Duration::from_millis(500)));
    assert_eq!(
        report("[class.billing]\nmatch = [\"route:(\"]\nexpress = 1", &[]),
        [
            "c.toml:2:9: class.billing.match: a list is not accepted; expected a list, each \
             \"tag:KEY=VALUE\" (class, tenant, route or user_id), \"route:REGEX\" or \"first_stmt:REGEX\" with \
             a regular expression that compiles",
            "c.toml:3:1: class.billing.express: there is no such key; did you mean database.NAME.express?",
        ]
    );
}

/// The budgets of one piece of work, by tenant, route, class, role and database.
fn budgets_of(config: &Config, scope: Scope<'_>) -> Budgets {
    config.budgets(&Scope { database: "app", user: "web", ..scope })
}

#[test]
fn the_most_specific_scope_wins_key_by_key() {
    let config = read(
        "[budget.request]\nmax_concurrent = 9\n\
         [database.app.budget.request]\nmax_concurrent = 8\nmax_leases = { reject = 80 }\n\
         [user.web.budget.request]\nmax_concurrent = 7\n\
         [class.batch.budget.request]\nmax_concurrent = 6\nmax_wait = \"60s\"\n\
         [route.\"/api/*\".budget.request]\nmax_concurrent = 5\n\
         [route.\"/api/orders*\".budget.request]\nmax_concurrent = 4\n\
         [tenant.acme.budget.request]\nmax_concurrent = { limit = 3, mode = \"enforce\" }\n",
    );
    let class = Some("batch");
    let of = |scope| budgets_of(&config, scope).max_concurrent;
    assert_eq!(config.budget.max_concurrent, 9);
    assert_eq!(config.budgets(&Scope { database: "b", user: "u", ..Scope::default() }), config.budget);
    assert_eq!(config.budgets(&Scope { database: "app", user: "u", ..Scope::default() }).max_concurrent, 8);
    assert_eq!(of(Scope::default()), 7);
    assert_eq!(of(Scope { class, ..Scope::default() }), 6);
    assert_eq!(of(Scope { class, route: Some("/api/x"), ..Scope::default() }), 5);
    assert_eq!(of(Scope { class, route: Some("/api/orders/7"), ..Scope::default() }), 4, "the longest");
    let all = budgets_of(&config, Scope { class, route: Some("/api/x"), tenant: "acme", ..Scope::default() });
    assert_eq!((all.max_concurrent, all.max_concurrent_mode), (3, Mode::Enforce));
    assert_eq!((all.leases_reject, all.max_wait), (Some(80), Some(Duration::from_secs(60))), "inherited");
    let shown = config.show();
    let row = shown.iter().find(|row| row.key == "tenant.acme.budget.request.max_concurrent.limit").unwrap();
    assert_eq!((row.value.as_str(), row.default.as_str()), ("3", "9"));
}

#[test]
fn a_route_has_a_mode_for_all_its_budgets() {
    let config = read(
        "[mode]\ndefault = \"observe\"\nroutes.\"/api/provision*\" = \"enforce\"\nwarned_since = \"2026-11-01\"\n\
         [tenant.acme.budget.transaction]\nmax_age = { mode = \"warn\" }\n",
    );
    let route = Some("/api/provision/user");
    let there = budgets_of(&config, Scope { route, ..Scope::default() });
    let modes = (there.max_concurrent_mode, there.age.mode, there.stall.mode);
    assert_eq!(modes, (Mode::Enforce, Mode::Enforce, Mode::Enforce));
    assert_eq!(budgets_of(&config, Scope { route, tenant: "acme", ..Scope::default() }).age.mode, Mode::Warn);
    let elsewhere = budgets_of(&config, Scope { route: Some("/api/orders"), ..Scope::default() });
    assert_eq!(elsewhere, config.budget);
    assert_eq!(config.warned_since, Some(20_758));
}

#[test]
fn faults_of_scopes_name_the_key() {
    let text = "[tenant.acme.budget.request]\nmax_leases = { reject = 0 }\nmax_lease = 1\n\
                [mode]\nroutes.\"/a\" = \"on\"\nwarned_since = \"2026-02-30\"\n";
    assert_eq!(
        report(text, &[]),
        [
            "c.toml:2:25: tenant.acme.budget.request.max_leases.reject: 0 is not accepted; expected a whole \
             number from 1 to 1000000, or \"off\"",
            "c.toml:3:1: tenant.acme.budget.request.max_lease: there is no such key; did you mean \
             tenant.acme.budget.request.max_leases?",
            "c.toml:5:15: mode.routes.\"/a\": \"on\" is not accepted; expected one of \"observe\", \"warn\", \
             \"enforce\"",
            "c.toml:6:16: mode.warned_since: \"2026-02-30\" is not accepted; expected a day such as \
             \"2026-11-01\", or \"off\"",
        ]
    );
    let variables = env(&[("BURSAR_TENANT_ACME_BUDGET_TRANSACTION_MAX_AGE_MODE", "enforce")]);
    let config = parse("[tenant.acme]\nmax = 3\n", "c.toml", &variables).unwrap();
    let budgets = budgets_of(&config, Scope { tenant: "acme", ..Scope::default() });
    assert_eq!(budgets.age.mode, Mode::Enforce);
}

#[test]
fn what_ends_work_only_after_a_day_of_warning_is_said() {
    let strict = "[budget.transaction]\nmax_age = { mode = \"enforce\" }\n[auth]\nmethod = \"trust\"\n";
    assert_eq!(read(strict).cautions(NOW), [Caution::WarnsFirst { key: "budget.transaction.max_age" }]);
    let forced = strict.replace("\"enforce\" }", "\"enforce\", force = true }");
    assert_eq!(read(&forced).cautions(NOW), []);
    let dated = format!("{strict}[mode]\nwarned_since = \"2026-11-01\"\n");
    assert_eq!(read(&dated).cautions(NOW), []);
}

#[test]
fn who_asks_about_users_must_be_somebody() {
    let query = "[auth]\nquery = \"select verifier from f($1)\"\n";
    assert_eq!(
        report(query, &[]),
        ["c.toml:2:9: auth.query: users are asked about in the database postgres, which has no user of its \
             own; set auth.query_database to one of [database.NAME] and auth.query_user to a role that may ask"]
    );
    let elsewhere = format!("{query}query_user = \"bursar\"\n[database.app]\n");
    assert!(report(&elsewhere, &[])[0].contains("the database postgres, which is not configured"));
    let fine = format!("{query}query_user = \"bursar\"\nquery_database = \"app\"\n[database.app]\n");
    let config = read(&fine);
    assert!(config.cautions(NOW).is_empty());
    assert_eq!(config.auth.query.as_deref(), Some("select verifier from f($1)"));
    read(&format!("{query}[database.\"*\"]\nuser = \"pool\"\n"));
    let without = report("[auth]\nquery = \"select 1\"\nquery_password = 7\n", &[]);
    assert!(without.len() == 2 && without[0].contains("with $1 for the name"), "{without:?}");
}

//! What must not be seen: a marker in every secret of the configuration and of clients, and none of them in
//! anything that Bursar says, in full, in base64 or in hexadecimal (SECURITY.md).

use crate::support::watch::{get, get_as, printed};
use crate::support::{Cluster, Config, Db, Files, Login, Proxy, Refused, Wire, msg, signal, until};
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const VERIFIER: &str = include_str!("../../deploy/sql/verifier.sql");

/// Markers, and everything that was said where they could be.
#[derive(Default)]
struct Seen {
    marks: Vec<String>,
    said: Vec<(String, Vec<u8>)>,
}

impl Seen {
    /// Another secret.
    fn mark(&mut self, name: &str) -> String {
        let mark = format!("kWq{}zX{name}pYv7Jd", self.marks.len() + 100);
        self.marks.push(mark.clone());
        mark
    }

    fn say(&mut self, what: &str, said: impl AsRef<[u8]>) {
        self.said.push((what.to_owned(), said.as_ref().to_owned()));
    }

    /// A login, and what can be asked then.
    fn login(&mut self, proxy: &Proxy, login: &Login) -> bool {
        let (said, let_in) = match Wire::try_login(proxy.addr(), login) {
            Ok(mut wire) => {
                let mut said = format!("{:?}", wire.parameters).into_bytes();
                said.extend(bytes(&wire.query("select current_user, 1 / 0")));
                (said, true)
            }
            Err(Refused::Said(reply)) => (bytes(&reply), false),
            Err(Refused::Io(error)) => panic!("{error}"),
        };
        self.say("a login", said);
        let_in
    }

    /// No marker anywhere.
    fn check(&self, at_least: usize) {
        assert!(self.said.len() >= at_least, "only {} things were said", self.said.len());
        for mark in &self.marks {
            let forms = forms(mark);
            for (what, said) in &self.said {
                let text = String::from_utf8_lossy(said);
                if let Some(form) = forms.iter().find(|form| text.contains(*form)) {
                    let line = text.lines().find(|line| line.contains(form)).unwrap_or(&text);
                    panic!("{mark}, as {form}, in {what}: {line}");
                }
            }
        }
    }
}

fn bytes(reply: &crate::support::Reply) -> Vec<u8> {
    reply.messages.iter().flat_map(|message| message.body.clone()).collect()
}

/// A text as it could be written: itself, hexadecimal, the numbers of its bytes, base64 wherever it begins.
fn forms(text: &str) -> Vec<String> {
    let hex: String = text.bytes().map(|b| format!("{b:02x}")).collect();
    let numbers: Vec<String> = text.bytes().map(|b| b.to_string()).collect();
    let mut forms = vec![text.to_owned(), hex.to_uppercase(), hex, numbers.join(", ")];
    forms.extend((0..3).map(|at| base64(&[&[0; 2][..at], text.as_bytes()].concat(), at)));
    forms
}

/// Base64 (RFC 4648) without the characters that other bytes before and behind have a part in.
fn base64(bytes: &[u8], before: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks_exact(3).map(|c| u32::from_be_bytes([0, c[0], c[1], c[2]]));
    let text = groups.flat_map(|n| [18, 12, 6, 0].map(|by| char::from(LETTERS[(n >> by & 63) as usize])));
    text.skip(if before == 0 { 0 } else { before + 1 }).collect()
}

#[test]
fn a_secret_is_found_in_each_of_its_forms() {
    for said in ["hunter22", "68756e7465723232", "68756E7465723232", "[104, 117, 110, 116, 101, 114, 50, 50]"]
    {
        assert!(forms("hunter22").iter().any(|form| said.contains(form)), "{said}");
    }
    // printf '%shunter22!' '' x xy | base64
    for said in ["aHVudGVyMjIh", "eGh1bnRlcjIyIQ==", "eHlodW50ZXIyMiE="] {
        assert!(forms("hunter22").iter().any(|form| said.contains(form)), "{said}");
    }
}

/// A server that asks for passwords, with roles whose passwords are secrets here.
struct Stage {
    files: Files,
    seen: Seen,
    /// Role and password.
    roles: Vec<(&'static str, String)>,
    /// As the server stores them: an md5 hash, and a verifier.
    stored: [String; 2],
}

impl Stage {
    fn new(cluster: &Cluster) -> Stage {
        let (files, mut seen) = (Files::new(), Seen::default());
        let mut admin = cluster.admin();
        admin.batch(VERIFIER);
        admin.batch("set password_encryption = 'scram-sha-256'");
        let mut roles = Vec::new();
        for role in ["clear", "hashed", "verified", "filed", "asked", "pooled", "bursar"] {
            let how = if role == "hashed" { "md5" } else { "scram-sha-256" };
            let create = if role == "bursar" { "alter" } else { "create" };
            let password = seen.mark(role);
            admin.batch(&format!("set password_encryption = '{how}'"));
            admin.batch(&format!("{create} role {role} login password '{password}'"));
            roles.push((role, password));
        }
        let stored = ["hashed", "verified"].map(|role| {
            admin.query(&format!("select rolpassword from pg_authid where rolname = '{role}'")).value()
        });
        // What has a hash may as well log in by it. The salt is every client's to know.
        seen.marks.push(stored[0].clone());
        seen.marks.push(stored[0]["md5".len()..].to_owned());
        seen.marks.extend(stored[1].split(['$', ':']).skip(3).map(str::to_owned));
        assert_eq!(seen.marks.len(), 7 + 2 + 2, "passwords, a hash, a stored and a server key");
        cluster.admit("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 md5\n");
        until("the server asks for passwords", || {
            Wire::try_login(cluster.addr(), &Login::new("clear", "template1")).is_err()
        });
        Stage { files, seen, roles, stored }
    }

    fn password(&self, role: &str) -> String {
        self.roles.iter().find(|(name, _)| *name == role).expect("a role").1.clone()
    }

    /// A file with a marker before its PEM, where nobody looks for any.
    fn pem(&mut self, file: &str) -> String {
        let name = format!("marked-{}-{file}", self.seen.marks.len());
        let text = self.files.read(file);
        if file.ends_with(".key") {
            self.seen.marks.extend(text.lines().nth(1).map(str::to_owned));
        }
        let text = format!("{}\n{text}", self.seen.mark("pem"));
        self.files.write(&name, text);
        format!("\"{}\"", self.files.path(&name).display())
    }

    /// Each key with a secret: its pattern, table and line. Called again, with other secrets where they need not
    /// be right.
    fn planted(&mut self, db: &Db<'_>, method: &str) -> Vec<(&'static str, String, String)> {
        let named = |name: &str| format!("database.{}_{name}", db.name());
        let mut all = Vec::new();
        let mut plant = |pattern, table: &str, line: String| all.push((pattern, table.to_owned(), line));
        plant("user.NAME.password", "user.clear", format!("password = \"{}\"", self.password("clear")));
        let before = format!("previous_password = \"{}\"", self.seen.mark("before"));
        plant("user.NAME.previous_password", "user.clear", before);
        match method {
            "md5" => plant("user.NAME.password", "user.hashed", format!("password = \"{}\"", self.stored[0])),
            _ => plant("user.NAME.password", "user.verified", format!("password = \"{}\"", self.stored[1])),
        }
        self.files.write("filed", self.password("filed"));
        let filed = self.files.path("filed").display().to_string();
        plant("user.NAME.password", "user.filed", format!("password_file = \"{filed}\""));
        let asks = format!("query_password = \"{}\"", self.password("bursar"));
        plant("auth.query_password", "auth", asks);
        let pooled = format!("password = \"{}\"", self.password("pooled"));
        plant("database.NAME.password", &named("pooled"), pooled);
        let wrong = format!("password = \"{}\"", self.seen.mark("refused"));
        plant("database.NAME.password", &named("refused"), wrong);
        let (argument, printed) = (self.seen.mark("argument"), self.password("pooled"));
        let environment = self.files.path("environment").display().to_string();
        let command =
            |script: &str| format!("password_command = [\"sh\", \"-c\", \"{script}\", \"{argument}\"]");
        plant(
            "database.NAME.password_command",
            &named("told"),
            command(&format!("env > {environment}; echo {printed}")),
        );
        let lost = format!("echo {}; exit 3", self.seen.mark("lost"));
        plant("database.NAME.password_command", &named("untold"), command(&lost));
        let one = format!("password_command = \"/nonexistent --token={}\"", self.seen.mark("text"));
        plant("database.NAME.password_command", &named("unwise"), one);
        for (pattern, table) in [
            ("tenant_context.secret", "tenant_context".to_owned()),
            ("database.NAME.tenant_context.secret", named("pooled.tenant_context")),
        ] {
            plant(pattern, &table, format!("secret = \"{}\"", self.seen.mark("tenant")));
        }
        for (pattern, key, file) in [
            ("tls.client.cert", "cert_file", "server.crt"),
            ("tls.client.key", "key_file", "server.key"),
            ("tls.client.ca", "ca_file", "ours.crt"),
            ("tls.server.cert", "cert_file", "client.crt"),
            ("tls.server.key", "key_file", "client.key"),
            ("tls.server.ca", "ca_file", "ours.crt"),
            ("database.NAME.tls.cert", "cert_file", "client.crt"),
            ("database.NAME.tls.key", "key_file", "client.key"),
            ("database.NAME.tls.ca", "ca_file", "ours.crt"),
        ] {
            let table = pattern.rsplit_once('.').expect("a table").0;
            let table = table.replace("database.NAME.tls", &named("pooled.tls"));
            plant(pattern, &table, format!("{key} = {}", self.pem(file)));
        }
        all
    }
}

fn config(db: &Db<'_>, method: &str, format: &str) -> Config {
    let mut config = Config::of_size(4)
        .with("log", "level = \"trace\"")
        .with("log", &format!("format = \"{format}\""))
        .with("auth", &format!("method = \"{method}\""))
        .with("auth", "query = \"SELECT * FROM bursar.verifier($1)\"")
        .with("auth", "query_user = \"bursar\"")
        .with("admin", "users = [\"clear\"]")
        .with("admin", "watch = false")
        .with("pool", "max_wait = \"20s\"")
        .with("tenant_context", "key = \"app.tenant_id\"")
        .with("tls.client", "mode = \"allow\"")
        .with("tls.server", "mode = \"prefer\"");
    for name in ["pooled", "refused", "told", "untold", "unwise"] {
        let table = format!("database.{}_{name}", db.name());
        let port = db.cluster().addr().port();
        config = config.with(&table, &format!("dbname = \"{}\"", db.name()));
        config = config.with(&table, "host = \"127.0.0.1\"").with(&table, &format!("port = {port}"));
        config = config.with(&table, "user = \"pooled\"");
        if !["pooled", "told"].contains(&name) {
            config = config.with(&table, "max_wait = \"500ms\"");
        }
    }
    config
}

/// Everything that clients and keepers can be told.
fn everybody(stage: &mut Stage, db: &Db<'_>, proxy: &Proxy, method: &str) {
    let theirs = stage.seen.mark("theirs");
    let mut let_in = BTreeSet::new();
    for (role, password) in stage.roles.clone() {
        let all = ["", "_pooled", "_told", "_refused", "_untold", "_unwise"];
        // Who waits in vain for the last three is all the same.
        for name in &all[..if role == "clear" { 6 } else { 3 }] {
            let login = Login::new(role, &format!("{}{name}", db.name()));
            if stage.seen.login(proxy, &login.with("bursar.tenant", "acme").password(&password)) {
                let_in.insert(format!("{role}{name}"));
            }
        }
        let wrong = Login::new(role, db.name()).password(&theirs);
        assert!(!stage.seen.login(proxy, &wrong), "{role}");
    }
    assert!(!stage.seen.login(proxy, &Login::new("nobody", db.name()).password(&theirs)));
    let own = if method == "md5" { "hashed" } else { "verified" };
    for role in ["clear", "filed", own] {
        for name in ["_pooled", "_told"] {
            assert!(let_in.contains(&format!("{role}{name}")), "{method}: {role}{name} in {let_in:?}");
        }
    }
    assert!(let_in.contains("clear") && (method == "md5" || let_in.contains("asked")), "{let_in:?}");
    assert!(!let_in.contains("clear_refused") && !let_in.contains("clear_untold"), "{let_in:?}");

    // What a client says is its own affair, too.
    let login = Login::new("clear", &format!("{}_pooled", db.name())).password(&stage.password("clear"));
    let mut client = Wire::login(proxy.addr(), &login);
    client.batch("set bursar.tenant = 'acme'");
    client.batch(&format!("select '{theirs}'"));
    client.ask(&[msg::parse("p", &format!("select '{theirs}'")), msg::sync()].concat());
    client.batch("begin; select 1");
    keepers(stage, proxy);
    client.batch("commit");
}

fn console(stage: &Stage, proxy: &Proxy) -> Wire {
    Wire::login(proxy.addr(), &Login::new("clear", "bursar").password(&stage.password("clear")))
}

/// The console, HTTP, the log, and what the system shows of the process.
fn keepers(stage: &mut Stage, proxy: &Proxy) {
    let mut console = console(stage, proxy);
    let help = console.query("show help").rows();
    let views: Vec<String> = help.into_iter().filter_map(|row| row[0].clone()).collect();
    let views: Vec<&String> = views.iter().filter(|command| command.starts_with("SHOW ")).collect();
    assert!(views.len() > 20, "{views:?}");
    for view in views {
        stage.seen.say(view, bytes(&console.query(view)));
    }
    let (_, paths) = get(proxy, "/nowhere").expect("an answer");
    let password = stage.password("clear");
    let names = paths.split_once("/api/{").and_then(|(_, rest)| rest.split_once('}')).expect("paths").0;
    let api: Vec<String> = names.split(',').map(|name| format!("/api/{name}")).collect();
    assert!(api.len() > 10, "{api:?}");
    for path in api.iter().map(String::as_str).chain(["/", "/metrics", "/livez", "/readyz", "/healthz/db"]) {
        let (status, body) = get_as(proxy, path, "clear", &password).expect("an answer");
        assert_eq!(status, 200, "{path}");
        stage.seen.say(path, body);
        let (status, body) = get_as(proxy, path, "clear", &format!("{password}!")).expect("an answer");
        assert_eq!(status == 401, path == "/" || path.starts_with("/api/"), "{path}");
        stage.seen.say(path, body);
    }
    stage.seen.say("the log", proxy.log());
    let arguments = std::fs::read(format!("/proc/{}/cmdline", proxy.pid())).expect("its arguments");
    assert!(arguments.starts_with(b"/"), "{arguments:?}");
    stage.seen.say("its arguments", arguments);
}

fn check(stage: &mut Stage, file: &std::path::Path, code: Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bursar"));
    let output = command.args(["check", "--offline", "--config"]).arg(file).output().expect("it runs");
    assert!(code.is_none() || output.status.code() == code, "{}", printed(&output));
    stage.seen.say("check", printed(&output));
}

/// RELOAD with other secrets, and with faults in each of them.
fn reloads(stage: &mut Stage, db: &Db<'_>, proxy: &mut Proxy, method: &str) {
    check(stage, &proxy.config_file(), Some(0));
    let (mut console, mut refused) = (console(stage, proxy), 0);
    for (pattern, table, line) in stage.planted(db, method) {
        let key = line.split_once(" = ").expect("a key").0.to_owned();
        let other = match pattern {
            "database.NAME.password_command" if line.contains("/nonexistent") => {
                format!("\"/nonexistent --token={}\"", stage.seen.mark("other"))
            }
            "database.NAME.password_command" => format!("[\"sh\", \"-c\", \"{}\"]", stage.seen.mark("other")),
            _ if pattern.contains("tls.") => line.split_once(" = ").expect("a value").1.to_owned(),
            "user.NAME.password" if table == "user.filed" => {
                stage.files.write("another", stage.seen.mark("other"));
                format!("\"{}\"", stage.files.path("another").display())
            }
            // The keeper's own, and what is made for one method.
            "user.NAME.password" => continue,
            _ => format!("\"{}\"", stage.seen.mark("other")),
        };
        proxy.change(&table, &format!("{key} = {other}"));
        let reply = console.query("reload");
        let name = format!("{table}.{}: changed", key.trim_end_matches("_file"));
        let told = bytes(&reply);
        assert!(String::from_utf8_lossy(&told).contains(&name), "{name}: {reply:?}");
        stage.seen.say("a reload", told);

        let good = std::fs::read_to_string(proxy.config_file()).expect("the file");
        let (mark, now) = (stage.seen.mark("fault"), format!("{key} = {other}"));
        stage.files.write("half", format!("-----BEGIN {mark}\n-----BEGIN CERTIFICATE-----\n{mark}\n"));
        let half = stage.files.path("half").display().to_string();
        let own = pattern.rsplit_once('.').expect("a name").1;
        let faults = [
            format!("{own} = [[\"{mark}\"]]"),
            format!("{own} = {mark}"),
            format!("{own} = \"{mark}\n\""),
            format!("{own}_file = \"\"\"{mark}\n{mark}\"\"\""),
            format!("{own}_file = \"/nonexistent\""),
            format!("{own} = \"\\u0000{mark}\""),
        ];
        // What the mode of its side has no use for is not looked into: half of a list of authorities may do.
        let half = pattern.starts_with("tls").then(|| format!("{own}_file = \"{half}\""));
        for (fault, must) in
            faults.into_iter().map(|fault| (fault, true)).chain(half.map(|half| (half, false)))
        {
            let bad = good.replacen(&now, &fault, 1);
            assert_ne!(bad, good, "{now}");
            std::fs::write(proxy.config_file(), bad).expect("a bad file");
            let reply = console.query("reload");
            assert!(reply.code() == "55000" || !must, "{fault}: {reply:?}");
            refused += usize::from(reply.code() == "55000");
            stage.seen.say("a refused reload", bytes(&reply));
            check(stage, &proxy.config_file(), must.then_some(64));
        }
        std::fs::write(proxy.config_file(), good.replacen(&now, "a line", 1)).expect("a bad file");
        let log = proxy.log().len();
        signal(proxy.pid(), "HUP");
        until("the reload is refused", || proxy.log()[log..].contains("configuration not reloaded"));
        std::fs::write(proxy.config_file(), good).expect("the good file");
        assert_eq!(console.query("reload").code(), "");
    }
    // Six faults in each of fourteen, and half a certificate and half a key.
    assert!(refused >= 6 * 14 + 2, "{refused}");
    keepers(stage, proxy);
}

/// The same secrets from the environment, which no child gets to see.
fn environment(stage: &mut Stage, db: &Db<'_>, proxy: &mut Proxy) {
    signal(proxy.pid(), "TERM");
    proxy.wait();
    let (mine, file) = (stage.seen.mark("variable"), stage.files.path("variable").display().to_string());
    stage.files.write("variable", stage.seen.mark("inafile"));
    let told = format!("BURSAR_DATABASE_{}_TOLD_PASSWORD_COMMAND_TTL", db.name().to_uppercase());
    proxy.start_again_with(&[
        ("BURSAR_USER_ENVY_PASSWORD", &mine),
        ("BURSAR_USER_LINK_PASSWORD_FILE", &file),
        (&told, "0s"),
    ]);
    std::fs::remove_file(stage.files.path("environment")).expect("there was one");
    let login =
        |role: &str, password: &str| Login::new(role, &format!("{}_told", db.name())).password(password);
    assert!(stage.seen.login(proxy, &login("envy", &mine)));
    assert!(!stage.seen.login(proxy, &login("link", &mine)));
    let environment = stage.files.read("environment");
    assert!(environment.contains("PGUSER=pooled"), "{environment}");
    assert!(!environment.contains("BURSAR_"), "{environment}");
    stage.seen.say("a child's environment", environment);
    keepers(stage, proxy);
}

#[test]
fn no_secret_is_said_anywhere() {
    let cluster = Cluster::new();
    let mut stage = Stage::new(&cluster);
    for (method, format) in [("md5", "text"), ("plain", "json"), ("scram-sha-256", "text")] {
        let db = Db::within(&cluster);
        let planted = stage.planted(&db, method);
        let patterns: BTreeSet<String> = planted.iter().map(|(pattern, ..)| (*pattern).to_owned()).collect();
        let all: BTreeSet<String> = bursar::config::secret_keys().into_iter().collect();
        assert_eq!(patterns, all, "each secret key has a marker here");
        let config = config(&db, method, format);
        let config = planted.iter().fold(config, |config, (_, table, line)| config.with(table, line));
        let mut proxy = Proxy::start(&db, config);
        everybody(&mut stage, &db, &proxy, method);
        if method == "scram-sha-256" {
            environment(&mut stage, &db, &mut proxy);
        }
        reloads(&mut stage, &db, &mut proxy, method);
        signal(proxy.pid(), "TERM");
        assert_eq!(proxy.wait().code(), Some(0));
        stage.seen.say("the whole log", proxy.log());
        assert!(proxy.log().lines().count() > 100, "much was logged: {}", proxy.log());
        stage.seen.check(100);
        stage.seen.said.clear();
    }
}

/// Whoever reads a core file reads every secret.
#[test]
fn no_core_file_is_written() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    assert_ne!(maximum, Some(0), "core files are allowed here");
    setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).expect("as far as the hard limit");
    let db = Db::new();
    let mut proxy = Proxy::start(&db, Config::one_backend());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.pid())).expect("its limits");
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a line");
    let hard = maximum.map_or("unlimited".to_owned(), |limit| limit.to_string());
    assert_eq!(core.split_ascii_whitespace().collect::<Vec<_>>(), ["0", &hard, "bytes"]);
    signal(proxy.pid(), "ABRT");
    assert!(!proxy.wait().core_dumped());
}

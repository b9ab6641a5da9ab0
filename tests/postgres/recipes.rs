//! The recipes of docs/tagging.md, each as it stands there: what it runs counts for its request, tenant and
//! route, and its connection is nobody's afterwards.
//!
//! Not here: the recipes whose stacks are too large to install for them ([`BY_HAND`]); the page says so.

use super::drivers::{installed, program, succeed, url};
use crate::support::watch::row;
use crate::support::{Config, Db, Proxy};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tried by hand, with the versions that the page names.
const BY_HAND: [&str; 2] = ["pgx", "rails"];

/// Name and text of each recipe: the blocks of code whose first line names one.
fn recipes() -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tagging.md");
    let page = std::fs::read_to_string(page).expect("docs/tagging.md");
    let blocks = page.split("\n```").skip(1).step_by(2);
    let recipes = blocks.filter_map(|block| {
        let (first, text) = block.split_once('\n')?.1.split_once('\n')?;
        let (_, name) = first.split_once(" recipe: ")?;
        Some((name.to_owned(), format!("{text}\n")))
    });
    recipes.collect()
}

/// Runs the recipe through Bursar and looks at what was counted. `command` has the recipe's file and the URL;
/// `after` is how the stack prints an empty value.
fn run(name: &str, file: &str, after: &str, command: impl FnOnce(&Path, &str) -> Command) {
    let (_, text) = recipes().into_iter().find(|(known, _)| known == name).expect("the recipe");
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(2).lazy());
    let dir = db.cluster().subdir(&format!("recipe-{name}"));
    let file = dir.join(file);
    std::fs::write(&file, text).expect("a file for the recipe");
    let url = url(proxy.addr(), &db);
    let mut command = command(&file, &url);
    command.env("DATABASE_URL", &url).env("PYTHONDONTWRITEBYTECODE", "1");
    assert_eq!(succeed(&command), format!("five\n{after}\n"), "{name}");
    let counted = "select tenant, route, peak_leases from bursar.request('5f0c')";
    assert_eq!(row(&mut proxy.console(), counted), ["acme", "/orders", "1"], "{name}");
    proxy.stop();
}

fn python(file: &Path) -> Command {
    let mut command = Command::new(installed("python/bin/python"));
    command.arg(file);
    command
}

fn node(program: impl AsRef<OsStr>, file: &Path, modules: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(file).env("NODE_PATH", installed(modules));
    command
}

#[test]
fn every_recipe_is_run_here_or_by_hand() {
    let names: Vec<_> = recipes().into_iter().map(|(name, _)| name).collect();
    let run = ["psycopg", "sqlalchemy", "django", "asyncpg", "pg", "prisma", "jdbc"];
    assert_eq!(names, [&run[..], &BY_HAND].concat());
}

#[test]
fn psycopg() {
    run("psycopg", "recipe.py", "('',)", |file, _| python(file));
}

#[test]
fn sqlalchemy() {
    run("sqlalchemy", "recipe.py", "('',)", |file, _| python(file));
}

#[test]
fn django() {
    run("django", "recipe.py", "('',)", |file, url| {
        let mut command = python(&program("recipe_django.py"));
        command.arg(url).arg(file);
        command
    });
}

#[test]
fn asyncpg() {
    run("asyncpg", "recipe.py", "('',)", |file, _| python(file));
}

#[test]
fn node_postgres() {
    run("pg", "recipe.cjs", "{ 'bursar.request_id': '' }", |file, _| node("node", file, "node/node_modules"));
}

#[test]
fn prisma() {
    run("prisma", "recipe.cjs", "{ 'bursar.request_id': '' }", |file, _| {
        node(installed("prisma/node"), file, "prisma/node_modules")
    });
}

#[test]
fn jdbc() {
    run("jdbc", "Tagged.java", "[]", |file, url| {
        let dir: PathBuf = file.parent().expect("a directory").into();
        let driver = "/usr/share/java/postgresql.jar";
        let mut compiler = Command::new("java");
        compiler.args([
            "-cp",
            "/usr/share/java/ecj.jar",
            "org.eclipse.jdt.internal.compiler.batch.Main",
            "-11",
        ]);
        compiler.args(["-cp", driver, "-d"]).arg(&dir).arg(file).arg(program("Recipe.java"));
        succeed(&compiler);
        let mut command = Command::new("java");
        command.args(["-XX:TieredStopAtLevel=1", "-cp", &format!("{driver}:{}", dir.display()), "Recipe"]);
        command.arg(format!("jdbc:{}", url.replace("app@", "")));
        command
    });
}

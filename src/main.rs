//! Arguments → configuration → runtime → exit code.

use bursar::cli::{self, Cli, Command, Exit, environment};
use bursar::clock;
use bursar::config;
use bursar::reload::Reload;
use bursar::{log, server};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{self, Write};
use std::process::ExitCode;
use tokio::runtime::{Builder, Runtime};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let env = environment();
    let path = cli.config.as_deref();
    let mut out = io::stdout().lock();
    match &cli.command {
        None => {
            drop(out);
            serve(&cli)
        }
        Some(Command::Check(args)) => match cli::check::run(args, path, &env, &mut out) {
            Ok(exit) => exit.into(),
            Err(_) => Exit::Failed.into(),
        },
        Some(Command::Health(args)) => cli::health::run(args, path, &env, &mut out).into(),
        Some(Command::Completions { shell }) => {
            if cli::completions::run(*shell, &mut out).is_ok() { Exit::Good } else { Exit::Failed }.into()
        }
        Some(Command::Bench(args)) => {
            drop(out);
            on_runtime(1, cli::bench::run(args))
        }
        Some(Command::Demo(args)) => {
            drop(out);
            on_runtime(1, cli::demo::run(args))
        }
    }
}

fn serve(cli: &Cli) -> ExitCode {
    without_core_dumps();
    let env = environment();
    let reload = Reload::new(config_file(cli, &env), env.clone());
    let traced = match config::load_traced(cli.config.as_deref(), &env) {
        Ok(traced) => traced,
        Err(faults) => return say(&faults, Exit::BadConfig),
    };
    if let Err(error) = log::init(&traced.config.log) {
        return say(&error, Exit::BadConfig);
    }
    for caution in traced.config.cautions(clock::since_epoch()) {
        tracing::warn!("{caution}");
    }
    let workers = traced.config.listen.workers;
    on_runtime(workers, async move {
        match server::run(traced, reload).await {
            Ok(exit) => exit.into(),
            Err(error) => say(&error, Exit::Failed),
        }
    })
}

/// A core file would have every password and what clients have sent. The hard limit stays, so that
/// `prlimit --core` can allow one while Bursar runs (setrlimit(2)).
fn without_core_dumps() {
    let limit = Resource::RLIMIT_CORE;
    // Lowering a soft limit needs no privilege. A sandbox may forbid it: then the limit is its matter.
    let _ = getrlimit(limit).and_then(|(_, hard)| setrlimit(limit, 0, hard));
}

/// The file that is read at start, so that a reload reads the same one.
fn config_file(cli: &Cli, env: &std::collections::BTreeMap<String, String>) -> Option<std::path::PathBuf> {
    let default = std::path::Path::new(config::DEFAULT_FILE);
    cli.config
        .clone()
        .or_else(|| env.get("BURSAR_CONFIG").map(Into::into))
        .or_else(|| default.exists().then(|| default.to_owned()))
}

fn on_runtime(workers: usize, task: impl Future<Output = ExitCode>) -> ExitCode {
    match runtime(workers) {
        Ok(runtime) => runtime.block_on(task),
        Err(error) => say(&error, Exit::Failed),
    }
}

/// One worker is one thread in all; more of them share one reactor.
fn runtime(workers: usize) -> io::Result<Runtime> {
    let mut builder = if workers > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    if workers > 1 {
        builder.worker_threads(workers);
    }
    builder.enable_all().build()
}

fn say(error: &dyn std::fmt::Display, exit: Exit) -> ExitCode {
    let _ = writeln!(io::stderr(), "bursar: {error}");
    exit.into()
}

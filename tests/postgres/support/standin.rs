//! Something else in the place of the proxy, chosen by `BURSAR_TEST_PROXY`: `direct` (PostgreSQL
//! itself) or `pgbouncer`, to tell a wrong test from a wrong proxy; or the path of another build of
//! Bursar, for long runs with optimised code. Not part of any check.

use super::{Cluster, Config};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What stands before PostgreSQL.
pub(super) enum Choice {
    /// What is tested, and where it is.
    Bursar(PathBuf),
    /// Nothing.
    Direct,
    /// PgBouncer, from PATH or /usr/sbin.
    PgBouncer,
}

/// The value of `BURSAR_TEST_PROXY`.
pub(super) fn chosen() -> Choice {
    match std::env::var("BURSAR_TEST_PROXY").as_deref() {
        Err(_) | Ok("" | "bursar") => Choice::Bursar(PathBuf::from(env!("CARGO_BIN_EXE_bursar"))),
        Ok("direct") => Choice::Direct,
        Ok("pgbouncer") => Choice::PgBouncer,
        Ok(path) if path.starts_with('/') => Choice::Bursar(PathBuf::from(path)),
        Ok(other) => panic!("BURSAR_TEST_PROXY={other}: bursar, an absolute path to it, direct or pgbouncer"),
    }
}

/// PgBouncer with the pool of this configuration.
pub(super) fn pgbouncer(cluster: &Cluster, dir: &Path, port: u16, config: &Config) -> Command {
    // With `trust`, PgBouncer still wants to know its users.
    let users = dir.join("users.txt");
    std::fs::write(&users, "\"app\" \"\"\n\"postgres\" \"\"\n").expect("users.txt");
    let ini = format!(
        "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\n\
         pool_mode = {mode}\ndefault_pool_size = {size}\nmax_client_conn = 1000\n\
         ignore_startup_parameters = options,extra_float_digits\nquery_wait_timeout = 5\n",
        server = cluster.addr().port(),
        users = users.display(),
        mode = config.get("pool", "mode").unwrap_or("transaction"),
        size = config.get("pool", "size").unwrap_or("20"),
    );
    let file = dir.join("pgbouncer.ini");
    std::fs::write(&file, ini).expect("pgbouncer.ini");
    let sbin = Path::new("/usr/sbin/pgbouncer");
    let mut command = cluster.command(if sbin.exists() { sbin } else { Path::new("pgbouncer") });
    command.arg(file);
    command
}

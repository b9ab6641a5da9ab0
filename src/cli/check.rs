//! `bursar check`: the configuration read and cross-checked, and what it names on this machine and
//! elsewhere tried: the directory of the Unix socket, each server.
//!
//! Trying means: connect and send an SSLRequest, the one message PostgreSQL answers before it knows
//! who asks. No login, so it needs no password and leaves no trace but a line in the server's log.
//! With `--connect` it does log in: see `connect`.

use super::{CheckArgs, Exit, connect};
use crate::clock;
use crate::config::{self, Database, Fault, Faults, Traced, Wrong};
use crate::net::tls::{Tls, TlsError};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// SSLRequest: length 8 and the code 80877103 (PostgreSQL, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Checks, and writes every fault with its place, then cautions, then what is well.
///
/// # Errors
/// What writing to `out` reports.
pub fn run(
    args: &CheckArgs,
    file: Option<&Path>,
    env: &BTreeMap<String, String>,
    out: &mut dyn Write,
) -> io::Result<Exit> {
    let checked = config::load_traced(file, env).and_then(|traced| {
        let tls = certificates(&traced)?;
        if !args.offline {
            surroundings(&traced)?;
        }
        Ok((traced, tls))
    });
    match checked {
        Ok((traced, tls)) => {
            for caution in traced.config.cautions(clock::since_epoch()) {
                writeln!(out, "{}: caution: {caution}", traced.origin)?;
            }
            if args.connect && !connect::run(&traced, tls, out)? && args.strict {
                writeln!(out, "{}: not good: see above (--strict)", traced.origin)?;
                return Ok(Exit::BadConfig);
            }
            let tried = if args.offline { "; servers not tried" } else { "; every server answers" };
            writeln!(out, "{}: good{tried}", traced.origin)?;
            Ok(Exit::Good)
        }
        Err(faults) => {
            writeln!(out, "{faults}")?;
            Ok(Exit::BadConfig)
        }
    }
}

/// Reads certificates and keys as a start would.
fn certificates(traced: &Traced) -> Result<Tls, Faults> {
    let fault = |TlsError { key, reason }| {
        let wrong = Wrong::Certificate { reason };
        Fault { place: traced.place(&key), key, wrong }
    };
    Tls::new(&traced.config).map_err(|error| fault(error).into())
}

/// Tries the socket's directory, and the server of every database, each address once.
fn surroundings(traced: &Traced) -> Result<(), Faults> {
    let any = traced.config.any_database.iter().map(|database| ("*", database));
    let named = traced.config.databases.iter().map(|(name, database)| (name.as_str(), database));
    let mut tried = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, database) in any.chain(named) {
        let wrong = tried.entry((&database.host, database.port)).or_insert_with(|| probe(database));
        if let Some(wrong) = wrong {
            let key = config::dotted(&["database", name, "host"]);
            faults.push(Fault { place: traced.place(&key), key, wrong: wrong.clone() });
        }
    }
    if let Some(path) = &traced.config.listen.unix_dir
        && let Err(error) = std::fs::read_dir(path)
    {
        let key = "listen.unix_dir".to_owned();
        let wrong = Wrong::NoDirectory { path: path.clone(), error: error.kind() };
        faults.push(Fault { place: traced.place(&key), key, wrong });
    }
    Faults::none_in(faults)
}

/// What is wrong with a database's servers, if anything: of several, the first.
fn probe(database: &Database) -> Option<Wrong> {
    let timeout = database.pool.connect_timeout;
    database.servers().iter().find_map(|(host, port)| probe_one(host, *port, timeout))
}

fn probe_one(host: &str, port: u16, timeout: Duration) -> Option<Wrong> {
    let (address, answer) = if host.starts_with('/') {
        let path = format!("{host}/.s.PGSQL.{port}");
        let answer = UnixStream::connect(&path).and_then(|stream| {
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            ask(stream)
        });
        (path, answer)
    } else {
        (format!("{host}:{port}"), ask_tcp(host, port, timeout))
    };
    match answer {
        // `E` is a server too busy or too old to say more.
        Ok(b'S' | b'N' | b'E') => None,
        Ok(_) => Some(Wrong::NotPostgres { address }),
        Err(error) => Some(Wrong::Unreachable { address, error: error.kind() }),
    }
}

/// The first of the host's addresses that connects, as libpq does it.
fn ask_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<u8> {
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                return ask(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask(mut stream: impl Read + Write) -> io::Result<u8> {
    stream.write_all(&SSL_REQUEST)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that answers one SSLRequest with `answer`; its port.
    fn server(answer: u8) -> (u16, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 8];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(request, SSL_REQUEST);
            stream.write_all(&[answer]).unwrap();
        });
        (port, thread)
    }

    fn check(toml: &str, offline: bool) -> (Exit, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.toml");
        std::fs::write(&file, toml).unwrap();
        let mut out = Vec::new();
        let exit =
            run(&CheckArgs { offline, ..CheckArgs::default() }, Some(&file), &BTreeMap::new(), &mut out)
                .unwrap();
        (exit, String::from_utf8(out).unwrap().replace(&format!("{}/", dir.path().display()), ""))
    }

    #[test]
    fn a_server_that_answers_is_good() {
        let (port, thread) = server(b'N');
        // Two databases on one server: it is asked once.
        let toml =
            format!("[auth]\nmethod = \"trust\"\n[database.a]\nport = {port}\n[database.b]\nport = {port}\n");
        assert_eq!(check(&toml, false), (Exit::Good, "b.toml: good; every server answers\n".to_owned()));
        thread.join().unwrap();
    }

    #[test]
    fn servers_that_do_not_are_faults_of_their_keys() {
        let (odd, thread) = server(b'H');
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let toml = format!(
            "[database.a]\nhost = \"127.0.0.1\"\nport = {odd}\n[database.\"b c\"]\nport = {closed}\n"
        );
        let (exit, out) = check(&toml, false);
        assert_eq!(exit, Exit::BadConfig);
        assert_eq!(
            out,
            format!(
                "b.toml:2:8: database.a.host: 127.0.0.1:{odd} does not answer like a PostgreSQL server; check \
                 host and port\n\
                 b.toml:4:11: database.\"b c\".host: 127.0.0.1:{closed} cannot be reached (connection refused); \
                 check host, port and that the server is running\n"
            )
        );
        thread.join().unwrap();
    }

    #[test]
    fn faults_and_cautions_are_told_without_asking_anybody() {
        let (exit, out) = check("[pool]\nsize = 0\n[log]\nlevel = \"loud\"\n", false);
        assert_eq!(exit, Exit::BadConfig);
        assert_eq!(out.lines().count(), 2, "{out}");
        let (exit, out) = check("", true);
        assert_eq!(exit, Exit::Good);
        assert!(out.starts_with("b.toml: caution: no [user.NAME] has a password"), "{out}");
        assert!(out.ends_with("b.toml: good; servers not tried\n"), "{out}");
    }
}

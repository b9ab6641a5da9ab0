//! `bursar health`: one HTTP GET, for a container image that has no shell and no client in it.
//!
//! Plain blocking sockets: it asks one question and ends. No TLS and no redirects; the admin
//! listener has neither.

use super::{Exit, HealthArgs};
use crate::config;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

/// For each step; a container's own timeout for the check is usually 3 s or more.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// The configuration cannot be read, so there is no address to ask.
    #[error(transparent)]
    Config(#[from] config::Faults),
    /// There is nothing to ask.
    #[error("admin.address is \"off\"; give --url")]
    NoAddress,
    /// Not a URL this can ask.
    #[error("only http://HOST[:PORT][/PATH] can be asked")]
    Url,
    /// Not reached, or no answer in time.
    #[error("no answer: {0}")]
    Io(#[from] io::Error),
    /// An answer that is not HTTP.
    #[error("the answer is not HTTP")]
    NotHttp,
    /// Another status than 2xx.
    #[error("status {0}")]
    Status(u16),
}

/// Asks, and says why not if the answer is no.
pub fn run(
    args: &HealthArgs,
    config: Option<&Path>,
    env: &BTreeMap<String, String>,
    err: &mut dyn Write,
) -> Exit {
    match ask_configured(args, config, env) {
        Ok(()) => Exit::Good,
        Err(why) => {
            // Nothing is left to be done if even that cannot be written.
            let _ = writeln!(err, "bursar health: {why}");
            Exit::Failed
        }
    }
}

fn ask_configured(
    args: &HealthArgs,
    config: Option<&Path>,
    env: &BTreeMap<String, String>,
) -> Result<(), Unhealthy> {
    if let Some(url) = &args.url {
        return ask(url);
    }
    let address = config::load(config, env)?.admin.address.ok_or(Unhealthy::NoAddress)?;
    ask(&format!("http://{}/livez", reachable(address)))
}

/// A wildcard address is for listening; ask it on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// One GET; `Ok` for any 2xx.
///
/// # Errors
/// Any [`Unhealthy`] but `Config` and `NoAddress`.
pub fn ask(url: &str) -> Result<(), Unhealthy> {
    let rest = url.strip_prefix("http://").ok_or(Unhealthy::Url)?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if host.is_empty() || rest.contains(|c: char| c.is_ascii_control() || c == ' ') {
        return Err(Unhealthy::Url);
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let target = if has_port { host.to_owned() } else { format!("{host}:80") };
    let address = target.to_socket_addrs()?.next().ok_or(Unhealthy::Url)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // RFC 9112: the request line, the one header that must be there, and the end.
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut head)?;
    let head = std::str::from_utf8(&head).map_err(|_| Unhealthy::NotHttp)?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..)).and_then(|s| s.parse().ok());
    match status.ok_or(Unhealthy::NotHttp)? {
        200..=299 => Ok(()),
        status => Err(Unhealthy::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one connection with `answer`; gives the address and, when asked, the request.
    fn server(answer: &'static str) -> (SocketAddr, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (address, thread)
    }

    #[test]
    fn a_good_answer_is_healthy() {
        let (address, thread) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let env =
            BTreeMap::from([("BURSAR_ADMIN_ADDRESS".to_owned(), format!("0.0.0.0:{}", address.port()))]);
        let mut err = Vec::new();
        assert_eq!(run(&HealthArgs { url: None }, None, &env, &mut err), Exit::Good);
        assert_eq!(err, b"");
        let request = thread.join().unwrap();
        assert_eq!(request, format!("GET /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn any_other_answer_is_not() {
        for (answer, why) in [
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "bursar health: status 503\n"),
            ("SSH-2.0-OpenSSH_9.2\r\n", "bursar health: the answer is not HTTP\n"),
        ] {
            let (address, thread) = server(answer);
            let args = HealthArgs { url: Some(format!("http://{address}")) };
            let mut err = Vec::new();
            assert_eq!(run(&args, None, &BTreeMap::new(), &mut err), Exit::Failed);
            assert_eq!(String::from_utf8(err).unwrap(), why);
            thread.join().unwrap();
        }
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(ask(&format!("http://{closed}/")), Err(Unhealthy::Io(_))));
        for url in ["https://localhost/", "localhost:1", "http:///x", "http://a b/"] {
            assert!(matches!(ask(url), Err(Unhealthy::Url)), "{url}");
        }
    }
}

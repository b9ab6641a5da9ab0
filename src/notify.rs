//! What a service manager is told (sd_notify(3)): one datagram to the socket that NOTIFY_SOCKET names. Without the
//! variable nothing is sent.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where to, and how often a sign of life is wanted.
#[derive(Debug)]
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// From the environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. A socket that cannot be used is logged.
    #[must_use]
    pub fn new(env: &BTreeMap<String, String>) -> Notify {
        let socket = env.get("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            let opened = address(name).and_then(|to| {
                let socket = UnixDatagram::unbound()?;
                // A manager that does not read must not stop the process.
                socket.set_nonblocking(true)?;
                Ok((socket, to))
            });
            opened.inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET cannot be used")).ok()
        });
        let ours = env.get("WATCHDOG_PID").is_none_or(|pid| *pid == std::process::id().to_string());
        let micros = env.get("WATCHDOG_USEC").filter(|_| ours).and_then(|micros| micros.parse().ok());
        let watchdog = micros.filter(|micros| *micros > 0).map(Duration::from_micros);
        Notify { watchdog: watchdog.filter(|_| socket.is_some()), socket }
    }

    /// It listens.
    pub fn ready(&self) {
        self.send("READY=1\nSTATUS=serving");
    }

    /// It reads its configuration; [`Notify::ready`] follows, whatever came of it.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading"));
    }

    /// It leaves.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=draining");
    }

    /// Says again and again that the event loop turns, twice as often as asked for, as sd_watchdog_enabled(3) advises;
    /// runs for ever. It is a task of that loop: where the loop hangs, nothing is said.
    pub async fn live(&self) {
        let Some(every) = self.watchdog else { return std::future::pending().await };
        loop {
            self.send("WATCHDOG=1");
            tokio::time::sleep(every / 2).await;
        }
    }

    fn send(&self, state: &str) {
        let Some((socket, to)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), to) {
            tracing::debug!(%error, "the service manager cannot be told");
        }
    }
}

/// A path, or a name without one after `@`.
fn address(name: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.strip_prefix('@') {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    SocketAddr::from_pathname(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[tokio::test]
    async fn an_abstract_socket_is_told_and_a_watchdog_fed() {
        let name = format!("bursar-test-{}", std::process::id());
        let server = UnixDatagram::bind_addr(&address(&format!("@{name}")).unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let at = format!("@{name}");
        let notify = Notify::new(&env(&[("NOTIFY_SOCKET", &at), ("WATCHDOG_USEC", "20000")]));
        let heard = || {
            let mut buffer = [0; 200];
            let n = server.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..n].to_vec()).unwrap()
        };
        notify.ready();
        assert_eq!(heard(), "READY=1\nSTATUS=serving");
        notify.reloading();
        let told = heard();
        let micros = told.lines().nth(1).and_then(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0, "{told}");
        let _ = tokio::time::timeout(Duration::from_millis(100), notify.live()).await;
        assert_eq!((heard(), heard()), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()));
    }

    #[tokio::test]
    async fn without_a_socket_or_for_another_process_nothing_is_said() {
        Notify::new(&env(&[("WATCHDOG_USEC", "1")])).ready();
        let other = [("NOTIFY_SOCKET", "@nobody"), ("WATCHDOG_USEC", "1"), ("WATCHDOG_PID", "1")];
        assert_eq!(Notify::new(&env(&other)).watchdog, None);
        assert!(Notify::new(&env(&[("NOTIFY_SOCKET", &"x".repeat(200))])).socket.is_none());
    }
}

//! A server for tests that trusts everybody, tells a pid, and stays silent.

use super::target::{Target, tests::database};
use crate::wire::backend::{TxStatus, message, parameter_status, ready_for_query};
use bytes::{BufMut, BytesMut};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A listening server; it accepts while its task is polled.
pub(super) struct Server {
    port: u16,
    /// The server's ends of the connections it accepted.
    accepted: mpsc::UnboundedReceiver<TcpStream>,
    logins: Arc<AtomicI32>,
}

impl Server {
    pub(super) async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, accepted) = mpsc::unbounded_channel();
        let logins = Arc::new(AtomicI32::new(0));
        let count = logins.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                // A client that gave up half way is nobody's business.
                if greet(&mut stream, &count).await.is_ok() && tell.send(stream).is_err() {
                    return;
                }
            }
        });
        Server { port, accepted, logins }
    }

    pub(super) fn target(&self) -> Target {
        Target::new(&database("127.0.0.1", self.port), "app", "alice", None)
    }

    /// How many logged in so far.
    pub(super) fn logins(&self) -> i32 {
        self.logins.load(Ordering::Relaxed)
    }

    /// The server's end of the next connection, in order of login.
    pub(super) async fn end(&mut self) -> TcpStream {
        self.accepted.recv().await.unwrap()
    }
}

async fn greet(stream: &mut TcpStream, logins: &AtomicI32) -> io::Result<()> {
    let len = stream.read_i32().await?;
    let mut startup = vec![0; usize::try_from(len).unwrap() - 4];
    stream.read_exact(&mut startup).await?;
    let pid = logins.fetch_add(1, Ordering::Relaxed) + 1;
    let mut out = BytesMut::new();
    message(&mut out, b'R', |out| out.put_i32(0));
    parameter_status(&mut out, b"server_version", b"15.0");
    message(&mut out, b'K', |out| {
        out.put_i32(pid);
        out.extend_from_slice(format!("key{pid}").as_bytes());
    });
    ready_for_query(&mut out, TxStatus::Idle);
    stream.write_all(&out).await
}

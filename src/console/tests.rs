//! The console over an in-memory stream: raw frames for what no driver would send, tokio-postgres
//! for what drivers do.

use super::fake::Fake;
use super::source::Command;
use super::{PARAMETERS, serve};
use crate::wire::backend::{TxStatus, error_field, message, parameter_status, ready_for_query};
use crate::wire::walk::{HEADER, Header};
use bytes::{BufMut, BytesMut};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

/// Messages of a server: kind and body.
pub(super) type Replies = Vec<(u8, Vec<u8>)>;

fn split(mut bytes: &[u8]) -> Replies {
    let mut replies = Vec::new();
    while let Some(header) = Header::read(bytes) {
        let total = header.total().expect("a length of ours");
        replies.push((header.kind, bytes[HEADER..total].to_vec()));
        bytes = &bytes[total..];
    }
    assert!(bytes.is_empty(), "half a message");
    replies
}

pub(super) fn kinds(replies: &Replies) -> String {
    replies.iter().map(|(kind, _)| char::from(*kind)).collect()
}

pub(super) fn field(reply: &(u8, Vec<u8>), kind: u8) -> &str {
    assert_eq!(reply.0, b'E');
    std::str::from_utf8(error_field(&reply.1, kind).unwrap_or_default()).unwrap()
}

/// Frontend messages, built.
#[derive(Default)]
pub(super) struct Say(BytesMut);

impl Say {
    pub(super) fn raw(mut self, kind: u8, body: &[u8]) -> Say {
        message(&mut self.0, kind, |out| out.extend_from_slice(body));
        self
    }

    pub(super) fn query(self, text: &str) -> Say {
        self.raw(b'Q', format!("{text}\0").as_bytes())
    }

    pub(super) fn parse(self, name: &str, text: &str) -> Say {
        self.raw(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
    }

    /// Binds the unnamed portal without parameters.
    pub(super) fn bind(self, statement: &str) -> Say {
        self.raw(b'B', format!("\0{statement}\0\0\0\0\0\0\0").as_bytes())
    }

    pub(super) fn execute(self, limit: u8) -> Say {
        self.raw(b'E', &[0, 0, 0, 0, limit])
    }

    pub(super) fn sync(self) -> Say {
        self.raw(b'S', b"")
    }

    /// Sends all of it, then end of file; everything the console said until it closed.
    pub(super) async fn hear(self, fake: &Arc<Fake>) -> Replies {
        let (mut client, server) = duplex(4096);
        let source: Arc<dyn super::Source> = Arc::clone(fake) as _;
        let console = tokio::spawn(serve(server, Fake::keeper(), source, CancellationToken::new()));
        let (mut reader, mut writer) = tokio::io::split(&mut client);
        let mut bytes = Vec::new();
        let (read, _) = tokio::join!(reader.read_to_end(&mut bytes), async {
            // The console may close first; what it said says why.
            let _ = writer.write_all(&self.0).await;
            let _ = writer.shutdown().await;
        });
        read.unwrap();
        console.await.expect("no panic").unwrap();
        split(&bytes)
    }
}

#[tokio::test]
async fn a_view_by_the_simple_protocol() {
    let replies = Say::default().query("SHOW VERSION; show state").hear(&Arc::new(Fake::planted())).await;
    assert_eq!(kinds(&replies), "TDCTDDDDCZ");
    let version = concat!("Bursar ", env!("CARGO_PKG_VERSION"));
    assert_eq!(&replies[1].1[6..], version.as_bytes());
    assert_eq!(replies[2].1, b"SHOW\0");
    assert_eq!(replies[9].1, b"I");
}

#[tokio::test]
async fn a_syntax_error_runs_nothing_and_keeps_the_session() {
    let fake = Arc::new(Fake::planted());
    let replies = Say::default().query("RELOAD; FROBNICATE").query("").query("SELECT 1").hear(&fake).await;
    assert_eq!(kinds(&replies), "EZIZTDCZ");
    assert_eq!(field(&replies[0], b'C'), "42601");
    assert_eq!(field(&replies[0], b'M'), "syntax error");
    assert_eq!(field(&replies[0], b'D'), "near \"FROBNICATE\"");
    assert!(field(&replies[0], b'H').contains("SHOW HELP"));
    assert!(fake.commands.lock().is_empty());
}

#[tokio::test]
async fn commands_reach_the_house_and_their_errors_the_client() {
    let fake = Arc::new(Fake::planted());
    let say = Say::default().query("PAUSE app; KILL_CLIENT 9; RELOAD").query("SHUTDOWN WAIT_FOR_SERVERS");
    let replies = say.hear(&fake).await;
    assert_eq!(kinds(&replies), "CEZCZ");
    assert_eq!(replies[0].1, b"PAUSE\0");
    assert_eq!(field(&replies[1], b'C'), "22023");
    let wanted = [
        Command::Pause(Some("app".into())),
        Command::KillClient(9),
        Command::Shutdown(super::ShutdownMode::WaitForServers),
    ];
    assert_eq!(*fake.commands.lock(), wanted);
}

#[tokio::test]
async fn transactions_are_a_status() {
    let say =
        Say::default().query("BEGIN").query("SELECT 1").query("oops").query("SHOW POOLS").query("COMMIT");
    let replies = say.query("BEGIN; COMMIT").hear(&Arc::new(Fake::planted())).await;
    assert_eq!(kinds(&replies), "CZTDCZEZEZCZCCZ");
    let status = |at: usize| replies[at].1.as_slice();
    assert_eq!([status(1), status(5), status(7), status(9), status(11)], [b"T", b"T", b"E", b"E", b"I"]);
    assert_eq!(field(&replies[8], b'C'), "25P02");
    assert_eq!(replies[10].1, b"ROLLBACK\0");
    assert_eq!(replies[13].1, b"COMMIT\0");
}

#[tokio::test]
async fn an_extended_error_skips_to_sync() {
    let say = Say::default().parse("", "SELECT nope").bind("").execute(0).query("RELOAD").sync();
    let replies = say.parse("", "SELECT 1").bind("").execute(0).sync().hear(&Arc::new(Fake::planted())).await;
    assert_eq!(kinds(&replies), "EZ12DCZ");
    assert_eq!(field(&replies[0], b'C'), "42703");
}

#[tokio::test]
async fn portals_suspend_and_end_with_sync() {
    let fake = Arc::new(Fake::planted());
    let say = Say::default().parse("s", "SELECT remote_pid FROM bursar.servers").raw(b'D', b"Ss\0").bind("s");
    let say = say.execute(2).execute(2).execute(2).sync().execute(0).sync();
    let replies = say.raw(b'C', b"Ss\0").bind("s").sync().hear(&fake).await;
    assert_eq!(kinds(&replies), "1tT2DDsDCCZEZ3EZ");
    assert_eq!(replies[8].1, b"SELECT 1\0");
    assert_eq!(replies[9].1, b"SELECT 0\0");
    assert_eq!(field(&replies[11], b'C'), "34000");
    assert_eq!(field(&replies[14], b'C'), "26000");
}

#[tokio::test]
async fn a_command_by_the_extended_protocol() {
    let fake = Arc::new(Fake::planted());
    let say = Say::default().parse("", "PAUSE app").raw(b'D', b"S\0").bind("").execute(0).sync();
    let replies = say.parse("", "KILL_CLIENT 1").bind("").execute(0).execute(0).sync().hear(&fake).await;
    assert_eq!(kinds(&replies), "1tn2CZ12EZ");
    assert_eq!(*fake.commands.lock(), [Command::Pause(Some("app".into())), Command::KillClient(1)]);
}

#[tokio::test]
async fn hostile_frames_are_answered_once_and_closed() {
    let many = [b"\0\0\xff\xff".as_slice(), &[0; 8]].concat();
    for (what, kind, body) in [
        ("query without end", b'Q', &b"SELECT 1"[..]),
        ("query with more behind", b'Q', b"SELECT 1\0X"),
        ("empty query body", b'Q', b""),
        ("parse without types", b'P', b"\0SELECT 1\0"),
        ("parse with fewer types than said", b'P', b"\0SELECT 1\0\0\x02\0\0\0\x19"),
        ("bind cut short", b'B', b"\0"),
        ("bind with fewer formats than said", b'B', &many),
        ("bind with a negative length", b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
        ("bind with a length beyond the end", b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0"),
        ("describe of nothing", b'D', b""),
        ("describe of an unknown kind", b'D', b"X\0"),
        ("execute without limit", b'E', b"\0"),
        ("close without name", b'C', b"S"),
    ] {
        let say = Say::default().raw(kind, body).query("SELECT 1");
        let replies = say.hear(&Arc::new(Fake::planted())).await;
        assert_eq!(kinds(&replies), "E", "{what}");
        assert_eq!((field(&replies[0], b'V'), field(&replies[0], b'C')), ("FATAL", "08P01"), "{what}");
    }
    for bytes in
        [&b"Q\0\0\0\x03"[..], b"Q\xff\xff\xff\xff", b"P\x7f\xff\xff\xff", b"p\0\0\0\x04", b"\0\0\0\0\x08"]
    {
        let mut say = Say::default().query("SELECT 1");
        say.0.extend_from_slice(bytes);
        let replies = say.hear(&Arc::new(Fake::planted())).await;
        assert_eq!(kinds(&replies), "TDCZE", "{bytes:?}");
        assert_eq!((field(&replies[4], b'V'), field(&replies[4], b'C')), ("FATAL", "08P01"));
    }
}

#[tokio::test]
async fn names_are_bounded() {
    let mut say = Say::default();
    for number in 0..257 {
        say = say.parse(&format!("s{number}"), "SELECT 1");
    }
    let say = say.sync().query("DEALLOCATE s1; DEALLOCATE ALL; DEALLOCATE s2");
    let replies = say.hear(&Arc::new(Fake::planted())).await;
    assert_eq!(kinds(&replies), format!("{}EZCCEZ", "1".repeat(256)));
    assert_eq!(field(&replies[256], b'C'), "54000");
    assert_eq!(field(&replies[260], b'C'), "26000");
}

#[tokio::test]
async fn many_statements_are_written_as_they_come() {
    // Far more output than the in-memory stream or one pause holds.
    let replies = Say::default().query(&"SHOW CLIENTS;".repeat(3_000)).hear(&Arc::new(Fake::planted())).await;
    assert_eq!(replies.iter().filter(|(kind, _)| *kind == b'C').count(), 3_000);
    assert_eq!(replies.last().unwrap().0, b'Z');
}

#[tokio::test]
async fn shutdown_says_why_and_so_does_nobody_waiting_for_a_command() {
    let shutdown = CancellationToken::new();
    let (mut client, server) = duplex(4096);
    let console = tokio::spawn(serve(server, Fake::keeper(), Arc::new(Fake::planted()), shutdown.clone()));
    client.write_all(&Say::default().query("WAIT_CLOSE").0).await.unwrap();
    tokio::task::yield_now().await;
    shutdown.cancel();
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(field(&split(&bytes)[0], b'C'), "57P01");
    console.await.unwrap().unwrap();

    let (mut client, server) = duplex(4096);
    let console =
        tokio::spawn(serve(server, Fake::keeper(), Arc::new(Fake::planted()), CancellationToken::new()));
    client.write_all(&Say::default().query("WAIT_CLOSE").0).await.unwrap();
    drop(client);
    // The command never ends; the console does, because its client has gone.
    console.await.unwrap().unwrap();
}

/// What the handshake room does before the console: start-up packet in, ReadyForQuery out.
async fn log_in(stream: &mut DuplexStream) {
    let len = stream.read_i32().await.unwrap();
    let mut startup = vec![0; len as usize - 4];
    stream.read_exact(&mut startup).await.unwrap();
    let mut out = BytesMut::new();
    message(&mut out, b'R', |out| out.put_i32(0));
    for (name, value) in PARAMETERS {
        parameter_status(&mut out, name.as_bytes(), value.as_bytes());
    }
    message(&mut out, b'K', |out| out.put_i64(1));
    ready_for_query(&mut out, TxStatus::Idle);
    stream.write_all(&out).await.unwrap();
}

async fn connect(fake: Fake) -> Client {
    let (client, mut server) = duplex(64 * 1024);
    tokio::spawn(async move {
        log_in(&mut server).await;
        serve(server, Fake::keeper(), Arc::new(fake), CancellationToken::new()).await
    });
    let mut config = tokio_postgres::Config::new();
    config.user("admin").dbname("bursar");
    let (client, connection) = config.connect_raw(client, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn a_driver_reads_every_view_in_binary_and_in_text() {
    let client = connect(Fake::planted()).await;
    for view in super::views::VIEWS {
        let rows = client.query(&format!("SELECT * FROM bursar.{}", view.name), &[]).await.unwrap();
        assert!(!rows.is_empty(), "{}", view.name);
        let messages = client.simple_query(&format!("SHOW {}", view.name)).await.unwrap();
        let texts: Vec<_> = messages
            .iter()
            .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
            .collect();
        assert_eq!(texts.len(), rows.len(), "{}", view.name);
        for (row, text) in rows.iter().zip(texts) {
            for (at, column) in row.columns().iter().enumerate() {
                let value = match *column.type_() {
                    Type::INT8 => row.get::<_, Option<i64>>(at).map(|value| value.to_string()),
                    Type::BOOL => {
                        row.get::<_, Option<bool>>(at).map(|v| if v { "t" } else { "f" }.to_owned())
                    }
                    Type::TEXT => row.get::<_, Option<String>>(at),
                    Type::FLOAT8 => row.get::<_, Option<f64>>(at).map(|value| value.to_string()),
                    ref other => panic!("{}.{}: {other}", view.name, column.name()),
                };
                // Memory is read anew each time.
                assert!(
                    view.name == "mem" || value.as_deref() == text.get(at),
                    "{}.{}",
                    view.name,
                    column.name()
                );
            }
        }
    }
}

#[tokio::test]
async fn a_driver_counts_the_sessions_of_a_request() {
    let mut client = connect(Fake::planted()).await;
    let sql = "SELECT leases_total, peak_leases, leases_total < $2 FROM bursar.request($1)";
    let row = client.query_one(sql, &[&"req-1", &10_i64]).await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (26_i64, 3_i64, false));
    let one: i32 = client.query_one("SELECT 1", &[]).await.unwrap().get(0);
    assert_eq!(one, 1);
    let transaction = client.transaction().await.unwrap();
    let count: i64 = transaction.query_one("SELECT count(*) FROM bursar.leases", &[]).await.unwrap().get(0);
    assert_eq!(count, 2);
    let error = transaction.query("SELECT leases FROM bursar.requests", &[]).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!((error.code().code(), error.message()), ("42703", "column does not exist"));
    transaction.rollback().await.unwrap();
    let mut transaction = client.transaction().await.unwrap();
    let inner = transaction.transaction().await.unwrap();
    inner.batch_execute("SELECT nope").await.unwrap_err();
    inner.rollback().await.unwrap();
    transaction.batch_execute("SHOW VERSION").await.unwrap();
    transaction.commit().await.unwrap();
    client.batch_execute("SET application_name = 'ci'; DISCARD ALL").await.unwrap();
}

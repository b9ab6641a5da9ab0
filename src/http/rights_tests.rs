//! Every page for everybody: who is let in where, by which words.

use super::tests::{ask, body};
use super::*;
use crate::console::fake::Fake;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Of "pencil", by PostgreSQL.
const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
    WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
/// `SELECT 'md5' || md5('pencil' || 'reader')`
const HASH: &str = "md533b52612b842ca6e6fda056068cbac34";

/// Users of every kind of right and of every kind of secret; each one's password is "pencil" but for the user
/// who has changed to it lately.
fn configuration(admin: &str) -> String {
    format!(
        "[auth]\nmethod = \"trust\"\n[admin]\n{admin}\n\
         [user.keeper]\npassword = \"{VERIFIER}\"\n\
         [user.viewer]\npassword = \"pencil\"\n\
         [user.operator]\npassword = \"new\"\nprevious_password = \"pencil\"\n\
         [user.reader]\npassword = \"{HASH}\"\n\
         [user.expired]\npassword = \"pencil\"\nvalid_until = \"2020-01-01T00:00:00Z\"\n\
         [user.app]\npassword = \"pencil\"\n\
         [user.nameless]\n"
    )
}

const NAMED: &str = "users = [\"keeper\", \"nameless\", \"expired\", \"absent\"]\nview = [\"viewer\"]\n\
    act = [\"operator\"]\nsql = [\"reader\"]";

fn face(admin: &str) -> (Arc<Fake>, Arc<Face>) {
    let fake = Arc::new(Fake { quoting: true, ..Fake::planted().configured(&configuration(admin)) });
    (fake.clone(), Arc::new(Face::new(fake).unwrap()))
}

fn basic(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials))
}

async fn get(face: &Arc<Face>, local: bool, path: &str, header: &str) -> (u16, String) {
    let answer = ask(face, local, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n")).await;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{answer}")), answer)
}

fn open_pages() -> Vec<String> {
    ["/livez", "/readyz", "/healthz/db", "/metrics"].map(str::to_owned).to_vec()
}

fn views() -> Vec<String> {
    API.iter().map(|name| format!("/api/{name}")).collect()
}

#[tokio::test]
async fn while_nobody_is_named_this_machine_sees_all_and_others_see_health_and_metrics() {
    let (_, face) = face("");
    for path in open_pages() {
        for local in [true, false] {
            assert_eq!(get(&face, local, &path, "").await.0, 200, "{path}");
        }
    }
    for path in views().into_iter().chain(["/".to_owned()]) {
        let (status, answer) = get(&face, true, &path, "").await;
        let quotes = ["/api/leases", "/api/prepared"].contains(&&*path);
        assert_eq!((status, answer.contains(Fake::TEXT)), (200, quotes), "{path}");
        // A password that nobody asks for is not looked at, and one that is right gives no right.
        assert_eq!(get(&face, true, &path, &basic("app:wrong")).await.0, 200);
        assert_eq!(get(&face, false, &path, "").await.0, 401, "{path}");
        assert_eq!(get(&face, false, &path, &basic("app:pencil")).await.0, 403, "{path}");
    }
    assert_eq!(get(&face, false, "/nowhere", "").await.0, 404);
}

#[tokio::test]
async fn every_view_is_for_who_may_see_it_and_statements_for_who_may_see_those() {
    let (_, face) = face(NAMED);
    for path in views().into_iter().chain(["/".to_owned()]) {
        for (credentials, status, sql) in [
            ("keeper:pencil", 200, true),
            ("viewer:pencil", 200, false),
            ("operator:new", 200, false),
            ("operator:pencil", 200, false),
            ("reader:pencil", 200, true),
            ("app:pencil", 403, false),
            ("keeper:Pencil", 401, false),
            ("viewer:pencil2", 401, false),
            ("viewer:", 401, false),
            ("expired:pencil", 401, false),
            ("nameless:", 401, false),
            ("absent:pencil", 401, false),
            (":pencil", 401, false),
            ("", 401, false),
        ] {
            for local in [true, false] {
                let (got, answer) = get(&face, local, &path, &basic(credentials)).await;
                let quotes = sql && ["/api/leases", "/api/prepared"].contains(&&*path);
                assert_eq!((got, answer.contains(Fake::TEXT)), (status, quotes), "{path} {credentials}");
                let challenges =
                    answer.contains("www-authenticate: Basic realm=\"bursar\", charset=\"UTF-8\"\r\n");
                assert_eq!(challenges, status == 401);
                assert_eq!(
                    answer.contains("acme"),
                    status == 200 && path.starts_with("/api/") && tells(&path)
                );
            }
        }
        assert_eq!(get(&face, true, &path, "").await.0, 401, "{path}");
    }
    for path in open_pages() {
        assert_eq!(get(&face, false, &path, "").await.0, 200, "{path}");
        assert_eq!(get(&face, false, &path, &basic("viewer:wrong")).await.0, 200, "{path}: nobody asks");
    }
    let (_, answer) = get(&face, false, "/api/pools", &basic("app:pencil")).await;
    let words =
        "the right \"view\" is missing: name the user in admin.view, or in admin.users for every right\n";
    assert_eq!(body(&answer), words);
}

/// Whether the planted tenant is in it.
fn tells(path: &str) -> bool {
    ["clients", "servers", "tenants", "requests", "leases", "queue", "leaks", "deadlocks"]
        .iter()
        .any(|name| path.ends_with(name))
}

#[tokio::test]
async fn statements_that_may_not_be_seen_are_null() {
    let (_, face) = face(NAMED);
    let rows = async |user: &str, path: &str| -> serde_json::Value {
        let (_, answer) = get(&face, false, path, &basic(&format!("{user}:pencil"))).await;
        serde_json::from_str(body(&answer)).unwrap()
    };
    for (path, column) in [("/api/leases", "last_statement"), ("/api/prepared", "statement")] {
        assert!(rows("reader", path).await[0][column].as_str().unwrap().contains(Fake::TEXT));
        let hidden = &rows("viewer", path).await[0];
        assert_eq!(hidden.get(column), Some(&serde_json::Value::Null), "there, and NULL");
    }
    assert_eq!(rows("viewer", "/api/leases").await[0]["last_fp"], "00000000000077ab", "a hash is no text");
}

#[tokio::test]
async fn metrics_may_be_for_viewers_only() {
    let (_, face) = face(&format!("{NAMED}\nmetrics_login = true"));
    for local in [true, false] {
        assert_eq!(get(&face, local, "/metrics", "").await.0, 401);
        assert_eq!(get(&face, local, "/metrics", &basic("app:pencil")).await.0, 403);
        assert_eq!(get(&face, local, "/metrics", &basic("viewer:pencil")).await.0, 200);
        for path in ["/livez", "/readyz", "/healthz/db"] {
            assert_eq!(get(&face, local, path, "").await.0, 200, "{path}");
        }
    }
}

#[tokio::test]
async fn one_header_of_one_scheme_counts() {
    let (_, face) = face(NAMED);
    let good = basic("viewer:pencil");
    let bearer = good.replace("Basic", "Bearer");
    for header in [&*bearer, "Authorization: Basic\r\n", "Authorization: \r\n", &format!("{good}{good}")] {
        assert_eq!(get(&face, false, "/api/pools", header).await.0, 401, "{header}");
    }
    assert_eq!(get(&face, false, "/api/pools", &good.replace("Basic", "bASIC")).await.0, 200);
}

/// Nothing acts here: a page in a keeper's browser can make it send his password, and moves nothing.
#[tokio::test]
async fn no_method_but_get_does_anything_with_whatever_rights() {
    let (fake, face) = face(NAMED);
    let header = format!("{}Origin: http://elsewhere\r\nContent-Length: 0\r\n", basic("keeper:pencil"));
    let paths = views().into_iter().chain(open_pages());
    for path in paths.chain(["/", "/drain", "/quitquitquit", "/api/pause"].map(str::to_owned)) {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer =
                ask(&face, true, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}");
            assert!(!answer.to_ascii_lowercase().contains("access-control-"), "{method} {path}");
        }
        let (_, answer) = get(&face, true, &path, &header).await;
        assert!(!answer.to_ascii_lowercase().contains("access-control-"), "another site may not read {path}");
    }
    assert!(fake.commands.lock().is_empty());
}

#[tokio::test]
async fn a_reload_holds_from_the_next_request_on() {
    let (fake, face) = face(NAMED);
    let viewer = basic("viewer:pencil");
    assert_eq!(get(&face, true, "/api/pools", &viewer).await.0, 200);
    fake.reload(&configuration("users = [\"keeper\"]"));
    assert_eq!(
        get(&face, true, "/api/pools", &viewer).await.0,
        403,
        "his password is remembered, his right is not"
    );
    fake.reload(&configuration(""));
    assert_eq!(get(&face, true, "/api/pools", "").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn one_password_is_checked_at_a_time_and_nobody_waits_for_long() {
    let (_, face) = face(NAMED);
    let viewer = basic("viewer:pencil");
    assert_eq!(get(&face, false, "/api/pools", &viewer).await.0, 200);
    let busy = face.door.hold().await;
    assert_eq!(get(&face, false, "/api/pools", &viewer).await.0, 200, "who is remembered is not checked");
    let start = tokio::time::Instant::now();
    for credentials in ["reader:pencil", "nobody:pencil"] {
        let (status, answer) = get(&face, false, "/api/pools", &basic(credentials)).await;
        assert_eq!((status, answer.contains("retry-after: 1\r\n")), (503, true), "{credentials}");
    }
    assert_eq!(start.elapsed().as_secs(), 4, "two seconds each");
    drop(busy);
    assert_eq!(get(&face, false, "/api/pools", &basic("reader:pencil")).await.0, 200);
}

//! HTTP over an in-memory stream, and once over a real socket.

use super::*;
use crate::console::fake::Fake;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;

async fn ask_of(fake: Fake, request: &str) -> String {
    let face = Arc::new(Face::new(Arc::new(fake)).unwrap());
    ask(&face, true, request).await
}

pub(super) async fn ask(face: &Arc<Face>, local: bool, request: &str) -> String {
    let (mut client, server) = duplex(1 << 20);
    let caller = Caller { peer: "10.2.3.4:51122".into(), local };
    let served = tokio::spawn(connection(server, Arc::clone(face), caller));
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    served.await.expect("no panic");
    answer
}

pub(super) async fn get(path: &str) -> String {
    ask_of(Fake::planted(), &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

pub(super) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("headers end").1
}

#[tokio::test]
async fn probes_answer_plainly() {
    assert!(get("/livez").await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200 OK\r\n"));
    let draining = Fake { draining: true, ..Fake::planted() };
    let answer = ask_of(draining, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    assert_eq!(body(&answer), "draining\n");
}

#[tokio::test]
async fn health_has_the_fields_of_the_interface() {
    let answer = get("/healthz/db").await;
    let health: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["breaker"], "closed");
    assert_eq!(health["pool"], serde_json::json!({"size": 6, "in_use": 2, "idle": 1, "waiting": 1}));
    assert_eq!(health["waiting"], 1);
    assert_eq!(health["leaks_open"], 1);
    assert_eq!(health["efficiency"], 0.6);
    assert!(health["wait_p99_ms"].is_number());
}

#[tokio::test]
async fn views_come_as_json() {
    for name in API {
        let answer = get(&format!("/api/{name}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{name}");
        assert!(answer.contains("content-type: application/json\r\n"), "{name}");
        let rows: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
        assert!(!rows.as_array().unwrap().is_empty(), "{name}");
    }
    let answer = get("/api/leases").await;
    let leases: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
    assert_eq!((&leases[0]["tenant"], &leases[0]["hold_ms"]), (&"acme".into(), &31_000.into()));
    assert_eq!(leases[1]["request"], serde_json::Value::Null);
}

#[tokio::test]
async fn what_is_not_there_or_not_a_get_is_refused() {
    for path in ["/nothing", "/api/", "/api/config", "/api/POOLS", "/api/pools/", "/metrics/", "//"] {
        assert!(get(path).await.starts_with("HTTP/1.1 404 Not Found\r\n"), "{path}");
    }
    for method in ["POST", "PUT", "HEAD", "DELETE", "BREW"] {
        let answer = ask_of(Fake::planted(), &format!("{method} /livez HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{method}");
        assert!(answer.contains("allow: GET\r\n"), "{method}");
    }
}

#[tokio::test]
async fn metrics_in_either_format() {
    let answer = get("/metrics").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4\r\n"));
    let text = body(&answer);
    assert!(
        text.contains("# TYPE bursar_leases_total counter\nbursar_leases_total{pool=\"report@app\"} 500\n")
    );
    assert!(
        text.contains("bursar_lease_wait_seconds_bucket{pool=\"web@app\",class=\"normal\",le=\"30\"} 998\n")
    );
    assert!(text.contains("process_open_fds"));
    assert!(text.contains("bursar_rejections_total{pool=\"web@app\",sqlstate=\"54000\"} 2\n"));

    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n";
    let answer = ask_of(Fake::planted(), request).await;
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
    let text = body(&answer);
    assert!(text.contains("# TYPE bursar_leases counter\nbursar_leases_total{pool=\"report@app\"} 500\n"));
    assert!(
        text.contains("bursar_lease_wait_seconds_bucket{pool=\"web@app\",class=\"normal\",le=\"1.0\"} 998\n")
    );
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_board_is_one_page_that_asks_nobody_else() {
    let answer = get("/").await;
    assert!(answer.contains("content-security-policy: default-src 'none'"));
    let page = body(&answer);
    assert!(page.starts_with("<!doctype html>"));
    for outside in
        ["http://", "https://", "src=", "@import", "innerHTML", "insertAdjacentHTML", "document.write"]
    {
        assert!(!page.contains(outside), "{outside}");
    }
    for name in ["pools", "tenants", "requests", "leases", "queue", "leaks"] {
        assert!(page.contains(&format!("\"{name}\"")), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_come_ends_by_itself() {
    let start = tokio::time::Instant::now();
    let answer = ask_of(Fake::planted(), "GET /livez HTTP/1.1\r\nHost").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(start.elapsed() >= HEADER_TIMEOUT && start.elapsed() < CONNECTION_TIMEOUT);
}

#[tokio::test]
async fn rubbish_and_giant_headers_disturb_nobody() {
    assert!(ask_of(Fake::planted(), "\0\u{1}\u{2}\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let giant = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(HEADER_BYTES));
    assert!(ask_of(Fake::planted(), &giant).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn a_listener_serves_until_it_is_told_to_stop() {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let address = listener.address();
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(serve(listener, Arc::new(Fake::planted()), shutdown.clone(), shutdown.clone()));
    // More than there is room for at once, one after the other.
    for _ in 0..CONNECTIONS + 1 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(body(&answer), "ok\n");
    }
    let mut idle = TcpStream::connect(&address).await.unwrap();
    shutdown.cancel();
    served.await.unwrap().unwrap();
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0, "no connection outlives the listener");
}

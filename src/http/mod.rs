//! The HTTP side: metrics, health, the views as JSON, and the board.
//!
//! Reads only; every path is a GET. One request a connection: scrapers and probes come seconds apart,
//! and a connection that may not idle needs one deadline instead of several. No authentication: the
//! default address is loopback, and nothing here shows secrets or statement texts that `[leak]`
//! forbids.

mod families;
mod health;
mod openmetrics;
mod tenants;

use crate::console::{Source, views};
use crate::net::listen::{Complaints, Listener};
use families::Exported;
use health::{Health, Status};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Connections at once; the next one waits in the kernel's queue.
const CONNECTIONS: usize = 64;
/// From accept to the end of the request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// From accept to the last byte.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers of a request, in bytes.
const HEADER_BYTES: usize = 16 * 1024;

/// The views under `/api/`. CONFIG and the rest are for administrators, who log in to the console.
const API: [&str; 16] = [
    "pools",
    "clients",
    "servers",
    "tenants",
    "requests",
    "leases",
    "queue",
    "leaks",
    "callsites",
    "advice",
    "deadlocks",
    "budgets",
    "pins",
    "prepared",
    "stats",
    "upstreams",
];

const BOARD: &str = include_str!("board.html");
/// The board may run what is in it and ask its own server, nothing else.
const BOARD_POLICY: &str =
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";

/// Serves until `shutdown`, which comes after the drain: probes must be able to see it happen. Those that
/// connect after `closing` are for another process.
///
/// # Errors
/// The registry refuses a family: never, by the test of the table of families.
pub async fn serve(
    listener: Listener,
    source: Arc<dyn Source>,
    closing: CancellationToken,
    shutdown: CancellationToken,
) -> prometheus::Result<()> {
    let face = Arc::new(Face::new(source)?);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let serve = |stream, permit| {
        let (face, shutdown) = (Arc::clone(&face), shutdown.clone());
        tokio::spawn(async move {
            let _permit: Option<OwnedSemaphorePermit> = permit;
            tokio::select! {
                () = connection(stream, face) => {}
                () = shutdown.cancelled() => {}
            }
        });
    };
    let mut complaints = Complaints::default();
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit.ok(), listener.accept(&mut complaints).await)
        };
        let (permit, (stream, _)) = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            next = next => next,
        };
        serve(stream, permit);
    }
    for (stream, _) in listener.close().await {
        serve(stream, None);
    }
    Ok(())
}

/// One connection: one request, one response.
async fn connection<S>(stream: S, face: Arc<Face>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request: Request<Incoming>| {
        let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let response = face.answer(request.method(), request.uri().path(), accept);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that breaks off or dawdles concerns nobody else.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

/// What answers requests.
struct Face {
    source: Arc<dyn Source>,
    registry: Registry,
}

type Answer = Response<Full<Bytes>>;

impl Face {
    fn new(source: Arc<dyn Source>) -> prometheus::Result<Face> {
        let registry = Registry::new();
        registry.register(Box::new(Exported::new(Arc::clone(&source))?))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Face { source, registry })
    }

    fn answer(&self, method: &Method, path: &str, accept: &str) -> Answer {
        if method != Method::GET {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
            answer.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
            return answer;
        }
        match path {
            "/livez" if self.source.alive() => plain(StatusCode::OK, "ok\n"),
            "/livez" => plain(StatusCode::SERVICE_UNAVAILABLE, "stuck\n"),
            "/readyz" if self.source.draining() => plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            "/readyz" => plain(StatusCode::OK, "ok\n"),
            "/healthz/db" => self.health(),
            "/metrics" => self.metrics(accept),
            "/" => board(),
            _ => match path.strip_prefix("/api/").filter(|name| API.contains(name)).and_then(views::find) {
                Some(view) => json(StatusCode::OK, &view.table(&*self.source, crate::config::Rights::SEES_ALL)),
                None => plain(StatusCode::NOT_FOUND, &not_found()),
            },
        }
    }

    fn health(&self) -> Answer {
        let health = Health::of(&*self.source);
        let down = health.status == Status::Down;
        json(if down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, &health)
    }

    fn metrics(&self, accept: &str) -> Answer {
        let families = self.registry.gather();
        if openmetrics::is_asked_for(accept) {
            return respond(StatusCode::OK, openmetrics::OPENMETRICS, openmetrics::encode(&families));
        }
        match TextEncoder::new().encode_to_string(&families) {
            Ok(text) => respond(StatusCode::OK, TEXT_FORMAT, text),
            Err(error) => {
                tracing::error!(%error, "metrics cannot be encoded");
                plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded\n")
            }
        }
    }
}

fn not_found() -> String {
    format!("not found; there are / /metrics /livez /readyz /healthz/db and /api/{{{}}}\n", API.join(","))
}

fn board() -> Answer {
    let mut answer = respond(StatusCode::OK, "text/html; charset=utf-8", BOARD.to_owned());
    let policy = hyper::header::HeaderValue::from_static(BOARD_POLICY);
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    answer
}

fn plain(status: StatusCode, text: &str) -> Answer {
    respond(status, "text/plain; charset=utf-8", text.to_owned())
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(mut text) => {
            text.push('\n');
            respond(status, "application/json", text)
        }
        Err(error) => {
            tracing::error!(%error, "a view cannot be encoded");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the view cannot be encoded\n")
        }
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    use hyper::header::HeaderValue;
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod hygiene_tests;
#[cfg(test)]
mod tests;

//! The HTTP side: metrics, health, the views as JSON, and the board.
//!
//! Reads only; every path is a GET. One request a connection: scrapers and probes come seconds apart,
//! and a connection that may not idle needs one deadline instead of several. Health and, unless
//! configured otherwise, metrics are for everybody; what tells of users, addresses or statements is for
//! who has the right to see it. Nothing here shows secrets, or statement texts that `[leak]` forbids.

mod door;
mod families;
mod health;
mod openmetrics;
mod pages;
mod tenants;

use crate::config::Right;
use crate::console::Source;
use crate::net::listen::{Complaints, Listener};
use crate::net::stream::Stream;
use door::{Caller, Door, Refusal};
use families::Exported;
use health::{Health, Status};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use pages::{API, Page};
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
    let serve = |stream: Stream, peer, permit| {
        let (face, shutdown) = (Arc::clone(&face), shutdown.clone());
        let caller = Caller { peer, local: stream.origin().is_local() };
        tokio::spawn(async move {
            let _permit: Option<OwnedSemaphorePermit> = permit;
            tokio::select! {
                () = connection(stream, face, caller) => {}
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
        let (permit, (stream, peer)) = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            next = next => next,
        };
        serve(stream, peer, permit);
    }
    for (stream, peer) in listener.close().await {
        serve(stream, peer, None);
    }
    Ok(())
}

/// One connection: one request, one response.
async fn connection<S>(stream: S, face: Arc<Face>, caller: Caller)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request: Request<Incoming>| {
        // Nothing that is served here has a use for a body.
        let (head, _) = request.into_parts();
        let (face, caller) = (&face, &caller);
        async move { Ok::<_, Infallible>(face.answer(&head, caller).await) }
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
    door: Door,
}

type Answer = Response<Full<Bytes>>;

impl Face {
    fn new(source: Arc<dyn Source>) -> prometheus::Result<Face> {
        let registry = Registry::new();
        registry.register(Box::new(Exported::new(Arc::clone(&source))?))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Face { source, registry, door: Door::new() })
    }

    async fn answer(&self, head: &Parts, caller: &Caller) -> Answer {
        if head.method != Method::GET {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return answer;
        }
        let (page, config) = (Page::of(head.uri.path()), self.source.config());
        let rights = match page.right(&config) {
            None => config.anonymous_rights(caller.local),
            Some(right) => {
                let door = (&*config, self.source.users());
                match self.door.let_in(right, door, caller, &head.headers).await {
                    Ok(rights) => rights,
                    Err(refusal) => return refused(refusal),
                }
            }
        };
        match page {
            Page::Live if self.source.alive() => plain(StatusCode::OK, "ok\n"),
            Page::Live => plain(StatusCode::SERVICE_UNAVAILABLE, "stuck\n"),
            Page::Ready if self.source.draining() => plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            Page::Ready => plain(StatusCode::OK, "ok\n"),
            Page::Database => self.health(),
            Page::Metrics => {
                let accept = head.headers.get(ACCEPT).and_then(|value| value.to_str().ok());
                self.metrics(accept.unwrap_or_default())
            }
            Page::Board => board(),
            Page::View(view) => json(StatusCode::OK, &view.table(&*self.source, rights)),
            Page::Nothing => plain(StatusCode::NOT_FOUND, &not_found()),
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

/// What somebody is told who is not let in. Whether there is such a user is not.
fn refused(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::Unknown => {
            let text = "log in as a [user.NAME] that admin.view, admin.sql, admin.act or admin.users names\n";
            let mut answer = plain(StatusCode::UNAUTHORIZED, text);
            let challenge = HeaderValue::from_static("Basic realm=\"bursar\", charset=\"UTF-8\"");
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            answer
        }
        Refusal::Missing(right) => plain(StatusCode::FORBIDDEN, &missing(right)),
        Refusal::Busy => {
            let text = "too many logins at once; try again\n";
            let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, text);
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            answer
        }
    }
}

fn missing(right: Right) -> String {
    let (name, key) = (right.name(), right.key());
    format!("the right \"{name}\" is missing: name the user in {key}, or in admin.users for every right\n")
}

fn board() -> Answer {
    let mut answer = respond(StatusCode::OK, "text/html; charset=utf-8", BOARD.to_owned());
    let policy = HeaderValue::from_static(BOARD_POLICY);
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
mod rights_tests;
#[cfg(test)]
mod tests;

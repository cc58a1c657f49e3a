//! What a browser or curl sees at this port: a page that says what this is.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::ApiConfig;
use super::sniff::First;
use crate::host::Connection;
use crate::telemetry::VERSION;
use crate::wire::Traffic;

/// The longest that such a connection lives.
const LIFETIME: Duration = Duration::from_secs(30);
/// The smallest buffer that hyper reads into.
const BUFFER_BYTES_MIN: usize = 8 << 10;

/// Serves one HTTP/1.1 connection until it has had its answer.
pub(super) async fn serve(config: &ApiConfig, connection: Connection, first: First, stop: CancellationToken) {
    let remote = connection.remote;
    let header_bytes_max = usize::try_from(config.header_bytes_max.as_u64()).unwrap_or(usize::MAX);
    let service = service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(answer(&request)) });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.handshake_timeout)
        .keep_alive(false)
        .max_buf_size(header_bytes_max.max(BUFFER_BYTES_MIN))
        .serve_connection(TokioIo::new(Traffic::new(connection.io).after(first.bytes())), service);
    let ended = tokio::select! {
        ended = tokio::time::timeout(LIFETIME, serving) => ended,
        () = stop.cancelled() => return,
    };
    if let Ok(Err(error)) = ended {
        tracing::debug!(%remote, %error, "an HTTP/1.1 connection ended");
    }
}

fn answer<B>(request: &Request<B>) -> Response<Full<Bytes>> {
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("");
    let kind = header(CONTENT_TYPE);
    if kind.starts_with("application/grpc-web") {
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "gRPC-Web is not served here: use gRPC over HTTP/2.\n");
    }
    if kind.starts_with("application/grpc") {
        return text(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "gRPC needs HTTP/2: connect without an HTTP/1.1 proxy.\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let message = "Over HTTP/1.1 there is only GET / here. Everything else is gRPC over HTTP/2.\n";
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, message);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if request.uri().path() != "/" {
        return text(StatusCode::NOT_FOUND, "There is only GET / here. Everything else is gRPC over HTTP/2.\n");
    }
    match header(ACCEPT).contains("text/html") {
        true => page("text/html; charset=utf-8", html()),
        false => page("text/plain; charset=utf-8", plain()),
    }
}

fn plain() -> String {
    format!(
        "This is Weft {VERSION}: the port for clients of a node.\n\n\
         It speaks gRPC over HTTP/2 without TLS. Through it, and through every other node of the cluster,\n\
         \x20 - applications publish and handle events          weft publish TOPIC --data hello\n\
         \x20 - applications call each other's gRPC services    weft service list\n\
         \x20 - Weft's own API answers (package weft.v1), with gRPC reflection and health:\n\
         \x20     grpcurl -plaintext HOST:PORT list\n\n\
         Operators look at the admin port (7403 unless configured): /livez /readyz /metrics /debug/view\n"
    )
}

fn html() -> String {
    let escaped = plain().replace('&', "&amp;").replace('<', "&lt;");
    format!("<!doctype html><html lang=en><meta charset=utf-8><title>Weft</title><pre>{escaped}</pre></html>\n")
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = page("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

fn page(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_gets_an_answer_that_helps() {
        let cases = [
            ("GET", "/", "", "text/html,*/*", 200, "<!doctype html>"),
            ("HEAD", "/", "", "*/*", 200, "This is Weft"),
            ("GET", "/nothing", "", "", 404, "only GET /"),
            ("POST", "/", "application/json", "", 405, "gRPC over HTTP/2"),
            ("POST", "/shop.Cart/Get", "application/grpc", "", 505, "needs HTTP/2"),
            ("POST", "/shop.Cart/Get", "application/grpc-web+proto", "", 415, "gRPC-Web"),
        ];
        for (method, path, kind, accept, status, part) in cases {
            let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, kind).header(ACCEPT, accept);
            let response = answer(&request.body(()).unwrap());
            assert_eq!(response.status(), status, "{method} {path}");
            let body = format!("{:?}", response.into_body());
            assert!(body.contains(part), "{body}");
        }
    }
}

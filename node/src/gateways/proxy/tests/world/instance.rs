//! Instances: what they do depends on the method that is called.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::MemoryNet;
use super::client::put;

/// What an instance has seen and done.
#[derive(Default)]
pub(in crate::gateways::proxy::tests) struct Seen {
    /// Calls whose head has come.
    pub(in crate::gateways::proxy::tests) calls: usize,
    /// Calls that were cut off.
    pub(in crate::gateways::proxy::tests) cut: usize,
    pub(in crate::gateways::proxy::tests) headers: HeaderMap,
    pub(in crate::gateways::proxy::tests) uri: String,
}

/// An instance: `behave` serves each of its connections.
pub(in crate::gateways::proxy::tests) struct Instance {
    pub(in crate::gateways::proxy::tests) seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Instance {
    /// Speaks HTTP/2; what it does depends on the method.
    pub(in crate::gateways::proxy::tests) fn start(net: &MemoryNet, port: u16) -> Instance {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (mut taken, shared) = (net.take(port), seen.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Some(io) = taken.recv().await {
                connections.spawn(speak(io, shared.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Instance { seen, task }
    }

    /// The same over TLS.
    pub(in crate::gateways::proxy::tests) fn secure(net: &MemoryNet, port: u16, acceptor: TlsAcceptor) -> Instance {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (mut taken, shared) = (net.take(port), seen.clone());
        let task = tokio::spawn(async move {
            while let Some(io) = taken.recv().await {
                // Who does not like the certificate ends it.
                if let Ok(io) = acceptor.accept(io).await {
                    tokio::spawn(speak(io, shared.clone()));
                }
            }
        });
        Instance { seen, task }
    }

    /// Takes connections and does something else with their bytes.
    pub(in crate::gateways::proxy::tests) fn other(
        net: &MemoryNet,
        port: u16,
        says: Option<&'static [u8]>,
    ) -> Instance {
        let mut taken = net.take(port);
        let task = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(mut io) = taken.recv().await {
                if let Some(says) = says {
                    let _ = io.write_all(says).await;
                }
                kept.push(io);
            }
        });
        Instance { seen: Arc::default(), task }
    }

    pub(in crate::gateways::proxy::tests) fn calls(&self) -> usize {
        self.seen.lock().expect("no panic").calls
    }

    pub(in crate::gateways::proxy::tests) fn cut(&self) -> usize {
        self.seen.lock().expect("no panic").cut
    }

    /// Gone, with all its connections.
    pub(in crate::gateways::proxy::tests) fn kill(&self) {
        self.task.abort();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn speak(io: impl AsyncRead + AsyncWrite + Unpin, seen: Arc<Mutex<Seen>>) {
    let Ok(mut connection) = h2::server::Builder::new().max_concurrent_streams(1_000).handshake::<_, Bytes>(io).await
    else {
        return;
    };
    let mut calls = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        match &*method {
            // The connection ends with the call under way.
            "Vanish" => return note(&seen, &request),
            "Leave" => {
                connection.graceful_shutdown();
            }
            _ => {}
        }
        calls.spawn(answer(method, request, respond, seen.clone()));
        while calls.try_join_next().is_some() {}
    }
}

fn note(seen: &Mutex<Seen>, request: &Request<h2::RecvStream>) {
    let mut seen = seen.lock().expect("no panic");
    seen.calls += 1;
    seen.headers = request.headers().clone();
    seen.uri = request.uri().to_string();
}

async fn answer(
    method: String,
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    seen: Arc<Mutex<Seen>>,
) {
    if method == "Refuse" && seen.lock().expect("no panic").calls == 0 {
        seen.lock().expect("no panic").calls += 1;
        return respond.send_reset(h2::Reason::REFUSED_STREAM);
    }
    note(&seen, &request);
    let mut body = request.into_body();
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    head.headers_mut().insert("answer-bin", HeaderValue::from_static("AAEC"));
    match &*method {
        "Reset" => return respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM),
        "Silent" => {
            let reset = std::future::poll_fn(|context| respond.poll_reset(context)).await;
            seen.lock().expect("no panic").cut += usize::from(reset.is_ok());
            return;
        }
        "Status" => {
            head.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
            head.headers_mut().insert("grpc-status-details-bin", HeaderValue::from_static("CAU"));
            let _ = respond.send_response(head, true);
            return;
        }
        "WrongHead" => {
            head.headers_mut().insert("grpc-status", HeaderValue::from_static("99"));
            let _ = respond.send_response(head, true);
            return;
        }
        "EmptyHead" => {
            let _ = respond.send_response(head, true);
            return;
        }
        _ => {}
    }
    if let Some((part, kib)) = large(&method) {
        let many = part == "Many";
        let filler = filler(many, kib << 10);
        if part == "Head" {
            head.headers_mut().extend(filler);
            let mut send = respond.send_response(head, false).expect("the proxy is there");
            return finish(&mut send);
        }
        let mut send = respond.send_response(head, false).expect("the proxy is there");
        let _ = send.send_data(Bytes::from_static(b"whole"), false);
        let mut trailers = HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))]);
        trailers.extend(filler);
        let _ = send.send_trailers(trailers);
        return;
    }
    if let Some((name, value)) = wrong_end(&method) {
        let mut send = respond.send_response(head, false).expect("the proxy is there");
        let data = Bytes::from_static(b"half");
        match name.is_empty() {
            true => drop(send.send_data(data, true)),
            false => {
                let _ = send.send_data(data, false);
                let _ = send.send_trailers(HeaderMap::from_iter([(
                    http::HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )]));
            }
        }
        return;
    }
    if method == "Unary" {
        let mut whole = BytesMut::new();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            whole.extend_from_slice(&data);
        }
        let mut send = respond.send_response(head, false).expect("the proxy is there");
        return put(&mut send, whole.freeze()).await.map_or((), |()| finish(&mut send));
    }
    // Everything else echoes as it comes.
    let mut send = respond.send_response(head, false).expect("the proxy is there");
    if method == "Pour" || method == "Late" {
        if method == "Late" {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        for _ in 0..20 {
            if put(&mut send, Bytes::from(vec![b'x'; 10_000])).await.is_none() {
                return;
            }
        }
        return finish(&mut send);
    }
    if method == "Half" {
        let _ = put(&mut send, Bytes::from_static(b"half")).await;
        return send.send_reset(h2::Reason::INTERNAL_ERROR);
    }
    loop {
        match body.data().await {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                if put(&mut send, data).await.is_none() {
                    break;
                }
            }
            Some(Err(_)) => break,
            None => return finish(&mut send),
        }
    }
    seen.lock().expect("no panic").cut += 1;
}

const STATUS: http::HeaderName = http::HeaderName::from_static("grpc-status");

/// What is large in an answer (`Head`, `Trailers` for one value, `Many` for trailers of many), and its KiB: "Head_70".
fn large(method: &str) -> Option<(&str, usize)> {
    let (part, kib) = method.split_once('_')?;
    Some((part, kib.parse().ok()?))
}

/// Headers of about so many bytes together, as HTTP/2 counts them.
fn filler(many: bool, bytes: usize) -> HeaderMap {
    let name = |at: usize| format!("filler-{at:08}").parse::<http::HeaderName>().expect("a name");
    let value = |bytes: usize| "~".repeat(bytes).parse().expect("a value");
    // A name and 32 bytes on account.
    let beside = 15 + 32;
    match many {
        // A map does not hold more names than some 24,000.
        true => (0..bytes / 64).map(|at| (name(at % 20_000), value(64 - beside))).collect(),
        false => HeaderMap::from_iter([(name(0), value(bytes - beside))]),
    }
}

/// The trailers of an answer that ends wrongly; without a name: none.
fn wrong_end(method: &str) -> Option<(&'static str, &'static str)> {
    match method {
        "WrongStatus" => Some(("grpc-status", "fine, thanks")),
        "WrongBinary" => Some(("some-bin", "#")),
        "OtherTrailers" => Some(("some", "thing")),
        "NoTrailers" => Some(("", "")),
        _ => None,
    }
}

fn finish(send: &mut h2::SendStream<Bytes>) {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = send.send_trailers(trailers);
}

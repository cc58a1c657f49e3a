use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use weft_proto::v1::HealthCheck;

use super::*;
use crate::drivers::endpoint::testing::acceptor;
use crate::drivers::pki::Authority;
use crate::host::Host;
use crate::host::testing::{MemoryDisk, TestHost};

fn record(kind: Kind) -> InstanceRecord {
    let check = HealthCheck { kind: Some(kind), interval_ms: 2_000, timeout_ms: 1_000, ..Default::default() };
    InstanceRecord { id: 1, address: "cart.shop:80".into(), check: Some(check), ..Default::default() }
}

/// Checks over a pipe, whose other end `serve` has.
async fn checked<F: Future<Output = ()>>(kind: Kind, serve: impl FnOnce(DuplexStream) -> F) -> Result<(), String> {
    let (here, there) = tokio::io::duplex(64 << 10);
    let record = record(kind);
    let connecting = std::future::ready(Ok(Box::new(here) as Box<dyn Io>));
    let serving = async {
        serve(there).await;
        std::future::pending().await
    };
    tokio::select! {
        result = over(connecting, &record) => result,
        () = serving => unreachable!("it does not end"),
    }
}

/// Answers the first request with `answer`, or closes at once if that is empty.
async fn http_server(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &str) {
    let mut request = vec![0; 4_096];
    let count = io.read(&mut request).await.expect("a request");
    let request = String::from_utf8_lossy(&request[..count]).into_owned();
    assert!(request.starts_with("GET /healthz HTTP/1.1\r\n") && request.contains("host: cart.shop:80"), "{request}");
    // The check may have gone by now.
    let _ = io.write_all(answer.as_bytes()).await;
}

#[tokio::test]
async fn an_http_check_wants_200_to_399() {
    let path = || Kind::HttpPath("/healthz".into());
    for (answer, part) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", None),
        ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", None),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", Some("GET /healthz answered 503")),
        ("220 mail.example ESMTP\r\n\r\n", Some("HTTP/1.1:")),
        ("", Some("HTTP/1.1:")),
    ] {
        let result = checked(path(), |io| http_server(io, answer)).await;
        match part {
            None => assert_eq!(result, Ok(()), "{answer}"),
            Some(part) => assert!(result.as_ref().is_err_and(|reason| reason.contains(part)), "{answer}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn a_grpc_check_asks_the_health_service() {
    let (health, service) = tonic_health::server::health_reporter();
    health.set_service_status("shop.Cart", ServingStatus::Serving).await;
    health.set_service_status("shop.Stock", ServingStatus::NotServing).await;
    for (name, part) in [
        ("shop.Cart", None),
        ("", None),
        ("shop.Stock", Some("says NOT_SERVING")),
        ("shop.Bill", Some("says NotFound")),
    ] {
        let service = service.clone();
        let result = checked(Kind::GrpcService(name.into()), |io| async move {
            let one = tokio_stream::once(Ok::<_, std::io::Error>(io));
            let _ = Server::builder().add_service(service).serve_with_incoming(one).await;
        })
        .await;
        match part {
            None => assert_eq!(result, Ok(()), "{name}"),
            Some(part) => assert!(result.as_ref().is_err_and(|reason| reason.contains(part)), "{name}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn what_does_not_speak_http2_is_said_to() {
    let result = checked(Kind::GrpcService(String::new()), |mut io| async move {
        let _ = io.write_all(b"220 mail.example ESMTP\r\n").await;
    })
    .await;
    assert!(result.is_err(), "{result:?}");
}

#[tokio::test]
async fn an_open_connection_is_enough_for_a_tcp_check() {
    assert_eq!(checked(Kind::Tcp(true), |_| std::future::ready(())).await, Ok(()));
    let refused = std::future::ready(Err("connect to 10.0.0.1:80: refused".to_owned()));
    assert!(over(refused, &record(Kind::Tcp(true))).await.is_err_and(|reason| reason.contains("refused")));
}

#[tokio::test]
async fn an_instance_that_never_answers_fails() {
    for kind in [Kind::HttpPath("/".into()), Kind::GrpcService(String::new())] {
        let (here, _there) = tokio::io::duplex(64 << 10);
        let connecting = std::future::ready(Ok(Box::new(here) as Box<dyn Io>));
        let mut record = record(kind);
        record.check.as_mut().expect("set").timeout_ms = 1;
        assert_eq!(over(connecting, &record).await, Err("no answer within 1 ms".to_owned()));
    }
}

/// Checks over TLS of an instance with a certificate for `cart.shop`, over a pipe whose other end `serve` has.
async fn checked_over_tls<F: Future<Output = ()>>(
    kind: Kind,
    trusted: bool,
    serve: impl FnOnce(TlsStream<DuplexStream>) -> F,
) -> Result<(), String> {
    let host: Arc<dyn Host> = TestHost::new(MemoryDisk::default(), 1);
    let authority = || Authority::create(&*host, "test").expect("a CA");
    let (ca, other) = (authority(), authority());
    let acceptor = acceptor(&ca, &*host, "cart.shop");
    let tls_ca_pem = if trusted { ca } else { other }.issued().cert_pem;
    let record = InstanceRecord { tls: true, tls_ca_pem, ..record(kind) };
    let (here, there) = tokio::io::duplex(64 << 10);
    let dialer = Dialer::new(host, std::path::Path::new("")).expect("no file is named");
    let endpoint = Endpoint::of(&record);
    let connecting = dialer.secure(Box::new(here), &endpoint, speaks(&record));
    let serving = async {
        if let Ok(io) = acceptor.accept(there).await {
            serve(io).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        result = over(connecting, &record) => result,
        () = serving => unreachable!("it does not end"),
    }
}

#[tokio::test]
async fn an_instance_with_tls_is_asked_over_tls() {
    let (health, service) = tonic_health::server::health_reporter();
    health.set_service_status("shop.Cart", ServingStatus::Serving).await;
    health.set_service_status("shop.Stock", ServingStatus::NotServing).await;
    for (name, trusted, part) in
        [("shop.Cart", true, None), ("shop.Stock", true, Some("says NOT_SERVING")), ("shop.Cart", false, Some("TLS: "))]
    {
        let service = service.clone();
        let result = checked_over_tls(Kind::GrpcService(name.into()), trusted, |mut io| async move {
            assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            let (mut plain, far) = tokio::io::duplex(64 << 10);
            let one = tokio_stream::once(Ok::<_, std::io::Error>(far));
            let serving = Server::builder().add_service(service).serve_with_incoming(one);
            let _ = tokio::join!(serving, tokio::io::copy_bidirectional(&mut io, &mut plain));
        })
        .await;
        match part {
            None => assert_eq!(result, Ok(()), "{name}"),
            Some(part) => assert!(result.as_ref().is_err_and(|reason| reason.contains(part)), "{name}: {result:?}"),
        }
    }
    for (answer, passes) in [("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true), ("HTTP/1.1 500 No\r\n\r\n", false)]
    {
        let path = Kind::HttpPath("/healthz".into());
        let result = checked_over_tls(path, true, |io| async move {
            assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            http_server(io, answer).await;
        })
        .await;
        assert_eq!(result.is_ok(), passes, "{result:?}");
    }
    for (trusted, passes) in [(true, true), (false, false)] {
        let result = checked_over_tls(Kind::Tcp(true), trusted, |_| std::future::ready(())).await;
        assert_eq!(result.is_ok(), passes, "{result:?}");
    }
}

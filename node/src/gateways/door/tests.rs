use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::*;
use crate::host::Host;
use crate::host::testing::{MemoryDisk, TestHost};
use crate::wire::Outflow;

mod floods;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const ECHO: &str = "/test.Echo/Echo";
const POUR: &str = "/test.Echo/Pour";
/// No test waits longer for what must happen.
const PATIENCE_MS: u64 = 20_000;
/// An empty gRPC message: not compressed, no bytes.
const EMPTY: [u8; 5] = [0; 5];

/// Hands out the other ends of the streams that a test makes.
struct Streams(mpsc::Receiver<DuplexStream>);

impl Listener for Streams {
    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7400))
    }

    fn accept(&mut self) -> Promise<'_, io::Result<Connection>> {
        Box::pin(async {
            match self.0.recv().await {
                Some(stream) => Ok(Connection { io: Box::new(stream), remote: SocketAddr::from(([127, 0, 0, 1], 1)) }),
                None => std::future::pending().await,
            }
        })
    }
}

/// A door with a health service of its own; calls are echoed (`ECHO`), or answered without end (`POUR`).
struct House {
    door: Door,
    connect: mpsc::Sender<DuplexStream>,
    stop: CancellationToken,
    /// Closes the connections of all clients.
    hang_up: CancellationToken,
    tasks: Tasks,
}

impl House {
    fn open(config: ApiConfig) -> House {
        let host: Arc<dyn Host> = TestHost::new(MemoryDisk::default(), 1);
        let tasks = Tasks::new(host);
        let (_, health) = tonic_health::server::health_reporter();
        let calls: Calls = Arc::new(|request, respond, caller| Box::pin(call(request, respond, caller)));
        config.check().expect("a good configuration");
        let door = Door::new(Routes::new(health), calls, config, tasks.clone());
        let (connect, streams) = mpsc::channel(1);
        let stop = CancellationToken::new();
        door.serve(Box::new(Streams(streams)), stop.clone());
        House { door, connect, stop, hang_up: CancellationToken::new(), tasks }
    }

    async fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 16);
        self.connect.send(far).await.expect("the door accepts");
        near
    }

    /// An HTTP/2 client that is well.
    async fn client(&self) -> SendRequest<Bytes> {
        let (client, connection) = client::handshake(self.connect().await).await.expect("a handshake");
        let hang_up = self.hang_up.clone();
        let connection = async move { drop(hang_up.run_until_cancelled_owned(connection).await) };
        self.tasks.spawn("test client", connection);
        client.ready().await.expect("ready")
    }

    fn metrics(&self) -> &Metrics {
        &self.door.inner.metrics
    }

    /// Clients hang up; waits until nothing is held of any connection: what is left is the door's own task.
    async fn becomes_clean(&self) {
        self.hang_up.cancel();
        self.becomes(|house| house.held() == (0, 0, 0, 1)).await;
    }

    /// Connections, requests, bytes and tasks.
    fn held(&self) -> (u32, i64, i64, usize) {
        let metrics = self.metrics();
        (self.door.connections(), metrics.open.get(), metrics.memory_bytes.get(), self.tasks.count())
    }

    async fn becomes(&self, wanted: impl Fn(&House) -> bool) {
        for _ in 0..PATIENCE_MS / 10 {
            if wanted(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("still held (connections, requests, bytes, tasks): {:?}", self.held());
    }
}

/// A user's service.
async fn call(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, caller: Caller) {
    let pours = request.uri().path() == POUR;
    let mut response = Response::new(());
    if let Some(id) = caller.trace.id() {
        response.headers_mut().insert("trace", id.parse().expect("hex"));
    }
    let Ok(stream) = respond.send_response(response, false) else { return };
    let mut out = Outflow::new(stream, Some(Duration::from_secs(60)));
    if pours {
        while out.data(Bytes::from_static(&[7; 4096]), false).await.is_ok() {}
        return;
    }
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        if out.data(data, false).await.is_err() {
            return;
        }
    }
    let _ = out.data(Bytes::new(), true).await;
}

/// Sends bytes and returns all that comes until the door closes.
async fn say_to(house: &House, bytes: &[u8]) -> String {
    let mut stream = house.connect().await;
    stream.write_all(bytes).await.expect("it is read");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("closed in order");
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(path: &str) -> Request<()> {
    let request = Request::post(format!("http://node{path}")).header("content-type", "application/grpc");
    request.header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").body(()).expect("good")
}

fn ask(client: &mut SendRequest<Bytes>, path: &str, body: &[u8]) -> (ResponseFuture, SendStream<Bytes>) {
    let (answer, mut stream) = client.send_request(request(path), false).expect("the client is ready");
    stream.send_data(Bytes::copy_from_slice(body), true).expect("the stream is open");
    (answer, stream)
}

/// The whole answer: its body and its gRPC status.
async fn whole(answer: ResponseFuture) -> Result<(BytesMut, String), h2::Error> {
    let (head, mut body) = answer.await?.into_parts();
    let mut data = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        data.extend_from_slice(&part);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let status = head.headers.get("grpc-status").or(trailers.get("grpc-status"));
    Ok((data, status.map(|status| status.to_str().expect("digits").to_owned()).unwrap_or_default()))
}

/// The health of the node, asked over `client`: one small request of Weft's own.
async fn check(client: &mut SendRequest<Bytes>) -> Result<(), h2::Error> {
    let (body, status) = whole(ask(client, CHECK, &EMPTY).0).await?;
    assert_eq!((&body[..], &*status), (&[0, 0, 0, 0, 2, 8, 1][..], "0"));
    Ok(())
}

#[tokio::test]
async fn own_requests_and_calls_go_their_ways() {
    let house = House::open(ApiConfig::default());
    let mut client = house.client().await;
    check(&mut client).await.expect("an answer");
    let (_, status) = whole(ask(&mut client, "/grpc.health.v1.Health/Nothing", &EMPTY).0).await.expect("an answer");
    assert_eq!(status, "12");
    let large = vec![5; 300_000];
    let (answer, mut stream) = client.send_request(request(ECHO), false).expect("ready");
    let send = async {
        for part in large.chunks(50_000) {
            stream.reserve_capacity(part.len());
            stream.send_data(Bytes::copy_from_slice(part), false).expect("open");
        }
        stream.send_data(Bytes::new(), true).expect("open");
    };
    let head = async {
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.headers()["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
        let mut body = answer.into_body();
        let mut bytes = 0;
        while let Some(part) = body.data().await {
            let part = part.expect("data");
            bytes += part.len();
            body.flow_control().release_capacity(part.len()).expect("open");
        }
        bytes
    };
    assert_eq!(tokio::join!(send, head).1, large.len());
    assert_eq!((house.metrics().requests.get(), house.metrics().calls.get()), (2, 1));
    house.becomes_clean().await;
}

#[tokio::test]
async fn deadlines_and_resets_end_requests() {
    let house = House::open(ApiConfig::default());
    let mut client = house.client().await;
    let mut late = request(WATCH);
    late.headers_mut().insert("grpc-timeout", "50m".parse().expect("good"));
    let (answer, mut stream) = client.send_request(late, false).expect("ready");
    stream.send_data(Bytes::from_static(&EMPTY), true).expect("open");
    let error = whole(answer).await.expect_err("a watch has no end of its own");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    let (answer, mut stream) = ask(&mut client, WATCH, &EMPTY);
    let open = answer.await.expect("a head");
    assert_eq!(house.metrics().open.get(), 1);
    stream.send_reset(Reason::CANCEL);
    drop(open);
    check(&mut client).await.expect("the connection goes on");
    house.becomes_clean().await;
}

#[tokio::test]
async fn other_protocols_get_a_page_or_nothing() {
    let house = House::open(ApiConfig::default());
    let say = async |bytes: &[u8]| say_to(&house, bytes).await;
    let page = say(b"GET / HTTP/1.1\r\nhost: n\r\n\r\n").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("This is Weft"), "{page}");
    assert!(say(b"POST / HTTP/1.1\r\nhost: n\r\ncontent-length: 2\r\n\r\n{}").await.starts_with("HTTP/1.1 405"));
    assert_eq!(say(b"\x16\x03\x01\x02\x00\x01").await, "");
    assert_eq!(house.metrics().pages.get(), 2);
    house.becomes_clean().await;
    let house = House::open(ApiConfig { handshake_timeout: Duration::from_millis(50), ..ApiConfig::default() });
    let say = async |bytes: &[u8]| say_to(&house, bytes).await;
    assert_eq!(say(b"").await, "", "cut off after the handshake's time");
    assert_eq!(say(b"PRI * HTTP/2.0\r\n\r\n").await, "");
    house.becomes_clean().await;
}

#[tokio::test]
async fn a_node_that_stops_lets_calls_end() {
    let house = House::open(ApiConfig::default());
    let mut client = house.client().await;
    let (answer, mut stream) = client.send_request(request(ECHO), false).expect("ready");
    stream.send_data(Bytes::from_static(b"one"), false).expect("open");
    let mut body = answer.await.expect("a head").into_body();
    house.stop.cancel();
    stream.send_data(Bytes::from_static(b"two"), true).expect("open");
    let mut echoed = BytesMut::new();
    while let Some(part) = body.data().await {
        echoed.extend_from_slice(&part.expect("data"));
    }
    assert_eq!(&echoed[..], b"onetwo");
    assert!(client.clone().ready().await.is_err() || check(&mut client).await.is_err(), "nothing new is taken");
    drop((client, stream, body));
    house.hang_up.cancel();
    house.becomes(|house| house.held() == (0, 0, 0, 0)).await;
}

#[tokio::test]
async fn what_is_no_grpc_is_told_so_in_http() {
    let house = House::open(ApiConfig::default());
    let mut client = house.client().await;
    let mut answered = async |method: &str, uri: &str, kind: &str| {
        let request = Request::builder().method(method).uri(uri).header("content-type", kind).body(()).expect("good");
        let answer = client.send_request(request, true).expect("ready").0.await.expect("an answer");
        answer.status().as_u16()
    };
    for path in [CHECK, ECHO] {
        let uri = format!("http://node{path}");
        for kind in ["text/plain", "application/grpc-web+proto", "application/grpcs", "application/json", ""] {
            assert_eq!(answered("POST", &uri, kind).await, 415, "{path} as {kind}");
        }
        for method in ["GET", "HEAD", "OPTIONS", "BREW"] {
            assert_eq!(answered(method, &uri, "application/grpc").await, 405, "{method} {path}");
        }
    }
    assert_eq!(answered("CONNECT", "node:80", "application/grpc").await, 501);
    assert_eq!((house.metrics().requests.get(), house.metrics().calls.get()), (0, 0), "nobody served one");
    let uri = format!("http://node{ECHO}");
    for kind in ["application/grpc+proto", "application/grpc;charset=utf-8", "Application/GRPC"] {
        assert_eq!(answered("POST", &uri, kind).await, 200, "{kind}");
    }
    house.becomes_clean().await;
}

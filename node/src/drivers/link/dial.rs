//! How links come up: dialling, accepting, Hello both ways, and dialling again when one is lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use rand::RngExt;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use weft_cluster::ids::NodeId;
use weft_proto::internal::v1::Hello;

use super::frame::FrameReader;
use super::hello::{self, HELLO_BYTES_MAX};
use super::peers::{Link, Refusal, Slot, code, lock};
use super::{Inner, KIND_HELLO, Lane, LinkError, Peer, open_stream};

/// The node with the greater id leaves the first dial to the other for so long, so that there is one link.
const COURTESY: Duration = Duration::from_millis(200);
/// After refusals the pauses are at least this long.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// QUIC's codes from here on are TLS alerts (RFC 9001, section 4.8).
const TLS_ALERT: u64 = 0x100;
/// The certificate's issuer is not known (RFC 8446, section 6.2).
const UNKNOWN_CA: u64 = 48;
/// A signature does not fit: so it is with a CA of the same name and another key.
const DECRYPT_ERROR: u64 = 51;
/// Reasons remembered so that each is logged once.
const REASONS_MAX: usize = 1_024;

/// Why a dial gave no link.
#[derive(Debug)]
pub(super) enum DialError {
    /// Nobody answered in time, or the connection broke.
    Failed(String),
    /// This node refused the peer, or the peer this node.
    Refused(NodeId, String),
    /// The peer refused this node: a node of its name is there and answers.
    Namesake(String),
    /// The peer refused this node: it has met a newer start of it.
    Outdated(String),
}

/// Keeps a link to a peer up for as long as it is known.
pub(super) async fn keep(inner: Arc<Inner>, slot: Arc<Slot>) {
    let mut links = slot.link.subscribe();
    if inner.me.id > slot.id {
        pause(&slot, COURTESY).await;
    }
    let mut failures = 0;
    while !slot.forgotten.is_cancelled() {
        if links.borrow_and_update().is_some() {
            failures = 0;
            tokio::select! {
                changed = links.changed() => if changed.is_err() { return },
                () = slot.forgotten.cancelled() => return,
            }
            continue;
        }
        let address = *lock(&slot.address);
        // After a restart with an empty folder another node answers there: dialling it would give a second link.
        let taken = inner.link_at(address).is_some_and(|link| link.peer.id != slot.id);
        let result =
            if taken { Err(DialError::Failed("another node is there".into())) } else { dial(&inner, address).await };
        let least = match result {
            Ok(peer) if peer.id == slot.id => continue,
            Ok(_) => REFUSED_PAUSE,
            Err(DialError::Refused(..) | DialError::Namesake(_) | DialError::Outdated(_)) => REFUSED_PAUSE,
            Err(DialError::Failed(reason)) => {
                tracing::debug!(node = %slot.id, %address, reason, "dial failed");
                Duration::ZERO
            }
        };
        let longest = inner.config.backoff_min * 2u32.saturating_pow(failures).min(1 << 16);
        let longest = longest.min(inner.config.backoff_max).max(least);
        failures = (failures + 1).min(16);
        let jitter = lock(&inner.dice).random_range(0.5..1.0);
        pause(&slot, longest.mul_f64(jitter)).await;
    }
}

async fn pause(slot: &Slot, pause: Duration) {
    let mut links = slot.link.subscribe();
    tokio::select! {
        () = sleep(pause) => {}
        () = slot.wake.notified() => {}
        () = slot.forgotten.cancelled() => {}
        _ = links.wait_for(|link| link.is_some()) => {}
    }
}

/// Dials an address, or says who is there if a link to it is up.
pub(super) async fn dial(inner: &Arc<Inner>, address: SocketAddr) -> Result<Peer, DialError> {
    let turn = inner.table().dials.entry(address).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
    let result = {
        let _turn = turn.acquire().await.map_err(|_| DialError::Failed("the node stops".into()))?;
        match inner.link_at(address) {
            Some(link) => Ok(link.peer.clone()),
            None => dial_now(inner, address).await,
        }
    };
    // The table holds one, this function one: nobody else dials there.
    if Arc::strong_count(&turn) == 2 {
        inner.table().dials.remove(&address);
    }
    // A seed may be a name of a node that calls itself by another address.
    if let Ok(peer) = &result {
        inner.table().at.insert(address, peer.id);
    }
    if let Err(error) = &result {
        inner.metrics.dials_failed.inc();
        if let DialError::Namesake(reason) = error {
            inner.refused_for_name(reason);
        }
        if let DialError::Outdated(reason) = error {
            inner.ledger.over(&format!("{address}: {reason}"));
        }
        if let DialError::Refused(_, reason) | DialError::Namesake(reason) | DialError::Outdated(reason) = error {
            inner.refuse(&format!("{address}: {reason}"));
        }
    }
    result
}

async fn dial_now(inner: &Arc<Inner>, address: SocketAddr) -> Result<Peer, DialError> {
    let connecting = inner
        .endpoint
        .connect_with(lock(&inner.client).clone(), address, "weft")
        .map_err(|error| DialError::Failed(error.to_string()))?;
    let shake = async {
        let connection = connecting.await.map_err(why)?;
        let heard = async {
            let (mut send, receive) =
                open_stream(&connection, KIND_HELLO, Lane::Control).await.ok_or_else(|| ended(&connection))?;
            write_hello(inner, &mut send).await.ok_or_else(|| ended(&connection))?;
            let hello = read_hello(receive).await;
            match hello {
                Ok(hello) => Ok((hello, send)),
                Err(None) => Err(ended(&connection)),
                Err(Some(reason)) => Err(DialError::Refused(NodeId(0), reason)),
            }
        };
        let heard = heard.await?;
        Ok((connection, heard))
    };
    let (connection, (hello, mut send)) = timeout(inner.config.handshake_timeout, shake)
        .await
        .map_err(|_| DialError::Failed("no answer in time".into()))??;
    let _ = send.finish();
    let refuse = |refusal: Refusal| {
        connection.close(refusal.code(), refusal.reason().as_bytes());
        DialError::Refused(NodeId(hello.node), refusal.reason().to_owned())
    };
    let peer = check(inner, &connection, &hello).map_err(refuse)?;
    let link = Arc::new(Link::new(connection.clone(), peer.clone(), hello.cluster_id, true, &inner.metrics));
    inner.clock_heard(&link, hello.wall_ms);
    inner.register(link).await.map_err(refuse)?;
    Ok(peer)
}

/// Accepts connections until the endpoint closes.
pub(super) async fn accept(inner: Arc<Inner>) {
    let places = Arc::new(Semaphore::new(inner.config.handshakes_max));
    while let Some(incoming) = inner.endpoint.accept().await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            inner.metrics.handshakes_over_limit.inc();
            incoming.refuse();
            continue;
        };
        // Under a flood, the sender must first show that it can receive at its address.
        if places.available_permits() < inner.config.handshakes_max / 2 && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let accepting = inner.clone();
        inner.tasks.spawn("link handshake", async move {
            let from = incoming.remote_address();
            if let Err(reason) = shake_hands(&accepting, incoming).await {
                accepting.metrics.handshakes_failed.inc();
                accepting.refuse(&format!("{}: {reason}", from.ip()));
            }
            drop(place);
        });
    }
    // This task is vital: it ends by itself only if the socket has failed, not if the links were closed.
    if inner.closing.is_cancelled() {
        std::future::pending().await
    }
}

async fn shake_hands(inner: &Arc<Inner>, incoming: quinn::Incoming) -> Result<(), String> {
    let shake = async {
        let connection = incoming.await.map_err(|error| certificate(&error).unwrap_or_else(|| error.to_string()))?;
        let (send, mut receive) = connection.accept_bi().await.map_err(|error| error.to_string())?;
        let mut head = [0; 2];
        receive.read_exact(&mut head).await.map_err(|_| "it sent no Hello".to_owned())?;
        if head != [KIND_HELLO, Lane::Control as u8] {
            return Err("its first stream is no Hello".to_owned());
        }
        let hello = read_hello(receive).await.map_err(|reason| reason.unwrap_or("it sent no Hello".into()))?;
        Ok((connection, hello, send))
    };
    let shaken = timeout(inner.config.handshake_timeout, shake).await;
    let (connection, hello, mut send) = shaken.map_err(|_| "its handshake took too long".to_owned())??;
    let refuse = |refusal: Refusal| {
        connection.close(refusal.code(), refusal.reason().as_bytes());
        refusal.reason().to_owned()
    };
    let peer = check(inner, &connection, &hello).map_err(refuse)?;
    let link = Arc::new(Link::new(connection.clone(), peer, hello.cluster_id, false, &inner.metrics));
    inner.clock_heard(&link, hello.wall_ms);
    inner.register(link).await.map_err(refuse)?;
    let _ = timeout(inner.config.handshake_timeout, write_hello(inner, &mut send)).await;
    let _ = send.finish();
    Ok(())
}

fn check(inner: &Inner, connection: &Connection, hello: &Hello) -> Result<Peer, Refusal> {
    let certified = hello::certified_name(connection);
    hello::check(&inner.me, inner.cluster(), certified.as_deref(), connection.remote_address(), hello).map_err(
        |reason| match hello.node == inner.me.id.0 && !hello::is_itself(&inner.me, hello) {
            true => Refusal::Namesake(reason),
            false => Refusal::Other(reason),
        },
    )
}

async fn write_hello(inner: &Inner, send: &mut SendStream) -> Option<()> {
    let hello = Hello { wall_ms: inner.wall_ms(), ..hello::mine(&inner.me, inner.cluster()) }.encode_to_vec();
    let length = u32::try_from(hello.len()).ok()?.to_be_bytes();
    send.write_all_chunks(&mut [length.to_vec().into(), hello.into()]).await.ok()
}

/// `Err(None)`: the connection ended before it.
async fn read_hello(receive: RecvStream) -> Result<Hello, Option<String>> {
    let mut reader = FrameReader::new(receive, HELLO_BYTES_MAX);
    match reader.next().await {
        Ok(Some(frame)) => Hello::decode(frame).map_err(|_| Some("its Hello cannot be read".into())),
        Ok(None) => Err(Some("it sent no Hello".into())),
        Err(super::frame::Broken::Rules(reason)) => Err(Some(reason)),
        Err(super::frame::Broken::Lost) => Err(None),
    }
}

fn ended(connection: &Connection) -> DialError {
    let reason = connection.close_reason();
    connection.close(0u32.into(), b"no Hello");
    reason.map_or_else(|| DialError::Failed("the stream of its Hello ended".into()), why)
}

/// A refusal by the peer's door or by either certificate check comes as a closed connection.
fn why(error: ConnectionError) -> DialError {
    match error {
        ConnectionError::ApplicationClosed(close) if close.error_code == code::REFUSED => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            DialError::Refused(NodeId(0), format!("it refuses this node: {reason}"))
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == code::NAMESAKE => {
            DialError::Namesake(String::from_utf8_lossy(&close.reason).into_owned())
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == code::OLD => {
            DialError::Outdated(String::from_utf8_lossy(&close.reason).into_owned())
        }
        error => match certificate(&error) {
            Some(reason) => DialError::Refused(NodeId(0), reason),
            None => DialError::Failed(error.to_string()),
        },
    }
}

/// Which side refuses the other's certificate, why, and what would be right; `None` if it is not a matter of that.
fn certificate(error: &ConnectionError) -> Option<String> {
    let (who, code, reason) = match error {
        ConnectionError::TransportError(error) => {
            ("this node refuses its certificate", u64::from(error.code), error.reason.clone())
        }
        ConnectionError::ConnectionClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            ("it refuses this node's certificate", u64::from(close.error_code), reason)
        }
        _ => return None,
    };
    // Not to the second: a cause that goes on is logged once.
    let reason = reason.split(": verification time").next().unwrap_or_default();
    let advice = match code.checked_sub(TLS_ALERT)? {
        UNKNOWN_CA | DECRYPT_ERROR => {
            "; the two are not of one CA: issue both with the same one (`weft ca issue`), and give both its ca.pem as tls.ca"
        }
        alert if alert <= u64::from(u8::MAX) => "",
        _ => return None,
    };
    Some(format!("{who} ({reason}){advice}"))
}

impl Inner {
    /// Counts a refusal and logs each reason once.
    pub(super) fn refuse(&self, reason: &str) {
        self.metrics.refused.inc();
        let mut reasons = lock(&self.reasons);
        if reasons.len() >= REASONS_MAX {
            reasons.clear();
        }
        if reasons.insert(reason.to_owned()) {
            tracing::warn!(reason, "no link; this is logged once");
        }
    }
}

impl From<DialError> for LinkError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Failed(_) => LinkError::NotSent(NodeId(0)),
            DialError::Refused(node, reason) => LinkError::Refused(node, reason),
            DialError::Namesake(reason) | DialError::Outdated(reason) => LinkError::Refused(NodeId(0), reason),
        }
    }
}

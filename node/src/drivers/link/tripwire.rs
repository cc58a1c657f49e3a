//! The tripwire: one idle TCP connection beside each link. The kernel closes it the moment the process at
//! its other end dies, which QUIC does not show. It says nothing but a node id and is believed in nothing:
//! when it closes, the link is probed.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use weft_cluster::ids::NodeId;

use super::Inner;
use super::peers::Link;
use crate::host::{Connection, Io, Listener};

/// "weft tripwire ", 16 hex digits of the node id, newline.
const LINE_BYTES: usize = 31;
const LINE_START: &str = "weft tripwire ";
/// Connections that have not said who they are yet.
const PENDING_MAX: usize = 64;
/// The pauses between two tries to connect.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// The pause after the system refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Keeps the wire of a link that this node dialled.
pub(super) async fn keep(inner: Arc<Inner>, link: Arc<Link>) {
    let mut pause = RETRY_MIN;
    let patience = inner.config.handshake_timeout;
    loop {
        let attempt = timeout(patience, inner.host.connect(link.peer.peer_address));
        let connected = tokio::select! {
            connected = attempt => connected.ok().and_then(Result::ok),
            _ = link.connection.closed() => return,
        };
        match connected {
            Some(mut connection) => {
                let line = format!("{LINE_START}{}\n", inner.me.id);
                if connection.io.write_all(line.as_bytes()).await.is_ok() {
                    pause = RETRY_MIN;
                    watch(&link, &mut connection.io).await;
                }
            }
            None => {
                tracing::debug!(peer = link.peer.name, address = %link.peer.peer_address, "no tripwire");
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = link.connection.closed() => return,
        }
    }
}

/// Accepts the wires of links that peers dialled.
pub(super) async fn accept(inner: Arc<Inner>, mut listener: Box<dyn Listener>) {
    let places = Arc::new(Semaphore::new(PENDING_MAX));
    loop {
        let connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "tripwires cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            inner.metrics.tripwires_refused.inc();
            continue;
        };
        let serving = inner.clone();
        inner.tasks.spawn("link tripwire", async move {
            let Connection { mut io, .. } = connection;
            let known = timeout(serving.config.handshake_timeout, read_line(&mut io)).await.ok().flatten();
            drop(place);
            let held = known.and_then(|node| serving.slot(node)).and_then(|slot| {
                let wire = slot.tripwires.clone().try_acquire_owned().ok()?;
                Some((slot.current()?, wire))
            });
            match held {
                Some((link, _wire)) => watch(&link, &mut io).await,
                // A scanner, or a peer whose link has just ended: it will come again with the next.
                None => drop(serving.metrics.tripwires_refused.inc()),
            }
        });
    }
}

/// Returns when the wire closes, or the link. What comes over the wire is thrown away.
async fn watch(link: &Link, io: &mut Box<dyn Io>) {
    let mut nothing = [0; 64];
    let tripped = async { while matches!(io.read(&mut nothing).await, Ok(1..)) {} };
    tokio::select! {
        _ = link.connection.closed() => {}
        () = tripped => link.probe.notify_one(),
    }
}

async fn read_line(io: &mut Box<dyn Io>) -> Option<NodeId> {
    let mut line = [0; LINE_BYTES];
    io.read_exact(&mut line).await.ok()?;
    parse(&line)
}

fn parse(line: &[u8; LINE_BYTES]) -> Option<NodeId> {
    let id = std::str::from_utf8(line).ok()?.strip_prefix(LINE_START)?.strip_suffix('\n')?;
    u64::from_str_radix(id, 16).ok().filter(|id| *id != 0).map(NodeId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_a_node_or_nothing() {
        let line = format!("{LINE_START}{}\n", NodeId(0xabc));
        assert_eq!(parse(line.as_bytes().try_into().expect("the length of a line")), Some(NodeId(0xabc)));
        for bad in [
            "weft tripwire 0000000000000000\n",
            "weft tripwire 00000000000000zz\n",
            "GET / HTTP/1.1\r\nHost: weft:74\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()[..LINE_BYTES.min(bad.len())].try_into().expect("as long")), None);
        }
    }
}

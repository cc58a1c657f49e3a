//! Runs one link: streams and datagrams that come in, the watch over it, and its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{ConnectionError, ConnectionStats, RecvStream, SendStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::clock::TELL_EVERY;
use super::frame::{FrameReader, FrameReceiver, FrameSender};
use super::peers::{Link, Slot, code, told_dead};
use super::vigil::{Effect, Vigil};
use super::{GOSSIP_BYTES_MAX, Inner, KIND_REQUESTS, KIND_STREAM, Lane, LinkStream, Verdict, lane};

/// A ping that QUIC's own acknowledgement answers.
const DATAGRAM_PING: u8 = 1;
/// A ping that must be answered; u64 number follows.
const DATAGRAM_PROBE: u8 = 2;
/// The answer to a probe; its number follows.
const DATAGRAM_ANSWER: u8 = 3;
/// A SWIM packet follows.
pub(super) const DATAGRAM_GOSSIP: u8 = 4;
/// The sender's wall clock follows, in milliseconds since 1970.
const DATAGRAM_CLOCK: u8 = 5;

/// A retired link ends when nothing has run on it for so long.
const RETIRED_LINGER: Duration = Duration::from_secs(1);
/// How often the counters of a link are read.
const METRICS_EVERY: Duration = Duration::from_secs(5);

/// Runs a link to its end.
pub(super) async fn run(inner: Arc<Inner>, slot: Arc<Slot>, link: Arc<Link>) {
    let mut watch = Watch::new(&inner, &link);
    let ended = loop {
        let connection = &link.connection;
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    let serving = serve_stream(inner.clone(), link.clone(), send, receive);
                    inner.tasks.spawn("link stream", serving);
                }
                Err(error) => break error,
            },
            stream = connection.accept_uni() => match stream {
                Ok(stream) => inner.tasks.spawn("link gossip", read_gossip(inner.clone(), link.clone(), stream)),
                Err(error) => break error,
            },
            datagram = connection.read_datagram() => match datagram {
                Ok(datagram) => on_datagram(&inner, &link, &mut watch.vigil, datagram),
                Err(error) => break error,
            },
            () = link.probe.notified() => {
                watch.vigil.doubt(Instant::now());
                watch.look(&inner, &slot, &link);
            }
            () = sleep_until(watch.vigil.next_deadline()) => watch.look(&inner, &slot, &link),
        }
    };
    watch.count(&inner, &link);
    let alone = inner.unlink(&slot, &link);
    if let ConnectionError::ApplicationClosed(close) = &ended
        && close.error_code == code::NAMESAKE
    {
        inner.refused_for_name(&String::from_utf8_lossy(&close.reason));
    }
    if let ConnectionError::ApplicationClosed(close) = &ended
        && close.error_code == code::OLD
    {
        inner.ledger.over(&format!("{}: {}", link.peer.name, String::from_utf8_lossy(&close.reason)));
    }
    tracing::info!(peer = link.peer.name, reason = %ended, in_use = alone, "link ended");
    // A node that stops has nothing to say of others.
    if !alone || slot.forgotten.is_cancelled() || inner.closing.is_cancelled() {
        return;
    }
    match after(&ended, slot.dead.load(Ordering::Acquire)) {
        Verdict::Dead if stopped(&ended) => {
            if inner.say_unlinked(&slot, &link.peer, Verdict::Dead) {
                tracing::info!(peer = link.peer.name, generation = %link.peer.generation, "has stopped");
            }
        }
        Verdict::Dead => {
            if inner.say_unlinked(&slot, &link.peer, Verdict::Dead) {
                told_dead(&link.peer);
            }
        }
        verdict => drop(inner.say_unlinked(&slot, &link.peer, verdict)),
    }
}

/// Whether the peer has said that it stops.
fn stopped(ended: &ConnectionError) -> bool {
    matches!(ended, ConnectionError::ApplicationClosed(close) if close.error_code == code::STOPPING)
}

/// What the end of the only link to a peer says about it.
fn after(ended: &ConnectionError, dead: bool) -> Verdict {
    match ended {
        // Only a process that has the folder's secret, and does not have the connection, can reset it.
        ConnectionError::Reset => Verdict::Dead,
        _ if stopped(ended) => Verdict::Dead,
        _ if dead => Verdict::Dead,
        _ => Verdict::Suspect,
    }
}

/// The watch over the link and what it needs between two looks.
struct Watch {
    vigil: Vigil,
    effects: Vec<Effect>,
    retired: bool,
    idle_since: Option<Instant>,
    counted_at: Instant,
    counted: Counted,
    clock_at: Instant,
}

#[derive(Default)]
struct Counted {
    sent_bytes: u64,
    received_bytes: u64,
    lost_packets: u64,
}

impl Watch {
    fn new(inner: &Inner, link: &Link) -> Self {
        let now = Instant::now();
        inner.metrics.rtt_seconds.get_or_create(&link.label()).set(link.connection.rtt().as_secs_f64());
        Watch {
            vigil: Vigil::new(now, inner.config.ping_after, inner.config.suspect_after),
            effects: Vec::new(),
            retired: link.retired.load(Ordering::Acquire),
            idle_since: None,
            counted_at: now,
            counted: Counted::default(),
            clock_at: now,
        }
    }

    fn look(&mut self, inner: &Inner, slot: &Slot, link: &Link) {
        let now = Instant::now();
        let stats = link.connection.stats();
        self.vigil.look(now, stats.udp_rx.datagrams, stats.path.rtt, &mut self.effects);
        let retired = link.retired.load(Ordering::Acquire);
        if std::mem::replace(&mut self.retired, retired) && !retired {
            self.vigil.promoted();
        }
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Ping => drop(link.connection.send_datagram(Bytes::from_static(&[DATAGRAM_PING]))),
                Effect::Probe(number) => drop(link.connection.send_datagram(numbered(DATAGRAM_PROBE, number))),
                _ if link.retired.load(Ordering::Acquire) && effect != Effect::Dead => {}
                Effect::Up => drop(inner.say(slot, &link.peer, Verdict::Up)),
                Effect::Suspect => drop(inner.say(slot, &link.peer, Verdict::Suspect)),
                Effect::Dead => {
                    if !link.retired.load(Ordering::Acquire) {
                        inner.bury(slot, &link.peer);
                    }
                    link.connection.close(code::DEAD, b"no ping was answered");
                }
            }
        }
        if now - self.clock_at >= TELL_EVERY && !link.retired.load(Ordering::Acquire) {
            self.clock_at = now;
            drop(link.connection.send_datagram(numbered(DATAGRAM_CLOCK, inner.wall_ms())));
        }
        self.end_retired(now, link);
        if now - self.counted_at >= METRICS_EVERY {
            self.counted_at = now;
            self.count_stats(inner, link, &stats);
        }
    }

    fn end_retired(&mut self, now: Instant, link: &Link) {
        if !link.retired.load(Ordering::Acquire) || !link.is_idle() {
            self.idle_since = None;
        } else if now - *self.idle_since.get_or_insert(now) >= RETIRED_LINGER {
            link.connection.close(code::RETIRED, b"another link is in use");
        }
    }

    fn count(&mut self, inner: &Inner, link: &Link) {
        self.count_stats(inner, link, &link.connection.stats());
    }

    fn count_stats(&mut self, inner: &Inner, link: &Link, stats: &ConnectionStats) {
        let (label, metrics) = (link.label(), &inner.metrics);
        let now = Counted {
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
        };
        metrics.rtt_seconds.get_or_create(&label).set(stats.path.rtt.as_secs_f64());
        metrics.sent_bytes.get_or_create(&label).inc_by(now.sent_bytes.saturating_sub(self.counted.sent_bytes));
        let received = now.received_bytes.saturating_sub(self.counted.received_bytes);
        metrics.received_bytes.get_or_create(&label).inc_by(received);
        metrics.lost_packets.get_or_create(&label).inc_by(now.lost_packets.saturating_sub(self.counted.lost_packets));
        self.counted = now;
    }
}

fn numbered(kind: u8, number: u64) -> Bytes {
    let mut datagram = BytesMut::with_capacity(9);
    datagram.put_u8(kind);
    datagram.put_u64(number);
    datagram.freeze()
}

/// Datagrams of unknown kinds are left alone: a newer node may send them.
fn on_datagram(inner: &Inner, link: &Link, vigil: &mut Vigil, mut datagram: Bytes) {
    let Some(kind) = datagram.try_get_u8().ok() else { return };
    match kind {
        DATAGRAM_PROBE if datagram.len() == 8 => {
            drop(link.connection.send_datagram(numbered(DATAGRAM_ANSWER, datagram.get_u64())));
        }
        DATAGRAM_ANSWER if datagram.len() == 8 => vigil.answered(datagram.get_u64()),
        DATAGRAM_CLOCK if datagram.len() == 8 => inner.clock_heard(link, datagram.get_u64()),
        DATAGRAM_GOSSIP => inner.gossip_in(link, datagram),
        _ => {}
    }
}

async fn read_gossip(inner: Arc<Inner>, link: Arc<Link>, mut stream: RecvStream) {
    let patience = inner.config.handshake_timeout;
    match timeout(patience, stream.read_to_end(GOSSIP_BYTES_MAX)).await {
        Ok(Ok(packet)) => inner.gossip_in(&link, packet.into()),
        _ => drop(inner.metrics.gossip_dropped.inc()),
    }
}

async fn serve_stream(inner: Arc<Inner>, link: Arc<Link>, send: SendStream, mut receive: RecvStream) {
    let mut head = [0; 2];
    // A stream is opened together with its head; a peer that holds it back gets no place here for ever.
    let read = timeout(inner.config.handshake_timeout, receive.read_exact(&mut head)).await;
    if !matches!(read, Ok(Ok(()))) {
        return;
    }
    let from = link.peer.id;
    let Some(lane) = Lane::from_byte(head[1]) else {
        return inner.broken_stream(from, Lane::Control, &format!("it opened a stream of unknown lane {}", head[1]));
    };
    let _ = send.set_priority(lane.priority());
    match head[0] {
        KIND_REQUESTS => lane::serve(inner, link, lane, send, receive).await,
        KIND_STREAM => {
            let Some(door) = inner.door().await else { return };
            let stream = own_stream(&inner, &link, lane, send, receive);
            door.stream(from, lane, stream).await;
        }
        kind => inner.broken_stream(from, lane, &format!("it opened a stream of unknown kind {kind}")),
    }
}

pub(super) fn own_stream(
    inner: &Arc<Inner>,
    link: &Link,
    lane: Lane,
    send: SendStream,
    receive: RecvStream,
) -> LinkStream {
    let (node, frame_bytes_max) = (link.peer.id, lane.frame_bytes_max());
    LinkStream {
        send: FrameSender {
            to: node,
            frame_bytes_max,
            stream: send,
            finished: false,
            _activity: link.activity.clone(),
        },
        receive: FrameReceiver {
            from: node,
            lane,
            reader: FrameReader::new(receive, frame_bytes_max),
            inner: inner.clone(),
            _activity: link.activity.clone(),
        },
    }
}

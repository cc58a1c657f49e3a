//! One HTTP/2 connection: accepts its requests and cares for it until it ends.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use h2::server::{self, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::Request;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::budget::{Share, WINDOW_BYTES_MIN, bytes};
use super::care::{Care, Seen, Verdict};
use super::metrics::Ending;
use super::sniff::{First, PREFACE};
use super::{ApiConfig, Inner, request};
use crate::host::{Connection, Turn};
use crate::wire::{Outbox, Pulse, Traffic};

/// How long a connection that is to end at once may take to say so to its client.
const FAREWELL: Duration = Duration::from_secs(1);

type Accepted = Option<Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>>;

/// Serves a connection whose client has sent its preface, until either side ends it.
pub(super) async fn serve(
    door: &Arc<Inner>,
    connection: Connection,
    first: First,
    share: Share,
    stop: CancellationToken,
) {
    let remote = connection.remote;
    debug_assert_eq!(first.bytes(), PREFACE);
    let wire = Traffic::new(connection.io).after(first.bytes()).counting_resets();
    let (pulse, outbox) = (wire.pulse(), wire.outbox());
    let handshake = builder(&door.config, &share).handshake::<_, Bytes>(wire);
    let connection = match tokio::time::timeout(door.config.handshake_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "a client's HTTP/2 handshake failed"),
        Err(_) => return door.metrics.refused(super::Refusal::Handshake),
    };
    Served::new(door, connection, pulse, outbox, share, remote).run(stop).await;
}

/// What is larger than so many times the limit on headers h2 answers by itself, with the bare HTTP status 431; up to
/// there the client is told in gRPC. It is not more, since headers take memory before they are counted.
const HEADERS_SEEN: u32 = 4;

fn builder(config: &ApiConfig, share: &Share) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(stream_window(config, share))
        .initial_connection_window_size(share.window())
        .max_concurrent_streams(config.streams_max)
        .max_frame_size(bytes(config.frame_bytes_max))
        .max_header_list_size(bytes(config.header_bytes_max) * HEADERS_SEEN)
        .max_send_buffer_size(bytes(config.send_buffer_max) as usize)
        .max_pending_accept_reset_streams(config.resets_pending_max as usize)
        .max_local_error_reset_streams(Some(config.resets_error_max as usize));
    builder
}

/// Half of the connection's window, so that one stream whose call does not read holds up no other.
fn stream_window(config: &ApiConfig, share: &Share) -> u32 {
    (share.window() / 2).max(WINDOW_BYTES_MIN).min(bytes(config.stream_window))
}

/// With fewer requests open at this node a connection does at once what it is woken for.
const GATHERED_REQUESTS_MIN: i64 = 4;

/// A connection that is served.
struct Served<'a> {
    door: &'a Arc<Inner>,
    connection: server::Connection<Traffic, Bytes>,
    ping_pong: PingPong,
    pulse: Arc<Pulse>,
    outbox: Outbox,
    share: Share,
    care: Care,
    turn: Turn,
    look: Interval,
    /// Streams reset by the client that the care knows of.
    resets: u64,
    /// The client is told that no more requests are taken.
    leaving: bool,
    /// The window of streams is to follow the connection's, once the client has confirmed the last change.
    window_due: bool,
    remote: SocketAddr,
}

/// What a connection's task does next.
#[expect(clippy::large_enum_variant, reason = "it is moved once, and a box would cost an allocation per request")]
enum Step {
    Accepted(Accepted),
    /// Counters have passed a mark.
    Marked,
    Look,
    Leave,
}

impl<'a> Served<'a> {
    fn new(
        door: &'a Arc<Inner>,
        mut connection: server::Connection<Traffic, Bytes>,
        pulse: Arc<Pulse>,
        outbox: Outbox,
        share: Share,
        remote: SocketAddr,
    ) -> Served<'a> {
        let ping_pong = connection.ping_pong().expect("it is taken once");
        let care = Care::new(&door.config, Instant::now());
        let mut look = tokio::time::interval(care.period());
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (turn, resets, leaving, window_due) = (Turn::default(), 0, false, false);
        Served {
            door,
            connection,
            ping_pong,
            pulse,
            outbox,
            share,
            care,
            turn,
            look,
            resets,
            leaving,
            window_due,
            remote,
        }
    }

    async fn run(mut self, stop: CancellationToken) {
        let mut stopped = pin!(stop.cancelled());
        loop {
            let step = std::future::poll_fn(|cx| self.poll(cx, stopped.as_mut())).await;
            match step {
                Step::Accepted(Some(Ok((request, respond)))) => {
                    request::dispatch(self.door, request, respond, self.remote)
                }
                Step::Accepted(Some(Err(error))) => return self.broken(&error),
                Step::Accepted(None) => return,
                Step::Leave => self.leave(),
                Step::Marked => {
                    if self.is_flooded() {
                        return self.end(Ending::Resets).await;
                    }
                    self.grow();
                }
                Step::Look => match self.look() {
                    Verdict::Well => {}
                    Verdict::Ping => drop(self.ping_pong.send_ping(Ping::opaque())),
                    Verdict::Idle => {
                        self.door.metrics.ended(Ending::Idle);
                        self.leave();
                    }
                    Verdict::Silent => return self.end(Ending::Silent).await,
                    Verdict::Stalled => return self.end(Ending::Stalled).await,
                },
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, stopped: Pin<&mut impl Future<Output = ()>>) -> Poll<Step> {
        let busy = self.door.metrics.open.get() >= GATHERED_REQUESTS_MIN;
        ready!(self.turn.poll(cx, busy));
        let step = self.poll_now(cx, stopped);
        if step.is_pending() {
            self.turn.sleeps();
        }
        step
    }

    fn poll_now(&mut self, cx: &mut Context<'_>, stopped: Pin<&mut impl Future<Output = ()>>) -> Poll<Step> {
        // This moves everything on the connection, so the counters are looked at after it.
        self.outbox.gather();
        let accepted = self.connection.poll_accept(cx);
        self.outbox.send(cx);
        if let Poll::Ready(accepted) = accepted {
            return Poll::Ready(Step::Accepted(accepted));
        }
        let window_is_through =
            self.share.can_grow() && self.care.window_is_through(self.pulse.read_bytes(), self.share.window());
        if window_is_through || self.pulse.resets() != self.resets {
            return Poll::Ready(Step::Marked);
        }
        if self.look.poll_tick(cx).is_ready() {
            return Poll::Ready(Step::Look);
        }
        if !self.leaving && stopped.poll(cx).is_ready() {
            return Poll::Ready(Step::Leave);
        }
        Poll::Pending
    }

    /// Tells the client to send nothing new here. What is open goes on.
    fn leave(&mut self) {
        self.leaving = true;
        self.connection.graceful_shutdown();
    }

    fn look(&mut self) -> Verdict {
        // A pong is taken, so that the next ping may go out.
        let _ = std::future::poll_fn(|cx| self.ping_pong.poll_pong(cx)).now_or_never();
        let seen = Seen {
            read_bytes: self.pulse.read_bytes(),
            written_bytes: self.pulse.written_bytes(),
            blocked: self.pulse.is_blocked(),
            streams: self.leaving || self.connection.has_streams(),
        };
        self.follow_window();
        self.care.look(Instant::now(), seen)
    }

    fn is_flooded(&mut self) -> bool {
        let resets = self.pulse.resets();
        if resets == self.resets {
            return false;
        }
        self.resets = resets;
        self.care.is_flooded(Instant::now(), resets)
    }

    /// A larger window, if the connection needs one and the budget has it.
    fn grow(&mut self) {
        let (read, window) = (self.pulse.read_bytes(), self.share.window());
        if !self.share.can_grow() || !self.care.wants_window(Instant::now(), read, window) {
            return;
        }
        if self.share.grow() {
            self.connection.set_target_window_size(self.share.window());
            self.window_due = true;
            self.follow_window();
        } else {
            self.door.metrics.windows_short.inc();
        }
    }

    /// Sends the streams' new window, unless one is under way: then it follows with the next look.
    fn follow_window(&mut self) {
        if self.window_due {
            let window = stream_window(&self.door.config, &self.share);
            self.window_due = self.connection.set_initial_window_size(window).is_err();
        }
    }

    /// Ends it now, telling the client to behave, if it listens.
    async fn end(mut self, why: Ending) {
        tracing::debug!(remote = %self.remote, ?why, "a client's connection is ended");
        self.door.metrics.ended(why);
        self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        let said = std::future::poll_fn(|cx| self.connection.poll_closed(cx));
        let _ = tokio::time::timeout(FAREWELL, said).await;
    }

    fn broken(&self, error: &h2::Error) {
        if error.is_library() {
            self.door.metrics.ended(Ending::Protocol);
        }
        tracing::debug!(remote = %self.remote, %error, "a client's connection ended");
    }
}

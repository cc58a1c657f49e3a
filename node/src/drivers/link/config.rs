//! The `[link]` table of the configuration.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// The least MTU that QUIC allows.
pub const MTU_MIN: u16 = 1_200;
/// Ten datagrams in one system call may hold at most 64 KiB.
pub const MTU_MAX: u16 = 6_500;

/// Settings of the links between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkConfig {
    /// Bytes of a UDP datagram's payload, pinned: there is no path MTU discovery. 1,200 to 6,500; raise it
    /// above 1,452 only where the whole network carries it (loopback, jumbo frames).
    pub mtu: u16,
    /// Asked for as the UDP socket's receive and send buffers. Less than that is logged.
    pub socket_buffer: ByteSize,
    /// How long a peer may be silent before nothing new is sent there.
    #[serde(with = "humantime_serde")]
    pub suspect_after: Duration,
    /// A peer that was silent for this long is pinged.
    #[serde(with = "humantime_serde")]
    pub ping_after: Duration,
    /// A link on which nothing was heard for this long is closed and dialled anew.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// The round trip assumed until one is measured.
    #[serde(with = "humantime_serde")]
    pub initial_rtt: Duration,
    /// How long a dial, or a handshake that came in, may take.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Handshakes in progress at a time; more are refused.
    pub handshakes_max: usize,
    /// The first pause before a lost link is dialled again; it doubles with jitter.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// The longest pause between two dials.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Requests that wait to be sent, per peer and lane. More wait at their caller.
    pub queue_requests_max: usize,
    /// Bytes of requests that wait to be sent, per peer and lane.
    pub queue_bytes_max: ByteSize,
    /// Bytes a peer may send on one stream before this node has read them.
    pub stream_window: ByteSize,
    /// Bytes a peer may send on all streams before this node has read them.
    pub connection_window: ByteSize,
    /// A node whose wall clock is further than this from the median of a shard's voters stamps what it owns with the
    /// median instead.
    #[serde(with = "humantime_serde")]
    pub clock_tolerance: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        LinkConfig {
            mtu: 1_452,
            socket_buffer: ByteSize::mib(4),
            suspect_after: Duration::from_millis(600),
            ping_after: Duration::from_millis(200),
            idle_timeout: Duration::from_secs(10),
            initial_rtt: Duration::from_millis(20),
            handshake_timeout: Duration::from_secs(2),
            handshakes_max: 256,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            queue_requests_max: 4_096,
            queue_bytes_max: ByteSize::mib(32),
            stream_window: ByteSize::mib(16),
            connection_window: ByteSize::mib(512),
            clock_tolerance: Duration::from_secs(60),
        }
    }
}

impl LinkConfig {
    /// Checks the ranges. The error is one sentence that names the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err(format!(
                "link.mtu is {}, but must be {MTU_MIN} to {MTU_MAX}: ten datagrams leave in one system call, which \
                 takes at most 64 KiB, and what is larger would be lost without a hint",
                self.mtu
            ));
        }
        if self.ping_after.is_zero() || self.suspect_after < self.ping_after * 2 {
            return Err(format!(
                "link.suspect_after is {:?}, but must be at least twice link.ping_after ({:?}), which must not be 0",
                self.suspect_after, self.ping_after
            ));
        }
        if self.idle_timeout <= self.suspect_after || self.idle_timeout > Duration::from_secs(600) {
            return Err(format!(
                "link.idle_timeout is {:?}, but must be above link.suspect_after ({:?}) and at most 10 minutes",
                self.idle_timeout, self.suspect_after
            ));
        }
        if self.backoff_min.is_zero() || self.backoff_max < self.backoff_min {
            return Err(format!(
                "link.backoff_max is {:?}, but must be at least link.backoff_min ({:?}), which must not be 0",
                self.backoff_max, self.backoff_min
            ));
        }
        for (key, value) in [("handshakes_max", self.handshakes_max), ("queue_requests_max", self.queue_requests_max)] {
            if !(1..=1_000_000).contains(&value) {
                return Err(format!("link.{key} is {value}, but must be 1 to 1,000,000"));
            }
        }
        for (key, value, least) in [
            ("socket_buffer", self.socket_buffer, ByteSize::kib(64)),
            ("queue_bytes_max", self.queue_bytes_max, ByteSize::mib(16)),
            ("stream_window", self.stream_window, ByteSize::kib(64)),
            ("connection_window", self.connection_window, self.stream_window),
        ] {
            if value < least || value > ByteSize::gib(1) {
                return Err(format!("link.{key} is {value}, but must be {least} to 1 GiB"));
            }
        }
        if self.initial_rtt.is_zero() || self.handshake_timeout.is_zero() {
            return Err("link.initial_rtt and link.handshake_timeout must not be 0".into());
        }
        if self.clock_tolerance < Duration::from_secs(1) {
            return Err(format!("link.clock_tolerance is {:?}, but must be at least 1s", self.clock_tolerance));
        }
        Ok(())
    }
}

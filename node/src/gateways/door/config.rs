//! The keys of `[api]` in weft.toml.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Limits of the door for clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Connections served at once; one more is told so and closed.
    pub connections_max: u32,
    /// Streams (calls) open at once on one connection.
    pub streams_max: u32,
    /// Bytes that connections and their calls may take: windows granted to clients, headers, send buffers. When half
    /// is taken, new connections get small windows; when all is taken, connections and calls are refused.
    pub memory_max: ByteSize,
    /// Bytes that a client may send on one stream before it must wait for us, at most.
    pub stream_window: ByteSize,
    /// Bytes that a client may send on one connection before it must wait for us, at most: a connection begins with
    /// less and gets more when it needs it.
    pub connection_window: ByteSize,
    /// Bytes of one stream's answer that wait for the client.
    pub send_buffer_max: ByteSize,
    /// The largest HTTP/2 frame we take.
    pub frame_bytes_max: ByteSize,
    /// All headers of one request together, as HTTP/2 counts them: names, values and 32 bytes for each.
    pub header_bytes_max: ByteSize,
    /// The largest message we take: a batch with its request around it.
    pub message_bytes_max: ByteSize,
    /// A client that has not sent its first bytes, or all of the preface, after this is cut off.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// A connection without a call for this long is closed in order.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// A connection that has been quiet for this long is pinged.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// A ping not answered for this long closes the connection.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
    /// A connection on which bytes wait, and none goes out for this long, is cut off.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// A stream on which an answer waits, and whose client makes no room for this long, is reset.
    #[serde(with = "humantime_serde")]
    pub stream_write_timeout: Duration,
    /// Streams that one connection may reset in a burst; more end it.
    pub resets_burst: u32,
    /// And in each second after the burst.
    pub resets_per_second: u32,
    /// Streams reset by the client before we looked at them; more end the connection.
    pub resets_pending_max: u32,
    /// Streams that we reset because the client broke the protocol on them; more end the connection.
    pub resets_error_max: u32,
}

impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig {
            connections_max: 10_000,
            streams_max: 1_000,
            memory_max: ByteSize::gib(1),
            stream_window: ByteSize::mib(4),
            connection_window: ByteSize::mib(8),
            send_buffer_max: ByteSize::kib(64),
            frame_bytes_max: ByteSize::kib(128),
            header_bytes_max: ByteSize::kib(32),
            message_bytes_max: ByteSize::mib(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15 * 60),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            stream_write_timeout: Duration::from_secs(5 * 60),
            resets_burst: 1_000,
            resets_per_second: 200,
            resets_pending_max: 200,
            resets_error_max: 200,
        }
    }
}

impl ApiConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence that names the key and what would be right.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_sizes()?;
        for (key, value) in [
            ("connections_max", self.connections_max),
            ("streams_max", self.streams_max),
            ("resets_burst", self.resets_burst),
            ("resets_per_second", self.resets_per_second),
        ] {
            if value == 0 {
                return Err(format!("api.{key} is 0, but must be at least 1"));
            }
        }
        if self.connections_max > 1_000_000 {
            return Err(format!("api.connections_max is {}, but must be at most 1,000,000", self.connections_max));
        }
        for (key, value) in [
            ("handshake_timeout", self.handshake_timeout),
            ("idle_timeout", self.idle_timeout),
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
            ("write_timeout", self.write_timeout),
            ("stream_write_timeout", self.stream_write_timeout),
        ] {
            if value < Duration::from_millis(10) {
                return Err(format!("api.{key} is {value:?}, but must be at least 10 ms, for example 10s"));
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), String> {
        let window = 64 << 10..=1u64 << 30;
        for (key, value, range) in [
            ("memory_max", self.memory_max, 4 << 20..=1 << 50),
            ("stream_window", self.stream_window, window.clone()),
            ("connection_window", self.connection_window, window),
            ("send_buffer_max", self.send_buffer_max, 16 << 10..=16 << 20),
            // RFC 9113 §6.5.2.
            ("frame_bytes_max", self.frame_bytes_max, 16 << 10..=(16 << 20) - 1),
            ("header_bytes_max", self.header_bytes_max, 4 << 10..=512 << 10),
            ("message_bytes_max", self.message_bytes_max, (9 << 20)..=(1 << 30)),
        ] {
            if !range.contains(&value.as_u64()) {
                let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
                return Err(format!("api.{key} is {value}, but must be {least} to {most}"));
            }
        }
        if self.connection_window < self.stream_window {
            return Err("api.connection_window must be at least api.stream_window".into());
        }
        Ok(())
    }
}

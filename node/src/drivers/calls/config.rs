//! The `[calls]` table of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::wire::hops;

/// The most that `header_bytes_max` may be.
pub(super) const HEADER_BYTES_MOST: u64 = 128 << 10;

/// How calls of users' services are brought to their instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallsConfig {
    /// How long it may take to open a connection to an instance: its name, TCP, TLS, and the first answer over HTTP/2;
    /// and to wait for a link to its home node. Nothing else of a call has a limit of its own: its client sets the
    /// deadline.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// HTTP/2 connections to one instance.
    pub connections_max: usize,
    /// One more connection is opened when each has so many calls.
    pub connection_calls: usize,
    /// Calls that wait for room on the connections to one instance; more are refused. As many may wait at this node for
    /// any instance of their service.
    pub waiting_max: usize,
    /// A connection that had no call for this long is closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Bytes that an instance may send on one call before they have been passed on.
    pub stream_window: ByteSize,
    /// Bytes that an instance may send on one connection before they have been passed on.
    pub connection_window: ByteSize,
    /// The metadata of an instance's answer, and its trailers: bytes of each as HTTP/2 counts them (names, values and 32
    /// for each entry).
    pub header_bytes_max: ByteSize,
    /// PEM file of the certificates that are trusted to sign those of instances with TLS that bring none of their own;
    /// empty: none.
    pub tls_ca: PathBuf,
    /// How often a call is tried at most, on one instance after the other.
    pub attempts_max: u32,
    /// Of all calls of a service, how many may be repeats of calls that may have run, in percent. Only methods that are
    /// marked as idempotent are repeated so.
    pub retry_percent: u32,
    /// So many of these repeats per second are allowed in any case.
    pub retry_per_second_min: u32,
    /// How long a call waits, within its deadline, while no instance of its service can be reached that passes its
    /// checks: its home node has died and it is to get another, or this node has just started.
    #[serde(with = "humantime_serde")]
    pub instance_wait: Duration,
    /// How often one call may come back to Weft, from an instance that is a node or passes its metadata on with calls of
    /// its own; one more is refused as a loop.
    pub hops_max: u32,
    /// An instance that could not be reached is left out for so long, if there are others.
    #[serde(with = "humantime_serde")]
    pub instance_backoff: Duration,
}

impl Default for CallsConfig {
    fn default() -> Self {
        CallsConfig {
            connect_timeout: Duration::from_secs(1),
            connections_max: 4,
            connection_calls: 64,
            waiting_max: 4_096,
            idle_timeout: Duration::from_secs(300),
            stream_window: ByteSize::mib(1),
            connection_window: ByteSize::mib(8),
            header_bytes_max: ByteSize::kib(64),
            tls_ca: PathBuf::new(),
            attempts_max: 3,
            retry_percent: 20,
            retry_per_second_min: 10,
            instance_wait: Duration::from_secs(1),
            hops_max: 8,
            instance_backoff: Duration::from_millis(500),
        }
    }
}

impl CallsConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence that names the key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        for (key, value) in [
            ("connect_timeout", self.connect_timeout),
            ("idle_timeout", self.idle_timeout),
            ("instance_wait", self.instance_wait),
            ("instance_backoff", self.instance_backoff),
        ] {
            if value.is_zero() || value > Duration::from_secs(3_600) {
                return Err(format!("calls.{key} is {value:?}, but must be above 0 and at most 1 hour"));
            }
        }
        for (key, value) in [
            ("connections_max", self.connections_max),
            ("connection_calls", self.connection_calls),
            ("waiting_max", self.waiting_max),
            ("attempts_max", self.attempts_max as usize),
        ] {
            if !(1..=1_000_000).contains(&value) {
                return Err(format!("calls.{key} is {value}, but must be 1 to 1,000,000"));
            }
        }
        for (key, value) in [("retry_percent", self.retry_percent), ("retry_per_second_min", self.retry_per_second_min)]
        {
            if value > 10_000 {
                return Err(format!("calls.{key} is {value}, but must be 0 to 10,000"));
            }
        }
        if !(1..=hops::HOPS_MAX).contains(&self.hops_max) {
            return Err(format!("calls.hops_max is {}, but must be 1 to {}", self.hops_max, hops::HOPS_MAX));
        }
        for (key, value, least) in [
            ("stream_window", self.stream_window, ByteSize::kib(64)),
            ("connection_window", self.connection_window, self.stream_window),
        ] {
            if value < least || value > ByteSize::gib(1) {
                return Err(format!("calls.{key} is {value}, but must be {least} to 1 GiB"));
            }
        }
        if !((8 << 10)..=HEADER_BYTES_MOST).contains(&self.header_bytes_max.as_u64()) {
            return Err(format!("calls.header_bytes_max is {}, but must be 8 KiB to 128 KiB", self.header_bytes_max));
        }
        Ok(())
    }
}

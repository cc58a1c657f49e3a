//! What the door for clients counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::EncodeLabelValue;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Refusal {
    /// `api.connections_max`.
    Connections,
    /// `api.memory_max`.
    Memory,
    /// `api.handshake_timeout`.
    Handshake,
    /// Neither HTTP/2 nor HTTP/1.1.
    Protocol,
}

/// Why a connection was ended by the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Ending {
    /// `api.idle_timeout`.
    Idle,
    /// `api.keepalive_timeout`.
    Silent,
    /// `api.write_timeout`.
    Stalled,
    /// `api.resets_burst` and `api.resets_per_second`.
    Resets,
    /// It broke HTTP/2.
    Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: Refusal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    reason: Ending,
}

/// Metrics of the door. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    refused: Family<Refused, Counter>,
    ended: Family<Ended, Counter>,
    /// Requests of Weft's own services.
    pub requests: Counter,
    /// Calls of users' services.
    pub calls: Counter,
    /// Requests and calls that are open.
    pub open: Gauge,
    /// Requests and calls refused for lack of memory.
    pub requests_refused: Counter,
    /// Requests and calls refused for the size of their headers.
    pub headers_refused: Counter,
    /// Answers given up because their client took none of them.
    pub stalled: Counter,
    /// HTTP/1.1 connections.
    pub pages: Counter,
    /// Windows that could not grow for lack of memory.
    pub windows_short: Counter,
    /// Bytes taken from `api.memory_max`.
    pub memory_bytes: Gauge,
}

impl Metrics {
    pub(super) fn refused(&self, reason: Refusal) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    pub(super) fn ended(&self, reason: Ending) {
        self.ended.get_or_create(&Ended { reason }).inc();
    }

    #[cfg(test)]
    pub(super) fn refused_count(&self, reason: Refusal) -> u64 {
        self.refused.get_or_create(&Refused { reason }).get()
    }

    #[cfg(test)]
    pub(super) fn ended_count(&self, reason: Ending) -> u64 {
        self.ended.get_or_create(&Ended { reason }).get()
    }

    /// Makes them visible under `weft_api_*`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("weft_api_refused", "Connections not served, by reason", self.refused.clone());
        registry.register("weft_api_ended", "Connections ended by the node, by reason", self.ended.clone());
        registry.register("weft_api_requests", "Requests of Weft's own services", self.requests.clone());
        registry.register("weft_api_calls", "Calls of users' services", self.calls.clone());
        registry.register("weft_api_open", "Requests and calls open now", self.open.clone());
        registry.register(
            "weft_api_requests_refused",
            "Requests and calls refused for lack of memory (api.memory_max)",
            self.requests_refused.clone(),
        );
        registry.register(
            "weft_api_headers_refused",
            "Requests and calls whose metadata is larger than api.header_bytes_max",
            self.headers_refused.clone(),
        );
        registry.register(
            "weft_api_stalled",
            "Answers given up because their client took none of them (api.stream_write_timeout)",
            self.stalled.clone(),
        );
        registry.register("weft_api_pages", "HTTP/1.1 connections", self.pages.clone());
        registry.register(
            "weft_api_windows_short",
            "Windows that could not grow for lack of memory",
            self.windows_short.clone(),
        );
        registry.register("weft_api_memory_bytes", "Bytes taken from api.memory_max", self.memory_bytes.clone());
    }
}

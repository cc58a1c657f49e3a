//! What the links count.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The peer's node name: as many values as the cluster has nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PeerLabel {
    pub(super) peer: String,
}

pub(super) type PerPeer = Family<PeerLabel, Counter>;

/// Counters of all links.
#[derive(Clone, Default)]
pub(super) struct Metrics {
    pub(super) rtt_seconds: Family<PeerLabel, Gauge<f64, AtomicU64>>,
    /// The peer's wall clock, seen from this node's.
    pub(super) clock_ahead_seconds: Family<PeerLabel, Gauge<f64, AtomicU64>>,
    pub(super) sent_bytes: PerPeer,
    pub(super) received_bytes: PerPeer,
    pub(super) lost_packets: PerPeer,
    pub(super) connects: PerPeer,
    pub(super) verdict: Family<PeerLabel, Gauge<i64, AtomicI64>>,
    pub(super) deaths: PerPeer,
    pub(super) suspicions: PerPeer,
    pub(super) requests: PerPeer,
    pub(super) queue_bytes: Family<PeerLabel, Gauge>,
    pub(super) requests_not_sent: PerPeer,
    pub(super) requests_lost: PerPeer,
    pub(super) requests_late: PerPeer,
    pub(super) streams_broken: PerPeer,
    /// Log times for which this node's wall clock was not good enough.
    pub(super) clock_refused: Counter,
    pub(super) refused: Counter,
    pub(super) handshakes_over_limit: Counter,
    pub(super) handshakes_failed: Counter,
    pub(super) dials_failed: Counter,
    pub(super) gossip_dropped: Counter,
    pub(super) tripwires_refused: Counter,
    pub(super) certificate_days: Gauge<f64, AtomicU64>,
    pub(super) socket_receive_bytes: Gauge,
    pub(super) socket_send_bytes: Gauge,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("weft_link_rtt_seconds", "Round trip of the link", self.rtt_seconds.clone());
        let ahead = &self.clock_ahead_seconds;
        registry.register("weft_link_clock_ahead_seconds", "The peer's wall clock minus this node's", ahead.clone());
        let far = &self.clock_refused;
        registry.register("weft_link_clock_refused", "Log times taken from the voters' median", far.clone());
        let days = &self.certificate_days;
        registry.register("weft_link_certificate_days_left", "Until this node's certificate expires", days.clone());
        registry.register("weft_link_sent_bytes", "UDP payload sent", self.sent_bytes.clone());
        registry.register("weft_link_received_bytes", "UDP payload received", self.received_bytes.clone());
        registry.register("weft_link_lost_packets", "Packets that QUIC sent again", self.lost_packets.clone());
        registry.register("weft_link_connects", "Links that came up", self.connects.clone());
        registry.register("weft_link_verdict", "0 up, 1 suspect, 2 dead", self.verdict.clone());
        registry.register("weft_link_deaths", "Verdicts of dead", self.deaths.clone());
        registry.register("weft_link_suspicions", "Verdicts of suspect", self.suspicions.clone());
        registry.register("weft_link_requests", "Requests sent", self.requests.clone());
        let queued = self.queue_bytes.clone();
        registry.register("weft_link_queue_bytes", "Bytes of requests that wait to be sent", queued);
        let (not_sent, lost, late) = (&self.requests_not_sent, &self.requests_lost, &self.requests_late);
        registry.register("weft_link_requests_not_sent", "Requests of which no byte left", not_sent.clone());
        registry.register("weft_link_requests_lost", "Requests whose link was lost", lost.clone());
        registry.register("weft_link_requests_late", "Requests not answered in time", late.clone());
        let broken = &self.streams_broken;
        registry.register(
            "weft_link_streams_broken",
            "Streams closed because the peer broke the rules",
            broken.clone(),
        );
        registry.register("weft_link_refused", "Peers refused, and refusals by peers", self.refused.clone());
        let over = &self.handshakes_over_limit;
        registry.register("weft_link_handshakes_over_limit", "Handshakes refused at link.handshakes_max", over.clone());
        let failed = &self.handshakes_failed;
        registry.register("weft_link_handshakes_failed", "Handshakes that came in and failed", failed.clone());
        registry.register("weft_link_dials_failed", "Dials that failed", self.dials_failed.clone());
        registry.register("weft_link_gossip_dropped", "SWIM packets dropped", self.gossip_dropped.clone());
        registry.register("weft_link_tripwires_refused", "Tripwires refused", self.tripwires_refused.clone());
        let (receive, send) = (&self.socket_receive_bytes, &self.socket_send_bytes);
        registry.register("weft_link_socket_receive_bytes", "UDP receive buffer granted", receive.clone());
        registry.register("weft_link_socket_send_bytes", "UDP send buffer granted", send.clone());
    }

    /// Forgets a peer that will not come back.
    pub(super) fn forget(&self, peer: &str) {
        let label = PeerLabel { peer: peer.to_owned() };
        self.rtt_seconds.remove(&label);
        self.clock_ahead_seconds.remove(&label);
        self.verdict.remove(&label);
        self.queue_bytes.remove(&label);
        for family in [
            &self.sent_bytes,
            &self.received_bytes,
            &self.lost_packets,
            &self.connects,
            &self.deaths,
            &self.suspicions,
            &self.requests,
            &self.requests_not_sent,
            &self.requests_lost,
            &self.requests_late,
            &self.streams_broken,
        ] {
            family.remove(&label);
        }
    }
}

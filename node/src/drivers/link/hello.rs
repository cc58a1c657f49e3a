//! The first message on a link, both ways: who is there, and whether the two fit together.

use std::net::SocketAddr;

use quinn::Connection;
use rustls::pki_types::CertificateDer;
use weft_cluster::ids::{Generation, NodeId};
use weft_proto::internal::v1::Hello;

use super::{Me, Peer};
use crate::drivers::pki;

/// The oldest link protocol that this node speaks.
pub(super) const PROTOCOL_MIN: u32 = 1;
/// The newest link protocol that this node speaks.
pub(super) const PROTOCOL_MAX: u32 = 1;
/// The largest Hello.
pub(super) const HELLO_BYTES_MAX: usize = 4_096;
/// The longest text in a Hello.
const TEXT_BYTES_MAX: usize = 256;

/// This node's Hello.
pub(super) fn mine(me: &Me, cluster: u64) -> Hello {
    Hello {
        cluster_id: cluster,
        node: me.id.0,
        name: me.name.clone(),
        zone: me.zone.clone(),
        generation: me.generation.0,
        version: me.version.clone(),
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        level_max: me.level_max,
        client_address: me.client_address.clone(),
        peer_address: me.peer_address.to_string(),
        wall_ms: 0,
        start: me.start,
    }
}

/// The node name in the certificate that the peer has shown.
pub(super) fn certified_name(connection: &Connection) -> Option<String> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    pki::name_of(chain.first()?)
}

/// Whether this node has dialled itself: a seed may be a name that leads to any node.
pub(super) fn is_itself(me: &Me, hello: &Hello) -> bool {
    hello.node == me.id.0 && hello.name == me.name && hello.generation == me.generation.0 && hello.start == me.start
}

/// Checks a peer's Hello against its certificate and this node.
///
/// # Errors
/// The reason to refuse it, as a sentence about the peer.
pub(super) fn check(
    me: &Me,
    cluster: u64,
    certified: Option<&str>,
    from: SocketAddr,
    hello: &Hello,
) -> Result<Peer, String> {
    if hello.protocol_max < PROTOCOL_MIN || hello.protocol_min > PROTOCOL_MAX {
        return Err(format!(
            "it speaks link protocols {} to {}, this node {PROTOCOL_MIN} to {PROTOCOL_MAX}",
            hello.protocol_min, hello.protocol_max
        ));
    }
    let texts = [&hello.name, &hello.zone, &hello.version, &hello.client_address, &hello.peer_address];
    if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        return Err(format!("its Hello has a text over {TEXT_BYTES_MAX} bytes"));
    }
    if certified != Some(&hello.name) {
        return Err(format!(
            "it calls itself `{}`, but its certificate names `{}`",
            hello.name,
            certified.unwrap_or("nobody")
        ));
    }
    if hello.node == 0 {
        return Err("its node id is 0".into());
    }
    if hello.node == me.id.0 {
        return Err(if is_itself(me, hello) {
            "it is this node itself".into()
        } else {
            "it has this node's own id: two nodes run on copies of one data folder".into()
        });
    }
    if hello.cluster_id != 0 && cluster != 0 && hello.cluster_id != cluster {
        return Err(format!("it is part of cluster {:016x}, this node of {cluster:016x}", hello.cluster_id));
    }
    let mut peer_address: SocketAddr =
        hello.peer_address.parse().map_err(|_| format!("its peer address `{}` is no address", hello.peer_address))?;
    if peer_address.ip().is_unspecified() {
        peer_address.set_ip(from.ip());
    }
    Ok(Peer {
        id: NodeId(hello.node),
        name: hello.name.clone(),
        zone: hello.zone.clone(),
        generation: Generation(hello.generation),
        start: hello.start,
        client_address: hello.client_address.clone(),
        peer_address,
    })
}

//! Where nodes themselves answer: no instance can be there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::view::{ClusterView, MemberState};

/// The node's door that an instance's address leads to, if one is known to be there: calls sent there would come back.
///
/// `own`: where this node listens. `found`: what the address's name resolves to. `None` says little: a node may be
/// reached by addresses that nobody here knows.
pub fn door_at(view: &ClusterView, own: &[SocketAddr], address: &str, found: &[SocketAddr]) -> Option<String> {
    let found: Vec<SocketAddr> = found.iter().map(meant).collect();
    let others = view.members.values().filter(|member| member.state != MemberState::Left);
    let told = others.flat_map(|member| {
        let doors = [("clients", &member.client_address), ("other nodes", &member.peer_address)];
        doors.map(|(whom, door)| (whom, &member.name, door))
    });
    let is_at = |door: &str| door == address || door.parse().is_ok_and(|door| found.contains(&meant(&door)));
    let other = told.into_iter().find(|(_, _, door)| is_at(door));
    let other = other.map(|(whom, name, _)| format!("node {name}, for {whom}"));
    other.or_else(|| {
        let listens = |at: &SocketAddr| own.iter().any(|own| reaches(at, own));
        found.iter().any(listens).then(|| format!("this node, {}", view.name_of(view.me)))
    })
}

/// Whether connections made on this machine to `at` come to who listens on `own`.
fn reaches(at: &SocketAddr, own: &SocketAddr) -> bool {
    let all = own.ip().is_unspecified() && at.ip().is_loopback();
    at.port() == own.port() && (all || at.ip() == meant(own).ip())
}

/// The address in its plain form: that of no interface is this machine's own.
fn meant(at: &SocketAddr) -> SocketAddr {
    let ip = match at.ip().to_canonical() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, at.port())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::ids::{Generation, NodeId};
    use crate::view::Member;

    fn view() -> ClusterView {
        let member = |id, client: &str, state| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: String::new(),
            generation: Generation(1),
            client_address: client.into(),
            peer_address: format!("10.0.0.{id}:9080"),
            version: String::new(),
            disk_full: false,
            replicas_fenced: 0,
            state,
        };
        let members = [
            member(1, "10.0.0.1:9090", MemberState::Alive),
            member(2, "weft.example:9090", MemberState::Down),
            member(3, "10.0.0.3:9090", MemberState::Left),
        ];
        ClusterView {
            me: NodeId(1),
            registry: Arc::default(),
            registry_leader: None,
            members: BTreeMap::from(members.map(|member| (member.id, member))),
            owners: BTreeMap::new(),
            cut_off: Default::default(),
        }
    }

    #[test]
    fn an_address_of_a_node_is_told() {
        let own = ["0.0.0.0:9090", "127.0.0.1:9091", "10.0.0.1:9080"].map(|own| own.parse().expect("an address"));
        let table = [
            ("10.0.0.1:9090", "10.0.0.1:9090", "node n1, for clients"),
            ("shop.example:9090", "10.0.0.1:9090", "node n1, for clients"),
            ("weft.example:9090", "10.9.9.9:9090", "node n2, for clients"),
            ("10.0.0.2:9080", "10.0.0.2:9080", "node n2, for other nodes"),
            ("[::ffff:10.0.0.1]:9090", "[::ffff:10.0.0.1]:9090", "node n1, for clients"),
            ("localhost:9090", "127.0.0.1:9090", "this node, n1"),
            ("[::1]:9090", "[::1]:9090", "this node, n1"),
            ("0.0.0.0:9091", "0.0.0.0:9091", "this node, n1"),
            ("10.0.0.3:9090", "10.0.0.3:9090", ""),
            ("10.0.0.1:8080", "10.0.0.1:8080", ""),
            ("127.0.0.1:9092", "127.0.0.1:9092", ""),
            ("10.0.0.1:9091", "10.0.0.1:9091", ""),
        ];
        for (address, found, wanted) in table {
            let told = door_at(&view(), &own, address, &[found.parse().expect("an address")]);
            assert_eq!(told.unwrap_or_default(), wanted, "{address}");
        }
        assert_eq!(door_at(&view(), &own, "nowhere:9090", &[]), None);
    }
}

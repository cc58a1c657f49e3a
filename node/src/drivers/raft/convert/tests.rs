use super::*;

fn at(term: u64, index: u64) -> LogId {
    log_id(LogPosition { term, index })
}

fn vote() -> Vote {
    Vote { leader_id: LeaderId { term: 7, voted_for: 3 }, committed: true }
}

fn joint() -> Membership {
    let places = (1..=4).map(|id| (id, Place { node: NodeId(id * 100) })).collect::<BTreeMap<_, _>>();
    Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2, 4])], places).unwrap()
}

fn request() -> AppendEntriesRequest<TypeConfig> {
    let payloads = [
        EntryPayload::Normal(Command::wrap(b"small")),
        EntryPayload::Blank,
        EntryPayload::Normal(Command::wrap(&vec![9; 5000])),
        EntryPayload::Membership(joint()),
        EntryPayload::Normal(Command::wrap(b"")),
    ];
    let entries = payloads.into_iter().enumerate();
    AppendEntriesRequest {
        vote: vote(),
        prev_log_id: Some(at(6, 41)),
        entries: entries.map(|(i, payload)| Entry { log_id: at(7, 42 + i as u64), payload }).collect(),
        leader_commit: Some(at(6, 40)),
    }
}

fn envelope(acked: Option<u64>) -> wire::RaftRequest {
    wire::RaftRequest { group: 5, from: 3, to: 4, request: None, acked }
}

fn concat(parts: &Parts) -> Bytes {
    parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>().into()
}

#[test]
fn an_append_request_comes_back_and_its_hand_made_frame_is_plain_protobuf() {
    let sent = request();
    let parts = append_to_parts(&envelope(None), &sent);
    assert!(parts.len() > 1, "the large payload is a part of its own");
    let bytes = concat(&parts);
    let decoded = wire::RaftRequest::decode(bytes.clone()).unwrap();
    assert!(decoded.encode_to_vec() == bytes, "the same bytes as prost writes");
    assert_eq!((decoded.group, decoded.from, decoded.to), (5, 3, 4));
    let Some(wire::raft_request::Request::Append(append)) = decoded.request else { panic!("an append") };
    let got = append_from_wire(append).unwrap();
    assert_eq!(got.entries, sent.entries);
    assert_eq!((got.vote, got.prev_log_id, got.leader_commit), (sent.vote, sent.prev_log_id, sent.leader_commit));
}

#[test]
fn a_first_append_has_neither_prev_nor_commit() {
    let sent = AppendEntriesRequest { prev_log_id: None, leader_commit: None, entries: vec![], vote: vote() };
    let decoded = wire::RaftRequest::decode(concat(&append_to_parts(&envelope(Some(41)), &sent))).unwrap();
    assert_eq!(decoded.acked, Some(41));
    let Some(wire::raft_request::Request::Append(append)) = decoded.request else { panic!("an append") };
    let got = append_from_wire(append).unwrap();
    assert_eq!((got.prev_log_id, got.leader_commit, got.entries.len()), (None, None, 0));
}

#[test]
fn gaps_and_missing_fields_are_refused() {
    let mut parts = wire::RaftRequest::decode(concat(&append_to_parts(&envelope(None), &request()))).unwrap();
    let Some(wire::raft_request::Request::Append(append)) = &mut parts.request else { panic!("an append") };
    let mut gap = append.clone();
    gap.entries.remove(1);
    assert!(append_from_wire(gap).is_err());
    append.vote = None;
    assert!(append_from_wire(append.clone()).is_err());
    assert!(payload_from_bytes(&Bytes::from_static(&[0xff, 0xff])).is_err());
    let no_place =
        wire::Membership { configs: vec![wire::VoterSet { replica_ids: vec![1] }], replicas: BTreeMap::new() };
    assert!(membership_from_wire(&no_place).is_err());
}

#[test]
fn journal_entries_come_back() {
    for entry in request().entries {
        let stored = entry_to_log(&entry);
        assert_eq!(entry_from_log(&stored).unwrap(), entry);
    }
    let command = Command::wrap(b"body");
    assert_eq!(command.body(), Bytes::from_static(b"body"));
    assert!(Command::parse(&Bytes::from_static(&[0x0a, 5, 1])).is_none(), "a torn command is not one");
}

#[test]
fn responses_votes_and_metadata_come_back() {
    let responses = [
        AppendEntriesResponse::Success,
        AppendEntriesResponse::PartialSuccess(Some(at(1, 2))),
        AppendEntriesResponse::PartialSuccess(None),
        AppendEntriesResponse::Conflict,
        AppendEntriesResponse::HigherVote(vote()),
    ];
    for response in responses {
        assert_eq!(appended_from_wire(appended_to_wire(&response)).unwrap(), response);
    }
    let mut ask = VoteRequest::new(vote(), Some(at(3, 4)));
    ask.leadership_transfer = true;
    assert_eq!(vote_request_from_wire(vote_request_to_wire(&ask)).unwrap(), ask);
    let answer = VoteResponse::new(vote(), None, true);
    assert_eq!(voted_from_wire(voted_to_wire(&answer)).unwrap(), answer);
    let hand_over = TransferLeaderRequest::new(vote(), 2, Some(at(7, 9)));
    assert_eq!(transfer_from_wire(transfer_to_wire(&hand_over)).unwrap(), hand_over);
    let meta =
        SnapshotMeta { last_log_id: Some(at(5, 6)), last_membership: StoredMembership::new(Some(at(4, 4)), joint()) };
    assert_eq!(meta_from_wire(meta_to_wire(&meta)).unwrap(), meta);
    assert_eq!(vote_from_stored(&vote_to_stored(&vote())), Some(vote()));
    assert_eq!(stored_from_bytes(&stored_to_bytes(&meta.last_membership)).unwrap(), meta.last_membership);
}

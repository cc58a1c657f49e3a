//! Opening a subscription: the checks, the group, where an observer begins; then the loop between the client and
//! the shards.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use weft_cluster::caller::Caller;
use weft_cluster::ids::{GroupId, PartitionId, TopicId};
use weft_proto::internal::v1::{
    CreateGroup, GroupRecord, PartitionStat, TopicRecord, registry_command, registry_outcome,
};
use weft_proto::v1::{
    Error, ErrorCode, StartAt, SubscribeOpen, SubscribeOpened, SubscribeRequest, SubscribeResponse, Topic,
    subscribe_request, subscribe_response,
};

use super::credit::Split;
use super::subscription::Subscription;
use super::{Events, first_frame};
use crate::drivers::forward::DeliverySpec;
use crate::wire::{self, checks};

/// Credit of a subscriber that names none.
const GROUP_CREDIT_DEFAULT: u64 = 256;
const OBSERVER_CREDIT_DEFAULT: u64 = 1 << 20;
/// The most credit that counts: events of a group, bytes of an observer.
const GROUP_CREDIT_MAX: u64 = 10_000;
const OBSERVER_CREDIT_MAX: u64 = 64 << 20;
/// What each shard may send an observer ahead, at least and at most: what an observer does not read waits here and on the
/// links, whose window all share.
const OBSERVER_SHARE_MIN: u64 = 256 << 10;
const OBSERVER_SHARE_MAX: u64 = 1 << 20;
/// How long a new group that begins now is waited for on all its shards.
const GROUP_PATIENCE: Duration = Duration::from_secs(3);
/// How long the acks that a consumer sent before it left are waited for.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
const STATS_PATIENCE: Duration = Duration::from_secs(1);
const STATS_PAUSE: Duration = Duration::from_millis(50);

type Responses = Sender<Result<SubscribeResponse, Status>>;

/// Serves one subscription until either side ends it.
pub(super) async fn serve(
    events: &Events,
    caller: Caller,
    mut requests: Streaming<SubscribeRequest>,
    responses: &Responses,
) -> Result<(), Status> {
    let Some(first) = first_frame(&mut requests).await? else { return Ok(()) };
    let Some(subscribe_request::Frame::Open(open)) = first.frame else {
        let message = "the first frame of a subscription is `open`";
        return Err(wire::status(wire::error(ErrorCode::InvalidArgument, message)));
    };
    let (mut subscription, opened) = open_subscription(events, caller, open).await.map_err(wire::status)?;
    let name = opened.topic.as_ref().map(|topic| topic.name.clone()).unwrap_or_default();
    let mut opened = Some(opened);
    let opened_by = Instant::now() + GROUP_PATIENCE;
    let mut reading = true;
    let mut leaving: Option<Leaving> = None;
    loop {
        if opened.is_some() && (subscription.settled() || leaving.is_some() || Instant::now() >= opened_by) {
            let frame = opened.take().map(subscribe_response::Frame::Opened);
            subscription.outbox.push_front(SubscribeResponse { frame });
        }
        if opened.is_none() {
            subscription.fill();
            if subscription.is_over() && subscription.outbox.is_empty() {
                return leaving.map_or(Ok(()), |leaving| leaving.outcome);
            }
        }
        let leave_by = leaving.as_ref().map_or(opened_by, |leaving| leaving.by);
        let may_send = opened.is_none() && !subscription.outbox.is_empty();
        tokio::select! {
            biased;
            permit = responses.reserve(), if may_send => {
                let Ok(permit) = permit else { return Ok(()) };
                let response = subscription.next_response().expect("it is not empty");
                permit.send(Ok(response));
            }
            message = requests.message(), if reading => match message? {
                Some(message) => subscription.requested(message).map_err(wire::status)?,
                None => {
                    reading = false;
                    if subscription.leave() {
                        leaving = Some(Leaving::new(Ok(())));
                    }
                }
            },
            frame = subscription.deliveries.next(), if subscription.takes() => match frame {
                Some((shard, frame)) => subscription.delivered(shard, frame),
                None => subscription.end(),
            },
            () = responses.closed() => return Ok(()),
            () = events.inner.stop.cancelled(), if leaving.is_none() => {
                if !subscription.leave() {
                    return Err(events.leaving());
                }
                (reading, leaving) = (false, Some(Leaving::new(Err(events.leaving()))));
            }
            () = tokio::time::sleep_until(leave_by), if leaving.is_some() => {
                return leaving.map_or(Ok(()), |leaving| leaving.outcome);
            }
            () = tokio::time::sleep_until(opened_by), if opened.is_some() => {}
            // The end of the topic, or of the group, is the subscription's.
            error = gone(events, &name, subscription.topic, subscription.group) => return Err(wire::status(error)),
        }
    }
}

/// A consumer on its way out of its group.
struct Leaving {
    /// By when it is over, whatever is not answered then.
    by: Instant,
    /// What the client's stream ends with.
    outcome: Result<(), Status>,
}

impl Leaving {
    fn new(outcome: Result<(), Status>) -> Leaving {
        Leaving { by: Instant::now() + LEAVE_PATIENCE, outcome }
    }
}

/// Resolves when the topic or the group is no longer in the registry.
async fn gone(events: &Events, name: &str, topic: TopicId, group: Option<GroupId>) -> Error {
    let mut view = events.inner.registry.view();
    loop {
        {
            let registry = &view.borrow_and_update().registry;
            if registry.topic_gone(topic) {
                return wire::error(ErrorCode::UnknownTopic, format!("topic {name} was deleted"));
            }
            if group.is_some_and(|group| registry.group_gone(group)) {
                return wire::error(ErrorCode::UnknownGroup, "the group was deleted");
            }
        }
        if view.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn open_subscription(
    events: &Events,
    caller: Caller,
    open: SubscribeOpen,
) -> Result<(Subscription, SubscribeOpened), Error> {
    let topic = events.topic(&open.namespace, &open.topic).await?;
    let consumer = events.inner.host.random_id();
    let metrics = events.inner.metrics.clone();
    if open.group.is_empty() {
        return observe(events, caller, open, topic, consumer, metrics).await;
    }
    let (group, new) = join(events, &caller, &open, &topic).await?;
    let credit = if open.credit == 0 { GROUP_CREDIT_DEFAULT } else { open.credit.min(GROUP_CREDIT_MAX) };
    let partitions: BTreeMap<u32, u64> = (0..topic.partitions).map(|index| (index, 0)).collect();
    let spec = spec(events, caller, &topic, partitions, Some(GroupId(group.id)), consumer, |shards| {
        Split::share(shards, credit)
    });
    let deliveries = events.inner.forward.deliver(&spec);
    let mut subscription = Subscription::new(deliveries, &spec, credit, metrics);
    if new && group.start == StartAt::Now as u32 {
        // "Now" is when every shard has the group: until then an event could slip by.
        subscription.await_epochs();
    }
    Ok((subscription, SubscribeOpened { topic: Some(public(topic)), ack_deadline_ms: group.ack_deadline_ms }))
}

/// The group, and whether this call has created it.
async fn join(
    events: &Events,
    caller: &Caller,
    open: &SubscribeOpen,
    topic: &TopicRecord,
) -> Result<(GroupRecord, bool), Error> {
    checks::name("group", &open.group)?;
    let start = checks::group_start(open.start)? as u32;
    let ack_deadline_ms = checks::ack_deadline_ms(open.ack_deadline_ms)?;
    if open.partition.is_some() || open.until_end {
        let message = "partition and until_end are for observers; a group gets all partitions";
        return Err(wire::error(ErrorCode::InvalidArgument, message));
    }
    if let Some(group) = events.inner.forward.view().registry.group(TopicId(topic.id), &open.group) {
        return Ok((group.clone(), false));
    }
    let name = open.group.clone();
    let command = CreateGroup { topic: topic.id, name, start, ack_deadline_ms };
    match events.propose(caller, registry_command::Command::CreateGroup(command)).await? {
        registry_outcome::Outcome::Group(group) => Ok((group, true)),
        _ => Err(wire::error(ErrorCode::Internal, "the registry's outcome is not a group")),
    }
}

async fn observe(
    events: &Events,
    caller: Caller,
    open: SubscribeOpen,
    topic: TopicRecord,
    consumer: u64,
    metrics: super::Metrics,
) -> Result<(Subscription, SubscribeOpened), Error> {
    let partitions = observed(&open, &topic)?;
    let start = StartAt::try_from(open.start)
        .map_err(|_| wire::error(ErrorCode::InvalidArgument, format!("start is {}; use 0 to 3", open.start)))?;
    let stats = stats(events, &caller, &partitions).await?;
    let begin = |stat: &PartitionStat| match start {
        StartAt::Unspecified | StartAt::Now => stat.end_offset,
        StartAt::Earliest => stat.start_offset,
        StartAt::Offset => open.offset,
    };
    let offsets: BTreeMap<u32, u64> = stats.iter().map(|stat| (stat.partition, begin(stat))).collect();
    if let Some(stat) = stats.iter().find(|stat| offsets[&stat.partition] < stat.start_offset) {
        let message = format!("offset {} is trimmed; the first held is {}", open.offset, stat.start_offset);
        return Err(wire::error(ErrorCode::OffsetTrimmed, message));
    }
    let credit = if open.credit == 0 { OBSERVER_CREDIT_DEFAULT } else { open.credit.min(OBSERVER_CREDIT_MAX) };
    let share = |shards| Split::share(shards, credit).clamp(OBSERVER_SHARE_MIN, OBSERVER_SHARE_MAX);
    let begins = offsets.clone();
    let spec = spec(events, caller, &topic, offsets, None, consumer, share);
    let mut subscription = Subscription::new(events.inner.forward.deliver(&spec), &spec, credit, metrics);
    if open.until_end {
        let ends = stats.iter().map(|stat| (stat.partition, stat.end_offset));
        subscription.end_at(ends.filter(|(partition, end)| begins[partition] < *end).collect());
    }
    Ok((subscription, SubscribeOpened { topic: Some(public(topic)), ack_deadline_ms: 0 }))
}

fn observed(open: &SubscribeOpen, topic: &TopicRecord) -> Result<Vec<PartitionId>, Error> {
    let id = |index| PartitionId { topic: TopicId(topic.id), index };
    match open.partition {
        Some(index) if index >= topic.partitions => {
            let message = format!("the topic has {} partitions, there is no {index}", topic.partitions);
            Err(wire::error(ErrorCode::UnknownPartition, message))
        }
        Some(index) => Ok(vec![id(index)]),
        None if open.start() == StartAt::Offset && topic.partitions > 1 => {
            let message = "an offset is of one partition: name the partition";
            Err(wire::error(ErrorCode::InvalidArgument, message))
        }
        None => Ok((0..topic.partitions).map(id).collect()),
    }
}

/// The offsets of all these partitions, from their owners, waiting for those that are not known yet.
async fn stats(events: &Events, caller: &Caller, partitions: &[PartitionId]) -> Result<Vec<PartitionStat>, Error> {
    let until = Instant::now() + events.inner.config.open_patience;
    let mut found = BTreeMap::new();
    loop {
        let missing: Vec<_> = partitions.iter().filter(|id| !found.contains_key(&id.index)).copied().collect();
        if missing.is_empty() {
            return Ok(found.into_values().collect());
        }
        if Instant::now() >= until {
            let message = format!("the owner of partition {} did not answer", missing[0].index);
            return Err(wire::error(ErrorCode::NoOwner, message));
        }
        let stats = events.inner.forward.stats(caller, &missing, STATS_PATIENCE).await;
        if stats.len() < missing.len() {
            tokio::time::sleep(STATS_PAUSE).await;
        }
        found.extend(stats.into_iter().map(|stat| (stat.partition, stat)));
    }
}

fn spec(
    events: &Events,
    caller: Caller,
    topic: &TopicRecord,
    partitions: BTreeMap<u32, u64>,
    group: Option<GroupId>,
    consumer: u64,
    credit: impl FnOnce(usize) -> u64,
) -> DeliverySpec {
    let view = events.inner.forward.view();
    let topic = TopicId(topic.id);
    let shards: std::collections::BTreeSet<_> =
        partitions.keys().filter_map(|index| view.shard_of(PartitionId { topic, index: *index })).collect();
    DeliverySpec { caller, topic, partitions, group, consumer, credit: credit(shards.len()) }
}

fn public(topic: TopicRecord) -> Topic {
    Topic {
        id: topic.id,
        name: topic.name,
        namespace: topic.namespace,
        partitions: topic.partitions,
        event_bytes_max: topic.event_bytes_max,
        pool: topic.pool,
        created_ms: topic.created_ms,
    }
}

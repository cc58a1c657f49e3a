//! The checks of what clients send. Each answers with an error that says what would be right.

mod services;

use weft_batch::{ATTRIBUTE_BYTES_MAX, HEADER_NAME_BYTES_MAX, HEADERS_BYTES_MAX, HEADERS_MAX, KEY_BYTES_MAX};
use weft_cluster::registry::{limits, names};
use weft_proto::v1::{Ack, CreateTopicRequest, Error, ErrorCode, Event, StartAt};

pub use services::{check_kind, configure_service, deregister_instance, register_instance, service};

use super::{error, over};

/// Events of one publish request.
pub const PUBLISH_EVENTS_MAX: usize = 1_000;

fn invalid(message: impl Into<String>) -> Error {
    error(ErrorCode::InvalidArgument, message)
}

/// A topic's or namespace's or group's name. An empty namespace is allowed: it stands for "default".
pub fn name(what: &str, name: &str) -> Result<(), Error> {
    names::check(what, name).map_err(invalid)
}

/// A topic reference of a request: both names.
pub fn topic(namespace: &str, topic: &str) -> Result<(), Error> {
    name("topic", topic)?;
    name("namespace", names::namespace_or_default(namespace))
}

/// A request to create a topic, with the defaults filled in.
pub fn create_topic(request: CreateTopicRequest) -> Result<CreateTopicRequest, Error> {
    topic(&request.namespace, &request.name)?;
    let namespace = names::namespace_or_default(&request.namespace).to_string();
    let or_default = |value, default| if value == 0 { default } else { value };
    let partitions = or_default(request.partitions, limits::PARTITIONS_DEFAULT);
    let event_bytes_max = or_default(request.event_bytes_max, limits::EVENT_BYTES_DEFAULT);
    names::check_topic_sizes(partitions, event_bytes_max).map_err(invalid)?;
    Ok(CreateTopicRequest { namespace, partitions, event_bytes_max, ..request })
}

/// The number of events of one publish request: 1..=`PUBLISH_EVENTS_MAX`.
pub fn events_count(count: usize) -> Result<(), Error> {
    match count {
        0 => Err(invalid("the request holds no event; send 1 to 1000")),
        1..=PUBLISH_EVENTS_MAX => Ok(()),
        _ => {
            let message = format!("the request holds {count} events; send 1 to {PUBLISH_EVENTS_MAX}");
            Err(over(ErrorCode::TooLarge, "publish_events_max", PUBLISH_EVENTS_MAX as u64, message))
        }
    }
}

/// One event of a client, against its topic's `event_bytes_max` (bytes of the encoded `Event`).
pub fn event(event: &Event, event_bytes_max: u32) -> Result<(), Error> {
    let bytes = prost::Message::encoded_len(event);
    if bytes > event_bytes_max as usize {
        let message = format!("the event has {bytes} bytes encoded; the topic's event_bytes_max is {event_bytes_max}");
        return Err(over(ErrorCode::TooLarge, "event_bytes_max", u64::from(event_bytes_max), message));
    }
    if event.key.len() > KEY_BYTES_MAX {
        return Err(too_long("key", event.key.len(), KEY_BYTES_MAX));
    }
    let attributes = [
        ("id", &event.id),
        ("source", &event.source),
        ("type", &event.r#type),
        ("subject", &event.subject),
        ("datacontenttype", &event.datacontenttype),
    ];
    for (what, value) in attributes {
        if value.len() > ATTRIBUTE_BYTES_MAX {
            return Err(too_long(what, value.len(), ATTRIBUTE_BYTES_MAX));
        }
    }
    if event.time_ms < 0 {
        return Err(invalid(format!("time_ms is {}; use milliseconds since 1970, or 0 for now", event.time_ms)));
    }
    headers(event)
}

fn too_long(what: &str, bytes: usize, bytes_max: usize) -> Error {
    let message = format!("the event's {what} has {bytes} bytes; at most {bytes_max} are allowed");
    over(ErrorCode::TooLarge, format!("{}_bytes_max", what.replace(' ', "_")), bytes_max as u64, message)
}

fn headers(event: &Event) -> Result<(), Error> {
    let count = event.headers.len();
    if count > HEADERS_MAX {
        let message = format!("the event has {count} headers; at most {HEADERS_MAX} are allowed");
        return Err(over(ErrorCode::TooLarge, "headers_max", HEADERS_MAX as u64, message));
    }
    for name in event.headers.keys() {
        if name.is_empty() {
            return Err(invalid("an event's header has an empty name; use 1 to 128 bytes"));
        }
        if name.len() > HEADER_NAME_BYTES_MAX {
            return Err(too_long("header name", name.len(), HEADER_NAME_BYTES_MAX));
        }
    }
    let bytes: usize = event.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > HEADERS_BYTES_MAX {
        let message =
            format!("the event's headers have {bytes} bytes together; at most {HEADERS_BYTES_MAX} are allowed");
        return Err(over(ErrorCode::TooLarge, "headers_bytes_max", HEADERS_BYTES_MAX as u64, message));
    }
    Ok(())
}

/// The ack level of a request: COMMITTED unless it says otherwise.
pub fn ack(ack: i32) -> Result<Ack, Error> {
    match Ack::try_from(ack) {
        Ok(Ack::Unspecified | Ack::Committed) => Ok(Ack::Committed),
        Ok(Ack::Accepted) => Ok(Ack::Accepted),
        Err(_) => Err(invalid(format!("ack is {ack}; use 1 (accepted) or 2 (committed)"))),
    }
}

/// Where a new group begins: EARLIEST unless it says otherwise.
pub fn group_start(start: i32) -> Result<StartAt, Error> {
    match StartAt::try_from(start) {
        Ok(StartAt::Unspecified | StartAt::Earliest) => Ok(StartAt::Earliest),
        Ok(StartAt::Now) => Ok(StartAt::Now),
        _ => Err(invalid("a group begins at 1 (earliest) or 2 (now); an offset is for observers")),
    }
}

/// A group's ack deadline in milliseconds: 30 s unless it says otherwise.
pub fn ack_deadline_ms(ms: u32) -> Result<u32, Error> {
    match ms {
        0 => Ok(limits::ACK_DEADLINE_MS_DEFAULT),
        limits::ACK_DEADLINE_MS_MIN..=limits::ACK_DEADLINE_MS_MAX => Ok(ms),
        _ => Err(invalid(format!(
            "ack_deadline_ms is {ms}; use {} to {}",
            limits::ACK_DEADLINE_MS_MIN,
            limits::ACK_DEADLINE_MS_MAX
        ))),
    }
}

#[cfg(test)]
mod tests;

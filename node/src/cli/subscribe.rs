//! `weft subscribe`.

use std::pin::pin;

use serde_json::{Map, Value};
use weft_sdk::{Consumer, Event, Observer, StartAt};

use super::args::Subscribe;
use super::encode;
use super::failure::Failure;
use super::output::{Output, QUIET};
use super::owners::Owners;
use super::server::Target;

/// Events of a group in flight; no more than are to be printed.
const CREDIT: u64 = 256;

/// One event with its place.
struct Line<'a> {
    partition: u32,
    offset: u64,
    epoch: u64,
    attempt: Option<u32>,
    event: &'a Event,
}

pub(crate) async fn run(subscribe: Subscribe, target: &Target, output: &mut Output) -> Result<(), Failure> {
    let client = target.connect().await?;
    let mut subscriber = client.subscriber(&subscribe.topic);
    if let Some(start) = subscribe.from {
        subscriber = subscriber.start(start);
    }
    if let Some(partition) = subscribe.partition {
        subscriber = subscriber.partition(partition);
    }
    if subscribe.until_end {
        subscriber = subscriber.until_end();
    }
    let mut owners = Owners::new(&client, &subscribe.topic, subscribe.partition, subscribe.until_end);
    let count = subscribe.count.unwrap_or(u64::MAX);
    if count == 0 {
        return Ok(());
    }
    match &subscribe.group {
        None => {
            let observer = owners.wait(subscriber.observe()).await??;
            if let Some(StartAt::Offset(offset)) = subscribe.from {
                tell_end(&observer, offset, subscribe.partition);
            }
            observe(observer, &mut owners, count, subscribe.raw, output).await
        }
        Some(group) => {
            let consumer = owners.wait(subscriber.credit(CREDIT.min(count)).group(group)).await??;
            consume(consumer, &mut owners, count, subscribe.raw, output).await
        }
    }
}

/// Tells a person why nothing comes: it was asked for from beyond the end.
fn tell_end(observer: &Observer, offset: u64, partition: Option<u32>) {
    let asked = observer.ended().iter().filter(|(index, _)| partition.is_none_or(|partition| partition == **index));
    let before: Vec<String> =
        asked.filter(|(_, end)| **end < offset).map(|(index, end)| format!("{index} at {end}")).collect();
    if !before.is_empty() {
        eprintln!("weft: offset {offset} is not there yet: partitions end before it ({})", before.join(", "));
    }
}

async fn observe(
    mut observer: Observer,
    owners: &mut Owners,
    count: u64,
    raw: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut stop = pin!(told_to_stop());
    let mut printed = 0;
    while printed < count {
        let observed = tokio::select! {
            biased;
            () = &mut stop => break,
            observed = owners.wait(observer.next()) => observed??,
            () = tokio::time::sleep(QUIET), if output.is_dirty() => { output.flush()?; continue; }
        };
        let Some(observed) = observed else { break };
        let event = observed.event()?;
        let (partition, offset, epoch) = (observed.partition, observed.offset, observed.epoch);
        print(&Line { partition, offset, epoch, attempt: None, event: &event }, raw, output)?;
        printed += 1;
    }
    Ok(())
}

/// Resolves at Ctrl-C, and when nobody reads what is printed.
async fn told_to_stop() {
    tokio::select! { _ = tokio::signal::ctrl_c() => {}, () = Output::reader_gone() => {} }
}

/// Prints, then acks: an event is handled when it has been printed.
async fn consume(
    mut consumer: Consumer,
    owners: &mut Owners,
    count: u64,
    raw: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut stop = pin!(told_to_stop());
    let mut printed = 0;
    // Printed, but perhaps still in the buffer.
    let mut handled = Vec::new();
    while printed < count {
        let delivery = tokio::select! {
            biased;
            () = &mut stop => break,
            delivery = owners.wait(consumer.next()) => delivery??,
            () = tokio::time::sleep(QUIET), if output.is_dirty() => { ack(&mut handled, output)?; continue; }
        };
        let (partition, offset, epoch) = (delivery.partition, delivery.offset, delivery.epoch);
        let attempt = Some(delivery.attempt);
        print(&Line { partition, offset, epoch, attempt, event: &delivery.event }, raw, output)?;
        handled.push(delivery.handle);
        // A quarter of the credit, so that the node never waits for us.
        if handled.len() as u64 >= CREDIT / 4 {
            ack(&mut handled, output)?;
        }
        printed += 1;
    }
    ack(&mut handled, output)?;
    Ok(consumer.close().await?)
}

fn ack(handled: &mut Vec<weft_sdk::Handle>, output: &mut Output) -> Result<(), Failure> {
    output.flush()?;
    handled.drain(..).for_each(|handle| handle.ack());
    Ok(())
}

/// Data that can stand in a line of JSON as it is, and comes back from there as it was. A JSON string would not: data that
/// is a string there is any text.
fn json_data(event: &Event) -> Option<&str> {
    let text = std::str::from_utf8(&event.data).ok().filter(|_| event.datacontenttype == "application/json")?;
    let whole = text.trim() == text && !text.starts_with('"') && !text.contains(['\n', '\r']);
    (whole && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()).then_some(text)
}

fn print(line: &Line<'_>, raw: bool, output: &mut Output) -> Result<(), Failure> {
    let Line { partition, offset, epoch, attempt, event } = line;
    if raw {
        return output.bytes(&event.data);
    }
    if !output.json {
        let (key, data) = (encode::show(&event.key), encode::show(&event.data));
        return output.line(format_args!("{partition}/{offset}\t{key}\t{data}"));
    }
    let mut object = Map::new();
    object.insert("partition".into(), (*partition).into());
    object.insert("offset".into(), (*offset).into());
    object.insert("epoch".into(), (*epoch).into());
    if let Some(attempt) = attempt {
        object.insert("attempt".into(), (*attempt).into());
    }
    encode::put(&mut object, "key", &event.key);
    for (name, value) in [
        ("id", &event.id),
        ("source", &event.source),
        ("type", &event.r#type),
        ("subject", &event.subject),
        ("datacontenttype", &event.datacontenttype),
    ] {
        if !value.is_empty() {
            object.insert(name.into(), value.clone().into());
        }
    }
    object.insert("time_ms".into(), event.time_ms.into());
    if !event.headers.is_empty() {
        let headers = event.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.clone())));
        object.insert("headers".into(), Value::Object(headers.collect()));
    }
    // Put in as text: a parser would change numbers and the order of keys.
    if let Some(data) = json_data(event) {
        let text = Value::Object(object).to_string();
        return output.line(format_args!("{},\"data\":{data}}}", text.strip_suffix('}').unwrap_or(&text)));
    }
    encode::put(&mut object, "data", &event.data);
    output.line(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_data_stands_in_a_line_only_if_it_comes_back_from_there() {
        let event = |kind: &str, data: &str| Event {
            datacontenttype: kind.into(),
            data: data.to_owned().into(),
            ..Event::default()
        };
        for data in [r#"{"b":1e400,"a":1.10}"#, "[1]", "17", "null"] {
            assert_eq!(json_data(&event("application/json", data)), Some(data));
        }
        for data in [r#""text""#, "{\n}", " 1", "{", ""] {
            assert_eq!(json_data(&event("application/json", data)), None, "{data:?}");
        }
        assert_eq!(json_data(&event("text/plain", "17")), None);
    }
}

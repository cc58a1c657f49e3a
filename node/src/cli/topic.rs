//! `weft topic`.

use std::io::IsTerminal;

use serde_json::{Map, Value, json};
use weft_sdk::{Client, ErrorCode, StartAt, Topic, TopicDescription};

use super::args::Topic as Command;
use super::encode;
use super::failure::Failure;
use super::output::Output;
use super::owners::Owners;
use super::server::Target;

pub(crate) async fn run(command: Command, target: &Target, output: &mut Output) -> Result<(), Failure> {
    let client = target.connect().await?;
    match command {
        Command::Create { name, partitions, event_bytes_max, if_not_exists } => {
            let topic = match client.topics().create_sized(&name, partitions, event_bytes_max).await {
                Ok(topic) => topic,
                Err(error) if if_not_exists && error.code() == ErrorCode::TopicExists => {
                    let topic = client.topics().describe(&name).await?.topic.unwrap_or_default();
                    let differs = differs(&topic, partitions, event_bytes_max);
                    let sentence = format!("topic {name} exists with {} partitions{differs}", topic.partitions);
                    return output.say(&topic_json(&topic), sentence);
                }
                Err(error) => return Err(error.into()),
            };
            let sentence = format!("created topic {} with {} partitions", topic.name, topic.partitions);
            output.say(&topic_json(&topic), sentence)
        }
        Command::List => list(&client.topics().list().await?, output),
        Command::Describe { name } => describe(&client.topics().describe(&name).await?, output),
        Command::Dump { name, partition } => dump(&client, &name, partition, output).await,
        Command::Delete { name, yes } => {
            if !yes {
                agreed(&client, &name, output).await?;
            }
            client.topics().delete(&name).await?;
            output.say(&json!({"deleted": name}), format_args!("deleted topic {name}"))
        }
    }
}

/// What a topic that is there has otherwise than was asked for.
fn differs(topic: &Topic, partitions: u32, event_bytes_max: u32) -> String {
    let mut asked = Vec::new();
    if topic.partitions != partitions {
        asked.push(format!("{partitions} partitions"));
    }
    if topic.event_bytes_max != event_bytes_max {
        asked.push(format!("events of {event_bytes_max} bytes, where it takes {}", topic.event_bytes_max));
    }
    if asked.is_empty() { String::new() } else { format!("; it is left so, though asked for {}", asked.join(" and ")) }
}

/// Asks a person who sits at a terminal whether a topic may go. Scripts mean what they say.
async fn agreed(client: &Client, name: &str, output: &Output) -> Result<(), Failure> {
    if output.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(());
    }
    let description = client.topics().describe(name).await?;
    let events: u64 = description
        .partitions
        .iter()
        .map(|place| place.end_offset.unwrap_or(0).saturating_sub(place.start_offset.unwrap_or(0)))
        .sum();
    eprint!("delete topic {name} with its {events} events and {} groups? y/N ", description.groups.len());
    let answer = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await;
    match answer {
        Ok(Some(Ok(line))) if is_yes(&line) => Ok(()),
        _ => Err(Failure::failed(format!("topic {name} is not deleted; --yes deletes without asking"))),
    }
}

fn is_yes(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn topic_json(topic: &Topic) -> Value {
    json!({
        "id": topic.id, "name": topic.name, "namespace": topic.namespace, "partitions": topic.partitions,
        "event_bytes_max": topic.event_bytes_max, "pool": topic.pool, "created_ms": topic.created_ms,
    })
}

fn list(topics: &[Topic], output: &mut Output) -> Result<(), Failure> {
    if output.json {
        return output.line(Value::from_iter(topics.iter().map(topic_json)));
    }
    let row = |topic: &Topic| {
        let bytes = bytesize::ByteSize(u64::from(topic.event_bytes_max)).to_string();
        vec![topic.name.clone(), topic.partitions.to_string(), bytes, topic.pool.clone()]
    };
    output.table(&["name", "partitions", "event max", "pool"], topics.iter().map(row).collect())
}

fn describe(description: &TopicDescription, output: &mut Output) -> Result<(), Failure> {
    let topic = description.topic.clone().unwrap_or_default();
    if output.json {
        let partitions = description.partitions.iter().map(|place| {
            json!({
                "partition": place.partition, "shard": place.shard, "owner": place.owner, "epoch": place.epoch,
                "replicas": place.replicas, "start_offset": place.start_offset, "end_offset": place.end_offset,
                "bytes": place.bytes,
            })
        });
        let groups = description.groups.iter().map(|group| {
            let cursors = group.cursors.iter().map(
                |cursor| json!({"partition": cursor.partition, "acked_below": cursor.acked_below, "lag": cursor.lag}),
            );
            json!({"name": group.name, "cursors": Value::from_iter(cursors)})
        });
        let (partitions, groups) = (Value::from_iter(partitions), Value::from_iter(groups));
        return output.line(json!({"topic": topic_json(&topic), "partitions": partitions, "groups": groups}));
    }
    output.line(format_args!("{}: {} partitions, pool {}\n", topic.name, topic.partitions, topic.pool))?;
    let known = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let rows = description.partitions.iter().map(|place| {
        let owner = if place.owner.is_empty() { "none" } else { &place.owner };
        vec![
            place.partition.to_string(),
            place.shard.to_string(),
            owner.to_owned(),
            place.epoch.to_string(),
            place.replicas.join(","),
            known(place.start_offset),
            known(place.end_offset),
            place.bytes.map_or_else(|| "?".to_owned(), |bytes| bytesize::ByteSize(bytes).to_string()),
        ]
    });
    let columns = ["partition", "shard", "owner", "epoch", "replicas", "start", "end", "size"];
    output.table(&columns, rows.collect())?;
    if description.groups.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let rows = description
        .groups
        .iter()
        .map(|group| vec![group.name.clone(), known(super::group::lag(&group.cursors, topic.partitions))]);
    output.table(&["group", "waiting"], rows.collect())
}

/// Prints all that is stored now, one partition after the other.
async fn dump(client: &Client, name: &str, partition: Option<u32>, output: &mut Output) -> Result<(), Failure> {
    let description = client.topics().describe(name).await?;
    let count = description.topic.map_or(0, |topic| topic.partitions);
    let partitions = match partition {
        None => 0..count,
        Some(partition) if partition < count => partition..partition + 1,
        Some(partition) => {
            return Err(Failure::invalid(format!("{name} has partitions 0 to {}, not {partition}", count.max(1) - 1)));
        }
    };
    for partition in partitions {
        let subscriber = client.subscriber(name).partition(partition).start(StartAt::Earliest).until_end();
        let mut owners = Owners::new(client, name, Some(partition), true);
        let mut observer = owners.wait(subscriber.observe()).await??;
        while let Some(observed) = owners.wait(observer.next()).await?? {
            let event = observed.event()?;
            let sha256 = encode::sha256(&event.data);
            let (offset, epoch) = (observed.offset, observed.epoch);
            if output.json {
                let mut line = Map::new();
                line.insert("partition".into(), partition.into());
                line.insert("offset".into(), offset.into());
                line.insert("epoch".into(), epoch.into());
                encode::put(&mut line, "key", &event.key);
                line.insert("sha256".into(), sha256.into());
                output.line(Value::Object(line))?;
            } else {
                output.line(format_args!("{partition}\t{offset}\t{epoch}\t{sha256}\t{}", encode::show(&event.key)))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_topic_has_otherwise_is_said() {
        let topic = Topic { partitions: 4, event_bytes_max: 1 << 20, ..Topic::default() };
        assert_eq!(differs(&topic, 4, 1 << 20), "");
        assert!(differs(&topic, 8, 1 << 20).ends_with("asked for 8 partitions"));
        assert!(differs(&topic, 8, 1).contains("8 partitions and events of 1 bytes, where it takes 1048576"));
    }

    #[test]
    fn only_a_clear_yes_deletes() {
        assert!(is_yes("y\n") && is_yes(" YES "));
        assert!(!is_yes("") && !is_yes("yep") && !is_yes("n"));
    }
}

//! `weft topic`.

use serde_json::{Map, Value, json};
use weft_sdk::{Client, StartAt, Topic, TopicDescription};

use super::args::Topic as Command;
use super::failure::Failure;
use super::output::Output;
use super::owners::Owners;
use super::{encode, server};

pub(crate) async fn run(command: Command, servers: &[String], output: &mut Output) -> Result<(), Failure> {
    let client = server::connect(servers).await?;
    match command {
        Command::Create { name, partitions, event_bytes_max } => {
            let topic = client.topics().create_sized(&name, partitions, event_bytes_max).await?;
            let sentence = format!("created topic {} with {} partitions", topic.name, topic.partitions);
            output.say(&topic_json(&topic), sentence)
        }
        Command::List => list(&client.topics().list().await?, output),
        Command::Describe { name } => describe(&client.topics().describe(&name).await?, output),
        Command::Dump { name, partition } => dump(&client, &name, partition, output).await,
        Command::Delete { name } => {
            client.topics().delete(&name).await?;
            output.say(&json!({"deleted": name}), format_args!("deleted topic {name}"))
        }
    }
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

//! `weft group`.

use serde_json::{Value, json};
use weft_proto::v1::GroupCursor;
use weft_sdk::{Group, GroupDescription};

use super::args::Group as Command;
use super::failure::Failure;
use super::output::Output;
use super::server::Target;

pub(crate) async fn run(command: Command, target: &Target, output: &mut Output) -> Result<(), Failure> {
    let client = target.connect().await?;
    match command {
        Command::List { topic } => list(&client.groups().list(topic.as_deref()).await?, output),
        Command::Describe { topic, group } => {
            let description = client.groups().describe(&topic, &group).await?;
            let partitions = client.topics().describe(&topic).await?.topic.map_or(0, |topic| topic.partitions);
            describe(&description, partitions, output)
        }
        Command::Delete { topic, group } => {
            client.groups().delete(&topic, &group).await?;
            let object = json!({"deleted": group, "topic": topic});
            output.say(&object, format_args!("deleted group {group} of topic {topic}"))
        }
    }
}

fn start(group: &Group) -> &'static str {
    if group.start == weft_proto::v1::StartAt::Now as i32 { "now" } else { "earliest" }
}

fn group_json(group: &Group) -> Value {
    json!({
        "id": group.id, "topic": group.topic, "name": group.name, "start": start(group),
        "ack_deadline_ms": group.ack_deadline_ms, "created_ms": group.created_ms,
    })
}

fn list(groups: &[Group], output: &mut Output) -> Result<(), Failure> {
    if output.json {
        return output.line(Value::from_iter(groups.iter().map(group_json)));
    }
    let row = |group: &Group| {
        let deadline = format!("{} ms", group.ack_deadline_ms);
        vec![group.topic.clone(), group.name.clone(), start(group).to_owned(), deadline]
    };
    output.table(&["topic", "group", "began at", "ack deadline"], groups.iter().map(row).collect())
}

/// Events that a group has not acked. `None`: not all of the topic's partitions have an owner that says how many.
pub(super) fn lag(cursors: &[GroupCursor], partitions: u32) -> Option<u64> {
    (cursors.len() == partitions as usize).then(|| cursors.iter().map(|cursor| cursor.lag).sum())
}

fn describe(description: &GroupDescription, partitions: u32, output: &mut Output) -> Result<(), Failure> {
    let group = description.group.clone().unwrap_or_default();
    let lag = lag(&description.cursors, partitions);
    if output.json {
        let cursors = description.cursors.iter().map(|cursor| {
            json!({
                "partition": cursor.partition, "acked_below": cursor.acked_below, "end_offset": cursor.end_offset,
                "lag": cursor.lag,
            })
        });
        return output.line(json!({"group": group_json(&group), "lag": lag, "cursors": Value::from_iter(cursors)}));
    }
    let (name, topic) = (&group.name, &group.topic);
    match lag {
        Some(lag) => output.line(format_args!("{name} of topic {topic}: {lag} events are not acked\n"))?,
        None => {
            let known = description.cursors.len();
            output.line(format_args!(
                "{name} of topic {topic}: how many events are not acked is not known: the owners of {known} of \
                 {partitions} partitions answer\n"
            ))?;
        }
    }
    let rows = description.cursors.iter().map(|cursor| {
        [u64::from(cursor.partition), cursor.acked_below, cursor.end_offset, cursor.lag].map(|it| it.to_string()).into()
    });
    output.table(&["partition", "acked below", "end", "lag"], rows.collect())
}

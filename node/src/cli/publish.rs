//! `weft publish`.

use std::collections::VecDeque;
use std::io::{IsTerminal, Read};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use weft_sdk::{Ack, Event, EventReceipt, Pending, Producer, Published};

use super::args::{AckLevel, Publish};
use super::encode;
use super::failure::Failure;
use super::input::{self, Bad, Defaults, Row, Source};
use super::output::{Output, QUIET};
use super::owners::Owners;
use super::server::Target;

/// Receipts waited for with `--json`; the input is read no further meanwhile.
const RECEIPTS_WAITING_MAX: usize = 65_536;
/// A person is told what a publish waits for after this.
const TELL_WAITS_AFTER: Duration = Duration::from_secs(1);

pub(crate) async fn run(publish: Publish, target: &Target, output: &mut Output) -> Result<(), Failure> {
    if publish.key_column.is_some() && publish.csv.is_none() {
        return Err(Failure::invalid("--key-column goes with --csv"));
    }
    let defaults = Defaults { event_type: publish.event_type.clone(), headers: headers(&publish.headers)? };
    // Files are looked at before the cluster is: a wrong name is told at once.
    let single = single(&publish, &defaults)?;
    let client = target.connect_within(publish.patience).await?;
    let ack = match publish.ack {
        AckLevel::Accepted => Ack::Accepted,
        AckLevel::Committed => Ack::Committed,
    };
    let producer = client
        .producer(&publish.topic)
        .ack(ack)
        .batch_bytes(publish.batch_bytes)
        .patience(publish.patience)
        .open()
        .await?;
    let (json, topic) = (output.json, publish.topic.clone());
    let publishing = async {
        if let Some(event) = single {
            return one(&producer, event, output).await;
        }
        let source = match (publish.csv, publish.json_lines, publish.lines) {
            (Some(path), ..) => Source::Csv { path, key_column: publish.key_column },
            (None, Some(path), _) => Source::JsonLines(path),
            (None, None, Some(path)) => Source::Lines { path, key: publish.key },
            (None, None, None) => {
                return Err(Failure::invalid(
                    "nothing to publish: give --data, --file, --csv, --json-lines or --lines",
                ));
            }
        };
        many(&producer, input::read(source, defaults, publish.from_row), output).await
    };
    let mut owners = Owners::new(&client, &topic, None, false);
    tokio::select! {
        biased;
        done = owners.wait(publishing) => done?,
        () = tell_waits(&producer, publish.patience, json) => Ok(()),
    }
}

fn headers(pairs: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |pair: &String| {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("--header {pair}: write NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    pairs.iter().map(split).collect::<Result<_, String>>().map_err(Failure::invalid)
}

/// The event of `--data` or `--file`.
fn single(publish: &Publish, defaults: &Defaults) -> Result<Option<Event>, Failure> {
    let data = match (&publish.data, &publish.file) {
        (Some(data), _) => Bytes::from(data.clone()),
        (None, Some(path)) => {
            let mut data = Vec::new();
            let read = input::open(path)?.read_to_end(&mut data);
            read.map_err(|error| Failure::from(error).context(&path.display().to_string()))?;
            data.into()
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(Event {
        key: publish.key.clone().unwrap_or_default().into(),
        data,
        r#type: defaults.event_type.clone().unwrap_or_default(),
        headers: defaults.headers.iter().cloned().collect(),
        ..Event::default()
    }))
}

async fn one(producer: &Producer, event: Event, output: &mut Output) -> Result<(), Failure> {
    let key = event.key.clone();
    let receipt = producer.send(event).await?.await?;
    producer.close().await?;
    let offset = receipt.offset.map_or_else(|| "not yet known".to_owned(), |offset| offset.to_string());
    let nodes = receipt.batch.fsynced_nodes.join(", ");
    let durable = if nodes.is_empty() { "accepted only".to_owned() } else { format!("on the disks of {nodes}") };
    let sentence = format!("partition {} offset {offset} epoch {}, {durable}", receipt.partition, receipt.epoch);
    output.say(&line(1, &key, &Ok(receipt)), sentence)
}

/// One line of `--json`.
fn line(row: u64, key: &[u8], result: &Result<EventReceipt, weft_sdk::Error>) -> Value {
    let mut object = Map::new();
    object.insert("row".into(), row.into());
    encode::put(&mut object, "key", key);
    match result {
        Ok(receipt) => {
            let batch = &receipt.batch;
            let ack = if batch.ack() == Ack::Accepted { "accepted" } else { "committed" };
            object.insert("partition".into(), receipt.partition.into());
            object.insert("offset".into(), receipt.offset.into());
            object.insert("epoch".into(), receipt.epoch.into());
            object.insert("ack".into(), ack.into());
            object.insert("duplicate".into(), batch.duplicate.into());
            object.insert("fsynced_nodes".into(), batch.fsynced_nodes.clone().into());
            object.insert("fsynced_zones".into(), batch.fsynced_zones.clone().into());
        }
        Err(error) => {
            let error = json!({
                "code": error.code_name(), "message": error.to_string(), "retry": error.retry_name(),
            });
            object.insert("error".into(), error);
        }
    }
    Value::Object(object)
}

/// Receipts on their way, in the order of the input.
struct Receipts {
    waiting: VecDeque<(u64, Bytes, Pending)>,
}

impl Receipts {
    /// Prints what has come, and waits while there are more than `left`.
    async fn print(&mut self, left: usize, output: &mut Output) -> Result<(), Failure> {
        loop {
            let full = self.waiting.len() > left;
            let Some((row, key, pending)) = self.waiting.front_mut() else { return Ok(()) };
            let result = if full { Some(pending.await) } else { pending.now_or_never() };
            let Some(result) = result else { return Ok(()) };
            output.line(line(*row, key, &result))?;
            self.waiting.pop_front();
        }
    }
}

/// What became of an input.
struct Taken {
    /// Events handed to the producer.
    count: u64,
    interrupted: bool,
    bad: Option<Bad>,
}

async fn many(producer: &Producer, mut rows: input::Rows, output: &mut Output) -> Result<(), Failure> {
    let started = Instant::now();
    let progress = progress(output.json);
    let mut receipts = Receipts { waiting: VecDeque::new() };
    let taken = take(producer, &mut rows, &mut receipts, &progress, output).await?;
    drop(rows);
    // What was taken is finished even after Ctrl-C; a second one ends the process at once.
    let closing = async {
        let closed = producer.close().await;
        receipts.print(0, output).await?;
        Ok::<_, Failure>(closed)
    };
    let closed = if taken.interrupted {
        tokio::select! { closed = closing => closed?, _ = tokio::signal::ctrl_c() => return Err(Failure::failed("interrupted twice")) }
    } else {
        closing.await?
    };
    progress.finish_and_clear();
    let published = producer.published();
    if let Err(error) = closed {
        return Err(Failure::from(error).and(&tally(&published, taken.count)));
    }
    let (events, seconds) = (published.events, started.elapsed().as_secs_f64());
    if let Some(Bad { row, failure }) = taken.bad {
        let before = format!("the {events} events before it are published");
        return Err(match row {
            None => failure.and(&before),
            Some(row) => failure.and(&format!(
                "{before}: mend it and go on with --from-row {row}, or leave it out with --from-row {}",
                row + 1
            )),
        });
    }
    let summary =
        format!("published {events} events in {seconds:.2} s ({:.0} events/s)", events as f64 / seconds.max(1e-9));
    if taken.interrupted {
        return Err(Failure::failed(format!("interrupted: {summary}")));
    }
    if output.json { Ok(()) } else { output.line(summary) }
}

/// What became of `count` events, of which some failed.
fn tally(published: &Published, count: u64) -> String {
    let Published { events, failed, unknown } = published;
    let mut text = format!("{events} of {count} events are published");
    if *failed > 0 {
        text.push_str(&format!(", {failed} are not"));
    }
    if *unknown > 0 {
        text.push_str(&format!(", {unknown} may or may not be"));
    }
    text + "; --json tells which"
}

/// Hands rows to the producer until they end, one is bad, a publish fails, or a person has had enough.
async fn take(
    producer: &Producer,
    rows: &mut input::Rows,
    receipts: &mut Receipts,
    progress: &ProgressBar,
    output: &mut Output,
) -> Result<Taken, Failure> {
    let mut taken = Taken { count: 0, interrupted: false, bad: None };
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    loop {
        let chunk = tokio::select! {
            biased;
            _ = &mut stop => { taken.interrupted = true; return Ok(taken); }
            // Its topic was deleted, for one: closing says so. No row is waited for any more.
            _ = producer.ended() => return Ok(taken),
            // Whoever feeds rows one by one reads each receipt before the input ends.
            () = tokio::time::sleep(QUIET), if !receipts.waiting.is_empty() || output.is_dirty() => {
                receipts.print(RECEIPTS_WAITING_MAX, output).await?;
                output.flush()?;
                continue;
            }
            chunk = rows.recv() => match chunk {
                Some(Ok(chunk)) => chunk,
                Some(Err(bad)) => { taken.bad = Some(bad); return Ok(taken); }
                None => return Ok(taken),
            },
        };
        for Row { number, event } in chunk {
            let key = event.key.clone();
            let sent = if output.json {
                let sent = producer.send(event).await;
                sent.map(|pending| receipts.waiting.push_back((number, key, pending)))
            } else {
                producer.push(event).await
            };
            if let Err(error) = sent {
                if producer.ended().now_or_never().is_some() {
                    return Ok(taken);
                }
                let failure = Failure::from(error).context(&format!("row {number}"));
                taken.bad = Some(Bad { row: Some(number), failure });
                return Ok(taken);
            }
            taken.count += 1;
        }
        // Closing says what it was. With --json each row says so itself.
        if !output.json && producer.failure().is_some() {
            return Ok(taken);
        }
        progress.set_position(taken.count);
        receipts.print(RECEIPTS_WAITING_MAX, output).await?;
    }
}

/// Tells a person on stderr what a publish waits for, once it has waited a while. Never ends.
async fn tell_waits(producer: &Producer, patience: Duration, json: bool) {
    let (mut seen, mut told) = (None, None);
    loop {
        tokio::time::sleep(TELL_WAITS_AFTER).await;
        let waits = producer.waits_for();
        let code = waits.as_ref().map(weft_sdk::Error::code);
        // A failover is over sooner than this.
        if let Some(error) = waits.filter(|_| code == seen && code != told && !json) {
            eprintln!("weft: waits, for {patience:?} at most: {error}");
            told = code;
        }
        seen = code;
    }
}

/// A counter on stderr, if a person looks at it.
fn progress(json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} events  {per_sec}  {elapsed}") {
        progress.set_style(style);
    }
    progress.enable_steady_tick(Duration::from_millis(100));
    progress
}

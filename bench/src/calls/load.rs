//! The loads: what a client does for some seconds on one way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::echo::{self, Echoing};
use crate::figure::micros;

/// A load.
#[derive(Clone, Copy)]
pub(super) enum Load {
    /// Unary calls without a pause: connections, calls in flight over all of them, bytes.
    Unary { connections: usize, in_flight: usize, bytes: usize },
    /// Unary calls of 100 bytes at a fixed rate, measured from when they were due.
    Rate(u32),
    /// Streams on four connections, one message of 100 bytes going to and fro on each.
    Chat { streams: usize },
}

/// Runs a load; microseconds of each call or message.
pub(super) async fn run(load: Load, address: &str, time: Duration) -> Result<Histogram<u64>> {
    match load {
        Load::Unary { connections, in_flight, bytes } => unary(address, connections, in_flight, bytes, time).await,
        Load::Rate(per_second) => rate(address, per_second, time).await,
        Load::Chat { streams } => chat(address, streams, time).await,
    }
}

async fn connections(address: &str, count: usize) -> Result<Vec<Echoing>> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(echo::connect(address).await?);
    }
    Ok(all)
}

/// Waits for all and adds up what they measured.
async fn gather(mut tasks: JoinSet<Result<Histogram<u64>>>) -> Result<Histogram<u64>> {
    let mut all = micros()?;
    while let Some(measured) = tasks.join_next().await {
        all.add(measured??).context("histograms of one shape")?;
    }
    Ok(all)
}

async fn unary(address: &str, count: usize, in_flight: usize, bytes: usize, time: Duration) -> Result<Histogram<u64>> {
    let connections = connections(address, count).await?;
    let data = Bytes::from(vec![b'x'; bytes]);
    let mut tasks = JoinSet::new();
    for place in 0..in_flight {
        let (mut echo, data) = (connections[place % count].clone(), data.clone());
        tasks.spawn(async move {
            let (mut measured, end) = (micros()?, Instant::now() + time);
            while Instant::now() < end {
                let sent = Instant::now();
                echo.unary(data.clone()).await?;
                measured.saturating_record(sent.elapsed().as_micros() as u64);
            }
            Ok(measured)
        });
    }
    gather(tasks).await
}

async fn rate(address: &str, per_second: u32, time: Duration) -> Result<Histogram<u64>> {
    let connections = connections(address, 4).await?;
    let data = Bytes::from(vec![b'x'; 100]);
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..(f64::from(per_second) * time.as_secs_f64()) as u32 {
        let due = started + Duration::from_secs(1) * number / per_second;
        tokio::time::sleep_until(due.into()).await;
        let (mut echo, data) = (connections[number as usize % 4].clone(), data.clone());
        tasks.spawn(async move {
            let mut measured = micros()?;
            echo.unary(data).await?;
            measured.saturating_record(due.elapsed().as_micros() as u64);
            Ok(measured)
        });
    }
    gather(tasks).await
}

async fn chat(address: &str, streams: usize, time: Duration) -> Result<Histogram<u64>> {
    let connections = connections(address, 4).await?;
    let data = Bytes::from(vec![b'x'; 100]);
    let mut tasks = JoinSet::new();
    for place in 0..streams {
        let (mut echo, data) = (connections[place % 4].clone(), data.clone());
        tasks.spawn(async move {
            let (send, mut answers) = echo.chat().await?;
            let (mut measured, end) = (micros()?, Instant::now() + time);
            while Instant::now() < end {
                let sent = Instant::now();
                send.send(data.clone()).await?;
                answers.message().await?.context("the echo of a message")?;
                measured.saturating_record(sent.elapsed().as_micros() as u64);
            }
            Ok(measured)
        });
    }
    gather(tasks).await
}

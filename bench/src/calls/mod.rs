//! The figures of calls: an echo called directly, through one node, through two, and through other proxies beside them.

pub(crate) mod echo;
mod load;
mod ways;

use std::time::Duration;

use anyhow::Result;

use self::load::Load;
use self::ways::{Way, Ways};
use crate::figure::Figure;
use crate::process::Cpu;

/// What the command line says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each load on each way, in each round.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Rounds; all ways run in each, so that what disturbs one disturbs the others. The median is printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only the loads whose name begins so.
    #[arg(long, default_value = "")]
    only: String,
    /// Only the ways whose name begins so.
    #[arg(long, default_value = "")]
    way: String,
}

const LOADS: [(&str, Load); 6] = [
    ("unary 100 B, 64 in flight", Load::Unary { connections: 4, in_flight: 64, bytes: 100 }),
    ("unary 1 KiB, 64 in flight", Load::Unary { connections: 4, in_flight: 64, bytes: 1 << 10 }),
    ("one call at a time", Load::Unary { connections: 1, in_flight: 1, bytes: 100 }),
    ("2,000 calls/s", Load::Rate(2_000)),
    ("64 streams", Load::Chat { streams: 64 }),
    ("unary 64 KiB, 16 in flight", Load::Unary { connections: 4, in_flight: 16, bytes: 64 << 10 }),
];

/// One measurement of one way.
struct Measured {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_s_per_million: f64,
}

/// Runs all loads and prints one JSON line for each way, then a table.
pub(crate) async fn run(args: Args) -> Result<()> {
    let mut ways = Ways::open().await?;
    ways.all.retain(|way| way.name.starts_with(&args.way));
    let time = Duration::from_secs(args.seconds.max(1));
    let mut rows = Vec::new();
    for (name, load) in LOADS.iter().filter(|(name, _)| name.starts_with(&args.only)) {
        let mut measured: Vec<Vec<Measured>> = ways.all.iter().map(|_| Vec::new()).collect();
        for _ in 0..args.rounds.max(1) {
            for (way, measured) in ways.all.iter().zip(&mut measured) {
                measured.push(measure(way, *load, time).await?);
            }
        }
        for (way, measured) in ways.all.iter().zip(&measured) {
            let median = |of: fn(&Measured) -> f64| median(measured.iter().map(of).collect());
            let mut figure = Figure::new(format!("{name}, {}", way.name));
            figure.set("calls_per_s", median(|it| it.per_second).round());
            figure.set("p50_us", median(|it| it.p50_us));
            figure.set("p99_us", median(|it| it.p99_us));
            if !way.processes.is_empty() {
                figure.set("proxy_cpu_s_per_million", median(|it| it.cpu_s_per_million));
            }
            println!("{}", figure.to_json());
            rows.push(figure);
        }
    }
    table(&rows);
    Ok(())
}

async fn measure(way: &Way, load: Load, time: Duration) -> Result<Measured> {
    let before = Cpu::of(&way.processes)?;
    let started = std::time::Instant::now();
    let micros = load::run(load, &way.address, time).await?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = Cpu::of(&way.processes)?.since(&before).total();
    Ok(Measured {
        per_second: micros.len() as f64 / seconds,
        p50_us: micros.value_at_quantile(0.5) as f64,
        p99_us: micros.value_at_quantile(0.99) as f64,
        cpu_s_per_million: cpu / (micros.len().max(1) as f64 / 1e6),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(figures: &[Figure]) {
    eprintln!("| load and way | per second | p50 us | p99 us | proxy's CPU s per million |");
    eprintln!("|---|---|---|---|---|");
    let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    for figure in figures {
        let values = ["calls_per_s", "p50_us", "p99_us", "proxy_cpu_s_per_million"].map(|it| show(figure.get(it)));
        eprintln!("| {} | {} |", figure.name, values.join(" | "));
    }
}

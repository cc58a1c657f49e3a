//! The aims, and the table that compares what was measured with them.

use crate::figure::Figure;

/// What a figure's measure should be.
struct Aim {
    figure: &'static str,
    measure: &'static str,
    aim: f64,
    /// The best of NATS 2.15, Kafka 4.1 and etcd 3.4, measured on a machine like this one (two cores, client beside the
    /// servers, R=3); see docs/performance.md.
    peer: &'static str,
}

const fn aim(figure: &'static str, measure: &'static str, aim: f64, peer: &'static str) -> Aim {
    Aim { figure, measure, aim, peer }
}

const RATE: &str = "events_per_s";
const CPU: &str = "node_cpu_s_per_million";

const AIMS: [Aim; 16] = [
    aim("bulk 128 B, 128 KiB", RATE, 500_000.0, "Kafka 500,000; 355,000 with sync"),
    aim("bulk 128 B, 128 KiB", CPU, 2.0, "Kafka 1.8; 2.5 with sync"),
    aim("bulk 1 KiB, 128 KiB", RATE, 95_000.0, "Kafka 94,500; 66,000 with sync"),
    aim("bulk 1 KiB, 128 KiB", CPU, 10.0, "Kafka 10.8; 16.6 with sync"),
    aim("single 128 B, 1 publisher", RATE, 150_000.0, "NATS 117,000; 57,500 with sync"),
    aim("single 128 B, 1 publisher", CPU, 7.0, "NATS 12; 24 with sync"),
    aim("one at a time, unary", "p50_ms", 0.9, "NATS 0.35; 1.07 with sync"),
    aim("one at a time, stream", "p50_ms", 0.9, "NATS 0.35; 1.07 with sync"),
    aim("end to end at 5,000/s", "p50_ms", 1.5, "NATS 0.94; 5.3 with sync"),
    aim("consume, bulk", RATE, 1_300_000.0, "Kafka 1,300,000"),
    aim("consume, bulk", CPU, 0.34, "Kafka 0.34"),
    aim("consume, ack per event", RATE, 120_000.0, "Kafka 70,000; NATS 62,000"),
    aim("idle, per node", "cpu_percent", 2.0, "NATS 0.4"),
    aim("idle, per node", "resident_mib_max", 40.0, "NATS 20"),
    aim("kill", "p50_ms", 400.0, "etcd 1,300; NATS 5,200; Kafka 9,500"),
    aim("kill", "p99_ms", 1000.0, ""),
];

/// What peers did where nothing is aimed at.
const PEERS: [(&str, &str, &str); 9] = [
    ("bulk 128 B, 16 KiB", RATE, "Kafka 284,000; 123,000 with sync"),
    ("bulk 128 B, 16 KiB", CPU, "Kafka 3.6; 8.9 with sync"),
    ("bulk 1 KiB, 16 KiB", RATE, "Kafka 50,000; 17,000 with sync"),
    ("bulk 1 KiB, 16 KiB", CPU, "Kafka 26; 67 with sync"),
    ("bulk 16 KiB, 128 KiB", RATE, "Kafka 4,200 with sync"),
    ("bulk 16 KiB, 128 KiB", CPU, "Kafka 259 with sync"),
    ("single 1 KiB, 1 publisher", RATE, "NATS 65,900; 36,500 with sync"),
    ("single 1 KiB, 1 publisher", CPU, "NATS 23; 38 with sync"),
    ("single 16 KiB, 1 publisher", RATE, "NATS 10,700; 9,100 with sync"),
];

/// Measures in the order of the table.
const MEASURES: [&str; 8] = [
    RATE,
    CPU,
    "node_system_cpu_s_per_million",
    "client_cpu_s_per_million",
    "p50_ms",
    "p99_ms",
    "cpu_percent",
    "resident_mib_max",
];

/// Prints the table, to stderr: stdout has the lines for programs. The ratio is above 1 where the aim is exceeded.
pub(super) fn print(figures: &[Figure]) {
    eprintln!("| figure | measure | measured | aim | ratio | best peer |");
    eprintln!("|---|---|---|---|---|---|");
    for figure in figures {
        for measure in MEASURES {
            if let Some(measured) = figure.get(measure) {
                eprintln!("{}", row(&figure.name, measure, measured));
            }
        }
    }
}

fn row(figure: &str, measure: &str, measured: f64) -> String {
    let aim = AIMS.iter().find(|aim| aim.figure == figure && aim.measure == measure);
    let peer = PEERS.iter().find(|peer| peer.0 == figure && peer.1 == measure).map_or("", |peer| peer.2);
    let (aimed, ratio, peer) = match aim {
        Some(aim) => (number(aim.aim), format!("{:.2}", ratio(measure, measured, aim.aim)), aim.peer),
        None => (String::new(), String::new(), peer),
    };
    format!("| {figure} | {measure} | {} | {aimed} | {ratio} | {peer} |", number(measured))
}

/// Above 1: better than the aim.
fn ratio(measure: &str, measured: f64, aim: f64) -> f64 {
    if measure == RATE { measured / aim } else { aim / measured.max(f64::MIN_POSITIVE) }
}

/// Three digits at least, thousands separated.
fn number(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_better_than_the_aim() {
        assert_eq!(
            row("bulk 128 B, 128 KiB", RATE, 1_000_000.0),
            "| bulk 128 B, 128 KiB | events_per_s | 1,000,000 | 500,000 | 2.00 | Kafka 500,000; 355,000 with sync |"
        );
        assert!(row("bulk 128 B, 128 KiB", CPU, 4.0).contains("| 4.00 | 2.00 | 0.50 |"));
        assert_eq!(row("kill", "kills", 3.0), "| kill | kills | 3.00 |  |  |  |");
        assert_eq!(number(12_345.6), "12,346");
    }
}

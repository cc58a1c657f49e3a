//! Log lines on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Sends the process's log lines to stderr in the form and of the levels that `config` names. For `main` only: it
/// serves the whole process, and can be called once.
///
/// # Errors
/// One sentence: the filter cannot be read, or the log was started before.
pub fn start(config: &LogConfig) -> Result<(), String> {
    let filter = filter(&config.filter)?;
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).try_init(),
    };
    started.map_err(|error| format!("start the log: {error}"))
}

/// Whether a filter can be read.
///
/// # Errors
/// One sentence that names the key.
pub fn check_filter(text: &str) -> Result<(), String> {
    filter(text).map(drop)
}

/// HTTP/2 warns of every PING ack that nobody asked for: any client could fill the log. Whoever wants those lines names
/// this target in the filter.
const QUIET: &str = "h2::proto::ping_pong=error";

fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(format!("{QUIET},{text}")).map_err(|error| {
        format!("log.filter: `{text}` is not understood ({error}); use levels like `info` or `info,weft_node::drivers=debug`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_can_fill_the_log_with_pings() {
        use tracing_subscriber::prelude::*;
        let enabled = |text: &str| {
            let filter = filter(text).expect("it can be read");
            tracing::subscriber::with_default(tracing_subscriber::registry().with(filter), || {
                (
                    tracing::enabled!(target: "h2::proto::ping_pong", tracing::Level::WARN),
                    tracing::enabled!(target: "h2::proto::streams", tracing::Level::WARN),
                )
            })
        };
        assert_eq!(enabled("info"), (false, true));
        assert_eq!(enabled("debug,h2=debug"), (false, true));
        assert_eq!(enabled("info,h2::proto::ping_pong=debug"), (true, true));
    }

    #[test]
    fn a_filter_is_checked() {
        assert!(filter(&LogConfig::default().filter).is_ok());
        let error = filter("weft=loud").expect_err("no such level");
        assert!(error.contains("log.filter: `weft=loud`"), "{error}");
    }
}

//! The Weft node: drivers do, gateways translate, `run` wires.

pub mod cli;
pub mod config;
pub mod drivers;
pub mod gateways;
pub mod host;
pub mod telemetry;
pub mod wire;

/// Runs a node until `stop` is cancelled.
pub async fn run(
    _config: config::Config,
    _host: std::sync::Arc<dyn host::Host>,
    _stop: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    anyhow::bail!("not wired yet")
}

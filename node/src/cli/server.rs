//! The client of a command.

use std::time::Duration;

use weft_sdk::Client;

use super::failure::Failure;

/// How long the first connection, or one question, is tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to the first of the given nodes that answers.
pub(crate) async fn connect(servers: &[String]) -> Result<Client, Failure> {
    Ok(Client::builder().servers(servers.iter().cloned()).patience(PATIENCE).connect().await?)
}

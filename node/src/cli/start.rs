//! `weft start`: one node, until it is told to stop.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::args::Start;
use super::config::{self, Examined};
use super::failure::Failure;
use super::signals::Stops;
use crate::host::disk::OsDisk;
use crate::host::production::Production;
use crate::telemetry;

pub(crate) async fn run(start: Start) -> Result<(), Failure> {
    let mut stops = Stops::of_node()?;
    let Examined { mut config, shares, .. } = config::examine(&start)?;
    telemetry::start_log(&config.log).map_err(Failure::invalid)?;
    if let Some(cut) = shares.cut(&config) {
        tracing::warn!("{cut}");
    }
    shares.bound(&mut config);
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            stops.next().await;
            tracing::info!("stopping; once more to stop at once");
            stop.cancel();
            stops.next().await;
            std::process::exit(1);
        }
    });
    let host = Arc::new(Production::new(Arc::new(OsDisk)));
    crate::run(config, host, stop).await.map_err(|error| Failure::failed(format!("{error:#}")))
}

/// The flags that were given: name, key, text.
pub(super) fn flags(start: &Start) -> Vec<(String, String, String)> {
    let expect = start.bootstrap_expect.map(|count| count.to_string());
    let seeds = (!start.seeds.is_empty()).then(|| start.seeds.join(","));
    let given = [
        ("--name", "node.name", &start.name),
        ("--dir", "node.dir", &start.dir),
        ("--zone", "node.zone", &start.zone),
        ("--listen", "node.listen", &start.listen),
        ("--peer-listen", "node.peer_listen", &start.peer_listen),
        ("--admin-listen", "node.admin_listen", &start.admin_listen),
        ("--seed", "node.seeds", &seeds),
        ("--bootstrap-expect", "raft.bootstrap_expect", &expect),
        ("--ca-cert", "tls.ca", &start.ca_cert),
        ("--cert", "tls.cert", &start.cert),
        ("--key", "tls.key", &start.key),
    ];
    let flag = |(name, key, text): (&str, &str, &Option<String>)| Some((name.into(), key.into(), text.clone()?));
    given.into_iter().filter_map(flag).collect()
}

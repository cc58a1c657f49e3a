//! Opens an HTTP/2 connection to an instance and waits for a first answer, so that no call is sent to what takes
//! connections and says nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;

use super::config::HEADER_BYTES_MOST;
use super::{CallsConfig, Shared};
use crate::drivers::endpoint::{Endpoint, Speaks};
use crate::host::Io;
use crate::wire::{Outbox, Pulse, Traffic};

/// The largest HTTP/2 frame taken from an instance.
const FRAME_BYTES_MAX: u32 = 128 << 10;
/// The largest header block taken from an instance, as it is sent.
const BLOCK_BYTES_MAX: usize = 256 << 10;
const BLOCK_RULE: &str = "headers of more than 256 KiB came: calls.header_bytes_max says how many may";
/// Where h2 cuts headers: of trailers it then passes on what came before, without a sign. One header of a block is not
/// longer than Huffman's code makes of the whole block (5 bits of it are a byte), or than h2's table of 4 KiB. So what
/// h2 leaves of headers that it cuts is more than the limit, and is found to be too large.
const CUT_BYTES: u32 = 2 << 20;
const _: () = assert!(BLOCK_BYTES_MAX * 8 / 5 + HEADER_BYTES_MOST as usize + (8 << 10) < CUT_BYTES as usize);

/// A connection that is up.
pub(super) struct Opened {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) connection: h2::client::Connection<Traffic, Bytes>,
    /// Counts the bytes written: they tell whether a call can have been sent.
    pub(super) pulse: Arc<Pulse>,
    /// What it sends.
    pub(super) outbox: Outbox,
}

/// Opens a connection within `calls.connect_timeout`.
///
/// # Errors
/// One sentence: what did not work.
pub(super) async fn open(endpoint: &Endpoint, shared: &Shared) -> Result<Opened, String> {
    let patience = shared.config.connect_timeout;
    let late = |_| Err(format!("no HTTP/2 connection within {patience:?}"));
    tokio::time::timeout(patience, open_now(endpoint, shared)).await.unwrap_or_else(late)
}

async fn open_now(endpoint: &Endpoint, shared: &Shared) -> Result<Opened, String> {
    let io = shared.dialer.open(endpoint, Speaks::Http2).await?;
    greet(io, &shared.config).await.map_err(|reason| format!("it does not speak HTTP/2: {reason}"))
}

/// The handshake, and a ping that must be answered: only what speaks HTTP/2 does. Its answer comes after the
/// instance's settings, so its limit on streams is known from then on.
async fn greet(io: Box<dyn Io>, config: &CallsConfig) -> Result<Opened, String> {
    let io = Traffic::new(io).bounding_headers(BLOCK_BYTES_MAX, BLOCK_RULE);
    let (pulse, outbox) = (io.pulse(), io.outbox());
    let window = |size: bytesize::ByteSize| u32::try_from(size.as_u64()).unwrap_or(u32::MAX >> 1).min(u32::MAX >> 1);
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(window(config.stream_window))
        .initial_connection_window_size(window(config.connection_window))
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(CUT_BYTES)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .reset_stream_duration(RESET_STREAM_LINGER)
        .enable_push(false);
    let said = |error: h2::Error| error.to_string();
    let (sender, mut connection) = builder.handshake::<_, Bytes>(io).await.map_err(said)?;
    let mut pings = connection.ping_pong().expect("it is taken once");
    {
        let mut running = std::pin::pin!(&mut connection);
        tokio::select! {
            biased;
            pong = pings.ping(h2::Ping::opaque()) => {
                pong.map_err(said)?;
            }
            ended = &mut running => {
                ended.map_err(said)?;
                return Err("it closed the connection".into());
            }
        }
    }
    Ok(Opened { sender, connection, pulse, outbox })
}

/// Cancelled calls whose last frames may still be under way, per connection.
const RESET_STREAMS_MAX: usize = 1_024;
/// How long they may be.
const RESET_STREAM_LINGER: Duration = Duration::from_secs(5);

//! Tells a client why it is not served, in its protocol, at next to no cost.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host::Io;

/// How long the client may take to read why. After that its connection is cut.
const PATIENCE: Duration = Duration::from_secs(1);
/// HTTP/2's ENHANCE_YOUR_CALM (RFC 9113 §7): go elsewhere, or come back later.
const ENHANCE_YOUR_CALM: u32 = 11;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// Sends SETTINGS, which every server sends first, and a GOAWAY that says that no stream was looked at: what the client
/// has sent may be sent elsewhere.
pub(super) async fn refuse(mut io: Box<dyn Io>, message: &str) {
    let refusal = goaway(message);
    let tell = async {
        io.write_all(&refusal).await?;
        io.shutdown().await?;
        // A socket closed with unread bytes resets the connection, and the client would never see why.
        let mut unread = [0; 1024];
        while io.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whether it has seen it or not, it is refused.
    let _ = tokio::time::timeout(PATIENCE, tell).await;
}

fn goaway(message: &str) -> BytesMut {
    let mut frames = BytesMut::new();
    head(&mut frames, 0, SETTINGS);
    head(&mut frames, 8 + message.len(), GOAWAY);
    frames.put_u32(0);
    frames.put_u32(ENHANCE_YOUR_CALM);
    frames.put_slice(message.as_bytes());
    frames
}

/// A frame's head, on the connection's own stream.
fn head(frames: &mut BytesMut, length: usize, kind: u8) {
    frames.put_uint(length as u64, 3);
    frames.put_u8(kind);
    frames.put_u8(0);
    frames.put_u32(0);
}

//! A connection's bytes, counted as they pass.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;
use super::outbox::Outbox;
use crate::host::Io;

/// What a connection has done so far. Written as its bytes pass, read by whoever cares for it.
#[derive(Debug, Default)]
pub struct Pulse {
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    resets: AtomicU64,
    blocked: AtomicBool,
}

impl Pulse {
    /// Bytes that the other end has sent.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the system has taken for the other end.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Acquire)
    }

    /// HTTP/2 streams that the other end has reset.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// Whether bytes wait that the system does not take.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Counts what the system has said to a write.
    pub(super) fn counted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => {
                self.written_bytes.fetch_add(*bytes as u64, Ordering::Release);
                self.blocked.store(false, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.blocked.store(true, Ordering::Relaxed),
        }
        written
    }
}

/// The bytes of a connection, counted, those that were looked at first.
pub struct Traffic {
    out: Outbox,
    /// What is read before anything of the connection.
    first: Bytes,
    frames: Option<Frames>,
    /// The largest header block that may come, as it is sent, and what is said of a larger one.
    block_bytes_max: usize,
    block_rule: &'static str,
    pulse: Arc<Pulse>,
}

impl Traffic {
    /// Counts what passes over `io`.
    pub fn new(io: Box<dyn Io>) -> Traffic {
        let (block_bytes_max, block_rule) = (usize::MAX, "");
        let pulse: Arc<Pulse> = Arc::default();
        let out = Outbox::new(io, pulse.clone());
        Traffic { out, first: Bytes::new(), frames: None, block_bytes_max, block_rule, pulse }
    }

    /// `first` was read already, and is to be read again.
    pub fn after(self, first: &[u8]) -> Traffic {
        Traffic { first: Bytes::copy_from_slice(first), ..self }
    }

    /// What comes after the bytes read first is HTTP/2: its resets are counted, too.
    pub fn counting_resets(self) -> Traffic {
        Traffic { frames: Some(Frames::default()), ..self }
    }

    /// What comes is HTTP/2: header blocks of more than `bytes_max` bytes, as they are sent, break the connection with
    /// the error `rule`.
    pub fn bounding_headers(self, bytes_max: usize, rule: &'static str) -> Traffic {
        Traffic { frames: Some(Frames::default()), block_bytes_max: bytes_max, block_rule: rule, ..self }
    }

    /// What goes out.
    pub fn outbox(&self) -> Outbox {
        self.out.clone()
    }

    /// What is counted.
    pub fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }
}

impl AsyncRead for Traffic {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = &mut *self;
        if !wire.first.is_empty() {
            let count = wire.first.len().min(buffer.remaining());
            buffer.put_slice(&wire.first.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = wire.out.poll_read(cx, buffer);
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            wire.pulse.read_bytes.fetch_add(read.len() as u64, Ordering::Relaxed);
            if let Some(frames) = &mut wire.frames {
                frames.read(read);
                wire.pulse.resets.store(frames.resets, Ordering::Relaxed);
                if frames.block_bytes_most > wire.block_bytes_max {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, wire.block_rule)));
                }
            }
        }
        polled
    }
}

impl AsyncWrite for Traffic {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.out.poll_write(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.out.poll_write(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.out.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_shutdown(cx)
    }
}

//! A connection's bytes, counted as they pass.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;
use super::sniff::{First, PREFACE};
use crate::host::Io;

/// What a connection has done so far. Written by its wire, read by the task that cares for it.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    resets: AtomicU64,
    blocked: AtomicBool,
}

impl Pulse {
    /// Bytes that the client has sent.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the system has taken for the client.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Streams that the client has reset.
    pub(super) fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// Whether bytes wait that the system does not take.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }
}

/// The bytes of a connection, those that were looked at first.
pub(super) struct Wire {
    io: Box<dyn Io>,
    first: First,
    replayed: usize,
    frames: Option<Frames>,
    pulse: Arc<Pulse>,
}

impl Wire {
    /// Of a client that speaks HTTP/2: `first` is its preface.
    pub(super) fn http2(io: Box<dyn Io>, first: First) -> Wire {
        debug_assert_eq!(first.bytes(), PREFACE);
        Wire { io, first, replayed: 0, frames: Some(Frames::default()), pulse: Arc::default() }
    }

    /// Of a client that speaks HTTP/1.1.
    pub(super) fn http1(io: Box<dyn Io>, first: First) -> Wire {
        Wire { io, first, replayed: 0, frames: None, pulse: Arc::default() }
    }

    pub(super) fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => {
                self.pulse.written_bytes.fetch_add(*bytes as u64, Ordering::Relaxed);
                self.pulse.blocked.store(false, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.pulse.blocked.store(true, Ordering::Relaxed),
        }
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = &mut *self;
        let left = &wire.first.bytes()[wire.replayed..];
        if !left.is_empty() {
            let count = left.len().min(buffer.remaining());
            buffer.put_slice(&left[..count]);
            wire.replayed += count;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut wire.io).poll_read(cx, buffer);
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            wire.pulse.read_bytes.fetch_add(read.len() as u64, Ordering::Relaxed);
            let resets = wire.frames.as_mut().map_or(0, |frames| frames.resets(read));
            if resets > 0 {
                wire.pulse.resets.fetch_add(resets, Ordering::Relaxed);
            }
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, data);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

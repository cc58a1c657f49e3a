//! A hash of all traffic: two runs of one seed are the same run if theirs are the same.

use std::cell::RefCell;
use std::io::Write;
use std::net::SocketAddr;

use xxhash_rust::xxh3::Xxh3;

/// What has been sent so far on this thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagrams and TCP writes.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Over time, sender, receiver and content of each.
    pub hash: u64,
}

struct Trace {
    messages: u64,
    bytes: u64,
    hash: Xxh3,
    dump: Option<std::io::BufWriter<std::fs::File>>,
}

thread_local! {
    static TRACE: RefCell<Trace> = const { RefCell::new(Trace { messages: 0, bytes: 0, hash: Xxh3::new(), dump: None }) };
}

/// Starts a new trace on this thread. With `dump`, one line per message goes to that file: the first line that
/// differs between two runs says where they part.
pub fn start(dump: Option<&std::path::Path>) -> std::io::Result<()> {
    let dump = dump.map(std::fs::File::create).transpose()?.map(std::io::BufWriter::new);
    TRACE.with(|trace| *trace.borrow_mut() = Trace { messages: 0, bytes: 0, hash: Xxh3::new(), dump });
    Ok(())
}

/// Notes a message.
pub(crate) fn sent(kind: &str, from: &str, to: Option<SocketAddr>, content: &[u8]) {
    let micros = turmoil::sim_elapsed().unwrap_or_default().as_micros();
    TRACE.with(|trace| {
        let trace = &mut *trace.borrow_mut();
        trace.messages += 1;
        trace.bytes += content.len() as u64;
        trace.hash.update(&micros.to_le_bytes());
        trace.hash.update(from.as_bytes());
        trace.hash.update(content);
        if let Some(dump) = &mut trace.dump {
            let content = xxhash_rust::xxh3::xxh3_64(content);
            let _ = writeln!(dump, "{micros} {kind} {from} {to:?} {content:016x}");
        }
    });
}

/// Notes something else that must repeat, such as an entry of the history.
pub(crate) fn note(text: &str) {
    sent("note", text, None, &[]);
}

/// The trace so far.
pub fn traffic() -> Traffic {
    TRACE.with(|trace| {
        let trace = trace.borrow();
        Traffic { messages: trace.messages, bytes: trace.bytes, hash: trace.hash.digest() }
    })
}

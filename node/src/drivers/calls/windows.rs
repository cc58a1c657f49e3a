//! The windows of the calls on one connection to an instance. The connection's own window is as large as HTTP/2 has it,
//! since one that fills with what some clients do not read would stop the calls of all others. So the streams' windows
//! bound what waits: the more calls, the smaller.

use bytesize::ByteSize;

/// The largest window (RFC 9113 §6.9.1).
pub(super) const WINDOW_BYTES_MOST: u32 = u32::MAX >> 1;
/// No stream gets less: about what every HTTP/2 stream begins with.
const STREAM_BYTES_MIN: u32 = 64 << 10;

/// What each call on a connection may be sent before it is passed on.
pub(super) struct Windows {
    /// Of all calls together, while `STREAM_BYTES_MIN` for each is not more.
    all: u32,
    /// Of one call, at most.
    most: u32,
    now: u32,
}

impl Windows {
    /// The windows of a connection that has begun with `stream_window`.
    pub(super) fn new(stream_window: ByteSize, connection_window: ByteSize) -> Windows {
        let most = bytes(stream_window);
        Windows { all: bytes(connection_window), most, now: most }
    }

    /// The window that streams should get, if with so many calls it is another one than now. It grows only when half as
    /// many calls are left as it shrank for, so that calls that come and go do not change it each time.
    pub(super) fn wanted(&self, calls: usize) -> Option<u32> {
        let (least, most) = (self.of(calls), self.of(calls.saturating_mul(2)));
        if least < self.now {
            return Some(least);
        }
        (most > self.now).then_some(most)
    }

    /// The instance is told of this one.
    pub(super) fn set(&mut self, window: u32) {
        self.now = window;
    }

    fn of(&self, calls: usize) -> u32 {
        let calls = calls.clamp(1, 1 << 20).next_power_of_two() as u32;
        (self.all / calls).max(STREAM_BYTES_MIN).min(self.most)
    }
}

/// A size as HTTP/2 counts windows.
pub(super) fn bytes(size: ByteSize) -> u32 {
    u32::try_from(size.as_u64()).unwrap_or(WINDOW_BYTES_MOST).min(WINDOW_BYTES_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_with_many_calls_and_grow_when_half_are_gone() {
        let mut windows = Windows::new(ByteSize::mib(1), ByteSize::mib(8));
        assert_eq!(windows.wanted(8), None);
        // Calls on the connection, and the window asked for.
        for (calls, wanted) in [
            (9, Some(512 << 10)),
            (8, None),
            (5, None),
            (4, Some(1 << 20)),
            (1_000, Some(64 << 10)),
            (60, None),
            (32, Some(128 << 10)),
            (0, Some(1 << 20)),
        ] {
            assert_eq!(windows.wanted(calls), wanted, "{calls} calls");
            windows.set(wanted.unwrap_or(windows.now));
        }
    }
}

//! The door's memory: one budget for all connections, from which each takes its share.

use bytesize::ByteSize;
use prometheus_client::metrics::gauge::Gauge;

use super::ApiConfig;
use crate::wire::GATHERED_BYTES_MAX;

/// What a connection costs beside its window: buffers of the codec, HPACK tables, its task; and what it gathers to send.
const CONNECTION_BYTES: u32 = (32 << 10) + GATHERED_BYTES_MAX as u32;
/// The smallest window: the one that every HTTP/2 connection begins with (RFC 9113 §6.9.2), in round numbers.
pub(super) const WINDOW_BYTES_MIN: u32 = 64 << 10;
/// The window of a new connection while there is room.
const WINDOW_BYTES_START: u32 = 1 << 20;
/// What a request costs beside its headers and its send buffer: its task and the stream's state.
const REQUEST_BYTES: u64 = 4 << 10;

/// Bytes that the door may use. Cheap to clone; the gauge is the count.
#[derive(Clone)]
pub(super) struct Budget {
    bytes_max: i64,
    used: Gauge,
}

/// Bytes taken from the budget; given back when it drops.
pub(super) struct Grant {
    budget: Budget,
    bytes: i64,
}

/// A connection's share: what it costs, and the window that it may grant its client.
pub(super) struct Share {
    grant: Grant,
    window: u32,
    window_max: u32,
}

impl Budget {
    /// A budget of `bytes_max`; `used` shows what is taken.
    pub(super) fn new(bytes_max: u64, used: Gauge) -> Budget {
        Budget { bytes_max: i64::try_from(bytes_max).unwrap_or(i64::MAX), used }
    }

    /// The share of a new connection: with a small window when less than half of the budget is left, none when all is
    /// gone.
    pub(super) fn connection(&self, config: &ApiConfig) -> Option<Share> {
        let window_max = bytes(config.connection_window);
        let start = if self.left() > self.bytes_max / 2 { WINDOW_BYTES_START } else { WINDOW_BYTES_MIN };
        let window = start.min(window_max);
        let grant = self.take(u64::from(CONNECTION_BYTES + window))?;
        Some(Share { grant, window, window_max })
    }

    /// What a request costs while it is served: its headers, what may wait in its send buffer, and its state.
    pub(super) fn request(&self, headers_bytes: usize, config: &ApiConfig) -> Option<Grant> {
        self.take(REQUEST_BYTES + headers_bytes as u64 + config.send_buffer_max.as_u64())
    }

    fn take(&self, bytes: u64) -> Option<Grant> {
        let bytes = i64::try_from(bytes).ok()?;
        // Added first and looked at then: between the two others may be refused, but the limit holds.
        let grant = Grant { budget: self.clone(), bytes };
        (self.used.inc_by(bytes) + bytes <= self.bytes_max).then_some(grant)
    }

    fn left(&self) -> i64 {
        self.bytes_max - self.used.get()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.budget.used.dec_by(self.bytes);
    }
}

impl Share {
    /// Bytes that the client may send on this connection before they are read.
    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// Whether a larger window is allowed at all.
    pub(super) fn can_grow(&self) -> bool {
        self.window < self.window_max
    }

    /// Doubles the window, if that leaves a quarter of the budget to others.
    pub(super) fn grow(&mut self) -> bool {
        let window = self.window.saturating_mul(2).min(self.window_max);
        let more = i64::from(window - self.window);
        let budget = &self.grant.budget;
        if more == 0 || budget.left() - more < budget.bytes_max / 4 {
            return false;
        }
        let Some(mut grant) = budget.take(more.unsigned_abs()) else { return false };
        self.grant.bytes += std::mem::take(&mut grant.bytes);
        self.window = window;
        true
    }
}

/// A size as HTTP/2 counts windows: at most 2^31 - 1.
pub(super) fn bytes(size: ByteSize) -> u32 {
    u32::try_from(size.as_u64()).unwrap_or(u32::MAX).min(u32::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_as_the_budget_does_and_all_comes_back() {
        let config = ApiConfig { memory_max: ByteSize::mib(8), ..ApiConfig::default() };
        let budget = Budget::new(config.memory_max.as_u64(), Gauge::default());
        let mut shares: Vec<Share> = std::iter::from_fn(|| budget.connection(&config)).collect();
        let windows: Vec<u32> = shares.iter().map(Share::window).collect();
        assert_eq!(windows[..4], [WINDOW_BYTES_START; 4]);
        assert_eq!(windows[4], WINDOW_BYTES_MIN);
        assert!(windows.len() > 35, "{windows:?}");
        assert!(budget.request(100, &config).is_none() || budget.left() >= 0);
        assert!(!shares[0].grow(), "nothing is left");
        shares.truncate(1);
        assert!(shares[0].grow() && shares[0].grow());
        assert_eq!(shares[0].window(), 4 * WINDOW_BYTES_START);
        assert!(!shares[0].grow(), "a quarter is left to others");
        let request = budget.request(100, &config);
        assert!(request.is_some());
        drop((request, shares));
        assert_eq!(budget.left(), budget.bytes_max);
    }
}

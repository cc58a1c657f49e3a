//! What the storage counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The storage's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Journal frames written.
    pub frames: Counter,
    /// Journal bytes written, stamps and padding included.
    pub frame_bytes: Counter,
    /// Seconds that a frame took to write and sync.
    pub frame_seconds: Histogram,
    /// Bytes that wait for the next frame.
    pub queue_bytes: Gauge,
    /// Seconds that a checkpoint took.
    pub checkpoint_seconds: Histogram,
    /// Bytes free on the file system.
    pub free_bytes: Gauge,
    /// 1 while publishes are refused for want of space.
    pub full: Gauge,
    /// Journal files, and how often one was made free again.
    pub slots: Gauge,
    /// See `slots`.
    pub slots_recycled: Counter,
    /// Segment files that are open.
    pub files_open: Gauge,
    /// Groups fenced because of damage.
    pub groups_fenced: Gauge,
    /// Groups in whose segments a reader or the scrub found damage.
    pub segments_damaged: Counter,
    /// Bytes of segments that the scrub has checked.
    pub scrubbed_bytes: Counter,
    /// Log entries written again so that they do not pin the journal.
    pub entries_moved: Counter,
    /// Log entries read back from the journal.
    pub entries_read: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 18));
        Metrics {
            frames: Counter::default(),
            frame_bytes: Counter::default(),
            frame_seconds: seconds(),
            queue_bytes: Gauge::default(),
            checkpoint_seconds: seconds(),
            free_bytes: Gauge::default(),
            full: Gauge::default(),
            slots: Gauge::default(),
            slots_recycled: Counter::default(),
            files_open: Gauge::default(),
            groups_fenced: Gauge::default(),
            segments_damaged: Counter::default(),
            scrubbed_bytes: Counter::default(),
            entries_moved: Counter::default(),
            entries_read: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers all.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("weft_storage_frames", "Journal frames written", self.frames.clone());
        registry.register("weft_storage_frame_bytes", "Journal bytes written", self.frame_bytes.clone());
        registry.register(
            "weft_storage_frame_seconds",
            "Time to write and sync a journal frame",
            self.frame_seconds.clone(),
        );
        registry.register(
            "weft_storage_queue_bytes",
            "Bytes that wait for the next journal frame",
            self.queue_bytes.clone(),
        );
        registry.register(
            "weft_storage_checkpoint_seconds",
            "Time to take a checkpoint",
            self.checkpoint_seconds.clone(),
        );
        registry.register("weft_storage_free_bytes", "Bytes free on the file system", self.free_bytes.clone());
        registry.register("weft_storage_full", "1 while publishes are refused for want of space", self.full.clone());
        registry.register("weft_storage_slots", "Journal files", self.slots.clone());
        registry.register("weft_storage_slots_recycled", "Journal files made free again", self.slots_recycled.clone());
        registry.register("weft_storage_files_open", "Segment files that are open", self.files_open.clone());
        registry.register("weft_storage_groups_fenced", "Groups fenced because of damage", self.groups_fenced.clone());
        let damaged = self.segments_damaged.clone();
        registry.register("weft_storage_segments_damaged", "Replicas in whose segments damage was found", damaged);
        registry.register(
            "weft_storage_scrubbed_bytes",
            "Segment bytes that the scrub has checked",
            self.scrubbed_bytes.clone(),
        );
        registry.register(
            "weft_storage_entries_moved",
            "Log entries written again to free old journal files",
            self.entries_moved.clone(),
        );
        registry.register(
            "weft_storage_entries_read",
            "Log entries read back from the journal",
            self.entries_read.clone(),
        );
    }
}

//! The scrub: reads all segments through now and then, slowly, so that rot is found while other replicas are sound.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::group::Group;
use super::segments::Segment;
use super::{Inner, locked};

/// Read and checked at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Scrubs for as long as the node runs, unless it is switched off.
pub(super) async fn run(inner: Arc<Inner>) {
    let per_second = inner.config.scrub_bytes_per_second.as_u64();
    if per_second == 0 {
        return;
    }
    loop {
        let next = Instant::now() + inner.config.scrub_interval;
        pass(&inner, per_second).await;
        sleep_until(next).await;
    }
}

/// Checks every segment that is there now.
async fn pass(inner: &Arc<Inner>, per_second: u64) {
    let groups: Vec<_> = locked(&inner.groups).values().cloned().collect();
    for group in groups {
        for segment in group.files.live() {
            if !sound(&group) {
                break;
            }
            if let Err(error) = scrub(inner, &group, &segment, per_second).await {
                match error.kind() {
                    io::ErrorKind::InvalidData => group.note_damage(inner, &error),
                    // Its folder may have gone with its replica.
                    io::ErrorKind::NotFound => {}
                    _ => tracing::warn!(group = %group.id, %error, "a segment cannot be checked"),
                }
            }
        }
    }
}

/// False once there is nothing more to find: what is damaged is replaced as a whole.
fn sound(group: &Group) -> bool {
    let log = locked(&group.log);
    !log.deleted && log.fenced.is_none() && group.damage().is_none()
}

async fn scrub(inner: &Arc<Inner>, group: &Arc<Group>, segment: &Arc<Segment>, per_second: u64) -> io::Result<()> {
    let mut at = 0;
    loop {
        let verify = {
            let (group, segment) = (Arc::clone(group), Arc::clone(segment));
            move || segment.verify(&group.files, at, PIECE_BYTES)
        };
        let Some(next) = inner.host.run_blocking(verify).await? else { return Ok(()) };
        let bytes = next - at;
        inner.metrics.scrubbed_bytes.inc_by(bytes);
        at = next;
        sleep(Duration::from_secs_f64(bytes as f64 / per_second as f64)).await;
    }
}

//! Segment files of a snapshot, over a bulk stream: asked for with one `FetchRequest`, answered by the file's
//! bytes in order, in frames of at most `FETCH_FRAME_BYTES`, and the stream's end.

use std::io;

use bytes::Bytes;
use prost::Message;
use weft_cluster::ids::{NodeId, Offset, PartitionId, RaftGroup, TopicId};
use weft_proto::internal::v1::FetchRequest;

use crate::drivers::link::{Lane, LinkStream, Links};
use crate::drivers::storage::{SegmentInfo, Staging, Storage};

/// Bytes of a file per frame.
const FETCH_FRAME_BYTES: u64 = 256 << 10;

/// Fetches one segment file of a snapshot from the node that sent its manifest, into `staging`.
///
/// # Errors
/// The link is lost, or the peer's file is not the one that the manifest names.
pub async fn fetch_file(
    links: &Links,
    from: NodeId,
    group: RaftGroup,
    file: &SegmentInfo,
    staging: &mut Staging,
) -> io::Result<()> {
    let mut stream = links.open(from, Lane::Bulk).await.map_err(io::Error::other)?;
    let request = FetchRequest {
        group: group.0,
        topic: file.partition.topic.0,
        partition: file.partition.index,
        base_offset: file.base.0,
        from: 0,
        bytes: file.bytes,
    };
    stream.send.send(vec![request.encode_to_vec().into()]).await.map_err(io::Error::other)?;
    stream.send.finish();
    let mut at = 0;
    while let Some(part) = stream.receive.next().await.map_err(io::Error::other)? {
        if at + part.len() as u64 > file.bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer's file is longer than its manifest says"));
        }
        staging.write(file, at, &part)?;
        at += part.len() as u64;
    }
    if at < file.bytes {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer's file is shorter than its manifest says"));
    }
    Ok(())
}

/// Serves one `FetchRequest`. Dropping the stream without its end tells the peer that it failed.
pub(super) async fn serve(storage: &Storage, first: Bytes, mut stream: LinkStream) -> io::Result<()> {
    let request = FetchRequest::decode(first).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let segments = storage.segments(RaftGroup(request.group));
    let file = SegmentInfo {
        partition: PartitionId { topic: TopicId(request.topic), index: request.partition },
        base: Offset(request.base_offset),
        bytes: request.from.saturating_add(request.bytes),
        crc: 0,
    };
    let mut at = request.from;
    while at < file.bytes {
        let bytes = usize::try_from(FETCH_FRAME_BYTES.min(file.bytes - at)).expect("at most a frame");
        let part = segments.read_file(&file, at, bytes)?;
        if part.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += part.len() as u64;
        stream.send.send(vec![part]).await.map_err(io::Error::other)?;
    }
    stream.send.finish();
    Ok(())
}

//! Small files: a checked envelope around serialized content, and their atomic replacement.

use std::io;
use std::path::Path;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::{Disk, Open};

/// What a file is; the first 8 bytes of it.
pub(super) type Magic = [u8; 8];

const HEADER_BYTES: usize = 24;
/// A small file larger than this is damaged: it is not read into memory.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// Serializes `content` behind magic, version, length and CRC-32C.
pub(super) fn seal(magic: &Magic, version: u32, content: &impl Serialize) -> io::Result<Vec<u8>> {
    let content = postcard::to_allocvec(content).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&content);
    Ok(bytes)
}

/// Checks an envelope and reads what is in it.
///
/// # Errors
/// `InvalidData` with a sentence that names `path`: not such a file, a version this binary does not know,
/// cut short, or a wrong CRC.
pub(super) fn unseal<T: DeserializeOwned>(path: &Path, magic: &Magic, version: u32, bytes: &[u8]) -> io::Result<T> {
    let name = path.display();
    if bytes.len() < HEADER_BYTES || bytes[..8] != magic[..] {
        return Err(invalid(format!("{name} is damaged: it does not start as it should")));
    }
    let found = u32_at(bytes, 8);
    if found != version {
        return Err(invalid(format!(
            "{name} has format version {found}, this binary knows version {version} only: start the version that wrote it"
        )));
    }
    let content = &bytes[HEADER_BYTES..];
    if u64_at(bytes, 16) != content.len() as u64 || u32_at(bytes, 12) != crc32c::crc32c(content) {
        return Err(invalid(format!("{name} is damaged: its CRC does not match")));
    }
    postcard::from_bytes(content).map_err(|error| invalid(format!("{name} cannot be read: {error}")))
}

/// Reads a whole small file.
pub(super) fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Bytes> {
    let file = disk.open(path, Open::Read)?;
    let bytes = file.len()?;
    if bytes > FILE_BYTES_MAX {
        return Err(invalid(format!("{} is damaged: {bytes} bytes", path.display())));
    }
    file.read_exact_at(bytes as usize, 0)
}

/// Writes `bytes` to `path` so that after a crash the file is the old or the new one, durable on return.
pub(super) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file has a folder"))?;
    let draft = path.with_extension("tmp");
    let file = disk.open(&draft, Open::Replace)?;
    file.write_at(bytes, 0)?;
    file.sync_data()?;
    disk.rename(&draft, path)?;
    disk.sync_dir(folder)
}

/// An `InvalidData` error.
pub(super) fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// A little-endian u32 at `at`; the caller has checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// A little-endian u64 at `at`; the caller has checked the length.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

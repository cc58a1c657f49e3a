//! The production file system.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "runs outside a simulated node")]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::descriptors::{is_out_of_descriptors, out_of_descriptors};
use super::{Disk, DiskFile, Open};

/// Parts shorter than this in total are joined and written by one call.
const JOIN_BYTES_MAX: usize = 64 * 1024;

/// The operating system's file system. Every error names its file.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

/// Adds what was tried and where to an error, keeping its kind, whether it is for want of descriptors, and the system's
/// words.
fn context(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| {
        let words = format!("{what} {}: {error}", path.display());
        if is_out_of_descriptors(&error) { out_of_descriptors(words) } else { io::Error::new(error.kind(), words) }
    }
}

impl Disk for OsDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        // The data folder holds the secret of the reset keys, and `weft ca` writes private keys.
        options.read(true).write(how != Open::Read).mode(0o600);
        match how {
            Open::Read | Open::Write => {}
            Open::Create => drop(options.create_new(true)),
            Open::Replace => drop(options.create(true).truncate(true)),
        }
        let file = options.open(path).map_err(context("open", path))?;
        Ok(Arc::new(OsFile { file }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(context("make the folder", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to).map_err(context("rename to", to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path).map_err(context("remove", path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path).map_err(context("remove the folder", path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = fs::read_dir(path)
            .map_err(context("list", path))?
            .map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())))
            .collect::<io::Result<Vec<_>>>()
            .map_err(context("list", path))?;
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(context("sync the folder", path))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let system = rustix::fs::statvfs(path).map_err(|error| context("ask the free space of", path)(error.into()))?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(context("open", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => {
                Err(io::Error::new(io::ErrorKind::WouldBlock, format!("{} is held by another process", path.display())))
            }
            Err(TryLockError::Error(error)) => Err(context("lock", path)(error)),
        }
    }
}

/// An open file of the operating system.
struct OsFile {
    file: File,
}

impl DiskFile for OsFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(data, at)
    }

    fn write_parts_at(&self, parts: &[IoSlice<'_>], mut at: u64) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total <= JOIN_BYTES_MAX {
            return self.file.write_all_at(&parts.concat_parts(total), at);
        }
        let mut parts = parts.to_vec();
        let mut left = parts.as_mut_slice();
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            // The system takes at most 1024 parts in one call.
            let count = left.len().min(1024);
            match rustix::io::pwritev(&self.file, &left[..count], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // Not every file system can; a write may then meet a full disk.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.set_len(bytes),
            Err(error) => Err(error.into()),
        }
    }
}

/// Joins parts into one buffer.
trait ConcatParts {
    fn concat_parts(&self, total: usize) -> Vec<u8>;
}

impl ConcatParts for [IoSlice<'_>] {
    fn concat_parts(&self, total: usize) -> Vec<u8> {
        let mut joined = Vec::with_capacity(total);
        self.iter().for_each(|part| joined.extend_from_slice(part));
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_parts_and_reads_them_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("file");
        let file = OsDisk.open(&path, Open::Create).expect("create");
        assert!(OsDisk.open(&path, Open::Create).is_err());
        let big = vec![7u8; JOIN_BYTES_MAX];
        file.write_parts_at(&[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(&big)], 3).expect("write");
        file.write_parts_at(&[IoSlice::new(b"x"), IoSlice::new(b"yz")], 0).expect("write");
        file.sync_data().expect("sync");
        assert_eq!(file.len().expect("len"), 5 + big.len() as u64);
        let read = file.read_exact_at(5 + big.len(), 0).expect("read");
        assert_eq!(&read[..5], b"xyzab");
        assert_eq!(&read[5..], &big[..]);
        file.allocate(1 << 20).expect("allocate");
        assert_eq!(file.len().expect("len"), 1 << 20);
        assert_eq!(&file.read_exact_at(5, 0).expect("read")[..], b"xyzab", "what was there stays");
        assert_eq!(OsDisk.list(folder.path()).expect("list"), vec![PathBuf::from("file")]);
        assert!(OsDisk.free_bytes(folder.path()).expect("free") > 0);
    }

    #[test]
    fn a_lock_is_exclusive_until_dropped() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("LOCK");
        let held = OsDisk.lock(&path).expect("lock");
        assert_eq!(OsDisk.lock(&path).err().map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
        drop(held);
        OsDisk.lock(&path).expect("lock again");
    }
}

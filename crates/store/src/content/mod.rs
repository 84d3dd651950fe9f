//! File content as bytes: cutting and hashing it, and packs for what no worktree holds.
//!
//! Never here: the index that says where a chunk is (redb), and worktree paths.

mod chunker;
pub mod packs;

use std::io;

pub use chunker::{Relation, ScanError, Scanned, scan_chunks, scan_content};

/// Content that can be read from any place; a file, usually.
pub trait Source {
    /// Reads some bytes at `offset`; 0 only at the end or for an empty buffer.
    ///
    /// # Errors
    /// Whatever the medium reports. `Interrupted` is tried again by the caller.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}

impl Source for &[u8] {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.get(offset..));
        let mut rest = rest.unwrap_or_default();
        io::Read::read(&mut rest, buf)
    }
}

#[cfg(unix)]
impl Source for std::fs::File {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }
}

//! An open file on Linux.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::linux::{failed, retry};
use super::metadata::{raw_stat, stat_open};
use super::{DiskError, DiskFile, DiskOp, RelPath, Stat};

/// An open regular file.
pub(super) struct LinuxFile {
    fd: OwnedFd,
    path: RelPath,
    root_mount: Option<u64>,
}

impl LinuxFile {
    /// Takes a handle that is open on a regular file; `path` is for errors.
    pub(super) fn new(fd: OwnedFd, path: &RelPath, root_mount: Option<u64>) -> Self {
        Self {
            fd,
            path: path.clone(),
            root_mount,
        }
    }
}

impl DiskFile for LinuxFile {
    fn stat(&self) -> Result<Stat, DiskError> {
        stat_open(self.fd.as_fd(), self.root_mount).map_err(failed(DiskOp::Stat, &self.path))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, DiskError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(filled as u64);
            match retry(|| rustix::io::pread(&self.fd, &mut *rest, at)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(errno) => return Err(failed(DiskOp::Read, &self.path)(errno)),
            }
        }
        Ok(filled)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let op = DiskOp::Write;
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(written as u64);
            match retry(|| rustix::io::pwrite(&self.fd, rest, at)) {
                Ok(0) => return Err(DiskError::new(op, &self.path, io::ErrorKind::WriteZero)),
                Ok(more) => written += more,
                Err(errno) => return Err(failed(op, &self.path)(errno)),
            }
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> Result<(), DiskError> {
        retry(|| rustix::fs::ftruncate(&self.fd, len)).map_err(failed(DiskOp::SetLen, &self.path))
    }

    fn set_mode(&mut self, mode: u16) -> Result<(), DiskError> {
        change_mode(self.fd.as_fd(), mode).map_err(failed(DiskOp::SetMode, &self.path))
    }

    fn set_mtime(&mut self, mtime_ns: i64) -> Result<(), DiskError> {
        rustix::fs::futimens(&self.fd, &only_mtime(mtime_ns))
            .map_err(failed(DiskOp::SetMtime, &self.path))
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        retry(|| rustix::fs::fdatasync(&self.fd)).map_err(failed(DiskOp::Sync, &self.path))
    }
}

impl AsFd for LinuxFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sets the 0o777 bits of what a readable handle is open on; set-id and sticky bits stay.
pub(super) fn change_mode(fd: BorrowedFd<'_>, mode: u16) -> Result<(), Errno> {
    let kept = u32::from(raw_stat(fd)?.stx_mode) & 0o7000;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(kept | u32::from(mode & 0o777)))
}

/// A modification time alone; the time of the last access stays.
pub(super) fn only_mtime(mtime_ns: i64) -> Timestamps {
    const SECOND: i64 = 1_000_000_000;
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime_ns.div_euclid(SECOND),
            tv_nsec: mtime_ns.rem_euclid(SECOND),
        },
    }
}

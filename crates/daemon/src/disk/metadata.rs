//! Metadata as Linux gives it, in the words of the disk.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use super::{DirIdentity, FileKind, Identity, Stat};

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);
const ENTRY: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);

pub(super) fn identify(fd: BorrowedFd<'_>) -> Result<DirIdentity, Errno> {
    let identity = stat_open(fd)?.identity;
    Ok(DirIdentity {
        dev: identity.dev,
        ino: identity.ino,
        fs_id: rustix::fs::fstatvfs(fd)?.f_fsid,
        // A bare number whose sign depends on the architecture.
        fs_type: rustix::fs::fstatfs(fd)?.f_type as u64,
    })
}

pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    Ok(stat_of(&rustix::fs::statx(dir, name, ENTRY, WANTED)?))
}

pub(super) fn stat_open(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    Ok(stat_of(&raw_stat(fd)?))
}

pub(super) fn raw_stat(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH | ENTRY, WANTED)
}

pub(super) fn stat_of(raw: &Statx) -> Stat {
    let kind = match FileType::from_raw_mode(raw.stx_mode.into()) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Dir,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let has_birth = raw.stx_mask & StatxFlags::BTIME.bits() != 0;
    Stat {
        kind,
        mode: raw.stx_mode & 0o777,
        nlink: raw.stx_nlink,
        identity: Identity {
            dev: rustix::fs::makedev(raw.stx_dev_major, raw.stx_dev_minor),
            ino: raw.stx_ino,
            size: raw.stx_size,
            mtime_ns: nanoseconds(raw.stx_mtime),
            ctime_ns: nanoseconds(raw.stx_ctime),
            btime_ns: has_birth.then(|| nanoseconds(raw.stx_btime)),
        },
    }
}

fn nanoseconds(time: StatxTimestamp) -> i64 {
    let exact = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    i64::try_from(exact).unwrap_or(if exact < 0 { i64::MIN } else { i64::MAX })
}

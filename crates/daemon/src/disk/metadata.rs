//! Metadata as Linux gives it, in the words of the disk.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use super::{DirIdentity, FileKind, Identity, OTHER_MOUNT, Stat};

const WANTED: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID);
const ENTRY: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);

/// Number of a mount since the system started; kernels before 5.8 do not tell it.
pub(super) fn mount_of(fd: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    Ok(mount_in(&raw_stat(fd)?))
}

fn mount_in(raw: &Statx) -> Option<u64> {
    (raw.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(raw.stx_mnt_id)
}

pub(super) fn identify(fd: BorrowedFd<'_>) -> Result<DirIdentity, Errno> {
    let identity = stat_open(fd, None)?.identity;
    Ok(DirIdentity {
        dev: identity.dev,
        ino: identity.ino,
        fs_id: rustix::fs::fstatvfs(fd)?.f_fsid,
        // A bare number whose sign depends on the architecture.
        fs_type: rustix::fs::fstatfs(fd)?.f_type as u64,
    })
}

/// `root` is the mount of the root, as in all that follow.
pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &[u8], root: Option<u64>) -> Result<Stat, Errno> {
    let raw = rustix::fs::statx(dir, name, ENTRY, WANTED)?;
    Ok(stat_of(&raw, root))
}

pub(super) fn stat_open(fd: BorrowedFd<'_>, root: Option<u64>) -> Result<Stat, Errno> {
    Ok(stat_of(&raw_stat(fd)?, root))
}

pub(super) fn raw_stat(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH | ENTRY, WANTED)
}

pub(super) fn stat_of(raw: &Statx, root: Option<u64>) -> Stat {
    let dev = rustix::fs::makedev(raw.stx_dev_major, raw.stx_dev_minor);
    let elsewhere = root
        .zip(mount_in(raw))
        .is_some_and(|(root, own)| root != own);
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
            dev: if elsewhere { dev | OTHER_MOUNT } else { dev },
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

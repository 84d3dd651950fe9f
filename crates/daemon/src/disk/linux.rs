//! The disk on Linux: directory handles, `statx`, `renameat2`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, RenameFlags};
use rustix::io::Errno;

use super::error::Cause;
use super::file::{LinuxFile, change_mode, only_mtime};
use super::metadata::{identify, mount_of, raw_stat, stat_at, stat_of, stat_open};
use super::resolve::{self, DirFd, Refusal, Resolver};
use super::watch::Watcher;
use super::{
    DirEntry, DirIdentity, Disk, DiskError, DiskFile, DiskOp, EventSink, FileKind, Listing, Probe,
    RelPath, Stat,
};

/// Bytes of directory entries read in one call.
const LIST_BUFFER: usize = 32 * 1024;

/// Opening never follows a symlink, waits for a FIFO or takes over a terminal.
const OPEN: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// A directory of this machine as root.
///
/// Holds the directory open: it stays the same one even if its path comes to mean another, which
/// [`Disk::root_identity`] tells. Needs Linux 4.11 and a mounted `/proc` for watches.
pub struct LinuxDisk {
    root: OwnedFd,
    /// The mount that the root is on.
    root_mount: Option<u64>,
    place: PathBuf,
    resolver: Resolver,
    watcher: Option<Watcher>,
}

impl LinuxDisk {
    /// Opens a root without events.
    ///
    /// # Errors
    /// `is_not_found`, `is_not_a_directory`, `is_permission`.
    pub fn open(root: &Path) -> Result<Self, DiskError> {
        let fail = |source: io::Error| DiskError::new(DiskOp::OpenRoot, &RelPath::root(), source);
        let place = std::path::absolute(root).map_err(fail)?;
        let root = resolve::open_root(&place).map_err(|errno| fail(errno.into()))?;
        Ok(Self {
            resolver: Resolver::detect(root.as_fd()),
            root_mount: mount_of(root.as_fd()).map_err(|errno| fail(errno.into()))?,
            root,
            place,
            watcher: None,
        })
    }

    /// Opens a root whose watched directories report to `sink`, which is called on a thread that
    /// ends soon after the disk is dropped.
    ///
    /// # Errors
    /// As [`LinuxDisk::open`]; `is_watch_limit` when the user has no inotify instance left.
    pub fn with_events(root: &Path, sink: EventSink) -> Result<Self, DiskError> {
        let mut disk = Self::open(root)?;
        // The last name as the parent directory knows it, which needs the symlinks resolved.
        let name = std::fs::canonicalize(&disk.place)
            .ok()
            .and_then(|path| Some(path.file_name()?.as_bytes().to_vec()));
        let watcher = Watcher::start(disk.root.as_fd(), name, sink).map_err(|source| {
            let cause = match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::MFILE) => Cause::WatchLimit,
                _ => Cause::Os,
            };
            DiskError::caused(DiskOp::Watch, &RelPath::root(), cause, source)
        })?;
        disk.watcher = Some(watcher);
        Ok(disk)
    }

    /// Resolves as on a kernel without `openat2`.
    #[cfg(test)]
    pub(super) fn stepwise(mut self) -> Self {
        self.resolver = Resolver::Stepwise;
        self
    }

    #[cfg(test)]
    pub(super) fn watcher(&self) -> Option<&Watcher> {
        self.watcher.as_ref()
    }

    pub(super) fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory that holds an entry, and the entry's name in it.
    fn holder<'p>(
        &self,
        op: DiskOp,
        path: &'p RelPath,
    ) -> Result<(DirFd<'_>, &'p [u8]), DiskError> {
        let Some((parent, name)) = path.split_last() else {
            return Err(DiskError::new(op, path, io::ErrorKind::InvalidInput));
        };
        let dir = self
            .resolver
            .dir(self.root.as_fd(), parent)
            .map_err(|refusal| refused(op, path, refusal))?;
        Ok((dir, name))
    }

    fn readable_dir(&self, op: DiskOp, dir: &RelPath) -> Result<OwnedFd, DiskError> {
        self.resolver
            .readable_dir(self.root.as_fd(), dir.as_bytes())
            .map_err(|refusal| refused(op, dir, refusal))
    }

    fn open_file(&self, path: &RelPath, access: OFlags) -> Result<LinuxFile, DiskError> {
        let op = DiskOp::Open;
        let (dir, name) = self.holder(op, path)?;
        let wrong_kind =
            |errno: Errno| DiskError::caused(op, path, Cause::WrongKind, io::Error::from(errno));
        // Merely opening a device can have effects, so look first.
        let before = stat_at(dir.as_fd(), name, self.root_mount).map_err(failed(op, path))?;
        if before.kind != FileKind::File {
            return Err(wrong_kind(Errno::INVAL));
        }
        let fd = match retry(|| rustix::fs::openat(&dir, name, access | OPEN, Mode::empty())) {
            // What was a file a moment ago: a symlink, a directory, a socket.
            Err(errno @ (Errno::LOOP | Errno::ISDIR | Errno::NXIO)) => {
                return Err(wrong_kind(errno));
            }
            other => other.map_err(failed(op, path))?,
        };
        let file = LinuxFile::new(fd, path, self.root_mount);
        if file.stat()?.kind != FileKind::File {
            return Err(wrong_kind(Errno::INVAL));
        }
        Ok(file)
    }

    pub(super) fn create_file(&self, path: &RelPath, mode: u16) -> Result<LinuxFile, DiskError> {
        let op = DiskOp::Create;
        let (dir, name) = self.holder(op, path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OPEN;
        let open = || rustix::fs::openat(&dir, name, flags, permissions(mode));
        let fd = self
            .in_dirs(&[dir.as_fd()], open)
            .map_err(failed(op, path))?;
        Ok(LinuxFile::new(fd, path, self.root_mount))
    }

    /// Does something in directories. Where this user may not write to one that belongs to it, as
    /// people make theirs read-only on whichever device, it may for that moment. The root itself
    /// is left as it is: who closes that means this program.
    fn in_dirs<T>(
        &self,
        dirs: &[BorrowedFd<'_>],
        mut call: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match retry(&mut call) {
            Err(Errno::ACCESS) => {}
            other => return other,
        }
        let mut opened = vec![];
        for dir in dirs {
            opened.extend(self.open_up(*dir).map(|before| (*dir, before)));
        }
        if opened.is_empty() {
            return Err(Errno::ACCESS);
        }
        let done = retry(call);
        for (dir, before) in opened.into_iter().rev() {
            if let Err(error) = rustix::fs::chmod(resolve::through_proc(dir), before) {
                tracing::warn!(%error, "a directory's mode is not what it was");
            }
        }
        done
    }

    /// Lets this user write to a directory of its own that it closed; returns the mode before.
    fn open_up(&self, dir: BorrowedFd<'_>) -> Option<Mode> {
        let raw = raw_stat(dir).ok()?;
        let root = raw_stat(self.root.as_fd()).ok()?;
        let is_root = stat_of(&raw, None).identity.inode() == stat_of(&root, None).identity.inode();
        let writable = Mode::WUSR | Mode::XUSR;
        let before = Mode::from_raw_mode(u32::from(raw.stx_mode) & 0o7777);
        let own = raw.stx_uid == rustix::process::geteuid().as_raw();
        if is_root || !own || before.contains(writable) {
            return None;
        }
        rustix::fs::chmod(resolve::through_proc(dir), before | writable).ok()?;
        Some(before)
    }

    /// An entry that is a directory: to be moved to another one it has to be writable itself.
    fn as_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Option<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::empty()).ok()
    }

    fn rename_with(
        &self,
        op: DiskOp,
        from: &RelPath,
        to: &RelPath,
        flags: RenameFlags,
    ) -> Result<(), DiskError> {
        let (from_dir, from_name) = self.holder(op, from)?;
        let (to_dir, to_name) = self.holder(op, to)?;
        let rename = || rustix::fs::renameat_with(&from_dir, from_name, &to_dir, to_name, flags);
        let renamed = match rename() {
            Err(Errno::ACCESS) => {
                let entry = self.as_dir(from_dir.as_fd(), from_name);
                let mut dirs = vec![from_dir.as_fd(), to_dir.as_fd()];
                dirs.extend(entry.as_ref().map(|entry| entry.as_fd()));
                self.in_dirs(&dirs, rename)
            }
            other => other,
        };
        match renamed {
            // The same code also refuses to move a directory into itself.
            Err(Errno::INVAL)
                if !flags.is_empty() && !from.starts_with(to) && !to.starts_with(from) =>
            {
                Err(DiskError::new(op, from, io::ErrorKind::Unsupported))
            }
            Err(Errno::EXIST) => Err(failed(op, to)(Errno::EXIST)),
            other => other.map_err(failed(op, from)),
        }
    }
}

impl Disk for LinuxDisk {
    fn probe(&self) -> Result<Probe, DiskError> {
        super::probe::run(self)
    }

    fn root_identity(&self) -> Result<DirIdentity, DiskError> {
        let root = RelPath::root();
        let fail = failed(DiskOp::Identify, &root);
        let now = resolve::open_root(&self.place).map_err(&fail)?;
        identify(now.as_fd()).map_err(fail)
    }

    fn dir_identity(&self, dir: &RelPath) -> Result<DirIdentity, DiskError> {
        let op = DiskOp::Identify;
        let fd = self
            .resolver
            .dir(self.root.as_fd(), dir.as_bytes())
            .map_err(|refusal| refused(op, dir, refusal))?;
        identify(fd.as_fd()).map_err(failed(op, dir))
    }

    fn stat(&self, path: &RelPath) -> Result<Option<Stat>, DiskError> {
        let op = DiskOp::Stat;
        let found = match path.split_last() {
            None => stat_open(self.root.as_fd(), None),
            Some((parent, name)) => match self.resolver.dir(self.root.as_fd(), parent) {
                Ok(dir) => stat_at(dir.as_fd(), name, self.root_mount),
                Err(refusal) if refusal.cause == Cause::Os => Err(refusal.errno),
                Err(refusal) => return Err(refused(op, path, refusal)),
            },
        };
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(failed(op, path)(errno)),
        }
    }

    fn list(&self, dir: &RelPath) -> Result<Listing, DiskError> {
        let op = DiskOp::List;
        let fd = self.readable_dir(op, dir)?;
        let mut buffer: Vec<u8> = Vec::with_capacity(LIST_BUFFER);
        let mut raw = RawDir::new(&fd, buffer.spare_capacity_mut());
        let mut listing = Listing::default();
        // A directory that was removed answers with an error here, not with its end.
        while let Some(entry) = raw.next() {
            let entry = entry.map_err(failed(op, dir))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let Ok(path) = dir.join(name) else {
                let source = io::ErrorKind::InvalidFilename;
                listing.errors.push(DiskError::new(op, dir, source));
                continue;
            };
            match stat_at(fd.as_fd(), name, self.root_mount) {
                Ok(stat) => listing.entries.push(DirEntry {
                    name: name.to_vec(),
                    stat,
                }),
                Err(Errno::NOENT) => {}
                Err(errno) => listing.errors.push(failed(DiskOp::Stat, &path)(errno)),
            }
        }
        listing.entries.sort_by(|a, b| a.name.cmp(&b.name));
        // Entries added and removed meanwhile can make a file system return a name twice.
        listing.entries.dedup_by(|a, b| a.name == b.name);
        listing.errors.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(listing)
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn DiskFile>, DiskError> {
        Ok(Box::new(self.open_file(path, OFlags::RDONLY)?))
    }

    fn open_write(&self, path: &RelPath) -> Result<Box<dyn DiskFile>, DiskError> {
        Ok(Box::new(self.open_file(path, OFlags::RDWR)?))
    }

    fn create(&self, path: &RelPath, mode: u16) -> Result<Box<dyn DiskFile>, DiskError> {
        Ok(Box::new(self.create_file(path, mode)?))
    }

    fn symlink(&self, path: &RelPath, target: &[u8]) -> Result<(), DiskError> {
        let op = DiskOp::Symlink;
        let (dir, name) = self.holder(op, path)?;
        let make = || rustix::fs::symlinkat(target, &dir, name);
        self.in_dirs(&[dir.as_fd()], make).map_err(failed(op, path))
    }

    fn mkdir(&self, path: &RelPath, mode: u16) -> Result<(), DiskError> {
        let op = DiskOp::Mkdir;
        let (dir, name) = self.holder(op, path)?;
        let make = || rustix::fs::mkdirat(&dir, name, permissions(mode));
        self.in_dirs(&[dir.as_fd()], make).map_err(failed(op, path))
    }

    fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, DiskError> {
        let op = DiskOp::ReadLink;
        let (dir, name) = self.holder(op, path)?;
        match rustix::fs::readlinkat(&dir, name, Vec::new()) {
            Ok(target) => Ok(target.into_bytes()),
            Err(errno @ Errno::INVAL) => Err(DiskError::caused(op, path, Cause::WrongKind, errno)),
            Err(errno) => Err(failed(op, path)(errno)),
        }
    }

    fn rename_noreplace(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        self.rename_with(DiskOp::Rename, from, to, RenameFlags::NOREPLACE)
    }

    fn exchange(&self, a: &RelPath, b: &RelPath) -> Result<(), DiskError> {
        self.rename_with(DiskOp::Exchange, a, b, RenameFlags::EXCHANGE)
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        self.rename_with(DiskOp::Rename, from, to, RenameFlags::empty())
    }

    fn link(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        let op = DiskOp::Link;
        let (from_dir, from_name) = self.holder(op, from)?;
        let (to_dir, to_name) = self.holder(op, to)?;
        rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty()).map_err(
            |errno| match errno {
                Errno::EXIST => failed(op, to)(errno),
                _ => failed(op, from)(errno),
            },
        )
    }

    fn unlink(&self, path: &RelPath) -> Result<(), DiskError> {
        let op = DiskOp::Unlink;
        let (dir, name) = self.holder(op, path)?;
        let remove = || rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        self.in_dirs(&[dir.as_fd()], remove)
            .map_err(failed(op, path))
    }

    fn rmdir(&self, path: &RelPath) -> Result<(), DiskError> {
        let op = DiskOp::Rmdir;
        let (dir, name) = self.holder(op, path)?;
        let remove = || rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR);
        self.in_dirs(&[dir.as_fd()], remove)
            .map_err(failed(op, path))
    }

    fn set_mode(&self, path: &RelPath, mode: u16) -> Result<(), DiskError> {
        let op = DiskOp::SetMode;
        if path.is_root() {
            return change_mode(self.root.as_fd(), mode).map_err(failed(op, path));
        }
        let (dir, name) = self.holder(op, path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A handle that only names the entry needs no right to read it.
        let fd = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(failed(op, path))?;
        let raw = raw_stat(fd.as_fd()).map_err(failed(op, path))?;
        if stat_of(&raw, None).kind == FileKind::Symlink {
            return Err(DiskError::caused(op, path, Cause::WrongKind, Errno::LOOP));
        }
        let kept = u32::from(raw.stx_mode) & 0o7000;
        let wanted = Mode::from_raw_mode(kept | u32::from(mode & 0o777));
        match rustix::fs::chmod(resolve::through_proc(fd.as_fd()), wanted) {
            // Without /proc only what can be opened can be changed.
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let fd = rustix::fs::openat(&dir, name, OFlags::RDONLY | OPEN, Mode::empty())
                    .map_err(failed(op, path))?;
                rustix::fs::fchmod(&fd, wanted).map_err(failed(op, path))
            }
            other => other.map_err(failed(op, path)),
        }
    }

    fn set_mtime(&self, path: &RelPath, mtime_ns: i64) -> Result<(), DiskError> {
        let op = DiskOp::SetMtime;
        let times = only_mtime(mtime_ns);
        if path.is_root() {
            return rustix::fs::futimens(&self.root, &times).map_err(failed(op, path));
        }
        let (dir, name) = self.holder(op, path)?;
        rustix::fs::utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(op, path))
    }

    fn sync_dir(&self, dir: &RelPath) -> Result<(), DiskError> {
        let op = DiskOp::Sync;
        let fd = self.readable_dir(op, dir)?;
        retry(|| rustix::fs::fsync(&fd)).map_err(failed(op, dir))
    }

    fn sync_fs(&self, dir: &RelPath) -> Result<(), DiskError> {
        let op = DiskOp::Sync;
        let opened;
        let fd = if dir.is_root() {
            self.root.as_fd()
        } else {
            opened = self.readable_dir(op, dir)?;
            opened.as_fd()
        };
        retry(|| rustix::fs::syncfs(fd)).map_err(failed(op, dir))
    }

    fn free_space(&self) -> Result<u64, DiskError> {
        let found = rustix::fs::fstatvfs(&self.root)
            .map_err(failed(DiskOp::FreeSpace, &RelPath::root()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn watch(&self, dir: &RelPath) -> Result<(), DiskError> {
        let op = DiskOp::Watch;
        let Some(watcher) = &self.watcher else {
            return Err(DiskError::new(op, dir, io::ErrorKind::Unsupported));
        };
        let fd = self
            .resolver
            .dir(self.root.as_fd(), dir.as_bytes())
            .map_err(|refusal| refused(op, dir, refusal))?;
        match watcher.watch(fd.as_fd(), dir) {
            // Not the disk is full, the user's share of watches is.
            Err(errno @ Errno::NOSPC) => Err(DiskError::caused(op, dir, Cause::WatchLimit, errno)),
            other => other.map_err(failed(op, dir)),
        }
    }

    fn unwatch(&self, dir: &RelPath) {
        if let Some(watcher) = &self.watcher {
            watcher.unwatch(dir);
        }
    }
}

pub(super) fn failed(op: DiskOp, path: &RelPath) -> impl Fn(Errno) -> DiskError + '_ {
    move |errno| DiskError::new(op, path, errno)
}

fn refused(op: DiskOp, path: &RelPath, refusal: Refusal) -> DiskError {
    DiskError::caused(op, path, refusal.cause, refusal.errno)
}

/// Repeats a call that a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn permissions(mode: u16) -> Mode {
    Mode::from_raw_mode(u32::from(mode & 0o777))
}

//! The engine's view of a simulated disk.

use std::io;

use pacsync_daemon::disk::{
    Cause, DirEntry, DirIdentity, Disk, DiskError, DiskFile, DiskOp, FileKind, Listing, Probe,
    RelPath, Stat,
};

use super::fs::{Body, Fs, Refused};
use super::world::{Op, Process, World, lock};

/// The worktree's disk in one process.
pub(crate) struct SimDisk {
    process: Process,
}

struct SimFile {
    process: Process,
    path: RelPath,
    ino: u64,
    writable: bool,
}

fn failed(op: DiskOp, path: &RelPath) -> impl Fn(Refused) -> DiskError {
    let path = path.clone();
    move |refused| {
        let kind = match refused {
            Refused::NotFound => io::ErrorKind::NotFound,
            Refused::NotADirectory => io::ErrorKind::NotADirectory,
            Refused::Exists => io::ErrorKind::AlreadyExists,
            Refused::NotEmpty => io::ErrorKind::DirectoryNotEmpty,
            Refused::Unsupported => io::ErrorKind::Unsupported,
            Refused::Invalid => io::ErrorKind::InvalidInput,
            Refused::NoSpace => io::ErrorKind::StorageFull,
            Refused::Io => io::ErrorKind::Other,
            Refused::SymlinkInPath => {
                let source = io::ErrorKind::NotADirectory;
                return DiskError::caused(op, &path, Cause::SymlinkInPath, source);
            }
            Refused::WrongKind => {
                let source = io::ErrorKind::InvalidInput;
                return DiskError::caused(op, &path, Cause::WrongKind, source);
            }
        };
        DiskError::new(op, &path, kind)
    }
}

impl SimDisk {
    pub(crate) fn new(process: Process) -> Self {
        Self { process }
    }

    /// One operation on the file system.
    fn on<T>(
        &self,
        op: DiskOp,
        path: &RelPath,
        act: impl FnOnce(&mut Fs, u64) -> Result<T, Refused>,
    ) -> Result<T, DiskError> {
        on(&self.process, op, path, act)
    }
}

fn on<T>(
    process: &Process,
    op: DiskOp,
    path: &RelPath,
    act: impl FnOnce(&mut Fs, u64) -> Result<T, Refused>,
) -> Result<T, DiskError> {
    let mut guard = process.enter(Op::Disk(op)).map_err(failed(op, path))?;
    let world: &mut World = &mut guard;
    let now = world.clock_ns;
    let host = world
        .hosts
        .get_mut(process.device)
        .ok_or_else(|| DiskError::new(op, path, io::ErrorKind::NotFound))?;
    let before = host.fs.changes;
    let result = act(&mut host.fs, now);
    let changed = host.fs.changes != before;
    if changed && matches!(op, DiskOp::Rename | DiskOp::Exchange) {
        host.unrecorded.insert(path.clone());
    }
    world.whisper(|| match &result {
        Ok(_) => format!("d{} {op:?} {path}", process.device),
        Err(refused) => format!("d{} {op:?} {path}: {refused:?}", process.device),
    });
    if changed {
        world.deliver_events(process.device);
    }
    result.map_err(failed(op, path))
}

impl Disk for SimDisk {
    fn probe(&self) -> Result<Probe, DiskError> {
        let root = RelPath::root();
        self.on(DiskOp::Probe, &root, |fs, _| {
            Ok(Probe {
                modes: fs.can.modes,
                symlinks: fs.can.symlinks,
                case_sensitive: fs.can.case_sensitive,
                normalization_preserving: true,
                time_grain_ns: fs.can.grain_ns.max(10_000_000),
                exchange: fs.can.exchange,
                noreplace: true,
                hard_links: fs.can.hard_links,
                reflink: false,
                birth_time: fs.can.birth_time,
                name_max: 255,
                read_only: false,
            })
        })
    }

    fn root_identity(&self) -> Result<DirIdentity, DiskError> {
        self.dir_identity(&RelPath::root())
    }

    fn dir_identity(&self, dir: &RelPath) -> Result<DirIdentity, DiskError> {
        self.on(DiskOp::Identify, dir, |fs, _| {
            Ok(DirIdentity {
                dev: 1,
                ino: fs.lookup(dir)?,
                fs_id: 7,
                fs_type: 7,
            })
        })
    }

    fn stat(&self, path: &RelPath) -> Result<Option<Stat>, DiskError> {
        self.on(DiskOp::Stat, path, |fs, _| match fs.lookup(path) {
            Ok(ino) => Ok(fs.stat_ino(ino)),
            Err(Refused::NotFound | Refused::NotADirectory) => Ok(None),
            Err(refused) => Err(refused),
        })
    }

    fn list(&self, dir: &RelPath) -> Result<Listing, DiskError> {
        let entries = self.on(DiskOp::List, dir, |fs, _| fs.list(dir))?;
        Ok(Listing {
            entries: entries
                .into_iter()
                .map(|(name, stat)| DirEntry { name, stat })
                .collect(),
            errors: vec![],
        })
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn DiskFile>, DiskError> {
        self.open_as(path, false)
    }

    fn open_write(&self, path: &RelPath) -> Result<Box<dyn DiskFile>, DiskError> {
        self.open_as(path, true)
    }

    fn create(&self, path: &RelPath, mode: u16) -> Result<Box<dyn DiskFile>, DiskError> {
        let ino = self.on(DiskOp::Create, path, |fs, now| {
            let ino = fs.create(path, mode, now)?;
            fs.hold(ino);
            Ok(ino)
        })?;
        Ok(self.file(path, ino, true))
    }

    fn symlink(&self, path: &RelPath, target: &[u8]) -> Result<(), DiskError> {
        self.on(DiskOp::Symlink, path, |fs, now| {
            fs.symlink(path, target, now)
        })
    }

    fn mkdir(&self, path: &RelPath, mode: u16) -> Result<(), DiskError> {
        self.on(DiskOp::Mkdir, path, |fs, now| fs.mkdir(path, mode, now))
    }

    fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, DiskError> {
        self.on(DiskOp::ReadLink, path, |fs, _| {
            let ino = fs.lookup(path)?;
            match fs.inode(ino).map(|inode| &inode.body) {
                Some(Body::Symlink(target)) => Ok(target.clone()),
                _ => Err(Refused::WrongKind),
            }
        })
    }

    fn rename_noreplace(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Rename, to, |fs, now| {
            fs.rename(from, to, false, now)
        })
        .map_err(|error| {
            if error.is_exists() {
                error
            } else {
                DiskError::caused(DiskOp::Rename, from, error.cause, error.source)
            }
        })
    }

    fn exchange(&self, a: &RelPath, b: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Exchange, b, |fs, now| fs.exchange(a, b, now))
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Rename, to, |fs, now| fs.rename(from, to, true, now))
    }

    fn link(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Link, to, |fs, now| fs.link(from, to, now))
    }

    fn unlink(&self, path: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Unlink, path, |fs, now| fs.unlink(path, now))
    }

    fn rmdir(&self, path: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Rmdir, path, |fs, now| fs.rmdir(path, now))
    }

    fn set_mode(&self, path: &RelPath, mode: u16) -> Result<(), DiskError> {
        self.on(DiskOp::SetMode, path, |fs, now| {
            let ino = fs.lookup(path)?;
            fs.set_mode(ino, mode, now)
        })
    }

    fn set_mtime(&self, path: &RelPath, mtime_ns: i64) -> Result<(), DiskError> {
        self.on(DiskOp::SetMtime, path, |fs, now| {
            let ino = fs.lookup(path)?;
            fs.set_mtime(ino, mtime_ns, now);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Sync, dir, |fs, _| {
            fs.lookup(dir)?;
            fs.sync_metadata();
            Ok(())
        })
    }

    fn sync_fs(&self, dir: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Sync, dir, |fs, _| {
            fs.lookup(dir)?;
            fs.sync_all();
            Ok(())
        })
    }

    fn free_space(&self) -> Result<u64, DiskError> {
        Ok(1 << 40)
    }

    fn watch(&self, dir: &RelPath) -> Result<(), DiskError> {
        self.on(DiskOp::Watch, dir, |fs, _| fs.watch(dir))
    }

    fn unwatch(&self, dir: &RelPath) {
        let mut world = lock(&self.process.world);
        if let Some(host) = world.hosts.get_mut(self.process.device)
            && host.epoch == self.process.epoch
            && !host.dead
        {
            host.fs.unwatch(dir);
        }
    }
}

impl SimDisk {
    fn file(&self, path: &RelPath, ino: u64, writable: bool) -> Box<dyn DiskFile> {
        Box::new(SimFile {
            process: self.process.clone(),
            path: path.clone(),
            ino,
            writable,
        })
    }

    fn open_as(&self, path: &RelPath, writable: bool) -> Result<Box<dyn DiskFile>, DiskError> {
        let ino = self.on(DiskOp::Open, path, |fs, _| {
            let ino = fs.lookup(path)?;
            match fs.stat_ino(ino).map(|stat| stat.kind) {
                Some(FileKind::File) => {}
                _ => return Err(Refused::WrongKind),
            }
            fs.hold(ino);
            Ok(ino)
        })?;
        Ok(self.file(path, ino, writable))
    }
}

impl DiskFile for SimFile {
    fn stat(&self) -> Result<Stat, DiskError> {
        on(&self.process, DiskOp::Stat, &self.path, |fs, _| {
            fs.stat_ino(self.ino).ok_or(Refused::NotFound)
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, DiskError> {
        on(&self.process, DiskOp::Read, &self.path, |fs, _| {
            let Some(Body::File(data)) = fs.inode(self.ino).map(|inode| &inode.body) else {
                return Err(Refused::Io);
            };
            let rest = data.get(offset as usize..).unwrap_or_default();
            let read = rest.len().min(buffer.len());
            if let (Some(to), Some(from)) = (buffer.get_mut(..read), rest.get(..read)) {
                to.copy_from_slice(from);
            }
            Ok(read)
        })
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        // Two operations: a crash or an edit may fall between its halves.
        let half = bytes.len() / 2;
        let (first, second) = bytes.split_at(half);
        for (at, part) in [(0, first), (half, second)] {
            if part.is_empty() && !bytes.is_empty() {
                continue;
            }
            on(&self.process, DiskOp::Write, &self.path, |fs, now| {
                fs.write(self.ino, offset + at as u64, part, now);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> Result<(), DiskError> {
        on(&self.process, DiskOp::SetLen, &self.path, |fs, now| {
            fs.set_len(self.ino, len, now);
            Ok(())
        })
    }

    fn set_mode(&mut self, mode: u16) -> Result<(), DiskError> {
        on(&self.process, DiskOp::SetMode, &self.path, |fs, now| {
            fs.set_mode(self.ino, mode, now)
        })
    }

    fn set_mtime(&mut self, mtime_ns: i64) -> Result<(), DiskError> {
        on(&self.process, DiskOp::SetMtime, &self.path, |fs, now| {
            fs.set_mtime(self.ino, mtime_ns, now);
            Ok(())
        })
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        on(&self.process, DiskOp::Sync, &self.path, |fs, _| {
            fs.sync_data(self.ino);
            Ok(())
        })
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut world = lock(&self.process.world);
        let device = self.process.device;
        if let Some(host) = world.hosts.get_mut(device)
            && host.epoch == self.process.epoch
            && !host.dead
        {
            host.fs.release(self.ino, self.writable);
            world.deliver_events(device);
        }
    }
}

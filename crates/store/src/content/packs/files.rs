//! Where packs are kept: the seam, and the real directory behind it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Packs kept open for reading at a time.
const READERS_MAX: usize = 16;

/// Numbered files of one directory. The simulator has one in memory that fails and
/// forgets on demand.
pub trait PackFiles: Send + Sync {
    /// Numbers and lengths in bytes, in order of number.
    ///
    /// # Errors
    /// Whatever the medium reports, here and below.
    fn list(&self) -> io::Result<Vec<(u32, u64)>>;

    /// Makes an empty pack; fails if there is one of that number.
    ///
    /// # Errors
    /// See [`PackFiles::list`].
    fn create(&mut self, pack: u32) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`. After an error any part of them may be there.
    ///
    /// # Errors
    /// See [`PackFiles::list`].
    fn write_at(&mut self, pack: u32, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads some bytes at `offset`; 0 only at the end.
    ///
    /// # Errors
    /// See [`PackFiles::list`].
    fn read_at(&self, pack: u32, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Cuts a pack to `len` bytes.
    ///
    /// # Errors
    /// See [`PackFiles::list`].
    fn truncate(&mut self, pack: u32, len: u64) -> io::Result<()>;

    /// Makes a pack's bytes and length durable. After an error any write since the
    /// last success may be lost, even if a later call succeeds.
    ///
    /// # Errors
    /// See [`PackFiles::list`].
    fn sync(&mut self, pack: u32) -> io::Result<()>;

    /// Makes the existence of packs durable.
    ///
    /// # Errors
    /// See [`PackFiles::list`].
    fn sync_dir(&mut self) -> io::Result<()>;

    /// Removes a pack. After a crash it may be there again, as it was.
    ///
    /// # Errors
    /// See [`PackFiles::list`].
    fn remove(&mut self, pack: u32) -> io::Result<()>;

    /// Size in bytes of the medium, all that is on it included.
    ///
    /// # Errors
    /// See [`PackFiles::list`].
    fn medium_size(&self) -> io::Result<u64>;
}

/// A directory of mode 0700 with files `00000001.pack` of mode 0600.
#[derive(Debug)]
pub struct DiskFiles {
    dir: PathBuf,
    readers: Mutex<BTreeMap<u32, Arc<File>>>,
    writer: Option<(u32, File)>,
}

impl DiskFiles {
    /// Opens the directory; makes it, durably, if its parent exists and it does not.
    ///
    /// # Errors
    /// If it can be neither found nor made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(error),
            Ok(()) => {
                if let Some(parent) = dir.parent().filter(|parent| *parent != Path::new("")) {
                    File::open(parent)?.sync_all()?;
                }
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            readers: Mutex::default(),
            writer: None,
        })
    }

    fn path(&self, pack: u32) -> PathBuf {
        self.dir.join(format!("{pack:08}.pack"))
    }

    fn reader(&self, pack: u32) -> io::Result<Arc<File>> {
        // The map is whole at every point where a panic could poison the lock.
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = readers.get(&pack) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.path(pack))?);
        if readers.len() >= READERS_MAX {
            readers.pop_first();
        }
        readers.insert(pack, Arc::clone(&file));
        Ok(file)
    }

    fn writer(&mut self, pack: u32) -> io::Result<&File> {
        let open = match self.writer.take() {
            Some((number, file)) if number == pack => file,
            _ => OpenOptions::new().write(true).open(self.path(pack))?,
        };
        Ok(&self.writer.insert((pack, open)).1)
    }
}

impl PackFiles for DiskFiles {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        let mut packs = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".pack"));
            let number = stem.and_then(|stem| stem.parse().ok());
            if let Some(number) = number.filter(|number| entry.path() == self.path(*number)) {
                packs.push((number, entry.metadata()?.len()));
            }
        }
        packs.sort_unstable();
        Ok(packs)
    }

    fn create(&mut self, pack: u32) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(pack))?;
        self.writer = Some((pack, file));
        Ok(())
    }

    fn write_at(&mut self, pack: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.writer(pack)?.write_all_at(bytes, offset)
    }

    fn read_at(&self, pack: u32, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.reader(pack)?.read_at(buf, offset)
    }

    fn truncate(&mut self, pack: u32, len: u64) -> io::Result<()> {
        self.writer(pack)?.set_len(len)
    }

    fn sync(&mut self, pack: u32) -> io::Result<()> {
        self.writer(pack)?.sync_data()
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn remove(&mut self, pack: u32) -> io::Result<()> {
        if self.writer.as_ref().is_some_and(|(open, _)| *open == pack) {
            self.writer = None;
        }
        self.readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&pack);
        fs::remove_file(self.path(pack))
    }

    fn medium_size(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }
}

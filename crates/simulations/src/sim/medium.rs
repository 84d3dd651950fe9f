//! What the replica is written to: the database's medium and the pack files, each of which may
//! lose what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pacsync_store::content::packs::PackFiles;
use rand_core::RngCore;

use super::below;
use super::world::{Op, Process};

/// Bytes that a medium writes as one.
const SECTOR: usize = 512;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of a database: those that last, and what was written since the last sync.
#[derive(Debug, Default, Clone)]
struct Bytes {
    durable: Vec<u8>,
    now: Vec<u8>,
    /// Sectors that were written since the last sync.
    dirty: std::collections::BTreeSet<usize>,
}

/// A database file in memory. What survives a crash is taken out of it as a new one, so that a
/// process that has not noticed its end changes nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Medium(Arc<Mutex<Bytes>>);

impl Medium {
    /// What is left after the process died.
    pub(crate) fn survivor(&self) -> Self {
        let bytes = locked(&self.0).clone();
        Self(Arc::new(Mutex::new(bytes)))
    }

    /// What is left after the power failed: of what was not synced any sectors.
    pub(crate) fn after_power_loss(&self, rng: &mut impl RngCore) -> Self {
        let bytes = locked(&self.0);
        let mut left = bytes.durable.clone();
        // Its length is one number: the last one, or the database would be asked to mend what no
        // file system does.
        left.resize(bytes.now.len(), 0);
        for sector in &bytes.dirty {
            if below(rng, 2) == 0 {
                continue;
            }
            let from = sector * SECTOR;
            let part = bytes.now.get(from..).unwrap_or_default();
            let part = part.get(..SECTOR).unwrap_or(part);
            // A sector behind the end was cut off since.
            if let Some(place) = left.get_mut(from..from + part.len()) {
                place.copy_from_slice(part);
            }
        }
        Self(Arc::new(Mutex::new(Bytes {
            durable: left.clone(),
            now: left,
            dirty: Default::default(),
        })))
    }
}

/// A process's view of its database file.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) medium: Medium,
    pub(crate) process: Process,
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(locked(&self.medium.0).now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let bytes = locked(&self.medium.0);
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let part = from
            .checked_add(out.len())
            .and_then(|end| bytes.now.get(from..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut bytes = locked(&self.medium.0);
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let before = bytes.now.len();
        bytes.now.resize(len, 0);
        let changed = before.min(len) / SECTOR..before.max(len).div_ceil(SECTOR);
        bytes.dirty.extend(changed);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        // Only syncs count as operations: in which order a cache writes back is its own affair.
        self.process.quietly(Op::StoreSync)?;
        let mut bytes = locked(&self.medium.0);
        let Bytes {
            durable,
            now,
            dirty,
        } = &mut *bytes;
        durable.resize(now.len(), 0);
        for sector in std::mem::take(dirty) {
            let from = (sector * SECTOR).min(now.len());
            let end = (from + SECTOR).min(now.len());
            if let (Some(place), Some(part)) = (durable.get_mut(from..end), now.get(from..end)) {
                place.copy_from_slice(part);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut bytes = locked(&self.medium.0);
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let end = from + data.len();
        if bytes.now.len() < end {
            bytes.now.resize(end, 0);
        }
        if let Some(place) = bytes.now.get_mut(from..end) {
            place.copy_from_slice(data);
        }
        bytes.dirty.extend(from / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }
}

#[derive(Debug, Default, Clone)]
struct Pack {
    data: Vec<u8>,
    durable: Vec<u8>,
    listed: bool,
}

/// Size of the medium, as far as anybody asks: a tenth of it is room for some versions.
const MEDIUM_BYTES: u64 = 256 << 10;

/// Pack files in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packs(Arc<Mutex<BTreeMap<u32, Pack>>>);

impl Packs {
    pub(crate) fn survivor(&self) -> Self {
        Self(Arc::new(Mutex::new(locked(&self.0).clone())))
    }

    pub(crate) fn after_power_loss(&self, rng: &mut impl RngCore) -> Self {
        let mut packs = locked(&self.0).clone();
        packs.retain(|_, pack| pack.listed || below(rng, 2) == 0);
        for pack in packs.values_mut() {
            let grown = pack.data.len().saturating_sub(pack.durable.len());
            let kept = pack.durable.len() + below(rng, grown as u64 + 1) as usize;
            let mut left = pack.durable.clone();
            if let Some(fresh) = pack.data.get(left.len()..kept) {
                left.extend_from_slice(fresh);
            }
            *pack = Pack {
                data: left.clone(),
                durable: left,
                listed: true,
            };
        }
        Self(Arc::new(Mutex::new(packs)))
    }
}

/// A process's view of its packs.
#[derive(Debug)]
pub(crate) struct PackDir {
    pub(crate) packs: Packs,
    pub(crate) process: Process,
}

impl PackDir {
    fn with<T>(&self, pack: u32, change: impl FnOnce(&mut Pack) -> T) -> io::Result<T> {
        let mut packs = locked(&self.packs.0);
        let found = packs.get_mut(&pack).ok_or(io::ErrorKind::NotFound)?;
        Ok(change(found))
    }
}

impl PackFiles for PackDir {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        Ok(locked(&self.packs.0)
            .iter()
            .map(|(number, pack)| (*number, pack.data.len() as u64))
            .collect())
    }

    fn create(&mut self, pack: u32) -> io::Result<()> {
        self.process.quietly(Op::PackWrite)?;
        let mut packs = locked(&self.packs.0);
        if packs.contains_key(&pack) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        packs.insert(pack, Pack::default());
        Ok(())
    }

    fn write_at(&mut self, pack: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.process.quietly(Op::PackWrite)?;
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(pack, |pack| {
            let end = from + bytes.len();
            if pack.data.len() < end {
                pack.data.resize(end, 0);
            }
            if let Some(place) = pack.data.get_mut(from..end) {
                place.copy_from_slice(bytes);
            }
        })
    }

    fn read_at(&self, pack: u32, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(pack, |pack| {
            let mut rest = pack.data.get(from..).unwrap_or_default();
            io::Read::read(&mut rest, buf)
        })?
    }

    fn truncate(&mut self, pack: u32, len: u64) -> io::Result<()> {
        self.process.quietly(Op::PackWrite)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.with(pack, |pack| {
            pack.data.resize(len, 0);
            pack.durable.truncate(len);
        })
    }

    fn sync(&mut self, pack: u32) -> io::Result<()> {
        self.process.quietly(Op::PackSync)?;
        self.with(pack, |pack| pack.durable.clone_from(&pack.data))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.process.quietly(Op::PackSync)?;
        for pack in locked(&self.packs.0).values_mut() {
            pack.listed = true;
        }
        Ok(())
    }

    fn remove(&mut self, pack: u32) -> io::Result<()> {
        self.process.quietly(Op::PackWrite)?;
        match locked(&self.packs.0).remove(&pack) {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn medium_size(&self) -> io::Result<u64> {
        Ok(MEDIUM_BYTES)
    }
}

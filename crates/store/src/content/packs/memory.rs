//! Packs in memory, for simulations and tests: they fill up, fail and crash on demand.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::PackFiles;

/// What can be told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`PackFiles::create`].
    Create,
    /// [`PackFiles::write_at`], after half of the bytes.
    Write,
    /// [`PackFiles::truncate`].
    Truncate,
    /// [`PackFiles::sync`], with the written bytes lost as a kernel may lose them.
    Sync,
    /// [`PackFiles::sync_dir`].
    SyncDir,
    /// [`PackFiles::remove`].
    Remove,
}

#[derive(Debug, Default)]
struct Pack {
    data: Vec<u8>,
    /// What a crash leaves, below `clean` the same as `data`.
    durable: Vec<u8>,
    clean: usize,
    /// A crash leaves the file itself.
    listed: bool,
}

#[derive(Debug, Default)]
struct State {
    packs: BTreeMap<u32, Pack>,
    /// Most bytes that all packs may have together.
    capacity: Option<usize>,
    failures: BTreeMap<Operation, u32>,
}

/// A handle on packs in memory. Clones show the same packs, so that a test or the
/// simulator keeps the disk while the process that uses it comes and goes.
#[derive(Debug, Clone, Default)]
pub struct MemoryFiles(Arc<Mutex<State>>);

impl MemoryFiles {
    /// Lets all packs together have at most that many bytes; writes beyond are cut
    /// short and fail with `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.state().capacity = bytes;
    }

    /// Lets the next `times` calls of an operation fail.
    pub fn fail(&self, operation: Operation, times: u32) {
        self.state().failures.insert(operation, times);
    }

    /// Loses what was not synced, but for as many of a pack's first unsynced bytes as
    /// `keep` says when given the pack and their number.
    pub fn crash(&self, keep: &mut dyn FnMut(u32, usize) -> usize) {
        let mut state = self.state();
        state.packs.retain(|_, pack| pack.listed);
        for (number, pack) in &mut state.packs {
            let fresh = pack.data.len().saturating_sub(pack.clean);
            let kept = keep(*number, fresh).min(fresh);
            if kept > 0 {
                pack.durable.truncate(pack.clean);
                let kept = pack
                    .data
                    .get(pack.clean..pack.clean + kept)
                    .unwrap_or_default();
                pack.durable.extend_from_slice(kept);
            }
            pack.data.clone_from(&pack.durable);
            pack.clean = pack.data.len();
        }
    }

    /// Changes one byte, also in what a crash leaves, as a failing medium does.
    /// Says nothing if there is no such byte.
    pub fn damage(&self, pack: u32, offset: usize) {
        if let Some(pack) = self.state().packs.get_mut(&pack) {
            for bytes in [&mut pack.data, &mut pack.durable] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= 0x55;
                }
            }
        }
    }

    /// A pack's bytes as they are read now.
    pub fn contents(&self, pack: u32) -> Option<Vec<u8>> {
        self.state().packs.get(&pack).map(|pack| pack.data.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn failing(&mut self, operation: Operation) -> io::Result<()> {
        match self.failures.get_mut(&operation) {
            Some(times) if *times > 0 => {
                *times -= 1;
                Err(io::Error::other("told to fail"))
            }
            _ => Ok(()),
        }
    }

    fn pack(&mut self, pack: u32) -> io::Result<&mut Pack> {
        self.packs
            .get_mut(&pack)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Pack {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset.saturating_add(bytes.len());
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        if let Some(place) = self.data.get_mut(offset..end) {
            place.copy_from_slice(bytes);
        }
        self.clean = self.clean.min(offset);
    }
}

impl PackFiles for MemoryFiles {
    fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        let state = self.state();
        Ok(state
            .packs
            .iter()
            .map(|(number, pack)| (*number, pack.data.len() as u64))
            .collect())
    }

    fn create(&mut self, pack: u32) -> io::Result<()> {
        let mut state = self.state();
        state.failing(Operation::Create)?;
        if state.packs.contains_key(&pack) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.packs.insert(pack, Pack::default());
        Ok(())
    }

    fn write_at(&mut self, pack: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let failing = state.failing(Operation::Write);
        let all: usize = state.packs.values().map(|pack| pack.data.len()).sum();
        let capacity = state.capacity;
        let pack = state.pack(pack)?;
        let room = capacity.map_or(usize::MAX, |capacity| {
            // Bytes that are there already take no further room.
            (capacity.saturating_sub(all)) + pack.data.len().saturating_sub(offset)
        });
        if failing.is_err() {
            pack.write(offset, bytes.get(..bytes.len() / 2).unwrap_or_default());
            return failing;
        }
        match bytes.get(..room) {
            Some(part) if room < bytes.len() => {
                pack.write(offset, part);
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => {
                pack.write(offset, bytes);
                Ok(())
            }
        }
    }

    fn read_at(&self, pack: u32, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        let data = &state.pack(pack)?.data;
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| data.get(offset..));
        io::Read::read(&mut rest.unwrap_or_default(), buf)
    }

    fn truncate(&mut self, pack: u32, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.failing(Operation::Truncate)?;
        let pack = state.pack(pack)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        pack.data.resize(len, 0);
        pack.clean = pack.clean.min(len);
        Ok(())
    }

    fn sync(&mut self, pack: u32) -> io::Result<()> {
        let mut state = self.state();
        let failing = state.failing(Operation::Sync);
        let pack = state.pack(pack)?;
        pack.durable.truncate(pack.clean);
        if failing.is_err() {
            pack.durable.resize(pack.data.len(), 0);
        } else {
            let fresh = pack.data.get(pack.clean..).unwrap_or_default();
            pack.durable.extend_from_slice(fresh);
        }
        pack.clean = pack.data.len();
        failing
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut state = self.state();
        state.failing(Operation::SyncDir)?;
        for pack in state.packs.values_mut() {
            pack.listed = true;
        }
        Ok(())
    }

    fn remove(&mut self, pack: u32) -> io::Result<()> {
        let mut state = self.state();
        state.failing(Operation::Remove)?;
        match state.packs.remove(&pack) {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn medium_size(&self) -> io::Result<u64> {
        Ok(self.state().capacity.unwrap_or(1 << 30) as u64)
    }
}

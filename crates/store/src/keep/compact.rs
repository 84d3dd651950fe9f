//! Packs that are mostly of no use are copied together and removed.
//!
//! In bounded steps; time linear in what packs hold.

use std::collections::{BTreeMap, VecDeque};

use crate::content::packs::{PackEnd, PackError, PackStore};
use crate::error::StoreError;
use crate::index::{ContentTables, IndexReader, PackedId};
use crate::replica::Store;

use super::{STEP_BYTES, STEP_OBJECTS, packs_failed};

/// The last pack is closed, to be copied, once so many bytes of it are of no use.
const SEAL_BYTES: u64 = 32 << 20;

#[derive(Debug)]
enum Stage {
    /// How much of each pack is of use?
    Count(Cursor),
    Copy,
    /// Of which of those that were copied is nothing of use left?
    Recount(Cursor),
}

/// What of the index remains to be looked at: spaces, and in the first of them from where on.
#[derive(Debug)]
struct Cursor {
    spaces: VecDeque<u32>,
    from: Option<PackedId>,
}

impl Cursor {
    fn new(store: &Store) -> Self {
        Self {
            spaces: store.spaces().map(|space| space.no).collect(),
            from: None,
        }
    }
}

/// A compaction under way.
#[derive(Debug)]
pub(super) struct Compaction {
    /// Only packs that were begun before are looked at.
    end: PackEnd,
    stage: Stage,
    /// Bytes of use by pack.
    live: BTreeMap<u32, u64>,
    queue: VecDeque<u32>,
    /// The pack that is copied, and up to where.
    copying: Option<(u32, u64)>,
    /// Packs that may be removed, if nothing of them is indexed.
    empty: Vec<u32>,
}

impl Compaction {
    pub(super) fn new(store: &Store, end: PackEnd) -> Self {
        Self {
            end,
            stage: Stage::Count(Cursor::new(store)),
            live: BTreeMap::new(),
            queue: VecDeque::new(),
            copying: None,
            empty: vec![],
        }
    }

    /// Does a bounded piece of the work; how many packs were removed once all is done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn step(
        &mut self,
        store: &mut Store,
        packs: &mut PackStore,
    ) -> Result<Option<u64>, StoreError> {
        match &mut self.stage {
            Stage::Count(cursor) => {
                if add_up(store, cursor, &mut self.live)? {
                    self.choose(packs)?;
                    self.stage = Stage::Copy;
                }
            }
            Stage::Copy => {
                if self.copy(store, packs)? {
                    if self.empty.is_empty() {
                        return Ok(Some(0));
                    }
                    self.live.clear();
                    self.stage = Stage::Recount(Cursor::new(store));
                }
            }
            Stage::Recount(cursor) => {
                if add_up(store, cursor, &mut self.live)? {
                    return self.remove(store, packs).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// Packs of which more than half is of no use.
    fn choose(&mut self, packs: &mut PackStore) -> Result<(), StoreError> {
        for (pack, len) in packs.list().map_err(packs_failed)? {
            let live = self.live.get(&pack).copied().unwrap_or(0);
            let garbage = len.saturating_sub(live);
            if garbage <= len / 2 || pack > self.end.pack {
                continue;
            }
            if pack == packs.end().pack {
                if garbage < SEAL_BYTES {
                    continue;
                }
                packs.seal();
            }
            self.queue.push_back(pack);
        }
        Ok(())
    }

    /// Copies some of what is indexed of a pack, into which nothing is put any more; true once all
    /// packs are copied.
    fn copy(&mut self, store: &mut Store, packs: &mut PackStore) -> Result<bool, StoreError> {
        let (pack, mut offset) = match self.copying.take() {
            Some(under_way) => under_way,
            None => match self.queue.pop_front() {
                Some(pack) => (pack, 0),
                None => return Ok(true),
            },
        };
        if self.live.get(&pack).copied().unwrap_or(0) == 0 {
            self.empty.push(pack);
            return Ok(false);
        }
        let mut entries = vec![];
        let mut bytes = 0;
        for entry in packs.records_of(pack, offset).map_err(packs_failed)? {
            // What is damaged stays indexed, and its pack with it.
            let Ok(entry) = entry else { continue };
            offset = entry.at.offset + u64::from(entry.at.len);
            bytes += u64::from(entry.at.len);
            entries.push(entry);
            if bytes >= STEP_BYTES || entries.len() >= STEP_OBJECTS {
                self.copying = Some((pack, offset));
                break;
            }
        }
        let txn = store.begin()?;
        let mut moved = 0;
        for entry in entries {
            let Ok(space) = txn.space(&entry.space).map(|space| space.no) else {
                continue;
            };
            let mut index = txn.index(space)?;
            let id = entry.id.as_bytes();
            let at = index.contents()?.packed(id)?;
            if at != Some(entry.at) {
                continue;
            }
            let place = match packs.copy(&entry.at) {
                Ok(place) => place,
                Err(PackError::Corrupt { .. }) => continue,
                Err(error) => return Err(packs_failed(error)),
            };
            index.put_packed(id, &place)?;
            moved += 1;
        }
        if moved > 0 {
            txn.set_pack_end(packs.sync().map_err(packs_failed)?)?;
            txn.commit()?;
        }
        if self.copying.is_none() {
            self.empty.push(pack);
        }
        Ok(false)
    }

    /// Removes packs of which nothing is indexed: what was put meanwhile may have been counted in
    /// part only, and what is damaged was not copied.
    fn remove(&mut self, store: &mut Store, packs: &mut PackStore) -> Result<u64, StoreError> {
        // That nothing of them is indexed must outlive a crash that they do not.
        store.begin()?.commit()?;
        let mut removed = 0;
        for pack in std::mem::take(&mut self.empty) {
            if self.live.contains_key(&pack) || pack == packs.end().pack {
                continue;
            }
            packs.remove(pack).map_err(packs_failed)?;
            removed += 1;
        }
        Ok(removed)
    }
}

/// Adds up what is of use of each pack; true once all was looked at.
fn add_up(
    store: &Store,
    cursor: &mut Cursor,
    live: &mut BTreeMap<u32, u64>,
) -> Result<bool, StoreError> {
    let Some(space) = cursor.spaces.front().copied() else {
        return Ok(true);
    };
    let tx = store.read()?;
    let found = IndexReader::new(&tx, space).packed_after(cursor.from.as_ref(), STEP_OBJECTS)?;
    for (_, at) in &found {
        *live.entry(at.pack).or_default() += u64::from(at.len);
    }
    cursor.from = found.last().map(|(id, _)| *id);
    if cursor.from.is_none() {
        cursor.spaces.pop_front();
    }
    Ok(false)
}

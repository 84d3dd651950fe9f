//! The sweep: of each space what nothing shows and the policy keeps no longer leaves the index, then
//! packs that are mostly of no use are copied together.
//!
//! In bounded steps. Memory: about 20 bytes for each object that packs hold of one space. Time:
//! linear in rows, objects and the chunks that contents of more than 128 KiB have.

use std::collections::{BTreeMap, VecDeque};

use pacsync_protocol::{NodeId, SpaceId, VersionVector};
use redb::ReadTransaction;

use super::compact::Compaction;
use super::marked::{Marked, Round, Task};
use crate::content::packs::PackStore;
use crate::error::StoreError;
use crate::replica::Store;
use crate::tables::META;

/// The clock of a device counts no more than this between two sweeps: one that jumps, or a device
/// that was off, must not make everything old at once.
const TICK_MAX_MS: u64 = 7 * 86_400_000;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that are not kept any more.
    pub dropped: u64,
    /// Their bytes in packs.
    pub bytes: u64,
    /// Packs that were removed.
    pub packs: u64,
    /// Whether another sweep would drop something at once: what is found old is dropped by the
    /// next one at the earliest.
    pub again: bool,
}

#[derive(Debug)]
enum Stage {
    /// The next space, or the packs once none is left.
    Next,
    Space(Box<Marked>, Task),
    Packs(Box<Compaction>),
    Done,
}

/// A sweep under way.
#[derive(Debug)]
pub struct Sweep {
    round: Round,
    stage: Stage,
    spaces: VecDeque<SpaceId>,
    stable: BTreeMap<SpaceId, VersionVector>,
    swept: Swept,
}

impl Sweep {
    /// Begins a sweep of all spaces. `stable` says what every device has of a space; of one that is
    /// not in it no text goes. `wall_ms` is the time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(
        store: &mut Store,
        packs: &PackStore,
        stable: BTreeMap<SpaceId, VersionVector>,
        wall_ms: u64,
    ) -> Result<Self, StoreError> {
        let (clock, last) = read_clock(&store.read()?)?;
        let gone = last.map_or(0, |last| wall_ms.saturating_sub(last));
        let clock = clock.saturating_add(gone.min(TICK_MAX_MS));
        let txn = store.begin()?;
        let bytes = [clock.to_be_bytes(), wall_ms.to_be_bytes()].concat();
        txn.raw()
            .open_table(META)?
            .insert("keep_clock", bytes.as_slice())?;
        txn.commit_lazily()?;
        Ok(Self {
            round: Round {
                end: packs.end(),
                clock,
            },
            stage: Stage::Next,
            spaces: store.spaces().map(|space| space.id).collect(),
            stable,
            swept: Swept::default(),
        })
    }

    /// When the last sweep of a replica began, by its device's clock, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last(store: &Store) -> Result<Option<u64>, StoreError> {
        Ok(read_clock(&store.read()?)?.1)
    }

    /// A node has new rows: what they show may be needed from now on.
    pub fn changed(&mut self, space: &SpaceId, node: &NodeId) {
        if let Stage::Space(marked, _) = &mut self.stage
            && marked.space_id() == *space
        {
            marked.changed(node);
        }
    }

    /// Does a bounded piece of the work; what was done once all is.
    ///
    /// # Errors
    /// [`StoreError`]; after [`StoreError::Packs`] the sweep is to be given up.
    pub fn step(
        &mut self,
        store: &mut Store,
        packs: &mut PackStore,
    ) -> Result<Option<Swept>, StoreError> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Next => self.next_space(store)?,
            Stage::Space(mut marked, task) => {
                match marked.step(task, store, packs, self.round, &mut self.swept)? {
                    Some(task) => Stage::Space(marked, task),
                    None => Stage::Next,
                }
            }
            Stage::Packs(mut compaction) => match compaction.step(store, packs)? {
                None => Stage::Packs(compaction),
                Some(removed) => {
                    self.swept.packs = removed;
                    Stage::Done
                }
            },
            Stage::Done => Stage::Done,
        };
        Ok(matches!(self.stage, Stage::Done).then_some(self.swept))
    }

    fn next_space(&mut self, store: &Store) -> Result<Stage, StoreError> {
        let Some(id) = self.spaces.pop_front() else {
            let compaction = Compaction::new(store, self.round.end);
            return Ok(Stage::Packs(Box::new(compaction)));
        };
        Ok(match Marked::open(store, &id, self.stable.get(&id))? {
            Some(marked) => Stage::Space(Box::new(marked), Task::Collect(None)),
            None => Stage::Next,
        })
    }
}

fn read_clock(tx: &ReadTransaction) -> Result<(u64, Option<u64>), StoreError> {
    let table = tx.open_table(META)?;
    let Some(bytes) = table.get("keep_clock")? else {
        return Ok((0, None));
    };
    let Some((clock, wall)) = bytes.value().split_first_chunk::<8>() else {
        return Ok((0, None));
    };
    let wall = wall.try_into().ok().map(u64::from_be_bytes);
    Ok((u64::from_be_bytes(*clock), wall))
}

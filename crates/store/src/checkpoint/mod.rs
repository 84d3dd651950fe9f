//! Checkpoints and pruning: what goes once every device has it, and from what a replica starts
//! that lacks it.
//!
//! - [`Txn::prune`](crate::Txn::prune) drops the bytes of old segments. What is kept of each beside its bytes (number,
//!   hash, clock, time, causal past) stays, and so do its rows: all rules go on as before.
//! - [`Builder`] makes a checkpoint of what is applied, from one read transaction, part by part. It
//!   leaves out what is dead for good.
//! - [`Txn::load`](crate::Txn::load) takes one in: it adds to what is here. What is here and was left out is dead.
//!
//! Never here: who may be believed, when to prune, the network.

mod build;
mod load;
mod prune;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::checkpoint::{CheckpointError, Header};
use pacsync_protocol::crypto::{RunningHash, domain};
use pacsync_protocol::{NodeId, Seq, SpaceId, cbor};
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

pub use build::Builder;
pub use prune::Pruned;

use crate::branches::SpaceLogs;
use crate::error::StoreError;
use crate::replica::Store;
use crate::tables::{LOGS, LogRecord, SEGMENT_INDEX, SegmentRecord};
use crate::tree::{CarriedRow, Ends, Entries, TreeReader, is_within};
use crate::txn::Txn;

/// (Space number, part) → a sealed part of a checkpoint that is being received.
const PARTS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("checkpoint_parts");

/// (Space number, row) → nothing: the rows of a checkpoint that is being taken in.
const NAMED: TableDefinition<'_, (u32, &[u8; 32]), ()> = TableDefinition::new("checkpoint_named");

/// (Space number, log number) → last entry: nodes that were dead for good at these ends may be
/// lacking here, as a checkpoint that was taken in left them out.
const LEFT_OUT: TableDefinition<'_, (u32, u32), u64> = TableDefinition::new("checkpoint_left_out");

/// Space number → nothing: of what a checkpoint left out something lives here, and rows of it are
/// lacking.
const LACKING: TableDefinition<'_, u32, ()> = TableDefinition::new("checkpoint_lacking");

/// Space number → signed header of the last checkpoint that was taken in.
const STARTED_FROM: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("checkpoints");

pub(crate) fn make_tables(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(PARTS)?;
    tx.open_table(NAMED)?;
    tx.open_table(LEFT_OUT)?;
    tx.open_table(LACKING)?;
    tx.open_table(STARTED_FROM)?;
    Ok(())
}

/// Why a checkpoint was not taken in. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Its bytes break the format, a bound or its seal.
    #[error(transparent)]
    Bad(#[from] CheckpointError),
    /// It contradicts itself or the rules that honest devices keep.
    #[error("{0}")]
    Contradiction(String),
    /// A log in it and the same log here are not the same.
    #[error("a log in it differs from the one that is held here")]
    Fork,
    /// It ends before something that was left out of what this replica began with.
    #[error("it is older than what this device started from")]
    Older,
    /// This device has no key for it yet.
    #[error("this device has no key for it")]
    NoKey,
}

/// What a replica makes of a checkpoint's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its rows are those that are known here up to its vector.
    Same,
    /// They are not.
    Differs,
    /// Not everything up to its vector is here.
    Unknown,
}

impl Store {
    /// The signed header of the last checkpoint that was taken in for a space.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn started_from(&self, space: &SpaceId) -> Result<Option<Vec<u8>>, StoreError> {
        let no = self.space(space)?.no;
        let table = self.read()?.open_table(STARTED_FROM)?;
        Ok(table.get(no)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Spaces of which rows are lacking about what lives here. Segments that wait for rows are told of
    /// by [`apply`](Txn::apply).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lacking(&self) -> Result<BTreeSet<SpaceId>, StoreError> {
        let tx = self.read()?;
        let table = tx.open_table(LACKING)?;
        let mut lacking = BTreeSet::new();
        for space in self.spaces() {
            if table.get(space.no)?.is_some() {
                lacking.insert(space.id);
            }
        }
        Ok(lacking)
    }

    /// Looks whether what a checkpoint signs is what is known here.
    ///
    /// Cost: one pass over the ids of all rows.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn judge(&self, header: &Header) -> Result<Verdict, StoreError> {
        let no = match self.space(&header.space) {
            Ok(space) => space.no,
            Err(_) => return Ok(Verdict::Unknown),
        };
        let tx = self.read()?;
        let index = tx.open_table(SEGMENT_INDEX)?;
        let mut heads = BTreeMap::new();
        let mut found = 0;
        for item in tx.open_table(LOGS)?.iter()? {
            let (log, bytes) = item?;
            let record: LogRecord = cbor::decode("log record", bytes.value())?;
            let Some(head) = header.vector.get(&record.id).filter(|_| record.space == no) else {
                continue;
            };
            let Some(bytes) = index.get((log.value(), head.seq))? else {
                return Ok(Verdict::Unknown);
            };
            let segment: SegmentRecord = cbor::decode("segment record", bytes.value())?;
            if record.applied < head.seq || segment.hash.to_short() != head.hash {
                return Ok(Verdict::Unknown);
            }
            heads.insert(log.value(), head.seq);
            found += 1;
        }
        if found != header.vector.len() {
            return Ok(Verdict::Unknown);
        }
        // Something may be lacking here, too.
        if !left_out_before(&tx, no)?.is_empty() {
            return Ok(Verdict::Unknown);
        }
        let logs = SpaceLogs::of(self.read()?, no)?;
        let (stable, true) = logs.ends(&header.stable)? else {
            return Ok(Verdict::Unknown);
        };
        let tree = TreeReader::open(&tx, no)?;
        let left_out = tree.left_out(&heads, &stable)?;
        let rows = rows_root(tree.carried()?, &heads, &left_out)?;
        Ok(match rows == *header.rows {
            true => Verdict::Same,
            false => Verdict::Differs,
        })
    }
}

/// What was stable when what is not here was left out.
fn left_out_before(tx: &ReadTransaction, space: u32) -> Result<Ends, StoreError> {
    ends_in(&tx.open_table(LEFT_OUT)?, space)
}

fn ends_in(table: &impl ReadableTable<(u32, u32), u64>, space: u32) -> Result<Ends, StoreError> {
    let mut ends = Ends::new();
    for item in table.range((space, 0)..=(space, u32::MAX))? {
        let (key, seq) = item?;
        ends.insert(key.value().1, seq.value());
    }
    Ok(ends)
}

impl Txn<'_> {
    fn left_out_before(&self, space: u32) -> Result<Ends, StoreError> {
        ends_in(&self.tx.open_table(LEFT_OUT)?, space)
    }

    /// Notes that a row about a node that is lacking was left out, in the segment that ends there.
    pub(crate) fn leave_out(&self, space: u32, log: u32, last: Seq) -> Result<(), StoreError> {
        let mut table = self.tx.open_table(LEFT_OUT)?;
        let before = table.get((space, log))?.map_or(0, |seq| seq.value());
        table.insert((space, log), before.max(last))?;
        Ok(())
    }

    /// Whether something was left out of what this replica has of a space.
    pub(crate) fn has_left_out(&self, space: u32) -> Result<bool, StoreError> {
        let table = self.tx.open_table(LEFT_OUT)?;
        let mut range = table.range((space, 0)..=(space, u32::MAX))?;
        Ok(range.next().transpose()?.is_some())
    }
}

/// Root over the rows within some ends, but for those about nodes that are left out.
fn rows_root(
    rows: Entries<'_, CarriedRow>,
    ends: &Ends,
    left_out: &BTreeSet<NodeId>,
) -> Result<[u8; 32], StoreError> {
    let mut root = RunningHash::new(domain::CHECKPOINT_ROWS);
    for item in rows {
        let row = item?;
        if is_within(&row.carriers, ends) && !left_out.contains(&row.node) {
            root.update(row.id.as_bytes());
        }
    }
    Ok(root.finish())
}

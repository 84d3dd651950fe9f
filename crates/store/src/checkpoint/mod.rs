//! Checkpoints and pruning: what goes once every device has it, and from what a replica starts
//! that lacks it.
//!
//! - [`Txn::prune`] drops the bytes of old segments. What is kept of each beside its bytes (number,
//!   hash, clock, time, causal past) stays, and so do its rows: all rules go on as before.
//! - [`Builder`] makes a checkpoint of what is applied, from one read transaction, part by part.
//! - [`Txn::load`] takes one in: it adds to what is here and takes nothing away.
//!
//! Never here: who may be believed, when to prune, the network.

mod build;
mod load;
mod prune;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use pacsync_protocol::checkpoint::CheckpointError;
use pacsync_protocol::crypto::{RunningHash, domain};
use pacsync_protocol::{RowId, Seq};
use redb::{TableDefinition, WriteTransaction};

pub use build::Builder;
pub use prune::Pruned;

use crate::error::StoreError;
use crate::tree::{Carrier, Entries};

/// (Space number, part) → a sealed part of a checkpoint that is being received.
const PARTS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("checkpoint_parts");

pub(crate) fn make_tables(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(PARTS)?;
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
    /// This device has no key for it yet.
    #[error("this device has no key for it")]
    NoKey,
}

/// Root over the rows that have a carrier at or below some heads (log number → last entry), and how
/// many there are.
fn rows_root(
    rows: Entries<'_, (RowId, Vec<Carrier>)>,
    heads: &BTreeMap<u32, Seq>,
) -> Result<([u8; 32], u64), StoreError> {
    let mut root = RunningHash::new(domain::CHECKPOINT_ROWS);
    let mut count = 0;
    for item in rows {
        let (id, carriers) = item?;
        let within = |c: &Carrier| heads.get(&c.log).is_some_and(|last| c.seq <= *last);
        if carriers.iter().any(within) {
            root.update(id.as_bytes());
            count += 1;
        }
    }
    Ok((root.finish(), count))
}

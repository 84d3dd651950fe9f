//! The one write transaction: taking in segments, applying them, writing own ones.
//!
//! A segment is *held* once its bytes are stored and its chain is whole, and *applied* once its
//! dependencies are: then its entries are in the derived state. Nothing is visible or
//! acknowledged before [`Txn::commit`].

mod append;
mod apply;
mod branch;
mod hold;
#[cfg(test)]
mod tests;

pub(crate) use hold::{BRANCHES_MAX, LIVES_MAX};
pub use hold::{UNKNOWN_BYTES_MAX, UNKNOWN_KEYS_MAX};

use std::collections::BTreeMap;

use pacsync_protocol::roster::Roster;
use pacsync_protocol::{DeviceId, Incarnation, LogId, Seq, SpaceId, Stamp, cbor};
use redb::{ReadableTable, WriteTransaction};

use crate::error::StoreError;
use crate::index::Index;
use crate::replica::{Committed, Space, Store, unlock};
use crate::tables::{
    ACKS, DOCUMENTS, FORKED, FRONTIER, LOGS, LogRecord, META, QUARANTINE, SEGMENT_INDEX, SEGMENTS,
    SPACES, SegmentRecord, SpaceRecord,
};
use crate::tree::TreeTables;

/// A write transaction. Dropping it takes everything back.
pub struct Txn<'s> {
    pub(crate) store: &'s mut Store,
    pub(crate) tx: WriteTransaction,
    /// The roster with what this transaction counted, if anything.
    roster: Option<Roster>,
    /// Spaces that are new or have new keys here.
    spaces: BTreeMap<SpaceId, Space>,
    /// The life that begins with this transaction, if one does.
    life: Option<Incarnation>,
    /// The own log goes on elsewhere: nothing more may be written to it.
    pub(crate) lost_own: bool,
    pub(crate) out: Committed,
}

/// Makes every table, so that reads never meet a missing one.
pub(crate) fn make_tables(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(META)?;
    tx.open_table(SPACES)?;
    tx.open_table(LOGS)?;
    tx.open_table(SEGMENTS)?;
    tx.open_table(SEGMENT_INDEX)?;
    tx.open_table(FRONTIER)?;
    tx.open_table(DOCUMENTS)?;
    tx.open_table(QUARANTINE)?;
    tx.open_table(ACKS)?;
    tx.open_table(FORKED)?;
    crate::checkpoint::make_tables(tx)?;
    crate::undoable::make_tables(tx)?;
    crate::index::make_tables(tx)?;
    crate::tree::make_tables(tx)?;
    Ok(())
}

impl<'s> Txn<'s> {
    pub(crate) fn begin(store: &'s mut Store) -> Result<Self, StoreError> {
        let tx = store.db.begin_write()?;
        Ok(Self {
            store,
            tx,
            roster: None,
            spaces: BTreeMap::new(),
            life: None,
            lost_own: false,
            out: Committed::default(),
        })
    }

    /// The underlying transaction, for tables of other modules.
    pub fn raw(&self) -> &WriteTransaction {
        &self.tx
    }

    /// The derived tree of a space.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tree(&self, space_no: u32) -> Result<TreeTables<'_>, StoreError> {
        Ok(TreeTables::open(&self.tx, space_no)?)
    }

    /// The worktree index of a space.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn index(&self, space_no: u32) -> Result<Index<'_>, StoreError> {
        Index::open(&self.tx, space_no)
    }

    /// Notes up to where packs are synced; belongs into the transaction that indexes the objects.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_pack_end(&self, end: crate::content::packs::PackEnd) -> Result<(), StoreError> {
        let bytes = [&end.pack.to_be_bytes()[..], &end.offset.to_be_bytes()[..]].concat();
        self.tx
            .open_table(META)?
            .insert("pack_end", bytes.as_slice())?;
        Ok(())
    }

    /// The roster, with what this transaction counted.
    pub fn roster(&self) -> &Roster {
        self.roster.as_ref().unwrap_or(&self.store.roster)
    }

    /// A space, with what this transaction learned.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`].
    pub fn space(&self, id: &SpaceId) -> Result<&Space, StoreError> {
        self.spaces
            .get(id)
            .or_else(|| self.store.spaces.get(id))
            .ok_or(StoreError::UnknownSpace(*id))
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing took effect, but after an I/O error the store must be
    /// opened again.
    pub fn commit(self) -> Result<Committed, StoreError> {
        self.tx.commit()?;
        if let Some(life) = self.life {
            self.store.incarnation = life;
        }
        if let Some(roster) = self.roster {
            self.store.roster = roster;
        }
        self.store.spaces.extend(self.spaces);
        Ok(self.out)
    }

    /// Commits without waiting for the disk: for derived state that a restart may lose.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn commit_lazily(mut self) -> Result<Committed, StoreError> {
        self.tx.set_durability(redb::Durability::None)?;
        self.commit()
    }

    /// Keeps a verified ack if it is newer than the one held. True if it was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_ack(
        &mut self,
        space: &SpaceId,
        device: &DeviceId,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let no = self.space(space)?.no;
        self.tx
            .open_table(ACKS)?
            .insert((no, device.as_bytes()), bytes)?;
        Ok(())
    }

    fn clock(&self, space_no: u32) -> Result<Stamp, StoreError> {
        let table = self.tx.open_table(SPACES)?;
        let Some(bytes) = table.get(space_no)? else {
            return Ok(0);
        };
        Ok(cbor::decode::<SpaceRecord>("space record", bytes.value())?.clock)
    }

    pub(crate) fn logs(&self) -> Result<Vec<(u32, LogRecord)>, StoreError> {
        let table = self.tx.open_table(LOGS)?;
        table
            .iter()?
            .map(|item| {
                let (no, bytes) = item?;
                Ok((no.value(), cbor::decode("log record", bytes.value())?))
            })
            .collect()
    }

    pub(crate) fn log(
        &self,
        space_no: u32,
        id: &LogId,
    ) -> Result<Option<(u32, LogRecord)>, StoreError> {
        let found = self
            .logs()?
            .into_iter()
            .find(|(_, r)| r.space == space_no && r.id == *id);
        Ok(found)
    }

    pub(crate) fn put_log(&self, no: u32, record: &LogRecord) -> Result<(), StoreError> {
        self.tx
            .open_table(LOGS)?
            .insert(no, cbor::encode(record).as_slice())?;
        Ok(())
    }

    pub(crate) fn segment_record(
        &self,
        no: u32,
        last: Seq,
    ) -> Result<Option<SegmentRecord>, StoreError> {
        let table = self.tx.open_table(SEGMENT_INDEX)?;
        let Some(bytes) = table.get((no, last))? else {
            return Ok(None);
        };
        Ok(Some(cbor::decode("segment record", bytes.value())?))
    }

    fn quarantine(&self, no: u32, seq: Seq, why: &str) -> Result<(), StoreError> {
        self.tx.open_table(QUARANTINE)?.insert((no, seq), why)?;
        Ok(())
    }

    /// The number of a space; a new one where it has none yet.
    fn space_no(&mut self, id: &SpaceId) -> Result<u32, StoreError> {
        if let Ok(space) = self.space(id) {
            return Ok(space.no);
        }
        let mut table = self.tx.open_table(SPACES)?;
        let no = table.last()?.map_or(1, |(no, _)| no.value() + 1);
        let record = SpaceRecord { id: *id, clock: 0 };
        table.insert(no, cbor::encode(&record).as_slice())?;
        drop(table);
        let space = unlock(
            self.roster(),
            &self.store.identity,
            &self.store.roster_space,
            *id,
            no,
        );
        self.spaces.insert(*id, space);
        Ok(no)
    }
}

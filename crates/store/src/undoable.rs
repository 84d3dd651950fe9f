//! What can be taken back on this device: the newest batches of other devices' rows as they were
//! applied here, and the restores that were made here.
//!
//! A batch is what one log brought without a pause. Only the newest ones are remembered, each with
//! the nodes that it touched: rows and segments are not looked for again, and may have gone. Local
//! to the device; losing it loses the memory of what came when, and nothing else.

use std::collections::BTreeSet;

use minicbor::{Decode, Encode};
use pacsync_protocol::segment::Header;
use pacsync_protocol::{DeviceId, NodeId, Seq, SpaceId, cbor};
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use crate::error::StoreError;
use crate::index::Index;
use crate::replica::Store;
use crate::tree::Carrier;
use crate::txn::Txn;

/// Number → [`Undoable`].
const UNDOABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("undoable");
/// (Number, node) → nothing.
const TOUCHED: TableDefinition<'_, (u64, &[u8; 16]), ()> = TableDefinition::new("undoable_nodes");

/// Longest pause within a batch.
const PAUSE_MS: u64 = 3_000;
/// Longest batch: who writes without a pause is cut here.
const BATCH_MS: u64 = 600_000;
/// Most that are remembered.
const UNDOABLE_MAX: usize = 256;
/// Most nodes that all of them touched together; one that alone touched more cannot be taken back.
const NODES_MAX: u64 = 200_000;

pub(crate) fn make_tables(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(UNDOABLE)?;
    tx.open_table(TOUCHED)?;
    Ok(())
}

/// Entries of one log, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Run {
    /// Number of the log.
    #[n(0)]
    pub log: u32,
    /// The first entry.
    #[n(1)]
    pub first: Seq,
    /// The last entry.
    #[n(2)]
    pub last: Seq,
}

impl Run {
    /// Whether an entry is one of these.
    pub fn has(&self, carrier: Carrier) -> bool {
        carrier.log == self.log && (self.first..=self.last).contains(&carrier.seq)
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum UndoableKind {
    /// Another device's rows were applied.
    #[n(0)]
    Batch,
    /// Something was restored on this device.
    #[n(1)]
    Restore,
}

/// Something that can be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Undoable {
    /// What it is.
    #[n(0)]
    pub kind: UndoableKind,
    /// Number of the space.
    #[n(1)]
    pub space: u32,
    /// Who wrote it.
    #[n(2)]
    pub device: DeviceId,
    /// What it wrote.
    #[n(3)]
    pub run: Run,
    /// When it began here, in milliseconds since 1970.
    #[n(4)]
    pub began_ms: u64,
    /// When the last of it came.
    #[n(5)]
    pub ended_ms: u64,
    /// How many nodes it touched.
    #[n(6)]
    pub nodes: u64,
    /// What took it back; set once it was.
    #[n(7)]
    pub undone: Option<Vec<Run>>,
    /// It touched more nodes than are remembered.
    #[n(8)]
    pub too_large: bool,
}

fn all(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<Vec<(u64, Undoable)>, StoreError> {
    let items = table.iter()?.map(|item| {
        let (no, bytes) = item?;
        Ok((no.value(), cbor::decode("undoable", bytes.value())?))
    });
    items.collect()
}

impl Txn<'_> {
    /// Notes a segment of another device that was applied to a tree which is on this disk.
    pub(crate) fn note_arrival(
        &self,
        space: u32,
        log: u32,
        header: &Header,
        nodes: &BTreeSet<NodeId>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let device = header.log.device;
        if nodes.is_empty() || device == self.own_log().device {
            return Ok(());
        }
        // What a device joins with is no batch.
        let attachment = Index::open(self.raw(), space)?.attachment()?;
        if attachment.is_none_or(|found| found.awaits_sponsor || found.join.is_some()) {
            return Ok(());
        }
        let run = Run {
            log,
            first: header.first,
            last: header.last(),
        };
        let newest = {
            let table = self.raw().open_table(UNDOABLE)?;
            let of_log = |(_, found): &(u64, Undoable)| found.run.log == log;
            all(&table)?.into_iter().rev().find(of_log)
        };
        let goes_on = newest.filter(|(_, found)| {
            found.undone.is_none()
                && found.kind == UndoableKind::Batch
                && now_ms.saturating_sub(found.ended_ms) <= PAUSE_MS
                && now_ms.saturating_sub(found.began_ms) <= BATCH_MS
        });
        match goes_on {
            Some((no, mut found)) => {
                found.run.last = run.last;
                found.ended_ms = now_ms;
                self.remember(Some(no), found, nodes)
            }
            None => {
                let found = Undoable {
                    kind: UndoableKind::Batch,
                    space,
                    device,
                    run,
                    began_ms: now_ms,
                    ended_ms: now_ms,
                    nodes: 0,
                    undone: None,
                    too_large: false,
                };
                self.remember(None, found, nodes)
            }
        }
    }

    /// Notes a restore: what this device wrote in a space, in this transaction, since `before`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn note_restore(
        &self,
        space: &SpaceId,
        before: Seq,
        nodes: &BTreeSet<NodeId>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let Some(run) = self.own_run(space, before)? else {
            return Ok(());
        };
        let found = Undoable {
            kind: UndoableKind::Restore,
            space: self.space(space)?.no,
            device: self.own_log().device,
            run,
            began_ms: now_ms,
            ended_ms: now_ms,
            nodes: 0,
            undone: None,
            too_large: false,
        };
        self.remember(None, found, nodes)
    }

    /// Notes that something was taken back by what this device wrote in the space, in this
    /// transaction, since `before`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn note_undone(&self, no: u64, space: &SpaceId, before: Seq) -> Result<(), StoreError> {
        let run = self.own_run(space, before)?;
        let mut table = self.raw().open_table(UNDOABLE)?;
        let found = table.get(no)?.map(|bytes| bytes.value().to_vec());
        let Some(found) = found else { return Ok(()) };
        let mut found: Undoable = cbor::decode("undoable", &found)?;
        found.undone.get_or_insert_default().extend(run);
        table.insert(no, cbor::encode(&found).as_slice())?;
        Ok(())
    }

    /// The last entry of this device's own log in a space; 0 if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn own_seq(&self, space: &SpaceId) -> Result<Seq, StoreError> {
        let no = self.space(space)?.no;
        let log = self.log(no, &self.own_log())?;
        Ok(log.map_or(0, |(_, record)| record.held))
    }

    fn own_run(&self, space: &SpaceId, before: Seq) -> Result<Option<Run>, StoreError> {
        let no = self.space(space)?.no;
        let log = self.log(no, &self.own_log())?;
        let log = log.filter(|(_, record)| record.held > before);
        Ok(log.map(|(log, record)| Run {
            log,
            first: before + 1,
            last: record.held,
        }))
    }

    /// Writes one, and forgets the oldest where there are too many.
    fn remember(
        &self,
        no: Option<u64>,
        mut found: Undoable,
        nodes: &BTreeSet<NodeId>,
    ) -> Result<(), StoreError> {
        let mut table = self.raw().open_table(UNDOABLE)?;
        let mut touched = self.raw().open_table(TOUCHED)?;
        let last = table.last()?.map(|(no, _)| no.value());
        let no = no.unwrap_or_else(|| last.map_or(1, |last| last + 1));
        for node in nodes.iter().filter(|_| !found.too_large) {
            if touched.insert((no, node.as_bytes()), ())?.is_none() {
                found.nodes += 1;
            }
        }
        let nodes_of = |no| (no, &[0; 16])..=(no, &[255; 16]);
        if found.nodes > NODES_MAX {
            // What follows of it must not look like a batch of its own.
            found.too_large = true;
            found.nodes = 0;
            touched.retain_in(nodes_of(no), |_, ()| false)?;
        }
        table.insert(no, cbor::encode(&found).as_slice())?;
        let known = all(&table)?;
        let mut left = known.len();
        let mut sum: u64 = known.iter().map(|(_, found)| found.nodes).sum();
        for (no, found) in known {
            if left <= UNDOABLE_MAX && sum <= NODES_MAX {
                break;
            }
            left -= 1;
            sum -= found.nodes;
            table.remove(no)?;
            touched.retain_in(nodes_of(no), |_, ()| false)?;
        }
        Ok(())
    }
}

impl Store {
    /// What can be taken back, or was, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn undoables(&self) -> Result<Vec<(u64, Undoable)>, StoreError> {
        all(&self.read()?.open_table(UNDOABLE)?)
    }

    /// The nodes that one of them touched.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn touched(&self, tx: &ReadTransaction, no: u64) -> Result<Vec<NodeId>, StoreError> {
        let table = tx.open_table(TOUCHED)?;
        let items = table.range((no, &[0; 16])..=(no, &[255; 16]))?;
        let nodes = items.map(|item| Ok(NodeId::from_bytes(*item?.0.value().1)));
        nodes.collect()
    }
}

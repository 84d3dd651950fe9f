//! The tables, opened for reading or for writing.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | rows | space, row id | link, row |
//! | nodes | space, node id | group, or the node that it was unified into |
//! | places | space, parent, name, NUL, node | 1 shown, 0 hidden; live groups only |
//! | dir moves | space, stamp, row id | node, parent, as the row names them |
//! | conflicts | space, 0, node or space, 1, parent, name | nothing |
//! | carriers | space, row id, log, entry | nothing; carriers of a row after the first |
//! | totals | space | counters |
//! | pending | space, number | what the next settle has to look at |

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use pacsync_protocol::row::Row;
use pacsync_protocol::{NodeId, RowId, Stamp};
use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction,
};

use super::keys::{carriers_key, moves_range, nodes_key, prefix_end, rows_key, split_carrier};
use super::pending::Pending;
use super::record::{Group, Held, Link, Slot, Totals};
use super::{Carrier, TreeError};

type RowsKey = &'static [u8; 36];
type NodesKey = &'static [u8; 20];
type MovesKey = &'static [u8; 44];
type MovesValue = &'static [u8; 32];
type CarriersKey = &'static [u8; 48];
type TotalsValue = &'static [u8; Totals::LEN];
type Bytes = &'static [u8];

const ROWS: TableDefinition<'_, RowsKey, Bytes> = TableDefinition::new("tree_rows");
const NODES: TableDefinition<'_, NodesKey, Bytes> = TableDefinition::new("tree_nodes");
const PLACES: TableDefinition<'_, Bytes, u8> = TableDefinition::new("tree_places");
const MOVES: TableDefinition<'_, MovesKey, MovesValue> = TableDefinition::new("tree_dir_moves");
const CONFLICTS: TableDefinition<'_, Bytes, ()> = TableDefinition::new("tree_conflicts");
const CARRIERS: TableDefinition<'_, CarriersKey, ()> = TableDefinition::new("tree_carriers");
const TOTALS: TableDefinition<'_, u32, TotalsValue> = TableDefinition::new("tree_totals");
const PENDING: TableDefinition<'_, (u32, u64), Bytes> = TableDefinition::new("tree_pending");

/// Makes the tables, so that a read transaction finds them.
///
/// # Errors
/// [`TreeError::Database`].
pub fn make_tables(tx: &WriteTransaction) -> Result<(), TreeError> {
    tx.open_table(ROWS)?;
    tx.open_table(NODES)?;
    tx.open_table(PLACES)?;
    tx.open_table(MOVES)?;
    tx.open_table(CONFLICTS)?;
    tx.open_table(CARRIERS)?;
    tx.open_table(TOTALS)?;
    tx.open_table(PENDING)?;
    Ok(())
}

/// The tree of one space, over tables that are open for reading or for writing.
#[derive(Debug)]
pub struct Tree<B> {
    pub(super) space: u32,
    pub(super) b: B,
}

/// A tree in a write transaction. One at a time; what it holds back reaches the tables when it is
/// dropped, [flushed](TreeTables::flush) or settled.
pub type TreeTables<'txn> = Tree<WriteTables<'txn>>;
/// A tree in a read transaction.
pub type TreeReader = Tree<ReadTables>;

/// An iterator over table entries.
pub type Entries<'a, T> = Box<dyn Iterator<Item = Result<T, TreeError>> + 'a>;

/// Read access that both kinds of transaction give.
pub trait Backend {
    /// What is known of a node.
    #[doc(hidden)]
    fn slot(&self, space: u32, node: &NodeId) -> Result<Option<Slot>, TreeError>;
    /// A row.
    #[doc(hidden)]
    fn held(&self, space: u32, id: &RowId) -> Result<Option<Arc<Held>>, TreeError>;
    /// A row's links.
    #[doc(hidden)]
    fn link(&self, space: u32, id: &RowId) -> Result<Option<Link>, TreeError>;
    /// A row's record.
    #[doc(hidden)]
    fn record(&self, space: u32, id: &RowId) -> Result<Option<Vec<u8>>, TreeError>;
    /// Keys and flags of the places that begin with a prefix.
    #[doc(hidden)]
    fn places(&self, prefix: &[u8]) -> Result<Entries<'_, (Vec<u8>, u8)>, TreeError>;
    /// All directory placements in order: row id, node, parent.
    #[doc(hidden)]
    fn moves(&self, space: u32) -> Result<Entries<'_, (RowId, NodeId, NodeId)>, TreeError>;
    /// Keys of all conflicts.
    #[doc(hidden)]
    fn conflict_keys(&self, space: u32) -> Result<Entries<'_, Vec<u8>>, TreeError>;
    /// The counters.
    #[doc(hidden)]
    fn totals(&self, space: u32) -> Result<Totals, TreeError>;
}

/// Tables open for reading.
pub struct ReadTables {
    rows: ReadOnlyTable<RowsKey, Bytes>,
    nodes: ReadOnlyTable<NodesKey, Bytes>,
    places: ReadOnlyTable<Bytes, u8>,
    moves: ReadOnlyTable<MovesKey, MovesValue>,
    conflicts: ReadOnlyTable<Bytes, ()>,
    carriers: ReadOnlyTable<CarriersKey, ()>,
    totals: ReadOnlyTable<u32, TotalsValue>,
}

/// Tables open for writing, and what has not been written to them yet.
pub struct WriteTables<'txn> {
    pub(super) rows: Table<'txn, RowsKey, Bytes>,
    nodes: Table<'txn, NodesKey, Bytes>,
    pub(super) places: Table<'txn, Bytes, u8>,
    pub(super) moves: Table<'txn, MovesKey, MovesValue>,
    pub(super) conflicts: Table<'txn, Bytes, ()>,
    carriers: Table<'txn, CarriersKey, ()>,
    totals_table: Table<'txn, u32, TotalsValue>,
    pending_table: Table<'txn, (u32, u64), Bytes>,
    space: u32,
    pub(super) totals: Totals,
    totals_changed: bool,
    slots: HashMap<NodeId, Slot>,
    unwritten: BTreeSet<NodeId>,
    recent: HashMap<RowId, Arc<Held>>,
    pub(super) pending: Pending,
    /// Order of the last directory placement; `None` until looked up.
    pub(super) last_move: Option<(Stamp, RowId)>,
}

/// Rows kept decoded while they are written.
const RECENT_MAX: usize = 4096;
/// Nodes held back before they go to the table.
const SLOTS_MAX: usize = 16 * 1024;

fn places_in<'a>(
    table: &'a impl ReadableTable<Bytes, u8>,
    prefix: &[u8],
) -> Result<Entries<'a, (Vec<u8>, u8)>, TreeError> {
    let range = table.range(prefix..prefix_end(prefix).as_slice())?;
    Ok(Box::new(range.map(|entry| {
        let (key, value) = entry?;
        Ok((key.value().to_vec(), value.value()))
    })))
}

fn moves_in<'a>(
    table: &'a impl ReadableTable<MovesKey, MovesValue>,
    space: u32,
) -> Result<Entries<'a, (RowId, NodeId, NodeId)>, TreeError> {
    let (first, last) = moves_range(space);
    let range = table.range::<&[u8; 44]>(&first..=&last)?;
    Ok(Box::new(range.map(|entry| {
        let (key, value) = entry?;
        let (key, value) = (key.value(), value.value());
        let parts = (
            key.get(12..).and_then(RowId::from_slice),
            value.get(..16).and_then(NodeId::from_slice),
            value.get(16..).and_then(NodeId::from_slice),
        );
        match parts {
            (Some(row), Some(node), Some(parent)) => Ok((row, node, parent)),
            _ => Err(TreeError::Damaged("a directory placement")),
        }
    })))
}

fn conflicts_in<'a>(
    table: &'a impl ReadableTable<Bytes, ()>,
    space: u32,
) -> Result<Entries<'a, Vec<u8>>, TreeError> {
    let prefix = space.to_be_bytes();
    let range = table.range(&prefix[..]..prefix_end(&prefix).as_slice())?;
    Ok(Box::new(range.map(|entry| Ok(entry?.0.value().to_vec()))))
}

fn carriers_in(
    table: &impl ReadableTable<CarriersKey, ()>,
    space: u32,
    row: &RowId,
) -> Result<Vec<Carrier>, TreeError> {
    let low = carriers_key(space, row, Carrier { log: 0, seq: 0 });
    let high = carriers_key(
        space,
        row,
        Carrier {
            log: u32::MAX,
            seq: u64::MAX,
        },
    );
    let range = table.range::<&[u8; 48]>(&low..=&high)?;
    range
        .map(|entry| Ok(split_carrier(entry?.0.value())))
        .collect()
}

/// A row, and the entries that carry it, the first one that came here first.
#[derive(Debug, Clone)]
pub(crate) struct CarriedRow {
    pub(crate) id: RowId,
    pub(crate) node: NodeId,
    pub(crate) carriers: Vec<Carrier>,
}

/// Every row of a space, by id.
fn carried_in<'a>(
    rows: &'a impl ReadableTable<RowsKey, Bytes>,
    carriers: &'a impl ReadableTable<CarriersKey, ()>,
    space: u32,
) -> Result<Entries<'a, CarriedRow>, TreeError> {
    let first = rows_key(space, &RowId::from_bytes([0; 32]));
    let last = rows_key(space, &RowId::from_bytes([255; 32]));
    let items = rows.range::<&[u8; 36]>(&first..=&last)?;
    Ok(Box::new(items.map(move |item| {
        let (key, bytes) = item?;
        let id = key.value().get(4..).and_then(RowId::from_slice);
        let id = id.ok_or(TreeError::Damaged("a row's key"))?;
        let (link, row) = Link::decode(bytes.value())?;
        let mut all = vec![link.carrier];
        all.extend(carriers_in(carriers, space, &id)?);
        Ok(CarriedRow {
            id,
            node: Row::node_of(row).ok_or(TreeError::Damaged("a row"))?,
            carriers: all,
        })
    })))
}

impl TreeTables<'_> {
    /// Every row of the space, by id, and the entries that carry it.
    pub(crate) fn carried(&self) -> Result<Entries<'_, CarriedRow>, TreeError> {
        carried_in(&self.b.rows, &self.b.carriers, self.space)
    }

    /// Whether a row is here.
    pub(crate) fn knows_row(&self, id: &RowId) -> Result<bool, TreeError> {
        self.b.has_row(id)
    }

    /// Whether something is known of a node.
    pub(crate) fn knows_node(&mut self, node: &NodeId) -> Result<bool, TreeError> {
        Ok(self.b.find(node)?.is_some())
    }
}

impl TreeReader {
    /// Every row of the space, by id, and the entries that carry it.
    pub(crate) fn carried(&self) -> Result<Entries<'_, CarriedRow>, TreeError> {
        carried_in(&self.b.rows, &self.b.carriers, self.space)
    }

    /// Every node of the space and what the table says about it.
    pub(super) fn slots(&self) -> Result<Entries<'_, (NodeId, Slot)>, TreeError> {
        self.slots_after(None)
    }

    /// The same of those after a node.
    pub(super) fn slots_after(
        &self,
        from: Option<&NodeId>,
    ) -> Result<Entries<'_, (NodeId, Slot)>, TreeError> {
        let first = from.copied().unwrap_or(NodeId::from_bytes([0; 16]));
        let first = nodes_key(self.space, &first);
        let last = nodes_key(self.space, &NodeId::from_bytes([0xff; 16]));
        let first = match from {
            Some(_) => Bound::Excluded(&first),
            None => Bound::Included(&first),
        };
        let range = (first, Bound::Included(&last));
        let range = self.b.nodes.range::<&[u8; 20]>(range)?;
        Ok(Box::new(range.map(|entry| {
            let (key, value) = entry?;
            let node = key.value().get(4..).and_then(NodeId::from_slice);
            let node = node.ok_or(TreeError::Damaged("a node's key"))?;
            Ok((node, Slot::decode(value.value())?))
        })))
    }

    /// Opens the tree of a space.
    ///
    /// # Errors
    /// [`TreeError::Database`], also if [`make_tables`] never ran.
    pub fn open(tx: &ReadTransaction, space: u32) -> Result<Self, TreeError> {
        let b = ReadTables {
            rows: tx.open_table(ROWS)?,
            nodes: tx.open_table(NODES)?,
            places: tx.open_table(PLACES)?,
            moves: tx.open_table(MOVES)?,
            conflicts: tx.open_table(CONFLICTS)?,
            carriers: tx.open_table(CARRIERS)?,
            totals: tx.open_table(TOTALS)?,
        };
        Ok(Self { space, b })
    }

    /// Every row of the space, by id: for checks of the whole.
    ///
    /// # Errors
    /// [`TreeError`], here and for each row.
    pub fn rows(&self) -> Result<Entries<'_, (RowId, Row)>, TreeError> {
        let first = rows_key(self.space, &RowId::from_bytes([0; 32]));
        let last = rows_key(self.space, &RowId::from_bytes([255; 32]));
        let items = self.b.rows.range::<&[u8; 36]>(&first..=&last)?;
        Ok(Box::new(items.map(|item| {
            let (key, bytes) = item?;
            let (_, id) = key.value().split_at(4);
            let id = id
                .try_into()
                .map_err(|_| TreeError::Damaged("a row's key"))?;
            Ok((RowId::from_bytes(id), Held::decode(bytes.value())?.row))
        })))
    }

    /// The entries that carry a row, the first one that came here first; none for an unknown row.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn carriers(&self, row: &RowId) -> Result<Vec<Carrier>, TreeError> {
        let Some(link) = self.b.link(self.space, row)? else {
            return Ok(vec![]);
        };
        let mut carriers = vec![link.carrier];
        carriers.extend(carriers_in(&self.b.carriers, self.space, row)?);
        Ok(carriers)
    }
}

impl Backend for ReadTables {
    fn slot(&self, space: u32, node: &NodeId) -> Result<Option<Slot>, TreeError> {
        let found = self.nodes.get(&nodes_key(space, node))?;
        found.map(|bytes| Slot::decode(bytes.value())).transpose()
    }

    fn held(&self, space: u32, id: &RowId) -> Result<Option<Arc<Held>>, TreeError> {
        let found = self.rows.get(&rows_key(space, id))?;
        found
            .map(|bytes| Held::decode(bytes.value()).map(Arc::new))
            .transpose()
    }

    fn link(&self, space: u32, id: &RowId) -> Result<Option<Link>, TreeError> {
        let found = self.rows.get(&rows_key(space, id))?;
        found
            .map(|bytes| Link::decode(bytes.value()).map(|(link, _)| link))
            .transpose()
    }

    fn record(&self, space: u32, id: &RowId) -> Result<Option<Vec<u8>>, TreeError> {
        Ok(self
            .rows
            .get(&rows_key(space, id))?
            .map(|bytes| bytes.value().to_vec()))
    }

    fn places(&self, prefix: &[u8]) -> Result<Entries<'_, (Vec<u8>, u8)>, TreeError> {
        places_in(&self.places, prefix)
    }

    fn moves(&self, space: u32) -> Result<Entries<'_, (RowId, NodeId, NodeId)>, TreeError> {
        moves_in(&self.moves, space)
    }

    fn conflict_keys(&self, space: u32) -> Result<Entries<'_, Vec<u8>>, TreeError> {
        conflicts_in(&self.conflicts, space)
    }

    fn totals(&self, space: u32) -> Result<Totals, TreeError> {
        let found = self.totals.get(space)?;
        Ok(found
            .map(|bytes| Totals::decode(bytes.value()))
            .unwrap_or_default())
    }
}

impl Backend for WriteTables<'_> {
    fn slot(&self, space: u32, node: &NodeId) -> Result<Option<Slot>, TreeError> {
        if let Some(slot) = self.slots.get(node) {
            return Ok(Some(slot.clone()));
        }
        let found = self.nodes.get(&nodes_key(space, node))?;
        found.map(|bytes| Slot::decode(bytes.value())).transpose()
    }

    fn held(&self, space: u32, id: &RowId) -> Result<Option<Arc<Held>>, TreeError> {
        if let Some(held) = self.recent.get(id) {
            return Ok(Some(Arc::clone(held)));
        }
        let found = self.rows.get(&rows_key(space, id))?;
        found
            .map(|bytes| Held::decode(bytes.value()).map(Arc::new))
            .transpose()
    }

    fn link(&self, space: u32, id: &RowId) -> Result<Option<Link>, TreeError> {
        if let Some(held) = self.recent.get(id) {
            return Ok(Some(held.link));
        }
        let found = self.rows.get(&rows_key(space, id))?;
        found
            .map(|bytes| Link::decode(bytes.value()).map(|(link, _)| link))
            .transpose()
    }

    fn record(&self, space: u32, id: &RowId) -> Result<Option<Vec<u8>>, TreeError> {
        Ok(self
            .rows
            .get(&rows_key(space, id))?
            .map(|bytes| bytes.value().to_vec()))
    }

    fn places(&self, prefix: &[u8]) -> Result<Entries<'_, (Vec<u8>, u8)>, TreeError> {
        places_in(&self.places, prefix)
    }

    fn moves(&self, space: u32) -> Result<Entries<'_, (RowId, NodeId, NodeId)>, TreeError> {
        moves_in(&self.moves, space)
    }

    fn conflict_keys(&self, space: u32) -> Result<Entries<'_, Vec<u8>>, TreeError> {
        conflicts_in(&self.conflicts, space)
    }

    fn totals(&self, _space: u32) -> Result<Totals, TreeError> {
        Ok(self.totals)
    }
}

impl<'txn> TreeTables<'txn> {
    /// Opens the tree of a space.
    ///
    /// # Errors
    /// [`TreeError::Database`], also while another is open in the same transaction.
    pub fn open(tx: &'txn WriteTransaction, space: u32) -> Result<Self, TreeError> {
        let totals_table = tx.open_table(TOTALS)?;
        let totals = match totals_table.get(space)? {
            Some(bytes) => Totals::decode(bytes.value()),
            None => Totals::default(),
        };
        let b = WriteTables {
            rows: tx.open_table(ROWS)?,
            nodes: tx.open_table(NODES)?,
            places: tx.open_table(PLACES)?,
            moves: tx.open_table(MOVES)?,
            conflicts: tx.open_table(CONFLICTS)?,
            carriers: tx.open_table(CARRIERS)?,
            totals_table,
            pending_table: tx.open_table(PENDING)?,
            space,
            totals,
            totals_changed: false,
            slots: HashMap::new(),
            unwritten: BTreeSet::new(),
            recent: HashMap::new(),
            pending: Pending::default(),
            last_move: None,
        };
        Ok(Self { space, b })
    }

    /// Writes what is held back. Dropping does it too, but cannot say that it failed; a failed
    /// write also fails the commit.
    ///
    /// # Errors
    /// [`TreeError::Database`].
    pub fn flush(&mut self) -> Result<(), TreeError> {
        self.b.flush()
    }
}

impl WriteTables<'_> {
    pub(super) fn flush(&mut self) -> Result<(), TreeError> {
        for node in std::mem::take(&mut self.unwritten) {
            if let Some(slot) = self.slots.get(&node) {
                self.nodes
                    .insert(&nodes_key(self.space, &node), slot.encode().as_slice())?;
            }
        }
        if self.totals_changed {
            self.totals_table
                .insert(self.space, &self.totals.encode())?;
            self.totals_changed = false;
        }
        if self.pending != Pending::default() {
            let bytes = std::mem::take(&mut self.pending).encode();
            let range = (self.space, 0)..=(self.space, u64::MAX);
            let last = self.pending_table.range(range)?.next_back().transpose()?;
            let next = last.map_or(0, |(key, _)| key.value().1.wrapping_add(1));
            self.pending_table
                .insert((self.space, next), bytes.as_slice())?;
        }
        Ok(())
    }

    /// Takes all that is pending, also from before this was opened.
    pub(super) fn take_pending(&mut self) -> Result<Pending, TreeError> {
        let mut all = std::mem::take(&mut self.pending);
        let range = (self.space, 0)..=(self.space, u64::MAX);
        let mut keys = vec![];
        for entry in self.pending_table.range(range)? {
            let (key, value) = entry?;
            keys.push(key.value());
            all.decode_into(value.value())?;
        }
        for key in keys {
            self.pending_table.remove(key)?;
        }
        Ok(all)
    }

    fn load(&mut self, node: &NodeId) -> Result<Option<&mut Slot>, TreeError> {
        if !self.slots.contains_key(node) {
            let Some(bytes) = self.nodes.get(&nodes_key(self.space, node))? else {
                return Ok(None);
            };
            self.slots.insert(*node, Slot::decode(bytes.value())?);
        }
        Ok(self.slots.get_mut(node))
    }

    /// The representative of a node, if the node is known. Shortens the way for the next time.
    pub(super) fn find(&mut self, node: &NodeId) -> Result<Option<NodeId>, TreeError> {
        if *node == NodeId::ROOT {
            return Ok(Some(NodeId::ROOT));
        }
        let mut way = vec![];
        let mut at = *node;
        loop {
            match self.load(&at)? {
                None if way.is_empty() => return Ok(None),
                None => return Err(TreeError::Damaged("a node leads nowhere")),
                Some(Slot::Group(_)) => break,
                Some(Slot::Forward(next)) => {
                    way.push(at);
                    at = *next;
                }
            }
        }
        way.pop();
        for node in way {
            self.put_slot(node, Slot::Forward(at));
        }
        Ok(Some(at))
    }

    /// The representative of a node that a row which is held names.
    pub(super) fn rep(&mut self, node: &NodeId) -> Result<NodeId, TreeError> {
        self.find(node)?
            .ok_or(TreeError::Damaged("a held row names an unknown node"))
    }

    /// A group, to look at.
    pub(super) fn group(&mut self, rep: &NodeId) -> Result<&Group, TreeError> {
        match self.load(rep)? {
            Some(Slot::Group(group)) => Ok(group),
            _ => Err(TreeError::Damaged("a representative has no group")),
        }
    }

    /// A group, to change.
    pub(super) fn group_mut(&mut self, rep: &NodeId) -> Result<&mut Group, TreeError> {
        self.unwritten.insert(*rep);
        match self.load(rep)? {
            Some(Slot::Group(group)) => Ok(group),
            _ => Err(TreeError::Damaged("a representative has no group")),
        }
    }

    pub(super) fn put_slot(&mut self, node: NodeId, slot: Slot) {
        self.unwritten.insert(node);
        self.slots.insert(node, slot);
    }

    pub(super) fn totals_mut(&mut self) -> &mut Totals {
        self.totals_changed = true;
        &mut self.totals
    }

    pub(super) fn put_row(
        &mut self,
        id: RowId,
        held: Arc<Held>,
        bytes: &[u8],
    ) -> Result<(), TreeError> {
        let record = held.link.encode(bytes);
        self.rows
            .insert(&rows_key(self.space, &id), record.as_slice())?;
        if self.recent.len() >= RECENT_MAX {
            self.recent.clear();
        }
        self.recent.insert(id, held);
        Ok(())
    }

    pub(super) fn has_row(&self, id: &RowId) -> Result<bool, TreeError> {
        Ok(self.recent.contains_key(id) || self.rows.get(&rows_key(self.space, id))?.is_some())
    }

    /// Notes that a row came again; true if that is news.
    pub(super) fn put_carrier(&mut self, id: &RowId, carrier: Carrier) -> Result<bool, TreeError> {
        let key = carriers_key(self.space, id, carrier);
        Ok(self.carriers.insert(&key, ())?.is_none())
    }

    /// Carriers of a row after the first.
    pub(super) fn later_carriers(&self, id: &RowId) -> Result<Vec<Carrier>, TreeError> {
        carriers_in(&self.carriers, self.space, id)
    }

    /// Keeps memory bounded; call between rows, with no group in hand.
    pub(super) fn trim(&mut self) -> Result<(), TreeError> {
        if self.slots.len() > SLOTS_MAX {
            for node in std::mem::take(&mut self.unwritten) {
                if let Some(slot) = self.slots.get(&node) {
                    self.nodes
                        .insert(&nodes_key(self.space, &node), slot.encode().as_slice())?;
                }
            }
            self.slots.clear();
        }
        Ok(())
    }

    /// Order of the last directory placement of the space.
    pub(super) fn last_move(&mut self) -> Result<(Stamp, RowId), TreeError> {
        if let Some(last) = self.last_move {
            return Ok(last);
        }
        let (low, high) = moves_range(self.space);
        let mut last = (0, RowId::from_bytes([0; RowId::LEN]));
        if let Some(entry) = self.moves.range::<&[u8; 44]>(&low..=&high)?.next_back() {
            let key = entry?.0;
            let (stamp, row) = key.value().split_at(12);
            if let (Some(Ok(stamp)), Some(row)) = (
                stamp.get(4..).map(TryInto::try_into),
                RowId::from_slice(row),
            ) {
                last = (u64::from_be_bytes(stamp), row);
            }
        }
        self.last_move = Some(last);
        Ok(last)
    }
}

impl Drop for WriteTables<'_> {
    fn drop(&mut self) {
        // A write that fails here also fails the commit: redb refuses everything after it.
        let _ = self.flush();
    }
}

impl std::fmt::Debug for ReadTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReadTables")
    }
}

impl std::fmt::Debug for WriteTables<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriteTables")
    }
}

impl<B: Backend> Tree<B> {
    /// The bytes of a row and the first entry that carried it.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn row(&self, id: &RowId) -> Result<Option<(Vec<u8>, Carrier)>, TreeError> {
        let Some(record) = self.b.record(self.space, id)? else {
            return Ok(None);
        };
        let (link, bytes) = Link::decode(&record)?;
        Ok(Some((bytes.to_vec(), link.carrier)))
    }

    pub(super) fn held(&self, id: &RowId) -> Result<Arc<Held>, TreeError> {
        self.b
            .held(self.space, id)?
            .ok_or(TreeError::Damaged("a row is missing"))
    }

    pub(super) fn link(&self, id: &RowId) -> Result<Link, TreeError> {
        self.b
            .link(self.space, id)?
            .ok_or(TreeError::Damaged("a row's link is missing"))
    }
}

//! What a step of the worktree engine finds, until it is durable.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::row::{At, Name, Row};
use pacsync_protocol::segment::Entry as LogEntry;
use pacsync_protocol::{NodeId, RowId, Stamp};
use pacsync_store::content::packs::PackStore;
use pacsync_store::index::{Entry, Index};
use pacsync_store::tree::TreeTables;
use pacsync_store::{StoreError, Txn};

use super::texts::Kept;
use super::{Now, Progress, Worktree};
use crate::disk::RelPath;

/// Directories above each other that are looked at.
const DEPTH_MAX: usize = 4_096;

/// One step's view of the store, and what it found.
pub(super) struct Batch<'t> {
    pub(super) tree: TreeTables<'t>,
    pub(super) index: Index<'t>,
    pub(super) rows: Vec<LogEntry>,
    pub(super) stamp: Stamp,
    pub(super) dirty: bool,
    /// What was found must outlive a crash although no row tells it.
    pub(super) lasting: bool,
    pub(super) bytes: u64,
    pub(super) now: Now,
    /// Nodes that need rendering although their rows did not change.
    pub(super) marks: Vec<NodeId>,
    /// Nodes that are not where the tree has them any more, by rows of this batch.
    pub(super) left: BTreeSet<NodeId>,
    kept: Vec<Kept>,
    pub(super) kept_bytes: usize,
    /// What a restore brings back, so that it can be undone.
    pub(super) restored: BTreeSet<NodeId>,
    /// Directories that were made on disk, which must be durable before the index tells of them.
    pub(super) made: BTreeSet<RelPath>,
    /// Where modes were set, likewise.
    pub(super) modes_set: BTreeSet<RelPath>,
    /// Directories, and whether they or one above them give way to another one.
    hidden: RefCell<BTreeMap<NodeId, bool>>,
}

impl<'t> Batch<'t> {
    pub(super) fn open(
        txn: &'t Txn<'_>,
        no: u32,
        stamp: Stamp,
        now: Now,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            tree: txn.tree(no)?,
            index: txn.index(no)?,
            rows: vec![],
            stamp,
            dirty: false,
            lasting: false,
            bytes: 0,
            now,
            marks: vec![],
            left: BTreeSet::new(),
            kept: vec![],
            kept_bytes: 0,
            restored: BTreeSet::new(),
            made: BTreeSet::new(),
            modes_set: BTreeSet::new(),
            hidden: RefCell::default(),
        })
    }

    /// Whether a directory gives way to another one, or one above it does: then nothing is shown of
    /// what is in it.
    pub(super) fn is_hidden(&self, dir: &NodeId) -> Result<bool, StoreError> {
        let mut walked = vec![];
        let mut at = *dir;
        let hidden = loop {
            if at == NodeId::ROOT || walked.len() >= DEPTH_MAX {
                break false;
            }
            if let Some(known) = self.hidden.borrow().get(&at) {
                break *known;
            }
            walked.push(at);
            match self.tree.node(&at)? {
                Some(state) if state.shown => match state.parent {
                    Some(above) => at = above,
                    None => break false,
                },
                Some(_) => break true,
                None => break false,
            }
        };
        let mut known = self.hidden.borrow_mut();
        known.extend(walked.into_iter().map(|dir| (dir, hidden)));
        Ok(hidden)
    }

    /// Keeps a version for ever, with the rows.
    pub(super) fn keep(&mut self, kept: Kept) {
        self.kept_bytes += kept.len();
        self.kept.push(kept);
    }

    pub(super) fn write(&mut self, row: &Row) -> RowId {
        let bytes = row.to_bytes();
        let id = Row::id_of(&bytes);
        self.rows.push(LogEntry::Row(bytes));
        self.dirty = true;
        id
    }

    pub(super) fn place(&mut self, parent: NodeId, name: &Name) -> At {
        let stamp = self.stamp;
        self.stamp += 1;
        At {
            parent,
            name: name.clone(),
            stamp,
        }
    }

    pub(super) fn put(
        &mut self,
        parent: &NodeId,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), StoreError> {
        self.dirty = true;
        self.index.put(parent, name, entry)
    }
}

/// What remains of a batch once its view of the store is closed.
pub(super) struct Found {
    rows: Vec<LogEntry>,
    marks: Vec<NodeId>,
    kept: Vec<Kept>,
    dirty: bool,
    lasting: bool,
    restored: BTreeSet<NodeId>,
}

impl Found {
    pub(super) fn into_rows(self) -> Vec<LogEntry> {
        self.rows
    }
}

impl Batch<'_> {
    pub(super) fn close(self) -> Found {
        Found {
            rows: self.rows,
            marks: self.marks,
            kept: self.kept,
            dirty: self.dirty,
            lasting: self.lasting,
            restored: self.restored,
        }
    }
}

impl Worktree {
    /// Writes what a batch found and makes it durable.
    pub(super) fn commit_found(
        &mut self,
        found: Found,
        mut txn: Txn<'_>,
        packs: &mut PackStore,
        rng: &mut dyn Entropy,
        now: Now,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        if !found.marks.is_empty() {
            // What is to be rendered is remembered as long as what asks for it.
            let mut index = txn.index(self.no)?;
            for node in &found.marks {
                index.mark_pending(node)?;
            }
        }
        if found.rows.is_empty() {
            if found.lasting {
                txn.commit()?;
            } else if found.dirty || !found.marks.is_empty() {
                txn.commit_lazily()?;
            }
        } else {
            // Durable before the commit that writes the rows.
            self.put_kept(&txn, packs, found.kept, now)?;
            let before = txn.own_seq(&self.space)?;
            txn.append(&self.space, found.rows, now.ms, rng)?;
            if !found.restored.is_empty() {
                txn.note_restore(&self.space, before, &found.restored, now.ms)?;
            }
            let committed = txn.commit()?;
            self.mark(committed.changed.iter().map(|(_, node)| *node));
            progress.committed.push(committed);
        }
        self.mark(found.marks);
        Ok(())
    }
}

//! What history keeps of the files that stand on this disk: the contents of texts, in the packs.
//!
//! The content of an edit is kept in the commit that writes its row; so is that of a new file,
//! unless many come at once. Those, and what came from other devices, are kept a little later, some
//! at a time: until then the file itself is the only copy here. Other contents are kept when an
//! apply or a delete displaces them (`displaced`), and not before. For how long: `pacsync_store::keep`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use pacsync_protocol::content::{IdKeys, ObjectId};
use pacsync_protocol::row::{INLINE_MAX, Kind};
use pacsync_protocol::{ContentId, NodeId, RowId};
use pacsync_store::content::packs::{PackEnd, PackError, PackRef, PackStore};
use pacsync_store::index::{ContentTables, Index};
pub(super) use pacsync_store::keep::{TEXT_MAX, is_text};
use pacsync_store::tree::{Backend, Tree};
use pacsync_store::{StoreError, Txn};

use super::batch::Batch;
use super::content::Read;
use super::settle::path_of;
use super::{Context, Now, Worktree, file_identity};

/// New files that are kept at once where many come at a time.
const BIRTHS_MAX: u64 = 64;
/// Time after which one more may be.
const BIRTH_MS: u64 = 100;
/// How long after they came the rest is kept, and the time between two steps of that.
const LATER_MS: u64 = 1_000;
const STEP_MS: u64 = 100;
/// Files, and bytes, of one such step.
const STEP_FILES: usize = 256;
const STEP_BYTES: u64 = 4 << 20;
/// Rows that are looked at to find the version before.
const BEFORE_ROWS_MAX: usize = 32;

/// A text that is to be kept with the rows of a batch.
pub(super) struct Kept {
    node: NodeId,
    content: ContentId,
    bytes: Vec<u8>,
    before: Option<ContentId>,
}

impl Kept {
    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// What is put off, and how many new files may be kept at once.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// When the next step is due; `None` if nothing is put off.
    due_ms: Option<u64>,
    births: u64,
    counted_ms: u64,
}

impl Keeping {
    /// After a start: something may have been put off before.
    pub(super) fn resumed(now: Now) -> Self {
        Self {
            due_ms: Some(now.ms.saturating_add(LATER_MS)),
            births: 0,
            counted_ms: now.ms,
        }
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.due_ms
    }

    /// Something was put off.
    pub(super) fn later(&mut self, now: Now) {
        self.due_ms.get_or_insert(now.ms.saturating_add(LATER_MS));
    }

    /// Whether one more new file may be kept at once.
    fn takes_birth(&mut self, now: Now) -> bool {
        let gone = now.ms.saturating_sub(self.counted_ms) / BIRTH_MS;
        self.births = self.births.saturating_sub(gone);
        self.counted_ms = self
            .counted_ms
            .saturating_add(gone.saturating_mul(BIRTH_MS));
        if self.births >= BIRTHS_MAX {
            return false;
        }
        self.births += 1;
        true
    }
}

/// Whether a content may be a text whose versions are kept and do not ride in their rows.
pub(super) fn may_be_kept(size: u64) -> bool {
    (INLINE_MAX as u64 + 1..=TEXT_MAX).contains(&size)
}

/// The version before the one that a row wrote, if a pack has it.
pub(super) fn kept_before<B: Backend>(
    tree: &Tree<B>,
    tables: &dyn ContentTables,
    row: Option<&RowId>,
) -> Result<Option<ContentId>, StoreError> {
    let Some(row) = row else { return Ok(None) };
    for content in tree.contents_before(row, BEFORE_ROWS_MAX)? {
        if tables.packed(content.as_bytes())?.is_some() {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// Where contents are that were put into the packs together, and up to where those are synced.
pub(super) type Placed = (Vec<(ObjectId, PackRef)>, PackEnd);

/// Contents that are put into the packs together, and are of use only once those are synced.
pub(super) struct Keeper<'a> {
    pub(super) space: pacsync_protocol::SpaceId,
    pub(super) keys: &'a IdKeys,
    pub(super) tables: &'a dyn ContentTables,
    pub(super) packs: &'a mut PackStore,
    placed: RefCell<BTreeMap<ObjectId, PackRef>>,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(
        space: pacsync_protocol::SpaceId,
        keys: &'a IdKeys,
        tables: &'a dyn ContentTables,
        packs: &'a mut PackStore,
    ) -> Self {
        Self {
            space,
            keys,
            tables,
            packs,
            placed: RefCell::default(),
        }
    }

    /// Puts a content into the packs, unless it can be read there.
    pub(super) fn keep(
        &mut self,
        content: &ContentId,
        bytes: &[u8],
        before: Option<&ContentId>,
    ) -> Result<(), PackError> {
        let object = ObjectId::Content(*content);
        let find = |object: &ObjectId| {
            let placed = self.placed.borrow().get(object).copied();
            placed.or_else(|| self.tables.packed(object.as_bytes()).ok().flatten())
        };
        // One that was damaged since is written anew.
        if let Some(at) = find(&object)
            && self
                .packs
                .get_version(&at, &object, self.keys, &find)
                .is_ok()
        {
            return Ok(());
        }
        let put = self
            .packs
            .put_version(&self.space, content, bytes, before, self.keys, &find);
        self.placed.borrow_mut().insert(object, put?);
        Ok(())
    }

    /// Makes all of them durable. What it returns is for the index, and for the commit.
    pub(super) fn finish(self) -> Result<Option<Placed>, PackError> {
        let placed = self.placed.into_inner();
        if placed.is_empty() {
            return Ok(None);
        }
        let end = self.packs.sync()?;
        Ok(Some((placed.into_iter().collect(), end)))
    }
}

impl Worktree {
    /// The content of an edit is kept with its row: what it replaced is gone already.
    pub(super) fn keep_edit(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        read: &mut Read,
        before: Option<ContentId>,
    ) {
        if let Some(bytes) = read.text.take() {
            b.keep(Kept {
                node,
                content: read.content.id,
                bytes,
                before,
            });
        }
    }

    /// The content of a new file is kept with its row, too, unless many come at once.
    pub(super) fn keep_birth(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        read: &mut Read,
    ) -> Result<(), StoreError> {
        if read.text.is_none() {
            return Ok(());
        }
        if self.phase == super::Phase::Live && self.keeping.takes_birth(b.now) {
            self.keep_edit(b, node, read, None);
            return Ok(());
        }
        b.index.mark_unkept(&node)?;
        self.keeping.later(b.now);
        Ok(())
    }

    /// Puts what a batch keeps into the packs, durably, and notes in the same transaction where it
    /// is. Where that fails the files stay the only copies until it is tried again.
    pub(super) fn put_kept(
        &mut self,
        txn: &Txn<'_>,
        packs: &mut PackStore,
        kept: Vec<Kept>,
        now: Now,
    ) -> Result<(), StoreError> {
        if kept.is_empty() {
            return Ok(());
        }
        let mut index = txn.index(self.no)?;
        let nodes: Vec<NodeId> = kept.iter().map(|kept| kept.node).collect();
        let done = {
            let tables = index.contents()?;
            let mut keeper = Keeper::new(self.space, &self.keys, &tables, packs);
            kept.into_iter()
                .try_for_each(|kept| keeper.keep(&kept.content, &kept.bytes, kept.before.as_ref()))
                .and_then(|()| keeper.finish())
        };
        match done {
            Ok(placed) => self.index_kept(txn, &mut index, placed),
            Err(error) => {
                tracing::warn!(%error, "versions are not kept yet");
                for node in nodes {
                    index.mark_unkept(&node)?;
                }
                self.keeping.later(now);
                Ok(())
            }
        }
    }

    fn index_kept(
        &self,
        txn: &Txn<'_>,
        index: &mut Index<'_>,
        placed: Option<Placed>,
    ) -> Result<(), StoreError> {
        if let Some((placed, end)) = placed {
            for (object, at) in placed {
                index.put_packed(object.as_bytes(), &at)?;
            }
            txn.set_pack_end(end)?;
        }
        Ok(())
    }

    /// Keeps some of what was put off.
    pub(super) fn keep_texts_step(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.keeping.due_ms.is_none_or(|due| due > cx.now.ms) {
            return Ok(());
        }
        if !self.walks.is_empty() || !self.order.is_empty() {
            self.keeping.due_ms = Some(cx.now.ms.saturating_add(STEP_MS));
            return Ok(());
        }
        let txn = cx.store.begin()?;
        let nodes = txn.index(self.no)?.unkept(STEP_FILES)?;
        if nodes.is_empty() {
            self.keeping.due_ms = None;
            return Ok(());
        }
        self.keeping.due_ms = Some(cx.now.ms.saturating_add(STEP_MS));
        let mut index = txn.index(self.no)?;
        let mut looked = vec![];
        let done = {
            let tree = txn.tree(self.no)?;
            let tables = index.contents()?;
            let mut keeper = Keeper::new(self.space, &self.keys, &tables, cx.packs);
            let mut bytes = 0;
            let mut failed = None;
            for node in nodes {
                if bytes >= STEP_BYTES {
                    break;
                }
                looked.push(node);
                let Some((read, row)) = self.read_unkept(&index, &tables, &node)? else {
                    continue;
                };
                bytes += read.content.size;
                let Some(text) = &read.text else { continue };
                let before = kept_before(&tree, &tables, row.as_ref())?;
                if let Err(error) = keeper.keep(&read.content.id, text, before.as_ref()) {
                    failed = Some(error);
                    break;
                }
            }
            match failed {
                Some(error) => Err(error),
                None => keeper.finish(),
            }
        };
        match done {
            Ok(placed) => {
                for node in looked {
                    index.clear_unkept(&node)?;
                }
                let durable = placed.is_some();
                self.index_kept(&txn, &mut index, placed)?;
                if durable {
                    txn.commit()?;
                } else {
                    txn.commit_lazily()?;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "versions are not kept yet");
                self.keeping.due_ms = Some(cx.now.ms.saturating_add(super::RETRY_MS));
            }
        }
        Ok(())
    }

    /// The file of a node, if it is as the index knows it and no pack has its content.
    fn read_unkept(
        &self,
        index: &Index<'_>,
        tables: &dyn ContentTables,
        node: &NodeId,
    ) -> Result<Option<(Read, Option<RowId>)>, StoreError> {
        let Some((parent, name, entry)) = index.entry_of(node)? else {
            return Ok(None);
        };
        let (Kind::File, Some(content)) = (entry.kind, entry.content) else {
            return Ok(None);
        };
        if !may_be_kept(entry.identity.size) || tables.packed(content.as_bytes())?.is_some() {
            return Ok(None);
        }
        let path = match path_of(index, &parent)?.map(|dir| dir.join(&name)) {
            Some(Ok(path)) => path,
            _ => return Ok(None),
        };
        // If it is another by now a scan finds that, and keeps what it finds.
        let known = match self.disk.stat(&path) {
            Ok(Some(stat)) => file_identity(&stat.identity) == entry.identity,
            _ => false,
        };
        if !known {
            return Ok(None);
        }
        let read = super::content::read(&*self.disk, &path, Kind::File, &self.keys);
        Ok(read
            .ok()
            .filter(|read| read.content.id == content)
            .map(|read| (read, entry.row)))
    }
}

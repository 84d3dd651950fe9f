//! Merging: concurrent contents of a file become one, where that is no guess.
//!
//! Which contents, and what they were edited from, the tree says; what comes of them is a pure
//! function of their bytes. So whichever device has all of them writes the row, and each writes the
//! same. No file has the merged content at first: it is in the packs before its row is written,
//! and then applied like any other. What cannot be merged is left as the conflict that it is and
//! not tried again until its sides change.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::content::SMALL_MAX;
use pacsync_protocol::row::{Content, INLINE_MAX, Kind, Row};
use pacsync_protocol::{ContentId, NodeId, RowId};
use pacsync_store::content::packs::{PackError, PackStore};
use pacsync_store::index::Index;
use pacsync_store::merge::{MAX_BYTES, Outcome, merge};
use pacsync_store::tree::{Base, Mergeable, NodeState};
use pacsync_store::{StoreError, Txn};

use super::batch::Batch;
use super::content::Contents;
use super::keep::objects_of;
use super::settle::path_of;
use super::{RETRY_MS, Waiting, Worktree};

/// Bytes of contents that are merged in one round; one file may exceed it.
const BYTES_MAX: usize = 4 << 20;
/// What a merge counts at least, in bytes.
const BYTES_MIN: usize = 64 << 10;
/// How often peers may say that they lack a base until it counts as lost.
const LACKED_MAX: u32 = 16;

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// There is nothing to merge, or not now.
    None,
    /// The row is written with this round; the node's turn comes again after it.
    Made,
    /// This round has merged enough.
    Later,
}

/// A merge that is not written yet.
struct Made {
    node: NodeId,
    row: Row,
    content: ContentId,
    bytes: Vec<u8>,
}

/// What is known of merges that were not made.
#[derive(Default)]
pub(super) struct Merging {
    /// Nodes whose newest rows, these, do not merge.
    left: BTreeMap<NodeId, Vec<RowId>>,
    /// Nodes that a content keeps from being merged, because it is not here.
    lacking: BTreeMap<ContentId, BTreeSet<NodeId>>,
    lacks: BTreeMap<NodeId, Vec<ContentId>>,
    /// Contents that are asked for only to merge, and how often peers said that they lack them, too.
    asked: BTreeMap<ContentId, u32>,
    made: Vec<Made>,
    spent: usize,
}

impl Merging {
    /// Begins a round.
    pub(super) fn begin_round(&mut self) {
        self.spent = 0;
    }

    /// Nodes whose merge lacked this content.
    fn lacking(&self, content: &ContentId) -> Vec<NodeId> {
        let nodes = self.lacking.get(content).into_iter().flatten();
        nodes.copied().collect()
    }

    fn note_lacks(&mut self, node: NodeId, contents: Vec<ContentId>) {
        for content in &contents {
            self.lacking.entry(*content).or_default().insert(node);
        }
        self.lacks.insert(node, contents);
    }

    /// A node lacks nothing any more. Gives what was asked for only to merge it.
    fn forget_lacks(&mut self, node: &NodeId) -> Vec<ContentId> {
        let mut gone = vec![];
        for content in self.lacks.remove(node).unwrap_or_default() {
            if let Some(nodes) = self.lacking.get_mut(&content) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.lacking.remove(&content);
                    gone.extend(self.asked.remove(&content).map(|_| content));
                }
            }
        }
        gone
    }
}

impl Worktree {
    /// Merges what stands side by side in a node, if all that takes is here.
    pub(super) fn merge_sides(
        &mut self,
        b: &Batch<'_>,
        packs: &PackStore,
        state: &NodeState,
    ) -> Result<Attempt, StoreError> {
        let node = state.id;
        if state.losers.is_empty() || state.kind != Kind::File {
            self.merging.left.remove(&node);
            self.stop_lacking(&node, &BTreeMap::new());
            return Ok(Attempt::None);
        }
        if self.merging.made.iter().any(|made| made.node == node) {
            return Ok(Attempt::Made);
        }
        let (Some(name), Some(found)) = (&state.name, b.tree.mergeable(&node)?) else {
            self.merging.left.remove(&node);
            self.stop_lacking(&node, &BTreeMap::new());
            return Ok(Attempt::None);
        };
        if self.merging.left.get(&node) == Some(&found.past) {
            return Ok(Attempt::None);
        }
        if self.merging.spent >= BYTES_MAX {
            return Ok(Attempt::Later);
        }
        let mut needed = BTreeMap::new();
        for content in found.sides.iter().chain(found.base.contents()) {
            needed.insert(content.id, content);
        }
        let mut texts = Texts::new();
        let mut lacks = BTreeMap::new();
        for (id, content) in needed {
            match self.whole(b, packs, content)? {
                Some(bytes) => {
                    self.merging.spent += bytes.len();
                    texts.insert(id, bytes);
                }
                None => {
                    lacks.insert(id, content);
                }
            }
        }
        self.merging.spent += BYTES_MIN;
        self.stop_lacking(&node, &lacks);
        if !lacks.is_empty() {
            for content in lacks.values() {
                self.want_for_packs(content);
            }
            self.merging.note_lacks(node, lacks.into_keys().collect());
            return Ok(Attempt::None);
        }
        let Some(bytes) = merged(name.as_bytes(), &found, &texts) else {
            self.merging.left.insert(node, found.past);
            return Ok(Attempt::None);
        };
        self.merging.left.remove(&node);
        let content = self.keys.content_id(&bytes);
        let inline = (bytes.len() <= INLINE_MAX).then(|| bytes.clone());
        self.merging.made.push(Made {
            node,
            row: found.row(content, bytes.len() as u64, inline),
            content,
            bytes,
        });
        Ok(Attempt::Made)
    }

    /// A content, if all of it is on this device.
    fn whole(
        &self,
        b: &Batch<'_>,
        packs: &PackStore,
        content: &Content,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(bytes) = &content.inline {
            return Ok(Some(bytes.clone()));
        }
        if let Some(bytes) = self.arrived.get(&content.id) {
            return Ok(Some(bytes.to_vec()));
        }
        let tables = b.index.contents()?;
        let path = |node: &NodeId| path_of(&b.index, node);
        let contents = Contents {
            disk: &*self.disk,
            keys: &self.keys,
            packs,
            tables: &tables,
            path_of: &path,
        };
        contents.read_bytes(content, MAX_BYTES as u64)
    }

    /// Asks peers for a small content that is to be kept in the packs.
    fn want_for_packs(&mut self, content: &Content) {
        if content.size > SMALL_MAX || self.waiting.contains_key(&content.id) {
            return;
        }
        let waiting = Waiting {
            size: content.size,
            nodes: BTreeSet::new(),
            for_packs: true,
        };
        self.waiting.insert(content.id, waiting);
        self.merging.asked.insert(content.id, 0);
        self.transfers.more_is_wanted();
    }

    /// A node's merge lacks nothing but `still`: the rest is not fetched for it.
    fn stop_lacking(&mut self, node: &NodeId, still: &BTreeMap<ContentId, &Content>) {
        for content in self.merging.forget_lacks(node) {
            match still.get(&content) {
                Some(_) => {
                    self.merging.asked.insert(content, 0);
                }
                None => self.stop_waiting(&content),
            }
        }
    }

    fn stop_waiting(&mut self, content: &ContentId) {
        if let Some(waiting) = self.waiting.get(content)
            && waiting.for_packs
            && waiting.nodes.is_empty()
            && !self.wanted_versions.contains(content)
        {
            self.waiting.remove(content);
        }
    }

    /// A content is readable here now: what could not be merged without it is looked at again.
    pub(super) fn now_mergeable(&mut self, content: &ContentId) {
        let nodes = self.merging.lacking(content);
        self.mark(nodes);
    }

    /// A peer lacks a content. A base that nobody has any more is not asked for without end.
    pub(super) fn lacked_for_merge(&mut self, content: &ContentId) {
        if let Some(times) = self.merging.asked.get_mut(content) {
            *times = times.saturating_add(1);
            if *times >= LACKED_MAX {
                self.merging.asked.remove(content);
                self.stop_waiting(content);
            }
        }
    }

    /// Puts what was merged in this round into the packs, durably, and its rows into the batch.
    pub(super) fn keep_merged(
        &mut self,
        b: &mut Batch<'_>,
        txn: &Txn<'_>,
        packs: &mut PackStore,
    ) -> Result<(), StoreError> {
        let made = std::mem::take(&mut self.merging.made);
        if made.is_empty() {
            return Ok(());
        }
        let mut rows = vec![];
        let mut failed = None;
        let mut any = false;
        for Made {
            node,
            row,
            content,
            bytes,
        } in made
        {
            let kept = if bytes.len() <= INLINE_MAX {
                Ok(())
            } else {
                any = true;
                self.pack_merged(&mut b.index, packs, &content, &bytes)?
            };
            match kept {
                Ok(()) => rows.push((node, row)),
                Err(error) => {
                    self.stalled.insert(node, b.now.ms + RETRY_MS);
                    failed = Some(error);
                }
            }
        }
        if any {
            match packs.sync() {
                Ok(end) => txn.set_pack_end(end)?,
                Err(error) => {
                    for (node, _) in rows.drain(..) {
                        self.stalled.insert(node, b.now.ms + RETRY_MS);
                    }
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            tracing::warn!(%error, "a merged version cannot be kept yet");
        }
        for (_, row) in rows {
            b.write(&row);
        }
        Ok(())
    }

    /// Inside, the packs failed.
    fn pack_merged(
        &self,
        index: &mut Index<'_>,
        packs: &mut PackStore,
        content: &ContentId,
        bytes: &[u8],
    ) -> Result<Result<(), PackError>, StoreError> {
        let (objects, manifest) = objects_of(&self.keys, content, bytes)?;
        if let Some(tree) = &manifest {
            super::content::keep_manifest(index, &self.keys, content, tree)?;
        }
        for (object, part) in objects {
            match packs.put(&self.space, &object, part) {
                Ok(at) => index.put_packed(object.as_bytes(), &at)?,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}

/// Contents that are here.
type Texts = BTreeMap<ContentId, Vec<u8>>;

/// What the sides merge into; `None` for a conflict.
fn merged(name: &[u8], found: &Mergeable, texts: &Texts) -> Option<Vec<u8>> {
    let base = base_of(name, &found.base, texts)?;
    merge_all(name, base.as_deref(), &found.sides, texts)
}

fn merge_all(
    name: &[u8],
    base: Option<&[u8]>,
    sides: &[Content],
    texts: &Texts,
) -> Option<Vec<u8>> {
    let sides: Option<Vec<&[u8]>> = sides
        .iter()
        .map(|side| texts.get(&side.id).map(Vec::as_slice))
        .collect();
    match merge(name, base, &sides?) {
        Outcome::Merged(bytes) => Some(bytes),
        Outcome::Conflict(why) => {
            tracing::debug!(%why, "no merge");
            None
        }
    }
}

/// The bytes that sides were edited from; inside, `None` for nothing.
#[expect(
    clippy::option_option,
    reason = "no base is something else than an empty one"
)]
fn base_of(name: &[u8], base: &Base, texts: &Texts) -> Option<Option<Vec<u8>>> {
    match base {
        Base::Empty => Some(None),
        Base::Content(content) => texts.get(&content.id).cloned().map(Some),
        Base::Merge(base, sides) => {
            let base = base_of(name, base, texts)?;
            merge_all(name, base.as_deref(), sides, texts).map(Some)
        }
    }
}

#[cfg(test)]
mod tests;

//! What a disk cannot show as the tree has it: symlinks where there are none, names too long, names
//! that it takes for one. Its content is kept on this device, and what has a name keeps it.

use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::row::Kind;
use pacsync_protocol::{ContentId, NodeId};
use pacsync_store::StoreError;
use pacsync_store::content::packs::PackStore;
use pacsync_store::index::Entry;
use pacsync_store::tree::NodeState;

use super::Worktree;
use super::apply::Place;
use super::batch::Batch;
use super::plan::{Plan, Wanted};
use super::settle::path_of;
use crate::disk::RelPath;

/// What stands at a place.
pub(super) enum Occupant {
    None,
    Node(NodeId),
    /// A file of another name, which the disk takes for the same, that was not seen yet.
    Unseen(RelPath),
}

/// Why a disk cannot show a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unshowable {
    Symlink,
    LongName,
    Taken,
}

impl Unshowable {
    fn told(self) -> &'static str {
        match self {
            Self::Symlink => "this disk cannot hold symlinks",
            Self::LongName => "this disk cannot hold a name so long",
            Self::Taken => {
                "this disk takes its name for another one that is there already: rename one of \
                 the two"
            }
        }
    }
}

impl Worktree {
    /// Which node's file stands at a place; on disks that take one name for another it may have
    /// another name.
    pub(super) fn occupant(
        &mut self,
        b: &Batch<'_>,
        place: &Place,
    ) -> Result<Occupant, StoreError> {
        if let Some(other) = b.index.get(&place.parent, &place.name)? {
            return Ok(Occupant::Node(other.node));
        }
        if !self.folds_names() {
            return Ok(Occupant::None);
        }
        self.exact.forget();
        let Ok(Some(stat)) = self.disk.stat(&place.path) else {
            return Ok(Occupant::None);
        };
        let dir = place.path.parent().unwrap_or_default();
        let Ok(listing) = self.disk.list(&dir) else {
            return Ok(Occupant::None);
        };
        let mut entries = listing.entries.into_iter();
        let entry = entries.find(|entry| entry.stat.identity.ino == stat.identity.ino);
        let Some(name) = entry.map(|entry| entry.name) else {
            return Ok(Occupant::None);
        };
        if name == place.name {
            return Ok(Occupant::None);
        }
        if let Some(other) = b.index.get(&place.parent, &name)? {
            return Ok(Occupant::Node(other.node));
        }
        Ok(match dir.join(&name) {
            Ok(path) if !super::is_reserved(&name) => Occupant::Unseen(path),
            _ => Occupant::None,
        })
    }

    /// Whether the node of a file that stands at a place under another name, which the disk takes
    /// for the same, is where the tree wants it. Under the same name it is not: there the two are
    /// about to become one.
    pub(super) fn stays(
        &self,
        b: &Batch<'_>,
        node: &NodeId,
        at: &Place,
    ) -> Result<bool, StoreError> {
        let (Some(state), Some((parent, name, _))) = (b.tree.node(node)?, b.index.entry_of(node)?)
        else {
            return Ok(false);
        };
        let Wanted::Place(place) = self.wanted_place(b, &state)? else {
            return Ok(false);
        };
        Ok(place.parent == parent && place.name == name && name != at.name)
    }

    /// Whether a directory is dead and stays, as nothing is left in it but what keeps its old name.
    pub(super) fn is_stuck(&self, b: &Batch<'_>, dir: &NodeId) -> Result<bool, StoreError> {
        if !b.tree.node(dir)?.is_some_and(|state| state.dead) {
            return Ok(false);
        }
        let below = b.index.children(dir)?;
        let stays = |(_, entry): &(Vec<u8>, Entry)| self.faults.is_unshowable(&entry.node);
        Ok(!below.is_empty() && below.iter().all(stays))
    }

    /// This disk cannot show a node as the tree has it. Once its content is on this device all is
    /// done that can be done.
    pub(super) fn unshowable(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        state: &NodeState,
        path: &RelPath,
        why: Unshowable,
    ) -> Result<Plan, StoreError> {
        if self.is_kept_unshown(b, packs, state)? {
            let may_end = why == Unshowable::Taken;
            let what = why.told().into();
            self.faults
                .note_unshowable(path, state.id, what, may_end, b.now);
        } else {
            self.node_fault(path, state.id, why.told().into(), b.now);
        }
        Ok(Plan::Wait)
    }

    /// This disk cannot give a node its new name: it keeps the old one, and changes under it.
    #[expect(clippy::too_many_arguments, reason = "one plan, taken apart")]
    pub(super) fn stay(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        state: NodeState,
        entry: Entry,
        from: Place,
        wanted: &RelPath,
        why: Unshowable,
    ) -> Result<Plan, StoreError> {
        let node = state.id;
        let what = why.told().into();
        let may_end = why == Unshowable::Taken;
        self.faults
            .note_unshowable(wanted, node, what, may_end, b.now);
        self.update_where_it_is(b, packs, rng, state, from, entry)
    }

    fn update_where_it_is(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        state: NodeState,
        at: Place,
        entry: Entry,
    ) -> Result<Plan, StoreError> {
        let node = state.id;
        Ok(
            match self.plan_update(b, packs, rng, node, state, at, entry)? {
                Plan::Done => Plan::Wait,
                plan => plan,
            },
        )
    }

    pub(super) fn beneath_unshowable(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        state: NodeState,
    ) -> Result<Plan, StoreError> {
        if let Some((parent, name, entry)) = b.index.entry_of(&state.id)?
            && let Some(dir) = path_of(&b.index, &parent)?
            && let Ok(path) = dir.join(&name)
        {
            let at = Place { parent, name, path };
            self.faults.note_beneath(state.id);
            return self.update_where_it_is(b, packs, rng, state, at, entry);
        }
        if self.is_kept_unshown(b, packs, &state)? {
            self.faults.note_beneath(state.id);
        } else {
            self.stalled.insert(state.id, b.now.ms + super::RETRY_MS);
        }
        Ok(Plan::Wait)
    }

    /// A transfer into a place that nobody waits for any more.
    fn drop_unawaited(&mut self, b: &mut Batch<'_>, content: &ContentId) -> Result<(), StoreError> {
        if self.waiting.contains_key(content) || self.wanted_versions.contains(content) {
            return Ok(());
        }
        if let Some(transfer) = self.transfers.remove(content) {
            if self.disk.unlink(&transfer.path).is_err() {
                // Somebody moved its directory: a scan meets it.
                self.queue.deep(RelPath::root(), b.now.ms);
            }
            b.index.remove_transfer(content)?;
            b.dirty = true;
        }
        Ok(())
    }

    fn is_kept_unshown(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        state: &NodeState,
    ) -> Result<bool, StoreError> {
        match &state.content {
            Some(shown) if state.kind == Kind::File => {
                self.drop_unawaited(b, &shown.content.id)?;
                self.want_kept(b, packs, &state.id, &shown.content)
            }
            _ => Ok(true),
        }
    }
}

//! What has to happen so that the disk shows what the tree says of one node.

use std::sync::Arc;

use pacsync_protocol::content::SMALL_MAX;
use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::row::{Content, Kind};
use pacsync_protocol::{ContentId, NodeId};
use pacsync_store::StoreError;
use pacsync_store::content::packs::PackStore;
use pacsync_store::index::Entry;
use pacsync_store::tree::NodeState;

use super::apply::{Place, Put, Source, Step};
use super::batch::Batch;
use super::content::Contents;
use super::merging::Attempt;
use super::settle::path_of;
use super::transfer::TransferRecord;
use super::unify::Rebound;
use super::unshown::{Occupant, Unshowable};
use super::{Class, Waiting, Worktree, file_identity};
use crate::disk::{FileKind, RelPath};

/// What a node needs.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
pub(super) enum Plan {
    /// Nothing, or what was needed has been done.
    Done,
    /// Something that will mark the node again.
    Wait,
    /// A transfer was begun.
    Transfer(ContentId),
    /// Another node's steps first.
    Again,
    /// The next round: this one has done enough.
    NextRound,
    /// A change with an intent.
    Step(Step),
}

enum Obtained {
    Source(Source),
    Wait,
    Transfer,
}

impl Worktree {
    pub(super) fn plan(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        node: NodeId,
    ) -> Result<Plan, StoreError> {
        let rep = b.tree.representative(&node)?;
        self.unwait(&node);
        self.unwait(&rep);
        if rep != node {
            // It is the other's to be shown now.
            self.faults.clear_node(&node);
            if let Some((path, _)) = self.bind_later.remove(&node) {
                self.queue.deep(path, b.now.ms);
            }
            match self.rebind(b, node, rep)? {
                Rebound::Done => {}
                Rebound::InTheWay => return self.plan_unified(b, node, rep),
                Rebound::Emptying => {
                    self.mark([rep]);
                    return Ok(Plan::Wait);
                }
            }
        }
        let Some(state) = b.tree.node(&rep)? else {
            return Ok(Plan::Done);
        };
        if let Some(until) = self.shrinking.get(&rep).copied() {
            if until > b.now.ms {
                self.stalled.insert(rep, until);
                return Ok(Plan::Wait);
            }
            self.shrinking.remove(&rep);
        }
        self.plan_rep(b, packs, rng, rep, state)
    }

    fn plan_rep(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        node: NodeId,
        state: NodeState,
    ) -> Result<Plan, StoreError> {
        self.want_losers(b, packs, &state)?;
        match self.merge_sides(b, packs, &state)? {
            Attempt::None => {}
            Attempt::Made => return Ok(Plan::Wait),
            Attempt::Later => return Ok(Plan::NextRound),
        }
        let wanted = match self.wanted_place(b, &state)? {
            Wanted::Place(place) => Some(place),
            Wanted::Nowhere => None,
            Wanted::After(above) => {
                if above.iter().any(|dir| self.faults.is_unshowable(dir)) {
                    return self.beneath_unshowable(b, packs, rng, state);
                }
                for dir in above {
                    if self.blocked_until(&dir).is_some_and(|at| at > b.now.ms) {
                        return Ok(self.after(node, dir, b.now));
                    }
                    let Some(state_of_dir) = b.tree.node(&dir)? else {
                        return Ok(Plan::Done);
                    };
                    match self.plan_rep(b, packs, rng, dir, state_of_dir)? {
                        Plan::Done => {}
                        Plan::Wait if self.faults.is_unshowable(&dir) => {
                            return self.beneath_unshowable(b, packs, rng, state);
                        }
                        // Its own turn comes; this node is tried again after it.
                        Plan::Wait => return Ok(self.after(node, dir, b.now)),
                        _ => {
                            self.mark([dir]);
                            return Ok(Plan::Again);
                        }
                    }
                }
                let Some(state) = b.tree.node(&node)? else {
                    return Ok(Plan::Done);
                };
                match self.wanted_place(b, &state)? {
                    Wanted::Place(place) => Some(place),
                    Wanted::Nowhere => None,
                    Wanted::After(_) => return Ok(Plan::Again),
                }
            }
        };
        if let Some((path, _)) = self.bind_later.get(&node)
            && wanted.as_ref().is_none_or(|place| place.path != *path)
        {
            // What stands there is bound to nothing any more.
            self.queue.deep(path.clone(), b.now.ms);
            self.bind_later.remove(&node);
        }
        let current = b.index.entry_of(&node)?;
        match (current, wanted) {
            (None, None) => Ok(Plan::Done),
            (Some(_), None) => self.plan_removal(b, node),
            (None, Some(place)) => self.plan_creation(b, packs, rng, node, state, place),
            (Some((parent, name, entry)), Some(place))
                if parent == place.parent && name == place.name =>
            {
                self.plan_update(b, packs, rng, node, state, place, entry)
            }
            (Some((parent, name, entry)), Some(place)) => {
                self.plan_move(b, packs, rng, state, (parent, name, entry), place)
            }
        }
    }

    pub(super) fn wanted_place(
        &self,
        b: &Batch<'_>,
        state: &NodeState,
    ) -> Result<Wanted, StoreError> {
        let known = matches!(state.kind, Kind::Dir | Kind::File | Kind::Symlink);
        let (Some(parent), Some(name)) = (state.parent, &state.name) else {
            return Ok(Wanted::Nowhere);
        };
        if !state.shown || state.dead || !known {
            return Ok(Wanted::Nowhere);
        }
        let dir = if parent == NodeId::ROOT {
            RelPath::root()
        } else {
            match path_of(&b.index, &parent)? {
                // A directory that gives way to another one shows nothing of what is in it.
                Some(_) if b.is_hidden(&parent)? => return Ok(Wanted::Nowhere),
                Some(path) => path,
                None => return self.after_parent(b, parent),
            }
        };
        let Ok(path) = dir.join(name.as_bytes()) else {
            return Ok(Wanted::Nowhere);
        };
        Ok(match self.tracking.class(&path) {
            Class::Tracked => Wanted::Place(Place {
                parent,
                name: name.as_bytes().to_vec(),
                path,
            }),
            Class::Above if state.kind == Kind::Dir => Wanted::Place(Place {
                parent,
                name: name.as_bytes().to_vec(),
                path,
            }),
            _ => Wanted::Nowhere,
        })
    }

    /// The parent is not on disk: either it will be, or what lies beneath is not rendered.
    fn after_parent(&self, b: &Batch<'_>, parent: NodeId) -> Result<Wanted, StoreError> {
        let mut at = parent;
        let mut path = vec![];
        let mut above = vec![];
        for _ in 0..4_096 {
            if at == NodeId::ROOT {
                path.reverse();
                let path = RelPath::from_bytes(&path.join(&b'/')).unwrap_or_default();
                above.reverse();
                return Ok(match self.tracking.class(&path) {
                    Class::Untracked => Wanted::Nowhere,
                    _ => Wanted::After(above),
                });
            }
            match b.tree.node(&at)? {
                Some(state) if state.shown && !state.dead && state.kind == Kind::Dir => {
                    let (Some(next), Some(name)) = (state.parent, state.name) else {
                        break;
                    };
                    path.push(name.as_bytes().to_vec());
                    if b.index.location(&at)?.is_none() {
                        above.push(at);
                    }
                    at = next;
                }
                _ => break,
            }
        }
        Ok(Wanted::Nowhere)
    }

    pub(super) fn plan_removal(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
    ) -> Result<Plan, StoreError> {
        let Some((parent, name, entry)) = b.index.entry_of(&node)? else {
            return Ok(Plan::Done);
        };
        if self.breaker.held().remote.contains_key(&node) {
            return Ok(Plan::Wait);
        }
        let Some(dir) = path_of(&b.index, &parent)? else {
            return Ok(Plan::Done);
        };
        let Ok(path) = dir.join(&name) else {
            return Ok(Plan::Done);
        };
        if self.tracking.class(&path) == Class::Untracked {
            // Forgetting never deletes.
            super::remember_tree(&mut b.index, entry)?;
            super::forget_tree(&mut b.index, &parent, &name)?;
            b.dirty = true;
            return Ok(Plan::Done);
        }
        let place = Place { parent, name, path };
        if entry.kind != Kind::Dir {
            if let Ok(Some(stat)) = self.disk.stat(&place.path)
                && file_identity(&stat.identity) != entry.identity
            {
                // Something that was not seen yet: taken in first.
                return Ok(self.after_look(node, place.path, super::VACATED_MS * 2, b.now));
            }
            return Ok(Plan::Step(Step::Remove { node, entry, place }));
        }
        if self.leftovers.remove(&(place.parent, place.name.clone())) {
            b.index.remove(&place.parent, &place.name)?;
            b.dirty = true;
            return Ok(Plan::Done);
        }
        let below = b.index.children(&node)?;
        if below.is_empty() {
            return Ok(Plan::Step(Step::RemoveDir { node, place }));
        }
        // The last of them to go marks this directory again.
        self.mark(below.into_iter().map(|(_, entry)| entry.node));
        Ok(Plan::Wait)
    }

    fn plan_creation(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        node: NodeId,
        state: NodeState,
        place: Place,
    ) -> Result<Plan, StoreError> {
        if place.name.len() > self.probe.name_max {
            return self.unshowable(b, packs, &state, &place.path, Unshowable::LongName);
        }
        if state.kind == Kind::Symlink && !self.probe.symlinks {
            return self.unshowable(b, packs, &state, &place.path, Unshowable::Symlink);
        }
        match self.occupant(b, &place)? {
            Occupant::None => {}
            Occupant::Unseen(path) => {
                return Ok(self.after_look(node, path, super::SETTLE_MS, b.now));
            }
            Occupant::Node(other) => {
                let is_stuck = self.is_stuck(b, &other)?;
                if is_stuck && state.kind == Kind::Dir && self.take_over(b, other, node, &place)? {
                    return Ok(Plan::Again);
                }
                if is_stuck || self.faults.is_unshowable(&other) || self.stays(b, &other, &place)? {
                    return self.unshowable(b, packs, &state, &place.path, Unshowable::Taken);
                }
                if self.is_ring(b, node, other)?
                    && let Some(step) = self.step_aside(b, rng, other)?
                {
                    self.stalled.insert(node, b.now.ms + super::SETTLE_MS);
                    return Ok(Plan::Step(step));
                }
                return Ok(self.after(node, other, b.now));
            }
        }
        let seen = match self.disk.stat(&place.path) {
            Ok(seen) => seen,
            Err(error) => {
                self.node_fault(&place.path, node, super::describe(&error), b.now);
                self.stalled.insert(node, b.now.ms + super::RETRY_MS);
                return Ok(Plan::Wait);
            }
        };
        if let Some(seen) = seen {
            if state.kind == Kind::Dir && seen.kind == FileKind::Dir {
                if !self.put_dir(b, node, &place, seen.mode)? {
                    return Ok(Plan::Wait);
                }
                self.mark_below(b, node)?;
                self.queue.deep(place.path.clone(), b.now.ms);
                return Ok(Plan::Done);
            }
            if self.bind_later.contains_key(&node)
                && let Some(shown) = &state.content
            {
                return self.plan_binding(b, packs, node, &shown.content, &place);
            }
            // Something that was not seen yet: taken in first, never overwritten.
            return Ok(self.after_look(node, place.path, super::SETTLE_MS, b.now));
        }
        if state.kind == Kind::Dir {
            let plan = self.make_dir(b, node, state, place)?;
            if matches!(plan, Plan::Done) {
                self.mark_below(b, node)?;
            }
            return Ok(plan);
        }
        self.plan_put(b, packs, rng, node, state, place, None)
    }

    /// A first join met another content than the pac's: the two are bound once the pac's is here.
    fn plan_binding(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        node: NodeId,
        content: &Content,
        place: &Place,
    ) -> Result<Plan, StoreError> {
        if self.want_kept(b, packs, &node, content)? {
            self.bind_later
                .insert(node, (place.path.clone(), Some(content.id)));
            return Ok(self.after_look(node, place.path.clone(), super::SETTLE_MS, b.now));
        }
        if !self.is_fetching(&content.id) && !self.transfers.kept.is_full() {
            if self.disk.free_space().is_ok_and(|free| free < content.size) {
                let what = "the disk is full: make room; it goes on by itself";
                self.node_fault(&place.path, node, what.into(), b.now);
                return Ok(Plan::Wait);
            }
            self.begin_keeping(content);
        }
        self.stalled.insert(node, b.now.ms + super::RETRY_MS);
        Ok(Plan::Wait)
    }

    /// What lies beneath a directory may have come, or been moved there, while it was not rendered.
    pub(super) fn mark_below(&mut self, b: &mut Batch<'_>, dir: NodeId) -> Result<(), StoreError> {
        let mut missing = vec![];
        for item in b.tree.children(&dir)? {
            let (_, node) = item?;
            let location = b.index.location(&node)?;
            if location.is_none_or(|(parent, _)| parent != dir) {
                missing.push(node);
            }
        }
        for node in &missing {
            b.index.mark_pending(node)?;
        }
        self.mark(missing);
        Ok(())
    }

    fn make_dir(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        state: NodeState,
        place: Place,
    ) -> Result<Plan, StoreError> {
        let mode = state.mode.unwrap_or(0o755);
        let made = self.disk.mkdir(&place.path, 0o700).and_then(|()| {
            if self.probe.modes {
                self.disk.set_mode(&place.path, mode)
            } else {
                Ok(())
            }
        });
        if let Err(error) = made
            && !error.is_exists()
        {
            if error.is_not_found() || error.is_not_a_directory() {
                // Somebody moved the directory above.
                let above = place.path.parent().unwrap_or_default();
                return Ok(self.after_look(node, above, super::VACATED_MS * 2, b.now));
            }
            self.node_fault(&place.path, node, super::describe(&error), b.now);
            self.stalled.insert(node, b.now.ms + super::RETRY_MS);
            return Ok(Plan::Wait);
        }
        b.made.insert(place.path.clone());
        if !self.put_dir(b, node, &place, mode)? {
            return Ok(Plan::Wait);
        }
        match self.disk.watch(&place.path) {
            Err(error) if error.is_watch_limit() => self.note_unwatched(b.now),
            Err(error) if !error.is_unsupported() && !error.is_not_found() => {
                self.node_fault(&place.path, node, super::describe(&error), b.now);
            }
            _ => {}
        }
        Ok(Plan::Done)
    }

    /// Records a directory that stands at its place; false if it does not any more.
    fn put_dir(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        place: &Place,
        mode: u16,
    ) -> Result<bool, StoreError> {
        let stat = self.disk.stat(&place.path).ok().flatten();
        let Some(stat) = stat.filter(|stat| stat.kind == FileKind::Dir) else {
            // Somebody took it away in this moment.
            self.stalled.insert(node, b.now.ms + super::SETTLE_MS);
            return Ok(false);
        };
        let entry = Entry {
            node,
            kind: Kind::Dir,
            identity: file_identity(&stat.identity),
            mode: if self.probe.modes { mode } else { stat.mode },
            row: None,
            content: None,
            recorded_ns: b.now.ns,
        };
        b.put(&place.parent, &place.name, &entry)?;
        Ok(true)
    }

    #[expect(clippy::too_many_arguments, reason = "one plan, taken apart")]
    pub(super) fn plan_update(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        node: NodeId,
        state: NodeState,
        place: Place,
        mut entry: Entry,
    ) -> Result<Plan, StoreError> {
        if entry.kind != state.kind {
            // The node changed its kind under us (two births): begin anew.
            return self.plan_removal(b, node);
        }
        if let Some(shown) = &state.content
            && entry.content != Some(shown.content.id)
        {
            return self.plan_put(b, packs, rng, node, state, place, Some(entry));
        }
        let mut changed = false;
        if let Some(shown) = &state.content
            && entry.row != Some(shown.row)
        {
            entry.row = Some(shown.row);
            changed = true;
        }
        if let Some(mode) = state.mode
            && self.probe.modes
            && entry.kind != Kind::Symlink
            && entry.mode != mode
        {
            if let Err(error) = self.disk.set_mode(&place.path, mode) {
                self.node_fault(&place.path, node, super::describe(&error), b.now);
                self.stalled.insert(node, b.now.ms + super::RETRY_MS);
                return Ok(Plan::Wait);
            }
            b.modes_set.insert(place.path.clone());
            entry.mode = mode;
            if let Ok(Some(stat)) = self.disk.stat(&place.path)
                && stat.identity.mtime_ns == entry.identity.mtime_ns
                && stat.identity.size == entry.identity.size
                && stat.identity.ino == entry.identity.ino
            {
                entry.identity = file_identity(&stat.identity);
            }
            changed = true;
        }
        if changed {
            b.put(&place.parent, &place.name, &entry)?;
        }
        Ok(Plan::Done)
    }

    #[expect(clippy::too_many_arguments, reason = "one plan, taken apart")]
    fn plan_put(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        node: NodeId,
        state: NodeState,
        place: Place,
        replaces: Option<Entry>,
    ) -> Result<Plan, StoreError> {
        let Some(shown) = state.content else {
            return Ok(Plan::Done);
        };
        if let Some(entry) = &replaces
            && let Ok(Some(stat)) = self.disk.stat(&place.path)
            && file_identity(&stat.identity) != entry.identity
        {
            // An edit that was not seen yet: taken in first.
            return Ok(self.after_look(node, place.path, super::SETTLE_MS, b.now));
        }
        let source = if state.kind == Kind::Symlink {
            let Some(target) = shown.content.target() else {
                return Ok(Plan::Done);
            };
            Source::Target(target.to_vec())
        } else {
            match self.obtain(b, packs, rng, node, &shown.content, &place)? {
                Obtained::Source(source) => source,
                Obtained::Wait => return Ok(Plan::Wait),
                Obtained::Transfer => return Ok(Plan::Transfer(shown.content.id)),
            }
        };
        Ok(Plan::Step(Step::Put(Put {
            node,
            kind: state.kind,
            place,
            row: shown.row,
            content: shown.content.id,
            size: shown.content.size,
            mtime_ns: shown.content.mtime_ns,
            mode: state.mode.unwrap_or(0o644),
            source,
            replaces,
        })))
    }

    fn obtain(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        node: NodeId,
        content: &Content,
        place: &Place,
    ) -> Result<Obtained, StoreError> {
        if let Some(bytes) = &content.inline {
            return Ok(Obtained::Source(Source::Bytes(Arc::new(bytes.clone()))));
        }
        if let Some(bytes) = self.arrived.get(&content.id) {
            return Ok(Obtained::Source(Source::Bytes(Arc::clone(bytes))));
        }
        if content.size <= SMALL_MAX {
            if let Some(bytes) = self.local_small(b, packs, &content.id)? {
                return Ok(Obtained::Source(Source::Bytes(Arc::new(bytes))));
            }
            self.wait_for(content, node);
            return Ok(Obtained::Wait);
        }
        if self.transfer_is_whole(&content.id) {
            if self.transfer_is_true(b, &content.id, content.size)? {
                return Ok(Obtained::Source(Source::Transfer));
            }
            if self.transfers.get(&content.id).is_some() {
                self.wait_for(content, node);
                return Ok(Obtained::Transfer);
            }
            // Its file is out of reach, as its directory was moved: begun anew beside the target.
            self.stalled.insert(node, b.now.ms + super::VACATED_MS);
            return Ok(Obtained::Wait);
        }
        self.wait_for(content, node);
        self.transfers.aim(&content.id, &place.path);
        if self.transfers.get(&content.id).is_some() || self.transfers.is_full() {
            return Ok(Obtained::Wait);
        }
        if self.disk.free_space().is_ok_and(|free| free < content.size) {
            self.node_fault(
                &place.path,
                node,
                "the disk is full: make room; it goes on by itself".into(),
                b.now,
            );
            self.unwait(&node);
            return Ok(Obtained::Wait);
        }
        let name = self.temp_name(super::TRANSFER_MARK, rng);
        let dir = place.path.parent().unwrap_or_default();
        let Ok(path) = dir.join(&name) else {
            return Ok(Obtained::Wait);
        };
        match self.disk.create(&path, 0o600) {
            Ok(file) => {
                let record = TransferRecord {
                    parent: place.parent,
                    name,
                    size: content.size,
                    target: Some(place.path.as_bytes().to_vec().into()),
                };
                let bytes = pacsync_protocol::cbor::encode(&record);
                b.index.put_transfer(&content.id, &bytes)?;
                self.transfers
                    .begin(content.id, record, path, place.path.clone(), file);
                Ok(Obtained::Transfer)
            }
            Err(error) => {
                self.node_fault(&place.path, node, super::describe(&error), b.now);
                self.unwait(&node);
                self.stalled.insert(node, b.now.ms + super::RETRY_MS);
                Ok(Obtained::Wait)
            }
        }
    }

    /// A node does not wait for content any more: what only it waited for is not fetched.
    fn unwait(&mut self, node: &NodeId) {
        let Some(content) = self.waiting_of.remove(node) else {
            return;
        };
        if let Some(waiting) = self.waiting.get_mut(&content) {
            waiting.nodes.remove(node);
            if waiting.nodes.is_empty() && !waiting.for_packs {
                self.waiting.remove(&content);
            }
        }
    }

    fn wait_for(&mut self, content: &Content, node: NodeId) {
        if self.waiting_of.get(&node) != Some(&content.id) {
            self.unwait(&node);
        }
        self.waiting_of.insert(node, content.id);
        self.transfers.more_is_wanted();
        let waiting = self.waiting.entry(content.id).or_insert_with(|| Waiting {
            size: content.size,
            nodes: Default::default(),
            for_packs: false,
        });
        waiting.nodes.insert(node);
    }

    /// The bytes of a whole transfer must have the content's name: its manifests were a peer's word.
    fn transfer_is_true(
        &mut self,
        b: &mut Batch<'_>,
        content: &ContentId,
        size: u64,
    ) -> Result<bool, StoreError> {
        let Some(transfer) = self.transfers.get(content) else {
            return Ok(false);
        };
        let path = transfer.path.clone();
        let scanned = self
            .disk
            .open_write(&path)
            .and_then(|mut file| file.set_len(size))
            .map_err(super::content::ReadError::from)
            .and_then(|()| super::content::read(&*self.disk, &path, Kind::File, &self.keys));
        match scanned {
            Ok(read) if read.content.id == *content => {
                if let Some(tree) = &read.manifest {
                    super::content::keep_manifest(&mut b.index, &self.keys, content, tree)?;
                }
                Ok(true)
            }
            Ok(_) => {
                tracing::warn!(%content, "a transfer's bytes are not what its manifest promised");
                self.transfers.disbelieve(content, b.now.ms);
                self.restart_transfer(b, content)?;
                Ok(false)
            }
            Err(error) => {
                self.read_fault(&error, &path, b.now);
                self.restart_transfer(b, content)?;
                Ok(false)
            }
        }
    }

    pub(super) fn restart_transfer(
        &mut self,
        b: &mut Batch<'_>,
        content: &ContentId,
    ) -> Result<(), StoreError> {
        b.index.forget_manifest_of(content)?;
        b.dirty = true;
        let Some(transfer) = self.transfers.remove(content) else {
            return Ok(());
        };
        match self.disk.open_write(&transfer.path) {
            Ok(file) => self.transfers.begin(
                *content,
                transfer.record,
                transfer.path,
                transfer.target,
                file,
            ),
            Err(_) => {
                // Begun anew, in another file; a scan removes this one, wherever its directory is.
                b.index.remove_transfer(content)?;
                self.queue.deep(RelPath::root(), b.now.ms);
            }
        }
        Ok(())
    }

    fn local_small(
        &self,
        b: &Batch<'_>,
        packs: &PackStore,
        content: &ContentId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let tables = b.index.contents()?;
        let path = |node: &NodeId| path_of(&b.index, node);
        let contents = Contents {
            disk: &*self.disk,
            keys: &self.keys,
            packs,
            tables: &tables,
            path_of: &path,
        };
        contents.small(content)
    }

    /// This node's turn comes once what stands at its path was looked at; where that cannot be
    /// read, when it is tried again.
    pub(super) fn after_look(
        &mut self,
        node: NodeId,
        path: RelPath,
        wait_ms: u64,
        now: super::Now,
    ) -> Plan {
        let until = match self.faults.retry_of_read(&path) {
            Some(at) => at.max(now.ms) + super::SETTLE_MS,
            None => {
                self.queue.deep(path, now.ms);
                now.ms + wait_ms
            }
        };
        self.stalled.insert(node, until);
        Plan::Wait
    }

    /// When a node is tried again that could not be rendered.
    fn blocked_until(&self, node: &NodeId) -> Option<u64> {
        let stalled = self.stalled.get(node).copied();
        self.faults.retry_of(node).max(stalled)
    }

    /// This node's turn comes after another's: at once if that one is free to go, else when it is
    /// done, or tried again.
    pub(super) fn after(&mut self, node: NodeId, other: NodeId, now: super::Now) -> Plan {
        let blocked = if self.breaker.held().remote.contains_key(&other)
            || self.waiting_of.contains_key(&other)
        {
            Some(now.ms + super::RETRY_MS)
        } else {
            self.blocked_until(&other)
        };
        match blocked {
            Some(until) => {
                let until = until.max(now.ms + super::SETTLE_MS);
                self.stalled.insert(node, until);
                self.behind.entry(other).or_default().insert(node);
                Plan::Wait
            }
            None => {
                self.mark([other]);
                Plan::Again
            }
        }
    }
}

pub(super) enum Wanted {
    Place(Place),
    Nowhere,
    /// These directories have to be made first, outermost first.
    After(Vec<NodeId>),
}

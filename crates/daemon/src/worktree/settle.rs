//! What can only be told after a moment: moves, and paths that stay empty.
//!
//! Path beats inode: a node whose path is occupied again after the settle time was edited. A move
//! needs the old path vacant, the new path without a node, and the same inode with equal birth
//! time, or equal, non-empty, unique content.

use std::collections::BTreeSet;

use pacsync_protocol::NodeId;
use pacsync_protocol::row::{Content, Keys, Kind, Life, Name, Row};
use pacsync_protocol::segment::Entry as LogEntry;
use pacsync_store::StoreError;
use pacsync_store::index::{Entry, HeldKind, Index};

use super::batch::Batch;
use super::breaker::{Direction, WHOLE_MIN};
use super::{Context, Progress, RETRY_MS, SETTLE_MS, Worktree, file_identity, forget_tree};
use crate::disk::{DiskError, FileKind, RelPath, Stat};

/// Of a path that has stood for the settle time: the look at it comes next.
pub(super) const SETTLED: u64 = u64::MAX;
/// A burst of deletes is decided together, but not later than this after its begin.
const BURST_MS: u64 = 2_000;

/// A node whose file seems to have been moved, and where it was.
pub(super) struct MovedFrom {
    parent: NodeId,
    name: Vec<u8>,
    entry: Entry,
}

/// Takes the identity of what was moved, unless it was changed on the way: only the change time
/// may differ without a change of content.
pub(super) fn follow(entry: &mut Entry, stat: &Stat) {
    let seen = file_identity(&stat.identity);
    let known = &entry.identity;
    let only_moved =
        seen.ino == known.ino && seen.size == known.size && seen.mtime_ns == known.mtime_ns;
    if only_moved || entry.kind == Kind::Dir {
        entry.identity = seen;
    }
}

/// Path of a directory node by the index.
pub(super) fn path_of(index: &Index<'_>, node: &NodeId) -> Result<Option<RelPath>, StoreError> {
    let mut names = vec![];
    let mut at = *node;
    while at != NodeId::ROOT {
        let Some((parent, name)) = index.location(&at)? else {
            return Ok(None);
        };
        names.push(name);
        at = parent;
    }
    names.reverse();
    Ok(RelPath::from_bytes(&names.join(&b'/')).ok())
}

impl Worktree {
    /// The node that had this inode, if its path is vacant now.
    pub(super) fn move_candidate(
        &mut self,
        b: &mut Batch<'_>,
        stat: &Stat,
        kind: Kind,
    ) -> Result<Option<MovedFrom>, StoreError> {
        if stat.identity.btime_ns.is_none() {
            return Ok(None);
        }
        for node in b.index.by_inode(stat.identity.ino)? {
            let Some((parent, name, entry)) = b.index.entry_of(&node)? else {
                continue;
            };
            let same = entry.kind == kind
                && entry.identity.ino == stat.identity.ino
                && entry.identity.dev == stat.identity.dev
                && entry.identity.btime_ns == stat.identity.btime_ns;
            if same && self.is_vacant(b, &parent, &name, kind)? {
                return Ok(Some(MovedFrom {
                    parent,
                    name,
                    entry,
                }));
            }
        }
        Ok(None)
    }

    /// The one node with this content whose path is vacant now.
    pub(super) fn same_content_vacated(
        &mut self,
        b: &mut Batch<'_>,
        content: &Content,
    ) -> Result<Option<MovedFrom>, StoreError> {
        if content.size == 0 || self.vacated.is_empty() {
            return Ok(None);
        }
        let nodes = b.index.by_content(&content.id)?;
        let [node] = nodes.as_slice() else {
            return Ok(None);
        };
        let Some((parent, name, entry)) = b.index.entry_of(node)? else {
            return Ok(None);
        };
        let vacant = self.vacated.contains_key(&(parent, name.clone()))
            && self.is_vacant(b, &parent, &name, entry.kind)?;
        Ok(vacant.then_some(MovedFrom {
            parent,
            name,
            entry,
        }))
    }

    pub(super) fn is_vacant(
        &mut self,
        b: &Batch<'_>,
        parent: &NodeId,
        name: &[u8],
        kind: Kind,
    ) -> Result<bool, StoreError> {
        let Some(dir) = path_of(&b.index, parent)? else {
            return Ok(false);
        };
        let Ok(path) = dir.join(name) else {
            return Ok(false);
        };
        Ok(match self.stat_exactly(&path) {
            Ok(None) => true,
            Ok(Some(stat)) => !same_kind(stat.kind, kind),
            Err(_) => false,
        })
    }

    /// Writes that a node is at another place now.
    pub(super) fn moved(
        &mut self,
        b: &mut Batch<'_>,
        path: &RelPath,
        parent: NodeId,
        name: &Name,
        stat: &Stat,
        from: MovedFrom,
    ) -> Result<(), StoreError> {
        self.settling.remove(path);
        self.vacated.remove(&(from.parent, from.name.clone()));
        let node = b.tree.representative(&from.entry.node)?;
        let past = b.tree.past_for_edit(&node, from.entry.row.as_ref())?;
        let dir = b.tree.representative(&parent)?;
        if past.is_empty() || dir == node {
            return Ok(());
        }
        let at = b.place(dir, name);
        b.left.insert(node);
        b.write(&Row::new(
            node,
            past,
            Keys {
                at: Some(at),
                ..Keys::default()
            },
        ));
        if let Some(old) = path_of(&b.index, &from.parent)?
            && let Ok(old) = old.join(&from.name)
        {
            // Something of another kind may have taken its place.
            self.queue.deep(old, b.now.ms);
        }
        b.index.remove(&from.parent, &from.name)?;
        self.has_left(b, &from.parent)?;
        let mut entry = from.entry;
        follow(&mut entry, stat);
        b.put(&parent, name.as_bytes(), &entry)?;
        // Looks at what was changed on the way; below a directory watches are set anew.
        self.queue.deep(path.clone(), b.now.ms);
        Ok(())
    }

    /// Takes moves and vacated places whose time has come.
    pub(super) fn settle_step(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        let now = cx.now.ms;
        let due: Vec<RelPath> = self
            .settling
            .iter()
            .filter(|(_, due)| **due <= now)
            .map(|(path, _)| path.clone())
            .collect();
        if !due.is_empty() {
            for path in due {
                self.settling.insert(path.clone(), SETTLED);
                self.queue.deep(path, now);
            }
            return Ok(());
        }
        let Some(first) = self.vacated.values().copied().min() else {
            return Ok(());
        };
        let quiet = now >= self.last_vacated_ms.saturating_add(SETTLE_MS);
        let long = now >= self.burst_since_ms.saturating_add(BURST_MS);
        if first > now || !(quiet || long) {
            if first <= now {
                let again = now + SETTLE_MS;
                self.vacated
                    .values_mut()
                    .for_each(|due| *due = (*due).max(again));
            }
            return Ok(());
        }
        self.decide_vacated(cx, progress)
    }

    fn decide_vacated(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        let vacated = std::mem::take(&mut self.vacated);
        let stamp = cx.store.clock(&self.space)? + 1;
        let txn = cx.store.begin()?;
        let mut batch = Batch::open(&txn, self.no, stamp, cx.now)?;
        let mut gone = vec![];
        for ((parent, name), _) in vacated {
            let Some(entry) = batch.index.get(&parent, &name)? else {
                continue;
            };
            if self.breaker.held().local.contains_key(&entry.node) {
                continue;
            }
            let Some(dir) = path_of(&batch.index, &parent)? else {
                continue;
            };
            let Ok(path) = dir.join(&name) else { continue };
            match self.stat_exactly(&path) {
                Ok(None) => gone.push((parent, name, path, entry)),
                Ok(Some(stat)) if !same_kind(stat.kind, entry.kind) => {
                    self.queue.deep(path.clone(), cx.now.ms);
                    gone.push((parent, name, path, entry));
                }
                Ok(Some(_)) => self.queue.deep(path, cx.now.ms),
                Err(error) => self.disk_fault(&error, &path, cx.now),
            }
        }
        let dirs: BTreeSet<NodeId> = gone.iter().map(|(_, _, _, entry)| entry.node).collect();
        let mut top = vec![];
        for found in gone {
            if !lies_beneath(&batch.index, found.0, &dirs)? {
                top.push(found);
            }
        }
        let gone = top;
        let mut count = 0;
        for (_, _, _, entry) in &gone {
            count += 1 + count_below(&batch.index, entry)?;
        }
        let entries = self.count_entries(&batch)?;
        let bare = match entries >= WHOLE_MIN && !gone.is_empty() {
            true => self.is_bare(),
            false => Ok(false),
        };
        let bare = match bare {
            Ok(bare) => bare,
            Err(error) => {
                // What cannot be read is not bare: decided when it can.
                for (parent, name, _, _) in gone {
                    self.vacated.insert((parent, name), cx.now.ms + RETRY_MS);
                }
                self.disk_fault(&error, &RelPath::root(), cx.now);
                return Ok(());
            }
        };
        let many = self
            .breaker
            .trips(Direction::Local, count, entries, cx.now.ms);
        if many || bare {
            for (_, _, path, entry) in gone {
                self.hold_tree(&mut batch, path, entry)?;
            }
        } else {
            for (parent, name, _, entry) in gone {
                self.bury(&mut batch, &parent, &name, &entry)?;
            }
        }
        let found = batch.close();
        self.commit_found(found, txn, cx.packs, cx.rng, cx.now, progress)
    }

    /// What is gone from this disk waits for the user, with all that was beneath it.
    pub(super) fn hold_tree(
        &mut self,
        b: &mut Batch<'_>,
        path: RelPath,
        entry: Entry,
    ) -> Result<(), StoreError> {
        b.lasting = true;
        let mut held = vec![(path, entry)];
        while let Some((path, entry)) = held.pop() {
            if entry.kind == Kind::Dir {
                for (name, below) in b.index.children(&entry.node)? {
                    if let Ok(path) = path.join(&name) {
                        held.push((path, below));
                    }
                }
            }
            b.index
                .hold(&entry.node, HeldKind::Local, path.as_bytes())?;
            self.breaker.held_mut().local.insert(entry.node, path);
        }
        Ok(())
    }

    /// True if nothing at all is left of what is tracked.
    fn is_bare(&self) -> Result<bool, DiskError> {
        for root in self.tracking.roots() {
            match self.disk.stat(&root)? {
                None => {}
                Some(stat) if stat.kind == FileKind::Dir => {
                    let listing = self.disk.list(&root)?;
                    let any = listing.entries.iter().any(|e| !super::is_reserved(&e.name));
                    if any || !listing.errors.is_empty() {
                        return Ok(false);
                    }
                }
                Some(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn count_entries(&self, b: &Batch<'_>) -> Result<u64, StoreError> {
        let stats = b.tree.stats()?;
        Ok(stats.files + stats.dirs + stats.symlinks)
    }

    /// The user confirms held deletes: they are told to the pac, marked so that no other device
    /// holds them, and carried out here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply_deletes(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        let held = self.breaker.held().clone();
        let stamp = cx.store.clock(&self.space)? + 1;
        let mut txn = cx.store.begin()?;
        let rows = {
            let mut batch = Batch::open(&txn, self.no, stamp, cx.now)?;
            for node in held.local.keys() {
                batch.index.release(node)?;
                let Some((parent, name, entry)) = batch.index.entry_of(node)? else {
                    continue;
                };
                self.bury(&mut batch, &parent, &name, &entry)?;
            }
            for (node, path) in &held.remote {
                batch
                    .index
                    .hold(node, HeldKind::Confirmed, path.as_bytes())?;
            }
            batch.close().into_rows()
        };
        if !rows.is_empty() {
            // Each segment of a big delete carries the confirmation.
            for part in rows.chunks(1_000) {
                let mut entries = part.to_vec();
                entries.push(LogEntry::DeletesConfirmed);
                txn.append(&self.space, entries, cx.now.ms, cx.rng)?;
            }
        }
        let committed = txn.commit()?;
        *self.breaker.held_mut() = super::Held::default();
        self.mark(committed.changed.iter().map(|(_, node)| *node));
        progress.committed.push(committed);
        self.breaker.confirm(held.remote.keys().copied());
        self.mark(held.remote.into_keys());
        Ok(())
    }

    /// The user takes held deletes back: what is gone here is fetched again, what was deleted
    /// elsewhere is written anew.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn restore_deletes(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        let held = self.breaker.held().clone();
        let stamp = cx.store.clock(&self.space)? + 1;
        let mut txn = cx.store.begin()?;
        let mut marks = vec![];
        let rows = {
            let mut batch = Batch::open(&txn, self.no, stamp, cx.now)?;
            for node in held.local.keys().chain(held.remote.keys()) {
                batch.index.release(node)?;
            }
            for node in held.local.keys() {
                let Some((parent, name, entry)) = batch.index.entry_of(node)? else {
                    continue;
                };
                let mut below = vec![entry];
                while let Some(entry) = below.pop() {
                    below.extend(
                        batch
                            .index
                            .children(&entry.node)?
                            .into_iter()
                            .map(|(_, e)| e),
                    );
                    marks.push(batch.tree.representative(&entry.node)?);
                }
                forget_tree(&mut batch.index, &parent, &name)?;
                batch.dirty = true;
            }
            for node in held.remote.keys() {
                let node = batch.tree.representative(node)?;
                let Some(state) = batch.tree.node(&node)? else {
                    continue;
                };
                let content = state.content.map(|shown| shown.content);
                let keys = Keys {
                    content,
                    life: Some(Life::Live),
                    ..Keys::default()
                };
                batch.write(&Row::new(node, state.heads, keys));
                marks.push(node);
            }
            for node in &marks {
                batch.index.mark_pending(node)?;
            }
            batch.close().into_rows()
        };
        if !rows.is_empty() {
            txn.append(&self.space, rows, cx.now.ms, cx.rng)?;
        }
        let committed = txn.commit()?;
        *self.breaker.held_mut() = super::Held::default();
        self.mark(committed.changed.iter().map(|(_, node)| *node));
        self.mark(marks);
        progress.committed.push(committed);
        Ok(())
    }

    /// Looks at nodes that changed elsewhere: if too many of those on this disk are gone there,
    /// their deletion waits for the user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn hold_mass_deletes(
        &mut self,
        store: &mut pacsync_store::Store,
        nodes: &[NodeId],
        now: super::Now,
    ) -> Result<(), StoreError> {
        let txn = store.begin()?;
        let mut index = txn.index(self.no)?;
        let tree = txn.tree(self.no)?;
        let mut gone = vec![];
        for node in nodes {
            let known = self.breaker.is_confirmed(node)
                || self.breaker.held().remote.contains_key(node)
                || index.entry_of(node)?.is_none();
            if known {
                continue;
            }
            let rep = tree.representative(node)?;
            if rep == *node && tree.node(&rep)?.is_some_and(|state| state.dead) {
                gone.push(*node);
            }
        }
        let stats = tree.stats()?;
        let entries = stats.files + stats.dirs + stats.symlinks + gone.len() as u64;
        let trips = self
            .breaker
            .trips(Direction::Remote, gone.len() as u64, entries, now.ms);
        if trips {
            for node in gone {
                let path = match index.entry_of(&node)? {
                    Some((parent, name, _)) => {
                        path_of(&index, &parent)?.and_then(|dir| dir.join(&name).ok())
                    }
                    None => None,
                };
                let path = path.unwrap_or_default();
                index.hold(&node, HeldKind::Remote, path.as_bytes())?;
                self.breaker.held_mut().remote.insert(node, path);
            }
            drop((index, tree));
            txn.commit()?;
        }
        Ok(())
    }

    /// Deletes of these nodes were confirmed by their author.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn confirm(
        &mut self,
        store: &mut pacsync_store::Store,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> Result<(), StoreError> {
        let nodes: Vec<NodeId> = nodes.into_iter().collect();
        if nodes.is_empty() {
            return Ok(());
        }
        let txn = store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            for node in &nodes {
                if index.location(node)?.is_some() {
                    index.hold(node, HeldKind::Confirmed, &[])?;
                }
            }
        }
        txn.commit_lazily()?;
        self.breaker.confirm(nodes);
        Ok(())
    }

    /// What waited before the last end of the daemon.
    pub(super) fn remember_held(&mut self, held: Vec<(NodeId, HeldKind, Vec<u8>)>) {
        for (node, kind, path) in held {
            let path = RelPath::from_bytes(&path).unwrap_or_default();
            match kind {
                HeldKind::Local => drop(self.breaker.held_mut().local.insert(node, path)),
                HeldKind::Remote => drop(self.breaker.held_mut().remote.insert(node, path)),
                HeldKind::Confirmed => self.breaker.confirm([node]),
            }
        }
    }
}

/// Whether a directory is one of those that are gone, or lies beneath one.
fn lies_beneath(
    index: &Index<'_>,
    dir: NodeId,
    gone: &BTreeSet<NodeId>,
) -> Result<bool, StoreError> {
    let mut at = dir;
    while at != NodeId::ROOT {
        if gone.contains(&at) {
            return Ok(true);
        }
        match index.location(&at)? {
            Some((above, _)) => at = above,
            None => return Ok(false),
        }
    }
    Ok(false)
}

fn count_below(index: &Index<'_>, entry: &Entry) -> Result<u64, StoreError> {
    let mut count = 0;
    let mut dirs = vec![entry.clone()];
    while let Some(dir) = dirs.pop() {
        if dir.kind != Kind::Dir {
            continue;
        }
        for (_, below) in index.children(&dir.node)? {
            count += 1;
            dirs.push(below);
        }
    }
    Ok(count)
}

fn same_kind(found: FileKind, known: Kind) -> bool {
    matches!(
        (found, known),
        (FileKind::File, Kind::File)
            | (FileKind::Dir, Kind::Dir)
            | (FileKind::Symlink, Kind::Symlink)
    )
}

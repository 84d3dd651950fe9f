//! Scan: what is on disk becomes rows.
//!
//! A walk lists a directory after its watch is set and takes its entries one by one, within a
//! budget for each step; so a big tree never keeps the thread for long.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeSet, VecDeque};

use pacsync_protocol::crypto::{Entropy, random};
use pacsync_protocol::row::{At, Keys, Kind, Life, Name, Row};
use pacsync_protocol::segment::Entry as LogEntry;
use pacsync_protocol::{NodeId, RowId, Stamp};
use pacsync_store::content::packs::PackStore;
use pacsync_store::index::{Entry, Index};
use pacsync_store::tree::TreeTables;
use pacsync_store::{StoreError, Txn};

use super::content::{Read, ReadError};
use super::queue::Depth;
use super::settle::SETTLED;
use super::texts::Kept;
use super::{Class, Context, Now, Phase, Progress, SETTLE_MS, VACATED_MS, Worktree};
use super::{file_identity, forget_tree, is_reserved, is_transfer_temp};
use crate::disk::{DirEntry, FileKind, RelPath, Stat};

/// Most rows of one step.
const ROWS_MAX: usize = 2_000;
/// Most entries looked at in one step.
const ENTRIES_MAX: usize = 10_000;
/// Most bytes read in one step; one file may exceed it.
const BYTES_MAX: u64 = 64 << 20;
/// Most bytes of versions that one step holds in memory until it keeps them.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// A directory whose entries are being taken.
#[derive(Debug)]
pub(super) struct Walk {
    dir: RelPath,
    node: NodeId,
    entries: VecDeque<DirEntry>,
    listed: BTreeSet<Vec<u8>>,
    /// How far the look at each entry goes.
    depth: Depth,
    /// False where only some entries were looked up: the rest is not missing.
    complete: bool,
}

/// What becomes of a file where the tree has a node that is not rendered here yet.
enum Met {
    /// It is that node's file; its content came from this row.
    Bound(Read, RowId),
    /// A node of its own; `one` if the two are to become one with concurrent contents.
    Beside { read: Option<Read>, one: bool },
}

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
    kept_bytes: usize,
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
        })
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
        }
    }
}

impl Worktree {
    pub(super) fn scan_step(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        if self.walks.is_empty() && self.queue.is_idle_at(cx.now.ms) {
            return Ok(());
        }
        let stamp = cx.store.clock(&self.space)? + 1;
        let txn = cx.store.begin()?;
        let mut looked = 0;
        let mut batch = Batch::open(&txn, self.no, stamp, cx.now)?;
        while looked < ENTRIES_MAX
            && batch.rows.len() < ROWS_MAX
            && batch.bytes < BYTES_MAX
            && batch.kept_bytes < KEPT_BYTES_MAX
        {
            looked += 1;
            if let Some(walk) = self.walks.last_mut() {
                match walk.entries.pop_front() {
                    Some(found) => {
                        let (dir, node, depth) = (walk.dir.clone(), walk.node, walk.depth);
                        self.examine(
                            &mut batch,
                            cx.rng,
                            &dir,
                            node,
                            &found.name,
                            &found.stat,
                            depth,
                        )?;
                    }
                    None => self.end_walk(&mut batch)?,
                }
            } else if let Some((path, depth)) = self.queue.pop(cx.now.ms) {
                self.look(&mut batch, cx.rng, &path, depth)?;
            } else {
                break;
            }
        }
        let found = batch.close();
        self.commit_found(found, txn, cx.packs, cx.rng, cx.now, progress)
    }

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
            txn.append(&self.space, found.rows, now.ms, rng)?;
            let committed = txn.commit()?;
            self.mark(committed.changed.iter().map(|(_, node)| *node));
            progress.committed.push(committed);
        }
        self.mark(found.marks);
        Ok(())
    }

    fn look(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        path: &RelPath,
        depth: Depth,
    ) -> Result<(), StoreError> {
        let tries = self.faults.read_tries(path);
        self.look_at(b, rng, path, depth)?;
        if self.settling.get(path) == Some(&SETTLED) {
            // It did not need the time: it is known by now, or is no move.
            self.settling.remove(path);
        }
        if let Some(tries) = tries {
            self.faults.looked(path, tries);
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        path: &RelPath,
        depth: Depth,
    ) -> Result<(), StoreError> {
        let (Some(dir), Some(name)) = (path.parent(), path.name()) else {
            if self.tracking.is_tracked(path) {
                return self.begin_walk(b, path, NodeId::ROOT, Depth::Deep);
            }
            for root in self.tracking.roots() {
                self.queue.deep(root, b.now.ms);
            }
            return Ok(());
        };
        if is_reserved(name) || self.tracking.class(path) == Class::Untracked {
            return Ok(());
        }
        let Some(parent) = self.known_dir(b, rng, &dir)? else {
            return Ok(());
        };
        match self.stat_exactly(path) {
            Ok(Some(stat)) => self.examine(b, rng, &dir, parent, name, &stat, depth),
            Ok(None) => self.vacate(b, parent, name, path),
            Err(error) if error.is_symlink_in_path() => {
                self.queue.deep(dir, b.now.ms);
                Ok(())
            }
            Err(error) => {
                self.disk_fault(&error, path, b.now);
                Ok(())
            }
        }
    }

    /// The node of a directory that the index knows; else looks at the nearest one above that
    /// is unknown, which leads back here.
    fn known_dir(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        dir: &RelPath,
    ) -> Result<Option<NodeId>, StoreError> {
        let mut node = NodeId::ROOT;
        let mut path = RelPath::root();
        for name in dir.names() {
            let above = path.clone();
            path = match path.join(name) {
                Ok(path) => path,
                Err(_) => return Ok(None),
            };
            match b.index.get(&node, name)? {
                Some(entry) if entry.kind == Kind::Dir => node = entry.node,
                _ => {
                    let Ok(Some(stat)) = self.disk.stat(&path) else {
                        return Ok(None);
                    };
                    let before = self.walks.len();
                    self.examine(b, rng, &above, node, name, &stat, Depth::Deep)?;
                    return match b.index.get(&node, name)? {
                        // A directory above something tracked: its walk leads to the path.
                        Some(entry) if entry.kind == Kind::Dir && self.walks.len() > before => {
                            Ok(None)
                        }
                        Some(entry) if entry.kind == Kind::Dir && path == *dir => {
                            Ok(Some(entry.node))
                        }
                        _ => Ok(None),
                    };
                }
            }
        }
        Ok(Some(node))
    }

    /// Watches and lists a directory.
    fn begin_walk(
        &mut self,
        b: &mut Batch<'_>,
        dir: &RelPath,
        node: NodeId,
        depth: Depth,
    ) -> Result<(), StoreError> {
        if dir.is_root() {
            self.unwatched = false;
        }
        match self.disk.watch(dir) {
            Err(error) if error.is_watch_limit() => self.note_unwatched(b.now),
            Err(error) if !error.is_unsupported() && !error.is_not_found() => {
                self.disk_fault(&error, dir, b.now);
                return Ok(());
            }
            _ => {}
        }
        if self.tracking.class(dir) == Class::Above {
            return self.begin_partial_walk(dir, node);
        }
        let listing = match self.disk.list(dir) {
            Ok(listing) => listing,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => {
                // An unreadable directory is not an empty one.
                self.disk_fault(&error, dir, b.now);
                return Ok(());
            }
        };
        let mut listed: BTreeSet<Vec<u8>> = listing
            .entries
            .iter()
            .map(|entry| entry.name.clone())
            .collect();
        for error in &listing.errors {
            let path = error.path.clone();
            listed.extend(path.name().map(<[u8]>::to_vec));
            self.disk_fault(error, &path, b.now);
        }
        let has_rules = listing
            .entries
            .iter()
            .any(|entry| entry.name == super::ignore::IGNORE_FILE);
        self.ignores.learn(&*self.disk, dir, has_rules);
        self.walks.push(Walk {
            dir: dir.clone(),
            node,
            entries: listing.entries.into(),
            listed,
            depth,
            complete: true,
        });
        Ok(())
    }

    /// What cannot be watched is found by looking at everything more often.
    pub(super) fn note_unwatched(&mut self, now: Now) {
        self.unwatched = true;
        self.verify_at = self.verify_at.min(now.ms + super::UNWATCHED_MS);
    }

    /// Of a directory that is only above something tracked, takes what leads there.
    fn begin_partial_walk(&mut self, dir: &RelPath, node: NodeId) -> Result<(), StoreError> {
        let mut names = BTreeSet::new();
        for root in self.tracking.roots() {
            if let Some(rest) = root.strip_prefix(dir)
                && let Some(name) = rest.names().next()
            {
                names.insert(name.to_vec());
            }
        }
        let mut entries = VecDeque::new();
        for name in names {
            if let Ok(path) = dir.join(&name)
                && let Ok(Some(stat)) = self.disk.stat(&path)
            {
                entries.push_back(DirEntry { name, stat });
            }
        }
        let dir = dir.clone();
        self.walks.push(Walk {
            dir,
            node,
            entries,
            listed: BTreeSet::new(),
            depth: Depth::Deep,
            complete: false,
        });
        Ok(())
    }

    /// What the index knows of a directory and the listing did not show is vacated.
    fn end_walk(&mut self, b: &mut Batch<'_>) -> Result<(), StoreError> {
        let Some(walk) = self.walks.pop() else {
            return Ok(());
        };
        if !walk.complete {
            return Ok(());
        }
        for (name, _) in b.index.children(&walk.node)? {
            if !walk.listed.contains(&name)
                && let Ok(path) = walk.dir.join(&name)
            {
                self.vacate(b, walk.node, &name, &path)?;
            }
        }
        Ok(())
    }

    fn vacate(
        &mut self,
        b: &mut Batch<'_>,
        parent: NodeId,
        name: &[u8],
        path: &RelPath,
    ) -> Result<(), StoreError> {
        self.settling.remove(path);
        if self.tracking.class(path) == Class::Untracked {
            // To be forgotten is not to be deleted.
            b.dirty = true;
            return forget_tree(&mut b.index, &parent, name);
        }
        if let Some(entry) = b.index.get(&parent, name)?
            && !self.breaker.held().local.contains_key(&entry.node)
        {
            if self.vacated.is_empty() {
                self.burst_since_ms = b.now.ms;
            }
            // Seen vacated once more it is no younger: looks may come again and again.
            if let MapEntry::Vacant(place) = self.vacated.entry((parent, name.to_vec())) {
                place.insert(b.now.ms + VACATED_MS);
                self.last_vacated_ms = b.now.ms;
            }
        }
        Ok(())
    }

    /// Compares one entry on disk with what the index knows of its place.
    #[expect(clippy::too_many_arguments, reason = "one place, taken apart")]
    pub(super) fn examine(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        dir: &RelPath,
        parent: NodeId,
        name: &[u8],
        stat: &Stat,
        depth: Depth,
    ) -> Result<(), StoreError> {
        let Ok(path) = dir.join(name) else {
            return Ok(());
        };
        if is_reserved(name) {
            self.displaced.met(name, &path, parent);
            self.sweep(&path, name);
            return Ok(());
        }
        if self.own_home == Some((stat.identity.dev, stat.identity.ino)) {
            return Ok(());
        }
        let class = self.tracking.class(&path);
        if class == Class::Untracked || (class == Class::Above && stat.kind != FileKind::Dir) {
            return Ok(());
        }
        let kind = match stat.kind {
            FileKind::File => Kind::File,
            FileKind::Dir => Kind::Dir,
            FileKind::Symlink => Kind::Symlink,
            // Never synced; what the place held before is gone.
            FileKind::Other => {
                return self.vacate(b, parent, name, &path);
            }
        };
        let valid = match Name::new(name) {
            Ok(valid) => valid,
            Err(error) => {
                self.fault(&path, error.to_string(), b.now);
                return Ok(());
            }
        };
        match b.index.get(&parent, name)? {
            Some(known) if known.kind == kind => {
                self.vacated.remove(&(parent, name.to_vec()));
                if self.breaker.held_mut().local.remove(&known.node).is_some() {
                    b.index.release(&known.node)?;
                    b.dirty = true;
                }
                self.examine_known(b, &path, parent, name, stat, known, depth)
            }
            // What stood here is gone, or has moved: decided like any vacated place, and then
            // this one is looked at anew.
            Some(_) => self.vacate(b, parent, name, &path),
            None => self.examine_new(b, rng, &path, parent, &valid, stat, kind),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one place, taken apart")]
    fn examine_known(
        &mut self,
        b: &mut Batch<'_>,
        path: &RelPath,
        parent: NodeId,
        name: &[u8],
        stat: &Stat,
        mut known: Entry,
        depth: Depth,
    ) -> Result<(), StoreError> {
        let identity = file_identity(&stat.identity);
        let changed_mode =
            self.probe.modes && known.kind != Kind::Symlink && stat.mode != known.mode;
        if known.kind == Kind::Dir {
            let was_mount = known.identity.dev != self.root.dev;
            let is_mount = identity.dev != self.root.dev;
            if was_mount != is_mount && self.hold_beneath(b, path, &known)? {
                return Ok(());
            }
            if changed_mode
                || identity.ino != known.identity.ino
                || identity.dev != known.identity.dev
            {
                known.identity = identity;
                if changed_mode {
                    self.write_mode(b, &known, stat.mode)?;
                    known.mode = stat.mode;
                }
                b.put(&parent, name, &known)?;
            }
            match depth {
                Depth::Deep => self.begin_walk(b, path, known.node, Depth::Deep)?,
                // Whether it can still be read shows by reading it.
                Depth::Entry => self.begin_walk(b, path, known.node, Depth::Leaf)?,
                Depth::Leaf => {}
            }
            return Ok(());
        }
        let grain = i64::try_from(self.probe.time_grain_ns).unwrap_or(i64::MAX);
        let racy = known.recorded_ns.saturating_sub(known.identity.mtime_ns) < grain;
        if identity == known.identity && !racy && !changed_mode {
            return Ok(());
        }
        let read = if identity == known.identity && !racy {
            None
        } else {
            match self.read_entry(path, known.kind, stat, b) {
                Ok(read) => Some(read),
                Err(error) => {
                    self.read_fault(&error, path, b.now);
                    return Ok(());
                }
            }
        };
        if changed_mode {
            self.write_mode(b, &known, stat.mode)?;
            known.mode = stat.mode;
        }
        match read {
            Some(read) if Some(read.content.id) == known.content => {
                known.identity = read.identity;
                known.recorded_ns = b.now.ns;
            }
            Some(mut read) => {
                let node = b.tree.representative(&known.node)?;
                let past = b.tree.past_for_edit(&node, known.row.as_ref())?;
                if past.is_empty() {
                    return Err(StoreError::Misuse("an edit of a node without rows".into()));
                }
                let keys = Keys {
                    content: Some(read.content.clone()),
                    ..Keys::default()
                };
                known.row = Some(b.write(&Row::new(node, past, keys)));
                known.node = node;
                self.keep_edit(b, node, &mut read, known.content);
                known.content = Some(read.content.id);
                known.identity = read.identity;
                known.recorded_ns = b.now.ns;
                self.keep_manifest(b, &read)?;
            }
            None => known.identity = identity,
        }
        b.put(&parent, name, &known)
    }

    /// A file system was mounted over a directory, or is not mounted there any more: what was in
    /// it was not deleted. True if that was anything, which then waits for the user, or for
    /// the directory to be as before.
    fn hold_beneath(
        &mut self,
        b: &mut Batch<'_>,
        path: &RelPath,
        known: &Entry,
    ) -> Result<bool, StoreError> {
        let below = b.index.children(&known.node)?;
        if below.is_empty() {
            return Ok(false);
        }
        for (name, entry) in below {
            if let Ok(path) = path.join(&name) {
                self.vacated.remove(&(known.node, name));
                self.hold_tree(b, path, entry)?;
            }
        }
        let what = "another file system is mounted here than before: what was in it is not \
                    deleted; `pacsync deletes` settles it if this is to stay";
        self.fault(path, what.into(), b.now);
        Ok(true)
    }

    fn write_mode(
        &mut self,
        b: &mut Batch<'_>,
        known: &Entry,
        mode: u16,
    ) -> Result<(), StoreError> {
        let node = b.tree.representative(&known.node)?;
        let past = b.tree.past_for_edit(&node, known.row.as_ref())?;
        if !past.is_empty() {
            let keys = Keys {
                mode: Some(mode),
                ..Keys::default()
            };
            b.write(&Row::new(node, past, keys));
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one place, taken apart")]
    fn examine_new(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        path: &RelPath,
        parent: NodeId,
        name: &Name,
        stat: &Stat,
        kind: Kind,
    ) -> Result<(), StoreError> {
        let in_tree = {
            let dir = b.tree.representative(&parent)?;
            b.tree.child(&dir, name)?
        };
        // The tree does not know yet what this batch has found.
        let in_tree = in_tree.filter(|node| !b.left.contains(node));
        if let Some(node) = in_tree {
            return self.meet(b, rng, path, parent, name, stat, kind, node);
        }
        if self.ignores.ignores(path, kind == Kind::Dir) {
            return Ok(());
        }
        if self.move_candidate(b, stat, kind)?.is_some() && !self.settled(path, b.now) {
            return Ok(());
        }
        if let Some(from) = self.move_candidate(b, stat, kind)? {
            return self.moved(b, path, parent, name, stat, from);
        }
        if kind == Kind::Dir && self.tracking.class(path) == Class::Tracked {
            // A directory with nothing in it but what is left alone is what a delete left behind.
            if let Ok(listing) = self.disk.list(path)
                && !listing.entries.is_empty()
                && listing.errors.is_empty()
                && listing.entries.iter().all(|e| self.is_left_alone(path, e))
            {
                return Ok(());
            }
        }
        let read = match kind {
            Kind::Dir => None,
            _ => match self.read_entry(path, kind, stat, b) {
                Ok(read) => Some(read),
                Err(error) => {
                    self.read_fault(&error, path, b.now);
                    return Ok(());
                }
            },
        };
        if let Some(read) = &read
            && kind == Kind::File
            && let Some(from) = self.same_content_vacated(b, &read.content)?
        {
            if !self.settled(path, b.now) {
                return Ok(());
            }
            return self.moved(b, path, parent, name, stat, from);
        }
        self.settling.remove(path);
        self.bear(b, rng, path, parent, name, stat, kind, read)?;
        Ok(())
    }

    /// Something on disk stands where the tree has a node that is not rendered here yet.
    #[expect(clippy::too_many_arguments, reason = "one place, taken apart")]
    fn meet(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        path: &RelPath,
        parent: NodeId,
        name: &Name,
        stat: &Stat,
        kind: Kind,
        node: NodeId,
    ) -> Result<(), StoreError> {
        let Some(state) = b.tree.node(&node)? else {
            return Ok(());
        };
        b.marks.push(node);
        let elsewhere = b
            .index
            .location(&node)?
            .is_some_and(|(at, other)| at != parent || other != name.as_bytes());
        if elsewhere && state.kind == kind && self.came_along(b, node, parent, name)? {
            let entry = b.index.get(&parent, name.as_bytes())?;
            return match entry {
                Some(entry) => {
                    let name = name.as_bytes();
                    self.examine_known(b, path, parent, name, stat, entry, Depth::Deep)
                }
                None => Ok(()),
            };
        }
        if kind == Kind::Dir && state.kind == kind && !elsewhere {
            let entry = Entry {
                node,
                kind,
                identity: file_identity(&stat.identity),
                mode: stat.mode,
                row: None,
                content: None,
                recorded_ns: b.now.ns,
            };
            b.put(&parent, name.as_bytes(), &entry)?;
            return self.begin_walk(b, path, node, Depth::Deep);
        }
        let read = match kind {
            Kind::Dir => None,
            _ => match self.read_entry(path, kind, stat, b) {
                Ok(read) => Some(read),
                Err(error) => {
                    self.read_fault(&error, path, b.now);
                    return Ok(());
                }
            },
        };
        let met = match (state.content, read) {
            // Of another kind: a node of its own; which one shows is the tree's to say.
            (_, read) if state.kind != kind => Met::Beside { read, one: false },
            // The node is about to come here from another place on this disk. Both are wanted.
            (_, read) if elsewhere => Met::Beside { read, one: true },
            (_, None) => return Ok(()),
            (Some(shown), Some(read)) if read.content.id == shown.content.id => {
                Met::Bound(read, shown.row)
            }
            // In normal use nobody has chosen one of the two: their contents stand side by side.
            (Some(_), Some(read)) if !self.is_binding(path) => Met::Beside {
                read: Some(read),
                one: true,
            },
            (Some(shown), Some(read)) => {
                // A first join. Its own content, then the pac's again: kept in history, listed
                // once.
                let own = self.write_content(b, node, &read)?;
                let again = Keys {
                    content: Some(shown.content),
                    ..Keys::default()
                };
                b.write(&Row::new(node, vec![own], again));
                b.index.note_set_aside(&node, path.as_bytes())?;
                Met::Bound(read, own)
            }
            // Its birth brought no content: what stands here is its first.
            (None, Some(mut read)) => {
                let own = self.write_content(b, node, &read)?;
                self.keep_birth(b, node, &mut read)?;
                Met::Bound(read, own)
            }
        };
        match met {
            Met::Bound(read, row) => {
                let entry = Entry {
                    node,
                    kind,
                    identity: read.identity,
                    mode: stat.mode,
                    row: Some(row),
                    content: Some(read.content.id),
                    recorded_ns: b.now.ns,
                };
                b.put(&parent, name.as_bytes(), &entry)
            }
            Met::Beside { read, one } => {
                let (new, birth) = self.bear(b, rng, path, parent, name, stat, kind, read)?;
                if one {
                    let keys = Keys {
                        into: Some(node),
                        ..Keys::default()
                    };
                    b.write(&Row::new(new, vec![birth], keys));
                    b.marks.push(new);
                }
                Ok(())
            }
        }
    }

    /// The same move was made here: what the index knows at the old place, which is empty, is
    /// what stands at the new one.
    fn came_along(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        parent: NodeId,
        name: &Name,
    ) -> Result<bool, StoreError> {
        let Some((from, old_name, entry)) = b.index.entry_of(&node)? else {
            return Ok(false);
        };
        if !self.is_vacant(b, &from, &old_name, entry.kind)? {
            return Ok(false);
        }
        self.vacated.remove(&(from, old_name.clone()));
        b.index.remove(&from, &old_name)?;
        b.put(&parent, name.as_bytes(), &entry)?;
        Ok(true)
    }

    /// Whether what stands at a path is looked at for the first time since it is tracked.
    fn is_binding(&self, path: &RelPath) -> bool {
        self.phase == Phase::FirstScan || self.binding.iter().any(|root| path.starts_with(root))
    }

    /// Writes what was read as a content of a node, with all that is known of it behind.
    fn write_content(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        read: &Read,
    ) -> Result<RowId, StoreError> {
        let past = b.tree.past_for_edit(&node, None)?;
        let keys = Keys {
            content: Some(read.content.clone()),
            ..Keys::default()
        };
        self.keep_manifest(b, read)?;
        Ok(b.write(&Row::new(node, past, keys)))
    }

    /// Writes the birth of a node for what stands at a path.
    #[expect(clippy::too_many_arguments, reason = "one place, taken apart")]
    fn bear(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        path: &RelPath,
        parent: NodeId,
        name: &Name,
        stat: &Stat,
        kind: Kind,
        mut read: Option<Read>,
    ) -> Result<(NodeId, RowId), StoreError> {
        let node = NodeId::from_bytes(random(rng));
        let dir = b.tree.representative(&parent)?;
        let keys = Keys {
            kind: Some(kind),
            at: Some(b.place(dir, name)),
            content: read.as_ref().map(|read| read.content.clone()),
            mode: (self.probe.modes && kind != Kind::Symlink).then_some(stat.mode),
            adopted: self.phase == Phase::FirstScan,
            ..Keys::default()
        };
        let id = b.write(&Row::new(node, vec![], keys));
        let entry = Entry {
            node,
            kind,
            identity: read
                .as_ref()
                .map_or(file_identity(&stat.identity), |read| read.identity),
            mode: stat.mode,
            row: read.as_ref().map(|_| id),
            content: read.as_ref().map(|read| read.content.id),
            recorded_ns: b.now.ns,
        };
        b.put(&parent, name.as_bytes(), &entry)?;
        if let Some(read) = &mut read {
            self.keep_manifest(b, read)?;
            self.keep_birth(b, node, read)?;
        }
        if kind == Kind::Dir {
            self.begin_walk(b, path, node, Depth::Deep)?;
        }
        Ok((node, id))
    }

    /// Writes that what was known at a place, and everything beneath it, is gone.
    pub(super) fn bury(
        &mut self,
        b: &mut Batch<'_>,
        parent: &NodeId,
        name: &[u8],
        known: &Entry,
    ) -> Result<(), StoreError> {
        let mut doomed = vec![known.clone()];
        while let Some(entry) = doomed.pop() {
            if entry.kind == Kind::Dir {
                doomed.extend(b.index.children(&entry.node)?.into_iter().map(|(_, e)| e));
            }
            let node = b.tree.representative(&entry.node)?;
            let Some(state) = b.tree.node(&node)? else {
                continue;
            };
            // What it was unified into stands at another place: only this one is gone.
            let lives_on = node != entry.node && b.index.location(&node)?.is_some();
            if state.dead || lives_on {
                continue;
            }
            b.left.insert(node);
            let past = b.tree.past_for_edit(&node, entry.row.as_ref())?;
            if !past.is_empty() {
                let keys = Keys {
                    life: Some(Life::Dead),
                    ..Keys::default()
                };
                b.write(&Row::new(node, past, keys));
            }
        }
        b.dirty = true;
        forget_tree(&mut b.index, parent, name)
    }

    /// Removes temporary files that hold nothing that anybody wrote: those of transfers that no
    /// record knows (a crash came between the making and the record), and strays. They are known
    /// by name, since their directory may have been moved.
    fn sweep(&mut self, path: &RelPath, name: &[u8]) {
        let whole = match name.strip_suffix(b"w") {
            Some(whole) if !self.strays.contains_key(name) => whole,
            _ => name,
        };
        let stray = self.strays.contains_key(whole);
        let idle = is_transfer_temp(name)
            && !self.transfers.has_name(name)
            && !self.displaced.has_name(name);
        if !stray && !idle {
            return;
        }
        match self.disk.unlink(path) {
            Err(error) if !error.is_not_found() => {
                // It stays known, and is met again by a later scan.
                self.stuck.insert(whole.to_vec());
            }
            _ => {
                self.stuck.remove(whole);
            }
        }
    }

    /// Whether an entry is never synced and stays where it is, also when the directory that it is
    /// in is deleted elsewhere.
    pub(super) fn is_left_alone(&self, dir: &RelPath, entry: &DirEntry) -> bool {
        if is_reserved(&entry.name) {
            return !self.displaced.has_name(&entry.name) && !self.transfers.has_name(&entry.name);
        }
        let identity = &entry.stat.identity;
        entry.stat.kind == FileKind::Other
            || self.own_home == Some((identity.dev, identity.ino))
            || dir.join(&entry.name).is_ok_and(|path| {
                self.tracking.class(&path) == Class::Untracked
                    || self
                        .ignores
                        .ignores(&path, entry.stat.kind == FileKind::Dir)
            })
    }

    /// True once a path that looks like a move has stood for the settle time.
    fn settled(&mut self, path: &RelPath, now: Now) -> bool {
        let due = *self
            .settling
            .entry(path.clone())
            .or_insert(now.ms + SETTLE_MS);
        let over = due == SETTLED || due <= now.ms;
        if over {
            self.settling.remove(path);
        }
        over
    }

    pub(super) fn read_fault(&mut self, error: &ReadError, path: &RelPath, now: Now) {
        match error {
            ReadError::Disk(error) if error.is_not_found() => self.queue.soon(path.clone(), now.ms),
            ReadError::Disk(error) => self.disk_fault(error, path, now),
            ReadError::Replaced => self.queue.soon(path.clone(), now.ms),
            ReadError::Changing => {
                self.fault(
                    path,
                    "it changes while it is read; it is tried again".into(),
                    now,
                );
                self.queue.restless(path.clone(), now.ms);
            }
            ReadError::Content(why) => self.fault(path, why.clone(), now),
        }
    }

    fn read_entry(
        &mut self,
        path: &RelPath,
        kind: Kind,
        seen: &Stat,
        b: &mut Batch<'_>,
    ) -> Result<Read, ReadError> {
        let read = super::content::read(&*self.disk, path, kind, &self.keys)?;
        b.bytes += read.content.size;
        if (read.identity.dev, read.identity.ino) != (seen.identity.dev, seen.identity.ino) {
            // A directory above was renamed since: this is another file's content.
            return Err(ReadError::Replaced);
        }
        Ok(read)
    }

    fn keep_manifest(&mut self, b: &mut Batch<'_>, read: &Read) -> Result<(), StoreError> {
        let Some(tree) = &read.manifest else {
            return Ok(());
        };
        super::content::keep_manifest(&mut b.index, &self.keys, &read.content.id, tree)
    }
}

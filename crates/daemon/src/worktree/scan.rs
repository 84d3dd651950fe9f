//! Scan: what is on disk becomes rows.
//!
//! A walk lists a directory after its watch is set and takes its entries one by one, within a
//! budget for each step; so a big tree never keeps the thread for long.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeSet, VecDeque};

use pacsync_protocol::NodeId;
use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::row::{Keys, Kind, Name, Row};
use pacsync_store::StoreError;
use pacsync_store::index::Entry;
use pacsync_store::tree::NodeState;

use super::batch::Batch;
use super::content::ReadError;
use super::queue::Depth;
use super::settle::SETTLED;
use super::{Class, Context, Now, Progress, SETTLE_MS, VACATED_MS, Worktree};
use super::{file_identity, forget_tree, is_reserved, is_transfer_temp};
use crate::disk::{DirEntry, FileKind, Listing, RelPath, Stat};

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
        if self.folds_names() && b.index.get(&parent, name)?.is_none() {
            // It may have taken the place of a file whose name differs only in its case, of which
            // nothing else tells.
            self.queue.soon(dir.clone(), b.now.ms);
        }
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
                    let Ok(Some(stat)) = self.stat_exactly(&path) else {
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
    pub(super) fn begin_walk(
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
        if is_home(&listing) {
            self.homes.insert(dir.clone());
            return Ok(());
        }
        self.homes.remove(dir);
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
        if self.own_home == Some(stat.identity.inode()) || self.is_in_home(dir, name) {
            return Ok(());
        }
        let class = self.tracking.class(&path);
        if class == Class::Untracked || (class == Class::Above && stat.kind != FileKind::Dir) {
            return Ok(());
        }
        if let Some(space) = self.other_roots.get(&stat.identity.inode()) {
            self.moved_roots.insert(path, space.clone());
            return Ok(());
        }
        self.moved_roots.remove(&path);
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
    pub(super) fn examine_known(
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
                if b.index.location(&node)?.is_none() {
                    known.node = node;
                }
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
        let is_said = |state: NodeState| state.mode == Some(mode);
        if self.ready.contains(&node) && b.tree.node(&node)?.is_some_and(is_said) {
            // Set by an apply that was interrupted before it could note it.
            return Ok(());
        }
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

    /// Whether an entry belongs to the home of a daemon, which may be in the making.
    fn is_in_home(&mut self, dir: &RelPath, name: &[u8]) -> bool {
        if self.homes.contains(dir) {
            return true;
        }
        if !crate::home::is_own_name(name) {
            return false;
        }
        let has = |name: &str| {
            let path = dir.join(name.as_bytes());
            path.is_ok_and(|path| matches!(self.disk.stat(&path), Ok(Some(_))))
        };
        let found = crate::home::is_home(has);
        if found {
            self.homes.insert(dir.clone());
        }
        found
    }

    /// Removes temporary files that hold nothing that anybody wrote: those of transfers that no
    /// record knows (a crash came between the making and the record), and strays. They are known
    /// by name, since their directory may have been moved.
    fn sweep(&mut self, path: &RelPath, name: &[u8]) {
        if !self.is_swept(name) {
            return;
        }
        let whole = self.stray_name(name);
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

    /// The name by which a stray would be known: without the mark of an unfinished file.
    fn stray_name<'n>(&self, name: &'n [u8]) -> &'n [u8] {
        match name.strip_suffix(b"w") {
            Some(whole) if !self.strays.contains_key(name) => whole,
            _ => name,
        }
    }

    fn is_swept(&self, name: &[u8]) -> bool {
        let idle = is_transfer_temp(name)
            && !self.transfers.has_name(name)
            && !self.displaced.has_name(name);
        let is_stray = self.strays.contains_key(self.stray_name(name));
        idle || (is_stray && !self.displaced.has_name(name))
    }

    /// Whether an entry is never synced and stays where it is, also when the directory that it is
    /// in is deleted elsewhere.
    pub(super) fn is_left_alone(&self, dir: &RelPath, entry: &DirEntry) -> bool {
        if is_reserved(&entry.name) {
            return !self.displaced.has_name(&entry.name)
                && !self.transfers.has_name(&entry.name)
                && !self.is_swept(&entry.name);
        }
        let identity = &entry.stat.identity;
        entry.stat.kind == FileKind::Other
            || self.own_home == Some(identity.inode())
            || self.other_roots.contains_key(&identity.inode())
            || dir.join(&entry.name).is_ok_and(|path| {
                self.tracking.class(&path) == Class::Untracked
                    || self
                        .ignores
                        .ignores(&path, entry.stat.kind == FileKind::Dir)
            })
    }

    /// True once a path that looks like a move has stood for the settle time.
    pub(super) fn settled(&mut self, path: &RelPath, now: Now) -> bool {
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
}

/// Whether a directory is the home of a daemon, this one or another, in use or put away.
pub(super) fn is_home(listing: &Listing) -> bool {
    crate::home::is_home(|name| listing.entries.iter().any(|e| e.name == name.as_bytes()))
}

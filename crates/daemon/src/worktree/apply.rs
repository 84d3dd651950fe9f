//! Apply: what the tree says becomes files.
//!
//! Nodes in line are planned against the index ([`super::plan`]); directories, modes and links
//! between index and tree are set right at once; files go through the steps here: durable intent,
//! temporary file, sync, exchange or rename, sync, index row. Each batch is one such round.

use std::sync::Arc;

use pacsync_protocol::row::{Kind, RESERVED_PREFIX};
use pacsync_protocol::{ContentId, NodeId, RowId, cbor};
use pacsync_store::StoreError;
use pacsync_store::index::{Entry, Index, NoteKind};
use pacsync_store::tree::TreeTables;

use super::batch::Batch;
use super::notes::{Act, Displaced, Intent, New, Old, PathRecord, aside_name, unfinished_name};
use super::plan::Plan;
use super::{Context, DISPLACED_MS, Progress, RETRY_MS, Worktree, file_identity};
use crate::disk::{DiskError, Identity, RelPath};

/// Most nodes planned in one round.
const NODES_MAX: usize = 1_024;
/// Most bytes of files written in one round; one file may exceed it.
const BYTES_MAX: u64 = 8 << 20;
/// Up to so many files each is synced by itself; more are synced with one call for all.
pub(super) const SYNC_EACH_MAX: usize = 4;

/// Where the bytes of a file come from.
#[derive(Debug)]
pub(super) enum Source {
    Bytes(Arc<Vec<u8>>),
    /// A transfer's temporary file, complete.
    Transfer,
    /// A symlink's target.
    Target(Vec<u8>),
}

/// One change to the disk that needs an intent.
#[derive(Debug)]
pub(super) enum Step {
    Put(Put),
    Move {
        node: NodeId,
        entry: Entry,
        from: Place,
        to: Place,
    },
    Remove {
        node: NodeId,
        entry: Entry,
        place: Place,
    },
    RemoveDir {
        node: NodeId,
        place: Place,
    },
}

/// A place on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) parent: NodeId,
    pub(super) name: Vec<u8>,
    pub(super) path: RelPath,
}

/// A file to create or replace.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) node: NodeId,
    pub(super) kind: Kind,
    pub(super) place: Place,
    pub(super) row: RowId,
    pub(super) content: ContentId,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    pub(super) mode: u16,
    pub(super) source: Source,
    /// What the index says stands there.
    pub(super) replaces: Option<Entry>,
}

impl Step {
    fn node(&self) -> NodeId {
        match self {
            Self::Put(put) => put.node,
            Self::Move { node, .. } | Self::Remove { node, .. } | Self::RemoveDir { node, .. } => {
                *node
            }
        }
    }

    fn path(&self) -> &RelPath {
        match self {
            Self::Put(put) => &put.place.path,
            Self::Move { to, .. } => &to.path,
            Self::Remove { place, .. } | Self::RemoveDir { place, .. } => &place.path,
        }
    }
}

/// A step with its intent and its temporary name.
struct Begun {
    step: Step,
    note: u64,
    /// Where the file is written.
    unfinished: RelPath,
    /// Where it is once it is whole, or what goes aside.
    temp: RelPath,
    /// Identity of the temporary file as it was written.
    written: Option<Identity>,
}

/// What a step left behind for the index.
enum Outcome {
    Put {
        entry: Entry,
        displaced: Option<Displaced>,
    },
    Moved {
        entry: Entry,
    },
    Removed {
        displaced: Option<Displaced>,
    },
    /// A put that did not come to its end, and could not put back what stood there before.
    Failed {
        displaced: Displaced,
        error: DiskError,
        left: Left,
    },
}

/// What a put that failed left at its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// What somebody has put there over what the index knows, or nothing.
    Changed,
    /// What somebody has saved while nothing stood there.
    Unseen,
    /// Nothing, as what stood there could not be put back: nobody removed it.
    Nothing,
}

/// What came of two renames in place of an exchange.
enum Switched {
    /// The old file is under this name now.
    Done(RelPath),
    /// All is as it was.
    Not(DiskError),
    /// The old file is under this name, and the new one is not at its path.
    Aside(RelPath, DiskError, Left),
}

impl Worktree {
    pub(super) fn apply_step(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        if self.order.is_empty() {
            if self.ready.is_empty() && !self.arrived.is_empty() {
                self.arrived.clear();
                self.arrived_bytes = 0;
            }
            return Ok(());
        }
        let (steps, transfers) = self.plan_round(cx, progress)?;
        for content in transfers {
            self.advance_transfer(cx, &content)?;
        }
        if !steps.is_empty() {
            self.circles.broken();
            self.carry_out(cx, steps, progress)?;
        }
        if self.order.is_empty() {
            self.arrived.clear();
            self.arrived_bytes = 0;
        }
        Ok(())
    }

    /// Nodes that became others come before those: what is on disk under their names is then moved
    /// and changed, not made anew beside it. Somebody may be writing to it. Those with nothing on disk
    /// stay behind them: planned first, they would have the other made, and what stands under another
    /// name would be taken for it while that is under way, and then forgotten.
    fn bring_forward_unified(&mut self, b: &Batch<'_>) -> Result<(), StoreError> {
        for at in 0..self.order.len().min(NODES_MAX) {
            if let Some(node) = self.order.get(at).copied()
                && b.index.location(&node)?.is_some()
                && b.tree.representative(&node)? != node
            {
                self.order.remove(at);
                self.order.push_front(node);
            }
        }
        Ok(())
    }

    /// Plans a round of nodes; does what needs no intent; writes intents for the rest.
    fn plan_round(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(Vec<Begun>, Vec<ContentId>), StoreError> {
        let stamp = cx.store.clock(&self.space)? + 1;
        let txn = cx.store.begin()?;
        let mut b = Batch::open(&txn, self.no, stamp, cx.now)?;
        self.transfers.follow_moves(&b.index)?;
        self.bring_forward_unified(&b)?;
        let mut begun = vec![];
        let mut transfers = vec![];
        let mut planned = 0;
        self.merging.begin_round();
        let mut bytes = 0;
        while planned < NODES_MAX
            && bytes < BYTES_MAX
            && let Some(node) = self.order.pop_front()
        {
            planned += 1;
            self.ready.remove(&node);
            if self.circles.has(node, cx.now) {
                self.stalled.insert(node, cx.now.ms + super::RETRY_MS);
                continue;
            }
            let plan = self.plan(&mut b, cx.packs, cx.rng, node)?;
            let step = match plan {
                Plan::Done => {
                    // Soon and not at once: where they wait for each other, too, none would rest.
                    for behind in self.behind.remove(&node).into_iter().flatten() {
                        let soon = cx.now.ms + super::SETTLE_MS;
                        let at = self.stalled.entry(behind).or_insert(soon);
                        *at = soon.min(*at);
                    }
                    self.faults.clear_node(&node);
                    b.index.clear_pending(&node)?;
                    b.dirty = true;
                    continue;
                }
                Plan::Wait => continue,
                Plan::Transfer(content) => {
                    b.dirty = true;
                    transfers.push(content);
                    continue;
                }
                Plan::Again => {
                    if begun.is_empty() {
                        let at = cx.now.ms + super::SETTLE_MS;
                        self.stalled.insert(node, at);
                    } else {
                        self.mark([node]);
                        break;
                    }
                    continue;
                }
                Plan::NextRound => {
                    self.mark([node]);
                    break;
                }
                Plan::Step(step) => step,
            };
            // Two nodes may have become one meanwhile: its second step is planned on what the
            // first has left.
            let busy = begun.iter().any(|other: &Begun| {
                other.step.node() == step.node() || other.step.path() == step.path()
            });
            if busy {
                self.mark([node]);
                break;
            }
            let flush = matches!(&step, Step::Move { entry, .. } if entry.kind == Kind::Dir)
                || matches!(&step, Step::RemoveDir { .. });
            if let Step::Put(put) = &step {
                bytes += put.size;
            }
            let (unfinished, temp) = self.temps_for(cx.rng, &step);
            let intent = intent(&step, &temp);
            let note = b.index.add_note(NoteKind::Intent, &cbor::encode(&intent))?;
            b.dirty = true;
            begun.push(Begun {
                step,
                note,
                unfinished,
                temp,
                written: None,
            });
            if flush {
                break;
            }
        }
        self.keep_merged(&mut b, &txn, cx.packs)?;
        self.sync_planned(&b)?;
        let (dirty, wrote) = (b.dirty, !b.rows.is_empty());
        let found = b.close();
        if wrote || (begun.is_empty() && transfers.is_empty()) {
            self.commit_found(found, txn, cx.packs, cx.rng, cx.now, progress)?;
        } else if dirty {
            txn.commit()?;
        }
        Ok((begun, transfers))
    }

    /// What a plan has made or set is durable before the index tells of it. Else, after a power
    /// cut, its absence would be a deletion and its old mode a change, told to the whole pac.
    fn sync_planned(&self, b: &Batch<'_>) -> Result<(), StoreError> {
        let synced = if b.modes_set.is_empty() && b.made.len() <= SYNC_EACH_MAX {
            b.made.iter().try_for_each(|dir| {
                match self.disk.sync_dir(dir) {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
                self.sync_dir_of(dir)
            })
        } else {
            self.sync_file_systems_of(b.made.iter().chain(&b.modes_set))
        };
        // The device is started anew, and finds on disk what is there.
        synced.map_err(|error| StoreError::Io(error.source))
    }

    /// Where a step writes, and the name of what is whole or goes aside.
    fn temps_for(
        &self,
        rng: &mut dyn pacsync_protocol::crypto::Entropy,
        step: &Step,
    ) -> (RelPath, RelPath) {
        let name = self.temp_name(b"", rng);
        let beside = |path: &RelPath, name: &[u8]| {
            path.parent()
                .unwrap_or_default()
                .join(name)
                .unwrap_or_default()
        };
        let temp = match step {
            Step::Put(put) => beside(&put.place.path, &name),
            Step::Remove { place, .. } if self.same_file_system(&place.path) => {
                trash_dir().join(&name).unwrap_or_default()
            }
            Step::Remove { place, .. } | Step::RemoveDir { place, .. } => {
                beside(&place.path, &name)
            }
            Step::Move { from, .. } => from.path.clone(),
        };
        let unfinished = match step {
            Step::Put(Put {
                source: Source::Transfer,
                content,
                ..
            }) => self.transfers.get(content).map(|t| t.path.clone()),
            Step::Put(put) => Some(beside(&put.place.path, &unfinished_name(&name))),
            _ => None,
        };
        (unfinished.unwrap_or_else(|| temp.clone()), temp)
    }

    fn same_file_system(&self, path: &RelPath) -> bool {
        self.disk
            .stat(path)
            .ok()
            .flatten()
            .is_none_or(|s| s.identity.dev == self.root.dev)
    }

    fn carry_out(
        &mut self,
        cx: &mut Context<'_>,
        mut begun: Vec<Begun>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        let mut failed: Vec<(usize, DiskError)> = vec![];
        // Temporary files.
        let many = begun.len() > SYNC_EACH_MAX;
        let mut wrote = false;
        for (at, item) in begun.iter_mut().enumerate() {
            let result = match &item.step {
                Step::Put(put) => {
                    wrote = true;
                    self.write_temp(put, &item.unfinished, !many)
                }
                Step::Remove { .. } => self.make_trash().map(|()| None),
                Step::Move { .. } | Step::RemoveDir { .. } => Ok(None),
            };
            match result {
                Ok(written) => item.written = written,
                Err(error) => failed.push((at, error)),
            }
        }
        let mut sync_error = None;
        if wrote && many {
            sync_error = self.sync_places(&begun).err();
        }
        // Exchange, rename.
        let mut outcomes = vec![];
        let mut left_aside = vec![];
        for (at, item) in begun.iter().enumerate() {
            if let Some(error) = &sync_error {
                let again = DiskError::new(error.op, item.step.path(), error.source.kind());
                failed.push((at, again));
                continue;
            }
            if failed.iter().any(|(f, _)| *f == at) {
                continue;
            }
            match self.switch(cx, item) {
                Ok(Outcome::Failed {
                    displaced,
                    error,
                    left,
                }) => {
                    left_aside.push((at, displaced, left));
                    failed.push((at, error));
                }
                Ok(outcome) => outcomes.push((at, outcome)),
                Err(error) => failed.push((at, error)),
            }
        }
        if !outcomes.is_empty() {
            let synced = if many {
                self.sync_places(&begun)
            } else {
                outcomes
                    .iter()
                    .try_for_each(|(at, _)| match begun.get(*at) {
                        Some(item) => {
                            if let Step::Move { from, .. } = &item.step {
                                self.sync_dir_of(&from.path)?;
                            }
                            self.sync_dir_of(item.step.path())
                        }
                        None => Ok(()),
                    })
            };
            if let Err(error) = synced {
                // The renames stand but may not be durable: the intents stay, and the device is
                // started anew, which brings them to an end.
                return Err(StoreError::Io(error.source));
            }
        }
        for (at, _) in &outcomes {
            if let Some(item) = begun.get(*at)
                && progress.applied.len() < super::APPLIED_MAX
            {
                progress.applied.push(item.step.path().clone());
            }
        }
        self.record(cx, begun, outcomes, failed, left_aside)
    }

    fn sync_places(&self, begun: &[Begun]) -> Result<(), DiskError> {
        self.sync_file_systems_of(begun.iter().map(|item| item.step.path()))
    }

    /// Syncs the root's file system and those others that these paths are on.
    fn sync_file_systems_of<'p>(
        &self,
        paths: impl Iterator<Item = &'p RelPath>,
    ) -> Result<(), DiskError> {
        self.disk.sync_all()?;
        for dir in paths.map(|path| path.parent().unwrap_or_default()) {
            if !self.same_file_system(&dir) {
                self.disk.sync_fs(&dir)?;
            }
        }
        Ok(())
    }

    fn sync_dir_of(&self, path: &RelPath) -> Result<(), DiskError> {
        match self.disk.sync_dir(&path.parent().unwrap_or_default()) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn make_trash(&self) -> Result<(), DiskError> {
        match self.disk.mkdir(&trash_dir(), 0o700) {
            Err(error) if !error.is_exists() => Err(error),
            _ => Ok(()),
        }
    }

    fn write_temp(
        &self,
        put: &Put,
        temp: &RelPath,
        sync: bool,
    ) -> Result<Option<Identity>, DiskError> {
        match &put.source {
            Source::Target(target) => {
                self.disk.symlink(temp, target)?;
                let _ = self.disk.set_mtime(temp, put.mtime_ns);
                Ok(self.disk.stat(temp)?.map(|stat| stat.identity))
            }
            Source::Bytes(bytes) => {
                let mut file = self.disk.create(temp, 0o600)?;
                file.write_at(0, bytes)?;
                if self.probe.modes {
                    file.set_mode(put.mode)?;
                }
                file.set_mtime(put.mtime_ns)?;
                if sync {
                    file.sync_data()?;
                }
                file.identity().map(Some)
            }
            Source::Transfer => {
                let mut file = self.disk.open_write(temp)?;
                file.set_len(put.size)?;
                if self.probe.modes {
                    file.set_mode(put.mode)?;
                }
                file.set_mtime(put.mtime_ns)?;
                if sync {
                    file.sync_data()?;
                }
                file.identity().map(Some)
            }
        }
    }

    /// The moment in which a path changes.
    fn switch(&mut self, cx: &Context<'_>, item: &Begun) -> Result<Outcome, DiskError> {
        match &item.step {
            Step::Put(put) => self.switch_put(cx, put, item),
            Step::Move {
                entry, from, to, ..
            } => {
                self.move_file(&from.path, &to.path)?;
                let mut entry = entry.clone();
                if let Ok(Some(stat)) = self.disk.stat(&to.path) {
                    super::settle::follow(&mut entry, &stat);
                }
                Ok(Outcome::Moved { entry })
            }
            Step::Remove { node, entry, place } => {
                // If it is gone already somebody deleted it, which is told before it is forgotten.
                self.disk.rename_noreplace(&place.path, &item.temp)?;
                if self.is_dir(&item.temp) {
                    // Somebody put a directory there in this moment. If it cannot go back at once
                    // it does so when what was put aside is looked at.
                    if self.disk.rename_noreplace(&item.temp, &place.path).is_ok() {
                        return Err(in_the_way(&place.path));
                    }
                }
                let displaced = displaced(cx, *node, entry, &item.temp, place);
                Ok(Outcome::Removed {
                    displaced: Some(displaced),
                })
            }
            Step::RemoveDir { place, .. } => match self.disk.rmdir(&place.path) {
                Ok(()) => Ok(Outcome::Removed { displaced: None }),
                Err(error) if error.is_not_found() => Ok(Outcome::Removed { displaced: None }),
                Err(error) => Err(error),
            },
        }
    }

    fn is_as_written(&self, item: &Begun) -> bool {
        let (Ok(Some(stat)), Some(written)) = (self.disk.stat(&item.temp), item.written) else {
            return false;
        };
        let seen = stat.identity;
        seen.ino == written.ino && seen.size == written.size && seen.mtime_ns == written.mtime_ns
    }

    pub(super) fn is_dir(&self, path: &RelPath) -> bool {
        matches!(self.disk.stat(path), Ok(Some(stat)) if stat.kind == crate::disk::FileKind::Dir)
    }

    /// Renames; where the disk takes the new name for the old one nothing is in the way. What the
    /// index knows does not tell that: somebody may have replaced the file, and made one at the new
    /// name that has its number now.
    fn move_file(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        let seen = |path| self.disk.stat(path).ok().flatten();
        let is_itself = self.folds_names()
            && from.parent() == to.parent()
            && matches!(
                (seen(from), seen(to)),
                (Some(from), Some(to)) if from.identity.inode() == to.identity.inode()
            );
        if is_itself {
            self.disk.rename(from, to)
        } else {
            self.disk.rename_noreplace(from, to)
        }
    }

    fn switch_put(
        &mut self,
        cx: &Context<'_>,
        put: &Put,
        item: &Begun,
    ) -> Result<Outcome, DiskError> {
        let path = &put.place.path;
        let mut aside = None;
        // From here on a file of this name is whole, or is what stood at the path.
        self.disk.rename_noreplace(&item.unfinished, &item.temp)?;
        match &put.replaces {
            None => self.disk.rename_noreplace(&item.temp, path)?,
            Some(old) => match self.disk.exchange(&item.temp, path) {
                Ok(()) => {
                    // Somebody may have put a directory there in this moment: it goes back, at
                    // once or when what was put aside is looked at.
                    if self.is_dir(&item.temp) {
                        let error = in_the_way(path);
                        if self.disk.exchange(&item.temp, path).is_ok() {
                            if self.is_as_written(item) {
                                return Err(error);
                            }
                            // And somebody saved over what had just come to the path.
                            let displaced = displaced(cx, put.node, old, &item.temp, &put.place);
                            return Ok(Outcome::Failed {
                                displaced,
                                error,
                                left: Left::Changed,
                            });
                        }
                        if self.disk.rename_noreplace(&item.temp, path).is_ok() {
                            return Err(error);
                        }
                    }
                    aside = Some(item.temp.clone());
                }
                Err(error) if error.is_unsupported() => {
                    match self.exchange_by_renames(&item.temp, path) {
                        Switched::Done(at) => aside = Some(at),
                        Switched::Not(error) => return Err(error),
                        Switched::Aside(at, error, left) => {
                            let displaced = displaced(cx, put.node, old, &at, &put.place);
                            return Ok(Outcome::Failed {
                                displaced,
                                error,
                                left,
                            });
                        }
                    }
                }
                Err(error) => return Err(error),
            },
        }
        if let Some(aside) = &aside
            && put.kind == Kind::File
            && let Ok(Some(stat)) = self.disk.stat(aside)
            && stat.nlink > 1
        {
            self.note_broken_link(path);
        }
        // From here on nothing may be forgotten: what is aside may be the only copy of an edit.
        let displaced = match (&put.replaces, aside) {
            (Some(old), Some(temp)) => Some(displaced(cx, put.node, old, &temp, &put.place)),
            _ => None,
        };
        let seen = self.disk.stat(path).ok().flatten();
        let seen = seen.map(|stat| (stat.identity, stat.mode));
        // If somebody wrote to the file since, the identity as written shows the difference.
        let (identity, mode) = match (seen, item.written) {
            (Some((seen, mode)), Some(written))
                if seen.ino == written.ino
                    && seen.size == written.size
                    && seen.mtime_ns == written.mtime_ns =>
            {
                if self.probe.modes && mode != put.mode {
                    // Somebody changed the mode since: the next look must see that.
                    (written, put.mode)
                } else {
                    (seen, mode)
                }
            }
            (Some((seen, mode)), None) => (seen, mode),
            (_, Some(written)) => (written, put.mode),
            (None, None) => {
                let error = DiskError::new(
                    crate::disk::DiskOp::Stat,
                    path,
                    std::io::ErrorKind::NotFound,
                );
                return match displaced {
                    Some(displaced) => Ok(Outcome::Failed {
                        displaced,
                        error,
                        left: Left::Changed,
                    }),
                    None => Err(error),
                };
            }
        };
        let entry = Entry {
            node: put.node,
            kind: put.kind,
            identity: file_identity(&identity),
            mode,
            row: Some(put.row),
            content: Some(put.content),
            recorded_ns: cx.now.ns,
        };
        Ok(Outcome::Put { entry, displaced })
    }

    /// Where exchange is missing: renames the old file away, then the new one to its place. A link
    /// and a rename over it would leave no moment without a file there, but what somebody saves
    /// between the two would be gone. A crash between them is mended at the next start.
    fn exchange_by_renames(&self, temp: &RelPath, path: &RelPath) -> Switched {
        let dir = temp.parent().unwrap_or_default();
        let aside = dir
            .join(&aside_name(temp.name().unwrap_or_default()))
            .unwrap_or_default();
        if let Err(error) = self.disk.rename_noreplace(path, &aside) {
            return Switched::Not(error);
        }
        let was_dir = self.is_dir(&aside);
        let error = if was_dir {
            // Somebody put a directory there in this moment.
            in_the_way(path)
        } else {
            match self.disk.rename_noreplace(temp, path) {
                Ok(()) => return Switched::Done(aside),
                Err(error) => error,
            }
        };
        match self.disk.rename_noreplace(&aside, path) {
            Ok(()) => Switched::Not(error),
            // What the directory took the place of was gone before.
            Err(_) if was_dir => Switched::Aside(aside, error, Left::Changed),
            Err(back) if back.is_exists() => Switched::Aside(aside, error, Left::Unseen),
            Err(_) => Switched::Aside(aside, error, Left::Nothing),
        }
    }

    /// Index rows and displaced records in one commit; intents go with it.
    fn record(
        &mut self,
        cx: &mut Context<'_>,
        begun: Vec<Begun>,
        outcomes: Vec<(usize, Outcome)>,
        failed: Vec<(usize, DiskError)>,
        left_aside: Vec<(usize, Displaced, Left)>,
    ) -> Result<(), StoreError> {
        let txn = cx.store.begin()?;
        let mut marks = vec![];
        let mut finished = vec![];
        {
            let mut index = txn.index(self.no)?;
            for (at, outcome) in outcomes {
                let Some(item) = begun.get(at) else { continue };
                index.remove_note(NoteKind::Intent, item.note)?;
                let node = item.step.node();
                let aside = match (outcome, &item.step) {
                    (Outcome::Put { entry, displaced }, Step::Put(put)) => {
                        index.clear_pending(&node)?;
                        index.put(&put.place.parent, &put.place.name, &entry)?;
                        if put.kind == Kind::File && super::texts::may_be_kept(put.size) {
                            index.mark_unkept(&node)?;
                            self.keeping.later(cx.now);
                        }
                        if let Some(bytes) = self.arrived.remove(&put.content) {
                            self.arrived_bytes -= bytes.len();
                        }
                        if matches!(put.source, Source::Transfer) {
                            index.remove_transfer(&put.content)?;
                            finished.push(put.content);
                        }
                        self.now_mergeable(&put.content);
                        displaced
                    }
                    (Outcome::Moved { entry }, Step::Move { from, to, .. }) => {
                        index.put(&to.parent, &to.name, &entry)?;
                        marks.push(from.parent);
                        if entry.kind == Kind::Dir {
                            self.queue.deep(to.path.clone(), cx.now.ms);
                        }
                        // Its content may have changed, too: pending until a plan finds it done.
                        marks.push(node);
                        None
                    }
                    (
                        Outcome::Removed { displaced },
                        Step::Remove { place, .. } | Step::RemoveDir { place, .. },
                    ) => {
                        index.remove(&place.parent, &place.name)?;
                        self.breaker.done(&node);
                        index.release(&node)?;
                        marks.push(place.parent);
                        marks.push(node);
                        displaced
                    }
                    _ => None,
                };
                if let Some(displaced) = aside {
                    let number = index.add_note(NoteKind::Displaced, &cbor::encode(&displaced))?;
                    self.displaced.insert(number, displaced);
                }
                if self.faults.is_unshowable(&node) {
                    // It may have changed under its old name only.
                    marks.push(node);
                    index.mark_pending(&node)?;
                }
                self.faults.clear_node(&node);
            }
            for (at, displaced, left) in left_aside {
                if let Some(item) = begun.get(at)
                    && let Step::Put(put) = &item.step
                {
                    let Place { parent, name, .. } = &put.place;
                    match left {
                        Left::Changed => {}
                        Left::Unseen => {
                            let tree = txn.tree(self.no)?;
                            saved_unseen(&mut index, &tree, parent, name, &put.row)?;
                        }
                        Left::Nothing => {
                            index.remove(parent, name)?;
                        }
                    }
                }
                let number = index.add_note(NoteKind::Displaced, &cbor::encode(&displaced))?;
                self.displaced.insert(number, displaced);
            }
            for (at, error) in &failed {
                let Some(item) = begun.get(*at) else { continue };
                self.failed_step(cx.now, item, error);
                index.remove_note(NoteKind::Intent, item.note)?;
                if let Some(name) = item.temp.name()
                    && let Some(number) = self.strays.get_mut(name)
                {
                    let mut stray = intent(&item.step, &item.temp);
                    stray.act = Act::Stray;
                    stray.name = name.to_vec();
                    *number = index.add_note(NoteKind::Intent, &cbor::encode(&stray))?;
                }
            }
        }
        if !failed.is_empty()
            && let Err(error) = self.disk.sync_all()
        {
            tracing::debug!(%error, "what was taken back is not durably gone yet");
        }
        txn.commit()?;
        for content in finished {
            self.transfers.remove(&content);
            self.begin_others();
        }
        if !marks.is_empty() {
            self.place_is_free();
        }
        marks.retain(|node| *node != NodeId::ROOT);
        self.mark(marks);
        if self.displaced.is_empty() {
            // Made for a removal that found nothing to remove.
            let _ = self.disk.rmdir(&trash_dir());
        }
        Ok(())
    }

    fn failed_step(&mut self, now: super::Now, item: &Begun, error: &DiskError) {
        let path = item.step.path().clone();
        let node = item.step.node();
        if let Step::Put(put) = &item.step {
            self.take_back(now, put, item);
        }
        let in_the_way = error.is_exists() || error.is_not_empty();
        if in_the_way || error.is_not_found() || error.is_not_a_directory() {
            // Something unseen: look at it, then plan anew. A file that was removed meanwhile is
            // first told as such.
            self.queue.deep(path.clone(), now.ms);
            if !error.is_exists() {
                self.queue.soon(path.parent().unwrap_or_default(), now.ms);
            }
            self.stalled.insert(node, now.ms + super::VACATED_MS * 2);
            if let Step::RemoveDir { .. } = &item.step {
                self.leftover(now, item);
            }
            return;
        }
        tracing::debug!(%path, %error, "apply");
        self.node_fault(&path, node, super::describe(error), now);
    }

    /// The temporary file of a put that failed: a transfer keeps it, others write it anew.
    fn take_back(&mut self, now: super::Now, put: &Put, item: &Begun) {
        let name = item.temp.name().unwrap_or_default();
        if self.displaced.has_name(name) {
            // What is under its name is not the put's.
            return;
        }
        if matches!(put.source, Source::Transfer) {
            // Where the transfer does not find it, it begins anew.
            let kept = self.disk.rename_noreplace(&item.temp, &item.unfinished);
            if kept.is_err_and(|error| !error.is_not_found()) {
                self.strays.insert(name.to_vec(), item.note);
                self.queue.deep(RelPath::root(), now.ms);
            }
            return;
        }
        let gone = [&item.temp, &item.unfinished].map(|temp| self.disk.unlink(temp));
        let made = item.written.is_some() || put.kind == Kind::Symlink;
        let moved = gone.iter().all(Result::is_err) && made;
        let stays = gone
            .iter()
            .flat_map(|r| r.as_ref().err())
            .any(|e| !e.is_not_found());
        if (moved || stays)
            && let Some(name) = item.temp.name()
        {
            // Its directory was moved, or does not let it go: it goes where a scan meets it.
            self.strays.insert(name.to_vec(), item.note);
            self.queue.deep(RelPath::root(), now.ms);
        }
    }

    /// A directory that is dead in the tree and holds only what is ignored stays on disk, unknown.
    fn leftover(&mut self, now: super::Now, item: &Begun) {
        let Step::RemoveDir { place, .. } = &item.step else {
            return;
        };
        let Ok(listing) = self.disk.list(&place.path) else {
            return;
        };
        // Nothing that was to come here is wanted any more.
        let mut freed = false;
        let mut wanting = vec![];
        for entry in &listing.entries {
            if super::is_transfer_temp(&entry.name) {
                if let Some(content) = self.transfers.forget_name(&entry.name)
                    && let Some(waiting) = self.waiting.get(&content)
                {
                    // Others want it at another place, and begin anew.
                    wanting.extend(waiting.nodes.iter().copied());
                }
                if let Ok(path) = place.path.join(&entry.name) {
                    freed |= self.disk.unlink(&path).is_ok();
                }
            }
        }
        self.mark(wanting);
        if freed {
            self.stalled.insert(item.step.node(), now.ms);
            return;
        }
        let is_left = |entry| self.is_left_alone(&place.path, entry);
        let is_left = super::scan::is_home(&listing) || listing.entries.iter().all(is_left);
        if listing.errors.is_empty() && is_left {
            self.leftovers.insert((place.parent, place.name.clone()));
            self.stalled.insert(item.step.node(), now.ms);
        } else if !self.faults.is_empty() {
            // Something in it may be what cannot be read.
            self.stalled.insert(item.step.node(), now.ms + RETRY_MS);
        }
    }
}

fn displaced(
    cx: &Context<'_>,
    node: NodeId,
    old: &Entry,
    temp: &RelPath,
    place: &Place,
) -> Displaced {
    let beside = temp.parent() == place.path.parent();
    Displaced {
        temp: PathRecord::from(temp),
        node,
        path: PathRecord::from(&place.path),
        old: Old {
            identity: old.identity,
            row: old.row,
            content: old.content,
        },
        due_ms: cx.now.ms + DISPLACED_MS,
        dir: beside.then_some(place.parent),
        new: None,
    }
}

/// Somebody saved at a path in the moment in which the old file was not there any more and the new
/// one not yet. They overwrote neither: what they saved was made of what both began from, or of
/// nothing.
pub(super) fn saved_unseen(
    index: &mut Index<'_>,
    tree: &TreeTables<'_>,
    parent: &NodeId,
    name: &[u8],
    new: &RowId,
) -> Result<(), StoreError> {
    let Some(mut entry) = index.get(parent, name)? else {
        return Ok(());
    };
    let base = match &entry.row {
        Some(old) => tree.shared_base(old, new)?,
        None => None,
    };
    match base {
        Some(_) => {
            entry.row = base;
            index.put(parent, name, &entry)
        }
        None => index.remove(parent, name).map(drop),
    }
}

fn in_the_way(path: &RelPath) -> DiskError {
    DiskError::new(
        crate::disk::DiskOp::Rename,
        path,
        std::io::ErrorKind::AlreadyExists,
    )
}

/// Where removed files wait at the root of the same file system.
pub(super) fn trash_dir() -> RelPath {
    let name = [RESERVED_PREFIX, b"removed"].concat();
    RelPath::from_bytes(&name).unwrap_or_default()
}

fn intent(step: &Step, temp: &RelPath) -> Intent {
    let old = |entry: &Entry| Old {
        identity: entry.identity,
        row: entry.row,
        content: entry.content,
    };
    let (act, place, old, new) = match step {
        Step::Put(put) => (
            Act::Put,
            &put.place,
            put.replaces.as_ref().map(old),
            Some(New {
                row: put.row,
                content: put.content,
                is_symlink: put.kind == Kind::Symlink,
                mode: put.mode,
            }),
        ),
        Step::Move { entry, to, .. } => (Act::Move, to, Some(old(entry)), None),
        Step::Remove { entry, place, .. } => (Act::Remove, place, Some(old(entry)), None),
        Step::RemoveDir { place, .. } => (Act::Remove, place, None, None),
    };
    Intent {
        act,
        node: step.node(),
        parent: place.parent,
        name: place.name.clone(),
        path: PathRecord::from(&place.path),
        other: PathRecord::from(temp),
        old,
        new,
    }
}

//! Beginning and beginning again: opening a worktree, and mending what a crash interrupted.

use pacsync_protocol::row::Kind;
use pacsync_protocol::{NodeId, cbor};
use pacsync_store::index::{Entry, FileIdentity, NoteKind, RootIdentity};
use pacsync_store::tree::TreeTables;
use pacsync_store::{Store, StoreError};

use super::apply::{saved_unseen, trash_dir};
use super::content::{Read, read};
use super::notes::{Act, Displaced, Intent, New, Old, PathRecord, aside_name, unfinished_name};
use super::queue::Queue;
use super::settle::path_of;
use super::tracking::Tracked;
use super::transfer::TransferRecord;
use super::{Context, DISPLACED_MS, Now, Phase, Tracking, Worktree, same_root};
use crate::disk::{Disk, DiskError, FileKind, Probe, RelPath, Stat};

/// Why a worktree could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The replica failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The root failed.
    #[error("the root directory: {0}")]
    Disk(#[from] DiskError),
    /// Another directory stands at the root's place.
    #[error(
        "another directory stands at the root's place (is its disk mounted? were home and root \
         copied?): nothing is changed until the one that was attached is back, or the space is \
         attached anew (`pacsync space attach`)"
    )]
    OtherRoot,
    /// The space is not attached, or its keys are not here.
    #[error("the space has no worktree on this device yet")]
    NotAttached,
}

/// What an interrupted apply left.
enum Mended {
    /// A file that is looked at again.
    Aside(Box<Displaced>),
    /// A temporary file that is not where it was, if there is one.
    Lost(Vec<u8>),
}

impl Worktree {
    /// Opens the worktree of an attached space: probes the disk, mends what a crash interrupted,
    /// and asks for a scan of everything.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        space: pacsync_protocol::SpaceId,
        disk: Box<dyn Disk>,
        tracking: Tracking,
        own_home: Option<(u64, u64)>,
        cx: &mut Context<'_>,
    ) -> Result<Self, OpenError> {
        let known = cx.store.space(&space)?.clone();
        let keys = known.id_keys.ok_or(OpenError::NotAttached)?;
        let probe = match disk.probe() {
            Ok(probe) => probe,
            Err(error) if error.is_no_space() => Probe::guess(),
            Err(error) => return Err(error.into()),
        };
        let found = disk.root_identity()?;
        if let Some(attachment) = attachment_of(cx.store, known.no)?
            && let Some(before) = attachment.root_identity
            && !same_root(&before, &found)
        {
            return Err(OpenError::OtherRoot);
        }
        let identity = RootIdentity {
            dev: found.dev,
            ino: found.ino,
            fsid: found.fs_id,
        };
        let txn = cx.store.begin()?;
        let (attachment, pending, displaced, held) = {
            let mut index = txn.index(known.no)?;
            let mut attachment = index.attachment()?.ok_or(OpenError::NotAttached)?;
            match attachment.root_identity {
                Some(before) if before == identity => {}
                before => {
                    if let Some(before) = before {
                        index.renumber(before.dev, identity.dev)?;
                    }
                    attachment.root_identity = Some(identity);
                    index.set_attachment(&attachment)?;
                }
            }
            if attachment.tracked.is_none() {
                let bytes = cbor::encode(&Tracked::new(&tracking, &[]));
                attachment.tracked = Some(bytes.into());
                index.set_attachment(&attachment)?;
            }
            let displaced = index.notes(NoteKind::Displaced)?;
            let pending = index.pending(None, usize::MAX)?;
            (attachment, pending, displaced, index.held()?)
        };
        txn.commit()?;
        let before = match &attachment.tracked {
            Some(bytes) => cbor::decode::<Tracked>("what was tracked", bytes),
            None => Ok(Tracked::new(&tracking, &[])),
        };
        let before = before.map_err(StoreError::from)?;
        let phase = if attachment.awaits_sponsor || attachment.join.is_some() {
            Phase::Joining
        } else if attachment.first_scan {
            Phase::FirstScan
        } else {
            Phase::Live
        };
        let mut worktree = Self {
            space,
            no: known.no,
            disk,
            probe,
            keys,
            root: attachment.root_identity.unwrap_or(identity),
            tracking: before.tracking(),
            phase,
            ignores: Default::default(),
            queue: Queue::default(),
            walks: vec![],
            vacated: Default::default(),
            last_vacated_ms: 0,
            burst_since_ms: 0,
            settling: Default::default(),
            ready: Default::default(),
            order: Default::default(),
            waiting: Default::default(),
            waiting_of: Default::default(),
            arrived: Default::default(),
            arrived_bytes: 0,
            transfers: Default::default(),
            merging: Default::default(),
            stalled: Default::default(),
            shrinking: Default::default(),
            behind: Default::default(),
            circles: Default::default(),
            faults: Default::default(),
            breaker: Default::default(),
            displaced: Default::default(),
            strays: Default::default(),
            closing: false,
            bind_later: Default::default(),
            stuck: Default::default(),
            own_home,
            homes: Default::default(),
            other_roots: Default::default(),
            moved_roots: Default::default(),
            offsets: Default::default(),
            leftovers: Default::default(),
            exact: Default::default(),
            broken_links: Default::default(),
            root_trouble: None,
            wants_reopen: false,
            unwatched: false,
            verify_at: cx.now.ms + super::VERIFY_MS,
            binding: before.binding(),
            scanned_once: false,
            check_root_at: 0,
            losers_at: 0,
            keeping: super::texts::Keeping::resumed(cx.now),
            wanted_versions: Default::default(),
        };
        for (number, bytes) in displaced {
            let mut record: Displaced =
                cbor::decode("displaced record", &bytes).map_err(StoreError::from)?;
            // The clock may have been set back since, by any amount.
            record.due_ms = record.due_ms.min(cx.now.ms + DISPLACED_MS);
            worktree.displaced.insert(number, record);
        }
        worktree.remember_held(held);
        worktree.mend(cx)?;
        if worktree.displaced.is_empty() {
            // Left by a crash, and empty; nothing else may be in it.
            let _ = worktree.disk.rmdir(&trash_dir());
        }
        worktree.resume_transfers(cx)?;
        worktree.hold_mass_deletes(cx.store, &pending, cx.now)?;
        worktree.mark(pending);
        if phase != Phase::Joining {
            worktree.queue.deep(RelPath::root(), cx.now.ms);
        }
        // It may have changed while nobody looked.
        worktree.set_tracking(tracking, cx)?;
        Ok(worktree)
    }

    /// Brings every intent to an end: done, or never begun.
    fn mend(&mut self, cx: &mut Context<'_>) -> Result<(), OpenError> {
        let txn = cx.store.begin()?;
        let mut any = false;
        {
            let mut index = txn.index(self.no)?;
            let tree = txn.tree(self.no)?;
            for (number, bytes) in index.notes(NoteKind::Intent)? {
                let mut intent: Intent =
                    cbor::decode("intent", &bytes).map_err(StoreError::from)?;
                if intent.act == Act::Stray {
                    self.strays.insert(intent.name, number);
                    continue;
                }
                any = true;
                for mended in self.mend_one(&mut index, &tree, &intent, cx.now)? {
                    match mended {
                        Mended::Aside(record) => {
                            let bytes = cbor::encode(&*record);
                            let number = index.add_note(NoteKind::Displaced, &bytes)?;
                            self.displaced.insert(number, *record);
                        }
                        Mended::Lost(name) => {
                            intent.act = Act::Stray;
                            intent.name.clone_from(&name);
                            let bytes = cbor::encode(&intent);
                            let number = index.add_note(NoteKind::Intent, &bytes)?;
                            self.strays.insert(name, number);
                        }
                    }
                }
                index.mark_pending(&intent.node)?;
                self.mark([intent.node]);
                index.remove_note(NoteKind::Intent, number)?;
            }
        }
        if any {
            // Or a power cut brings back what was removed, and nobody knows it.
            if let Err(error) = self.disk.sync_all() {
                tracing::warn!(%error, "what was mended is not durable yet");
            }
            txn.commit()?;
        }
        Ok(())
    }

    fn mend_one(
        &self,
        index: &mut pacsync_store::index::Index<'_>,
        tree: &TreeTables<'_>,
        intent: &Intent,
        now: Now,
    ) -> Result<Vec<Mended>, OpenError> {
        // Directories may have been moved since: their nodes know where they are.
        let dir = match path_of(index, &intent.parent)? {
            Some(dir) => dir,
            None => intent.path.path().parent().unwrap_or_default(),
        };
        let path = dir
            .join(&intent.name)
            .unwrap_or_else(|_| intent.path.path());
        let at_path = self.disk.stat(&path).ok().flatten();
        match (intent.act, intent.old) {
            (Act::Move, Some(old)) => {
                if let Some(stat) = at_path
                    && stat.identity.ino == old.identity.ino
                    && let Some((_, _, mut entry)) = index.entry_of(&intent.node)?
                {
                    super::settle::follow(&mut entry, &stat);
                    index.put(&intent.parent, &intent.name, &entry)?;
                }
                Ok(vec![])
            }
            (Act::Remove, Some(old)) => {
                let temp = intent.other.path();
                if self.disk.stat(&temp).ok().flatten().is_none() {
                    return Ok(vec![]);
                }
                // What stands at the path came after it was gone, and is no edit of it.
                index.remove(&intent.parent, &intent.name)?;
                Ok(vec![Mended::Aside(self.aside(intent, &temp, old, now))])
            }
            (Act::Put, _) => self.mend_put(index, tree, intent, &dir, &path, at_path, now),
            (Act::Move | Act::Remove | Act::Stray, _) => Ok(vec![]),
        }
    }

    /// A put has three names for its file, each of which says how far it came: while it is written,
    /// once it is whole, and on disks without exchange one for the old file.
    #[expect(clippy::too_many_arguments, reason = "one intent, taken apart")]
    fn mend_put(
        &self,
        index: &mut pacsync_store::index::Index<'_>,
        tree: &TreeTables<'_>,
        intent: &Intent,
        dir: &RelPath,
        path: &RelPath,
        at_path: Option<Stat>,
        now: Now,
    ) -> Result<Vec<Mended>, OpenError> {
        let Some(new) = intent.new else {
            return Ok(vec![]);
        };
        let mut found = vec![];
        let name = intent.other.path();
        let name = name.name().unwrap_or_default();
        let place = |name: &[u8]| dir.join(name).unwrap_or_default();
        // Half-written: nobody else's.
        let unwritten = self.disk.unlink(&place(&unfinished_name(name)));
        let aside = place(&aside_name(name));
        let mut here = at_path.map(|stat| (stat, self.read_at(path, stat)));
        let temp = place(name);
        let at_temp = self.disk.stat(&temp).ok().flatten();
        let at_aside = self.disk.stat(&aside).ok().flatten();
        if let (Some(old), Some(at_aside)) = (intent.old, at_aside) {
            match at_path {
                // A second name of what still stands at the path.
                Some(stat) if stat.identity.ino == at_aside.identity.ino => {
                    let _ = self.disk.unlink(&aside);
                }
                Some(_) => {
                    // While the new file has its own name, what stands at the path was saved by
                    // somebody who had not seen it.
                    if at_temp.is_none() {
                        self.adopt_put(index, intent, here.take(), &old, &new, now)?;
                    } else if !self.is_dir(&aside) {
                        saved_unseen(index, tree, &intent.parent, &intent.name, &new.row)?;
                    }
                    found.push(Mended::Aside(self.aside(intent, &aside, old, now)));
                }
                // Also where the new file may have been at the path, and somebody removed it while
                // nobody looked: better an old version that is back than one that is gone.
                None => match self.disk.rename_noreplace(&aside, path) {
                    Err(error) if error.is_exists() => {
                        found.push(Mended::Aside(self.aside(intent, &aside, old, now)));
                    }
                    // The space is opened when that can be done: its absence would be a delete.
                    Err(error) => return Err(error.into()),
                    Ok(()) => {}
                },
            }
        }
        let is_new = |read: &Option<Read>| {
            let content = read.as_ref().map(|read| read.content.id);
            content == Some(new.content)
        };
        match (at_temp, intent.old) {
            (Some(stat), Some(old)) if !is_new(&self.read_at(&temp, stat)) => {
                // The switch happened: what is aside is what stood at the path.
                self.adopt_put(index, intent, here, &old, &new, now)?;
                found.push(Mended::Aside(self.aside(intent, &temp, old, now)));
            }
            (Some(_), _) => {
                if !self.drop_unswitched(index, &temp, dir, &new)? {
                    found.push(Mended::Lost(name.to_vec()));
                }
            }
            (None, old) => {
                let old = old.unwrap_or_else(Old::nothing);
                if here.as_ref().is_some_and(|(_, read)| is_new(read)) {
                    self.adopt_put(index, intent, here, &old, &new, now)?;
                }
                if unwritten.is_err() {
                    // Not begun, switched, or in a directory that somebody moved.
                    found.push(Mended::Lost(name.to_vec()));
                    if let Some(old) = intent.old
                        && at_aside.is_none()
                    {
                        // What stood at the path would be there, too.
                        for at in [&temp, &aside] {
                            let mut record = self.aside(intent, at, old, now);
                            record.new = Some(new.content);
                            found.push(Mended::Aside(record));
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// A whole file that did not get to its path: a transfer keeps it, others write it anew.
    /// False if it could not be removed.
    fn drop_unswitched(
        &self,
        index: &pacsync_store::index::Index<'_>,
        temp: &RelPath,
        dir: &RelPath,
        new: &New,
    ) -> Result<bool, StoreError> {
        if let Some(bytes) = index.transfer_of(&new.content)? {
            let record: TransferRecord = cbor::decode("transfer", &bytes)?;
            let back = dir.join(&record.name).unwrap_or_default();
            if self.disk.rename_noreplace(temp, &back).is_ok() {
                return Ok(true);
            }
        }
        Ok(self.disk.unlink(temp).is_ok())
    }

    /// Records a file as applied. What stands at its path may be something else by now, saved
    /// over it or nothing: then the next scan sees that the two differ, and takes it for an edit
    /// of what was applied.
    fn adopt_put(
        &self,
        index: &mut pacsync_store::index::Index<'_>,
        intent: &Intent,
        at_path: Option<(Stat, Option<Read>)>,
        old: &Old,
        new: &New,
        now: Now,
    ) -> Result<(), StoreError> {
        let whole = at_path.and_then(|(stat, read)| Some((stat, read?)));
        let whole = whole.filter(|(_, read)| read.content.id == new.content);
        let unlike = FileIdentity {
            size: u64::MAX,
            ..old.identity
        };
        let mode = match &whole {
            // Where modes are not kept what shows is what there is.
            Some((stat, _)) if !self.probe.modes => stat.mode,
            _ => new.mode,
        };
        let entry = Entry {
            node: intent.node,
            kind: if new.is_symlink {
                Kind::Symlink
            } else {
                Kind::File
            },
            identity: whole.as_ref().map_or(unlike, |(_, read)| read.identity),
            mode,
            row: Some(new.row),
            content: Some(new.content),
            recorded_ns: now.ns,
        };
        index.put(&intent.parent, &intent.name, &entry)?;
        index.remove_transfer(&new.content)
    }

    /// What a path holds, if that is a file or a symlink.
    fn read_at(&self, path: &RelPath, stat: Stat) -> Option<Read> {
        let kind = match stat.kind {
            FileKind::File => Kind::File,
            FileKind::Symlink => Kind::Symlink,
            FileKind::Dir | FileKind::Other => return None,
        };
        read(&*self.disk, path, kind, &self.keys).ok()
    }

    fn aside(&self, intent: &Intent, temp: &RelPath, old: Old, now: Now) -> Box<Displaced> {
        Box::new(Displaced {
            temp: PathRecord::from(temp),
            node: intent.node,
            path: intent.path.clone(),
            old,
            due_ms: now.ms + DISPLACED_MS,
            dir: (temp.parent() == intent.path.path().parent()).then_some(intent.parent),
            new: None,
        })
    }

    /// Goes on with transfers whose temporary file is still there.
    fn resume_transfers(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let txn = cx.store.begin()?;
        let mut resumed = vec![];
        {
            let mut index = txn.index(self.no)?;
            for (content, bytes) in index.transfers()? {
                let record: TransferRecord = cbor::decode("transfer", &bytes)?;
                let path =
                    path_of(&index, &record.parent)?.and_then(|dir| dir.join(&record.name).ok());
                let file = path
                    .as_ref()
                    .and_then(|path| self.disk.open_write(path).ok());
                match (path, file) {
                    (Some(path), Some(file)) => {
                        let target = record.target.as_ref();
                        let target = target
                            .and_then(|bytes| RelPath::from_bytes(bytes).ok())
                            .unwrap_or_else(|| path.clone());
                        self.transfers.begin(content, record, path, target, file);
                        resumed.push(content);
                    }
                    _ => index.remove_transfer(&content)?,
                }
            }
        }
        txn.commit()?;
        for content in resumed {
            self.advance_transfer(cx, &content)?;
        }
        Ok(())
    }

    /// Everything was looked at since they were noted: stray temporary files are gone, unless
    /// something could not be read.
    pub(super) fn forget_strays(&mut self, store: &mut Store) -> Result<(), StoreError> {
        if self.strays.len() == self.stuck.len() || !self.faults.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.disk.sync_all() {
            tracing::warn!(%error, "removed files are not durably gone yet");
            return Ok(());
        }
        let txn = store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            for (name, number) in std::mem::take(&mut self.strays) {
                if self.stuck.contains(&name) {
                    self.strays.insert(name, number);
                } else {
                    index.remove_note(NoteKind::Intent, number)?;
                }
            }
        }
        txn.commit_lazily()?;
        Ok(())
    }

    /// Transfers that nobody waits for any more are dropped with their temporary files.
    pub(super) fn drop_idle_transfers(
        &mut self,
        store: &mut Store,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        if self.transfers.is_empty() || !self.ready.is_empty() || self.faults.has_nodes() {
            return Ok(());
        }
        let idle: Vec<_> = self
            .transfers
            .contents()
            .filter(|content| !self.waiting.contains_key(*content))
            .filter(|content| !self.wanted_versions.contains(*content))
            .copied()
            .collect();
        if idle.is_empty() || !self.stalled.is_empty() {
            return Ok(());
        }
        let txn = store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            self.transfers.follow_moves(&index)?;
            for content in idle {
                if let Some(transfer) = self.transfers.remove(&content)
                    && self.disk.unlink(&transfer.path).is_err()
                {
                    // Somebody moved its directory: a scan meets it.
                    self.queue.deep(RelPath::root(), now_ms);
                }
                index.remove_transfer(&content)?;
            }
        }
        txn.commit()?;
        // Others may have waited for a place among the transfers.
        let waiting: Vec<NodeId> = self.waiting_of.keys().copied().collect();
        self.mark(waiting);
        Ok(())
    }
}

fn attachment_of(
    store: &Store,
    no: u32,
) -> Result<Option<pacsync_store::index::Attachment>, StoreError> {
    let tx = store.read()?;
    pacsync_store::index::IndexReader::new(&tx, no).attachment()
}

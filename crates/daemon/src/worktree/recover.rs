//! Beginning and beginning again: opening a worktree, mending what a crash interrupted, and
//! looking at what applies put aside.

use pacsync_protocol::content::{ObjectId, PieceSource, SMALL_MAX, Walk};
use pacsync_protocol::row::{Keys, Kind, Row};
use pacsync_protocol::{NodeId, cbor};
use pacsync_store::index::{ContentTables, Entry, NoteKind, RootIdentity};
use pacsync_store::{Store, StoreError};

use super::apply::trash_dir;
use super::content::read;
use super::notes::{Act, Displaced, Intent, New, Old, PathRecord};
use super::queue::Queue;
use super::scan::Batch;
use super::settle::path_of;
use super::transfer::TransferRecord;
use super::{
    Context, DISPLACED_MS, Now, Phase, Progress, Tracking, Worktree, file_identity, same_root,
};
use crate::disk::{Disk, DiskError, FileKind, Probe, RelPath};

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
        "another directory stands at the root's place (is its disk mounted?): nothing is changed \
         until the one that was attached is back"
    )]
    OtherRoot,
    /// The space is not attached, or its keys are not here.
    #[error("the space has no worktree on this device yet")]
    NotAttached,
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
        let (attachment, pending, displaced) = {
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
            let displaced = index.notes(NoteKind::Displaced)?;
            (attachment, index.pending(None, usize::MAX)?, displaced)
        };
        txn.commit()?;
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
            tracking,
            phase,
            ignores: Default::default(),
            queue: Queue::default(),
            walks: vec![],
            vacated: Default::default(),
            last_vacated_ms: 0,
            settling: Default::default(),
            ready: Default::default(),
            order: Default::default(),
            waiting: Default::default(),
            waiting_of: Default::default(),
            arrived: Default::default(),
            arrived_bytes: 0,
            transfers: Default::default(),
            stalled: Default::default(),
            problems: Default::default(),
            breaker: Default::default(),
            displaced: Default::default(),
            own_home,
            offsets: Default::default(),
            leftovers: Default::default(),
            parked: Default::default(),
            root_trouble: None,
            wants_reopen: false,
            scanned_once: false,
            check_root_at: 0,
        };
        for (number, bytes) in displaced {
            let record: Displaced =
                cbor::decode("displaced record", &bytes).map_err(StoreError::from)?;
            worktree.displaced.insert(number, record);
        }
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
        Ok(worktree)
    }

    /// Brings every intent to an end: done, or never begun.
    fn mend(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let txn = cx.store.begin()?;
        let mut any = false;
        {
            let mut index = txn.index(self.no)?;
            for (number, bytes) in index.notes(NoteKind::Intent)? {
                any = true;
                let intent: Intent = cbor::decode("intent", &bytes)?;
                let aside = self.mend_one(&mut index, &intent, cx.now)?;
                if let Some(displaced) = aside {
                    let number = index.add_note(NoteKind::Displaced, &cbor::encode(&displaced))?;
                    self.displaced.insert(number, displaced);
                }
                index.mark_pending(&intent.node)?;
                self.mark([intent.node]);
                index.remove_note(NoteKind::Intent, number)?;
            }
        }
        if any {
            txn.commit()?;
        }
        Ok(())
    }

    fn mend_one(
        &self,
        index: &mut pacsync_store::index::Index<'_>,
        intent: &Intent,
        now: Now,
    ) -> Result<Option<Displaced>, StoreError> {
        // Directories may have been moved since: their nodes know where they are.
        let path = match path_of(index, &intent.parent)? {
            Some(dir) => dir
                .join(&intent.name)
                .unwrap_or_else(|_| intent.path.path()),
            None => intent.path.path(),
        };
        let temp = intent.other.path();
        let at_path = self.disk.stat(&path).ok().flatten();
        let at_temp = self.disk.stat(&temp).ok().flatten();
        match intent.act {
            Act::Move => {
                if let (None, Some(stat), Some(old)) = (at_temp, at_path, intent.old)
                    && stat.identity.ino == old.identity.ino
                    && let Some((_, _, mut entry)) = index.entry_of(&intent.node)?
                {
                    entry.identity = file_identity(&stat.identity);
                    index.put(&intent.parent, &intent.name, &entry)?;
                }
                Ok(None)
            }
            Act::Remove => {
                let (Some(old), Some(_)) = (intent.old, at_temp) else {
                    return Ok(None);
                };
                if at_path.is_none() {
                    index.remove(&intent.parent, &intent.name)?;
                }
                Ok(Some(self.aside(intent, &temp, old, now)))
            }
            Act::Put => {
                let Some(new) = intent.new else {
                    return Ok(None);
                };
                if let (Some(old), Some(temp_stat)) = (intent.old, at_temp)
                    && temp_stat.identity.ino == old.identity.ino
                {
                    // The exchange happened: what is aside is the old file, whatever became of
                    // the path since.
                    index.remove_transfer(&new.content)?;
                    self.adopt_put(index, intent, &path, &new, now)?;
                    return Ok(Some(self.aside(intent, &temp, old, now)));
                }
                let same_as_before =
                    |old: &Old| at_path.is_some_and(|stat| stat.identity.ino == old.identity.ino);
                let not_begun =
                    at_path.is_none() || intent.old.as_ref().is_some_and(same_as_before);
                if not_begun {
                    if at_temp.is_some() && index.transfer_of(&new.content)?.is_none() {
                        let _ = self.disk.unlink(&temp);
                    }
                    return Ok(None);
                }
                let kind = match at_path.map(|stat| stat.kind) {
                    Some(FileKind::File) => Kind::File,
                    Some(FileKind::Symlink) => Kind::Symlink,
                    _ => return Ok(None),
                };
                let done = read(&*self.disk, &path, kind, &self.keys)
                    .ok()
                    .filter(|read| read.content.id == new.content);
                if let Some(read) = done {
                    let entry = Entry {
                        node: intent.node,
                        kind,
                        identity: read.identity,
                        mode: at_path.map_or(0o644, |stat| stat.mode),
                        row: Some(new.row),
                        content: Some(new.content),
                        recorded_ns: now.ns,
                    };
                    index.put(&intent.parent, &intent.name, &entry)?;
                    index.remove_transfer(&new.content)?;
                }
                match (intent.old, at_temp) {
                    // What was put aside is looked at like any other; if it is no side of the
                    // intent it is an edit and taken in as one.
                    (Some(old), Some(_)) => Ok(Some(self.aside(intent, &temp, old, now))),
                    (None, Some(_)) if index.transfer_of(&new.content)?.is_none() => {
                        let _ = self.disk.unlink(&temp);
                        Ok(None)
                    }
                    _ => Ok(None),
                }
            }
        }
    }

    /// Records a file as applied if its path holds what the intent was to put there.
    fn adopt_put(
        &self,
        index: &mut pacsync_store::index::Index<'_>,
        intent: &Intent,
        path: &RelPath,
        new: &New,
        now: Now,
    ) -> Result<(), StoreError> {
        let Ok(Some(stat)) = self.disk.stat(path) else {
            return Ok(());
        };
        let kind = match stat.kind {
            FileKind::File => Kind::File,
            FileKind::Symlink => Kind::Symlink,
            FileKind::Dir | FileKind::Other => return Ok(()),
        };
        let Ok(read) = read(&*self.disk, path, kind, &self.keys) else {
            return Ok(());
        };
        if read.content.id == new.content {
            let entry = Entry {
                node: intent.node,
                kind,
                identity: read.identity,
                mode: stat.mode,
                row: Some(new.row),
                content: Some(new.content),
                recorded_ns: now.ns,
            };
            index.put(&intent.parent, &intent.name, &entry)?;
        }
        Ok(())
    }

    fn aside(&self, intent: &Intent, temp: &RelPath, old: Old, now: Now) -> Displaced {
        Displaced {
            temp: PathRecord::from(temp),
            node: intent.node,
            path: intent.path.clone(),
            old,
            due_ms: now.ms + DISPLACED_MS,
            dir: (temp.parent() == intent.path.path().parent()).then_some(intent.parent),
        }
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
                        let target = path.parent().unwrap_or_default();
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

    /// Transfers that nobody waits for any more are dropped with their temporary files.
    pub(super) fn drop_idle_transfers(&mut self, store: &mut Store) -> Result<(), StoreError> {
        if self.transfers.is_empty() || !self.ready.is_empty() || self.has_node_faults() {
            return Ok(());
        }
        let idle: Vec<_> = self
            .transfers
            .contents()
            .filter(|content| !self.waiting.contains_key(*content))
            .copied()
            .collect();
        if idle.is_empty() || !self.stalled.is_empty() {
            return Ok(());
        }
        let txn = store.begin()?;
        for content in idle {
            if let Some(transfer) = self.transfers.remove(&content) {
                let _ = self.disk.unlink(&transfer.path);
            }
            txn.index(self.no)?.remove_transfer(&content)?;
        }
        txn.commit()?;
        // Others may have waited for a place among the transfers.
        let waiting: Vec<NodeId> = self.waiting_of.keys().copied().collect();
        self.mark(waiting);
        Ok(())
    }

    /// Looks again at what applies put aside: an edit is taken in, the rest goes to history.
    pub(super) fn displaced_step(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        self.drop_idle_transfers(cx.store)?;
        let due: Vec<u64> = self
            .displaced
            .iter()
            .filter(|(_, record)| record.due_ms <= cx.now.ms)
            .map(|(number, _)| *number)
            .take(256)
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let mut settled = vec![];
        let mut edits = vec![];
        for number in due {
            let Some(mut record) = self.displaced.get(&number).cloned() else {
                continue;
            };
            record.temp = PathRecord::from(&self.displaced_path(cx.store, &record)?);
            match self.keep_displaced(cx, &record) {
                Ok(edit) => {
                    edits.extend(edit.map(|read| (record.clone(), read)));
                    settled.push((number, record));
                }
                Err(StoreError::Packs(why)) => {
                    // History has no room: the file stays where it is until there is.
                    let path = record.path.path();
                    self.fault(
                        &path,
                        format!("its old version cannot be kept yet: {why}"),
                        cx.now,
                    );
                    if let Some(record) = self.displaced.get_mut(&number) {
                        record.due_ms = cx.now.ms + DISPLACED_MS;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        // Rows first: while they are not durable the file is the only copy of an edit.
        if !edits.is_empty() {
            let stamp = cx.store.clock(&self.space)? + 1;
            let txn = cx.store.begin()?;
            let mut b = Batch::open(&txn, self.no, stamp, cx.now)?;
            for (record, read) in edits {
                let node = b.tree.representative(&record.node)?;
                let past = b.tree.past_for_edit(&node, record.old.row.as_ref())?;
                if !past.is_empty() {
                    let keys = Keys {
                        content: Some(read.content.clone()),
                        ..Keys::default()
                    };
                    b.write(&Row::new(node, past, keys));
                    b.marks.push(node);
                }
            }
            let found = b.close();
            self.commit_found(found, txn, cx.rng, cx.now, progress)?;
        }
        settled.retain(
            |(number, record)| match self.disk.unlink(&record.temp.path()) {
                Err(error) if !error.is_not_found() && !error.is_not_a_directory() => {
                    // Kept and tried again: what is forgotten here would stay for ever.
                    tracing::warn!(%error, "a file that was put aside stays");
                    if let Some(record) = self.displaced.get_mut(number) {
                        record.due_ms = cx.now.ms + DISPLACED_MS;
                    }
                    false
                }
                _ => {
                    self.displaced.remove(number);
                    true
                }
            },
        );
        if self.displaced.is_empty() {
            let _ = self.disk.rmdir(&trash_dir());
        }
        let txn = cx.store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            for (number, _) in &settled {
                index.remove_note(NoteKind::Displaced, *number)?;
            }
        }
        txn.commit_lazily()?;
        Ok(())
    }

    /// Where a file that was put aside is now.
    fn displaced_path(&self, store: &Store, record: &Displaced) -> Result<RelPath, StoreError> {
        let temp = record.temp.path();
        let Some(dir) = record.dir else {
            return Ok(temp);
        };
        let tx = store.read()?;
        let index = pacsync_store::index::IndexReader::new(&tx, self.no);
        let moved = super::content::path_in(&index, &dir)?;
        let name = temp.name().unwrap_or_default();
        Ok(moved.and_then(|dir| dir.join(name).ok()).unwrap_or(temp))
    }

    /// Puts what stands aside into the packs unless it is readable elsewhere on this device.
    /// Returns it if it is not what the index expected: an edit that nobody had seen.
    fn keep_displaced(
        &mut self,
        cx: &mut Context<'_>,
        record: &Displaced,
    ) -> Result<Option<super::content::Read>, StoreError> {
        let temp = record.temp.path();
        let kind = match self.disk.stat(&temp) {
            Ok(Some(stat)) if stat.kind == FileKind::File => Kind::File,
            Ok(Some(stat)) if stat.kind == FileKind::Symlink => Kind::Symlink,
            Ok(Some(stat)) if stat.kind == FileKind::Dir => {
                // Never a directory's end: it goes back to where it was, to be looked at.
                let path = record.path.path();
                let _ = self.disk.rename_noreplace(&temp, &path);
                self.queue.deep(path, cx.now.ms);
                return Err(StoreError::Packs("a directory was put aside".into()));
            }
            Ok(_) => return Ok(None),
            Err(error) => return Err(StoreError::Packs(error.to_string())),
        };
        let Ok(found) = read(&*self.disk, &temp, kind, &self.keys) else {
            return Err(StoreError::Packs("it cannot be read".into()));
        };
        let is_edit = record.old.content != Some(found.content.id);
        if found.content.inline.is_none() && kind == Kind::File {
            self.pack_file(cx, &temp, &found)?;
        }
        Ok(is_edit.then_some(found))
    }

    fn pack_file(
        &mut self,
        cx: &mut Context<'_>,
        path: &RelPath,
        found: &super::content::Read,
    ) -> Result<(), StoreError> {
        let packs = |e: pacsync_store::content::packs::PackError| StoreError::Packs(e.to_string());
        let content = found.content.id;
        let mut placed = vec![];
        {
            let tx = cx.store.read()?;
            let tables = pacsync_store::index::IndexReader::new(&tx, self.no).contents()?;
            if !tables.sources(&content)?.is_empty() {
                return Ok(());
            }
            let file = self
                .disk
                .open(path)
                .map_err(|e| StoreError::Packs(e.to_string()))?;
            let mut read_object = |object: ObjectId, offset: u64, len: u64| {
                if tables.packed(object.as_bytes())?.is_some() {
                    return Ok(());
                }
                let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
                file.read_at(offset, &mut bytes)
                    .map_err(|e| StoreError::Packs(e.to_string()))?;
                placed.push((
                    object,
                    cx.packs.put(&self.space, &object, &bytes).map_err(packs)?,
                ));
                Ok::<(), StoreError>(())
            };
            match &found.manifest {
                None if found.content.size <= SMALL_MAX => {
                    read_object(ObjectId::Content(content), 0, found.content.size)?;
                }
                None => {}
                Some(tree) => {
                    let lookup = |id: &_| tree.object(id).map(<[u8]>::to_vec);
                    let walk = Walk::new(&self.keys, &tree.top.id, &tree.top.bytes, lookup)
                        .map_err(|e| StoreError::Misuse(e.to_string()))?;
                    for piece in walk {
                        let piece = piece.map_err(|e| StoreError::Misuse(e.to_string()))?;
                        if let PieceSource::Chunk(id) = piece.source {
                            read_object(ObjectId::Chunk(id), piece.offset, piece.len)?;
                        }
                    }
                }
            }
        }
        let end = cx.packs.sync().map_err(packs)?;
        let txn = cx.store.begin()?;
        txn.set_pack_end(end)?;
        {
            let mut index = txn.index(self.no)?;
            for (object, at) in placed {
                index.put_packed(object.as_bytes(), &at)?;
            }
            if let Some(tree) = &found.manifest {
                super::content::keep_manifest(&mut index, &self.keys, &content, tree)?;
            }
        }
        txn.commit()?;
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

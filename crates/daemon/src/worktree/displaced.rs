//! What applies put aside: looked at again once nobody can still be writing to it, taken in if it
//! is an edit that was not seen, kept in history, and then removed.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::content::{ObjectId, PieceSource, SMALL_MAX, Walk};
use pacsync_protocol::crypto::{Entropy, random};
use pacsync_protocol::row::{Keys, Kind, Name, Row};
use pacsync_protocol::{ContentId, NodeId, RowId};
use pacsync_store::index::{ContentTables, FileIdentity, NoteKind};
use pacsync_store::{Store, StoreError};

use super::apply::{SYNC_EACH_MAX, trash_dir};
use super::batch::Batch;
use super::content::{Read, read};
use super::notes::{Displaced, PathRecord};
use super::texts::{Keeper, kept_before};
use super::{Context, DISPLACED_MS, Progress, RETRY_MS, Worktree, file_identity};
use crate::disk::{DiskError, FileKind, RelPath};

/// Names that are tried for a directory that was put aside.
const PLACES_MAX: usize = 100;

/// What became of a file that was put aside.
enum Kept {
    /// It is none any more.
    Nothing,
    /// The version that the index expected, as it was when it was read.
    Version(FileIdentity),
    /// Something else: nobody had seen it.
    Edit(Kind, Box<Read>),
}

/// Records of what was put aside, by number; knows their files by name wherever their directory
/// is moved to.
#[derive(Debug, Default)]
pub(super) struct Asides {
    records: BTreeMap<u64, Displaced>,
    names: BTreeMap<Vec<u8>, u64>,
    /// Those that were not where they were put: their directory was moved, or is gone.
    lost: BTreeSet<u64>,
}

impl Asides {
    pub(super) fn insert(&mut self, number: u64, record: Displaced) {
        let temp = record.temp.path();
        self.names
            .extend(temp.name().map(|name| (name.to_vec(), number)));
        self.records.insert(number, record);
    }

    fn remove(&mut self, number: u64) {
        self.lost.remove(&number);
        if let Some(record) = self.records.remove(&number)
            && let Some(name) = record.temp.path().name()
        {
            self.names.remove(name);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn has_content(&self, content: &ContentId) -> bool {
        let mut records = self.records.values();
        records.any(|record| record.old.content.as_ref() == Some(content))
    }

    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        self.names.contains_key(name)
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.records.values().map(|record| record.due_ms).min()
    }

    /// A scan met a file of this name: where it is now.
    pub(super) fn met(&mut self, name: &[u8], path: &RelPath, dir: NodeId) {
        if let Some(number) = self.names.get(name)
            && let Some(record) = self.records.get_mut(number)
            && record.temp.path() != *path
        {
            record.temp = PathRecord::from(path);
            record.dir = Some(dir);
        }
    }

    /// Those whose time has come, some of them.
    fn due(&self, now_ms: u64) -> Vec<(u64, Displaced)> {
        self.records
            .iter()
            .filter(|(_, record)| record.due_ms <= now_ms)
            .take(256)
            .map(|(number, record)| (*number, record.clone()))
            .collect()
    }

    fn put_off(&mut self, number: u64, due_ms: u64) {
        if let Some(record) = self.records.get_mut(&number) {
            record.due_ms = due_ms;
        }
    }
}

impl Worktree {
    /// Whether a content was put aside and is about to be kept.
    pub fn is_put_aside(&self, content: &ContentId) -> bool {
        self.displaced.has_content(content)
    }

    /// Looks again at what applies put aside: an edit is taken in, the rest goes to history.
    pub(super) fn displaced_step(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        self.drop_idle_transfers(cx.store, cx.now.ms)?;
        let due = self.displaced.due(cx.now.ms);
        if due.is_empty() {
            return Ok(());
        }
        let mut settled = vec![];
        let mut edits = vec![];
        for (number, mut record) in due {
            record.temp = PathRecord::from(&self.displaced_path(cx.store, &record)?);
            if matches!(self.disk.stat(&record.temp.path()), Ok(None)) {
                if self.displaced.lost.insert(number) {
                    // A look at everything meets it if it is still beneath the root.
                    self.queue.deep(RelPath::root(), cx.now.ms);
                    self.displaced.put_off(number, cx.now.ms + DISPLACED_MS);
                    continue;
                }
                if !self.faults.is_empty() || !self.walks.is_empty() {
                    // It may be in what cannot be read yet, or is not looked at yet.
                    self.displaced.put_off(number, cx.now.ms + RETRY_MS);
                    continue;
                }
            }
            match self.keep_displaced(cx, &record) {
                Ok(Kept::Edit(kind, read)) => {
                    let identity = read.identity;
                    edits.push((record.clone(), kind, *read));
                    settled.push((number, record, Some(identity)));
                }
                Ok(Kept::Version(identity)) => {
                    if let Some(content) = &record.old.content {
                        self.now_mergeable(content);
                    }
                    settled.push((number, record, Some(identity)));
                }
                Ok(Kept::Nothing) => settled.push((number, record, None)),
                Err(StoreError::Packs(why)) => {
                    // History has no room: the file stays where it is until there is.
                    let path = record.path.path();
                    self.fault(
                        &path,
                        format!("its old version cannot be kept yet: {why}"),
                        cx.now,
                    );
                    self.displaced.put_off(number, cx.now.ms + DISPLACED_MS);
                }
                Err(error) => return Err(error),
            }
        }
        // Rows first: while they are not durable the file is the only copy of an edit.
        if !edits.is_empty() {
            let stamp = cx.store.clock(&self.space)? + 1;
            let txn = cx.store.begin()?;
            let mut b = Batch::open(&txn, self.no, stamp, cx.now)?;
            for (record, kind, read) in edits {
                self.take_in(&mut b, cx.rng, &record, kind, &read)?;
            }
            let found = b.close();
            self.commit_found(found, txn, cx.packs, cx.rng, cx.now, progress)?;
        }
        let mut gone = vec![];
        for (number, record, identity) in settled {
            if identity.is_some_and(|identity| self.has_changed(&record, identity)) {
                // Somebody still writes to it.
                self.displaced.put_off(number, cx.now.ms + DISPLACED_MS);
                continue;
            }
            match self.disk.unlink(&record.temp.path()) {
                Err(error) if error.is_not_found() && self.displaced.lost.insert(number) => {
                    // Its directory was moved in this moment.
                    self.queue.deep(RelPath::root(), cx.now.ms);
                    self.displaced.put_off(number, cx.now.ms + DISPLACED_MS);
                }
                Err(error) if !error.is_not_found() && !error.is_not_a_directory() => {
                    // Kept and tried again: what is forgotten here would stay for ever.
                    tracing::warn!(%error, "a file that was put aside stays");
                    self.displaced.put_off(number, cx.now.ms + DISPLACED_MS);
                }
                _ => gone.push((number, record)),
            }
        }
        if let Err(error) = self.sync_dirs_of(&gone) {
            // The names may come back with a power cut: their records stay until they cannot.
            tracing::warn!(%error, "removed files are not durably gone yet");
            for (number, _) in gone {
                self.displaced.put_off(number, cx.now.ms + DISPLACED_MS);
            }
            return Ok(());
        }
        for (number, _) in &gone {
            self.displaced.remove(*number);
        }
        if self.displaced.is_empty() {
            let _ = self.disk.rmdir(&trash_dir());
        }
        let txn = cx.store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            for (number, _) in &gone {
                index.remove_note(NoteKind::Displaced, *number)?;
            }
        }
        txn.commit_lazily()?;
        Ok(())
    }

    /// Writes what nobody had seen: a version of the node that it was put aside for, or, if it is of
    /// another kind, a node of its own at the same place.
    fn take_in(
        &self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        record: &Displaced,
        kind: Kind,
        read: &Read,
    ) -> Result<(), StoreError> {
        let node = b.tree.representative(&record.node)?;
        let state = b.tree.node(&node)?;
        let content = Some(read.content.clone());
        if let Some(state) = state
            && state.kind != kind
        {
            let last = record.path.path();
            let name = state.name.or_else(|| Name::new(last.name()?).ok());
            let Some(name) = name else { return Ok(()) };
            let mode = self.disk.stat(&record.temp.path()).ok().flatten();
            let keys = Keys {
                kind: Some(kind),
                at: Some(b.place(state.parent.unwrap_or(NodeId::ROOT), &name)),
                content,
                mode: mode
                    .filter(|_| self.probe.modes && kind != Kind::Symlink)
                    .map(|stat| stat.mode),
                ..Keys::default()
            };
            let new = NodeId::from_bytes(random(rng));
            b.write(&Row::new(new, vec![], keys));
            b.marks.push(new);
            return Ok(());
        }
        let past = b.tree.past_for_edit(&node, record.old.row.as_ref())?;
        if !past.is_empty() {
            let keys = Keys {
                content,
                ..Keys::default()
            };
            b.write(&Row::new(node, past, keys));
            b.marks.push(node);
        }
        Ok(())
    }

    fn has_changed(&self, record: &Displaced, identity: FileIdentity) -> bool {
        let now = self.disk.stat(&record.temp.path()).ok().flatten();
        now.is_some_and(|stat| file_identity(&stat.identity) != identity)
    }

    /// Makes it durable that files are gone.
    fn sync_dirs_of(&self, gone: &[(u64, Displaced)]) -> Result<(), DiskError> {
        let dirs: BTreeSet<RelPath> = gone
            .iter()
            .map(|(_, record)| record.temp.path().parent().unwrap_or_default())
            .collect();
        if dirs.len() > SYNC_EACH_MAX {
            return self.disk.sync_all();
        }
        for dir in dirs {
            match self.disk.sync_dir(&dir) {
                Err(error) if !error.is_not_found() && !error.is_not_a_directory() => {
                    return Err(error);
                }
                _ => {}
            }
        }
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
    ) -> Result<Kept, StoreError> {
        let temp = record.temp.path();
        let kind = match self.disk.stat(&temp) {
            Ok(Some(stat)) if stat.kind == FileKind::File => Kind::File,
            Ok(Some(stat)) if stat.kind == FileKind::Symlink => Kind::Symlink,
            Ok(Some(stat)) if stat.kind == FileKind::Dir => {
                return self.put_back(cx, &temp, &record.path.path());
            }
            Ok(_) => return Ok(Kept::Nothing),
            Err(error) => return Err(StoreError::Packs(error.to_string())),
        };
        let Ok(mut found) = read(&*self.disk, &temp, kind, &self.keys) else {
            return Err(StoreError::Packs("it cannot be read".into()));
        };
        let found_id = Some(found.content.id);
        let is_edit = record.old.content != found_id && record.new != found_id;
        if found.content.inline.is_none() && kind == Kind::File {
            self.pack_file(cx, &temp, &found, record.old.row.as_ref())?;
        }
        // Many of them may wait for their rows.
        found.text = None;
        Ok(if is_edit {
            Kept::Edit(kind, Box::new(found))
        } else {
            Kept::Version(found.identity)
        })
    }

    /// A directory is never removed as what a file left: it goes back to where it was, or beside
    /// what is there now.
    fn put_back(
        &mut self,
        cx: &Context<'_>,
        temp: &RelPath,
        path: &RelPath,
    ) -> Result<Kept, StoreError> {
        let name = path.name().unwrap_or_default();
        // Its directory may be gone, or have another place.
        let above = path.parent().unwrap_or_default();
        let beside = temp.parent().filter(|dir| *dir != trash_dir());
        let dir = match self.disk.stat(&above) {
            Ok(Some(stat)) if stat.kind == FileKind::Dir => above,
            _ => beside.unwrap_or_default(),
        };
        let mut last = None;
        for n in 0..PLACES_MAX {
            let mut name = name.to_vec();
            if n > 0 {
                name.extend(format!(".kept-{n}").into_bytes());
            }
            let Ok(place) = dir.join(&name) else { continue };
            match self.disk.rename_noreplace(temp, &place) {
                Ok(()) => {
                    self.queue.deep(place, cx.now.ms);
                    return Ok(Kept::Nothing);
                }
                Err(error) => last = Some(error),
            }
        }
        let why = last.map(|error| error.to_string()).unwrap_or_default();
        Err(StoreError::Packs(why))
    }

    pub(super) fn pack_file(
        &mut self,
        cx: &mut Context<'_>,
        path: &RelPath,
        found: &Read,
        row: Option<&RowId>,
    ) -> Result<(), StoreError> {
        let packs = |e: pacsync_store::content::packs::PackError| StoreError::Packs(e.to_string());
        let content = found.content.id;
        if let Some(text) = &found.text {
            self.pack_text(cx, found, text, row)?;
            self.has_come(&content);
            return Ok(());
        }
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
                if !self.keys.names(&object, &bytes) {
                    return Err(StoreError::Packs("it changes while it is kept".into()));
                }
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
        self.has_come(&content);
        if self.transfers.get(&content).is_some() {
            self.advance_transfer(cx, &content)?;
        }
        Ok(())
    }

    /// A text is kept whole, against the version before it, and also where another file has it now:
    /// that may be edited at any time.
    fn pack_text(
        &mut self,
        cx: &mut Context<'_>,
        found: &super::content::Read,
        text: &[u8],
        row: Option<&RowId>,
    ) -> Result<(), StoreError> {
        let packs = |e: pacsync_store::content::packs::PackError| StoreError::Packs(e.to_string());
        let placed = {
            let tx = cx.store.read()?;
            let tables = pacsync_store::index::IndexReader::new(&tx, self.no).contents()?;
            let tree = pacsync_store::tree::TreeReader::open(&tx, self.no)?;
            let before = kept_before(&tree, &tables, row)?;
            let mut keeper = Keeper::new(self.space, &self.keys, &tables, cx.packs);
            let kept = keeper.keep(&found.content.id, text, before.as_ref());
            kept.and_then(|()| keeper.finish()).map_err(packs)?
        };
        let Some((placed, end)) = placed else {
            return Ok(());
        };
        let txn = cx.store.begin()?;
        txn.set_pack_end(end)?;
        {
            let mut index = txn.index(self.no)?;
            for (object, at) in placed {
                index.put_packed(object.as_bytes(), &at)?;
            }
            if let Some(tree) = &found.manifest {
                let content = found.content.id;
                super::content::keep_manifest(&mut index, &self.keys, &content, tree)?;
            }
        }
        txn.commit()?;
        Ok(())
    }
}

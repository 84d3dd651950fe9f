//! Versions that no path shows are kept in the packs: the other contents of a conflict, so that
//! the only copy of none is on the device that wrote it, and what a user settles a conflict with.
//!
//! Small ones travel with everything else that is small. Big ones come chunk by chunk, after all
//! that is to be rendered, and count only when all of their bytes together have the content's
//! name: manifests are a peer's word. They hold nothing up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pacsync_protocol::content::{
    ContentHasher, IdKeys, ManifestTree, ObjectId, Piece, PieceSource, SMALL_MAX, Walk,
};
use pacsync_protocol::row::{Content, INLINE_MAX, Kind};
use pacsync_protocol::{ContentId, NodeId};
use pacsync_store::content::packs::{PackRef, PackStore};
use pacsync_store::content::scan_content;
use pacsync_store::index::{ContentTables, IndexReader};
use pacsync_store::tree::{Conflict, NodeState, TreeReader};
use pacsync_store::{Store, StoreError};

use super::batch::Batch;
use super::content::{Contents, keep_manifest, path_in};
use super::lacks::Replica;
use super::settle::path_of;
use super::transfer::Fetch;
use super::{Context, VERIFY_MS, Waiting, Worktree};

/// Most big contents that are under way to the packs.
const FETCHES_MAX: usize = 256;
/// Most of them together with those that no peer has.
const FETCHES_KNOWN_MAX: usize = 4_096;
/// Bytes that one step reads.
const STEP_BYTES: u64 = 32 << 20;
/// How long a content is left alone whose bytes were not what its manifests promised.
const UNTRUE_MS: u64 = 60_000;
/// What holes consist of.
static ZEROS: [u8; 65_536] = [0; 65_536];
/// Of the free space, the part that what nobody has asked for may take: one in this many.
const FREE_PART: u64 = 10;

/// What is to be done about a big content besides asking peers.
enum Work {
    /// Its manifests may be here already.
    Begin,
    /// Which of its chunks are here?
    Sort {
        rest: VecDeque<Piece>,
        todo: VecDeque<Piece>,
    },
    /// All chunks are here: are they what the content's name says?
    Check(Option<(VecDeque<Piece>, ContentHasher)>),
}

/// Big contents on their way to the packs.
#[derive(Default)]
pub(super) struct Kept {
    fetches: BTreeMap<ContentId, Fetch>,
    work: BTreeMap<ContentId, Work>,
    /// Nodes with versions that found no place among the fetches.
    left_out: BTreeSet<NodeId>,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.fetches.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        let active = self.fetches.values().filter(|fetch| fetch.is_active());
        active.count() >= FETCHES_MAX || self.fetches.len() >= FETCHES_KNOWN_MAX
    }

    /// Nodes with versions that found no place.
    pub(super) fn take_left_out(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.left_out)
    }

    fn begin(&mut self, content: &Content) {
        self.fetches.insert(content.id, Fetch::new(content.size));
        self.work.insert(content.id, Work::Begin);
    }

    pub(super) fn remove(&mut self, content: &ContentId) {
        self.fetches.remove(content);
        self.work.remove(content);
    }

    pub(super) fn fetch_mut(&mut self, content: &ContentId) -> Option<&mut Fetch> {
        self.fetches.get_mut(content)
    }

    pub(super) fn fetches(&self) -> impl Iterator<Item = &Fetch> {
        self.fetches.values()
    }

    pub(super) fn fetches_mut(&mut self) -> impl Iterator<Item = (&ContentId, &mut Fetch)> {
        self.fetches.iter_mut()
    }

    /// The manifests are here: the chunks are next.
    pub(super) fn sort(&mut self, content: &ContentId, pieces: Vec<Piece>) {
        if self.fetches.contains_key(content) {
            let work = Work::Sort {
                rest: pieces.into(),
                todo: VecDeque::new(),
            };
            self.work.insert(*content, work);
        }
    }

    /// The chunks are here: the whole is next.
    pub(super) fn check(&mut self, content: &ContentId) {
        self.work.insert(*content, Work::Check(None));
    }

    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    fn bytes_to_come(&self) -> u64 {
        self.fetches
            .values()
            .fold(0, |sum, fetch| sum.saturating_add(fetch.rest()))
    }
}

/// What became of the wish for a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wished {
    /// It is on this device.
    Here,
    /// Peers are asked for it.
    Asked,
    /// There is no room for it.
    NoRoom,
}

impl Worktree {
    /// The other contents of a conflict are kept here, too: losing values, and what is hidden by
    /// something of another kind.
    pub(super) fn want_losers(
        &mut self,
        b: &Batch<'_>,
        packs: &PackStore,
        state: &NodeState,
    ) -> Result<(), StoreError> {
        let hidden = !state.shown && !state.dead && state.kind == Kind::File;
        let hidden = state.content.as_ref().filter(|_| hidden);
        let hidden = hidden.map(|shown| &shown.content);
        if state.kind == Kind::File {
            let losers = state.losers.iter().map(|(_, content)| content);
            for content in losers.chain(hidden) {
                self.want_kept(b, packs, &state.id, content)?;
            }
        }
        Ok(())
    }

    /// True if a content of a node's that the disk does not show is on this device; else it is
    /// fetched if there is room for it.
    pub(super) fn want_kept(
        &mut self,
        b: &Batch<'_>,
        packs: &PackStore,
        node: &NodeId,
        content: &Content,
    ) -> Result<bool, StoreError> {
        if self.is_fetching(&content.id) {
            return Ok(false);
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
        if is_kept(&contents, content)? {
            return Ok(true);
        }
        if content.size > SMALL_MAX && self.transfers.kept.is_full() {
            self.transfers.kept.left_out.insert(*node);
        } else if content.size <= SMALL_MAX || self.has_room_unasked(content) {
            self.begin_keeping(content);
        }
        Ok(false)
    }

    /// What nobody asked for takes a small part of what is free, all of it together.
    fn has_room_unasked(&self, content: &Content) -> bool {
        let wanted = self
            .transfers
            .kept
            .bytes_to_come()
            .saturating_add(content.size);
        self.disk
            .free_space()
            .is_ok_and(|free| wanted <= free / FREE_PART)
    }

    pub(super) fn begin_keeping(&mut self, content: &Content) {
        if content.size > SMALL_MAX {
            self.transfers.kept.begin(content);
        } else {
            let waiting = self.waiting.entry(content.id).or_insert_with(|| Waiting {
                size: content.size,
                nodes: BTreeSet::new(),
                for_packs: true,
            });
            waiting.for_packs = true;
        }
        self.transfers.more_is_wanted();
    }

    /// Whether a content is on its way, for whatever reason.
    pub fn is_fetching(&self, content: &ContentId) -> bool {
        self.waiting.contains_key(content)
            || self.transfers.get(content).is_some()
            || self.transfers.kept.fetches.contains_key(content)
    }

    /// Whether a peer has lately said that it lacks a content.
    pub fn is_lacked_by(&self, peer: &Replica, content: &ContentId) -> bool {
        self.transfers.lacks(peer, content)
    }

    /// What was looked for here is here by another way.
    pub(super) fn has_come(&mut self, content: &ContentId) {
        self.transfers.kept.remove(content);
        if let Some(waiting) = self.waiting.remove(content) {
            self.release(waiting.nodes);
        }
    }

    /// Asks for a content that the user wants, whatever its size.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn wish(
        &mut self,
        store: &Store,
        packs: &PackStore,
        content: &Content,
    ) -> Result<Wished, StoreError> {
        if self.can_read(store, packs, content)? {
            return Ok(Wished::Here);
        }
        if !self.is_fetching(&content.id) {
            if self.disk.free_space().is_ok_and(|free| free < content.size) {
                return Ok(Wished::NoRoom);
            }
            self.begin_keeping(content);
        }
        Ok(Wished::Asked)
    }

    /// The bytes of a content of at most `max` bytes; `None` if it is longer or not here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read_bytes(
        &self,
        store: &Store,
        packs: &PackStore,
        content: &Content,
        max: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.with_contents(store, packs, |contents| contents.read_bytes(content, max))
    }

    pub(super) fn with_contents<T>(
        &self,
        store: &Store,
        packs: &PackStore,
        look: impl FnOnce(&Contents<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let tx = store.read()?;
        let index = IndexReader::new(&tx, self.no);
        let tables = index.contents()?;
        let path_of = |node: &NodeId| path_in(&index, node);
        look(&Contents {
            disk: &*self.disk,
            keys: &self.keys,
            packs,
            tables: &tables,
            path_of: &path_of,
        })
    }

    /// Puts bytes into the packs, so that a row can name them as its content.
    ///
    /// # Errors
    /// [`StoreError::Packs`] if they cannot be written.
    pub fn pack_bytes(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Result<Content, StoreError> {
        let size = bytes.len() as u64;
        let mut content = Content {
            id: self.keys.content_id(bytes),
            size,
            mtime_ns: cx.now.ns,
            inline: None,
        };
        if bytes.len() <= INLINE_MAX {
            content.inline = Some(bytes.to_vec());
            return Ok(content);
        }
        let failed = |why: String| StoreError::Packs(why);
        let (objects, manifest) = objects_of(&self.keys, &content.id, bytes)?;
        let mut placed = vec![];
        for (object, run) in objects {
            let put = cx.packs.put(&self.space, &object, run);
            placed.push((object, put.map_err(|e| failed(e.to_string()))?));
        }
        let end = cx.packs.sync().map_err(|e| failed(e.to_string()))?;
        let txn = cx.store.begin()?;
        txn.set_pack_end(end)?;
        {
            let mut index = txn.index(self.no)?;
            for (object, at) in placed {
                index.put_packed(object.as_bytes(), &at)?;
            }
            if let Some(tree) = &manifest {
                keep_manifest(&mut index, &self.keys, &content.id, tree)?;
            }
        }
        txn.commit()?;
        Ok(content)
    }

    /// Indexes what was put into the packs.
    pub(super) fn index_packed(
        &mut self,
        cx: &mut Context<'_>,
        placed: Vec<(ObjectId, PackRef)>,
    ) -> Result<(), StoreError> {
        if placed.is_empty() {
            return Ok(());
        }
        let end = match cx.packs.sync() {
            Ok(end) => end,
            Err(error) => {
                // As if they had not come: the check of the whole finds it.
                tracing::warn!(%error, "chunks were not kept");
                return Ok(());
            }
        };
        let txn = cx.store.begin()?;
        txn.set_pack_end(end)?;
        {
            let mut index = txn.index(self.no)?;
            for (object, at) in placed {
                index.put_packed(object.as_bytes(), &at)?;
            }
        }
        txn.commit_lazily()?;
        Ok(())
    }

    /// From time to time all conflicts are looked at: what was not kept for want of room, or was
    /// under way when the device stopped.
    pub(super) fn look_at_conflicts(&mut self, cx: &Context<'_>) -> Result<(), StoreError> {
        if self.losers_at > cx.now.ms {
            return Ok(());
        }
        self.losers_at = cx.now.ms + VERIFY_MS;
        let tx = cx.store.read()?;
        let tree = TreeReader::open(&tx, self.no)?;
        let mut nodes = vec![];
        for conflict in tree.conflicts()? {
            match conflict? {
                Conflict::Values(node) => nodes.push(node),
                Conflict::Path { parent, name } => nodes.extend(tree.all_at(&parent, &name)?),
            }
        }
        self.mark(nodes);
        Ok(())
    }

    /// Does a bounded piece of the work on what goes to the packs.
    pub(super) fn keep_step(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let Some((content, work)) = self.transfers.kept.work.pop_first() else {
            return Ok(());
        };
        match work {
            Work::Begin => self.advance_transfer(cx, &content),
            Work::Sort { rest, todo } => self.sort_kept(cx, content, rest, todo),
            Work::Check(begun) => self.check_kept(cx, content, begun),
        }
    }

    /// Packs the chunks that other files here have; what is left is asked of peers.
    fn sort_kept(
        &mut self,
        cx: &mut Context<'_>,
        content: ContentId,
        mut rest: VecDeque<Piece>,
        mut todo: VecDeque<Piece>,
    ) -> Result<(), StoreError> {
        let mut placed = vec![];
        let mut seen = BTreeSet::new();
        {
            let tx = cx.store.read()?;
            let index = IndexReader::new(&tx, self.no);
            let tables = index.contents()?;
            let path_of = |node: &NodeId| path_in(&index, node);
            let mut bytes_read = 0;
            while bytes_read < STEP_BYTES
                && let Some(piece) = rest.pop_front()
            {
                let PieceSource::Chunk(id) = piece.source else {
                    continue;
                };
                let object = ObjectId::Chunk(id);
                if tables.packed(object.as_bytes())?.is_some() || seen.contains(&id) {
                    continue;
                }
                let found = {
                    let contents = Contents {
                        disk: &*self.disk,
                        keys: &self.keys,
                        packs: cx.packs,
                        tables: &tables,
                        path_of: &path_of,
                    };
                    let len = u32::try_from(piece.len).unwrap_or(u32::MAX);
                    contents.chunk(&id, len, None)?
                };
                let Some(bytes) = found else {
                    todo.push_back(piece);
                    continue;
                };
                bytes_read += piece.len;
                seen.insert(id);
                match cx.packs.put(&self.space, &object, &bytes) {
                    Ok(at) => placed.push((object, at)),
                    Err(error) => {
                        tracing::warn!(%error, "a version is not kept");
                        self.transfers.kept.remove(&content);
                        break;
                    }
                }
            }
        }
        self.index_packed(cx, placed)?;
        let kept = &mut self.transfers.kept;
        let Some(fetch) = kept.fetches.get_mut(&content) else {
            return Ok(());
        };
        if !rest.is_empty() {
            kept.work.insert(content, Work::Sort { rest, todo });
        } else if todo.is_empty() {
            fetch.lacks(todo);
            kept.check(&content);
        } else {
            fetch.lacks(todo);
            self.transfers.more_is_wanted();
        }
        Ok(())
    }

    /// Hashes a content as a whole, part by part.
    fn check_kept(
        &mut self,
        cx: &mut Context<'_>,
        content: ContentId,
        begun: Option<(VecDeque<Piece>, ContentHasher)>,
    ) -> Result<(), StoreError> {
        if !self.transfers.kept.fetches.contains_key(&content) {
            return Ok(());
        }
        let checked = self.with_contents(cx.store, cx.packs, |contents| {
            let (mut rest, mut hasher) = match begun {
                Some(begun) => begun,
                None => match pieces_of(contents, &content)? {
                    Some(pieces) => (pieces.into(), self.keys.content_hasher()),
                    None => return Ok(Checked::Untrue),
                },
            };
            let mut bytes_read = 0;
            while bytes_read < STEP_BYTES
                && let Some(mut piece) = rest.pop_front()
            {
                match piece.source {
                    PieceSource::Chunk(id) => match contents.packed(&ObjectId::Chunk(id))? {
                        Some(bytes) => hasher.update(&bytes),
                        None => return Ok(Checked::Untrue),
                    },
                    PieceSource::Hole => {
                        let now = piece.len.min(ZEROS.len() as u64);
                        let run = usize::try_from(now).unwrap_or_default();
                        hasher.update(ZEROS.get(..run).unwrap_or_default());
                        piece.len -= now;
                        bytes_read += now;
                        if piece.len > 0 {
                            rest.push_front(piece);
                        }
                        continue;
                    }
                }
                bytes_read += piece.len;
            }
            Ok(if !rest.is_empty() {
                Checked::Later(rest, hasher)
            } else if hasher.finish() == content {
                Checked::True
            } else {
                Checked::Untrue
            })
        })?;
        let kept = &mut self.transfers.kept;
        match checked {
            Checked::Later(rest, hasher) => {
                kept.work.insert(content, Work::Check(Some((rest, hasher))));
            }
            Checked::True => {
                kept.remove(&content);
                let left_out = kept.take_left_out();
                self.mark(left_out);
                self.now_mergeable(&content);
            }
            Checked::Untrue => {
                tracing::warn!(%content, "what came is not what its manifest promised");
                if let Some(fetch) = kept.fetches.get_mut(&content) {
                    fetch.begin_again(cx.now.ms + UNTRUE_MS);
                }
                self.transfers.disbelieve(&content, cx.now.ms);
                let txn = cx.store.begin()?;
                txn.index(self.no)?.forget_manifest_of(&content)?;
                txn.commit_lazily()?;
            }
        }
        Ok(())
    }
}

/// What is to be put into the packs, and the manifest that is to be kept beside it.
type Objects<'a> = (Vec<(ObjectId, &'a [u8])>, Option<ManifestTree>);

/// What the packs hold of a content: itself, or the chunks of one that is big and its manifest.
pub(super) fn objects_of<'a>(
    keys: &IdKeys,
    content: &ContentId,
    bytes: &'a [u8],
) -> Result<Objects<'a>, StoreError> {
    let misuse = |why: String| StoreError::Misuse(why);
    let mut source = bytes;
    let scanned = scan_content(&mut source, bytes.len() as u64, keys);
    let Some(tree) = scanned.map_err(|e| misuse(e.to_string()))?.manifest else {
        return Ok((vec![(ObjectId::Content(*content), bytes)], None));
    };
    let mut objects = vec![];
    let lookup = |id: &_| tree.object(id).map(<[u8]>::to_vec);
    let walk = Walk::new(keys, &tree.top.id, &tree.top.bytes, lookup)
        .map_err(|e| misuse(e.to_string()))?;
    for piece in walk {
        let piece = piece.map_err(|e| misuse(e.to_string()))?;
        let from = usize::try_from(piece.offset).ok();
        let len = usize::try_from(piece.len).ok();
        let run = from
            .zip(len)
            .and_then(|(from, len)| bytes.get(from..)?.get(..len));
        if let (PieceSource::Chunk(id), Some(run)) = (piece.source, run) {
            objects.push((ObjectId::Chunk(id), run));
        }
    }
    Ok((objects, Some(tree)))
}

enum Checked {
    True,
    Untrue,
    Later(VecDeque<Piece>, ContentHasher),
}

/// Whether a content stands here without the help of the chunks of other files, and can be read if
/// it is small.
fn is_kept(contents: &Contents<'_>, content: &Content) -> Result<bool, StoreError> {
    if content.inline.is_some() {
        return Ok(true);
    }
    if content.size <= SMALL_MAX {
        return Ok(contents.small(&content.id)?.is_some());
    }
    if !contents.tables.sources(&content.id)?.is_empty()
        || contents.tables.packed(content.id.as_bytes())?.is_some()
    {
        return Ok(true);
    }
    let Some(pieces) = pieces_of(contents, &content.id)? else {
        return Ok(false);
    };
    for piece in pieces {
        if let PieceSource::Chunk(id) = piece.source
            && contents
                .tables
                .packed(ObjectId::Chunk(id).as_bytes())?
                .is_none()
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The pieces of a big content whose manifests are all here.
fn pieces_of(
    contents: &Contents<'_>,
    content: &ContentId,
) -> Result<Option<Vec<Piece>>, StoreError> {
    let Some(top) = contents.tables.manifest_of(content)? else {
        return Ok(None);
    };
    let Some(bytes) = contents.tables.manifest(&top)? else {
        return Ok(None);
    };
    let lookup = |id: &_| contents.tables.manifest(id).ok().flatten();
    let pieces = Walk::new(contents.keys, &top, &bytes, lookup)
        .and_then(|walk| walk.take(super::transfer::PIECES_MAX).collect());
    Ok(pieces.ok())
}

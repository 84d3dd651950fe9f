//! Content on its way here: small contents in memory, big ones straight into a temporary file
//! beside their target, chunk by chunk, so that a transfer goes on where it stopped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use pacsync_protocol::content::{
    IdKeys, Manifest, ManifestId, ObjectId, Piece, PieceSource, SMALL_MAX, Walk,
};
use pacsync_protocol::session::Wanted;
use pacsync_protocol::wire::{ChunkRef, Item, Pieces};
use pacsync_protocol::{ChunkId, ContentId, NodeId};
use pacsync_store::StoreError;
use pacsync_store::content::packs::PackRef;
use pacsync_store::index::{Index, IndexReader};

use super::content::{Contents, path_in};
use super::keep::Kept;
use super::lacks::{Lacks, Replica};
use super::{Context, Waiting, Worktree};
use crate::disk::{DiskFile, RelPath};

/// Most contents in one request.
const CONTENTS_PER_REQUEST: usize = 256;
/// Most bytes of small contents that wait for their apply.
const ARRIVED_MAX: usize = 2 << 20;
/// Most big contents that are transferred at a time.
const ACTIVE_MAX: usize = 4;
/// Most of them together with those that no peer has: each holds a file open.
const OPEN_MAX: usize = 128;
/// How long a peer is not asked for a content again whose manifests it has made up.
const DISBELIEF_MS: u64 = 600_000;
/// Bytes of chunks in one request.
const CHUNKS_BYTES: u64 = 2 << 20;
/// Most chunks in one request.
const CHUNKS_MAX: usize = 200;
/// Most pieces of one content: what is longer than some 250 GiB is cut short here, does not get
/// its name, and is not taken.
pub(super) const PIECES_MAX: usize = 2 << 20;
/// How long a content is left alone whose manifests do not fit together.
const BAD_MANIFESTS_MS: u64 = 500;
/// How long a content is left alone that came and found no room in the packs.
const NO_ROOM_MS: u64 = 60_000;

/// Something to ask a peer for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub what: Wanted,
    /// About how many bytes the answer has.
    pub bytes: u64,
}

/// What survives a restart of a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct TransferRecord {
    /// Directory of the temporary file.
    #[n(0)]
    pub(super) parent: NodeId,
    /// Its name.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(super) name: Vec<u8>,
    /// Bytes of the whole content.
    #[n(2)]
    pub(super) size: u64,
    /// Where it is to show, for people.
    #[n(3)]
    pub(super) target: Option<ByteVec>,
}

#[derive(Debug)]
enum State {
    /// The top manifest is asked for.
    Top { asked: bool },
    /// Manifests below are asked for.
    Subs {
        missing: VecDeque<ManifestId>,
        asked: BTreeSet<ManifestId>,
    },
    /// Chunks come.
    Chunks {
        todo: VecDeque<Piece>,
        asked: BTreeMap<ChunkId, Vec<Piece>>,
    },
}

/// How far a big content has come.
#[derive(Debug)]
pub(super) struct Fetch {
    size: u64,
    state: State,
    here: u64,
    not_before_ms: u64,
    /// A peer lacked it when it was asked last, and nothing has come since: others go before.
    idle: bool,
}

impl Fetch {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            state: State::Top { asked: false },
            here: 0,
            not_before_ms: 0,
            idle: false,
        }
    }

    /// False if it only waits for a peer that has it.
    pub(super) fn is_active(&self) -> bool {
        !self.idle
    }

    /// Bytes that are still to come.
    pub(super) fn rest(&self) -> u64 {
        self.size.saturating_sub(self.here)
    }

    /// What is here is known: asks for the rest.
    pub(super) fn lacks(&mut self, todo: VecDeque<Piece>) {
        let missing = todo.iter().map(|piece| piece.len).sum();
        self.here = self.size.saturating_sub(missing);
        self.state = State::Chunks {
            todo,
            asked: BTreeMap::new(),
        };
    }

    /// Begins anew with the manifests, not before a time.
    pub(super) fn begin_again(&mut self, not_before_ms: u64) {
        *self = Self::new(self.size);
        self.not_before_ms = not_before_ms;
    }

    fn is_whole(&self) -> bool {
        matches!(&self.state, State::Chunks { todo, asked } if todo.is_empty() && asked.is_empty())
    }

    /// The next thing to ask for, if there is anything; it counts as asked from now on.
    fn next_request(&mut self, content: &ContentId) -> Option<Request> {
        match &mut self.state {
            State::Top { asked } if !*asked => {
                *asked = true;
                Some(Request {
                    what: Wanted::Contents(vec![*content]),
                    bytes: 64 << 10,
                })
            }
            State::Subs { missing, asked } if !missing.is_empty() => {
                let count = missing.len().min(64);
                let ids: Vec<ManifestId> = missing.drain(..count).collect();
                asked.extend(ids.iter().copied());
                let pieces = Pieces::Manifests(ids);
                let what = Wanted::Pieces {
                    content: *content,
                    pieces,
                };
                Some(Request {
                    what,
                    bytes: 1 << 20,
                })
            }
            State::Chunks { todo, asked } => {
                let mut chunks = vec![];
                let mut bytes = 0;
                while let Some(piece) = todo.front()
                    && chunks.len() < CHUNKS_MAX
                    && (chunks.is_empty() || bytes + piece.len <= CHUNKS_BYTES)
                    && let Some(piece) = todo.pop_front()
                {
                    let PieceSource::Chunk(id) = piece.source else {
                        continue;
                    };
                    let places = asked.entry(id).or_default();
                    places.push(piece);
                    if places.len() == 1 {
                        let len = u32::try_from(piece.len).unwrap_or(u32::MAX);
                        chunks.push(ChunkRef { id, len });
                        bytes += piece.len;
                    }
                }
                if chunks.is_empty() {
                    return None;
                }
                let pieces = Pieces::Chunks(chunks);
                let what = Wanted::Pieces {
                    content: *content,
                    pieces,
                };
                Some(Request { what, bytes })
            }
            _ => None,
        }
    }
}

pub(super) struct Transfer {
    pub(super) record: TransferRecord,
    pub(super) path: RelPath,
    /// What it becomes, for people.
    pub(super) target: RelPath,
    file: Box<dyn DiskFile>,
    fetch: Fetch,
}

/// What became of a content for the packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packed {
    Kept,
    NoRoom,
}

/// Transfers of big contents and what is under way of small ones.
#[derive(Default)]
pub(super) struct Transfers {
    big: BTreeMap<ContentId, Transfer>,
    /// What goes to the packs, after all that is to be rendered.
    pub(super) kept: Kept,
    asked: BTreeSet<ContentId>,
    /// Where the last request to each peer ended, so that what is asked for already is not
    /// passed over again and again.
    cursors: BTreeMap<Replica, ContentId>,
    lacks: Lacks,
    /// Whose word the manifests of a content are.
    manifests_by: BTreeMap<ContentId, Replica>,
    /// Whose word they are not taken for, until when.
    disbelieved: BTreeMap<(ContentId, Replica), u64>,
    /// Small contents that nobody is asked for before a time.
    put_off: BTreeMap<ContentId, u64>,
    /// Counts whatever may give a peer something to be asked for.
    news: u64,
    /// Peers for which there was nothing, and as of when.
    nothing_for: BTreeMap<Replica, u64>,
}

impl Transfers {
    pub(super) fn is_empty(&self) -> bool {
        self.big.is_empty()
    }

    /// Grows whenever a peer may be asked for something else.
    pub(super) fn news(&self) -> u64 {
        self.news
    }

    /// Another content is waited for.
    pub(super) fn more_is_wanted(&mut self) {
        self.news += 1;
    }

    pub(super) fn paths(&self) -> Vec<(RelPath, u64, u64)> {
        self.big
            .values()
            .map(|t| (t.target.clone(), t.fetch.here, t.fetch.size))
            .collect()
    }

    /// What a content becomes, as of now.
    pub(super) fn aim(&mut self, content: &ContentId, target: &RelPath) {
        if let Some(transfer) = self.big.get_mut(content)
            && transfer.target != *target
        {
            transfer.target = target.clone();
        }
    }

    pub(super) fn get(&self, content: &ContentId) -> Option<&Transfer> {
        self.big.get(content)
    }

    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        self.big
            .values()
            .any(|transfer| transfer.record.name == name)
    }

    pub(super) fn is_full(&self) -> bool {
        let active = self.big.values().filter(|t| t.fetch.is_active());
        active.count() >= ACTIVE_MAX || self.big.len() >= OPEN_MAX
    }

    /// The bytes of a content are not what its manifests promise.
    pub(super) fn disbelieve(&mut self, content: &ContentId, now_ms: u64) {
        if let Some(peer) = self.manifests_by.remove(content) {
            let until = now_ms.saturating_add(DISBELIEF_MS);
            self.disbelieved.insert((*content, peer), until);
        }
    }

    pub(super) fn remove(&mut self, content: &ContentId) -> Option<Transfer> {
        self.big.remove(content)
    }

    /// Forgets the transfer that has this temporary file; returns its content.
    pub(super) fn forget_name(&mut self, name: &[u8]) -> Option<ContentId> {
        let mut big = self.big.iter();
        let (content, _) = big.find(|(_, transfer)| transfer.record.name == name)?;
        let content = *content;
        self.big.remove(&content);
        Some(content)
    }

    /// Forgets all transfers; returns their temporary files.
    pub(super) fn drop_all(&mut self) -> Vec<RelPath> {
        let big = std::mem::take(&mut self.big);
        big.into_values().map(|transfer| transfer.path).collect()
    }

    pub(super) fn contents(&self) -> impl Iterator<Item = &ContentId> {
        self.big.keys()
    }

    pub(super) fn begin(
        &mut self,
        content: ContentId,
        record: TransferRecord,
        path: RelPath,
        target: RelPath,
        file: Box<dyn DiskFile>,
    ) {
        // What the packs have of it is copied.
        self.kept.remove(&content);
        let transfer = Transfer {
            fetch: Fetch::new(record.size),
            record,
            path,
            target,
            file,
        };
        self.big.insert(content, transfer);
    }

    /// Directories may have been moved: temporary files went with them.
    pub(super) fn follow_moves(&mut self, index: &Index<'_>) -> Result<(), StoreError> {
        for transfer in self.big.values_mut() {
            let dir = super::settle::path_of(index, &transfer.record.parent)?;
            if let Some(path) = dir.and_then(|dir| dir.join(&transfer.record.name).ok()) {
                transfer.path = path;
            }
        }
        Ok(())
    }

    fn fetch_mut(&mut self, content: &ContentId) -> Option<&mut Fetch> {
        match self.big.get_mut(content) {
            Some(transfer) => Some(&mut transfer.fetch),
            None => self.kept.fetch_mut(content),
        }
    }

    /// Whether a peer has said that it lacks a content.
    pub(super) fn lacks(&self, peer: &Replica, content: &ContentId) -> bool {
        self.lacks.has(peer, content)
    }
}

impl Worktree {
    /// The next thing to ask a peer for, if any; it counts as asked from now on.
    pub fn next_request(&mut self, peer: &Replica, now_ms: u64) -> Option<Request> {
        if let Some(request) = self.next_big_request(peer, now_ms) {
            return Some(request);
        }
        if self.arrived_bytes >= ARRIVED_MAX {
            return None;
        }
        let news = self.transfers.news;
        if self.transfers.nothing_for.get(peer) == Some(&news) {
            return None;
        }
        let cursor = self.transfers.cursors.get(peer).copied();
        let (after, until) = match cursor {
            Some(cursor) => (Bound::Excluded(cursor), Bound::Included(cursor)),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let rest = self.waiting.range((after, Bound::Unbounded));
        // Around the end, unless that was all.
        let again = cursor.map(|_| self.waiting.range((Bound::Unbounded, until)));
        let mut ids = vec![];
        let mut bytes = 0;
        for (id, waiting) in rest.chain(again.into_iter().flatten()) {
            let busy = self.transfers.asked.contains(id) || self.transfers.lacks.has(peer, id);
            let big = waiting.size > SMALL_MAX;
            // What is to be shown needs no room in the packs.
            let put_off = waiting.nodes.is_empty() && self.transfers.put_off.contains_key(id);
            if busy || big || put_off || self.arrived.contains_key(id) {
                continue;
            }
            ids.push(*id);
            bytes += waiting.size;
            if ids.len() >= CONTENTS_PER_REQUEST || bytes >= 1 << 20 {
                break;
            }
        }
        let Some(last) = ids.last() else {
            self.transfers.nothing_for.insert(*peer, news);
            return None;
        };
        self.transfers.cursors.insert(*peer, *last);
        self.transfers.asked.extend(ids.iter().copied());
        Some(Request {
            what: Wanted::Contents(ids),
            bytes,
        })
    }

    fn next_big_request(&mut self, peer: &Replica, now_ms: u64) -> Option<Request> {
        let Transfers {
            big,
            kept,
            lacks,
            disbelieved,
            ..
        } = &mut self.transfers;
        let shown = big
            .iter_mut()
            .map(|(id, transfer)| (id, &mut transfer.fetch));
        shown
            .chain(kept.fetches_mut())
            .filter(|(content, fetch)| {
                fetch.not_before_ms <= now_ms
                    && !lacks.has(peer, content)
                    && !disbelieved.contains_key(&(**content, *peer))
            })
            .find_map(|(content, fetch)| fetch.next_request(content))
    }

    /// Takes what a peer sent. Err: the peer sent bytes that do not have the name asked for.
    ///
    /// # Errors
    /// Outer: the store. Inner: what the peer did wrong.
    pub fn arrived(
        &mut self,
        cx: &mut Context<'_>,
        peer: &Replica,
        what: &Wanted,
        items: Vec<(ObjectId, Item)>,
    ) -> Result<Result<(), String>, StoreError> {
        self.transfers.lacks.delivered(peer, cx.now.ms);
        let mut packed = vec![];
        let mut bad = None;
        let mut items = items.into_iter();
        while let Some((object, item)) = items.next() {
            if let (ObjectId::Content(content), _) | (_, Wanted::Pieces { content, .. }) =
                (&object, what)
                && let Some(fetch) = self.transfers.fetch_mut(content)
            {
                fetch.idle = false;
            }
            let taken = match (object, item, what) {
                (ObjectId::Content(id), Item::Whole(bytes), _) => {
                    self.arrived_small(cx, id, bytes)?
                }
                (ObjectId::Content(id), Item::Manifest(bytes), _) => {
                    self.arrived_top(cx, peer, id, bytes)?
                }
                (ObjectId::Manifest(id), Item::Whole(bytes), Wanted::Pieces { content, .. }) => {
                    self.arrived_sub(cx, content, id, bytes)?
                }
                (ObjectId::Chunk(id), Item::Whole(bytes), Wanted::Pieces { content, .. }) => {
                    self.arrived_chunk(cx, content, &id, &bytes, &mut packed)
                }
                _ => true,
            };
            if !taken {
                bad = Some(format!("bytes that are not {object}"));
                // This peer has answered; what it owes is asked for anew.
                let owed = items.map(|(object, _)| object);
                let owed: Vec<ObjectId> = std::iter::once(object).chain(owed).collect();
                self.not_asked(what, &owed);
                break;
            }
        }
        self.index_packed(cx, packed)?;
        Ok(bad.map_or(Ok(()), Err))
    }

    fn arrived_small(
        &mut self,
        cx: &mut Context<'_>,
        id: ContentId,
        bytes: Vec<u8>,
    ) -> Result<bool, StoreError> {
        self.transfers.asked.remove(&id);
        if self.keys.content_id(&bytes) != id {
            return Ok(false);
        }
        let Some(waiting) = self.waiting.remove(&id) else {
            return Ok(true);
        };
        if waiting.for_packs && self.pack_small(cx, &id, &bytes)? == Packed::NoRoom {
            let again = Waiting {
                nodes: BTreeSet::new(),
                ..waiting.clone()
            };
            self.waiting.insert(id, again);
            let at = cx.now.ms.saturating_add(NO_ROOM_MS);
            self.transfers.put_off.insert(id, at);
        }
        if !waiting.nodes.is_empty() {
            self.arrived_bytes += bytes.len();
            self.arrived.insert(id, Arc::new(bytes));
            self.release(waiting.nodes);
        }
        Ok(true)
    }

    fn arrived_top(
        &mut self,
        cx: &mut Context<'_>,
        peer: &Replica,
        id: ContentId,
        bytes: Vec<u8>,
    ) -> Result<bool, StoreError> {
        self.transfers.asked.remove(&id);
        let Some(fetch) = self.transfers.fetch_mut(&id) else {
            return Ok(true);
        };
        let top = self.keys.manifest_id(&bytes);
        match Manifest::decode(&bytes) {
            Ok(manifest) if manifest.size() == fetch.size => {}
            _ => return Ok(false),
        }
        fetch.state = State::Top { asked: true };
        self.transfers.manifests_by.insert(id, *peer);
        let txn = cx.store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            index.put_manifest(&top, &bytes)?;
            index.set_manifest_of(&id, &top)?;
        }
        txn.commit_lazily()?;
        self.advance_transfer(cx, &id)?;
        Ok(true)
    }

    fn arrived_sub(
        &mut self,
        cx: &mut Context<'_>,
        content: &ContentId,
        id: ManifestId,
        bytes: Vec<u8>,
    ) -> Result<bool, StoreError> {
        if !self.keys.names(&ObjectId::Manifest(id), &bytes) {
            return Ok(false);
        }
        let Some(fetch) = self.transfers.fetch_mut(content) else {
            return Ok(true);
        };
        let mut done = false;
        if let State::Subs { missing, asked } = &mut fetch.state {
            asked.remove(&id);
            done = missing.is_empty() && asked.is_empty();
        }
        let txn = cx.store.begin()?;
        txn.index(self.no)?.put_manifest(&id, &bytes)?;
        txn.commit_lazily()?;
        if done {
            self.advance_transfer(cx, content)?;
        }
        Ok(true)
    }

    /// With the manifests that are here: asks for missing ones, or begins with the chunks.
    pub(super) fn advance_transfer(
        &mut self,
        cx: &mut Context<'_>,
        content: &ContentId,
    ) -> Result<(), StoreError> {
        let tx = cx.store.read()?;
        let index = IndexReader::new(&tx, self.no);
        let tables = index.contents()?;
        use pacsync_store::index::ContentTables;
        let Some(top) = tables.manifest_of(content)? else {
            return Ok(());
        };
        let Some(bytes) = tables.manifest(&top)? else {
            return Ok(());
        };
        let missing = missing_manifests(&tables, &bytes)?;
        let Some(fetch) = self.transfers.fetch_mut(content) else {
            return Ok(());
        };
        if !missing.is_empty() {
            fetch.state = State::Subs {
                missing: missing.into(),
                asked: BTreeSet::new(),
            };
            return Ok(());
        }
        let lookup = |id: &_| tables.manifest(id).ok().flatten();
        let pieces: Result<Vec<Piece>, _> = match Walk::new(&self.keys, &top, &bytes, lookup) {
            Ok(walk) => walk.take(PIECES_MAX).collect(),
            Err(error) => Err(error),
        };
        let pieces = match pieces {
            Ok(pieces) => pieces,
            Err(error) => {
                // The manifests do not fit together: some peer made them up. Ask another.
                tracing::warn!(%content, %error, "bad manifests");
                fetch.begin_again(cx.now.ms + BAD_MANIFESTS_MS);
                self.transfers.disbelieve(content, cx.now.ms);
                return Ok(());
            }
        };
        let Some(transfer) = self.transfers.big.get_mut(content) else {
            self.transfers.kept.sort(content, pieces);
            return Ok(());
        };
        let path_of = |node: &NodeId| path_in(&index, node);
        let contents = Contents {
            disk: &*self.disk,
            keys: &self.keys,
            packs: cx.packs,
            tables: &tables,
            path_of: &path_of,
        };
        let todo = fill_from_here(transfer, &contents, &self.keys, pieces)?;
        transfer.fetch.lacks(todo);
        self.finish_transfer_if_whole(content);
        Ok(())
    }

    fn arrived_chunk(
        &mut self,
        cx: &mut Context<'_>,
        content: &ContentId,
        id: &ChunkId,
        bytes: &[u8],
        packed: &mut Vec<(ObjectId, PackRef)>,
    ) -> bool {
        if self.keys.chunk_id(bytes) != *id {
            return false;
        }
        let Some(transfer) = self.transfers.big.get_mut(content) else {
            self.arrived_to_keep(cx, content, id, bytes, packed);
            return true;
        };
        let fetch = &mut transfer.fetch;
        let State::Chunks { todo, asked } = &mut fetch.state else {
            return true;
        };
        for piece in asked.remove(id).unwrap_or_default() {
            match transfer.file.write_at(piece.offset, bytes) {
                Ok(()) => fetch.here += piece.len,
                Err(error) => {
                    todo.push_back(piece);
                    fetch.not_before_ms = cx.now.ms + super::RETRY_MS;
                    let path = transfer.target.clone();
                    let node = self
                        .waiting
                        .get(content)
                        .and_then(|w| w.nodes.first().copied());
                    if let Some(node) = node {
                        self.node_fault(&path, node, super::describe(&error), cx.now);
                    }
                    return true;
                }
            }
        }
        self.finish_transfer_if_whole(content);
        true
    }

    /// A chunk of what only the packs keep.
    fn arrived_to_keep(
        &mut self,
        cx: &mut Context<'_>,
        content: &ContentId,
        id: &ChunkId,
        bytes: &[u8],
        packed: &mut Vec<(ObjectId, PackRef)>,
    ) {
        let Some(fetch) = self.transfers.kept.fetch_mut(content) else {
            return;
        };
        let State::Chunks { asked, .. } = &mut fetch.state else {
            return;
        };
        let Some(pieces) = asked.remove(id) else {
            return;
        };
        let object = ObjectId::Chunk(*id);
        match cx.packs.put(&self.space, &object, bytes) {
            Ok(at) => packed.push((object, at)),
            Err(error) => {
                // No room for it: whoever has it still does.
                tracing::warn!(%error, "a version is not kept");
                self.transfers.kept.remove(content);
                return;
            }
        }
        fetch.here += pieces.iter().map(|piece| piece.len).sum::<u64>();
        if fetch.is_whole() {
            self.transfers.kept.check(content);
        }
    }

    fn finish_transfer_if_whole(&mut self, content: &ContentId) {
        if self.transfer_is_whole(content)
            && let Some(waiting) = self.waiting.remove(content)
        {
            self.release(waiting.nodes);
        }
    }

    pub(super) fn release(&mut self, nodes: BTreeSet<NodeId>) {
        for node in &nodes {
            self.waiting_of.remove(node);
        }
        self.mark(nodes);
    }

    /// What a peer does not have is asked of the others at once, and of itself later.
    pub fn missing(&mut self, peer: &Replica, what: &Wanted, objects: &[ObjectId], now_ms: u64) {
        for object in objects {
            let content = match (object, what) {
                (ObjectId::Content(id), _) => id,
                (_, Wanted::Pieces { content, .. }) => content,
                _ => continue,
            };
            self.transfers.lacks.note(peer, *content, now_ms);
            if let ObjectId::Content(content) = object {
                self.lacked_for_merge(content);
            }
        }
        self.not_asked(what, objects);
        self.make_way(what, objects);
    }

    /// What nobody has keeps no place that others wait for.
    fn make_way(&mut self, what: &Wanted, objects: &[ObjectId]) {
        let mut any = false;
        for object in objects {
            if let (ObjectId::Content(content), _) | (_, Wanted::Pieces { content, .. }) =
                (object, what)
                && let Some(fetch) = self.transfers.fetch_mut(content)
                && fetch.is_active()
            {
                fetch.idle = true;
                any = true;
            }
        }
        if any {
            self.begin_others();
        }
    }

    /// There is place for another big content.
    pub(super) fn begin_others(&mut self) {
        let not_begun = |(id, waiting): &(&ContentId, &Waiting)| {
            waiting.size > SMALL_MAX && self.transfers.get(id).is_none()
        };
        // No more than may find place: each of them would be planned anew with every end.
        let waiting = self.waiting.iter().filter(not_begun).take(2 * ACTIVE_MAX);
        let mut nodes: Vec<NodeId> = waiting.flat_map(|(_, w)| w.nodes.iter().copied()).collect();
        nodes.extend(self.transfers.kept.take_left_out());
        self.mark(nodes);
    }

    /// What was asked for is not under way any more.
    pub fn not_asked(&mut self, what: &Wanted, objects: &[ObjectId]) {
        self.transfers.news += 1;
        for object in objects {
            match (object, what) {
                (ObjectId::Content(id), _) => {
                    self.transfers.asked.remove(id);
                    if let Some(fetch) = self.transfers.fetch_mut(id)
                        && let State::Top { asked } = &mut fetch.state
                    {
                        *asked = false;
                    }
                }
                (ObjectId::Manifest(id), Wanted::Pieces { content, .. }) => {
                    if let Some(fetch) = self.transfers.fetch_mut(content)
                        && let State::Subs { missing, asked } = &mut fetch.state
                        && asked.remove(id)
                    {
                        missing.push_back(*id);
                    }
                }
                (ObjectId::Chunk(id), Wanted::Pieces { content, .. }) => {
                    if let Some(fetch) = self.transfers.fetch_mut(content)
                        && let State::Chunks { todo, asked } = &mut fetch.state
                    {
                        todo.extend(asked.remove(id).unwrap_or_default());
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether a peer lately lacked something: others are asked first.
    pub fn lately_lacked(&self, peer: &Replica) -> bool {
        self.transfers.lacks.any_of(peer)
    }

    /// When something that was missing may be asked for again.
    pub fn next_request_due(&self) -> Option<u64> {
        let big = self.transfers.big.values().map(|t| &t.fetch);
        let big = big
            .chain(self.transfers.kept.fetches())
            .map(|fetch| fetch.not_before_ms)
            .filter(|at| *at > 0);
        let put_off = self.transfers.put_off.values().copied();
        let lacks = self.transfers.lacks.next_due().into_iter();
        let disbelieved = self.transfers.disbelieved.values().copied();
        lacks.chain(big).chain(put_off).chain(disbelieved).min()
    }

    /// Ends the waits that are over, so that they wake nobody.
    pub fn tidy_requests(&mut self, now_ms: u64) {
        if !self.wants_content() {
            self.transfers.lacks.clear();
            self.transfers.cursors.clear();
            self.transfers.nothing_for.clear();
            self.transfers.put_off.clear();
            self.transfers.manifests_by.clear();
            self.transfers.disbelieved.clear();
            return;
        }
        let disbelieved = self.transfers.disbelieved.len();
        self.transfers.disbelieved.retain(|_, at| *at > now_ms);
        if self.transfers.disbelieved.len() < disbelieved {
            self.transfers.news += 1;
        }
        let put_off = self.transfers.put_off.len();
        self.transfers.put_off.retain(|_, at| *at > now_ms);
        let due = self.transfers.put_off.len() < put_off;
        if self.transfers.lacks.expire(now_ms) || due {
            self.transfers.news += 1;
        }
        let Transfers { big, kept, .. } = &mut self.transfers;
        let shown = big.values_mut().map(|transfer| &mut transfer.fetch);
        for fetch in shown.chain(kept.fetches_mut().map(|(_, fetch)| fetch)) {
            if fetch.not_before_ms <= now_ms {
                fetch.not_before_ms = 0;
            }
        }
    }

    /// A peer's replica has changed: it may have what it lacked.
    pub fn peer_changed(&mut self, peer: &Replica) {
        self.transfers.lacks.out_of_date(peer);
        self.transfers.nothing_for.remove(peer);
    }

    /// A peer has everything on its disk, or its connection begins or ends: whatever it lacked
    /// before says nothing now.
    pub fn peer_anew(&mut self, peer: &Replica) {
        self.transfers.lacks.forget(peer);
        self.transfers.cursors.remove(peer);
        self.transfers.nothing_for.remove(peer);
    }

    /// True if something waits for a peer.
    pub fn wants_content(&self) -> bool {
        !self.waiting.is_empty() || !self.transfers.is_empty() || !self.transfers.kept.is_empty()
    }

    /// Whether a transfer has all its bytes.
    pub(super) fn transfer_is_whole(&self, content: &ContentId) -> bool {
        let transfer = self.transfers.get(content);
        transfer.is_some_and(|transfer| transfer.fetch.is_whole())
    }

    /// Puts a small content into the packs.
    fn pack_small(
        &mut self,
        cx: &mut Context<'_>,
        id: &ContentId,
        bytes: &[u8],
    ) -> Result<Packed, StoreError> {
        let object = ObjectId::Content(*id);
        let put = cx.packs.put(&self.space, &object, bytes);
        let (at, end) = match put.and_then(|at| cx.packs.sync().map(|end| (at, end))) {
            Ok(done) => done,
            Err(error) => {
                // No room for it: whoever has it still does, and is asked again later.
                tracing::warn!(%error, "a version was not kept");
                return Ok(Packed::NoRoom);
            }
        };
        let txn = cx.store.begin()?;
        txn.set_pack_end(end)?;
        txn.index(self.no)?.put_packed(object.as_bytes(), &at)?;
        txn.commit()?;
        self.now_mergeable(id);
        Ok(Packed::Kept)
    }
}

fn missing_manifests(
    tables: &dyn pacsync_store::index::ContentTables,
    top: &[u8],
) -> Result<Vec<ManifestId>, StoreError> {
    let mut missing = vec![];
    let mut seen = BTreeSet::new();
    let mut open = vec![top.to_vec()];
    while let Some(bytes) = open.pop() {
        let Ok(manifest) = Manifest::decode(&bytes) else {
            continue;
        };
        for id in manifest.subs() {
            if !seen.insert(id) {
                continue;
            }
            match tables.manifest(&id)? {
                Some(bytes) => open.push(bytes),
                None => missing.push(id),
            }
        }
    }
    Ok(missing)
}

/// Keeps what an earlier attempt left in the file, copies what is on this device, and returns
/// what a peer has to send.
fn fill_from_here(
    transfer: &mut Transfer,
    contents: &Contents<'_>,
    keys: &IdKeys,
    pieces: Vec<Piece>,
) -> Result<VecDeque<Piece>, StoreError> {
    let mut todo = VecDeque::new();
    let before = transfer.file.stat().map_or(0, |stat| stat.identity.size);
    let mut buffer = vec![];
    for piece in pieces {
        let PieceSource::Chunk(id) = piece.source else {
            continue;
        };
        let len = usize::try_from(piece.len).unwrap_or_default();
        if piece.offset + piece.len <= before {
            buffer.resize(len, 0);
            let read = transfer.file.read_at(piece.offset, &mut buffer);
            if read.is_ok_and(|read| read == len) && keys.chunk_id(&buffer) == id {
                continue;
            }
        }
        let length = u32::try_from(piece.len).unwrap_or(u32::MAX);
        if let Some(bytes) = contents.chunk(&id, length, None)?
            && transfer.file.write_at(piece.offset, &bytes).is_ok()
        {
            continue;
        }
        todo.push_back(piece);
    }
    Ok(todo)
}

#[cfg(test)]
mod tests;

//! History: what stood at a path, where its versions are, and bringing them back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use pacsync_protocol::content::{IdKeys, PieceSource, SMALL_MAX, Walk};
use pacsync_protocol::row::{Content, Keys, Kind, Life, Name, PAST_MAX, Row};
use pacsync_protocol::{ContentId, NodeId, RowId};
use pacsync_store::content::packs::PackStore;
use pacsync_store::tree::{Buried, NodeState, TreeReader};
use pacsync_store::{Store, StoreError, Writers, Written};

use super::batch::Batch;
use super::content::{Contents, read};
use super::transfer::TransferRecord;
use super::{Context, Progress, Waiting, Worktree};
use crate::disk::RelPath;

/// Most nodes that are taken to have stood at one path.
const NODES_MAX: usize = 256;
/// Most pieces of a content that are looked for.
const PIECES_MAX: usize = 1 << 20;
/// Most bytes of zeros written at once.
const ZEROS: usize = 64 << 10;

/// What a row did to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// Made it.
    Created,
    /// Gave it another content.
    Edited,
    /// Brought an earlier content back, or the file itself.
    Restored,
    /// Put together what was edited concurrently.
    Merged,
    /// Gave it another name or directory.
    Moved,
    /// Deleted it.
    Deleted,
}

/// One row of a file, as history shows it.
#[derive(Debug, Clone)]
pub struct Version {
    /// The row.
    pub id: RowId,
    /// Whose representative it is about.
    pub node: NodeId,
    /// What that is.
    pub kind: Kind,
    /// Who wrote it, and when.
    pub written: Option<Written>,
    /// What it did.
    pub did: Did,
    /// The content that it wrote.
    pub content: Option<Content>,
    /// The name that it gave.
    pub name: Option<Name>,
    /// Whether its content is the one that shows.
    pub shown: bool,
}

/// What stands and stood at a path.
#[derive(Debug, Default)]
pub struct Past {
    /// What shows there now.
    pub live: Option<NodeState>,
    /// Versions of that, then of what was there before; of each the newest first.
    pub versions: Vec<Version>,
}

/// Something that was deleted.
#[derive(Debug, Clone)]
pub struct Lost {
    /// The node.
    pub node: NodeId,
    /// What it was.
    pub kind: Kind,
    /// Where it was.
    pub path: RelPath,
    /// The row of the content that it had last, and that content; `None` for a directory.
    pub content: Option<(RowId, Content)>,
}

/// Dead nodes by where they were.
type Graves = BTreeMap<NodeId, BTreeMap<Name, Vec<Buried>>>;

fn graves(tree: &TreeReader) -> Result<Graves, StoreError> {
    let mut graves = Graves::new();
    for buried in tree.buried()? {
        let dir = graves.entry(buried.parent).or_default();
        dir.entry(buried.name.clone()).or_default().push(buried);
    }
    Ok(graves)
}

fn names(path: &RelPath) -> Vec<Name> {
    path.names()
        .filter_map(|name| Name::new(name).ok())
        .collect()
}

/// Every node that stands at a path or stood there when it died.
fn nodes_at(tree: &TreeReader, graves: &Graves, path: &RelPath) -> Result<Vec<NodeId>, StoreError> {
    let mut at = vec![NodeId::ROOT];
    for name in names(path) {
        let mut next = vec![];
        for dir in at {
            next.extend(tree.child(&dir, &name)?);
            let dead = graves.get(&dir).and_then(|dir| dir.get(&name));
            next.extend(dead.into_iter().flatten().map(|buried| buried.node));
        }
        next.truncate(NODES_MAX);
        at = next;
    }
    Ok(at)
}

/// The rows of a node that history shows, the newest first.
fn versions_of(
    tree: &TreeReader,
    writers: &Writers,
    node: &NodeId,
) -> Result<Vec<Version>, StoreError> {
    let Some(state) = tree.node(node)? else {
        return Ok(vec![]);
    };
    let shown = state.content.as_ref().filter(|_| !state.dead);
    let mut before = BTreeSet::new();
    let mut versions = vec![];
    for past in tree.rows_of_node(node)? {
        let keys = &past.row.keys;
        let did = if keys.merge.is_some() && keys.content.is_some() {
            Did::Merged
        } else if past.row.is_birth() {
            Did::Created
        } else if let Some(content) = &keys.content {
            if keys.life == Some(Life::Live) || before.contains(&content.id) {
                Did::Restored
            } else {
                Did::Edited
            }
        } else {
            match keys.life {
                Some(Life::Dead) => Did::Deleted,
                Some(Life::Live) => Did::Restored,
                None if keys.at.is_some() => Did::Moved,
                None => continue,
            }
        };
        before.extend(keys.content.as_ref().map(|content| content.id));
        versions.push(Version {
            id: past.id,
            node: state.id,
            kind: state.kind,
            written: writers.of(past.carrier)?,
            did,
            content: keys.content.clone(),
            name: keys.at.as_ref().map(|at| at.name.clone()),
            shown: shown.is_some_and(|shown| shown.row == past.id),
        });
    }
    versions.reverse();
    Ok(versions)
}

fn last_time(versions: &[Version]) -> u64 {
    let times = versions.iter().filter_map(|version| version.written);
    times
        .map(|written| written.time_ms)
        .max()
        .unwrap_or_default()
}

impl Contents<'_> {
    /// Whether a content can be read on this device, as far as the index knows.
    pub(super) fn is_here(&self, content: &Content) -> Result<bool, StoreError> {
        if content.inline.is_some() || content.size == 0 || self.stands(&content.id)? {
            return Ok(true);
        }
        let Some(top) = self.tables.manifest_of(&content.id)? else {
            return Ok(false);
        };
        let Some(bytes) = self.tables.manifest(&top)? else {
            return Ok(false);
        };
        let lookup = |id: &_| self.tables.manifest(id).ok().flatten();
        let Ok(walk) = Walk::new(self.keys, &top, &bytes, lookup) else {
            return Ok(false);
        };
        for piece in walk.take(PIECES_MAX) {
            let Ok(piece) = piece else { return Ok(false) };
            let PieceSource::Chunk(chunk) = piece.source else {
                continue;
            };
            let elsewhere = match self.tables.packed(chunk.as_bytes())? {
                Some(_) => continue,
                None => self.tables.chunk(&chunk)?,
            };
            match elsewhere {
                Some((other, _)) if self.stands(&other)? => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether a file or a pack has a content as a whole.
    fn stands(&self, content: &ContentId) -> Result<bool, StoreError> {
        Ok(!self.tables.sources(content)?.is_empty()
            || self.tables.packed(content.as_bytes())?.is_some())
    }

    /// Hands out a content from front to back; false if some of it is not here.
    fn read_out(
        &self,
        content: &Content,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<io::Result<bool>, StoreError> {
        if let Some(bytes) = &content.inline {
            return Ok(sink(bytes).map(|()| true));
        }
        if content.size == 0 {
            return Ok(Ok(true));
        }
        if content.size <= super::texts::TEXT_MAX
            && let Some(bytes) = self.whole(&content.id)?
        {
            return Ok(sink(&bytes).map(|()| true));
        }
        let Some(top) = self.tables.manifest_of(&content.id)? else {
            return Ok(Ok(false));
        };
        let Some(bytes) = self.tables.manifest(&top)? else {
            return Ok(Ok(false));
        };
        let lookup = |id: &_| self.tables.manifest(id).ok().flatten();
        let Ok(walk) = Walk::new(self.keys, &top, &bytes, lookup) else {
            return Ok(Ok(false));
        };
        for piece in walk {
            let Ok(piece) = piece else {
                return Ok(Ok(false));
            };
            let done = match piece.source {
                PieceSource::Chunk(id) => {
                    let len = u32::try_from(piece.len).unwrap_or(u32::MAX);
                    let hint = Some((&content.id, piece.offset));
                    match self.chunk(&id, len, hint)? {
                        Some(bytes) => sink(&bytes),
                        None => return Ok(Ok(false)),
                    }
                }
                PieceSource::Hole => zeros(piece.len, sink),
            };
            if let Err(error) = done {
                return Ok(Err(error));
            }
        }
        Ok(Ok(true))
    }

    /// A content of at most `max` bytes; `None` if it is longer, not here, or other than its name.
    pub(super) fn read_bytes(
        &self,
        content: &Content,
        max: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if content.size > max {
            return Ok(None);
        }
        let mut bytes = vec![];
        let whole = self.read_out(content, &mut |part| {
            bytes.extend_from_slice(part);
            if bytes.len() as u64 > max {
                return Err(io::Error::other("longer than its row says"));
            }
            Ok(())
        })?;
        let bytes = matches!(whole, Ok(true)).then_some(bytes);
        Ok(bytes.filter(|bytes| self.keys.content_id(bytes) == content.id))
    }

    /// A content that a pack has as one object, or that is small.
    fn whole(&self, content: &ContentId) -> Result<Option<Vec<u8>>, StoreError> {
        self.small(content)
    }
}

fn zeros(len: u64, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let zeros = vec![0; ZEROS];
    let mut left = len;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(ZEROS).min(ZEROS);
        sink(zeros.get(..part).unwrap_or_default())?;
        left -= part as u64;
    }
    Ok(())
}

impl Worktree {
    /// The keys of the space's ids.
    pub fn id_keys(&self) -> &IdKeys {
        &self.keys
    }

    /// What stands and stood at a path.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn past_of(&self, store: &Store, path: &RelPath) -> Result<Past, StoreError> {
        let tx = store.read()?;
        let tree = TreeReader::open(&tx, self.no)?;
        let writers = Writers::open(&tx)?;
        let graves = graves(&tree)?;
        let live = match tree.lookup(&names(path))? {
            Some(node) if node != NodeId::ROOT => tree.node(&node)?,
            _ => None,
        };
        let mut all = vec![];
        let mut seen = BTreeSet::new();
        for node in nodes_at(&tree, &graves, path)? {
            if seen.insert(node) {
                all.push(versions_of(&tree, &writers, &node)?);
            }
        }
        let of_live = |versions: &[Version]| {
            let first = versions.first().map(|version| version.node);
            first.is_some() && first == live.as_ref().map(|state| state.id)
        };
        all.sort_by_key(|versions| (!of_live(versions), std::cmp::Reverse(last_time(versions))));
        Ok(Past {
            live,
            versions: all.into_iter().flatten().collect(),
        })
    }

    /// What was deleted beneath a directory, and not before a time; directories before what was in
    /// them. Of several at one path the one that was deleted last; none where something stands now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lost_beneath(
        &self,
        store: &Store,
        path: &RelPath,
        since_ms: Option<u64>,
    ) -> Result<Vec<Lost>, StoreError> {
        let tx = store.read()?;
        let tree = TreeReader::open(&tx, self.no)?;
        let writers = Writers::open(&tx)?;
        let graves = graves(&tree)?;
        let mut lost = vec![];
        let mut open = vec![(path.clone(), nodes_at(&tree, &graves, path)?)];
        if let [dir] = open
            .first()
            .map(|(_, at)| at.as_slice())
            .unwrap_or_default()
            && let Some(state) = tree.node(dir)?
            && state.dead
            && state.kind == Kind::Dir
        {
            lost.push(Lost {
                node: *dir,
                kind: Kind::Dir,
                path: path.clone(),
                content: None,
            });
        }
        while let Some((path, dirs)) = open.pop() {
            let mut below: BTreeMap<Name, Vec<NodeId>> = BTreeMap::new();
            let mut standing = BTreeMap::new();
            for dir in &dirs {
                for item in tree.children(dir)? {
                    let (name, node) = item?;
                    below.entry(name.clone()).or_default().push(node);
                    standing.insert(name, node);
                }
                for (name, dead) in graves.get(dir).into_iter().flatten() {
                    let dead = dead.iter().map(|buried| buried.node);
                    below.entry(name.clone()).or_default().extend(dead);
                }
            }
            for (name, nodes) in below {
                let Ok(path) = path.join(name.as_bytes()) else {
                    continue;
                };
                if !standing.contains_key(&name)
                    && let Some(last) = last_dead(&tree, &writers, &nodes, since_ms, &path)?
                {
                    lost.push(last);
                }
                let mut dirs = vec![];
                for node in nodes {
                    if tree
                        .node(&node)?
                        .is_some_and(|state| state.kind == Kind::Dir)
                    {
                        dirs.push(node);
                    }
                }
                if !dirs.is_empty() {
                    open.push((path, dirs));
                }
            }
        }
        Ok(lost)
    }

    /// Whether a content can be read on this device.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn has_content(
        &self,
        store: &Store,
        packs: &PackStore,
        content: &Content,
    ) -> Result<bool, StoreError> {
        self.with_contents(store, packs, |contents| contents.is_here(content))
    }

    /// Whether a content is on this device and, up to 1 MiB of it, whole.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn can_read(
        &self,
        store: &Store,
        packs: &PackStore,
        content: &Content,
    ) -> Result<bool, StoreError> {
        if content.size > super::texts::TEXT_MAX {
            return self.has_content(store, packs, content);
        }
        let read = self.read_content(store, packs, content, &mut |_| Ok(()))?;
        Ok(read.is_ok_and(|whole| whole))
    }

    /// Hands out a content of this device from front to back. False if some of it cannot be read.
    ///
    /// # Errors
    /// Outer: the store. Inner: what `sink` said.
    pub fn read_content(
        &self,
        store: &Store,
        packs: &PackStore,
        content: &Content,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<io::Result<bool>, StoreError> {
        self.with_contents(store, packs, |contents| contents.read_out(content, sink))
    }

    /// Asks peers for these contents, and for none of those that were asked for this way before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn want_versions(
        &mut self,
        cx: &mut Context<'_>,
        wanted: &BTreeMap<ContentId, u64>,
    ) -> Result<(), StoreError> {
        let gone: Vec<ContentId> = self
            .wanted_versions
            .iter()
            .filter(|id| !wanted.contains_key(id))
            .copied()
            .collect();
        if !gone.is_empty() {
            // A conflict may want one of them still.
            self.losers_at = 0;
        }
        for id in gone {
            self.wanted_versions.remove(&id);
            if let Some(waiting) = self.waiting.get_mut(&id) {
                waiting.for_packs = false;
                if waiting.nodes.is_empty() {
                    self.waiting.remove(&id);
                }
            }
        }
        for (id, size) in wanted {
            if self.wanted_versions.insert(*id) {
                let waiting = self.waiting.entry(*id).or_insert_with(|| Waiting {
                    size: *size,
                    nodes: Default::default(),
                    for_packs: true,
                });
                waiting.for_packs = true;
                self.transfers.more_is_wanted();
            }
            if *size > SMALL_MAX {
                self.transfer_version(cx, id, *size)?;
            }
        }
        Ok(())
    }

    /// Whether anything was asked for this way.
    pub fn wants_versions(&self) -> bool {
        !self.wanted_versions.is_empty()
    }

    /// Begins the transfer of a big version beside the root, or takes it in when all is here.
    fn transfer_version(
        &mut self,
        cx: &mut Context<'_>,
        id: &ContentId,
        size: u64,
    ) -> Result<(), StoreError> {
        if self.transfer_is_whole(id) {
            let path = self.transfers.get(id).map(|t| t.path.clone());
            let Some(path) = path else { return Ok(()) };
            let whole = self
                .disk
                .open_write(&path)
                .and_then(|mut file| file.set_len(size))
                .map_err(super::content::ReadError::from)
                .and_then(|()| read(&*self.disk, &path, Kind::File, &self.keys));
            if let Ok(found) = whole
                && found.content.id == *id
            {
                return match self.pack_file(cx, &path, &found, None) {
                    Err(StoreError::Packs(why)) => {
                        self.fault(&path, why, cx.now);
                        Ok(())
                    }
                    done => done,
                };
            }
            // Made up by a peer: its manifests are forgotten, and asked for anew.
            let txn = cx.store.begin()?;
            txn.index(self.no)?.forget_manifest_of(id)?;
            txn.commit()?;
            self.transfers.remove(id);
            let _ = self.disk.unlink(&path);
            return Ok(());
        }
        if self.transfers.get(id).is_some() || self.transfers.is_full() {
            return Ok(());
        }
        let name = self.temp_name(super::TRANSFER_MARK, cx.rng);
        let Ok(path) = RelPath::root().join(&name) else {
            return Ok(());
        };
        let file = match self.disk.create(&path, 0o600) {
            Ok(file) => file,
            Err(error) => {
                self.disk_fault(&error, &path, cx.now);
                return Ok(());
            }
        };
        let record = TransferRecord {
            parent: NodeId::ROOT,
            name,
            size,
            target: None,
        };
        let txn = cx.store.begin()?;
        let bytes = pacsync_protocol::cbor::encode(&record);
        txn.index(self.no)?.put_transfer(id, &bytes)?;
        txn.commit()?;
        self.transfers.begin(*id, record, path.clone(), path, file);
        self.advance_transfer(cx, id)
    }

    /// Bytes of wanted versions that have come so far, to see that it goes on.
    pub fn versions_progress(&self) -> u64 {
        let big = self.transfers.paths().into_iter().map(|(_, here, _)| here);
        big.sum::<u64>() + self.transfers.news()
    }

    /// Writes contents anew: after all that is known of the nodes, so that they live again whatever
    /// deleted them, with the directories that they are in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn restore(
        &mut self,
        cx: &mut Context<'_>,
        wanted: &[(NodeId, Option<Content>)],
        progress: &mut Progress,
    ) -> Result<(), StoreError> {
        let stamp = cx.store.clock(&self.space)? + 1;
        let txn = cx.store.begin()?;
        let mut b = Batch::open(&txn, self.no, stamp, cx.now)?;
        let mut done = BTreeSet::new();
        for (node, content) in wanted {
            let node = b.tree.representative(node)?;
            let Some(state) = b.tree.node(&node)? else {
                continue;
            };
            let mut above = state.parent;
            if done.insert(node) {
                revive(&mut b, state, content.clone());
            }
            while let Some(dir) = above.filter(|dir| *dir != NodeId::ROOT && done.insert(*dir)) {
                let Some(state) = b.tree.node(&dir)? else {
                    break;
                };
                above = state.parent;
                if state.dead {
                    revive(&mut b, state, None);
                }
            }
        }
        b.marks.extend(&done);
        b.restored = done;
        let found = b.close();
        self.commit_found(found, txn, cx.packs, cx.rng, cx.now, progress)
    }
}

fn revive(b: &mut Batch<'_>, state: NodeState, content: Option<Content>) {
    let mut past = state.heads;
    past.truncate(PAST_MAX);
    // For whoever looks at times it changes now.
    let mtime_ns = b.now.ns;
    let keys = Keys {
        content: content.map(|content| Content {
            mtime_ns,
            ..content
        }),
        life: state.dead.then_some(Life::Live),
        ..Keys::default()
    };
    if keys.content.is_some() || keys.life.is_some() {
        b.write(&Row::new(state.id, past, keys));
    }
}

/// The one of some nodes that died last, if all are dead and it did not die before a time.
fn last_dead(
    tree: &TreeReader,
    writers: &Writers,
    nodes: &[NodeId],
    since_ms: Option<u64>,
    path: &RelPath,
) -> Result<Option<Lost>, StoreError> {
    let mut last: Option<(u64, NodeState)> = None;
    for node in nodes {
        let Some(state) = tree.node(node)? else {
            continue;
        };
        let mut died_ms = 0;
        for past in tree.rows_of_node(node)? {
            if past.row.keys.life == Some(Life::Dead) {
                let written = writers.of(past.carrier)?;
                died_ms = died_ms.max(written.map_or(0, |written| written.time_ms));
            }
        }
        if last.as_ref().is_none_or(|(ms, _)| *ms <= died_ms) {
            last = Some((died_ms, state));
        }
    }
    let Some((died_ms, state)) = last else {
        return Ok(None);
    };
    if since_ms.is_some_and(|since| died_ms < since) {
        return Ok(None);
    }
    let content = state.content.map(|shown| (shown.row, shown.content));
    if state.kind != Kind::Dir && content.is_none() {
        return Ok(None);
    }
    Ok(Some(Lost {
        node: state.id,
        kind: state.kind,
        path: path.clone(),
        content,
    }))
}

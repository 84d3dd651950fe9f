//! Reading content: a file into a content key, and any content of the space for a peer or an
//! apply. Everything read to be passed on is checked against its id.

use std::io;

use pacsync_protocol::content::{IdKeys, ManifestTree, ObjectId, PieceSource, SMALL_MAX, Walk};
use pacsync_protocol::row::{Content, INLINE_MAX, Kind};
use pacsync_protocol::session::Wanted;
use pacsync_protocol::wire::{Item, Pieces};
use pacsync_protocol::{ChunkId, ContentId, NodeId};
use pacsync_store::content::packs::PackStore;
use pacsync_store::content::{ScanError, Source, scan_content};
use pacsync_store::index::{ContentTables, FileIdentity, Index, IndexReader};
use pacsync_store::{Store, StoreError};

use super::texts::{is_text, may_be_kept};
use super::{Worktree, file_identity};
use crate::disk::{Disk, DiskError, DiskFile, RelPath};

/// Why a file gave no content.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Size or times differed before and after.
    #[error("it changes while it is read")]
    Changing,
    /// Another file stands there than the one that was seen.
    #[error("it was replaced by another file")]
    Replaced,
    #[error("{0}")]
    Content(String),
}

/// A file or symlink as it was read.
pub(super) struct Read {
    pub(super) content: Content,
    pub(super) identity: FileIdentity,
    pub(super) manifest: Option<ManifestTree>,
    /// The bytes of a text that history keeps.
    pub(super) text: Option<Vec<u8>>,
}

struct FileSource<'f>(&'f dyn DiskFile);

impl Source for FileSource<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf).map_err(io::Error::other)
    }
}

/// Reads a file or symlink; it counts only if it is the same before and after.
pub(super) fn read(
    disk: &dyn Disk,
    path: &RelPath,
    kind: Kind,
    keys: &IdKeys,
) -> Result<Read, ReadError> {
    if kind == Kind::Symlink {
        let before = disk.stat(path)?.ok_or(ReadError::Changing)?;
        let target = disk.read_link(path)?;
        let after = disk.stat(path)?.ok_or(ReadError::Changing)?;
        if before != after {
            return Err(ReadError::Changing);
        }
        if target.len() > INLINE_MAX {
            return Err(ReadError::Content(
                "the symlink's target is too long".into(),
            ));
        }
        let content = Content {
            id: keys.content_id(&target),
            size: target.len() as u64,
            mtime_ns: after.identity.mtime_ns,
            inline: Some(target),
        };
        return Ok(Read {
            content,
            identity: file_identity(&after.identity),
            manifest: None,
            text: None,
        });
    }
    let file = disk.open(path)?;
    let before = file.stat()?.identity;
    let size = before.size;
    let failed = |e| match e {
        ScanError::Resized { .. } => ReadError::Changing,
        ScanError::Read { source, .. } => ReadError::Content(source.to_string()),
        ScanError::Manifest(e) => ReadError::Content(e.to_string()),
    };
    let (id, inline, manifest, text) = if size <= INLINE_MAX as u64 {
        let mut bytes = vec![0; INLINE_MAX + 1];
        let read = file.read_at(0, &mut bytes)?;
        if read as u64 != size {
            return Err(ReadError::Changing);
        }
        bytes.truncate(read);
        (keys.content_id(&bytes), Some(bytes), None, None)
    } else if may_be_kept(size) {
        // What is kept is what was hashed.
        let bytes = read_whole(&*file, size)?;
        let scanned = scan_content(&mut bytes.as_slice(), size, keys).map_err(failed)?;
        let text = is_text(&bytes).then_some(bytes);
        (scanned.content_id, None, scanned.manifest, text)
    } else {
        let scanned = scan_content(&mut FileSource(&*file), size, keys).map_err(failed)?;
        (scanned.content_id, None, scanned.manifest, None)
    };
    if file.stat()?.identity != before {
        return Err(ReadError::Changing);
    }
    let content = Content {
        id,
        size,
        mtime_ns: before.mtime_ns,
        inline,
    };
    Ok(Read {
        content,
        identity: file_identity(&before),
        manifest,
        text,
    })
}

/// Reads a file of a known size; a byte more or less is a change.
fn read_whole(file: &dyn DiskFile, size: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![
        0;
        usize::try_from(size)
            .unwrap_or(usize::MAX)
            .saturating_add(1)
    ];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(done as u64, rest)? {
            0 => break,
            read => done += read,
        }
    }
    if done as u64 != size {
        return Err(ReadError::Changing);
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Keeps the manifests of a content and where its chunks stand in it.
pub(super) fn keep_manifest(
    index: &mut Index<'_>,
    keys: &IdKeys,
    content: &ContentId,
    tree: &ManifestTree,
) -> Result<(), StoreError> {
    for object in tree.objects() {
        index.put_manifest(&object.id, &object.bytes)?;
    }
    index.set_manifest_of(content, &tree.top.id)?;
    let lookup = |id: &_| tree.object(id).map(<[u8]>::to_vec);
    let walk = Walk::new(keys, &tree.top.id, &tree.top.bytes, lookup)
        .map_err(|e| StoreError::Misuse(e.to_string()))?;
    for piece in walk {
        let piece = piece.map_err(|e| StoreError::Misuse(e.to_string()))?;
        if let PieceSource::Chunk(chunk) = piece.source {
            index.put_chunk(&chunk, content, piece.offset)?;
        }
    }
    Ok(())
}

/// Where the content of one space can be read from.
pub(super) struct Contents<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) keys: &'a IdKeys,
    pub(super) packs: &'a PackStore,
    pub(super) tables: &'a dyn ContentTables,
    /// Path of a node on disk, with the content that the index says it has.
    pub(super) path_of: &'a dyn Fn(&NodeId) -> Result<Option<RelPath>, StoreError>,
}

impl Contents<'_> {
    /// A small content, whole.
    pub(super) fn small(&self, content: &ContentId) -> Result<Option<Vec<u8>>, StoreError> {
        for node in self.tables.sources(content)? {
            let Some(path) = (self.path_of)(&node)? else {
                continue;
            };
            if let Some(bytes) = self.read_small(&path, content) {
                return Ok(Some(bytes));
            }
        }
        self.packed(&ObjectId::Content(*content))
    }

    fn read_small(&self, path: &RelPath, content: &ContentId) -> Option<Vec<u8>> {
        // A symlink's target rides in its row; only files are read here.
        let file = self.disk.open(path).ok()?;
        let size = file.stat().ok()?.identity.size;
        if size > SMALL_MAX {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        let read = file.read_at(0, &mut bytes).ok()?;
        bytes.truncate(read);
        (self.keys.content_id(&bytes) == *content).then_some(bytes)
    }

    /// A chunk: from a file that holds the content asked for, any other, or a pack.
    pub(super) fn chunk(
        &self,
        chunk: &ChunkId,
        len: u32,
        hint: Option<(&ContentId, u64)>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some((content, offset)) = hint
            && let Some(bytes) = self.chunk_at(chunk, len, content, offset)?
        {
            return Ok(Some(bytes));
        }
        if let Some((content, offset)) = self.tables.chunk(chunk)?
            && let Some(bytes) = self.chunk_at(chunk, len, &content, offset)?
        {
            return Ok(Some(bytes));
        }
        if let Some(bytes) = self.packed(&ObjectId::Chunk(*chunk))? {
            return Ok(Some(bytes));
        }
        let wholes = hint.map(|(content, offset)| (*content, offset));
        for (content, offset) in wholes.into_iter().chain(self.tables.chunk(chunk)?) {
            if let Some(bytes) = self.chunk_of_text(chunk, len, &content, offset)? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    fn chunk_at(
        &self,
        chunk: &ChunkId,
        len: u32,
        content: &ContentId,
        offset: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        for node in self.tables.sources(content)? {
            let Some(path) = (self.path_of)(&node)? else {
                continue;
            };
            let Ok(file) = self.disk.open(&path) else {
                continue;
            };
            let mut bytes = vec![0; len as usize];
            if file
                .read_at(offset, &mut bytes)
                .is_ok_and(|read| read == len as usize)
                && self.keys.chunk_id(&bytes) == *chunk
            {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    pub(super) fn packed(&self, object: &ObjectId) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(at) = self.tables.packed(object.as_bytes())? else {
            return Ok(None);
        };
        let find = |object: &ObjectId| self.tables.packed(object.as_bytes()).ok().flatten();
        let found = self.packs.get_version(&at, object, self.keys, &find);
        // A damaged record is as good as none: another replica may have the content.
        if let Err(error) = &found {
            tracing::warn!(%object, %error, "a version cannot be read");
        }
        Ok(found.ok())
    }

    /// A chunk of a text that a pack holds as a whole.
    fn chunk_of_text(
        &self,
        chunk: &ChunkId,
        len: u32,
        content: &ContentId,
        offset: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(bytes) = self.packed(&ObjectId::Content(*content))? else {
            return Ok(None);
        };
        let part = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..)?.get(..len as usize));
        let part = part.filter(|part| self.keys.chunk_id(part) == *chunk);
        Ok(part.map(<[u8]>::to_vec))
    }
}

/// Path of a node on disk by the index.
pub(super) fn path_in(
    index: &IndexReader<'_>,
    node: &NodeId,
) -> Result<Option<RelPath>, StoreError> {
    let mut names = vec![];
    let mut at = *node;
    while at != NodeId::ROOT {
        let Some((parent, name, _)) = index.entry_of(&at)? else {
            return Ok(None);
        };
        names.push(name);
        at = parent;
    }
    names.reverse();
    Ok(RelPath::from_bytes(&names.join(&b'/')).ok())
}

/// Reads what a peer asked for, until `bytes_max` is reached, at least one item.
///
/// # Errors
/// [`StoreError`]; what cannot be read is [`Item::Missing`].
pub fn read_for_peer(
    worktree: &mut Worktree,
    store: &Store,
    packs: &PackStore,
    what: &Wanted,
    bytes_max: u64,
) -> Result<Vec<Item>, StoreError> {
    let tx = store.read()?;
    let index = IndexReader::new(&tx, worktree.no);
    let tables = index.contents()?;
    let path_of = |node: &NodeId| path_in(&index, node);
    let contents = Contents {
        disk: &*worktree.disk,
        keys: &worktree.keys,
        packs,
        tables: &tables,
        path_of: &path_of,
    };
    let mut items = vec![];
    let mut total = 0;
    let mut add = |item: Item| {
        let len = match &item {
            Item::Whole(bytes) | Item::Manifest(bytes) => bytes.len() as u64,
            Item::Missing => 0,
        };
        let fits = items.is_empty() || total + len <= bytes_max;
        if fits {
            total += len;
            items.push(item);
        }
        fits
    };
    match what {
        Wanted::Contents(ids) => {
            for id in ids {
                let manifest = match tables.manifest_of(id)? {
                    Some(top) => tables.manifest(&top)?,
                    None => None,
                };
                let item = match manifest {
                    Some(bytes) => Item::Manifest(bytes),
                    None => match contents.small(id)? {
                        Some(bytes) => Item::Whole(bytes),
                        None => Item::Missing,
                    },
                };
                if !add(item) {
                    break;
                }
            }
        }
        Wanted::Pieces {
            pieces: Pieces::Manifests(ids),
            ..
        } => {
            for id in ids {
                let item = tables.manifest(id)?.map_or(Item::Missing, Item::Whole);
                if !add(item) {
                    break;
                }
            }
        }
        Wanted::Pieces {
            content,
            pieces: Pieces::Chunks(chunks),
        } => {
            for chunk in chunks {
                let hint = worktree
                    .offsets
                    .find(&tables, &worktree.keys, content, &chunk.id)?;
                let hint = hint.map(|offset| (content, offset));
                let bytes = contents.chunk(&chunk.id, chunk.len, hint)?;
                if !add(bytes.map_or(Item::Missing, Item::Whole)) {
                    break;
                }
            }
        }
    }
    Ok(items)
}

/// Where the chunks of the content that was asked for last stand in it: peers ask in order.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    content: Option<ContentId>,
    by_chunk: std::collections::HashMap<ChunkId, u64>,
}

/// Most chunks that are remembered: 32 GiB of content.
const OFFSETS_MAX: usize = 262_144;

impl Offsets {
    fn find(
        &mut self,
        tables: &dyn ContentTables,
        keys: &IdKeys,
        content: &ContentId,
        chunk: &ChunkId,
    ) -> Result<Option<u64>, StoreError> {
        if self.content != Some(*content) {
            self.content = Some(*content);
            self.by_chunk.clear();
            if let Some(top) = tables.manifest_of(content)?
                && let Some(bytes) = tables.manifest(&top)?
            {
                let lookup = |id: &_| tables.manifest(id).ok().flatten();
                if let Ok(walk) = Walk::new(keys, &top, &bytes, lookup) {
                    for piece in walk.take(OFFSETS_MAX) {
                        let Ok(piece) = piece else { break };
                        if let PieceSource::Chunk(id) = piece.source {
                            self.by_chunk.insert(id, piece.offset);
                        }
                    }
                }
            }
        }
        Ok(self.by_chunk.get(chunk).copied())
    }
}

//! Where content, its manifests and its chunks can be read from.

use pacsync_protocol::content::ManifestId;
use pacsync_protocol::{ChunkId, ContentId, NodeId};
use redb::ReadableTable;

use super::entries::nodes_below;
use super::{
    CHUNKS, Index, MANIFEST_OF, MANIFESTS, PACKED, REPLACED, Readable, SOURCES, after, key,
};
use crate::content::packs::PackRef;
use crate::error::StoreError;

fn pack_ref_bytes(at: &PackRef) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&at.pack.to_be_bytes());
    bytes[4..12].copy_from_slice(&at.offset.to_be_bytes());
    bytes[12..].copy_from_slice(&at.len.to_be_bytes());
    bytes
}

fn pack_ref(bytes: &[u8]) -> Option<PackRef> {
    let (pack, rest) = bytes.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    Some(PackRef {
        pack: u32::from_be_bytes(*pack),
        offset: u64::from_be_bytes(*offset),
        len: u32::from_be_bytes(rest.try_into().ok()?),
    })
}

/// What history is for a content that nothing shows any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// A text, or part of one.
    Text = 0,
    /// All else.
    Rest = 1,
}

/// Since when nothing shows what a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// What it is.
    pub class: Class,
    /// By the clock of [`crate::keep`], in milliseconds.
    pub since: u64,
}

/// Id of a chunk or of a small content.
pub type PackedId = [u8; 32];

pub(super) fn packed_after(
    table: &impl Readable,
    space: u32,
    from: Option<&PackedId>,
    limit: usize,
) -> Result<Vec<(PackedId, PackRef)>, StoreError> {
    let prefix = key(space, &[]);
    let start = match from {
        Some(id) => [key(space, &[id]), vec![0]].concat(),
        None => prefix.clone(),
    };
    let end = after(&prefix);
    let mut found = vec![];
    for item in table
        .range::<&[u8]>(start.as_slice()..end.as_slice())?
        .take(limit)
    {
        let (key, value) = item?;
        let id = key.value().get(4..).and_then(|id| id.try_into().ok());
        found.extend(id.zip(pack_ref(value.value())));
    }
    Ok(found)
}

pub(super) fn replaced_in(
    table: &impl Readable,
    space: u32,
    id: &PackedId,
) -> Result<Option<Replaced>, StoreError> {
    let found = table.fetch(&key(space, &[id]))?;
    Ok(found.and_then(|bytes| {
        let (class, since) = bytes.split_first()?;
        Some(Replaced {
            class: match class {
                0 => Class::Text,
                _ => Class::Rest,
            },
            since: u64::from_be_bytes(since.try_into().ok()?),
        })
    }))
}

/// Where content can be read from; on write and read transactions alike.
pub trait ContentTables {
    /// Nodes whose file has this content, at most 16.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sources(&self, content: &ContentId) -> Result<Vec<NodeId>, StoreError>;
    /// A content's top manifest.
    ///
    /// # Errors
    /// [`StoreError`].
    fn manifest_of(&self, content: &ContentId) -> Result<Option<ManifestId>, StoreError>;
    /// Bytes of a manifest.
    ///
    /// # Errors
    /// [`StoreError`].
    fn manifest(&self, id: &ManifestId) -> Result<Option<Vec<u8>>, StoreError>;
    /// A content that holds a chunk, and the offset in it.
    ///
    /// # Errors
    /// [`StoreError`].
    fn chunk(&self, chunk: &ChunkId) -> Result<Option<(ContentId, u64)>, StoreError>;
    /// Where a chunk or small content stands in a pack.
    ///
    /// # Errors
    /// [`StoreError`].
    fn packed(&self, id: &[u8; 32]) -> Result<Option<PackRef>, StoreError>;
}

pub(super) struct Tables<T> {
    pub(super) space: u32,
    pub(super) sources: T,
    pub(super) manifest_of: T,
    pub(super) manifests: T,
    pub(super) chunks: T,
    pub(super) packed: T,
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> ContentTables for Tables<T> {
    fn sources(&self, content: &ContentId) -> Result<Vec<NodeId>, StoreError> {
        nodes_below(&self.sources, &key(self.space, &[content.as_bytes()]))
    }

    fn manifest_of(&self, content: &ContentId) -> Result<Option<ManifestId>, StoreError> {
        let found = self
            .manifest_of
            .fetch(&key(self.space, &[content.as_bytes()]))?;
        Ok(found.and_then(|bytes| ManifestId::from_slice(&bytes)))
    }

    fn manifest(&self, id: &ManifestId) -> Result<Option<Vec<u8>>, StoreError> {
        self.manifests.fetch(&key(self.space, &[id.as_bytes()]))
    }

    fn chunk(&self, chunk: &ChunkId) -> Result<Option<(ContentId, u64)>, StoreError> {
        let found = self.chunks.fetch(&key(self.space, &[chunk.as_bytes()]))?;
        Ok(found.and_then(|bytes| {
            let (content, offset) = bytes.split_at_checked(32)?;
            Some((
                ContentId::from_slice(content)?,
                u64::from_be_bytes(offset.try_into().ok()?),
            ))
        }))
    }

    fn packed(&self, id: &[u8; 32]) -> Result<Option<PackRef>, StoreError> {
        let found = self.packed.fetch(&key(self.space, &[id]))?;
        Ok(found.and_then(|bytes| pack_ref(&bytes)))
    }
}

impl<'t> Index<'t> {
    /// Keeps the manifests of a content: top first, then the rest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_manifest(&mut self, id: &ManifestId, bytes: &[u8]) -> Result<(), StoreError> {
        let key = key(self.space, &[id.as_bytes()]);
        self.table(MANIFESTS)?.insert(key.as_slice(), bytes)?;
        Ok(())
    }

    /// Names a content's top manifest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_manifest_of(
        &mut self,
        content: &ContentId,
        top: &ManifestId,
    ) -> Result<(), StoreError> {
        let key = key(self.space, &[content.as_bytes()]);
        self.table(MANIFEST_OF)?
            .insert(key.as_slice(), top.as_bytes().as_slice())?;
        Ok(())
    }

    /// Forgets a content's top manifest: it was not true.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_manifest_of(&mut self, content: &ContentId) -> Result<(), StoreError> {
        let key = key(self.space, &[content.as_bytes()]);
        self.table(MANIFEST_OF)?.remove(key.as_slice())?;
        Ok(())
    }

    /// Says that a content holds a chunk at an offset.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_chunk(
        &mut self,
        chunk: &ChunkId,
        content: &ContentId,
        offset: u64,
    ) -> Result<(), StoreError> {
        let key = key(self.space, &[chunk.as_bytes()]);
        let value = [&content.as_bytes()[..], &offset.to_be_bytes()].concat();
        self.table(CHUNKS)?
            .insert(key.as_slice(), value.as_slice())?;
        Ok(())
    }

    /// Says that a pack holds a chunk or a small content.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_packed(&mut self, id: &[u8; 32], at: &PackRef) -> Result<(), StoreError> {
        let key = key(self.space, &[id]);
        self.table(PACKED)?
            .insert(key.as_slice(), pack_ref_bytes(at).as_slice())?;
        Ok(())
    }

    /// Up to `limit` of what packs hold, by id, after `from`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn packed_after(
        &self,
        from: Option<&PackedId>,
        limit: usize,
    ) -> Result<Vec<(PackedId, PackRef)>, StoreError> {
        packed_after(&self.table(PACKED)?, self.space, from, limit)
    }

    /// Forgets where a pack holds something.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_packed(&mut self, id: &PackedId) -> Result<(), StoreError> {
        let key = key(self.space, &[id]);
        self.table(PACKED)?.remove(key.as_slice())?;
        self.table(REPLACED)?.remove(key.as_slice())?;
        Ok(())
    }

    /// Since when nothing shows what a pack holds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn replaced(&self, id: &PackedId) -> Result<Option<Replaced>, StoreError> {
        replaced_in(&self.table(REPLACED)?, self.space, id)
    }

    /// Notes since when, or that something does; says whether that is news.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_replaced(
        &mut self,
        id: &PackedId,
        replaced: Option<Replaced>,
    ) -> Result<bool, StoreError> {
        let key = key(self.space, &[id]);
        let mut table = self.table(REPLACED)?;
        let Some(Replaced { class, since }) = replaced else {
            return Ok(table.remove(key.as_slice())?.is_some());
        };
        let value = [&[class as u8][..], &since.to_be_bytes()].concat();
        table.insert(key.as_slice(), value.as_slice())?;
        Ok(true)
    }

    /// Reads of content locations, the same as on a read transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn contents(&self) -> Result<impl ContentTables + use<'t>, StoreError> {
        Ok(Tables {
            space: self.space,
            sources: self.table(SOURCES)?,
            manifest_of: self.table(MANIFEST_OF)?,
            manifests: self.table(MANIFESTS)?,
            chunks: self.table(CHUNKS)?,
            packed: self.table(PACKED)?,
        })
    }
}

//! The index on a read transaction.

use pacsync_protocol::{NodeId, cbor};
use redb::ReadTransaction;

use super::contents::{ContentTables, PackedId, Replaced, Tables, packed_after, replaced_in};
use super::entries::{Entry, nodes_below, split_location};
use super::work::pending_in;
use super::{
    ATTACHED, Attachment, CHUNKS, ENTRIES, INODES, JOINED, LOCATIONS, MANIFEST_OF, MANIFESTS,
    PACKED, PENDING, REPLACED, Readable, SOURCES, key,
};
use crate::content::packs::PackRef;
use crate::error::StoreError;

/// The index of one space within a read transaction.
pub struct IndexReader<'t> {
    tx: &'t ReadTransaction,
    space: u32,
}

impl<'t> IndexReader<'t> {
    /// Reads the index of a space.
    pub fn new(tx: &'t ReadTransaction, space: u32) -> Self {
        Self { tx, space }
    }

    /// The attachment.
    ///
    /// # Errors
    /// [`StoreError`], as everywhere here.
    pub fn attachment(&self) -> Result<Option<Attachment>, StoreError> {
        let table = self.tx.open_table(ATTACHED)?;
        let Some(bytes) = table.get(self.space)? else {
            return Ok(None);
        };
        Ok(Some(cbor::decode("attachment", bytes.value())?))
    }

    /// A node's place and entry.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn entry_of(&self, node: &NodeId) -> Result<Option<(NodeId, Vec<u8>, Entry)>, StoreError> {
        let locations = self.tx.open_table(LOCATIONS)?;
        let found = locations.fetch(&key(self.space, &[node.as_bytes()]))?;
        let Some((parent, name)) = found.and_then(|bytes| split_location(&bytes)) else {
            return Ok(None);
        };
        let entries = self.tx.open_table(ENTRIES)?;
        match entries.fetch(&key(self.space, &[parent.as_bytes(), &name]))? {
            Some(bytes) => Ok(Some((parent, name, Entry::from_bytes(&bytes)?))),
            None => Ok(None),
        }
    }

    /// Up to `limit` nodes that have yet to be rendered, after `from`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pending(&self, from: Option<&NodeId>, limit: usize) -> Result<Vec<NodeId>, StoreError> {
        pending_in(&self.tx.open_table(PENDING)?, self.space, from, limit)
    }

    /// Everything known in a directory, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn children(&self, parent: &NodeId) -> Result<Vec<(Vec<u8>, Entry)>, StoreError> {
        self.tx
            .open_table(ENTRIES)?
            .below(&key(self.space, &[parent.as_bytes()]), usize::MAX)?
            .into_iter()
            .map(|(name, bytes)| Ok((name, Entry::from_bytes(&bytes)?)))
            .collect()
    }

    /// What is known to be at a place.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, parent: &NodeId, name: &[u8]) -> Result<Option<Entry>, StoreError> {
        let key = key(self.space, &[parent.as_bytes(), name]);
        let table = self.tx.open_table(ENTRIES)?;
        table
            .fetch(&key)?
            .map(|bytes| Entry::from_bytes(&bytes))
            .transpose()
    }

    /// Nodes whose file had this inode.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn by_inode(&self, ino: u64) -> Result<Vec<NodeId>, StoreError> {
        nodes_below(
            &self.tx.open_table(INODES)?,
            &key(self.space, &[&ino.to_be_bytes()]),
        )
    }

    /// Number of nodes that have yet to be rendered, counted up to `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pending_count(&self, limit: usize) -> Result<usize, StoreError> {
        Ok(self.pending(None, limit)?.len())
    }

    /// Paths that a first join set aside.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_aside(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let table = self.tx.open_table(JOINED)?;
        let found = table.below(&key(self.space, &[]), usize::MAX)?;
        Ok(found.into_iter().map(|(_, path)| path).collect())
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
        packed_after(&self.tx.open_table(PACKED)?, self.space, from, limit)
    }

    /// Since when nothing shows what a pack holds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn replaced(&self, id: &PackedId) -> Result<Option<Replaced>, StoreError> {
        replaced_in(&self.tx.open_table(REPLACED)?, self.space, id)
    }

    /// Where content can be read from.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn contents(&self) -> Result<impl ContentTables + use<>, StoreError> {
        Ok(Tables {
            space: self.space,
            sources: self.tx.open_table(SOURCES)?,
            manifest_of: self.tx.open_table(MANIFEST_OF)?,
            manifests: self.tx.open_table(MANIFESTS)?,
            chunks: self.tx.open_table(CHUNKS)?,
            packed: self.tx.open_table(PACKED)?,
        })
    }
}

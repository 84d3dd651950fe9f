//! What is known to stand at a name on disk, and the ways back to it.

use minicbor::{Decode, Encode};
use pacsync_protocol::row::Kind;
use pacsync_protocol::{ContentId, NodeId, RowId, cbor};

use super::{ENTRIES, INODES, Index, LOCATIONS, Readable, SOURCES, key};
use crate::error::StoreError;

/// What tells a file from another or from its older self, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct FileIdentity {
    /// Device number.
    #[n(0)]
    pub dev: u64,
    /// Inode.
    #[n(1)]
    pub ino: u64,
    /// Bytes.
    #[n(2)]
    pub size: u64,
    /// Nanoseconds since 1970.
    #[n(3)]
    pub mtime_ns: i64,
    /// Nanoseconds since 1970.
    #[n(4)]
    pub ctime_ns: i64,
    /// Nanoseconds since 1970, where the disk knows it.
    #[n(5)]
    pub btime_ns: Option<i64>,
}

/// One thing on disk as it was last scanned or applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The node that it renders.
    pub node: NodeId,
    /// What it is.
    pub kind: Kind,
    /// Its identity then.
    pub identity: FileIdentity,
    /// 0777 bits then.
    pub mode: u16,
    /// The row whose content is on disk; `None` for directories.
    pub row: Option<RowId>,
    /// That content.
    pub content: Option<ContentId>,
    /// Nanoseconds since 1970 when this was recorded; a file changed within the disk's time grain
    /// of it must be read again.
    pub recorded_ns: i64,
}

#[derive(Encode, Decode)]
#[cbor(array)]
struct StoredEntry {
    #[n(0)]
    node: NodeId,
    #[n(1)]
    kind: u8,
    #[n(2)]
    identity: FileIdentity,
    #[n(3)]
    mode: u16,
    #[n(4)]
    recorded_ns: i64,
    #[n(5)]
    row: Option<RowId>,
    #[n(6)]
    content: Option<ContentId>,
}

impl Entry {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        cbor::encode(&StoredEntry {
            node: self.node,
            kind: match self.kind {
                Kind::Dir => 1,
                Kind::Symlink => 2,
                Kind::File | Kind::Other(_) => 0,
            },
            identity: self.identity,
            mode: self.mode,
            recorded_ns: self.recorded_ns,
            row: self.row,
            content: self.content,
        })
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let stored: StoredEntry = cbor::decode("index entry", bytes)?;
        Ok(Self {
            node: stored.node,
            kind: match stored.kind {
                1 => Kind::Dir,
                2 => Kind::Symlink,
                _ => Kind::File,
            },
            identity: stored.identity,
            mode: stored.mode,
            row: stored.row,
            content: stored.content,
            recorded_ns: stored.recorded_ns,
        })
    }
}

pub(super) fn split_location(bytes: &[u8]) -> Option<(NodeId, Vec<u8>)> {
    let (parent, name) = bytes.split_at_checked(NodeId::LEN)?;
    Some((NodeId::from_slice(parent)?, name.to_vec()))
}

pub(super) fn nodes_below(table: &impl Readable, prefix: &[u8]) -> Result<Vec<NodeId>, StoreError> {
    let found = table.below(prefix, 16)?;
    Ok(found
        .iter()
        .filter_map(|(node, _)| NodeId::from_slice(node))
        .collect())
}

impl Index<'_> {
    /// What is known to be at a place.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, parent: &NodeId, name: &[u8]) -> Result<Option<Entry>, StoreError> {
        let key = key(self.space, &[parent.as_bytes(), name]);
        self.table(ENTRIES)?
            .fetch(&key)?
            .map(|bytes| Entry::from_bytes(&bytes))
            .transpose()
    }

    /// Where a node is on disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn location(&self, node: &NodeId) -> Result<Option<(NodeId, Vec<u8>)>, StoreError> {
        let found = self
            .table(LOCATIONS)?
            .fetch(&key(self.space, &[node.as_bytes()]))?;
        Ok(found.and_then(|bytes| split_location(&bytes)))
    }

    /// A node's place and entry.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn entry_of(&self, node: &NodeId) -> Result<Option<(NodeId, Vec<u8>, Entry)>, StoreError> {
        let Some((parent, name)) = self.location(node)? else {
            return Ok(None);
        };
        Ok(self.get(&parent, &name)?.map(|entry| (parent, name, entry)))
    }

    /// Everything known in a directory, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn children(&self, parent: &NodeId) -> Result<Vec<(Vec<u8>, Entry)>, StoreError> {
        self.table(ENTRIES)?
            .below(&key(self.space, &[parent.as_bytes()]), usize::MAX)?
            .into_iter()
            .map(|(name, bytes)| Ok((name, Entry::from_bytes(&bytes)?)))
            .collect()
    }

    /// True if nothing is known in a directory.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_empty_dir(&self, parent: &NodeId) -> Result<bool, StoreError> {
        let prefix = key(self.space, &[parent.as_bytes()]);
        Ok(self.table(ENTRIES)?.below(&prefix, 1)?.is_empty())
    }

    /// Records what is at a place; what was known there, or of the node elsewhere, is replaced.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put(&mut self, parent: &NodeId, name: &[u8], entry: &Entry) -> Result<(), StoreError> {
        if let Some(old) = self.get(parent, name)? {
            self.unlink_maps(&old)?;
            if old.node != entry.node {
                self.table(LOCATIONS)?
                    .remove(key(self.space, &[old.node.as_bytes()]).as_slice())?;
            }
        }
        if let Some((p, n)) = self.location(&entry.node)?
            && (p != *parent || n != name)
        {
            self.remove(&p, &n)?;
        }
        let bytes = entry.to_bytes();
        let place = key(self.space, &[parent.as_bytes(), name]);
        self.table(ENTRIES)?
            .insert(place.as_slice(), bytes.as_slice())?;
        let location = [&parent.as_bytes()[..], name].concat();
        let node = key(self.space, &[entry.node.as_bytes()]);
        self.table(LOCATIONS)?
            .insert(node.as_slice(), location.as_slice())?;
        let ino = entry.identity.ino.to_be_bytes();
        let inode = key(self.space, &[&ino, entry.node.as_bytes()]);
        self.table(INODES)?.insert(inode.as_slice(), &[][..])?;
        if let Some(content) = &entry.content {
            let source = key(self.space, &[content.as_bytes(), entry.node.as_bytes()]);
            self.table(SOURCES)?.insert(source.as_slice(), &[][..])?;
        }
        Ok(())
    }

    fn unlink_maps(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let ino = entry.identity.ino.to_be_bytes();
        let inode = key(self.space, &[&ino, entry.node.as_bytes()]);
        self.table(INODES)?.remove(inode.as_slice())?;
        if let Some(content) = &entry.content {
            let source = key(self.space, &[content.as_bytes(), entry.node.as_bytes()]);
            self.table(SOURCES)?.remove(source.as_slice())?;
        }
        Ok(())
    }

    /// Forgets what was known at a place.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&mut self, parent: &NodeId, name: &[u8]) -> Result<Option<Entry>, StoreError> {
        let Some(old) = self.get(parent, name)? else {
            return Ok(None);
        };
        self.unlink_maps(&old)?;
        let place = key(self.space, &[parent.as_bytes(), name]);
        self.table(ENTRIES)?.remove(place.as_slice())?;
        self.table(LOCATIONS)?
            .remove(key(self.space, &[old.node.as_bytes()]).as_slice())?;
        Ok(Some(old))
    }

    /// Nodes whose file had this inode.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn by_inode(&self, ino: u64) -> Result<Vec<NodeId>, StoreError> {
        nodes_below(
            &self.table(INODES)?,
            &key(self.space, &[&ino.to_be_bytes()]),
        )
    }

    /// Nodes whose file has this content, at most 16.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn by_content(&self, content: &ContentId) -> Result<Vec<NodeId>, StoreError> {
        nodes_below(
            &self.table(SOURCES)?,
            &key(self.space, &[content.as_bytes()]),
        )
    }

    /// Replaces a device number in every entry: systems number their disks anew at each start.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn renumber(&mut self, from: u64, to: u64) -> Result<(), StoreError> {
        if from == to {
            return Ok(());
        }
        let mut table = self.table(ENTRIES)?;
        for (rest, bytes) in table.below(&key(self.space, &[]), usize::MAX)? {
            let mut entry = Entry::from_bytes(&bytes)?;
            if entry.identity.dev == from {
                entry.identity.dev = to;
                let place = key(self.space, &[&rest]);
                table.insert(place.as_slice(), entry.to_bytes().as_slice())?;
            }
        }
        Ok(())
    }
}

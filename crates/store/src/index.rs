//! The worktree index: what a device's disk is known to hold, and where content can be read.
//!
//! Entries are keyed by (parent node, name on disk), so that renaming a directory touches one
//! entry. Losing the index costs a rescan, never data. Never here: what the tree says, or I/O.

use minicbor::{Decode, Encode};
use pacsync_protocol::content::ManifestId;
use pacsync_protocol::row::Kind;
use pacsync_protocol::{ChunkId, ContentId, NodeId, RowId, VersionVector, cbor};
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::content::packs::PackRef;
use crate::error::StoreError;

type Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Space number → [`Attachment`].
const ATTACHED: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("attached");
/// Space, parent, name → [`Entry`].
const ENTRIES: Bytes = TableDefinition::new("entries");
/// Space, node → parent, name.
const LOCATIONS: Bytes = TableDefinition::new("locations");
/// Space, inode, node.
const INODES: Bytes = TableDefinition::new("inodes");
/// Space, content id, node: live files as the source of content.
const SOURCES: Bytes = TableDefinition::new("sources");
/// Space, node: what has yet to be rendered on disk.
const PENDING: Bytes = TableDefinition::new("pending");
/// Space, number → intent, as the worktree engine encodes it.
const INTENTS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("intents");
/// Space, number → displaced record, likewise.
const DISPLACED: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("displaced");
/// Space, content id → unfinished transfer, likewise.
const TRANSFERS: Bytes = TableDefinition::new("transfers");
/// Space, content id → id of its top manifest.
const MANIFEST_OF: Bytes = TableDefinition::new("manifest_of");
/// Space, manifest id → manifest bytes.
const MANIFESTS: Bytes = TableDefinition::new("manifests");
/// Space, chunk id → content id, offset: a content that holds the chunk.
const CHUNKS: Bytes = TableDefinition::new("chunks");
/// Space, 32-byte id of a chunk or a small content → [`PackRef`].
const PACKED: Bytes = TableDefinition::new("packed");
/// Space, group → content that was kept: what a first join set aside, listed once.
const JOINED: Bytes = TableDefinition::new("set_aside");

pub(crate) fn make_tables(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(ATTACHED)?;
    for table in [
        ENTRIES,
        LOCATIONS,
        INODES,
        SOURCES,
        PENDING,
        TRANSFERS,
        MANIFEST_OF,
        MANIFESTS,
        CHUNKS,
        PACKED,
        JOINED,
    ] {
        tx.open_table(table)?;
    }
    tx.open_table(INTENTS)?;
    tx.open_table(DISPLACED)?;
    Ok(())
}

/// Where a space's worktree is and how far its first join got.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Attachment {
    /// Absolute path of the root directory.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub root: Vec<u8>,
    /// The sponsor's vector that must be applied before the first scan; `None` once it was.
    #[n(1)]
    pub join: Option<VersionVector>,
    /// Device, inode and file-system id of the root, to tell when it was exchanged.
    #[n(2)]
    pub root_identity: Option<RootIdentity>,
    /// True until the first scan has ended: nodes are born *adopted*.
    #[n(3)]
    pub first_scan: bool,
    /// Files and directories that the user or the tree had at the last look, for the circuit breaker.
    #[n(4)]
    pub entries: u64,
    /// True while no sponsor has told its vector yet.
    #[n(5)]
    pub awaits_sponsor: bool,
}

/// What identifies a root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct RootIdentity {
    /// Device number.
    #[n(0)]
    pub dev: u64,
    /// Inode.
    #[n(1)]
    pub ino: u64,
    /// File-system id.
    #[n(2)]
    pub fsid: u64,
}

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
    fn to_bytes(&self) -> Vec<u8> {
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

    fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
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

fn key(space: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.extend_from_slice(&space.to_be_bytes());
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// The first key after all that begin with `prefix`.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 255 {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// A key or the rest of one, and its value.
type Pair = (Vec<u8>, Vec<u8>);

trait Readable: ReadableTable<&'static [u8], &'static [u8]> {
    fn fetch(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get(key)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Keys below a prefix, without it, and values, ascending.
    fn below(&self, prefix: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        let end = after(prefix);
        self.range::<&[u8]>(prefix..end.as_slice())?
            .take(limit)
            .map(|item| {
                let (key, value) = item?;
                let rest = key.value().get(prefix.len()..).unwrap_or_default().to_vec();
                Ok((rest, value.value().to_vec()))
            })
            .collect()
    }
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Readable for T {}

fn split_location(bytes: &[u8]) -> Option<(NodeId, Vec<u8>)> {
    let (parent, name) = bytes.split_at_checked(NodeId::LEN)?;
    Some((NodeId::from_slice(parent)?, name.to_vec()))
}

/// The index of one space within a write transaction.
pub struct Index<'t> {
    tx: &'t WriteTransaction,
    space: u32,
    attached: bool,
}

impl<'t> Index<'t> {
    pub(crate) fn open(tx: &'t WriteTransaction, space: u32) -> Result<Self, StoreError> {
        let attached = tx.open_table(ATTACHED)?.get(space)?.is_some();
        Ok(Self {
            tx,
            space,
            attached,
        })
    }

    fn table(&self, table: Bytes) -> Result<Table<'t, &'static [u8], &'static [u8]>, StoreError> {
        Ok(self.tx.open_table(table)?)
    }

    /// True if the space has a worktree here.
    pub fn is_attached(&self) -> bool {
        self.attached
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

    /// Sets or replaces the attachment.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_attachment(&mut self, attachment: &Attachment) -> Result<(), StoreError> {
        self.attached = true;
        let mut table = self.tx.open_table(ATTACHED)?;
        table.insert(self.space, cbor::encode(attachment).as_slice())?;
        Ok(())
    }

    /// Forgets the attachment and everything that was known of the disk. Manifests and packs stay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn detach(&mut self) -> Result<(), StoreError> {
        self.attached = false;
        self.tx.open_table(ATTACHED)?.remove(self.space)?;
        let prefix = self.space.to_be_bytes();
        let end = after(&prefix);
        for table in [
            ENTRIES, LOCATIONS, INODES, SOURCES, PENDING, TRANSFERS, JOINED,
        ] {
            self.table(table)?
                .retain_in::<&[u8], _>(prefix.as_slice()..end.as_slice(), |_, _| false)?;
        }
        for table in [INTENTS, DISPLACED] {
            let mut table = self.tx.open_table(table)?;
            table.retain_in((self.space, 0)..=(self.space, u64::MAX), |_, _| false)?;
        }
        Ok(())
    }

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

    /// Marks a node as not yet rendered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn mark_pending(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(PENDING)?.insert(key.as_slice(), &[][..])?;
        Ok(())
    }

    /// Takes a node's mark away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clear_pending(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(PENDING)?.remove(key.as_slice())?;
        Ok(())
    }

    /// Up to `limit` marked nodes after `from`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pending(&self, from: Option<&NodeId>, limit: usize) -> Result<Vec<NodeId>, StoreError> {
        pending_in(&self.table(PENDING)?, self.space, from, limit)
    }

    /// Keeps a record and returns its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_note(&mut self, kind: NoteKind, bytes: &[u8]) -> Result<u64, StoreError> {
        let mut table = self.tx.open_table(kind.table())?;
        let last = match table
            .range((self.space, 0)..=(self.space, u64::MAX))?
            .next_back()
        {
            Some(item) => item?.0.value().1,
            None => 0,
        };
        let number = last + 1;
        table.insert((self.space, number), bytes)?;
        Ok(number)
    }

    /// Takes a record away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_note(&mut self, kind: NoteKind, number: u64) -> Result<(), StoreError> {
        self.tx
            .open_table(kind.table())?
            .remove((self.space, number))?;
        Ok(())
    }

    /// All records of a kind.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn notes(&self, kind: NoteKind) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let table = self.tx.open_table(kind.table())?;
        table
            .range((self.space, 0)..=(self.space, u64::MAX))?
            .map(|item| {
                let (key, value) = item?;
                Ok((key.value().1, value.value().to_vec()))
            })
            .collect()
    }

    /// Keeps the record of an unfinished transfer.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_transfer(&mut self, content: &ContentId, bytes: &[u8]) -> Result<(), StoreError> {
        let key = key(self.space, &[content.as_bytes()]);
        self.table(TRANSFERS)?.insert(key.as_slice(), bytes)?;
        Ok(())
    }

    /// Takes it away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_transfer(&mut self, content: &ContentId) -> Result<(), StoreError> {
        let key = key(self.space, &[content.as_bytes()]);
        self.table(TRANSFERS)?.remove(key.as_slice())?;
        Ok(())
    }

    /// The record of an unfinished transfer of a content.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn transfer_of(&self, content: &ContentId) -> Result<Option<Vec<u8>>, StoreError> {
        self.table(TRANSFERS)?
            .fetch(&key(self.space, &[content.as_bytes()]))
    }

    /// All unfinished transfers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn transfers(&self) -> Result<Vec<(ContentId, Vec<u8>)>, StoreError> {
        let found = self
            .table(TRANSFERS)?
            .below(&key(self.space, &[]), usize::MAX)?;
        Ok(found
            .into_iter()
            .filter_map(|(id, bytes)| Some((ContentId::from_slice(&id)?, bytes)))
            .collect())
    }

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

    /// Counts a file that a first join set aside for the pac's version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn note_set_aside(&mut self, node: &NodeId, path: &[u8]) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(JOINED)?.insert(key.as_slice(), path)?;
        Ok(())
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

/// The two kinds of durable notes of the worktree engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteKind {
    /// What an apply is about to do.
    Intent,
    /// What an apply put aside and has yet to look at again.
    Displaced,
}

impl NoteKind {
    fn table(self) -> TableDefinition<'static, (u32, u64), &'static [u8]> {
        match self {
            Self::Intent => INTENTS,
            Self::Displaced => DISPLACED,
        }
    }
}

fn nodes_below(table: &impl Readable, prefix: &[u8]) -> Result<Vec<NodeId>, StoreError> {
    let found = table.below(prefix, 16)?;
    Ok(found
        .iter()
        .filter_map(|(node, _)| NodeId::from_slice(node))
        .collect())
}

fn pending_in(
    table: &impl Readable,
    space: u32,
    from: Option<&NodeId>,
    limit: usize,
) -> Result<Vec<NodeId>, StoreError> {
    let prefix = key(space, &[]);
    let start = match from {
        Some(node) => [key(space, &[node.as_bytes()]), vec![0]].concat(),
        None => prefix.clone(),
    };
    let end = after(&prefix);
    table
        .range::<&[u8]>(start.as_slice()..end.as_slice())?
        .take(limit)
        .map(|item| {
            Ok(NodeId::from_slice(
                item?.0.value().get(4..).unwrap_or_default(),
            ))
        })
        .filter_map(Result::transpose)
        .collect()
}

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

struct Tables<T> {
    space: u32,
    sources: T,
    manifest_of: T,
    manifests: T,
    chunks: T,
    packed: T,
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

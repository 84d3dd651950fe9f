//! The worktree index: what a device's disk is known to hold, and where content can be read.
//!
//! Entries are keyed by (parent node, name on disk), so that renaming a directory touches one
//! entry. Losing the index costs a rescan, never data. Never here: what the tree says, or I/O.

mod contents;
mod entries;
mod reader;
mod work;

pub use contents::{Class, ContentTables, PackedId, Replaced};
pub use entries::{Entry, FileIdentity};
pub use reader::IndexReader;
pub use work::{HeldKind, NoteKind};

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use pacsync_protocol::{DeviceId, VersionVector, cbor};
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

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
/// Space, id as in [`PACKED`] → class and time: since when nothing shows what a pack holds.
const REPLACED: Bytes = TableDefinition::new("replaced");
/// Space, group → content that was kept: what a first join set aside, listed once.
const JOINED: Bytes = TableDefinition::new("set_aside");
/// (space, node) → why its delete waits, and its path.
const HELD: Bytes = TableDefinition::new("held");
/// Space, node: files whose content history has yet to keep.
const UNKEPT: Bytes = TableDefinition::new("unkept");
/// Of files that are not tracked any more: (space, node) to the row of what stood there then.
const FORGOTTEN: Bytes = TableDefinition::new("forgotten");

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
        REPLACED,
        JOINED,
        HELD,
        UNKEPT,
        FORGOTTEN,
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
    /// What the worktree tracked last, in its own words; `None` before it was opened.
    #[n(6)]
    pub tracked: Option<ByteVec>,
    /// Whose vector `join` is.
    #[n(7)]
    pub sponsor: Option<DeviceId>,
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
            ENTRIES, LOCATIONS, INODES, SOURCES, PENDING, TRANSFERS, JOINED, HELD, UNKEPT,
            FORGOTTEN,
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
}

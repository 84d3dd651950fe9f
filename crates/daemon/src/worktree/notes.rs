//! Durable notes of what an apply is about to do and what it put aside.

use minicbor::{Decode, Encode};
use pacsync_protocol::{ContentId, NodeId, RowId};
use pacsync_store::index::FileIdentity;

use crate::disk::RelPath;

/// What an apply is about to do; stands until its index row is durable.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Intent {
    #[n(0)]
    pub(super) act: Act,
    #[n(1)]
    pub(super) node: NodeId,
    /// Directory node of the target.
    #[n(2)]
    pub(super) parent: NodeId,
    /// Name of the target.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub(super) name: Vec<u8>,
    /// Path of the target.
    #[n(4)]
    pub(super) path: PathRecord,
    /// Path of the temporary file once it is whole, the trash name of a removal, or the source of a move.
    #[n(5)]
    pub(super) other: PathRecord,
    /// Content row and content that the target had.
    #[n(6)]
    pub(super) old: Option<Old>,
    /// Content row and content that it gets.
    #[n(7)]
    pub(super) new: Option<New>,
}

/// The kinds of apply that a crash can interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(super) enum Act {
    #[n(0)]
    Put,
    #[n(1)]
    Move,
    #[n(2)]
    Remove,
    /// No apply any more: a temporary file of this name may be somewhere, with nothing in it that
    /// anybody wrote. Removed where a scan meets it.
    #[n(3)]
    Stray,
}

/// What the index says of a file before it is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct Old {
    #[n(0)]
    pub(super) identity: FileIdentity,
    #[n(1)]
    pub(super) row: Option<RowId>,
    #[n(2)]
    pub(super) content: Option<ContentId>,
}

impl Old {
    /// Of a place where nothing stood.
    pub(super) fn nothing() -> Self {
        Self {
            identity: FileIdentity {
                dev: 0,
                ino: 0,
                size: 0,
                mtime_ns: 0,
                ctime_ns: 0,
                btime_ns: None,
            },
            row: None,
            content: None,
        }
    }
}

/// What a file is about to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct New {
    #[n(0)]
    pub(super) row: RowId,
    #[n(1)]
    pub(super) content: ContentId,
    #[n(2)]
    pub(super) is_symlink: bool,
    #[n(3)]
    pub(super) mode: u16,
}

/// A file that an apply put aside: looked at again, kept in history, then removed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Displaced {
    /// Where it is now.
    #[n(0)]
    pub(super) temp: PathRecord,
    /// The node whose file it was.
    #[n(1)]
    pub(super) node: NodeId,
    /// Where it was, for people.
    #[n(2)]
    pub(super) path: PathRecord,
    /// What the index said of it.
    #[n(3)]
    pub(super) old: Old,
    /// When to look again, in milliseconds since 1970.
    #[n(4)]
    pub(super) due_ms: u64,
    /// The directory that it is in, which may move; `None` for one that does not.
    #[n(5)]
    pub(super) dir: Option<NodeId>,
    /// What it holds if it never stood at the path, but was to come there: nobody's edit.
    #[n(6)]
    pub(super) new: Option<ContentId>,
}

/// A path as bytes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub(super) struct PathRecord {
    #[cbor(n(0), with = "minicbor::bytes")]
    bytes: Vec<u8>,
}

impl From<&RelPath> for PathRecord {
    fn from(path: &RelPath) -> Self {
        Self {
            bytes: path.as_bytes().to_vec(),
        }
    }
}

impl PathRecord {
    pub(super) fn path(&self) -> RelPath {
        RelPath::from_bytes(&self.bytes).unwrap_or_default()
    }
}

/// Name of a temporary file while it is written: what is found under it is nobody's edit.
pub(super) fn unfinished_name(name: &[u8]) -> Vec<u8> {
    [name, b"w"].concat()
}

/// Name of the old file on disks that cannot exchange.
pub(super) fn aside_name(name: &[u8]) -> Vec<u8> {
    [name, b"o"].concat()
}

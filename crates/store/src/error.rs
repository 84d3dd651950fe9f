//! What can go wrong in the store, by who is at fault.

use pacsync_protocol::cbor::DecodeError;
use pacsync_protocol::segment::SegmentError;
use pacsync_protocol::{LogId, SpaceId};

use crate::tree::TreeError;

/// An operation of the store failed; nothing of it took effect.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed or is full.
    #[error("the replica database: {0}")]
    Io(std::io::Error),
    /// The database is damaged.
    #[error("the replica database is damaged: {0}")]
    Damaged(String),
    /// Another process has the database open.
    #[error("the replica database is in use by another process")]
    InUse,
    /// The database was written by a later version.
    #[error("the replica database has format {found}, this version knows {known}: update pacsync")]
    UpdateNeeded {
        /// Format found.
        found: u64,
        /// Format known.
        known: u64,
    },
    /// The database was used in a way that it does not allow: a defect in pacsync.
    #[error("internal use of the database: {0}")]
    Misuse(String),
    /// Own records do not decode.
    #[error("a record in the replica database: {0}")]
    Record(#[from] DecodeError),
    /// A segment of our own could not be made.
    #[error("cannot write a segment: {0}")]
    Segment(#[from] SegmentError),
    /// The tree refused a row of our own.
    #[error("the tree: {0}")]
    Tree(Box<TreeError>),
    /// No such space here.
    #[error("this device does not know the space {0}")]
    UnknownSpace(SpaceId),
    /// No key to write with.
    #[error("this device has no key for the space {0} yet")]
    NoKey(SpaceId),
    /// The roster does not allow it.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// Pack files failed.
    #[error("packs: {0}")]
    Packs(String),
}

impl StoreError {
    /// True if the disk has no room.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io(e) => {
                matches!(
                    e.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
                )
            }
            _ => false,
        }
    }
}

/// Why a received segment was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Bytes or signature are bad: the peer misbehaves.
    #[error("bad segment: {0}")]
    Bad(String),
    /// It does not follow what is held of the log; it will be asked for again.
    #[error("segment of {log} leaves a gap")]
    Gap {
        /// The log.
        log: LogId,
    },
    /// Its author has begun more logs, or more branches of one, than any device would.
    #[error("the device of {log} has begun too many logs")]
    TooManyLogs {
        /// The log.
        log: LogId,
    },
    /// Its author has no grant, and as much of such authors is held as may be.
    #[error("there is no room for more of {log} until its author has a grant")]
    NoRoom {
        /// The log.
        log: LogId,
    },
    /// Its author has no grant for the space that is known here.
    #[error("the author of {log} may not write here")]
    NotAuthorised {
        /// The log.
        log: LogId,
    },
}

macro_rules! from_redb {
    ($($ty:ty),*) => {$(
        impl From<$ty> for StoreError {
            fn from(error: $ty) -> Self {
                redb::Error::from(error).into()
            }
        }
    )*};
}
from_redb!(
    redb::TransactionError,
    redb::TableError,
    redb::CommitError,
    redb::DatabaseError,
    redb::StorageError,
    redb::SetDurabilityError
);

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(e) => Self::Io(e),
            redb::Error::PreviousIo => Self::Io(std::io::Error::other(
                "an earlier write failed; the database was closed",
            )),
            redb::Error::Corrupted(why) => Self::Damaged(why),
            redb::Error::RepairAborted => Self::Damaged("the repair was aborted".into()),
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            other => Self::Misuse(other.to_string()),
        }
    }
}

impl From<TreeError> for StoreError {
    fn from(error: TreeError) -> Self {
        Self::Tree(Box::new(error))
    }
}

//! The derived tree of a space: what its rows say, kept up to date as rows arrive.
//!
//! Here: the gate for rows, the causal registers of a node's group, the replay of directory moves,
//! clashes at one path, and the questions that others ask about them. Never here: segments and
//! their causality (asked through [`Causality`]), file content, the disk, names that differ only
//! in case or normalisation.
//!
//! # Rules
//!
//! Everything below is a function of the set of rows (and, for hiding at a path, of who had seen
//! whose placement), never of the order in which they came.
//!
//! - **Group.** Nodes joined by `into` rows form a group; every such row counts for ever. The
//!   representative is the member that is not adopted first, then the lowest id; its lowest birth
//!   row gives the kind. A component's minimum needs no rule for chains and cycles.
//! - **Register.** For each key the newest rows are those that no other row writing it has behind
//!   it. `a` is *behind* `b` if it is reached through `past`.
//! - **Content.** Newest rows with one content id are one value, shown by the row with the highest
//!   time, then the lowest id. Rows that add nothing to the others are no values: merges of what
//!   another row has behind it, and what equals the base (see `values`). Of several values the shown one has a row that no delete covers,
//!   then most content rows behind it, then the lowest row id. The rest are losers: kept, listed.
//!   In a symlink a content that cannot be a target is no value.
//!   (That a deleted value never beats one that outlived its delete is stricter than the count alone.)
//! - **Mode.** Of several newest, one about the representative itself, then the lowest row id.
//! - **Dead.** A file or symlink is dead iff each newest content row is covered: behind some dead
//!   row, superseded or not, or a merge with sides that are all covered. Without content rows, and
//!   for directories, dead iff the newest `life` rows are all dead; a directory besides only if
//!   nothing alive is placed in it. Kinds of later versions are never dead and never shown.
//! - **Place.** Of a directory: all placements of all directories are replayed in (stamp, row id)
//!   order, and one that would close a cycle is skipped. Only directories close cycles: for other
//!   kinds it is simply the last placement. What is placed beneath a node that is no directory,
//!   or is not shown, is kept and not rendered.
//! - **Clash.** Among live groups at one path directory beats file beats symlink. Within a kind, a
//!   group steps back whose placement another's writer had seen while the group was alive; if
//!   several remain, all must be unified into the least (adopted, id), which shows until then. Who
//!   had seen a group there only dead made room for none: its later revival is concurrent. For
//!   that a directory's own `life` counts, not what lived beneath it then.
//!
//! # Cost
//!
//! A row costs O(log n) in the history of its group: every row links to the row that all of its
//! past runs through and, further back, to one such row more (see `ancestry`). A directory move
//! costs its depth, unless it concerns a directory that others were placed in and is not the last
//! in order, or such directories are unified: then one replay of all directory placements of the
//! space per settle. Unifying costs what lies directly in the directory that gives way.

mod ancestry;
mod clash;
mod group;
mod keys;
mod left_out;
mod past;
mod pending;
mod query;
mod record;
mod replay;
mod settle;
mod tables;
mod undo;
mod values;
mod versions;
mod view;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use pacsync_protocol::row::{Content, Kind, Name, Row};
use pacsync_protocol::{NodeId, RowId};

pub(crate) use left_out::{Ends, is_grave, is_within};
pub use past::{Buried, PastRow};
pub(crate) use tables::CarriedRow;
pub use tables::{
    Backend, Entries, ReadTables, Tree, TreeReader, TreeTables, WriteTables, make_tables,
};
pub use undo::{LifeBack, Part, Stays, TakenBack, taken_back};
pub use values::{Base, Mergeable};
pub use versions::Version;

/// The first entry that carried a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Carrier {
    /// Number of the log.
    pub log: u32,
    /// Number of the entry in it.
    pub seq: u64,
}

/// What the segments know about each other.
pub trait Causality {
    /// True if the segment with entry `later` is the one with `earlier` or has it in its past. The
    /// past of an applied segment never changes.
    fn saw(&self, later: Carrier, earlier: Carrier) -> bool;
}

/// What became of an inserted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is new.
    New,
    /// It was here; nothing changed.
    Known,
}

/// What follows from the rows inserted since the last settle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Representatives about which anything but the number of live children changed, and those
    /// that were merged away; sorted. May name some that look the same. What lies beneath a moved
    /// directory is not named, nor is a dead node whose directory was unified.
    pub changed: Vec<NodeId>,
    /// `into` rows to be written now; the same from every replica in the same state.
    pub unify: Vec<Row>,
    /// Directory placements replayed: 0 on the usual paths.
    pub replayed: usize,
}

/// The content that a node shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The row that wrote it.
    pub row: RowId,
    /// The content.
    pub content: Content,
}

/// What a group of nodes derives to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// The representative.
    pub id: NodeId,
    /// Its kind.
    pub kind: Kind,
    /// Representative of the directory that it is placed in; `None` if every placement was skipped.
    pub parent: Option<NodeId>,
    /// Its name there.
    pub name: Option<Name>,
    /// The row that placed it.
    pub at_row: Option<RowId>,
    /// The content that its path shows.
    pub content: Option<Shown>,
    /// The other values of the content register, best first.
    pub losers: Vec<(RowId, Content)>,
    /// Permission bits.
    pub mode: Option<u16>,
    /// Deleted, by the node's own rule.
    pub dead: bool,
    /// Alive and the winner at its path. Says nothing about the directories above.
    pub shown: bool,
    /// Whether the representative was born by the first scan of an attached root.
    pub adopted: bool,
    /// Newest rows of the group.
    pub heads: Vec<RowId>,
    /// Live groups placed directly beneath.
    pub live_children: u64,
}

/// What `status` counts in a space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Shown files.
    pub files: u64,
    /// Shown directories.
    pub dirs: u64,
    /// Shown symlinks.
    pub symlinks: u64,
    /// Bytes of shown files.
    pub bytes: u64,
    /// Live nodes with losing values, and paths with hidden nodes.
    pub conflicts: u64,
}

/// Something at which more than one thing stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// The live node has losing content values.
    Values(NodeId),
    /// Live nodes are hidden at a path.
    Path {
        /// The directory.
        parent: NodeId,
        /// The name in it.
        name: Name,
    },
}

/// Why the tree could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The row breaks a rule that honest writers keep; nothing was written.
    #[error("row {row}: {why}")]
    Hostile {
        /// The row.
        row: RowId,
        /// The rule.
        why: &'static str,
    },
    /// The tables contradict themselves.
    #[error("the tree's tables are damaged: {0}")]
    Damaged(&'static str),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] Box<redb::Error>),
}

impl From<redb::StorageError> for TreeError {
    fn from(error: redb::StorageError) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl From<redb::TableError> for TreeError {
    fn from(error: redb::TableError) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

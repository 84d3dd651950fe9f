//! The replica of a pac on one device: logs, rows, documents, the derived tree, the worktree
//! index, chunks and packs, in one redb database and a directory of pack files.
//!
//! Never here: sockets, tokio, a look at the user's environment, the user's files.

pub mod branches;
pub mod checkpoint;
pub mod content;
pub mod documents;
pub mod error;
pub mod index;
pub mod keep;
pub mod merge;
pub mod replica;
mod tables;
pub mod tree;
pub mod txn;
mod undoable;
mod written;

pub use error::{Refusal, StoreError};
pub use replica::{Committed, Identity, NewSegment, Space, Store, Waiting};
pub use txn::Txn;
pub use undoable::{Run, Undoable, UndoableKind};
pub use written::{Writers, Written};

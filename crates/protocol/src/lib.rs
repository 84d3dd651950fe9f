//! What pacsync devices say to each other and sign: identities, rows, segments,
//! the roster, the wire codec, and the sync and pairing state machines.
//!
//! Never here: I/O, clocks, tokio, randomness. Time and entropy come in as
//! arguments; effects go out as data.

pub mod ack;
pub mod beacon;
pub mod cbor;
pub mod checkpoint;
pub mod content;
pub mod crypto;
pub mod grant;
pub mod identity;
pub mod ids;
pub mod pairing;
pub mod roster;
pub mod row;
pub mod segment;
pub mod session;
pub mod stable;
pub mod vector;
pub mod wire;

pub use ids::{
    ChunkId, ContentId, DeviceId, EpochId, Incarnation, LogId, NodeId, PacId, RowId, SegmentHash,
    Seq, ShortHash, SpaceId, Stamp,
};
pub use vector::{Dep, Head, VersionVector};

//! Tables of the replica database outside the tree and the worktree index, and their records.
//!
//! Spaces and logs have small local numbers; keys begin with one.

use minicbor::{Decode, Encode};
use pacsync_protocol::{Head, Incarnation, LogId, SegmentHash, Seq, SpaceId, Stamp};
use redb::TableDefinition;

/// Format of the database; a later one is refused.
pub(crate) const FORMAT: u64 = 1;

/// Name → small values: `format`, `incarnation`, `place`, `pack_end`.
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Space number → [`SpaceRecord`].
pub(crate) const SPACES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("spaces");
/// Log number → [`LogRecord`].
pub(crate) const LOGS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("logs");
/// (Log number, last entry) → segment bytes.
pub(crate) const SEGMENTS: TableDefinition<'_, (u32, u64), &[u8]> =
    TableDefinition::new("segments");
/// (Log number, last entry) → [`SegmentRecord`].
pub(crate) const SEGMENT_INDEX: TableDefinition<'_, (u32, u64), &[u8]> =
    TableDefinition::new("segment_index");
/// (Space number, log number) → last entry: applied segments that no other applied segment has behind it.
pub(crate) const FRONTIER: TableDefinition<'_, (u32, u32), u64> = TableDefinition::new("frontier");
/// (Space number, document id) → saved Automerge document.
pub(crate) const DOCUMENTS: TableDefinition<'_, (u32, &[u8; 16]), &[u8]> =
    TableDefinition::new("documents");
/// (Log number, last entry) → why part of a segment was not applied.
pub(crate) const QUARANTINE: TableDefinition<'_, (u32, u64), &str> =
    TableDefinition::new("quarantine");
/// (Space number, device id) → newest signed ack.
pub(crate) const ACKS: TableDefinition<'_, (u32, &[u8; 32]), &[u8]> = TableDefinition::new("acks");

/// Device id → when a second branch of one of its logs was first met here, in milliseconds
/// since 1970.
pub(crate) const FORKED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("forked");

/// A space as this replica knows it.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(map)]
pub(crate) struct SpaceRecord {
    /// Its id.
    #[n(0)]
    pub(crate) id: SpaceId,
    /// Highest clock of an applied segment.
    #[n(1)]
    pub(crate) clock: Stamp,
}

/// A log as this replica holds it.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(map)]
pub(crate) struct LogRecord {
    #[n(0)]
    pub(crate) space: u32,
    #[n(1)]
    pub(crate) id: LogId,
    /// Last entry that is durable here.
    #[n(2)]
    pub(crate) held: Seq,
    /// Hash of the segment that ends there.
    #[n(3)]
    pub(crate) held_hash: SegmentHash,
    /// Last entry that the derived state contains.
    #[n(4)]
    pub(crate) applied: Seq,
    /// Hash of the segment that ends there.
    #[n(5)]
    pub(crate) applied_hash: Option<SegmentHash>,
    /// Bytes of the held segments.
    #[n(6)]
    #[cbor(default)]
    pub(crate) bytes: u64,
    /// Of a branch: the last segment that it shares with the record of another chain. What
    /// stands before is stored there alone.
    #[n(7)]
    pub(crate) stem: Option<PastEntry>,
}

impl LogRecord {
    /// Whether it is a chain of the same life of the same writer in the space: the one log, or a
    /// branch of it.
    pub(crate) fn is_of(&self, space: u32, log: &LogId) -> bool {
        self.space == space
            && self.id.device == log.device
            && self.id.incarnation == log.incarnation
    }

    pub(crate) fn held_head(&self) -> Head {
        Head {
            seq: self.held,
            hash: self.held_hash.to_short(),
        }
    }

    pub(crate) fn applied_head(&self) -> Option<Head> {
        let hash = self.applied_hash?.to_short();
        Some(Head {
            seq: self.applied,
            hash,
        })
    }
}

/// What is kept of every segment besides its bytes.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(map)]
pub(crate) struct SegmentRecord {
    #[n(0)]
    pub(crate) first: Seq,
    #[n(1)]
    pub(crate) hash: SegmentHash,
    #[n(2)]
    pub(crate) clock: Stamp,
    #[n(3)]
    pub(crate) time_ms: u64,
    /// Causal past: (log number, last entry), ascending, the own log left out; set when applied.
    #[n(4)]
    pub(crate) past: Vec<PastEntry>,
}

/// One log in a segment's causal past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct PastEntry {
    #[n(0)]
    pub(crate) log: u32,
    #[n(1)]
    pub(crate) seq: Seq,
}

/// This replica's own life: which log it writes.
pub(crate) fn incarnation_from(bytes: &[u8]) -> Option<Incarnation> {
    Incarnation::from_slice(bytes)
}

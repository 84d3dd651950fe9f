//! What goes into a session and what comes out.

use crate::ack::ACK_MAX;
use crate::content::{MANIFEST_BYTES_MAX, ObjectId, SMALL_MAX};
use crate::ids::{ContentId, Incarnation, LogId, PacId, Seq, SpaceId};
use crate::segment::SEGMENT_MAX;
use crate::vector::{Dep, Head, VersionVector};
use crate::wire::{
    ACKS_MAX, ADDRESSES_MAX, Acks, CONTENTS_MAX, CloseCode, Item, Lane, Pieces, SEGMENT_MIN,
    TEXT_MAX,
};

/// Whether a key is in the roster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerStanding {
    /// Not yet: only roster segments are taken from it, nothing but a hello is sent to it.
    Unknown,
    /// It has a valid grant.
    Known,
}

/// What a session is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pac.
    pub pac: PacId,
    /// What the peer's key is to us.
    pub standing: PeerStanding,
    /// Optional features that are spoken here, one bit each.
    pub features: u64,
    /// Name and version of the program; cut at 64 bytes.
    pub agent: String,
    /// Where this device listens; the first 16 are sent.
    pub addresses: Vec<String>,
    /// The life of this device's replica.
    pub life: Incarnation,
}

/// A segment as the owner has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Number of its first entry.
    pub first: Seq,
    /// The log's head once it is in it.
    pub head: Head,
    /// The signed bytes.
    pub bytes: Vec<u8>,
}

/// Where a segment came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Written here: pushed at once.
    Own,
    /// Received from another device: the peer hears of it at once and gets it after
    /// [`super::FORWARD_DELAY_MS`] if it still lacks it then.
    Elsewhere,
}

/// Why a received segment was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Malformed or wrongly signed: the peer did not verify what it passed on. Ends the session.
    Misbehaviour(String),
    /// Not now: a gap, a fork, a format of the future, an author without rights. The log is not
    /// sent again in this session unless it has grown here or [`Input::Reconsider`] asks for it.
    Declined(LogId),
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Contents: small ones whole, of others the top manifests.
    Contents(Vec<ContentId>),
    /// Parts of one content.
    Pieces {
        /// The content.
        content: ContentId,
        /// The parts.
        pieces: Pieces,
    },
}

impl Wanted {
    /// How many items.
    pub fn len(&self) -> usize {
        match self {
            Self::Contents(ids) => ids.len(),
            Self::Pieces { pieces, .. } => pieces.len(),
        }
    }

    /// True without any item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `count` items from number `from`.
    pub fn slice(&self, from: usize, count: usize) -> Self {
        match self {
            Self::Contents(ids) => {
                Self::Contents(ids.iter().skip(from).take(count).copied().collect())
            }
            Self::Pieces { content, pieces } => Self::Pieces {
                content: *content,
                pieces: pieces.slice(from, count),
            },
        }
    }

    /// True if it can be asked for in one request.
    pub fn is_within_limits(&self) -> bool {
        match self {
            Self::Contents(ids) => !ids.is_empty() && ids.len() <= CONTENTS_MAX,
            Self::Pieces { pieces, .. } => pieces.check().is_ok(),
        }
    }

    /// True if an item may be the answer to number `at`, by its kind and length.
    pub(super) fn takes(&self, at: usize, item: &Item) -> bool {
        match (self, item) {
            (_, Item::Missing) => true,
            (Self::Contents(_), Item::Whole(bytes)) => bytes.len() as u64 <= SMALL_MAX,
            (Self::Contents(_), Item::Manifest(bytes)) => bytes.len() <= MANIFEST_BYTES_MAX,
            (Self::Pieces { .. }, Item::Manifest(_)) => false,
            (
                Self::Pieces {
                    pieces: Pieces::Manifests(_),
                    ..
                },
                Item::Whole(bytes),
            ) => bytes.len() <= MANIFEST_BYTES_MAX,
            (
                Self::Pieces {
                    pieces: Pieces::Chunks(chunks),
                    ..
                },
                Item::Whole(bytes),
            ) => chunks
                .get(at)
                .is_some_and(|chunk| chunk.len as usize == bytes.len()),
        }
    }

    /// What item number `at` is.
    pub fn object(&self, at: usize) -> Option<ObjectId> {
        match self {
            Self::Contents(ids) => ids.get(at).copied().map(ObjectId::Content),
            Self::Pieces {
                pieces: Pieces::Manifests(ids),
                ..
            } => ids.get(at).copied().map(ObjectId::Manifest),
            Self::Pieces {
                pieces: Pieces::Chunks(chunks),
                ..
            } => chunks.get(at).map(|chunk| ObjectId::Chunk(chunk.id)),
        }
    }
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A whole frame came.
    Frame {
        /// On which lane.
        lane: Lane,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// The transport has sent that many more bytes of earlier [`Output::Send`]s.
    Drained {
        /// On which lane.
        lane: Lane,
        /// Bytes of frames, without the transport's own framing.
        bytes: u64,
    },
    /// The time of [`super::Session::poll_timeout`] has come.
    Timeout,
    /// The peer's key has become part of the roster.
    PeerKnown,
    /// This device holds the space and the peer may, too.
    SpaceOpen {
        /// The space; the roster is one like any other.
        space: SpaceId,
        /// What is held durably.
        vector: VersionVector,
    },
    /// This device gives the space up, or the peer may not have it any more.
    SpaceClose {
        /// The space.
        space: SpaceId,
    },
    /// A log has grown durably by something that did not come through this session.
    Advanced {
        /// The space.
        space: SpaceId,
        /// The log.
        log: LogId,
        /// Its new head.
        head: Head,
        /// Where it came from.
        origin: Origin,
        /// The new segment, if at hand; else it is loaded when it is its turn.
        segment: Option<Loaded>,
    },
    /// Answers [`Output::Load`]: the segments that follow, in order. None at all counts as
    /// [`Input::Withhold`].
    SegmentsLoaded {
        /// The space.
        space: SpaceId,
        /// The log.
        log: LogId,
        /// The segments.
        segments: Vec<Loaded>,
    },
    /// A log is not sent on until the peer has more of it: the two sides' logs differ, or the
    /// segments can't be read. Also answers [`Output::Load`].
    Withhold {
        /// The space.
        space: SpaceId,
        /// The log.
        log: LogId,
    },
    /// As [`Input::Withhold`], because the segments are pruned: the peer may ask for a checkpoint.
    Pruned {
        /// The space.
        space: SpaceId,
        /// The log.
        log: LogId,
    },
    /// Asks the peer for a part of a checkpoint; one at a time.
    WantCheckpoint {
        /// The space.
        space: SpaceId,
        /// The part; 0 has the peer make a new checkpoint.
        part: u64,
    },
    /// Answers [`Output::ReadCheckpoint`].
    CheckpointRead {
        /// The signed header, with part 0.
        header: Option<Vec<u8>>,
        /// True in the last part.
        last: bool,
        /// The sealed part; empty for none.
        bytes: Vec<u8>,
    },
    /// Asks the peer for the segments that lead to a head that it has; one at a time, see
    /// [`super::Session::may_want_branch`].
    WantBranch {
        /// The space.
        space: SpaceId,
        /// The head.
        to: Dep,
        /// Heads in the log that are held here; the first 256 are sent.
        trail: Vec<Head>,
    },
    /// Answers [`Output::ReadBranch`].
    BranchRead {
        /// The segments, in order; none if they are not here.
        segments: Vec<Vec<u8>>,
    },
    /// Tells the peer which checkpoint a replica here started from.
    StartedFrom {
        /// The signed header.
        header: Vec<u8>,
    },
    /// What was declined in this session may be taken now: the roster has grown.
    Reconsider,
    /// Answers [`Output::Store`], once and for all of its segments.
    Stored {
        /// The number in the output.
        store: u64,
        /// New heads: what is durable now.
        entries: Vec<Dep>,
        /// What was not stored.
        refused: Vec<Refusal>,
    },
    /// Asks the peer for content.
    Want {
        /// Chosen by the owner; not one that is still open.
        request: u64,
        /// The space.
        space: SpaceId,
        /// At most 1024 contents, 256 manifests, or 256 chunks of 4 MiB together.
        what: Wanted,
        /// What the answer may cost, for the window.
        bytes: u64,
    },
    /// A request's answer is not needed any more. [`Output::RequestDone`] still comes.
    Cancel {
        /// The request.
        request: u64,
    },
    /// Answers [`Output::Read`]: items in the order asked for, as many as the limit allows and
    /// at least one. None counts as all missing.
    Items {
        /// The request.
        request: u64,
        /// The items.
        items: Vec<Item>,
    },
    /// Asks the peer for its ack as soon as it has applied what it holds.
    WantAck {
        /// The space.
        space: SpaceId,
        /// Comes back with the answer.
        token: u64,
    },
    /// Passes signed acks on.
    Acks {
        /// Signed bytes, see [`crate::ack`].
        acks: Vec<Vec<u8>>,
        /// The token of an [`Output::AckWanted`].
        answers: Option<u64>,
    },
    /// The peer sent what no honest device sends, e.g. bytes that do not have the name asked for.
    Misbehaved {
        /// What.
        why: String,
    },
    /// Ends the session.
    Close {
        /// Why, for programs.
        code: CloseCode,
        /// Why, for people.
        text: String,
    },
}

/// Who ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedBy {
    /// This side.
    Us,
    /// The other side.
    Peer,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Queue a frame on a lane.
    Send {
        /// The lane.
        lane: Lane,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// The peer's hello fits.
    Established {
        /// Features that both sides have.
        features: u64,
        /// The peer's program, as it says.
        agent: String,
        /// Where the peer listens, as it says.
        addresses: Vec<String>,
        /// What our key is to the peer.
        own_standing: PeerStanding,
    },
    /// Read a log's segments after a head and answer with [`Input::SegmentsLoaded`]; if the
    /// log here does not have that head, with [`Input::Withhold`]. One at a time.
    Load {
        /// The space.
        space: SpaceId,
        /// The log.
        log: LogId,
        /// Where to go on; `None` for the log's start.
        after: Option<Head>,
        /// Stop before this many bytes are exceeded, but read at least one segment.
        bytes_max: u64,
    },
    /// Verify, ingest and commit; answer with [`Input::Stored`]. Two at a time at most.
    Store {
        /// Comes back in the answer.
        store: u64,
        /// The space.
        space: SpaceId,
        /// Segment bytes, nothing verified.
        segments: Vec<Vec<u8>>,
    },
    /// What is lacked here of a space, the peer does not have as segments.
    PeerPruned {
        /// The space.
        space: SpaceId,
    },
    /// Make or go on with a checkpoint and answer with [`Input::CheckpointRead`]. One at a time.
    ReadCheckpoint {
        /// The space.
        space: SpaceId,
        /// The part.
        part: u64,
    },
    /// The part that was asked for, not verified.
    CheckpointPart {
        /// The space.
        space: SpaceId,
        /// The part.
        part: u64,
        /// The signed header, with part 0.
        header: Option<Vec<u8>>,
        /// True in the last part.
        last: bool,
        /// The sealed part; empty if the peer has none.
        bytes: Vec<u8>,
    },
    /// Read the segments that lead to a head from where the trail ends and answer with
    /// [`Input::BranchRead`]. One at a time.
    ReadBranch {
        /// The space.
        space: SpaceId,
        /// The head.
        to: Dep,
        /// Heads that the peer holds.
        trail: Vec<Head>,
        /// Bytes to read at most; at least one segment.
        bytes_max: u64,
    },
    /// What was asked for, nothing verified, or the first part of it; none if the peer has none.
    Branch {
        /// The space.
        space: SpaceId,
        /// The head that was asked for.
        to: Dep,
        /// Segment bytes.
        segments: Vec<Vec<u8>>,
    },
    /// The peer's replica of a space started from a checkpoint; the header is not verified.
    PeerStartedFrom {
        /// The signed header.
        header: Vec<u8>,
    },
    /// What the peer holds has changed.
    PeerVector {
        /// The space.
        space: SpaceId,
        /// All that it holds.
        vector: VersionVector,
    },
    /// The peer takes no part in a space any more.
    PeerClosedSpace {
        /// The space.
        space: SpaceId,
    },
    /// Acks, not verified.
    PeerAcks {
        /// Signed bytes.
        acks: Vec<Vec<u8>>,
        /// The token of our [`Input::WantAck`] that this answers.
        answers: Option<u64>,
    },
    /// The peer wants this device's ack, once all that it holds is applied. A later one for the
    /// same space replaces an earlier one.
    AckWanted {
        /// The space.
        space: SpaceId,
        /// Goes into the answer.
        token: u64,
    },
    /// Items came; their bytes are not verified against their names.
    Arrived {
        /// The request.
        request: u64,
        /// The space.
        space: SpaceId,
        /// What was asked for and its bytes; `Whole` or `Manifest`.
        items: Vec<(ObjectId, Item)>,
    },
    /// No more comes for a request.
    RequestDone {
        /// The request.
        request: u64,
        /// What the peer does not have, or what was not waited for.
        missing: Vec<ObjectId>,
    },
    /// Read content for the peer and answer with [`Input::Items`]. One at a time.
    Read {
        /// The request; a number of the peer's.
        request: u64,
        /// The space.
        space: SpaceId,
        /// What to read next.
        what: Wanted,
        /// Stop before this many bytes are exceeded, but read at least one item.
        bytes_max: u64,
    },
    /// The peer broke the rules; [`Output::Closed`] follows.
    Violated {
        /// How.
        why: String,
    },
    /// The session is over: send what is queued, then close the connection.
    Closed {
        /// Why, for programs.
        code: CloseCode,
        /// Why, for people.
        text: String,
        /// Who ended it.
        by: ClosedBy,
    },
}

/// Cuts a text to what a hello takes.
pub(super) fn cut(text: &str) -> String {
    let mut text = text.to_owned();
    text.truncate(text.floor_char_boundary(TEXT_MAX));
    text
}

/// Leaves out what a hello does not take.
pub(super) fn cut_addresses(addresses: &[String]) -> Vec<String> {
    addresses
        .iter()
        .filter(|a| a.len() <= TEXT_MAX)
        .take(ADDRESSES_MAX)
        .cloned()
        .collect()
}

/// Packs acks into messages; the last one carries the token.
pub(super) fn ack_messages(acks: Vec<Vec<u8>>, answers: Option<u64>) -> Vec<Acks> {
    let mut messages = vec![Acks {
        acks: vec![],
        answers: None,
    }];
    let mut bytes = 0;
    for ack in acks.into_iter().filter(|ack| ack.len() <= ACK_MAX) {
        let full = bytes + ack.len() > ACK_MAX;
        if full || messages.last().is_some_and(|m| m.acks.len() >= ACKS_MAX) {
            messages.push(Acks {
                acks: vec![],
                answers: None,
            });
            bytes = 0;
        }
        bytes += ack.len();
        if let Some(message) = messages.last_mut() {
            message.acks.push(ack.into());
        }
    }
    if let Some(message) = messages.last_mut() {
        message.answers = answers;
    }
    messages.retain(|m| !m.acks.is_empty() || m.answers.is_some());
    messages
}

/// True for a segment that fits on the wire.
pub(super) fn fits(segment: &Loaded) -> bool {
    (SEGMENT_MIN..=SEGMENT_MAX).contains(&segment.bytes.len())
}

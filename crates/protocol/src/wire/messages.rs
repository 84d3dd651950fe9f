//! The bodies of the messages on the state lane. Field numbers never change their meaning.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::ack::ACK_MAX;
use crate::cbor::{DecodeError, at_most};
use crate::checkpoint;
use crate::content::{CHUNK_MAX, ManifestId};
use crate::ids::{ChunkId, ContentId, Incarnation, LogId, PacId, SpaceId};
use crate::segment::SEGMENT_MAX;
use crate::vector::{Dep, Head};

/// Longest agent, address or closing text, in bytes.
pub const TEXT_MAX: usize = 64;
/// Most addresses in a hello.
pub const ADDRESSES_MAX: usize = 16;
/// Most logs in one part of a vector.
pub const VECTOR_PART_MAX: usize = 8192;
/// Most logs in one [`Have`].
pub const HAVE_MAX: usize = 4096;
/// A [`Segments`] message takes no further segment once it has this many bytes.
pub const SEGMENTS_BYTES: usize = 1 << 20;
/// Most segments in one message.
pub const SEGMENTS_MAX: usize = 4096;
/// No segment is shorter: its header, nonce, tag and signature take more. Bounds what a frame of
/// tiny ones costs beyond its bytes.
pub const SEGMENT_MIN: usize = 160;
/// Most acks in one message.
pub const ACKS_MAX: usize = 256;
/// Most contents in one request.
pub const CONTENTS_MAX: usize = 1024;
/// Most pieces in one request.
pub const PIECES_MAX: usize = 256;
/// Most bytes of chunks in one request.
pub const CHUNKS_BYTES_MAX: u64 = CHUNK_MAX as u64;

type CborResult<T> = Result<T, minicbor::decode::Error>;

/// Reads an array of at most `N` elements, so that a short frame can't claim a long list.
fn list<'b, C, T: Decode<'b, C>, const N: usize>(
    d: &mut Decoder<'b>,
    c: &mut C,
) -> CborResult<Vec<T>> {
    let bad = minicbor::decode::Error::message;
    let count = d.array()?.ok_or_else(|| bad("list of unknown length"))?;
    let count = usize::try_from(count).ok().filter(|count| *count <= N);
    let count = count.ok_or_else(|| bad("list is too long"))?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(T::decode(d, c)?);
    }
    Ok(items)
}

fn short_text(what: &'static str, text: &str) -> Result<(), DecodeError> {
    at_most(what, text.len(), TEXT_MAX)
}

/// A body without fields.
#[derive(Encode, Decode)]
#[cbor(map)]
pub(super) struct Empty {}

/// The first message of both sides.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Lowest protocol version spoken.
    #[n(0)]
    pub min: u16,
    /// Highest protocol version spoken.
    #[n(1)]
    pub max: u16,
    /// One bit for each optional feature; unknown bits mean nothing.
    #[n(2)]
    pub features: u64,
    /// The pac.
    #[n(3)]
    pub pac: PacId,
    /// True if the receiver's key is in the sender's roster.
    #[n(4)]
    pub known: bool,
    /// Name and version of the program, at most [`TEXT_MAX`] bytes; empty to a stranger.
    #[n(5)]
    pub agent: String,
    /// Where the sender listens, at most [`ADDRESSES_MAX`]; empty to a stranger.
    #[n(6)]
    #[cbor(decode_with = "list::<_, _, ADDRESSES_MAX>")]
    pub addresses: Vec<String>,
    /// The incarnation of the sender's replica: of two that share a key each has its own.
    #[n(7)]
    pub life: Incarnation,
}

impl Hello {
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        short_text("agent", &self.agent)?;
        self.addresses
            .iter()
            .try_for_each(|address| short_text("address", address))?;
        if self.min > self.max {
            return Err(DecodeError::Invalid {
                what: "protocol versions",
            });
        }
        Ok(())
    }
}

/// What the sender holds durably of a space; long vectors come in parts.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VectorPart {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// Logs and their heads.
    #[n(1)]
    #[cbor(decode_with = "list::<_, _, VECTOR_PART_MAX>")]
    pub heads: Vec<Dep>,
    /// True in the last part.
    #[n(2)]
    pub last: bool,
}

/// What the sender has come to hold durably, from wherever.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Have {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// New heads.
    #[n(1)]
    #[cbor(decode_with = "list::<_, _, HAVE_MAX>")]
    pub heads: Vec<Dep>,
}

/// Segments as their writers signed them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Segments {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// Segment bytes, in order within each log.
    #[n(1)]
    #[cbor(decode_with = "list::<_, _, SEGMENTS_MAX>")]
    pub segments: Vec<ByteVec>,
}

impl Segments {
    /// Bytes of all segments.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|s| s.len() as u64).sum()
    }

    pub(super) fn check(&self) -> Result<(), DecodeError> {
        for segment in &self.segments {
            at_most("segment", segment.len(), SEGMENT_MAX)?;
            if segment.len() < SEGMENT_MIN {
                return Err(DecodeError::Invalid { what: "segment" });
            }
        }
        at_most(
            "segments",
            self.segments.iter().map(|s| s.len()).sum(),
            SEGMENTS_BYTES + SEGMENT_MAX,
        )
    }
}

/// The sender won't store what it got of a log; until it says [`Have`] for that log again,
/// there is no use in sending it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Decline {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// The log.
    #[n(1)]
    pub log: LogId,
}

/// The sender forgets what it heard of a space and takes nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SpaceClosed {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
}

/// What the receiver lacks of a space is no more held as segments: it may ask for a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pruned {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
}

/// Asks for a part of a checkpoint; part 0 has a new one made.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WantCheckpoint {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// The part.
    #[n(1)]
    pub part: u64,
}

/// A part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CheckpointPart {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// Its number.
    #[n(1)]
    pub part: u64,
    /// The signed header, with part 0 and only there.
    #[n(2)]
    pub header: Option<ByteVec>,
    /// True in the last part.
    #[n(3)]
    pub last: bool,
    /// The sealed part; empty if there is none (any more).
    #[n(4)]
    pub bytes: ByteVec,
}

impl CheckpointPart {
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        let header = self.header.as_ref().map_or(0, |bytes| bytes.len());
        at_most("checkpoint header", header, checkpoint::HEADER_MAX)?;
        at_most("checkpoint part", self.bytes.len(), checkpoint::PART_MAX)
    }
}

/// The checkpoint that the sender's replica of a space started from: whoever holds its vector
/// looks whether it says the same.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StartedFrom {
    /// The signed header.
    #[n(0)]
    pub header: ByteVec,
}

impl StartedFrom {
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        at_most(
            "checkpoint header",
            self.header.len(),
            checkpoint::HEADER_MAX,
        )
    }
}

/// Most heads in a trail.
pub const TRAIL_MAX: usize = 256;

/// Asks for the segments that lead to a head of the receiver's: a log has forked, and the two
/// sides may be on different branches of it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WantBranch {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// The log and the head in it.
    #[n(1)]
    pub to: Dep,
    /// Heads of segments of the log that the sender holds, in whichever branch.
    #[n(2)]
    #[cbor(decode_with = "list::<_, _, TRAIL_MAX>")]
    pub trail: Vec<Head>,
}

/// Answers [`WantBranch`]: segments that follow each other, from one that the receiver holds the
/// predecessor of; none if there are none here.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Branch {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// The segments.
    #[n(1)]
    #[cbor(decode_with = "list::<_, _, SEGMENTS_MAX>")]
    pub segments: Vec<ByteVec>,
}

/// Signed acks of the sender or of others.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Acks {
    /// Acks as [`crate::ack`] has them, [`ACK_MAX`] bytes in all.
    #[n(0)]
    #[cbor(decode_with = "list::<_, _, ACKS_MAX>")]
    pub acks: Vec<ByteVec>,
    /// The token of the [`AckWanted`] that this answers.
    #[n(1)]
    pub answers: Option<u64>,
}

impl Acks {
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        at_most("acks", self.acks.iter().map(|ack| ack.len()).sum(), ACK_MAX)
    }
}

/// Asks for the receiver's own ack, as soon as it has applied what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AckWanted {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// Comes back in the answer. A later token for the same space replaces an earlier one.
    #[n(1)]
    pub token: u64,
}

/// Asks for contents: small ones whole, of others their top manifests.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WantContents {
    /// Chosen by the requester; not one that is still open.
    #[n(0)]
    pub request: u64,
    /// The space.
    #[n(1)]
    pub space: SpaceId,
    /// 1 to [`CONTENTS_MAX`] contents.
    #[n(2)]
    #[cbor(decode_with = "list::<_, _, CONTENTS_MAX>")]
    pub ids: Vec<ContentId>,
}

impl WantContents {
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        if self.ids.is_empty() {
            return Err(DecodeError::Invalid {
                what: "empty request",
            });
        }
        Ok(())
    }
}

/// A chunk and its length, which tells the requester what the answer will cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct ChunkRef {
    /// The chunk.
    #[n(0)]
    pub id: ChunkId,
    /// Bytes, as the manifest says.
    #[n(1)]
    pub len: u32,
}

/// Parts of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pieces {
    /// Kind 0: manifests below the top one.
    Manifests(Vec<ManifestId>),
    /// Kind 1: chunks, at most [`CHUNKS_BYTES_MAX`] bytes together.
    Chunks(Vec<ChunkRef>),
}

impl Pieces {
    /// How many pieces.
    pub fn len(&self) -> usize {
        match self {
            Self::Manifests(ids) => ids.len(),
            Self::Chunks(chunks) => chunks.len(),
        }
    }

    /// True without any piece.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `count` pieces from number `from`.
    pub fn slice(&self, from: usize, count: usize) -> Self {
        match self {
            Self::Manifests(ids) => {
                Self::Manifests(ids.iter().skip(from).take(count).copied().collect())
            }
            Self::Chunks(chunks) => {
                Self::Chunks(chunks.iter().skip(from).take(count).copied().collect())
            }
        }
    }

    /// Checks what one request may ask for.
    ///
    /// # Errors
    /// [`DecodeError`] for no piece, too many, an empty chunk or too many bytes.
    pub fn check(&self) -> Result<(), DecodeError> {
        if self.is_empty() {
            return Err(DecodeError::Invalid {
                what: "empty request",
            });
        }
        if let Self::Chunks(chunks) = self {
            let bytes: u64 = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
            if bytes > CHUNKS_BYTES_MAX || chunks.iter().any(|chunk| chunk.len == 0) {
                return Err(DecodeError::TooLarge {
                    what: "chunks",
                    limit: CHUNKS_BYTES_MAX,
                });
            }
        }
        at_most("pieces", self.len(), PIECES_MAX)
    }
}

impl<C> Encode<C> for Pieces {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?;
        match self {
            Self::Manifests(ids) => e.u8(0)?.encode_with(ids, c)?,
            Self::Chunks(chunks) => e.u8(1)?.encode_with(chunks, c)?,
        };
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Pieces {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> CborResult<Self> {
        let bad = minicbor::decode::Error::message;
        if d.array()? != Some(2) {
            return Err(bad("pieces"));
        }
        match d.u8()? {
            0 => list::<_, _, PIECES_MAX>(d, c).map(Self::Manifests),
            1 => list::<_, _, PIECES_MAX>(d, c).map(Self::Chunks),
            _ => Err(bad("kind of pieces")),
        }
    }
}

/// Asks for parts of one content.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WantPieces {
    /// Chosen by the requester; not one that is still open.
    #[n(0)]
    pub request: u64,
    /// The space.
    #[n(1)]
    pub space: SpaceId,
    /// The content that they are parts of: tells the other side where to look.
    #[n(2)]
    pub content: ContentId,
    /// Which parts.
    #[n(3)]
    pub pieces: Pieces,
}

impl WantPieces {
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        self.pieces.check()
    }
}

/// Takes a request back. It still ends with an answer that is marked as the last one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Cancel {
    /// The request.
    #[n(0)]
    pub request: u64,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloseCode {
    /// 0: nothing is wrong.
    Normal,
    /// 1: the two sides belong to different pacs.
    WrongPac,
    /// 2: no protocol version in common.
    NoCommonVersion,
    /// 3: a frame that the protocol does not allow.
    Violation,
    /// 4: well-formed data that no honest device sends, such as a wrong signature.
    Misbehaviour,
    /// 5: the other side took too long.
    TimedOut,
    /// 6: the device shuts down.
    ShuttingDown,
    /// 7: another connection to the same device is kept instead.
    Duplicate,
    /// 8: the other side's key has no valid grant.
    NotAuthorised,
    /// Another number.
    Other(u16),
}

impl CloseCode {
    const NAMED: [Self; 9] = [
        Self::Normal,
        Self::WrongPac,
        Self::NoCommonVersion,
        Self::Violation,
        Self::Misbehaviour,
        Self::TimedOut,
        Self::ShuttingDown,
        Self::Duplicate,
        Self::NotAuthorised,
    ];

    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::Normal => 0,
            Self::WrongPac => 1,
            Self::NoCommonVersion => 2,
            Self::Violation => 3,
            Self::Misbehaviour => 4,
            Self::TimedOut => 5,
            Self::ShuttingDown => 6,
            Self::Duplicate => 7,
            Self::NotAuthorised => 8,
            Self::Other(number) => number,
        }
    }

    /// The code of a number.
    pub fn from_number(number: u16) -> Self {
        Self::NAMED
            .get(usize::from(number))
            .copied()
            .unwrap_or(Self::Other(number))
    }
}

impl<C> Encode<C> for CloseCode {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u16(self.number())?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for CloseCode {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> CborResult<Self> {
        d.u16().map(Self::from_number)
    }
}

/// The last message of a session.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Close {
    /// Why, for programs.
    #[n(0)]
    pub code: CloseCode,
    /// Why, for people; at most [`TEXT_MAX`] bytes.
    #[n(1)]
    pub text: String,
}

impl Close {
    /// Makes one; a longer text is cut.
    pub fn new(code: CloseCode, text: &str) -> Self {
        let mut text = text.to_owned();
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        Self { code, text }
    }

    pub(super) fn check(&self) -> Result<(), DecodeError> {
        short_text("closing text", &self.text)
    }
}

//! The messages of a sync session and their one encoding.
//!
//! A frame is a CBOR array `[type, body]`; the body is a map with integer keys. Unknown keys
//! are skipped. A type from 64 up that is not known here is ignored, a lower one is a breach.
//! How frames are delimited on a stream is the transport's matter; it takes none longer than
//! [`Lane::frame_max`]. Never here: what the messages mean to a session.
//!
//! | type | message | lane |
//! | --- | --- | --- |
//! | 0 | [`Hello`] | state |
//! | 1 | known: the receiver's key is now in the sender's roster; empty body | state |
//! | 2 | [`VectorPart`] | state |
//! | 3 | [`Have`] | state |
//! | 4 | [`Segments`] | state |
//! | 5 | [`Decline`] | state |
//! | 6 | [`SpaceClosed`] | state |
//! | 7 | [`Acks`] | state |
//! | 8 | [`AckWanted`] | state |
//! | 9 | [`WantContents`] | state |
//! | 10 | [`WantPieces`] | state |
//! | 11 | [`Cancel`] | state |
//! | 12 | [`Close`] | state |
//! | 13 | [`Pruned`] | state |
//! | 14 | [`WantCheckpoint`] | state |
//! | 15 | [`CheckpointPart`] | state |
//! | 16 | [`StartedFrom`] | state |
//! | 17 | [`WantBranch`] | state |
//! | 18 | [`Branch`] | state |
//! | 19–31 | reserved | state |
//! | 32 | [`Answer`] to want contents | content |
//! | 33 | [`Answer`] to want pieces | content |
//! | 34–63 | reserved | content |
//! | 64– | ignored where unknown | either |

mod answer;
mod messages;
#[cfg(test)]
mod tests;

use minicbor::{Decode, Decoder, Encode, Encoder};

pub use answer::{Answer, Item, PAYLOAD_MAX};
pub use messages::{
    ACKS_MAX, ADDRESSES_MAX, AckWanted, Acks, Branch, CHUNKS_BYTES_MAX, CONTENTS_MAX, Cancel,
    CheckpointPart, ChunkRef, Close, CloseCode, Decline, HAVE_MAX, Have, Hello, PIECES_MAX, Pieces,
    Pruned, SEGMENT_MIN, SEGMENTS_BYTES, SEGMENTS_MAX, Segments, SpaceClosed, StartedFrom,
    TEXT_MAX, TRAIL_MAX, VECTOR_PART_MAX, VectorPart, WantBranch, WantCheckpoint, WantContents,
    WantPieces,
};

use crate::cbor::{DecodeError, at_most};
use crate::segment::SEGMENT_MAX;

/// The version of the protocol that this crate speaks.
pub const PROTOCOL: u16 = 1;

/// Message types from here up are ignored where they are not known.
pub const IGNORABLE: u16 = 64;

/// One of the two ordered streams of frames in each direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Vectors, segments, requests: never waits for content.
    State,
    /// Answers to requests for content.
    Content,
}

impl Lane {
    /// Longest frame, in bytes.
    pub const fn frame_max(self) -> usize {
        match self {
            Self::State => SEGMENTS_BYTES + SEGMENT_MAX + 64 * 1024,
            Self::Content => PAYLOAD_MAX + 256,
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Opens a session.
    Hello(Hello),
    /// The receiver's key is in the sender's roster now.
    Known,
    /// What the sender holds of a space.
    Vector(VectorPart),
    /// What the sender holds more.
    Have(Have),
    /// Segments, each after its log's earlier ones.
    Segments(Segments),
    /// The sender does not take more of a log.
    Decline(Decline),
    /// The sender takes no part in a space any more.
    SpaceClosed(SpaceClosed),
    /// Signed acks.
    Acks(Acks),
    /// Asks for an ack.
    AckWanted(AckWanted),
    /// Asks for contents.
    WantContents(WantContents),
    /// Asks for parts of one content.
    WantPieces(WantPieces),
    /// The answer to a request is not needed any more.
    Cancel(Cancel),
    /// Ends the session.
    Close(Close),
    /// What the receiver lacks is not held as segments.
    Pruned(Pruned),
    /// Asks for a part of a checkpoint.
    WantCheckpoint(WantCheckpoint),
    /// Answers [`Message::WantCheckpoint`].
    CheckpointPart(CheckpointPart),
    /// Names the checkpoint that a replica started from.
    StartedFrom(StartedFrom),
    /// Asks for a branch of a forked log.
    WantBranch(WantBranch),
    /// Answers [`Message::WantBranch`].
    Branch(Branch),
    /// Answers [`Message::WantContents`].
    Contents(Answer),
    /// Answers [`Message::WantPieces`].
    Pieces(Answer),
}

impl Message {
    /// The number on the wire.
    pub const fn number(&self) -> u16 {
        match self {
            Self::Hello(_) => 0,
            Self::Known => 1,
            Self::Vector(_) => 2,
            Self::Have(_) => 3,
            Self::Segments(_) => 4,
            Self::Decline(_) => 5,
            Self::SpaceClosed(_) => 6,
            Self::Acks(_) => 7,
            Self::AckWanted(_) => 8,
            Self::WantContents(_) => 9,
            Self::WantPieces(_) => 10,
            Self::Cancel(_) => 11,
            Self::Close(_) => 12,
            Self::Pruned(_) => 13,
            Self::WantCheckpoint(_) => 14,
            Self::CheckpointPart(_) => 15,
            Self::StartedFrom(_) => 16,
            Self::WantBranch(_) => 17,
            Self::Branch(_) => 18,
            Self::Contents(_) => 32,
            Self::Pieces(_) => 33,
        }
    }

    /// The lane that the message belongs to.
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Contents(_) | Self::Pieces(_) => Lane::Content,
            _ => Lane::State,
        }
    }

    /// Encodes a frame. The fields must be within their bounds.
    pub fn encode(&self) -> Vec<u8> {
        fn frame<T: Encode<()>>(number: u16, body: &T) -> Vec<u8> {
            let mut e = Encoder::new(Vec::new());
            e.array(2)
                .and_then(|e| e.u16(number))
                .and_then(|e| e.encode(body))
                .expect("encoding to memory does not fail");
            e.into_writer()
        }
        let number = self.number();
        match self {
            Self::Hello(m) => frame(number, m),
            Self::Known => frame(number, &messages::Empty {}),
            Self::Vector(m) => frame(number, m),
            Self::Have(m) => frame(number, m),
            Self::Segments(m) => frame(number, m),
            Self::Decline(m) => frame(number, m),
            Self::SpaceClosed(m) => frame(number, m),
            Self::Acks(m) => frame(number, m),
            Self::AckWanted(m) => frame(number, m),
            Self::WantContents(m) => frame(number, m),
            Self::WantPieces(m) => frame(number, m),
            Self::Cancel(m) => frame(number, m),
            Self::Close(m) => frame(number, m),
            Self::Pruned(m) => frame(number, m),
            Self::WantCheckpoint(m) => frame(number, m),
            Self::CheckpointPart(m) => frame(number, m),
            Self::StartedFrom(m) => frame(number, m),
            Self::WantBranch(m) => frame(number, m),
            Self::Branch(m) => frame(number, m),
            Self::Contents(m) | Self::Pieces(m) => frame(number, &m.pack()),
        }
    }

    /// Decodes a frame of a lane; `None` for a type that is to be ignored.
    ///
    /// # Errors
    /// [`DecodeError`] for a frame that an honest peer never sends on this lane. Memory is
    /// bounded by a small multiple of the frame and [`PAYLOAD_MAX`].
    pub fn decode(lane: Lane, frame: &[u8]) -> Result<Option<Self>, DecodeError> {
        at_most("frame", frame.len(), lane.frame_max())?;
        let malformed = |e: minicbor::decode::Error| DecodeError::Malformed {
            what: "frame",
            why: e.to_string(),
        };
        let mut d = Decoder::new(frame);
        let parts = d.array().map_err(malformed)?;
        let number = d.u16().map_err(malformed)?;
        if number >= IGNORABLE {
            return Ok(None);
        }
        if parts != Some(2) {
            return Err(DecodeError::Invalid {
                what: "number of parts in a frame",
            });
        }
        let message = match number {
            0 => Self::Hello(body(&mut d)?),
            1 => {
                body::<messages::Empty>(&mut d)?;
                Self::Known
            }
            2 => Self::Vector(body(&mut d)?),
            3 => Self::Have(body(&mut d)?),
            4 => Self::Segments(body(&mut d)?),
            5 => Self::Decline(body(&mut d)?),
            6 => Self::SpaceClosed(body(&mut d)?),
            7 => Self::Acks(body(&mut d)?),
            8 => Self::AckWanted(body(&mut d)?),
            9 => Self::WantContents(body(&mut d)?),
            10 => Self::WantPieces(body(&mut d)?),
            11 => Self::Cancel(body(&mut d)?),
            12 => Self::Close(body(&mut d)?),
            13 => Self::Pruned(body(&mut d)?),
            14 => Self::WantCheckpoint(body(&mut d)?),
            15 => Self::CheckpointPart(body(&mut d)?),
            16 => Self::StartedFrom(body(&mut d)?),
            17 => Self::WantBranch(body(&mut d)?),
            18 => Self::Branch(body(&mut d)?),
            32 => Self::Contents(Answer::unpack(body(&mut d)?)?),
            33 => Self::Pieces(Answer::unpack(body(&mut d)?)?),
            _ => {
                return Err(DecodeError::Invalid {
                    what: "message type",
                });
            }
        };
        if d.position() != frame.len() {
            return Err(DecodeError::Invalid {
                what: "frame length",
            });
        }
        if message.lane() != lane {
            return Err(DecodeError::Invalid {
                what: "lane of a message",
            });
        }
        message.check()?;
        Ok(Some(message))
    }

    fn check(&self) -> Result<(), DecodeError> {
        match self {
            Self::Hello(m) => m.check(),
            Self::Segments(m) => m.check(),
            Self::Acks(m) => m.check(),
            Self::WantContents(m) => m.check(),
            Self::WantPieces(m) => m.check(),
            Self::Close(m) => m.check(),
            Self::CheckpointPart(m) => m.check(),
            Self::StartedFrom(m) => m.check(),
            _ => Ok(()),
        }
    }
}

fn body<'b, T: Decode<'b, ()>>(d: &mut Decoder<'b>) -> Result<T, DecodeError> {
    d.decode().map_err(|e| DecodeError::Malformed {
        what: "message",
        why: e.to_string(),
    })
}

//! Answers on the content lane: runs of items, compressed where that pays.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::cbor::DecodeError;
use crate::content::CHUNK_MAX;
use crate::segment::decompress;

use super::messages::CONTENTS_MAX;

/// Longest payload of an answer before compression, in bytes: 1 MiB of items and one more.
pub const PAYLOAD_MAX: usize = (1 << 20) + CHUNK_MAX as usize + 64 * 1024;
/// How much of a payload is tried before all of it is compressed, in bytes.
const PROBE: usize = 16 * 1024;
/// Payloads shorter than this are sent as they are, in bytes.
const WORTH_IT: usize = 256;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// What one asked-for thing came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// `[0]`: not here.
    Missing,
    /// `[1, bytes]`: the whole content, chunk or manifest that was asked for.
    Whole(Vec<u8>),
    /// `[2, bytes]`: the top manifest of the content that was asked for.
    Manifest(Vec<u8>),
}

impl Item {
    /// Bytes carried.
    pub fn size(&self) -> usize {
        match self {
            Self::Missing => 0,
            Self::Whole(bytes) | Self::Manifest(bytes) => bytes.len(),
        }
    }
}

impl<C> Encode<C> for Item {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match self {
            Self::Missing => e.array(1)?.u8(0)?,
            Self::Whole(bytes) => e.array(2)?.u8(1)?.bytes(bytes)?,
            Self::Manifest(bytes) => e.array(2)?.u8(2)?.bytes(bytes)?,
        };
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Item {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let parts = d.array()?;
        match (d.u8()?, parts) {
            (0, Some(1)) => Ok(Self::Missing),
            (1, Some(2)) => Ok(Self::Whole(d.bytes()?.to_vec())),
            (2, Some(2)) => Ok(Self::Manifest(d.bytes()?.to_vec())),
            _ => Err(minicbor::decode::Error::message("kind of item")),
        }
    }
}

/// A run of the items that a request asked for, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub request: u64,
    /// Number of the first item, from 0.
    pub first: u32,
    /// True in the last answer to the request.
    pub last: bool,
    /// The items from there on.
    pub items: Vec<Item>,
}

/// An answer's body on the wire: the items are an array of their own, so that they can be
/// compressed together.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(map)]
pub(super) struct Packed {
    #[n(0)]
    request: u64,
    #[n(1)]
    first: u32,
    #[n(2)]
    last: bool,
    /// 0: as it is; 1: zstd.
    #[n(3)]
    packing: u8,
    #[n(4)]
    payload: ByteVec,
}

impl Answer {
    pub(super) fn pack(&self) -> Packed {
        let mut e = Encoder::new(Vec::new());
        e.encode(&self.items)
            .expect("encoding to memory does not fail");
        let plain = e.into_writer();
        let (packing, payload) = match compress(&plain) {
            Some(packed) => (ZSTD, packed),
            None => (PLAIN, plain),
        };
        Packed {
            request: self.request,
            first: self.first,
            last: self.last,
            packing,
            payload: payload.into(),
        }
    }

    pub(super) fn unpack(packed: Packed) -> Result<Self, DecodeError> {
        let malformed = |why: String| DecodeError::Malformed {
            what: "answer",
            why,
        };
        let plain: Vec<u8> = match packed.packing {
            PLAIN => packed.payload.into(),
            ZSTD => {
                decompress(&packed.payload, PAYLOAD_MAX).map_err(|e| malformed(e.to_string()))?
            }
            _ => {
                return Err(DecodeError::Invalid {
                    what: "packing of an answer",
                });
            }
        };
        let mut d = Decoder::new(&plain);
        let count = d
            .array()
            .map_err(|e| malformed(e.to_string()))?
            .unwrap_or(u64::MAX);
        if count > CONTENTS_MAX as u64 {
            return Err(DecodeError::TooLarge {
                what: "items",
                limit: CONTENTS_MAX as u64,
            });
        }
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(d.decode().map_err(|e| malformed(e.to_string()))?);
        }
        if d.position() != plain.len() {
            return Err(malformed("bytes left over".into()));
        }
        Ok(Self {
            request: packed.request,
            first: packed.first,
            last: packed.last,
            items,
        })
    }
}

/// Compresses if the beginning shrinks by a tenth, and all of it does.
fn compress(plain: &[u8]) -> Option<Vec<u8>> {
    let shrinks = |part: &[u8], packed: &[u8]| packed.len() <= part.len() - part.len() / 10;
    if plain.len() < WORTH_IT {
        return None;
    }
    let (probe, rest) = plain.split_at(plain.len().min(PROBE));
    let tried = zstd::bulk::compress(probe, 1).ok()?;
    if !shrinks(probe, &tried) {
        return None;
    }
    if rest.is_empty() {
        return Some(tried);
    }
    zstd::bulk::compress(plain, 1)
        .ok()
        .filter(|packed| shrinks(plain, packed))
}

//! Checkpoints: all that a space's segments say up to a vector, without the segments.
//!
//! Whoever has nothing of a space, or less than what others still have as segments, starts from
//! one. A signed header in clear names the vector and roots over what is in it; the parts that
//! follow are items in order, zstd, sealed under an epoch key and bound to the header. Rows come
//! as they are and documents as their changes, so both pass the gates of a segment's entries.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::cbor::{self, DecodeError, at_most};
use crate::crypto::{self, CryptoError, Entropy, Key, Signature, SigningKey, domain};
use crate::ids::{DeviceId, EpochId, LogId, SegmentHash, Seq, SpaceId, Stamp};
use crate::row::STAMP_MAX;
use crate::segment::{SegmentError, decompress};
use crate::vector::VersionVector;

/// Format version of the header and the parts.
pub const VERSION: u8 = 1;
/// Longest header with its signature, in bytes.
pub const HEADER_MAX: usize = 1 << 20;
/// Longest sealed part, in bytes.
pub const PART_MAX: usize = (1 << 20) + (64 << 10);
/// Longest part after decompression, in bytes.
pub const PART_PLAIN_MAX: usize = 4 << 20;
/// Most items in a part.
pub const ITEMS_MAX: usize = 65_536;
/// Most parts of a checkpoint.
pub const PARTS_MAX: u64 = 1 << 14;
/// A part takes no further item once its items have this many bytes.
pub const PART_BYTES: usize = 512 << 10;

/// What stands in clear before a checkpoint's parts.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Header {
    /// [`VERSION`].
    #[n(0)]
    pub version: u8,
    /// The space.
    #[n(1)]
    pub space: SpaceId,
    /// Who made it and signs.
    #[n(2)]
    pub device: DeviceId,
    /// Up to where each log is in it: closed under causality.
    #[n(3)]
    pub vector: VersionVector,
    /// What every device had when it was made.
    #[n(4)]
    pub stable: VersionVector,
    /// What of the roster its maker had applied.
    #[n(5)]
    pub roster: VersionVector,
    /// Root over the ids of its rows, ascending.
    #[n(6)]
    pub rows: ByteArray<32>,
    /// Root over its documents and their heads, see [`documents_root`].
    #[n(7)]
    pub documents: ByteArray<32>,
    /// The key that seals the parts.
    #[n(8)]
    pub epoch: EpochId,
    /// Highest stamp in it.
    #[n(9)]
    pub clock: Stamp,
    /// Milliseconds since 1970, for display only.
    #[n(10)]
    pub time_ms: u64,
    /// Random: parts of one checkpoint open with no other's header.
    #[n(11)]
    pub salt: ByteArray<16>,
}

#[derive(Encode, Decode)]
#[cbor(array)]
struct Envelope {
    #[n(0)]
    header: ByteVec,
    #[n(1)]
    signature: Signature,
}

/// Why a checkpoint or a part of one was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The bytes break the format or a bound.
    #[error(transparent)]
    Format(#[from] DecodeError),
    /// The signature or the seal does not hold.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// It does not compress or inflate within its bound.
    #[error(transparent)]
    Packing(#[from] SegmentError),
}

/// A header whose signature holds, with the bytes to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedHeader {
    header: Header,
    bytes: Vec<u8>,
    hash: [u8; 32],
}

/// One log at one segment, as [`Item::Segment`] and [`Item::Row`] name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct At {
    /// Number of the log in the checkpoint, from 0.
    #[n(0)]
    pub log: u32,
    /// Number of an entry in it.
    #[n(1)]
    pub seq: Seq,
}

/// What is kept of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct SegmentItem {
    /// Number of the log in the checkpoint.
    #[n(0)]
    pub log: u32,
    /// Its first entry.
    #[n(1)]
    pub first: Seq,
    /// Its last entry.
    #[n(2)]
    pub last: Seq,
    /// Its hash.
    #[n(3)]
    pub hash: SegmentHash,
    /// Its clock, as it counts.
    #[n(4)]
    pub clock: Stamp,
    /// Its time.
    #[n(5)]
    pub time_ms: u64,
    /// Up to where it has each other log in its causal past.
    #[n(6)]
    pub past: Vec<At>,
}

/// A row and who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct RowItem {
    /// Canonical bytes.
    #[n(0)]
    pub row: ByteVec,
    /// The entries that carry it, at least one.
    #[n(1)]
    pub carriers: Vec<At>,
}

/// A change of a document.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ChangeItem {
    /// Which document.
    #[n(0)]
    pub document: ByteArray<16>,
    /// One plain change chunk.
    #[n(1)]
    pub change: ByteVec,
}

/// What the parts are made of, in the order of the variants: logs; segments, log by log without a
/// gap; rows, each after what it rests on; changes, document by document, each after its
/// dependencies.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Item {
    /// The next log; of a branch also the segment of an earlier one from which it parts. Its own
    /// segments are those behind.
    #[n(0)]
    Log(#[n(0)] LogId, #[n(1)] Option<At>),
    /// The next segment.
    #[n(1)]
    Segment(#[n(0)] SegmentItem),
    /// A row.
    #[n(2)]
    Row(#[n(0)] RowItem),
    /// A change.
    #[n(3)]
    Change(#[n(0)] ChangeItem),
}

/// Whether more parts follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// They do.
    Within,
    /// It is the last one.
    Last,
}

impl Header {
    /// Signs; the signer must be the device that the header names.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for another signer, [`DecodeError::TooLarge`] for too many logs.
    pub fn sign(self, signer: &SigningKey) -> Result<VerifiedHeader, DecodeError> {
        if signer.id() != self.device {
            return Err(DecodeError::Invalid {
                what: "signer of a checkpoint",
            });
        }
        self.check()?;
        let inner = cbor::encode(&self);
        let hash = crypto::hash(domain::CHECKPOINT, &[&inner]);
        let bytes = cbor::encode(&Envelope {
            signature: signer.sign(domain::CHECKPOINT, &inner),
            header: inner.into(),
        });
        at_most("checkpoint header", bytes.len(), HEADER_MAX)?;
        Ok(VerifiedHeader {
            header: self,
            bytes,
            hash,
        })
    }

    fn check(&self) -> Result<(), DecodeError> {
        if self.version != VERSION || self.clock > STAMP_MAX {
            return Err(DecodeError::Invalid {
                what: "checkpoint header",
            });
        }
        Ok(())
    }
}

impl VerifiedHeader {
    /// Parses and verifies a header from anywhere.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        at_most("checkpoint header", bytes.len(), HEADER_MAX)?;
        let envelope: Envelope = cbor::decode_canonical("checkpoint header", bytes)?;
        let header: Header = cbor::decode_canonical("checkpoint header", &envelope.header)?;
        header.check()?;
        crypto::verify(
            &header.device,
            domain::CHECKPOINT,
            &envelope.header,
            &envelope.signature,
        )?;
        let hash = crypto::hash(domain::CHECKPOINT, &[&envelope.header]);
        Ok(Self {
            header,
            bytes: bytes.to_vec(),
            hash,
        })
    }

    /// What it says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The hash that binds the parts to it.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    fn bind(&self, number: u64, place: Place) -> Vec<u8> {
        let last = u8::from(place == Place::Last);
        [&self.hash[..], &number.to_be_bytes(), &[last]].concat()
    }

    /// Packs and seals a part.
    ///
    /// # Errors
    /// [`CheckpointError`] if a bound is exceeded.
    pub fn seal_part(
        &self,
        epoch_key: &Key,
        number: u64,
        place: Place,
        items: &[Item],
        rng: &mut dyn Entropy,
    ) -> Result<Vec<u8>, CheckpointError> {
        at_most("items in a checkpoint's part", items.len(), ITEMS_MAX)?;
        let mut e = Encoder::new(Vec::new());
        e.encode(items).expect("encoding to memory does not fail");
        let plain = e.into_writer();
        at_most("checkpoint part", plain.len(), PART_PLAIN_MAX)?;
        let packed = zstd::bulk::compress(&plain, 1)
            .map_err(|e| SegmentError::Compression(e.to_string()))?;
        let bound = self.bind(number, place);
        let nonce_key = epoch_key.derive(domain::CHECKPOINT_NONCE_KEY);
        let fresh = crypto::random::<32>(rng);
        let digest = crypto::keyed_hash(&nonce_key, &[&fresh, &bound, &packed]);
        let mut nonce = [0; 24];
        nonce.copy_from_slice(&digest[..24]);
        let key = epoch_key.derive(domain::CHECKPOINT_KEY);
        let part = [&nonce[..], &crypto::seal(&key, &nonce, &bound, &packed)].concat();
        at_most("checkpoint part", part.len(), PART_MAX)?;
        Ok(part)
    }

    /// Opens a part.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn open_part(
        &self,
        epoch_key: &Key,
        number: u64,
        place: Place,
        part: &[u8],
    ) -> Result<Vec<Item>, CheckpointError> {
        at_most("checkpoint part", part.len(), PART_MAX)?;
        let (nonce, body) = part
            .split_first_chunk::<24>()
            .ok_or(CryptoError::CannotDecrypt)?;
        let key = epoch_key.derive(domain::CHECKPOINT_KEY);
        let packed = crypto::open(&key, nonce, &self.bind(number, place), body)?;
        Ok(decode_items(&decompress(&packed, PART_PLAIN_MAX)?)?)
    }
}

/// Decodes the items of a part.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_items(plain: &[u8]) -> Result<Vec<Item>, DecodeError> {
    let malformed = |e: minicbor::decode::Error| DecodeError::Malformed {
        what: "checkpoint part",
        why: e.to_string(),
    };
    let mut d = Decoder::new(plain);
    let count = d.array().map_err(malformed)?;
    let count = count.and_then(|count| usize::try_from(count).ok());
    let count = count.ok_or(DecodeError::Invalid {
        what: "checkpoint part",
    })?;
    at_most("items in a checkpoint's part", count, ITEMS_MAX)?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(d.decode().map_err(malformed)?);
    }
    if d.position() != plain.len() {
        return Err(DecodeError::Invalid {
            what: "checkpoint part",
        });
    }
    Ok(items)
}

/// The root over documents: of each its id, the number of its heads as 4 bytes and the heads,
/// ascending.
pub fn documents_root<'a>(
    documents: impl IntoIterator<Item = (&'a [u8; 16], &'a [[u8; 32]])>,
) -> [u8; 32] {
    let mut root = crypto::RunningHash::new(domain::CHECKPOINT_DOCUMENTS);
    for (id, heads) in documents {
        root.update(id);
        root.update(&(heads.len() as u32).to_be_bytes());
        for head in heads {
            root.update(head);
        }
    }
    root.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn signed(salt: u8) -> (VerifiedHeader, Key, ChaCha20Rng) {
        let signer = SigningKey::from_seed(&[1; 32]);
        let header = Header {
            version: VERSION,
            space: SpaceId::from_bytes([5; 16]),
            device: signer.id(),
            vector: VersionVector::new(),
            stable: VersionVector::new(),
            roster: VersionVector::new(),
            rows: [2; 32].into(),
            documents: [3; 32].into(),
            epoch: EpochId::from_bytes([4; 16]),
            clock: 9,
            time_ms: 7,
            salt: [salt; 16].into(),
        };
        let key = Key::from_bytes([6; 32]);
        let rng = ChaCha20Rng::seed_from_u64(1);
        (header.sign(&signer).expect("signs"), key, rng)
    }

    fn items() -> Vec<Item> {
        let id = SigningKey::from_seed(&[1; 32]).id();
        let at = At { log: 0, seq: 1 };
        vec![
            Item::Log(LogId::new(id, Incarnation::from_bytes([7; 16])), None),
            Item::Segment(SegmentItem {
                log: 0,
                first: 1,
                last: 2,
                hash: SegmentHash::from_bytes([8; 32]),
                clock: 3,
                time_ms: 4,
                past: vec![At { log: 1, seq: 9 }],
            }),
            Item::Row(RowItem {
                row: vec![1, 2, 3].into(),
                carriers: vec![at],
            }),
            Item::Change(ChangeItem {
                document: [5; 16].into(),
                change: vec![4].into(),
            }),
        ]
    }

    #[test]
    fn a_header_survives_its_bytes_and_no_flipped_bit() {
        let (header, _, _) = signed(0);
        let read = VerifiedHeader::from_bytes(header.bytes());
        assert_eq!(read, Ok(header.clone()));
        for at in 0..header.bytes().len() {
            let mut bytes = header.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(VerifiedHeader::from_bytes(&bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_part_opens_at_its_place_in_its_checkpoint_only() {
        let (header, key, mut rng) = signed(0);
        let part = header
            .seal_part(&key, 3, Place::Last, &items(), &mut rng)
            .expect("seals");
        let open = |header: &VerifiedHeader, key: &Key, number, place| {
            header.open_part(key, number, place, &part)
        };
        assert_eq!(open(&header, &key, 3, Place::Last), Ok(items()));
        assert!(open(&header, &key, 2, Place::Last).is_err());
        assert!(open(&header, &key, 3, Place::Within).is_err());
        assert!(open(&signed(1).0, &key, 3, Place::Last).is_err());
        assert!(open(&header, &Key::from_bytes([7; 32]), 3, Place::Last).is_err());
        for cut in 0..part.len() {
            let cut = part.get(..cut).unwrap_or_default();
            assert!(header.open_part(&key, 3, Place::Last, cut).is_err());
        }
    }

    #[test]
    fn a_part_inflates_to_a_bound() {
        let (header, key, _) = signed(0);
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compresses");
        let sealed = crypto::seal(
            &key.derive(domain::CHECKPOINT_KEY),
            &[0; 24],
            &header.bind(0, Place::Last),
            &bomb,
        );
        let part = [&[0; 24][..], &sealed].concat();
        let opened = header.open_part(&key, 0, Place::Last, &part);
        assert!(matches!(opened, Err(CheckpointError::Packing(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_items(&bytes);
            let _ = VerifiedHeader::from_bytes(&bytes);
        }
    }
}

//! Segments: signed, hash-chained, encrypted runs of entries.
//!
//! On the wire `[header, nonce, body, signature]`: the header is canonical CBOR in clear,
//! frozen at version 1; the body is a CBOR array of entries, zstd, then XChaCha20-Poly1305
//! with the header as associated data. The segment's hash covers header, nonce and
//! encrypted body; the signature covers the hash.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::cbor::{self, DecodeError, at_most};
use crate::crypto::{self, CryptoError, Entropy, Key, Signature, SigningKey, domain};
use crate::ids::{EpochId, LogId, SegmentHash, Seq, SpaceId, Stamp};
use crate::roster::RosterEntry;
use crate::vector::{Dep, Head};

/// Format version of the header.
pub const VERSION: u8 = 1;
/// Algorithms of a segment: Ed25519, BLAKE3, zstd, XChaCha20-Poly1305.
pub const ALGORITHM: u8 = 1;
/// Longest header, in bytes.
pub const HEADER_MAX: usize = 64 * 1024;
/// Longest encrypted body, in bytes.
pub const BODY_MAX: usize = 1 << 20;
/// Longest body after decompression, in bytes.
pub const PLAIN_MAX: usize = 4 << 20;
/// Most entries in one segment.
pub const ENTRIES_MAX: usize = 16_384;
/// Longest Automerge change, in bytes.
pub const CHANGE_MAX: usize = 64 * 1024;
/// Most dependencies of one kind.
pub const DEPS_MAX: usize = 256;
/// Longest segment on the wire, in bytes.
pub const SEGMENT_MAX: usize = HEADER_MAX + BODY_MAX + 256;

/// What stands in clear before a segment's body.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Header {
    /// [`VERSION`].
    #[n(0)]
    pub version: u8,
    /// [`ALGORITHM`].
    #[n(1)]
    pub algorithm: u8,
    /// The space.
    #[n(2)]
    pub space: SpaceId,
    /// The log that the segment extends.
    #[n(3)]
    pub log: LogId,
    /// Number of the first entry, from 1.
    #[n(4)]
    pub first: Seq,
    /// How many entries, at least 1.
    #[n(5)]
    pub count: u32,
    /// Hash of the log's segment before; absent in the first.
    #[n(6)]
    pub prev: Option<SegmentHash>,
    /// Maximal segments of other logs of the space that the writer had applied, ascending.
    #[n(7)]
    pub deps: Vec<Dep>,
    /// The same for the roster; empty in roster segments.
    #[n(8)]
    pub roster_deps: Vec<Dep>,
    /// Highest stamp in this segment and its causal past.
    #[n(9)]
    pub clock: Stamp,
    /// The key that encrypts the body; all zeros in the roster.
    #[n(10)]
    pub epoch: EpochId,
    /// Milliseconds since 1970, for display only.
    #[n(11)]
    pub time_ms: u64,
    /// Hashes of objects sealed for blind replicas.
    #[n(12)]
    pub sealed: Vec<ByteArray<32>>,
    /// Length of the encrypted body.
    #[n(13)]
    pub body_len: u32,
}

impl Header {
    /// Number of the last entry.
    pub fn last(&self) -> Seq {
        self.first
            .saturating_add(u64::from(self.count))
            .saturating_sub(1)
    }

    fn check(&self) -> Result<(), DecodeError> {
        at_most("segment dependencies", self.deps.len(), DEPS_MAX)?;
        at_most("roster dependencies", self.roster_deps.len(), DEPS_MAX)?;
        at_most("sealed objects", self.sealed.len(), 1024)?;
        at_most("entries in a segment", self.count as usize, ENTRIES_MAX)?;
        let ascending = |deps: &[Dep]| deps.windows(2).all(|w| w[0].log < w[1].log);
        let ok = self.count > 0
            && self.first > 0
            && self.first < 1 << 56
            && (self.first == 1) == self.prev.is_none()
            && self.clock <= crate::row::STAMP_MAX
            && ascending(&self.deps)
            && ascending(&self.roster_deps)
            && self
                .deps
                .iter()
                .all(|dep| dep.log != self.log && dep.head.seq > 0);
        if ok {
            Ok(())
        } else {
            Err(DecodeError::Invalid {
                what: "segment header",
            })
        }
    }
}

/// One entry of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Tag 0: canonical bytes of a row.
    Row(Vec<u8>),
    /// Tag 1: a change of an Automerge document.
    Change {
        /// Which document.
        document: [u8; 16],
        /// One plain change chunk.
        bytes: Vec<u8>,
    },
    /// Tag 2: a fact about who may do what; only in the roster.
    Roster(RosterEntry),
    /// Tag 3: the author confirmed the deletes of this segment; no device holds them.
    DeletesConfirmed,
    /// Of a later version: stored and forwarded, not applied.
    Unknown(u64),
}

/// Why a segment was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The bytes break the format.
    #[error(transparent)]
    Format(#[from] DecodeError),
    /// Signature or decryption failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// Written by a later version.
    #[error("written in format {version}: an update is needed")]
    UpdateNeeded {
        /// The version found.
        version: u8,
    },
    /// Compression does not fit its bounds.
    #[error("segment body: {0}")]
    Compression(String),
}

/// Segment bytes as received: parsed, nothing believed yet.
#[derive(Debug, Clone)]
pub struct SignedSegment {
    header: Header,
    header_len: usize,
    nonce: [u8; 24],
    body: Vec<u8>,
    hash: SegmentHash,
    signature: Signature,
    bytes: Vec<u8>,
}

impl SignedSegment {
    /// Parses segment bytes and checks every bound of the clear part.
    ///
    /// # Errors
    /// [`SegmentError::Format`], [`SegmentError::UpdateNeeded`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SegmentError> {
        at_most("segment", bytes.len(), SEGMENT_MAX)?;
        let malformed = |e: minicbor::decode::Error| DecodeError::Malformed {
            what: "segment",
            why: e.to_string(),
        };
        let mut d = Decoder::new(bytes);
        if d.array().map_err(malformed)? != Some(4) {
            return Err(DecodeError::Invalid { what: "segment" }.into());
        }
        let header_bytes = d.bytes().map_err(malformed)?;
        at_most("segment header", header_bytes.len(), HEADER_MAX)?;
        let nonce = d.bytes().map_err(malformed)?;
        let nonce = nonce.try_into().map_err(|_| DecodeError::Invalid {
            what: "segment nonce",
        })?;
        let body = d.bytes().map_err(malformed)?;
        at_most("segment body", body.len(), BODY_MAX)?;
        let signature: Signature = d.decode().map_err(malformed)?;
        if d.position() != bytes.len() {
            return Err(DecodeError::Invalid {
                what: "segment length",
            }
            .into());
        }
        if let Some(version) = version_of(header_bytes)
            && version != VERSION
        {
            return Err(SegmentError::UpdateNeeded { version });
        }
        let header: Header = cbor::decode_canonical("segment header", header_bytes)?;
        if header.algorithm != ALGORITHM {
            return Err(SegmentError::UpdateNeeded {
                version: header.version,
            });
        }
        header.check()?;
        if header.body_len as usize != body.len() {
            return Err(DecodeError::Invalid {
                what: "segment body length",
            }
            .into());
        }
        let hash = segment_hash(header_bytes, &nonce, body);
        Ok(Self {
            header,
            header_len: header_bytes.len(),
            nonce,
            body: body.to_vec(),
            hash,
            signature,
            bytes: bytes.to_vec(),
        })
    }

    /// What the bytes claim.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Checks the signature of the log's device.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`].
    pub fn verify(self) -> Result<VerifiedSegment, CryptoError> {
        crypto::verify(
            &self.header.log.device,
            domain::SEGMENT_SIGN,
            self.hash.as_bytes(),
            &self.signature,
        )?;
        Ok(VerifiedSegment(self))
    }

    /// Takes bytes that this replica verified before it stored them.
    pub fn assume_verified(self) -> VerifiedSegment {
        VerifiedSegment(self)
    }
}

fn version_of(header: &[u8]) -> Option<u8> {
    let mut d = Decoder::new(header);
    d.map().ok()?;
    (d.u8().ok()? == 0).then(|| d.u8().ok()).flatten()
}

fn segment_hash(header: &[u8], nonce: &[u8; 24], body: &[u8]) -> SegmentHash {
    let len = (header.len() as u32).to_be_bytes();
    SegmentHash::from_bytes(crypto::hash(domain::SEGMENT, &[&len, header, nonce, body]))
}

/// A segment whose signature holds. Says nothing yet about its author's rights.
#[derive(Debug, Clone)]
pub struct VerifiedSegment(SignedSegment);

impl VerifiedSegment {
    /// The clear part.
    pub fn header(&self) -> &Header {
        &self.0.header
    }

    /// The segment's hash.
    pub fn hash(&self) -> SegmentHash {
        self.0.hash
    }

    /// The log's head once this segment is in it.
    pub fn head(&self) -> Head {
        Head {
            seq: self.0.header.last(),
            hash: self.0.hash.to_short(),
        }
    }

    /// The bytes as received, to store and forward.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Decrypts and decodes the body with the key of the epoch that the header names.
    ///
    /// # Errors
    /// [`SegmentError`]; the body is bounded before and after decompression.
    pub fn open(&self, epoch_key: &Key) -> Result<Vec<Entry>, SegmentError> {
        let header = cbor::encode(&self.0.header);
        debug_assert_eq!(header.len(), self.0.header_len);
        let body_key = epoch_key.derive(domain::BODY_KEY);
        let packed = crypto::open(&body_key, &self.0.nonce, &header, &self.0.body)?;
        let plain = decompress(&packed, PLAIN_MAX)?;
        let entries = decode_entries(&plain)?;
        if entries.len() != self.0.header.count as usize {
            return Err(DecodeError::Invalid {
                what: "number of entries",
            }
            .into());
        }
        Ok(entries)
    }
}

/// Decompresses zstd with a bound on the output.
///
/// # Errors
/// [`SegmentError::Compression`].
pub fn decompress(packed: &[u8], limit: usize) -> Result<Vec<u8>, SegmentError> {
    use std::io::Read;
    let fail = |e: std::io::Error| SegmentError::Compression(e.to_string());
    let mut decoder = zstd::stream::read::Decoder::new(packed).map_err(fail)?;
    decoder.window_log_max(23).map_err(fail)?;
    let mut plain = Vec::new();
    decoder
        .take(limit as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(fail)?;
    if plain.len() > limit {
        return Err(SegmentError::Compression(format!(
            "more than {limit} bytes"
        )));
    }
    Ok(plain)
}

fn encode_entries(entries: &[Entry]) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    write_entries(&mut e, entries).expect("encoding to memory does not fail");
    e.into_writer()
}

fn write_entries(
    e: &mut Encoder<Vec<u8>>,
    entries: &[Entry],
) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
    e.array(entries.len() as u64)?;
    for entry in entries {
        match entry {
            Entry::Row(bytes) => e.array(2)?.u8(0)?.bytes(bytes)?,
            Entry::Change { document, bytes } => {
                e.array(3)?.u8(1)?.bytes(document)?.bytes(bytes)?
            }
            Entry::Roster(entry) => e.array(2)?.u8(2)?.encode(entry)?,
            Entry::DeletesConfirmed => e.array(1)?.u8(3)?,
            Entry::Unknown(tag) => e.array(1)?.u64(*tag)?,
        };
    }
    Ok(())
}

fn decode_entries(plain: &[u8]) -> Result<Vec<Entry>, SegmentError> {
    let read = || -> Result<Vec<Entry>, minicbor::decode::Error> {
        let bad = minicbor::decode::Error::message;
        let mut d = Decoder::new(plain);
        let count = d.array()?.ok_or_else(|| bad("entries of unknown number"))?;
        if count > ENTRIES_MAX as u64 {
            return Err(bad("too many entries"));
        }
        let mut entries = Vec::with_capacity(count.min(plain.len() as u64) as usize);
        for _ in 0..count {
            let parts = d.array()?.ok_or_else(|| bad("entry of unknown length"))?;
            let entry = match (d.u64()?, parts) {
                (0, 2) => Entry::Row(d.bytes()?.to_vec()),
                (1, 3) => {
                    let document = *d.decode::<ByteArray<16>>()?;
                    let bytes: ByteVec = d.decode()?;
                    if bytes.len() > CHANGE_MAX {
                        return Err(bad("change is too long"));
                    }
                    Entry::Change {
                        document,
                        bytes: bytes.into(),
                    }
                }
                (2, 2) => Entry::Roster(d.decode()?),
                (3, 1) => Entry::DeletesConfirmed,
                (0..=3, _) => return Err(bad("entry of wrong length")),
                (tag, parts) => {
                    for _ in 1..parts {
                        d.skip()?;
                    }
                    Entry::Unknown(tag)
                }
            };
            entries.push(entry);
        }
        if d.position() != plain.len() {
            return Err(bad("bytes left over"));
        }
        Ok(entries)
    };
    read().map_err(|e| {
        DecodeError::Malformed {
            what: "segment body",
            why: e.to_string(),
        }
        .into()
    })
}

/// What a writer says of a new segment; the rest of the header follows from it.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The space.
    pub space: SpaceId,
    /// The writer's own log.
    pub log: LogId,
    /// End and hash of that log; `None` for its first segment.
    pub prev: Option<(Seq, SegmentHash)>,
    /// Heads of the space, without the own log.
    pub deps: Vec<Dep>,
    /// Heads of the roster.
    pub roster_deps: Vec<Dep>,
    /// Highest stamp in the entries and their past.
    pub clock: Stamp,
    /// The epoch to write under.
    pub epoch: EpochId,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// 1 to [`ENTRIES_MAX`] entries.
    pub entries: Vec<Entry>,
}

impl Draft {
    /// Compresses, encrypts and signs.
    ///
    /// # Errors
    /// [`SegmentError::Format`] if the entries exceed a bound.
    pub fn seal(
        mut self,
        epoch_key: &Key,
        signer: &SigningKey,
        rng: &mut dyn Entropy,
    ) -> Result<VerifiedSegment, SegmentError> {
        let plain = encode_entries(&self.entries);
        at_most("segment body", plain.len(), PLAIN_MAX)?;
        let packed = zstd::bulk::compress(&plain, 1)
            .map_err(|e| SegmentError::Compression(e.to_string()))?;
        self.deps.sort_unstable();
        self.roster_deps.sort_unstable();
        let header = Header {
            version: VERSION,
            algorithm: ALGORITHM,
            space: self.space,
            log: self.log,
            first: self.prev.map_or(1, |(seq, _)| seq + 1),
            count: self.entries.len() as u32,
            prev: self.prev.map(|(_, hash)| hash),
            deps: self.deps,
            roster_deps: self.roster_deps,
            clock: self.clock,
            epoch: self.epoch,
            time_ms: self.time_ms,
            sealed: vec![],
            body_len: (packed.len() + 16) as u32,
        };
        header.check()?;
        let header_bytes = cbor::encode(&header);
        at_most("segment header", header_bytes.len(), HEADER_MAX)?;
        let fresh = crypto::random::<32>(rng);
        let nonce_key = epoch_key.derive(domain::NONCE_KEY);
        let digest = crypto::keyed_hash(&nonce_key, &[&fresh, &header_bytes, &packed]);
        let mut nonce = [0; 24];
        nonce.copy_from_slice(&digest[..24]);
        let body = crypto::seal(
            &epoch_key.derive(domain::BODY_KEY),
            &nonce,
            &header_bytes,
            &packed,
        );
        at_most("segment body", body.len(), BODY_MAX)?;
        let hash = segment_hash(&header_bytes, &nonce, &body);
        let signature = signer.sign(domain::SEGMENT_SIGN, hash.as_bytes());
        let mut e = Encoder::new(Vec::with_capacity(header_bytes.len() + body.len() + 128));
        e.array(4)
            .and_then(|e| e.bytes(&header_bytes))
            .and_then(|e| e.bytes(&nonce))
            .and_then(|e| e.bytes(&body))
            .and_then(|e| e.encode(signature))
            .expect("encoding to memory does not fail");
        let bytes = e.into_writer();
        let header_len = header_bytes.len();
        Ok(VerifiedSegment(SignedSegment {
            header,
            header_len,
            nonce,
            body,
            hash,
            signature,
            bytes,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;
    use proptest::prelude::*;
    use rand_core::SeedableRng;

    fn sealed() -> (VerifiedSegment, Key) {
        let signer = SigningKey::from_seed(&[1; 32]);
        let key = Key::from_bytes([2; 32]);
        let draft = Draft {
            space: SpaceId::from_bytes([3; 16]),
            log: LogId::new(signer.id(), Incarnation::from_bytes([4; 16])),
            prev: None,
            deps: vec![],
            roster_deps: vec![],
            clock: 7,
            epoch: EpochId::from_bytes([5; 16]),
            time_ms: 6,
            entries: vec![Entry::Row(vec![1, 2, 3]), Entry::DeletesConfirmed],
        };
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(1);
        (draft.seal(&key, &signer, &mut rng).expect("seals"), key)
    }

    #[test]
    fn a_segment_opens_with_its_key_only() {
        let (segment, key) = sealed();
        let again = SignedSegment::parse(segment.bytes()).expect("parses");
        let again = again.verify().expect("verifies");
        assert_eq!(again.hash(), segment.hash());
        let entries = again.open(&key).expect("opens");
        assert_eq!(
            entries,
            [Entry::Row(vec![1, 2, 3]), Entry::DeletesConfirmed]
        );
        assert_eq!(
            again.open(&Key::from_bytes([9; 32])),
            Err(SegmentError::Crypto(CryptoError::CannotDecrypt))
        );
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let (segment, _) = sealed();
        for at in 0..segment.bytes().len() {
            let mut bytes = segment.bytes().to_vec();
            bytes[at] ^= 1;
            let accepted = SignedSegment::parse(&bytes)
                .ok()
                .and_then(|s| s.verify().ok());
            assert!(accepted.is_none(), "byte {at}");
        }
    }

    #[test]
    fn a_later_format_is_named() {
        let (segment, _) = sealed();
        let mut bytes = segment.bytes().to_vec();
        let at = bytes
            .windows(2)
            .position(|w| w == [0, VERSION])
            .expect("the version key");
        bytes[at + 1] = 2;
        let error = SignedSegment::parse(&bytes).expect_err("refused");
        assert_eq!(error, SegmentError::UpdateNeeded { version: 2 });
    }

    #[test]
    fn a_decompression_bomb_is_bounded() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compresses");
        assert!(decompress(&bomb, PLAIN_MAX).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = SignedSegment::parse(&bytes);
            let _ = decode_entries(&bytes);
        }
    }
}

//! The bytes of one record.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `pck1`, or `pck2` for encoding 2; the digit is the version |
//! | 4 | 1 | kind of object |
//! | 5 | 1 | encoding: 0 as it is, 1 zstd, 2 zstd with another content as prefix |
//! | 6 | 2 | zero |
//! | 8 | 16 | space |
//! | 24 | 32 | id of the object |
//! | 56 | 4 | length of the object, little-endian |
//! | 60 | 4 | length of the body, little-endian |
//! | 64 | 16 | first half of a hash over bytes 0 to 63 and the body |
//! | 80 | | body |
//!
//! Body of encoding 2: content id of the prefix 32, step in its chain 2 little-endian, zstd frame.

use pacsync_protocol::content::{CHUNK_MAX, ObjectId};
use pacsync_protocol::crypto;
use pacsync_protocol::{ContentId, SpaceId};

/// Domain of a record's checksum.
const CHECKSUM: &str = "pacsync v1 pack record";
/// What the versions of the magic have in common.
pub(super) const MAGIC: [u8; 3] = *b"pck";
const VERSION_PLAIN: u8 = b'1';
/// A reader of version 1 says that it needs an update, and not that it sees damage.
const VERSION_DELTA: u8 = b'2';
/// Bytes of a delta's body before its frame.
const DELTA_HEAD: usize = 34;
pub(super) const HEADER_LEN: usize = 80;
const COVERED: usize = 64;
/// Longest object in a pack. Bytes.
pub const OBJECT_MAX: usize = CHUNK_MAX as usize;
/// Objects below this length are stored as they are. Bytes.
const COMPRESS_MIN: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Raw,
    Zstd,
    Delta,
}

/// What a delta rests on, and the rest of its body.
pub(super) struct Delta<'r> {
    pub(super) base: ContentId,
    /// Its own step: 1 or more.
    pub(super) step: u16,
    pub(super) frame: &'r [u8],
}

/// Says whether bytes begin like a record of a version that this one reads.
pub(super) fn begins(four: &[u8]) -> bool {
    four.strip_prefix(&MAGIC)
        .is_some_and(|rest| matches!(rest.first(), Some(&VERSION_PLAIN | &VERSION_DELTA)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) space: SpaceId,
    pub(super) id: ObjectId,
    pub(super) encoding: Encoding,
    /// Length of the object.
    pub(super) size: usize,
    /// Length of the body.
    pub(super) stored: usize,
    checksum: [u8; 16],
}

impl Header {
    /// Reads the header at the start of `record`; `None` if it is none.
    pub(super) fn parse(record: &[u8]) -> Option<Self> {
        let (magic, rest) = record.split_first_chunk::<4>()?;
        let ([kind, encoding, 0, 0], rest) = rest.split_first_chunk::<4>()? else {
            return None;
        };
        let (space, rest) = rest.split_first_chunk::<16>()?;
        let (id, rest) = rest.split_first_chunk::<32>()?;
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let (stored, rest) = rest.split_first_chunk::<4>()?;
        let (checksum, _) = rest.split_first_chunk::<16>()?;
        let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
        let stored = usize::try_from(u32::from_le_bytes(*stored)).ok()?;
        let version = *magic.strip_prefix(&MAGIC)?.first()?;
        let encoding = match (version, encoding) {
            (VERSION_PLAIN, 0) if stored == size => Encoding::Raw,
            (VERSION_PLAIN, 1) if stored < size => Encoding::Zstd,
            (VERSION_DELTA, 2) if (DELTA_HEAD..size).contains(&stored) => Encoding::Delta,
            _ => return None,
        };
        (size <= OBJECT_MAX).then_some(())?;
        Some(Self {
            space: SpaceId::from_bytes(*space),
            id: ObjectId::from_parts(*kind, *id)?,
            encoding,
            size,
            stored,
            checksum: *checksum,
        })
    }

    /// Length of header and body.
    pub(super) fn record_len(&self) -> usize {
        HEADER_LEN + self.stored
    }

    /// Says whether `record`, from its header on, is as it was written.
    pub(super) fn is_intact(&self, record: &[u8]) -> bool {
        let covered = record.get(..COVERED);
        let body = record.get(HEADER_LEN..self.record_len());
        match (covered, body) {
            (Some(covered), Some(body)) => checksum(covered, body) == self.checksum,
            _ => false,
        }
    }

    /// What a delta rests on; `None` for other encodings.
    pub(super) fn delta<'r>(&self, record: &'r [u8]) -> Option<Delta<'r>> {
        if self.encoding != Encoding::Delta {
            return None;
        }
        let body = record.get(HEADER_LEN..self.record_len())?;
        let (base, rest) = body.split_first_chunk::<32>()?;
        let (step, frame) = rest.split_first_chunk::<2>()?;
        Some(Delta {
            base: ContentId::from_bytes(*base),
            step: u16::from_le_bytes(*step),
            frame,
        })
    }

    /// The object, from the body; `None` if it does not decode to the stated length, or is a delta.
    pub(super) fn object(&self, mut record: Vec<u8>) -> Option<Vec<u8>> {
        if record.len() != self.record_len() {
            return None;
        }
        let object = match self.encoding {
            Encoding::Raw => {
                record.drain(..HEADER_LEN);
                record
            }
            Encoding::Zstd => zstd::bulk::decompress(record.get(HEADER_LEN..)?, self.size).ok()?,
            Encoding::Delta => return None,
        };
        (object.len() == self.size).then_some(object)
    }
}

fn checksum(covered: &[u8], body: &[u8]) -> [u8; 16] {
    let hash = crypto::hash(CHECKSUM, &[covered, body]);
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

/// Writes a record of at most [`OBJECT_MAX`] bytes of object over `out`.
pub(super) fn write(
    out: &mut Vec<u8>,
    compressor: &mut zstd::bulk::Compressor<'static>,
    space: &SpaceId,
    id: &ObjectId,
    object: &[u8],
) {
    // Under 5 % are not worth the time that reading takes.
    let worth = object.len() - object.len() / 20;
    let packed = (object.len() >= COMPRESS_MIN)
        .then(|| compressor.compress(object).ok())
        .flatten()
        .filter(|packed| packed.len() < worth);
    let (encoding, body) = match &packed {
        Some(packed) => (1, packed.as_slice()),
        None => (0, object),
    };
    let kind = [VERSION_PLAIN, id.kind(), encoding];
    assemble(out, kind, space, id, object.len(), &[body]);
}

/// Writes a record whose body is a delta over `out`. The frame is shorter than the object by more
/// than [`DELTA_HEAD`], which the caller answers for.
pub(super) fn write_delta(
    out: &mut Vec<u8>,
    space: &SpaceId,
    id: &ContentId,
    size: usize,
    delta: &Delta<'_>,
) {
    let id = ObjectId::Content(*id);
    let kind = [VERSION_DELTA, id.kind(), 2];
    let step = delta.step.to_le_bytes();
    let body = [delta.base.as_bytes(), &step[..], delta.frame];
    assemble(out, kind, space, &id, size, &body);
}

fn assemble(
    out: &mut Vec<u8>,
    [version, kind, encoding]: [u8; 3],
    space: &SpaceId,
    id: &ObjectId,
    size: usize,
    body: &[&[u8]],
) {
    let stored: usize = body.iter().map(|part| part.len()).sum();
    out.clear();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[version, kind, encoding, 0, 0]);
    out.extend_from_slice(space.as_bytes());
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(&(size as u32).to_le_bytes());
    out.extend_from_slice(&(stored as u32).to_le_bytes());
    out.extend_from_slice(&[0; 16]);
    for part in body {
        out.extend_from_slice(part);
    }
    let (head, body) = out.split_at_mut(HEADER_LEN);
    let (covered, sum) = head.split_at_mut(COVERED);
    sum.copy_from_slice(&checksum(covered, body));
}

/// Whether a frame of this length may be a delta of an object of that length.
pub(super) fn delta_fits(frame: usize, size: usize) -> bool {
    frame.saturating_add(DELTA_HEAD) < size
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(object: &[u8]) -> Vec<u8> {
        let mut compressor = zstd::bulk::Compressor::new(1).expect("zstd");
        let id = ObjectId::Content(ContentId::from_bytes([2; 32]));
        let mut out = Vec::new();
        write(
            &mut out,
            &mut compressor,
            &SpaceId::from_bytes([1; 16]),
            &id,
            object,
        );
        out
    }

    #[test]
    fn what_shrinks_is_packed_and_what_does_not_is_kept() {
        let text = b"the same words again, ".repeat(100);
        let packed = record(&text);
        assert!(packed.len() < text.len() / 4);
        let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().take_bytes(1000);
        assert_eq!(record(&noise).len(), HEADER_LEN + 1000);
        for (object, bytes) in [(text, packed), (noise.clone(), record(&noise))] {
            let header = Header::parse(&bytes).expect("a header");
            assert!(header.is_intact(&bytes));
            assert_eq!(header.object(bytes), Some(object));
        }
    }

    trait TakeBytes {
        fn take_bytes(self, len: usize) -> Vec<u8>;
    }

    impl TakeBytes for blake3::OutputReader {
        fn take_bytes(mut self, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.fill(&mut bytes);
            bytes
        }
    }

    proptest! {
        #[test]
        fn any_change_is_seen(
            object in proptest::collection::vec(0..4u8, 0..300),
            at in any::<prop::sample::Index>(),
            flip in 1..=255u8,
        ) {
            let mut bytes = record(&object);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let intact = Header::parse(&bytes).is_some_and(|header| header.is_intact(&bytes));
            prop_assert!(!intact);
        }

        #[test]
        fn arbitrary_bodies_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = record(&[7; 5000]);
            bytes.truncate(HEADER_LEN);
            bytes[60..64].copy_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&body);
            let header = Header::parse(&bytes).expect("a header");
            let _ = header.object(bytes);
        }
    }
}

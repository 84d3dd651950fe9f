//! One manifest object: an ordered list of what makes a run of content.
//!
//! Encoding, canonical CBOR:
//! `[version, level, size, [min, avg, max, normalisation, seed], [entry, …]]` with entries
//! `[0, len, chunk id]`, `[1, len]` for a hole, `[2, len, manifest id]` for a run
//! that a manifest one level below describes. Level 0 has chunks and holes, a higher one has
//! manifests only, so that an object shows by itself how deep it can reach.

use minicbor::{Decode, Decoder, Encode, Encoder};

use super::{
    CHUNK_MAX, CONTENT_MAX, IdKeys, MANIFEST_BYTES_MAX, MANIFEST_DEPTH_MAX, MANIFEST_ENTRIES_MAX,
    ManifestId,
};
use crate::cbor::{self, DecodeError};
use crate::ids::ChunkId;

const VERSION: u8 = 1;
const KIND_CHUNK: u8 = 0;
const KIND_HOLE: u8 = 1;
const KIND_SUB: u8 = 2;
/// Shortest encoding of an entry: `[1, len]`.
const ENTRY_BYTES_MIN: usize = 3;
/// No chunker cuts shorter; bounds how many entries a claimed size can cost.
const CHUNK_MIN_FLOOR: u32 = 64;

/// Why a manifest, or the tree below one, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are no valid manifest.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A later version of pacsync wrote it.
    #[error("manifest version {found} is not known here: an update is needed")]
    Version {
        /// The version found.
        found: u8,
    },
    /// A manifest below the top is not here yet.
    #[error("manifest {id} is not here")]
    Missing {
        /// Which one.
        id: ManifestId,
    },
    /// The bytes are not those that the id names.
    #[error("the bytes for manifest {id} do not have that id")]
    WrongBytes {
        /// The id asked for.
        id: ManifestId,
    },
    /// A manifest has another level, size or place than its parent says.
    #[error("manifest {id} does not fit the entry that names it")]
    Misfit {
        /// Which one.
        id: ManifestId,
    },
    /// The content has no bytes, or more than a manifest tree can hold.
    #[error("content of {size} bytes cannot have a manifest")]
    Size {
        /// The content's size in bytes.
        size: u64,
    },
}

/// How a content was cut. Only a hint for whoever cuts it again: every manifest
/// can be read without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ChunkParams {
    /// Shortest chunk but for the last one, in bytes; even.
    #[n(0)]
    pub min: u32,
    /// Length aimed at, in bytes; even.
    #[n(1)]
    pub avg: u32,
    /// Longest chunk, in bytes; even, at most [`CHUNK_MAX`].
    #[n(2)]
    pub max: u32,
    /// FastCDC's normalisation level, 0 to 3.
    #[n(3)]
    pub normalisation: u8,
    /// Changes the boundaries.
    #[n(4)]
    pub seed: u64,
}

impl ChunkParams {
    /// What this version cuts with: 32, 128 and 512 KiB, and the space's own seed.
    pub fn standard(keys: &IdKeys) -> Self {
        Self {
            min: 32 * 1024,
            avg: 128 * 1024,
            max: 512 * 1024,
            normalisation: 1,
            seed: keys.chunk_seed(),
        }
    }

    /// Checks the bounds that every chunker keeps to.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`].
    pub fn check(&self) -> Result<(), DecodeError> {
        let ordered = CHUNK_MIN_FLOOR <= self.min
            && self.min <= self.avg
            && self.avg <= self.max
            && self.max <= CHUNK_MAX;
        let even = [self.min, self.avg, self.max]
            .iter()
            .all(|n| n.is_multiple_of(2));
        if ordered && even && self.normalisation <= 3 {
            Ok(())
        } else {
            Err(DecodeError::Invalid {
                what: "chunker parameters",
            })
        }
    }
}

/// One run of content. No run is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The bytes of a chunk.
    Chunk {
        /// Names them.
        id: ChunkId,
        /// How many, at most [`CHUNK_MAX`].
        len: u32,
    },
    /// Zeros, which take no room.
    Hole {
        /// How many bytes.
        len: u64,
    },
    /// What a manifest one level below describes.
    Sub {
        /// Names it.
        id: ManifestId,
        /// How many bytes of content it covers.
        len: u64,
    },
}

impl Entry {
    /// Bytes of content.
    pub fn size(&self) -> u64 {
        match *self {
            Self::Chunk { len, .. } => u64::from(len),
            Self::Hole { len } | Self::Sub { len, .. } => len,
        }
    }
}

impl<C> Encode<C> for Entry {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match self {
            Self::Chunk { id, len } => {
                e.array(3)?
                    .u8(KIND_CHUNK)?
                    .u32(*len)?
                    .bytes(id.as_bytes())?;
            }
            Self::Hole { len } => {
                e.array(2)?.u8(KIND_HOLE)?.u64(*len)?;
            }
            Self::Sub { id, len } => {
                e.array(3)?.u8(KIND_SUB)?.u64(*len)?.bytes(id.as_bytes())?;
            }
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Entry {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, minicbor::decode::Error> {
        let fields = d.array()?;
        match (d.u8()?, fields) {
            (KIND_CHUNK, Some(3)) => {
                let len = d.u32()?;
                Ok(Self::Chunk {
                    len,
                    id: ChunkId::decode(d, c)?,
                })
            }
            (KIND_HOLE, Some(2)) => Ok(Self::Hole { len: d.u64()? }),
            (KIND_SUB, Some(3)) => {
                let len = d.u64()?;
                Ok(Self::Sub {
                    len,
                    id: ManifestId::decode(d, c)?,
                })
            }
            _ => Err(minicbor::decode::Error::message("kind of manifest entry")),
        }
    }
}

/// A valid manifest object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    level: u8,
    size: u64,
    params: ChunkParams,
    entries: Vec<Entry>,
}

impl Manifest {
    /// Puts a manifest together; its size is the sum of the entries.
    ///
    /// # Errors
    /// [`ManifestError::Decode`] if it breaks a limit.
    pub fn new(level: u8, params: ChunkParams, entries: Vec<Entry>) -> Result<Self, ManifestError> {
        let size = sum(&entries).ok_or(DecodeError::Invalid {
            what: "manifest size",
        })?;
        let manifest = Self {
            level,
            size,
            params,
            entries,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads and checks a manifest object. Allocates no more than a small multiple of `bytes`.
    ///
    /// # Errors
    /// [`ManifestError::Decode`], or [`ManifestError::Version`] for a version not known here.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        cbor::at_most("manifest", bytes.len(), MANIFEST_BYTES_MAX)?;
        let mut head = Decoder::new(bytes);
        if let (Ok(Some(_)), Ok(found)) = (head.array(), head.u8())
            && found != VERSION
        {
            return Err(ManifestError::Version { found });
        }
        let manifest: Self = cbor::decode_canonical("manifest", bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The canonical bytes, which [`IdKeys::manifest_id`] names.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// 0 if the entries are chunks and holes; else how many levels are below.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Bytes of content that it covers.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How the content was cut.
    pub fn params(&self) -> ChunkParams {
        self.params
    }

    /// The runs, in the content's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The manifests directly below, in the content's order; an id may come twice.
    pub fn subs(&self) -> impl Iterator<Item = ManifestId> + '_ {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Sub { id, .. } => Some(*id),
            _ => None,
        })
    }

    fn check(&self) -> Result<(), DecodeError> {
        let invalid = |what| Err(DecodeError::Invalid { what });
        self.params.check()?;
        cbor::at_most("manifest entries", self.entries.len(), MANIFEST_ENTRIES_MAX)?;
        if usize::from(self.level) >= MANIFEST_DEPTH_MAX {
            return invalid("manifest level");
        }
        if self.size == 0 || self.size > CONTENT_MAX || sum(&self.entries) != Some(self.size) {
            return invalid("manifest size");
        }
        let last = self.entries.len().saturating_sub(1);
        for (n, entry) in self.entries.iter().enumerate() {
            let fits = match *entry {
                Entry::Chunk { len, .. } => {
                    let shortest = if n == last { 1 } else { self.params.min };
                    self.level == 0 && (shortest..=self.params.max).contains(&len)
                }
                Entry::Hole { len } => self.level == 0 && len > 0,
                Entry::Sub { len, .. } => self.level > 0 && len > 0,
            };
            if !fits {
                return invalid("manifest entry");
            }
        }
        Ok(())
    }
}

fn sum(entries: &[Entry]) -> Option<u64> {
    entries
        .iter()
        .try_fold(0u64, |sum, entry| sum.checked_add(entry.size()))
}

impl<C> Encode<C> for Manifest {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(5)?.u8(VERSION)?.u8(self.level)?.u64(self.size)?;
        self.params.encode(e, c)?;
        e.array(self.entries.len() as u64)?;
        for entry in &self.entries {
            entry.encode(e, c)?;
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Manifest {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, minicbor::decode::Error> {
        let error = minicbor::decode::Error::message;
        if d.array()? != Some(5) {
            return Err(error("fields of a manifest"));
        }
        if d.u8()? != VERSION {
            return Err(error("manifest version"));
        }
        let level = d.u8()?;
        let size = d.u64()?;
        let params = ChunkParams::decode(d, c)?;
        let count = d.array()?.ok_or_else(|| error("manifest entries"))?;
        let left = d.input().len().saturating_sub(d.position()) / ENTRY_BYTES_MIN;
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= MANIFEST_ENTRIES_MAX.min(left))
            .ok_or_else(|| error("too many manifest entries"))?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(Entry::decode(d, c)?);
        }
        Ok(Self {
            level,
            size,
            params,
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARAMS: ChunkParams = ChunkParams {
        min: 64,
        avg: 256,
        max: 1024,
        normalisation: 1,
        seed: 7,
    };

    fn chunk(byte: u8, len: u32) -> Entry {
        Entry::Chunk {
            id: ChunkId::from_bytes([byte; 32]),
            len,
        }
    }

    fn sub(byte: u8, len: u64) -> Entry {
        Entry::Sub {
            id: ManifestId::from_bytes([byte; 32]),
            len,
        }
    }

    fn refused(level: u8, entries: Vec<Entry>) -> bool {
        Manifest::new(level, PARAMS, entries).is_err()
    }

    #[test]
    fn a_manifest_survives_its_encoding_and_stays_small() {
        let entries = vec![chunk(1, 64), Entry::Hole { len: 1 << 40 }, chunk(2, 1)];
        let manifest = Manifest::new(0, PARAMS, entries).expect("valid");
        assert_eq!(manifest.size(), 65 + (1 << 40));
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        let many = Manifest::new(0, PARAMS, vec![chunk(1, 1000); MANIFEST_ENTRIES_MAX]);
        let bytes = many.expect("valid").encode();
        assert!(
            bytes.len() <= 41 * MANIFEST_ENTRIES_MAX + 64,
            "{}",
            bytes.len()
        );
        let longest = Manifest::new(1, PARAMS, vec![sub(1, 1 << 40); MANIFEST_ENTRIES_MAX]);
        let bytes = longest.expect("valid").encode();
        assert!(bytes.len() <= MANIFEST_BYTES_MAX);
        assert!(Manifest::decode(&bytes).is_ok());
    }

    #[test]
    fn what_breaks_a_limit_is_refused() {
        assert!(refused(0, vec![]), "empty");
        assert!(refused(0, vec![chunk(1, 0)]), "empty chunk");
        assert!(refused(0, vec![Entry::Hole { len: 0 }]), "empty hole");
        assert!(refused(1, vec![sub(1, 0)]), "empty sub");
        assert!(refused(0, vec![chunk(1, 1025)]), "long chunk");
        assert!(
            refused(0, vec![chunk(1, 63), chunk(1, 64)]),
            "short chunk inside"
        );
        assert!(refused(0, vec![sub(1, 64)]), "sub in a leaf");
        assert!(refused(1, vec![chunk(1, 64)]), "chunk above the leaves");
        assert!(refused(3, vec![sub(1, 64)]), "too deep");
        assert!(refused(0, vec![chunk(1, 64); 4097]), "too many");
        let hole = |len| Entry::Hole { len };
        assert!(refused(0, vec![hole(u64::MAX), hole(2)]), "overflow");
        assert!(
            refused(0, vec![hole(CONTENT_MAX), hole(1)]),
            "beyond file offsets"
        );
        assert!(!refused(0, vec![hole(CONTENT_MAX)]));
        let long = ChunkParams {
            max: CHUNK_MAX + 2,
            ..PARAMS
        };
        assert!(
            Manifest::new(0, long, vec![chunk(1, 64)]).is_err(),
            "absolute chunk limit"
        );
        let odd = ChunkParams { min: 65, ..PARAMS };
        assert!(
            Manifest::new(0, odd, vec![chunk(1, 64)]).is_err(),
            "odd parameter"
        );
    }

    #[test]
    fn a_size_that_differs_from_the_sum_is_refused() {
        let mut manifest = Manifest::new(0, PARAMS, vec![chunk(1, 64)]).expect("valid");
        manifest.size = 65;
        assert_eq!(
            Manifest::decode(&manifest.encode()),
            Err(DecodeError::Invalid {
                what: "manifest size"
            }
            .into())
        );
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = Manifest::new(0, PARAMS, vec![chunk(1, 64)])
            .expect("valid")
            .encode();
        bytes[1] = 2;
        assert_eq!(
            Manifest::decode(&bytes),
            Err(ManifestError::Version { found: 2 })
        );
    }

    #[test]
    fn another_encoding_is_refused() {
        let bytes = Manifest::new(0, PARAMS, vec![chunk(1, 64)])
            .expect("valid")
            .encode();
        let mut long = vec![0x98, 5];
        long.extend_from_slice(&bytes[1..]);
        assert!(matches!(
            Manifest::decode(&long),
            Err(ManifestError::Decode(DecodeError::NotCanonical { .. }))
        ));
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = prop_oneof![
            (any::<u8>(), 64..1024u32).prop_map(|(id, len)| chunk(id, len)),
            (1..1u64 << 50).prop_map(|len| Entry::Hole { len }),
        ];
        proptest::collection::vec(entry, 1..20)
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(manifest.encode(), bytes);
            }
        }

        #[test]
        fn mutated_manifests_are_valid_or_refused(
            entries in entries(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = Manifest::new(0, PARAMS, entries).expect("valid").encode();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            match Manifest::decode(&bytes) {
                Ok(manifest) => prop_assert_eq!(manifest.encode(), bytes),
                Err(_) => prop_assert!(cut.is_some() || !changes.is_empty()),
            }
        }
    }
}

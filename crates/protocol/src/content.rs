//! What names file content: keyed hashes of whole contents, chunks and manifests.
//!
//! Never here: where the bytes are, or how they are cut; the store does both.

mod manifest;
mod tree;

use std::fmt;
use std::str::FromStr;

use minicbor::{CborLen, Decode, Decoder, Encode, Encoder};

pub use manifest::{ChunkParams, Entry, Manifest, ManifestError};
pub use tree::{ManifestBuilder, ManifestObject, ManifestTree, Piece, PieceSource, Walk};

use crate::crypto::{Key, domain, keyed_hash};
use crate::ids::{ChunkId, ContentId, ParseIdError};

/// Contents of at most this many bytes are never chunked: their content id alone names them.
pub const SMALL_MAX: u64 = 128 * 1024;
/// No chunk is longer, whatever its manifest's parameters say. Bytes.
pub const CHUNK_MAX: u32 = 4 * 1024 * 1024;
/// No content is longer: file offsets are signed 64-bit numbers. Bytes.
pub const CONTENT_MAX: u64 = i64::MAX as u64;
/// Most entries of one manifest object.
pub const MANIFEST_ENTRIES_MAX: usize = 4096;
/// Longest encoding of one manifest object. Bytes.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024;
/// Most manifest objects on the way from the top to a chunk.
pub const MANIFEST_DEPTH_MAX: usize = 3;

/// Key for the chunker's seed from a space's id key: boundaries that a stranger
/// can't compute, so that the lengths of sealed chunks do not tell what a file is.
pub const CHUNK_SEED_KEY: &str = "pacsync v1 chunk boundary seed";

/// Names a manifest object: keyed hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ManifestId(ChunkId);

impl ManifestId {
    /// Length in bytes.
    pub const LEN: usize = ChunkId::LEN;

    /// Wraps raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(ChunkId::from_bytes(bytes))
    }

    /// Wraps a slice; `None` if its length differs from [`Self::LEN`].
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        ChunkId::from_slice(bytes).map(Self)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The first eight characters of the text form, for logs and people.
    pub fn short(&self) -> String {
        self.0.short()
    }
}

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManifestId({})", self.short())
    }
}

impl FromStr for ManifestId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        text.parse().map(Self).map_err(|_| ParseIdError {
            kind: "manifest id",
        })
    }
}

impl<C> Encode<C> for ManifestId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        self.0.encode(e, c)
    }
}

impl<'b, C> Decode<'b, C> for ManifestId {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, minicbor::decode::Error> {
        ChunkId::decode(d, c).map(Self)
    }
}

impl<C> CborLen<C> for ManifestId {
    fn cbor_len(&self, c: &mut C) -> usize {
        self.0.cbor_len(c)
    }
}

/// Names one thing that can be stored and fetched by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// A whole content that is not chunked.
    Content(ContentId),
    /// A chunk.
    Chunk(ChunkId),
    /// A manifest object, top or below.
    Manifest(ManifestId),
}

impl ObjectId {
    /// The number of the kind, on the wire and in packs.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Content(_) => 0,
            Self::Chunk(_) => 1,
            Self::Manifest(_) => 2,
        }
    }

    /// The hash, without its kind.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        match self {
            Self::Content(id) => id.as_bytes(),
            Self::Chunk(id) => id.as_bytes(),
            Self::Manifest(id) => id.as_bytes(),
        }
    }

    /// Puts a kind's number and a hash together; `None` for an unknown kind.
    pub const fn from_parts(kind: u8, bytes: [u8; 32]) -> Option<Self> {
        match kind {
            0 => Some(Self::Content(ContentId::from_bytes(bytes))),
            1 => Some(Self::Chunk(ChunkId::from_bytes(bytes))),
            2 => Some(Self::Manifest(ManifestId::from_bytes(bytes))),
            _ => None,
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(id) => write!(f, "content {id}"),
            Self::Chunk(id) => write!(f, "chunk {id}"),
            Self::Manifest(id) => write!(f, "manifest {id}"),
        }
    }
}

impl<C> Encode<C> for ObjectId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?.u8(self.kind())?.bytes(self.as_bytes())?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for ObjectId {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, minicbor::decode::Error> {
        if d.array()? != Some(2) {
            return Err(minicbor::decode::Error::message("object id"));
        }
        let kind = d.u8()?;
        let bytes = minicbor::bytes::ByteArray::<32>::decode(d, c)?;
        Self::from_parts(kind, *bytes)
            .ok_or_else(|| minicbor::decode::Error::message("kind of object"))
    }
}

impl<C> CborLen<C> for ObjectId {
    fn cbor_len(&self, _: &mut C) -> usize {
        1 + 1 + 2 + 32
    }
}

/// The keys under which one space names its contents.
#[derive(Debug, Clone)]
pub struct IdKeys {
    content: Key,
    chunk: Key,
    manifest: Key,
    seed: Key,
}

impl IdKeys {
    /// Derives them from the space's id key.
    pub fn derive(id_key: &Key) -> Self {
        Self {
            content: id_key.derive(domain::CONTENT_ID_KEY),
            chunk: id_key.derive(domain::CHUNK_ID_KEY),
            manifest: id_key.derive(domain::MANIFEST_ID_KEY),
            seed: id_key.derive(CHUNK_SEED_KEY),
        }
    }

    /// Names a whole content.
    pub fn content_id(&self, content: &[u8]) -> ContentId {
        ContentId::from_bytes(keyed_hash(&self.content, &[content]))
    }

    /// Starts to name a content that comes in parts.
    pub fn content_hasher(&self) -> ContentHasher {
        ContentHasher(Box::new(blake3::Hasher::new_keyed(self.content.expose())))
    }

    /// Names a chunk.
    pub fn chunk_id(&self, chunk: &[u8]) -> ChunkId {
        ChunkId::from_bytes(keyed_hash(&self.chunk, &[chunk]))
    }

    /// Names a manifest object by its bytes.
    pub fn manifest_id(&self, bytes: &[u8]) -> ManifestId {
        ManifestId::from_bytes(keyed_hash(&self.manifest, &[bytes]))
    }

    /// Says whether `bytes` are what `id` names. A chunk that is stored or travels
    /// is checked with this before every use.
    pub fn names(&self, id: &ObjectId, bytes: &[u8]) -> bool {
        match id {
            ObjectId::Content(id) => self.content_id(bytes) == *id,
            ObjectId::Chunk(id) => self.chunk_id(bytes) == *id,
            ObjectId::Manifest(id) => self.manifest_id(bytes) == *id,
        }
    }

    /// The seed of this space's chunk boundaries.
    pub fn chunk_seed(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *self.seed.expose();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Hashes a content that comes in parts, of whatever lengths.
#[derive(Clone)]
pub struct ContentHasher(Box<blake3::Hasher>);

impl ContentHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id of everything taken so far.
    pub fn finish(&self) -> ContentId {
        ContentId::from_bytes(*self.0.finalize().as_bytes())
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentHasher(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> IdKeys {
        IdKeys::derive(&Key::from_bytes([byte; 32]))
    }

    #[test]
    fn the_same_bytes_have_another_id_per_kind_and_per_space() {
        let ids = [
            *keys(1).content_id(b"x").as_bytes(),
            *keys(1).chunk_id(b"x").as_bytes(),
            *keys(1).manifest_id(b"x").as_bytes(),
            *keys(2).content_id(b"x").as_bytes(),
        ];
        for (n, id) in ids.iter().enumerate() {
            assert!(!ids[..n].contains(id));
        }
        assert_ne!(keys(1).chunk_seed(), keys(2).chunk_seed());
    }

    #[test]
    fn a_content_hashes_the_same_in_parts() {
        let mut hasher = keys(1).content_hasher();
        hasher.update(b"one ");
        hasher.update(b"");
        hasher.update(b"two");
        assert_eq!(hasher.finish(), keys(1).content_id(b"one two"));
    }

    #[test]
    fn object_ids_survive_their_encoding_and_name_only_their_bytes() {
        let keys = keys(1);
        for id in [
            ObjectId::Content(keys.content_id(b"x")),
            ObjectId::Chunk(keys.chunk_id(b"x")),
            ObjectId::Manifest(keys.manifest_id(b"x")),
        ] {
            let bytes = minicbor::to_vec(id).expect("encodes");
            assert_eq!(bytes.len(), minicbor::len(id));
            assert_eq!(minicbor::decode::<ObjectId>(&bytes).expect("decodes"), id);
            assert!(keys.names(&id, b"x"));
            assert!(!keys.names(&id, b"y"));
        }
        assert!(ObjectId::from_parts(3, [0; 32]).is_none());
    }

    #[test]
    fn manifest_ids_survive_their_text_form() {
        let id = ManifestId::from_bytes([7; 32]);
        assert_eq!(id.to_string().parse::<ManifestId>(), Ok(id));
        assert!("x".parse::<ManifestId>().is_err());
    }
}

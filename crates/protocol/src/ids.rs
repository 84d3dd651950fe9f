//! The identifiers that appear on the wire and on disk, each its own type.
//!
//! Byte ids display as lower-case base32 without padding; `short()` gives the
//! first eight characters for logs and people.

use std::fmt;
use std::str::FromStr;

use data_encoding::{Encoding, Specification};
use minicbor::bytes::ByteArray;
use minicbor::{CborLen, Decode, Decoder, Encode, Encoder};

/// RFC 4648 base32, lower case, no padding.
fn base32() -> &'static Encoding {
    static ENCODING: std::sync::OnceLock<Encoding> = std::sync::OnceLock::new();
    ENCODING.get_or_init(|| {
        let mut spec = Specification::new();
        spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
        spec.translate.from.push_str("ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        spec.translate.to.push_str("abcdefghijklmnopqrstuvwxyz");
        spec.encoding().expect("a valid base32 alphabet")
    })
}

/// Says that a text is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}")]
pub struct ParseIdError {
    /// What was expected, e.g. `device id`.
    pub kind: &'static str,
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Wraps raw bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Wraps a slice; `None` if its length differs from [`Self::LEN`].
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first eight characters of the text form, for logs and people.
            pub fn short(&self) -> String {
                let mut text = self.to_string();
                text.truncate(8);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base32().encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                base32()
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| Self::from_slice(&bytes))
                    .ok_or(ParseIdError { kind: $kind })
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?;
                Ok(())
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, minicbor::decode::Error> {
                ByteArray::<$len>::decode(d, c).map(|bytes| Self(*bytes))
            }
        }

        impl<C> CborLen<C> for $name {
            fn cbor_len(&self, _: &mut C) -> usize {
                if $len < 24 { $len + 1 } else { $len + 2 }
            }
        }
    };
}

byte_id!(
    /// Names a pac: the hash of its founding record.
    PacId, 32, "pac id"
);
byte_id!(
    /// Names a device: its Ed25519 public key. Holding a value says nothing
    /// about its validity as a curve point; verification checks that.
    DeviceId, 32, "device id"
);
byte_id!(
    /// Names a space: 16 random bytes, opaque to relays.
    SpaceId, 16, "space id"
);
byte_id!(
    /// Names a node: 16 random bytes. All zeros is the root directory of a space.
    NodeId, 16, "node id"
);
byte_id!(
    /// Names a row: the hash of its canonical bytes.
    RowId, 32, "row id"
);
byte_id!(
    /// Names file content: keyed hash of the whole plaintext.
    ContentId, 32, "content id"
);
byte_id!(
    /// Names a chunk: keyed hash of its plaintext.
    ChunkId, 32, "chunk id"
);
byte_id!(
    /// Names a segment: the hash of its header, nonce and encrypted body.
    SegmentHash, 32, "segment hash"
);
byte_id!(
    /// The first 16 bytes of a [`SegmentHash`], as vectors and dependencies carry it.
    ShortHash, 16, "segment hash"
);
byte_id!(
    /// Names one generation of a space's key: 16 random bytes.
    EpochId, 16, "epoch id"
);
byte_id!(
    /// One life of a device's index: 16 random bytes, new whenever it cannot
    /// be sure to extend its old log.
    Incarnation, 16, "incarnation"
);

impl NodeId {
    /// The root directory of every space.
    pub const ROOT: Self = Self([0; 16]);
}

impl SegmentHash {
    /// The 16-byte form used in vectors and dependencies.
    pub fn to_short(&self) -> ShortHash {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[..16]);
        ShortHash(bytes)
    }
}

/// Number of an entry in a log, counted from 1.
pub type Seq = u64;

/// Logical time of a placement: 1 + the highest stamp in the writer's causal past.
pub type Stamp = u64;

/// Names a log: all segments of one device's one incarnation in one space.
/// A branch that forked off is a log of its own, named by its first differing segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, CborLen)]
#[cbor(array)]
pub struct LogId {
    /// The writer.
    #[n(0)]
    pub device: DeviceId,
    /// Which of the writer's lives.
    #[n(1)]
    pub incarnation: Incarnation,
    /// The first differing segment of a forked branch.
    #[n(2)]
    pub branch: Option<ShortHash>,
}

impl LogId {
    /// The unforked log of a device's incarnation.
    pub fn new(device: DeviceId, incarnation: Incarnation) -> Self {
        Self {
            device,
            incarnation,
            branch: None,
        }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.device.short(), self.incarnation.short())?;
        match &self.branch {
            Some(hash) => write!(f, ".{}", hash.short()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form() {
        let id = NodeId::from_bytes(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert!("xyz".parse::<NodeId>().is_err());
        assert_eq!(id.short().len(), 8);
    }

    #[test]
    fn ids_encode_as_byte_strings() {
        let id = NodeId::ROOT;
        let bytes = minicbor::to_vec(id).expect("encodes");
        assert_eq!(bytes.len(), minicbor::len(id));
        assert_eq!(minicbor::decode::<NodeId>(&bytes).expect("decodes"), id);
        assert!(minicbor::decode::<RowId>(&bytes).is_err());
    }
}

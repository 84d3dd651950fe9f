//! The record that founds a pac and names it.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use super::RootKeys;
use crate::cbor::{self, DecodeError};
use crate::crypto::{self, CryptoError, Entropy, PublicKey, SealingKey, Signature, domain};
use crate::ids::PacId;

/// Longest signed founding record, in bytes.
pub const FOUNDING_LEN_MAX: usize = 1024;

const FOUNDING_VERSION: u8 = 1;

/// Why a founding record was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoundingError {
    /// The bytes are not a founding record.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The record is of a version that this program does not know.
    #[error("founding record of version {0}: this program is too old for the pac")]
    Version(u8),
    /// The root's signature does not fit.
    #[error("founding record: {0}")]
    Signature(#[from] CryptoError),
}

/// What a pac is founded on; its hash is the pac's name.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FoundingRecord {
    /// Version of the record's format.
    #[n(0)]
    pub version: u8,
    /// The root's signing key, which outranks everyone.
    #[n(1)]
    pub root: PublicKey,
    /// The root's sealing key: every epoch key is sealed to it too.
    #[n(2)]
    pub root_sealing: SealingKey,
    /// When the pac was founded, Unix time in milliseconds, by the founder's clock.
    #[n(3)]
    pub created_ms: u64,
    /// Random bytes: two pacs of one phrase have different names.
    #[n(4)]
    pub salt: ByteArray<16>,
}

impl FoundingRecord {
    /// Founds a pac: makes and signs its record.
    pub fn found(root: &RootKeys, created_ms: u64, rng: &mut dyn Entropy) -> VerifiedFounding {
        let record = Self {
            version: FOUNDING_VERSION,
            root: PublicKey(root.sign.id()),
            root_sealing: root.unseal.public(),
            created_ms,
            salt: crypto::random::<16>(rng).into(),
        };
        let encoded = cbor::encode(&record);
        let id = pac_id(&encoded);
        let signature = root.sign.sign(domain::FOUNDING, &encoded);
        let bytes = cbor::encode(&SignedFounding {
            record: encoded.into(),
            signature,
        });
        VerifiedFounding { id, record, bytes }
    }
}

/// The version alone, so that a later record is refused by its number.
#[derive(Decode)]
#[cbor(map)]
struct FoundingVersion {
    #[n(0)]
    version: u8,
}

/// A founding record as it travels: the record's canonical bytes and the root's
/// signature over them.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(array)]
struct SignedFounding {
    #[n(0)]
    record: ByteVec,
    #[n(1)]
    signature: Signature,
}

/// A founding record that was signed here or whose signature was checked: there
/// is no other way to get a value of this type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedFounding {
    id: PacId,
    record: FoundingRecord,
    bytes: Vec<u8>,
}

impl VerifiedFounding {
    /// Checks the bytes that [`VerifiedFounding::as_bytes`] gave.
    ///
    /// # Errors
    /// [`FoundingError`]: too long, malformed, not canonical, of another
    /// version, or not signed by the root that it names.
    pub fn verify(bytes: &[u8]) -> Result<Self, FoundingError> {
        cbor::at_most("founding record", bytes.len(), FOUNDING_LEN_MAX)?;
        let signed: SignedFounding = cbor::decode_canonical("signed founding record", bytes)?;
        let encoded = signed.record.as_slice();
        let FoundingVersion { version } = cbor::decode("founding record", encoded)?;
        if version != FOUNDING_VERSION {
            return Err(FoundingError::Version(version));
        }
        let record: FoundingRecord = cbor::decode_canonical("founding record", encoded)?;
        crypto::verify(&record.root.0, domain::FOUNDING, encoded, &signed.signature)?;
        Ok(Self {
            id: pac_id(encoded),
            record,
            bytes: bytes.to_vec(),
        })
    }

    /// The pac's name.
    pub fn id(&self) -> PacId {
        self.id
    }

    /// The record itself.
    pub fn record(&self) -> &FoundingRecord {
        &self.record
    }

    /// The signed record as it is stored and sent; at most [`FOUNDING_LEN_MAX`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn pac_id(record: &[u8]) -> PacId {
    PacId::from_bytes(crypto::hash(domain::FOUNDING, &[record]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Phrase;
    use minicbor::Encoder;
    use proptest::prelude::*;
    use rand_core::SeedableRng;

    fn rng() -> rand_chacha::ChaCha20Rng {
        rand_chacha::ChaCha20Rng::seed_from_u64(1)
    }

    fn founding() -> VerifiedFounding {
        let root = Phrase::generate(&mut rng()).root_keys();
        FoundingRecord::found(&root, 1_700_000_000_000, &mut rng())
    }

    #[test]
    fn a_founding_record_verifies() {
        let made = founding();
        let read = VerifiedFounding::verify(made.as_bytes()).expect("verifies");
        assert_eq!(read, made);
        assert_eq!(read.record().created_ms, 1_700_000_000_000);
        let root = Phrase::generate(&mut rng()).root_keys();
        let other = FoundingRecord::found(
            &root,
            1_700_000_000_000,
            &mut rand_chacha::ChaCha20Rng::seed_from_u64(2),
        );
        assert_ne!(
            other.id(),
            made.id(),
            "two pacs of one phrase differ by their salt"
        );
    }

    #[test]
    fn no_changed_bit_of_a_founding_record_passes() {
        let made = founding();
        for index in 0..made.as_bytes().len() {
            for bit in 0..8 {
                let mut bytes = made.as_bytes().to_vec();
                bytes[index] ^= 1 << bit;
                assert!(
                    VerifiedFounding::verify(&bytes).is_err(),
                    "byte {index} bit {bit}"
                );
            }
        }
        let mut long = made.as_bytes().to_vec();
        long.push(0);
        assert!(VerifiedFounding::verify(&long).is_err());
        assert!(VerifiedFounding::verify(&[0; FOUNDING_LEN_MAX + 1]).is_err());
    }

    #[test]
    fn a_later_founding_record_is_refused_by_its_version() {
        let mut record = Vec::new();
        let mut e = Encoder::new(&mut record);
        e.map(2)
            .and_then(|e| e.u8(0)?.u8(2)?.u8(9)?.str("new"))
            .expect("encodes");
        let root = Phrase::generate(&mut rng()).root_keys();
        let signature = root.sign.sign(domain::FOUNDING, &record);
        let bytes = cbor::encode(&SignedFounding {
            record: record.into(),
            signature,
        });
        assert_eq!(
            VerifiedFounding::verify(&bytes),
            Err(FoundingError::Version(2))
        );
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(VerifiedFounding::verify(&bytes).is_err());
        }
    }
}

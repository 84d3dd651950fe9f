//! Acks: a device's signed word on what it holds and has applied to its disk.
//!
//! Acks are no log entries. Every replica keeps the newest of each device and passes it on;
//! together they say what may be pruned and what is in sync.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::cbor::{self, DecodeError, at_most};
use crate::crypto::{self, CryptoError, Signature, SigningKey, domain};
use crate::ids::{DeviceId, SpaceId, Stamp};
use crate::vector::VersionVector;

/// Longest ack with its signature, in bytes: some ten thousand logs.
pub const ACK_MAX: usize = 1 << 20;

/// "I hold these segments and my disk shows what they say."
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ack {
    /// Who says so.
    #[n(0)]
    pub device: DeviceId,
    /// Of which space.
    #[n(1)]
    pub space: SpaceId,
    /// What is held and applied.
    #[n(2)]
    pub vector: VersionVector,
    /// Highest stamp that the device has seen in the space.
    #[n(3)]
    pub clock: Stamp,
    /// Milliseconds since 1970; of two acks of one device the later counts.
    #[n(4)]
    pub time_ms: u64,
    /// What of the roster is applied: whoever has less does not know all devices that this one
    /// counts as holding the space.
    #[n(5)]
    pub roster: VersionVector,
}

#[derive(Encode, Decode)]
#[cbor(array)]
struct Envelope {
    #[n(0)]
    ack: ByteVec,
    #[n(1)]
    signature: Signature,
}

/// Why an ack was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// The bytes break the format or a bound.
    #[error(transparent)]
    Format(#[from] DecodeError),
    /// The signature is not the device's.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// An ack whose signature holds, with the bytes to store and pass on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedAck {
    ack: Ack,
    bytes: Vec<u8>,
}

impl Ack {
    /// Signs; the signer must be the device that the ack names.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for another signer, [`DecodeError::TooLarge`] for too many logs.
    pub fn sign(self, signer: &SigningKey) -> Result<VerifiedAck, DecodeError> {
        if signer.id() != self.device {
            return Err(DecodeError::Invalid {
                what: "signer of an ack",
            });
        }
        let inner = cbor::encode(&self);
        let signature = signer.sign(domain::ACK, &inner);
        let bytes = cbor::encode(&Envelope {
            ack: inner.into(),
            signature,
        });
        at_most("ack", bytes.len(), ACK_MAX)?;
        Ok(VerifiedAck { ack: self, bytes })
    }
}

impl VerifiedAck {
    /// Parses and verifies an ack from anywhere.
    ///
    /// # Errors
    /// [`AckError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AckError> {
        at_most("ack", bytes.len(), ACK_MAX)?;
        let envelope: Envelope = cbor::decode_canonical("ack", bytes)?;
        let ack: Ack = cbor::decode_canonical("ack", &envelope.ack)?;
        crypto::verify(&ack.device, domain::ACK, &envelope.ack, &envelope.signature)?;
        Ok(Self {
            ack,
            bytes: bytes.to_vec(),
        })
    }

    /// What the device says.
    pub fn ack(&self) -> &Ack {
        &self.ack
    }

    /// The signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, LogId, ShortHash};
    use crate::vector::Head;

    fn signed() -> VerifiedAck {
        let signer = SigningKey::from_seed(&[1; 32]);
        let log = LogId::new(signer.id(), Incarnation::from_bytes([2; 16]));
        let head = Head {
            seq: 3,
            hash: ShortHash::from_bytes([4; 16]),
        };
        let vector = [(log, head)].into_iter().collect();
        let space = SpaceId::from_bytes([5; 16]);
        let ack = Ack {
            device: signer.id(),
            space,
            vector,
            clock: 6,
            time_ms: 7,
            roster: VersionVector::new(),
        };
        ack.sign(&signer).expect("signs")
    }

    #[test]
    fn an_ack_survives_its_bytes_and_no_flipped_bit() {
        let ack = signed();
        assert_eq!(VerifiedAck::from_bytes(ack.bytes()), Ok(ack.clone()));
        for at in 0..ack.bytes().len() {
            let mut bytes = ack.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(VerifiedAck::from_bytes(&bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn nobody_acks_for_another() {
        let ack = signed().ack().clone();
        assert!(ack.sign(&SigningKey::from_seed(&[9; 32])).is_err());
    }
}

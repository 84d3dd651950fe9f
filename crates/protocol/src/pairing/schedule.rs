//! From the SPAKE2 result to the proofs that both sides exchange.

use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use minicbor::bytes::ByteSlice;
use sha2::{Digest, Sha256};
use spake2::{Ed25519Group, Identity, Password, Spake2};
use zeroize::Zeroizing;

use super::message::{Confirm, MAC_LEN, SPAKE_LEN};
use super::{ALPN, Exporter, PairingCode, PairingError};
use crate::cbor;
use crate::crypto::{self, Entropy, SigningKey, domain};
use crate::grant::Role;
use crate::ids::DeviceId;

/// Signature by which a side shows that it holds the key that it named.
const POSSESSION: &str = "pacsync v1 pairing possession";
const JOINER_CONFIRM: &[u8] = b"pacsync v1 pairing joiner confirmation";
const HOST_CONFIRM: &[u8] = b"pacsync v1 pairing host confirmation";

/// Which end of a pairing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Joiner,
    Host,
}

/// One side's SPAKE2 state.
pub(super) type Exchange = Spake2<Ed25519Group>;

/// Starts SPAKE2 and gives the message for the other side. The identities are
/// constants; the module's page says where the device keys come in.
pub(super) fn start(
    side: Side,
    code: &PairingCode,
    rng: &mut dyn Entropy,
) -> (Exchange, [u8; SPAKE_LEN]) {
    let password = Password::new(code.password().as_bytes());
    let (joiner, host) = (Identity::new(b"joiner"), Identity::new(b"host"));
    let (exchange, message) = match side {
        Side::Joiner => Spake2::start_a_with_rng(&password, &joiner, &host, rng),
        Side::Host => Spake2::start_b_with_rng(&password, &joiner, &host, rng),
    };
    (
        exchange,
        message.try_into().expect("a SPAKE2 message has 33 bytes"),
    )
}

/// Ends SPAKE2. The result is equal on both sides only if their words are.
pub(super) fn finish(
    exchange: Exchange,
    message: &[u8; SPAKE_LEN],
) -> Result<Zeroizing<Vec<u8>>, PairingError> {
    let shared = exchange
        .finish(message)
        .map_err(|_| PairingError::Misbehaved("bad key share"))?;
    Ok(Zeroizing::new(shared))
}

/// What both sides saw, each byte of it.
pub(super) struct Transcript<'a> {
    pub(super) exporter: &'a Exporter,
    pub(super) slot: u16,
    pub(super) role: Role,
    pub(super) hello: &'a [u8],
    pub(super) answer: &'a [u8],
}

impl Transcript<'_> {
    /// Hashes the parts as one CBOR array, which frames their lengths.
    fn digest(&self) -> [u8; 32] {
        let bytes = |part| <&ByteSlice>::from(part);
        let parts = cbor::encode(&(
            domain::PAIR,
            bytes(self.exporter.as_slice()),
            bytes(ALPN),
            self.slot,
            self.role,
            bytes(self.hello),
            bytes(self.answer),
        ));
        Sha256::digest(parts).into()
    }
}

/// The two confirmation keys and what they confirm.
pub(super) struct Schedule {
    joiner: Zeroizing<[u8; 32]>,
    host: Zeroizing<[u8; 32]>,
    transcript: [u8; 32],
}

impl Schedule {
    /// HKDF-SHA256: salt = hash of the transcript, key material = SPAKE2 result, one
    /// label for each side.
    pub(super) fn new(shared: &[u8], transcript: &Transcript<'_>) -> Self {
        let transcript = transcript.digest();
        let kdf = Hkdf::<Sha256>::new(Some(&transcript), shared);
        let expand = |label| {
            let mut key = Zeroizing::new([0; 32]);
            kdf.expand(label, key.as_mut_slice())
                .expect("32 bytes can be expanded");
            key
        };
        Self {
            joiner: expand(JOINER_CONFIRM),
            host: expand(HOST_CONFIRM),
            transcript,
        }
    }

    fn mac(&self, side: Side) -> Hmac<Sha256> {
        let key = match side {
            Side::Joiner => &self.joiner,
            Side::Host => &self.host,
        };
        let mut mac =
            Hmac::<Sha256>::new_from_slice(key.as_slice()).expect("a MAC key of any length");
        mac.update(&self.transcript);
        mac
    }

    fn possession(&self, side: Side) -> Vec<u8> {
        let mut message = self.transcript.to_vec();
        message.push(match side {
            Side::Joiner => 1,
            Side::Host => 2,
        });
        message
    }

    /// Makes a side's proof.
    pub(super) fn confirm(&self, side: Side, key: &SigningKey) -> Confirm {
        let mac: [u8; MAC_LEN] = self.mac(side).finalize().into_bytes().into();
        Confirm {
            mac: mac.into(),
            signature: key.sign(POSSESSION, &self.possession(side)),
        }
    }

    /// Checks the other side's proof; the MAC in constant time, and first: it
    /// alone says whether the codes are the same.
    pub(super) fn check(
        &self,
        side: Side,
        device: &DeviceId,
        confirm: &Confirm,
    ) -> Result<(), PairingError> {
        self.mac(side)
            .verify_slice(confirm.mac.as_slice())
            .map_err(|_| PairingError::WrongCode)?;
        crypto::verify(
            device,
            POSSESSION,
            &self.possession(side),
            &confirm.signature,
        )
        .map_err(|_| PairingError::Misbehaved("it does not hold the device key that it named"))
    }
}

//! Keys and the few operations on them. Every use of a key has a domain
//! string of its own; `docs/wire.md` lists them all.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ed25519_dalek::{Signer, VerifyingKey};
use minicbor::bytes::ByteArray;
use minicbor::{CborLen, Decode, Encode};
use rand_core::CryptoRngCore;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::ids::DeviceId;

/// Algorithm byte before an Ed25519 key or signature.
pub const ALG_ED25519: u8 = 1;
/// Algorithm byte before an X25519 key or a box sealed to one.
pub const ALG_X25519: u8 = 2;
/// Overhead of [`seal_to`]: algorithm byte, ephemeral key and tag.
pub const SEAL_OVERHEAD: usize = 1 + 32 + 16;

/// Domain strings; each signature, hash and key derivation uses exactly one.
pub mod domain {
    /// Signature and id of a founding record.
    pub const FOUNDING: &str = "pacsync v1 founding record";
    /// Root Ed25519 key from the phrase.
    pub const ROOT_SIGN: &str = "pacsync v1 root signing key";
    /// Root X25519 key from the phrase.
    pub const ROOT_SEAL: &str = "pacsync v1 root sealing key";
    /// Signature of a grant.
    pub const GRANT: &str = "pacsync v1 grant";
    /// Hash of a grant's private part.
    pub const GRANT_PRIVATE: &str = "pacsync v1 grant private part";
    /// Id of a row.
    pub const ROW: &str = "pacsync v1 row";
    /// Hash of a segment; its signature is over this hash.
    pub const SEGMENT: &str = "pacsync v1 segment";
    /// Signature of a segment.
    pub const SEGMENT_SIGN: &str = "pacsync v1 segment signature";
    /// Subkey of an epoch key for segment bodies.
    pub const BODY_KEY: &str = "pacsync v1 epoch body key";
    /// Subkey of an epoch key for segment nonces.
    pub const NONCE_KEY: &str = "pacsync v1 epoch nonce key";
    /// Key for content ids from a space's id key.
    pub const CONTENT_ID_KEY: &str = "pacsync v1 content id key";
    /// Key for chunk ids from a space's id key.
    pub const CHUNK_ID_KEY: &str = "pacsync v1 chunk id key";
    /// Key for manifest ids from a space's id key.
    pub const MANIFEST_ID_KEY: &str = "pacsync v1 manifest id key";
    /// Boxes sealed to an X25519 key.
    pub const SEAL: &str = "pacsync v1 sealed box";
    /// The roster's own id.
    pub const ROSTER_SPACE: &str = "pacsync v1 roster space id";
    /// Discovery key from the roster key.
    pub const DISCOVERY_KEY: &str = "pacsync v1 discovery key";
    /// Tag in a TLS server name.
    pub const SNI_TAG: &str = "pacsync v1 server name tag";
    /// Tag in an mDNS announcement.
    pub const MDNS_TAG: &str = "pacsync v1 mdns tag";
    /// Key made from a pairing slot.
    pub const PAIR_SLOT: &str = "pacsync v1 pairing slot key";
    /// Pairing key schedule.
    pub const PAIR: &str = "pacsync v1 pairing";
    /// Signature of an ack.
    pub const ACK: &str = "pacsync v1 ack";
    /// Signature of a checkpoint's header; the hash that binds its parts to it.
    pub const CHECKPOINT: &str = "pacsync v1 checkpoint";
    /// Subkey of an epoch key for parts of checkpoints.
    pub const CHECKPOINT_KEY: &str = "pacsync v1 checkpoint key";
    /// Ids of epochs.
    pub const EPOCH_ID: &str = "pacsync v1 epoch id";
    /// Subkey of an epoch key for nonces of such parts.
    pub const CHECKPOINT_NONCE_KEY: &str = "pacsync v1 checkpoint nonce key";
    /// Root over the rows of a checkpoint.
    pub const CHECKPOINT_ROWS: &str = "pacsync v1 checkpoint rows";
    /// Root over the documents of a checkpoint.
    pub const CHECKPOINT_DOCUMENTS: &str = "pacsync v1 checkpoint documents";
    /// Ids of documents with a fixed place: settings of a space, profile of a device.
    pub const DOCUMENT_ID: &str = "pacsync v1 document id";
}

/// Hashes `parts` under a domain. Lengths are not framed: callers pass at most
/// one part of variable length, and that last.
pub fn hash(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(domain);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// A hash under a domain of what comes piece by piece.
#[derive(Debug, Clone)]
pub struct RunningHash(blake3::Hasher);

impl RunningHash {
    /// Of nothing yet.
    pub fn new(domain: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(domain))
    }

    /// Takes in what follows.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all that came.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// A keyed BLAKE3 hash of `parts`, concatenated.
pub fn keyed_hash(key: &Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Why a signature or a box was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The signature does not fit the key and the bytes.
    #[error("the signature is not valid")]
    BadSignature,
    /// The ciphertext was not made with this key and these associated data.
    #[error("cannot be decrypted with this key")]
    CannotDecrypt,
}

/// A 32-byte secret for symmetric use. Never printed, wiped on drop.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; 32]);

impl Key {
    /// Wraps raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws a new key.
    pub fn generate(rng: &mut dyn Entropy) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Derives the subkey for one domain.
    pub fn derive(&self, domain: &str) -> Self {
        Self(hash(domain, &[&self.0]))
    }

    /// The raw bytes, for sealing and storing.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl<C> Encode<C> for Key {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Key {
    fn decode(d: &mut minicbor::Decoder<'b>, c: &mut C) -> Result<Self, minicbor::decode::Error> {
        ByteArray::<32>::decode(d, c).map(|bytes| Self(*bytes))
    }
}

/// A source of entropy that is passed in: the operating system's in the daemon,
/// a seeded one in tests and simulations.
pub trait Entropy: CryptoRngCore + Send {}
impl<T: CryptoRngCore + Send> Entropy for T {}

/// Draws `N` random bytes.
pub fn random<const N: usize>(rng: &mut dyn Entropy) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// An Ed25519 signature. On the wire: a byte string of algorithm byte and 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Length on the wire, with its algorithm byte.
    pub const LEN: usize = 65;

    /// Algorithm byte, then the signature.
    pub fn to_bytes(&self) -> [u8; 65] {
        let mut bytes = [ALG_ED25519; 65];
        bytes[1..].copy_from_slice(&self.0);
        bytes
    }

    /// Reads the form of [`Signature::to_bytes`]; `None` for an unknown algorithm or length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let (&alg, rest) = bytes.split_first()?;
        (alg == ALG_ED25519).then_some(())?;
        rest.try_into().ok().map(Self)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(..)")
    }
}

impl<C> Encode<C> for Signature {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.to_bytes())?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Signature {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::from_slice(d.bytes()?).ok_or_else(|| minicbor::decode::Error::message("signature"))
    }
}

impl<C> CborLen<C> for Signature {
    fn cbor_len(&self, _: &mut C) -> usize {
        Self::LEN + 2
    }
}

/// An X25519 public key. On the wire: a byte string of algorithm byte and 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealingKey([u8; 32]);

impl SealingKey {
    /// Wraps raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes, without the algorithm byte.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

impl<C> Encode<C> for SealingKey {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let mut bytes = [ALG_X25519; 33];
        bytes[1..].copy_from_slice(&self.0);
        e.bytes(&bytes)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for SealingKey {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        match d.bytes()?.split_first() {
            Some((&ALG_X25519, rest)) => rest
                .try_into()
                .map(Self)
                .map_err(|_| minicbor::decode::Error::message("sealing key length")),
            _ => Err(minicbor::decode::Error::message("sealing key algorithm")),
        }
    }
}

/// An Ed25519 public key with its algorithm byte, as founding records and grants carry it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PublicKey(pub DeviceId);

impl<C> Encode<C> for PublicKey {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let mut bytes = [ALG_ED25519; 33];
        bytes[1..].copy_from_slice(self.0.as_bytes());
        e.bytes(&bytes)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for PublicKey {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        match d.bytes()?.split_first() {
            Some((&ALG_ED25519, rest)) => DeviceId::from_slice(rest)
                .map(Self)
                .ok_or_else(|| minicbor::decode::Error::message("public key length")),
            _ => Err(minicbor::decode::Error::message("public key algorithm")),
        }
    }
}

/// Verifies a signature over `message` under `domain`; strict: weak keys and
/// non-canonical signatures are refused.
///
/// # Errors
/// [`CryptoError::BadSignature`].
pub fn verify(
    signer: &DeviceId,
    domain: &str,
    message: &[u8],
    signature: &Signature,
) -> Result<(), CryptoError> {
    let key = VerifyingKey::from_bytes(signer.as_bytes()).map_err(|_| CryptoError::BadSignature)?;
    let digest = hash(domain, &[message]);
    key.verify_strict(&digest, &ed25519_dalek::Signature::from_bytes(&signature.0))
        .map_err(|_| CryptoError::BadSignature)
}

/// An Ed25519 secret key. Never printed, wiped on drop.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Makes the key from its 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The 32-byte seed, for storing in a file of mode 0600.
    pub fn expose_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn id(&self) -> DeviceId {
        DeviceId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs the domain-separated hash of `message`.
    pub fn sign(&self, domain: &str, message: &[u8]) -> Signature {
        Signature(self.0.sign(&hash(domain, &[message])).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// An X25519 secret key. Never printed, wiped on drop.
#[derive(Clone)]
pub struct UnsealingKey(x25519_dalek::StaticSecret);

impl UnsealingKey {
    /// Makes the key from its 32 bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(x25519_dalek::StaticSecret::from(*seed))
    }

    /// The 32 bytes, for storing in a file of mode 0600.
    pub fn expose_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> SealingKey {
        SealingKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// Opens a box made by [`seal_to`] with the same associated data.
    ///
    /// # Errors
    /// [`CryptoError::CannotDecrypt`].
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let (alg, rest) = sealed.split_first().ok_or(CryptoError::CannotDecrypt)?;
        let (ephemeral, body) = rest
            .split_first_chunk::<32>()
            .ok_or(CryptoError::CannotDecrypt)?;
        if *alg != ALG_X25519 {
            return Err(CryptoError::CannotDecrypt);
        }
        let shared = self
            .0
            .diffie_hellman(&x25519_dalek::PublicKey::from(*ephemeral));
        let key = box_key(shared.as_bytes(), ephemeral, self.public().as_bytes());
        open(&key, &[0; 24], aad, body).map(Zeroizing::new)
    }
}

impl fmt::Debug for UnsealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnsealingKey(..)")
    }
}

fn box_key(shared: &[u8; 32], ephemeral: &[u8; 32], recipient: &[u8; 32]) -> Key {
    Key(hash(domain::SEAL, &[shared, ephemeral, recipient]))
}

/// Seals bytes to an X25519 key: algorithm byte, fresh ephemeral key, XChaCha20-Poly1305
/// under a key derived from the exchange and both public keys. The ephemeral key is used
/// once, so the nonce is zero.
pub fn seal_to(recipient: &SealingKey, aad: &[u8], plain: &[u8], rng: &mut dyn Entropy) -> Vec<u8> {
    let ephemeral = x25519_dalek::StaticSecret::from(random::<32>(rng));
    let public = x25519_dalek::PublicKey::from(&ephemeral).to_bytes();
    let shared = ephemeral.diffie_hellman(&x25519_dalek::PublicKey::from(recipient.0));
    let key = box_key(shared.as_bytes(), &public, &recipient.0);
    let mut sealed = vec![ALG_X25519];
    sealed.extend_from_slice(&public);
    sealed.extend_from_slice(&seal(&key, &[0; 24], aad, plain));
    sealed
}

/// Encrypts with XChaCha20-Poly1305; output is 16 bytes longer than `plain`.
/// The caller answers for the nonce's uniqueness.
pub fn seal(key: &Key, nonce: &[u8; 24], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    XChaCha20Poly1305::new((&key.0).into())
        .encrypt(XNonce::from_slice(nonce), Payload { msg: plain, aad })
        .expect("encrypting to memory does not fail")
}

/// Decrypts what [`seal`] made.
///
/// # Errors
/// [`CryptoError::CannotDecrypt`].
pub fn open(key: &Key, nonce: &[u8; 24], aad: &[u8], body: &[u8]) -> Result<Vec<u8>, CryptoError> {
    XChaCha20Poly1305::new((&key.0).into())
        .decrypt(XNonce::from_slice(nonce), Payload { msg: body, aad })
        .map_err(|_| CryptoError::CannotDecrypt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    fn rng() -> rand_chacha::ChaCha20Rng {
        rand_chacha::ChaCha20Rng::seed_from_u64(1)
    }

    #[test]
    fn a_signature_holds_only_for_its_domain_key_and_message() {
        let key = SigningKey::from_seed(&[7; 32]);
        let signature = key.sign(domain::GRANT, b"message");
        assert_eq!(
            verify(&key.id(), domain::GRANT, b"message", &signature),
            Ok(())
        );
        let bad = Err(CryptoError::BadSignature);
        assert_eq!(verify(&key.id(), domain::ACK, b"message", &signature), bad);
        assert_eq!(
            verify(&key.id(), domain::GRANT, b"massage", &signature),
            bad
        );
        let other = SigningKey::from_seed(&[8; 32]).id();
        assert_eq!(verify(&other, domain::GRANT, b"message", &signature), bad);
    }

    #[test]
    fn a_box_opens_only_with_its_key_and_associated_data() {
        let key = UnsealingKey::from_seed(&[9; 32]);
        let sealed = seal_to(&key.public(), b"aad", b"secret", &mut rng());
        assert_eq!(sealed.len(), 6 + SEAL_OVERHEAD);
        assert_eq!(
            key.open(b"aad", &sealed).expect("opens").as_slice(),
            b"secret"
        );
        assert!(key.open(b"aaa", &sealed).is_err());
        assert!(
            UnsealingKey::from_seed(&[1; 32])
                .open(b"aad", &sealed)
                .is_err()
        );
        for cut in 0..sealed.len() {
            assert!(key.open(b"aad", &sealed[..cut]).is_err());
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let key = SigningKey::from_seed(&[7; 32]);
        assert_eq!(
            format!("{key:?} {:?}", Key::from_bytes([1; 32])),
            "SigningKey(..) Key(..)"
        );
    }
}

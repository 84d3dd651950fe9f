//! One device: its key pairs, their public halves, its name.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder};
use zeroize::{Zeroize, Zeroizing};

use crate::cbor::{self, DecodeError};
use crate::crypto::{self, Entropy, PublicKey, SealingKey, SigningKey, UnsealingKey};
use crate::ids::DeviceId;

/// Longest device name, in bytes of UTF-8.
pub const DEVICE_NAME_LEN_MAX: usize = 64;

const DEVICE_KEYS_VERSION: u8 = 1;
const DEVICE_KEYS_CHECK: &str = "pacsync v1 device key file check";
const CHECK_LEN: usize = 8;
/// Version byte, two secret keys, check.
const DEVICE_KEYS_LEN: usize = 1 + 32 + 32 + CHECK_LEN;

/// Why a device key file was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceKeysError {
    /// The file is of a version that this program does not know.
    #[error("device key file of version {0}: it was written by a newer program")]
    Version(u8),
    /// The file is cut, too long or changed.
    #[error("the device key file is damaged")]
    Damaged,
}

/// The secret keys of one device in one pac.
#[derive(Clone, Debug)]
pub struct DeviceKeys {
    /// Signs segments and grants, and is the device's name.
    pub sign: SigningKey,
    /// Opens what is sealed to the device.
    pub unseal: UnsealingKey,
}

impl DeviceKeys {
    /// Draws the keys of a new device.
    pub fn generate(rng: &mut dyn Entropy) -> Self {
        let sign = Zeroizing::new(crypto::random::<32>(rng));
        let unseal = Zeroizing::new(crypto::random::<32>(rng));
        Self {
            sign: SigningKey::from_seed(&sign),
            unseal: UnsealingKey::from_seed(&unseal),
        }
    }

    /// The secret keys for a file of mode 0600: version byte, Ed25519 seed,
    /// X25519 secret, 8 bytes of check.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(DEVICE_KEYS_LEN));
        bytes.push(DEVICE_KEYS_VERSION);
        bytes.extend_from_slice(self.sign.expose_seed().as_slice());
        bytes.extend_from_slice(self.unseal.expose_seed().as_slice());
        let check = device_keys_check(&bytes);
        bytes.extend_from_slice(&check);
        bytes
    }

    /// Reads what [`DeviceKeys::to_bytes`] gave. The check catches damage that
    /// would otherwise make another device of this one.
    ///
    /// # Errors
    /// [`DeviceKeysError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DeviceKeysError> {
        let damaged = DeviceKeysError::Damaged;
        let (&version, keys) = bytes.split_first().ok_or(damaged)?;
        if version != DEVICE_KEYS_VERSION {
            return Err(DeviceKeysError::Version(version));
        }
        let (sign, rest) = keys.split_first_chunk::<32>().ok_or(damaged)?;
        let (unseal, check) = rest.split_first_chunk::<32>().ok_or(damaged)?;
        let (covered, _) = bytes
            .split_at_checked(DEVICE_KEYS_LEN - CHECK_LEN)
            .ok_or(damaged)?;
        if check != device_keys_check(covered) {
            return Err(damaged);
        }
        Ok(Self {
            sign: SigningKey::from_seed(sign),
            unseal: UnsealingKey::from_seed(unseal),
        })
    }

    /// The device's name: its public signing key.
    pub fn id(&self) -> DeviceId {
        self.sign.id()
    }

    /// The public halves.
    pub fn public(&self) -> DevicePublic {
        DevicePublic {
            id: self.sign.id(),
            sealing: self.unseal.public(),
        }
    }
}

fn device_keys_check(covered: &[u8]) -> [u8; CHECK_LEN] {
    let mut digest = crypto::hash(DEVICE_KEYS_CHECK, &[covered]);
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&digest[..CHECK_LEN]);
    digest.zeroize();
    check
}

/// The public keys of a device. On the wire: a map of 0, the signing key, and
/// 1, the sealing key, each with its algorithm byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePublic {
    /// Its Ed25519 key, which is its name.
    pub id: DeviceId,
    /// Its X25519 key, to which secrets are sealed.
    pub sealing: SealingKey,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct DevicePublicWire {
    #[n(0)]
    sign: PublicKey,
    #[n(1)]
    sealing: SealingKey,
}

impl<C> Encode<C> for DevicePublic {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        DevicePublicWire {
            sign: PublicKey(self.id),
            sealing: self.sealing,
        }
        .encode(e, c)
    }
}

impl<'b, C> Decode<'b, C> for DevicePublic {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, minicbor::decode::Error> {
        let wire = DevicePublicWire::decode(d, c)?;
        Ok(Self {
            id: wire.sign.0,
            sealing: wire.sealing,
        })
    }
}

/// What a person calls a device: 1 to 64 bytes of UTF-8 without characters that
/// a terminal obeys or that hide or turn round others, and without blanks at the ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// Takes a name that keeps the rules.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] or [`DecodeError::Invalid`].
    pub fn new(name: &str) -> Result<Self, DecodeError> {
        cbor::at_most("device name", name.len(), DEVICE_NAME_LEN_MAX)?;
        if name.is_empty() || name.trim() != name || !name.chars().all(is_plain) {
            return Err(DecodeError::Invalid {
                what: "device name",
            });
        }
        Ok(Self(name.to_owned()))
    }

    /// Makes a name of any text, such as a host name: leaves out what a name
    /// may not hold and cuts at the limit; `device` if nothing is left.
    pub fn lossy(text: &str) -> Self {
        let plain: String = text.chars().filter(|&c| is_plain(c)).collect();
        let mut name = String::new();
        for c in plain.trim().chars() {
            if name.len() + c.len_utf8() > DEVICE_NAME_LEN_MAX {
                break;
            }
            name.push(c);
        }
        let name = name.trim_end();
        Self(if name.is_empty() {
            "device".to_owned()
        } else {
            name.to_owned()
        })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Says whether a character shows as itself, wherever it is printed.
fn is_plain(c: char) -> bool {
    let invisible = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !invisible
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<C> Encode<C> for DeviceName {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&self.0)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for DeviceName {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::new(d.str()?).map_err(|_| minicbor::decode::Error::message("device name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_core::SeedableRng;

    fn rng() -> rand_chacha::ChaCha20Rng {
        rand_chacha::ChaCha20Rng::seed_from_u64(1)
    }

    #[test]
    fn device_keys_survive_their_file_and_damage_is_noticed() {
        let keys = DeviceKeys::generate(&mut rng());
        let bytes = keys.to_bytes();
        assert_eq!(bytes.len(), DEVICE_KEYS_LEN);
        let read = DeviceKeys::from_bytes(&bytes).expect("is read");
        assert_eq!(read.public(), keys.public());
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(DeviceKeys::from_bytes(&changed).is_err(), "byte {index}");
            assert!(
                DeviceKeys::from_bytes(&bytes[..index]).is_err(),
                "cut at {index}"
            );
        }
        let public = cbor::encode(&keys.public());
        assert_eq!(cbor::decode_canonical("device", &public), Ok(keys.public()));
    }

    #[test]
    fn names_cannot_deceive() {
        for bad in [
            "",
            " x",
            "x\n",
            "a\u{1b}[2Jb",
            "a\u{202e}b",
            "a\u{200b}",
            &"x".repeat(65),
        ] {
            assert!(DeviceName::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            DeviceName::new("Jürgens Läptop 💻")
                .expect("is a name")
                .as_str()
                .len(),
            21
        );
        assert_eq!(DeviceName::lossy("\u{1b}\n ").as_str(), "device");
        assert_eq!(DeviceName::lossy("my-host\n").as_str(), "my-host");
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(
            format!("{:?}", DeviceKeys::generate(&mut rng())),
            "DeviceKeys { sign: SigningKey(..), unseal: UnsealingKey(..) }"
        );
    }

    proptest! {
        #[test]
        fn any_text_makes_a_name(text in ".*") {
            let name = DeviceName::lossy(&text);
            prop_assert_eq!(DeviceName::new(name.as_str()), Ok(name.clone()));
        }

        #[test]
        fn garbage_is_no_key_file(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(DeviceKeys::from_bytes(&bytes).is_err());
        }
    }
}

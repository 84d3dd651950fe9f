//! The file that says which pac a home belongs to.

use std::path::Path;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use pacsync_protocol::identity::{FoundingError, VerifiedFounding};
use pacsync_protocol::roster::RosterKeys;
use pacsync_protocol::{DeviceId, SpaceId, cbor, crypto};
use zeroize::Zeroizing;

use super::error::HomeError;
use super::files::{self, Secrecy};

const VERSION: u8 = 1;
const CHECK: &str = "pacsync v1 pac file check";
const CHECK_LEN: usize = 8;

/// The pac of a home. As bytes: CBOR, then 8 bytes of check, since a changed roster key
/// would look like another pac's.
#[derive(Debug, Clone)]
pub(super) struct PacFile {
    pub(super) founding: VerifiedFounding,
    pub(super) roster_keys: RosterKeys,
    /// The space called `home`.
    pub(super) home_space: SpaceId,
    /// The device whose keys stand beside this file.
    pub(super) device: DeviceId,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    version: u8,
    #[n(1)]
    founding: ByteVec,
    #[n(2)]
    roster_keys: RosterKeys,
    #[n(3)]
    home_space: SpaceId,
    #[n(4)]
    device: DeviceId,
}

/// The version alone, so that a later file is refused by its number.
#[derive(Decode)]
#[cbor(map)]
struct WireVersion {
    #[n(0)]
    version: u8,
}

impl PacFile {
    pub(super) fn read(path: &Path) -> Result<Self, HomeError> {
        let bytes = files::read(path, Secrecy::Secret)?;
        let damaged = |why: &str| HomeError::Damaged {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        let (body, check) = bytes
            .split_last_chunk::<CHECK_LEN>()
            .ok_or_else(|| damaged("cut short"))?;
        if *check != check_of(body) {
            return Err(damaged("cut short or changed"));
        }
        let update = |version| HomeError::UpdateNeeded {
            path: path.to_owned(),
            version,
        };
        let WireVersion { version } =
            cbor::decode("pac file", body).map_err(|error| damaged(&error.to_string()))?;
        if version != VERSION {
            return Err(update(u64::from(version)));
        }
        let wire: Wire =
            cbor::decode_canonical("pac file", body).map_err(|e| damaged(&e.to_string()))?;
        let founding = VerifiedFounding::verify(&wire.founding).map_err(|error| match error {
            FoundingError::Version(version) => update(u64::from(version)),
            error => damaged(&error.to_string()),
        })?;
        Ok(Self {
            founding,
            roster_keys: wire.roster_keys,
            home_space: wire.home_space,
            device: wire.device,
        })
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), HomeError> {
        let wire = Wire {
            version: VERSION,
            founding: self.founding.as_bytes().to_vec().into(),
            roster_keys: self.roster_keys.clone(),
            home_space: self.home_space,
            device: self.device,
        };
        let body = Zeroizing::new(cbor::encode(&wire));
        let mut bytes = Zeroizing::new(Vec::with_capacity(body.len() + CHECK_LEN));
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&check_of(&body));
        files::write(path, &bytes)
    }
}

fn check_of(body: &[u8]) -> [u8; CHECK_LEN] {
    let digest = crypto::hash(CHECK, &[body]);
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&digest[..CHECK_LEN]);
    check
}

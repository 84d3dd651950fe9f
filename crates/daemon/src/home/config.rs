//! The settings of one device, in a file that people may edit.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pacsync_protocol::DeviceId;
use pacsync_protocol::identity::DeviceName;
use serde::{Deserialize, Serialize};

use super::error::HomeError;
use super::files::{self, Secrecy};
use crate::control::api::TextRoot;
use crate::net::Discovery;

/// Last known addresses kept of one device.
pub const KNOWN_ADDRESSES_MAX: usize = 8;

/// What a device was told about itself and has learned about where others are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What its owner calls it.
    pub name: DeviceName,
    /// Where the worktree of the `home` space is; absolute.
    pub root: PathBuf,
    /// Where to listen; `None` is any port on all addresses.
    pub listen: Option<SocketAddr>,
    /// Whether mDNS is used.
    pub discovery: Discovery,
    /// `HOST:PORT` of other devices, from `connect` and from pairing.
    pub addresses: Vec<String>,
    /// Where other devices were last reached, the newest first.
    pub known: BTreeMap<DeviceId, Vec<SocketAddr>>,
    /// The port that was bound last: taken again where any would do, so that peers find it.
    pub port: Option<u16>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u64,
    name: String,
    root: TextRoot,
    #[serde(default)]
    listen: Option<SocketAddr>,
    #[serde(default = "yes")]
    discovery: bool,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    known: BTreeMap<String, Vec<SocketAddr>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

fn yes() -> bool {
    true
}

/// The version alone: what a later one added must not be lost by rewriting the file.
#[derive(Deserialize)]
struct Version {
    version: u64,
}

const VERSION: u64 = 1;

impl Config {
    /// Remembers where a device was reached; true if that is new.
    pub fn remember(&mut self, device: DeviceId, address: SocketAddr) -> bool {
        let known = self.known.entry(device).or_default();
        if known.first() == Some(&address) {
            return false;
        }
        known.retain(|other| *other != address);
        known.insert(0, address);
        known.truncate(KNOWN_ADDRESSES_MAX);
        true
    }

    /// Removes a `HOST:PORT`; true if it was there.
    pub fn forget_address(&mut self, address: &str) -> bool {
        let before = self.addresses.len();
        self.addresses.retain(|other| other != address);
        self.addresses.len() < before
    }

    /// Adds a `HOST:PORT`; true if it is new.
    pub fn add_address(&mut self, address: &str) -> bool {
        let new = !self.addresses.iter().any(|other| other == address);
        if new {
            self.addresses.push(address.to_owned());
        }
        new
    }

    pub(super) fn read(path: &Path) -> Result<Self, HomeError> {
        let bytes = files::read(path, Secrecy::Plain)?;
        let bad = |why: String| HomeError::BadConfig {
            path: path.to_owned(),
            why,
        };
        let json = |error: serde_json::Error| bad(error.to_string());
        let Version { version } = serde_json::from_slice(&bytes).map_err(json)?;
        if version != VERSION {
            return Err(HomeError::UpdateNeeded {
                path: path.to_owned(),
                version,
            });
        }
        let file: File = serde_json::from_slice(&bytes).map_err(json)?;
        let root = file.root.to_path();
        if !root.is_absolute() {
            return Err(bad("`root` is not an absolute path".into()));
        }
        let known = file.known.into_iter().map(|(device, addresses)| {
            let device = device
                .parse()
                .map_err(|_| bad(format!("{device:?} is no device id")))?;
            Ok((device, addresses))
        });
        Ok(Self {
            name: DeviceName::new(&file.name).map_err(|error| bad(format!("`name`: {error}")))?,
            root,
            listen: file.listen,
            discovery: match file.discovery {
                true => Discovery::On,
                false => Discovery::Off,
            },
            addresses: file.addresses,
            known: known.collect::<Result<_, HomeError>>()?,
            port: file.port,
        })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let file = File {
            version: VERSION,
            name: self.name.to_string(),
            root: TextRoot::from_path(&self.root),
            listen: self.listen,
            discovery: self.discovery == Discovery::On,
            addresses: self.addresses.clone(),
            known: self
                .known
                .iter()
                .map(|(device, addresses)| (device.to_string(), addresses.clone()))
                .collect(),
            port: self.port,
        };
        let mut bytes =
            serde_json::to_vec_pretty(&file).expect("text keys and plain values are valid JSON");
        bytes.push(b'\n');
        bytes
    }
}

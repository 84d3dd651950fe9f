//! The home of a daemon: one directory that says which device of which pac it is.
//!
//! | name | what | mode |
//! | --- | --- | --- |
//! | `device.key` | the device's secret keys | 0600 |
//! | `pac` | founding record, roster keys, which space is `home` | 0600 |
//! | `config.json` | [`Config`] | 0600 |
//! | `replica.redb` | the replica | 0600 |
//! | `packs/` | content without a file of its own | 0700 |
//! | `control.sock`, `daemon.log` | of the running daemon | 0600 |
//! | `lock` | locked while a process works on the home; its pid | 0600 |
//! | `unfinished` | here while founding or joining is not complete | 0600 |
//!
//! A home is founded once `pac` is there, and `pac` is written last. What an
//! interrupted founding or joining left is told by `unfinished` and cleared by the
//! next; without that mark nothing here is ever cleared.
//!
//! Never here: the network, the control API, what a daemon does with its replica.

mod config;
mod enrol;
mod error;
mod files;
mod found;
mod join;
mod lock;
mod pac;
#[cfg(test)]
mod tests;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pacsync_protocol::SpaceId;
use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::identity::{DeviceKeys, DeviceKeysError};
use pacsync_store::{Identity, Store};

pub use config::{Config, KNOWN_ADDRESSES_MAX};
pub use enrol::{EnrolError, check_may_enrol, enrol_entries, reseal_entries, welcome};
pub use error::HomeError;
pub use found::{FoundOptions, Founding, check_can_found, found, found_replica};
pub use join::{Joined, attach_home, introduce, store_welcome, take_roster};
pub use lock::HomeLock;

use files::Secrecy;
use pac::PacFile;

/// Display name of the space that every pac has.
pub const HOME_SPACE_NAME: &str = "home";

const DEVICE_KEY: &str = "device.key";
const PAC: &str = "pac";
const CONFIG: &str = "config.json";
const REPLICA: &str = "replica.redb";
const PACKS: &str = "packs";
const LOG: &str = "daemon.log";
const LOCK: &str = "lock";
const UNFINISHED: &str = "unfinished";
/// Whether names, as they stand in one directory, make it the home of a daemon, founded or not yet.
pub(crate) fn is_home(has: impl Fn(&str) -> bool) -> bool {
    has(DEVICE_KEY) && [PAC, UNFINISHED, LOCK].into_iter().any(has)
}

/// Whether a directory of this machine is the home of a daemon.
pub(crate) fn is_home_at(path: &Path) -> bool {
    is_home(|name| path.join(name).symlink_metadata().is_ok())
}

/// Whether a home has something of this name.
pub(crate) fn is_own_name(name: &[u8]) -> bool {
    [DEVICE_KEY, PAC, CONFIG, REPLICA, PACKS, LOG]
        .iter()
        .any(|own| own.as_bytes() == name)
}

/// What a home may hold before it is founded, besides leftovers.
const HARMLESS: [&str; 4] = [LOCK, LOG, crate::control::socket::SOCKET_NAME, UNFINISHED];

/// The directory of one daemon, which need not be there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    dir: PathBuf,
}

/// All that a founded home says without its replica.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Who this device is and what it belongs to; what [`Store::open`] takes.
    pub identity: Identity,
    /// The space that is called `home`.
    pub home_space: SpaceId,
    /// Settings of this device.
    pub config: Config,
}

impl Home {
    /// Names a home; touches nothing.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The replica's database.
    pub fn replica_path(&self) -> PathBuf {
        self.dir.join(REPLICA)
    }

    /// The directory of pack files.
    pub fn packs_path(&self) -> PathBuf {
        self.dir.join(PACKS)
    }

    /// Where a daemon in the background writes its log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Says whether the home belongs to a pac.
    ///
    /// # Errors
    /// [`HomeError::Io`] if that cannot be seen.
    pub fn has_pac(&self) -> Result<bool, HomeError> {
        files::exists(&self.file(PAC))
    }

    /// Makes the directory if there is none, and locks it for this process until
    /// the lock is dropped. Another daemon or a founding on the same home is refused.
    ///
    /// # Errors
    /// [`HomeError::InUse`] with the other's pid; what is wrong with the directory.
    pub fn lock(&self) -> Result<HomeLock, HomeError> {
        self.prepare()?;
        HomeLock::take(self.clone())
    }

    /// Makes the directory, or checks it: nobody else may write to it.
    fn prepare(&self) -> Result<(), HomeError> {
        files::make_dir_all(&self.dir)?;
        let metadata = files::metadata(&self.dir)?;
        if !metadata.is_dir() {
            return Err(HomeError::NotADirectory {
                path: self.dir.clone(),
            });
        }
        let me = rustix::process::geteuid();
        if !me.is_root() && metadata.uid() != me.as_raw() {
            return Err(HomeError::NotOurs {
                path: self.dir.clone(),
            });
        }
        if metadata.mode() & 0o077 == 0 {
            return Ok(());
        }
        // A directory made for us by hand is made private; one that holds other things is left as
        // it is, since the files that matter are private themselves.
        if self.is_unused()? {
            return files::set_mode(&self.dir, 0o700);
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(HomeError::TooOpen {
                path: self.dir.clone(),
                mode: metadata.mode() & 0o7777,
                wanted: 0o700,
            });
        }
        Ok(())
    }

    fn is_unused(&self) -> Result<bool, HomeError> {
        let names = files::names(&self.dir)?;
        Ok(names
            .iter()
            .all(|name| HARMLESS.iter().any(|harmless| name == harmless)))
    }

    /// Reads who this device is. Opens no database.
    ///
    /// # Errors
    /// [`HomeError::NotFounded`], [`HomeError::TooOpen`], [`HomeError::Damaged`] and
    /// [`HomeError::UpdateNeeded`] by file, [`HomeError::MissingReplica`].
    pub fn load(&self) -> Result<Opened, HomeError> {
        if !self.has_pac()? {
            return Err(match self.has_orphans()? {
                true => HomeError::PacFileMissing {
                    home: self.dir.clone(),
                },
                false => HomeError::NotFounded {
                    home: self.dir.clone(),
                },
            });
        }
        let keys = self.load_keys()?;
        let pac = PacFile::read(&self.file(PAC))?;
        if pac.device != keys.id() {
            return Err(HomeError::Damaged {
                path: self.file(DEVICE_KEY),
                why: format!("it belongs to another device than {}", pac.device.short()),
            });
        }
        let config = self.load_config()?;
        if !files::exists(&self.replica_path())? {
            return Err(HomeError::MissingReplica {
                path: self.replica_path(),
            });
        }
        Ok(Opened {
            identity: Identity {
                keys,
                founding: pac.founding,
                roster_keys: pac.roster_keys,
            },
            home_space: pac.home_space,
            config,
        })
    }

    fn load_keys(&self) -> Result<DeviceKeys, HomeError> {
        let path = self.file(DEVICE_KEY);
        let bytes = files::read(&path, Secrecy::Secret)?;
        DeviceKeys::from_bytes(&bytes).map_err(|error| match error {
            DeviceKeysError::Version(version) => HomeError::UpdateNeeded {
                path,
                version: u64::from(version),
            },
            DeviceKeysError::Damaged => HomeError::Damaged {
                path,
                why: "cut short or changed".into(),
            },
        })
    }

    /// Reads the settings.
    ///
    /// # Errors
    /// [`HomeError::BadConfig`], [`HomeError::Io`].
    pub fn load_config(&self) -> Result<Config, HomeError> {
        Config::read(&self.file(CONFIG))
    }

    /// Replaces the settings: after a crash they are the old or the new ones.
    ///
    /// # Errors
    /// [`HomeError::NoRoom`], [`HomeError::Io`]; the old ones stand.
    pub fn save_config(&self, config: &Config) -> Result<(), HomeError> {
        files::write(&self.file(CONFIG), &config.to_bytes())
    }

    /// Opens the replica of a founded home.
    ///
    /// # Errors
    /// [`HomeError::MissingReplica`], [`HomeError::DamagedReplica`], [`HomeError::Store`].
    pub fn open_store(
        &self,
        identity: Identity,
        rng: &mut dyn Entropy,
    ) -> Result<Store, HomeError> {
        let path = self.replica_path();
        // The database would be made anew, empty, and the pac look forgotten.
        if !files::exists(&path)? {
            return Err(HomeError::MissingReplica { path });
        }
        // Likewise of an empty file.
        let founded = self.has_pac()?;
        if founded && std::fs::metadata(&path).is_ok_and(|found| found.len() == 0) {
            let why = "the file is empty".into();
            return Err(HomeError::DamagedReplica { path, why });
        }
        let mut store = Store::open(&path, identity, rng)
            .map_err(|source| HomeError::store(path.clone(), source))?;
        if let Some(place) = place_of(&path) {
            store
                .settle_at(&place, rng)
                .map_err(|source| HomeError::store(path, source))?;
        }
        Ok(store)
    }

    /// True if there are keys or a replica that no mark explains.
    fn has_orphans(&self) -> Result<bool, HomeError> {
        if files::exists(&self.file(UNFINISHED))? {
            return Ok(false);
        }
        Ok(files::exists(&self.replica_path())? || files::exists(&self.file(DEVICE_KEY))?)
    }
}

/// Which file it is, so that a copy is told from what it was copied from: its inode and when that
/// was made. Not the device's number, which changes from boot to boot.
fn place_of(path: &Path) -> Option<Vec<u8>> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(path).ok()?;
    let made = found
        .created()
        .ok()
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let made = made.map_or(0, |at| at.as_nanos());
    Some([&found.ino().to_be_bytes()[..], &made.to_be_bytes()[..]].concat())
}

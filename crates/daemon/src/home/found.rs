//! Founding a pac, and the steps that founding shares with joining.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use minicbor::bytes::ByteArray;
use pacsync_protocol::SpaceId;
use pacsync_protocol::crypto::{self, Entropy, Key, PublicKey};
use pacsync_protocol::grant::{DEPTH_MAX, Grant, GrantClear, GrantPrivate, Rights, Role, Scope};
use pacsync_protocol::identity::{
    DeviceKeys, DeviceName, FoundingRecord, Phrase, RootKeys, VerifiedFounding,
};
use pacsync_protocol::roster::{EpochSecret, Placement, RosterEntry, RosterKeys};
use pacsync_protocol::segment::Entry;
use pacsync_store::documents::{self, Setting, Settings};
use pacsync_store::index::Attachment;
use pacsync_store::{Identity, Store, StoreError};

use super::error::HomeError;
use super::pac::PacFile;
use super::{
    CONFIG, Config, DEVICE_KEY, HOME_SPACE_NAME, Home, HomeLock, PAC, PACKS, REPLICA, UNFINISHED,
    files,
};
use crate::net::Discovery;

/// What the user says about a new device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundOptions {
    /// What to call it.
    pub name: DeviceName,
    /// Where the worktree of the `home` space is: an absolute path of a directory.
    pub root: PathBuf,
    /// Where to listen; `None` is any port on all addresses.
    pub listen: Option<SocketAddr>,
    /// Whether mDNS is used.
    pub discovery: Discovery,
}

/// Founds a pac in a home that has none, and gives the phrase, to be shown once. Who must be
/// sure that it was seen shows it between [`Founding::begin`] and [`Founding::finish`].
///
/// # Errors
/// As [`Founding::begin`] and [`Founding::finish`].
pub fn found(
    lock: &HomeLock,
    options: &FoundOptions,
    now_ms: u64,
    rng: &mut dyn Entropy,
) -> Result<Phrase, HomeError> {
    let founding = Founding::begin(lock, options, now_ms, rng)?;
    let phrase = founding.phrase().clone();
    founding.finish()?;
    Ok(phrase)
}

/// A pac that is complete but for the file that makes the home belong to it. Dropped
/// unfinished, it is as if nothing had been, and the next founding clears it away.
#[derive(Debug)]
pub struct Founding<'l> {
    draft: Draft<'l>,
    phrase: Phrase,
    pac: PacFile,
}

impl<'l> Founding<'l> {
    /// Makes keys, founding record and replica. The root's keys live in this call only.
    ///
    /// # Errors
    /// [`HomeError::AlreadyFounded`], [`HomeError::PacFileMissing`], [`HomeError::BadRoot`],
    /// or why the files could not be written.
    pub fn begin(
        lock: &'l HomeLock,
        options: &FoundOptions,
        now_ms: u64,
        rng: &mut dyn Entropy,
    ) -> Result<Self, HomeError> {
        let draft = Draft::begin(lock, options)?;
        let phrase = Phrase::generate(rng);
        let root = phrase.root_keys();
        let identity = Identity {
            keys: DeviceKeys::generate(rng),
            founding: FoundingRecord::found(&root, now_ms, rng),
            roster_keys: RosterKeys::generate(rng),
        };
        let pac = PacFile {
            founding: identity.founding.clone(),
            roster_keys: identity.roster_keys.clone(),
            home_space: SpaceId::from_bytes(crypto::random(rng)),
            device: identity.keys.id(),
        };
        draft.write_keys(&identity.keys)?;
        draft.write_config(&draft.config(options, vec![]))?;
        let mut store = draft.open_store(identity, rng)?;
        found_replica(&mut store, &root, pac.home_space, options, now_ms, rng)
            .map_err(|source| draft.store_error(source))?;
        Ok(Self { draft, phrase, pac })
    }

    /// The words that bring everything back. Nobody has them but this value.
    pub fn phrase(&self) -> &Phrase {
        &self.phrase
    }

    /// Makes the home belong to the pac, durably.
    ///
    /// # Errors
    /// Why the file could not be written; then the home has no pac.
    pub fn finish(self) -> Result<(), HomeError> {
        self.draft.finish(&self.pac)
    }
}

/// Writes what a pac begins with. Two transactions, so that the segments of `home` name the
/// roster segment that they rest on; the home counts as founded after both only.
///
/// # Errors
/// [`StoreError`].
pub fn found_replica(
    store: &mut Store,
    root: &RootKeys,
    home: SpaceId,
    options: &FoundOptions,
    now_ms: u64,
    rng: &mut dyn Entropy,
) -> Result<(), StoreError> {
    let roster_space = store.roster_space();
    let entries = first_entries(store.identity(), root, home, rng)?;
    let mut txn = store.begin()?;
    txn.append(&roster_space, entries, now_ms, rng)?;
    txn.commit()?;

    let device = store.identity().keys.id();
    let mut txn = store.begin()?;
    for (document, name) in [
        (documents::settings_id(&home), HOME_SPACE_NAME),
        (documents::profile_id(&device), options.name.as_str()),
    ] {
        txn.write_document(&home, document, &named(name), now_ms, rng)?;
    }
    let no = txn.space(&home)?.no;
    txn.index(no)?
        .set_attachment(&first_attachment(options, Sponsor::NotNeeded))?;
    txn.commit()?;
    Ok(())
}

/// The founder's grant, the first epoch of `home`, and where it is kept.
fn first_entries(
    identity: &Identity,
    root: &RootKeys,
    home: SpaceId,
    rng: &mut dyn Entropy,
) -> Result<Vec<Entry>, StoreError> {
    let Identity {
        keys,
        founding,
        roster_keys,
    } = identity;
    let private = roster_keys
        .private
        .as_ref()
        .ok_or(StoreError::NoKey(home))?;
    let clear = grant_clear(founding, keys, root, rng);
    let purpose = GrantPrivate {
        purpose: "founded the pac".into(),
    };
    let grant = Grant::issue(clear, &purpose, private, &root.sign, rng);
    let secret = EpochSecret {
        key: Key::generate(rng),
        id_key: Key::generate(rng),
        parents: vec![],
    };
    let recipients = [keys.unseal.public(), founding.record().root_sealing];
    let epoch = secret.seal(home, vec![], recipients, rng);
    let placement = Placement {
        space: home,
        attached: true,
        turn: 1,
    };
    let entries = [
        RosterEntry::Grant(grant),
        RosterEntry::Epoch(epoch),
        RosterEntry::Placement(placement),
    ];
    Ok(entries.into_iter().map(Entry::Roster).collect())
}

fn grant_clear(
    founding: &VerifiedFounding,
    keys: &DeviceKeys,
    root: &RootKeys,
    rng: &mut dyn Entropy,
) -> GrantClear {
    GrantClear {
        version: 1,
        pac: founding.id(),
        subject: keys.public(),
        scope: Scope::All,
        role: Role::Admin,
        depth: DEPTH_MAX,
        // Set when the grant is issued.
        private_hash: ByteArray::from([0; 32]),
        issuer: PublicKey(root.sign.id()),
        serial: ByteArray::from(crypto::random(rng)),
        rights: Rights::of(Role::Admin),
    }
}

/// A document that says what something is called.
pub(super) fn named(name: &str) -> Settings {
    Settings::from([("name".to_owned(), Setting::Text(name.to_owned()))])
}

/// Whether the first scan must wait for another device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sponsor {
    /// Nobody else has anything.
    NotNeeded,
    /// The pac may have files for the same paths.
    Awaited,
}

pub(super) fn first_attachment(options: &FoundOptions, sponsor: Sponsor) -> Attachment {
    Attachment {
        root: options.root.as_os_str().as_bytes().to_vec(),
        join: None,
        root_identity: None,
        first_scan: true,
        entries: 0,
        awaits_sponsor: sponsor == Sponsor::Awaited,
        sponsor: None,
        tracked: None,
    }
}

/// A home on its way to a pac, marked as unfinished.
#[derive(Debug)]
pub(super) struct Draft<'l> {
    lock: &'l HomeLock,
}

impl<'l> Draft<'l> {
    /// Checks that the home is free and clears what an interrupted attempt left.
    pub(super) fn begin(lock: &'l HomeLock, options: &FoundOptions) -> Result<Self, HomeError> {
        let home = lock.home();
        check_can_found(home, options)?;
        let draft = Self { lock };
        draft.clear()?;
        let mark = home.file(UNFINISHED);
        if !files::exists(&mark)? {
            files::create_empty(&mark)?;
        }
        Ok(draft)
    }

    /// The mark stays: it says that what is here may be cleared.
    fn clear(&self) -> Result<(), HomeError> {
        let home = self.lock.home();
        for name in [DEVICE_KEY, CONFIG, REPLICA] {
            files::remove(&home.file(name))?;
        }
        for name in [DEVICE_KEY, CONFIG, PAC] {
            files::remove(&files::temp_path(&home.file(name)))?;
        }
        files::remove_tree(&home.file(PACKS))
    }

    pub(super) fn config(&self, options: &FoundOptions, addresses: Vec<String>) -> Config {
        Config {
            name: options.name.clone(),
            root: options.root.clone(),
            listen: options.listen,
            discovery: options.discovery,
            addresses,
            known: Default::default(),
            port: None,
        }
    }

    pub(super) fn write_keys(&self, keys: &DeviceKeys) -> Result<(), HomeError> {
        files::write(&self.lock.home().file(DEVICE_KEY), &keys.to_bytes())
    }

    pub(super) fn write_config(&self, config: &Config) -> Result<(), HomeError> {
        self.lock.home().save_config(config)
    }

    /// Makes an empty replica, and the directory of packs.
    pub(super) fn open_store(
        &self,
        identity: Identity,
        rng: &mut dyn Entropy,
    ) -> Result<Store, HomeError> {
        let home = self.lock.home();
        files::make_dir_all(&home.packs_path())?;
        // Made here for its mode.
        files::create_empty(&home.replica_path())?;
        home.open_store(identity, rng)
    }

    pub(super) fn store_error(&self, source: StoreError) -> HomeError {
        HomeError::store(self.lock.home().replica_path(), source)
    }

    /// The last step: from here on the home belongs to the pac.
    pub(super) fn finish(self, pac: &PacFile) -> Result<(), HomeError> {
        let home = self.lock.home();
        files::sync_parent(&home.replica_path())?;
        pac.write(&home.file(PAC))?;
        // The pac stands; a mark that stays is removed by the next lock.
        if let Err(error) = files::remove(&home.file(UNFINISHED)) {
            tracing::warn!(%error, "the mark of an unfinished home stays for now");
        }
        Ok(())
    }

    /// Gives up: the home is empty again, as far as the disk allows.
    pub(super) fn abandon(self) -> Result<(), HomeError> {
        self.clear()?;
        files::remove(&self.lock.home().file(UNFINISHED))
    }
}

/// Checks, without changing anything, that the home is free to be founded or to join with these
/// options: before a phrase is shown or a code is spent.
///
/// # Errors
/// [`HomeError::AlreadyFounded`], [`HomeError::PacFileMissing`], [`HomeError::BadRoot`].
pub fn check_can_found(home: &Home, options: &FoundOptions) -> Result<(), HomeError> {
    if home.has_pac()? {
        let pac = PacFile::read(&home.file(PAC))?.founding.id();
        return Err(HomeError::AlreadyFounded {
            home: home.path().to_owned(),
            pac,
        });
    }
    if home.has_orphans()? {
        return Err(HomeError::PacFileMissing {
            home: home.path().to_owned(),
        });
    }
    check_root(options)
}

fn check_root(options: &FoundOptions) -> Result<(), HomeError> {
    let bad = |why: &str| HomeError::BadRoot {
        path: options.root.clone(),
        why: why.to_owned(),
    };
    if !options.root.is_absolute() {
        return Err(bad("the path is not absolute"));
    }
    match std::fs::metadata(&options.root) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(bad("it is a file")),
        Err(error) => return Err(bad(&error.to_string())),
    }
    if super::is_home_at(&options.root) {
        return Err(bad("it is a home of pacsync, with the keys of a device"));
    }
    Ok(())
}

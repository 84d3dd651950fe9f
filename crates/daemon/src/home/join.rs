//! A home that becomes part of a pac that is there already.

use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::grant::Role;
use pacsync_protocol::identity::{DeviceKeys, DeviceName};
use pacsync_protocol::pairing::{self, Welcome};
use pacsync_protocol::roster::{Placement, RosterEntry, RosterKeys, roster_space};
use pacsync_protocol::segment::{Entry, SignedSegment};
use pacsync_protocol::{PacId, SpaceId};
use pacsync_store::documents;
use pacsync_store::{Identity, Refusal, Store, StoreError, Txn};

use super::error::HomeError;
use super::found::{Draft, FoundOptions, Sponsor, first_attachment, named};
use super::pac::PacFile;
use super::{HOME_SPACE_NAME, HomeLock};

/// What a device has become part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The pac.
    pub pac: PacId,
    /// The space called `home`.
    pub home_space: SpaceId,
    /// Devices of the pac, this one too.
    pub devices: usize,
}

/// Verifies what the host of a pairing sent and makes the home a device's of its pac. When it
/// fails, nothing of it is left but what the next attempt clears.
///
/// # Errors
/// [`HomeError::BadWelcome`] if the roster does not grant this device `role`, or lacks `home`;
/// otherwise as for founding.
pub fn store_welcome(
    lock: &HomeLock,
    options: &FoundOptions,
    keys: &DeviceKeys,
    role: Role,
    welcome: Welcome,
    now_ms: u64,
    rng: &mut dyn Entropy,
) -> Result<Joined, HomeError> {
    let draft = Draft::begin(lock, options)?;
    match build(&draft, options, keys, role, welcome, now_ms, rng) {
        Ok((pac, joined)) => draft.finish(&pac).map(|()| joined),
        Err(error) => {
            if let Err(left) = draft.abandon() {
                tracing::warn!(error = %left, "leftovers stay in the home");
            }
            Err(error)
        }
    }
}

fn build(
    draft: &Draft<'_>,
    options: &FoundOptions,
    keys: &DeviceKeys,
    role: Role,
    welcome: Welcome,
    now_ms: u64,
    rng: &mut dyn Entropy,
) -> Result<(PacFile, Joined), HomeError> {
    let bad = |why: &str| HomeError::BadWelcome {
        why: why.to_owned(),
    };
    if !matches!(role, Role::Admin | Role::Member) {
        return Err(bad(
            "this version of pacsync can be an admin or a member only",
        ));
    }
    let home_space = welcome
        .spaces
        .iter()
        .find(|hint| hint.name == HOME_SPACE_NAME)
        .ok_or_else(|| bad("it does not say which space is `home`"))?
        .space;
    let identity = Identity {
        keys: keys.clone(),
        founding: welcome.founding.clone(),
        roster_keys: match welcome.keys {
            pairing::RosterKeys::Full { roster, private } => RosterKeys {
                roster,
                private: Some(private),
            },
            pairing::RosterKeys::Relay { roster } => RosterKeys {
                roster,
                private: None,
            },
        },
    };
    let pac = PacFile {
        founding: identity.founding.clone(),
        roster_keys: identity.roster_keys.clone(),
        home_space,
        device: keys.id(),
    };
    draft.write_keys(keys)?;
    draft.write_config(&draft.config(options, welcome.addresses))?;
    let mut store = draft.open_store(identity, rng)?;
    take_roster(&mut store, &welcome.segments, now_ms, rng)
        .map_err(|source| draft.store_error(source))?
        .map_err(|why| HomeError::BadWelcome { why })?;

    let granted = store
        .roster()
        .member(&keys.id())
        .map(|member| &member.grant);
    let granted = granted.ok_or_else(|| bad("it does not grant this device anything"))?;
    if granted.role != role || granted.subject != keys.public() {
        return Err(bad("it grants this device something else than was shown"));
    }
    if !store
        .space(&home_space)
        .is_ok_and(|space| space.id_keys.is_some())
    {
        return Err(bad("it has no key of `home` for this device"));
    }
    let devices = store.roster().members().count();
    attach_home(&mut store, &home_space, options).map_err(|source| draft.store_error(source))?;
    let joined = Joined {
        pac: pac.founding.id(),
        home_space,
        devices,
    };
    Ok((pac, joined))
}

/// Takes a sponsor's roster into an empty replica. Outer: the store failed. Inner: the segments
/// do not hold.
///
/// # Errors
/// [`StoreError`].
pub fn take_roster(
    store: &mut Store,
    segments: &[Vec<u8>],
    now_ms: u64,
    rng: &mut dyn Entropy,
) -> Result<Result<(), String>, StoreError> {
    let space = roster_space(&store.identity().founding.id());
    let mut left = vec![];
    for bytes in segments {
        let verified = SignedSegment::parse(bytes).and_then(|segment| Ok(segment.verify()?));
        match verified {
            Ok(segment) if segment.header().space == space => left.push(segment),
            Ok(_) => return Ok(Err("a segment of something else than the roster".into())),
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
    let mut txn = store.begin()?;
    // Logs come in any order, and of keys without a grant only so much is held: those whose
    // grants were among the others get in with the next round.
    loop {
        let before = left.len();
        let mut later = vec![];
        for segment in left {
            match txn.hold(&segment)? {
                Ok(()) => {}
                Err(Refusal::NoRoom { .. } | Refusal::Gap { .. }) => later.push(segment),
                Err(refusal) => return Ok(Err(refusal.to_string())),
            }
        }
        txn.apply(now_ms, rng)?;
        if later.is_empty() {
            break;
        }
        if later.len() == before {
            return Ok(Err("some of its devices have no grant".into()));
        }
        left = later;
    }
    txn.commit()?;
    Ok(Ok(()))
}

/// Gives `home` a worktree whose first scan waits for a sponsor.
///
/// # Errors
/// [`StoreError`].
pub fn attach_home(
    store: &mut Store,
    home: &SpaceId,
    options: &FoundOptions,
) -> Result<(), StoreError> {
    let txn = store.begin()?;
    let no = txn.space(home)?.no;
    txn.index(no)?
        .set_attachment(&first_attachment(options, Sponsor::Awaited))?;
    txn.commit()?;
    Ok(())
}

/// Writes what the others should know of a device that has joined, where it is missing: that it
/// keeps `home`, and its name. For a device that holds its sponsor's vector; true if
/// something was written.
///
/// # Errors
/// [`StoreError`].
pub fn introduce(
    txn: &mut Txn<'_>,
    identity: &Identity,
    home_space: &SpaceId,
    name: &DeviceName,
    now_ms: u64,
    rng: &mut dyn Entropy,
) -> Result<bool, StoreError> {
    let device = identity.keys.id();
    let before = txn.roster().placement(&device, home_space).cloned();
    let placed = before.as_ref().is_some_and(|placement| placement.attached);
    if !placed {
        let turn = before
            .map_or(0, |placement| placement.turn)
            .saturating_add(1);
        let placement = Placement {
            space: *home_space,
            attached: true,
            turn,
        };
        let entry = Entry::Roster(RosterEntry::Placement(placement));
        txn.append(
            &roster_space(&identity.founding.id()),
            vec![entry],
            now_ms,
            rng,
        )?;
    }
    let profile = documents::profile_id(&device);
    let named = named(name.as_str());
    let written = txn.write_document(home_space, profile, &named, now_ms, rng)?;
    Ok(written || !placed)
}

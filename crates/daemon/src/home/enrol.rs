//! Letting a device into the pac: what the roster gets, and what the device is sent.

use std::collections::{BTreeMap, VecDeque};

use minicbor::bytes::ByteArray;
use pacsync_protocol::crypto::{self, Entropy, PublicKey};
use pacsync_protocol::grant::{Grant, GrantClear, GrantPrivate, Rights, Role, Scope};
use pacsync_protocol::identity::DevicePublic;
use pacsync_protocol::pairing::{self, SpaceHint, Welcome};
use pacsync_protocol::roster::{BOXES_MAX, Roster, RosterEntry};
use pacsync_protocol::segment::{Entry, SignedSegment, VerifiedSegment};
use pacsync_protocol::{DeviceId, LogId, Seq, SpaceId};
use pacsync_store::documents::{self, Setting};
use pacsync_store::{Identity, Store, StoreError};

use super::HOME_SPACE_NAME;

/// Bytes of segments read at once.
const READ_BYTES: usize = 1 << 20;

/// Why a device cannot be let in here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// This device is no admin.
    #[error("this device may not let others in")]
    NotAdmin {
        /// Who may.
        admins: Vec<DeviceId>,
    },
    /// This device stands at the end of the longest chain of grants.
    #[error("this device was let in through too many others to let in more itself")]
    ChainTooLong {
        /// Who may.
        admins: Vec<DeviceId>,
    },
    /// The role cannot be given yet.
    #[error("this version of pacsync lets in admins and members only, not as {}", .0.as_str())]
    UnsupportedRole(Role),
}

impl EnrolError {
    /// Devices that may do it instead; empty if nobody can.
    pub fn admins(&self) -> &[DeviceId] {
        match self {
            Self::NotAdmin { admins } | Self::ChainTooLong { admins } => admins,
            Self::UnsupportedRole(_) => &[],
        }
    }
}

/// Checks whether `own` may let in a device as `role`: to be asked before a code is shown.
///
/// # Errors
/// [`EnrolError`].
pub fn check_may_enrol(roster: &Roster, own: &DeviceId, role: Role) -> Result<(), EnrolError> {
    if !matches!(role, Role::Admin | Role::Member) {
        return Err(EnrolError::UnsupportedRole(role));
    }
    let may = |grant: &GrantClear| grant.role == Role::Admin && grant.depth > 0;
    let admins = || {
        let members = roster.members().filter(|(_, member)| may(&member.grant));
        members.map(|(device, _)| *device).collect()
    };
    match roster.member(own) {
        Some(member) if may(&member.grant) => Ok(()),
        Some(member) if member.grant.role == Role::Admin => {
            Err(EnrolError::ChainTooLong { admins: admins() })
        }
        _ => Err(EnrolError::NotAdmin { admins: admins() }),
    }
}

/// What this device's roster log gets when it lets in `peer`: a grant of all spaces, and all
/// epochs that this device can open, sealed to the newcomer. To be appended as one segment.
///
/// # Errors
/// [`EnrolError`].
pub fn enrol_entries(
    roster: &Roster,
    identity: &Identity,
    peer: &DevicePublic,
    role: Role,
    rng: &mut dyn Entropy,
) -> Result<Vec<Entry>, EnrolError> {
    let own = identity.keys.id();
    check_may_enrol(roster, &own, role)?;
    let not_admin = || EnrolError::NotAdmin { admins: vec![] };
    let member = roster.member(&own).ok_or_else(not_admin)?;
    // Only relays lack it, and they are refused above.
    let private_key = identity
        .roster_keys
        .private
        .as_ref()
        .ok_or_else(not_admin)?;
    let clear = GrantClear {
        version: 1,
        pac: identity.founding.id(),
        subject: *peer,
        scope: Scope::All,
        role,
        depth: match role {
            Role::Admin => member.grant.depth.saturating_sub(1),
            _ => 0,
        },
        // Set when the grant is issued.
        private_hash: ByteArray::from([0; 32]),
        issuer: PublicKey(own),
        serial: ByteArray::from(crypto::random(rng)),
        rights: Rights::of(role),
    };
    let private = GrantPrivate {
        purpose: "paired".into(),
    };
    let grant = Grant::issue(clear, &private, private_key, &identity.keys.sign, rng);
    let mut entries = vec![Entry::Roster(RosterEntry::Grant(grant))];
    for space in roster.spaces() {
        for record in roster.epochs(&space) {
            // A damaged box is as good as none: another device may open the epoch to the newcomer.
            let Ok(Some(secret)) = record.open(&identity.keys.unseal) else {
                continue;
            };
            let parents = record.parents.clone();
            let record = secret.seal(space, parents, [peer.sealing], rng);
            entries.push(Entry::Roster(RosterEntry::Epoch(record)));
        }
    }
    Ok(entries)
}

/// Boxes for those who may read a space and have none for an epoch of it, because the one was let
/// in and the other opened at the same time in different places; none for what this device cannot
/// open or may not write.
pub fn reseal_entries(roster: &Roster, identity: &Identity, rng: &mut dyn Entropy) -> Vec<Entry> {
    let own = identity.keys.id();
    let mut entries = vec![];
    for record in roster.all_epochs() {
        if !roster.may_write(&own, &record.space) {
            continue;
        }
        let mut missing = roster.recipients(&record.space);
        for found in &record.boxes {
            missing.remove(&found.recipient);
        }
        // What does not fit would be missing for ever, and written again and again.
        let room = BOXES_MAX.saturating_sub(record.boxes.len());
        if missing.is_empty() || room == 0 {
            continue;
        }
        let Ok(Some(secret)) = record.open(&identity.keys.unseal) else {
            continue;
        };
        let recipients = missing.into_iter().take(room);
        let parents = record.parents.clone();
        let record = secret.seal(record.space, parents, recipients, rng);
        entries.push(Entry::Roster(RosterEntry::Epoch(record)));
    }
    entries
}

/// What a device that was let in as `role` is sent. The grant is durable in `store` by now.
///
/// # Errors
/// [`StoreError`].
pub fn welcome(
    store: &Store,
    home_space: &SpaceId,
    role: Role,
    addresses: Vec<String>,
) -> Result<Welcome, StoreError> {
    let Identity {
        founding,
        roster_keys,
        ..
    } = store.identity();
    let roster = roster_keys.roster.clone();
    let keys = match (role, &roster_keys.private) {
        (Role::Relay, _) => pairing::RosterKeys::Relay { roster },
        (_, Some(private)) => pairing::RosterKeys::Full {
            roster,
            private: private.clone(),
        },
        (_, None) => {
            return Err(StoreError::NotAllowed(
                "a relay has not all keys to hand on".into(),
            ));
        }
    };
    let spaces = match role {
        Role::Relay => vec![],
        _ => space_hints(store, home_space)?,
    };
    let mut addresses = addresses;
    addresses.retain(|address| address.len() <= pairing::ADDRESS_LEN_MAX);
    addresses.truncate(pairing::ADDRESSES_MAX);
    Ok(Welcome {
        founding: founding.clone(),
        keys,
        segments: roster_segments(store)?,
        addresses,
        spaces,
    })
}

/// `home` comes first: whatever others are called, the first of that name is it.
fn space_hints(store: &Store, home_space: &SpaceId) -> Result<Vec<SpaceHint>, StoreError> {
    let mut hints = vec![SpaceHint {
        space: *home_space,
        name: HOME_SPACE_NAME.to_owned(),
    }];
    for space in store.spaces().filter(|space| space.id != *home_space) {
        let settings = store.document(&space.id, &documents::settings_id(&space.id))?;
        if let Some(Setting::Text(name)) = settings.get("name")
            && name.len() <= pairing::SPACE_NAME_LEN_MAX
            && hints.len() < pairing::SPACES_MAX
        {
            hints.push(SpaceHint {
                space: space.id,
                name: name.clone(),
            });
        }
    }
    Ok(hints)
}

/// All counted segments of the roster, each after those that it depends on.
fn roster_segments(store: &Store) -> Result<Vec<Vec<u8>>, StoreError> {
    let space = store.roster_space();
    let mut logs: BTreeMap<LogId, VecDeque<VerifiedSegment>> = BTreeMap::new();
    for (log, head) in store.applied(&space)?.iter() {
        logs.insert(log, log_segments(store, &space, &log, head.seq)?);
    }
    let mut sent: BTreeMap<LogId, Seq> = BTreeMap::new();
    let mut segments = vec![];
    loop {
        let before = segments.len();
        for (log, queue) in &mut logs {
            while let Some(segment) = queue.pop_front_if(|next| {
                let deps = next.header().deps.iter();
                deps.clone()
                    .all(|dep| sent.get(&dep.log).is_some_and(|seq| *seq >= dep.head.seq))
            }) {
                sent.insert(*log, segment.header().last());
                segments.push(segment.bytes().to_vec());
            }
        }
        if segments.len() == before {
            return Ok(segments);
        }
    }
}

fn log_segments(
    store: &Store,
    space: &SpaceId,
    log: &LogId,
    last: Seq,
) -> Result<VecDeque<VerifiedSegment>, StoreError> {
    let mut segments = VecDeque::new();
    let mut from = 1;
    while from <= last {
        let (batch, _) = store.segments(space, log, from, READ_BYTES)?;
        if batch.is_empty() {
            return Err(StoreError::Damaged(format!(
                "segments of {log} are missing"
            )));
        }
        for bytes in batch {
            let segment = SignedSegment::parse(&bytes)?.assume_verified();
            from = segment.header().last().saturating_add(1);
            if segment.header().last() <= last {
                segments.push_back(segment);
            }
        }
    }
    Ok(segments)
}

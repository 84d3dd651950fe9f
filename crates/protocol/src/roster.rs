//! The roster: who may do what, as a function of the counted segments of its logs.
//!
//! The roster is a space of its own under a key that all devices hold. Its entries are
//! grow-only facts, so their order of arrival (within causality) does not matter.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

use crate::cbor::{self, DecodeError, at_most};
use crate::crypto::{self, Entropy, Key, SealingKey, UnsealingKey, domain};
use crate::grant::{Authority, Grant, GrantClear, GrantError, Role};
use crate::identity::VerifiedFounding;
use crate::ids::{DeviceId, EpochId, PacId, SpaceId};

/// Most boxes in one epoch record.
pub const BOXES_MAX: usize = 4096;
/// Most parents of one epoch.
pub const PARENTS_MAX: usize = 64;

/// The two roster keys. They never rotate.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(array)]
pub struct RosterKeys {
    /// Opens roster segments; all devices and relays hold it.
    #[n(0)]
    pub roster: Key,
    /// Opens private parts of grants; relays lack it.
    #[n(1)]
    pub private: Option<Key>,
}

impl RosterKeys {
    /// Draws the keys of a new pac.
    pub fn generate(rng: &mut dyn Entropy) -> Self {
        Self {
            roster: Key::generate(rng),
            private: Some(Key::generate(rng)),
        }
    }

    /// The key under which devices of the pac recognise each other.
    pub fn discovery(&self) -> Key {
        self.roster.derive(domain::DISCOVERY_KEY)
    }
}

/// The roster's own space id.
pub fn roster_space(pac: &PacId) -> SpaceId {
    let digest = crypto::hash(domain::ROSTER_SPACE, &[pac.as_bytes()]);
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    SpaceId::from_bytes(id)
}

/// The epoch that roster segments name.
pub const ROSTER_EPOCH: EpochId = EpochId::from_bytes([0; 16]);

/// One fact in a roster log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum RosterEntry {
    /// A device is granted something.
    #[n(0)]
    Grant(#[n(0)] Grant),
    /// An epoch of a space is opened, or sealed to more recipients.
    #[n(1)]
    Epoch(#[n(0)] EpochRecord),
    /// A device says where it keeps a space; the highest `turn` of a device's entries counts.
    #[n(2)]
    Placement(#[n(0)] Placement),
}

/// An epoch's key, sealed to those who may have it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct EpochRecord {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// The epoch.
    #[n(1)]
    pub epoch: EpochId,
    /// Epochs that this one follows; a space's first has none.
    #[n(2)]
    pub parents: Vec<EpochId>,
    /// One box for each recipient.
    #[n(3)]
    pub boxes: Vec<KeyBox>,
}

/// An [`EpochSecret`] sealed to one key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct KeyBox {
    /// Whose.
    #[n(0)]
    pub recipient: SealingKey,
    /// Associated data: space id, then epoch id.
    #[n(1)]
    pub sealed: ByteVec,
}

/// What an epoch's boxes hold.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(map)]
pub struct EpochSecret {
    /// Encrypts segments of this epoch.
    #[n(0)]
    pub key: Key,
    /// Keys the ids of the space's content; the same in every epoch.
    #[n(1)]
    pub id_key: Key,
    /// Keys of the parents.
    #[n(2)]
    pub parents: Vec<ParentKey>,
}

/// A parent's key inside an [`EpochSecret`].
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(array)]
pub struct ParentKey {
    /// Which.
    #[n(0)]
    pub epoch: EpochId,
    /// Its key.
    #[n(1)]
    pub key: Key,
}

impl EpochSecret {
    /// The epoch's id: nobody can give another key for it. First 16 bytes of a hash over both keys.
    pub fn id(&self) -> EpochId {
        epoch_id(&self.key, &self.id_key)
    }

    /// Seals the secret to each recipient.
    pub fn seal(
        &self,
        space: SpaceId,
        parents: Vec<EpochId>,
        recipients: impl IntoIterator<Item = SealingKey>,
        rng: &mut dyn Entropy,
    ) -> EpochRecord {
        let plain = Zeroizing::new(cbor::encode(self));
        let epoch = self.id();
        let aad = epoch_aad(&space, &epoch);
        let boxes = recipients
            .into_iter()
            .map(|recipient| KeyBox {
                recipient,
                sealed: crypto::seal_to(&recipient, &aad, &plain, rng).into(),
            })
            .collect();
        EpochRecord {
            space,
            epoch,
            parents,
            boxes,
        }
    }
}

impl EpochRecord {
    /// Opens this record's box for `key`, if it has one.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] when boxes are there but none opens.
    pub fn open(&self, key: &UnsealingKey) -> Result<Option<EpochSecret>, DecodeError> {
        let public = key.public();
        let aad = epoch_aad(&self.space, &self.epoch);
        let mut mine = self
            .boxes
            .iter()
            .filter(|b| b.recipient == public)
            .peekable();
        if mine.peek().is_none() {
            return Ok(None);
        }
        // Anybody who may write records can add a box that does not open, or holds another key:
        // one that does is enough.
        mine.find_map(|found| {
            let plain = key.open(&aad, &found.sealed).ok()?;
            let mut secret: EpochSecret = cbor::decode("epoch secret", &plain).ok()?;
            let EpochSecret {
                id_key, parents, ..
            } = &mut secret;
            parents.retain(|parent| epoch_id(&parent.key, id_key) == parent.epoch);
            (secret.id() == self.epoch).then_some(secret)
        })
        .map(Some)
        .ok_or(DecodeError::Invalid {
            what: "sealed epoch key",
        })
    }

    fn check(&self) -> Result<(), DecodeError> {
        at_most("boxes of an epoch", self.boxes.len(), BOXES_MAX)?;
        at_most("parents of an epoch", self.parents.len(), PARENTS_MAX)
    }
}

fn epoch_id(key: &Key, id_key: &Key) -> EpochId {
    let hash = crypto::hash(domain::EPOCH_ID, &[key.expose(), id_key.expose()]);
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    EpochId::from_bytes(id)
}

fn epoch_aad(space: &SpaceId, epoch: &EpochId) -> Vec<u8> {
    [&space.as_bytes()[..], &epoch.as_bytes()[..]].concat()
}

/// A device's word on one space.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Placement {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// Whether the device keeps a worktree of it.
    #[n(1)]
    pub attached: bool,
    /// Grows with each entry of the device for the space.
    #[n(2)]
    pub turn: u64,
}

/// A device of the pac.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The grant that counts: the one with the widest role, then the lowest serial.
    pub grant: GrantClear,
}

/// A segment's author or entry was refused by the roster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// The author has no valid grant here (yet).
    #[error("{0} has no grant in this pac")]
    NotAMember(DeviceId),
    /// The author opens or seals an epoch of a space that it may not write to (yet).
    #[error("{author} may not write keys of the space {space}")]
    NotCovered {
        /// The author.
        author: DeviceId,
        /// The space.
        space: SpaceId,
    },
    /// An entry is invalid.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// An entry breaks a bound.
    #[error(transparent)]
    Format(#[from] DecodeError),
    /// The author may not write such an entry.
    #[error("{author} may not write {what}")]
    NotAuthorised {
        /// The author.
        author: DeviceId,
        /// What it wrote.
        what: &'static str,
    },
}

/// What a counted roster segment changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RosterChange {
    /// Devices that are new or have another grant.
    pub members: Vec<DeviceId>,
    /// Spaces that are new or have new epoch records.
    pub spaces: BTreeSet<SpaceId>,
}

/// The state that all counted roster segments add up to.
#[derive(Debug, Clone)]
pub struct Roster {
    founding: VerifiedFounding,
    members: BTreeMap<DeviceId, Member>,
    /// Every counted grant of a device, of which the member has one: what one of them allowed when
    /// a segment came must not depend on which came first.
    grants: BTreeMap<DeviceId, Vec<GrantClear>>,
    epochs: BTreeMap<(SpaceId, EpochId), EpochRecord>,
    placements: BTreeMap<(DeviceId, SpaceId), Placement>,
}

impl Roster {
    /// The roster of a pac before any segment.
    pub fn new(founding: VerifiedFounding) -> Self {
        Self {
            founding,
            members: BTreeMap::new(),
            grants: BTreeMap::new(),
            epochs: BTreeMap::new(),
            placements: BTreeMap::new(),
        }
    }

    /// The founding record.
    pub fn founding(&self) -> &VerifiedFounding {
        &self.founding
    }

    /// All devices, by id.
    pub fn members(&self) -> impl Iterator<Item = (&DeviceId, &Member)> {
        self.members.iter()
    }

    /// One device.
    pub fn member(&self, device: &DeviceId) -> Option<&Member> {
        self.members.get(device)
    }

    /// True if the device may write to the space.
    pub fn may_write(&self, device: &DeviceId, space: &SpaceId) -> bool {
        let member = self.members.get(device);
        member.is_some_and(|member| member.grant.may_write(space))
    }

    /// True if the device may hold the space's segments.
    pub fn may_hold(&self, device: &DeviceId, space: &SpaceId) -> bool {
        self.members
            .get(device)
            .is_some_and(|m| m.grant.role != Role::Guest && m.grant.scope.covers(space))
    }

    /// Epoch records of a space.
    pub fn epochs(&self, space: &SpaceId) -> impl Iterator<Item = &EpochRecord> {
        let (first, last) = ([0; 16], [0xff; 16]);
        let range = (*space, EpochId::from_bytes(first))..=(*space, EpochId::from_bytes(last));
        self.epochs.range(range).map(|(_, record)| record)
    }

    /// Epoch records of all spaces.
    pub fn all_epochs(&self) -> impl Iterator<Item = &EpochRecord> {
        self.epochs.values()
    }

    /// All spaces that have an epoch.
    pub fn spaces(&self) -> BTreeSet<SpaceId> {
        self.epochs.values().map(|record| record.space).collect()
    }

    /// A device's newest word on a space.
    pub fn placement(&self, device: &DeviceId, space: &SpaceId) -> Option<&Placement> {
        self.placements.get(&(*device, *space))
    }

    /// Sealing keys that a new epoch of the space goes to: all devices that may read it, and the root.
    pub fn recipients(&self, space: &SpaceId) -> BTreeSet<SealingKey> {
        let devices = self
            .members
            .values()
            .filter(|m| m.grant.may_read(space))
            .map(|m| m.grant.subject.sealing);
        devices
            .chain([self.founding.record().root_sealing])
            .collect()
    }

    /// Counts one roster segment by `author`, whole or not at all.
    ///
    /// # Errors
    /// [`RosterError::NotAMember`] and [`RosterError::NotCovered`] may heal when other segments come; the rest is final.
    pub fn apply(
        &mut self,
        author: &DeviceId,
        entries: &[RosterEntry],
    ) -> Result<RosterChange, RosterError> {
        let mut next = Self {
            founding: self.founding.clone(),
            members: self.members.clone(),
            grants: self.grants.clone(),
            epochs: BTreeMap::new(),
            placements: BTreeMap::new(),
        };
        let mut change = RosterChange::default();
        for entry in entries {
            if let RosterEntry::Grant(grant) = entry {
                next.count_grant(author, grant, &mut change)?;
            }
        }
        if !next.members.contains_key(author) {
            return Err(RosterError::NotAMember(*author));
        }
        let own_grants = next.grants.get(author).cloned().unwrap_or_default();
        for entry in entries {
            match entry {
                RosterEntry::Grant(_) => {}
                RosterEntry::Epoch(record) => {
                    record.check()?;
                    let space = record.space;
                    if !own_grants.iter().any(|grant| grant.may_write(&space)) {
                        return Err(RosterError::NotCovered {
                            author: *author,
                            space,
                        });
                    }
                    change.spaces.insert(record.space);
                    let key = (record.space, record.epoch);
                    let before = next.epochs.get(&key).or_else(|| self.epochs.get(&key));
                    let merged = match before {
                        Some(before) => {
                            let mut merged = before.clone();
                            for new in &record.boxes {
                                if !merged.boxes.contains(new) && merged.boxes.len() < BOXES_MAX {
                                    merged.boxes.push(new.clone());
                                }
                            }
                            merged
                        }
                        None => record.clone(),
                    };
                    next.epochs.insert(key, merged);
                }
                RosterEntry::Placement(placement) => {
                    let key = (*author, placement.space);
                    let before = next
                        .placements
                        .get(&key)
                        .or_else(|| self.placements.get(&key));
                    if before.is_none_or(|before| before.turn < placement.turn) {
                        next.placements.insert(key, placement.clone());
                    }
                }
            }
        }
        self.members = next.members;
        self.grants = next.grants;
        self.epochs.extend(next.epochs);
        self.placements.extend(next.placements);
        Ok(change)
    }

    fn count_grant(
        &mut self,
        author: &DeviceId,
        grant: &Grant,
        change: &mut RosterChange,
    ) -> Result<(), RosterError> {
        let clear = grant.verify(&self.founding.id())?;
        let issuer = clear.issuer.0;
        if issuer == self.founding.record().root.0 {
            clear.check_authority(Authority::Root)?;
        } else {
            if issuer != *author {
                return Err(RosterError::NotAuthorised {
                    author: *author,
                    what: "another's grant",
                });
            }
            let own = self
                .members
                .get(&issuer)
                .ok_or(RosterError::NotAMember(issuer))?;
            clear.check_authority(Authority::Device(&own.grant))?;
        }
        let subject = clear.subject.id;
        let all = self.grants.entry(subject).or_default();
        if !all.contains(&clear) {
            all.push(clear.clone());
        }
        let rank = |g: &GrantClear| (g.role, *g.serial);
        let wins = self
            .members
            .get(&subject)
            .is_none_or(|m| rank(&clear) < rank(&m.grant));
        if wins {
            self.members.insert(subject, Member { grant: clear });
            change.members.push(subject);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::PublicKey;
    use crate::grant::{GrantPrivate, Rights, Scope};
    use crate::identity::{DeviceKeys, FoundingRecord, Phrase, RootKeys};
    use minicbor::bytes::ByteArray;
    use rand_core::SeedableRng;

    struct World {
        rng: rand_chacha::ChaCha20Rng,
        root: RootKeys,
        founding: VerifiedFounding,
        keys: RosterKeys,
    }

    impl World {
        fn new() -> Self {
            let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(7);
            let root = Phrase::generate(&mut rng).root_keys();
            let founding = FoundingRecord::found(&root, 1, &mut rng);
            let keys = RosterKeys::generate(&mut rng);
            Self {
                rng,
                root,
                founding,
                keys,
            }
        }

        fn grant(
            &mut self,
            subject: &DeviceKeys,
            role: Role,
            depth: u8,
            scope: Scope,
            issuer: &crypto::SigningKey,
        ) -> RosterEntry {
            let clear = GrantClear {
                version: 1,
                pac: self.founding.id(),
                subject: subject.public(),
                scope,
                role,
                depth,
                private_hash: ByteArray::from([0; 32]),
                issuer: PublicKey(issuer.id()),
                serial: ByteArray::from(crypto::random(&mut self.rng)),
                rights: Rights::of(role),
            };
            let private = GrantPrivate {
                purpose: "test".into(),
            };
            let key = self.keys.private.clone().expect("a full set of keys");
            RosterEntry::Grant(Grant::issue(clear, &private, &key, issuer, &mut self.rng))
        }
    }

    #[test]
    fn chains_begin_at_the_root_and_only_narrow() {
        let mut w = World::new();
        let root = w.root.sign.clone();
        let [laptop, phone, server] = [(); 3].map(|()| DeviceKeys::generate(&mut w.rng));
        let mut roster = Roster::new(w.founding.clone());

        let own = w.grant(&laptop, Role::Admin, 2, Scope::All, &laptop.sign);
        assert!(
            roster.apply(&laptop.sign.id(), &[own]).is_err(),
            "self-granted"
        );

        let first = w.grant(&laptop, Role::Admin, 2, Scope::All, &root);
        roster
            .apply(&laptop.sign.id(), &[first])
            .expect("the founder's grant");
        let second = w.grant(&phone, Role::Member, 0, Scope::All, &laptop.sign);
        roster
            .apply(&laptop.sign.id(), &[second])
            .expect("an admin enrols");
        assert_eq!(roster.members().count(), 2);

        let third = w.grant(&server, Role::Member, 0, Scope::All, &phone.sign);
        let error = roster
            .apply(&phone.sign.id(), &[third])
            .expect_err("a member enrols nobody");
        assert!(matches!(
            error,
            RosterError::Grant(GrantError::NotAuthorised { .. })
        ));
        let deep = w.grant(&server, Role::Admin, 2, Scope::All, &laptop.sign);
        assert!(
            roster.apply(&laptop.sign.id(), &[deep]).is_err(),
            "depth must shrink"
        );
        assert_eq!(roster.members().count(), 2, "nothing half done");
    }

    #[test]
    fn an_epoch_opens_for_its_recipients_and_the_root() {
        let mut w = World::new();
        let root = w.root.sign.clone();
        let [laptop, phone] = [(); 2].map(|()| DeviceKeys::generate(&mut w.rng));
        let mut roster = Roster::new(w.founding.clone());
        let grant = w.grant(&laptop, Role::Admin, 2, Scope::All, &root);
        roster.apply(&laptop.sign.id(), &[grant]).expect("applies");
        let space = SpaceId::from_bytes([1; 16]);
        let secret = EpochSecret {
            key: Key::generate(&mut w.rng),
            id_key: Key::generate(&mut w.rng),
            parents: vec![],
        };
        let record = secret.seal(space, vec![], roster.recipients(&space), &mut w.rng);
        let entry = RosterEntry::Epoch(record.clone());
        assert!(
            roster
                .apply(&phone.sign.id(), std::slice::from_ref(&entry))
                .is_err()
        );
        roster.apply(&laptop.sign.id(), &[entry]).expect("applies");
        let opened = record
            .open(&laptop.unseal)
            .expect("opens")
            .expect("has a box");
        assert_eq!(opened.key, secret.key);
        let by_root = record
            .open(&w.root.unseal)
            .expect("opens")
            .expect("has a box");
        assert_eq!(by_root.id_key, secret.id_key);
        assert!(record.open(&phone.unseal).expect("no box").is_none());
    }

    #[test]
    fn another_key_for_an_epoch_is_nobodys() {
        let mut w = World::new();
        let root = w.root.sign.clone();
        let laptop = DeviceKeys::generate(&mut w.rng);
        let (space, other) = (SpaceId::from_bytes([1; 16]), SpaceId::from_bytes([2; 16]));
        let mut secret = || EpochSecret {
            key: Key::generate(&mut w.rng),
            id_key: Key::generate(&mut w.rng),
            parents: vec![],
        };
        let (true_one, mut false_one) = (secret(), secret());
        false_one.parents.push(ParentKey {
            epoch: true_one.id(),
            key: false_one.key.clone(),
        });
        let to = [laptop.unseal.public()];
        let record = true_one.seal(space, vec![], to, &mut w.rng);
        // A box that opens, with another key.
        let aad = epoch_aad(&space, &record.epoch);
        let plain = cbor::encode(&false_one);
        let made_up = KeyBox {
            recipient: to[0],
            sealed: crypto::seal_to(&to[0], &aad, &plain, &mut w.rng).into(),
        };
        let mut both = record.clone();
        both.boxes.insert(0, made_up.clone());
        let opened = both.open(&laptop.unseal).expect("one is true");
        assert_eq!(opened.expect("has a box").key, true_one.key);
        both.boxes = vec![made_up];
        assert!(both.open(&laptop.unseal).is_err());
        // Nor as the key of a parent.
        let later = false_one.seal(space, vec![record.epoch], to, &mut w.rng);
        let opened = later.open(&laptop.unseal).expect("opens");
        assert!(opened.expect("has a box").parents.is_empty());
        // The id in another space is another epoch, whoever comes first.
        let mut roster = Roster::new(w.founding.clone());
        let grant = w.grant(&laptop, Role::Admin, 2, Scope::All, &root);
        let mut elsewhere = record.clone();
        elsewhere.space = other;
        let entries = [elsewhere, record.clone()].map(RosterEntry::Epoch);
        let author = laptop.sign.id();
        roster.apply(&author, &[grant]).expect("applies");
        roster.apply(&author, &entries).expect("both");
        assert_eq!(roster.epochs(&space).collect::<Vec<_>>(), [&record]);
    }

    #[test]
    fn a_member_writes_keys_of_its_own_spaces_only() {
        let mut w = World::new();
        let root = w.root.sign.clone();
        let [laptop, phone] = [(); 2].map(|()| DeviceKeys::generate(&mut w.rng));
        let (inside, outside) = (SpaceId::from_bytes([1; 16]), SpaceId::from_bytes([2; 16]));
        let first = w.grant(&laptop, Role::Admin, 2, Scope::All, &root);
        let narrow = Scope::Spaces(vec![inside]);
        let second = w.grant(&phone, Role::Member, 0, narrow, &laptop.sign);
        let wider = Scope::Spaces(vec![inside, outside]);
        let third = w.grant(&phone, Role::Member, 0, wider, &laptop.sign);
        let mut roster = Roster::new(w.founding.clone());
        roster
            .apply(&laptop.sign.id(), &[first, second])
            .expect("an admin enrols");
        let mut epoch_of = |space| {
            let secret = EpochSecret {
                key: Key::generate(&mut w.rng),
                id_key: Key::generate(&mut w.rng),
                parents: vec![],
            };
            RosterEntry::Epoch(secret.seal(space, vec![], [], &mut w.rng))
        };
        let (own, others) = (epoch_of(inside), epoch_of(outside));
        let phone = phone.sign.id();
        roster.apply(&phone, &[own]).expect("its own space");
        let error = roster
            .apply(&phone, std::slice::from_ref(&others))
            .expect_err("not its space");
        assert!(matches!(error, RosterError::NotCovered { space, .. } if space == outside));
        assert_eq!(roster.spaces(), BTreeSet::from([inside]));
        // Whichever of its grants stands for it: what one of them allows counts.
        roster.apply(&laptop.sign.id(), &[third]).expect("widens");
        roster.apply(&phone, &[others]).expect("its space now");
    }

    #[test]
    fn rights_stay_within_the_role_and_the_issuers() {
        let mut w = World::new();
        let root = w.root.sign.clone();
        let laptop = DeviceKeys::generate(&mut w.rng);
        let clear = |role, rights| GrantClear {
            version: 1,
            pac: w.founding.id(),
            subject: laptop.public(),
            scope: Scope::All,
            role,
            depth: 1,
            private_hash: ByteArray::from([0; 32]),
            issuer: PublicKey(root.id()),
            serial: ByteArray::from([1; 16]),
            rights,
        };
        let key = w.keys.private.clone().expect("a full set of keys");
        let rng = w.rng.clone();
        let issue = |clear: GrantClear| {
            let mut rng = rng.clone();
            Grant::issue(clear, &GrantPrivate::default(), &key, &root, &mut rng)
        };
        let pac = w.founding.id();
        let more = issue(clear(Role::Member, Rights::ENROL));
        assert!(
            more.verify(&pac).is_err(),
            "a member with an admin's rights"
        );
        let less = issue(clear(Role::Member, Rights::READ));
        let reader = less.verify(&pac).expect("a member that only reads");
        let space = SpaceId::from_bytes([1; 16]);
        assert!(reader.may_read(&space) && !reader.may_write(&space));
        let mut admin = clear(Role::Admin, Rights::READ);
        admin.depth = 5;
        let by_it = GrantClear {
            issuer: PublicKey(laptop.sign.id()),
            ..clear(Role::Member, Rights::READ)
        };
        assert!(by_it.check_authority(Authority::Device(&admin)).is_err());
        admin.rights = Rights::of(Role::Admin);
        assert!(by_it.check_authority(Authority::Device(&admin)).is_ok());
    }
}

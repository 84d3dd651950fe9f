//! What every device of a space has: below it old segments are of use to nobody who is known.
//!
//! A pure function of acks and the roster. Nothing becomes stable by its age: a device that has
//! been away for years holds back until it is back or out.

use crate::ack::Ack;
use crate::grant::Role;
use crate::ids::{DeviceId, LogId, SpaceId};
use crate::roster::Roster;
use crate::vector::{Head, VersionVector};

/// What this replica knows and has applied itself.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// This device.
    pub device: DeviceId,
    /// What it has applied of the space.
    pub space: &'a VersionVector,
    /// What it has applied of the roster.
    pub roster: &'a VersionVector,
}

/// A device that lacks something, as far as its last ack says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// The device.
    pub device: DeviceId,
    /// When it said so, by its own clock, in milliseconds since 1970; `None` if it never has.
    pub since_ms: Option<u64>,
}

/// What all devices of a space have applied to their disks, and who of them lacks what is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stable {
    /// What all have. Each head is one that some device named, at or below this replica's own.
    pub vector: VersionVector,
    /// Those that lack something of what this replica has, in order of their ids.
    pub behind: Vec<Behind>,
}

/// Whether a device that has said nothing about a space keeps a worktree of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsaid {
    /// It does: the space is `home`.
    Keeps,
    /// It does not: it has never attached it.
    KeepsNot,
}

/// The devices that count: with a grant that covers the space, no relays, no guests, not detached.
fn keepers(roster: &Roster, space: &SpaceId, unsaid: Unsaid) -> impl Iterator<Item = DeviceId> {
    roster.members().filter_map(move |(device, member)| {
        let takes_part = match member.grant.role {
            Role::Admin | Role::Member => member.grant.scope.covers(space),
            Role::Relay | Role::Guest => false,
        };
        let keeps = match roster.placement(device, space) {
            Some(placement) => placement.attached,
            None => unsaid == Unsaid::Keeps,
        };
        (takes_part && keeps).then_some(*device)
    })
}

/// What is stable, from the newest ack of each device.
///
/// Nothing is while anybody knows of more of the roster than this replica: there may be a device
/// that is not known here. Nor is anything of a log of which a device has a head that this replica
/// does not hold, as `holds` says: the log may have forked, and numbers alone tell nothing.
pub fn stable<'a>(
    roster: &Roster,
    space: &SpaceId,
    unsaid: Unsaid,
    own: Own<'_>,
    ack_of: impl Fn(&DeviceId) -> Option<&'a Ack>,
    holds: impl Fn(&LogId, Head) -> bool,
) -> Stable {
    let mut vector = Some(own.space.clone());
    let mut behind = vec![];
    for device in keepers(roster, space, unsaid) {
        if device == own.device {
            continue;
        }
        let Some(ack) = ack_of(&device).filter(|ack| ack.space == *space) else {
            vector = None;
            behind.push(Behind {
                device,
                since_ms: None,
            });
            continue;
        };
        if !ack.vector.covers(own.space) {
            behind.push(Behind {
                device,
                since_ms: Some(ack.time_ms),
            });
        }
        vector = vector
            .filter(|_| own.roster.covers(&ack.roster))
            .map(|vector| lower(&vector, &ack.vector, &holds));
    }
    Stable {
        vector: vector.unwrap_or_default(),
        behind,
    }
}

/// For each log the lower head; a log that one of them lacks, or that may have forked between
/// them, is in neither.
fn lower(
    a: &VersionVector,
    b: &VersionVector,
    holds: &impl Fn(&LogId, Head) -> bool,
) -> VersionVector {
    let pick = |a: Head, b: Head| if b.seq < a.seq { b } else { a };
    a.iter()
        .filter_map(|(log, head)| {
            let other = b.get(&log)?;
            let known = other == head || holds(&log, other);
            known.then(|| (log, pick(head, other)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Key, PublicKey};
    use crate::grant::{Grant, GrantClear, GrantPrivate, Rights, Scope};
    use crate::identity::{DeviceKeys, FoundingRecord, Phrase};
    use crate::ids::{Incarnation, ShortHash};
    use crate::roster::{Placement, RosterEntry};
    use minicbor::bytes::ByteArray;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;
    use std::collections::BTreeMap;

    const SPACE: SpaceId = SpaceId::from_bytes([3; 16]);

    struct Pac {
        roster: Roster,
        devices: Vec<DeviceKeys>,
        acks: BTreeMap<DeviceId, Ack>,
        /// Heads that are not held here.
        unknown: Vec<(LogId, u64)>,
        rng: ChaCha20Rng,
        root: crate::identity::RootKeys,
    }

    impl Pac {
        fn new() -> Self {
            let mut rng = ChaCha20Rng::seed_from_u64(8);
            let root = Phrase::generate(&mut rng).root_keys();
            let founding = FoundingRecord::found(&root, 1, &mut rng);
            Self {
                roster: Roster::new(founding),
                devices: vec![],
                acks: BTreeMap::new(),
                unknown: vec![],
                rng,
                root,
            }
        }

        fn enrol(&mut self, role: Role) -> DeviceId {
            let keys = DeviceKeys::generate(&mut self.rng);
            let id = keys.id();
            let clear = GrantClear {
                version: 1,
                pac: self.roster.founding().id(),
                subject: keys.public(),
                scope: Scope::All,
                role,
                depth: 0,
                private_hash: ByteArray::from([0; 32]),
                issuer: PublicKey(self.root.sign.id()),
                serial: ByteArray::from([self.devices.len() as u8; 16]),
                rights: Rights::of(role),
            };
            let private = GrantPrivate::default();
            let key = Key::generate(&mut self.rng);
            let grant = Grant::issue(clear, &private, &key, &self.root.sign, &mut self.rng);
            self.roster
                .apply(&id, &[RosterEntry::Grant(grant)])
                .expect("counts");
            self.devices.push(keys);
            id
        }

        fn place(&mut self, device: DeviceId, attached: bool, turn: u64) {
            let placement = Placement {
                space: SPACE,
                attached,
                turn,
            };
            self.roster
                .apply(&device, &[RosterEntry::Placement(placement)])
                .expect("counts");
        }

        fn ack(&mut self, device: DeviceId, seqs: &[u64], roster: u64) {
            let ack = Ack {
                device,
                space: SPACE,
                vector: vector(seqs),
                clock: 0,
                time_ms: 7,
                roster: vector(&[roster]),
            };
            self.acks.insert(device, ack);
        }

        fn stable(&self, own: DeviceId, seqs: &[u64], unsaid: Unsaid) -> (Vec<u64>, Vec<Behind>) {
            let (space, roster) = (vector(seqs), vector(&[5]));
            let own = Own {
                device: own,
                space: &space,
                roster: &roster,
            };
            let found = stable(
                &self.roster,
                &SPACE,
                unsaid,
                own,
                |d| self.acks.get(d),
                |log, head| !self.unknown.contains(&(*log, head.seq)),
            );
            let seqs = (0..2).map(|n| found.vector.seq(&log(n))).collect();
            (seqs, found.behind)
        }
    }

    fn log(n: u8) -> LogId {
        LogId::new(
            DeviceId::from_bytes([n; 32]),
            Incarnation::from_bytes([n; 16]),
        )
    }

    /// Logs 0, 1, … up to these numbers; 0 for none.
    fn vector(seqs: &[u64]) -> VersionVector {
        let heads = seqs.iter().zip(0..).filter(|(seq, _)| **seq > 0);
        heads
            .map(|(seq, n)| {
                let hash = ShortHash::from_bytes([*seq as u8; 16]);
                (log(n), Head { seq: *seq, hash })
            })
            .collect()
    }

    #[test]
    fn stable_is_what_the_last_one_has() {
        let mut pac = Pac::new();
        let [a, b, c] = [Role::Admin, Role::Member, Role::Member].map(|role| pac.enrol(role));
        pac.ack(b, &[4, 9], 5);
        pac.ack(c, &[6, 2], 5);
        let (seqs, behind) = pac.stable(a, &[6, 8], Unsaid::Keeps);
        assert_eq!(seqs, [4, 2]);
        let names: Vec<DeviceId> = behind.iter().map(|b| b.device).collect();
        assert_eq!(
            names.len(),
            2,
            "b lacks 5 and 6 of the first, c most of the second"
        );
        pac.ack(c, &[6, 0], 5);
        assert_eq!(pac.stable(a, &[6, 8], Unsaid::Keeps).0, [4, 0]);
    }

    #[test]
    fn of_a_log_that_may_have_forked_nothing_is_stable() {
        let mut pac = Pac::new();
        let [a, b] = [Role::Admin, Role::Member].map(|role| pac.enrol(role));
        pac.ack(b, &[9, 5], 5);
        pac.unknown = vec![(log(0), 9)];
        assert_eq!(pac.stable(a, &[6, 8], Unsaid::Keeps).0, [0, 5]);
        pac.unknown = vec![(log(1), 5)];
        assert_eq!(pac.stable(a, &[9, 8], Unsaid::Keeps).0, [9, 0]);
    }

    #[test]
    fn who_never_spoke_holds_everything_back() {
        let mut pac = Pac::new();
        let [a, b] = [Role::Admin, Role::Member].map(|role| pac.enrol(role));
        let never = Behind {
            device: b,
            since_ms: None,
        };
        let found = pac.stable(a, &[6, 8], Unsaid::Keeps);
        assert_eq!(found, (vec![0, 0], vec![never]));
        assert_eq!(pac.stable(a, &[6, 8], Unsaid::KeepsNot).0, [6, 8]);
        pac.place(b, true, 1);
        assert_eq!(pac.stable(a, &[6, 8], Unsaid::KeepsNot).0, [0, 0]);
        pac.place(b, false, 2);
        assert_eq!(pac.stable(a, &[6, 8], Unsaid::Keeps), (vec![6, 8], vec![]));
    }

    #[test]
    fn relays_and_guests_hold_nothing_back() {
        let mut pac = Pac::new();
        let [a, _, _] = [Role::Admin, Role::Relay, Role::Guest].map(|role| pac.enrol(role));
        assert_eq!(pac.stable(a, &[6, 8], Unsaid::Keeps), (vec![6, 8], vec![]));
    }

    #[test]
    fn an_ack_by_a_later_roster_makes_nothing_stable() {
        let mut pac = Pac::new();
        let [a, b] = [Role::Admin, Role::Member].map(|role| pac.enrol(role));
        pac.ack(b, &[6, 8], 6);
        assert_eq!(pac.stable(a, &[6, 8], Unsaid::Keeps).0, [0, 0]);
        pac.ack(b, &[6, 8], 5);
        assert_eq!(pac.stable(a, &[6, 8], Unsaid::Keeps).0, [6, 8]);
    }
}

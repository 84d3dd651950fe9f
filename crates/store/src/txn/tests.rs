//! Segments that others made, taken in by a replica in memory.

use pacsync_protocol::crypto::{Key, SigningKey};
use pacsync_protocol::identity::{DeviceKeys, FoundingRecord, Phrase};
use pacsync_protocol::roster::{ROSTER_EPOCH, RosterKeys};
use pacsync_protocol::segment::{Draft, Entry, VerifiedSegment};
use pacsync_protocol::{Incarnation, SegmentHash};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;
use crate::error::Refusal;
use crate::replica::Identity;

fn replica() -> (Store, ChaCha20Rng) {
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    let root = Phrase::generate(&mut rng).root_keys();
    let identity = Identity {
        keys: DeviceKeys::generate(&mut rng),
        founding: FoundingRecord::found(&root, 1, &mut rng),
        roster_keys: RosterKeys::generate(&mut rng),
    };
    let medium = redb::backends::InMemoryBackend::new();
    let store = Store::open_on(medium, identity, &mut rng).expect("opens");
    (store, rng)
}

/// Somebody who writes a roster log and has no grant.
struct Stranger {
    keys: SigningKey,
    prev: Option<(Seq, SegmentHash)>,
}

impl Stranger {
    fn new(rng: &mut ChaCha20Rng) -> Self {
        Self {
            keys: DeviceKeys::generate(rng).sign,
            prev: None,
        }
    }

    fn write(&mut self, store: &Store, bytes: usize, rng: &mut ChaCha20Rng) -> VerifiedSegment {
        let mut noise = vec![0; bytes];
        rand_chacha::rand_core::RngCore::fill_bytes(rng, &mut noise);
        let draft = Draft {
            space: store.roster_space(),
            log: LogId::new(self.keys.id(), Incarnation::from_bytes([1; 16])),
            prev: self.prev,
            deps: vec![],
            roster_deps: vec![],
            clock: 0,
            epoch: ROSTER_EPOCH,
            time_ms: 1,
            entries: vec![Entry::Row(noise)],
        };
        let key: &Key = &store.identity().roster_keys.roster;
        let segment = draft.seal(key, &self.keys, rng).expect("seals");
        self.prev = Some((segment.header().last(), segment.hash()));
        segment
    }
}

fn hold(store: &mut Store, segment: &VerifiedSegment) -> Result<(), Refusal> {
    let mut txn = store.begin().expect("begins");
    let held = txn.hold(segment).expect("stores");
    txn.commit().expect("commits");
    held
}

#[test]
fn a_key_without_a_grant_has_bounded_room() {
    let (mut store, mut rng) = replica();
    let mut stranger = Stranger::new(&mut rng);
    let mut held = 0;
    loop {
        let segment = stranger.write(&store, 14_000, &mut rng);
        match hold(&mut store, &segment) {
            Ok(()) => held += segment.bytes().len() as u64,
            Err(refusal) => {
                assert!(matches!(refusal, Refusal::NoRoom { .. }));
                break;
            }
        }
    }
    assert!(held <= UNKNOWN_BYTES_MAX && held > UNKNOWN_BYTES_MAX - 20_000);
}

#[test]
fn keys_without_a_grant_are_bounded_in_number() {
    let (mut store, mut rng) = replica();
    let mut strangers: Vec<_> = (0..UNKNOWN_KEYS_MAX)
        .map(|_| Stranger::new(&mut rng))
        .collect();
    for stranger in &mut strangers {
        let segment = stranger.write(&store, 10, &mut rng);
        assert_eq!(hold(&mut store, &segment), Ok(()));
    }
    let one_more = Stranger::new(&mut rng).write(&store, 10, &mut rng);
    let refused = hold(&mut store, &one_more);
    assert!(matches!(refused, Err(Refusal::NoRoom { .. })));
    for stranger in &mut strangers {
        let segment = stranger.write(&store, 10, &mut rng);
        assert_eq!(hold(&mut store, &segment), Ok(()), "who is held goes on");
    }
}

//! Replicas that start from a checkpoint, or have pruned, are as those that have everything.

mod left_out;

use std::collections::{BTreeMap, BTreeSet};

use minicbor::bytes::ByteArray;
use pacsync_protocol::checkpoint::{Item, RowItem, VerifiedHeader};
use pacsync_protocol::crypto::{self, Key, PublicKey};
use pacsync_protocol::grant::{Grant, GrantClear, GrantPrivate, Rights, Role, Scope};
use pacsync_protocol::identity::{DeviceKeys, FoundingRecord, Phrase, VerifiedFounding};
use pacsync_protocol::roster::{EpochSecret, RosterEntry, RosterKeys};
use pacsync_protocol::row::{At as Placed, Content, Keys, Kind, Life, Name, Row};
use pacsync_protocol::segment::{Entry, SignedSegment};
use pacsync_protocol::{ContentId, NodeId, SpaceId, VersionVector};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::{Builder, LoadError, Verdict};
use crate::documents::{Setting, Settings, settings_id};
use crate::replica::{Identity, Store};
use crate::tree::{NodeState, TreeReader};

pub(crate) const SPACE: SpaceId = SpaceId::from_bytes([3; 16]);

/// Some devices of one pac, each with its replica.
pub(crate) struct Pac {
    pub(crate) stores: Vec<Store>,
    pub(crate) rng: ChaCha20Rng,
    next_node: u8,
    founding: VerifiedFounding,
    keys: RosterKeys,
    devices: Vec<DeviceKeys>,
}

impl Pac {
    /// `count` devices with replicas; one more has a grant and nothing else yet.
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let root = Phrase::generate(&mut rng).root_keys();
        let founding = FoundingRecord::found(&root, 1, &mut rng);
        let keys = RosterKeys::generate(&mut rng);
        let private = keys.private.clone().expect("a full set");
        let devices: Vec<DeviceKeys> = (0..=count)
            .map(|_| DeviceKeys::generate(&mut rng))
            .collect();
        let mut entries: Vec<Entry> = vec![];
        for device in &devices {
            let clear = GrantClear {
                version: 1,
                pac: founding.id(),
                subject: device.public(),
                scope: Scope::All,
                role: Role::Admin,
                depth: 1,
                private_hash: ByteArray::from([0; 32]),
                issuer: PublicKey(root.sign.id()),
                serial: ByteArray::from(crypto::random(&mut rng)),
                rights: Rights::of(Role::Admin),
            };
            let grant = Grant::issue(
                clear,
                &GrantPrivate::default(),
                &private,
                &root.sign,
                &mut rng,
            );
            entries.push(Entry::Roster(RosterEntry::Grant(grant)));
        }
        let secret = EpochSecret {
            key: Key::generate(&mut rng),
            id_key: Key::generate(&mut rng),
            parents: vec![],
        };
        let recipients = devices.iter().map(|device| device.unseal.public());
        let epoch = secret.seal(SPACE, vec![], recipients, &mut rng);
        entries.push(Entry::Roster(RosterEntry::Epoch(epoch)));
        let mut pac = Self {
            stores: vec![],
            rng,
            next_node: 1,
            founding,
            keys,
            devices,
        };
        for _ in 0..count {
            pac.join();
        }
        let space = pac.stores[0].roster_space();
        let mut txn = pac.stores[0].begin().expect("begins");
        txn.append(&space, entries, 1, &mut pac.rng)
            .expect("appends");
        txn.commit().expect("commits");
        for n in 1..count {
            pac.sync(0, n, space);
        }
        pac
    }

    /// A replica that has nothing, for the next device.
    pub(crate) fn join(&mut self) -> usize {
        self.join_as(self.stores.len())
    }

    /// A replica that has nothing, with the key of a device.
    pub(crate) fn join_as(&mut self, device: usize) -> usize {
        let identity = Identity {
            keys: self.devices[device].clone(),
            founding: self.founding.clone(),
            roster_keys: self.keys.clone(),
        };
        let medium = redb::backends::InMemoryBackend::new();
        let store = Store::open_on(medium, identity, &mut self.rng).expect("opens");
        self.stores.push(store);
        self.stores.len() - 1
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.rng.next_u64() % end.max(1) as u64) as usize
    }

    /// Hands over what is held as segments; true if all that is lacked was there.
    pub(crate) fn sync(&mut self, from: usize, to: usize, space: SpaceId) -> bool {
        let has = self.stores[to].held(&space).expect("reads");
        let mut segments = vec![];
        let mut whole = true;
        for (log, head) in self.stores[from].held(&space).expect("reads").iter() {
            let lacks = has.seq(&log) + 1;
            if lacks > head.seq {
                continue;
            }
            let (found, _) = self.stores[from]
                .segments(&space, &log, lacks, usize::MAX)
                .expect("reads");
            let first = found.first().map(|bytes| {
                let segment = SignedSegment::parse(bytes).expect("a segment");
                segment.header().first
            });
            if first == Some(lacks) {
                segments.extend(found);
            } else {
                whole = false;
            }
        }
        self.hand_in(to, &segments);
        whole
    }

    fn hand_in(&mut self, to: usize, segments: &[Vec<u8>]) {
        let mut txn = self.stores[to].begin().expect("begins");
        for bytes in segments {
            let segment = SignedSegment::parse(bytes).expect("a segment");
            let segment = segment.verify().expect("verifies");
            assert_eq!(txn.hold(&segment).expect("stores"), Ok(()));
        }
        txn.apply(1, &mut self.rng).expect("applies");
        txn.commit().expect("commits");
    }

    /// What an honest device writes upon what it sees.
    pub(crate) fn write(&mut self, who: usize) {
        let choice = self.below(12);
        if choice == 0 {
            let key = format!("key{}", self.below(3));
            let values = Settings::from([(key, Setting::Flag(self.below(2) == 0))]);
            let mut txn = self.stores[who].begin().expect("begins");
            txn.write_document(&SPACE, settings_id(&SPACE), &values, 1, &mut self.rng)
                .expect("writes");
            txn.commit().expect("commits");
            return;
        }
        let no = self.stores[who].space(&SPACE).expect("knows").no;
        let (nodes, dirs) = {
            let tx = self.stores[who].read().expect("reads");
            let tree = TreeReader::open(&tx, no).expect("opens");
            let mut nodes = vec![];
            let mut dirs = vec![NodeId::ROOT];
            for id in self.known(who) {
                let state = tree.node(&id).expect("reads").expect("known");
                if state.dead || state.id != id {
                    continue;
                }
                if state.kind == Kind::Dir {
                    dirs.push(id);
                }
                nodes.push((id, state.kind));
            }
            (nodes, dirs)
        };
        let parent = dirs[self.below(dirs.len())];
        let name = Name::new([b'a' + self.below(4) as u8]).expect("a name");
        let content = |n: usize| Content {
            id: ContentId::from_bytes([n as u8; 32]),
            size: 1,
            mtime_ns: n as i64,
            inline: None,
        };
        let version = self.below(5);
        let mut keys = Keys::default();
        let mut txn = self.stores[who].begin().expect("begins");
        let at = Some(Placed {
            parent,
            name,
            stamp: txn.next_stamp(&SPACE).expect("a stamp"),
        });
        let rows = if nodes.is_empty() || choice < 5 {
            let kind = if choice.is_multiple_of(2) {
                Kind::Dir
            } else {
                Kind::File
            };
            keys.kind = Some(kind);
            keys.at = at;
            keys.content = (kind == Kind::File).then(|| content(version));
            let node = NodeId::from_bytes([self.next_node; 16]);
            self.next_node += 1;
            vec![Row::new(node, vec![], keys)]
        } else {
            let (node, kind) = nodes[version % nodes.len()];
            match choice {
                5 | 6 if kind == Kind::File => keys.content = Some(content(version + 10)),
                7 | 8 if node != parent => keys.at = at,
                9 => keys.mode = Some(0o600 + version as u16),
                _ => keys.life = Some(Life::Dead),
            }
            let tree = txn.tree(no).expect("opens");
            tree.write_over(&node, &keys).expect("rows")
        };
        let entries = rows.iter().map(|row| Entry::Row(row.to_bytes())).collect();
        txn.append(&SPACE, entries, 7, &mut self.rng)
            .expect("appends");
        txn.commit().expect("commits");
    }

    fn known(&self, who: usize) -> Vec<NodeId> {
        let no = self.stores[who].space(&SPACE).expect("knows").no;
        let tx = self.stores[who].read().expect("reads");
        let tree = TreeReader::open(&tx, no).expect("opens");
        let nodes: BTreeSet<NodeId> = tree
            .rows()
            .expect("reads")
            .map(|row| row.expect("a row").1.node)
            .collect();
        nodes.into_iter().collect()
    }

    /// Writes and syncs at random among the first `count`.
    fn live(&mut self, count: usize, steps: usize) {
        for _ in 0..steps {
            let who = self.below(count);
            if self.below(3) == 0 {
                let from = self.below(count);
                if from != who {
                    assert!(self.sync(from, who, SPACE));
                }
            } else {
                self.write(who);
            }
        }
    }

    /// What some replicas have all applied.
    fn stable(&self, who: &[usize]) -> VersionVector {
        let mut vectors = who
            .iter()
            .map(|n| self.stores[*n].applied(&SPACE).expect("reads"));
        let first = vectors.next().expect("one at least");
        vectors.fold(first, |low, next| {
            low.iter()
                .filter_map(|(log, head)| Some((log, head.min(next.get(&log)?))))
                .collect()
        })
    }

    fn prune(&mut self, who: usize, stable: &VersionVector) -> u64 {
        let mut segments = 0;
        loop {
            let mut txn = self.stores[who].begin().expect("begins");
            let pruned = txn.prune(&SPACE, stable, 2).expect("prunes");
            txn.commit().expect("commits");
            segments += pruned.segments;
            if !pruned.more {
                return segments;
            }
        }
    }

    fn builder(&mut self, from: usize) -> Builder {
        self.builder_at(from, VersionVector::new())
    }

    fn builder_at(&mut self, from: usize, stable: VersionVector) -> Builder {
        let mut builder = self.stores[from]
            .checkpoint(&SPACE, stable, 1, &mut self.rng)
            .expect("begins");
        // So few that several passes are the rule.
        builder.window_max = 5;
        builder
    }

    /// The header of a checkpoint.
    pub(crate) fn header_of(&mut self, from: usize) -> super::Header {
        self.builder(from).header().header().clone()
    }

    fn parts(&mut self, builder: &mut Builder) -> Vec<Vec<u8>> {
        let mut parts = vec![];
        while let Some(part) = builder.next_part(&mut self.rng).expect("makes") {
            assert_eq!(part.number, parts.len() as u64);
            parts.push(part.bytes);
        }
        parts
    }

    fn load(
        &mut self,
        to: usize,
        header: &VerifiedHeader,
        parts: &[Vec<u8>],
    ) -> Result<(), LoadError> {
        for (number, part) in parts.iter().enumerate() {
            let mut txn = self.stores[to].begin().expect("begins");
            txn.stage_part(&SPACE, number as u64, part).expect("keeps");
            txn.commit().expect("commits");
        }
        let mut txn = self.stores[to].begin().expect("begins");
        txn.load(header, 1, &mut self.rng).expect("reads")?;
        txn.commit().expect("commits");
        Ok(())
    }

    pub(crate) fn checkpoint(&mut self, from: usize, to: usize) -> Result<(), LoadError> {
        self.checkpoint_at(from, to, VersionVector::new())
    }

    fn checkpoint_at(
        &mut self,
        from: usize,
        to: usize,
        stable: VersionVector,
    ) -> Result<(), LoadError> {
        let roster = self.stores[from].roster_space();
        self.sync(from, to, roster);
        let mut builder = self.builder_at(from, stable).in_parts_of(300);
        let parts = self.parts(&mut builder);
        let header = VerifiedHeader::from_bytes(builder.header().bytes()).expect("verifies");
        self.load(to, &header, &parts)
    }

    pub(crate) fn state(&self, who: usize) -> State {
        let store = &self.stores[who];
        let no = store.space(&SPACE).expect("knows").no;
        let tx = store.read().expect("reads");
        let tree = TreeReader::open(&tx, no).expect("opens");
        let nodes = self.known(who).into_iter();
        let nodes: BTreeMap<NodeId, NodeState> = nodes
            .map(|id| (id, tree.node(&id).expect("reads").expect("known")))
            .collect();
        let mut written = BTreeMap::new();
        for row in tree.rows().expect("reads") {
            let id = row.expect("a row").0;
            written.insert(id, store.written(&SPACE, &id).expect("reads"));
        }
        State {
            vector: store.applied(&SPACE).expect("reads"),
            held: store.held(&SPACE).expect("reads"),
            clock: store.clock(&SPACE).expect("reads"),
            settings: store.document(&SPACE, &settings_id(&SPACE)).expect("reads"),
            stats: tree.stats().expect("reads"),
            nodes,
            written,
        }
    }

    /// Everybody gets everything that is held as segments, twice around.
    fn gossip(&mut self, who: &[usize]) {
        for _ in 0..3 {
            for from in who {
                for to in who {
                    if from != to {
                        assert!(self.sync(*from, *to, SPACE), "{from} to {to}");
                    }
                }
            }
        }
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) vector: VersionVector,
    pub(crate) held: VersionVector,
    clock: u64,
    settings: Settings,
    stats: crate::tree::TreeStats,
    nodes: BTreeMap<NodeId, NodeState>,
    written: BTreeMap<pacsync_protocol::RowId, Vec<crate::Written>>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Two prune what they both have; a third starts from a checkpoint of one, and all go on.
    #[test]
    fn a_checkpoint_and_a_tail_are_all_segments(seed: u64) {
        let mut pac = Pac::new(3, seed);
        pac.live(3, 25);
        let all = [0, 1, 2];
        let stable = pac.stable(&all);
        pac.prune(0, &stable);
        pac.prune(1, &stable);
        let new = pac.join();
        prop_assert_eq!(pac.checkpoint(0, new), Ok(()));
        prop_assert_eq!(pac.state(new), pac.state(0));
        // The new one writes on top of it, and so do the others, apart from each other.
        for who in [0, 1, 2, new] {
            pac.write(who);
            pac.write(who);
        }
        pac.gossip(&[0, 1, 2, new]);
        let whole = pac.state(2);
        for who in [0, 1, new] {
            prop_assert_eq!(&pac.state(who), &whole, "replica {}", who);
        }
    }

    /// A replica that has a part, and something of its own, loses nothing by a checkpoint.
    #[test]
    fn a_checkpoint_adds_to_what_is_here(seed: u64) {
        let mut pac = Pac::new(3, seed);
        pac.live(3, 15);
        pac.write(2);
        let (before, held) = (pac.known(2), pac.stores[2].held(&SPACE).expect("reads"));
        pac.live(2, 15);
        prop_assert_eq!(pac.checkpoint(0, 2), Ok(()));
        let vector = pac.stores[2].applied(&SPACE).expect("reads");
        prop_assert!(vector.covers(&held));
        prop_assert!(vector.covers(&pac.stores[0].applied(&SPACE).expect("reads")));
        let known = pac.known(2);
        prop_assert!(before.iter().all(|node| known.contains(node)));
        pac.gossip(&[0, 1, 2]);
        prop_assert_eq!(pac.state(2), pac.state(0));
        prop_assert_eq!(pac.state(1), pac.state(0));
    }

    /// Segments that come late, above what is stable, in any order, find pruned and whole replicas alike.
    #[test]
    fn pruning_changes_nothing_that_can_still_come(seed: u64) {
        let mut pac = Pac::new(3, seed);
        pac.live(3, 20);
        let stable = pac.stable(&[0, 1, 2]);
        pac.prune(0, &stable);
        for _ in 0..4 {
            let who = pac.below(2) + 1;
            pac.write(who);
        }
        // What 0 lacks is there as segments everywhere.
        let order = if pac.below(2) == 0 { [1, 2] } else { [2, 1] };
        for from in order {
            prop_assert!(pac.sync(from, 0, SPACE));
        }
        pac.gossip(&[0, 1, 2]);
        prop_assert_eq!(pac.state(0), pac.state(1));
        prop_assert_eq!(pac.state(2), pac.state(1));
    }
}

#[test]
fn pruned_segments_are_gone_and_their_hashes_are_not() {
    let mut pac = Pac::new(2, 1);
    for _ in 0..6 {
        pac.write(0);
    }
    pac.gossip(&[0, 1]);
    let before = pac.state(0);
    let stable = pac.stable(&[0, 1]);
    assert!(pac.prune(0, &stable) > 2, "more than one call drops");
    assert_eq!(pac.prune(0, &stable), 0);
    assert_eq!(pac.state(0), before);
    for (log, head) in stable.iter() {
        let hash = pac.stores[0].hash_at(&SPACE, &log, head.seq);
        assert_eq!(hash.expect("reads"), Some(head.hash));
        let (left, _) = pac.stores[0]
            .segments(&SPACE, &log, 1, usize::MAX)
            .expect("reads");
        assert_eq!(left, Vec::<Vec<u8>>::new());
    }
    let new = pac.join();
    let roster = pac.stores[0].roster_space();
    pac.sync(0, new, roster);
    assert!(!pac.sync(0, new, SPACE), "there is nothing to start from");
}

#[test]
fn another_log_under_the_stable_name_and_the_roster_are_not_pruned() {
    let mut pac = Pac::new(1, 1);
    pac.write(0);
    let stable: VersionVector = pac
        .stable(&[0])
        .iter()
        .map(|(log, mut head)| {
            head.hash = pacsync_protocol::ShortHash::from_bytes([9; 16]);
            (log, head)
        })
        .collect();
    assert_eq!(pac.prune(0, &stable), 0);
    let roster = pac.stores[0].roster_space();
    let held = pac.stores[0].held(&roster).expect("reads");
    let mut txn = pac.stores[0].begin().expect("begins");
    let pruned = txn.prune(&roster, &held, usize::MAX).expect("prunes");
    assert_eq!(pruned.segments, 0);
}

/// Two came to the same row, and who makes the checkpoint first heard of it from the one that had
/// seen much more by then.
#[test]
fn a_row_comes_before_what_rests_on_it_whoever_brought_it() {
    let mut pac = Pac::new(3, 1);
    let append = |pac: &mut Pac, who: usize, row: &Row| {
        let mut txn = pac.stores[who].begin().expect("begins");
        let entries = vec![Entry::Row(row.to_bytes())];
        txn.append(&SPACE, entries, 1, &mut pac.rng)
            .expect("appends");
        txn.commit().expect("commits");
    };
    let birth = |n: u8| {
        let at = Placed {
            parent: NodeId::ROOT,
            name: Name::new([n]).expect("a name"),
            stamp: u64::from(n) - 99,
        };
        let keys = Keys {
            kind: Some(Kind::Dir),
            at: Some(at),
            ..Keys::default()
        };
        Row::new(NodeId::from_bytes([n; 16]), vec![], keys)
    };
    let first = birth(100);
    append(&mut pac, 0, &first);
    pac.gossip(&[0, 1, 2]);
    for n in 101..110 {
        append(&mut pac, 0, &birth(n));
    }
    let mode = |past: &Row, mode| {
        let keys = Keys {
            mode: Some(mode),
            ..Keys::default()
        };
        Row::new(first.node, vec![past.id()], keys)
    };
    let same = mode(&first, 0o700);
    append(&mut pac, 0, &same);
    append(&mut pac, 1, &same);
    append(&mut pac, 1, &mode(&same, 0o750));
    assert!(pac.sync(0, 2, SPACE) && pac.sync(1, 2, SPACE));
    let new = pac.join();
    assert_eq!(pac.checkpoint(2, new), Ok(()));
    assert_eq!(pac.state(new), pac.state(2));
}

/// What a checkpoint that was tampered with comes to.
fn tampered(change: impl Fn(&mut Vec<Item>)) -> Result<(), LoadError> {
    let mut pac = Pac::new(1, 4);
    for _ in 0..12 {
        pac.write(0);
    }
    let new = pac.join();
    let roster = pac.stores[0].roster_space();
    pac.sync(0, new, roster);
    let mut builder = pac.builder(0);
    let parts = pac.parts(&mut builder);
    assert_eq!(parts.len(), 1);
    let header = builder.header().clone();
    let space = pac.stores[0].space(&SPACE).expect("knows");
    let key = space.epochs[&header.header().epoch].clone();
    let last = pacsync_protocol::checkpoint::Place::Last;
    let mut items = header.open_part(&key, 0, last, &parts[0]).expect("opens");
    change(&mut items);
    let part = header
        .seal_part(&key, 0, last, &items, &mut pac.rng)
        .expect("seals");
    let loaded = pac.load(new, &header, &[part]);
    if loaded.is_err() {
        assert!(pac.stores[new].held(&SPACE).expect("reads").is_empty());
        assert!(pac.known(new).is_empty());
    }
    loaded
}

#[test]
fn a_checkpoint_that_is_not_what_its_header_signs_is_refused() {
    assert_eq!(tampered(|_| {}), Ok(()));
    let is_row = |item: &Item| matches!(item, Item::Row(_));
    let refused = [
        tampered(|items| items.reverse()),
        tampered(|items| items.retain(|item| !matches!(item, Item::Segment(_)))),
        tampered(|items| {
            items.pop();
        }),
        tampered(|items| {
            let last = items.iter().rposition(is_row).expect("a row");
            items.remove(last);
        }),
        tampered(|items| {
            let first = items.iter().position(is_row).expect("a row");
            let row = Row::new(
                NodeId::from_bytes([99; 16]),
                vec![],
                Keys {
                    kind: Some(Kind::Dir),
                    at: Some(Placed {
                        parent: NodeId::ROOT,
                        name: Name::new(*b"made up").expect("a name"),
                        stamp: 1,
                    }),
                    ..Keys::default()
                },
            );
            let carriers = match &items[first] {
                Item::Row(row) => row.carriers.clone(),
                _ => vec![],
            };
            let row = row.to_bytes().into();
            items.insert(first, Item::Row(RowItem { row, carriers }));
        }),
        tampered(|items| {
            for item in items {
                if let Item::Row(row) = item {
                    row.carriers[0].seq = 1 << 40;
                }
            }
        }),
        tampered(|items| {
            for item in items {
                if let Item::Segment(segment) = item {
                    segment.clock = 1 << 40;
                }
            }
        }),
        tampered(|items| {
            for item in items {
                if let Item::Segment(segment) = item {
                    segment.hash = pacsync_protocol::SegmentHash::from_bytes([1; 32]);
                }
            }
        }),
        tampered(|items| {
            for item in items {
                if let Item::Row(row) = item {
                    row.row[0] ^= 0xff;
                }
            }
        }),
    ];
    for (n, refused) in refused.iter().enumerate() {
        assert!(
            matches!(refused, Err(LoadError::Contradiction(_))),
            "{n}: {refused:?}"
        );
    }
}

/// Whoever has what a checkpoint says up to where it says looks at its root, also much later.
#[test]
fn a_root_that_is_not_that_of_the_logs_is_noticed_elsewhere() {
    let mut pac = Pac::new(3, 2);
    pac.live(2, 20);
    let header = pac.builder(0).header().header().clone();
    pac.gossip(&[0, 1]);
    pac.live(2, 10);
    let signer = pac.devices[0].sign.clone();
    let mut forged = header.clone();
    forged.rows = [7; 32].into();
    for (header, verdict) in [(header, Verdict::Same), (forged, Verdict::Differs)] {
        let signed = header.sign(&signer).expect("signs");
        let judged = |who: usize| pac.stores[who].judge(signed.header()).expect("reads");
        assert_eq!([judged(0), judged(1)], [verdict; 2]);
        assert_eq!(judged(2), Verdict::Unknown, "it has nothing of it");
    }
    let new = pac.join();
    assert_eq!(pac.checkpoint(0, new), Ok(()));
    let from = pac.stores[new].started_from(&SPACE).expect("reads");
    let from = VerifiedHeader::from_bytes(&from.expect("a header")).expect("verifies");
    assert_eq!(
        pac.stores[0].judge(from.header()).expect("reads"),
        Verdict::Same
    );
}

#[test]
fn a_missing_part_is_noticed() {
    let mut pac = Pac::new(1, 4);
    pac.write(0);
    let new = pac.join();
    let roster = pac.stores[0].roster_space();
    pac.sync(0, new, roster);
    let mut builder = pac.builder(0);
    let parts = pac.parts(&mut builder);
    let header = builder.header().clone();
    let empty = pac.load(new, &header, &[]);
    assert!(matches!(empty, Err(LoadError::Contradiction(_))));
    let twice = [parts[0].clone(), parts[0].clone()];
    assert!(matches!(
        pac.load(new, &header, &twice),
        Err(LoadError::Bad(_))
    ));
    assert_eq!(pac.load(new, &header, &parts), Ok(()));
}

/// Prints what a checkpoint of 100,000 files takes, beside their segments.
#[test]
#[ignore = "a measurement, run by hand"]
#[allow(clippy::print_stderr, reason = "a measurement is for whoever runs it")]
fn measure() {
    let mut pac = Pac::new(1, 1);
    let start = std::time::Instant::now();
    for round in 0..100u32 {
        let entries = (0..1_000u32)
            .map(|n| {
                let id = crypto::hash("test", &[&(round * 1_000 + n).to_be_bytes()]);
                let at = Placed {
                    parent: NodeId::ROOT,
                    name: Name::new(format!("file-{round:03}-{n:04}")).expect("a name"),
                    stamp: u64::from(round * 1_000 + n) + 1,
                };
                let keys = Keys {
                    kind: Some(Kind::File),
                    at: Some(at),
                    content: Some(Content {
                        id: ContentId::from_bytes(id),
                        size: 4_096,
                        mtime_ns: 1_700_000_000_000_000_000,
                        inline: None,
                    }),
                    mode: Some(0o644),
                    ..Keys::default()
                };
                let node = NodeId::from_slice(&id[..16]).expect("long enough");
                Entry::Row(Row::new(node, vec![], keys).to_bytes())
            })
            .collect();
        let mut txn = pac.stores[0].begin().expect("begins");
        txn.append(&SPACE, entries, 1, &mut pac.rng)
            .expect("appends");
        txn.commit().expect("commits");
    }
    let bytes = pac.stores[0].segment_bytes(&SPACE).expect("reads");
    eprintln!("written in {:?}, {bytes} B of segments", start.elapsed());
    let new = pac.join();
    let roster = pac.stores[0].roster_space();
    pac.sync(0, new, roster);
    let start = std::time::Instant::now();
    let mut builder = pac.builder(0);
    builder.window_max = 262_144;
    eprintln!("begun in {:?}", start.elapsed());
    let parts = pac.parts(&mut builder);
    let bytes: usize = parts.iter().map(Vec::len).sum();
    eprintln!("{} parts, {bytes} B, by {:?}", parts.len(), start.elapsed());
    let start = std::time::Instant::now();
    let header = builder.header().clone();
    assert_eq!(pac.load(new, &header, &parts), Ok(()));
    eprintln!("loaded in {:?}", start.elapsed());
    let verdict = pac.stores[new].judge(header.header());
    assert_eq!(verdict.expect("reads"), Verdict::Same);
    let start = std::time::Instant::now();
    let stable = pac.stable(&[0]);
    let mut txn = pac.stores[0].begin().expect("begins");
    let pruned = txn.prune(&SPACE, &stable, usize::MAX).expect("prunes");
    txn.commit().expect("commits");
    eprintln!("{pruned:?} in {:?}", start.elapsed());
}

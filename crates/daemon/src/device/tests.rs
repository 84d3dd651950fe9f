//! The device without sockets: a real home, replica and disk in a directory.

use std::net::SocketAddr;
use std::path::Path;

use pacsync_protocol::crypto::Key;
use pacsync_protocol::grant::Role;
use pacsync_protocol::identity::{DeviceKeys, DeviceName};
use pacsync_protocol::roster::{EpochRecord, RosterEntry};
use pacsync_protocol::row::{Content, Keys, Name, Row};
use pacsync_protocol::segment::{Draft, Entry};
use pacsync_protocol::{
    ContentId, Dep, DeviceId, EpochId, Head, Incarnation, LogId, NodeId, RowId, ShortHash, SpaceId,
};
use pacsync_store::content::packs::{DiskFiles, PackFiles, PackStore};
use pacsync_store::documents::{Setting, Settings, settings_id};
use pacsync_store::tree::TreeReader;
use rand_core::SeedableRng;
use tempfile::TempDir;

use super::{Device, Parts, Transport};
use crate::disk::{Disk, LinuxDisk, RelPath};
use crate::home::{FoundOptions, Home, enrol_entries, found};
use crate::net::{CloseCode, ConnId, Discovery, Lane};
use crate::worktree::{Now, SETTLE_MS, Tracking, VACATED_MS};

mod keeping;
mod sweeping;
mod undoing;

struct Nowhere;

impl Transport for Nowhere {
    fn send(&mut self, _: ConnId, _: Lane, _: Vec<u8>) -> Option<u64> {
        None
    }
    fn close(&mut self, _: ConnId, _: CloseCode, _: &str) {}
    fn connect(&mut self, _: SocketAddr, _: Option<DeviceId>) {}
    fn addresses(&self) -> Vec<SocketAddr> {
        vec![]
    }
}

fn rng() -> rand_chacha::ChaCha20Rng {
    rand_chacha::ChaCha20Rng::seed_from_u64(1)
}

fn at(ms: u64) -> Now {
    Now {
        ms,
        ns: i64::try_from(ms).unwrap_or(i64::MAX) * 1_000_000,
    }
}

/// A device that has founded a pac and looked at its empty root.
pub(super) struct Founded {
    pub(super) device: Device,
    now: Now,
    _dir: TempDir,
}

impl Founded {
    pub(super) fn new() -> Self {
        Self::with_packs(|home| Box::new(DiskFiles::open(&home.packs_path()).expect("opens packs")))
    }

    fn with_packs(files: impl FnOnce(&Home) -> Box<dyn PackFiles>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("a root");
        let home = Home::at(dir.path().join("home"));
        let options = FoundOptions {
            name: DeviceName::new("laptop").expect("a name"),
            root,
            listen: None,
            discovery: Discovery::Off,
        };
        let lock = home.lock().expect("locks");
        found(&lock, &options, 1, &mut rng()).expect("founds");
        drop(lock);
        let opened = home.load().expect("loads");
        let store = home
            .open_store(opened.identity.clone(), &mut rng())
            .expect("opens");
        let end = store.pack_end().expect("reads");
        let (packs, _) = PackStore::open(files(&home), end).expect("opens packs");
        let parts = Parts {
            store,
            packs,
            rng: Box::new(rng()),
            open_disk: Box::new(|root: &Path, _: SpaceId| {
                LinuxDisk::open(root).map(|disk| Box::new(disk) as Box<dyn Disk>)
            }),
            transport: Box::new(Nowhere),
            home,
            home_space: opened.home_space,
            config: opened.config,
        };
        let device = Device::start(parts, at(1)).expect("starts");
        let mut founded = Self {
            device,
            now: at(1),
            _dir: dir,
        };
        founded.rest();
        founded
    }

    /// Steps until nothing is left to do.
    pub(super) fn rest(&mut self) {
        for _ in 0..10_000 {
            self.now = at(self.now.ms + 10);
            let more = self.device.step(self.now).expect("steps");
            let calm = self.device.worktrees.values().all(|w| w.is_applied());
            if !more && calm {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn root(&self) -> std::path::PathBuf {
        self._dir.path().join("root")
    }

    /// Looks at everything until nothing is left to do, also what waits for its time.
    fn look_at_all(&mut self) {
        for _ in 0..4 {
            let home = self.device.home_space;
            if let Some(worktree) = self.device.worktrees.get_mut(&home) {
                worktree.request_scan(RelPath::root(), self.now);
            }
            self.rest();
            self.now = at(self.now.ms + VACATED_MS + SETTLE_MS);
        }
        self.rest();
    }

    fn write_tracking(&mut self, path: &str, yes: bool) {
        let home = self.device.home_space;
        let path = RelPath::from_bytes(path.as_bytes()).expect("a path");
        let values = Settings::from([(Tracking::key(&path), Setting::Flag(yes))]);
        let mut txn = self.device.store.begin().expect("begins");
        txn.write_document(&home, settings_id(&home), &values, 1, &mut rng())
            .expect("writes");
        let committed = txn.commit().expect("commits");
        self.device
            .committed(committed, None, self.now)
            .expect("tells");
    }

    /// Whether the pac has a node at a path.
    fn has(&self, path: &str) -> bool {
        let path = RelPath::from_bytes(path.as_bytes()).expect("a path");
        self.device.lookup(&path).is_some()
    }

    /// While nobody looks at the disk.
    fn closed(&mut self, change: impl FnOnce(&mut Self)) {
        let home = self.device.home_space;
        self.device.worktrees.remove(&home);
        self.device.unopened.insert(home, ("away".into(), u64::MAX));
        change(self);
        self.device.unopened.remove(&home);
        self.device.reopen(home, self.now).expect("opens");
        self.look_at_all();
    }

    /// Takes in a segment of another life of this device, as if a peer had sent it.
    pub(super) fn receive(&mut self, deps: Vec<Dep>, entries: Vec<Entry>) -> LogId {
        let space = self.device.home_space;
        let identity = self.device.store.identity().clone();
        let (epoch, key) = self.epoch(space);
        let draft = Draft {
            space,
            log: LogId::new(identity.keys.id(), Incarnation::from_bytes([7; 16])),
            prev: None,
            deps,
            roster_deps: vec![],
            clock: 0,
            epoch,
            time_ms: 1,
            entries,
        };
        let segment = draft
            .seal(&key, &identity.keys.sign, &mut rng())
            .expect("seals");
        let (_, refused, committed) = self
            .device
            .ingest(
                space,
                &identity.keys.id(),
                vec![segment.bytes().to_vec()],
                self.now,
            )
            .expect("stores");
        assert_eq!(refused, vec![]);
        self.device
            .committed(committed, None, self.now)
            .expect("tells");
        segment.header().log
    }

    /// Tracks a path of `home`.
    pub(super) fn track(&mut self, path: &RelPath) {
        let paths = [path.clone()];
        let tracked = self.device.set_tracked(&paths, true, self.now);
        tracked.expect("stores");
        self.look(path);
    }

    /// Looks at a path of `home` until nothing is left to do.
    pub(super) fn look(&mut self, path: &RelPath) {
        let space = self.device.home_space;
        let worktree = self.device.worktrees.get_mut(&space).expect("attached");
        worktree.request_scan(path.clone(), self.now);
        for _ in 0..50 {
            self.rest();
        }
    }

    /// The node at a path of `home` and the row of its content.
    pub(super) fn row_at(&self, path: &RelPath) -> (NodeId, RowId) {
        let store = &self.device.store;
        let no = store.space(&self.device.home_space).expect("known").no;
        let tx = store.read().expect("reads");
        let tree = TreeReader::open(&tx, no).expect("opens");
        let names: Vec<Name> = path
            .names()
            .map(|name| Name::new(name).expect("a name"))
            .collect();
        let node = tree.lookup(&names).expect("reads").expect("is there");
        let state = tree.node(&node).expect("reads").expect("is there");
        (node, state.content.expect("a content").row)
    }

    /// All that this device has written in `home`, to depend on.
    pub(super) fn deps(&self) -> Vec<Dep> {
        let store = &self.device.store;
        let log = store.own_log();
        let applied = store.applied(&self.device.home_space).expect("reads");
        let head = applied.get(&log).expect("it has written");
        vec![Dep { log, head }]
    }

    fn epoch(&self, space: SpaceId) -> (EpochId, Key) {
        let store = &self.device.store;
        let record = store.roster().epochs(&space).next().expect("an epoch");
        let secret = record
            .open(&store.identity().keys.unseal)
            .expect("opens")
            .expect("for this device");
        (record.epoch, secret.key.clone())
    }
}

#[test]
fn a_segment_that_rests_on_nothing_stops_no_acks_and_is_shown() {
    let mut founded = Founded::new();
    let space = founded.device.home_space;
    let own = founded.device.store.identity().keys.id();
    let made_up = Dep {
        log: LogId::new(own, Incarnation::from_bytes([9; 16])),
        head: Head {
            seq: 1,
            hash: ShortHash::from_bytes([9; 16]),
        },
    };
    let log = founded.receive(vec![made_up], vec![Entry::DeletesConfirmed]);
    let store = &founded.device.store;
    assert_eq!(store.held(&space).expect("reads").seq(&log), 1);
    assert_eq!(store.applied(&space).expect("reads").seq(&log), 0);

    let ack = founded.device.own_ack(&space, founded.now).expect("reads");
    let ack = ack.expect("what can be applied is");
    assert_eq!(
        ack.ack().vector,
        founded.device.store.applied(&space).expect("reads")
    );
    founded.device.keep_ack(ack, at(1)).expect("keeps");
    assert!(founded.device.ack_matches(&space, &own).expect("reads"));

    let notices = |founded: &Founded, ms| {
        let status = founded.device.status(at(founded.now.ms + ms));
        status.expect("a status").notices
    };
    assert!(notices(&founded, 0).is_empty(), "it may still come");
    let shown = notices(&founded, 60_000);
    assert_eq!(shown.len(), 1);
    assert!(shown.iter().all(|notice| notice.what.contains("laptop")));
}

#[test]
fn a_join_does_not_wait_for_what_its_sponsor_does_not_have() {
    use super::spaces::still_wanted;
    use pacsync_protocol::VersionVector;
    let device = DeviceKeys::generate(&mut rng()).id();
    let upto = |seq| {
        let mut vector = VersionVector::new();
        let log = LogId::new(device, Incarnation::from_bytes([1; 16]));
        let hash = ShortHash::from_bytes([seq as u8; 16]);
        vector.advance(log, Head { seq, hash });
        vector
    };
    let (less, join, more) = (upto(1), upto(2), upto(3));
    assert_eq!(still_wanted(&join, None), &join, "it is away");
    assert_eq!(still_wanted(&join, Some(&join)), &join);
    assert_eq!(still_wanted(&join, Some(&more)), &join, "what came later");
    assert_eq!(still_wanted(&join, Some(&less)), &less);
}

#[test]
fn a_checkpoint_that_says_what_the_logs_do_not_is_a_problem() {
    let mut founded = Founded::new();
    let home = founded.device.home_space;
    let keys = founded.device.store.identity().keys.clone();
    let begun = founded
        .device
        .store
        .checkpoint(&home, pacsync_protocol::VersionVector::new(), 1, &mut rng())
        .expect("begins");
    let mut forged = begun.header().header().clone();
    forged.rows = [1; 32].into();
    let forged = forged.sign(&keys.sign).expect("signs");
    let problems = |founded: &Founded| {
        let status = founded.device.status(founded.now).expect("a status");
        status.problems.len()
    };
    for (header, expected) in [(begun.header(), 0), (&forged, 1), (&forged, 1)] {
        founded.device.judge(&keys.id(), header).expect("reads");
        assert_eq!(problems(&founded), expected);
    }
}

#[test]
fn who_holds_back_pruning_is_named_and_after_a_week_to_the_user() {
    let mut founded = Founded::new();
    let phone = DeviceKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(2));
    let device = &mut founded.device;
    let (home, roster_space) = (device.home_space, device.store.roster_space());
    let identity = device.store.identity().clone();
    let roster = device.store.roster();
    let role = Role::Member;
    let entries =
        enrol_entries(roster, &identity, &phone.public(), role, &mut rng()).expect("an admin may");
    let mut txn = device.store.begin().expect("begins");
    txn.append(&roster_space, entries, 1, &mut rng())
        .expect("appends");
    let committed = txn.commit().expect("commits");
    device
        .committed(committed, None, founded.now)
        .expect("tells");
    device.prune_from(0, 1);

    let week = 7 * 86_400_000;
    let told = |founded: &Founded, ms: u64| {
        let status = founded.device.status(at(founded.now.ms + ms));
        let status = status.expect("a status");
        let back = status.hold_back.first().map(|back| back.since_ms);
        (back, status.notices.len())
    };
    assert_eq!(told(&founded, week), (Some(None), 0), "it has never spoken");
    let stable = |founded: &Founded| founded.device.stable(&home).expect("reads").vector;
    assert!(stable(&founded).is_empty());

    let store = &founded.device.store;
    let mut ack = pacsync_protocol::ack::Ack {
        device: phone.id(),
        space: home,
        vector: store.applied(&home).expect("reads"),
        clock: 0,
        time_ms: founded.now.ms,
        roster: store.applied(&roster_space).expect("reads"),
    };
    let keep = |founded: &mut Founded, ack: &pacsync_protocol::ack::Ack| {
        let now = founded.now;
        let signed = ack.clone().sign(&phone.sign).expect("signs");
        founded.device.keep_ack(signed, now).expect("keeps");
    };
    keep(&mut founded, &ack);
    assert_eq!(told(&founded, week), (None, 0), "it has everything");
    let all = stable(&founded);
    assert!(!all.is_empty());
    founded.now = at(founded.device.next_due().expect("something to do"));
    founded.rest();
    founded.now = at(founded.now.ms + 60_000);
    founded.rest();
    let left = founded.device.store.segment_bytes(&home).expect("reads");
    assert_eq!(left, 0, "what both have is gone");

    founded.write_tracking("new", true);
    let since = ack.time_ms;
    assert_eq!(told(&founded, 0), (Some(Some(since)), 0));
    assert_eq!(told(&founded, week).1, 1);
    assert_eq!(stable(&founded), all, "not what it lacks");
    let left = founded.device.store.segment_bytes(&home).expect("reads");
    assert!(left > 0);
    // Its word counts for nothing while it knows of devices that are not known here.
    ack.time_ms += 1;
    ack.roster.advance(
        LogId::new(phone.id(), Incarnation::from_bytes([1; 16])),
        Head {
            seq: 1,
            hash: ShortHash::from_bytes([1; 16]),
        },
    );
    keep(&mut founded, &ack);
    assert!(stable(&founded).is_empty());
}

#[test]
fn a_segment_that_waits_no_more_is_not_shown() {
    let mut founded = Founded::new();
    founded.receive(vec![], vec![Entry::DeletesConfirmed]);
    let status = founded.device.status(at(founded.now.ms + 600_000));
    assert!(status.expect("a status").notices.is_empty());
}

#[test]
fn a_device_that_was_let_in_elsewhere_gets_the_keys_of_spaces_founded_meanwhile() {
    let mut founded = Founded::new();
    let phone = DeviceKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(2));
    let device = &mut founded.device;
    let identity = device.store.identity().clone();
    // As another admin lets it in that knows none of the spaces.
    let roster = device.store.roster();
    let role = Role::Member;
    let mut entries =
        enrol_entries(roster, &identity, &phone.public(), role, &mut rng()).expect("an admin may");
    entries.retain(|entry| matches!(entry, Entry::Roster(RosterEntry::Grant(_))));
    let space = device.store.roster_space();
    let mut txn = device.store.begin().expect("begins");
    txn.append(&space, entries, 1, &mut rng()).expect("appends");
    let committed = txn.commit().expect("commits");
    device
        .committed(committed, None, founded.now)
        .expect("tells");
    let opens = |founded: &Founded| {
        let home = founded.device.home_space;
        let mut records = founded.device.store.roster().epochs(&home);
        let opened = |record: &EpochRecord| record.open(&phone.unseal).expect("opens");
        records.all(|record| opened(record).is_some())
    };
    assert!(!opens(&founded));
    founded.now = at(founded.device.next_due().expect("something to do"));
    for _ in 0..100 {
        if opens(&founded) {
            break;
        }
        founded.now = at(founded.device.next_due().expect("something to do"));
        founded.rest();
    }
    assert!(opens(&founded), "nobody seals it to the phone");
    // Once is enough.
    let head = |founded: &Founded| founded.device.store.held(&space).expect("reads");
    let before = head(&founded);
    founded.now = at(founded.now.ms + 60_000);
    founded.rest();
    assert_eq!(head(&founded), before);
}

#[test]
fn what_was_forgotten_while_the_root_was_away_is_not_deleted_with_its_files() {
    let mut founded = Founded::new();
    founded.write_tracking("a", true);
    std::fs::create_dir_all(founded.root().join("a/b")).expect("makes");
    std::fs::write(founded.root().join("a/b/file"), b"kept").expect("writes");
    founded.look_at_all();
    assert!(founded.has("a/b/file"));
    founded.closed(|founded| founded.write_tracking("a/b", false));
    std::fs::remove_dir_all(founded.root().join("a/b")).expect("removes");
    founded.look_at_all();
    assert!(founded.has("a/b/file"), "forget never deletes");
}

#[test]
fn what_became_tracked_while_the_root_was_away_is_rendered() {
    let mut founded = Founded::new();
    let file = founded.root().join("a/file");
    founded.write_tracking("a", true);
    std::fs::create_dir_all(founded.root().join("a")).expect("makes");
    std::fs::write(&file, b"kept").expect("writes");
    founded.look_at_all();
    founded.write_tracking("a", false);
    founded.look_at_all();
    std::fs::remove_dir_all(founded.root().join("a")).expect("removes");
    founded.look_at_all();
    assert!(founded.has("a/file"));
    founded.closed(|founded| founded.write_tracking("a", true));
    assert_eq!(std::fs::read(&file).expect("is there"), b"kept");
}

#[test]
fn the_loser_of_a_conflict_is_asked_for_again_after_a_start() {
    let mut founded = Founded::new();
    let file = founded.root().join("file");
    founded.write_tracking("file", true);
    std::fs::write(&file, [1; 4_000]).expect("writes");
    founded.look_at_all();
    let path = RelPath::from_bytes(b"file").expect("a path");
    let node = founded.device.lookup(&path).expect("is there");
    let home = founded.device.home_space;
    let shown = {
        let store = &founded.device.store;
        let tx = store.read().expect("reads");
        let space = store.space(&home).expect("is known");
        let tree = TreeReader::open(&tx, space.no).expect("opens");
        let state = tree.node(&node).expect("reads").expect("is there");
        state.content.expect("a file")
    };
    let log = founded.device.store.own_log();
    let held = founded.device.store.held(&home).expect("reads");
    let head = held.get(&log).expect("was written");
    // Two edits here win over one elsewhere.
    for byte in 2..4 {
        std::fs::write(&file, [byte; 4_000]).expect("writes");
        founded.look_at_all();
    }
    let keys = Keys {
        content: Some(Content {
            id: ContentId::from_bytes([9; 32]),
            size: 4_000,
            mtime_ns: 1,
            inline: None,
        }),
        ..Keys::default()
    };
    let row = Row::new(node, vec![shown.row], keys);
    let entry = Entry::Row(row.to_bytes());
    founded.receive(vec![Dep { log, head }], vec![entry]);
    founded.look_at_all();
    let wants = |founded: &Founded| founded.device.worktrees[&home].wants_content();
    assert!(wants(&founded), "it is not asked for at all");
    founded.closed(|_| {});
    assert!(wants(&founded));
}

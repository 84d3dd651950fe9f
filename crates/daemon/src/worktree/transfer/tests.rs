use std::collections::BTreeSet;

use pacsync_protocol::crypto::SigningKey;
use pacsync_protocol::identity::DeviceName;
use pacsync_store::Store;
use pacsync_store::content::packs::{DiskFiles, PackStore};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::*;
use crate::disk::LinuxDisk;
use crate::home::{FoundOptions, Home, found};
use crate::net::Discovery;
use crate::worktree::Replica;
use crate::worktree::{Now, Tracking, Waiting};

const TIME: Now = Now {
    ms: 1_000_000,
    ns: 1_000_000_000_000,
};

/// A worktree of a device of its own, that waits for contents.
struct Place {
    store: Store,
    packs: PackStore,
    rng: ChaCha20Rng,
    worktree: Worktree,
    _dir: tempfile::TempDir,
}

fn content(number: u32) -> ContentId {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    ContentId::from_bytes(bytes)
}

fn device(seed: u8) -> Replica {
    Replica {
        device: SigningKey::from_seed(&[seed; 32]).id(),
        life: None,
    }
}

impl Place {
    fn waiting_for(count: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("creates");
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let home = Home::at(dir.path().join("home"));
        let options = FoundOptions {
            name: DeviceName::new("here").expect("a name"),
            root: root.clone(),
            listen: None,
            discovery: Discovery::Off,
        };
        let lock = home.lock().expect("locks");
        found(&lock, &options, 1, &mut rng).expect("founds");
        let opened = home.load().expect("loads");
        let mut store = home
            .open_store(opened.identity.clone(), &mut rng)
            .expect("opens");
        let files = DiskFiles::open(&home.packs_path()).expect("a directory");
        let end = store.pack_end().expect("reads");
        let (mut packs, _) = PackStore::open(Box::new(files), end).expect("opens");
        let disk = Box::new(LinuxDisk::open(&root).expect("opens"));
        let mut cx = Context {
            store: &mut store,
            packs: &mut packs,
            rng: &mut rng,
            now: TIME,
        };
        let space = opened.home_space;
        let mut worktree =
            Worktree::open(space, disk, Tracking::all(), None, &mut cx).expect("opens");
        for number in 0..count {
            let waiting = Waiting {
                size: 4_096,
                nodes: BTreeSet::new(),
                for_packs: true,
            };
            worktree.waiting.insert(content(number), waiting);
        }
        Self {
            store,
            packs,
            rng,
            worktree,
            _dir: dir,
        }
    }

    /// Asks a peer for all that it may be asked for.
    fn ask(&mut self, peer: &Replica, now_ms: u64) -> Vec<Wanted> {
        self.worktree.tidy_requests(now_ms);
        std::iter::from_fn(|| self.worktree.next_request(peer, now_ms))
            .map(|request| request.what)
            .collect()
    }

    fn lacks_all(&mut self, peer: &Replica, asked: &[Wanted], now_ms: u64) {
        for what in asked {
            let objects: Vec<_> = (0..what.len()).filter_map(|at| what.object(at)).collect();
            self.worktree.missing(peer, what, &objects, now_ms);
        }
    }
}

fn ids(asked: &[Wanted]) -> BTreeSet<ContentId> {
    let mut ids = BTreeSet::new();
    for what in asked {
        let Wanted::Contents(contents) = what else {
            panic!("{what:?}");
        };
        for id in contents {
            assert!(ids.insert(*id), "asked for twice");
        }
    }
    ids
}

#[test]
fn what_one_peer_lacks_is_asked_of_the_next_at_once_and_of_itself_later() {
    let (one, other) = (device(1), device(2));
    let mut place = Place::waiting_for(1_000);
    let now = TIME.ms;
    let asked = place.ask(&one, now);
    assert_eq!(ids(&asked).len(), 1_000);
    assert!(place.ask(&other, now).is_empty(), "it is asked for already");
    place.lacks_all(&one, &asked, now);
    assert!(place.worktree.lately_lacked(&one));
    assert!(place.ask(&one, now).is_empty(), "asked again at once");
    let asked = place.ask(&other, now);
    assert_eq!(ids(&asked).len(), 1_000, "the other one is not asked");
    place.lacks_all(&other, &asked, now);
    assert!(place.ask(&one, now).is_empty() && place.ask(&other, now).is_empty());
    // Nobody has it: one waits, and not for a moment that is over.
    let due = place.worktree.next_request_due().expect("asks again");
    assert!(due > now, "a busy loop");
    assert_eq!(ids(&place.ask(&one, due)).len(), 1_000);
}

#[test]
fn a_change_of_a_peer_makes_its_answers_void() {
    let peer = device(1);
    for change in [Worktree::peer_changed, Worktree::peer_anew] {
        let mut place = Place::waiting_for(10);
        let asked = place.ask(&peer, TIME.ms);
        place.lacks_all(&peer, &asked, TIME.ms);
        assert!(place.ask(&peer, TIME.ms).is_empty());
        change(&mut place.worktree, &peer);
        assert_eq!(ids(&place.ask(&peer, TIME.ms)).len(), 10);
    }
}

#[test]
fn what_a_lost_peer_was_asked_for_is_asked_of_another() {
    let (one, other) = (device(1), device(2));
    let mut place = Place::waiting_for(300);
    let asked = place.ask(&one, TIME.ms);
    for what in &asked {
        let objects: Vec<_> = (0..what.len()).filter_map(|at| what.object(at)).collect();
        place.worktree.not_asked(what, &objects);
    }
    place.worktree.peer_anew(&one);
    assert_eq!(ids(&place.ask(&other, TIME.ms)).len(), 300);
}

#[test]
fn at_rest_no_answer_wakes_anyone() {
    let peer = device(1);
    let mut place = Place::waiting_for(10);
    let asked = place.ask(&peer, TIME.ms);
    place.lacks_all(&peer, &asked, TIME.ms);
    place.worktree.waiting.clear();
    place.worktree.tidy_requests(TIME.ms);
    assert_eq!(place.worktree.next_request_due(), None);
}

#[test]
fn bytes_of_another_name_are_refused_and_asked_of_another() {
    let (peer, other) = (device(1), device(2));
    let mut place = Place::waiting_for(3);
    let asked = place.ask(&peer, TIME.ms);
    let mut cx = Context {
        store: &mut place.store,
        packs: &mut place.packs,
        rng: &mut place.rng,
        now: TIME,
    };
    let bad = |number| (ObjectId::Content(content(number)), Item::Whole(vec![1]));
    let items = (0..3).map(bad).collect();
    let taken = place.worktree.arrived(&mut cx, &peer, &asked[0], items);
    assert!(taken.expect("stores").is_err());
    // Also what came with it and was not looked at any more.
    assert_eq!(ids(&place.ask(&other, TIME.ms)).len(), 3);
}

#[test]
fn a_version_that_found_no_room_is_asked_for_again_later() {
    let peer = device(1);
    let mut place = Place::waiting_for(0);
    let bytes = vec![5; 4_096];
    let id = place.worktree.keys.content_id(&bytes);
    let waiting = Waiting {
        size: 4_096,
        nodes: BTreeSet::new(),
        for_packs: true,
    };
    place.worktree.waiting.insert(id, waiting);
    let asked = place.ask(&peer, TIME.ms);
    // No pack can be made there.
    let dir = tempfile::tempdir().expect("a directory");
    let packs = dir.path().join("packs");
    let files = DiskFiles::open(&packs).expect("a directory");
    let mut broken = PackStore::open(Box::new(files), place.store.pack_end().expect("reads"))
        .expect("opens")
        .0;
    std::fs::remove_dir_all(&packs).expect("removes");
    for (packs, kept) in [(&mut broken, false), (&mut place.packs, true)] {
        let mut cx = Context {
            store: &mut place.store,
            packs,
            rng: &mut place.rng,
            now: TIME,
        };
        let item = (ObjectId::Content(id), Item::Whole(bytes.clone()));
        let taken = place
            .worktree
            .arrived(&mut cx, &peer, &asked[0], vec![item]);
        assert_eq!(taken.expect("stores"), Ok(()));
        assert_eq!(place.worktree.wants_content(), !kept);
        let due = place.worktree.next_request_due();
        assert_eq!(due.is_some(), !kept);
        if let Some(due) = due {
            assert!(due > TIME.ms);
            assert!(place.worktree.next_request(&peer, TIME.ms).is_none());
            // If it is to be shown it is asked for all the same.
            let shown = NodeId::from_bytes([1; 16]);
            let waiting = place.worktree.waiting.get_mut(&id);
            waiting.expect("is waited for").nodes.insert(shown);
            place.worktree.transfers.more_is_wanted();
            assert!(place.worktree.next_request(&peer, TIME.ms).is_some());
            place
                .worktree
                .not_asked(&asked[0], &[ObjectId::Content(id)]);
            let waiting = place.worktree.waiting.get_mut(&id);
            waiting.expect("is waited for").nodes.clear();
            place.worktree.tidy_requests(due);
            let request = place.worktree.next_request(&peer, due).expect("asks");
            assert_eq!(request.what, asked[0]);
        }
    }
}

/// Begins a transfer of a content that is said to be so long.
fn begin(place: &mut Place, content: ContentId, size: u64) {
    let name = format!("{}t-{content}", ".pacsync~").into_bytes();
    let path = RelPath::from_bytes(&name).expect("a path");
    let record = TransferRecord {
        parent: NodeId::ROOT,
        name,
        size,
        target: None,
    };
    let worktree = &mut place.worktree;
    let file = worktree.disk.create(&path, 0o600).expect("creates");
    let target = path.clone();
    let transfers = &mut worktree.transfers;
    transfers.begin(content, record, path, target, file);
}

#[test]
fn what_nobody_has_keeps_nothing_else_from_coming() {
    let peer = device(1);
    let mut place = Place::waiting_for(0);
    for number in 0..ACTIVE_MAX as u32 {
        assert!(!place.worktree.transfers.is_full());
        begin(&mut place, content(number), 1 << 20);
    }
    assert!(place.worktree.transfers.is_full());
    // Another one waits for a place.
    let node = NodeId::from_bytes([3; 16]);
    let waiting = Waiting {
        size: 1 << 20,
        nodes: [node].into(),
        for_packs: false,
    };
    place.worktree.waiting.insert(content(99), waiting);
    let asked = place.ask(&peer, TIME.ms);
    assert_eq!(ids(&asked).len(), ACTIVE_MAX);
    assert!(!place.worktree.ready.contains(&node));
    place.lacks_all(&peer, &asked, TIME.ms);
    assert!(!place.worktree.transfers.is_full());
    assert!(place.worktree.ready.contains(&node), "nobody begins it");
    // They are asked for again all the same.
    let due = place.worktree.next_request_due().expect("asks again");
    assert_eq!(ids(&place.ask(&peer, due)).len(), ACTIVE_MAX);
}

#[test]
fn whose_manifests_were_made_up_is_not_asked_for_that_content_again() {
    let (liar, honest) = (device(1), device(2));
    let mut place = Place::waiting_for(0);
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    let mut source = bytes.as_slice();
    let scanned =
        pacsync_store::content::scan_content(&mut source, bytes.len() as u64, &place.worktree.keys);
    let manifest = scanned.expect("reads").manifest.expect("is big").top.bytes;
    let other = content(7);
    begin(&mut place, other, bytes.len() as u64);
    let now = TIME.ms;
    let asked = place.ask(&liar, now);
    assert_eq!(ids(&asked).len(), 1);
    let mut cx = Context {
        store: &mut place.store,
        packs: &mut place.packs,
        rng: &mut place.rng,
        now: TIME,
    };
    let item = (ObjectId::Content(other), Item::Manifest(manifest));
    let taken = place
        .worktree
        .arrived(&mut cx, &liar, &asked[0], vec![item]);
    assert_eq!(taken.expect("stores"), Ok(()));
    // All of it came, and is another content.
    place.worktree.transfers.disbelieve(&other, now);
    let fetch = place
        .worktree
        .transfers
        .fetch_mut(&other)
        .expect("is there");
    fetch.begin_again(0);
    assert!(place.ask(&liar, now).is_empty(), "asked again");
    let later = place.worktree.next_request_due().expect("some day");
    assert!(later >= now + DISBELIEF_MS);
    assert_eq!(ids(&place.ask(&honest, now)).len(), 1);
}

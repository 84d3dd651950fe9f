use std::path::PathBuf;

use pacsync_protocol::SpaceId;
use pacsync_protocol::content::ObjectId;
use pacsync_protocol::crypto::SigningKey;
use pacsync_protocol::identity::DeviceName;
use pacsync_protocol::row::{At, Keys, Name};
use pacsync_protocol::segment::Entry;
use pacsync_protocol::session::Wanted;
use pacsync_protocol::wire::Item;
use pacsync_store::Store;
use pacsync_store::content::packs::MemoryFiles;
use pacsync_store::tree::{TreeReader, TreeStats};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::*;
use crate::disk::LinuxDisk;
use crate::home::{FoundOptions, Home, found};
use crate::net::Discovery;
use crate::worktree::Replica;
use crate::worktree::{Context, Now, Tracking};

fn at(ms: u64) -> Now {
    Now {
        ms,
        ns: i64::try_from(ms).unwrap_or(i64::MAX) * 1_000_000,
    }
}

/// A worktree, and rows and contents from elsewhere.
struct Place {
    store: Store,
    packs: PackStore,
    files: MemoryFiles,
    rng: ChaCha20Rng,
    worktree: Worktree,
    space: SpaceId,
    root: PathBuf,
    now: Now,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
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
        let files = MemoryFiles::default();
        let (mut packs, _) = PackStore::open(Box::new(files.clone()), None).expect("opens");
        let disk = Box::new(LinuxDisk::open(&root).expect("opens"));
        let now = at(1_000_000);
        let mut cx = Context {
            store: &mut store,
            packs: &mut packs,
            rng: &mut rng,
            now,
        };
        let space = opened.home_space;
        let worktree = Worktree::open(space, disk, Tracking::all(), None, &mut cx).expect("opens");
        let mut place = Self {
            store,
            packs,
            files,
            rng,
            worktree,
            space,
            root,
            now,
            _dir: dir,
        };
        place.rest();
        place
    }

    /// One step; gives the number of commits.
    fn step(&mut self) -> usize {
        self.now = at(self.now.ms + 10);
        let mut cx = Context {
            store: &mut self.store,
            packs: &mut self.packs,
            rng: &mut self.rng,
            now: self.now,
        };
        self.worktree.step(&mut cx).expect("steps").committed.len()
    }

    /// Steps until nothing is to do but to wait for content or for a time to come.
    fn rest(&mut self) {
        for _ in 0..2_000 {
            self.step();
            if !self.worktree.is_busy(self.now) && self.worktree.is_scanned() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn content(&self, text: &str, mtime_ns: i64) -> Content {
        Content {
            id: self.worktree.keys.content_id(text.as_bytes()),
            size: text.len() as u64,
            mtime_ns,
            inline: (text.len() <= INLINE_MAX).then(|| text.into()),
        }
    }

    /// Takes rows in and tells the worktree.
    fn hear(&mut self, rows: &[&Row]) {
        let entries = rows.iter().map(|row| Entry::Row(row.to_bytes())).collect();
        let mut txn = self.store.begin().expect("begins");
        txn.append(&self.space, entries, 1, &mut self.rng)
            .expect("appends");
        let changed = txn.commit().expect("commits").changed;
        self.worktree
            .mark(changed.into_iter().map(|(_, node)| node));
    }

    /// A file, and concurrent edits of it.
    fn hear_edits(&mut self, number: u8, base: &str, sides: &[&str]) {
        let node = NodeId::from_bytes([number; 16]);
        let stamp = self.store.clock(&self.space).expect("reads") + 1;
        let birth = Row::new(
            node,
            vec![],
            Keys {
                kind: Some(Kind::File),
                at: Some(At {
                    parent: NodeId::ROOT,
                    name: Name::new(format!("file-{number}")).expect("a name"),
                    stamp,
                }),
                content: Some(self.content(base, 1)),
                ..Keys::default()
            },
        );
        let mut rows = vec![birth.clone()];
        for (number, side) in sides.iter().enumerate() {
            let keys = Keys {
                content: Some(self.content(side, 2 + number as i64)),
                ..Keys::default()
            };
            rows.push(Row::new(node, vec![birth.id()], keys));
        }
        self.hear(&rows.iter().collect::<Vec<_>>());
    }

    /// What a peer is asked for.
    fn asked(&mut self, peer: &Replica) -> BTreeSet<ContentId> {
        self.worktree.tidy_requests(self.now.ms);
        let mut asked = BTreeSet::new();
        while let Some(request) = self.worktree.next_request(peer, self.now.ms) {
            let Wanted::Contents(ids) = request.what else {
                panic!("{request:?}");
            };
            asked.extend(ids);
        }
        asked
    }

    fn arrives(&mut self, peer: &Replica, text: &str) {
        let id = self.content(text, 0).id;
        let items = vec![(ObjectId::Content(id), Item::Whole(text.into()))];
        let mut cx = Context {
            store: &mut self.store,
            packs: &mut self.packs,
            rng: &mut self.rng,
            now: self.now,
        };
        self.worktree
            .arrived(&mut cx, peer, &Wanted::Contents(vec![id]), items)
            .expect("stores")
            .expect("is taken");
        self.rest();
    }

    fn shows(&self, number: u8) -> Option<String> {
        std::fs::read_to_string(self.root.join(format!("file-{number}"))).ok()
    }

    fn stats(&self) -> TreeStats {
        let tx = self.store.read().expect("reads");
        let tree = TreeReader::open(&tx, self.worktree.no).expect("opens");
        tree.stats().expect("reads")
    }
}

fn peer() -> Replica {
    Replica {
        device: SigningKey::from_seed(&[1; 32]).id(),
        life: None,
    }
}

/// Long enough not to ride in a row.
fn text(changed: &[(usize, &str)]) -> String {
    (0..200)
        .map(
            |number| match changed.iter().find(|(at, _)| *at == number) {
                Some((_, text)) => format!("{text}\n"),
                None => format!("line number {number}\n"),
            },
        )
        .collect()
}

#[test]
fn a_merge_waits_for_what_it_takes_and_nothing_waits_for_it() {
    let (base, one, other) = (text(&[]), text(&[(3, "one")]), text(&[(150, "other")]));
    let both = text(&[(3, "one"), (150, "other")]);
    let all = [&base, &one, &other];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
        let mut place = Place::new();
        place.hear_edits(1, &base, &[&one, &other]);
        place.rest();
        let wanted = place.asked(&peer());
        assert_eq!(wanted.len(), 3, "sides and base");
        for (nth, which) in order.into_iter().enumerate() {
            assert_eq!(place.stats().conflicts, 1);
            assert_ne!(place.shows(1).as_ref(), Some(&both));
            if place.shows(1).is_some() {
                assert!(place.worktree.is_applied(), "it waits for a merge");
            }
            place.arrives(&peer(), all[which]);
            assert_eq!(place.stats().conflicts == 0, nth == 2);
        }
        assert_eq!(place.shows(1), Some(both.clone()));
        assert!(place.worktree.is_applied() && !place.worktree.wants_content());
        // Nothing follows from it.
        place.worktree.mark([NodeId::from_bytes([1; 16])]);
        assert_eq!(place.step(), 0);
    }
}

#[test]
fn a_base_that_nobody_has_is_not_asked_for_without_end() {
    let (base, one, other) = (text(&[]), text(&[(3, "one")]), text(&[(150, "other")]));
    let mut place = Place::new();
    place.hear_edits(1, &base, &[&one, &other]);
    place.rest();
    place.asked(&peer());
    place.arrives(&peer(), &one);
    place.arrives(&peer(), &other);
    let id = place.content(&base, 0).id;
    let mut times = 0;
    while place.worktree.wants_content() {
        let object = [ObjectId::Content(id)];
        place
            .worktree
            .missing(&peer(), &Wanted::Contents(vec![id]), &object, place.now.ms);
        times += 1;
        assert!(times < 100, "asked for ever");
    }
    assert!(times > 3, "given up at once");
    assert_eq!(place.stats().conflicts, 1);
    // With the next side it is asked for again.
    let third = text(&[(80, "third")]);
    let keys = Keys {
        content: Some(place.content(&third, 9)),
        ..Keys::default()
    };
    let node = NodeId::from_bytes([1; 16]);
    let tx = place.store.read().expect("reads");
    let births = TreeReader::open(&tx, place.worktree.no)
        .expect("opens")
        .births(&node)
        .expect("reads");
    drop(tx);
    place.hear(&[&Row::new(node, births, keys)]);
    place.rest();
    place.now = at(place.now.ms + 100_000);
    assert!(place.asked(&peer()).contains(&id));
    place.arrives(&peer(), &third);
    place.arrives(&peer(), &base);
    let all = text(&[(3, "one"), (80, "third"), (150, "other")]);
    assert_eq!(place.shows(1), Some(all));
}

#[test]
fn what_does_not_merge_is_tried_once() {
    let mut place = Place::new();
    place.hear_edits(1, "12\n", &["13\n", "14\n"]);
    place.rest();
    assert_eq!(place.stats().conflicts, 1);
    let spent = |place: &mut Place| {
        place.worktree.merging.begin_round();
        place.worktree.mark([NodeId::from_bytes([1; 16])]);
        assert_eq!(place.step(), 0);
        place.worktree.merging.spent
    };
    assert_eq!(spent(&mut place), 0, "tried again");
    place.worktree.merging.left.clear();
    assert!(spent(&mut place) > 0, "never tried");
}

#[test]
fn many_merges_are_made_in_bounded_rounds() {
    let mut place = Place::new();
    for number in 1..=200 {
        let lines = |one: &str, other: &str| format!("{one}\n1\n2\n3\n{number}\n{other}\n");
        let (base, one, other) = (lines("a", "b"), lines("A", "b"), lines("a", "B"));
        place.hear_edits(number, &base, &[&one, &other]);
    }
    let mut before = place.stats().conflicts;
    assert_eq!(before, 200);
    while place.stats().conflicts > 0 {
        place.step();
        let now = place.stats().conflicts;
        assert!(before - now <= 70, "{} at once", before - now);
        before = now;
    }
    place.rest();
    assert_eq!(place.shows(200).as_deref(), Some("A\n1\n2\n3\n200\nB\n"));
}

#[test]
fn without_room_in_the_packs_no_row_is_written() {
    let (base, one, other) = (text(&[]), text(&[(3, "one")]), text(&[(150, "other")]));
    let both = text(&[(3, "one"), (150, "other")]);
    let mut place = Place::new();
    place.hear_edits(1, &base, &[&one, &other]);
    place.rest();
    place.asked(&peer());
    place.arrives(&peer(), &base);
    place.arrives(&peer(), &one);
    // What comes last is either for the disk or for the packs.
    let mut cleared = false;
    place.files.set_capacity(Some(0));
    place.arrives(&peer(), &other);
    for _ in 0..1_000 {
        assert!(
            cleared || place.stats().conflicts == 1,
            "a row without content"
        );
        if place.shows(1).as_ref() == Some(&both) {
            return;
        }
        if place.now.ms > 1_005_000 && !cleared {
            place.files.set_capacity(None);
            cleared = true;
        }
        for asked in place.asked(&peer()) {
            for text in [&base, &one, &other] {
                if place.content(text, 0).id == asked {
                    place.arrives(&peer(), text);
                }
            }
        }
        place.now = at(place.now.ms + 100);
        place.step();
    }
    panic!("never merged");
}

//! Worktrees on disks that can do less than Linux's own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use pacsync_protocol::row::{At, Content, INLINE_MAX, Keys, Kind, Life, Name, Row};
use pacsync_protocol::segment::Entry;
use pacsync_store::content::packs::MemoryFiles;
use pacsync_store::tree::{NodeState, TreeReader};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::*;
use crate::disk::{DirIdentity, DiskFile, DiskOp, LinuxDisk, Listing, Stat};
use crate::home::{FoundOptions, Home, found};
use crate::net::Discovery;

/// What comes in the moment in which a put is about to take its path.
type Moment = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A disk as on a stick: no exchange, and names in any case are one.
struct Stick {
    disk: LinuxDisk,
    root: PathBuf,
    moment: Moment,
    /// So many renames fail.
    refuses: Arc<AtomicU32>,
}

impl Stick {
    /// The path as it is on the disk: what is there has the name that it was made with.
    fn real(&self, path: &RelPath) -> RelPath {
        let mut real = RelPath::root();
        for name in path.names() {
            let dir = self.root.join(text(real.as_bytes()));
            let listing = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let mut names = listing.map(|entry| entry.file_name().into_encoded_bytes());
            let found = names.find(|other| other.eq_ignore_ascii_case(name));
            real = real.join(found.as_deref().unwrap_or(name)).expect("a path");
        }
        real
    }

    /// Where something new of this name goes.
    fn place(&self, path: &RelPath) -> RelPath {
        let dir = self.real(&path.parent().expect("no root"));
        dir.join(path.name().expect("no root")).expect("a path")
    }

    fn vacant(&self, path: &RelPath) -> Result<RelPath, DiskError> {
        match self.disk.stat(&self.real(path))? {
            None => Ok(self.place(path)),
            Some(_) => {
                let kind = std::io::ErrorKind::AlreadyExists;
                Err(DiskError::new(DiskOp::Rename, path, kind))
            }
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("a text")
}

impl Disk for Stick {
    fn probe(&self) -> Result<Probe, DiskError> {
        Ok(Probe {
            exchange: false,
            case_sensitive: false,
            ..self.disk.probe()?
        })
    }
    fn root_identity(&self) -> Result<DirIdentity, DiskError> {
        self.disk.root_identity()
    }
    fn dir_identity(&self, dir: &RelPath) -> Result<DirIdentity, DiskError> {
        self.disk.dir_identity(&self.real(dir))
    }
    fn stat(&self, path: &RelPath) -> Result<Option<Stat>, DiskError> {
        self.disk.stat(&self.real(path))
    }
    fn list(&self, dir: &RelPath) -> Result<Listing, DiskError> {
        self.disk.list(&self.real(dir))
    }
    fn open(&self, path: &RelPath) -> Result<Box<dyn DiskFile>, DiskError> {
        self.disk.open(&self.real(path))
    }
    fn open_write(&self, path: &RelPath) -> Result<Box<dyn DiskFile>, DiskError> {
        self.disk.open_write(&self.real(path))
    }
    fn create(&self, path: &RelPath, mode: u16) -> Result<Box<dyn DiskFile>, DiskError> {
        self.disk.create(&self.vacant(path)?, mode)
    }
    fn symlink(&self, path: &RelPath, target: &[u8]) -> Result<(), DiskError> {
        self.disk.symlink(&self.vacant(path)?, target)
    }
    fn mkdir(&self, path: &RelPath, mode: u16) -> Result<(), DiskError> {
        self.disk.mkdir(&self.vacant(path)?, mode)
    }
    fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, DiskError> {
        self.disk.read_link(&self.real(path))
    }
    fn rename_noreplace(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        let is_put = is_reserved(from.name().expect("no root"));
        if is_put && !is_reserved(to.name().expect("no root")) {
            let moment = self.moment.lock().expect("no panic").take();
            if let Some(moment) = moment {
                moment();
            }
        }
        let one_less = |left: u32| left.checked_sub(1);
        let order = Ordering::Relaxed;
        if self.refuses.fetch_update(order, order, one_less).is_ok() {
            let kind = std::io::ErrorKind::Other;
            return Err(DiskError::new(DiskOp::Rename, from, kind));
        }
        let to = self.vacant(to)?;
        self.disk.rename_noreplace(&self.real(from), &to)
    }
    fn exchange(&self, a: &RelPath, _: &RelPath) -> Result<(), DiskError> {
        let kind = std::io::ErrorKind::Unsupported;
        Err(DiskError::new(DiskOp::Exchange, a, kind))
    }
    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        self.disk.rename(&self.real(from), &self.place(to))
    }
    fn link(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError> {
        let to = self.vacant(to)?;
        self.disk.link(&self.real(from), &to)
    }
    fn unlink(&self, path: &RelPath) -> Result<(), DiskError> {
        self.disk.unlink(&self.real(path))
    }
    fn rmdir(&self, path: &RelPath) -> Result<(), DiskError> {
        self.disk.rmdir(&self.real(path))
    }
    fn set_mode(&self, path: &RelPath, mode: u16) -> Result<(), DiskError> {
        self.disk.set_mode(&self.real(path), mode)
    }
    fn set_mtime(&self, path: &RelPath, mtime_ns: i64) -> Result<(), DiskError> {
        self.disk.set_mtime(&self.real(path), mtime_ns)
    }
    fn sync_dir(&self, dir: &RelPath) -> Result<(), DiskError> {
        self.disk.sync_dir(&self.real(dir))
    }
    fn sync_fs(&self, dir: &RelPath) -> Result<(), DiskError> {
        self.disk.sync_fs(&self.real(dir))
    }
    fn free_space(&self) -> Result<u64, DiskError> {
        self.disk.free_space()
    }
    fn watch(&self, dir: &RelPath) -> Result<(), DiskError> {
        self.disk.watch(&self.real(dir))
    }
    fn unwatch(&self, dir: &RelPath) {
        self.disk.unwatch(&self.real(dir));
    }
}

/// A worktree on such a disk, and rows from elsewhere.
struct Place {
    store: Store,
    packs: PackStore,
    rng: ChaCha20Rng,
    worktree: Worktree,
    space: SpaceId,
    root: PathBuf,
    moment: Moment,
    refuses: Arc<AtomicU32>,
    now: Now,
    _dir: tempfile::TempDir,
}

fn at(ms: u64) -> Now {
    Now {
        ms,
        ns: i64::try_from(ms).unwrap_or(i64::MAX) * 1_000_000,
    }
}

fn open(
    root: &Path,
    moment: &Moment,
    refuses: &Arc<AtomicU32>,
    space: SpaceId,
    cx: &mut Context<'_>,
) -> Worktree {
    let disk = Stick {
        disk: LinuxDisk::open(root).expect("opens"),
        root: root.to_owned(),
        moment: Arc::clone(moment),
        refuses: Arc::clone(refuses),
    };
    Worktree::open(space, Box::new(disk), Tracking::all(), None, cx).expect("opens")
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("creates");
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let home = Home::at(dir.path().join("home"));
        let options = FoundOptions {
            name: pacsync_protocol::identity::DeviceName::new("here").expect("a name"),
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
        let (mut packs, _) = PackStore::open(Box::new(files), None).expect("opens");
        let moment = Moment::default();
        let refuses = Arc::default();
        let now = at(1_000_000);
        let mut cx = Context {
            store: &mut store,
            packs: &mut packs,
            rng: &mut rng,
            now,
        };
        let space = opened.home_space;
        let worktree = open(&root, &moment, &refuses, space, &mut cx);
        let mut place = Self {
            store,
            packs,
            rng,
            worktree,
            space,
            root,
            moment,
            refuses,
            now,
            _dir: dir,
        };
        place.rest();
        place
    }

    fn cx<'a>(
        store: &'a mut Store,
        packs: &'a mut PackStore,
        rng: &'a mut ChaCha20Rng,
        now: Now,
    ) -> Context<'a> {
        Context {
            store,
            packs,
            rng,
            now,
        }
    }

    /// Steps until nothing is to do but to wait for a time to come.
    fn rest(&mut self) {
        for _ in 0..2_000 {
            self.now = at(self.now.ms + 10);
            let (store, packs, rng) = (&mut self.store, &mut self.packs, &mut self.rng);
            let mut cx = Self::cx(store, packs, rng, self.now);
            self.worktree.step(&mut cx).expect("steps");
            let calm = self.worktree.is_scanned() && self.worktree.stalled.is_empty();
            if calm && !self.worktree.is_busy(self.now) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// The process dies in that moment, and another begins.
    fn die_and_begin(&mut self) {
        let dies = catch_unwind(AssertUnwindSafe(|| self.rest()));
        assert!(dies.is_err(), "the moment did not come");
        let (store, packs, rng) = (&mut self.store, &mut self.packs, &mut self.rng);
        let mut cx = Self::cx(store, packs, rng, self.now);
        self.worktree = open(&self.root, &self.moment, &self.refuses, self.space, &mut cx);
        self.rest();
    }

    fn content(&self, bytes: &[u8]) -> Option<Content> {
        assert!(bytes.len() <= INLINE_MAX, "nobody has it");
        Some(Content {
            id: self.worktree.keys.content_id(bytes),
            size: bytes.len() as u64,
            mtime_ns: 1,
            inline: Some(bytes.into()),
        })
    }

    fn at(&self, parent: NodeId, name: &str) -> Option<At> {
        let stamp = self.store.clock(&self.space).expect("reads") + 1;
        let name = Name::new(name).expect("a name");
        Some(At {
            parent,
            name,
            stamp,
        })
    }

    fn birth(&self, number: u8, name: &str, bytes: Option<&[u8]>) -> Row {
        let keys = Keys {
            kind: Some(bytes.map_or(Kind::Dir, |_| Kind::File)),
            at: self.at(NodeId::ROOT, name),
            content: bytes.and_then(|bytes| self.content(bytes)),
            ..Keys::default()
        };
        Row::new(node(number), vec![], keys)
    }

    fn edit(&self, of: &Row, bytes: &[u8]) -> Row {
        let keys = Keys {
            content: self.content(bytes),
            ..Keys::default()
        };
        Row::new(of.node, vec![of.id()], keys)
    }

    /// Takes rows in, tells the worktree, and waits.
    fn hear(&mut self, rows: &[&Row]) {
        self.hear_only(rows);
        self.rest();
    }

    fn hear_only(&mut self, rows: &[&Row]) {
        let entries = rows.iter().map(|row| Entry::Row(row.to_bytes())).collect();
        let mut txn = self.store.begin().expect("begins");
        txn.append(&self.space, entries, 1, &mut self.rng)
            .expect("appends");
        let changed = txn.commit().expect("commits").changed;
        self.worktree
            .mark(changed.into_iter().map(|(_, node)| node));
    }

    /// Somebody saves a file when the next put is about to take its path.
    fn save_in_the_moment(&mut self, name: &str, bytes: &'static [u8], dies: bool) {
        let path = self.root.join(name);
        let save = move || {
            assert!(!path.exists(), "something stands there");
            std::fs::write(path, bytes).expect("writes");
            assert!(!dies, "the process dies");
        };
        *self.moment.lock().expect("no panic") = Some(Box::new(save));
    }

    fn state(&self, number: u8) -> NodeState {
        let tx = self.store.read().expect("reads");
        let tree = TreeReader::open(&tx, self.worktree.no).expect("opens");
        let id = tree.representative(&node(number)).expect("reads");
        tree.node(&id).expect("reads").expect("is there")
    }

    /// All contents that stand side by side.
    fn values(&self, number: u8) -> BTreeSet<Vec<u8>> {
        let state = self.state(number);
        let shown = state.content.map(|shown| shown.content);
        let losers = state.losers.into_iter().map(|(_, content)| content);
        let all = shown.into_iter().chain(losers);
        all.filter_map(|content| content.inline).collect()
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(name)).ok()
    }
}

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn all(values: &[&[u8]]) -> BTreeSet<Vec<u8>> {
    values.iter().map(|value| value.to_vec()).collect()
}

/// A file whose version here is about to give way to another one that was made beside it.
fn about_to_give_way(place: &mut Place) {
    let birth = place.birth(1, "file", Some(b"\0first"));
    place.hear(&[&birth]);
    let here = place.edit(&birth, b"\0here");
    place.hear(&[&here]);
    let there = place.edit(&birth, b"\0there");
    let again = place.edit(&there, b"\0there again");
    place.hear_only(&[&there, &again]);
}

#[test]
fn what_is_saved_while_nothing_stands_there_overwrites_neither() {
    for dies in [false, true] {
        let mut place = Place::new();
        about_to_give_way(&mut place);
        place.save_in_the_moment("file", b"\0saved", dies);
        match dies {
            true => place.die_and_begin(),
            false => place.rest(),
        }
        let expected = all(&[b"\0here", b"\0there again", b"\0saved"]);
        assert_eq!(place.values(1), expected, "dies: {dies}");
        assert_eq!(place.read("file").as_deref(), Some("\0there again"));
    }
}

#[test]
fn what_is_saved_while_nothing_stands_there_is_one_of_files_that_became_one() {
    for dies in [false, true] {
        let mut place = Place::new();
        let here = place.birth(1, "file", Some(b"\0here"));
        place.hear(&[&here]);
        let born = place.birth(2, "file", Some(b"\0there"));
        let again = place.edit(&born, b"\0there again");
        let into = Keys {
            into: Some(node(1)),
            ..Keys::default()
        };
        let into = Row::new(node(2), vec![born.id()], into);
        place.hear_only(&[&born, &again, &into]);
        place.save_in_the_moment("file", b"\0saved", dies);
        match dies {
            true => place.die_and_begin(),
            false => place.rest(),
        }
        let expected = all(&[b"\0here", b"\0there again", b"\0saved"]);
        assert_eq!(place.values(1), expected, "dies: {dies}");
    }
}

#[test]
fn what_is_saved_over_a_version_that_gives_way_to_its_next_merges_with_that() {
    for dies in [false, true] {
        let mut place = Place::new();
        let birth = place.birth(1, "file", Some(b"1\n2\n3\n4\n5\n6\n"));
        place.hear(&[&birth]);
        let next = place.edit(&birth, b"one\n2\n3\n4\n5\n6\n");
        place.hear_only(&[&next]);
        place.save_in_the_moment("file", b"1\n2\n3\n4\n5\nsix\n", dies);
        match dies {
            true => place.die_and_begin(),
            false => place.rest(),
        }
        place.rest();
        assert_eq!(
            place.read("file").as_deref(),
            Some("one\n2\n3\n4\n5\nsix\n")
        );
    }
}

#[test]
fn what_could_not_be_put_back_was_not_deleted() {
    let mut place = Place::new();
    let birth = place.birth(1, "file", Some(b"first"));
    place.hear(&[&birth]);
    place.hear_only(&[&place.edit(&birth, b"next")]);
    let refuses = Arc::clone(&place.refuses);
    let refuse = move || refuses.store(2, Ordering::Relaxed);
    *place.moment.lock().expect("no panic") = Some(Box::new(refuse));
    place.rest();
    assert_eq!(place.read("file"), None);
    let (root, now) = (RelPath::root(), place.now);
    place.worktree.request_scan(root, now);
    place.rest();
    place.now = at(place.now.ms + RETRY_MS);
    place.rest();
    assert_eq!(place.read("file").as_deref(), Some("next"));
    let tx = place.store.read().expect("reads");
    let tree = TreeReader::open(&tx, place.worktree.no).expect("opens");
    for item in tree.rows().expect("reads") {
        let (_, row) = item.expect("a row");
        assert_ne!(row.keys.life, Some(Life::Dead));
    }
}

#[test]
fn what_was_moved_into_a_directory_that_could_not_be_shown_goes_there_with_it() {
    let mut place = Place::new();
    let small = place.birth(1, "d", Some(b"stands there"));
    let file = place.birth(2, "file", Some(b"moves"));
    place.hear(&[&small, &file]);
    let dir = place.birth(3, "D", None);
    place.hear(&[&dir]);
    let into = Keys {
        at: place.at(node(3), "file"),
        ..Keys::default()
    };
    let into = Row::new(node(2), vec![file.id()], into);
    place.hear(&[&into]);
    assert_eq!(place.read("file").as_deref(), Some("moves"), "has no place");
    let dead = Keys {
        life: Some(Life::Dead),
        ..Keys::default()
    };
    let dead = Row::new(node(1), vec![small.id()], dead);
    place.hear(&[&dead]);
    assert_eq!(place.read("D/file").as_deref(), Some("moves"));
    assert_eq!(place.read("file"), None);
}

#[test]
fn nothing_waits_for_what_lies_in_a_directory_that_cannot_be_shown() {
    let mut place = Place::new();
    place.hear(&[&place.birth(1, "d", Some(b"stands there"))]);
    let dir = place.birth(3, "D", None);
    let file = Keys {
        at: place.at(node(3), "file"),
        ..place.birth(2, "file", Some(b"within")).keys
    };
    // The file's turn is before that of its directory.
    place.hear(&[&dir, &Row::new(node(2), vec![], file)]);
    assert!(place.worktree.is_applied());
}

#[test]
fn what_went_with_a_directory_is_no_file_of_another_case() {
    let mut place = Place::new();
    place.hear(&[&place.birth(1, "notes", Some(b"a file"))]);
    // What a directory told that has just given way to the file.
    let gone = RelPath::from_bytes(b"Notes/gone").expect("a path");
    place.worktree.event(FsEvent::Touched(gone), place.now);
    place.rest();
    let tx = place.store.read().expect("reads");
    let tree = TreeReader::open(&tx, place.worktree.no).expect("opens");
    assert_eq!(tree.stats().expect("reads").files, 1);
}

#[test]
fn an_edit_of_a_file_that_became_another_one_takes_no_place_from_that() {
    let mut place = Place::new();
    let one = place.birth(1, "one", Some(b"\0one"));
    place.hear(&[&one]);
    let other = place.birth(2, "other", Some(b"\0other"));
    place.hear(&[&other]);
    let into = Keys {
        into: Some(node(1)),
        ..Keys::default()
    };
    place.hear_only(&[&Row::new(node(2), vec![other.id()], into)]);
    std::fs::write(place.root.join("other"), b"\0edited").expect("writes");
    let (root, now) = (RelPath::root(), place.now);
    place.worktree.request_scan(root, now);
    place.rest();
    assert_eq!(place.values(1), all(&[b"\0one", b"\0edited"]));
    assert_eq!(place.read("one"), None, "it is at the other's place");
    let tx = place.store.read().expect("reads");
    let tree = TreeReader::open(&tx, place.worktree.no).expect("opens");
    assert_eq!(tree.stats().expect("reads").files, 1);
}

#[test]
fn what_was_set_aside_is_found_in_a_directory_that_was_moved_after_a_crash() {
    let mut place = Place::new();
    let dir = place.birth(3, "d", None);
    place.hear(&[&dir]);
    let birth = Keys {
        at: place.at(node(3), "file"),
        ..place.birth(1, "file", Some(b"\0first")).keys
    };
    let birth = Row::new(node(1), vec![], birth);
    place.hear(&[&birth]);
    place.hear_only(&[&place.edit(&birth, b"\0next")]);
    let root = place.root.clone();
    let moment = move || {
        // Somebody still had the old file open.
        for entry in std::fs::read_dir(root.join("d")).expect("lists").flatten() {
            if entry.file_name().as_encoded_bytes().ends_with(b"o") {
                std::fs::write(entry.path(), b"\0unseen").expect("writes");
            }
        }
        std::fs::rename(root.join("d"), root.join("e")).expect("moves");
        panic!("the process dies");
    };
    *place.moment.lock().expect("no panic") = Some(Box::new(moment));
    place.die_and_begin();
    for _ in 0..3 {
        place.now = at(place.now.ms + DISPLACED_MS);
        place.rest();
    }
    assert_eq!(place.values(1), all(&[b"\0next", b"\0unseen"]));
    let left = std::fs::read_dir(place.root.join("e")).expect("lists");
    assert_eq!(left.count(), 1, "the file");
}

#[test]
fn what_waits_for_one_that_failed_comes_as_soon_as_that_has_gone() {
    let mut place = Place::new();
    place.hear(&[&place.birth(1, "place", Some(b"a file"))]);
    place.refuses.store(2, Ordering::Relaxed);
    let before = place.now.ms;
    // Of both the directory shows.
    place.hear(&[&place.birth(2, "place", None)]);
    assert!(place.root.join("place").is_dir());
    let took = place.now.ms - before;
    assert!((RETRY_MS..3 * RETRY_MS).contains(&took), "{took}");
}

#[test]
fn a_transfer_whose_directory_was_moved_leaves_nothing_when_it_begins_anew() {
    let mut place = Place::new();
    let dir = place.birth(1, "dir", None);
    place.hear(&[&dir]);
    let name = [RESERVED_PREFIX, TRANSFER_MARK, b"file"].concat();
    let path = RelPath::from_bytes(b"dir").expect("a path");
    let path = path.join(&name).expect("a path");
    let file = place.worktree.disk.create(&path, 0o600).expect("creates");
    let record = transfer::TransferRecord {
        parent: node(1),
        name: name.clone(),
        size: 1 << 20,
        target: None,
    };
    let content = place.worktree.keys.content_id(b"big");
    let transfers = &mut place.worktree.transfers;
    transfers.begin(content, record, path.clone(), path, file);
    std::fs::rename(place.root.join("dir"), place.root.join("moved")).expect("moves");
    let txn = place.store.begin().expect("begins");
    let mut batch = batch::Batch::open(&txn, place.worktree.no, 1, place.now).expect("opens");
    let restarted = place.worktree.restart_transfer(&mut batch, &content);
    restarted.expect("reads");
    drop(batch);
    txn.commit().expect("commits");
    place.rest();
    assert!(!place.root.join("moved").join(text(&name)).exists());
}

#[test]
fn what_is_wanted_back_is_taken_from_what_was_set_aside() {
    let mut place = Place::new();
    // No text, and too long to ride in a row.
    let bytes = [&[0xff, 0][..], &[7; 2_000]].concat();
    std::fs::write(place.root.join("file"), &bytes).expect("writes");
    let (root, now) = (RelPath::root(), place.now);
    place.worktree.request_scan(root, now);
    place.rest();
    let birth = {
        let tx = place.store.read().expect("reads");
        let tree = TreeReader::open(&tx, place.worktree.no).expect("opens");
        let mut rows = tree.rows().expect("reads").map(|item| item.expect("a row"));
        let birth = rows.find(|(_, row)| row.is_birth());
        birth.expect("was found").1
    };
    let other = place.edit(&birth, b"\0other");
    place.hear(&[&other]);
    let keys = Keys {
        content: birth.keys.content.clone(),
        ..Keys::default()
    };
    let back = Row::new(birth.node, vec![other.id()], keys);
    place.hear(&[&back]);
    place.now = at(place.now.ms + DISPLACED_MS);
    place.rest();
    let shown = std::fs::read(place.root.join("file")).expect("is there");
    assert_eq!(shown, bytes);
}

#[test]
fn a_move_replaces_no_file_that_has_got_the_number_of_the_moved_one() {
    let mut place = Place::new();
    let birth = place.birth(1, "old", Some(b"\0old"));
    place.hear(&[&birth]);
    let (old, new) = (place.root.join("old"), place.root.join("new"));
    std::fs::hard_link(&old, &new).expect("links");
    std::fs::remove_file(&old).expect("removes");
    std::fs::write(&old, b"\0replaced").expect("writes");
    std::fs::write(&new, b"\0saved").expect("writes");
    let moved = Keys {
        at: place.at(NodeId::ROOT, "new"),
        ..Keys::default()
    };
    place.hear(&[&Row::new(node(1), vec![birth.id()], moved)]);
    let tx = place.store.read().expect("reads");
    let tree = TreeReader::open(&tx, place.worktree.no).expect("opens");
    let rows = tree.rows().expect("reads").map(|item| item.expect("a row"));
    let known: BTreeSet<Vec<u8>> = rows
        .filter_map(|(_, row)| row.keys.content?.inline)
        .collect();
    assert_eq!(known, all(&[b"\0old", b"\0replaced", b"\0saved"]));
}

#[test]
fn a_file_that_was_deleted_as_it_became_another_one_is_not_shown_there() {
    let mut place = Place::new();
    let goes = place.birth(2, "goes", Some(b"\0one"));
    let edited = place.edit(&goes, b"\0two");
    place.hear(&[&goes, &edited]);
    // Placed later: both are where this one is.
    let stays = place.birth(1, "stays", Some(b"\0three"));
    place.hear(&[&stays]);
    std::fs::remove_file(place.root.join("goes")).expect("removes");
    let keys = Keys {
        into: Some(stays.node),
        ..Keys::default()
    };
    place.hear(&[&Row::new(goes.node, vec![goes.id()], keys)]);
    place.rest();
    assert_eq!(place.read("stays").as_deref(), Some("\0three"));
}

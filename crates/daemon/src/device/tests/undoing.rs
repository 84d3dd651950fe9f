//! Taking back what another device did, and restores.

use std::path::PathBuf;

use pacsync_protocol::row::{At, Kind, Life};
use pacsync_protocol::{SegmentHash, Seq};

use super::*;
use crate::control::api::{StayReason, UndoReport, UndoneKind, UndoneWhat};
use crate::control::{Command, CommandError, RestoreOrder};

/// Longer than what belongs to one batch.
const PAUSE_MS: u64 = 10_000;

/// Another device of the pac: only what it writes.
struct Phone {
    keys: DeviceKeys,
    prev: Option<(Seq, SegmentHash)>,
    /// Rows that are not sent yet.
    rows: Vec<Row>,
    stamp: u64,
}

impl Phone {
    fn enrolled(founded: &mut Founded) -> Self {
        let keys = DeviceKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(2));
        let device = &mut founded.device;
        let identity = device.store.identity().clone();
        let roster = device.store.roster();
        let public = keys.public();
        let entries = enrol_entries(roster, &identity, &public, Role::Member, &mut rng());
        let space = device.store.roster_space();
        let mut txn = device.store.begin().expect("begins");
        txn.append(&space, entries.expect("may"), 1, &mut rng())
            .expect("appends");
        let committed = txn.commit().expect("commits");
        let told = device.committed(committed, None, founded.now);
        told.expect("tells");
        Self {
            keys,
            prev: None,
            rows: vec![],
            stamp: 0,
        }
    }

    fn at(&mut self, founded: &Founded, path: &str) -> At {
        let path = RelPath::from_bytes(path.as_bytes()).expect("a path");
        let parent = path.parent().unwrap_or_default();
        let name = path.name().expect("a name");
        let space = founded.device.home_space;
        let clock = founded.device.store.clock(&space).expect("reads");
        self.stamp = self.stamp.max(clock) + 1;
        At {
            parent: founded.node(&parent),
            name: Name::new(name).expect("a name"),
            stamp: self.stamp,
        }
    }

    fn over(&mut self, founded: &Founded, path: &str, keys: Keys) {
        let path = RelPath::from_bytes(path.as_bytes()).expect("a path");
        let (node, heads) = founded.heads(&path);
        self.rows.push(Row::new(node, heads, keys));
    }

    fn edits(&mut self, founded: &Founded, path: &str, bytes: &[u8]) {
        let content = Some(founded.content(bytes));
        let keys = Keys {
            content,
            ..Keys::default()
        };
        self.over(founded, path, keys);
    }

    fn deletes(&mut self, founded: &Founded, path: &str) {
        let keys = Keys {
            life: Some(Life::Dead),
            ..Keys::default()
        };
        self.over(founded, path, keys);
    }

    fn chmods(&mut self, founded: &Founded, path: &str, mode: u16) {
        let keys = Keys {
            mode: Some(mode),
            ..Keys::default()
        };
        self.over(founded, path, keys);
    }

    fn moves(&mut self, founded: &Founded, from: &str, to: &str) {
        let keys = Keys {
            at: Some(self.at(founded, to)),
            ..Keys::default()
        };
        self.over(founded, from, keys);
    }

    /// Makes a file, or a directory where there are no bytes.
    fn makes(&mut self, founded: &Founded, path: &str, bytes: Option<&[u8]>) {
        let keys = Keys {
            kind: Some(bytes.map_or(Kind::Dir, |_| Kind::File)),
            at: Some(self.at(founded, path)),
            content: bytes.map(|bytes| founded.content(bytes)),
            mode: Some(bytes.map_or(0o755, |_| 0o644)),
            life: Some(Life::Live),
            ..Keys::default()
        };
        let mut id = [self.rows.len() as u8; 16];
        id[..8].copy_from_slice(&self.stamp.to_be_bytes());
        self.rows
            .push(Row::new(NodeId::from_bytes(id), vec![], keys));
    }

    /// All of it comes to the other device, in one segment.
    fn sends(&mut self, founded: &mut Founded) {
        let deps = founded.deps();
        self.sends_on(founded, deps);
        founded.look_at_all();
    }

    /// As if written when that was all it knew.
    fn sends_on(&mut self, founded: &mut Founded, deps: Vec<Dep>) {
        let space = founded.device.home_space;
        let (epoch, key) = founded.epoch(space);
        let entries = std::mem::take(&mut self.rows);
        let entries = entries.iter().map(|row| Entry::Row(row.to_bytes()));
        let mut entries: Vec<Entry> = entries.collect();
        entries.push(Entry::DeletesConfirmed);
        let clock = founded.device.store.clock(&space).expect("reads");
        let draft = Draft {
            space,
            log: LogId::new(self.keys.sign.id(), Incarnation::from_bytes([7; 16])),
            prev: self.prev,
            deps,
            roster_deps: vec![],
            clock: self.stamp.max(clock),
            epoch,
            time_ms: 1,
            entries,
        };
        let segment = draft.seal(&key, &self.keys.sign, &mut rng());
        let segment = segment.expect("seals");
        self.prev = Some((segment.header().last(), segment.hash()));
        let bytes = vec![segment.bytes().to_vec()];
        let device = &mut founded.device;
        let ingested = device.ingest(space, &self.keys.sign.id(), bytes, founded.now);
        let (_, refused, committed) = ingested.expect("stores");
        assert_eq!(refused, vec![]);
        let told = device.committed(committed, None, founded.now);
        told.expect("tells");
        assert_eq!(
            device.store.quarantine().expect("reads"),
            Vec::<String>::new()
        );
    }
}

impl Founded {
    /// With a phone, and files that it has, too.
    fn with_phone(files: &[(&str, &[u8])]) -> (Self, Phone) {
        let mut founded = Self::new();
        founded.track(&RelPath::root());
        for (path, bytes) in files {
            founded.save(path, bytes);
        }
        founded.look_at_all();
        let phone = Phone::enrolled(&mut founded);
        (founded, phone)
    }

    fn at_path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn save(&self, path: &str, bytes: &[u8]) {
        let path = self.at_path(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("makes");
        std::fs::write(path, bytes).expect("writes");
    }

    fn shows(&self, path: &str) -> Option<Vec<u8>> {
        std::fs::read(self.at_path(path)).ok()
    }

    fn content(&self, bytes: &[u8]) -> Content {
        let space = self.device.store.space(&self.device.home_space);
        let keys = space.expect("known").id_keys.as_ref().expect("keys");
        Content {
            id: keys.content_id(bytes),
            size: bytes.len() as u64,
            mtime_ns: 1,
            inline: Some(bytes.to_vec()),
        }
    }

    fn heads(&self, path: &RelPath) -> (NodeId, Vec<RowId>) {
        let store = &self.device.store;
        let no = store.space(&self.device.home_space).expect("known").no;
        let tx = store.read().expect("reads");
        let tree = TreeReader::open(&tx, no).expect("opens");
        let node = self.node(path);
        let state = tree.node(&node).expect("reads").expect("is there");
        (state.id, state.heads)
    }

    fn node(&self, path: &RelPath) -> NodeId {
        if path.is_root() {
            return NodeId::ROOT;
        }
        self.device.lookup(path).expect("is there")
    }

    fn pause(&mut self) {
        self.now = at(self.now.ms + PAUSE_MS);
        self.look_at_all();
    }

    fn ask<T>(
        &mut self,
        command: Command,
        mut answer: tokio::sync::oneshot::Receiver<Result<T, CommandError>>,
    ) -> Result<T, CommandError> {
        let taken = self.device.command(command, self.now);
        taken.expect("takes it");
        for _ in 0..10_000 {
            self.now = at(self.now.ms + 10);
            self.device.step(self.now).expect("steps");
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
        }
        panic!("no answer");
    }

    fn undo(&mut self) -> Result<UndoReport, CommandError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.ask(Command::Undo { reply }, answer)
    }

    /// All that is undone, by path; nothing stays.
    fn undoes(&mut self) -> Vec<(String, UndoneKind)> {
        let report = self.undo().expect("undoes");
        assert_eq!((report.stayed, report.missing), (vec![], vec![]));
        assert!(report.undone.iter().all(|undone| undone.on_disk));
        let undone = report.undone.iter();
        let mut undone: Vec<_> = undone.map(|u| (u.path.path.clone(), u.what)).collect();
        undone.sort_by(|a, b| a.0.cmp(&b.0));
        undone
    }

    /// What stays although it is undone, and why.
    fn stays(&mut self) -> Vec<(String, StayReason)> {
        let report = self.undo().expect("undoes");
        let stayed = report.stayed.iter();
        stayed.map(|s| (s.path.path.clone(), s.why)).collect()
    }
}

fn expected(undone: &[(&str, UndoneKind)]) -> Vec<(String, UndoneKind)> {
    let undone = undone.iter();
    undone
        .map(|(path, what)| ((*path).to_owned(), *what))
        .collect()
}

#[test]
fn all_that_a_batch_did_is_taken_back() {
    let (mut founded, mut phone) = Founded::with_phone(&[
        ("edited", b"mine"),
        ("deleted", b"old"),
        ("dir/below", b"below"),
        ("moved", b"moving"),
        ("mode", b"mode"),
    ]);
    phone.edits(&founded, "edited", b"theirs");
    phone.deletes(&founded, "deleted");
    phone.deletes(&founded, "dir/below");
    phone.deletes(&founded, "dir");
    phone.moves(&founded, "moved", "elsewhere");
    phone.chmods(&founded, "mode", 0o755);
    phone.makes(&founded, "new", Some(b"new"));
    phone.makes(&founded, "newdir", None);
    phone.sends(&mut founded);
    // In two segments, without a pause.
    phone.makes(&founded, "newdir/file", Some(b"deep"));
    let deps = founded.deps();
    phone.sends_on(&mut founded, deps);
    founded.look_at_all();
    assert_eq!(founded.shows("edited"), Some(b"theirs".to_vec()));
    assert_eq!(founded.shows("newdir/file"), Some(b"deep".to_vec()));
    assert!(!founded.at_path("dir").exists() && founded.at_path("elsewhere").exists());

    assert_eq!(
        founded.undoes(),
        expected(&[
            ("deleted", UndoneKind::BroughtBack),
            ("dir", UndoneKind::BroughtBack),
            ("dir/below", UndoneKind::BroughtBack),
            ("edited", UndoneKind::Content),
            ("mode", UndoneKind::Mode),
            ("moved", UndoneKind::Moved),
            ("new", UndoneKind::Deleted),
            ("newdir", UndoneKind::Deleted),
            ("newdir/file", UndoneKind::Deleted),
        ])
    );
    for (path, bytes) in [
        ("edited", &b"mine"[..]),
        ("deleted", b"old"),
        ("dir/below", b"below"),
        ("moved", b"moving"),
    ] {
        assert_eq!(founded.shows(path).as_deref(), Some(bytes), "{path}");
    }
    for path in ["new", "newdir", "elsewhere"] {
        assert!(!founded.at_path(path).exists(), "{path}");
    }
    assert!(founded.undo().is_err(), "nothing is left");
    // What was taken back is in history still.
    let (reply, answer) = tokio::sync::oneshot::channel();
    let path = founded.at_path("edited");
    let log = Command::Log {
        path,
        limit: None,
        reply,
    };
    let versions = founded.ask(log, answer).expect("a log").versions;
    assert_eq!(versions.len(), 3);
}

#[test]
fn what_was_edited_since_stays_and_is_named() {
    let (mut founded, mut phone) = Founded::with_phone(&[("a", b"a1"), ("b", b"b1"), ("c", b"c1")]);
    phone.edits(&founded, "a", b"a2");
    phone.edits(&founded, "b", b"b2");
    phone.moves(&founded, "c", "c2");
    phone.makes(&founded, "d", Some(b"d2"));
    phone.makes(&founded, "e", Some(b"e2"));
    phone.sends(&mut founded);
    founded.save("a", b"a3");
    founded.save("d", b"d3");
    founded.look_at_all();
    std::fs::rename(founded.at_path("c2"), founded.at_path("c3")).expect("renames");
    founded.look_at_all();
    // Nobody has looked at this one yet.
    founded.save("e", b"e3");
    let mut stays = founded.stays();
    stays.sort_by(|a, b| a.0.cmp(&b.0));
    let changed = ["a", "c3", "d", "e"].map(|path| (path.to_owned(), StayReason::Changed));
    assert_eq!(stays, changed);
    for (path, bytes) in [
        ("a", b"a3"),
        ("b", b"b1"),
        ("c3", b"c1"),
        ("d", b"d3"),
        ("e", b"e3"),
    ] {
        assert_eq!(founded.shows(path).as_deref(), Some(&bytes[..]), "{path}");
    }
    assert!(founded.undo().is_err());
}

#[test]
fn an_undo_after_an_undo_takes_back_the_batch_before() {
    let (mut founded, mut phone) = Founded::with_phone(&[("f", b"zero")]);
    for bytes in [&b"one"[..], b"two", b"three"] {
        phone.edits(&founded, "f", bytes);
        phone.sends(&mut founded);
        founded.pause();
    }
    for bytes in [&b"two"[..], b"one", b"zero"] {
        founded.undoes();
        assert_eq!(founded.shows("f").as_deref(), Some(bytes));
        founded.pause();
    }
    assert!(founded.undo().is_err());
    // Something new is new.
    phone.edits(&founded, "f", b"four");
    phone.sends(&mut founded);
    founded.undoes();
    assert_eq!(founded.shows("f").as_deref(), Some(&b"zero"[..]));
}

#[test]
fn what_comes_without_a_pause_is_one_batch() {
    let (mut founded, mut phone) = Founded::with_phone(&[("f", b"zero")]);
    for bytes in [&b"one"[..], b"two", b"three"] {
        phone.edits(&founded, "f", bytes);
        let deps = founded.deps();
        phone.sends_on(&mut founded, deps);
        founded.rest();
    }
    founded.undoes();
    assert_eq!(founded.shows("f").as_deref(), Some(&b"zero"[..]));
}

#[test]
fn a_restore_is_taken_back() {
    let (mut founded, mut phone) = Founded::with_phone(&[("f", b"one"), ("g", b"gone")]);
    phone.edits(&founded, "f", b"theirs");
    phone.sends(&mut founded);
    founded.pause();
    founded.save("f", b"two");
    std::fs::remove_file(founded.at_path("g")).expect("removes");
    founded.look_at_all();
    for path in ["f", "g"] {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let path = founded.at_path(path);
        let order = RestoreOrder::default();
        let restore = Command::Restore { path, order, reply };
        founded.ask(restore, answer).expect("restores");
    }
    assert_eq!(founded.shows("f").as_deref(), Some(&b"theirs"[..]));
    assert_eq!(founded.shows("g").as_deref(), Some(&b"gone"[..]));
    let report = founded.undo().expect("undoes");
    assert_eq!(report.what, UndoneWhat::Restore);
    assert_eq!(founded.shows("g"), None);
    founded.undoes();
    assert_eq!(founded.shows("f").as_deref(), Some(&b"two"[..]));
    // What the phone did has an edit after it.
    assert_eq!(founded.stays(), [("f".to_owned(), StayReason::Changed)]);
    assert_eq!(founded.shows("f").as_deref(), Some(&b"two"[..]));
}

#[test]
fn files_that_were_exchanged_are_exchanged_back() {
    let (mut founded, mut phone) = Founded::with_phone(&[("a", b"one"), ("b", b"two")]);
    phone.moves(&founded, "a", "b");
    phone.moves(&founded, "b", "a");
    phone.sends(&mut founded);
    assert_eq!(founded.shows("a").as_deref(), Some(&b"two"[..]));
    founded.undoes();
    assert_eq!(founded.shows("a").as_deref(), Some(&b"one"[..]));
    assert_eq!(founded.shows("b").as_deref(), Some(&b"two"[..]));
    founded.look_at_all();
    assert!(founded.has("a") && founded.has("b"));
}

#[test]
fn nothing_is_put_where_something_else_stands_by_now() {
    let (mut founded, mut phone) = Founded::with_phone(&[("a", b"one"), ("b", b"two")]);
    phone.moves(&founded, "a", "away");
    phone.deletes(&founded, "b");
    phone.makes(&founded, "dir", None);
    phone.sends(&mut founded);
    founded.save("a", b"another");
    founded.save("b", b"another");
    founded.save("dir/mine", b"mine");
    founded.look_at_all();
    let mut stays = founded.stays();
    stays.sort_by(|a, b| a.0.cmp(&b.0));
    let occupied = ["away", "b", "dir"].map(|path| (path.to_owned(), StayReason::Occupied));
    assert_eq!(stays, occupied);
    for (path, bytes) in [
        ("a", &b"another"[..]),
        ("away", b"one"),
        ("b", b"another"),
        ("dir/mine", b"mine"),
    ] {
        assert_eq!(founded.shows(path).as_deref(), Some(bytes), "{path}");
    }
}

#[test]
fn an_edit_that_was_merged_with_the_batch_stays() {
    let base = b"one\ntwo\nthree\nfour\nfive\n";
    let (mut founded, mut phone) = Founded::with_phone(&[("f.txt", base)]);
    let deps = founded.deps();
    phone.edits(&founded, "f.txt", b"ONE\ntwo\nthree\nfour\nfive\n");
    founded.save("f.txt", b"one\ntwo\nthree\nfour\nFIVE\n");
    founded.look_at_all();
    phone.sends_on(&mut founded, deps);
    founded.look_at_all();
    let merged = b"ONE\ntwo\nthree\nfour\nFIVE\n";
    assert_eq!(founded.shows("f.txt").as_deref(), Some(&merged[..]));
    founded.undoes();
    let mine = b"one\ntwo\nthree\nfour\nFIVE\n";
    assert_eq!(founded.shows("f.txt").as_deref(), Some(&mine[..]));
}

#[test]
fn an_undo_outlives_a_start() {
    let (mut founded, mut phone) = Founded::with_phone(&[("f", b"one")]);
    phone.edits(&founded, "f", b"two");
    phone.sends(&mut founded);
    founded.closed(|_| {});
    founded.undoes();
    founded.closed(|_| {});
    assert_eq!(founded.shows("f").as_deref(), Some(&b"one"[..]));
    assert!(founded.undo().is_err());
}

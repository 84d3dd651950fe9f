//! What history keeps of texts.

use pacsync_protocol::content::ObjectId;
use pacsync_store::content::packs::MemoryFiles;
use pacsync_store::index::{ContentTables, IndexReader};
use rand_core::RngCore;

use super::*;
use crate::control::api::RestoreReport;
use crate::control::{Command, CommandError, RestoreOrder};
use crate::disk::RelPath;

impl Founded {
    /// A device that tracks all of its root.
    pub(super) fn tracking(mut self) -> Self {
        self.device
            .set_tracked(&[RelPath::root()], true, self.now)
            .expect("tracks");
        self.rest();
        self
    }

    /// Looks at everything, and steps until that is through.
    pub(super) fn look_once(&mut self) {
        let space = self.device.home_space;
        let worktree = self.device.worktrees.get_mut(&space).expect("attached");
        worktree.request_scan(RelPath::root(), self.now);
        for _ in 0..1_000 {
            self.now = at(self.now.ms + 10);
            self.device.step(self.now).expect("steps");
            let scanned = |w: &crate::worktree::Worktree| w.is_scanned() && w.is_applied();
            if self.device.worktrees.values().all(scanned) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now.ms + ms;
        while self.now.ms < end {
            self.now = at(self.now.ms + 10);
            self.device.step(self.now).expect("steps");
        }
    }

    /// What the packs have of a text.
    pub(super) fn kept(&self, text: &[u8]) -> Option<Vec<u8>> {
        let device = &self.device;
        let space = device.store.space(&device.home_space).expect("known");
        let keys = space.id_keys.as_ref().expect("keys");
        let object = ObjectId::Content(keys.content_id(text));
        let tx = device.store.read().expect("reads");
        let tables = IndexReader::new(&tx, space.no).contents().expect("reads");
        let find = |object: &ObjectId| tables.packed(object.as_bytes()).expect("reads");
        let at = find(&object)?;
        let found = device.packs.get_version(&at, &object, keys, &find);
        Some(found.expect("is whole"))
    }
}

/// What `restore` says of the file `notes`.
fn restore(founded: &mut Founded, order: RestoreOrder) -> Result<RestoreReport, CommandError> {
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    let path = founded.root().join("notes");
    let command = Command::Restore { path, order, reply };
    founded
        .device
        .command(command, founded.now)
        .expect("takes it");
    for _ in 0..1_000 {
        founded.pass(10);
        if let Ok(answer) = answer.try_recv() {
            return answer;
        }
    }
    panic!("no answer");
}

pub(super) fn text(number: usize, len: usize) -> Vec<u8> {
    let mut text = format!("text {number}\n").into_bytes();
    let mut noise = vec![0; len];
    rng().fill_bytes(&mut noise);
    text.extend(noise.iter().map(|byte| b' ' + byte % 90));
    text
}

#[test]
fn each_version_of_a_text_is_kept_when_it_is_read() {
    let mut founded = Founded::new().tracking();
    let path = founded.root().join("notes");
    // Also those that are too long to travel in one piece.
    for len in [5_000, 400_000] {
        let versions: Vec<_> = (0..20).map(|number| text(number + len, len)).collect();
        for version in &versions {
            std::fs::write(&path, version).expect("writes");
            founded.look_once();
        }
        for version in &versions {
            assert!(founded.kept(version).as_ref() == Some(version));
        }
    }
    assert!(founded.device.packs.size().expect("lists") < 600_000);
}

#[test]
fn what_is_no_text_or_too_long_is_not_kept_while_it_stands() {
    let mut founded = Founded::new().tracking();
    let binary = [text(1, 5_000), vec![0, 0xff]].concat();
    let long = text(2, 1 << 20);
    std::fs::write(founded.root().join("binary"), &binary).expect("writes");
    std::fs::write(founded.root().join("long"), &long).expect("writes");
    founded.look_once();
    founded.pass(5_000);
    assert_eq!(founded.device.packs.size().expect("lists"), 0);
}

#[test]
fn of_many_new_files_most_are_kept_a_little_later() {
    let mut founded = Founded::new().tracking();
    let texts: Vec<_> = (0..600).map(|number| text(number, 2_000)).collect();
    for (number, text) in texts.iter().enumerate() {
        std::fs::write(founded.root().join(format!("file-{number}")), text).expect("writes");
    }
    founded.look_once();
    let kept = |founded: &Founded| texts.iter().filter(|t| founded.kept(t).is_some()).count();
    assert!((1..=100).contains(&kept(&founded)), "{}", kept(&founded));
    // An edit before that is an edit like others, but for what it replaced.
    std::fs::write(founded.root().join("file-599"), text(9_999, 2_000)).expect("writes");
    founded.look_once();
    assert!(founded.kept(&text(9_999, 2_000)).is_some());
    founded.pass(3_000);
    assert_eq!(kept(&founded), texts.len() - 1);
    let space = founded.device.home_space;
    let next = founded.device.worktrees[&space].next_due();
    assert!(
        next.is_none_or(|due| due > founded.now.ms + 60_000),
        "at rest"
    );
}

#[test]
fn packs_without_room_hold_up_no_edit_and_are_tried_again() {
    let files = MemoryFiles::default();
    let packs = files.clone();
    let mut founded = Founded::with_packs(|_| Box::new(packs)).tracking();
    files.set_capacity(Some(0));
    let path = founded.root().join("notes");
    for number in 0..3 {
        std::fs::write(&path, text(number, 3_000)).expect("writes");
        founded.look_once();
    }
    assert_eq!(founded.kept(&text(2, 3_000)), None);
    let status = founded.device.status(founded.now).expect("a status");
    assert_eq!(status.spaces[0].bytes, text(2, 3_000).len() as u64);
    files.set_capacity(None);
    founded.pass(10_000);
    assert!(founded.kept(&text(2, 3_000)).is_some());
    assert_eq!(founded.kept(&text(1, 3_000)), None, "it was never there");
}

#[test]
fn any_of_a_thousand_versions_is_read_back_and_they_take_little() {
    let mut founded = Founded::new().tracking();
    let path = founded.root().join("notes");
    let mut now = text(0, 100 << 10);
    let mut versions = vec![];
    for number in 0..1_000_usize {
        let at = number * 104_729 % now.len();
        let line = format!("an edit, number {number}\n");
        now.splice(at..(at + 10).min(now.len()), line.bytes());
        std::fs::write(&path, &now).expect("writes");
        founded.look_once();
        versions.push(now.clone());
    }
    let size = founded.device.packs.size().expect("lists");
    assert!(size < 1 << 20, "{size} bytes");
    for version in &versions {
        assert!(founded.kept(version).as_ref() == Some(version));
    }
    let device = &founded.device;
    let worktree = &device.worktrees[&device.home_space];
    let notes = RelPath::from_bytes(b"notes").expect("a path");
    let past = worktree.past_of(&device.store, &notes).expect("reads");
    assert_eq!(past.versions.len(), versions.len());
    for (found, version) in past.versions.iter().rev().zip(&versions) {
        let content = found.content.as_ref().expect("a content");
        let mut bytes = vec![];
        let read = worktree.read_content(&device.store, &device.packs, content, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        });
        assert!(read.expect("reads").expect("takes it") && bytes == *version);
    }
}

#[test]
fn a_damaged_version_is_not_restored() {
    let files = MemoryFiles::default();
    let packs = files.clone();
    let mut founded = Founded::with_packs(|_| Box::new(packs)).tracking();
    let path = founded.root().join("notes");
    for number in 0..3 {
        std::fs::write(&path, text(number, 3_000)).expect("writes");
        founded.look_once();
    }
    let end = founded.device.packs.sync().expect("durable");
    let (reopened, _) = PackStore::open(Box::new(files.clone()), Some(end)).expect("opens");
    founded.device.packs = reopened;
    // All versions rest on the first.
    files.damage(1, 100);
    let error = restore(&mut founded, RestoreOrder::default()).expect_err("it cannot be read");
    assert!(error.message.contains("not kept"), "{error}");
    assert_eq!(std::fs::read(&path).expect("is there"), text(2, 3_000));
    // What is saved again is kept again.
    std::fs::write(&path, text(0, 3_000)).expect("writes");
    founded.look_once();
    assert_eq!(founded.kept(&text(0, 3_000)), Some(text(0, 3_000)));
    restore(&mut founded, RestoreOrder::default()).expect("it can be read again");
    assert_eq!(std::fs::read(&path).expect("is there"), text(2, 3_000));
}

//! What history keeps for how long, and that nothing else goes.

use pacsync_store::content::packs::MemoryFiles;
use pacsync_store::documents::settings_id;

use super::keeping::text;
use super::*;
use crate::control::api::{KeepReport, KeepRequest};
use crate::worktree::Context;

const DAY_MS: u64 = 86_400_000;

fn binary(number: u8, len: usize) -> Vec<u8> {
    let mut bytes = text(usize::from(number), len);
    bytes.extend([0, 0xff]);
    bytes
}

impl Founded {
    /// Lets another device in, which has not said anything yet.
    fn enrol_phone(&mut self) {
        let keys = DeviceKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(2));
        let device = &mut self.device;
        let identity = device.store.identity().clone();
        let public = keys.public();
        let roster = device.store.roster();
        let entries = enrol_entries(roster, &identity, &public, Role::Member, &mut rng());
        let space = device.store.roster_space();
        let mut txn = device.store.begin().expect("begins");
        txn.append(&space, entries.expect("may"), 1, &mut rng())
            .expect("appends");
        let committed = txn.commit().expect("commits");
        let told = device.committed(committed, None, self.now);
        told.expect("tells");
    }

    /// Puts something into the packs that no row names.
    fn pack(&mut self, bytes: &[u8]) -> Content {
        let device = &mut self.device;
        let mut cx = Context {
            store: &mut device.store,
            packs: &mut device.packs,
            rng: &mut *device.rng,
            now: self.now,
        };
        let worktree = device.worktrees.get_mut(&device.home_space).expect("home");
        worktree.pack_bytes(&mut cx, bytes).expect("packs")
    }

    fn keep(&mut self, text: Option<&str>, rest: Option<&str>, percent: Option<u8>) -> KeepReport {
        let request = KeepRequest {
            name: "home".into(),
            text: text.map(str::to_owned),
            rest: rest.map(str::to_owned),
            percent,
        };
        let report = self.device.space_keep(&request, self.now);
        report.expect("is set")
    }

    /// Sweeps now.
    fn sweep(&mut self) {
        self.device.sweep_from(self.now.ms);
        while self.device.sweep(self.now).expect("sweeps") {}
    }

    /// Sweeps once a day.
    fn days(&mut self, days: u64) {
        for _ in 0..days {
            self.sweep();
            self.now = at(self.now.ms + DAY_MS);
        }
        self.sweep();
    }

    fn is_kept(&self, bytes: &[u8]) -> bool {
        match self.kept(bytes) {
            Some(kept) => {
                assert!(kept == bytes);
                true
            }
            None => false,
        }
    }

    /// Writes versions of `notes`, each kept.
    fn versions(&mut self, numbers: std::ops::Range<usize>) -> Vec<Vec<u8>> {
        let path = self.root().join("notes");
        let base = text(1, 20_000);
        let version = |number: usize| [format!("{number}\n").as_bytes(), &base].concat();
        let versions: Vec<_> = numbers.map(version).collect();
        for version in &versions {
            std::fs::write(&path, version).expect("writes");
            self.look_once();
        }
        versions
    }
}

#[test]
fn texts_stay_for_ever_and_all_else_for_thirty_days() {
    let mut founded = Founded::new().tracking();
    let texts = founded.versions(0..3);
    let (small, long) = (binary(1, 5_000), text(2, 2 << 20));
    founded.pack(&small);
    founded.pack(&text(3, 1_500_000));
    founded.pack(&long);
    founded.days(29);
    assert!(founded.is_kept(&small));
    founded.days(2);
    assert!(!founded.is_kept(&small));
    founded.days(400);
    for text in &texts {
        assert!(founded.is_kept(text));
    }
    // The chunks of what was no text are gone as well.
    let size = founded.device.packs.size().expect("lists");
    let kept = founded.keep(None, None, None);
    assert_eq!(
        (kept.text.as_str(), kept.rest.as_str(), kept.percent),
        ("forever", "30d", 10)
    );
    assert_eq!(kept.bytes, size);
    let space = founded
        .device
        .store
        .space(&founded.device.home_space)
        .expect("known");
    let txn = founded.device.store.read().expect("reads");
    let index = pacsync_store::index::IndexReader::new(&txn, space.no);
    let packed = index.packed_after(None, 1_000).expect("reads");
    assert_eq!(packed.len(), texts.len());
}

#[test]
fn what_is_too_much_for_the_disk_goes_before_its_time_the_oldest_first() {
    let files = MemoryFiles::default();
    files.set_capacity(Some(1_000_000));
    let packs = files.clone();
    let mut founded = Founded::with_packs(|_| Box::new(packs)).tracking();
    // A tenth of the disk has room for two of them.
    let [first, second, third] = [1, 2, 3].map(|number| binary(number, 45_000));
    founded.pack(&first);
    founded.days(1);
    founded.pack(&second);
    founded.days(1);
    assert!(founded.is_kept(&first) && founded.is_kept(&second));
    founded.pack(&third);
    founded.days(1);
    assert!(!founded.is_kept(&first));
    assert!(founded.is_kept(&second) && founded.is_kept(&third));
    founded.keep(None, None, Some(5));
    founded.days(1);
    assert!(!founded.is_kept(&second) && founded.is_kept(&third));
}

#[test]
fn a_clock_that_jumps_makes_nothing_old_at_once() {
    let mut founded = Founded::new().tracking();
    let small = binary(1, 5_000);
    founded.pack(&small);
    founded.sweep();
    founded.now = at(founded.now.ms + 1_000 * DAY_MS);
    founded.days(2);
    assert!(founded.is_kept(&small));
    // Nor does one that goes back keep it for longer than it is back.
    founded.now = at(founded.now.ms - 900 * DAY_MS);
    founded.days(31);
    assert!(!founded.is_kept(&small));
}

#[test]
fn a_policy_for_texts_spares_what_shows_and_what_versions_rest_on() {
    let mut founded = Founded::new().tracking();
    let old = founded.versions(0..10);
    founded.days(8);
    let new = founded.versions(10..20);
    founded.keep(Some("7d"), None, None);
    founded.now = at(founded.now.ms + 10_000);
    founded.sweep();
    let kept = |founded: &Founded, texts: &[Vec<u8>]| {
        texts.iter().filter(|text| founded.is_kept(text)).count()
    };
    assert_eq!(kept(&founded, &new), new.len());
    assert!(kept(&founded, &old) <= 6, "{}", kept(&founded, &old));
    founded.days(8);
    let left = kept(&founded, &new);
    assert!((1..=6).contains(&left), "{left}");
    assert!(founded.is_kept(&new[9]), "it shows");
}

#[test]
fn a_text_stays_while_a_device_may_work_on_it() {
    let mut founded = Founded::new().tracking();
    founded.enrol_phone();
    let texts = founded.versions(0..3);
    founded.keep(Some("0d"), None, None);
    founded.days(3);
    for text in &texts {
        assert!(founded.is_kept(text), "the phone has said nothing yet");
    }
}

#[test]
fn both_sides_of_a_conflict_stay_and_their_base() {
    let mut founded = Founded::new().tracking();
    let path = founded.root().join("notes");
    let [base, mine, theirs] = [1, 2, 3].map(|number| text(number, 5_000));
    std::fs::write(&path, &base).expect("writes");
    founded.look_once();
    let (node, row) = founded.row_at(&RelPath::from_bytes(b"notes").expect("a path"));
    let deps = founded.deps();
    let content = Some(founded.pack(&theirs));
    std::fs::write(&path, &mine).expect("writes");
    founded.look_once();
    let keys = Keys {
        content,
        ..Keys::default()
    };
    let row = Row::new(node, vec![row], keys);
    founded.receive(deps, vec![Entry::Row(row.to_bytes())]);
    founded.look_at_all();
    founded.keep(Some("0d"), Some("0d"), Some(0));
    founded.days(3);
    for side in [&base, &mine, &theirs] {
        assert!(founded.is_kept(side));
    }
}

#[test]
fn what_is_brought_back_during_a_sweep_stays() {
    // Whatever step the row comes after.
    for after in 0..12 {
        let mut founded = Founded::new().tracking();
        let path = founded.root().join("notes");
        std::fs::write(&path, "something else").expect("writes");
        founded.look_once();
        let old = binary(1, 5_000);
        let content = founded.pack(&old);
        founded.keep(None, Some("0d"), None);
        founded.sweep();
        founded.now = at(founded.now.ms + 1_000);
        founded.device.sweep_from(founded.now.ms);
        let mut more = true;
        for _ in 0..after {
            more &= founded.device.sweep(founded.now).expect("sweeps");
        }
        let was_there = founded.is_kept(&old);
        let (node, row) = founded.row_at(&RelPath::from_bytes(b"notes").expect("a path"));
        let keys = Keys {
            content: Some(content),
            ..Keys::default()
        };
        let row = Row::new(node, vec![row], keys);
        founded.receive(founded.deps(), vec![Entry::Row(row.to_bytes())]);
        while more {
            more = founded.device.sweep(founded.now).expect("sweeps");
        }
        assert_eq!(founded.is_kept(&old), was_there, "after step {after}");
    }
}

#[test]
fn packs_that_are_mostly_empty_are_copied_together() {
    let files = MemoryFiles::default();
    let packs = files.clone();
    let mut founded = Founded::with_packs(|_| Box::new(packs)).tracking();
    founded.device.packs.set_pack_max(30_000);
    let texts = founded.versions(0..2);
    let mut gone = vec![];
    for number in 0..12 {
        gone.push(binary(number, 9_000));
        founded.pack(&gone[usize::from(number)]);
        if number % 4 == 0 {
            founded.versions(usize::from(number) + 2..usize::from(number) + 4);
        }
    }
    let before = founded.device.packs.list().expect("lists").len();
    founded.keep(None, Some("0d"), None);
    founded.days(2);
    let after = founded.device.packs.list().expect("lists").len();
    assert!(after * 2 < before, "{after} of {before} packs");
    for gone in &gone {
        assert!(!founded.is_kept(gone));
    }
    for text in &texts {
        assert!(founded.is_kept(text));
    }
    // And once more after a power cut: no place that is indexed was lost.
    files.crash(&mut |_, _| 0);
    let end = founded.device.store.pack_end().expect("reads");
    let (reopened, report) = PackStore::open(Box::new(files.clone()), end).expect("opens");
    assert!(!report.missing && !report.damaged);
    founded.device.packs = reopened;
    for text in &texts {
        assert!(founded.is_kept(text));
    }
}

#[test]
fn a_disk_that_fails_while_packs_are_copied_loses_nothing() {
    use pacsync_store::content::packs::Operation;
    for operation in [
        Operation::Create,
        Operation::Write,
        Operation::Sync,
        Operation::SyncDir,
        Operation::Remove,
    ] {
        let files = MemoryFiles::default();
        let packs = files.clone();
        let mut founded = Founded::with_packs(|_| Box::new(packs)).tracking();
        founded.device.packs.set_pack_max(30_000);
        let texts = founded.versions(0..2);
        for number in 0..6 {
            founded.pack(&binary(number, 9_000));
        }
        founded.keep(None, Some("0d"), None);
        founded.days(1);
        files.fail(operation, 1);
        founded.days(1);
        founded.days(2);
        for text in &texts {
            assert!(founded.is_kept(text), "{operation:?}");
        }
        let size = founded.device.packs.size().expect("lists");
        assert!(size < 70_000, "{operation:?}: {size}");
    }
}

#[test]
fn a_change_of_the_policy_is_carried_out_soon() {
    let mut founded = Founded::new().tracking();
    let small = binary(1, 5_000);
    founded.pack(&small);
    founded.pass(1_000);
    founded.keep(None, Some("0d"), None);
    founded.pass(10_000);
    assert!(!founded.is_kept(&small));
}

#[test]
fn nonsense_changes_no_policy() {
    let mut founded = Founded::new();
    let change = |name: &str, text: Option<&str>, percent| KeepRequest {
        name: name.into(),
        text: text.map(str::to_owned),
        rest: None,
        percent,
    };
    let now = founded.now;
    for nonsense in [
        change("home", Some("soon"), None),
        change("home", Some("3d"), Some(101)),
    ] {
        let error = founded.device.space_keep(&nonsense, now);
        let error = error.expect_err("it is nonsense");
        assert_eq!(error.kind, crate::control::ErrorKind::Usage, "{error}");
    }
    let unknown = change("pictures", None, None);
    let error = founded.device.space_keep(&unknown, now);
    error.expect_err("there is no such space");
    assert_eq!(founded.keep(None, None, None).text, "forever");
}

#[test]
fn a_change_of_one_part_says_nothing_of_the_others() {
    let mut founded = Founded::new();
    founded.keep(Some("90d"), None, None);
    founded.keep(None, Some("7d"), None);
    let device = &founded.device;
    let settings = device
        .store
        .document(&device.home_space, &settings_id(&device.home_space))
        .expect("reads");
    let said: Vec<_> = settings
        .keys()
        .filter(|key| key.starts_with("keep/"))
        .collect();
    assert_eq!(said, ["keep/rest", "keep/text"]);
}

#[test]
fn what_is_put_during_a_sweep_stays() {
    // Whatever step it comes after, also into a pack that is about to be removed.
    for after in 0..24 {
        let mut founded = Founded::new().tracking();
        // The garbage begins a pack of its own, and what comes then fills it.
        founded.device.packs.set_pack_max(16_000);
        let texts = founded.versions(0..1);
        for number in 0..3 {
            founded.pack(&binary(number, 4_000));
        }
        founded.keep(None, Some("0d"), None);
        founded.sweep();
        founded.now = at(founded.now.ms + 1_000);
        founded.device.sweep_from(founded.now.ms);
        let mut more = true;
        for _ in 0..after {
            more &= founded.device.sweep(founded.now).expect("sweeps");
        }
        let fresh: Vec<_> = (10..16).map(|number| binary(number, 4_000)).collect();
        for fresh in &fresh {
            founded.pack(fresh);
        }
        while more {
            more = founded.device.sweep(founded.now).expect("sweeps");
        }
        for kept in texts.iter().chain(&fresh) {
            assert!(founded.is_kept(kept), "after step {after}");
        }
    }
}

use std::collections::BTreeMap;

use pacsync_protocol::crypto::Key;
use proptest::prelude::*;

use super::*;
use crate::content::packs::{MemoryFiles, PackEnd};

const SPACE: SpaceId = SpaceId::from_bytes([9; 16]);

/// Packs with the index that a replica has of them.
struct Bench {
    files: MemoryFiles,
    store: PackStore,
    index: BTreeMap<ObjectId, PackRef>,
    keys: IdKeys,
}

impl Bench {
    fn new() -> Self {
        let files = MemoryFiles::default();
        let (store, _) = PackStore::open(Box::new(files.clone()), None).expect("opens");
        Self {
            files,
            store,
            index: BTreeMap::new(),
            keys: IdKeys::derive(&Key::from_bytes([5; 32])),
        }
    }

    fn put(&mut self, text: &[u8], before: Option<&ContentId>) -> ContentId {
        let id = self.keys.content_id(text);
        if let std::collections::btree_map::Entry::Vacant(new) =
            self.index.clone().entry(ObjectId::Content(id))
        {
            let find = |object: &ObjectId| self.index.get(object).copied();
            let put = self
                .store
                .put_version(&SPACE, &id, text, before, &self.keys, &find);
            self.index.insert(*new.key(), put.expect("room"));
        }
        id
    }

    fn get(&self, id: &ContentId) -> Result<Vec<u8>, PackError> {
        let object = ObjectId::Content(*id);
        let at = self.index.get(&object).expect("was put");
        let find = |object: &ObjectId| self.index.get(object).copied();
        self.store.get_version(at, &object, &self.keys, &find)
    }

    /// Forgets what is in memory only.
    fn reopen(&mut self) {
        let known: PackEnd = self.store.sync().expect("durable");
        (self.store, _) =
            PackStore::open(Box::new(self.files.clone()), Some(known)).expect("opens");
    }
}

/// Words that do not compress well, as in a text.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    let mut out = Vec::with_capacity(len);
    let mut byte = [0];
    while out.len() < len {
        noise.fill(&mut byte);
        out.push(match byte[0] % 64 {
            0 => b'\n',
            1..=9 => b' ',
            other => b'A' + other % 58,
        });
    }
    out
}

fn edit(text: &mut Vec<u8>, number: u64) {
    let mut place = [0; 8];
    blake3::Hasher::new()
        .update(&number.to_be_bytes())
        .finalize_xof()
        .fill(&mut place);
    let at = (u64::from_le_bytes(place) % text.len() as u64) as usize;
    let line = format!("an edit, number {number}\n");
    text.splice(at..(at + 8).min(text.len()), line.bytes());
}

#[test]
fn a_thousand_small_edits_of_a_text_take_little_and_each_is_read_back() {
    let mut bench = Bench::new();
    let mut now = text(1, 100 << 10);
    let mut versions = vec![(bench.put(&now, None), now.clone())];
    for number in 0..1_000 {
        edit(&mut now, number);
        let before = versions.last().map(|(id, _)| *id);
        versions.push((bench.put(&now, before.as_ref()), now.clone()));
    }
    let size = bench.store.size().expect("lists");
    assert!(size < 700 << 10, "{size} bytes for 1,000 edits");
    bench.reopen();
    for (id, text) in &versions {
        assert!(bench.get(id).expect("is kept") == *text);
    }
    // Also each by itself, with nothing of the others in memory.
    for (id, text) in versions.iter().step_by(97) {
        bench.reopen();
        assert!(bench.get(id).expect("is kept") == *text);
    }
}

#[test]
fn the_longest_texts_are_deltas_too() {
    let mut bench = Bench::new();
    let mut now = text(2, 1 << 20);
    let mut before = bench.put(&now, None);
    let whole = bench.store.size().expect("lists");
    for number in 0..20 {
        // At the end: the matches are as far back as they can be.
        now.extend(format!("more, {number}\n").into_bytes());
        now.drain(..16);
        before = bench.put(&now, Some(&before));
    }
    let size = bench.store.size().expect("lists") - whole;
    assert!(size < 20 << 10, "{size} bytes for 20 edits");
    bench.reopen();
    assert!(bench.get(&before).expect("is kept") == now);
}

#[test]
fn what_has_little_in_common_is_kept_whole() {
    let mut bench = Bench::new();
    let one = bench.put(&text(3, 5_000), None);
    let other = bench.put(&text(4, 5_000), Some(&one));
    bench.reopen();
    // Damage to the first is none to the other.
    let at = bench.index[&ObjectId::Content(one)];
    bench.files.damage(at.pack, at.offset as usize + 100);
    assert!(matches!(bench.get(&one), Err(PackError::Corrupt { .. })));
    assert!(bench.get(&other).expect("is kept") == text(4, 5_000));
}

#[test]
fn a_damaged_base_is_named_and_gives_no_wrong_bytes() {
    let mut bench = Bench::new();
    let mut now = text(5, 20_000);
    let mut ids = vec![bench.put(&now, None)];
    for number in 0..12 {
        edit(&mut now, number);
        let before = ids.last().copied();
        ids.push(bench.put(&now, before.as_ref()));
    }
    bench.reopen();
    // 11 rests on 10, that on 8, that on 0.
    let object = ObjectId::Content(ids[10]);
    let at = bench.index[&object];
    bench.files.damage(at.pack, at.offset as usize + 90);
    for (number, id) in ids.iter().enumerate() {
        match (number, bench.get(id)) {
            (10, Err(PackError::Corrupt { .. })) => {}
            (11, Err(PackError::Base { base, .. })) => assert_eq!(base, object),
            (10 | 11, other) => panic!("{number}: {:?}", other.map(|bytes| bytes.len())),
            (_, found) => assert!(found.is_ok(), "{number}"),
        }
    }
    // An index that lost one says which.
    bench.index.remove(&ObjectId::Content(ids[8]));
    bench.reopen();
    let error = bench.get(&ids[9]).expect_err("rests on what is gone");
    assert!(
        matches!(&error, PackError::Base { base, why }
            if *base == ObjectId::Content(ids[8]) && matches!(**why, PackError::Missing { .. })),
        "{error}"
    );
    // What comes after a version that cannot be read is kept whole.
    edit(&mut now, 99);
    let next = bench.put(&now, Some(&ids[11]));
    bench.reopen();
    assert!(bench.get(&next).expect("is kept") == now);
}

#[test]
fn versions_are_records_like_others() {
    let mut bench = Bench::new();
    let mut now = text(6, 3_000);
    let first = bench.put(&now, None);
    edit(&mut now, 1);
    let second = bench.put(&now, Some(&first));
    bench.store.sync().expect("durable");
    let (store, report) = PackStore::open(Box::new(bench.files.clone()), None).expect("opens");
    assert_eq!((report.torn, report.damaged), (0, false));
    let found: Vec<_> = store
        .records(PackEnd::default())
        .expect("lists")
        .map(|entry| entry.map(|entry| (entry.id, entry.at, entry.size)))
        .collect::<Result<_, _>>()
        .expect("whole");
    let size = now.len() as u32;
    let of = |id| bench.index[&ObjectId::Content(id)];
    assert_eq!(found.len(), 2);
    assert_eq!(found[1], (ObjectId::Content(second), of(second), size));
    // The plain read does not take a delta for a content.
    let object = ObjectId::Content(second);
    assert!(store.get(&of(second), &object, &bench.keys).is_err());
}

#[derive(Debug, Clone)]
enum Op {
    Insert {
        at: prop::sample::Index,
        text: Vec<u8>,
    },
    Remove {
        at: prop::sample::Index,
        len: usize,
    },
    Revert {
        to: prop::sample::Index,
    },
    Replace {
        seed: u64,
        len: usize,
    },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (any::<prop::sample::Index>(), proptest::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(at, text)| Op::Insert { at, text }),
        4 => (any::<prop::sample::Index>(), 0..400usize)
            .prop_map(|(at, len)| Op::Remove { at, len }),
        1 => any::<prop::sample::Index>().prop_map(|to| Op::Revert { to }),
        1 => (any::<u64>(), 0..4_000usize).prop_map(|(seed, len)| Op::Replace { seed, len }),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The model: a list of all versions.
    #[test]
    fn every_version_is_read_back(ops in proptest::collection::vec(op(), 1..120)) {
        let mut bench = Bench::new();
        let mut now = text(7, 2_000);
        let mut all = vec![(bench.put(&now, None), now.clone())];
        for op in ops {
            match op {
                Op::Insert { at, text } => {
                    let at = at.index(now.len() + 1);
                    now.splice(at..at, text);
                }
                Op::Remove { at, len } => {
                    let at = at.index(now.len() + 1);
                    now.drain(at..(at + len).min(now.len()));
                }
                Op::Revert { to } => now = all[to.index(all.len())].1.clone(),
                Op::Replace { seed, len } => now = text(seed, len),
                Op::Reopen => bench.reopen(),
            }
            let before = all.last().map(|(id, _)| *id);
            all.push((bench.put(&now, before.as_ref()), now.clone()));
        }
        bench.reopen();
        for (id, text) in all.iter().rev() {
            prop_assert_eq!(&bench.get(id).expect("is kept"), text);
        }
    }

    #[test]
    fn arbitrary_frames_do_not_panic(
        frame in proptest::collection::vec(any::<u8>(), 0..300),
        base in proptest::collection::vec(any::<u8>(), 0..300),
        size in 0..100_000usize,
    ) {
        let id = ContentId::from_bytes([1; 32]);
        let _ = decompress(&base, &Unread { id, step: 1, size, frame });
    }
}

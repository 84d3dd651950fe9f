//! Measurements, run by hand.

use super::*;

fn file() -> Row {
    let keys = Keys {
        kind: Some(Kind::File),
        at: at(NodeId::ROOT, "f", 1),
        content: content(1),
        mode: Some(0o644),
        life: Some(Life::Live),
        ..Keys::default()
    };
    Row::new(node(1), vec![], keys)
}

fn edit(past: &Row, value: u8) -> Row {
    Row::new(
        node(1),
        vec![past.id()],
        Keys {
            content: content(value),
            ..Keys::default()
        },
    )
}

/// Prints what 100,000 files take in time and space, and 10,000 edits of one file.
#[test]
#[ignore = "a measurement, run by hand"]
#[allow(clippy::print_stderr, reason = "a measurement is for whoever runs it")]
fn measure() {
    use redb::{ReadableTableMetadata, TableHandle};
    let path = tempfile::NamedTempFile::new().expect("a file");
    let db = Database::create(path.path()).expect("a database");
    let tx = db.begin_write().expect("a transaction");
    let rows: Vec<Vec<u8>> = (0..100_000u64)
        .map(|number| {
            let hash = *blake3::hash(&number.to_le_bytes()).as_bytes();
            let id = NodeId::from_slice(&hash[..16]).expect("long enough");
            let keys = Keys {
                kind: Some(Kind::File),
                at: at(NodeId::ROOT, &format!("file-{number:06}"), number + 1),
                content: Some(Content {
                    id: ContentId::from_bytes(hash),
                    size: 4096,
                    mtime_ns: 1_700_000_000_000_000_000,
                    inline: None,
                }),
                mode: Some(0o644),
                life: Some(Life::Live),
                ..Keys::default()
            };
            Row::new(id, vec![], keys).to_bytes()
        })
        .collect();
    let start = std::time::Instant::now();
    let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
    for (seq, bytes) in rows.iter().enumerate() {
        let row = Row::from_bytes(bytes).expect("a row");
        let carrier = Carrier {
            log: 1,
            seq: seq as u64,
        };
        tree.insert(Row::id_of(bytes), &row, bytes, carrier)
            .expect("taken");
    }
    let inserted = start.elapsed();
    tree.settle(&History::default()).expect("settles");
    eprintln!("insert {inserted:?}, with settle {:?}", start.elapsed());
    drop(tree);
    tx.commit().expect("a commit");
    let tx = db.begin_read().expect("a transaction");
    let (mut stored, mut all) = (0, 0);
    for table in tx.list_tables().expect("lists") {
        let name = table.name().to_owned();
        let stats = tx
            .open_untyped_table(table)
            .expect("opens")
            .stats()
            .expect("reads");
        eprintln!("{name}: {stats:?}");
        stored += stats.stored_bytes() + stats.metadata_bytes();
        all += stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes();
    }
    eprintln!(
        "per file: {} B used, {} B with free room in pages",
        stored / 100_000,
        all / 100_000
    );
    drop(tx);

    for conflict in [false, true] {
        let db = database();
        let tx = db.begin_write().expect("a transaction");
        let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
        let birth = file();
        let put = |tree: &mut TreeTables<'_>, row: &Row, seq: u64| {
            let bytes = row.to_bytes();
            tree.insert(row.id(), row, &bytes, Carrier { log: 1, seq })
                .expect("taken");
            tree.settle(&History::default()).expect("settles");
        };
        put(&mut tree, &birth, 1);
        if conflict {
            put(&mut tree, &edit(&birth, 200), 2);
        }
        let start = std::time::Instant::now();
        let mut base = birth.id();
        for number in 0..10_000u64 {
            let past = tree.past_for_edit(&node(1), Some(&base)).expect("reads");
            let mut next = edit(&birth, 2);
            next.past = past;
            if let Some(content) = &mut next.keys.content {
                content.mtime_ns = number as i64 + 5;
                content.id = ContentId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes());
            }
            put(&mut tree, &next, number + 3);
            base = next.id();
        }
        eprintln!("10,000 edits, conflict {conflict}: {:?}", start.elapsed());
    }
}

/// Prints what 16,384 concurrent rows of each sort take on one node, in one segment.
#[test]
#[ignore = "a measurement, run by hand"]
#[allow(clippy::print_stderr, reason = "a measurement is for whoever runs it")]
fn measure_concurrent_rows() {
    for (what, every) in [("edits", u64::MAX), ("edits and deletes", 2)] {
        for rows in [4_096, 16_384] {
            let rows = concurrent(rows, every);
            let start = std::time::Instant::now();
            take_concurrent(&rows);
            eprintln!("{} {what}: {:?}", rows.len(), start.elapsed());
        }
    }
}

/// Prints what the replay of 100,000 moves of 1,000 directories takes.
#[test]
#[ignore = "a measurement, run by hand"]
#[allow(clippy::print_stderr, reason = "a measurement is for whoever runs it")]
fn measure_replay() {
    let db = database();
    let tx = db.begin_write().expect("a transaction");
    let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
    let dir = |number: u64| {
        let hash = *blake3::hash(&number.to_le_bytes()).as_bytes();
        NodeId::from_slice(&hash[..16]).expect("long enough")
    };
    let mut last: Vec<RowId> = vec![];
    for number in 0..100_000u64 {
        let (which, round) = (number % 1_000, number / 1_000);
        let parent = match which {
            0 => NodeId::ROOT,
            _ => dir((which - 1) / (round % 3 + 1)),
        };
        let past: Vec<RowId> = last.get(which as usize).copied().into_iter().collect();
        let keys = Keys {
            kind: past.is_empty().then_some(Kind::Dir),
            at: at(parent, &format!("{which}"), number + 2),
            ..Keys::default()
        };
        let row = Row::new(dir(which), past, keys);
        let bytes = row.to_bytes();
        let carrier = Carrier {
            log: 1,
            seq: number,
        };
        tree.insert(row.id(), &row, &bytes, carrier).expect("taken");
        match last.get_mut(which as usize) {
            Some(last) => *last = row.id(),
            None => last.push(row.id()),
        }
    }
    tree.settle(&History::default()).expect("settles");
    let late = Keys {
        at: at(NodeId::ROOT, "late", 500),
        ..Keys::default()
    };
    let row = Row::new(dir(1), vec![last[1]], late);
    let bytes = row.to_bytes();
    let start = std::time::Instant::now();
    tree.insert(row.id(), &row, &bytes, Carrier { log: 2, seq: 1 })
        .expect("taken");
    let settled = tree.settle(&History::default()).expect("settles");
    eprintln!("{} placements: {:?}", settled.replayed, start.elapsed());
}

/// However many concurrent rows there are, each is compared with few others.
#[test]
fn concurrent_rows_are_not_compared_in_pairs() {
    for every in [u64::MAX, 2] {
        let rows = concurrent(512, every);
        let before = super::super::ancestry::ASKED.get();
        take_concurrent(&rows);
        let asked = super::super::ancestry::ASKED.get() - before;
        assert!(asked < 8 * rows.len(), "{asked} for {} rows", rows.len());
    }
}

/// A birth, edits of it, and rows that have seen the birth alone, or in one out of some an edit.
fn concurrent(rows: u64, every: u64) -> Vec<Row> {
    let birth = file();
    let of = |number: u64| {
        let mut row = edit(&birth, 0);
        if number.is_multiple_of(every) {
            let seen = edit(&birth, (number % 200) as u8 + 2).id();
            let keys = Keys {
                life: Some(Life::Dead),
                mode: Some((number % 512) as u16),
                ..Keys::default()
            };
            row = Row::new(node(1), vec![birth.id(), seen], keys);
        } else if let Some(content) = &mut row.keys.content {
            content.id = ContentId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes());
            content.mtime_ns = number as i64;
        }
        row
    };
    let seen = (0..200).map(|value| edit(&birth, value + 2));
    let rows: Vec<Row> = (0..rows).map(of).collect();
    [birth.clone()]
        .into_iter()
        .chain(seen)
        .chain(rows)
        .collect()
}

fn take_concurrent(rows: &[Row]) {
    let db = database();
    let tx = db.begin_write().expect("a transaction");
    let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
    for (seq, row) in (0..).zip(rows) {
        let bytes = row.to_bytes();
        let _ = tree.insert(Row::id_of(&bytes), row, &bytes, Carrier { log: 1, seq });
    }
    tree.settle(&History::default()).expect("settles");
    let past = tree.past_for_edit(&node(1), None).expect("reads");
    assert!(past.len() <= pacsync_protocol::row::PAST_MAX);
}

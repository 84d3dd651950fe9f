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

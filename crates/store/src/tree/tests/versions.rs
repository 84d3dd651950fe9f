//! What settles a conflict, and what two do who settle one at the same time.

use super::rules::{Story, after, dir, file, file_in};
use super::*;

const D: u32 = 1;
const E: u32 = 2;

fn edit(past: &[&Row], value: u8) -> Row {
    let keys = Keys {
        content: content(value),
        ..Keys::default()
    };
    after(past, keys)
}

/// A file that two devices have edited without hearing of each other; both know of it now.
fn contested() -> (Story, NodeId) {
    let mut story = Story::default();
    let birth = file(1, "a", 1, 1);
    story.write(D, &[&birth]);
    story.hear(E, D);
    story.write(D, &[&edit(&[&birth], 2)]);
    story.write(E, &[&edit(&[&birth], 3)]);
    meet(&mut story);
    (story, node(1))
}

fn meet(story: &mut Story) {
    story.hear(D, E);
    story.hear(E, D);
}

fn keep(story: &Story, id: NodeId, value: u8) -> Vec<Row> {
    let keys = Keys {
        content: content(value),
        ..Keys::default()
    };
    story
        .told(|tree| tree.write_over(&id, &keys).expect("reads"))
        .0
}

fn bury(story: &Story, id: NodeId) -> Vec<Row> {
    story.told(|tree| tree.bury(&id).expect("reads")).0
}

fn write(story: &mut Story, device: u32, rows: &[Row]) {
    story.write(device, &rows.iter().collect::<Vec<_>>());
}

fn shown_and_others(story: &Story, id: NodeId) -> (u64, Vec<u64>) {
    let state = story.state(id);
    let shown = state.content.expect("a content").content.size;
    let others = state.losers.iter().map(|(_, content)| content.size);
    (shown, others.collect())
}

#[test]
fn what_is_kept_is_the_one_value() {
    for value in [2, 3, 9] {
        let (mut story, id) = contested();
        assert_eq!(story.state(id).losers.len(), 1);
        let rows = keep(&story, id, value);
        write(&mut story, D, &rows);
        assert_eq!(shown_and_others(&story, id), (u64::from(value), vec![]));
        let conflicts = story.told(|tree| tree.stats().expect("reads").conflicts).0;
        assert_eq!(conflicts, 0);
    }
}

#[test]
fn two_who_keep_the_same_agree_and_two_who_differ_are_in_conflict_again() {
    let (mut story, id) = contested();
    let rows = keep(&story, id, 3);
    for device in [D, E] {
        write(&mut story, device, &rows);
    }
    assert_eq!(shown_and_others(&story, id), (3, vec![]));

    let (mut story, id) = contested();
    let (one, other) = (keep(&story, id, 2), keep(&story, id, 3));
    write(&mut story, D, &one);
    write(&mut story, E, &other);
    let (shown, others) = shown_and_others(&story, id);
    let mut both = [&[shown][..], &others].concat();
    both.sort_unstable();
    assert_eq!(both, [2, 3]);
}

#[test]
fn more_versions_than_a_row_can_name_are_settled() {
    let birth = file(1, "a", 1, 1);
    let mut rows = vec![birth.clone()];
    for value in 0..300u16 {
        let mut row = edit(&[&birth], 2);
        if let Some(content) = &mut row.keys.content {
            let mut bytes = [9; 32];
            bytes[..2].copy_from_slice(&value.to_be_bytes());
            content.id = ContentId::from_bytes(bytes);
        }
        rows.push(row);
    }
    let mut history = History::default();
    history.write(D, &BTreeSet::new(), rows);
    let db = database();
    let tx = db.begin_write().expect("a transaction");
    deliver(&tx, &history.segments[0]);
    let over = {
        let tree = TreeTables::open(&tx, SPACE).expect("opens");
        assert_eq!(tree.versions(&node(1)).expect("reads").len(), 300);
        let keys = Keys {
            content: content(3),
            ..Keys::default()
        };
        tree.write_over(&node(1), &keys).expect("reads")
    };
    assert_eq!(over.len(), 2);
    history.write(D, &BTreeSet::from([0]), over);
    deliver(&tx, &history.segments[1]);
    let tree = TreeTables::open(&tx, SPACE).expect("opens");
    let left = tree.versions(&node(1)).expect("reads");
    assert_eq!(left.iter().map(|v| v.content.size).collect::<Vec<_>>(), [3]);
}

#[test]
fn what_one_keeps_and_another_gives_up_lives() {
    let (mut story, id) = contested();
    let (kept, buried) = (keep(&story, id, 2), bury(&story, id));
    write(&mut story, D, &kept);
    write(&mut story, E, &buried);
    assert!(!story.state(id).dead);
    assert_eq!(shown_and_others(&story, id), (2, vec![]));
}

#[test]
fn a_directory_is_buried_with_all_that_lives_in_it_but_not_with_what_is_newer() {
    let mut story = Story::default();
    let top = dir(1, "top", 1);
    let mut sub = dir(2, "sub", 2);
    if let Some(at) = &mut sub.keys.at {
        at.parent = node(1);
    }
    let one = file_in(3, node(1), "one", 3, 1);
    let two = file_in(4, node(2), "two", 4, 1);
    story.write(D, &[&top, &sub, &one, &two]);
    story.hear(E, D);
    let rows = bury(&story, node(1));
    assert_eq!(rows.len(), 4);
    write(&mut story, D, &rows);
    for id in 1..=4 {
        assert!(story.state(node(id)).dead, "{id}");
    }
    assert_eq!(bury(&story, node(1)), vec![], "once is enough");
    story.write(E, &[&edit(&[&two], 7)]);
    for (id, dead) in [(1, false), (2, false), (3, true), (4, false)] {
        assert_eq!(story.state(node(id)).dead, dead, "{id}");
    }
}

#[test]
fn the_base_of_versions_is_the_latest_that_all_come_from() {
    let mut story = Story::default();
    let birth = file(1, "a", 1, 1);
    let second = edit(&[&birth], 2);
    story.write(D, &[&birth, &second]);
    story.hear(E, D);
    let (left, right) = (edit(&[&second], 3), edit(&[&second], 4));
    let further = edit(&[&right], 5);
    story.write(D, &[&left]);
    story.write(E, &[&right, &further]);
    let base = |story: &Story| {
        let look = |tree: &TreeTables<'_>| {
            let versions = tree.versions(&node(1)).expect("reads");
            tree.common_base(&versions).expect("reads")
        };
        story.told(look).0.map(|base| base.row)
    };
    assert_eq!(base(&story), Some(second.id()));

    // Two that were born apart have none.
    let mut story = Story::default();
    story.write(D, &[&file(1, "a", 1, 1)]);
    story.write(E, &[&file(2, "a", 1, 2)]);
    let unify = story.told(|_| ()).1.unify;
    write(&mut story, D, &unify);
    assert_eq!(story.state(node(1)).losers.len(), 1);
    assert_eq!(base(&story), None);
}

#[test]
fn what_two_versions_share_is_the_one_row_that_both_began_from() {
    let mut story = Story::default();
    let birth = file(1, "a", 1, 1);
    let (one, other) = (edit(&[&birth], 2), edit(&[&birth], 3));
    let next = edit(&[&one], 4);
    // As the base, and no edit of it.
    let alike = file(2, "b", 1, 1);
    story.write(D, &[&birth, &one, &next, &alike]);
    story.hear(E, D);
    story.write(E, &[&other]);
    story.hear(D, E);
    let both = [edit(&[&next, &other], 5), edit(&[&next, &other], 6)];
    story.write(D, &[&both[0]]);
    story.write(E, &[&both[1]]);
    meet(&mut story);
    let shared = |a: &Row, b: &Row| {
        let shared = |tree: &TreeTables<'_>| tree.shared_base(&a.id(), &b.id()).expect("reads");
        story.told(shared).0
    };
    assert_eq!(shared(&next, &other), Some(birth.id()));
    assert_eq!(shared(&one, &next), Some(one.id()));
    assert_eq!(shared(&next, &one), Some(one.id()));
    assert_eq!(shared(&next, &next), Some(next.id()));
    assert_eq!(shared(&both[0], &both[1]), None, "there are two");
    assert_eq!(shared(&alike, &birth), None, "there is none");
}

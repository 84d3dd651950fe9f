//! Concurrent contents, their base, and merges of them.

use pacsync_protocol::row::PAST_MAX;

use super::rules::{D, E, Story, after, both_know, dead, edit, file, merge, state};
use super::*;
use crate::tree::values::PASSED;
use crate::tree::{Base, Mergeable};

const F: u32 = 3;

impl Story {
    fn mergeable(&self, id: NodeId) -> Option<Mergeable> {
        self.told(|tree| tree.mergeable(&id).expect("reads")).0
    }

    /// The number of the content that shows, and how many do not.
    fn shows(&self, id: NodeId) -> (u8, usize) {
        let state = self.told(|tree| state(tree, id)).0;
        let shown = state.content.expect("has content").content;
        (shown.size as u8, state.losers.len())
    }

    /// What a device that knows everything makes of the sides.
    fn merged(&self, value: u8, version: u32) -> Row {
        let made = content(value).expect("a content");
        let mergeable = self.mergeable(node(1)).expect("may be merged");
        let mut row = mergeable.row(made.id, made.size, None);
        row.keys.merge = Some(version);
        row
    }
}

fn numbers(contents: &[Content]) -> Vec<u8> {
    contents.iter().map(|content| content.size as u8).collect()
}

#[test]
fn sides_come_in_the_order_of_rows_and_the_merge_has_exactly_them_behind_it() {
    let f = file(1, "f", 1, 1);
    let (a, b) = (edit(&[&f], 2), edit(&[&f], 3));
    let mut story = both_know(&[&f]);
    story.write(D, &[&a]);
    story.write(E, &[&b]);
    let found = story.mergeable(node(1)).expect("may be merged");
    let mut expected = [(a.id(), 2), (b.id(), 3)];
    expected.sort();
    assert_eq!(
        found.past,
        expected.iter().map(|(id, _)| *id).collect::<Vec<_>>()
    );
    assert_eq!(
        numbers(&found.sides),
        expected.iter().map(|(_, n)| *n).collect::<Vec<_>>()
    );
    assert_eq!(found.base, Base::Content(content(1).expect("a content")));
    assert_eq!(found.mtime_ns, 3, "the highest of the sides");
    // Whoever writes it writes the same row.
    let merged = story.merged(9, 1);
    assert_eq!(merged.id(), story.merged(9, 1).id());
    story.write(D, &[&merged]);
    story.write(E, &[&merged]);
    assert_eq!(story.shows(node(1)), (9, 0));
    assert_eq!(story.mergeable(node(1)), None);
}

#[test]
fn what_equals_the_base_yields_without_a_row() {
    let f = file(1, "f", 1, 1);
    let own = edit(&[&f], 2);
    let again = edit(&[&own], 1);
    let new = edit(&[&f], 3);
    let mut story = both_know(&[&f]);
    story.write(D, &[&own, &again]);
    story.write(E, &[&new]);
    assert_eq!(story.shows(node(1)), (3, 0));
    assert_eq!(story.mergeable(node(1)), None);
    // An edit of what shows has both behind it; a delete of it deletes.
    let past = story
        .told(|tree| tree.past_for_edit(&node(1), None).expect("reads"))
        .0;
    let mut both = vec![again.id(), new.id()];
    both.sort();
    assert_eq!(past, both);
    story.write(E, &[&dead(&[&again, &new])]);
    assert!(story.told(|tree| state(tree, node(1))).0.dead);
}

#[test]
fn a_way_back_to_something_older_than_the_base_is_an_edit() {
    let f = file(1, "f", 1, 1);
    let newer = edit(&[&f], 2);
    let (back, on) = (edit(&[&newer], 1), edit(&[&newer], 3));
    let mut story = both_know(&[&f, &newer]);
    story.write(D, &[&back]);
    story.write(E, &[&on]);
    let found = story.mergeable(node(1)).expect("may be merged");
    assert_eq!(found.base, Base::Content(content(2).expect("a content")));
    assert_eq!(story.shows(node(1)).1, 1);
}

#[test]
fn what_outlived_a_delete_does_not_yield_to_what_was_deleted() {
    let f = file(1, "f", 1, 1);
    let again = edit(&[&edit(&[&f], 2)], 1);
    let new = edit(&[&f], 3);
    let mut story = both_know(&[&f]);
    story.write(D, &[&edit(&[&f], 2), &again]);
    story.write(E, &[&new, &dead(&[&new])]);
    assert_eq!(story.shows(node(1)), (1, 1));
    assert_eq!(
        story.mergeable(node(1)),
        None,
        "nothing is made of it by itself"
    );
}

#[test]
fn of_two_merges_of_the_same_sides_one_stays() {
    let f = file(1, "f", 1, 1);
    let (a, b) = (edit(&[&f], 2), edit(&[&f], 3));
    for (one, other, stays) in [
        ((9, 1), (8, 2), 8),
        ((9, 1), (8, 1), 8),
        ((8, 1), (9, 1), 8),
    ] {
        let mut story = both_know(&[&f]);
        story.write(D, &[&a]);
        story.write(E, &[&b]);
        let (one, other) = (story.merged(one.0, one.1), story.merged(other.0, other.1));
        story.hear(D, E);
        story.hear(E, D);
        story.write(D, &[&one]);
        story.write(E, &[&other]);
        assert_eq!(story.shows(node(1)), (stays, 0));
        assert_eq!(story.mergeable(node(1)), None);
    }
}

#[test]
fn a_merge_gives_way_to_whatever_has_its_sides_behind_it() {
    let f = file(1, "f", 1, 1);
    let (a, b, c) = (edit(&[&f], 2), edit(&[&f], 3), edit(&[&f], 4));
    let two = merge(&[&a, &b], 9);
    let mut story = both_know(&[&f, &a, &b]);
    story.hear(F, D);
    story.write(D, &[&two]);
    // A merge of more, and somebody's own resolution.
    story.write(F, &[&c, &merge(&[&a, &b, &c], 10)]);
    assert_eq!(story.shows(node(1)), (10, 0));
    let mut story = both_know(&[&f, &a, &b]);
    story.write(D, &[&two]);
    story.write(E, &[&edit(&[&a, &b], 5)]);
    assert_eq!(story.shows(node(1)), (5, 0));
    // A merge that was made on the way counts as what it was made of.
    let mut story = both_know(&[&f, &a, &b]);
    story.hear(F, D);
    story.write(D, &[&two, &c, &merge(&[&two, &c], 11)]);
    story.write(F, &[&c, &merge(&[&a, &b, &c], 10)]);
    assert_eq!(story.shows(node(1)), (10, 0));
}

#[test]
fn an_edit_of_a_merge_and_a_late_side_have_a_base() {
    let f = file(1, "f", 1, 1);
    let (a, b, late) = (edit(&[&f], 2), edit(&[&f], 3), edit(&[&f], 4));
    let merged = merge(&[&a, &b], 9);
    let on = edit(&[&merged], 5);
    let mut story = both_know(&[&f]);
    story.hear(F, D);
    story.write(D, &[&a, &b, &merged, &on]);
    story.write(F, &[&late]);
    let found = story.mergeable(node(1)).expect("may be merged");
    assert_eq!(found.base, Base::Content(content(1).expect("a content")));
    assert_eq!(found.past.len(), 2);
}

#[test]
fn several_latest_ancestors_are_merged_first() {
    let f = file(1, "f", 1, 1);
    let (a, b) = (edit(&[&f], 2), edit(&[&f], 3));
    let mut story = both_know(&[&f, &a, &b]);
    story.write(D, &[&edit(&[&a, &b], 4)]);
    story.write(E, &[&edit(&[&a, &b], 5)]);
    let found = story.mergeable(node(1)).expect("may be merged");
    let Base::Merge(base, mut sides) = found.base else {
        panic!("{found:?}");
    };
    sides.sort_by_key(|side| side.size);
    assert_eq!(numbers(&sides), [2, 3]);
    assert_eq!(*base, Base::Content(content(1).expect("a content")));
}

#[test]
fn files_that_became_one_have_an_empty_base() {
    let (one, two) = (file(1, "f", 1, 1), file(2, "f", 1, 2));
    let mut story = Story::default();
    story.write(D, &[&one]);
    story.write(E, &[&two]);
    story.hear(D, E);
    story.unify(D);
    let found = story.mergeable(node(2)).expect("may be merged");
    assert_eq!((found.node, found.base), (node(1), Base::Empty));
}

#[test]
fn who_edits_on_began_from_the_same_file_made_elsewhere() {
    let (one, two) = (file(1, "f", 1, 1), file(2, "f", 1, 1));
    let mut story = Story::default();
    story.write(D, &[&one]);
    story.write(E, &[&two, &edit(&[&two], 2)]);
    story.hear(D, E);
    story.unify(D);
    assert_eq!(story.shows(node(1)), (2, 0));
    assert_eq!(story.mergeable(node(1)), None);
    // But with one on both ways nobody can tell which came first.
    let mut story = Story::default();
    story.write(D, &[&one, &edit(&[&one], 2)]);
    let three = file(3, "f", 1, 2);
    story.write(E, &[&three, &edit(&[&three], 1)]);
    story.hear(D, E);
    story.unify(D);
    assert_eq!(story.shows(node(1)).1, 1);
    assert_eq!(story.mergeable(node(1)), None);
}

#[test]
fn three_sides_and_a_row_of_equal_content_are_one_merge() {
    let f = file(1, "f", 1, 1);
    let (a, b, c) = (edit(&[&f], 2), edit(&[&f], 3), edit(&[&f], 4));
    let chmod = {
        let mut row = edit(&[&f], 2);
        row.keys.mode = Some(0o600);
        row
    };
    let mut story = both_know(&[&f]);
    story.hear(F, D);
    story.write(D, &[&a]);
    story.write(E, &[&b, &chmod]);
    story.write(F, &[&c]);
    let found = story.mergeable(node(1)).expect("may be merged");
    assert_eq!((found.past.len(), found.sides.len()), (4, 3));
    story.write(F, &[&story.merged(9, 1)]);
    assert_eq!(story.shows(node(1)), (9, 0));
}

#[test]
fn more_than_a_row_can_name_is_left_alone() {
    let f = file(1, "f", 1, 1);
    let mut rows = vec![f.clone()];
    for number in 0..=PAST_MAX {
        let mut row = edit(&[&f], 2 + (number % 2) as u8);
        row.keys.mode = Some(number as u16);
        rows.push(row);
    }
    let db = database();
    let tx = db.begin_write().expect("a transaction");
    let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
    for (seq, row) in rows.iter().enumerate() {
        let (bytes, carrier) = (
            row.to_bytes(),
            Carrier {
                log: 1,
                seq: seq as u64,
            },
        );
        tree.insert(row.id(), row, &bytes, carrier).expect("taken");
    }
    assert_eq!(tree.mergeable(&node(1)).expect("reads"), None);
}

#[test]
fn a_side_that_goes_on_is_not_walked_each_time() {
    let f = file(1, "f", 1, 1);
    let mut rows = vec![f.clone(), edit(&[&f], 2)];
    let mut last = f.clone();
    for number in 0..2_000 {
        last = edit(&[&last], 3 + (number % 2) as u8);
        rows.push(last.clone());
    }
    let db = database();
    let tx = db.begin_write().expect("a transaction");
    let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
    for (seq, row) in rows.iter().enumerate() {
        let carrier = Carrier {
            log: 1,
            seq: seq as u64,
        };
        tree.insert(row.id(), row, &row.to_bytes(), carrier)
            .expect("taken");
    }
    tree.settle(&History::default()).expect("settles");
    PASSED.set(0);
    let found = tree.mergeable(&node(1)).expect("reads").expect("merges");
    assert_eq!(found.base, Base::Content(content(1).expect("a content")));
    assert!(PASSED.get() < 200, "{} rows", PASSED.get());
}

#[test]
fn the_base_is_behind_a_row_without_content_that_all_sides_have() {
    let f = file(1, "f", 1, 1);
    for count in 1..12 {
        let mut story = both_know(&[&f]);
        let mut last = f.clone();
        for number in 0..count {
            last = edit(&[&last], 10 + number);
            story.write(D, &[&last]);
        }
        let mode = after(
            &[&last],
            Keys {
                mode: Some(0o600),
                ..Keys::default()
            },
        );
        story.write(D, &[&mode]);
        story.hear(E, D);
        story.write(D, &[&edit(&[&mode], 2)]);
        story.write(E, &[&edit(&[&mode, &f], 3)]);
        let found = story.mergeable(node(1)).expect("may be merged");
        assert_eq!(found.base, Base::Content(last.keys.content.expect("has")));
    }
}

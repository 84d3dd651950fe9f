//! What was deleted, made anew and revived at one path, in every order of arrival.

use super::rules::{Story, dead, dir, edit, file, file_in, go, life};
use super::*;

const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;

/// All orders in which each segment comes after its past.
fn causal_orders(history: &History) -> Vec<Vec<usize>> {
    let mut done = vec![];
    let mut todo = vec![vec![]];
    while let Some(order) = todo.pop() {
        let ready = |index: &usize| {
            !order.contains(index)
                && history.segments[*index]
                    .past
                    .iter()
                    .all(|past| order.contains(past))
        };
        for next in (0..history.segments.len()).filter(ready) {
            todo.push([order.as_slice(), &[next]].concat());
        }
        if order.len() == history.segments.len() {
            done.push(order);
        }
    }
    done
}

/// Settles after each segment, compares with the model each time, and looks at the end. What has
/// to be unified then was asked for at some time.
fn in_every_order<T: PartialEq + std::fmt::Debug>(
    story: &Story,
    look: impl Fn(&TreeTables<'_>) -> T,
) -> (T, Vec<Row>) {
    let mut all = vec![];
    for order in causal_orders(&story.history) {
        let db = database();
        let tx = db.begin_write().expect("a transaction");
        let mut rows = BTreeMap::new();
        let mut asked = BTreeMap::new();
        for index in order {
            for (id, row, carrier) in deliver(&tx, &story.history.segments[index]) {
                note(&mut rows, id, row, carrier);
            }
            let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
            let settled = tree.settle(&story.history).expect("settles");
            asked.extend(settled.unify.into_iter().map(|row| (row.id(), row)));
            compare(&tree, &Model::new(rows.clone()), &story.history);
        }
        let unify = Model::new(rows).derive(&story.history).unify;
        assert!(unify.iter().all(|row| asked.contains_key(&row.id())));
        let tree = TreeTables::open(&tx, SPACE).expect("opens");
        all.push((look(&tree), unify));
    }
    let first = all.pop().expect("some order");
    assert!(all.iter().all(|other| *other == first));
    first
}

/// Writes what unifies, and gives it.
fn unify(story: &mut Story) -> Vec<Row> {
    let mut all = vec![];
    loop {
        let rows = in_every_order(story, |_| ()).1;
        if rows.is_empty() {
            return all;
        }
        for device in [A, B, C] {
            story.hear(9, device);
        }
        story.write(9, &rows.iter().collect::<Vec<_>>());
        all.extend(rows);
    }
}

fn shown(path: &'static [&'static str]) -> impl Fn(&TreeTables<'_>) -> Option<NodeState> {
    move |tree| {
        let path: Vec<_> = path.iter().map(|part| name(part)).collect();
        let node = tree.lookup(&path).expect("reads")?;
        tree.node(&node).expect("reads")
    }
}

#[test]
fn a_new_directory_and_the_revived_old_one_become_one() {
    let (d, f) = (dir(1, "d", 1), file_in(2, node(1), "f", 2, 1));
    let new = dir(3, "d", 3);
    for one_segment in [true, false] {
        let mut story = Story::default();
        story.write(A, &[&d, &f]);
        story.hear(B, A);
        let (no_f, no_d) = (dead(&[&f]), dead(&[&d]));
        if one_segment {
            // The order within a segment says nothing.
            story.write(A, &[&new, &no_f, &no_d]);
        } else {
            story.write(A, &[&no_f, &no_d]);
            story.write(A, &[&new]);
        }
        let edited = edit(&[&f], 2);
        story.write(B, &[&edited]);
        assert_eq!(unify(&mut story).len(), 1);
        let (state, _) = in_every_order(&story, shown(&["d", "f"]));
        let state = state.expect("the edit is where its writer made it");
        assert_eq!(state.content.map(|shown| shown.row), Some(edited.id()));
        let hidden = |tree: &TreeTables<'_>| tree.stats().expect("reads").conflicts;
        assert_eq!(in_every_order(&story, hidden).0, 0);
    }
}

#[test]
fn a_new_file_and_the_revived_old_one_are_two_values_of_one() {
    let (f, new) = (file(1, "f", 1, 1), file(2, "f", 2, 2));
    let mut story = Story::default();
    story.write(A, &[&f]);
    story.hear(B, A);
    story.write(A, &[&dead(&[&f])]);
    story.write(A, &[&new]);
    let edited = edit(&[&f], 3);
    story.write(B, &[&edited]);
    assert_eq!(unify(&mut story).len(), 1);
    let state = in_every_order(&story, shown(&["f"])).0.expect("one shows");
    let value = state.content.expect("it has content").row;
    assert_eq!(value, edited.id(), "the one with more behind it");
    assert_eq!(
        state.losers.iter().map(|(row, _)| *row).collect::<Vec<_>>(),
        vec![new.id()]
    );
}

#[test]
fn files_made_anew_in_a_directory_made_anew_meet_the_revived_ones() {
    let (d, f) = (dir(1, "d", 1), file_in(2, node(1), "f", 2, 1));
    let (new_d, new_f) = (dir(3, "d", 3), file_in(4, node(3), "f", 4, 2));
    let mut story = Story::default();
    story.write(A, &[&d, &f]);
    story.hear(B, A);
    story.write(A, &[&dead(&[&f]), &dead(&[&d])]);
    story.write(A, &[&new_d, &new_f]);
    story.write(B, &[&edit(&[&f], 3)]);
    assert_eq!(unify(&mut story).len(), 2);
    let state = in_every_order(&story, shown(&["d", "f"])).0.expect("shows");
    assert_eq!((state.id, state.losers.len()), (node(2), 1));
}

#[test]
fn who_moves_onto_what_was_deleted_makes_one_with_its_revival() {
    let (f, g) = (file(1, "f", 1, 1), file(2, "g", 2, 2));
    let mut story = Story::default();
    story.write(A, &[&f, &g]);
    story.hear(B, A);
    story.write(A, &[&dead(&[&f])]);
    story.write(A, &[&go(&[&g], NodeId::ROOT, "f", 3)]);
    story.write(B, &[&edit(&[&f], 3)]);
    assert_eq!(unify(&mut story).len(), 1);
}

#[test]
fn a_swap_of_restored_files_in_two_segments_never_unifies() {
    let (f, g) = (file(1, "f", 1, 1), file(2, "g", 2, 2));
    let gone = dead(&[&f]);
    let back = edit(&[&gone], 1);
    let mut story = Story::default();
    story.write(A, &[&f, &g]);
    story.write(A, &[&gone]);
    story.write(A, &[&back]);
    story.hear(B, A);
    story.write(A, &[&go(&[&g], NodeId::ROOT, "f", 3)]);
    story.write(B, &[&edit(&[&back], 3)]);
    assert_eq!(unify(&mut story), vec![], "its writer saw the other alive");
    story.write(A, &[&go(&[&back], NodeId::ROOT, "g", 4)]);
    assert_eq!(unify(&mut story), vec![]);
    let both = |tree: &TreeTables<'_>| {
        (
            shown(&["f"])(tree).map(|state| state.id),
            shown(&["g"])(tree).map(|state| state.id),
        )
    };
    let both = in_every_order(&story, both).0;
    assert_eq!(both, (Some(node(2)), Some(node(1))));
}

#[test]
fn a_restored_directory_is_seen_alive() {
    let (d, e) = (dir(1, "d", 1), dir(2, "e", 2));
    let gone = dead(&[&d]);
    let back = life(&[&gone], Life::Live);
    let mut story = Story::default();
    story.write(A, &[&d, &e]);
    story.write(A, &[&gone]);
    story.write(A, &[&back]);
    story.write(A, &[&go(&[&e], NodeId::ROOT, "d", 3)]);
    assert_eq!(unify(&mut story), vec![]);
}

#[test]
fn a_delete_written_by_two_devices_was_seen_through_either() {
    let (f, new) = (file(1, "f", 1, 1), file(2, "f", 2, 2));
    let gone = dead(&[&f]);
    let mut story = Story::default();
    story.write(A, &[&f]);
    story.hear(B, A);
    story.hear(C, A);
    story.write(B, &[&edit(&[&f], 3)]);
    story.write(C, &[&gone]);
    story.write(A, &[&gone]);
    story.write(A, &[&new]);
    assert_eq!(unify(&mut story).len(), 1);
}

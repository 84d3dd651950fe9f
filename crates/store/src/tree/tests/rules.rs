//! Each rule by name.

use super::*;

pub(super) const D: u32 = 1;
pub(super) const E: u32 = 2;

/// Devices that write and hear of each other.
#[derive(Default)]
pub(super) struct Story {
    pub(super) history: History,
    views: BTreeMap<u32, BTreeSet<usize>>,
}

impl Story {
    pub(super) fn write(&mut self, device: u32, rows: &[&Row]) {
        let view = self.views.entry(device).or_default();
        let rows = rows.iter().map(|row| (*row).clone()).collect();
        view.insert(self.history.write(device, view, rows));
    }

    pub(super) fn hear(&mut self, device: u32, from: u32) {
        let heard = self.views.get(&from).cloned().unwrap_or_default();
        self.views.entry(device).or_default().extend(heard);
    }

    /// Delivers everything, checks it against the model, and looks.
    pub(super) fn told<T>(&self, look: impl Fn(&TreeTables<'_>) -> T) -> (T, Settled) {
        let db = database();
        let tx = db.begin_write().expect("a transaction");
        let mut rows = BTreeMap::new();
        for segment in &self.history.segments {
            for (id, row, carrier) in deliver(&tx, segment) {
                note(&mut rows, id, row, carrier);
            }
        }
        let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
        let settled = tree.settle(&self.history).expect("settles");
        compare(&tree, &Model::new(rows), &self.history);
        (look(&tree), settled)
    }

    pub(super) fn state(&self, id: NodeId) -> NodeState {
        self.told(|tree| state(tree, id)).0
    }

    /// Writes the `into` rows that follow; gives their number.
    pub(super) fn unify(&mut self, device: u32) -> usize {
        let unify = self.told(|_| ()).1.unify;
        if !unify.is_empty() {
            self.write(device, &unify.iter().collect::<Vec<_>>());
        }
        unify.len()
    }
}

pub(super) fn state<B: Backend>(tree: &Tree<B>, id: NodeId) -> NodeState {
    tree.node(&id).expect("reads").expect("known")
}

fn born(id: u8, kind: Kind, parent: NodeId, text: &str, stamp: u64) -> Row {
    let keys = Keys {
        kind: Some(kind),
        at: at(parent, text, stamp),
        life: Some(Life::Live),
        ..Keys::default()
    };
    Row::new(node(id), vec![], keys)
}

pub(super) fn file(id: u8, text: &str, stamp: u64, value: u8) -> Row {
    file_in(id, NodeId::ROOT, text, stamp, value)
}

pub(super) fn file_in(id: u8, parent: NodeId, text: &str, stamp: u64, value: u8) -> Row {
    let mut row = born(id, Kind::File, parent, text, stamp);
    row.keys.content = content(value);
    row.keys.mode = Some(0o644);
    row
}

pub(super) fn dir(id: u8, text: &str, stamp: u64) -> Row {
    born(id, Kind::Dir, NodeId::ROOT, text, stamp)
}

pub(super) fn after(past: &[&Row], keys: Keys) -> Row {
    let node = past.first().expect("a past").node;
    Row::new(node, past.iter().map(|row| row.id()).collect(), keys)
}

pub(super) fn edit(past: &[&Row], value: u8) -> Row {
    after(
        past,
        Keys {
            content: content(value),
            ..Keys::default()
        },
    )
}

pub(super) fn life(past: &[&Row], life: Life) -> Row {
    after(
        past,
        Keys {
            life: Some(life),
            ..Keys::default()
        },
    )
}

pub(super) fn dead(past: &[&Row]) -> Row {
    life(past, Life::Dead)
}

fn mode(past: &[&Row], mode: u16) -> Row {
    after(
        past,
        Keys {
            mode: Some(mode),
            ..Keys::default()
        },
    )
}

pub(super) fn go(past: &[&Row], parent: NodeId, text: &str, stamp: u64) -> Row {
    after(
        past,
        Keys {
            at: at(parent, text, stamp),
            ..Keys::default()
        },
    )
}

pub(super) fn merge(past: &[&Row], value: u8) -> Row {
    after(
        past,
        Keys {
            content: content(value),
            merge: Some(1),
            ..Keys::default()
        },
    )
}

/// A story in which `D` wrote rows that `E` has heard of.
pub(super) fn both_know(rows: &[&Row]) -> Story {
    let mut story = Story::default();
    story.write(D, rows);
    story.hear(E, D);
    story
}

#[test]
fn a_delete_deletes_and_a_later_edit_revives() {
    let f = file(1, "f", 1, 1);
    let gone = dead(&[&f]);
    let mut story = both_know(&[&f, &gone]);
    assert!(story.state(node(1)).dead);
    assert_eq!(
        story
            .told(|tree| tree.lookup(&[name("f")]).expect("reads"))
            .0,
        None
    );
    story.write(E, &[&edit(&[&gone], 1)]);
    assert!(story.state(node(1)).shown);
}

#[test]
fn an_edit_beats_a_concurrent_delete() {
    let f = file(1, "f", 1, 1);
    let mut story = both_know(&[&f]);
    story.write(D, &[&dead(&[&f])]);
    story.write(E, &[&edit(&[&f], 2)]);
    let state = story.state(node(1));
    assert!(!state.dead && state.losers.is_empty());
    assert_eq!(state.content.map(|shown| shown.content), content(2));
}

#[test]
fn a_concurrent_move_mode_or_unification_does_not_revive() {
    let (f, g) = (file(1, "f", 1, 1), file(2, "g", 2, 2));
    let mut story = both_know(&[&f, &g]);
    story.write(D, &[&dead(&[&f]), &dead(&[&g])]);
    story.write(E, &[&go(&[&f], NodeId::ROOT, "h", 3), &mode(&[&f], 0o600)]);
    assert!(story.state(node(1)).dead);
    story.write(
        E,
        &[&after(
            &[&g],
            Keys {
                into: Some(node(1)),
                ..Keys::default()
            },
        )],
    );
    let state = story.state(node(2));
    assert!(state.dead);
    assert_eq!(state.id, node(1));
}

#[test]
fn a_live_row_alone_does_not_revive_a_file() {
    let f = file(1, "f", 1, 1);
    let gone = dead(&[&f]);
    let story = both_know(&[&f, &gone, &life(&[&gone], Life::Live)]);
    assert!(story.state(node(1)).dead);
}

#[test]
fn a_superseded_delete_still_covers_what_was_behind_it() {
    let f = file(1, "f", 1, 1);
    let other = edit(&[&f], 2);
    let gone = dead(&[&f, &other]);
    let story = both_know(&[
        &f,
        &other,
        &gone,
        &life(&[&gone], Life::Live),
        &edit(&[&f], 3),
    ]);
    let state = story.state(node(1));
    assert!(!state.dead, "the third content outlived the delete");
    assert_eq!(state.content.map(|shown| shown.content), content(3));
}

#[test]
fn a_value_that_was_deleted_never_beats_one_that_outlived_the_delete() {
    let f = file(1, "f", 1, 1);
    let (more, most) = (edit(&[&f], 2), edit(&[&edit(&[&f], 2)], 3));
    let mut story = both_know(&[&f]);
    story.write(D, &[&more, &most, &dead(&[&most])]);
    story.write(E, &[&edit(&[&f], 4)]);
    let state = story.state(node(1));
    assert_eq!(state.content.map(|shown| shown.content), content(4));
    assert_eq!(state.losers.len(), 1);
}

#[test]
fn a_merge_of_deleted_sides_stays_dead_and_one_of_others_lives() {
    let f = file(1, "f", 1, 1);
    let (a, b) = (edit(&[&f], 2), edit(&[&f], 3));
    let merged = merge(&[&a, &b], 4);
    let mut story = both_know(&[&f, &a, &b]);
    story.write(D, &[&merged]);
    story.write(E, &[&dead(&[&a])]);
    assert!(!story.state(node(1)).dead, "one side was not deleted");
    story.write(E, &[&dead(&[&a, &b])]);
    assert!(story.state(node(1)).dead);
    let more = edit(&[&f], 5);
    story.write(D, &[&more, &merge(&[&merged, &more], 6)]);
    assert!(!story.state(node(1)).dead);
    story.write(E, &[&dead(&[&more])]);
    assert!(
        story.state(node(1)).dead,
        "a merge of a merge of deleted sides"
    );
}

#[test]
fn a_dead_directory_with_something_alive_in_it_stays() {
    let (d, sub) = (dir(1, "d", 1), born(2, Kind::Dir, node(1), "sub", 2));
    let mut f = born(3, Kind::File, node(2), "f", 3);
    f.keys.content = content(1);
    let mut story = both_know(&[&d, &sub, &f]);
    story.write(D, &[&dead(&[&f]), &dead(&[&sub]), &dead(&[&d])]);
    assert!(story.state(node(1)).dead && story.state(node(2)).dead);
    let saved = edit(&[&f], 2);
    story.write(E, &[&saved]);
    assert!(story.state(node(1)).shown && story.state(node(2)).shown);
    let path = [name("d"), name("sub"), name("f")];
    assert_eq!(
        story.told(|tree| tree.lookup(&path).expect("reads")).0,
        Some(node(3))
    );
    story.write(E, &[&dead(&[&saved])]);
    assert!(story.state(node(1)).dead && story.state(node(2)).dead);
}

#[test]
fn a_concurrent_live_beats_dead_on_a_directory() {
    let d = dir(1, "d", 1);
    let mut story = both_know(&[&d]);
    story.write(D, &[&dead(&[&d])]);
    story.write(E, &[&life(&[&d], Life::Live)]);
    assert!(!story.state(node(1)).dead);
}

#[test]
fn concurrent_moves_into_each_other_make_no_cycle() {
    let (a, b) = (dir(1, "a", 1), dir(2, "b", 2));
    let mut story = both_know(&[&a, &b]);
    let (first, second) = (go(&[&a], node(2), "x", 3), go(&[&b], node(1), "y", 3));
    story.write(D, &[&first]);
    story.write(E, &[&second]);
    let lower = if first.id() < second.id() {
        node(1)
    } else {
        node(2)
    };
    let higher = if lower == node(1) { node(2) } else { node(1) };
    assert_eq!(story.state(lower).parent, Some(higher));
    assert_eq!(story.state(higher).parent, Some(NodeId::ROOT));
}

#[test]
fn a_skipped_move_counts_once_an_earlier_one_makes_room() {
    let (a, b, c) = (dir(1, "a", 1), dir(2, "b", 2), dir(3, "c", 3));
    let mut story = both_know(&[&a, &b, &c]);
    let inside = go(&[&a], node(2), "a", 4);
    story.write(D, &[&inside, &go(&[&b], node(1), "b", 6)]);
    assert_eq!(
        story.state(node(2)).parent,
        Some(NodeId::ROOT),
        "it would close a cycle"
    );
    story.write(E, &[&go(&[&a], node(3), "a", 5)]);
    assert_eq!(story.state(node(2)).parent, Some(node(1)));
    assert_eq!(story.state(node(1)).parent, Some(node(3)));
}

/// Why no move can be forgotten, however long all devices know what came after it: the directory has no other
/// place once one that it went into turns out to be one with one that it had in it.
#[test]
fn a_superseded_move_counts_again_once_directories_are_one() {
    let (a, x) = (dir(1, "a", 1), dir(2, "x", 2));
    let n = born(3, Kind::Dir, node(1), "n", 3);
    let into_x = go(&[&a], node(2), "a", 4);
    let mut story = both_know(&[&a, &x, &n, &into_x]);
    assert_eq!(story.state(node(1)).parent, Some(node(2)));
    story.write(D, &[&go(&[&n], NodeId::ROOT, "z", 5)]);
    story.write(E, &[&go(&[&x], NodeId::ROOT, "z", 5)]);
    while story.unify(D) > 0 {}
    assert_eq!(story.state(node(3)).id, node(2));
    let state = story.state(node(1));
    assert_eq!(
        (state.parent, state.at_row),
        (Some(NodeId::ROOT), Some(a.id()))
    );
}

#[test]
fn ordinary_moves_replay_nothing() {
    let (a, b, c) = (
        dir(1, "a", 1),
        dir(2, "b", 2),
        born(3, Kind::Dir, node(1), "c", 3),
    );
    let mut story = both_know(&[&a, &b, &c]);
    story.write(D, &[&go(&[&a], node(2), "a", 4)]);
    story.write(E, &[&born(4, Kind::Dir, node(3), "d", 4)]);
    let (_, settled) = story.told(|_| ());
    assert_eq!(settled.replayed, 0);
    story.write(E, &[&go(&[&c], NodeId::ROOT, "c", 4)]);
    assert!(
        story.told(|_| ()).1.replayed > 0,
        "a late move of a directory with children"
    );
}

#[test]
fn two_files_born_at_one_path_become_one_with_both_contents() {
    let (f, g) = (file(1, "f", 1, 1), file(2, "f", 1, 2));
    let mut story = Story::default();
    story.write(D, &[&f]);
    story.write(E, &[&g]);
    let (_, settled) = story.told(|_| ());
    assert_eq!(
        settled.unify,
        vec![Row::new(
            node(2),
            vec![g.id()],
            Keys {
                into: Some(node(1)),
                ..Keys::default()
            }
        )]
    );
    assert_eq!(story.unify(D), 1);
    assert_eq!(story.unify(D), 0);
    let state = story.state(node(2));
    assert_eq!((state.id, state.losers.len()), (node(1), 1));
    assert_eq!(
        story.told(|tree| tree.stats().expect("reads").conflicts).0,
        1
    );
}

#[test]
fn equal_files_become_one_without_a_conflict_and_edits_go_on_from_both() {
    let (f, g) = (file(1, "f", 1, 1), file(2, "f", 1, 1));
    let mut story = Story::default();
    story.write(D, &[&f]);
    story.write(E, &[&g]);
    story.unify(D);
    assert_eq!(
        story.told(|tree| tree.stats().expect("reads").conflicts).0,
        0
    );
    let past = story
        .told(|tree| tree.past_for_edit(&node(1), Some(&f.id())).expect("reads"))
        .0;
    let next = Row::new(
        node(1),
        past,
        Keys {
            content: content(2),
            ..Keys::default()
        },
    );
    story.write(D, &[&next]);
    let state = story.state(node(1));
    assert_eq!((state.losers, state.heads), (vec![], vec![next.id()]));
}

#[test]
fn an_adopted_node_gives_way_whatever_its_id() {
    let (mut f, g) = (file(1, "f", 1, 1), file(2, "f", 1, 2));
    f.keys.adopted = true;
    let mut story = Story::default();
    story.write(D, &[&f]);
    story.write(E, &[&g]);
    story.unify(E);
    assert_eq!(story.state(node(1)).id, node(2));
}

#[test]
fn unified_directories_have_all_children_and_the_winners_mode() {
    let (mut a, mut b) = (dir(1, "d", 1), dir(2, "d", 1));
    a.keys.mode = Some(0o700);
    b.keys.mode = Some(0o755);
    let mut story = Story::default();
    story.write(D, &[&a, &born(3, Kind::Dir, node(1), "x", 2)]);
    story.write(
        E,
        &[
            &b,
            &born(4, Kind::Dir, node(2), "x", 2),
            &born(5, Kind::Dir, node(2), "y", 3),
        ],
    );
    while story.unify(D) > 0 {}
    let state = story.state(node(2));
    assert_eq!(
        (state.id, state.mode, state.live_children),
        (node(1), Some(0o700), 2)
    );
    assert_eq!(story.state(node(4)).id, node(3));
    let path = [name("d"), name("y")];
    assert_eq!(
        story.told(|tree| tree.lookup(&path).expect("reads")).0,
        Some(node(5))
    );
}

#[test]
fn a_swap_in_one_segment_never_unifies() {
    let (f, g) = (file(1, "f", 1, 1), file(2, "g", 2, 2));
    let mut story = both_know(&[&f, &g]);
    story.write(
        D,
        &[
            &go(&[&f], NodeId::ROOT, "g", 3),
            &go(&[&g], NodeId::ROOT, "f", 4),
        ],
    );
    let (_, settled) = story.told(|_| ());
    assert_eq!(settled.unify, vec![]);
    assert_eq!(story.state(node(1)).name, Some(name("g")));
    assert_eq!(story.state(node(2)).name, Some(name("f")));
}

#[test]
fn the_later_of_two_shows_until_the_earlier_moves_away() {
    let (f, g) = (file(1, "f", 1, 1), file(2, "g", 2, 2));
    let mut story = both_know(&[&f, &g]);
    story.write(D, &[&go(&[&g], NodeId::ROOT, "f", 3)]);
    let (_, settled) = story.told(|_| ());
    assert_eq!(settled.unify, vec![], "its writer had seen the other there");
    assert!(story.state(node(2)).shown && !story.state(node(1)).shown);
    assert_eq!(
        story.told(|tree| tree.stats().expect("reads").conflicts).0,
        1
    );
    story.write(D, &[&go(&[&f], NodeId::ROOT, "g", 4)]);
    assert!(story.state(node(2)).shown && story.state(node(1)).shown);
    assert_eq!(
        story.told(|tree| tree.stats().expect("reads").conflicts).0,
        0
    );
}

#[test]
fn one_move_written_by_two_devices_counts_as_seen_through_either() {
    const C: u32 = 3;
    let (f, g) = (file(1, "f", 1, 1), file(2, "g", 2, 2));
    let moved = go(&[&g], NodeId::ROOT, "x", 3);
    for writers in [[D, E], [E, D]] {
        let mut story = both_know(&[&f, &g]);
        for writer in writers {
            story.write(writer, &[&moved]);
        }
        story.hear(C, D);
        story.write(C, &[&go(&[&f], NodeId::ROOT, "x", 4)]);
        assert_eq!(story.told(|_| ()).1.unify, vec![]);
        assert!(story.state(node(1)).shown);
    }
}

#[test]
fn of_different_kinds_the_directory_shows_then_the_file() {
    let mut link = born(1, Kind::Symlink, NodeId::ROOT, "x", 1);
    link.keys.content = content(1).map(|c| Content {
        inline: Some(vec![b'y']),
        ..c
    });
    let (f, d) = (file(2, "x", 1, 2), dir(3, "x", 1));
    let other = born(4, Kind::Other(9), NodeId::ROOT, "x", 1);
    let mut story = Story::default();
    for (device, row) in [&link, &f, &d, &other].into_iter().enumerate() {
        story.write(device as u32, &[row]);
    }
    let (at, settled) = story.told(|tree| {
        (
            tree.child(&NodeId::ROOT, &name("x")),
            tree.all_at(&NodeId::ROOT, &name("x")),
        )
    });
    assert_eq!(at.0.expect("reads"), Some(node(3)));
    assert_eq!(at.1.expect("reads").len(), 4, "the others stay alive");
    assert_eq!(settled.unify, vec![]);
    story.hear(0, 2);
    story.write(0, &[&dead(&[&d])]);
    assert!(story.state(node(2)).shown);
    assert!(!story.state(node(4)).shown && !story.state(node(4)).dead);
}

#[test]
fn a_symlink_never_shows_what_is_no_target() {
    let target = |bytes: &[u8], value: u8| {
        content(value).map(|c| Content {
            inline: Some(bytes.to_vec()),
            size: bytes.len() as u64,
            ..c
        })
    };
    let mut link = born(1, Kind::Symlink, NodeId::ROOT, "x", 1);
    link.keys.content = target(b"y", 1);
    for bad in [content(2), target(b"", 2), target(b"a\0b", 2)] {
        let keys = Keys {
            content: bad,
            ..Keys::default()
        };
        let bad = after(&[&link], keys);
        let mut story = both_know(&[&link]);
        story.write(D, &[&bad]);
        let state = story.state(node(1));
        assert_eq!((state.content, state.dead), (None, false));
        let keys = Keys {
            content: target(b"z", 3),
            ..Keys::default()
        };
        let good = after(&[&link], keys);
        story.write(E, &[&good]);
        let state = story.state(node(1));
        assert_eq!(state.content.map(|shown| shown.row), Some(good.id()));
        assert!(state.losers.is_empty(), "it is no value to choose");
    }
}

#[test]
fn the_value_with_most_content_behind_it_shows_and_no_loser_is_lost() {
    let f = file(1, "f", 1, 1);
    let (one, two) = (edit(&[&f], 2), edit(&[&edit(&[&f], 3)], 4));
    let mut story = both_know(&[&f]);
    story.write(D, &[&one]);
    story.write(E, &[&edit(&[&f], 3), &two]);
    let state = story.state(node(1));
    assert_eq!(state.content.map(|shown| shown.row), Some(two.id()));
    assert_eq!(
        state.losers.iter().map(|(row, _)| *row).collect::<Vec<_>>(),
        vec![one.id()]
    );
    let past = story
        .told(|tree| tree.past_for_edit(&node(1), None).expect("reads"))
        .0;
    let next = Row::new(
        node(1),
        past,
        Keys {
            content: content(5),
            ..Keys::default()
        },
    );
    story.write(E, &[&next]);
    let state = story.state(node(1));
    assert_eq!(state.content.map(|shown| shown.row), Some(next.id()));
    assert_eq!(
        state.losers.len(),
        1,
        "an edit of what shows swallows no other value"
    );
}

#[test]
fn an_edit_from_an_old_base_does_not_swallow_what_arrived_since() {
    let f = file(1, "f", 1, 1);
    let newer = edit(&[&f], 2);
    let chmod = mode(&[&newer], 0o600);
    let story = both_know(&[&f, &newer, &chmod]);
    let past = story
        .told(|tree| tree.past_for_edit(&node(1), Some(&f.id())).expect("reads"))
        .0;
    assert_eq!(past, vec![f.id()]);
}

#[test]
fn of_two_births_the_lowest_id_counts() {
    let (mut as_file, mut as_dir) = (file(1, "x", 1, 1), dir(1, "y", 1));
    if as_file.id() < as_dir.id() {
        std::mem::swap(&mut as_file, &mut as_dir);
    }
    let mut story = Story::default();
    story.write(D, &[&as_file]);
    story.write(E, &[&as_dir]);
    assert_eq!(Some(story.state(node(1)).kind), as_dir.keys.kind);
}

#[test]
fn nothing_hostile_is_written() {
    let (f, g, d) = (file(1, "f", 1, 1), file(2, "g", 2, 2), dir(3, "d", 3));
    let unknown = RowId::from_bytes([7; 32]);
    let into = |target| Keys {
        into: Some(target),
        ..Keys::default()
    };
    let bad = [
        Row::new(
            node(9),
            vec![f.id()],
            Keys {
                mode: Some(1),
                ..Keys::default()
            },
        ),
        Row::new(
            node(1),
            vec![unknown],
            Keys {
                mode: Some(1),
                ..Keys::default()
            },
        ),
        Row::new(
            node(1),
            vec![g.id()],
            Keys {
                mode: Some(1),
                ..Keys::default()
            },
        ),
        go(&[&f], node(9), "x", 4),
        born(8, Kind::File, node(9), "x", 4),
        after(&[&f], into(node(9))),
        after(&[&f], into(node(3))),
    ];
    let db = database();
    let tx = db.begin_write().expect("a transaction");
    let good = Segment {
        log: D,
        first: 1,
        rows: vec![f, g, d],
        past: BTreeSet::new(),
    };
    deliver(&tx, &good);
    for row in bad {
        let mut tree = TreeTables::open(&tx, SPACE).expect("opens");
        let bytes = row.to_bytes();
        let id = Row::id_of(&bytes);
        let refused = tree.insert(id, &row, &bytes, Carrier { log: D, seq: 9 });
        assert!(matches!(refused, Err(TreeError::Hostile { .. })), "{row:?}");
        assert_eq!(tree.row(&id).expect("reads"), None);
        assert_eq!(tree.max_stamp().expect("reads"), 3);
    }
}

#[test]
fn spaces_do_not_meet() {
    let db = database();
    let tx = db.begin_write().expect("a transaction");
    let f = file(1, "f", 1, 1);
    for space in [1, 2, 0x0100] {
        let mut tree = TreeTables::open(&tx, space).expect("opens");
        let bytes = f.to_bytes();
        tree.insert(f.id(), &f, &bytes, Carrier { log: 1, seq: 1 })
            .expect("taken");
        tree.settle(&History::default()).expect("settles");
        assert_eq!(tree.stats().expect("reads").files, 1);
    }
}

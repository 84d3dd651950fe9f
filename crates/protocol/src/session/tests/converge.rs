use proptest::prelude::*;

use super::world::{World, home, log, roster};
use crate::segment::SEGMENT_MAX;
use crate::session::*;

/// Space, log, entries, and length of the filling of one segment.
fn segments() -> impl Strategy<Value = Vec<(bool, u8, u64, usize)>> {
    proptest::collection::vec((any::<bool>(), 1..6u8, 1..4u64, 0..400usize), 0..40)
}

/// What both have of a log is a prefix of the same log: a node continues what the other began.
fn fill(world: &mut World, node: usize, written: &[(bool, u8, u64, usize)]) {
    for (in_home, n, entries, filling) in written {
        let space = if *in_home { home() } else { roster() };
        world.nodes[node].write(space, *n, *entries, *filling);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn two_converge_whatever_they_hold_and_however_often_they_are_cut(
        common in segments(),
        left in segments(),
        right in segments(),
        cuts in proptest::collection::vec(1..40usize, 0..4),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(2, seed);
        fill(&mut world, 0, &common);
        fill(&mut world, 1, &common);
        // Logs 1 and 2 go on at the left only, the others at the right only.
        let left: Vec<_> = left.into_iter().filter(|(_, n, ..)| *n <= 2).collect();
        let right: Vec<_> = right.into_iter().filter(|(_, n, ..)| *n > 2).collect();
        fill(&mut world, 0, &left);
        fill(&mut world, 1, &right);
        world.connect(0, 1);
        for cut in cuts {
            for _ in 0..cut {
                world.step();
            }
            world.reconnect(0);
        }
        world.settle();
        world.assert_equal();
        world.assert_rest();
        let node = &world.nodes[0];
        for end in &world.links[0].ends {
            for space in [home(), roster()] {
                let vector = node.vector(&space);
                prop_assert_eq!(end.session.peer_vector(&space), Some(&vector));
            }
        }
    }

    #[test]
    fn three_converge_in_a_chain_or_a_ring_while_they_write(
        writes in proptest::collection::vec((0..3usize, any::<bool>(), 0..30usize), 1..40),
        ring in any::<bool>(),
        cut in 0..60usize,
        seed in any::<u64>(),
    ) {
        let mut world = World::new(3, seed);
        world.connect(0, 1);
        world.connect(1, 2);
        if ring {
            world.connect(2, 0);
        }
        let writes_count = writes.len();
        for (n, (node, in_home, steps)) in writes.into_iter().enumerate() {
            let space = if in_home { home() } else { roster() };
            world.write(node, space, node as u8 + 1, 1, 20);
            for _ in 0..steps {
                world.step();
            }
            if n == cut % (2 * writes_count) {
                world.reconnect(0);
            }
        }
        world.settle();
        world.assert_equal();
        world.assert_rest();
    }
}

#[test]
fn a_large_backlog_keeps_to_its_window() {
    let mut world = World::new(2, 1);
    for n in 1..5 {
        for _ in 0..10 {
            world.nodes[0].write(home(), n, 1, SEGMENT_MAX - 17);
        }
    }
    world.connect(0, 1);
    let mut most = 0;
    while world.step() {
        most = most.max(world.links[0].ends[0].session.segment_bytes_in_flight());
    }
    assert!(
        most > SEGMENT_WINDOW / 2 && most <= SEGMENT_WINDOW,
        "{most}"
    );
    world.assert_equal();
    world.assert_rest();
}

#[test]
fn what_is_written_reaches_a_peer_at_rest_with_two_frames() {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    world.settle();
    let (frames, now) = (world.frames, world.now);
    world.write(0, home(), 1, 1, 10);
    assert_eq!(world.frames, frames + 2, "a head and a segment");
    world.settle();
    assert_eq!(world.frames, frames + 3, "and the answer");
    assert_eq!(world.now, now, "without waiting");
    world.assert_equal();
}

#[test]
fn a_ring_does_not_send_a_segment_twice_to_anyone() {
    let mut world = World::new(3, 1);
    world.connect(0, 1);
    world.connect(1, 2);
    world.connect(2, 0);
    world.settle();
    for _ in 0..20 {
        world.write(0, home(), 1, 1, 10);
        world.settle();
    }
    world.assert_equal();
    assert_eq!(world.nodes[1].received + world.nodes[2].received, 40);
}

#[test]
fn a_log_that_is_withheld_or_declined_is_not_sent_in_circles() {
    let mut world = World::new(2, 1);
    world.nodes[0].write(home(), 1, 1, 10);
    world.nodes[0].write(home(), 2, 1, 10);
    // The left believes that it holds log 2, and has nothing of it to show.
    let lost = world.nodes[0]
        .spaces
        .get_mut(&home())
        .and_then(|logs| logs.remove(&log(2)));
    world.connect(0, 1);
    let head = lost.expect("was written")[0].head;
    let advanced = Input::Advanced {
        space: home(),
        log: log(2),
        head,
        origin: Origin::Own,
        segment: None,
    };
    world.tell(0, 0, advanced);
    world.settle();
    world.assert_rest();
    assert_eq!(world.nodes[1].vector(&home()).len(), 1);
    // The right gets it from elsewhere: then it can go on from there.
    world.nodes[0].write(home(), 2, 1, 10);
    world.write(1, home(), 2, 1, 10);
    world.write(0, home(), 2, 1, 10);
    world.settle();
    assert_eq!(world.nodes[1].vector(&home()).seq(&log(2)), 2);
    world.assert_equal();
    world.assert_rest();
}

#[test]
fn what_was_declined_is_asked_for_again_once_it_may_be_taken() {
    for seed in 0..16 {
        let mut world = World::new(2, seed);
        for n in [1, 2, 3] {
            for _ in 0..4 {
                world.nodes[0].write(roster(), n, 1, 10);
            }
        }
        // Of one it has the beginning, of the other nothing.
        let begun = world.nodes[0].spaces[&roster()][&log(1)][..1].to_vec();
        let there = world.nodes[1].spaces.entry(roster()).or_default();
        there.insert(log(1), begun);
        world.nodes[1].declines = [log(1), log(2)].into();
        world.connect(0, 1);
        world.settle();
        world.assert_rest();
        let seqs = |world: &World| {
            let vector = world.nodes[1].vector(&roster());
            [1, 2, 3].map(|n| vector.seq(&log(n)))
        };
        assert_eq!(seqs(&world), [1, 0, 4]);
        world.nodes[1].declines.remove(&log(1));
        world.tell(0, 1, Input::Reconsider);
        world.settle();
        assert_eq!(seqs(&world), [4, 0, 4]);
        world.nodes[1].declines.clear();
        world.tell(0, 1, Input::Reconsider);
        world.settle();
        assert_eq!(seqs(&world), [4, 4, 4]);
        world.tell(0, 1, Input::Reconsider);
        world.settle();
        world.assert_rest();
    }
}

#[test]
fn a_space_can_be_closed_and_opened_again() {
    let mut world = World::new(2, 3);
    world.nodes[0].write(home(), 1, 1, 10);
    world.connect(0, 1);
    world.settle();
    world.tell(0, 1, Input::SpaceClose { space: home() });
    world.write(0, home(), 1, 1, 10);
    world.settle();
    assert_eq!(world.nodes[1].vector(&home()).seq(&log(1)), 1);
    let vector = world.nodes[1].vector(&home());
    world.tell(
        0,
        1,
        Input::SpaceOpen {
            space: home(),
            vector,
        },
    );
    world.settle();
    world.assert_equal();
    world.assert_rest();
}

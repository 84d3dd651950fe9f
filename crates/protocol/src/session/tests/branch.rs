//! A branch of a forked log comes when it is asked for, and a space that is opened anew holds
//! nothing back.

use super::world::{World, home, log};
use crate::ids::ShortHash;
use crate::session::{Input, Output};
use crate::vector::{Dep, Head};
use crate::wire::{Branch, Lane, Message, WantBranch};

fn pair() -> World {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    world.settle();
    world
}

fn head(seq: u64) -> Head {
    let hash = ShortHash::from_bytes([seq as u8; 16]);
    Head { seq, hash }
}

fn outputs(world: &mut World, node: usize) -> Vec<Output> {
    std::mem::take(&mut world.nodes[node].events)
}

#[test]
fn a_branch_is_asked_for_by_a_trail() {
    let mut world = pair();
    let (space, trail) = (home(), vec![head(3), head(1)]);
    let to = Dep {
        log: log(1),
        head: head(9),
    };
    assert!(world.links[0].ends[1].session.may_want_branch());
    let input = Input::WantBranch {
        space,
        to,
        trail: trail.clone(),
    };
    world.tell(0, 1, input);
    assert!(
        !world.links[0].ends[1].session.may_want_branch(),
        "one at a time"
    );
    world.settle();
    let read = outputs(&mut world, 0).into_iter().any(|output| {
        matches!(output, Output::ReadBranch { space: s, to: t, trail: h, .. }
            if (s, t, &h) == (space, to, &trail))
    });
    assert!(read);
    let segments = vec![vec![1; 200]];
    let input = Input::BranchRead {
        segments: segments.clone(),
    };
    world.tell(0, 0, input);
    world.settle();
    let came = Output::Branch {
        space,
        to,
        segments,
    };
    assert!(outputs(&mut world, 1).contains(&came));
    assert!(world.links[0].ends[1].session.may_want_branch());
}

#[test]
fn a_branch_that_nobody_asked_for_and_two_wants_at_a_time_end_the_session() {
    let branch = Message::Branch(Branch {
        space: home(),
        segments: vec![],
    });
    let want = Message::WantBranch(WantBranch {
        space: home(),
        to: Dep {
            log: log(1),
            head: head(1),
        },
        trail: vec![],
    });
    for frames in [vec![branch], vec![want.clone(), want]] {
        let mut world = pair();
        for message in frames {
            let bytes = message.encode();
            let lane = Lane::State;
            world.tell(0, 1, Input::Frame { lane, bytes });
        }
        world.settle();
        let violated = |o: &Output| matches!(o, Output::Violated { .. });
        assert!(outputs(&mut world, 1).iter().any(violated));
    }
}

#[test]
fn what_was_withheld_is_sent_once_the_space_is_opened_anew() {
    let mut world = pair();
    let (space, log) = (home(), log(1));
    world.tell(0, 0, Input::Withhold { space, log });
    let new = world.nodes[0].write(space, 1, 1, 200);
    let input = Input::Advanced {
        space,
        log,
        head: new.head,
        origin: crate::session::Origin::Own,
        segment: Some(new),
    };
    world.tell(0, 0, input);
    world.settle();
    assert_eq!(world.nodes[1].vector(&space).seq(&log), 0);
    let vector = world.nodes[0].vector(&space);
    world.tell(0, 0, Input::SpaceClose { space });
    world.tell(0, 0, Input::SpaceOpen { space, vector });
    world.settle();
    assert_eq!(world.nodes[1].vector(&space).seq(&log), 1);
    world.assert_equal();
}

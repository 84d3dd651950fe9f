//! What is pruned on one side reaches the other by parts of a checkpoint that it asks for.

use super::world::{World, home, log};
use crate::session::{Input, Output};
use crate::wire::{CheckpointPart, Lane, Message, WantCheckpoint};

fn pair() -> World {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    world.settle();
    world
}

fn outputs(world: &mut World, node: usize) -> Vec<Output> {
    std::mem::take(&mut world.nodes[node].events)
}

#[test]
fn a_peer_is_told_once_and_asks_part_by_part() {
    let mut world = pair();
    for n in [1, 2] {
        let (space, log) = (home(), log(n));
        world.tell(0, 0, Input::Pruned { space, log });
    }
    world.settle();
    let told = |outputs: &[Output]| {
        let pruned = |o: &&Output| matches!(o, Output::PeerPruned { .. });
        outputs.iter().filter(pruned).count()
    };
    assert_eq!(told(&outputs(&mut world, 1)), 1);
    let (space, part) = (home(), 0);
    world.tell(0, 1, Input::WantCheckpoint { space, part });
    world.settle();
    let asked = outputs(&mut world, 0);
    assert!(asked.contains(&Output::ReadCheckpoint { space, part }));
    let (header, last, bytes) = (Some(vec![1]), true, vec![2, 3]);
    world.tell(
        0,
        0,
        Input::CheckpointRead {
            header: header.clone(),
            last,
            bytes: bytes.clone(),
        },
    );
    world.settle();
    let came = outputs(&mut world, 1);
    assert!(came.contains(&Output::CheckpointPart {
        space,
        part,
        header,
        last,
        bytes
    }));
}

#[test]
fn a_part_that_nobody_asked_for_and_two_wants_at_a_time_end_the_session() {
    let part = Message::CheckpointPart(CheckpointPart {
        space: home(),
        part: 0,
        header: None,
        last: true,
        bytes: vec![].into(),
    });
    let want = Message::WantCheckpoint(WantCheckpoint {
        space: home(),
        part: 0,
    });
    for frames in [vec![part], vec![want.clone(), want]] {
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

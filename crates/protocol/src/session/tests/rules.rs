use super::world::{World, config, home, log, pac, roster};
use crate::ids::PacId;
use crate::session::*;
use crate::wire::{CloseCode, Hello, Lane, Message};

fn closed(events: &[Output]) -> Vec<(CloseCode, ClosedBy)> {
    let reason = |event: &Output| match event {
        Output::Closed { code, by, .. } => Some((*code, *by)),
        _ => None,
    };
    events.iter().filter_map(reason).collect()
}

#[test]
fn a_stranger_hands_in_its_roster_and_gets_nothing_until_it_is_known() {
    let mut world = World::new(2, 1);
    // The newcomer knows the old device, not the other way round.
    world.nodes[0].write(roster(), 1, 1, 100);
    world.nodes[0].write(home(), 2, 1, 100);
    world.nodes[1].write(roster(), 3, 1, 100);
    world.nodes[1].write(home(), 4, 1, 100);
    let link = world.connect_as(0, 1, [PeerStanding::Known, PeerStanding::Unknown]);
    world.settle();
    assert_eq!(world.nodes[1].vector(&roster()).len(), 2, "took the roster");
    assert_eq!(world.nodes[1].vector(&home()).len(), 1, "and no more");
    assert_eq!(world.nodes[0].vector(&roster()).len(), 1, "gave nothing");
    assert!(!world.links[link].ends[0].session.is_established());
    world.tell(link, 1, Input::PeerKnown);
    world.settle();
    world.assert_equal();
    world.assert_rest();
}

#[test]
fn a_strangers_roster_is_bounded() {
    let mut world = World::new(2, 1);
    for _ in 0..30 {
        world.nodes[0].write(roster(), 1, 1, 100_000);
    }
    let link = world.connect_as(0, 1, [PeerStanding::Known, PeerStanding::Unknown]);
    world.settle();
    assert_eq!(world.nodes[1].vector(&roster()).seq(&log(1)), 10);
    world.tell(link, 1, Input::PeerKnown);
    world.settle();
    world.assert_equal();
    world.assert_rest();
}

#[test]
fn two_that_do_not_know_each_other_wait() {
    let mut world = World::new(2, 1);
    world.nodes[0].write(roster(), 1, 1, 100);
    world.connect_as(0, 1, [PeerStanding::Unknown; 2]);
    world.settle();
    assert_eq!(world.frames, 2, "two hellos");
    world.tell(0, 1, Input::PeerKnown);
    world.settle();
    assert_eq!(world.frames, 3, "one has said that it knows the other");
    world.tell(0, 0, Input::PeerKnown);
    world.settle();
    world.assert_equal();
    world.assert_rest();
}

#[test]
fn another_pac_or_protocol_is_refused_with_its_reason() {
    let hello = Hello {
        min: 1,
        max: 1,
        features: 0,
        pac: pac(),
        known: true,
        agent: String::new(),
        addresses: vec![],
        life: crate::ids::Incarnation::from_bytes([7; 16]),
    };
    let other_pac = Hello {
        pac: PacId::from_bytes([1; 32]),
        ..hello.clone()
    };
    let later = Hello {
        min: 2,
        max: 3,
        ..hello
    };
    for (hello, code) in [
        (other_pac, CloseCode::WrongPac),
        (later, CloseCode::NoCommonVersion),
    ] {
        let mut session = Session::new(config(PeerStanding::Known), 0);
        let bytes = Message::Hello(hello).encode();
        session.handle(
            1,
            Input::Frame {
                lane: Lane::State,
                bytes,
            },
        );
        let events: Vec<Output> = std::iter::from_fn(|| session.poll_output()).collect();
        assert_eq!(closed(&events), [(code, ClosedBy::Us)]);
        assert!(session.is_closed());
    }
}

#[test]
fn who_says_no_hello_is_left() {
    let mut session = Session::new(config(PeerStanding::Known), 5);
    let due = session.poll_timeout().expect("a deadline");
    assert_eq!(due, 5 + HELLO_TIMEOUT_MS);
    session.handle(due, Input::Timeout);
    let events: Vec<Output> = std::iter::from_fn(|| session.poll_output()).collect();
    assert_eq!(closed(&events), [(CloseCode::TimedOut, ClosedBy::Us)]);
}

#[test]
fn a_close_reaches_the_other_side() {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    world.settle();
    world.tell(
        0,
        0,
        Input::Close {
            code: CloseCode::ShuttingDown,
            text: "bye".into(),
        },
    );
    world.settle();
    assert_eq!(
        closed(&world.nodes[0].events),
        [(CloseCode::ShuttingDown, ClosedBy::Us)]
    );
    assert_eq!(
        closed(&world.nodes[1].events),
        [(CloseCode::ShuttingDown, ClosedBy::Peer)]
    );
}

#[test]
fn an_ack_is_asked_for_and_answered() {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    world.settle();
    world.tell(
        0,
        0,
        Input::WantAck {
            space: home(),
            token: 9,
        },
    );
    world.settle();
    assert!(world.nodes[1].events.contains(&Output::AckWanted {
        space: home(),
        token: 9
    }));
    world.tell(
        0,
        1,
        Input::Acks {
            acks: vec![vec![1, 2]],
            answers: Some(9),
        },
    );
    world.settle();
    let answer = Output::PeerAcks {
        acks: vec![vec![1, 2]],
        answers: Some(9),
    };
    assert!(world.nodes[0].events.contains(&answer));
    world.assert_rest();
}

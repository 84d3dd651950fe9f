use proptest::prelude::*;

use super::world::{config, home, log, pac, roster, segment};
use crate::content::ManifestId;
use crate::ids::{ContentId, SpaceId};
use crate::session::*;
use crate::vector::{Dep, Head, VersionVector};
use crate::wire::*;

fn hello() -> Message {
    Message::Hello(Hello {
        min: 1,
        max: 1,
        features: 0,
        pac: pac(),
        known: true,
        agent: String::new(),
        addresses: vec![],
        life: crate::ids::Incarnation::from_bytes([7; 16]),
    })
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

/// A session of ours that has said hello, holds two spaces and wants something.
fn open(standing: PeerStanding) -> Session {
    let mut session = Session::new(config(standing), 0);
    for space in [home(), roster()] {
        let vector: VersionVector = [(log(1), segment(1, 1, 5, 0).head)].into_iter().collect();
        session.handle(0, Input::SpaceOpen { space, vector });
    }
    give(&mut session, hello());
    let what = Wanted::Contents(vec![ContentId::from_bytes([1; 32]); 3]);
    session.handle(
        0,
        Input::Want {
            request: 1,
            space: home(),
            what,
            bytes: 10,
        },
    );
    drain(&mut session);
    session
}

fn give(session: &mut Session, message: Message) {
    let (lane, bytes) = (message.lane(), message.encode());
    session.handle(1, Input::Frame { lane, bytes });
}

fn space(n: u8) -> SpaceId {
    if n == 0 {
        home()
    } else if n == 1 {
        roster()
    } else {
        SpaceId::from_bytes([n; 16])
    }
}

fn heads(max: usize) -> impl Strategy<Value = Vec<Dep>> {
    let dep = (0..4u8, 0..20u64).prop_map(|(n, seq)| Dep {
        log: log(n),
        head: Head {
            seq: if seq == 0 { u64::MAX } else { seq },
            ..segment(n, 1, 1, 0).head
        },
    });
    proptest::collection::vec(dep, 0..max)
}

/// Any message that can be encoded, sensible or not.
fn message() -> impl Strategy<Value = Message> {
    let id = (0..4u8).prop_map(space);
    let items = proptest::collection::vec(
        prop_oneof![
            Just(Item::Missing),
            (0..300usize).prop_map(|n| Item::Whole(vec![1; n])),
            (0..300usize).prop_map(|n| Item::Manifest(vec![1; n])),
        ],
        0..4,
    );
    let answer =
        (0..3u64, 0..3u32, any::<bool>(), items).prop_map(|(request, first, last, items)| Answer {
            request,
            first,
            last,
            items,
        });
    prop_oneof![
        Just(hello()),
        Just(Message::Known),
        (id.clone(), heads(5), any::<bool>())
            .prop_map(|(space, heads, last)| Message::Vector(VectorPart { space, heads, last })),
        (id.clone(), heads(5)).prop_map(|(space, heads)| Message::Have(Have { space, heads })),
        (
            id.clone(),
            proptest::collection::vec(SEGMENT_MIN..60_000usize, 0..5)
        )
            .prop_map(|(space, sizes)| {
                let segments = sizes.into_iter().map(|n| vec![0; n].into()).collect();
                Message::Segments(Segments { space, segments })
            }),
        (id.clone(), 0..4u8)
            .prop_map(|(space, n)| { Message::Decline(Decline { space, log: log(n) }) }),
        id.clone()
            .prop_map(|space| Message::SpaceClosed(SpaceClosed { space })),
        any::<Option<u64>>().prop_map(|answers| Message::Acks(Acks {
            acks: vec![],
            answers
        })),
        (id.clone(), any::<u64>())
            .prop_map(|(space, token)| Message::AckWanted(AckWanted { space, token })),
        (id.clone(), any::<u64>(), 1..5usize).prop_map(|(space, request, n)| {
            let ids = vec![ContentId::from_bytes([1; 32]); n];
            Message::WantContents(WantContents {
                request,
                space,
                ids,
            })
        }),
        (id, any::<u64>(), 1..5usize).prop_map(|(space, request, n)| {
            let pieces = Pieces::Manifests(vec![ManifestId::from_bytes([1; 32]); n]);
            let content = ContentId::from_bytes([1; 32]);
            Message::WantPieces(WantPieces {
                request,
                space,
                content,
                pieces,
            })
        }),
        (0..4u64).prop_map(|request| Message::Cancel(Cancel { request })),
        answer.clone().prop_map(Message::Contents),
        answer.prop_map(Message::Pieces),
    ]
}

/// Answers what a session wants of its owner, more or less sensibly.
fn serve(session: &mut Session, outputs: Vec<Output>) -> usize {
    let mut sent = 0;
    let mut todo = outputs;
    while let Some(output) = todo.pop() {
        let input = match output {
            Output::Send { bytes, .. } => {
                sent += bytes.len();
                continue;
            }
            Output::Load {
                space, log, after, ..
            } => {
                let first = after.map_or(1, |head| head.seq.saturating_add(1));
                let segments = vec![segment(1, first, first, 100_000)];
                Input::SegmentsLoaded {
                    space,
                    log,
                    segments,
                }
            }
            Output::Store {
                store, segments, ..
            } => {
                let head = segment(2, 1, segments.len() as u64, 0).head;
                let entries = vec![Dep { log: log(2), head }];
                Input::Stored {
                    store,
                    entries,
                    refused: vec![],
                }
            }
            Output::Read { request, what, .. } => Input::Items {
                request,
                items: vec![Item::Missing; what.len()],
            },
            _ => continue,
        };
        session.handle(1, input);
        todo.extend(drain(session));
    }
    sent
}

proptest! {
    #[test]
    fn no_sequence_of_messages_panics_or_grows(
        known in any::<bool>(),
        messages in proptest::collection::vec(message(), 1..60),
    ) {
        let standing = if known { PeerStanding::Known } else { PeerStanding::Unknown };
        let mut session = open(standing);
        for message in messages {
            give(&mut session, message);
            let outputs = drain(&mut session);
            prop_assert!(outputs.len() < 100);
            // The peer reads nothing: nothing is ever drained.
            serve(&mut session, outputs);
            prop_assert!(session.segment_bytes_in_flight() <= SEGMENT_WINDOW);
            prop_assert!(session.out.state_bytes <= STATE_QUEUE_HIGH + SEGMENT_WINDOW);
        }
        if !known {
            prop_assert!(session.peer_vector(&home()).is_none());
        }
    }

    #[test]
    fn no_bytes_panic(frames in proptest::collection::vec(
        (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..100)), 1..5,
    )) {
        let mut session = open(PeerStanding::Known);
        for (content, bytes) in frames {
            let lane = if content { Lane::Content } else { Lane::State };
            session.handle(1, Input::Frame { lane, bytes });
            drain(&mut session);
        }
    }

    #[test]
    fn no_changed_frame_panics(
        message in message(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut session = open(PeerStanding::Known);
        let mut bytes = message.encode();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        session.handle(1, Input::Frame { lane: message.lane(), bytes });
        let outputs = drain(&mut session);
        serve(&mut session, outputs);
    }
}

#[test]
fn breaches_end_the_session_and_say_how() {
    let have = || {
        Message::Have(Have {
            space: home(),
            heads: vec![],
        })
    };
    let answer = |request, first, items| {
        Message::Contents(Answer {
            request,
            first,
            last: true,
            items,
        })
    };
    let vector = || {
        Message::Vector(VectorPart {
            space: home(),
            heads: vec![],
            last: true,
        })
    };
    for (what, messages) in [
        ("second hello", vec![hello()]),
        ("heads before the vector", vec![have()]),
        ("second vector", vec![vector(), vector()]),
        ("answer to nothing", vec![answer(2, 0, vec![])]),
        (
            "answer out of order",
            vec![answer(1, 1, vec![Item::Missing])],
        ),
        ("short answer", vec![answer(1, 0, vec![Item::Missing])]),
        ("long answer", vec![answer(1, 0, vec![Item::Missing; 4])]),
    ] {
        let mut session = open(PeerStanding::Known);
        for message in messages {
            give(&mut session, message);
        }
        let outputs = drain(&mut session);
        assert!(session.is_closed(), "{what}");
        let violated = outputs
            .iter()
            .position(|o| matches!(o, Output::Violated { .. }));
        let closed = outputs.iter().position(|o| {
            matches!(
                o,
                Output::Closed {
                    code: CloseCode::Violation,
                    by: ClosedBy::Us,
                    ..
                }
            )
        });
        assert!(violated.is_some() && violated < closed, "{what}");
        session.handle(
            2,
            Input::Frame {
                lane: Lane::State,
                bytes: vec![],
            },
        );
        assert_eq!(session.poll_output(), None, "{what}");
    }
}

#[test]
fn a_peer_that_ignores_the_window_is_left() {
    let mut session = open(PeerStanding::Known);
    let flood = || {
        Message::Segments(Segments {
            space: home(),
            segments: vec![vec![0; 1 << 20].into()],
        })
    };
    for _ in 0..8 {
        give(&mut session, flood());
        assert!(!session.is_closed());
    }
    assert!(!session.wants_frames(Lane::State));
    let stores = drain(&mut session)
        .into_iter()
        .filter(|o| matches!(o, Output::Store { .. }));
    assert_eq!(stores.count(), STORES_MAX);
    give(&mut session, flood());
    assert!(session.is_closed());
}

#[test]
fn a_bad_signature_ends_the_session() {
    let mut session = open(PeerStanding::Known);
    give(
        &mut session,
        Message::Segments(Segments {
            space: home(),
            segments: vec![vec![0; SEGMENT_MIN].into()],
        }),
    );
    let refused = vec![Refusal::Misbehaviour("the signature is not valid".into())];
    session.handle(
        2,
        Input::Stored {
            store: 0,
            entries: vec![],
            refused,
        },
    );
    let outputs = drain(&mut session);
    assert!(outputs.iter().any(|o| matches!(
        o,
        Output::Closed {
            code: CloseCode::Misbehaviour,
            ..
        }
    )));
}

#[test]
fn unknown_messages_of_later_versions_are_ignored() {
    let mut session = open(PeerStanding::Known);
    session.handle(
        1,
        Input::Frame {
            lane: Lane::State,
            bytes: vec![0x82, 0x18, 0x40, 0xa0],
        },
    );
    assert!(!session.is_closed());
    session.handle(
        1,
        Input::Frame {
            lane: Lane::State,
            bytes: vec![0x82, 0x18, 0x3f, 0xa0],
        },
    );
    assert!(session.is_closed());
}

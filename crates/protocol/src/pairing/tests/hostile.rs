//! Changed, repeated, reordered and made-up messages.

use super::*;

#[test]
fn a_man_in_the_middle_has_another_exporter_and_fails() {
    let mut pair = Pair::new(Role::Member);
    let code = pair.offer.code().clone();
    let joiner = pair.join_with(&code, &[6; 32]);
    let (mut host, _, proof) = pair.answered_by(joiner);
    assert_eq!(host.handle(4, &proof), Err(PairingError::WrongCode));
}

#[test]
fn no_changed_bit_of_the_first_messages_goes_unnoticed() {
    let flipped = |bytes: &[u8], index: usize| {
        let mut bytes = bytes.to_vec();
        bytes[index] ^= 1;
        bytes
    };
    let hello_len = only(joiner_asks(&mut Pair::new(Role::Member).join()).frames).len();
    for index in 0..hello_len {
        let mut pair = Pair::new(Role::Member);
        let mut joiner = pair.join();
        let hello = flipped(&only(joiner_asks(&mut joiner).frames), index);
        let Ok(mut host) = pair.answer(2, &hello) else {
            continue;
        };
        if joiner
            .handle(3, &only(host_asks(&mut host).frames))
            .is_err()
        {
            continue;
        }
        let proof = only(joiner_asks(&mut joiner).frames);
        assert_eq!(
            host.handle(4, &proof),
            Err(PairingError::WrongCode),
            "hello, byte {index}"
        );
    }
    let mut index = 0;
    loop {
        let mut pair = Pair::new(Role::Member);
        let mut joiner = pair.join();
        let mut host = pair
            .answer(2, &only(joiner_asks(&mut joiner).frames))
            .expect("is answered");
        let answer = only(host_asks(&mut host).frames);
        if index == answer.len() {
            break;
        }
        if joiner.handle(3, &flipped(&answer, index)).is_ok() {
            let proof = only(joiner_asks(&mut joiner).frames);
            assert_eq!(
                host.handle(4, &proof),
                Err(PairingError::WrongCode),
                "answer, byte {index}"
            );
        }
        index += 1;
    }
}

#[test]
fn a_device_key_must_be_held_not_just_named() {
    let mut pair = Pair::new(Role::Member);
    let joiner = pair.join();
    let (mut host, _, proof) = pair.answered_by(joiner);
    let Ok(Message::Confirm(mut confirm)) = Message::decode(&proof, STRANGER_FRAME_LEN_MAX) else {
        panic!("the proof is a confirmation");
    };
    confirm.signature = pair
        .host_keys
        .sign
        .sign(crate::crypto::domain::PAIR, b"another");
    let proof = Message::Confirm(confirm).encode();
    assert!(matches!(
        host.handle(4, &proof),
        Err(PairingError::Misbehaved(_))
    ));
    assert!(host_asks(&mut host).peer.is_none());
}

#[test]
fn a_device_does_not_pair_with_itself_nor_with_its_echo() {
    let mut pair = Pair::new(Role::Member);
    pair.joiner_keys = pair.host_keys.clone();
    let hello = only(joiner_asks(&mut pair.join()).frames);
    assert_eq!(
        pair.answer(2, &hello).expect_err("is refused").error,
        PairingError::SameDevice
    );
    let mut joiner = pair.join();
    let echo = only(joiner_asks(&mut joiner).frames);
    assert!(joiner.handle(3, &echo).is_err());
}

#[test]
fn a_roster_other_than_announced_is_refused() {
    let frame = |pieces: &[&[u8]], open| {
        let pieces = pieces.iter().map(|piece| piece.to_vec().into()).collect();
        Message::Roster(Roster { pieces, open }).encode()
    };
    let cases: Vec<Vec<Vec<u8>>> = vec![
        vec![frame(&[], false)],
        vec![frame(&[b""], false)],
        vec![frame(&[b"123"], false), frame(&[b"45"], false)],
        vec![frame(&[b"12345"], false)],
        vec![frame(&[b"1", b"2", b"3"], false)],
        vec![frame(&[b"1", b"23"], false)],
        vec![frame(&[b"1", b"234"], true)],
        vec![frame(&[b"12", b"3"], true), frame(&[b""], false)],
    ];
    for frames in cases {
        let (mut host, mut joiner) = Pair::new(Role::Member).agreed();
        host.deliver(8, welcome(vec![vec![1; 2], vec![2; 2]]))
            .expect("delivers");
        joiner
            .handle(9, &host_asks(&mut host).frames[0])
            .expect("takes the head");
        let last = frames
            .iter()
            .map(|frame| joiner.handle(10, frame))
            .last()
            .expect("frames");
        assert!(last.is_err(), "{frames:?}");
        assert!(joiner_asks(&mut joiner).welcome.is_none());
    }
}

#[test]
fn a_welcome_that_does_not_verify_ends_it_on_both_sides() {
    let (mut host, mut joiner) = Pair::new(Role::Member).agreed();
    host.deliver(8, welcome(vec![vec![1]])).expect("delivers");
    for frame in host_asks(&mut host).frames {
        joiner.handle(9, &frame).expect("takes the frame");
    }
    joiner_asks(&mut joiner);
    joiner.abort().expect("aborts");
    let told = only(joiner_asks(&mut joiner).frames);
    assert_eq!(host.handle(10, &told), Err(PairingError::PeerFailed));

    let (mut host, mut joiner) = Pair::new(Role::Member).agreed();
    host.deliver(8, welcome(vec![vec![1]])).expect("delivers");
    let mut head = host_asks(&mut host).frames.remove(0);
    let root = founding().record().root.0;
    let at = head
        .windows(32)
        .position(|window| window == root.as_bytes())
        .expect("the root's key stands in the head");
    head[at..at + 32].copy_from_slice(SigningKey::from_seed(&[9; 32]).id().as_bytes());
    assert!(matches!(
        joiner.handle(9, &head),
        Err(PairingError::Founding(_))
    ));
    let told = only(joiner_asks(&mut joiner).frames);
    assert_eq!(host.handle(10, &told), Err(PairingError::RefusedByPeer));
}

#[test]
fn an_unknown_reason_is_still_an_end_and_an_unknown_type_is_refused() {
    let (mut host, mut joiner) = Pair::new(Role::Member).deciding();
    // Array of two, type 8, reason 99.
    assert_eq!(
        joiner.handle(6, &[0x82, 8, 0x18, 99]),
        Err(PairingError::RefusedByPeer)
    );
    assert!(matches!(
        host.handle(6, &[0x81, 9]),
        Err(PairingError::Decode(_))
    ));
    let told = only(host_asks(&mut host).frames);
    assert_eq!(told, refuse(Reason::Protocol));
}

/// How far a pairing has come.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Start,
    Proving,
    Deciding,
    Agreed,
    Receiving,
    Storing,
}

const STAGES: [Stage; 6] = [
    Stage::Start,
    Stage::Proving,
    Stage::Deciding,
    Stage::Agreed,
    Stage::Receiving,
    Stage::Storing,
];

/// Two machines at a stage, the host from the second stage on.
fn at(stage: Stage) -> (Option<Host>, Joiner) {
    let mut pair = Pair::new(Role::Member);
    match stage {
        Stage::Start => (None, pair.join()),
        Stage::Proving => {
            let joiner = pair.join();
            let (host, joiner, _) = pair.answered_by(joiner);
            (Some(host), joiner)
        }
        Stage::Deciding => {
            let (host, joiner) = pair.deciding();
            (Some(host), joiner)
        }
        Stage::Agreed => {
            let (host, joiner) = pair.agreed();
            (Some(host), joiner)
        }
        Stage::Receiving | Stage::Storing => {
            let (mut host, mut joiner) = pair.agreed();
            host.deliver(8, welcome(vec![vec![1]])).expect("delivers");
            let frames = host_asks(&mut host).frames;
            let taken = if matches!(stage, Stage::Receiving) {
                1
            } else {
                frames.len()
            };
            for frame in frames.iter().take(taken) {
                joiner.handle(9, frame).expect("takes the frame");
            }
            (Some(host), joiner)
        }
    }
}

/// Every frame of a whole pairing.
fn all_frames() -> Vec<Vec<u8>> {
    let mut pair = Pair::new(Role::Member);
    let mut joiner = pair.join();
    let mut all = joiner_asks(&mut joiner).frames;
    let mut host = pair.answer(2, &all[0]).expect("is answered");
    let mut last = host_asks(&mut host).frames;
    joiner.handle(3, &last[0]).expect("takes the answer");
    all.append(&mut last);
    last = joiner_asks(&mut joiner).frames;
    host.handle(4, &last[0]).expect("takes the proof");
    all.append(&mut last);
    last = host_asks(&mut host).frames;
    joiner.handle(5, &last[0]).expect("takes the proof");
    all.append(&mut last);
    host.confirm(6, Consent::Person).expect("confirms");
    joiner.confirm(6).expect("confirms");
    last = joiner_asks(&mut joiner).frames;
    host.handle(7, &last[0]).expect("takes the consent");
    all.append(&mut last);
    host_asks(&mut host);
    host.deliver(8, welcome(vec![vec![1]])).expect("delivers");
    all.extend(host_asks(&mut host).frames);
    all.push(Message::Done.encode());
    all
}

#[test]
fn every_message_out_of_turn_is_an_error() {
    let frames = all_frames();
    assert_eq!(frames.len(), 8, "one of each kind");
    // For each stage the frame that the joiner and the host wait for.
    let expected = [
        (Some(1), None),
        (Some(3), Some(2)),
        (None, Some(4)),
        (Some(5), None),
        (Some(6), Some(7)),
        (None, Some(7)),
    ];
    for (stage, (joiner_takes, host_takes)) in STAGES.into_iter().zip(expected) {
        for (index, frame) in frames.iter().enumerate() {
            let (host, mut joiner) = at(stage);
            let taken = joiner.handle(10, frame);
            assert_eq!(
                taken.is_ok(),
                joiner_takes == Some(index),
                "joiner {stage:?} {index}"
            );
            if taken.is_err() {
                assert_eq!(joiner.handle(10, frame), Err(PairingError::Over));
            }
            let Some(mut host) = host else { continue };
            let taken = host.handle(10, frame);
            assert_eq!(
                taken.is_ok(),
                host_takes == Some(index),
                "host {stage:?} {index}"
            );
            if taken.is_ok() {
                assert!(
                    host.handle(11, frame).is_err(),
                    "host {stage:?}: {index} twice"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_is_an_error_in_every_state(
        stage in prop::sample::select(STAGES.to_vec()),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        kind in 0u8..10,
    ) {
        let mut typed = vec![0x82, kind];
        typed.extend_from_slice(&bytes);
        for frame in [&bytes, &typed] {
            let (host, mut joiner) = at(stage);
            prop_assert!(joiner.handle(10, frame).is_err());
            if let Some(mut host) = host {
                prop_assert!(host.handle(10, frame).is_err());
            } else {
                prop_assert!(Pair::new(Role::Member).answer(10, frame).is_err());
            }
        }
    }

    #[test]
    fn a_changed_frame_never_panics(
        stage in prop::sample::select(STAGES.to_vec()),
        which in 0usize..8,
        index: prop::sample::Index,
        value: u8,
        cut: bool,
    ) {
        let mut frame = all_frames().swap_remove(which);
        let at_byte = index.index(frame.len());
        if cut { frame.truncate(at_byte) } else { frame[at_byte] = value }
        let (host, mut joiner) = at(stage);
        let _ = joiner.handle(10, &frame);
        joiner_asks(&mut joiner);
        match host {
            Some(mut host) => {
                let _ = host.handle(10, &frame);
                host_asks(&mut host);
            }
            None => drop(Pair::new(Role::Member).answer(10, &frame)),
        }
    }

    #[test]
    fn a_roster_of_any_shape_arrives_as_it_was(
        lens in prop::collection::vec(prop_oneof![1usize..200, 400_000usize..segment::SEGMENT_MAX], 1..6),
    ) {
        let segments: Vec<Vec<u8>> =
            (0u8..).zip(&lens).map(|(fill, &len)| vec![fill; len]).collect();
        let (mut host, mut joiner) = Pair::new(Role::Member).agreed();
        host.deliver(8, welcome(segments.clone())).expect("delivers");
        for frame in host_asks(&mut host).frames {
            prop_assert!(frame.len() <= FRAME_LEN_MAX);
            joiner.handle(9, &frame).expect("takes the frame");
        }
        prop_assert_eq!(joiner_asks(&mut joiner).welcome.map(|w| w.segments), Some(segments));
    }
}

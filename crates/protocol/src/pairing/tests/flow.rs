//! The way of a pairing and its honest ends: wrong words, time, a user who says no.

use super::*;

#[test]
fn two_devices_pair() {
    let mut pair = Pair::new(Role::Member);
    let mut joiner = pair.join();
    let hello = only(joiner_asks(&mut joiner).frames);
    let mut host = pair.answer(2, &hello).expect("is answered");
    assert!(!pair.offer.is_live(2));
    joiner
        .handle(3, &only(host_asks(&mut host).frames))
        .expect("takes the answer");
    let asked = joiner_asks(&mut joiner);
    assert!(
        asked.peer.is_none(),
        "nobody is shown before it has proved anything"
    );
    host.handle(4, &only(asked.frames))
        .expect("takes the proof");

    let asked = host_asks(&mut host);
    let seen = asked.peer.expect("the host sees the joiner");
    assert_eq!(seen.device, pair.joiner_keys.public());
    assert_eq!((seen.name.as_str(), seen.role), ("phone", Role::Member));
    joiner
        .handle(5, &only(asked.frames))
        .expect("takes the proof");
    let peer = joiner_asks(&mut joiner)
        .peer
        .expect("the joiner sees the host");
    assert_eq!(peer.device, pair.host_keys.public());
    assert_eq!((peer.name.as_str(), peer.role), ("laptop", Role::Member));

    host.confirm(6, Consent::Standing).expect("confirms");
    assert!(
        host_asks(&mut host).grant.is_none(),
        "one side's consent is not enough"
    );
    joiner.confirm(6).expect("confirms");
    host.handle(7, &only(joiner_asks(&mut joiner).frames))
        .expect("takes the consent");
    assert_eq!(host_asks(&mut host).grant, Some(seen));

    let given = welcome(vec![
        vec![1; 10],
        vec![2; segment::SEGMENT_MAX],
        vec![3; 700_000],
        vec![4],
    ]);
    host.deliver(8, given.clone()).expect("delivers");
    let frames = host_asks(&mut host).frames;
    assert!(frames.len() > 2);
    for frame in &frames {
        assert!(frame.len() <= FRAME_LEN_MAX && frame.len() <= joiner.frame_len_max());
        joiner.handle(9, frame).expect("takes the frame");
    }
    assert_eq!(joiner_asks(&mut joiner).welcome, Some(given));
    joiner.stored().expect("is done");
    let asked = joiner_asks(&mut joiner);
    assert!(asked.finished);
    host.handle(10, &only(asked.frames)).expect("takes the end");
    assert!(host_asks(&mut host).finished);
    assert_eq!((host.poll_timeout(), joiner.poll_timeout()), (None, None));
    assert_eq!(host.handle(11, &[]), Err(PairingError::Over));
    assert_eq!(joiner.stored(), Err(PairingError::Over));
}

#[test]
fn wrong_words_burn_the_code_and_both_sides_say_so() {
    let mut pair = Pair::new(Role::Member);
    let wrong = PairingCode::parse(&format!("{:04}-zoo-zone", pair.offer.code().slot()));
    let joiner = pair.join_with(&wrong.expect("a code"), &EXPORTER);
    let (mut host, mut joiner, proof) = pair.answered_by(joiner);
    assert_eq!(host.handle(4, &proof), Err(PairingError::WrongCode));
    let asked = host_asks(&mut host);
    assert!(asked.peer.is_none());
    assert_eq!(
        joiner.handle(5, &only(asked.frames)),
        Err(PairingError::WrongCode)
    );
    assert!(
        joiner_asks(&mut joiner).frames.is_empty(),
        "the other side knows already"
    );

    let mut second = pair.join();
    let refused = pair
        .answer(6, &only(joiner_asks(&mut second).frames))
        .expect_err("is refused");
    assert_eq!(refused.error, PairingError::Spent);
    assert_eq!(second.handle(7, &refused.reply), Err(PairingError::Spent));
}

#[test]
fn another_slot_is_another_code() {
    let mut pair = Pair::new(Role::Member);
    let shown = pair.offer.code().reveal();
    let (_, words) = shown.split_once('-').expect("a code");
    let other = (pair.offer.code().slot() + 1) % 10_000;
    let code = PairingCode::parse(&format!("{other:04}-{words}")).expect("a code");
    let joiner = pair.join_with(&code, &EXPORTER);
    let (mut host, _, proof) = pair.answered_by(joiner);
    assert_eq!(host.handle(4, &proof), Err(PairingError::WrongCode));
}

#[test]
fn a_second_attempt_is_refused_while_the_first_runs() {
    let mut pair = Pair::new(Role::Member);
    let joiner = pair.join();
    let (mut host, _, proof) = pair.answered_by(joiner);
    let hello = only(joiner_asks(&mut pair.join()).frames);
    assert_eq!(
        pair.answer(4, &hello).expect_err("is refused").error,
        PairingError::Spent
    );
    host.handle(5, &proof).expect("the first goes on");
}

#[test]
fn only_an_answer_spends_the_code() {
    let mut pair = Pair::new(Role::Member);
    let hello = only(joiner_asks(&mut pair.join()).frames);
    for cut in 0..hello.len() {
        assert!(pair.answer(2, &hello[..cut]).is_err());
    }
    let long = vec![0; STRANGER_FRAME_LEN_MAX + 1];
    assert!(matches!(
        pair.answer(2, &long).expect_err("is refused").error,
        PairingError::Decode(DecodeError::TooLarge { .. })
    ));
    // Array, type, map, key 0, version.
    let mut newer = hello.clone();
    assert_eq!(newer[4], 1);
    newer[4] = 2;
    let refused = pair.answer(2, &newer).expect_err("is refused");
    assert_eq!(refused.error, PairingError::Version);
    assert!(pair.offer.is_live(2));
    assert!(pair.answer(2, &hello).is_ok());
}

#[test]
fn a_code_dies_after_ten_minutes() {
    let mut pair = Pair::new(Role::Member);
    let mut joiner = pair.join();
    let hello = only(joiner_asks(&mut joiner).frames);
    assert!(pair.offer.is_live(CODE_LIFE_MS - 1) && !pair.offer.is_live(CODE_LIFE_MS));
    let refused = pair.answer(CODE_LIFE_MS, &hello).expect_err("is refused");
    assert_eq!(refused.error, PairingError::Expired);
    assert_eq!(joiner.handle(2, &refused.reply), Err(PairingError::Expired));
}

#[test]
fn no_step_waits_for_ever() {
    let mut pair = Pair::new(Role::Member);
    let (mut host, mut joiner) = pair.deciding();
    let deadline = host.poll_timeout().expect("a deadline");
    assert_eq!(host.handle_timeout(deadline - 1), Ok(()));
    assert_eq!(
        host.confirm(deadline, Consent::Person),
        Err(PairingError::Expired)
    );
    let told = only(host_asks(&mut host).frames);
    assert_eq!(joiner.handle(6, &told), Err(PairingError::Expired));

    let mut joiner = pair.join();
    joiner_asks(&mut joiner);
    let deadline = joiner.poll_timeout().expect("a deadline");
    assert_eq!(joiner.handle_timeout(deadline), Err(PairingError::Expired));
    assert_eq!(joiner.handle_timeout(deadline), Err(PairingError::Over));
}

#[test]
fn either_user_may_say_no() {
    let mut pair = Pair::new(Role::Member);
    let (mut host, mut joiner) = pair.deciding();
    host.reject().expect("rejects");
    let told = only(host_asks(&mut host).frames);
    assert_eq!(joiner.handle(6, &told), Err(PairingError::RejectedByPeer));
    assert_eq!(joiner.confirm(7), Err(PairingError::Over));

    let (mut host, mut joiner) = Pair::new(Role::Member).deciding();
    host.confirm(6, Consent::Person).expect("confirms");
    joiner.reject().expect("rejects");
    let told = only(joiner_asks(&mut joiner).frames);
    assert_eq!(host.handle(7, &told), Err(PairingError::RejectedByPeer));
    let asked = host_asks(&mut host);
    assert!(asked.grant.is_none() && asked.frames.is_empty());
    assert_eq!(
        host.deliver(8, welcome(vec![vec![1]])),
        Err(PairingError::Over)
    );
}

#[test]
fn a_standing_order_never_makes_an_admin() {
    let (mut host, mut joiner) = Pair::new(Role::Admin).deciding();
    assert_eq!(
        host.confirm(6, Consent::Standing),
        Err(PairingError::NeedsPerson)
    );
    joiner.confirm(6).expect("confirms");
    host.handle(7, &only(joiner_asks(&mut joiner).frames))
        .expect("takes the consent");
    assert!(host_asks(&mut host).grant.is_none());
    host.confirm(8, Consent::Person).expect("a person may");
    assert!(host_asks(&mut host).grant.is_some());
}

#[test]
fn nothing_of_the_pac_is_said_before_both_agree() {
    let founding = founding();
    let pac = founding.id();
    let record = founding.record();
    let secrets: [&[u8]; 6] = [
        pac.as_bytes(),
        record.root.0.as_bytes(),
        record.root_sealing.as_bytes(),
        &ROSTER_KEY,
        &PRIVATE_KEY,
        b"192.0.2.1",
    ];
    let holds = |frames: &[Vec<u8>]| {
        secrets.map(|secret| {
            frames
                .iter()
                .any(|frame| frame.windows(secret.len()).any(|window| window == secret))
        })
    };
    let mut pair = Pair::new(Role::Member);
    let mut joiner = pair.join();
    let mut host = pair
        .answer(2, &only(joiner_asks(&mut joiner).frames))
        .expect("is answered");
    let mut said = host_asks(&mut host).frames;
    joiner.handle(3, &said[0]).expect("takes the answer");
    host.handle(4, &only(joiner_asks(&mut joiner).frames))
        .expect("takes the proof");
    let asked = host_asks(&mut host);
    joiner.handle(5, &asked.frames[0]).expect("takes the proof");
    said.extend(asked.frames);
    joiner_asks(&mut joiner);
    assert!(
        host.deliver(6, welcome(vec![vec![1]])).is_err(),
        "not before consent"
    );
    host.confirm(6, Consent::Person).expect("confirms");
    assert!(
        host.deliver(6, welcome(vec![vec![1]])).is_err(),
        "not before both consent"
    );
    joiner.confirm(6).expect("confirms");
    said.extend(host_asks(&mut host).frames);
    host.handle(7, &only(joiner_asks(&mut joiner).frames))
        .expect("takes the consent");
    said.extend(host_asks(&mut host).frames);
    assert_eq!(holds(&said), [false; 6]);
    assert_eq!(said.len(), 2, "the answer and the proof");

    host.deliver(8, welcome(vec![vec![1]])).expect("delivers");
    let mut after = host_asks(&mut host).frames;
    after.push(pac.as_bytes().to_vec());
    assert_eq!(holds(&after), [true; 6], "the scan finds what is there");
}

#[test]
fn a_relay_gets_no_private_key_and_others_no_less() {
    let (mut host, mut joiner) = Pair::new(Role::Relay).agreed();
    assert!(matches!(
        host.deliver(8, welcome(vec![vec![1]])),
        Err(PairingError::Misuse(_))
    ));
    let mut given = welcome(vec![vec![1]]);
    given.keys = RosterKeys::Relay {
        roster: Key::from_bytes(ROSTER_KEY),
    };
    assert!(
        matches!(host.deliver(8, given.clone()), Err(PairingError::Misuse(_))),
        "no names"
    );
    given.spaces.clear();
    host.deliver(8, given.clone()).expect("delivers");
    for frame in host_asks(&mut host).frames {
        joiner.handle(9, &frame).expect("takes the frame");
    }
    assert_eq!(joiner_asks(&mut joiner).welcome, Some(given.clone()));

    let (mut host, _) = Pair::new(Role::Member).agreed();
    assert!(matches!(
        host.deliver(8, given),
        Err(PairingError::Misuse(_))
    ));
}

#[test]
fn a_welcome_out_of_bounds_is_not_sent() {
    let (mut host, _) = Pair::new(Role::Member).agreed();
    let bad = vec![
        welcome(vec![]),
        welcome(vec![vec![]]),
        welcome(vec![vec![0; segment::SEGMENT_MAX + 1]]),
        welcome(vec![vec![0]; ROSTER_SEGMENTS_MAX + 1]),
        welcome(vec![vec![0; 1 << 20]; 65]),
        Welcome {
            addresses: vec![String::new(); ADDRESSES_MAX + 1],
            ..welcome(vec![vec![1]])
        },
        Welcome {
            addresses: vec!["x".repeat(257)],
            ..welcome(vec![vec![1]])
        },
    ];
    for given in bad {
        assert!(host.deliver(8, given).is_err());
    }
    host.deliver(8, welcome(vec![vec![1]]))
        .expect("it still waits for a good one");
}

#[test]
fn secrets_do_not_print() {
    let mut pair = Pair::new(Role::Member);
    let (host, joiner) = pair.agreed();
    let shown = pair.offer.code().reveal();
    let words = shown.split_once('-').expect("a code").1.to_owned();
    let text = format!(
        "{:?} {host:?} {joiner:?} {:?}",
        pair.offer,
        welcome(vec![]).keys
    );
    assert!(!text.contains(&words) && text.contains("Key(..)"), "{text}");
}

//! Two replicas with one key and one life: their logs fork, and everybody keeps all of both.

use pacsync_protocol::segment::SignedSegment;
use pacsync_protocol::{Dep, SpaceId};
use proptest::prelude::*;

use crate::checkpoint::Verdict;
use crate::checkpoint::tests::{Pac, SPACE};
use crate::error::Refusal;
use crate::txn::BRANCHES_MAX;

/// A second replica that is what replica 0 is, as a copy of its home would be.
fn clone_of_first(pac: &mut Pac, device: usize) -> usize {
    let copy = pac.join_as(0);
    let roster = pac.stores[0].roster_space();
    for space in [roster, SPACE] {
        pac.sync(0, copy, space);
    }
    pac.stores[copy].incarnation = pac.stores[0].incarnation;
    assert_eq!(device, copy);
    copy
}

/// All segments of a space that anybody holds, in no order that helps.
fn all_segments(pac: &Pac, space: SpaceId) -> Vec<Vec<u8>> {
    let mut all = std::collections::BTreeSet::new();
    for store in &pac.stores {
        for (log, _) in store.held(&space).expect("reads").iter() {
            let (found, _) = store.segments(&space, &log, 1, usize::MAX).expect("reads");
            all.extend(found);
        }
    }
    all.into_iter().collect()
}

/// Hands segments in, in this order, as often as it takes until none leaves a gap.
fn hand_in(pac: &mut Pac, to: usize, mut rest: Vec<Vec<u8>>) {
    while !rest.is_empty() {
        let before = rest.len();
        let mut later = vec![];
        for bytes in rest {
            let segment = SignedSegment::parse(&bytes).expect("a segment");
            let segment = segment.verify().expect("verifies");
            let mut txn = pac.stores[to].begin().expect("begins");
            match txn.hold(&segment).expect("stores") {
                Ok(()) => {}
                Err(Refusal::Gap { .. }) => later.push(bytes),
                Err(other) => panic!("{other}"),
            }
            txn.apply(1, &mut pac.rng).expect("applies");
            txn.commit().expect("commits");
        }
        assert!(later.len() < before, "no segment fits");
        rest = later;
    }
}

/// Hands everything to everybody until nobody writes what follows from it any more.
fn settle(pac: &mut Pac, who: &[usize]) {
    let mut before = 0;
    loop {
        let segments = all_segments(pac, SPACE);
        if segments.len() == before {
            return;
        }
        before = segments.len();
        for to in who {
            hand_in(pac, *to, segments.clone());
        }
    }
}

fn shuffle(pac: &mut Pac, segments: &mut [Vec<u8>]) {
    for at in (1..segments.len()).rev() {
        let other = pac.below(at + 1);
        segments.swap(at, other);
    }
}

/// A pac in which the first device was cloned and each side has written, also upon the other's
/// deeds: 0 and 2 share a key, 1 hears of one side or the other.
fn forked(seed: u64) -> Pac {
    let mut pac = Pac::new(2, seed);
    for _ in 0..3 {
        pac.write(0);
    }
    let copy = clone_of_first(&mut pac, 2);
    let hears = if pac.below(2) == 0 { 0 } else { copy };
    // A setting that is as it was is not written.
    let before = pac.state(0).held;
    for side in [0, copy] {
        while pac.state(side).held == before {
            pac.write(side);
        }
    }
    for _ in 0..1 + pac.below(4) {
        pac.write(0);
        pac.write(copy);
        if pac.below(2) == 0 {
            pac.sync(hears, 1, SPACE);
            pac.write(1);
        }
    }
    pac
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The same names, heads and tree on every replica, in whatever order the branches came.
    #[test]
    fn branches_are_the_same_in_every_order(seed: u64) {
        let mut pac = forked(seed);
        let mut segments = all_segments(&pac, SPACE);
        let roster = pac.stores[0].roster_space();
        let fresh = [pac.join_as(1), pac.join_as(1)];
        for to in fresh {
            pac.sync(0, to, roster);
            shuffle(&mut pac, &mut segments);
            hand_in(&mut pac, to, segments.clone());
        }
        // Also those that had one side first.
        settle(&mut pac, &[0, 1, 2, fresh[0], fresh[1]]);
        let whole = pac.state(fresh[0]);
        prop_assert_eq!(&whole.vector, &whole.held, "all that is held is applied");
        let branches = whole.held.iter().filter(|(log, _)| log.branch.is_some());
        prop_assert_eq!(branches.count(), 1);
        for who in [fresh[1], 0, 1, 2] {
            prop_assert_eq!(&pac.state(who), &whole, "replica {}", who);
        }
        let all = all_segments(&pac, SPACE);
        prop_assert!(segments.iter().all(|segment| all.contains(segment)), "nothing is lost");
        for who in [0, 1, 2] {
            let forked = pac.stores[who].forked().expect("reads");
            prop_assert_eq!(forked.len(), 1);
        }
    }

    /// The other chain of a fork is lacked, whatever its numbers are, until it is here.
    #[test]
    fn the_other_chain_is_lacked(seed: u64) {
        let mut pac = forked(seed);
        let vectors = [0, 2].map(|who| pac.state(who).vector);
        let lacks = |pac: &Pac, who: usize, vector| pac.stores[who].lacks(&SPACE, vector).expect("reads");
        prop_assert!(lacks(&pac, 0, &vectors[1]) && lacks(&pac, 2, &vectors[0]));
        prop_assert!(!lacks(&pac, 0, &vectors[0]) && !lacks(&pac, 2, &vectors[1]));
        settle(&mut pac, &[0, 1, 2]);
        for vector in &vectors {
            prop_assert!(!lacks(&pac, 0, vector) && !lacks(&pac, 2, vector));
        }
    }

    /// A checkpoint has all branches, for who has none of them, one, or both in another order; and
    /// what is written on top of it finds the same past everywhere.
    #[test]
    fn a_checkpoint_of_a_forked_log_is_all_of_it(seed: u64) {
        let mut pac = forked(seed);
        let mut segments = all_segments(&pac, SPACE);
        let roster = pac.stores[0].roster_space();
        let [whole, other, new] = [pac.join_as(1), pac.join_as(1), pac.join_as(1)];
        for to in [whole, other] {
            pac.sync(0, to, roster);
            shuffle(&mut pac, &mut segments);
            hand_in(&mut pac, to, segments.clone());
        }
        let state = pac.state(whole);
        for to in [new, other, 0, 1, 2] {
            let ahead = pac.stores[to].applied(&SPACE).expect("reads");
            prop_assert_eq!(pac.checkpoint(whole, to), Ok(()), "replica {}", to);
            let now = pac.stores[to].applied(&SPACE).expect("reads");
            prop_assert!(ahead.len() <= now.len());
        }
        for who in [new, other] {
            let applied = pac.stores[who].applied(&SPACE).expect("reads");
            prop_assert!(applied.covers(&state.vector));
        }
        for who in [0, 2] {
            let life = pac.stores[who].own_log().incarnation;
            prop_assert!(state.held.iter().all(|(log, _)| log.incarnation != life), "a life of its own");
        }
        for who in [new, 0, 1, 2, whole] {
            pac.write(who);
        }
        let fresh = pac.join_as(1);
        let all = all_segments(&pac, SPACE);
        pac.sync(0, fresh, roster);
        hand_in(&mut pac, fresh, all);
        settle(&mut pac, &[0, 1, 2, whole, other, new, fresh]);
        let end = pac.state(fresh);
        for who in [0, 1, 2, whole, other, new] {
            prop_assert_eq!(&pac.state(who), &end, "replica {}", who);
        }
        let header = pac.header_of(whole);
        for who in [0, 1, 2, other, new] {
            let judged = pac.stores[who].judge(&header).expect("reads");
            prop_assert_eq!(judged, Verdict::Same);
        }
    }

    /// Whoever lacks a branch gets it by its trail, whatever the other side calls it.
    #[test]
    fn a_trail_finds_what_is_lacked(seed: u64) {
        let mut pac = forked(seed);
        for (from, to) in [(2, 0), (0, 2), (0, 1), (2, 1)] {
            let heads: Vec<_> = pac.stores[from].held(&SPACE).expect("reads").iter().collect();
            for (log, head) in heads {
                let dep = Dep { log, head };
                let mut shared = None;
                while !pac.stores[to].holds(&SPACE, &dep).expect("reads") {
                    let mut trail = pac.stores[to].trail(&SPACE, &log).expect("reads");
                    trail.extend(shared);
                    let found = pac.stores[from].branch(&SPACE, &dep, &trail, 1).expect("reads");
                    prop_assert_eq!(found.len(), 1);
                    let last = SignedSegment::parse(&found[0]).expect("a segment");
                    let head = last.assume_verified().head();
                    prop_assert!(shared != Some(head), "no answer comes twice");
                    shared = Some(head);
                    hand_in(&mut pac, to, found);
                }
            }
        }
        settle(&mut pac, &[0, 1, 2]);
        prop_assert_eq!(&pac.state(1), &pac.state(0));
        prop_assert_eq!(&pac.state(2), &pac.state(0));
    }
}

#[test]
fn who_hears_of_its_own_log_writes_another_one_and_keeps_what_it_wrote() {
    let mut pac = Pac::new(2, 7);
    pac.write(0);
    let copy = clone_of_first(&mut pac, 2);
    pac.write(0);
    pac.write(copy);
    let old = pac.stores[0].own_log();
    let known = pac.state(0);
    let segments = all_segments(&pac, SPACE);
    hand_in(&mut pac, 0, segments.clone());
    assert_ne!(pac.stores[0].own_log(), old, "it hears of the other branch");
    for log in known.held.iter().map(|(log, head)| Dep { log, head }) {
        assert!(pac.stores[0].holds(&SPACE, &log).expect("reads"));
    }
    let held = pac.stores[0].held(&SPACE).expect("reads");
    let of_old = |(log, _): &(pacsync_protocol::LogId, _)| log.incarnation == old.incarnation;
    let before: Vec<_> = held.iter().filter(of_old).collect();
    pac.write(0);
    let held = pac.stores[0].held(&SPACE).expect("reads");
    let after: Vec<_> = held.iter().filter(of_old).collect();
    assert_eq!(before, after, "neither branch grows");
    assert_eq!(held.seq(&pac.stores[0].own_log()), 1);
}

#[test]
fn who_was_put_back_writes_another_log() {
    let mut pac = Pac::new(2, 8);
    pac.write(0);
    let copy = clone_of_first(&mut pac, 2);
    pac.write(0);
    let own = pac.stores[copy].own_log();
    let segments = all_segments(&pac, SPACE);
    hand_in(&mut pac, copy, segments);
    assert_ne!(pac.stores[copy].own_log(), own);
    pac.write(copy);
    let held = pac.stores[copy].held(&SPACE).expect("reads");
    assert!(
        held.iter().all(|(log, _)| log.branch.is_none()),
        "nothing forks"
    );
    assert!(pac.stores[copy].forked().expect("reads").is_empty());
}

#[test]
fn a_writer_that_forks_without_end_is_bounded() {
    let mut pac = Pac::new(2, 9);
    pac.write(0);
    let mut taken = 0;
    for _ in 0..BRANCHES_MAX + 4 {
        let copy = pac.join_as(0);
        let roster = pac.stores[0].roster_space();
        pac.sync(0, copy, roster);
        pac.stores[copy].incarnation = pac.stores[0].incarnation;
        pac.write(copy);
        let log = pac.stores[copy].own_log();
        let (found, _) = pac.stores[copy]
            .segments(&SPACE, &log, 1, usize::MAX)
            .expect("reads");
        for bytes in found {
            let segment = SignedSegment::parse(&bytes).expect("a segment");
            let segment = segment.verify().expect("verifies");
            let mut txn = pac.stores[1].begin().expect("begins");
            match txn.hold(&segment).expect("stores") {
                Ok(()) => taken += 1,
                Err(refusal) => assert!(matches!(refusal, Refusal::TooManyLogs { .. })),
            }
            txn.commit().expect("commits");
        }
    }
    // The first one is no branch while it is alone.
    assert_eq!(taken, BRANCHES_MAX + 1);
}

#[test]
fn a_copied_database_begins_a_new_life_and_one_that_stays_does_not() {
    let mut pac = Pac::new(2, 10);
    let own = pac.stores[0].own_log();
    for (place, moved) in [("here", false), ("here", false), ("there", true)] {
        let found = pac.stores[0].settle_at(place.as_bytes(), &mut pac.rng);
        assert_eq!(found.expect("writes"), moved, "{place}");
        assert_eq!(pac.stores[0].own_log() != own, moved, "{place}");
    }
}

//! What peers said they lack: nobody is asked twice for the same while others may have it.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::{ContentId, DeviceId, Incarnation};

/// A replica that is asked for content. Of two with one key, each has a life of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Its key.
    pub device: DeviceId,
    /// Its life, as it said.
    pub life: Option<Incarnation>,
}

/// How long a peer's answer counts at first: it may be fetching the same itself.
const RETRY_MIN_MS: u64 = 50;
/// And at last, where nothing of what it lacks ever comes to it.
const RETRY_MAX_MS: u64 = 10_000;
/// Most answers that are kept of one peer; with more it is not asked for anything until they
/// are forgotten.
const CONTENTS_MAX: usize = 16_384;

/// The answers of one peer.
#[derive(Debug)]
struct Answers {
    contents: BTreeSet<ContentId>,
    /// When they are forgotten.
    until_ms: u64,
    /// How long the next ones count.
    retry_ms: u64,
}

/// Answers of peers that they lack a content, each forgotten after a while. The while grows as
/// long as a peer has nothing of what it is asked for.
#[derive(Debug, Default)]
pub(super) struct Lacks {
    peers: BTreeMap<Replica, Answers>,
}

impl Lacks {
    /// A peer said that it lacks a content.
    pub(super) fn note(&mut self, peer: &Replica, content: ContentId, now_ms: u64) {
        let answers = self.peers.entry(*peer).or_insert(Answers {
            contents: BTreeSet::new(),
            until_ms: 0,
            retry_ms: RETRY_MIN_MS,
        });
        if answers.contents.is_empty() {
            answers.until_ms = now_ms.saturating_add(answers.retry_ms);
        }
        if answers.contents.len() < CONTENTS_MAX {
            answers.contents.insert(content);
        }
    }

    /// A peer sent some of what it was asked for: it may soon have more.
    pub(super) fn delivered(&mut self, peer: &Replica, now_ms: u64) {
        if let Some(answers) = self.peers.get_mut(peer) {
            answers.retry_ms = RETRY_MIN_MS;
            answers.until_ms = answers.until_ms.min(now_ms.saturating_add(RETRY_MIN_MS));
        }
    }

    /// Whether it is of no use to ask a peer for a content now.
    pub(super) fn has(&self, peer: &Replica, content: &ContentId) -> bool {
        self.peers.get(peer).is_some_and(|answers| {
            answers.contents.len() >= CONTENTS_MAX || answers.contents.contains(content)
        })
    }

    /// Whether a peer lately lacked something and has sent nothing since.
    pub(super) fn any_of(&self, peer: &Replica) -> bool {
        self.peers
            .get(peer)
            .is_some_and(|answers| !answers.contents.is_empty() || answers.retry_ms > RETRY_MIN_MS)
    }

    /// A peer's replica has changed: its answers are out of date.
    pub(super) fn out_of_date(&mut self, peer: &Replica) {
        if let Some(answers) = self.peers.get_mut(peer) {
            answers.contents.clear();
        }
    }

    /// A peer is gone or begins anew.
    pub(super) fn forget(&mut self, peer: &Replica) {
        self.peers.remove(peer);
    }

    /// Nothing waits any more.
    pub(super) fn clear(&mut self) {
        self.peers.clear();
    }

    /// Forgets the answers whose time is over; true if there were any.
    pub(super) fn expire(&mut self, now_ms: u64) -> bool {
        let mut any = false;
        for answers in self.peers.values_mut() {
            if !answers.contents.is_empty() && answers.until_ms <= now_ms {
                answers.contents.clear();
                answers.retry_ms = (answers.retry_ms * 2).min(RETRY_MAX_MS);
                any = true;
            }
        }
        any
    }

    /// When the next answers are forgotten.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.peers
            .values()
            .filter(|answers| !answers.contents.is_empty())
            .map(|answers| answers.until_ms)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pacsync_protocol::crypto::SigningKey;

    fn device(seed: u8) -> Replica {
        Replica {
            device: SigningKey::from_seed(&[seed; 32]).id(),
            life: None,
        }
    }

    fn content(number: u32) -> ContentId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        ContentId::from_bytes(bytes)
    }

    #[test]
    fn one_peers_answer_is_not_anothers() {
        let (one, other) = (device(1), device(2));
        let mut lacks = Lacks::default();
        lacks.note(&one, content(1), 1_000);
        assert!(lacks.has(&one, &content(1)));
        assert!(!lacks.has(&one, &content(2)) && !lacks.has(&other, &content(1)));
        assert!(lacks.any_of(&one) && !lacks.any_of(&other));
        lacks.out_of_date(&one);
        assert!(!lacks.has(&one, &content(1)) && lacks.next_due().is_none());
    }

    #[test]
    fn a_peer_that_never_has_it_is_asked_ever_more_seldom() {
        let peer = device(1);
        let mut lacks = Lacks::default();
        let mut now = 0;
        let mut asked = 0;
        while now < 60_000 {
            lacks.note(&peer, content(1), now);
            asked += 1;
            let due = lacks.next_due().expect("is forgotten some day");
            assert!(due > now, "no wait at all");
            now = due;
            lacks.expire(now);
            assert!(!lacks.has(&peer, &content(1)));
        }
        assert!(asked < 20, "asked {asked} times in a minute");
        // What it sends shows that it gets on.
        lacks.note(&peer, content(1), now);
        lacks.delivered(&peer, now);
        assert_eq!(lacks.next_due(), Some(now + RETRY_MIN_MS));
    }

    #[test]
    fn the_answers_of_a_peer_are_bounded() {
        let peer = device(1);
        let mut lacks = Lacks::default();
        for number in 0..CONTENTS_MAX as u32 + 10 {
            lacks.note(&peer, content(number), 0);
        }
        assert_eq!(lacks.peers[&peer].contents.len(), CONTENTS_MAX);
        // It is left alone with the rest, too.
        assert!(lacks.has(&peer, &content(u32::MAX)));
        lacks.expire(RETRY_MIN_MS);
        assert!(!lacks.has(&peer, &content(0)));
    }
}

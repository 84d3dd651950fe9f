//! Two connections to one device: which one stays, so that both sides come to the same answer
//! without another word.
//!
//! Who dialled speaks first, and only on a connection that it wants: one that it finds needless
//! when it stands (the peer has come meanwhile) it closes unused. Who was dialled does nothing
//! before that first frame. So a dial that comes late disturbs nothing, and one of a peer that
//! begins anew takes the place of the connection that died with it.

use std::net::SocketAddr;

use pacsync_protocol::DeviceId;

use crate::net::{Direction, PeerStanding};

/// Dials that are spoken on within this time of each other may have crossed.
const CROSSED_MS: u64 = 2_000;

/// How long a device that dialled may be silent.
pub(super) const SILENT_MAX_MS: u64 = 10_000;

/// An incoming connection on which nothing was said yet.
#[derive(Debug)]
pub(super) struct Silent {
    pub(super) device: DeviceId,
    pub(super) address: SocketAddr,
    pub(super) standing: PeerStanding,
    pub(super) since_ms: u64,
    /// Frames that had come from anyone before it stood.
    pub(super) after: u64,
}

/// The connection that is in use when a device speaks on another one that it dialled.
#[derive(Debug, Clone, Copy)]
pub(super) struct InUse {
    pub(super) direction: Direction,
    pub(super) age_ms: u64,
    /// Count of frames when the last one came by it; `None` if none did.
    pub(super) heard: Option<u64>,
}

/// Which connection stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stays {
    InUse,
    New,
}

/// Decides when the peer speaks on a connection that it dialled.
pub(super) fn choose(own: &DeviceId, peer: &DeviceId, in_use: InUse, after: u64) -> Stays {
    match (in_use.direction, in_use.heard) {
        // It would not have dialled again if it still had that one.
        (Direction::Incoming, _) => Stays::New,
        // It has answered there since: it closes the new one itself.
        (Direction::Outgoing, Some(heard)) if heard > after => Stays::InUse,
        (Direction::Outgoing, Some(_)) => Stays::New,
        // Both dialled and spoke, and neither has heard: the dial of the lesser id stays.
        (Direction::Outgoing, None) if in_use.age_ms < CROSSED_MS && own < peer => Stays::InUse,
        (Direction::Outgoing, None) => Stays::New,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pacsync_protocol::crypto::SigningKey;

    fn two() -> (DeviceId, DeviceId) {
        let ids = [1, 2].map(|seed| SigningKey::from_seed(&[seed; 32]).id());
        let [one, other] = ids;
        (one.min(other), one.max(other))
    }

    fn fresh(direction: Direction, heard: Option<u64>) -> InUse {
        InUse {
            direction,
            age_ms: 10,
            heard,
        }
    }

    #[test]
    fn crossed_dials_leave_the_same_one_on_both_sides() {
        let (lesser, greater) = two();
        let unheard = fresh(Direction::Outgoing, None);
        assert_eq!(choose(&lesser, &greater, unheard, 0), Stays::InUse);
        assert_eq!(choose(&greater, &lesser, unheard, 0), Stays::New);
        // The lesser one's answer may come before its own dial is heard of.
        let answered = fresh(Direction::Outgoing, Some(6));
        assert_eq!(choose(&greater, &lesser, answered, 5), Stays::InUse);
    }

    #[test]
    fn a_peer_that_begins_anew_is_let_in_at_once() {
        let (lesser, greater) = two();
        for (own, peer) in [(lesser, greater), (greater, lesser)] {
            for direction in [Direction::Incoming, Direction::Outgoing] {
                let heard_before = fresh(direction, Some(5));
                assert_eq!(choose(&own, &peer, heard_before, 5), Stays::New);
            }
            let never_answered = InUse {
                age_ms: CROSSED_MS,
                ..fresh(Direction::Outgoing, None)
            };
            assert_eq!(choose(&own, &peer, never_answered, 0), Stays::New);
        }
    }
}

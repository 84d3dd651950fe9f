//! Nodes that have each other planned anew must not keep a device busy for ever.

use std::collections::BTreeMap;

use pacsync_protocol::NodeId;

use super::{Now, RETRY_MS};

/// How often a node is planned without anything being done, within the time of a retry.
const TURNS_MAX: u32 = 16;

/// How often nodes were planned since something was done last.
#[derive(Default)]
pub(super) struct Circles {
    since_ms: u64,
    turns: BTreeMap<NodeId, u32>,
}

impl Circles {
    /// Counts one turn of a node; true if nothing came of too many: it is put off.
    pub(super) fn has(&mut self, node: NodeId, now: Now) -> bool {
        if now.ms < self.since_ms || now.ms >= self.since_ms.saturating_add(RETRY_MS) {
            self.since_ms = now.ms;
            self.turns.clear();
        }
        let turns = self.turns.entry(node).or_default();
        *turns += 1;
        *turns > TURNS_MAX
    }

    /// Something is done.
    pub(super) fn broken(&mut self) {
        self.turns.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId::from_bytes([1; 16]);
    const OTHER: NodeId = NodeId::from_bytes([2; 16]);

    fn at(ms: u64) -> Now {
        Now {
            ms,
            ns: ms as i64 * 1_000_000,
        }
    }

    #[test]
    fn a_node_is_put_off_after_turns_without_a_deed_in_one_retry() {
        let mut circles = Circles::default();
        let turns = |from: u64, circles: &mut Circles| {
            let until = |turn: &u32| !circles.has(ONE, at(from + u64::from(*turn)));
            (0..TURNS_MAX * 2).take_while(until).count()
        };
        let most = TURNS_MAX as usize;
        assert_eq!(turns(5_000, &mut circles), most);
        assert!(!circles.has(OTHER, at(5_100)));
        assert!(circles.has(ONE, at(5_100)));
        circles.broken();
        assert_eq!(turns(5_200, &mut circles), most);
        assert_eq!(turns(5_000 + RETRY_MS, &mut circles), most);
        assert_eq!(turns(3_000, &mut circles), most, "the clock went back");
    }
}

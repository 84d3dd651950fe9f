//! The circuit breaker: mass deletes wait for the user, in both directions.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::NodeId;

use crate::disk::RelPath;

/// Fewer deletes than this are never held.
const ALWAYS_ALLOWED: u64 = 100;
/// A space of fewer entries may be emptied without asking.
pub(super) const WHOLE_MIN: u64 = 10;
/// Deletes within this time count together.
const WINDOW_MS: u64 = 10_000;

/// Deletes that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Gone from this disk, not yet told to the pac.
    pub local: BTreeMap<NodeId, RelPath>,
    /// Deleted elsewhere, not yet carried out here.
    pub remote: BTreeMap<NodeId, RelPath>,
}

impl Held {
    /// How many.
    pub fn len(&self) -> usize {
        self.local.len() + self.remote.len()
    }

    /// True if none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Default)]
struct Window {
    until_ms: u64,
    /// Entries at its begin.
    entries: u64,
    deleted: u64,
}

impl Window {
    /// Counts deletes; true if they are too many for the space.
    fn trips(&mut self, count: u64, entries: u64, now_ms: u64) -> bool {
        if now_ms > self.until_ms {
            *self = Self {
                until_ms: 0,
                entries,
                deleted: 0,
            };
        }
        self.until_ms = now_ms + WINDOW_MS;
        self.entries = self.entries.max(entries);
        let deleted = self.deleted + count;
        let trips = deleted > ALWAYS_ALLOWED && deleted.saturating_mul(2) > self.entries;
        if !trips {
            self.deleted = deleted;
        }
        trips
    }
}

/// Counts deletes in both directions and keeps those that wait.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    held: Held,
    local: Window,
    remote: Window,
    /// Nodes whose deletion somebody has confirmed.
    confirmed: BTreeSet<NodeId>,
}

/// Which way deletes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From this disk to the pac.
    Local,
    /// From the pac to this disk.
    Remote,
}

impl Breaker {
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    pub(super) fn held_mut(&mut self) -> &mut Held {
        &mut self.held
    }

    /// True if that many deletes out of so many entries must wait.
    pub(super) fn trips(
        &mut self,
        direction: Direction,
        count: u64,
        entries: u64,
        now_ms: u64,
    ) -> bool {
        match direction {
            Direction::Local => self.local.trips(count, entries, now_ms),
            Direction::Remote => self.remote.trips(count, entries, now_ms),
        }
    }

    pub(super) fn confirm(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        self.confirmed.extend(nodes);
    }

    pub(super) fn is_confirmed(&self, node: &NodeId) -> bool {
        self.confirmed.contains(node)
    }

    pub(super) fn done(&mut self, node: &NodeId) {
        self.confirmed.remove(node);
        self.held.remote.remove(node);
        self.held.local.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_half_and_more_than_a_hundred_trip_it() {
        let mut breaker = Breaker::default();
        assert!(!breaker.trips(Direction::Local, 100, 100, 0));
        let mut breaker = Breaker::default();
        assert!(!breaker.trips(Direction::Local, 400, 1000, 0));
        assert!(
            breaker.trips(Direction::Local, 101, 600, 5_000),
            "in pieces"
        );
        assert!(
            !breaker.trips(Direction::Remote, 101, 600, 5_000),
            "the other way"
        );
        let mut breaker = Breaker::default();
        assert!(!breaker.trips(Direction::Local, 400, 1000, 0));
        assert!(
            !breaker.trips(Direction::Local, 101, 600, 50_000),
            "long after"
        );
    }
}

//! What a session knows of one space: both sides' heads and what is between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use crate::ids::{LogId, Seq};
use crate::vector::{Head, VersionVector};

/// A space as one session sees it.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// True while this side takes part.
    pub(super) open: bool,
    /// What is held here durably.
    pub(super) ours: VersionVector,
    /// True once the peer was sent our vector.
    pub(super) announced: bool,
    /// Heads that the peer has not been told of since.
    pub(super) unannounced: BTreeMap<LogId, Head>,
    /// What the peer holds; `None` until it has said so.
    pub(super) peer: Option<VersionVector>,
    /// Parts of the peer's vector, before the last one.
    pub(super) peer_parts: VersionVector,
    /// Up to where each log was sent, whether or not it has arrived.
    sent: BTreeMap<LogId, Head>,
    /// Segments sent and not confirmed: last entry and size.
    in_flight: BTreeMap<LogId, VecDeque<(Seq, u64)>>,
    /// Logs of no use to send until the peer names them again.
    blocked: BTreeSet<LogId>,
    /// Logs of which there is more to send.
    behind: BTreeSet<LogId>,
    /// When a log that has just grown may be sent.
    not_before: BTreeMap<LogId, u64>,
    /// The log that was sent from last.
    cursor: Option<LogId>,
}

impl Space {
    /// Where sending goes on: the higher one of what the peer holds and what is on its way.
    pub(super) fn base(&self, log: &LogId) -> Option<Head> {
        let held = self.peer.as_ref().and_then(|peer| peer.get(log));
        let sent = self.sent.get(log).copied();
        match (held, sent) {
            (Some(held), Some(sent)) => Some(if held.seq >= sent.seq { held } else { sent }),
            (held, sent) => held.or(sent),
        }
    }

    /// As [`Self::base`], the number alone; 0 for none.
    pub(super) fn base_seq(&self, log: &LogId) -> Seq {
        self.base(log).map_or(0, |head| head.seq)
    }

    /// True if the log has more than was sent.
    pub(super) fn is_behind(&self, log: &LogId) -> bool {
        self.behind.contains(log)
    }

    fn refresh(&mut self, log: &LogId) {
        if self.ours.seq(log) > self.base_seq(log) && !self.blocked.contains(log) {
            self.behind.insert(*log);
        } else {
            self.behind.remove(log);
            self.not_before.remove(log);
        }
    }

    /// Looks at all logs anew.
    pub(super) fn refresh_all(&mut self) {
        self.behind.clear();
        let logs: Vec<LogId> = self.ours.iter().map(|(log, _)| log).collect();
        for log in &logs {
            self.refresh(log);
        }
        let behind = &self.behind;
        self.not_before.retain(|log, _| behind.contains(log));
    }

    /// A log has grown here.
    pub(super) fn advance(&mut self, log: LogId, head: Head, due_ms: u64) {
        if self.ours.seq(&log) >= head.seq {
            return;
        }
        let was_behind = self.is_behind(&log);
        self.ours.advance(log, head);
        self.unannounced.insert(log, head);
        self.refresh(&log);
        if !was_behind && self.is_behind(&log) {
            self.not_before.insert(log, due_ms);
        }
    }

    /// The peer holds more. Returns bytes that are no longer under way.
    pub(super) fn peer_advanced(&mut self, log: LogId, head: Head) -> u64 {
        let Some(peer) = self.peer.as_mut() else {
            return 0;
        };
        if peer.seq(&log) < head.seq {
            peer.advance(log, head);
        }
        // Also the head that it had: then it takes now what it declined.
        self.blocked.remove(&log);
        let mut freed = 0;
        if let Some(queue) = self.in_flight.get_mut(&log) {
            while queue.front().is_some_and(|(seq, _)| *seq <= head.seq) {
                freed += queue.pop_front().map_or(0, |(_, bytes)| bytes);
            }
            if queue.is_empty() {
                self.in_flight.remove(&log);
            }
        }
        if self.sent.get(&log).is_some_and(|sent| sent.seq <= head.seq) {
            self.sent.remove(&log);
        }
        self.refresh(&log);
        freed
    }

    /// Forgets what is under way and what was held back; returns the bytes under way.
    pub(super) fn forget_sent(&mut self) -> u64 {
        let freed = self
            .in_flight
            .values()
            .flatten()
            .map(|(_, bytes)| bytes)
            .sum();
        self.in_flight.clear();
        self.sent.clear();
        self.blocked.clear();
        self.refresh_all();
        freed
    }

    /// Holds back nothing any more.
    pub(super) fn unblock(&mut self) {
        self.blocked.clear();
        self.refresh_all();
    }

    /// Sends no more of a log until the peer names it again.
    pub(super) fn block(&mut self, log: &LogId) {
        self.blocked.insert(*log);
        self.refresh(log);
    }

    /// The peer does not store what it was sent of a log; returns the bytes under way.
    pub(super) fn declined(&mut self, log: &LogId) -> u64 {
        self.sent.remove(log);
        let freed = self.in_flight.remove(log);
        // Only logs of ours are remembered, or a peer could make the list grow for ever.
        if self.ours.get(log).is_some() {
            self.block(log);
        }
        freed.into_iter().flatten().map(|(_, bytes)| bytes).sum()
    }

    /// A segment goes out.
    pub(super) fn sent(&mut self, log: LogId, head: Head, bytes: u64) {
        self.sent.insert(log, head);
        self.in_flight
            .entry(log)
            .or_default()
            .push_back((head.seq, bytes));
        self.refresh(&log);
    }

    /// The next log to send from: in turn, of those whose time has come.
    pub(super) fn pick(&mut self, now_ms: u64) -> Option<LogId> {
        let due = |log: &&LogId| {
            self.not_before
                .get(*log)
                .is_none_or(|due_ms| *due_ms <= now_ms)
        };
        let from = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let after = self.behind.range((from, Bound::Unbounded)).find(due);
        let log = *after.or_else(|| self.behind.iter().find(due))?;
        self.cursor = Some(log);
        Some(log)
    }

    /// When the next log may be sent that has to wait now.
    pub(super) fn next_due(&self, now_ms: u64) -> Option<u64> {
        self.not_before
            .values()
            .copied()
            .filter(|due_ms| *due_ms > now_ms)
            .min()
    }
}

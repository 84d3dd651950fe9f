//! The session's replication: vectors, segments under way, stores, in all spaces.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::ids::{LogId, ShortHash, SpaceId};
use crate::segment::SEGMENT_MAX;
use crate::vector::{Dep, Head, VECTOR_MAX, VersionVector};
use crate::wire::{
    CloseCode, Decline, HAVE_MAX, Have, Message, SEGMENTS_BYTES, SEGMENTS_MAX, Segments,
    VECTOR_PART_MAX, VectorPart,
};

use super::intake::Intake;
use super::io::{self, Loaded, Output, PeerStanding, Refusal};
use super::outbox::{Outbox, Violation};
use super::space::Space;
use super::{Gate, PROBATION_MAX, SEGMENT_WINDOW, SPACES_MAX};

/// Most bytes of one log that are read in one go, so that logs take turns.
const LOAD_BYTES: u64 = 512 * 1024;
/// Room that a load keeps free in the window: any one segment.
const LOAD_ROOM: u64 = SEGMENT_MAX as u64;

/// Most refusals that wait for a peer that is slow in reading.
const DECLINED_MAX: usize = 4096;

/// The head of a log of which there is nothing.
const NOTHING: Head = Head {
    seq: 0,
    hash: ShortHash::from_bytes([0; 16]),
};

#[derive(Debug)]
pub(super) struct Replication {
    roster: SpaceId,
    spaces: BTreeMap<SpaceId, Space>,
    in_flight: u64,
    loading: Option<(SpaceId, LogId)>,
    /// The space that was loaded from last.
    cursor: Option<SpaceId>,
    intake: Intake,
    /// Logs that the peer is to be told not to send.
    declined: BTreeSet<(SpaceId, LogId)>,
    /// Logs that it was told not to send; the first [`DECLINED_MAX`].
    told: BTreeSet<(SpaceId, LogId)>,
    /// Bytes sent to a peer that did not know our key, or received from one we did not know.
    probation: u64,
    probation_over: bool,
    now_ms: u64,
}

impl Replication {
    pub(super) fn new(roster: SpaceId) -> Self {
        Self {
            roster,
            spaces: BTreeMap::new(),
            in_flight: 0,
            loading: None,
            cursor: None,
            intake: Intake::default(),
            declined: BTreeSet::new(),
            told: BTreeSet::new(),
            probation: 0,
            probation_over: false,
            now_ms: 0,
        }
    }

    pub(super) fn bytes_in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(super) fn peer_vector(&self, space: &SpaceId) -> Option<&VersionVector> {
        self.spaces.get(space)?.peer.as_ref()
    }

    pub(super) fn is_open(&self, space: &SpaceId) -> bool {
        self.spaces.get(space).is_some_and(|s| s.open)
    }

    pub(super) fn store_is_behind(&self) -> bool {
        self.intake.is_behind()
    }

    /// This side takes part in a space. Once it does, only a longer log matters.
    pub(super) fn open(&mut self, id: SpaceId, vector: VersionVector) {
        let space = self.spaces.entry(id).or_default();
        if space.open {
            for (log, head) in vector.iter() {
                space.advance(log, head, 0);
            }
            return;
        }
        space.open = true;
        space.ours = vector;
        space.refresh_all();
    }

    /// This side takes no part any more; true if the peer is to hear of it.
    pub(super) fn close(&mut self, id: &SpaceId) -> bool {
        let Some(space) = self.spaces.get_mut(id) else {
            return false;
        };
        space.open = false;
        space.ours = VersionVector::new();
        space.unannounced.clear();
        space.unblock();
        let told = std::mem::take(&mut space.announced);
        if self.loading.is_some_and(|(loading, _)| loading == *id) {
            self.loading = None;
        }
        if space.peer.is_none() {
            self.in_flight = self.in_flight.saturating_sub(space.forget_sent());
            self.spaces.remove(id);
        }
        self.intake.forget(id);
        told
    }

    pub(super) fn advance(&mut self, id: &SpaceId, log: LogId, head: Head, due_ms: u64) {
        if let Some(space) = self.spaces.get_mut(id).filter(|s| s.open) {
            space.advance(log, head, due_ms);
        }
    }

    pub(super) fn withhold(&mut self, id: &SpaceId, log: &LogId) {
        if self.loading.as_ref() == Some(&(*id, *log)) {
            self.loading = None;
        }
        if let Some(space) = self.spaces.get_mut(id) {
            space.block(log);
        }
    }

    fn may_send(&self, gate: Gate, id: &SpaceId) -> bool {
        let Some(space) = self.spaces.get(id).filter(|s| s.open) else {
            return false;
        };
        match gate {
            Gate::Nothing => false,
            Gate::RosterUnasked => *id == self.roster && !self.probation_over,
            Gate::Both => space.peer.is_some(),
        }
    }

    /// Sends a segment that has just been written, if it is the peer's next one.
    pub(super) fn push(
        &mut self,
        gate: Gate,
        id: &SpaceId,
        log: LogId,
        segment: Loaded,
        out: &mut Outbox,
    ) {
        let loading = self
            .loading
            .as_ref()
            .map(|loading| loading.1 == log && loading.0 == *id);
        let reserved = if loading.is_some() { LOAD_ROOM } else { 0 };
        let room = self.in_flight + reserved + segment.bytes.len() as u64 <= SEGMENT_WINDOW;
        let next = self.spaces.get(id).is_some_and(|space| {
            space.is_behind(&log) && space.base_seq(&log).checked_add(1) == Some(segment.first)
        });
        if loading != Some(true) && room && next && !out.state_is_full() && self.may_send(gate, id)
        {
            self.send(gate, id, log, vec![segment], out);
        }
    }

    /// Sends what the owner has read.
    pub(super) fn loaded(
        &mut self,
        gate: Gate,
        id: &SpaceId,
        log: LogId,
        segments: Vec<Loaded>,
        out: &mut Outbox,
    ) {
        if self.loading.as_ref() != Some(&(*id, log)) {
            return;
        }
        self.loading = None;
        if self.may_send(gate, id) {
            self.send(gate, id, log, segments, out);
        }
    }

    /// Sends those segments that follow on what was sent, as far as the window goes.
    fn send(
        &mut self,
        gate: Gate,
        id: &SpaceId,
        log: LogId,
        segments: Vec<Loaded>,
        out: &mut Outbox,
    ) {
        let Some(space) = self.spaces.get_mut(id) else {
            return;
        };
        let mut useful = false;
        let mut message = Segments {
            space: *id,
            segments: vec![],
        };
        let mut size = 0;
        for segment in segments {
            let base = space.base_seq(&log);
            if segment.head.seq <= base {
                useful = true;
                continue;
            }
            let bytes = segment.bytes.len() as u64;
            if base.checked_add(1) != Some(segment.first) || !io::fits(&segment) {
                break;
            }
            if self.in_flight + bytes > SEGMENT_WINDOW {
                useful = true;
                break;
            }
            if gate == Gate::RosterUnasked {
                if self.probation + bytes > PROBATION_MAX {
                    self.probation_over = true;
                    break;
                }
                self.probation += bytes;
            }
            if size >= SEGMENTS_BYTES || message.segments.len() >= SEGMENTS_MAX {
                let next = Segments {
                    space: *id,
                    segments: vec![],
                };
                out.send(&Message::Segments(std::mem::replace(&mut message, next)));
                size = 0;
            }
            useful = true;
            size += segment.bytes.len();
            self.in_flight += bytes;
            space.sent(log, segment.head, bytes);
            message.segments.push(segment.bytes.into());
        }
        if !message.segments.is_empty() {
            out.send(&Message::Segments(message));
        }
        if !useful {
            // Asking again would bring the same answer.
            space.block(&log);
        }
    }

    /// Takes in the peer's segments.
    pub(super) fn receive(
        &mut self,
        standing: PeerStanding,
        segments: Segments,
    ) -> Result<(), Violation> {
        let size = segments.size();
        if standing == PeerStanding::Unknown {
            self.probation = self.probation.saturating_add(size);
            if segments.space != self.roster || self.probation > PROBATION_MAX {
                return Err(Violation::new("too much from an unknown key"));
            }
        }
        if !self.is_open(&segments.space) || segments.segments.is_empty() {
            return Ok(());
        }
        self.intake.receive(segments)
    }

    /// The owner has stored, or not.
    pub(super) fn stored(
        &mut self,
        gate: Gate,
        store: u64,
        entries: Vec<Dep>,
        refused: Vec<Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let Some(id) = self.intake.answered(store) else {
            return Ok(());
        };
        let Some(space) = self.spaces.get_mut(&id).filter(|s| s.open) else {
            return Ok(());
        };
        for Dep { log, head } in entries {
            // Even if it is no news here, the peer waits to hear that its copy has arrived.
            let news = space.ours.seq(&log) < head.seq;
            space.advance(log, head, self.now_ms);
            if !news && let Some(head) = space.ours.get(&log) {
                space.unannounced.insert(log, head);
            }
        }
        for refusal in refused {
            match refusal {
                Refusal::Misbehaviour(why) => {
                    return Err(Violation {
                        code: CloseCode::Misbehaviour,
                        why,
                    });
                }
                // Before there is a vector nothing is said; the peer begins anew with it.
                Refusal::Declined(log) if gate == Gate::Both => {
                    if self.declined.len() < DECLINED_MAX {
                        self.declined.insert((id, log));
                    }
                }
                Refusal::Declined(_) => {}
            }
        }
        self.announce(gate, out);
        Ok(())
    }

    /// Sends our vector for every open space that was not announced yet, the roster first.
    pub(super) fn announce_vectors(&mut self, gate: Gate, out: &mut Outbox) {
        if gate != Gate::Both {
            return;
        }
        for id in self.in_order() {
            let Some(space) = self.spaces.get_mut(&id).filter(|s| s.open && !s.announced) else {
                continue;
            };
            space.announced = true;
            space.unannounced.clear();
            let heads: Vec<Dep> = space
                .ours
                .iter()
                .map(|(log, head)| Dep { log, head })
                .collect();
            let mut parts = heads.chunks(VECTOR_PART_MAX).peekable();
            loop {
                let heads = parts.next().unwrap_or_default().to_vec();
                let last = parts.peek().is_none();
                out.send(&Message::Vector(VectorPart {
                    space: id,
                    heads,
                    last,
                }));
                if last {
                    break;
                }
            }
        }
    }

    fn in_order(&self) -> Vec<SpaceId> {
        let others = self.spaces.keys().copied().filter(|id| *id != self.roster);
        std::iter::once(self.roster).chain(others).collect()
    }

    /// Tells the peer of new heads, unless it is slow in reading: then they gather.
    pub(super) fn announce(&mut self, gate: Gate, out: &mut Outbox) {
        if gate != Gate::Both {
            return;
        }
        for (id, space) in self.spaces.iter_mut().filter(|(_, s)| s.announced) {
            while !space.unannounced.is_empty() && !out.state_is_full() {
                let mut heads = Vec::new();
                while heads.len() < HAVE_MAX
                    && let Some((log, head)) = space.unannounced.pop_first()
                {
                    heads.push(Dep { log, head });
                }
                out.send(&Message::Have(Have { space: *id, heads }));
            }
        }
        // After the heads: those lift an earlier refusal.
        while !out.state_is_full()
            && let Some((space, log)) = self.declined.pop_first()
        {
            if self.told.len() < DECLINED_MAX {
                self.told.insert((space, log));
            }
            out.send(&Message::Decline(Decline { space, log }));
        }
    }

    /// What was declined may be taken now: naming the log again lifts the refusal.
    pub(super) fn reconsider(&mut self, gate: Gate, out: &mut Outbox) {
        let mut logs = std::mem::take(&mut self.told);
        logs.append(&mut self.declined);
        for (id, log) in logs {
            if let Some(space) = self.spaces.get_mut(&id).filter(|s| s.announced) {
                let head = space.ours.get(&log).unwrap_or(NOTHING);
                space.unannounced.insert(log, head);
            }
        }
        self.announce(gate, out);
    }

    fn check_room(&self, id: &SpaceId, more: usize) -> Result<(), Violation> {
        let known = self.spaces.contains_key(id);
        let logs: usize = self
            .spaces
            .values()
            .map(|s| s.peer.as_ref().map_or(0, VersionVector::len) + s.peer_parts.len())
            .sum();
        if (!known && self.spaces.len() >= SPACES_MAX) || logs.saturating_add(more) > VECTOR_MAX {
            return Err(Violation::new("too many spaces or logs"));
        }
        Ok(())
    }

    /// True if the peer's vector is whole now.
    pub(super) fn take_vector(&mut self, part: VectorPart) -> Result<bool, Violation> {
        self.check_room(&part.space, part.heads.len())?;
        let space = self.spaces.entry(part.space).or_default();
        if space.peer.is_some() {
            return Err(Violation::new("a second vector of a space"));
        }
        for dep in part.heads {
            space.peer_parts.advance(dep.log, dep.head);
        }
        if !part.last {
            return Ok(false);
        }
        space.peer = Some(std::mem::take(&mut space.peer_parts));
        // What was sent unasked is in the vector, or it did not arrive.
        self.in_flight = self.in_flight.saturating_sub(space.forget_sent());
        Ok(true)
    }

    /// True if the peer has news.
    pub(super) fn take_have(&mut self, have: Have) -> Result<bool, Violation> {
        self.check_room(&have.space, have.heads.len())?;
        let space = self
            .spaces
            .get_mut(&have.space)
            .filter(|s| s.peer.is_some());
        let space = space.ok_or_else(|| Violation::new("heads of a space before its vector"))?;
        let mut freed = 0;
        for Dep { log, head } in &have.heads {
            freed += space.peer_advanced(*log, *head);
        }
        self.in_flight = self.in_flight.saturating_sub(freed);
        Ok(!have.heads.is_empty())
    }

    pub(super) fn take_decline(&mut self, decline: &Decline) {
        if let Some(space) = self.spaces.get_mut(&decline.space) {
            self.in_flight = self.in_flight.saturating_sub(space.declined(&decline.log));
        }
    }

    pub(super) fn take_closed(&mut self, id: &SpaceId) {
        let Some(space) = self.spaces.get_mut(id) else {
            return;
        };
        space.peer = None;
        space.peer_parts = VersionVector::new();
        self.in_flight = self.in_flight.saturating_sub(space.forget_sent());
        if !space.open {
            self.spaces.remove(id);
        }
    }

    /// Starts what the windows have room for.
    pub(super) fn pump(&mut self, gate: Gate, now_ms: u64, out: &mut Outbox) {
        self.now_ms = now_ms;
        self.announce(gate, out);
        self.intake.pump(out);
        let room = SEGMENT_WINDOW.saturating_sub(self.in_flight);
        if self.loading.is_some() || out.state_is_full() || room < LOAD_ROOM {
            return;
        }
        if let Some((id, log)) = self.pick(gate) {
            self.loading = Some((id, log));
            let after = self.spaces.get(&id).and_then(|space| space.base(&log));
            out.push(Output::Load {
                space: id,
                log,
                after,
                bytes_max: LOAD_BYTES.min(room),
            });
        }
    }

    /// The roster first, then the spaces in turn.
    fn pick(&mut self, gate: Gate) -> Option<(SpaceId, LogId)> {
        let from = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let after = self
            .spaces
            .range((from, Bound::Unbounded))
            .map(|(id, _)| *id);
        let order: Vec<SpaceId> = std::iter::once(self.roster)
            .chain(after)
            .chain(self.spaces.keys().copied())
            .collect();
        for id in order {
            if !self.may_send(gate, &id) {
                continue;
            }
            let picked = self
                .spaces
                .get_mut(&id)
                .and_then(|space| space.pick(self.now_ms));
            if let Some(log) = picked {
                self.cursor = Some(id);
                return Some((id, log));
            }
        }
        None
    }

    /// When something that waits now may be sent.
    pub(super) fn next_due(&self, gate: Gate) -> Option<u64> {
        let sendable = self.spaces.iter().filter(|(id, _)| self.may_send(gate, id));
        sendable
            .filter_map(|(_, space)| space.next_due(self.now_ms))
            .min()
    }
}

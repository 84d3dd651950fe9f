//! Acks: who has what on disk; and what cannot get there because it rests on something missing.

use pacsync_protocol::ack::{Ack, VerifiedAck};
use pacsync_protocol::session::Input;
use pacsync_protocol::{DeviceId, SpaceId};
use pacsync_store::StoreError;

use super::Device;
use crate::net::{ConnId, PeerStanding};
use crate::worktree::Now;

/// Own acks that nobody asked for are told this long after a change, at most so often.
const TELL_MS: u64 = 250;
/// What waits for longer is shown.
const WAITING_LONG_MS: u64 = 60_000;

impl Device {
    pub(super) fn load_acks(&mut self) -> Result<(), StoreError> {
        let spaces: Vec<SpaceId> = self.store.spaces().map(|space| space.id).collect();
        for space in spaces {
            for bytes in self.store.acks(&space)? {
                if let Ok(ack) = VerifiedAck::from_bytes(&bytes) {
                    self.acks.insert((space, ack.ack().device), ack);
                }
            }
        }
        Ok(())
    }

    /// Keeps a peer's ack if its device is of the pac and it is the newest.
    pub(super) fn keep_ack(&mut self, ack: VerifiedAck, now: Now) -> Result<(), StoreError> {
        let key = (ack.ack().space, ack.ack().device);
        let known = self.store.roster().member(&key.1).is_some();
        // The later one counts; a device whose clock went back is believed by its vector.
        let newer = self.acks.get(&key).is_none_or(|before| {
            let (before, ack) = (before.ack(), ack.ack());
            let grown = ack.vector != before.vector && ack.vector.covers(&before.vector);
            before.time_ms < ack.time_ms || grown
        });
        if !known || !newer || self.store.space(&key.0).is_err() {
            return Ok(());
        }
        let mut txn = self.store.begin()?;
        txn.put_ack(&key.0, &key.1, ack.bytes())?;
        txn.commit_lazily()?;
        if let Some(worktree) = self.worktrees.get_mut(&key.0) {
            for peer in self.peers.values().filter(|peer| peer.device == key.1) {
                worktree.peer_anew(&peer.replica());
            }
        }
        self.acks.insert(key, ack);
        self.prune_later(now);
        Ok(())
    }

    pub(super) fn ack_later(&mut self, space: SpaceId, now: Now) {
        let wanted = self
            .peers
            .values()
            .any(|peer| peer.acks_wanted.contains_key(&space));
        let at = if wanted { now.ms } else { now.ms + TELL_MS };
        let due = self.own_acks_due.entry(space).or_insert(at);
        *due = (*due).min(at);
    }

    /// This device's word on a space, if its disk shows what the tree says.
    pub(super) fn own_ack(
        &self,
        space: &SpaceId,
        now: Now,
    ) -> Result<Option<VerifiedAck>, StoreError> {
        let Some(worktree) = self.worktrees.get(space) else {
            return Ok(None);
        };
        if !worktree.is_applied() {
            return Ok(None);
        }
        // What is held and rests on something missing is no part of it, or one broken log would
        // keep everybody from ever being in step.
        let vector = self.store.applied(space)?;
        let ack = Ack {
            device: self.store.identity().keys.id(),
            space: *space,
            vector,
            clock: self.store.clock(space)?,
            time_ms: now.ms,
            roster: self.store.applied(&self.store.roster_space())?,
        };
        Ok(ack.sign(&self.store.identity().keys.sign).ok())
    }

    /// Tells own acks that are due: to who asked at once, to the others if they are news.
    pub(super) fn tell_acks(&mut self, now: Now) -> Result<(), StoreError> {
        let due: Vec<SpaceId> = self
            .own_acks_due
            .iter()
            .filter(|(_, at)| **at <= now.ms)
            .map(|(space, _)| *space)
            .collect();
        for space in due {
            let own = self.store.identity().keys.id();
            let Some(ack) = self.own_ack(&space, now)? else {
                // Told when the disk has caught up: each step of the worktree asks again.
                self.own_acks_due.remove(&space);
                continue;
            };
            self.own_acks_due.remove(&space);
            let others: Vec<Vec<u8>> = self
                .acks
                .iter()
                .filter(|((s, device), _)| *s == space && *device != own)
                .map(|(_, ack)| ack.bytes().to_vec())
                .collect();
            let vector = &ack.ack().vector;
            let conns: Vec<(ConnId, Option<u64>)> = self
                .peers
                .iter_mut()
                .filter(|(_, peer)| peer.standing == PeerStanding::Known)
                .map(|(conn, peer)| {
                    let token = peer.acks_wanted.remove(&space);
                    // News to this peer: what an earlier connection was told may never have
                    // arrived.
                    let news = peer.acks_told.get(&space) != Some(vector);
                    peer.acks_told.insert(space, vector.clone());
                    (*conn, token, news)
                })
                .filter(|(_, token, news)| token.is_some() || *news)
                .map(|(conn, token, _)| (conn, token))
                .collect();
            for (conn, token) in conns {
                let mut acks = vec![ack.bytes().to_vec()];
                if token.is_some() {
                    acks.extend(others.iter().cloned());
                }
                self.feed(
                    conn,
                    Input::Acks {
                        acks,
                        answers: token,
                    },
                    now,
                )?;
            }
            self.acks.insert((space, own), ack);
        }
        Ok(())
    }

    /// Whether a device's last word on a space is the state of this device.
    pub(super) fn ack_matches(
        &self,
        space: &SpaceId,
        device: &DeviceId,
    ) -> Result<bool, StoreError> {
        let applied = self.store.applied(space)?;
        let by_conn = self.peers.values().filter(|peer| peer.device == *device);
        let by_conn: Vec<_> = by_conn.map(|peer| peer.acked.get(space)).collect();
        if !by_conn.is_empty() {
            // Where two replicas share a key, the word of one that others pass on does not stand for
            // the other.
            return Ok(by_conn.iter().all(|vector| *vector == Some(&applied)));
        }
        let Some(ack) = self.acks.get(&(*space, *device)) else {
            return Ok(false);
        };
        Ok(ack.ack().vector == applied)
    }

    /// Notes since when held segments wait for what they rest on; from the start of this run on
    /// for those that waited before.
    pub(super) fn note_waiting(&mut self, now: Now) -> Result<(), StoreError> {
        let before = std::mem::take(&mut self.waiting);
        for log in self.store.waiting()? {
            let key = (log.space, log.log);
            let since = match before.get(&key) {
                Some((applied, since)) if *applied == log.applied => *since,
                _ => now.ms,
            };
            self.waiting.insert(key, (log.applied, since));
        }
        Ok(())
    }

    /// Who wrote what has waited for long, and in which space.
    pub(super) fn waiting_long(&self, now: Now) -> Vec<(DeviceId, SpaceId)> {
        let long = self
            .waiting
            .iter()
            .filter(|(_, (_, since))| now.ms >= since.saturating_add(WAITING_LONG_MS));
        let mut all: Vec<_> = long.map(|((space, log), _)| (log.device, *space)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

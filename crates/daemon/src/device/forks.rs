//! Forked logs: what of them a peer has and this device lacks; and this device's own, when it goes
//! on elsewhere.

use std::collections::BTreeSet;

use pacsync_protocol::session::{Input, Refusal};
use pacsync_protocol::{Dep, DeviceId, Head, LogId, SpaceId};
use pacsync_store::{Committed, StoreError};

use super::Device;
use super::sessions::loaded;
use crate::control::api::{EventKind, Fork};
use crate::net::ConnId;
use crate::worktree::Now;

impl Device {
    /// Looks whether a peer has anything of this device's own log that is not here, or branches of
    /// forked logs, and asks for those.
    pub(super) fn look_for_branches(
        &mut self,
        conn: ConnId,
        space: SpaceId,
        now: Now,
    ) -> Result<(), StoreError> {
        let theirs = self.peers.get(&conn);
        let Some(theirs) = theirs.and_then(|peer| peer.session.peer_vector(&space).cloned()) else {
            return Ok(());
        };
        let held = self.store.held(&space)?;
        let own = self.store.own_log();
        let life = |log: &LogId| (log.device, log.incarnation);
        let branches = held.iter().chain(theirs.iter());
        let forked: BTreeSet<_> = branches
            .filter(|(log, _)| log.branch.is_some())
            .map(|(log, _)| life(&log))
            .collect();
        let mut lacked = None;
        for (log, head) in theirs.iter() {
            if head.seq == 0 || held.get(&log) == Some(head) {
                continue;
            }
            let is_own = life(&log) == life(&own);
            let differs = held.get(&log).is_some_and(|ours| ours.seq == head.seq);
            if !is_own && !differs && !forked.contains(&life(&log)) {
                continue;
            }
            let dep = Dep { log, head };
            if self.store.holds(&space, &dep)? {
                continue;
            }
            if is_own && self.store.own_log() == own {
                // Nothing more may be written to it, from now on.
                let mut txn = self.store.begin()?;
                txn.renew(&mut *self.rng)?;
                let committed = txn.commit()?;
                self.committed(committed, None, now)?;
            }
            if (differs || forked.contains(&life(&log))) && lacked.is_none() {
                lacked = Some(dep);
            }
        }
        match lacked {
            Some(dep) => self.want_branch(conn, space, dep, None, now),
            None => Ok(()),
        }
    }

    /// A log of the peer's is at a head that is not on the chain of that name here.
    pub(super) fn log_differs(
        &mut self,
        conn: ConnId,
        space: SpaceId,
        log: LogId,
        head: Head,
        now: Now,
    ) -> Result<(), StoreError> {
        let dep = Dep { log, head };
        if head.seq == 0 || self.store.holds(&space, &dep)? {
            return Ok(());
        }
        self.want_branch(conn, space, dep, None, now)
    }

    /// `shared` is a segment that both have beside those of the trail.
    fn want_branch(
        &mut self,
        conn: ConnId,
        space: SpaceId,
        to: Dep,
        shared: Option<Head>,
        now: Now,
    ) -> Result<(), StoreError> {
        let trail = self.store.trail(&space, &to.log)?;
        let trail = shared.into_iter().chain(trail).collect();
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(());
        };
        if peer.session.may_want_branch() && !peer.no_branch.contains(&(space, to)) {
            let input = Input::WantBranch { space, to, trail };
            peer.session.handle(now.ms, input);
        }
        Ok(())
    }

    /// Takes in what a peer sent of a branch, and asks for what is still lacked.
    pub(super) fn branch_came(
        &mut self,
        conn: ConnId,
        space: SpaceId,
        to: Dep,
        segments: Vec<Vec<u8>>,
        now: Now,
    ) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get(&conn) else {
            return Ok(());
        };
        let device = peer.device;
        let shared = segments.last().and_then(|bytes| loaded(bytes));
        let shared = shared.map(|segment| segment.head);
        let (_, refused, committed) = self.ingest(space, &device, segments, now)?;
        let before = self.peers.get(&conn).and_then(|peer| peer.branch_shared);
        let further = shared.is_some_and(|shared| match before {
            Some((s, t, seq)) if (s, t) == (space, to) => shared.seq > seq,
            _ => true,
        });
        let is_over = !refused.is_empty() || (committed.segments.is_empty() && !further);
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.branch_shared = shared.map(|shared| (space, to, shared.seq));
        }
        for refusal in refused {
            if let Refusal::Misbehaviour(why) = refusal {
                let input = Input::Misbehaved { why };
                if let Some(peer) = self.peers.get_mut(&conn) {
                    peer.session.handle(now.ms, input);
                }
            }
        }
        if is_over && let Some(peer) = self.peers.get_mut(&conn) {
            // Asking again would bring the same.
            peer.no_branch.insert((space, to));
        }
        self.committed(committed, None, now)?;
        if is_over && !self.store.holds(&space, &to)? {
            // It names it and has not all segments of it any more.
            self.peer_pruned(conn, space, now)?;
        }
        if !self.store.holds(&space, &to)? {
            // Whatever came was new, or shows that more is shared than the trail said.
            self.want_branch(conn, space, to, shared, now)?;
        }
        self.look_for_branches(conn, space, now)
    }

    /// Begins the sessions of forked spaces anew, since logs have other names now, and tells
    /// listeners.
    pub(super) fn tell_forks(
        &mut self,
        committed: &Committed,
        forked: &BTreeSet<SpaceId>,
        now: Now,
    ) -> Result<(), StoreError> {
        if committed.renewed {
            tracing::warn!("the log of this device goes on elsewhere: a new one is begun");
            self.renewed_ms = Some(now.ms);
            self.event(EventKind::Renewed);
        }
        for (_, device) in &committed.forked {
            self.show_fork(device);
        }
        for space in forked {
            let vector = self.store.held(space)?;
            let conns: Vec<ConnId> = self.peers.keys().copied().collect();
            for conn in conns {
                let Some(peer) = self.peers.get_mut(&conn) else {
                    continue;
                };
                if peer.is_open(space) {
                    let (space, vector) = (*space, vector.clone());
                    peer.session.handle(now.ms, Input::SpaceClose { space });
                    let input = Input::SpaceOpen { space, vector };
                    self.feed(conn, input, now)?;
                }
            }
        }
        Ok(())
    }

    fn show_fork(&mut self, device: &DeviceId) {
        if self.shown_forks.insert(*device) {
            let name = self.device_name(device);
            tracing::warn!(device = %device.short(), name, "its key is in use in two places");
            self.event(EventKind::Forked {
                device: device.to_string(),
                name,
            });
        }
    }

    /// Two replicas with the key of a device are connected.
    pub(super) fn note_twins(&mut self, device: &DeviceId, now: Now) {
        if !self.twins.contains_key(device) {
            self.twins.insert(*device, now.ms);
            self.show_fork(device);
        }
    }

    /// Devices whose key is in use in two places.
    pub(super) fn forks(&self) -> Result<Vec<Fork>, StoreError> {
        let mut since = self.twins.clone();
        since.extend(self.store.forked()?);
        let forks = since.into_iter().map(|(device, since_ms)| Fork {
            device: self.device_ref(&device),
            since_ms,
        });
        Ok(forks.collect())
    }
}

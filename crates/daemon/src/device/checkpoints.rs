//! Pruning what every device has, and checkpoints for who lacks it.

use pacsync_protocol::ack::Ack;
use pacsync_protocol::checkpoint::{PARTS_MAX, Place, VerifiedHeader};
use pacsync_protocol::grant::Role;
use pacsync_protocol::session::Input;
use pacsync_protocol::stable::{Own, Stable, Unsaid, stable};
use pacsync_protocol::{DeviceId, Head, LogId, SpaceId, VersionVector};
use pacsync_store::StoreError;
use pacsync_store::checkpoint::{Builder, LoadError, Verdict};

use super::Device;
use crate::net::{CloseCode, ConnId, PeerStanding};
use crate::worktree::Now;

/// Segments that every device has stay until a space has so many bytes of segments: they cost
/// little, and whoever lacks them gets them from any device.
pub(super) const KEPT_BYTES: u64 = 16 << 20;
/// What an ack allows to prune is looked at so long after it.
const PRUNE_DELAY_MS: u64 = 2_000;
/// Most segments dropped in one step.
const PRUNE_SEGMENTS: usize = 4_096;
/// A checkpoint that nobody asks on for is given up after so long: it holds old pages of the
/// database. So is a peer that does not go on with one.
const SERVING_MAX_MS: u64 = 300_000;

/// What failed and may succeed later is tried again after so long.
const AGAIN_MS: u64 = 60_000;
/// Who is asked in vain for rows that are lacking is asked again after twice that, so many times.
const ROWS_ASKED_MAX: u32 = 10;
/// Most headers of checkpoints whose verdict is remembered.
const JUDGED_MAX: usize = 256;

/// A checkpoint that is being received, from one peer at a time.
pub(super) struct Taking {
    conn: ConnId,
    space: SpaceId,
    /// Known from part 0 on.
    header: Option<VerifiedHeader>,
    next: u64,
    asked_ms: u64,
}

/// A checkpoint that is being sent.
pub(super) struct Serving {
    space: SpaceId,
    builder: Builder,
    asked_ms: u64,
}

/// Why nothing came of a checkpoint.
enum Failed {
    /// It is asked for again after a while.
    Later,
    /// This is shown.
    Refused(String),
}

impl Device {
    /// What every device of a space has, as far as is known here.
    pub(super) fn stable(&self, space: &SpaceId) -> Result<Stable, StoreError> {
        self.stable_if(space, None)
    }

    /// The same if a device had all that is here.
    fn stable_if(&self, space: &SpaceId, has: Option<DeviceId>) -> Result<Stable, StoreError> {
        let own = self.store.identity().keys.id();
        let applied = self.store.applied(space)?;
        let roster = self.store.applied(&self.store.roster_space())?;
        let unsaid = match *space == self.home_space {
            true => Unsaid::Keeps,
            false => Unsaid::KeepsNot,
        };
        let own = Own {
            device: own,
            space: &applied,
            roster: &roster,
        };
        let whole = has.map(|device| Ack {
            device,
            space: *space,
            vector: applied.clone(),
            clock: 0,
            time_ms: 0,
            roster: roster.clone(),
        });
        let ack_of = |device: &DeviceId| match &whole {
            Some(whole) if whole.device == *device => Some(whole),
            _ => Some(self.acks.get(&(*space, *device))?.ack()),
        };
        let Some(logs) = self.store.logs_of(space)? else {
            return Ok(Stable::default());
        };
        let holds = |log: &LogId, head: Head| {
            let here = logs.hash_at(log, head.seq);
            here.is_ok_and(|hash| hash == Some(head.hash))
        };
        let roster = self.store.roster();
        Ok(stable(roster, space, unsaid, own, ack_of, holds))
    }

    /// How many bytes of a space's segments stay though every device has them, 16 MiB at the start,
    /// and of how many bytes parts of checkpoints are. For simulations, where everything is small.
    pub fn prune_from(&mut self, kept_bytes: u64, part_bytes: usize) {
        self.kept_bytes = kept_bytes;
        self.part_bytes = part_bytes;
    }

    pub(super) fn prune_later(&mut self, now: Now) {
        self.prune_due.get_or_insert(now.ms + PRUNE_DELAY_MS);
    }

    /// Drops segments that every device has, a bounded number at a time.
    pub(super) fn prune(&mut self, now: Now) -> Result<(), StoreError> {
        if self.prune_due.is_none_or(|due| due > now.ms) {
            return Ok(());
        }
        self.prune_due = None;
        let spaces: Vec<SpaceId> = self.store.spaces().map(|space| space.id).collect();
        for space in spaces {
            if self.store.segment_bytes(&space)? <= self.kept_bytes {
                continue;
            }
            let stable = self.stable(&space)?.vector;
            if stable.is_empty() {
                continue;
            }
            let mut txn = self.store.begin()?;
            let pruned = txn.prune(&space, &stable, PRUNE_SEGMENTS)?;
            if pruned.segments == 0 {
                continue;
            }
            txn.commit_lazily()?;
            tracing::info!(space = %space.short(), segments = pruned.segments, bytes = pruned.bytes, "pruned");
            if pruned.more {
                self.prune_due = Some(now.ms);
            }
        }
        Ok(())
    }

    /// Reads the part of a checkpoint that a peer asks for.
    pub(super) fn read_checkpoint(
        &mut self,
        conn: ConnId,
        space: SpaceId,
        part: u64,
        now: Now,
    ) -> Result<Input, StoreError> {
        const NONE: Input = Input::CheckpointRead {
            header: None,
            last: true,
            bytes: vec![],
        };
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(NONE);
        };
        let serving = peer.serving.take();
        if !self.store.roster().may_hold(&peer.device, &space) {
            return Ok(NONE);
        }
        let builder = if part == 0 {
            // Who has something may have the beginnings of what could be left out: it gets all.
            let device = peer.device;
            let theirs = peer.session.peer_vector(&space);
            let stable = match theirs.is_none_or(|theirs| theirs.is_empty()) {
                true => self.stable_if(&space, Some(device))?.vector,
                false => VersionVector::new(),
            };
            let begun = self
                .store
                .checkpoint(&space, stable, now.ms, &mut *self.rng);
            match begun {
                Ok(builder) => Some(builder.in_parts_of(self.part_bytes)),
                Err(StoreError::NoKey(_) | StoreError::UnknownSpace(_)) => None,
                Err(error) => return Err(error),
            }
        } else {
            serving
                .filter(|serving| serving.space == space && serving.builder.next_number() == part)
                .map(|serving| serving.builder)
        };
        let Some(mut builder) = builder else {
            return Ok(NONE);
        };
        let Some(made) = builder.next_part(&mut *self.rng)? else {
            return Ok(NONE);
        };
        let header = (part == 0).then(|| builder.header().bytes().to_vec());
        let last = made.place == Place::Last;
        if !last && let Some(peer) = self.peers.get_mut(&conn) {
            peer.serving = Some(Serving {
                space,
                builder,
                asked_ms: now.ms,
            });
        }
        Ok(Input::CheckpointRead {
            header,
            last,
            bytes: made.bytes,
        })
    }

    /// Gives up checkpoints that nobody asks on for, and who does not go on with one.
    pub(super) fn tidy_checkpoints(&mut self, now: Now) {
        let slow = self.taking.as_ref().filter(|taking| {
            let due = taking.asked_ms.saturating_add(SERVING_MAX_MS);
            now.ms > due
        });
        if let Some(conn) = slow.map(|taking| taking.conn) {
            let why = "the next part of a checkpoint does not come";
            self.transport.close(conn, CloseCode::Done, why);
            self.gone(conn, why, now);
        }
        for peer in self.peers.values_mut() {
            let old = |serving: &Serving| now.ms > serving.asked_ms.saturating_add(SERVING_MAX_MS);
            if peer.serving.as_ref().is_some_and(old) {
                peer.serving = None;
            }
        }
    }

    /// What is lacked here of a space, a peer has no more as segments.
    pub(super) fn peer_pruned(
        &mut self,
        conn: ConnId,
        space: SpaceId,
        now: Now,
    ) -> Result<(), StoreError> {
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.pruned.insert(space);
        }
        self.want_checkpoint(now)
    }

    /// Checkpoints are taken from admins and from who let this device in.
    fn may_give(&self, device: &DeviceId) -> bool {
        let own = self.store.identity().keys.id();
        let roster = self.store.roster();
        let admin = roster
            .member(device)
            .is_some_and(|member| member.grant.role == Role::Admin);
        let sponsor = roster
            .member(&own)
            .is_some_and(|member| member.grant.issuer.0 == *device);
        admin || sponsor
    }

    /// Asks for the next checkpoint that is needed, if none is on its way.
    pub(super) fn want_checkpoint(&mut self, now: Now) -> Result<(), StoreError> {
        if self.taking.is_some() {
            return Ok(());
        }
        let mut wanted = None;
        let mut nobody = None;
        let mut of_rows = None;
        for (conn, peer) in &self.peers {
            if peer.standing != PeerStanding::Known {
                continue;
            }
            for space in &peer.pruned {
                let Some(theirs) = peer.session.peer_vector(space) else {
                    continue;
                };
                if !self.store.lacks(space, theirs)? {
                    continue;
                }
                if self.may_give(&peer.device) {
                    wanted = Some((*conn, *space));
                } else {
                    nobody = Some((*space, peer.device));
                }
            }
            for space in &self.rows_lacking {
                if peer.session.peer_vector(space).is_none() {
                    continue;
                }
                let asked = peer.rows_asked.get(space);
                if !self.may_give(&peer.device) {
                    nobody = Some((*space, peer.device));
                } else if asked.is_none_or(|(_, until)| now.ms >= *until) {
                    of_rows = Some((*conn, *space));
                }
            }
        }
        if !self.rows_lacking.is_empty() {
            let again = now.ms.saturating_add(AGAIN_MS);
            self.want_due = Some(self.want_due.map_or(again, |due| due.min(again)));
        }
        if wanted.is_none()
            && let Some((conn, space)) = of_rows
            && let Some(peer) = self.peers.get_mut(&conn)
        {
            let (times, until) = peer.rows_asked.entry(space).or_default();
            *until = now.ms.saturating_add(AGAIN_MS << *times);
            *times = (*times + 1).min(ROWS_ASKED_MAX);
            wanted = Some((conn, space));
        }
        let Some((conn, space)) = wanted else {
            if let Some((space, device)) = nobody {
                let why = format!(
                    "what this device lacks of {} is kept by {} as a whole only, and that is taken \
                     from an admin or from who let this device in: connect one of these",
                    self.space_name(&space),
                    self.device_name(&device)
                );
                self.checkpoint_trouble.insert(space, why);
            }
            return Ok(());
        };
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.pruned.remove(&space);
        }
        self.taking = Some(Taking {
            conn,
            space,
            header: None,
            next: 0,
            asked_ms: now.ms,
        });
        self.feed(conn, Input::WantCheckpoint { space, part: 0 }, now)
    }

    /// A part came that was asked for.
    pub(super) fn checkpoint_part(
        &mut self,
        conn: ConnId,
        part: u64,
        header: Option<Vec<u8>>,
        place: Place,
        bytes: &[u8],
        now: Now,
    ) -> Result<(), StoreError> {
        let Some(mut taking) = self.taking.take() else {
            return Ok(());
        };
        if taking.conn != conn || taking.next != part {
            self.taking = Some(taking);
            return Ok(());
        }
        let space = taking.space;
        let taken = self.take_part(&mut taking, header, place, bytes, now)?;
        match (taken, place) {
            (Ok(()), Place::Within) => {
                taking.next += 1;
                taking.asked_ms = now.ms;
                let part = taking.next;
                self.taking = Some(taking);
                return self.feed(conn, Input::WantCheckpoint { space, part }, now);
            }
            (Ok(()), Place::Last) => {
                self.checkpoint_trouble.remove(&space);
                if !self.rows_lacking.contains(&space) {
                    for peer in self.peers.values_mut() {
                        peer.rows_asked.remove(&space);
                    }
                }
            }
            (Err(failed), _) => {
                let mut txn = self.store.begin()?;
                txn.drop_parts(&space)?;
                txn.commit_lazily()?;
                let Some(peer) = self.peers.get_mut(&conn) else {
                    return Ok(());
                };
                match failed {
                    Failed::Later => {
                        peer.pruned.insert(space);
                        self.want_due = Some(now.ms.saturating_add(AGAIN_MS));
                        return Ok(());
                    }
                    Failed::Refused(why) => {
                        let device = peer.device;
                        let why = format!(
                            "the state of {} as {} has it is not taken: {why}",
                            self.space_name(&space),
                            self.device_name(&device)
                        );
                        tracing::warn!(why, "checkpoint refused");
                        self.checkpoint_trouble.insert(space, why);
                    }
                }
            }
        }
        self.want_checkpoint(now)
    }

    fn take_part(
        &mut self,
        taking: &mut Taking,
        header: Option<Vec<u8>>,
        place: Place,
        bytes: &[u8],
        now: Now,
    ) -> Result<Result<(), Failed>, StoreError> {
        let refused = |why: &str| Ok(Err(Failed::Refused(why.to_owned())));
        let space = taking.space;
        if bytes.is_empty() {
            return Ok(Err(Failed::Later));
        }
        if taking.next >= PARTS_MAX {
            return refused("it is too large");
        }
        if let Some(bytes) = header {
            let device = self.peers.get(&taking.conn).map(|peer| peer.device);
            let header = match VerifiedHeader::from_bytes(&bytes) {
                Ok(header) => header,
                Err(error) => return Ok(Err(Failed::Refused(error.to_string()))),
            };
            let says = header.header();
            if says.space != space || Some(says.device) != device || taking.next != 0 {
                return refused("it is another device's, or of another space");
            }
            if !self.may_give(&says.device) {
                return refused("it is of a device whose checkpoints are not taken");
            }
            let roster = self.store.applied(&self.store.roster_space())?;
            let has_key = self.store.space(&space)?.can_open(&says.epoch);
            if !roster.covers(&says.roster) || !has_key {
                return Ok(Err(Failed::Later));
            }
            taking.header = Some(header);
        }
        let Some(header) = &taking.header else {
            return refused("it has no header");
        };
        let mut txn = self.store.begin()?;
        txn.stage_part(&space, taking.next, bytes)?;
        if place == Place::Within {
            txn.commit_lazily()?;
            return Ok(Ok(()));
        }
        match txn.load(header, now.ms, &mut *self.rng)? {
            Ok(()) => {}
            Err(LoadError::Older) => return Ok(Err(Failed::Later)),
            Err(error) => return Ok(Err(Failed::Refused(error.to_string()))),
        }
        self.rows_lacking.remove(&space);
        let committed = txn.commit()?;
        tracing::info!(space = %space.short(), parts = taking.next + 1, "started from a checkpoint");
        self.count_deletes(&committed, now)?;
        self.committed(committed, None, now)?;
        let conns: Vec<ConnId> = self.peers.keys().copied().collect();
        for conn in conns {
            self.tell_start(conn, &space, now)?;
        }
        Ok(Ok(()))
    }

    /// Tells a peer which checkpoint this replica of a space started from.
    pub(super) fn tell_start(
        &mut self,
        conn: ConnId,
        space: &SpaceId,
        now: Now,
    ) -> Result<(), StoreError> {
        let Some(header) = self.store.started_from(space)? else {
            return Ok(());
        };
        let told = self.peers.get(&conn).is_some_and(|peer| {
            peer.session.is_established() && self.store.roster().may_hold(&peer.device, space)
        });
        match told {
            true => self.feed(conn, Input::StartedFrom { header }, now),
            false => Ok(()),
        }
    }

    /// Looks whether the checkpoint that a peer started from says what the logs here say.
    pub(super) fn judge_start(&mut self, conn: ConnId, header: &[u8]) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get(&conn).map(|peer| peer.device) else {
            return Ok(());
        };
        let Ok(header) = VerifiedHeader::from_bytes(header) else {
            tracing::warn!(device = %peer.short(), "the header of a checkpoint does not verify");
            return Ok(());
        };
        self.judge(&peer, &header)
    }

    pub(super) fn judge(
        &mut self,
        peer: &DeviceId,
        header: &VerifiedHeader,
    ) -> Result<(), StoreError> {
        let says = header.header();
        let known = self.store.roster().member(&says.device).is_some();
        if !known || self.judged.contains(header.hash()) || self.judged.len() >= JUDGED_MAX {
            return Ok(());
        }
        let verdict = self.store.judge(says)?;
        if verdict == Verdict::Unknown {
            return Ok(());
        }
        self.judged.insert(*header.hash());
        if verdict == Verdict::Differs {
            let why = format!(
                "what {} gave to {} as the state of {} is not what its logs say here: one of these \
                 devices is damaged or lies",
                self.device_name(&says.device),
                self.device_name(peer),
                self.space_name(&says.space)
            );
            tracing::error!(why, "a checkpoint differs");
            self.alarms.insert((says.space, *peer), why);
        }
        Ok(())
    }

    /// A connection is over: what came of a checkpoint by it is of no use.
    pub(super) fn checkpoint_lost(&mut self, conn: ConnId) {
        if self.taking.as_ref().is_some_and(|t| t.conn == conn) {
            self.taking = None;
            // Others may have it.
            self.want_due = Some(0);
        }
    }

    /// Asks for checkpoints that are due.
    pub(super) fn want_due(&mut self, now: Now) -> Result<(), StoreError> {
        if self.want_due.is_some_and(|due| due <= now.ms) {
            self.want_due = None;
            self.want_checkpoint(now)?;
        }
        Ok(())
    }

    /// After a start: rows that a checkpoint has left out are lacking about what lives, and what
    /// waits may wait for such.
    pub(super) fn note_lacking(&mut self, now: Now) -> Result<(), StoreError> {
        self.rows_lacking = self.store.lacking()?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut txn = self.store.begin()?;
        txn.apply(now.ms, &mut *self.rng)?;
        let committed = txn.commit()?;
        self.committed(committed, None, now)
    }

    /// Forgets parts that came before this process began.
    pub(super) fn drop_parts(&mut self) -> Result<(), StoreError> {
        let spaces: Vec<SpaceId> = self.store.spaces().map(|space| space.id).collect();
        let mut txn = self.store.begin()?;
        for space in spaces {
            txn.drop_parts(&space)?;
        }
        txn.commit_lazily()?;
        Ok(())
    }
}

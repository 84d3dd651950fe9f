//! Sessions with peers: what the protocol's state machine asks for is done on the store and the
//! worktrees here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pacsync_protocol::ack::VerifiedAck;
use pacsync_protocol::checkpoint::Place;
use pacsync_protocol::segment::SignedSegment;
use pacsync_protocol::session::{
    Config as SessionConfig, Input, Loaded, Output, PeerStanding as Standing, Refusal, Session,
    Wanted,
};
use pacsync_protocol::wire::{self, Item};
use pacsync_protocol::{
    ContentId, Dep, DeviceId, Head, Incarnation, LogId, Seq, SpaceId, VersionVector,
};
use pacsync_store::StoreError;

use super::Device;
use super::checkpoints::Serving;
use super::crossing::{InUse, SILENT_MAX_MS, Silent, Stays, choose};
use crate::control::api::EventKind;
use crate::net::{CloseCode, CloseReason, ConnId, Direction, Lane, PeerStanding};
use crate::worktree::{Context, Now, Replica, Request, Worktree, read_for_peer};

/// Bytes that may still be queued on a lane when the network says that it has drained.
const LOW_MARK: u64 = 256 << 10;
/// Requests under way to one peer.
const REQUESTS_MAX: usize = 8;
/// How soon after one another two connections are superseded where a key is in use twice.
const SUPERSEDED_MS: u64 = 60_000;
/// No new life is taken for that so long after the last one.
const RENEWED_MS: u64 = 3_600_000;
/// A peer that stays unknown for so long is let go.
const UNKNOWN_MAX_MS: u64 = 30_000;

/// One connection to another device.
pub(super) struct Peer {
    pub(super) device: DeviceId,
    pub(super) address: SocketAddr,
    pub(super) direction: Direction,
    pub(super) standing: PeerStanding,
    pub(super) session: Session,
    pub(super) since_ms: u64,
    /// The life that its replica said to have.
    life: Option<Incarnation>,
    /// Count of frames when it said so.
    lived: u64,
    /// What its own acks that came by this connection said: space → vector.
    pub(super) acked: BTreeMap<SpaceId, VersionVector>,
    /// Count of frames when the last one came by it.
    heard: Option<u64>,
    queued: [u64; 2],
    open: BTreeSet<SpaceId>,
    /// Number of the request that it was asked last.
    last_asked: u64,
    requests: BTreeMap<u64, (SpaceId, Wanted)>,
    /// Acks that the peer wants: space → token.
    pub(super) acks_wanted: BTreeMap<SpaceId, u64>,
    /// What the own acks said that it was told: space → vector.
    pub(super) acks_told: BTreeMap<SpaceId, VersionVector>,
    /// What it acknowledged before the roster here had it: one for each space that is here.
    early_acks: BTreeMap<SpaceId, VerifiedAck>,
    /// Spaces of which it has no more as segments what is lacked here.
    pub(super) pruned: BTreeSet<SpaceId>,
    /// Of which it was asked for rows that are lacking here, how often, and until when it is not
    /// asked again.
    pub(super) rows_asked: BTreeMap<SpaceId, (u32, u64)>,
    /// Spaces of which it was told what this replica started from.
    told_start: BTreeSet<SpaceId>,
    /// Heads of branches that it could not give.
    pub(super) no_branch: BTreeSet<(SpaceId, Dep)>,
    /// Up to where it has answered for the branch that it was asked for last.
    pub(super) branch_shared: Option<(SpaceId, Dep, Seq)>,
    /// The checkpoint that it is being sent.
    pub(super) serving: Option<Serving>,
}

impl Peer {
    /// What content is asked of.
    pub(super) fn replica(&self) -> Replica {
        Replica {
            device: self.device,
            life: self.life,
        }
    }

    pub(super) fn is_open(&self, space: &SpaceId) -> bool {
        self.open.contains(space)
    }
}

/// The life that a hello names.
fn life_in(lane: Lane, bytes: &[u8]) -> Option<Incarnation> {
    match wire::Message::decode(wire_lane(lane), bytes) {
        Ok(Some(wire::Message::Hello(hello))) => Some(hello.life),
        _ => None,
    }
}

fn lane_of(lane: wire::Lane) -> Lane {
    match lane {
        wire::Lane::State => Lane::State,
        wire::Lane::Content => Lane::Content,
    }
}

fn wire_lane(lane: Lane) -> wire::Lane {
    match lane {
        Lane::State => wire::Lane::State,
        Lane::Content => wire::Lane::Content,
    }
}

fn lane_at(lane: Lane) -> usize {
    match lane {
        Lane::State => 0,
        Lane::Content => 1,
    }
}

/// A stored segment as a session takes it.
pub(super) fn loaded(bytes: &[u8]) -> Option<Loaded> {
    let segment = SignedSegment::parse(bytes).ok()?.assume_verified();
    Some(Loaded {
        first: segment.header().first,
        head: segment.head(),
        bytes: bytes.to_vec(),
    })
}

impl Device {
    /// A connection stands. It is used once the side that dialled speaks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn connected(
        &mut self,
        conn: ConnId,
        device: DeviceId,
        standing: PeerStanding,
        address: SocketAddr,
        direction: Direction,
        now: Now,
    ) -> Result<(), StoreError> {
        self.dialer.connected(address, device);
        self.waiters_connected(address, device);
        let silent = Silent {
            device,
            address,
            standing,
            since_ms: now.ms,
            after: self.frames,
        };
        match direction {
            Direction::Incoming => {
                self.silent.insert(conn, silent);
                Ok(())
            }
            // It came while this device dialled.
            Direction::Outgoing if self.peer_of(&device).is_some() => {
                self.transport
                    .close(conn, CloseCode::Superseded, "another connection is kept");
                Ok(())
            }
            Direction::Outgoing => self.begin(conn, silent, direction, now),
        }
    }

    /// The device that dialled speaks for the first time.
    fn first_word(
        &mut self,
        conn: ConnId,
        silent: Silent,
        life: Option<Incarnation>,
        now: Now,
    ) -> Result<(), StoreError> {
        let own = self.store.identity().keys.id();
        let device = silent.device;
        // Two replicas that share a key are two peers.
        let same = |peer: &Peer| match (peer.life, life) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        let other = self
            .peers
            .iter()
            .find(|(_, peer)| peer.device == device && same(peer));
        if let Some((other, peer)) = other {
            let in_use = InUse {
                direction: peer.direction,
                age_ms: now.ms.saturating_sub(peer.since_ms),
                heard: peer.heard,
            };
            let (stays, other) = (choose(&own, &device, in_use, silent.after), *other);
            let over = match stays {
                Stays::InUse => conn,
                Stays::New => other,
            };
            self.transport
                .close(over, CloseCode::Superseded, "another connection is kept");
            if stays == Stays::InUse {
                return Ok(());
            }
            self.drop_peer(other);
        }
        self.begin(conn, silent, Direction::Incoming, now)
    }

    /// Begins a session.
    fn begin(
        &mut self,
        conn: ConnId,
        silent: Silent,
        direction: Direction,
        now: Now,
    ) -> Result<(), StoreError> {
        let Silent {
            device,
            address,
            standing,
            ..
        } = silent;
        tracing::info!(device = %device.short(), %address, ?direction, ?standing, "connected");
        // The network may have asked before it was told of a new roster.
        let standing = match standing {
            PeerStanding::Unknown if self.store.roster().member(&device).is_some() => {
                PeerStanding::Known
            }
            other => other,
        };
        let session = Session::new(
            SessionConfig {
                pac: self.store.identity().founding.id(),
                standing: match standing {
                    PeerStanding::Known => Standing::Known,
                    _ => Standing::Unknown,
                },
                features: 0,
                agent: concat!("pacsync/", env!("CARGO_PKG_VERSION")).into(),
                addresses: self
                    .transport
                    .addresses()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                life: self.store.own_log().incarnation,
            },
            now.ms,
        );
        let peer = Peer {
            device,
            address,
            direction,
            standing,
            session,
            since_ms: now.ms,
            life: None,
            lived: 0,
            acked: BTreeMap::new(),
            heard: None,
            queued: [0; 2],
            open: BTreeSet::new(),
            last_asked: 0,
            requests: BTreeMap::new(),
            acks_wanted: BTreeMap::new(),
            acks_told: BTreeMap::new(),
            early_acks: BTreeMap::new(),
            pruned: BTreeSet::new(),
            rows_asked: BTreeMap::new(),
            told_start: BTreeSet::new(),
            no_branch: BTreeSet::new(),
            branch_shared: None,
            serving: None,
        };
        self.peers.insert(conn, peer);
        self.last_seen.insert(device, now.ms);
        if direction == Direction::Outgoing && self.config.remember(device, address) {
            self.config_changed = true;
        }
        let name = self.device_name(&device);
        self.event(EventKind::PeerConnected {
            device: device.to_string(),
            name,
            address,
        });
        self.open_session_spaces(conn, now)?;
        self.pump(conn, now)
    }

    fn drop_peer(&mut self, conn: ConnId) -> Option<Peer> {
        let peer = self.peers.remove(&conn)?;
        self.checkpoint_lost(conn);
        for (space, what) in peer.requests.values() {
            if let Some(worktree) = self.worktrees.get_mut(space) {
                let objects: Vec<_> = (0..what.len()).filter_map(|at| what.object(at)).collect();
                worktree.not_asked(what, &objects);
            }
        }
        for worktree in self.worktrees.values_mut() {
            worktree.peer_anew(&peer.replica());
        }
        Some(peer)
    }

    /// A connection is over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn closed(
        &mut self,
        conn: ConnId,
        reason: &CloseReason,
        now: Now,
    ) -> Result<(), StoreError> {
        let device = self.gone(conn, &reason.to_string(), now);
        let superseded = CloseCode::Superseded;
        match (reason, device) {
            (CloseReason::PeerClosed { code, .. }, Some(device)) if *code == superseded => {
                self.superseded(&device, now)
            }
            _ => Ok(()),
        }
    }

    /// A connection is of no use any more; whose it was, if it was in use.
    pub(super) fn gone(&mut self, conn: ConnId, why: &str, now: Now) -> Option<DeviceId> {
        self.silent.remove(&conn);
        let peer = self.drop_peer(conn)?;
        tracing::info!(device = %peer.device.short(), why, "disconnected");
        self.last_seen.insert(peer.device, now.ms);
        self.dialer.lost(&peer.device, now.ms);
        let name = self.device_name(&peer.device);
        self.event(EventKind::PeerDisconnected {
            device: peer.device.to_string(),
            name,
            why: why.into(),
        });
        Some(peer.device)
    }

    /// A peer keeps another connection in place of the only one that this device has with it:
    /// another replica with its key, in the same life, is there. Twice within a minute is no
    /// accident of connections that cross, and a life of its own makes it a peer of its own. No
    /// more than once in an hour: each is a log that stays, and a peer may say what it likes.
    fn superseded(&mut self, device: &DeviceId, now: Now) -> Result<(), StoreError> {
        let another = self.peer_of(device).is_some()
            || self.silent.values().any(|silent| silent.device == *device);
        if another {
            return Ok(());
        }
        let before = self.superseded_ms.replace(now.ms);
        if before.is_none_or(|before| now.ms > before.saturating_add(SUPERSEDED_MS)) {
            return Ok(());
        }
        self.superseded_ms = None;
        let lately = |renewed: u64| (renewed..renewed.saturating_add(RENEWED_MS)).contains(&now.ms);
        if self.renewed_ms.is_some_and(lately) {
            return Ok(());
        }
        let mut txn = self.store.begin()?;
        txn.renew(&mut *self.rng)?;
        let committed = txn.commit()?;
        self.committed(committed, None, now)
    }

    /// A frame came.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn frame(
        &mut self,
        conn: ConnId,
        lane: Lane,
        bytes: Vec<u8>,
        now: Now,
    ) -> Result<(), StoreError> {
        self.frames += 1;
        let life = match self.peers.get(&conn) {
            Some(peer) if peer.life.is_some() => None,
            _ => life_in(lane, &bytes),
        };
        if let Some(silent) = self.silent.remove(&conn) {
            self.first_word(conn, silent, life, now)?;
        }
        if let Some(peer) = self.peers.get_mut(&conn) {
            if life.is_some() {
                peer.life = life;
                peer.lived = self.frames;
            }
            peer.heard = Some(self.frames);
            self.last_seen.insert(peer.device, now.ms);
            let (device, life, lived) = (peer.device, peer.life, peer.lived);
            // Of a daemon that has gone, a connection may be left; it says nothing any more.
            let beside = |other: &Peer| {
                other.device == device
                    && other.life.is_some()
                    && other.life != life
                    && other.heard.is_some_and(|heard| heard >= lived)
            };
            if life.is_some() && self.peers.values().any(beside) {
                self.note_twins(&device, now);
            }
        }
        self.feed(
            conn,
            Input::Frame {
                lane: wire_lane(lane),
                bytes,
            },
            now,
        )
    }

    /// A lane's queue in the network has drained.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn drained(&mut self, conn: ConnId, lane: Lane, now: Now) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(());
        };
        let Some(queued) = peer.queued.get_mut(lane_at(lane)) else {
            return Ok(());
        };
        let bytes = queued.saturating_sub(LOW_MARK);
        *queued = (*queued).min(LOW_MARK);
        self.feed(
            conn,
            Input::Drained {
                lane: wire_lane(lane),
                bytes,
            },
            now,
        )
    }

    pub(super) fn feed(&mut self, conn: ConnId, input: Input, now: Now) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(());
        };
        peer.session.handle(now.ms, input);
        self.pump(conn, now)
    }

    /// Does what a session asks for until it asks for nothing.
    fn pump(&mut self, conn: ConnId, now: Now) -> Result<(), StoreError> {
        while let Some(output) = self
            .peers
            .get_mut(&conn)
            .and_then(|peer| peer.session.poll_output())
        {
            self.answer(conn, output, now)?;
        }
        Ok(())
    }

    /// Opens with a peer every space that both may hold.
    pub(super) fn open_session_spaces(&mut self, conn: ConnId, now: Now) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get(&conn) else {
            return Ok(());
        };
        let own = self.store.identity().keys.id();
        let mut spaces = vec![self.store.roster_space()];
        if peer.standing == PeerStanding::Known {
            let roster = self.store.roster();
            spaces.extend(self.store.spaces().map(|space| space.id).filter(|space| {
                roster.may_hold(&own, space) && roster.may_hold(&peer.device, space)
            }));
        }
        for space in spaces {
            let Some(peer) = self.peers.get_mut(&conn) else {
                return Ok(());
            };
            if peer.open.insert(space) {
                let vector = self.store.held(&space)?;
                peer.session
                    .handle(now.ms, Input::SpaceOpen { space, vector });
            }
        }
        Ok(())
    }

    pub(super) fn roster_changed(&mut self, now: Now) -> Result<(), StoreError> {
        let conns: Vec<ConnId> = self.peers.keys().copied().collect();
        for conn in conns {
            let Some(peer) = self.peers.get_mut(&conn) else {
                continue;
            };
            let known = self.store.roster().member(&peer.device).is_some();
            if known && peer.standing == PeerStanding::Unknown {
                peer.standing = PeerStanding::Known;
                peer.session.handle(now.ms, Input::PeerKnown);
            }
            let early = match known {
                true => std::mem::take(&mut peer.early_acks),
                false => BTreeMap::new(),
            };
            for ack in early.into_values() {
                self.keep_ack(ack, now)?;
            }
            self.open_session_spaces(conn, now)?;
            if let Some(peer) = self.peers.get_mut(&conn) {
                peer.session.handle(now.ms, Input::Reconsider);
            }
            self.pump(conn, now)?;
        }
        self.want_checkpoint(now)?;
        self.open_spaces(now)
    }

    fn answer(&mut self, conn: ConnId, output: Output, now: Now) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(());
        };
        match output {
            Output::Send { lane, bytes } => {
                let lane = lane_of(lane);
                let len = bytes.len() as u64;
                let waiting = self.transport.send(conn, lane, bytes).unwrap_or(0);
                let Some(queued) = peer.queued.get_mut(lane_at(lane)) else {
                    return Ok(());
                };
                let drained = (*queued + len).saturating_sub(waiting);
                *queued = waiting;
                if drained > 0 {
                    let input = Input::Drained {
                        lane: wire_lane(lane),
                        bytes: drained,
                    };
                    peer.session.handle(now.ms, input);
                }
                Ok(())
            }
            Output::Established { addresses, .. } => {
                for address in addresses
                    .iter()
                    .filter_map(|a| a.parse::<SocketAddr>().ok())
                {
                    if self
                        .config
                        .known
                        .get(&peer.device)
                        .is_none_or(|k| k.len() < 4)
                        && self.config.remember(peer.device, address)
                    {
                        self.config_changed = true;
                    }
                }
                let replica = peer.replica();
                for worktree in self.worktrees.values_mut() {
                    worktree.peer_anew(&replica);
                }
                Ok(())
            }
            Output::Load {
                space,
                log,
                after,
                bytes_max,
            } => {
                let input = self.load(space, log, after, bytes_max)?;
                if let (Input::Withhold { .. }, Some(head)) = (&input, after) {
                    self.log_differs(conn, space, log, head, now)?;
                }
                self.feed_later(conn, input, now)
            }
            Output::Store {
                store,
                space,
                segments,
            } => {
                let device = peer.device;
                let (entries, refused, committed) = self.ingest(space, &device, segments, now)?;
                self.feed_later(
                    conn,
                    Input::Stored {
                        store,
                        entries,
                        refused,
                    },
                    now,
                )?;
                self.committed(committed, Some(conn), now)
            }
            Output::ReadBranch {
                space,
                to,
                trail,
                bytes_max,
            } => {
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                let segments = self.store.branch(&space, &to, &trail, bytes_max)?;
                self.feed_later(conn, Input::BranchRead { segments }, now)
            }
            Output::Branch {
                space,
                to,
                segments,
            } => self.branch_came(conn, space, to, segments, now),
            Output::PeerStartedFrom { header } => self.judge_start(conn, &header),
            Output::PeerPruned { space } => self.peer_pruned(conn, space, now),
            Output::ReadCheckpoint { space, part } => {
                let input = self.read_checkpoint(conn, space, part, now)?;
                self.feed_later(conn, input, now)
            }
            Output::CheckpointPart {
                part,
                header,
                last,
                bytes,
                ..
            } => {
                let place = if last { Place::Last } else { Place::Within };
                self.checkpoint_part(conn, part, header, place, &bytes, now)
            }
            Output::PeerVector { space, .. } => {
                self.look_for_branches(conn, space, now)?;
                let Some(peer) = self.peers.get_mut(&conn) else {
                    return Ok(());
                };
                if peer.told_start.insert(space) && space != self.store.roster_space() {
                    self.tell_start(conn, &space, now)?;
                }
                let Some(peer) = self.peers.get(&conn) else {
                    return Ok(());
                };
                if let Some(worktree) = self.worktrees.get_mut(&space) {
                    worktree.peer_changed(&peer.replica());
                }
                self.ack_later(space, now);
                self.check_joins(now)
            }
            Output::PeerClosedSpace { .. } => Ok(()),
            Output::PeerAcks { acks, .. } => self.take_acks(conn, acks, now),
            Output::AckWanted { space, token } => {
                peer.acks_wanted.insert(space, token);
                self.own_acks_due.insert(space, now.ms);
                Ok(())
            }
            Output::Arrived {
                request,
                space,
                items,
            } => {
                let Some((_, what)) = peer.requests.get(&request).cloned() else {
                    return Ok(());
                };
                let Some(worktree) = self.worktrees.get_mut(&space) else {
                    return Ok(());
                };
                let mut cx = Context {
                    store: &mut self.store,
                    packs: &mut self.packs,
                    rng: &mut *self.rng,
                    now,
                };
                if let Err(why) = worktree.arrived(&mut cx, &peer.replica(), &what, items)? {
                    self.feed_later(conn, Input::Misbehaved { why }, now)?;
                }
                Ok(())
            }
            Output::RequestDone { request, missing } => {
                if let Some((space, what)) = peer.requests.remove(&request)
                    && let Some(worktree) = self.worktrees.get_mut(&space)
                    && !missing.is_empty()
                {
                    worktree.missing(&peer.replica(), &what, &missing, now.ms);
                }
                Ok(())
            }
            Output::Read {
                request,
                space,
                what,
                bytes_max,
            } => {
                let allowed = self.store.roster().may_hold(&peer.device, &space);
                let items = match self.worktrees.get_mut(&space) {
                    Some(worktree) if allowed => {
                        read_for_peer(worktree, &self.store, &self.packs, &what, bytes_max)?
                    }
                    _ => vec![Item::Missing; what.len()],
                };
                self.feed_later(conn, Input::Items { request, items }, now)
            }
            Output::Violated { why } => {
                tracing::warn!(device = %peer.device.short(), why, "the peer broke the protocol");
                Ok(())
            }
            Output::Closed { code, text, by } => {
                tracing::info!(device = %peer.device.short(), ?code, text, ?by, "session closed");
                let code = match code {
                    wire::CloseCode::Violation => CloseCode::Violation,
                    _ => CloseCode::Done,
                };
                self.transport.close(conn, code, &text);
                self.gone(conn, &text, now);
                Ok(())
            }
        }
    }

    /// Hands an input to a session whose outputs are being taken already.
    fn feed_later(&mut self, conn: ConnId, input: Input, now: Now) -> Result<(), StoreError> {
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.session.handle(now.ms, input);
        }
        Ok(())
    }

    fn load(
        &self,
        space: SpaceId,
        log: LogId,
        after: Option<Head>,
        bytes_max: u64,
    ) -> Result<Input, StoreError> {
        let from = match after {
            // Of a branch the peer asks for what it lacks.
            None if log.branch.is_some() => return Ok(Input::Withhold { space, log }),
            None => 1,
            Some(head) if self.store.hash_at(&space, &log, head.seq)? == Some(head.hash) => {
                head.seq + 1
            }
            Some(_) => return Ok(Input::Withhold { space, log }),
        };
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let (segments, _) = self.store.segments(&space, &log, from, bytes_max)?;
        let segments: Vec<Loaded> = segments.iter().filter_map(|bytes| loaded(bytes)).collect();
        let there = segments.first().is_some_and(|s| s.first <= from);
        if !there && self.store.held(&space)?.seq(&log) >= from {
            return Ok(Input::Pruned { space, log });
        }
        Ok(Input::SegmentsLoaded {
            space,
            log,
            segments,
        })
    }

    pub(super) fn ingest(
        &mut self,
        space: SpaceId,
        from: &DeviceId,
        segments: Vec<Vec<u8>>,
        now: Now,
    ) -> Result<(Vec<Dep>, Vec<Refusal>, pacsync_store::Committed), StoreError> {
        let mut refused = vec![];
        let mut logs = BTreeSet::new();
        let mut verified = vec![];
        for bytes in segments {
            match SignedSegment::parse(&bytes) {
                Ok(segment) if segment.header().space == space => match segment.verify() {
                    Ok(segment) => verified.push(segment),
                    Err(error) => refused.push(Refusal::Misbehaviour(error.to_string())),
                },
                Ok(_) => refused.push(Refusal::Misbehaviour("a segment of another space".into())),
                Err(error) => refused.push(Refusal::Misbehaviour(error.to_string())),
            }
        }
        let mut txn = self.store.begin()?;
        for segment in &verified {
            let log = segment.header().log;
            match txn.hold(segment)? {
                Ok(()) => {
                    logs.insert(log);
                }
                Err(why) => {
                    tracing::warn!(%why, from = %from.short(), "segment refused");
                    refused.push(match why {
                        pacsync_store::Refusal::Bad(why) => Refusal::Misbehaviour(why),
                        _ => Refusal::Declined(log),
                    });
                }
            }
        }
        txn.apply(now.ms, &mut *self.rng)?;
        let committed = txn.commit()?;
        if let Some(log) = logs.last() {
            self.last_writer.insert(space, log.device);
        }
        let held = self.store.held(&space)?;
        // Of all branches: which one it belongs to is not for the segment to say.
        let touched = |log: &LogId| logs.contains(&LogId::new(log.device, log.incarnation));
        let entries = held
            .iter()
            .filter(|(log, _)| touched(log))
            .map(|(log, head)| Dep { log, head })
            .collect();
        Ok((entries, refused, committed))
    }

    fn take_acks(&mut self, conn: ConnId, acks: Vec<Vec<u8>>, now: Now) -> Result<(), StoreError> {
        for bytes in acks {
            match VerifiedAck::from_bytes(&bytes) {
                Ok(ack) => {
                    let said = ack.ack();
                    if let Some(peer) = self.peers.get_mut(&conn)
                        && peer.device == said.device
                    {
                        peer.acked.insert(said.space, said.vector.clone());
                        // It tells nothing twice, and its grant may come by another way.
                        if self.store.roster().member(&said.device).is_none()
                            && self.store.space(&said.space).is_ok()
                        {
                            peer.early_acks.insert(said.space, ack);
                            continue;
                        }
                    }
                    self.keep_ack(ack, now)?;
                }
                Err(error) => {
                    self.feed_later(
                        conn,
                        Input::Misbehaved {
                            why: error.to_string(),
                        },
                        now,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Asks peers for content, as far as their windows go: first whoever did not lack anything
    /// lately and wrote what is wanted, and among equals in turn.
    pub(super) fn fetch(&mut self, now: Now) -> Result<(), StoreError> {
        for worktree in self.worktrees.values_mut() {
            worktree.tidy_requests(now.ms);
        }
        let spaces: Vec<SpaceId> = self
            .worktrees
            .iter()
            .filter(|(_, worktree)| worktree.wants_content())
            .map(|(space, _)| *space)
            .collect();
        for space in spaces {
            while let Some((conn, request)) = self.next_fetch(&space, now) {
                let number = self.next_request;
                self.next_request += 1;
                if let Some(peer) = self.peers.get_mut(&conn) {
                    peer.last_asked = number;
                    peer.requests.insert(number, (space, request.what.clone()));
                }
                let input = Input::Want {
                    request: number,
                    space,
                    what: request.what,
                    bytes: request.bytes,
                };
                self.feed(conn, input, now)?;
            }
        }
        Ok(())
    }

    /// Whom to ask for what next.
    fn next_fetch(&mut self, space: &SpaceId, now: Now) -> Option<(ConnId, Request)> {
        let worktree = self.worktrees.get_mut(space)?;
        let writer = self.last_writer.get(space);
        let mut free: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.session.is_established()
                    && peer.standing == PeerStanding::Known
                    && peer.open.contains(space)
                    && peer.session.peer_vector(space).is_some()
                    && peer.requests.len() < REQUESTS_MAX
                    && peer.session.request_room() > 0
            })
            .map(|(conn, peer)| {
                let rank = (
                    worktree.lately_lacked(&peer.replica()),
                    writer != Some(&peer.device),
                    peer.requests.len(),
                    peer.last_asked,
                );
                (rank, *conn, peer.replica())
            })
            .collect();
        free.sort_unstable_by_key(|(rank, _, _)| *rank);
        free.into_iter().find_map(|(_, conn, replica)| {
            let request = worktree.next_request(&replica, now.ms)?;
            Some((conn, request))
        })
    }

    pub(super) fn timeouts(&mut self, now: Now) -> Result<(), StoreError> {
        self.tidy_checkpoints(now);
        let transport = &mut self.transport;
        self.silent.retain(|conn, silent| {
            let over = now.ms >= silent.since_ms.saturating_add(SILENT_MAX_MS);
            if over {
                transport.close(*conn, CloseCode::Violation, "nothing was said");
            }
            !over
        });
        let due: Vec<ConnId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.session.poll_timeout().is_some_and(|at| at <= now.ms))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in due {
            self.feed(conn, Input::Timeout, now)?;
        }
        let stale: Vec<ConnId> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.standing == PeerStanding::Unknown && now.ms > peer.since_ms + UNKNOWN_MAX_MS
            })
            .map(|(conn, _)| *conn)
            .collect();
        for conn in stale {
            self.transport
                .close(conn, CloseCode::Refused, "not in the roster");
            self.gone(conn, "not in the roster", now);
        }
        Ok(())
    }

    /// The connection to a device, if there is one.
    /// Whether all replicas with a device's key that are connected have said that they lack a
    /// content.
    pub(super) fn is_lacked_by(
        &self,
        worktree: &Worktree,
        device: &DeviceId,
        content: &ContentId,
    ) -> bool {
        let of_device = self.peers.values().filter(|peer| peer.device == *device);
        let mut lacks = of_device.map(|peer| worktree.is_lacked_by(&peer.replica(), content));
        lacks.next().is_some_and(|first| first) && lacks.all(|lacks| lacks)
    }

    pub(super) fn peer_of(&self, device: &DeviceId) -> Option<&Peer> {
        self.peers.values().find(|peer| peer.device == *device)
    }
}

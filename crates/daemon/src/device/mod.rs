//! The device: replica, worktrees and sessions on one thread.
//!
//! A state machine of its own: what happened comes in as method calls with the time, frames go
//! out through a [`Transport`], disks are opened through a function. The runner around it
//! ([`crate::run`]) has the sockets and the clock; a simulator can be another one. Never here:
//! tokio, sockets, terminal output.

mod acks;
mod checkpoints;
mod commands;
mod conflicts;
mod crossing;
mod dial;
mod forks;
mod history;
mod keeping;
mod reseal;
mod sessions;
mod spaces;
mod status;
#[cfg(test)]
mod tests;
mod undo;
mod waiters;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::Path;

use pacsync_protocol::ack::VerifiedAck;
use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::session::{Input, Origin};
use pacsync_protocol::{DeviceId, LogId, Seq, SpaceId};
use pacsync_store::content::packs::PackStore;
use pacsync_store::{Committed, Store, StoreError};

use crate::control::api::{EventKind, TextPath};
use crate::disk::{Disk, DiskError, FsEvent};
use crate::home::{Config, Home};
use crate::net::{CloseCode, ConnId, Lane};
use crate::worktree::{Context, Now, Worktree};

use crossing::{SILENT_MAX_MS, Silent};
use dial::Dialer;
use sessions::Peer;
use waiters::Waiter;

/// Where frames go; answers at once.
pub trait Transport {
    /// Queues a frame and returns the bytes that now wait on its lane; `None` if the connection
    /// is gone.
    fn send(&mut self, conn: ConnId, lane: Lane, bytes: Vec<u8>) -> Option<u64>;
    /// Closes a connection once what is queued has been sent.
    fn close(&mut self, conn: ConnId, code: CloseCode, text: &str);
    /// Starts to connect.
    fn connect(&mut self, address: SocketAddr, expect: Option<DeviceId>);
    /// Where this device listens, for peers.
    fn addresses(&self) -> Vec<SocketAddr>;
}

/// Opens a worktree's disk so that its events come back for the space.
pub type OpenDisk = Box<dyn FnMut(&Path, SpaceId) -> Result<Box<dyn Disk>, DiskError> + Send>;

/// What a device is made of.
pub struct Parts {
    /// The replica.
    pub store: Store,
    /// Packs.
    pub packs: PackStore,
    /// Entropy.
    pub rng: Box<dyn Entropy>,
    /// Opens disks.
    pub open_disk: OpenDisk,
    /// The network.
    pub transport: Box<dyn Transport + Send>,
    /// The home directory.
    pub home: Home,
    /// The space called `home`.
    pub home_space: SpaceId,
    /// Settings of this device.
    pub config: Config,
}

/// One device of a pac, running.
pub struct Device {
    store: Store,
    packs: PackStore,
    rng: Box<dyn Entropy>,
    open_disk: OpenDisk,
    transport: Box<dyn Transport + Send>,
    home: Home,
    home_space: SpaceId,
    config: Config,
    worktrees: BTreeMap<SpaceId, Worktree>,
    /// Attached spaces whose worktree could not be opened: why, and when to try again.
    unopened: BTreeMap<SpaceId, (String, u64)>,
    peers: BTreeMap<ConnId, Peer>,
    /// Incoming connections that are not used yet.
    silent: BTreeMap<ConnId, Silent>,
    /// Frames that came from anyone.
    frames: u64,
    dialer: Dialer,
    waiters: Vec<Waiter>,
    /// Newest acks by space and device.
    acks: BTreeMap<(SpaceId, DeviceId), VerifiedAck>,
    /// Spaces whose own ack is to be told, and from when on.
    own_acks_due: BTreeMap<SpaceId, u64>,
    /// Logs with held segments that cannot be applied yet: up to where they are, and since when.
    waiting: BTreeMap<(SpaceId, LogId), (Seq, u64)>,
    /// Whose log the newest rows of a space came from: it has the contents that they name.
    last_writer: BTreeMap<SpaceId, DeviceId>,
    events: VecDeque<EventKind>,
    last_seen: BTreeMap<DeviceId, u64>,
    was_in_sync: bool,
    shown_problems: BTreeSet<Vec<u8>>,
    /// Conflicts and held deletes by space, as last told.
    shown_counts: BTreeMap<SpaceId, (u64, u64)>,
    started_ms: u64,
    next_request: u64,
    config_changed: bool,
    introduced: bool,
    /// When is looked whether a device lacks a key that this one has.
    reseal_due: Option<u64>,
    progress: BTreeMap<SpaceId, status::Told>,
    /// When is looked what may be pruned.
    prune_due: Option<u64>,
    kept_bytes: u64,
    part_bytes: usize,
    /// When is looked whether a checkpoint is needed.
    want_due: Option<u64>,
    /// Spaces of which rows are lacking that a checkpoint has left out.
    rows_lacking: BTreeSet<SpaceId>,
    taking: Option<checkpoints::Taking>,
    /// Why a space gets no further though peers have more of it.
    checkpoint_trouble: BTreeMap<SpaceId, String>,
    /// Hashes of headers of checkpoints that were looked at.
    judged: BTreeSet<[u8; 32]>,
    /// Checkpoints that differ from what is known here, by who started from them.
    alarms: BTreeMap<(SpaceId, DeviceId), String>,
    /// Devices that listeners were told to be in use in two places.
    shown_forks: BTreeSet<DeviceId>,
    /// Devices of which two replicas were connected at the same time, and since when.
    twins: BTreeMap<DeviceId, u64>,
    keeping: keeping::Keeping,
    /// When this device last began new logs because its own went on elsewhere.
    renewed_ms: Option<u64>,
    /// When a peer last kept another's connection in place of this device's.
    superseded_ms: Option<u64>,
}

impl Device {
    /// Starts a device: opens the worktrees of all attached spaces.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn start(parts: Parts, now: Now) -> Result<Self, StoreError> {
        let mut device = Self {
            store: parts.store,
            packs: parts.packs,
            rng: parts.rng,
            open_disk: parts.open_disk,
            transport: parts.transport,
            home: parts.home,
            home_space: parts.home_space,
            config: parts.config,
            worktrees: BTreeMap::new(),
            unopened: BTreeMap::new(),
            peers: BTreeMap::new(),
            silent: BTreeMap::new(),
            frames: 0,
            dialer: Dialer::default(),
            waiters: vec![],
            acks: BTreeMap::new(),
            own_acks_due: BTreeMap::new(),
            waiting: BTreeMap::new(),
            last_writer: BTreeMap::new(),
            events: VecDeque::new(),
            last_seen: BTreeMap::new(),
            was_in_sync: false,
            shown_problems: BTreeSet::new(),
            shown_counts: BTreeMap::new(),
            started_ms: now.ms,
            next_request: 1,
            config_changed: false,
            introduced: false,
            reseal_due: None,
            progress: BTreeMap::new(),
            prune_due: None,
            kept_bytes: checkpoints::KEPT_BYTES,
            part_bytes: pacsync_protocol::checkpoint::PART_BYTES,
            want_due: None,
            rows_lacking: BTreeSet::new(),
            taking: None,
            checkpoint_trouble: BTreeMap::new(),
            judged: BTreeSet::new(),
            alarms: BTreeMap::new(),
            shown_forks: BTreeSet::new(),
            twins: BTreeMap::new(),
            keeping: keeping::Keeping::default(),
            renewed_ms: None,
            superseded_ms: None,
        };
        for (id, addresses) in &device.config.known {
            for address in addresses {
                device.dialer.add(*address, Some(*id), now.ms);
            }
        }
        let forked = device.store.forked()?;
        device.shown_forks = forked.into_iter().map(|(device, _)| device).collect();
        device.load_acks()?;
        device.drop_parts()?;
        device.note_waiting(now)?;
        device.note_lacking(now)?;
        device.open_spaces(now)?;
        device.introduce_again(now)?;
        device.reseal_later(now);
        device.keep_from_now_on(now)?;
        Ok(device)
    }

    /// Takes a hint from the disk of a space.
    pub fn fs_event(&mut self, space: SpaceId, event: FsEvent, now: Now) {
        if let Some(worktree) = self.worktrees.get_mut(&space) {
            worktree.event(event, now);
        }
    }

    /// Does a bounded piece of work; true if there is more to do at once.
    ///
    /// # Errors
    /// [`StoreError`]: the device must be started anew from its store.
    pub fn step(&mut self, now: Now) -> Result<bool, StoreError> {
        self.retry_unopened(now)?;
        let mut more = false;
        let spaces: Vec<SpaceId> = self.worktrees.keys().copied().collect();
        for space in spaces {
            let Some(worktree) = self.worktrees.get_mut(&space) else {
                continue;
            };
            if worktree.wants_reopen() {
                self.worktrees.remove(&space);
                self.reopen(space, now)?;
                continue;
            }
            if !worktree.is_busy(now) {
                continue;
            }
            let mut cx = Context {
                store: &mut self.store,
                packs: &mut self.packs,
                rng: &mut *self.rng,
                now,
            };
            let progress = worktree.step(&mut cx)?;
            more |= progress.more;
            for path in progress.applied {
                let name = self.space_name(&space);
                let path = TextPath::from_bytes(path.as_bytes());
                self.event(EventKind::Applied { space: name, path });
            }
            for committed in progress.committed {
                let changes = committed.segments.iter().filter(|s| s.space == space);
                let changes: u64 = changes.map(|segment| segment.entries).sum();
                if changes > 0 {
                    let space = self.space_name(&space);
                    self.event(EventKind::Recorded { space, changes });
                }
                self.committed(committed, None, now)?;
            }
            self.ack_later(space, now);
        }
        self.reseal(now)?;
        self.fetch(now)?;
        self.timeouts(now)?;
        self.dial(now);
        self.tell_acks(now)?;
        self.prune(now)?;
        self.want_due(now)?;
        self.check_waiters(now)?;
        self.tell_progress(now);
        self.note_changes()?;
        if !more {
            more = self.sweep(now)?;
        }
        Ok(more)
    }

    /// When to call [`Device::step`] again at the latest.
    pub fn next_due(&self) -> Option<u64> {
        let worktrees = self.worktrees.values().filter_map(|worktree| {
            let fetch = worktree.next_request_due();
            [worktree.next_due(), fetch].into_iter().flatten().min()
        });
        let sessions = self
            .peers
            .values()
            .filter_map(|peer| peer.session.poll_timeout());
        let unopened = self.unopened.values().map(|(_, at)| *at);
        let silent = self.silent.values();
        let silent = silent.map(|silent| silent.since_ms.saturating_add(SILENT_MAX_MS));
        let acks = self.own_acks_due.values().copied();
        let waiters = self.waiters.iter().filter_map(Waiter::next_due);
        worktrees
            .chain(sessions)
            .chain(unopened)
            .chain(silent)
            .chain(acks)
            .chain(waiters)
            .chain(self.dialer.next_due())
            .chain(self.reseal_due)
            .chain(self.prune_due)
            .chain(self.want_due)
            .chain(self.keeping.next_due())
            .min()
    }

    /// What happened since the last call, for the event stream.
    pub fn take_events(&mut self) -> VecDeque<EventKind> {
        std::mem::take(&mut self.events)
    }

    fn event(&mut self, event: EventKind) {
        // Listeners are a convenience; a burst nobody reads must not fill the memory.
        if self.events.len() < 4_096 {
            self.events.push_back(event);
        }
    }

    /// Tells everyone what a transaction committed. `from` is the connection that it came by.
    fn committed(
        &mut self,
        committed: Committed,
        from: Option<ConnId>,
        now: Now,
    ) -> Result<(), StoreError> {
        let own = self.store.own_log();
        let forked: BTreeSet<SpaceId> = committed.forked.iter().map(|(space, _)| *space).collect();
        for segment in &committed.segments {
            // Its sessions begin anew, with the new names of logs.
            if forked.contains(&segment.space) {
                continue;
            }
            let origin = if segment.log == own {
                Origin::Own
            } else {
                Origin::Elsewhere
            };
            let conns: Vec<ConnId> = self.peers.keys().copied().collect();
            for conn in conns {
                if Some(conn) == from && segment.log != own {
                    continue;
                }
                let input = Input::Advanced {
                    space: segment.space,
                    log: segment.log,
                    head: segment.head,
                    origin,
                    segment: sessions::loaded(&segment.bytes),
                };
                self.feed(conn, input, now)?;
            }
        }
        self.tell_forks(&committed, &forked, now)?;
        for (space, node) in &committed.changed {
            if let Some(worktree) = self.worktrees.get_mut(space) {
                worktree.mark([*node]);
            }
        }
        self.kept_changes(&committed);
        if from.is_some() {
            self.count_deletes(&committed, now)?;
        }
        for (space, document) in &committed.documents {
            if *document == pacsync_store::documents::settings_id(space) {
                self.policy_changed(space, now)?;
                if *space == self.home_space {
                    self.refresh_tracking(now)?;
                }
            }
        }
        for space in &committed.applied {
            self.ack_later(*space, now);
        }
        if committed.roster {
            self.roster_changed(now)?;
            self.reseal_later(now);
        }
        if !committed.segments.is_empty() || !committed.applied.is_empty() {
            self.note_waiting(now)?;
        }
        self.check_joins(now)?;
        if !committed.lacking.is_empty() {
            self.rows_lacking.extend(committed.lacking);
            self.want_checkpoint(now)?;
        }
        Ok(())
    }

    fn count_deletes(&mut self, committed: &Committed, now: Now) -> Result<(), StoreError> {
        let mut by_space: BTreeMap<SpaceId, Vec<pacsync_protocol::NodeId>> = BTreeMap::new();
        for (space, node) in &committed.changed {
            by_space.entry(*space).or_default().push(*node);
        }
        for (space, nodes) in by_space {
            if let Some(worktree) = self.worktrees.get_mut(&space) {
                let confirmed = committed.confirmed.iter().filter(|(s, _)| *s == space);
                worktree.confirm(&mut self.store, confirmed.map(|(_, node)| *node))?;
                worktree.hold_mass_deletes(&mut self.store, &nodes, now)?;
            }
        }
        Ok(())
    }

    /// Settings with what was learned of peers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Closes all connections: the device that follows starts its sessions anew.
    pub fn hang_up(&mut self) {
        for conn in self.peers.keys().chain(self.silent.keys()) {
            self.transport
                .close(*conn, CloseCode::Internal, "the replica is opened anew");
        }
        self.peers.clear();
        self.silent.clear();
    }

    /// Writes settings that changed.
    pub fn save_config(&mut self) {
        if std::mem::take(&mut self.config_changed)
            && let Err(error) = self.home.save_config(&self.config)
        {
            tracing::warn!(%error, "settings not saved");
        }
    }
}

impl Device {
    /// The replica, to be read.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Keys of the roster, for the network's handshakes.
    pub fn members(&self) -> Vec<DeviceId> {
        self.store
            .roster()
            .members()
            .map(|(device, _)| *device)
            .collect()
    }

    /// Events of a disk were lost: everything is looked at again.
    pub fn lost_events(&mut self, now: Now) {
        for worktree in self.worktrees.values_mut() {
            worktree.event(FsEvent::Overflow, now);
        }
    }

    /// Whether this device may let others in.
    ///
    /// # Errors
    /// [`crate::control::ErrorKind::NotAuthorised`], naming those who may.
    pub fn check_may_enrol(
        &self,
        role: pacsync_protocol::grant::Role,
    ) -> Result<(), crate::control::CommandError> {
        let own = self.store.identity().keys.id();
        crate::home::check_may_enrol(self.store.roster(), &own, role).map_err(|error| {
            let names = error.admins().iter().map(|admin| self.device_name(admin));
            let hint = match error.admins().is_empty() {
                true => "`pacsync pair` lets in a member, `--role admin` an admin",
                false => "run `pacsync pair` on one of these devices",
            };
            crate::control::CommandError::not_authorised(error.to_string())
                .with_hint(hint)
                .with_items(names)
        })
    }
}

//! What users are told of the device: status, devices, events of change.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use pacsync_protocol::{DeviceId, NodeId, SpaceId};
use pacsync_store::StoreError;
use pacsync_store::index::IndexReader;
use pacsync_store::tree::{Conflict, TreeReader};

use super::Device;
use crate::control::api::{
    DeviceInfo, DeviceRef, EventKind, HoldBack, NeedsUser, Notice, PeerStatus, Problem, SpaceState,
    SpaceStatus, Status, TextPath, TextRoot, Transfer,
};
use crate::disk::RelPath;
use crate::net::PeerStanding;
use crate::worktree::{Now, Phase};

/// Most paths in one notice.
const NOTICE_PATHS: usize = 20;
const DAY_MS: u64 = 86_400_000;
/// Who has not been heard of for so long and holds back pruning is named to the user.
const AWAY_DAYS: u64 = 7;
/// Shortest time between two words on the progress of a space.
const PROGRESS_MS: u64 = 250;

/// What was last told of a space's work.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Most nodes that were open at a time since the last rest.
    total: u64,
    last: Option<(u64, u64)>,
    next_ms: u64,
}

impl Device {
    /// What is wrong now, with absolute paths.
    pub(super) fn all_problems(&self) -> Result<Vec<Problem>, StoreError> {
        let mut problems = vec![];
        for (space, worktree) in &self.worktrees {
            let root = self.root_of(space)?;
            for problem in worktree.problems() {
                let path = match problem.path.is_root() {
                    true => root.clone(),
                    false => root.join(OsStr::from_bytes(problem.path.as_bytes())),
                };
                problems.push(Problem {
                    path: TextPath::from_path(&path),
                    what: problem.what,
                    in_the_way: problem.in_the_way,
                });
            }
        }
        for ((space, _), why) in &self.alarms {
            problems.push(Problem {
                path: TextPath::from_path(&self.root_of(space)?),
                what: why.clone(),
                in_the_way: true,
            });
        }
        for (space, why) in &self.checkpoint_trouble {
            let vectors = self.peers.values().map(|p| p.session.peer_vector(space));
            let mut lacks = false;
            for theirs in vectors.flatten() {
                lacks |= self.store.lacks(space, theirs)?;
            }
            if lacks {
                problems.push(Problem {
                    path: TextPath::from_path(&self.root_of(space)?),
                    what: why.clone(),
                    in_the_way: true,
                });
            }
        }
        for (space, (why, _)) in &self.unopened {
            let root = self.root_of(space)?;
            problems.push(Problem {
                path: TextPath::from_path(&root),
                what: why.clone(),
                in_the_way: true,
            });
        }
        Ok(problems)
    }

    pub(super) fn root_of(&self, space: &SpaceId) -> Result<PathBuf, StoreError> {
        let attachment = self.attachment(space)?;
        Ok(attachment
            .map(|a| PathBuf::from(OsStr::from_bytes(&a.root)))
            .unwrap_or_default())
    }

    pub(super) fn device_ref(&self, device: &DeviceId) -> DeviceRef {
        DeviceRef {
            id: device.to_string(),
            name: self.device_name(device),
        }
    }

    /// Whether a peer has on disk what this device has, in every space that it keeps.
    pub(super) fn peer_in_sync(&self, device: &DeviceId) -> Result<bool, StoreError> {
        for (space, worktree) in &self.worktrees {
            if !self.keeps(device, space) {
                continue;
            }
            if !worktree.is_applied() || !self.ack_matches(space, device)? {
                return Ok(false);
            }
        }
        let roster = self.store.roster_space();
        let Some(peer) = self.peer_of(device) else {
            return Ok(true);
        };
        let held = self.store.held(&roster)?;
        Ok(peer
            .session
            .peer_vector(&roster)
            .is_some_and(|theirs| *theirs == held))
    }

    /// Whether a device has a worktree of a space, as far as it has said.
    pub(super) fn keeps(&self, device: &DeviceId, space: &SpaceId) -> bool {
        match self.store.roster().placement(device, space) {
            Some(placement) => placement.attached,
            None => *space == self.home_space && self.store.roster().may_write(device, space),
        }
    }

    /// The other devices that may hold content.
    pub(super) fn others(&self) -> Vec<DeviceId> {
        let own = self.store.identity().keys.id();
        self.store
            .roster()
            .members()
            .map(|(id, _)| *id)
            .filter(|id| *id != own)
            .collect()
    }

    pub(super) fn is_in_sync(&self) -> Result<bool, StoreError> {
        let others = self.others();
        let connected: Vec<DeviceId> = self
            .peers
            .values()
            .filter(|peer| peer.standing == PeerStanding::Known)
            .map(|peer| peer.device)
            .collect();
        if !others.is_empty() && connected.is_empty() {
            return Ok(false);
        }
        for worktree in self.worktrees.values() {
            let calm = worktree.is_applied()
                && worktree.is_scanned()
                && worktree.held().is_empty()
                && !worktree.problems().iter().any(|problem| problem.in_the_way);
            if !calm {
                return Ok(false);
            }
        }
        if !self.unopened.is_empty() {
            return Ok(false);
        }
        for device in connected {
            if !self.peer_in_sync(&device)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn space_status(&self, space: &SpaceId) -> Result<SpaceStatus, StoreError> {
        let known = self.store.space(space)?;
        let tx = self.store.read()?;
        let stats = TreeReader::open(&tx, known.no)?.stats()?;
        let attachment = IndexReader::new(&tx, known.no).attachment()?;
        let worktree = self.worktrees.get(space);
        let state = match worktree {
            None if attachment.is_none() => SpaceState::Detached,
            None => SpaceState::Joining,
            Some(worktree) if worktree.phase() == Phase::Joining => SpaceState::Joining,
            Some(worktree) if !worktree.is_scanned() || worktree.phase() != Phase::Live => {
                SpaceState::Scanning
            }
            Some(worktree) if !worktree.is_applied() => SpaceState::Applying,
            Some(_) => SpaceState::Idle,
        };
        let transfers = worktree.map(|w| w.transfer_paths()).unwrap_or_default();
        Ok(SpaceStatus {
            id: space.to_string(),
            name: self.space_name(space),
            root: attachment.as_ref().map(|a| TextRoot::from_bytes(&a.root)),
            attached: attachment.is_some(),
            state,
            files: stats.files,
            bytes: stats.bytes,
            pending: worktree.map_or(0, |w| w.pending()),
            transfers: transfers
                .into_iter()
                .map(|(path, bytes_done, bytes_total)| Transfer {
                    path: TextPath::from_bytes(path.as_bytes()),
                    bytes_done,
                    bytes_total,
                })
                .collect(),
            conflicts: stats.conflicts,
            held_deletes: worktree.map_or(0, |w| w.held().len() as u64),
        })
    }

    /// Everything about this device.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn status(&self, now: Now) -> Result<Status, StoreError> {
        let own = self.store.identity().keys.id();
        let mut spaces = vec![];
        for space in self.store.spaces() {
            spaces.push(self.space_status(&space.id)?);
        }
        let conflicts = spaces.iter().map(|s| s.conflicts).sum();
        let held_deletes = spaces.iter().map(|s| s.held_deletes).sum();
        let mut needs_user = vec![];
        for space in spaces.iter().filter(|s| s.held_deletes > 0) {
            needs_user.push(NeedsUser {
                what: format!(
                    "{} deletes in {} wait for you",
                    space.held_deletes, space.name
                ),
                command: format!("pacsync deletes {}", space.name),
            });
        }
        if conflicts > 0 {
            needs_user.push(NeedsUser {
                what: match conflicts {
                    1 => "1 path is in conflict: of its versions, one shows".into(),
                    _ => format!("{conflicts} paths are in conflict: of each, one version shows"),
                },
                command: "pacsync conflicts".into(),
            });
        }
        let forks = self.forks()?;
        for fork in &forks {
            needs_user.push(NeedsUser {
                what: format!(
                    "the key of {} is in use in two places, or its home was put back from a copy: \
                     what both wrote is kept. If there are two, remove the home of one and pair it \
                     again; otherwise leave it as it is",
                    fork.device.name
                ),
                command: "pacsync devices".into(),
            });
        }
        let mut problems = self.all_problems()?;
        for why in self.store.quarantine()?.into_iter().take(NOTICE_PATHS) {
            problems.push(Problem {
                path: TextPath::from_path(self.home.path()),
                what: format!("part of what another device wrote is not applied: {why}"),
                in_the_way: true,
            });
        }
        let mut peers = vec![];
        for device in self.others() {
            let peer = self.peer_of(&device);
            peers.push(PeerStatus {
                id: device.to_string(),
                name: self.device_name(&device),
                connected: peer.is_some(),
                address: peer
                    .map(|p| p.address)
                    .or_else(|| self.config.known.get(&device)?.first().copied()),
                in_sync: self.peer_in_sync(&device)?,
                received: self.has_logs_of(&device)?,
                last_seen_ms: peer
                    .map(|_| now.ms)
                    .or(self.last_seen.get(&device).copied()),
            });
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: now.ms.saturating_sub(self.started_ms),
            device: self.device_ref(&own),
            pac: self.store.identity().founding.id().to_string(),
            in_sync: self.is_in_sync()?,
            listen: self.transport.addresses(),
            peers,
            spaces,
            conflicts,
            held_deletes,
            problems,
            needs_user,
            notices: self.notices(now)?,
            hold_back: self.hold_back()?,
            forks,
        })
    }

    /// Tells listeners how far work under way is, a few times a second at most.
    pub(super) fn tell_progress(&mut self, now: Now) {
        let mut events = vec![];
        for (space, worktree) in &self.worktrees {
            let pending = worktree.pending();
            if pending == 0 {
                self.progress.remove(space);
                continue;
            }
            let name = self.space_name(space);
            let told = self.progress.entry(*space).or_default();
            told.total = told.total.max(pending);
            let mut bytes = (0, 0);
            for (_, done, total) in worktree.transfer_paths() {
                bytes = (bytes.0 + done, bytes.1 + total);
            }
            let seen = (pending, bytes.0);
            if now.ms < told.next_ms || told.last == Some(seen) {
                continue;
            }
            told.next_ms = now.ms + PROGRESS_MS;
            told.last = Some(seen);
            let phase = match worktree.wants_content() {
                true => "fetching",
                false => "applying",
            };
            let event = EventKind::Progress {
                space: name,
                phase: phase.into(),
                done: told.total - pending,
                total: Some(told.total),
                bytes_done: bytes.0,
                bytes_total: (bytes.1 > 0).then_some(bytes.1),
            };
            events.push(event);
        }
        for event in events {
            self.event(event);
        }
    }

    fn notices(&self, now: Now) -> Result<Vec<Notice>, StoreError> {
        let mut notices = vec![];
        for (space, worktree) in &self.worktrees {
            let broken = worktree.broken_links();
            if broken.count == 0 {
                continue;
            }
            let root = self.root_of(space)?;
            let absolute = |path: &RelPath| root.join(OsStr::from_bytes(path.as_bytes()));
            notices.push(Notice {
                what: format!(
                    "{} files in {} that were changed elsewhere had other hard links here; under \
                     those names the old content stays",
                    broken.count,
                    self.space_name(space)
                ),
                paths: broken
                    .first
                    .iter()
                    .map(|path| TextPath::from_path(&absolute(path)))
                    .collect(),
            });
        }
        if self.store.is_copied() {
            notices.push(Notice {
                what: "this home was copied, moved or put back from a copy: it writes a log of \
                       its own from now on, and what it did not know comes from other devices. If \
                       what it was copied from is in use too, remove one of the two homes and \
                       pair that device again"
                    .into(),
                paths: vec![],
            });
        }
        if self.renewed_ms.is_some() {
            notices.push(Notice {
                what:
                    "the pac has changes by this device that its own home did not know: the home \
                       was put back from a copy, or is in use elsewhere too. They were taken in, \
                       and nothing needs to be done if it was put back"
                        .into(),
                paths: vec![],
            });
        }
        for held in self.hold_back()? {
            let Some(days) = held
                .since_ms
                .map(|since| now.ms.saturating_sub(since) / DAY_MS)
                .filter(|days| *days >= AWAY_DAYS)
            else {
                continue;
            };
            notices.push(Notice {
                what: format!(
                    "{} has not been heard of for {days} days; until it is, what it lacks of {} is \
                     kept as it was written",
                    held.device.name, held.space
                ),
                paths: vec![],
            });
        }
        for (device, space) in self.waiting_long(now).into_iter().take(NOTICE_PATHS) {
            notices.push(Notice {
                what: format!(
                    "something that {} wrote in {} is here and cannot be used: what it rests on \
                     has not come from any device",
                    self.device_name(&device),
                    self.space_name(&space)
                ),
                paths: vec![],
            });
        }
        for space in self.store.spaces() {
            let tx = self.store.read()?;
            let aside = IndexReader::new(&tx, space.no).set_aside()?;
            if aside.is_empty() {
                continue;
            }
            let root = self.root_of(&space.id)?;
            notices.push(Notice {
                what: format!(
                    "{} in {} differed from the pac's; the pac's content shows, yours is kept in \
                     history",
                    match aside.len() {
                        1 => "1 file".to_owned(),
                        files => format!("{files} files"),
                    },
                    self.space_name(&space.id)
                ),
                paths: aside
                    .iter()
                    .take(NOTICE_PATHS)
                    .map(|path| TextPath::from_path(&root.join(OsStr::from_bytes(path))))
                    .collect(),
            });
        }
        Ok(notices)
    }

    /// Who lacks something that this device has.
    fn hold_back(&self) -> Result<Vec<HoldBack>, StoreError> {
        let mut all = vec![];
        for space in self.store.spaces() {
            for behind in self.stable(&space.id)?.behind {
                all.push(HoldBack {
                    device: self.device_ref(&behind.device),
                    space: self.space_name(&space.id),
                    since_ms: behind.since_ms,
                });
            }
        }
        Ok(all)
    }

    pub(super) fn device_list(&self, now: Now) -> Result<Vec<DeviceInfo>, StoreError> {
        let own = self.store.identity().keys.id();
        let root = self.store.identity().founding.record().root.0;
        let mut devices = vec![];
        for (device, member) in self.store.roster().members() {
            let this = *device == own;
            let peer = self.peer_of(device);
            let issuer = member.grant.issuer.0;
            devices.push(DeviceInfo {
                id: device.to_string(),
                name: self.device_name(device),
                role: member.grant.role,
                this,
                connected: this || peer.is_some(),
                address: peer
                    .map(|p| p.address)
                    .or_else(|| self.config.known.get(device)?.first().copied()),
                in_sync: this || self.peer_in_sync(device)?,
                last_seen_ms: if this || peer.is_some() {
                    Some(now.ms)
                } else {
                    self.last_seen.get(device).copied()
                },
                enrolled_by: (issuer != root).then(|| issuer.to_string()),
            });
        }
        devices.sort_by(|a, b| (!a.this, &a.name, &a.id).cmp(&(!b.this, &b.name, &b.id)));
        Ok(devices)
    }

    /// Turns changes of the overall state into events.
    pub(super) fn note_changes(&mut self) -> Result<(), StoreError> {
        let in_sync = self.is_in_sync()?;
        if in_sync != self.was_in_sync {
            self.was_in_sync = in_sync;
            self.event(EventKind::InSync { in_sync });
        }
        self.note_counts()?;
        let problems = self.all_problems()?;
        let paths = problems.iter().map(|p| p.path.to_bytes()).collect();
        if paths != self.shown_problems {
            for problem in &problems {
                if !self.shown_problems.contains(&problem.path.to_bytes()) {
                    let (path, what) = (problem.path.clone(), problem.what.clone());
                    self.event(EventKind::Problem { path, what });
                }
            }
            let cleared: Vec<Vec<u8>> = self.shown_problems.difference(&paths).cloned().collect();
            for path in cleared {
                self.event(EventKind::ProblemCleared {
                    path: TextPath::from_bytes(&path),
                });
            }
            self.shown_problems = paths;
        }
        Ok(())
    }

    fn note_counts(&mut self) -> Result<(), StoreError> {
        let mut counts = vec![];
        let tx = self.store.read()?;
        for (space, worktree) in &self.worktrees {
            let tree = TreeReader::open(&tx, self.store.space(space)?.no)?;
            counts.push((
                *space,
                (tree.stats()?.conflicts, worktree.held().len() as u64),
            ));
        }
        for (space, now) in counts {
            let before = self.shown_counts.insert(space, now).unwrap_or_default();
            if now == before {
                continue;
            }
            let name = self.space_name(&space);
            if now.1 > before.1 {
                self.event(EventKind::DeletesHeld {
                    space: name.clone(),
                    count: now.1,
                });
            }
            if now.0 != before.0 {
                self.event(EventKind::Conflicts {
                    space: name.clone(),
                    count: now.0,
                });
            }
            if now.0 > before.0 {
                for path in self.conflict_paths(&space)? {
                    let path = TextPath::from_bytes(path.as_bytes());
                    self.event(EventKind::Conflict {
                        space: name.clone(),
                        path,
                    });
                }
            }
        }
        Ok(())
    }

    /// Paths with concurrent contents, the first ones of many.
    fn conflict_paths(&self, space: &SpaceId) -> Result<Vec<RelPath>, StoreError> {
        let tx = self.store.read()?;
        let tree = TreeReader::open(&tx, self.store.space(space)?.no)?;
        let mut paths = vec![];
        for item in tree.conflicts()?.take(NOTICE_PATHS) {
            let names = match item? {
                Conflict::Values(node) => tree.path(&node)?,
                Conflict::Path { parent, name } if parent == NodeId::ROOT => Some(vec![name]),
                Conflict::Path { parent, name } => tree.path(&parent)?.map(|mut path| {
                    path.push(name);
                    path
                }),
            };
            let joined = names.map(|names| {
                names
                    .iter()
                    .map(|name| name.as_bytes())
                    .collect::<Vec<_>>()
                    .join(&b'/')
            });
            paths.extend(joined.and_then(|bytes| RelPath::from_bytes(&bytes).ok()));
        }
        Ok(paths)
    }
}

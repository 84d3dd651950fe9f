//! Commands that are answered later: when a scan is through, when peers have caught up, when a
//! connection stands.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pacsync_protocol::session::Input;
use pacsync_protocol::{DeviceId, SpaceId, VersionVector};
use pacsync_store::StoreError;

use super::Device;
use super::conflicts::Settle;
use super::history::{LogJob, RestoreJob};
use super::undo::UndoJob;
use crate::control::api::{
    AddReport, ConnectReport, ScanReport, SpaceReport, TextPath, WaitReport,
};
use crate::control::{CommandError, Reply};
use crate::net::{ConnId, ConnectFailure, PeerStanding};
use crate::worktree::Now;

/// How long problems may last before a `wait` gives up over them.
const PATIENCE_MS: u64 = 3_000;
/// How long a detach waits for programs that still write to files that were replaced.
pub(super) const DETACH_MAX_MS: u64 = 30_000;
/// How often a `wait` looks again without being woken.
const TICK_MS: u64 = 500;

pub(super) enum Waiter {
    Scan {
        reply: Reply<ScanReport>,
        clock: BTreeMap<SpaceId, u64>,
    },
    Add {
        paths: Vec<TextPath>,
        reply: Reply<AddReport>,
    },
    Wait(Wait),
    Settle(Settle),
    Detach(Detach),
    Connect {
        /// As the settings have it.
        kept: String,
        address: SocketAddr,
        until_ms: u64,
        reply: Reply<ConnectReport>,
    },
    Log(LogJob),
    Restore(Box<RestoreJob>),
    Undo(Box<UndoJob>),
}

/// A space whose worktree is closing.
pub(super) struct Detach {
    pub(super) space: SpaceId,
    pub(super) name: String,
    pub(super) until_ms: u64,
    pub(super) reply: Reply<SpaceReport>,
}

pub(super) struct Wait {
    pub(super) reply: Reply<WaitReport>,
    pub(super) deadline_ms: Option<u64>,
    /// The one device to wait for, as the user named it.
    pub(super) name: Option<String>,
    /// That device, once the name is known.
    pub(super) device: Option<DeviceId>,
    pub(super) scanned: bool,
    /// Since when only problems or held deletes stand in the way.
    pub(super) stuck_since_ms: Option<u64>,
    /// What peers were asked to ack.
    pub(super) asked: BTreeMap<(ConnId, SpaceId), VersionVector>,
    pub(super) next_ms: u64,
}

impl Waiter {
    pub(super) fn next_due(&self) -> Option<u64> {
        match self {
            Self::Wait(wait) => Some(wait.next_ms.min(wait.deadline_ms.unwrap_or(u64::MAX))),
            Self::Connect { until_ms, .. } => Some(*until_ms),
            Self::Detach(detach) => Some(detach.until_ms),
            Self::Settle(settle) => Some(settle.next_ms),
            Self::Restore(job) => job.next_due(),
            Self::Undo(job) => job.next_due(),
            Self::Scan { .. } | Self::Add { .. } | Self::Log(_) => None,
        }
    }

    fn is_abandoned(&self) -> bool {
        match self {
            Self::Scan { reply, .. } => reply.is_closed(),
            Self::Add { reply, .. } => reply.is_closed(),
            Self::Wait(wait) => wait.reply.is_closed(),
            Self::Settle(settle) => settle.purpose.is_abandoned(),
            Self::Connect { reply, .. } => reply.is_closed(),
            // It ends or goes on all the same.
            Self::Detach(_) => false,
            Self::Log(job) => job.reply.is_closed(),
            Self::Restore(job) => job.reply.is_closed(),
            Self::Undo(job) => job.reply.is_closed(),
        }
    }

    fn scans(&self) -> bool {
        match self {
            Self::Scan { .. } | Self::Add { .. } | Self::Log(_) => true,
            Self::Restore(job) => job.is_scanning(),
            Self::Undo(job) => job.is_scanning(),
            Self::Wait(wait) => !wait.scanned,
            Self::Settle(settle) => !settle.scanned,
            Self::Connect { .. } | Self::Detach(_) => false,
        }
    }
}

impl Device {
    pub(super) fn check_waiters(&mut self, now: Now) -> Result<(), StoreError> {
        let before = self.waiters.len();
        self.waiters.retain(|waiter| !waiter.is_abandoned());
        if self.waiters.is_empty() {
            return if before > 0 {
                self.want_versions(now)
            } else {
                Ok(())
            };
        }
        if self.waiters.iter().any(Waiter::scans) {
            for worktree in self.worktrees.values_mut() {
                worktree.hurry(now);
            }
        }
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if let Some(waiter) = self.check_waiter(waiter, now)? {
                self.waiters.push(waiter);
            }
        }
        self.want_versions(now)
    }

    pub(super) fn all_scanned(&self) -> bool {
        self.worktrees.values().all(|worktree| {
            worktree.is_scanned() && worktree.phase() != crate::worktree::Phase::FirstScan
        })
    }

    fn check_waiter(&mut self, waiter: Waiter, now: Now) -> Result<Option<Waiter>, StoreError> {
        match waiter {
            Waiter::Scan { reply, clock } => {
                if !self.all_scanned() {
                    return Ok(Some(Waiter::Scan { reply, clock }));
                }
                let mut changes = 0;
                for (space, before) in &clock {
                    changes += self.own_entries(space)?.saturating_sub(*before);
                }
                let looked_at = self.tree_entries()?;
                let problems = self.all_problems()?;
                let _ = reply.send(Ok(ScanReport {
                    looked_at,
                    changes,
                    problems,
                }));
                Ok(None)
            }
            Waiter::Add { paths, reply } => {
                if !self.all_scanned() {
                    return Ok(Some(Waiter::Add { paths, reply }));
                }
                let status = self.space_status(&self.home_space)?;
                let problems = self.all_problems()?;
                let _ = reply.send(Ok(AddReport {
                    added: paths,
                    files: status.files,
                    bytes: status.bytes,
                    problems,
                }));
                Ok(None)
            }
            Waiter::Settle(settle) => self.check_settle(settle, now),
            Waiter::Connect {
                kept,
                address,
                until_ms,
                reply,
            } => {
                if now.ms >= until_ms {
                    let error = CommandError::failed(format!("no answer from {address}"))
                        .with_hint("the address is kept and tried again by itself");
                    let _ = reply.send(Err(error));
                    return Ok(None);
                }
                Ok(Some(Waiter::Connect {
                    kept,
                    address,
                    until_ms,
                    reply,
                }))
            }
            Waiter::Wait(wait) => self.check_wait(wait, now),
            Waiter::Detach(detach) => self.check_detach(detach, now),
            Waiter::Log(job) => Ok(self.check_log(job)),
            Waiter::Restore(job) => self.check_restore(job, now),
            Waiter::Undo(job) => self.check_undo(job, now),
        }
    }

    fn tree_entries(&self) -> Result<u64, StoreError> {
        let mut count = 0;
        for space in self.worktrees.keys() {
            let tx = self.store.read()?;
            let tree = pacsync_store::tree::TreeReader::open(&tx, self.store.space(space)?.no)?;
            let stats = tree.stats()?;
            count += stats.files + stats.dirs + stats.symlinks;
        }
        Ok(count)
    }

    /// Entries in this device's logs of a space.
    pub(super) fn own_entries(&self, space: &SpaceId) -> Result<u64, StoreError> {
        let own = self.store.identity().keys.id();
        let held = self.store.held(space)?;
        let logs = held.iter().filter(|(log, _)| log.device == own);
        Ok(logs.map(|(_, head)| head.seq).sum())
    }

    fn check_wait(&mut self, mut wait: Wait, now: Now) -> Result<Option<Waiter>, StoreError> {
        wait.next_ms = now.ms + TICK_MS;
        if !wait.scanned && self.all_scanned() {
            wait.scanned = true;
        }
        let mut missing = vec![];
        if let Some(name) = &wait.name
            && wait.device.is_none()
        {
            match self.device_by_name(name) {
                Ok(device) => wait.device = Some(device),
                Err(error) if self.knows_names() => {
                    let _ = wait.reply.send(Err(error));
                    return Ok(None);
                }
                Err(error) => missing.push(format!("{error} yet")),
            }
        }
        if !wait.scanned {
            missing.push("this device still looks at its files".to_owned());
        }
        let mut stuck = vec![];
        let problems = self.all_problems()?.into_iter();
        for problem in problems.filter(|problem| problem.in_the_way) {
            stuck.push(format!("{}: {}", problem.path.path, problem.what));
        }
        for (space, worktree) in &self.worktrees {
            if !worktree.held().is_empty() {
                let name = self.space_name(space);
                stuck.push(format!(
                    "{name}: {} deletes wait for you",
                    worktree.held().len()
                ));
            }
            let pending = worktree.pending();
            // Else what stands in the way is told already.
            if !worktree.is_applied() && (pending > 0 || stuck.is_empty()) {
                let name = self.space_name(space);
                missing.push(format!(
                    "{name}: {pending} changes are not on this disk yet"
                ));
            }
        }
        let devices = self.missing_peers(&mut wait, &mut missing, now)?;
        if missing.is_empty() && stuck.is_empty() {
            let devices = devices
                .iter()
                .map(|device| self.device_ref(device))
                .collect();
            let _ = wait.reply.send(Ok(WaitReport {
                in_sync: true,
                devices,
            }));
            return Ok(None);
        }
        let only_stuck = !stuck.is_empty() && wait.scanned;
        let since = only_stuck.then(|| wait.stuck_since_ms.unwrap_or(now.ms));
        wait.stuck_since_ms = since;
        let gives_up = since.is_some_and(|since| now.ms >= since + PATIENCE_MS);
        let late = wait.deadline_ms.is_some_and(|deadline| now.ms >= deadline);
        if gives_up || late {
            let message = if late {
                "not in sync in time"
            } else {
                "something stands in the way"
            };
            let error = CommandError::needs_user(message)
                .with_items(stuck.into_iter().chain(missing))
                .with_hint("`pacsync status` shows how things are now");
            let _ = wait.reply.send(Err(error));
            return Ok(None);
        }
        Ok(Some(Waiter::Wait(wait)))
    }

    /// Names what peers lack, and asks them to say when they have it.
    fn missing_peers(
        &mut self,
        wait: &mut Wait,
        missing: &mut Vec<String>,
        now: Now,
    ) -> Result<Vec<DeviceId>, StoreError> {
        let connected: Vec<(ConnId, DeviceId)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.standing == PeerStanding::Known)
            .map(|(conn, peer)| (*conn, peer.device))
            .collect();
        let devices: Vec<DeviceId> = match wait.device {
            Some(device) => vec![device],
            None => connected.iter().map(|(_, device)| *device).collect(),
        };
        if devices.is_empty() && !self.others().is_empty() {
            missing.push("no other device is connected".into());
        }
        let mut asks = vec![];
        for device in &devices {
            for space in self.worktrees.keys() {
                if !self.keeps(device, space) || self.ack_matches(space, device)? {
                    continue;
                }
                missing.push(format!(
                    "{} has not yet said that it has all of {} on its disk",
                    self.device_name(device),
                    self.space_name(space)
                ));
                let applied = self.store.applied(space)?;
                // Who is only reached through others may ack at any time: asked for anew.
                let indirect = connected.iter().all(|(_, other)| other != device);
                // Acks of devices that are not connected come through those that are.
                for (conn, other) in &connected {
                    let via = wait.device.is_none().then_some(*device);
                    if via.is_none_or(|device| device == *other)
                        && (wait.asked.get(&(*conn, *space)) != Some(&applied) || indirect)
                    {
                        wait.asked.insert((*conn, *space), applied.clone());
                        asks.push((*conn, *space));
                    }
                }
            }
            if !self.has_same_logs(device)? {
                let name = self.device_name(device);
                missing.push(format!("{name} and this device still exchange their logs"));
            }
        }
        for (conn, space) in asks {
            let token = self.next_request;
            self.next_request += 1;
            self.feed(conn, Input::WantAck { space, token }, now)?;
        }
        Ok(devices)
    }

    /// Whether a connected device holds the same logs, also of what it keeps no files of.
    fn has_same_logs(&self, device: &DeviceId) -> Result<bool, StoreError> {
        let Some(peer) = self.peer_of(device) else {
            return Ok(true);
        };
        if !peer.session.is_established() {
            return Ok(false);
        }
        let spaces = self.store.spaces().map(|space| space.id);
        let spaces: Vec<SpaceId> = spaces
            .filter(|space| self.store.roster().may_hold(device, space))
            .collect();
        for space in spaces.into_iter().chain([self.store.roster_space()]) {
            let held = self.store.held(&space)?;
            let same = peer
                .session
                .peer_vector(&space)
                .is_some_and(|theirs| *theirs == held);
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all that a connected device has said to hold has come.
    pub(super) fn has_logs_of(&self, device: &DeviceId) -> Result<bool, StoreError> {
        let Some(peer) = self.peer_of(device) else {
            return Ok(false);
        };
        if !peer.session.is_established() {
            return Ok(false);
        }
        let spaces = self.store.spaces().map(|space| space.id);
        let spaces = spaces.filter(|space| self.store.roster().may_hold(device, space));
        for space in spaces.chain([self.store.roster_space()]) {
            let Some(theirs) = peer.session.peer_vector(&space) else {
                return Ok(false);
            };
            if !self.store.held(&space)?.covers(theirs) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn waiters_connected(&mut self, address: SocketAddr, device: DeviceId) {
        let report = ConnectReport {
            device: self.device_ref(&device),
            address,
        };
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            match waiter {
                Waiter::Connect {
                    address: wanted,
                    reply,
                    ..
                } if wanted == address => {
                    let _ = reply.send(Ok(report.clone()));
                }
                other => self.waiters.push(other),
            }
        }
    }

    pub(super) fn waiters_connect_failed(&mut self, address: SocketAddr, why: &ConnectFailure) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            match waiter {
                Waiter::Connect {
                    kept,
                    address: wanted,
                    reply,
                    ..
                } if wanted == address => {
                    let error = CommandError::failed(format!("{address}: {why}"));
                    let never = matches!(
                        why,
                        ConnectFailure::Ourselves | ConnectFailure::NotOfThisPac(_)
                    );
                    self.config_changed |= never && self.config.forget_address(&kept);
                    let error = match never {
                        true => error.with_hint("the address is not kept"),
                        false => error.with_hint("the address is kept and tried again by itself"),
                    };
                    let _ = reply.send(Err(error));
                }
                other => self.waiters.push(other),
            }
        }
    }
}

//! Whom to connect to, and when to try again.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pacsync_protocol::DeviceId;

use super::Device;
use crate::worktree::Now;

/// First wait after a failed attempt.
const BACKOFF_MIN_MS: u64 = 1_000;
/// Longest wait between attempts.
const BACKOFF_MAX_MS: u64 = 60_000;
/// Most addresses that are tried.
const TARGETS_MAX: usize = 1_024;

#[derive(Debug, Clone)]
struct Target {
    device: Option<DeviceId>,
    next_ms: u64,
    backoff_ms: u64,
    /// An attempt is under way.
    busy: bool,
}

/// Addresses and their backoff.
#[derive(Debug, Default)]
pub(super) struct Dialer {
    targets: BTreeMap<SocketAddr, Target>,
}

impl Dialer {
    /// Adds an address, or has it tried at once.
    pub(super) fn add(&mut self, address: SocketAddr, device: Option<DeviceId>, now_ms: u64) {
        if self.targets.len() >= TARGETS_MAX && !self.targets.contains_key(&address) {
            return;
        }
        let target = self.targets.entry(address).or_insert(Target {
            device,
            next_ms: now_ms,
            backoff_ms: BACKOFF_MIN_MS,
            busy: false,
        });
        target.device = device.or(target.device);
        target.next_ms = target.next_ms.min(now_ms);
    }

    pub(super) fn failed(&mut self, address: &SocketAddr, now_ms: u64) {
        if let Some(target) = self.targets.get_mut(address) {
            target.busy = false;
            // Neighbours that start together must not knock together for ever.
            let jitter = u64::from(address.port()) * 37 % (target.backoff_ms / 4).max(1);
            target.next_ms = now_ms + target.backoff_ms + jitter;
            target.backoff_ms = (target.backoff_ms * 2).min(BACKOFF_MAX_MS);
        }
    }

    pub(super) fn forget(&mut self, address: &SocketAddr) {
        self.targets.remove(address);
    }

    pub(super) fn connected(&mut self, address: SocketAddr, device: DeviceId) {
        if let Some(target) = self.targets.get_mut(&address) {
            target.busy = false;
            target.device = Some(device);
            target.backoff_ms = BACKOFF_MIN_MS;
        }
    }

    /// A connection to the device has ended: its addresses are tried soon.
    pub(super) fn lost(&mut self, device: &DeviceId, now_ms: u64) {
        for target in self.targets.values_mut() {
            if target.device == Some(*device) {
                target.next_ms = now_ms + BACKOFF_MIN_MS / 4;
                target.backoff_ms = BACKOFF_MIN_MS;
            }
        }
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.targets
            .values()
            .filter(|t| !t.busy)
            .map(|t| t.next_ms)
            .min()
    }

    fn due(&mut self, now_ms: u64) -> Vec<(SocketAddr, Option<DeviceId>)> {
        let mut due = vec![];
        for (address, target) in &mut self.targets {
            if !target.busy && target.next_ms <= now_ms {
                due.push((*address, target.device));
            }
        }
        due
    }

    fn put_off(&mut self, address: &SocketAddr, until_ms: u64) {
        if let Some(target) = self.targets.get_mut(address) {
            target.next_ms = until_ms;
        }
    }

    fn begin(&mut self, address: &SocketAddr) {
        if let Some(target) = self.targets.get_mut(address) {
            target.busy = true;
        }
    }
}

impl Device {
    /// An address of some device of the pac: from `connect`, the LAN or the settings.
    pub fn add_address(&mut self, address: SocketAddr, now: Now) {
        self.dialer.add(address, None, now.ms);
    }

    /// An attempt came to nothing.
    pub fn connect_failed(
        &mut self,
        address: SocketAddr,
        why: &crate::net::ConnectFailure,
        now: Now,
    ) {
        tracing::debug!(%address, %why, "no connection");
        if matches!(why, crate::net::ConnectFailure::Ourselves) {
            self.dialer.forget(&address);
        }
        self.dialer.failed(&address, now.ms);
        self.waiters_connect_failed(address, why);
    }

    pub(super) fn dial(&mut self, now: Now) {
        for (address, device) in self.dialer.due(now.ms) {
            let connected = self
                .peers
                .values()
                .any(|peer| Some(peer.device) == device || peer.address == address);
            if connected {
                self.dialer.put_off(&address, now.ms + BACKOFF_MAX_MS);
            } else {
                self.dialer.begin(&address);
                // Known addresses wander: whoever of the pac answers is welcome.
                self.transport.connect(address, None);
            }
        }
    }
}

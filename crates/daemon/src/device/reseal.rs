//! Epochs for devices that were let in elsewhere while a space was founded here: who founds seals to
//! the devices it knows, who lets in seals the spaces it knows. Whoever sees both closes the gap.

use pacsync_store::StoreError;

use super::Device;
use crate::home;
use crate::net::PeerStanding;
use crate::worktree::Now;

/// How long a gap may stand before this device closes it: all that it knows of may be on its way.
const RESEAL_MS: u64 = 2_000;
/// Most connected devices that are waited for, one after the other.
const TURNS_MAX: usize = 8;

impl Device {
    /// The roster has changed: a little later, and after those connected devices that come first,
    /// is looked whether anybody lacks a key.
    pub(super) fn reseal_later(&mut self, now: Now) {
        if self.reseal_due.is_some() {
            return;
        }
        let own = self.store.identity().keys.id();
        let before = self
            .peers
            .values()
            .filter(|peer| peer.standing == PeerStanding::Known && peer.device < own)
            .count();
        // Two that do it at once do no harm; the delay only spares the roster.
        let turns = 1 + before.min(TURNS_MAX) as u64;
        self.reseal_due = Some(now.ms.saturating_add(RESEAL_MS * turns));
    }

    /// Seals what is missing once it is time to.
    pub(super) fn reseal(&mut self, now: Now) -> Result<(), StoreError> {
        if self.reseal_due.is_none_or(|due| due > now.ms) {
            return Ok(());
        }
        self.reseal_due = None;
        let identity = self.store.identity().clone();
        let entries = home::reseal_entries(self.store.roster(), &identity, &mut *self.rng);
        if entries.is_empty() {
            return Ok(());
        }
        tracing::info!(
            epochs = entries.len(),
            "keys sealed to devices that lack them"
        );
        let roster = self.store.roster_space();
        let mut txn = self.store.begin()?;
        txn.append(&roster, entries, now.ms, &mut *self.rng)?;
        let committed = txn.commit()?;
        self.committed(committed, None, now)
    }
}

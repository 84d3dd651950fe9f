//! The keep policy of spaces: told, set, and carried out from time to time (`pacsync_store::keep`).

use std::collections::BTreeMap;

use pacsync_protocol::SpaceId;
use pacsync_store::StoreError;
use pacsync_store::documents::settings_id;
use pacsync_store::keep::{KeepPolicy, Sweep};

use super::Device;
use super::spaces::store_error;
use super::waiters::Waiter;
use crate::control::CommandError;
use crate::control::api::{KeepReport, KeepRequest};
use crate::worktree::{Now, Worktree};

/// Time between two sweeps.
const EVERY_MS: u64 = 24 * 3_600_000;
/// After a start or an attempt that failed, the next one is no sooner than this.
const SETTLE_MS: u64 = 600_000;
/// After a change of a policy, and where the next sweep drops something at once.
const SOON_MS: u64 = 2_000;
/// While somebody waits for a version, or one is fetched, nothing is swept.
const BUSY_MS: u64 = 1_000;

/// When is swept, and by what policies last.
pub(super) struct Keeping {
    every_ms: u64,
    due_ms: Option<u64>,
    sweep: Option<Sweep>,
    policies: BTreeMap<SpaceId, KeepPolicy>,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            every_ms: EVERY_MS,
            due_ms: None,
            sweep: None,
            policies: BTreeMap::new(),
        }
    }
}

impl Keeping {
    pub(super) fn next_due(&self) -> Option<u64> {
        self.due_ms
    }
}

impl Device {
    /// After a start.
    pub(super) fn keep_from_now_on(&mut self, now: Now) -> Result<(), StoreError> {
        let spaces: Vec<SpaceId> = self.store.spaces().map(|space| space.id).collect();
        for space in spaces {
            // Of what cannot be read nothing goes, and no start fails.
            if let Ok(policy) = self.policy(&space) {
                self.keeping.policies.insert(space, policy);
            }
        }
        // A clock that went back since must not put it off for long.
        let next = Sweep::last(&self.store)?.map_or(0, |last| last.saturating_add(EVERY_MS));
        let earliest = now.ms.saturating_add(SETTLE_MS);
        let latest = now.ms.saturating_add(EVERY_MS);
        self.keeping.due_ms = Some(next.clamp(earliest, latest));
        Ok(())
    }

    fn policy(&self, space: &SpaceId) -> Result<KeepPolicy, StoreError> {
        let settings = self.store.document(space, &settings_id(space))?;
        Ok(KeepPolicy::from_settings(&settings))
    }

    /// The settings of a space changed, its policy perhaps.
    pub(super) fn policy_changed(&mut self, space: &SpaceId, now: Now) -> Result<(), StoreError> {
        let policy = self.policy(space)?;
        if self.keeping.policies.insert(*space, policy) != Some(policy) {
            self.keeping.sweep = None;
            self.keeping.due_ms = Some(now.ms.saturating_add(SOON_MS));
        }
        Ok(())
    }

    /// Nodes have new rows.
    pub(super) fn kept_changes(&mut self, committed: &pacsync_store::Committed) {
        if let Some(sweep) = &mut self.keeping.sweep {
            for (space, node) in &committed.changed {
                sweep.changed(space, node);
            }
        }
    }

    /// Whether a content of `home` is on this device and can be read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn can_read(&self, content: &pacsync_protocol::row::Content) -> Result<bool, StoreError> {
        match self.worktrees.get(&self.home_space) {
            Some(worktree) => worktree.can_read(&self.store, &self.packs, content),
            None => Ok(false),
        }
    }

    fn wants_versions(&self) -> bool {
        let waits = |waiter: &Waiter| {
            matches!(
                waiter,
                Waiter::Restore(_) | Waiter::Undo(_) | Waiter::Settle(_) | Waiter::Log(_)
            )
        };
        self.waiters.iter().any(waits) || self.worktrees.values().any(Worktree::wants_versions)
    }

    /// Does a piece of a sweep that is due; true if there is more to do at once.
    pub(super) fn sweep(&mut self, now: Now) -> Result<bool, StoreError> {
        if self.keeping.due_ms.is_none_or(|due| due > now.ms) {
            return Ok(false);
        }
        if self.wants_versions() {
            self.keeping.due_ms = Some(now.ms.saturating_add(BUSY_MS));
            return Ok(false);
        }
        let mut sweep = match self.keeping.sweep.take() {
            Some(sweep) => sweep,
            None => {
                let mut stable = BTreeMap::new();
                for space in self.store.spaces().map(|space| space.id) {
                    stable.insert(space, self.stable(&space)?.vector);
                }
                Sweep::begin(&mut self.store, &self.packs, stable, now.ms)?
            }
        };
        match sweep.step(&mut self.store, &mut self.packs) {
            Ok(None) => {
                self.keeping.sweep = Some(sweep);
                Ok(true)
            }
            Ok(Some(swept)) => {
                if swept.dropped > 0 || swept.packs > 0 {
                    tracing::info!(?swept, "history swept");
                }
                let next = if swept.again {
                    SOON_MS
                } else {
                    self.keeping.every_ms
                };
                self.keeping.due_ms = Some(now.ms.saturating_add(next));
                Ok(false)
            }
            Err(StoreError::Packs(error)) => {
                tracing::warn!(%error, "history is not swept now");
                self.keeping.due_ms = Some(now.ms.saturating_add(SETTLE_MS));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Sweeps so often, and begins packs at this length. For simulations, where everything is small.
    pub fn sweep_every(&mut self, every_ms: u64, pack_max: u64, now: Now) {
        self.keeping.every_ms = every_ms;
        self.keeping.due_ms = Some(now.ms.saturating_add(every_ms));
        self.packs.set_pack_max(pack_max);
    }

    #[cfg(test)]
    pub(super) fn sweep_from(&mut self, at_ms: u64) {
        self.keeping.due_ms = Some(at_ms);
    }

    /// Tells how long a space keeps what, after changing what is given.
    ///
    /// # Errors
    /// Unknown spaces, nonsense.
    pub fn space_keep(
        &mut self,
        request: &KeepRequest,
        now: Now,
    ) -> Result<KeepReport, CommandError> {
        let space = self.space_by_name(&request.name)?;
        let failed = |error: StoreError| store_error(&error);
        let before = self.policy(&space).map_err(failed)?;
        let mut policy = before;
        let length = |what: &str, given: &Option<String>, now| match given {
            None => Ok(now),
            Some(text) => text
                .parse()
                .map_err(|error| CommandError::usage(format!("{what} {text:?} is {error}"))),
        };
        policy.text = length("text", &request.text, policy.text)?;
        policy.rest = length("rest", &request.rest, policy.rest)?;
        if let Some(percent) = request.percent {
            if percent > 100 {
                return Err(CommandError::usage(format!(
                    "{percent} % of a disk is more than there is"
                )));
            }
            policy.percent = percent;
        }
        // Only what differs: who sets another part of it at the same time is not overwritten.
        let kept = before.to_settings();
        let mut values = policy.to_settings();
        values.retain(|key, value| kept.get(key) != Some(value));
        if !values.is_empty() {
            let document = settings_id(&space);
            let mut txn = self.store.begin().map_err(failed)?;
            let changed = txn
                .write_document(&space, document, &values, now.ms, &mut *self.rng)
                .map_err(failed)?;
            if changed {
                let committed = txn.commit().map_err(failed)?;
                self.committed(committed, None, now).map_err(failed)?;
            }
        }
        Ok(KeepReport {
            space: self.space_name(&space),
            text: policy.text.to_string(),
            rest: policy.rest.to_string(),
            percent: policy.percent,
            bytes: self.packs.size().unwrap_or_default(),
        })
    }
}

//! Deriving life, places and counters after rows came in.

use std::collections::BTreeSet;

use pacsync_protocol::row::{Kind, Life};
use pacsync_protocol::{NodeId, RowId};

use super::keys::{path_key, space_key};
use super::record::Group;
use super::tables::{Backend, Tree, TreeTables};
use super::{Causality, Settled, TreeError};

/// Tags of the two kinds of keys in the conflicts table.
pub(super) const CONFLICT_VALUES: u8 = 0;
pub(super) const CONFLICT_PATH: u8 = 1;

/// Whether something stands in the conflicts table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    Yes,
    No,
}

/// What came of deriving whether a group lives.
enum Derived {
    Same,
    Changed,
    /// It was placed where nothing else is; nothing is left to resolve there.
    Alone,
}

impl TreeTables<'_> {
    /// Derives everything that follows from the rows inserted since the last call, in this
    /// transaction or in earlier ones. The caller writes [`Settled::unify`] as rows, inserts them
    /// and settles again until there are none.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn settle(&mut self, causality: &dyn Causality) -> Result<Settled, TreeError> {
        let pending = self.b.take_pending()?;
        let mut settled = Settled::default();
        let mut touched = BTreeSet::new();
        for node in pending.touched {
            touched.insert(self.b.rep(&node)?);
        }
        if self.b.totals.replay_due {
            self.b.totals_mut().replay_due = false;
            settled.replayed = self.replay(&mut touched)?;
        }
        self.b.pending.paths = pending.paths;
        for node in &touched {
            let group = self.b.group(node)?;
            if group.placed.is_some() && group.placed != group.at {
                self.unplace(node)?;
            }
        }
        let mut queue = touched.clone();
        let mut recount = touched.clone();
        // Adjusting a counter notes the directory whose life may depend on it.
        loop {
            queue.extend(std::mem::take(&mut self.b.pending.touched));
            let Some(node) = queue.pop_first() else { break };
            self.b.trim()?;
            match self.derive_life(&node)? {
                Derived::Same => {}
                Derived::Changed => {
                    recount.insert(node);
                    touched.insert(node);
                }
                Derived::Alone => {
                    // Counted while its rows are at hand; most new nodes end here.
                    self.count(&node)?;
                    recount.remove(&node);
                    touched.insert(node);
                }
            }
        }
        for node in &touched {
            self.derive_contest(node)?;
        }
        let paths = std::mem::take(&mut self.b.pending.paths);
        for path in paths {
            self.resolve(&path, causality, &mut recount, &mut settled.unify)?;
        }
        for node in &recount {
            self.count(node)?;
        }
        touched.extend(recount);
        touched.extend(pending.gone);
        settled.changed = touched.into_iter().collect();
        self.b.flush()?;
        Ok(settled)
    }

    /// Derives whether a group lives, and places it if so.
    fn derive_life(&mut self, node: &NodeId) -> Result<Derived, TreeError> {
        let group = self.b.group(node)?.clone();
        let alive = self.is_alive(&group)?;
        let mut derived = Derived::Same;
        if alive != group.alive {
            self.b.group_mut(node)?.alive = alive;
            derived = Derived::Changed;
        }
        match (alive, group.placed, group.at) {
            (true, None, Some(at)) => derived = self.place(node, at)?,
            (false, Some(_), _) => {
                self.unplace(node)?;
                derived = Derived::Changed;
            }
            _ => {}
        }
        Ok(derived)
    }

    /// The directory and the path's key of a placement.
    pub(super) fn path_of(&mut self, at: &RowId) -> Result<(NodeId, Vec<u8>), TreeError> {
        let held = self.held(at)?;
        let Some(at) = &held.row.keys.at else {
            return Err(TreeError::Damaged("a placement that places nothing"));
        };
        let parent = self.b.rep(&at.parent)?;
        Ok((parent, path_key(self.space, &parent, &at.name)))
    }

    fn place(&mut self, node: &NodeId, at: RowId) -> Result<Derived, TreeError> {
        let (parent, path) = self.path_of(&at)?;
        let alone = !self.b.pending.paths.contains(&path)
            && self.b.places(&path)?.next().transpose()?.is_none();
        let group = self.b.group_mut(node)?;
        group.placed = Some(at);
        group.shown = alone && !matches!(group.kind, Kind::Other(_));
        let flag = u8::from(group.shown);
        let mut key = path.clone();
        key.extend_from_slice(node.as_bytes());
        self.b.places.insert(key.as_slice(), flag)?;
        if !alone {
            self.b.pending.paths.insert(path);
        }
        if parent != NodeId::ROOT {
            let above = self.b.group_mut(&parent)?;
            above.live_children += 1;
            if above.kind == Kind::Dir && above.live_children == 1 {
                self.b.pending.touched.insert(parent);
            }
        }
        Ok(if alone {
            Derived::Alone
        } else {
            Derived::Changed
        })
    }

    fn unplace(&mut self, node: &NodeId) -> Result<(), TreeError> {
        let Some(at) = self.b.group(node)?.placed else {
            return Ok(());
        };
        let (parent, path) = self.path_of(&at)?;
        let mut key = path.clone();
        key.extend_from_slice(node.as_bytes());
        self.b.places.remove(key.as_slice())?;
        self.b.pending.paths.insert(path);
        let group = self.b.group_mut(node)?;
        group.placed = None;
        group.shown = false;
        if parent != NodeId::ROOT {
            let above = self.b.group_mut(&parent)?;
            above.live_children = above.live_children.saturating_sub(1);
            if above.kind == Kind::Dir && above.live_children == 0 {
                self.b.pending.touched.insert(parent);
            }
        }
        Ok(())
    }

    /// Takes a group out of places, totals and conflicts, before its identity or kind changes.
    pub(super) fn retract(&mut self, node: &NodeId) -> Result<(), TreeError> {
        self.unplace(node)?;
        self.b.group_mut(node)?.alive = false;
        self.derive_contest(node)?;
        self.count(node)
    }

    /// Brings the group's part in the totals up to date.
    fn count(&mut self, node: &NodeId) -> Result<(), TreeError> {
        let group = self.b.group(node)?.clone();
        let now = match (group.shown, group.kind) {
            (false, _) | (_, Kind::Other(_)) => None,
            (true, Kind::File) => {
                let shown = self.values(&group)?.into_iter().next();
                Some(shown.map_or(0, |value| value.content.size))
            }
            (true, Kind::Dir | Kind::Symlink) => Some(0),
        };
        if now == group.counted {
            return Ok(());
        }
        let stats = &mut self.b.totals_mut().stats;
        let number = match group.kind {
            Kind::Dir => &mut stats.dirs,
            Kind::Symlink => &mut stats.symlinks,
            Kind::File | Kind::Other(_) => &mut stats.files,
        };
        *number = number
            .saturating_add(u64::from(now.is_some()))
            .saturating_sub(u64::from(group.counted.is_some()));
        // Sizes come from rows and may be absurd; wrapping keeps the sum exact once they go.
        stats.bytes = stats
            .bytes
            .wrapping_add(now.unwrap_or(0))
            .wrapping_sub(group.counted.unwrap_or(0));
        self.b.group_mut(node)?.counted = now;
        Ok(())
    }

    fn derive_contest(&mut self, node: &NodeId) -> Result<(), TreeError> {
        let group = self.b.group(node)?;
        let (was, maybe) = (group.contested, group.alive && group.content.len() > 1);
        let now = maybe && {
            let group = group.clone();
            self.values(&group)?.len() > 1
        };
        if was != now {
            self.b.group_mut(node)?.contested = now;
            let key: [u8; 21] = space_key(self.space, &[&[CONFLICT_VALUES], node.as_bytes()]);
            self.list_conflict(&key, if now { Listed::Yes } else { Listed::No })?;
        }
        Ok(())
    }

    /// Lists or strikes a conflict and keeps the counter.
    pub(super) fn list_conflict(&mut self, key: &[u8], to: Listed) -> Result<(), TreeError> {
        let was = match to {
            Listed::Yes => self.b.conflicts.insert(key, ())?.is_some(),
            Listed::No => self.b.conflicts.remove(key)?.is_some(),
        };
        if was != (to == Listed::Yes) {
            let conflicts = &mut self.b.totals_mut().stats.conflicts;
            *conflicts = if was {
                conflicts.saturating_sub(1)
            } else {
                conflicts.saturating_add(1)
            };
        }
        Ok(())
    }
}

impl<B: Backend> Tree<B> {
    fn is_alive(&self, group: &Group) -> Result<bool, TreeError> {
        let held = matches!(group.kind, Kind::Other(_));
        if held || group.deads.is_empty() || (group.kind == Kind::Dir && group.live_children > 0) {
            return Ok(true);
        }
        if group.kind != Kind::Dir && !group.content.is_empty() {
            let covered = self.covered(&group.content, &group.deads)?;
            return Ok(group.content.iter().any(|row| !covered.contains(row)));
        }
        for row in &group.life {
            if self.held(row)?.row.keys.life == Some(Life::Live) {
                return Ok(true);
            }
        }
        Ok(group.life.is_empty())
    }

    /// Those of some content rows that are behind one of the dead rows, or merges whose sides all are.
    pub(super) fn covered(
        &self,
        rows: &[RowId],
        deads: &[RowId],
    ) -> Result<BTreeSet<RowId>, TreeError> {
        let mut covered = self.behind_any(rows, deads)?;
        for row in rows {
            if !covered.contains(row)
                && self.held(row)?.row.keys.merge.is_some()
                && self.is_covered(row, deads)?
            {
                covered.insert(*row);
            }
        }
        Ok(covered)
    }

    fn is_covered(&self, row: &RowId, deads: &[RowId]) -> Result<bool, TreeError> {
        let mut seen = BTreeSet::from([*row]);
        let mut todo = vec![*row];
        while let Some(id) = todo.pop() {
            if self.is_behind_any(&id, deads)? {
                continue;
            }
            let held = self.held(&id)?;
            if held.row.keys.merge.is_none() {
                return Ok(false);
            }
            let mut sides = 0;
            for past in &held.row.past {
                if self.link(past)?.writes_content {
                    sides += 1;
                    if seen.insert(*past) {
                        todo.push(*past);
                    }
                }
            }
            if sides == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

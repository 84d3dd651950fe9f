//! Where nodes are placed, and the replay of directory moves that keeps the tree a tree.
//!
//! Two ways around a replay. A directory that no directory was ever placed in closes no cycle and
//! breaks none, so its last placement counts. And a placement that comes last in the order of all
//! is decided by the state that the others have led to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pacsync_protocol::row::{At, Kind};
use pacsync_protocol::{NodeId, RowId, Stamp};

use super::TreeError;
use super::keys::space_key;
use super::record::Held;
use super::tables::{Backend, TreeTables};

impl TreeTables<'_> {
    /// The position of a placement among all.
    pub(super) fn place_order(&self, id: &RowId) -> Result<(Stamp, RowId), TreeError> {
        let held = self.held(id)?;
        Ok((held.row.keys.at.as_ref().map_or(0, |at| at.stamp), *id))
    }

    /// Takes in the placement that a new row of a group writes.
    pub(super) fn take_place(
        &mut self,
        rep: &NodeId,
        id: RowId,
        node: NodeId,
        at: &At,
    ) -> Result<(), TreeError> {
        if self.b.group(rep)?.kind == Kind::Dir {
            return self.take_dir_move(rep, id, node, at);
        }
        let later = match self.b.group(rep)?.at {
            Some(old) => self.place_order(&old)? < (at.stamp, id),
            None => true,
        };
        if later {
            self.b.group_mut(rep)?.at = Some(id);
        }
        Ok(())
    }

    fn take_dir_move(
        &mut self,
        rep: &NodeId,
        id: RowId,
        node: NodeId,
        at: &At,
    ) -> Result<(), TreeError> {
        let last = self.b.last_move()?;
        let parent = self.list_move(id, node, at)?;
        let is_last = (at.stamp, id) > last;
        if is_last {
            self.b.last_move = Some((at.stamp, id));
        }
        if parent == *rep {
            return Ok(());
        }
        if parent != NodeId::ROOT && !self.b.group(&parent)?.named {
            self.b.group_mut(&parent)?.named = true;
        }
        if self.b.totals.replay_due {
            return Ok(());
        }
        let group = self.b.group(rep)?;
        let (old, named) = (group.at, group.named);
        let counts = if !named {
            match old {
                Some(old) => self.place_order(&old)? < (at.stamp, id),
                None => true,
            }
        } else if is_last {
            !self.is_within(parent, rep)?
        } else {
            self.b.totals_mut().replay_due = true;
            false
        };
        if counts {
            self.b.group_mut(rep)?.at = Some(id);
        }
        Ok(())
    }

    /// Adds to the list of directory moves; gives the parent's representative.
    fn list_move(&mut self, id: RowId, node: NodeId, at: &At) -> Result<NodeId, TreeError> {
        let key = space_key(self.space, &[&at.stamp.to_be_bytes(), id.as_bytes()]);
        let mut value = [0; 32];
        let both = node.as_bytes().iter().chain(at.parent.as_bytes());
        for (slot, byte) in value.iter_mut().zip(both) {
            *slot = *byte;
        }
        self.b.moves.insert(&key, &value)?;
        self.b.rep(&at.parent)
    }

    /// True if `dir` or a directory above it is `top`.
    fn is_within(&mut self, dir: NodeId, top: &NodeId) -> Result<bool, TreeError> {
        let mut dir = dir;
        while dir != NodeId::ROOT {
            if dir == *top {
                return Ok(true);
            }
            let group = self.b.group(&dir)?;
            let (Kind::Dir, Some(at)) = (group.kind, group.at) else {
                return Ok(false);
            };
            let held = self.held(&at)?;
            let Some(at) = &held.row.keys.at else {
                return Ok(false);
            };
            dir = self.b.rep(&at.parent)?;
        }
        Ok(false)
    }

    /// Replays all directory placements; notes what moved. Gives their number.
    pub(super) fn replay(&mut self, touched: &mut BTreeSet<NodeId>) -> Result<usize, TreeError> {
        let moves = self.b.moves(self.space)?.collect::<Result<Vec<_>, _>>()?;
        let mut places: BTreeMap<NodeId, Option<(NodeId, RowId)>> = BTreeMap::new();
        for (row, node, parent) in &moves {
            let (node, parent) = (self.b.rep(node)?, self.b.rep(parent)?);
            let mut above = parent;
            let closes = loop {
                if above == node {
                    break true;
                }
                match places.get(&above) {
                    Some(Some((next, _))) => above = *next,
                    _ => break false,
                }
            };
            let place = places.entry(node).or_default();
            if !closes {
                *place = Some((parent, *row));
            }
        }
        for (node, place) in places {
            let at = place.map(|(_, row)| row);
            if self.b.group(&node)?.at != at {
                self.b.group_mut(&node)?.at = at;
                touched.insert(node);
            }
        }
        Ok(moves.len())
    }

    /// Puts a group's placements on or off the list of directory moves.
    pub(super) fn change_kind(
        &mut self,
        rep: &NodeId,
        kind: Kind,
        rows: &BTreeMap<RowId, Arc<Held>>,
    ) -> Result<(), TreeError> {
        let mut last = None;
        for (id, held) in rows {
            let Some(at) = &held.row.keys.at else {
                continue;
            };
            last = last.max(Some((at.stamp, *id)));
            if kind == Kind::Dir {
                let parent = self.list_move(*id, held.row.node, at)?;
                if parent != NodeId::ROOT {
                    self.b.group_mut(&parent)?.named = true;
                }
            } else {
                let key = space_key(self.space, &[&at.stamp.to_be_bytes(), id.as_bytes()]);
                self.b.moves.remove(&key)?;
            }
        }
        self.b.group_mut(rep)?.at = last.map(|(_, id)| id);
        self.b.last_move = None;
        self.b.totals_mut().replay_due = true;
        Ok(())
    }
}

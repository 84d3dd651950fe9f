//! What a checkpoint leaves out: nodes that are dead for good.
//!
//! A component of unified nodes is left out if each of its rows is stable, its newest rows are all
//! dead ones, and nothing that stays names one of its nodes as its directory. That is a function of
//! the rows up to a vector and of what is stable, so whoever has the rows comes to the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pacsync_protocol::row::{Keys, Kind, Life, Row};
use pacsync_protocol::{NodeId, RowId, Seq};

use super::record::{Held, Slot};
use super::tables::TreeReader;
use super::{Carrier, TreeError};

/// The ends of logs: number → last entry.
pub(crate) type Ends = BTreeMap<u32, Seq>;

/// Whether one of the entries that carry a row is within some ends.
pub(crate) fn is_within(carriers: &[Carrier], ends: &Ends) -> bool {
    let within = |at: &Carrier| ends.get(&at.log).is_some_and(|last| at.seq <= *last);
    carriers.iter().any(within)
}

/// A component of nodes that is left out unless something names it.
struct Gone {
    nodes: BTreeSet<NodeId>,
    /// Directories that it was ever in.
    dirs: BTreeSet<NodeId>,
}

impl TreeReader {
    /// The nodes that a checkpoint of all up to `ends` leaves out, `stable` being stable.
    ///
    /// Cost: one look at every node, and one at every row if there are any.
    pub(crate) fn left_out(
        &self,
        ends: &Ends,
        stable: &Ends,
    ) -> Result<BTreeSet<NodeId>, TreeError> {
        let mut gone = vec![];
        if stable.is_empty() {
            return Ok(BTreeSet::new());
        }
        for item in self.slots()? {
            let (_, Slot::Group(group)) = item? else {
                continue;
            };
            if group.deads.is_empty() || matches!(group.kind, Kind::Other(_)) {
                continue;
            }
            let rows = self.rows_of(&group.heads)?;
            self.gone_of(&rows, ends, stable, &mut gone)?;
        }
        let mut place: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (at, component) in gone.iter().enumerate() {
            place.extend(component.nodes.iter().map(|node| (*node, at)));
        }
        let mut named = vec![];
        if !place.is_empty() {
            for item in self.rows()? {
                let (id, row) = item?;
                if let Some(at) = &row.keys.at
                    && !place.contains_key(&row.node)
                    && place.contains_key(&at.parent)
                    && is_within(&self.carriers(&id)?, ends)
                {
                    named.push(at.parent);
                }
            }
        }
        // What stays needs all directories that it was ever in, and they theirs.
        while let Some(dir) = named.pop() {
            let Some(component) = place.get(&dir).and_then(|at| gone.get_mut(*at)) else {
                continue;
            };
            for node in std::mem::take(&mut component.nodes) {
                place.remove(&node);
            }
            named.extend(std::mem::take(&mut component.dirs));
        }
        Ok(place.into_keys().collect())
    }

    /// The components of a group that are gone.
    fn gone_of(
        &self,
        rows: &BTreeMap<RowId, Arc<Held>>,
        ends: &Ends,
        stable: &Ends,
        gone: &mut Vec<Gone>,
    ) -> Result<(), TreeError> {
        let mut within: Vec<(RowId, &Row)> = vec![];
        let mut stays: BTreeSet<NodeId> = BTreeSet::new();
        let mut unified: Vec<(NodeId, NodeId)> = vec![];
        for (id, held) in rows {
            let carriers = self.carriers(id)?;
            if !is_within(&carriers, ends) {
                continue;
            }
            let row = &held.row;
            if !is_within(&carriers, stable) {
                stays.insert(row.node);
            }
            unified.extend(row.keys.into.map(|other| (row.node, other)));
            within.push((*id, row));
        }
        let behind: BTreeSet<RowId> = within
            .iter()
            .flat_map(|(_, row)| row.past.iter().copied())
            .collect();
        for (id, row) in &within {
            if !behind.contains(id) && !is_grave(row) {
                stays.insert(row.node);
            }
        }
        let mut components: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        let mut of: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        for (_, row) in &within {
            of.entry(row.node).or_insert_with(|| {
                components.insert(row.node, [row.node].into());
                row.node
            });
        }
        for (one, other) in unified {
            let (Some(one), Some(other)) = (of.get(&one).copied(), of.get(&other).copied()) else {
                continue;
            };
            // The smaller one goes into the other.
            let len = |of: &NodeId| components.get(of).map_or(0, BTreeSet::len);
            let (one, other) = match len(&one) < len(&other) {
                true => (other, one),
                false => (one, other),
            };
            if one != other
                && let Some(nodes) = components.remove(&other)
            {
                of.extend(nodes.iter().map(|node| (*node, one)));
                components.entry(one).or_default().extend(nodes);
            }
        }
        let mut dirs: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for (_, row) in &within {
            if let (Some(at), Some(of)) = (&row.keys.at, of.get(&row.node)) {
                dirs.entry(*of).or_default().insert(at.parent);
            }
        }
        for (of, nodes) in components {
            if nodes.is_disjoint(&stays) {
                let dirs = dirs.remove(&of).unwrap_or_default();
                gone.push(Gone { nodes, dirs });
            }
        }
        Ok(())
    }
}

/// Whether a row says that its node is dead and nothing else.
pub(crate) fn is_grave(row: &Row) -> bool {
    let dead = Keys {
        life: Some(Life::Dead),
        ..Keys::default()
    };
    !row.is_birth() && row.keys == dead
}

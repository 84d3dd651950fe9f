//! Taking rows in: the gate, the registers, unification.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pacsync_protocol::row::{Kind, Life, Row};
use pacsync_protocol::{NodeId, RowId};

use super::keys::{dir_key, path_key, split_place};
use super::record::{Group, Held, Slot};
use super::tables::{Backend, Tree, TreeTables};
use super::{Carrier, Inserted, TreeError};

/// Which newest rows a group keeps.
#[derive(Debug, Clone, Copy)]
enum Register {
    Heads,
    Content,
    Mode,
    Life,
    Deads,
}

impl Register {
    const ALL: [Self; 5] = [
        Self::Heads,
        Self::Content,
        Self::Mode,
        Self::Life,
        Self::Deads,
    ];

    fn is_written_by(self, row: &Row) -> bool {
        match self {
            Self::Heads => true,
            Self::Content => row.keys.content.is_some(),
            Self::Mode => row.keys.mode.is_some(),
            Self::Life => row.keys.life.is_some(),
            Self::Deads => row.keys.life == Some(Life::Dead),
        }
    }

    fn of(self, group: &mut Group) -> &mut Vec<RowId> {
        match self {
            Self::Heads => &mut group.heads,
            Self::Content => &mut group.content,
            Self::Mode => &mut group.mode,
            Self::Life => &mut group.life,
            Self::Deads => &mut group.deads,
        }
    }
}

impl TreeTables<'_> {
    /// Takes a row in. Derived state follows with the next [`settle`](Self::settle).
    ///
    /// `id` and `bytes` must be those of `row`, and the segments that `row` depends on must have
    /// been taken in before.
    ///
    /// # Errors
    /// [`TreeError::Hostile`] for a row that no honest writer makes; then nothing changed.
    pub fn insert(
        &mut self,
        id: RowId,
        row: &Row,
        bytes: &[u8],
        carrier: Carrier,
    ) -> Result<Inserted, TreeError> {
        if self.b.has_row(&id)? {
            self.come_again(id, row, carrier)?;
            return Ok(Inserted::Known);
        }
        self.b.trim()?;
        let (own, into) = self.admit(id, row)?;
        let link = self.link_to(&row.past, carrier, row.keys.content.is_some())?;
        let held = Arc::new(Held {
            link,
            row: row.clone(),
        });
        self.b.put_row(id, Arc::clone(&held), bytes)?;
        if let Some(at) = &row.keys.at
            && at.stamp > self.b.totals.max_stamp
        {
            self.b.totals_mut().max_stamp = at.stamp;
        }

        let mut born_again = false;
        let mut rep = match own {
            Some(rep) => {
                born_again = row.is_birth();
                rep
            }
            None => {
                let kind = row.keys.kind.unwrap_or(Kind::File);
                let group = Group::new(kind, row.keys.adopted, id);
                self.b.put_slot(row.node, Slot::Group(group));
                row.node
            }
        };
        if let Some(other) = into {
            rep = self.unite(rep, other)?;
        }
        self.b.pending.touched.insert(rep);
        self.write_registers(&rep, id, &held)?;
        if let Some(at) = &row.keys.at {
            self.take_place(&rep, id, row.node, at)?;
        }
        if born_again {
            self.bear_again(rep)?;
        }
        Ok(Inserted::New)
    }

    /// Two devices that do the same write the same row. For who had seen it, each of its carriers
    /// counts, or it would matter which came first.
    fn come_again(&mut self, id: RowId, row: &Row, carrier: Carrier) -> Result<(), TreeError> {
        if self.link(&id)?.carrier == carrier || !self.b.put_carrier(&id, carrier)? {
            return Ok(());
        }
        if row.keys.at.is_none() {
            return Ok(());
        }
        let rep = self.b.rep(&row.node)?;
        if self.b.group(&rep)?.placed == Some(id) {
            let (_, path) = self.path_of(&id)?;
            self.b.pending.paths.insert(path);
        }
        Ok(())
    }

    /// The gate. Gives the row's group, if there is one, and the one that it is united with.
    fn admit(
        &mut self,
        id: RowId,
        row: &Row,
    ) -> Result<(Option<NodeId>, Option<NodeId>), TreeError> {
        let hostile = |why| Err(TreeError::Hostile { row: id, why });
        let own = self.b.find(&row.node)?;
        if own.is_none() && !row.is_birth() {
            return hostile("it writes about an unknown node");
        }
        if row.node == NodeId::ROOT {
            return hostile("it writes about the root");
        }
        if let Some(at) = &row.keys.at
            && self.b.find(&at.parent)?.is_none()
        {
            return hostile("its parent is unknown");
        }
        let kind = match &own {
            Some(rep) => Some(self.b.group(rep)?.kind),
            None => row.keys.kind,
        };
        let into = match &row.keys.into {
            None => None,
            Some(node) => match self.b.find(node)? {
                None => return hostile("it unifies with an unknown node"),
                Some(NodeId::ROOT) => return hostile("it unifies with the root"),
                Some(rep) if Some(self.b.group(&rep)?.kind) != kind => {
                    return hostile("it unifies nodes of different kinds");
                }
                Some(rep) => Some(rep),
            },
        };
        for past in &row.past {
            let Some(held) = self.b.held(self.space, past)? else {
                return hostile("its past is unknown");
            };
            let group = self.b.find(&held.row.node)?;
            if group != own {
                return hostile("its past is of another node");
            }
        }
        Ok((own, into))
    }

    fn write_registers(&mut self, rep: &NodeId, id: RowId, held: &Held) -> Result<(), TreeError> {
        for register in Register::ALL {
            if register.is_written_by(&held.row) {
                let mut newest = std::mem::take(register.of(self.b.group_mut(rep)?));
                let behind = self.superseded(register, &newest, id, held)?;
                for row in behind {
                    if let Ok(at) = newest.binary_search(&row) {
                        newest.remove(at);
                    }
                }
                // A new row is never behind an old one: all of its past was here.
                if let Err(at) = newest.binary_search(&id) {
                    newest.insert(at, id);
                }
                *register.of(self.b.group_mut(rep)?) = newest;
            }
        }
        Ok(())
    }

    /// Those of a register's newest rows that a new row has behind it.
    fn superseded(
        &self,
        register: Register,
        newest: &[RowId],
        id: RowId,
        held: &Held,
    ) -> Result<BTreeSet<RowId>, TreeError> {
        let mut found = BTreeSet::new();
        if newest.is_empty() {
            return Ok(found);
        }
        // They are the first on the ways back that write the register: behind any that does is
        // none of the newest. Mostly that is near; where it is not, each is asked about.
        let mut seen: BTreeSet<RowId> = held.row.past.iter().copied().collect();
        let mut todo = held.row.past.clone();
        let mut steps = newest.len();
        while let Some(past) = todo.pop() {
            if newest.binary_search(&past).is_ok() {
                found.insert(past);
                continue;
            }
            let held = self.held(&past)?;
            if register.is_written_by(&held.row) {
                continue;
            }
            let Some(left) = steps.checked_sub(1) else {
                return self.behind_any(newest, &[id]);
            };
            steps = left;
            todo.extend(held.row.past.iter().filter(|past| seen.insert(**past)));
        }
        Ok(found)
    }

    /// Makes two groups one.
    fn unite(&mut self, a: NodeId, b: NodeId) -> Result<NodeId, TreeError> {
        if a == b {
            return Ok(a);
        }
        self.retract(&a)?;
        self.retract(&b)?;
        let order = |node: NodeId, group: &Group| (group.adopted, node);
        let a_first = order(a, self.b.group(&a)?) < order(b, self.b.group(&b)?);
        let (winner, loser) = if a_first { (a, b) } else { (b, a) };
        let lost = self.b.group(&loser)?.clone();
        let won = self.b.group(&winner)?.at;
        let at = self.later_place(won, lost.at)?;
        let group = self.b.group_mut(&winner)?;
        for (into, from) in [
            (&mut group.heads, lost.heads),
            (&mut group.content, lost.content),
            (&mut group.mode, lost.mode),
            (&mut group.life, lost.life),
            (&mut group.deads, lost.deads),
        ] {
            into.extend(from);
            into.sort_unstable();
        }
        group.at = at;
        group.named |= lost.named;
        group.live_children += lost.live_children;
        if group.kind == Kind::Dir && group.named {
            self.b.totals_mut().replay_due = true;
        }
        self.give_way(loser, winner)?;
        Ok(winner)
    }

    fn later_place(
        &mut self,
        a: Option<RowId>,
        b: Option<RowId>,
    ) -> Result<Option<RowId>, TreeError> {
        let (Some(a), Some(b)) = (a, b) else {
            return Ok(a.or(b));
        };
        let later = self.place_order(&a)? > self.place_order(&b)?;
        Ok(Some(if later { a } else { b }))
    }

    /// Leads from a former representative to another, and moves what is placed in it.
    fn give_way(&mut self, loser: NodeId, winner: NodeId) -> Result<(), TreeError> {
        let space = self.space;
        let prefix = dir_key(space, &loser);
        let places = self.b.places(&prefix)?.collect::<Result<Vec<_>, _>>()?;
        for (key, flag) in places {
            let (_, name, child) = split_place(&key)?;
            self.b.places.remove(key.as_slice())?;
            let path = path_key(space, &winner, &name);
            let mut moved = path.clone();
            moved.extend_from_slice(child.as_bytes());
            self.b.places.insert(moved.as_slice(), flag)?;
            self.b.pending.paths.insert(path);
            self.b.pending.paths.insert(path_key(space, &loser, &name));
            self.b.pending.touched.insert(child);
        }
        self.b.put_slot(loser, Slot::Forward(winner));
        self.b.pending.touched.insert(winner);
        self.b.pending.touched.remove(&loser);
        self.b.pending.gone.insert(loser);
        self.b.pending.gone.remove(&winner);
        Ok(())
    }

    /// Looks anew at what a group's birth rows say: a node got a second one.
    fn bear_again(&mut self, rep: NodeId) -> Result<(), TreeError> {
        let heads = self.b.group(&rep)?.heads.clone();
        let rows = self.rows_of(&heads)?;
        let mut births: BTreeMap<NodeId, (RowId, Kind, bool)> = BTreeMap::new();
        for (id, held) in &rows {
            if let Some(kind) = held.row.keys.kind {
                let birth = (*id, kind, held.row.keys.adopted);
                let lowest = births.entry(held.row.node).or_insert(birth);
                *lowest = birth.min(*lowest);
            }
        }
        let first = births
            .iter()
            .map(|(node, (row, kind, adopted))| (*adopted, *node, *row, *kind));
        let Some((adopted, node, birth, kind)) = first.min() else {
            return Err(TreeError::Damaged("a group without a birth"));
        };
        self.retract(&rep)?;
        let group = self.b.group_mut(&rep)?;
        let old_kind = group.kind;
        (group.kind, group.adopted, group.birth) = (kind, adopted, birth);
        if node != rep {
            let group = group.clone();
            self.b.put_slot(node, Slot::Group(group));
            self.give_way(rep, node)?;
        }
        if kind != old_kind && (kind == Kind::Dir || old_kind == Kind::Dir) {
            self.change_kind(&node, kind, &rows)?;
        }
        Ok(())
    }
}

impl<B: Backend> Tree<B> {
    /// All rows from some heads back, by id.
    pub(super) fn rows_of(&self, heads: &[RowId]) -> Result<BTreeMap<RowId, Arc<Held>>, TreeError> {
        let mut rows = BTreeMap::new();
        let mut seen: BTreeSet<RowId> = heads.iter().copied().collect();
        let mut todo = heads.to_vec();
        while let Some(id) = todo.pop() {
            let held = self.held(&id)?;
            todo.extend(held.row.past.iter().filter(|past| seen.insert(**past)));
            rows.insert(id, held);
        }
        Ok(rows)
    }
}

//! Questions about the tree.

use std::collections::BTreeSet;

use pacsync_protocol::row::{Kind, Name, PAST_MAX};
use pacsync_protocol::{NodeId, RowId, Stamp};

use super::keys::{dir_key, path_key, split_path, split_place};
use super::record::{Group, Slot};
use super::settle::CONFLICT_VALUES;
use super::tables::{Backend, Entries, Tree};
use super::{Conflict, NodeState, Shown, TreeError, TreeStats};

/// Rows looked at before a head is examined thoroughly.
const GLANCE_MAX: usize = 64;

impl<B: Backend> Tree<B> {
    /// The representative of a node's group; the node itself if it is unknown.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn representative(&self, node: &NodeId) -> Result<NodeId, TreeError> {
        Ok(self.find_group(node)?.map_or(*node, |(rep, _)| rep))
    }

    pub(super) fn find_group(&self, node: &NodeId) -> Result<Option<(NodeId, Group)>, TreeError> {
        let mut at = *node;
        loop {
            match self.b.slot(self.space, &at)? {
                None => return Ok(None),
                Some(Slot::Group(group)) => return Ok(Some((at, group))),
                Some(Slot::Forward(next)) => at = next,
            }
        }
    }

    /// What the group of a node derives to; `None` for the root and unknown nodes.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn node(&self, node: &NodeId) -> Result<Option<NodeState>, TreeError> {
        let Some((id, group)) = self.find_group(node)? else {
            return Ok(None);
        };
        let (parent, name) = match self.place_of(&group)? {
            Some((parent, name)) => (Some(parent), Some(name)),
            None => (None, None),
        };
        let mut values = self.values(&group)?.into_iter();
        let content = values.next().map(|value| Shown {
            row: value.row,
            content: value.content,
        });
        Ok(Some(NodeState {
            id,
            kind: group.kind,
            parent,
            name,
            at_row: group.at,
            content,
            losers: values.map(|value| (value.row, value.content)).collect(),
            mode: self.mode_of(&id, &group)?,
            dead: !group.alive,
            shown: group.shown,
            adopted: group.adopted,
            live_children: group.live_children,
            heads: group.heads,
        }))
    }

    fn place_of(&self, group: &Group) -> Result<Option<(NodeId, Name)>, TreeError> {
        let Some(at) = &group.at else { return Ok(None) };
        let held = self.held(at)?;
        let Some(at) = &held.row.keys.at else {
            return Ok(None);
        };
        Ok(Some((self.representative(&at.parent)?, at.name.clone())))
    }

    fn mode_of(&self, rep: &NodeId, group: &Group) -> Result<Option<u16>, TreeError> {
        let mut best = None;
        for id in &group.mode {
            let held = self.held(id)?;
            if let Some(mode) = held.row.keys.mode {
                let candidate = (held.row.node != *rep, *id, mode);
                best = Some(best.map_or(candidate, |best| candidate.min(best)));
            }
        }
        Ok(best.map(|(_, _, mode)| mode))
    }

    /// What shows at a name in a directory, given by its representative.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn child(&self, parent: &NodeId, name: &Name) -> Result<Option<NodeId>, TreeError> {
        for entry in self.b.places(&path_key(self.space, parent, name))? {
            let (key, flag) = entry?;
            if flag == 1 {
                return Ok(Some(split_place(&key)?.2));
            }
        }
        Ok(None)
    }

    /// What shows in a directory, by name.
    ///
    /// # Errors
    /// [`TreeError`], here and for each entry.
    pub fn children(&self, parent: &NodeId) -> Result<Entries<'_, (Name, NodeId)>, TreeError> {
        let places = self.b.places(&dir_key(self.space, parent))?;
        Ok(Box::new(places.filter_map(|entry| match entry {
            Ok((_, 0)) => None,
            Ok((key, _)) => Some(split_place(&key).map(|(_, name, node)| (name, node))),
            Err(error) => Some(Err(error)),
        })))
    }

    /// Everything alive at a name in a directory, shown or not, by id.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn all_at(&self, parent: &NodeId, name: &Name) -> Result<Vec<NodeId>, TreeError> {
        let places = self.b.places(&path_key(self.space, parent, name))?;
        places.map(|entry| Ok(split_place(&entry?.0)?.2)).collect()
    }

    /// The path at which a node is rendered: it and all directories above show. Empty for the root.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn path(&self, node: &NodeId) -> Result<Option<Vec<Name>>, TreeError> {
        let mut names = vec![];
        let mut at = *node;
        while at != NodeId::ROOT {
            let Some((_, group)) = self.find_group(&at)? else {
                return Ok(None);
            };
            if !group.shown || (!names.is_empty() && group.kind != Kind::Dir) {
                return Ok(None);
            }
            let Some((parent, name)) = self.place_of(&group)? else {
                return Ok(None);
            };
            names.push(name);
            at = parent;
        }
        names.reverse();
        Ok(Some(names))
    }

    /// What is rendered at a path; the root for the empty one.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn lookup(&self, path: &[Name]) -> Result<Option<NodeId>, TreeError> {
        let mut at = NodeId::ROOT;
        for name in path {
            if at != NodeId::ROOT
                && self
                    .find_group(&at)?
                    .is_none_or(|(_, group)| group.kind != Kind::Dir)
            {
                return Ok(None);
            }
            match self.child(&at, name)? {
                Some(node) => at = node,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The `past` of a row that this device writes about a node whose content on disk came from
    /// row `base`; without a base, from the row that shows.
    ///
    /// It holds all that was seen: the base, other rows that wrote the same content, where that is
    /// the only value the newest rows that are none, and whatever else is newest without having a
    /// content behind it that is not behind those. So no value that the disk did not show is ever
    /// superseded. At most [`PAST_MAX`] rows.
    ///
    /// # Errors
    /// [`TreeError`]. For unknown nodes the result is empty.
    pub fn past_for_edit(
        &self,
        node: &NodeId,
        base: Option<&RowId>,
    ) -> Result<Vec<RowId>, TreeError> {
        let Some((_, group)) = self.find_group(node)? else {
            return Ok(vec![]);
        };
        if base.map(std::slice::from_ref) == Some(group.heads.as_slice()) {
            return Ok(group.heads);
        }
        let register = self.register(&group)?;
        let base = base
            .copied()
            .or(register.values.first().map(|value| value.row));
        if base.as_slice() == group.heads.as_slice() {
            return Ok(group.heads);
        }
        let mut bases = self.same_content(&group, base)?;
        if let [value] = register.values.as_slice()
            && value.rows.iter().any(|row| bases.contains(row))
        {
            // Some of them may have the shown content.
            for id in register.idle {
                if !bases.contains(&id) {
                    bases.push(id);
                }
            }
        }
        let mut candidates = bases.clone();
        let mut known: BTreeSet<RowId> = bases.iter().copied().collect();
        for id in [&group.heads, &group.mode, &group.life]
            .into_iter()
            .flatten()
            .chain(&group.at)
        {
            if !known.contains(id)
                && (bases.is_empty() || self.is_seen(id, &bases, &group.content)?)
            {
                candidates.push(*id);
                known.insert(*id);
            }
        }
        let behind = self.behind_any(&candidates, &candidates)?;
        let mut past = candidates;
        past.retain(|id| !behind.contains(id));
        past.truncate(PAST_MAX);
        past.sort_unstable();
        Ok(past)
    }

    /// The base and the newest rows with its content.
    fn same_content(&self, group: &Group, base: Option<RowId>) -> Result<Vec<RowId>, TreeError> {
        let Some(base) = base else { return Ok(vec![]) };
        let mut same = vec![base];
        let Some(content) = self.held(&base)?.row.keys.content.as_ref().map(|c| c.id) else {
            return Ok(same);
        };
        for id in &group.content {
            if *id != base
                && self
                    .held(id)?
                    .row
                    .keys
                    .content
                    .as_ref()
                    .is_some_and(|c| c.id == content)
            {
                same.push(*id);
            }
        }
        Ok(same)
    }

    /// True if every content row among `id` and what is behind it is a base or behind one.
    fn is_seen(&self, id: &RowId, bases: &[RowId], newest: &[RowId]) -> Result<bool, TreeError> {
        let unseen = |id: &RowId| newest.binary_search(id).is_ok() && !bases.contains(id);
        // Mostly the value that was not seen is near, and its whole history need not be walked.
        let mut near = vec![*id];
        let mut next = 0;
        while let Some(id) = near.get(next).copied()
            && next < GLANCE_MAX
        {
            if unseen(&id) {
                return Ok(false);
            }
            next += 1;
            let held = self.held(&id)?;
            if !held.link.writes_content {
                near.extend(held.row.past.iter().take(GLANCE_MAX));
            }
        }
        let mut seen = BTreeSet::from([*id]);
        let mut todo = vec![*id];
        while let Some(id) = todo.pop() {
            if bases.contains(&id) || self.is_behind_any(&id, bases)? {
                continue;
            }
            let held = self.held(&id)?;
            if held.link.writes_content {
                return Ok(false);
            }
            todo.extend(held.row.past.iter().filter(|past| seen.insert(**past)));
        }
        Ok(true)
    }

    /// Content rows of a node's group, older ones first.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn history(&self, node: &NodeId) -> Result<Vec<RowId>, TreeError> {
        let Some((_, group)) = self.find_group(node)? else {
            return Ok(vec![]);
        };
        let rows = self.rows_of(&group.heads)?;
        let mut content: Vec<_> = rows
            .iter()
            .filter(|(_, held)| held.link.writes_content)
            .map(|(id, held)| (held.link.generation, *id))
            .collect();
        content.sort_unstable();
        Ok(content.into_iter().map(|(_, id)| id).collect())
    }

    /// Birth rows of a node's group, by id.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn births(&self, node: &NodeId) -> Result<Vec<RowId>, TreeError> {
        let Some((_, group)) = self.find_group(node)? else {
            return Ok(vec![]);
        };
        let rows = self.rows_of(&group.heads)?;
        Ok(rows
            .iter()
            .filter(|(_, held)| held.row.is_birth())
            .map(|(id, _)| *id)
            .collect())
    }

    /// The counters of the space.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn stats(&self) -> Result<TreeStats, TreeError> {
        Ok(self.b.totals(self.space)?.stats)
    }

    /// The highest stamp of any placement in the space.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn max_stamp(&self) -> Result<Stamp, TreeError> {
        Ok(self.b.totals(self.space)?.max_stamp)
    }

    /// Everything that [`TreeStats::conflicts`] counts.
    ///
    /// # Errors
    /// [`TreeError`], here and for each entry.
    pub fn conflicts(&self) -> Result<Entries<'_, Conflict>, TreeError> {
        Ok(Box::new(self.b.conflict_keys(self.space)?.map(|key| {
            let key = key?;
            let bad = TreeError::Damaged("a conflict");
            match key.get(4).zip(key.get(5..)) {
                Some((&CONFLICT_VALUES, rest)) => {
                    Ok(Conflict::Values(NodeId::from_slice(rest).ok_or(bad)?))
                }
                Some((_, rest)) => {
                    let path = [&self.space.to_be_bytes()[..], rest].concat();
                    let (parent, name) = split_path(&path)?;
                    Ok(Conflict::Path { parent, name })
                }
                None => Err(bad),
            }
        })))
    }
}

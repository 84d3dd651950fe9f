//! Questions about what was: the rows of a node, and the dead.

use std::collections::{BTreeSet, VecDeque};

use pacsync_protocol::row::{Kind, Name, Row};
use pacsync_protocol::{ContentId, NodeId, RowId};

use super::record::Slot;
use super::tables::{Backend, ReadTables, Tree};
use super::{Carrier, TreeError};

/// A row of a node's group.
#[derive(Debug, Clone)]
pub struct PastRow {
    /// Its id.
    pub id: RowId,
    /// What it says.
    pub row: Row,
    /// The first entry that carried it here.
    pub carrier: Carrier,
    /// 1 + the highest generation of the rows in its past.
    pub generation: u64,
}

/// A dead node and where it was last.
#[derive(Debug, Clone)]
pub struct Buried {
    /// The representative.
    pub node: NodeId,
    /// What it was.
    pub kind: Kind,
    /// Representative of the directory that it was in.
    pub parent: NodeId,
    /// Its name there.
    pub name: Name,
}

impl<B: Backend> Tree<B> {
    /// All rows of a node's group, each after what is behind it.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn rows_of_node(&self, node: &NodeId) -> Result<Vec<PastRow>, TreeError> {
        let rep = self.representative(node)?;
        let Some(Slot::Group(group)) = self.b.slot(self.space, &rep)? else {
            return Ok(vec![]);
        };
        let mut rows: Vec<PastRow> = self
            .rows_of(&group.heads)?
            .into_iter()
            .map(|(id, held)| PastRow {
                id,
                row: held.row.clone(),
                carrier: held.link.carrier,
                generation: held.link.generation,
            })
            .collect();
        rows.sort_by_key(|row| (row.generation, row.id));
        Ok(rows)
    }

    /// The contents that were there before a row, the nearest first; looks at no more than `limit`
    /// rows.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn contents_before(&self, row: &RowId, limit: usize) -> Result<Vec<ContentId>, TreeError> {
        let Some(first) = self.b.held(self.space, row)? else {
            return Ok(vec![]);
        };
        let mut todo: VecDeque<RowId> = first.row.past.iter().take(limit).copied().collect();
        let mut seen: BTreeSet<RowId> = todo.iter().copied().collect();
        let mut contents = vec![];
        while let Some(id) = todo.pop_front() {
            let Some(held) = self.b.held(self.space, &id)? else {
                continue;
            };
            match &held.row.keys.content {
                Some(content) => contents.push(content.id),
                None => {
                    for past in &held.row.past {
                        if seen.len() < limit && seen.insert(*past) {
                            todo.push_back(*past);
                        }
                    }
                }
            }
        }
        Ok(contents)
    }
}

impl Tree<ReadTables> {
    /// Up to `limit` nodes, by id, after `from`: each once, as its representative.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn groups_after(
        &self,
        from: Option<&NodeId>,
        limit: usize,
    ) -> Result<(Vec<NodeId>, Option<NodeId>), TreeError> {
        let mut groups = vec![];
        let mut last = None;
        for item in self.slots_after(from)?.take(limit) {
            let (node, slot) = item?;
            last = Some(node);
            if matches!(slot, Slot::Group(_)) {
                groups.push(node);
            }
        }
        Ok((groups, last))
    }

    /// The nodes that are dead by their own rule. Looks at every node of the space.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn buried(&self) -> Result<Vec<Buried>, TreeError> {
        let mut buried = vec![];
        for item in self.slots()? {
            let (node, slot) = item?;
            let Slot::Group(group) = slot else { continue };
            let (false, Some(at)) = (group.alive, group.at) else {
                continue;
            };
            if let Some(at) = self
                .b
                .held(self.space, &at)?
                .and_then(|held| held.row.keys.at.clone())
            {
                buried.push(Buried {
                    node,
                    kind: group.kind,
                    parent: self.representative(&at.parent)?,
                    name: at.name,
                });
            }
        }
        Ok(buried)
    }
}

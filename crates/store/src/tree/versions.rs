//! The versions that stand side by side, and the rows that settle them.
//!
//! Whatever is settled is written over *all* that was newest, and what is kept is written anew:
//! so the register has one value on every device, and who settled otherwise without having
//! seen this makes a conflict again and no loss.

use std::collections::BTreeSet;

use pacsync_protocol::row::{Content, Keys, Kind, Life, Name, PAST_MAX, Row};
use pacsync_protocol::{NodeId, RowId};

use super::TreeError;
use super::keys::{dir_key, split_place};
use super::tables::{Backend, Tree};

/// One of the contents of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The row that stands for it.
    pub row: RowId,
    /// All newest rows with this content, ascending.
    pub rows: Vec<RowId>,
    /// The content.
    pub content: Content,
}

impl<B: Backend> Tree<B> {
    /// The values of a node's content register, the shown one first; none for unknown nodes.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn versions(&self, node: &NodeId) -> Result<Vec<Version>, TreeError> {
        let Some((_, group)) = self.find_group(node)? else {
            return Ok(vec![]);
        };
        let values = self.values(&group)?.into_iter();
        Ok(values
            .map(|value| Version {
                row: value.row,
                rows: value.rows,
                content: value.content,
            })
            .collect())
    }

    /// Rows that write `keys` over everything that is known of a node: one, or a chain where
    /// there is more than one row can name. None for unknown nodes.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn write_over(&self, node: &NodeId, keys: &Keys) -> Result<Vec<Row>, TreeError> {
        let Some((rep, group)) = self.find_group(node)? else {
            return Ok(vec![]);
        };
        let mut rows: Vec<Row> = vec![];
        let mut rest = group.heads.as_slice();
        while !rest.is_empty() {
            let before: Vec<RowId> = rows.last().map(Row::id).into_iter().collect();
            let count = rest.len().min(PAST_MAX - before.len());
            let (now, later) = rest.split_at(count);
            rows.push(Row::new(rep, [&before, now].concat(), keys.clone()));
            rest = later;
        }
        Ok(rows)
    }

    /// Rows by which a node and all that lives beneath it die, for whoever sees nothing newer.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn bury(&self, node: &NodeId) -> Result<Vec<Row>, TreeError> {
        let keys = Keys {
            life: Some(Life::Dead),
            ..Keys::default()
        };
        let mut rows = vec![];
        let mut doomed = vec![*node];
        let mut seen = BTreeSet::new();
        while let Some(node) = doomed.pop() {
            let Some((rep, group)) = self.find_group(&node)? else {
                continue;
            };
            if !seen.insert(rep) || !group.alive {
                continue;
            }
            if group.kind == Kind::Dir {
                doomed.extend(self.living_in(&rep)?.into_iter().map(|(_, child)| child));
            }
            rows.extend(self.write_over(&rep, &keys)?);
        }
        Ok(rows)
    }

    /// All that lives directly in a directory, given by its representative, shown or not.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn living_in(&self, dir: &NodeId) -> Result<Vec<(Name, NodeId)>, TreeError> {
        let places = self.b.places(&dir_key(self.space, dir))?;
        places
            .map(|entry| split_place(&entry?.0).map(|(_, name, node)| (name, node)))
            .collect()
    }

    /// The content that all of these versions were made from: the latest that every one of them
    /// has behind it. `None` if there is none, more than one, or it is too far behind.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn common_base(&self, versions: &[Version]) -> Result<Option<Version>, TreeError> {
        let rows: Vec<Vec<RowId>> = versions.iter().map(|v| v.rows.clone()).collect();
        let common = self.common_ancestors(&rows)?.unwrap_or_default();
        let Some((row, content)) = common.first() else {
            return Ok(None);
        };
        if common.iter().any(|(_, other)| other.id != content.id) {
            return Ok(None);
        }
        Ok(Some(Version {
            row: *row,
            rows: common.iter().map(|(id, _)| *id).collect(),
            content: content.clone(),
        }))
    }
}

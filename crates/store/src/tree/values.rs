//! The content register: which of a group's newest contents stand side by side, which of them
//! shows, and what a merge of them is made of.
//!
//! Two kinds of newest rows are no values, for they say nothing that the others do not:
//!
//! - a merge all of whose sides another newest row has behind it. Of two merges with the same sides
//!   the one by the higher function version stays, then the lower content id, then the lower row id;
//! - a content that equals the base, the latest common ancestor of all values, unless it outlived a
//!   delete that no other did.
//!
//! Where values have no common ancestor, as in files that became one, rows of one content count as
//! one: who made the same file elsewhere and edited it began from it, too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use pacsync_protocol::row::{Content, Keys, Kind, PAST_MAX, Row};
use pacsync_protocol::{ContentId, NodeId, RowId};

use super::TreeError;
use super::record::{Group, Link};
use super::tables::{Backend, Tree};
use crate::merge;

/// Most rows that are passed on the way to common ancestors; behind more there is no base.
const WAY_MAX: usize = 4096;
/// Most rows that a merge is taken apart into; one of more stands for itself.
const LEAVES_MAX: usize = 256;
/// Most levels of merges that are made only to be the base of another.
const DEPTH_MAX: usize = 3;

#[cfg(test)]
thread_local! {
    /// Rows passed on the way to common ancestors.
    pub(super) static PASSED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// One value of a content register.
pub(super) struct Value {
    pub(super) row: RowId,
    /// All newest rows with this content, ascending.
    pub(super) rows: Vec<RowId>,
    pub(super) content: Content,
}

/// What the newest content rows of a group come to.
pub(super) struct Register {
    /// The values, the shown one first.
    pub(super) values: Vec<Value>,
    /// Newest rows that are no values.
    pub(super) idle: Vec<RowId>,
}

/// Newest rows with one content.
#[derive(Clone)]
struct Side {
    rows: Vec<(RowId, Content)>,
    /// Whether there is a row that no delete covers.
    outlived: bool,
}

/// What concurrent edits of a file began from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing: the sides have no common ancestor.
    Empty,
    /// One content.
    Content(Content),
    /// Several latest common ancestors: the merge of these, in this order, over their own base.
    Merge(Box<Base>, Vec<Content>),
}

/// Concurrent contents of a file that may be merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mergeable {
    /// The node that the merge is written about; the same wherever the same rows are.
    pub node: NodeId,
    /// The newest content rows, sorted: the past of the merge.
    pub past: Vec<RowId>,
    /// The highest time of them.
    pub mtime_ns: i64,
    /// The different contents, in the order of the lowest rows with each.
    pub sides: Vec<Content>,
    /// What they were edited from.
    pub base: Base,
}

impl Base {
    /// All contents that are needed to know the base.
    pub fn contents(&self) -> Vec<&Content> {
        match self {
            Self::Empty => vec![],
            Self::Content(content) => vec![content],
            Self::Merge(base, sides) => base.contents().into_iter().chain(sides).collect(),
        }
    }
}

impl Mergeable {
    /// The row that says what the sides were merged into: the same from every device.
    pub fn row(&self, id: ContentId, size: u64, inline: Option<Vec<u8>>) -> Row {
        let keys = Keys {
            content: Some(Content {
                id,
                size,
                mtime_ns: self.mtime_ns,
                inline,
            }),
            merge: Some(merge::VERSION),
            ..Keys::default()
        };
        Row::new(self.node, self.past.clone(), keys)
    }
}

impl Side {
    fn ids(&self) -> Vec<RowId> {
        self.rows.iter().map(|(id, _)| *id).collect()
    }

    fn lowest(&self) -> Option<RowId> {
        self.rows.iter().map(|(id, _)| *id).min()
    }

    /// The content, by the lowest row that has it inline, if any does.
    fn content(&self) -> Option<Content> {
        content_of(&self.rows)
    }
}

fn content_of(rows: &[(RowId, Content)]) -> Option<Content> {
    rows.iter()
        .min_by_key(|(id, content)| (content.inline.is_none(), *id))
        .map(|(_, content)| content.clone())
}

fn by_content(rows: Vec<(RowId, Content)>) -> BTreeMap<ContentId, Vec<(RowId, Content)>> {
    let mut sides: BTreeMap<ContentId, Vec<(RowId, Content)>> = BTreeMap::new();
    for (id, content) in rows {
        sides.entry(content.id).or_default().push((id, content));
    }
    sides
}

impl<B: Backend> Tree<B> {
    /// The values of a group's content register, the shown one first.
    pub(super) fn values(&self, group: &Group) -> Result<Vec<Value>, TreeError> {
        Ok(self.register(group)?.values)
    }

    pub(super) fn register(&self, group: &Group) -> Result<Register, TreeError> {
        let (sides, idle) = self.sides(group)?;
        let alone = sides.len() == 1;
        let mut ranked = vec![];
        for side in sides {
            let ids = side.ids();
            let rank = if alone {
                None
            } else {
                let behind = self.content_behind(&ids)?;
                Some((!side.outlived, Reverse(behind), side.lowest()))
            };
            let mut rows = side.rows;
            rows.sort_by_key(|(id, content)| (Reverse(content.mtime_ns), *id));
            if let Some((row, content)) = rows.into_iter().next() {
                let value = Value {
                    row,
                    rows: ids,
                    content,
                };
                ranked.push((rank, value));
            }
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        Ok(Register {
            values: ranked.into_iter().map(|(_, value)| value).collect(),
            idle,
        })
    }

    /// The newest contents that stand side by side, in no order, and the newest rows that are none
    /// of them.
    fn sides(&self, group: &Group) -> Result<(Vec<Side>, Vec<RowId>), TreeError> {
        let mut rows = vec![];
        for id in &group.content {
            if let Some(content) = &self.held(id)?.row.keys.content
                && (group.kind != Kind::Symlink || content.target().is_some())
            {
                rows.push((*id, content.clone()));
            }
        }
        let one = rows.windows(2).all(|pair| match pair {
            [(_, a), (_, b)] => a.id == b.id,
            _ => true,
        });
        if one {
            let outlived = true;
            let sides = if rows.is_empty() {
                vec![]
            } else {
                vec![Side { rows, outlived }]
            };
            return Ok((sides, vec![]));
        }
        let covered = self.covered(&group.content, &group.deads)?;
        let mut idle = self.idle_merges(&rows)?;
        rows.retain(|(id, _)| !idle.contains(id));
        let mut sides: Vec<Side> = by_content(rows)
            .into_values()
            .map(|rows| Side {
                outlived: rows.iter().any(|(id, _)| !covered.contains(id)),
                rows,
            })
            .collect();
        while sides.len() > 1
            && let Some(base) = self.common_content(&sides)?
            && let Some(at) = sides
                .iter()
                .position(|side| side.rows.iter().any(|(_, content)| content.id == base))
        {
            let others_outlived = sides
                .iter()
                .enumerate()
                .any(|(other, side)| other != at && side.outlived);
            if sides.get(at).is_some_and(|side| side.outlived) && !others_outlived {
                break;
            }
            idle.extend(sides.remove(at).ids());
        }
        idle.sort_unstable();
        Ok((sides, idle))
    }

    /// Merges among newest rows that add nothing to another of them.
    fn idle_merges(&self, rows: &[(RowId, Content)]) -> Result<Vec<RowId>, TreeError> {
        let mut merges = vec![];
        if rows.len() > PAST_MAX {
            return Ok(vec![]);
        }
        for (id, content) in rows {
            if let Some(version) = self.held(id)?.row.keys.merge {
                merges.push((*id, (Reverse(version), content.id, *id), self.leaves(id)?));
            }
        }
        let mut idle = vec![];
        for (id, rank, leaves) in &merges {
            if leaves.contains(id) {
                continue;
            }
            for (other, _) in rows {
                if other == id || !self.has_all(other, leaves)? {
                    continue;
                }
                let equal = merges.iter().find(|(merge, _, _)| merge == other);
                let gives_way = match equal {
                    Some((_, other_rank, other_leaves)) => {
                        other_rank < rank
                            || other_leaves.contains(other)
                            || !self.has_all(id, other_leaves)?
                    }
                    None => true,
                };
                if gives_way {
                    idle.push(*id);
                    break;
                }
            }
        }
        Ok(idle)
    }

    /// True if all of some rows are behind one.
    fn has_all(&self, row: &RowId, all: &BTreeSet<RowId>) -> Result<bool, TreeError> {
        for one in all {
            if !self.is_ancestor(one, row)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a merge merges, where a side is a merge itself what that one merges; the row itself
    /// if that is nothing, or too much.
    fn leaves(&self, merge: &RowId) -> Result<BTreeSet<RowId>, TreeError> {
        let mut leaves = BTreeSet::new();
        let mut seen = BTreeSet::from([*merge]);
        let mut todo = vec![*merge];
        while let Some(id) = todo.pop() {
            let held = self.held(&id)?;
            let mut sides = vec![];
            if held.row.keys.merge.is_some() {
                for past in &held.row.past {
                    if self.link(past)?.writes_content {
                        sides.push(*past);
                    }
                }
            }
            if sides.is_empty() {
                leaves.insert(id);
            }
            todo.extend(sides.into_iter().filter(|side| seen.insert(*side)));
            if seen.len() > LEAVES_MAX {
                return Ok(BTreeSet::from([*merge]));
            }
        }
        Ok(leaves)
    }

    /// The one content that all sides were edited from.
    fn common_content(&self, sides: &[Side]) -> Result<Option<ContentId>, TreeError> {
        let rows: Vec<Vec<RowId>> = sides.iter().map(Side::ids).collect();
        let mut common = by_content(self.common_ancestors(&rows)?.unwrap_or_default());
        Ok(match common.pop_first() {
            Some((id, _)) if common.is_empty() => Some(id),
            _ => None,
        })
    }

    /// The latest content rows that are behind a row of each side. `None` if the way to them is too
    /// long.
    pub(super) fn common_ancestors(
        &self,
        sides: &[Vec<RowId>],
    ) -> Result<Option<Vec<(RowId, Content)>>, TreeError> {
        let found = self.common_by(sides, &BTreeMap::new())?;
        if found.as_ref().is_none_or(|found| !found.is_empty()) {
            return Ok(found);
        }
        let mut alike = BTreeMap::new();
        for (number, rows) in sides.iter().enumerate() {
            if let Some(row) = rows.first()
                && let Some(content) = &self.held(row)?.row.keys.content
            {
                alike.insert(content.id, 1 << number);
            }
        }
        self.common_by(sides, &alike)
    }

    /// The latest content row that two have behind them, or are; `None` if that is not just one.
    ///
    /// # Errors
    /// [`TreeError`], also if either is unknown.
    pub fn shared_base(&self, one: &RowId, other: &RowId) -> Result<Option<RowId>, TreeError> {
        if one == other || self.is_ancestor(one, other)? {
            return Ok(Some(*one));
        }
        if self.is_ancestor(other, one)? {
            return Ok(Some(*other));
        }
        let found = self.common_by(&[vec![*one], vec![*other]], &BTreeMap::new())?;
        Ok(match found.unwrap_or_default().as_slice() {
            [(row, _)] => Some(*row),
            _ => None,
        })
    }

    /// The same as [`Self::common_ancestors`]; a row with one of the contents in `alike` counts as
    /// behind that side.
    fn common_by(
        &self,
        sides: &[Vec<RowId>],
        alike: &BTreeMap<ContentId, u32>,
    ) -> Result<Option<Vec<(RowId, Content)>>, TreeError> {
        /// Behind a common ancestor.
        const STALE: u32 = 1 << 31;
        if sides.len() > merge::MAX_SIDES {
            return Ok(None);
        }
        let all = (1u32 << sides.len()) - 1;
        let mut marks: BTreeMap<RowId, u32> = BTreeMap::new();
        let mut ways = BinaryHeap::new();
        let mut open = 0usize;
        for (number, rows) in sides.iter().enumerate() {
            for row in rows {
                ways.push((self.link(row)?.generation, *row));
                marks.insert(*row, 1 << number);
                open += 1;
            }
        }
        let newest: BTreeSet<RowId> = marks.keys().copied().collect();
        let mut found = vec![];
        let mut passed = 0;
        // Whoever has a row behind it has a higher generation, so its marks are all there by now.
        while open > 0
            && let Some((_, id)) = ways.pop()
        {
            passed += 1;
            #[cfg(test)]
            PASSED.set(PASSED.get() + 1);
            if passed > WAY_MAX {
                return Ok(None);
            }
            let mut mark = marks.get(&id).copied().unwrap_or_default();
            if mark & STALE == 0 {
                open -= 1;
            }
            let held = self.held(&id)?;
            if let Some(content) = &held.row.keys.content {
                mark |= alike.get(&content.id).copied().unwrap_or_default();
            }
            if mark == all
                && !newest.contains(&id)
                && let Some(content) = &held.row.keys.content
            {
                found.push((id, content.clone()));
                mark |= STALE;
            }
            // All that is behind a common row is common.
            let next = match alike.is_empty() && mark != all {
                true => self.skip(&held.link, ways.peek().map(|(generation, _)| *generation))?,
                false => None,
            };
            for past in next
                .as_ref()
                .map_or(&held.row.past[..], std::slice::from_ref)
            {
                let before = marks.get(past).copied();
                let after = before.unwrap_or_default() | mark;
                match before {
                    None => ways.push((self.link(past)?.generation, *past)),
                    Some(before) if before & STALE == 0 => open -= 1,
                    Some(_) => {}
                }
                open += usize::from(after & STALE == 0);
                marks.insert(*past, after);
            }
        }
        found.sort_by_key(|(id, _)| *id);
        Ok(Some(found))
    }

    /// A row that all ways back from another run through and before which they meet none of the
    /// others: those are of no higher generation than `others`, and nothing in between is of one so low.
    fn skip(&self, link: &Link, others: Option<u64>) -> Result<Option<RowId>, TreeError> {
        let (Some(back), Some(others)) = (&link.back, others) else {
            return Ok(None);
        };
        for far in [back.jump, back.gate] {
            // What is passed may be of the same generation as where it ends.
            if self.link(&far)?.generation > others {
                return Ok(Some(far));
            }
        }
        Ok(None)
    }

    /// The concurrent contents of a live file that a merge may bring together. `None` if there is
    /// only one, if they are too many or too large, or if what they began from is too far behind.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn mergeable(&self, node: &NodeId) -> Result<Option<Mergeable>, TreeError> {
        let Some((_, group)) = self.find_group(node)? else {
            return Ok(None);
        };
        let many = group.content.len() > 1 && group.content.len() <= PAST_MAX;
        if group.kind != Kind::File || !group.alive || !many {
            return Ok(None);
        }
        let (mut sides, _) = self.sides(&group)?;
        if sides.len() < 2 || sides.len() > merge::MAX_SIDES {
            return Ok(None);
        }
        sides.sort_by_key(Side::lowest);
        let rows: Vec<Vec<RowId>> = sides.iter().map(Side::ids).collect();
        let Some(base) = self.base_of(&rows, DEPTH_MAX)? else {
            return Ok(None);
        };
        let sides: Vec<Content> = sides.iter().filter_map(Side::content).collect();
        let latest = match &base {
            Base::Empty => &[],
            Base::Content(content) => std::slice::from_ref(content),
            Base::Merge(_, contents) => contents.as_slice(),
        };
        if sides
            .iter()
            .any(|side| latest.iter().any(|base| base.id == side.id))
        {
            // It outlived a delete, or each was made from the other.
            return Ok(None);
        }
        let fits = |content: &Content| content.size <= merge::MAX_BYTES as u64;
        if !sides.iter().chain(base.contents()).all(fits) {
            return Ok(None);
        }
        let mut mtime_ns = i64::MIN;
        let mut about = None;
        for id in &group.content {
            let held = self.held(id)?;
            if let Some(content) = &held.row.keys.content {
                mtime_ns = mtime_ns.max(content.mtime_ns);
            }
            about = Some(about.map_or(held.row.node, |node: NodeId| node.min(held.row.node)));
        }
        Ok(about.map(|node| Mergeable {
            node,
            past: group.content.clone(),
            mtime_ns,
            sides,
            base,
        }))
    }

    fn base_of(&self, sides: &[Vec<RowId>], depth: usize) -> Result<Option<Base>, TreeError> {
        let Some(common) = self.common_ancestors(sides)? else {
            return Ok(None);
        };
        let mut common: Vec<Vec<(RowId, Content)>> = by_content(common).into_values().collect();
        common.sort_by_key(|rows| rows.iter().map(|(id, _)| *id).min());
        let contents: Vec<Content> = common.iter().filter_map(|rows| content_of(rows)).collect();
        match contents.as_slice() {
            [] => Ok(Some(Base::Empty)),
            [one] => Ok(Some(Base::Content(one.clone()))),
            _ if depth == 0 || contents.len() > merge::MAX_SIDES => Ok(None),
            _ => {
                let rows: Vec<Vec<RowId>> = common
                    .into_iter()
                    .map(|rows| rows.into_iter().map(|(id, _)| id).collect())
                    .collect();
                let base = self.base_of(&rows, depth - 1)?;
                Ok(base.map(|base| Base::Merge(Box::new(base), contents)))
            }
        }
    }
}

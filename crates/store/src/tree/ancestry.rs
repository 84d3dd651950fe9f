//! What is behind what in a group's history.
//!
//! The *gate* of a row is where all ways back from it meet first, in order of generation: going
//! back from its past, always from the highest generation, until one row is left. What was passed
//! on the way is the row's *region*; everything else behind the row is the gate or behind it. A
//! row with one row as its past has that as its gate and no region. Gates form a chain per row
//! that jump links make short, so a question costs O(log n) plus the one region that it falls into.

use std::collections::{BTreeSet, BinaryHeap};

use pacsync_protocol::RowId;

use super::record::{Back, Link};
use super::tables::{Backend, Tree};
use super::{Carrier, TreeError};

/// Pairs of rows that are asked about one by one; few in tests, so that they take both ways.
const PAIRS_MAX: usize = if cfg!(test) { 4 } else { 1024 };

#[cfg(test)]
thread_local! {
    /// How often [`Tree::is_ancestor`] was asked.
    pub(super) static ASKED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl<B: Backend> Tree<B> {
    /// True if `a` is behind `b`: not for equal ones.
    ///
    /// # Errors
    /// [`TreeError`], also if either is unknown.
    pub fn is_ancestor(&self, a: &RowId, b: &RowId) -> Result<bool, TreeError> {
        #[cfg(test)]
        ASKED.set(ASKED.get() + 1);
        let generation = self.link(a)?.generation;
        let mut at = *b;
        let mut link = self.link(b)?;
        while link.generation > generation {
            let Some(back) = link.back else {
                return Ok(false);
            };
            if back.gate == *a {
                return Ok(true);
            }
            let gate = self.link(&back.gate)?;
            if gate.generation <= generation {
                return if back.single {
                    Ok(false)
                } else {
                    self.in_region(a, generation, &at)
                };
            }
            let jump = if back.jump == back.gate {
                gate
            } else {
                self.link(&back.jump)?
            };
            (at, link) = if jump.generation > generation {
                (back.jump, jump)
            } else {
                (back.gate, gate)
            };
        }
        Ok(false)
    }

    fn in_region(&self, a: &RowId, generation: u64, from: &RowId) -> Result<bool, TreeError> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![*from];
        while let Some(id) = todo.pop() {
            for past in &self.held(&id)?.row.past {
                if past == a {
                    return Ok(true);
                }
                if seen.insert(*past) && self.link(past)?.generation > generation {
                    todo.push(*past);
                }
            }
        }
        Ok(false)
    }

    /// True if `a` is behind any of the rows.
    pub(super) fn is_behind_any(&self, a: &RowId, rows: &[RowId]) -> Result<bool, TreeError> {
        for row in rows {
            if self.is_ancestor(a, row)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Those of some rows that are behind any of others. Where both are many, by one way back
    /// through what lies between instead of a question for each pair.
    pub(super) fn behind_any(
        &self,
        rows: &[RowId],
        tops: &[RowId],
    ) -> Result<BTreeSet<RowId>, TreeError> {
        let mut behind = BTreeSet::new();
        if rows.len().saturating_mul(tops.len()) <= PAIRS_MAX {
            for row in rows {
                if self.is_behind_any(row, tops)? {
                    behind.insert(*row);
                }
            }
            return Ok(behind);
        }
        let mut lowest = u64::MAX;
        for row in rows {
            lowest = lowest.min(self.link(row)?.generation);
        }
        let wanted: BTreeSet<&RowId> = rows.iter().collect();
        let mut seen = BTreeSet::new();
        let mut todo = tops.to_vec();
        while let Some(id) = todo.pop() {
            let held = self.held(&id)?;
            if held.link.generation <= lowest {
                continue;
            }
            for past in &held.row.past {
                if seen.insert(*past) {
                    todo.push(*past);
                    if wanted.contains(past) {
                        behind.insert(*past);
                    }
                }
            }
        }
        Ok(behind)
    }

    /// Content rows behind any of the rows, each counted once, and the gate of them all.
    fn meet(&self, rows: &[RowId]) -> Result<Option<(u64, RowId)>, TreeError> {
        let mut seen = BTreeSet::new();
        let mut ways = BinaryHeap::new();
        for row in rows {
            if seen.insert(*row) {
                ways.push((self.link(row)?.generation, *row));
            }
        }
        let mut passed = 0;
        while let Some((_, id)) = ways.pop() {
            if ways.is_empty() {
                let link = self.link(&id)?;
                return Ok(Some((
                    passed + link.behind + u64::from(link.writes_content),
                    id,
                )));
            }
            let held = self.held(&id)?;
            passed += u64::from(held.link.writes_content);
            for past in &held.row.past {
                if seen.insert(*past) {
                    ways.push((self.link(past)?.generation, *past));
                }
            }
        }
        Ok(None)
    }

    /// Content rows behind any of some rows of which none is behind another.
    pub(super) fn content_behind(&self, rows: &[RowId]) -> Result<u64, TreeError> {
        if let [row] = rows {
            return Ok(self.link(row)?.behind);
        }
        let mut past = vec![];
        for row in rows {
            past.extend_from_slice(&self.held(row)?.row.past);
        }
        Ok(self.meet(&past)?.map_or(0, |(behind, _)| behind))
    }

    /// The link of a new row.
    pub(super) fn link_to(
        &self,
        past: &[RowId],
        carrier: Carrier,
        writes_content: bool,
    ) -> Result<Link, TreeError> {
        let birth = Link {
            carrier,
            generation: 1,
            behind: 0,
            writes_content,
            depth: 0,
            back: None,
        };
        let Some((behind, gate)) = self.meet(past)? else {
            return Ok(birth);
        };
        let mut generation = 0;
        for id in past {
            generation = generation.max(self.link(id)?.generation);
        }
        let gate_link = self.link(&gate)?;
        // Skew-binary jumps: two jumps of one length from the gate are taken as one.
        let mut jump = gate;
        if let Some(first) = gate_link.back {
            let first_link = self.link(&first.jump)?;
            if let Some(second) = first_link.back {
                let second_link = self.link(&second.jump)?;
                if gate_link.depth.wrapping_sub(first_link.depth)
                    == first_link.depth.wrapping_sub(second_link.depth)
                {
                    jump = second.jump;
                }
            }
        }
        Ok(Link {
            generation: generation + 1,
            behind,
            depth: gate_link.depth + 1,
            back: Some(Back {
                gate,
                jump,
                single: past.len() == 1,
            }),
            ..birth
        })
    }
}

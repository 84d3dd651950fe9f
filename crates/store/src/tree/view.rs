//! Whether a group lived for a certain writer.
//!
//! A segment is taken in after all of its past, so what its writer had seen of a group is known as
//! soon as one of its rows is, and no row that comes later changes it.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use pacsync_protocol::RowId;
use pacsync_protocol::row::{Kind, Life};

use super::record::Group;
use super::tables::{Tree, WriteTables};
use super::{Carrier, Causality, TreeError};

/// What is newer than a row on the way from the writer's newest rows to it.
#[derive(Debug, Clone, Copy, Default)]
struct Above {
    content: bool,
    life: bool,
}

impl Tree<WriteTables<'_>> {
    /// True if a group was alive by its own rows for who wrote the segment of entry `by`. What
    /// lived beneath a directory then is not asked: rows do not say it without the whole tree.
    pub(super) fn was_alive(
        &self,
        group: &Group,
        by: Carrier,
        causality: &dyn Causality,
    ) -> Result<bool, TreeError> {
        if group.deads.is_empty() {
            return Ok(true);
        }
        let mut deads = vec![];
        let mut lives = vec![];
        let mut contents = vec![];
        let mut had_content = false;
        // From high generations to low ones: all that is newer than a row comes before it, but for
        // what is behind a dead row. That needs no look: it is covered.
        let mut ways = BinaryHeap::new();
        let mut above: BTreeMap<RowId, Above> = BTreeMap::new();
        for id in self.newest_seen(group, by, causality)? {
            ways.push((self.link(&id)?.generation, id));
            above.insert(id, Above::default());
        }
        while let Some((_, id)) = ways.pop() {
            let held = self.held(&id)?;
            let is = above.remove(&id).unwrap_or_default();
            if held.link.writes_content && !is.content {
                contents.push(id);
            }
            let life = held.row.keys.life;
            if life.is_some() && !is.life {
                lives.push((id, life));
            }
            if life == Some(Life::Dead) {
                had_content |= held.link.writes_content || held.link.behind > 0;
                deads.push(id);
                continue;
            }
            for past in &held.row.past {
                let new = !above.contains_key(past);
                let of_past = above.entry(*past).or_default();
                of_past.content |= is.content || held.link.writes_content;
                of_past.life |= is.life || life.is_some();
                if new {
                    ways.push((self.link(past)?.generation, *past));
                }
            }
        }
        had_content |= !contents.is_empty();
        if group.kind != Kind::Dir && had_content {
            let covered = self.covered(&contents, &deads)?;
            return Ok(contents.iter().any(|row| !covered.contains(row)));
        }
        let live: Vec<RowId> = lives
            .iter()
            .filter(|(_, life)| *life != Some(Life::Dead))
            .map(|(id, _)| *id)
            .collect();
        let over = self.behind_any(&live, &deads)?;
        Ok(lives.is_empty() || live.iter().any(|id| !over.contains(id)))
    }

    /// The newest rows of a group that the writer of an entry had seen, and maybe older ones.
    fn newest_seen(
        &self,
        group: &Group,
        by: Carrier,
        causality: &dyn Causality,
    ) -> Result<Vec<RowId>, TreeError> {
        let mut known: BTreeSet<RowId> = group.heads.iter().copied().collect();
        let mut todo = group.heads.clone();
        let mut seen = vec![];
        while let Some(id) = todo.pop() {
            let held = self.held(&id)?;
            let carriers = self.b.later_carriers(&id)?;
            let first = [held.link.carrier];
            let mut carriers = first.iter().chain(&carriers);
            if carriers.any(|carrier| causality.saw(by, *carrier)) {
                seen.push(id);
            } else {
                todo.extend(held.row.past.iter().filter(|past| known.insert(**past)));
            }
        }
        Ok(seen)
    }
}

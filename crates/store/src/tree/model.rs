//! The whole tree from the set of all rows: slow and obvious, for tests to compare with.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::row::{Content, Keys, Kind, Life, Name, Row};
use pacsync_protocol::{NodeId, RowId};

use super::{Carrier, Causality, Conflict, NodeState, Shown, TreeStats};

/// All rows, what is behind each, and how nodes are grouped.
pub(super) struct Model {
    pub(super) rows: BTreeMap<RowId, (Row, Vec<Carrier>)>,
    behind: BTreeMap<RowId, BTreeSet<RowId>>,
    reps: BTreeMap<NodeId, NodeId>,
}

/// What the rows derive to.
pub(super) struct Derived {
    pub(super) nodes: BTreeMap<NodeId, NodeState>,
    pub(super) stats: TreeStats,
    pub(super) conflicts: Vec<Conflict>,
    pub(super) unify: Vec<Row>,
}

impl Model {
    pub(super) fn new(rows: BTreeMap<RowId, (Row, Vec<Carrier>)>) -> Self {
        let mut behind: BTreeMap<RowId, BTreeSet<RowId>> = rows
            .iter()
            .map(|(id, (row, _))| (*id, row.past.iter().copied().collect()))
            .collect();
        loop {
            let mut grew = false;
            for id in rows.keys() {
                let old = behind[id].clone();
                let mut new = old.clone();
                for past in &old {
                    new.extend(behind[past].iter().copied());
                }
                grew |= new.len() != old.len();
                behind.insert(*id, new);
            }
            if !grew {
                break;
            }
        }
        let mut model = Self {
            rows,
            behind,
            reps: BTreeMap::new(),
        };
        model.reps = model.group();
        model
    }

    fn group(&self) -> BTreeMap<NodeId, NodeId> {
        let nodes: BTreeSet<NodeId> = self.rows.values().map(|(row, _)| row.node).collect();
        let mut parts: Vec<BTreeSet<NodeId>> =
            nodes.iter().map(|node| BTreeSet::from([*node])).collect();
        for (row, _) in self.rows.values() {
            if let Some(into) = row.keys.into {
                let (joined, mut rest): (Vec<_>, Vec<_>) = parts
                    .into_iter()
                    .partition(|part| part.contains(&row.node) || part.contains(&into));
                rest.push(joined.into_iter().flatten().collect());
                parts = rest;
            }
        }
        let mut reps = BTreeMap::from([(NodeId::ROOT, NodeId::ROOT)]);
        for part in parts {
            let rep = part
                .iter()
                .min_by_key(|node| (self.birth(node).1.keys.adopted, **node))
                .copied()
                .expect("a part has a member");
            reps.extend(part.into_iter().map(|node| (node, rep)));
        }
        reps
    }

    /// The birth row of a node that counts.
    fn birth(&self, node: &NodeId) -> (RowId, &Row) {
        self.rows
            .iter()
            .find(|(_, (row, _))| row.node == *node && row.past.is_empty())
            .map(|(id, (row, _))| (*id, row))
            .expect("every node was born")
    }

    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.reps.keys().copied().collect()
    }

    pub(super) fn rep(&self, node: &NodeId) -> NodeId {
        self.reps[node]
    }

    pub(super) fn is_behind(&self, a: &RowId, b: &RowId) -> bool {
        self.behind[b].contains(a)
    }

    fn rows_of(&self, rep: &NodeId) -> Vec<(RowId, &Row)> {
        self.rows
            .iter()
            .filter(|(_, (row, _))| self.reps[&row.node] == *rep)
            .map(|(id, (row, _))| (*id, row))
            .collect()
    }

    /// Rows of a group that write something, without those behind another.
    fn newest(&self, rep: &NodeId, writes: impl Fn(&Row) -> bool) -> Vec<RowId> {
        self.newest_among(&self.rows_of(rep), writes)
    }

    fn newest_among(&self, rows: &[(RowId, &Row)], writes: impl Fn(&Row) -> bool) -> Vec<RowId> {
        let writing: Vec<RowId> = rows
            .iter()
            .filter(|(_, row)| writes(row))
            .map(|(id, _)| *id)
            .collect();
        let shadowed = |id: &RowId| writing.iter().any(|other| self.is_behind(id, other));
        writing.iter().filter(|id| !shadowed(id)).copied().collect()
    }

    fn keys(&self, id: &RowId) -> &Keys {
        &self.rows[id].0.keys
    }

    fn kind(&self, rep: &NodeId) -> Kind {
        self.birth(rep).1.keys.kind.expect("a birth has a kind")
    }

    fn is_covered(&self, rep: &NodeId, content: &RowId) -> bool {
        self.is_covered_by(&self.rows_of(rep), content)
    }

    fn is_covered_by(&self, rows: &[(RowId, &Row)], content: &RowId) -> bool {
        let behind_dead = rows
            .iter()
            .any(|(id, row)| row.keys.life == Some(Life::Dead) && self.is_behind(content, id));
        let sides: Vec<&RowId> = self.rows[content]
            .0
            .past
            .iter()
            .filter(|past| self.keys(past).content.is_some())
            .collect();
        behind_dead
            || (self.keys(content).merge.is_some()
                && !sides.is_empty()
                && sides.iter().all(|side| self.is_covered_by(rows, side)))
    }

    /// Values of the content register, best first.
    fn values(&self, rep: &NodeId) -> Vec<(RowId, Content)> {
        let mut newest = self.newest(rep, |row| row.keys.content.is_some());
        let content = |id: &RowId| self.keys(id).content.clone().expect("a content row");
        newest.retain(|id| self.kind(rep) != Kind::Symlink || content(id).target().is_some());
        let ids: BTreeSet<_> = newest.iter().map(|id| content(id).id).collect();
        let mut values = vec![];
        for value in ids {
            let rows: Vec<RowId> = newest
                .iter()
                .filter(|id| content(id).id == value)
                .copied()
                .collect();
            let behind: BTreeSet<RowId> = rows
                .iter()
                .flat_map(|id| &self.behind[id])
                .filter(|id| self.keys(id).content.is_some())
                .copied()
                .collect();
            let covered = rows.iter().all(|id| self.is_covered(rep, id));
            let lowest = rows.iter().min().copied();
            let shown = rows
                .iter()
                .min_by_key(|id| (Reverse(content(id).mtime_ns), **id))
                .copied()
                .expect("a value has a row");
            values.push((
                (covered, Reverse(behind.len()), lowest),
                (shown, content(&shown)),
            ));
        }
        values.sort_by_key(|(rank, _)| *rank);
        values.into_iter().map(|(_, value)| value).collect()
    }

    /// All places: of directories by replay, of others the last.
    fn places(&self) -> BTreeMap<NodeId, (NodeId, Name, RowId)> {
        let mut placements: Vec<_> = self
            .rows
            .iter()
            .filter_map(|(id, (row, _))| {
                let at = row.keys.at.clone()?;
                Some((
                    at.stamp,
                    *id,
                    self.reps[&row.node],
                    self.reps[&at.parent],
                    at.name,
                ))
            })
            .collect();
        placements.sort();
        let mut places: BTreeMap<NodeId, (NodeId, Name, RowId)> = BTreeMap::new();
        for (_, id, node, parent, name) in placements {
            let mut above = parent;
            let mut cycle = false;
            while self.kind(&node) == Kind::Dir {
                cycle |= above == node;
                if cycle || above == NodeId::ROOT || self.kind(&above) != Kind::Dir {
                    break;
                }
                match places.get(&above) {
                    Some((next, _, _)) => above = *next,
                    None => break,
                }
            }
            if !cycle {
                places.insert(node, (parent, name, id));
            }
        }
        places
    }

    fn is_alive(&self, rep: &NodeId, places: &BTreeMap<NodeId, (NodeId, Name, RowId)>) -> bool {
        let kind = self.kind(rep);
        matches!(kind, Kind::Other(_))
            || self.lives_by(rep, &self.rows_of(rep))
            || (kind == Kind::Dir && self.live_children(rep, places) > 0)
    }

    /// Whether some of a group's rows alone make it alive.
    fn lives_by(&self, rep: &NodeId, rows: &[(RowId, &Row)]) -> bool {
        let contents = self.newest_among(rows, |row| row.keys.content.is_some());
        if self.kind(rep) != Kind::Dir && !contents.is_empty() {
            return !contents.iter().all(|id| self.is_covered_by(rows, id));
        }
        let lives = self.newest_among(rows, |row| row.keys.life.is_some());
        let all_dead = lives
            .iter()
            .all(|id| self.keys(id).life == Some(Life::Dead));
        lives.is_empty() || !all_dead
    }

    /// Whether a group lived for the writer of an entry.
    fn lived_for(&self, rep: &NodeId, by: Carrier, causality: &dyn Causality) -> bool {
        let mut rows = self.rows_of(rep);
        rows.retain(|(id, _)| self.rows[id].1.iter().any(|of| causality.saw(by, *of)));
        self.lives_by(rep, &rows)
    }

    fn live_children(&self, rep: &NodeId, places: &BTreeMap<NodeId, (NodeId, Name, RowId)>) -> u64 {
        let children = places.iter().filter(|(_, (parent, _, _))| parent == rep);
        // A node that is no directory may sit beneath itself; then its life is its own matter.
        children
            .filter(|(child, _)| self.is_alive(child, places))
            .count() as u64
    }

    pub(super) fn past_for_edit(&self, node: &NodeId, base: Option<&RowId>) -> Vec<RowId> {
        let rep = self.reps[node];
        let base = base
            .copied()
            .or(self.values(&rep).first().map(|(id, _)| *id));
        let contents = self.newest(&rep, |row| row.keys.content.is_some());
        let content_id = |id: &RowId| self.keys(id).content.as_ref().map(|content| content.id);
        let bases: BTreeSet<RowId> = base
            .into_iter()
            .chain(
                contents
                    .into_iter()
                    .filter(|id| base.is_some_and(|base| content_id(&base) == content_id(id))),
            )
            .collect();
        let in_view =
            |id: &RowId| bases.contains(id) || bases.iter().any(|base| self.is_behind(id, base));
        let mut all: BTreeSet<RowId> = bases.clone();
        all.extend(self.newest(&rep, |_| true));
        all.extend(self.newest(&rep, |row| row.keys.mode.is_some()));
        all.extend(self.newest(&rep, |row| row.keys.life.is_some()));
        all.extend(self.places().get(&rep).map(|(_, _, at)| *at));
        all.retain(|id| {
            let mut known = self.behind[id].clone();
            known.insert(*id);
            bases.is_empty()
                || known
                    .iter()
                    .all(|id| self.keys(id).content.is_none() || in_view(id))
        });
        let maximal = |id: &&RowId| !all.iter().any(|other| self.is_behind(id, other));
        all.iter().filter(maximal).copied().collect()
    }

    pub(super) fn history(&self, node: &NodeId) -> BTreeSet<RowId> {
        let rows = self.rows_of(&self.reps[node]);
        rows.iter()
            .filter(|(_, row)| row.keys.content.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn births(&self, node: &NodeId) -> Vec<RowId> {
        let rows = self.rows_of(&self.reps[node]);
        rows.iter()
            .filter(|(_, row)| row.past.is_empty())
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn derive(&self, causality: &dyn Causality) -> Derived {
        let places = self.places();
        let reps: BTreeSet<NodeId> = self
            .reps
            .values()
            .filter(|rep| **rep != NodeId::ROOT)
            .copied()
            .collect();
        let alive: BTreeMap<NodeId, bool> = reps
            .iter()
            .map(|rep| (*rep, self.is_alive(rep, &places)))
            .collect();

        let mut paths: BTreeMap<(NodeId, Name), Vec<NodeId>> = BTreeMap::new();
        for (node, (parent, name, _)) in &places {
            if alive[node] && !matches!(self.kind(node), Kind::Other(_)) {
                paths
                    .entry((*parent, name.clone()))
                    .or_default()
                    .push(*node);
            }
        }
        let mut conflicts = vec![];
        let mut shown: BTreeSet<NodeId> = BTreeSet::new();
        let mut unify = vec![];
        for ((parent, name), nodes) in &paths {
            let carriers = |node: &NodeId| self.rows[&places[node].2].1.iter();
            let saw = |by: &Carrier, earlier: &NodeId| {
                carriers(earlier).any(|of| causality.saw(*by, *of))
            };
            let displaces = |later: &NodeId, earlier: &NodeId| {
                !carriers(earlier).any(|by| saw(by, later))
                    && carriers(later)
                        .any(|by| saw(by, earlier) && self.lived_for(earlier, *by, causality))
            };
            let mut winners = vec![];
            for kind in [Kind::Dir, Kind::File, Kind::Symlink] {
                let of_kind: Vec<NodeId> = nodes
                    .iter()
                    .filter(|node| self.kind(node) == kind)
                    .copied()
                    .collect();
                let stepped_back =
                    |node: &NodeId| of_kind.iter().any(|other| displaces(other, node));
                let mut staying: Vec<NodeId> = of_kind
                    .iter()
                    .filter(|node| !stepped_back(node))
                    .copied()
                    .collect();
                staying.sort_by_key(|node| (self.birth(node).1.keys.adopted, *node));
                let Some((winner, losers)) = staying.split_first() else {
                    continue;
                };
                winners.push(*winner);
                for loser in losers {
                    unify.push(Row::new(
                        *loser,
                        vec![self.birth(loser).0],
                        Keys {
                            into: Some(*winner),
                            ..Keys::default()
                        },
                    ));
                }
            }
            shown.extend(winners.first());
            if nodes.len() > 1 {
                conflicts.push(Conflict::Path {
                    parent: *parent,
                    name: name.clone(),
                });
            }
        }

        let mut nodes = BTreeMap::new();
        let mut stats = TreeStats::default();
        for rep in &reps {
            let mut values = self.values(rep).into_iter();
            let content = values.next().map(|(row, content)| Shown { row, content });
            let losers: Vec<_> = values.collect();
            if alive[rep] && !losers.is_empty() {
                conflicts.push(Conflict::Values(*rep));
            }
            let mode = self
                .newest(rep, |row| row.keys.mode.is_some())
                .into_iter()
                .min_by_key(|id| (self.rows[id].0.node != *rep, *id))
                .and_then(|id| self.keys(&id).mode);
            let place = places.get(rep).cloned();
            let state = NodeState {
                id: *rep,
                kind: self.kind(rep),
                parent: place.as_ref().map(|(parent, _, _)| *parent),
                name: place.as_ref().map(|(_, name, _)| name.clone()),
                at_row: place.map(|(_, _, row)| row),
                content,
                losers,
                mode,
                dead: !alive[rep],
                shown: shown.contains(rep),
                adopted: self.birth(rep).1.keys.adopted,
                heads: self.newest(rep, |_| true),
                live_children: self.live_children(rep, &places),
            };
            if state.shown {
                match state.kind {
                    Kind::Dir => stats.dirs += 1,
                    Kind::Symlink => stats.symlinks += 1,
                    _ => {
                        stats.files += 1;
                        stats.bytes += state.content.as_ref().map_or(0, |c| c.content.size);
                    }
                }
            }
            nodes.insert(*rep, state);
        }
        stats.conflicts = conflicts.len() as u64;
        Derived {
            nodes,
            stats,
            conflicts,
            unify,
        }
    }
}

impl Derived {
    pub(super) fn path(&self, rep: &NodeId) -> Option<Vec<Name>> {
        let mut names = vec![];
        let mut at = *rep;
        while at != NodeId::ROOT {
            let state = &self.nodes[&at];
            if !state.shown || (!names.is_empty() && state.kind != Kind::Dir) {
                return None;
            }
            names.insert(0, state.name.clone()?);
            at = state.parent?;
        }
        Some(names)
    }
}

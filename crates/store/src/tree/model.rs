//! The whole tree from the set of all rows: slow and obvious, for tests to compare with.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::row::{Content, Keys, Kind, Life, Name, Row};
use pacsync_protocol::{NodeId, RowId};

use super::{Base, Carrier, Causality, Conflict, Mergeable, NodeState, Shown, TreeStats};

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
        let mut values = vec![];
        for rows in self.sides(rep).0 {
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
                .min_by_key(|id| (Reverse(self.content(id).mtime_ns), **id))
                .copied()
                .expect("a value has a row");
            values.push((
                (covered, Reverse(behind.len()), lowest),
                (shown, self.content(&shown)),
            ));
        }
        values.sort_by_key(|(rank, _)| *rank);
        values.into_iter().map(|(_, value)| value).collect()
    }

    fn content(&self, id: &RowId) -> Content {
        self.keys(id).content.clone().expect("a content row")
    }

    /// One content of several equal ones, inline if any is.
    fn any_inline(&self, rows: &[RowId]) -> Content {
        let inline = rows.iter().find(|id| self.content(id).inline.is_some());
        self.content(inline.unwrap_or(&rows[0]))
    }

    /// Newest content rows by content, by lowest row, and those that say nothing.
    fn sides(&self, rep: &NodeId) -> (Vec<Vec<RowId>>, BTreeSet<RowId>) {
        let mut newest = self.newest(rep, |row| row.keys.content.is_some());
        newest.retain(|id| self.kind(rep) != Kind::Symlink || self.content(id).target().is_some());
        let mut sides = self.group_by_content(&newest);
        let mut idle = BTreeSet::new();
        if sides.len() < 2 {
            return (sides, idle);
        }
        // Rows that any other has all leaves of; where that goes both ways the better stays.
        let has_all = |row: &RowId, merge: &RowId| {
            let leaves = self.leaves(merge);
            !leaves.contains(merge) && leaves.iter().all(|leaf| self.is_behind(leaf, row))
        };
        let rank = |id: &RowId| (Reverse(self.keys(id).merge), self.content(id).id, *id);
        for row in &newest {
            let gives_way = newest.iter().any(|other| {
                other != row
                    && has_all(other, row)
                    && (!has_all(row, other) || rank(other) < rank(row))
            });
            if gives_way {
                idle.insert(*row);
            }
        }
        newest.retain(|id| !idle.contains(id));
        sides = self.group_by_content(&newest);
        loop {
            let base = self.common(&sides);
            let contents: BTreeSet<_> = base.iter().map(|id| self.content(id).id).collect();
            let equal = sides.iter().position(|rows| {
                contents.len() == 1 && contents.contains(&self.content(&rows[0]).id)
            });
            let outlived = |rows: &Vec<RowId>| rows.iter().any(|id| !self.is_covered(rep, id));
            match equal {
                Some(at) if sides.len() > 1 => {
                    let side = sides.remove(at);
                    if outlived(&side) && !sides.iter().any(outlived) {
                        sides.insert(at, side);
                        return (sides, idle);
                    }
                    idle.extend(side);
                }
                _ => return (sides, idle),
            }
        }
    }

    fn group_by_content(&self, rows: &[RowId]) -> Vec<Vec<RowId>> {
        let mut sides: Vec<Vec<RowId>> = vec![];
        let mut rows = rows.to_vec();
        rows.sort();
        for id in rows {
            let of = |side: &&mut Vec<RowId>| self.content(&side[0]).id == self.content(&id).id;
            match sides.iter_mut().find(of) {
                Some(side) => side.push(id),
                None => sides.push(vec![id]),
            }
        }
        sides
    }

    fn leaves(&self, row: &RowId) -> BTreeSet<RowId> {
        let (row_of, _) = &self.rows[row];
        let mut sides = row_of.past.clone();
        sides.retain(|past| self.keys(past).content.is_some());
        if self.keys(row).merge.is_none() || sides.is_empty() {
            return BTreeSet::from([*row]);
        }
        sides.iter().flat_map(|side| self.leaves(side)).collect()
    }

    /// Latest content rows behind each of the sides; where there is none, rows like one of a side
    /// are that side's.
    fn common(&self, sides: &[Vec<RowId>]) -> Vec<RowId> {
        let latest = |common: &[RowId]| {
            let latest = |id: &&RowId| !common.iter().any(|other| self.is_behind(id, other));
            common.iter().filter(latest).copied().collect::<Vec<_>>()
        };
        let all: Vec<RowId> = self
            .rows
            .keys()
            .filter(|id| self.keys(id).content.is_some())
            .copied()
            .collect();
        let behind = |id: &RowId, side: &[RowId]| side.iter().any(|row| self.is_behind(id, row));
        let common = |id: &&RowId| sides.iter().all(|side| behind(id, side));
        let found: Vec<RowId> = all.iter().filter(common).copied().collect();
        if !found.is_empty() {
            return latest(&found);
        }
        let like = |side: &[RowId]| {
            let like = |id: &&RowId| {
                self.content(id).id == self.content(&side[0]).id
                    && sides.iter().any(|side| behind(id, side))
            };
            all.iter().filter(like).copied().collect::<Vec<_>>()
        };
        let common = |id: &&RowId| {
            sides.iter().all(|side| {
                let like = like(side);
                behind(id, side) || like.contains(id) || behind(id, &like)
            })
        };
        latest(&all.iter().filter(common).copied().collect::<Vec<_>>())
    }

    pub(super) fn mergeable(&self, node: &NodeId) -> Option<Mergeable> {
        let rep = self.reps[node];
        let newest = self.newest(&rep, |row| row.keys.content.is_some());
        let sides = self.sides(&rep).0;
        if self.kind(&rep) != Kind::File
            || sides.len() < 2
            || !self.lives_by(&rep, &self.rows_of(&rep))
        {
            return None;
        }
        let base = self.base(&sides, 3)?;
        let sides: Vec<Content> = sides.iter().map(|rows| self.any_inline(rows)).collect();
        let latest = match &base {
            Base::Empty => vec![],
            Base::Content(content) => vec![content.clone()],
            Base::Merge(_, contents) => contents.clone(),
        };
        let latest: BTreeSet<_> = latest.iter().map(|content| content.id).collect();
        if sides.iter().any(|side| latest.contains(&side.id)) {
            return None;
        }
        Some(Mergeable {
            node: newest.iter().map(|id| self.rows[id].0.node).min()?,
            mtime_ns: newest.iter().map(|id| self.content(id).mtime_ns).max()?,
            past: newest,
            sides,
            base,
        })
    }

    fn base(&self, sides: &[Vec<RowId>], depth: usize) -> Option<Base> {
        let common = self.group_by_content(&self.common(sides));
        let contents: Vec<Content> = common.iter().map(|rows| self.any_inline(rows)).collect();
        match contents.len() {
            0 => Some(Base::Empty),
            1 => Some(Base::Content(contents[0].clone())),
            _ if depth == 0 => None,
            _ => Some(Base::Merge(
                Box::new(self.base(&common, depth - 1)?),
                contents,
            )),
        }
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
        let mut bases: BTreeSet<RowId> = base
            .into_iter()
            .chain(
                contents
                    .into_iter()
                    .filter(|id| base.is_some_and(|base| content_id(&base) == content_id(id))),
            )
            .collect();
        if let [(only, _)] = self.values(&rep).as_slice()
            && bases.contains(only)
        {
            bases.extend(self.sides(&rep).1);
        }
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

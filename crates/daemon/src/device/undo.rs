//! `undo`: takes back the newest batch of another device, or the last restore, by new rows. First
//! the disk is looked at, so that no edit is younger than what is known.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::row::{Content, Keys, Kind, Life, Name};
use pacsync_protocol::segment::Entry;
use pacsync_protocol::{DeviceId, NodeId, RowId, SpaceId};
use pacsync_store::tree::{
    Backend, LifeBack, NodeState, Part, Stays, TakenBack, Tree, TreeReader, taken_back,
};
use pacsync_store::{StoreError, Undoable, UndoableKind};

use super::Device;
use super::conflicts::CONFIRMED_ROWS;
use super::history::{APPLY_MS, Chosen, DEVICES_NAMED, Fetch, TICK_MS, text};
use super::waiters::Waiter;
use crate::control::api::{
    EventKind, StayReason, Stayed, UndoReport, UndoneKind, UndonePath, UndoneWhat, Unrestored,
};
use crate::control::{CommandError, Reply};
use crate::disk::RelPath;
use crate::worktree::Now;

/// Directories that are looked through on the way up from a node.
const DEPTH_MAX: usize = 4_096;

/// An `undo` on its way.
pub(super) struct UndoJob {
    pub(super) reply: Reply<UndoReport>,
    stage: Stage,
    next_ms: u64,
}

enum Stage {
    /// The disk is looked at.
    Scan,
    /// Contents are asked for.
    Fetch {
        no: u64,
        space: SpaceId,
        fetch: Fetch,
    },
    /// The rows are written.
    Apply {
        report: UndoReport,
        space: SpaceId,
        nodes: Vec<NodeId>,
        until_ms: u64,
    },
}

impl UndoJob {
    pub(super) fn is_scanning(&self) -> bool {
        matches!(self.stage, Stage::Scan)
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        (!self.is_scanning()).then_some(self.next_ms)
    }

    /// What it waits for.
    pub(super) fn fetch(&self) -> Option<(SpaceId, &Fetch)> {
        match &self.stage {
            Stage::Fetch { space, fetch, .. } => Some((*space, fetch)),
            Stage::Scan | Stage::Apply { .. } => None,
        }
    }
}

/// What is done about one node.
struct Step {
    state: NodeState,
    path: RelPath,
    back: TakenBack,
    why: Option<StayReason>,
}

impl Step {
    fn buries(&self) -> bool {
        self.back.life == Some(LifeBack::Bury)
    }

    fn revives(&self) -> bool {
        self.state.dead && matches!(self.back.life, Some(LifeBack::Live(_)))
    }

    /// It takes a place that it does not have now.
    fn comes(&self) -> bool {
        self.revives() || self.back.at.is_some()
    }

    /// Nothing of it is done after all.
    fn stay(&mut self, why: StayReason) {
        self.back = TakenBack::default();
        self.why = Some(why);
    }

    fn content(&self) -> Option<&(RowId, Content)> {
        match &self.back.life {
            Some(LifeBack::Live(content)) => content.as_ref(),
            _ => None,
        }
    }

    fn kind(&self) -> UndoneKind {
        if self.buries() {
            UndoneKind::Deleted
        } else if self.revives() {
            UndoneKind::BroughtBack
        } else if self.back.life.is_some() {
            UndoneKind::Content
        } else if self.back.at.is_some() {
            UndoneKind::Moved
        } else {
            UndoneKind::Mode
        }
    }
}

/// What is done about all nodes that were touched, by node.
struct Plan(BTreeMap<NodeId, Step>);

impl Plan {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has_something_to_do(&self) -> bool {
        self.0.values().any(|step| !step.back.is_empty())
    }

    /// Where a node is once all is done.
    fn place<B: Backend>(
        &self,
        tree: &Tree<B>,
        node: &NodeId,
    ) -> Result<Option<(NodeId, Name)>, StoreError> {
        if let Some(step) = self.0.get(node) {
            if let Some(at) = &step.back.at {
                return Ok(Some((tree.representative(&at.parent)?, at.name.clone())));
            }
            return Ok(step.state.parent.zip(step.state.name.clone()));
        }
        let state = tree.node(node)?;
        Ok(state.and_then(|state| state.parent.zip(state.name)))
    }

    /// Whether a node would be in the way of another at a place once all is done.
    fn stands<B: Backend>(
        &self,
        tree: &Tree<B>,
        node: &NodeId,
        place: &(NodeId, Name),
    ) -> Result<bool, StoreError> {
        let goes = self.0.get(node).is_some_and(Step::buries);
        Ok(!goes && self.place(tree, node)?.as_ref() == Some(place))
    }

    /// Why something cannot be done, given the rest.
    fn blocked<B: Backend>(
        &self,
        tree: &Tree<B>,
        node: &NodeId,
        step: &Step,
        entered: &BTreeSet<NodeId>,
    ) -> Result<Option<StayReason>, StoreError> {
        let occupied = Ok(Some(StayReason::Occupied));
        if step.buries() {
            if step.state.kind != Kind::Dir {
                return Ok(None);
            }
            for (_, child) in tree.living_in(node)? {
                let goes = self.0.get(&child).is_some_and(Step::buries);
                let place = self.place(tree, &child)?;
                if !goes && place.is_some_and(|(dir, _)| dir == *node) {
                    return occupied;
                }
            }
            return Ok(entered.contains(node).then_some(StayReason::Occupied));
        }
        if !step.comes() {
            return Ok(None);
        }
        let Some(place) = self.place(tree, node)? else {
            return Ok(Some(StayReason::Forgotten));
        };
        for other in tree.all_at(&place.0, &place.1)? {
            if other != *node && self.stands(tree, &other, &place)? {
                return occupied;
            }
        }
        // A directory cannot be put into itself.
        let mut above = place.0;
        for _ in 0..DEPTH_MAX {
            if above == NodeId::ROOT {
                return Ok(None);
            }
            if above == *node {
                return occupied;
            }
            match self.place(tree, &above)? {
                Some((dir, _)) => above = dir,
                None => return Ok(Some(StayReason::Forgotten)),
            }
        }
        occupied
    }

    /// Leaves what cannot be done, until all of the rest can.
    fn settle<B: Backend>(&mut self, tree: &Tree<B>) -> Result<(), StoreError> {
        loop {
            let mut blocked = vec![];
            // Directories into which something comes.
            let mut entered = BTreeSet::new();
            for (node, _) in self.0.iter().filter(|(_, step)| step.comes()) {
                entered.extend(self.place(tree, node)?.map(|(dir, _)| dir));
            }
            for (node, step) in &self.0 {
                if let Some(why) = self.blocked(tree, node, step, &entered)? {
                    blocked.push((*node, why));
                }
            }
            if blocked.is_empty() {
                break;
            }
            for (node, why) in blocked {
                if let Some(step) = self.0.get_mut(&node) {
                    step.stay(why);
                }
            }
        }
        // Nothing stood twice at a place before, unless it was in conflict.
        let mut taken = BTreeSet::new();
        let coming = self.0.iter().filter(|(_, step)| step.comes());
        let coming: Vec<NodeId> = coming.map(|(node, _)| *node).collect();
        for node in coming {
            let place = self.place(tree, &node)?;
            if let Some(step) = self.0.get_mut(&node)
                && !taken.insert(place)
            {
                step.stay(StayReason::Conflict);
            }
        }
        Ok(())
    }

    /// Rows in the order in which they are written: first what goes, so that at no time two things
    /// stand at one path.
    fn rows<B: Backend>(
        &self,
        tree: &Tree<B>,
        mut stamp: u64,
        now: Now,
    ) -> Result<(Vec<Entry>, Vec<Entry>), StoreError> {
        let mut gone = vec![];
        let mut rest = vec![];
        let mut alive = BTreeSet::new();
        for (node, step) in &self.0 {
            if step.back.is_empty() {
                continue;
            }
            let mut keys = Keys::default();
            if step.buries() {
                keys.life = Some(Life::Dead);
                let rows = tree.write_over(node, &keys)?;
                gone.extend(rows.iter().map(|row| Entry::Row(row.to_bytes())));
                continue;
            }
            if step.back.life.is_some() {
                // For whoever looks at times it changes now.
                keys.content = step.content().map(|(_, content)| Content {
                    mtime_ns: now.ns,
                    ..content.clone()
                });
                keys.life = step.state.dead.then_some(Life::Live);
            }
            keys.mode = step.back.mode;
            if let Some(at) = &step.back.at {
                let mut at = at.clone();
                at.stamp = stamp;
                stamp += 1;
                keys.at = Some(at);
            }
            let rows = tree.write_over(node, &keys)?;
            rest.extend(rows.iter().map(|row| Entry::Row(row.to_bytes())));
            if step.comes() {
                self.revive_above(tree, node, &mut alive, &mut rest)?;
            }
        }
        Ok((gone, rest))
    }

    /// The directories above live, whatever deleted them.
    fn revive_above<B: Backend>(
        &self,
        tree: &Tree<B>,
        node: &NodeId,
        alive: &mut BTreeSet<NodeId>,
        rows: &mut Vec<Entry>,
    ) -> Result<(), StoreError> {
        let mut above = self.place(tree, node)?.map(|(dir, _)| dir);
        while let Some(dir) = above.filter(|dir| *dir != NodeId::ROOT && alive.insert(*dir)) {
            let planned = self.0.get(&dir).is_some_and(Step::revives);
            let dead = tree.node(&dir)?.is_some_and(|state| state.dead);
            if dead && !planned {
                let keys = Keys {
                    life: Some(Life::Live),
                    ..Keys::default()
                };
                let made = tree.write_over(&dir, &keys)?;
                rows.extend(made.iter().map(|row| Entry::Row(row.to_bytes())));
            }
            above = self.place(tree, &dir)?.map(|(dir, _)| dir);
        }
        Ok(())
    }
}

/// The path of a node, also of one that is dead.
fn path_of<B: Backend>(tree: &Tree<B>, state: &NodeState) -> Result<RelPath, StoreError> {
    let mut names = vec![];
    let mut at = state.parent.zip(state.name.clone());
    for _ in 0..DEPTH_MAX {
        let Some((dir, name)) = at else { break };
        names.push(name);
        at = match tree.node(&dir)? {
            Some(state) => state.parent.zip(state.name),
            None => None,
        };
    }
    let mut path = RelPath::root();
    for name in names.iter().rev() {
        path = path.join(name.as_bytes()).unwrap_or(path);
    }
    Ok(path)
}

fn reason(stays: Stays) -> StayReason {
    match stays {
        Stays::Changed => StayReason::Changed,
        Stays::Conflict => StayReason::Conflict,
        Stays::Forgotten => StayReason::Forgotten,
    }
}

fn nothing() -> CommandError {
    CommandError::failed("there is nothing to undo")
        .with_hint("`pacsync log PATH` and `pacsync restore PATH` bring back any earlier version")
}

impl Device {
    /// Begins an `undo`.
    pub(super) fn undo(&mut self, reply: Reply<UndoReport>, now: Now) {
        for worktree in self.worktrees.values_mut() {
            worktree.request_scan(RelPath::root(), now);
        }
        self.waiters.push(Waiter::Undo(Box::new(UndoJob {
            reply,
            stage: Stage::Scan,
            next_ms: now.ms,
        })));
    }

    pub(super) fn check_undo(
        &mut self,
        mut job: Box<UndoJob>,
        now: Now,
    ) -> Result<Option<Waiter>, StoreError> {
        if !job.is_scanning() && now.ms < job.next_ms {
            return Ok(Some(Waiter::Undo(job)));
        }
        job.next_ms = now.ms.saturating_add(TICK_MS);
        let UndoJob {
            reply,
            stage,
            next_ms,
        } = *job;
        let stage = match stage {
            Stage::Scan if !self.all_scanned() => Stage::Scan,
            Stage::Scan => match self.next_undo(now)? {
                Ok((no, space, plan)) => Stage::Fetch {
                    no,
                    space,
                    fetch: Fetch::new(self.contents_of(&space, &plan), now),
                },
                Err(error) => {
                    let _ = reply.send(Err(error));
                    return Ok(None);
                }
            },
            other => other,
        };
        let stage = match stage {
            Stage::Fetch {
                no,
                space,
                mut fetch,
            } => {
                if self.has_fetched(space, &mut fetch, now)? {
                    match self.take_back(no, space, now)? {
                        Ok(stage) => stage,
                        Err(error) => {
                            let _ = reply.send(Err(error));
                            return Ok(None);
                        }
                    }
                } else {
                    Stage::Fetch { no, space, fetch }
                }
            }
            other => other,
        };
        if let Stage::Apply {
            mut report,
            space,
            nodes,
            until_ms,
        } = stage
        {
            let on_disk = self.is_rendered(&space, &nodes)?;
            if on_disk || now.ms >= until_ms {
                for (undone, node) in report.undone.iter_mut().zip(&nodes) {
                    undone.on_disk =
                        on_disk || self.is_rendered(&space, std::slice::from_ref(node))?;
                }
                let _ = reply.send(Ok(report));
                return Ok(None);
            }
            let stage = Stage::Apply {
                report,
                space,
                nodes,
                until_ms,
            };
            return Ok(Some(Waiter::Undo(Box::new(UndoJob {
                reply,
                stage,
                next_ms,
            }))));
        }
        Ok(Some(Waiter::Undo(Box::new(UndoJob {
            reply,
            stage,
            next_ms,
        }))))
    }

    /// The newest that can be taken back, and how. What nothing is left of is passed over.
    fn next_undo(
        &mut self,
        now: Now,
    ) -> Result<Result<(u64, SpaceId, Plan), CommandError>, StoreError> {
        let all = self.store.undoables()?;
        for (no, undoable) in all.iter().rev() {
            let space = self.store.spaces().find(|space| space.no == undoable.space);
            let Some(space) = space.map(|space| space.id) else {
                continue;
            };
            if undoable.undone.is_some() || !self.worktrees.contains_key(&space) {
                continue;
            }
            if undoable.too_large {
                let who = self.device_name(&undoable.device);
                let what = format!("what {who} changed last is too much to be undone at once");
                return Ok(Err(CommandError::failed(what).with_hint(
                    "`pacsync restore --deleted DIR` and `pacsync restore PATH` bring back parts",
                )));
            }
            let plan = self.plan_undo(*no, undoable, &all)?;
            if !plan.is_empty() {
                return Ok(Ok((*no, space, plan)));
            }
            tracing::debug!(no, at_ms = now.ms, "nothing is left to be undone of it");
            let txn = self.store.begin()?;
            let seq = txn.own_seq(&space)?;
            txn.note_undone(*no, &space, seq)?;
            txn.commit()?;
        }
        Ok(Err(nothing()))
    }

    fn plan_undo(
        &self,
        no: u64,
        undoable: &Undoable,
        all: &[(u64, Undoable)],
    ) -> Result<Plan, StoreError> {
        let tx = self.store.read()?;
        let tree = TreeReader::open(&tx, undoable.space)?;
        // What took part of it back already, too.
        let mut void = vec![];
        for (_, other) in all
            .iter()
            .filter(|(_, other)| other.space == undoable.space)
        {
            if let Some(by) = &other.undone {
                void.push(other.run);
                void.extend(by);
            }
        }
        let part = |carrier| {
            if undoable.run.has(carrier) {
                Part::Taken
            } else if void.iter().any(|run| run.has(carrier)) {
                Part::Void
            } else {
                Part::Other
            }
        };
        let mut steps = BTreeMap::new();
        for node in self.store.touched(&tx, no)? {
            let Some(state) = tree.node(&node)? else {
                continue;
            };
            if steps.contains_key(&state.id) {
                continue;
            }
            let back = taken_back(&state, &tree.rows_of_node(&node)?, part);
            if back.is_empty() && back.stays.is_none() {
                continue;
            }
            let step = Step {
                path: path_of(&tree, &state)?,
                why: back.stays.map(reason),
                back,
                state,
            };
            steps.insert(step.state.id, step);
        }
        let mut plan = Plan(steps);
        plan.settle(&tree)?;
        Ok(plan)
    }

    /// What is needed for a plan.
    fn contents_of(&self, space: &SpaceId, plan: &Plan) -> Vec<Chosen> {
        let devices = self.keepers(space);
        let needed = plan.0.values().filter(|step| step.content().is_some());
        needed
            .map(|step| Chosen {
                node: step.state.id,
                kind: step.state.kind,
                path: step.path.clone(),
                mode: None,
                content: step.content().cloned(),
                devices: devices.clone(),
            })
            .collect()
    }

    fn keepers(&self, space: &SpaceId) -> Vec<DeviceId> {
        let others = self.others().into_iter();
        others
            .filter(|device| self.keeps(device, space))
            .take(DEVICES_NAMED)
            .collect()
    }

    /// Writes the rows that take one back, as things are now.
    fn take_back(
        &mut self,
        no: u64,
        space: SpaceId,
        now: Now,
    ) -> Result<Result<Stage, CommandError>, StoreError> {
        let all = self.store.undoables()?;
        let found = all.iter().find(|(other, _)| *other == no);
        let Some((_, undoable)) = found.filter(|(_, u)| u.undone.is_none()) else {
            return Ok(Err(nothing()));
        };
        let mut plan = self.plan_undo(no, undoable, &all)?;
        let missing = self.lacking(&space, &mut plan)?;
        {
            let tx = self.store.read()?;
            plan.settle(&TreeReader::open(&tx, undoable.space)?)?;
        }
        if !plan.has_something_to_do() && !missing.is_empty() {
            let what =
                "what stood there before is not here, and no device that is connected has it";
            let named = missing.iter().take(DEVICES_NAMED);
            let named = named.map(|missing| missing.path.path.clone());
            return Ok(Err(CommandError::failed(what)
                .with_items(named)
                .with_hint("try again when another device is connected")));
        }
        let mut txn = self.store.begin()?;
        let before = txn.own_seq(&space)?;
        let stamp = txn.next_stamp(&space)?;
        let (gone, rest) = plan.rows(&txn.tree(undoable.space)?, stamp, now)?;
        let changes = (gone.len() + rest.len()) as u64;
        for part in gone.chunks(CONFIRMED_ROWS) {
            // The user has chosen: no other device asks again.
            let mut part = part.to_vec();
            part.push(Entry::DeletesConfirmed);
            txn.append(&space, part, now.ms, &mut *self.rng)?;
        }
        if !rest.is_empty() {
            txn.append(&space, rest, now.ms, &mut *self.rng)?;
        }
        txn.note_undone(no, &space, before)?;
        let committed = txn.commit()?;
        self.committed(committed, None, now)?;
        if changes > 0 {
            let space = self.space_name(&space);
            self.event(EventKind::Recorded { space, changes });
        }
        let mut report = UndoReport {
            space: self.space_name(&space),
            what: match undoable.kind {
                UndoableKind::Batch => UndoneWhat::Batch,
                UndoableKind::Restore => UndoneWhat::Restore,
            },
            device: self.device_ref(&undoable.device),
            time_ms: undoable.ended_ms,
            undone: vec![],
            stayed: vec![],
            missing,
        };
        let mut nodes = vec![];
        let tx = self.store.read()?;
        let tree = TreeReader::open(&tx, undoable.space)?;
        for (node, step) in &plan.0 {
            if let Some(why) = step.why {
                let path = text(&step.path);
                report.stayed.push(Stayed { path, why });
            }
            if !step.back.is_empty() {
                let state = tree.node(node)?;
                let path = match &state {
                    Some(state) => path_of(&tree, state)?,
                    None => step.path.clone(),
                };
                report.undone.push(UndonePath {
                    path: text(&path),
                    what: step.kind(),
                    on_disk: false,
                });
                nodes.push(*node);
            }
        }
        Ok(Ok(Stage::Apply {
            report,
            space,
            nodes,
            until_ms: now.ms.saturating_add(APPLY_MS),
        }))
    }

    /// Takes out of a plan what lacks its content, and names it.
    fn lacking(&self, space: &SpaceId, plan: &mut Plan) -> Result<Vec<Unrestored>, StoreError> {
        let Some(worktree) = self.worktrees.get(space) else {
            plan.0.clear();
            return Ok(vec![]);
        };
        let devices = self.refs(&self.keepers(space));
        let mut missing = vec![];
        for step in plan.0.values_mut() {
            let Some((row, content)) = step.content().cloned() else {
                continue;
            };
            if worktree.can_read(&self.store, &self.packs, &content)? {
                continue;
            }
            missing.push(Unrestored {
                path: text(&step.path),
                version: row.short(),
                devices: devices.clone(),
            });
            step.back = TakenBack::default();
        }
        Ok(missing)
    }
}

//! Nodes that became others: what is on disk under their names.

use pacsync_protocol::NodeId;
use pacsync_protocol::row::Kind;
use pacsync_store::StoreError;

use super::apply::Place;
use super::batch::Batch;
use super::plan::Plan;
use super::settle::path_of;
use super::{Class, Worktree};

pub(super) enum Rebound {
    /// Its name on disk, if it has one, is the other's now.
    Done,
    /// It stands beside the other and is to go.
    InTheWay,
    /// The same once its entries have moved to the other; the last of them marks it again.
    Emptying,
}

impl Worktree {
    /// A file that became another one, which is on disk, too, is to go. If it has gone by itself,
    /// somebody deleted it: what it showed must not come up where the other stands before that is
    /// taken in.
    pub(super) fn plan_unified(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        rep: NodeId,
    ) -> Result<Plan, StoreError> {
        let Some((_, _, entry)) = b.index.entry_of(&node)? else {
            return Ok(Plan::Done);
        };
        if entry.kind != Kind::Dir
            && let Some(path) = path_of(&b.index, &node)?
            && self.tracking.class(&path) != Class::Untracked
            && matches!(self.disk.stat(&path), Ok(None))
        {
            let plan = self.after_look(node, path, super::VACATED_MS * 2, b.now);
            if let Some(until) = self.stalled.get(&node) {
                self.shrinking.insert(rep, *until);
            }
            return Ok(plan);
        }
        self.plan_removal(b, node)
    }

    /// A node was unified into another: what is on disk under its name belongs to the other now.
    pub(super) fn rebind(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        rep: NodeId,
    ) -> Result<Rebound, StoreError> {
        let Some((parent, name, mut entry)) = b.index.entry_of(&node)? else {
            return Ok(Rebound::Done);
        };
        let children = b.index.children(&node)?;
        if b.index.location(&rep)?.is_some() {
            if children.is_empty() {
                return Ok(Rebound::InTheWay);
            }
            // Both directories are on disk: the children move over, then this one goes.
            self.mark(children.into_iter().map(|(_, entry)| entry.node));
            return Ok(Rebound::Emptying);
        }
        entry.node = rep;
        b.index.remove(&parent, &name)?;
        b.put(&parent, &name, &entry)?;
        if !children.is_empty()
            && let Some(path) = path_of(&b.index, &rep)?
        {
            // What was seen to be missing in it, or is looked at now, was noted under the old node.
            self.queue.deep(path, b.now.ms);
        }
        for (name, child) in children {
            b.index.remove(&node, &name)?;
            b.put(&rep, &name, &child)?;
        }
        Ok(Rebound::Done)
    }

    /// A dead directory that stands in another one's place and does not go, as what is in it keeps
    /// its old name, is that other one from now on; false if it has another name.
    pub(super) fn take_over(
        &mut self,
        b: &mut Batch<'_>,
        old: NodeId,
        new: NodeId,
        place: &Place,
    ) -> Result<bool, StoreError> {
        let location = b.index.location(&old)?;
        if location.is_none_or(|(parent, name)| parent != place.parent || name != place.name) {
            return Ok(false);
        }
        self.rebind(b, old, new)?;
        self.mark_below(b, new)?;
        self.mark([old]);
        Ok(true)
    }
}

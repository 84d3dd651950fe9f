//! What is wrong, by path: shown to the user, and tried again by itself, ever more rarely.

use std::collections::BTreeMap;

use pacsync_protocol::NodeId;

use super::{Now, RETRY_MS};
use crate::disk::RelPath;

#[derive(Debug, Clone)]
struct Fault {
    what: String,
    retry_ms: u64,
    /// How often it was tried; spaces the attempts out.
    tries: u32,
    /// The node that could not be rendered; `None` where something could not be read.
    node: Option<NodeId>,
}

/// What is to be tried again.
pub(super) enum Retry {
    /// Look at the path.
    Look(RelPath),
    /// Render the node.
    Render(NodeId),
}

/// The faults of a worktree, at most one for a path.
#[derive(Debug, Default)]
pub(super) struct Faults {
    by_path: BTreeMap<RelPath, Fault>,
    by_node: BTreeMap<NodeId, RelPath>,
}

impl Faults {
    /// Notes that something could not be read.
    pub(super) fn note_read(&mut self, path: &RelPath, what: String, now: Now) {
        self.note(path, None, what, now);
    }

    /// Notes that a node could not be rendered.
    pub(super) fn note_node(&mut self, path: &RelPath, node: NodeId, what: String, now: Now) {
        if self.by_node.get(&node).is_some_and(|before| before != path) {
            self.clear_node(&node);
        }
        self.note(path, Some(node), what, now);
    }

    fn note(&mut self, path: &RelPath, node: Option<NodeId>, what: String, now: Now) {
        let tries = self.by_path.get(path).map_or(0, |fault| fault.tries + 1);
        let before = self.by_path.insert(
            path.clone(),
            Fault {
                what,
                retry_ms: now.ms + retry_delay(tries),
                tries,
                node,
            },
        );
        if let Some(node) = before.and_then(|fault| fault.node) {
            self.by_node.remove(&node);
        }
        if let Some(node) = node {
            self.by_node.insert(node, path.clone());
        }
    }

    /// How often what could not be read at a path was tried: a look at it begins.
    pub(super) fn read_tries(&self, path: &RelPath) -> Option<u32> {
        let fault = self.by_path.get(path)?;
        fault.node.is_none().then_some(fault.tries)
    }

    /// A look at a path is over that began after `tries` attempts: what was noted before is gone
    /// unless it was noted again.
    pub(super) fn looked(&mut self, path: &RelPath, tries: u32) {
        if self
            .by_path
            .get(path)
            .is_some_and(|fault| fault.node.is_none() && fault.tries == tries)
        {
            self.by_path.remove(path);
        }
    }

    /// A node is rendered, or has no need to be.
    pub(super) fn clear_node(&mut self, node: &NodeId) {
        if let Some(path) = self.by_node.remove(node) {
            self.by_path.remove(&path);
        }
    }

    /// When a node that could not be rendered is tried again.
    pub(super) fn retry_of(&self, node: &NodeId) -> Option<u64> {
        let path = self.by_node.get(node)?;
        self.by_path.get(path).map(|fault| fault.retry_ms)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_path.is_empty()
    }

    pub(super) fn has_nodes(&self) -> bool {
        !self.by_node.is_empty()
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.by_path.values().map(|fault| fault.retry_ms).min()
    }

    /// Takes what is to be tried again now.
    pub(super) fn take_due(&mut self, now: Now) -> Vec<Retry> {
        let mut due = vec![];
        for (path, fault) in &mut self.by_path {
            if fault.retry_ms > now.ms {
                continue;
            }
            fault.retry_ms = now.ms + retry_delay(fault.tries);
            due.push(match fault.node {
                Some(node) => Retry::Render(node),
                None => Retry::Look(path.clone()),
            });
        }
        due
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&RelPath, &str)> {
        self.by_path
            .iter()
            .map(|(path, fault)| (path, fault.what.as_str()))
    }
}

fn retry_delay(tries: u32) -> u64 {
    RETRY_MS << tries.min(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    fn path(text: &str) -> RelPath {
        RelPath::from_bytes(text.as_bytes()).expect("a path")
    }

    fn at(ms: u64) -> Now {
        Now { ms, ns: 0 }
    }

    #[test]
    fn what_stays_wrong_is_tried_ever_more_rarely() {
        let mut faults = Faults::default();
        let mut now = 0;
        let mut times = vec![];
        faults.note_read(&path("a"), "unreadable".into(), at(now));
        while times.len() < 7 {
            now = faults.next_due().expect("a fault");
            for retry in faults.take_due(at(now)) {
                let Retry::Look(path) = retry else {
                    panic!("no node")
                };
                let tries = faults.read_tries(&path).expect("is known");
                faults.note_read(&path, "unreadable".into(), at(now));
                faults.looked(&path, tries);
            }
            times.push(now);
        }
        let waits: Vec<u64> = times.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(waits, [4_000, 8_000, 16_000, 32_000, 32_000, 32_000]);
    }

    #[test]
    fn a_look_that_finds_nothing_wrong_clears() {
        let mut faults = Faults::default();
        faults.note_read(&path("a"), "unreadable".into(), at(0));
        let tries = faults.read_tries(&path("a")).expect("is known");
        faults.looked(&path("a"), tries);
        assert_eq!(faults.iter().count(), 0);
    }

    #[test]
    fn a_node_has_one_fault_wherever_it_is() {
        let mut faults = Faults::default();
        faults.note_node(&path("a"), NODE, "full".into(), at(0));
        faults.note_node(&path("b"), NODE, "full".into(), at(0));
        assert_eq!(faults.iter().count(), 1);
        assert!(faults.has_nodes());
        faults.clear_node(&NODE);
        assert_eq!(faults.iter().count(), 0);
        assert!(!faults.has_nodes());
        assert_eq!(faults.next_due(), None);
    }

    #[test]
    fn a_path_shows_its_latest_fault() {
        let mut faults = Faults::default();
        faults.note_node(&path("a"), NODE, "full".into(), at(0));
        faults.note_read(&path("a"), "unreadable".into(), at(0));
        assert!(!faults.has_nodes());
        assert_eq!(faults.retry_of(&NODE), None);
        assert_eq!(
            faults.iter().map(|(_, what)| what).collect::<Vec<_>>(),
            ["unreadable"]
        );
    }
}

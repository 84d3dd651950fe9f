//! What is wrong, by path: shown to the user, and tried again by itself, ever more rarely.

use std::collections::BTreeMap;

use pacsync_protocol::NodeId;

use super::{Now, RETRY_MS, Worktree};
use crate::disk::RelPath;

/// How often it is tried whether what this disk could not show can be shown now.
const UNSHOWABLE_RETRY_MS: u64 = RETRY_MS << 4;

#[derive(Debug, Clone)]
struct Fault {
    what: String,
    retry_ms: u64,
    /// How often it was tried; spaces the attempts out.
    tries: u32,
}

impl Fault {
    fn after(before: Option<&Self>, what: String, now: Now) -> Self {
        let tries = before.map_or(0, |fault| fault.tries + 1);
        Self {
            what,
            retry_ms: now.ms + retry_delay(tries),
            tries,
        }
    }

    /// True if it is to be tried again now, after which it waits again.
    fn take(&mut self, now: Now) -> bool {
        let due = self.retry_ms <= now.ms;
        if due {
            self.retry_ms = now.ms + retry_delay(self.tries);
        }
        due
    }
}

/// A node that is not on the disk, or not under its name.
#[derive(Debug)]
struct NodeFault {
    path: RelPath,
    fault: Fault,
    standing: Standing,
}

/// How much is left to do for a node that is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is tried again until it is shown.
    Stuck,
    /// This disk cannot show it beside what it shows; its content is on this device.
    Unshowable,
    /// The same, as a directory above it cannot be shown: that one is told.
    Beneath,
}

/// What is to be tried again.
pub(super) enum Retry {
    /// Look at the path.
    Look(RelPath),
    /// Render the node.
    Render(NodeId),
}

/// The faults of a worktree: of a path that cannot be read, of a node that cannot be rendered. One
/// may stand at the other's path; each has its own end.
#[derive(Debug, Default)]
pub(super) struct Faults {
    reads: BTreeMap<RelPath, Fault>,
    nodes: BTreeMap<NodeId, NodeFault>,
}

impl Faults {
    /// Notes that something could not be read.
    pub(super) fn note_read(&mut self, path: &RelPath, what: String, now: Now) {
        let fault = Fault::after(self.reads.get(path), what, now);
        self.reads.insert(path.clone(), fault);
    }

    /// Notes that a node could not be rendered.
    pub(super) fn note_node(&mut self, path: &RelPath, node: NodeId, what: String, now: Now) {
        let before = self.nodes.get(&node).map(|node| &node.fault);
        let fault = Fault::after(before, what, now);
        self.put_node(node, path.clone(), fault, Standing::Stuck);
    }

    /// Notes that this disk cannot show a node: nothing is left to do, unless it makes room for
    /// it some day (`may_end`).
    pub(super) fn note_unshowable(
        &mut self,
        path: &RelPath,
        node: NodeId,
        what: String,
        may_end: bool,
        now: Now,
    ) {
        let retry_ms = if may_end {
            now.ms + UNSHOWABLE_RETRY_MS
        } else {
            u64::MAX
        };
        let fault = Fault {
            what,
            retry_ms,
            tries: 0,
        };
        self.put_node(node, path.clone(), fault, Standing::Unshowable);
    }

    /// The same of what lies beneath such a directory, which is planned anew when that one is made.
    pub(super) fn note_beneath(&mut self, node: NodeId) {
        let fault = Fault {
            what: String::new(),
            retry_ms: u64::MAX,
            tries: 0,
        };
        self.put_node(node, RelPath::root(), fault, Standing::Beneath);
    }

    fn put_node(&mut self, node: NodeId, path: RelPath, fault: Fault, standing: Standing) {
        let fault = NodeFault {
            path,
            fault,
            standing,
        };
        self.nodes.insert(node, fault);
    }

    /// What this disk cannot show as long as something else stands where it stands.
    fn beside_others(&self) -> Vec<NodeId> {
        let mut beside = vec![];
        for (id, node) in &self.nodes {
            if node.standing == Standing::Unshowable && node.fault.retry_ms != u64::MAX {
                beside.push(*id);
            }
        }
        beside
    }

    /// Whether this disk cannot show a node.
    pub(super) fn is_unshowable(&self, node: &NodeId) -> bool {
        let node = self.nodes.get(node);
        node.is_some_and(|node| node.standing != Standing::Stuck)
    }

    /// How often what could not be read at a path was tried: a look at it begins.
    pub(super) fn read_tries(&self, path: &RelPath) -> Option<u32> {
        self.reads.get(path).map(|fault| fault.tries)
    }

    /// A look at a path is over that began after `tries` attempts: what was noted before is gone
    /// unless it was noted again.
    pub(super) fn looked(&mut self, path: &RelPath, tries: u32) {
        if self.read_tries(path) == Some(tries) {
            self.reads.remove(path);
        }
    }

    /// A node is rendered, or has no need to be.
    pub(super) fn clear_node(&mut self, node: &NodeId) {
        self.nodes.remove(node);
    }

    /// When a node that could not be rendered is tried again.
    pub(super) fn retry_of(&self, node: &NodeId) -> Option<u64> {
        self.nodes.get(node).map(|node| node.fault.retry_ms)
    }

    /// When what could not be read at a path is looked at again.
    pub(super) fn retry_of_read(&self, path: &RelPath) -> Option<u64> {
        self.reads.get(path).map(|fault| fault.retry_ms)
    }

    /// True if nothing is left to try again, except for what this disk cannot show.
    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty() && !self.has_nodes()
    }

    /// Whether a node is still to be shown.
    pub(super) fn has_nodes(&self) -> bool {
        let mut nodes = self.nodes.values();
        nodes.any(|node| node.standing == Standing::Stuck)
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        let nodes = self.nodes.values().map(|node| &node.fault);
        let all = self.reads.values().chain(nodes);
        let due = all.map(|fault| fault.retry_ms).min();
        due.filter(|at| *at != u64::MAX)
    }

    /// Takes what is to be tried again now.
    pub(super) fn take_due(&mut self, now: Now) -> Vec<Retry> {
        let mut due = vec![];
        for (path, fault) in &mut self.reads {
            if fault.take(now) {
                due.push(Retry::Look(path.clone()));
            }
        }
        for (id, node) in &mut self.nodes {
            let unshowable = node.standing == Standing::Unshowable;
            if node.fault.take(now) {
                due.push(Retry::Render(*id));
                if unshowable {
                    node.fault.retry_ms = now.ms + UNSHOWABLE_RETRY_MS;
                }
            }
        }
        due
    }

    /// What is wrong: where, what, and whether it stands in the way of being in sync.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&RelPath, &str, bool)> {
        let told = |node: &&NodeFault| node.standing != Standing::Beneath;
        let nodes = self.nodes.values().filter(told);
        let nodes = nodes.map(|node| {
            let what = node.fault.what.as_str();
            (&node.path, what, node.standing == Standing::Stuck)
        });
        let reads = self.reads.iter();
        reads
            .map(|(path, fault)| (path, fault.what.as_str(), true))
            .chain(nodes)
    }
}

impl Worktree {
    /// Something has gone from its place: what could not be shown beside it may be now.
    pub(super) fn place_is_free(&mut self) {
        let nodes = self.faults.beside_others();
        self.mark(nodes);
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
    fn what_cannot_be_read_hides_no_node_that_waits_at_its_path() {
        let mut faults = Faults::default();
        faults.note_node(&path("a"), NODE, "full".into(), at(0));
        faults.note_read(&path("a"), "unreadable".into(), at(0));
        assert_eq!(faults.iter().count(), 2);
        let tries = faults.read_tries(&path("a")).expect("is known");
        faults.looked(&path("a"), tries);
        assert!(faults.has_nodes());
        assert!(faults.retry_of(&NODE).is_some());
        let due = faults.take_due(at(RETRY_MS));
        assert!(matches!(due.as_slice(), [Retry::Render(NODE)]));
    }
}

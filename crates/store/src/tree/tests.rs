//! The tree against its model, and each rule by name.

mod generated;
mod measure;
mod merging;
mod revived;
mod rules;
mod versions;

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::row::{At, Content, Keys, Kind, Life, Name, Row};
use pacsync_protocol::{ContentId, NodeId, RowId};
use redb::{Database, ReadableDatabase, WriteTransaction};

use super::model::Model;
use super::{
    Backend, Carrier, Causality, NodeState, Settled, Tree, TreeError, TreeReader, TreeTables,
};

const SPACE: u32 = 7;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn at(parent: NodeId, text: &str, stamp: u64) -> Option<At> {
    Some(At {
        parent,
        name: name(text),
        stamp,
    })
}

fn content(number: u8) -> Option<Content> {
    Some(Content {
        id: ContentId::from_bytes([number; 32]),
        size: u64::from(number),
        mtime_ns: i64::from(number),
        inline: None,
    })
}

/// Segments and what each has in its past; entries are numbered within a log.
#[derive(Debug, Clone, Default)]
struct History {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone)]
struct Segment {
    log: u32,
    first: u64,
    rows: Vec<Row>,
    /// Segments that were applied where this was written.
    past: BTreeSet<usize>,
}

impl Segment {
    fn carriers(&self) -> impl Iterator<Item = (Carrier, &Row)> {
        (self.first..)
            .zip(&self.rows)
            .map(|(seq, row)| (Carrier { log: self.log, seq }, row))
    }
}

impl History {
    /// Writes a segment after some others (and all that those have in their past).
    fn write(&mut self, log: u32, after: &BTreeSet<usize>, rows: Vec<Row>) -> usize {
        let mut past = after.clone();
        for index in after {
            past.extend(&self.segments[*index].past);
        }
        let own = self.segments.iter().filter(|segment| segment.log == log);
        let first = 1 + own.map(|segment| segment.rows.len() as u64).sum::<u64>();
        self.segments.push(Segment {
            log,
            first,
            rows,
            past,
        });
        self.segments.len() - 1
    }

    fn segment_of(&self, carrier: Carrier) -> usize {
        self.segments
            .iter()
            .position(|segment| {
                let end = segment.first + segment.rows.len() as u64;
                segment.log == carrier.log && (segment.first..end).contains(&carrier.seq)
            })
            .expect("a carrier is of some segment")
    }
}

impl Causality for History {
    fn saw(&self, later: Carrier, earlier: Carrier) -> bool {
        let (later, earlier) = (self.segment_of(later), self.segment_of(earlier));
        later == earlier || self.segments[later].past.contains(&earlier)
    }
}

fn database() -> Database {
    let backend = redb::backends::InMemoryBackend::new();
    let db = Database::builder()
        .create_with_backend(backend)
        .expect("a database");
    let tx = db.begin_write().expect("a transaction");
    super::make_tables(&tx).expect("tables");
    tx.commit().expect("a commit");
    db
}

/// Inserts a segment's rows; gives those that the gate took.
fn deliver(tx: &WriteTransaction, segment: &Segment) -> Vec<(RowId, Row, Carrier)> {
    let mut taken = vec![];
    let mut tree = TreeTables::open(tx, SPACE).expect("opens");
    for (carrier, row) in segment.carriers() {
        let bytes = row.to_bytes();
        let id = Row::id_of(&bytes);
        match tree.insert(id, row, &bytes, carrier) {
            Ok(_) => taken.push((id, row.clone(), carrier)),
            Err(TreeError::Hostile { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    taken
}

/// Rows with all their carriers, the first that came first.
type Rows = BTreeMap<RowId, (Row, Vec<Carrier>)>;

fn note(rows: &mut Rows, id: RowId, row: Row, carrier: Carrier) {
    let (_, carriers) = rows.entry(id).or_insert((row, vec![]));
    if !carriers.contains(&carrier) {
        carriers.push(carrier);
    }
}

/// Compares everything that can be asked with the model.
fn compare<B: Backend>(tree: &Tree<B>, model: &Model, causality: &dyn Causality) {
    let derived = model.derive(causality);
    let root = NodeId::ROOT;
    let mut names = BTreeSet::new();
    let mut parents = BTreeSet::from([root]);
    for id in model.nodes() {
        assert_eq!(tree.representative(&id).expect("reads"), model.rep(&id));
        if id != root {
            let state = tree.node(&id).expect("reads").expect("known");
            assert_eq!(state, derived.nodes[&model.rep(&id)], "the state of {id:?}");
        }
    }
    for state in derived.nodes.values() {
        names.extend(state.name.clone());
        parents.insert(state.id);
        let path = derived.path(&state.id);
        assert_eq!(tree.path(&state.id).expect("reads"), path);
        if let Some(path) = path {
            assert_eq!(tree.lookup(&path).expect("reads"), Some(state.id));
        }
        let history = tree.history(&state.id).expect("reads");
        assert_eq!(
            history.iter().copied().collect::<BTreeSet<_>>(),
            model.history(&state.id)
        );
        assert_eq!(
            tree.births(&state.id).expect("reads"),
            model.births(&state.id)
        );
        assert_eq!(
            tree.mergeable(&state.id).expect("reads"),
            model.mergeable(&state.id),
            "what may be merged of {:?}",
            state.id
        );
        let past = tree.past_for_edit(&state.id, None).expect("reads");
        assert_eq!(
            past,
            model.past_for_edit(&state.id, None),
            "past for {:?}",
            state.id
        );
        for base in model.history(&state.id) {
            let past = tree.past_for_edit(&state.id, Some(&base)).expect("reads");
            assert_eq!(past, model.past_for_edit(&state.id, Some(&base)));
        }
    }
    let placed_at = |parent: &NodeId, name: &Name| {
        let there = |state: &&NodeState| {
            !state.dead && state.parent == Some(*parent) && state.name.as_ref() == Some(name)
        };
        derived.nodes.values().filter(there).collect::<Vec<_>>()
    };
    for parent in &parents {
        let mut children = vec![];
        for name in &names {
            let there = placed_at(parent, name);
            let all = there.iter().map(|state| state.id).collect::<Vec<_>>();
            assert_eq!(tree.all_at(parent, name).expect("reads"), all);
            let shown = there.iter().find(|state| state.shown).map(|state| state.id);
            assert_eq!(tree.child(parent, name).expect("reads"), shown);
            children.extend(shown.map(|shown| (name.clone(), shown)));
        }
        let listed: Vec<_> = tree
            .children(parent)
            .expect("reads")
            .collect::<Result<_, _>>()
            .expect("reads");
        assert_eq!(listed, children);
    }
    for (id, (row, carriers)) in &model.rows {
        let held = tree.row(id).expect("reads").expect("held");
        assert_eq!(held, (row.to_bytes(), carriers[0]));
        for other in model.rows.keys() {
            assert_eq!(
                tree.is_ancestor(id, other).expect("reads"),
                model.is_behind(id, other)
            );
        }
    }
    let stamps = model
        .rows
        .values()
        .filter_map(|(row, _)| row.keys.at.as_ref());
    let highest = stamps.map(|at| at.stamp).max().unwrap_or(0);
    assert_eq!(tree.max_stamp().expect("reads"), highest);
    assert_eq!(tree.stats().expect("reads"), derived.stats);
    let listed: Vec<_> = tree
        .conflicts()
        .expect("reads")
        .collect::<Result<_, _>>()
        .expect("reads");
    assert_eq!(sorted(&listed), sorted(&derived.conflicts));
}

fn sorted<T: std::fmt::Debug>(items: &[T]) -> Vec<String> {
    let mut texts: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
    texts.sort();
    texts
}

/// All states, without what `changed` does not report.
fn states<B: Backend>(tree: &Tree<B>, nodes: &[NodeId]) -> BTreeMap<NodeId, NodeState> {
    let mut states = BTreeMap::new();
    for id in nodes {
        if let Some(mut state) = tree.node(id).expect("reads") {
            state.live_children = 0;
            if state.dead {
                state.parent = None;
            }
            states.insert(*id, state);
        }
    }
    states
}

//! What must hold when everything rests.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::row::{Content, Kind, Name, RESERVED_PREFIX, Row};
use pacsync_protocol::{ContentId, NodeId, RowId};
use pacsync_store::tree::TreeReader;
use pacsync_store::{Store, StoreError};

use super::fs::Body;
use super::oracle::{Written, lines_of};
use super::runner::{Failure, Runner};
use super::world::lock;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    Dir(u16),
    File(u16, Written, Vec<u8>),
    Symlink(Vec<u8>),
}

type Tree = BTreeMap<String, Shown>;

fn broken(invariant: &'static str, details: Vec<String>) -> Failure {
    Failure { invariant, details }
}

fn damaged(error: StoreError) -> Failure {
    broken("the replica can be read", vec![error.to_string()])
}

/// A disk as users see it, and what lies around that they should not.
fn disk(runner: &Runner, at: usize) -> (Tree, Vec<String>) {
    let world = lock(&runner.world);
    let mut tree = Tree::new();
    let mut reserved = vec![];
    let Some(host) = world.hosts.get(at) else {
        return (tree, reserved);
    };
    reserved.extend(host.temporary().map(|path| format!("d{at}: {path}")));
    for (path, ino) in host.fs.walk() {
        if path.names().any(|name| name.starts_with(RESERVED_PREFIX)) {
            continue;
        }
        let Some(inode) = host.fs.inode(ino) else {
            continue;
        };
        // Where modes are not kept there is nothing to compare.
        let mode = if host.fs.can.modes { inode.mode } else { 0 };
        let shown = match &inode.body {
            Body::Dir(_) => Shown::Dir(mode),
            Body::File(data) => Shown::File(mode, Written::file(data), data.to_vec()),
            Body::Symlink(target) => Shown::Symlink(target.clone()),
        };
        tree.insert(path.to_string(), shown);
    }
    (tree, reserved)
}

/// What a replica knows: what its tree shows, what is alive, and all that was ever written.
struct Replica {
    shown: BTreeMap<String, (Kind, Option<ContentId>, Option<u16>)>,
    alive: BTreeMap<ContentId, Content>,
    ever: BTreeSet<ContentId>,
    /// Contents that several rows have: a first join writes what the pac shows over its own.
    again: BTreeSet<ContentId>,
    /// Contents that nobody but a merge has written. One may happen to be what somebody saved, too,
    /// and overwrote before it got into the pac: the same line taken out of the same text.
    merged: BTreeSet<ContentId>,
    /// Bytes of contents that rows carry.
    inline: BTreeMap<ContentId, Vec<u8>>,
    set_aside: BTreeSet<String>,
    vector: String,
}

impl Replica {
    fn read(store: &Store) -> Result<Self, StoreError> {
        let mut replica = Self {
            shown: BTreeMap::new(),
            alive: BTreeMap::new(),
            ever: BTreeSet::new(),
            again: BTreeSet::new(),
            merged: BTreeSet::new(),
            inline: BTreeMap::new(),
            set_aside: BTreeSet::new(),
            vector: String::new(),
        };
        let space = store
            .spaces()
            .next()
            .ok_or_else(|| StoreError::Damaged("no space is there".into()))?;
        let tx = store.read()?;
        let tree = TreeReader::open(&tx, space.no)?;
        let mut nodes = BTreeSet::new();
        let mut saved = BTreeSet::new();
        for row in tree.rows()? {
            let (_, row) = row?;
            nodes.insert(row.node);
            if let Some(content) = row.keys.content {
                match row.keys.merge {
                    Some(_) => replica.merged.insert(content.id),
                    None => saved.insert(content.id),
                };
                if !replica.ever.insert(content.id) {
                    replica.again.insert(content.id);
                }
                if let Some(bytes) = content.inline {
                    replica.inline.insert(content.id, bytes);
                }
            }
        }
        replica.merged.retain(|content| !saved.contains(content));
        for node in nodes {
            if let Some(state) = tree.node(&node)?
                && !state.dead
            {
                let shown = state.content.map(|shown| shown.content);
                let losers = state.losers.into_iter().map(|(_, content)| content);
                let alive = shown.into_iter().chain(losers);
                replica
                    .alive
                    .extend(alive.map(|content| (content.id, content)));
            }
        }
        let mut open = vec![(NodeId::ROOT, String::new())];
        while let Some((dir, path)) = open.pop() {
            for item in tree.children(&dir)? {
                let (name, node): (Name, NodeId) = item?;
                let Some(state) = tree.node(&node)? else {
                    continue;
                };
                let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
                let path = if path.is_empty() {
                    name
                } else {
                    format!("{path}/{name}")
                };
                let content = state.content.as_ref().map(|shown| shown.content.id);
                replica
                    .shown
                    .insert(path.clone(), (state.kind, content, state.mode));
                if state.kind == Kind::Dir {
                    open.push((node, path));
                }
            }
        }
        let index = pacsync_store::index::IndexReader::new(&tx, space.no);
        for path in index.set_aside()? {
            replica
                .set_aside
                .insert(String::from_utf8_lossy(&path).into_owned());
        }
        replica.vector = format!("{:?}", store.applied(&space.id)?);
        Ok(replica)
    }
}

/// True if a device lists versions that a first join has set aside.
pub(super) fn has_set_aside(runner: &Runner, at: usize) -> Result<bool, Failure> {
    let node = runner.nodes.get(&at);
    let asked = node.map(|node| node.ask(|device, _| Replica::read(device.store())));
    let replica = asked.transpose().map_err(damaged)?.flatten();
    Ok(replica.is_some_and(|replica| !replica.set_aside.is_empty()))
}

fn replicas(runner: &Runner) -> Result<BTreeMap<usize, Replica>, Failure> {
    runner
        .nodes
        .iter()
        .filter_map(|(at, node)| Some((at, node.device.as_ref()?)))
        .map(|(at, device)| Ok((*at, Replica::read(device.store()).map_err(damaged)?)))
        .collect()
}

/// How a shown thing is told.
fn tell(runner: &Runner, shown: Option<&Shown>) -> String {
    let world = lock(&runner.world);
    let version = |written: &Written| match world.oracle.versions.get(written) {
        Some(version) => format!("version {} of d{}", version.number, version.device),
        None => "something unknown".into(),
    };
    match shown {
        None => "nothing".into(),
        Some(Shown::Dir(mode)) => format!("a directory, {mode:o}"),
        Some(Shown::File(mode, written, bytes)) => {
            format!("{} ({} B, {mode:o})", version(written), bytes.len())
        }
        Some(Shown::Symlink(target)) => {
            format!("a symlink, {}", version(&Written::Symlink(target.clone())))
        }
    }
}

/// All rows that replicas have, by node: what a failure is explained with.
pub(super) fn rows(runner: &Runner) -> Vec<String> {
    let mut holders: BTreeMap<(NodeId, RowId), (Row, Vec<usize>)> = BTreeMap::new();
    let devices = runner.nodes.iter();
    for (at, device) in devices.filter_map(|(at, node)| Some((*at, node.device.as_ref()?))) {
        let read = |store: &Store| -> Result<Vec<(RowId, Row)>, StoreError> {
            let Some(space) = store.spaces().next() else {
                return Ok(vec![]);
            };
            let tx = store.read()?;
            let tree = TreeReader::open(&tx, space.no)?;
            Ok(tree.rows()?.collect::<Result<_, _>>()?)
        };
        for (id, row) in read(device.store()).unwrap_or_default() {
            let entry = holders.entry((row.node, id)).or_insert((row, vec![]));
            entry.1.push(at);
        }
    }
    let tell = |((node, id), (row, at)): (&(NodeId, RowId), &(Row, Vec<usize>))| {
        let (past, keys) = (&row.past, &row.keys);
        format!("{node:?} {id:?} at {at:?} past {past:?} {keys:?}")
    };
    holders.iter().map(tell).collect()
}

/// Where disks and replicas differ.
pub(super) fn differences(runner: &Runner) -> Vec<String> {
    let mut lines = vec![];
    let disks: BTreeMap<usize, Tree> = runner
        .nodes
        .keys()
        .map(|at| (*at, disk(runner, *at).0))
        .collect();
    let first = disks.values().next().cloned().unwrap_or_default();
    // Where disks cannot show everything each is compared with its own replica only.
    let alike = disks.keys().all(|at| shows_all(runner, *at));
    for (at, tree) in disks.iter().filter(|_| alike) {
        let paths: BTreeSet<&String> = first.keys().chain(tree.keys()).collect();
        for path in paths {
            if first.get(path) != tree.get(path) {
                lines.push(format!(
                    "{path}: d0 has {}, d{at} has {}",
                    tell(runner, first.get(path)),
                    tell(runner, tree.get(path))
                ));
            }
        }
    }
    for at in runner.nodes.keys() {
        lines.extend(disk(runner, *at).1);
    }
    if let Ok(replicas) = replicas(runner) {
        let first = replicas.values().next();
        for (at, replica) in &replicas {
            if let Some(first) = first
                && first.shown != replica.shown
            {
                lines.push(format!("the tree of d{at} is another one than the first"));
            }
            let Some(tree) = disks.get(at) else { continue };
            lines.extend(unlike(runner, *at, replica, tree));
        }
    }
    lines
}

/// Whether a disk can show whatever a tree has.
fn shows_all(runner: &Runner, at: usize) -> bool {
    let world = lock(&runner.world);
    let host = world.hosts.get(at);
    host.is_none_or(|host| host.fs.can.symlinks && host.fs.can.case_sensitive)
}

/// What a disk cannot show as the tree has it: names that it takes for one, with all that is
/// beneath them, and symlinks.
struct Unshowable {
    paths: BTreeSet<String>,
    /// What may show in other places instead: what could not be renamed to such a name.
    things: BTreeSet<(Kind, Option<ContentId>)>,
    folds_case: bool,
}

impl Unshowable {
    fn of(runner: &Runner, at: usize, replica: &Replica) -> Self {
        let can = {
            let world = lock(&runner.world);
            world.hosts.get(at).map(|host| host.fs.can)
        };
        let mut unshowable = Self {
            paths: BTreeSet::new(),
            things: BTreeSet::new(),
            folds_case: can.is_some_and(|can| !can.case_sensitive),
        };
        let Some(can) = can else { return unshowable };
        let mut folded: BTreeMap<String, Vec<&String>> = BTreeMap::new();
        for (path, (kind, ..)) in &replica.shown {
            if *kind == Kind::Symlink && !can.symlinks {
                unshowable.paths.insert(path.clone());
            } else if !can.case_sensitive {
                folded.entry(path.to_lowercase()).or_default().push(path);
            }
        }
        let several = folded.into_values().filter(|paths| paths.len() > 1);
        for top in several.flatten() {
            unshowable.add(top, replica);
        }
        unshowable
    }

    /// A path that may not show, with all that is beneath it.
    fn add(&mut self, top: &str, replica: &Replica) {
        for (path, (kind, content, _)) in &replica.shown {
            if path
                .strip_prefix(top)
                .is_some_and(|rest| rest.is_empty() || is_beneath(rest))
            {
                self.paths.insert(path.clone());
                self.things.insert((*kind, *content));
            }
        }
    }

    /// Something that keeps its old name stands at a path: what is wanted there cannot show.
    fn stands_at(&mut self, old: &str, found: Kind, replica: &Replica) {
        match replica.shown.get(old) {
            // Nor does what lies in it.
            Some((Kind::Dir, ..)) if found != Kind::Dir => self.add(old, replica),
            Some((kind, content, _)) => {
                self.things.insert((*kind, *content));
            }
            None => {}
        }
        let folded = old.to_lowercase();
        let wanted = replica.shown.keys();
        let other = |path: &&String| *path != old && path.to_lowercase() == folded;
        if self.folds_case {
            for path in wanted.filter(other) {
                self.add(path, replica);
            }
        }
    }
}

/// Whether a device has names in its tree that its disk takes for one.
pub(super) fn keeps_old_names(runner: &Runner, at: usize) -> Result<bool, Failure> {
    let replicas = replicas(runner)?;
    let replica = replicas.get(&at);
    Ok(replica.is_some_and(|replica| !Unshowable::of(runner, at, replica).things.is_empty()))
}

/// Where a disk is not what its replica says.
fn unlike(runner: &Runner, at: usize, replica: &Replica, disk: &Tree) -> Vec<String> {
    let keys = runner
        .nodes
        .get(&at)
        .and_then(|node| node.device.as_ref())
        .and_then(|device| device.store().spaces().next()?.id_keys.clone());
    let Some(keys) = keys else { return vec![] };
    let mut lines = vec![];
    let mut unshowable = Unshowable::of(runner, at, replica);
    let found: BTreeMap<&String, (Kind, Option<ContentId>, Option<u16>)> = disk
        .iter()
        .map(|(path, shown)| {
            let found = match shown {
                Shown::Dir(mode) => (Kind::Dir, None, Some(*mode)),
                Shown::File(mode, _, bytes) => {
                    (Kind::File, Some(keys.content_id(bytes)), Some(*mode))
                }
                Shown::Symlink(target) => (Kind::Symlink, Some(keys.content_id(target)), None),
            };
            (path, found)
        })
        .collect();
    // What keeps its old name may stand where something else is wanted, which then keeps its own, or
    // is not shown.
    let mut kept: BTreeSet<&String> = BTreeSet::new();
    loop {
        let keeps = |path: &&&String| {
            let found = found.get(**path);
            found.is_some_and(|(kind, content, _)| unshowable.things.contains(&(*kind, *content)))
        };
        let now: BTreeSet<&String> = found.keys().filter(keeps).copied().collect();
        if now == kept {
            break;
        }
        kept = now;
        for path in &kept {
            if let Some((kind, ..)) = found.get(path) {
                unshowable.stands_at(path, *kind, replica);
            }
        }
    }
    let paths: BTreeSet<&String> = replica.shown.keys().chain(disk.keys()).collect();
    let mut old_names: Vec<&String> = vec![];
    for path in paths.into_iter().rev() {
        let found = found.get(path);
        let said = replica.shown.get(path).copied();
        let same = match (&said, found) {
            (Some(said), Some(found)) => {
                said.0 == found.0
                    && said.1 == found.1
                    && (said.2.is_none()
                        || found.2.is_none_or(|mode| mode == 0)
                        || said.2 == found.2)
            }
            (None, None) => true,
            _ => false,
        };
        if same || unshowable.paths.contains(path) {
            continue;
        }
        let keeps_it = found.is_some_and(|found| unshowable.things.contains(&(found.0, found.1)));
        // Nor does a directory go as long as something in it cannot.
        let is_around = |old: &&String| old.strip_prefix(path.as_str()).is_some_and(is_beneath);
        if keeps_it || (said.is_none() && old_names.iter().any(is_around)) {
            old_names.push(path);
            continue;
        }
        lines.push(format!(
            "{path}: the disk of d{at} has {}, its tree says {said:?}",
            tell(runner, disk.get(path))
        ));
    }
    lines
}

fn is_beneath(rest: &str) -> bool {
    rest.starts_with('/')
}

/// How long after an edit a device may not know of it: a file that is left open, and lost events.
const UNSEEN_NS: u64 = 4_000_000_000;

/// At any moment: queues are bounded, and devices that all say that they are in sync are.
pub(super) fn status(runner: &Runner) -> Result<(), Failure> {
    let settled = {
        let world = lock(&runner.world);
        if let Some(what) = &world.net.overfull {
            return Err(broken("bounded queues", vec![what.clone()]));
        }
        // Who is lied to may believe it.
        let lied = !world.net.liars.is_empty()
            || world
                .net
                .honest_ns
                .is_some_and(|at| at + UNSEEN_NS > world.clock_ns);
        if lied || world.hosts.iter().any(|host| host.dead) {
            return Ok(());
        }
        let last = world.hosts.iter().map(|host| host.edited_ns).max();
        last.is_none_or(|at| at + UNSEEN_NS < world.clock_ns)
    };
    // What each says of itself, and with whom it is connected.
    let mut said: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for (at, node) in &runner.nodes {
        let status = node
            .ask(|device, now| device.status(now))
            .map_err(damaged)?;
        let Some(status) = status.filter(|status| status.in_sync) else {
            return Ok(());
        };
        let connected = status.peers.into_iter().filter(|peer| peer.connected);
        said.insert(*at, connected.map(|peer| peer.id).collect());
    }
    let id = |at: &usize| {
        let node = runner.nodes.get(at);
        node.map(|node| node.identity.keys.id().to_string())
    };
    // Of two machines with one key nobody can tell which one it is connected with.
    let is_double = |at: &usize| {
        let twin = runner.profile.twin;
        twin.is_some_and(|(of, twin)| *at == of || *at == twin)
    };
    let knows = |a: &usize, b: &usize| {
        if is_double(a) || is_double(b) {
            return false;
        }
        let connected = said.get(a).zip(id(b));
        connected.is_some_and(|(connected, b)| connected.contains(&b))
    };
    let mut wrong = vec![];
    let replicas = replicas(runner)?;
    for (at, replica) in &replicas {
        for (other, its) in replicas.range(..at) {
            if knows(at, other) && knows(other, at) && replica.vector != its.vector {
                wrong.push(format!(
                    "d{at} has applied {}, d{other} {}",
                    replica.vector, its.vector
                ));
            }
        }
        if settled {
            wrong.extend(unlike(runner, *at, replica, &disk(runner, *at).0));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.insert(
        0,
        "all devices say that they are in sync, and are not".into(),
    );
    Err(broken("honest status", wrong))
}

/// True if a device tells of a problem that keeps it from being in step.
pub(super) fn has_trouble(runner: &Runner) -> Result<bool, Failure> {
    for node in runner.nodes.values() {
        let status = node
            .ask(|device, now| device.status(now))
            .map_err(damaged)?;
        if status.is_some_and(|status| status.problems.iter().any(|problem| problem.in_the_way)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Who is not in step, and waits for what.
pub(super) fn waits(runner: &Runner) -> Result<Vec<String>, Failure> {
    let mut waits = vec![];
    for (at, node) in &runner.nodes {
        let status = node
            .ask(|device, now| device.status(now))
            .map_err(damaged)?;
        let Some(status) = status else {
            waits.push(format!("d{at} is not running"));
            continue;
        };
        if status.in_sync {
            continue;
        }
        let before = waits.len();
        for peer in status.peers.iter().filter(|peer| !peer.in_sync) {
            let is = if peer.connected {
                ""
            } else {
                ", which is away"
            };
            waits.push(format!("d{at} waits for {}{is}", peer.name));
        }
        for space in &status.spaces {
            for transfer in &space.transfers {
                let (done, total) = (transfer.bytes_done, transfer.bytes_total);
                let path = &transfer.path.path;
                waits.push(format!("d{at} has {done} of {total} B of {path}"));
            }
        }
        let pending = node.ask(|device, _| pending(device.store()));
        for what in pending.map_err(damaged)?.into_iter().flatten() {
            waits.push(format!("d{at} has yet to show {what}"));
        }
        if waits.len() == before {
            waits.push(format!("d{at} waits for nothing that it tells of"));
        }
    }
    Ok(waits)
}

/// What a replica has yet to render.
fn pending(store: &Store) -> Result<Vec<String>, StoreError> {
    let space = store
        .spaces()
        .next()
        .ok_or_else(|| StoreError::Damaged("no space is there".into()))?;
    let tx = store.read()?;
    let tree = TreeReader::open(&tx, space.no)?;
    let index = pacsync_store::index::IndexReader::new(&tx, space.no);
    let mut pending = vec![];
    for node in index.pending(None, usize::MAX)? {
        let state = tree.node(&tree.representative(&node)?)?;
        let told = state.map(|state| (state.kind, state.name, state.content, state.dead));
        pending.push(match told {
            Some((kind, name, content, dead)) => {
                let name = name.map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
                let content = content.map(|shown| (shown.content.id, shown.content.size));
                format!("{node:?}: {kind:?} {name:?}, {content:?}, dead: {dead}")
            }
            None => format!("{node:?}"),
        });
    }
    Ok(pending)
}

/// A device that no user writes on has written nothing but what follows from the others' rows.
fn no_echo(runner: &Runner) -> Result<(), Failure> {
    let Some(at) = runner.profile.reader else {
        return Ok(());
    };
    let Some(node) = runner.nodes.get(&at) else {
        return Ok(());
    };
    let own = node.identity.keys.id();
    let echoes = node.ask(|device, _| {
        let store = device.store();
        let space = store.space(&node.home_space)?;
        let tx = store.read()?;
        let mut echoes = vec![];
        for item in TreeReader::open(&tx, space.no)?.rows()? {
            let (id, row) = item?;
            if row.keys.merge.is_some() || row.keys.into.is_some() {
                continue;
            }
            let writers = store.written(&space.id, &id)?;
            if writers.iter().any(|written| written.device == own) {
                echoes.push(format!("d{at}, which has no user, wrote {row:?}"));
            }
        }
        Ok(echoes)
    });
    match echoes.map_err(damaged)? {
        Some(echoes) if !echoes.is_empty() => Err(broken("no echo", echoes)),
        _ => Ok(()),
    }
}

/// Compares what must not have changed.
pub(super) fn unchanged(
    invariant: &'static str,
    before: &[String],
    after: &[String],
) -> Result<(), Failure> {
    if before == after {
        return Ok(());
    }
    let gone = before.iter().filter(|line| !after.contains(line));
    let new = after.iter().filter(|line| !before.contains(line));
    let details = gone
        .map(|line| format!("before {line}"))
        .chain(new.map(|line| format!("after  {line}")));
    Err(broken(invariant, details.collect()))
}

/// Everything that must not change at rest, as lines.
pub(super) fn state(runner: &mut Runner) -> Result<Vec<String>, Failure> {
    let mut lines = vec![];
    for (at, replica) in replicas(runner)? {
        lines.push(format!("d{at} {}", replica.vector));
        for (path, shown) in disk(runner, at).0 {
            lines.push(format!("d{at} {path} {}", tell(runner, Some(&shown))));
        }
    }
    Ok(lines)
}

/// All invariants.
pub(super) fn all(runner: &mut Runner) -> Result<(), Failure> {
    let mut left = vec![];
    for at in runner.nodes.keys() {
        left.extend(disk(runner, *at).1);
    }
    if !left.is_empty() {
        return Err(broken("no temporary files at rest", left));
    }
    let replicas = replicas(runner)?;
    let mut unequal = vec![];
    for (at, replica) in &replicas {
        unequal.extend(unlike(runner, *at, replica, &disk(runner, *at).0));
    }
    if !unequal.is_empty() {
        return Err(broken("the disk shows the tree", unequal));
    }
    let differences = differences(runner);
    if !differences.is_empty() {
        return Err(broken("convergence", differences));
    }
    versions(runner, &replicas)?;
    can_be_read(runner, &replicas)?;
    no_echo(runner)
}

/// What shows, and what the other sides of conflicts are, some device can read, but for what its own
/// user wrote over or deleted.
fn can_be_read(runner: &Runner, replicas: &BTreeMap<usize, Replica>) -> Result<(), Failure> {
    let keys = runner.nodes.values().find_map(|node| {
        let space = node.device.as_ref()?.store().spaces().next()?;
        space.id_keys.clone()
    });
    let (Some(replica), Some(keys)) = (replicas.values().next(), keys) else {
        return Ok(());
    };
    let mut alive = vec![];
    for version in lock(&runner.world).oracle.versions.values() {
        let bytes = version
            .bytes
            .as_ref()
            .filter(|_| version.superseded.is_none());
        let id = bytes.map(|bytes| keys.content_id(bytes));
        if let Some(content) = id.and_then(|id| replica.alive.get(&id)) {
            let (number, device, path) = (version.number, version.device, &version.path);
            let what = format!("version {number} that d{device} wrote to {path}");
            alive.push((content, what));
        }
    }
    let mut lost = vec![];
    for (content, what) in alive {
        let mut devices = runner
            .nodes
            .values()
            .filter_map(|node| node.device.as_ref());
        let readable = devices.try_fold(false, |found, device| {
            Ok::<_, StoreError>(found || device.can_read(content)?)
        });
        if !readable.map_err(damaged)? {
            lost.push(what);
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    Err(broken("what counts can be read", lost))
}

/// No loss, no zombies, no phantoms.
fn versions(runner: &Runner, replicas: &BTreeMap<usize, Replica>) -> Result<(), Failure> {
    let Some((at, replica)) = replicas.iter().next() else {
        return Ok(());
    };
    let keys = runner
        .nodes
        .get(at)
        .and_then(|node| node.device.as_ref())
        .and_then(|device| device.store().spaces().next()?.id_keys.clone());
    let Some(keys) = keys else {
        return Ok(());
    };
    let (tree, _) = disk(runner, *at);
    let set_aside = runner.set_aside
        || replicas
            .values()
            .any(|replica| !replica.set_aside.is_empty());
    let world = lock(&runner.world);
    let mut phantoms = vec![];
    let mut zombies = vec![];
    let mut seen = BTreeSet::new();
    for (path, shown) in &tree {
        let (written, bytes) = match shown {
            Shown::Dir(_) => continue,
            Shown::File(_, written, bytes) => {
                if bytes.is_empty() {
                    // Files are cut before they are written.
                    continue;
                }
                (written.clone(), bytes)
            }
            Shown::Symlink(target) => (Written::Symlink(target.clone()), target),
        };
        match world.oracle.versions.get(&written) {
            None if matches!(shown, Shown::File(_, _, bytes) if world.oracle.is_merge(bytes)) => {}
            None => phantoms.push(format!("{path} holds what nobody wrote: {shown:?}")),
            Some(version) => {
                // A late joiner's first look writes it as if anew, beside what happens elsewhere.
                let joined = runner.profile.joiner.is_some()
                    && replica.again.contains(&keys.content_id(bytes));
                if let Some(by) = &version.superseded
                    && !version.moved
                    && !joined
                    && !replica.merged.contains(&keys.content_id(bytes))
                {
                    zombies.push(format!(
                        "{path} shows version {} of d{} again ({by} had it before it)",
                        version.number, version.device
                    ));
                }
                seen.insert(written);
            }
        }
    }
    if !phantoms.is_empty() {
        return Err(broken("no phantoms", phantoms));
    }
    let mut lost = vec![];
    let mut buried = vec![];
    for (written, version) in &world.oracle.versions {
        let Some(bytes) = &version.bytes else {
            continue;
        };
        if version.superseded.is_some() || version.is_text || seen.contains(written) {
            continue;
        }
        let id = keys.content_id(bytes);
        if replica.alive.contains_key(&id) {
            continue;
        }
        let what = format!(
            "version {} that d{} wrote to {}",
            version.number, version.device, version.path
        );
        if !replica.ever.contains(&id) {
            lost.push(format!("{what} is nowhere"));
        } else if !set_aside {
            buried.push(format!(
                "{what} is in history only, and nobody overwrote it"
            ));
        }
    }
    let alive: BTreeSet<&[u8]> = replica
        .alive
        .keys()
        .filter_map(|id| replica.inline.get(id))
        .flat_map(|bytes| lines_of(bytes))
        .collect();
    for (line, written) in &world.oracle.lines {
        // What a first join sets aside is in history.
        if !written.superseded && !alive.contains(line.as_slice()) && !set_aside {
            lost.push(format!(
                "\"{}\", that d{} wrote into {}, is in no text",
                String::from_utf8_lossy(line),
                written.device,
                written.path
            ));
        }
    }
    if !lost.is_empty() {
        return Err(broken("no loss", lost));
    }
    if !buried.is_empty() {
        return Err(broken("no silent loser", buried));
    }
    if !zombies.is_empty() {
        return Err(broken("no zombies", zombies));
    }
    Ok(())
}

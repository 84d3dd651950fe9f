//! Settling a conflict: look at the path, fetch what is needed, write the rows, see them on disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pacsync_protocol::crypto::{Entropy, random};
use pacsync_protocol::row::{At, Content, Keys, Kind, Life, Name, Row};
use pacsync_protocol::segment::Entry;
use pacsync_protocol::{ContentId, DeviceId, NodeId, SpaceId, Stamp};
use pacsync_store::StoreError;
use pacsync_store::index::IndexReader;
use pacsync_store::tree::{Backend, Tree, TreeError, TreeReader};

use super::super::Device;
use super::super::spaces::store_error;
use super::super::waiters::Waiter;
use super::{Candidate, Choice, Standing, names};
use crate::control::api::{
    EDIT_MAX, EDIT_VERSIONS_MAX, EventKind, ResolveKeep, ResolveReport, TextPath, VersionContent,
    VersionContents,
};
use crate::control::{CommandError, Reply};
use crate::disk::RelPath;
use crate::net::PeerStanding;
use crate::worktree::{Context, Now, Replica, Wished};

/// How often it is looked whether what was asked for has come.
const TICK_MS: u64 = 50;
/// How long all peers may lack a version: who has it may be about to keep it.
const LACKED_MS: u64 = 3_000;
/// How long an answer waits for the disk.
const DISK_MS: u64 = 3_000;
/// Names that are tried for what goes beside.
const NAMES_MAX: usize = 1_000;
/// Most rows of a segment that carries confirmed deletes.
pub(in super::super) const CONFIRMED_ROWS: usize = 1_000;

/// What a path in conflict is looked at for.
pub(in super::super) enum Purpose {
    /// To be settled.
    Keep(ResolveKeep, Reply<ResolveReport>),
    /// For its versions.
    Contents(Reply<VersionContents>),
}

impl Purpose {
    pub(in super::super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Keep(_, reply) => reply.is_closed(),
            Self::Contents(reply) => reply.is_closed(),
        }
    }

    fn fail(self, error: CommandError) {
        match self {
            Self::Keep(_, reply) => drop(reply.send(Err(error))),
            Self::Contents(reply) => drop(reply.send(Err(error))),
        }
    }
}

/// A conflict that is being settled.
pub(in super::super) struct Settle {
    pub(in super::super) purpose: Purpose,
    /// As the user named it.
    typed: PathBuf,
    space: SpaceId,
    path: RelPath,
    pub(in super::super) scanned: bool,
    /// Contents that were asked for.
    asked: BTreeSet<ContentId>,
    /// Since when all peers lack something.
    lacked_since_ms: Option<u64>,
    written: Option<Done>,
    pub(in super::super) next_ms: u64,
}

/// What is in the log and may not be on disk yet.
struct Done {
    report: ResolveReport,
    nodes: Vec<NodeId>,
    until_ms: u64,
}

/// How far it has come.
enum Stage {
    Waits,
    Contents(Box<VersionContents>),
    Written(Done),
}

/// What is to stand at the path and beside it.
enum Outcome<'a> {
    /// One version; everything else at the path goes.
    One(&'a Candidate),
    /// The shown version, and these beside it.
    Both(&'a Candidate, Vec<(&'a Candidate, Name)>),
    /// A content that was made from all versions.
    Edited(NodeId, Content),
}

type Tried<T> = Result<Result<T, CommandError>, StoreError>;

impl Device {
    /// Begins to settle a conflict; a waiter goes on with it.
    pub(in super::super) fn settle(&mut self, path: &Path, purpose: Purpose, now: Now) {
        let place = self.place_of(path).and_then(|(space, rest)| {
            let shown = path.display();
            if rest.is_root() {
                return Err(CommandError::usage(format!(
                    "{shown} is the root of a space"
                )));
            }
            match self.worktrees.get_mut(&space) {
                Some(worktree) => worktree.request_scan(rest.clone(), now),
                None => {
                    let what = format!("the root above {shown} cannot be used now");
                    return Err(CommandError::failed(what).with_hint("`pacsync status` says why"));
                }
            }
            Ok((space, rest))
        });
        let (space, rest) = match place {
            Ok(place) => place,
            Err(error) => return purpose.fail(error),
        };
        self.waiters.push(Waiter::Settle(Settle {
            purpose,
            typed: path.to_owned(),
            space,
            path: rest,
            scanned: false,
            asked: BTreeSet::new(),
            lacked_since_ms: None,
            written: None,
            next_ms: now.ms,
        }));
    }

    pub(in super::super) fn check_settle(
        &mut self,
        mut settle: Settle,
        now: Now,
    ) -> Result<Option<Waiter>, StoreError> {
        settle.next_ms = now.ms + TICK_MS;
        if !settle.scanned && !self.all_scanned() {
            return Ok(Some(Waiter::Settle(settle)));
        }
        settle.scanned = true;
        if settle.written.is_none() {
            match self.advance_settle(&mut settle, now)? {
                Ok(Stage::Waits) => {}
                Ok(Stage::Contents(contents)) => {
                    if let Purpose::Contents(reply) = settle.purpose {
                        let _ = reply.send(Ok(*contents));
                    }
                    return Ok(None);
                }
                Ok(Stage::Written(done)) => settle.written = Some(done),
                Err(error) => {
                    settle.purpose.fail(error);
                    return Ok(None);
                }
            }
        }
        let Some(done) = settle.written else {
            return Ok(Some(Waiter::Settle(settle)));
        };
        let on_disk = self.is_rendered(&settle.space, &done.nodes)?;
        if !on_disk && now.ms < done.until_ms {
            settle.written = Some(done);
            return Ok(Some(Waiter::Settle(settle)));
        }
        if let Purpose::Keep(_, reply) = settle.purpose {
            let _ = reply.send(Ok(ResolveReport {
                on_disk,
                ..done.report
            }));
        }
        Ok(None)
    }

    fn advance_settle(&mut self, settle: &mut Settle, now: Now) -> Tried<Stage> {
        let (space, path) = (settle.space, settle.path.clone());
        let standing = {
            let tx = self.store.read()?;
            let tree = TreeReader::open(&tx, self.store.space(&space)?.no)?;
            self.standing_at(&space, &tree, &path)?
        };
        let Some(standing) = standing.filter(Standing::is_conflict) else {
            let what = format!("{} is not in conflict", settle.typed.display());
            let hint = "`pacsync conflicts` lists what is";
            return Ok(Err(CommandError::failed(what).with_hint(hint)));
        };
        let keep = match &settle.purpose {
            Purpose::Keep(keep, _) => Some(keep.clone()),
            Purpose::Contents(_) => None,
        };
        match keep {
            None => self.hand_out(settle, &standing, now),
            Some(ResolveKeep::Edited { bytes, seen }) => {
                if let Err(error) = may_be_edited(&standing, &seen) {
                    return Ok(Err(error));
                }
                let Some(node) = standing.nodes().first().copied() else {
                    return Ok(Ok(Stage::Waits));
                };
                let Some(worktree) = self.worktrees.get_mut(&space) else {
                    return Ok(Ok(Stage::Waits));
                };
                let mut cx = Context {
                    store: &mut self.store,
                    packs: &mut self.packs,
                    rng: &mut *self.rng,
                    now,
                };
                match worktree.pack_bytes(&mut cx, &bytes) {
                    Ok(content) => {
                        self.write_outcome(settle, &standing, &Outcome::Edited(node, content), now)
                    }
                    Err(error @ StoreError::Packs(_)) => Ok(Err(store_error(&error))),
                    Err(error) => Err(error),
                }
            }
            Some(ResolveKeep::Version(word)) => {
                let choice = match self.choose(&standing, &word) {
                    Ok(choice) => choice,
                    Err(error) => return Ok(Err(error)),
                };
                let needed: Vec<&Candidate> = match &choice {
                    Choice::One(one) => vec![*one],
                    Choice::Both => standing.candidates.iter().collect(),
                };
                let needed = needed.into_iter().filter(|candidate| !candidate.shown);
                match self.fetch_versions(settle, &standing, needed, now)? {
                    Ok(true) => {}
                    Ok(false) => return Ok(Ok(Stage::Waits)),
                    Err(error) => return Ok(Err(error)),
                }
                let outcome = match choice {
                    Choice::One(one) => Outcome::One(one),
                    Choice::Both => match self.beside(&space, &path, &standing)? {
                        Ok(outcome) => outcome,
                        Err(error) => return Ok(Err(error)),
                    },
                };
                self.write_outcome(settle, &standing, &outcome, now)
            }
        }
    }

    /// Asks for versions that are not here; true if all are.
    fn fetch_versions<'a>(
        &mut self,
        settle: &mut Settle,
        standing: &Standing,
        needed: impl Iterator<Item = &'a Candidate>,
        now: Now,
    ) -> Tried<bool> {
        let peers: Vec<Replica> = self
            .peers
            .values()
            .filter(|peer| peer.standing == PeerStanding::Known)
            .map(|peer| peer.replica())
            .collect();
        let mut all_here = true;
        let mut lacked = None;
        for candidate in needed {
            let Some(content) = &candidate.content else {
                continue;
            };
            let Some(worktree) = self.worktrees.get_mut(&settle.space) else {
                return Ok(Ok(false));
            };
            let id = candidate.id(&standing.candidates);
            if settle.asked.contains(&content.id)
                && !worktree.is_fetching(&content.id)
                && !worktree.can_read(&self.store, &self.packs, content)?
            {
                let what = format!("version {id} could not be kept on this device");
                let hint = "make room on the disk of the daemon's home";
                return Ok(Err(CommandError::failed(what).with_hint(hint)));
            }
            match worktree.wish(&self.store, &self.packs, content)? {
                Wished::Here => continue,
                Wished::NoRoom => {
                    let what = format!("there is no room on the disk for version {id}");
                    let hint = format!("it has {} bytes; make room", content.size);
                    return Ok(Err(CommandError::failed(what).with_hint(hint)));
                }
                Wished::Asked => {}
            }
            all_here = false;
            settle.asked.insert(content.id);
            if peers
                .iter()
                .all(|peer| worktree.is_lacked_by(peer, &content.id))
            {
                lacked = Some(candidate);
            }
        }
        let Some(candidate) = lacked else {
            return Ok(Ok(all_here));
        };
        let since = *settle.lacked_since_ms.get_or_insert(now.ms);
        if !peers.is_empty() && now.ms < since + LACKED_MS {
            return Ok(Ok(false));
        }
        Ok(Err(self.nobody_has(standing, candidate)))
    }

    fn nobody_has(&self, standing: &Standing, candidate: &Candidate) -> CommandError {
        let id = candidate.id(&standing.candidates);
        let own = self.store.identity().keys.id();
        let writers: BTreeSet<DeviceId> = candidate.written.iter().map(|w| w.device).collect();
        let mut away = vec![];
        let mut present = vec![];
        for writer in &writers {
            match *writer == own || self.peer_of(writer).is_some() {
                true => present.push(self.device_name(writer)),
                false => away.push(self.device_name(writer)),
            }
        }
        if away.is_empty() {
            let what = format!(
                "the content of version {id} is kept nowhere that can be reached: {} has \
                 overwritten it",
                present.join(", ")
            );
            return CommandError::failed(what).with_hint("keep another version");
        }
        let what = format!(
            "the content of version {id} is not here: {} has it and is not connected",
            away.join(", ")
        );
        CommandError::failed(what).with_hint("connect that device, or keep another version")
    }

    /// Names for everything that does not show.
    fn beside<'a>(
        &self,
        space: &SpaceId,
        path: &RelPath,
        standing: &'a Standing,
    ) -> Tried<Outcome<'a>> {
        let tx = self.store.read()?;
        let tree = TreeReader::open(&tx, self.store.space(space)?.no)?;
        let Some(worktree) = self.worktrees.get(space) else {
            return Ok(Err(CommandError::failed("the space is not attached here")));
        };
        let dir = path.parent().unwrap_or_default();
        let mut taken: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut named = vec![];
        let mut candidates = standing.candidates.iter();
        let Some(shown) = candidates.next() else {
            return Ok(Err(CommandError::failed("nothing is there")));
        };
        for candidate in candidates {
            let writer = candidate.written.first();
            let device = writer.map_or_else(String::new, |w| self.device_name(&w.device));
            let time_ms = writer.map_or(0, |w| w.time_ms);
            let mut found = None;
            for number in 1..=NAMES_MAX {
                let max = worktree.probe().name_max;
                let Some(name) = names::beside(&standing.name, &device, time_ms, number, max)
                else {
                    break;
                };
                // Neither the tree's nor what is on disk and nobody's.
                let free = !taken.contains(name.as_bytes())
                    && tree.all_at(&standing.parent, &name)?.is_empty()
                    && dir
                        .join(name.as_bytes())
                        .is_ok_and(|path| matches!(worktree.disk().stat(&path), Ok(None)));
                if free {
                    found = Some(name);
                    break;
                }
            }
            let Some(name) = found else {
                let what = format!("there is no free name beside {path}");
                return Ok(Err(
                    CommandError::failed(what).with_hint("keep one of the versions")
                ));
            };
            taken.insert(name.as_bytes().to_vec());
            named.push((candidate, name));
        }
        Ok(Ok(Outcome::Both(shown, named)))
    }

    fn write_outcome(
        &mut self,
        settle: &Settle,
        standing: &Standing,
        outcome: &Outcome<'_>,
        now: Now,
    ) -> Tried<Stage> {
        let space = settle.space;
        let no = self.store.space(&space)?.no;
        let mut txn = self.store.begin()?;
        let stamp = txn.next_stamp(&space)?;
        let made = {
            let tree = txn.tree(no)?;
            Made::from(&tree, standing, outcome, stamp, &mut *self.rng)?
        };
        let changes = made.rows.len() as u64;
        let entries: Vec<Entry> = made
            .rows
            .iter()
            .map(|row| Entry::Row(row.to_bytes()))
            .collect();
        if made.buries_directory {
            // The user has chosen: no other device asks again.
            for part in entries.chunks(CONFIRMED_ROWS) {
                let mut entries = part.to_vec();
                entries.push(Entry::DeletesConfirmed);
                txn.append(&space, entries, now.ms, &mut *self.rng)?;
            }
        } else {
            txn.append(&space, entries, now.ms, &mut *self.rng)?;
        }
        let committed = txn.commit()?;
        self.committed(committed, None, now)?;
        let name = self.space_name(&space);
        self.event(EventKind::Recorded {
            space: name.clone(),
            changes,
        });
        let dir = settle.path.parent().unwrap_or_default();
        let (kept, named) = match outcome {
            Outcome::One(one) => (Some(one.id(&standing.candidates)), &[][..]),
            Outcome::Both(shown, named) => (Some(shown.id(&standing.candidates)), &named[..]),
            Outcome::Edited(..) => (None, &[][..]),
        };
        let beside = named
            .iter()
            .filter_map(|(_, name)| dir.join(name.as_bytes()).ok())
            .map(|path| TextPath::from_bytes(path.as_bytes()))
            .collect();
        Ok(Ok(Stage::Written(Done {
            report: ResolveReport {
                space: name,
                path: TextPath::from_bytes(settle.path.as_bytes()),
                kept,
                beside,
                on_disk: false,
            },
            nodes: made.nodes,
            until_ms: now.ms + DISK_MS,
        })))
    }

    /// Whether the disk shows what the tree says of some nodes.
    pub(in super::super) fn is_rendered(
        &self,
        space: &SpaceId,
        nodes: &[NodeId],
    ) -> Result<bool, StoreError> {
        let no = self.store.space(space)?.no;
        let tx = self.store.read()?;
        let tree = TreeReader::open(&tx, no)?;
        let index = IndexReader::new(&tx, no);
        for node in nodes {
            let Some(state) = tree.node(node)? else {
                continue;
            };
            let shows = match index.entry_of(&state.id)? {
                None => state.dead || !state.shown,
                Some((parent, name, entry)) => {
                    let wanted = state.content.as_ref().map(|shown| shown.content.id);
                    let place = state.name.as_ref().map(Name::as_bytes);
                    !state.dead
                        && state.shown
                        && (entry.content == wanted || wanted.is_none())
                        && (state.parent, place) == (Some(parent), Some(name.as_slice()))
                }
            };
            if !shows {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn hand_out(&mut self, settle: &mut Settle, standing: &Standing, now: Now) -> Tried<Stage> {
        let seen: Vec<String> = standing
            .candidates
            .iter()
            .map(|candidate| candidate.row.to_string())
            .collect();
        if let Err(error) = may_be_edited(standing, &seen) {
            return Ok(Err(error));
        }
        match self.fetch_versions(settle, standing, standing.candidates.iter(), now)? {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(Stage::Waits)),
            Err(error) => return Ok(Err(error)),
        }
        let space = settle.space;
        let tx = self.store.read()?;
        let tree = TreeReader::open(&tx, self.store.space(&space)?.no)?;
        let conflict = self.describe(&space, &settle.path, &tree, standing)?;
        let Some(worktree) = self.worktrees.get(&space) else {
            return Ok(Ok(Stage::Waits));
        };
        let read =
            |content: &Content| worktree.read_bytes(&self.store, &self.packs, content, EDIT_MAX);
        let mut contents = vec![];
        for candidate in &standing.candidates {
            let Some(content) = &candidate.content else {
                continue;
            };
            let id = candidate.id(&standing.candidates);
            let Some(bytes) = read(content)? else {
                let what = format!("version {id} cannot be read just now");
                return Ok(Err(CommandError::failed(what).with_hint("try it again")));
            };
            contents.push(VersionContent { id, bytes });
        }
        let mut base = None;
        if let Some(node) = standing.nodes().first()
            && let Some(found) = tree.common_base(&tree.versions(node)?)?
            && let Some(bytes) = read(&found.content)?
        {
            let id = found.row.short();
            base = Some(VersionContent { id, bytes });
        }
        Ok(Ok(Stage::Contents(Box::new(VersionContents {
            conflict,
            contents,
            base,
        }))))
    }
}

/// Whether what stands there are contents of one file that a person can edit, and just those.
fn may_be_edited(standing: &Standing, seen: &[String]) -> Result<(), CommandError> {
    let all = &standing.candidates;
    let hint = "settle it with `--keep mine|theirs|both|VERSION`";
    if standing.nodes().len() > 1 || all.iter().any(|c| c.kind != Kind::File) {
        let what = "only the contents of one file can be edited into one";
        return Err(CommandError::failed(what).with_hint(hint));
    }
    let size = |c: &Candidate| c.content.as_ref().map_or(0, |content| content.size);
    if all.len() > EDIT_VERSIONS_MAX || all.iter().any(|c| size(c) > EDIT_MAX) {
        let what = format!(
            "more than {EDIT_VERSIONS_MAX} versions, or one over {} MiB, cannot be edited",
            EDIT_MAX >> 20
        );
        return Err(CommandError::failed(what).with_hint(hint));
    }
    let now: BTreeSet<String> = all.iter().map(|c| c.row.to_string()).collect();
    if now != seen.iter().cloned().collect() {
        let what = "other versions stand there than those that were edited";
        return Err(CommandError::needs_user(what).with_hint("edit the new ones"));
    }
    Ok(())
}

/// The rows of an outcome.
struct Made {
    rows: Vec<Row>,
    /// What has to show on disk, or to be gone from it.
    nodes: Vec<NodeId>,
    buries_directory: bool,
}

impl Made {
    fn from<B: Backend>(
        tree: &Tree<B>,
        standing: &Standing,
        outcome: &Outcome<'_>,
        mut stamp: Stamp,
        rng: &mut dyn Entropy,
    ) -> Result<Self, TreeError> {
        let mut made = Self {
            rows: vec![],
            nodes: standing.nodes(),
            buries_directory: false,
        };
        match outcome {
            Outcome::Edited(node, content) => {
                let keys = Keys {
                    content: Some(content.clone()),
                    ..Keys::default()
                };
                made.rows = tree.write_over(node, &keys)?;
            }
            Outcome::One(one) => {
                made.rows = tree.write_over(&one.node, &kept(one))?;
                for candidate in &standing.candidates {
                    if candidate.node != one.node {
                        made.buries_directory |= candidate.kind == Kind::Dir;
                    }
                }
                for node in standing.nodes() {
                    if node != one.node {
                        made.rows.extend(tree.bury(&node)?);
                    }
                }
            }
            Outcome::Both(shown, named) => {
                made.rows = tree.write_over(&shown.node, &kept(shown))?;
                let mut at_home = BTreeSet::from([shown.node]);
                for (candidate, name) in named {
                    let mut keys = kept(candidate);
                    keys.at = Some(At {
                        parent: standing.parent,
                        name: name.clone(),
                        stamp,
                    });
                    stamp += 1;
                    if at_home.insert(candidate.node) {
                        made.rows.extend(tree.write_over(&candidate.node, &keys)?);
                        continue;
                    }
                    let node = NodeId::from_bytes(random(rng));
                    keys.kind = Some(candidate.kind);
                    keys.life = Some(Life::Live);
                    keys.mode = tree.node(&candidate.node)?.and_then(|state| state.mode);
                    made.rows.push(Row::new(node, vec![], keys));
                    made.nodes.push(node);
                }
            }
        }
        Ok(made)
    }
}

/// What is kept is written anew: so it outlives whoever gives it up without having seen this.
fn kept(candidate: &Candidate) -> Keys {
    Keys {
        content: candidate.content.clone(),
        life: candidate.content.is_none().then_some(Life::Live),
        ..Keys::default()
    }
}

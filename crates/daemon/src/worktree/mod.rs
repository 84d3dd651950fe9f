//! The worktree engine: one space's tree as real files beneath a root directory.
//!
//! Two directions. *Scan*: what changed on disk becomes rows (`scan`, `settle`). *Apply*: what
//! changed in the tree becomes files (`plan`, `apply`, `transfer`). Both run on one thread in bounded
//! steps; clock, entropy and disk are arguments. Never here: sockets, sessions, tokio.

mod apply;
mod batch;
mod births;
mod breaker;
mod circles;
mod content;
mod displaced;
mod exact;
mod faults;
mod history;
mod ignore;
mod keep;
mod lacks;
mod merging;
mod moves;
mod notes;
mod plan;
mod queue;
mod recover;
mod scan;
mod settle;
mod texts;
mod tracking;
mod transfer;
mod unify;
mod unshown;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use pacsync_protocol::content::IdKeys;
use pacsync_protocol::crypto::{Entropy, random};
use pacsync_protocol::row::RESERVED_PREFIX;
use pacsync_protocol::{ContentId, NodeId, SpaceId};
use pacsync_store::content::packs::PackStore;
use pacsync_store::index::{FileIdentity, RootIdentity};
use pacsync_store::{Committed, Store, StoreError, Txn};

use crate::disk::{Disk, DiskError, FileKind, FsEvent, Identity, Probe, RelPath};

pub use breaker::Held;
pub use content::read_for_peer;
pub use history::{Did, Lost, Past, Version};
use ignore::Ignores;
pub use keep::Wished;
pub use lacks::Replica;
use queue::Queue;
pub use recover::OpenError;
pub use tracking::{Class, Tracking};
pub use transfer::Request;
use transfer::Transfers;

/// How long a vacated path may be occupied again, or a new one turn out to be a move.
pub const SETTLE_MS: u64 = 40;
/// How long a vacated path waits before it counts as deleted.
pub const VACATED_MS: u64 = 100;
/// Quiet time after a write without close.
pub const QUIET_MS: u64 = 500;
/// Longest wait for quiet.
pub const QUIET_MAX_MS: u64 = 30_000;
/// How long a file put aside by an apply is kept before it is looked at again.
pub const DISPLACED_MS: u64 = 2_000;
/// Time between attempts at what failed.
pub const RETRY_MS: u64 = 2_000;
/// Time between looks at everything, where every directory is watched.
pub const VERIFY_MS: u64 = 3_600_000;
/// Time between looks at everything where not every directory can be watched.
pub const UNWATCHED_MS: u64 = 60_000;

/// The time, passed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970.
    pub ms: u64,
    /// Nanoseconds since 1970.
    pub ns: i64,
}

/// What a step works on besides the worktree itself.
pub struct Context<'a> {
    /// The replica.
    pub store: &'a mut Store,
    /// Packs of the device.
    pub packs: &'a mut PackStore,
    /// Entropy.
    pub rng: &'a mut dyn Entropy,
    /// The time.
    pub now: Now,
}

/// Something about a path that needs to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; the root's own problems have the root's path.
    pub path: RelPath,
    /// What.
    pub what: String,
    /// False if all that can be done is done: the disk cannot show what is on this device.
    pub in_the_way: bool,
}

/// Files with other hard links that an apply replaced, since the start.
#[derive(Debug, Default)]
pub struct BrokenLinks {
    /// How many.
    pub count: u64,
    /// The first ones.
    pub first: BTreeSet<RelPath>,
}

/// Most paths of broken hard links that are kept.
const BROKEN_LINKS_MAX: usize = 20;

/// What a step did.
#[derive(Debug, Default)]
pub struct Progress {
    /// What its transactions committed.
    pub committed: Vec<Committed>,
    /// Paths that were brought up to date on disk, the first ones of a big batch.
    pub applied: Vec<RelPath>,
    /// True if there may be more to do at once.
    pub more: bool,
}

/// Most paths that one step names as applied.
const APPLIED_MAX: usize = 256;

/// Whether the tree's content may be rendered and scanned yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waits until the sponsor's vector is applied.
    Joining,
    /// The first scan binds what is on disk to what the tree has.
    FirstScan,
    /// In normal use.
    Live,
}

/// One space's worktree.
pub struct Worktree {
    space: SpaceId,
    no: u32,
    disk: Box<dyn Disk>,
    probe: Probe,
    keys: IdKeys,
    root: RootIdentity,
    tracking: Tracking,
    phase: Phase,
    ignores: Ignores,
    queue: Queue,
    /// Directories being walked, innermost last.
    walks: Vec<scan::Walk>,
    /// Vacated places: (directory, name) → when to decide.
    vacated: BTreeMap<(NodeId, Vec<u8>), u64>,
    last_vacated_ms: u64,
    burst_since_ms: u64,
    /// New paths that look like a move, until when.
    settling: BTreeMap<RelPath, u64>,
    /// Nodes whose rendering is to be brought up to date.
    ready: BTreeSet<NodeId>,
    order: VecDeque<NodeId>,
    /// Content → nodes that wait for it.
    waiting: BTreeMap<ContentId, Waiting>,
    /// Node → the content that it waits for.
    waiting_of: BTreeMap<NodeId, ContentId>,
    /// Small contents that arrived and are not yet on disk.
    arrived: BTreeMap<ContentId, Arc<Vec<u8>>>,
    arrived_bytes: usize,
    transfers: Transfers,
    merging: merging::Merging,
    /// Nodes that could not be rendered: when to try again.
    stalled: BTreeMap<NodeId, u64>,
    /// Those of them whose turn comes after another's, by that one.
    behind: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Nodes that wait for a look at a file that became one with them, and until when.
    shrinking: BTreeMap<NodeId, u64>,
    circles: circles::Circles,
    faults: faults::Faults,
    breaker: breaker::Breaker,
    displaced: displaced::Asides,
    /// Temporary files that may be somewhere: name → number of the note.
    strays: BTreeMap<Vec<u8>, u64>,
    /// It is to end: nothing more is applied.
    closing: bool,
    /// Nodes that a first join has met with another content: where, and which of the pac's
    /// contents is here. Not over a restart: then the two stand side by side.
    bind_later: BTreeMap<NodeId, (RelPath, Option<ContentId>)>,
    /// Those of them that could not be removed.
    stuck: BTreeSet<Vec<u8>>,
    /// Paths never to touch: the daemon's own home, as (device, inode).
    own_home: Option<(u64, u64)>,
    /// Roots of other spaces beneath this one, by device and inode: wherever they are moved they
    /// are not this space's.
    other_roots: BTreeMap<(u64, u64), String>,
    /// Where such a root was met that is not at its place.
    moved_roots: BTreeMap<RelPath, String>,
    /// Directories that are homes of daemons, whose keys must not leave them.
    homes: BTreeSet<RelPath>,
    offsets: content::Offsets,
    /// Dead directories that hold only what is ignored: they stay on disk, unknown.
    leftovers: BTreeSet<(NodeId, Vec<u8>)>,
    /// Names of the directory that was looked at last, where a name may stand for another.
    exact: exact::ExactNames,
    broken_links: BrokenLinks,
    /// Set when the root itself cannot be used.
    root_trouble: Option<String>,
    wants_reopen: bool,
    /// Some directories could not be watched.
    unwatched: bool,
    /// When everything is looked at whatever the watches told.
    verify_at: u64,
    /// Paths that became tracked and were not looked at since: they are bound as at a first join.
    binding: Vec<RelPath>,
    /// What changed on disk before the start is known: only then anything is applied.
    scanned_once: bool,
    check_root_at: u64,
    /// When the versions of all conflicts are looked at again.
    losers_at: u64,
    keeping: texts::Keeping,
    /// Contents that history asked for.
    wanted_versions: BTreeSet<ContentId>,
}

#[derive(Debug, Clone)]
struct Waiting {
    size: u64,
    nodes: BTreeSet<NodeId>,
    /// Losers of conflicts and other content that only packs hold.
    for_packs: bool,
}

impl Worktree {
    /// The space.
    pub fn space(&self) -> SpaceId {
        self.space
    }

    /// What the root can store.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// Where the join stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What is tracked.
    pub fn tracking(&self) -> &Tracking {
        &self.tracking
    }

    /// The disk.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Takes a hint from the disk.
    pub fn event(&mut self, event: FsEvent, now: Now) {
        match event {
            FsEvent::Written(path) => {
                self.note_ignore_file(&path, now);
                self.queue.soon(path, now.ms);
            }
            FsEvent::Modified(path) => self.queue.quiet(path, now.ms),
            FsEvent::Created(path) if self.is_being_written(&path) => {
                self.queue.quiet(path, now.ms);
            }
            FsEvent::Created(path) | FsEvent::Touched(path) => {
                self.note_ignore_file(&path, now);
                self.queue.touched(path, now.ms);
            }
            FsEvent::DirAppeared(path) => self.queue.deep(path, now.ms),
            FsEvent::Overflow => self.queue.deep(RelPath::root(), now.ms),
            FsEvent::RootGone => {
                // Until the look at it says otherwise; this also wakes the look.
                self.root_trouble = Some("the root directory was moved or removed".into());
                self.check_root_at = now.ms;
            }
        }
    }

    /// Whether a file that was just made will be closed by its writer: what is read before is
    /// nothing that anybody saved. A further link to a file has no writer.
    fn is_being_written(&self, path: &RelPath) -> bool {
        self.disk
            .stat(path)
            .is_ok_and(|stat| stat.is_some_and(|s| s.kind == FileKind::File && s.nlink == 1))
    }

    fn note_ignore_file(&mut self, path: &RelPath, now: Now) {
        if path.name() == Some(ignore::IGNORE_FILE)
            && let Some(dir) = path.parent()
        {
            // What was ignored may not be any more.
            self.queue.deep(dir, now.ms);
        }
    }

    /// Asks for a look at everything tracked at or beneath a path.
    pub fn request_scan(&mut self, path: RelPath, now: Now) {
        self.queue.deep(path, now.ms);
    }

    /// Lets what is settling settle at once: the user asked to be told what is there now.
    pub fn hurry(&mut self, now: Now) {
        self.queue.hurry(now.ms);
        if self.walks.is_empty() && self.queue.is_idle_at(now.ms) {
            for due in self.settling.values_mut().chain(self.vacated.values_mut()) {
                *due = (*due).min(now.ms);
            }
            self.last_vacated_ms = 0;
        }
    }

    /// True if nothing on disk waits to be looked at, except what is being written right now.
    pub fn is_scanned(&self) -> bool {
        // Without its root there is nothing to look at.
        if self.root_trouble.is_some() {
            return true;
        }
        self.walks.is_empty()
            && self.queue.is_settled()
            && self.vacated.is_empty()
            && self.settling.is_empty()
    }

    /// Marks nodes as changed in the tree.
    pub fn mark(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            self.stalled.remove(&node);
            if self.ready.insert(node) {
                self.order.push_back(node);
            }
        }
    }

    /// True if the disk shows what the tree says.
    pub fn is_applied(&self) -> bool {
        self.phase == Phase::Live
            && self.scanned_once
            && self.ready.is_empty()
            && self.waiting_of.is_empty()
            && self.stalled.is_empty()
            && self.transfers.is_empty()
            && !self.faults.has_nodes()
            && self.breaker.held().is_empty()
            && self.root_trouble.is_none()
    }

    /// Nodes that wait for content or for another attempt, and those in line.
    pub fn pending(&self) -> u64 {
        (self.ready.len() + self.waiting_of.len() + self.stalled.len()) as u64
    }

    /// Big contents under way: (path, bytes here, size).
    pub fn transfer_paths(&self) -> Vec<(RelPath, u64, u64)> {
        self.transfers.paths()
    }

    /// Hard links that applies have broken: a replaced file is another one under its other names.
    pub fn broken_links(&self) -> &BrokenLinks {
        &self.broken_links
    }

    fn note_broken_link(&mut self, path: &RelPath) {
        let first = &mut self.broken_links.first;
        let known = first.contains(path);
        if !known && first.len() < BROKEN_LINKS_MAX {
            first.insert(path.clone());
        }
        self.broken_links.count += u64::from(!known);
    }

    /// What is wrong, by path.
    pub fn problems(&self) -> Vec<Problem> {
        let root = self.root_trouble.iter().map(|what| Problem {
            path: RelPath::root(),
            what: what.clone(),
            in_the_way: true,
        });
        let unwatched = self.unwatched.then(|| Problem {
            path: RelPath::root(),
            what: "the system's limit of watched directories is reached: raise \
                   fs.inotify.max_user_watches; until then some changes are found only by a scan \
                   once a minute"
                .into(),
            in_the_way: true,
        });
        let faults = self.faults.iter().map(|(path, what, in_the_way)| Problem {
            path: path.clone(),
            what: what.into(),
            in_the_way,
        });
        let stands = |path: &RelPath| matches!(self.disk.stat(path), Ok(Some(_)));
        let homes = self.homes.iter().filter(|path| stands(path));
        let homes = homes.map(|path| Problem {
            path: path.clone(),
            what:
                "a home of pacsync, with the keys of a device: what is in it is not synced; keep \
                   it outside of what is tracked"
                    .into(),
            in_the_way: false,
        });
        let is_told =
            |path: &RelPath| self.tracking.class(path) != Class::Untracked && stands(path);
        let moved = self.moved_roots.iter().filter(|(path, _)| is_told(path));
        let moved = moved.map(|(path, space)| Problem {
            path: path.clone(),
            what: format!(
                "the root of the space {space} was moved here: move it back, or attach the space \
                 here (`pacsync space attach {space} --at DIR`)"
            ),
            in_the_way: false,
        });
        let all = root.chain(unwatched).chain(faults);
        all.chain(homes).chain(moved).collect()
    }

    /// Begins to end: nothing more is applied, and what was on its way is dropped with its
    /// temporary files.
    pub fn close(&mut self) {
        self.closing = true;
        for path in self.transfers.drop_all() {
            if let Err(error) = self.disk.unlink(&path) {
                tracing::debug!(%path, %error, "the temporary file of a transfer stays");
            }
        }
    }

    /// Goes on after all.
    pub fn reopen(&mut self) {
        self.closing = false;
        // What was on its way was dropped.
        self.begin_others();
    }

    /// Whether nothing is left within reach that only the index knows of: what applies have put
    /// aside may be the only copy of an edit.
    pub fn is_closed(&self) -> bool {
        self.displaced.is_empty() || self.root_trouble.is_some()
    }

    /// Tells which directories are roots of other spaces: device and inode, and the space's name.
    pub fn set_other_roots(&mut self, roots: BTreeMap<(u64, u64), String>) {
        self.other_roots = roots;
        let disk = &self.disk;
        let roots = &self.other_roots;
        self.moved_roots.retain(|path, _| {
            let found = disk.stat(path).ok().flatten();
            found.is_some_and(|stat| roots.contains_key(&stat.identity.inode()))
        });
    }

    /// False if the root is missing, or another directory stands at its place.
    pub fn has_root(&self) -> bool {
        self.root_trouble.is_none()
    }

    /// Deletes that wait for the user.
    pub fn held(&self) -> &Held {
        self.breaker.held()
    }

    /// True if the directory at the root's place is another than the one that is open: the disk
    /// must be opened anew.
    pub fn wants_reopen(&self) -> bool {
        self.wants_reopen
    }

    /// When to call [`Worktree::step`] again at the latest.
    pub fn next_due(&self) -> Option<u64> {
        if self.phase == Phase::Joining {
            return None;
        }
        let settled = self
            .settling
            .values()
            .chain(self.vacated.values())
            .copied()
            .min();
        let faults = self.faults.next_due();
        let verify = (self.phase == Phase::Live).then_some(self.verify_at);
        let stalled = self.stalled.values().copied().min();
        let displaced = self.displaced.next_due();
        let is_live = self.phase == Phase::Live && self.scanned_once;
        let keeping = self.keeping.next_due().filter(|_| is_live);
        let root = self.root_trouble.is_some().then_some(self.check_root_at);
        if self.root_trouble.is_some() {
            return root;
        }
        [
            self.queue.next_due(),
            settled,
            faults,
            stalled,
            displaced,
            verify,
            keeping,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// True if [`Worktree::step`] has something to do at once.
    pub fn is_busy(&self, now: Now) -> bool {
        if self.root_trouble.is_some() {
            return self.check_root_at <= now.ms;
        }
        self.phase != Phase::Joining
            && (!self.walks.is_empty()
                || (self.phase == Phase::Live
                    && self.scanned_once
                    && !self.closing
                    && (!self.order.is_empty() || self.transfers.kept.has_work()))
                || self.next_due().is_some_and(|due| due <= now.ms))
    }

    /// Does a bounded piece of work.
    ///
    /// # Errors
    /// [`StoreError`]; trouble with the disk becomes a [`Problem`] instead.
    pub fn step(&mut self, cx: &mut Context<'_>) -> Result<Progress, StoreError> {
        let mut progress = Progress::default();
        if self.phase == Phase::Joining || !self.root_is_usable(cx) {
            return Ok(progress);
        }
        self.retry_faults(cx.now);
        self.verify(cx.now);
        self.exact.forget();
        self.scan_step(cx, &mut progress)?;
        if self.walks.is_empty() && self.queue.is_idle_at(cx.now.ms) {
            self.settle_step(cx, &mut progress)?;
            let settled = self.vacated.is_empty() && self.settling.is_empty();
            let all_seen = settled && self.walks.is_empty() && self.queue.is_idle_at(cx.now.ms);
            if all_seen {
                self.end_binding(cx.store)?;
                self.scanned_once = true;
                self.forget_strays(cx.store)?;
            }
            if self.phase == Phase::FirstScan && settled {
                self.finish_first_scan(cx)?;
            }
        }
        if self.phase == Phase::Live && self.scanned_once && !self.closing {
            self.look_at_conflicts(cx)?;
            self.apply_step(cx, &mut progress)?;
            self.keep_step(cx)?;
        }
        self.displaced_step(cx, &mut progress)?;
        if self.phase == Phase::Live && self.scanned_once {
            self.keep_texts_step(cx)?;
        }
        progress.more = self.is_busy(cx.now);
        Ok(progress)
    }

    /// Events get lost: from time to time everything is looked at.
    fn verify(&mut self, now: Now) {
        if self.verify_at > now.ms || self.phase != Phase::Live {
            return;
        }
        self.verify_at = now.ms
            + if self.unwatched {
                UNWATCHED_MS
            } else {
                VERIFY_MS
            };
        if self.scanned_once && self.walks.is_empty() {
            self.queue.deep(RelPath::root(), now.ms);
        }
    }

    fn retry_faults(&mut self, now: Now) {
        for retry in self.faults.take_due(now) {
            match retry {
                faults::Retry::Render(node) => self.mark([node]),
                faults::Retry::Look(path) => self.queue.deep(path, now.ms),
            }
        }
        let due: Vec<NodeId> = self
            .stalled
            .iter()
            .filter(|(_, at)| **at <= now.ms)
            .map(|(n, _)| *n)
            .collect();
        self.mark(due);
        if self.stalled.is_empty() {
            self.shrinking.clear();
            self.behind.clear();
        }
    }

    /// Notes that something could not be read; it is looked at again by itself.
    fn fault(&mut self, path: &RelPath, what: String, now: Now) {
        self.faults.note_read(path, what, now);
    }

    /// Notes that a node could not be rendered; it is tried again by itself.
    fn node_fault(&mut self, path: &RelPath, node: NodeId, what: String, now: Now) {
        self.faults.note_node(path, node, what, now);
    }

    fn disk_fault(&mut self, error: &DiskError, path: &RelPath, now: Now) {
        tracing::debug!(%path, %error, "disk");
        self.fault(path, describe(error), now);
    }

    /// Looks whether the root is still the directory that it was.
    fn root_is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        if cx.now.ms < self.check_root_at {
            return self.root_trouble.is_none();
        }
        self.check_root_at = cx.now.ms + RETRY_MS;
        let before = self.root_trouble.take();
        let open = self.disk.dir_identity(&RelPath::root());
        match self.disk.root_identity() {
            // What is open counts, not only what stands at the place: the one may be the bare
            // directory beneath a mount.
            Ok(found)
                if open.as_ref().ok().map(|o| (o.dev, o.ino)) != Some((found.dev, found.ino)) =>
            {
                self.wants_reopen = true;
                self.root_trouble =
                    Some("the root was mounted or unmounted: it is opened anew".into());
            }
            Ok(found) if same_root(&self.root, &found) => {}
            Ok(_) => {
                self.root_trouble = Some(
                    "another directory stands at the root's place: nothing is changed until the \
                     old one is back, or the space is attached anew (`pacsync space attach`)"
                        .into(),
                );
            }
            Err(error) if error.is_not_found() => {
                self.root_trouble = Some(
                    "the root directory is missing: nothing is deleted elsewhere until it is back"
                        .into(),
                );
            }
            Err(error) => self.root_trouble = Some(describe(&error)),
        }
        if before.is_some() && self.root_trouble.is_none() {
            self.queue.deep(RelPath::root(), cx.now.ms);
        }
        self.root_trouble.is_none()
    }

    fn finish_first_scan(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let txn = cx.store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            if let Some(mut attachment) = index.attachment()? {
                attachment.first_scan = false;
                index.set_attachment(&attachment)?;
            }
        }
        txn.commit()?;
        self.phase = Phase::Live;
        Ok(())
    }

    /// The sponsor's vector is applied: the first scan may begin.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn joined(&mut self, cx: &mut Context<'_>) -> Result<(), StoreError> {
        let txn = cx.store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            if let Some(mut attachment) = index.attachment()? {
                attachment.join = None;
                attachment.sponsor = None;
                attachment.awaits_sponsor = false;
                index.set_attachment(&attachment)?;
            }
        }
        let found = mark_all(&txn, self.no)?;
        txn.commit()?;
        self.phase = Phase::FirstScan;
        self.queue.deep(RelPath::root(), cx.now.ms);
        self.mark(found);
        Ok(())
    }

    /// What is tracked has changed: forgets what is no longer tracked (files stay), renders and
    /// scans what now is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_tracking(
        &mut self,
        tracking: Tracking,
        cx: &mut Context<'_>,
    ) -> Result<(), StoreError> {
        if tracking == self.tracking {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.tracking, tracking);
        let all = before.entries().chain(self.tracking.entries());
        let new = all.map(|(path, _)| path).filter(|path| {
            self.tracking.class(path) == Class::Tracked && before.class(path) != Class::Tracked
        });
        self.binding.extend(new.cloned());
        let txn = cx.store.begin()?;
        {
            let mut index = txn.index(self.no)?;
            keep_tracked(&mut index, &self.tracking, &self.binding)?;
            let mut dirs = vec![(NodeId::ROOT, RelPath::root())];
            while let Some((dir, path)) = dirs.pop() {
                for (name, entry) in index.children(&dir)? {
                    let Ok(below) = path.join(&name) else {
                        continue;
                    };
                    if self.tracking.class(&below) == Class::Untracked {
                        remember_tree(&mut index, entry)?;
                        forget_tree(&mut index, &dir, &name)?;
                    } else if entry.kind == pacsync_protocol::row::Kind::Dir {
                        dirs.push((entry.node, below));
                    }
                }
            }
        }
        let found = mark_all(&txn, self.no)?;
        txn.commit()?;
        self.queue.deep(RelPath::root(), cx.now.ms);
        self.mark(found);
        Ok(())
    }

    /// What became tracked was looked at: from now on it is as all else is.
    fn end_binding(&mut self, store: &mut Store) -> Result<(), StoreError> {
        if self.binding.is_empty() {
            return Ok(());
        }
        self.binding.clear();
        let txn = store.begin()?;
        keep_tracked(&mut txn.index(self.no)?, &self.tracking, &self.binding)?;
        txn.commit()?;
        Ok(())
    }

    fn temp_name(&self, mark: &[u8], rng: &mut dyn Entropy) -> Vec<u8> {
        const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut name = [RESERVED_PREFIX, mark].concat();
        name.extend(
            random::<16>(rng)
                .iter()
                .map(|b| DIGITS[usize::from(b % 32)]),
        );
        name
    }
}

/// Notes what is tracked and what of it was not looked at yet, for the next start.
fn keep_tracked(
    index: &mut pacsync_store::index::Index<'_>,
    tracking: &Tracking,
    binding: &[RelPath],
) -> Result<(), StoreError> {
    if let Some(mut attachment) = index.attachment()? {
        let tracked = tracking::Tracked::new(tracking, binding);
        attachment.tracked = Some(pacsync_protocol::cbor::encode(&tracked).into());
        index.set_attachment(&attachment)?;
    }
    Ok(())
}

/// Marks every node of the tree as pending, so that also a restart renders it: after an attach,
/// or when what is tracked has changed. Returns them, directories before what is in them.
fn mark_all(txn: &Txn<'_>, no: u32) -> Result<Vec<NodeId>, StoreError> {
    let tree = txn.tree(no)?;
    let mut index = txn.index(no)?;
    let mut dirs = vec![NodeId::ROOT];
    let mut found = vec![];
    while let Some(dir) = dirs.pop() {
        for item in tree.children(&dir)? {
            let (_, node) = item?;
            index.mark_pending(&node)?;
            found.push(node);
            dirs.push(node);
        }
    }
    Ok(found)
}

/// Drops a place and everything beneath it from the index.
/// Notes of the files beneath something that is not tracked any more which versions they are: once
/// they are tracked again, what stands there by then was made of those.
fn remember_tree(
    index: &mut pacsync_store::index::Index<'_>,
    entry: pacsync_store::index::Entry,
) -> Result<(), StoreError> {
    let mut open = vec![entry];
    while let Some(entry) = open.pop() {
        if let Some(row) = entry.row {
            index.note_forgotten(&entry.node, &row)?;
        }
        open.extend(index.children(&entry.node)?.into_iter().map(|(_, e)| e));
    }
    Ok(())
}

fn forget_tree(
    index: &mut pacsync_store::index::Index<'_>,
    parent: &NodeId,
    name: &[u8],
) -> Result<(), StoreError> {
    let mut doomed = vec![(*parent, name.to_vec())];
    while let Some((parent, name)) = doomed.pop() {
        if let Some(entry) = index.remove(&parent, &name)? {
            for (below, _) in index.children(&entry.node)? {
                doomed.push((entry.node, below));
            }
        }
    }
    Ok(())
}

fn describe(error: &DiskError) -> String {
    if error.is_no_space() {
        "the disk is full: make room; it goes on by itself".into()
    } else if error.is_read_only() {
        "the file system is read-only: it goes on when it can be written".into()
    } else if error.is_permission() {
        "permission denied: allow this user to access it; it is tried again by itself".into()
    } else {
        error.to_string()
    }
}

fn file_identity(identity: &Identity) -> FileIdentity {
    FileIdentity {
        dev: identity.dev,
        ino: identity.ino,
        size: identity.size,
        mtime_ns: identity.mtime_ns,
        ctime_ns: identity.ctime_ns,
        btime_ns: identity.btime_ns,
    }
}

pub(crate) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(RESERVED_PREFIX)
}

/// Marks the temporary files of transfers, which hold nothing but what peers sent until they are
/// exchanged with their target.
const TRANSFER_MARK: &[u8] = b"t-";

fn is_transfer_temp(name: &[u8]) -> bool {
    name.strip_prefix(RESERVED_PREFIX)
        .is_some_and(|rest| rest.starts_with(TRANSFER_MARK))
}

/// Whether a directory is the one that was attached. Device numbers change from one start of the
/// system to the next; of some file systems the id does.
fn same_root(known: &RootIdentity, found: &crate::disk::DirIdentity) -> bool {
    known.ino == found.ino && (known.fsid == found.fs_id || known.dev == found.dev)
}

#[cfg(test)]
mod tests;

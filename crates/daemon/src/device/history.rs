//! `log` and `restore`: what was, and bringing it back. Both first look at the disk, so that what is
//! there is a version before anything takes its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pacsync_protocol::row::{Content, Kind};
use pacsync_protocol::{ContentId, DeviceId, NodeId, RowId, SpaceId};
use pacsync_store::StoreError;
use pacsync_store::content::scan_content;
use pacsync_store::index::IndexReader;

use super::Device;
use super::spaces::store_error;
use super::waiters::Waiter;
use crate::control::api::{
    DeviceRef, EntryKind, Kept, LogReport, RestoreReport, Restored, TextPath, Unrestored, Version,
    VersionKind,
};
use crate::control::{CommandError, Reply, RestoreOrder, VersionAt};
use crate::disk::RelPath;
use crate::net::PeerStanding;
use crate::worktree::{self, Class, Context, Did, Now, Past, Progress, Worktree};

/// How often a restore looks whether what it asked for has come.
pub(super) const TICK_MS: u64 = 20;
/// How long nothing may come before a restore gives up.
pub(super) const PATIENCE_MS: u64 = 30_000;
/// How long a restore waits until its files are on disk.
pub(super) const APPLY_MS: u64 = 10_000;
/// Devices that are named in an answer.
pub(super) const DEVICES_NAMED: usize = 8;

/// A `log` on its way.
pub(super) struct LogJob {
    pub(super) reply: Reply<LogReport>,
    space: SpaceId,
    path: RelPath,
    limit: usize,
}

/// A `restore` on its way.
pub(super) struct RestoreJob {
    pub(super) reply: Reply<RestoreReport>,
    space: SpaceId,
    path: RelPath,
    order: RestoreOrder,
    stage: Stage,
    next_ms: u64,
}

enum Stage {
    /// The disk is looked at.
    Scan,
    /// Contents are asked for.
    Fetch(Fetch),
    /// The rows are written.
    Apply {
        report: RestoreReport,
        written: Vec<(NodeId, Option<ContentId>)>,
        until_ms: u64,
    },
}

#[derive(Default)]
pub(super) struct Fetch {
    chosen: Vec<Chosen>,
    /// Those whose content is not here, by number.
    open: BTreeSet<usize>,
    /// Who said that it lacks what.
    lacking: BTreeSet<(DeviceId, ContentId)>,
    progress: u64,
    until_ms: u64,
}

impl Fetch {
    pub(super) fn new(chosen: Vec<Chosen>, now: Now) -> Self {
        let number = |(number, chosen): (usize, &Chosen)| chosen.content.as_ref().map(|_| number);
        Self {
            open: chosen.iter().enumerate().filter_map(number).collect(),
            chosen,
            until_ms: now.ms.saturating_add(PATIENCE_MS),
            ..Self::default()
        }
    }
}

/// What is to be brought back.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub(super) node: NodeId,
    pub(super) kind: Kind,
    pub(super) path: RelPath,
    pub(super) mode: Option<u16>,
    pub(super) content: Option<(RowId, Content)>,
    /// Who may have the content.
    pub(super) devices: Vec<DeviceId>,
}

impl RestoreJob {
    pub(super) fn is_scanning(&self) -> bool {
        matches!(self.stage, Stage::Scan)
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        (!self.is_scanning()).then_some(self.next_ms)
    }
}

fn entry_kind(kind: Kind) -> EntryKind {
    match kind {
        Kind::Dir => EntryKind::Dir,
        Kind::Symlink => EntryKind::Symlink,
        Kind::File | Kind::Other(_) => EntryKind::File,
    }
}

pub(super) fn text(path: &RelPath) -> TextPath {
    TextPath::from_bytes(path.as_bytes())
}

fn is_content(version: &&worktree::Version) -> bool {
    version.content.is_some()
}

impl Device {
    /// Begins a `log`.
    pub(super) fn log(
        &mut self,
        path: &Path,
        limit: Option<usize>,
        reply: Reply<LogReport>,
        now: Now,
    ) {
        match self.begin_history(path, now) {
            Ok((space, path)) => self.waiters.push(Waiter::Log(LogJob {
                reply,
                space,
                path,
                limit: limit.unwrap_or(usize::MAX),
            })),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Begins a `restore`.
    pub(super) fn restore(
        &mut self,
        path: &Path,
        order: RestoreOrder,
        reply: Reply<RestoreReport>,
        now: Now,
    ) {
        match self.begin_history(path, now) {
            Ok((space, path)) => self.waiters.push(Waiter::Restore(Box::new(RestoreJob {
                reply,
                space,
                path,
                order,
                stage: Stage::Scan,
                next_ms: now.ms,
            }))),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn begin_history(&mut self, path: &Path, now: Now) -> Result<(SpaceId, RelPath), CommandError> {
        let (space, rest) = self.place_of(path)?;
        let Some(worktree) = self.worktrees.get_mut(&space) else {
            return Err(CommandError::failed(format!(
                "the root of {} cannot be used now",
                self.space_name(&space)
            ))
            .with_hint("`pacsync status` says why"));
        };
        worktree.request_scan(rest.clone(), now);
        Ok((space, rest))
    }

    pub(super) fn check_log(&self, job: LogJob) -> Option<Waiter> {
        if !self.all_scanned() {
            return Some(Waiter::Log(job));
        }
        let report = self.log_report(&job);
        let _ = job.reply.send(report);
        None
    }

    fn log_report(&self, job: &LogJob) -> Result<LogReport, CommandError> {
        let worktree = self.worktree(&job.space)?;
        let past = self.past(worktree, job.space, &job.path)?;
        let mut here = BTreeMap::new();
        let mut versions = vec![];
        for version in past.versions.iter().take(job.limit) {
            let mut kept = None;
            let mut devices = vec![];
            if let Some(content) = &version.content {
                let is_here = match here.get(&content.id) {
                    Some(is_here) => *is_here,
                    None => {
                        let found = worktree.has_content(&self.store, &self.packs, content);
                        let found = found.map_err(|e| store_error(&e))?;
                        here.insert(content.id, found);
                        found
                    }
                };
                if !is_here {
                    devices = self.holders(&job.space, &past, &content.id);
                }
                kept = Some(match (is_here, devices.is_empty()) {
                    (true, _) => Kept::Here,
                    (false, false) => Kept::Elsewhere,
                    (false, true) => Kept::NotKept,
                });
            }
            versions.push(Version {
                version: version.id.short(),
                id: version.id.to_string(),
                what: match version.did {
                    Did::Created => VersionKind::Created,
                    Did::Edited => VersionKind::Edited,
                    Did::Restored => VersionKind::Restored,
                    Did::Merged => VersionKind::Merged,
                    Did::Moved => VersionKind::Moved,
                    Did::Deleted => VersionKind::Deleted,
                },
                kind: entry_kind(version.kind),
                time_ms: version.written.map(|written| written.time_ms),
                device: version
                    .written
                    .map(|written| self.device_ref(&written.device)),
                size: version.content.as_ref().map(|content| content.size),
                name: version
                    .name
                    .as_ref()
                    .map(|name| TextPath::from_bytes(name.as_bytes())),
                shown: version.shown,
                kept,
                devices: self.refs(&devices),
            });
        }
        Ok(LogReport {
            space: self.space_name(&job.space),
            path: text(&job.path),
            deleted: past.live.is_none(),
            more: past.versions.len() > versions.len(),
            versions,
        })
    }

    fn worktree(&self, space: &SpaceId) -> Result<&Worktree, CommandError> {
        self.worktrees.get(space).ok_or_else(|| {
            CommandError::failed(format!("{} has no root here now", self.space_name(space)))
        })
    }

    fn past(
        &self,
        worktree: &Worktree,
        space: SpaceId,
        path: &RelPath,
    ) -> Result<Past, CommandError> {
        if path.is_root() {
            return Err(CommandError::usage(format!(
                "the root of {} itself has no versions",
                self.space_name(&space)
            ))
            .with_hint("name something in it"));
        }
        let past = worktree.past_of(&self.store, path);
        let past = past.map_err(|e| store_error(&e))?;
        if past.versions.is_empty() {
            return Err(CommandError::failed(format!(
                "{path} is not in {} and never was",
                self.space_name(&space)
            ))
            .with_hint("`pacsync ls` lists what is there"));
        }
        Ok(past)
    }

    /// Who may have a content that is not here: those who wrote it, then whoever keeps the space.
    fn holders(&self, space: &SpaceId, past: &Past, content: &ContentId) -> Vec<DeviceId> {
        let own = self.store.identity().keys.id();
        let wrote = past
            .versions
            .iter()
            .filter(|version| version.content.as_ref().is_some_and(|c| c.id == *content))
            .filter_map(|version| Some(version.written?.device));
        let mut holders: Vec<DeviceId> = vec![];
        let others = self.others();
        let keeping = others.iter().filter(|device| self.keeps(device, space));
        for device in wrote.chain(keeping.copied()) {
            if device != own && others.contains(&device) && !holders.contains(&device) {
                holders.push(device);
            }
        }
        holders.truncate(DEVICES_NAMED);
        holders
    }

    pub(super) fn refs(&self, devices: &[DeviceId]) -> Vec<DeviceRef> {
        devices
            .iter()
            .map(|device| self.device_ref(device))
            .collect()
    }

    pub(super) fn check_restore(
        &mut self,
        mut job: Box<RestoreJob>,
        now: Now,
    ) -> Result<Option<Waiter>, StoreError> {
        if !job.is_scanning() && now.ms < job.next_ms {
            return Ok(Some(Waiter::Restore(job)));
        }
        job.next_ms = now.ms.saturating_add(TICK_MS);
        if job.is_scanning() {
            if !self.all_scanned() {
                return Ok(Some(Waiter::Restore(job)));
            }
            match self.versions_to_restore(&job) {
                Ok(chosen) => job.stage = Stage::Fetch(Fetch::new(chosen, now)),
                Err(error) => {
                    let _ = job.reply.send(Err(error));
                    return Ok(None);
                }
            }
        }
        let RestoreJob { space, stage, .. } = &mut *job;
        match stage {
            Stage::Scan => {}
            Stage::Fetch(fetch) => {
                let mut fetch = std::mem::take(fetch);
                if !self.has_fetched(*space, &mut fetch, now)? {
                    *stage = Stage::Fetch(fetch);
                    return Ok(Some(Waiter::Restore(job)));
                }
                return self.bring_back(job, fetch, now);
            }
            Stage::Apply { until_ms, .. } => {
                let applied = self.worktrees.get(space).is_none_or(Worktree::is_applied);
                if !applied && now.ms < *until_ms {
                    return Ok(Some(Waiter::Restore(job)));
                }
            }
        }
        let RestoreJob {
            reply,
            space,
            stage,
            ..
        } = *job;
        if let Stage::Apply {
            mut report,
            written,
            ..
        } = stage
        {
            for (restored, (node, content)) in report.restored.iter_mut().zip(written) {
                restored.on_disk = self.is_on_disk(&space, &node, content)?;
            }
            let _ = reply.send(Ok(report));
        }
        Ok(None)
    }

    fn is_on_disk(
        &self,
        space: &SpaceId,
        node: &NodeId,
        content: Option<ContentId>,
    ) -> Result<bool, StoreError> {
        let no = self.store.space(space)?.no;
        let tx = self.store.read()?;
        let tree = pacsync_store::tree::TreeReader::open(&tx, no)?;
        let node = tree.representative(node)?;
        let entry = IndexReader::new(&tx, no).entry_of(&node)?;
        Ok(entry.is_some_and(|(_, _, entry)| content.is_none() || entry.content == content))
    }

    /// What an order means, as things are.
    fn versions_to_restore(&self, job: &RestoreJob) -> Result<Vec<Chosen>, CommandError> {
        let worktree = self.worktree(&job.space)?;
        let order = &job.order;
        if order.to.is_none() && worktree.tracking().class(&job.path) == Class::Untracked {
            return Err(CommandError::failed(format!("{} is not tracked", job.path))
                .with_hint("`pacsync add` it first, or write it elsewhere with --to"));
        }
        if order.deleted {
            return self.choose_deleted(worktree, job);
        }
        let past = self.past(worktree, job.space, &job.path)?;
        let kind = match (&past.live, past.versions.first()) {
            (Some(live), _) => live.kind,
            (None, Some(version)) => version.kind,
            (None, None) => Kind::Dir,
        };
        if kind == Kind::Dir {
            return Err(
                CommandError::usage(format!("{} is a directory", job.path)).with_hint(
                    "`pacsync restore --deleted DIR` brings back what was deleted beneath it",
                ),
            );
        }
        let version = pick(&past, &job.path, order.at.as_ref())?;
        let content = version.content.clone();
        if order.to.is_none()
            && let Some(live) = &past.live
        {
            if live.kind != version.kind {
                return Err(CommandError::failed(format!(
                    "something of another kind stands at {} now",
                    job.path
                ))
                .with_hint("move it away first, or write the version elsewhere with --to"));
            }
            let shows = live.content.as_ref().map(|shown| shown.content.id);
            if shows == content.as_ref().map(|content| content.id) && live.losers.is_empty() {
                return Err(CommandError::failed(format!(
                    "{} has the content of {} already",
                    job.path,
                    version.id.short()
                ))
                .with_hint("`pacsync log` lists its versions"));
            }
        }
        let node = past.live.as_ref().map_or(version.node, |live| live.id);
        let devices = content.as_ref().map(|content| content.id);
        let devices = devices.map(|content| self.holders(&job.space, &past, &content));
        Ok(vec![Chosen {
            node,
            kind: version.kind,
            path: job.path.clone(),
            mode: past.live.as_ref().and_then(|live| live.mode),
            content: content.map(|content| (version.id, content)),
            devices: devices.unwrap_or_default(),
        }])
    }

    fn choose_deleted(
        &self,
        worktree: &Worktree,
        job: &RestoreJob,
    ) -> Result<Vec<Chosen>, CommandError> {
        let since_ms = match &job.order.at {
            None => None,
            Some(VersionAt::Time(ms)) => Some(*ms),
            Some(VersionAt::Version(_)) => {
                return Err(CommandError::usage(
                    "--deleted takes a time with --at, not a version",
                ));
            }
        };
        if job.order.to.is_some() {
            return Err(CommandError::usage(
                "--deleted brings files back where they were: it takes no --to",
            ));
        }
        let lost = worktree.lost_beneath(&self.store, &job.path, since_ms);
        let lost = lost.map_err(|e| store_error(&e))?;
        let own = self.store.identity().keys.id();
        let others: Vec<DeviceId> = self
            .others()
            .into_iter()
            .filter(|device| *device != own && self.keeps(device, &job.space))
            .take(DEVICES_NAMED)
            .collect();
        let chosen: Vec<Chosen> = lost
            .into_iter()
            .filter(|lost| worktree.tracking().class(&lost.path) != Class::Untracked)
            .map(|lost| Chosen {
                node: lost.node,
                kind: lost.kind,
                path: lost.path,
                mode: None,
                content: lost.content,
                devices: others.clone(),
            })
            .collect();
        if chosen.is_empty() {
            let place = if job.path.is_root() {
                self.space_name(&job.space)
            } else {
                job.path.to_string()
            };
            return Err(CommandError::failed(format!(
                "nothing that was deleted is known of {place}"
            ))
            .with_hint("`pacsync log PATH` shows what happened to a file"));
        }
        Ok(chosen)
    }

    /// Whether there is nothing more to wait for: what is still open then no connected device has.
    pub(super) fn has_fetched(
        &mut self,
        space: SpaceId,
        fetch: &mut Fetch,
        now: Now,
    ) -> Result<bool, StoreError> {
        let connected: Vec<DeviceId> = self
            .peers
            .values()
            .filter(|peer| peer.standing == PeerStanding::Known)
            .map(|peer| peer.device)
            .collect();
        let Some(worktree) = self.worktrees.get(&space) else {
            return Ok(true);
        };
        let mut here = vec![];
        let mut waits = false;
        for number in &fetch.open {
            let content = fetch.chosen.get(*number).and_then(|c| c.content.as_ref());
            let Some((_, content)) = content else {
                continue;
            };
            if worktree.can_read(&self.store, &self.packs, content)? {
                here.push(*number);
                continue;
            }
            waits |= worktree.is_put_aside(&content.id);
            for device in &connected {
                if self.is_lacked_by(worktree, device, &content.id) {
                    fetch.lacking.insert((*device, content.id));
                }
            }
            waits |= connected
                .iter()
                .any(|device| !fetch.lacking.contains(&(*device, content.id)));
        }
        for number in here {
            fetch.open.remove(&number);
        }
        let progress = worktree.versions_progress();
        if progress != fetch.progress {
            fetch.progress = progress;
            fetch.until_ms = now.ms.saturating_add(PATIENCE_MS);
        }
        Ok(!waits || now.ms >= fetch.until_ms)
    }

    /// Tells worktrees what restores wait for, and takes back what none does any more.
    pub(super) fn want_versions(&mut self, now: Now) -> Result<(), StoreError> {
        let mut wanted: BTreeMap<SpaceId, BTreeMap<ContentId, u64>> = BTreeMap::new();
        for waiter in &self.waiters {
            let (space, fetch) = match waiter {
                Waiter::Restore(job) => match &job.stage {
                    Stage::Fetch(fetch) => (job.space, fetch),
                    Stage::Scan | Stage::Apply { .. } => continue,
                },
                Waiter::Undo(job) => match job.fetch() {
                    Some(fetching) => fetching,
                    None => continue,
                },
                _ => continue,
            };
            let open = fetch.open.iter().filter_map(|at| fetch.chosen.get(*at));
            for (_, content) in open.filter_map(|chosen| chosen.content.as_ref()) {
                let of_space = wanted.entry(space).or_default();
                of_space.insert(content.id, content.size);
            }
        }
        let none = BTreeMap::new();
        for (space, worktree) in &mut self.worktrees {
            let wanted = wanted.get(space).unwrap_or(&none);
            if !wanted.is_empty() || worktree.wants_versions() {
                let mut cx = Context {
                    store: &mut self.store,
                    packs: &mut self.packs,
                    rng: &mut *self.rng,
                    now,
                };
                worktree.want_versions(&mut cx, wanted)?;
            }
        }
        if wanted.is_empty() {
            Ok(())
        } else {
            self.fetch(now)
        }
    }

    /// Writes what is here.
    fn bring_back(
        &mut self,
        mut job: Box<RestoreJob>,
        fetch: Fetch,
        now: Now,
    ) -> Result<Option<Waiter>, StoreError> {
        let mut report = RestoreReport {
            space: self.space_name(&job.space),
            restored: vec![],
            missing: vec![],
            to: None,
        };
        let mut written = vec![];
        for (number, chosen) in fetch.chosen.iter().enumerate() {
            let version = chosen.content.as_ref().map(|(row, _)| row.short());
            if fetch.open.contains(&number) {
                report.missing.push(Unrestored {
                    path: text(&chosen.path),
                    version: version.unwrap_or_default(),
                    devices: self.refs(&chosen.devices),
                });
                continue;
            }
            let content = chosen.content.as_ref().map(|(_, content)| content);
            let file = content.filter(|_| chosen.kind == Kind::File);
            report.restored.push(Restored {
                path: text(&chosen.path),
                kind: entry_kind(chosen.kind),
                version,
                size: file.map(|content| content.size),
                on_disk: false,
            });
            written.push((chosen.node, content.cloned()));
        }
        if written.iter().all(|(_, content)| content.is_none()) && !report.missing.is_empty() {
            let _ = job.reply.send(Err(self.nothing_came(&fetch, &report)));
            return Ok(None);
        }
        if let (Some(to), Some(chosen)) = (&job.order.to, fetch.chosen.first()) {
            let sent = self.write_to(&job, to, chosen)?.map(|to| {
                report.to = Some(TextPath::from_path(&to));
                report
            });
            let _ = job.reply.send(sent);
            return Ok(None);
        }
        let Some(worktree) = self.worktrees.get_mut(&job.space) else {
            return Ok(None);
        };
        let mut cx = Context {
            store: &mut self.store,
            packs: &mut self.packs,
            rng: &mut *self.rng,
            now,
        };
        let mut progress = Progress::default();
        worktree.restore(&mut cx, &written, &mut progress)?;
        for committed in progress.committed {
            self.committed(committed, None, now)?;
        }
        job.stage = Stage::Apply {
            report,
            written: written
                .into_iter()
                .map(|(node, content)| (node, content.map(|content| content.id)))
                .collect(),
            until_ms: now.ms.saturating_add(APPLY_MS),
        };
        Ok(Some(Waiter::Restore(job)))
    }

    fn nothing_came(&self, fetch: &Fetch, report: &RestoreReport) -> CommandError {
        let lacks: BTreeSet<DeviceId> = fetch.lacking.iter().map(|(device, _)| *device).collect();
        let devices: BTreeSet<DeviceId> = fetch
            .chosen
            .iter()
            .flat_map(|chosen| chosen.devices.iter().copied())
            .collect();
        let what = match report.missing.as_slice() {
            [one] => format!("version {} of {}", one.version, one.path.path),
            more => format!("the content of {} files", more.len()),
        };
        let others: Vec<DeviceId> = devices.difference(&lacks).copied().collect();
        if others.is_empty() {
            return CommandError::failed(format!("{what} is not kept on any device"))
                .with_hint("`pacsync log` shows which versions are");
        }
        CommandError::failed(format!(
            "{what} is not on this device, and no device that is connected has it"
        ))
        .with_items(
            others
                .iter()
                .map(|device| format!("{} may have it", self.device_name(device))),
        )
        .with_hint("try again when it is connected: `pacsync devices` shows that")
    }

    /// Writes a version as a plain file.
    fn write_to(
        &self,
        job: &RestoreJob,
        to: &Path,
        chosen: &Chosen,
    ) -> Result<Result<PathBuf, CommandError>, StoreError> {
        let Some((_, content)) = &chosen.content else {
            return Ok(Err(CommandError::usage("a directory has no content")));
        };
        let mut dest = to.to_owned();
        if dest.is_dir()
            && let Some(name) = chosen.path.name()
        {
            dest.push(std::ffi::OsStr::from_bytes(name));
        }
        let failed = |why: &dyn std::fmt::Display| {
            CommandError::failed(format!("cannot write {}: {why}", dest.display()))
        };
        if chosen.kind == Kind::Symlink {
            let target = content.target().unwrap_or_default();
            let target = std::ffi::OsStr::from_bytes(target);
            return Ok(match std::os::unix::fs::symlink(target, &dest) {
                Ok(()) => Ok(dest),
                Err(error) => Err(failed(&error)),
            });
        }
        let worktree = match self.worktree(&job.space) {
            Ok(worktree) => worktree,
            Err(error) => return Ok(Err(error)),
        };
        let mode = u32::from(chosen.mode.unwrap_or(0o644)) & 0o777;
        let opened = OpenOptions::new()
            .write(true)
            .read(true)
            .create_new(true)
            .mode(mode | 0o600)
            .open(&dest);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(Err(failed(&"it is there already")
                    .with_hint("nothing was changed; name another place")));
            }
            Err(error) => return Ok(Err(failed(&error))),
        };
        let mut sink = |bytes: &[u8]| file.write_all(bytes);
        let done = worktree.read_content(&self.store, &self.packs, content, &mut sink)?;
        let why = match done.and_then(|whole| Ok(whole && is_content_of(worktree, &file, content)?))
        {
            Ok(true) => match file.sync_all() {
                Ok(()) => return Ok(Ok(dest)),
                Err(error) => error.to_string(),
            },
            Ok(false) => "the version that is kept is damaged".to_owned(),
            Err(error) => error.to_string(),
        };
        drop(file);
        let _ = std::fs::remove_file(&dest);
        Ok(Err(failed(&why)))
    }
}

fn is_content_of(worktree: &Worktree, file: &File, content: &Content) -> io::Result<bool> {
    let mut file = file.try_clone()?;
    let scanned = scan_content(&mut file, content.size, worktree.id_keys());
    Ok(scanned.map_err(io::Error::other)?.content_id == content.id)
}

/// The version that an order asks for.
fn pick<'p>(
    past: &'p Past,
    path: &RelPath,
    at: Option<&VersionAt>,
) -> Result<&'p worktree::Version, CommandError> {
    let list = "`pacsync log` lists the versions";
    match at {
        None => {
            let shows = past.live.as_ref().and_then(|live| live.content.as_ref());
            let shows = shows.map(|shown| shown.content.id);
            let differs =
                |v: &&worktree::Version| v.content.as_ref().map(|content| content.id) != shows;
            let mut contents = past.versions.iter().filter(is_content);
            contents.find(differs).ok_or_else(|| {
                CommandError::failed(format!("{path} has no earlier version")).with_hint(list)
            })
        }
        Some(VersionAt::Version(prefix)) => {
            let fits: Vec<&worktree::Version> = past
                .versions
                .iter()
                .filter(|version| version.id.to_string().starts_with(prefix.as_str()))
                .collect();
            match fits.as_slice() {
                [] => Err(CommandError::failed(format!(
                    "{path} has no version {prefix}, and that is no time either"
                ))
                .with_hint(format!(
                    "{list}; a time is \"2026-05-01 14:30\" or \"2 days ago\""
                ))),
                [one] if one.content.is_none() => Err(CommandError::failed(format!(
                    "{prefix} is no content of {path}: it was {} then",
                    match one.did {
                        Did::Deleted => "deleted",
                        Did::Moved => "moved",
                        _ => "restored",
                    }
                ))
                .with_hint("name the version before it")),
                [one] => Ok(one),
                several => Err(CommandError::usage(format!(
                    "{prefix} fits several versions of {path}"
                ))
                .with_items(several.iter().map(|version| version.id.to_string()))
                .with_hint("write more of the id")),
            }
        }
        Some(VersionAt::Time(at_ms)) => {
            let known = |v: &&worktree::Version| {
                (is_content(v) || v.did == Did::Deleted)
                    && v.written.is_some_and(|written| written.time_ms <= *at_ms)
            };
            match past.versions.iter().find(known) {
                Some(version) if version.content.is_some() => Ok(version),
                Some(_) => Err(
                    CommandError::failed(format!("{path} was deleted at that time"))
                        .with_hint("name a time before, or a version: `pacsync log` lists them"),
                ),
                None => Err(
                    CommandError::failed(format!("{path} was not there yet at that time"))
                        .with_hint(list),
                ),
            }
        }
    }
}

//! Commands of the control API, carried out.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pacsync_protocol::row::{Kind, Name};
use pacsync_protocol::{DeviceId, NodeId, SpaceId};
use pacsync_store::StoreError;
use pacsync_store::documents::{Setting, Settings, settings_id};
use pacsync_store::index::IndexReader;
use pacsync_store::tree::TreeReader;

use super::Device;
use super::conflicts::Purpose;
use super::spaces::store_error;
use super::waiters::{DETACH_MAX_MS, Detach, Wait, Waiter};
use crate::control::api::{
    Check, CheckResult, DeletesReport, DeviceList, DoctorReport, Entry, EntryKind, ForgetReport,
    HeldDeletes, HeldDirection, LS_LIMIT_MAX, Listing, SpaceList, SpaceReport, TextPath, TextRoot,
    Tracked,
};
use crate::control::{Command, CommandError, DeletesAction, Reply};
use crate::disk::RelPath;
use crate::worktree::{Class, Context, Now, Progress, Tracking};

/// How long `connect` waits for an answer.
const CONNECT_MS: u64 = 12_000;
/// Most paths of held deletes in an answer.
const HELD_PATHS: usize = 100;

impl Device {
    /// Carries a command out, or keeps it until it can be answered. Commands about pairing, the
    /// event stream and the daemon's end belong to the runner and are answered as usage errors.
    ///
    /// # Errors
    /// [`StoreError`] where the device cannot go on.
    pub fn command(&mut self, command: Command, now: Now) -> Result<(), StoreError> {
        match command {
            Command::Status { reply } => {
                let _ = reply.send(self.status(now).map_err(|e| store_error(&e)));
            }
            Command::Add { paths, reply } => self.add(&paths, reply, now)?,
            Command::Forget { paths, reply } => {
                let result = self.forget(&paths, now);
                let _ = reply.send(result);
            }
            Command::Ls {
                path,
                after,
                limit,
                reply,
            } => {
                let _ = reply.send(self.ls(path.as_deref(), after.as_deref(), limit));
            }
            Command::Log { path, limit, reply } => self.log(&path, limit, reply, now),
            Command::Restore { path, order, reply } => self.restore(&path, order, reply, now),
            Command::Undo { reply } => self.undo(reply, now),
            Command::SpaceCreate { name, at, reply } => {
                let result = self.create_space(&name, &at, now);
                let _ = reply.send(self.report(result));
            }
            Command::SpaceAttach { name, at, reply } => {
                let result = self.attach_space(&name, &at, now);
                let _ = reply.send(self.report(result));
            }
            Command::SpaceKeep { request, reply } => {
                let _ = reply.send(self.space_keep(&request, now));
            }
            Command::SpaceDetach { name, reply } => match self.close_space(&name) {
                Ok(space) => self.waiters.push(Waiter::Detach(Detach {
                    space,
                    name,
                    until_ms: now.ms + DETACH_MAX_MS,
                    reply,
                })),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::SpaceLs { reply } => {
                let spaces: Result<Vec<_>, _> = self
                    .store
                    .spaces()
                    .map(|space| self.space_status(&space.id))
                    .collect();
                let result = spaces.map(|spaces| SpaceList { spaces });
                let _ = reply.send(result.map_err(|e| store_error(&e)));
            }
            Command::Devices { reply } => {
                let result = self.device_list(now).map(|devices| DeviceList { devices });
                let _ = reply.send(result.map_err(|e| store_error(&e)));
            }
            Command::Scan { paths, reply } => {
                if let Err(error) = self.look_at(&paths, now) {
                    let _ = reply.send(Err(error));
                    return Ok(());
                }
                let mut clock = std::collections::BTreeMap::new();
                for space in self.worktrees.keys() {
                    clock.insert(*space, self.own_entries(space)?);
                }
                self.waiters.push(Waiter::Scan { reply, clock });
            }
            Command::Wait {
                timeout,
                device,
                reply,
            } => {
                if let Some(name) = &device
                    && let Err(error) = self.device_by_name(name)
                    && self.knows_names()
                {
                    let _ = reply.send(Err(error));
                    return Ok(());
                }
                if let Err(error) = self.look_at(&[], now) {
                    let _ = reply.send(Err(error));
                    return Ok(());
                }
                let timeout = timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
                self.waiters.push(Waiter::Wait(Wait {
                    reply,
                    deadline_ms: timeout.map(|t| now.ms.saturating_add(t)),
                    name: device,
                    device: None,
                    scanned: false,
                    stuck_since_ms: None,
                    asked: Default::default(),
                    next_ms: now.ms,
                }));
            }
            Command::Deletes {
                space,
                action,
                reply,
            } => {
                let result = self.deletes(space.as_deref(), action, now);
                let _ = reply.send(result);
            }
            Command::Conflicts { path, reply } => {
                let _ = reply.send(self.conflicts(path.as_deref()));
            }
            Command::ConflictContents { path, reply } => {
                self.settle(&path, Purpose::Contents(reply), now);
            }
            Command::Resolve { path, keep, reply } => {
                self.settle(&path, Purpose::Keep(keep, reply), now);
            }
            Command::Doctor { reply } => {
                let _ = reply.send(self.doctor().map_err(|e| store_error(&e)));
            }
            Command::Connect { reply, .. } => misplaced(reply),
            Command::PairStart { reply, .. } => misplaced(reply),
            Command::PairConfirm { reply, .. } => misplaced(reply),
            Command::PairCancel { reply, .. } => misplaced(reply),
            Command::Shutdown { reply } => misplaced(reply),
            Command::Subscribe { reply } => misplaced(reply),
        }
        Ok(())
    }

    /// Keeps an address for later starts, tries it, and answers when it is known how that went.
    pub fn connect(
        &mut self,
        kept: &str,
        address: std::net::SocketAddr,
        reply: Reply<crate::control::api::ConnectReport>,
        now: Now,
    ) {
        self.config_changed |= self.config.add_address(kept);
        let connected = self.peers.values().find(|peer| peer.address == address);
        if let Some(device) = connected.map(|peer| peer.device) {
            let report = crate::control::api::ConnectReport {
                device: self.device_ref(&device),
                address,
            };
            let _ = reply.send(Ok(report));
            return;
        }
        self.add_address(address, now);
        self.waiters.push(Waiter::Connect {
            kept: kept.to_owned(),
            address,
            until_ms: now.ms + CONNECT_MS,
            reply,
        });
    }

    pub(super) fn report(
        &self,
        result: Result<SpaceId, CommandError>,
    ) -> Result<SpaceReport, CommandError> {
        let space = self.space_status(&result?).map_err(|e| store_error(&e))?;
        Ok(SpaceReport { space })
    }

    /// Whether the names of devices, which are in the home space, have come.
    pub(super) fn knows_names(&self) -> bool {
        self.worktrees
            .get(&self.home_space)
            .is_some_and(|home| home.phase() == crate::worktree::Phase::Live)
    }

    pub(super) fn device_by_name(&self, name: &str) -> Result<DeviceId, CommandError> {
        let others = self.others();
        let named = |device: &&DeviceId| self.device_name(device) == name;
        let mut found: Vec<DeviceId> = others.iter().filter(named).copied().collect();
        if found.is_empty() {
            let begins = |device: &&DeviceId| device.to_string().starts_with(name);
            found = others.iter().filter(begins).copied().collect();
        }
        match found.as_slice() {
            [device] => Ok(*device),
            [] => Err(
                CommandError::failed(format!("no other device is called {name:?}"))
                    .with_hint("`pacsync devices` lists them"),
            ),
            several => Err(
                CommandError::usage(format!("{name:?} fits several devices"))
                    .with_hint("use the id")
                    .with_items(several.iter().map(ToString::to_string)),
            ),
        }
    }

    /// Splits an absolute path into the space whose root is nearest above it and the rest.
    pub(super) fn place_of(&self, path: &Path) -> Result<(SpaceId, RelPath), CommandError> {
        let roots = self.roots().map_err(|e| store_error(&e))?;
        let direct = clean(path);
        // The user may have come by a symlink that the root was resolved through.
        let resolved = path
            .parent()
            .and_then(|dir| std::fs::canonicalize(dir).ok())
            .map(|dir| {
                path.file_name()
                    .map_or_else(|| dir.clone(), |name| dir.join(name))
            });
        let whole = std::fs::canonicalize(path).ok();
        // What it was in may be gone, too.
        let left = path.ancestors().find_map(|above| {
            let rest = path.strip_prefix(above).ok()?;
            Some(std::fs::canonicalize(above).ok()?.join(rest))
        });
        for candidate in [Some(direct), resolved, whole, left].into_iter().flatten() {
            let nearest = roots
                .iter()
                .filter_map(|(root, space)| Some((root, space, candidate.strip_prefix(root).ok()?)))
                .max_by_key(|(root, _, _)| root.as_os_str().len());
            if let Some((_, space, rest)) = nearest {
                let rest = RelPath::from_bytes(rest.as_os_str().as_bytes())
                    .map_err(|e| CommandError::usage(format!("{}: {e}", path.display())))?;
                return Ok((*space, rest));
            }
        }
        Err(
            CommandError::usage(format!("{} is in no space of this device", path.display()))
                .with_hint("`pacsync space ls` shows the roots")
                .with_items(roots.keys().map(|root| root.display().to_string())),
        )
    }

    fn in_home(&self, paths: &[PathBuf]) -> Result<Vec<RelPath>, CommandError> {
        let root = self
            .root_of(&self.home_space)
            .map_err(|e| store_error(&e))?;
        paths
            .iter()
            .map(|path| match self.place_of(path)? {
                (space, rest) if space == self.home_space => Ok(rest),
                (space, _) => Err(CommandError::usage(format!(
                    "{} belongs to the space {}, which is tracked whole",
                    path.display(),
                    self.space_name(&space)
                ))
                .with_hint(format!("paths of `home` lie beneath {}", root.display()))),
            })
            .collect()
    }

    fn add(
        &mut self,
        paths: &[PathBuf],
        reply: Reply<crate::control::api::AddReport>,
        now: Now,
    ) -> Result<(), StoreError> {
        let found = self.in_home(paths).and_then(|rests| {
            for (path, rest) in paths.iter().zip(&rests) {
                if std::fs::symlink_metadata(path).is_err() && self.lookup(rest).is_none() {
                    return Err(
                        CommandError::failed(format!("{} is not there", path.display()))
                            .with_hint("check the path; nothing was changed"),
                    );
                }
                self.check_can_travel(path, rest)?;
            }
            Ok(rests)
        });
        let rests = match found {
            Ok(rests) => rests,
            Err(error) => {
                let _ = reply.send(Err(error));
                return Ok(());
            }
        };
        self.set_tracked(&rests, true, now)?;
        for rest in &rests {
            if let Some(worktree) = self.worktrees.get_mut(&self.home_space) {
                worktree.request_scan(rest.clone(), now);
            }
        }
        let paths = rests
            .iter()
            .map(|rest| TextPath::from_bytes(rest.as_bytes()))
            .collect();
        self.waiters.push(Waiter::Add { paths, reply });
        Ok(())
    }

    pub(super) fn lookup(&self, path: &RelPath) -> Option<NodeId> {
        let space = self.store.space(&self.home_space).ok()?;
        let tx = self.store.read().ok()?;
        let tree = TreeReader::open(&tx, space.no).ok()?;
        let names: Vec<Name> = path
            .names()
            .filter_map(|name| Name::new(name).ok())
            .collect();
        tree.lookup(&names).ok().flatten()
    }

    pub(super) fn set_tracked(
        &mut self,
        paths: &[RelPath],
        tracked: bool,
        now: Now,
    ) -> Result<(), StoreError> {
        let values: Settings = paths
            .iter()
            .map(|path| (Tracking::key(path), Setting::Flag(tracked)))
            .collect();
        let space = self.home_space;
        let mut txn = self.store.begin()?;
        let changed =
            txn.write_document(&space, settings_id(&space), &values, now.ms, &mut *self.rng)?;
        if changed {
            let committed = txn.commit()?;
            self.committed(committed, None, now)?;
        }
        Ok(())
    }

    /// Finds out why what stands at a path would never get to another device.
    fn check_can_travel(&self, path: &Path, rest: &RelPath) -> Result<(), CommandError> {
        let refuse = |why: &str| {
            CommandError::failed(format!("{} cannot be synced: {why}", path.display()))
                .with_hint("nothing was changed")
        };
        if rest.names().any(crate::worktree::is_reserved) {
            return Err(refuse("names that begin like this are for temporary files"));
        }
        let root = self
            .root_of(&self.home_space)
            .map_err(|e| store_error(&e))?;
        let mut at = root;
        let mut names = rest.names().peekable();
        while let Some(name) = names.next() {
            at.push(std::ffi::OsStr::from_bytes(name));
            let Ok(found) = at.symlink_metadata() else {
                return Ok(());
            };
            let kind = found.file_type();
            if kind.is_symlink() && names.peek().is_some() {
                let link = at.display();
                return Err(refuse(&format!("{link} is a symlink, and is not followed")));
            }
            if !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
                return Err(refuse("it is neither a file, a directory nor a symlink"));
            }
        }
        Ok(())
    }

    fn forget(&mut self, paths: &[PathBuf], now: Now) -> Result<ForgetReport, CommandError> {
        let rests = self.in_home(paths)?;
        let settings = self
            .store
            .document(&self.home_space, &settings_id(&self.home_space))
            .map_err(|e| store_error(&e))?;
        let tracking = Tracking::from_settings(&settings);
        for (path, rest) in paths.iter().zip(&rests) {
            if !tracking.is_tracked(rest) {
                return Err(
                    CommandError::failed(format!("{} is not tracked", path.display()))
                        .with_hint("`pacsync ls` shows what is"),
                );
            }
            let named = tracking.entries().any(|(entry, _)| entry == rest);
            if !named && std::fs::symlink_metadata(path).is_err() && self.lookup(rest).is_none() {
                return Err(
                    CommandError::failed(format!("{} is not there", path.display()))
                        .with_hint("`pacsync ls` shows what is tracked; nothing was changed"),
                );
            }
        }
        self.set_tracked(&rests, false, now)
            .map_err(|e| store_error(&e))?;
        Ok(ForgetReport {
            forgotten: rests
                .iter()
                .map(|rest| TextPath::from_bytes(rest.as_bytes()))
                .collect(),
        })
    }

    fn look_at(&mut self, paths: &[PathBuf], now: Now) -> Result<(), CommandError> {
        if paths.is_empty() {
            for worktree in self.worktrees.values_mut() {
                worktree.request_scan(RelPath::root(), now);
            }
            return Ok(());
        }
        let places: Result<Vec<_>, _> = paths.iter().map(|path| self.place_of(path)).collect();
        for (space, rest) in places? {
            if let Some(worktree) = self.worktrees.get_mut(&space) {
                worktree.request_scan(rest, now);
            }
        }
        Ok(())
    }

    fn ls(
        &self,
        path: Option<&Path>,
        after: Option<&Path>,
        limit: usize,
    ) -> Result<Listing, CommandError> {
        let (space, prefix) = match path {
            Some(path) => self.place_of(path)?,
            None => (self.home_space, RelPath::root()),
        };
        let after = after
            .map(|path| RelPath::from_bytes(path.as_os_str().as_bytes()))
            .transpose()
            .map_err(|e| CommandError::usage(e.to_string()))?;
        let limit = limit.clamp(1, LS_LIMIT_MAX);
        let tracking = match space == self.home_space {
            true => Some(
                self.store
                    .document(&space, &settings_id(&space))
                    .map(|settings| Tracking::from_settings(&settings))
                    .map_err(|e| store_error(&e))?,
            ),
            false => None,
        };
        let collect = || -> Result<(Vec<Entry>, bool, bool), StoreError> {
            let no = self.store.space(&space)?.no;
            let tx = self.store.read()?;
            let tree = TreeReader::open(&tx, no)?;
            let index = IndexReader::new(&tx, no);
            let mut walk = TreeWalk {
                tree: &tree,
                index: &index,
                after: after.as_ref(),
                limit,
                tracking: tracking.as_ref(),
            };
            let is_tracked = |tracking: &Tracking| tracking.class(&prefix) != Class::Untracked;
            if !prefix.is_root() && !tracking.as_ref().is_none_or(is_tracked) {
                return Ok((vec![], false, false));
            }
            let names: Vec<Name> = prefix.names().filter_map(|n| Name::new(n).ok()).collect();
            let Some(node) = tree.lookup(&names)? else {
                return Ok((vec![], false, false));
            };
            let mut entries = vec![];
            let more = walk.list(node, &prefix, &mut entries)?;
            Ok((entries, more, true))
        };
        let (entries, more, found) = collect().map_err(|e| store_error(&e))?;
        if !found && !prefix.is_root() {
            return Err(CommandError::failed(format!(
                "{} is not in the tree of {}",
                path.unwrap_or(Path::new(".")).display(),
                self.space_name(&space)
            ))
            .with_hint("`pacsync add` tracks paths of home; `pacsync ls` lists what is there"));
        }
        let mut tracked = vec![];
        if space == self.home_space && after.is_none() {
            let settings = self
                .store
                .document(&space, &settings_id(&space))
                .map_err(|e| store_error(&e))?;
            tracked.extend(
                Tracking::from_settings(&settings)
                    .entries()
                    .map(|(path, yes)| Tracked {
                        path: TextPath::from_bytes(path.as_bytes()),
                        tracked: yes,
                    }),
            );
        }
        let root = self.root_of(&space).map_err(|e| store_error(&e))?;
        Ok(Listing {
            space: self.space_name(&space),
            root: TextRoot::from_path(&root),
            tracked,
            entries,
            more,
        })
    }

    /// Lists or settles held deletes of a space, or of all; the answer lists what was held before.
    ///
    /// # Errors
    /// The space is not known, or the store failed.
    pub fn deletes(
        &mut self,
        space: Option<&str>,
        action: DeletesAction,
        now: Now,
    ) -> Result<DeletesReport, CommandError> {
        let only = space.map(|name| self.space_by_name(name)).transpose()?;
        let spaces: Vec<SpaceId> = self
            .worktrees
            .keys()
            .copied()
            .filter(|space| only.is_none_or(|only| only == *space))
            .collect();
        let mut held = vec![];
        for space in &spaces {
            let Some(worktree) = self.worktrees.get(space) else {
                continue;
            };
            let name = self.space_name(space);
            let both = [
                (
                    &worktree.held().local,
                    HeldDirection::ToPeers,
                    "gone from this disk at once",
                ),
                (
                    &worktree.held().remote,
                    HeldDirection::ToDisk,
                    "deleted elsewhere at once",
                ),
            ];
            for (nodes, direction, why) in both {
                if nodes.is_empty() {
                    continue;
                }
                let mut paths: Vec<&RelPath> = nodes.values().collect();
                paths.sort_unstable();
                held.push(HeldDeletes {
                    space: name.clone(),
                    direction,
                    why: format!("more than half of the space: {why}"),
                    count: nodes.len() as u64,
                    paths: paths
                        .into_iter()
                        .take(HELD_PATHS)
                        .map(|path| TextPath::from_bytes(path.as_bytes()))
                        .collect(),
                });
            }
        }
        if action != DeletesAction::List {
            for space in spaces {
                self.settle_deletes(space, action, now)
                    .map_err(|e| store_error(&e))?;
            }
        }
        Ok(DeletesReport { action, held })
    }

    fn settle_deletes(
        &mut self,
        space: SpaceId,
        action: DeletesAction,
        now: Now,
    ) -> Result<(), StoreError> {
        let Some(worktree) = self.worktrees.get_mut(&space) else {
            return Ok(());
        };
        let mut cx = Context {
            store: &mut self.store,
            packs: &mut self.packs,
            rng: &mut *self.rng,
            now,
        };
        let mut progress = Progress::default();
        match action {
            DeletesAction::List => {}
            DeletesAction::Apply => worktree.apply_deletes(&mut cx, &mut progress)?,
            DeletesAction::Restore => worktree.restore_deletes(&mut cx, &mut progress)?,
        }
        for committed in progress.committed {
            self.committed(committed, None, now)?;
        }
        Ok(())
    }

    fn doctor(&self) -> Result<DoctorReport, StoreError> {
        let mut checks = vec![];
        let mut add = |name: String, result, detail: String, hint: Option<&str>| {
            checks.push(Check {
                name,
                result,
                detail,
                hint: hint.map(Into::into),
            });
        };
        let listen = self.transport.addresses();
        add(
            "network".into(),
            if listen.is_empty() {
                CheckResult::Warn
            } else {
                CheckResult::Ok
            },
            match listen.len() {
                1 => "listens on 1 address".into(),
                count => format!("listens on {count} addresses"),
            },
            None,
        );
        for (space, worktree) in &self.worktrees {
            let root = self.root_of(space)?;
            let probe = worktree.probe();
            let lacks: Vec<&str> = [
                (probe.modes, "permission bits"),
                (probe.symlinks, "symlinks"),
                (probe.case_sensitive, "case"),
                (probe.exchange, "atomic exchange"),
                (probe.birth_time, "birth times"),
                (!probe.read_only, "writing"),
            ]
            .iter()
            .filter(|(has, _)| !has)
            .map(|(_, what)| *what)
            .collect();
            let (result, detail) = if lacks.is_empty() {
                (CheckResult::Ok, "keeps all that pacsync needs".to_owned())
            } else {
                (
                    CheckResult::Warn,
                    format!("does not keep: {}", lacks.join(", ")),
                )
            };
            let name = format!("root of {} ({})", self.space_name(space), root.display());
            add(name, result, detail, None);
        }
        for problem in self.all_problems()? {
            let result = match problem.in_the_way {
                true => CheckResult::Fail,
                false => CheckResult::Warn,
            };
            add(problem.path.path, result, problem.what, None);
        }
        let quarantine = self.store.quarantine()?;
        if !quarantine.is_empty() {
            add(
                "quarantine".into(),
                CheckResult::Warn,
                format!("{} segments were not applied in full", quarantine.len()),
                Some("update pacsync on all devices; if it stays, look at who wrote them"),
            );
        }
        Ok(DoctorReport { checks })
    }
}

fn misplaced<T>(reply: Reply<T>) {
    let _ = reply.send(Err(CommandError::failed(
        "not a command of the device's core",
    )));
}

/// Resolves `.` and `..` by name, without looking at the disk.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

struct TreeWalk<'a> {
    tree: &'a TreeReader,
    index: &'a IndexReader<'a>,
    after: Option<&'a RelPath>,
    limit: usize,
    /// What of the home space is tracked.
    tracking: Option<&'a Tracking>,
}

impl TreeWalk<'_> {
    /// Lists a node and what lies beneath it; true if the limit cut it off.
    fn list(
        &mut self,
        node: NodeId,
        path: &RelPath,
        entries: &mut Vec<Entry>,
    ) -> Result<bool, StoreError> {
        let mut open = vec![(path.clone(), node)];
        while let Some((path, node)) = open.pop() {
            if node != NodeId::ROOT {
                let passed = self.after.is_some_and(|after| path <= *after);
                if !passed {
                    if entries.len() >= self.limit {
                        return Ok(true);
                    }
                    entries.extend(self.entry(node, &path)?);
                }
            }
            let mut children = vec![];
            for item in self.tree.children(&node)? {
                let (name, child) = item?;
                if let Ok(below) = path.join(name.as_bytes()) {
                    let skipped = self
                        .after
                        .is_some_and(|after| below < *after && !after.starts_with(&below));
                    let tracked = self
                        .tracking
                        .is_none_or(|tracking| tracking.class(&below) != Class::Untracked);
                    if !skipped && tracked {
                        children.push((below, child));
                    }
                }
            }
            children.sort_by(|a, b| b.0.cmp(&a.0));
            open.extend(children);
        }
        Ok(false)
    }

    fn entry(&self, node: NodeId, path: &RelPath) -> Result<Option<Entry>, StoreError> {
        let Some(state) = self.tree.node(&node)? else {
            return Ok(None);
        };
        let kind = match state.kind {
            Kind::Dir => EntryKind::Dir,
            Kind::File => EntryKind::File,
            Kind::Symlink => EntryKind::Symlink,
            Kind::Other(_) => return Ok(None),
        };
        let content = state.content.as_ref().map(|shown| &shown.content);
        let on_disk = match self.index.entry_of(&node)? {
            Some((_, _, entry)) => entry.content == content.map(|c| c.id),
            None => false,
        };
        Ok(Some(Entry {
            path: TextPath::from_bytes(path.as_bytes()),
            kind,
            size: content.filter(|_| kind == EntryKind::File).map(|c| c.size),
            mtime_ms: content.map(|c| c.mtime_ns / 1_000_000),
            mode: state.mode.map(u32::from),
            on_disk,
            conflict: !state.losers.is_empty(),
        }))
    }
}

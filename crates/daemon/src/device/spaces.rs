//! Spaces on this device: opening worktrees, joining, founding, attaching, and letting devices in.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pacsync_protocol::crypto::{Key, random};
use pacsync_protocol::pairing::{Peer as PairingPeer, Welcome};
use pacsync_protocol::roster::{EpochSecret, Placement, RosterEntry};
use pacsync_protocol::row::RESERVED_PREFIX;
use pacsync_protocol::segment::Entry;
use pacsync_protocol::{DeviceId, SpaceId, VersionVector};
use pacsync_store::StoreError;
use pacsync_store::documents::{Setting, Settings, profile_id, settings_id};
use pacsync_store::index::{Attachment, IndexReader};

use super::Device;
use super::waiters::{Detach, Waiter};
use crate::control::CommandError;
use crate::control::api::EventKind;
use crate::disk::RelPath;
use crate::home;
use crate::net::PeerStanding;
use crate::worktree::{Context, Now, Phase, RETRY_MS, Tracking, Worktree};

impl Device {
    /// Opens the worktrees of attached spaces that are not open yet.
    pub(super) fn open_spaces(&mut self, now: Now) -> Result<(), StoreError> {
        let closed: Vec<SpaceId> = self
            .store
            .spaces()
            .filter(|space| space.id_keys.is_some())
            .map(|space| space.id)
            .filter(|space| {
                !self.worktrees.contains_key(space) && !self.unopened.contains_key(space)
            })
            .collect();
        for space in closed {
            self.open_space(space, now)?;
        }
        Ok(())
    }

    pub(super) fn retry_unopened(&mut self, now: Now) -> Result<(), StoreError> {
        let due: Vec<SpaceId> = self
            .unopened
            .iter()
            .filter(|(_, (_, at))| *at <= now.ms)
            .map(|(space, _)| *space)
            .collect();
        for space in due {
            self.unopened.remove(&space);
            self.open_space(space, now)?;
        }
        Ok(())
    }

    pub(super) fn attachment(&self, space: &SpaceId) -> Result<Option<Attachment>, StoreError> {
        let Ok(found) = self.store.space(space) else {
            return Ok(None);
        };
        let tx = self.store.read()?;
        IndexReader::new(&tx, found.no).attachment()
    }

    fn open_space(&mut self, space: SpaceId, now: Now) -> Result<(), StoreError> {
        let Some(attachment) = self.attachment(&space)? else {
            return Ok(());
        };
        let root = PathBuf::from(OsStr::from_bytes(&attachment.root));
        let own_home = std::fs::symlink_metadata(self.home.path())
            .ok()
            .map(|found| (found.dev(), found.ino()));
        let tracking = self.tracking(&space)?;
        let opened = match (self.open_disk)(&root, space) {
            Ok(disk) => {
                let mut cx = Context {
                    store: &mut self.store,
                    packs: &mut self.packs,
                    rng: &mut *self.rng,
                    now,
                };
                Worktree::open(space, disk, tracking, own_home, &mut cx).map_err(
                    |error| match error {
                        crate::worktree::OpenError::Store(error) => Err(error),
                        other => Ok(other.to_string()),
                    },
                )
            }
            Err(error) if error.is_not_found() => Err(Ok(format!(
                "the root directory {} is missing: bring it back; nothing is deleted elsewhere",
                root.display()
            ))),
            Err(error) => Err(Ok(error.to_string())),
        };
        match opened {
            Ok(mut worktree) => {
                worktree.set_other_roots(self.other_roots(&space)?);
                self.worktrees.insert(space, worktree);
            }
            Err(Ok(why)) => {
                tracing::warn!(space = %space.short(), why, "worktree not opened");
                self.unopened.insert(space, (why, now.ms + RETRY_MS));
            }
            Err(Err(error)) => return Err(error),
        }
        self.check_joins(now)
    }

    fn tracking(&self, space: &SpaceId) -> Result<Tracking, StoreError> {
        let tracking = if *space == self.home_space {
            Tracking::from_settings(&self.store.document(space, &settings_id(space))?)
        } else {
            Tracking::all()
        };
        let root = self.root_of(space)?;
        let mut inside = vec![std::fs::canonicalize(self.home.path()).ok()];
        for other in self.store.spaces().filter(|other| other.id != *space) {
            inside.push(
                self.attachment(&other.id)?
                    .map(|found| PathBuf::from(OsStr::from_bytes(&found.root))),
            );
        }
        let never = inside
            .into_iter()
            .flatten()
            .filter_map(|path| {
                let rest = path.strip_prefix(&root).ok()?;
                RelPath::from_bytes(rest.as_os_str().as_bytes()).ok()
            })
            .filter(|path| !path.is_root())
            .collect();
        Ok(tracking.without(never))
    }

    /// The roots of the other spaces, which may lie beneath that of the home space.
    fn other_roots(&self, of: &SpaceId) -> Result<BTreeMap<(u64, u64), String>, StoreError> {
        let mut roots = BTreeMap::new();
        if *of != self.home_space {
            return Ok(roots);
        }
        for space in self.store.spaces().filter(|space| space.id != *of) {
            let Some(attachment) = self.attachment(&space.id)? else {
                continue;
            };
            let found = match attachment.root_identity {
                Some(known) => Some((known.dev, known.ino)),
                None => std::fs::metadata(OsStr::from_bytes(&attachment.root))
                    .ok()
                    .map(|found| (found.dev(), found.ino())),
            };
            roots.extend(found.map(|found| (found, self.space_name(&space.id))));
        }
        Ok(roots)
    }

    /// Opens a space anew whose disk was closed.
    pub(super) fn reopen(&mut self, space: SpaceId, now: Now) -> Result<(), StoreError> {
        self.open_space(space, now)
    }

    pub(super) fn refresh_tracking(&mut self, now: Now) -> Result<(), StoreError> {
        let space = self.home_space;
        let tracking = self.tracking(&space)?;
        let other_roots = self.other_roots(&space)?;
        if let Some(worktree) = self.worktrees.get_mut(&space) {
            worktree.set_other_roots(other_roots);
            let mut cx = Context {
                store: &mut self.store,
                packs: &mut self.packs,
                rng: &mut *self.rng,
                now,
            };
            worktree.set_tracking(tracking, &mut cx)?;
        }
        Ok(())
    }

    /// Moves joins on: first a sponsor's vector is taken down, then it is applied, then the first
    /// scan may begin.
    pub(super) fn check_joins(&mut self, now: Now) -> Result<(), StoreError> {
        let joining: Vec<SpaceId> = self
            .worktrees
            .iter()
            .filter(|(_, worktree)| worktree.phase() == Phase::Joining)
            .map(|(space, _)| *space)
            .collect();
        for space in joining {
            let Some(mut attachment) = self.attachment(&space)? else {
                continue;
            };
            let mut said = self
                .peers
                .values()
                .filter(|peer| peer.standing == PeerStanding::Known)
                .filter_map(|peer| Some((peer.device, peer.session.peer_vector(&space)?)));
            let (sponsor, vector) = if attachment.awaits_sponsor {
                let Some((device, vector)) = said.next() else {
                    continue;
                };
                (Some(device), Some(vector.clone()))
            } else {
                let sponsor = attachment.sponsor;
                let now = said.find(|(device, _)| sponsor == Some(*device));
                let now = now.map(|(_, vector)| vector);
                let join = attachment.join.as_ref();
                (sponsor, join.map(|join| still_wanted(join, now).clone()))
            };
            if attachment.awaits_sponsor || attachment.join != vector {
                attachment.awaits_sponsor = false;
                attachment.join = vector;
                attachment.sponsor = sponsor;
                let no = self.store.space(&space)?.no;
                let txn = self.store.begin()?;
                txn.index(no)?.set_attachment(&attachment)?;
                txn.commit()?;
            }
            let wanted = attachment.join.unwrap_or_else(VersionVector::new);
            if !self.store.has_applied(&space, &wanted)? {
                continue;
            }
            if space == self.home_space {
                self.introduce(now)?;
                self.refresh_tracking(now)?;
            }
            if let Some(worktree) = self.worktrees.get_mut(&space)
                && worktree.phase() == Phase::Joining
            {
                let mut cx = Context {
                    store: &mut self.store,
                    packs: &mut self.packs,
                    rng: &mut *self.rng,
                    now,
                };
                worktree.joined(&mut cx)?;
            }
        }
        Ok(())
    }

    /// Tells the pac this device's name if it has another one since its last start.
    pub(super) fn introduce_again(&mut self, now: Now) -> Result<(), StoreError> {
        let home = self.worktrees.get(&self.home_space);
        // Before it has joined it writes nothing.
        if home.is_some_and(|home| home.phase() != Phase::Joining) {
            self.introduce(now)?;
        }
        Ok(())
    }

    /// Tells the pac this device's name and that it keeps `home`, once.
    fn introduce(&mut self, now: Now) -> Result<(), StoreError> {
        if self.introduced {
            return Ok(());
        }
        self.introduced = true;
        let identity = self.store.identity().clone();
        let mut txn = self.store.begin()?;
        let changed = home::introduce(
            &mut txn,
            &identity,
            &self.home_space,
            &self.config.name,
            now.ms,
            &mut *self.rng,
        )?;
        if changed {
            let committed = txn.commit()?;
            self.committed(committed, None, now)?;
        }
        Ok(())
    }

    /// Makes the grant of a new device durable and puts together what it needs.
    ///
    /// # Errors
    /// One line for the user of the other device.
    pub fn enrol(&mut self, peer: &PairingPeer, now: Now) -> Result<Welcome, String> {
        let identity = self.store.identity().clone();
        let entries = home::enrol_entries(
            self.store.roster(),
            &identity,
            &peer.device,
            peer.role,
            &mut *self.rng,
        )
        .map_err(|error| error.to_string())?;
        let roster = self.store.roster_space();
        let committed = (|| {
            let mut txn = self.store.begin()?;
            txn.append(&roster, entries, now.ms, &mut *self.rng)?;
            txn.commit()
        })()
        .map_err(|error: StoreError| error.to_string())?;
        self.committed(committed, None, now)
            .map_err(|error| error.to_string())?;
        self.event(EventKind::DeviceEnrolled {
            device: peer.device.id.to_string(),
            name: peer.name.to_string(),
        });
        let addresses = self
            .transport
            .addresses()
            .iter()
            .map(ToString::to_string)
            .collect();
        home::welcome(&self.store, &self.home_space, peer.role, addresses)
            .map_err(|error| error.to_string())
    }

    /// What a device calls itself.
    pub(super) fn device_name(&self, device: &DeviceId) -> String {
        let settings = self.store.document(&self.home_space, &profile_id(device));
        match settings.ok().and_then(|mut s| s.remove("name")) {
            Some(Setting::Text(name)) => name,
            _ if *device == self.store.identity().keys.id() => self.config.name.to_string(),
            _ => device.short(),
        }
    }

    /// What a space is called.
    pub(super) fn space_name(&self, space: &SpaceId) -> String {
        if *space == self.home_space {
            return home::HOME_SPACE_NAME.into();
        }
        let settings = self.store.document(space, &settings_id(space));
        match settings.ok().and_then(|mut s| s.remove("name")) {
            Some(Setting::Text(name)) => name,
            _ => space.short(),
        }
    }

    pub(super) fn space_by_name(&self, name: &str) -> Result<SpaceId, CommandError> {
        let found: Vec<SpaceId> = self
            .store
            .spaces()
            .map(|space| space.id)
            .filter(|space| self.space_name(space) == name || space.to_string() == name)
            .collect();
        match found.as_slice() {
            [space] => Ok(*space),
            [] => Err(CommandError::failed(format!("no space is called {name:?}"))
                .with_hint("`pacsync space ls` lists them")),
            several => Err(
                CommandError::usage(format!("several spaces are called {name:?}"))
                    .with_hint("use the id")
                    .with_items(several.iter().map(ToString::to_string)),
            ),
        }
    }

    /// Founds a space and attaches it.
    pub(super) fn create_space(
        &mut self,
        name: &str,
        at: &Path,
        now: Now,
    ) -> Result<SpaceId, CommandError> {
        check_name(name)?;
        if self
            .store
            .spaces()
            .any(|space| self.space_name(&space.id) == name)
        {
            return Err(
                CommandError::failed(format!("a space is called {name:?} already")).with_hint(
                    format!("`pacsync space attach {name} --at DIR` attaches it here"),
                ),
            );
        }
        let space = SpaceId::from_bytes(random(&mut *self.rng));
        let root = self.free_root(&space, at)?;
        let secret = EpochSecret {
            key: Key::generate(&mut *self.rng),
            id_key: Key::generate(&mut *self.rng),
            parents: vec![],
        };
        let recipients = self.store.roster().recipients(&space);
        let record = secret.seal(space, vec![], recipients, &mut *self.rng);
        let placement = Placement {
            space,
            attached: true,
            turn: 1,
        };
        let entries = vec![
            Entry::Roster(RosterEntry::Epoch(record)),
            Entry::Roster(RosterEntry::Placement(placement)),
        ];
        let values = Settings::from([("name".to_owned(), Setting::Text(name.to_owned()))]);
        let roster = self.store.roster_space();
        let committed = (|| {
            let mut txn = self.store.begin()?;
            txn.append(&roster, entries, now.ms, &mut *self.rng)?;
            txn.write_document(&space, settings_id(&space), &values, now.ms, &mut *self.rng)?;
            let no = txn.space(&space)?.no;
            txn.index(no)?
                .set_attachment(&fresh_attachment(&root, None))?;
            txn.commit()
        })()
        .map_err(|error: StoreError| store_error(&error))?;
        self.committed(committed, None, now)
            .and_then(|()| self.refresh_tracking(now))
            .map_err(|error| store_error(&error))?;
        self.event(EventKind::Space {
            space: name.to_owned(),
            what: "created".into(),
        });
        Ok(space)
    }

    /// Gives a space a worktree here.
    pub(super) fn attach_space(
        &mut self,
        name: &str,
        at: &Path,
        now: Now,
    ) -> Result<SpaceId, CommandError> {
        let space = self.space_by_name(name)?;
        let attached = self.attachment(&space).map_err(|e| store_error(&e))?;
        // What lost its root is attached anew.
        if let Some(attachment) = attached
            && self.worktrees.get(&space).is_none_or(Worktree::has_root)
            && !self.unopened.contains_key(&space)
            && stands(&attachment)
        {
            let root = String::from_utf8_lossy(&attachment.root).into_owned();
            let error = CommandError::failed(format!("{name} is attached already, at {root}"));
            return Err(match space == self.home_space {
                true => error.with_hint("the home space moves only if its root is gone"),
                false => {
                    error.with_hint(format!("`pacsync space detach {name}` first; files stay"))
                }
            });
        }
        let root = self.free_root(&space, at)?;
        let join = (|| {
            let mut vector = self.store.held(&space)?;
            for peer in self.peers.values() {
                if let Some(known) = peer.session.peer_vector(&space) {
                    vector.merge(known);
                }
            }
            Ok(vector)
        })()
        .map_err(|error: StoreError| store_error(&error))?;
        self.worktrees.remove(&space);
        self.unopened.remove(&space);
        self.place(&space, true, Some((&root, join)), now)
            .map_err(|e| store_error(&e))?;
        if space == self.home_space {
            self.config.root = root;
            self.config_changed = true;
        }
        self.event(EventKind::Space {
            space: name.to_owned(),
            what: "attached".into(),
        });
        Ok(space)
    }

    /// Begins to end the worktree of a space here; files stay. It ends once what was put aside
    /// there is taken in.
    pub(super) fn close_space(&mut self, name: &str) -> Result<SpaceId, CommandError> {
        let space = self.space_by_name(name)?;
        if space == self.home_space {
            return Err(CommandError::usage("the home space stays attached")
                .with_hint("`pacsync forget PATH` stops tracking paths of it"));
        }
        if self
            .attachment(&space)
            .map_err(|e| store_error(&e))?
            .is_none()
        {
            return Err(CommandError::failed(format!("{name} is not attached here")));
        }
        if let Some(worktree) = self.worktrees.get_mut(&space) {
            worktree.close();
        }
        Ok(space)
    }

    pub(super) fn check_detach(
        &mut self,
        detach: Detach,
        now: Now,
    ) -> Result<Option<Waiter>, StoreError> {
        let worktree = self.worktrees.get_mut(&detach.space);
        let result = match worktree {
            Some(worktree) if !worktree.is_closed() => {
                if now.ms < detach.until_ms && !detach.reply.is_closed() {
                    return Ok(Some(Waiter::Detach(detach)));
                }
                worktree.reopen();
                let busy = "a program still writes to files that were replaced";
                Err(
                    CommandError::failed(format!("{} cannot be detached yet: {busy}", detach.name))
                        .with_hint("try again when it is done"),
                )
            }
            _ => self.detach_space(&detach, now),
        };
        let _ = detach.reply.send(self.report(result));
        Ok(None)
    }

    fn detach_space(&mut self, detach: &Detach, now: Now) -> Result<SpaceId, CommandError> {
        let space = detach.space;
        self.worktrees.remove(&space);
        self.unopened.remove(&space);
        self.place(&space, false, None, now)
            .map_err(|e| store_error(&e))?;
        self.event(EventKind::Space {
            space: detach.name.clone(),
            what: "detached".into(),
        });
        Ok(space)
    }

    fn place(
        &mut self,
        space: &SpaceId,
        attached: bool,
        at: Option<(&Path, VersionVector)>,
        now: Now,
    ) -> Result<(), StoreError> {
        let own = self.store.identity().keys.id();
        let before = self
            .store
            .roster()
            .placement(&own, space)
            .map_or(0, |p| p.turn);
        let placement = Placement {
            space: *space,
            attached,
            turn: before + 1,
        };
        let entries = vec![Entry::Roster(RosterEntry::Placement(placement))];
        let roster = self.store.roster_space();
        let no = self.store.space(space)?.no;
        let mut txn = self.store.begin()?;
        txn.append(&roster, entries, now.ms, &mut *self.rng)?;
        {
            let mut index = txn.index(no)?;
            match at {
                Some((root, join)) => {
                    index.detach()?;
                    index.set_attachment(&fresh_attachment(root, Some(join)))?;
                }
                None => index.detach()?,
            }
        }
        let committed = txn.commit()?;
        self.committed(committed, None, now)?;
        self.refresh_tracking(now)
    }

    /// The directory, made if it is missing, canonical, and in nobody's way.
    fn free_root(&self, of: &SpaceId, at: &Path) -> Result<PathBuf, CommandError> {
        let failed = |error: std::io::Error| {
            CommandError::failed(format!("cannot use {} as a root: {error}", at.display()))
                .with_hint("name a directory that this user can write to")
        };
        std::fs::create_dir_all(at).map_err(failed)?;
        let root = std::fs::canonicalize(at).map_err(failed)?;
        if root.parent().is_none() {
            return Err(
                CommandError::usage("the whole file system cannot be a space")
                    .with_hint("name a directory of your own"),
            );
        }
        if root.starts_with(self.home.path())
            || self.home.path().starts_with(&root) && {
                let own = std::fs::canonicalize(self.home.path()).map_err(failed)?;
                own.starts_with(&root) && own == root
            }
        {
            return Err(
                CommandError::usage("the daemon's own home cannot be synced")
                    .with_hint("name another directory"),
            );
        }
        if home::is_home_at(&root) {
            return Err(CommandError::usage(format!(
                "{} is a home of pacsync, with the keys of a device",
                root.display()
            ))
            .with_hint("name another directory"));
        }
        for space in self.store.spaces().filter(|space| space.id != *of) {
            let attachment = self.attachment(&space.id).map_err(|e| store_error(&e))?;
            let Some(attachment) = attachment else {
                continue;
            };
            let other = PathBuf::from(std::ffi::OsString::from_vec(attachment.root));
            let home = [space.id, *of].contains(&self.home_space);
            if other == root || (!home && (other.starts_with(&root) || root.starts_with(&other))) {
                return Err(CommandError::usage(format!(
                    "{} overlaps the root of {} at {}",
                    root.display(),
                    self.space_name(&space.id),
                    other.display()
                ))
                .with_hint("choose a directory outside of it"));
            }
        }
        // Before it is said to all that there is such a space.
        try_to_write(&root).map_err(failed)?;
        Ok(root)
    }

    /// Roots by space, for matching paths that users type.
    pub(super) fn roots(&self) -> Result<BTreeMap<PathBuf, SpaceId>, StoreError> {
        let mut roots = BTreeMap::new();
        for space in self.store.spaces() {
            if let Some(attachment) = self.attachment(&space.id)? {
                roots.insert(PathBuf::from(OsStr::from_bytes(&attachment.root)), space.id);
            }
        }
        Ok(roots)
    }
}

/// Makes a file and removes it.
fn try_to_write(root: &Path) -> std::io::Result<()> {
    let name = [RESERVED_PREFIX, b"t-try"].concat();
    let path = root.join(OsStr::from_bytes(&name));
    match std::fs::File::create_new(&path) {
        // Left by a crash; a scan sweeps it.
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => std::fs::remove_file(path),
    }
}

/// Whether the root is still the directory that was attached.
fn stands(attachment: &Attachment) -> bool {
    let found = std::fs::metadata(OsStr::from_bytes(&attachment.root));
    let Some(known) = attachment.root_identity else {
        return true;
    };
    found.is_ok_and(|found| found.ino() == known.ino)
}

/// What a join waits for. A vector only grows: what the sponsor does not say any more it never had,
/// or has lost, and nobody else may ever have it.
pub(super) fn still_wanted<'v>(
    join: &'v VersionVector,
    sponsor_says: Option<&'v VersionVector>,
) -> &'v VersionVector {
    match sponsor_says {
        Some(now) if !now.covers(join) => now,
        _ => join,
    }
}

fn fresh_attachment(root: &Path, join: Option<VersionVector>) -> Attachment {
    Attachment {
        root: root.as_os_str().as_bytes().to_vec(),
        join,
        root_identity: None,
        first_scan: true,
        entries: 0,
        awaits_sponsor: false,
        sponsor: None,
        tracked: None,
    }
}

fn check_name(name: &str) -> Result<(), CommandError> {
    let bad = name.is_empty()
        || name.len() > 64
        || name == home::HOME_SPACE_NAME
        || name.chars().any(|c| c.is_control() || c == '/');
    if bad {
        return Err(
            CommandError::usage(format!("{name:?} cannot be the name of a space"))
                .with_hint("use 1 to 64 bytes of text without `/`, other than `home`"),
        );
    }
    Ok(())
}

/// A failure of the store in words for the user.
pub(super) fn store_error(error: &StoreError) -> CommandError {
    let hint = if error.is_no_space() {
        "make room on the disk; the daemon goes on by itself"
    } else {
        "`pacsync status` says more; the log is in the daemon's home"
    };
    CommandError::failed(error.to_string()).with_hint(hint)
}

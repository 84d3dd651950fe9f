//! A file system in memory: inodes, links, times, watches, and what a power failure leaves.
//!
//! The engine's disk ([`super::disk`]) and the simulated user ([`super::user`]) work on the same
//! one. Never here: faults, the clock, who is calling.

use std::collections::BTreeMap;
use std::sync::Arc;

use pacsync_daemon::disk::{FileKind, FsEvent, Identity, RelPath, Stat};
use rand_core::RngCore;

use super::below;

/// What the file system can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub(crate) exchange: bool,
    pub(crate) case_sensitive: bool,
    pub(crate) birth_time: bool,
    pub(crate) modes: bool,
    pub(crate) symlinks: bool,
    pub(crate) hard_links: bool,
    /// Times are cut to multiples of this.
    pub(crate) grain_ns: u64,
}

impl Abilities {
    pub(crate) const EXT4: Self = Self {
        exchange: true,
        case_sensitive: true,
        birth_time: true,
        modes: true,
        symlinks: true,
        hard_links: true,
        grain_ns: 1,
    };
    pub(crate) const FAT: Self = Self {
        exchange: false,
        case_sensitive: false,
        birth_time: false,
        modes: false,
        symlinks: false,
        hard_links: false,
        grain_ns: 2_000_000_000,
    };
}

/// Why an operation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    NotFound,
    NotADirectory,
    SymlinkInPath,
    Exists,
    NotEmpty,
    WrongKind,
    Unsupported,
    Invalid,
    NoSpace,
    Io,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    File(Arc<Vec<u8>>),
    Dir(BTreeMap<Vec<u8>, u64>),
    Symlink(Vec<u8>),
}

#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) body: Body,
    pub(crate) mode: u16,
    pub(crate) nlink: u32,
    mtime_ns: i64,
    ctime_ns: i64,
    btime_ns: i64,
    /// Tells apart files that had the same number one after the other.
    pub(crate) generation: u64,
}

/// Numbers of inodes begin here; the root's is this one.
const ROOT: u64 = 2;
/// Metadata states kept between syncs; beyond it the oldest become durable by themselves.
const JOURNAL_MAX: usize = 256;

/// The state of names and inodes at one moment.
#[derive(Debug, Clone)]
struct Image {
    inodes: BTreeMap<u64, Arc<Inode>>,
    next: u64,
    /// Freed numbers, handed out again, the last one first.
    free: Vec<u64>,
}

/// One simulated disk.
#[derive(Debug, Clone)]
pub(crate) struct Fs {
    now: Image,
    generation: u64,
    pub(crate) can: Abilities,
    /// How far the machine's clock is ahead.
    pub(crate) ahead_ns: i64,
    /// Handles by inode: what is open is not freed.
    open: BTreeMap<u64, u32>,
    /// States that a power failure may go back to, oldest first; the first one is durable.
    journal: Vec<Image>,
    /// Synced content of files by (inode, generation).
    synced: BTreeMap<(u64, u64), Arc<Vec<u8>>>,
    /// Watched directories: inode → the path under which it was watched.
    watched: BTreeMap<u64, RelPath>,
    events: Vec<FsEvent>,
    /// Counts every change.
    pub(crate) changes: u64,
}

impl Fs {
    pub(crate) fn new(can: Abilities, now_ns: u64) -> Self {
        let root = Inode {
            body: Body::Dir(BTreeMap::new()),
            mode: 0o755,
            nlink: 2,
            mtime_ns: now_ns as i64,
            ctime_ns: now_ns as i64,
            btime_ns: now_ns as i64,
            generation: 0,
        };
        let now = Image {
            inodes: BTreeMap::from([(ROOT, Arc::new(root))]),
            next: ROOT + 10,
            free: vec![],
        };
        Self {
            journal: vec![now.clone()],
            now,
            generation: 1,
            can,
            ahead_ns: 0,
            open: BTreeMap::new(),
            synced: BTreeMap::new(),
            watched: BTreeMap::new(),
            events: vec![],
            changes: 0,
        }
    }

    /// Events since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<FsEvent> {
        let mut events = std::mem::take(&mut self.events);
        events.dedup();
        events
    }

    /// The process that watched and had files open is gone.
    pub(crate) fn process_died(&mut self) {
        self.watched.clear();
        self.events.clear();
    }

    /// Another disk with all that is on this one, as on a machine that was just switched on.
    pub(crate) fn twin(&self) -> Self {
        let mut twin = self.clone();
        twin.open.clear();
        twin.process_died();
        twin.sync_all();
        twin
    }

    /// Everything is durable.
    pub(crate) fn sync_all(&mut self) {
        self.sync_metadata();
        self.synced.clear();
        for (ino, inode) in &self.now.inodes {
            if let Body::File(data) = &inode.body {
                self.synced
                    .insert((*ino, inode.generation), Arc::clone(data));
            }
        }
    }

    /// All names are durable, as a journal's commit makes them.
    pub(crate) fn sync_metadata(&mut self) {
        self.journal.clear();
        self.journal.push(self.now.clone());
    }

    pub(crate) fn sync_data(&mut self, ino: u64) {
        if let Some(inode) = self.now.inodes.get(&ino)
            && let Body::File(data) = &inode.body
        {
            self.synced
                .insert((ino, inode.generation), Arc::clone(data));
        }
        // Its inode and the names that lead to it go to the journal with it.
        self.sync_metadata();
    }

    /// Loses what was not synced: names back to some moment since the last sync, content of files
    /// to any mixture.
    pub(crate) fn lose_power(&mut self, rng: &mut impl RngCore) {
        let at = below(rng, self.journal.len() as u64) as usize;
        if let Some(image) = self.journal.get(at) {
            self.now = image.clone();
        }
        let inodes: Vec<u64> = self.now.inodes.keys().copied().collect();
        for ino in inodes {
            let Some(inode) = self.now.inodes.get_mut(&ino) else {
                continue;
            };
            let durable = self
                .synced
                .get(&(ino, inode.generation))
                .cloned()
                .unwrap_or_default();
            let inode = Arc::make_mut(inode);
            let Body::File(data) = &mut inode.body else {
                continue;
            };
            if **data == *durable {
                continue;
            }
            match below(rng, 3) {
                0 => {}
                1 => *data = durable,
                _ => {
                    let kept = below(rng, data.len() as u64 + 1) as usize;
                    let mut torn = data.get(..kept).unwrap_or_default().to_vec();
                    if below(rng, 2) == 0 {
                        torn.resize(data.len(), 0);
                    }
                    *data = Arc::new(torn);
                }
            }
        }
        self.open.clear();
        self.sync_all();
        self.process_died();
    }

    fn changed(&mut self) {
        self.changes += 1;
        self.journal.push(self.now.clone());
        if self.journal.len() > JOURNAL_MAX {
            self.journal.drain(..JOURNAL_MAX / 2);
        }
    }

    fn time(&self, now_ns: u64) -> i64 {
        // The kernel's clock ticks every four milliseconds.
        const TICK: u64 = 4_000_000;
        let grain = self.can.grain_ns.max(TICK);
        let now_ns = now_ns.saturating_add_signed(self.ahead_ns);
        (now_ns - now_ns % grain) as i64
    }

    pub(crate) fn inode(&self, ino: u64) -> Option<&Inode> {
        self.now.inodes.get(&ino).map(|inode| &**inode)
    }

    fn edit(&mut self, ino: u64) -> Option<&mut Inode> {
        self.now.inodes.get_mut(&ino).map(Arc::make_mut)
    }

    fn entries(&self, dir: u64) -> Result<&BTreeMap<Vec<u8>, u64>, Refused> {
        match self.inode(dir).map(|inode| &inode.body) {
            Some(Body::Dir(entries)) => Ok(entries),
            Some(Body::Symlink(_)) => Err(Refused::SymlinkInPath),
            Some(Body::File(_)) => Err(Refused::NotADirectory),
            None => Err(Refused::NotFound),
        }
    }

    fn entries_mut(&mut self, dir: u64) -> Option<&mut BTreeMap<Vec<u8>, u64>> {
        match self.edit(dir).map(|inode| &mut inode.body) {
            Some(Body::Dir(entries)) => Some(entries),
            _ => None,
        }
    }

    /// The entry of that name, as it is stored.
    fn find(&self, dir: u64, name: &[u8]) -> Result<Option<(Vec<u8>, u64)>, Refused> {
        let entries = self.entries(dir)?;
        if let Some(ino) = entries.get(name) {
            return Ok(Some((name.to_vec(), *ino)));
        }
        if self.can.case_sensitive {
            return Ok(None);
        }
        Ok(entries
            .iter()
            .find(|(stored, _)| stored.eq_ignore_ascii_case(name))
            .map(|(stored, ino)| (stored.clone(), *ino)))
    }

    fn dir(&self, path: &RelPath) -> Result<u64, Refused> {
        let mut at = ROOT;
        for name in path.names() {
            at = self.find(at, name)?.ok_or(Refused::NotFound)?.1;
        }
        self.entries(at)?;
        Ok(at)
    }

    fn holder<'p>(&self, path: &'p RelPath) -> Result<(u64, &'p [u8]), Refused> {
        let name = path.name().ok_or(Refused::Invalid)?;
        Ok((self.dir(&path.parent().unwrap_or_default())?, name))
    }

    /// The inode at a path; of a symlink its own.
    pub(crate) fn lookup(&self, path: &RelPath) -> Result<u64, Refused> {
        if path.is_root() {
            return Ok(ROOT);
        }
        let (dir, name) = self.holder(path)?;
        Ok(self.find(dir, name)?.ok_or(Refused::NotFound)?.1)
    }

    pub(crate) fn stat_ino(&self, ino: u64) -> Option<Stat> {
        let inode = self.inode(ino)?;
        let (kind, size) = match &inode.body {
            Body::File(data) => (FileKind::File, data.len() as u64),
            Body::Dir(_) => (FileKind::Dir, 4096),
            Body::Symlink(target) => (FileKind::Symlink, target.len() as u64),
        };
        Some(Stat {
            kind,
            mode: if self.can.modes { inode.mode } else { 0o755 },
            nlink: inode.nlink,
            identity: Identity {
                dev: 1,
                ino,
                size,
                mtime_ns: inode.mtime_ns,
                ctime_ns: inode.ctime_ns,
                btime_ns: self.can.birth_time.then_some(inode.btime_ns),
            },
        })
    }

    pub(crate) fn list(&self, dir: &RelPath) -> Result<Vec<(Vec<u8>, Stat)>, Refused> {
        let dir = self.dir(dir)?;
        Ok(self
            .entries(dir)?
            .iter()
            .filter_map(|(name, ino)| Some((name.clone(), self.stat_ino(*ino)?)))
            .collect())
    }

    fn allocate(&mut self, body: Body, mode: u16, now_ns: u64) -> u64 {
        let time = self.time(now_ns);
        let ino = match self.now.free.pop() {
            Some(ino) if !self.open.contains_key(&ino) => ino,
            _ => {
                self.now.next += 1;
                self.now.next
            }
        };
        self.generation += 1;
        let nlink = if matches!(body, Body::Dir(_)) { 2 } else { 1 };
        let inode = Inode {
            body,
            mode,
            nlink,
            mtime_ns: time,
            ctime_ns: time,
            btime_ns: time,
            generation: self.generation,
        };
        self.now.inodes.insert(ino, Arc::new(inode));
        ino
    }

    fn add(&mut self, path: &RelPath, body: Body, mode: u16, now_ns: u64) -> Result<u64, Refused> {
        let (dir, name) = self.holder(path)?;
        if self.find(dir, name)?.is_some() {
            return Err(Refused::Exists);
        }
        let is_dir = matches!(body, Body::Dir(_));
        let ino = self.allocate(body, mode, now_ns);
        self.enter(dir, name, ino, now_ns);
        self.emit(dir, name, |path| {
            if is_dir {
                FsEvent::DirAppeared(path)
            } else {
                FsEvent::Touched(path)
            }
        });
        self.changed();
        Ok(ino)
    }

    fn enter(&mut self, dir: u64, name: &[u8], ino: u64, now_ns: u64) {
        if let Some(entries) = self.entries_mut(dir) {
            entries.insert(name.to_vec(), ino);
        }
        self.touch_dir(dir, now_ns);
    }

    fn leave(&mut self, dir: u64, name: &[u8], now_ns: u64) {
        if let Some(entries) = self.entries_mut(dir) {
            entries.remove(name);
        }
        self.touch_dir(dir, now_ns);
    }

    fn touch_dir(&mut self, dir: u64, now_ns: u64) {
        let time = self.time(now_ns);
        if let Some(inode) = self.edit(dir) {
            inode.mtime_ns = time;
            inode.ctime_ns = time;
        }
    }

    fn touch_ctime(&mut self, ino: u64, now_ns: u64) {
        let time = self.time(now_ns);
        if let Some(inode) = self.edit(ino) {
            inode.ctime_ns = time;
        }
    }

    fn unref(&mut self, ino: u64) {
        let Some(inode) = self.edit(ino) else { return };
        inode.nlink = match inode.body {
            Body::Dir(_) => 0,
            _ => inode.nlink.saturating_sub(1),
        };
        self.free_if_unused(ino);
    }

    fn free_if_unused(&mut self, ino: u64) {
        let unused = self.inode(ino).is_some_and(|inode| inode.nlink == 0);
        if unused && !self.open.contains_key(&ino) {
            self.now.inodes.remove(&ino);
            self.watched.remove(&ino);
            self.now.free.push(ino);
        }
    }

    /// Tells who watches a directory.
    fn emit(&mut self, dir: u64, name: &[u8], event: impl Fn(RelPath) -> FsEvent) {
        if let Some(path) = self.watched.get(&dir).and_then(|dir| dir.join(name).ok()) {
            self.events.push(event(path));
        }
    }

    /// Events of an open file go to wherever it is now.
    fn emit_of(&mut self, ino: u64, event: impl Fn(RelPath) -> FsEvent) {
        let places: Vec<(u64, Vec<u8>)> = self
            .watched
            .keys()
            .filter_map(|dir| {
                let entries = self.entries(*dir).ok()?;
                let (name, _) = entries.iter().find(|(_, other)| **other == ino)?;
                Some((*dir, name.clone()))
            })
            .collect();
        for (dir, name) in places {
            self.emit(dir, &name, &event);
        }
    }

    /// A directory left its place: watches beneath have wrong paths.
    fn end_watches(&mut self, dir: u64, name: &[u8]) {
        if let Some(path) = self.watched.get(&dir).and_then(|dir| dir.join(name).ok()) {
            self.watched
                .retain(|_, watched| !watched.starts_with(&path));
        }
    }

    pub(crate) fn watch(&mut self, dir: &RelPath) -> Result<(), Refused> {
        let ino = self.dir(dir)?;
        if self.watched.get(&ino) == Some(dir) {
            return Ok(());
        }
        if let Some(before) = self.watched.get(&ino).cloned() {
            self.watched.retain(|_, path| !path.starts_with(&before));
        }
        self.watched.retain(|_, path| !path.starts_with(dir));
        self.watched.insert(ino, dir.clone());
        Ok(())
    }

    pub(crate) fn unwatch(&mut self, dir: &RelPath) {
        self.watched.retain(|_, path| path != dir);
    }

    pub(crate) fn create(&mut self, path: &RelPath, mode: u16, now: u64) -> Result<u64, Refused> {
        self.add(path, Body::File(Arc::default()), mode, now)
    }

    pub(crate) fn mkdir(&mut self, path: &RelPath, mode: u16, now: u64) -> Result<(), Refused> {
        self.add(path, Body::Dir(BTreeMap::new()), mode, now)
            .map(drop)
    }

    pub(crate) fn symlink(
        &mut self,
        path: &RelPath,
        target: &[u8],
        now: u64,
    ) -> Result<(), Refused> {
        if !self.can.symlinks {
            return Err(Refused::Unsupported);
        }
        self.add(path, Body::Symlink(target.to_vec()), 0o777, now)
            .map(drop)
    }

    pub(crate) fn hold(&mut self, ino: u64) {
        *self.open.entry(ino).or_insert(0) += 1;
    }

    pub(crate) fn is_open(&self, ino: u64) -> bool {
        self.open.contains_key(&ino)
    }

    /// A handle was closed.
    pub(crate) fn release(&mut self, ino: u64, written: bool) {
        if let Some(count) = self.open.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&ino);
            }
        }
        if written {
            self.emit_of(ino, FsEvent::Written);
        }
        self.free_if_unused(ino);
    }

    pub(crate) fn write(&mut self, ino: u64, at: u64, bytes: &[u8], now: u64) {
        let time = self.time(now);
        if let Some(inode) = self.edit(ino)
            && let Body::File(data) = &mut inode.body
        {
            let data = Arc::make_mut(data);
            let at = at as usize;
            let end = at + bytes.len();
            if data.len() < end {
                data.resize(end, 0);
            }
            if let Some(place) = data.get_mut(at..end) {
                place.copy_from_slice(bytes);
            }
            inode.mtime_ns = time;
            inode.ctime_ns = time;
        }
        self.emit_of(ino, FsEvent::Modified);
        self.changed();
    }

    pub(crate) fn set_len(&mut self, ino: u64, len: u64, now: u64) {
        let time = self.time(now);
        if let Some(inode) = self.edit(ino)
            && let Body::File(data) = &mut inode.body
        {
            if data.len() as u64 != len {
                Arc::make_mut(data).resize(len as usize, 0);
            }
            inode.mtime_ns = time;
            inode.ctime_ns = time;
        }
        self.emit_of(ino, FsEvent::Modified);
        self.changed();
    }

    pub(crate) fn set_mode(&mut self, ino: u64, mode: u16, now: u64) -> Result<(), Refused> {
        if !self.can.modes {
            return Ok(());
        }
        if matches!(self.inode(ino).map(|i| &i.body), Some(Body::Symlink(_))) {
            return Err(Refused::WrongKind);
        }
        if let Some(inode) = self.edit(ino) {
            inode.mode = mode & 0o777;
        }
        self.touch_ctime(ino, now);
        self.emit_of(ino, FsEvent::Touched);
        self.changed();
        Ok(())
    }

    pub(crate) fn set_mtime(&mut self, ino: u64, mtime_ns: i64, now: u64) {
        let grain = self.can.grain_ns as i64;
        if let Some(inode) = self.edit(ino) {
            inode.mtime_ns = mtime_ns - mtime_ns.rem_euclid(grain);
        }
        self.touch_ctime(ino, now);
        self.emit_of(ino, FsEvent::Touched);
        self.changed();
    }

    fn is_dir(&self, ino: u64) -> bool {
        matches!(self.inode(ino).map(|i| &i.body), Some(Body::Dir(_)))
    }

    /// True if `dir` is `above` or lies beneath it.
    fn is_beneath(&self, dir: u64, above: u64) -> bool {
        let mut open = vec![above];
        while let Some(at) = open.pop() {
            if at == dir {
                return true;
            }
            if let Ok(entries) = self.entries(at) {
                open.extend(entries.values().copied());
            }
        }
        false
    }

    pub(crate) fn rename(
        &mut self,
        from: &RelPath,
        to: &RelPath,
        replace: bool,
        now: u64,
    ) -> Result<(), Refused> {
        let (from_dir, from_name) = self.holder(from)?;
        let (from_name, ino) = self.find(from_dir, from_name)?.ok_or(Refused::NotFound)?;
        let (to_dir, to_name) = self.holder(to)?;
        if self.is_dir(ino) && self.is_beneath(to_dir, ino) {
            return Err(Refused::Invalid);
        }
        let target = self.find(to_dir, to_name)?;
        match target {
            // Another case of the same name.
            Some((_, other)) if other == ino && replace => {}
            Some(_) if !replace => return Err(Refused::Exists),
            Some((stored, other)) => {
                match (self.is_dir(ino), self.is_dir(other)) {
                    (true, false) => return Err(Refused::NotADirectory),
                    (false, true) => return Err(Refused::WrongKind),
                    (true, true) if !self.entries(other)?.is_empty() => {
                        return Err(Refused::NotEmpty);
                    }
                    _ => {}
                }
                self.leave(to_dir, &stored, now);
                self.unref(other);
            }
            None => {}
        }
        let is_dir = self.is_dir(ino);
        self.leave(from_dir, &from_name, now);
        self.enter(to_dir, to_name, ino, now);
        self.touch_ctime(ino, now);
        self.left(from_dir, &from_name, is_dir);
        self.arrived(to_dir, to_name, is_dir);
        self.changed();
        Ok(())
    }

    fn left(&mut self, dir: u64, name: &[u8], is_dir: bool) {
        if is_dir {
            self.end_watches(dir, name);
        }
        self.emit(dir, name, FsEvent::Touched);
    }

    fn arrived(&mut self, dir: u64, name: &[u8], is_dir: bool) {
        self.emit(dir, name, |path| {
            if is_dir {
                FsEvent::DirAppeared(path)
            } else {
                FsEvent::Written(path)
            }
        });
    }

    pub(crate) fn exchange(&mut self, a: &RelPath, b: &RelPath, now: u64) -> Result<(), Refused> {
        if !self.can.exchange {
            return Err(Refused::Unsupported);
        }
        let (a_dir, a_name) = self.holder(a)?;
        let (a_name, a_ino) = self.find(a_dir, a_name)?.ok_or(Refused::NotFound)?;
        let (b_dir, b_name) = self.holder(b)?;
        let (b_name, b_ino) = self.find(b_dir, b_name)?.ok_or(Refused::NotFound)?;
        if self.is_beneath(b_dir, a_ino) && self.is_dir(a_ino)
            || self.is_beneath(a_dir, b_ino) && self.is_dir(b_ino)
        {
            return Err(Refused::Invalid);
        }
        let (a_is_dir, b_is_dir) = (self.is_dir(a_ino), self.is_dir(b_ino));
        self.enter(a_dir, &a_name, b_ino, now);
        self.enter(b_dir, &b_name, a_ino, now);
        self.touch_ctime(a_ino, now);
        self.touch_ctime(b_ino, now);
        self.left(a_dir, &a_name, a_is_dir);
        self.arrived(b_dir, &b_name, a_is_dir);
        self.left(b_dir, &b_name, b_is_dir);
        self.arrived(a_dir, &a_name, b_is_dir);
        self.changed();
        Ok(())
    }

    pub(crate) fn link(&mut self, from: &RelPath, to: &RelPath, now: u64) -> Result<(), Refused> {
        if !self.can.hard_links {
            return Err(Refused::Unsupported);
        }
        let ino = self.lookup(from)?;
        if self.is_dir(ino) {
            return Err(Refused::WrongKind);
        }
        let (dir, name) = self.holder(to)?;
        if self.find(dir, name)?.is_some() {
            return Err(Refused::Exists);
        }
        if let Some(inode) = self.edit(ino) {
            inode.nlink += 1;
        }
        self.touch_ctime(ino, now);
        self.enter(dir, name, ino, now);
        self.emit_of(ino, FsEvent::Touched);
        self.changed();
        Ok(())
    }

    pub(crate) fn unlink(&mut self, path: &RelPath, now: u64) -> Result<(), Refused> {
        let (dir, name) = self.holder(path)?;
        let (name, ino) = self.find(dir, name)?.ok_or(Refused::NotFound)?;
        if self.is_dir(ino) {
            return Err(Refused::WrongKind);
        }
        self.leave(dir, &name, now);
        self.touch_ctime(ino, now);
        self.unref(ino);
        self.left(dir, &name, false);
        self.changed();
        Ok(())
    }

    pub(crate) fn rmdir(&mut self, path: &RelPath, now: u64) -> Result<(), Refused> {
        let (dir, name) = self.holder(path)?;
        let (name, ino) = self.find(dir, name)?.ok_or(Refused::NotFound)?;
        if !self.entries(ino)?.is_empty() {
            return Err(Refused::NotEmpty);
        }
        self.left(dir, &name, true);
        self.leave(dir, &name, now);
        self.watched.remove(&ino);
        self.unref(ino);
        self.changed();
        Ok(())
    }

    /// Everything beneath the root, parents first: path, inode.
    pub(crate) fn walk(&self) -> Vec<(RelPath, u64)> {
        let mut found = vec![];
        let mut open = vec![(RelPath::root(), ROOT)];
        while let Some((path, ino)) = open.pop() {
            if let Ok(entries) = self.entries(ino) {
                for (name, below) in entries.iter().rev() {
                    if let Ok(path) = path.join(name) {
                        open.push((path, *below));
                    }
                }
            }
            if !path.is_root() {
                found.push((path, ino));
            }
        }
        found
    }
}

//! Change events of watched directories, by inotify.
//!
//! Here: which watch stands for which path, and a thread that turns the kernel's events into
//! [`FsEvent`]s. Never here: recursion or a look at the disk.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::linux::retry;
use super::mounts::Mounts;
use super::resolve::through_proc;
use super::{EventSink, FsEvent, RelPath};

/// Bytes of events read in one call.
const READ_BUFFER: usize = 64 * 1024;

const WATCHED: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);

/// An inotify instance and the thread that reads it.
///
/// Costs about 100 bytes and the length of its path for each watched directory, beside what the
/// kernel needs.
pub(super) struct Watcher {
    shared: Arc<Shared>,
}

struct Shared {
    inotify: OwnedFd,
    stop: OwnedFd,
    mounts: Option<Mounts>,
    table: Mutex<Table>,
}

impl Watcher {
    /// Starts the thread, which watches nothing yet beneath the root.
    ///
    /// A removed directory that is held open, as the root is, reports nothing itself; so the
    /// directory above the root is watched for what happens to `root_name`, if it may be read.
    pub(super) fn start(
        root: BorrowedFd<'_>,
        root_name: Option<Vec<u8>>,
        sink: EventSink,
    ) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let above = root_name.and_then(|name| Some((watch_above(&inotify, root).ok()?, name)));
        let shared = Arc::new(Shared {
            inotify,
            stop,
            mounts: Mounts::of(root),
            table: Mutex::new(Table {
                above,
                ..Table::default()
            }),
        });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("pacsync-watch".to_owned())
            .spawn(move || for_thread.run(&sink))?;
        Ok(Self { shared })
    }

    /// Watches the directory that `fd` is open on, as `path`.
    pub(super) fn watch(&self, fd: BorrowedFd<'_>, path: &RelPath) -> Result<(), Errno> {
        // Held until the table knows the watch, or its first events would find no path.
        let mut table = self.shared.table();
        let wd = inotify::add_watch(&self.shared.inotify, through_proc(fd), WATCHED)?;
        let stale = table.insert(wd, path);
        self.shared.end(stale);
        Ok(())
    }

    pub(super) fn unwatch(&self, path: &RelPath) {
        let stale = self.shared.table().remove(path);
        self.shared.end(stale);
    }

    #[cfg(test)]
    pub(super) fn watched(&self) -> Vec<RelPath> {
        self.shared.table().by_path.keys().cloned().collect()
    }
}

impl Drop for Watcher {
    /// Tells the thread to end; waiting for it could hang if its sink waits for this thread.
    fn drop(&mut self) {
        // A counter of one never blocks or fails on a live handle.
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
    }
}

fn watch_above(inotify: &OwnedFd, root: BorrowedFd<'_>) -> Result<i32, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = openat(root, "..", flags, Mode::empty())?;
    let events = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::ONLYDIR;
    inotify::add_watch(inotify, through_proc(above.as_fd()), events)
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is complete before anything can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends watches that the table no longer knows; the kernel may have ended them already.
    fn end(&self, wds: Vec<i32>) {
        for wd in wds {
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }

    fn run(&self, sink: &EventSink) {
        let mut mounted = self.mounts.as_ref().map(Mounts::list).unwrap_or_default();
        while let Some(woken) = self.wait() {
            let mut events = Vec::new();
            if woken.events {
                self.read(&mut events);
            }
            if let (true, Some(mounts)) = (woken.mounts, &self.mounts) {
                let now = mounts.list();
                events.extend(mounts.changes(&mounted, &now));
                mounted = now;
            }
            // A large write is many equal events in a row.
            events.dedup();
            for event in events {
                sink(event);
            }
        }
    }

    fn read(&self, events: &mut Vec<FsEvent>) {
        let mut buffer: Vec<u8> = Vec::with_capacity(READ_BUFFER);
        let mut reader = Reader::new(&self.inotify, buffer.spare_capacity_mut());
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes());
                    let mut table = self.table();
                    let stale = table.take(event.wd(), event.events(), name, events);
                    self.end(stale);
                }
                Err(Errno::INTR) => continue,
                Err(_) => break,
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
    }

    /// Waits for something to read; `None` when the watcher is gone.
    fn wait(&self) -> Option<Woken> {
        let mut fds = vec![
            PollFd::new(&self.inotify, PollFlags::IN),
            PollFd::new(&self.stop, PollFlags::IN),
        ];
        if let Some(mounts) = &self.mounts {
            fds.push(PollFd::new(&mounts.table, PollFlags::PRI));
        }
        retry(|| poll(&mut fds, None)).ok()?;
        let mut woken = fds.iter().map(|fd| !fd.revents().is_empty());
        let events = woken.next()?;
        let stop = woken.next()?;
        (!stop).then_some(Woken {
            events,
            mounts: woken.next().unwrap_or_default(),
        })
    }
}

struct Woken {
    events: bool,
    mounts: bool,
}

/// Which watch stands for which path: a one-to-one map, both sides sharing the path's bytes.
#[derive(Default)]
struct Table {
    by_wd: HashMap<i32, RelPath>,
    by_path: BTreeMap<RelPath, i32>,
    /// The watch of the directory above the root, and the root's name in it.
    above: Option<(i32, Vec<u8>)>,
}

impl Table {
    /// Records a watch; returns the watches to end.
    ///
    /// The kernel gives a directory that is watched already, under another path too, the same
    /// watch again.
    fn insert(&mut self, wd: i32, path: &RelPath) -> Vec<i32> {
        if self.by_path.get(path) == Some(&wd) {
            return Vec::new();
        }
        let mut stale = Vec::new();
        if let Some(moved_from) = self.by_wd.get(&wd).cloned() {
            stale.extend(self.remove_tree(&moved_from));
        }
        // Another directory was here: what is known beneath it is as old.
        stale.extend(self.remove_tree(path));
        stale.retain(|ended| *ended != wd);
        self.by_wd.insert(wd, path.clone());
        self.by_path.insert(path.clone(), wd);
        stale
    }

    fn remove(&mut self, path: &RelPath) -> Vec<i32> {
        let wd = self.by_path.remove(path);
        wd.iter().for_each(|wd| {
            self.by_wd.remove(wd);
        });
        wd.into_iter().collect()
    }

    /// Forgets a directory and all beneath it; returns the watches to end.
    fn remove_tree(&mut self, path: &RelPath) -> Vec<i32> {
        let gone: Vec<RelPath> = self
            .by_path
            .range(path..)
            .map(|(watched, _)| watched.clone())
            .take_while(|watched| watched.starts_with(path))
            .collect();
        gone.iter().flat_map(|path| self.remove(path)).collect()
    }

    /// Translates one event; returns the watches to end.
    fn take(
        &mut self,
        wd: i32,
        mask: ReadFlags,
        name: Option<&[u8]>,
        out: &mut Vec<FsEvent>,
    ) -> Vec<i32> {
        if mask.intersects(ReadFlags::QUEUE_OVERFLOW) {
            out.push(FsEvent::Overflow);
            return Vec::new();
        }
        if let Some((above, root_name)) = &self.above
            && *above == wd
        {
            if name == Some(root_name) {
                out.push(FsEvent::RootGone);
            }
            if mask.intersects(ReadFlags::IGNORED) {
                self.above = None;
            }
            return Vec::new();
        }
        // Events of watches that ended may still be in the queue.
        let Some(dir) = self.by_wd.get(&wd).cloned() else {
            return Vec::new();
        };
        match name.map(|name| dir.join(name)) {
            Some(Ok(entry)) => self.take_entry(entry, mask, out),
            Some(Err(_)) => Vec::new(),
            None => self.take_own(dir, mask, out),
        }
    }

    /// An event of a watched directory itself.
    fn take_own(&mut self, dir: RelPath, mask: ReadFlags, out: &mut Vec<FsEvent>) -> Vec<i32> {
        let ended = ReadFlags::DELETE_SELF | ReadFlags::UNMOUNT | ReadFlags::MOVE_SELF;
        if mask.intersects(ended) && dir.is_root() {
            out.push(FsEvent::RootGone);
            return Vec::new();
        }
        if mask.intersects(ended) {
            let stale = self.remove_tree(&dir);
            // The path may have been watched anew, for what is there now, before this event was
            // read: whoever looks again finds out.
            out.push(FsEvent::DirAppeared(dir));
            return stale;
        }
        if mask.intersects(ReadFlags::IGNORED) {
            return self.remove(&dir);
        }
        out.push(FsEvent::Touched(dir));
        Vec::new()
    }

    /// An event of an entry in a watched directory.
    fn take_entry(&mut self, entry: RelPath, mask: ReadFlags, out: &mut Vec<FsEvent>) -> Vec<i32> {
        let is_dir = mask.intersects(ReadFlags::ISDIR);
        if mask.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
            let stale = if is_dir {
                self.remove_tree(&entry)
            } else {
                Vec::new()
            };
            out.push(FsEvent::Touched(entry));
            return stale;
        }
        out.push(
            if mask.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) && is_dir {
                FsEvent::DirAppeared(entry)
            } else if mask.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) {
                FsEvent::Written(entry)
            } else if mask.intersects(ReadFlags::MODIFY) {
                FsEvent::Modified(entry)
            } else if mask.intersects(ReadFlags::CREATE) {
                FsEvent::Created(entry)
            } else {
                FsEvent::Touched(entry)
            },
        );
        Vec::new()
    }
}

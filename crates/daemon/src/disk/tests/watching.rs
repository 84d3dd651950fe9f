use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use tempfile::TempDir;

use super::super::{Disk, FsEvent, LinuxDisk, RelPath};
use super::{error, path};

/// Only a guard against hanging: no event takes nearly as long.
const GUARD: Duration = Duration::from_secs(60);

struct Watched {
    disk: LinuxDisk,
    events: Receiver<FsEvent>,
    root: PathBuf,
    _outer: TempDir,
}

impl Watched {
    /// A watched root in a directory of its own.
    fn new() -> Self {
        let outer = tempfile::tempdir().expect("a temporary directory");
        let root = outer.path().join("root");
        std::fs::create_dir(&root).expect("made");
        let (send, events) = channel();
        let sink = Box::new(move |event| {
            // The test may have seen enough.
            let _ = send.send(event);
        });
        let disk = LinuxDisk::with_events(&root, sink).expect("the root opens");
        disk.watch(&RelPath::root()).expect("the root is watched");
        Self {
            disk,
            events,
            root,
            _outer: outer,
        }
    }

    fn next(&self) -> FsEvent {
        self.events.recv_timeout(GUARD).expect("an event")
    }

    /// All events up to the first `last`, which must come.
    fn until(&self, last: &FsEvent) -> Vec<FsEvent> {
        let mut seen = Vec::new();
        loop {
            let event = self.next();
            let done = event == *last;
            seen.push(event);
            if done {
                return seen;
            }
        }
    }

    /// All events of what was done before: a file of its own marks the end.
    fn flush(&self) -> Vec<FsEvent> {
        std::fs::write(self.root.join("marker"), "").expect("written");
        self.until(&written("marker"))
    }

    fn real(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn watched(&self) -> Vec<String> {
        let watcher = self.disk.watcher().expect("a disk with events");
        watcher.watched().iter().map(ToString::to_string).collect()
    }
}

fn written(at: &str) -> FsEvent {
    FsEvent::Written(path(at))
}

fn touched(at: &str) -> FsEvent {
    FsEvent::Touched(path(at))
}

fn created(at: &str) -> FsEvent {
    FsEvent::Created(path(at))
}

fn appeared(at: &str) -> FsEvent {
    FsEvent::DirAppeared(path(at))
}

#[test]
fn each_change_is_reported_as_what_it_is() {
    use std::io::Write;
    let watched = Watched::new();
    let mut file = std::fs::File::create(watched.real("file")).expect("created");
    file.write_all(b"some").expect("written");
    let seen = watched.until(&FsEvent::Modified(path("file")));
    assert_eq!(seen, [created("file"), FsEvent::Modified(path("file"))]);
    drop(file);
    assert_eq!(watched.next(), written("file"));

    watched
        .disk
        .set_mode(&path("file"), 0o640)
        .expect("mode set");
    assert_eq!(watched.next(), touched("file"));
    std::fs::rename(watched.real("file"), watched.real("moved")).expect("moved");
    assert_eq!(watched.next(), touched("file"));
    assert_eq!(watched.next(), written("moved"));
    watched.disk.symlink(&path("link"), b"x").expect("linked");
    assert_eq!(watched.next(), created("link"));
    std::fs::remove_file(watched.real("moved")).expect("removed");
    assert_eq!(
        watched.until(&touched("moved")).pop(),
        Some(touched("moved"))
    );
    std::fs::create_dir(watched.real("dir")).expect("made");
    assert_eq!(watched.until(&appeared("dir")).pop(), Some(appeared("dir")));
}

/// What the engine does: watch first, then list, and go on with what is listed.
fn watch_tree(disk: &LinuxDisk, dir: &RelPath, files: &mut Vec<RelPath>) {
    use super::super::FileKind;
    match disk.watch(dir).and_then(|()| disk.list(dir)) {
        Ok(listing) => {
            for entry in listing.entries {
                let at = dir.join(&entry.name).expect("a good name");
                match entry.stat.kind {
                    FileKind::Dir => watch_tree(disk, &at, files),
                    _ => files.push(at),
                }
            }
        }
        Err(error) => assert!(error.is_not_found(), "{error}"),
    }
}

#[test]
fn nothing_in_new_deep_directories_is_missed() {
    const ROUNDS: usize = 200;
    let watched = Watched::new();
    for round in 0..ROUNDS {
        let deep = watched.real(&format!("{round}/a/b/c"));
        std::fs::create_dir_all(&deep).expect("made");
        std::fs::write(deep.join("file"), "content").expect("written");
    }
    let mut found = std::collections::BTreeSet::new();
    while found.len() < ROUNDS {
        match watched.next() {
            FsEvent::DirAppeared(dir) => {
                let mut files = Vec::new();
                watch_tree(&watched.disk, &dir, &mut files);
                found.extend(files);
            }
            FsEvent::Written(file) => {
                found.insert(file);
            }
            _ => {}
        }
    }
    assert_eq!(watched.watched().len(), 1 + 4 * ROUNDS);
}

#[test]
fn a_renamed_directory_reports_under_its_new_path_only() {
    let watched = Watched::new();
    std::fs::create_dir_all(watched.real("a/b/c")).expect("made");
    watch_tree(&watched.disk, &path("a"), &mut Vec::new());
    watched.flush();
    std::fs::rename(watched.real("a"), watched.real("z")).expect("moved");
    let seen = watched.until(&appeared("z"));
    assert_eq!(seen, [touched("a"), appeared("z")]);
    // The watches beneath ended with the move, nothing is reported under paths that are wrong.
    assert_eq!(watched.watched(), ["."]);
    std::fs::write(watched.real("z/b/c/unseen"), "").expect("written");
    let seen = watched.flush();
    assert!(
        seen.iter()
            .all(|event| !format!("{event:?}").contains("unseen")),
        "{seen:?}"
    );

    let mut files = Vec::new();
    watch_tree(&watched.disk, &path("z"), &mut files);
    assert_eq!(files, [path("z/b/c/unseen")]);
    std::fs::write(watched.real("z/b/c/seen"), "").expect("written");
    watched.until(&written("z/b/c/seen"));
    assert_eq!(watched.watched(), [".", "z", "z/b", "z/b/c"]);
}

#[test]
fn a_directory_watched_anew_before_its_move_is_read_keeps_reporting() {
    // The directory above is not watched, so that only the directory's own event tells.
    let watched = Watched::new();
    std::fs::create_dir_all(watched.real("top/a/b")).expect("made");
    watch_tree(&watched.disk, &path("top/a"), &mut Vec::new());
    std::fs::rename(watched.real("top/a"), watched.real("top/z")).expect("moved");
    watched.disk.watch(&path("top/z")).expect("watched");
    // Either it was read before, and the old watch ended, or after, and the caller is told.
    let told = watched.flush();
    for event in told {
        if let FsEvent::DirAppeared(dir) = event {
            watch_tree(&watched.disk, &dir, &mut Vec::new());
        }
    }
    std::fs::write(watched.real("top/z/file"), "").expect("written");
    watched.until(&written("top/z/file"));
    assert!(!watched.watched().iter().any(|dir| dir.starts_with("top/a")));
}

#[test]
fn removed_and_unwatched_directories_are_forgotten() {
    let watched = Watched::new();
    std::fs::create_dir_all(watched.real("a/b")).expect("made");
    std::fs::create_dir(watched.real("quiet")).expect("made");
    watch_tree(&watched.disk, &path("a"), &mut Vec::new());
    watched.disk.watch(&path("quiet")).expect("watched");
    watched.disk.watch(&path("quiet")).expect("watched again");
    watched.flush();
    std::fs::remove_dir_all(watched.real("a")).expect("removed");
    watched.disk.unwatch(&path("quiet"));
    watched.disk.unwatch(&path("quiet"));
    std::fs::write(watched.real("quiet/file"), "").expect("written");
    let seen = watched.flush();
    assert!(seen.contains(&touched("a")), "{seen:?}");
    assert!(!seen.contains(&written("quiet/file")), "{seen:?}");
    assert_eq!(watched.watched(), ["."]);

    // The same path again is another directory.
    std::fs::create_dir(watched.real("a")).expect("made");
    watched.disk.watch(&path("a")).expect("watched");
    std::fs::write(watched.real("a/file"), "").expect("written");
    watched.until(&written("a/file"));
}

#[test]
fn watching_never_leaves_the_root_and_only_directories_are_watched() {
    let watched = Watched::new();
    watched.disk.symlink(&path("link"), b"/").expect("linked");
    assert!(error(watched.disk.watch(&path("link"))).is_symlink_in_path());
    assert!(error(watched.disk.watch(&path("link/tmp"))).is_symlink_in_path());
    std::fs::write(watched.real("file"), "").expect("written");
    assert!(error(watched.disk.watch(&path("file"))).is_not_a_directory());
    assert!(error(watched.disk.watch(&path("nothing"))).is_not_found());
    assert_eq!(watched.watched(), ["."]);
}

#[test]
fn a_root_that_goes_is_reported() {
    let watched = Watched::new();
    std::fs::remove_dir(&watched.root).expect("removed");
    watched.until(&FsEvent::RootGone);

    let watched = Watched::new();
    std::fs::rename(&watched.root, watched.root.with_extension("away")).expect("moved");
    watched.until(&FsEvent::RootGone);
}

#[test]
fn lost_events_are_reported() {
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    let limit: usize = limit
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .expect("the kernel says how many events it queues");
    let outer = tempfile::tempdir().expect("a temporary directory");
    let root = outer.path().join("root");
    std::fs::create_dir(&root).expect("made");
    let (send, events) = channel();
    let (release, held) = channel::<()>();
    let sink = Box::new(move |event| {
        let _ = send.send(event);
        // Until the test has released it, the thread reads no further.
        let _ = held.recv_timeout(GUARD);
    });
    let disk = LinuxDisk::with_events(&root, sink).expect("the root opens");
    disk.watch(&RelPath::root()).expect("watched");
    let names = [root.join("a"), root.join("b")];
    for name in &names {
        std::fs::write(name, "").expect("written");
    }
    events.recv_timeout(GUARD).expect("the thread is held");
    // Two files in turn, since equal events in a row are merged; one buffer was already read.
    for turn in 0..limit + 8192 {
        let of = names.get(turn % 2).expect("one of two");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(of, mode).expect("mode set");
    }
    drop(release);
    loop {
        if events.recv_timeout(GUARD).expect("an event") == FsEvent::Overflow {
            break;
        }
    }
}

#[test]
fn the_thread_ends_with_the_disk() {
    let Watched {
        disk,
        events,
        _outer,
        ..
    } = Watched::new();
    drop(disk);
    loop {
        match events.recv_timeout(GUARD) {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("the thread still holds its sink"),
        }
    }
}

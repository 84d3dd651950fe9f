//! No room: on the receiver's root, in the receiver's home, in the sender's home.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::rig::{Mount, Need, Pair, Stage, eventually, has};
use crate::samples::{Chance, sealed};

/// Fills a file system up to the last block; the file that does it.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .expect("creates");
    for block in [64 << 10, 4 << 10, 1] {
        let bytes = vec![1; block];
        while file.write_all(&bytes).is_ok() {}
    }
    path
}

/// Writes files of all sizes: `count` small ones, and `big` of 300 kB.
fn write_many(root: &Path, name: &str, count: usize, big: usize) {
    let mut chance = Chance::new(count as u64);
    for at in 0..count + big {
        let len = if at < count { 200 + at % 300 } else { 300_000 };
        fs::write(root.join(format!("{name}-{at}")), sealed(&mut chance, len)).expect("writes");
    }
}

/// Waits until a device says that there is no room, and that it is not in sync.
fn told_of_no_room(machine: &crate::rig::Machine) {
    let what = eventually(
        &format!("{}: tells that there is no room", machine.name),
        || {
            let problems = machine.problems();
            problems.into_iter().find(|(_, what)| {
                let what = what.to_lowercase();
                ["space", "room", "full"]
                    .iter()
                    .any(|word| what.contains(word))
            })
        },
    );
    assert!(!what.0.is_empty(), "the problem names a path: {what:?}");
    assert_eq!(machine.status()["in_sync"], false);
}

#[test]
fn the_receivers_root_is_full() {
    if !has(Need::Tmpfs) {
        return;
    }
    let mut mount = None;
    let pair = Pair::staged(Stage::Here, Stage::Here, |_, bert| {
        mount = Mount::tmpfs(&bert.root, "8m");
    });
    let mount = mount.expect("mounted before");
    fs::write(pair.b.root.join("mine"), b"stays").expect("writes");
    pair.converge();
    let pid = pair.b.pid();
    write_many(&pair.a.root, "file", 50, 40);
    told_of_no_room(&pair.b);
    // What stands there is never the price, and small things go on where they can.
    assert_eq!(fs::read(pair.b.root.join("mine")).expect("reads"), b"stays");
    let output = pair.a.run(["wait", "--timeout", "4", "--json"]);
    assert_eq!(
        output.status.code(),
        Some(5),
        "nobody says that all is well"
    );
    mount.remount("size=64m");
    pair.converge();
    pair.b.no_problems();
    assert_eq!(pair.b.pid(), pid, "the same daemon all the time");
    crate::rig::assert_no_temps(&pair.b.root);
}

#[test]
fn an_edit_where_there_is_no_room_keeps_the_old_file() {
    if !has(Need::Tmpfs) {
        return;
    }
    let mut mount = None;
    let mut chance = Chance::new(5);
    let old = sealed(&mut chance, 700_000);
    let new = sealed(&mut chance, 900_000);
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, bert| {
        mount = Mount::tmpfs(&bert.root, "8m");
        fs::write(anna.root.join("file"), &old).expect("writes");
    });
    let filler = fill(pair.dir.path().join("bert/work").as_path());
    let space = fs::metadata(&filler).expect("there").len();
    assert!(space > 5_000_000);
    // The filler is the user's own file; it grows into the pac as well.
    fs::write(pair.a.root.join("file"), &new).expect("writes");
    told_of_no_room(&pair.b);
    assert_eq!(fs::read(pair.b.root.join("file")).expect("reads"), old);
    fs::remove_file(filler).expect("removes");
    eventually("the new content is there", || {
        (fs::read(pair.b.root.join("file")).expect("reads") == new).then_some(())
    });
    pair.converge();
    pair.b.no_problems();
    drop(mount);
}

#[test]
fn the_receivers_home_is_full() {
    if !has(Need::Tmpfs) {
        return;
    }
    let mut mount = None;
    let pair = Pair::staged(Stage::Here, Stage::Here, |_, bert| {
        mount = Mount::tmpfs(&bert.home, "8m");
    });
    let pid = pair.b.pid();
    let filler = fill(&pair.b.home);
    write_many(&pair.a.root, "file", 1_500, 5);
    told_of_no_room(&pair.b);
    assert_eq!(pair.b.pid(), pid, "the daemon stays up");
    fs::remove_file(filler).expect("removes");
    pair.b.no_problems();
    pair.converge();
    assert_eq!(pair.b.pid(), pid);
    pair.b.down();
    pair.b.up();
    pair.converge();
    drop(mount);
}

#[test]
fn the_senders_home_is_full() {
    if !has(Need::Tmpfs) {
        return;
    }
    let mut mount = None;
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        mount = Mount::tmpfs(&anna.home, "8m");
    });
    let pid = pair.a.pid();
    let filler = fill(&pair.a.home);
    write_many(&pair.a.root, "file", 1_500, 5);
    told_of_no_room(&pair.a);
    // Edits, renames and deletes go on while nothing can be written down.
    fs::remove_file(pair.a.root.join("file-3")).expect("removes");
    fs::rename(pair.a.root.join("file-4"), pair.a.root.join("moved")).expect("renames");
    fs::write(pair.b.root.join("from-b"), b"from b").expect("writes");
    fs::remove_file(filler).expect("removes");
    pair.a.no_problems();
    pair.converge();
    assert_eq!(pair.a.pid(), pid);
    assert!(pair.a.root.join("from-b").exists() && !pair.b.root.join("file-3").exists());
    drop(mount);
}

//! Files and directories that the daemon may not read, or that do not hold still.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::rig::{Mount, Need, Pair, Stage, eventually, has, heavy, listing};

const UID: u32 = 54_321;

/// A pair whose first device runs as another user than root.
fn as_another_user(prepare: impl FnOnce(&Path)) -> Option<Pair> {
    has(Need::Setpriv).then(|| {
        Pair::staged(Stage::Uid(UID), Stage::Here, |anna, _| {
            prepare(&anna.root);
            give_all(&anna.root);
        })
    })
}

fn give_all(path: &Path) {
    give_all_to(path, UID);
}

fn give_all_to(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).expect("gives");
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            give_all_to(&entry.path(), uid);
        } else {
            chown(entry.path(), Some(uid), Some(uid)).expect("gives");
        }
    }
}

fn shut(path: &Path) {
    chown(path, Some(0), Some(0)).expect("takes");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("shuts");
}

#[test]
fn an_unreadable_file_is_named_and_the_rest_goes_on() {
    let Some(pair) = as_another_user(|_| {}) else {
        return;
    };
    let secret = pair.a.root.join("secret");
    let aside = pair.outside().join("secret");
    fs::write(&aside, b"secret").expect("writes");
    shut(&aside);
    fs::rename(&aside, &secret).expect("moves");
    let what = pair.a.problem_at(&secret);
    assert!(what.to_lowercase().contains("permission"), "{what}");
    fs::write(pair.a.root.join("open"), b"open").expect("writes");
    eventually("the rest goes on", || {
        pair.b.root.join("open").exists().then_some(())
    });
    assert!(!pair.b.root.join("secret").exists());
    let output = pair.a.run(["wait", "--timeout", "20", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("secret"));
    chown(&secret, Some(UID), Some(UID)).expect("gives");
    pair.a.no_problems();
    pair.converge();
    assert!(pair.b.root.join("secret").exists());
}

#[test]
fn a_known_file_that_becomes_unreadable_is_not_deleted() {
    let Some(pair) = as_another_user(|root| {
        fs::write(root.join("file"), b"first").expect("writes");
    }) else {
        return;
    };
    let path = pair.a.root.join("file");
    shut(&path);
    fs::write(&path, b"second").expect("writes");
    pair.a.problem_at(&path);
    let _ = pair.a.run(["scan"]);
    assert_eq!(
        fs::read(pair.b.root.join("file")).expect("still there"),
        b"first"
    );
    // A change from elsewhere must not pass over what could not be read.
    fs::write(pair.b.root.join("file"), b"third, from elsewhere").expect("writes");
    pair.b.ok(&["scan"]);
    chown(&path, Some(UID), Some(UID)).expect("gives");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("opens");
    pair.a.no_problems();
    pair.converge();
    let shown = fs::read(&path).expect("reads");
    let kept = pair.a.conflicts();
    assert!(
        shown == b"second" || kept == 1,
        "the unseen edit is neither shown nor kept: {} conflicts, {:?}",
        kept,
        String::from_utf8_lossy(&shown)
    );
}

#[test]
fn an_unreadable_directory_is_not_an_empty_one() {
    let Some(pair) = as_another_user(|root| {
        fs::create_dir_all(root.join("dir/below")).expect("makes it");
        for at in 0..20 {
            fs::write(root.join(format!("dir/{at}")), format!("file {at}")).expect("writes");
            fs::write(root.join(format!("dir/below/{at}")), format!("{at}")).expect("writes");
        }
    }) else {
        return;
    };
    let before = listing(&pair.b.root);
    let dir = pair.a.root.join("dir");
    shut(&dir);
    pair.a.problem_at(&dir);
    let _ = pair.a.run(["scan"]);
    fs::write(pair.a.root.join("beside"), b"goes on").expect("writes");
    eventually("the rest goes on", || {
        pair.b.root.join("beside").exists().then_some(())
    });
    // Also a start does not take it for empty.
    pair.a.down();
    pair.a.up();
    pair.a.problem_at(&dir);
    let _ = pair.a.run(["wait", "--timeout", "5"]);
    for (path, thing) in &before {
        if path != Path::new("dir") {
            assert_eq!(
                listing(&pair.b.root).get(path),
                Some(thing),
                "{}",
                path.display()
            );
        }
    }
    chown(&dir, Some(UID), Some(UID)).expect("gives");
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).expect("opens");
    pair.a.no_problems();
    pair.converge();
    assert!(pair.a.root.join("dir/below/7").exists());
}

#[test]
fn a_root_that_may_only_be_read_is_named_and_waited_for() {
    if !has(Need::Tmpfs) {
        return;
    }
    let mut mount = None;
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, bert| {
        mount = Mount::tmpfs(&bert.root, "16m");
        for name in ["edited", "deleted", "moved"] {
            fs::write(anna.root.join(name), b"before").expect("writes");
        }
    });
    let mount = mount.expect("mounted before");
    mount.remount("ro");
    fs::write(pair.a.root.join("new"), vec![7; 200_000]).expect("writes");
    fs::write(pair.a.root.join("edited"), b"after").expect("writes");
    fs::remove_file(pair.a.root.join("deleted")).expect("removes");
    fs::rename(pair.a.root.join("moved"), pair.a.root.join("away")).expect("renames");
    fs::create_dir(pair.a.root.join("dir")).expect("makes it");
    let what = eventually("it is told", || {
        let root = pair.b.root.to_string_lossy().into_owned();
        pair.b
            .problems()
            .into_iter()
            .find(|(path, _)| path.starts_with(&root))
    });
    assert!(what.1.to_lowercase().contains("read-only"), "{what:?}");
    assert_eq!(
        pair.b.run(["wait", "--timeout", "10"]).status.code(),
        Some(5)
    );
    assert_eq!(
        fs::read(pair.b.root.join("edited")).expect("reads"),
        b"before"
    );
    mount.remount("rw");
    pair.b.no_problems();
    pair.converge();
    assert!(pair.b.root.join("away").exists() && !pair.b.root.join("deleted").exists());
}

#[test]
fn directories_that_vanish_while_they_are_looked_at_leave_no_trace() {
    let _heavy = heavy();
    // So many stay that those that go are not a mass delete.
    const STAY: usize = 1_500;
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        for at in 0..STAY {
            fs::write(anna.root.join(format!("stays-{at}")), b"stays").expect("writes");
        }
    });
    for round in 0..60 {
        let dir = pair.a.root.join(format!("gone-{round}"));
        fs::create_dir_all(dir.join("a/b/c")).expect("makes it");
        for at in 0..6 {
            fs::write(dir.join(format!("a/b/{at}")), b"short-lived").expect("writes");
        }
        fs::remove_dir_all(&dir).expect("removes");
    }
    fs::write(pair.a.root.join("stays"), b"stays").expect("writes");
    pair.converge();
    assert_eq!(listing(&pair.b.root).len(), STAY + 1);
    assert!(pair.a.problems().is_empty());
}

#[test]
fn a_file_that_does_not_hold_still_is_named_and_read_later() {
    let _heavy = heavy();
    let pair = Pair::new();
    let path = pair.a.root.join("busy");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .expect("creates");
            file.set_len(64 << 20).expect("grows");
            let mut at = 0_u64;
            while !over.load(Ordering::Relaxed) {
                at = (at + 4_099) % (64 << 20);
                file.write_all_at(&at.to_le_bytes(), at).expect("writes");
            }
        });
        let named = std::panic::catch_unwind(|| {
            // Another program's close makes the daemon look, again and again.
            eventually("the busy file is named", || {
                drop(OpenOptions::new().write(true).open(&path));
                let name = path.to_string_lossy().into_owned();
                pair.a.problems().into_iter().find(|(at, _)| *at == name)
            })
        });
        fs::write(pair.a.root.join("beside"), b"goes on").expect("writes");
        let beside = std::panic::catch_unwind(|| {
            eventually("the rest goes on", || {
                pair.b.root.join("beside").exists().then_some(())
            })
        });
        over.store(true, Ordering::Relaxed);
        writer.join().expect("writes to the end");
        let (_, what) = named.expect("named");
        assert!(what.contains("changes while it is read"), "{what}");
        beside.expect("goes on");
    });
    pair.a.no_problems();
    pair.converge();
}

/// A module cache looks like this: directories that nobody may write to, made, filled, changed and
/// removed from the other side.
#[test]
fn directories_that_are_read_only_follow_the_other_side() {
    if !has(Need::Setpriv) {
        return;
    }
    let pair = Pair::staged(Stage::Uid(UID), Stage::Uid(UID + 1), |anna, bert| {
        for (root, uid) in [(&anna.root, UID), (&bert.root, UID + 1)] {
            chown(root, Some(uid), Some(uid)).expect("gives");
        }
    });
    let mode = |path: &Path, bits| {
        fs::set_permissions(path, Permissions::from_mode(bits)).expect("sets the mode");
    };
    let package = pair.b.root.join("mod/pkg");
    fs::create_dir_all(package.join("deep")).expect("makes them");
    for name in ["a.go", "deep/b.go"] {
        fs::write(package.join(name), "package a").expect("writes");
        mode(&package.join(name), 0o444);
    }
    mode(&package.join("deep"), 0o555);
    mode(&package, 0o555);
    give_all_to(&pair.b.root.join("mod"), UID + 1);
    pair.b.ok(&["scan"]);
    pair.converge();
    let there = pair.a.root.join("mod/pkg");
    let bits = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(
        (bits(&there), bits(&there.join("deep/b.go"))),
        (0o555, 0o444)
    );
    // Changed, grown and renamed within.
    mode(&package, 0o755);
    fs::remove_file(package.join("a.go")).expect("removes");
    fs::write(package.join("a.go"), "package b").expect("writes");
    fs::write(package.join("c.go"), "package c").expect("writes");
    fs::rename(package.join("deep"), pair.b.root.join("mod/deep")).expect("renames");
    mode(&package, 0o555);
    give_all_to(&pair.b.root.join("mod"), UID + 1);
    pair.b.ok(&["scan"]);
    pair.converge();
    assert_eq!(fs::read(there.join("a.go")).expect("reads"), b"package b");
    assert_eq!(bits(&there), 0o555);
    assert_eq!(bits(&pair.a.root.join("mod/deep")), 0o555);
    // And gone.
    fs::remove_dir_all(pair.b.root.join("mod")).expect("removes, as root");
    pair.b.ok(&["scan"]);
    pair.converge();
    assert!(!pair.a.root.join("mod").exists());
    assert_eq!((pair.a.conflicts(), pair.b.conflicts()), (0, 0));
}

//! Mass deletes wait for the user, in both directions, and reach the other side only then.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::rig::{Pair, SPACE, Stage, Thing, assert_same, eventually, listing};
use crate::samples::{Chance, sealed};

const FILES: usize = 300;

/// Two devices that hold the same [`FILES`] files, some of them big.
fn stocked() -> (Pair, BTreeMap<PathBuf, Thing>) {
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        let mut chance = Chance::new(4);
        for at in 0..FILES {
            let dir = anna.root.join(format!("dir-{}", at % 7));
            fs::create_dir_all(&dir).expect("makes it");
            let len = if at % 10 == 0 { 150_000 } else { 60 + at * 20 };
            fs::write(file(&anna.root, at), sealed(&mut chance, len)).expect("writes");
        }
    });
    pair.converge();
    let before = listing(&pair.a.root);
    assert!(before.len() >= FILES);
    (pair, before)
}

fn file(root: &Path, at: usize) -> PathBuf {
    root.join(format!("dir-{}", at % 7))
        .join(format!("file-{at}"))
}

fn delete(root: &Path, which: std::ops::Range<usize>) {
    for at in which {
        fs::remove_file(file(root, at)).expect("removes");
    }
}

fn held(status: &Value) -> u64 {
    status["held_deletes"].as_u64().expect("a number")
}

/// Deletes 200 of 300 files at A: all of it is held, and says so.
fn delete_most(pair: &Pair, before: &BTreeMap<PathBuf, Thing>) {
    // All at once, however slow this machine is.
    pair.a.while_stopped(|| delete(&pair.a.root, 0..200));
    pair.a.ok(&["scan"]);
    let status = pair.a.status();
    assert_eq!(held(&status), 200, "{status}");
    assert_eq!(status["in_sync"], false);
    let needs = status["needs_user"].to_string();
    assert!(
        needs.contains("200 deletes") && needs.contains("pacsync deletes"),
        "{needs}"
    );
    let output = pair.a.run(["wait", "--timeout", "20", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("deletes wait for you"));
    let list = pair.a.ok(&["deletes"]);
    let text = list.to_string();
    assert!(text.contains("file-7") && text.contains(SPACE), "{text}");
    assert_eq!(
        listing(&pair.b.root),
        *before,
        "nothing is deleted elsewhere"
    );
}

#[test]
fn held_deletes_are_applied_everywhere_when_the_user_says_so() {
    let (pair, before) = stocked();
    delete_most(&pair, &before);
    pair.a.ok(&["deletes", "--apply"]);
    pair.converge();
    assert!(!file(&pair.b.root, 7).exists());
    assert!(file(&pair.b.root, 207).exists());
    assert_eq!((held(&pair.a.status()), held(&pair.b.status())), (0, 0));
}

#[test]
fn held_deletes_survive_a_restart_of_both() {
    let (pair, before) = stocked();
    delete_most(&pair, &before);
    pair.a.kill();
    pair.b.kill();
    pair.b.up();
    pair.a.up();
    eventually("they are held again", || {
        (held(&pair.a.status()) == 200).then_some(())
    });
    pair.a.ok(&["deletes", "--apply", SPACE]);
    pair.converge();
    assert!(!file(&pair.b.root, 7).exists());
}

#[test]
fn what_was_held_in_pieces_is_held_after_a_restart() {
    let (pair, before) = stocked();
    // Too few to be held at once; with the ones before they are.
    pair.a.while_stopped(|| delete(&pair.a.root, 0..100));
    pair.a.ok(&["scan"]);
    assert_eq!(held(&pair.a.status()), 0);
    pair.a.while_stopped(|| delete(&pair.a.root, 100..190));
    pair.a.ok(&["scan"]);
    assert_eq!(held(&pair.a.status()), 90);
    pair.a.kill();
    pair.a.up();
    pair.a.ok(&["scan"]);
    assert_eq!(held(&pair.a.status()), 90, "nobody has answered yet");
    for at in 100..190 {
        assert!(file(&pair.b.root, at).exists(), "{at}");
    }
    pair.a.ok(&["deletes", "--restore"]);
    pair.converge();
    assert_eq!(listing(&pair.a.root).len(), before.len() - 100);
}

#[test]
fn held_deletes_can_be_taken_back() {
    let (pair, before) = stocked();
    delete_most(&pair, &before);
    pair.a.ok(&["deletes", "--restore"]);
    pair.converge();
    assert_eq!(listing(&pair.a.root), before);
    assert_eq!(listing(&pair.b.root), before);
    assert_eq!(held(&pair.a.status()), 0);
}

/// A's deletes come in parts that A lets pass; B was away and sees them at once.
fn delete_behind_b(pair: &Pair) {
    pair.b.down();
    delete(&pair.a.root, 0..90);
    pair.a.ok(&["scan"]);
    assert_eq!(held(&pair.a.status()), 0);
    // A restart begins a new window.
    pair.a.down();
    delete(&pair.a.root, 90..180);
    pair.a.up();
    pair.a.ok(&["scan"]);
    assert_eq!(
        held(&pair.a.status()),
        0,
        "fewer than a hundred at a time are let pass"
    );
    pair.b.up();
    eventually("the deletes are held at the other side", || {
        (held(&pair.b.status()) == 180).then_some(())
    });
    let output = pair.b.run(["wait", "--timeout", "20", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    // The other device is not told that all is on B's disk.
    let output = pair.a.run(["wait", "--timeout", "3", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(pair.a.status()["in_sync"], false);
}

#[test]
fn deletes_from_elsewhere_are_held_over_a_restart() {
    let (pair, before) = stocked();
    delete_behind_b(&pair);
    pair.b.kill();
    pair.b.up();
    eventually("they are held again", || {
        (held(&pair.b.status()) == 180).then_some(())
    });
    assert_eq!(listing(&pair.b.root), before);
}

#[test]
fn a_root_that_was_emptied_waits_for_the_user_however_small() {
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        for at in 0..12 {
            fs::write(anna.root.join(format!("{at}")), format!("{at}")).expect("writes");
        }
    });
    pair.converge();
    let before = listing(&pair.b.root);
    pair.a.while_stopped(|| {
        for at in 0..12 {
            fs::remove_file(pair.a.root.join(format!("{at}"))).expect("removes");
        }
    });
    pair.a.ok(&["scan"]);
    assert_eq!(held(&pair.a.status()), 12);
    assert_eq!(listing(&pair.b.root), before);
    pair.a.ok(&["deletes", "--apply"]);
    pair.converge();
    assert!(listing(&pair.b.root).is_empty());
}

#[test]
fn a_directory_that_went_behind_a_symlink_was_not_deleted() {
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        let docs = anna.root.join("docs");
        fs::create_dir(&docs).expect("makes it");
        for at in 0..150 {
            fs::write(docs.join(format!("{at}")), format!("document {at}")).expect("writes");
        }
        fs::write(anna.root.join("beside"), b"beside").expect("writes");
    });
    pair.converge();
    let before = listing(&pair.b.root);
    let (docs, away) = (pair.a.root.join("docs"), pair.outside().join("docs"));
    fs::rename(&docs, &away).expect("moves it");
    std::os::unix::fs::symlink(&away, &docs).expect("links");
    pair.a.ok(&["scan"]);
    assert_eq!(held(&pair.a.status()), 151);
    assert_eq!(listing(&pair.b.root), before);
    pair.a.ok(&["deletes", "--apply"]);
    pair.converge();
    assert!(pair.b.root.join("docs").is_symlink());
}

#[test]
fn deletes_from_elsewhere_are_held_before_they_reach_the_disk() {
    let (pair, before) = stocked();
    delete_behind_b(&pair);
    assert_eq!(listing(&pair.b.root), before);
    pair.b.ok(&["deletes", "--apply"]);
    pair.converge();
    assert!(!file(&pair.b.root, 7).exists());
    assert!(file(&pair.b.root, 207).exists());
}

#[test]
fn deletes_from_elsewhere_can_be_taken_back_here() {
    let (pair, before) = stocked();
    delete_behind_b(&pair);
    pair.b.ok(&["deletes", "--restore"]);
    eventually("they are back at the first device", || {
        (listing(&pair.a.root) == before).then_some(())
    });
    pair.converge();
    assert_eq!(listing(&pair.b.root), before);
}

#[test]
fn a_root_that_vanishes_deletes_nothing_elsewhere() {
    let (pair, before) = stocked();
    let away = pair.outside().join("root");
    // While it runs.
    fs::rename(&pair.a.root, &away).expect("moves it");
    let what = pair.a.problem_at(&pair.a.root);
    assert!(what.contains("missing"), "{what}");
    let _ = pair.a.run(["scan"]);
    assert_eq!(listing(&pair.b.root), before);
    // An empty one in its place.
    fs::create_dir(&pair.a.root).expect("makes it");
    eventually("the new directory is told", || {
        pair.a
            .problems()
            .iter()
            .any(|(_, what)| what.contains("another directory"))
            .then_some(())
    });
    let output = pair.a.run(["wait", "--timeout", "10"]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(listing(&pair.b.root), before);
    assert!(
        listing(&pair.a.root).is_empty(),
        "nothing is written where another root stands"
    );
    fs::remove_dir(&pair.a.root).expect("removes it");
    fs::rename(&away, &pair.a.root).expect("moves it back");
    pair.a.no_problems();
    pair.converge();
    assert_eq!(listing(&pair.a.root), before);
}

#[test]
fn a_root_that_is_gone_or_another_at_start_deletes_nothing_elsewhere() {
    let (pair, before) = stocked();
    let away = pair.outside().join("root");
    pair.a.down();
    fs::rename(&pair.a.root, &away).expect("moves it");
    pair.a.up();
    pair.a.problem_at(&pair.a.root);
    assert_eq!(listing(&pair.b.root), before);
    pair.a.down();
    fs::create_dir(&pair.a.root).expect("makes it");
    pair.a.up();
    pair.a.problem_at(&pair.a.root);
    let _ = pair.a.run(["scan"]);
    let _ = pair.a.run(["wait", "--timeout", "5"]);
    assert_eq!(listing(&pair.b.root), before);
    fs::remove_dir(&pair.a.root).expect("removes it");
    fs::rename(&away, &pair.a.root).expect("moves it back");
    pair.a.no_problems();
    // What changed while nobody looked is taken in.
    fs::write(pair.a.root.join("new"), b"new").expect("writes");
    pair.converge();
    assert!(pair.b.root.join("new").exists());
    assert_same(&pair.a.root, &pair.b.root);
}

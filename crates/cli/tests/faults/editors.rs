//! Programs that write to a file in the very moment in which the daemon replaces it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::rig::{Pair, Stage, assert_no_temps, eventually, heavy};
use crate::samples::{Chance, is_sealed, save, sealed};

#[test]
fn what_is_written_to_the_file_put_aside_is_kept() {
    let _heavy = heavy();
    let mut chance = Chance::new(7);
    let (old, new, edit) = (
        sealed(&mut chance, 5_000),
        sealed(&mut chance, 5_000),
        sealed(&mut chance, 5_000),
    );
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        fs::write(anna.root.join("file"), &old).expect("writes");
    });
    let path = pair.b.root.join("file");
    let editor = OpenOptions::new().write(true).open(&path).expect("opens");
    save(&pair.outside().join("a"), &pair.a.root.join("file"), &new).expect("saves");
    eventually("the new content shows", || {
        (fs::read(&path).expect("reads") == new).then_some(())
    });
    // The editor still has the old file: no name leads to it but the daemon's.
    editor.write_all_at(&edit, 0).expect("writes");
    drop(editor);
    eventually("the edit is taken in", || {
        let shown = fs::read(&path).expect("reads");
        (shown == edit || pair.b.conflicts() == 1).then_some(())
    });
    pair.converge();
    assert_eq!(pair.a.conflicts(), pair.b.conflicts());
    assert_no_temps(&pair.b.root);
}

#[test]
fn the_edit_that_was_put_aside_survives_a_kill() {
    let _heavy = heavy();
    let mut chance = Chance::new(8);
    let (old, new, edit) = (
        sealed(&mut chance, 200),
        sealed(&mut chance, 200),
        sealed(&mut chance, 200),
    );
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        fs::write(anna.root.join("file"), &old).expect("writes");
    });
    let path = pair.b.root.join("file");
    let editor = OpenOptions::new().write(true).open(&path).expect("opens");
    save(&pair.outside().join("a"), &pair.a.root.join("file"), &new).expect("saves");
    eventually("the new content shows", || {
        (fs::read(&path).expect("reads") == new).then_some(())
    });
    pair.b.kill();
    editor.write_all_at(&edit, 0).expect("writes");
    drop(editor);
    pair.b.up();
    eventually("the edit is taken in", || {
        let shown = fs::read(&path).expect("reads");
        (shown == edit || pair.b.conflicts() == 1).then_some(())
    });
    pair.converge();
    assert_no_temps(&pair.b.root);
}

/// A writes a new version by rename; B writes its own in place, in one go, at some moment around
/// the apply. Whatever came first: both versions stay.
#[test]
fn edits_that_race_an_apply_are_never_lost() {
    const FILES: usize = 60;
    let _heavy = heavy();
    let mut chance = Chance::from_environment();
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        let mut chance = Chance::new(9);
        for at in 0..FILES {
            let bytes = sealed(&mut chance, 2_000);
            fs::write(anna.root.join(format!("file-{at}")), bytes).expect("writes");
        }
    });
    let aside = pair.outside().join("a");
    let mut versions = vec![];
    for at in 0..FILES {
        let name = format!("file-{at}");
        let (theirs, ours) = (sealed(&mut chance, 2_000), sealed(&mut chance, 2_000));
        save(&aside, &pair.a.root.join(&name), &theirs).expect("saves");
        // The moment is a matter of chance.
        std::thread::sleep(Duration::from_micros(chance.below(60_000)));
        let file = OpenOptions::new()
            .write(true)
            .open(pair.b.root.join(&name))
            .expect("opens");
        if chance.below(2) == 0 {
            std::thread::sleep(Duration::from_micros(chance.below(20_000)));
        }
        file.write_all_at(&ours, 0).expect("writes");
        versions.push((name, theirs, ours));
    }
    pair.converge();
    assert_no_temps(&pair.b.root);
    pair.converge();
    let mut hidden = 0;
    for (name, theirs, ours) in &versions {
        let shown = fs::read(pair.b.root.join(name)).expect("reads");
        assert!(is_sealed(&shown), "{name} is a mixture");
        assert!(
            shown == *theirs || shown == *ours,
            "{name} shows neither version"
        );
        if shown == *theirs {
            hidden += 1;
        }
    }
    let conflicts = pair.b.conflicts();
    assert!(
        conflicts >= hidden,
        "{hidden} edits are hidden, {conflicts} are in conflict"
    );
    assert_eq!(conflicts, pair.a.conflicts());
}

//! First joins with files on both sides, and changes that nobody saw in time.

use std::fs;

use serde_json::Value;

use crate::in_step;
use crate::support::{Device, check_same, mode, write, write_at};

/// Paths of all notices, relative to the root.
fn noticed(device: &Device) -> Vec<String> {
    let status = device.status();
    let root = format!("{}/", device.root.display());
    status["notices"]
        .as_array()
        .expect("notices")
        .iter()
        .flat_map(|notice| notice["paths"].as_array().expect("paths"))
        .filter_map(|path| path["path"].as_str())
        .map(|path| path.strip_prefix(&root).unwrap_or(path).to_owned())
        .collect()
}

fn content(device: &Device, path: &str) -> String {
    fs::read_to_string(device.root.join(path)).expect("is there")
}

#[test]
fn equal_files_bind_silently_and_extra_ones_are_added() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    for device in [&a, &b] {
        write(device.root.join("same"), "same on both");
        write(device.root.join("dir/same"), "same on both");
        write(device.root.join("dir/empty"), "");
    }
    write(a.root.join("of-a"), "a");
    write(a.root.join("dir/of-a"), "a");
    write(b.root.join("of-b"), "b");
    write(b.root.join("dir/of-b"), "b");
    write(b.root.join("own/dir/of-b"), "b");
    b.pair_with(&a);
    a.wait();
    b.wait();
    let (left, right) = (a.tree().without_mtimes(), b.tree().without_mtimes());
    check_same(&left, &right);
    assert_eq!(left.files(), 8);
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
    assert_eq!((noticed(&a), noticed(&b)), (vec![], vec![]));
}

#[test]
fn a_join_opens_nothing_to_more_readers() {
    use std::os::unix::fs::PermissionsExt;
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    for (device, file, dir) in [(&a, 0o644, 0o755), (&b, 0o600, 0o711)] {
        write(device.root.join("dir/secret"), "same on both");
        write(device.root.join("open"), "same on both");
        mode(device.root.join("dir/secret"), file);
        mode(device.root.join("dir"), dir);
    }
    mode(a.root.join("open"), 0o600);
    mode(b.root.join("open"), 0o644);
    b.pair_with(&a);
    a.wait();
    b.wait();
    for device in [&a, &b] {
        let bits = |path: &str| {
            let found = fs::metadata(device.root.join(path)).expect("is there");
            found.permissions().mode() & 0o777
        };
        let found = [bits("dir/secret"), bits("dir"), bits("open")];
        assert_eq!(found, [0o600, 0o711, 0o600], "{found:?}");
    }
    assert_eq!((noticed(&a), noticed(&b)), (vec![], vec![]));
}

#[test]
fn where_files_differ_the_pacs_shows_and_it_is_said_once() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    write(a.root.join("config"), "the pac's");
    write(a.root.join("dir/deep"), "the pac's too");
    write(b.root.join("config"), "b's own");
    write(b.root.join("dir/deep"), "b's own too");
    mode(a.root.join("config"), 0o600);
    a.scan();
    b.pair_with(&a);
    in_step(&a, &b);
    assert_eq!(content(&b, "config"), "the pac's");
    assert_eq!(content(&b, "dir/deep"), "the pac's too");
    assert_eq!(b.tree().files(), 2, "no copies beside them");
    b.becomes_tidy();
    let mut listed = noticed(&b);
    listed.sort();
    assert_eq!(listed, ["config", "dir/deep"]);
    assert!(noticed(&a).is_empty());
    // Kept in history, not in conflict.
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
    // And one edits on as if nothing had been.
    write(b.root.join("config"), "edited by b");
    a.comes_to_show(&b);
}

#[test]
fn different_kinds_at_one_path_lose_nothing_at_a_join() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    write(a.root.join("x/inside"), "a directory in the pac");
    write(b.root.join("x"), "a file on b");
    write(a.root.join("y"), "a file in the pac");
    write(b.root.join("y/inside"), "a directory on b");
    a.scan();
    b.pair_with(&a);
    in_step(&a, &b);
    assert_eq!(content(&b, "x/inside"), "a directory in the pac");
    assert_eq!(content(&a, "y/inside"), "a directory on b");
    let needs = |status: Value| status["conflicts"].as_u64().expect("a number");
    assert_eq!(needs(a.status()), needs(b.status()));
    assert!(a.conflicts() > 0, "what does not show is counted");
}

/// Changes the same tree on two devices that do not see each other, each with its daemon
/// looking, then lets them meet.
pub(crate) fn apart(
    make: impl Fn(&Device),
    on_a: impl Fn(&Device),
    on_b: impl Fn(&Device),
) -> (Device, Device) {
    let (a, b) = Device::pair_of();
    make(&a);
    in_step(&a, &b);
    b.down();
    on_a(&a);
    a.scan();
    a.down();
    b.restart();
    on_b(&b);
    b.scan();
    a.restart();
    meet(&a, &b);
    (a, b)
}

/// Changes the same tree on two devices, one of which is down meanwhile: it hears of the other's
/// changes and finds its own at about the same time.
fn one_down(
    make: impl Fn(&Device),
    on_a: impl Fn(&Device),
    on_b: impl Fn(&Device),
) -> (Device, Device) {
    let (a, b) = Device::pair_of();
    make(&a);
    in_step(&a, &b);
    b.down();
    on_a(&a);
    a.scan();
    on_b(&b);
    b.restart();
    meet(&a, &b);
    (a, b)
}

/// They agree, and still do when all that was displaced was looked at again.
#[track_caller]
fn meet(a: &Device, b: &Device) {
    in_step(a, b);
    a.becomes_tidy();
    b.becomes_tidy();
    in_step(a, b);
}

#[test]
fn concurrent_edits_show_one_content_on_both_and_are_counted() {
    let (a, b) = apart(
        |a| {
            write(a.root.join("file"), "base");
            write(a.root.join("calm"), "base");
        },
        |a| write(a.root.join("file"), "by a"),
        |b| write(b.root.join("file"), "by b"),
    );
    let shown = content(&a, "file");
    assert!(shown == "by a" || shown == "by b", "{shown}");
    assert_eq!(content(&b, "file"), shown);
    assert_eq!((a.conflicts(), b.conflicts()), (1, 1));
    assert_eq!(a.tree().files(), 2, "no copies beside it");
    for device in [&a, &b] {
        let status = device.status();
        assert!(status["needs_user"][0]["command"].is_string(), "{status}");
        assert_eq!(
            status["in_sync"], true,
            "conflicts hold nothing up: {status}"
        );
        let listing = device.ok(["ls", device.root.join("file").to_str().expect("text")]);
        assert_eq!(listing["entries"][0]["conflict"], true, "{listing}");
    }
    // Who edits on has seen what shows and not the other: that is still there to be settled.
    write(b.root.join("file"), "edited on by b");
    a.comes_to_show(&b);
    in_step(&a, &b);
    assert_eq!((a.conflicts(), b.conflicts()), (1, 1));
}

#[test]
fn equal_concurrent_edits_are_no_conflict() {
    const TIME: u64 = 1_000_000_000_000_000_000;
    let edit = |device: &Device| {
        for name in ["file", "new"] {
            write_at(device.root.join(name), "the same", TIME);
        }
    };
    let (a, b) = apart(|a| write(a.root.join("file"), "base"), edit, edit);
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
}

#[test]
fn two_new_files_of_one_name_become_one_in_conflict() {
    let (a, b) = apart(
        |_| {},
        |a| write(a.root.join("dir/new"), "by a"),
        |b| write(b.root.join("dir/new"), "by b"),
    );
    let status = b.status();
    assert_eq!((a.conflicts(), b.conflicts()), (1, 1), "{status}");
    assert_eq!(a.tree().files(), 1);
}

#[test]
fn an_edit_wins_over_a_delete() {
    let (a, b) = apart(
        |a| {
            for name in ["one", "two", "dir/three", "dir/four", "gone"] {
                write(a.root.join(name), "base");
            }
        },
        |a| {
            fs::remove_file(a.root.join("one")).expect("removes");
            fs::remove_dir_all(a.root.join("dir")).expect("removes");
            fs::remove_file(a.root.join("gone")).expect("removes");
            write(a.root.join("two"), "edited by a");
        },
        |b| {
            write(b.root.join("one"), "edited by b");
            write(b.root.join("dir/three"), "edited by b");
            fs::remove_file(b.root.join("two")).expect("removes");
            fs::remove_file(b.root.join("gone")).expect("removes");
        },
    );
    assert_eq!(content(&a, "one"), "edited by b");
    assert_eq!(content(&b, "two"), "edited by a");
    assert_eq!(content(&a, "dir/three"), "edited by b");
    assert!(!a.root.join("dir/four").exists() && !a.root.join("gone").exists());
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
}

#[test]
fn a_file_made_in_a_directory_that_is_deleted_keeps_it() {
    let (a, b) = apart(
        |a| write(a.root.join("dir/sub/old"), "base"),
        |a| fs::remove_dir_all(a.root.join("dir")).expect("removes"),
        |b| write(b.root.join("dir/sub/new"), "by b"),
    );
    assert_eq!(content(&a, "dir/sub/new"), "by b");
    assert!(!b.root.join("dir/sub/old").exists());
}

#[test]
fn a_delete_wins_over_a_rename() {
    let (a, b) = apart(
        |a| {
            write(a.root.join("file"), "base");
            write(a.root.join("other"), "other base");
        },
        |a| fs::remove_file(a.root.join("file")).expect("removes"),
        |b| fs::rename(b.root.join("file"), b.root.join("renamed")).expect("renames"),
    );
    // A move alone does not revive what was deleted.
    assert!(!a.root.join("file").exists() && !a.root.join("renamed").exists());
    assert!(!b.root.join("renamed").exists());
    assert_eq!(content(&b, "other"), "other base");
}

#[test]
fn an_edit_follows_a_rename() {
    let (a, b) = apart(
        |a| {
            write(a.root.join("file"), "base");
            write(a.root.join("dir/inside"), "base of inside");
        },
        |a| {
            fs::rename(a.root.join("file"), a.root.join("renamed")).expect("renames");
            fs::rename(a.root.join("dir"), a.root.join("moved")).expect("renames");
        },
        |b| {
            write(b.root.join("file"), "edited by b");
            write(b.root.join("dir/inside"), "edited by b too");
            write(b.root.join("dir/new"), "made by b");
        },
    );
    assert_eq!(content(&a, "renamed"), "edited by b");
    assert_eq!(content(&a, "moved/inside"), "edited by b too");
    assert_eq!(content(&a, "moved/new"), "made by b");
    assert!(!a.root.join("file").exists() && !a.root.join("dir").exists());
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
}

#[test]
fn two_renames_of_one_file_leave_one() {
    let (a, b) = apart(
        |a| write(a.root.join("file"), "base"),
        |a| fs::rename(a.root.join("file"), a.root.join("by-a")).expect("renames"),
        |b| fs::rename(b.root.join("file"), b.root.join("by-b")).expect("renames"),
    );
    assert_eq!(a.tree().files(), 1, "{:?}", b.tree());
}

#[test]
fn directories_moved_into_each_other_make_no_cycle() {
    let (a, b) = apart(
        |a| {
            write(a.root.join("x/one"), "1");
            write(a.root.join("y/two"), "2");
        },
        |a| fs::rename(a.root.join("x"), a.root.join("y/x")).expect("renames"),
        |b| fs::rename(b.root.join("y"), b.root.join("x/y")).expect("renames"),
    );
    assert_eq!(a.tree().files(), 2, "{:?}", b.tree());
}

#[test]
fn deletes_made_while_it_was_down_are_found() {
    let (a, _b) = one_down(
        |a| {
            for number in 0..20 {
                write(a.root.join(format!("dir/{number}")), format!("{number}"));
            }
        },
        |_| {},
        |b| {
            fs::remove_file(b.root.join("dir/3")).expect("removes");
            fs::rename(b.root.join("dir/4"), b.root.join("four")).expect("renames");
        },
    );
    assert!(!a.root.join("dir/3").exists() && a.root.join("four").exists());
    assert_eq!(a.tree().files(), 19);
}

#[test]
fn edits_made_while_it_was_down_lose_nothing() {
    let (a, b) = one_down(
        |a| {
            for name in [
                "both",
                "only-b",
                "deleted-by-a",
                "deleted-by-b",
                "moved-by-b",
            ] {
                write(a.root.join(name), format!("base of {name}"));
            }
        },
        |a| {
            write(a.root.join("both"), "by a");
            write(a.root.join("deleted-by-b"), "by a");
            fs::remove_file(a.root.join("deleted-by-a")).expect("removes");
            write(a.root.join("moved-by-b"), "edited by a");
        },
        |b| {
            write(b.root.join("both"), "by b");
            write(b.root.join("only-b"), "by b");
            write(b.root.join("deleted-by-a"), "by b");
            fs::remove_file(b.root.join("deleted-by-b")).expect("removes");
            fs::rename(b.root.join("moved-by-b"), b.root.join("moved")).expect("renames");
        },
    );
    let shown = content(&a, "both");
    assert!(shown == "by a" || shown == "by b", "{shown}");
    assert_eq!((a.conflicts(), b.conflicts()), (1, 1));
    assert_eq!(content(&a, "only-b"), "by b");
    assert_eq!(content(&a, "deleted-by-a"), "by b");
    assert_eq!(content(&a, "deleted-by-b"), "by a");
    // Edit and move are one file, or two where the edit came before the move was found.
    let both = [a.root.join("moved"), a.root.join("moved-by-b")];
    let texts: Vec<String> = both
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    assert!(texts.iter().any(|text| text == "edited by a"), "{texts:?}");
}

#[test]
fn two_new_files_of_one_name_made_while_one_was_down_are_both_kept() {
    let (a, b) = one_down(
        |_| {},
        |a| write(a.root.join("dir/new"), "by a"),
        |b| write(b.root.join("dir/new"), "by b"),
    );
    assert_eq!((a.conflicts(), b.conflicts()), (1, 1), "{}", b.status());
    assert_eq!(a.tree().files(), 1);
}

#[test]
fn a_directory_that_took_a_deleted_files_place_is_kept() {
    let (a, b) = one_down(
        |a| write(a.root.join("notes"), "a file"),
        |a| fs::remove_file(a.root.join("notes")).expect("removes"),
        |b| {
            fs::remove_file(b.root.join("notes")).expect("removes");
            for at in 0..50 {
                write(b.root.join(format!("notes/{at}")), format!("note {at}"));
            }
        },
    );
    for device in [&a, &b] {
        assert_eq!(content(device, "notes/49"), "note 49");
        assert_eq!(device.tree().files(), 50);
    }
}

#[test]
fn what_stands_where_something_is_moved_to_becomes_one_with_it() {
    let (a, b) = one_down(
        |a| {
            write(a.root.join("d/inner"), "moved");
            write(a.root.join("f"), "moved");
        },
        |a| {
            fs::rename(a.root.join("d"), a.root.join("e")).expect("moves");
            fs::rename(a.root.join("f"), a.root.join("g")).expect("moves");
        },
        |b| {
            write(b.root.join("e/own"), "own");
            write(b.root.join("g"), "own");
        },
    );
    for device in [&a, &b] {
        assert_eq!(content(device, "e/inner"), "moved");
        assert_eq!(content(device, "e/own"), "own");
        assert!(!device.root.join("d").exists() && !device.root.join("f").exists());
        let shown = content(device, "g");
        assert!(shown == "moved" || shown == "own", "{shown}");
        assert_eq!(device.conflicts(), 1, "the other content of g is kept");
    }
}

#[test]
fn directories_that_trade_places_with_what_is_in_them_do_so_elsewhere() {
    let (a, b) = one_down(
        |a| {
            write(a.root.join("outer/inner/deep"), "deep");
            write(a.root.join("outer/beside"), "beside");
        },
        |a| {
            fs::rename(a.root.join("outer/inner"), a.root.join("aside")).expect("moves");
            fs::rename(a.root.join("outer"), a.root.join("aside/inner")).expect("moves");
            fs::rename(a.root.join("aside"), a.root.join("outer")).expect("moves");
        },
        |_| {},
    );
    for device in [&a, &b] {
        assert_eq!(content(device, "outer/deep"), "deep");
        assert_eq!(content(device, "outer/inner/beside"), "beside");
        assert_eq!(device.tree().files(), 2);
    }
}

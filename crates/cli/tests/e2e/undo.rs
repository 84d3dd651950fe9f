//! Taking back what another device did.

use std::fs;

use serde_json::Value;

use crate::in_step;
use crate::support::{Device, random_bytes, write};

fn undo(device: &Device) -> Value {
    device.ok(["undo"])
}

/// Paths in a list of the answer.
fn paths<'v>(report: &'v Value, list: &str) -> Vec<&'v str> {
    let list = report[list].as_array().expect("a list");
    let paths = list.iter().map(|item| item["path"].as_str());
    let mut paths: Vec<_> = paths.map(|path| path.expect("text")).collect();
    paths.sort_unstable();
    paths
}

#[test]
fn what_another_device_did_is_taken_back_on_both() {
    let (a, b) = Device::pair_of();
    write(b.root.join("edited"), "mine\n".repeat(1_000));
    write(b.root.join("binary"), random_bytes(1, 300_000));
    write(b.root.join("dir/deleted"), random_bytes(2, 50_000));
    write(b.root.join("moved"), "moving");
    in_step(&a, &b);
    let before = b.tree().without_mtimes();
    write(a.root.join("edited"), "theirs\n".repeat(1_000));
    write(a.root.join("binary"), random_bytes(3, 300_000));
    write(a.root.join("new/file"), "new");
    fs::remove_dir_all(a.root.join("dir")).expect("removes");
    fs::rename(a.root.join("moved"), a.root.join("elsewhere")).expect("renames");
    in_step(&a, &b);
    // In more than one batch only if this machine made a pause.
    let mut undone = vec![];
    while b.tree().without_mtimes() != before {
        let report = undo(&b);
        assert_eq!(report["what"], "batch");
        assert_eq!(report["device"]["name"], "a");
        assert_eq!(paths(&report, "stayed"), [""; 0]);
        undone.extend(
            paths(&report, "undone")
                .iter()
                .map(|path| (*path).to_owned()),
        );
        b.wait();
    }
    undone.sort_unstable();
    let expected = [
        "binary",
        "dir",
        "dir/deleted",
        "edited",
        "moved",
        "new",
        "new/file",
    ];
    assert_eq!(undone, expected);
    in_step(&a, &b);
    assert_eq!(a.tree().without_mtimes(), before);
    // What was taken back is a version still.
    let path = a.root.join("edited");
    a.ok(["restore".as_ref(), path.as_os_str()]);
    assert_eq!(
        fs::read(&path).expect("is there"),
        "theirs\n".repeat(1_000).as_bytes()
    );
    // And that is taken back like anything else.
    let report = undo(&a);
    assert_eq!(report["what"], "restore");
    assert_eq!(paths(&report, "undone"), ["edited"]);
    in_step(&a, &b);
    assert_eq!(b.tree().without_mtimes(), before);
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
}

#[test]
fn what_was_edited_since_stays_and_needs_the_user() {
    let (a, b) = Device::pair_of();
    write(b.root.join("f"), "one");
    write(b.root.join("g"), "one");
    in_step(&a, &b);
    write(a.root.join("f"), "two");
    write(a.root.join("g"), "two");
    in_step(&a, &b);
    // The daemon has not seen it yet.
    write(b.root.join("f"), "three");
    let output = b.cli(["undo", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    let report: Value = serde_json::from_slice(&output.stdout).expect("an answer");
    assert_eq!(paths(&report, "stayed"), ["f"]);
    assert_eq!(report["stayed"][0]["why"], "changed");
    assert_eq!(paths(&report, "undone"), ["g"]);
    in_step(&a, &b);
    assert_eq!(fs::read(a.root.join("f")).expect("is there"), b"three");
    assert_eq!(fs::read(a.root.join("g")).expect("is there"), b"one");
}

#[test]
fn what_a_device_joined_with_is_no_batch() {
    let a = Device::founded_whole("a");
    write(a.root.join("f"), "one");
    a.scan();
    let b = Device::new("b");
    b.pair_with(&a);
    in_step(&a, &b);
    for device in [&a, &b] {
        let error = device.fails(1, ["undo"]);
        let message = error["message"].as_str().expect("text");
        assert!(message.contains("nothing to undo"), "{message}");
    }
    in_step(&a, &b);
    assert_eq!(fs::read(b.root.join("f")).expect("is there"), b"one");
}

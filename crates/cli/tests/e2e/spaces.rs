//! Spaces beside `home`.

use std::fs;
use std::path::Path;

use crate::support::{Device, Tree, check_same, random_bytes, write};

fn read(root: &Path) -> Tree {
    Tree::read(root).without_own()
}

#[test]
fn a_space_is_made_attached_and_detached() {
    let (a, b) = Device::pair_of();
    let (at_a, at_b) = (a.beside("photos"), b.beside("pictures"));
    write(at_a.join("2026/one.jpg"), "one");
    let report = a.ok([
        "space",
        "create",
        "photos",
        "--at",
        at_a.to_str().expect("text"),
    ]);
    assert_eq!(report["space"]["name"], "photos", "{report}");
    assert_eq!(report["space"]["attached"], true, "{report}");
    a.wait();
    // The other one knows of it, and has nothing on disk.
    b.wait();
    let listed = b.ok(["space", "ls"]);
    let names: Vec<&str> = listed["spaces"]
        .as_array()
        .expect("spaces")
        .iter()
        .filter_map(|space| space["name"].as_str())
        .collect();
    assert_eq!(names.len(), 2, "{listed}");
    assert!(
        names.contains(&"home") && names.contains(&"photos"),
        "{listed}"
    );
    assert_eq!(b.space("photos")["attached"], false);
    b.ok([
        "space",
        "attach",
        "photos",
        "--at",
        at_b.to_str().expect("text"),
    ]);
    let agree = || {
        a.wait();
        b.wait();
        check_same(&read(&at_a), &read(&at_b));
    };
    agree();
    assert_eq!(read(&at_b).files(), 1);
    write(at_b.join("2026/two.jpg"), "two");
    b.wait();
    check_same(&read(&at_a), &read(&at_b));
    // What happens in one space is nothing to the other.
    write(a.root.join("in-home"), "x");
    agree();
    assert!(!at_a.join("in-home").exists() && b.root.join("in-home").exists());

    b.ok(["space", "detach", "photos"]);
    assert!(at_b.join("2026/two.jpg").exists(), "files stay");
    write(at_a.join("three.jpg"), "three");
    fs::remove_file(at_a.join("2026/one.jpg")).expect("removes");
    write(at_b.join("while-detached"), "x");
    a.wait();
    b.wait();
    assert!(!at_b.join("three.jpg").exists() && at_b.join("2026/one.jpg").exists());
    assert!(!at_a.join("while-detached").exists());
    // Attached again it binds as at a first join: what is only here is added.
    b.ok([
        "space",
        "attach",
        "photos",
        "--at",
        at_b.to_str().expect("text"),
    ]);
    agree();
    assert!(at_a.join("while-detached").exists() && at_b.join("three.jpg").exists());
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
}

#[test]
fn the_whole_file_system_is_no_space() {
    let a = Device::founded("a");
    let error = a.fails(2, ["space", "create", "all", "--at", "/"]);
    assert_eq!(error["kind"], "usage", "{error}");
    assert_eq!(
        a.ok(["space", "ls"])["spaces"].as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_space_has_a_name_and_a_place_of_its_own() {
    let a = Device::founded("a");
    let at = |name: &str| a.beside(name).to_str().expect("text").to_owned();
    a.ok(["space", "create", "one", "--at", &at("one")]);
    for (code, args) in [
        (1, ["space", "create", "one", "--at", &at("other")]),
        (1, ["space", "attach", "none", "--at", &at("other")]),
        (1, ["space", "attach", "one", "--at", &at("other")]),
    ] {
        let error = a.fails(code, args);
        assert!(
            error["message"].is_string() && error["hint"].is_string(),
            "{error}"
        );
    }
    a.fails(1, ["space", "detach", "none"]);
    a.fails(2, ["space", "detach", "home"]);
    // Below another root, at it, above it, in the home of the daemon.
    for place in [at("one"), at("one/below"), at("home/below")] {
        let output = a.cli(["space", "create", "two", "--at", &place]);
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 2)), "{place}: {output:?}");
    }
    let file = a.beside("a-file");
    write(&file, "x");
    a.fails(
        1,
        [
            "space",
            "create",
            "two",
            "--at",
            file.to_str().expect("text"),
        ],
    );
}

/// What was replaced a moment ago is looked at before all that is known of the disk is forgotten.
#[test]
fn what_was_replaced_before_a_detach_is_kept_and_no_temporary_file_stays() {
    let (a, b) = Device::pair_of();
    let (at_a, at_b) = (a.beside("photos"), b.beside("photos"));
    fs::create_dir(&at_a).expect("creates");
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    a.ok(["space", "create", "photos", "--at", &text(&at_a)]);
    b.wait();
    b.ok(["space", "attach", "photos", "--at", &text(&at_b)]);
    let (first, second) = (random_bytes(1, 2_000_000), random_bytes(2, 2_000_000));
    write(at_a.join("one"), &first);
    a.wait();
    write(at_a.join("one"), &second);
    a.wait();
    b.ok(["space", "detach", "photos"]);
    let names = |root: &Path| -> Vec<String> {
        let entries = fs::read_dir(root).expect("lists");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names.map(|name| name.to_string_lossy().into()).collect()
    };
    assert_eq!(names(&at_b), ["one"]);
    assert_eq!(fs::read(at_b.join("one")).expect("reads"), second);
    // The version that the apply replaced is in history on that device.
    b.ok(["space", "attach", "photos", "--at", &text(&at_b)]);
    b.wait();
    a.wait();
    let path = text(&at_a.join("one"));
    let log = a.ok(["log", &path]);
    let versions = log["versions"].as_array().expect("a list");
    let old = versions.last().expect("the first")["version"].clone();
    let old = old.as_str().expect("an id");
    a.ok(["restore", &path, "--at", old]);
    assert_eq!(fs::read(at_a.join("one")).expect("reads"), first);
}

/// A disk that is lost for good, or a directory put back from a backup.
#[test]
fn a_home_space_whose_root_is_gone_is_attached_anew() {
    let (a, mut b) = Device::pair_of();
    write(b.root.join("dir/kept"), "kept");
    write(b.root.join("edited"), "before");
    b.wait();
    a.wait();
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    // As long as it is there it stays where it is.
    let error = b.fails(
        1,
        ["space", "attach", "home", "--at", &text(&b.beside("x"))],
    );
    assert!(!error["hint"].to_string().contains("detach"), "{error}");
    b.down();
    fs::rename(&b.root, b.beside("away")).expect("moves");
    let error = b.fails(1, ["up"]);
    let hint = error["hint"].as_str().expect("a hint");
    assert!(hint.contains("space attach home"), "{error}");
    fs::create_dir(&b.root).expect("makes it");
    write(b.root.join("edited"), "in the backup");
    b.restart();
    write(a.root.join("later"), "later");
    a.scan();
    assert!(!b.root.join("dir").exists(), "nobody has said so");
    b.ok(["space", "attach", "home", "--at", &text(&b.root)]);
    b.wait();
    a.wait();
    check_same(
        &read(&a.root).without_mtimes(),
        &read(&b.root).without_mtimes(),
    );
    assert_eq!(fs::read(b.root.join("dir/kept")).expect("is back"), b"kept");
    assert_eq!(fs::read(b.root.join("edited")).expect("reads"), b"before");
    assert_eq!(a.tree().files(), 3);
    // To another place, of which the next start knows.
    fs::rename(&b.root, b.beside("away again")).expect("moves");
    b.root = b.beside("elsewhere");
    b.ok(["space", "attach", "home", "--at", &text(&b.root)]);
    b.wait();
    a.wait();
    check_same(
        &read(&a.root).without_mtimes(),
        &read(&b.root).without_mtimes(),
    );
    b.down();
    b.ok(["up", "--root", &text(&b.root)]);
    b.wait();
}

/// Nothing is said of a space whose root cannot be written to.
#[test]
fn a_root_that_cannot_be_used_makes_no_space() {
    let a = Device::founded("a");
    let error = a.fails(1, ["space", "create", "x", "--at", "/proc"]);
    assert!(error["hint"].is_string(), "{error}");
    let spaces = a.ok(["space", "ls"])["spaces"].clone();
    assert_eq!(spaces.as_array().map(Vec::len), Some(1), "{spaces}");
}

/// A directory above the root of a space is renamed on another device, or by hand.
#[test]
fn a_root_that_is_moved_along_is_nobody_elses() {
    let (a, b) = Device::pair_of();
    fs::create_dir(a.root.join("nest")).expect("creates");
    write(a.root.join("nest/of-home"), "home");
    a.wait();
    let at_a = a.beside("photos");
    fs::create_dir(&at_a).expect("creates");
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    a.ok(["space", "create", "photos", "--at", &text(&at_a)]);
    b.wait();
    let at_b = b.root.join("nest/p");
    b.ok(["space", "attach", "photos", "--at", &text(&at_b)]);
    write(at_a.join("one"), "one");
    a.wait();
    assert_eq!(fs::read(at_b.join("one")).expect("is there"), b"one");
    fs::rename(a.root.join("nest"), a.root.join("nest2")).expect("renames");
    a.scan();
    let moved = b.root.join("nest2/p");
    b.until("the rename", |_| moved.join("one").exists().then_some(()));
    b.until("is told", |b| {
        let problems = b.status()["problems"].clone();
        let told = |problem: &serde_json::Value| problem["path"] == text(&moved).as_str();
        problems.as_array()?.iter().find(|p| told(p)).map(|_| ())
    });
    b.scan();
    write(a.root.join("nest2/of-home"), "later");
    a.scan();
    b.until("goes on", |b| {
        let found = fs::read(b.root.join("nest2/of-home")).ok()?;
        (found == b"later").then_some(())
    });
    assert!(!a.root.join("nest2/p").exists(), "home took it");
    assert_eq!(fs::read(at_a.join("one")).expect("is there"), b"one");
    // The way out.
    b.ok(["space", "attach", "photos", "--at", &text(&moved)]);
    b.wait();
    a.wait();
    check_same(&read(&at_a), &read(&moved));
    assert_eq!(b.status()["problems"], serde_json::json!([]));
    assert!(!a.root.join("nest2/p").exists());
}

//! What was: versions of files, and bringing them back.

use std::fs;

use serde_json::Value;

use crate::in_step;
use crate::support::{Device, random_bytes, write};

/// A text of some length in which a line tells the number.
fn text(number: usize, lines: usize) -> String {
    (0..lines)
        .map(|line| match line {
            7 => format!("this is number {number}\n"),
            _ => format!("line {line} {}\n", line * 7919 % 1000),
        })
        .collect()
}

/// Puts a whole file in place at once, so that it is one version, and takes it in.
fn save(device: &Device, path: &str, content: impl AsRef<[u8]>) {
    put(device, path, content);
    device.scan();
}

fn put(device: &Device, path: &str, content: impl AsRef<[u8]>) {
    let new = device.dir.join("new");
    write(&new, content);
    let path = device.root.join(path);
    fs::create_dir_all(path.parent().expect("has one")).expect("makes directories");
    fs::rename(new, path).expect("renames");
}

fn read(device: &Device, path: &str) -> Vec<u8> {
    fs::read(device.root.join(path)).expect("is there")
}

fn log(device: &Device, path: &str) -> Vec<Value> {
    let report = device.ok(["log".as_ref(), device.root.join(path).as_os_str()]);
    report["versions"].as_array().expect("a list").clone()
}

/// What happened, newest first.
fn happened(device: &Device, path: &str) -> Vec<String> {
    let versions = log(device, path);
    let what = versions.iter().map(|version| version["what"].as_str());
    what.map(|what| what.expect("a word").to_owned()).collect()
}

fn restore(device: &Device, path: &str, args: &[&str]) -> Value {
    let path = device.root.join(path);
    let head = ["restore", path.to_str().expect("text")];
    device.ok(head.iter().chain(args))
}

fn restore_fails(device: &Device, code: i32, path: &str, args: &[&str]) -> String {
    let path = device.root.join(path);
    let head = ["restore", path.to_str().expect("text")];
    let error = device.fails(code, head.iter().chain(args));
    error["message"].as_str().expect("a message").to_owned()
}

#[test]
fn every_version_of_a_text_is_listed_and_can_be_had_back() {
    let device = Device::founded_whole("a");
    let texts: Vec<String> = (0..12).map(|number| text(number, 2_000)).collect();
    for text in &texts {
        save(&device, "notes.txt", text);
    }
    let versions = log(&device, "notes.txt");
    assert_eq!(versions.len(), 12);
    assert_eq!(versions[11]["what"], "created");
    assert_eq!(versions[0]["shown"], true);
    for (version, text) in versions.iter().rev().zip(&texts) {
        assert_eq!(version["size"], text.len());
        assert_eq!(version["kept"], "here");
        assert_eq!(version["device"]["name"], "a");
        let id = version["version"].as_str().expect("an id");
        let dest = device.dir.join(id);
        let to = dest.to_str().expect("text");
        let report = restore(&device, "notes.txt", &["--at", id, "--to", to]);
        assert_eq!(report["to"]["path"], to);
        assert_eq!(fs::read(&dest).expect("written"), text.as_bytes());
    }
    assert_eq!(
        read(&device, "notes.txt"),
        texts[11].as_bytes(),
        "untouched"
    );
    // The one before, then another.
    restore(&device, "notes.txt", &[]);
    assert_eq!(read(&device, "notes.txt"), texts[10].as_bytes());
    let id = versions[9]["version"].as_str().expect("an id");
    let report = restore(&device, "notes.txt", &["--at", id]);
    assert_eq!(report["restored"][0]["on_disk"], true);
    assert_eq!(read(&device, "notes.txt"), texts[2].as_bytes());
    assert_eq!(
        happened(&device, "notes.txt")[..3],
        ["restored", "restored", "edited"]
    );
    assert_eq!(device.scan()["changes"], 0, "no echo");
}

#[test]
fn an_edit_that_nobody_has_seen_is_a_version_before_it_is_replaced() {
    let device = Device::founded_whole("a");
    save(&device, "f", text(1, 500));
    save(&device, "f", text(2, 500));
    put(&device, "f", text(3, 500));
    restore(&device, "f", &[]);
    assert_eq!(read(&device, "f"), text(2, 500).as_bytes());
    assert_eq!(
        happened(&device, "f"),
        ["restored", "edited", "edited", "created"]
    );
    let id = log(&device, "f")[1]["version"]
        .as_str()
        .expect("an id")
        .to_owned();
    restore(&device, "f", &["--at", &id]);
    assert_eq!(read(&device, "f"), text(3, 500).as_bytes());
    // Nor is a delete too young to be taken back.
    fs::remove_file(device.root.join("f")).expect("removes");
    restore(&device, "f", &[]);
    assert_eq!(read(&device, "f"), text(3, 500).as_bytes());
    assert_eq!(happened(&device, "f")[..2], ["restored", "deleted"]);
    assert_eq!(device.conflicts(), 0);
}

#[test]
fn a_renamed_file_keeps_its_history() {
    let device = Device::founded_whole("a");
    save(&device, "old", text(1, 300));
    fs::create_dir(device.root.join("dir")).expect("creates");
    fs::rename(device.root.join("old"), device.root.join("dir/new")).expect("renames");
    device.scan();
    save(&device, "dir/new", text(2, 300));
    assert_eq!(happened(&device, "dir/new"), ["edited", "moved", "created"]);
    assert_eq!(log(&device, "dir/new")[1]["name"]["path"], "new");
    restore(&device, "dir/new", &[]);
    assert_eq!(read(&device, "dir/new"), text(1, 300).as_bytes());
}

#[test]
fn what_was_deleted_comes_back_with_its_directories() {
    let (a, b) = Device::pair_of();
    write(a.root.join("d/deep/one"), text(1, 200));
    write(a.root.join("d/deep/two"), "small");
    write(a.root.join("d/stays"), "x");
    fs::create_dir(a.root.join("d/empty")).expect("creates");
    std::os::unix::fs::symlink("deep/one", a.root.join("d/link")).expect("links");
    in_step(&a, &b);
    let before = a.tree();
    fs::remove_dir_all(a.root.join("d/deep")).expect("removes");
    fs::remove_dir(a.root.join("d/empty")).expect("removes");
    fs::remove_file(a.root.join("d/link")).expect("removes");
    in_step(&a, &b);
    // A file that was seen before its writer was done is "edited" in between.
    let what = happened(&a, "d/deep/one");
    assert_eq!(
        [what.first(), what.last()].map(|what| what.map(String::as_str)),
        [Some("deleted"), Some("created")]
    );
    // One file brings back what it was in, on either device.
    restore(&b, "d/deep/one", &[]);
    in_step(&a, &b);
    assert_eq!(read(&a, "d/deep/one"), text(1, 200).as_bytes());
    assert!(!a.root.join("d/deep/two").exists());
    // They are directories like others again, and do not go with what brought them back.
    fs::remove_file(a.root.join("d/deep/one")).expect("removes");
    in_step(&a, &b);
    assert!(a.root.join("d/deep").exists() && b.root.join("d/deep").exists());
    // All of it.
    let dir = a.root.join("d");
    let report = a.ok(["restore".as_ref(), "--deleted".as_ref(), dir.as_os_str()]);
    assert_eq!(report["missing"], Value::Array(vec![]));
    in_step(&a, &b);
    assert_eq!(a.tree().without_mtimes(), before.without_mtimes());
    let error = a.fails(
        1,
        ["restore".as_ref(), "--deleted".as_ref(), dir.as_os_str()],
    );
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|m| m.contains("nothing"))
    );
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
}

#[test]
fn a_version_that_another_device_has_is_fetched() {
    let (a, b) = Device::pair_of();
    for (name, one, two) in [
        (
            "text",
            text(1, 3_000).into_bytes(),
            text(2, 3_000).into_bytes(),
        ),
        (
            "long",
            text(1, 30_000).into_bytes(),
            text(2, 30_000).into_bytes(),
        ),
        ("small", random_bytes(1, 50_000), random_bytes(2, 50_000)),
        ("big", random_bytes(3, 900_000), random_bytes(4, 900_000)),
    ] {
        write(a.root.join(name), &one);
        in_step(&a, &b);
        write(a.root.join(name), &two);
        in_step(&a, &b);
        // An apply has put it aside on the other device: it is there once it is in a pack.
        b.becomes_tidy();
        let first = log(&a, name).pop().expect("a version");
        let here = name == "text" || name == "long";
        assert_eq!(
            first["kept"],
            if here { "here" } else { "elsewhere" },
            "{name}"
        );
        let id = first["version"].as_str().expect("an id");
        let to = a.dir.join(name);
        restore(&a, name, &["--at", id, "--to", to.to_str().expect("text")]);
        assert!(fs::read(&to).expect("written") == one, "{name}");
        restore(&a, name, &[]);
        in_step(&a, &b);
        assert!(read(&b, name) == one, "{name}");
        assert_eq!(log(&a, name).pop().expect("a version")["kept"], "here");
    }
    a.becomes_tidy();
}

#[test]
fn a_newcomer_can_have_what_was_before_it_came() {
    let a = Device::founded_whole("a");
    for number in 0..4 {
        save(&a, "short", text(number, 2_000));
        save(&a, "long", text(number, 30_000));
    }
    let b = Device::new("b");
    b.pair_with(&a);
    in_step(&a, &b);
    for (name, lines) in [("short", 2_000), ("long", 30_000)] {
        let versions = log(&b, name);
        assert_eq!(versions.len(), 4);
        let second = &versions[2];
        assert_eq!(second["kept"], "elsewhere");
        assert_eq!(second["devices"][0]["name"], "a");
        let id = second["version"].as_str().expect("an id");
        restore(&b, name, &["--at", id]);
        in_step(&a, &b);
        assert_eq!(read(&a, name), text(1, lines).as_bytes());
    }
    a.becomes_tidy();
    b.becomes_tidy();
}

#[test]
fn a_version_that_nobody_has_is_said_to_be_so() {
    let device = Device::founded_whole("a");
    save(&device, "f", random_bytes(1, 5_000));
    save(&device, "f", random_bytes(2, 5_000));
    assert_eq!(log(&device, "f")[1]["kept"], "not_kept");
    let message = restore_fails(&device, 1, "f", &[]);
    assert!(message.contains("not kept on any device"), "{message}");
    assert_eq!(read(&device, "f"), random_bytes(2, 5_000));

    let (a, b) = Device::pair_of();
    write(a.root.join("f"), random_bytes(1, 5_000));
    in_step(&a, &b);
    b.down();
    save(&a, "f", random_bytes(2, 5_000));
    let path = a.root.join("f");
    let error = a.fails(1, ["restore".as_ref(), path.as_os_str()]);
    let items = error["items"].as_array().expect("who may have it");
    assert!(
        items
            .iter()
            .any(|item| item.as_str() == Some("b may have it"))
    );
}

#[test]
fn bad_requests_are_told_and_change_nothing() {
    let device = Device::founded_whole("a");
    save(&device, "f", text(1, 100));
    save(&device, "f", text(2, 100));
    fs::create_dir(device.root.join("d")).expect("creates");
    device.scan();
    let versions = log(&device, "f");
    restore_fails(&device, 1, "f", &["--at", "zzzzzzzz"]);
    restore_fails(&device, 1, "f", &["--at", "1999-01-01"]);
    restore_fails(&device, 2, "f", &["--at", "whenever you like"]);
    restore_fails(&device, 2, "f", &["--at", "NEVER"]);
    restore_fails(&device, 1, "never-there", &[]);
    restore_fails(&device, 2, "d", &[]);
    restore_fails(&device, 2, "../outside", &[]);
    device.fails(2, ["log", "/"]);
    device.fails(
        1,
        ["log", device.root.join("never").to_str().expect("text")],
    );
    let taken = device.dir.join("taken");
    write(&taken, "mine");
    restore_fails(&device, 1, "f", &["--to", taken.to_str().expect("text")]);
    assert_eq!(fs::read(&taken).expect("is there"), b"mine");
    // What shows already is no restore.
    let shown = versions[0]["version"].as_str().expect("an id");
    restore_fails(&device, 1, "f", &["--at", shown]);
    assert_eq!(log(&device, "f"), versions);
    assert_eq!(read(&device, "f"), text(2, 100).as_bytes());
}

#[test]
fn a_restore_beats_a_delete_that_it_has_not_seen() {
    let (a, b) = Device::pair_of();
    write(a.root.join("f"), text(1, 100));
    in_step(&a, &b);
    write(a.root.join("f"), text(2, 100));
    in_step(&a, &b);
    b.down();
    fs::remove_file(b.root.join("f")).expect("removes");
    restore(&a, "f", &[]);
    a.down();
    b.restart();
    b.scan();
    a.restart();
    in_step(&a, &b);
    assert_eq!(read(&b, "f"), text(1, 100).as_bytes());
}

#[test]
fn what_a_space_keeps_no_longer_goes_everywhere_and_all_else_stays() {
    let (a, b) = Device::pair_of();
    let photo = |number| random_bytes(number, 20_000);
    for device in [&a, &b] {
        device.add(&["."]);
    }
    for number in 1..4 {
        put(&a, "photo.jpg", photo(number));
        put(
            &a,
            "notes.txt",
            text(usize::try_from(number).expect("small"), 500),
        );
        in_step(&a, &b);
    }
    // What another device's edit replaced is kept by this one.
    let kept = |device: &Device, path: &str| -> Vec<String> {
        let versions = log(device, path);
        let words = versions.iter().map(|version| version["kept"].as_str());
        words.map(|word| word.expect("a word").to_owned()).collect()
    };
    b.until("what was replaced is kept", |b| {
        (kept(b, "photo.jpg") == ["here", "here", "here"]).then_some(())
    });
    let policy = a.ok(["space", "keep"]);
    assert_eq!(
        (&policy["text"], &policy["rest"], &policy["percent"]),
        (&"forever".into(), &"30d".into(), &10.into())
    );
    let set = a.ok(["space", "keep", "home", "--rest", "0d", "--disk", "3"]);
    assert_eq!((&set["rest"], &set["percent"]), (&"0d".into(), &3.into()));
    in_step(&a, &b);
    b.until("the old photos are not kept any more", |b| {
        let kept = kept(b, "photo.jpg");
        (kept[0] == "here" && kept[1..].iter().all(|kept| kept != "here")).then_some(())
    });
    assert_eq!(b.ok(["space", "keep", "home"])["rest"], "0d");
    let old = log(&b, "photo.jpg")[2]["version"].clone();
    let old = old.as_str().expect("an id");
    let message = restore_fails(&b, 1, "photo.jpg", &["--at", old]);
    assert!(message.contains("not kept on any device"), "{message}");
    assert_eq!(kept(&b, "notes.txt"), ["here", "here", "here"]);
    restore(&b, "notes.txt", &[]);
    assert_eq!(read(&b, "notes.txt"), text(2, 500).as_bytes());
    assert_eq!(read(&b, "photo.jpg"), photo(3));
}

#[test]
fn nonsense_sets_no_keep_policy() {
    let device = Device::founded_whole("a");
    for (code, args) in [
        (2, ["home", "--rest", "soon"]),
        (2, ["home", "--text", "-3d"]),
        (2, ["home", "--disk", "101"]),
        (1, ["pictures", "--rest", "3d"]),
    ] {
        let head = ["space", "keep"];
        device.fails(code, head.iter().chain(&args));
    }
    assert_eq!(device.ok(["space", "keep"])["rest"], "30d");
    let shown = device.cli(["space", "keep"]);
    assert!(shown.status.success());
}

//! `add`, `forget`, `ls` and `.pacignore` in the home space.

use std::fs;

use crate::in_step;
use crate::support::{Device, write};

/// Two devices that track nothing yet.
fn bare_pair() -> (Device, Device) {
    let a = Device::founded("a");
    let b = Device::new("b");
    b.pair_with(&a);
    b.wait();
    (a, b)
}

#[test]
fn only_what_was_added_travels() {
    let (a, b) = bare_pair();
    write(a.root.join("docs/one"), "1");
    write(a.root.join("other/two"), "2");
    write(a.root.join("single"), "3");
    write(a.root.join("beside"), "4");
    let report = a.add(&["docs", "single"]);
    assert_eq!(report["files"], 2, "{report}");
    a.wait();
    assert!(b.root.join("docs/one").exists() && b.root.join("single").exists());
    assert!(!b.root.join("other").exists() && !b.root.join("beside").exists());
    // Tracked for everybody: what the other one puts there comes back.
    write(b.root.join("docs/from-b"), "5");
    write(b.root.join("beside"), "b's own");
    b.wait();
    assert!(a.root.join("docs/from-b").exists());
    assert_eq!(
        fs::read_to_string(a.root.join("beside")).expect("is there"),
        "4"
    );
    let listing = b.ok(["ls"]);
    assert_eq!(
        listing["tracked"].as_array().map(Vec::len),
        Some(2),
        "{listing}"
    );
}

#[test]
fn what_is_forgotten_stays_on_disk_and_comes_back_when_added_again() {
    let (a, b) = Device::pair_of();
    write(a.root.join("dir/one"), "1");
    write(a.root.join("dir/two"), "2");
    write(a.root.join("kept"), "k");
    in_step(&a, &b);
    let dir = a.root.join("dir");
    a.ok(["forget", dir.to_str().expect("text")]);
    a.wait();
    b.wait();
    for device in [&a, &b] {
        assert!(device.root.join("dir/one").exists() && device.root.join("dir/two").exists());
    }
    let listed = a.ok(["ls"])["entries"].clone();
    let paths: Vec<&str> = listed
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|entry| entry["path"].as_str())
        .collect();
    assert_eq!(paths, ["kept"], "what is forgotten is not listed");
    a.fails(1, ["ls", dir.to_str().expect("text")]);
    // Nobody follows it any more.
    write(a.root.join("dir/one"), "only here");
    write(a.root.join("dir/three"), "only here");
    fs::remove_file(b.root.join("dir/two")).expect("removes");
    a.wait();
    b.wait();
    assert_eq!(
        fs::read_to_string(b.root.join("dir/one")).expect("is there"),
        "1"
    );
    assert!(!b.root.join("dir/three").exists() && a.root.join("dir/two").exists());
    // Nothing was deleted in the pac by that.
    a.add(&["dir"]);
    a.wait();
    b.wait();
    in_step(&a, &b);
    assert!(b.root.join("dir/two").exists() && b.root.join("dir/three").exists());
    // What was edited meanwhile is an edit of what stood there.
    let shown = fs::read_to_string(b.root.join("dir/one")).expect("is there");
    assert_eq!(shown, "only here");
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
    write(b.root.join("dir/after"), "tracked again");
    a.comes_to_show(&b);
}

#[test]
fn what_is_deleted_elsewhere_while_forgotten_stays_on_disk() {
    let (a, b) = Device::pair_of();
    write(a.root.join("dir/one"), "1");
    write(a.root.join("dir/two"), "2");
    write(a.root.join("other"), "3");
    in_step(&a, &b);
    // B hears of the delete, of the edit and of the end of tracking in one go.
    b.down();
    fs::remove_file(a.root.join("dir/one")).expect("removes");
    write(a.root.join("dir/two"), "edited");
    a.scan();
    let dir = a.root.join("dir");
    a.ok(["forget", dir.to_str().expect("text")]);
    b.restart();
    a.wait();
    b.wait();
    assert_eq!(
        fs::read_to_string(b.root.join("dir/one")).expect("is there"),
        "1"
    );
    assert_eq!(
        fs::read_to_string(b.root.join("dir/two")).expect("is there"),
        "2"
    );
    fs::rename(a.root.join("other"), a.root.join("renamed")).expect("moves");
    a.wait();
    assert!(b.root.join("renamed").exists());
}

#[test]
fn the_daemons_own_home_beneath_what_is_tracked_is_no_part_of_it() {
    let mut a = Device::new("a");
    a.home = a.root.join("own/pac");
    fs::create_dir(a.root.join("own")).expect("creates");
    a.up();
    a.ok(["add".as_ref(), a.root.as_os_str()]);
    let key = fs::read(a.home.join("device.key")).expect("a key");
    let b = Device::new("b");
    b.pair_with(&a);
    b.wait();
    // At the same place another device has files of the same names.
    write(b.root.join("own/pac/device.key"), "not a key");
    write(b.root.join("own/pac/more"), "more");
    write(a.root.join("own/file"), "1");
    b.scan();
    b.until("A's file", |b| {
        b.root.join("own/file").exists().then_some(())
    });
    a.scan();
    assert_eq!(fs::read(a.home.join("device.key")).expect("a key"), key);
    assert!(!a.home.join("more").exists());
    assert_eq!(
        fs::read_to_string(b.root.join("own/pac/device.key")).expect("is there"),
        "not a key"
    );
    assert!(!b.root.join("own/pac/replica.redb").exists());
    // The rest goes on.
    write(b.root.join("own/later"), "2");
    b.scan();
    a.until("B's file", |a| {
        a.root.join("own/later").exists().then_some(())
    });
}

/// A home that was put away, as the messages advise, and one that is in use.
#[test]
fn keys_of_any_home_stay_where_they_are() {
    let (a, b) = Device::pair_of();
    let mut other = Device::new("other");
    other.home = a.root.join("second");
    other.up();
    other.ok(["scan"]);
    other.down();
    a.scan();
    fs::rename(a.root.join("second"), a.root.join("second.old")).expect("renames");
    write(a.root.join("file"), "1");
    a.wait();
    b.wait();
    assert!(b.root.join("file").exists());
    for name in ["second", "second.old"] {
        for entry in fs::read_dir(b.root.join(name)).into_iter().flatten() {
            let found = entry.expect("an entry").file_name();
            // Made before anything tells what it is to be, and no secret.
            let harmless = ["lock", "unfinished"].iter().any(|own| found == *own);
            assert!(harmless, "{name}/{found:?} was synced");
        }
    }
    let problems = a.status()["problems"].clone();
    let told = problems.as_array().expect("a list").iter();
    let of_home: Vec<_> = told
        .filter(|problem| {
            problem["path"]
                .as_str()
                .is_some_and(|p| p.contains("second"))
        })
        .collect();
    assert_eq!(of_home.len(), 1, "{problems}");
    assert_eq!(of_home[0]["in_the_way"], false);
    // Nor is one anybody's root.
    let at = a.root.join("second.old");
    let at = at.to_str().expect("text");
    a.fails(2, ["space", "create", "keys", "--at", at]);
    let third = Device::new("third");
    third.fails(1, ["up", "--root", at, "--no-discovery"]);
    assert!(!third.home.join("pac").exists());
}

#[test]
fn a_space_inside_what_is_tracked_belongs_to_itself_alone() {
    let (a, b) = Device::pair_of();
    let photos = a.root.join("photos");
    fs::create_dir(&photos).expect("creates");
    a.ok([
        "space".as_ref(),
        "create".as_ref(),
        "photos".as_ref(),
        "--at".as_ref(),
        photos.as_os_str(),
    ]);
    write(photos.join("one"), "1");
    write(a.root.join("two"), "2");
    a.wait();
    assert_eq!(a.space("photos")["files"], 1);
    assert_eq!(a.space("home")["files"], 1);
    assert!(b.root.join("two").exists());
    assert!(!b.root.join("photos/one").exists());
}

#[test]
fn rows_that_arrive_while_forgotten_are_kept() {
    let (a, b) = Device::pair_of();
    write(a.root.join("dir/file"), "1");
    in_step(&a, &b);
    b.down();
    write(a.root.join("dir/file"), "2");
    write(a.root.join("dir/more"), "3");
    a.scan();
    let dir = a.root.join("dir");
    a.ok(["forget", dir.to_str().expect("text")]);
    b.restart();
    a.wait();
    b.wait();
    assert_eq!(
        fs::read_to_string(b.root.join("dir/file")).expect("is there"),
        "1"
    );
    assert!(!b.root.join("dir/more").exists());
    b.add(&["dir"]);
    in_step(&a, &b);
    assert_eq!(
        fs::read_to_string(b.root.join("dir/file")).expect("is there"),
        "2"
    );
    assert!(b.root.join("dir/more").exists());
}

#[test]
fn paths_outside_and_missing_ones_are_refused() {
    let a = Device::founded("a");
    let error = a.fails(1, ["add", a.root.join("missing").to_str().expect("text")]);
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|m| m.contains("missing")),
        "{error}"
    );
    let error = a.fails(2, ["add", "/etc/hostname"]);
    assert!(error["hint"].is_string(), "{error}");
    write(a.root.join("x"), "x");
    let error = a.fails(1, ["forget", a.root.join("x").to_str().expect("text")]);
    assert!(error["hint"].is_string(), "{error}");
    let error = a.fails(1, ["ls", a.root.join("x").to_str().expect("text")]);
    assert!(error["hint"].is_string(), "{error}");
    // What would never travel is told before it is tracked.
    fs::create_dir(a.root.join("real")).expect("creates");
    write(a.root.join("real/file"), "x");
    write(a.root.join(".pacsync~mine"), "x");
    std::os::unix::fs::symlink("real", a.root.join("link")).expect("links");
    let socket = std::os::unix::net::UnixListener::bind(a.root.join("socket"));
    let _socket = socket.expect("binds");
    for (name, why) in [
        ("link/file", "symlink"),
        (".pacsync~mine", "temporary"),
        ("socket", "neither"),
    ] {
        let error = a.fails(1, ["add", a.root.join(name).to_str().expect("text")]);
        let message = error["message"].as_str().expect("text");
        assert!(message.contains(why), "{error}");
    }
    a.ok(["add", a.root.join("link").to_str().expect("text")]);
    // Nor what was never there, beneath something that is tracked.
    write(a.root.join("dir/file"), "x");
    a.ok(["add", a.root.join("dir").to_str().expect("text")]);
    let nothing = a.root.join("dir/nothing");
    let error = a.fails(1, ["forget", nothing.to_str().expect("text")]);
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("nothing"), "{error}");
    a.ok(["forget", a.root.join("dir/file").to_str().expect("text")]);
}

#[test]
fn ignore_files_hold_for_what_lies_beneath_them() {
    let (a, b) = Device::pair_of();
    write(
        a.root.join(".pacignore"),
        "*.tmp\n/build/\n!kept.tmp\n# comment\n",
    );
    write(a.root.join("sub/.pacignore"), "!*.tmp\nlocal\n");
    for path in [
        "x.tmp",
        "kept.tmp",
        "x.txt",
        "build/out",
        "sub/build/out",
        "sub/y.tmp",
        "sub/local",
        "local",
        "deep/er/z.tmp",
        "deep/er/z.txt",
    ] {
        write(a.root.join(path), path);
    }
    a.wait();
    b.wait();
    let shown = |path: &str| b.root.join(path).exists();
    for path in [
        ".pacignore",
        "sub/.pacignore",
        "kept.tmp",
        "x.txt",
        "sub/build/out",
        "sub/y.tmp",
        "local",
        "deep/er/z.txt",
    ] {
        assert!(shown(path), "{path} is missing");
    }
    for path in ["x.tmp", "build", "sub/local", "deep/er/z.tmp"] {
        assert!(!shown(path), "{path} was not ignored");
    }
    // Rules only stop the making of nodes: what is in the pac is followed on.
    write(a.root.join("log.txt"), "1");
    a.wait();
    write(a.root.join(".pacignore"), "*.txt\n");
    a.wait();
    write(a.root.join("log.txt"), "2");
    write(a.root.join("new.txt"), "not to be made");
    a.wait();
    b.wait();
    assert_eq!(
        fs::read_to_string(b.root.join("log.txt")).expect("is there"),
        "2"
    );
    assert!(!shown("new.txt"));
    // Nor does a rule that goes away leave anything out.
    fs::remove_file(a.root.join(".pacignore")).expect("removes");
    a.wait();
    b.wait();
    for path in ["new.txt", "x.tmp", "build/out", "deep/er/z.tmp"] {
        assert!(shown(path), "{path} is missing");
    }
}

/// What was made of a version while it was forgotten is an edit of it, not a stranger.
#[test]
fn what_is_edited_while_forgotten_is_an_edit_when_it_is_added_again() {
    let (a, b) = Device::pair_of();
    let text = |last: &str| format!("one\ntwo\nthree\nfour\nfive\nsix\n{last}\n");
    write(a.root.join("dir/doc"), text("seven"));
    write(a.root.join("dir/other"), "first");
    in_step(&a, &b);
    let dir = a.root.join("dir");
    let dir = dir.to_str().expect("text");
    a.ok(["forget", dir]);
    a.wait();
    b.wait();
    write(a.root.join("dir/doc"), text("seven, on a"));
    write(a.root.join("dir/other"), "newest");
    a.down();
    a.restart();
    // The other side's edit of another line meets it.
    write(
        b.root.join("dir/doc"),
        text("seven").replace("one", "one, on b"),
    );
    a.ok(["add", dir]);
    b.scan();
    in_step(&a, &b);
    let read = |path: &str| fs::read_to_string(b.root.join(path)).expect("is there");
    assert_eq!(read("dir/other"), "newest");
    assert_eq!(
        read("dir/doc"),
        text("seven, on a").replace("one", "one, on b")
    );
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
}

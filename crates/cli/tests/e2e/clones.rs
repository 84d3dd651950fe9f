//! One device key in two places: copied homes, restored backups.

use std::fs;
use std::path::Path;

use crate::support::{Device, Start, check_same, write};

/// Copies a tree into a directory, into the very files where they are there.
fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            copy_into(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

/// As above, without what is in the target and not in the source.
fn put_back(from: &Path, to: &Path) {
    for entry in fs::read_dir(to).expect("reads") {
        let entry = entry.expect("an entry");
        if !from.join(entry.file_name()).exists() && entry.path().is_file() {
            fs::remove_file(entry.path()).expect("removes");
        }
    }
    copy_into(from, to);
}

/// A device to copy another one to that sees nothing where the other one's files are; `None`
/// where this machine does not let the tester mount.
fn on_another_machine(original: &Device) -> Option<Device> {
    let may = std::process::Command::new("unshare")
        .args(["--mount", "true"])
        .status();
    if !may.is_ok_and(|status| status.success()) {
        return None;
    }
    let kept = original.beside("elsewhere");
    // Its `home` space waits for the user: another directory stands there than the copy knows.
    fs::create_dir_all(kept.join("root")).expect("creates");
    let mount = format!(
        "mount --bind {} {} && exec \"$@\"",
        kept.display(),
        original.dir.display()
    );
    let prefix = ["unshare", "--mount", "sh", "-c", &mount, "sh"].map(str::to_owned);
    let start = Start {
        prefix: prefix.into(),
        ..Start::default()
    };
    Some(Device::with("a", start))
}

fn shows(device: &Device, dir: &Path, name: &str, text: &str) {
    device.until(&format!("has {name}"), |_| {
        let found = fs::read_to_string(dir.join(name)).ok()?;
        (found == text).then_some(())
    });
}

#[test]
fn a_copied_home_and_the_original_run_at_the_same_time() {
    let (a, c) = Device::pair_of();
    let (box_a, box_c) = (a.beside("box"), c.beside("box"));
    for dir in [&box_a, &box_c] {
        fs::create_dir(dir).expect("creates");
    }
    a.ok([
        "space",
        "create",
        "box",
        "--at",
        box_a.to_str().expect("text"),
    ]);
    write(box_a.join("before"), "before");
    a.wait();
    c.ok([
        "space",
        "attach",
        "box",
        "--at",
        box_c.to_str().expect("text"),
    ]);
    c.wait();
    a.down();
    let Some(copy) = on_another_machine(&a) else {
        return;
    };
    copy_into(&a.home, &copy.home);
    let box_copy = copy.beside("box");
    copy_into(&box_a, &box_copy);
    a.restart();
    copy.restart();
    copy.ok(["space", "detach", "box"]);
    copy.ok([
        "space",
        "attach",
        "box",
        "--at",
        box_copy.to_str().expect("text"),
    ]);
    write(box_a.join("by-a"), "a");
    write(box_copy.join("by-copy"), "copy");
    let all = [(&a, &box_a), (&copy, &box_copy), (&c, &box_c)];
    let everywhere = |name: &str, text: &str| {
        for (device, dir) in all {
            shows(device, dir, name, text);
        }
    };
    everywhere("by-a", "a");
    everywhere("by-copy", "copy");
    everywhere("before", "before");
    let events = c.events();
    // Both go on, also upon what the other one wrote.
    write(box_a.join("by-copy"), "changed by a");
    everywhere("by-copy", "changed by a");
    write(box_copy.join("by-a"), "changed by copy");
    everywhere("by-a", "changed by copy");
    for round in ["1", "2", "3"] {
        write(box_a.join("by-copy"), round);
        everywhere("by-copy", round);
        write(box_copy.join("by-a"), round);
        everywhere("by-a", round);
    }
    // They don't take each other's place all the time.
    let anew = |event: &serde_json::Value| event["kind"] == "peer_connected";
    assert_eq!(
        events.so_far().iter().filter(|event| anew(event)).count(),
        0
    );
    assert_eq!(c.conflicts(), 0);
    // The copy says what it is, and who has met both.
    let says = |device: &Device| {
        device.status()["notices"]
            .to_string()
            .contains("was copied")
    };
    assert!(says(&copy));
    assert!(!says(&a));
    let status = c.status();
    assert_eq!(status["forks"][0]["device"]["name"], "a", "{status}");
    let what = status["needs_user"][0]["what"].to_string();
    assert!(
        what.contains("the key of a is in use in two places"),
        "{what}"
    );
}

#[test]
fn a_home_put_back_after_it_wrote_more_loses_neither_side() {
    let (a, c) = Device::pair_of();
    write(a.root.join("old"), "old");
    a.wait();
    a.down();
    let backup = a.beside("backup");
    copy_into(&a.home, &backup);
    a.restart();
    write(a.root.join("old"), "newer");
    write(a.root.join("lost"), "written after the backup");
    a.wait();
    shows(&c, &c.root, "lost", "written after the backup");
    a.down();
    c.down();
    // Into the very same files: nothing shows that it is a copy.
    put_back(&backup, &a.home);
    a.restart();
    write(a.root.join("new"), "written after it was put back");
    a.scan();
    c.restart();
    a.connect(&c);
    for device in [&a, &c] {
        shows(device, &device.root, "old", "newer");
        shows(device, &device.root, "lost", "written after the backup");
        shows(device, &device.root, "new", "written after it was put back");
    }
    c.wait();
    a.wait();
    check_same(&a.tree(), &c.tree());
    assert_eq!((a.conflicts(), c.conflicts()), (0, 0));
    for device in [&a, &c] {
        let status = device.status();
        assert_eq!(status["forks"][0]["device"]["name"], "a", "{status}");
        let told = status["needs_user"].as_array().expect("a list");
        assert!(
            told.iter()
                .any(|n| n["what"].as_str().is_some_and(|w| w.contains("two places")))
        );
    }
    // It goes on.
    write(a.root.join("after"), "after");
    shows(&c, &c.root, "after", "after");
}

#[test]
fn a_home_put_back_takes_in_what_it_forgot_and_goes_on() {
    let (a, c) = Device::pair_of();
    write(a.root.join("gone"), "gone");
    a.wait();
    a.down();
    let backup = a.beside("backup");
    copy_into(&a.home, &backup);
    a.restart();
    write(a.root.join("kept"), "kept");
    fs::remove_file(a.root.join("gone")).expect("removes");
    a.wait();
    a.down();
    put_back(&backup, &a.home);
    a.restart();
    a.connect(&c);
    a.wait();
    write(a.root.join("more"), "more");
    a.wait();
    c.wait();
    check_same(&a.tree(), &c.tree());
    assert!(c.root.join("kept").exists() && !c.root.join("gone").exists());
    assert_eq!((a.conflicts(), c.conflicts()), (0, 0));
}

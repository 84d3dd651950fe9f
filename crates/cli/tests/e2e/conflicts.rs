//! What stands side by side is listed, settled and told, on whichever device.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::in_step;
use crate::support::{Device, json, random_bytes, write};

/// Two devices that change the same tree without seeing each other, and then meet.
fn apart(
    make: impl Fn(&Device),
    on_a: impl Fn(&Device),
    on_b: impl Fn(&Device),
) -> (Device, Device) {
    let (a, b) = Device::pair_of();
    make(&a);
    in_step(&a, &b);
    part(&a, &b, on_a, on_b);
    (a, b)
}

/// Each does something while the other is down; then they meet.
fn part(a: &Device, b: &Device, on_a: impl Fn(&Device), on_b: impl Fn(&Device)) {
    b.down();
    on_a(a);
    a.scan();
    a.down();
    b.restart();
    on_b(b);
    b.scan();
    a.restart();
    in_step(a, b);
}

fn contested() -> (Device, Device) {
    apart(
        |a| write(a.root.join("plan.txt"), "base"),
        |a| write(a.root.join("plan.txt"), "by a"),
        |b| write(b.root.join("plan.txt"), "by b"),
    )
}

/// A directory on one, a file on the other, at one path.
fn of_two_kinds() -> (Device, Device) {
    apart(
        |_| {},
        |a| write(a.root.join("x/inside"), "in a directory"),
        |b| write(b.root.join("x"), "a file"),
    )
}

/// The list, which asks for the user by its exit code as long as there is anything in it.
#[track_caller]
fn conflicts(device: &Device) -> Vec<Value> {
    let output = device.cli(["--json", "conflicts"]);
    let list = json(&output);
    let total = list["total"].as_u64().expect("a number");
    let code = if total == 0 { 0 } else { 5 };
    assert_eq!(output.status.code(), Some(code), "{list}");
    let listed = list["conflicts"].as_array().expect("a list").clone();
    assert_eq!(listed.len() as u64, total);
    listed
}

#[track_caller]
fn only_conflict(device: &Device) -> Value {
    let mut listed = conflicts(device);
    assert_eq!(listed.len(), 1, "{listed:?}");
    listed.remove(0)
}

fn versions(conflict: &Value) -> Vec<Value> {
    conflict["versions"].as_array().expect("versions").clone()
}

/// The id of the version that fits.
#[track_caller]
fn id(conflict: &Value, fits: impl Fn(&Value) -> bool) -> String {
    let found = versions(conflict).into_iter().find(|v| fits(v));
    let id = found.as_ref().and_then(|version| version["id"].as_str());
    id.unwrap_or_else(|| panic!("no such version: {conflict}"))
        .to_owned()
}

fn path(device: &Device, name: &str) -> String {
    let path = device.root.join(name);
    path.to_str().expect("text").to_owned()
}

#[track_caller]
fn keep(device: &Device, name: &str, what: &str) -> Value {
    let report = device.ok(["resolve", &path(device, name), "--keep", what]);
    assert_eq!(report["path"], name, "{report}");
    assert_eq!(report["on_disk"], true, "{report}");
    report
}

fn content(device: &Device, name: &str) -> String {
    fs::read_to_string(device.root.join(name)).expect("is there")
}

fn names(device: &Device) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(&device.root)
        .expect("is there")
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| !name.starts_with(".pacsync~"))
        .collect();
    names.sort();
    names
}

/// Both have nothing in conflict any more, and the same on disk.
#[track_caller]
fn settled(a: &Device, b: &Device) {
    in_step(a, b);
    for device in [a, b] {
        assert_eq!(conflicts(device), Vec::<Value>::new());
        assert_eq!(device.conflicts(), 0);
    }
}

#[test]
fn a_conflict_is_listed_with_its_versions_on_every_device() {
    let (a, b) = contested();
    let (of_a, of_b) = (only_conflict(&a), only_conflict(&b));
    for (conflict, device) in [(&of_a, &a), (&of_b, &b)] {
        assert_eq!(conflict["path"], "plan.txt");
        assert_eq!(conflict["space"], "home");
        assert_eq!(conflict["differs"], "contents");
        let versions = versions(conflict);
        assert_eq!(versions.len(), 2);
        for (version, shown) in versions.iter().zip([true, false]) {
            assert_eq!(version["shown"], shown, "{version}");
            assert_eq!(version["size"], 4);
            assert_eq!(version["content"], "here");
            assert_eq!(
                version["mine"],
                version["device"]["name"] == device.name.as_str()
            );
            assert!(version["time_ms"].as_u64().expect("a time") > 1_600_000_000_000);
        }
    }
    let ids = |conflict: &Value| -> Vec<Value> {
        let versions = versions(conflict);
        versions
            .iter()
            .map(|version| version["id"].clone())
            .collect()
    };
    assert_eq!(ids(&of_a), ids(&of_b), "one id on every device");

    let output = a.cli(["conflicts"]);
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8(output.stdout).expect("text");
    for shown in [path(&a, "plan.txt").as_str(), "a (mine)", "  b  "] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    for listed in ids(&of_a) {
        assert!(text.contains(listed.as_str().expect("text")), "{text}");
    }
}

#[test]
fn only_what_is_beneath_a_path_is_listed_and_any_name_is() {
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"dir/odd\xff\n"));
    let (a, b) = apart(
        |_| {},
        |a| {
            write(a.root.join(odd), "by a");
            write(a.root.join("other"), "by a");
        },
        |b| {
            write(b.root.join(odd), "by b");
            write(b.root.join("other"), "by b");
        },
    );
    assert_eq!(conflicts(&a).len(), 2);
    let output = a.cli(["--json", "conflicts", &path(&a, "dir")]);
    let beneath = json(&output);
    assert_eq!(
        (output.status.code(), &beneath["total"]),
        (Some(5), &1.into())
    );
    assert_eq!(beneath["conflicts"][0]["path_bytes"], "ZGlyL29kZP8K");
    let nothing = a.ok(["conflicts", &path(&a, "nowhere")]);
    assert_eq!(nothing["total"], 0);

    let mut command = b.command();
    command
        .args(["--json", "resolve", "--keep", "theirs"])
        .arg(b.root.join(odd));
    let output = command.output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    in_step(&a, &b);
    assert_eq!(fs::read(a.root.join(odd)).expect("is there"), b"by a");
    assert_eq!(only_conflict(&a)["path"], "other");
}

#[test]
fn mine_theirs_or_a_version_becomes_the_one_content() {
    for (choice, expected) in [("mine", "by a"), ("theirs", "by b"), ("VERSION", "by b")] {
        let (a, b) = contested();
        let word = match choice {
            "VERSION" => {
                let id = id(&only_conflict(&a), |v| v["device"]["name"] == "b");
                assert!(id.len() >= 8, "{id}");
                id.get(..5).expect("longer").to_uppercase()
            }
            word => word.to_owned(),
        };
        keep(&a, "plan.txt", &word);
        assert_eq!(content(&a, "plan.txt"), expected, "{choice}");
        settled(&a, &b);
        assert_eq!(content(&b, "plan.txt"), expected, "{choice}");
        assert_eq!(names(&b), ["plan.txt"], "nothing beside it");
        // Life goes on.
        write(b.root.join("plan.txt"), "edited on");
        a.comes_to_show(&b);
        settled(&a, &b);
    }
}

#[test]
fn both_puts_each_other_version_beside_and_overwrites_nothing() {
    let (a, b) = contested();
    let conflict = only_conflict(&a);
    let other = versions(&conflict).pop().expect("another");
    let by = other["device"]["name"].as_str().expect("a name").to_owned();
    let shown = content(&a, "plan.txt");
    // What the name would be is taken, by something that pacsync does not know.
    write(a.root.join(".pacignore"), "plan (*\n");
    a.scan();
    let time = other["time_ms"].as_i64().expect("a time");
    let time = jiff::Timestamp::from_millisecond(time).expect("a time");
    let day = time.strftime("%Y-%m-%d");
    let taken = format!("plan ({by}, {day}).txt");
    write(a.root.join(&taken), "somebody else's");

    let report = keep(&a, "plan.txt", "both");
    let beside = format!("plan ({by}, {day}, 2).txt");
    assert_eq!(report["beside"][0]["path"], beside.as_str(), "{report}");
    in_step_but_for(&a, &b, &taken);
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
    for device in [&a, &b] {
        assert_eq!(content(device, "plan.txt"), shown);
        assert_eq!(content(device, &beside), format!("by {by}"));
    }
    assert_eq!(content(&a, &taken), "somebody else's");
}

/// In step, but for a file that is one device's own.
#[track_caller]
fn in_step_but_for(a: &Device, b: &Device, own: &str) {
    a.wait();
    b.wait();
    let mut left = names(a);
    left.retain(|name| name != own);
    assert_eq!(left, names(b));
}

#[test]
fn two_who_settle_at_once_agree_or_are_in_conflict_again() {
    let (a, b) = contested();
    let of_a = id(&only_conflict(&a), |v| v["device"]["name"] == "a");
    let settle = |what: &str| {
        let what = what.to_owned();
        move |device: &Device| drop(keep(device, "plan.txt", &what))
    };
    part(&a, &b, settle("mine"), settle("mine"));
    assert_eq!(
        versions(&only_conflict(&a)).len(),
        2,
        "they chose otherwise"
    );
    let of_a = versions(&only_conflict(&b))
        .iter()
        .find(|v| v["device"]["name"] == "a")
        .and_then(|v| v["id"].as_str())
        .map_or(of_a, ToOwned::to_owned);
    part(&a, &b, settle(&of_a), settle(&of_a));
    settled(&a, &b);
    assert_eq!(content(&b, "plan.txt"), "by a");

    // Both make the same files.
    let (a, b) = contested();
    part(&a, &b, settle("both"), settle("both"));
    settled(&a, &b);
    assert_eq!(names(&a).len(), 2, "{:?}", names(&a));
}

#[test]
fn versions_of_any_size_are_kept_on_every_device() {
    let (big_a, big_b) = (random_bytes(1, 3_000_000), random_bytes(2, 2_500_000));
    let base = random_bytes(3, 1_000_000);
    let (a, b) = apart(
        |a| write(a.root.join("disk.img"), &base),
        |a| write(a.root.join("disk.img"), &big_a),
        |b| write(b.root.join("disk.img"), &big_b),
    );
    for device in [&a, &b] {
        device.until("has all versions", |device| {
            let versions = versions(&only_conflict(device));
            versions
                .iter()
                .all(|v| v["content"] == "here")
                .then_some(())
        });
        let status = device.status();
        assert_eq!(status["in_sync"], true, "it holds nothing up: {status}");
        device.becomes_tidy();
    }
    // Whoever wrote the other one may be away.
    let shown = id(&only_conflict(&a), |v| v["shown"] == true);
    let hidden = id(&only_conflict(&a), |v| v["shown"] == false);
    let author = versions(&only_conflict(&a))[1]["device"]["name"] == "a";
    let (with, away) = if author { (&b, &a) } else { (&a, &b) };
    away.down();
    // Also not after a start.
    with.down();
    with.restart();
    keep(with, "disk.img", &hidden);
    let expected = if author { &big_a } else { &big_b };
    assert!(fs::read(with.root.join("disk.img")).expect("reads") == *expected);
    away.restart();
    settled(with, away);
    let error = with.fails(1, ["resolve", &path(with, "disk.img"), "--keep", &shown]);
    assert_eq!(error["kind"], "failed", "{error}");
}

#[test]
fn of_different_kinds_the_shown_stays_and_the_hidden_goes() {
    let (a, b) = of_two_kinds();
    let conflict = only_conflict(&b);
    assert_eq!(conflict["differs"], "nodes");
    let kinds: Vec<Value> = versions(&conflict)
        .iter()
        .map(|v| v["kind"].clone())
        .collect();
    assert_eq!(kinds, ["dir", "file"], "{conflict}");
    let dir = id(&conflict, |v| v["kind"] == "dir");
    keep(&b, "x", &dir);
    settled(&a, &b);
    assert_eq!(content(&b, "x/inside"), "in a directory");
    assert_eq!(names(&a), ["x"]);
}

#[test]
fn of_different_kinds_the_hidden_one_can_be_kept() {
    let (a, b) = of_two_kinds();
    let file = id(&only_conflict(&a), |v| v["kind"] == "file");
    keep(&a, "x", &file);
    settled(&a, &b);
    for device in [&a, &b] {
        assert_eq!(content(device, "x"), "a file");
    }
}

#[test]
fn of_different_kinds_both_stand_side_by_side() {
    let (a, b) = of_two_kinds();
    let report = keep(&a, "x", "both");
    let beside = report["beside"][0]["path"]
        .as_str()
        .expect("a path")
        .to_owned();
    assert!(beside.starts_with("x (b, "), "{beside}");
    settled(&a, &b);
    for device in [&a, &b] {
        assert_eq!(content(device, "x/inside"), "in a directory");
        assert_eq!(content(device, &beside), "a file");
    }
}

/// A tool that a user might have set.
fn tool(device: &Device, name: &str, script: &str) -> PathBuf {
    let path = device.beside(name);
    write(&path, format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
    path
}

fn edit(device: &Device, variables: &[(&str, &str)]) -> Output {
    let mut command = device.command();
    command.envs(variables.iter().copied());
    command.args(["--json", "resolve", "--edit"]);
    command.arg(device.root.join("plan.txt"));
    command.output().expect("runs")
}

#[test]
fn an_editor_makes_one_content_of_all() {
    let (a, b) = contested();
    let log = a.beside("log");
    // Puts all that it was given into the first of them.
    let script = format!(
        "{{ stat -c %a \"$(dirname \"$2\")\" \"$2\"; echo \"$1\"; basename \"$2\"; }} > {}\n\
         shift\nall=$(cat \"$@\")\nprintf %s \"$all\" > \"$1\"\necho chatter",
        log.display()
    );
    let good = tool(&a, "good", &script);
    let good = format!("{} --wait", good.display());
    let failing = tool(&a, "failing", "printf spoiled > \"$1\"; exit 3");
    let failing = failing.to_str().expect("text");

    let told = |output: &Output| json(output)["error"].clone();
    let output = edit(&a, &[]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "no editor: {}",
        told(&output)
    );
    let output = edit(&a, &[("EDITOR", failing)]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "it failed: {}",
        told(&output)
    );
    let output = edit(&a, &[("EDITOR", "true")]);
    assert_eq!(
        output.status.code(),
        Some(5),
        "as before: {}",
        told(&output)
    );
    in_step(&a, &b);
    assert_eq!(versions(&only_conflict(&b)).len(), 2, "nothing has changed");

    let (shown, other) = match content(&a, "plan.txt").as_str() {
        "by a" => ("by a", "by b"),
        _ => ("by b", "by a"),
    };
    let output = edit(
        &a,
        &[
            ("PACSYNC_MERGE_TOOL", &good),
            ("VISUAL", failing),
            ("EDITOR", failing),
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(json(&output)["on_disk"], true);
    let seen = fs::read_to_string(&log).expect("is there");
    assert_eq!(seen, "700\n600\n--wait\nplan.txt\n");
    settled(&a, &b);
    assert_eq!(content(&b, "plan.txt"), format!("{shown}{other}base"));
}

#[test]
fn an_edited_content_of_some_size_travels() {
    let (a, b) = contested();
    let script = "head -c 400000 /dev/zero | tr '\\0' 'x' > \"$1\"";
    let long = tool(&a, "long", script);
    let output = edit(&a, &[("VISUAL", long.to_str().expect("text"))]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    settled(&a, &b);
    assert_eq!(content(&b, "plan.txt"), "x".repeat(400_000));
}

#[test]
fn bad_choices_are_refused_and_change_nothing() {
    let (a, b) = contested();
    write(a.root.join("calm"), "x");
    a.scan();
    let plan = path(&a, "plan.txt");
    let outside = a.beside("elsewhere");
    let outside = outside.to_str().expect("text");
    let calm = path(&a, "calm");
    let root = path(&a, "");
    for (code, args, named) in [
        (1, ["resolve", calm.as_str(), "--keep", "mine"], "calm"),
        (1, ["resolve", &plan, "--keep", "zzzzzzzz"], "zzzzzzzz"),
        (1, ["resolve", &plan, "--keep", ""], "version"),
        (2, ["resolve", outside, "--keep", "mine"], "elsewhere"),
        (2, ["resolve", &root, "--keep", "mine"], "root"),
    ] {
        let error = a.fails(code, args);
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(named), "{error}");
        assert!(error["hint"].is_string() || code == 2, "{error}");
    }
    let error = a.fails(2, ["conflicts", outside]);
    assert_eq!(error["kind"], "usage", "{error}");
    a.fails(2, ["resolve", &plan]);
    let error = a.fails(1, ["resolve", &plan, "--keep", "zzzzzzzz"]);
    assert_eq!(
        error["items"].as_array().expect("versions").len(),
        2,
        "{error}"
    );
    in_step(&a, &b);
    assert_eq!(versions(&only_conflict(&a)).len(), 2);
}

#[test]
fn conflicts_are_told_and_hold_nothing_up() {
    let (a, b) = Device::pair_of();
    write(a.root.join("plan.txt"), "base");
    in_step(&a, &b);
    b.down();
    write(a.root.join("plan.txt"), "by a");
    a.scan();
    write(b.root.join("plan.txt"), "by b");
    let events = a.events();
    b.restart();
    let event = events.kind("conflict");
    assert_eq!(event["path"], "plan.txt", "{event}");
    in_step(&a, &b);
    let status = a.status();
    assert_eq!(status["needs_user"][0]["command"], "pacsync conflicts");
    let events = a.events();
    keep(&b, "plan.txt", "mine");
    let gone = events.find("no conflict", |event| {
        event["kind"] == "conflicts" && event["count"] == 0
    });
    assert_eq!(gone["space"], "home");
    settled(&a, &b);
    assert_eq!(a.status()["needs_user"].as_array().map(Vec::len), Some(0));
}

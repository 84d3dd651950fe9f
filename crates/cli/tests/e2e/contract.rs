//! The shapes that scripts depend on, and the phrase that nobody keeps.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Device, json, write};

/// A document has fields of some types: `s`tring, `n`umber, `b`ool, `a`rray, `o`bject.
#[track_caller]
fn has(value: &Value, fields: &[(&str, char)]) {
    for (name, kind) in fields {
        let found = &value[*name];
        let fits = match kind {
            's' => found.is_string(),
            'n' => found.is_number(),
            'b' => found.is_boolean(),
            'a' => found.is_array(),
            'o' => found.is_object(),
            _ => false,
        };
        assert!(fits, "{name} is no {kind}: {value}");
    }
}

#[test]
fn every_command_prints_one_document_of_its_shape() {
    let (a, b) = Device::pair_of();
    write(a.root.join("dir/file"), "x");
    a.wait();
    let status = a.status();
    has(
        &status,
        &[
            ("version", 's'),
            ("pid", 'n'),
            ("uptime_ms", 'n'),
            ("device", 'o'),
            ("pac", 's'),
            ("in_sync", 'b'),
            ("listen", 'a'),
            ("peers", 'a'),
            ("spaces", 'a'),
            ("conflicts", 'n'),
            ("held_deletes", 'n'),
            ("problems", 'a'),
            ("needs_user", 'a'),
            ("notices", 'a'),
        ],
    );
    has(&status["device"], &[("id", 's'), ("name", 's')]);
    let peer = [
        ("id", 's'),
        ("name", 's'),
        ("connected", 'b'),
        ("address", 's'),
        ("in_sync", 'b'),
    ];
    has(&status["peers"][0], &peer);
    let space = [
        ("id", 's'),
        ("name", 's'),
        ("root", 's'),
        ("attached", 'b'),
        ("state", 's'),
        ("files", 'n'),
        ("bytes", 'n'),
        ("pending", 'n'),
        ("conflicts", 'n'),
        ("held_deletes", 'n'),
    ];
    has(&status["spaces"][0], &space);
    assert_eq!(status["spaces"][0]["root"], a.root.to_str().expect("text"));
    assert_eq!(status["spaces"][0]["files"], 1);
    assert_eq!(status["in_sync"], true);

    has(
        &a.ok(["devices"])["devices"][0],
        &[("role", 's'), ("this", 'b'), ("connected", 'b')],
    );
    has(&a.ok(["space", "ls"])["spaces"][0], &space);
    let listing = a.ok(["ls"]);
    has(
        &listing,
        &[
            ("space", 's'),
            ("root", 's'),
            ("tracked", 'a'),
            ("entries", 'a'),
            ("more", 'b'),
        ],
    );
    let paths: Vec<&str> = listing["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .filter_map(|entry| entry["path"].as_str())
        .collect();
    assert_eq!(paths, ["dir", "dir/file"]);
    let entry = [
        ("path", 's'),
        ("kind", 's'),
        ("size", 'n'),
        ("mtime_ms", 'n'),
        ("mode", 'n'),
    ];
    has(&listing["entries"][1], &entry);
    has(
        &listing["entries"][1],
        &[("on_disk", 'b'), ("conflict", 'b')],
    );
    has(
        &a.scan(),
        &[("looked_at", 'n'), ("changes", 'n'), ("problems", 'a')],
    );
    has(&a.wait(), &[("in_sync", 'b'), ("devices", 'a')]);
    has(&a.ok(["deletes"]), &[("action", 's'), ("held", 'a')]);
    has(
        &a.add(&["dir"]),
        &[
            ("added", 'a'),
            ("files", 'n'),
            ("bytes", 'n'),
            ("problems", 'a'),
        ],
    );
    let dir = a.root.join("dir");
    has(
        &a.ok(["forget", dir.to_str().expect("text")]),
        &[("forgotten", 'a')],
    );
    has(&a.connect(&b), &[("device", 'o'), ("address", 's')]);
    let doctor = a.ok(["doctor"]);
    has(
        &doctor["checks"][0],
        &[("name", 's'), ("result", 's'), ("detail", 's')],
    );
    has(&b.ok(["down"]), &[("stopped", 'b'), ("pid", 'n')]);
    let up = b.restart();
    has(
        &up,
        &[
            ("home", 's'),
            ("pid", 'n'),
            ("founded", 'b'),
            ("device", 'o'),
            ("pac", 's'),
            ("listen", 'a'),
        ],
    );
}

#[test]
fn text_is_for_people_and_stdout_stays_clean() {
    let (a, b) = Device::pair_of();
    write(a.root.join("dir/new\nline"), "x");
    a.wait();
    for args in [
        &["status"][..],
        &["devices"],
        &["space", "ls"],
        &["ls"],
        &["scan"],
        &["wait"],
        &["deletes"],
        &["doctor"],
    ] {
        let output = a.cli(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
        assert!(
            !output.stdout.contains(&0x1b),
            "no colours in a pipe: {output:?}"
        );
        assert_ne!(output.stdout.first(), Some(&b'{'), "{output:?}");
    }
    let output = a.cli(["ls", "-0"]);
    let names: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
    assert_eq!(names, [&b"dir/"[..], b"dir/new\nline", b""]);
    drop(b);
}

#[test]
fn events_are_json_lines_until_the_daemon_goes() {
    let a = Device::founded_whole("a");
    let events = a.events();
    let listener = a
        .command()
        .arg("events")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("runs");
    write(a.root.join("file"), "x");
    a.scan();
    let recorded = events.kind("recorded");
    assert_eq!(recorded["space"], "home", "{recorded}");
    a.down();
    let output = listener.wait_with_output().expect("ends");
    // Whether it subscribed in time for more than the last one is left to chance.
    let text = String::from_utf8(output.stdout).expect("text");
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        assert!(
            event["seq"].is_u64() && event["kind"].is_string(),
            "{event}"
        );
    }
    let last = events.into_all().pop().expect("an event");
    assert_eq!(last["kind"], "stopping", "{last}");
}

#[test]
fn what_is_applied_is_told() {
    let (a, b) = Device::pair_of();
    let events = b.events();
    write(a.root.join("live"), "x");
    let event = events.applied("live");
    assert_eq!(event["space"], "home", "{event}");
    // It is on disk when it is told.
    assert_eq!(
        fs::read_to_string(b.root.join("live")).expect("is there"),
        "x"
    );
}

#[test]
fn usage_ends_with_2() {
    let a = Device::founded("a");
    for args in [
        &["nonsense"][..],
        &["add"],
        &["wait", "--timeout", "soon"],
        &["pair", "--role", "king"],
        &["pair", "--role", "admin", "--yes"],
        &["deletes", "--apply", "--restore"],
        &["connect", "nowhere"],
        &["space", "create", "x"],
        &["up", "--listen", "x"],
    ] {
        let error = a.fails(2, args);
        assert_eq!(error["kind"], "usage", "{args:?}: {error}");
    }
}

fn files_beneath(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).expect("reads").filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            files_beneath(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn the_phrase_is_shown_once_and_written_nowhere() {
    let a = Device::new("a");
    let args = [vec!["up".to_owned(), "-vv".to_owned()], a.start_args()].concat();
    let output = a.cli(args.iter().map(String::as_str).chain(["--json"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    let words: Vec<&str> = report["phrase"]
        .as_array()
        .expect("a phrase")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(words.len(), 24);
    assert!(!contains(&output.stderr, words.join(" ").as_bytes()));
    write(a.root.join("file"), "x");
    a.add(&["file"]);
    let b = Device::new("b");
    b.pair_with(&a);
    b.wait();
    a.down();
    let again = a.restart();
    assert_eq!(
        (&again["founded"], again.get("phrase")),
        (&false.into(), None)
    );
    for device in [&a, &b] {
        let mut files = vec![];
        files_beneath(&device.dir, &mut files);
        assert!(files.len() > 3);
        for path in files.iter().filter(|path| path.is_file()) {
            let bytes = fs::read(path).unwrap_or_default();
            for separator in [" ", "\n", "-", "\",\""] {
                for three in words.windows(3) {
                    let needle = three.join(separator);
                    assert!(!contains(&bytes, needle.as_bytes()), "{}", path.display());
                }
            }
        }
    }
}

#[test]
fn people_see_the_phrase_with_what_it_is_for() {
    let a = Device::new("a");
    let args = [vec!["up".to_owned()], a.start_args()].concat();
    let output = a.cli(&args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = String::from_utf8(output.stdout).expect("text");
    assert!(
        shown.contains("only this once") && shown.contains("24 "),
        "{shown}"
    );
    for secret in fs::read_dir(&a.home)
        .expect("is there")
        .filter_map(Result::ok)
    {
        use std::os::unix::fs::MetadataExt;
        let found = secret.metadata().expect("is there");
        if found.is_file() {
            assert_eq!(found.mode() & 0o077, 0, "{}", secret.path().display());
        }
    }
}

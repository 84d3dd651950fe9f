//! What goes wrong at a start is said with the way out.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::net::UdpSocket;

use serde_json::Value;

use crate::support::{Device, Start, json, text};

#[track_caller]
fn says(error: &Value, what: &str) {
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains(what), "{error}");
    let hint = error["hint"].as_str().expect("a way out");
    assert!(!hint.is_empty(), "{error}");
}

#[test]
fn a_second_up_says_that_it_is_running() {
    let a = Device::founded("a");
    let pid = a.pid();
    let error = a.fails(1, ["up"]);
    says(&error, "running");
    says(&error, &pid.to_string());
    let output = a.cli(["up"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("pacsync: ") && text(&output).contains("hint: "),
        "{output:?}"
    );
    let error = a.fails(1, ["daemon"]);
    assert!(error["hint"].is_string(), "{error}");
    assert_eq!(a.status()["pid"], pid);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let a = Device::with(
        "a",
        Start {
            listen: Some(address),
            ..Start::default()
        },
    );
    let args = [vec!["up".to_owned()], a.start_args()].concat();
    let output = a.cli(args.iter().map(String::as_str).chain(["--json"]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let document = json(&output);
    says(&document["error"], &address.to_string());
    // No pac was made, whose phrase nobody would look for in an error.
    assert!(document["phrase"].is_null(), "{document}");
    drop(taken);
    let report = a.restart();
    assert_eq!(report["founded"], true, "{report}");
    assert_eq!(report["phrase"].as_array().map(Vec::len), Some(24));
}

#[test]
fn a_missing_root_is_named() {
    let a = Device::new("a");
    fs::remove_dir(&a.root).expect("removes");
    let args = [vec!["up".to_owned()], a.start_args()].concat();
    let error = a.fails(1, &args);
    says(&error, a.root.to_str().expect("text"));
    assert!(
        !a.home.join("pac").exists(),
        "no phrase was shown, so there is no pac"
    );
    fs::create_dir(&a.root).expect("creates");
    let report = a.up();
    assert_eq!(report["founded"], true, "{report}");
    a.down();
    fs::remove_dir(&a.root).expect("removes");
    let error = a.fails(1, ["up"]);
    says(&error, a.root.to_str().expect("text"));
    fs::create_dir(&a.root).expect("creates");
    a.restart();
}

/// The database of a replica.
fn replica(a: &Device) -> std::path::PathBuf {
    fs::read_dir(&a.home)
        .expect("is there")
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "redb")
        })
        .expect("a database")
}

#[test]
fn a_damaged_replica_is_named_and_the_files_are_left_alone() {
    let a = Device::founded_whole("a");
    crate::support::write(a.root.join("file"), "x");
    a.scan();
    a.down();
    let path = replica(&a);
    let whole = fs::read(&path).expect("reads");
    let cut = whole.len() / 2;
    let mut scrambled = whole.clone();
    for byte in scrambled.iter_mut().take(whole.len() / 2) {
        *byte ^= 0x5a;
    }
    for damaged in [
        vec![],
        b"no database".to_vec(),
        scrambled,
        whole.get(..cut).unwrap_or_default().to_vec(),
    ] {
        fs::write(&path, damaged).expect("writes");
        let error = a.fails(1, ["up"]);
        says(&error, path.to_str().expect("text"));
        assert!(a.root.join("file").exists());
    }
    fs::remove_file(&path).expect("removes");
    let error = a.fails(1, ["up"]);
    says(&error, path.to_str().expect("text"));
    fs::write(&path, &whole).expect("writes");
    a.restart();
    a.wait();
}

#[test]
fn damage_in_the_middle_of_a_replica_never_takes_files() {
    let a = Device::founded_whole("a");
    for number in 0..300 {
        crate::support::write(a.root.join(format!("{number}")), format!("{number}"));
    }
    a.scan();
    a.down();
    let before = a.tree();
    let path = replica(&a);
    let length = path.metadata().expect("is there").len();
    let mut file = fs::File::options().write(true).open(&path).expect("opens");
    for place in (8192..length).step_by(20_000) {
        file.seek(SeekFrom::Start(place)).expect("seeks");
        file.write_all(&[0xa5; 64]).expect("writes");
    }
    drop(file);
    let output = a.cli(["--json", "up"]);
    match output.status.code() {
        // It may run as far as it can, and says what is wrong as soon as it meets it.
        Some(0) => {
            let output = a.cli(["--json", "wait", "--timeout", "3"]);
            assert!(output.status.code().is_some(), "{output:?}");
        }
        Some(1) => says(&json(&output)["error"], path.to_str().expect("text")),
        _ => panic!("{output:?}"),
    }
    crate::support::check_same(&before, &a.tree());
}

#[test]
fn homes_that_cannot_be_used_are_named() {
    let a = Device::new("a");
    fs::write(&a.home, "a file").expect("writes");
    let args = [vec!["up".to_owned()], a.start_args()].concat();
    let error = a.fails(1, &args);
    says(&error, a.home.to_str().expect("text"));
    fs::remove_file(&a.home).expect("removes");
    a.up();
    a.down();
    let config = fs::read_dir(&a.home)
        .expect("is there")
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name == "config.json"));
    if let Some(config) = config {
        fs::write(&config, "{ not JSON").expect("writes");
        let error = a.fails(1, ["up"]);
        says(&error, config.to_str().expect("text"));
    }
}

#[test]
fn nothing_runs_where_nothing_was_started() {
    let a = Device::new("a");
    for args in [
        &["status"][..],
        &["wait"],
        &["scan"],
        &["ls"],
        &["devices"],
        &["down"],
        &["deletes"],
        &["space", "ls"],
        &["add", "x"],
        &["forget", "x"],
        &["connect", "127.0.0.1:1"],
        &["pair"],
    ] {
        let error = a.fails(3, args);
        assert_eq!(error["kind"], "not_running", "{args:?}: {error}");
        says(&error, a.home.to_str().expect("text"));
    }
    assert!(!a.home.exists(), "looking makes nothing");
}

#[test]
fn a_stopped_daemon_leaves_no_socket_and_starts_again() {
    let a = Device::founded("a");
    let first = a.pid();
    let report = a.ok(["down"]);
    assert_eq!(
        (&report["stopped"], &report["pid"]),
        (&true.into(), &first.into())
    );
    a.fails(3, ["status"]);
    a.restart();
    a.kill9();
    a.fails(3, ["status"]);
    let report = a.restart();
    assert_eq!(report["founded"], false, "{report}");
    assert_eq!(report.get("phrase"), None, "{report}");
}

#[test]
fn the_root_is_chosen_once() {
    let a = Device::founded("a");
    a.down();
    let other = a.beside("other");
    fs::create_dir(&other).expect("creates");
    let error = a.fails(2, ["up", "--root", other.to_str().expect("text")]);
    says(&error, a.root.to_str().expect("text"));
}

#[test]
fn a_damaged_home_is_told_by_doctor_too() {
    let a = Device::founded("a");
    a.down();
    for name in ["device.key", "pac", "config.json"] {
        let path = a.home.join(name);
        let whole = fs::read(&path).expect("reads");
        for damage in [Some(&b"damaged"[..]), None] {
            match damage {
                Some(bytes) => fs::write(&path, bytes).expect("writes"),
                None => fs::remove_file(&path).expect("removes"),
            }
            let up = a.fails(1, ["up"]);
            assert!(up["hint"].is_string(), "{name}: {up}");
            let output = a.cli(["doctor", "--json"]);
            assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
            let report = json(&output);
            let checks = report["checks"].as_array().expect("a list").iter();
            let told = checks.filter(|c| c["result"] == "fail" && c["hint"].is_string());
            assert_eq!(told.count(), 1, "{name}: {report}");
            use std::os::unix::fs::PermissionsExt;
            fs::write(&path, &whole).expect("writes");
            let only_us = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&path, only_us).expect("sets the mode");
        }
    }
    a.restart();
}

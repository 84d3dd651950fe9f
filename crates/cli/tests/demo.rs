//! The whole product at once, as a newcomer sees it first.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn demo(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pacsync"))
        .env_clear()
        .env("HOME", home)
        .env("TMPDIR", home)
        .args(["--json", "demo"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

fn document(output: &Output) -> Value {
    let told = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"))
}

/// Names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn three_devices_end_up_with_the_same_files() {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::write(home.path().join(".bashrc"), "alias l='ls -l'\n").expect("writes");
    let output = demo(home.path(), &[]);
    let report = document(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["identical"], true, "{report:#}");
    assert_eq!(report["differences"], serde_json::json!([]));
    assert_eq!(report["dotfiles"]["copied"], 1);
    let devices = report["devices"].as_array().expect("devices");
    let names_told: Vec<_> = devices.iter().map(|device| &device["name"]).collect();
    assert_eq!(names_told, ["laptop", "phone", "server"]);
    for device in devices {
        assert_eq!(device["in_sync"], true, "{device}");
        assert_eq!(device["conflicts"], 1, "{device}");
        assert_eq!(device["hash"], devices[0]["hash"]);
        assert_eq!(device["files"], devices[0]["files"]);
        assert!(device["files"].as_u64() > Some(2_900), "{device}");
        assert!(device["bytes"].as_u64() > Some(128 << 20), "{device}");
    }
    // It leaves no trace: neither its directory nor a home of the user's.
    assert_eq!(names(home.path()), [".bashrc"]);
}

#[test]
fn it_takes_no_directory_with_something_in_it() {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::write(home.path().join("mine"), "x").expect("writes");
    let keep = home.path().to_str().expect("text");
    let output = demo(home.path(), &["--keep", keep]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(document(&output)["error"]["kind"], "failed");
    assert_eq!(names(home.path()), ["mine"]);
}

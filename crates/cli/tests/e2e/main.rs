//! Real daemons, driven through the program as a user would drive it: two or three devices on
//! loopback, real files, and the disk as the judge.

mod changes;
mod clones;
mod conflicts;
mod content;
mod contract;
mod errors;
mod history;
mod joining;
mod merging;
mod network;
mod pairing;
mod spaces;
#[path = "../support/mod.rs"]
mod support;
mod told;
mod tracking;
mod traffic;
mod undo;

use support::{Device, check_same};

/// Both are at rest in one state, which is on both disks.
#[track_caller]
fn in_step(one: &Device, other: &Device) {
    one.wait();
    other.wait();
    let (left, right) = (one.tree(), other.tree());
    check_same(&left, &right);
}

#[test]
fn every_file_of_this_folder_is_a_module() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
    let main = std::fs::read_to_string(folder.join("main.rs")).expect("is there");
    for entry in std::fs::read_dir(&folder).expect("is there") {
        let path = entry.expect("an entry").path();
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .expect("text");
        assert!(
            stem == "main" || main.contains(&format!("\nmod {stem};")),
            "{stem} is not in main.rs"
        );
    }
}

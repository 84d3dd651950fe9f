//! Versions that are too big to be kept unasked: they are fetched when they are wanted, and who
//! has them is named when they cannot be.

use std::fs;

use serde_json::Value;

use crate::rig::{Machine, Mount, Need, Pair, Stage, eventually, has, last_json};
use crate::samples::{Chance, sealed};

fn versions(machine: &Machine) -> Vec<Value> {
    let output = machine.run(["--json", "conflicts"]);
    let list = last_json(&output);
    let versions = list["conflicts"][0]["versions"].as_array();
    versions.cloned().unwrap_or_default()
}

#[test]
fn a_big_version_is_fetched_when_it_is_wanted() {
    if !has(Need::Tmpfs) {
        return;
    }
    let mut mount = None;
    let pair = Pair::staged(Stage::Here, Stage::Here, |_, bert| {
        mount = Mount::tmpfs(&bert.root, "16m");
    });
    let _mount = mount.expect("mounted before");
    let mut chance = Chance::new(7);
    let (big, small) = (sealed(&mut chance, 3_000_000), sealed(&mut chance, 100));
    let name = "disk.img";
    fs::write(pair.a.root.join(name), b"base").expect("writes");
    pair.converge();
    // More edits are behind the small one: it shows.
    pair.a.down();
    fs::write(pair.b.root.join(name), b"more").expect("writes");
    pair.b.ok(&["scan"]);
    fs::write(pair.b.root.join(name), &small).expect("writes");
    pair.b.ok(&["scan"]);
    pair.b.down();
    pair.a.up();
    fs::write(pair.a.root.join(name), &big).expect("writes");
    pair.a.ok(&["scan"]);
    pair.b.up();
    pair.converge();
    assert_eq!(fs::read(pair.b.root.join(name)).expect("reads"), small);

    let other = eventually("bert lists the version that it has no room for", || {
        versions(&pair.b).into_iter().find(|v| v["shown"] == false)
    });
    assert_eq!(other["content"], "elsewhere", "{other}");
    assert_eq!(other["on"][0]["name"], pair.a.name, "{other}");
    pair.a.down();
    let path = pair.b.root.join(name);
    let path = path.to_str().expect("text");
    let refused = pair.b.run(["--json", "resolve", path, "--keep", "theirs"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let error = last_json(&refused)["error"].clone();
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains(pair.a.name), "it says who has it: {error}");
    assert_eq!(fs::read(path).expect("reads"), small, "nothing has changed");

    pair.a.up();
    let report = eventually("bert settles it", || {
        let output = pair.b.run(["--json", "resolve", path, "--keep", "theirs"]);
        output.status.success().then(|| last_json(&output))
    });
    assert_eq!(report["on_disk"], true, "{report}");
    assert!(fs::read(path).expect("reads") == big);
    pair.converge();
    assert_eq!((pair.a.conflicts(), pair.b.conflicts()), (0, 0));
}

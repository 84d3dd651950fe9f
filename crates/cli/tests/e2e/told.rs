//! What users are told: right after joining, while work goes on, and of what could not be kept.

use std::fs;

use serde_json::Value;

use crate::in_step;
use crate::support::{Device, random_bytes, write};

fn names(list: &Value) -> Vec<&str> {
    let items = list.as_array().expect("a list");
    items
        .iter()
        .filter_map(|item| item["name"].as_str())
        .collect()
}

#[test]
fn a_joined_device_knows_the_spaces_and_names_of_the_pac_at_once() {
    let a = Device::founded_whole("a");
    for number in 0..500 {
        write(a.root.join(format!("dir/{number}")), number.to_string());
    }
    let photos = a.beside("photos");
    fs::create_dir(&photos).expect("creates");
    a.ok([
        "space",
        "create",
        "photos",
        "--at",
        photos.to_str().expect("text"),
    ]);
    a.scan();
    let b = Device::new("b");
    let report = b.pair_with(&a);
    let status = b.status();
    let list = b.ok(["space", "ls"]);
    assert_eq!(report["received"], true, "{report}");
    for spaces in [&status["spaces"], &list["spaces"]] {
        let mut found = names(spaces);
        found.sort_unstable();
        assert_eq!(found, ["home", "photos"], "{report}");
    }
    assert_eq!(names(&status["peers"]), ["a"], "{status}");
}

#[test]
fn a_new_name_reaches_the_others() {
    let (a, b) = Device::pair_of();
    assert_eq!(names(&a.status()["peers"]), ["b"]);
    b.down();
    b.ok(["up", "--name", "renamed"]);
    a.until("shows the new name", |a| {
        (names(&a.status()["peers"]) == ["renamed"]).then_some(())
    });
    // And back, on the device that founded the pac.
    a.down();
    a.ok(["up", "--name", "founder"]);
    b.until("shows the founder's new name", |b| {
        (names(&b.status()["peers"]) == ["founder"]).then_some(())
    });
}

#[test]
fn a_restarted_device_keeps_its_first_connection() {
    let (one, other) = Device::pair_of();
    // Which dial would be preferred depends on the ids: either restarts in turn.
    for (round, (a, b)) in [(&one, &other), (&other, &one)].into_iter().enumerate() {
        let events = a.events();
        b.down();
        events.kind("peer_disconnected");
        // Time for the other one to dial into the void, which it goes on with meanwhile.
        a.fails(5, ["wait", "--timeout", "0.7"]);
        b.restart();
        events.kind("peer_connected");
        for number in 0..20 {
            write(a.root.join(format!("{round}/{number}")), "a");
            write(b.root.join(format!("{round}/b{number}")), "b");
            in_step(a, b);
        }
        let later = events.so_far();
        // Dials that truly crossed leave one of two; never is there a third.
        let again = later
            .iter()
            .filter(|event| event["kind"] == "peer_connected");
        assert!(again.count() <= 1, "round {round}: {later:?}");
    }
}

#[test]
fn a_transfer_that_goes_on_after_a_restart_is_shown_with_its_path() {
    let (a, b) = Device::pair_of();
    let under_way = |device: &Device| {
        let home = device.space("home");
        let transfers = home["transfers"].as_array().cloned()?;
        transfers.first().cloned()
    };
    // The first word of it comes at its beginning; whether the kill comes before its end is luck.
    let mut seed = 5;
    let path = (1..20)
        .map(|number| format!("sub/big{number}"))
        .find(|path| {
            let events = b.events();
            seed += 1;
            write(a.root.join(path), random_bytes(seed, 64 << 20));
            events.find("progress", |event| event["bytes_total"] == 64 << 20);
            a.kill9();
            b.kill9();
            let caught = !b.root.join(path).exists();
            b.restart();
            if !caught {
                a.restart();
                in_step(&a, &b);
                fs::write(a.root.join(path), "").expect("writes");
            }
            caught
        });
    let path = path.expect("caught once in twenty times");
    // Without the other one it stays under way.
    let seen = b.until("goes on", under_way);
    assert_eq!(seen["path"], path, "{seen}");
    a.restart();
    in_step(&a, &b);
}

#[test]
fn progress_is_told_while_content_comes() {
    let (a, b) = Device::pair_of();
    let events = b.events();
    write(a.root.join("big"), random_bytes(6, 24 << 20));
    let event = events.find("progress", |event| {
        event["kind"] == "progress" && event["bytes_total"] == 24 << 20
    });
    assert_eq!(event["space"], "home", "{event}");
    let number = |name: &str| event[name].as_u64().expect("a number");
    assert!(number("done") < number("total"), "{event}");
    assert!(number("bytes_done") <= number("bytes_total"), "{event}");
    in_step(&a, &b);
    events.so_far();
    in_step(&a, &b);
    let rest = events.so_far();
    assert!(
        rest.iter().all(|event| event["kind"] != "progress"),
        "{rest:?}"
    );
}

#[test]
fn a_broken_hard_link_is_a_notice_and_no_problem() {
    let (a, b) = Device::pair_of();
    write(a.root.join("linked"), "one");
    in_step(&a, &b);
    let other = b.beside("other-name");
    fs::hard_link(b.root.join("linked"), &other).expect("links");
    assert_eq!(b.status()["notices"], Value::Array(vec![]));
    write(a.root.join("linked"), "two, from elsewhere");
    in_step(&a, &b);
    assert_eq!(fs::read_to_string(&other).expect("reads"), "one");
    let status = b.status();
    let path = b.root.join("linked");
    assert_eq!(
        status["notices"][0]["paths"][0]["path"],
        path.to_str().expect("text"),
        "{status}"
    );
    assert_eq!(status["problems"], Value::Array(vec![]), "{status}");
}

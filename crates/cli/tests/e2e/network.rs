//! More than two devices, devices that go and come back, addresses.

use std::fs;

use crate::in_step;
use crate::support::{Device, check_same, random_bytes, write};

/// Three devices in a row: the middle one alone knows where the ends are.
fn row_of_three() -> (Device, Device, Device) {
    let a = Device::founded_whole("a");
    let (b, c) = (Device::new("b"), Device::new("c"));
    b.pair_as_admin_with(&a);
    c.pair_with(&b);
    (a, b, c)
}

/// Three devices, each connected to each.
fn ring_of_three() -> (Device, Device, Device) {
    let a = Device::founded_whole("a");
    let (b, c) = (Device::new("b"), Device::new("c"));
    b.pair_with(&a);
    c.pair_with(&a);
    c.connect(&b);
    (a, b, c)
}

#[test]
fn three_at_once_agree() {
    let (a, b, c) = ring_of_three();
    for device in [&a, &b, &c] {
        for number in 0..20 {
            let path = device.root.join(format!("{}/{number}", device.name));
            write(path, format!("{} {number}", device.name));
        }
    }
    for device in [&a, &b, &c] {
        for other in [&a, &b, &c] {
            if device.name != other.name {
                device.wait_for(other);
            }
        }
    }
    assert_eq!(a.tree().files(), 60);
    in_step(&a, &b);
    in_step(&b, &c);
    fs::remove_dir_all(b.root.join("a")).expect("removes");
    write(c.root.join("b/3"), "edited by c");
    a.until("shows both", |a| {
        (a.tree() == b.tree() && a.tree() == c.tree()).then_some(())
    });
}

#[test]
fn what_one_end_of_a_row_writes_the_other_shows() {
    let (a, b, c) = row_of_three();
    c.wait();
    let connected = |device: &Device, name: &str| {
        let status = device.status();
        let peers = status["peers"].as_array().expect("peers").clone();
        peers
            .iter()
            .any(|peer| peer["name"] == name && peer["connected"] == true)
    };
    a.until("knows the third by name", |a| {
        let peers = a.status()["peers"].as_array().cloned()?;
        peers.iter().any(|peer| peer["name"] == "c").then_some(())
    });
    assert!(connected(&a, "b") && connected(&c, "b"));
    assert!(!connected(&a, "c") && !connected(&c, "a"));
    write(a.root.join("from-a"), random_bytes(3, 3 << 20));
    c.comes_to_show(&a);
    write(c.root.join("from-c/deep"), "c");
    fs::remove_file(c.root.join("from-a")).expect("removes");
    a.comes_to_show(&c);
    // Its ack comes through the middle.
    write(a.root.join("more"), "more");
    let report = a.wait_for(&c);
    assert_eq!(report["devices"][0]["name"], "c", "{report}");
    check_same(&a.tree(), &c.tree());
    check_same(&a.tree(), &b.tree());
}

#[test]
fn the_one_in_the_middle_forwards_what_it_was_told_while_the_other_was_away() {
    let (a, b, c) = ring_of_three();
    in_step(&a, &b);
    in_step(&a, &c);
    // The founder goes; what it had said reaches the third through the second, and back.
    c.down();
    write(a.root.join("from-a"), "written while c was away");
    in_step(&a, &b);
    a.down();
    c.restart();
    c.connect(&b);
    c.wait_for(&b);
    check_same(&c.tree(), &b.tree());
    assert!(c.root.join("from-a").exists());
    write(c.root.join("from-c"), "written while a was away");
    c.wait_for(&b);
    c.down();
    a.restart();
    a.connect(&b);
    a.wait_for(&b);
    check_same(&a.tree(), &b.tree());
    assert!(a.root.join("from-c").exists());
}

#[test]
fn either_comes_back_by_itself_after_a_restart() {
    let (a, b) = Device::pair_of();
    write(a.root.join("first"), "1");
    in_step(&a, &b);
    b.down();
    write(a.root.join("second"), "2");
    write(b.root.join("third"), "3");
    b.restart();
    b.comes_to_show(&a);
    in_step(&a, &b);
    a.kill9();
    write(b.root.join("fourth"), "4");
    // It may listen on another port: it looks for the other at its last address.
    a.restart();
    a.comes_to_show(&b);
    in_step(&a, &b);
    assert_eq!(a.tree().files(), 4);
}

#[test]
fn peers_are_told_to_come_and_go() {
    let (a, b) = Device::pair_of();
    let events = a.events();
    let id = b.id();
    b.down();
    assert_eq!(events.kind("peer_disconnected")["device"], id.as_str());
    let status = a.status();
    assert_eq!(status["peers"][0]["connected"], false, "{status}");
    assert_eq!(status["in_sync"], false, "{status}");
    b.restart();
    let event = events.kind("peer_connected");
    assert_eq!(
        (&event["device"], &event["name"]),
        (&id.clone().into(), &"b".into())
    );
    events.find("in sync again", |event| {
        event["kind"] == "in_sync" && event["in_sync"] == true
    });
    assert_eq!(a.status()["in_sync"], true);
}

#[test]
fn connect_names_who_answers_and_refuses_strangers() {
    let (a, b) = Device::pair_of();
    let report = a.ok(["connect", &b.address().to_string()]);
    assert_eq!(report["device"]["name"], "b", "{report}");
    let stranger = Device::founded("stranger");
    let error = a.fails(1, ["connect", &stranger.address().to_string()]);
    assert!(
        error["message"].is_string() && error["hint"].is_string(),
        "{error}"
    );
    assert_eq!(stranger.status()["peers"].as_array().map(Vec::len), Some(0));
}

#[test]
fn wait_says_what_is_missing_when_its_time_is_over() {
    let (a, b) = Device::pair_of();
    b.down();
    let error = a.fails(5, ["wait", "--timeout", "0.2"]);
    assert!(error["items"][0].is_string(), "{error}");
    let error = a.fails(5, ["wait", "--timeout", "0.2", "--device", "b"]);
    assert_eq!(error["kind"], "needs_user", "{error}");
    let error = a.fails(1, ["wait", "--device", "nobody"]);
    assert!(error["hint"].is_string(), "{error}");
    let report = {
        b.restart();
        a.wait()
    };
    assert_eq!(report["devices"][0]["name"], "b", "{report}");
}

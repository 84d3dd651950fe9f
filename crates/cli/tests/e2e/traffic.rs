//! What a rename costs on the wire, counted by a relay between the devices.

use std::fs;

use crate::in_step;
use crate::support::{Device, Relay, random_bytes, write};

const BYTES_MAX: u64 = 16 << 10;

/// Two devices that reach each other through a relay alone.
fn relayed(make: impl FnOnce(&Device)) -> (Device, Device, Relay) {
    let a = Device::founded_whole("a");
    make(&a);
    a.scan();
    let relay = Relay::to(a.address());
    let b = Device::new("b");
    b.pair_at(&a, relay.address());
    in_step(&a, &b);
    (a, b, relay)
}

/// Payload of all UDP packets, acks and all, from a change on one device until both agree.
fn cost(a: &Device, b: &Device, relay: &Relay, change: impl FnOnce()) -> u64 {
    in_step(a, b);
    let before = relay.bytes();
    assert!(before > 0, "the devices do not talk through the relay");
    change();
    b.comes_to_show(a);
    relay.bytes() - before
}

#[test]
fn renaming_a_directory_of_a_thousand_files_sends_next_to_nothing() {
    let (a, b, relay) = relayed(|a| {
        for number in 0..1_000 {
            let path = a.root.join(format!("dir/{}/{number}", number % 7));
            write(path, format!("content of {number}"));
        }
    });
    let bytes = cost(&a, &b, &relay, || {
        fs::rename(a.root.join("dir"), a.root.join("renamed")).expect("renames");
    });
    assert!(bytes < BYTES_MAX, "{bytes} bytes");
}

#[test]
fn renaming_a_big_file_sends_next_to_nothing() {
    let length = if cfg!(debug_assertions) {
        64 << 20
    } else {
        256 << 20
    };
    let (a, b, relay) = relayed(|a| write(a.root.join("big"), random_bytes(7, length)));
    let bytes = cost(&a, &b, &relay, || {
        fs::create_dir(a.root.join("sub")).expect("creates");
        fs::rename(a.root.join("big"), a.root.join("sub/renamed")).expect("renames");
    });
    assert!(bytes < BYTES_MAX, "{bytes} bytes");
}

#[test]
fn content_that_the_other_has_is_not_sent_again() {
    let (a, b, relay) = relayed(|a| write(a.root.join("one"), random_bytes(7, 4 << 20)));
    let bytes = cost(&a, &b, &relay, || {
        fs::copy(a.root.join("one"), a.root.join("copy")).expect("copies");
    });
    assert!(bytes < 4 * BYTES_MAX, "{bytes} bytes for a copy");
    let bytes = cost(&a, &b, &relay, || {
        let mut content = random_bytes(7, 4 << 20);
        content.splice(1 << 20..1 << 20, *b"a few bytes more");
        write(a.root.join("one"), content);
    });
    // A few chunks around the place, and their list.
    assert!(bytes < 512 << 10, "{bytes} bytes for a small edit");
}

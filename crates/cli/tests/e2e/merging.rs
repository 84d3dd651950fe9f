//! Edits of one file in several places at once: merged where that is no guess, else a conflict.

use std::fs;

use crate::in_step;
use crate::joining::apart;
use crate::support::{Device, write};

fn content(device: &Device, path: &str) -> String {
    fs::read_to_string(device.root.join(path)).expect("is there")
}

/// Both show a text and have nothing to settle.
#[track_caller]
fn both_have(a: &Device, b: &Device, path: &str, text: &str) {
    assert_eq!(content(a, path), text);
    assert_eq!(content(b, path), text);
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0), "{}", b.status());
}

const SETTINGS: &str = r#"{
    // How it looks.
    "theme": "light",
    "font": {
        "size": 12, // points
        "family": "mono"
    },

    /* What it does. */
    "save": "on focus"
}
"#;

#[test]
fn edits_of_different_settings_merge_and_comments_stay() {
    let (a, b) = apart(
        |a| write(a.root.join("settings.json"), SETTINGS),
        |a| {
            let text = SETTINGS.replace("\"light\"", "\"dark\"");
            write(a.root.join("settings.json"), text);
        },
        |b| {
            let text = SETTINGS.replace("12, // points", "14, // points").replace(
                "\"on focus\"",
                "\"on focus\",\n    // Mine.\n    \"tabs\": 4",
            );
            write(b.root.join("settings.json"), text);
        },
    );
    let expected = SETTINGS
        .replace("\"light\"", "\"dark\"")
        .replace("12, // points", "14, // points")
        .replace(
            "\"on focus\"",
            "\"on focus\",\n    // Mine.\n    \"tabs\": 4",
        );
    both_have(&a, &b, "settings.json", &expected);
    assert_eq!(a.tree().files(), 1, "nothing beside it");
    // It goes on from there, and a restart makes nothing of it.
    write(a.root.join("settings.json"), expected.replace("14", "16"));
    b.comes_to_show(&a);
    b.down();
    b.restart();
    in_step(&a, &b);
    assert_eq!((a.conflicts(), b.conflicts()), (0, 0));
}

/// Numbered lines, some of them changed.
fn lines(count: usize, changed: &[(usize, &str)]) -> String {
    (0..count)
        .map(
            |number| match changed.iter().find(|(at, _)| *at == number) {
                Some((_, text)) => format!("{text}\n"),
                None => format!("line {number}\n"),
            },
        )
        .collect()
}

#[test]
fn edits_of_different_lines_merge() {
    let (a, b) = apart(
        |a| write(a.root.join("notes"), lines(20, &[])),
        |a| write(a.root.join("notes"), lines(20, &[(3, "by a")])),
        |b| write(b.root.join("notes"), lines(20, &[(15, "by b")])),
    );
    both_have(&a, &b, "notes", &lines(20, &[(3, "by a"), (15, "by b")]));
}

#[test]
fn edits_that_overlap_are_a_conflict_and_nothing_is_invented() {
    let (a, b) = apart(
        |a| {
            write(a.root.join("config.toml"), "# width\nwidth = 12\n");
            write(a.root.join("number"), "12\n");
        },
        |a| {
            write(a.root.join("config.toml"), "# width\nwidth = 13\n");
            write(a.root.join("number"), "13\n");
        },
        |b| {
            write(b.root.join("config.toml"), "# width\nwidth = 14\n");
            write(b.root.join("number"), "14\n");
        },
    );
    assert_eq!((a.conflicts(), b.conflicts()), (2, 2));
    for (path, one, other) in [
        (
            "config.toml",
            "# width\nwidth = 13\n",
            "# width\nwidth = 14\n",
        ),
        ("number", "13\n", "14\n"),
    ] {
        let shown = content(&a, path);
        assert!(shown == one || shown == other, "{shown}");
        assert_eq!(content(&b, path), shown);
    }
    assert_eq!(a.tree().files(), 2, "nothing beside them");
    // Nothing is made of them later either.
    for device in [&a, &b] {
        device.down();
        device.restart();
    }
    in_step(&a, &b);
    assert_eq!((a.conflicts(), b.conflicts()), (2, 2));
}

#[test]
fn binaries_are_never_merged() {
    let bytes = |at: usize, by: u8| {
        let mut bytes = vec![0u8; 900];
        bytes[at] = by;
        bytes
    };
    let (a, b) = apart(
        |a| write(a.root.join("image"), bytes(0, 0)),
        |a| write(a.root.join("image"), bytes(1, 1)),
        |b| write(b.root.join("image"), bytes(800, 2)),
    );
    assert_eq!((a.conflicts(), b.conflicts()), (1, 1));
    let shown = fs::read(a.root.join("image")).expect("is there");
    assert!(shown == bytes(1, 1) || shown == bytes(800, 2));
}

#[test]
fn files_made_with_different_settings_merge_and_others_conflict() {
    let (a, b) = apart(
        |_| {},
        |a| {
            write(a.root.join("app.ini"), "[look]\ntheme = dark\n");
            write(a.root.join("todo"), "by a\n");
            write(a.root.join("same"), "as it comes\n");
        },
        |b| {
            write(b.root.join("app.ini"), "[tabs]\nwidth = 4\n");
            write(b.root.join("todo"), "by b\n");
            write(b.root.join("same"), "as it comes\n");
            b.scan();
            write(b.root.join("same"), "edited at once\n");
        },
    );
    let merged = content(&a, "app.ini");
    assert!(
        merged.contains("theme = dark") && merged.contains("width = 4"),
        "{merged}"
    );
    assert_eq!(content(&b, "app.ini"), merged);
    assert_eq!(content(&a, "same"), "edited at once\n");
    assert_eq!((a.conflicts(), b.conflicts()), (1, 1));
}

#[test]
fn who_deletes_what_was_edited_elsewhere_deletes_only_what_it_saw() {
    let (a, b) = apart(
        |a| {
            write(a.root.join("notes"), lines(20, &[]));
            write(a.root.join("gone"), lines(20, &[]));
        },
        |a| {
            write(a.root.join("notes"), lines(20, &[(3, "by a")]));
            a.scan();
            fs::remove_file(a.root.join("notes")).expect("removes");
        },
        |b| write(b.root.join("notes"), lines(20, &[(15, "by b")])),
    );
    // What outlived the delete is there, and merged with what was deleted: nothing is lost by it.
    both_have(&a, &b, "notes", &lines(20, &[(3, "by a"), (15, "by b")]));
    fs::remove_file(b.root.join("notes")).expect("removes");
    in_step(&a, &b);
    assert!(!a.root.join("notes").exists());
    assert_eq!(a.tree().files(), 1);
}

#[test]
fn three_devices_that_edit_at_once_come_to_one_content() {
    let (a, b) = Device::pair_of();
    let c = Device::new("c");
    c.pair_with(&a);
    write(a.root.join("notes"), lines(30, &[]));
    in_step(&a, &b);
    in_step(&a, &c);
    let devices = [(&a, 2), (&b, 14), (&c, 26)];
    for (device, _) in devices {
        device.down();
    }
    for (device, line) in devices {
        device.restart();
        let text = format!("by {}", device.name);
        write(device.root.join("notes"), lines(30, &[(line, &text)]));
        device.scan();
        device.down();
    }
    for (device, _) in devices {
        device.restart();
    }
    for (device, _) in devices {
        device.wait();
    }
    for other in [&b, &c] {
        a.wait_for(other);
        in_step(&a, other);
    }
    let expected = lines(30, &[(2, "by a"), (14, "by b"), (26, "by c")]);
    for (device, _) in devices {
        assert_eq!(content(device, "notes"), expected);
        assert_eq!(device.conflicts(), 0);
        device.becomes_tidy();
    }
}

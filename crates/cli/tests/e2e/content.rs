//! What a first sync has to carry: all names, all kinds of entry, big and many.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::in_step;
use crate::support::{Device, mode, random_bytes, set_mtime, write};

/// Joins a second device to a first that holds a tree already, and compares.
fn carry(make: impl FnOnce(&Path)) -> (Device, Device) {
    let a = Device::new("a");
    make(&a.root);
    a.up();
    a.ok([OsStr::new("add"), a.root.as_os_str()]);
    let b = Device::new("b");
    b.pair_with(&a);
    in_step(&a, &b);
    (a, b)
}

fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "żółw",
        "Ünïcödé composed é",
        "decomposed e\u{301}",
        "日本語",
        "עברית",
        "العربية",
        "हिन्दी",
        "ไทย",
        "👩\u{200d}👩\u{200d}👧",
        "\u{202e}gpj.exe",
        "new\nline",
        "tab\tand \u{7} bell",
        "'single' \"double\" `back`",
        "back\\slash",
        " leading and trailing ",
        "-rf",
        "--",
        "-",
        "~",
        "$HOME",
        "*?[a]",
        "a:b",
        "...",
        ".hidden",
        "CON",
        "nul.txt.",
        "%s%n",
        "#",
        "!negated",
        "\u{feff}bom",
        "\u{fffd}replacement",
    ]
    .map(|name| name.as_bytes().to_vec())
    .into();
    names.push(b"\xff\xfe not UTF-8 \x80".to_vec());
    names.push(vec![b'x'; 255]);
    names.push("ż".repeat(127).into_bytes());
    names.push(b"\x01\x1b[31m".to_vec());
    names
}

#[test]
fn names_of_any_bytes_arrive_as_they_are() {
    let (a, b) = carry(|root| {
        for (number, name) in names().iter().enumerate() {
            let name = OsStr::from_bytes(name);
            write(root.join("files").join(name), format!("{number}"));
            write(root.join("dirs").join(name).join("inside"), "x");
            fs::create_dir_all(root.join("links")).expect("creates");
            symlink(name, root.join("links").join(name)).expect("links");
        }
    });
    // The same again while both run.
    for (number, name) in names().iter().enumerate() {
        write(
            b.root.join("live").join(OsStr::from_bytes(name)),
            format!("{number}"),
        );
    }
    a.comes_to_show(&b);
    let listed = a.ok([OsStr::new("ls"), a.root.join("live").as_os_str()]);
    let listed = listed["entries"].as_array().expect("entries");
    assert_eq!(listed.len(), names().len() + 1, "{listed:?}");
    in_step(&a, &b);
}

#[test]
fn names_that_differ_by_case_or_normalisation_stay_apart() {
    let (a, b) = carry(|root| {
        for name in ["case", "Case", "CASE", "\u{e9}", "e\u{301}"] {
            write(root.join(name), name);
        }
    });
    assert_eq!(b.tree().files(), 5);
    assert_eq!(a.conflicts(), 0);
}

#[test]
fn every_kind_of_entry_arrives_with_mode_target_and_mtime() {
    let (a, b) = carry(|root| {
        for bits in [0o400, 0o444, 0o600, 0o640, 0o644, 0o700, 0o755, 0o777] {
            let path = root.join(format!("mode-{bits:o}"));
            write(&path, format!("{bits:o}"));
            mode(&path, bits);
            let path = root.join(format!("dir-{bits:o}"));
            fs::create_dir(&path).expect("creates");
            write(path.join("inside"), "x");
            // Whoever is not root could not read it otherwise.
            mode(&path, bits | 0o700);
        }
        write(root.join("zero"), "");
        write(root.join("one"), "1");
        fs::create_dir_all(root.join("empty/of/empty")).expect("creates");
        for (number, nanos) in [
            1,
            1_000_000_000_000_000_123,
            1_700_000_000_999_999_999,
            4_102_444_800_000_000_000,
        ]
        .into_iter()
        .enumerate()
        {
            let path = root.join(format!("mtime-{number}"));
            write(&path, "x");
            set_mtime(&path, nanos);
        }
        let links = root.join("links");
        fs::create_dir(&links).expect("creates");
        for (name, target) in [
            ("dangling", "nowhere"),
            ("absolute", "/etc/hostname"),
            ("outside", "../../../../etc"),
            ("to-dir", "../empty"),
            ("to-file", "../zero"),
            ("itself", "itself"),
            ("dot", "."),
            ("slashes", "..//empty/./of/"),
        ] {
            symlink(target, links.join(name)).expect("links");
        }
        symlink(OsStr::from_bytes(b"\xff\n"), links.join("bytes")).expect("links");
        symlink("x".repeat(1000), links.join("long")).expect("links");
    });
    assert_eq!(a.conflicts(), 0);
    drop(b);
}

#[test]
fn an_empty_root_is_in_step() {
    let (a, b) = carry(|_| {});
    assert!(a.tree().0.is_empty() && b.tree().0.is_empty());
}

#[test]
fn a_big_file_and_its_edits_arrive() {
    // Where builds are not optimised, hashing is what takes the time.
    let length = if cfg!(debug_assertions) {
        96 << 20
    } else {
        300 << 20
    };
    let (a, b) = carry(|root| write(root.join("big"), random_bytes(1, length)));
    // In the middle, at the end, and one that is long and all the same.
    let mut bytes = random_bytes(1, length);
    bytes.splice(length / 2..length / 2, *b"inserted");
    bytes.extend_from_slice(b"appended");
    fs::write(a.root.join("big"), &bytes).expect("writes");
    write(a.root.join("zeros"), vec![0; 20 << 20]);
    in_step(&a, &b);
    fs::File::options()
        .write(true)
        .open(b.root.join("big"))
        .and_then(|file| file.set_len(1 << 20))
        .expect("cuts");
    in_step(&b, &a);
}

#[test]
fn thousands_of_files_in_one_directory_arrive() {
    let (a, b) = carry(|root| {
        for number in 0..5_000 {
            write(
                root.join("many").join(format!("{number}")),
                format!("{number}"),
            );
        }
    });
    assert_eq!(b.space("home")["files"], 5_000);
    assert_eq!(b.space("home")["pending"], 0);
    drop(a);
}

#[test]
fn paths_near_the_length_limit_arrive() {
    const PATH_MAX: usize = 4096;
    let (a, b) = carry(|root| {
        let mut path = PathBuf::from(root);
        // Each slash counts, and the NUL at the end.
        while path.as_os_str().len() + 202 + 50 < PATH_MAX {
            path.push("d".repeat(200));
        }
        fs::create_dir_all(&path).expect("creates");
        let left = PATH_MAX - 2 - path.as_os_str().len();
        write(path.join("f".repeat(left.min(255))), "deep");
        // Deep in levels, not in bytes.
        let mut path = root.join("levels");
        for _ in 0..150 {
            path.push("l");
        }
        write(path.join("end"), "deep");
    });
    assert_eq!(b.tree().files(), 2);
    drop(a);
}

#[test]
fn a_tree_that_goes_deeper_than_a_path_may_be_long_holds_nothing_up() {
    // The shorter root can name what the longer one cannot.
    let (a, b) = carry(|root| {
        let mut path = root.to_owned();
        while path.as_os_str().len() < 3_800 {
            path.push("d".repeat(100));
        }
        fs::create_dir_all(&path).expect("creates");
        write(path.join("deep"), "deep");
    });
    let moved = a
        .root
        .join("a-directory-with-a-rather-long-name-of-its-own".repeat(4));
    fs::create_dir(&moved).expect("creates");
    let first = fs::read_dir(&a.root)
        .expect("reads")
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().as_bytes().starts_with(b"ddd"))
        .expect("is there");
    fs::rename(first.path(), moved.join(first.file_name())).expect("moves");
    write(a.root.join("after"), "after");
    b.until("shows what came after", |b| {
        b.root.join("after").exists().then_some(())
    });
}

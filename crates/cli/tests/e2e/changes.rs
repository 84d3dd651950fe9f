//! What is changed, moved and deleted while both devices run.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::in_step;
use crate::support::{Device, check_same, mode, random_bytes, set_mtime, write, write_at};

/// Makes a tree on one device, changes it when both have it, and looks at the other's disk
/// without asking anybody to scan; then the other way round. Nothing of it is a conflict.
#[track_caller]
fn follows(make: impl Fn(&Path), change: impl Fn(&Path)) {
    let (a, b) = Device::pair_of();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let base = from.root.join(format!("by-{}", from.name));
        fs::create_dir(&base).expect("creates");
        make(&base);
        in_step(from, to);
        change(&base);
        to.comes_to_show(from);
        in_step(from, to);
        assert_eq!((from.conflicts(), to.conflicts()), (0, 0));
    }
    a.becomes_tidy();
    b.becomes_tidy();
}

fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    fs::rename(from, to).expect("renames");
}

#[test]
fn edits_and_deletes_at_rest_are_seen_by_themselves() {
    follows(
        |base| {
            write(base.join("edited"), "old");
            write(base.join("grown"), random_bytes(1, 100_000));
            write(base.join("deleted"), "x");
            write(base.join("dir/deep/deleted"), "x");
            fs::create_dir(base.join("empty")).expect("creates");
            symlink("edited", base.join("link")).expect("links");
        },
        |base| {
            write(base.join("edited"), "new");
            write(base.join("grown"), random_bytes(1, 200_000));
            write(base.join("made/in/new/directories"), "x");
            fs::create_dir_all(base.join("made/empty")).expect("creates");
            fs::remove_file(base.join("deleted")).expect("removes");
            fs::remove_dir_all(base.join("dir")).expect("removes");
            fs::remove_dir(base.join("empty")).expect("removes");
            fs::remove_file(base.join("link")).expect("removes");
        },
    );
}

#[test]
fn a_file_written_in_place_without_a_close_is_seen() {
    use std::io::{Seek, SeekFrom, Write};
    let (a, b) = Device::pair_of();
    write(a.root.join("log"), "line\n");
    in_step(&a, &b);
    let mut log = fs::File::options()
        .write(true)
        .open(a.root.join("log"))
        .expect("opens");
    log.seek(SeekFrom::End(0)).expect("seeks");
    log.write_all(b"more\n").expect("writes");
    b.comes_to_show(&a);
    drop(log);
    in_step(&a, &b);
}

#[test]
fn editors_that_save_by_rename_edit_the_file() {
    follows(
        |base| {
            write(base.join("text"), "one");
            mode(base.join("text"), 0o640);
        },
        |base| {
            for version in ["two", "three", "four"] {
                write(base.join(".text.swp"), version);
                mode(base.join(".text.swp"), 0o640);
                rename(base.join(".text.swp"), base.join("text"));
            }
            // With a backup, as some do.
            rename(base.join("text"), base.join("text~"));
            write(base.join("text"), "five");
        },
    );
}

#[test]
fn modes_alone_follow() {
    follows(
        |base| {
            write(base.join("script"), "#!/bin/sh\n");
            mode(base.join("script"), 0o644);
            fs::create_dir(base.join("dir")).expect("creates");
            mode(base.join("dir"), 0o755);
        },
        |base| {
            mode(base.join("script"), 0o755);
            mode(base.join("dir"), 0o700);
        },
    );
}

#[test]
fn an_mtime_alone_is_no_change_and_one_with_content_is_kept() {
    let (a, b) = Device::pair_of();
    write(a.root.join("file"), "x");
    in_step(&a, &b);
    let before = b.tree();
    set_mtime(a.root.join("file"), 1_000_000_000_123_456_789);
    a.scan();
    a.wait();
    check_same(&before, &b.tree());
    write_at(a.root.join("file"), "y", 1_100_000_000_987_654_321);
    b.comes_to_show(&a);
    let found = b.root.join("file").metadata().expect("is there");
    assert_eq!(
        (found.mtime(), found.mtime_nsec()),
        (1_100_000_000, 987_654_321)
    );
}

#[test]
fn one_kind_becomes_another() {
    follows(
        |base| {
            write(base.join("file-to-dir"), "x");
            write(base.join("file-to-link"), "x");
            write(base.join("dir-to-file/a/b"), "x");
            write(base.join("dir-to-link/a"), "x");
            fs::create_dir(base.join("empty-to-file")).expect("creates");
            symlink("x", base.join("link-to-file")).expect("links");
            symlink("x", base.join("link-to-dir")).expect("links");
            symlink("x", base.join("link-to-link")).expect("links");
        },
        |base| {
            fs::remove_file(base.join("file-to-dir")).expect("removes");
            write(base.join("file-to-dir/inside"), "y");
            fs::remove_file(base.join("file-to-link")).expect("removes");
            symlink("elsewhere", base.join("file-to-link")).expect("links");
            fs::remove_dir_all(base.join("dir-to-file")).expect("removes");
            write(base.join("dir-to-file"), "y");
            fs::remove_dir_all(base.join("dir-to-link")).expect("removes");
            symlink(".", base.join("dir-to-link")).expect("links");
            fs::remove_dir(base.join("empty-to-file")).expect("removes");
            write(base.join("empty-to-file"), "");
            fs::remove_file(base.join("link-to-file")).expect("removes");
            write(base.join("link-to-file"), "y");
            fs::remove_file(base.join("link-to-dir")).expect("removes");
            fs::create_dir(base.join("link-to-dir")).expect("creates");
            fs::remove_file(base.join("link-to-link")).expect("removes");
            symlink("y", base.join("link-to-link")).expect("links");
        },
    );
}

#[test]
fn renames_of_files_and_links_follow() {
    follows(
        |base| {
            write(base.join("a"), "a");
            write(base.join("sub/b"), "b");
            write(base.join("empty"), "");
            symlink("a", base.join("link")).expect("links");
            write(base.join("case"), "case");
            write(base.join("over"), "replaced");
            write(base.join("under"), "replaces");
        },
        |base| {
            rename(base.join("a"), base.join("renamed"));
            rename(base.join("sub/b"), base.join("b"));
            rename(base.join("empty"), base.join("sub/empty"));
            rename(base.join("link"), base.join("sub/link"));
            rename(base.join("case"), base.join("CASE"));
            rename(base.join("under"), base.join("over"));
        },
    );
}

#[test]
fn a_renamed_directory_takes_later_edits_with_it() {
    follows(
        |base| {
            for number in 0..50 {
                write(
                    base.join(format!("dir/sub{}/{number}", number % 3)),
                    format!("{number}"),
                );
            }
        },
        |base| {
            rename(base.join("dir"), base.join("moved"));
            write(base.join("moved/sub0/0"), "edited after the move");
            write(base.join("moved/sub1/new"), "made after the move");
            fs::remove_file(base.join("moved/sub2/2")).expect("removes");
            rename(base.join("moved/sub1"), base.join("sub1"));
            fs::create_dir(base.join("dir")).expect("creates");
            write(
                base.join("dir/another"),
                "in a new directory of the old name",
            );
        },
    );
}

#[test]
fn edits_long_after_a_directory_was_renamed_follow() {
    let (a, b) = Device::pair_of();
    write(a.root.join("dir/sub/file"), "1");
    in_step(&a, &b);
    rename(a.root.join("dir"), a.root.join("moved"));
    b.comes_to_show(&a);
    write(a.root.join("moved/sub/file"), "2");
    b.comes_to_show(&a);
    write(b.root.join("moved/sub/file"), "3");
    a.comes_to_show(&b);
    rename(b.root.join("moved/sub"), b.root.join("sub"));
    a.comes_to_show(&b);
    write(a.root.join("sub/file"), "4");
    b.comes_to_show(&a);
    in_step(&a, &b);
}

#[test]
fn two_files_that_swap_their_names_stay_two() {
    follows(
        |base| {
            write(base.join("one"), "content of one");
            write(base.join("two"), "content of two");
            for name in ["x", "y", "z"] {
                write(base.join("ring").join(name), format!("{name}{name}"));
            }
        },
        |base| {
            rename(base.join("one"), base.join("aside"));
            rename(base.join("two"), base.join("one"));
            rename(base.join("aside"), base.join("two"));
            let ring = base.join("ring");
            rename(ring.join("x"), ring.join("aside"));
            rename(ring.join("z"), ring.join("x"));
            rename(ring.join("y"), ring.join("z"));
            rename(ring.join("aside"), ring.join("y"));
        },
    );
}

#[test]
fn two_directories_that_swap_their_names_stay_two() {
    follows(
        |base| {
            write(base.join("one/inside"), "of one");
            write(base.join("one/only"), "of one");
            write(base.join("two/inside"), "of two");
        },
        |base| {
            rename(base.join("one"), base.join("aside"));
            rename(base.join("two"), base.join("one"));
            rename(base.join("aside"), base.join("two"));
        },
    );
}

#[test]
fn a_directory_that_goes_below_its_child_follows() {
    follows(
        |base| {
            write(base.join("outer/inner/file"), "x");
        },
        |base| {
            rename(base.join("outer/inner"), base.join("inner"));
            rename(base.join("outer"), base.join("inner/outer"));
        },
    );
}

#[test]
fn directories_made_and_filled_at_once_are_never_missed() {
    let (a, b) = Device::pair_of();
    for number in 0..200 {
        write(
            a.root.join(format!("{number}/a/b/c/file")),
            format!("{number}"),
        );
        write(a.root.join(format!("{number}/a/beside")), "x");
    }
    b.comes_to_show(&a);
    assert_eq!(b.tree().files(), 400);
    in_step(&a, &b);
}

#[test]
fn names_that_come_and_go_leave_what_was_last() {
    follows(
        |base| write(base.join("kept"), "x"),
        |base| {
            for round in 0..50 {
                write(base.join("flickers"), format!("{round}"));
                fs::remove_file(base.join("flickers")).expect("removes");
                write(base.join("kept"), format!("{round}"));
                fs::create_dir(base.join("d")).expect("creates");
                rename(base.join("d"), base.join(format!("d{round}")));
            }
        },
    );
}

#[test]
fn hard_links_become_files_of_their_own_elsewhere() {
    follows(
        |base| {
            write(base.join("one"), "shared");
            fs::hard_link(base.join("one"), base.join("two")).expect("links");
        },
        |base| {
            write(base.join("three"), "three");
        },
    );
}

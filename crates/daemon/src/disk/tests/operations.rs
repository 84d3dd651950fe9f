use super::super::{Disk, FileKind, RelPath};
use super::{Fixture, error, path, raw, read_all};

#[test]
fn files_are_written_and_read_at_offsets() {
    let Fixture { disk, dir: _dir } = Fixture::new();
    let at = path("file");
    let mut file = disk.create(&at, 0o600).expect("created");
    file.write_at(3, b"defg").expect("written");
    file.write_at(0, b"abc").expect("written");
    file.set_len(6).expect("cut");
    file.set_mode(0o640).expect("mode set");
    file.set_mtime(-1_500_000_001).expect("mtime set");
    file.sync_data().expect("synced");
    let stat = file.stat().expect("stat");
    assert_eq!(
        (stat.kind, stat.mode, stat.nlink),
        (FileKind::File, 0o640, 1)
    );
    assert_eq!(stat.identity.size, 6);
    assert_eq!(stat.identity.mtime_ns, -1_500_000_001);
    assert_eq!(disk.stat(&at).expect("stat"), Some(stat));
    assert_eq!(file.identity().expect("identity"), stat.identity);

    let reader = disk.open(&at).expect("opened");
    let mut buffer = [0; 4];
    assert_eq!(reader.read_at(4, &mut buffer).expect("read"), 2);
    assert_eq!(&buffer[..2], b"ef");
    assert_eq!(reader.read_at(6, &mut buffer).expect("read at the end"), 0);

    let mut again = disk.open_write(&at).expect("opened for writing");
    again.write_at(6, b"!").expect("written");
    drop(again);
    assert_eq!(read_all(&disk, &at), b"abcdef!");
    assert!(error(disk.create(&at, 0o600)).is_exists());
}

#[test]
fn an_open_file_stays_the_same_when_its_path_changes() {
    let Fixture { disk, dir: _dir } = Fixture::new();
    disk.create(&path("a"), 0o600).expect("created");
    let held = disk.open(&path("a")).expect("opened");
    disk.create(&path("b"), 0o600).expect("created");
    disk.exchange(&path("a"), &path("b")).expect("exchanged");
    let moved = disk.stat(&path("b")).expect("stat").expect("there");
    assert_eq!(held.identity().expect("identity").ino, moved.identity.ino);
}

#[test]
fn listing_is_sorted_and_complete() {
    for Fixture { disk, dir } in Fixture::both() {
        let sub = path("sub");
        disk.mkdir(&sub, 0o700).expect("made");
        for name in ["b", "a", "c"] {
            let at = sub.join(name.as_bytes()).expect("a good name");
            disk.create(&at, 0o600).expect("created");
        }
        disk.symlink(&path("sub/link"), b"nowhere").expect("linked");
        disk.mkdir(&path("sub/dir"), 0o700).expect("made");
        let listing = disk.list(&sub).expect("listed");
        assert!(listing.errors.is_empty());
        let seen: Vec<_> = listing
            .entries
            .iter()
            .map(|entry| (entry.name.as_slice(), entry.stat.kind))
            .collect();
        assert_eq!(
            seen,
            [
                (&b"a"[..], FileKind::File),
                (b"b", FileKind::File),
                (b"c", FileKind::File),
                (b"dir", FileKind::Dir),
                (b"link", FileKind::Symlink),
            ]
        );
        for entry in listing.entries {
            let at = sub.join(&entry.name).expect("a good name");
            assert_eq!(disk.stat(&at).expect("stat"), Some(entry.stat));
        }
        let root = disk.list(&RelPath::root()).expect("the root is listed");
        assert_eq!(root.entries.len(), 1);
        drop(dir);
        assert!(error(disk.list(&RelPath::root())).is_not_found());
    }
}

#[test]
fn thousands_of_entries_are_listed_once_each() {
    let fixture = Fixture::new();
    for number in 0..5000 {
        fixture.write(&format!("{number:05}"), "");
    }
    let listing = fixture.disk.list(&RelPath::root()).expect("listed");
    let names: Vec<_> = listing
        .entries
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    assert_eq!(names, fixture.names());
}

#[test]
fn odd_names_come_back_as_they_went() {
    for fixture in Fixture::both() {
        let disk = &fixture.disk;
        let longest = [b'n'; 255];
        let mut names = [
            &b"line\nbreak"[..],
            b"quote\"'`$\\",
            b"\xff\xfe not UTF-8",
            b" ",
            b"...",
            b"-rf",
            b"*",
            b"e\xcc\x81",
            &longest,
        ];
        for name in names {
            let at = raw(name);
            let mut file = disk.create(&at, 0o600).expect("created");
            file.write_at(0, name).expect("written");
            assert_eq!(read_all(disk, &at), name);
        }
        names.sort();
        let listed = disk.list(&RelPath::root()).expect("listed").entries;
        let listed: Vec<_> = listed.iter().map(|entry| entry.name.as_slice()).collect();
        assert_eq!(listed, names);
        assert_eq!(fixture.names(), names);
        let too_long = raw(&[b'n'; 256]);
        assert!(error(disk.create(&too_long, 0o600)).is_invalid_name());
        assert!(error(disk.stat(&too_long)).is_invalid_name());
    }
}

#[test]
fn paths_beyond_the_kernels_limit_work() {
    for Fixture { disk, dir: _dir } in Fixture::both() {
        let mut deep = RelPath::root();
        for level in 0..40_u8 {
            deep = deep.join(&[b'a' + level % 26; 255]).expect("a good name");
            disk.mkdir(&deep, 0o700).expect("made");
        }
        assert!(deep.as_bytes().len() > 2 * 4096);
        let file = deep.join(b"file").expect("a good name");
        let other = deep.join(b"other").expect("a good name");
        let mut handle = disk.create(&file, 0o600).expect("created");
        handle.write_at(0, b"deep").expect("written");
        drop(handle);
        disk.create(&other, 0o600).expect("created");
        disk.exchange(&file, &other).expect("exchanged");
        assert_eq!(read_all(&disk, &other), b"deep");
        assert_eq!(disk.list(&deep).expect("listed").entries.len(), 2);
        disk.set_mode(&file, 0o640).expect("mode set");
        disk.set_mtime(&deep, 1_000_000_000).expect("mtime set");
        disk.sync_dir(&deep).expect("synced");
        assert_eq!(
            disk.stat(&file).expect("stat").map(|stat| stat.mode),
            Some(0o640)
        );
        disk.unlink(&file).expect("removed");
        disk.unlink(&other).expect("removed");
        let mut up = Some(deep);
        while let Some(dir) = up.filter(|dir| !dir.is_root()) {
            disk.rmdir(&dir).expect("removed");
            up = dir.parent();
        }
    }
}

#[test]
fn renames_replace_exchange_or_refuse() {
    let fixture = Fixture::new();
    let disk = &fixture.disk;
    let (a, b, c) = (path("a"), path("b"), path("c"));
    fixture.write("a", "A");
    fixture.write("b", "B");
    assert!(error(disk.rename_noreplace(&a, &b)).is_exists());
    disk.rename_noreplace(&a, &c).expect("moved");
    assert_eq!(
        (fixture.read("b"), fixture.read("c")),
        ("B".into(), "A".into())
    );
    disk.exchange(&b, &c).expect("exchanged");
    assert_eq!(
        (fixture.read("b"), fixture.read("c")),
        ("A".into(), "B".into())
    );
    assert!(error(disk.exchange(&a, &c)).is_not_found());
    disk.rename(&b, &c).expect("replaced");
    assert_eq!(fixture.names(), [b"c"]);
    assert_eq!(fixture.read("c"), "A");

    disk.mkdir(&path("dir"), 0o700).expect("made");
    let within = error(disk.rename_noreplace(&path("dir"), &path("dir/within")));
    assert!(!within.is_unsupported(), "{within}");
    disk.rename(&c, &path("dir/c")).expect("moved");
    assert!(error(disk.rmdir(&path("dir"))).is_not_empty());
    disk.unlink(&path("dir/c")).expect("removed");
    disk.rmdir(&path("dir")).expect("removed");
    assert!(error(disk.unlink(&path("dir"))).is_not_found());
    assert!(fixture.names().is_empty());
}

#[test]
fn links_of_both_kinds() {
    let fixture = Fixture::new();
    let disk = &fixture.disk;
    fixture.write("file", "content");
    disk.link(&path("file"), &path("second")).expect("linked");
    let stat = disk.stat(&path("second")).expect("stat").expect("there");
    assert_eq!(stat.nlink, 2);
    assert!(error(disk.link(&path("file"), &path("second"))).is_exists());

    let target = b"../out\nside\xff";
    disk.symlink(&path("link"), target).expect("linked");
    assert_eq!(disk.read_link(&path("link")).expect("read"), target);
    let stat = disk.stat(&path("link")).expect("stat").expect("there");
    assert_eq!(stat.kind, FileKind::Symlink);
    assert_eq!(stat.identity.size, target.len() as u64);
    disk.set_mtime(&path("link"), 5_000_000_007)
        .expect("mtime set");
    let stat = disk.stat(&path("link")).expect("stat").expect("there");
    assert_eq!(stat.identity.mtime_ns, 5_000_000_007);
    assert!(error(disk.read_link(&path("file"))).is_wrong_kind());
    // A hard link to a symlink is the symlink again, not what it points to.
    disk.link(&path("link"), &path("link2")).expect("linked");
    assert_eq!(disk.read_link(&path("link2")).expect("read"), target);
}

#[test]
fn modes_are_exact_and_leave_the_other_bits() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    let disk = &fixture.disk;
    fixture.write("file", "");
    for mode in [0o000, 0o777, 0o421, 0o600] {
        disk.set_mode(&path("file"), mode).expect("mode set");
        let stat = disk.stat(&path("file")).expect("stat").expect("there");
        assert_eq!(stat.mode, mode);
    }
    disk.mkdir(&path("sticky"), 0o700).expect("made");
    let real = fixture.real("sticky");
    std::fs::set_permissions(&real, PermissionsExt::from_mode(0o1700)).expect("mode set");
    disk.set_mode(&path("sticky"), 0o755).expect("mode set");
    let mode = std::fs::metadata(&real).expect("stat").permissions().mode();
    assert_eq!(mode & 0o7777, 0o1755);
    disk.set_mode(&RelPath::root(), 0o750).expect("mode set");
    let root = disk.stat(&RelPath::root()).expect("stat").expect("there");
    assert_eq!((root.kind, root.mode), (FileKind::Dir, 0o750));
}

#[test]
fn syncs_and_free_space_answer() {
    let Fixture { disk, dir: _dir } = Fixture::new();
    disk.mkdir(&path("dir"), 0o700).expect("made");
    disk.sync_dir(&path("dir")).expect("synced");
    disk.sync_dir(&RelPath::root()).expect("synced");
    disk.sync_all().expect("synced");
    disk.sync_fs(&path("dir")).expect("synced");
    assert!(disk.free_space().expect("free space") > 0);
}

#[test]
fn the_root_is_told_from_another_in_its_place() {
    let outer = tempfile::tempdir().expect("a temporary directory");
    let place = outer.path().join("root");
    std::fs::create_dir(&place).expect("made");
    let disk = super::LinuxDisk::open(&place).expect("the root opens");
    let before = disk.root_identity().expect("identity");
    assert_eq!(
        disk.dir_identity(&RelPath::root()).expect("identity"),
        before
    );
    std::fs::rename(&place, outer.path().join("away")).expect("moved");
    assert!(error(disk.root_identity()).is_not_found());
    std::fs::create_dir(&place).expect("made");
    let after = disk.root_identity().expect("identity");
    assert_ne!(after, before);
    assert_eq!((after.fs_id, after.fs_type), (before.fs_id, before.fs_type));
    assert_eq!(
        disk.dir_identity(&RelPath::root()).expect("identity"),
        before
    );
}

#[test]
fn a_probe_tries_and_leaves_nothing() {
    let fixture = Fixture::new();
    // What an interrupted probe left is no obstacle.
    std::fs::create_dir(fixture.real(".pacsync~probe")).expect("made");
    fixture.write(".pacsync~probe/Full", "old");
    let probe = fixture.disk.probe().expect("probed");
    assert!(fixture.names().is_empty());
    assert!(probe.modes && probe.symlinks && probe.case_sensitive && probe.hard_links);
    assert!(probe.normalization_preserving && !probe.read_only);
    assert!((10_000_000..=2_000_000_000).contains(&probe.time_grain_ns));
    assert!(probe.name_max >= 255);
    assert_eq!(fixture.disk.probe().expect("probed again"), probe);
}

use std::os::unix::fs::PermissionsExt;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Gid, Uid};

use super::super::{Cause, Disk, DiskError, FileKind, LinuxDisk, RelPath};
use super::{Fixture, error, names_in, path, raw};

/// Every operation on what lies behind `path`.
fn attempts(disk: &LinuxDisk, path: &RelPath, own: &RelPath) -> Vec<DiskError> {
    vec![
        error(disk.stat(path)),
        error(disk.open(path)),
        error(disk.open_write(path)),
        error(disk.create(path, 0o600)),
        error(disk.symlink(path, b"target")),
        error(disk.mkdir(path, 0o700)),
        error(disk.read_link(path)),
        error(disk.rename_noreplace(own, path)),
        error(disk.rename_noreplace(path, own)),
        error(disk.rename(own, path)),
        error(disk.rename(path, own)),
        error(disk.exchange(own, path)),
        error(disk.exchange(path, own)),
        error(disk.link(own, path)),
        error(disk.link(path, own)),
        error(disk.unlink(path)),
        error(disk.rmdir(path)),
        error(disk.set_mode(path, 0o777)),
        error(disk.set_mtime(path, 0)),
        error(disk.list(path)),
        error(disk.sync_dir(path)),
        error(disk.dir_identity(path)),
    ]
}

#[test]
fn a_symlink_on_the_way_is_never_followed() {
    for fixture in Fixture::both() {
        let outside = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(outside.path().join("dir")).expect("made");
        std::fs::write(outside.path().join("dir/file"), "secret").expect("written");
        fixture.write("own", "mine");
        std::fs::create_dir(fixture.real("inside")).expect("made");
        let absolute = outside.path().to_str().expect("a UTF-8 path").as_bytes();
        let targets = [absolute, b"inside", b"..", b"/proc/self/root"];
        for (number, target) in targets.into_iter().enumerate() {
            let link = raw(format!("link{number}").as_bytes());
            fixture.disk.symlink(&link, target).expect("linked");
            let beneath = link.join_path(&path("dir/file"));
            for refused in attempts(&fixture.disk, &beneath, &path("own")) {
                assert!(refused.is_symlink_in_path(), "{refused}");
            }
            let beneath = link.join(b"new").expect("a good name");
            for refused in attempts(&fixture.disk, &beneath, &path("own")) {
                assert!(refused.is_symlink_in_path(), "{refused}");
            }
        }
        let content = std::fs::read_to_string(outside.path().join("dir/file")).expect("read");
        assert_eq!(content, "secret");
        assert_eq!(names_in(outside.path()), [b"dir"]);
        assert_eq!(fixture.read("own"), "mine");
    }
}

#[test]
fn a_symlink_as_last_name_is_the_entry_itself() {
    for fixture in Fixture::both() {
        let disk = &fixture.disk;
        let outside = tempfile::tempdir().expect("a temporary directory");
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "secret").expect("written");
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("mode set");
        let before = std::fs::metadata(&secret).expect("stat").modified().ok();
        let to_file = secret.to_str().expect("a UTF-8 path").as_bytes();
        let to_dir = outside.path().to_str().expect("a UTF-8 path").as_bytes();
        disk.symlink(&path("file"), to_file).expect("linked");
        disk.symlink(&path("dir"), to_dir).expect("linked");

        assert!(error(disk.open(&path("file"))).is_wrong_kind());
        assert!(error(disk.open_write(&path("file"))).is_wrong_kind());
        assert!(error(disk.create(&path("file"), 0o600)).is_exists());
        assert!(error(disk.set_mode(&path("file"), 0o777)).is_wrong_kind());
        disk.set_mtime(&path("file"), 0)
            .expect("its own time is set");
        assert!(error(disk.list(&path("dir"))).is_symlink_in_path());
        assert!(error(disk.sync_dir(&path("dir"))).is_symlink_in_path());
        assert!(error(disk.rmdir(&path("dir"))).is_not_a_directory());
        disk.unlink(&path("dir")).expect("the link is removed");
        disk.rename(&path("file"), &path("moved")).expect("moved");
        let stat = disk.stat(&path("moved")).expect("stat").expect("there");
        assert_eq!(stat.kind, FileKind::Symlink);

        let after = std::fs::metadata(&secret).expect("stat");
        assert_eq!(after.permissions().mode() & 0o777, 0o600);
        assert_eq!(after.modified().ok(), before);
        assert_eq!(names_in(outside.path()), [b"secret"]);
    }
}

#[test]
fn what_is_not_there_is_told_from_what_cannot_be_reached() {
    for fixture in Fixture::both() {
        let disk = &fixture.disk;
        fixture.write("file", "");
        for missing in [
            "nothing",
            "nothing/at/all",
            "file/beneath",
            "file/far/beneath",
        ] {
            assert_eq!(
                disk.stat(&path(missing)).expect("no error"),
                None,
                "{missing}"
            );
        }
        assert!(error(disk.list(&path("nothing"))).is_not_found());
        assert!(error(disk.open(&path("nothing"))).is_not_found());
        assert!(error(disk.list(&path("file"))).is_not_a_directory());
        assert!(error(disk.open(&path("file/beneath"))).is_not_a_directory());
        assert!(error(disk.create(&path("nothing/new"), 0o600)).is_not_found());
    }
}

#[test]
fn the_root_itself_is_no_entry() {
    let Fixture { disk, dir: _dir } = Fixture::new();
    let root = RelPath::root();
    assert_eq!(error(disk.unlink(&root)).cause, Cause::Os);
    error(disk.rmdir(&root));
    error(disk.open(&root));
    error(disk.create(&root, 0o600));
    error(disk.rename(&root, &path("a")));
    error(LinuxDisk::open(std::path::Path::new("/nowhere/at/all")));
}

#[test]
fn only_regular_files_are_opened_and_none_makes_it_wait() {
    let fixture = Fixture::new();
    let disk = &fixture.disk;
    let mode = Mode::from_raw_mode(0o600);
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        mknodat(CWD, fixture.real(name), kind, mode, 0).expect("made");
        let stat = disk.stat(&path(name)).expect("stat").expect("there");
        assert_eq!(stat.kind, FileKind::Other);
        assert!(error(disk.open(&path(name))).is_wrong_kind());
        assert!(error(disk.open_write(&path(name))).is_wrong_kind());
    }
    disk.mkdir(&path("dir"), 0o700).expect("made");
    assert!(error(disk.open(&path("dir"))).is_wrong_kind());
}

/// Runs without the superuser's rights, on a thread of its own when this process has them.
fn unprivileged(check: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                const NOBODY: u32 = 65534;
                let group = Gid::from_raw(NOBODY);
                rustix::thread::set_thread_groups(&[group]).expect("groups dropped");
                rustix::thread::set_thread_gid(group).expect("group dropped");
                rustix::thread::set_thread_uid(Uid::from_raw(NOBODY)).expect("user dropped");
            }
            check();
        });
    });
}

#[test]
fn lacking_rights_is_an_error_and_never_emptiness() {
    let fixture = Fixture::new();
    let disk = &fixture.disk;
    fixture.write("file", "secret");
    for name in ["closed", "unlistable", "unsearchable"] {
        std::fs::create_dir(fixture.real(name)).expect("made");
        fixture.write(&format!("{name}/entry"), "");
    }
    disk.set_mode(&RelPath::root(), 0o755).expect("mode set");
    disk.set_mode(&path("file"), 0o000).expect("mode set");
    disk.set_mode(&path("closed"), 0o000).expect("mode set");
    disk.set_mode(&path("unlistable"), 0o311).expect("mode set");
    disk.set_mode(&path("unsearchable"), 0o644)
        .expect("mode set");
    unprivileged(|| {
        assert!(error(disk.open(&path("file"))).is_permission());
        assert!(error(disk.list(&path("closed"))).is_permission());
        assert!(error(disk.stat(&path("closed/entry"))).is_permission());
        assert!(error(disk.list(&path("unlistable"))).is_permission());
        assert!(
            disk.stat(&path("unlistable/entry"))
                .expect("stat")
                .is_some()
        );
        // Names can be read but not what they stand for.
        let listing = disk.list(&path("unsearchable")).expect("listed");
        assert!(listing.entries.is_empty());
        let [refused] = listing.errors.as_slice() else {
            panic!("one error per entry: {:?}", listing.errors);
        };
        assert!(refused.is_permission());
        assert_eq!(refused.path, path("unsearchable/entry"));
    });
    // So that the temporary directory can be removed without the superuser's rights.
    disk.set_mode(&path("closed"), 0o700).expect("mode set");
    disk.set_mode(&path("unlistable"), 0o700).expect("mode set");
    disk.set_mode(&path("unsearchable"), 0o700)
        .expect("mode set");
}

#[test]
fn a_root_where_nothing_can_be_created_is_probed_by_guess() {
    let fixture = Fixture::new();
    let disk = &fixture.disk;
    disk.set_mode(&RelPath::root(), 0o555).expect("mode set");
    unprivileged(|| {
        let probe = disk.probe().expect("no error");
        assert!(probe.read_only && !probe.exchange);
        assert!(error(disk.create(&path("new"), 0o600)).is_permission());
    });
    disk.set_mode(&RelPath::root(), 0o700).expect("mode set");
}

#[test]
fn errors_say_what_failed_on_what() {
    let Fixture { disk, dir: _dir } = Fixture::new();
    let refused = error(disk.open(&path("some/file"))).to_string();
    assert!(refused.starts_with("cannot open some/file: "), "{refused}");
    assert!(error(disk.watch(&path("dir"))).is_unsupported());
}

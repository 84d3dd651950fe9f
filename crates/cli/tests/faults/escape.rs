//! A directory that becomes a symlink to elsewhere while files beneath it are applied.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::rig::{Pair, assert_no_temps, heavy, listing};
use crate::samples::{Chance, save, sealed};

#[test]
fn nothing_is_written_through_a_symlink() {
    let _heavy = heavy();
    let pair = Pair::new();
    let dir = pair.a.root.join("dir");
    fs::create_dir(&dir).expect("makes it");
    let mut chance = Chance::new(10);
    let aside = pair.outside().join("a");
    for at in 0..20 {
        fs::write(dir.join(format!("file-{at}")), sealed(&mut chance, 3_000)).expect("writes");
    }
    pair.converge();
    // The target holds a file of a name that is replaced and deleted on the other side.
    let target = pair.outside().join("target");
    fs::create_dir(&target).expect("makes it");
    for at in 0..20 {
        fs::write(target.join(format!("file-{at}")), b"not the pac's").expect("writes");
    }
    let before = listing(&target);
    let (here, link) = (pair.b.root.join("dir"), pair.outside().join("link"));
    symlink(&target, &link).expect("links");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0_u64;
            while !over.load(Ordering::Relaxed) || !swaps.is_multiple_of(2) {
                if renameat_with(CWD, &here, CWD, &link, RenameFlags::EXCHANGE).is_ok() {
                    swaps += 1;
                } else if over.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::yield_now();
            }
            swaps
        });
        for round in 0..400 {
            // The other device follows what it is told, so the directory may go meanwhile.
            let _ = fs::create_dir(&dir);
            let name = format!("file-{}", chance.below(20));
            let path = dir.join(name);
            if round % 5 == 0 {
                let _ = fs::remove_file(&path);
            } else {
                let bytes = sealed(&mut chance, 3_000);
                let _ = save(&aside, &path, &bytes);
            }
        }
        let _ = pair.b.run(["scan"]);
        over.store(true, Ordering::Relaxed);
        assert!(swapper.join().expect("swaps to the end") > 0);
    });
    assert_eq!(
        listing(&target),
        before,
        "outside of the root nothing changes"
    );
    pair.converge();
    assert_eq!(listing(&target), before);
    assert_no_temps(&pair.b.root);
}

#[test]
fn a_symlink_in_place_of_a_directory_is_a_symlink() {
    let pair = Pair::new();
    let dir = pair.a.root.join("dir");
    fs::create_dir(&dir).expect("makes it");
    fs::write(dir.join("file"), b"first").expect("writes");
    pair.converge();
    let target = pair.outside().join("target");
    fs::create_dir(&target).expect("makes it");
    fs::write(target.join("file"), b"secret").expect("writes");
    pair.b.down();
    // B is away: its directory becomes a link while A edits beneath it.
    fs::remove_dir_all(pair.b.root.join("dir")).expect("removes");
    symlink(&target, pair.b.root.join("dir")).expect("links");
    fs::write(dir.join("file"), b"second").expect("writes");
    fs::write(dir.join("more"), b"more").expect("writes");
    pair.a.ok(&["scan"]);
    pair.b.up();
    pair.converge();
    assert_eq!(listing(&target).len(), 1);
    assert_eq!(fs::read(target.join("file")).expect("reads"), b"secret");
    let leaked = fs::read(pair.a.root.join("dir/file")).is_ok_and(|bytes| bytes == b"secret");
    assert!(
        !leaked || pair.a.root.join("dir").is_symlink(),
        "what is outside stays outside"
    );
}

//! File systems that come and go: what is not mounted was not deleted.

use std::fs;

use crate::rig::{Image, Mount, Need, Pair, Stage, assert_same, eventually, has, listing};

/// Two devices; B's root is a file system of its own, whose device goes with it.
struct Stick {
    pair: Pair,
    image: Image,
    mounted: Option<(Mount, crate::rig::LoopDevice)>,
}

impl Stick {
    fn new() -> Option<Self> {
        if !has(Need::LoopDevices) {
            return None;
        }
        let (mut image, mut mounted) = (None, None);
        let pair = Pair::staged(Stage::Here, Stage::Here, |_, bert| {
            let made = Image::new(&bert.home.with_file_name("image")).expect("this machine can");
            let device = made.attach();
            mounted = device.mount(&bert.root).map(|mount| (mount, device));
            image = Some(made);
        });
        for at in 0..20 {
            fs::write(pair.a.root.join(format!("file-{at}")), format!("{at}")).expect("writes");
        }
        fs::create_dir(pair.a.root.join("dir")).expect("makes it");
        fs::write(pair.a.root.join("dir/deep"), b"deep").expect("writes");
        converge(&pair);
        Some(Self {
            pair,
            image: image.expect("made"),
            mounted,
        })
    }

    fn pull(&mut self) {
        let (mount, device) = self.mounted.take().expect("is mounted");
        drop(mount);
        drop(device);
    }

    fn put_in(&mut self) {
        let device = self.image.attach();
        let mount = device.mount(&self.pair.b.root).expect("mounts it");
        self.mounted = Some((mount, device));
    }
}

/// A file system has a directory of its own that is nobody's.
fn converge(pair: &Pair) {
    pair.a.wait();
    pair.b.wait();
    let mut there = listing(&pair.b.root);
    there.remove(std::path::Path::new("lost+found"));
    let mut here = listing(&pair.a.root);
    here.remove(std::path::Path::new("lost+found"));
    assert_eq!(here, there);
}

#[test]
fn a_root_that_is_mounted_after_the_start_is_taken_up_as_it_was() {
    let Some(mut stick) = Stick::new() else {
        return;
    };
    let before = listing(&stick.pair.a.root);
    stick.pair.b.down();
    stick.pull();
    // The bare directory is there, and is not the root.
    stick.pair.b.up();
    stick.pair.b.problem_at(&stick.pair.b.root);
    let _ = stick.pair.b.run(["scan"]);
    fs::write(stick.pair.a.root.join("meanwhile"), b"meanwhile").expect("writes");
    stick.pair.a.ok(&["scan"]);
    let output = stick.pair.a.run(["wait", "--timeout", "3"]);
    assert_eq!(output.status.code(), Some(5), "B has it on no disk");
    assert!(
        listing(&stick.pair.b.root).is_empty(),
        "nothing is written beneath the mount"
    );
    stick.put_in();
    stick.pair.b.no_problems();
    converge(&stick.pair);
    for path in before.keys() {
        assert!(stick.pair.a.root.join(path).exists(), "{path:?} is gone");
    }
    assert!(stick.pair.b.root.join("meanwhile").exists());
}

#[test]
fn a_root_that_is_pulled_and_put_back_while_it_runs_goes_on() {
    let Some(mut stick) = Stick::new() else {
        return;
    };
    let before = listing(&stick.pair.a.root);
    stick.pull();
    stick.pair.b.problem_at(&stick.pair.b.root);
    let _ = stick.pair.b.run(["scan"]);
    assert_eq!(listing(&stick.pair.a.root), before);
    stick.put_in();
    stick.pair.b.no_problems();
    fs::write(stick.pair.b.root.join("later"), b"later").expect("writes");
    converge(&stick.pair);
    assert!(stick.pair.a.root.join("later").exists());
}

#[test]
fn a_root_whose_device_has_another_number_is_the_same_root() {
    let Some(mut stick) = Stick::new() else {
        return;
    };
    stick.pair.b.down();
    stick.pull();
    // Takes the number that was free.
    let other = Image::new(&stick.pair.outside().join("other")).expect("this machine can");
    let _taken = other.attach();
    stick.put_in();
    stick.pair.b.up();
    fs::write(stick.pair.b.root.join("dir/deep"), b"edited").expect("writes");
    fs::write(stick.pair.a.root.join("file-3"), b"edited").expect("writes");
    stick.pair.b.no_problems();
    converge(&stick.pair);
    assert_eq!(stick.pair.a.conflicts(), 0);
    let there = fs::read(stick.pair.a.root.join("dir/deep")).expect("reads");
    assert_eq!(there, b"edited");
}

#[test]
fn a_file_system_beneath_the_root_that_goes_deletes_nothing() {
    if !has(Need::LoopDevices) {
        return;
    }
    let pair = Pair::new();
    let image = Image::new(&pair.outside().join("image")).expect("this machine can");
    let photos = pair.a.root.join("photos");
    fs::create_dir(&photos).expect("makes it");
    let device = image.attach();
    let mount = device.mount(&photos).expect("mounts it");
    fs::write(photos.join("one"), b"one").expect("writes");
    fs::write(photos.join("two"), b"two").expect("writes");
    pair.converge();
    let before = listing(&pair.b.root);
    assert!(before.contains_key(std::path::Path::new("photos/one")));
    drop(mount);
    let what = pair.a.problem_at(&photos);
    assert!(what.contains("file system"), "{what}");
    let _ = pair.a.run(["scan"]);
    assert_eq!(listing(&pair.b.root), before);
    // Also not by a start without it.
    pair.a.down();
    pair.a.up();
    pair.a.problem_at(&photos);
    let _ = pair.a.run(["scan"]);
    assert_eq!(listing(&pair.b.root), before);
    let _mount = device.mount(&photos).expect("mounts it again");
    pair.a.ok(&["scan"]);
    pair.a.no_problems();
    fs::write(photos.join("three"), b"three").expect("writes");
    eventually("it goes on", || {
        pair.b.root.join("photos/three").exists().then_some(())
    });
    pair.converge();
    assert_same(&pair.a.root, &pair.b.root);
}

/// It has the device number of the root, and its inodes are not others either.
#[test]
fn a_part_of_the_same_file_system_that_is_mounted_and_goes_deletes_nothing() {
    // What can mount one can bind.
    if !has(Need::Tmpfs) {
        return;
    }
    let pair = Pair::new();
    let elsewhere = pair.outside().join("elsewhere");
    fs::create_dir(&elsewhere).expect("makes it");
    fs::write(elsewhere.join("one"), b"one").expect("writes");
    fs::write(elsewhere.join("two"), b"two").expect("writes");
    let photos = pair.a.root.join("photos");
    fs::create_dir(&photos).expect("makes it");
    let mount = Mount::bind(&elsewhere, &photos);
    pair.a.ok(&["scan"]);
    pair.converge();
    let before = listing(&pair.b.root);
    assert!(before.contains_key(std::path::Path::new("photos/one")));
    // Both ways, and out of it: a rename over its edge is none.
    fs::write(pair.b.root.join("photos/one"), b"edited").expect("writes");
    fs::remove_file(pair.b.root.join("photos/two")).expect("removes");
    pair.converge();
    assert_eq!(fs::read(elsewhere.join("one")).expect("reads"), b"edited");
    assert!(!elsewhere.join("two").exists());
    let before = listing(&pair.b.root);
    drop(mount);
    let _ = pair.a.run(["scan"]);
    let what = pair.a.problem_at(&photos);
    assert!(what.contains("file system"), "{what}");
    assert_eq!(listing(&pair.b.root), before);
    // Also not by a start without it.
    pair.a.down();
    pair.a.up();
    pair.a.problem_at(&photos);
    let _ = pair.a.run(["scan"]);
    assert_eq!(listing(&pair.b.root), before);
    let _mount = Mount::bind(&elsewhere, &photos);
    pair.a.ok(&["scan"]);
    pair.a.no_problems();
    pair.converge();
    assert_same(&pair.a.root, &pair.b.root);
}

//! Homes on a real disk: what is written, what is refused, what a crash leaves.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use pacsync_protocol::grant::{DEPTH_MAX, Role};
use pacsync_protocol::identity::DeviceName;
use pacsync_store::index::IndexReader;
use rand_core::SeedableRng;
use tempfile::TempDir;

use super::*;
use crate::net::Discovery;

fn rng() -> rand_chacha::ChaCha20Rng {
    rand_chacha::ChaCha20Rng::seed_from_u64(1)
}

/// A home, not yet there, and a root, within a directory of their own.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("root")).expect("a root");
        Self { dir }
    }

    fn home(&self) -> Home {
        Home::at(self.dir.path().join("home"))
    }

    fn options(&self) -> FoundOptions {
        FoundOptions {
            name: DeviceName::new("laptop").expect("a name"),
            root: self.dir.path().join("root"),
            listen: Some("127.0.0.1:0".parse().expect("an address")),
            discovery: Discovery::Off,
        }
    }

    fn found(&self) -> Home {
        let lock = self.home().lock().expect("locks");
        found(&lock, &self.options(), 1, &mut rng()).expect("founds");
        self.home()
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changes the mode");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("is there").mode() & 0o7777
}

#[test]
fn a_founded_home_holds_the_beginning_of_a_pac() {
    let place = Place::new();
    let home = place.home();
    let phrase = {
        let lock = home.lock().expect("locks");
        assert!(!home.has_pac().expect("looks"));
        found(&lock, &place.options(), 7, &mut rng()).expect("founds")
    };
    assert!(home.has_pac().expect("looks"));
    let opened = home.load().expect("loads");
    let root = phrase.root_keys();
    assert_eq!(opened.identity.founding.record().root.0, root.sign.id());
    assert_eq!(opened.identity.founding.record().created_ms, 7);
    assert_eq!(opened.config.root, place.options().root);

    let store = home
        .open_store(opened.identity.clone(), &mut rng())
        .expect("opens");
    let device = opened.identity.keys.id();
    let member = store.roster().member(&device).expect("is a member");
    assert_eq!(
        (member.grant.role, member.grant.depth),
        (Role::Admin, DEPTH_MAX)
    );
    assert!(
        store
            .roster()
            .placement(&device, &opened.home_space)
            .expect("is placed")
            .attached
    );
    let space = store.space(&opened.home_space).expect("is there");
    assert!(space.id_keys.is_some());
    for record in store.roster().epochs(&opened.home_space) {
        assert!(
            record.open(&root.unseal).expect("opens").is_some(),
            "the phrase brings all back"
        );
    }
    let name = |id| {
        store
            .document(&opened.home_space, &id)
            .expect("reads")
            .get("name")
            .cloned()
    };
    let text = |text: &str| Some(pacsync_store::documents::Setting::Text(text.to_owned()));
    assert_eq!(
        name(pacsync_store::documents::settings_id(&opened.home_space)),
        text("home")
    );
    assert_eq!(
        name(pacsync_store::documents::profile_id(&device)),
        text("laptop")
    );
    let tx = store.read().expect("reads");
    let attachment = IndexReader::new(&tx, space.no)
        .attachment()
        .expect("reads")
        .expect("is there");
    assert_eq!(attachment.root, place.options().root.as_os_str().as_bytes());
    assert!(attachment.first_scan && !attachment.awaits_sponsor && attachment.join.is_none());
}

#[test]
fn nobody_else_may_look_into_a_home() {
    let place = Place::new();
    let home = place.found();
    assert_eq!(mode(home.path()), 0o700);
    for entry in fs::read_dir(home.path()).expect("lists") {
        let path = entry.expect("an entry").path();
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), wanted, "{}", path.display());
    }
    for name in [DEVICE_KEY, PAC] {
        chmod(&home.file(name), 0o640);
        let error = home.load().expect_err("is refused");
        assert!(
            matches!(error, HomeError::TooOpen { mode: 0o640, .. }),
            "{error}"
        );
        assert!(error.hint().contains("chmod 600"), "{}", error.hint());
        chmod(&home.file(name), 0o600);
    }
    chmod(home.path(), 0o770);
    assert!(matches!(
        home.lock(),
        Err(HomeError::TooOpen { mode: 0o770, .. })
    ));
    chmod(home.path(), 0o700);
    home.load().expect("loads again");
}

#[test]
fn a_directory_made_by_hand_is_made_private() {
    let place = Place::new();
    fs::create_dir(place.home().path()).expect("makes");
    chmod(place.home().path(), 0o777);
    place.found();
    assert_eq!(mode(place.home().path()), 0o700);
}

#[test]
fn a_home_is_founded_once() {
    let place = Place::new();
    let home = place.found();
    let before = home.load().expect("loads");
    let lock = home.lock().expect("locks");
    let error = found(&lock, &place.options(), 2, &mut rng()).expect_err("is refused");
    assert!(matches!(error, HomeError::AlreadyFounded { .. }), "{error}");
    assert!(error.hint().contains("mv "), "{}", error.hint());
    let after = home.load().expect("loads");
    assert_eq!(before.identity.founding, after.identity.founding);
}

#[test]
fn one_process_works_on_a_home() {
    let place = Place::new();
    let lock = place.home().lock().expect("locks");
    match place.home().lock() {
        Err(HomeError::InUse { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    drop(lock);
    place.home().lock().expect("locks again");
}

#[test]
fn a_root_must_be_there() {
    let place = Place::new();
    let lock = place.home().lock().expect("locks");
    for root in ["/does/not/exist", "relative", "/dev/null"] {
        let options = FoundOptions {
            root: root.into(),
            ..place.options()
        };
        let error = found(&lock, &options, 1, &mut rng()).expect_err("is refused");
        assert!(matches!(error, HomeError::BadRoot { .. }), "{error}");
    }
    assert!(!place.home().has_pac().expect("looks"));
    found(&lock, &place.options(), 1, &mut rng()).expect("founds");
}

/// Every state of the directory that a crash between two steps can leave.
#[test]
fn a_crash_at_any_step_leaves_a_home_that_can_be_founded_or_is() {
    let whole = Place::new();
    whole.found();
    let steps = [
        UNFINISHED, DEVICE_KEY, CONFIG, PACKS, REPLICA, ".pac.new", PAC,
    ];
    for done in 1..=steps.len() {
        let place = Place::new();
        let home = place.home();
        drop(home.lock().expect("locks"));
        for step in &steps[..done] {
            match *step {
                PACKS => fs::create_dir(home.packs_path()).expect("makes"),
                UNFINISHED => fs::write(home.file(UNFINISHED), b"").expect("writes"),
                ".pac.new" => fs::write(home.file(".pac.new"), b"half").expect("writes"),
                name => {
                    fs::copy(whole.home().file(name), home.file(name)).expect("copies");
                }
            }
        }
        let lock = home.lock().expect("locks");
        if done == steps.len() {
            home.load().expect("is founded");
            assert!(!home.file(UNFINISHED).exists(), "the mark is gone");
            continue;
        }
        let error = home.load().expect_err("is not founded");
        assert!(
            matches!(error, HomeError::NotFounded { .. }),
            "after {done}: {error}"
        );
        found(&lock, &place.options(), 3, &mut rng()).expect("founds anew");
        let opened = home.load().expect("loads");
        assert_eq!(opened.identity.founding.record().created_ms, 3);
        home.open_store(opened.identity, &mut rng()).expect("opens");
        assert!(!home.file(".pac.new").exists(), "no temp stays");
    }
}

#[test]
fn a_founding_that_is_dropped_has_not_been() {
    let place = Place::new();
    let lock = place.home().lock().expect("locks");
    let first = Founding::begin(&lock, &place.options(), 1, &mut rng()).expect("begins");
    assert!(!first.phrase().reveal().is_empty());
    drop(first);
    assert!(matches!(
        place.home().load(),
        Err(HomeError::NotFounded { .. })
    ));
    found(&lock, &place.options(), 1, &mut rng()).expect("founds");
}

#[test]
fn a_replica_without_its_pac_file_is_never_cleared() {
    let place = Place::new();
    let home = place.found();
    fs::remove_file(home.file(PAC)).expect("removes");
    let size = fs::metadata(home.replica_path()).expect("is there").len();
    assert!(matches!(home.load(), Err(HomeError::PacFileMissing { .. })));
    let lock = home.lock().expect("locks");
    let error = found(&lock, &place.options(), 1, &mut rng()).expect_err("is refused");
    assert!(matches!(error, HomeError::PacFileMissing { .. }), "{error}");
    assert_eq!(
        fs::metadata(home.replica_path()).expect("is there").len(),
        size
    );
}

#[test]
fn damaged_files_are_named_with_a_way_out() {
    let place = Place::new();
    let home = place.found();
    for name in [DEVICE_KEY, PAC] {
        let path = home.file(name);
        let whole = fs::read(&path).expect("reads");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            fs::write(&path, &bytes).expect("writes");
            let error = home.load().expect_err("is noticed");
            let known = matches!(
                &error,
                HomeError::Damaged { path: at, .. } | HomeError::UpdateNeeded { path: at, .. }
                    if *at == path
            );
            assert!(known, "byte {at} of {name}: {error}");
        }
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).expect("writes");
            let error = home.load().expect_err("is noticed");
            assert!(
                matches!(error, HomeError::Damaged { .. }),
                "{name} cut at {len}: {error}"
            );
            assert!(
                error.hint().contains("your files are untouched"),
                "{}",
                error.hint()
            );
        }
        fs::write(&path, &whole).expect("writes");
    }
    home.load().expect("is whole again");
    fs::remove_file(home.file(DEVICE_KEY)).expect("removes");
    assert!(matches!(
        home.load(),
        Err(HomeError::Io {
            operation: "read",
            ..
        })
    ));
}

#[test]
fn the_keys_of_another_device_are_refused() {
    let place = Place::new();
    let home = place.found();
    let other = DeviceKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(99));
    files::write(&home.file(DEVICE_KEY), &other.to_bytes()).expect("writes");
    assert!(matches!(home.load(), Err(HomeError::Damaged { .. })));
}

#[test]
fn a_damaged_or_missing_replica_is_no_new_one() {
    let place = Place::new();
    let home = place.found();
    let identity = home.load().expect("loads").identity;
    let whole = fs::read(home.replica_path()).expect("reads");
    let len = whole.len();
    let garbage: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
    let mut torn = whole.clone();
    torn[512..].fill(0xa5);
    for bytes in [garbage, torn, whole[..len / 2].to_vec()] {
        fs::write(home.replica_path(), &bytes).expect("writes");
        let error = home
            .open_store(identity.clone(), &mut rng())
            .expect_err("is noticed");
        assert!(
            matches!(error, HomeError::DamagedReplica { .. }),
            "{error:?}"
        );
        assert!(error.hint().contains("pacsync pair"), "{}", error.hint());
    }
    fs::remove_file(home.replica_path()).expect("removes");
    assert!(matches!(home.load(), Err(HomeError::MissingReplica { .. })));
    let error = home
        .open_store(identity, &mut rng())
        .expect_err("is noticed");
    assert!(matches!(error, HomeError::MissingReplica { .. }), "{error}");
    assert!(!home.replica_path().exists());
}

#[test]
fn settings_keep_any_root_and_mistakes_are_shown() {
    let place = Place::new();
    let home = place.found();
    let mut config = home.load_config().expect("reads");
    config.root = PathBuf::from(std::ffi::OsStr::from_bytes(b"/root/\xff\n\"x"));
    let address = "[::1]:7".parse().expect("an address");
    let device = pacsync_protocol::DeviceId::from_bytes([7; 32]);
    assert!(config.remember(device, address));
    assert!(!config.remember(device, address));
    assert!(config.add_address("server:4242") && !config.add_address("server:4242"));
    home.save_config(&config).expect("writes");
    assert_eq!(home.load_config().expect("reads"), config);

    for (json, later) in [
        ("{", false),
        ("{}", false),
        (r#"{"version":1,"name":"a\u001b","root":"/r"}"#, false),
        (r#"{"version":1,"name":"a","root":"r"}"#, false),
        (
            r#"{"version":1,"name":"a","root":"/r","lissten":null}"#,
            false,
        ),
        (r#"{"version":2,"name":"a","colour":"red"}"#, true),
    ] {
        fs::write(home.file(CONFIG), json).expect("writes");
        let error = home.load().expect_err("is refused");
        match later {
            true => assert!(
                matches!(error, HomeError::UpdateNeeded { version: 2, .. }),
                "{json}"
            ),
            false => assert!(
                matches!(error, HomeError::BadConfig { .. }),
                "{json}: {error}"
            ),
        }
    }
}

#[test]
fn a_full_disk_is_told_apart() {
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = HomeError::io("write", Path::new("/h/pac"), full);
    assert!(matches!(error, HomeError::NoRoom { .. }), "{error}");
}

#[test]
fn a_welcome_that_does_not_hold_leaves_nothing() {
    let host = Place::new();
    let opened = host.found().load().expect("loads");
    let mut store = host
        .home()
        .open_store(opened.identity.clone(), &mut rng())
        .expect("opens");
    let keys = DeviceKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(5));
    let ungranted = welcome(&store, &opened.home_space, Role::Member, vec![]).expect("is made");

    let entries = enrol_entries(
        store.roster(),
        &opened.identity,
        &keys.public(),
        Role::Member,
        &mut rng(),
    )
    .expect("may");
    let roster = store.roster_space();
    let mut txn = store.begin().expect("begins");
    txn.append(&roster, entries, 2, &mut rng())
        .expect("appends");
    txn.commit().expect("commits");
    let good =
        welcome(&store, &opened.home_space, Role::Member, vec!["h:1".into()]).expect("is made");

    let mut cut = good.clone();
    cut.segments.remove(0);
    let mut forged = good.clone();
    let middle = forged.segments[1].len() / 2;
    forged.segments[1][middle] ^= 1;
    let mut homeless = good.clone();
    homeless.spaces.clear();
    let mut other_home = good.clone();
    other_home.spaces[0].space = SpaceId::from_bytes([9; 16]);

    let place = Place::new();
    let lock = place.home().lock().expect("locks");
    let options = place.options();
    let store_as =
        |role, welcome| store_welcome(&lock, &options, &keys, role, welcome, 3, &mut rng());
    for (role, welcome) in [
        (Role::Member, ungranted),
        (Role::Member, cut),
        (Role::Member, forged),
        (Role::Member, homeless),
        (Role::Member, other_home),
        (Role::Admin, good.clone()),
        (Role::Relay, good.clone()),
    ] {
        let error = store_as(role, welcome).expect_err("is refused");
        assert!(matches!(error, HomeError::BadWelcome { .. }), "{error}");
        assert_eq!(files::names(place.home().path()).expect("lists"), [LOCK]);
    }
    let joined = store_as(Role::Member, good).expect("joins");
    assert_eq!((joined.devices, joined.home_space), (2, opened.home_space));
    assert_eq!(
        place.home().load().expect("loads").config.addresses,
        ["h:1"]
    );
}

#[test]
fn only_an_admin_lets_others_in() {
    let place = Place::new();
    let opened = place.found().load().expect("loads");
    let mut store = place
        .home()
        .open_store(opened.identity.clone(), &mut rng())
        .expect("opens");
    let member = DeviceKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(6));
    let entries = enrol_entries(
        store.roster(),
        &opened.identity,
        &member.public(),
        Role::Member,
        &mut rng(),
    )
    .expect("may");
    let roster = store.roster_space();
    let mut txn = store.begin().expect("begins");
    txn.append(&roster, entries, 2, &mut rng())
        .expect("appends");
    txn.commit().expect("commits");
    let own = opened.identity.keys.id();
    let check =
        |device: &pacsync_protocol::DeviceId, role| check_may_enrol(store.roster(), device, role);
    assert_eq!(check(&own, Role::Admin), Ok(()));
    assert_eq!(
        check(&member.id(), Role::Member),
        Err(EnrolError::NotAdmin { admins: vec![own] })
    );
    assert_eq!(
        check(&own, Role::Guest),
        Err(EnrolError::UnsupportedRole(Role::Guest))
    );
}

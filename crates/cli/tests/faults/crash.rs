//! `kill -9` at any moment, under load on both sides.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::rig::{Machine, Pair, Thing, assert_no_temps, heavy, listing, say};
use crate::samples::{Chance, is_sealed, save, sealed};

/// Kills, unless `PACSYNC_KILLS` says otherwise.
const KILLS: u64 = 50;
/// After so many kills the load pauses and the trees are compared.
const CHECK_EVERY: u64 = 5;
/// Files that one side keeps at most: far from what the circuit breaker looks at.
const FILES_MAX: usize = 80;

/// Lets threads run, pause at a safe point, and end.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    paused: bool,
    over: bool,
    resting: usize,
}

impl Gate {
    /// Between two deeds of a worker; false when it is over.
    fn pass(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.paused && !state.over {
            state.resting += 1;
            self.changed.notify_all();
            while state.paused && !state.over {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.resting -= 1;
        }
        !state.over
    }

    /// Pauses `workers` workers and waits until they rest.
    fn pause(&self, workers: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.paused = true;
        while state.resting < workers && !state.over {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn set(&self, change: impl FnOnce(&mut GateState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

/// Ends the workers also when a check fails.
struct EndOnDrop<'g>(&'g Gate);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.set(|state| state.over = true);
    }
}

/// One side's user: owns the names that begin with its letter, and edits shared ones too.
struct User {
    root: PathBuf,
    aside: PathBuf,
    mine: char,
    chance: Chance,
    next: u64,
    /// What must be there in the end: path → content.
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl User {
    fn new(machine: &Machine, aside: PathBuf, mine: char, chance: Chance) -> Self {
        let root = machine.root.clone();
        Self {
            root,
            aside,
            mine,
            chance,
            next: 0,
            files: BTreeMap::new(),
        }
    }

    fn content(&mut self) -> Vec<u8> {
        let len = match self.chance.below(12) {
            0..=5 => 40 + self.chance.below(400),
            6..=9 => 1_000 + self.chance.below(30_000),
            10 => 100_000 + self.chance.below(200_000),
            _ => 1_000_000 + self.chance.below(500_000),
        };
        sealed(&mut self.chance, usize::try_from(len).expect("small"))
    }

    fn some_file(&mut self) -> Option<PathBuf> {
        let names: Vec<&PathBuf> = self.files.keys().collect();
        self.chance.pick(&names).map(|path| (*path).clone())
    }

    fn new_path(&mut self) -> PathBuf {
        self.next += 1;
        let name = format!("{}-{}", self.mine, self.next);
        match self.chance.below(3) {
            0 => PathBuf::from(name),
            1 => Path::new(&format!("{}-dir", self.mine)).join(name),
            _ => Path::new("both").join(name),
        }
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) {
        let full = self.root.join(path);
        // The other side may have taken an empty directory away meanwhile.
        while save(&self.aside, &full, bytes).is_err() {
            fs::create_dir_all(full.parent().expect("beneath the root")).expect("makes it");
        }
    }

    fn act(&mut self) {
        let deed = self.chance.below(10);
        match deed {
            0..=2 if self.files.len() < FILES_MAX => {
                let (path, bytes) = (self.new_path(), self.content());
                self.write(&path, &bytes);
                self.files.insert(path, bytes);
            }
            0..=5 => {
                let Some(path) = self.some_file() else { return };
                let bytes = self.content();
                self.write(&path, &bytes);
                self.files.insert(path, bytes);
            }
            6 => {
                let Some(from) = self.some_file() else { return };
                let to = self.new_path();
                let full = self.root.join(&to);
                fs::create_dir_all(full.parent().expect("beneath")).expect("makes it");
                fs::rename(self.root.join(&from), full).expect("one's own file is there");
                let bytes = self.files.remove(&from).expect("known");
                self.files.insert(to, bytes);
            }
            7 => {
                let Some(path) = self.some_file() else { return };
                fs::remove_file(self.root.join(&path)).expect("one's own file is there");
                self.files.remove(&path);
            }
            8 => {
                let shared = PathBuf::from(format!("shared-{}", self.chance.below(6)));
                let bytes = self.content();
                self.write(&shared, &bytes);
            }
            _ => {
                let shared = format!("shared-{}", self.chance.below(6));
                let _ = fs::remove_file(self.root.join(shared));
            }
        }
    }
}

/// Reads whatever stands in a root: every content must be whole.
fn read_all(root: &Path, seen: &AtomicU64) -> Result<(), String> {
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(crate::rig::RESERVED)
            {
                continue;
            }
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(path),
                Ok(kind) if kind.is_file() => {
                    let Ok(bytes) = fs::read(&path) else { continue };
                    seen.fetch_add(1, Ordering::Relaxed);
                    if !is_sealed(&bytes) {
                        return Err(format!(
                            "{} is not whole: {} B",
                            path.display(),
                            bytes.len()
                        ));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn check(pair: &Pair, users: &[&Mutex<User>; 2]) {
    pair.converge();
    let there = listing(&pair.a.root);
    let mut expected = 0;
    for user in users {
        let user = user.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, bytes) in &user.files {
            assert!(
                there.get(path) == Some(&Thing::File(bytes.clone())),
                "{} is gone or not the last that was written",
                path.display()
            );
        }
        expected += user.files.len();
    }
    let own = there
        .iter()
        .filter(|(path, thing)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            matches!(thing, Thing::File(_)) && !name.starts_with("shared-")
        })
        .count();
    assert_eq!(own, expected, "deleted or moved files are back");
}

#[test]
fn killed_at_any_moment_nothing_is_lost() {
    let _heavy = heavy();
    let kills = std::env::var("PACSYNC_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(KILLS);
    let mut chance = Chance::from_environment();
    let pair = Pair::new();
    let outside = pair.outside();
    let anna = Mutex::new(User::new(&pair.a, outside.join("a"), 'a', chance.fork()));
    let bert = Mutex::new(User::new(&pair.b, outside.join("b"), 'b', chance.fork()));
    let gate = Gate::default();
    let broken = Mutex::new(None::<String>);
    let stop_reading = AtomicBool::new(false);
    let (seen, deeds) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _end = EndOnDrop(&gate);
        for user in [&anna, &bert] {
            let (gate, deeds, mut pace) = (&gate, &deeds, chance.fork());
            scope.spawn(move || {
                let _end = EndOnDrop(gate);
                while gate.pass() {
                    user.lock().unwrap_or_else(PoisonError::into_inner).act();
                    deeds.fetch_add(1, Ordering::Relaxed);
                    // The load's rhythm; nothing waits for it.
                    std::thread::sleep(Duration::from_micros(pace.below(12_000)));
                }
            });
        }
        for root in [&pair.a.root, &pair.b.root] {
            let (gate, seen, broken, stop) = (&gate, &seen, &broken, &stop_reading);
            scope.spawn(move || {
                let over = || {
                    gate.state
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .over
                };
                while !stop.load(Ordering::Relaxed) && !over() {
                    if let Err(why) = read_all(root, seen) {
                        broken
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_or_insert(why);
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        for kill in 1..=kills {
            // The moment of death is a matter of chance.
            std::thread::sleep(Duration::from_micros(chance.below(120_000)));
            let victims: &[&Machine] = match chance.below(5) {
                0 | 1 => &[&pair.a],
                2 | 3 => &[&pair.b],
                _ => &[&pair.a, &pair.b],
            };
            for victim in victims {
                victim.kill();
            }
            for victim in victims {
                victim.up();
            }
            if kill % CHECK_EVERY == 0 || kill == kills {
                gate.pause(2);
                check(&pair, &[&anna, &bert]);
                let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
                assert_eq!(broken, None, "after {kill} kills");
                gate.set(|state| state.paused = false);
            }
        }
        gate.pause(2);
        check(&pair, &[&anna, &bert]);
        stop_reading.store(true, Ordering::Relaxed);
        gate.set(|state| state.over = true);
    });
    assert_eq!(
        broken.into_inner().unwrap_or_else(PoisonError::into_inner),
        None
    );
    assert_no_temps(&pair.a.root);
    assert_no_temps(&pair.b.root);
    say(&format!(
        "{kills} kills, {} deeds, {} contents read",
        deeds.into_inner(),
        seen.into_inner()
    ));
}

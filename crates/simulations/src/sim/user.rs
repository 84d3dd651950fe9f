//! A user who edits files of a simulated disk, at any moment, without a look at the engine.

use pacsync_daemon::disk::RelPath;
use pacsync_protocol::row::RESERVED_PREFIX;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::below;
use super::fs::Body;
use super::oracle::Written;
use super::world::{Event, Host, World};

const NAMES: [&str; 6] = ["a", "b", "c", "notes", "Notes", "x.txt"];
/// Names of texts; nothing else is made under them.
const TEXTS: [&str; 3] = ["list", "todo.txt", "plan.md"];
/// Lines of a new text: far enough apart that edits often merge.
const LINES: usize = 12;
const DIRS: [&str; 3] = ["d", "e", "src"];
/// Directories are nested no deeper.
const DEPTH_MAX: usize = 3;
const MODES: [u16; 4] = [0o644, 0o600, 0o755, 0o664];

/// What the user has before their eyes.
struct View {
    files: Vec<RelPath>,
    links: Vec<RelPath>,
    dirs: Vec<RelPath>,
}

/// One edit of a device's user; all its choices come from the seed and the disk.
pub(crate) fn edit(world: &mut World, device: usize, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut user = User { world, device };
    user.edit(&mut rng);
    if let Some(host) = user.world.hosts.get_mut(device) {
        // What users save is durable: what a syncer owes them begins there.
        host.fs.sync_all();
    }
    user.world.deliver_events(device);
}

/// One edit of a text: a line changed, added or taken out.
pub(crate) fn edit_text(world: &mut World, device: usize, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut user = User { world, device };
    user.edit_text(&mut rng);
    if let Some(host) = user.world.hosts.get_mut(device) {
        host.fs.sync_all();
    }
    user.world.deliver_events(device);
}

/// Goes on with a write that was begun.
pub(crate) fn finish(world: &mut World, device: usize, ino: u64, generation: u64, seed: u64) {
    let mut user = User { world, device };
    user.finish(ino, generation, seed);
    if let Some(host) = user.world.hosts.get_mut(device) {
        host.fs.sync_all();
    }
    user.world.deliver_events(device);
}

struct User<'w> {
    world: &'w mut World,
    device: usize,
}

/// Bytes that no other version has: the number, then filler.
fn content(number: u64, device: usize, size: usize) -> Vec<u8> {
    // A NUL makes it binary: no merge of texts is expected of it.
    let mut bytes = format!("\0version {number} of d{device}\n").into_bytes();
    let mut rng = ChaCha8Rng::seed_from_u64(number);
    if size > bytes.len() {
        let mut filler = vec![0; size - bytes.len()];
        rng.fill_bytes(&mut filler);
        bytes.extend(filler);
    }
    bytes
}

fn size(rng: &mut ChaCha8Rng) -> usize {
    match below(rng, 40) {
        0 => 400_000,
        1 | 2 => 90_000,
        3..=6 => 6_000,
        7..=12 => 700,
        _ => 0,
    }
}

impl User<'_> {
    fn now(&mut self) -> u64 {
        self.world.clock_ns += 1_000;
        let now = self.world.clock_ns;
        if let Some(host) = self.world.hosts.get_mut(self.device) {
            host.edited_ns = now;
        }
        self.world.clock_ns
    }

    fn fs(&mut self) -> &mut super::fs::Fs {
        &mut self
            .world
            .hosts
            .get_mut(self.device)
            .expect("users have a device")
            .fs
    }

    fn view(&mut self) -> View {
        let mut view = View {
            files: vec![],
            links: vec![],
            dirs: vec![RelPath::root()],
        };
        let fs = self.fs();
        for (path, ino) in fs.walk() {
            if path.names().any(|name| name.starts_with(RESERVED_PREFIX)) {
                continue;
            }
            match fs.inode(ino).map(|inode| &inode.body) {
                Some(Body::File(_)) => view.files.push(path),
                Some(Body::Symlink(_)) => view.links.push(path),
                Some(Body::Dir(_)) => view.dirs.push(path),
                None => {}
            }
        }
        view
    }

    fn say(&mut self, what: &str) {
        let device = self.device;
        self.world.say(format!("d{device} user {what}"));
    }

    fn written(&mut self, ino: u64) -> Option<Written> {
        match &self.fs().inode(ino)?.body {
            Body::File(data) => Some(Written::file(data)),
            Body::Symlink(target) => Some(Written::Symlink(target.clone())),
            Body::Dir(_) => None,
        }
    }

    /// What is at a path is about to go, and the user knows.
    fn supersede(&mut self, path: &RelPath, by: &str) -> String {
        let Ok(ino) = self.fs().lookup(path) else {
            return String::new();
        };
        let Some(written) = self.written(ino) else {
            return String::new();
        };
        if let Some(Body::File(data)) = self.fs().inode(ino).map(|inode| inode.body.clone()) {
            self.world.oracle.supersede_lines(&data);
        }
        self.excuse(path, &written);
        match self.world.oracle.supersede(&written, by) {
            Some(number) => format!(" over version {number}"),
            None => " over nothing of note".into(),
        }
    }

    /// What a process has put at a path and died before it could note it looks to the next one, once
    /// somebody has changed it, as if it had never come. It comes again.
    fn excuse(&mut self, path: &RelPath, written: &Written) {
        let in_doubt = |host: &Host| (host.dead || !host.opened) && host.unrecorded.contains(path);
        if self.world.hosts.get(self.device).is_some_and(in_doubt) {
            self.world.oracle.moved(written);
        }
    }

    fn moved(&mut self, path: &RelPath) -> String {
        let mut told = vec![];
        for (below, ino) in self.fs().walk() {
            if below.starts_with(path)
                && let Some(written) = self.written(ino)
            {
                self.world.oracle.moved(&written);
                if let Some(version) = self.world.oracle.versions.get(&written) {
                    told.push(version.number.to_string());
                }
            }
        }
        format!(" (versions {})", told.join(", "))
    }

    fn edit(&mut self, rng: &mut ChaCha8Rng) {
        self.world.counts.add("edit");
        let view = self.view();
        let pick = |from: &[RelPath], rng: &mut ChaCha8Rng| -> Option<RelPath> {
            let at = below(rng, from.len().max(1) as u64) as usize;
            from.get(at).cloned()
        };
        let dir = pick(&view.dirs, rng).unwrap_or_default();
        let name = NAMES[below(rng, NAMES.len() as u64) as usize];
        let fresh = dir.join(name.as_bytes()).unwrap_or_default();
        let file = pick(&view.files, rng);
        let some_dir = pick(view.dirs.get(1..).unwrap_or_default(), rng);
        let dir_name = DIRS[below(rng, DIRS.len() as u64) as usize];
        let fresh_dir = dir.join(dir_name.as_bytes()).unwrap_or_default();
        let size = size(rng);
        let choice = below(rng, 100);
        match (choice, file, some_dir) {
            (0..=17, _, _) => self.write(&fresh, size),
            (18..=37, Some(file), _) => self.write(&file, size),
            (38..=45, Some(file), _) => self.begin(&file, size, rng),
            (46..=57, Some(file), _) => self.save_by_rename(&file, size),
            (58..=66, Some(file), _) => self.rename_file(&file, &fresh),
            (67..=73, _, Some(dir)) => self.rename_dir(&dir, &fresh_dir),
            (74..=81, Some(file), _) => self.delete(&file),
            (82..=84, _, Some(dir)) => self.delete_dir(&dir),
            (85..=89, _, _) if dir.depth() < DEPTH_MAX => self.mkdir(&fresh_dir),
            (90..=92, Some(file), _) => {
                let mode = MODES[below(rng, MODES.len() as u64) as usize];
                self.chmod(&file, mode);
            }
            (93..=94, _, _) => self.symlink(&fresh),
            (95..=96, Some(file), _) => self.file_to_dir(&file),
            (97, _, Some(dir)) => self.dir_to_file(&dir, size),
            (98, Some(file), _) => {
                if let Some(other) = pick(&view.files, rng) {
                    self.swap(&file, &other);
                }
            }
            (99, _, _) => {
                if let Some(link) = pick(&view.links, rng) {
                    self.delete(&link);
                }
            }
            _ => self.write(&fresh, size),
        }
    }

    fn edit_text(&mut self, rng: &mut ChaCha8Rng) {
        self.world.counts.add("edit of a text");
        let view = self.view();
        let texts: Vec<&RelPath> = view
            .files
            .iter()
            .filter(|path| {
                let is_text = |name: &&str| path.name() == Some(name.as_bytes());
                TEXTS.iter().any(is_text)
            })
            .collect();
        let number = self.world.oracle.next();
        let device = self.device;
        let line = |at: usize| format!("line {at} of version {number} of d{device}\n");
        let at = below(rng, texts.len().max(1) as u64) as usize;
        let found = texts
            .get(at)
            .filter(|_| below(rng, 5) > 0)
            .copied()
            .cloned();
        let (path, before, after) = match found {
            Some(path) => {
                let body = self.fs().lookup(&path).ok();
                let body = body.and_then(|ino| Some(self.fs().inode(ino)?.body.clone()));
                let Some(Body::File(data)) = body else { return };
                if data.contains(&0) {
                    // Somebody made it something else.
                    return;
                }
                let mut lines: Vec<String> = String::from_utf8_lossy(&data)
                    .split_inclusive('\n')
                    .map(str::to_owned)
                    .collect();
                let at = below(rng, lines.len() as u64 + 1) as usize;
                let count = lines.len();
                match (below(rng, 4), lines.get_mut(at)) {
                    (0, Some(_)) if count > 4 => drop(lines.remove(at)),
                    (1, _) | (_, None) if count < 2 * LINES => lines.insert(at, line(0)),
                    (_, Some(changed)) => *changed = line(0),
                    (_, None) => return,
                }
                (path, data.to_vec(), lines.concat().into_bytes())
            }
            None => {
                let at = below(rng, view.dirs.len() as u64) as usize;
                let name = TEXTS[below(rng, TEXTS.len() as u64) as usize];
                let dir = view.dirs.get(at).cloned().unwrap_or_default();
                let Ok(path) = dir.join(name.as_bytes()) else {
                    return;
                };
                if self.fs().lookup(&path).is_ok() {
                    return;
                }
                let lines: String = (0..LINES).map(line).collect();
                (path, vec![], lines.into_bytes())
            }
        };
        let written = Written::file(&before);
        self.excuse(&path, &written);
        self.world
            .oracle
            .supersede(&written, &format!("edit, version {number}"));
        let over = match before.is_empty() {
            true => "",
            false => " over another one",
        };
        if self.put_text(&path, number, &after, below(rng, 2) == 0) {
            self.say(&format!("edits text {path}: version {number}{over}"));
            let path = path.to_string();
            let oracle = &mut self.world.oracle;
            oracle.saved_text(number, device, &path, after, &before);
        }
    }

    fn put_text(&mut self, path: &RelPath, number: u64, bytes: &[u8], by_rename: bool) -> bool {
        let now = self.now();
        let temp = path
            .parent()
            .and_then(|dir| dir.join(format!(".save-{number}").as_bytes()).ok())
            .filter(|_| by_rename);
        let at = temp.as_ref().unwrap_or(path);
        let ino = match self.fs().lookup(at) {
            Ok(ino) => ino,
            Err(_) => match self.fs().create(at, 0o644, now) {
                Ok(ino) => ino,
                Err(_) => return false,
            },
        };
        self.fs().hold(ino);
        self.fs().set_len(ino, 0, now);
        self.fs().write(ino, 0, bytes, now);
        self.fs().release(ino, true);
        match &temp {
            Some(temp) => self.fs().rename(temp, path, true, now).is_ok(),
            None => true,
        }
    }

    /// Writes a whole file: opens, cuts, writes, closes.
    fn write(&mut self, path: &RelPath, size: usize) {
        let number = self.world.oracle.next();
        let by = format!("write of version {number}");
        let existing = self.fs().lookup(path).ok();
        let is_file = existing
            .and_then(|ino| self.fs().inode(ino))
            .is_some_and(|inode| matches!(inode.body, Body::File(_)));
        if existing.is_some() && !is_file {
            return;
        }
        let over = self.supersede(path, &by);
        let now = self.now();
        let ino = match existing {
            Some(ino) => {
                self.fs().set_len(ino, 0, now);
                ino
            }
            None => match self.fs().create(path, 0o644, now) {
                Ok(ino) => ino,
                Err(_) => return,
            },
        };
        let bytes = content(number, self.device, size);
        self.fs().hold(ino);
        self.fs().write(ino, 0, &bytes, now);
        self.fs().release(ino, true);
        self.say(&format!(
            "writes {path}: version {number}, {} B{over}",
            bytes.len()
        ));
        self.world.oracle.saved(
            Written::file(&bytes),
            number,
            self.device,
            &path.to_string(),
            bytes,
        );
    }

    /// Begins to write in place and leaves the file open for a while.
    fn begin(&mut self, path: &RelPath, size: usize, rng: &mut ChaCha8Rng) {
        let Ok(ino) = self.fs().lookup(path) else {
            return;
        };
        let number = self.world.oracle.next();
        let over = self.supersede(path, &format!("write of version {number}"));
        let now = self.now();
        let half = content(number, self.device, size / 2);
        self.world
            .oracle
            .passing(Written::file(&half), number, self.device, &path.to_string());
        self.fs().hold(ino);
        self.fs().set_len(ino, 0, now);
        self.fs().write(ino, 0, &half, now);
        let generation = self.fs().inode(ino).map_or(0, |inode| inode.generation);
        self.say(&format!("begins to write {path}: version {number}{over}"));
        let device = self.device;
        let wait = below(rng, 1_000_000_000);
        self.world.at(
            wait,
            Event::Finish {
                device,
                ino,
                generation,
                seed: rng.next_u64(),
            },
        );
    }

    fn finish(&mut self, ino: u64, generation: u64, _seed: u64) {
        let now = self.now();
        let fs = self.fs();
        let ours = fs.is_open(ino) && fs.inode(ino).is_some_and(|i| i.generation == generation);
        if !ours {
            return;
        }
        let place = fs.walk().into_iter().find(|(_, other)| *other == ino);
        let Some((path, _)) = place else {
            // The user removed it, or wrote over it by another file.
            self.fs().release(ino, true);
            return;
        };
        let number = self.world.oracle.next();
        if let Some(written) = self.written(ino) {
            self.world
                .oracle
                .supersede(&written, &format!("end of write, version {number}"));
        }
        let bytes = content(number, self.device, 300);
        self.fs().set_len(ino, 0, now);
        self.fs().write(ino, 0, &bytes, now);
        self.fs().release(ino, true);
        self.say(&format!("ends the write of {path}: version {number}"));
        self.world.oracle.saved(
            Written::file(&bytes),
            number,
            self.device,
            &path.to_string(),
            bytes,
        );
    }

    fn save_by_rename(&mut self, path: &RelPath, size: usize) {
        let Some(parent) = path.parent() else { return };
        let number = self.world.oracle.next();
        let name = format!(".save-{number}");
        let Ok(temp) = parent.join(name.as_bytes()) else {
            return;
        };
        let now = self.now();
        let Ok(ino) = self.fs().create(&temp, 0o644, now) else {
            return;
        };
        let bytes = content(number, self.device, size);
        self.fs().hold(ino);
        self.fs().write(ino, 0, &bytes, now);
        self.fs().release(ino, true);
        let over = self.supersede(path, &format!("save of version {number}"));
        let _ = self.fs().rename(&temp, path, true, now);
        self.say(&format!("saves {path} by rename: version {number}{over}"));
        self.world.oracle.saved(
            Written::file(&bytes),
            number,
            self.device,
            &path.to_string(),
            bytes,
        );
    }

    fn rename_file(&mut self, from: &RelPath, to: &RelPath) {
        if from == to {
            return;
        }
        let is_dir = |user: &mut Self, path: &RelPath| {
            let ino = user.fs().lookup(path).ok();
            ino.and_then(|ino| user.fs().inode(ino))
                .is_some_and(|inode| matches!(inode.body, Body::Dir(_)))
        };
        if is_dir(self, to) || self.fs().lookup(to) == self.fs().lookup(from) {
            return;
        }
        let what = self.moved(from);
        let over = self.supersede(to, &format!("rename of {from}"));
        let now = self.now();
        let result = self.fs().rename(from, to, true, now);
        self.say(&format!("renames {from} to {to}{what}{over}: {result:?}"));
    }

    fn rename_dir(&mut self, from: &RelPath, to: &RelPath) {
        if to.starts_with(from) || self.fs().lookup(to).is_ok() || to.depth() > DEPTH_MAX {
            return;
        }
        let what = self.moved(from);
        let now = self.now();
        let result = self.fs().rename(from, to, false, now);
        self.say(&format!("moves {from}/ to {to}/{what}: {result:?}"));
    }

    fn delete(&mut self, path: &RelPath) {
        let over = self.supersede(path, "delete");
        let now = self.now();
        let result = self.fs().unlink(path, now);
        self.say(&format!("deletes {path}{over}: {result:?}"));
    }

    fn remove_tree(&mut self, dir: &RelPath, by: &str) -> bool {
        let beneath: Vec<_> = self
            .fs()
            .walk()
            .into_iter()
            .filter(|(path, _)| path.starts_with(dir))
            .collect();
        let reserved = beneath
            .iter()
            .any(|(path, _)| path.names().any(|n| n.starts_with(RESERVED_PREFIX)));
        // Nobody removes what a syncer has put aside and is about to look at again.
        if reserved {
            return false;
        }
        for (path, ino) in beneath.into_iter().rev() {
            let now = self.now();
            if self.written(ino).is_some() {
                let over = self.supersede(&path, by);
                let _ = self.fs().unlink(&path, now);
                self.say(&format!("{by}: {path}{over}"));
            } else {
                let _ = self.fs().rmdir(&path, now);
                self.say(&format!("{by}: {path}/"));
            }
        }
        true
    }

    fn delete_dir(&mut self, dir: &RelPath) {
        self.remove_tree(dir, "rm -r");
    }

    fn mkdir(&mut self, path: &RelPath) {
        let now = self.now();
        if self.fs().mkdir(path, 0o755, now).is_ok() {
            self.say(&format!("makes {path}/"));
        }
    }

    fn chmod(&mut self, path: &RelPath, mode: u16) {
        let now = self.now();
        if let Ok(ino) = self.fs().lookup(path) {
            let _ = self.fs().set_mode(ino, mode, now);
            self.say(&format!("sets mode of {path} to {mode:o}"));
        }
    }

    fn symlink(&mut self, path: &RelPath) {
        let number = self.world.oracle.next();
        let target = format!("target-{number}").into_bytes();
        let now = self.now();
        if self.fs().symlink(path, &target, now).is_ok() {
            self.say(&format!("links {path}: version {number}"));
            self.world.oracle.saved(
                Written::Symlink(target.clone()),
                number,
                self.device,
                &path.to_string(),
                target,
            );
        }
    }

    fn file_to_dir(&mut self, path: &RelPath) {
        let over = self.supersede(path, "made a directory");
        let now = self.now();
        let _ = self.fs().unlink(path, now);
        let _ = self.fs().mkdir(path, 0o755, now);
        self.say(&format!("makes {path} a directory{over}"));
        if let Ok(below) = path.join(b"within") {
            self.write(&below, 0);
        }
    }

    fn dir_to_file(&mut self, dir: &RelPath, size: usize) {
        if self.remove_tree(dir, "made a file") {
            self.write(dir, size);
        }
    }

    fn swap(&mut self, a: &RelPath, b: &RelPath) {
        if a == b {
            return;
        }
        let Some(temp) = a.parent().and_then(|dir| dir.join(b".swap").ok()) else {
            return;
        };
        let (first, second) = (self.moved(a), self.moved(b));
        let now = self.now();
        let done = [(a, &temp), (b, a), (&temp, b)]
            .map(|(from, to)| self.fs().rename(from, to, false, now));
        self.say(&format!("swaps {a}{first} and {b}{second}: {done:?}"));
    }
}

//! The steps of the demo, in order. Each says what it has seen, not what it hopes for.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pacsync_daemon::control::CommandError;

use super::compare::{self, Tree};
use super::dotfiles::{self, Dotfiles};
use super::fleet::{Fleet, GLANCE, LOOK, Who};
use super::generated::{self, LARGE_LEN};
use super::report::{DeviceReport, Narrator, Report, seconds};
use crate::error::CliError;
use crate::text::{count, size};

/// Name of the space of the generated tree.
const SPACE: &str = "work";
/// The file that is edited on two devices while they are apart.
const NOTES: &str = "notes.md";
/// Edits that each device makes at the same time as the others.
const EDITS: usize = 20;
/// Bytes of a large file that the phone has before it is killed: enough to tell a transfer
/// that goes on from one that begins again.
const CAUGHT_MIN: u64 = LARGE_LEN / 8;
/// Large files that are tried until one is caught on its way.
const CATCHES_MAX: usize = 3;

/// Goes through all steps, as far as they go well.
pub(super) fn tell(fleet: &Fleet, mut narrator: Narrator) -> Result<Report, CliError> {
    let told = steps(fleet, &mut narrator);
    if told.is_err() {
        narrator.break_line();
    }
    let (dotfiles, trees) = told?;
    let mut devices = Vec::new();
    for (who, tree) in Who::ALL.into_iter().zip(&trees) {
        let status = fleet.status(who)?;
        devices.push(DeviceReport {
            name: who.name().to_owned(),
            files: tree.files(),
            bytes: tree.bytes(),
            conflicts: status.conflicts,
            in_sync: status.in_sync,
            hash: tree.hash(),
        });
    }
    let mut differences = Vec::new();
    let mut named = Who::ALL.into_iter().zip(&trees);
    if let Some((who, first)) = named.next() {
        for (other, tree) in named {
            differences.extend(first.differences(who.name(), tree, other.name()));
        }
    }
    Ok(narrator.report(dotfiles, devices, differences))
}

fn steps(fleet: &Fleet, narrator: &mut Narrator) -> Result<(Dotfiles, Vec<Tree>), CliError> {
    narrator.say("pacsync demo: a laptop, a phone and a server, all on this machine\n")?;
    meet(fleet, narrator)?;
    let dotfiles = first_files(fleet, narrator)?;
    everyday(fleet, narrator)?;
    apart(fleet, narrator)?;
    cut_short(fleet, narrator)?;
    let mut trees = Vec::new();
    narrator.step("wait for all, compare the trees", || {
        trees = compare_all(fleet)?;
        let files: u64 = trees.iter().map(Tree::files).sum();
        let bytes: u64 = trees.iter().map(Tree::bytes).sum();
        Ok(format!("{}, {} read", count(files, "file"), size(bytes)))
    })?;
    Ok((dotfiles, trees))
}

fn meet(fleet: &Fleet, narrator: &mut Narrator) -> Result<(), CliError> {
    narrator.step("laptop: a new pac", || {
        fleet.found(Who::Laptop)?;
        listening(fleet, Who::Laptop)
    })?;
    for who in [Who::Phone, Who::Server] {
        narrator.step(&format!("{}: paired by code", who.name()), || {
            fleet.pair(Who::Laptop, who)?;
            listening(fleet, who)
        })?;
    }
    narrator.step("phone and server: connected", || {
        let address = fleet.address(Who::Server)?.to_string();
        fleet.run_words(Who::Phone, ["connect", &address])?;
        fleet.in_step()?;
        Ok("each with both others".into())
    })
}

fn listening(fleet: &Fleet, who: Who) -> Result<String, CliError> {
    let status = fleet.status(who)?;
    let address = fleet.address(who)?;
    Ok(format!("pid {}, QUIC on {address}", status.pid))
}

fn first_files(fleet: &Fleet, narrator: &mut Narrator) -> Result<Dotfiles, CliError> {
    let laptop = fleet.device(Who::Laptop);
    let mut dotfiles = Dotfiles::default();
    narrator.step("laptop: dotfiles and a tree", || {
        let user = std::env::var_os("HOME").map(PathBuf::from);
        let user = user.filter(|user| user.is_absolute());
        dotfiles = dotfiles::fill(user.as_deref(), &laptop.dotfiles)
            .map_err(|error| CliError::io("cannot copy dotfiles", &error))?;
        let made = generated::tree(&laptop.work)
            .and_then(|made| std::fs::write(laptop.work.join(NOTES), "# Notes\n").map(|()| made))
            .map_err(|error| CliError::io("cannot make the tree", &error))?;
        Ok(format!(
            "{}; {}, {}, {}",
            dotfiles_text(&dotfiles),
            count(made.files + 1, "file"),
            count(made.symlinks, "symlink"),
            size(made.bytes)
        ))
    })?;
    narrator.step("laptop: taken in", || {
        for path in &dotfiles.tracked {
            let path = laptop.dotfiles.join(path);
            fleet.run(Who::Laptop, [OsStr::new("add"), path.as_os_str()])?;
        }
        place(fleet, Who::Laptop, "create")?;
        fleet.wait(Who::Laptop)?;
        Ok("`add` for dotfiles, `space create` for the tree".into())
    })?;
    narrator.step("phone and server: first sync", || {
        let begun = Instant::now();
        for who in [Who::Phone, Who::Server] {
            place(fleet, who, "attach")?;
        }
        fleet.in_step()?;
        let files = 2.0 * generated::FILES as f64;
        let rate = files / begun.elapsed().as_secs_f64();
        Ok(format!("{rate:.0} files a second"))
    })?;
    narrator.step(&format!("laptop: a file of {}", size(LARGE_LEN)), || {
        large(&laptop.work.join("large.img"), "large")?;
        let begun = Instant::now();
        for who in Who::ALL {
            fleet.wait(who)?;
        }
        Ok(format!("on both others {} later", seconds(begun.elapsed())))
    })?;
    Ok(dotfiles)
}

fn dotfiles_text(dotfiles: &Dotfiles) -> String {
    if dotfiles.copied == 0 {
        return format!(
            "no dotfiles of yours, {} made up",
            count(dotfiles.generated as u64, "file")
        );
    }
    let mut text = format!("{} of yours", count(dotfiles.copied as u64, "dotfile"));
    if dotfiles.left_out > 0 {
        text.push_str(&format!(" ({} left out)", dotfiles.left_out));
    }
    text
}

fn place(fleet: &Fleet, who: Who, how: &str) -> Result<(), CliError> {
    let word = OsStr::new;
    let at = fleet.device(who).work.as_os_str();
    let args = [word("space"), word(how), word(SPACE), word("--at"), at];
    fleet.run(who, args).map(drop)
}

fn everyday(fleet: &Fleet, narrator: &mut Narrator) -> Result<(), CliError> {
    narrator.step("laptop: an edit", || {
        let path = generated::file(0, 0, 7);
        let text = b"edited on the laptop\n";
        write(fleet, Who::Laptop, &path, text)?;
        let begun = Instant::now();
        let shows = |who: Who| {
            let path = fleet.device(who).work.join(&path);
            fleet.until("the edit", GLANCE, || {
                Ok((std::fs::read(&path).ok().as_deref() == Some(text)).then_some(()))
            })
        };
        shows(Who::Phone)?;
        let phone = begun.elapsed();
        shows(Who::Server)?;
        let server = begun.elapsed();
        Ok(format!(
            "on the phone after {}, on the server after {}",
            seconds(phone),
            seconds(server)
        ))
    })?;
    narrator.step("phone: a folder renamed", || {
        let old = generated::area(2);
        let new = Path::new("renamed on the phone");
        let phone = fleet.device(Who::Phone);
        let inside = Tree::read(&[("", &phone.work.join(old))]).map_err(unreadable)?;
        std::fs::rename(phone.work.join(old), phone.work.join(new))
            .map_err(|error| CliError::io("cannot rename", &error))?;
        fleet.wait(Who::Phone)?;
        expect(fleet, new, Expected::There)?;
        expect(fleet, old, Expected::Gone)?;
        Ok(format!("{} moved with it", count(inside.files(), "file")))
    })?;
    narrator.step("server: a folder and files deleted", || {
        let server = fleet.device(Who::Server);
        let failed = |error| CliError::io("cannot delete", &error);
        let dir = generated::folder(5, 1);
        std::fs::remove_dir_all(server.work.join(&dir)).map_err(failed)?;
        let files: Vec<PathBuf> = (10..30)
            .map(|number| generated::file(6, 0, number))
            .collect();
        for file in &files {
            std::fs::remove_file(server.work.join(file)).map_err(failed)?;
        }
        fleet.wait(Who::Server)?;
        for path in files.iter().chain([&dir]) {
            expect(fleet, path, Expected::Gone)?;
        }
        Ok(format!("{} gone everywhere", count(70, "file")))
    })?;
    narrator.step("all three: edits at the same time", || {
        std::thread::scope(|scope| {
            let edits = Who::ALL.map(|who| scope.spawn(move || edit_own(fleet, who)));
            for edit in edits {
                edit.join()
                    .unwrap_or_else(|_| Err(CommandError::failed("an edit broke off").into()))?;
            }
            Ok::<(), CliError>(())
        })?;
        fleet.in_step()?;
        for (path, text) in Who::ALL.into_iter().flat_map(own_edits) {
            for who in Who::ALL {
                same(fleet, who, &path, text.as_bytes())?;
            }
        }
        let edits = (Who::ALL.len() * EDITS) as u64;
        Ok(format!("{} of different files", count(edits, "edit")))
    })
}

/// What a device edits while the others edit theirs: half of it files that are there,
/// half new ones.
fn own_edits(who: Who) -> impl Iterator<Item = (PathBuf, String)> {
    let area = match who {
        Who::Laptop => 7,
        Who::Phone => 8,
        Who::Server => 9,
    };
    (0..EDITS).map(move |number| {
        let path = if number % 2 == 0 {
            generated::file(area, 0, number + 5)
        } else {
            generated::folder(area, 0).join(format!("new {number}"))
        };
        (path, format!("edit {number} on the {}\n", who.name()))
    })
}

fn edit_own(fleet: &Fleet, who: Who) -> Result<(), CliError> {
    for (path, text) in own_edits(who) {
        write(fleet, who, &path, text.as_bytes())?;
    }
    Ok(())
}

/// The laptop is away and has edits of its own, one of them in a file that is edited
/// elsewhere, too.
fn apart(fleet: &Fleet, narrator: &mut Narrator) -> Result<(), CliError> {
    let notes = Path::new(NOTES);
    let texts = [
        (Who::Laptop, "# Notes\nfrom the laptop\n"),
        (Who::Phone, "# Notes\nfrom the phone\n"),
    ];
    narrator.step("laptop: away; edits go on", || {
        fleet.run_words(Who::Laptop, ["down"])?;
        for (who, text) in texts {
            write(fleet, who, notes, text.as_bytes())?;
        }
        write(fleet, Who::Laptop, Path::new("from the laptop"), b"alone\n")?;
        write(
            fleet,
            Who::Phone,
            Path::new("from the phone"),
            b"with the server\n",
        )?;
        fleet.wait(Who::Phone)?;
        same(
            fleet,
            Who::Server,
            Path::new("from the phone"),
            b"with the server\n",
        )?;
        Ok("phone and server stay in sync; one file edited on both sides".into())
    })?;
    narrator.step("laptop: back", || {
        fleet.run_words(Who::Laptop, ["up"])?;
        fleet.in_step()?;
        for who in Who::ALL {
            same(fleet, who, Path::new("from the laptop"), b"alone\n")?;
            same(
                fleet,
                who,
                Path::new("from the phone"),
                b"with the server\n",
            )?;
            let conflicts = fleet.status(who)?.conflicts;
            if conflicts != 1 {
                let what = format!("the {} counts {conflicts} conflicts, not 1", who.name());
                return Err(CommandError::failed(what).into());
            }
        }
        let shown = read(fleet, Who::Laptop, notes)?;
        let Some((winner, _)) = texts.iter().find(|(_, text)| text.as_bytes() == shown) else {
            let what = format!("{NOTES} shows neither of the edits");
            return Err(CommandError::failed(what).into());
        };
        for who in Who::ALL {
            same(fleet, who, notes, &shown)?;
        }
        Ok(format!(
            "{NOTES} shows the {}'s text; the other is kept, 1 conflict",
            winner.name()
        ))
    })
}

/// The phone dies in the middle of a large file.
fn cut_short(fleet: &Fleet, narrator: &mut Narrator) -> Result<(), CliError> {
    let mut caught = None;
    let title = format!("phone: kill -9 amid {}", size(LARGE_LEN));
    narrator.step(&title, || {
        for attempt in 1..=CATCHES_MAX {
            let path = PathBuf::from(format!("large {attempt}.img"));
            if let Some(done) = catch(fleet, &path)? {
                let detail = format!("{} of it were there; nothing shows at its path", size(done));
                caught = Some(path);
                return Ok(detail);
            }
            // It was through before it was seen.
            fleet.in_step()?;
        }
        Err(CommandError::failed("each transfer was over before it was seen").into())
    })?;
    let path = caught.unwrap_or_default();
    narrator.step("phone: started again", || {
        let begun = Instant::now();
        fleet.run_words(Who::Phone, ["up"])?;
        let up = begun.elapsed();
        let went_on = first_seen(fleet, &path, 1)?;
        fleet.in_step()?;
        let expected = read(fleet, Who::Laptop, &path)?;
        for who in [Who::Phone, Who::Server] {
            same(fleet, who, &path, &expected)?;
        }
        let ready = seconds(up);
        Ok(match went_on {
            Some(done) => format!("ready after {ready}, went on at {}; whole", size(done)),
            None => format!("ready after {ready}; whole at the next look"),
        })
    })
}

/// Writes a large file on the laptop and kills the phone once it has a part of it. Gives
/// the bytes it had, or nothing if it was too quick.
fn catch(fleet: &Fleet, path: &Path) -> Result<Option<u64>, CliError> {
    let there = fleet.device(Who::Phone).work.join(path);
    let pid = fleet.status(Who::Phone)?.pid;
    large(
        &fleet.device(Who::Laptop).work.join(path),
        &path.to_string_lossy(),
    )?;
    let Some(done) = first_seen(fleet, path, CAUGHT_MIN)? else {
        return Ok(None);
    };
    fleet.kill(Who::Phone, pid)?;
    if !there.exists() {
        return Ok(Some(done));
    }
    // Between the look and the kill it was completed: it is whole then, or a lie.
    let whole = read(fleet, Who::Laptop, path)?;
    same(fleet, Who::Phone, path, &whole)?;
    fleet.run_words(Who::Phone, ["up"])?;
    Ok(None)
}

/// How many bytes of a file the phone has when it is first seen to have so many; nothing
/// if it was whole before that.
fn first_seen(fleet: &Fleet, path: &Path, bytes_min: u64) -> Result<Option<u64>, CliError> {
    let there = fleet.device(Who::Phone).work.join(path);
    fleet.until("the transfer", GLANCE, || {
        let status = fleet.status(Who::Phone)?;
        let part = status
            .spaces
            .iter()
            .flat_map(|space| &space.transfers)
            // Only one of this size is ever on its way.
            .filter(|transfer| transfer.bytes_total == LARGE_LEN)
            .map(|transfer| transfer.bytes_done)
            .find(|done| *done >= bytes_min);
        Ok(match part {
            Some(done) => Some(Some(done)),
            None if there.exists() => Some(None),
            None => None,
        })
    })
}

fn compare_all(fleet: &Fleet) -> Result<Vec<Tree>, CliError> {
    fleet.in_step()?;
    // What an apply has displaced stands for a few seconds more, in case that some
    // program still writes to it. Nothing tells when it goes, other than its going.
    for device in fleet.all() {
        for root in [&device.dotfiles, &device.work] {
            let what = format!("no temporary files on the {}", device.name);
            fleet.until(&what, LOOK * 5, || {
                let temps = compare::temps(root).map_err(unreadable)?;
                Ok(temps.is_empty().then_some(()))
            })?;
        }
    }
    fleet.in_step()?;
    std::thread::scope(|scope| {
        let reading: Vec<_> = fleet
            .all()
            .iter()
            .map(|device| {
                let roots = [
                    ("home", device.dotfiles.as_path()),
                    (SPACE, device.work.as_path()),
                ];
                scope.spawn(move || Tree::read(&roots).map_err(unreadable))
            })
            .collect();
        reading
            .into_iter()
            .map(|read| {
                read.join()
                    .unwrap_or_else(|_| Err(CommandError::failed("reading broke off").into()))
            })
            .collect()
    })
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    There,
    Gone,
}

/// An error unless a path is there, or gone, on each device.
fn expect(fleet: &Fleet, path: &Path, expected: Expected) -> Result<(), CliError> {
    for device in fleet.all() {
        let there = device.work.join(path).symlink_metadata().is_ok();
        let wrong = match expected {
            Expected::There if !there => "is not there",
            Expected::Gone if there => "is still there",
            _ => continue,
        };
        let what = format!("{} {wrong} on the {}", path.display(), device.name);
        return Err(CommandError::failed(what).into());
    }
    Ok(())
}

/// An error unless a file has some content.
fn same(fleet: &Fleet, who: Who, path: &Path, content: &[u8]) -> Result<(), CliError> {
    if read(fleet, who, path)? == content {
        return Ok(());
    }
    let what = format!(
        "{} is not as expected on the {}",
        path.display(),
        who.name()
    );
    Err(CommandError::failed(what).into())
}

fn read(fleet: &Fleet, who: Who, path: &Path) -> Result<Vec<u8>, CliError> {
    let path = fleet.device(who).work.join(path);
    std::fs::read(&path)
        .map_err(|error| CliError::io(format!("cannot read {}", path.display()), &error))
}

fn write(fleet: &Fleet, who: Who, path: &Path, content: &[u8]) -> Result<(), CliError> {
    let path = fleet.device(who).work.join(path);
    std::fs::write(&path, content)
        .map_err(|error| CliError::io(format!("cannot write {}", path.display()), &error))
}

fn large(path: &Path, seed: &str) -> Result<(), CliError> {
    generated::large(path, seed)
        .map_err(|error| CliError::io(format!("cannot write {}", path.display()), &error))
}

fn unreadable(error: io::Error) -> CliError {
    CliError::io("cannot look through a tree", &error)
}

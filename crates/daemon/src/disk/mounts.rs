//! File systems that are mounted and unmounted at, above and beneath a root: no directory that is
//! watched reports it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;

use super::resolve::through_proc;
use super::{FsEvent, RelPath};

/// Mounts by number and place.
pub(super) type Mounted = BTreeSet<(Vec<u8>, Vec<u8>)>;

/// The system's table of mounts, which tells by `POLLPRI` that it has changed.
pub(super) struct Mounts {
    pub(super) table: File,
    /// The root's path, as the system names it.
    root: Vec<u8>,
}

impl Mounts {
    /// `None` where the system has no such table.
    pub(super) fn of(root: BorrowedFd<'_>) -> Option<Self> {
        let table = File::open("/proc/self/mountinfo").ok()?;
        let root = std::fs::read_link(through_proc(root)).ok()?;
        Some(Self {
            table,
            root: root.into_os_string().into_vec(),
        })
    }

    /// What is mounted at, above and beneath the root.
    pub(super) fn list(&self) -> Mounted {
        parse(&self.read(), &self.root)
    }

    fn read(&self) -> Vec<u8> {
        let mut text = vec![];
        let mut part = [0; 4_096];
        while let Ok(read @ 1..) = self.table.read_at(&mut part, text.len() as u64) {
            text.extend(part.iter().take(read));
        }
        text
    }

    /// What a change of the table means for the root.
    pub(super) fn changes(&self, before: &Mounted, now: &Mounted) -> Vec<FsEvent> {
        let mut events = vec![];
        for (_, place) in before.symmetric_difference(now) {
            match beneath(place, &self.root) {
                Some(rest) => {
                    if let Ok(path) = RelPath::from_bytes(rest) {
                        events.push(FsEvent::DirAppeared(path));
                    }
                }
                None => events.push(FsEvent::RootGone),
            }
        }
        events
    }
}

/// The lines of mountinfo (proc_pid_mountinfo(5)): number, parent, device, root, place, …; blanks
/// and the like in a place stand as three octal digits behind a backslash.
fn parse(text: &[u8], root: &[u8]) -> Mounted {
    let mut found = Mounted::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let (Some(number), Some(place)) = (fields.next(), fields.nth(3)) else {
            continue;
        };
        let place = unescape(place);
        if beneath(&place, root).is_some() || place == root || beneath(root, &place).is_some() {
            found.insert((number.to_vec(), place));
        }
    }
    found
}

/// What is left of a path below a directory; `None` if it is not beneath it.
fn beneath<'p>(path: &'p [u8], dir: &[u8]) -> Option<&'p [u8]> {
    let dir = if dir == b"/" { b"" } else { dir };
    let rest = path.strip_prefix(dir)?.strip_prefix(b"/")?;
    (!rest.is_empty()).then_some(rest)
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let value =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(byte) => {
                plain.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
        30 22 0:20 / /proc rw - proc proc rw\n\
        41 22 7:0 / /home/anna/my\\040photos rw - ext4 /dev/loop0 rw\n\
        42 22 7:1 / /home rw - ext4 /dev/loop1 rw\n\
        43 22 7:1 / /home/anna2 rw - ext4 /dev/loop1 rw\n\
        garbage\n\n";

    #[test]
    fn mounts_around_a_root_are_found() {
        let found = parse(TABLE, b"/home/anna");
        let places: Vec<&[u8]> = found.iter().map(|(_, place)| place.as_slice()).collect();
        assert_eq!(
            places,
            [&b"/"[..], &b"/home/anna/my photos"[..], &b"/home"[..]]
        );
    }

    #[test]
    fn of_a_mount_beneath_the_directory_is_told_and_of_others_the_root() {
        let mounts = Mounts {
            table: File::open("/dev/null").expect("opens"),
            root: b"/home/anna".to_vec(),
        };
        let before = parse(TABLE, b"/home/anna");
        let mut now = before.clone();
        now.remove(&(b"41".to_vec(), b"/home/anna/my photos".to_vec()));
        let path = RelPath::from_bytes(b"my photos").expect("a path");
        assert_eq!(mounts.changes(&before, &now), [FsEvent::DirAppeared(path)]);
        now.insert((b"50".to_vec(), b"/home/anna".to_vec()));
        assert!(mounts.changes(&before, &now).contains(&FsEvent::RootGone));
        assert_eq!(mounts.changes(&before, &before), []);
    }

    #[test]
    fn odd_bytes_come_through() {
        assert_eq!(unescape(b"a\\040b\\134c"), b"a b\\c");
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\999"), b"\\999");
        assert_eq!(unescape(b"end\\"), b"end\\");
    }
}

//! Trees of real files, to make and to compare.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What an entry is.
#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file: size and hash of its content.
    File {
        /// In bytes.
        size: u64,
        /// BLAKE3 of all bytes.
        hash: blake3::Hash,
    },
    /// A directory.
    Dir,
    /// A symlink and its target.
    Symlink(Vec<u8>),
    /// Something else, which no device ever makes.
    Other,
}

/// One entry.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits; none of a symlink.
    pub mode: Option<u32>,
    /// Seconds and nanoseconds; of files only.
    pub mtime: Option<(i64, i64)>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::File { size, hash } => {
                write!(f, "file {size} B {}", hash.to_hex().get(..8).unwrap_or(""))?;
            }
            Kind::Dir => write!(f, "dir")?,
            Kind::Symlink(target) => write!(f, "symlink to {:?}", OsStr::from_bytes(target))?,
            Kind::Other => write!(f, "something else")?,
        }
        if let Some(mode) = self.mode {
            write!(f, " {mode:03o}")?;
        }
        if let Some((secs, nanos)) = self.mtime {
            write!(f, " @{secs}.{nanos:09}")?;
        }
        Ok(())
    }
}

/// All entries beneath a directory, by the bytes of their relative paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree(pub BTreeMap<Vec<u8>, Node>);

impl Tree {
    /// Reads all of it. Whatever vanishes meanwhile is left out.
    pub fn read(root: &Path) -> Self {
        let mut tree = Self::default();
        tree.read_dir(root, &[]);
        tree
    }

    fn read_dir(&mut self, dir: &Path, prefix: &[u8]) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let entry = entry.expect("an entry");
            let path = entry.path();
            let mut name = prefix.to_vec();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(entry.file_name().as_bytes());
            let Ok(found) = path.symlink_metadata() else {
                continue;
            };
            let permissions = Some(found.mode() & 0o777);
            let node = if found.is_dir() {
                self.read_dir(&path, &name);
                Node {
                    kind: Kind::Dir,
                    mode: permissions,
                    mtime: None,
                }
            } else if found.is_symlink() {
                let target = fs::read_link(&path).expect("a target");
                Node {
                    kind: Kind::Symlink(target.as_os_str().as_bytes().to_vec()),
                    mode: None,
                    mtime: None,
                }
            } else if found.is_file() {
                let Some(kind) = read_file(&path) else {
                    continue;
                };
                Node {
                    kind,
                    mode: permissions,
                    mtime: Some((found.mtime(), found.mtime_nsec())),
                }
            } else {
                Node {
                    kind: Kind::Other,
                    mode: None,
                    mtime: None,
                }
            };
            self.0.insert(name, node);
        }
    }

    /// The entry at a path.
    pub fn get(&self, path: impl AsRef<[u8]>) -> Option<&Node> {
        self.0.get(path.as_ref())
    }

    /// The tree without mtimes, where a test cannot know them.
    pub fn without_mtimes(mut self) -> Self {
        for node in self.0.values_mut() {
            node.mtime = None;
        }
        self
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        let is_file = |node: &&Node| matches!(node.kind, Kind::File { .. });
        self.0.values().filter(is_file).count()
    }

    /// Takes out what the program keeps beside the files for a while: what was displaced is
    /// looked at again before it goes.
    pub fn without_own(mut self) -> Self {
        self.0.retain(|path, _| !is_own(path));
        self
    }

    /// Paths of what the program keeps beside the files.
    pub fn own(&self) -> Vec<&OsStr> {
        let own = self.0.keys().filter(|path| is_own(path));
        own.map(|path| OsStr::from_bytes(path)).collect()
    }

    /// What is different, one line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let show = |path: &[u8]| format!("{:?}", OsStr::from_bytes(path));
        for (path, node) in &self.0 {
            match other.0.get(path) {
                None => lines.push(format!("{}: {node:?}, only left", show(path))),
                Some(found) if found != node => {
                    lines.push(format!("{}: {node:?} | {found:?}", show(path)));
                }
                Some(_) => {}
            }
        }
        for (path, node) in &other.0 {
            if !self.0.contains_key(path) {
                lines.push(format!("{}: {node:?}, only right", show(path)));
            }
        }
        lines
    }
}

fn is_own(path: &[u8]) -> bool {
    let reserved = pacsync_protocol::row::RESERVED_PREFIX;
    path.split(|byte| *byte == b'/')
        .any(|name| name.starts_with(reserved))
}

fn read_file(path: &Path) -> Option<Kind> {
    let mut file = File::open(path).ok()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let length = file.read(&mut buffer).ok()?;
        if length == 0 {
            break;
        }
        hasher.update(buffer.get(..length)?);
        size += length as u64;
    }
    Some(Kind::File {
        size,
        hash: hasher.finalize(),
    })
}

/// Panics with the differences unless two trees are the same.
#[track_caller]
pub fn check_same(left: &Tree, right: &Tree) {
    let lines = left.differences(right);
    let shown: Vec<&String> = lines.iter().take(20).collect();
    assert!(lines.is_empty(), "{} differences: {shown:#?}", lines.len());
}

/// Writes a file, with the directories above it.
#[track_caller]
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("makes directories");
    }
    fs::write(path, content).expect("writes");
}

/// Sets the permission bits.
#[track_caller]
pub fn mode(path: impl AsRef<Path>, bits: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).expect("sets the mode");
}

/// Sets the mtime, in nanoseconds since 1970.
#[track_caller]
pub fn set_mtime(path: impl AsRef<Path>, nanos: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
    let file = File::options().write(true).open(path).expect("opens");
    file.set_modified(time).expect("sets the mtime");
}

/// Writes a file whose mtime is set before it is closed, as tools that copy do: one that is set
/// later alone is no change.
#[track_caller]
pub fn write_at(path: impl AsRef<Path>, content: impl AsRef<[u8]>, nanos: u64) {
    use std::io::Write;
    let mut file = File::create(path).expect("creates");
    file.write_all(content.as_ref()).expect("writes");
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
    file.set_modified(time).expect("sets the mtime");
}

/// Bytes that do not compress and have no repeats, the same for the same seed.
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut reader = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    reader.fill(&mut bytes);
    bytes
}

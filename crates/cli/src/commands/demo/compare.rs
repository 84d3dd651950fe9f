//! Whether trees are equal: content, permission bits, targets of symlinks, empty directories.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::text::{size, visible};

/// Names of files that pacsync is still writing or about to remove.
const TEMP_PREFIX: &[u8] = b".pacsync~";
/// Differences that are told.
const DIFFERENCES_MAX: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File {
        mode: u32,
        len: u64,
        hash: blake3::Hash,
    },
    Dir {
        mode: u32,
    },
    Symlink {
        target: PathBuf,
    },
    Other,
}

impl Node {
    fn read(path: &Path) -> io::Result<Self> {
        let found = path.symlink_metadata()?;
        let mode = found.permissions().mode() & 0o7777;
        if found.is_symlink() {
            let target = std::fs::read_link(path)?;
            return Ok(Self::Symlink { target });
        }
        if found.is_dir() {
            return Ok(Self::Dir { mode });
        }
        if !found.is_file() {
            return Ok(Self::Other);
        }
        let mut file = File::open(path)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        let mut len = 0;
        loop {
            let read = file.read(&mut buffer)?;
            let (part, _) = buffer.split_at(read);
            if part.is_empty() {
                break;
            }
            hasher.update(part);
            len += part.len() as u64;
        }
        let hash = hasher.finalize();
        Ok(Self::File { mode, len, hash })
    }

    fn describe(&self) -> String {
        match self {
            Self::File { mode, len, hash } => {
                let hash: String = hash.to_hex().chars().take(12).collect();
                format!("file {mode:o} {} {hash}", size(*len))
            }
            Self::Dir { mode } => format!("directory {mode:o}"),
            Self::Symlink { target } => format!("link to {}", target.display()),
            Self::Other => "something else".into(),
        }
    }
}

/// Everything beneath some roots.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    /// Reads all of it. The roots themselves are not part of it, their names are.
    pub(super) fn read(roots: &[(&str, &Path)]) -> io::Result<Self> {
        let mut tree = Self::default();
        for (name, root) in roots {
            walk(root, &mut |path| {
                let within = path.strip_prefix(root).unwrap_or(path);
                let node = Node::read(path).map_err(|error| at(path, error))?;
                tree.nodes.insert(Path::new(name).join(within), node);
                Ok(())
            })?;
        }
        Ok(tree)
    }

    pub(super) fn files(&self) -> u64 {
        self.lens().count() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lens().sum()
    }

    fn lens(&self) -> impl Iterator<Item = u64> {
        self.nodes.values().filter_map(|node| match node {
            Node::File { len, .. } => Some(*len),
            _ => None,
        })
    }

    /// One hash of everything.
    pub(super) fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for (path, node) in &self.nodes {
            field(path.as_os_str().as_bytes());
            match node {
                Node::File { mode, len, hash } => {
                    field(b"file");
                    field(&mode.to_le_bytes());
                    field(&len.to_le_bytes());
                    field(hash.as_bytes());
                }
                Node::Dir { mode } => {
                    field(b"dir");
                    field(&mode.to_le_bytes());
                }
                Node::Symlink { target } => {
                    field(b"symlink");
                    field(target.as_os_str().as_bytes());
                }
                Node::Other => field(b"other"),
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// What is different in another tree, in words; the first ones where there are many.
    pub(super) fn differences(&self, name: &str, other: &Self, other_name: &str) -> Vec<String> {
        let mut paths: Vec<&Path> = self
            .nodes
            .keys()
            .chain(other.nodes.keys())
            .map(PathBuf::as_path)
            .filter(|path| self.nodes.get(*path) != other.nodes.get(*path))
            .collect();
        paths.sort_unstable();
        paths.dedup();
        let mut told: Vec<String> = paths
            .iter()
            .take(DIFFERENCES_MAX)
            .map(|path| {
                let here = |tree: &Self| {
                    tree.nodes
                        .get(*path)
                        .map_or("nothing".into(), Node::describe)
                };
                format!(
                    "{}: {name} has {}, {other_name} has {}",
                    visible(&path.to_string_lossy()),
                    here(self),
                    here(other)
                )
            })
            .collect();
        if paths.len() > DIFFERENCES_MAX {
            told.push(format!("and {} more", paths.len() - DIFFERENCES_MAX));
        }
        told
    }
}

/// Finds files that pacsync is still writing or about to remove.
pub(super) fn temps(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(root, &mut |path| {
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if name.starts_with(TEMP_PREFIX) {
            found.push(path.to_owned());
        }
        Ok(())
    })?;
    Ok(found)
}

/// Visits everything beneath a directory. What vanishes meanwhile is not there.
fn walk(root: &Path, visit: &mut impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir != root => continue,
            entries => entries.map_err(|error| at(&dir, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| at(&dir, error))?;
            let path = entry.path();
            visit(&path)?;
            if entry
                .file_type()
                .map_err(|error| at(&path, error))?
                .is_dir()
            {
                dirs.push(path);
            }
        }
    }
    Ok(())
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    use super::*;

    fn made() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        std::fs::create_dir(root.join("empty")).expect("creates");
        std::fs::write(root.join("file"), "text").expect("writes");
        symlink("file", root.join("link")).expect("links");
        dir
    }

    fn read(dir: &tempfile::TempDir) -> Tree {
        Tree::read(&[("x", dir.path())]).expect("reads")
    }

    #[test]
    fn equal_trees_are_equal() {
        let (one, other) = (made(), made());
        let (one, other) = (read(&one), read(&other));
        assert_eq!(one.hash(), other.hash());
        assert!(one.differences("a", &other, "b").is_empty());
        assert_eq!((one.files(), one.bytes()), (1, 4));
    }

    #[test]
    fn each_difference_is_seen() {
        let changes: [fn(&Path); 6] = [
            |root| std::fs::write(root.join("file"), "texT").expect("writes"),
            |root| std::fs::remove_dir(root.join("empty")).expect("removes"),
            |root| std::fs::write(root.join("more"), "").expect("writes"),
            |root| {
                let mode = Permissions::from_mode(0o700);
                std::fs::set_permissions(root.join("file"), mode).expect("sets");
            },
            |root| {
                std::fs::remove_file(root.join("link")).expect("removes");
                symlink("File", root.join("link")).expect("links");
            },
            |root| {
                let mode = Permissions::from_mode(0o711);
                std::fs::set_permissions(root.join("empty"), mode).expect("sets");
            },
        ];
        let base = made();
        let base = read(&base);
        for (number, change) in changes.iter().enumerate() {
            let other = made();
            change(other.path());
            let other = read(&other);
            assert_ne!(base.hash(), other.hash(), "{number}");
            assert_eq!(base.differences("a", &other, "b").len(), 1, "{number}");
        }
    }

    #[test]
    fn temps_are_found_wherever_they_are() {
        let dir = made();
        assert!(temps(dir.path()).expect("walks").is_empty());
        std::fs::write(dir.path().join("empty/.pacsync~1"), "").expect("writes");
        assert_eq!(temps(dir.path()).expect("walks").len(), 1);
    }
}

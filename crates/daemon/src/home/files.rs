//! Small files that are there whole or not at all.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::error::HomeError;

/// Longest file that is read, in bytes: these are written by hand or by this module.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// Its owner; if others may, it is refused.
    Secret,
    /// Whoever the mode lets.
    Plain,
}

/// Replaces a file: temp, fsync, rename, fsync of the directory. Mode 0600.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), HomeError> {
    let temp = temp_path(path);
    let failed = |operation, source| HomeError::io(operation, path, source);
    let fill = || {
        remove_file(&temp)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let result = fill()
        .map_err(|source| failed("write", source))
        .and_then(|()| fs::rename(&temp, path).map_err(|source| failed("replace", source)));
    if result.is_err() {
        // The first error counts; the leftover is overwritten by the next attempt.
        let _ = remove_file(&temp);
        return result;
    }
    sync_parent(path)
}

/// Beside the file, and hidden; one writer at a time by the lock of the home.
pub(super) fn temp_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

/// Reads a whole file.
pub(super) fn read(path: &Path, secrecy: Secrecy) -> Result<Zeroizing<Vec<u8>>, HomeError> {
    let failed = |source| HomeError::io("read", path, source);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > FILE_LEN_MAX {
        return Err(HomeError::Damaged {
            path: path.to_owned(),
            why: "not a small file".into(),
        });
    }
    if secrecy == Secrecy::Secret && metadata.mode() & 0o077 != 0 {
        return Err(HomeError::TooOpen {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
            wanted: 0o600,
        });
    }
    let len = usize::try_from(metadata.len()).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(len.saturating_add(1)));
    file.take(FILE_LEN_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// Makes an empty file of mode 0600.
pub(super) fn create_empty(path: &Path) -> Result<(), HomeError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| HomeError::io("make", path, source))?;
    sync_parent(path)
}

/// Says whether something has this name, a dangling symlink too.
pub(super) fn exists(path: &Path) -> Result<bool, HomeError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(HomeError::io("look at", path, error)),
    }
}

/// Removes a file that may be gone already, durably.
pub(super) fn remove(path: &Path) -> Result<(), HomeError> {
    if !exists(path)? {
        return Ok(());
    }
    remove_file(path).map_err(|source| HomeError::io("remove", path, source))?;
    sync_parent(path)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory and all in it, if it is there.
pub(super) fn remove_tree(path: &Path) -> Result<(), HomeError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(HomeError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory of mode 0700, with those above it.
pub(super) fn make_dir_all(path: &Path) -> Result<(), HomeError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotADirectory => HomeError::NotADirectory {
                path: path.to_owned(),
            },
            _ => HomeError::io("make", path, source),
        })?;
    sync_parent(path)
}

pub(super) fn metadata(path: &Path) -> Result<Metadata, HomeError> {
    fs::metadata(path).map_err(|source| HomeError::io("look at", path, source))
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), HomeError> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|source| HomeError::io("set the mode of", path, source))
}

pub(super) fn names(path: &Path) -> Result<Vec<OsString>, HomeError> {
    let list = || -> io::Result<_> {
        fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    };
    list().map_err(|source| HomeError::io("list", path, source))
}

/// Makes the names in a file's directory durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), HomeError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| HomeError::io("make durable", parent, source))
}

//! What the disk can refuse.

use std::fmt;
use std::io;

use super::RelPath;

/// The operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOp {
    /// Opening the root itself.
    OpenRoot,
    /// Finding out what the file system can do.
    Probe,
    /// Reading the identity of a directory and its file system.
    Identify,
    /// Reading an entry's metadata.
    Stat,
    /// Listing a directory.
    List,
    /// Opening a file.
    Open,
    /// Creating a file.
    Create,
    /// Reading content.
    Read,
    /// Writing content.
    Write,
    /// Changing a file's length.
    SetLen,
    /// Creating a symlink.
    Symlink,
    /// Reading a symlink's target.
    ReadLink,
    /// Creating a directory.
    Mkdir,
    /// Renaming.
    Rename,
    /// Exchanging two entries.
    Exchange,
    /// Creating a hard link.
    Link,
    /// Removing a file or symlink.
    Unlink,
    /// Removing a directory.
    Rmdir,
    /// Changing permission bits.
    SetMode,
    /// Changing the modification time.
    SetMtime,
    /// Making data durable.
    Sync,
    /// Asking for the free space.
    FreeSpace,
    /// Watching a directory.
    Watch,
}

impl fmt::Display for DiskOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenRoot => "open the root",
            Self::Probe => "probe",
            Self::Identify => "identify",
            Self::Stat => "look at",
            Self::List => "list",
            Self::Open => "open",
            Self::Create => "create",
            Self::Read => "read",
            Self::Write => "write",
            Self::SetLen => "resize",
            Self::Symlink => "create symlink",
            Self::ReadLink => "read symlink",
            Self::Mkdir => "create directory",
            Self::Rename => "rename",
            Self::Exchange => "exchange",
            Self::Link => "link",
            Self::Unlink => "remove",
            Self::Rmdir => "remove directory",
            Self::SetMode => "set permissions of",
            Self::SetMtime => "set modification time of",
            Self::Sync => "sync",
            Self::FreeSpace => "ask for free space of",
            Self::Watch => "watch",
        })
    }
}

/// What lies behind a [`DiskError`] beyond the system's own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing: `source` says it all.
    Os,
    /// A directory on the way to the entry is a symlink, which is never followed.
    SymlinkInPath,
    /// The entry is not of the kind that the operation needs: no regular file, no symlink.
    WrongKind,
    /// The system gives this user no more watches.
    WatchLimit,
}

/// An operation on the disk that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} {path}: {}", self.what())]
pub struct DiskError {
    /// What was tried.
    pub op: DiskOp,
    /// On what.
    pub path: RelPath,
    /// What lies behind it beyond the system's own code.
    pub cause: Cause,
    /// The system's own answer.
    pub source: io::Error,
}

impl DiskError {
    /// An error that the system's answer explains.
    pub fn new(op: DiskOp, path: &RelPath, source: impl Into<io::Error>) -> Self {
        Self::caused(op, path, Cause::Os, source)
    }

    /// An error with a cause of its own.
    pub fn caused(op: DiskOp, path: &RelPath, cause: Cause, source: impl Into<io::Error>) -> Self {
        Self {
            op,
            path: path.clone(),
            cause,
            source: source.into(),
        }
    }

    fn what(&self) -> String {
        match self.cause {
            Cause::Os => self.source.to_string(),
            Cause::SymlinkInPath => "a directory on the way is a symlink".to_owned(),
            Cause::WrongKind => "it is of another kind".to_owned(),
            Cause::WatchLimit => {
                "no inotify watches left (raise fs.inotify.max_user_watches or .max_user_instances)"
                    .to_owned()
            }
        }
    }

    fn is(&self, kind: io::ErrorKind) -> bool {
        self.cause == Cause::Os && self.source.kind() == kind
    }

    /// Whether the entry or a directory on the way is not there.
    pub fn is_not_found(&self) -> bool {
        self.is(io::ErrorKind::NotFound)
    }

    /// Whether something on the way, or the entry itself, should be a directory and is none.
    pub fn is_not_a_directory(&self) -> bool {
        self.is(io::ErrorKind::NotADirectory)
    }

    /// Whether the disk or the user's share of it is full.
    pub fn is_no_space(&self) -> bool {
        self.is(io::ErrorKind::StorageFull) || self.is(io::ErrorKind::QuotaExceeded)
    }

    /// Whether the file system is mounted read-only.
    pub fn is_read_only(&self) -> bool {
        self.is(io::ErrorKind::ReadOnlyFilesystem)
    }

    /// Whether the user lacks the right.
    pub fn is_permission(&self) -> bool {
        self.is(io::ErrorKind::PermissionDenied)
    }

    /// Whether the target exists already.
    pub fn is_exists(&self) -> bool {
        self.is(io::ErrorKind::AlreadyExists)
    }

    /// Whether the file system or the kernel cannot do this at all.
    pub fn is_unsupported(&self) -> bool {
        self.is(io::ErrorKind::Unsupported)
    }

    /// Whether the two paths lie on different file systems or mounts.
    pub fn is_cross_device(&self) -> bool {
        self.is(io::ErrorKind::CrossesDevices)
    }

    /// Whether a directory that should go still holds entries.
    pub fn is_not_empty(&self) -> bool {
        self.is(io::ErrorKind::DirectoryNotEmpty)
    }

    /// Whether the file system takes no such name: too long, or bytes that it cannot store.
    pub fn is_invalid_name(&self) -> bool {
        self.is(io::ErrorKind::InvalidFilename)
    }

    /// Whether a directory on the way is a symlink, which is never followed.
    pub fn is_symlink_in_path(&self) -> bool {
        self.cause == Cause::SymlinkInPath
    }

    /// Whether the entry is not of the kind that the operation needs.
    pub fn is_wrong_kind(&self) -> bool {
        self.cause == Cause::WrongKind
    }

    /// Whether the system gives this user no more watches; scan periodically instead.
    pub fn is_watch_limit(&self) -> bool {
        self.cause == Cause::WatchLimit
    }
}

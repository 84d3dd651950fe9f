//! What can be wrong with a home, and the way out of each.

use std::io;
use std::path::{Path, PathBuf};

use pacsync_protocol::PacId;
use pacsync_store::StoreError;

/// Why a home cannot be used, founded or joined.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The home belongs to no pac.
    #[error("there is no pac in {}", home.display())]
    NotFounded {
        /// The home.
        home: PathBuf,
    },
    /// The home belongs to a pac already.
    #[error("{} belongs to the pac {} already", home.display(), pac.short())]
    AlreadyFounded {
        /// The home.
        home: PathBuf,
        /// Its pac.
        pac: PacId,
    },
    /// Another process works on the home.
    #[error("{} is in use by {}", home.display(), holder(*pid))]
    InUse {
        /// The home.
        home: PathBuf,
        /// The other process, if it could be told.
        pid: Option<u32>,
    },
    /// Something else has the name.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// Where.
        path: PathBuf,
    },
    /// Others may read a secret, or write where they must not.
    #[error("{} is open to other users of this machine (mode {mode:o})", path.display())]
    TooOpen {
        /// What.
        path: PathBuf,
        /// The mode found.
        mode: u32,
        /// The mode that it should have.
        wanted: u32,
    },
    /// The directory belongs to another user.
    #[error("{} belongs to another user of this machine", path.display())]
    NotOurs {
        /// The home.
        path: PathBuf,
    },
    /// A file of the home cannot be understood.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The settings cannot be understood.
    #[error("{} cannot be read: {why}", path.display())]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// A file was written by a later version.
    #[error("{} has format {version}, which this version does not know", path.display())]
    UpdateNeeded {
        /// The file.
        path: PathBuf,
        /// The format found.
        version: u64,
    },
    /// Keys or a replica are here, but not the file that says for which pac.
    #[error("{}: the file `pac` is gone, though the keys or the replica are here", home.display())]
    PacFileMissing {
        /// The home.
        home: PathBuf,
    },
    /// The replica's database is gone.
    #[error("the replica {} is gone", path.display())]
    MissingReplica {
        /// The database.
        path: PathBuf,
    },
    /// The replica's database is damaged.
    #[error("the replica {} is damaged: {why}", path.display())]
    DamagedReplica {
        /// The database.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The replica could not do what was asked.
    #[error("the replica {}", path.display())]
    Store {
        /// The database.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The directory that should hold the files is not there.
    #[error("the root {} is not a directory that can be used: {why}", path.display())]
    BadRoot {
        /// The root.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// What the other device sent does not make this one a device of the pac.
    #[error("what the other device sent does not hold: {why}")]
    BadWelcome {
        /// What is wrong.
        why: String,
    },
    /// The disk is full.
    #[error("there is no room left on the disk of {}", path.display())]
    NoRoom {
        /// What was being written.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

impl HomeError {
    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoRoom { path },
            _ => Self::Io {
                operation,
                path,
                source,
            },
        }
    }

    /// Tells apart what the user can mend.
    pub fn store(path: PathBuf, source: StoreError) -> Self {
        match source {
            source if source.is_no_space() => Self::NoRoom { path },
            StoreError::Damaged(why) => Self::DamagedReplica { path, why },
            StoreError::UpdateNeeded { found, .. } => Self::UpdateNeeded {
                path,
                version: found,
            },
            source => Self::Store { path, source },
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::NotFounded { home } => format!(
                "make a pac with `pacsync up`, or join yours with `pacsync pair CODE`; \
                 a home elsewhere than {} is named with --home DIR",
                home.display()
            ),
            Self::AlreadyFounded { home, .. } => format!(
                "use another home with --home DIR; to leave the pac, stop the daemon with \
                 `pacsync down` and move the home away: {} (your files stay where they are)",
                aside(home)
            ),
            Self::InUse { .. } => {
                "the daemon runs already: see `pacsync status`, stop it with `pacsync down`".into()
            }
            Self::NotADirectory { .. } => {
                "move it away, or name another home with --home DIR".into()
            }
            Self::TooOpen { path, wanted, .. } => format!(
                "if you trust those who could read it, run: chmod {wanted:o} {}",
                quoted(path)
            ),
            Self::NotOurs { .. } => {
                "run as the user who owns it, or name another home with --home DIR".into()
            }
            Self::Damaged { path, .. }
            | Self::DamagedReplica { path, .. }
            | Self::MissingReplica { path } => start_over(path.parent().unwrap_or(Path::new("."))),
            Self::PacFileMissing { home } => format!(
                "put the file back from a backup if you have one; otherwise: {}",
                start_over(home)
            ),
            Self::BadConfig { path, .. } => {
                format!(
                    "correct {} with an editor (it is JSON), or put it back from a backup",
                    path.display()
                )
            }
            Self::UpdateNeeded { .. } => "update pacsync on this device".into(),
            Self::Store { source, .. } => match source {
                StoreError::InUse => {
                    "stop the other program that has it open, or `pacsync down`".into()
                }
                StoreError::Io(_) => "see that the disk is there and can be written to".into(),
                _ => "try again; if it stays, `pacsync doctor` and daemon.log say more".into(),
            },
            Self::BadRoot { path, .. } => format!(
                "make it (mkdir -p {}), mount its disk, or name another one with --root DIR",
                quoted(path)
            ),
            Self::BadWelcome { .. } => {
                "update pacsync on both devices, then pair again with a new code".into()
            }
            Self::NoRoom { .. } => "make room on the disk, then try again".into(),
            // A home that has lost a file.
            Self::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => format!(
                "put the file back from a backup if you have one; otherwise: {}",
                start_over(path.parent().unwrap_or(Path::new(".")))
            ),
            Self::Io { .. } => "see that the disk is there and that you may write to it".into(),
        }
    }
}

fn start_over(home: &Path) -> String {
    format!(
        "your files are untouched; move the home away, {}, then join again from another device of \
         the pac (`pacsync pair` there, `pacsync pair CODE` here), or, if this was its only device, \
         make a new pac with `pacsync up`; either takes up the files that are here",
        aside(home)
    )
}

fn aside(home: &Path) -> String {
    let mut away = home.as_os_str().to_owned();
    away.push(".old");
    format!("mv {} {}", quoted(home), quoted(Path::new(&away)))
}

/// For a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

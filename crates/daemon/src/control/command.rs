//! The commands that the control API sends to the device's core, and what can
//! go wrong with them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use pacsync_protocol::grant::Role;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::api::{
    AddReport, ConflictList, ConnectReport, DeletesReport, DeviceList, DoctorReport, Event,
    ForgetReport, KeepReport, KeepRequest, Listing, LogReport, PairAnswer, PairEvent, ResolveKeep,
    ResolveReport, RestoreReport, ScanReport, SpaceList, SpaceReport, Status, Stopping, UndoReport,
    VersionContents, WaitReport,
};

/// Commands that may wait for the core. People type them; a script that floods
/// is slowed down at its own connection.
const QUEUE_LEN: usize = 64;

/// Where the core answers. It is closed when the client has gone away: a core
/// that works long on a command looks at [`oneshot::Sender::is_closed`].
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// Names one run of `pair` on this daemon; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PairId(pub u64);

impl fmt::Display for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What to do about held deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeletesAction {
    /// Only say what is held.
    #[default]
    List,
    /// Let the deletes happen, marked as confirmed.
    Apply,
    /// Bring back what would have been deleted.
    Restore,
}

/// Which version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionAt {
    /// What was there at this time: milliseconds since 1970.
    Time(u64),
    /// The one whose id begins so.
    Version(String),
}

/// What `restore` is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreOrder {
    /// Which version; the one before, or the last one of what was deleted, if left out.
    pub at: Option<VersionAt>,
    /// Where to write a plain file instead.
    pub to: Option<PathBuf>,
    /// Bring back what was deleted beneath a directory.
    pub deleted: bool,
}

/// One request of a client. All paths are absolute and as the user typed them
/// below their own current directory: not canonical, symlinks not followed.
#[derive(Debug)]
pub enum Command {
    /// Says how things are. Answered at once, also while long work goes on.
    Status {
        /// Gets the answer.
        reply: Reply<Status>,
    },
    /// Tracks paths of the `home` space; replies once what is there is in the log.
    Add {
        /// At least one.
        paths: Vec<PathBuf>,
        /// Gets the answer.
        reply: Reply<AddReport>,
    },
    /// Stops tracking paths of the `home` space. Deletes nothing.
    Forget {
        /// At least one.
        paths: Vec<PathBuf>,
        /// Gets the answer.
        reply: Reply<ForgetReport>,
    },
    /// Lists what the tree holds at and beneath a path, in the order of path bytes.
    Ls {
        /// A path in the worktree of any attached space; `None` is the root of `home`.
        path: Option<PathBuf>,
        /// Goes on behind this path (relative to the space's root, as the last answer had it).
        after: Option<PathBuf>,
        /// Entries per answer, 1 to [`super::api::LS_LIMIT_MAX`].
        limit: usize,
        /// Gets the answer.
        reply: Reply<Listing>,
    },
    /// Lists the versions of what stands or stood at a path, after a look at it.
    Log {
        /// A path in the worktree of any attached space.
        path: PathBuf,
        /// Most versions in the answer.
        limit: Option<usize>,
        /// Gets the answer.
        reply: Reply<LogReport>,
    },
    /// Brings a version back; replies once it is on disk or as good as that.
    Restore {
        /// A path in the worktree of any attached space.
        path: PathBuf,
        /// What to do.
        order: RestoreOrder,
        /// Gets the answer.
        reply: Reply<RestoreReport>,
    },
    /// Takes back the newest batch of another device, or the last restore; replies once that is on
    /// disk or as good as that.
    Undo {
        /// Gets the answer.
        reply: Reply<UndoReport>,
    },
    /// Founds a space and attaches it here.
    SpaceCreate {
        /// Its display name, unique in the pac.
        name: String,
        /// The directory that becomes its root.
        at: PathBuf,
        /// Gets the answer.
        reply: Reply<SpaceReport>,
    },
    /// Gives an existing space a worktree on this device.
    SpaceAttach {
        /// Name or id of the space.
        name: String,
        /// The directory that becomes its root.
        at: PathBuf,
        /// Gets the answer.
        reply: Reply<SpaceReport>,
    },
    /// Ends the worktree of a space on this device. The files stay.
    SpaceDetach {
        /// Name or id of the space.
        name: String,
        /// Gets the answer.
        reply: Reply<SpaceReport>,
    },
    /// Tells how long a space keeps what nothing shows any more, after changing what is given.
    SpaceKeep {
        /// The space, and what to change.
        request: KeepRequest,
        /// Gets the answer.
        reply: Reply<KeepReport>,
    },
    /// Lists all spaces of the pac that this device may see.
    SpaceLs {
        /// Gets the answer.
        reply: Reply<SpaceList>,
    },
    /// Lists the devices of the pac.
    Devices {
        /// Gets the answer.
        reply: Reply<DeviceList>,
    },
    /// Keeps an address and tries it now; replies when connected or refused.
    Connect {
        /// `HOST:PORT`.
        address: String,
        /// Gets the answer.
        reply: Reply<ConnectReport>,
    },
    /// Looks at the worktree now; replies when what was found is in the log.
    Scan {
        /// What to look at; everything if empty.
        paths: Vec<PathBuf>,
        /// Gets the answer.
        reply: Reply<ScanReport>,
    },
    /// Scans, then replies when the peers report the same state applied to disk.
    /// Problems, held deletes and the timeout are [`ErrorKind::NeedsUser`] with one item each.
    Wait {
        /// Counted from receipt; none means for ever.
        timeout: Option<Duration>,
        /// Name, id or beginning of an id of the one device to wait for.
        device: Option<String>,
        /// Gets the answer.
        reply: Reply<WaitReport>,
    },
    /// Lists or settles held deletes.
    Deletes {
        /// Name or id of a space; all if `None`.
        space: Option<String>,
        /// What to do.
        action: DeletesAction,
        /// Gets the answer, which lists what was held when the command came.
        reply: Reply<DeletesReport>,
    },
    /// Lists the paths at which more than one thing stands.
    Conflicts {
        /// Only what is at or beneath this path; all spaces if `None`.
        path: Option<PathBuf>,
        /// Gets the answer.
        reply: Reply<ConflictList>,
    },
    /// Looks at a path, fetches the versions that stand there where they are not here, and hands
    /// them out.
    ConflictContents {
        /// What is in conflict.
        path: PathBuf,
        /// Gets the answer.
        reply: Reply<VersionContents>,
    },
    /// Looks at a path, fetches what is to be kept where it is not here, and settles the conflict;
    /// replies when that is in the log and, if it does not take long, on disk.
    Resolve {
        /// What is in conflict.
        path: PathBuf,
        /// What is to be there.
        keep: ResolveKeep,
        /// Gets the answer.
        reply: Reply<ResolveReport>,
    },
    /// Makes a pairing code and waits for a device. Refused while another pairing runs.
    PairStart {
        /// Chosen by the server.
        pair: PairId,
        /// What the new device becomes.
        role: Role,
        /// First [`PairEvent::Code`], last one for which [`PairEvent::is_last`] holds. A full
        /// channel means a client that does not read: `try_send`, and cancel on failure. A closed
        /// one means that the client has gone.
        events: mpsc::Sender<PairEvent>,
        /// Told `Ok` before the first event, or why there is no code.
        reply: Reply<()>,
    },
    /// Answers a [`PairEvent::Attempt`].
    PairConfirm {
        /// Which pairing.
        pair: PairId,
        /// Whether the device may come in.
        answer: PairAnswer,
        /// Told once the answer is taken; the outcome goes to the events.
        reply: Reply<()>,
    },
    /// Ends a pairing. The server also sends it, with nobody listening to the
    /// reply, when the client goes away; then the pairing may be over already.
    PairCancel {
        /// Which pairing.
        pair: PairId,
        /// Gets the answer.
        reply: Reply<()>,
    },
    /// Looks for what is wrong on this device.
    Doctor {
        /// Gets the answer.
        reply: Reply<DoctorReport>,
    },
    /// Stops the daemon in order. Replies first.
    Shutdown {
        /// Gets the answer.
        reply: Reply<Stopping>,
    },
    /// Hands out a receiver of the event stream, from now on.
    Subscribe {
        /// Gets the answer.
        reply: Reply<broadcast::Receiver<Event>>,
    },
}

/// Whose move it is after a command has failed. Decides HTTP status and exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// It was tried and did not work.
    Failed,
    /// The request makes no sense as it is.
    Usage,
    /// No daemon answers, or it is going down.
    NotRunning,
    /// This device may not do it.
    NotAuthorised,
    /// Somebody has to decide or to wait.
    NeedsUser,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Failed,
        Self::Usage,
        Self::NotRunning,
        Self::NotAuthorised,
        Self::NeedsUser,
    ];

    /// The exit code of the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotRunning => 3,
            Self::NotAuthorised => 4,
            Self::NeedsUser => 5,
        }
    }

    /// The status of the HTTP answer.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Failed => 500,
            Self::Usage => 400,
            Self::NotRunning => 503,
            Self::NotAuthorised => 403,
            Self::NeedsUser => 409,
        }
    }
}

/// Why a command failed, in words for the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// Whose move it is.
    pub kind: ErrorKind,
    /// What failed, on what: one line, no full stop.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What is concerned, one a line: paths, devices, spaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<String>,
}

impl CommandError {
    /// An error of a kind, without hint and items.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            items: Vec::new(),
        }
    }

    /// See [`ErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// See [`ErrorKind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// See [`ErrorKind::NotAuthorised`].
    pub fn not_authorised(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotAuthorised, message)
    }

    /// See [`ErrorKind::NeedsUser`].
    pub fn needs_user(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NeedsUser, message)
    }

    /// The daemon is going down and takes nothing more.
    pub fn stopping() -> Self {
        Self::new(ErrorKind::NotRunning, "the daemon is going down")
            .with_hint("start it again with `pacsync up`")
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what is concerned.
    #[must_use]
    pub fn with_items<I>(mut self, items: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.items.extend(items.into_iter().map(Into::into));
        self
    }
}

/// The core's end of the queue. `blocking_recv` is there for a core without a runtime.
pub type CoreReceiver = mpsc::Receiver<Command>;

/// The server's end of the queue of commands. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CoreHandle {
    sender: mpsc::Sender<Command>,
}

impl CoreHandle {
    /// Makes the queue.
    pub fn new() -> (Self, CoreReceiver) {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        (Self { sender }, receiver)
    }

    /// Sends a command and waits for its reply. Dropping the future drops the
    /// place to reply to; the command itself may have been taken by then.
    ///
    /// # Errors
    /// The core's error; [`CommandError::stopping`] if the core has gone or
    /// drops the command unanswered.
    pub async fn ask<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.sender
            .send(command(reply))
            .await
            .map_err(|_| CommandError::stopping())?;
        answer.await.map_err(|_| CommandError::stopping())?
    }

    /// Sends a command if there is room; it is lost otherwise.
    pub(super) fn tell(&self, command: Command) {
        if self.sender.try_send(command).is_err() {
            tracing::debug!("a command nobody waits for found no room");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_exit_code_of_the_contract() {
        let codes: Vec<u8> = ErrorKind::ALL
            .into_iter()
            .map(ErrorKind::exit_code)
            .collect();
        assert_eq!(codes, [1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn a_core_that_has_gone_is_a_daemon_going_down() {
        let (core, receiver) = CoreHandle::new();
        drop(receiver);
        let error = core
            .ask(|reply| Command::Status { reply })
            .await
            .expect_err("no core");
        assert_eq!(error, CommandError::stopping());
    }

    #[tokio::test]
    async fn a_command_dropped_unanswered_is_a_daemon_going_down() {
        let (core, mut receiver) = CoreHandle::new();
        let asked = core.ask(|reply| Command::SpaceLs { reply });
        let dropped = async { drop(receiver.recv().await) };
        let (answer, ()) = tokio::join!(asked, dropped);
        assert_eq!(answer.expect_err("no answer"), CommandError::stopping());
    }
}

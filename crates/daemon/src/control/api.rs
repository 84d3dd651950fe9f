//! The JSON of the control API: requests, answers, events. Field names are a
//! contract with scripts; `openapi.json` describes them for people.
//!
//! Fields are added, never renamed. Clients skip what they do not know. Times
//! are milliseconds since 1970, sizes bytes, ids the text form of their types.

mod conflict;
mod event;
mod history;
mod request;
mod text;

use std::net::SocketAddr;

use pacsync_protocol::grant::Role;
use serde::{Deserialize, Serialize};

use super::command::{CommandError, DeletesAction};

pub use conflict::{
    CONFLICTS_MAX, ConflictList, ConflictedPath, ContentPlace, Differs, EDIT_MAX,
    EDIT_VERSIONS_MAX, ResolveReport, VersionContent, VersionContents, VersionInfo,
};
pub use event::{Event, EventKind, PairEvent};
pub use history::{
    Kept, LogReport, LogRequest, RestoreReport, RestoreRequest, Restored, StayReason, Stayed,
    UndoReport, UndoneKind, UndonePath, UndoneWhat, Unrestored, Version, VersionKind,
};
pub use request::{
    ConflictRequest, ConflictsRequest, ConnectRequest, DeletesRequest, KeepRequest, LsRequest,
    PairAnswer, PairCancelRequest, PairConfirmRequest, PairRequest, PathsRequest, ResolveKeep,
    ResolveRequest, SpaceAtRequest, SpaceRequest, WaitRequest,
};
pub use text::{PathArg, TextPath, TextRoot};

/// Most entries that one answer to `ls` holds.
pub const LS_LIMIT_MAX: usize = 10_000;

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: CommandError,
}

/// Answer of `GET /v1/daemon`, which needs no core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Time since its start.
    pub uptime_ms: u64,
}

/// A device and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRef {
    /// Device id.
    pub id: String,
    /// Display name.
    pub name: String,
}

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Time since the daemon's start.
    pub uptime_ms: u64,
    /// This device.
    pub device: DeviceRef,
    /// Id of the pac.
    pub pac: String,
    /// Whether every connected peer, and at least one if the pac has other devices,
    /// has the same state as this device on disk, with nothing in flight, held or wrong.
    pub in_sync: bool,
    /// Where the daemon listens for peers.
    pub listen: Vec<SocketAddr>,
    /// The other devices that are connected or known.
    pub peers: Vec<PeerStatus>,
    /// All spaces that this device may see.
    pub spaces: Vec<SpaceStatus>,
    /// Paths with concurrent contents, in all spaces.
    pub conflicts: u64,
    /// Deletes that wait for the user, in all spaces.
    pub held_deletes: u64,
    /// What is wrong now. Clears itself when the cause is gone.
    pub problems: Vec<Problem>,
    /// What only the user can settle.
    pub needs_user: Vec<NeedsUser>,
    /// What happened once and is told once, e.g. files replaced at a first join.
    #[serde(default)]
    pub notices: Vec<Notice>,
    /// Devices that lack something of what this one has: until they have it or are out, nothing
    /// of it is pruned.
    #[serde(default)]
    pub hold_back: Vec<HoldBack>,
    /// Devices whose key is in use in two places.
    #[serde(default)]
    pub forks: Vec<Fork>,
}

/// A device of which two replicas wrote under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The device.
    pub device: DeviceRef,
    /// When that was first met here.
    pub since_ms: u64,
}

/// A device without which old segments could be pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldBack {
    /// The device.
    pub device: DeviceRef,
    /// Name of the space.
    pub space: String,
    /// When it last said what it has, by its own clock; absent if it never has.
    pub since_ms: Option<u64>,
}

/// Another device, as seen from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Device id.
    pub id: String,
    /// Display name.
    pub name: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Where it is connected, or was last.
    pub address: Option<SocketAddr>,
    /// Whether it last reported the same state as this device's, applied to disk.
    pub in_sync: bool,
    /// Whether this device has received all that the peer has said to hold. False without a
    /// connection.
    #[serde(default)]
    pub received: bool,
    /// When it was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ms: Option<u64>,
}

/// What a space's worktree is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpaceState {
    /// No worktree here.
    Detached,
    /// Waits for its first sponsor before it makes nodes.
    Joining,
    /// Looks for local changes.
    Scanning,
    /// Writes remote changes to disk.
    Applying,
    /// At rest.
    Idle,
}

impl SpaceState {
    /// The word in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Joining => "joining",
            Self::Scanning => "scanning",
            Self::Applying => "applying",
            Self::Idle => "idle",
        }
    }
}

/// A space, as it is on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// Space id.
    pub id: String,
    /// Display name.
    pub name: String,
    /// Root of its worktree here.
    #[serde(flatten)]
    pub root: Option<TextRoot>,
    /// Whether it has a worktree here.
    pub attached: bool,
    /// What it is busy with.
    pub state: SpaceState,
    /// Live files.
    pub files: u64,
    /// Their sizes, summed up.
    pub bytes: u64,
    /// Nodes whose state in the tree is not on disk yet.
    pub pending: u64,
    /// Contents under way.
    pub transfers: Vec<Transfer>,
    /// Paths with concurrent contents.
    pub conflicts: u64,
    /// Deletes that wait for the user.
    pub held_deletes: u64,
}

/// A content that is being fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// Bytes here.
    pub bytes_done: u64,
    /// Size of the content.
    pub bytes_total: u64,
}

/// Something that is wrong with a path or with the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Absolute path concerned.
    #[serde(flatten)]
    pub path: TextPath,
    /// What is wrong, and where possible the way out: one line.
    pub what: String,
    /// False if all that can be done is done, and the devices are in sync but for what shows: a
    /// disk that cannot hold symlinks, or takes two names for one.
    pub in_the_way: bool,
}

/// Something that only the user can settle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeedsUser {
    /// What it is about: one line.
    pub what: String,
    /// The command that lists or settles it.
    pub command: String,
}

/// Something that happened and is told once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What happened: one line.
    pub what: String,
    /// Where, at most a screenful.
    pub paths: Vec<TextPath>,
}

/// A path and whether it is tracked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// `false` for a path below a tracked one that was forgotten.
    pub tracked: bool,
}

/// Answer of `POST /v1/add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddReport {
    /// The paths as tracked now.
    pub added: Vec<TextPath>,
    /// Files beneath them that are in the log.
    pub files: u64,
    /// Their sizes, summed up.
    pub bytes: u64,
    /// What could not be taken in.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// Answer of `POST /v1/forget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetReport {
    /// The paths that are not tracked any more.
    pub forgotten: Vec<TextPath>,
}

/// Kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
}

/// One node of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// What it is.
    pub kind: EntryKind,
    /// Size of a file in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// When its content was last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ms: Option<i64>,
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Whether disk shows what the tree says.
    pub on_disk: bool,
    /// Whether there are concurrent contents.
    #[serde(default)]
    pub conflict: bool,
}

/// Answer of `POST /v1/ls`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Name of the space.
    pub space: String,
    /// Root of its worktree.
    #[serde(flatten)]
    pub root: TextRoot,
    /// What is tracked, of the whole space; empty from the second answer on
    /// and for a space that is tracked whole.
    pub tracked: Vec<Tracked>,
    /// What is there, in the order of path bytes.
    pub entries: Vec<Entry>,
    /// Whether there is more behind the last entry.
    pub more: bool,
}

/// Answer of the commands that change a space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceReport {
    /// The space after the change.
    pub space: SpaceStatus,
}

pub use pacsync_store::keep::KeepFor;

/// Answer of `POST /v1/spaces/keep`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepReport {
    /// Name of the space.
    pub space: String,
    /// How long texts up to 1 MiB are kept once nothing shows them: `forever`, or days as in `90d`.
    pub text: String,
    /// The same of all else.
    pub rest: String,
    /// Of a device's disk, what all else may take.
    pub percent: u8,
    /// Bytes of what this device keeps of all spaces.
    pub bytes: u64,
}

/// Answer of `GET /v1/spaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceList {
    /// All spaces that this device may see.
    pub spaces: Vec<SpaceStatus>,
}

/// A device of the pac.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Device id.
    pub id: String,
    /// Display name.
    pub name: String,
    /// What it is.
    #[serde(with = "role_word")]
    pub role: Role,
    /// Whether it is the one that answers.
    pub this: bool,
    /// Whether there is a connection; true for this one.
    pub connected: bool,
    /// Where it is connected, or was last.
    pub address: Option<SocketAddr>,
    /// Whether it last reported the same state as this device's, applied to disk.
    pub in_sync: bool,
    /// When it was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ms: Option<u64>,
    /// The device that let it in; none for the founder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled_by: Option<String>,
}

/// Answer of `GET /v1/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// This device first, then by name.
    pub devices: Vec<DeviceInfo>,
}

/// Answer of `POST /v1/connect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReport {
    /// Who answered.
    pub device: DeviceRef,
    /// Where.
    pub address: SocketAddr,
}

/// Answer of `POST /v1/scan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanReport {
    /// Directory entries looked at.
    pub looked_at: u64,
    /// Nodes made, changed, moved or deleted.
    pub changes: u64,
    /// What could not be read.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// Answer of `POST /v1/wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitReport {
    /// Always true; anything else is an error.
    pub in_sync: bool,
    /// The devices that reported the same state.
    pub devices: Vec<DeviceRef>,
}

/// Deletes of one space that wait for the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldDeletes {
    /// Name of the space.
    pub space: String,
    /// Which way they are held.
    pub direction: HeldDirection,
    /// Why: one line.
    pub why: String,
    /// How many.
    pub count: u64,
    /// Relative to the root of the space; the first ones where there are many.
    pub paths: Vec<TextPath>,
}

/// Which way held deletes would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldDirection {
    /// Gone from this disk, not told to the other devices.
    ToPeers,
    /// Deleted elsewhere, kept on this disk.
    ToDisk,
}

/// Answer of `POST /v1/deletes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletesReport {
    /// What was done with what is listed.
    pub action: DeletesAction,
    /// What was held when the command came.
    pub held: Vec<HeldDeletes>,
}

/// How a check of `doctor` went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// As it should be.
    Ok,
    /// Works, with a limit that the user should know.
    Warn,
    /// Does not work.
    Fail,
}

/// One check of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, e.g. `root of photos`.
    pub name: String,
    /// How it went.
    pub result: CheckResult,
    /// What was found: one line.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Answer of `GET /v1/doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

/// Answer of `POST /v1/shutdown`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// Process id of the daemon that is going down.
    pub pid: u32,
}

/// Answer where there is nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {}

/// A role as its word.
pub mod role_word {
    use pacsync_protocol::grant::Role;
    use serde::{Deserialize, Deserializer, Serializer};

    const ROLES: [Role; 4] = [Role::Admin, Role::Member, Role::Relay, Role::Guest];

    /// Finds the role that a word names.
    pub fn parse(word: &str) -> Option<Role> {
        ROLES.into_iter().find(|role| role.as_str() == word)
    }

    /// Writes the word.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(role.as_str())
    }

    /// Reads the word.
    ///
    /// # Errors
    /// If no role has this word.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
        let word = String::deserialize(deserializer)?;
        parse(&word)
            .ok_or_else(|| serde::de::Error::custom("a role is one of admin, member, relay, guest"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_shows_its_root_as_text() {
        let space = SpaceStatus {
            id: "x".into(),
            name: "home".into(),
            root: Some(TextRoot::from_bytes(b"/home/me")),
            attached: true,
            state: SpaceState::Idle,
            files: 1,
            bytes: 2,
            pending: 0,
            transfers: vec![],
            conflicts: 0,
            held_deletes: 0,
        };
        let json = serde_json::to_value(&space).expect("serializes");
        assert_eq!(json["root"], "/home/me");
        assert_eq!(json["state"], "idle");
        assert_eq!(
            serde_json::from_value::<SpaceStatus>(json).expect("reads"),
            space
        );

        let detached = SpaceStatus {
            root: None,
            attached: false,
            ..space
        };
        let json = serde_json::to_value(&detached).expect("serializes");
        assert_eq!(
            serde_json::from_value::<SpaceStatus>(json).expect("reads"),
            detached
        );
    }
}

//! Bodies and answers of `log`, `restore` and `undo`.

use serde::{Deserialize, Serialize};

use super::text::{PathArg, TextPath};
use super::{DeviceRef, EntryKind};

/// Body of `POST /v1/log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRequest {
    /// An absolute path; what was there may be deleted.
    pub path: PathArg,
    /// Versions wanted, the newest; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Body of `POST /v1/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// An absolute path; what was there may be deleted.
    pub path: PathArg,
    /// The version that was there at this time; with `deleted`, only what was deleted since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// The version with this id, or the beginning of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Writes a file here, which must not be there yet, and changes nothing in the pac.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<PathArg>,
    /// Brings back what was deleted beneath the directory `path`.
    #[serde(default)]
    pub deleted: bool,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionKind {
    /// It was made.
    Created,
    /// Its content was changed.
    Edited,
    /// An earlier content, or the file itself, was brought back.
    Restored,
    /// Concurrent edits were put together.
    Merged,
    /// It got another name or directory.
    Moved,
    /// It was deleted.
    Deleted,
}

impl VersionKind {
    /// The word in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Edited => "edited",
            Self::Restored => "restored",
            Self::Merged => "merged",
            Self::Moved => "moved",
            Self::Deleted => "deleted",
        }
    }
}

/// Where a content can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// On this device.
    Here,
    /// Not on this device; perhaps on those that are named.
    Elsewhere,
    /// No device can have it.
    NotKept,
}

/// One version of a file, or something else that happened to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The beginning of its id, for `restore --at`.
    pub version: String,
    /// Its whole id.
    pub id: String,
    /// What happened.
    pub what: VersionKind,
    /// What it is about.
    pub kind: EntryKind,
    /// When, by the clock of the device that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// The device that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceRef>,
    /// Size of the content in bytes, where one was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The name that it got, where it was made or moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<TextPath>,
    /// Whether its content is what the path shows now.
    pub shown: bool,
    /// Where the content can be had, where one was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// With `elsewhere`: who may have it, the likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRef>,
}

/// Answer of `POST /v1/log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// Name of the space.
    pub space: String,
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// Whether nothing shows at the path now.
    pub deleted: bool,
    /// Of what shows there the newest first, then of what was there before.
    pub versions: Vec<Version>,
    /// Whether there are more.
    pub more: bool,
}

/// A path that was brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// What it is.
    pub kind: EntryKind,
    /// The version whose content it has now; none for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Size of a file in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether it is on this disk already.
    pub on_disk: bool,
}

/// A path that could not be brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unrestored {
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// The version whose content no connected device has.
    pub version: String,
    /// Who may have it.
    pub devices: Vec<DeviceRef>,
}

/// Answer of `POST /v1/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Name of the space.
    pub space: String,
    /// What was brought back.
    pub restored: Vec<Restored>,
    /// What could not be.
    pub missing: Vec<Unrestored>,
    /// Where it was written instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<TextPath>,
}

/// What an undo took back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UndoneWhat {
    /// What another device changed.
    Batch,
    /// A restore on this device.
    Restore,
}

/// How a path was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UndoneKind {
    /// It has its earlier content again.
    Content,
    /// It had been deleted and is back.
    BroughtBack,
    /// It had not been there and is deleted.
    Deleted,
    /// It is where it was.
    Moved,
    /// It has its earlier permission bits again.
    Mode,
}

/// A path that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndonePath {
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// How.
    pub what: UndoneKind,
    /// Whether the disk shows it already.
    pub on_disk: bool,
}

/// Why a path stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StayReason {
    /// Somebody changed it since.
    Changed,
    /// Something else stands where it was, or in it.
    Occupied,
    /// It was in conflict before.
    Conflict,
    /// What was there before is not known any more.
    Forgotten,
}

/// A path that stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stayed {
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// Why.
    pub why: StayReason,
}

/// Answer of `POST /v1/undo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoReport {
    /// Name of the space.
    pub space: String,
    /// What was taken back.
    pub what: UndoneWhat,
    /// Who had done it.
    pub device: DeviceRef,
    /// When it had come to this device.
    pub time_ms: u64,
    /// What is as it was before.
    pub undone: Vec<UndonePath>,
    /// What stays.
    pub stayed: Vec<Stayed>,
    /// What could not be brought back for want of its content.
    pub missing: Vec<Unrestored>,
}

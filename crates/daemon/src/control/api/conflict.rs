//! Conflicts and their settling.

use serde::{Deserialize, Serialize};

use super::text::{TextPath, TextRoot};
use super::{DeviceRef, EntryKind};

/// Most paths that one answer lists.
pub const CONFLICTS_MAX: usize = 1_000;
/// Most bytes of a version that is to be edited.
pub const EDIT_MAX: u64 = 2 << 20;
/// Most versions that can be edited together.
pub const EDIT_VERSIONS_MAX: usize = 16;

/// Answer of `POST /v1/conflicts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictList {
    /// By space and path; the first ones where there are many.
    pub conflicts: Vec<ConflictedPath>,
    /// How many there are.
    pub total: u64,
}

/// A path at which more than one thing stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictedPath {
    /// Name of the space.
    pub space: String,
    /// Root of its worktree here.
    #[serde(flatten)]
    pub root: Option<TextRoot>,
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// What differs.
    pub differs: Differs,
    /// Whether one of the directories above is hidden itself, so that nothing of this shows.
    pub beneath_hidden: bool,
    /// What stands there, the shown one first.
    pub versions: Vec<VersionInfo>,
}

/// What differs at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Differs {
    /// One file or symlink has several contents.
    Contents,
    /// Several nodes claim the path, e.g. a file and a directory.
    Nodes,
}

/// One of the things at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// What `resolve` takes: the beginning of `row`.
    pub id: String,
    /// Id of the row that stands for it.
    pub row: String,
    /// Whether it is what the path shows.
    pub shown: bool,
    /// What it is.
    pub kind: EntryKind,
    /// Who wrote it.
    pub device: DeviceRef,
    /// Whether this device did, maybe beside others.
    pub mine: bool,
    /// When it was written, by the writer's clock.
    pub time_ms: u64,
    /// Bytes; none for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// When the content was last changed; none for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ms: Option<i64>,
    /// Where the content is.
    pub content: ContentPlace,
    /// The devices that should have it, where it is elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<DeviceRef>,
}

/// Where a content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContentPlace {
    /// On this device.
    Here,
    /// On other devices.
    Elsewhere,
    /// Overwritten where it was written, before it was kept anywhere that is known.
    NotKept,
}

/// Answer of `POST /v1/resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveReport {
    /// Name of the space.
    pub space: String,
    /// Relative to the root of the space.
    #[serde(flatten)]
    pub path: TextPath,
    /// The version that is at the path now; none where an edited content is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// What stands beside it now, relative to the root of the space.
    pub beside: Vec<TextPath>,
    /// Whether the disk of this device shows it already.
    pub on_disk: bool,
}

/// Answer of `POST /v1/conflicts/contents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionContents {
    /// The path and its versions.
    pub conflict: ConflictedPath,
    /// Their contents, in the same order.
    pub contents: Vec<VersionContent>,
    /// What all of them were made from, where that is one content and is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<VersionContent>,
}

/// The content of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionContent {
    /// The version.
    pub id: String,
    /// Its bytes in base64.
    #[serde(with = "super::text::base64_bytes")]
    pub bytes: Vec<u8>,
}

//! The bodies of requests. Unknown fields are refused: they are spelling mistakes.

use pacsync_protocol::grant::Role;
use serde::{Deserialize, Serialize};

use super::role_word;
use super::text::PathArg;
use crate::control::command::{DeletesAction, PairId};

/// Body of `POST /v1/add`, `/v1/forget` and `/v1/scan`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathsRequest {
    /// Absolute paths.
    #[serde(default)]
    pub paths: Vec<PathArg>,
}

/// Body of `POST /v1/ls`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LsRequest {
    /// An absolute path; the root of `home` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathArg>,
    /// The last entry's path of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<PathArg>,
    /// Entries wanted; [`LS_LIMIT_MAX`](super::LS_LIMIT_MAX) if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Body of `POST /v1/spaces` and `/v1/spaces/attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceAtRequest {
    /// Name of the space; for attach also its id.
    pub name: String,
    /// Absolute path of its root directory.
    pub at: PathArg,
}

/// Body of `POST /v1/spaces/detach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceRequest {
    /// Name or id of the space.
    pub name: String,
}

/// Body of `POST /v1/spaces/keep`. What is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepRequest {
    /// Name or id of the space.
    pub name: String,
    /// Of texts up to 1 MiB: `forever`, or days as in `90d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Of all else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<String>,
    /// Of a device's disk, what all else may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
}

/// Body of `POST /v1/connect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    /// `HOST:PORT`.
    pub address: String,
}

/// Body of `POST /v1/wait`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitRequest {
    /// Gives up after this time; never if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Waits for this device only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// Body of `POST /v1/deletes`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeletesRequest {
    /// Name or id of a space; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<String>,
    /// What to do; `list` if left out.
    #[serde(default)]
    pub action: DeletesAction,
}

/// Body of `POST /v1/conflicts`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConflictsRequest {
    /// An absolute path: only what is at or beneath it. All spaces if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathArg>,
}

/// Body of `POST /v1/conflicts/contents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConflictRequest {
    /// Absolute path of what is in conflict.
    pub path: PathArg,
}

/// Body of `POST /v1/resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// Absolute path of what is in conflict.
    pub path: PathArg,
    /// What is to be at the path.
    pub keep: ResolveKeep,
}

/// What is to be at a path that is in conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ResolveKeep {
    /// `mine`, `theirs`, `both`, or the beginning of a version's id.
    Version(String),
    /// A content that was made from the versions.
    Edited {
        /// Its bytes in base64.
        #[serde(with = "super::text::base64_bytes")]
        bytes: Vec<u8>,
        /// Rows of all versions that it was made from; if there are others now, nothing is done.
        seen: Vec<String>,
    },
}

/// Body of `POST /v1/pair`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairRequest {
    /// What the new device becomes; `member` if left out.
    #[serde(default = "member", with = "role_word")]
    pub role: Role,
}

fn member() -> Role {
    Role::Member
}

/// Body of `POST /v1/pair/confirm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairConfirmRequest {
    /// The number from the `code` event.
    pub pair: PairId,
    /// Whether the device may come in.
    pub answer: PairAnswer,
}

/// What is said about a device that wants to come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairAnswer {
    /// A person saw its name and id, and lets it in.
    Accept,
    /// It comes in by an order given beforehand, which never makes an admin.
    AcceptUnasked,
    /// It stays out.
    Reject,
}

/// Body of `POST /v1/pair/cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairCancelRequest {
    /// The number from the `code` event.
    pub pair: PairId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pairing_makes_a_member_unless_told() {
        let request: PairRequest = serde_json::from_str("{}").expect("reads");
        assert_eq!(request.role, Role::Member);
        let request: PairRequest = serde_json::from_str(r#"{"role":"admin"}"#).expect("reads");
        assert_eq!(request.role, Role::Admin);
        assert!(serde_json::from_str::<PairRequest>(r#"{"role":"king"}"#).is_err());
    }
}

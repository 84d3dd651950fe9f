//! What the daemon tells as it happens: the event stream and the run of a pairing.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::text::TextPath;
use crate::control::command::PairId;

/// One thing that happened. In JSON the fields of its kind stand beside `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up by one from the daemon's start; a gap means that events were missed.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// A device of the pac is connected.
    PeerConnected {
        /// Device id.
        device: String,
        /// Display name.
        name: String,
        /// Where it is.
        address: SocketAddr,
    },
    /// A connection has ended.
    PeerDisconnected {
        /// Device id.
        device: String,
        /// Display name.
        name: String,
        /// Why.
        why: String,
    },
    /// A device has been let in.
    DeviceEnrolled {
        /// Device id.
        device: String,
        /// Display name.
        name: String,
    },
    /// Local changes are in the log.
    Recorded {
        /// Name of the space.
        space: String,
        /// How many nodes.
        changes: u64,
    },
    /// A remote change is on disk.
    Applied {
        /// Name of the space.
        space: String,
        /// Relative to the root of the space.
        #[serde(flatten)]
        path: TextPath,
    },
    /// How far long work is; a few times a second at most.
    Progress {
        /// Name of the space.
        space: String,
        /// `scanning`, `applying` or `fetching`.
        phase: String,
        /// Nodes done.
        done: u64,
        /// Nodes in all, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
        /// Bytes done.
        bytes_done: u64,
        /// Bytes in all, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes_total: Option<u64>,
    },
    /// `in_sync` of the status has changed.
    InSync {
        /// What it is now.
        in_sync: bool,
    },
    /// Something went wrong with a path.
    Problem {
        /// Absolute path concerned.
        #[serde(flatten)]
        path: TextPath,
        /// What is wrong.
        what: String,
    },
    /// A problem is gone.
    ProblemCleared {
        /// Absolute path concerned.
        #[serde(flatten)]
        path: TextPath,
    },
    /// A path has concurrent contents.
    Conflict {
        /// Name of the space.
        space: String,
        /// Relative to the root of the space.
        #[serde(flatten)]
        path: TextPath,
    },
    /// The number of paths in conflict has changed.
    Conflicts {
        /// Name of the space.
        space: String,
        /// How many there are now.
        count: u64,
    },
    /// Deletes wait for the user.
    DeletesHeld {
        /// Name of the space.
        space: String,
        /// How many.
        count: u64,
    },
    /// The key of a device is in use in two places: its log has forked.
    Forked {
        /// Device id.
        device: String,
        /// Display name.
        name: String,
    },
    /// This device writes new logs: its own went on elsewhere.
    Renewed,
    /// A space was made, attached, detached or has changed its state.
    Space {
        /// Name of the space.
        space: String,
        /// What happened.
        what: String,
    },
    /// This reader was too slow. Made by the server; its `seq` is the one before the next event's.
    Lagged {
        /// Events that are lost to this reader.
        missed: u64,
    },
    /// The daemon is going down; nothing comes after it.
    Stopping,
}

/// How a pairing goes, seen from the device that shows the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PairEvent {
    /// The code lives. Always the first.
    Code {
        /// To be sent back with a confirmation.
        pair: PairId,
        /// What the user types on the other device.
        code: String,
        /// Where this device can be reached.
        addresses: Vec<SocketAddr>,
        /// When the code ends, in milliseconds since 1970.
        expires_ms: u64,
    },
    /// Somebody has the right code and waits for a confirmation.
    Attempt {
        /// What the device calls itself; not to be trusted.
        name: String,
        /// Its device id, proved.
        device: String,
    },
    /// Somebody had a wrong code, which burned it.
    WrongCode,
    /// Nobody came in time.
    Expired,
    /// Somebody's turn was ended by the user or by the client going away.
    Cancelled,
    /// The device is in.
    Enrolled {
        /// Display name.
        name: String,
        /// Device id.
        device: String,
    },
    /// It came to nothing for another reason.
    Failed {
        /// What failed: one line.
        why: String,
    },
}

impl PairEvent {
    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Code { .. } | Self::Attempt { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event {
            seq: 7,
            at_ms: 1,
            kind: EventKind::Applied {
                space: "home".into(),
                path: TextPath::from_bytes(b"a\xff"),
            },
        };
        let json = serde_json::to_value(&event).expect("serializes");
        assert_eq!(json["seq"], 7);
        assert_eq!(json["kind"], "applied");
        assert_eq!(json["path_bytes"], "Yf8=");
        assert_eq!(serde_json::from_value::<Event>(json).expect("reads"), event);
    }

    #[test]
    fn the_first_pairing_event_has_the_code_at_its_top() {
        let event = PairEvent::Code {
            pair: PairId(3),
            code: "1234-alpha-beta".into(),
            addresses: vec![],
            expires_ms: 9,
        };
        let json = serde_json::to_value(&event).expect("serializes");
        assert_eq!(json["code"], "1234-alpha-beta");
        assert!(!event.is_last());
        assert!(PairEvent::WrongCode.is_last());
    }
}

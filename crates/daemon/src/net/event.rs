//! What the network tells its consumer, and the words both sides use.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use pacsync_protocol::{DeviceId, wire};
use tokio::sync::OwnedSemaphorePermit;

/// Names one connection of this process; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub(super) u64);

impl ConnId {
    /// Names a connection of another network than this one, such as a simulated one.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// One of the two streams of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Rows, vectors, requests: small and urgent, sent first.
    State,
    /// File content.
    Content,
}

impl Lane {
    /// Both lanes, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::State, Self::Content];

    /// The longest payload of a frame, in bytes: what the protocol's messages there may have.
    pub const fn frame_max(self) -> usize {
        match self {
            Self::State => wire::Lane::State.frame_max(),
            Self::Content => wire::Lane::Content.frame_max(),
        }
    }

    /// The byte that opens the lane's stream.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::State => 0,
            Self::Content => 1,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.number() == number)
    }

    /// Of two streams with data, QUIC sends the one of higher priority first.
    pub(super) fn priority(self) -> i32 {
        match self {
            Self::State => 1,
            Self::Content => 0,
        }
    }

    /// Bytes of received frames that may wait for the consumer.
    pub(super) fn receive_budget(self) -> u32 {
        match self {
            Self::State => 2 << 20,
            Self::Content => 3 << 20,
        }
    }
}

/// What this device's roster says about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerStanding {
    /// A device of the pac.
    Known,
    /// Not in the roster that is held here. Let in as a client with a valid tag:
    /// it may be newer than the roster.
    Unknown,
    /// Not to be talked to, e.g. revoked.
    Refused,
}

/// Answers for a key; asked in each handshake, on the network's thread, so it must not block.
pub type StandingOf = Arc<dyn Fn(&DeviceId) -> PeerStanding + Send + Sync>;

/// Which side opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer connected to this device.
    Incoming,
    /// This device connected.
    Outgoing,
}

/// The code that goes over the wire when a connection is closed on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// 0: nothing more to say, or going down.
    Done,
    /// 1: another connection between the two devices is kept instead.
    Superseded,
    /// 2: the peer broke the protocol.
    Violation,
    /// 3: the peer is not to be talked to.
    Refused,
    /// 4: something failed here.
    Internal,
    /// Any other number, from a newer version.
    Other(u32),
}

impl CloseCode {
    pub(super) fn to_var_int(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(match self {
            Self::Done => 0,
            Self::Superseded => 1,
            Self::Violation => 2,
            Self::Refused => 3,
            Self::Internal => 4,
            Self::Other(code) => code,
        })
    }

    pub(super) fn from_var_int(code: quinn::VarInt) -> Self {
        match code.into_inner() {
            0 => Self::Done,
            1 => Self::Superseded,
            2 => Self::Violation,
            3 => Self::Refused,
            4 => Self::Internal,
            other => Self::Other(u32::try_from(other).unwrap_or(u32::MAX)),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The peer closed it.
    #[error("closed by the peer ({code:?}): {text}")]
    PeerClosed {
        /// The peer's code.
        code: CloseCode,
        /// The peer's words, shortened; not to be trusted.
        text: String,
    },
    /// [`NetHandle::close`](super::NetHandle::close) or the endpoint's shutdown closed it.
    #[error("closed here ({0:?})")]
    WeClosed(CloseCode),
    /// Nothing was heard for the idle timeout.
    #[error("the peer has gone silent")]
    TimedOut,
    /// The peer broke the rules; the connection was closed for it.
    #[error("the peer broke the protocol: {0}")]
    BadPeer(String),
    /// The connection was reset or failed in the transport.
    #[error("the connection was lost: {0}")]
    Lost(String),
}

/// Why no connection came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectFailure {
    /// Nothing answered in time.
    #[error("no answer")]
    NoAnswer,
    /// The other side ended the handshake: a device of another pac, or one that refuses this device.
    #[error("refused by the other side: {0}")]
    Refused(String),
    /// The address is one's own.
    #[error("this address belongs to this device itself")]
    Ourselves,
    /// Another device than the expected one answers at the address.
    #[error("another device answers there: {}", found.short())]
    WrongDevice {
        /// The device that answered.
        found: DeviceId,
    },
    /// The answering device is not in the roster, or is refused by it.
    #[error("the device that answers there is not one of this pac: {}", .0.short())]
    NotOfThisPac(DeviceId),
    /// The other side does not keep to the protocol.
    #[error("the other side broke the protocol: {0}")]
    BadPeer(String),
    /// The attempt failed on this side, e.g. an address of a family that is not bound.
    #[error("cannot connect from here: {0}")]
    Local(String),
}

/// Room in a lane's receive budget that a frame takes up while it waits.
/// Dropping it lets the lane read on.
pub struct Credit {
    pub(super) _permit: OwnedSemaphorePermit,
}

impl fmt::Debug for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credit")
    }
}

/// What happened on the network. For one connection the order is `Connected`, any
/// number of `Frame` and `Drained`, `Closed`.
#[derive(Debug)]
pub enum NetEvent {
    /// The handshake is complete on both sides.
    Connected {
        /// The new connection.
        conn: ConnId,
        /// The peer's proved key.
        device: DeviceId,
        /// `Known`, or `Unknown` for an incoming connection.
        standing: PeerStanding,
        /// Where the peer is.
        address: SocketAddr,
        /// Who connected.
        direction: Direction,
    },
    /// A frame has arrived.
    Frame {
        /// The connection.
        conn: ConnId,
        /// The lane; order holds within one.
        lane: Lane,
        /// The payload, at most [`Lane::frame_max`] bytes.
        bytes: Vec<u8>,
        /// To be dropped when the payload has been dealt with.
        credit: Credit,
    },
    /// A lane whose queue had filled past the high mark has fallen below the low mark.
    Drained {
        /// The connection.
        conn: ConnId,
        /// The lane.
        lane: Lane,
    },
    /// The connection is over; nothing more comes from it. Left out when the
    /// channel is full at shutdown.
    Closed {
        /// The connection.
        conn: ConnId,
        /// The peer.
        device: DeviceId,
        /// Why.
        reason: CloseReason,
    },
    /// Another device of the pac announces itself on the LAN, or has changed its addresses.
    PeerFound {
        /// Its random name of this run.
        instance: String,
        /// Where it listens, the likeliest first.
        addresses: Vec<SocketAddr>,
    },
    /// An attempt by [`NetHandle::connect`](super::NetHandle::connect) came to nothing.
    ConnectFailed {
        /// The address that was tried.
        address: SocketAddr,
        /// Why.
        why: ConnectFailure,
    },
}

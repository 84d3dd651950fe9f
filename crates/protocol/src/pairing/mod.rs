//! Pairing: how a device that knows nothing of a pac becomes one of its devices,
//! by a short code that one person reads here and types there.
//!
//! The host makes an [`Offer`] and shows its [`PairingCode`]. A joiner connects,
//! and then:
//!
//! ```text
//! Joiner                                     Offer / Host
//!   Hello {version, keys, name, SPAKE2}  ──►   code is spent here
//!   ◄──  Answer {keys, name, SPAKE2, role}
//!   Confirm {MAC, signature}             ──►   wrong MAC: both sides are told
//!   ◄──  Confirm {MAC, signature}
//!        both users see who and what, and agree or refuse
//!   Agree                                ──►   the daemon makes the grant durable
//!   ◄──  Welcome {founding record, roster keys, addresses …}, Roster …
//!   Done                                 ──►
//! ```
//!
//! Each message is one frame of at most [`FRAME_LEN_MAX`] bytes; the caller frames
//! them on the stream and reads no longer frame than `frame_len_max()` says.
//! Either side may end it at any point with `Refuse {reason}`. After every call,
//! also a failed one, the caller drains `poll_output`: the last output of a
//! failure tells the other side.
//!
//! Why SPAKE2's own identities are constants: the joiner sends its share before
//! it can know the host's keys, and the library fixes identities at the start. So
//! the device keys of both sides enter the transcript instead, as part of
//! both first messages, from which (with the SPAKE2 result) the confirmation keys
//! are derived. Who was given other keys derives other ones, and the MACs fail.
//!
//! Never here: sockets, time (`now_ms` is any clock that does not go back), the
//! code's announcement (that is [`crate::beacon`]), the roster's verification.

mod code;
mod host;
mod joiner;
mod message;
mod schedule;
#[cfg(test)]
mod tests;

pub use code::{CodeError, PairingCode};
pub use host::{Host, Offer, Refused};
pub use joiner::Joiner;

use crate::cbor::{self, DecodeError};
use crate::crypto::Key;
use crate::grant::Role;
use crate::identity::{DeviceName, DevicePublic, FoundingError, VerifiedFounding};
use crate::segment;
use message::{Message, Reason};

pub use message::SpaceHint;

/// The ALPN protocol of pairing connections.
pub const ALPN: &[u8] = b"pacsync-pair/1";
/// Label under which both sides export the 32 bytes that bind pairing to its
/// TLS connection; the context is empty.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-pacsync-pair/1";
/// Longest frame in bytes.
pub const FRAME_LEN_MAX: usize = 1 << 20;
/// Longest frame in bytes that a peer may send before it has proved anything.
pub const STRANGER_FRAME_LEN_MAX: usize = 1024;
/// How long a code may be answered, in milliseconds.
pub const CODE_LIFE_MS: u64 = 10 * 60 * 1000;
/// Longest time in milliseconds for the part in which no person takes part.
pub const HANDSHAKE_MS_MAX: u64 = 30 * 1000;
/// Longest time in milliseconds for both users to decide.
pub const DECISION_MS_MAX: u64 = 10 * 60 * 1000;
/// Longest time in milliseconds for the host to get, or the joiner to be given,
/// what a new device needs.
pub const DELIVERY_MS_MAX: u64 = 10 * 60 * 1000;
/// Most bytes of roster segments in a welcome.
pub const ROSTER_LEN_MAX: usize = 64 << 20;
/// Most roster segments in a welcome.
pub const ROSTER_SEGMENTS_MAX: usize = 1 << 18;
/// Most addresses in a welcome.
pub const ADDRESSES_MAX: usize = 64;
/// Longest address in bytes.
pub const ADDRESS_LEN_MAX: usize = 256;
/// Most space hints in a welcome.
pub const SPACES_MAX: usize = 1024;
/// Longest name in a space hint, in bytes.
pub const SPACE_NAME_LEN_MAX: usize = 256;

/// A secret that both ends of one TLS connection export from it, and nobody else
/// can: see [`EXPORTER_LABEL`].
pub type Exporter = [u8; 32];

/// What a machine asks of its caller, in order.
#[derive(Debug)]
pub enum Output {
    /// Send this frame.
    Send(Vec<u8>),
    /// The other side knows the code: show who it is and ask the user.
    Peer(Peer),
    /// Host only: both users agree. Write the grant, make it durable, then call
    /// [`Host::deliver`], or [`Host::abort`] if that fails.
    Grant(Peer),
    /// Joiner only: all that a new device needs. Verify the roster, make all durable,
    /// then call [`Joiner::stored`], or [`Joiner::abort`] if it does not hold.
    Welcome(Box<Welcome>),
    /// All is done, on both sides.
    Finished,
}

/// The other side of a pairing, and what the joiner is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What its owner calls it.
    pub name: DeviceName,
    /// Its keys, which it has proved to hold.
    pub device: DevicePublic,
    /// The joiner's role.
    pub role: Role,
}

/// Who agreed that a device is granted its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// A person who saw the other side's name and id.
    Person,
    /// An order given beforehand. It never makes an admin.
    Standing,
}

/// The keys of the roster that a role holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RosterKeys {
    /// Reads all of the roster.
    Full {
        /// Opens roster segments.
        roster: Key,
        /// Opens the private parts of grants.
        private: Key,
    },
    /// A relay's: private parts stay closed.
    Relay {
        /// Opens roster segments.
        roster: Key,
    },
}

impl RosterKeys {
    fn fit(&self, role: Role) -> bool {
        matches!(self, Self::Relay { .. }) == (role == Role::Relay)
    }
}

/// All that a new device needs, and the first it hears about the pac.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Names the pac and its root. Its signature is checked.
    pub founding: VerifiedFounding,
    /// The roster's keys, as the role may have them.
    pub keys: RosterKeys,
    /// All roster logs, the new grant among them, as stored bytes; not verified.
    /// The order is the host's: dependencies first.
    pub segments: Vec<Vec<u8>>,
    /// Where the host can be reached.
    pub addresses: Vec<String>,
    /// Which space is which; empty for a relay.
    pub spaces: Vec<SpaceHint>,
}

impl Welcome {
    fn check(&self, role: Role) -> Result<(), PairingError> {
        if !self.keys.fit(role) {
            return Err(PairingError::Misuse("the roster keys do not fit the role"));
        }
        if role == Role::Relay && !self.spaces.is_empty() {
            return Err(PairingError::Misuse("a relay is told no space names"));
        }
        if self.segments.iter().any(Vec::is_empty) {
            return Err(PairingError::Misuse("an empty roster segment"));
        }
        check_addresses(&self.addresses)?;
        check_spaces(&self.spaces)?;
        for segment in &self.segments {
            cbor::at_most("roster segment", segment.len(), segment::SEGMENT_MAX)?;
        }
        check_roster_size(
            self.segments.len(),
            self.segments.iter().map(Vec::len).sum(),
        )
    }
}

fn check_addresses(addresses: &[String]) -> Result<(), PairingError> {
    cbor::at_most("address list", addresses.len(), ADDRESSES_MAX)?;
    for address in addresses {
        cbor::at_most("address", address.len(), ADDRESS_LEN_MAX)?;
    }
    Ok(())
}

fn check_spaces(spaces: &[SpaceHint]) -> Result<(), PairingError> {
    cbor::at_most("space list", spaces.len(), SPACES_MAX)?;
    for space in spaces {
        cbor::at_most("space name", space.name.len(), SPACE_NAME_LEN_MAX)?;
    }
    Ok(())
}

fn check_roster_size(segments: usize, bytes: usize) -> Result<(), PairingError> {
    if segments == 0 {
        return Err(PairingError::Misuse("a roster without segments"));
    }
    cbor::at_most("roster segment count", segments, ROSTER_SEGMENTS_MAX)?;
    cbor::at_most("roster", bytes, ROSTER_LEN_MAX)?;
    Ok(())
}

/// Why pairing ended, or a call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairingError {
    /// The two sides have different codes, or somebody stands between them.
    #[error("the pairing code was wrong; it cannot be tried again, ask for a new one")]
    WrongCode,
    /// Somebody has used the code before.
    #[error("the pairing code was used already; ask for a new one")]
    Spent,
    /// The code's time, or that of a step, is over.
    #[error("pairing took too long; ask for a new code")]
    Expired,
    /// The user of the other device said no.
    #[error("the other device refused to pair")]
    RejectedByPeer,
    /// The other device could not do its part.
    #[error("the other device could not finish pairing; its log says why")]
    PeerFailed,
    /// The other device says that this one broke the rules of pairing.
    #[error("the other device did not accept what this one sent")]
    RefusedByPeer,
    /// The other device speaks another version of the protocol.
    #[error("the other device speaks another version of pairing: update the older one")]
    Version,
    /// The two ends of the connection are one device.
    #[error("a device cannot be paired with itself")]
    SameDevice,
    /// The bytes are no message, or a field is outside its bounds.
    #[error("pairing: {0}")]
    Decode(#[from] DecodeError),
    /// The founding record does not verify.
    #[error("pairing: {0}")]
    Founding(#[from] FoundingError),
    /// The peer broke a rule.
    #[error("the other device broke the rules of pairing: {0}")]
    Misbehaved(&'static str),
    /// An admin is made by a person only; pairing goes on.
    #[error("an admin must be confirmed by a person")]
    NeedsPerson,
    /// The caller asked for what cannot be now, or gave what cannot be sent; pairing goes on.
    #[error("pairing: {0}")]
    Misuse(&'static str),
    /// Pairing has ended.
    #[error("pairing has ended")]
    Over,
}

impl PairingError {
    /// What the other side is told, if anything.
    fn reason(&self) -> Option<Reason> {
        match self {
            Self::WrongCode => Some(Reason::WrongCode),
            Self::Spent => Some(Reason::Spent),
            Self::Expired => Some(Reason::Expired),
            Self::Version => Some(Reason::Version),
            Self::SameDevice | Self::Decode(_) | Self::Founding(_) | Self::Misbehaved(_) => {
                Some(Reason::Protocol)
            }
            Self::RejectedByPeer
            | Self::PeerFailed
            | Self::RefusedByPeer
            | Self::NeedsPerson
            | Self::Misuse(_)
            | Self::Over => None,
        }
    }

    fn told(reason: Reason) -> Self {
        match reason {
            Reason::WrongCode => Self::WrongCode,
            Reason::Spent => Self::Spent,
            Reason::Expired => Self::Expired,
            Reason::Version => Self::Version,
            Reason::Rejected => Self::RejectedByPeer,
            Reason::Failed => Self::PeerFailed,
            Reason::Protocol => Self::RefusedByPeer,
        }
    }
}

fn refuse(reason: Reason) -> Vec<u8> {
    Message::Refuse(reason).encode()
}

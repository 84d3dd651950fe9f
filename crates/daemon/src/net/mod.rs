//! The network: one QUIC endpoint, the handshake that lets in only devices of
//! the pac, two lanes of frames per connection, and discovery over mDNS.
//!
//! Here bytes have a sender but no meaning. Never here: what a frame says, the
//! roster (a function answers for each key), which of two connections to keep,
//! when to connect again.
//!
//! - [`Endpoint`] is bound once; [`NetHandle`] is its cheap, non-blocking front
//!   for any thread; what happens comes back as [`NetEvent`]s over one bounded
//!   channel.
//! - `tls` decides who is answered at all, `handshake` lets in and connects, `connection` owns an established
//!   peer, `frame` cuts streams into frames, `pairing` and `discovery` serve
//!   devices that are still looking for each other.

mod connection;
mod discovery;
mod endpoint;
mod event;
mod frame;
mod handshake;
mod pairing;
mod socket;
mod tls;

pub use discovery::find_pairing_host;
pub use endpoint::{Discovery, Endpoint, NetConfig, NetError, NetHandle, SendError};
pub use event::{
    CloseCode, CloseReason, ConnId, ConnectFailure, Credit, Direction, Lane, NetEvent,
    PeerStanding, StandingOf,
};
pub use frame::{FrameError, FrameReader, write_frame};
pub use pairing::{PairingClient, PairingSlot, connect_pairing, exporter};
pub use socket::try_bind;
pub use tls::TlsError;

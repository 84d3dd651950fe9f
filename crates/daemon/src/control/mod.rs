//! The control API: HTTP/JSON and server-sent events on a Unix socket in the
//! daemon's home.
//!
//! - [`api`] has the JSON of every request and answer; its field names are a contract.
//! - [`command`] is the seam to the core: each request becomes one [`Command`]
//!   with a place to reply to, sent over the bounded [`CoreHandle`].
//! - [`socket`] binds and finds the socket; [`server`] maps HTTP to commands.
//! - `openapi.json` describes the whole, and a test holds the routes to it.
//!
//! Never here: what a command does, the replica, the network, terminal output.

pub mod api;
pub mod command;
pub mod server;
pub mod socket;

mod pairing;
mod routes;

pub use command::{
    Command, CommandError, CoreHandle, CoreReceiver, DeletesAction, ErrorKind, PairId, Reply,
    RestoreOrder, VersionAt,
};
pub use server::{ServeError, serve};
pub use socket::{ControlSocket, SocketError};

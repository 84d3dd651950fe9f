//! Connections between a device that shows a pairing code and one that joins.
//! They carry one stream that the joiner opens; what is said on it is not known here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pacsync_protocol::beacon;
use pacsync_protocol::crypto::random;
use quinn::ClientConfig;
use rand_core::OsRng;
use tokio::sync::mpsc;

use super::endpoint::NetError;
use super::event::{CloseCode, ConnectFailure};
use super::handshake::{self, HANDSHAKE_TIMEOUT};
use super::socket;
use super::tls::{self, Accept, Verdict};

/// How long a closed endpoint waits for its last packets.
const FLUSH: Duration = Duration::from_millis(500);
/// Streams that the joiner may open.
pub(super) const PAIRING_STREAMS: u8 = 1;

/// Lets joiners in while a code lives; given to
/// [`NetHandle::set_pairing`](super::NetHandle::set_pairing).
#[derive(Debug, Clone)]
pub struct PairingSlot {
    /// The code's public number.
    pub slot: u16,
    /// Takes the joiners' connections; who finds it full or closed is refused.
    pub accepted: mpsc::Sender<quinn::Connection>,
}

/// A joiner's connection, with the endpoint that it runs on.
#[derive(Debug)]
pub struct PairingClient {
    connection: quinn::Connection,
    endpoint: quinn::Endpoint,
}

impl PairingClient {
    /// The connection. The joiner opens its only stream.
    pub fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// Closes the connection and waits for the close to be on its way.
    pub async fn close(self, code: CloseCode, text: &str) {
        self.connection.close(code.to_var_int(), text.as_bytes());
        // The peer may be gone already.
        let _ = tokio::time::timeout(FLUSH, self.endpoint.wait_idle()).await;
    }
}

/// Connects to the device that shows a code with this slot, from a socket of its own.
///
/// # Errors
/// [`NetError::Pairing`] when nobody with a live code of this slot answers at the
/// address; others when no socket can be had.
pub async fn connect_pairing(address: SocketAddr, slot: u16) -> Result<PairingClient, NetError> {
    let failed = |why| NetError::Pairing { address, why };
    let certificate = tls::certify_throwaway()?;
    let crypto = tls::client_config(
        certificate,
        tls::ALPN_PAIR,
        Accept::Anyone,
        Verdict::default(),
    )?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(socket::transport_config(0));

    let endpoint = quinn::Endpoint::new(
        socket::endpoint_config(),
        None,
        socket::bind(None)?,
        Arc::new(quinn::TokioRuntime),
    )
    .map_err(|source| NetError::Start { source })?;
    let name = beacon::server_name(&beacon::slot_key(slot), random(&mut OsRng));
    let connecting = endpoint
        .connect_with(config, address, &name)
        .map_err(|error| failed(ConnectFailure::Local(error.to_string())))?;
    let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| failed(ConnectFailure::NoAnswer))?
        .map_err(|error| failed(handshake::failure_of(error, None)))?;
    Ok(PairingClient {
        connection,
        endpoint,
    })
}

/// Derives 32 bytes that both ends of a connection share and nobody else has.
pub fn exporter(connection: &quinn::Connection, label: &str) -> [u8; 32] {
    let mut shared = [0; 32];
    connection
        .export_keying_material(&mut shared, label.as_bytes(), b"")
        .expect("a connection is handed out after its handshake, and 32 bytes are within bounds");
    shared
}

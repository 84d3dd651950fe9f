//! The endpoint: binding, its front for other threads, and going down in order.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pacsync_protocol::crypto::{Key, SigningKey};
use pacsync_protocol::{DeviceId, beacon};
use quinn::ServerConfig;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connections;
use super::discovery;
use super::event::{CloseCode, ConnId, ConnectFailure, Lane, NetEvent, StandingOf};
use super::handshake::{HANDSHAKES_MAX, Shared};
use super::pairing::PairingSlot;
use super::socket;
use super::tls::{self, PairingTag, PairingTagCell, TlsError};

/// How long the last packets may take at shutdown.
const FLUSH: Duration = Duration::from_secs(1);

/// Whether to announce and look for devices on the LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// Announce this device by mDNS and report others.
    On,
    /// Neither.
    Off,
}

/// What an endpoint needs.
pub struct NetConfig {
    /// Where to listen; `None` is any port on all addresses.
    pub listen: Option<SocketAddr>,
    /// The device's key in this pac.
    pub key: SigningKey,
    /// The pac's discovery key.
    pub discovery_key: Key,
    /// Answers for peers' keys.
    pub standing: StandingOf,
    /// Whether mDNS is used.
    pub discovery: Discovery,
    /// Takes the events. A full channel holds back all connections, so a few tens of places do.
    pub events: mpsc::Sender<NetEvent>,
}

impl fmt::Debug for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetConfig")
            .field("listen", &self.listen)
            .field("key", &self.key)
            .field("discovery", &self.discovery)
            .finish_non_exhaustive()
    }
}

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another program holds the port.
    #[error(
        "cannot listen on {address}: the port is in use; stop the program that holds it, or choose another address with --listen"
    )]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be bound for another reason.
    #[error("cannot listen on {address}; choose an address of this machine with --listen")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The bound socket is of no use to QUIC.
    #[error("cannot start the network on the bound socket")]
    Start {
        /// The system's reason.
        source: io::Error,
    },
    /// Certificates or TLS settings failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No pairing host could be reached at the address.
    #[error("no device shows this code at {address}: {why}")]
    Pairing {
        /// The address.
        address: SocketAddr,
        /// What happened.
        why: ConnectFailure,
    },
    /// mDNS cannot be used on this machine.
    #[error("cannot look for devices on the local network: {reason}")]
    Discovery {
        /// The mDNS library's reason.
        reason: String,
    },
    /// The endpoint is going down.
    #[error("the network is going down")]
    Closed,
}

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no such connection any more.
    #[error("the connection is closed")]
    Closed,
    /// The lane's queue is full: the sender did not hold back.
    #[error("{waiting} bytes wait to be sent already")]
    Full {
        /// Bytes in the queue.
        waiting: u64,
    },
    /// The payload is over [`Lane::frame_max`].
    #[error("a frame of {length} bytes, over the limit of {limit}")]
    TooLong {
        /// The payload's length in bytes.
        length: usize,
        /// The lane's limit in bytes.
        limit: usize,
    },
}

/// The network of one device in one pac.
pub struct Endpoint {
    handle: NetHandle,
    local: SocketAddr,
}

/// A cheap front of the endpoint. Its methods return at once and may be called from any thread.
#[derive(Clone)]
pub struct NetHandle {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.local)
    }
}

impl fmt::Debug for NetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetHandle")
    }
}

impl Endpoint {
    /// Binds and starts to listen. Must be called within a tokio runtime with I/O
    /// and time; a current-thread runtime serves best. All tasks run there.
    ///
    /// mDNS that cannot be started is logged and left out: static addresses still work.
    ///
    /// # Errors
    /// [`NetError`] when the address cannot be had or TLS cannot be set up.
    pub fn bind(config: NetConfig) -> Result<Self, NetError> {
        let NetConfig {
            listen,
            key,
            discovery_key,
            standing,
            discovery,
            events,
        } = config;
        let certificate = tls::certify(&key)?;
        let pairing_tag = PairingTagCell::default();
        let crypto = tls::server_config(
            key.id(),
            certificate.clone(),
            discovery_key.clone(),
            standing.clone(),
            pairing_tag.clone(),
        )?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(socket::transport_config(0))
            .max_incoming(2 * HANDSHAKES_MAX)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(4 << 20);
        let quinn = quinn::Endpoint::new(
            socket::endpoint_config(),
            Some(server),
            socket::bind(listen)?,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(|source| NetError::Start { source })?;
        let local = quinn
            .local_addr()
            .map_err(|source| NetError::Start { source })?;

        let cancel = CancellationToken::new();
        let connections = Arc::new(Connections::new(events, cancel.clone()));
        let tracker = TaskTracker::new();
        let announcer = match discovery {
            Discovery::On => {
                start_discovery(&discovery_key, local, &connections, &tracker, &cancel)
            }
            Discovery::Off => None,
        };
        let shared = Arc::new(Shared {
            quinn: Mutex::new(Some(quinn.clone())),
            own: key.id(),
            certificate,
            discovery_key,
            standing,
            connections,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            pairing_tag,
            pairing: Mutex::default(),
            discovery: Mutex::new(announcer),
            cancel,
            tracker,
        });
        shared.tracker.spawn(shared.clone().accept_all(quinn));
        tracing::info!(%local, "listening");
        Ok(Self {
            handle: NetHandle {
                shared,
                runtime: tokio::runtime::Handle::current(),
            },
            local,
        })
    }

    /// The bound address; unspecified if bound to all.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Addresses to hand to a peer, as of now.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        socket::reachable(self.local)
    }

    /// A front for other threads.
    pub fn handle(&self) -> NetHandle {
        self.handle.clone()
    }

    /// Goes down: takes no more connections, closes those there are, waits until
    /// all tasks have ended and the closes are sent, at most about a second. Events
    /// that find the channel full are dropped; then the channel ends.
    pub async fn shutdown(self) {
        let shared = &self.handle.shared;
        let quinn = shared
            .quinn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(quinn) = &quinn {
            quinn.set_server_config(None);
        }
        shared.cancel.cancel();
        shared.tracker.close();
        shared.tracker.wait().await;
        shared.connections.end_events();
        shared.pairing().take();
        let announcer = shared.announcer().take();
        if let Some(announcer) = announcer {
            announcer.stop().await;
        }
        if let Some(quinn) = quinn {
            quinn.close(CloseCode::Done.to_var_int(), b"going down");
            // A peer that does not confirm is no reason to stay.
            let _ = tokio::time::timeout(FLUSH, quinn.wait_idle()).await;
        }
    }
}

fn start_discovery(
    key: &Key,
    local: SocketAddr,
    connections: &Arc<Connections>,
    tracker: &TaskTracker,
    cancel: &CancellationToken,
) -> Option<discovery::Announcer> {
    if local.ip().is_loopback() {
        tracing::debug!("not announced: bound to loopback only");
        return None;
    }
    match discovery::start(key.clone(), local) {
        Ok((announcer, mut watcher)) => {
            let (connections, cancel) = (connections.clone(), cancel.clone());
            tracker.spawn(async move {
                while let Some(found) = tokio::select! {
                    () = cancel.cancelled() => None,
                    found = watcher.next() => found,
                } {
                    connections.emit(found).await;
                }
            });
            Some(announcer)
        }
        Err(error) => {
            tracing::warn!(%error, "devices on the local network will not be found");
            None
        }
    }
}

impl NetHandle {
    /// Starts to connect; `Connected` or `ConnectFailed` follows. The device that answers
    /// must be known, and be `expect` if one is given.
    pub fn connect(&self, address: SocketAddr, expect: Option<DeviceId>) {
        if !self.shared.cancel.is_cancelled() {
            let dial = self.shared.clone().dial(address, expect);
            self.shared.tracker.spawn_on(dial, &self.runtime);
        }
    }

    /// Queues a frame on a lane and returns how many bytes now wait there. Hold back
    /// content above a few MiB; [`NetEvent::Drained`] says when to go on.
    ///
    /// # Errors
    /// [`SendError`]; the frame is dropped.
    pub fn send(&self, conn: ConnId, lane: Lane, frame: Vec<u8>) -> Result<u64, SendError> {
        self.shared.connections.send(conn, lane, frame)
    }

    /// Closes a connection at once, with a text for the peer's log; queued frames are dropped.
    /// `Closed` follows.
    pub fn close(&self, conn: ConnId, code: CloseCode, text: &str) {
        self.shared.connections.close(conn, code, text);
    }

    /// Lets joiners with this slot in, under a new throw-away certificate, and announces
    /// it; `None` ends that. Connections already handed over stay.
    ///
    /// # Errors
    /// [`NetError::Tls`]; nothing is changed then.
    pub fn set_pairing(&self, slot: Option<PairingSlot>) -> Result<(), NetError> {
        let tag = match &slot {
            Some(slot) => {
                let certificate = tls::certify_throwaway()?;
                Some(PairingTag {
                    key: beacon::slot_key(slot.slot),
                    certificate,
                })
            }
            None => None,
        };
        let number = slot.as_ref().map(|slot| slot.slot);
        *self.shared.pairing() = slot;
        *self
            .shared
            .pairing_tag
            .write()
            .unwrap_or_else(PoisonError::into_inner) = tag;
        if let Some(announcer) = self.shared.announcer().as_mut() {
            announcer.set_pairing(number);
        }
        Ok(())
    }
}

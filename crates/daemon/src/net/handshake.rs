//! Handshakes in both directions: whom to let in, how to reach a device, and the
//! two lanes with which a handshake ends.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pacsync_protocol::crypto::{Key, random};
use pacsync_protocol::{DeviceId, beacon};
use quinn::{ClientConfig, ConnectionError, Incoming};
use rand_core::OsRng;
use rustls::sign::CertifiedKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Connections, Established, LaneStreams, shortened};
use super::discovery;
use super::endpoint::NetError;
use super::event::{
    CloseCode, ConnectFailure, Direction, Lane, NetEvent, PeerStanding, StandingOf,
};
use super::frame::{FrameError, FrameReader};
use super::pairing::{PAIRING_STREAMS, PairingSlot};
use super::socket;
use super::tls::{self, Accept, PairingTagCell, Verdict};

/// Both lanes must stand within this time.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes of strangers under way at once.
pub(super) const HANDSHAKES_MAX: usize = 64;
/// From this many on, a client must show first that its address is its own.
const HANDSHAKES_UNPROVED: usize = 16;
/// Tens of devices, some connected twice for a moment.
const CONNECTIONS_MAX: usize = 256;
/// Connections of keys that hold a tag and are not in the roster.
const UNKNOWN_MAX: usize = 16;
/// What the endpoint's tasks and its handles work with.
pub(super) struct Shared {
    /// Gone after shutdown, so that forgotten handles don't keep the port.
    pub(super) quinn: Mutex<Option<quinn::Endpoint>>,
    pub(super) own: DeviceId,
    pub(super) certificate: Arc<CertifiedKey>,
    pub(super) discovery_key: Key,
    pub(super) standing: StandingOf,
    pub(super) connections: Arc<Connections>,
    pub(super) handshakes: Arc<Semaphore>,
    pub(super) pairing_tag: PairingTagCell,
    pub(super) pairing: Mutex<Option<PairingSlot>>,
    pub(super) discovery: Mutex<Option<discovery::Announcer>>,
    pub(super) cancel: CancellationToken,
    pub(super) tracker: TaskTracker,
}

/// Why an incoming connection was not kept.
enum Unwanted {
    /// The handshake failed or the peer went away: strangers do, all day long.
    Handshake,
    /// Closed with a reason.
    Closed(CloseCode, &'static str),
}

impl Shared {
    pub(super) async fn accept_all(self: Arc<Self>, quinn: quinn::Endpoint) {
        loop {
            let incoming = tokio::select! {
                () = self.cancel.cancelled() => return,
                incoming = quinn.accept() => incoming,
            };
            match incoming {
                Some(incoming) => self.clone().let_in(incoming),
                None => return,
            }
        }
    }

    fn let_in(self: Arc<Self>, incoming: Incoming) {
        let under_way = HANDSHAKES_MAX.saturating_sub(self.handshakes.available_permits());
        let (connected, _) = self.connections.count();
        if under_way >= HANDSHAKES_UNPROVED && !incoming.remote_address_validated() {
            // Fails only for an address that has been proved.
            let _ = incoming.retry();
            return;
        }
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            incoming.ignore();
            return;
        };
        if connected >= CONNECTIONS_MAX {
            incoming.refuse();
            return;
        }
        let shared = self.clone();
        self.tracker
            .spawn(async move { shared.welcome(incoming, permit).await });
    }

    async fn welcome(self: Arc<Self>, incoming: Incoming, permit: OwnedSemaphorePermit) {
        let established = tokio::select! {
            () = self.cancel.cancelled() => return,
            result = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.shake_hands(incoming)) => result,
        };
        drop(permit);
        if let Ok(Some(established)) = established {
            self.connections.serve(established).await;
        }
    }

    /// Completes an incoming handshake. `None`: it failed, was refused, or is a
    /// pairing connection and handed over.
    async fn shake_hands(&self, incoming: Incoming) -> Option<Established> {
        let address = socket::canonical(incoming.remote_address());
        let connection = match async { incoming.accept()?.await }.await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%address, %error, "a handshake failed");
                return None;
            }
        };
        let outcome = match tls::protocol_of(&connection) {
            Some((protocol, Some(name))) if protocol == tls::ALPN_PAIR => {
                self.hand_over(&connection, &name).map(|()| None)
            }
            Some((protocol, _)) if protocol == tls::ALPN_SYNC => {
                self.welcome_device(&connection, address).await.map(Some)
            }
            _ => Err(Unwanted::Closed(CloseCode::Violation, "no known protocol")),
        };
        match outcome {
            Ok(established) => established,
            Err(Unwanted::Handshake) => None,
            Err(Unwanted::Closed(code, text)) => {
                tracing::debug!(%address, text, "a connection was refused");
                connection.close(code.to_var_int(), text.as_bytes());
                None
            }
        }
    }

    fn hand_over(&self, connection: &quinn::Connection, name: &str) -> Result<(), Unwanted> {
        let pairing = self.pairing();
        // The code may have changed since the certificate was chosen.
        let slot = pairing
            .as_ref()
            .filter(|pairing| beacon::verify_server_name(&beacon::slot_key(pairing.slot), name))
            .ok_or(Unwanted::Closed(CloseCode::Refused, "no code lives"))?;
        connection.set_max_concurrent_bi_streams(PAIRING_STREAMS.into());
        slot.accepted
            .try_send(connection.clone())
            .map_err(|_| Unwanted::Closed(CloseCode::Refused, "busy"))
    }

    async fn welcome_device(
        &self,
        connection: &quinn::Connection,
        address: SocketAddr,
    ) -> Result<Established, Unwanted> {
        let device = tls::peer_of(connection).ok_or(Unwanted::Handshake)?;
        let standing = (self.standing)(&device);
        let (_, unknown) = self.connections.count();
        match standing {
            PeerStanding::Known => {}
            PeerStanding::Unknown if unknown < UNKNOWN_MAX => {}
            PeerStanding::Unknown => {
                return Err(Unwanted::Closed(
                    CloseCode::Refused,
                    "too many unknown devices",
                ));
            }
            PeerStanding::Refused => {
                return Err(Unwanted::Closed(CloseCode::Refused, "not to be talked to"));
            }
        }
        let open = async |lane: Lane| {
            let (mut send, receive) = connection
                .open_bi()
                .await
                .map_err(|_| Unwanted::Handshake)?;
            // Fails only on a stream that is closed, as does the write.
            let _ = send.set_priority(lane.priority());
            send.write_all(&[lane.number()])
                .await
                .map_err(|_| Unwanted::Handshake)?;
            Ok::<_, Unwanted>(LaneStreams {
                send,
                receive: FrameReader::new(receive),
            })
        };
        Ok(Established {
            state: open(Lane::State).await?,
            content: open(Lane::Content).await?,
            connection: connection.clone(),
            device,
            standing,
            address,
            direction: Direction::Incoming,
        })
    }

    pub(super) async fn dial(self: Arc<Self>, address: SocketAddr, expect: Option<DeviceId>) {
        let attempt = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.reach(address, expect));
        let result = tokio::select! {
            () = self.cancel.cancelled() => return,
            result = attempt => result.unwrap_or(Err(ConnectFailure::NoAnswer)),
        };
        match result {
            Ok(established) => self.connections.serve(established).await,
            Err(why) => {
                tracing::debug!(%address, %why, "could not connect");
                self.connections
                    .emit(NetEvent::ConnectFailed { address, why })
                    .await;
            }
        }
    }

    async fn reach(
        &self,
        address: SocketAddr,
        expect: Option<DeviceId>,
    ) -> Result<Established, ConnectFailure> {
        let local = |error: &dyn fmt::Display| ConnectFailure::Local(error.to_string());
        let accept = Accept::Device {
            own: self.own,
            expect,
            standing: self.standing.clone(),
        };
        let verdict = Verdict::default();
        let crypto = tls::client_config(
            self.certificate.clone(),
            tls::ALPN_SYNC,
            accept,
            verdict.clone(),
        )
        .map_err(|error| local(&error))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(socket::transport_config(2));
        let name = beacon::server_name(&self.discovery_key, random(&mut OsRng));
        let connecting = {
            let quinn = self.quinn.lock().unwrap_or_else(PoisonError::into_inner);
            let quinn = quinn.as_ref().ok_or_else(|| local(&NetError::Closed))?;
            quinn
                .connect_with(config, address, &name)
                .map_err(|error| local(&error))?
        };
        let failed = |error| failure_of(error, verdict.get());
        let connection = connecting.await.map_err(failed)?;
        let device = tls::peer_of(&connection)
            .ok_or_else(|| ConnectFailure::BadPeer("no certificate".to_owned()))?;

        let mut lanes = [None, None];
        for _ in Lane::ALL {
            let (send, receive) = connection.accept_bi().await.map_err(failed)?;
            let mut receive = FrameReader::new(receive);
            let number = receive.read_byte().await.map_err(|error| match error {
                FrameError::Lost(error) => failed(error),
                other => ConnectFailure::BadPeer(other.to_string()),
            })?;
            let lane = Lane::from_number(number)
                .filter(|lane| lanes[*lane as usize].is_none())
                .ok_or_else(|| {
                    let text = format!("opened lane {number}");
                    connection.close(CloseCode::Violation.to_var_int(), text.as_bytes());
                    ConnectFailure::BadPeer(text)
                })?;
            // Fails only on a stream that is closed.
            let _ = send.set_priority(lane.priority());
            lanes[lane as usize] = Some(LaneStreams { send, receive });
        }
        let [Some(state), Some(content)] = lanes else {
            return Err(ConnectFailure::BadPeer("a lane is missing".to_owned()));
        };
        Ok(Established {
            connection,
            state,
            content,
            device,
            standing: PeerStanding::Known,
            address,
            direction: Direction::Outgoing,
        })
    }

    pub(super) fn pairing(&self) -> MutexGuard<'_, Option<PairingSlot>> {
        self.pairing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn announcer(&self) -> MutexGuard<'_, Option<discovery::Announcer>> {
        self.discovery
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says why a handshake failed; `verdict` is what this side's verifier said.
pub(super) fn failure_of(
    error: ConnectionError,
    verdict: Option<&ConnectFailure>,
) -> ConnectFailure {
    if let Some(verdict) = verdict {
        return verdict.clone();
    }
    match error {
        ConnectionError::TimedOut => ConnectFailure::NoAnswer,
        ConnectionError::ApplicationClosed(close) => {
            ConnectFailure::Refused(shortened(&close.reason))
        }
        ConnectionError::ConnectionClosed(_) | ConnectionError::Reset => {
            ConnectFailure::Refused(shortened(error.to_string().as_bytes()))
        }
        ConnectionError::TransportError(_) | ConnectionError::VersionMismatch => {
            ConnectFailure::BadPeer(shortened(error.to_string().as_bytes()))
        }
        ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => {
            ConnectFailure::Local(error.to_string())
        }
    }
}

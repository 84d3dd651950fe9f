//! The side that types a code.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future;
use pacsync_protocol::identity::{DeviceKeys, DeviceName};
use pacsync_protocol::pairing::{
    CodeError, FRAME_LEN_MAX, Joiner, Output, PairingCode, PairingError, Peer, Welcome,
};
use quinn::ConnectionError;
use rand_core::OsRng;

use super::link::{Clock, Link, TURNED_AWAY, explain, exporter};
use crate::home::HomeError;
use crate::net::{
    CloseCode, ConnectFailure, FrameError, NetError, PairingClient, connect_pairing,
    find_pairing_host,
};

/// How long the LAN is searched for the host.
const SEARCH: Duration = Duration::from_secs(10);
/// Head start of a likelier address over the next.
const HEAD_START: Duration = Duration::from_millis(250);

/// Where to look for the device that shows the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    /// At this `HOST:PORT`.
    Address(String),
    /// On the local network.
    Discover,
}

/// What a joiner brings along.
#[derive(Debug)]
pub struct Joining {
    /// What the user typed.
    pub code: PairingCode,
    /// Where to look for the host.
    pub whereabouts: Whereabouts,
    /// The new device's keys.
    pub keys: DeviceKeys,
    /// What the host is shown.
    pub name: DeviceName,
}

/// What the user at this device says about the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// That is the device.
    Accept,
    /// It is not.
    Reject,
}

/// Why this device has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The code is none.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The address does not resolve.
    #[error("cannot find the address {address}")]
    BadAddress {
        /// What was given.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nobody on the LAN announces the code's slot.
    #[error("no device on this network shows the code {slot:04}-…")]
    NotFound {
        /// The code's number.
        slot: u16,
    },
    /// Nothing answers at the address.
    #[error("nobody answers at {address}")]
    NoAnswer {
        /// The address.
        address: SocketAddr,
    },
    /// Something answers at the address, but not to this slot.
    #[error("the device at {address} does not show the code {slot:04}-…")]
    UnknownSlot {
        /// The address.
        address: SocketAddr,
        /// The code's number.
        slot: u16,
    },
    /// The network failed here.
    #[error(transparent)]
    Net(NetError),
    /// Pairing was ended by one side or by the clock.
    #[error(transparent)]
    Pairing(PairingError),
    /// The user here said no.
    #[error("pairing was cancelled here")]
    RejectedHere,
    /// The connection broke.
    #[error("pairing was cut off: {0}")]
    Lost(String),
    /// The home could not take what the host sent.
    #[error(transparent)]
    Home(#[from] HomeError),
}

impl JoinError {
    /// What to do next.
    pub fn hint(&self) -> String {
        let again = "make a new code with `pacsync pair` on the other device";
        match self {
            Self::Code(_) => "type the code as the other device shows it".into(),
            Self::BadAddress { .. } => {
                "give it as HOST:PORT, as `pacsync pair` shows it on the other device".into()
            }
            Self::NotFound { .. } | Self::Net(NetError::Discovery { .. }) => {
                "see that `pacsync pair` waits on the other device and shows this number; where \
                 the network keeps devices apart, add --addr HOST:PORT as shown there"
                    .into()
            }
            Self::NoAnswer { .. } => {
                "see that the daemon runs there, that the address is right and that no firewall \
                 drops UDP to its port"
                    .into()
            }
            Self::UnknownSlot { .. } => format!(
                "the number is mistyped, or the code was used or has expired: compare it, or {again}"
            ),
            Self::Net(_) => "see that this machine is on the network".into(),
            Self::Pairing(error) => match error {
                PairingError::Version => "update pacsync on the older device".into(),
                PairingError::RejectedByPeer => {
                    format!("if that was a mistake, {again}")
                }
                PairingError::PeerFailed => {
                    format!("see daemon.log in the home of the other device, then {again}")
                }
                PairingError::SameDevice => "use the code on another device".into(),
                _ => again.into(),
            },
            Self::RejectedHere | Self::Lost(_) => again.into(),
            Self::Home(error) => error.hint(),
        }
    }
}

/// Joins a pac: finds the host, proves the code, asks the user, takes what the host sends and has
/// it stored before the host is told. Returns what `store` made of it.
///
/// `on_peer` is given the host, which knows the code by then, and the promised role. `store` must
/// verify the roster and be durable when it returns; it may take a moment, and runs here.
///
/// Dropping the future ends the attempt; the code is spent then.
///
/// # Errors
/// [`JoinError`].
pub async fn run<T, A, F>(
    joining: Joining,
    on_peer: impl FnOnce(Peer) -> A,
    store: F,
) -> Result<T, JoinError>
where
    A: Future<Output = Decision>,
    F: FnOnce(&Peer, Welcome) -> Result<T, HomeError>,
{
    let client = reach(&joining.whereabouts, joining.code.slot()).await?;
    let result = attempt(&client, &joining, on_peer, store).await;
    client.close(CloseCode::Done, "").await;
    result
}

async fn reach(whereabouts: &Whereabouts, slot: u16) -> Result<PairingClient, JoinError> {
    let addresses = match whereabouts {
        Whereabouts::Address(address) => {
            let bad = |source| JoinError::BadAddress {
                address: address.clone(),
                source,
            };
            tokio::net::lookup_host(address.as_str())
                .await
                .map_err(bad)?
                .collect()
        }
        Whereabouts::Discover => find_pairing_host(slot, SEARCH)
            .await
            .map_err(JoinError::Net)?,
    };
    let attempts: Vec<_> = (0u32..)
        .zip(addresses)
        .map(|(rank, address)| {
            Box::pin(async move {
                tokio::time::sleep(HEAD_START * rank).await;
                connect_pairing(address, slot).await
            })
        })
        .collect();
    if attempts.is_empty() {
        return Err(JoinError::NotFound { slot });
    }
    match future::select_ok(attempts).await {
        Ok((client, _)) => Ok(client),
        Err(NetError::Pairing { address, why }) => Err(match why {
            ConnectFailure::NoAnswer => JoinError::NoAnswer { address },
            ConnectFailure::Refused(_) | ConnectFailure::BadPeer(_) => {
                JoinError::UnknownSlot { address, slot }
            }
            why => JoinError::Net(NetError::Pairing { address, why }),
        }),
        Err(error) => Err(JoinError::Net(error)),
    }
}

async fn attempt<T, A, F>(
    client: &PairingClient,
    joining: &Joining,
    on_peer: impl FnOnce(Peer) -> A,
    store: F,
) -> Result<T, JoinError>
where
    A: Future<Output = Decision>,
    F: FnOnce(&Peer, Welcome) -> Result<T, HomeError>,
{
    let clock = Clock::starting_at(0);
    let connection = client.connection();
    let mut joiner = Joiner::new(
        clock.now_ms(),
        &joining.code,
        &exporter(connection),
        &joining.keys,
        &joining.name,
        &mut OsRng,
    );
    // Opening waits for the host's leave to open a stream, which it may take its time with.
    let (send, receive) = tokio::select! {
        () = clock.sleep_until_any(joiner.poll_timeout()) => {
            return Err(JoinError::Pairing(PairingError::Expired));
        }
        opened = connection.open_bi() => {
            opened.map_err(|error| lost(FrameError::Lost(error)))?
        }
    };
    // The machine refuses a frame that is too long for its turn; this bounds memory.
    let mut link = Link::new(send, receive, FRAME_LEN_MAX);
    let result = drive(&mut joiner, &mut link, &clock, on_peer, store).await;
    while let Some(output) = joiner.poll_output() {
        if let Output::Send(frame) = output
            && link.send(frame).await.is_err()
        {
            break;
        }
    }
    link.finish().await;
    result
}

async fn drive<T, A, F>(
    joiner: &mut Joiner,
    link: &mut Link,
    clock: &Clock,
    on_peer: impl FnOnce(Peer) -> A,
    store: F,
) -> Result<T, JoinError>
where
    A: Future<Output = Decision>,
    F: FnOnce(&Peer, Welcome) -> Result<T, HomeError>,
{
    let mut on_peer = Some(on_peer);
    let mut host = None;
    let mut asking = None;
    loop {
        while let Some(output) = joiner.poll_output() {
            match output {
                Output::Send(frame) => send(joiner, link, frame).await?,
                Output::Peer(peer) => {
                    host = Some(peer.clone());
                    asking = on_peer.take().map(|ask| Box::pin(ask(peer)));
                }
                Output::Welcome(welcome) => {
                    let Some(peer) = &host else {
                        return Err(JoinError::Pairing(PairingError::Over));
                    };
                    let stored = match store(peer, *welcome) {
                        Ok(stored) => stored,
                        Err(error) => {
                            let _ = joiner.abort();
                            return Err(error.into());
                        }
                    };
                    joiner.stored().map_err(JoinError::Pairing)?;
                    // This device is in, whether or not the host hears of it.
                    return Ok(stored);
                }
                Output::Grant(_) | Output::Finished => {}
            }
        }
        let result = tokio::select! {
            () = clock.sleep_until_any(joiner.poll_timeout()) => {
                joiner.handle_timeout(clock.now_ms())
            }
            decision = answer(&mut asking) => {
                asking = None;
                match decision {
                    Decision::Accept => joiner.confirm(clock.now_ms()),
                    Decision::Reject => {
                        let _ = joiner.reject();
                        return Err(JoinError::RejectedHere);
                    }
                }
            }
            frame = link.next() => match frame {
                Ok(frame) => joiner.handle(clock.now_ms(), &frame),
                Err(error) => return Err(lost(error)),
            },
        };
        result.map_err(JoinError::Pairing)?;
    }
}

/// Sends a frame. A host that does not take it may have said why.
async fn send(joiner: &mut Joiner, link: &mut Link, frame: Vec<u8>) -> Result<(), JoinError> {
    let Err(error) = link.send(frame).await else {
        return Ok(());
    };
    if let Ok(frame) = link.next().await
        && let Err(why) = joiner.handle(0, &frame)
    {
        return Err(JoinError::Pairing(why));
    }
    Err(lost(error))
}

/// The user's answer; for ever while nothing is asked. Cancel-safe.
async fn answer<A: Future<Output = Decision>>(
    asking: &mut Option<std::pin::Pin<Box<A>>>,
) -> Decision {
    match asking {
        Some(asking) => asking.as_mut().await,
        None => future::pending().await,
    }
}

/// A connection that ends before anything was said was not wanted: the host lets in one at a time.
fn lost(error: FrameError) -> JoinError {
    match &error {
        FrameError::Lost(ConnectionError::ApplicationClosed(close))
            if close.error_code == TURNED_AWAY =>
        {
            JoinError::Pairing(PairingError::Spent)
        }
        _ => JoinError::Lost(explain(&error)),
    }
}

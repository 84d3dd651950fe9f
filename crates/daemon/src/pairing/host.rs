//! The side that shows a code.

use std::time::Duration;

use pacsync_protocol::identity::{DeviceKeys, DeviceName};
use pacsync_protocol::pairing::{
    Consent, Host, Offer, Output, PairingError, Peer, STRANGER_FRAME_LEN_MAX, Welcome,
};
use rand_core::OsRng;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::link::{Clock, Link, TURNED_AWAY, explain, exporter};
use crate::control::api::{PairAnswer, PairEvent};
use crate::net::{NetHandle, PairingSlot};

/// Joiners that may wait while another one is heard.
const WAITING: usize = 4;
/// How long a joiner may take to open its stream and say its first word. Short: others wait.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// What the user at this device says about a device that wants to join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may come in. A standing order never makes an admin.
    Accept(Consent),
    /// It may not.
    Reject,
}

impl From<PairAnswer> for Decision {
    fn from(answer: PairAnswer) -> Self {
        match answer {
            PairAnswer::Accept => Self::Accept(Consent::Person),
            PairAnswer::AcceptUnasked => Self::Accept(Consent::Standing),
            PairAnswer::Reject => Self::Reject,
        }
    }
}

/// Asks the core to make a grant durable and to put together what the new device needs.
#[derive(Debug)]
pub struct Enrol {
    /// Who is let in, and as what.
    pub peer: Peer,
    /// The welcome, or one line on why not.
    pub reply: oneshot::Sender<Result<Welcome, String>>,
}

/// What it takes to offer a code.
#[derive(Debug)]
pub struct Hosting {
    /// Lets joiners in; its pairing slot belongs to this run until it ends.
    pub net: NetHandle,
    /// The code.
    pub offer: Offer,
    /// The time at which the offer was made, in its own count.
    pub now_ms: u64,
    /// This device.
    pub keys: DeviceKeys,
    /// What joiners are shown.
    pub name: DeviceName,
    /// Gets [`PairEvent::Attempt`] and then one last event. When it is closed, nobody listens
    /// and the run ends.
    pub events: mpsc::Sender<PairEvent>,
    /// Brings the answer to [`PairEvent::Attempt`]. When it is closed, the answer is no.
    pub decisions: mpsc::Receiver<Decision>,
    /// The core.
    pub enrol: mpsc::Sender<Enrol>,
    /// Ends the run.
    pub cancel: CancellationToken,
}

/// Runs a code until it is used, burnt, expired or cancelled. Returns the last event, which was
/// sent to the listener too. Dropping the future ends the run without a word.
pub async fn run(hosting: Hosting) -> PairEvent {
    let events = hosting.events.clone();
    let last = Run::start(hosting).await;
    // A listener that has gone needs no last event.
    let _ = events.send(last.clone()).await;
    last
}

/// Takes the slot back, however the run ends.
struct Slot(NetHandle);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Err(error) = self.0.set_pairing(None) {
            tracing::warn!(%error, "the pairing slot stays open");
        }
    }
}

struct Run {
    clock: Clock,
    keys: DeviceKeys,
    name: DeviceName,
    events: mpsc::Sender<PairEvent>,
    decisions: mpsc::Receiver<Decision>,
    enrol: mpsc::Sender<Enrol>,
    cancel: CancellationToken,
}

impl Run {
    async fn start(hosting: Hosting) -> PairEvent {
        let Hosting {
            net,
            mut offer,
            now_ms,
            keys,
            name,
            events,
            decisions,
            enrol,
            cancel,
        } = hosting;
        let (accepted, mut joiners) = mpsc::channel(WAITING);
        let slot = PairingSlot {
            slot: offer.code().slot(),
            accepted,
        };
        if let Err(error) = net.set_pairing(Some(slot)) {
            return failed(format!("cannot let joiners in: {error}"));
        }
        let slot = Slot(net);
        let clock = Clock::starting_at(now_ms);
        let mut run = Self {
            clock,
            keys,
            name,
            events,
            decisions,
            enrol,
            cancel,
        };
        while offer.is_live(run.clock.now_ms()) {
            let joiner = tokio::select! {
                () = run.gone() => return PairEvent::Cancelled,
                () = run.clock.sleep_until(offer.expires_ms()) => return PairEvent::Expired,
                joiner = joiners.recv() => joiner,
            };
            let Some(joiner) = joiner else {
                return failed("the network is going down".into());
            };
            let answered = tokio::select! {
                () = run.gone() => return PairEvent::Cancelled,
                answered = run.hear(&mut offer, &joiner) => answered,
            };
            if let Some((host, link)) = answered {
                // The code is spent: who comes now finds nothing, who waits is sent away.
                drop(slot);
                joiners.close();
                while let Ok(late) = joiners.try_recv() {
                    late.close(TURNED_AWAY, b"the pairing code was used already");
                }
                return run.finish(host, link).await;
            }
        }
        PairEvent::Expired
    }

    /// Ends when nobody wants this pairing any more. Cancel-safe.
    async fn gone(&self) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = self.events.closed() => {}
        }
    }

    /// Hears a joiner's first message. `None`: it had nothing to say, and the code lives.
    async fn hear(&self, offer: &mut Offer, joiner: &quinn::Connection) -> Option<(Host, Link)> {
        let first = async {
            let (send, receive) = joiner.accept_bi().await.ok()?;
            let mut link = Link::new(send, receive, STRANGER_FRAME_LEN_MAX);
            let hello = link.next().await.ok()?;
            Some((link, hello))
        };
        let (mut link, hello) = tokio::time::timeout(FIRST_WORD, first).await.ok()??;
        let now_ms = self.clock.now_ms();
        let exporter = exporter(joiner);
        match offer.answer(
            now_ms, &exporter, &self.keys, &self.name, &hello, &mut OsRng,
        ) {
            Ok(host) => Some((host, link)),
            Err(refused) => {
                tracing::info!(error = %refused.error, "a joiner was refused");
                if link.send(refused.reply).await.is_ok() {
                    link.finish().await;
                }
                None
            }
        }
    }

    /// Goes through with an answered attempt.
    async fn finish(&mut self, mut host: Host, mut link: Link) -> PairEvent {
        let end = self.drive(&mut host, &mut link).await;
        // What a failure has to say comes after it; nothing is to be done if it cannot be said.
        while let Some(output) = host.poll_output() {
            if let Output::Send(frame) = output
                && link.send(frame).await.is_err()
            {
                break;
            }
        }
        link.finish().await;
        end
    }

    async fn drive(&mut self, host: &mut Host, link: &mut Link) -> PairEvent {
        let mut turn = Turn::Machine;
        // Once granted, going back needs a revocation: only going down ends it.
        let mut granted = false;
        loop {
            while let Some(output) = host.poll_output() {
                match output {
                    Output::Send(frame) => {
                        if let Err(error) = link.send(frame).await {
                            return lost(granted, &explain(&error));
                        }
                    }
                    Output::Peer(peer) => {
                        let attempt = PairEvent::Attempt {
                            name: peer.name.to_string(),
                            device: peer.device.id.to_string(),
                        };
                        turn = Turn::User;
                        if self.events.send(attempt).await.is_err() {
                            return cancelled(host);
                        }
                    }
                    Output::Grant(peer) => {
                        granted = true;
                        let (reply, welcome) = oneshot::channel();
                        // Should the core have gone, the reply is closed too.
                        let _ = self
                            .enrol
                            .send(Enrol {
                                peer: peer.clone(),
                                reply,
                            })
                            .await;
                        turn = Turn::Core(welcome, peer);
                    }
                    Output::Welcome(_) => {}
                    Output::Finished => {
                        return match turn {
                            Turn::Delivering(peer) => PairEvent::Enrolled {
                                name: peer.name.to_string(),
                                device: peer.device.id.to_string(),
                            },
                            _ => failed("pairing ended out of turn".into()),
                        };
                    }
                }
            }
            let deadline = host.poll_timeout();
            let result = tokio::select! {
                () = self.cancel.cancelled() => {
                    if !granted {
                        return cancelled(host);
                    }
                    let _ = host.abort();
                    return lost(granted, "the daemon is going down");
                }
                () = self.events.closed(), if !granted => return cancelled(host),
                () = self.clock.sleep_until_any(deadline) => {
                    host.handle_timeout(self.clock.now_ms())
                }
                decision = self.decisions.recv(), if matches!(turn, Turn::User) => match decision {
                    Some(Decision::Accept(consent)) => {
                        let taken = host.confirm(self.clock.now_ms(), consent);
                        if taken.is_ok() {
                            turn = Turn::Machine;
                        }
                        taken
                    }
                    Some(Decision::Reject) | None => return cancelled(host),
                },
                (welcome, peer) = turn.welcome() => {
                    let delivered = match welcome {
                        Ok(welcome) => host
                            .deliver(self.clock.now_ms(), welcome)
                            .map_err(|error| error.to_string()),
                        Err(why) => Err(why),
                    };
                    if let Err(why) = delivered {
                        let _ = host.abort();
                        return failed(why);
                    }
                    turn = Turn::Delivering(peer);
                    Ok(())
                }
                frame = link.next() => match frame {
                    Ok(frame) => host.handle(self.clock.now_ms(), &frame),
                    Err(error) => {
                        let _ = host.abort();
                        return lost(granted, &explain(&error));
                    }
                },
            };
            match result {
                Ok(()) => {}
                Err(PairingError::WrongCode) => return PairEvent::WrongCode,
                Err(PairingError::Expired) if !granted => return PairEvent::Expired,
                Err(PairingError::NeedsPerson) => {
                    let _ = host.reject();
                    return failed(PairingError::NeedsPerson.to_string());
                }
                Err(error) => return lost(granted, &error.to_string()),
            }
        }
    }
}

/// Who must do something before the machine goes on.
enum Turn {
    /// Nobody but the joiner.
    Machine,
    /// The user here.
    User,
    /// The core.
    Core(oneshot::Receiver<Result<Welcome, String>>, Peer),
    /// The joiner stores what it was sent.
    Delivering(Peer),
}

impl Turn {
    /// The core's answer; for ever if it is not asked. Cancel-safe.
    async fn welcome(&mut self) -> (Result<Welcome, String>, Peer) {
        match self {
            Self::Core(welcome, peer) => {
                let gone = |_| Err("the daemon is going down".to_owned());
                (welcome.await.unwrap_or_else(gone), peer.clone())
            }
            _ => std::future::pending().await,
        }
    }
}

fn cancelled(host: &mut Host) -> PairEvent {
    // It may have ended by itself at the same moment.
    let _ = host.reject();
    PairEvent::Cancelled
}

fn failed(why: String) -> PairEvent {
    PairEvent::Failed { why }
}

fn lost(granted: bool, why: &str) -> PairEvent {
    failed(if granted {
        format!(
            "{why}; the device was granted its role, but did not say that it has stored it: \
             if it does not come up, pair it again"
        )
    } else {
        why.to_owned()
    })
}

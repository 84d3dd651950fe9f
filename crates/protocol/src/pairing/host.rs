//! The side that has a pac and lets a device in.

use std::collections::VecDeque;
use std::fmt;
use std::mem;

use super::message::{Answer, Hello, Message, Reason, Roster, VERSION, WelcomeHead};
use super::schedule::{self, Schedule, Side, Transcript};
use super::{
    CODE_LIFE_MS, Consent, DECISION_MS_MAX, DELIVERY_MS_MAX, Exporter, FRAME_LEN_MAX,
    HANDSHAKE_MS_MAX, Output, PairingCode, PairingError, Peer, RosterKeys, STRANGER_FRAME_LEN_MAX,
    Welcome, refuse,
};
use crate::crypto::{Entropy, SigningKey};
use crate::grant::Role;
use crate::identity::{DeviceKeys, DeviceName};

/// Bytes of roster in a frame; the rest of [`FRAME_LEN_MAX`] is for the message's frame.
const ROSTER_FRAME_BYTES_MAX: usize = FRAME_LEN_MAX - 64;
/// What a piece costs in a frame beside its bytes, at most.
const PIECE_OVERHEAD: usize = 5;

/// A code that is offered: one for all connections that come while it lives.
#[derive(Debug)]
pub struct Offer {
    code: PairingCode,
    role: Role,
    expires_ms: u64,
    spent: Spent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spent {
    No,
    Yes,
}

/// A first message that was not answered, and what to send back before closing.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: PairingError,
    /// The frame that tells the other side.
    pub reply: Vec<u8>,
}

impl Offer {
    /// Draws a code under which one device may become `role`.
    pub fn new(role: Role, now_ms: u64, rng: &mut dyn Entropy) -> Self {
        Self {
            code: PairingCode::generate(rng),
            role,
            expires_ms: now_ms.saturating_add(CODE_LIFE_MS),
            spent: Spent::No,
        }
    }

    /// The code to show. Its slot is what the host announces while the offer lives.
    pub fn code(&self) -> &PairingCode {
        &self.code
    }

    /// What the device is to become.
    pub fn role(&self) -> Role {
        self.role
    }

    /// When the code dies unused.
    pub fn expires_ms(&self) -> u64 {
        self.expires_ms
    }

    /// Says whether a first message would be answered now: only as long is the slot
    /// announced and its connections taken.
    pub fn is_live(&self, now_ms: u64) -> bool {
        self.spent == Spent::No && now_ms < self.expires_ms
    }

    /// Answers a joiner's first message. From here on the code is spent, whatever
    /// comes after; a message that is refused as malformed leaves it alive.
    ///
    /// # Errors
    /// [`Refused`] with [`PairingError::Spent`], [`PairingError::Expired`],
    /// [`PairingError::Version`], [`PairingError::SameDevice`] or what is wrong in
    /// the message.
    pub fn answer(
        &mut self,
        now_ms: u64,
        exporter: &Exporter,
        keys: &DeviceKeys,
        name: &DeviceName,
        hello: &[u8],
        rng: &mut dyn Entropy,
    ) -> Result<Host, Refused> {
        self.try_answer(now_ms, exporter, keys, name, hello, rng)
            .map_err(|error| {
                let reply = refuse(error.reason().unwrap_or(Reason::Protocol));
                Refused { error, reply }
            })
    }

    fn try_answer(
        &mut self,
        now_ms: u64,
        exporter: &Exporter,
        keys: &DeviceKeys,
        name: &DeviceName,
        hello_bytes: &[u8],
        rng: &mut dyn Entropy,
    ) -> Result<Host, PairingError> {
        if self.spent == Spent::Yes {
            return Err(PairingError::Spent);
        }
        if now_ms >= self.expires_ms {
            return Err(PairingError::Expired);
        }
        let hello: Hello = match Message::decode(hello_bytes, STRANGER_FRAME_LEN_MAX)? {
            Message::Hello(hello) => hello,
            _ => return Err(PairingError::Misbehaved("its first message is no hello")),
        };
        if hello.version != VERSION {
            return Err(PairingError::Version);
        }
        if hello.device.id == keys.id() {
            return Err(PairingError::SameDevice);
        }
        let (exchange, spake) = schedule::start(Side::Host, &self.code, rng);
        let shared = schedule::finish(exchange, &hello.spake)?;
        let answer = Message::Answer(Answer {
            version: VERSION,
            device: keys.public(),
            name: name.clone(),
            spake: spake.into(),
            role: self.role,
        })
        .encode();
        let transcript = Transcript {
            exporter,
            slot: self.code.slot(),
            role: self.role,
            hello: hello_bytes,
            answer: &answer,
        };
        let schedule = Schedule::new(&shared, &transcript);
        self.spent = Spent::Yes;
        Ok(Host {
            state: State::Confirm(Box::new(Proving {
                schedule,
                key: keys.sign.clone(),
            })),
            peer: Peer {
                name: hello.name,
                device: hello.device,
                role: self.role,
            },
            deadline_ms: Some(now_ms.saturating_add(HANDSHAKE_MS_MAX)),
            out: VecDeque::from([Output::Send(answer)]),
        })
    }
}

struct Proving {
    schedule: Schedule,
    key: SigningKey,
}

enum State {
    /// The joiner must prove that it knows the code.
    Confirm(Box<Proving>),
    /// Both users decide.
    Decide { here: Decision, there: Decision },
    /// The caller makes the grant durable.
    Granting,
    /// Roster segments go out; then the joiner verifies and stores.
    Delivering { segments: VecDeque<Vec<u8>> },
    /// Nothing more happens.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Open,
    Agreed,
}

/// One answered attempt to pair, at the side that has the pac.
///
/// Made by [`Offer::answer`]. `now_ms` is the clock of the offer.
pub struct Host {
    state: State,
    peer: Peer,
    deadline_ms: Option<u64>,
    out: VecDeque<Output>,
}

impl Host {
    /// Longest frame that the other side may send now, in bytes.
    pub fn frame_len_max(&self) -> usize {
        STRANGER_FRAME_LEN_MAX
    }

    /// When [`Host::handle_timeout`] must be called, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.deadline_ms
    }

    /// The next thing for the caller to do. Roster frames are made as they are asked for.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.out.pop_front() {
            return Some(output);
        }
        match &mut self.state {
            State::Delivering { segments } if !segments.is_empty() => {
                Some(Output::Send(Message::Roster(next_frame(segments)).encode()))
            }
            _ => None,
        }
    }

    /// Takes one frame from the joiner.
    ///
    /// # Errors
    /// Why pairing has ended: [`PairingError::WrongCode`], what the other side said,
    /// or how it broke the rules.
    pub fn handle(&mut self, now_ms: u64, frame: &[u8]) -> Result<(), PairingError> {
        self.handle_timeout(now_ms)?;
        match Message::decode(frame, self.frame_len_max()) {
            Ok(Message::Refuse(reason)) => {
                self.close(None);
                Err(PairingError::told(reason))
            }
            Ok(message) => self.step(now_ms, message).map_err(|error| self.end(error)),
            Err(error) => Err(self.end(error.into())),
        }
    }

    fn step(&mut self, now_ms: u64, message: Message) -> Result<(), PairingError> {
        match (&mut self.state, message) {
            (State::Confirm(proving), Message::Confirm(confirm)) => {
                let Proving { schedule, key } = &**proving;
                schedule.check(Side::Joiner, &self.peer.device.id, &confirm)?;
                let reply = Message::Confirm(schedule.confirm(Side::Host, key)).encode();
                self.out.push_back(Output::Send(reply));
                self.out.push_back(Output::Peer(self.peer.clone()));
                self.state = State::Decide {
                    here: Decision::Open,
                    there: Decision::Open,
                };
                self.deadline_ms = Some(now_ms.saturating_add(DECISION_MS_MAX));
                Ok(())
            }
            (
                State::Decide {
                    there: there @ Decision::Open,
                    ..
                },
                Message::Agree,
            ) => {
                *there = Decision::Agreed;
                self.grant_if_agreed();
                Ok(())
            }
            (State::Delivering { segments }, Message::Done) if segments.is_empty() => {
                self.state = State::Over;
                self.deadline_ms = None;
                self.out.push_back(Output::Finished);
                Ok(())
            }
            _ => Err(PairingError::Misbehaved("a message out of turn")),
        }
    }

    /// Ends pairing if its time is up.
    ///
    /// # Errors
    /// [`PairingError::Expired`] if so, [`PairingError::Over`] if it had ended.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Result<(), PairingError> {
        if matches!(self.state, State::Over) {
            return Err(PairingError::Over);
        }
        if self.deadline_ms.is_some_and(|deadline| now_ms >= deadline) {
            return Err(self.end(PairingError::Expired));
        }
        Ok(())
    }

    /// Takes the consent of this side; [`Output::Grant`] follows once both have agreed.
    ///
    /// # Errors
    /// [`PairingError::NeedsPerson`] for an admin without a person, and pairing waits
    /// on; [`PairingError::Misuse`] if there is nothing to agree to; or its end.
    pub fn confirm(&mut self, now_ms: u64, consent: Consent) -> Result<(), PairingError> {
        self.handle_timeout(now_ms)?;
        match &mut self.state {
            State::Decide {
                here: here @ Decision::Open,
                ..
            } => {
                if self.peer.role == Role::Admin && consent == Consent::Standing {
                    return Err(PairingError::NeedsPerson);
                }
                *here = Decision::Agreed;
                self.grant_if_agreed();
                Ok(())
            }
            _ => Err(PairingError::Misuse("nothing to confirm now")),
        }
    }

    fn grant_if_agreed(&mut self) {
        if let State::Decide {
            here: Decision::Agreed,
            there: Decision::Agreed,
        } = self.state
        {
            self.state = State::Granting;
            self.deadline_ms = None;
            self.out.push_back(Output::Grant(self.peer.clone()));
        }
    }

    /// Ends pairing because this side's user said no. After [`Output::Grant`] use
    /// revocation: the grant may be known already.
    ///
    /// # Errors
    /// [`PairingError::Over`] if pairing had ended.
    pub fn reject(&mut self) -> Result<(), PairingError> {
        self.stop(Reason::Rejected)
    }

    /// Ends pairing because this side cannot go on, for example to make the grant durable.
    ///
    /// # Errors
    /// [`PairingError::Over`] if pairing had ended.
    pub fn abort(&mut self) -> Result<(), PairingError> {
        self.stop(Reason::Failed)
    }

    /// Sends what a new device needs. The grant is durable and part of the segments.
    ///
    /// # Errors
    /// [`PairingError::Misuse`] or [`PairingError::Decode`] if the welcome does not fit the role or
    /// the bounds, or it is not its time; pairing waits on.
    pub fn deliver(&mut self, now_ms: u64, welcome: Welcome) -> Result<(), PairingError> {
        match self.state {
            State::Granting => {}
            State::Over => return Err(PairingError::Over),
            _ => return Err(PairingError::Misuse("nothing to deliver now")),
        }
        welcome.check(self.peer.role)?;
        let count = |n: usize| u32::try_from(n).expect("checked against a smaller limit");
        let bytes = welcome.segments.iter().map(Vec::len).sum();
        let (roster_key, roster_private_key) = match welcome.keys {
            RosterKeys::Full { roster, private } => (roster, Some(private)),
            RosterKeys::Relay { roster } => (roster, None),
        };
        let head = Message::Welcome(WelcomeHead {
            founding: welcome.founding.as_bytes().to_vec().into(),
            roster_key,
            roster_private_key,
            segments: count(welcome.segments.len()),
            bytes: count(bytes),
            addresses: welcome.addresses,
            spaces: welcome.spaces,
        });
        self.out.push_back(Output::Send(head.encode()));
        self.state = State::Delivering {
            segments: welcome.segments.into(),
        };
        self.deadline_ms = Some(now_ms.saturating_add(DELIVERY_MS_MAX));
        Ok(())
    }

    fn stop(&mut self, reason: Reason) -> Result<(), PairingError> {
        if matches!(self.state, State::Over) {
            return Err(PairingError::Over);
        }
        self.close(Some(reason));
        Ok(())
    }

    fn end(&mut self, error: PairingError) -> PairingError {
        self.close(error.reason());
        error
    }

    /// What was not yet done is not done any more; what was not yet sent neither.
    fn close(&mut self, reason: Option<Reason>) {
        self.state = State::Over;
        self.deadline_ms = None;
        self.out.clear();
        self.out
            .extend(reason.map(|reason| Output::Send(refuse(reason))));
    }
}

/// Takes as many whole segments as a frame holds, or a piece of one that is too long.
fn next_frame(segments: &mut VecDeque<Vec<u8>>) -> Roster {
    let mut room = ROSTER_FRAME_BYTES_MAX;
    let mut pieces = Vec::new();
    while let Some(first) = segments.front_mut() {
        if first.len() + PIECE_OVERHEAD > room {
            if pieces.is_empty() {
                let rest = first.split_off(room - PIECE_OVERHEAD);
                return Roster {
                    pieces: vec![mem::replace(first, rest).into()],
                    open: true,
                };
            }
            break;
        }
        room -= first.len() + PIECE_OVERHEAD;
        pieces.extend(segments.pop_front().map(Into::into));
    }
    Roster {
        pieces,
        open: false,
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Confirm(_) => "confirm",
            State::Decide { .. } => "decide",
            State::Granting => "granting",
            State::Delivering { .. } => "delivering",
            State::Over => "over",
        };
        f.debug_struct("Host")
            .field("state", &state)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

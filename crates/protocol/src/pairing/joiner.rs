//! The side that has no pac yet.

use std::collections::VecDeque;
use std::fmt;
use std::mem;

use zeroize::Zeroizing;

use super::message::{Answer, Hello, Message, Reason, Roster, VERSION, WelcomeHead};
use super::schedule::{self, Exchange, Schedule, Side, Transcript};
use super::{
    DECISION_MS_MAX, DELIVERY_MS_MAX, Exporter, FRAME_LEN_MAX, HANDSHAKE_MS_MAX, Output,
    PairingCode, PairingError, Peer, RosterKeys, STRANGER_FRAME_LEN_MAX, Welcome, check_addresses,
    check_roster_size, check_spaces, refuse,
};
use crate::cbor;
use crate::crypto::{Entropy, SigningKey};
use crate::identity::{DeviceKeys, DeviceName, VerifiedFounding};
use crate::segment;

enum State {
    /// Waits for the host's share.
    Answer(Box<Start>),
    /// Has proved that it knows the code; the host must.
    Confirm { schedule: Schedule, peer: Peer },
    /// This side's user decides.
    Decide { peer: Peer },
    /// The host's user decides, and the grant is made.
    Agreed { peer: Peer },
    /// Roster segments come in.
    Receiving(Box<Partial>),
    /// The caller verifies and stores.
    Storing,
    /// Nothing more happens.
    Over,
}

struct Start {
    exchange: Exchange,
    hello: Vec<u8>,
    slot: u16,
    exporter: Zeroizing<Exporter>,
    key: SigningKey,
}

/// A welcome of which segments are still to come.
struct Partial {
    welcome: Welcome,
    segments: usize,
    bytes_left: usize,
    /// The beginning of a segment that was cut.
    open: Option<Vec<u8>>,
}

/// One attempt to pair, at the side that wants to join.
pub struct Joiner {
    state: State,
    deadline_ms: Option<u64>,
    out: VecDeque<Output>,
}

impl Joiner {
    /// Starts with a code that the user typed; the first output is the first message.
    /// `now_ms` is any clock that does not go back.
    pub fn new(
        now_ms: u64,
        code: &PairingCode,
        exporter: &Exporter,
        keys: &DeviceKeys,
        name: &DeviceName,
        rng: &mut dyn Entropy,
    ) -> Self {
        let (exchange, spake) = schedule::start(Side::Joiner, code, rng);
        let hello = Message::Hello(Hello {
            version: VERSION,
            device: keys.public(),
            name: name.clone(),
            spake: spake.into(),
        })
        .encode();
        Self {
            out: VecDeque::from([Output::Send(hello.clone())]),
            state: State::Answer(Box::new(Start {
                exchange,
                hello,
                slot: code.slot(),
                exporter: Zeroizing::new(*exporter),
                key: keys.sign.clone(),
            })),
            deadline_ms: Some(now_ms.saturating_add(HANDSHAKE_MS_MAX)),
        }
    }

    /// Longest frame that the other side may send now, in bytes.
    pub fn frame_len_max(&self) -> usize {
        match self.state {
            State::Agreed { .. } | State::Receiving(_) => FRAME_LEN_MAX,
            _ => STRANGER_FRAME_LEN_MAX,
        }
    }

    /// When [`Joiner::handle_timeout`] must be called, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.deadline_ms
    }

    /// The next thing for the caller to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Takes one frame from the host.
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
            Ok(message) => self
                .step(now_ms, message, frame)
                .map_err(|error| self.end(error)),
            Err(error) => Err(self.end(error.into())),
        }
    }

    /// Leaves [`State::Over`] behind where a step fails; where it succeeds the next state.
    fn step(&mut self, now_ms: u64, message: Message, frame: &[u8]) -> Result<(), PairingError> {
        match (mem::replace(&mut self.state, State::Over), message) {
            (State::Answer(start), Message::Answer(answer)) => self.answered(*start, answer, frame),
            (State::Confirm { schedule, peer }, Message::Confirm(confirm)) => {
                schedule.check(Side::Host, &peer.device.id, &confirm)?;
                self.out.push_back(Output::Peer(peer.clone()));
                self.state = State::Decide { peer };
                self.deadline_ms = Some(now_ms.saturating_add(DECISION_MS_MAX));
                Ok(())
            }
            (State::Agreed { peer }, Message::Welcome(head)) => {
                self.state = State::Receiving(Box::new(Partial::new(&peer, head)?));
                self.deadline_ms = Some(now_ms.saturating_add(DELIVERY_MS_MAX));
                Ok(())
            }
            (State::Receiving(mut partial), Message::Roster(roster)) => {
                partial.take(roster)?;
                self.deadline_ms = Some(now_ms.saturating_add(DELIVERY_MS_MAX));
                if partial.is_whole()? {
                    self.out
                        .push_back(Output::Welcome(Box::new(partial.welcome)));
                    self.state = State::Storing;
                    self.deadline_ms = None;
                } else {
                    self.state = State::Receiving(partial);
                }
                Ok(())
            }
            _ => Err(PairingError::Misbehaved("a message out of turn")),
        }
    }

    fn answered(&mut self, start: Start, answer: Answer, frame: &[u8]) -> Result<(), PairingError> {
        if answer.version != VERSION {
            return Err(PairingError::Version);
        }
        if answer.device.id == start.key.id() {
            return Err(PairingError::SameDevice);
        }
        let shared = schedule::finish(start.exchange, &answer.spake)?;
        let transcript = Transcript {
            exporter: &start.exporter,
            slot: start.slot,
            role: answer.role,
            hello: &start.hello,
            answer: frame,
        };
        let schedule = Schedule::new(&shared, &transcript);
        let confirm = schedule.confirm(Side::Joiner, &start.key);
        self.out
            .push_back(Output::Send(Message::Confirm(confirm).encode()));
        let peer = Peer {
            name: answer.name,
            device: answer.device,
            role: answer.role,
        };
        self.state = State::Confirm { schedule, peer };
        Ok(())
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

    /// Takes the consent of this side.
    ///
    /// # Errors
    /// [`PairingError::Misuse`] if there is nothing to agree to, or pairing's end.
    pub fn confirm(&mut self, now_ms: u64) -> Result<(), PairingError> {
        self.handle_timeout(now_ms)?;
        match &self.state {
            State::Decide { peer } => {
                let peer = peer.clone();
                self.state = State::Agreed { peer };
                self.deadline_ms = Some(now_ms.saturating_add(DECISION_MS_MAX));
                self.out.push_back(Output::Send(Message::Agree.encode()));
                Ok(())
            }
            _ => Err(PairingError::Misuse("nothing to confirm now")),
        }
    }

    /// Ends pairing because this side's user said no.
    ///
    /// # Errors
    /// [`PairingError::Over`] if pairing had ended.
    pub fn reject(&mut self) -> Result<(), PairingError> {
        self.stop(Reason::Rejected)
    }

    /// Ends pairing because this side cannot go on: the roster does not verify, or
    /// nothing can be stored.
    ///
    /// # Errors
    /// [`PairingError::Over`] if pairing had ended.
    pub fn abort(&mut self) -> Result<(), PairingError> {
        self.stop(Reason::Failed)
    }

    /// Says that the welcome is verified and durable: tells the host, and is done.
    ///
    /// # Errors
    /// [`PairingError::Misuse`] if no welcome was given out, [`PairingError::Over`] if pairing
    /// had ended.
    pub fn stored(&mut self) -> Result<(), PairingError> {
        match self.state {
            State::Storing => {
                self.state = State::Over;
                self.out.push_back(Output::Send(Message::Done.encode()));
                self.out.push_back(Output::Finished);
                Ok(())
            }
            State::Over => Err(PairingError::Over),
            _ => Err(PairingError::Misuse("nothing was stored yet")),
        }
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

impl Partial {
    fn new(peer: &Peer, head: WelcomeHead) -> Result<Self, PairingError> {
        let keys = match head.roster_private_key {
            Some(private) => RosterKeys::Full {
                roster: head.roster_key,
                private,
            },
            None => RosterKeys::Relay {
                roster: head.roster_key,
            },
        };
        if !keys.fit(peer.role) {
            return Err(PairingError::Misbehaved(
                "its roster keys do not fit the role",
            ));
        }
        check_addresses(&head.addresses)?;
        check_spaces(&head.spaces)?;
        let (segments, bytes_left) = (head.segments as usize, head.bytes as usize);
        check_roster_size(segments, bytes_left)
            .map_err(|_| PairingError::Misbehaved("it announced no roster, or one too large"))?;
        let welcome = Welcome {
            founding: VerifiedFounding::verify(&head.founding)?,
            keys,
            segments: Vec::new(),
            addresses: head.addresses,
            spaces: head.spaces,
        };
        Ok(Self {
            welcome,
            segments,
            bytes_left,
            open: None,
        })
    }

    /// Adds a frame. Never holds more than was announced.
    fn take(&mut self, roster: Roster) -> Result<(), PairingError> {
        if roster.pieces.is_empty() {
            return Err(PairingError::Misbehaved("a roster frame without segments"));
        }
        let last = roster.pieces.len() - 1;
        for (index, piece) in roster.pieces.into_iter().enumerate() {
            self.bytes_left = match self.bytes_left.checked_sub(piece.len()) {
                Some(left) if !piece.is_empty() => left,
                _ => {
                    return Err(PairingError::Misbehaved(
                        "more or less roster than announced",
                    ));
                }
            };
            let mut segment = self.open.take().unwrap_or_default();
            segment.append(&mut piece.into());
            cbor::at_most("roster segment", segment.len(), segment::SEGMENT_MAX)?;
            if index == last && roster.open {
                self.open = Some(segment);
            } else {
                self.welcome.segments.push(segment);
            }
            if self.welcome.segments.len() > self.segments {
                return Err(PairingError::Misbehaved(
                    "more roster segments than announced",
                ));
            }
        }
        Ok(())
    }

    fn is_whole(&self) -> Result<bool, PairingError> {
        let all_segments = self.welcome.segments.len() == self.segments;
        match (all_segments, self.bytes_left, &self.open) {
            (true, 0, None) => Ok(true),
            (false, 1.., _) => Ok(false),
            _ => Err(PairingError::Misbehaved(
                "more or less roster than announced",
            )),
        }
    }
}

impl fmt::Debug for Joiner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Answer(_) => "answer",
            State::Confirm { .. } => "confirm",
            State::Decide { .. } => "decide",
            State::Agreed { .. } => "agreed",
            State::Receiving(_) => "receiving",
            State::Storing => "storing",
            State::Over => "over",
        };
        f.debug_struct("Joiner")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

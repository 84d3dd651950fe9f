//! The sync session between two devices of a pac over one connection.
//!
//! A state machine without I/O: [`Session::handle`] takes what happened, [`Session::poll_output`]
//! says what to do about it, [`Session::poll_timeout`] when to call again at the latest. The owner
//! has the store; the session knows heads of logs and moves bytes, and never looks into a segment.
//! After every `handle` the owner polls outputs until there are none.
//!
//! Everything that waits in a session is bounded: segments under way by [`SEGMENT_WINDOW`],
//! content by [`CONTENT_QUEUE_MAX`] at the server and by [`REQUESTS_MAX`] and
//! [`REQUEST_BYTES_MAX`] at the requester, a stranger's segments by [`PROBATION_MAX`].

mod branch;
mod checkpoint;
mod fetch;
mod intake;
mod io;
mod outbox;
mod replicate;
mod serve;
mod space;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use crate::checkpoint::HEADER_MAX;
use crate::ids::SpaceId;
use crate::roster::roster_space;
use crate::vector::VersionVector;
use crate::wire::{
    AckWanted, Acks, Close, CloseCode, Hello, Lane, Message, PROTOCOL, SpaceClosed, StartedFrom,
};

use branch::Branches;
use checkpoint::Checkpoints;
use fetch::Fetch;
pub use io::{ClosedBy, Config, Input, Loaded, Origin, Output, PeerStanding, Refusal, Wanted};
use outbox::{Outbox, Violation};
use replicate::Replication;
use serve::Serve;

/// Segment bytes sent that the peer has not yet said it holds, at most.
pub const SEGMENT_WINDOW: u64 = 4 << 20;
/// Most [`Output::Store`] that are not answered at a time.
pub const STORES_MAX: usize = 2;
/// Content bytes that the session has given to the transport and that it has not sent, at most;
/// one piece may come on top.
pub const CONTENT_QUEUE_MAX: u64 = 2 << 20;
/// Bytes of content that the owner is asked to read at a time; at least one item is read.
pub const READ_BYTES: u64 = 1 << 20;
/// Above this many bytes in the transport's state queue, what can wait does.
pub const STATE_QUEUE_HIGH: u64 = 1 << 20;
/// Most requests on the wire at a time, in each direction.
pub const REQUESTS_MAX: usize = 8;
/// Most bytes asked for at a time; a single request may exceed it.
pub const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// Most requests that wait in the session for their turn.
pub const REQUESTS_WAITING_MAX: usize = 64;
/// Segment bytes that a peer may hand in before its key is known, at most.
pub const PROBATION_MAX: u64 = 1 << 20;
/// Most spaces that a peer may talk about.
pub const SPACES_MAX: usize = 1024;
/// How long the peer may take to say hello.
pub const HELLO_TIMEOUT_MS: u64 = 10_000;
/// How long segments of others wait before they are passed on, so that two replicas that get
/// the same segments at the same time do not send them to each other.
pub const FORWARD_DELAY_MS: u64 = 20;
/// Most messages of acks that wait for room in the transport.
const ACKS_WAITING_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Our hello is out; the peer's is due.
    Greeting {
        deadline_ms: u64,
    },
    Open,
    Closed,
}

/// One session; see the module's page.
#[derive(Debug)]
pub struct Session {
    config: Config,
    now_ms: u64,
    phase: Phase,
    /// What the peer's key is to us.
    standing: PeerStanding,
    /// What our key is to the peer.
    own_standing: PeerStanding,
    out: Outbox,
    replication: Replication,
    fetch: Fetch,
    serve: Serve,
    checkpoints: Checkpoints,
    branches: Branches,
    acks: VecDeque<Acks>,
    /// Spaces whose peer vector is to be reported.
    heard: BTreeSet<SpaceId>,
}

impl Session {
    /// Starts a session on a connection whose handshake is complete.
    pub fn new(config: Config, now_ms: u64) -> Self {
        let known = config.standing == PeerStanding::Known;
        let hello = Hello {
            min: PROTOCOL,
            max: PROTOCOL,
            features: config.features,
            pac: config.pac,
            known,
            agent: if known {
                io::cut(&config.agent)
            } else {
                String::new()
            },
            addresses: if known {
                io::cut_addresses(&config.addresses)
            } else {
                vec![]
            },
            life: config.life,
        };
        let mut out = Outbox::default();
        out.send(&Message::Hello(hello));
        Self {
            now_ms,
            phase: Phase::Greeting {
                deadline_ms: now_ms.saturating_add(HELLO_TIMEOUT_MS),
            },
            standing: config.standing,
            own_standing: PeerStanding::Unknown,
            out,
            replication: Replication::new(roster_space(&config.pac)),
            fetch: Fetch::default(),
            serve: Serve::default(),
            checkpoints: Checkpoints::default(),
            branches: Branches::default(),
            acks: VecDeque::new(),
            heard: BTreeSet::new(),
            config,
        }
    }

    /// Takes what happened. After [`Output::Closed`] nothing has an effect.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        self.now_ms = self.now_ms.max(now_ms);
        if self.phase == Phase::Closed {
            return;
        }
        if let Err(violation) = self.take(input) {
            self.break_off(violation);
            return;
        }
        if let Phase::Greeting { deadline_ms } = self.phase
            && self.now_ms >= deadline_ms
        {
            self.close(CloseCode::TimedOut, "no hello in time");
        }
        self.pump();
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.out.outputs.pop_front() {
            return Some(output);
        }
        let space = self.heard.pop_first()?;
        let vector = self.replication.peer_vector(&space)?.clone();
        Some(Output::PeerVector { space, vector })
    }

    /// When [`Input::Timeout`] is due at the latest, in milliseconds; `None` for never.
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.phase {
            Phase::Greeting { deadline_ms } => Some(deadline_ms),
            Phase::Open => self.replication.next_due(self.gate()),
            Phase::Closed => None,
        }
    }

    /// What the peer holds of a space, as far as it has said.
    pub fn peer_vector(&self, space: &SpaceId) -> Option<&VersionVector> {
        self.replication.peer_vector(space)
    }

    /// True while both sides know each other and the session is open.
    pub fn is_established(&self) -> bool {
        self.phase == Phase::Open && self.gate() == Gate::Both
    }

    /// True once the session is over.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Segment bytes sent that the peer has not yet said it holds.
    pub fn segment_bytes_in_flight(&self) -> u64 {
        self.replication.bytes_in_flight()
    }

    /// True if [`Input::WantBranch`] would be sent now.
    pub fn may_want_branch(&self) -> bool {
        self.is_established() && self.branches.is_free()
    }

    /// How many more requests the session takes at once.
    pub fn request_room(&self) -> usize {
        self.fetch.room()
    }

    /// False while the owner does better to leave frames of a lane unread: it is behind in
    /// storing what came. Reading on is safe; an honest peer keeps to its window.
    pub fn wants_frames(&self, lane: Lane) -> bool {
        match lane {
            Lane::State => !self.replication.store_is_behind(),
            Lane::Content => true,
        }
    }

    fn gate(&self) -> Gate {
        match (self.standing, self.own_standing) {
            (PeerStanding::Unknown, _) => Gate::Nothing,
            (PeerStanding::Known, PeerStanding::Unknown) => Gate::RosterUnasked,
            (PeerStanding::Known, PeerStanding::Known) => Gate::Both,
        }
    }

    fn take(&mut self, input: Input) -> Result<(), Violation> {
        match input {
            Input::Frame { lane, bytes } => {
                let message =
                    Message::decode(lane, &bytes).map_err(|e| Violation::new(e.to_string()))?;
                return message.map_or(Ok(()), |message| self.take_message(message));
            }
            Input::Drained { lane, bytes } => {
                let queue = self.out.queue(lane);
                *queue = queue.saturating_sub(bytes);
            }
            Input::Timeout => {}
            Input::PeerKnown => self.admit_peer(),
            Input::SpaceOpen { space, vector } => {
                self.replication.open(space, vector);
                self.announce_vectors();
            }
            Input::SpaceClose { space } => {
                if self.replication.close(&space) {
                    self.out.send(&Message::SpaceClosed(SpaceClosed { space }));
                }
            }
            Input::Advanced {
                space,
                log,
                head,
                origin,
                segment,
            } => {
                let due_ms = match origin {
                    Origin::Own => self.now_ms,
                    Origin::Elsewhere => self.now_ms.saturating_add(FORWARD_DELAY_MS),
                };
                self.replication.advance(&space, log, head, due_ms);
                let gate = self.open_gate();
                self.replication.announce(gate, &mut self.out);
                if let (Origin::Own, Some(segment)) = (origin, segment) {
                    self.replication
                        .push(gate, &space, log, segment, &mut self.out);
                }
            }
            Input::SegmentsLoaded {
                space,
                log,
                segments,
            } => {
                let gate = self.open_gate();
                self.replication
                    .loaded(gate, &space, log, segments, &mut self.out);
            }
            Input::Withhold { space, log } => self.replication.withhold(&space, &log),
            Input::Pruned { space, log } => {
                self.replication.withhold(&space, &log);
                if self.is_established() {
                    self.checkpoints.pruned(space, &mut self.out);
                }
            }
            Input::StartedFrom { header } => {
                if self.is_established() && header.len() <= HEADER_MAX {
                    let header = header.into();
                    self.out.send(&Message::StartedFrom(StartedFrom { header }));
                }
            }
            Input::WantCheckpoint { space, part } => {
                if self.is_established() {
                    self.checkpoints.want(space, part, &mut self.out);
                }
            }
            Input::WantBranch { space, to, trail } => {
                if self.is_established() {
                    self.branches.want(space, to, trail, &mut self.out);
                }
            }
            Input::BranchRead { segments } => self.branches.read(segments, &mut self.out),
            Input::CheckpointRead {
                header,
                last,
                bytes,
            } => self.checkpoints.read(header, last, bytes, &mut self.out),
            Input::Stored {
                store,
                entries,
                refused,
            } => {
                let gate = self.open_gate();
                self.replication
                    .stored(gate, store, entries, refused, &mut self.out)?;
            }
            Input::Reconsider => {
                let gate = self.open_gate();
                self.replication.reconsider(gate, &mut self.out);
            }
            Input::Want {
                request,
                space,
                what,
                bytes,
            } => {
                self.fetch.want(request, space, what, bytes, &mut self.out);
            }
            Input::Cancel { request } => self.fetch.cancel(request, &mut self.out),
            Input::Items { request, items } => self.serve.items(request, items, &mut self.out),
            Input::WantAck { space, token } => {
                if self.is_established() {
                    self.out
                        .send(&Message::AckWanted(AckWanted { space, token }));
                }
            }
            Input::Acks { acks, answers } => self.queue_acks(acks, answers),
            Input::Misbehaved { why } => {
                return Err(Violation {
                    code: CloseCode::Misbehaviour,
                    why,
                });
            }
            Input::Close { code, text } => self.close(code, &text),
        }
        Ok(())
    }

    /// The gate, shut as long as there was no hello.
    fn open_gate(&self) -> Gate {
        if self.phase == Phase::Open {
            self.gate()
        } else {
            Gate::Nothing
        }
    }

    fn take_message(&mut self, message: Message) -> Result<(), Violation> {
        match (&self.phase, self.standing, message) {
            (_, _, Message::Close(Close { code, text })) => {
                self.phase = Phase::Closed;
                self.out.push(Output::Closed {
                    code,
                    text,
                    by: io::ClosedBy::Peer,
                });
                Ok(())
            }
            (Phase::Greeting { .. }, _, Message::Hello(hello)) => self.greet(hello),
            (Phase::Greeting { .. }, ..) => Err(Violation::new("a message before hello")),
            (Phase::Open, _, Message::Known) => {
                if self.own_standing == PeerStanding::Unknown {
                    self.own_standing = PeerStanding::Known;
                    self.announce_vectors();
                }
                Ok(())
            }
            (Phase::Open, standing, Message::Segments(segments)) => {
                self.replication.receive(standing, segments)
            }
            (Phase::Open, PeerStanding::Unknown, _) => Err(Violation::new(
                "more than roster segments from an unknown key",
            )),
            (Phase::Open, PeerStanding::Known, message) => self.take_from_known(message),
            (Phase::Closed, ..) => Ok(()),
        }
    }

    fn take_from_known(&mut self, message: Message) -> Result<(), Violation> {
        match message {
            Message::Vector(part) => {
                let space = part.space;
                if self.replication.take_vector(part)? {
                    self.heard.insert(space);
                }
            }
            Message::Have(have) => {
                let space = have.space;
                if self.replication.take_have(have)? {
                    self.heard.insert(space);
                }
            }
            Message::Decline(decline) => self.replication.take_decline(&decline),
            Message::SpaceClosed(SpaceClosed { space }) => {
                self.replication.take_closed(&space);
                self.heard.remove(&space);
                self.out.push(Output::PeerClosedSpace { space });
            }
            Message::Acks(Acks { acks, answers }) => {
                let acks = acks.into_iter().map(Into::into).collect();
                self.out.push(Output::PeerAcks { acks, answers });
            }
            Message::AckWanted(AckWanted { space, token }) => {
                if self.replication.is_open(&space) {
                    self.out.push(Output::AckWanted { space, token });
                }
            }
            Message::WantContents(want) => {
                self.serve
                    .want(want.request, want.space, Wanted::Contents(want.ids))?;
            }
            Message::WantPieces(want) => {
                let what = Wanted::Pieces {
                    content: want.content,
                    pieces: want.pieces,
                };
                self.serve.want(want.request, want.space, what)?;
            }
            Message::Cancel(cancel) => self.serve.cancel(cancel.request),
            Message::Contents(answer) => {
                self.fetch
                    .answer(answer, fetch::AnswerKind::Contents, &mut self.out)?;
            }
            Message::Pieces(answer) => {
                self.fetch
                    .answer(answer, fetch::AnswerKind::Pieces, &mut self.out)?;
            }
            Message::Pruned(pruned) => {
                if self.replication.is_open(&pruned.space) {
                    let space = pruned.space;
                    self.out.push(Output::PeerPruned { space });
                }
            }
            Message::StartedFrom(StartedFrom { header }) => {
                let header = header.into();
                self.out.push(Output::PeerStartedFrom { header });
            }
            Message::WantCheckpoint(want) => {
                let open = self.replication.is_open(&want.space);
                self.checkpoints.wanted(want, open, &mut self.out)?;
            }
            Message::CheckpointPart(part) => self.checkpoints.came(part, &mut self.out)?,
            Message::WantBranch(want) => {
                let open = self.replication.is_open(&want.space);
                self.branches.wanted(want, open, &mut self.out)?;
            }
            Message::Branch(branch) => self.branches.came(branch, &mut self.out)?,
            Message::Hello(_) => return Err(Violation::new("a second hello")),
            Message::Known | Message::Segments(_) | Message::Close(_) => {}
        }
        Ok(())
    }

    fn greet(&mut self, hello: Hello) -> Result<(), Violation> {
        if hello.pac != self.config.pac {
            let why = "the other side belongs to another pac".into();
            return Err(Violation {
                code: CloseCode::WrongPac,
                why,
            });
        }
        if !(hello.min..=hello.max).contains(&PROTOCOL) {
            let why = format!(
                "speaks protocols {} to {}, not {PROTOCOL}",
                hello.min, hello.max
            );
            return Err(Violation {
                code: CloseCode::NoCommonVersion,
                why,
            });
        }
        self.phase = Phase::Open;
        if hello.known {
            self.own_standing = PeerStanding::Known;
        }
        self.out.push(Output::Established {
            features: hello.features & self.config.features,
            agent: hello.agent,
            addresses: hello.addresses,
            own_standing: self.own_standing,
        });
        self.announce_vectors();
        Ok(())
    }

    fn admit_peer(&mut self) {
        if self.standing == PeerStanding::Unknown {
            self.standing = PeerStanding::Known;
            self.out.send(&Message::Known);
            self.announce_vectors();
        }
    }

    fn announce_vectors(&mut self) {
        let gate = self.open_gate();
        self.replication.announce_vectors(gate, &mut self.out);
    }

    fn queue_acks(&mut self, acks: Vec<Vec<u8>>, answers: Option<u64>) {
        for message in io::ack_messages(acks, answers) {
            if self.acks.len() >= ACKS_WAITING_MAX {
                self.acks.pop_front();
            }
            self.acks.push_back(message);
        }
    }

    /// Starts whatever the windows have room for.
    fn pump(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        let gate = self.gate();
        self.replication.pump(gate, self.now_ms, &mut self.out);
        if gate != Gate::Both {
            return;
        }
        while !self.out.state_is_full()
            && let Some(acks) = self.acks.pop_front()
        {
            self.out.send(&Message::Acks(acks));
        }
        self.fetch.pump(&mut self.out);
        let replication = &self.replication;
        self.serve
            .pump(|space| replication.is_open(space), &mut self.out);
    }

    fn break_off(&mut self, violation: Violation) {
        if matches!(
            violation.code,
            CloseCode::Violation | CloseCode::Misbehaviour
        ) {
            self.out.push(Output::Violated {
                why: violation.why.clone(),
            });
        }
        self.close(violation.code, &violation.why);
    }

    fn close(&mut self, code: CloseCode, text: &str) {
        let close = Close::new(code, text);
        self.phase = Phase::Closed;
        self.out.send(&Message::Close(close));
        self.out.push(Output::Closed {
            code,
            text: text.to_owned(),
            by: io::ClosedBy::Us,
        });
    }
}

/// What may be sent, as both sides' standings allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// The peer's key is unknown: it is sent nothing.
    Nothing,
    /// Our key is unknown to the peer: it takes roster segments only and says nothing back.
    RosterUnasked,
    /// Everything.
    Both,
}

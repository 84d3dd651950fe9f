//! Toy owners with maps for stores, joined by lanes in memory, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use crate::content::ObjectId;
use crate::ids::{DeviceId, Incarnation, LogId, PacId, ShortHash, SpaceId};
use crate::roster::roster_space;
use crate::session::*;
use crate::vector::{Dep, Head, VersionVector};
use crate::wire::{Item, Lane, SEGMENT_MIN};

pub(super) fn pac() -> PacId {
    PacId::from_bytes([7; 32])
}

pub(super) fn roster() -> SpaceId {
    roster_space(&pac())
}

pub(super) fn home() -> SpaceId {
    SpaceId::from_bytes([8; 16])
}

pub(super) fn log(n: u8) -> LogId {
    LogId::new(
        DeviceId::from_bytes([n; 32]),
        Incarnation::from_bytes([n; 16]),
    )
}

pub(super) fn config(standing: PeerStanding) -> Config {
    Config {
        pac: pac(),
        standing,
        features: 1,
        agent: "test".into(),
        addresses: vec![],
        life: Incarnation::from_bytes([7; 16]),
    }
}

/// Fake segment bytes: number of the log, first and last entry, filling.
pub(super) fn segment(n: u8, first: u64, last: u64, filling: usize) -> Loaded {
    let filling = filling.max(SEGMENT_MIN - 17);
    let mut bytes = vec![n];
    bytes.extend(first.to_le_bytes());
    bytes.extend(last.to_le_bytes());
    bytes.resize(17 + filling, n);
    Loaded {
        first,
        head: Head {
            seq: last,
            hash: ShortHash::from_bytes([last as u8; 16]),
        },
        bytes,
    }
}

fn parse(bytes: &[u8]) -> Option<(u8, Loaded)> {
    let n = *bytes.first()?;
    let first = u64::from_le_bytes(bytes.get(1..9)?.try_into().ok()?);
    let last = u64::from_le_bytes(bytes.get(9..17)?.try_into().ok()?);
    Some((n, segment(n, first, last, bytes.len() - 17)))
}

pub(super) type Logs = BTreeMap<LogId, Vec<Loaded>>;

/// An owner: a store and what it has seen.
#[derive(Default)]
pub(super) struct Node {
    pub(super) spaces: BTreeMap<SpaceId, Logs>,
    pub(super) contents: BTreeMap<ObjectId, Item>,
    pub(super) arrived: Vec<(ObjectId, Item)>,
    pub(super) done: Vec<(u64, Vec<ObjectId>)>,
    pub(super) events: Vec<Output>,
    /// Segments received, with those that were here already.
    pub(super) received: usize,
    /// Logs that it does not take.
    pub(super) declines: BTreeSet<LogId>,
}

impl Node {
    pub(super) fn new() -> Self {
        let spaces = [(roster(), Logs::new()), (home(), Logs::new())].into();
        Self {
            spaces,
            ..Self::default()
        }
    }

    pub(super) fn write(&mut self, space: SpaceId, n: u8, entries: u64, filling: usize) -> Loaded {
        let segments = self
            .spaces
            .entry(space)
            .or_default()
            .entry(log(n))
            .or_default();
        let first = segments.last().map_or(1, |s| s.head.seq + 1);
        let new = segment(n, first, first + entries - 1, filling);
        segments.push(new.clone());
        new
    }

    pub(super) fn vector(&self, space: &SpaceId) -> VersionVector {
        let logs = self.spaces.get(space).into_iter().flatten();
        logs.filter_map(|(log, s)| s.last().map(|s| (*log, s.head)))
            .collect()
    }

    fn store(&mut self, space: &SpaceId, segments: &[Vec<u8>]) -> (Vec<Dep>, Vec<Refusal>) {
        let logs = self.spaces.entry(*space).or_default();
        let (mut heads, mut refused) = (BTreeMap::new(), vec![]);
        for bytes in segments {
            self.received += 1;
            let Some((n, new)) = parse(bytes) else {
                refused.push(Refusal::Misbehaviour("not a segment".into()));
                continue;
            };
            if self.declines.contains(&log(n)) {
                refused.push(Refusal::Declined(log(n)));
                continue;
            }
            let held = logs.entry(log(n)).or_default();
            let seq = held.last().map_or(0, |s| s.head.seq);
            if new.first == seq + 1 {
                heads.insert(log(n), new.head);
                held.push(new);
            } else if new.head.seq > seq {
                refused.push(Refusal::Declined(log(n)));
            }
        }
        (
            heads
                .into_iter()
                .map(|(log, head)| Dep { log, head })
                .collect(),
            refused,
        )
    }

    fn load(&self, space: &SpaceId, log: &LogId, after: u64, bytes_max: u64) -> Vec<Loaded> {
        let mut size = 0;
        let held = self
            .spaces
            .get(space)
            .and_then(|logs| logs.get(log))
            .into_iter()
            .flatten();
        held.filter(|s| s.first > after)
            .take_while(|s| {
                let first = size == 0;
                size += s.bytes.len() as u64;
                first || size <= bytes_max
            })
            .cloned()
            .collect()
    }
}

/// One side of a connection.
pub(super) struct End {
    pub(super) node: usize,
    pub(super) session: Session,
    /// Frames that the other side has not yet got, by lane.
    wire: [VecDeque<Vec<u8>>; 2],
    /// Outputs that the owner has not yet answered.
    todo: VecDeque<Output>,
}

/// Two ends.
pub(super) struct Link {
    pub(super) ends: [End; 2],
}

/// Everything, driven by one seed.
pub(super) struct World {
    pub(super) now: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) links: Vec<Link>,
    pub(super) frames: usize,
    pub(super) content_queue_max: u64,
    rng: ChaCha20Rng,
}

#[derive(Clone, Copy)]
enum Step {
    Deliver(usize, usize, usize),
    Answer(usize, usize),
}

fn lane(n: usize) -> Lane {
    if n == 0 { Lane::State } else { Lane::Content }
}

impl World {
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
        Self {
            now: 1000,
            nodes: (0..nodes).map(|_| Node::new()).collect(),
            links: vec![],
            frames: 0,
            content_queue_max: 0,
            rng: ChaCha20Rng::seed_from_u64(seed),
        }
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.rng.next_u64() % n.max(1) as u64) as usize
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) -> usize {
        self.connect_as(a, b, [PeerStanding::Known; 2])
    }

    /// `standings`: what the other is to `a`, and to `b`.
    pub(super) fn connect_as(&mut self, a: usize, b: usize, standings: [PeerStanding; 2]) -> usize {
        let ends = [(a, standings[0]), (b, standings[1])].map(|(node, standing)| End {
            node,
            session: Session::new(config(standing), self.now),
            wire: Default::default(),
            todo: VecDeque::new(),
        });
        self.links.push(Link { ends });
        let link = self.links.len() - 1;
        for side in 0..2 {
            let node = self.links[link].ends[side].node;
            let spaces: Vec<SpaceId> = self.nodes[node].spaces.keys().copied().collect();
            for space in spaces {
                let vector = self.nodes[node].vector(&space);
                self.tell(link, side, Input::SpaceOpen { space, vector });
            }
        }
        link
    }

    /// Drops a connection with all that is under way on it, and makes a new one.
    pub(super) fn reconnect(&mut self, link: usize) {
        let [a, b] = [0, 1].map(|side| self.links[link].ends[side].node);
        let new = self.connect(a, b);
        self.links.swap_remove(link);
        debug_assert!(new >= link);
    }

    /// Gives a session an input and does at once what can be done at once.
    pub(super) fn tell(&mut self, link: usize, side: usize, input: Input) {
        let end = &mut self.links[link].ends[side];
        end.session.handle(self.now, input);
        let node = &mut self.nodes[end.node];
        while let Some(output) = end.session.poll_output() {
            match output {
                Output::Send { lane, bytes } => {
                    assert!(bytes.len() <= lane.frame_max());
                    self.frames += 1;
                    end.wire[(lane == Lane::Content) as usize].push_back(bytes);
                }
                Output::Load { .. } | Output::Store { .. } | Output::Read { .. } => {
                    end.todo.push_back(output);
                }
                Output::Arrived { items, .. } => node.arrived.extend(items),
                Output::RequestDone { request, missing } => node.done.push((request, missing)),
                other => node.events.push(other),
            }
        }
        assert!(end.session.segment_bytes_in_flight() <= SEGMENT_WINDOW);
        let queued = end.wire[1].iter().map(|f| f.len() as u64).sum::<u64>();
        self.content_queue_max = self.content_queue_max.max(queued);
    }

    /// A node writes a segment and tells its sessions.
    pub(super) fn write(
        &mut self,
        node: usize,
        space: SpaceId,
        n: u8,
        entries: u64,
        filling: usize,
    ) {
        let new = self.nodes[node].write(space, n, entries, filling);
        let (head, segment) = (new.head, Some(new));
        self.spread(node, None, space, log(n), head, Origin::Own, segment);
    }

    #[allow(clippy::too_many_arguments)]
    fn spread(
        &mut self,
        node: usize,
        but: Option<usize>,
        space: SpaceId,
        log: LogId,
        head: Head,
        origin: Origin,
        segment: Option<Loaded>,
    ) {
        for link in (0..self.links.len()).filter(|link| Some(*link) != but) {
            for side in 0..2 {
                if self.links[link].ends[side].node == node {
                    let segment = segment.clone();
                    self.tell(
                        link,
                        side,
                        Input::Advanced {
                            space,
                            log,
                            head,
                            origin,
                            segment,
                        },
                    );
                }
            }
        }
    }

    fn deliver(&mut self, link: usize, side: usize, n: usize) {
        let Some(bytes) = self.links[link].ends[side].wire[n].pop_front() else {
            return;
        };
        let size = bytes.len() as u64;
        self.tell(
            link,
            side,
            Input::Drained {
                lane: lane(n),
                bytes: size,
            },
        );
        self.tell(
            link,
            1 - side,
            Input::Frame {
                lane: lane(n),
                bytes,
            },
        );
    }

    fn answer(&mut self, link: usize, side: usize) {
        let Some(output) = self.links[link].ends[side].todo.pop_front() else {
            return;
        };
        let at = self.links[link].ends[side].node;
        match output {
            Output::Load {
                space,
                log,
                after,
                bytes_max,
            } => {
                let after = after.map_or(0, |head| head.seq);
                let segments = self.nodes[at].load(&space, &log, after, bytes_max);
                self.tell(
                    link,
                    side,
                    Input::SegmentsLoaded {
                        space,
                        log,
                        segments,
                    },
                );
            }
            Output::Store {
                store,
                space,
                segments,
            } => {
                let (entries, refused) = self.nodes[at].store(&space, &segments);
                for Dep { log, head } in entries.clone() {
                    self.spread(at, Some(link), space, log, head, Origin::Elsewhere, None);
                }
                self.tell(
                    link,
                    side,
                    Input::Stored {
                        store,
                        entries,
                        refused,
                    },
                );
            }
            Output::Read {
                request,
                what,
                bytes_max,
                ..
            } => {
                let mut size = 0;
                let objects = (0..what.len()).filter_map(|n| what.object(n));
                let items = objects
                    .map(|id| {
                        self.nodes[at]
                            .contents
                            .get(&id)
                            .cloned()
                            .unwrap_or(Item::Missing)
                    })
                    .take_while(|item| {
                        let first = size == 0;
                        size += item.size() as u64 + 1;
                        first || size <= bytes_max
                    })
                    .collect();
                self.tell(link, side, Input::Items { request, items });
            }
            _ => {}
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = vec![];
        for (l, link) in self.links.iter().enumerate() {
            for (side, end) in link.ends.iter().enumerate() {
                let lanes = (0..2).filter(|n| !end.wire[*n].is_empty());
                steps.extend(lanes.map(|n| Step::Deliver(l, side, n)));
                if !end.todo.is_empty() {
                    steps.push(Step::Answer(l, side));
                }
            }
        }
        steps
    }

    /// Does one thing, or lets time pass; false if nothing is left to do.
    pub(super) fn step(&mut self) -> bool {
        let steps = self.steps();
        if steps.is_empty() {
            return self.pass_time();
        }
        let n = self.below(steps.len());
        match steps[n] {
            Step::Deliver(link, side, n) => self.deliver(link, side, n),
            Step::Answer(link, side) => self.answer(link, side),
        }
        true
    }

    fn pass_time(&mut self) -> bool {
        let ends = self.links.iter().flat_map(|link| &link.ends);
        let Some(due) = ends.filter_map(|end| end.session.poll_timeout()).min() else {
            return false;
        };
        self.now = self.now.max(due);
        self.tell_all(Input::Timeout);
        true
    }

    pub(super) fn tell_all(&mut self, input: Input) {
        for link in 0..self.links.len() {
            for side in 0..2 {
                self.tell(link, side, input.clone());
            }
        }
    }

    /// Goes on until nothing is left to do, and checks that there is an end to it.
    pub(super) fn settle(&mut self) {
        let mut left = 200_000;
        while self.step() {
            left -= 1;
            assert!(left > 0, "no rest");
        }
    }

    /// Nothing more comes of a world at rest.
    pub(super) fn assert_rest(&mut self) {
        let frames = self.frames;
        self.now += 3_600_000;
        self.tell_all(Input::Timeout);
        assert_eq!(self.frames, frames, "frames at rest");
        assert!(self.steps().is_empty(), "work at rest");
        for end in self.links.iter().flat_map(|link| &link.ends) {
            assert_eq!(end.session.poll_timeout(), None);
            assert_eq!(end.session.segment_bytes_in_flight(), 0);
            assert!(!end.session.is_closed());
        }
    }

    pub(super) fn assert_equal(&self) {
        for node in &self.nodes[1..] {
            assert_eq!(node.spaces, self.nodes[0].spaces);
        }
    }
}

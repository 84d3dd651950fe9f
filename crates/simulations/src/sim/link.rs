//! The network: connections of two ordered lanes each way, and what can happen to them.
//!
//! A lane loses and repeats nothing while its connection stands, as QUIC has it. So loss is a
//! connection that ends in the middle of what was under way, and what comes twice comes by another
//! connection or another device. Never here: what frames mean.

use std::collections::BTreeMap;

use pacsync_daemon::net::Lane;
use pacsync_protocol::session::{CONTENT_QUEUE_MAX, STATE_QUEUE_HIGH};
use pacsync_protocol::wire;

use super::lie::Liar;
use super::world::{Event, World};

const SECOND_NS: u64 = 1_000_000_000;
/// How long a connection stands of which one direction is dead, as the endpoint has it.
const IDLE_TIMEOUT_NS: u64 = 50 * SECOND_NS;
/// A lane's queue reports that it has emptied to [`LOW_MARK`] once it was here, as the endpoint
/// has it.
const HIGH_MARK: u64 = 512 << 10;
const LOW_MARK: u64 = 256 << 10;
/// What a frame costs in a queue beside its bytes.
const FRAME_COST: u64 = 256;

/// How all connections of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Links {
    pub(crate) latency_ns: u64,
    /// Up to so much more for each frame, on each lane by itself.
    pub(crate) jitter_ns: u64,
    /// One frame in forty takes up to so much longer.
    pub(crate) spike_ns: u64,
    /// The content lane is behind the state lane by up to so much.
    pub(crate) lag_ns: u64,
    /// Bytes a second that a lane carries; without one it is never full.
    pub(crate) rate: Option<u64>,
    /// Nobody but this device can be dialled: the others hear of each other through it.
    pub(crate) hub: Option<usize>,
}

impl Links {
    /// A good local network.
    pub(crate) const GOOD: Self = Self {
        latency_ns: 200_000,
        jitter_ns: 20_000_000,
        spike_ns: 0,
        lag_ns: 0,
        rate: None,
        hub: None,
    };
}

#[derive(Debug, Default, Clone, Copy)]
struct LaneOut {
    /// When its last frame arrives.
    last_ns: u64,
    /// When the last byte has left, where lanes have a rate.
    free_ns: u64,
    queued: u64,
    was_high: bool,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct ConnEnd {
    pub(crate) device: usize,
    pub(crate) epoch: u64,
    /// The other end's number; 0 when nothing gets there any more.
    pub(crate) peer: u64,
    lanes: [LaneOut; 2],
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) links: Links,
    pub(crate) conns: BTreeMap<u64, ConnEnd>,
    next_conn: u64,
    /// Pairs of devices that cannot connect, the lower number first.
    cut: std::collections::BTreeSet<(usize, usize)>,
    /// Until when nothing gets from one device to another, though it does the other way.
    mute: BTreeMap<(usize, usize), u64>,
    /// When the last connection that was silent is not any more, or is given up.
    pub(crate) quiet_ns: u64,
    pub(crate) liars: BTreeMap<usize, Liar>,
    /// When the last liar began to be honest.
    pub(crate) honest_ns: Option<u64>,
    /// Parts of checkpoints that have arrived.
    pub(crate) parts: u64,
    /// What waited on a lane although its session should have held back.
    pub(crate) overfull: Option<String>,
}

impl Network {
    pub(crate) fn new(links: Links) -> Self {
        Self {
            links,
            conns: BTreeMap::new(),
            next_conn: 1,
            cut: Default::default(),
            mute: BTreeMap::new(),
            quiet_ns: 0,
            liars: BTreeMap::new(),
            honest_ns: None,
            parts: 0,
            overfull: None,
        }
    }

    /// Makes a connection between two devices' processes; returns both ends' numbers.
    pub(crate) fn join(&mut self, from: (usize, u64), to: (usize, u64)) -> (u64, u64) {
        let (a, b) = (self.next_conn, self.next_conn + 1);
        self.next_conn += 2;
        for (conn, (device, epoch), peer) in [(a, from, b), (b, to, a)] {
            let end = ConnEnd {
                device,
                epoch,
                peer,
                lanes: Default::default(),
            };
            self.conns.insert(conn, end);
        }
        (a, b)
    }

    /// True if a dial of one device to another gets an answer at this moment.
    pub(crate) fn can_dial(&self, from: usize, to: usize, now_ns: u64) -> bool {
        let is_mute = |pair| self.mute.get(&pair).is_some_and(|until| *until > now_ns);
        !self.cut.contains(&(from.min(to), from.max(to)))
            && !is_mute((from, to))
            && !is_mute((to, from))
            && self.links.hub.is_none_or(|hub| hub == to)
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    pub(crate) fn mend(&mut self, a: usize, b: usize) {
        self.cut.remove(&(a.min(b), a.max(b)));
    }

    /// Nothing is cut any more.
    pub(crate) fn mend_all(&mut self) {
        self.cut.clear();
        self.mute.clear();
    }

    fn between(&self, a: usize, b: usize) -> Vec<u64> {
        let device = |conn| self.conns.get(&conn).map(|end: &ConnEnd| end.device);
        self.conns
            .iter()
            .filter(|(_, end)| {
                let other = device(end.peer);
                (end.device == a && other == Some(b)) || (end.device == b && other == Some(a))
            })
            .map(|(conn, _)| *conn)
            .collect()
    }
}

fn place(lane: Lane) -> usize {
    match lane {
        Lane::State => 0,
        Lane::Content => 1,
    }
}

/// Most that a session may have waiting on a lane: it holds back from here on, and one frame may
/// be the last.
fn bound(lane: Lane) -> u64 {
    match lane {
        Lane::State => STATE_QUEUE_HIGH + wire::Lane::State.frame_max() as u64,
        Lane::Content => CONTENT_QUEUE_MAX + wire::Lane::Content.frame_max() as u64,
    }
}

impl World {
    /// All connections of a device end; the others notice after a while.
    pub(crate) fn hang_up(&mut self, device: usize) {
        let own: Vec<(u64, u64)> = self
            .net
            .conns
            .iter()
            .filter(|(_, end)| end.device == device)
            .map(|(conn, end)| (*conn, end.peer))
            .collect();
        for (conn, peer) in own {
            self.net.conns.remove(&conn);
            let wait = self.random(2 * SECOND_NS);
            self.at(
                wait,
                Event::Closed {
                    conn: peer,
                    code: None,
                },
            );
        }
    }

    /// Ends the connections between two devices; both notice after a while.
    pub(crate) fn disconnect(&mut self, a: usize, b: usize) {
        for conn in self.net.between(a, b) {
            // Nothing gets through any more, but the end itself stands until it is told.
            if let Some(end) = self.net.conns.get_mut(&conn) {
                end.peer = 0;
            }
            let wait = self.random(3 * SECOND_NS);
            self.at(wait, Event::Closed { conn, code: None });
        }
    }

    /// Ends the connections between two devices in the middle of what is under way: of each lane
    /// some of it arrives, and nothing behind that.
    pub(crate) fn tear(&mut self, a: usize, b: usize) {
        for conn in self.net.between(a, b) {
            for lane in Lane::ALL {
                let under_way: Vec<(u64, u64)> = self
                    .queue
                    .iter()
                    .filter(|(_, event)| {
                        matches!(event, Event::Frame { conn: to, lane: on, .. }
                            if *to == conn && *on == lane)
                    })
                    .map(|(key, _)| *key)
                    .collect();
                let arrive = self.random(under_way.len() as u64 + 1) as usize;
                for key in under_way.get(arrive..).unwrap_or_default() {
                    self.queue.remove(key);
                    self.counts.add("frame lost");
                }
            }
        }
        self.disconnect(a, b);
    }

    /// Nothing gets from one device to another for a while.
    pub(crate) fn silence(&mut self, from: usize, to: usize, ms: u64) {
        let ns = ms * 1_000_000;
        self.net.mute.insert((from, to), self.clock_ns + ns);
        let over_ns = self.clock_ns + ns.min(IDLE_TIMEOUT_NS);
        self.net.quiet_ns = self.net.quiet_ns.max(over_ns);
        if ns > IDLE_TIMEOUT_NS {
            self.at(IDLE_TIMEOUT_NS, Event::TimedOut { a: from, b: to });
        }
    }

    /// A process sends a frame. Returns what now waits on its lane; `None` if the connection is
    /// gone.
    pub(crate) fn send(&mut self, conn: u64, lane: Lane, bytes: Vec<u8>) -> Option<u64> {
        let Some(end) = self.net.conns.get_mut(&conn) else {
            // What is drawn does not depend on who has noticed what.
            self.random(self.net.links.jitter_ns);
            return None;
        };
        let device = end.device;
        let cost = bytes.len() as u64 + FRAME_COST;
        let rated = self.net.links.rate.is_some();
        let mut waiting = 0;
        if rated && let Some(out) = end.lanes.get_mut(place(lane)) {
            out.queued += cost;
            out.was_high |= out.queued >= HIGH_MARK;
            waiting = out.queued;
            // Each frame that waits has its cost beside its bytes.
            if waiting > bound(lane) + (bound(lane) / 8) {
                self.net.overfull.get_or_insert_with(|| {
                    format!("{waiting} B wait on the {lane:?} lane of a connection of d{device}")
                });
            }
        }
        let frames = match self.net.liars.get_mut(&device) {
            Some(liar) => liar.tell(lane, bytes),
            None => vec![(lane, bytes)],
        };
        let is_true = matches!(frames.as_slice(), [(on, _)] if *on == lane);
        if self.net.liars.contains_key(&device) && !is_true {
            self.counts.add("frame mutated");
        }
        for (on, bytes) in frames {
            self.carry(conn, on, bytes);
        }
        if rated {
            let free_ns = self.net.conns.get(&conn)?.lanes.get(place(lane))?.free_ns;
            let wait = free_ns.saturating_sub(self.clock_ns);
            self.at(wait, Event::Sent { conn, lane, cost });
        }
        Some(waiting)
    }

    /// How long links with a rate may need for all that was ever written: it may pass two of them,
    /// more than once.
    pub(crate) fn time_for_all_bytes(&self) -> u64 {
        let Some(rate) = self.net.links.rate else {
            return 0;
        };
        let versions = self.oracle.versions.values();
        let written = versions.filter_map(|version| version.bytes.as_ref());
        let bytes: u64 = written.map(|bytes| bytes.len() as u64).sum();
        4 * bytes * SECOND_NS / rate
    }

    /// How long so many frames may need that are each asked for when the one before is here.
    pub(crate) fn time_for_round_trips(&self, count: u64) -> u64 {
        let links = self.net.links;
        count * 2 * (links.latency_ns + links.jitter_ns)
    }

    /// A frame has left; true if its lane has just emptied.
    pub(crate) fn sent(&mut self, conn: u64, lane: Lane, cost: u64) -> bool {
        let end = self.net.conns.get_mut(&conn);
        let Some(out) = end.and_then(|end| end.lanes.get_mut(place(lane))) else {
            return false;
        };
        out.queued = out.queued.saturating_sub(cost);
        let has_drained = out.was_high && out.queued <= LOW_MARK;
        out.was_high &= !has_drained;
        has_drained
    }

    fn carry(&mut self, conn: u64, lane: Lane, bytes: Vec<u8>) {
        let links = self.net.links;
        let mut delay = links.latency_ns + self.random(links.jitter_ns);
        if links.spike_ns > 0 && self.random(40) == 0 {
            delay += self.random(links.spike_ns);
        }
        if links.lag_ns > 0 && lane == Lane::Content {
            delay += self.random(links.lag_ns);
        }
        let now = self.clock_ns;
        let Some((device, peer)) = self.net.conns.get(&conn).map(|end| (end.device, end.peer))
        else {
            return;
        };
        let to = self.net.conns.get(&peer).map_or(device, |end| end.device);
        let mut earliest = now + delay;
        if let Some(until) = self.net.mute.get(&(device, to)).copied()
            && until > now
        {
            // Sent again until it arrives, or the connection ends before.
            earliest = earliest.max(until + links.latency_ns);
        }
        let Some(out) = self
            .net
            .conns
            .get_mut(&conn)
            .and_then(|end| end.lanes.get_mut(place(lane)))
        else {
            return;
        };
        if let Some(rate) = links.rate {
            let takes_ns = bytes.len() as u64 * SECOND_NS / rate;
            out.free_ns = out.free_ns.max(now) + takes_ns;
            earliest = earliest.max(out.free_ns + links.latency_ns);
        }
        out.last_ns = earliest.max(out.last_ns + 1_000);
        let wait = out.last_ns - now;
        let frame = Event::Frame {
            conn: peer,
            lane,
            bytes,
        };
        self.at(wait, frame);
    }
}

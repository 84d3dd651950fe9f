//! Plays scripts: what comes next comes, until everything rests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pacsync_daemon::control::api::KeepRequest;
use pacsync_daemon::disk::FsEvent;
use pacsync_daemon::net::{CloseReason, ConnId, ConnectFailure, Direction, Lane, PeerStanding};
use pacsync_protocol::grant::Role;
use pacsync_protocol::identity::DeviceName;
use pacsync_protocol::pairing::Peer;
use pacsync_store::StoreError;

use super::check;
use super::fs::{Body, Fs};
use super::lie::Liar;
use super::mishap::Profile;
use super::node::{Ended, Node, address};
use super::oracle::Written;
use super::script::{Action, Faults, Script, Setup, Step};
use super::user;
use super::world::{Armed, Counts, Crash, EPOCH_NS, Event, Shared, World, lock};

const MS: u64 = 1_000_000;
/// Time between two sweeps of history where it is kept for a short time, and the length of packs.
const SWEEP_MS: u64 = 4_000;
const SWEEP_PACK: u64 = 3_000;
/// Time between attempts at a replica that failed, as the daemon has it.
const REOPEN_MS: u64 = 2_000;

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which.
    pub invariant: &'static str,
    /// What was found.
    pub details: Vec<String>,
}

/// A finished run.
#[derive(Debug)]
pub struct Outcome {
    /// Hash of all that happened.
    pub hash: String,
    /// What was done.
    pub counts: Counts,
    /// What was broken, if anything.
    pub failure: Option<Failure>,
    /// What happened, line by line.
    pub trace: Vec<String>,
    /// The script.
    pub script: Vec<String>,
}

/// How much a trace tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What users, crashes and faults do.
    Events,
    /// Each operation and frame as well.
    Operations,
}

/// Plays the script of a seed.
pub fn run(setup: &Setup, detail: Detail) -> Outcome {
    play(setup, &Script::new(setup), detail)
}

/// Leaves steps out of a failing script as long as it fails in the same way; plays at most
/// `attempts` times.
pub fn shrink(setup: &Setup, invariant: &'static str, attempts: usize, detail: Detail) -> Outcome {
    let mut script = Script::new(setup);
    let mut left = attempts;
    let fails = |script: &Script, left: &mut usize| {
        *left = left.saturating_sub(1);
        let outcome = play(setup, script, Detail::Events);
        outcome
            .failure
            .is_some_and(|failure| failure.invariant == invariant)
    };
    let mut size = script.steps.len() / 2;
    while size > 0 && left > 0 {
        let mut at = 0;
        while at < script.steps.len() && left > 0 {
            let mut shorter = script.clone();
            let end = (at + size).min(shorter.steps.len());
            // The time that the steps took goes by all the same.
            let waited: u64 = shorter.steps.drain(at..end).map(|step| step.wait_us).sum();
            if let Some(next) = shorter.steps.get_mut(at) {
                next.wait_us += waited;
            }
            if fails(&shorter, &mut left) {
                script = shorter;
            } else {
                at = end;
            }
        }
        size /= 2;
    }
    play(setup, &script, detail)
}

fn play(setup: &Setup, script: &Script, detail: Detail) -> Outcome {
    play_as(setup, script, detail, |runner| runner.play(setup, script))
}

/// Plays what `story` tells in the world of a script.
pub(super) fn play_as(
    setup: &Setup,
    script: &Script,
    detail: Detail,
    story: impl FnOnce(&mut Runner) -> Result<(), Failure>,
) -> Outcome {
    let disks = (0..script.profile.devices())
        .map(|at| Fs::new(setup.disk.abilities(at), EPOCH_NS))
        .collect();
    let world = Arc::new(Mutex::new(World::new(
        setup.seed,
        &script.profile,
        disks,
        detail == Detail::Operations,
    )));
    let mut runner = Runner {
        world: world.clone(),
        nodes: BTreeMap::new(),
        steps: 0,
        seed: setup.seed,
        profile: script.profile.clone(),
        set_aside: false,
        received: BTreeMap::new(),
    };
    let mut failure = story(&mut runner).err();
    if let Some(failure) = &mut failure
        && detail == Detail::Operations
    {
        failure.details.extend(check::rows(&runner));
    }
    for node in runner.nodes.values_mut() {
        node.end();
    }
    let mut world = lock(&world);
    let mut counts = world.counts.clone();
    counts.runs = 1;
    counts.steps = runner.steps;
    Outcome {
        hash: world.hash(),
        counts,
        failure,
        trace: std::mem::take(&mut world.trace.lines),
        script: script.steps.iter().map(Step::to_string).collect(),
    }
}

/// All devices, and the world around them.
pub(super) struct Runner {
    pub(super) world: Shared,
    pub(super) nodes: BTreeMap<usize, Node>,
    pub(super) steps: u64,
    pub(super) seed: u64,
    pub(super) profile: Profile,
    /// A list of what was set aside is gone with an index.
    pub(super) set_aside: bool,
    /// Bytes of frames that came to each device.
    pub(super) received: BTreeMap<(usize, Lane), u64>,
}

pub(super) fn broken(invariant: &'static str, details: Vec<String>) -> Failure {
    Failure { invariant, details }
}

impl Runner {
    fn play(&mut self, setup: &Setup, script: &Script) -> Result<(), Failure> {
        self.set_up(setup)?;
        self.rest("at the beginning")?;
        for step in &script.steps {
            self.run_for(step.wait_us * 1_000)?;
            check::status(self)?;
            self.act(&step.action)?;
        }
        lock(&self.world).say("heals".into());
        self.heal()?;
        self.rest("at the end")?;
        check::all(self)?;
        self.check_nothing_to_do()?;
        if setup.faults == Faults::All {
            self.check_index_loss()?;
        }
        Ok(())
    }

    pub(super) fn set_up(&mut self, setup: &Setup) -> Result<(), Failure> {
        let failed = |error: StoreError| broken("set-up", vec![error.to_string()]);
        {
            let mut world = lock(&self.world);
            for (host, skew_ms) in world.hosts.iter_mut().zip(&self.profile.skew_ms) {
                host.fs.ahead_ns = skew_ms * MS as i64;
                host.even_ms = *skew_ms;
            }
        }
        let founder = Node::found(&self.world, 0, self.seed_of(0)).map_err(failed)?;
        self.nodes.insert(0, founder);
        self.start(0)?;
        if let Some((text, rest)) = self.profile.keeps {
            let request = KeepRequest {
                name: "home".into(),
                text: Some(text.into()),
                rest: Some(rest.into()),
                percent: None,
            };
            let kept = self.call(0, |device, now| Ok(device.space_keep(&request, now)))?;
            if let Some(Err(error)) = kept {
                return Err(broken("set-up", vec![error.to_string()]));
            }
        }
        for at in 1..setup.devices {
            if !self.join(at, 0, self.seed_of(at))? {
                return Err(broken("set-up", vec!["the founder enrols nobody".into()]));
            }
        }
        Ok(())
    }

    pub(super) fn seed_of(&self, at: usize) -> u64 {
        self.seed.wrapping_mul(1_000_003).wrapping_add(at as u64)
    }

    /// A sponsor lets a device in; false if it died over that.
    pub(super) fn join(&mut self, at: usize, sponsor: usize, seed: u64) -> Result<bool, Failure> {
        self.join_as(at, sponsor, seed, Role::Admin)
    }

    pub(super) fn join_as(
        &mut self,
        at: usize,
        sponsor: usize,
        seed: u64,
        role: Role,
    ) -> Result<bool, Failure> {
        let failed = |error: StoreError| broken("set-up", vec![error.to_string()]);
        let keys = Node::keys(seed);
        let peer = Peer {
            name: DeviceName::new(&format!("d{at}")).expect("a plain name"),
            device: keys.public(),
            role,
        };
        let welcome = self.call(sponsor, |device, now| Ok(device.enrol(&peer, now)))?;
        let Some(welcome) = welcome else {
            return Ok(false);
        };
        let welcome = match welcome {
            Ok(welcome) => welcome,
            Err(why) => {
                lock(&self.world).say(format!("d{sponsor} does not enrol d{at}: {why}"));
                return Ok(false);
            }
        };
        let node = Node::join(&self.world, at, seed, keys, welcome).map_err(failed)?;
        self.nodes.insert(at, node);
        self.start(at)?;
        Ok(true)
    }

    /// A device comes later: whoever runs lets it in, now or soon.
    pub(super) fn join_late(&mut self, at: usize) -> Result<(), Failure> {
        if self.nodes.contains_key(&at) {
            return Ok(());
        }
        let now = lock(&self.world).clock_ns;
        let running = |(_, node): &(&usize, &Node)| node.device.is_some();
        let sponsor = self.nodes.iter().find(running).map(|(at, _)| *at);
        let has_joined = match sponsor {
            // Other keys for each attempt, as a home that never joined would have.
            Some(sponsor) => self.join(at, sponsor, self.seed_of(at) ^ now)?,
            None => false,
        };
        let mut world = lock(&self.world);
        if has_joined {
            world.counts.add("device added");
            world.say(format!("d{at} has joined"));
        } else {
            world.at(1_000 * MS, Event::Join { device: at });
        }
        Ok(())
    }

    pub(super) fn start(&mut self, at: usize) -> Result<(), Failure> {
        let Some(node) = self.nodes.get_mut(&at) else {
            return Ok(());
        };
        if let Err(ended) = node.start() {
            return self.ended(at, ended);
        }
        let (prunes, sweeps) = (self.profile.prunes, self.profile.keeps.is_some());
        self.call(at, |device, now| {
            if prunes {
                device.prune_from(0, 1_000);
            }
            if sweeps {
                device.sweep_every(SWEEP_MS, SWEEP_PACK, now);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// A process has come to its end.
    fn ended(&mut self, at: usize, ended: Ended) -> Result<(), Failure> {
        match ended {
            // Its restart is on the list since its death.
            Ended::Killed => {}
            Ended::Failed(why) => {
                let mut world = lock(&self.world);
                world.say(format!("d{at} replica failed: {why}"));
                world.counts.add("replica failed");
                world.hang_up(at);
                if let Some(host) = world.hosts.get_mut(at) {
                    host.dead = true;
                    host.fs.process_died();
                }
                world.at(REOPEN_MS * MS, Event::Restart { device: at });
            }
            Ended::Panicked(why) => {
                return Err(broken("no panic", vec![format!("d{at}: {why}")]));
            }
        }
        if let Some(node) = self.nodes.get_mut(&at) {
            node.end();
        }
        Ok(())
    }

    pub(super) fn call<T>(
        &mut self,
        at: usize,
        act: impl FnOnce(
            &mut pacsync_daemon::device::Device,
            pacsync_daemon::worktree::Now,
        ) -> Result<T, pacsync_store::StoreError>,
    ) -> Result<Option<T>, Failure> {
        let Some(node) = self.nodes.get_mut(&at) else {
            return Ok(None);
        };
        match node.call(act) {
            Ok(value) => Ok(value),
            Err(ended) => {
                self.ended(at, ended)?;
                Ok(None)
            }
        }
    }

    fn act(&mut self, action: &Action) -> Result<(), Failure> {
        let mut world = lock(&self.world);
        match action {
            Action::Device {
                device,
                in_ops: 0,
                what,
            } => {
                let running = world.hosts.get(*device).is_some_and(|host| !host.dead);
                if running || matches!(what, Armed::Edit { .. } | Armed::Text { .. }) {
                    world.strike(*device, what.clone());
                }
            }
            Action::Device {
                device,
                in_ops,
                what,
            } => {
                if let Some(host) = world.hosts.get_mut(*device) {
                    host.armed.push((*in_ops, what.clone()));
                }
            }
            Action::Drop { a, b } => {
                world.say(format!("connections of d{a} and d{b} break"));
                world.counts.add("connection lost");
                world.disconnect(*a, *b);
            }
            Action::Cut { a, b, ms } => {
                world.say(format!("d{a} and d{b} are cut off for {ms} ms"));
                world.counts.add("partition");
                world.net.cut(*a, *b);
                world.disconnect(*a, *b);
                world.at(ms * MS, Event::Heal { a: *a, b: *b });
            }
            Action::Overflow { device } => {
                world.say(format!("d{device} loses events"));
                world.counts.add("events lost");
                let device = *device;
                world.queue.retain(
                    |_, event| !matches!(event, Event::Fs { device: of, .. } if *of == device),
                );
                let epoch = world.hosts.get(device).map_or(0, |host| host.epoch);
                let event = FsEvent::Overflow;
                world.at(
                    MS,
                    Event::Fs {
                        device,
                        epoch,
                        event,
                    },
                );
            }
            Action::Tear { a, b } => {
                world.say(format!("connections of d{a} and d{b} are torn"));
                world.counts.add("connection torn");
                world.tear(*a, *b);
            }
            Action::Silence { from, to, ms } => {
                world.say(format!("nothing gets from d{from} to d{to} for {ms} ms"));
                world.counts.add("one-way link");
                world.silence(*from, *to, *ms);
            }
            Action::Clock { device, ms } => {
                world.say(format!("d{device}'s clock is set {ms} ms ahead"));
                world.counts.add("clock set");
                if let Some(host) = world.hosts.get_mut(*device) {
                    host.fs.ahead_ns = ms * MS as i64;
                }
            }
            Action::Sleep { device, ms } => {
                world.counts.add("long sleep");
                world.crash(*device, Crash::Kill, *ms);
            }
            Action::Pass { ms, seed } => {
                world.say(format!("{ms} ms pass"));
                for a in 0..world.hosts.len() {
                    for b in a + 1..world.hosts.len() {
                        world.disconnect(a, b);
                    }
                }
                world.pass(*ms);
                for (at, host) in world.hosts.iter_mut().enumerate() {
                    if seed >> at & 1 == 1 {
                        host.even_ms -= *ms as i64;
                    }
                }
            }
            Action::Lie {
                device,
                style,
                seed,
                ms,
            } => {
                world.say(format!("d{device} lies ({style:?}) for {ms} ms"));
                world.counts.add("liar");
                world.net.liars.insert(*device, Liar::new(*style, *seed));
                world.at(ms * MS, Event::Honest { device: *device });
            }
            Action::Join { device } => {
                drop(world);
                return self.join_late(*device);
            }
            Action::Twin { device } => {
                drop(world);
                return self.copy_machine(*device);
            }
        }
        drop(world);
        // A process that this killed is gone.
        match action {
            Action::Device { device, .. } | Action::Sleep { device, .. } => self.bury(*device),
            _ => {}
        }
        Ok(())
    }

    /// Copies the machine of a device as it is, processes apart, and switches the copy on.
    pub(super) fn copy_machine(&mut self, device: usize) -> Result<(), Failure> {
        let Some((of, at)) = self.profile.twin.filter(|(_, at)| *at == device) else {
            return Ok(());
        };
        let seed = self.seed_of(at);
        let Some(twin) = self.nodes.get(&of).map(|node| node.twin(at, seed)) else {
            return Ok(());
        };
        if self.nodes.contains_key(&at) {
            return Ok(());
        }
        {
            let mut world = lock(&self.world);
            let Some(host) = world.hosts.get(of) else {
                return Ok(());
            };
            let (fs, medium, packs) = (
                host.fs.twin(),
                host.medium.survivor(),
                host.packs.survivor(),
            );
            if let Some(host) = world.hosts.get_mut(at) {
                host.fs = fs;
                host.medium = medium;
                host.packs = packs;
            }
            // What its daemon had not taken in yet, both copies tell by themselves.
            let World { hosts, oracle, .. } = &mut *world;
            for (_, ino) in hosts.get(of).into_iter().flat_map(|host| host.fs.walk()) {
                let inode = hosts.get(of).and_then(|host| host.fs.inode(ino));
                if let Some(Body::File(data)) = inode.map(|inode| &inode.body) {
                    oracle.moved(&Written::file(data));
                }
            }
            world.say(format!("d{of} is copied: d{at}"));
            world.counts.add("clone");
        }
        self.nodes.insert(at, twin);
        self.start(at)
    }

    /// A device ends, and its index is gone when it begins anew.
    pub(super) fn lose_index(&mut self, at: usize, down_ms: u64) -> Result<(), Failure> {
        if !self.nodes.contains_key(&at) {
            return Ok(());
        }
        {
            let mut world = lock(&self.world);
            world.say(format!("d{at} loses its index"));
            world.counts.add("index lost");
            world.crash(at, Crash::Kill, down_ms);
        }
        // What a first join has set aside is listed there.
        self.set_aside |= check::has_set_aside(self, at)?;
        let Some(node) = self.nodes.get_mut(&at) else {
            return Ok(());
        };
        node.end();
        let lost = node.lose_index();
        lost.map_err(|error| broken("the replica can be read", vec![error.to_string()]))
    }

    /// Drops a process that died between its calls.
    pub(super) fn bury(&mut self, at: usize) {
        let dead = lock(&self.world)
            .hosts
            .get(at)
            .is_some_and(|host| host.dead);
        if dead && let Some(node) = self.nodes.get_mut(&at) {
            node.end();
        }
    }

    /// Lets time pass and do what it brings.
    pub(super) fn run_for(&mut self, ns: u64) -> Result<(), Failure> {
        let until = lock(&self.world).clock_ns + ns;
        while self.next(until)? {}
        let mut world = lock(&self.world);
        world.clock_ns = world.clock_ns.max(until);
        Ok(())
    }

    /// Does the next thing, if it is due before `until`.
    fn next(&mut self, until: u64) -> Result<bool, Failure> {
        let event_at = lock(&self.world).queue.keys().next().copied();
        let wake = self
            .nodes
            .iter()
            .filter_map(|(at, node)| Some((node.wake_ns?, *at)))
            .min();
        let due = [event_at.map(|(ns, _)| ns), wake.map(|(ns, _)| ns)];
        let Some(first) = due.into_iter().flatten().min().filter(|ns| *ns <= until) else {
            return Ok(false);
        };
        {
            let mut world = lock(&self.world);
            world.clock_ns = world.clock_ns.max(first);
        }
        match (event_at, wake) {
            (Some(key), wake) if wake.is_none_or(|(ns, _)| key.0 <= ns) => {
                let event = lock(&self.world).queue.remove(&key);
                if let Some(event) = event {
                    self.happen(event)?;
                }
            }
            (_, Some((_, at))) => self.step(at)?,
            _ => {}
        }
        Ok(true)
    }

    fn step(&mut self, at: usize) -> Result<(), Failure> {
        self.steps += 1;
        let more = self.call(at, |device, now| Ok((device.step(now)?, device.next_due())))?;
        let now = lock(&self.world).clock_ns;
        if let (Some((more, due)), Some(node)) = (more, self.nodes.get_mut(&at)) {
            node.wake_ns = if more {
                Some(now + 50_000)
            } else {
                let even_ms = lock(&self.world).hosts.get(at).map_or(0, |h| h.even_ms);
                due.map(|ms| {
                    let ns = (ms as i64).saturating_sub(even_ms).max(0) as u64 * MS;
                    ns.max(now + MS)
                })
            };
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Frame { conn, lane, bytes } => {
                let Some(at) = self.end_of(conn) else {
                    return Ok(());
                };
                *self.received.entry((at, lane)).or_default() += bytes.len() as u64;
                // A part of a checkpoint, by its type.
                if bytes.starts_with(&[0x82, 15]) {
                    let mut world = lock(&self.world);
                    world.counts.add("checkpoint part");
                    world.net.parts += 1;
                }
                self.call(at, |device, now| {
                    device.frame(ConnId::from_number(conn), lane, bytes, now)
                })?;
            }
            Event::Closed { conn, code } => {
                let end = lock(&self.world).net.conns.remove(&conn);
                if let Some(end) = end {
                    let text = "lost".into();
                    let reason = match code {
                        Some(code) => CloseReason::PeerClosed { code, text },
                        None => CloseReason::TimedOut,
                    };
                    self.call(end.device, |device, now| {
                        device.closed(ConnId::from_number(conn), &reason, now)
                    })?;
                }
            }
            Event::Dial { device, epoch, to } => self.dial(device, epoch, to)?,
            Event::Fs {
                device,
                epoch,
                event,
            } => {
                let current = lock(&self.world)
                    .hosts
                    .get(device)
                    .is_some_and(|host| host.epoch == epoch && !host.dead);
                if current && let Some(space) = self.nodes.get(&device).map(|n| n.home_space) {
                    self.call(device, |device, now| {
                        device.fs_event(space, event, now);
                        Ok(())
                    })?;
                }
            }
            Event::Restart { device } => {
                let dead = lock(&self.world)
                    .hosts
                    .get(device)
                    .is_some_and(|host| host.dead);
                if dead {
                    if let Some(node) = self.nodes.get_mut(&device) {
                        node.end();
                    }
                    self.start(device)?;
                }
            }
            Event::Heal { a, b } => lock(&self.world).net.mend(a, b),
            Event::TimedOut { a, b } => lock(&self.world).disconnect(a, b),
            Event::Sent { conn, lane, cost } => {
                let has_drained = lock(&self.world).sent(conn, lane, cost);
                if has_drained && let Some(at) = self.end_of(conn) {
                    self.call(at, |device, now| {
                        device.drained(ConnId::from_number(conn), lane, now)
                    })?;
                }
            }
            Event::Join { device } => self.join_late(device)?,
            Event::Honest { device } => self.be_honest(device),
            Event::Finish {
                device,
                ino,
                generation,
                seed,
            } => user::finish(&mut lock(&self.world), device, ino, generation, seed),
        }
        Ok(())
    }

    /// The device at a connection's end, if its process still is the one that had it.
    pub(super) fn end_of(&self, conn: u64) -> Option<usize> {
        let world = lock(&self.world);
        let end = world.net.conns.get(&conn)?;
        let host = world.hosts.get(end.device)?;
        (host.epoch == end.epoch && !host.dead).then_some(end.device)
    }

    fn dial(&mut self, from: usize, epoch: u64, to: usize) -> Result<(), Failure> {
        let reachable = {
            let world = lock(&self.world);
            let current = world
                .hosts
                .get(from)
                .is_some_and(|host| host.epoch == epoch && !host.dead);
            if !current {
                return Ok(());
            }
            world.net.can_dial(from, to, world.clock_ns)
                && world.hosts.get(to).is_some_and(|host| !host.dead)
        };
        let members = |runner: &mut Self, at| runner.call(at, |device, _| Ok(device.members()));
        let ids = (
            self.nodes.get(&from).map(|n| n.identity.keys.id()),
            self.nodes.get(&to).map(|n| n.identity.keys.id()),
        );
        let (Some(from_id), Some(to_id)) = ids else {
            return Ok(());
        };
        // Of two replicas with one key neither lets the other in.
        let reachable = reachable && from_id != to_id;
        let known_there = reachable.then(|| members(self, to)).transpose()?.flatten();
        let Some(known_there) = known_there else {
            // Never an answer; the attempt is given up at once, the back-off does the rest.
            self.call(from, |device, now| {
                device.connect_failed(address(to), &ConnectFailure::NoAnswer, now);
                Ok(())
            })?;
            return Ok(());
        };
        let standing = if known_there.contains(&from_id) {
            PeerStanding::Known
        } else {
            PeerStanding::Unknown
        };
        let (a, b) = {
            let mut guard = lock(&self.world);
            let world: &mut World = &mut guard;
            let end = |at: usize| (at, world.hosts.get(at).map_or(0, |host| host.epoch));
            let ends = (end(from), end(to));
            world.net.join(ends.0, ends.1)
        };
        self.call(to, |device, now| {
            let conn = ConnId::from_number(b);
            device.connected(
                conn,
                from_id,
                standing,
                address(from),
                Direction::Incoming,
                now,
            )
        })?;
        self.call(from, |device, now| {
            let conn = ConnId::from_number(a);
            let known = PeerStanding::Known;
            device.connected(conn, to_id, known, address(to), Direction::Outgoing, now)
        })?;
        Ok(())
    }
}

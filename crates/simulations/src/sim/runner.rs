//! Plays scripts: what comes next comes, until everything rests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pacsync_daemon::disk::FsEvent;
use pacsync_daemon::net::{ConnId, ConnectFailure, Direction, PeerStanding};
use pacsync_protocol::grant::Role;
use pacsync_protocol::identity::DeviceName;
use pacsync_protocol::pairing::Peer;
use pacsync_protocol::row::RESERVED_PREFIX;

use super::check;
use super::fs::Fs;
use super::node::{Ended, Node, address};
use super::script::{Action, Script, Setup, Step};
use super::user;
use super::world::{Armed, Counts, EPOCH_NS, Event, Shared, World, lock};

const MS: u64 = 1_000_000;
/// Virtual time that coming to rest may take.
const REST_MAX_NS: u64 = 15 * 60 * 1_000 * MS;
/// Steps of devices that coming to rest may take.
const REST_STEPS_MAX: u64 = 12_000;
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
    let disks = (0..setup.devices)
        .map(|_| Fs::new(setup.disk.abilities(), EPOCH_NS))
        .collect();
    let world = Arc::new(Mutex::new(World::new(
        setup.seed,
        disks,
        detail == Detail::Operations,
    )));
    let mut runner = Runner {
        world: world.clone(),
        nodes: BTreeMap::new(),
        steps: 0,
    };
    let mut failure = runner.play(setup, script).err();
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
    steps: u64,
}

fn broken(invariant: &'static str, details: Vec<String>) -> Failure {
    Failure { invariant, details }
}

impl Runner {
    fn play(&mut self, setup: &Setup, script: &Script) -> Result<(), Failure> {
        self.set_up(setup)?;
        self.rest("at the beginning")?;
        for step in &script.steps {
            self.run_for(step.wait_us * 1_000)?;
            self.act(&step.action);
        }
        lock(&self.world).say("heals".into());
        self.heal()?;
        self.rest("at the end")?;
        check::all(self)?;
        self.check_nothing_to_do()
    }

    fn set_up(&mut self, setup: &Setup) -> Result<(), Failure> {
        let failed = |error: pacsync_store::StoreError| broken("set-up", vec![error.to_string()]);
        let seed = |at: usize| setup.seed.wrapping_mul(1_000_003).wrapping_add(at as u64);
        let founder = Node::found(&self.world, 0, seed(0)).map_err(failed)?;
        self.nodes.insert(0, founder);
        self.start(0)?;
        for at in 1..setup.devices {
            let keys = Node::keys(seed(at));
            let peer = Peer {
                name: DeviceName::new(&format!("d{at}")).expect("a plain name"),
                device: keys.public(),
                role: Role::Admin,
            };
            let welcome = self
                .call(0, |device, now| Ok(device.enrol(&peer, now)))?
                .ok_or_else(|| broken("set-up", vec!["the founder is not running".into()]))?
                .map_err(|why| broken("set-up", vec![why]))?;
            let node = Node::join(&self.world, at, seed(at), keys, welcome).map_err(failed)?;
            self.nodes.insert(at, node);
            self.start(at)?;
        }
        Ok(())
    }

    fn start(&mut self, at: usize) -> Result<(), Failure> {
        let Some(node) = self.nodes.get_mut(&at) else {
            return Ok(());
        };
        match node.start() {
            Ok(()) => Ok(()),
            Err(ended) => self.ended(at, ended),
        }
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

    fn call<T>(
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

    fn act(&mut self, action: &Action) {
        let mut world = lock(&self.world);
        match action {
            Action::Device {
                device,
                in_ops: 0,
                what,
            } => {
                let running = world.hosts.get(*device).is_some_and(|host| !host.dead);
                if running || matches!(what, Armed::Edit { .. }) {
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
                world.cut.insert((*a.min(b), *a.max(b)));
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
        }
        drop(world);
        // A process that this killed is gone.
        let at = match action {
            Action::Device { device, .. } => *device,
            _ => return,
        };
        self.bury(at);
    }

    /// Drops a process that died between its calls.
    fn bury(&mut self, at: usize) {
        let dead = lock(&self.world)
            .hosts
            .get(at)
            .is_some_and(|host| host.dead);
        if dead && let Some(node) = self.nodes.get_mut(&at) {
            node.end();
        }
    }

    /// Lets time pass and do what it brings.
    fn run_for(&mut self, ns: u64) -> Result<(), Failure> {
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
                due.map(|ms| (ms * MS).max(now + MS))
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
                self.call(at, |device, now| {
                    device.frame(ConnId::from_number(conn), lane, bytes, now)
                })?;
            }
            Event::Closed { conn } => {
                let end = lock(&self.world).conns.remove(&conn);
                if let Some(end) = end {
                    self.call(end.device, |device, now| {
                        device.closed(ConnId::from_number(conn), "lost", now);
                        Ok(())
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
            Event::Heal { a, b } => {
                lock(&self.world).cut.remove(&(a.min(b), a.max(b)));
            }
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
    fn end_of(&self, conn: u64) -> Option<usize> {
        let world = lock(&self.world);
        let end = world.conns.get(&conn)?;
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
            !world.are_cut(from, to) && world.hosts.get(to).is_some_and(|host| !host.dead)
        };
        let members = |runner: &mut Self, at| runner.call(at, |device, _| Ok(device.members()));
        let ids = (
            self.nodes.get(&from).map(|n| n.identity.keys.id()),
            self.nodes.get(&to).map(|n| n.identity.keys.id()),
        );
        let (Some(from_id), Some(to_id)) = ids else {
            return Ok(());
        };
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
        let (a, b) = lock(&self.world).join(from, to);
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

    /// Nothing goes wrong any more, and everybody is there.
    fn heal(&mut self) -> Result<(), Failure> {
        let mut down = vec![];
        {
            let mut guard = lock(&self.world);
            let world: &mut World = &mut guard;
            world.healed = true;
            world.cut.clear();
            for at in 0..world.hosts.len() {
                let Some(host) = world.hosts.get_mut(at) else {
                    continue;
                };
                let armed = std::mem::take(&mut host.armed);
                host.clear_fault();
                if host.dead {
                    down.push(at);
                }
                for (_, armed) in armed {
                    if let Armed::Edit { .. } = armed {
                        world.strike(at, armed);
                    }
                }
            }
        }
        for at in down {
            self.start(at)?;
        }
        Ok(())
    }

    fn is_at_rest(&mut self) -> Result<bool, Failure> {
        {
            let world = lock(&self.world);
            let reserved = |host: &super::world::Host| {
                host.fs
                    .walk()
                    .iter()
                    .any(|(path, _)| path.names().any(|name| name.starts_with(RESERVED_PREFIX)))
            };
            if world.hosts.iter().any(reserved) {
                return Ok(false);
            }
        }
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        for at in nodes {
            let in_sync = self.call(at, |device, now| Ok(device.status(now)?.in_sync))?;
            // With one device nobody is connected, which is in sync with oneself only.
            if in_sync != Some(true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs until nothing is left to do.
    fn rest(&mut self, when: &'static str) -> Result<(), Failure> {
        let begin = lock(&self.world).clock_ns;
        let steps = self.steps;
        let mut calm = 0;
        loop {
            self.run_for(700 * MS)?;
            calm = if self.is_at_rest()? { calm + 1 } else { 0 };
            // Longer than anything waits before it is looked at again.
            if calm >= 5 {
                lock(&self.world).say(format!("rests {when}"));
                return Ok(());
            }
            let now = lock(&self.world).clock_ns;
            if now > begin + REST_MAX_NS || self.steps > steps + REST_STEPS_MAX {
                let mut details = vec![format!(
                    "no rest {when} after {} s and {} steps",
                    (now - begin) / 1_000 / MS,
                    self.steps - steps
                )];
                details.extend(self.describe());
                return Err(broken("termination", details));
            }
        }
    }

    /// What each device says of itself.
    pub(super) fn describe(&mut self) -> Vec<String> {
        let mut lines = vec![];
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        for at in nodes {
            let status = self.call(at, |device, now| device.status(now));
            match status {
                Ok(Some(status)) => {
                    for space in &status.spaces {
                        lines.push(format!(
                            "d{at}: in sync {}, {:?}, pending {}, conflicts {}, held deletes {}",
                            status.in_sync,
                            space.state,
                            space.pending,
                            space.conflicts,
                            space.held_deletes
                        ));
                    }
                    for peer in &status.peers {
                        lines.push(format!(
                            "d{at}: peer {} connected {}, in sync {}",
                            peer.name, peer.connected, peer.in_sync
                        ));
                    }
                    for problem in &status.problems {
                        lines.push(format!("d{at}: {}: {}", problem.path.path, problem.what));
                    }
                }
                Ok(None) => lines.push(format!("d{at} is not running")),
                Err(failure) => lines.extend(failure.details),
            }
        }
        lines.extend(check::differences(self));
        lines
    }

    /// All devices begin anew and look at everything: nothing comes of it.
    fn check_nothing_to_do(&mut self) -> Result<(), Failure> {
        let before = check::state(self)?;
        lock(&self.world).say("all begin anew".into());
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        for at in &nodes {
            if let Some(node) = self.nodes.get_mut(at) {
                node.end();
            }
            let mut world = lock(&self.world);
            world.hang_up(*at);
            if let Some(host) = world.hosts.get_mut(*at) {
                host.dead = true;
                host.medium = host.medium.survivor();
                host.packs = host.packs.survivor();
                host.fs.process_died();
            }
        }
        for at in nodes {
            self.start(at)?;
        }
        self.rest("after a new beginning")?;
        let after = check::state(self)?;
        if before != after {
            let mut details = vec!["looking at everything anew changed something".to_owned()];
            for (line, other) in before.iter().zip(&after) {
                if line != other {
                    details.push(format!("before {line}"));
                    details.push(format!("after  {other}"));
                }
            }
            return Err(broken("nothing to do at rest", details));
        }
        check::all(self)
    }
}

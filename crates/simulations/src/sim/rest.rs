//! Coming to rest: what is waited for, what is expected of it, and what a new beginning changes then.

use std::collections::BTreeSet;

use pacsync_daemon::control::DeletesAction;

use super::check;
use super::runner::{Failure, Runner, broken};
use super::world::{Armed, Crash, World, lock};

const MS: u64 = 1_000_000;
/// Virtual time that coming to rest may take.
const REST_MAX_NS: u64 = 15 * 60 * 1_000 * MS;
/// Steps of devices that coming to rest may take.
const REST_STEPS_MAX: u64 = 12_000;
/// Longest that devices may take until all are in step, once they are connected and nobody writes
/// any more, beside what slow links need for the bytes.
const PROMPT_NS: u64 = 20 * 1_000 * MS;
/// Longest that what a disk refused may take beside: it is tried ever more rarely.
const REFUSED_NS: u64 = 35 * 1_000 * MS;
/// Longest that they may take to connect, which is tried ever more rarely.
const CONNECT_NS: u64 = 80 * 1_000 * MS;

/// What devices that come to rest were seen at.
#[derive(Debug, Default)]
struct Since {
    /// When all were connected for the first time.
    connected_ns: Option<u64>,
    /// When one told of a problem that is in the way, the last time.
    trouble_ns: u64,
    /// Parts of checkpoints that had come before.
    parts: u64,
}

impl Runner {
    /// Nothing goes wrong any more, and everybody is there.
    pub(super) fn heal(&mut self) -> Result<(), Failure> {
        let liars: Vec<usize> = lock(&self.world).net.liars.keys().copied().collect();
        for liar in liars {
            self.be_honest(liar);
        }
        let mut down = vec![];
        {
            let mut guard = lock(&self.world);
            let world: &mut World = &mut guard;
            world.healed = true;
            world.net.mend_all();
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
                    if let Armed::Edit { .. } | Armed::Text { .. } = armed {
                        world.strike(at, armed);
                    }
                }
            }
        }
        for at in down {
            self.start(at)?;
        }
        if let Some((_, twin)) = self.profile.twin {
            self.copy_machine(twin)?;
        }
        match self.profile.joiner {
            Some(joiner) => self.join_late(joiner),
            None => Ok(()),
        }
    }

    /// A liar's bytes arrive as they are from now on; whoever believed it hears it anew.
    pub(super) fn be_honest(&mut self, at: usize) {
        let mut world = lock(&self.world);
        if world.net.liars.remove(&at).is_some() {
            world.say(format!("d{at} is honest"));
            world.net.honest_ns = Some(world.clock_ns);
            world.crash(at, Crash::Kill, 10);
        }
        drop(world);
        self.bury(at);
    }

    pub(super) fn is_at_rest(&mut self) -> Result<bool, Failure> {
        {
            let world = lock(&self.world);
            let has_temporary = |host: &super::world::Host| host.temporary().next().is_some();
            if world.hosts.iter().any(has_temporary) {
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
    pub(super) fn rest(&mut self, when: &'static str) -> Result<(), Failure> {
        let begin = lock(&self.world).clock_ns;
        let steps = self.steps;
        let mut calm = 0;
        let mut since = Since {
            parts: lock(&self.world).net.parts,
            ..Since::default()
        };
        loop {
            self.run_for(700 * MS)?;
            check::status(self)?;
            if self.confirm_deletes()? {
                since.trouble_ns = lock(&self.world).clock_ns;
            }
            self.check_promptness(when, begin, &mut since)?;
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

    /// Whoever is asked whether so much is to be deleted says yes; true if somebody was.
    fn confirm_deletes(&mut self) -> Result<bool, Failure> {
        let mut any = false;
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        for at in nodes {
            let held = self.call(at, |device, now| {
                let status = device.status(now)?;
                Ok(status.spaces.iter().any(|space| space.held_deletes > 0))
            })?;
            if held == Some(true) {
                lock(&self.world).say(format!("d{at} user confirms deletes"));
                self.call(at, |device, now| {
                    Ok(device.deletes(None, DeletesAction::Apply, now).is_ok())
                })?;
                any = true;
            }
        }
        Ok(any)
    }

    /// All are connected soon, and soon after that in step.
    fn check_promptness(
        &mut self,
        when: &'static str,
        begin: u64,
        seen: &mut Since,
    ) -> Result<(), Failure> {
        let (now, calm, slow) = {
            let world = lock(&self.world);
            let edited = world.hosts.iter().map(|host| host.edited_ns);
            let calm = edited.fold(begin.max(world.net.quiet_ns), u64::max);
            // Parts are tiny here, so that there are several of them.
            let round_trips = world.time_for_round_trips(world.net.parts - seen.parts);
            let slow = world.time_for_all_bytes() + round_trips;
            (world.clock_ns, calm, slow)
        };
        let apart = match seen.connected_ns {
            Some(_) => None,
            None => self.first_apart(),
        };
        if apart.is_none() {
            seen.connected_ns.get_or_insert(now);
        }
        if check::has_trouble(self)? {
            seen.trouble_ns = now;
        }
        let due = match seen.connected_ns {
            None => calm + CONNECT_NS,
            Some(connected) => {
                let from = calm.max(connected);
                from.max(seen.trouble_ns.min(from + REFUSED_NS)) + PROMPT_NS + slow
            }
        };
        if now <= due {
            return Ok(());
        }
        let waits = match apart {
            Some((a, b)) => vec![format!("d{a} and d{b} are not connected")],
            None => check::waits(self)?,
        };
        if waits.is_empty() {
            return Ok(());
        }
        let mut details = vec![format!(
            "not in step {when}: {} s after the last edit, {} s late",
            now.saturating_sub(calm) / 1_000 / MS,
            (now - due) / 1_000 / MS
        )];
        details.extend(waits);
        details.extend(self.describe());
        Err(broken("promptness", details))
    }

    /// Two running devices that can connect and are not.
    fn first_apart(&self) -> Option<(usize, usize)> {
        let world = lock(&self.world);
        let net = &world.net;
        let device = |conn: &u64| net.conns.get(conn).map(|end| end.device);
        let ends = net.conns.values();
        let connected: BTreeSet<(usize, usize)> = ends
            .filter_map(|end| Some((end.device, device(&end.peer)?)))
            .collect();
        let is_hub = |at: &usize| net.links.hub.is_none_or(|hub| hub == *at);
        for a in self.nodes.keys() {
            for b in self.nodes.keys().filter(|b| *b > a) {
                // Two machines with one key are not.
                let key = |at| self.nodes.get(at).map(|node| node.identity.keys.id());
                if (is_hub(a) || is_hub(b)) && key(a) != key(b) && !connected.contains(&(*a, *b)) {
                    return Some((*a, *b));
                }
            }
        }
        None
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
                    lines.extend(self.vectors(at));
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

    /// What a device holds and has applied of each space.
    fn vectors(&self, at: usize) -> Vec<String> {
        let device = self.nodes.get(&at).and_then(|node| node.device.as_ref());
        let Some(store) = device.map(pacsync_daemon::device::Device::store) else {
            return vec![];
        };
        let tell = |vector: pacsync_protocol::VersionVector| {
            let heads = vector
                .iter()
                .map(|(log, head)| format!("{log:?} {}", head.seq));
            heads.collect::<Vec<_>>().join(", ")
        };
        let mut lines = vec![];
        for space in store.spaces() {
            let held = store.held(&space.id).map(tell).unwrap_or_default();
            let applied = store.applied(&space.id).map(tell).unwrap_or_default();
            let id = space.id.short();
            lines.push(format!("d{at}: {id} held {held}"));
            if applied != held {
                lines.push(format!("d{at}: {id} applied {applied}"));
            }
        }
        lines
    }

    /// All devices begin anew and look at everything: nothing comes of it.
    pub(super) fn check_nothing_to_do(&mut self) -> Result<(), Failure> {
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
        check::unchanged("nothing to do at rest", &before, &after)?;
        check::all(self)
    }

    /// A device at rest loses its index: a look at everything, and nothing comes of it.
    pub(super) fn check_index_loss(&mut self) -> Result<(), Failure> {
        let count = self.nodes.len().max(1);
        let at = (self.seed / 7) as usize % count;
        if check::keeps_old_names(self, at)? {
            // Without the index nothing tells that these were to be renamed.
            return Ok(());
        }
        let before = check::state(self)?;
        self.lose_index(at, 100)?;
        self.rest("after an index was lost")?;
        let after = check::state(self)?;
        check::unchanged("losing the index costs a look", &before, &after)?;
        check::all(self)
    }
}

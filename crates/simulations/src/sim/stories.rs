//! Runs that are told, not drawn: only what users write in them is random.

use std::collections::BTreeMap;

use pacsync_daemon::control::api::Status;
use pacsync_daemon::control::{Command, RestoreOrder};
use pacsync_daemon::net::Lane;
use pacsync_protocol::grant::Role;
use pacsync_protocol::segment::SignedSegment;
use pacsync_store::tree::TreeReader;
use pacsync_store::{Store, StoreError};
use tokio::sync::oneshot;

use super::check;
use super::mishap::Profile;
use super::node::ROOT;
use super::runner::{Detail, Failure, Outcome, Runner, play_as};
use super::script::{DiskKind, Faults, Script, Setup};
use super::world::{Armed, lock};

const MS: u64 = 1_000_000;
const YEAR_NS: u64 = 365 * 86_400_000 * MS;
/// Longer than an ack waits to be told and pruning waits for an ack.
const PRUNED_NS: u64 = 30_000 * MS;
/// The device that goes, and the one that joins while it is away.
const AWAY: usize = 2;
const NEW: usize = 3;

/// Three devices drop what all of them have as soon as they may. One leaves for five years in which
/// its user goes on editing its disk, the others theirs, and a fourth joins. Then it is back.
pub fn years(seed: u64, detail: Detail) -> Outcome {
    story(seed, detail, NEW + 1, Prunes::Yes, Runner::years)
}

/// A founder, who alone is an admin, and a member drop what both have. A second member is let in,
/// meets only the first one, and takes nothing from it; then the founder.
pub fn members_give_no_checkpoints(seed: u64, detail: Detail) -> Outcome {
    story(seed, detail, 3, Prunes::Yes, Runner::members)
}

/// A device's home is put back from an older copy while its files stay as they are; then all go on.
pub fn home_put_back(seed: u64, detail: Detail) -> Outcome {
    story(seed, detail, 3, Prunes::No, Runner::put_back)
}

/// What an admin and a member deleted goes with all that is known of it: a new device starts without it.
/// Then the member brings it back while the admin, from whom alone all of it is taken, is away for a while.
pub fn the_left_out_come_back(seed: u64, detail: Detail) -> Outcome {
    story(seed, detail, 3, Prunes::Yes, Runner::left_out)
}

/// Whether devices drop what all have as soon as they may.
enum Prunes {
    Yes,
    No,
}

fn story(
    seed: u64,
    detail: Detail,
    devices: usize,
    prunes: Prunes,
    tell: fn(&mut Runner, &Setup) -> Result<(), Failure>,
) -> Outcome {
    let setup = Setup {
        seed,
        steps: 0,
        devices,
        disk: DiskKind::Ext4,
        faults: Faults::Classic,
    };
    let script = Script {
        profile: Profile {
            prunes: matches!(prunes, Prunes::Yes),
            ..Profile::plain(&setup)
        },
        steps: vec![],
    };
    play_as(&setup, &script, detail, |runner| tell(runner, &setup))
}

fn broken(invariant: &'static str, what: String) -> Failure {
    Failure {
        invariant,
        details: vec![what],
    }
}

/// Where the segments that a replica still has begin, by log; 0 for logs that have none left.
fn first_held(store: &Store) -> Result<BTreeMap<String, u64>, Failure> {
    let damaged =
        |error: pacsync_store::StoreError| broken("the replica can be read", error.to_string());
    let mut first = BTreeMap::new();
    for space in store.spaces() {
        for (log, _) in store.held(&space.id).map_err(damaged)?.iter() {
            let (segments, _) = store.segments(&space.id, &log, 1, 1).map_err(damaged)?;
            let found = segments
                .first()
                .and_then(|bytes| SignedSegment::parse(bytes).ok());
            let at = found.map_or(0, |segment| segment.header().first);
            first.insert(format!("{log:?}"), at);
        }
    }
    Ok(first)
}

/// How many rows a replica has of all spaces.
fn rows_of(store: &Store) -> Result<usize, StoreError> {
    let tx = store.read()?;
    let mut count = 0;
    for space in store.spaces() {
        count += TreeReader::open(&tx, space.no)?.rows()?.count();
    }
    Ok(count)
}

impl Runner {
    fn years(&mut self, setup: &Setup) -> Result<(), Failure> {
        let early = Setup {
            devices: NEW,
            ..*setup
        };
        self.set_up(&early)?;
        self.rest("at the beginning")?;
        self.edits(&[0, 1, AWAY], 25)?;
        self.rest("before one leaves")?;
        self.run_for(PRUNED_NS)?;
        for at in 0..NEW {
            let first = self.first_held(at)?;
            if first.values().any(|first| *first == 1) {
                return Err(broken(
                    "what all have is pruned",
                    format!("d{at} still has the beginning of a log: {first:?}"),
                ));
            }
        }

        let numbered = lock(&self.world).oracle.versions.len();
        let Some(away) = self.leave(AWAY) else {
            return Err(broken("set-up", "nobody is there to leave".into()));
        };
        self.edits(&[0, 1, AWAY], 12)?;
        self.pass_year()?;
        self.rest("while one is away")?;
        if !self.join(NEW, 0, self.seed_of(NEW))? {
            return Err(broken("set-up", "the founder enrols nobody".into()));
        }
        self.rest("when one has joined")?;
        self.run_for(PRUNED_NS)?;
        let first = self.first_held(NEW)?;
        if first.values().all(|first| *first == 1) {
            return Err(broken(
                "who joins starts from a checkpoint",
                format!("d{NEW} has everything as segments: {first:?}"),
            ));
        }
        for _ in 1..5 {
            self.edits(&[0, 1, AWAY, NEW], 12)?;
            self.pass_year()?;
            self.rest("while one is away")?;
        }

        lock(&self.world).say(format!("d{AWAY} is back"));
        self.received.clear();
        self.nodes.insert(AWAY, away);
        self.start(AWAY)?;
        self.heal()?;
        self.rest("when it is back")?;
        check::all(self)?;
        self.check_transfer(numbered)?;
        self.check_calm()?;
        self.run_for(PRUNED_NS)?;
        self.check_nothing_to_do()
    }

    fn put_back(&mut self, setup: &Setup) -> Result<(), Failure> {
        const BACK: usize = 1;
        self.set_up(setup)?;
        self.edits(&[0, 1, 2], 15)?;
        self.rest("before the copy")?;
        let copy = {
            let world = lock(&self.world);
            let host = world.hosts.get(BACK);
            host.map(|host| (host.medium.survivor(), host.packs.survivor()))
        };
        let old = self.call(BACK, |device, _| Ok(device.store().own_log().incarnation))?;
        self.edits(&[0, 1, 2], 15)?;
        self.rest("before it is put back")?;
        let (Some(back), Some((medium, packs))) = (self.leave(BACK), copy) else {
            return Err(broken("set-up", "nobody is there to leave".into()));
        };
        {
            let mut world = lock(&self.world);
            world.say(format!("the home of d{BACK} is put back"));
            if let Some(host) = world.hosts.get_mut(BACK) {
                host.medium = medium;
                host.packs = packs;
            }
        }
        self.nodes.insert(BACK, back);
        self.start(BACK)?;
        // It looks at its files before it hears of anything, so its log forks. What its user did before all
        // have met, it could not tell from what it forgot.
        self.heal()?;
        self.rest("when it was put back")?;
        check::all(self)?;
        self.check_calm()?;
        let renewed = self.call(BACK, |device, _| Ok(device.store().own_log()))?;
        if renewed.map(|log| log.incarnation) == old {
            return Err(broken(
                "a log has one writer",
                "the old log is gone on with".into(),
            ));
        }
        self.edits(&[0, 1, 2], 15)?;
        self.rest("when all have gone on")?;
        check::all(self)?;
        self.check_calm()?;
        self.check_nothing_to_do()
    }

    fn left_out(&mut self, setup: &Setup) -> Result<(), Failure> {
        let alone = Setup {
            devices: 1,
            ..*setup
        };
        self.set_up(&alone)?;
        let enrolled = |done: bool| match done {
            true => Ok(()),
            false => Err(broken("set-up", "the founder enrols nobody".into())),
        };
        enrolled(self.join_as(1, 0, self.seed_of(1), Role::Member)?)?;
        self.edits(&[0, 1], 40)?;
        self.rest("before what all have goes")?;
        self.run_for(PRUNED_NS)?;
        enrolled(self.join(2, 0, self.seed_of(2))?)?;
        self.rest("when one has joined")?;
        check::all(self)?;
        let rows = [1, 2].map(|at| self.call(at, |device, _| rows_of(device.store())));
        let [Ok(Some(whole)), Ok(Some(lean))] = rows else {
            return Err(broken("set-up", "somebody is not there".into()));
        };
        if lean >= whole {
            return Err(broken(
                "what is dead for good is left out",
                format!("{lean} rows where another has {whole}"),
            ));
        }
        let admin = self.leave(0);
        let (reply, mut restored) = oneshot::channel();
        let order = RestoreOrder {
            deleted: true,
            ..RestoreOrder::default()
        };
        self.call(1, |device, now| {
            let path = ROOT.into();
            device.command(Command::Restore { path, order, reply }, now)
        })?;
        self.run_for(PRUNED_NS)?;
        let told = self.call(2, |device, now| {
            let status = device.status(now)?;
            let named = |what: &str| what.contains("is taken from an admin");
            Ok(status.problems.iter().any(|p| named(&p.what)))
        })?;
        if told != Some(true) {
            return Err(broken(
                "who waits says so",
                "nothing is said of what is lacking".into(),
            ));
        }
        self.nodes.extend(admin.map(|admin| (0, admin)));
        self.start(0)?;
        self.heal()?;
        self.rest("when all of it is back")?;
        let count = match restored.try_recv() {
            Ok(Ok(report)) => report.restored.len(),
            other => return Err(broken("what was deleted is restored", format!("{other:?}"))),
        };
        let files = [1, 2].map(|at| self.call(at, |device, now| device.status(now)));
        let [Ok(Some(whole)), Ok(Some(lean))] = files else {
            return Err(broken("set-up", "somebody is not there".into()));
        };
        let files = |status: &Status| status.spaces.iter().map(|s| s.files).sum::<u64>();
        if count == 0 || files(&whole) != files(&lean) {
            return Err(broken(
                "what is restored is there",
                format!(
                    "{count} restored; {} and {} files",
                    files(&whole),
                    files(&lean)
                ),
            ));
        }
        self.check_calm()
    }

    fn members(&mut self, setup: &Setup) -> Result<(), Failure> {
        let alone = Setup {
            devices: 1,
            ..*setup
        };
        self.set_up(&alone)?;
        let enrolled = |done: bool| match done {
            true => Ok(()),
            false => Err(broken("set-up", "the founder enrols nobody".into())),
        };
        enrolled(self.join_as(1, 0, self.seed_of(1), Role::Member)?)?;
        self.rest("at the beginning")?;
        self.edits(&[0, 1], 10)?;
        self.rest("before one comes")?;
        self.run_for(PRUNED_NS)?;
        lock(&self.world).net.cut(0, 2);
        enrolled(self.join_as(2, 0, self.seed_of(2), Role::Member)?)?;
        self.run_for(PRUNED_NS)?;
        let met = self.call(2, |device, now| {
            let status = device.status(now)?;
            let named = |what: &str| what.contains("is taken from an admin");
            let told = status.problems.iter().any(|p| named(&p.what));
            Ok((status.spaces.iter().map(|s| s.files).sum::<u64>(), told))
        })?;
        if met != Some((0, true)) {
            return Err(broken(
                "checkpoints are taken from admins",
                format!("files, and whether it is told: {met:?}"),
            ));
        }
        self.heal()?;
        self.rest("when the founder is met")?;
        check::all(self)?;
        self.check_calm()
    }

    /// Nobody has a problem.
    fn check_calm(&mut self) -> Result<(), Failure> {
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        for at in nodes {
            let status = self.call(at, |device, now| device.status(now))?;
            if let Some(problem) = status.and_then(|s| s.problems.into_iter().next()) {
                return Err(broken("no problems", format!("d{at}: {}", problem.what)));
            }
        }
        Ok(())
    }

    fn first_held(&mut self, at: usize) -> Result<BTreeMap<String, u64>, Failure> {
        let first = self.call(at, |device, _| Ok(first_held(device.store())))?;
        first.unwrap_or_else(|| Ok(BTreeMap::new()))
    }

    /// Ends a device's process; its disk and its media stay, and its user has them.
    fn leave(&mut self, at: usize) -> Option<super::node::Node> {
        let mut node = self.nodes.remove(&at)?;
        node.end();
        let mut world = lock(&self.world);
        world.say(format!("d{at} leaves"));
        world.hang_up(at);
        if let Some(host) = world.hosts.get_mut(at) {
            host.dead = true;
            host.fs.process_died();
        }
        Some(node)
    }

    /// Users edit their disks, some seconds apart.
    fn edits(&mut self, devices: &[usize], count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            let (device, seed, wait) = {
                let mut world = lock(&self.world);
                let device = world.random(devices.len() as u64) as usize;
                (device, world.random(u64::MAX), world.random(4_000))
            };
            if let Some(device) = devices.get(device) {
                lock(&self.world).strike(*device, Armed::Edit { seed });
            }
            self.run_for(wait * MS)?;
        }
        Ok(())
    }

    fn pass_year(&mut self) -> Result<(), Failure> {
        {
            let mut world = lock(&self.world);
            world.clock_ns += YEAR_NS;
            world.say("a year goes by".into());
        }
        self.run_for(1_000 * MS)
    }

    /// Content that came to who was away is at most what others wrote meanwhile.
    fn check_transfer(&mut self, numbered: usize) -> Result<(), Failure> {
        let came = self.received.get(&(AWAY, Lane::Content)).copied();
        let mut written = 0;
        for version in lock(&self.world).oracle.versions.values() {
            if version.number as usize > numbered
                && let Some(bytes) = &version.bytes
            {
                written += bytes.len() as u64 + 256;
            }
        }
        let came = came.unwrap_or(0);
        if came > written + 4_096 {
            return Err(broken(
                "nothing is sent that is there",
                format!("{came} bytes of content came for {written} that were new"),
            ));
        }
        Ok(())
    }
}

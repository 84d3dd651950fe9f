//! What is outside of the devices: time, disks, the network, the user, and when processes die.
//!
//! One lock around all of it: everything runs on one thread, and the engine's calls come back
//! here at each disk operation, which is where a user or a crash cuts in.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pacsync_daemon::disk::{DiskOp, FsEvent, RelPath};
use pacsync_daemon::net::{CloseCode, Lane};
use pacsync_protocol::row::RESERVED_PREFIX;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use super::below;
use super::fs::{Fs, Refused};
use super::link::Network;
use super::medium::{Medium, Packs};
use super::mishap::Profile;
use super::oracle::Oracle;
use super::user;

/// When the simulated world begins, in nanoseconds since 1970.
pub(crate) const EPOCH_NS: u64 = 1_750_000_000_000_000_000;

/// Ends a process by unwinding; nothing of the daemon catches it.
pub(crate) struct Killed;

/// What a process asks of a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Disk(DiskOp),
    StoreSync,
    PackWrite,
    PackSync,
}

impl Op {
    fn cost_ns(self) -> u64 {
        match self {
            Self::StoreSync | Self::PackSync | Self::Disk(DiskOp::Sync) => 200_000,
            Self::PackWrite | Self::Disk(_) => 5_000,
        }
    }

    fn takes_room(self) -> bool {
        matches!(
            self,
            Self::PackWrite
                | Self::Disk(DiskOp::Create | DiskOp::Write | DiskOp::Mkdir | DiskOp::Symlink)
        )
    }

    fn reads_or_writes(self) -> bool {
        matches!(
            self,
            Self::PackSync
                | Self::PackWrite
                | Self::Disk(
                    DiskOp::Read
                        | DiskOp::Write
                        | DiskOp::Sync
                        | DiskOp::Create
                        | DiskOp::Open
                        | DiskOp::Rename
                        | DiskOp::Exchange
                        | DiskOp::List
                        | DiskOp::Unlink
                        | DiskOp::Mkdir
                )
        )
    }
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process alone: all that it wrote stays.
    Kill,
    /// The machine: what was not synced may be gone.
    Power,
}

/// What a disk refuses for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    NoSpace,
    Io,
}

/// Something that comes when a device has done so many more operations.
#[derive(Debug, Clone)]
pub(crate) enum Armed {
    Edit {
        seed: u64,
    },
    /// An edit of a text, which may merge with others.
    Text {
        seed: u64,
    },
    Crash {
        crash: Crash,
        down_ms: u64,
    },
    Fault {
        fault: Fault,
        times: u32,
    },
}

/// One device's machine.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) fs: Fs,
    pub(crate) medium: Medium,
    pub(crate) packs: Packs,
    /// Counts processes; a call of an earlier one does nothing any more.
    pub(crate) epoch: u64,
    /// The process of this epoch is dead, though it may not know yet.
    pub(crate) dead: bool,
    /// The process has looked at what the one before it left.
    pub(crate) opened: bool,
    pub(crate) ops: u64,
    pub(crate) armed: Vec<(u64, Armed)>,
    /// How far the clock of its timers is ahead: that of its wall when the process began, less
    /// what it slept.
    pub(crate) even_ms: i64,
    /// When the user last changed something.
    pub(crate) edited_ns: u64,
    fault: Option<(Fault, u32)>,
    rng: ChaCha8Rng,
    /// Where this process, or the one before it until this one has looked, has put files of which no
    /// commit tells yet.
    pub(crate) unrecorded: BTreeSet<RelPath>,
}

impl Host {
    /// Paths of the engine's temporary files.
    pub(crate) fn temporary(&self) -> impl Iterator<Item = RelPath> {
        let walk = self.fs.walk().into_iter();
        walk.map(|(path, _)| path)
            .filter(|path| path.names().any(|name| name.starts_with(RESERVED_PREFIX)))
    }

    pub(crate) fn clear_fault(&mut self) {
        self.fault = None;
    }
}

/// What will happen.
#[derive(Debug)]
pub(crate) enum Event {
    Frame {
        conn: u64,
        lane: Lane,
        bytes: Vec<u8>,
    },
    Closed {
        conn: u64,
        /// As the other side said.
        code: Option<CloseCode>,
    },
    /// A frame has left.
    Sent {
        conn: u64,
        lane: Lane,
        cost: u64,
    },
    /// Two devices give up their connections.
    TimedOut {
        a: usize,
        b: usize,
    },
    Dial {
        device: usize,
        epoch: u64,
        to: usize,
    },
    Fs {
        device: usize,
        epoch: u64,
        event: FsEvent,
    },
    Restart {
        device: usize,
    },
    /// A new device comes.
    Join {
        device: usize,
    },
    /// A device lies no more.
    Honest {
        device: usize,
    },
    Heal {
        a: usize,
        b: usize,
    },
    /// The user goes on with a write that was begun.
    Finish {
        device: usize,
        ino: u64,
        generation: u64,
        seed: u64,
    },
}

/// What was done, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs.
    pub runs: u64,
    /// Steps of devices.
    pub steps: u64,
    /// Disk operations of devices.
    pub operations: u64,
    /// By kind: edits, crashes, faults, cuts.
    pub kinds: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(crate) fn add(&mut self, kind: &'static str) {
        *self.kinds.entry(kind).or_insert(0) += 1;
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        self.steps += other.steps;
        self.operations += other.operations;
        for (kind, count) in &other.kinds {
            *self.kinds.entry(kind).or_insert(0) += count;
        }
    }
}

/// What is told of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: blake3::Hasher,
    pub(crate) lines: Vec<String>,
    /// Keep each disk operation too.
    pub(crate) verbose: bool,
}

pub(crate) struct World {
    pub(crate) clock_ns: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    pub(crate) net: Network,
    pub(crate) oracle: Oracle,
    pub(crate) trace: Trace,
    pub(crate) counts: Counts,
    pub(crate) rng: ChaCha8Rng,
    /// Nothing goes wrong any more.
    pub(crate) healed: bool,
}

/// The world as its parts share it.
pub(crate) type Shared = Arc<Mutex<World>>;

pub(crate) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    Go,
    Fail(Refused),
    /// The process dies with this operation.
    Dies,
    /// It was dead already.
    Dead,
}

impl World {
    pub(crate) fn new(seed: u64, profile: &Profile, disks: Vec<Fs>, verbose: bool) -> Self {
        let hosts = disks
            .into_iter()
            .enumerate()
            .map(|(at, fs)| Host {
                fs,
                medium: Medium::default(),
                packs: Packs::default(),
                epoch: 0,
                dead: true,
                opened: false,
                ops: 0,
                armed: vec![],
                even_ms: 0,
                edited_ns: 0,
                fault: None,
                rng: ChaCha8Rng::seed_from_u64(seed ^ (at as u64 + 1) << 32),
                unrecorded: BTreeSet::new(),
            })
            .collect();
        Self {
            clock_ns: EPOCH_NS,
            hosts,
            queue: BTreeMap::new(),
            queued: 0,
            net: Network::new(profile.links),
            oracle: Oracle::default(),
            trace: Trace {
                hash: blake3::Hasher::new(),
                lines: vec![],
                verbose,
            },
            counts: Counts::default(),
            rng: ChaCha8Rng::seed_from_u64(seed ^ 0x5eed),
            healed: false,
        }
    }

    /// A device's clocks: that of its timers, which nobody sets, and that on its wall.
    pub(crate) fn clocks(&self, device: usize) -> (i64, i64) {
        let clock = self
            .hosts
            .get(device)
            .map_or((0, 0), |host| (host.even_ms, host.fs.ahead_ns));
        let now_ns = self.clock_ns as i64;
        (now_ns / 1_000_000 + clock.0, now_ns + clock.1)
    }

    /// Time goes on at once, and whatever was under way is as long ago; a device that is off
    /// begins when it said that it would.
    pub(crate) fn pass(&mut self, ms: u64) {
        let ns = ms * 1_000_000;
        self.clock_ns += ns;
        // Nobody has had this time to see an edit, or through a lie.
        for host in &mut self.hosts {
            host.edited_ns += ns;
        }
        self.net.honest_ns = self.net.honest_ns.map(|at| at + ns);
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue
            .into_iter()
            .map(|((at, number), event)| match event {
                Event::Restart { .. } => ((at, number), event),
                event => ((at + ns, number), event),
            })
            .collect();
    }

    pub(crate) fn at(&mut self, in_ns: u64, event: Event) {
        self.queued += 1;
        self.queue
            .insert((self.clock_ns + in_ns, self.queued), event);
    }

    pub(crate) fn random(&mut self, below_this: u64) -> u64 {
        below(&mut self.rng, below_this)
    }

    /// Notes what happened.
    pub(crate) fn say(&mut self, line: String) {
        let ms = (self.clock_ns - EPOCH_NS) / 1_000;
        let line = format!("{:>9}.{:03} {line}", ms / 1_000, ms % 1_000);
        self.trace.hash.update(line.as_bytes());
        self.trace.lines.push(line);
    }

    /// Notes an operation: part of the hash, told only if asked for.
    pub(crate) fn whisper(&mut self, line: impl Fn() -> String) {
        let text = line();
        self.trace.hash.update(text.as_bytes());
        if self.trace.verbose {
            let ms = (self.clock_ns - EPOCH_NS) / 1_000;
            self.trace
                .lines
                .push(format!("{:>9}.{:03}   {text}", ms / 1_000, ms % 1_000));
        }
    }

    pub(crate) fn hash(&self) -> String {
        self.trace.hash.finalize().to_hex().as_str()[..16].to_owned()
    }

    /// One operation of a device's process: time goes on, and what is armed comes.
    pub(crate) fn tick(&mut self, device: usize, epoch: u64, op: Op) -> Tick {
        let Some(host) = self.hosts.get_mut(device) else {
            return Tick::Dead;
        };
        if host.epoch != epoch || host.dead {
            return Tick::Dead;
        }
        self.clock_ns += op.cost_ns();
        host.ops += 1;
        self.counts.operations += 1;
        let mut due = vec![];
        host.armed.retain_mut(|(left, armed)| {
            *left = left.saturating_sub(1);
            let is_due = *left == 0;
            if is_due {
                due.push(armed.clone());
            }
            !is_due
        });
        for armed in due {
            self.strike(device, armed);
        }
        let Some(host) = self.hosts.get_mut(device) else {
            return Tick::Dead;
        };
        if host.dead {
            return Tick::Dies;
        }
        if op == Op::StoreSync && host.opened {
            host.unrecorded.clear();
        }
        if let Some((fault, times)) = &mut host.fault {
            let (hit, refused) = match fault {
                Fault::NoSpace => (op.takes_room(), Refused::NoSpace),
                Fault::Io => (op.reads_or_writes(), Refused::Io),
            };
            if hit {
                *times -= 1;
                if *times == 0 {
                    host.fault = None;
                }
                self.say(format!("d{device} {op:?} fails: {refused:?}"));
                return Tick::Fail(refused);
            }
        }
        Tick::Go
    }

    /// Lets something happen to a device now.
    pub(crate) fn strike(&mut self, device: usize, armed: Armed) {
        match armed {
            Armed::Edit { seed } => user::edit(self, device, seed),
            Armed::Text { seed } => user::edit_text(self, device, seed),
            Armed::Crash { crash, down_ms } => self.crash(device, crash, down_ms),
            Armed::Fault { fault, times } => {
                let name = match fault {
                    Fault::NoSpace => "disk full",
                    Fault::Io => "i/o error",
                };
                self.counts.add(name);
                self.say(format!("d{device} {name} {times} times"));
                if let Some(host) = self.hosts.get_mut(device) {
                    host.fault = Some((fault, times));
                }
            }
        }
    }

    /// Ends a process and says what is left of its machine's media.
    pub(crate) fn crash(&mut self, device: usize, crash: Crash, down_ms: u64) {
        self.say(format!("d{device} {crash:?}, down for {down_ms} ms"));
        self.counts.add(match crash {
            Crash::Kill => "kill",
            Crash::Power => "power loss",
        });
        let Some(host) = self.hosts.get_mut(device) else {
            return;
        };
        if host.dead {
            return;
        }
        host.dead = true;
        host.fault = None;
        match crash {
            Crash::Kill => {
                host.medium = host.medium.survivor();
                host.packs = host.packs.survivor();
                host.fs.process_died();
            }
            Crash::Power => {
                host.medium = host.medium.after_power_loss(&mut host.rng);
                host.packs = host.packs.after_power_loss(&mut host.rng);
                host.fs.lose_power(&mut host.rng);
            }
        }
        self.hang_up(device);
        self.at(down_ms * 1_000_000, Event::Restart { device });
    }

    /// Hands the disk's events to the device's process.
    pub(crate) fn deliver_events(&mut self, device: usize) {
        let Some(host) = self.hosts.get_mut(device) else {
            return;
        };
        let epoch = host.epoch;
        let events = host.fs.take_events();
        for event in events {
            // In order, and soon.
            self.at(
                300_000,
                Event::Fs {
                    device,
                    epoch,
                    event,
                },
            );
        }
    }
}

/// A process of a device, as the things that it uses know it.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) world: Shared,
    pub(crate) device: usize,
    pub(crate) epoch: u64,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "d{}.{}", self.device, self.epoch)
    }
}

impl Process {
    /// Begins an operation on the worktree's disk. Ends the process if its time has come.
    pub(crate) fn enter(&self, op: Op) -> Result<MutexGuard<'_, World>, Refused> {
        let mut world = lock(&self.world);
        match world.tick(self.device, self.epoch, op) {
            Tick::Go => Ok(world),
            Tick::Fail(refused) => Err(refused),
            Tick::Dies | Tick::Dead => {
                drop(world);
                resume_unwind(Box::new(Killed));
            }
        }
    }

    /// An operation inside of the database or the packs, which must not be unwound: a process
    /// that dies here goes on until it next touches the disk, without any effect.
    pub(crate) fn quietly(&self, op: Op) -> io::Result<()> {
        let mut world = lock(&self.world);
        match world.tick(self.device, self.epoch, op) {
            Tick::Fail(Refused::NoSpace) => Err(io::ErrorKind::StorageFull.into()),
            Tick::Fail(_) => Err(io::Error::other("simulated")),
            Tick::Go | Tick::Dies | Tick::Dead => Ok(()),
        }
    }
}

//! What goes on in a run: made from a seed, told as text, shortened by leaving steps out.

use std::fmt;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::below;
use super::fs::Abilities;
use super::lie::Style;
use super::mishap::{self, Profile};
use super::world::{Armed, Crash, Fault};

/// What a run is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// All choices follow from it.
    pub seed: u64,
    /// Steps of the script.
    pub steps: usize,
    /// Devices, at least one.
    pub devices: usize,
    /// What all their disks can do.
    pub disk: DiskKind,
    /// What goes wrong.
    pub faults: Faults,
}

/// What goes wrong in runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Faults {
    /// Crashes, power loss, refusing disks, lost events, lost connections and partitions: what
    /// the first generator draws.
    Classic,
    /// These, and what the second one draws: bad links, torn connections, silence in one direction, lies,
    /// wrong clocks, sleep for years, devices that come later, a lost index, edits of texts.
    #[default]
    All,
}

/// What a disk can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskKind {
    /// All that Linux's own have.
    #[default]
    Ext4,
    /// No exchange, no birth times.
    Plain,
    /// As on a stick: no exchange, birth times, modes, links; times of two seconds; names in any
    /// case.
    Fat,
    /// One of each, in turn.
    Mixed,
}

impl DiskKind {
    /// What the disk of a device can do.
    pub(crate) fn abilities(self, device: usize) -> Abilities {
        match self {
            Self::Mixed => match device % 3 {
                0 => Self::Ext4.abilities(device),
                1 => Self::Fat.abilities(device),
                _ => Self::Plain.abilities(device),
            },
            Self::Ext4 => Abilities::EXT4,
            Self::Plain => Abilities {
                exchange: false,
                birth_time: false,
                ..Abilities::EXT4
            },
            Self::Fat => Abilities::FAT,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Something that comes to a device when it has done so many more operations; 0 is at once.
    Device {
        device: usize,
        in_ops: u64,
        what: Armed,
    },
    /// Connections between two devices break.
    Drop { a: usize, b: usize },
    /// Two devices cannot reach each other for a while.
    Cut { a: usize, b: usize, ms: u64 },
    /// A device's watcher has lost events.
    Overflow { device: usize },
    /// Connections between two devices break in the middle of frames.
    Tear { a: usize, b: usize },
    /// Nothing gets from one device to another for a while.
    Silence { from: usize, to: usize, ms: u64 },
    /// A device's clock is set: ahead of the true one by so much.
    Clock { device: usize, ms: i64 },
    /// A device is switched off for so long.
    Sleep { device: usize, ms: u64 },
    /// So much time passes at once; the devices that are on slept through it or not, as the seed
    /// says.
    Pass { ms: u64, seed: u64 },
    /// A new device comes.
    Join { device: usize },
    /// A device's whole machine is copied, and both are used.
    Twin { device: usize },
    /// What a device sends is changed on the way.
    Lie {
        device: usize,
        style: Style,
        seed: u64,
        ms: u64,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) wait_us: u64,
    pub(crate) action: Action,
}

/// A script.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) profile: Profile,
    pub(crate) steps: Vec<Step>,
}

impl Script {
    pub(crate) fn new(setup: &Setup) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(setup.seed);
        // Not everything goes wrong in every run: what is rare together hides what is not.
        let kills = below(&mut rng, 4) > 0;
        let power = below(&mut rng, 3) == 0;
        let faults = below(&mut rng, 4) == 0;
        let cuts = below(&mut rng, 2) == 0;
        let slow = below(&mut rng, 3) == 0;
        let steps = (0..setup.steps)
            .map(|_| Self::step(&mut rng, setup.devices, kills, power, faults, cuts, slow))
            .collect();
        let (profile, steps) = mishap::weave(setup, steps);
        Self { profile, steps }
    }

    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "a run's profile, used here only"
    )]
    fn step(
        rng: &mut ChaCha8Rng,
        devices: usize,
        kills: bool,
        power: bool,
        faults: bool,
        cuts: bool,
        slow: bool,
    ) -> Step {
        let wait_us = match below(rng, 10) {
            0..=4 => below(rng, 5_000),
            5..=7 => below(rng, 300_000),
            _ if slow => below(rng, 8_000_000),
            _ => below(rng, 1_500_000),
        };
        let device = below(rng, devices as u64) as usize;
        let other = (device + 1 + below(rng, (devices as u64 - 1).max(1)) as usize) % devices;
        let in_ops = match below(rng, 5) {
            0..=1 => 0,
            2..=3 => 1 + below(rng, 40),
            _ => 1 + below(rng, 400),
        };
        let at_device = |what| Action::Device {
            device,
            in_ops,
            what,
        };
        let down_ms = match below(rng, 3) {
            0 => below(rng, 20),
            1 => below(rng, 500),
            _ => below(rng, 6_000),
        };
        let seed = rng.next_u64();
        let edit = at_device(Armed::Edit { seed });
        let action = match below(rng, 100) {
            0..=7 if kills => at_device(Armed::Crash {
                crash: Crash::Kill,
                down_ms,
            }),
            8..=12 if power => at_device(Armed::Crash {
                crash: Crash::Power,
                down_ms,
            }),
            13..=15 if faults => at_device(Armed::Fault {
                fault: Fault::NoSpace,
                times: 1 + below(rng, 10) as u32,
            }),
            16..=18 if faults => at_device(Armed::Fault {
                fault: Fault::Io,
                times: 1 + below(rng, 3) as u32,
            }),
            19..=21 if cuts && devices > 1 => Action::Drop {
                a: device,
                b: other,
            },
            22..=24 if cuts && devices > 1 => Action::Cut {
                a: device,
                b: other,
                ms: below(rng, 8_000),
            },
            25 => Action::Overflow { device },
            _ => edit,
        };
        Step { wait_us, action }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{:.1} ms: ", self.wait_us as f64 / 1_000.0)?;
        match &self.action {
            Action::Device {
                device,
                in_ops,
                what,
            } => {
                match what {
                    Armed::Edit { seed } => write!(f, "d{device} edits (seed {seed:#x})")?,
                    Armed::Text { seed } => write!(f, "d{device} edits a text (seed {seed:#x})")?,
                    Armed::Crash { crash, down_ms } => {
                        write!(f, "d{device} {crash:?}, down {down_ms} ms")?;
                    }
                    Armed::Fault { fault, times } => {
                        write!(f, "d{device} {fault:?} {times} times")?;
                    }
                }
                match in_ops {
                    0 => Ok(()),
                    ops => write!(f, ", in {ops} operations"),
                }
            }
            Action::Drop { a, b } => write!(f, "connections of d{a} and d{b} break"),
            Action::Cut { a, b, ms } => write!(f, "d{a} and d{b} are cut off for {ms} ms"),
            Action::Overflow { device } => write!(f, "d{device} loses events"),
            Action::Tear { a, b } => write!(f, "connections of d{a} and d{b} are torn"),
            Action::Silence { from, to, ms } => {
                write!(f, "nothing gets from d{from} to d{to} for {ms} ms")
            }
            Action::Clock { device, ms } => write!(f, "d{device}'s clock is set {ms} ms ahead"),
            Action::Sleep { device, ms } => write!(f, "d{device} is off for {ms} ms"),
            Action::Pass { ms, .. } => write!(f, "{ms} ms pass"),
            Action::Join { device } => write!(f, "d{device} joins"),
            Action::Twin { device } => write!(f, "a machine is copied: d{device}"),
            Action::Lie {
                device, style, ms, ..
            } => write!(f, "d{device} lies ({style:?}) for {ms} ms"),
        }
    }
}

//! What a run has beside its first script: how its network and clocks are, who lies, who sleeps,
//! who comes later. Drawn by a generator of its own, so that a seed's first script stays what it
//! is.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::below;
use super::lie::Style;
use super::link::Links;
use super::script::{Action, Faults, Setup, Step};
use super::world::Armed;

const MS_NS: u64 = 1_000_000;
const DAY_MS: u64 = 24 * 3_600 * 1_000;
const YEAR_MS: u64 = 365 * DAY_MS;

/// What a run is like throughout.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) links: Links,
    /// How far each device's clock is ahead.
    pub(crate) skew_ms: Vec<i64>,
    /// Has no user: whatever it writes follows from what the others wrote.
    pub(crate) reader: Option<usize>,
    /// Comes in the middle of the run.
    pub(crate) joiner: Option<usize>,
    /// All drop what everybody has as soon as they may.
    pub(crate) prunes: bool,
    /// A device, and the machine that becomes its copy in the middle of the run.
    pub(crate) twin: Option<(usize, usize)>,
    /// They keep what nothing shows for this long, texts and all else, and look often.
    pub(crate) keeps: Option<(&'static str, &'static str)>,
}

impl Profile {
    /// Nothing but the first script.
    pub(crate) fn plain(setup: &Setup) -> Self {
        Self {
            links: Links::GOOD,
            skew_ms: vec![0; setup.devices],
            reader: None,
            joiner: None,
            prunes: false,
            keeps: None,
            twin: None,
        }
    }

    /// Devices, those that come later too.
    pub(crate) fn devices(&self) -> usize {
        self.skew_ms.len()
    }
}

fn one_in(rng: &mut ChaCha8Rng, chances: u64) -> bool {
    below(rng, chances) == 0
}

fn links(rng: &mut ChaCha8Rng, devices: usize) -> Links {
    let mut links = Links::GOOD;
    if one_in(rng, 2) {
        links.latency_ns = 1 + below(rng, 300) * MS_NS;
        links.jitter_ns = 1 + below(rng, 200) * MS_NS;
    }
    if one_in(rng, 3) {
        links.spike_ns = 1 + below(rng, 4_000) * MS_NS;
    }
    if one_in(rng, 3) {
        links.lag_ns = 1 + below(rng, 2_000) * MS_NS;
    }
    if one_in(rng, 4) {
        links.rate = Some(30_000 << below(rng, 7));
    }
    if devices > 2 && one_in(rng, 3) {
        links.hub = Some(below(rng, devices as u64) as usize);
    }
    links
}

fn skew(rng: &mut ChaCha8Rng) -> i64 {
    below(rng, 60 * DAY_MS) as i64 - 30 * DAY_MS as i64
}

/// Draws what happens in a run, and puts it between the steps of its first script.
pub(crate) fn weave(setup: &Setup, first: Vec<Step>) -> (Profile, Vec<Step>) {
    if setup.faults == Faults::Classic {
        return (Profile::plain(setup), first);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(setup.seed ^ 0x6d69_7368_6170);
    let rng = &mut rng;
    // Not everything in every run: what is rare together hides what is not.
    let joiner = one_in(rng, 3).then_some(setup.devices);
    let devices = setup.devices + usize::from(joiner.is_some());
    let is_skewed = one_in(rng, 3);
    let mut profile = Profile {
        links: links(rng, setup.devices),
        skew_ms: (0..devices)
            .map(|_| skew(rng))
            .map(|ms| if is_skewed { ms } else { 0 })
            .collect(),
        reader: (setup.devices > 1 && one_in(rng, 4))
            .then(|| below(rng, setup.devices as u64) as usize),
        joiner,
        prunes: false,
        keeps: None,
        twin: None,
    };
    let mishaps = Mishaps {
        devices,
        editors: (0..devices)
            .filter(|device| profile.reader != Some(*device))
            .collect(),
        kinds: kinds(rng, devices, is_skewed),
        texts: one_in(rng, 2),
    };
    let joins_at = below(rng, (first.len() as u64).max(1)) as usize;
    let mut wakes: Vec<(usize, u64)> = vec![];
    let mut steps = vec![];
    for (at, mut step) in first.into_iter().enumerate() {
        if let Action::Device {
            device,
            what: Armed::Edit { .. },
            ..
        } = &mut step.action
            && profile.reader == Some(*device)
        {
            *device = (*device + 1) % setup.devices;
        }
        steps.push(step);
        let mut add = |action| steps.push(Step { wait_us: 0, action });
        for (_, ms) in wakes.extract_if(.., |(due, _)| *due == at) {
            add(Action::Pass {
                ms,
                seed: rng.next_u64(),
            });
        }
        if let Some(device) = profile.joiner {
            if at == joins_at {
                add(Action::Join { device });
            } else if one_in(rng, if at < joins_at { 12 } else { 5 }) {
                let seed = rng.next_u64();
                add(at_device(device, 0, Armed::Edit { seed }));
            }
        }
        if let Some(action) = mishaps.draw(rng) {
            if let Action::Sleep { ms, .. } = action {
                wakes.push((at + 1 + below(rng, 12) as usize, ms));
            }
            add(action);
        }
    }
    profile.prunes = one_in(rng, 2);
    let keeps = [("forever", "0d"), ("0d", "0d"), ("0d", "forever")];
    profile.keeps = keeps.get(below(rng, 8) as usize).copied();
    // Copies know each other by others: there is one at least.
    if setup.devices > 1 && one_in(rng, 5) {
        let mut of = below(rng, setup.devices as u64) as usize;
        if profile.reader == Some(of) {
            of = (of + 1) % setup.devices;
        }
        // Where all go through one device, its copy would reach nobody.
        profile.links.hub = None;
        let device = profile.devices();
        profile.skew_ms.push(0);
        profile.twin = Some((of, device));
        let at = below(rng, steps.len() as u64 + 1) as usize;
        let action = Action::Twin { device };
        steps.insert(at, Step { wait_us: 0, action });
        for _ in 0..(steps.len() - at) / 6 {
            let seed = rng.next_u64();
            let at = at + 1 + below(rng, (steps.len() - at) as u64) as usize;
            let action = at_device(device, below(rng, 40), Armed::Edit { seed });
            steps.insert(at, Step { wait_us: 0, action });
        }
    }
    (profile, steps)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tear,
    Silence,
    Clock,
    Sleep,
    Lie(usize, Style),
}

fn kinds(rng: &mut ChaCha8Rng, devices: usize, is_skewed: bool) -> Vec<Kind> {
    let mut kinds = vec![];
    if devices > 1 && one_in(rng, 2) {
        kinds.push(Kind::Tear);
    }
    if devices > 1 && one_in(rng, 3) {
        kinds.push(Kind::Silence);
    }
    if one_in(rng, 2) && is_skewed {
        kinds.push(Kind::Clock);
    }
    if one_in(rng, 4) {
        kinds.push(Kind::Sleep);
    }
    if devices > 1 && one_in(rng, 4) {
        let style = match one_in(rng, 3) {
            true => Style::Rotten,
            false => Style::Wild,
        };
        kinds.push(Kind::Lie(below(rng, devices as u64) as usize, style));
    }
    kinds
}

/// What may come between two steps.
struct Mishaps {
    devices: usize,
    /// Devices that have a user.
    editors: Vec<usize>,
    kinds: Vec<Kind>,
    texts: bool,
}

impl Mishaps {
    fn draw(&self, rng: &mut ChaCha8Rng) -> Option<Action> {
        if self.texts && one_in(rng, 3) {
            let at = below(rng, self.editors.len() as u64) as usize;
            let in_ops = match one_in(rng, 2) {
                true => 0,
                false => 1 + below(rng, 100),
            };
            let seed = rng.next_u64();
            return Some(at_device(
                *self.editors.get(at)?,
                in_ops,
                Armed::Text { seed },
            ));
        }
        if !one_in(rng, 5) {
            return None;
        }
        let kind = self.kinds.get(below(rng, 6) as usize)?;
        let device = below(rng, self.devices as u64) as usize;
        let step = 1 + below(rng, (self.devices as u64 - 1).max(1)) as usize;
        let other = (device + step) % self.devices;
        Some(match *kind {
            Kind::Tear => Action::Tear {
                a: device,
                b: other,
            },
            Kind::Silence => Action::Silence {
                from: device,
                to: other,
                ms: match one_in(rng, 3) {
                    true => below(rng, 120_000),
                    false => below(rng, 8_000),
                },
            },
            Kind::Clock => Action::Clock {
                device,
                ms: skew(rng),
            },
            Kind::Sleep => Action::Sleep {
                device,
                ms: DAY_MS + below(rng, 5 * YEAR_MS),
            },
            Kind::Lie(device, style) => Action::Lie {
                device,
                style,
                seed: rng.next_u64(),
                ms: below(rng, 20_000),
            },
        })
    }
}

fn at_device(device: usize, in_ops: u64, what: Armed) -> Action {
    Action::Device {
        device,
        in_ops,
        what,
    }
}

//! One simulated device: the real one, its process begun and ended.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use pacsync_daemon::device::{Device, Parts, Transport};
use pacsync_daemon::home::{Config, FoundOptions, Home, attach_home, found_replica, take_roster};
use pacsync_daemon::net::{CloseCode, ConnId, Discovery, Lane};
use pacsync_daemon::worktree::{Now, Tracking};
use pacsync_protocol::crypto::{self, Entropy};
use pacsync_protocol::identity::{DeviceKeys, DeviceName, FoundingRecord, Phrase};
use pacsync_protocol::pairing::{self, Welcome};
use pacsync_protocol::roster::RosterKeys;
use pacsync_protocol::{DeviceId, SpaceId};
use pacsync_store::content::packs::PackStore;
use pacsync_store::documents::{Setting, Settings, settings_id};
use pacsync_store::index::Attachment;
use pacsync_store::{Identity, Store, StoreError};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::disk::SimDisk;
use super::medium::{Backend, PackDir};
use super::world::{Event, Killed, Process, Shared, World, lock};

/// Where the root of every device is.
pub(super) const ROOT: &str = "/simulated/root";

/// A device and what it needs to begin anew.
pub(crate) struct Node {
    at: usize,
    seed: u64,
    world: Shared,
    pub(crate) device: Option<Device>,
    pub(crate) identity: Identity,
    pub(crate) home_space: SpaceId,
    config: Config,
    /// When it wants to be stepped, in nanoseconds.
    pub(crate) wake_ns: Option<u64>,
}

/// How a call into a device ended badly.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Its process is dead.
    Killed,
    /// The replica failed: it is to be opened anew.
    Failed(String),
    /// A defect.
    Panicked(String),
}

struct Wire {
    process: Process,
}

impl Wire {
    fn alive(&self) -> Option<std::sync::MutexGuard<'_, World>> {
        let world = lock(&self.process.world);
        let alive = world
            .hosts
            .get(self.process.device)
            .is_some_and(|host| host.epoch == self.process.epoch && !host.dead);
        alive.then_some(world)
    }
}

/// Where a device listens.
pub(crate) fn address(device: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, device as u8 + 1], 7_000))
}

fn device_at(address: SocketAddr) -> Option<usize> {
    match address {
        SocketAddr::V4(v4) => usize::from(v4.ip().octets()[3]).checked_sub(1),
        SocketAddr::V6(_) => None,
    }
}

impl Transport for Wire {
    fn send(&mut self, conn: ConnId, lane: Lane, bytes: Vec<u8>) -> Option<u64> {
        let mut world = self.alive()?;
        let device = self.process.device;
        world.whisper(|| {
            let hash = blake3::hash(&bytes).to_hex();
            format!(
                "d{device} sends {} {lane:?} {} {}",
                conn.number(),
                bytes.len(),
                &hash[..8]
            )
        });
        world.send(conn.number(), lane, bytes)
    }

    fn close(&mut self, conn: ConnId, code: CloseCode, text: &str) {
        let Some(mut world) = self.alive() else {
            return;
        };
        let device = self.process.device;
        world.whisper(|| format!("d{device} closes {} {code:?}: {text}", conn.number()));
        if matches!(code, CloseCode::Violation) {
            world.say(format!("d{device} closes a connection: violation: {text}"));
            world.counts.add("violation");
        }
        if let Some(end) = world.net.conns.remove(&conn.number()) {
            let code = Some(code);
            let conn = end.peer;
            world.at(30_000_000, Event::Closed { conn, code });
        }
    }

    fn connect(&mut self, address: SocketAddr, _expect: Option<DeviceId>) {
        let Some(mut world) = self.alive() else {
            return;
        };
        if let Some(to) = device_at(address) {
            let (device, epoch) = (self.process.device, self.process.epoch);
            world.at(5_000_000, Event::Dial { device, epoch, to });
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        vec![address(self.process.device)]
    }
}

fn options(at: usize) -> FoundOptions {
    FoundOptions {
        name: DeviceName::new(&format!("d{at}")).expect("a plain name"),
        root: PathBuf::from(ROOT),
        listen: None,
        discovery: Discovery::Off,
    }
}

fn config(at: usize) -> Config {
    let options = options(at);
    Config {
        name: options.name,
        root: options.root,
        listen: None,
        discovery: Discovery::Off,
        addresses: vec![],
        known: Default::default(),
        port: None,
    }
}

/// The time as a device's process sees it.
pub(crate) fn now(world: &Shared, device: usize) -> Now {
    let (even_ms, ns) = lock(world).clocks(device);
    Now {
        ms: even_ms as u64,
        ns,
    }
}

impl Node {
    /// Founds a pac whose `home` is tracked whole.
    pub(crate) fn found(world: &Shared, at: usize, seed: u64) -> Result<Self, StoreError> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let root = Phrase::generate(&mut rng).root_keys();
        let now_ms = now(world, at).ms;
        let identity = Identity {
            keys: DeviceKeys::generate(&mut rng),
            founding: FoundingRecord::found(&root, now_ms, &mut rng),
            roster_keys: RosterKeys::generate(&mut rng),
        };
        let home_space = SpaceId::from_bytes(crypto::random(&mut rng));
        let mut node = Self::new(world, at, seed, identity, home_space);
        let mut store = node.open_store(&mut rng)?;
        found_replica(
            &mut store,
            &root,
            home_space,
            &options(at),
            now_ms,
            &mut rng,
        )?;
        let tracked = Settings::from([(Tracking::key(&Default::default()), Setting::Flag(true))]);
        let mut txn = store.begin()?;
        let document = settings_id(&home_space);
        txn.write_document(&home_space, document, &tracked, now_ms, &mut rng)?;
        txn.commit()?;
        drop(store);
        node.config = config(at);
        Ok(node)
    }

    /// The keys that a device brings to a pairing.
    pub(crate) fn keys(seed: u64) -> DeviceKeys {
        DeviceKeys::generate(&mut ChaCha20Rng::seed_from_u64(seed))
    }

    /// Joins with what the sponsor sent.
    pub(crate) fn join(
        world: &Shared,
        at: usize,
        seed: u64,
        keys: DeviceKeys,
        welcome: Welcome,
    ) -> Result<Self, StoreError> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed ^ 1);
        let roster_keys = match welcome.keys {
            pairing::RosterKeys::Full { roster, private } => RosterKeys {
                roster,
                private: Some(private),
            },
            pairing::RosterKeys::Relay { roster } => RosterKeys {
                roster,
                private: None,
            },
        };
        let home_space = welcome.spaces.first().expect("home is named").space;
        let identity = Identity {
            keys,
            founding: welcome.founding,
            roster_keys,
        };
        let node = Self::new(world, at, seed, identity, home_space);
        let mut store = node.open_store(&mut rng)?;
        take_roster(&mut store, &welcome.segments, now(world, at).ms, &mut rng)?
            .expect("the sponsor is honest");
        attach_home(&mut store, &home_space, &options(at))?;
        drop(store);
        Ok(node)
    }

    /// The same device in another place: its keys and its name.
    pub(crate) fn twin(&self, at: usize, seed: u64) -> Self {
        let identity = self.identity.clone();
        let mut twin = Self::new(&self.world, at, seed, identity, self.home_space);
        twin.config.clone_from(&self.config);
        twin
    }

    fn new(world: &Shared, at: usize, seed: u64, identity: Identity, home_space: SpaceId) -> Self {
        Self {
            at,
            seed,
            world: world.clone(),
            device: None,
            identity,
            home_space,
            config: config(at),
            wake_ns: None,
        }
    }

    fn process(&self) -> Process {
        let epoch = lock(&self.world)
            .hosts
            .get(self.at)
            .map_or(0, |host| host.epoch);
        Process {
            world: self.world.clone(),
            device: self.at,
            epoch,
        }
    }

    fn open_store(&self, rng: &mut dyn Entropy) -> Result<Store, StoreError> {
        let process = self.process();
        let medium = lock(&self.world)
            .hosts
            .get(self.at)
            .map(|host| host.medium.clone())
            .unwrap_or_default();
        Store::open_on(Backend { medium, process }, self.identity.clone(), rng)
    }

    /// Begins a process.
    pub(crate) fn start(&mut self) -> Result<(), Ended> {
        let epoch = {
            let mut world = lock(&self.world);
            let Some(host) = world.hosts.get_mut(self.at) else {
                return Ok(());
            };
            host.epoch += 1;
            host.dead = false;
            host.opened = false;
            host.even_ms = host.fs.ahead_ns / 1_000_000;
            let epoch = host.epoch;
            world.say(format!("d{} starts", self.at));
            epoch
        };
        self.device = None;
        let now = now(&self.world, self.at);
        let result = catch_unwind(AssertUnwindSafe(|| self.open(epoch, now)));
        match self.judge(result)? {
            Ok(device) => {
                self.device = Some(device);
                if let Some(host) = lock(&self.world).hosts.get_mut(self.at) {
                    host.opened = true;
                }
                self.wake_ns = Some(0);
                Ok(())
            }
            Err(error) => Err(Ended::Failed(error.to_string())),
        }
    }

    fn open(&self, epoch: u64, now: Now) -> Result<Device, StoreError> {
        let mut rng = ChaCha20Rng::seed_from_u64(
            self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (epoch << 8) ^ self.at as u64,
        );
        let store = self.open_store(&mut rng)?;
        let process = self.process();
        let packs = lock(&self.world)
            .hosts
            .get(self.at)
            .map(|host| host.packs.clone())
            .unwrap_or_default();
        let files = PackDir {
            packs,
            process: process.clone(),
        };
        let (packs, report) = PackStore::open(Box::new(files), store.pack_end()?)
            .map_err(|error| StoreError::Packs(error.to_string()))?;
        if report.damaged || report.missing {
            lock(&self.world).say(format!("d{} packs: {report:?}", self.at));
        }
        let disk = process.clone();
        let open_disk = move |_: &Path, _: SpaceId| {
            Ok(Box::new(SimDisk::new(disk.clone())) as Box<dyn pacsync_daemon::disk::Disk>)
        };
        let parts = Parts {
            store,
            packs,
            rng: Box::new(rng),
            open_disk: Box::new(open_disk),
            transport: Box::new(Wire { process }),
            home: Home::at("/simulated/home"),
            home_space: self.home_space,
            config: self.config.clone(),
        };
        let mut device = Device::start(parts, now)?;
        let devices = lock(&self.world).hosts.len();
        for other in (0..devices).filter(|other| *other != self.at) {
            device.add_address(address(other), now);
        }
        Ok(device)
    }

    /// Tells an end from a result.
    fn judge<T>(&self, result: std::thread::Result<T>) -> Result<T, Ended> {
        let dead = lock(&self.world)
            .hosts
            .get(self.at)
            .is_some_and(|host| host.dead);
        match result {
            Err(payload) if payload.is::<Killed>() => Err(Ended::Killed),
            Err(payload) => {
                let text = payload.downcast_ref::<String>().cloned().or_else(|| {
                    payload
                        .downcast_ref::<&str>()
                        .map(|text| (*text).to_owned())
                });
                Err(Ended::Panicked(text.unwrap_or_else(|| "a panic".into())))
            }
            Ok(_) if dead => Err(Ended::Killed),
            Ok(value) => Ok(value),
        }
    }

    /// Calls into the running device. `None` if it is not running.
    pub(crate) fn call<T>(
        &mut self,
        act: impl FnOnce(&mut Device, Now) -> Result<T, StoreError>,
    ) -> Result<Option<T>, Ended> {
        let now = now(&self.world, self.at);
        let Some(device) = &mut self.device else {
            return Ok(None);
        };
        let result = catch_unwind(AssertUnwindSafe(|| act(device, now)));
        let ended = match self.judge(result) {
            Ok(Ok(value)) => {
                if let Some(device) = &mut self.device {
                    self.config.clone_from(device.config());
                    drop(device.take_events());
                }
                self.wake_ns = Some(0);
                return Ok(Some(value));
            }
            Ok(Err(error)) => Ended::Failed(error.to_string()),
            Err(ended) => ended,
        };
        self.end();
        Err(ended)
    }

    /// Asks the running device something that changes nothing. `None` if it is not running.
    pub(crate) fn ask<T>(
        &self,
        question: impl FnOnce(&Device, Now) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let now = now(&self.world, self.at);
        let device = self.device.as_ref();
        device.map(|device| question(device, now)).transpose()
    }

    /// Empties the index of a device that is not running, as if it had just been attached; what
    /// the logs hold stays. A device that has not joined yet has none to lose.
    pub(crate) fn lose_index(&mut self) -> Result<(), StoreError> {
        let mut rng = ChaCha20Rng::seed_from_u64(self.seed ^ 2);
        let mut store = self.open_store(&mut rng)?;
        let applied = store.applied(&self.home_space)?;
        let txn = store.begin()?;
        {
            let no = txn.space(&self.home_space)?.no;
            let mut index = txn.index(no)?;
            let Some(before) = index.attachment()? else {
                return Ok(());
            };
            if before.awaits_sponsor || before.join.is_some() {
                return Ok(());
            }
            index.detach()?;
            index.set_attachment(&Attachment {
                root: before.root,
                join: Some(applied),
                root_identity: None,
                first_scan: true,
                entries: 0,
                awaits_sponsor: false,
                sponsor: None,
                tracked: None,
            })?;
        }
        txn.commit()?;
        Ok(())
    }

    /// Drops the process without a word to its media.
    pub(crate) fn end(&mut self) {
        self.wake_ns = None;
        if let Some(device) = self.device.take() {
            if let Some(host) = lock(&self.world).hosts.get_mut(self.at) {
                host.opened = false;
            }
            let _ = catch_unwind(AssertUnwindSafe(move || drop(device)));
        }
    }
}

//! Running a device: the thread that owns it, the network's thread, the control socket, and the
//! order of going down.
//!
//! One thread has the device; network, control API, disk watches and pairing reach it through
//! bounded channels. When the replica fails (a full or dying disk) the device is taken down and
//! started anew from what is durable, until that works; the control API answers meanwhile.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pacsync_protocol::grant::Role;
use pacsync_protocol::identity::DeviceKeys;
use pacsync_protocol::pairing::Offer;
use pacsync_protocol::{DeviceId, SpaceId};
use pacsync_store::content::packs::{DiskFiles, PackStore};
use pacsync_store::{Identity, Store, StoreError};
use rand_core::OsRng;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::control::api::{Event, EventKind, PairEvent, Problem, Status, Stopping, TextPath};
use crate::control::{
    Command, CommandError, ControlSocket, CoreHandle, CoreReceiver, PairId, Reply, serve,
};
use crate::device::{Device, Parts, Transport};
use crate::disk::{FsEvent, LinuxDisk};
use crate::home::{Config, Home, HomeError, HomeLock};
use crate::net::{
    CloseCode, ConnId, Endpoint, Lane, NetConfig, NetError, NetEvent, NetHandle, PeerStanding,
};
use crate::pairing::host::{self, Decision, Enrol, Hosting};
use crate::worktree::Now;

/// Events of disks that may wait; more are one overflow.
const FS_QUEUE: usize = 65_536;
/// Events of the network that may wait: each holds a frame, bounded by its lane's budget.
const NET_QUEUE: usize = 64;
/// Events that a slow listener of the event stream may lag behind.
const EVENT_QUEUE: usize = 1_024;
/// Inputs that are taken before the device works on.
const BURST: usize = 256;
/// Time between attempts to start a device whose replica failed.
const RESTART: Duration = Duration::from_secs(2);

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The replica.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The packs.
    #[error("packs: {0}")]
    Packs(String),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The root of `home`.
    #[error("the root directory {} of `home` is missing", .0.display())]
    RootMissing(PathBuf),
    /// The control socket.
    #[error("the control socket: {0}")]
    Control(String),
    /// A thread or a runtime.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

impl DaemonError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Home(error) => Some(error.hint()),
            Self::Store(StoreError::Damaged(_)) => Some(
                "keep the files of your roots: they are not touched. Move the home directory \
                 away and pair this device again from another one; without another device, keep \
                 replica.redb for a repair"
                    .into(),
            ),
            Self::Store(error) if error.is_no_space() => Some("make room on the disk".into()),
            Self::Net(NetError::AddressInUse { .. }) => Some(
                "another program has the port: `ss -ulpn` shows which; or choose another with \
                 --listen IP:PORT, 0 for any"
                    .into(),
            ),
            Self::RootMissing(_) => Some(
                "bring it back (is its disk mounted?); if it is gone for good, make it with mkdir, \
                 then `pacsync up` and `pacsync space attach home --at DIR`"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// The time now.
pub fn now() -> Now {
    // Milliseconds go on evenly from the start, so that a clock that is set stops no timer.
    static START: std::sync::OnceLock<(std::time::Instant, Duration)> = std::sync::OnceLock::new();
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (instant, wall) = START.get_or_init(|| (std::time::Instant::now(), since));
    let even = *wall + instant.elapsed();
    Now {
        ms: u64::try_from(even.as_millis()).unwrap_or(u64::MAX),
        ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
    }
}

/// Runs the daemon of a home until it is told to stop. `ready` is called once it serves its
/// socket. Blocks; makes its own threads.
///
/// # Errors
/// [`DaemonError`].
pub fn run(home: &Home, ready: Box<dyn FnOnce() + Send>) -> Result<(), DaemonError> {
    let lock = home.lock()?;
    let mut opened = home.load()?;
    let (store, packs) = open_replica(home, &opened.identity)?;
    if let Some(root) = home_root(&store, &opened.home_space)?
        && !root.is_dir()
    {
        return Err(DaemonError::RootMissing(root));
    }
    let network = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let core = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let cancel = CancellationToken::new();
    let standing = Standing::default();
    standing.set(store.roster().members().map(|(device, _)| *device));
    let (net_sender, net_events) = mpsc::channel(NET_QUEUE);
    let endpoint = {
        let _entered = network.enter();
        let bind = |listen| {
            let roster = standing.clone();
            Endpoint::bind(NetConfig {
                listen,
                key: opened.identity.keys.sign.clone(),
                discovery_key: opened.identity.roster_keys.discovery(),
                standing: Arc::new(move |device| roster.of(device)),
                discovery: opened.config.discovery,
                events: net_sender.clone(),
            })
        };
        let wanted = opened.config.listen;
        let again = match (wanted, opened.config.port) {
            (None, Some(port)) => Some(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))),
            (Some(address), Some(port)) if address.port() == 0 => {
                Some(SocketAddr::new(address.ip(), port))
            }
            _ => None,
        };
        match again.map(|address| bind(Some(address))) {
            Some(Ok(endpoint)) => endpoint,
            _ => bind(wanted)?,
        }
    };
    drop(net_sender);
    let port = Some(endpoint.local_addr().port());
    if opened.config.port != port {
        opened.config.port = port;
        if let Err(error) = home.save_config(&opened.config) {
            tracing::warn!(%error, "settings not saved");
        }
    }
    let (handle, commands) = CoreHandle::new();
    let socket = ControlSocket::bind(home.path(), lock.as_fd())
        .map_err(|e| DaemonError::Control(e.to_string()))?;
    let server = network.spawn({
        let cancel = cancel.clone();
        async move { serve(socket, handle, cancel).await }
    });
    let net = endpoint.handle();
    let (fs_sender, fs_events) = mpsc::channel(FS_QUEUE);
    let (enrol_sender, enrols) = mpsc::channel(1);
    let (address_sender, addresses) = mpsc::channel(64);
    let (events, _) = broadcast::channel(EVENT_QUEUE);
    let runner = Runner {
        home: home.clone(),
        identity: opened.identity,
        home_space: opened.home_space,
        config: opened.config,
        net,
        listen: Arc::new(endpoint.addresses()),
        network: network.handle().clone(),
        standing,
        fs_sender,
        lagged: Arc::new(AtomicBool::new(false)),
        enrol_sender,
        address_sender,
        events,
        next_event: 1,
        pairing: None,
        stop: None,
        trouble: None,
        started: now(),
    };
    let inputs = {
        let _entered = core.enter();
        Inputs {
            net: net_events,
            commands,
            fs: fs_events,
            enrols,
            addresses,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        }
    };
    let down = CancellationToken::new();
    let network_thread = std::thread::Builder::new()
        .name("pacsync-net".into())
        .spawn({
            let down = down.clone();
            move || {
                network.block_on(async move {
                    down.cancelled().await;
                    endpoint.shutdown().await;
                    match server.await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::warn!(%error, "the control server"),
                        Err(error) => tracing::error!(%error, "the control server ended badly"),
                    }
                });
                network.shutdown_timeout(Duration::from_secs(2));
            }
        })?;
    let result = core.block_on(runner.run(store, packs, inputs, cancel.clone(), ready));
    // Stop taking commands, close connections, wait for the tasks.
    cancel.cancel();
    down.cancel();
    if network_thread.join().is_err() {
        tracing::error!("the network's thread ended badly");
    }
    drop::<HomeLock>(lock);
    result
}

fn open_replica(home: &Home, identity: &Identity) -> Result<(Store, PackStore), DaemonError> {
    let store = home.open_store(identity.clone(), &mut OsRng)?;
    let packs = |e: &dyn std::fmt::Display| DaemonError::Packs(e.to_string());
    let files = DiskFiles::open(&home.packs_path()).map_err(|e| packs(&e))?;
    let (store_packs, report) =
        PackStore::open(Box::new(files), store.pack_end()?).map_err(|e| packs(&e))?;
    if report.damaged || report.missing {
        tracing::error!(?report, "packs are damaged: some history may be unreadable");
    }
    Ok((store, store_packs))
}

fn home_root(store: &Store, space: &SpaceId) -> Result<Option<PathBuf>, StoreError> {
    use std::os::unix::ffi::OsStrExt;
    let no = store.space(space)?.no;
    let tx = store.read()?;
    let attachment = pacsync_store::index::IndexReader::new(&tx, no).attachment()?;
    Ok(attachment.map(|a| PathBuf::from(std::ffi::OsStr::from_bytes(&a.root))))
}

/// What the roster says about keys, for the handshakes on the network's thread.
#[derive(Debug, Clone, Default)]
struct Standing(Arc<RwLock<std::collections::BTreeSet<DeviceId>>>);

impl Standing {
    fn of(&self, device: &DeviceId) -> PeerStanding {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if known.contains(device) {
            PeerStanding::Known
        } else {
            PeerStanding::Unknown
        }
    }

    fn set(&self, devices: impl Iterator<Item = DeviceId>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = devices.collect();
    }
}

/// The network as the device uses it.
struct Net {
    handle: NetHandle,
    listen: Arc<Vec<SocketAddr>>,
}

impl Transport for Net {
    fn send(&mut self, conn: ConnId, lane: Lane, bytes: Vec<u8>) -> Option<u64> {
        self.handle.send(conn, lane, bytes).ok()
    }

    fn close(&mut self, conn: ConnId, code: CloseCode, text: &str) {
        self.handle.close(conn, code, text);
    }

    fn connect(&mut self, address: SocketAddr, expect: Option<DeviceId>) {
        self.handle.connect(address, expect);
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.listen.to_vec()
    }
}

struct Inputs {
    net: mpsc::Receiver<NetEvent>,
    commands: CoreReceiver,
    fs: mpsc::Receiver<(SpaceId, FsEvent)>,
    enrols: mpsc::Receiver<Enrol>,
    addresses: mpsc::Receiver<Resolved>,
    /// Made once: a signal that comes while nobody listens must not be lost.
    terminate: Signal,
    interrupt: Signal,
}

/// An address that was looked up.
struct Resolved {
    kept: Option<(String, Reply<crate::control::api::ConnectReport>)>,
    address: Result<SocketAddr, String>,
}

enum Input {
    Net(NetEvent),
    Command(Command),
    Fs(SpaceId, FsEvent),
    Enrol(Enrol),
    Address(Resolved),
    Signal,
    Due,
}

struct Pairing {
    id: PairId,
    decisions: mpsc::Sender<Decision>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

struct Runner {
    home: Home,
    identity: Identity,
    home_space: SpaceId,
    config: Config,
    net: NetHandle,
    listen: Arc<Vec<SocketAddr>>,
    network: tokio::runtime::Handle,
    standing: Standing,
    fs_sender: mpsc::Sender<(SpaceId, FsEvent)>,
    lagged: Arc<AtomicBool>,
    enrol_sender: mpsc::Sender<Enrol>,
    address_sender: mpsc::Sender<Resolved>,
    events: broadcast::Sender<Event>,
    next_event: u64,
    pairing: Option<Pairing>,
    stop: Option<Reply<Stopping>>,
    /// Why the replica is not running.
    trouble: Option<String>,
    started: Now,
}

impl Runner {
    async fn run(
        mut self,
        store: Store,
        packs: PackStore,
        mut inputs: Inputs,
        cancel: CancellationToken,
        ready: Box<dyn FnOnce() + Send>,
    ) -> Result<(), DaemonError> {
        let mut device = self.start(store, packs)?;
        self.resolve_static();
        ready();
        loop {
            match self.drive(&mut device, &mut inputs, &cancel).await {
                Ok(()) => {
                    self.say(EventKind::Stopping);
                    device.save_config();
                    self.end_pairing();
                    if let Some(reply) = self.stop.take() {
                        let _ = reply.send(Ok(Stopping {
                            pid: std::process::id(),
                        }));
                        // The answer goes out before the server is told to end.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!(%error, "the replica failed; it is opened anew");
                    self.trouble = Some(error.to_string());
                    device.hang_up();
                    device.save_config();
                    self.config = device.config().clone();
                    drop(device);
                    match self.restart(&mut inputs, &cancel).await {
                        Some(again) => device = again,
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    fn start(&mut self, store: Store, packs: PackStore) -> Result<Device, DaemonError> {
        let sender = self.fs_sender.clone();
        let lagged = self.lagged.clone();
        let open_disk = Box::new(move |root: &Path, space: SpaceId| {
            let sender = sender.clone();
            let lagged = lagged.clone();
            let sink = Box::new(move |event| {
                if sender.try_send((space, event)).is_err() {
                    lagged.store(true, Ordering::Release);
                }
            });
            LinuxDisk::with_events(root, sink)
                .map(|disk| Box::new(disk) as Box<dyn crate::disk::Disk>)
        });
        let device = Device::start(
            Parts {
                store,
                packs,
                rng: Box::new(OsRng),
                open_disk,
                transport: Box::new(Net {
                    handle: self.net.clone(),
                    listen: self.listen.clone(),
                }),
                home: self.home.clone(),
                home_space: self.home_space,
                config: self.config.clone(),
            },
            now(),
        )?;
        self.standing.set(device.members().into_iter());
        Ok(device)
    }

    /// Waits until the replica opens again; the control API is answered meanwhile.
    async fn restart(&mut self, inputs: &mut Inputs, cancel: &CancellationToken) -> Option<Device> {
        loop {
            let deadline = tokio::time::Instant::now() + RESTART;
            while let Some(input) = tokio::select! {
                () = tokio::time::sleep_until(deadline) => None,
                input = next_input(inputs, cancel, None) => Some(input),
            } {
                match input {
                    Input::Command(Command::Shutdown { reply }) => {
                        let _ = reply.send(Ok(Stopping {
                            pid: std::process::id(),
                        }));
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        return None;
                    }
                    Input::Signal => return None,
                    Input::Command(command) => self.answer_in_trouble(command),
                    Input::Net(NetEvent::Connected { conn, .. }) => {
                        self.net
                            .close(conn, CloseCode::Internal, "the replica is being repaired");
                    }
                    _ => {}
                }
            }
            let opened = open_replica(&self.home, &self.identity);
            match opened.and_then(|(store, packs)| self.start(store, packs)) {
                Ok(device) => {
                    tracing::info!("the replica is back");
                    self.trouble = None;
                    self.resolve_static();
                    return Some(device);
                }
                Err(error) => {
                    tracing::warn!(%error, "the replica is still out of order");
                    self.trouble = Some(error.to_string());
                }
            }
        }
    }

    fn answer_in_trouble(&self, command: Command) {
        let why = self.trouble.clone().unwrap_or_default();
        let error = CommandError::failed(format!("the replica cannot be used now: {why}"))
            .with_hint("make room on the disk or mend it; the daemon goes on by itself");
        match command {
            Command::Status { reply } => {
                let name = self.config.name.to_string();
                let id = self.identity.keys.id().to_string();
                let _ = reply.send(Ok(Status {
                    version: env!("CARGO_PKG_VERSION").into(),
                    pid: std::process::id(),
                    uptime_ms: now().ms.saturating_sub(self.started.ms),
                    device: crate::control::api::DeviceRef { id, name },
                    pac: self.identity.founding.id().to_string(),
                    in_sync: false,
                    listen: self.listen.to_vec(),
                    peers: vec![],
                    spaces: vec![],
                    conflicts: 0,
                    held_deletes: 0,
                    problems: vec![Problem {
                        path: TextPath::from_path(self.home.path()),
                        what: error.message,
                        in_the_way: true,
                    }],
                    needs_user: vec![],
                    notices: vec![],
                    hold_back: vec![],
                    forks: vec![],
                }));
            }
            Command::Subscribe { reply } => {
                let _ = reply.send(Ok(self.events.subscribe()));
            }
            Command::Add { reply, .. } => drop(reply.send(Err(error))),
            Command::Forget { reply, .. } => drop(reply.send(Err(error))),
            Command::Ls { reply, .. } => drop(reply.send(Err(error))),
            Command::Log { reply, .. } => drop(reply.send(Err(error))),
            Command::Restore { reply, .. } => drop(reply.send(Err(error))),
            Command::Undo { reply } => drop(reply.send(Err(error))),
            Command::SpaceCreate { reply, .. }
            | Command::SpaceAttach { reply, .. }
            | Command::SpaceDetach { reply, .. } => drop(reply.send(Err(error))),
            Command::SpaceKeep { reply, .. } => drop(reply.send(Err(error))),
            Command::SpaceLs { reply } => drop(reply.send(Err(error))),
            Command::Devices { reply } => drop(reply.send(Err(error))),
            Command::Connect { reply, .. } => drop(reply.send(Err(error))),
            Command::Scan { reply, .. } => drop(reply.send(Err(error))),
            Command::Wait { reply, .. } => drop(reply.send(Err(error))),
            Command::Deletes { reply, .. } => drop(reply.send(Err(error))),
            Command::Conflicts { reply, .. } => drop(reply.send(Err(error))),
            Command::ConflictContents { reply, .. } => drop(reply.send(Err(error))),
            Command::Resolve { reply, .. } => drop(reply.send(Err(error))),
            Command::PairStart { reply, .. }
            | Command::PairConfirm { reply, .. }
            | Command::PairCancel { reply, .. } => drop(reply.send(Err(error))),
            Command::Doctor { reply } => drop(reply.send(Err(error))),
            Command::Shutdown { reply } => drop(reply.send(Err(error))),
        }
    }

    /// Drives a device until the daemon is told to stop.
    async fn drive(
        &mut self,
        device: &mut Device,
        inputs: &mut Inputs,
        cancel: &CancellationToken,
    ) -> Result<(), StoreError> {
        let mut more = true;
        loop {
            let wait = if more {
                Some(Duration::ZERO)
            } else {
                device
                    .next_due()
                    .map(|due| Duration::from_millis(due.saturating_sub(now().ms)))
            };
            let mut queue = VecDeque::from([next_input(inputs, cancel, wait).await]);
            while queue.len() < BURST
                && let Some(input) = try_input(inputs)
            {
                queue.push_back(input);
            }
            for input in queue {
                if self.take(device, input)? == Turn::Stop {
                    return Ok(());
                }
            }
            if self.lagged.swap(false, Ordering::AcqRel) {
                device.lost_events(now());
            }
            more = device.step(now())?;
            for event in device.take_events() {
                self.say(event);
            }
            self.standing.set(device.members().into_iter());
            device.save_config();
        }
    }

    fn take(&mut self, device: &mut Device, input: Input) -> Result<Turn, StoreError> {
        let now = now();
        match input {
            Input::Net(event) => self.take_net(device, event, now)?,
            Input::Fs(space, event) => device.fs_event(space, event, now),
            Input::Enrol(Enrol { peer, reply }) => {
                let _ = reply.send(device.enrol(&peer, now));
                self.standing.set(device.members().into_iter());
            }
            Input::Address(Resolved { kept, address }) => match (kept, address) {
                (Some((kept, reply)), Ok(address)) => device.connect(&kept, address, reply, now),
                (Some((kept, reply)), Err(why)) => {
                    let error = CommandError::failed(format!("{kept}: {why}"))
                        .with_hint("give HOST:PORT of a device of this pac");
                    let _ = reply.send(Err(error));
                }
                (None, Ok(address)) => device.add_address(address, now),
                (None, Err(why)) => tracing::debug!(why, "a kept address has no meaning now"),
            },
            Input::Command(command) => return self.take_command(device, command, now),
            Input::Signal => return Ok(Turn::Stop),
            Input::Due => {}
        }
        Ok(Turn::Go)
    }

    fn take_net(
        &mut self,
        device: &mut Device,
        event: NetEvent,
        now: Now,
    ) -> Result<(), StoreError> {
        match event {
            NetEvent::Connected {
                conn,
                device: peer,
                standing,
                address,
                direction,
            } => device.connected(conn, peer, standing, address, direction, now),
            NetEvent::Frame {
                conn,
                lane,
                bytes,
                credit,
            } => {
                let result = device.frame(conn, lane, bytes, now);
                drop(credit);
                result
            }
            NetEvent::Drained { conn, lane } => device.drained(conn, lane, now),
            NetEvent::Closed { conn, reason, .. } => device.closed(conn, &reason, now),
            NetEvent::PeerFound { addresses, .. } => {
                for address in addresses {
                    device.add_address(address, now);
                }
                Ok(())
            }
            NetEvent::ConnectFailed { address, why } => {
                device.connect_failed(address, &why, now);
                Ok(())
            }
        }
    }

    fn take_command(
        &mut self,
        device: &mut Device,
        command: Command,
        now: Now,
    ) -> Result<Turn, StoreError> {
        match command {
            Command::Shutdown { reply } => {
                self.stop = Some(reply);
                return Ok(Turn::Stop);
            }
            Command::Subscribe { reply } => {
                let _ = reply.send(Ok(self.events.subscribe()));
            }
            Command::Connect { address, reply } => self.resolve(address, Some(reply)),
            Command::PairStart {
                pair,
                role,
                events,
                reply,
            } => {
                let started = self.start_pairing(device, pair, role, events, now);
                let _ = reply.send(started);
            }
            Command::PairConfirm {
                pair,
                answer,
                reply,
            } => {
                let _ = reply.send(self.confirm_pairing(pair, answer.into()));
            }
            Command::PairCancel { pair, reply } => {
                if self.pairing.as_ref().is_some_and(|p| p.id == pair) {
                    self.end_pairing();
                }
                let _ = reply.send(Ok(()));
            }
            other => device.command(other, now)?,
        }
        Ok(Turn::Go)
    }

    fn start_pairing(
        &mut self,
        device: &Device,
        pair: PairId,
        role: Role,
        events: mpsc::Sender<PairEvent>,
        now: Now,
    ) -> Result<(), CommandError> {
        if self.pairing.as_ref().is_some_and(|p| !p.task.is_finished()) {
            return Err(CommandError::failed("another pairing is under way")
                .with_hint("end it with Ctrl-C where it was started, or wait ten minutes"));
        }
        device.check_may_enrol(role)?;
        let offer = Offer::new(role, now.ms, &mut OsRng);
        let code = PairEvent::Code {
            pair,
            code: offer.code().reveal().to_string(),
            addresses: self.listen.to_vec(),
            expires_ms: offer.expires_ms(),
        };
        let (decisions, answers) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let keys: DeviceKeys = self.identity.keys.clone();
        let hosting = Hosting {
            net: self.net.clone(),
            offer,
            now_ms: now.ms,
            keys,
            name: self.config.name.clone(),
            events: events.clone(),
            decisions: answers,
            enrol: self.enrol_sender.clone(),
            cancel: cancel.clone(),
        };
        if events.try_send(code).is_err() {
            return Err(CommandError::failed("the client went away"));
        }
        let task = self.network.spawn(async move {
            host::run(hosting).await;
        });
        self.pairing = Some(Pairing {
            id: pair,
            decisions,
            cancel,
            task,
        });
        Ok(())
    }

    fn confirm_pairing(&self, pair: PairId, decision: Decision) -> Result<(), CommandError> {
        let Some(pairing) = self.pairing.as_ref().filter(|p| p.id == pair) else {
            return Err(CommandError::failed("that pairing is over"));
        };
        pairing
            .decisions
            .try_send(decision)
            .map_err(|_| CommandError::failed("that pairing is over"))
    }

    fn end_pairing(&mut self) {
        if let Some(pairing) = self.pairing.take() {
            pairing.cancel.cancel();
        }
    }

    fn resolve_static(&self) {
        for address in &self.config.addresses {
            self.resolve(address.clone(), None);
        }
    }

    /// Looks an address up on the network's runtime.
    fn resolve(&self, text: String, reply: Option<Reply<crate::control::api::ConnectReport>>) {
        let sender = self.address_sender.clone();
        self.network.spawn(async move {
            let found = tokio::net::lookup_host(text.as_str()).await;
            let address = match found {
                Ok(mut found) => found.next().ok_or_else(|| "no such host".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            let kept = reply.map(|reply| (text.clone(), reply));
            let _ = sender.send(Resolved { kept, address }).await;
        });
    }

    fn say(&mut self, kind: EventKind) {
        let event = Event {
            seq: self.next_event,
            at_ms: now().ms,
            kind,
        };
        self.next_event += 1;
        // Nobody has to listen.
        let _ = self.events.send(event);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Go,
    Stop,
}

/// The next thing that happens. Cancel-safe: only receives.
async fn next_input(
    inputs: &mut Inputs,
    cancel: &CancellationToken,
    wait: Option<Duration>,
) -> Input {
    let due = async {
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Input::Signal,
        _ = inputs.terminate.recv() => Input::Signal,
        _ = inputs.interrupt.recv() => Input::Signal,
        Some(command) = inputs.commands.recv() => Input::Command(command),
        Some(enrol) = inputs.enrols.recv() => Input::Enrol(enrol),
        Some((space, event)) = inputs.fs.recv() => Input::Fs(space, event),
        Some(address) = inputs.addresses.recv() => Input::Address(address),
        Some(event) = inputs.net.recv() => Input::Net(event),
        () = due => Input::Due,
    }
}

fn try_input(inputs: &mut Inputs) -> Option<Input> {
    if let Ok(command) = inputs.commands.try_recv() {
        return Some(Input::Command(command));
    }
    if let Ok((space, event)) = inputs.fs.try_recv() {
        return Some(Input::Fs(space, event));
    }
    inputs.net.try_recv().ok().map(Input::Net)
}

//! The devices of the demo: started, paired and stopped with this very program, and
//! asked over their control sockets.

use std::ffi::OsStr;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pacsync_daemon::control::CommandError;
use pacsync_daemon::control::api::{Done, PairEvent, Status, Stopping, WaitReport, WaitRequest};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use crate::client::Client;
use crate::commands::wait_for;
use crate::error::CliError;
use crate::launch;
use crate::local::{self, LockState};

/// How long one thing may take before the demo gives up: far more than it needs.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// How long a daemon may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// How often something is looked at again. Short, since it is part of what is measured.
pub(super) const GLANCE: Duration = Duration::from_millis(1);
/// How often something slow is looked at again.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Whether the user wants the demo to end.
#[derive(Debug, Clone)]
pub(super) struct Interrupt(watch::Receiver<bool>);

/// The other end of an [`Interrupt`].
#[derive(Debug)]
pub(super) struct Interrupter(watch::Sender<bool>);

impl Interrupt {
    pub(super) fn new() -> (Self, Interrupter) {
        let (sender, receiver) = watch::channel(false);
        (Self(receiver), Interrupter(sender))
    }

    fn check(&self) -> Result<(), CliError> {
        if *self.0.borrow() {
            return Err(interrupted());
        }
        Ok(())
    }

    async fn come(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|wanted| *wanted).await.is_err() {
            // Its other end is gone: no signal can come any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Interrupter {
    pub(super) fn interrupt(&self) {
        self.0.send_replace(true);
    }
}

fn interrupted() -> CliError {
    CommandError::failed("interrupted; the daemons of the demo have stopped").into()
}

/// One device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: &'static str,
    home: PathBuf,
    /// Root of its `home` space.
    pub(super) dotfiles: PathBuf,
    /// Root of the space of the generated tree.
    pub(super) work: PathBuf,
    client: Client,
}

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Laptop,
    Phone,
    Server,
}

impl Who {
    pub(super) const ALL: [Self; 3] = [Self::Laptop, Self::Phone, Self::Server];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Laptop => "laptop",
            Self::Phone => "phone",
            Self::Server => "server",
        }
    }
}

/// All devices.
#[derive(Debug)]
pub(super) struct Fleet {
    devices: [Device; 3],
    interrupt: Interrupt,
}

impl Fleet {
    /// Makes the directories of the devices beneath a directory.
    pub(super) fn new(base: &Path, interrupt: Interrupt) -> Result<Self, CliError> {
        let devices = Who::ALL.map(|who| {
            let base = base.join(who.name());
            let home = base.join("pacsync");
            Device {
                name: who.name(),
                client: Client::new(&home),
                home,
                dotfiles: base.join("home"),
                work: base.join("work"),
            }
        });
        for device in &devices {
            for dir in [&device.dotfiles, &device.work] {
                std::fs::create_dir_all(dir).map_err(|error| {
                    CliError::io(format!("cannot make {}", dir.display()), &error)
                })?;
            }
        }
        Ok(Self { devices, interrupt })
    }

    pub(super) fn all(&self) -> &[Device] {
        &self.devices
    }

    pub(super) fn device(&self, who: Who) -> &Device {
        let [laptop, phone, server] = &self.devices;
        match who {
            Who::Laptop => laptop,
            Who::Phone => phone,
            Who::Server => server,
        }
    }

    /// Runs a command on a device and gives what it prints.
    pub(super) fn run<const N: usize>(
        &self,
        who: Who,
        args: [&OsStr; N],
    ) -> Result<Value, CliError> {
        self.interrupt.check()?;
        let child = spawn(self.device(who), &args)?;
        let what = format!("{} on the {}", shown(&args), who.name());
        answer(&what, finish(&what, child)?)
    }

    /// Runs a command on a device whose arguments are plain words.
    pub(super) fn run_words<const N: usize>(
        &self,
        who: Who,
        args: [&str; N],
    ) -> Result<Value, CliError> {
        self.run(who, args.map(OsStr::new))
    }

    /// Founds the pac on a device.
    pub(super) fn found(&self, who: Who) -> Result<(), CliError> {
        let device = self.device(who);
        let root = device.dotfiles.as_os_str();
        let mut args = vec![OsStr::new("up")];
        args.extend(start_flags(device, root));
        self.interrupt.check()?;
        let child = spawn(device, &args)?;
        answer("up", finish("up", child)?).map(drop)
    }

    /// Lets one device in by a code that another one shows.
    pub(super) fn pair(&self, host: Who, joiner: Who) -> Result<(), CliError> {
        self.interrupt.check()?;
        let mut showing = spawn(self.device(host), &["pair", "--yes"].map(OsStr::new))?;
        let joined = self.join(&mut showing, joiner);
        if joined.is_err() {
            // It would wait for somebody who never comes.
            let _ = showing.kill();
        }
        let ended = showing
            .wait()
            .map_err(|error| CliError::io("cannot wait for `pair`", &error))?;
        joined?;
        if ended.success() {
            return Ok(());
        }
        Err(
            CommandError::failed(format!("`pair` on the {} ended with {ended}", host.name()))
                .into(),
        )
    }

    fn join(&self, showing: &mut Child, joiner: Who) -> Result<(), CliError> {
        let lines = lines(showing);
        let (code, address) = loop {
            let line = lines
                .recv_timeout(PATIENCE)
                .map_err(|_| CommandError::failed("`pair` has shown no code"))?;
            if let Ok(PairEvent::Code {
                code, addresses, ..
            }) = serde_json::from_str(&line)
                && let Some(address) = addresses.first()
            {
                break (code, address.to_string());
            }
        };
        let device = self.device(joiner);
        let root = device.dotfiles.as_os_str();
        let mut args = ["pair", &code, "--addr", &address, "--yes"]
            .map(OsStr::new)
            .to_vec();
        args.extend(start_flags(device, root));
        let what = format!("`pair` on the {}", joiner.name());
        answer(&what, finish(&what, spawn(device, &args)?)?)?;
        // `pair` on the other side ends by itself now; its output is read to the end.
        while lines.recv_timeout(PATIENCE).is_ok() {}
        Ok(())
    }

    /// Where a device listens.
    pub(super) fn address(&self, who: Who) -> Result<SocketAddr, CliError> {
        self.status(who)?.listen.first().copied().ok_or_else(|| {
            CommandError::failed(format!("the {} listens nowhere", who.name())).into()
        })
    }

    /// How a device is.
    pub(super) fn status(&self, who: Who) -> Result<Status, CliError> {
        let client = &self.device(who).client;
        self.bounded(
            &format!("status of the {}", who.name()),
            client.get("/v1/status"),
        )
    }

    /// Waits until the devices are all connected with each other and have the same
    /// state on disk.
    pub(super) fn in_step(&self) -> Result<(), CliError> {
        for who in Who::ALL {
            let what = format!("the {} to be connected", who.name());
            self.until(&what, LOOK, || {
                let peers = self.status(who)?.peers;
                let connected = peers.iter().filter(|peer| peer.connected).count();
                Ok((connected + 1 == Who::ALL.len()).then_some(()))
            })?;
        }
        // Each looks for its own changes first and then waits for the others.
        for who in Who::ALL {
            self.wait(who)?;
        }
        Ok(())
    }

    /// Waits until those that are connected to a device have its state on disk.
    pub(super) fn wait(&self, who: Who) -> Result<(), CliError> {
        let request = WaitRequest {
            timeout_ms: u64::try_from(PATIENCE.as_millis()).ok(),
            device: None,
        };
        let client = &self.device(who).client;
        let asked = client.post::<WaitReport>("/v1/wait", &request);
        self.bounded(&format!("the {} in sync", who.name()), asked)
            .map(drop)
    }

    /// Asks a daemon, as long as nobody wants to end and patience lasts.
    fn bounded<T: DeserializeOwned>(
        &self,
        what: &str,
        asked: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        // The daemon's own limit, which says more, comes first.
        let limit = PATIENCE.saturating_add(Duration::from_secs(5));
        wait_for(async {
            tokio::select! {
                answer = asked => answer,
                () = self.interrupt.come() => Err(interrupted()),
                () = tokio::time::sleep(limit) => Err(too_long(what)),
            }
        })
    }

    /// Looks again and again until there is something to see.
    pub(super) fn until<T>(
        &self,
        what: &str,
        pause: Duration,
        mut look: impl FnMut() -> Result<Option<T>, CliError>,
    ) -> Result<T, CliError> {
        let begun = Instant::now();
        loop {
            if let Some(seen) = look()? {
                return Ok(seen);
            }
            if begun.elapsed() > PATIENCE {
                return Err(too_long(what));
            }
            self.interrupt.check()?;
            std::thread::sleep(pause);
        }
    }

    /// Kills the daemon of a device as a power cut would.
    pub(super) fn kill(&self, who: Who, pid: u32) -> Result<(), CliError> {
        let device = self.device(who);
        kill(pid).map_err(|error| CliError::io(format!("cannot kill {pid}"), &error.into()))?;
        local::wait_until_unlocked(&device.home)
    }

    /// Stops all daemons: asked first, killed if that is no use.
    pub(super) fn stop(&self) -> Result<(), CliError> {
        for device in &self.devices {
            device.stop()?;
        }
        Ok(())
    }
}

impl Device {
    fn stop(&self) -> Result<(), CliError> {
        if self.is_gone()? {
            return Ok(());
        }
        let begun = Instant::now();
        let mut asked = false;
        // One that is just starting has no socket yet.
        while !asked && begun.elapsed() < STOP_PATIENCE && !self.is_gone()? {
            asked = wait_for(async {
                let limit = STOP_PATIENCE.saturating_sub(begun.elapsed());
                let asking = self.client.post::<Stopping>("/v1/shutdown", &Done {});
                Ok(tokio::time::timeout(limit, asking)
                    .await
                    .is_ok_and(|answer| answer.is_ok()))
            })?;
            std::thread::sleep(LOOK);
        }
        while begun.elapsed() < STOP_PATIENCE {
            if self.is_gone()? {
                return Ok(());
            }
            std::thread::sleep(GLANCE);
        }
        // Who holds the lock has written its process id into it.
        let lock = self.home.join("lock");
        let pid = std::fs::read_to_string(&lock).unwrap_or_default();
        match pid.trim().parse() {
            Ok(pid) if !self.is_gone()? => kill(pid).map_err(|error| {
                CliError::io(
                    format!("cannot kill the {} ({pid})", self.name),
                    &error.into(),
                )
            }),
            _ => Ok(()),
        }
    }

    fn is_gone(&self) -> Result<bool, CliError> {
        local::lock_state(&self.home).map(|state| state == LockState::Free)
    }
}

fn kill(pid: u32) -> rustix::io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(rustix::io::Errno::SRCH)?;
    match kill_process(pid, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        result => result,
    }
}

fn too_long(what: &str) -> CliError {
    let seconds = PATIENCE.as_secs();
    CommandError::failed(format!("{what}: not within {seconds} s")).into()
}

fn start_flags<'a>(device: &'a Device, root: &'a OsStr) -> [&'a OsStr; 7] {
    let word = OsStr::new;
    [
        word("--root"),
        root,
        word("--listen"),
        word("127.0.0.1:0"),
        word("--name"),
        word(device.name),
        word("--no-discovery"),
    ]
}

/// Starts this program for a device, in a process group of its own: Ctrl-C in the
/// terminal is for the demo alone, which stops the daemons in order.
fn spawn(device: &Device, args: &[&OsStr]) -> Result<Child, CliError> {
    let failed = |error| CliError::io("cannot start pacsync itself", &error);
    Command::new(launch::myself().map_err(failed)?)
        .arg0("pacsync")
        .arg("--home")
        .arg(&device.home)
        .arg("--json")
        .args(args)
        // Nothing may fall back to the user's own.
        .env("HOME", &device.dotfiles)
        .env_remove("PACSYNC_HOME")
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)
}

/// The lines that a child prints, as they come.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines();
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

/// Waits for the end of a child, not for ever.
fn finish(what: &str, child: Child) -> Result<std::process::Output, CliError> {
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(child.wait_with_output());
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(output) => output.map_err(|error| CliError::io(format!("cannot run {what}"), &error)),
        Err(_) => {
            let _ = kill(pid);
            Err(too_long(what))
        }
    }
}

/// What a command has answered, or its error.
fn answer(what: &str, output: std::process::Output) -> Result<Value, CliError> {
    let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    match answer {
        Some(answer) if output.status.success() => Ok(answer),
        answer => {
            let said = answer
                .and_then(|answer| Some(answer.get("error")?.get("message")?.as_str()?.to_owned()))
                .unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned());
            Err(CommandError::failed(format!("{what} ended with {}: {said}", output.status)).into())
        }
    }
}

fn shown(args: &[&OsStr]) -> String {
    let words: Vec<_> = args
        .iter()
        .take(2)
        .map(|arg| arg.to_string_lossy())
        .collect();
    format!("`{}`", words.join(" "))
}

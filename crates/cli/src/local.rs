//! What is done in a home without its daemon: found a pac, join one, run the
//! daemon itself, and see whether one runs. The only place that calls into the
//! daemon's library for more than its control API.

use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pacsync_daemon::control::CommandError;
use pacsync_daemon::home::{FoundOptions, Founding, Home, HomeError, store_welcome};
use pacsync_daemon::net;
use pacsync_daemon::pairing::join::{Decision, JoinError, Joining, Whereabouts};
use pacsync_protocol::identity::{DeviceKeys, DeviceName};
use pacsync_protocol::pairing::{PairingCode, Peer};
use rand_core::OsRng;
use rustix::fs::FlockOperation;

use crate::error::CliError;

/// The file whose lock a running daemon holds.
const LOCK_NAME: &str = "lock";

/// How a device takes part; kept in the home for later starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StartOptions {
    /// Where the `home` space lives; absolute.
    pub(crate) root: Option<PathBuf>,
    /// Where to listen for peers.
    pub(crate) listen: Option<SocketAddr>,
    /// Display name of the device.
    pub(crate) name: Option<String>,
    /// Whether to look for peers on the LAN and be seen there.
    pub(crate) discovery: Option<Discovery>,
}

/// Whether a device takes part in discovery on the LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// It does not.
    Off,
}

impl StartOptions {
    /// Fills in what a new device needs and the user has not said.
    fn for_new_device(&self) -> Result<FoundOptions, CliError> {
        let root = match &self.root {
            Some(root) => root.clone(),
            None => user_home()?,
        };
        let name = match self.device_name()? {
            Some(name) => name,
            None => DeviceName::lossy(&rustix::system::uname().nodename().to_string_lossy()),
        };
        let discovery = match self.discovery {
            Some(Discovery::Off) => net::Discovery::Off,
            None => net::Discovery::On,
        };
        Ok(FoundOptions {
            name,
            root,
            listen: self.listen,
            discovery,
        })
    }

    fn device_name(&self) -> Result<Option<DeviceName>, CliError> {
        let Some(name) = &self.name else {
            return Ok(None);
        };
        DeviceName::new(name).map(Some).map_err(|error| {
            CommandError::usage(format!("{name:?} cannot be the name of a device: {error}"))
                .with_hint("a name is 1 to 64 bytes of plain text, without blanks at its ends")
                .into()
        })
    }
}

fn user_home() -> Result<PathBuf, CliError> {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
        .ok_or_else(|| {
            CommandError::failed("HOME is not set, so there is no root for the home space")
                .with_hint("name one with --root DIR")
                .into()
        })
}

/// Whether a home has a pac.
pub(crate) fn has_pac(home: &Path) -> Result<bool, CliError> {
    Home::at(home).has_pac().map_err(from_home)
}

/// Whether a home's keys and settings can be read. False if nobody is at home yet.
pub(crate) fn check_home(home: &Path) -> Result<bool, CliError> {
    let home = Home::at(home);
    match home.load() {
        Ok(_) => Ok(true),
        Err(HomeError::NotFounded { .. }) => Ok(false),
        Err(error) => Err(from_home(error)),
    }
}

/// Makes a pac in a home that has none. `show` is given the words of its phrase;
/// if it fails, nobody has seen them and there is no pac.
pub(crate) fn found(
    home: &Path,
    options: &StartOptions,
    show: impl FnOnce(&[&str]) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let options = options.for_new_device()?;
    check_address(&options)?;
    let lock = Home::at(home).lock().map_err(from_home)?;
    let founding = Founding::begin(&lock, &options, now_ms(), &mut OsRng).map_err(from_home)?;
    let phrase = founding.phrase().reveal();
    show(&phrase.split(' ').collect::<Vec<_>>())?;
    founding.finish().map_err(from_home)
}

/// Keeps options for the next start, where they are given.
pub(crate) fn configure(home: &Path, options: &StartOptions) -> Result<(), CliError> {
    if *options == StartOptions::default() {
        return Ok(());
    }
    let lock = Home::at(home).lock().map_err(from_home)?;
    let home = lock.home();
    let mut config = home.load_config().map_err(from_home)?;
    if let Some(root) = options.root.as_ref().filter(|root| **root != config.root) {
        return Err(CommandError::usage(format!(
            "the home space is at {} already, not at {}",
            config.root.display(),
            root.display()
        ))
        .with_hint("leave out --root; it is chosen when a device starts for the first time")
        .into());
    }
    config.listen = options.listen.or(config.listen);
    if let Some(name) = options.device_name()? {
        config.name = name;
    }
    if options.discovery == Some(Discovery::Off) {
        config.discovery = net::Discovery::Off;
    }
    home.save_config(&config).map_err(from_home)
}

/// Joins a pac with a code, on the LAN or at an address. `confirm` is asked once,
/// when the inviting device is known.
pub(crate) fn join<A: Future<Output = bool>>(
    home: &Path,
    options: &StartOptions,
    code: &str,
    address: Option<String>,
    confirm: impl FnOnce(Peer) -> A,
) -> Result<(), CliError> {
    let options = options.for_new_device()?;
    let code = PairingCode::parse(code).map_err(|error| {
        let error = JoinError::Code(error);
        CommandError::usage(chain(&error)).with_hint(error.hint())
    })?;
    let home = Home::at(home);
    check_can_join(&home, &options).map_err(from_home)?;
    check_address(&options)?;
    let lock = home.lock().map_err(from_home)?;
    let keys = DeviceKeys::generate(&mut OsRng);
    let joining = Joining {
        code,
        whereabouts: address.map_or(Whereabouts::Discover, Whereabouts::Address),
        keys: keys.clone(),
        name: options.name.clone(),
    };
    let decide = async |host| match confirm(host).await {
        true => Decision::Accept,
        false => Decision::Reject,
    };
    let joined = pacsync_daemon::pairing::join::run(joining, decide, |host, welcome| {
        store_welcome(
            &lock,
            &options,
            &keys,
            host.role,
            welcome,
            now_ms(),
            &mut OsRng,
        )
    });
    crate::commands::wait_for(async { joined.await.map_err(from_join) })?;
    Ok(())
}

/// Finds what would only come out once the code is spent.
fn check_can_join(home: &Home, options: &FoundOptions) -> Result<(), HomeError> {
    if home.has_pac()? {
        let pac = home.load()?.identity.founding.id();
        return Err(HomeError::AlreadyFounded {
            home: home.path().to_owned(),
            pac,
        });
    }
    let bad = |why: String| HomeError::BadRoot {
        path: options.root.clone(),
        why,
    };
    match options.root.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(bad("it is a file".into())),
        Err(error) => Err(bad(error.to_string())),
    }
}

/// Finds out that an address is taken while nothing is made yet.
fn check_address(options: &FoundOptions) -> Result<(), CliError> {
    match options.listen.map(net::try_bind) {
        Some(Err(error)) => Err(from_daemon(&error.into())),
        _ => Ok(()),
    }
}

/// Runs the daemon until it is told to stop. `ready` is called once it serves its socket.
pub(crate) fn run_daemon(home: &Path, ready: Box<dyn FnOnce() + Send>) -> Result<(), CliError> {
    pacsync_daemon::run::run(&Home::at(home), ready).map_err(|error| from_daemon(&error))
}

fn from_daemon(error: &pacsync_daemon::run::DaemonError) -> CliError {
    let told = CommandError::failed(chain(error));
    match error.hint() {
        Some(hint) => told.with_hint(hint).into(),
        None => told.into(),
    }
}

/// For display only.
fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

fn from_home(error: HomeError) -> CliError {
    CommandError::failed(chain(&error))
        .with_hint(error.hint())
        .into()
}

fn from_join(error: JoinError) -> CliError {
    CommandError::failed(chain(&error))
        .with_hint(error.hint())
        .into()
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors repeat their cause in their own words.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Whether some process holds the lock of a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockState {
    /// A daemon runs, starts or ends.
    Held,
    /// Nobody is there.
    Free,
}

/// Looks at the lock of a home without disturbing its holder.
pub(crate) fn lock_state(home: &Path) -> Result<LockState, CliError> {
    let Some(lock) = open_lock(home)? else {
        return Ok(LockState::Free);
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(LockState::Free),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(LockState::Held),
        Err(error) => Err(cannot_lock(home, error)),
    }
}

/// Blocks until the daemon of a home has gone.
pub(crate) fn wait_until_unlocked(home: &Path) -> Result<(), CliError> {
    let Some(lock) = open_lock(home)? else {
        return Ok(());
    };
    loop {
        match rustix::fs::flock(&lock, FlockOperation::LockShared) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(cannot_lock(home, error)),
        }
    }
}

fn open_lock(home: &Path) -> Result<Option<File>, CliError> {
    let path = home.join(LOCK_NAME);
    match File::open(&path) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CliError::io(
            format!("cannot open {}", path.display()),
            &error,
        )),
    }
}

fn cannot_lock(home: &Path, error: rustix::io::Errno) -> CliError {
    let path = home.join(LOCK_NAME);
    CliError::io(
        format!("cannot look at the lock {}", path.display()),
        &error.into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_says_whether_a_daemon_runs() {
        let home = tempfile::tempdir().expect("a directory");
        assert_eq!(lock_state(home.path()).expect("looks"), LockState::Free);
        let lock = File::create(home.path().join(LOCK_NAME)).expect("creates");
        assert_eq!(lock_state(home.path()).expect("looks"), LockState::Free);
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("locks");
        assert_eq!(lock_state(home.path()).expect("looks"), LockState::Held);
        drop(lock);
        wait_until_unlocked(home.path()).expect("free");
    }
}

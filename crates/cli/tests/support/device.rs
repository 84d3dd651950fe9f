//! A device: a home, a root and the daemon between them.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::events::Events;
use super::process::{Hosting, TIMEOUT, json, output_within};
use super::tree::{Tree, check_same};

/// Seconds that a `wait` may take before it names what is missing; below [`TIMEOUT`].
const WAIT_SECS: &str = "120";
/// A guard: what happens at rest is there in a fraction of a second.
const SHOWN_WITHIN: Duration = Duration::from_secs(45);

/// How a device is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Arguments of `up` beside `--root`, `--listen`, `--name` and `--no-discovery`.
    pub more: Vec<String>,
    /// Leaves mDNS on.
    pub discovery: bool,
    /// Where to listen; a free port of loopback otherwise.
    pub listen: Option<SocketAddr>,
    /// What stands before the program, e.g. `setpriv --reuid 1000 --clear-groups`.
    pub prefix: Vec<String>,
    /// Environment beside `HOME`.
    pub env: Vec<(String, String)>,
}

/// A device whose daemon is killed and whose directories are removed with it.
pub struct Device {
    /// Its display name.
    pub name: String,
    /// Everything of it lies in here.
    pub dir: PathBuf,
    /// The home of the daemon.
    pub home: PathBuf,
    /// The root of the `home` space.
    pub root: PathBuf,
    start: Start,
    pid: Cell<Option<i32>>,
    _kept: tempfile::TempDir,
}

impl Device {
    /// Makes the directories. Nothing runs yet.
    pub fn new(name: &str) -> Self {
        Self::with(name, Start::default())
    }

    /// Makes the directories of a device that is started in some way of its own.
    pub fn with(name: &str, start: Start) -> Self {
        let kept = tempfile::Builder::new()
            .prefix("pac")
            .tempdir()
            .expect("a directory");
        let dir = kept.path().canonicalize().expect("is there");
        let (home, root) = (dir.join("home"), dir.join("root"));
        std::fs::create_dir(&root).expect("creates");
        Self {
            name: name.to_owned(),
            dir,
            home,
            root,
            start,
            pid: Cell::new(None),
            _kept: kept,
        }
    }

    /// A device with a new pac, running.
    pub fn founded(name: &str) -> Self {
        let device = Self::new(name);
        device.up();
        device
    }

    /// A device with a new pac that tracks all of its root, running.
    pub fn founded_whole(name: &str) -> Self {
        let device = Self::founded(name);
        device.ok([OsStr::new("add"), device.root.as_os_str()]);
        device
    }

    /// Two running devices of one pac that track all of their roots, connected and at rest.
    pub fn pair_of() -> (Self, Self) {
        let a = Self::founded_whole("a");
        let b = Self::new("b");
        b.pair_with(&a);
        b.wait();
        (a, b)
    }

    /// The program, for this home, with nothing of the tester's environment.
    pub fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_pacsync");
        let mut command = match self.start.prefix.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("HOME", &self.dir)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.start.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.dir)
            .arg("--home")
            .arg(&self.home);
        command
    }

    /// Runs a command of this device to its end.
    pub fn cli<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        output_within(self.command().args(args), TIMEOUT)
    }

    /// Runs a command with `--json` that must succeed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let output = output_within(self.command().arg("--json").args(args), TIMEOUT);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}: {output:?}\n{}",
            self.name,
            self.log()
        );
        json(&output)
    }

    /// Runs a command with `--json` that must fail with an exit code; gives the `error` object.
    pub fn fails<S: AsRef<OsStr>>(&self, code: i32, args: impl IntoIterator<Item = S>) -> Value {
        let output = output_within(self.command().arg("--json").args(args), TIMEOUT);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{}: {output:?}",
            self.name
        );
        json(&output)["error"].clone()
    }

    /// The flags of `up`, also for a device that joins.
    pub fn start_args(&self) -> Vec<String> {
        let listen = self
            .start
            .listen
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut args = vec![
            "--root".to_owned(),
            self.root.to_str().expect("text").to_owned(),
            "--listen".to_owned(),
            listen.to_string(),
            "--name".to_owned(),
            self.name.clone(),
        ];
        if !self.start.discovery {
            args.push("--no-discovery".to_owned());
        }
        args.extend(self.start.more.iter().cloned());
        args
    }

    /// Starts the daemon, making a pac if there is none; gives what `up` reports.
    pub fn up(&self) -> Value {
        let args = [vec!["up".to_owned()], self.start_args()].concat();
        let report = self.ok(args);
        self.note_pid(&report);
        report
    }

    /// Starts the daemon of a home that has a pac, with what it remembers.
    pub fn restart(&self) -> Value {
        let report = self.ok(["up"]);
        self.note_pid(&report);
        report
    }

    /// Stops the daemon as a user does.
    pub fn down(&self) {
        self.ok(["down"]);
        self.pid.set(None);
    }

    fn note_pid(&self, report: &Value) {
        let pid = report["pid"].as_i64().expect("a pid");
        self.pid.set(i32::try_from(pid).ok());
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> i32 {
        self.pid.get().expect("it was started")
    }

    /// Joins the pac of a running device, by code and address; both sides say yes.
    pub fn pair_with(&self, host: &Self) -> Value {
        self.pair_at(host, host.address())
    }

    /// Joins the pac of a device that is reached at some address.
    pub fn pair_at(&self, host: &Self, address: SocketAddr) -> Value {
        let hosting = host.host();
        let report = self.join(&hosting.code(), address);
        let (code, events) = hosting.finish();
        assert_eq!(code, Some(0), "{events:?}");
        report
    }

    /// Joins the pac of a running device as an admin, which a person at it says yes to.
    pub fn pair_as_admin_with(&self, host: &Self) -> Value {
        let mut asked = host.command();
        asked.args(["pair", "--role", "admin", "--json"]);
        let hosting = Hosting::start_answering(&mut asked, "y\n");
        let report = self.join(&hosting.code(), host.address());
        let (code, events) = hosting.finish();
        assert_eq!(code, Some(0), "{events:?}");
        report
    }

    /// Shows a code.
    pub fn host(&self) -> Hosting {
        Hosting::start(self.command().args(["pair", "--yes", "--json"]))
    }

    /// The arguments of `pair CODE`.
    pub fn join_args(&self, code: &str, address: SocketAddr) -> Vec<String> {
        let mut args: Vec<String> = ["pair", code, "--addr"].map(str::to_owned).into();
        args.extend([address.to_string(), "--yes".to_owned()]);
        args.extend(self.start_args());
        args
    }

    /// Joins with a code.
    pub fn join(&self, code: &str, address: SocketAddr) -> Value {
        let report = self.ok(self.join_args(code, address));
        self.note_pid(&report);
        report
    }

    /// Where the daemon listens.
    pub fn address(&self) -> SocketAddr {
        self.status()["listen"][0]
            .as_str()
            .and_then(|address| address.parse().ok())
            .expect("an address")
    }

    /// `status`.
    pub fn status(&self) -> Value {
        self.ok(["status"])
    }

    /// Its device id.
    pub fn id(&self) -> String {
        self.status()["device"]["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    }

    /// `wait`, which must come to an end with all in step.
    pub fn wait(&self) -> Value {
        self.ok(["wait", "--timeout", WAIT_SECS])
    }

    /// `wait` for one device, by whatever way it is heard of.
    pub fn wait_for(&self, other: &Self) -> Value {
        self.ok(["wait", "--timeout", WAIT_SECS, "--device", &other.name])
    }

    /// `scan`.
    pub fn scan(&self) -> Value {
        self.ok(["scan"])
    }

    /// `add` of paths relative to the root.
    pub fn add(&self, paths: &[&str]) -> Value {
        let paths = paths.iter().map(|path| self.root.join(path));
        self.ok(std::iter::once(PathBuf::from("add")).chain(paths))
    }

    /// `connect`.
    pub fn connect(&self, other: &Self) -> Value {
        self.ok(["connect", &other.address().to_string()])
    }

    /// Its events from now on.
    pub fn events(&self) -> Events {
        Events::subscribe(&self.home)
    }

    /// Its root as it is on disk now, as far as it is the user's.
    pub fn tree(&self) -> Tree {
        Tree::read(&self.root).without_own()
    }

    /// Looks at the disk until nothing of the program's own is left in the root. What was
    /// displaced stays for seconds by intent, and no command waits for it.
    #[track_caller]
    pub fn becomes_tidy(&self) {
        let start = std::time::Instant::now();
        loop {
            let tree = Tree::read(&self.root);
            if tree.own().is_empty() {
                return;
            }
            assert!(
                start.elapsed() < SHOWN_WITHIN,
                "litter on {}: {:?}",
                self.name,
                tree.own()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the daemon as a power cut would, and returns when it is gone.
    pub fn kill9(&self) {
        kill(self.pid(), Signal::KILL);
        self.pid.set(None);
        self.wait_until_gone();
    }

    /// Stops the daemon's process without ending it.
    pub fn freeze(&self) {
        kill(self.pid(), Signal::STOP);
    }

    /// Lets a frozen daemon go on.
    pub fn thaw(&self) {
        kill(self.pid(), Signal::CONT);
    }

    /// Blocks until no process holds the lock of the home.
    pub fn wait_until_gone(&self) {
        let lock = File::open(self.home.join("lock")).expect("a lock");
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("the lock");
    }

    /// The end of the daemon's log, for messages.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.home.join("daemon.log")).unwrap_or_default();
        let skipped = text.lines().count().saturating_sub(40);
        let lines: Vec<&str> = text.lines().skip(skipped).collect();
        format!("log of {}:\n{}", self.name, lines.join("\n"))
    }

    /// Looks at something until it is as wanted. Only for what neither `wait` nor an event
    /// tells: it asks again and again.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let start = std::time::Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(
                start.elapsed() < TIMEOUT,
                "{}: never {what}\n{}",
                self.name,
                self.log()
            );
            // Keeps a busy look from taking the processor that the daemon needs.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Looks at the disk of this device until it is as another's, as a user would, without a
    /// command that makes the daemons look at anything. Events tell of single paths only.
    #[track_caller]
    pub fn comes_to_show(&self, other: &Self) {
        let start = std::time::Instant::now();
        loop {
            let (own, wanted) = (self.tree(), other.tree());
            if own == wanted {
                return;
            }
            if start.elapsed() > SHOWN_WITHIN {
                check_same(&wanted, &own);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Conflicts, as `status` counts them.
    pub fn conflicts(&self) -> u64 {
        self.status()["conflicts"].as_u64().expect("a number")
    }

    /// The space of a name in a status.
    pub fn space(&self, name: &str) -> Value {
        let status = self.status();
        let spaces = status["spaces"].as_array().expect("spaces");
        spaces
            .iter()
            .find(|space| space["name"] == name)
            .unwrap_or_else(|| panic!("no space {name}: {status}"))
            .clone()
    }

    /// A path below its own directory, beside home and root.
    pub fn beside(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(file) = File::open(self.home.join("lock"))
            && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            // Whoever holds the lock has written its pid there, also where `up` failed half-way.
            let text = std::fs::read_to_string(self.home.join("lock")).unwrap_or_default();
            let pid = text.trim().parse().ok().or(self.pid.get());
            if let Some(pid) = pid {
                kill(pid, Signal::KILL);
                let _ = rustix::fs::flock(&file, FlockOperation::LockExclusive);
            }
        }
        if std::thread::panicking() {
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("{}\n", self.log()).as_bytes(),
            );
        }
    }
}

fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

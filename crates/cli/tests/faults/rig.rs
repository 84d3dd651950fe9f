//! Daemons as a person starts them: homes, roots, the command line, and what a machine offers.

use std::ffi::OsStr;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Name of the space that most tests use.
pub(crate) const SPACE: &str = "work";
/// Bound on what is waited for; only a failure takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The prefix of names that belong to the daemon.
pub(crate) const RESERVED: &str = ".pacsync~";

/// Who the daemon runs as, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// As the test itself.
    Here,
    /// As another user.
    Uid(u32),
    /// In a network namespace.
    Net(String),
}

/// One device: a home, a root for its `home` space, and one for [`SPACE`].
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) home: PathBuf,
    /// Where [`SPACE`] lives.
    pub(crate) root: PathBuf,
    user: PathBuf,
    pub(crate) stage: Stage,
    up: Vec<String>,
}

impl Machine {
    /// Lays the directories of a device; nothing runs yet.
    pub(crate) fn new(dir: &Path, name: &'static str, stage: Stage) -> Self {
        let base = dir.join(name);
        let machine = Self {
            name,
            home: base.join("pac"),
            root: base.join("work"),
            user: base.join("user"),
            stage,
            up: vec![
                "--listen".into(),
                format!("127.0.0.1:{}", port()),
                "--no-discovery".into(),
            ],
        };
        for made in [&base, &machine.root, &machine.user, &machine.home] {
            fs::create_dir_all(made).expect("makes a directory");
            machine.give(made);
        }
        machine
    }

    /// Listens elsewhere, and takes part in discovery.
    pub(crate) fn on_lan(mut self, address: &str) -> Self {
        self.up = vec!["--listen".into(), format!("{address}:0")];
        self
    }

    /// Hands a path to the user that the daemon runs as.
    pub(crate) fn give(&self, path: &Path) {
        if let Stage::Uid(uid) = self.stage {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("changes the owner");
        }
    }

    fn command(&self) -> Command {
        // Another build, for measurements.
        let binary = std::env::var("PACSYNC_BINARY");
        let binary = binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_pacsync"));
        let mut command = match &self.stage {
            Stage::Here => Command::new(binary),
            Stage::Uid(uid) => {
                let mut command = Command::new("setpriv");
                command.args([
                    &format!("--reuid={uid}"),
                    &format!("--regid={uid}"),
                    "--clear-groups",
                    binary,
                ]);
                command
            }
            Stage::Net(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, binary]);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.user)
            .arg("--home")
            .arg(&self.home)
            .current_dir(&self.user)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of the line to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command().args(args).output().expect("runs")
    }

    /// Starts a command of the line.
    pub(crate) fn spawn<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> std::process::Child {
        self.command()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs")
    }

    /// Runs a command that must succeed; its JSON.
    pub(crate) fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args.iter().copied().chain(["--json"]));
        assert!(
            output.status.success(),
            "{}: {args:?} ended with {:?}: {}{}",
            self.name,
            output.status.code(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        last_json(&output)
    }

    /// Starts the daemon.
    pub(crate) fn up(&self) -> Value {
        let user = self.user.to_string_lossy().into_owned();
        let args: Vec<&str> = ["up", "--root", &user, "--name", self.name]
            .into_iter()
            .chain(self.up.iter().map(String::as_str))
            .collect();
        self.ok(&args)
    }

    /// Joins by a code.
    pub(crate) fn join(&self, code: &str, address: Option<&str>) -> Value {
        let user = self.user.to_string_lossy().into_owned();
        let mut args = vec!["pair", code, "--yes", "--root", &user, "--name", self.name];
        args.extend(address.iter().flat_map(|address| ["--addr", address]));
        args.extend(self.up.iter().map(String::as_str));
        self.ok(&args)
    }

    pub(crate) fn down(&self) {
        self.ok(&["down"]);
    }

    pub(crate) fn status(&self) -> Value {
        self.ok(&["status"])
    }

    /// The address that the daemon listens on.
    pub(crate) fn address(&self) -> String {
        let status = self.status();
        status["listen"][0].as_str().expect("an address").to_owned()
    }

    /// The daemon's process, if one runs.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.home.join("lock")).ok()?;
        let pid = Pid::from_raw(text.trim().parse().ok()?)?;
        self.is_own(pid).then_some(pid)
    }

    fn is_own(&self, pid: Pid) -> bool {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        let line = line.unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let home = self.home.as_os_str().as_encoded_bytes();
        words.any(|word| word == home) && words.any(|word| word == b"daemon")
    }

    /// Daemons of this home among all processes.
    fn running(&self) -> Vec<Pid> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .filter_map(Pid::from_raw)
            .filter(|pid| self.is_own(*pid))
            .collect()
    }

    /// Ends the daemon as a power cut would, and waits until it is gone.
    pub(crate) fn kill(&self) {
        let Some(pid) = self.pid() else { return };
        if kill_process(pid, Signal::KILL).is_ok() {
            let lock = fs::File::open(self.home.join("lock")).expect("a lock file");
            eventually("the killed daemon is gone", || {
                rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).ok()
            });
        }
    }

    /// Does something that the daemon sees only when it is done.
    pub(crate) fn while_stopped(&self, deed: impl FnOnce()) {
        let pid = self.pid().expect("the daemon runs");
        kill_process(pid, Signal::STOP).expect("stops it");
        deed();
        kill_process(pid, Signal::CONT).expect("goes on");
    }

    /// Resident memory of the daemon in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let pid = self.pid().expect("the daemon runs").as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a line");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse().ok())
            .expect("a number")
    }

    /// Processor time of the daemon in clock ticks.
    pub(crate) fn ticks(&self) -> u64 {
        let pid = self.pid().expect("the daemon runs").as_raw_nonzero();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        let number = |at: usize| -> u64 {
            fields
                .split(' ')
                .nth(at)
                .and_then(|field| field.parse().ok())
                .expect("a number")
        };
        number(11) + number(12)
    }

    /// Waits for convergence through the command of that name.
    pub(crate) fn wait(&self) {
        let output = self.run(["wait", "--timeout", "60", "--json"]);
        assert!(
            output.status.success(),
            "{}: wait ended with {:?}: {}\nstatus: {}",
            self.name,
            output.status.code(),
            String::from_utf8_lossy(&output.stdout),
            self.status(),
        );
    }

    /// What `status` says is wrong, as (path, what).
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.status()["problems"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|problem| (text(&problem["path"]), text(&problem["what"])))
            .collect()
    }

    /// Waits until a problem names a path; what it says.
    pub(crate) fn problem_at(&self, path: &Path) -> String {
        eventually_with(
            &format!("{}: a problem at {}", self.name, path.display()),
            PATIENCE,
            || {
                let problems = self.problems().into_iter();
                problems
                    .filter(|(at, _)| Path::new(at) == path)
                    .map(|(_, what)| what)
                    .next()
            },
            || self.status().to_string(),
        )
    }

    /// Waits until nothing is wrong.
    pub(crate) fn no_problems(&self) {
        eventually_with(
            &format!("{}: no problems", self.name),
            PATIENCE,
            || self.problems().is_empty().then_some(()),
            || format!("{:?}", self.problems()),
        );
    }

    pub(crate) fn conflicts(&self) -> u64 {
        self.status()["conflicts"].as_u64().expect("a number")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.home.join("daemon.log")).unwrap_or_default();
            let from = log.lines().count().saturating_sub(25);
            for line in log.lines().skip(from) {
                say(&format!("{}: {line}", self.name));
            }
        }
        if keeps() {
            return;
        }
        // Its home, with the file that tells its pid, may be gone before it.
        for pid in self.pid().into_iter().chain(self.running()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A port that stays the device's own over restarts: below those that the system hands out.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let first = 10_000 + u16::try_from(std::process::id() % 500).expect("small") * 40;
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Two devices of one pac with one shared space. The directory goes last.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) a: Machine,
    pub(crate) b: Machine,
    pub(crate) dir: TempDir,
}

impl Pair {
    /// Pairs two devices in a new directory; what is in A's root by then comes along.
    pub(crate) fn new() -> Self {
        Self::staged(Stage::Here, Stage::Here, |_, _| {})
    }

    /// Pairs two devices after `prepare` has seen them.
    pub(crate) fn staged(a: Stage, b: Stage, prepare: impl FnOnce(&Machine, &Machine)) -> Self {
        let dir = case_dir();
        let pair = Self {
            a: Machine::new(dir.path(), "anna", a),
            b: Machine::new(dir.path(), "bert", b),
            dir,
        };
        prepare(&pair.a, &pair.b);
        pair.a.up();
        let root = pair.a.root.to_string_lossy().into_owned();
        pair.a.ok(&["space", "create", SPACE, "--at", &root]);
        pair_up(&pair.a, &pair.b, Some(&pair.a.address()));
        let root = pair.b.root.to_string_lossy().into_owned();
        eventually("the space is known", || {
            pair.b
                .run(["space", "attach", SPACE, "--at", &root])
                .status
                .success()
                .then_some(())
        });
        pair.a.wait();
        pair.b.wait();
        pair
    }

    /// Waits until both say that all is in sync, and checks that it is.
    pub(crate) fn converge(&self) {
        self.a.wait();
        self.b.wait();
        assert_same(&self.a.root, &self.b.root);
    }

    /// A directory on the roots' file system that no space covers.
    pub(crate) fn outside(&self) -> PathBuf {
        let path = self.dir.path().join("outside");
        fs::create_dir_all(&path).expect("makes a directory");
        path
    }
}

/// True if daemons and files are left for somebody to look at: `PACSYNC_KEEP`.
fn keeps() -> bool {
    std::env::var_os("PACSYNC_KEEP").is_some()
}

/// A new directory that every user may look into.
pub(crate) fn case_dir() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new()
        .prefix("pacsync-faults-")
        .disable_cleanup(keeps())
        .tempdir()
        .expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opens it");
    dir
}

/// Lets `joiner` into the pac of `host`.
pub(crate) fn pair_up(host: &Machine, joiner: &Machine, address: Option<&str>) {
    use std::io::BufRead;
    let mut hosting = host.spawn(["pair", "--json", "--yes"]);
    let mut lines = std::io::BufReader::new(hosting.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    let first: Value = serde_json::from_str(&first).expect("JSON");
    joiner.join(first["code"].as_str().expect("a code"), address);
    for line in lines {
        line.expect("text");
    }
    assert!(hosting.wait().expect("ends").success(), "the host enrols");
}

/// The last line of a command's output as JSON.
pub(crate) fn last_json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or(Value::Null)
}

/// Looks again and again until `found` has something; bounded, so that a failure ends.
pub(crate) fn eventually<T>(what: &str, found: impl FnMut() -> Option<T>) -> T {
    eventually_with(what, PATIENCE, found, String::new)
}

/// [`eventually`] with its own bound, and what to tell beside a failure.
pub(crate) fn eventually_with<T>(
    what: &str,
    patience: Duration,
    mut found: impl FnMut() -> Option<T>,
    tell: impl FnOnce() -> String,
) -> T {
    let until = Instant::now() + patience;
    loop {
        if let Some(found) = found() {
            return found;
        }
        if Instant::now() > until {
            panic!("never came true: {what} {}", tell());
        }
        // Between two looks at a condition, not instead of one.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Everything beneath a directory that is not the daemon's: relative path → what stands there.
pub(crate) fn listing(root: &Path) -> std::collections::BTreeMap<PathBuf, Thing> {
    let mut found = std::collections::BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let entry = entry.expect("an entry");
            if entry.file_name().to_string_lossy().starts_with(RESERVED) {
                continue;
            }
            let path = entry.path();
            let kind = entry.file_type().expect("a type");
            let thing = if kind.is_dir() {
                dirs.push(path.clone());
                Thing::Dir
            } else if kind.is_symlink() {
                Thing::Link(fs::read_link(&path).expect("a target"))
            } else {
                Thing::File(fs::read(&path).expect("reads"))
            };
            found.insert(
                path.strip_prefix(root).expect("beneath").to_path_buf(),
                thing,
            );
        }
    }
    found
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Thing {
    Dir,
    Link(PathBuf),
    File(Vec<u8>),
}

impl Thing {
    fn brief(&self) -> String {
        match self {
            Self::Dir => "a directory".into(),
            Self::Link(to) => format!("a link to {}", to.display()),
            Self::File(bytes) => {
                let tail = bytes
                    .get(bytes.len().saturating_sub(4)..)
                    .unwrap_or_default();
                format!("{} B ending in {tail:02x?}", bytes.len())
            }
        }
    }
}

/// Compares two trees byte for byte.
pub(crate) fn assert_same(left: &Path, right: &Path) {
    let (left, right) = (listing(left), listing(right));
    for (path, thing) in &left {
        let other = right.get(path);
        assert!(
            other == Some(thing),
            "{}: {} here, {} there",
            path.display(),
            thing.brief(),
            other.map_or("nothing".into(), Thing::brief)
        );
    }
    for path in right.keys() {
        assert!(
            left.contains_key(path),
            "{} is only at the second",
            path.display()
        );
    }
}

/// Names of the daemon's own files beneath a directory.
pub(crate) fn reserved(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with(RESERVED) {
                found.push(path.clone());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(path);
            }
        }
    }
    found
}

/// Waits until the daemon has cleared what is its own from a root.
pub(crate) fn assert_no_temps(root: &Path) {
    eventually_with(
        "no temporary file is left",
        Duration::from_secs(15),
        || reserved(root).is_empty().then_some(()),
        || format!("{:?}", reserved(root)),
    );
}

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Setpriv,
    Tmpfs,
    LoopDevices,
    NetworkNamespaces,
}

/// True if the machine has what a test needs; otherwise says so, and fails where `CI` is `true`.
pub(crate) fn has(need: Need) -> bool {
    let works = |program: &str, args: &[&str]| {
        Command::new(program)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let found = rustix::process::geteuid().is_root()
        && match need {
            Need::Setpriv => works(
                "setpriv",
                &["--reuid=54321", "--regid=54321", "--clear-groups", "true"],
            ),
            Need::Tmpfs => {
                let dir = case_dir();
                Mount::tmpfs(dir.path(), "1m").is_some()
            }
            Need::LoopDevices => {
                let dir = case_dir();
                let image = Image::new(&dir.path().join("image"));
                image.is_some_and(|image| image.attach().mount(dir.path()).is_some())
            }
            Need::NetworkNamespaces => {
                let name = format!("pacsync-{}", std::process::id());
                works("ip", &["netns", "add", &name]) && works("ip", &["netns", "del", &name])
            }
        };
    if !found {
        say(&format!(
            "SKIPPED: this machine cannot do {need:?} (root is needed for it)"
        ));
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{need:?} is needed where CI=true"
        );
    }
    found
}

/// A small file system of its own; unmounted in the end.
#[derive(Debug)]
pub(crate) struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts a tmpfs over a directory, or tells that this machine cannot.
    pub(crate) fn tmpfs(path: &Path, size: &str) -> Option<Self> {
        let mount = Self {
            path: path.to_path_buf(),
        };
        let options = format!("size={size},mode=755");
        mount_command(&["-t", "tmpfs", "-o", &options, "tmpfs"], path).then_some(mount)
    }

    /// Mounts a directory over another one, too.
    pub(crate) fn bind(what: &Path, path: &Path) -> Self {
        let mount = Self {
            path: path.to_path_buf(),
        };
        let what = what.to_str().expect("text");
        assert!(mount_command(&["--bind", what], path), "binds {what}");
        mount
    }

    /// Mounts it again with other options.
    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        eventually(&options, || {
            mount_command(&["-o", &options], &self.path).then_some(())
        });
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.path)
            .stderr(Stdio::null())
            .status();
    }
}

/// A file system in a file, which survives being unmounted.
#[derive(Debug)]
pub(crate) struct Image {
    path: PathBuf,
}

impl Image {
    /// Makes one, or tells that this machine cannot.
    pub(crate) fn new(path: &Path) -> Option<Self> {
        let file = fs::File::create(path).expect("makes a file");
        file.set_len(16 << 20).expect("grows it");
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(path)
            .stderr(Stdio::null())
            .status();
        made.is_ok_and(|status| status.success()).then(|| Self {
            path: path.to_path_buf(),
        })
    }

    /// Gives it a device of its own; each time the first that is free.
    pub(crate) fn attach(&self) -> LoopDevice {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&self.path)
            .output()
            .expect("runs");
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        LoopDevice { device }
    }
}

/// A block device over an [`Image`]; detached in the end.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    device: String,
}

impl LoopDevice {
    /// Mounts it, or tells that this machine cannot.
    pub(crate) fn mount(&self, path: &Path) -> Option<Mount> {
        let mount = Mount {
            path: path.to_path_buf(),
        };
        mount_command(&[&self.device], path).then_some(mount)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .stderr(Stdio::null())
            .status();
    }
}

fn mount_command(args: &[&str], path: &Path) -> bool {
    Command::new("mount")
        .args(args)
        .arg(path)
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Writes a line to stderr, past the test harness.
#[expect(clippy::print_stderr, reason = "tests tell what they skip and measure")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// Held by tests that load the machine, so that they don't starve each other's daemons.
pub(crate) fn heavy() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

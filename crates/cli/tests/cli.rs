//! The binary as a script sees it: exit codes, JSON, pipes. The daemon's core is
//! not in it; where one has to answer, the control server runs in the test.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use pacsync_daemon::control::api::{AddReport, PairAnswer, PairEvent, TextPath};
use pacsync_daemon::control::{
    Command as CoreCommand, CommandError, ControlSocket, CoreHandle, ErrorKind, serve,
};
use rustix::fs::FlockOperation;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

fn pacsync(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pacsync"));
    command
        .env_clear()
        .env("HOME", home)
        .arg("--home")
        .arg(home.join("pac"));
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    pacsync(home)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    assert_eq!(text.lines().count(), 1, "one document: {text}");
    serde_json::from_str(&text).expect("JSON")
}

/// A control server in `HOME/pac` whose core is a closure.
struct Served {
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    fn start(home: &Path, mut core: impl FnMut(CoreCommand) + Send + 'static) -> Self {
        let home = home.join("pac");
        std::fs::create_dir(&home).expect("creates");
        let lock = File::create(home.join("lock")).expect("creates");
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("locks");
        let socket = ControlSocket::bind(&home, lock.as_fd()).expect("binds");
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let (handle, mut commands) = CoreHandle::new();
            let answering = async {
                while let Some(command) = commands.recv().await {
                    core(command);
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    result = serve(socket, handle, token) => result.expect("serves"),
                    () = answering => {}
                }
            });
            drop(lock);
        });
        Self {
            shutdown,
            thread: Some(thread),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn without_a_daemon_commands_end_with_3() {
    let home = tempfile::tempdir().expect("a directory");
    for args in [
        &["status"][..],
        &["add", "x"],
        &["wait"],
        &["down"],
        &["events"],
        &["devices"],
    ] {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        assert!(output.stdout.is_empty());
        let told = String::from_utf8(output.stderr).expect("text");
        assert!(
            told.contains("no daemon runs") && told.contains("hint: "),
            "{told}"
        );
    }
    let output = run(home.path(), &["status", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(json(&output)["error"]["kind"], "not_running");
}

#[test]
fn wrong_arguments_end_with_2() {
    let home = tempfile::tempdir().expect("a directory");
    assert_eq!(run(home.path(), &["nonsense"]).status.code(), Some(2));
    let output = run(home.path(), &["add", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(json(&output)["error"]["kind"], "usage");
    let output = run(home.path(), &["pair", "--role", "admin", "--yes", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(json(&output)["error"]["kind"], "usage");
}

#[test]
fn the_core_decides_the_exit_code() {
    for kind in ErrorKind::ALL {
        let home = tempfile::tempdir().expect("a directory");
        let _served = Served::start(home.path(), move |command| {
            if let CoreCommand::Wait { reply, .. } = command {
                let error = CommandError::new(kind, "no")
                    .with_items(["a"])
                    .with_hint("try");
                let _ = reply.send(Err(error));
            }
        });
        let output = run(home.path(), &["wait", "--json"]);
        assert_eq!(output.status.code(), Some(i32::from(kind.exit_code())));
        let value = json(&output);
        assert_eq!(value["error"]["items"][0], "a");
        assert_eq!(value["error"]["hint"], "try");
        let output = run(home.path(), &["wait"]);
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "pacsync: no\n  a\nhint: try\n"
        );
    }
}

#[test]
fn any_bytes_of_a_path_reach_the_core() {
    use std::os::unix::ffi::OsStrExt;
    let home = tempfile::tempdir().expect("a directory");
    let _served = Served::start(home.path(), |command| {
        if let CoreCommand::Add { paths, reply } = command {
            let added = paths.iter().map(|path| TextPath::from_path(path)).collect();
            let _ = reply.send(Ok(AddReport {
                added,
                files: 0,
                bytes: 0,
                problems: vec![],
            }));
        }
    });
    let here = tempfile::tempdir().expect("a directory");
    let here = here.path().canonicalize().expect("there");
    let name = std::ffi::OsStr::from_bytes(b"a\xff\n'\"");
    let output = pacsync(home.path())
        .args(["--json", "add"])
        .arg(name)
        .current_dir(&here)
        .output()
        .expect("runs");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let added: TextPath =
        serde_json::from_value(json(&output)["added"][0].clone()).expect("a path");
    assert_eq!(added.to_path(), here.join(name));
}

#[test]
fn pair_prints_the_code_at_once_and_asks_before_it_lets_in() {
    for (answer, code, last) in [
        ("y\n", 0, "enrolled"),
        ("n\n", 1, "cancelled"),
        ("", 1, "cancelled"),
    ] {
        let home = tempfile::tempdir().expect("a directory");
        let mut running = None;
        let _served = Served::start(home.path(), move |command| match command {
            CoreCommand::PairStart {
                pair,
                events,
                reply,
                ..
            } => {
                let _ = reply.send(Ok(()));
                let code = PairEvent::Code {
                    pair,
                    code: "1234-able-acid".into(),
                    addresses: vec![],
                    expires_ms: 0,
                };
                let _ = events.try_send(code);
                let attempt = PairEvent::Attempt {
                    name: "phone".into(),
                    device: "d".into(),
                };
                let _ = events.try_send(attempt);
                running = Some(events);
            }
            CoreCommand::PairConfirm { answer, reply, .. } => {
                let _ = reply.send(Ok(()));
                let end = if answer == PairAnswer::Accept {
                    PairEvent::Enrolled {
                        name: "phone".into(),
                        device: "d".into(),
                    }
                } else {
                    PairEvent::Cancelled
                };
                if let Some(events) = running.take() {
                    let _ = events.try_send(end);
                }
            }
            _ => {}
        });
        let mut child = pacsync(home.path())
            .args(["pair", "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut next = || -> Value {
            let line = lines.next().expect("a line").expect("text");
            serde_json::from_str(&line).expect("JSON")
        };
        assert_eq!(next()["code"], "1234-able-acid");
        assert_eq!(next()["event"], "attempt");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(answer.as_bytes()).expect("writes");
        drop(stdin);
        assert_eq!(next()["event"], last);
        assert_eq!(child.wait().expect("ends").code(), Some(code));
    }
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let home = tempfile::tempdir().expect("a directory");
    for args in [&["man"][..], &["completions", "bash"], &["--help"]] {
        let mut child = pacsync(home.path())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        drop(child.stdout.take());
        let mut told = String::new();
        child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut told)
            .expect("text");
        assert_eq!(told, "", "{args:?}");
        assert_eq!(child.wait().expect("ends").code(), Some(0), "{args:?}");
    }
}

#[test]
fn doctor_says_what_is_missing() {
    let home = tempfile::tempdir().expect("a directory");
    let output = run(home.path(), &["doctor", "--json"]);
    let value = json(&output);
    let checks = value["checks"].as_array().expect("checks");
    let named = |name: &str| checks.iter().find(|check| check["name"] == name);
    assert_eq!(named("home").expect("home")["result"], "warn");
    assert_eq!(named("daemon").expect("daemon")["result"], "warn");
    assert_eq!(output.status.code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_service_comes_and_goes_without_a_manager() {
    let home = tempfile::tempdir().expect("a directory");
    let units = home.path().join(".config/systemd/user");
    let output = run(home.path(), &["service", "install", "--json"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let value = json(&output);
    assert_eq!(
        (&value["installed"], &value["enabled"]),
        (&true.into(), &true.into())
    );
    assert_eq!(
        (&value["manager"], &value["active"]),
        (&false.into(), &Value::Null)
    );
    assert!(
        value["notes"][0]
            .as_str()
            .is_some_and(|note| note.contains("no systemd user manager"))
    );
    let unit = std::fs::read_to_string(units.join("pacsync.service")).expect("a unit");
    assert!(unit.contains(&format!(
        "--home \"{}\" daemon",
        home.path().join("pac").display()
    )));
    let wanted = units.join("default.target.wants/pacsync.service");
    assert_eq!(std::fs::read_to_string(&wanted).expect("leads there"), unit);
    // It is not another home's to change.
    for command in ["install", "uninstall", "status"] {
        let mut of_another = Command::new(env!("CARGO_BIN_EXE_pacsync"));
        of_another
            .env_clear()
            .env("HOME", home.path())
            .arg("--home");
        of_another.arg(home.path().join("other"));
        let output = of_another.args(["service", command, "--json"]).output();
        let output = output.expect("runs");
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(json(&output)["error"]["hint"].is_string(), "{command}");
        assert_eq!(std::fs::read_to_string(&wanted).expect("stays"), unit);
    }
    let output = run(home.path(), &["service", "uninstall", "--json"]);
    assert_eq!(json(&output)["installed"], false);
    assert!(!units.join("pacsync.service").exists() && wanted.symlink_metadata().is_err());
    assert_eq!(
        json(&run(home.path(), &["service", "status", "--json"]))["enabled"],
        false
    );
}

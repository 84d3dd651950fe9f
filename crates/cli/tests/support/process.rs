//! Processes that cannot hang a test, and what they print.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

/// After this long something is broken and not slow: a guard, never part of a test's logic.
pub const TIMEOUT: Duration = Duration::from_secs(240);

/// Runs a command to its end. Kills it and panics if it does not come to one.
pub fn output_within(command: &mut Command, limit: Duration) -> Output {
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("runs");
    let guard = Guard::start(&child, limit);
    let output = child.wait_with_output().expect("is waited for");
    assert!(!guard.stop(), "no end of {shown} in {limit:?}: {output:?}");
    output
}

/// Kills a child that takes too long.
struct Guard {
    done: mpsc::Sender<()>,
    thread: JoinHandle<bool>,
}

impl Guard {
    fn start(child: &Child, limit: Duration) -> Self {
        let (done, waiting) = mpsc::channel();
        let pid = rustix::process::Pid::from_child(child);
        let thread = std::thread::spawn(move || {
            let late = waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            late
        });
        Self { done, thread }
    }

    /// Whether it had to kill.
    fn stop(self) -> bool {
        drop(self.done);
        self.thread.join().expect("the guard ends")
    }
}

/// The one JSON document on stdout.
pub fn json(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    assert_eq!(text.lines().count(), 1, "one document: {output:?}");
    serde_json::from_str(&text).expect("JSON")
}

/// The JSON objects on stdout, one a line.
pub fn json_lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// All that was printed, on both streams.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A `pair --json` that shows its code and waits for somebody.
pub struct Hosting {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// The first object: `code`, `addresses`.
    pub first: Value,
}

impl Hosting {
    /// Starts the command and reads its first line.
    pub fn start(command: &mut Command) -> Self {
        Self::try_start(command).unwrap_or_else(|told| panic!("no code: {told}"))
    }

    /// Starts the command; gives what it printed if that is no code.
    ///
    /// # Errors
    /// If it ends without a code.
    pub fn try_start(command: &mut Command) -> Result<Self, String> {
        Self::read_first(Self::spawn(command.stdin(Stdio::null())))
    }

    /// Starts the command and answers what it will ask.
    pub fn start_answering(command: &mut Command, answer: &str) -> Self {
        let child = Self::start_answering_unread(command, answer);
        Self::read_first(child).unwrap_or_else(|told| panic!("no code: {told}"))
    }

    /// The same of a command that shows no code.
    pub fn start_answering_unread(command: &mut Command, answer: &str) -> Child {
        let mut child = Self::spawn(command.stdin(Stdio::piped()));
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(answer.as_bytes()).expect("writes");
        child
    }

    fn spawn(command: &mut Command) -> Child {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("runs")
    }

    fn read_first(mut child: Child) -> Result<Self, String> {
        let guard = Guard::start(&child, TIMEOUT);
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("text");
        assert!(!guard.stop(), "no code in time");
        let first: Value = serde_json::from_str(&line).unwrap_or_default();
        if !first["code"].is_string() {
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut line);
            }
            let _ = child.wait();
            return Err(line);
        }
        Ok(Self {
            child,
            lines,
            first,
        })
    }

    /// The code.
    pub fn code(&self) -> String {
        self.first["code"].as_str().expect("a code").to_owned()
    }

    /// Waits for its end: exit code and the objects after the first.
    pub fn finish(mut self) -> (Option<i32>, Vec<Value>) {
        let guard = Guard::start(&self.child, TIMEOUT);
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("text");
        let status = self.child.wait().expect("is waited for");
        assert!(!guard.stop(), "no end of pair in time");
        let lines = rest
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        (status.code(), lines)
    }

    /// Ends it as Ctrl-C does: the code ends with it.
    pub fn cancel(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // Not INT, which is ignored where the tests were started in the background of a script.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

impl Drop for Hosting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

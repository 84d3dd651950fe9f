//! The event stream of a daemon, read from its socket.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::Value;

/// A guard against a daemon that does not tell: no event takes so long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Events since the subscription, which stands when [`Events::subscribe`] returns. (The
/// `events` command cannot tell when it has begun to listen.)
pub struct Events {
    events: Receiver<Value>,
}

impl Events {
    /// Subscribes to the daemon of a home.
    pub fn subscribe(home: &Path) -> Self {
        let mut stream = pacsync_daemon::control::socket::connect(home).expect("a daemon");
        stream
            .write_all(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("asks");
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        while lines.read_line(&mut head).expect("answers") > 2 {}
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || {
            // Each event is one line of its own; the lines between give the lengths of chunks.
            for line in lines.lines().map_while(Result::ok) {
                let Some(data) = line.strip_prefix("data: ") else {
                    continue;
                };
                let event = serde_json::from_str(data).expect("JSON");
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self { events }
    }

    /// The next event that fits. Panics after [`TIMEOUT`] or at the end of the stream.
    pub fn find(&self, what: &str, mut fits: impl FnMut(&Value) -> bool) -> Value {
        let start = std::time::Instant::now();
        loop {
            let left = TIMEOUT.saturating_sub(start.elapsed());
            let event = self
                .events
                .recv_timeout(left)
                .unwrap_or_else(|error| panic!("no event {what}: {error}"));
            if fits(&event) {
                return event;
            }
        }
    }

    /// The next event of a kind.
    pub fn kind(&self, kind: &str) -> Value {
        self.find(kind, |event| event["kind"] == kind)
    }

    /// Waits until a path, relative to the root of its space, was applied.
    pub fn applied(&self, path: &str) -> Value {
        self.find(&format!("applied {path}"), |event| {
            event["kind"] == "applied" && event["path"] == path
        })
    }

    /// What has come so far and was not looked at.
    pub fn so_far(&self) -> Vec<Value> {
        self.events.try_iter().collect()
    }

    /// Everything until the daemon hangs up.
    pub fn into_all(self) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            match self.events.recv_timeout(TIMEOUT) {
                Ok(event) => all.push(event),
                Err(mpsc::RecvTimeoutError::Disconnected) => return all,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("the stream does not end"),
            }
        }
    }
}

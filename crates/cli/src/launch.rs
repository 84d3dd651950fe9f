//! Starting the daemon in the background: this program again, in a session of
//! its own, telling through a pipe when it is ready or why it never will be.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pacsync_daemon::control::CommandError;
use pacsync_daemon::control::api::ErrorBody;
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::local;

const LOG_NAME: &str = "daemon.log";
/// A longer log is put aside at the next start, once.
const LOG_LEN_MAX: u64 = 4 << 20;
/// Longest report of the daemon, in bytes.
const REPORT_LEN_MAX: u64 = 64 << 10;
/// Lines of the log that are shown when the daemon dies without a word.
const LOG_LINES_SHOWN: usize = 5;

/// Settings of the C library for a daemon: one heap that is given back, since after a burst it
/// goes on for weeks at rest.
pub(crate) const ENVIRONMENT: [(&str, &str); 2] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
];

/// What the daemon writes into the pipe: one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Report {
    Ready { ready: u32 },
    Failed(ErrorBody),
}

/// Starts the daemon of a home and returns its process id once it is ready.
pub(crate) fn start(home: &Path, verbose: u8) -> Result<u32, CliError> {
    let failed = |error: io::Error| CliError::io("cannot start the daemon", &error);
    let log = open_log(home)?;
    let (reports, theirs) = io::pipe().map_err(failed)?;
    let mut command = Command::new(myself().map_err(failed)?);
    command.arg0("pacsync");
    command
        .arg("--home")
        .arg(home)
        .arg("daemon")
        .arg("--background");
    command.args((0..verbose).map(|_| "-v"));
    command.envs(ENVIRONMENT);
    // It may outlive the directory it was started in.
    command.current_dir("/");
    command.stdin(Stdio::null()).stdout(theirs).stderr(log);
    let mut child = command.spawn().map_err(failed)?;
    // Closes this side's end for writing, so that the daemon's death ends the pipe.
    drop(command);
    let mut line = String::new();
    BufReader::new(reports)
        .take(REPORT_LEN_MAX)
        .read_line(&mut line)
        .map_err(failed)?;
    match serde_json::from_str(&line) {
        Ok(Report::Ready { ready }) => Ok(ready),
        Ok(Report::Failed(body)) => {
            child.wait().map_err(failed)?;
            Err(body.error.into())
        }
        Err(_) => {
            let status = child.wait().map_err(failed)?;
            let log = log_path(home);
            Err(
                CommandError::failed(format!("the daemon ended before it was ready: {status}"))
                    .with_items(last_lines(&log))
                    .with_hint(format!("{} has more", log.display()))
                    .into(),
            )
        }
    }
}

/// Runs as the process that [`start`] has made.
pub(crate) fn run_in_background(home: &Path) -> Result<(), CliError> {
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "already the leader of a session");
    }
    let told = Arc::new(AtomicBool::new(false));
    let ready = {
        let told = Arc::clone(&told);
        Box::new(move || {
            told.store(true, Ordering::Relaxed);
            report(&Report::Ready {
                ready: std::process::id(),
            });
        })
    };
    let result = local::run_daemon(home, ready);
    if let Err(CliError::Told(error)) = &result
        && !told.load(Ordering::Relaxed)
    {
        report(&Report::Failed(ErrorBody {
            error: error.clone(),
        }));
    }
    result
}

/// Writes into the pipe and lets go of it; stdout is the log from then on.
fn report(report: &Report) {
    let written = serde_json::to_vec(report)
        .map_err(io::Error::from)
        .and_then(|mut line| {
            line.push(b'\n');
            let mut stdout = io::stdout().lock();
            stdout.write_all(&line).and_then(|()| stdout.flush())
        });
    if let Err(error) = written {
        tracing::warn!(%error, "nobody waits for the daemon to be ready");
    }
    if let Err(error) = rustix::stdio::dup2_stdout(io::stderr()) {
        tracing::warn!(%error, "stdout stays as it is");
    }
}

/// This program, also after it was replaced by a new version.
pub(crate) fn myself() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        Ok(PathBuf::from("/proc/self/exe"))
    } else {
        std::env::current_exe()
    }
}

fn log_path(home: &Path) -> PathBuf {
    home.join(LOG_NAME)
}

fn open_log(home: &Path) -> Result<File, CliError> {
    let path = log_path(home);
    let failed =
        |error: io::Error| CliError::io(format!("cannot write {}", path.display()), &error);
    let long = path.metadata().is_ok_and(|found| found.len() > LOG_LEN_MAX);
    if long {
        std::fs::rename(&path, path.with_extension("log.old")).map_err(failed)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)
}

/// The end of a log, as far as it can be read.
fn last_lines(path: &Path) -> Vec<String> {
    const TAIL: u64 = 8 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(LOG_LINES_SHOWN);
    lines.into_iter().skip(skipped).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_line_that_says_ready_or_why_not() {
        let ready = serde_json::to_string(&Report::Ready { ready: 7 }).expect("serializes");
        assert_eq!(ready, r#"{"ready":7}"#);
        let failed = Report::Failed(ErrorBody {
            error: CommandError::failed("x"),
        });
        let failed = serde_json::to_string(&failed).expect("serializes");
        assert!(matches!(
            serde_json::from_str(&ready),
            Ok(Report::Ready { ready: 7 })
        ));
        assert!(matches!(
            serde_json::from_str(&failed),
            Ok(Report::Failed(_))
        ));
        assert!(serde_json::from_str::<Report>("").is_err());
    }

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let home = tempfile::tempdir().expect("a directory");
        let path = log_path(home.path());
        assert!(last_lines(&path).is_empty());
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, text).expect("writes");
        let lines = last_lines(&path);
        assert_eq!(lines.first().map(String::as_str), Some("line 995"));
        assert_eq!(lines.len(), LOG_LINES_SHOWN);
    }

    #[test]
    fn a_long_log_is_put_aside() {
        let home = tempfile::tempdir().expect("a directory");
        let path = log_path(home.path());
        let file = File::create(&path).expect("creates");
        file.set_len(LOG_LEN_MAX + 1).expect("grows");
        let log = open_log(home.path()).expect("opens");
        assert_eq!(log.metadata().expect("there").len(), 0);
        assert!(home.path().join("daemon.log.old").exists());
    }
}

//! `doctor`: what can be seen from outside, then what the daemon sees itself.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pacsync_daemon::control::ErrorKind;
use pacsync_daemon::control::api::{Check, CheckResult, DoctorReport};
use pacsync_daemon::control::socket::SOCKET_NAME;

use super::Context;
use crate::client::Client;
use crate::error::CliError;
use crate::local::{self, LockState};
use crate::text::{table, visible};

/// Fewer watches than this are soon used up by a home directory.
const WATCHES_MIN: u64 = 65_536;
/// Each daemon needs a few.
const INSTANCES_MIN: u64 = 64;
/// A clock before this (2026-01-01) is not set.
const CLOCK_MIN: Duration = Duration::from_secs(1_767_225_600);

pub(crate) async fn doctor(context: &Context) -> Result<(), CliError> {
    let mut checks = vec![home(&context.home)];
    checks.extend(content(&context.home));
    checks.extend(daemon(context).await?);
    if cfg!(target_os = "linux") {
        checks.push(limit("max_user_watches", WATCHES_MIN));
        checks.push(limit("max_user_instances", INSTANCES_MIN));
    }
    checks.push(clock(SystemTime::now()));
    let report = DoctorReport { checks };
    context.output.show(&report, to_text)?;
    match report.checks.iter().map(|check| check.result).max() {
        Some(CheckResult::Fail) => Err(CliError::Said(ErrorKind::Failed)),
        _ => Ok(()),
    }
}

fn check(name: &str, result: CheckResult, detail: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        result,
        detail: detail.into(),
        hint: None,
    }
}

fn hinted(check: Check, hint: impl Into<String>) -> Check {
    Check {
        hint: Some(hint.into()),
        ..check
    }
}

fn home(home: &Path) -> Check {
    const NAME: &str = "home";
    let shown = home.display();
    let found = match home.metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let missing = check(NAME, CheckResult::Warn, format!("{shown} is not there yet"));
            return hinted(
                missing,
                "make a pac with `pacsync up` or join one with `pacsync pair CODE`",
            );
        }
        Err(error) => return check(NAME, CheckResult::Fail, format!("{shown}: {error}")),
    };
    let mode = found.permissions().mode() & 0o7777;
    let user = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        hinted(
            check(
                NAME,
                CheckResult::Fail,
                format!("{shown} is not a directory"),
            ),
            "move it away or name another home with --home",
        )
    } else if user != 0 && found.uid() != user {
        hinted(
            check(
                NAME,
                CheckResult::Fail,
                format!("{shown} belongs to user {}", found.uid()),
            ),
            "run pacsync as that user or name another home with --home",
        )
    } else if mode & 0o077 != 0 {
        let (result, what) = match mode & 0o022 {
            0 => (CheckResult::Warn, "seen by"),
            _ => (CheckResult::Fail, "open to"),
        };
        hinted(
            check(
                NAME,
                result,
                format!("{shown} is {what} others (mode {mode:o})"),
            ),
            format!("chmod 700 '{}'", shown.to_string().replace('\'', r"'\''")),
        )
    } else {
        check(NAME, CheckResult::Ok, format!("{shown}, mode {mode:o}"))
    }
}

/// What the home holds.
fn content(home: &Path) -> Option<Check> {
    const NAME: &str = "keys and settings";
    match local::check_home(home) {
        Ok(false) => None,
        Ok(true) => Some(check(NAME, CheckResult::Ok, "can be read")),
        Err(CliError::Told(error)) => {
            let found = check(NAME, CheckResult::Fail, error.message.clone());
            Some(match &error.hint {
                Some(hint) => hinted(found, hint.clone()),
                None => found,
            })
        }
        Err(_) => Some(check(NAME, CheckResult::Fail, "cannot be read")),
    }
}

/// Lock and socket, then what the daemon says.
async fn daemon(context: &Context) -> Result<Vec<Check>, CliError> {
    let lock = local::lock_state(&context.home)?;
    let answers = context.client.daemon().await;
    let mut checks = vec![match (&answers, lock) {
        (Ok(Some(daemon)), LockState::Held) => check(
            "daemon",
            CheckResult::Ok,
            format!("runs (pid {})", daemon.pid),
        ),
        (Ok(Some(daemon)), LockState::Free) => hinted(
            check(
                "daemon",
                CheckResult::Fail,
                format!("pid {} answers without holding the home's lock", daemon.pid),
            ),
            "was the lock file removed? restart with `pacsync down` and `pacsync up`",
        ),
        (Ok(None), LockState::Held) => hinted(
            check(
                "daemon",
                CheckResult::Fail,
                "a process holds the home's lock and does not answer",
            ),
            "it may be starting or ending: try again; daemon.log in the home says more",
        ),
        (Ok(None), LockState::Free) => hinted(
            check("daemon", CheckResult::Warn, "does not run"),
            "start it with `pacsync up`",
        ),
        (Err(error), _) => check("daemon", CheckResult::Fail, words(error)),
    }];
    if matches!(answers, Ok(Some(_))) {
        checks.push(socket(&context.home));
        match own(&context.client).await {
            Ok(more) => checks.extend(more),
            Err(error) => checks.push(check("device", CheckResult::Fail, words(&error))),
        }
    }
    Ok(checks)
}

async fn own(client: &Client) -> Result<Vec<Check>, CliError> {
    client
        .get::<DoctorReport>("/v1/doctor")
        .await
        .map(|report| report.checks)
}

fn words(error: &CliError) -> String {
    match error {
        CliError::Told(told) => told.message.clone(),
        CliError::PipeClosed | CliError::Said(_) => String::new(),
    }
}

fn socket(home: &Path) -> Check {
    const NAME: &str = "socket";
    let path = home.join(SOCKET_NAME);
    match path.metadata() {
        Ok(found) if found.permissions().mode() & 0o077 == 0 => {
            check(NAME, CheckResult::Ok, "answers, for its owner only")
        }
        Ok(found) => hinted(
            check(
                NAME,
                CheckResult::Fail,
                format!(
                    "open to others (mode {:o})",
                    found.permissions().mode() & 0o7777
                ),
            ),
            format!("chmod 600 {}", path.display()),
        ),
        Err(error) => check(
            NAME,
            CheckResult::Fail,
            format!("{}: {error}", path.display()),
        ),
    }
}

/// A limit of inotify, shared by all programs of the user.
fn limit(name: &str, enough: u64) -> Check {
    let path = format!("/proc/sys/fs/inotify/{name}");
    let title = format!("inotify {name}");
    let value = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    judge_limit(&title, name, value, enough)
}

fn judge_limit(title: &str, name: &str, value: Option<u64>, enough: u64) -> Check {
    match value {
        None => check(title, CheckResult::Warn, "cannot be read"),
        Some(value) if value >= enough => check(title, CheckResult::Ok, value.to_string()),
        Some(value) => hinted(
            check(
                title,
                CheckResult::Warn,
                format!("{value} is little; changes may be seen late"),
            ),
            format!("sudo sysctl fs.inotify.{name}={}", enough.saturating_mul(8)),
        ),
    }
}

fn clock(now: SystemTime) -> Check {
    const NAME: &str = "clock";
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) if since >= CLOCK_MIN => check(NAME, CheckResult::Ok, "set"),
        _ => hinted(
            check(
                NAME,
                CheckResult::Warn,
                "this device thinks that it is years ago",
            ),
            "set the clock: times of files and of history are shown by it",
        ),
    }
}

fn to_text(report: &DoctorReport) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let mark = match check.result {
            CheckResult::Ok => "ok",
            CheckResult::Warn => "warn",
            CheckResult::Fail => "FAIL",
        };
        text.push_str(&table(
            "",
            &[vec![
                format!("{mark:4}"),
                format!("{:28}", check.name),
                check.detail.clone(),
            ]],
        ));
        if let Some(hint) = &check.hint {
            text.push_str(&format!("      hint: {}\n", visible(hint)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_home_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let set = |mode| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode))
                .expect("sets");
        };
        set(0o770);
        assert_eq!(home(dir.path()).result, CheckResult::Fail);
        set(0o755);
        assert_eq!(home(dir.path()).result, CheckResult::Warn);
        set(0o700);
        assert_eq!(home(dir.path()).result, CheckResult::Ok);
        assert_eq!(home(&dir.path().join("none")).result, CheckResult::Warn);
    }

    #[test]
    fn a_low_limit_comes_with_the_command_that_raises_it() {
        let low = judge_limit("inotify x", "x", Some(10), 100);
        assert_eq!(low.result, CheckResult::Warn);
        assert_eq!(low.hint.as_deref(), Some("sudo sysctl fs.inotify.x=800"));
        assert_eq!(
            judge_limit("inotify x", "x", Some(100), 100).result,
            CheckResult::Ok
        );
        assert_eq!(
            judge_limit("inotify x", "x", None, 100).result,
            CheckResult::Warn
        );
    }

    #[test]
    fn a_clock_that_was_never_set_is_found() {
        assert_eq!(clock(UNIX_EPOCH).result, CheckResult::Warn);
        assert_eq!(clock(UNIX_EPOCH + CLOCK_MIN).result, CheckResult::Ok);
    }
}

//! `service`: the daemon as a service of the user, started at login.

#[cfg(any(target_os = "macos", test))]
mod launchd;
#[cfg(any(not(target_os = "macos"), test))]
mod systemd;

use std::path::PathBuf;

use clap::Subcommand;
use pacsync_daemon::control::CommandError;
use serde::Serialize;

use super::{Context, wait_for};
use crate::error::CliError;
use crate::text::visible;

#[cfg(target_os = "macos")]
use launchd as platform;
#[cfg(not(target_os = "macos"))]
use systemd as platform;

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Start the daemon now and at each login
    Install,
    /// Stop starting it, and stop it if the service manager runs it
    Uninstall,
    /// Show whether it is installed, enabled and running
    Status,
}

/// How the service stands. JSON of all three commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ServiceReport {
    /// File that describes the service.
    path: String,
    /// Whether it is there.
    installed: bool,
    /// Whether it is started at login.
    enabled: bool,
    /// Whether the service manager runs it now; unknown without a manager.
    active: Option<bool>,
    /// Whether the user's service manager runs.
    manager: bool,
    /// What else the user should know.
    notes: Vec<String>,
}

/// What a service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    executable: PathBuf,
    home: PathBuf,
}

/// Whether a daemon of this home runs already, not started by the service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Running {
    Yes,
    No,
}

pub(crate) fn service(context: &Context, command: &ServiceCommand) -> Result<(), CliError> {
    let place = platform::Place::find()?;
    let executable = std::env::current_exe()
        .map_err(|error| CliError::io("cannot find this program's own path", &error))?;
    let program = Program {
        executable,
        home: context.home.clone(),
    };
    if place.is_of_another_home(&program)? {
        return Err(CommandError::failed(format!(
            "the service that is installed is that of another home than {}",
            program.home.display()
        ))
        .with_hint(format!(
            "{} names it; uninstall it with `pacsync --home DIR service uninstall`",
            place.file().display()
        ))
        .into());
    }
    let report = match command {
        ServiceCommand::Install => {
            let running = match wait_for(context.client.daemon())? {
                Some(_) => Running::Yes,
                None => Running::No,
            };
            place.install(&program, running)?
        }
        ServiceCommand::Uninstall => place.uninstall()?,
        ServiceCommand::Status => place.status(Vec::new())?,
    };
    context.output.show(&report, to_text)
}

fn to_text(report: &ServiceReport) -> String {
    let path = visible(&report.path);
    let mut lines = vec![match (report.installed, report.enabled) {
        (false, _) => "not installed".to_owned(),
        (true, true) => format!("installed and enabled: {path}"),
        (true, false) => format!("installed, not enabled: {path}"),
    }];
    match report.active {
        Some(true) => lines.push("running".into()),
        Some(false) if report.installed => lines.push("not running".into()),
        _ => {}
    }
    lines.extend(report.notes.iter().map(|note| visible(note)));
    lines.join("\n")
}

/// The user's home directory, where services are described.
fn user_home() -> Result<PathBuf, CliError> {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
        .ok_or_else(|| {
            CommandError::failed("HOME is not set, so there is no place for the service's file")
                .with_hint("set HOME to your home directory")
                .into()
        })
}

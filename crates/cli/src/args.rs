//! The command line: global flags and the list of commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pacsync_daemon::control::{CommandError, ErrorKind};

use crate::commands::{
    conflicts, deletes, demo, devices, files, history, manual, pair, service, spaces, up, wait,
};
use crate::error::{self, CliError};
use crate::output::{Format, Output};

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 daemon not running, 4 not authorised, 5 needs you \
(conflicts, held deletes, timeout of `wait`).

A new pac:        pacsync up
A second device:  pacsync pair          (here; shows a code)
                  pacsync pair CODE     (there)";

/// Keeps everything that makes a computer yours in step between your devices.
#[derive(Debug, Parser)]
#[command(name = "pacsync", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Directory in which this device keeps its replica, keys and socket
    ///
    /// Default: $XDG_DATA_HOME/pacsync or ~/.local/share/pacsync.
    #[arg(long, global = true, env = "PACSYNC_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,

    /// Print one JSON document on stdout, also for errors
    #[arg(long, global = true)]
    json: bool,

    /// Log more on stderr; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// How answers are printed.
    pub(crate) fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else {
            Format::Text
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the daemon in the background, making the pac if there is none
    Up(up::UpArgs),
    /// Stop the daemon
    Down,
    /// Run the daemon in the foreground, for service managers
    Daemon(up::DaemonArgs),
    /// Show device, peers, spaces, what is in flight and what needs you
    Status,
    /// Track paths of the home space
    Add(files::AddArgs),
    /// Stop tracking paths of the home space; deletes no file
    Forget(files::ForgetArgs),
    /// List what the pac holds at and beneath a path
    Ls(files::LsArgs),
    /// List the versions of a file, also of a deleted one
    Log(history::LogArgs),
    /// Bring back an earlier version of a file, or what was deleted
    Restore(history::RestoreArgs),
    /// Take back what another device changed last, or the last restore; exit code 5 if some of it
    /// stays
    ///
    /// What came from one device without a pause is taken back as a whole: earlier contents are
    /// written anew, what was deleted is brought back, what was moved goes back, what was new is
    /// deleted. Nothing that anybody has changed since is touched: it is named and stays. Each
    /// further `undo` takes back what was before that; nothing is lost by it, `log` and `restore`
    /// have it still.
    Undo,
    /// Make, attach, detach and list spaces
    #[command(subcommand)]
    Space(spaces::SpaceCommand),
    /// Let another device in, or with a code: join a pac
    Pair(pair::PairArgs),
    /// List the devices of the pac
    Devices,
    /// Add the address of another device and connect to it
    Connect(devices::ConnectArgs),
    /// Look for local changes now; returns when they are in the log
    Scan(files::ScanArgs),
    /// Wait until the connected devices have the same state on disk
    Wait(wait::WaitArgs),
    /// List or settle held deletes
    Deletes(deletes::DeletesArgs),
    /// List the paths at which more than one version stands; exit code 5 if there are any
    Conflicts(conflicts::ConflictsArgs),
    /// Settle a conflict
    Resolve(conflicts::ResolveArgs),
    /// Print what happens, one JSON object a line
    Events,
    /// Show laptop, phone and server at work: real daemons on this machine, in homes of their own
    Demo(demo::DemoArgs),
    /// Start the daemon at login
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Look for what is wrong on this device
    Doctor,
    /// Print completions for a shell
    Completions(manual::CompletionsArgs),
    /// Print the manual page
    Man,
}

/// Prints what clap has to say: help and version, or what is wrong with the arguments.
pub(crate) fn explain(refused: &clap::Error) -> ExitCode {
    if !refused.use_stderr() {
        // Help into a closed pipe is no error.
        let _ = refused.print();
        return ExitCode::SUCCESS;
    }
    let json: OsString = "--json".into();
    if std::env::args_os()
        .take_while(|arg| arg != "--")
        .any(|arg| arg == json)
    {
        let text = refused.to_string();
        let first = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        let error = CommandError::new(ErrorKind::Usage, first).with_hint("see `pacsync --help`");
        return error::report(Output::new(Format::Json), &CliError::from(error));
    }
    let _ = refused.print();
    ExitCode::from(ErrorKind::Usage.exit_code())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parses(line: &str) -> bool {
        Cli::try_parse_from(line.split(' ')).is_ok()
    }

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_line_of_the_contract_is_understood() {
        for line in [
            "pacsync up",
            "pacsync up --root /r --listen 127.0.0.1:0 --name laptop --no-discovery",
            "pacsync --home /h up",
            "pacsync up --home /h --json",
            "pacsync down",
            "pacsync daemon",
            "pacsync status --json",
            "pacsync -v status",
            "pacsync add a b",
            "pacsync forget a b",
            "pacsync ls",
            "pacsync ls a",
            "pacsync log a",
            "pacsync log a -n 5 --json",
            "pacsync restore a",
            "pacsync restore a --at abcd2345",
            "pacsync restore a --at yesterday --to b",
            "pacsync restore --deleted d --at 14:30",
            "pacsync undo --json",
            "pacsync space create photos --at /p",
            "pacsync space attach photos --at /p",
            "pacsync space detach photos",
            "pacsync space ls",
            "pacsync pair",
            "pacsync pair --role admin",
            "pacsync pair --role member --yes --json",
            "pacsync pair 1234-able-acid --addr 127.0.0.1:4000 --yes",
            "pacsync pair 1234-able-acid --root /r --listen 127.0.0.1:0 --name b --no-discovery",
            "pacsync devices",
            "pacsync connect host:4000",
            "pacsync scan",
            "pacsync scan a b",
            "pacsync wait",
            "pacsync wait --timeout 1.5 --device phone",
            "pacsync deletes",
            "pacsync deletes --apply photos",
            "pacsync deletes --restore",
            "pacsync conflicts",
            "pacsync conflicts a",
            "pacsync resolve a --keep mine",
            "pacsync resolve a --keep k3jd8s2a",
            "pacsync resolve a --edit",
            "pacsync events",
            "pacsync demo",
            "pacsync demo --keep d",
            "pacsync service install",
            "pacsync service uninstall",
            "pacsync service status",
            "pacsync doctor",
            "pacsync completions bash",
            "pacsync man",
        ] {
            assert!(parses(line), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "pacsync",
            "pacsync add",
            "pacsync forget",
            "pacsync space create photos",
            "pacsync pair --addr h:1",
            "pacsync pair 1234-able-acid --role admin",
            "pacsync pair --role king",
            "pacsync wait --timeout soon",
            "pacsync wait --timeout -1",
            "pacsync deletes --apply --restore",
            "pacsync resolve a",
            "pacsync resolve --keep mine",
            "pacsync resolve a --keep mine --edit",
            "pacsync up --listen nowhere",
            "pacsync log",
            "pacsync restore a --at SOON",
            "pacsync restore --deleted d --to b",
            "pacsync connect host",
        ] {
            assert!(!parses(line), "{line}");
        }
    }
}

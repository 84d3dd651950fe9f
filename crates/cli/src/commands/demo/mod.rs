//! `demo`: three real daemons on this machine, real files, step by step.
//!
//! - `story` has the steps; `fleet` the devices and how they are started, asked and
//!   stopped; `report` what is printed.
//! - `dotfiles` and `generated` make the files; `compare` says whether trees are equal.
//!
//! Never here: the user's own home, a discovery on the network, or a write outside
//! of the demo's own directory.

mod compare;
mod dotfiles;
mod fleet;
mod generated;
mod report;
mod story;

use std::future::Future;
use std::path::{Path, PathBuf};

use clap::Args;
use pacsync_daemon::control::{CommandError, ErrorKind};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use self::fleet::{Fleet, Interrupt};
use self::report::{Narrator, Report};
use crate::error::CliError;
use crate::output::Output;
use crate::paths;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Use this directory, which must be new or empty, and leave everything in it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Where the demo lives.
#[derive(Debug)]
enum Place {
    /// Gone at the end.
    Passing(TempDir),
    /// Stays.
    Kept(PathBuf),
}

impl Place {
    fn new(keep: Option<&Path>) -> Result<Self, CliError> {
        match keep {
            None => tempfile::Builder::new()
                .prefix("pacsync-demo-")
                .tempdir()
                .map(Self::Passing)
                .map_err(|error| CliError::io("cannot make a directory for the demo", &error)),
            Some(dir) => {
                let dir = paths::absolute(dir)?;
                let failed = |error| CliError::io(format!("cannot use {}", dir.display()), &error);
                std::fs::create_dir_all(&dir).map_err(failed)?;
                if std::fs::read_dir(&dir).map_err(failed)?.next().is_some() {
                    return Err(
                        CommandError::failed(format!("{} is not empty", dir.display()))
                            .with_hint("name a new directory")
                            .into(),
                    );
                }
                Ok(Self::Kept(dir))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Passing(dir) => dir.path(),
            Self::Kept(dir) => dir,
        }
    }
}

pub(crate) fn demo(output: Output, args: &DemoArgs) -> Result<(), CliError> {
    let place = Place::new(args.keep.as_deref())?;
    // Symlinks on the way there would be no roots for a space.
    let base = place
        .path()
        .canonicalize()
        .map_err(|error| CliError::io(format!("cannot use {}", place.path().display()), &error))?;
    let told = super::wait_for(until_told(output, base.clone()));
    let report = tidy(output, place, told)?;
    let kept = args.keep.as_ref().map(|_| base.as_path());
    if report.finish(output, kept)? {
        Ok(())
    } else {
        Err(CliError::Said(ErrorKind::Failed))
    }
}

/// Tells the story on a thread of its own, which also stops the daemons, and cuts it
/// short when a signal asks for it.
async fn until_told(output: Output, base: PathBuf) -> Result<Report, CliError> {
    let (interrupt, interrupter) = Interrupt::new();
    let (sender, mut told) = oneshot::channel();
    let mut signals = Signals::new()?;
    let thread = std::thread::spawn(move || {
        let result = perform(output, &base, interrupt);
        // Nobody listens only when this program is going down anyway.
        let _ = sender.send(result);
    });
    let result = loop {
        tokio::select! {
            result = &mut told => break result,
            () = signals.any() => interrupter.interrupt(),
        }
    };
    if thread.join().is_err() {
        return Err(CommandError::failed("the demo broke off").into());
    }
    result.unwrap_or_else(|_| Err(CommandError::failed("the demo broke off").into()))
}

fn perform(output: Output, base: &Path, interrupt: Interrupt) -> Result<Report, CliError> {
    let fleet = Fleet::new(base, interrupt)?;
    let told = story::tell(&fleet, Narrator::new(output));
    let stopped = fleet.stop();
    let report = told?;
    stopped?;
    Ok(report)
}

/// Removes what is not kept, and says what to do about a failure.
fn tidy(output: Output, place: Place, told: Result<Report, CliError>) -> Result<Report, CliError> {
    match place {
        Place::Kept(dir) => told.map_err(|error| {
            with_hint(error, || format!("files and logs are in {}", dir.display()))
        }),
        Place::Passing(dir) => {
            let path = dir.path().to_owned();
            if let Err(error) = dir.close() {
                output.note(&format!("pacsync: {} stays: {error}", path.display()));
            }
            told.map_err(|error| {
                with_hint(error, || {
                    "run it again with --keep DIR to keep files and logs".into()
                })
            })
        }
    }
}

fn with_hint(error: CliError, hint: impl FnOnce() -> String) -> CliError {
    match error {
        CliError::Told(error) if error.hint.is_none() => CliError::Told(error.with_hint(hint())),
        // Somebody who stops reading has not seen that the trees are equal.
        CliError::PipeClosed => CliError::Said(ErrorKind::Failed),
        error => error,
    }
}

/// The signals that ask a program in a terminal to end.
struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn new() -> Result<Self, CliError> {
        let on =
            |kind| signal(kind).map_err(|error| CliError::io("cannot listen for signals", &error));
        Ok(Self([
            on(SignalKind::interrupt())?,
            on(SignalKind::terminate())?,
            on(SignalKind::hangup())?,
        ]))
    }

    /// Waits for one of them. Cancel-safe.
    fn any(&mut self) -> impl Future<Output = ()> {
        let [interrupt, terminate, hangup] = &mut self.0;
        async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        }
    }
}

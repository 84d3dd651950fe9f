//! One file per group of commands: its arguments, what it asks, how the answer reads.

pub(crate) mod conflicts;
pub(crate) mod deletes;
pub(crate) mod demo;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod history;
pub(crate) mod manual;
pub(crate) mod pair;
pub(crate) mod service;
pub(crate) mod spaces;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod wait;

use std::future::Future;
use std::path::PathBuf;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::error::CliError;
use crate::output::Output;
use crate::paths;

/// What every command needs to know.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) home: PathBuf,
    pub(crate) verbose: u8,
    pub(crate) output: Output,
    pub(crate) client: Client,
}

/// Runs one command.
pub(crate) fn run(cli: Cli, output: Output) -> Result<(), CliError> {
    // These need no home, or make their own.
    match &cli.command {
        Command::Completions(args) => return manual::completions(output, args),
        Command::Man => return manual::man(output),
        Command::Demo(args) => return demo::demo(output, args),
        _ => {}
    }
    let home = paths::home(cli.home)?;
    let client = Client::new(&home);
    let context = Context {
        home,
        verbose: cli.verbose,
        output,
        client,
    };
    let context = &context;
    match cli.command {
        Command::Up(args) => up::up(context, &args),
        Command::Down => up::down(context),
        Command::Daemon(args) => up::daemon(context, &args),
        Command::Status => wait_for(status::status(context)),
        Command::Add(args) => wait_for(files::add(context, &args)),
        Command::Forget(args) => wait_for(files::forget(context, &args)),
        Command::Ls(args) => wait_for(files::ls(context, &args)),
        Command::Log(args) => wait_for(history::log(context, &args)),
        Command::Restore(args) => wait_for(history::restore(context, &args)),
        Command::Undo => wait_for(history::undo(context)),
        Command::Scan(args) => wait_for(files::scan(context, &args)),
        Command::Space(command) => wait_for(spaces::space(context, &command)),
        Command::Pair(args) => pair::pair(context, &args),
        Command::Devices => wait_for(devices::devices(context)),
        Command::Connect(args) => wait_for(devices::connect(context, &args)),
        Command::Wait(args) => wait_for(wait::wait(context, &args)),
        Command::Deletes(args) => wait_for(deletes::deletes(context, &args)),
        Command::Conflicts(args) => wait_for(conflicts::conflicts(context, &args)),
        Command::Resolve(args) => wait_for(conflicts::resolve(context, &args)),
        Command::Events => wait_for(events::events(context)),
        Command::Service(command) => service::service(context, &command),
        Command::Doctor => wait_for(doctor::doctor(context)),
        Command::Completions(_) | Command::Man | Command::Demo(_) => Ok(()),
    }
}

/// Runs what talks to the daemon.
pub(crate) fn wait_for<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::io("cannot set up to talk to the daemon", &error))?
        .block_on(work)
}

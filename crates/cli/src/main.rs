//! The `pacsync` command: reads its arguments, asks the daemon over its control
//! socket, prints the answer.
//!
//! - `args` has all definitions, from which help, man page and completions come;
//!   `commands` has one file per group of commands.
//! - `client` speaks to the socket; `local` is what is done without a daemon, in
//!   its home; `launch` starts it in the background.
//! - `output`, `error`, `progress` and `text` are what a user sees.
//!
//! Never here: what a command does to the pac.

mod args;
mod client;
mod commands;
mod error;
mod launch;
mod local;
mod output;
mod paths;
mod progress;
mod text;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => return args::explain(&refused),
    };
    let output = Output::new(cli.format());
    let result = commands::run(cli, output);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(output, &error),
    }
}

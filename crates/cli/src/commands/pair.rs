//! `pair`: lets another device in, or joins with a code.

mod host;
mod join;

use std::io::{BufRead as _, IsTerminal as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use clap::Args;
use pacsync_daemon::control::CommandError;
use pacsync_daemon::control::api::{Status, role_word};
use pacsync_protocol::grant::Role;
use rustix::event::{PollFd, PollFlags};
use tokio::sync::oneshot;

use super::Context;
use super::devices::host_port;
use super::up::StartArgs;
use crate::error::CliError;
use crate::local::StartOptions;
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct PairArgs {
    /// The code that the other device shows; without one, this device shows a code
    code: Option<String>,

    /// What the new device becomes: admin, member, relay or guest
    #[arg(long, value_parser = role, conflicts_with = "code")]
    role: Option<Role>,

    /// Where the device with the code listens, if it is not on this network
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, requires = "code")]
    addr: Option<String>,

    /// Don't ask; never makes an admin
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    start: StartArgs,
}

fn role(word: &str) -> Result<Role, String> {
    role_word::parse(word).ok_or_else(|| "a role is one of admin, member, relay, guest".into())
}

/// Whether the user is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// Yes.
    Ask,
    /// The answer is yes.
    Assent,
}

pub(crate) fn pair(context: &Context, args: &PairArgs) -> Result<(), CliError> {
    let asking = if args.yes {
        Asking::Assent
    } else {
        Asking::Ask
    };
    let options = args.start.options()?;
    match &args.code {
        Some(code) => {
            check_asking(asking)?;
            join::join(context, code, args.addr.clone(), &options, asking)
        }
        None => {
            check_host(args.role.unwrap_or(Role::Member), asking, &options)?;
            if let Err(error) = check_asking(asking) {
                // Without a daemon that is what is wrong.
                super::wait_for(context.client.get::<Status>("/v1/status"))?;
                return Err(error.into());
            }
            let role = args.role.unwrap_or(Role::Member);
            super::wait_for(host::host(context, role, asking))
        }
    }
}

fn check_asking(asking: Asking) -> Result<(), CommandError> {
    if asking == Asking::Ask && is_at_end(std::io::stdin().as_fd()) {
        return Err(
            CommandError::usage("standard input is at its end: nobody can answer")
                .with_hint("run it in a terminal, or with --yes; no code was made or used up"),
        );
    }
    Ok(())
}

/// Whether nothing can come from a file or pipe any more. False where that takes waiting to find
/// out, and for what has something to read.
fn is_at_end(input: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(input, PollFlags::IN)];
    let at_once = rustix::event::Timespec::default();
    if !matches!(rustix::event::poll(&mut fds, Some(&at_once)), Ok(1)) {
        return false;
    }
    let [fd] = &fds;
    if !fd.revents().contains(PollFlags::IN) {
        return fd.revents().contains(PollFlags::HUP);
    }
    // Reads into the buffer that the answer is read from later.
    !input.is_terminal() && matches!(std::io::stdin().lock().fill_buf(), Ok([]))
}

fn check_host(role: Role, asking: Asking, options: &StartOptions) -> Result<(), CommandError> {
    if *options != StartOptions::default() {
        return Err(
            CommandError::usage("the flags of `up` go with a code, where a device joins")
                .with_hint(
                    "run `pacsync pair` without them, or `pacsync pair CODE` on the new device",
                ),
        );
    }
    if role == Role::Admin && asking == Asking::Assent {
        return Err(CommandError::usage("--yes never makes an admin")
            .with_hint("leave out --yes and confirm when the device shows up"));
    }
    Ok(())
}

/// Asks a question on stderr and reads the answer from stdin, on a thread of its
/// own which the process does not wait for: the other side may give up while
/// nobody answers. No answer is a no.
fn ask_aside(output: Output, question: String) -> oneshot::Receiver<bool> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        output.prompt(&format!("{question} [y/N]"));
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        let word = line.trim().to_ascii_lowercase();
        // Nobody listens any more if the pairing has ended meanwhile.
        let _ = sender.send(read.is_ok() && matches!(word.as_str(), "y" | "yes"));
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Discovery;

    #[test]
    fn yes_never_makes_an_admin() {
        let none = StartOptions::default();
        assert!(check_host(Role::Admin, Asking::Assent, &none).is_err());
        assert!(check_host(Role::Admin, Asking::Ask, &none).is_ok());
        assert!(check_host(Role::Member, Asking::Assent, &none).is_ok());
    }

    #[test]
    fn flags_of_up_need_a_code() {
        let options = StartOptions {
            discovery: Some(Discovery::Off),
            ..StartOptions::default()
        };
        let error = check_host(Role::Member, Asking::Ask, &options).expect_err("refused");
        assert_eq!(error.kind.exit_code(), 2);
    }
}

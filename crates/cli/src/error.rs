//! How a command ends that does not end well.

use std::io;
use std::process::ExitCode;

use pacsync_daemon::control::api::ErrorBody;
use pacsync_daemon::control::{CommandError, ErrorKind};

use crate::output::Output;
use crate::text;

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum CliError {
    /// Something to tell the user.
    Told(CommandError),
    /// The reader of stdout has had enough: nothing to tell.
    PipeClosed,
    /// All was said already; only the exit code is left.
    Said(ErrorKind),
}

impl From<CommandError> for CliError {
    fn from(error: CommandError) -> Self {
        Self::Told(error)
    }
}

impl CliError {
    /// An error of an I/O operation on something.
    pub(crate) fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        Self::Told(CommandError::failed(format!("{what}: {error}")))
    }

    /// An error of writing to stdout.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::PipeClosed
        } else {
            Self::io("cannot write to stdout", error)
        }
    }

    /// The exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Told(error) => error.kind.exit_code(),
            Self::Said(kind) => kind.exit_code(),
            Self::PipeClosed => 0,
        }
    }
}

/// Prints an error, in JSON on stdout or as text on stderr, and gives the exit code.
pub(crate) fn report(output: Output, error: &CliError) -> ExitCode {
    if let CliError::Told(told) = error {
        if output.is_json() {
            // Nobody is left to be told of a failure here.
            let _ = output.document(&ErrorBody {
                error: told.clone(),
            });
        } else {
            output.note(&to_text(told));
        }
    }
    ExitCode::from(error.exit_code())
}

fn to_text(error: &CommandError) -> String {
    let mut lines = vec![format!("pacsync: {}", text::visible(&error.message))];
    lines.extend(
        error
            .items
            .iter()
            .map(|item| format!("  {}", text::visible(item))),
    );
    lines.extend(
        error
            .hint
            .iter()
            .map(|hint| format!("hint: {}", text::visible(hint))),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_ends_with_its_code() {
        let code = |kind| CliError::from(CommandError::new(kind, "x")).exit_code();
        assert_eq!(ErrorKind::ALL.map(code), [1, 2, 3, 4, 5]);
        assert_eq!(CliError::PipeClosed.exit_code(), 0);
    }

    #[test]
    fn an_error_says_what_on_what_and_what_next() {
        let error = CommandError::needs_user("12 deletes are held")
            .with_items(["photos/a\nb"])
            .with_hint("look at them with `pacsync deletes`");
        assert_eq!(
            to_text(&error),
            "pacsync: 12 deletes are held\n  photos/a\\nb\nhint: look at them with `pacsync deletes`"
        );
    }
}

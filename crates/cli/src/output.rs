//! Writing to stdout and stderr. The only place that does.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::CliError;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints an answer: as it is in JSON, or what `to_text` makes of it.
    pub(crate) fn show<T: Serialize>(
        self,
        answer: &T,
        to_text: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.document(answer),
            Format::Text => self.text(&to_text(answer)),
        }
    }

    /// Prints one JSON document on a line of its own, flushed.
    pub(crate) fn document<T: Serialize>(self, document: &T) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(document)
            .map_err(|error| CliError::io("cannot write JSON", &error.into()))?;
        line.push(b'\n');
        self.bytes(&line)
    }

    /// Prints lines of text, flushed. Nothing at all for an empty text.
    pub(crate) fn text(self, text: &str) -> Result<(), CliError> {
        let text = text.trim_end_matches('\n');
        if text.is_empty() {
            return Ok(());
        }
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Prints bytes as they are, flushed.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| CliError::stdout(&error))
    }

    /// Prints a line on stderr. A stderr that is closed is no reason to stop.
    pub(crate) fn note(self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Asks on stderr, without ending the line.
    pub(crate) fn prompt(self, text: &str) {
        let mut stderr = io::stderr().lock();
        let _ = write!(stderr, "{text} ").and_then(|()| stderr.flush());
    }

    /// Whether somebody looks at stdout.
    pub(crate) fn is_terminal(self) -> bool {
        !self.is_json() && io::stdout().is_terminal()
    }
}

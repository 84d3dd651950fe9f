//! `up`, `down`, `daemon`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use pacsync_daemon::control::CommandError;
use pacsync_daemon::control::api::{Done, Status, Stopping};
use serde::Serialize;
use serde_json::json;

use super::{Context, wait_for};
use crate::error::CliError;
use crate::local::{Discovery, StartOptions};
use crate::{launch, local, paths, text};

/// How a device takes part; remembered for later starts.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Where the home space lives; your home directory by default
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Address and UDP port to listen on, e.g. 0.0.0.0:4711; any port by default
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,

    /// What to call this device; its host name by default
    #[arg(long)]
    name: Option<String>,

    /// Neither look for other devices on the local network nor be seen there
    #[arg(long)]
    no_discovery: bool,
}

impl StartArgs {
    /// Makes paths absolute.
    pub(crate) fn options(&self) -> Result<StartOptions, CliError> {
        Ok(StartOptions {
            root: self.root.as_deref().map(paths::absolute).transpose()?,
            listen: self.listen,
            name: self.name.clone(),
            discovery: self.no_discovery.then_some(Discovery::Off),
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    start: StartArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// Started by `up`: tell on stdout when ready, then go on alone
    #[arg(long, hide = true)]
    background: bool,
}

/// What `up` prints as JSON.
#[derive(Debug, Serialize)]
struct UpReport {
    home: String,
    pid: u32,
    founded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    phrase: Option<Vec<String>>,
    device: pacsync_daemon::control::api::DeviceRef,
    pac: String,
    listen: Vec<SocketAddr>,
}

pub(crate) fn up(context: &Context, args: &UpArgs) -> Result<(), CliError> {
    let options = args.start.options()?;
    refuse_if_running(context)?;
    if local::has_pac(&context.home)? {
        local::configure(&context.home, &options)?;
        let status = start_daemon(context)?;
        return show_up(context, status, None);
    }
    let mut words = Vec::new();
    local::found(&context.home, &options, |phrase| {
        words = phrase.iter().map(|word| (*word).to_owned()).collect();
        if context.output.is_json() {
            Ok(())
        } else {
            context.output.text(&phrase_text(phrase))
        }
    })?;
    match start_daemon(context) {
        Ok(status) => show_up(context, status, Some(words)),
        // The only document has to tell the phrase, whatever else it tells.
        Err(CliError::Told(error)) if context.output.is_json() => {
            context
                .output
                .document(&json!({ "error": error, "phrase": words }))?;
            Err(CliError::Said(error.kind))
        }
        Err(error) => Err(error),
    }
}

fn show_up(context: &Context, status: Status, phrase: Option<Vec<String>>) -> Result<(), CliError> {
    let report = UpReport {
        home: context.home.display().to_string(),
        pid: status.pid,
        founded: phrase.is_some(),
        phrase,
        device: status.device,
        pac: status.pac,
        listen: status.listen,
    };
    context.output.show(&report, |report| {
        let mut lines = vec![format!(
            "pacsync runs as {} (pid {})",
            text::visible(&report.device.name),
            report.pid
        )];
        if report.founded {
            lines.push(
                "next: `pacsync add PATH…` to track files, `pacsync pair` to let another device in"
                    .into(),
            );
        }
        lines.join("\n")
    })
}

fn phrase_text(words: &[&str]) -> String {
    format!(
        "This is the phrase of your new pac. It is shown only this once.\n\
         Write it down on paper, in this order, and keep it safe: whoever has it owns the pac.\n\
         All keys are sealed to it, so that a later version can bring the pac back with it;\n\
         this version has no command for that yet, so keep a second device.\n\n{}",
        text::phrase(words)
    )
}

/// Starts the daemon of a home that has a pac, and asks how it is.
pub(crate) fn start_daemon(context: &Context) -> Result<Status, CliError> {
    launch::start(&context.home, context.verbose)?;
    wait_for(context.client.get("/v1/status"))
}

/// An error if a daemon answers.
pub(crate) fn refuse_if_running(context: &Context) -> Result<(), CliError> {
    match wait_for(context.client.daemon())? {
        None => Ok(()),
        Some(daemon) => Err(CommandError::failed(format!(
            "pacsync is running already for {} (pid {})",
            context.home.display(),
            daemon.pid
        ))
        .with_hint("look at it with `pacsync status`, stop it with `pacsync down`")
        .into()),
    }
}

pub(crate) fn down(context: &Context) -> Result<(), CliError> {
    let stopping: Stopping = wait_for(context.client.post("/v1/shutdown", &Done {}))?;
    local::wait_until_unlocked(&context.home)?;
    context
        .output
        .show(&json!({ "stopped": true, "pid": stopping.pid }), |_| {
            format!("pacsync has stopped (pid {})", stopping.pid)
        })
}

pub(crate) fn daemon(context: &Context, args: &DaemonArgs) -> Result<(), CliError> {
    log_to_stderr(context.verbose);
    if args.background {
        return launch::run_in_background(&context.home);
    }
    local::run_daemon(&context.home, Box::new(|| tracing::info!("ready")))
}

/// Logs go to stderr; `PACSYNC_LOG` has more to say than `-v`.
fn log_to_stderr(verbose: u8) {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 => "warn,pacsync=info,pacsync_daemon=info,pacsync_store=info,pacsync_protocol=info",
        1 => "info,pacsync=debug,pacsync_daemon=debug,pacsync_store=debug,pacsync_protocol=debug",
        _ => "debug,pacsync=trace,pacsync_daemon=trace,pacsync_store=trace,pacsync_protocol=trace",
    };
    let filter = EnvFilter::try_from_env("PACSYNC_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let set = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    if let Err(error) = set {
        tracing::debug!(%error, "a log is set up already");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phrase_comes_with_what_it_is_for() {
        let words: Vec<String> = (1..=24).map(|n| format!("word{n}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let text = phrase_text(&words);
        assert!(text.contains("only this once"));
        assert!(text.contains("no command for that yet"));
        assert!(text.contains(" 1 word1"));
        assert!(text.contains("24 word24"));
    }
}

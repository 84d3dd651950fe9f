//! `add`, `forget`, `ls`, `scan`: the files of the home space.

use std::path::PathBuf;

use clap::Args;
use pacsync_daemon::control::api::{
    AddReport, EntryKind, ForgetReport, Listing, LsRequest, PathArg, PathsRequest, Problem,
    ScanReport, TextPath,
};

use super::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::text::{count, size, visible};
use crate::{paths, progress};

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Files and directories below the root of the home space
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// Files and directories that are tracked
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// A path in the worktree of a space; the root of the home space by default
    path: Option<PathBuf>,

    /// End each path with a NUL byte instead of a newline
    #[arg(short = '0', long)]
    null: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScanArgs {
    /// What to look at; everything by default
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(crate) async fn add(context: &Context, args: &AddArgs) -> Result<(), CliError> {
    let request = PathsRequest {
        paths: paths::arguments(&args.paths)?,
    };
    let asked = context.client.post("/v1/add", &request);
    let report: AddReport = progress::shown(&context.client, "adding", asked).await?;
    tell_problems(context.output, &report.problems);
    context.output.show(&report, |report| {
        format!(
            "{}: {}, {}",
            names("tracked", &report.added),
            count(report.files, "file"),
            size(report.bytes)
        )
    })
}

pub(crate) async fn forget(context: &Context, args: &ForgetArgs) -> Result<(), CliError> {
    let request = PathsRequest {
        paths: paths::arguments(&args.paths)?,
    };
    let report: ForgetReport = context.client.post("/v1/forget", &request).await?;
    context.output.show(&report, |report| {
        format!(
            "{}; the files stay where they are",
            names("no longer tracked", &report.forgotten)
        )
    })
}

pub(crate) async fn scan(context: &Context, args: &ScanArgs) -> Result<(), CliError> {
    let request = PathsRequest {
        paths: paths::arguments(&args.paths)?,
    };
    let asked = context.client.post("/v1/scan", &request);
    let report: ScanReport = progress::shown(&context.client, "scanning", asked).await?;
    tell_problems(context.output, &report.problems);
    context.output.show(&report, |report| {
        format!(
            "{} in {}",
            count(report.changes, "change"),
            count(report.looked_at, "path")
        )
    })
}

/// Asks for one page after the other. As text each is printed as it comes; as
/// JSON all are one document.
pub(crate) async fn ls(context: &Context, args: &LsArgs) -> Result<(), CliError> {
    let output = context.output;
    let path = args.path.as_deref().map(paths::absolute).transpose()?;
    let mut request = LsRequest {
        path: path.as_deref().map(PathArg::from_path),
        ..LsRequest::default()
    };
    let mut whole: Option<Listing> = None;
    loop {
        let page: Listing = context.client.post("/v1/ls", &request).await?;
        request.after = page
            .entries
            .last()
            .map(|entry| PathArg::Full(entry.path.clone()));
        let more = page.more && request.after.is_some();
        if !output.is_json() {
            output.bytes(&lines(&page, args, output))?;
        } else if let Some(whole) = &mut whole {
            whole.entries.extend(page.entries);
        } else {
            whole = Some(page);
        }
        if !more {
            break;
        }
    }
    match whole {
        Some(whole) => output.document(&Listing {
            more: false,
            ..whole
        }),
        None => Ok(()),
    }
}

/// Paths as bytes into a pipe, made visible on a terminal.
fn lines(page: &Listing, args: &LsArgs, output: Output) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in &page.entries {
        if output.is_terminal() && !args.null {
            bytes.extend_from_slice(visible(&entry.path.path).as_bytes());
        } else {
            bytes.extend_from_slice(&entry.path.to_bytes());
        }
        if entry.kind == EntryKind::Dir {
            bytes.push(b'/');
        }
        bytes.push(if args.null { 0 } else { b'\n' });
    }
    bytes
}

/// In JSON they are part of the answer.
fn tell_problems(output: Output, problems: &[Problem]) {
    if output.is_json() {
        return;
    }
    for problem in problems {
        output.note(&format!(
            "{}: {}",
            visible(&problem.path.path),
            visible(&problem.what)
        ));
    }
}

fn names(what: &str, paths: &[TextPath]) -> String {
    match paths {
        [] => format!("{what}: nothing"),
        [one] if one.path.is_empty() => format!("{what}: the whole root"),
        [one] => format!("{what}: {}", visible(&one.path)),
        more => format!(
            "{what}: {}",
            count(u64::try_from(more.len()).unwrap_or(0), "path")
        ),
    }
}

//! `conflicts` and `resolve`.

mod edit;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use pacsync_daemon::control::ErrorKind;
use pacsync_daemon::control::api::{
    ConflictList, ConflictedPath, ConflictsRequest, ContentPlace, Differs, EntryKind, PathArg,
    ResolveKeep, ResolveReport, ResolveRequest, VersionInfo,
};

use super::Context;
use crate::error::CliError;
use crate::text::{count, size, table, visible};
use crate::{paths, progress};

#[derive(Debug, Args)]
pub(crate) struct ConflictsArgs {
    /// Only what is at or beneath this path; all spaces by default
    path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// What is in conflict
    path: PathBuf,

    /// What is to stay: `mine`, what this device wrote; `theirs`, what the other one did; `both`,
    /// the shown version and each other one in a file beside it; or a version's id
    ///
    /// Of different kinds at one path (a file and a directory), the others are deleted, a
    /// directory with all that is in it; with `both` they are renamed. What goes stays in history.
    #[arg(
        long,
        value_name = "VERSION",
        conflicts_with = "edit",
        required_unless_present = "edit"
    )]
    keep: Option<String>,

    /// Make one content of all versions in $PACSYNC_MERGE_TOOL, $VISUAL or $EDITOR
    ///
    /// It is run with the file to save, which begins as the shown version, then each other version,
    /// then the content that all were made from, if there is one. Nothing is done if it fails or
    /// the file is as before.
    #[arg(long)]
    edit: bool,
}

/// Ends with the code that asks for the user if there is any conflict.
pub(crate) async fn conflicts(context: &Context, args: &ConflictsArgs) -> Result<(), CliError> {
    let path = args.path.as_deref().map(paths::absolute).transpose()?;
    let request = ConflictsRequest {
        path: path.as_deref().map(PathArg::from_path),
    };
    let list: ConflictList = context.client.post("/v1/conflicts", &request).await?;
    context.output.show(&list, list_text)?;
    match list.total {
        0 => Ok(()),
        _ => Err(CliError::Said(ErrorKind::NeedsUser)),
    }
}

pub(crate) async fn resolve(context: &Context, args: &ResolveArgs) -> Result<(), CliError> {
    let path = paths::absolute(&args.path)?;
    let report = match &args.keep {
        Some(word) => ask(context, &path, ResolveKeep::Version(word.clone())).await?,
        None => edit::edit(context, &path).await?,
    };
    context.output.show(&report, report_text)
}

async fn ask(context: &Context, path: &Path, keep: ResolveKeep) -> Result<ResolveReport, CliError> {
    let request = ResolveRequest {
        path: PathArg::from_path(path),
        keep,
    };
    let asked = context.client.post("/v1/resolve", &request);
    progress::shown(&context.client, "settling", asked).await
}

fn list_text(list: &ConflictList) -> String {
    if list.conflicts.is_empty() {
        return "nothing is in conflict".into();
    }
    let mut text: String = list.conflicts.iter().map(conflict_text).collect();
    let more = list
        .total
        .saturating_sub(u64::try_from(list.conflicts.len()).unwrap_or(u64::MAX));
    if more > 0 {
        text.push_str(&format!("and {} more\n", count(more, "path")));
    }
    text.push_str(
        "* shows. Settle each with `pacsync resolve PATH --keep mine|theirs|both|VERSION` or `--edit`",
    );
    text
}

fn conflict_text(conflict: &ConflictedPath) -> String {
    let below = OsStr::from_bytes(&conflict.path.to_bytes()).to_owned();
    let path = match &conflict.root {
        Some(root) => root.to_path().join(below),
        None => below.into(),
    };
    let mut text = format!(
        "{} (space {})",
        visible(&path.to_string_lossy()),
        visible(&conflict.space)
    );
    if conflict.differs == Differs::Nodes {
        text.push_str(": different things at one path");
    }
    if conflict.beneath_hidden {
        text.push_str("; hidden with its directory: settle that first");
    }
    text.push('\n');
    let rows: Vec<Vec<String>> = conflict.versions.iter().map(version_cells).collect();
    text.push_str(&table("  ", &rows));
    text
}

fn version_cells(version: &VersionInfo) -> Vec<String> {
    let kind = match version.kind {
        EntryKind::File => "file",
        EntryKind::Dir => "directory",
        EntryKind::Symlink => "symlink",
    };
    let mut writer = version.device.name.clone();
    if version.mine {
        writer.push_str(" (mine)");
    }
    let place = match version.content {
        ContentPlace::Here => "here".into(),
        ContentPlace::Elsewhere => {
            let names: Vec<&str> = version.on.iter().map(|d| d.name.as_str()).collect();
            format!("on {}", names.join(", "))
        }
        ContentPlace::NotKept => "not kept".into(),
    };
    vec![
        if version.shown { "*" } else { " " }.into(),
        version.id.clone(),
        kind.into(),
        writer,
        time(version.time_ms),
        version.size.map(size).unwrap_or_default(),
        place,
    ]
}

/// In UTC, as in the names of files.
fn time(time_ms: u64) -> String {
    i64::try_from(time_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |time| {
            time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
        })
}

fn report_text(report: &ResolveReport) -> String {
    let path = visible(&report.path.path);
    let mut text = match &report.kept {
        Some(id) => format!("settled: {path} is version {id} now"),
        None => format!("settled: {path} is what you made of it"),
    };
    for beside in &report.beside {
        text.push_str(&format!("\n  beside it: {}", visible(&beside.path)));
    }
    if !report.on_disk {
        text.push_str("\nthe disk follows; see `pacsync status`");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pacsync_daemon::control::api::{DeviceRef, TextPath, TextRoot};

    #[test]
    fn a_list_shows_each_version_and_where_it_is() {
        let version = |shown: bool, content| VersionInfo {
            id: if shown { "aaaaaaaa" } else { "bbbbbbbb" }.into(),
            row: "x".into(),
            shown,
            kind: EntryKind::File,
            device: DeviceRef {
                id: "d".into(),
                name: "laptop".into(),
            },
            mine: shown,
            time_ms: 1_795_305_600_000,
            size: Some(1536),
            mtime_ms: Some(1),
            content,
            on: vec![DeviceRef {
                id: "e".into(),
                name: "desk\ntop".into(),
            }],
        };
        let list = ConflictList {
            conflicts: vec![ConflictedPath {
                space: "home".into(),
                root: Some(TextRoot::from_bytes(b"/home/me")),
                path: TextPath::from_bytes(b"a\nb"),
                differs: Differs::Contents,
                beneath_hidden: false,
                versions: vec![
                    version(true, ContentPlace::Here),
                    version(false, ContentPlace::Elsewhere),
                ],
            }],
            total: 3,
        };
        let text = list_text(&list);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines.get(..4),
            Some(
                &[
                    "/home/me/a\\nb (space home)",
                    "  *  aaaaaaaa  file  laptop (mine)  2026-11-22 00:00:00 UTC  1.5 KiB  here",
                    "     bbbbbbbb  file  laptop         2026-11-22 00:00:00 UTC  1.5 KiB  on desk\\ntop",
                    "and 2 paths more",
                ][..]
            ),
            "{text}"
        );
    }
}

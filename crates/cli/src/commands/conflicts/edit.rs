//! `resolve --edit`: one content of all versions, made by a person in a tool of theirs.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use pacsync_daemon::control::CommandError;
use pacsync_daemon::control::api::{
    ConflictRequest, EDIT_MAX, PathArg, ResolveKeep, ResolveReport, VersionContents,
};
use tempfile::TempDir;

use super::{Context, ask};
use crate::error::CliError;
use crate::progress;

/// Where a tool may be named, the first that is set counts.
const VARIABLES: [&str; 3] = ["PACSYNC_MERGE_TOOL", "VISUAL", "EDITOR"];
/// Longest name that is used as it is; what is added to it has room then.
const NAME_MAX: usize = 120;

pub(super) async fn edit(context: &Context, path: &Path) -> Result<ResolveReport, CliError> {
    let tool = tool()?;
    let request = ConflictRequest {
        path: PathArg::from_path(path),
    };
    let asked = context.client.post("/v1/conflicts/contents", &request);
    let versions: VersionContents = progress::shown(&context.client, "fetching", asked).await?;
    let table = Table::lay(&versions)?;
    let status = table.run(&tool, context.output.is_json())?;
    if !status.success() {
        let what = format!("{} ended with {status}", tool.to_string_lossy());
        return Err(CommandError::failed(what)
            .with_hint("nothing was changed")
            .into());
    }
    let Some(bytes) = table.edited()? else {
        let what = "the file was not changed, so the conflict stays";
        return Err(CommandError::needs_user(what)
            .with_hint("to keep what shows, use `--keep` with its id")
            .into());
    };
    if bytes.len() as u64 > EDIT_MAX {
        let what = format!("the edited file is over {} MiB", EDIT_MAX >> 20);
        return Err(table.saved(CommandError::failed(what).into()));
    }
    let seen = versions.conflict.versions.iter();
    let seen = seen.map(|version| version.row.clone()).collect();
    let keep = ResolveKeep::Edited { bytes, seen };
    match ask(context, path, keep).await {
        Ok(report) => Ok(report),
        // Work of a person is not thrown away.
        Err(error) => Err(table.saved(error)),
    }
}

fn tool() -> Result<OsString, CliError> {
    let set = VARIABLES.iter().filter_map(std::env::var_os);
    set.into_iter()
        .find(|tool| !tool.is_empty())
        .ok_or_else(|| {
            CommandError::failed("there is no tool to edit with")
                .with_hint("set PACSYNC_MERGE_TOOL, VISUAL or EDITOR")
                .into()
        })
}

/// A private directory with all versions in it.
struct Table {
    dir: TempDir,
    /// The file to save.
    result: PathBuf,
    before: Vec<u8>,
    others: Vec<PathBuf>,
    base: Option<PathBuf>,
}

impl Table {
    fn lay(versions: &VersionContents) -> Result<Self, CliError> {
        let failed = |error: io::Error| CliError::io("cannot lay out the versions to edit", &error);
        let dir = tempfile::Builder::new()
            .prefix("pacsync-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(failed)?;
        let conflict = &versions.conflict;
        let path = conflict.path.to_path();
        let (stem, end) = parts(path.file_name().unwrap_or_default());
        let mut result = None;
        let mut others = vec![];
        for (version, content) in conflict.versions.iter().zip(&versions.contents) {
            let path = if version.shown && result.is_none() {
                let path = dir.path().join(joined(&stem, "", &end));
                result = Some((path.clone(), content.bytes.clone()));
                path
            } else {
                let mark = format!(".{}-{}", plain(&version.device.name), plain(&version.id));
                let path = dir.path().join(joined(&stem, &mark, &end));
                others.push(path.clone());
                path
            };
            write(&path, &content.bytes).map_err(failed)?;
        }
        let base = versions.base.as_ref().map(|base| {
            let path = dir.path().join(joined(&stem, ".base", &end));
            write(&path, &base.bytes).map(|()| path)
        });
        let base = base.transpose().map_err(failed)?;
        let (result, before) = result.ok_or_else(|| {
            CommandError::failed("none of the versions shows: settle it by --keep")
        })?;
        Ok(Self {
            dir,
            result,
            before,
            others,
            base,
        })
    }

    /// Runs a tool as shells do, so that it may have arguments of its own.
    fn run(&self, tool: &OsStr, json: bool) -> Result<ExitStatus, CliError> {
        let mut line = tool.to_owned();
        line.push(" \"$@\"");
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(line)
            .arg(tool)
            .arg(&self.result)
            .args(&self.others)
            .args(&self.base)
            .env("PACSYNC_RESULT", &self.result);
        if let Some(base) = &self.base {
            command.env("PACSYNC_BASE", base);
        }
        if json {
            // Nothing but the one document is to be on stdout.
            let stderr = io::stderr().as_fd().try_clone_to_owned();
            command.stdout(stderr.map_or_else(|_| Stdio::null(), Stdio::from));
        }
        command
            .status()
            .map_err(|error| CliError::io(format!("cannot run {}", tool.to_string_lossy()), &error))
    }

    /// What was saved, if it differs.
    fn edited(&self) -> Result<Option<Vec<u8>>, CliError> {
        match fs::read(&self.result) {
            Ok(bytes) if bytes == self.before => Ok(None),
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CliError::io("cannot read what was saved", &error)),
        }
    }

    /// Leaves what was saved where it is, and says so.
    fn saved(self, error: CliError) -> CliError {
        let result = self.result.display().to_string();
        let _ = self.dir.keep();
        match error {
            CliError::Told(error) => {
                CliError::Told(error.with_items([format!("what you saved stays in {result}")]))
            }
            other => other,
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs::File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// A name without its ending, and the ending, by which editors know the format.
fn parts(name: &OsStr) -> (OsString, OsString) {
    let name = if name.len() > NAME_MAX {
        OsStr::new("file")
    } else {
        name
    };
    let bytes = name.as_bytes();
    match bytes.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 => {
            let (stem, end) = bytes.split_at(dot);
            (
                OsString::from_vec(stem.to_vec()),
                OsString::from_vec(end.to_vec()),
            )
        }
        _ => (name.to_owned(), OsString::new()),
    }
}

fn joined(stem: &OsStr, mark: &str, end: &OsStr) -> OsString {
    let mut name = stem.to_owned();
    name.push(mark);
    name.push(end);
    name
}

/// What is safe in a name whatever reads it.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .take(40)
        .collect()
}

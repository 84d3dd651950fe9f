//! `log`, `restore`, `undo`: earlier versions of files.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use jiff::civil::{Date, DateTime, Time};
use jiff::{SignedDuration, Span, Timestamp, Zoned};
use pacsync_daemon::control::ErrorKind;
use pacsync_daemon::control::api::{
    EntryKind, Kept, LogReport, LogRequest, PathArg, RestoreReport, RestoreRequest, StayReason,
    UndoReport, UndoneKind, UndoneWhat, Unrestored, Version, VersionKind,
};

use super::Context;
use crate::error::CliError;
use crate::text::{count, size, table, visible};
use crate::{paths, progress};

/// Paths that are listed of an answer.
const PATHS_SHOWN: usize = 20;
/// Shortest beginning of a version's id that is taken for one.
const VERSION_MIN: usize = 4;

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// A file or directory of a space; it may be deleted
    path: PathBuf,

    /// Only so many of the newest
    #[arg(short = 'n', long, value_name = "COUNT")]
    limit: Option<NonZeroUsize>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// A file of a space; it may be deleted. With --deleted a directory
    path: PathBuf,

    /// Which version: an id from `log` or its beginning, or a time as in "2026-05-01 14:30",
    /// "14:30", yesterday, "2 days ago"
    ///
    /// By default the version before the one that shows, or the last one of a deleted file. With
    /// --deleted, a time: only what was deleted since then.
    #[arg(long, value_name = "TIME|VERSION", value_parser = at, allow_hyphen_values = true)]
    at: Option<At>,

    /// Write a plain file here and change nothing else
    #[arg(long, value_name = "DEST", conflicts_with = "deleted")]
    to: Option<PathBuf>,

    /// Bring back everything that was deleted beneath the directory
    #[arg(long)]
    deleted: bool,
}

/// Which version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// Milliseconds since 1970.
    Time(u64),
    /// Id, or its beginning.
    Version(String),
}

fn at(text: &str) -> Result<At, String> {
    parse_at(text, &Zoned::now())
}

/// Reads a time or a version. What has the letters of an id only is one: a time has at least a
/// blank, a colon or a hyphen in it, or is a word of its own.
fn parse_at(text: &str, now: &Zoned) -> Result<At, String> {
    let text = text.trim();
    let in_id = |c: char| matches!(c, 'a'..='z' | '2'..='7');
    match time(text, now) {
        Some(time) => {
            let ms = time.as_millisecond();
            return u64::try_from(ms)
                .map(At::Time)
                .map_err(|_| format!("{text:?} is before 1970"));
        }
        None if text.len() >= VERSION_MIN && text.chars().all(in_id) => {}
        None => {
            return Err(
                "neither a version of `pacsync log` (at least 4 characters of it) nor a \
                        time, e.g. \"2026-05-01 14:30\", 14:30, yesterday, \"2 days ago\""
                    .into(),
            );
        }
    }
    Ok(At::Version(text.to_owned()))
}

fn time(text: &str, now: &Zoned) -> Option<Timestamp> {
    let zone = now.time_zone();
    let of = |civil: DateTime| Some(civil.to_zoned(zone.clone()).ok()?.timestamp());
    let whole_day = |date: Date| of(date.to_datetime(Time::MAX));
    match text {
        "now" | "today" => return Some(now.timestamp()),
        // What was there when that day ended.
        "yesterday" => return whole_day(now.date().yesterday().ok()?),
        _ if !text.contains([' ', ':', '-']) => return None,
        _ => {}
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    if let Ok(time) = text.parse::<Date>()
        && !text.contains(':')
    {
        return whole_day(time);
    }
    if let Ok(time) = text.parse::<DateTime>() {
        return of(time);
    }
    if let Ok(time) = text.parse::<Time>() {
        return of(now.date().to_datetime(time));
    }
    let span: Span = text.parse().ok()?;
    let then = now.checked_add(span).ok()?.timestamp();
    // "2 days" alone says nothing, and nothing was there in the future.
    (then.duration_since(now.timestamp()) < SignedDuration::ZERO).then_some(then)
}

pub(crate) async fn log(context: &Context, args: &LogArgs) -> Result<(), CliError> {
    let request = LogRequest {
        path: PathArg::from_path(&paths::absolute_deleted(&args.path)?),
        limit: args.limit.map(NonZeroUsize::get),
    };
    let asked = context.client.post("/v1/log", &request);
    let report: LogReport = progress::shown(&context.client, "looking", asked).await?;
    context.output.show(&report, log_text)
}

fn log_text(report: &LogReport) -> String {
    let rows: Vec<Vec<String>> = report.versions.iter().map(row).collect();
    let mut text = String::new();
    if report.deleted {
        text.push_str(&format!("{} is deleted\n", visible(&report.path.path)));
    }
    text.push_str(&table("", &rows));
    if report.more {
        text.push_str("\nthere are more: ask for them with -n");
    }
    text
}

/// A time as this machine's clock shows it.
fn clock_time(ms: u64) -> Option<String> {
    let time = Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::system());
    Some(time.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

fn row(version: &Version) -> Vec<String> {
    let time = version.time_ms.and_then(clock_time);
    let device = version.device.as_ref().map(|device| device.name.clone());
    let name = match (version.what, &version.name) {
        (VersionKind::Moved, Some(name)) => format!(" to {}", name.path),
        _ => String::new(),
    };
    let names: Vec<&str> = version.devices.iter().map(|d| d.name.as_str()).collect();
    let place = match version.kept {
        _ if version.shown => "shows now".to_owned(),
        Some(Kept::Here) => "here".to_owned(),
        Some(Kept::Elsewhere) => format!("perhaps on {}", names.join(", ")),
        Some(Kept::NotKept) => "not kept".to_owned(),
        None => String::new(),
    };
    vec![
        version.version.clone(),
        time.unwrap_or_else(|| "?".into()),
        device.unwrap_or_else(|| "?".into()),
        version.size.map(size).unwrap_or_default(),
        format!("{}{name}", version.what.as_str()),
        place,
    ]
}

pub(crate) async fn restore(context: &Context, args: &RestoreArgs) -> Result<(), CliError> {
    let (at_ms, version) = match &args.at {
        Some(At::Time(ms)) => (Some(*ms), None),
        Some(At::Version(version)) => (None, Some(version.clone())),
        None => (None, None),
    };
    let to = args.to.as_deref().map(paths::absolute).transpose()?;
    let request = RestoreRequest {
        path: PathArg::from_path(&paths::absolute_deleted(&args.path)?),
        at_ms,
        version,
        to: to.as_deref().map(PathArg::from_path),
        deleted: args.deleted,
    };
    let asked = context.client.post("/v1/restore", &request);
    let report: RestoreReport = progress::shown(&context.client, "restoring", asked).await?;
    context.output.show(&report, restore_text)?;
    if report.missing.is_empty() {
        return Ok(());
    }
    if !context.output.is_json() {
        for missing in report.missing.iter().take(PATHS_SHOWN) {
            context.output.note(&missing_text(missing));
        }
        let files = count(report.missing.len() as u64, "file");
        let hint = "`pacsync log PATH` says who may have a version";
        context.output.note(&format!(
            "pacsync: {files} could not be brought back\nhint: {hint}"
        ));
    }
    Err(CliError::Said(ErrorKind::Failed))
}

fn missing_text(missing: &Unrestored) -> String {
    let path = visible(&missing.path.path);
    let names: Vec<String> = missing.devices.iter().map(|d| visible(&d.name)).collect();
    if names.is_empty() {
        return format!("{path}: its content is not kept on any device");
    }
    format!(
        "{path}: its content is not here, perhaps on {}",
        names.join(", ")
    )
}

fn restore_text(report: &RestoreReport) -> String {
    let mut lines = vec![];
    for restored in report.restored.iter().take(PATHS_SHOWN) {
        let slash = if restored.kind == EntryKind::Dir {
            "/"
        } else {
            ""
        };
        let path = format!("{}{slash}", visible(&restored.path.path));
        let version = match &restored.version {
            Some(version) => format!(" as of version {version}"),
            None => String::new(),
        };
        lines.push(match &report.to {
            Some(to) => format!("{path}{version}: written to {}", visible(&to.path)),
            None if restored.on_disk => format!("{path}{version}: restored"),
            None => format!("{path}{version}: restored, not on this disk yet"),
        });
    }
    let more = report.restored.len().saturating_sub(PATHS_SHOWN);
    if more > 0 {
        lines.push(format!("and {} more", count(more as u64, "path")));
    }
    lines.join("\n")
}

pub(crate) async fn undo(context: &Context) -> Result<(), CliError> {
    let asked = context.client.post("/v1/undo", &());
    let report: UndoReport = progress::shown(&context.client, "undoing", asked).await?;
    context.output.show(&report, undo_text)?;
    if report.stayed.is_empty() && report.missing.is_empty() {
        return Ok(());
    }
    if !context.output.is_json() {
        for missing in report.missing.iter().take(PATHS_SHOWN) {
            context.output.note(&missing_text(missing));
        }
        let hint = "`pacsync log PATH` lists the versions, `pacsync restore PATH --at VERSION` \
                    brings one back";
        context.output.note(&format!("hint: {hint}"));
    }
    Err(CliError::Said(ErrorKind::NeedsUser))
}

fn undo_text(report: &UndoReport) -> String {
    let device = visible(&report.device.name);
    let time = clock_time(report.time_ms).unwrap_or_else(|| "?".into());
    let what = match report.what {
        UndoneWhat::Batch => format!("what {device} changed, here since {time}"),
        UndoneWhat::Restore => format!("the restore of {time}"),
    };
    let space = visible(&report.space);
    let mut lines = vec![format!("taking back {what}, in {space}")];
    for undone in report.undone.iter().take(PATHS_SHOWN) {
        let how = match undone.what {
            UndoneKind::Content => "has its earlier content again",
            UndoneKind::BroughtBack => "is back",
            UndoneKind::Deleted => "was new, and is deleted",
            UndoneKind::Moved => "is where it was",
            UndoneKind::Mode => "has its earlier permissions again",
        };
        let later = if undone.on_disk {
            ""
        } else {
            ", not on this disk yet"
        };
        lines.push(format!("{}: {how}{later}", visible(&undone.path.path)));
    }
    let more = report.undone.len().saturating_sub(PATHS_SHOWN);
    if more > 0 {
        lines.push(format!("and {} more", count(more as u64, "path")));
    }
    // What stays is for the user: all of it.
    for stayed in &report.stayed {
        let why = match stayed.why {
            StayReason::Changed => "it was changed since",
            StayReason::Occupied => "something else stands where it was, or in it",
            StayReason::Conflict => "it was in conflict before",
            StayReason::Forgotten => "what was there before is not known any more",
        };
        lines.push(format!("{} stays: {why}", visible(&stayed.path.path)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        let now: DateTime = "2026-05-10T12:00:00".parse().expect("a time");
        now.to_zoned(jiff::tz::TimeZone::UTC).expect("exists")
    }

    fn time_of(text: &str) -> String {
        match parse_at(text, &now()) {
            Ok(At::Time(ms)) => Timestamp::from_millisecond(ms as i64)
                .expect("in range")
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, time) in [
            ("2026-05-01 14:30", "2026-05-01 14:30:00"),
            ("2026-05-01T14:30:05", "2026-05-01 14:30:05"),
            ("2026-05-01T14:30:05Z", "2026-05-01 14:30:05"),
            ("2026-05-01T14:30:05+02:00", "2026-05-01 12:30:05"),
            ("2026-05-01", "2026-05-01 23:59:59"),
            ("yesterday", "2026-05-09 23:59:59"),
            ("now", "2026-05-10 12:00:00"),
            ("08:15", "2026-05-10 08:15:00"),
            ("2 days ago", "2026-05-08 12:00:00"),
            ("1 hour ago", "2026-05-10 11:00:00"),
            ("90 minutes ago", "2026-05-10 10:30:00"),
            ("1 month ago", "2026-04-10 12:00:00"),
            ("-2 days", "2026-05-08 12:00:00"),
        ] {
            assert_eq!(time_of(text), time, "{text}");
        }
    }

    #[test]
    fn ids_are_versions_and_nonsense_is_refused() {
        for id in ["abcd", "2222", "z3y4x5w6"] {
            assert_eq!(parse_at(id, &now()), Ok(At::Version(id.into())));
        }
        for bad in [
            "",
            "abc",
            "ABCD",
            "1900",
            "soon, I hope",
            "2026-13-01",
            "2026-05-01 25:00",
            "2 days",
            "in 2 days",
            "2 fortnights ago",
            "1969-01-01 00:00",
            "../x",
        ] {
            assert!(parse_at(bad, &now()).is_err(), "{bad}");
        }
    }
}

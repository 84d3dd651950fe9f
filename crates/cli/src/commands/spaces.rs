//! `space create`, `attach`, `detach`, `ls`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pacsync_daemon::control::api::{
    KeepFor, KeepReport, KeepRequest, PathArg, SpaceAtRequest, SpaceList, SpaceReport,
    SpaceRequest, SpaceStatus,
};

use super::{Context, status};
use crate::error::CliError;
use crate::text::{count, size, table, visible};
use crate::{paths, progress};

#[derive(Debug, Subcommand)]
pub(crate) enum SpaceCommand {
    /// Make a space of a whole directory
    Create(SpaceAtArgs),
    /// Give a space of the pac a directory on this device
    Attach(SpaceAtArgs),
    /// Stop keeping a space in a directory of this device; deletes no file
    Detach(SpaceArgs),
    /// List the spaces of the pac
    Ls,
    /// Show or set how long earlier versions and deleted files of a space are kept
    Keep(SpaceKeepArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SpaceAtArgs {
    /// Name of the space
    name: String,

    /// The directory that becomes its root
    #[arg(long, value_name = "DIR")]
    at: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SpaceArgs {
    /// Name of the space
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct SpaceKeepArgs {
    /// Name of the space
    #[arg(default_value = "home")]
    name: String,

    /// Texts of up to 1 MiB: `forever`, or days as in 90d
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true)]
    text: Option<KeepFor>,

    /// All else: `forever`, or days as in 30d
    #[arg(long, value_name = "LENGTH", allow_hyphen_values = true)]
    rest: Option<KeepFor>,

    /// How much of a device's disk all else may take, in percent: the oldest goes first
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    disk: Option<u8>,
}

pub(crate) async fn space(context: &Context, command: &SpaceCommand) -> Result<(), CliError> {
    match command {
        SpaceCommand::Create(args) => place(context, args, "/v1/spaces", "created").await,
        SpaceCommand::Attach(args) => place(context, args, "/v1/spaces/attach", "attached").await,
        SpaceCommand::Detach(args) => {
            let request = SpaceRequest {
                name: args.name.clone(),
            };
            let report: SpaceReport = context.client.post("/v1/spaces/detach", &request).await?;
            context.output.show(&report, |report| {
                format!(
                    "detached {}; the files stay where they are",
                    visible(&report.space.name)
                )
            })
        }
        SpaceCommand::Keep(args) => keep(context, args).await,
        SpaceCommand::Ls => {
            let list: SpaceList = context.client.get("/v1/spaces").await?;
            context.output.show(&list, |list| {
                let rows: Vec<Vec<String>> = list.spaces.iter().map(status::space).collect();
                table("", &rows)
            })
        }
    }
}

async fn keep(context: &Context, args: &SpaceKeepArgs) -> Result<(), CliError> {
    let request = KeepRequest {
        name: args.name.clone(),
        text: args.text.map(|length| length.to_string()),
        rest: args.rest.map(|length| length.to_string()),
        percent: args.disk,
    };
    let report: KeepReport = context.client.post("/v1/spaces/keep", &request).await?;
    context.output.show(&report, |report| {
        let words = |length: &str| match length {
            "forever" => "for ever".to_owned(),
            days => match days.trim_end_matches('d').parse() {
                Ok(days) => count(days, "day"),
                Err(_) => days.to_owned(),
            },
        };
        let rows = [
            ("texts up to 1 MiB", words(&report.text)),
            (
                "all else",
                format!(
                    "{}, at most {} % of a disk",
                    words(&report.rest),
                    report.percent
                ),
            ),
            ("kept here, of all spaces", size(report.bytes)),
        ];
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .map(|(what, how)| vec![what.to_owned(), how])
            .collect();
        format!(
            "{} keeps what nothing shows any more\n{}",
            visible(&report.space),
            table("  ", &rows)
        )
    })
}

async fn place(
    context: &Context,
    args: &SpaceAtArgs,
    path: &str,
    done: &str,
) -> Result<(), CliError> {
    let at = PathArg::from_path(&paths::absolute(&args.at)?);
    let request = SpaceAtRequest {
        name: args.name.clone(),
        at,
    };
    let asked = context.client.post(path, &request);
    let report: SpaceReport = progress::shown(&context.client, "looking at files", asked).await?;
    context
        .output
        .show(&report, |report| to_text(&report.space, done))
}

fn to_text(space: &SpaceStatus, done: &str) -> String {
    let root = space
        .root
        .as_ref()
        .map(|root| visible(&root.root))
        .unwrap_or_default();
    format!(
        "{done} {} at {root}: {}, {}",
        visible(&space.name),
        count(space.files, "file"),
        size(space.bytes)
    )
}

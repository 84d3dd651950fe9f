//! `deletes`.

use clap::Args;
use pacsync_daemon::control::DeletesAction;
use pacsync_daemon::control::api::{DeletesReport, DeletesRequest, HeldDeletes, HeldDirection};

use super::Context;
use crate::error::CliError;
use crate::text::{count, visible};

/// Paths that are listed for each space.
const PATHS_SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct DeletesArgs {
    /// Let the deletes happen
    #[arg(long, conflicts_with = "restore")]
    apply: bool,

    /// Bring back what would have been deleted
    #[arg(long)]
    restore: bool,

    /// Only those of this space
    space: Option<String>,
}

pub(crate) async fn deletes(context: &Context, args: &DeletesArgs) -> Result<(), CliError> {
    let action = match (args.apply, args.restore) {
        (true, _) => DeletesAction::Apply,
        (_, true) => DeletesAction::Restore,
        _ => DeletesAction::List,
    };
    let request = DeletesRequest {
        space: args.space.clone(),
        action,
    };
    let report: DeletesReport = context.client.post("/v1/deletes", &request).await?;
    context.output.show(&report, to_text)
}

fn to_text(report: &DeletesReport) -> String {
    if report.held.is_empty() {
        return "no deletes are held".into();
    }
    let verb = match report.action {
        DeletesAction::List => "held",
        DeletesAction::Apply => "applied",
        DeletesAction::Restore => "restored",
    };
    let mut text: String = report
        .held
        .iter()
        .map(|held| of_space(held, verb))
        .collect();
    if report.action == DeletesAction::List {
        text.push_str("settle them with `pacsync deletes --apply` or `pacsync deletes --restore`");
    }
    text
}

fn of_space(held: &HeldDeletes, verb: &str) -> String {
    let direction = match held.direction {
        HeldDirection::ToPeers => "gone from this disk",
        HeldDirection::ToDisk => "deleted on another device",
    };
    let mut text = format!(
        "{}: {} {verb}, {direction}: {}\n",
        visible(&held.space),
        count(held.count, "delete"),
        visible(&held.why)
    );
    for path in held.paths.iter().take(PATHS_SHOWN) {
        text.push_str(&format!("  {}\n", visible(&path.path)));
    }
    let shown = u64::try_from(held.paths.len().min(PATHS_SHOWN)).unwrap_or(u64::MAX);
    let more = held.count.saturating_sub(shown);
    if more > 0 {
        text.push_str(&format!("  and {more} more\n"));
    }
    text
}

//! `status`.

use pacsync_daemon::control::api::{PeerStatus, SpaceStatus, Status, Transfer};

use super::Context;
use crate::error::CliError;
use crate::text::{count, duration, short, size, table, visible};

/// Transfers that are listed by name.
const TRANSFERS_SHOWN: usize = 10;

pub(crate) async fn status(context: &Context) -> Result<(), CliError> {
    let status: Status = context.client.get("/v1/status").await?;
    context.output.show(&status, to_text)
}

fn to_text(status: &Status) -> String {
    let mut text = format!(
        "{} ({}), pac {}, pid {}, up for {}\n{}\n",
        visible(&status.device.name),
        short(&status.device.id),
        short(&status.pac),
        status.pid,
        duration(status.uptime_ms / 1000),
        summary(status),
    );
    section(&mut text, "devices", status.peers.iter().map(peer));
    section(&mut text, "spaces", status.spaces.iter().map(space));
    let transfers = status.spaces.iter().flat_map(|space| &space.transfers);
    section(
        &mut text,
        "in flight",
        transfers.take(TRANSFERS_SHOWN).map(transfer),
    );
    section(
        &mut text,
        "problems",
        status
            .problems
            .iter()
            .map(|problem| vec![problem.path.path.clone(), problem.what.clone()]),
    );
    section(
        &mut text,
        "noted",
        status.notices.iter().map(|notice| {
            let paths: Vec<&str> = notice.paths.iter().map(|path| path.path.as_str()).collect();
            vec![notice.what.clone(), paths.join(", ")]
        }),
    );
    section(
        &mut text,
        "needs you",
        status
            .needs_user
            .iter()
            .map(|need| vec![need.what.clone(), need.command.clone()]),
    );
    text
}

fn summary(status: &Status) -> String {
    let connected = status.peers.iter().filter(|peer| peer.connected).count();
    let connected = count(
        u64::try_from(connected).unwrap_or(u64::MAX),
        "connected device",
    );
    if status.in_sync {
        return match connected.strip_prefix("0 ") {
            Some(_) => "in sync; the pac has no other device yet".into(),
            None => format!("in sync with {connected}"),
        };
    }
    let pending: u64 = status.spaces.iter().map(|space| space.pending).sum();
    if pending > 0 {
        format!(
            "not in sync: {} to write, {connected}",
            count(pending, "change")
        )
    } else if let Some(count_of) = in_the_way(status) {
        format!("not in sync: {count_of}, {connected}")
    } else {
        format!("not in sync: {connected}")
    }
}

/// How many problems stand in the way, if any do.
fn in_the_way(status: &Status) -> Option<String> {
    let problems = status.problems.iter().filter(|problem| problem.in_the_way);
    let number = u64::try_from(problems.count()).unwrap_or(u64::MAX);
    (number > 0).then(|| count(number, "problem"))
}

fn section(text: &mut String, title: &str, rows: impl Iterator<Item = Vec<String>>) {
    let rows: Vec<Vec<String>> = rows.collect();
    if !rows.is_empty() {
        text.push_str(&format!("\n{title}\n{}", table("  ", &rows)));
    }
}

fn peer(peer: &PeerStatus) -> Vec<String> {
    let state = match (peer.connected, peer.in_sync) {
        (true, true) => "connected, in sync",
        (true, false) => "connected, not in sync",
        (false, true) => "away, in sync when last seen",
        (false, false) => "away",
    };
    let address = peer.address.map(|address| address.to_string());
    vec![
        peer.name.clone(),
        short(&peer.id),
        state.into(),
        address.unwrap_or_default(),
    ]
}

/// A line of a table of spaces.
pub(super) fn space(space: &SpaceStatus) -> Vec<String> {
    let mut state = space.state.as_str().to_owned();
    let more = [
        (space.pending, "pending"),
        (space.conflicts, "in conflict"),
        (space.held_deletes, "held deletes"),
    ];
    for (number, what) in more.into_iter().filter(|(number, _)| *number > 0) {
        state.push_str(&format!(", {number} {what}"));
    }
    let root = space
        .root
        .as_ref()
        .map_or_else(|| "-".to_owned(), |root| root.root.clone());
    vec![
        space.name.clone(),
        root,
        count(space.files, "file"),
        size(space.bytes),
        state,
    ]
}

fn transfer(transfer: &Transfer) -> Vec<String> {
    let done = format!(
        "{} of {}",
        size(transfer.bytes_done),
        size(transfer.bytes_total)
    );
    vec![transfer.path.path.clone(), done]
}

#[cfg(test)]
mod tests {
    use pacsync_daemon::control::api::{
        DeviceRef, NeedsUser, Problem, SpaceState, TextPath, TextRoot,
    };

    use super::*;

    fn sample() -> Status {
        Status {
            version: "1".into(),
            pid: 42,
            uptime_ms: 5_000,
            device: DeviceRef {
                id: "abcdefghijk".into(),
                name: "laptop".into(),
            },
            pac: "zyxwvutsrq".into(),
            in_sync: false,
            listen: vec![],
            peers: vec![PeerStatus {
                id: "bbbbbbbbbb".into(),
                name: "server".into(),
                connected: true,
                address: "10.0.0.1:4000".parse().ok(),
                in_sync: false,
                received: true,
                last_seen_ms: None,
            }],
            spaces: vec![SpaceStatus {
                id: "s".into(),
                name: "home".into(),
                root: Some(TextRoot::from_bytes(b"/home/me")),
                attached: true,
                state: SpaceState::Applying,
                files: 1200,
                bytes: 1 << 20,
                pending: 3,
                transfers: vec![],
                conflicts: 1,
                held_deletes: 0,
            }],
            conflicts: 1,
            held_deletes: 0,
            problems: vec![Problem {
                path: TextPath::from_bytes(b"/home/me/a\nb"),
                what: "permission denied".into(),
                in_the_way: true,
            }],
            needs_user: vec![NeedsUser {
                what: "x".into(),
                command: "pacsync deletes".into(),
            }],
            notices: vec![],
            hold_back: vec![],
            forks: vec![],
        }
    }

    #[test]
    fn status_reads_from_the_device_down_to_what_needs_you() {
        let text = to_text(&sample());
        let expected = "\
laptop (abcdefgh), pac zyxwvuts, pid 42, up for 5 s
not in sync: 3 changes to write, 1 connected device

devices
  server  bbbbbbbb  connected, not in sync  10.0.0.1:4000

spaces
  home  /home/me  1,200 files  1.0 MiB  applying, 3 pending, 1 in conflict

problems
  /home/me/a\\nb  permission denied

needs you
  x  pacsync deletes
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_single_device_is_told_so() {
        let status = Status {
            in_sync: true,
            peers: vec![],
            ..sample()
        };
        assert_eq!(summary(&status), "in sync; the pac has no other device yet");
    }
}

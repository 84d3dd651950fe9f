//! The device that types the code.

use std::net::SocketAddr;
use std::time::Duration;

use pacsync_daemon::control::api::{DeviceRef, SpaceState, SpaceStatus, Status};
use pacsync_protocol::pairing::Peer;
use serde::Serialize;

use super::{Asking, ask_aside};
use crate::client::Client;
use crate::commands::{Context, up, wait_for};
use crate::error::CliError;
use crate::local::{self, StartOptions};
use crate::text::{short, visible};

/// How long the pac may take to say what it has.
const RECEIVE_MAX: Duration = Duration::from_secs(15);
/// Time between two looks at whether it has.
const RECEIVE_TICK: Duration = Duration::from_millis(25);

/// What joining prints as JSON.
#[derive(Debug, Serialize)]
struct JoinReport {
    joined: bool,
    pac: String,
    device: DeviceRef,
    pid: u32,
    listen: Vec<SocketAddr>,
    /// Whether all that the pac has said of itself has come; if not, it comes by itself.
    received: bool,
    /// Names of the pac's spaces, as far as they are known.
    spaces: Vec<String>,
}

pub(super) fn join(
    context: &Context,
    code: &str,
    address: Option<String>,
    options: &StartOptions,
    asking: Asking,
) -> Result<(), CliError> {
    let output = context.output;
    let confirm = async |host: Peer| match asking {
        Asking::Assent => true,
        Asking::Ask => ask_aside(output, question(&host)).await.unwrap_or(false),
    };
    local::join(&context.home, options, code, address, confirm)?;
    up::start_daemon(context)?;
    let (status, received) = wait_for(received(&context.client))?;
    let report = JoinReport {
        joined: true,
        pac: status.pac,
        device: status.device,
        pid: status.pid,
        listen: status.listen,
        received,
        spaces: status.spaces.into_iter().map(|space| space.name).collect(),
    };
    output.show(&report, |report| {
        let mut text = format!(
            "joined pac {} as {}; pacsync runs (pid {})",
            short(&report.pac),
            visible(&report.device.name),
            report.pid
        );
        if !report.received {
            text.push_str(
                "\nwhat the pac has said of itself has not all come yet: `pacsync status` and \
                 `pacsync space ls` fill up by themselves",
            );
        }
        text
    })
}

/// Waits until the pac is known here: its spaces, their names and what they hold. Gives up
/// after [`RECEIVE_MAX`], since the rest comes by itself.
async fn received(client: &Client) -> Result<(Status, bool), CliError> {
    let deadline = tokio::time::Instant::now() + RECEIVE_MAX;
    loop {
        let status: Status = client.get("/v1/status").await?;
        let joining = |space: &SpaceStatus| space.state == SpaceState::Joining;
        let received =
            status.peers.iter().any(|peer| peer.received) && !status.spaces.iter().any(joining);
        if received || tokio::time::Instant::now() >= deadline {
            return Ok((status, received));
        }
        tokio::time::sleep(RECEIVE_TICK).await;
    }
}

fn question(host: &Peer) -> String {
    format!(
        "Join the pac of {} ({}) as {}?",
        visible(host.name.as_str()),
        host.device.id.short(),
        host.role.as_str()
    )
}

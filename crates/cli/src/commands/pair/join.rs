//! The device that types the code.

use std::net::SocketAddr;

use pacsync_daemon::control::api::DeviceRef;
use pacsync_protocol::pairing::Peer;
use serde::Serialize;

use super::{Asking, ask_aside};
use crate::commands::{Context, up};
use crate::error::CliError;
use crate::local::{self, StartOptions};
use crate::text::{short, visible};

/// What joining prints as JSON.
#[derive(Debug, Serialize)]
struct JoinReport {
    joined: bool,
    pac: String,
    device: DeviceRef,
    pid: u32,
    listen: Vec<SocketAddr>,
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
    let status = up::start_daemon(context)?;
    let report = JoinReport {
        joined: true,
        pac: status.pac,
        device: status.device,
        pid: status.pid,
        listen: status.listen,
    };
    output.show(&report, |report| {
        format!(
            "joined pac {} as {}; pacsync runs (pid {})",
            short(&report.pac),
            visible(&report.device.name),
            report.pid
        )
    })
}

fn question(host: &Peer) -> String {
    format!(
        "Join the pac of {} ({}) as {}?",
        visible(host.name.as_str()),
        host.device.id.short(),
        host.role.as_str()
    )
}

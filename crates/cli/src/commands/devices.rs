//! `devices`, `connect`.

use clap::Args;
use pacsync_daemon::control::api::{ConnectReport, ConnectRequest, DeviceInfo, DeviceList};

use super::Context;
use crate::error::CliError;
use crate::text::{short, table, visible};

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Where another device of the pac listens
    #[arg(value_name = "HOST:PORT", value_parser = host_port)]
    address: String,
}

/// Reads `HOST:PORT`; an IPv6 address stands in brackets.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    let fits = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && !bare_v6 && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if fits {
        Ok(text.to_owned())
    } else {
        Err("an address is HOST:PORT, e.g. 192.168.1.5:4711 or [fe80::1]:4711".into())
    }
}

pub(crate) async fn devices(context: &Context) -> Result<(), CliError> {
    let list: DeviceList = context.client.get("/v1/devices").await?;
    context.output.show(&list, |list| {
        let rows: Vec<Vec<String>> = list.devices.iter().map(row).collect();
        table("", &rows)
    })
}

fn row(device: &DeviceInfo) -> Vec<String> {
    let state = match (device.this, device.connected) {
        (true, _) => "this device",
        (false, true) => "connected",
        (false, false) => "away",
    };
    let address = device
        .address
        .map(|address| address.to_string())
        .unwrap_or_default();
    let role = device.role.as_str().to_owned();
    vec![
        device.name.clone(),
        short(&device.id),
        role,
        state.into(),
        address,
    ]
}

pub(crate) async fn connect(context: &Context, args: &ConnectArgs) -> Result<(), CliError> {
    let request = ConnectRequest {
        address: args.address.clone(),
    };
    let report: ConnectReport = context.client.post("/v1/connect", &request).await?;
    context.output.show(&report, |report| {
        format!(
            "connected to {} at {}",
            visible(&report.device.name),
            report.address
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["h:1", "10.0.0.1:4711", "[::1]:65535", "my.host:80"] {
            assert!(host_port(good).is_ok(), "{good}");
        }
        for bad in ["", "h", ":1", "h:", "h:0", "h:65536", "::1", "fe80::1:4711"] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
    }
}

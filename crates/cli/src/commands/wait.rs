//! `wait`.

use std::time::Duration;

use clap::Args;
use pacsync_daemon::control::api::{WaitReport, WaitRequest};

use super::Context;
use crate::error::CliError;
use crate::progress;
use crate::text::visible;

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Give up after this time, with exit code 5; never by default
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    timeout: Option<Duration>,

    /// Wait for this device only: its name or the beginning of its id
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a time is a number of seconds, e.g. 30 or 0.5".into())
}

pub(crate) async fn wait(context: &Context, args: &WaitArgs) -> Result<(), CliError> {
    let timeout = args
        .timeout
        .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let request = WaitRequest {
        timeout_ms: timeout,
        device: args.device.clone(),
    };
    let asked = context.client.post("/v1/wait", &request);
    let report: WaitReport = progress::shown(&context.client, "waiting", asked).await?;
    context.output.show(&report, |report| {
        let names: Vec<String> = report
            .devices
            .iter()
            .map(|device| visible(&device.name))
            .collect();
        match names.as_slice() {
            [] => "in sync; the pac has no other device yet".into(),
            names => format!("in sync with {}", names.join(", ")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds() {
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "-1", "soon", "NaN", "inf", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}

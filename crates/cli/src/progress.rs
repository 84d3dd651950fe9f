//! How far long work is, on a terminal and nowhere else.

use std::future::Future;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget};
use pacsync_daemon::control::api::{Event, EventKind};

use crate::client::{Client, EventStream};
use crate::error::CliError;
use crate::text;

const TICK: Duration = Duration::from_millis(120);

/// Does some work of the daemon and shows on stderr how far it is.
pub(crate) async fn shown<T>(
    client: &Client,
    what: &str,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    // Without events there is still the work; its own error says what is wrong.
    let Ok(mut events) = client.get_stream("/v1/events").await else {
        return work.await;
    };
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(TICK);
    let result = tokio::select! {
        result = work => result,
        never = follow(&mut events, &bar) => match never {},
    };
    bar.finish_and_clear();
    result
}

/// Shows events as they come. Once there are no more, waits for ever.
async fn follow(events: &mut EventStream, bar: &ProgressBar) -> std::convert::Infallible {
    while let Ok(Some(event)) = events.next::<Event>().await {
        if let Some(message) = message(&event.kind) {
            bar.set_message(message);
        }
    }
    std::future::pending().await
}

fn message(kind: &EventKind) -> Option<String> {
    let EventKind::Progress {
        space,
        phase,
        done,
        total,
        bytes_done,
        bytes_total,
    } = kind
    else {
        return None;
    };
    let mut message = format!("{} {phase}", text::visible(space));
    match total {
        Some(total) => message.push_str(&format!(", {done} of {total}")),
        None if *done > 0 => message.push_str(&format!(", {done}")),
        None => {}
    }
    match bytes_total {
        Some(total) => message.push_str(&format!(
            ", {} of {}",
            text::size(*bytes_done),
            text::size(*total)
        )),
        None if *bytes_done > 0 => message.push_str(&format!(", {}", text::size(*bytes_done))),
        None => {}
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_shows_what_is_known() {
        let event = |total, bytes_total| EventKind::Progress {
            space: "home".into(),
            phase: "scanning".into(),
            done: 5,
            total,
            bytes_done: 2048,
            bytes_total,
        };
        assert_eq!(
            message(&event(None, None)).as_deref(),
            Some("home scanning, 5, 2.0 KiB")
        );
        assert_eq!(
            message(&event(Some(9), Some(4096))).as_deref(),
            Some("home scanning, 5 of 9, 2.0 KiB of 4.0 KiB")
        );
        assert_eq!(message(&EventKind::Stopping), None);
    }
}

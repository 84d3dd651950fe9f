//! A pairing as a stream of events, cancelled when its client goes away.

use std::sync::atomic::Ordering;

use futures::stream::{self, Stream};
use tokio::sync::{mpsc, oneshot};

use super::api::{PairEvent, PairRequest};
use super::command::{Command, CommandError, CoreHandle, PairId};
use super::server::App;

/// More than a pairing ever has: a code, an attempt, an end.
const EVENTS_LEN: usize = 16;

/// Starts a pairing. The stream ends with its last event; dropped before that,
/// it cancels the pairing.
///
/// # Errors
/// The core's, e.g. that this device may not let others in.
pub(super) async fn start(
    app: &App,
    request: PairRequest,
) -> Result<impl Stream<Item = PairEvent> + Send + use<>, CommandError> {
    let pair = PairId(app.next_pair.fetch_add(1, Ordering::Relaxed));
    let (sender, events) = mpsc::channel(EVENTS_LEN);
    // Armed before the core knows of the pairing: this future may be dropped while it waits.
    let mut run = Run {
        events,
        pair,
        core: app.core.clone(),
        over: false,
    };
    let started = app
        .core
        .ask(|reply| Command::PairStart {
            pair,
            role: request.role,
            events: sender,
            reply,
        })
        .await;
    if let Err(error) = started {
        run.over = true;
        return Err(error);
    }
    let shutdown = app.shutdown.clone();
    Ok(stream::unfold(
        (run, shutdown),
        |(mut run, shutdown)| async move {
            if run.over {
                return None;
            }
            let event = tokio::select! {
                biased;
                event = run.events.recv() => event?,
                () = shutdown.cancelled() => return None,
            };
            run.over = event.is_last();
            Some((event, (run, shutdown)))
        },
    ))
}

struct Run {
    events: mpsc::Receiver<PairEvent>,
    pair: PairId,
    core: CoreHandle,
    over: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.over {
            let (reply, _) = oneshot::channel();
            self.core.tell(Command::PairCancel {
                pair: self.pair,
                reply,
            });
        }
    }
}

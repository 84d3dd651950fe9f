//! The one stream of a pairing connection.

use std::pin::Pin;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use pacsync_protocol::pairing::{EXPORTER_LABEL, Exporter, FRAME_LEN_MAX};
use quinn::{ConnectionError, RecvStream, SendStream, VarInt};
use tokio::time::Instant;

use crate::net::{self, CloseReason, FrameError, FrameReader, write_frame};

/// Closes the connection of a joiner that is not heard: the number of `CloseCode::Refused`.
pub(super) const TURNED_AWAY: VarInt = VarInt::from_u32(3);
/// How long the last words may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long a peer may leave a frame unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Frames both ways. Reading is cancel-safe, writing is not.
pub(super) struct Link {
    frames: Pin<Box<dyn Stream<Item = Result<Vec<u8>, FrameError>> + Send>>,
    send: SendStream,
}

impl Link {
    /// Takes a stream on which the peer may send frames of at most `limit` bytes.
    pub(super) fn new(send: SendStream, receive: RecvStream, limit: usize) -> Self {
        let reader = Some(FrameReader::new(receive));
        // The state holds a read under way, so that dropping `next` loses no bytes.
        let frames = stream::unfold(reader, move |reader| async move {
            let mut reader = reader?;
            match reader.read(limit).await {
                Ok(frame) => Some((Ok(frame), Some(reader))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Self {
            frames: Box::pin(frames),
            send,
        }
    }

    /// The next frame. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, FrameError> {
        self.frames.next().await.unwrap_or(Err(FrameError::Closed))
    }

    /// Sends a frame. Not cancel-safe.
    pub(super) async fn send(&mut self, frame: Vec<u8>) -> Result<(), FrameError> {
        tokio::time::timeout(
            WRITE_TIMEOUT,
            write_frame(&mut self.send, frame, FRAME_LEN_MAX),
        )
        .await
        .unwrap_or(Err(FrameError::Lost(ConnectionError::TimedOut)))
    }

    /// Ends the stream and waits until the peer has all of it, or a short time.
    pub(super) async fn finish(mut self) {
        if self.send.finish().is_ok() {
            let _ = tokio::time::timeout(LAST_WORDS, self.send.stopped()).await;
        }
    }
}

/// What binds a pairing to its connection.
pub(super) fn exporter(connection: &quinn::Connection) -> Exporter {
    let label = std::str::from_utf8(EXPORTER_LABEL).expect("the label is ASCII");
    net::exporter(connection, label)
}

/// Time as the machines count it: starts at a given number of milliseconds and never goes back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    start_ms: u64,
}

impl Clock {
    pub(super) fn starting_at(start_ms: u64) -> Self {
        Self {
            start: Instant::now(),
            start_ms,
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        let passed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.start_ms.saturating_add(passed)
    }

    /// Sleeps until a time of this clock has come.
    pub(super) async fn sleep_until(&self, deadline_ms: u64) {
        // A whole millisecond more: the clock rounds down.
        let wait = deadline_ms.saturating_sub(self.start_ms).saturating_add(1);
        tokio::time::sleep_until(self.start + Duration::from_millis(wait)).await;
    }

    /// As [`Clock::sleep_until`]; for ever without a deadline.
    pub(super) async fn sleep_until_any(&self, deadline_ms: Option<u64>) {
        match deadline_ms {
            Some(deadline_ms) => self.sleep_until(deadline_ms).await,
            None => std::future::pending().await,
        }
    }
}

/// In the words of a user: the peer's own, where it said something.
pub(super) fn explain(error: &FrameError) -> String {
    match error {
        FrameError::Lost(ConnectionError::ApplicationClosed(_)) | FrameError::Ended => {
            "the other device ended the connection".to_owned()
        }
        FrameError::Lost(ConnectionError::TimedOut) => "the other device went silent".to_owned(),
        FrameError::Lost(error) => CloseReason::Lost(error.to_string()).to_string(),
        other => other.to_string(),
    }
}

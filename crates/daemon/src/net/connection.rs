//! An established connection between two devices: two lanes, each with a reader
//! and a writer, and one task that owns them from `Connected` to `Closed`.
//!
//! The accepting side opens the lanes. It does so only once it has verified the
//! client, so a lane's first byte tells the client that the handshake is complete on
//! both sides, and a client that is turned away has neither sent nor received any.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use pacsync_protocol::DeviceId;
use quinn::{ConnectionError, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::endpoint::SendError;
use super::event::{
    CloseCode, CloseReason, ConnId, Credit, Direction, Lane, NetEvent, PeerStanding,
};
use super::frame::{FrameError, FrameReader, write_frame};

/// Bytes that may wait in one lane's send queue. Whoever sends is meant to hold
/// back at [`HIGH_MARK`]; this is the end of patience.
const QUEUE_LIMIT: u64 = 64 << 20;
/// From here on the queue's emptying is reported.
const HIGH_MARK: u64 = 512 << 10;
/// And here it is: enough to keep the line busy until more comes.
const LOW_MARK: u64 = 256 << 10;
/// What a frame costs beyond its payload while it waits, so that empty ones have a bound too.
const FRAME_COST: u32 = 256;
/// A peer's words are shortened to this many characters.
const TEXT_LIMIT: usize = 200;

/// All connections and the way out to the consumer.
pub(super) struct Connections {
    /// Gone after shutdown, so that the consumer sees the end though it holds a handle.
    events: Mutex<Option<mpsc::Sender<NetEvent>>>,
    cancel: CancellationToken,
    next: AtomicU64,
    live: Mutex<BTreeMap<ConnId, Live>>,
}

struct Live {
    connection: quinn::Connection,
    standing: PeerStanding,
    state: LaneSender,
    content: LaneSender,
    closed_by_us: Arc<OnceLock<CloseCode>>,
}

struct LaneSender {
    frames: mpsc::UnboundedSender<Bytes>,
    queue: Arc<Mutex<Queue>>,
}

impl LaneSender {
    fn new() -> (Self, mpsc::UnboundedReceiver<Bytes>) {
        let (frames, queued) = mpsc::unbounded_channel();
        (
            Self {
                frames,
                queue: Arc::default(),
            },
            queued,
        )
    }
}

#[derive(Default)]
struct Queue {
    bytes: u64,
    /// Has passed the high mark and not yet fallen below the low one.
    is_high: bool,
}

/// The two streams of a lane.
pub(super) struct LaneStreams {
    pub(super) send: SendStream,
    pub(super) receive: FrameReader,
}

/// A connection whose handshake and lanes are complete.
pub(super) struct Established {
    pub(super) connection: quinn::Connection,
    pub(super) state: LaneStreams,
    pub(super) content: LaneStreams,
    pub(super) device: DeviceId,
    pub(super) standing: PeerStanding,
    pub(super) address: SocketAddr,
    pub(super) direction: Direction,
}

impl Connections {
    pub(super) fn new(events: mpsc::Sender<NetEvent>, cancel: CancellationToken) -> Self {
        Self {
            events: Mutex::new(Some(events)),
            cancel,
            next: AtomicU64::new(1),
            live: Mutex::default(),
        }
    }

    /// Hands an event over, waiting for room. At shutdown it is dropped if there is none.
    pub(super) async fn emit(&self, event: NetEvent) {
        let events = self
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(events) = events else {
            return;
        };
        tokio::select! {
            biased;
            // A consumer that is gone wants no events.
            _ = events.send(event) => {}
            () = self.cancel.cancelled() => {}
        }
    }

    /// Ends the channel of events.
    pub(super) fn end_events(&self) {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Connections in all, and those to devices that the roster doesn't know.
    pub(super) fn count(&self) -> (usize, usize) {
        let live = self.lock();
        let unknown = live
            .values()
            .filter(|live| live.standing == PeerStanding::Unknown)
            .count();
        (live.len(), unknown)
    }

    /// Queues a frame; returns how many bytes wait in the lane.
    pub(super) fn send(&self, conn: ConnId, lane: Lane, frame: Vec<u8>) -> Result<u64, SendError> {
        let limit = lane.frame_max();
        if frame.len() > limit {
            return Err(SendError::TooLong {
                length: frame.len(),
                limit,
            });
        }
        let live = self.lock();
        let live = live.get(&conn).ok_or(SendError::Closed)?;
        let sender = match lane {
            Lane::State => &live.state,
            Lane::Content => &live.content,
        };
        let mut queue = sender.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = queue.bytes.saturating_add(cost_queued(frame.len()));
        if waiting > QUEUE_LIMIT {
            return Err(SendError::Full {
                waiting: queue.bytes,
            });
        }
        sender
            .frames
            .send(frame.into())
            .map_err(|_| SendError::Closed)?;
        queue.bytes = waiting;
        queue.is_high |= waiting >= HIGH_MARK;
        Ok(waiting)
    }

    /// Closes a connection; frames that still wait are dropped.
    pub(super) fn close(&self, conn: ConnId, code: CloseCode, text: &str) {
        if let Some(live) = self.lock().get(&conn) {
            // The first reason counts.
            let _ = live.closed_by_us.set(code);
            live.connection.close(code.to_var_int(), text.as_bytes());
        }
    }

    /// Owns a connection until it is over.
    pub(super) async fn serve(self: &Arc<Self>, established: Established) {
        let Established {
            connection,
            state,
            content,
            device,
            standing,
            address,
            direction,
        } = established;
        let conn = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
        tracing::debug!(%conn, peer = %device.short(), %address, ?direction, ?standing, "connected");
        let (state_sender, state_queued) = LaneSender::new();
        let (content_sender, content_queued) = LaneSender::new();
        let closed_by_us = Arc::new(OnceLock::new());
        let (state_queue, content_queue) =
            (state_sender.queue.clone(), content_sender.queue.clone());
        let live = Live {
            connection: connection.clone(),
            standing,
            state: state_sender,
            content: content_sender,
            closed_by_us: closed_by_us.clone(),
        };
        // Before the event: the consumer may send at once.
        self.lock().insert(conn, live);
        self.emit(NetEvent::Connected {
            conn,
            device,
            standing,
            address,
            direction,
        })
        .await;
        let mut tasks = JoinSet::new();
        for (lane, streams, queued, queue) in [
            (Lane::State, state, state_queued, state_queue),
            (Lane::Content, content, content_queued, content_queue),
        ] {
            let LaneStreams { send, receive } = streams;
            let (reader, writer) = (self.clone(), self.clone());
            tasks.spawn(async move { reader.read_lane(conn, lane, receive).await });
            tasks.spawn(async move { writer.write_lane(conn, lane, send, queued, &queue).await });
        }

        let close = |code: CloseCode, text: &str| {
            connection.close(code.to_var_int(), text.as_bytes());
        };
        let reason = loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => {
                    close(CloseCode::Done, "going down");
                    break CloseReason::WeClosed(CloseCode::Done);
                }
                error = connection.closed() => {
                    break reason_of(error, closed_by_us.get().copied());
                }
                Some(ended) = tasks.join_next() => match ended {
                    // The connection's end says why.
                    Ok(FrameError::Lost(_) | FrameError::Closed) => {}
                    Ok(fault) => {
                        let text = fault.to_string();
                        close(CloseCode::Violation, &text);
                        break CloseReason::BadPeer(text);
                    }
                    Err(panic) => {
                        tracing::error!(%conn, %panic, "a lane failed");
                        close(CloseCode::Internal, "");
                        break CloseReason::WeClosed(CloseCode::Internal);
                    }
                },
            }
        };
        // Ends the writers: their queues have no other sender.
        self.lock().remove(&conn);
        if matches!(reason, CloseReason::PeerClosed { .. }) {
            // What had arrived before the end still counts.
            self.drain(&mut tasks).await;
        }
        tasks.shutdown().await;
        tracing::debug!(%conn, peer = %device.short(), %reason, "closed");
        self.emit(NetEvent::Closed {
            conn,
            device,
            reason,
        })
        .await;
    }

    async fn drain(&self, tasks: &mut JoinSet<FrameError>) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = async { while tasks.join_next().await.is_some() {} } => {}
        }
    }

    async fn read_lane(&self, conn: ConnId, lane: Lane, mut stream: FrameReader) -> FrameError {
        let budget = lane.receive_budget();
        let room = Arc::new(Semaphore::new(budget as usize));
        loop {
            let length = match stream.read_length(lane.frame_max()).await {
                Ok(length) => length,
                Err(error) => return error,
            };
            let cost = u32::try_from(length)
                .unwrap_or(u32::MAX)
                .saturating_add(FRAME_COST);
            let Ok(permit) = room.clone().acquire_many_owned(cost.min(budget)).await else {
                return FrameError::Closed;
            };
            let bytes = match stream.read_payload(length).await {
                Ok(bytes) => bytes,
                Err(error) => return error,
            };
            let credit = Credit { _permit: permit };
            self.emit(NetEvent::Frame {
                conn,
                lane,
                bytes,
                credit,
            })
            .await;
        }
    }

    async fn write_lane(
        &self,
        conn: ConnId,
        lane: Lane,
        mut stream: SendStream,
        mut queued: mpsc::UnboundedReceiver<Bytes>,
        queue: &Mutex<Queue>,
    ) -> FrameError {
        while let Some(frame) = queued.recv().await {
            let cost = cost_queued(frame.len());
            if let Err(error) = write_frame(&mut stream, frame, lane.frame_max()).await {
                return error;
            }
            let has_drained = {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.bytes = queue.bytes.saturating_sub(cost);
                let has_drained = queue.is_high && queue.bytes <= LOW_MARK;
                queue.is_high &= !has_drained;
                has_drained
            };
            if has_drained {
                self.emit(NetEvent::Drained { conn, lane }).await;
            }
        }
        FrameError::Closed
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ConnId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost_queued(length: usize) -> u64 {
    u64::try_from(length)
        .unwrap_or(u64::MAX)
        .saturating_add(FRAME_COST.into())
}

fn reason_of(error: ConnectionError, closed_by_us: Option<CloseCode>) -> CloseReason {
    match error {
        ConnectionError::LocallyClosed => {
            CloseReason::WeClosed(closed_by_us.unwrap_or(CloseCode::Done))
        }
        ConnectionError::ApplicationClosed(close) => CloseReason::PeerClosed {
            code: CloseCode::from_var_int(close.error_code),
            text: shortened(&close.reason),
        },
        ConnectionError::TransportError(error) => CloseReason::BadPeer(error.to_string()),
        ConnectionError::TimedOut => CloseReason::TimedOut,
        other => CloseReason::Lost(shortened(other.to_string().as_bytes())),
    }
}

/// A peer's text, cut and free of control characters.
pub(super) fn shortened(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control())
        .take(TEXT_LIMIT)
        .collect()
}

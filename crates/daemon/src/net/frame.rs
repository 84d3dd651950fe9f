//! Frames on a stream: a length of four bytes, big endian, then as many bytes of payload.

use bytes::Bytes;
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};

/// What is set aside for a frame before any of it has arrived.
const FIRST_ALLOCATION: usize = 64 << 10;
/// Received packets fetched from the connection in one go.
const BATCH: usize = 32;

/// Why a frame could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The announced length is over the limit; nothing was allocated for it.
    #[error("a frame of {length} bytes, over the limit of {limit}")]
    TooLong {
        /// The announced length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The stream ended, in the middle of a frame or where one was due.
    #[error("the stream has ended")]
    Ended,
    /// The peer reset or stopped the stream.
    #[error("the stream was reset with code {0}")]
    Reset(u64),
    /// The whole connection is gone.
    #[error("the connection is gone: {0}")]
    Lost(ConnectionError),
    /// The stream was closed on this side.
    #[error("the stream is closed here")]
    Closed,
}

impl From<ReadError> for FrameError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code.into_inner()),
            ReadError::ConnectionLost(error) => Self::Lost(error),
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<WriteError> for FrameError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Reset(code.into_inner()),
            WriteError::ConnectionLost(error) => Self::Lost(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

/// Reads frames from a stream. Memory grows with what has arrived, never with
/// what was announced.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    fetched: [Bytes; BATCH],
    /// First of `fetched` that still holds bytes; `BATCH` when none may.
    next: usize,
}

impl FrameReader {
    /// Reads from the stream's present position.
    pub fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            fetched: std::array::from_fn(|_| Bytes::new()),
            next: BATCH,
        }
    }

    /// Reads one frame of at most `limit` bytes. Not cancel-safe.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is of no use afterwards.
    pub async fn read(&mut self, limit: usize) -> Result<Vec<u8>, FrameError> {
        let length = self.read_length(limit).await?;
        self.read_payload(length).await
    }

    /// Reads the length of the next frame; [`FrameReader::read_payload`] must follow. Not cancel-safe.
    pub(super) async fn read_length(&mut self, limit: usize) -> Result<usize, FrameError> {
        let mut header = [0; 4];
        for byte in &mut header {
            *byte = self.read_byte().await?;
        }
        // A length that does not fit the address space is over any limit.
        let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
        if length > limit {
            return Err(FrameError::TooLong { length, limit });
        }
        Ok(length)
    }

    /// Reads `length` bytes. Not cancel-safe.
    pub(super) async fn read_payload(&mut self, length: usize) -> Result<Vec<u8>, FrameError> {
        let mut payload = Vec::with_capacity(length.min(FIRST_ALLOCATION));
        while payload.len() < length {
            let missing = length - payload.len();
            let chunk = self.chunk().await?;
            let taken = chunk.split_to(missing.min(chunk.len()));
            if payload.capacity() - payload.len() < taken.len() {
                // Doubles, but never beyond what was announced.
                payload.reserve_exact(missing.min(payload.len().max(taken.len())));
            }
            payload.extend_from_slice(&taken);
        }
        Ok(payload)
    }

    /// Reads a single byte that stands outside of any frame. Not cancel-safe.
    pub(super) async fn read_byte(&mut self) -> Result<u8, FrameError> {
        let chunk = self.chunk().await?;
        chunk.split_to(1).first().copied().ok_or(FrameError::Ended)
    }

    /// The oldest bytes that have arrived and are not yet read; at least one.
    async fn chunk(&mut self) -> Result<&mut Bytes, FrameError> {
        while self.fetched.get(self.next).is_none_or(Bytes::is_empty) {
            self.next += 1;
            if self.next >= BATCH {
                self.fetched.fill(Bytes::new());
                self.stream
                    .read_chunks(&mut self.fetched)
                    .await?
                    .ok_or(FrameError::Ended)?;
                self.next = 0;
            }
        }
        self.fetched.get_mut(self.next).ok_or(FrameError::Ended)
    }
}

/// Writes one frame. Returns when the connection has taken it, which is before
/// it is sent. Not cancel-safe.
///
/// # Errors
/// [`FrameError`]; `TooLong` for a payload over `limit`.
pub async fn write_frame(
    stream: &mut SendStream,
    payload: impl Into<Bytes>,
    limit: usize,
) -> Result<(), FrameError> {
    let payload = payload.into();
    let length = payload.len();
    let header = match u32::try_from(length) {
        Ok(header) if length <= limit => header,
        _ => return Err(FrameError::TooLong { length, limit }),
    };
    let header = Bytes::copy_from_slice(&header.to_be_bytes());
    stream.write_all_chunks(&mut [header, payload]).await?;
    Ok(())
}

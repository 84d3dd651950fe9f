//! Serves the control API on its socket until told to stop.

use std::future::IntoFuture;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::command::CoreHandle;
use super::routes;
use super::socket::ControlSocket;

/// Time that open requests have to end once the daemon goes down.
const GRACE: Duration = Duration::from_secs(2);

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
#[error("the control socket failed: {0}")]
pub struct ServeError(#[from] io::Error);

/// What every request can reach.
#[derive(Debug, Clone)]
pub(super) struct App {
    pub(super) core: CoreHandle,
    pub(super) shutdown: CancellationToken,
    pub(super) started: Instant,
    pub(super) next_pair: Arc<AtomicU64>,
}

impl App {
    pub(super) fn new(core: CoreHandle, shutdown: CancellationToken) -> Self {
        Self {
            core,
            shutdown,
            started: Instant::now(),
            next_pair: Arc::new(AtomicU64::new(1)),
        }
    }
}

/// Serves until `shutdown` is cancelled, then lets open requests end for two
/// seconds and removes the socket. Runs in a tokio runtime with I/O and time.
///
/// # Errors
/// If the socket cannot be used.
///
/// # Cancel safety
/// Dropping the future ends the server at once and removes the socket.
pub async fn serve(
    socket: ControlSocket,
    core: CoreHandle,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let listener = UnixListener::from_std(socket.listener()?)?;
    let router = routes::router(App::new(core, shutdown.clone()));
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.clone().cancelled_owned())
        .into_future();
    let too_long = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => result?,
        () = too_long => tracing::warn!("a client kept its request open; the server ends without it"),
    }
    drop(socket);
    Ok(())
}

//! The client of the control API: one connection per request, HTTP/1.1 over the Unix socket.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use pacsync_daemon::control::api::{DaemonInfo, ErrorBody};
use pacsync_daemon::control::{CommandError, ErrorKind, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::error::CliError;

/// Longest answer that is read, in bytes.
const ANSWER_LEN_MAX: usize = 256 << 20;
/// Longest line of an event stream, in bytes.
const EVENT_LEN_MAX: usize = 4 << 20;

/// Speaks to the daemon of one home.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    home: PathBuf,
}

impl Client {
    pub(crate) fn new(home: &Path) -> Self {
        Self {
            home: home.to_owned(),
        }
    }

    /// Asks for something.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Asks for something to be done.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, CliError> {
        self.ask(Method::POST, path, body(request)?).await
    }

    /// Asks for a stream of events.
    pub(crate) async fn get_stream(&self, path: &str) -> Result<EventStream, CliError> {
        self.stream(Method::GET, path, Bytes::new()).await
    }

    /// Asks for something to be done that tells how it goes.
    pub(crate) async fn post_stream(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<EventStream, CliError> {
        self.stream(Method::POST, path, body(request)?).await
    }

    /// The running daemon, if one answers.
    pub(crate) async fn daemon(&self) -> Result<Option<DaemonInfo>, CliError> {
        match self.get("/v1/daemon").await {
            Ok(info) => Ok(Some(info)),
            Err(CliError::Told(error)) if error.kind == ErrorKind::NotRunning => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, CliError> {
        let (response, _driver) = self.send(method, path, body).await?;
        let bytes = read_all(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| not_understood(&error.to_string()).into())
    }

    async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<EventStream, CliError> {
        let (response, driver) = self.send(method, path, body).await?;
        Ok(EventStream {
            body: response.into_body(),
            lines: Lines::default(),
            _driver: driver,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Driver), CliError> {
        let stream = socket::connect(&self.home).map_err(|error| self.not_reached(&error))?;
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream))
            .map_err(|error| self.not_reached(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the control connection has ended");
            }
        }));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| not_understood(&error.to_string()))?;
        let response = sender.send_request(request).await.map_err(lost)?;
        if response.status() == StatusCode::OK {
            return Ok((response, driver));
        }
        let status = response.status();
        let bytes = read_all(response).await?;
        Err(match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => body.error.into(),
            Err(_) => not_understood(&format!("status {status}")).into(),
        })
    }

    fn not_reached(&self, error: &io::Error) -> CliError {
        let home = self.home.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                CommandError::new(ErrorKind::NotRunning, format!("no daemon runs for {home}"))
                    .with_hint("start it with `pacsync up`; another home is named with --home DIR")
            }
            _ => CommandError::failed(format!("cannot reach the daemon of {home}: {error}"))
                .with_hint("see `pacsync doctor`"),
        }
        .into()
    }
}

/// Drives a connection as long as its answer is wanted.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream of server-sent events.
#[derive(Debug)]
pub(crate) struct EventStream {
    body: Incoming,
    lines: Lines,
    _driver: Driver,
}

impl EventStream {
    /// The next event; `None` at the end. Cancel-safe.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CliError> {
        loop {
            if let Some(data) = self.lines.next() {
                return serde_json::from_slice(&data)
                    .map(Some)
                    .map_err(|error| not_understood(&error.to_string()).into());
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.lines.push(bytes)?;
                    }
                }
                Some(Err(error)) => return Err(lost(error).into()),
            }
        }
    }
}

/// Cuts a byte stream into the data of events. The daemon writes one line of data per event.
#[derive(Debug, Default)]
struct Lines {
    held: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        if self.held.len().saturating_add(bytes.len()) > EVENT_LEN_MAX {
            return Err(not_understood("an event is too long"));
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.held.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data: ") {
                return Some(data.trim_ascii_end().to_owned());
            }
        }
        None
    }
}

async fn read_all(response: Response<Incoming>) -> Result<Bytes, CliError> {
    Limited::new(response.into_body(), ANSWER_LEN_MAX)
        .collect()
        .await
        .map(|collected| collected.to_bytes())
        .map_err(|error| {
            CommandError::failed(format!("the answer of the daemon broke off: {error}"))
                .with_hint("see whether it still runs with `pacsync status`")
                .into()
        })
}

fn body(request: &impl Serialize) -> Result<Bytes, CliError> {
    serde_json::to_vec(request)
        .map(Bytes::from)
        .map_err(|error| not_understood(&error.to_string()).into())
}

fn lost(error: hyper::Error) -> CommandError {
    CommandError::new(
        ErrorKind::NotRunning,
        format!("the daemon has hung up: {error}"),
    )
    .with_hint("start it again with `pacsync up`; daemon.log in its home says why it ended")
}

fn not_understood(what: &str) -> CommandError {
    CommandError::failed(format!("the daemon's answer is not understood: {what}"))
        .with_hint("is it of another version? restart it with `pacsync down` and `pacsync up`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_from_a_stream_however_it_arrives() {
        let stream = b": hello\n\ndata: {\"a\":1}\n\nid: 3\ndata: {\"b\":2}\r\n\n";
        for step in 1..stream.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for part in stream.chunks(step) {
                lines.push(part).expect("short enough");
                found.extend(std::iter::from_fn(|| lines.next()));
            }
            assert_eq!(
                found,
                [b"{\"a\":1}".to_vec(), b"{\"b\":2}".to_vec()],
                "{step}"
            );
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut lines = Lines::default();
        assert!(lines.push(&vec![b'x'; EVENT_LEN_MAX]).is_ok());
        assert!(lines.push(b"x").is_err());
    }

    #[tokio::test]
    async fn no_daemon_is_an_error_of_its_own() {
        let home = tempfile::tempdir().expect("a directory");
        for home in [home.path().to_owned(), home.path().join("not/there")] {
            let client = Client::new(&home);
            assert!(client.daemon().await.expect("no other error").is_none());
            let error = client
                .get::<DaemonInfo>("/v1/status")
                .await
                .expect_err("none");
            assert_eq!(error.exit_code(), 3);
        }
    }
}

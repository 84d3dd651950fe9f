//! The routes: each turns a request into one command and its answer into JSON.

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;

use super::api::{
    AddReport, ConflictList, ConflictRequest, ConflictsRequest, ConnectReport, ConnectRequest,
    DaemonInfo, DeletesReport, DeletesRequest, DeviceList, DoctorReport, Done, ErrorBody, Event,
    EventKind, ForgetReport, KeepReport, KeepRequest, LS_LIMIT_MAX, Listing, LogReport, LogRequest,
    LsRequest, PairCancelRequest, PairConfirmRequest, PairRequest, PathArg, PathsRequest,
    ResolveReport, ResolveRequest, RestoreReport, RestoreRequest, ScanReport, SpaceAtRequest,
    SpaceList, SpaceReport, SpaceRequest, Status, Stopping, UndoReport, VersionContents,
    WaitReport, WaitRequest,
};
use super::command::{Command, CommandError, RestoreOrder, VersionAt};
use super::pairing;
use super::server::App;

/// Longest body of a request in bytes: a full command line of paths in base64.
const BODY_LEN_MAX: usize = 4 << 20;

const OPENAPI: &str = include_str!("openapi.json");

/// Method, path, handler. Every one is described in `openapi.json`.
fn routes() -> Vec<(&'static str, &'static str, MethodRouter<App>)> {
    vec![
        ("get", "/v1/openapi.json", get(openapi)),
        ("get", "/v1/daemon", get(daemon)),
        ("get", "/v1/status", get(status)),
        ("get", "/v1/devices", get(devices)),
        ("get", "/v1/spaces", get(space_ls)),
        ("get", "/v1/doctor", get(doctor)),
        ("get", "/v1/events", get(events)),
        ("post", "/v1/add", post(add)),
        ("post", "/v1/forget", post(forget)),
        ("post", "/v1/ls", post(ls)),
        ("post", "/v1/log", post(log)),
        ("post", "/v1/restore", post(restore)),
        ("post", "/v1/undo", post(undo)),
        ("post", "/v1/spaces", post(space_create)),
        ("post", "/v1/spaces/attach", post(space_attach)),
        ("post", "/v1/spaces/detach", post(space_detach)),
        ("post", "/v1/spaces/keep", post(space_keep)),
        ("post", "/v1/connect", post(connect)),
        ("post", "/v1/scan", post(scan)),
        ("post", "/v1/wait", post(wait)),
        ("post", "/v1/deletes", post(deletes)),
        ("post", "/v1/conflicts", post(conflicts)),
        ("post", "/v1/conflicts/contents", post(conflict_contents)),
        ("post", "/v1/resolve", post(resolve)),
        ("post", "/v1/pair", post(pair)),
        ("post", "/v1/pair/confirm", post(pair_confirm)),
        ("post", "/v1/pair/cancel", post(pair_cancel)),
        ("post", "/v1/shutdown", post(shutdown)),
    ]
}

pub(super) fn router(app: App) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (_, path, handler)| {
            router.route(path, handler)
        })
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(app)
}

/// The body of a request as JSON; no body at all is an empty object.
struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, app)
            .await
            .map_err(|rejection| Failure {
                status: rejection.status(),
                error: CommandError::usage(format!("cannot read the request: {rejection}")),
            })?;
        let text = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| {
            CommandError::usage(format!("the request does not fit: {error}"))
                .with_hint("GET /v1/openapi.json describes every request")
                .into()
        })
    }
}

/// An error on its way out.
struct Failure {
    status: StatusCode,
    error: CommandError,
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        let status = StatusCode::from_u16(error.kind.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, error }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, axum::Json(ErrorBody { error: self.error })).into_response()
    }
}

/// A success on its way out.
struct Json<T>(T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

type Answer<T> = Result<Json<T>, Failure>;

fn answer<T>(result: Result<T, CommandError>) -> Answer<T> {
    result.map(Json).map_err(Failure::from)
}

fn path(arg: &PathArg) -> Result<PathBuf, Failure> {
    arg.to_absolute()
        .map_err(|error| CommandError::usage(error.to_string()).into())
}

fn paths(args: &[PathArg]) -> Result<Vec<PathBuf>, Failure> {
    args.iter().map(path).collect()
}

fn some_paths(args: &[PathArg]) -> Result<Vec<PathBuf>, Failure> {
    if args.is_empty() {
        return Err(CommandError::usage("no path was given").into());
    }
    paths(args)
}

async fn no_route(request: Request) -> Failure {
    Failure {
        status: StatusCode::NOT_FOUND,
        error: CommandError::usage(format!("there is no {}", request.uri().path()))
            .with_hint("GET /v1/openapi.json lists every route"),
    }
}

async fn no_method(request: Request) -> Failure {
    Failure {
        status: StatusCode::METHOD_NOT_ALLOWED,
        error: CommandError::usage(format!(
            "{} is not how {} is asked",
            request.method(),
            request.uri().path()
        )),
    }
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn daemon(State(app): State<App>) -> Json<DaemonInfo> {
    Json(DaemonInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: u64::try_from(app.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

async fn status(State(app): State<App>) -> Answer<Status> {
    answer(app.core.ask(|reply| Command::Status { reply }).await)
}

async fn devices(State(app): State<App>) -> Answer<DeviceList> {
    answer(app.core.ask(|reply| Command::Devices { reply }).await)
}

async fn space_ls(State(app): State<App>) -> Answer<SpaceList> {
    answer(app.core.ask(|reply| Command::SpaceLs { reply }).await)
}

async fn doctor(State(app): State<App>) -> Answer<DoctorReport> {
    answer(app.core.ask(|reply| Command::Doctor { reply }).await)
}

async fn add(State(app): State<App>, Body(body): Body<PathsRequest>) -> Answer<AddReport> {
    let paths = some_paths(&body.paths)?;
    answer(app.core.ask(|reply| Command::Add { paths, reply }).await)
}

async fn forget(State(app): State<App>, Body(body): Body<PathsRequest>) -> Answer<ForgetReport> {
    let paths = some_paths(&body.paths)?;
    answer(app.core.ask(|reply| Command::Forget { paths, reply }).await)
}

async fn ls(State(app): State<App>, Body(body): Body<LsRequest>) -> Answer<Listing> {
    let path = body.path.as_ref().map(path).transpose()?;
    let after = body
        .after
        .map(|after| after.to_path())
        .transpose()
        .map_err(|error| CommandError::usage(error.to_string()))?;
    let limit = body.limit.unwrap_or(LS_LIMIT_MAX).clamp(1, LS_LIMIT_MAX);
    answer(
        app.core
            .ask(|reply| Command::Ls {
                path,
                after,
                limit,
                reply,
            })
            .await,
    )
}

async fn log(State(app): State<App>, Body(body): Body<LogRequest>) -> Answer<LogReport> {
    let (path, limit) = (path(&body.path)?, body.limit);
    answer(
        app.core
            .ask(|reply| Command::Log { path, limit, reply })
            .await,
    )
}

async fn restore(
    State(app): State<App>,
    Body(body): Body<RestoreRequest>,
) -> Answer<RestoreReport> {
    let at = match (body.at_ms, body.version) {
        (Some(_), Some(_)) => {
            return Err(CommandError::usage("a time or a version, not both").into());
        }
        (Some(ms), None) => Some(VersionAt::Time(ms)),
        (None, Some(version)) if version.is_empty() => {
            return Err(CommandError::usage("the version is empty").into());
        }
        (None, version) => version.map(VersionAt::Version),
    };
    let order = RestoreOrder {
        at,
        to: body.to.as_ref().map(path).transpose()?,
        deleted: body.deleted,
    };
    let path = path(&body.path)?;
    answer(
        app.core
            .ask(|reply| Command::Restore { path, order, reply })
            .await,
    )
}

async fn undo(State(app): State<App>) -> Answer<UndoReport> {
    answer(app.core.ask(|reply| Command::Undo { reply }).await)
}

async fn space_create(
    State(app): State<App>,
    Body(body): Body<SpaceAtRequest>,
) -> Answer<SpaceReport> {
    let (name, at) = (body.name, path(&body.at)?);
    answer(
        app.core
            .ask(|reply| Command::SpaceCreate { name, at, reply })
            .await,
    )
}

async fn space_attach(
    State(app): State<App>,
    Body(body): Body<SpaceAtRequest>,
) -> Answer<SpaceReport> {
    let (name, at) = (body.name, path(&body.at)?);
    answer(
        app.core
            .ask(|reply| Command::SpaceAttach { name, at, reply })
            .await,
    )
}

async fn space_detach(
    State(app): State<App>,
    Body(body): Body<SpaceRequest>,
) -> Answer<SpaceReport> {
    let name = body.name;
    answer(
        app.core
            .ask(|reply| Command::SpaceDetach { name, reply })
            .await,
    )
}

async fn space_keep(
    State(app): State<App>,
    Body(request): Body<KeepRequest>,
) -> Answer<KeepReport> {
    answer(
        app.core
            .ask(|reply| Command::SpaceKeep { request, reply })
            .await,
    )
}

async fn connect(
    State(app): State<App>,
    Body(body): Body<ConnectRequest>,
) -> Answer<ConnectReport> {
    let address = body.address;
    answer(
        app.core
            .ask(|reply| Command::Connect { address, reply })
            .await,
    )
}

async fn scan(State(app): State<App>, Body(body): Body<PathsRequest>) -> Answer<ScanReport> {
    let paths = paths(&body.paths)?;
    answer(app.core.ask(|reply| Command::Scan { paths, reply }).await)
}

async fn wait(State(app): State<App>, Body(body): Body<WaitRequest>) -> Answer<WaitReport> {
    let timeout = body.timeout_ms.map(Duration::from_millis);
    let device = body.device;
    answer(
        app.core
            .ask(|reply| Command::Wait {
                timeout,
                device,
                reply,
            })
            .await,
    )
}

async fn deletes(
    State(app): State<App>,
    Body(body): Body<DeletesRequest>,
) -> Answer<DeletesReport> {
    let DeletesRequest { space, action } = body;
    answer(
        app.core
            .ask(|reply| Command::Deletes {
                space,
                action,
                reply,
            })
            .await,
    )
}

async fn conflicts(
    State(app): State<App>,
    Body(body): Body<ConflictsRequest>,
) -> Answer<ConflictList> {
    let path = body.path.as_ref().map(path).transpose()?;
    answer(
        app.core
            .ask(|reply| Command::Conflicts { path, reply })
            .await,
    )
}

async fn conflict_contents(
    State(app): State<App>,
    Body(body): Body<ConflictRequest>,
) -> Answer<VersionContents> {
    let path = path(&body.path)?;
    answer(
        app.core
            .ask(|reply| Command::ConflictContents { path, reply })
            .await,
    )
}

async fn resolve(
    State(app): State<App>,
    Body(body): Body<ResolveRequest>,
) -> Answer<ResolveReport> {
    let (path, keep) = (path(&body.path)?, body.keep);
    answer(
        app.core
            .ask(|reply| Command::Resolve { path, keep, reply })
            .await,
    )
}

async fn pair_confirm(
    State(app): State<App>,
    Body(body): Body<PairConfirmRequest>,
) -> Answer<Done> {
    let PairConfirmRequest { pair, answer: said } = body;
    let told = app
        .core
        .ask(|reply| Command::PairConfirm {
            pair,
            answer: said,
            reply,
        })
        .await;
    answer(told.map(|()| Done {}))
}

async fn pair_cancel(State(app): State<App>, Body(body): Body<PairCancelRequest>) -> Answer<Done> {
    let pair = body.pair;
    let told = app
        .core
        .ask(|reply| Command::PairCancel { pair, reply })
        .await;
    answer(told.map(|()| Done {}))
}

async fn shutdown(State(app): State<App>) -> Answer<Stopping> {
    answer(app.core.ask(|reply| Command::Shutdown { reply }).await)
}

async fn pair(
    State(app): State<App>,
    Body(body): Body<PairRequest>,
) -> Result<impl IntoResponse, Failure> {
    let events = pairing::start(&app, body).await?;
    Ok(Sse::new(events.map(|event| to_sse(&event))))
}

async fn events(State(app): State<App>) -> Result<impl IntoResponse, Failure> {
    let receiver = app.core.ask(|reply| Command::Subscribe { reply }).await?;
    Ok(Sse::new(
        event_stream(app, receiver).map(|event| to_sse(&event)),
    ))
}

/// Ends when the core has gone or the server goes down, after what was sent before that.
fn event_stream(app: App, receiver: broadcast::Receiver<Event>) -> impl Stream<Item = Event> {
    stream::unfold((app, receiver, 0), |(app, mut receiver, last)| async move {
        let received = tokio::select! {
            biased;
            received = receiver.recv() => received,
            () = app.shutdown.cancelled() => return None,
        };
        let event = match received {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Closed) => return None,
            Err(broadcast::error::RecvError::Lagged(missed)) => Event {
                seq: u64::saturating_add(last, missed),
                at_ms: now_ms(),
                kind: EventKind::Lagged { missed },
            },
        };
        let seq = event.seq;
        Some((event, (app, receiver, seq)))
    })
}

/// For display only.
fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// An event that cannot be written, which would be a mistake in its type, ends the stream.
fn to_sse<T: Serialize>(event: &T) -> Result<sse::Event, axum::Error> {
    sse::Event::default().json_data(event)
}

#[cfg(test)]
mod tests;

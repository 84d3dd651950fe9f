//! The device that shows the code.

use pacsync_daemon::control::api::{Done, PairAnswer, PairConfirmRequest, PairEvent, PairRequest};
use pacsync_daemon::control::{CommandError, PairId};
use pacsync_protocol::grant::Role;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use tokio::sync::oneshot;

use super::{Asking, ask_aside};
use crate::commands::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::text::{duration, short, visible};

pub(super) async fn host(context: &Context, role: Role, asking: Asking) -> Result<(), CliError> {
    let output = context.output;
    let mut events = context
        .client
        .post_stream("/v1/pair", &PairRequest { role })
        .await?;
    let mut pairing: Option<PairId> = None;
    let mut answer: Option<oneshot::Receiver<bool>> = None;
    loop {
        let event = tokio::select! {
            event = events.next::<PairEvent>() => event?,
            said = answered(&mut answer) => {
                confirm(context, pairing, said).await?;
                continue;
            }
        };
        let Some(event) = event else {
            return Err(
                CommandError::failed("the daemon went down in the middle of the pairing")
                    .with_hint("start it with `pacsync up` and pair again")
                    .into(),
            );
        };
        output.show(&event, |event| to_text(event, role, output))?;
        match event {
            PairEvent::Code { pair, .. } => pairing = Some(pair),
            PairEvent::Attempt { name, device } => match asking {
                Asking::Assent => confirm(context, pairing, PairAnswer::AcceptUnasked).await?,
                Asking::Ask => answer = Some(ask_aside(output, question(&name, &device, role))),
            },
            PairEvent::Enrolled { .. } => return Ok(()),
            PairEvent::WrongCode => return Err(wrong_code().into()),
            PairEvent::Expired => {
                return Err(
                    CommandError::failed("nobody came in time; the code has ended")
                        .with_hint("get a new one with `pacsync pair`")
                        .into(),
                );
            }
            PairEvent::Cancelled => {
                return Err(
                    CommandError::failed("the pairing was cancelled; nobody was let in")
                        .with_hint("get a new code with `pacsync pair`")
                        .into(),
                );
            }
            PairEvent::Failed { why } => {
                return Err(CommandError::failed(format!("the pairing failed: {why}"))
                    .with_hint("get a new code with `pacsync pair`")
                    .into());
            }
        }
    }
}

fn wrong_code() -> CommandError {
    CommandError::failed("somebody typed a wrong code; it is burned and nobody was let in")
        .with_hint("get a new one with `pacsync pair`")
}

/// The answer to the question, once it was asked and is there. Cancel-safe.
async fn answered(answer: &mut Option<oneshot::Receiver<bool>>) -> PairAnswer {
    let Some(receiver) = answer else {
        return std::future::pending().await;
    };
    let accept = receiver.await.unwrap_or(false);
    *answer = None;
    if accept {
        PairAnswer::Accept
    } else {
        PairAnswer::Reject
    }
}

fn question(name: &str, device: &str, role: Role) -> String {
    format!(
        "Let {} ({}) in as {}?",
        visible(name),
        short(device),
        role.as_str()
    )
}

async fn confirm(
    context: &Context,
    pairing: Option<PairId>,
    answer: PairAnswer,
) -> Result<(), CliError> {
    let pair =
        pairing.ok_or_else(|| CommandError::failed("the daemon asked before it gave a code"))?;
    let request = PairConfirmRequest { pair, answer };
    let _: Done = context.client.post("/v1/pair/confirm", &request).await?;
    Ok(())
}

fn to_text(event: &PairEvent, role: Role, output: Output) -> String {
    match event {
        PairEvent::Code {
            code,
            addresses,
            expires_ms,
            ..
        } => {
            let mut text = String::new();
            if output.is_terminal()
                && let Some(qr) = qr(code)
            {
                text.push_str(&qr);
                text.push('\n');
            }
            text.push_str(&format!("code: {code}\n"));
            text.push_str(&format!("on the other device: pacsync pair {code}\n"));
            for address in addresses {
                text.push_str(&format!(
                    "  or, if it is not found: pacsync pair {code} --addr {address}\n"
                ));
            }
            let left = expires_ms.saturating_sub(now_ms()).div_ceil(1000);
            text.push_str(&format!("good once and for {}; waiting …", duration(left)));
            text
        }
        PairEvent::Attempt { name, device } => {
            format!("{} ({}) has the code", visible(name), short(device))
        }
        PairEvent::Enrolled { name, device } => {
            format!(
                "{} ({}) is in as {}",
                visible(name),
                short(device),
                role.as_str()
            )
        }
        // Told as errors.
        PairEvent::WrongCode
        | PairEvent::Expired
        | PairEvent::Cancelled
        | PairEvent::Failed { .. } => String::new(),
    }
}

/// A code of half blocks, light on dark as terminals mostly are.
fn qr(code: &str) -> Option<String> {
    let qr = QrCode::new(code).ok()?;
    Some(
        qr.render::<Dense1x2>()
            .dark_color(Dense1x2::Light)
            .light_color(Dense1x2::Dark)
            .build(),
    )
}

fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn the_code_stands_beside_what_to_do_with_it() {
        let event = PairEvent::Code {
            pair: PairId(1),
            code: "1234-able-acid".into(),
            addresses: "10.0.0.1:4711".parse().into_iter().collect(),
            expires_ms: now_ms() + 600_000,
        };
        let text = to_text(&event, Role::Member, Output::new(Format::Json));
        assert!(text.starts_with("code: 1234-able-acid\n"), "{text}");
        assert!(
            text.contains("pacsync pair 1234-able-acid --addr 10.0.0.1:4711"),
            "{text}"
        );
    }

    #[test]
    fn a_code_fits_into_a_qr() {
        assert!(qr("1234-able-acid").is_some_and(|qr| qr.lines().count() > 10));
    }
}

//! `events`.

use serde_json::Value;

use super::Context;
use crate::error::CliError;

/// Prints events as they are, those of a newer daemon too.
pub(crate) async fn events(context: &Context) -> Result<(), CliError> {
    let mut events = context.client.get_stream("/v1/events").await?;
    while let Some(event) = events.next::<Value>().await? {
        context.output.document(&event)?;
    }
    Ok(())
}

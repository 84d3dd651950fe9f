//! Merge of formats with keys: what the file says decides, its text follows and is checked.

use super::format::Format;
use super::layout::{self, Table};
use super::value::{self, Reading, Value};
use super::{Conflict, lines};

/// Merges key by key, or line by line where a text cannot be told apart by keys.
pub(super) fn merge(
    format: Format,
    base: &str,
    ours: &str,
    theirs: &str,
) -> Result<String, Conflict> {
    let (our_reading, their_reading) = (format.read(ours), format.read(theirs));
    let (Some(our_reading), Some(their_reading)) = (our_reading, their_reading) else {
        return lines::merge(base, ours, theirs);
    };
    let grade = our_reading.grade.max(their_reading.grade);
    let base_value = if base.trim().is_empty() {
        Some(Value::default())
    } else {
        format.read(base).and_then(|reading| reading.value)
    };
    let (Some(our_value), Some(their_value)) = (our_reading.value, their_reading.value) else {
        let merged = lines::merge(base, ours, theirs)?;
        let sound = format
            .read(&merged)
            .is_some_and(|reading| reading.grade <= grade);
        return if sound {
            Ok(merged)
        } else {
            Err(Conflict::Invalid)
        };
    };
    let sound = |text: &str, expected: Option<&Value>| match format.read(text) {
        Some(Reading {
            grade: found,
            value: Some(value),
        }) => found <= grade && expected.is_none_or(|expected| *expected == value),
        _ => false,
    };
    let Some(base_value) = base_value else {
        let merged = lines::merge(base, ours, theirs)?;
        return if sound(&merged, None) {
            Ok(merged)
        } else {
            Err(Conflict::Invalid)
        };
    };
    let expected = value::merge(&base_value, &our_value, &their_value)
        .map_err(|path| Conflict::Key { path })?;
    let by_lines = lines::merge(base, ours, theirs);
    if let Ok(text) = &by_lines
        && sound(text, Some(&expected))
    {
        return by_lines;
    }
    let base_layout = if base.trim().is_empty() {
        Some(Table::root())
    } else {
        format.layout(base)
    };
    let (Some(base), Some(ours), Some(theirs)) =
        (base_layout, format.layout(ours), format.layout(theirs))
    else {
        return Err(by_lines.err().unwrap_or(Conflict::Invalid));
    };
    let merged = layout::merge(&base, &ours, &theirs, format.placing())
        .map_err(|path| Conflict::Key { path })?;
    let text = merged.render();
    if layout::comments_are_kept(&base, &ours, &theirs, &merged) && sound(&text, Some(&expected)) {
        Ok(text)
    } else {
        Err(by_lines.err().unwrap_or(Conflict::Invalid))
    }
}

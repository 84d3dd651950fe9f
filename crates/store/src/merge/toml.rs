//! TOML.

use toml_edit::{Document, Item, TableLike};

use super::layout::Entry;
use super::outline::{Ends, Holds, Outline, line_starts};
use super::value::{MAX_DEPTH, Reading, Value};

pub(super) fn read(text: &str) -> Option<Reading> {
    let document = Document::parse(text).ok()?;
    Some(Reading {
        grade: 0,
        value: map(document.as_table(), 0),
    })
}

fn map(table: &dyn TableLike, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    let entries = table
        .iter()
        .map(|(key, item)| Some((key.to_owned(), item_value(item, depth + 1)?)));
    Some(Value::Map(entries.collect::<Option<_>>()?))
}

fn item_value(item: &Item, depth: usize) -> Option<Value> {
    match item {
        Item::None => None,
        Item::Value(value) => inline_value(value, depth),
        Item::Table(table) => map(table, depth),
        Item::ArrayOfTables(tables) => {
            let tables = tables.iter().map(|table| map(table, depth + 1));
            Some(Value::List(tables.collect::<Option<_>>()?))
        }
    }
}

fn inline_value(value: &toml_edit::Value, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    Some(match value {
        toml_edit::Value::String(string) => Value::Scalar('s', string.value().clone()),
        toml_edit::Value::Integer(integer) => Value::Scalar('i', integer.value().to_string()),
        toml_edit::Value::Float(float) => Value::Scalar('f', float.value().to_string()),
        toml_edit::Value::Boolean(boolean) => Value::Scalar('b', boolean.value().to_string()),
        toml_edit::Value::Datetime(datetime) => Value::Scalar('d', datetime.value().to_string()),
        toml_edit::Value::Array(array) => {
            let values = array.iter().map(|value| inline_value(value, depth + 1));
            Value::List(values.collect::<Option<_>>()?)
        }
        toml_edit::Value::InlineTable(table) => map(table, depth)?,
    })
}

/// Takes a text that the parser accepts apart by its lines.
pub(super) fn layout(text: &str) -> Option<Entry<'_>> {
    let mut outline = Outline::new(text, Ends::AtBlank);
    let mut level = 0;
    let mut lines = line_starts(text);
    while let Some((start, line)) = lines.next() {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if content.starts_with('[') {
            let header = content.split('#').next().unwrap_or(content).trim();
            outline.entry(0, header, Holds::Entries, start, start + line.len())?;
            level = 1;
            continue;
        }
        let mut scan = Scan::default();
        let name = content.get(..scan.line(content, StopAt::Equals)?)?.trim();
        let mut end = start + line.len();
        scan = Scan::default();
        scan.line(line, StopAt::End)?;
        while !scan.complete() {
            let (next_start, next) = lines.next()?;
            scan.line(next, StopAt::End)?;
            end = next_start + next.len();
        }
        outline.entry(level, name, Holds::Value, start, end)?;
    }
    outline.finish()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopAt {
    Equals,
    End,
}

/// How far a value has come that may go over several lines.
#[derive(Debug, Default)]
struct Scan {
    /// Brackets that are open.
    depth: usize,
    /// The quotes that end the string of several lines that is open.
    quotes: Option<&'static str>,
}

impl Scan {
    fn complete(&self) -> bool {
        self.depth == 0 && self.quotes.is_none()
    }

    /// Reads one line; the answer is where it stopped.
    fn line(&mut self, line: &str, stop: StopAt) -> Option<usize> {
        let mut at = 0;
        while at < line.len() {
            let rest = line.get(at..)?;
            let first = rest.chars().next()?;
            if let Some(quotes) = self.quotes {
                if first == '\\' && quotes.starts_with('"') {
                    at += 1 + rest.chars().nth(1).map_or(0, char::len_utf8);
                } else if rest.starts_with(quotes) {
                    // Up to two quotes may stand before the three that end it.
                    let run = rest.len() - rest.trim_start_matches(first).len();
                    at += run.min(5);
                    self.quotes = None;
                } else {
                    at += first.len_utf8();
                }
                continue;
            }
            match first {
                '#' => return Some(line.len()),
                '=' if stop == StopAt::Equals => return Some(at),
                '"' | '\'' => {
                    let long = if first == '"' { "\"\"\"" } else { "'''" };
                    if rest.starts_with(long) {
                        self.quotes = Some(long);
                        at += 3;
                    } else {
                        at += short_string(rest, first)?;
                    }
                    continue;
                }
                '[' | '{' => self.depth += 1,
                ']' | '}' => self.depth = self.depth.checked_sub(1)?,
                _ => {}
            }
            at += first.len_utf8();
        }
        Some(at)
    }
}

/// The length of a string on one line, with its quotes.
fn short_string(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote == '"' {
            escaped = true;
        } else if c == quote {
            return Some(at + 1);
        }
    }
    None
}

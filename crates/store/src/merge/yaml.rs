//! YAML: plain block mappings are taken apart by keys; everything else in it is a value.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::layout::Entry;
use super::outline::{Ends, Holds, Outline, line_starts};
use super::value::{MAX_DEPTH, Reading, Value};

/// A collection whose end has not been read.
enum Open {
    List(Vec<Value>),
    Map(BTreeMap<String, Value>, Option<String>),
}

/// Whether what was read can be told apart by keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plain {
    Yes,
    No,
}

pub(super) fn read(text: &str) -> Option<Reading> {
    let mut plain = Plain::Yes;
    // Most programs refuse a key that is there twice, this parser does not.
    let mut grade = 0;
    let mut open: Vec<Open> = Vec::new();
    let mut document = None;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.ok()?;
        let finished = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => None,
            Event::DocumentStart(_) => {
                // Only one document can be told apart.
                if document.is_some() {
                    plain = Plain::No;
                }
                None
            }
            Event::Alias(_) => {
                plain = Plain::No;
                Some(Value::default())
            }
            Event::Scalar(text, style, anchor, tag) => {
                if anchor != 0 || tag.is_some() {
                    plain = Plain::No;
                }
                let kind = if style == ScalarStyle::Plain {
                    'p'
                } else {
                    's'
                };
                Some(Value::Scalar(kind, text.into_owned()))
            }
            Event::SequenceStart(anchor, ref tag) | Event::MappingStart(anchor, ref tag) => {
                if anchor != 0 || tag.is_some() || open.len() > MAX_DEPTH {
                    plain = Plain::No;
                }
                open.push(match event {
                    Event::SequenceStart(..) => Open::List(Vec::new()),
                    _ => Open::Map(BTreeMap::new(), None),
                });
                None
            }
            Event::SequenceEnd | Event::MappingEnd => Some(match open.pop()? {
                // Deep values are dropped here, one level at a time.
                _ if plain == Plain::No => Value::default(),
                Open::List(values) => Value::List(values),
                Open::Map(map, _) => Value::Map(map),
            }),
        };
        let Some(value) = finished else {
            continue;
        };
        match open.last_mut() {
            None => document = Some(value),
            Some(Open::List(values)) => values.push(value),
            Some(Open::Map(map, key @ None)) => {
                let name = match value {
                    Value::Scalar(_, name) => name,
                    // A collection or an alias as a key.
                    _ => "<<".to_owned(),
                };
                if name == "<<" {
                    plain = Plain::No;
                } else if map.contains_key(&name) {
                    plain = Plain::No;
                    grade = 1;
                }
                *key = Some(name);
            }
            Some(Open::Map(map, key @ Some(_))) => {
                map.insert(key.take().unwrap_or_default(), value);
            }
        }
    }
    let value = match document.unwrap_or_default() {
        // A file of comments has nothing in it.
        Value::Scalar('p', text) if text.is_empty() => Value::default(),
        value => value,
    };
    Some(Reading {
        grade,
        value: (plain == Plain::Yes).then_some(value),
    })
}

/// A line with something other than a comment in it.
struct Line<'a> {
    start: usize,
    end: usize,
    indent: usize,
    content: &'a str,
}

/// Takes apart a text that the parser accepts if it is a block mapping of block mappings; `None`
/// wherever there is doubt.
pub(super) fn layout(text: &str) -> Option<Entry<'_>> {
    let mut outline = Outline::new(text, Ends::Indented);
    let lines: Vec<Line> = line_starts(text)
        .map(|(start, line)| {
            let content = line.trim();
            let indent = line.len() - line.trim_start_matches(' ').len();
            Line {
                start,
                end: start + line.len(),
                indent,
                content,
            }
        })
        .collect();
    // Indents of the mappings that are open, outermost first.
    let mut indents: Vec<usize> = Vec::new();
    // Whether the last key has no value yet and so opens a mapping.
    let mut opened = false;
    let mut began = false;
    let mut index = 0;
    while let Some(line) = lines.get(index) {
        index += 1;
        if line.content.is_empty() || line.content.starts_with('#') {
            continue;
        }
        if line.content == "---" && !began {
            began = true;
            outline.head(line.end)?;
            continue;
        }
        began = true;
        if opened || indents.is_empty() {
            indents.push(line.indent);
        } else {
            while indents.last().is_some_and(|indent| *indent > line.indent) {
                indents.pop();
            }
        }
        if indents.last() != Some(&line.indent) || indents.len() > MAX_DEPTH {
            return None;
        }
        let (name, value) = key(line.content)?;
        let inside = |next: &Line| next.indent > line.indent;
        let following = lines.get(index..)?;
        let mut end = line.end;
        opened = false;
        if value.starts_with(['|', '>']) {
            // Lines that begin with # are text there, blank lines at the end may be.
            let length = following
                .iter()
                .take_while(|next| next.content.is_empty() || inside(next))
                .count();
            let written = following
                .get(..length)?
                .iter()
                .rposition(|next| !next.content.is_empty());
            let length = written.map_or(0, |last| last + 1);
            end = following.get(..length)?.last().map_or(end, |last| last.end);
            index += length;
        } else {
            let next = following
                .iter()
                .find(|next| !next.content.is_empty() && !next.content.starts_with('#'));
            let is_item = |next: &Line| next.content == "-" || next.content.starts_with("- ");
            let empty = value.is_empty() || value.starts_with('#');
            let list_here =
                empty && next.is_some_and(|next| is_item(next) && next.indent == line.indent);
            if empty && next.is_some_and(|next| inside(next) && !is_item(next)) {
                opened = true;
            } else {
                let belongs = |next: &Line| {
                    inside(next) || (list_here && next.indent == line.indent && is_item(next))
                };
                let bare = |next: &Line| next.content.is_empty() || next.content.starts_with('#');
                let length = following
                    .iter()
                    .take_while(|next| bare(next) || belongs(next))
                    .count();
                let last = following
                    .get(..length)?
                    .iter()
                    .rposition(|next| !bare(next));
                let length = last.map_or(0, |last| last + 1);
                end = following.get(..length)?.last().map_or(end, |last| last.end);
                index += length;
            }
        }
        let holds = if opened { Holds::Entries } else { Holds::Value };
        outline.entry(indents.len() - 1, &name, holds, line.start, end)?;
    }
    outline.finish()
}

/// The key of a line and what follows its colon.
fn key(content: &str) -> Option<(String, &str)> {
    let first = content.chars().next()?;
    let end = if first == '"' || first == '\'' {
        let close = content.get(1..)?.find(first)? + 2;
        // Escapes and doubled quotes are not read here.
        if content.get(..close)?.contains('\\') || content.get(close..)?.starts_with(first) {
            return None;
        }
        close
    } else {
        let special = "-?:,[]{}#&*!|>%@`";
        // `-a` and `?a` are plain; a dash with a blank is a list.
        if special.contains(first) {
            return None;
        }
        let colon = content.match_indices(':').find(|(at, _)| {
            let rest = content.get(at + 1..).unwrap_or_default();
            rest.is_empty() || rest.starts_with([' ', '\t'])
        });
        let end = colon?.0;
        if content.get(..end)?.contains(" #") {
            return None;
        }
        end
    };
    let name = content.get(..end)?.trim_end();
    let value = content.get(end..)?.trim_start().strip_prefix(':')?;
    if !(value.is_empty() || value.starts_with([' ', '\t'])) {
        return None;
    }
    Some((name.trim_matches(['"', '\'']).to_owned(), value.trim()))
}

//! INI and its relatives: sections in brackets, `key = value` lines, `#` and `;` comments.

use std::collections::BTreeMap;

use super::layout::Entry;
use super::outline::{Ends, Holds, Outline, line_starts};
use super::value::{Reading, Value};

/// What differs between the relatives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// gitconfig: keys may be indented and may stand alone; a backslash continues a line.
    Git,
    /// systemd units, desktop entries, .editorconfig: a backslash continues a line.
    Plain,
    /// Others: a line that is indented deeper than its key continues the value; `:` is also a separator.
    Indented,
}

enum Kind {
    Section,
    Key,
}

struct Item<'a> {
    kind: Kind,
    /// Folded as the most lenient reader of the format does.
    name: String,
    text: &'a str,
    start: usize,
}

impl Item<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// What the text consists of besides comments and blank lines; `None` if it is no such file.
fn items(text: &str, dialect: Dialect) -> Option<Vec<Item<'_>>> {
    let mut items: Vec<Item> = Vec::new();
    let mut continued = false;
    let mut key_indent = None;
    for (start, line) in line_starts(text) {
        let content = line.trim();
        let indent = line.len() - line.trim_start().len();
        let deeper = dialect == Dialect::Indented && key_indent.is_some_and(|key| indent > key);
        let comment = content.is_empty() || content.starts_with(['#', ';']);
        if continued || (deeper && !comment) {
            let last = items.last_mut()?;
            // Comments between the lines of a value stay inside it.
            last.text = text.get(last.start..start + line.len())?;
        } else if comment {
            continue;
        } else if let Some(rest) = content.strip_prefix('[') {
            let (inner, after) = rest.rsplit_once(']')?;
            let after = after.trim();
            if !(after.is_empty() || after.starts_with(['#', ';'])) {
                return None;
            }
            key_indent = None;
            items.push(Item {
                kind: Kind::Section,
                name: section_name(inner),
                text: line,
                start,
            });
        } else {
            key_indent = Some(indent);
            items.push(Item {
                kind: Kind::Key,
                name: key_name(content, dialect)?,
                text: line,
                start,
            });
        }
        let backslashes = content.len() - content.trim_end_matches('\\').len();
        let last_is_key = items
            .last()
            .is_some_and(|item| matches!(item.kind, Kind::Key));
        continued = dialect != Dialect::Indented && last_is_key && backslashes % 2 == 1;
    }
    Some(items)
}

/// Without case, except in quotes.
fn section_name(inner: &str) -> String {
    match inner.split_once('"') {
        Some((section, quoted)) => format!("{}\"{quoted}", section.trim().to_ascii_lowercase()),
        None => inner.trim().to_ascii_lowercase(),
    }
}

fn key_name(content: &str, dialect: Dialect) -> Option<String> {
    let end = match dialect {
        Dialect::Indented => Some(content.find(['=', ':'])?),
        Dialect::Plain => Some(content.find('=')?),
        Dialect::Git => content.find('='),
    };
    let name = content.get(..end.unwrap_or(content.len()))?.trim();
    let sound = dialect != Dialect::Git || name.starts_with(|c: char| c.is_ascii_alphabetic());
    (sound && !name.is_empty()).then(|| name.to_ascii_lowercase())
}

pub(super) fn read(text: &str, dialect: Dialect) -> Option<Reading> {
    let items = items(text, dialect)?;
    let has_sections = items.iter().any(|item| matches!(item.kind, Kind::Section));
    // Without sections it may be anything.
    let value = (has_sections || items.is_empty()).then(|| value(&items));
    Some(Reading { grade: 0, value })
}

/// Stands beside the keys of a section, which have no capitals.
const TIMES: &str = "Times it is opened";

fn value(items: &[Item]) -> Value {
    // Each key with its texts in order; each section with how often it is opened.
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut section = String::new();
    for item in items {
        match item.kind {
            Kind::Section => {
                section = format!("[{}]", item.name);
                sections
                    .entry(section.clone())
                    .or_default()
                    .entry(TIMES.to_owned())
                    .or_default()
                    .push('+');
            }
            Kind::Key => {
                let keys = sections.entry(section.clone()).or_default();
                let texts = keys.entry(item.name.clone()).or_default();
                for line in item.text.lines() {
                    texts.push_str(line.trim());
                    texts.push('\n');
                }
                // Tells two values of one line from one of two lines.
                texts.push('\n');
            }
        }
    }
    let scalars = |keys: BTreeMap<String, String>| {
        keys.into_iter()
            .map(|(key, text)| (key, Value::Scalar('s', text)))
    };
    Value::Map(
        sections
            .into_iter()
            .map(|(name, keys)| (name, Value::Map(scalars(keys).collect())))
            .collect(),
    )
}

pub(super) fn layout(text: &str, dialect: Dialect) -> Option<Entry<'_>> {
    let mut outline = Outline::new(text, Ends::AtBlank);
    let mut level = 0;
    for item in items(text, dialect)? {
        match item.kind {
            Kind::Section => {
                outline.entry(
                    0,
                    &format!("[{}]", item.name),
                    Holds::Entries,
                    item.start,
                    item.end(),
                )?;
                level = 1;
            }
            Kind::Key => outline.entry(level, &item.name, Holds::Value, item.start, item.end())?,
        }
    }
    outline.finish()
}

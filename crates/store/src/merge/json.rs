//! JSON, with comments and trailing commas where a file has them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jsonc_parser::ast;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::layout::{Body, Commas, Entry, Table};
use super::value::{MAX_DEPTH, Reading, Value};

/// From JSON proper to what the most lenient readers accept.
const GRADES: u8 = 4;

fn options(grade: u8) -> ParseOptions {
    let loose = grade >= 3;
    ParseOptions {
        allow_comments: grade >= 1,
        allow_trailing_commas: grade >= 2,
        allow_missing_commas: false,
        allow_loose_object_property_names: loose,
        allow_single_quoted_strings: loose,
        allow_hexadecimal_numbers: loose,
        allow_unary_plus_numbers: loose,
        allow_bare_decimal_point_numbers: loose,
        allow_non_finite_numbers: loose,
        allow_extended_string_escapes: loose,
    }
}

fn parse(text: &str, grade: u8) -> Option<ast::Value<'_>> {
    parse_to_ast(text, &CollectOptions::default(), &options(grade))
        .ok()?
        .value
}

pub(super) fn read(text: &str) -> Option<Reading> {
    let (grade, parsed) = (0..GRADES).find_map(|grade| Some((grade, parse(text, grade)?)))?;
    Some(Reading {
        grade,
        value: value(&parsed, 0),
    })
}

/// `None` for duplicate keys and for what is nested too deep.
fn value(parsed: &ast::Value, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    Some(match parsed {
        ast::Value::StringLit(string) => Value::Scalar('s', string.value.to_string()),
        ast::Value::NumberLit(number) => Value::Scalar('n', number.value.to_owned()),
        ast::Value::BooleanLit(boolean) => Value::Scalar('w', boolean.value.to_string()),
        ast::Value::NullKeyword(_) => Value::Scalar('w', "null".to_owned()),
        ast::Value::Array(array) => {
            let elements = array
                .elements
                .iter()
                .map(|element| value(element, depth + 1));
            Value::List(elements.collect::<Option<_>>()?)
        }
        ast::Value::Object(object) => {
            let mut map = BTreeMap::new();
            for property in &object.properties {
                let value = value(&property.value, depth + 1)?;
                if map
                    .insert(property.name.as_str().to_owned(), value)
                    .is_some()
                {
                    return None;
                }
            }
            Value::Map(map)
        }
    })
}

pub(super) fn layout(text: &str) -> Option<Entry<'_>> {
    let Some(ast::Value::Object(object)) = parse(text, GRADES - 1) else {
        return None;
    };
    Some(Entry {
        key: (Cow::Borrowed(""), 0),
        lead: Cow::Borrowed(text.get(..object.range.start)?),
        body: Body::Table(table(text, &object, object.range.start, 0)?),
        mid: Cow::Borrowed(""),
        trail: Cow::Borrowed(text.get(object.range.end..)?),
    })
}

/// An object whose own text, with its key, begins at `start`.
fn table<'a>(text: &'a str, object: &ast::Object, start: usize, depth: usize) -> Option<Table<'a>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let inside = object.range.start.checked_add(1)?;
    let end = object.range.end.checked_sub(1)?;
    let first = object
        .properties
        .first()
        .map_or(end, |property| property.range.start);
    let (head, mut lead) = split_line(text.get(inside..first)?);
    let mut commas = Commas::Between;
    let mut entries = Vec::with_capacity(object.properties.len());
    let following = object
        .properties
        .iter()
        .skip(1)
        .map(|property| property.range.start)
        .chain([end]);
    for (property, next) in object.properties.iter().zip(following) {
        let body = match &property.value {
            ast::Value::Object(inner) => {
                Body::Table(table(text, inner, property.range.start, depth + 1)?)
            }
            _ => Body::Leaf(Cow::Borrowed(
                text.get(property.range.start..property.range.end)?,
            )),
        };
        let gap = text.get(property.range.end..next)?;
        let (mid, rest) = match comma(gap) {
            Some(at) => {
                if next == end {
                    commas = Commas::After;
                }
                (gap.get(..at)?, gap.get(at + 1..)?)
            }
            None => ("", gap),
        };
        let (trail, next_lead) = split_line(rest);
        let key = (Cow::Owned(property.name.as_str().to_owned()), 0);
        entries.push(Entry {
            key,
            lead: Cow::Borrowed(lead),
            body,
            mid: Cow::Borrowed(mid),
            trail: Cow::Borrowed(trail),
        });
        lead = next_lead;
    }
    Some(Table {
        open: Cow::Borrowed(text.get(start..inside)?),
        head: Cow::Borrowed(head),
        entries,
        tail: Cow::Borrowed(lead),
        close: Cow::Borrowed("}"),
        commas,
    })
}

/// Where the comma is in the blanks and comments between two properties.
fn comma(gap: &str) -> Option<usize> {
    outside_comments(gap)
        .find(|(_, c)| *c == ',')
        .map(|(at, _)| at)
}

/// Parts blanks and comments after their first line; the first part is empty if they have only one.
fn split_line(gap: &str) -> (&str, &str) {
    let newline = outside_comments(gap).find(|(_, c)| *c == '\n');
    gap.split_at_checked(newline.map_or(0, |(at, _)| at + 1))
        .unwrap_or(("", gap))
}

/// The characters of a gap that are in no comment; the newline that ends a comment is not in it.
fn outside_comments(gap: &str) -> impl Iterator<Item = (usize, char)> + '_ {
    let mut skip_to = 0;
    gap.char_indices().filter(move |(at, _)| {
        let rest = gap.get(*at..).unwrap_or_default();
        if *at < skip_to {
            return false;
        }
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else {
            return true;
        };
        skip_to = at + length;
        false
    })
}

//! Builds the layout of formats in which each entry begins on a line of its own.

use std::borrow::Cow;
use std::collections::HashMap;

use super::layout::{Body, Entry, Table};

/// What follows a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Value,
    Entries,
}

/// Which comments before an entry belong to the table that it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// Those that a blank line parts from it.
    AtBlank,
    /// Those that are indented deeper than it.
    Indented,
}

/// Takes a text apart from its first to its last byte.
#[derive(Debug)]
pub(super) struct Outline<'a> {
    text: &'a str,
    ends: Ends,
    /// Where what has not been taken begins.
    at: usize,
    /// The tables that are open, outermost first.
    open: Vec<Open<'a>>,
}

#[derive(Debug)]
struct Open<'a> {
    entry: Entry<'a>,
    counts: HashMap<String, usize>,
}

impl<'a> Outline<'a> {
    pub(super) fn new(text: &'a str, ends: Ends) -> Self {
        let root = Open {
            entry: Table::root(),
            counts: HashMap::new(),
        };
        Self {
            text,
            ends,
            at: 0,
            open: vec![root],
        }
    }

    /// Keeps the text up to `end` apart, ahead of all entries; only before the first one.
    pub(super) fn head(&mut self, end: usize) -> Option<()> {
        let head = self.text.get(self.at..end)?;
        if let Some(Open {
            entry: Entry {
                body: Body::Table(root),
                ..
            },
            ..
        }) = self.open.first_mut()
        {
            root.head.to_mut().push_str(head);
        }
        self.at = end;
        Some(())
    }

    /// Adds the entry whose lines are `start..end`, inside `level` tables. What has not been taken
    /// before it are comments and blank lines.
    pub(super) fn entry(
        &mut self,
        level: usize,
        key: &str,
        holds: Holds,
        start: usize,
        end: usize,
    ) -> Option<()> {
        let mut lead = self.text.get(self.at..start)?;
        let own = self.text.get(start..end)?;
        if self.at == 0 && start > 0 {
            // A block at the top that a blank line follows is about the file.
            let blank = line_starts(lead)
                .filter(|(_, line)| line.trim().is_empty())
                .last();
            if let Some((at, line)) = blank {
                self.head(at + line.len())?;
                lead = self.text.get(self.at..start)?;
            }
        }
        if self.open.len() > level + 1 {
            let indent = own.len() - own.trim_start_matches(' ').len();
            lead = self.end_table(lead, self.tail_length(lead, indent))?;
        }
        self.close_to(level);
        let parent = self.open.last_mut()?;
        let count = parent.counts.entry(key.to_owned()).or_default();
        let body = match holds {
            Holds::Value => Body::Leaf(Cow::Borrowed(own)),
            Holds::Entries => Body::Table(Table {
                open: Cow::Borrowed(own),
                ..Table::default()
            }),
        };
        let key = (Cow::Owned(key.to_owned()), *count);
        *count += 1;
        let entry = Entry {
            key,
            lead: Cow::Borrowed(lead),
            body,
            mid: Cow::Borrowed(""),
            trail: Cow::Borrowed(""),
        };
        match holds {
            Holds::Value => push(parent, entry),
            Holds::Entries => self.open.push(Open {
                entry,
                counts: HashMap::new(),
            }),
        }
        self.at = end;
        Some(())
    }

    /// The whole; what has not been taken are comments and blank lines at the end.
    pub(super) fn finish(mut self) -> Option<Entry<'a>> {
        let mut rest = self.text.get(self.at..)?;
        if self.open.len() > 1 {
            let length = match self.ends {
                Ends::AtBlank if line_starts(rest).all(|(_, line)| !line.trim().is_empty()) => {
                    rest.len()
                }
                Ends::AtBlank | Ends::Indented => self.tail_length(rest, 0),
            };
            rest = self.end_table(rest, length)?;
        }
        self.close_to(0);
        let mut root = self.open.pop()?.entry;
        if let Body::Table(table) = &mut root.body {
            table.tail = Cow::Borrowed(rest);
        }
        Some(root)
    }

    /// Gives the innermost table its share of the comments after it; the answer is what is left.
    fn end_table(&mut self, comments: &'a str, length: usize) -> Option<&'a str> {
        let (tail, rest) = comments.split_at_checked(length)?;
        if let Some(Open {
            entry:
                Entry {
                    body: Body::Table(table),
                    ..
                },
            ..
        }) = self.open.last_mut()
        {
            table.tail = Cow::Borrowed(tail);
        }
        Some(rest)
    }

    fn close_to(&mut self, level: usize) {
        while self.open.len() > level + 1
            && let Some(done) = self.open.pop()
            && let Some(parent) = self.open.last_mut()
        {
            push(parent, done.entry);
        }
    }

    fn tail_length(&self, lead: &str, indent: usize) -> usize {
        let blank = |line: &str| line.trim().is_empty();
        match self.ends {
            Ends::AtBlank => {
                let first_blank = line_starts(lead).find(|(_, line)| blank(line));
                first_blank.map_or(0, |(at, _)| at)
            }
            Ends::Indented => {
                let deeper = |line: &str| line.len() - line.trim_start_matches(' ').len() > indent;
                let inside = line_starts(lead).take_while(|(_, line)| blank(line) || deeper(line));
                let last = inside.filter(|(_, line)| !blank(line)).last();
                last.map_or(0, |(at, line)| at + line.len())
            }
        }
    }
}

fn push<'a>(parent: &mut Open<'a>, entry: Entry<'a>) {
    if let Body::Table(table) = &mut parent.entry.body {
        table.entries.push(entry);
    }
}

/// The lines of a text with the place where each begins.
pub(super) fn line_starts(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive('\n').map(move |line| {
        let start = at;
        at += line.len();
        (start, line)
    })
}

//! A text taken apart into entries, so that nothing between them is lost, and the three-way merge
//! of such.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use super::value::Path;
use super::{lines, value::MAX_DEPTH};

/// An entry: a key with its value or the entries beneath it, and the comments around it.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    /// Its name, and which of several entries of that name it is.
    pub(super) key: (Cow<'a, str>, usize),
    /// Blank lines, comments and indentation above or before it.
    pub(super) lead: Cow<'a, str>,
    pub(super) body: Body<'a>,
    /// What stands between it and its comma.
    pub(super) mid: Cow<'a, str>,
    /// The rest of its last line.
    pub(super) trail: Cow<'a, str>,
}

/// What an entry holds.
#[derive(Debug, Clone)]
pub(super) enum Body<'a> {
    Leaf(Cow<'a, str>),
    Table(Table<'a>),
}

/// Entries and what surrounds them.
#[derive(Debug, Clone, Default)]
pub(super) struct Table<'a> {
    /// The table's own line or bracket.
    pub(super) open: Cow<'a, str>,
    /// Comments that belong to no entry, before the first.
    pub(super) head: Cow<'a, str>,
    pub(super) entries: Vec<Entry<'a>>,
    /// Comments that belong to no entry, after the last.
    pub(super) tail: Cow<'a, str>,
    pub(super) close: Cow<'a, str>,
    pub(super) commas: Commas,
}

/// What separates entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Commas {
    #[default]
    None,
    Between,
    /// Also after the last.
    After,
}

/// Where entries may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placing {
    Anywhere,
    /// Values come before tables, because what follows a table's line belongs to it.
    ValuesFirst,
}

/// Where a merge is, and what holds everywhere in it.
struct Walk {
    path: Path,
    placing: Placing,
}

impl Table<'_> {
    /// The root of a file with nothing in it.
    pub(super) fn root() -> Entry<'static> {
        let key = (Cow::Borrowed(""), 0);
        let [lead, mid, trail] = [""; 3].map(Cow::Borrowed);
        Entry {
            key,
            lead,
            body: Body::Table(Table::default()),
            mid,
            trail,
        }
    }
}

impl Entry<'_> {
    /// The text it was taken from.
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        self.write(Comma::Left, &mut out);
        out
    }

    fn write(&self, comma: Comma, out: &mut String) {
        out.push_str(&self.lead);
        match &self.body {
            Body::Leaf(text) => out.push_str(text),
            Body::Table(table) => {
                out.push_str(&table.open);
                out.push_str(&table.head);
                let last = table.entries.len().saturating_sub(1);
                for (index, entry) in table.entries.iter().enumerate() {
                    let written = match table.commas {
                        Commas::None => Comma::Left,
                        Commas::Between if index == last => Comma::Left,
                        Commas::Between | Commas::After => Comma::Written,
                    };
                    entry.write(written, out);
                }
                out.push_str(&table.tail);
                out.push_str(&table.close);
            }
        }
        out.push_str(&self.mid);
        if comma == Comma::Written {
            out.push(',');
        }
        out.push_str(&self.trail);
    }

    /// Counts the comment lines, by their text without surrounding blanks.
    fn comments<'t>(&'t self, counts: &mut BTreeMap<&'t str, usize>) {
        let mut count = |text: &'t str| {
            for line in said(text) {
                *counts.entry(line).or_default() += 1;
            }
        };
        for text in [&self.lead, &self.mid, &self.trail] {
            count(text);
        }
        if let Body::Table(table) = &self.body {
            count(&table.head);
            count(&table.tail);
            for entry in &table.entries {
                entry.comments(counts);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comma {
    Written,
    Left,
}

/// Lines that are not blank, without the blanks around them.
fn said(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

fn says_the_same(one: &str, other: &str) -> bool {
    one == other || said(one).eq(said(other))
}

/// Merges entry by entry.
///
/// # Errors
///
/// The path of the first entry whose text both sides changed.
pub(super) fn merge<'a>(
    base: &Entry<'a>,
    ours: &Entry<'a>,
    theirs: &Entry<'a>,
    placing: Placing,
) -> Result<Entry<'a>, Path> {
    let path = Path::new();
    let mut walk = Walk { path, placing };
    match entry(Some(base), ours, theirs, &mut walk) {
        Some(merged) => Ok(merged),
        None => Err(walk.path),
    }
}

/// Whether the merged layout has the comments that both sides together ask for: none lost, none
/// written twice because both sides moved it.
pub(super) fn comments_are_kept(
    base: &Entry,
    ours: &Entry,
    theirs: &Entry,
    merged: &Entry,
) -> bool {
    let counts = [base, ours, theirs, merged].map(|entry| {
        let mut counts = BTreeMap::new();
        entry.comments(&mut counts);
        counts
    });
    let lines = counts.iter().flat_map(|counts| counts.keys());
    lines.into_iter().all(|line| {
        let [base, ours, theirs, merged] = [0, 1, 2, 3].map(|i| {
            let count = counts
                .get(i)
                .and_then(|counts: &BTreeMap<&str, usize>| counts.get(line));
            count.copied().unwrap_or_default()
        });
        if ours == theirs && ours > base {
            // One comment that both wrote, or one each.
            (ours..=2 * ours - base).contains(&merged)
        } else if ours == theirs || theirs == base {
            merged == ours
        } else {
            merged + base == ours + theirs
        }
    })
}

/// `None` with the path at the conflict.
fn entry<'a>(
    base: Option<&Entry<'a>>,
    ours: &Entry<'a>,
    theirs: &Entry<'a>,
    walk: &mut Walk,
) -> Option<Entry<'a>> {
    if walk.path.len() > MAX_DEPTH + 1 {
        return None;
    }
    let empty = Cow::Borrowed("");
    let lead = comment(
        base.map_or(&empty, |base| &base.lead),
        &ours.lead,
        &theirs.lead,
    )?;
    let mid = comment(
        base.map_or(&empty, |base| &base.mid),
        &ours.mid,
        &theirs.mid,
    )?;
    let trail = comment(
        base.map_or(&empty, |base| &base.trail),
        &ours.trail,
        &theirs.trail,
    )?;
    let body = match (base.map(|base| &base.body), &ours.body, &theirs.body) {
        (base, Body::Leaf(our_text), Body::Leaf(their_text)) => {
            let base_text = match base {
                Some(Body::Leaf(text)) => text,
                _ => &empty,
            };
            Body::Leaf(leaf(base_text, our_text, their_text)?)
        }
        (Some(Body::Table(base)), Body::Table(ours), Body::Table(theirs)) => {
            Body::Table(table(base, ours, theirs, walk)?)
        }
        (_, Body::Table(ours), Body::Table(theirs)) => {
            Body::Table(table(&Table::default(), ours, theirs, walk)?)
        }
        _ => match base {
            Some(base) if same(base, theirs) => return Some(ours.clone()),
            Some(base) if same(base, ours) => return Some(theirs.clone()),
            _ => return None,
        },
    };
    let merged = Entry {
        key: ours.key.clone(),
        lead,
        body,
        mid,
        trail,
    };
    // A value and the comment beside it share a line.
    if let Some(base) = base {
        let value_by = |side: &Entry| !same_body(&base.body, &side.body);
        let beside_by = |side: &Entry| {
            !(says_the_same(&base.mid, &side.mid) && says_the_same(&base.trail, &side.trail))
        };
        let apart = |one: &Entry, other: &Entry| {
            matches!(one.body, Body::Leaf(_))
                && value_by(one)
                && !value_by(other)
                && beside_by(other)
        };
        if apart(ours, theirs) || apart(theirs, ours) {
            return None;
        }
    }
    Some(merged)
}

fn table<'a>(
    base: &Table<'a>,
    ours: &Table<'a>,
    theirs: &Table<'a>,
    walk: &mut Walk,
) -> Option<Table<'a>> {
    let open = leaf(&base.open, &ours.open, &theirs.open)?;
    let close = leaf(&base.close, &ours.close, &theirs.close)?;
    let head = comment(&base.head, &ours.head, &theirs.head)?;
    let tail = comment(&base.tail, &ours.tail, &theirs.tail)?;
    let commas = if ours.commas == base.commas {
        theirs.commas
    } else {
        ours.commas
    };
    let [base, ours, theirs] = [base, ours, theirs].map(|table| {
        let entries: HashMap<_, _> = table
            .entries
            .iter()
            .map(|entry| (&entry.key, entry))
            .collect();
        (table, entries)
    });
    let mut merged: HashMap<&(Cow<'a, str>, usize), Entry<'a>> = HashMap::new();
    for entry_of_one in ours.0.entries.iter().chain(&theirs.0.entries) {
        let key = &entry_of_one.key;
        if merged.contains_key(key) {
            continue;
        }
        walk.path.push(key.0.to_string());
        let result = match (base.1.get(key), ours.1.get(key), theirs.1.get(key)) {
            (base, Some(ours), Some(theirs)) => Some(entry(base.copied(), ours, theirs, walk)?),
            (None, Some(one), None) | (None, None, Some(one)) => Some((*one).clone()),
            // Deleted by one: the other must not have touched it.
            (Some(base), Some(one), None) | (Some(base), None, Some(one)) => {
                if !same(base, one) {
                    return None;
                }
                None
            }
            (_, None, None) => None,
        };
        walk.path.pop();
        if let Some(result) = result {
            merged.insert(key, result);
        }
    }
    let order = order(base.0, ours.0, theirs.0, &merged, walk.placing)?;
    let entries = order
        .into_iter()
        .filter_map(|key| merged.remove(key))
        .collect();
    Some(Table {
        open,
        head,
        entries,
        tail,
        close,
        commas,
    })
}

type Key<'a> = (Cow<'a, str>, usize);

/// The order of the merged entries: that of the side that reordered, or ours; what only the other
/// side has comes after the neighbour that it has there.
fn order<'t, 'a>(
    base: &'t Table<'a>,
    ours: &'t Table<'a>,
    theirs: &'t Table<'a>,
    merged: &HashMap<&'t Key<'a>, Entry<'a>>,
    placing: Placing,
) -> Option<Vec<&'t Key<'a>>> {
    let [base, ours, theirs] = [base, ours, theirs].map(|table| {
        let places: HashMap<_, _> = table
            .entries
            .iter()
            .enumerate()
            .map(|(i, entry)| (&entry.key, i))
            .collect();
        (table, places)
    });
    let shared = |table: &'t Table<'a>| {
        let keys = table.entries.iter().map(|entry| &entry.key);
        keys.filter(|key| ours.1.contains_key(key) && theirs.1.contains_key(key))
    };
    let old = |key: &&'t Key<'a>| base.1.contains_key(*key);
    let (first, second) =
        if shared(ours.0).eq(shared(theirs.0)) || shared(base.0).eq(shared(theirs.0).filter(old)) {
            (&ours, &theirs)
        } else if shared(base.0).eq(shared(ours.0).filter(old)) {
            (&theirs, &ours)
        } else {
            return None;
        };
    let skeleton: Vec<&'t Entry<'a>> = first
        .0
        .entries
        .iter()
        .filter(|entry| merged.contains_key(&entry.key))
        .collect();
    let places: HashMap<_, _> = skeleton
        .iter()
        .enumerate()
        .map(|(i, entry)| (&entry.key, i))
        .collect();
    let alone =
        |entry: &Entry<'a>| !base.1.contains_key(&entry.key) && !second.1.contains_key(&entry.key);
    // What is inserted before each place of the skeleton, and at its end.
    let mut inserted: Vec<Vec<&'t Key<'a>>> = vec![Vec::new(); skeleton.len() + 1];
    let mut anchor = Anchor::at(0, &skeleton, &alone);
    for entry in &second.0.entries {
        if let Some(place) = places.get(&entry.key) {
            anchor = Anchor::at(place + 1, &skeleton, &alone);
        } else if merged.contains_key(&entry.key) {
            let place = match entry.body {
                Body::Leaf(_) if placing == Placing::ValuesFirst => anchor.after_values,
                _ => anchor.after_all,
            };
            inserted.get_mut(place)?.push(&entry.key);
        }
    }
    let mut order = Vec::with_capacity(merged.len());
    for (place, keys) in inserted.into_iter().enumerate() {
        order.extend(keys);
        order.extend(skeleton.get(place).map(|entry| &entry.key));
    }
    Some(order)
}

/// Where new entries go: after what the first side added at the same place.
struct Anchor {
    after_values: usize,
    after_all: usize,
}

impl Anchor {
    fn at<'a>(place: usize, skeleton: &[&Entry<'a>], alone: &impl Fn(&Entry<'a>) -> bool) -> Self {
        let added = skeleton.get(place..).unwrap_or_default();
        let added = added.iter().take_while(|entry| alone(entry));
        let leaves = added
            .clone()
            .take_while(|entry| matches!(entry.body, Body::Leaf(_)));
        Self {
            after_values: place + leaves.count(),
            after_all: place + added.count(),
        }
    }
}

/// Whether two entries say the same in the same words, whatever the blanks around comments.
fn same(one: &Entry, other: &Entry) -> bool {
    let beside = |entry: &Entry| {
        [entry.lead.clone(), entry.mid.clone(), entry.trail.clone()].map(|text| text.into_owned())
    };
    let alike = beside(one)
        .iter()
        .zip(&beside(other))
        .all(|(one, other)| says_the_same(one, other));
    alike && same_body(&one.body, &other.body)
}

fn same_body(one: &Body, other: &Body) -> bool {
    match (one, other) {
        (Body::Leaf(one), Body::Leaf(other)) => one == other,
        (Body::Table(one), Body::Table(other)) => {
            let around =
                says_the_same(&one.head, &other.head) && says_the_same(&one.tail, &other.tail);
            around
                && one.open == other.open
                && one.close == other.close
                && one.entries.len() == other.entries.len()
                && one
                    .entries
                    .iter()
                    .zip(&other.entries)
                    .all(|(one, other)| one.key == other.key && same(one, other))
        }
        _ => false,
    }
}

fn three_way<'a>(
    base: &Cow<'a, str>,
    ours: &Cow<'a, str>,
    theirs: &Cow<'a, str>,
) -> Option<Cow<'a, str>> {
    if ours == theirs || theirs == base {
        Some(ours.clone())
    } else if ours == base {
        Some(theirs.clone())
    } else {
        None
    }
}

/// Text that has meaning: a value, a bracket.
fn leaf<'a>(
    base: &Cow<'a, str>,
    ours: &Cow<'a, str>,
    theirs: &Cow<'a, str>,
) -> Option<Cow<'a, str>> {
    three_way(base, ours, theirs).or_else(|| lines::merge(base, ours, theirs).ok().map(Cow::Owned))
}

/// Text between entries: blanks alone are nobody's edit if the other side wrote words.
fn comment<'a>(
    base: &Cow<'a, str>,
    ours: &Cow<'a, str>,
    theirs: &Cow<'a, str>,
) -> Option<Cow<'a, str>> {
    if let Some(text) = three_way(base, ours, theirs) {
        Some(text)
    } else if says_the_same(theirs, base) || says_the_same(ours, theirs) {
        Some(ours.clone())
    } else if says_the_same(ours, base) {
        Some(theirs.clone())
    } else {
        lines::merge(base, ours, theirs).ok().map(Cow::Owned)
    }
}

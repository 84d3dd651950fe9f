//! Properties of the merge over generated files, against a model that knows only keys and values.

use std::collections::BTreeMap;

use pacsync_store::merge::{Conflict, Outcome, merge};
use proptest::prelude::*;

use super::{corpus, parses};

/// A file as a person thinks of it: section → key → value, each key with a comment above it.
type Model = BTreeMap<u8, BTreeMap<u8, u16>>;

#[derive(Debug, Clone, Copy)]
enum Format {
    Toml,
    Ini,
    Git,
    Json,
    JsonWithTrailingCommas,
    Yaml,
}

const FORMATS: [Format; 6] = [
    Format::Toml,
    Format::Ini,
    Format::Git,
    Format::Json,
    Format::JsonWithTrailingCommas,
    Format::Yaml,
];

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Toml => "a.toml",
            Self::Ini => "a.ini",
            Self::Git => ".gitconfig",
            Self::Json | Self::JsonWithTrailingCommas => "a.json",
            Self::Yaml => "a.yaml",
        }
    }

    fn write(self, model: &Model) -> String {
        let mut out = String::new();
        match self {
            Self::Toml | Self::Ini | Self::Git => {
                let indent = if matches!(self, Self::Git) { "\t" } else { "" };
                for (section, keys) in model {
                    out += &format!("# about s{section}\n[s{section}]\n");
                    for (key, value) in keys {
                        out += &format!(
                            "{indent}# about s{section} k{key}\n{indent}k{key} = {value}\n"
                        );
                    }
                }
            }
            Self::Yaml => {
                for (section, keys) in model {
                    out += &format!("# about s{section}\ns{section}:\n");
                    for (key, value) in keys {
                        out += &format!("  # about s{section} k{key}\n  k{key}: {value}\n");
                    }
                }
            }
            Self::Json | Self::JsonWithTrailingCommas => {
                let comma = |last: bool| match self {
                    Self::Json if last => "",
                    _ => ",",
                };
                out += "{\n";
                for (i, (section, keys)) in model.iter().enumerate() {
                    out += &format!("  // about s{section}\n  \"s{section}\": {{\n");
                    for (j, (key, value)) in keys.iter().enumerate() {
                        let comma = comma(j + 1 == keys.len());
                        out += &format!(
                            "    // about s{section} k{key}\n    \"k{key}\": {value}{comma}\n"
                        );
                    }
                    out += &format!("  }}{}\n", comma(i + 1 == model.len()));
                }
                out += "}\n";
            }
        }
        out
    }
}

/// The lines of a text in the order that makes two texts with the same entries equal.
fn content(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .map(|line| line.trim().trim_end_matches(',').to_owned());
    let mut lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines
}

/// The comment above each entry has to be above it still.
fn comments_are_in_place(text: &str) -> Result<(), TestCaseError> {
    let mut section = String::new();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    for pair in lines.windows(2) {
        let name: String = pair[1].chars().filter(|c| !"[\"".contains(*c)).collect();
        let name: String = name
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        let expected = match name.chars().next() {
            Some('s') => {
                section = name;
                format!("about {section}")
            }
            Some('k') => format!("about {section} {name}"),
            _ => continue,
        };
        let above = pair[0].trim_start_matches(['#', '/', ' ']);
        prop_assert_eq!(above, expected, "above {:?} in\n{}", pair[1], text);
    }
    Ok(())
}

/// The three-way merge of the model: a key at a time. `None` is a conflict.
fn model_merge(base: &Model, ours: &Model, theirs: &Model) -> Option<Model> {
    let mut merged = Model::new();
    let sections = ours.keys().chain(theirs.keys());
    for section in sections {
        let [b, o, t] = [base, ours, theirs].map(|model| model.get(section));
        let chosen = if o == t || t == b {
            o.cloned()
        } else if o == b {
            t.cloned()
        } else {
            let (Some(o), Some(t)) = (o, t) else {
                return None;
            };
            let mut keys = BTreeMap::new();
            for key in o.keys().chain(t.keys()) {
                let (b, o, t) = (b.and_then(|b| b.get(key)), o.get(key), t.get(key));
                let value = if o == t || t == b {
                    o
                } else if o == b {
                    t
                } else {
                    return None;
                };
                keys.extend(value.map(|value| (*key, *value)));
            }
            Some(keys)
        };
        merged.extend(chosen.map(|keys| (*section, keys)));
    }
    Some(merged)
}

#[derive(Debug, Clone)]
enum Edit {
    Set(u8, u8, u16),
    Delete(u8, u8),
    DeleteSection(u8),
}

fn edited(base: &Model, edits: &[Edit]) -> Model {
    let mut model = base.clone();
    for edit in edits {
        match edit {
            Edit::Set(section, key, value) => {
                model.entry(*section).or_default().insert(*key, *value);
            }
            // A section without keys is another thing in each format.
            Edit::Delete(section, key) => {
                if let Some(keys) = model.get_mut(section)
                    && keys.len() > 1
                {
                    keys.remove(key);
                }
            }
            Edit::DeleteSection(section) => {
                if model.len() > 1 {
                    model.remove(section);
                }
            }
        }
    }
    model
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        4 => (0..5_u8, 0..8_u8, 0..3_u16).prop_map(|(s, k, v)| Edit::Set(s, k, v)),
        2 => (0..5_u8, 0..8_u8).prop_map(|(s, k)| Edit::Delete(s, k)),
        1 => (0..5_u8).prop_map(Edit::DeleteSection),
    ];
    prop::collection::vec(edit, 1..4)
}

fn models() -> impl Strategy<Value = Model> {
    let keys = prop::collection::btree_map(0..8_u8, 0..3_u16, 1..6);
    prop::collection::btree_map(0..5_u8, keys, 1..5)
}

fn merged_text(name: &str, base: &str, sides: &[&str]) -> Option<String> {
    let sides: Vec<&[u8]> = sides.iter().map(|side| side.as_bytes()).collect();
    match merge(name.as_bytes(), Some(base.as_bytes()), &sides) {
        Outcome::Merged(bytes) => Some(String::from_utf8(bytes).expect("text")),
        Outcome::Conflict(conflict) => {
            assert_ne!(conflict, Conflict::Unreadable);
            None
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn key_by_key_is_what_the_model_says(base in models(), ours in edits(), theirs in edits()) {
        let (ours, theirs) = (edited(&base, &ours), edited(&base, &theirs));
        let expected = model_merge(&base, &ours, &theirs);
        // Each took another of a section's last keys: what is left of it differs by format.
        prop_assume!(expected.as_ref().is_none_or(|model| model.values().all(|keys| !keys.is_empty())));
        for format in FORMATS {
            let [base, ours, theirs] = [&base, &ours, &theirs].map(|model| format.write(model));
            let merged = merged_text(format.name(), &base, &[&ours, &theirs]);
            let shown = format!("{format:?}\n{base}---\n{ours}---\n{theirs}--- gives\n{merged:?}");
            match (merged, &expected) {
                (Some(text), Some(model)) => {
                    prop_assert_eq!(content(&text), content(&format.write(model)), "{}", shown);
                    comments_are_in_place(&text)?;
                    prop_assert!(parses(format.name(), &text));
                    // What is merged yields to nothing and is no edit of its own.
                    let again = merged_text(format.name(), &base, &[&text, &ours]);
                    prop_assert_eq!(again.as_ref(), Some(&text));
                }
                (None, None) => {}
                _ => prop_assert!(false, "{}", shown),
            }
        }
    }

    #[test]
    fn three_sides_of_different_keys_come_together(base in models(), values in prop::collection::vec((0..5_u8, 0..8_u8), 3)) {
        // Each side sets a key of its own to a value that the base does not have.
        let edits: Vec<Edit> = values.iter().zip(100_u16..).map(|((s, k), v)| Edit::Set(*s, *k, v)).collect();
        let distinct = (values[0] != values[1]) && (values[0] != values[2]) && (values[1] != values[2]);
        let all = edited(&base, &edits);
        for format in FORMATS {
            let sides: Vec<String> = edits.iter().map(|edit| format.write(&edited(&base, std::slice::from_ref(edit)))).collect();
            let sides: Vec<&str> = sides.iter().map(String::as_str).collect();
            let merged = merged_text(format.name(), &format.write(&base), &sides);
            prop_assert_eq!(merged.map(|text| content(&text)), distinct.then(|| content(&format.write(&all))));
        }
    }

    #[test]
    fn lines_merge_like_lines(base in prop::collection::vec(0..6_u8, 0..12), ours in line_edits(), theirs in line_edits()) {
        let write = |lines: &[u8]| lines.iter().map(|line| format!("line {line}\n")).collect::<String>();
        let (ours, theirs) = (apply(&base, &ours), apply(&base, &theirs));
        let [base, ours, theirs] = [&base, &ours, &theirs].map(|lines| write(lines));
        let one = merged_text("notes.txt", &base, &[&ours, &theirs]);
        let other = merged_text("notes.txt", &base, &[&theirs, &ours]);
        prop_assert_eq!(&one, &other);
        let Some(text) = one else { return Ok(()) };
        let count = |text: &str, line: &str| text.lines().filter(|other| *other == line).count() as i64;
        for line in (0..20).map(|line| format!("line {line}")) {
            let [b, o, t, m] = [&base, &ours, &theirs, &text].map(|text| count(text, &line));
            // Edits add up, except that what both did alike counts once.
            let (low, high) = ((o - b).min(t - b).min(o + t - 2 * b), (o - b).max(t - b).max(o + t - 2 * b));
            prop_assert!((low..=high).contains(&(m - b)), "{line}: {b} {o} {t} {m}\n{text}");
        }
    }

    #[test]
    fn no_bytes_make_it_fail(
        name in prop::sample::select(vec!["a.json", "a.toml", "a.yaml", ".gitconfig", "a.ini", "a.service", "a"]),
        base in soup(), ours in soup(), theirs in soup(),
    ) {
        check_any(name, &base, &ours, &theirs)?;
    }

    #[test]
    fn no_damage_to_real_files_makes_it_fail(
        index in any::<prop::sample::Index>(),
        damage in prop::collection::vec((0..3_usize, any::<prop::sample::Index>(), 0..3_usize, damage()), 1..6),
    ) {
        let cases = corpus();
        let case = index.get(&cases);
        let mut texts = [&case.base, &case.ours, &case.theirs].map(|text| text.clone().into_bytes());
        for (which, place, cut, bytes) in damage {
            let text = &mut texts[which];
            let start = place.index(text.len() + 1);
            let end = (start + cut).min(text.len());
            text.splice(start..end, bytes);
        }
        let [base, ours, theirs] = &texts;
        check_any(&case.name, base, ours, theirs)?;
    }
}

/// What holds for any bytes at all.
fn check_any(name: &str, base: &[u8], ours: &[u8], theirs: &[u8]) -> Result<(), TestCaseError> {
    let run = |sides: &[&[u8]]| merge(name.as_bytes(), Some(base), sides);
    let (one, other) = (run(&[ours, theirs]), run(&[theirs, ours]));
    prop_assert_ne!(&one, &Outcome::Conflict(Conflict::Unreadable));
    prop_assert_eq!(&one, &run(&[ours, theirs]), "again, the same");
    prop_assert_eq!(run(&[ours, ours]), Outcome::Merged(ours.to_vec()));
    prop_assert_eq!(run(&[base, theirs]), Outcome::Merged(theirs.to_vec()));
    let merged = |outcome: &Outcome| matches!(outcome, Outcome::Merged(_));
    prop_assert_eq!(merged(&one), merged(&other), "{:?} {:?}", one, other);
    if let Outcome::Merged(bytes) = one {
        let read = |bytes: &[u8]| {
            std::str::from_utf8(bytes)
                .is_ok_and(|text| parses(name, text.trim_start_matches('\u{feff}')))
        };
        if read(ours) && read(theirs) {
            prop_assert!(read(&bytes), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
    Ok(())
}

/// Bytes that mean something to one of the formats, or nothing.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let words = vec![
        "a", "b", "=", ": ", ":", "1", "\n", "\n", "\n", "  ", "    ", "\t", "{", "}", "[", "]",
        "[[", "]]", ",", "\"", "'", "\"\"\"", "'''", "#", "//", "/*", "*/", "\\", "- ", "|", ">",
        "&a", "*a", "---\n", "...\n", "? ", "!", "%", "\r\n", "\u{feff}", "é", "[s]\n", "a = 1\n",
        "a: 1\n", "\"a\": 1", "b:\n", "k = [\n", ".", "<<", ";", "@", "`",
    ];
    let word = prop_oneof![
        20 => prop::sample::select(words).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..3),
    ];
    prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
}

fn damage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        soup().prop_map(|mut bytes| {
            bytes.truncate(6);
            bytes
        })
    ]
}

fn line_edits() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, Vec<u8>)>> {
    prop::collection::vec(
        (
            any::<prop::sample::Index>(),
            0..2_usize,
            prop::collection::vec(0..20_u8, 0..3),
        ),
        1..3,
    )
}

fn apply(base: &[u8], edits: &[(prop::sample::Index, usize, Vec<u8>)]) -> Vec<u8> {
    let mut lines = base.to_vec();
    for (place, cut, added) in edits {
        let start = place.index(lines.len() + 1);
        let end = (start + cut).min(lines.len());
        lines.splice(start..end, added.iter().copied());
    }
    lines
}

//! Concurrent edits of real formats, each with the outcome that a person wrote down.
//!
//! Each `.cases` file is one format. Its first line names the file that is edited. A case begins with `##`, what it is
//! about, and `=> merged` or `=> conflict`. Each of its lines begins with four columns that say which texts
//! have it, `b`ase, `o`urs, `t`heirs, `m`erged (a dot where it is absent, four blanks for all of them), and a bar.

mod properties;

use std::fmt::Write as _;
use std::path::Path;

use pacsync_store::merge::{Conflict, Outcome, merge};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Merged,
    Conflict,
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// The file with the cases, the name of the edited file and what the case is about.
    pub(crate) title: String,
    pub(crate) name: String,
    pub(crate) base: String,
    pub(crate) ours: String,
    pub(crate) theirs: String,
    pub(crate) merged: String,
    pub(crate) expected: Expected,
}

impl Case {
    fn merge(&self) -> Outcome {
        merge(
            self.name.as_bytes(),
            Some(self.base.as_bytes()),
            &[self.ours.as_bytes(), self.theirs.as_bytes()],
        )
    }

    fn merge_swapped(&self) -> Outcome {
        merge(
            self.name.as_bytes(),
            Some(self.base.as_bytes()),
            &[self.theirs.as_bytes(), self.ours.as_bytes()],
        )
    }
}

/// All cases of all files, in a fixed order.
pub(crate) fn corpus() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/merge");
    let entries = std::fs::read_dir(folder).expect("the corpus is beside this file");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "cases"));
    files.sort();
    files.iter().flat_map(|file| read(file)).collect()
}

fn read(file: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(file).expect("a readable corpus file");
    let label = file.file_stem().expect("a name").to_string_lossy();
    let mut lines = text.lines();
    let name = lines.next().expect("the name of the edited file");
    let mut cases: Vec<Case> = Vec::new();
    for line in lines {
        if let Some(header) = line.strip_prefix("## ") {
            let (about, outcome) = header
                .rsplit_once(" => ")
                .expect("a header with its outcome");
            let expected = match outcome {
                "merged" => Expected::Merged,
                "conflict" => Expected::Conflict,
                other => panic!("{label}: {about}: no such outcome: {other}"),
            };
            let [base, ours, theirs, merged] = [const { String::new() }; 4];
            let title = format!("{label}: {about}");
            cases.push(Case {
                title,
                name: name.to_owned(),
                base,
                ours,
                theirs,
                merged,
                expected,
            });
        } else if !line.is_empty() {
            let case = cases.last_mut().expect("a header before the first line");
            let (columns, content) = line.split_once('|').expect("columns and a bar");
            assert!(
                columns.len() == 4,
                "{}: four columns before {content:?}",
                case.title
            );
            let texts = [
                &mut case.base,
                &mut case.ours,
                &mut case.theirs,
                &mut case.merged,
            ];
            for ((letter, column), text) in "botm".chars().zip(columns.chars()).zip(texts) {
                assert!(
                    column == letter || ". ".contains(column),
                    "{}: {line:?}",
                    case.title
                );
                if column == letter || columns.trim().is_empty() {
                    text.push_str(content);
                    text.push('\n');
                }
            }
        }
    }
    cases
}

#[test]
fn every_pair_of_edits_comes_out_as_written() {
    let mut failures = String::new();
    for case in corpus() {
        let outcome = case.merge();
        let good = match (&outcome, case.expected) {
            (Outcome::Merged(bytes), Expected::Merged) => *bytes == case.merged.as_bytes(),
            (Outcome::Conflict(conflict), Expected::Conflict) => *conflict != Conflict::Unreadable,
            _ => false,
        };
        if !good {
            let shown = match outcome {
                Outcome::Merged(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Outcome::Conflict(conflict) => format!("conflict: {conflict}\n"),
            };
            writeln!(
                failures,
                "--- {} ({:?})\n{shown}",
                case.title, case.expected
            )
            .expect("a string");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn the_corpus_is_as_large_as_it_claims() {
    let cases = corpus();
    let mut formats: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    formats.dedup();
    assert!(formats.len() >= 16, "{formats:?}");
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let conflicts = cases
        .iter()
        .filter(|case| case.expected == Expected::Conflict)
        .count();
    assert!(
        conflicts >= 70 && cases.len() - conflicts >= 120,
        "{conflicts} conflicts of {}",
        cases.len()
    );
    let mut titles: Vec<&str> = cases.iter().map(|case| case.title.as_str()).collect();
    titles.sort_unstable();
    assert!(
        titles.windows(2).all(|pair| pair[0] != pair[1]),
        "two cases with one title"
    );
    for case in &cases {
        assert_ne!(case.ours, case.theirs, "{}: the sides differ", case.title);
    }
}

#[test]
fn the_order_of_the_sides_never_decides_whether_they_merge() {
    for case in corpus() {
        let (one, other) = (case.merge(), case.merge_swapped());
        let merged = |outcome: &Outcome| matches!(outcome, Outcome::Merged(_));
        assert_eq!(
            merged(&one),
            merged(&other),
            "{}: {one:?} {other:?}",
            case.title
        );
    }
}

#[test]
fn no_edited_line_is_lost() {
    for case in corpus() {
        for outcome in [case.merge(), case.merge_swapped()] {
            let Outcome::Merged(bytes) = outcome else {
                continue;
            };
            let merged = String::from_utf8(bytes).expect("text");
            // A comma belongs to the place in JSON, not to the entry.
            let words = |line: &'_ str| line.trim().trim_end_matches(',').to_owned();
            let has =
                |text: &str, line: &str| text.lines().any(|other| words(other) == words(line));
            for (one, other) in [(&case.ours, &case.theirs), (&case.theirs, &case.ours)] {
                // An object on one line is merged within the line.
                let whole = |line: &&str| line.starts_with('{') && line.ends_with('}');
                for line in one
                    .lines()
                    .filter(|line| !has(&case.base, line) && !whole(line))
                {
                    assert!(has(&merged, line), "{}: {line:?} is lost", case.title);
                }
                for line in case
                    .base
                    .lines()
                    .filter(|line| !has(one, line) && !has(other, line))
                {
                    assert!(!has(&merged, line), "{}: {line:?} is back", case.title);
                }
            }
        }
    }
}

#[test]
fn what_its_format_could_read_it_still_can() {
    for case in corpus() {
        if let Outcome::Merged(bytes) = case.merge() {
            let merged = String::from_utf8(bytes).expect("text");
            if parses(&case.name, &case.ours) && parses(&case.name, &case.theirs) {
                assert!(parses(&case.name, &merged), "{}:\n{merged}", case.title);
            }
        }
    }
}

/// Whether the format's own parser takes the text; formats without one take everything.
pub(crate) fn parses(name: &str, text: &str) -> bool {
    if name.ends_with(".json") {
        let options = jsonc_parser::ParseOptions {
            allow_missing_commas: false,
            ..Default::default()
        };
        jsonc_parser::parse_to_ast(text, &Default::default(), &options).is_ok()
    } else if name.ends_with(".toml") {
        text.parse::<toml_edit::DocumentMut>().is_ok()
    } else if name.ends_with(".yml") || name.ends_with(".yaml") {
        saphyr_parser::Parser::new_from_str(text).all(|event| event.is_ok())
    } else {
        true
    }
}

#[test]
fn a_side_that_equals_the_base_or_the_other_side_does_not_count() {
    for case in corpus() {
        let name = case.name.as_bytes();
        let [base, ours, theirs] =
            [&case.base, &case.ours, &case.theirs].map(|text| text.as_bytes());
        for sides in [
            &[ours, ours][..],
            &[base, ours],
            &[ours, base],
            &[ours],
            &[base, ours, base, ours],
        ] {
            assert_eq!(
                merge(name, Some(base), sides),
                Outcome::Merged(ours.to_vec()),
                "{}",
                case.title
            );
        }
        assert_eq!(
            merge(name, Some(base), &[base, base]),
            Outcome::Merged(base.to_vec())
        );
        assert_eq!(
            merge(name, Some(base), &[base, ours, theirs, ours]),
            case.merge(),
            "{}",
            case.title
        );
    }
}

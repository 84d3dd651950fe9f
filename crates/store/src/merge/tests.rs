//! What the corpus of edits does not show: limits, odd bytes, more than two sides, hostile input.

use std::path::Path;

use imara_diff::Token;
use proptest::prelude::*;

use super::diff::hunks;
use super::format::Format;
use super::{Conflict, MAX_BYTES, MAX_SIDES, Outcome, fold, ini, lines, merge};

fn merged(name: &str, base: &str, sides: &[&str]) -> Result<String, Conflict> {
    let sides: Vec<&[u8]> = sides.iter().map(|side| side.as_bytes()).collect();
    fold(name.as_bytes(), base.as_bytes(), &sides)
        .map(|bytes| String::from_utf8(bytes).expect("text"))
}

fn check(name: &str, base: &str, sides: &[&str], expected: &str) {
    assert_eq!(
        merged(name, base, sides).as_deref(),
        Ok(expected),
        "{name}: {base:?} {sides:?}"
    );
}

fn lines_at(line: usize) -> Conflict {
    Conflict::Lines { line }
}

fn key(path: &[&str]) -> Conflict {
    Conflict::Key {
        path: path.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// Every text of the corpus files, columns and all stripped, with the name of the edited file.
fn corpus_texts() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/merge");
    let entries = std::fs::read_dir(folder).expect("the corpus");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "cases"));
    let mut texts = Vec::new();
    for file in files {
        let content = std::fs::read_to_string(file).expect("a corpus file");
        let (name, cases) = content.split_once('\n').expect("a name");
        for case in cases.split("## ") {
            for column in 0..4 {
                let lines = case.lines().filter_map(|line| line.split_once('|'));
                let held = lines.filter(|(columns, _)| {
                    columns.trim().is_empty()
                        || columns.chars().nth(column).is_some_and(|c| c != '.')
                });
                let text: String = held.map(|(_, line)| format!("{line}\n")).collect();
                texts.push((name.to_owned(), text));
            }
        }
    }
    texts
}

#[test]
fn taking_apart_and_putting_together_changes_no_byte() {
    let mut apart = 0;
    let odd = [
        (
            "a.json",
            "// é\n{ /* a */ \"é\" /* b */ : 1 /* c, */ , // d\n\n  \"b\": {} ,\n /* e */ } // f\n",
        ),
        (
            "a.json",
            "{\"a\":[1,\n2],\"b\":{\"c\":\"}\"}\n  , \"d\": \"//\" }",
        ),
        (
            "a.toml",
            "\n# a\n\n\"x = y\" = '''\n[no]\n''''\n[ a . b ] # c\nz = [ # ]\n 1 ]\n# end\n\n# more\n[[é]]\n",
        ),
        ("a.toml", "a = \"\"\"\\\"\"\"\"\"\"\nb = \"#\"\n"),
        (
            "a.yaml",
            "# a\n\n---\na:\n  b: |\n    # text\n\n\n  c: >-\n   x\n    # d\n# e\nf:\n- 1\n# g\n- 2\n",
        ),
        (
            "a.ini",
            "; a\n\n[ s ] ; b\nk\t= v\n  more\n\n  more\n; c\n\n[t]\n",
        ),
    ];
    let odd = odd.map(|(name, text)| (name.to_owned(), text.to_owned()));
    for (name, text) in corpus_texts().into_iter().chain(odd) {
        if let Some(layout) = Format::of(name.as_bytes()).layout(&text) {
            apart += 1;
            assert_eq!(layout.render(), text, "{name}");
        }
    }
    assert!(apart > 400, "{apart} texts were taken apart");
}

#[test]
fn names_tell_the_format() {
    let of = |name: &str| Format::of(name.as_bytes());
    assert_eq!(of("settings.JSON"), Format::Json);
    assert_eq!(of("tsconfig.jsonc"), Format::Json);
    assert_eq!(of("Cargo.lock"), Format::Toml);
    assert_eq!(of("config.yml"), Format::Yaml);
    assert_eq!(of(".gitconfig"), Format::Ini(ini::Dialect::Git));
    assert_eq!(of("sshd.service"), Format::Ini(ini::Dialect::Plain));
    assert_eq!(of("setup.cfg"), Format::Ini(ini::Dialect::Indented));
    for name in [
        "",
        ".",
        "config",
        "json",
        ".bashrc",
        "notes.md",
        "a.json.bak",
        "events.jsonl",
    ] {
        assert_eq!(of(name), Format::Lines, "{name}");
    }
    assert_eq!(Format::of(b"\xff.json"), Format::Json);
}

#[test]
fn several_sides_fold_in_their_order() {
    check(
        "a.ini",
        "[s]\na = 1\n",
        &["[s]\na = 1\nb = 2\n", "[s]\na = 1\nc = 3\n", "[s]\na = 4\n"],
        "[s]\na = 4\nb = 2\nc = 3\n",
    );
    check(
        "a.ini",
        "[s]\na = 1\n",
        &["[s]\na = 1\nc = 3\n", "[s]\na = 1\nb = 2\n"],
        "[s]\na = 1\nc = 3\nb = 2\n",
    );
    check(
        "a",
        "1\n2\n3\n4\n5\n",
        &["0\n2\n3\n4\n5\n", "1\n2\n0\n4\n5\n", "1\n2\n3\n4\n0\n"],
        "0\n2\n0\n4\n0\n",
    );
    // The first and the third do not agree, though the second agrees with both.
    let sides = [
        "[s]\na = 2\nb = 1\n",
        "[s]\na = 1\nb = 2\n",
        "[s]\na = 3\nb = 1\n",
    ];
    assert_eq!(
        merged("a.ini", "[s]\na = 1\nb = 1\n", &sides),
        Err(key(&["[s]", "a"]))
    );
}

#[test]
fn no_common_ancestor_is_an_empty_base() {
    let run = |name: &str, sides: &[&str]| {
        let sides: Vec<&[u8]> = sides.iter().map(|side| side.as_bytes()).collect();
        merge(name.as_bytes(), None, &sides)
    };
    let merged = |text: &str| Outcome::Merged(text.as_bytes().to_vec());
    assert_eq!(run("a", &["x\n", "x\n"]), merged("x\n"));
    assert_eq!(run("a", &["", "x\n"]), merged("x\n"));
    assert_eq!(run("a", &["x\n", "y\n"]), Outcome::Conflict(lines_at(1)));
    assert_eq!(
        run("a.toml", &["x = 1\n", "y = 2\n"]),
        merged("x = 1\ny = 2\n")
    );
    assert_eq!(
        run("a.toml", &["x = 1\n", "x = 2\n"]),
        Outcome::Conflict(key(&["x"]))
    );
    assert_eq!(
        run("a.json", &["{\"a\":1}", "{\"b\":2}"]),
        merged("{\"a\":1,\"b\":2}")
    );
    assert_eq!(
        run("a.json", &["{\"a\":1}", "[1]"]),
        Outcome::Conflict(Conflict::Key { path: vec![] })
    );
    assert_eq!(run("a", &[]), merged(""));
}

#[test]
fn what_is_not_text_is_not_merged() {
    for bytes in [
        &b"a\0b\n"[..],
        b"\xff\xfea\n",
        b"caf\xe9\n",
        b"\xed\xa0\x80",
    ] {
        let both = merge(b"a", Some(b"a\nb\n"), &[b"x\na\nb\n", bytes]);
        assert_eq!(both, Outcome::Conflict(Conflict::NotText), "{bytes:?}");
        // One edit alone is taken as it is.
        assert_eq!(
            merge(b"a", Some(b"a\n"), &[b"a\n", bytes]),
            Outcome::Merged(bytes.to_vec())
        );
    }
}

#[test]
fn limits_hold_for_every_text_and_for_the_result() {
    let base = "x\n".repeat(MAX_BYTES / 2 - 2);
    let (ours, theirs) = (format!("a\n{base}"), format!("{base}b\n"));
    let whole = format!("a\n{base}b\n");
    assert_eq!(whole.len(), MAX_BYTES);
    check("a", &base, &[&ours, &theirs], &whole);
    let longer = format!("{base}bb\n");
    assert_eq!(
        merged("a", &base, &[&ours, &longer]),
        Err(Conflict::TooLarge)
    );
    let longest = "x".repeat(MAX_BYTES + 1);
    assert_eq!(merged("a", &longest, &["a", "b"]), Err(Conflict::TooLarge));
    assert_eq!(merged("a", "a", &["b", &longest]), Err(Conflict::TooLarge));
    check("a", "a", &["a", &longest], &longest);
    let many: Vec<String> = (0..=MAX_SIDES)
        .map(|number| format!("[s]\nk{number} = 1\n"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(
        merged("a.ini", "", &many),
        Err(Conflict::TooManySides(MAX_SIDES + 1))
    );
    assert!(merged("a.ini", "", &many[1..]).is_ok());
}

#[test]
fn line_endings_marks_and_the_last_newline_are_apart_from_the_lines() {
    // One side changes them, the other a line.
    check(
        "a",
        "1\n2\n3\n",
        &["1\r\n2\r\n3\r\n", "1\n2\n4\n"],
        "1\r\n2\r\n4\r\n",
    );
    check(
        "a",
        "1\r\n2\r\n3\r\n",
        &["1\n2\n3\n", "1\r\n2\r\n4"],
        "1\n2\n4",
    );
    check("a", "1\n2\n3", &["1\n2\n3\n", "0\n2\n3"], "0\n2\n3\n");
    check("a", "1\n2\n3", &["1\n2\n3\n4", "0\n2\n3"], "0\n2\n3\n4");
    check(
        "a",
        "1\n2\n3\n",
        &["\u{feff}1\n2\n3\n", "0\n2\n3\n"],
        "\u{feff}0\n2\n3\n",
    );
    check(
        "a.json",
        "\u{feff}{\r\n\"a\": 1,\r\n\"b\": 1\r\n}",
        &[
            "\u{feff}{\r\n\"a\": 2,\r\n\"b\": 1\r\n}",
            "\u{feff}{\r\n\"a\": 1,\r\n\"b\": 2\r\n}",
        ],
        "\u{feff}{\r\n\"a\": 2,\r\n\"b\": 2\r\n}",
    );
    check(
        "a.toml",
        "a = 1",
        &["a = 1\nb = 2", "a = 1\nc = 3"],
        "a = 1\nb = 2\nc = 3",
    );
    // A line of another kind is part of the text.
    check(
        "a",
        "1\r\n2\n3\n4\n",
        &["1\r\n2\n3\n5\n", "1\n2\n3\n4\n"],
        "1\n2\n3\n5\n",
    );
    check("a", "1\r2\r3", &["1\r2\r3\n4", "1\r2\r3"], "1\r2\r3\n4");
}

#[test]
fn numbers_never_mix() {
    for name in [
        "a",
        "a.json",
        "a.toml",
        "a.yaml",
        "a.ini",
        ".gitconfig",
        "a.service",
    ] {
        assert!(merged(name, "12", &["13", "14"]).is_err(), "{name}");
        assert!(
            merged(name, "a = 12\n", &["a = 13\n", "a = 14\n"]).is_err(),
            "{name}"
        );
        assert!(
            merged(name, "a: 12\n", &["a: 13\n", "a: 14\n"]).is_err(),
            "{name}"
        );
        assert!(
            merged(name, "{\"a\":12}", &["{\"a\":13}", "{\"a\":14}"]).is_err(),
            "{name}"
        );
    }
}

#[test]
fn what_the_lines_would_give_is_no_merge_if_the_keys_disagree() {
    // Far apart in the text, one key all the same.
    let base = "a = 1\n\n[s]\nx = 1\n\n[t]\ny = 1\n";
    let ours = "a = 1\nb = 1\n\n[s]\nx = 1\n\n[t]\ny = 1\n";
    let theirs = "b = 2\na = 1\n\n[s]\nx = 1\n\n[t]\ny = 1\n";
    assert_eq!(merged("a.toml", base, &[ours, theirs]), Err(key(&["b"])));
    let base = "{\n\"a\": 1,\n\"b\": 1,\n\"c\": 1\n}\n";
    let ours = "{\n\"x\": 1,\n\"a\": 1,\n\"b\": 1,\n\"c\": 1\n}\n";
    let theirs = "{\n\"a\": 1,\n\"b\": 1,\n\"x\": 2,\n\"c\": 1\n}\n";
    assert_eq!(merged("a.json", base, &[ours, theirs]), Err(key(&["x"])));
}

#[test]
fn a_result_that_its_format_refuses_is_a_conflict() {
    // Each closes the list in its own way; as lines they would go together.
    let base = "{\n\"a\": [\n1,\n2,\n3\n]\n}\n";
    let ours = "{\n\"a\": [\n1\n],\n\"x\": [\n2,\n3\n]\n}\n";
    let theirs = "{\n\"a\": [\n1,\n2\n],\n\"y\": [\n3\n]\n}\n";
    assert!(merged("a.json", base, &[ours, theirs]).is_err());
    // Both anchors are sound, but a key would be there twice.
    let base = "a: &x 1\nb: 2\nc: 3\nd: *x\n";
    let ours = "k: 1\na: &x 1\nb: 2\nc: 3\nd: *x\n";
    let theirs = "a: &x 1\nb: 2\nc: 3\nk: 1\nd: *x\n";
    assert_eq!(
        merged("a.yaml", base, &[ours, theirs]),
        Err(Conflict::Invalid)
    );
    // JSON without comments stays without trailing commas.
    let base = "{\n\"a\": 1\n}\n";
    let ours = "{\n\"a\": 1,\n\"b\": 1\n}\n";
    let theirs = "{\n\"c\": 1\n,\"a\": 1\n}\n";
    check(
        "a.json",
        base,
        &[ours, theirs],
        "{\n\"c\": 1\n,\"a\": 1,\n\"b\": 1\n}\n",
    );
}

#[test]
fn a_wrong_guess_falls_back_to_lines() {
    for name in [
        "a.json",
        "a.toml",
        "a.yaml",
        "a.ini",
        "a.service",
        ".gitconfig",
    ] {
        let base = "\t{ [ =\none\ntwo\nthree\n";
        check(
            name,
            base,
            &["\t{ [ =\n1\ntwo\nthree\n", "\t{ [ =\none\ntwo\n3\n"],
            "\t{ [ =\n1\ntwo\n3\n",
        );
        assert_eq!(
            merged(
                name,
                base,
                &["\t{ [ =\n1\ntwo\nthree\n", "\t{ [ =\none\n2\nthree\n"]
            ),
            Err(lines_at(2))
        );
    }
}

#[test]
fn comments_that_both_sides_would_move_are_not_written_twice() {
    let base = "[s]\na = 1\n# end\n";
    let (ours, theirs) = ("[s]\na = 1\n# end\nb = 2\n", "[s]\na = 1\n# end\nc = 3\n");
    assert!(merged("a.ini", base, &[ours, theirs]).is_err());
}

#[test]
fn lines_report_where_they_clash() {
    assert_eq!(
        lines::merge("1\n2\n3\n", "1\n0\n3\n", "1\n9\n3\n"),
        Err(lines_at(2))
    );
    assert_eq!(
        lines::merge("1\n2\n", "1\n2\n3\n", "1\n2\n4\n"),
        Err(lines_at(3))
    );
    let conflict = key(&["[core]", "editor"]);
    assert_eq!(conflict.to_string(), "both changed [core] > editor");
    assert_eq!(key(&[]).to_string(), "both changed the whole file");
}

/// Repeated up to the limit, these are the worst that the parsers and the diff were thought to meet.
const HOSTILE: &[(&str, &str)] = &[
    ("a.json", "["),
    ("a.json", "{\"a\":"),
    ("a.json", "[1,"),
    ("a.json", "/*"),
    ("a.json", "\"\\"),
    ("a.toml", "a = ["),
    ("a.toml", "["),
    ("a.toml", "[[a]]\n"),
    ("a.toml", "a."),
    ("a.toml", "'''"),
    ("a.yaml", "["),
    ("a.yaml", "- "),
    ("a.yaml", "? "),
    ("a.yaml", "a: "),
    ("a.yaml", "{a: "),
    ("a.yaml", "a:\n "),
    ("a.yaml", "&a "),
    ("a.yaml", "- a\n"),
    ("a.yaml", "\""),
    ("a.yaml", "!"),
    ("a.ini", "[s]\n"),
    ("a.ini", "a=\n"),
    ("a.ini", "a=\\\n"),
    ("a.ini", " a=1\n  b\n"),
    ("a", "\n"),
    ("a", "a\n"),
    ("a", "a\nb\n"),
    ("a", "\r"),
];

#[test]
fn hostile_text_of_the_greatest_size_ends_in_an_answer() {
    let fill = |unit: &str| unit.repeat((MAX_BYTES - 16) / unit.len());
    for (name, unit) in HOSTILE {
        let base = fill(unit);
        let ours = format!("x\n{base}");
        let theirs = format!("{base}\ny\n");
        let outcome = merge(
            name.as_bytes(),
            Some(base.as_bytes()),
            &[ours.as_bytes(), theirs.as_bytes()],
        );
        assert_ne!(
            outcome,
            Outcome::Conflict(Conflict::Unreadable),
            "{name} {unit:?}"
        );
    }
}

proptest! {
    #[test]
    fn changes_lead_from_one_sequence_to_the_other(
        before in prop::collection::vec(0..20_u32, 0..40),
        after in prop::collection::vec(0..20_u32, 0..40),
    ) {
        let [one, other] = [&before, &after].map(|items| items.iter().copied().map(Token).collect::<Vec<_>>());
        let mut result = Vec::new();
        let mut at = 0;
        for hunk in hunks(&one, &other, 20) {
            let (from, to) = (hunk.before.start as usize, hunk.before.end as usize);
            // Something that is kept lies between two changes.
            prop_assert!(from > at || at == 0);
            result.extend_from_slice(&before[at..from]);
            result.extend_from_slice(&after[hunk.after.start as usize..hunk.after.end as usize]);
            at = to;
        }
        result.extend_from_slice(&before[at..]);
        prop_assert_eq!(result, after);
    }
}

#[test]
fn too_many_common_lines_are_one_change() {
    let noise = |start: usize| -> String {
        let kinds =
            (start..start + 60_000).map(|i| if (i * i / 7) % 3 == 0 { "a\n" } else { "b\n" });
        kinds.collect()
    };
    let base = format!("first\n{}last\n", noise(0));
    let ours = format!("first\n{}last\n", noise(1));
    // What is outside still merges, what is inside does not.
    let theirs = format!("{base}more\n");
    check("a", &base, &[&ours, &theirs], &format!("{ours}more\n"));
    let theirs = base.replacen("a\nb\n", "a\nc\nb\n", 100);
    assert_eq!(merged("a", &base, &[&ours, &theirs]), Err(lines_at(4)));
}

#[test]
#[ignore = "a measurement, run by hand"]
#[allow(clippy::print_stderr)]
fn measure_large_files() {
    let time = |what: &str, name: &str, base: &str, sides: &[&str]| {
        let sides: Vec<&[u8]> = sides.iter().map(|side| side.as_bytes()).collect();
        let start = std::time::Instant::now();
        let outcome = merge(name.as_bytes(), Some(base.as_bytes()), &sides);
        let took = start.elapsed();
        let outcome = match outcome {
            Outcome::Merged(bytes) => format!("{} bytes", bytes.len()),
            Outcome::Conflict(conflict) => conflict.to_string(),
        };
        eprintln!("{took:>12.1?}  {what} ({} bytes): {outcome}", base.len());
    };
    for entries in [5_000, 20_000] {
        type Shape = (
            &'static str,
            &'static str,
            fn(usize, usize) -> String,
            &'static str,
        );
        let shapes: [Shape; 4] = [
            (
                "a.json",
                "{\n  \"z\": 0,\n",
                |i, v| format!("  // about {i}\n  \"key {i}\": \"value {v}\",\n"),
                "  \"end\": 1\n}\n",
            ),
            (
                "a.toml",
                "",
                |i, v| format!("# about {i}\nkey-{i} = \"value {v}\"\n"),
                "",
            ),
            (
                "a.yaml",
                "",
                |i, v| format!("# about {i}\nkey-{i}: \"value {v}\"\n"),
                "",
            ),
            (
                "a.ini",
                "[s]\n",
                |i, v| format!("# about {i}\nkey-{i} = \"value {v}\"\n"),
                "",
            ),
        ];
        for (name, head, entry, tail) in shapes {
            let write = |value: fn(usize) -> usize| {
                let body: String = (0..entries).map(|i| entry(i, value(i))).collect();
                format!("{head}{body}{tail}")
            };
            let (base, ours, theirs) = (
                write(|i| i),
                write(|i| i + i % 2),
                write(|i| i + (i + 1) % 2),
            );
            time("every key changed by one", name, &base, &[&ours, &theirs]);
        }
    }
    // A simple generator of numbers that repeat often.
    let noise = |seed: u64, kinds: u64| {
        let mut state = seed;
        let mut next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % kinds
        };
        let mut text = String::new();
        while text.len() < MAX_BYTES - 16 {
            text += &format!("{}\n", next());
        }
        text
    };
    for kinds in [2, 10, 100, 10_000, 1_000_000] {
        let (base, ours, theirs) = (noise(1, kinds), noise(2, kinds), noise(3, kinds));
        time(
            &format!("noise of {kinds} different lines"),
            "a",
            &base,
            &[&ours, &theirs],
        );
    }
    for (name, unit) in HOSTILE {
        let base = unit.repeat((MAX_BYTES - 16) / unit.len());
        time(
            &format!("{name} {unit:?}"),
            name,
            &base,
            &[&format!("x\n{base}"), &format!("{base}\ny\n")],
        );
    }
}

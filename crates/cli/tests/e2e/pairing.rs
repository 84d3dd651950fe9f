//! Who comes in, and who does not.

use crate::support::{Device, Hosting, json, json_lines, text, write};

/// The code with another last word.
fn wrong_words(code: &str) -> String {
    let (rest, last) = code.rsplit_once('-').expect("words");
    let other = if last == "zoo" { "able" } else { "zoo" };
    format!("{rest}-{other}")
}

#[test]
fn a_wrong_code_burns_it_and_both_sides_say_so() {
    let a = Device::founded_whole("a");
    write(a.root.join("secret"), "s");
    let b = Device::new("b");
    let hosting = a.host();
    let (code, address) = (hosting.code(), a.address());
    let error = b.fails(1, b.join_args(&wrong_words(&code), address));
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("wrong"), "{error}");
    assert!(
        error["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("pacsync pair")),
        "{error}"
    );
    let (exit, events) = hosting.finish();
    assert_eq!(exit, Some(1), "{events:?}");
    assert_eq!(events[0]["event"], "wrong_code", "{events:?}");
    let told = events.last().expect("an error");
    assert!(told["error"]["hint"].is_string(), "{events:?}");
    // The right one is of no use any more.
    let error = b.fails(1, b.join_args(&code, address));
    assert!(error["hint"].is_string(), "{error}");
    assert!(!b.home.join("pac").exists() && b.tree().0.is_empty());
    assert_eq!(
        a.ok(["devices"])["devices"].as_array().map(Vec::len),
        Some(1)
    );
    // A new one is.
    b.pair_with(&a);
    b.wait();
    assert!(b.root.join("secret").exists());
}

#[test]
fn a_wrong_number_is_not_answered_and_burns_nothing() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    let hosting = a.host();
    let code = hosting.code();
    let (number, words) = code.split_once('-').expect("a number");
    let other = if number == "0000" { "1111" } else { "0000" };
    let error = b.fails(1, b.join_args(&format!("{other}-{words}"), a.address()));
    assert!(error["hint"].is_string(), "{error}");
    b.join(&code, a.address());
    assert_eq!(hosting.finish().0, Some(0));
}

#[test]
fn a_code_is_good_for_one_device() {
    let a = Device::founded_whole("a");
    let (b, c) = (Device::new("b"), Device::new("c"));
    let hosting = a.host();
    let (code, address) = (hosting.code(), a.address());
    b.join(&code, address);
    assert_eq!(hosting.finish().0, Some(0));
    let error = c.fails(1, c.join_args(&code, address));
    assert!(error["hint"].is_string(), "{error}");
}

#[test]
fn a_code_ends_with_the_command_that_shows_it() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    let hosting = a.host();
    let (code, address) = (hosting.code(), a.address());
    hosting.cancel();
    // The daemon hears of it when the connection breaks; that it takes another pairing tells that
    // it has.
    let again = a.until("lets another pairing begin", |a| {
        Hosting::try_start(a.command().args(["pair", "--yes", "--json"])).ok()
    });
    let error = b.fails(1, b.join_args(&code, address));
    assert!(error["hint"].is_string(), "{error}");
    b.join(&again.code(), address);
    assert_eq!(again.finish().0, Some(0));
}

#[test]
fn what_is_no_code_is_a_mistake_in_usage() {
    let b = Device::new("b");
    let address = "127.0.0.1:9".parse().expect("an address");
    for code in [
        "hello",
        "1234",
        "1234-able",
        "1234-able-nosuchword",
        "12-able-acid",
    ] {
        let error = b.fails(2, b.join_args(code, address));
        assert_eq!(error["kind"], "usage", "{error}");
    }
}

#[test]
fn nobody_at_the_address_is_said_so() {
    let b = Device::new("b");
    let free = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let error = b.fails(
        1,
        b.join_args("1234-able-acid", free.local_addr().expect("an address")),
    );
    assert!(error["hint"].is_string(), "{error}");
    assert!(!b.home.join("pac").exists());
}

#[test]
fn a_home_that_has_a_pac_refuses_to_join_and_says_how_to_leave() {
    let a = Device::founded_whole("a");
    let b = Device::founded("b");
    let pac = b.status()["pac"].clone();
    let hosting = a.host();
    let (code, address) = (hosting.code(), a.address());
    for _ in 0..2 {
        let error = b.fails(1, b.join_args(&code, address));
        let hint = error["hint"].as_str().expect("a hint");
        assert!(hint.contains("leave") && hint.contains("--home"), "{error}");
        // Also when its daemon is down.
        let _ = b.cli(["down"]);
    }
    b.restart();
    assert_eq!(b.status()["pac"], pac);
    // The code is not burned by that.
    let c = Device::new("c");
    c.join(&code, address);
    assert_eq!(hosting.finish().0, Some(0));
}

#[test]
fn a_member_may_not_let_others_in_and_names_who_may() {
    let (a, b) = Device::pair_of();
    let error = b.fails(4, ["pair", "--yes"]);
    assert_eq!(error["kind"], "not_authorised", "{error}");
    assert!(
        error.to_string().contains("\"a\"") || error.to_string().contains(" a"),
        "{error}"
    );
    let devices = b.ok(["devices"]);
    let roles: Vec<&str> = devices["devices"]
        .as_array()
        .expect("devices")
        .iter()
        .filter_map(|device| device["role"].as_str())
        .collect();
    assert_eq!(roles, ["member", "admin"], "{devices}");
    drop(a);
}

#[test]
fn an_admin_is_made_by_a_person_and_lets_others_in() {
    let a = Device::founded_whole("a");
    let (b, c) = (Device::new("b"), Device::new("c"));
    b.pair_as_admin_with(&a);
    b.wait();
    // Enrolled by the second admin alone, the third is a device for all.
    c.pair_with(&b);
    c.wait();
    a.wait();
    let devices = a.ok(["devices"]);
    assert_eq!(
        devices["devices"].as_array().map(Vec::len),
        Some(3),
        "{devices}"
    );
    c.connect(&a);
    write(c.root.join("from-c"), "x");
    c.wait_for(&a);
    assert!(a.root.join("from-c").exists());
}

#[test]
fn a_no_lets_nobody_in() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    let hosting = Hosting::start_answering(a.command().args(["pair", "--json"]), "n\n");
    let (code, address) = (hosting.code(), a.address());
    let error = b.fails(1, b.join_args(&code, address));
    assert!(error["hint"].is_string(), "{error}");
    let (exit, events) = hosting.finish();
    assert_eq!(exit, Some(1), "{events:?}");
    assert!(
        events.iter().any(|event| event["event"] == "attempt"),
        "{events:?}"
    );
    assert!(!b.home.join("pac").exists());
    assert_eq!(
        a.ok(["devices"])["devices"].as_array().map(Vec::len),
        Some(1)
    );
    // Nor does a no of the one that joins.
    let hosting = a.host();
    let mut args = b.join_args(&hosting.code(), address);
    args.retain(|arg| arg != "--yes");
    let mut joining = b.command();
    joining.args(args).arg("--json");
    let joining = Hosting::start_answering_unread(&mut joining, "n\n");
    let output = joining.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(json(&output)["error"]["hint"].is_string(), "{output:?}");
    assert_eq!(hosting.finish().0, Some(1));
    assert!(!b.home.join("pac").exists());
}

#[test]
fn both_ends_report_a_pairing_as_json() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    let hosting = a.host();
    let first = hosting.first.clone();
    assert_eq!(first["event"], "code", "{first}");
    assert!(
        first["expires_ms"].is_u64() && first["addresses"].is_array(),
        "{first}"
    );
    let report = b.join(&hosting.code(), a.address());
    assert_eq!(report["joined"], true, "{report}");
    assert_eq!(report["device"]["name"], "b", "{report}");
    assert_eq!(report["pac"], a.status()["pac"], "{report}");
    let (_, events) = hosting.finish();
    let kinds: Vec<&str> = events
        .iter()
        .filter_map(|event| event["event"].as_str())
        .collect();
    assert_eq!(kinds, ["attempt", "enrolled"]);
    for event in &events {
        assert_eq!(
            (&event["name"], &event["device"]),
            (&"b".into(), &report["device"]["id"])
        );
    }
}

#[test]
fn the_one_that_let_it_in_can_be_waited_for_at_once() {
    let a = Device::founded_whole("a");
    write(a.root.join("file"), "x");
    let b = Device::new("b");
    b.pair_with(&a);
    b.wait_for(&a);
    assert!(b.root.join("file").exists());
}

#[test]
fn the_code_reaches_people_too() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    let mut child = a
        .command()
        .args(["pair", "--yes"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("runs");
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("piped")));
    let first = lines.next().expect("a line").expect("text");
    let code = first
        .strip_prefix("code: ")
        .expect("the code comes first")
        .to_owned();
    let output = b.cli(b.join_args(&code, a.address()));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output).contains("joined pac"), "{output:?}");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    let output = b.cli(["status", "--json"]);
    assert_eq!(json_lines(&output), [json(&output)]);
}

#[test]
fn nobody_to_answer_uses_up_no_code() {
    let a = Device::founded_whole("a");
    let b = Device::new("b");
    // Tests run commands with an empty standard input.
    let error = a.fails(2, ["pair"]);
    assert!(error["hint"].is_string(), "{error}");
    let hosting = a.host();
    let args = b.join_args(&hosting.code(), a.address());
    let unasked = args.iter().filter(|arg| *arg != "--yes");
    let error = b.fails(2, unasked.clone());
    assert!(error["hint"].is_string(), "{error}");
    b.join(&hosting.code(), a.address());
    assert_eq!(hosting.finish().0, Some(0));
}

//! What a version is called that goes beside its path: `report (laptop, 2026-11-22).txt`.

use pacsync_protocol::row::Name;

/// Most bytes of a device's name in a file's name.
const DEVICE_MAX: usize = 40;

/// The name for the version that a device wrote; the first of several counts from 1. The same on
/// every device, so that two who settle one conflict make the same files. At most `max` bytes.
pub(super) fn beside(
    name: &Name,
    device: &str,
    time_ms: u64,
    number: usize,
    max: usize,
) -> Option<Name> {
    let device: String = device
        .chars()
        .map(|c| if c == '/' || c.is_control() { '-' } else { c })
        .collect();
    let device = cut(device.trim().as_bytes(), DEVICE_MAX);
    let day = day(time_ms);
    let count = match number {
        0 | 1 => String::new(),
        more => format!(", {more}"),
    };
    let mark = [b" (", device, b", ", day.as_bytes(), count.as_bytes(), b")"].concat();
    let (stem, end) = split(name.as_bytes());
    // What is too long is an ending no more.
    let (stem, end) = match mark.len() + end.len() < max {
        true => (stem, end),
        false => (name.as_bytes(), &b""[..]),
    };
    let room = max.checked_sub(mark.len() + end.len())?;
    Name::new([cut(stem, room), &mark, end].concat()).ok()
}

/// The day in UTC, which does not depend on where somebody is.
fn day(time_ms: u64) -> String {
    let time = i64::try_from(time_ms).ok();
    let time = time.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.unwrap_or_default();
    time.strftime("%Y-%m-%d").to_string()
}

/// A name without its ending, and the ending with its dot. `.bashrc` has none.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 => name.split_at(dot),
        _ => (name, b""),
    }
}

/// At most `max` bytes, without the part of a character at the end.
fn cut(bytes: &[u8], max: usize) -> &[u8] {
    let Some(head) = bytes.get(..max) else {
        return bytes;
    };
    let begins = |byte: &u8| *byte & 0xc0 != 0x80;
    if bytes.get(max).is_none_or(begins) {
        return head;
    }
    let end = head.iter().rposition(begins).unwrap_or_default();
    head.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 1_795_305_600_000;

    fn named(name: &str, device: &str, number: usize, max: usize) -> String {
        let name = Name::new(name).expect("a name");
        let made = beside(&name, device, DAY_MS, number, max).expect("room");
        String::from_utf8(made.as_bytes().to_vec()).expect("text")
    }

    #[test]
    fn a_name_says_whose_and_of_when() {
        for (name, expected) in [
            ("report.txt", "report (laptop, 2026-11-22).txt"),
            ("report", "report (laptop, 2026-11-22)"),
            (".bashrc", ".bashrc (laptop, 2026-11-22)"),
            ("a.tar.gz", "a.tar (laptop, 2026-11-22).gz"),
        ] {
            assert_eq!(named(name, "laptop", 1, 255), expected);
        }
        assert_eq!(named("a.b", "x/y\n", 3, 255), "a (x-y-, 2026-11-22, 3).b");
    }

    #[test]
    fn a_name_fits_and_stays_text() {
        let long = "ż".repeat(127);
        for max in 60..255 {
            let made = named(&long, &"ó".repeat(60), 2, max);
            assert!(made.len() <= max, "{made}");
        }
        let made = named(&format!("a.{}", "x".repeat(240)), "laptop", 1, 255);
        assert!(made.ends_with("(laptop, 2026-11-22)"), "{made}");
        let name = Name::new("a").expect("a name");
        assert_eq!(beside(&name, "laptop", DAY_MS, 1, 10), None);
    }
}

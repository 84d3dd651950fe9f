//! What daemons at rest cost.

use std::fs;
use std::time::Duration;

use crate::rig::{Pair, Stage, heavy, say};

/// Measures on the clock, so it is run by hand, with a release build:
/// `cargo test --release -p pacsync --test faults -- --ignored --nocapture idle`, or with the path
/// of such a binary in `PACSYNC_BINARY`.
#[test]
#[ignore = "measures; run it by hand with a release build"]
fn ten_thousand_files_at_rest() {
    let _heavy = heavy();
    let pair = Pair::staged(Stage::Here, Stage::Here, |anna, _| {
        for at in 0_u32..10_000 {
            let dir = anna.root.join(format!("dir-{}", at / 200));
            fs::create_dir_all(&dir).expect("makes it");
            fs::write(
                dir.join(format!("file-{at}")),
                at.to_le_bytes().repeat(1_024),
            )
            .expect("writes");
        }
    });
    pair.converge();
    // What was put off until later is done by then.
    std::thread::sleep(Duration::from_secs(5));
    let before = [pair.a.ticks(), pair.b.ticks()];
    std::thread::sleep(Duration::from_secs(10));
    for (machine, before) in [&pair.a, &pair.b].into_iter().zip(before) {
        let (ticks, memory) = (machine.ticks() - before, machine.memory_kib());
        say(&format!(
            "{}: {memory} KiB resident, {ticks} ticks in 10 s",
            machine.name
        ));
        assert!(
            ticks <= 2,
            "{}: {ticks} ticks of processor time",
            machine.name
        );
        assert!(memory < 40 << 10, "{}: {memory} KiB", machine.name);
    }
}

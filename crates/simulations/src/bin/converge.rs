//! Times how long two daemons on loopback take to converge on 10,000 files of 4 KiB and on one
//! file of 1 GiB, beside `cp -a` and `rsync` in the same run.
//!
//! `cargo run --release -p pacsync-simulations --bin converge -- [PROGRAM [RUNS]]`: the program
//! is `target/release/pacsync` unless named. Prints medians.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pacsync_simulations::device::Device;
use pacsync_simulations::tree;

#[expect(clippy::print_stdout, reason = "a measurement's table")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = arguments
        .next()
        .unwrap_or_else(|| "target/release/pacsync".into());
    let program = std::fs::canonicalize(&program)
        .with_context(|| format!("{program}: build it with `cargo build --release`"))?;
    let runs: usize = arguments.next().map_or(Ok(3), |runs| runs.parse())?;
    let work = tempfile::tempdir()?;
    let small = work.path().join("small");
    tree::small_files(&small, 10_000, 4_096, 1)?;
    let large = work.path().join("large");
    std::fs::create_dir_all(&large)?;
    tree::large_file(&large.join("file"), 1 << 30, 2)?;
    println!("medians of {runs} runs, seconds");
    for (name, source) in [("10,000 x 4 KiB", &small), ("1 GiB", &large)] {
        let mut times: Vec<Vec<Duration>> = vec![vec![]; 4];
        let mut peaks = (0, 0);
        for run in 0..runs {
            let dir = work.path().join(format!("run{run}"));
            std::fs::create_dir_all(&dir)?;
            let (index, converge, peak) = pacsync(&program, source, &dir)?;
            peaks = (peaks.0.max(peak.0), peaks.1.max(peak.1));
            let cp = copy("cp", &["-a"], source, &dir.join("cp"))?;
            let rsync = copy("rsync", &["-a"], source, &dir.join("rsync"));
            for (all, time) in times
                .iter_mut()
                .zip([Ok(index), Ok(converge), Ok(cp), rsync])
            {
                all.extend(time);
            }
            std::fs::remove_dir_all(&dir)?;
        }
        println!(
            "{name}: pacsync first index {}, then converged {}; cp -a {}; rsync -a {}; peak memory \
             {} / {} MiB",
            median(&mut times[0]),
            median(&mut times[1]),
            median(&mut times[2]),
            median(&mut times[3]),
            peaks.0 / 1024,
            peaks.1 / 1024,
        );
    }
    Ok(())
}

fn median(times: &mut [Duration]) -> String {
    times.sort();
    match times.get(times.len() / 2) {
        Some(time) => format!("{:.2}", time.as_secs_f64()),
        None => "not installed".into(),
    }
}

fn pacsync(program: &Path, source: &Path, dir: &Path) -> Result<(Duration, Duration, (u64, u64))> {
    let from = dir.join("from");
    let to = dir.join("to");
    copy("cp", &["-a"], source, &from)?;
    let a = Device::found(program, &dir.join("a"), "a")?;
    let b = Device::join(program, &dir.join("b"), "b", &a)?;
    b.run(&["wait"])?;
    let start = Instant::now();
    a.run(&["space", "create", "measured", "--at", &text(&from)?])?;
    a.run(&["scan"])?;
    let index = start.elapsed();
    b.run(&["wait"])?;
    let start = Instant::now();
    b.run(&["space", "attach", "measured", "--at", &text(&to)?])?;
    a.run(&["wait"])?;
    let converge = start.elapsed();
    tree::same(&from, &to)?;
    let peak = (a.usage()?.2, b.usage()?.2);
    Ok((index, converge, peak))
}

fn text(path: &Path) -> Result<String> {
    PathBuf::from(path)
        .into_os_string()
        .into_string()
        .ok()
        .context("a path of text")
}

fn copy(program: &str, flags: &[&str], from: &Path, to: &Path) -> Result<Duration> {
    let start = Instant::now();
    std::fs::create_dir_all(to)?;
    let status = Command::new(program)
        .args(flags)
        .arg(from.join("."))
        .arg(to)
        .status()?;
    if !status.success() {
        bail!("{program} failed");
    }
    Ok(start.elapsed())
}

//! Plays runs of the simulator; see `--help`.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Parser;
use pacsync_simulations::sim::{
    Counts, Detail, DiskKind, Failure, Faults, Outcome, Setup, run, shrink,
};

/// Simulates devices with real engines on simulated disks, one seed a run.
#[derive(Debug, Parser)]
struct Arguments {
    /// Runs, with seeds one after the other.
    #[arg(long, default_value_t = 100)]
    runs: u64,
    /// The first seed; alone, the only one.
    #[arg(long)]
    seed: Option<u64>,
    /// Steps of each run's script.
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// Devices; by default two or three, as the seed says.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=9))]
    devices: Option<u8>,
    /// What the disks can do.
    #[arg(long, value_enum, default_value = "ext4")]
    disk: Disk,
    /// What goes wrong.
    #[arg(long, value_enum, default_value = "all")]
    faults: FaultsArgument,
    /// Tell what happened, also where nothing failed.
    #[arg(long)]
    trace: bool,
    /// Tell each disk operation too.
    #[arg(long)]
    operations: bool,
    /// Play the failing script with steps left out, at most so many times.
    #[arg(long, default_value_t = 0)]
    shrink: usize,
    /// Go on after a failure, and list them at the end.
    #[arg(long)]
    keep_going: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Disk {
    Ext4,
    Plain,
    Fat,
    Mixed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FaultsArgument {
    /// Everything.
    All,
    /// What old seeds were found with: crashes, disks that refuse, lost events and connections.
    Classic,
}

impl FaultsArgument {
    fn faults(self) -> Faults {
        match self {
            Self::All => Faults::All,
            Self::Classic => Faults::Classic,
        }
    }
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.seed.unwrap_or(1);
    let many = arguments.seed.is_none() || std::env::args().any(|a| a.starts_with("--runs"));
    let runs = if many { arguments.runs } else { 1 };
    let detail = match arguments.operations {
        true => Detail::Operations,
        false => Detail::Events,
    };
    let begin = Instant::now();
    let mut counts = Counts::default();
    let mut failures: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    for seed in first..first.saturating_add(runs) {
        let setup = Setup {
            seed,
            disk: match arguments.disk {
                Disk::Ext4 => DiskKind::Ext4,
                Disk::Plain => DiskKind::Plain,
                Disk::Fat => DiskKind::Fat,
                Disk::Mixed => DiskKind::Mixed,
            },
            steps: arguments.steps,
            faults: arguments.faults.faults(),
            devices: arguments
                .devices
                .map_or(2 + usize::from(seed % 3 == 0), usize::from),
        };
        let mut outcome = run(&setup, detail);
        counts.merge(&outcome.counts);
        if let Some(failure) = outcome.failure.clone() {
            failures.entry(failure.invariant).or_default().push(seed);
            if arguments.keep_going {
                let detail = failure.details.first().cloned().unwrap_or_default();
                println!("seed {seed}: {}: {detail}", failure.invariant);
                continue;
            }
            if arguments.shrink > 0 {
                let kind = failure.invariant;
                outcome = shrink(&setup, kind, arguments.shrink, detail);
            }
            let failure = outcome.failure.clone().unwrap_or(failure);
            tell_failure(&setup, &outcome, &failure);
            break;
        }
        if arguments.trace || runs == 1 {
            if arguments.trace {
                outcome.trace.iter().for_each(|line| println!("{line}"));
            }
            println!("seed {seed}: hash {}", outcome.hash);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{} runs, {} steps, {} disk operations in {seconds:.1} s ({:.1} runs/s)",
        counts.runs,
        counts.steps,
        counts.operations,
        counts.runs as f64 / seconds
    );
    for (kind, count) in &counts.kinds {
        println!("{count:>8} {kind}");
    }
    if failures.is_empty() {
        return std::process::ExitCode::SUCCESS;
    }
    for (kind, seeds) in &failures {
        println!(
            "broken: {kind}: {} of {}: seeds {seeds:?}",
            seeds.len(),
            counts.runs
        );
    }
    std::process::ExitCode::FAILURE
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn tell_failure(setup: &Setup, outcome: &Outcome, failure: &Failure) {
    outcome.trace.iter().for_each(|line| println!("{line}"));
    println!("script:");
    outcome.script.iter().for_each(|step| println!("  {step}"));
    println!("seed {}: hash {}", setup.seed, outcome.hash);
    println!("broken: {}", failure.invariant);
    failure.details.iter().for_each(|line| println!("  {line}"));
    println!(
        "again: cargo run -p pacsync-simulations -- --seed {} --steps {} --devices {} --disk {} --faults {} --operations",
        setup.seed,
        setup.steps,
        setup.devices,
        match setup.disk {
            DiskKind::Ext4 => "ext4",
            DiskKind::Plain => "plain",
            DiskKind::Fat => "fat",
            DiskKind::Mixed => "mixed",
        },
        match setup.faults {
            Faults::All => "all",
            Faults::Classic => "classic",
        }
    );
}

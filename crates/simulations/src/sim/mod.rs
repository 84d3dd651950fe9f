//! The deterministic simulator: real devices, stores and worktree engines on simulated disks and
//! a simulated network, in virtual time, on one thread, from one seed.
//!
//! [`run`] plays a script of edits and mishaps, lets everything come to rest, and checks what the
//! design promises. The same seed gives the same run, to the last disk operation, which the
//! trace's hash shows. Never here: threads, real files, the real clock.

mod check;
mod disk;
mod fs;
mod lie;
mod link;
mod medium;
mod mishap;
mod node;
mod oracle;
mod rest;
mod runner;
mod script;
mod stories;
mod user;
mod world;

use rand_core::RngCore;

pub use runner::{Detail, Failure, Outcome, run, shrink};
pub use script::{DiskKind, Faults, Setup};
pub use stories::{home_put_back, members_give_no_checkpoints, the_left_out_come_back, years};
pub use world::Counts;

/// A number below `end`, which is not 0.
fn below(rng: &mut impl RngCore, end: u64) -> u64 {
    rng.next_u64() % end
}

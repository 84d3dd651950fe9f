//! Real daemons under bad luck: killed at any moment, out of room, shut out of files, fed garbage,
//! raced by editors. All is driven through the binary, on real files.
//!
//! What a machine lacks (root, `setpriv`, tmpfs, network namespaces) makes a test say so and pass,
//! unless `CI` is `true`: there it fails.

mod breaker;
mod conflicts;
mod crash;
mod discovery;
mod disk_full;
mod editors;
mod escape;
mod garbage;
mod idle;
mod mounts;
mod rig;
mod samples;
mod unreadable;

//! What tests that drive real daemons through the program share: devices in
//! directories of their own, their events, trees to compare. No test lives here.

#![allow(dead_code, reason = "each test binary uses its own part of it")]
#![allow(unused_imports, reason = "each test binary uses its own part of it")]
#![allow(
    unreachable_pub,
    reason = "compiled into several test binaries, exported by none"
)]

mod device;
mod events;
mod process;
mod relay;
mod tree;

pub use device::{Device, Start};
pub use events::Events;
pub use process::{Hosting, TIMEOUT, json, json_lines, output_within, text};
pub use relay::Relay;
pub use tree::{Kind, Node, Tree, check_same, mode, random_bytes, set_mtime, write, write_at};

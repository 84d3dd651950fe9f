//! The deterministic simulator, and scenarios and measurements with real daemons, driven through
//! the command line.
//!
//! Never here: anything that production code imports.

pub mod device;
pub mod sim;
pub mod tree;

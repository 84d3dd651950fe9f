//! pacsync daemon.

pub mod control;
pub mod device;
pub mod disk;
pub mod home;
pub mod net;
pub mod pairing;
pub mod run;
pub mod worktree;

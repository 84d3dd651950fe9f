//! pacsync daemon.

pub mod disk;
pub mod control;
pub mod device;
pub mod home;
pub mod net;
pub mod pairing;
pub mod run;
pub mod worktree;

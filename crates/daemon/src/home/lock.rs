//! The lock of a home.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::HomeError;
use super::{Home, LOCK, PAC, UNFINISHED, files};

/// A home that no other process works on. The lock ends with the value or the process.
#[derive(Debug)]
pub struct HomeLock {
    home: Home,
    file: File,
}

impl HomeLock {
    pub(super) fn take(home: Home) -> Result<Self, HomeError> {
        let path = home.file(LOCK);
        let failed = |operation, source| HomeError::io(operation, &path, source);
        // Never removed: another process may hold the very inode.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(|source| failed("open", source))?;
        match flock_patiently(&file, &home) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Without a pid the message is only shorter.
                let _ = (&file).take(32).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                return Err(HomeError::InUse {
                    home: home.path().to_owned(),
                    pid,
                });
            }
            Err(errno) => return Err(failed("lock", errno.into())),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes())
        };
        match write(&mut file) {
            Ok(()) => {}
            // A full disk is no reason not to run.
            Err(error) => tracing::warn!(%error, "the pid is not in the lock file"),
        }
        let lock = Self { home, file };
        lock.tidy()?;
        Ok(lock)
    }

    /// A home that got its `pac` is complete, whatever mark a crash has left.
    fn tidy(&self) -> Result<(), HomeError> {
        if files::exists(&self.home.file(PAC))? {
            files::remove(&self.home.file(UNFINISHED))?;
        }
        Ok(())
    }

    /// The locked home.
    pub fn home(&self) -> &Home {
        &self.home
    }
}

/// Takes the lock. A process that was killed holds it until the kernel has taken it apart; while
/// nobody answers on the control socket it is given a moment.
fn flock_patiently(file: &File, home: &Home) -> Result<(), Errno> {
    const STEP: std::time::Duration = std::time::Duration::from_millis(25);
    const STEPS: u32 = 80;
    let socket = home.file(crate::control::socket::SOCKET_NAME);
    for _ in 0..STEPS {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if std::os::unix::net::UnixStream::connect(&socket).is_err() => {
                std::thread::sleep(STEP);
            }
            other => return other,
        }
    }
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
}

impl AsFd for HomeLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

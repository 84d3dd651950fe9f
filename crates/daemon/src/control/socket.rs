//! The Unix socket: where it lies, how it comes to be seen by its owner only,
//! and what to do about long paths and leftovers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Name of the socket in the daemon's home.
pub const SOCKET_NAME: &str = "control.sock";

const BACKLOG: i32 = 64;
/// For its owner only.
const SOCKET_MODE: u32 = 0o600;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The caller does not hold the lock of the home.
    #[error("the lock of {} is held by another process", home.display())]
    NotLocked {
        /// The home.
        home: PathBuf,
    },
    /// Something that is no socket is in the way.
    #[error("{} is not a socket; move it away", path.display())]
    InTheWay {
        /// Where.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The bound socket. Dropping it removes the file, so it must go before the
/// home's lock does.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    dir: OwnedFd,
}

impl ControlSocket {
    /// Binds `control.sock` in a home, mode 0600 before anyone can connect. A
    /// leftover of a dead daemon is removed; `lock` proves that it is one.
    ///
    /// # Errors
    /// [`SocketError`]; in particular if `lock` is not a descriptor through
    /// which this process holds an exclusive `flock`.
    pub fn bind(home: &Path, lock: BorrowedFd<'_>) -> Result<Self, SocketError> {
        let path = home.join(SOCKET_NAME);
        let failed = |operation: &'static str| {
            let path = path.clone();
            move |errno: Errno| SocketError::Io {
                operation,
                path,
                source: errno.into(),
            }
        };
        // Taking a lock that is held through the same descriptor succeeds and changes nothing.
        rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            SocketError::NotLocked {
                home: home.to_owned(),
            }
        })?;
        let dir = open_dir(home).map_err(failed("open the directory of"))?;
        let address = address(home, &dir).map_err(failed("name"))?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(failed("make"))?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_leftover(&dir, &path)?;
                rustix::net::bind(&socket, &address)
            }
            result => result,
        }
        .map_err(failed("bind"))?;
        // Until `listen` every connect is refused, so nobody gets in before the mode is set.
        rustix::fs::chmodat(
            &dir,
            SOCKET_NAME,
            Mode::from_raw_mode(SOCKET_MODE),
            AtFlags::empty(),
        )
        .map_err(failed("set the mode of"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
        Ok(Self {
            listener: UnixListener::from(socket),
            dir,
        })
    }

    /// A second handle of the listener, non-blocking.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::unlinkat(&self.dir, SOCKET_NAME, AtFlags::empty()) {
            tracing::debug!(%error, "the control socket was gone already");
        }
    }
}

/// Connects to the daemon of a home.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` mean that no daemon runs there.
pub fn connect(home: &Path) -> io::Result<UnixStream> {
    let dir = open_dir(home)?;
    let address = address(home, &dir)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

fn open_dir(home: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        home,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// An address holds 108 bytes. A longer path is reached through the open directory.
fn address(home: &Path, dir: &OwnedFd) -> rustix::io::Result<SocketAddrUnix> {
    match SocketAddrUnix::new(home.join(SOCKET_NAME)) {
        Err(Errno::NAMETOOLONG) => SocketAddrUnix::new(format!(
            "/proc/self/fd/{}/{SOCKET_NAME}",
            dir.as_fd().as_raw_fd()
        )),
        result => result,
    }
}

fn remove_leftover(dir: &OwnedFd, path: &Path) -> Result<(), SocketError> {
    let failed = |errno: Errno| SocketError::Io {
        operation: "remove the leftover",
        path: path.to_owned(),
        source: errno.into(),
    };
    let stat = rustix::fs::statat(dir, SOCKET_NAME, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(SocketError::InTheWay {
            path: path.to_owned(),
        });
    }
    rustix::fs::unlinkat(dir, SOCKET_NAME, AtFlags::empty()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn locked(home: &Path) -> File {
        let lock = File::create(home.join("lock")).expect("creates");
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("locks");
        lock
    }

    #[test]
    fn it_is_for_its_owner_only_and_goes_away_with_the_daemon() {
        let home = tempfile::tempdir().expect("a directory");
        let lock = locked(home.path());
        let socket = ControlSocket::bind(home.path(), lock.as_fd()).expect("binds");
        let path = home.path().join(SOCKET_NAME);
        let mode = path.metadata().expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        connect(home.path()).expect("connects");
        drop(socket);
        assert!(!path.exists());
        let error = connect(home.path()).expect_err("nobody there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_leftover_is_replaced_and_anything_else_is_left_alone() {
        let home = tempfile::tempdir().expect("a directory");
        let lock = locked(home.path());
        let path = home.path().join(SOCKET_NAME);
        drop(UnixListener::bind(&path).expect("binds"));
        assert_eq!(
            connect(home.path()).expect_err("nobody there").kind(),
            io::ErrorKind::ConnectionRefused
        );
        drop(ControlSocket::bind(home.path(), lock.as_fd()).expect("replaces"));

        std::fs::write(&path, "precious").expect("writes");
        let error = ControlSocket::bind(home.path(), lock.as_fd()).expect_err("in the way");
        assert!(matches!(error, SocketError::InTheWay { .. }));
        assert_eq!(std::fs::read(&path).expect("reads"), b"precious");
    }

    #[test]
    fn without_the_lock_nothing_is_touched() {
        let home = tempfile::tempdir().expect("a directory");
        let lock = locked(home.path());
        let _socket = ControlSocket::bind(home.path(), lock.as_fd()).expect("binds");
        let other = File::open(home.path().join("lock")).expect("opens");
        let error = ControlSocket::bind(home.path(), other.as_fd()).expect_err("not the holder");
        assert!(matches!(error, SocketError::NotLocked { .. }));
        connect(home.path()).expect("still there");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_long_home_works_too() {
        let base = tempfile::tempdir().expect("a directory");
        let home = base.path().join("x".repeat(120)).join("y".repeat(120));
        std::fs::create_dir_all(&home).expect("creates");
        let lock = locked(&home);
        let _socket = ControlSocket::bind(&home, lock.as_fd()).expect("binds");
        connect(&home).expect("connects");
    }
}

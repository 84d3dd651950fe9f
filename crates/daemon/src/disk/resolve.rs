//! Directory handles beneath a root.
//!
//! Each operation resolves its directory anew from the root's handle: a handle kept from before
//! would follow its directory when that is moved, and write to another path than the one asked for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat, openat2, statx};
use rustix::io::Errno;

use super::error::Cause;

/// Longest relative path given to the kernel in one call, in bytes; its limit is 4,096 with NUL.
const PIECE_MAX: usize = 4000;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// How directories are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolver {
    /// The kernel resolves whole paths and refuses symlinks.
    Kernel,
    /// One name at a time, for kernels and sandboxes without `openat2`.
    Stepwise,
}

/// A directory handle: the root's own or one that was opened.
pub(super) enum DirFd<'a> {
    Root(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for DirFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => fd.as_fd(),
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

/// Why a directory could not be opened.
pub(super) struct Refusal {
    pub(super) cause: Cause,
    pub(super) errno: Errno,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self {
            cause: Cause::Os,
            errno,
        }
    }
}

const SYMLINK: Refusal = Refusal {
    cause: Cause::SymlinkInPath,
    errno: Errno::LOOP,
};

impl Resolver {
    /// Tries what the kernel and the sandbox around this process allow.
    pub(super) fn detect(root: BorrowedFd<'_>) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat2(root, ".", flags, Mode::empty(), BENEATH) {
            Ok(_) => Self::Kernel,
            Err(_) => Self::Stepwise,
        }
    }

    /// Opens the directory at `path` (names joined by `/`, empty for the root) only to name
    /// entries in it.
    pub(super) fn dir<'a>(self, root: BorrowedFd<'a>, path: &[u8]) -> Result<DirFd<'a>, Refusal> {
        if path.is_empty() {
            return Ok(DirFd::Root(root));
        }
        self.open_dir(root, path, OFlags::PATH).map(DirFd::Opened)
    }

    /// Opens the directory at `path` for reading it, with an offset of its own.
    pub(super) fn readable_dir(
        self,
        root: BorrowedFd<'_>,
        path: &[u8],
    ) -> Result<OwnedFd, Refusal> {
        self.open_dir(root, path, OFlags::RDONLY)
    }

    fn open_dir(
        self,
        root: BorrowedFd<'_>,
        path: &[u8],
        access: OFlags,
    ) -> Result<OwnedFd, Refusal> {
        let mut at: Option<OwnedFd> = None;
        let mut rest = path;
        loop {
            let (piece, beyond) = match self {
                Self::Kernel => first_piece(rest, PIECE_MAX),
                Self::Stepwise => first_piece(rest, 0),
            };
            let access = if beyond.is_empty() {
                access
            } else {
                OFlags::PATH
            };
            let from = at.as_ref().map_or(root, |fd| fd.as_fd());
            let fd = match self {
                Self::Kernel => open_piece(from, piece, access)?,
                Self::Stepwise => open_name(from, piece, access)?,
            };
            if beyond.is_empty() {
                return Ok(fd);
            }
            at = Some(fd);
            rest = beyond;
        }
    }
}

/// Splits off as many whole names as fit into `max` bytes, but at least one.
fn first_piece(path: &[u8], max: usize) -> (&[u8], &[u8]) {
    if path.len() <= max {
        return (path, &[]);
    }
    let is_slash = |byte: &u8| *byte == b'/';
    let within = path.get(..max).unwrap_or(path);
    let cut = within
        .iter()
        .rposition(is_slash)
        .or_else(|| path.iter().position(is_slash));
    match cut {
        Some(slash) => {
            let (piece, rest) = path.split_at(slash);
            (piece, rest.get(1..).unwrap_or_default())
        }
        None => (path, &[]),
    }
}

/// The path to give for "this directory itself" when there are no names.
fn or_dot(piece: &[u8]) -> &[u8] {
    if piece.is_empty() { b"." } else { piece }
}

fn open_piece(from: BorrowedFd<'_>, piece: &[u8], access: OFlags) -> Result<OwnedFd, Refusal> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
    loop {
        match openat2(from, or_dot(piece), flags, Mode::empty(), BENEATH) {
            // The kernel asks to try again when a rename raced with the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::LOOP) => return Err(SYMLINK),
            other => return Ok(other?),
        }
    }
}

fn open_name(from: BorrowedFd<'_>, name: &[u8], access: OFlags) -> Result<OwnedFd, Refusal> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match openat(from, or_dot(name), flags, Mode::empty()) {
            Err(Errno::INTR) => {}
            Err(Errno::LOOP) => return Err(SYMLINK),
            // A symlink that is not followed is reported as no directory.
            Err(Errno::NOTDIR) if is_symlink(from, name) => return Err(SYMLINK),
            other => return Ok(other?),
        }
    }
}

fn is_symlink(from: BorrowedFd<'_>, name: &[u8]) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    statx(from, name, flags, StatxFlags::TYPE)
        .is_ok_and(|found| rustix::fs::FileType::from_raw_mode(found.stx_mode.into()).is_symlink())
}

/// A path that reaches an open handle, for calls that take no handles.
pub(super) fn through_proc(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens the directory that is to be the root; symlinks on the way to it are followed.
pub(super) fn open_root(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_names_and_lose_nothing() {
        for max in 0..12 {
            let mut rest = &b"aa/b/cccc/d"[..];
            let mut names = Vec::new();
            while !rest.is_empty() {
                let (piece, beyond) = first_piece(rest, max);
                assert!(piece.len() <= max || !piece.contains(&b'/'));
                names.extend(piece.split(|byte| *byte == b'/').map(<[u8]>::to_vec));
                rest = beyond;
            }
            assert_eq!(names, [&b"aa"[..], b"b", b"cccc", b"d"], "{max}");
        }
    }
}

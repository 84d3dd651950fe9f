//! The disk as the worktree engine sees it.
//!
//! Here: the trait [`Disk`], the types that it speaks in, and [`LinuxDisk`], which does it with
//! directory handles so that no path ever leads out of the root. Never here: a decision about what
//! a change means, recursion, settle times, names of temporary files other than the probe's, or
//! types of an operating system in the trait (names and targets are bytes).

mod error;
#[cfg(target_os = "linux")]
mod mounts;
mod path;

#[cfg(target_os = "linux")]
mod file;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod metadata;
#[cfg(target_os = "linux")]
mod probe;
#[cfg(target_os = "linux")]
mod resolve;
#[cfg(target_os = "linux")]
mod watch;

#[cfg(all(test, target_os = "linux"))]
mod tests;

pub use error::{Cause, DiskError, DiskOp};
#[cfg(target_os = "linux")]
pub use linux::LinuxDisk;
pub use path::{PathError, RelPath};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device: never read, never replaced.
    Other,
}

/// Set in the device number of what lies on another mount than the root. A part of the same file
/// system may be mounted beneath the root (`mount --bind`): files cannot be renamed to there and
/// back, and are not deleted if it goes, as with any other.
pub(crate) const OTHER_MOUNT: u64 = 1 << 63;

/// What tells one state of an entry from another without reading it.
///
/// Times are nanoseconds since 1970, clamped to what fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number of the file system that holds the entry, marked where that is another mount
    /// than the root's.
    pub dev: u64,
    /// Inode number; file systems hand freed ones out again.
    pub ino: u64,
    /// Bytes of content; of a symlink's target; without meaning for a directory.
    pub size: u64,
    /// Last change of content.
    pub mtime_ns: i64,
    /// Last change of content or metadata.
    pub ctime_ns: i64,
    /// Birth, where the file system keeps it.
    pub btime_ns: Option<i64>,
}

impl Identity {
    /// Device and inode number as the system gives them.
    pub fn inode(&self) -> (u64, u64) {
        (self.dev & !OTHER_MOUNT, self.ino)
    }
}

/// An entry's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stat {
    /// What the entry is.
    pub kind: FileKind,
    /// The 0o777 permission bits.
    pub mode: u16,
    /// Number of hard links.
    pub nlink: u32,
    /// What tells this state from another.
    pub identity: Identity,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The entry's name in its directory.
    pub name: Vec<u8>,
    /// Its metadata.
    pub stat: Stat,
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// Entries sorted by name.
    pub entries: Vec<DirEntry>,
    /// One error for each entry that is there and whose metadata could not be read, by path.
    pub errors: Vec<DiskError>,
}

/// Which directory on which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirIdentity {
    /// Device number; may differ from one mounting to the next.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// The file system's own id; 0 where it has none.
    pub fs_id: u64,
    /// The file system's type, as the system numbers them.
    pub fs_type: u64,
}

/// What a root can store, found out by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Keeps all 0o777 permission bits.
    pub modes: bool,
    /// Keeps symlinks.
    pub symlinks: bool,
    /// Tells `a` from `A`.
    pub case_sensitive: bool,
    /// Lists names with the bytes that they were created with, and tells composed from
    /// decomposed characters.
    pub normalization_preserving: bool,
    /// Two changes within this many nanoseconds may show one and the same time.
    pub time_grain_ns: u64,
    /// Exchanges two entries in one step.
    pub exchange: bool,
    /// Renames in one step only where nothing is in the way.
    pub noreplace: bool,
    /// Makes hard links.
    pub hard_links: bool,
    /// Clones content without copying.
    pub reflink: bool,
    /// Keeps birth times.
    pub birth_time: bool,
    /// Longest name in bytes, as the file system says.
    pub name_max: usize,
    /// Nothing can be created in the root; all else here is then a guess.
    pub read_only: bool,
}

impl Probe {
    /// What to assume of a root where nothing can be tried: the careful answer to each question.
    pub fn guess() -> Self {
        Self {
            modes: true,
            symlinks: true,
            case_sensitive: true,
            normalization_preserving: true,
            time_grain_ns: 2_000_000_000,
            exchange: false,
            noreplace: false,
            hard_links: false,
            reflink: false,
            birth_time: false,
            name_max: 255,
            read_only: false,
        }
    }
}

/// Something that happened beneath a watched directory: a hint to look, never a fact to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FsEvent {
    /// A writer closed the file, or a file was moved here.
    Written(RelPath),
    /// A file was written to and is still open.
    Modified(RelPath),
    /// Something that is not a directory was made: a file whose writer has just opened it, or a
    /// link, which nobody writes to.
    Created(RelPath),
    /// Look at this entry: gone, or its metadata changed. It may be a directory.
    Touched(RelPath),
    /// A directory may have come to be here: watch it, then scan it.
    DirAppeared(RelPath),
    /// Events were lost: scan all.
    Overflow,
    /// The root was removed, moved or unmounted.
    RootGone,
}

/// What takes events: called on a thread of the disk's own, one event at a time, in order.
pub type EventSink = Box<dyn Fn(FsEvent) + Send>;

/// An open regular file.
///
/// Stays with the file that was opened, whatever is renamed meanwhile.
pub trait DiskFile: Send {
    /// Reads the metadata of the open file.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn stat(&self) -> Result<Stat, DiskError>;

    /// Reads the identity of the open file.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn identity(&self) -> Result<Identity, DiskError> {
        Ok(self.stat()?.identity)
    }

    /// Reads from a byte offset until `buffer` is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// Whatever the system answers, even when something was read before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, DiskError>;

    /// Writes all of `bytes` at a byte offset.
    ///
    /// # Errors
    /// `is_no_space` and whatever else the system answers; part may have been written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;

    /// Cuts the file, or extends it with zeros, to `len` bytes.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn set_len(&mut self, len: u64) -> Result<(), DiskError>;

    /// Sets the 0o777 permission bits exactly.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn set_mode(&mut self, mode: u16) -> Result<(), DiskError>;

    /// Sets the modification time, in nanoseconds since 1970.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn set_mtime(&mut self, mtime_ns: i64) -> Result<(), DiskError>;

    /// Makes content and length durable (not the directory entry).
    ///
    /// # Errors
    /// Whatever the system answers; after an error the content must be written again.
    fn sync_data(&self) -> Result<(), DiskError>;
}

/// A file system beneath a root.
///
/// Nothing here follows a symlink: one as last name is the entry itself, one before it fails with
/// `is_symlink_in_path`. A path that is not there, or leads through something that is no
/// directory, fails with `is_not_found` or `is_not_a_directory`, unless said otherwise. What must
/// name an entry fails on the root path.
pub trait Disk: Send {
    /// Finds out what the root can store, by trying in a directory with a reserved name that is
    /// gone afterwards.
    ///
    /// # Errors
    /// Whatever the system answers, a full disk among it. A root in which nothing can be created
    /// is no error: `read_only` is set and the rest guessed.
    fn probe(&self) -> Result<Probe, DiskError>;

    /// Says which directory is found now at the place that was opened as root.
    ///
    /// All else works on the directory that was opened; a change here means that this is another.
    ///
    /// # Errors
    /// `is_not_found` when the root is gone.
    fn root_identity(&self) -> Result<DirIdentity, DiskError>;

    /// Says which directory on which file system a path is.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn dir_identity(&self, dir: &RelPath) -> Result<DirIdentity, DiskError>;

    /// Reads an entry's metadata; `None` when it is not there or a parent is no directory.
    ///
    /// # Errors
    /// `is_symlink_in_path`, `is_permission`, `is_invalid_name`.
    fn stat(&self, path: &RelPath) -> Result<Option<Stat>, DiskError>;

    /// Lists a directory without `.` and `..`; entries that vanish meanwhile are left out.
    ///
    /// # Errors
    /// A directory that cannot be read is an error, never an empty listing. An entry whose
    /// metadata cannot be read stands in [`Listing::errors`].
    fn list(&self, dir: &RelPath) -> Result<Listing, DiskError>;

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// `is_wrong_kind` for anything but a regular file; never waits for a FIFO's other end.
    fn open(&self, path: &RelPath) -> Result<Box<dyn DiskFile>, DiskError>;

    /// Opens an existing regular file for reading and writing, content untouched.
    ///
    /// # Errors
    /// As [`Disk::open`].
    fn open_write(&self, path: &RelPath) -> Result<Box<dyn DiskFile>, DiskError>;

    /// Creates a file for reading and writing; the process's mask may take bits off `mode`.
    ///
    /// # Errors
    /// `is_exists` when anything is there.
    fn create(&self, path: &RelPath, mode: u16) -> Result<Box<dyn DiskFile>, DiskError>;

    /// Creates a symlink that holds `target` as it is.
    ///
    /// # Errors
    /// `is_exists` when anything is there.
    fn symlink(&self, path: &RelPath, target: &[u8]) -> Result<(), DiskError>;

    /// Creates a directory; the process's mask may take bits off `mode`.
    ///
    /// # Errors
    /// `is_exists` when anything is there.
    fn mkdir(&self, path: &RelPath, mode: u16) -> Result<(), DiskError>;

    /// Reads a symlink's target.
    ///
    /// # Errors
    /// `is_wrong_kind` when it is no symlink.
    fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, DiskError>;

    /// Renames where nothing is in the way, in one step.
    ///
    /// # Errors
    /// `is_exists`, `is_cross_device`; `is_unsupported` where the file system cannot.
    fn rename_noreplace(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError>;

    /// Exchanges two existing entries in one step.
    ///
    /// # Errors
    /// `is_not_found` if either is missing; `is_cross_device`; `is_unsupported` where the file
    /// system cannot.
    fn exchange(&self, a: &RelPath, b: &RelPath) -> Result<(), DiskError>;

    /// Renames in one step, replacing a file or an empty directory in the way.
    ///
    /// # Errors
    /// `is_cross_device`, `is_not_empty`, and whatever else the system answers.
    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError>;

    /// Makes a hard link `to` to the file or symlink `from`.
    ///
    /// # Errors
    /// `is_exists`, `is_cross_device`; `is_permission` or `is_unsupported` where the file system
    /// has no links.
    fn link(&self, from: &RelPath, to: &RelPath) -> Result<(), DiskError>;

    /// Removes an entry that is no directory.
    ///
    /// # Errors
    /// `is_not_found`, and whatever else the system answers.
    fn unlink(&self, path: &RelPath) -> Result<(), DiskError>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `is_not_empty`, `is_not_found`.
    fn rmdir(&self, path: &RelPath) -> Result<(), DiskError>;

    /// Sets the 0o777 permission bits exactly, of the root too.
    ///
    /// # Errors
    /// `is_wrong_kind` for a symlink.
    fn set_mode(&self, path: &RelPath, mode: u16) -> Result<(), DiskError>;

    /// Sets the modification time of an entry, in nanoseconds since 1970; of a symlink its own.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn set_mtime(&self, path: &RelPath, mtime_ns: i64) -> Result<(), DiskError>;

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn sync_dir(&self, dir: &RelPath) -> Result<(), DiskError>;

    /// Makes all that was written to the file system that holds a directory durable.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn sync_fs(&self, dir: &RelPath) -> Result<(), DiskError>;

    /// Makes all that was written to the root's file system durable; other file systems mounted
    /// beneath the root need [`Disk::sync_fs`] of their own.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn sync_all(&self) -> Result<(), DiskError> {
        self.sync_fs(&RelPath::root())
    }

    /// Says how many bytes this user may still write to the root's file system.
    ///
    /// # Errors
    /// Whatever the system answers.
    fn free_space(&self) -> Result<u64, DiskError>;

    /// Asks for events of the entries of one directory; not of those beneath its directories.
    ///
    /// Watch a directory before listing it: what happens in between is then seen twice, not
    /// never. The watch ends by itself when the directory is removed or moved; of a moved one the
    /// directories beneath are dropped too, as their paths are wrong. Watching again is harmless.
    ///
    /// # Errors
    /// `is_watch_limit` when the system gives no more; `is_unsupported` on a disk without events.
    fn watch(&self, dir: &RelPath) -> Result<(), DiskError>;

    /// Ends the watch of one directory; nothing when there is none.
    fn unwatch(&self, dir: &RelPath);
}

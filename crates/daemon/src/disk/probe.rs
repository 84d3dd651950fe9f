//! Finding out what a root can store, by trying.

use pacsync_protocol::row::RESERVED_PREFIX;

use super::linux::LinuxDisk;
use super::{Disk, DiskError, DiskFile, DiskOp, FileKind, PathError, Probe, RelPath};

/// Longest tick of the kernel clock that stamps changes; finer file systems gain nothing.
const KERNEL_TICK_NS: u64 = 10_000_000;
/// An odd second and nanosecond: any coarser grain shows in what comes back.
const ODD_TIME_NS: i64 = 1_500_000_001_123_456_789;
const DECOMPOSED: &str = "e\u{301}";
const COMPOSED: &str = "\u{e9}";

/// Probes in a directory of its own, which is gone afterwards, also when something fails.
pub(super) fn run(disk: &LinuxDisk) -> Result<Probe, DiskError> {
    let name = [RESERVED_PREFIX, b"probe"].concat();
    let dir = in_dir(&RelPath::root(), &name)?;
    match clear(disk, &dir).and_then(|()| disk.mkdir(&dir, 0o700)) {
        Ok(()) => {}
        Err(error) if error.is_read_only() || error.is_permission() => {
            let mut guess = Probe::guess();
            guess.read_only = true;
            guess.name_max = name_max(disk)?;
            guess.birth_time = has_birth_time(disk, &RelPath::root())?;
            return Ok(guess);
        }
        Err(error) => return Err(error),
    }
    let tried = try_all(disk, &dir);
    let cleared = clear(disk, &dir);
    let probe = tried?;
    cleared?;
    Ok(probe)
}

/// Removes what this or an interrupted probe left.
fn clear(disk: &LinuxDisk, dir: &RelPath) -> Result<(), DiskError> {
    match disk.stat(dir)? {
        None => return Ok(()),
        Some(stat) if stat.kind != FileKind::Dir => return disk.unlink(dir),
        Some(_) => {}
    }
    for entry in disk.list(dir)?.entries {
        let path = in_dir(dir, &entry.name)?;
        match entry.stat.kind {
            FileKind::Dir => disk.rmdir(&path)?,
            _ => disk.unlink(&path)?,
        }
    }
    disk.rmdir(dir)
}

fn try_all(disk: &LinuxDisk, dir: &RelPath) -> Result<Probe, DiskError> {
    let full = in_dir(dir, b"Full")?;
    let empty = in_dir(dir, b"empty")?;
    let mut file = disk.create_file(&full, 0o600)?;
    file.write_at(0, &[7; 4096])?;
    let copy = disk.create_file(&empty, 0o600)?;
    let reflink = rustix::fs::ioctl_ficlone(&copy, &file).is_ok();
    drop((file, copy));

    Ok(Probe {
        reflink,
        modes: keeps_mode(disk, &full, 0o751)? && keeps_mode(disk, &full, 0o640)?,
        symlinks: keeps_symlink(disk, &in_dir(dir, b"link")?),
        case_sensitive: disk.stat(&in_dir(dir, b"full")?)?.is_none(),
        normalization_preserving: keeps_normalization(disk, dir)?,
        time_grain_ns: time_grain(disk, &full)?.max(KERNEL_TICK_NS),
        exchange: exchanges(disk, &full, dir)?,
        noreplace: refuses_to_replace(disk, &full, dir)?,
        hard_links: disk.link(&full, &in_dir(dir, b"second")?).is_ok(),
        birth_time: has_birth_time(disk, &full)?,
        name_max: name_max(disk)?,
        read_only: false,
    })
}

fn keeps_mode(disk: &LinuxDisk, path: &RelPath, mode: u16) -> Result<bool, DiskError> {
    // Some file systems refuse, others agree and forget.
    let agreed = disk.set_mode(path, mode).is_ok();
    let kept = disk.stat(path)?.is_some_and(|stat| stat.mode == mode);
    Ok(agreed && kept)
}

fn keeps_symlink(disk: &LinuxDisk, path: &RelPath) -> bool {
    const TARGET: &[u8] = b"../nowhere \xc3\xa9";
    disk.symlink(path, TARGET).is_ok() && disk.read_link(path).is_ok_and(|kept| kept == TARGET)
}

fn keeps_normalization(disk: &LinuxDisk, dir: &RelPath) -> Result<bool, DiskError> {
    let decomposed = in_dir(dir, DECOMPOSED.as_bytes())?;
    if disk.create_file(&decomposed, 0o600).is_err() {
        return Ok(false);
    }
    let listed = disk.list(dir)?.entries;
    let same = listed
        .iter()
        .any(|entry| entry.name == DECOMPOSED.as_bytes());
    let told_apart = disk.stat(&in_dir(dir, COMPOSED.as_bytes())?)?.is_none();
    Ok(same && told_apart)
}

/// The coarsest step that explains how an odd time comes back.
fn time_grain(disk: &LinuxDisk, path: &RelPath) -> Result<u64, DiskError> {
    let coarsest = Probe::guess().time_grain_ns;
    if disk.set_mtime(path, ODD_TIME_NS).is_err() {
        return Ok(coarsest);
    }
    let Some(stat) = disk.stat(path)? else {
        return Ok(coarsest);
    };
    let kept = stat.identity.mtime_ns;
    let steps = (0..=9).map(|digits| 10_i64.pow(digits));
    let finest = steps
        .filter(|step| kept == ODD_TIME_NS - ODD_TIME_NS % step)
        .min();
    Ok(finest.map_or(coarsest, i64::unsigned_abs))
}

fn exchanges(disk: &LinuxDisk, full: &RelPath, dir: &RelPath) -> Result<bool, DiskError> {
    let other = in_dir(dir, b"other")?;
    drop(disk.create_file(&other, 0o600)?);
    if disk.exchange(full, &other).is_err() {
        return Ok(false);
    }
    let size = |path| -> Result<_, DiskError> {
        Ok(disk.stat(path)?.map_or(0, |stat| stat.identity.size))
    };
    let exchanged = size(full)? == 0 && size(&other)? != 0;
    disk.exchange(full, &other)?;
    Ok(exchanged)
}

fn refuses_to_replace(disk: &LinuxDisk, full: &RelPath, dir: &RelPath) -> Result<bool, DiskError> {
    let in_the_way = in_dir(dir, b"in-the-way")?;
    let free = in_dir(dir, b"free")?;
    drop(disk.create_file(&in_the_way, 0o600)?);
    let refused = disk
        .rename_noreplace(&in_the_way, full)
        .is_err_and(|error| error.is_exists());
    Ok(refused && disk.rename_noreplace(&in_the_way, &free).is_ok())
}

fn has_birth_time(disk: &LinuxDisk, path: &RelPath) -> Result<bool, DiskError> {
    let stat = disk.stat(path)?;
    Ok(stat.is_some_and(|stat| stat.identity.btime_ns.is_some()))
}

fn name_max(disk: &LinuxDisk) -> Result<usize, DiskError> {
    let found = rustix::fs::fstatvfs(disk.root_fd())
        .map_err(|errno| DiskError::new(DiskOp::Probe, &RelPath::root(), errno))?;
    Ok(usize::try_from(found.f_namemax).unwrap_or(255))
}

fn in_dir(dir: &RelPath, name: &[u8]) -> Result<RelPath, DiskError> {
    dir.join(name).map_err(|error: PathError| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidFilename, error);
        DiskError::new(DiskOp::Probe, dir, source)
    })
}

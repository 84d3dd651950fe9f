//! The Linux disk on real directories.

mod operations;
mod refusals;
mod watching;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Disk, DiskError, LinuxDisk, RelPath};

/// A root of its own, with the disk on it.
struct Fixture {
    disk: LinuxDisk,
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = LinuxDisk::open(dir.path()).expect("the root opens");
        Self { disk, dir }
    }

    /// Resolving by the kernel, and name by name.
    fn both() -> [Self; 2] {
        let Self { disk, dir } = Self::new();
        let stepwise = Self {
            disk: disk.stepwise(),
            dir,
        };
        [Self::new(), stepwise]
    }

    fn real(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        std::fs::write(self.real(path), content).expect("the file is written");
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.real(path)).expect("the file is read")
    }

    fn names(&self) -> Vec<Vec<u8>> {
        names_in(self.dir.path())
    }
}

fn names_in(dir: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = std::fs::read_dir(dir)
        .expect("the directory is read")
        .map(|entry| entry.expect("an entry").file_name().as_bytes().to_vec())
        .collect();
    names.sort();
    names
}

fn path(text: &str) -> RelPath {
    raw(text.as_bytes())
}

fn raw(bytes: &[u8]) -> RelPath {
    RelPath::from_bytes(bytes).expect("a good path")
}

/// The error of what must fail; results with files cannot be printed, so no `expect_err`.
fn error<T>(result: Result<T, DiskError>) -> DiskError {
    match result {
        Ok(_) => panic!("succeeded, but should be refused"),
        Err(error) => error,
    }
}

fn read_all(disk: &LinuxDisk, path: &RelPath) -> Vec<u8> {
    let file = disk.open(path).expect("the file opens");
    let mut content = vec![0; 64 * 1024];
    let read = file.read_at(0, &mut content).expect("the file is read");
    content.truncate(read);
    content
}

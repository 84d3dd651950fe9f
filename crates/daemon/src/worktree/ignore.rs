//! Nested `.pacignore` files in gitignore syntax. They only stop the making of nodes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::disk::{Disk, RelPath};

/// Name of the files.
pub(super) const IGNORE_FILE: &[u8] = b".pacignore";
/// Longest file that is read, in bytes.
const IGNORE_MAX: u64 = 256 * 1024;

/// Compiled ignore files by directory; learned when a directory is listed.
#[derive(Debug, Default)]
pub(super) struct Ignores {
    by_dir: BTreeMap<RelPath, Gitignore>,
}

impl Ignores {
    /// Takes down what a directory's file says, if it has one.
    pub(super) fn learn(&mut self, disk: &dyn Disk, dir: &RelPath, has_file: bool) {
        match has_file.then(|| compile(disk, dir)).flatten() {
            Some(rules) => {
                self.by_dir.insert(dir.clone(), rules);
            }
            None => {
                self.by_dir.remove(dir);
            }
        }
    }

    /// True if the nearest rule that matches a path ignores it. A directory above that is
    /// ignored makes everything beneath it ignored.
    pub(super) fn ignores(&self, path: &RelPath, is_dir: bool) -> bool {
        if self.by_dir.is_empty() {
            return false;
        }
        let mut above = path.parent();
        let mut nearest = true;
        while let Some(dir) = above {
            above = dir.parent();
            let own = std::mem::take(&mut nearest);
            let Some(rules) = self.by_dir.get(&dir) else {
                continue;
            };
            let Some(rest) = path.strip_prefix(&dir) else {
                continue;
            };
            let relative = Path::new(OsStr::from_bytes(rest.as_bytes()));
            // Nothing beneath an ignored directory can be brought back.
            let found = if own {
                rules.matched(relative, is_dir)
            } else {
                rules.matched_path_or_any_parents(relative, is_dir)
            };
            if found.is_ignore() {
                return true;
            }
            if found.is_whitelist() {
                return false;
            }
        }
        false
    }
}

fn compile(disk: &dyn Disk, dir: &RelPath) -> Option<Gitignore> {
    let file = disk.open(&dir.join(IGNORE_FILE).ok()?).ok()?;
    let size = file.stat().ok()?.identity.size.min(IGNORE_MAX);
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    let read = file.read_at(0, &mut bytes).ok()?;
    bytes.truncate(read);
    let mut builder = GitignoreBuilder::new("");
    for line in String::from_utf8_lossy(&bytes).lines() {
        // A line that is no pattern ignores nothing.
        let _ = builder.add_line(None, line);
    }
    builder.build().ok().filter(|rules| !rules.is_empty())
}

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

/// Compiled ignore files by directory; read when first needed, forgotten when they change.
#[derive(Debug, Default)]
pub(super) struct Ignores {
    by_dir: BTreeMap<RelPath, Option<Gitignore>>,
}

impl Ignores {
    /// Forgets what a directory's file said.
    pub(super) fn forget(&mut self, dir: &RelPath) {
        self.by_dir.remove(dir);
    }

    /// True if the nearest rule that matches a path ignores it. A directory above that is
    /// ignored makes everything beneath it ignored.
    pub(super) fn ignores(&mut self, disk: &dyn Disk, path: &RelPath, is_dir: bool) -> bool {
        let mut above = path.parent();
        let mut chain = vec![];
        while let Some(dir) = above {
            above = dir.parent();
            chain.push(dir);
        }
        for (depth, dir) in chain.iter().enumerate() {
            // Look at the path itself, then at each directory on the way from this file's
            // directory to it, as nothing beneath an ignored directory can be brought back.
            let Some(rules) = self.rules(disk, dir) else {
                continue;
            };
            let Some(rest) = path.strip_prefix(dir) else {
                continue;
            };
            let relative = Path::new(OsStr::from_bytes(rest.as_bytes()));
            let found = if depth == 0 {
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

    fn rules(&mut self, disk: &dyn Disk, dir: &RelPath) -> Option<&Gitignore> {
        self.by_dir
            .entry(dir.clone())
            .or_insert_with(|| compile(disk, dir))
            .as_ref()
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

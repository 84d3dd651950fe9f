//! Names on disks that take one name for another: `a` for `A`, composed for decomposed characters.
//!
//! There a path may lead to a file that has another name. What counts is the name in the listing.

use std::collections::BTreeSet;

use super::Worktree;
use crate::disk::{DiskError, RelPath, Stat};

/// The names in one directory, as they were during one step.
#[derive(Debug, Default)]
pub(super) struct ExactNames {
    dir: Option<RelPath>,
    names: BTreeSet<Vec<u8>>,
}

impl ExactNames {
    /// A step begins: what was listed before may have changed.
    pub(super) fn forget(&mut self) {
        self.dir = None;
        self.names.clear();
    }
}

impl Worktree {
    /// True if a path may lead to an entry of another name.
    pub(super) fn folds_names(&self) -> bool {
        !(self.probe.case_sensitive && self.probe.normalization_preserving)
    }

    /// What stands at a path under exactly its name.
    pub(super) fn stat_exactly(&mut self, path: &RelPath) -> Result<Option<Stat>, DiskError> {
        let seen = self.disk.stat(path)?;
        if seen.is_none() || !self.folds_names() || self.has_exactly(path)? {
            return Ok(seen);
        }
        Ok(None)
    }

    fn has_exactly(&mut self, path: &RelPath) -> Result<bool, DiskError> {
        let (Some(dir), Some(name)) = (path.parent(), path.name()) else {
            return Ok(true);
        };
        if self.exact.dir.as_ref() != Some(&dir) {
            let listing = self.disk.list(&dir)?;
            self.exact.names = listing.entries.into_iter().map(|e| e.name).collect();
            self.exact.dir = Some(dir);
        }
        Ok(self.exact.names.contains(name))
    }
}

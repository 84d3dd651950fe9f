//! Line-based three-way merge.

use super::Conflict;
use super::regions::{Overlap, Region, regions};

/// Merges line by line; the three texts may lack the newline at the end of their last line, which
/// then differs from the line with it.
pub(super) fn merge(base: &str, ours: &str, theirs: &str) -> Result<String, Conflict> {
    let [base, ours, theirs] =
        [base, ours, theirs].map(|text| text.split_inclusive('\n').collect::<Vec<_>>());
    let found = regions(&base, &ours, &theirs);
    let found = found.map_err(|Overlap(index)| Conflict::Lines { line: index + 1 })?;
    let mut merged = String::new();
    for region in found {
        let lines = match region {
            Region::Kept(range) => base.get(range),
            Region::Ours(range) => ours.get(range),
            Region::Theirs(range) => theirs.get(range),
        };
        merged.extend(lines.unwrap_or_default().iter().copied());
    }
    Ok(merged)
}

//! The three-way comparison of sequences that lines and lists share.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;

use imara_diff::{Hunk, Token};

use super::diff::{hunks, slice};

/// A stretch of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Region {
    /// Nobody changed it: a range of the base.
    Kept(Range<usize>),
    /// We changed it, or both did alike: a range of ours.
    Ours(Range<usize>),
    /// They changed it: a range of theirs.
    Theirs(Range<usize>),
}

/// Both sides changed what begins at this index of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overlap(pub(super) usize);

/// Compares both sides with the base. Changes that overlap or touch are one change, which both
/// sides have to have made alike.
pub(super) fn regions<T: Eq + Hash>(
    base: &[T],
    ours: &[T],
    theirs: &[T],
) -> Result<Vec<Region>, Overlap> {
    let mut numbers = HashMap::new();

    let [base, ours, theirs] = [base, ours, theirs].map(|items| number_all(&mut numbers, items));
    let count = numbers.len();
    let mut our_hunks = hunks(&base, &ours, count).into_iter().peekable();
    let mut their_hunks = hunks(&base, &theirs, count).into_iter().peekable();
    let mut out = Vec::new();
    let mut at = Cursor::default();
    loop {
        let next = match (our_hunks.peek(), their_hunks.peek()) {
            (None, None) => break,
            (Some(hunk), None) | (None, Some(hunk)) => hunk.before.start,
            (Some(one), Some(other)) => one.before.start.min(other.before.start),
        };
        at.keep(next as usize, &mut out);
        // Everything that touches, on either side, joins.
        let mut end = next;
        let (mut our_share, mut their_share) = (Share::default(), Share::default());
        loop {
            let ours_joins = our_hunks.next_if(|hunk| hunk.before.start <= end);
            let theirs_joins = their_hunks.next_if(|hunk| hunk.before.start <= end);
            if ours_joins.is_none() && theirs_joins.is_none() {
                break;
            }
            for (share, hunk) in [
                (&mut our_share, ours_joins),
                (&mut their_share, theirs_joins),
            ] {
                if let Some(hunk) = hunk {
                    end = end.max(hunk.before.end);
                    share.add(&hunk);
                }
            }
        }
        let base_end = end as usize;
        let our_end = our_share.end(at.ours, base_end - at.base);
        let their_end = their_share.end(at.theirs, base_end - at.base);
        let (our_range, their_range) = (at.ours..our_end, at.theirs..their_end);
        let region =
            if !their_share.changed || slice(&ours, &our_range) == slice(&theirs, &their_range) {
                Region::Ours(our_range)
            } else if !our_share.changed {
                Region::Theirs(their_range)
            } else {
                return Err(Overlap(next as usize));
            };
        out.push(region);
        at = Cursor {
            base: base_end,
            ours: our_end,
            theirs: their_end,
        };
    }
    at.keep(base.len(), &mut out);
    Ok(out)
}

#[derive(Debug, Default)]
struct Cursor {
    base: usize,
    ours: usize,
    theirs: usize,
}

impl Cursor {
    fn keep(&mut self, until: usize, out: &mut Vec<Region>) {
        let length = until.saturating_sub(self.base);
        if length > 0 {
            out.push(Region::Kept(self.base..until));
        }
        self.base += length;
        self.ours += length;
        self.theirs += length;
    }
}

/// What one side has of a joined change.
#[derive(Debug, Default)]
struct Share {
    changed: bool,
    added: usize,
    removed: usize,
}

impl Share {
    fn add(&mut self, hunk: &Hunk) {
        self.changed = true;
        self.added += hunk.after.len();
        self.removed += hunk.before.len();
    }

    /// Where the side's text for `length` items of the base ends.
    fn end(&self, start: usize, length: usize) -> usize {
        start + length + self.added - self.removed
    }
}

fn number_all<'a, T: Eq + Hash>(numbers: &mut HashMap<&'a T, u32>, items: &'a [T]) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(items.len());
    for item in items {
        let next = numbers.len() as u32;
        tokens.push(Token(*numbers.entry(item).or_insert(next)));
    }
    tokens
}

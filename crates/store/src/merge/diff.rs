//! What changed between two sequences, in bounded time.

use std::collections::HashMap;
use std::ops::Range;

use imara_diff::{Algorithm, Diff, Hunk, Token};

/// Bound on the work between anchors: the sum of the squares of the stretches that are compared.
/// One stretch of 20,000 items on each side uses it up, and takes about a second.
const MAX_WORK: usize = 40_000 * 40_000;

/// The changes between two sequences of tokens below `count`.
///
/// Items that each sequence has once are matched first, as many as keep their order; that takes
/// `n log n`. What lies between two of them is compared by an algorithm that can take quadratic
/// time, until the bound is reached; from there on each such stretch is one change.
pub(super) fn hunks(before: &[Token], after: &[Token], count: usize) -> Vec<Hunk> {
    let head = before
        .iter()
        .zip(after)
        .take_while(|(one, other)| one == other)
        .count();
    let pairs = before.iter().rev().zip(after.iter().rev());
    let tail = pairs.take_while(|(one, other)| one == other).count();
    let tail = tail.min(before.len().min(after.len()) - head);
    let (before_end, after_end) = (before.len() - tail, after.len() - tail);
    let mut found = Vec::new();
    let mut work = 0_usize;
    let (mut i, mut j) = (head, head);
    let anchors = anchors(before, after, head..before_end, head..after_end, count);
    for (next_i, next_j) in anchors.into_iter().chain([(before_end, after_end)]) {
        let (old, new) = (slice(before, &(i..next_i)), slice(after, &(j..next_j)));
        let length = old.len() + new.len();
        if length > 0 {
            let either_is_empty = old.is_empty() || new.is_empty();
            let cost = if either_is_empty {
                0
            } else {
                length.saturating_mul(length)
            };
            work = work.saturating_add(cost);
            if either_is_empty || work > MAX_WORK {
                found.push(hunk(i..next_i, j..next_j));
            } else {
                let inner = compare(old, new).into_iter();
                found.extend(inner.map(|inner| {
                    let range = |range: Range<u32>, at: usize| {
                        range.start as usize + at..range.end as usize + at
                    };
                    hunk(range(inner.before, i), range(inner.after, j))
                }));
            }
        }
        (i, j) = (next_i + 1, next_j + 1);
    }
    found
}

/// A part of the tokens; empty if there is no such part.
pub(super) fn slice<'a>(tokens: &'a [Token], range: &Range<usize>) -> &'a [Token] {
    tokens.get(range.clone()).unwrap_or_default()
}

fn hunk(before: Range<usize>, after: Range<usize>) -> Hunk {
    // A text of bounded size has fewer lines than that.
    let range = |range: Range<usize>| range.start as u32..range.end as u32;
    Hunk {
        before: range(before),
        after: range(after),
    }
}

/// The longest row of items that both have exactly once, in the order that both have them in.
fn anchors(
    before: &[Token],
    after: &[Token],
    before_range: Range<usize>,
    after_range: Range<usize>,
    count: usize,
) -> Vec<(usize, usize)> {
    let mut places = vec![Place::default(); count];
    for (index, token) in before
        .iter()
        .enumerate()
        .take(before_range.end)
        .skip(before_range.start)
    {
        if let Some(place) = places.get_mut(token.0 as usize) {
            place.before = place.before.seen(index);
        }
    }
    for (index, token) in after
        .iter()
        .enumerate()
        .take(after_range.end)
        .skip(after_range.start)
    {
        if let Some(place) = places.get_mut(token.0 as usize) {
            place.after = place.after.seen(index);
        }
    }
    let pairs: Vec<(usize, usize)> = slice(before, &before_range)
        .iter()
        .filter_map(|token| match places.get(token.0 as usize)? {
            Place {
                before: Seen::Once(i),
                after: Seen::Once(j),
            } => Some((*i, *j)),
            _ => None,
        })
        .collect();
    rising(&pairs)
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    before: Seen,
    after: Seen,
}

#[derive(Debug, Clone, Copy, Default)]
enum Seen {
    #[default]
    Never,
    Once(usize),
    Often,
}

impl Seen {
    fn seen(self, index: usize) -> Self {
        match self {
            Self::Never => Self::Once(index),
            Self::Once(_) | Self::Often => Self::Often,
        }
    }
}

/// The longest subsequence whose second members rise.
fn rising(pairs: &[(usize, usize)]) -> Vec<(usize, usize)> {
    // For each length, the index of the pair with the lowest end; and for each pair the one before it.
    let mut ends: Vec<usize> = Vec::new();
    let mut previous: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    let second = |index: usize| pairs.get(index).map_or(0, |(_, j)| *j);
    for (index, (_, j)) in pairs.iter().enumerate() {
        let length = ends.partition_point(|end| second(*end) < *j);
        previous.push(
            length
                .checked_sub(1)
                .and_then(|shorter| ends.get(shorter).copied()),
        );
        match ends.get_mut(length) {
            Some(end) => *end = index,
            None => ends.push(index),
        }
    }
    let mut row = Vec::with_capacity(ends.len());
    let mut at = ends.last().copied();
    while let Some(index) = at {
        row.extend(pairs.get(index));
        at = previous.get(index).copied().flatten();
    }
    row.reverse();
    row
}

/// Compares a stretch; its cost must not depend on how many different items there are elsewhere.
fn compare(before: &[Token], after: &[Token]) -> Vec<Hunk> {
    let mut numbers: HashMap<u32, u32> = HashMap::new();
    let [before, after] = [before, after].map(|tokens| {
        let mut local = Vec::with_capacity(tokens.len());
        for token in tokens {
            let next = numbers.len() as u32;
            local.push(Token(*numbers.entry(token.0).or_insert(next)));
        }
        local
    });
    let mut diff = Diff::default();
    diff.compute_with(Algorithm::Histogram, &before, &after, numbers.len() as u32);
    diff.hunks().collect()
}

//! What on disk is to be looked at, and when.

use std::collections::{BTreeMap, BTreeSet};

use super::{QUIET_MAX_MS, QUIET_MS};
use crate::disk::RelPath;

/// How far a look goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Depth {
    /// The entry itself; a known directory is not opened.
    Leaf,
    /// The entry itself, and if it is a directory what stands directly in it.
    Entry,
    /// Everything beneath it, too.
    Deep,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    due_ms: u64,
    depth: Depth,
    /// When the writing that is waited for began.
    since_ms: u64,
    /// Somebody kept writing while it was read: nobody waits for this one.
    is_restless: bool,
}

/// Looks by path, each at most once; the earliest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    looks: BTreeMap<RelPath, Look>,
    by_due: BTreeSet<(u64, RelPath)>,
}

impl Queue {
    /// Look at an entry now.
    pub(super) fn soon(&mut self, path: RelPath, now_ms: u64) {
        self.put(
            path,
            Look {
                due_ms: now_ms,
                depth: Depth::Entry,
                since_ms: now_ms,
                is_restless: false,
            },
        );
    }

    /// Look at everything beneath a path now.
    pub(super) fn deep(&mut self, path: RelPath, now_ms: u64) {
        self.put(
            path,
            Look {
                due_ms: now_ms,
                depth: Depth::Deep,
                since_ms: now_ms,
                is_restless: false,
            },
        );
    }

    /// Look once writes have paused.
    pub(super) fn quiet(&mut self, path: RelPath, now_ms: u64) {
        self.after(path, now_ms, QUIET_MS);
    }

    /// Look again once writes have paused that kept it from being read.
    pub(super) fn restless(&mut self, path: RelPath, now_ms: u64) {
        self.after(path.clone(), now_ms, QUIET_MS);
        if let Some(look) = self.looks.get_mut(&path) {
            look.is_restless = look.due_ms > now_ms;
        }
    }

    /// Look soon: something about the entry changed, perhaps a write has only begun.
    pub(super) fn touched(&mut self, path: RelPath, now_ms: u64) {
        if !self.looks.contains_key(&path) {
            self.put(
                path,
                Look {
                    due_ms: now_ms,
                    depth: Depth::Entry,
                    since_ms: now_ms,
                    is_restless: false,
                },
            );
        }
    }

    fn after(&mut self, path: RelPath, now_ms: u64, quiet_ms: u64) {
        match self.looks.get(&path).copied() {
            Some(look) if look.depth == Depth::Deep || look.due_ms <= now_ms => {}
            Some(look) => {
                let latest = look.since_ms.saturating_add(QUIET_MAX_MS);
                let due_ms = now_ms.saturating_add(quiet_ms).min(latest);
                self.replace(path, Look { due_ms, ..look });
            }
            None => {
                let due_ms = now_ms.saturating_add(quiet_ms);
                self.replace(
                    path,
                    Look {
                        due_ms,
                        depth: Depth::Entry,
                        since_ms: now_ms,
                        is_restless: false,
                    },
                );
            }
        }
    }

    fn put(&mut self, path: RelPath, look: Look) {
        let look = match self.looks.get(&path) {
            Some(before) => Look {
                due_ms: look.due_ms.min(before.due_ms),
                depth: look.depth.max(before.depth),
                since_ms: look.since_ms.min(before.since_ms),
                is_restless: look.is_restless && before.is_restless,
            },
            None => look,
        };
        self.replace(path, look);
    }

    fn replace(&mut self, path: RelPath, look: Look) {
        if let Some(before) = self.looks.insert(path.clone(), look) {
            self.by_due.remove(&(before.due_ms, path.clone()));
        }
        self.by_due.insert((look.due_ms, path));
    }

    /// Takes the next look that is due.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<(RelPath, Depth)> {
        let (due_ms, path) = self.by_due.first()?.clone();
        if due_ms > now_ms {
            return None;
        }
        self.by_due.remove(&(due_ms, path.clone()));
        let look = self.looks.remove(&path)?;
        Some((path, look.depth))
    }

    /// Makes everything due but what is written to without a pause.
    pub(super) fn hurry(&mut self, now_ms: u64) {
        let looks = self.looks.iter().filter(|(_, look)| !look.is_restless);
        let paths: Vec<RelPath> = looks.map(|(path, _)| path.clone()).collect();
        for path in paths {
            if let Some(look) = self.looks.get(&path).copied() {
                self.replace(
                    path,
                    Look {
                        due_ms: look.due_ms.min(now_ms),
                        ..look
                    },
                );
            }
        }
    }

    /// True if nothing is due.
    pub(super) fn is_idle_at(&self, now_ms: u64) -> bool {
        self.next_due().is_none_or(|due| due > now_ms)
    }

    /// True if nothing is to be looked at but what is written to without a pause.
    pub(super) fn is_settled(&self) -> bool {
        self.looks.values().all(|look| look.is_restless)
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.by_due.first().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::from_bytes(text.as_bytes()).expect("a path")
    }

    #[test]
    fn a_close_overtakes_the_wait_for_quiet() {
        let mut queue = Queue::default();
        queue.quiet(path("a"), 100);
        assert_eq!(queue.next_due(), Some(600));
        queue.quiet(path("a"), 400);
        assert_eq!(queue.next_due(), Some(900));
        queue.soon(path("a"), 500);
        assert_eq!(queue.pop(500), Some((path("a"), Depth::Entry)));
        assert!(queue.is_settled());
    }

    #[test]
    fn nobody_waits_for_what_is_written_without_a_pause() {
        let mut queue = Queue::default();
        queue.quiet(path("a"), 0);
        assert!(!queue.is_settled());
        assert!(queue.pop(QUIET_MS).is_some());
        queue.restless(path("a"), QUIET_MS);
        queue.quiet(path("a"), QUIET_MS + 10);
        assert!(queue.is_settled());
        queue.hurry(QUIET_MS + 20);
        assert_eq!(queue.next_due(), Some(2 * QUIET_MS + 10));
        // Its writer closes it.
        queue.soon(path("a"), QUIET_MS + 30);
        assert!(!queue.is_settled());
        assert!(queue.pop(QUIET_MS + 30).is_some());
    }

    #[test]
    fn endless_writing_is_looked_at_all_the_same() {
        let mut queue = Queue::default();
        let mut now = 0;
        while now < QUIET_MAX_MS + QUIET_MS {
            if queue.pop(now).is_some() {
                assert!(now >= QUIET_MAX_MS - QUIET_MS);
                return;
            }
            queue.quiet(path("a"), now);
            now += 100;
        }
        panic!("never looked at");
    }
}

//! The requester's side of content: what was asked for and how far the answers have come.

use std::collections::{BTreeMap, VecDeque};

use crate::content::ObjectId;
use crate::ids::SpaceId;
use crate::wire::{Answer, Cancel, Item, Message, WantContents, WantPieces};

use super::io::{Output, Wanted};
use super::{Outbox, REQUEST_BYTES_MAX, REQUESTS_MAX, REQUESTS_WAITING_MAX, Violation};

/// Which message an answer came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerKind {
    Contents,
    Pieces,
}

#[derive(Debug)]
struct Request {
    space: SpaceId,
    what: Wanted,
    bytes: u64,
    next: usize,
    missing: Vec<ObjectId>,
    cancelled: bool,
}

impl Request {
    fn unanswered(&self) -> impl Iterator<Item = ObjectId> + '_ {
        (self.next..self.what.len()).filter_map(|at| self.what.object(at))
    }

    /// Everything that the answers did not bring.
    fn into_missing(mut self) -> Vec<ObjectId> {
        let rest: Vec<ObjectId> = self.unanswered().collect();
        self.missing.extend(rest);
        self.missing
    }
}

#[derive(Debug, Default)]
pub(super) struct Fetch {
    waiting: VecDeque<(u64, Request)>,
    active: BTreeMap<u64, Request>,
    /// Sum of what the active ones may cost.
    bytes: u64,
}

impl Fetch {
    pub(super) fn room(&self) -> usize {
        REQUESTS_WAITING_MAX.saturating_sub(self.waiting.len())
    }

    /// Takes a request; one that can't be made is done at once, with all of it missing.
    pub(super) fn want(
        &mut self,
        request: u64,
        space: SpaceId,
        what: Wanted,
        bytes: u64,
        out: &mut Outbox,
    ) {
        let taken = self.active.contains_key(&request)
            || self.waiting.iter().any(|(other, _)| *other == request);
        let possible = !taken && self.room() > 0 && what.is_within_limits();
        let entry = Request {
            space,
            what,
            bytes,
            next: 0,
            missing: vec![],
            cancelled: false,
        };
        if possible {
            self.waiting.push_back((request, entry));
        } else {
            out.push(Output::RequestDone {
                request,
                missing: entry.into_missing(),
            });
        }
    }

    pub(super) fn cancel(&mut self, request: u64, out: &mut Outbox) {
        if let Some(at) = self.waiting.iter().position(|(other, _)| *other == request) {
            if let Some((_, entry)) = self.waiting.remove(at) {
                out.push(Output::RequestDone {
                    request,
                    missing: entry.into_missing(),
                });
            }
        } else if let Some(entry) = self.active.get_mut(&request)
            && !entry.cancelled
        {
            entry.cancelled = true;
            out.send(&Message::Cancel(Cancel { request }));
        }
    }

    pub(super) fn pump(&mut self, out: &mut Outbox) {
        while self.active.len() < REQUESTS_MAX
            && let Some((_, entry)) = self.waiting.front()
            && (self.active.is_empty()
                || self.bytes.saturating_add(entry.bytes) <= REQUEST_BYTES_MAX)
            && let Some((request, entry)) = self.waiting.pop_front()
        {
            let space = entry.space;
            out.send(&match entry.what.clone() {
                Wanted::Contents(ids) => Message::WantContents(WantContents {
                    request,
                    space,
                    ids,
                }),
                Wanted::Pieces { content, pieces } => Message::WantPieces(WantPieces {
                    request,
                    space,
                    content,
                    pieces,
                }),
            });
            self.bytes = self.bytes.saturating_add(entry.bytes);
            self.active.insert(request, entry);
        }
    }

    pub(super) fn answer(
        &mut self,
        answer: Answer,
        kind: AnswerKind,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let Answer {
            request,
            first,
            last,
            items,
        } = answer;
        let entry = self.active.get_mut(&request);
        let entry = entry.ok_or_else(|| Violation::new("an answer to no request"))?;
        let right_kind = match entry.what {
            Wanted::Contents(_) => kind == AnswerKind::Contents,
            Wanted::Pieces { .. } => kind == AnswerKind::Pieces,
        };
        if !right_kind || first as usize != entry.next {
            return Err(Violation::new(
                "an answer that does not follow on the one before",
            ));
        }
        if items.is_empty() && !last {
            return Err(Violation::new("an empty answer"));
        }
        let mut arrived = Vec::new();
        for item in items {
            let object = entry
                .what
                .object(entry.next)
                .filter(|_| entry.what.takes(entry.next, &item));
            let object = object.ok_or_else(|| Violation::new("an item that was not asked for"))?;
            entry.next += 1;
            match item {
                Item::Missing => entry.missing.push(object),
                item => arrived.push((object, item)),
            }
        }
        let complete = entry.next == entry.what.len();
        if (complete && !last) || (last && !complete && !entry.cancelled) {
            return Err(Violation::new("an answer that ends at the wrong place"));
        }
        if !arrived.is_empty() {
            out.push(Output::Arrived {
                request,
                space: entry.space,
                items: arrived,
            });
        }
        if last && let Some(entry) = self.active.remove(&request) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
            out.push(Output::RequestDone {
                request,
                missing: entry.into_missing(),
            });
        }
        Ok(())
    }
}

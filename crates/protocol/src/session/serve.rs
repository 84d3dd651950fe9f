//! The server's side of content: requests are answered in their order, and no more is read
//! ahead than the transport takes.

use std::collections::VecDeque;

use crate::ids::SpaceId;
use crate::wire::{Answer, Item, Message};

use super::io::{Output, Wanted};
use super::{CONTENT_QUEUE_MAX, Outbox, READ_BYTES, REQUESTS_MAX, Violation};

/// Most items that the owner is asked for at a time.
const READ_ITEMS: usize = 256;

#[derive(Debug)]
struct Serving {
    request: u64,
    space: SpaceId,
    what: Wanted,
    next: usize,
    cancelled: bool,
}

impl Serving {
    fn send(&mut self, items: Vec<Item>, out: &mut Outbox) {
        let first = u32::try_from(self.next).unwrap_or(u32::MAX);
        self.next += items.len();
        let last = self.cancelled || self.next >= self.what.len();
        let answer = Answer {
            request: self.request,
            first,
            last,
            items,
        };
        out.send(&match self.what {
            Wanted::Contents(_) => Message::Contents(answer),
            Wanted::Pieces { .. } => Message::Pieces(answer),
        });
    }
}

#[derive(Debug, Default)]
pub(super) struct Serve {
    queue: VecDeque<Serving>,
    /// How many items of the first one the owner is reading.
    reading: Option<usize>,
}

impl Serve {
    pub(super) fn want(
        &mut self,
        request: u64,
        space: SpaceId,
        what: Wanted,
    ) -> Result<(), Violation> {
        if self.queue.len() >= REQUESTS_MAX {
            return Err(Violation::new("too many requests"));
        }
        if self.queue.iter().any(|serving| serving.request == request) {
            return Err(Violation::new("a request's number is still in use"));
        }
        self.queue.push_back(Serving {
            request,
            space,
            what,
            next: 0,
            cancelled: false,
        });
        Ok(())
    }

    pub(super) fn cancel(&mut self, request: u64) {
        if let Some(serving) = self.queue.iter_mut().find(|s| s.request == request) {
            serving.cancelled = true;
        }
    }

    /// The owner has read.
    pub(super) fn items(&mut self, request: u64, items: Vec<Item>, out: &mut Outbox) {
        let Some(serving) = self.queue.front_mut().filter(|s| s.request == request) else {
            return;
        };
        let Some(asked) = self.reading.take() else {
            return;
        };
        if serving.cancelled {
            return;
        }
        let mut items = if items.is_empty() {
            vec![Item::Missing; asked]
        } else {
            items
        };
        items.truncate(asked);
        let mut run = Vec::new();
        let mut size = 0;
        let mut runs = Vec::new();
        for (n, item) in items.into_iter().enumerate() {
            // What does not fit the protocol is as good as not there.
            let takes = serving.what.takes(serving.next + n, &item);
            let item = if takes { item } else { Item::Missing };
            if size >= READ_BYTES {
                runs.push(std::mem::take(&mut run));
                size = 0;
            }
            size += item.size() as u64;
            run.push(item);
        }
        runs.push(run);
        for run in runs {
            serving.send(run, out);
        }
        if serving.next >= serving.what.len() {
            self.queue.pop_front();
        }
    }

    /// Asks for more to be read while the transport's queue has room.
    pub(super) fn pump(&mut self, is_open: impl Fn(&SpaceId) -> bool, out: &mut Outbox) {
        while self.reading.is_none()
            && out.content_bytes + READ_BYTES <= CONTENT_QUEUE_MAX
            && let Some(serving) = self.queue.front_mut()
        {
            let left = serving.what.len().saturating_sub(serving.next);
            if serving.cancelled {
                serving.send(vec![], out);
                self.queue.pop_front();
            } else if !is_open(&serving.space) {
                serving.send(vec![Item::Missing; left], out);
                self.queue.pop_front();
            } else {
                let asked = left.min(READ_ITEMS);
                self.reading = Some(asked);
                out.push(Output::Read {
                    request: serving.request,
                    space: serving.space,
                    what: serving.what.slice(serving.next, asked),
                    bytes_max: READ_BYTES,
                });
            }
        }
    }
}

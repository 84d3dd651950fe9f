//! Segments that came and are not stored yet.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::SpaceId;
use crate::wire::Segments;

use super::io::Output;
use super::outbox::{Outbox, Violation};
use super::{SEGMENT_WINDOW, STORES_MAX};

#[derive(Debug, Default)]
pub(super) struct Intake {
    /// Received and not yet given to the owner.
    waiting: VecDeque<Segments>,
    /// Given to the owner and not answered: space and bytes.
    stores: BTreeMap<u64, (SpaceId, u64)>,
    next_store: u64,
    /// Bytes of both.
    bytes: u64,
}

impl Intake {
    pub(super) fn is_behind(&self) -> bool {
        self.bytes >= SEGMENT_WINDOW
    }

    pub(super) fn receive(&mut self, segments: Segments) -> Result<(), Violation> {
        self.bytes = self.bytes.saturating_add(segments.size());
        // Twice: a space that was closed and opened again may have both windows' worth here.
        if self.bytes > 2 * SEGMENT_WINDOW {
            return Err(Violation::new("more segments than the window allows"));
        }
        self.waiting.push_back(segments);
        Ok(())
    }

    /// Drops what waits for a space that is closed.
    pub(super) fn forget(&mut self, space: &SpaceId) {
        let bytes = &mut self.bytes;
        self.waiting.retain(|segments| {
            let keep = segments.space != *space;
            if !keep {
                *bytes = bytes.saturating_sub(segments.size());
            }
            keep
        });
    }

    /// The owner has answered; says for which space.
    pub(super) fn answered(&mut self, store: u64) -> Option<SpaceId> {
        let (space, bytes) = self.stores.remove(&store)?;
        self.bytes = self.bytes.saturating_sub(bytes);
        Some(space)
    }

    pub(super) fn pump(&mut self, out: &mut Outbox) {
        while self.stores.len() < STORES_MAX
            && let Some(segments) = self.waiting.pop_front()
        {
            let store = self.next_store;
            self.next_store = self.next_store.wrapping_add(1);
            let (space, size) = (segments.space, segments.size());
            self.stores.insert(store, (space, size));
            let segments = segments.segments.into_iter().map(Into::into).collect();
            out.push(Output::Store {
                store,
                space,
                segments,
            });
        }
    }
}

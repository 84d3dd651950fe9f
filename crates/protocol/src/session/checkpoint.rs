//! Checkpoints for a peer that lacks what is not held as segments any more.
//!
//! The side that lacks asks for one part after the other, so at most one is under way.

use std::collections::BTreeSet;

use crate::ids::SpaceId;
use crate::wire::{CheckpointPart, Message, Pruned, WantCheckpoint};

use super::io::Output;
use super::outbox::{Outbox, Violation};

#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// Spaces of which the peer was told that segments are pruned.
    told: BTreeSet<SpaceId>,
    /// What the peer was asked for.
    asked: Option<(SpaceId, u64)>,
    /// What the peer has asked for.
    reading: Option<(SpaceId, u64)>,
}

impl Checkpoints {
    pub(super) fn pruned(&mut self, space: SpaceId, out: &mut Outbox) {
        if self.told.insert(space) {
            out.send(&Message::Pruned(Pruned { space }));
        }
    }

    pub(super) fn want(&mut self, space: SpaceId, part: u64, out: &mut Outbox) {
        if self.asked.is_none() {
            self.asked = Some((space, part));
            out.send(&Message::WantCheckpoint(WantCheckpoint { space, part }));
        }
    }

    /// The peer asks; `open` says whether both sides take part in the space.
    pub(super) fn wanted(
        &mut self,
        want: WantCheckpoint,
        open: bool,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        if self.reading.is_some() {
            return Err(Violation::new("two checkpoints at a time"));
        }
        let WantCheckpoint { space, part } = want;
        self.reading = Some((space, part));
        // It may lack something once more, later on.
        self.told.remove(&space);
        if open {
            out.push(Output::ReadCheckpoint { space, part });
        } else {
            self.read(None, true, vec![], out);
        }
        Ok(())
    }

    pub(super) fn read(
        &mut self,
        header: Option<Vec<u8>>,
        last: bool,
        bytes: Vec<u8>,
        out: &mut Outbox,
    ) {
        if let Some((space, part)) = self.reading.take() {
            out.send(&Message::CheckpointPart(CheckpointPart {
                space,
                part,
                header: header.map(Into::into),
                last,
                bytes: bytes.into(),
            }));
        }
    }

    pub(super) fn came(&mut self, came: CheckpointPart, out: &mut Outbox) -> Result<(), Violation> {
        if self.asked.take() != Some((came.space, came.part)) {
            return Err(Violation::new(
                "a part of a checkpoint that was not asked for",
            ));
        }
        out.push(Output::CheckpointPart {
            space: came.space,
            part: came.part,
            header: came.header.map(Into::into),
            last: came.last,
            bytes: came.bytes.into(),
        });
        Ok(())
    }
}

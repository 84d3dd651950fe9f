//! Branches of forked logs: whoever lacks one asks for it, one part after the other.

use crate::ids::SpaceId;
use crate::vector::{Dep, Head};
use crate::wire::{Branch, Message, SEGMENTS_MAX, TRAIL_MAX, WantBranch};

use super::io::Output;
use super::outbox::{Outbox, Violation};

/// Bytes of segments in an answer; one segment may come on top.
const BRANCH_BYTES: usize = 512 * 1024;

#[derive(Debug, Default)]
pub(super) struct Branches {
    /// What the peer was asked for.
    asked: Option<(SpaceId, Dep)>,
    /// What the peer has asked for.
    reading: Option<SpaceId>,
}

impl Branches {
    pub(super) fn is_free(&self) -> bool {
        self.asked.is_none()
    }

    pub(super) fn want(&mut self, space: SpaceId, to: Dep, mut trail: Vec<Head>, out: &mut Outbox) {
        if self.asked.is_none() {
            trail.truncate(TRAIL_MAX);
            self.asked = Some((space, to));
            out.send(&Message::WantBranch(WantBranch { space, to, trail }));
        }
    }

    /// The peer asks; `open` says whether both sides take part in the space.
    pub(super) fn wanted(
        &mut self,
        want: WantBranch,
        open: bool,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        if self.reading.is_some() {
            return Err(Violation::new("two branches at a time"));
        }
        let WantBranch { space, to, trail } = want;
        self.reading = Some(space);
        if open {
            out.push(Output::ReadBranch {
                space,
                to,
                trail,
                bytes_max: BRANCH_BYTES as u64,
            });
        } else {
            self.read(vec![], out);
        }
        Ok(())
    }

    pub(super) fn read(&mut self, segments: Vec<Vec<u8>>, out: &mut Outbox) {
        if let Some(space) = self.reading.take() {
            let segments = segments.into_iter().take(SEGMENTS_MAX);
            let segments = segments.map(Into::into).collect();
            out.send(&Message::Branch(Branch { space, segments }));
        }
    }

    pub(super) fn came(&mut self, came: Branch, out: &mut Outbox) -> Result<(), Violation> {
        let Some((space, to)) = self.asked.take().filter(|(s, _)| *s == came.space) else {
            return Err(Violation::new("a branch that was not asked for"));
        };
        let segments = came.segments.into_iter().map(Into::into).collect();
        out.push(Output::Branch {
            space,
            to,
            segments,
        });
        Ok(())
    }
}

//! Moves: what stands in the way goes first, and what waits for itself steps aside.

use pacsync_protocol::NodeId;
use pacsync_protocol::crypto::Entropy;
use pacsync_store::StoreError;
use pacsync_store::content::packs::PackStore;
use pacsync_store::index::Entry;
use pacsync_store::tree::NodeState;

use super::Worktree;
use super::apply::{Place, Step};
use super::batch::Batch;
use super::plan::{Plan, Wanted};
use super::settle::path_of;
use super::unshown::{Occupant, Unshowable};

/// Most nodes that are followed to find out whether they wait for each other.
const RING_MAX: usize = 4_096;

impl Worktree {
    pub(super) fn plan_move(
        &mut self,
        b: &mut Batch<'_>,
        packs: &PackStore,
        rng: &mut dyn Entropy,
        state: NodeState,
        (parent, name, entry): (NodeId, Vec<u8>, Entry),
        place: Place,
    ) -> Result<Plan, StoreError> {
        let node = state.id;
        let Some(dir) = path_of(&b.index, &parent)? else {
            return Ok(Plan::Done);
        };
        let Ok(path) = dir.join(&name) else {
            return Ok(Plan::Done);
        };
        let from = Place { parent, name, path };
        if place.name.len() > self.probe.name_max {
            let why = Unshowable::LongName;
            return self.stay(b, packs, rng, state, entry, from, &place.path, why);
        }
        let blocker = match self.occupant(b, &place)? {
            // Its name changes to one that this disk takes for the same.
            Occupant::Node(other) if other == node => None,
            Occupant::Node(other) => {
                if self.faults.is_unshowable(&other)
                    || self.stays(b, &other, &place)?
                    || self.is_stuck(b, &other)?
                {
                    let why = Unshowable::Taken;
                    return self.stay(b, packs, rng, state, entry, from, &place.path, why);
                }
                Some(other)
            }
            Occupant::Unseen(path) => {
                return Ok(self.after_look(node, path, super::SETTLE_MS, b.now));
            }
            // The directory that it goes to lies beneath it: that one has to go first.
            Occupant::None if place.path.starts_with(&from.path) => Some(place.parent),
            Occupant::None => None,
        };
        let Some(blocker) = blocker else {
            return Ok(Plan::Step(Step::Move {
                node,
                entry,
                from,
                to: place,
            }));
        };
        let beneath = place.path.starts_with(&from.path);
        if beneath || !self.is_ring(b, node, blocker)? {
            return Ok(self.after(node, blocker, b.now));
        }
        // Each waits for the next one's place: step aside, out of what has to move.
        let Some(to) = self.place_aside(&place, rng) else {
            return Ok(Plan::Done);
        };
        Ok(Plan::Step(Step::Move {
            node,
            entry,
            from,
            to,
        }))
    }

    /// Another name in the same directory.
    fn place_aside(&self, place: &Place, rng: &mut dyn Entropy) -> Option<Place> {
        let name = self.temp_name(b"", rng);
        let dir = place.path.parent().unwrap_or_default();
        let path = dir.join(&name).ok()?;
        Some(Place {
            parent: place.parent,
            name,
            path,
        })
    }

    /// Moves what stands where something has to be made first that it goes to.
    pub(super) fn step_aside(
        &self,
        b: &Batch<'_>,
        rng: &mut dyn Entropy,
        node: NodeId,
    ) -> Result<Option<Step>, StoreError> {
        let Some((parent, name, entry)) = b.index.entry_of(&node)? else {
            return Ok(None);
        };
        let dir = path_of(&b.index, &parent)?.unwrap_or_default();
        let Ok(path) = dir.join(&name) else {
            return Ok(None);
        };
        let from = Place { parent, name, path };
        let to = self.place_aside(&from, rng);
        Ok(to.map(|to| Step::Move {
            node,
            entry,
            from,
            to,
        }))
    }

    /// Whether `node` waits for a place that becomes free only once `node` itself has moved, or is
    /// made.
    pub(super) fn is_ring(
        &mut self,
        b: &Batch<'_>,
        node: NodeId,
        first: NodeId,
    ) -> Result<bool, StoreError> {
        let mut at = first;
        for _ in 0..RING_MAX {
            let Some(state) = b.tree.node(&at)? else {
                return Ok(false);
            };
            let next = match self.wanted_place(b, &state)? {
                Wanted::Nowhere => return Ok(false),
                Wanted::After(above) => match above.first() {
                    Some(dir) => *dir,
                    None => return Ok(false),
                },
                Wanted::Place(place) => match self.occupant(b, &place)? {
                    Occupant::Node(other) if other == at => return Ok(false),
                    Occupant::Node(other) => other,
                    Occupant::Unseen(_) => return Ok(false),
                    Occupant::None => match path_of(&b.index, &at)? {
                        Some(from) if place.path.starts_with(&from) => place.parent,
                        _ => return Ok(false),
                    },
                },
            };
            if next == node {
                return Ok(true);
            }
            at = next;
        }
        Ok(false)
    }
}

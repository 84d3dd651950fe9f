//! Which of the groups at one path shows, and which have to become one.

use std::collections::BTreeSet;

use pacsync_protocol::row::{Keys, Kind, Row};
use pacsync_protocol::{NodeId, RowId};

use super::settle::{CONFLICT_PATH, Listed};
use super::tables::{Backend, TreeTables};
use super::{Carrier, Causality, TreeError};

/// A group at a path.
struct Claim {
    node: NodeId,
    kind: Kind,
    adopted: bool,
    birth: RowId,
    carriers: Vec<Carrier>,
}

impl TreeTables<'_> {
    /// Decides anew what shows at a path.
    pub(super) fn resolve(
        &mut self,
        path: &[u8],
        causality: &dyn Causality,
        touched: &mut BTreeSet<NodeId>,
        unify: &mut Vec<Row>,
    ) -> Result<(), TreeError> {
        let places = self.b.places(path)?.collect::<Result<Vec<_>, _>>()?;
        let mut nodes = Vec::with_capacity(places.len());
        for (key, flag) in places {
            let node = key.get(path.len()..).and_then(NodeId::from_slice);
            nodes.push((node.ok_or(TreeError::Damaged("a place"))?, flag));
        }
        let mut shown = None;
        let mut hidden = false;
        if let [(node, _)] = nodes.as_slice() {
            if !matches!(self.b.group(node)?.kind, Kind::Other(_)) {
                shown = Some(*node);
            }
        } else {
            let mut claims = self.claims(&nodes)?;
            hidden = claims.len() > 1;
            for kind in [Kind::Dir, Kind::File, Kind::Symlink] {
                let (of_kind, rest) = claims.into_iter().partition(|claim| claim.kind == kind);
                claims = rest;
                if let Some(winner) = self.clash(of_kind, causality, unify)? {
                    shown = shown.or(Some(winner));
                }
            }
        }
        for (node, flag) in nodes {
            let now = Some(node) == shown;
            if self.b.group(&node)?.shown != now {
                self.b.group_mut(&node)?.shown = now;
                touched.insert(node);
            }
            if (flag == 1) != now {
                let mut key = path.to_vec();
                key.extend_from_slice(node.as_bytes());
                self.b.places.insert(key.as_slice(), u8::from(now))?;
            }
        }
        let mut key = self.space.to_be_bytes().to_vec();
        key.push(CONFLICT_PATH);
        key.extend_from_slice(path.get(4..).unwrap_or_default());
        self.list_conflict(&key, if hidden { Listed::Yes } else { Listed::No })
    }

    /// Those of the groups that can show.
    fn claims(&mut self, nodes: &[(NodeId, u8)]) -> Result<Vec<Claim>, TreeError> {
        let mut claims = vec![];
        for (node, _) in nodes {
            let group = self.b.group(node)?;
            let (kind, adopted, birth) = (group.kind, group.adopted, group.birth);
            let Some(at) = group.placed else {
                return Err(TreeError::Damaged("a place without its group"));
            };
            if !matches!(kind, Kind::Other(_)) {
                let mut carriers = self.b.later_carriers(&at)?;
                carriers.push(self.link(&at)?.carrier);
                claims.push(Claim {
                    node: *node,
                    kind,
                    adopted,
                    birth,
                    carriers,
                });
            }
        }
        claims.sort_unstable_by_key(|claim| (claim.adopted, claim.node));
        Ok(claims)
    }

    /// The winner among groups of one kind, in order of preference; adds what unifies the others with it.
    fn clash(
        &mut self,
        claims: Vec<Claim>,
        causality: &dyn Causality,
        unify: &mut Vec<Row>,
    ) -> Result<Option<NodeId>, TreeError> {
        let mut staying = vec![];
        for claim in &claims {
            let mut stays = true;
            for other in &claims {
                if stays && other.node != claim.node {
                    stays = !self.displaces(other, claim, causality)?;
                }
            }
            if stays {
                staying.push(claim);
            }
        }
        let mut staying = staying.into_iter();
        let Some(winner) = staying.next().or(claims.first()) else {
            return Ok(None);
        };
        for loser in staying {
            let keys = Keys {
                into: Some(winner.node),
                ..Keys::default()
            };
            unify.push(Row::new(loser.node, vec![loser.birth], keys));
        }
        Ok(Some(winner.node))
    }

    /// True if whoever placed one had seen the other there, alive. In one segment both had seen
    /// each other, and neither displaces.
    fn displaces(
        &mut self,
        later: &Claim,
        earlier: &Claim,
        causality: &dyn Causality,
    ) -> Result<bool, TreeError> {
        let saw =
            |by: &Carrier, placed: &Claim| placed.carriers.iter().any(|of| causality.saw(*by, *of));
        if earlier.carriers.iter().any(|by| saw(by, later)) {
            return Ok(false);
        }
        let group = self.b.group(&earlier.node)?.clone();
        for by in &later.carriers {
            if saw(by, earlier) && self.was_alive(&group, *by, causality)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

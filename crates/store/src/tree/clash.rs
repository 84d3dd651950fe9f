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
                if let Some(winner) = clash(of_kind, causality, unify) {
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
}

/// The winner among groups of one kind, in order of preference; adds what unifies the others with it.
fn clash(claims: Vec<Claim>, causality: &dyn Causality, unify: &mut Vec<Row>) -> Option<NodeId> {
    // Who had seen the other's placement comes later; in one segment neither does.
    let saw = |later: &Claim, earlier: &Claim| {
        let seen = |by: &Carrier| earlier.carriers.iter().any(|of| causality.saw(*by, *of));
        later.carriers.iter().any(seen)
    };
    let after = |later: &Claim, earlier: &Claim| saw(later, earlier) && !saw(earlier, later);
    let stays = |claim: &&Claim| {
        !claims
            .iter()
            .any(|other| other.node != claim.node && after(other, claim))
    };
    let mut staying = claims.iter().filter(stays);
    let winner = staying.next().or(claims.first())?;
    for loser in staying {
        let keys = Keys {
            into: Some(winner.node),
            ..Keys::default()
        };
        unify.push(Row::new(loser.node, vec![loser.birth], keys));
    }
    Some(winner.node)
}

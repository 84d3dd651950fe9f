//! Work that inserted rows leave for the next settle, kept across transactions.

use std::collections::BTreeSet;

use pacsync_protocol::NodeId;

use super::TreeError;

/// What the next settle has to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// Representatives, or nodes that were so when they were noted.
    pub(super) touched: BTreeSet<NodeId>,
    /// Representatives merged away.
    pub(super) gone: BTreeSet<NodeId>,
    /// Keys of paths.
    pub(super) paths: BTreeSet<Vec<u8>>,
}

const PENDING_TOUCHED: u8 = 1;
const PENDING_GONE: u8 = 2;
const PENDING_PATH: u8 = 3;

impl Pending {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![];
        for (tag, nodes) in [(PENDING_TOUCHED, &self.touched), (PENDING_GONE, &self.gone)] {
            for node in nodes {
                out.push(tag);
                out.extend_from_slice(node.as_bytes());
            }
        }
        for path in &self.paths {
            out.push(PENDING_PATH);
            out.extend_from_slice(&(path.len() as u64).to_be_bytes());
            out.extend_from_slice(path);
        }
        out
    }

    pub(super) fn decode_into(&mut self, mut bytes: &[u8]) -> Result<(), TreeError> {
        const BAD: TreeError = TreeError::Damaged("pending work");
        let take = |count: usize, rest: &mut &[u8]| -> Result<Vec<u8>, TreeError> {
            let (head, tail) = rest.split_at_checked(count).ok_or(BAD)?;
            *rest = tail;
            Ok(head.to_vec())
        };
        while let Some((tag, rest)) = bytes.split_first() {
            bytes = rest;
            match *tag {
                PENDING_TOUCHED | PENDING_GONE => {
                    let node = NodeId::from_slice(&take(NodeId::LEN, &mut bytes)?).ok_or(BAD)?;
                    let set = if *tag == PENDING_GONE {
                        &mut self.gone
                    } else {
                        &mut self.touched
                    };
                    set.insert(node);
                }
                PENDING_PATH => {
                    let len = take(8, &mut bytes)?.try_into().map_err(|_| BAD)?;
                    let len = usize::try_from(u64::from_be_bytes(len)).map_err(|_| BAD)?;
                    self.paths.insert(take(len, &mut bytes)?);
                }
                _ => return Err(BAD),
            }
        }
        Ok(())
    }
}

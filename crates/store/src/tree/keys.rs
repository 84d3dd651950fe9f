//! Keys of the tables, put together and taken apart.

use pacsync_protocol::row::Name;
use pacsync_protocol::{NodeId, RowId};

use super::{Carrier, TreeError};

/// A key that begins with the space; what the parts do not fill is zero.
pub(super) fn space_key<const N: usize>(space: u32, parts: &[&[u8]]) -> [u8; N] {
    let mut key = [0; N];
    let space = space.to_be_bytes();
    let all = [&space[..]]
        .into_iter()
        .chain(parts.iter().copied())
        .flatten();
    for (slot, byte) in key.iter_mut().zip(all) {
        *slot = *byte;
    }
    key
}

pub(super) fn rows_key(space: u32, id: &RowId) -> [u8; 36] {
    space_key(space, &[id.as_bytes()])
}

pub(super) fn nodes_key(space: u32, node: &NodeId) -> [u8; 20] {
    space_key(space, &[node.as_bytes()])
}

/// The first and the last key that a directory move of a space can have.
pub(super) fn moves_range(space: u32) -> ([u8; 44], [u8; 44]) {
    (space_key(space, &[]), space_key(space, &[&[u8::MAX; 40]]))
}

/// The prefix of all places in a directory.
pub(super) fn dir_key(space: u32, parent: &NodeId) -> Vec<u8> {
    nodes_key(space, parent).to_vec()
}

/// The prefix of all places at a path. Names hold no NUL, so no name's key is within another's.
pub(super) fn path_key(space: u32, parent: &NodeId, name: &Name) -> Vec<u8> {
    let mut key = dir_key(space, parent);
    key.extend_from_slice(name.as_bytes());
    key.push(0);
    key
}

/// Takes a place's key apart: parent, name, node.
pub(super) fn split_place(key: &[u8]) -> Result<(NodeId, Name, NodeId), TreeError> {
    let bad = TreeError::Damaged("a place");
    let (path, node) = key
        .split_at_checked(key.len().wrapping_sub(NodeId::LEN))
        .ok_or(bad)?;
    let (parent, name) = split_path(path)?;
    let node = NodeId::from_slice(node).ok_or(TreeError::Damaged("a place"))?;
    Ok((parent, name, node))
}

/// Takes a path's key apart: parent, name.
pub(super) fn split_path(key: &[u8]) -> Result<(NodeId, Name), TreeError> {
    let parts = key
        .get(4..20)
        .and_then(NodeId::from_slice)
        .zip(key.get(20..key.len().max(21) - 1));
    let (parent, name) = parts.ok_or(TreeError::Damaged("a path"))?;
    Ok((
        parent,
        Name::new(name).map_err(|_| TreeError::Damaged("a name"))?,
    ))
}

/// The least key above all keys with a prefix; the prefix begins with a space number below the highest.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; 32]
}

pub(super) fn carriers_key(space: u32, id: &RowId, carrier: Carrier) -> [u8; 48] {
    let (log, seq) = (carrier.log.to_be_bytes(), carrier.seq.to_be_bytes());
    space_key(space, &[id.as_bytes(), &log, &seq])
}

pub(super) fn split_carrier(key: &[u8; 48]) -> Carrier {
    let (mut log, mut seq) = ([0; 4], [0; 8]);
    log.copy_from_slice(&key[36..40]);
    seq.copy_from_slice(&key[40..48]);
    Carrier {
        log: u32::from_be_bytes(log),
        seq: u64::from_be_bytes(seq),
    }
}

//! What the tables hold, and its bytes: a row with its links, a group, totals.

use std::collections::BTreeMap;

use pacsync_protocol::row::{Kind, Row};
use pacsync_protocol::{NodeId, RowId, Stamp};

use super::{Carrier, TreeError, TreeStats};

/// Where a row stands in its group's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub(super) carrier: Carrier,
    /// 1 + the highest generation of the past.
    pub(super) generation: u64,
    /// Content rows behind it.
    pub(super) behind: u64,
    /// Whether it writes content itself.
    pub(super) writes_content: bool,
    /// Number of gates behind it.
    pub(super) depth: u64,
    /// `None` in a birth row.
    pub(super) back: Option<Back>,
}

/// The ways back from a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Back {
    /// A row that is behind it, such that all rows behind of a lower generation are behind it too.
    pub(super) gate: RowId,
    /// The gate, or a gate of gates.
    pub(super) jump: RowId,
    /// True if the gate is the whole past.
    pub(super) single: bool,
}

/// A row as it is held.
#[derive(Debug, Clone)]
pub struct Held {
    pub(super) link: Link,
    pub(super) row: Row,
}

#[expect(clippy::large_enum_variant, reason = "nearly all are groups")]
/// What the table says about a node.
#[derive(Debug, Clone)]
pub enum Slot {
    /// It was unified; ask this one.
    Forward(NodeId),
    /// It represents a group.
    Group(Group),
}

/// The summary of a group, under its representative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub(super) kind: Kind,
    pub(super) adopted: bool,
    /// The representative's lowest birth row.
    pub(super) birth: RowId,
    /// Newest rows of all.
    pub(super) heads: Vec<RowId>,
    pub(super) content: Vec<RowId>,
    pub(super) mode: Vec<RowId>,
    pub(super) life: Vec<RowId>,
    /// Dead rows that no other dead row has behind it.
    pub(super) deads: Vec<RowId>,
    /// The placement that counts.
    pub(super) at: Option<RowId>,
    /// Whether another directory was ever placed in it.
    pub(super) named: bool,
    pub(super) live_children: u64,
    /// As of the last settle: alive by its own rule.
    pub(super) alive: bool,
    /// As of the last settle: wins its path.
    pub(super) shown: bool,
    /// The placement under which the places table has it.
    pub(super) placed: Option<RowId>,
    /// Bytes that the totals count for it, if they count it.
    pub(super) counted: Option<u64>,
    /// Whether it is listed for its losing values.
    pub(super) contested: bool,
}

/// Counters of a space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub(super) stats: TreeStats,
    pub(super) max_stamp: Stamp,
    /// Directory placements are stale, maybe cyclic, until they are replayed.
    pub(super) replay_due: bool,
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads the bytes of a record; runs out only if the table is damaged.
struct Reader<'a>(&'a [u8]);

const SHORT: TreeError = TreeError::Damaged("a record is cut short");

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], TreeError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, TreeError> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn number(&mut self) -> Result<u64, TreeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(TreeError::Damaged("a number is too long"))
    }

    fn row_id(&mut self) -> Result<RowId, TreeError> {
        RowId::from_slice(self.take(RowId::LEN)?).ok_or(SHORT)
    }

    fn node_id(&mut self) -> Result<NodeId, TreeError> {
        NodeId::from_slice(self.take(NodeId::LEN)?).ok_or(SHORT)
    }
}

const LINK_BACK: u8 = 1;
const LINK_CONTENT: u8 = 2;
const LINK_SINGLE: u8 = 4;
const LINK_JUMP_IS_GATE: u8 = 8;

impl Link {
    /// The record of a row: its link, then its bytes.
    pub(super) fn encode(&self, row: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(row.len() + 16);
        let mut flags = 0;
        if self.writes_content {
            flags |= LINK_CONTENT;
        }
        if let Some(back) = &self.back {
            flags |= LINK_BACK;
            if back.single {
                flags |= LINK_SINGLE;
            }
            if back.jump == back.gate {
                flags |= LINK_JUMP_IS_GATE;
            }
        }
        out.push(flags);
        put(&mut out, u64::from(self.carrier.log));
        put(&mut out, self.carrier.seq);
        if let Some(back) = &self.back {
            put(&mut out, self.generation);
            put(&mut out, self.behind);
            put(&mut out, self.depth);
            out.extend_from_slice(back.gate.as_bytes());
            if back.jump != back.gate {
                out.extend_from_slice(back.jump.as_bytes());
            }
        }
        out.extend_from_slice(row);
        out
    }

    /// The link and the row's bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), TreeError> {
        let mut r = Reader(bytes);
        let flags = r.byte()?;
        let log = u32::try_from(r.number()?).map_err(|_| SHORT)?;
        let carrier = Carrier {
            log,
            seq: r.number()?,
        };
        let mut link = Self {
            carrier,
            generation: 1,
            behind: 0,
            writes_content: flags & LINK_CONTENT != 0,
            depth: 0,
            back: None,
        };
        if flags & LINK_BACK != 0 {
            link.generation = r.number()?;
            link.behind = r.number()?;
            link.depth = r.number()?;
            let gate = r.row_id()?;
            let jump = if flags & LINK_JUMP_IS_GATE != 0 {
                gate
            } else {
                r.row_id()?
            };
            link.back = Some(Back {
                gate,
                jump,
                single: flags & LINK_SINGLE != 0,
            });
        }
        Ok((link, r.0))
    }
}

impl Held {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        let (link, row) = Link::decode(bytes)?;
        let row = Row::from_bytes(row).map_err(|_| TreeError::Damaged("a row"))?;
        Ok(Self { link, row })
    }
}

const GROUP_ADOPTED: u64 = 1;
const GROUP_NAMED: u64 = 2;
const GROUP_ALIVE: u64 = 4;
const GROUP_SHOWN: u64 = 8;
const GROUP_COUNTED: u64 = 16;
const GROUP_CONTESTED: u64 = 32;
const GROUP_KIND: u64 = 64;

const TAG_FORWARD: u8 = 0;
const TAG_GROUP: u8 = 1;

impl Slot {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Forward(node) => {
                let mut out = vec![TAG_FORWARD];
                out.extend_from_slice(node.as_bytes());
                out
            }
            Self::Group(group) => group.encode(),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        let mut r = Reader(bytes);
        match r.byte()? {
            TAG_FORWARD => Ok(Self::Forward(r.node_id()?)),
            TAG_GROUP => Ok(Self::Group(Group::decode(&mut r)?)),
            _ => Err(TreeError::Damaged("a node of an unknown form")),
        }
    }
}

impl Group {
    /// A group of one node, with no rows yet.
    pub(super) fn new(kind: Kind, adopted: bool, birth: RowId) -> Self {
        Self {
            kind,
            adopted,
            birth,
            heads: vec![],
            content: vec![],
            mode: vec![],
            life: vec![],
            deads: vec![],
            at: None,
            named: false,
            live_children: 0,
            alive: false,
            shown: false,
            placed: None,
            counted: None,
            contested: false,
        }
    }

    /// Each row id is written once, in order of first use; the lists are indexes.
    fn encode(&self) -> Vec<u8> {
        let mut ids: Vec<RowId> = vec![];
        let mut known: BTreeMap<RowId, u64> = BTreeMap::new();
        let mut lists = vec![];
        let mut index = |out: &mut Vec<u8>, id: &RowId| {
            let at = *known.entry(*id).or_insert_with(|| {
                ids.push(*id);
                ids.len() as u64 - 1
            });
            put(out, at);
        };
        index(&mut lists, &self.birth);
        for list in [
            &self.heads,
            &self.content,
            &self.mode,
            &self.life,
            &self.deads,
        ] {
            put(&mut lists, list.len() as u64);
            for id in list {
                index(&mut lists, id);
            }
        }
        for option in [&self.at, &self.placed] {
            put(&mut lists, u64::from(option.is_some()));
            if let Some(id) = option {
                index(&mut lists, id);
            }
        }
        let kind = match self.kind {
            Kind::Dir => 0,
            Kind::File => 1,
            Kind::Symlink => 2,
            Kind::Other(_) => 3,
        };
        let flags = [
            (self.adopted, GROUP_ADOPTED),
            (self.named, GROUP_NAMED),
            (self.alive, GROUP_ALIVE),
            (self.shown, GROUP_SHOWN),
            (self.counted.is_some(), GROUP_COUNTED),
            (self.contested, GROUP_CONTESTED),
        ];
        let flags = flags
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, bit)| bit)
            .sum::<u64>();
        let mut out = vec![TAG_GROUP];
        put(&mut out, flags + kind * GROUP_KIND);
        if let Kind::Other(code) = self.kind {
            put(&mut out, code);
        }
        put(&mut out, self.live_children);
        if let Some(bytes) = self.counted {
            put(&mut out, bytes);
        }
        put(&mut out, ids.len() as u64);
        for id in &ids {
            out.extend_from_slice(id.as_bytes());
        }
        out.extend_from_slice(&lists);
        out
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, TreeError> {
        let flags = r.number()?;
        let kind = match flags / GROUP_KIND {
            0 => Kind::Dir,
            1 => Kind::File,
            2 => Kind::Symlink,
            _ => Kind::Other(r.number()?),
        };
        let live_children = r.number()?;
        let counted = if flags & GROUP_COUNTED != 0 {
            Some(r.number()?)
        } else {
            None
        };
        let count = r.number()?;
        let ids = (0..count)
            .map(|_| r.row_id())
            .collect::<Result<Vec<_>, _>>()?;
        let id = |r: &mut Reader<'_>| -> Result<RowId, TreeError> {
            let at = usize::try_from(r.number()?).map_err(|_| SHORT)?;
            ids.get(at).copied().ok_or(SHORT)
        };
        let list = |r: &mut Reader<'_>| -> Result<Vec<RowId>, TreeError> {
            let count = r.number()?;
            (0..count).map(|_| id(r)).collect()
        };
        let option = |r: &mut Reader<'_>| -> Result<Option<RowId>, TreeError> {
            if r.number()? == 0 {
                Ok(None)
            } else {
                id(r).map(Some)
            }
        };
        Ok(Self {
            kind,
            adopted: flags & GROUP_ADOPTED != 0,
            named: flags & GROUP_NAMED != 0,
            alive: flags & GROUP_ALIVE != 0,
            shown: flags & GROUP_SHOWN != 0,
            contested: flags & GROUP_CONTESTED != 0,
            live_children,
            counted,
            birth: id(r)?,
            heads: list(r)?,
            content: list(r)?,
            mode: list(r)?,
            life: list(r)?,
            deads: list(r)?,
            at: option(r)?,
            placed: option(r)?,
        })
    }
}

impl Totals {
    pub(super) const LEN: usize = 49;

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let s = &self.stats;
        let numbers = [
            s.files,
            s.dirs,
            s.symlinks,
            s.bytes,
            s.conflicts,
            self.max_stamp,
        ];
        let mut out = [0; Self::LEN];
        for (slot, number) in out.chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_be_bytes());
        }
        if let Some(flag) = out.last_mut() {
            *flag = u8::from(self.replay_due);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut numbers = bytes
            .chunks_exact(8)
            .map(|chunk| u64::from_be_bytes(chunk.try_into().unwrap_or_default()));
        let mut next = || numbers.next().unwrap_or_default();
        Self {
            stats: TreeStats {
                files: next(),
                dirs: next(),
                symlinks: next(),
                bytes: next(),
                conflicts: next(),
            },
            max_stamp: next(),
            replay_due: bytes.last() == Some(&1),
        }
    }
}

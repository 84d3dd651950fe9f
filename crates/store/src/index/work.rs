//! What the worktree engine has yet to do: nodes to render, its durable notes, transfers.

use pacsync_protocol::{ContentId, NodeId, RowId};
use redb::{ReadableTable, TableDefinition};

use super::{
    DISPLACED, FORGOTTEN, HELD, INTENTS, Index, JOINED, PENDING, Readable, TRANSFERS, UNKEPT,
    after, key,
};
use crate::error::StoreError;

/// The two kinds of durable notes of the worktree engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteKind {
    /// What an apply is about to do.
    Intent,
    /// What an apply put aside and has yet to look at again.
    Displaced,
}

impl NoteKind {
    fn table(self) -> TableDefinition<'static, (u32, u64), &'static [u8]> {
        match self {
            Self::Intent => INTENTS,
            Self::Displaced => DISPLACED,
        }
    }
}

/// What is remembered of a delete that waits for the user, or does not have to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum HeldKind {
    /// Gone from this disk, not yet told to the pac.
    Local = 0,
    /// Deleted elsewhere, not yet carried out here.
    Remote = 1,
    /// Deleted elsewhere, and somebody has confirmed it.
    Confirmed = 2,
}

pub(super) fn pending_in(
    table: &impl Readable,
    space: u32,
    from: Option<&NodeId>,
    limit: usize,
) -> Result<Vec<NodeId>, StoreError> {
    let prefix = key(space, &[]);
    let start = match from {
        Some(node) => [key(space, &[node.as_bytes()]), vec![0]].concat(),
        None => prefix.clone(),
    };
    let end = after(&prefix);
    table
        .range::<&[u8]>(start.as_slice()..end.as_slice())?
        .take(limit)
        .map(|item| {
            Ok(NodeId::from_slice(
                item?.0.value().get(4..).unwrap_or_default(),
            ))
        })
        .filter_map(Result::transpose)
        .collect()
}

impl Index<'_> {
    /// Remembers a delete that waits, or that was confirmed, with its path for people.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn hold(&mut self, node: &NodeId, kind: HeldKind, path: &[u8]) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        let value = [&[kind as u8], path].concat();
        self.table(HELD)?.insert(key.as_slice(), value.as_slice())?;
        Ok(())
    }

    /// Forgets what was remembered of a delete.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn release(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(HELD)?.remove(key.as_slice())?;
        Ok(())
    }

    /// The deletes that are remembered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn held(&self) -> Result<Vec<(NodeId, HeldKind, Vec<u8>)>, StoreError> {
        let prefix = key(self.space, &[]);
        let end = after(&prefix);
        let table = self.table(HELD)?;
        let mut found = vec![];
        for item in table.range::<&[u8]>(prefix.as_slice()..end.as_slice())? {
            let (key, value) = item?;
            let node = NodeId::from_slice(key.value().get(4..).unwrap_or_default());
            if let (Some(node), Some((kind, path))) = (node, value.value().split_first()) {
                let kind = match kind {
                    0 => HeldKind::Local,
                    1 => HeldKind::Remote,
                    _ => HeldKind::Confirmed,
                };
                found.push((node, kind, path.to_vec()));
            }
        }
        Ok(found)
    }

    /// Marks a node as not yet rendered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn mark_pending(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(PENDING)?.insert(key.as_slice(), &[][..])?;
        Ok(())
    }

    /// Takes a node's mark away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clear_pending(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(PENDING)?.remove(key.as_slice())?;
        Ok(())
    }

    /// Up to `limit` marked nodes after `from`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pending(&self, from: Option<&NodeId>, limit: usize) -> Result<Vec<NodeId>, StoreError> {
        pending_in(&self.table(PENDING)?, self.space, from, limit)
    }

    /// Notes that history has yet to keep the content of a node's file.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn mark_unkept(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(UNKEPT)?.insert(key.as_slice(), &[][..])?;
        Ok(())
    }

    /// Takes that note away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clear_unkept(&mut self, node: &NodeId) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(UNKEPT)?.remove(key.as_slice())?;
        Ok(())
    }

    /// Up to `limit` nodes with that note.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unkept(&self, limit: usize) -> Result<Vec<NodeId>, StoreError> {
        pending_in(&self.table(UNKEPT)?, self.space, None, limit)
    }

    /// Notes which version of a file stood on disk when it was forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn note_forgotten(&mut self, node: &NodeId, row: &RowId) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(FORGOTTEN)?
            .insert(key.as_slice(), &row.as_bytes()[..])?;
        Ok(())
    }

    /// Takes that note away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn take_forgotten(&mut self, node: &NodeId) -> Result<Option<RowId>, StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        let mut table = self.table(FORGOTTEN)?;
        let Some(bytes) = table.remove(key.as_slice())? else {
            return Ok(None);
        };
        let row: Result<[u8; 32], _> = bytes.value().try_into();
        Ok(row.ok().map(RowId::from_bytes))
    }

    /// Keeps a record and returns its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_note(&mut self, kind: NoteKind, bytes: &[u8]) -> Result<u64, StoreError> {
        let mut table = self.tx.open_table(kind.table())?;
        let last = match table
            .range((self.space, 0)..=(self.space, u64::MAX))?
            .next_back()
        {
            Some(item) => item?.0.value().1,
            None => 0,
        };
        let number = last + 1;
        table.insert((self.space, number), bytes)?;
        Ok(number)
    }

    /// Takes a record away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_note(&mut self, kind: NoteKind, number: u64) -> Result<(), StoreError> {
        self.tx
            .open_table(kind.table())?
            .remove((self.space, number))?;
        Ok(())
    }

    /// All records of a kind.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn notes(&self, kind: NoteKind) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let table = self.tx.open_table(kind.table())?;
        table
            .range((self.space, 0)..=(self.space, u64::MAX))?
            .map(|item| {
                let (key, value) = item?;
                Ok((key.value().1, value.value().to_vec()))
            })
            .collect()
    }

    /// Keeps the record of an unfinished transfer.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_transfer(&mut self, content: &ContentId, bytes: &[u8]) -> Result<(), StoreError> {
        let key = key(self.space, &[content.as_bytes()]);
        self.table(TRANSFERS)?.insert(key.as_slice(), bytes)?;
        Ok(())
    }

    /// Takes it away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_transfer(&mut self, content: &ContentId) -> Result<(), StoreError> {
        let key = key(self.space, &[content.as_bytes()]);
        self.table(TRANSFERS)?.remove(key.as_slice())?;
        Ok(())
    }

    /// The record of an unfinished transfer of a content.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn transfer_of(&self, content: &ContentId) -> Result<Option<Vec<u8>>, StoreError> {
        self.table(TRANSFERS)?
            .fetch(&key(self.space, &[content.as_bytes()]))
    }

    /// All unfinished transfers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn transfers(&self) -> Result<Vec<(ContentId, Vec<u8>)>, StoreError> {
        let found = self
            .table(TRANSFERS)?
            .below(&key(self.space, &[]), usize::MAX)?;
        Ok(found
            .into_iter()
            .filter_map(|(id, bytes)| Some((ContentId::from_slice(&id)?, bytes)))
            .collect())
    }

    /// Counts a file that a first join set aside for the pac's version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn note_set_aside(&mut self, node: &NodeId, path: &[u8]) -> Result<(), StoreError> {
        let key = key(self.space, &[node.as_bytes()]);
        self.table(JOINED)?.insert(key.as_slice(), path)?;
        Ok(())
    }
}

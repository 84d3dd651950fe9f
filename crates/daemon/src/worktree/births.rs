//! What was found on disk becomes rows: a new file is born, moved here or met, a missing one is
//! buried.

use std::collections::BTreeSet;

use pacsync_protocol::crypto::{Entropy, random};
use pacsync_protocol::row::{Keys, Kind, Life, Name, Row};
use pacsync_protocol::{NodeId, RowId};
use pacsync_store::StoreError;
use pacsync_store::index::Entry;

use super::batch::Batch;
use super::content::{Read, ReadError};
use super::queue::Depth;
use super::{Class, Phase, Worktree, file_identity, forget_tree};
use crate::disk::{RelPath, Stat};

/// What becomes of a file where the tree has a node that is not rendered here yet.
enum Met {
    /// It is that node's file; its content came from this row.
    Bound(Read, RowId),
    /// A node of its own; `one` if the two are to become one with concurrent contents.
    Beside { read: Option<Read>, one: bool },
}

/// The entries of the nodes that are one with a node, but for that of `known`.
fn others_of(b: &Batch<'_>, node: &NodeId, known: &NodeId) -> Result<Vec<Entry>, StoreError> {
    let mut nodes = BTreeSet::from([*node]);
    nodes.extend(b.tree.rows_of_node(node)?.iter().map(|past| past.row.node));
    nodes.remove(known);
    let mut others = vec![];
    for node in nodes {
        others.extend(b.index.entry_of(&node)?.map(|(_, _, entry)| entry));
    }
    Ok(others)
}

impl Worktree {
    #[expect(clippy::too_many_arguments, reason = "one place, taken apart")]
    pub(super) fn examine_new(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        path: &RelPath,
        parent: NodeId,
        name: &Name,
        stat: &Stat,
        kind: Kind,
    ) -> Result<(), StoreError> {
        let in_tree = {
            let dir = b.tree.representative(&parent)?;
            b.tree.child(&dir, name)?
        };
        // The tree does not know yet what this batch has found.
        let in_tree = in_tree.filter(|node| !b.left.contains(node));
        if let Some(node) = in_tree {
            return self.meet(b, rng, path, parent, name, stat, kind, node);
        }
        if self.ignores.ignores(path, kind == Kind::Dir) {
            return Ok(());
        }
        if self.move_candidate(b, stat, kind)?.is_some() && !self.settled(path, b.now) {
            return Ok(());
        }
        if let Some(from) = self.move_candidate(b, stat, kind)? {
            return self.moved(b, path, parent, name, stat, from);
        }
        if kind == Kind::Dir && self.tracking.class(path) == Class::Tracked {
            // A directory with nothing in it but what is left alone is what a delete left behind.
            if let Ok(listing) = self.disk.list(path)
                && !listing.entries.is_empty()
                && listing.errors.is_empty()
                && listing.entries.iter().all(|e| self.is_left_alone(path, e))
            {
                return Ok(());
            }
        }
        let read = match kind {
            Kind::Dir => None,
            _ => match self.read_entry(path, kind, stat, b) {
                Ok(read) => Some(read),
                Err(error) => {
                    self.read_fault(&error, path, b.now);
                    return Ok(());
                }
            },
        };
        if let Some(read) = &read
            && kind == Kind::File
            && let Some(from) = self.same_content_vacated(b, &read.content)?
        {
            if !self.settled(path, b.now) {
                return Ok(());
            }
            return self.moved(b, path, parent, name, stat, from);
        }
        self.settling.remove(path);
        self.bear(b, rng, path, parent, name, stat, kind, read)?;
        Ok(())
    }

    /// Something on disk stands where the tree has a node that is not rendered here yet.
    #[expect(clippy::too_many_arguments, reason = "one place, taken apart")]
    pub(super) fn meet(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        path: &RelPath,
        parent: NodeId,
        name: &Name,
        stat: &Stat,
        kind: Kind,
        node: NodeId,
    ) -> Result<(), StoreError> {
        let Some(state) = b.tree.node(&node)? else {
            return Ok(());
        };
        b.marks.push(node);
        let elsewhere = b
            .index
            .location(&node)?
            .is_some_and(|(at, other)| at != parent || other != name.as_bytes());
        if elsewhere && state.kind == kind && self.came_along(b, node, parent, name)? {
            let entry = b.index.get(&parent, name.as_bytes())?;
            return match entry {
                Some(entry) => {
                    let name = name.as_bytes();
                    self.examine_known(b, path, parent, name, stat, entry, Depth::Deep)
                }
                None => Ok(()),
            };
        }
        if kind == Kind::Dir && state.kind == kind && !elsewhere {
            let entry = Entry {
                node,
                kind,
                identity: file_identity(&stat.identity),
                mode: stat.mode,
                row: None,
                content: None,
                recorded_ns: b.now.ns,
            };
            // Later a closed directory may be one that a plan was making when the power went.
            if self.is_binding(path) {
                self.keep_closed(b, &entry, state.mode)?;
            }
            b.put(&parent, name.as_bytes(), &entry)?;
            return self.begin_walk(b, path, node, Depth::Deep);
        }
        let mode = state.mode;
        let read = match kind {
            Kind::Dir => None,
            _ => match self.read_entry(path, kind, stat, b) {
                Ok(read) => Some(read),
                Err(error) => {
                    self.read_fault(&error, path, b.now);
                    return Ok(());
                }
            },
        };
        let made_of = match b.index.take_forgotten(&node)? {
            Some(row) => b.tree.past_for_edit(&node, Some(&row))?,
            None => vec![],
        };
        let met = match (state.content, read) {
            // Of another kind: a node of its own; which one shows is the tree's to say.
            (_, read) if state.kind != kind => Met::Beside { read, one: false },
            // The node is about to come here from another place on this disk. Both are wanted.
            (_, read) if elsewhere => Met::Beside { read, one: true },
            (_, None) => return Ok(()),
            (Some(shown), Some(read)) if read.content.id == shown.content.id => {
                Met::Bound(read, shown.row)
            }
            // What stood here when it was forgotten was edited since.
            (Some(_), Some(mut read)) if self.is_binding(path) && !made_of.is_empty() => {
                let keys = Keys {
                    content: Some(read.content.clone()),
                    ..Keys::default()
                };
                self.keep_manifest(b, &read)?;
                let own = b.write(&Row::new(node, made_of, keys));
                self.keep_edit(b, node, &mut read, None);
                Met::Bound(read, own)
            }
            // In normal use nobody has chosen one of the two: their contents stand side by side.
            (Some(_), Some(read))
                if !self.is_binding(path) && !self.bind_later.contains_key(&node) =>
            {
                Met::Beside {
                    read: Some(read),
                    one: true,
                }
            }
            (Some(shown), Some(_))
                if shown.content.inline.is_none()
                    && self.bind_later.get(&node).and_then(|(_, held)| *held)
                        != Some(shown.content.id) =>
            {
                // What nobody may ever have again must not be said to be the newest.
                let unheld = || (path.clone(), None);
                self.bind_later.entry(node).or_insert_with(unheld);
                return Ok(());
            }
            (Some(shown), Some(read)) => {
                self.bind_later.remove(&node);
                // A first join. Its own content, then the pac's again: kept in history, listed
                // once.
                let own = self.write_content(b, node, &read)?;
                let again = Keys {
                    content: Some(shown.content),
                    ..Keys::default()
                };
                b.write(&Row::new(node, vec![own], again));
                b.index.note_set_aside(&node, path.as_bytes())?;
                Met::Bound(read, own)
            }
            // Its birth brought no content: what stands here is its first.
            (None, Some(mut read)) => {
                let own = self.write_content(b, node, &read)?;
                self.keep_birth(b, node, &mut read)?;
                Met::Bound(read, own)
            }
        };
        match met {
            Met::Bound(read, row) => {
                let entry = Entry {
                    node,
                    kind,
                    identity: read.identity,
                    mode: stat.mode,
                    row: Some(row),
                    content: Some(read.content.id),
                    recorded_ns: b.now.ns,
                };
                self.keep_closed(b, &entry, mode)?;
                b.put(&parent, name.as_bytes(), &entry)
            }
            Met::Beside { read, one } => {
                let (new, birth) = self.bear(b, rng, path, parent, name, stat, kind, read)?;
                if one {
                    let keys = Keys {
                        into: Some(node),
                        ..Keys::default()
                    };
                    b.write(&Row::new(new, vec![birth], keys));
                    b.marks.push(new);
                }
                Ok(())
            }
        }
    }

    /// Where two that are one now have different modes, others may do what both allow: nobody's
    /// file is opened to more readers because another device has it, too.
    fn keep_closed(
        &mut self,
        b: &mut Batch<'_>,
        entry: &Entry,
        theirs: Option<u16>,
    ) -> Result<(), StoreError> {
        let Some(theirs) = theirs.filter(|_| self.probe.modes && entry.kind != Kind::Symlink)
        else {
            return Ok(());
        };
        let both = theirs & (entry.mode | 0o700);
        // Of the rows of before: what this batch has written about it is not in the tree yet.
        let past = b.tree.past_for_edit(&entry.node, None)?;
        if both != theirs && !past.is_empty() {
            let keys = Keys {
                mode: Some(both),
                ..Keys::default()
            };
            b.write(&Row::new(entry.node, past, keys));
        }
        Ok(())
    }

    /// The same move was made here: what the index knows at the old place, which is empty, is
    /// what stands at the new one.
    pub(super) fn came_along(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        parent: NodeId,
        name: &Name,
    ) -> Result<bool, StoreError> {
        let Some((from, old_name, entry)) = b.index.entry_of(&node)? else {
            return Ok(false);
        };
        if !self.is_vacant(b, &from, &old_name, entry.kind)? {
            return Ok(false);
        }
        self.vacated.remove(&(from, old_name.clone()));
        if let Some(old) = super::settle::path_of(&b.index, &from)?
            && let Ok(old) = old.join(&old_name)
        {
            // Something of another kind may have taken its place.
            self.queue.deep(old, b.now.ms);
        }
        b.index.remove(&from, &old_name)?;
        b.put(&parent, name.as_bytes(), &entry)?;
        self.has_left(b, &from)?;
        Ok(true)
    }

    /// Whether what stands at a path is looked at for the first time since it is tracked.
    pub(super) fn is_binding(&self, path: &RelPath) -> bool {
        self.phase == Phase::FirstScan || self.binding.iter().any(|root| path.starts_with(root))
    }

    /// Writes what was read as a content of a node, with all that is known of it behind.
    pub(super) fn write_content(
        &mut self,
        b: &mut Batch<'_>,
        node: NodeId,
        read: &Read,
    ) -> Result<RowId, StoreError> {
        let past = b.tree.past_for_edit(&node, None)?;
        let keys = Keys {
            content: Some(read.content.clone()),
            ..Keys::default()
        };
        self.keep_manifest(b, read)?;
        Ok(b.write(&Row::new(node, past, keys)))
    }

    /// Writes the birth of a node for what stands at a path.
    #[expect(clippy::too_many_arguments, reason = "one place, taken apart")]
    pub(super) fn bear(
        &mut self,
        b: &mut Batch<'_>,
        rng: &mut dyn Entropy,
        path: &RelPath,
        parent: NodeId,
        name: &Name,
        stat: &Stat,
        kind: Kind,
        mut read: Option<Read>,
    ) -> Result<(NodeId, RowId), StoreError> {
        let node = NodeId::from_bytes(random(rng));
        let dir = b.tree.representative(&parent)?;
        let keys = Keys {
            kind: Some(kind),
            at: Some(b.place(dir, name)),
            content: read.as_ref().map(|read| read.content.clone()),
            mode: (self.probe.modes && kind != Kind::Symlink).then_some(stat.mode),
            adopted: self.phase == Phase::FirstScan,
            ..Keys::default()
        };
        let id = b.write(&Row::new(node, vec![], keys));
        let entry = Entry {
            node,
            kind,
            identity: read
                .as_ref()
                .map_or(file_identity(&stat.identity), |read| read.identity),
            mode: stat.mode,
            row: read.as_ref().map(|_| id),
            content: read.as_ref().map(|read| read.content.id),
            recorded_ns: b.now.ns,
        };
        b.put(&parent, name.as_bytes(), &entry)?;
        if let Some(read) = &mut read {
            self.keep_manifest(b, read)?;
            self.keep_birth(b, node, read)?;
        }
        if kind == Kind::Dir {
            self.begin_walk(b, path, node, Depth::Deep)?;
        }
        Ok((node, id))
    }

    /// Writes that what was known at a place, and everything beneath it, is gone.
    pub(super) fn bury(
        &mut self,
        b: &mut Batch<'_>,
        parent: &NodeId,
        name: &[u8],
        known: &Entry,
    ) -> Result<(), StoreError> {
        let mut doomed = vec![known.clone()];
        while let Some(entry) = doomed.pop() {
            if entry.kind == Kind::Dir {
                doomed.extend(b.index.children(&entry.node)?.into_iter().map(|(_, e)| e));
            }
            let node = b.tree.representative(&entry.node)?;
            let Some(state) = b.tree.node(&node)? else {
                continue;
            };
            if state.dead {
                continue;
            }
            let others = others_of(b, &node, &entry.node)?;
            // What it was unified with stands at another place: of this one only a version that
            // the other does not have is gone.
            let lives_on = others.iter().any(|other| {
                entry.kind == Kind::Dir || entry.row.is_none() || other.content == entry.content
            });
            if lives_on {
                continue;
            }
            if others.is_empty() {
                b.left.insert(node);
            }
            let past = b.tree.past_for_edit(&node, entry.row.as_ref())?;
            if !past.is_empty() {
                let keys = Keys {
                    life: Some(Life::Dead),
                    ..Keys::default()
                };
                b.write(&Row::new(node, past, keys));
            }
        }
        b.dirty = true;
        self.has_left(b, parent)?;
        forget_tree(&mut b.index, parent, name)
    }

    /// Something has gone from a directory: others may come to its place, and if it was the last
    /// that the directory's removal waits for, that is next.
    pub(super) fn has_left(&mut self, b: &mut Batch<'_>, dir: &NodeId) -> Result<(), StoreError> {
        self.place_is_free();
        if b.tree.node(dir)?.is_some_and(|dir| dir.dead) {
            b.marks.push(*dir);
        }
        Ok(())
    }

    pub(super) fn read_entry(
        &mut self,
        path: &RelPath,
        kind: Kind,
        seen: &Stat,
        b: &mut Batch<'_>,
    ) -> Result<Read, ReadError> {
        let read = super::content::read(&*self.disk, path, kind, &self.keys)?;
        b.bytes += read.content.size;
        if (read.identity.dev, read.identity.ino) != (seen.identity.dev, seen.identity.ino) {
            // A directory above was renamed since: this is another file's content.
            return Err(ReadError::Replaced);
        }
        Ok(read)
    }

    pub(super) fn keep_manifest(
        &mut self,
        b: &mut Batch<'_>,
        read: &Read,
    ) -> Result<(), StoreError> {
        let Some(tree) = &read.manifest else {
            return Ok(());
        };
        super::content::keep_manifest(&mut b.index, &self.keys, &read.content.id, tree)
    }
}

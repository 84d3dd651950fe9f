//! Conflicts: what stands side by side at a path, and how it is settled.
//!
//! Here: the list, and which versions a word of the user means. `settle` waits for what is needed
//! and writes the rows; `names` finds a place for what goes beside. Never here: which version
//! shows, and what a row does; both are the tree's.

mod names;
mod settle;

use std::collections::BTreeMap;
use std::path::Path;

use pacsync_protocol::row::{Content, Kind, Name};
use pacsync_protocol::{DeviceId, NodeId, RowId, SpaceId};
use pacsync_store::tree::{Backend, Conflict, NodeState, Tree, TreeError, TreeReader, Version};
use pacsync_store::{StoreError, Written};

pub(super) use settle::{CONFIRMED_ROWS, Purpose, Settle};

use super::Device;
use super::spaces::store_error;
use crate::control::CommandError;
use crate::control::api::{
    CONFLICTS_MAX, ConflictList, ConflictedPath, ContentPlace, Differs, EntryKind, TextPath,
    TextRoot, VersionInfo,
};
use crate::disk::RelPath;

/// Deepest directory that is followed up to the root.
const DEPTH_MAX: usize = 4_096;
/// Shortest beginning of a row's id that is shown.
const ID_LEN: usize = 8;

/// One of the things at a path.
struct Candidate {
    node: NodeId,
    kind: Kind,
    /// The row that stands for it.
    row: RowId,
    /// All rows that say the same.
    rows: Vec<RowId>,
    /// None for a directory.
    content: Option<Content>,
    /// Whether the path shows it.
    shown: bool,
    /// By whom and when, the earliest first.
    written: Vec<Written>,
}

/// Everything that stands at a path.
struct Standing {
    parent: NodeId,
    name: Name,
    /// The shown one first.
    candidates: Vec<Candidate>,
}

impl Standing {
    fn is_conflict(&self) -> bool {
        self.candidates.len() > 1
    }

    /// The nodes, the shown one first, each once.
    fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = vec![];
        for candidate in &self.candidates {
            if !nodes.contains(&candidate.node) {
                nodes.push(candidate.node);
            }
        }
        nodes
    }
}

impl Candidate {
    /// As many characters of the id as tell it from the others.
    fn id(&self, all: &[Self]) -> String {
        let own = self.row.to_string();
        let common = |other: &Self| {
            let other = other.row.to_string();
            own.bytes()
                .zip(other.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        };
        let others = all.iter().filter(|other| other.row != self.row);
        let len = others.map(|other| common(other) + 1).max().unwrap_or(0);
        own.chars().take(len.max(ID_LEN)).collect()
    }

    fn is_by(&self, device: &DeviceId) -> bool {
        self.written.iter().any(|written| written.device == *device)
    }
}

/// What a word of the user names among what stands at a path.
enum Choice<'a> {
    One(&'a Candidate),
    Both,
}

impl Device {
    /// Lists what is in conflict, in all spaces or at and beneath a path.
    pub(super) fn conflicts(&self, path: Option<&Path>) -> Result<ConflictList, CommandError> {
        let only = path.map(|path| self.place_of(path)).transpose()?;
        self.list_conflicts(only.as_ref())
            .map_err(|e| store_error(&e))
    }

    fn list_conflicts(
        &self,
        only: Option<&(SpaceId, RelPath)>,
    ) -> Result<ConflictList, StoreError> {
        let mut list = ConflictList {
            conflicts: vec![],
            total: 0,
        };
        let mut spaces: Vec<(String, SpaceId)> = self
            .store
            .spaces()
            .map(|space| (self.space_name(&space.id), space.id))
            .filter(|(_, space)| only.is_none_or(|(only, _)| only == space))
            .collect();
        spaces.sort();
        for (_, space) in spaces {
            let tx = self.store.read()?;
            let tree = TreeReader::open(&tx, self.store.space(&space)?.no)?;
            // A path with several nodes, one of which has several contents, is one conflict.
            let mut places: BTreeMap<RelPath, (NodeId, Name)> = BTreeMap::new();
            for conflict in tree.conflicts()? {
                let (parent, name) = match conflict? {
                    Conflict::Path { parent, name } => (parent, name),
                    Conflict::Values(node) => match tree.node(&node)? {
                        Some(NodeState {
                            parent: Some(parent),
                            name: Some(name),
                            ..
                        }) => (parent, name),
                        _ => continue,
                    },
                };
                if let Some(path) = place_path(&tree, parent, &name)?
                    && only.is_none_or(|(_, above)| path.starts_with(above))
                {
                    places.insert(path, (parent, name));
                }
            }
            list.total += places.len() as u64;
            for (path, (parent, name)) in places {
                if list.conflicts.len() >= CONFLICTS_MAX {
                    break;
                }
                let standing = self.standing(&space, &tree, parent, name)?;
                if standing.is_conflict() {
                    let described = self.describe(&space, &path, &tree, &standing)?;
                    list.conflicts.push(described);
                } else {
                    list.total -= 1;
                }
            }
        }
        Ok(list)
    }

    /// What stands at a path, if its directory is there.
    fn standing_at<B: Backend>(
        &self,
        space: &SpaceId,
        tree: &Tree<B>,
        path: &RelPath,
    ) -> Result<Option<Standing>, StoreError> {
        let mut names = vec![];
        for name in path.names() {
            match Name::new(name) {
                Ok(name) => names.push(name),
                Err(_) => return Ok(None),
            }
        }
        let Some(name) = names.pop() else {
            return Ok(None);
        };
        let Some(parent) = tree.lookup(&names)? else {
            return Ok(None);
        };
        self.standing(space, tree, parent, name).map(Some)
    }

    fn standing<B: Backend>(
        &self,
        space: &SpaceId,
        tree: &Tree<B>,
        parent: NodeId,
        name: Name,
    ) -> Result<Standing, StoreError> {
        let mut nodes = vec![];
        for node in tree.all_at(&parent, &name)? {
            if let Some(state) = tree.node(&node)?
                && !matches!(state.kind, Kind::Other(_))
            {
                nodes.push(state);
            }
        }
        nodes.sort_by_key(|state| (!state.shown, state.kind, state.id));
        let mut candidates = vec![];
        for state in nodes {
            let mut versions = tree.versions(&state.id)?;
            if state.kind == Kind::Dir {
                versions.clear();
            }
            for (rank, version) in versions.iter().enumerate() {
                let Version { row, rows, content } = version.clone();
                candidates.push(Candidate {
                    node: state.id,
                    kind: state.kind,
                    row,
                    written: self.written_any(space, &rows)?,
                    rows,
                    content: Some(content),
                    shown: state.shown && rank == 0,
                });
            }
            if versions.is_empty()
                && let Some(row) = state.at_row
            {
                candidates.push(Candidate {
                    node: state.id,
                    kind: state.kind,
                    row,
                    rows: vec![row],
                    content: None,
                    shown: state.shown,
                    written: self.written_any(space, &[row])?,
                });
            }
        }
        Ok(Standing {
            parent,
            name,
            candidates,
        })
    }

    fn written_any(&self, space: &SpaceId, rows: &[RowId]) -> Result<Vec<Written>, StoreError> {
        let mut written = vec![];
        for row in rows {
            written.extend(self.store.written(space, row)?);
        }
        written.sort_unstable();
        Ok(written)
    }

    fn describe<B: Backend>(
        &self,
        space: &SpaceId,
        path: &RelPath,
        tree: &Tree<B>,
        standing: &Standing,
    ) -> Result<ConflictedPath, StoreError> {
        let attachment = self.attachment(space)?;
        let mut versions = vec![];
        for candidate in &standing.candidates {
            versions.push(self.describe_version(space, candidate, &standing.candidates)?);
        }
        Ok(ConflictedPath {
            space: self.space_name(space),
            root: attachment.map(|a| TextRoot::from_bytes(&a.root)),
            path: TextPath::from_bytes(path.as_bytes()),
            differs: match standing.nodes().len() {
                1 => Differs::Contents,
                _ => Differs::Nodes,
            },
            beneath_hidden: tree.path(&standing.parent)?.is_none(),
            versions,
        })
    }

    fn describe_version(
        &self,
        space: &SpaceId,
        candidate: &Candidate,
        all: &[Candidate],
    ) -> Result<VersionInfo, StoreError> {
        let own = self.store.identity().keys.id();
        let (content, on) = match &candidate.content {
            None => (ContentPlace::Here, vec![]),
            Some(content) => self.whereabouts(space, candidate, content)?,
        };
        let first = candidate.written.first();
        Ok(VersionInfo {
            id: candidate.id(all),
            row: candidate.row.to_string(),
            shown: candidate.shown,
            kind: match candidate.kind {
                Kind::Dir => EntryKind::Dir,
                Kind::Symlink => EntryKind::Symlink,
                Kind::File | Kind::Other(_) => EntryKind::File,
            },
            device: self.device_ref(&first.map_or(own, |written| written.device)),
            mine: candidate.is_by(&own),
            time_ms: first.map_or(0, |written| written.time_ms),
            size: candidate.content.as_ref().map(|content| content.size),
            mtime_ms: candidate
                .content
                .as_ref()
                .map(|content| content.mtime_ns.div_euclid(1_000_000)),
            content,
            on: on.iter().map(|device| self.device_ref(device)).collect(),
        })
    }

    fn whereabouts(
        &self,
        space: &SpaceId,
        candidate: &Candidate,
        content: &Content,
    ) -> Result<(ContentPlace, Vec<DeviceId>), StoreError> {
        let worktree = self.worktrees.get(space);
        let here = match worktree {
            Some(worktree) => worktree.has_content(&self.store, &self.packs, content)?,
            None => content.inline.is_some(),
        };
        if here {
            return Ok((ContentPlace::Here, vec![]));
        }
        let own = self.store.identity().keys.id();
        let lacks = |device: &DeviceId| {
            worktree.is_some_and(|worktree| self.is_lacked_by(worktree, device, &content.id))
        };
        let mut on: Vec<DeviceId> = candidate
            .written
            .iter()
            .map(|written| written.device)
            .filter(|device| *device != own && !lacks(device))
            .collect();
        on.sort_unstable();
        on.dedup();
        let place = match on.is_empty() {
            true => ContentPlace::NotKept,
            false => ContentPlace::Elsewhere,
        };
        Ok((place, on))
    }

    /// One line for each version, for errors that ask for a choice.
    fn version_lines(&self, standing: &Standing) -> Vec<String> {
        let all = &standing.candidates;
        let line = |candidate: &Candidate| {
            let writer = candidate.written.first();
            let writer = writer.map_or_else(String::new, |w| self.device_name(&w.device));
            let shown = if candidate.shown { ", shown" } else { "" };
            format!("{} by {writer}{shown}", candidate.id(all))
        };
        all.iter().map(line).collect()
    }

    /// Finds what a word means: `mine`, `theirs`, `both`, or the beginning of an id.
    fn choose<'a>(&self, standing: &'a Standing, word: &str) -> Result<Choice<'a>, CommandError> {
        let own = self.store.identity().keys.id();
        let all = &standing.candidates;
        let begins = word.to_ascii_lowercase();
        let found: Vec<&Candidate> = match word {
            "both" => return Ok(Choice::Both),
            "mine" => all.iter().filter(|c| c.is_by(&own)).collect(),
            "theirs" => all.iter().filter(|c| !c.is_by(&own)).collect(),
            _ => all
                .iter()
                .filter(|c| {
                    let fits = |row: &RowId| row.to_string().starts_with(&begins);
                    !begins.is_empty() && (fits(&c.row) || c.rows.iter().any(fits))
                })
                .collect(),
        };
        let error = match (found.as_slice(), word) {
            ([one], _) => return Ok(Choice::One(one)),
            ([], "mine") => CommandError::failed("this device wrote none of the versions"),
            ([], "theirs") => CommandError::failed("this device wrote all of the versions"),
            ([], _) => CommandError::failed(format!("no version {word:?} stands there")),
            (_, "mine") => CommandError::usage("this device wrote several of the versions"),
            (_, "theirs") => {
                CommandError::usage("several of the versions were not written by this device")
            }
            (_, _) => CommandError::usage(format!("{word:?} fits several versions")),
        };
        Err(error
            .with_hint("name one by its id: `--keep VERSION`")
            .with_items(self.version_lines(standing)))
    }
}

/// The path of a place, rendered or not; `None` where it leads nowhere.
fn place_path<B: Backend>(
    tree: &Tree<B>,
    parent: NodeId,
    name: &Name,
) -> Result<Option<RelPath>, TreeError> {
    let mut names = vec![name.as_bytes().to_vec()];
    let mut at = parent;
    for _ in 0..DEPTH_MAX {
        if at == NodeId::ROOT {
            names.reverse();
            return Ok(RelPath::from_bytes(&names.join(&b'/')).ok());
        }
        match tree.node(&at)? {
            Some(NodeState {
                parent: Some(parent),
                name: Some(name),
                ..
            }) => {
                names.push(name.as_bytes().to_vec());
                at = parent;
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use pacsync_protocol::row::{Keys, Row};
    use pacsync_protocol::segment::Entry;

    use super::super::tests::Founded;
    use super::*;
    use crate::control::ErrorKind;

    fn candidate(row: [u8; 32]) -> Candidate {
        let row = RowId::from_bytes(row);
        Candidate {
            node: NodeId::from_bytes([1; 16]),
            kind: Kind::File,
            row,
            rows: vec![row],
            content: None,
            shown: false,
            written: vec![],
        }
    }

    fn standing(rows: [[u8; 32]; 3]) -> Standing {
        Standing {
            parent: NodeId::ROOT,
            name: Name::new(*b"a").expect("a name"),
            candidates: rows.map(candidate).into(),
        }
    }

    #[test]
    fn a_beginning_must_fit_one_version_and_shown_ids_do() {
        let mut near = [9; 32];
        near[9] = 8;
        let standing = standing([[9; 32], near, [200; 32]]);
        let device = Founded::new().device;
        let chosen = |word: &str| match device.choose(&standing, word) {
            Ok(Choice::One(one)) => Ok(one.row),
            Ok(Choice::Both) => panic!("not what was asked"),
            Err(error) => Err(error.kind),
        };
        let text = standing.candidates[0].row.to_string();
        let both = &text[..8];
        assert_eq!(chosen(both), Err(ErrorKind::Usage), "it fits two");
        assert_eq!(chosen(&text), Ok(RowId::from_bytes([9; 32])));
        assert_eq!(chosen("zzzz"), Err(ErrorKind::Failed));
        assert_eq!(chosen(""), Err(ErrorKind::Failed));
        for candidate in &standing.candidates {
            let id = candidate.id(&standing.candidates);
            assert!(id.len() >= ID_LEN);
            assert_eq!(chosen(&id), Ok(candidate.row), "{id}");
            assert_eq!(chosen(&id.to_uppercase()), Ok(candidate.row), "{id}");
        }
    }

    #[test]
    fn two_versions_of_one_device_are_told_apart_by_their_ids_alone() {
        let mut founded = Founded::new();
        let space = founded.device.home_space;
        let own = founded.device.store.identity().keys.id();
        let root = founded.device.root_of(&space).expect("reads");
        let path = root.join("file");
        std::fs::write(&path, "base").expect("writes");
        let rest = RelPath::from_bytes(b"file").expect("a path");
        founded.track(&rest);
        let base = founded.row_at(&rest);
        // Twice, so that it shows.
        for text in ["by one life", "again by one life"] {
            std::fs::write(&path, text).expect("writes");
            founded.look(&rest);
        }
        let other = Keys {
            content: Some(Content {
                id: pacsync_protocol::ContentId::from_bytes([3; 32]),
                size: 500_000,
                mtime_ns: 1,
                inline: None,
            }),
            ..Keys::default()
        };
        let row = Row::new(base.0, vec![base.1], other);
        let deps = founded.deps();
        founded.receive(deps, vec![Entry::Row(row.to_bytes())]);
        founded.rest();

        let device = &founded.device;
        let written = device.store.written(&space, &row.id()).expect("reads");
        let written: Vec<_> = written.iter().map(|w| (w.device, w.time_ms)).collect();
        assert_eq!(written, [(own, 1)]);
        let list = device.conflicts(Some(&path)).expect("lists");
        assert_eq!(list.total, 1);
        let versions = &list.conflicts[0].versions;
        assert!(versions.iter().all(|version| version.mine));
        let far = versions
            .iter()
            .find(|version| version.row == row.id().to_string());
        assert_eq!(far.map(|far| far.content), Some(ContentPlace::NotKept));

        let tx = device.store.read().expect("reads");
        let no = device.store.space(&space).expect("known").no;
        let tree = TreeReader::open(&tx, no).expect("opens");
        let standing = device.standing_at(&space, &tree, &rest).expect("reads");
        let standing = standing.expect("is there");
        for (word, kind) in [("mine", ErrorKind::Usage), ("theirs", ErrorKind::Failed)] {
            let error = device.choose(&standing, word).err().expect("no choice");
            assert_eq!((error.kind, error.items.len()), (kind, 2));
        }
        for version in versions {
            assert!(matches!(
                device.choose(&standing, &version.id),
                Ok(Choice::One(one)) if one.row.to_string() == version.row
            ));
        }
    }
}

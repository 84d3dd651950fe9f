//! What a node was without certain rows, so that they can be taken back by new ones.
//!
//! Pure functions of a node's rows. Rows are told apart by who carried them: those that are taken
//! back, those that count for nothing (taken back before, or written to take something back), and
//! all others. A merge of something that goes goes with it: nobody wrote it.

use std::collections::{BTreeMap, BTreeSet};

use pacsync_protocol::row::{At, Content, Kind, Life};
use pacsync_protocol::{ContentId, RowId};

use super::{Carrier, NodeState, PastRow};

/// What a row is to an undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is taken back.
    Taken,
    /// It was taken back before, or took something back.
    Void,
    /// Anything else.
    Other,
}

/// Why a node stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// It was changed since.
    Changed,
    /// More than one content stood there before.
    Conflict,
    /// What stood there before is no longer known.
    Forgotten,
}

/// What becomes of a node's life and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LifeBack {
    /// It was not there before, or dead: it goes.
    Bury,
    /// It lives, a file or symlink with this content. Set where it is dead now or has another.
    Live(Option<(RowId, Content)>),
}

/// What is to be written about a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TakenBack {
    /// Its life and content.
    pub life: Option<LifeBack>,
    /// The placement that it had; its stamp is an old one.
    pub at: Option<At>,
    /// The permission bits that it had.
    pub mode: Option<u16>,
    /// Something of it stays.
    pub stays: Option<Stays>,
}

impl TakenBack {
    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.life.is_none() && self.at.is_none() && self.mode.is_none()
    }
}

/// What a row writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// Whether it lives, and with what.
    Life,
    Place,
    Mode,
}

fn says(row: &PastRow, what: Says) -> bool {
    let keys = &row.row.keys;
    match what {
        Says::Life => keys.content.is_some() || keys.life.is_some() || row.row.is_birth(),
        Says::Place => keys.at.is_some(),
        Says::Mode => keys.mode.is_some(),
    }
}

/// A node's rows, each after what is behind it.
struct Rows<'r> {
    rows: &'r [PastRow],
    at: BTreeMap<RowId, usize>,
    /// Taken back, or of no account.
    gone: Vec<bool>,
    taken: Vec<bool>,
}

impl<'r> Rows<'r> {
    fn new(rows: &'r [PastRow], part: impl Fn(Carrier) -> Part) -> Self {
        let at: BTreeMap<RowId, usize> = rows.iter().enumerate().map(|(i, r)| (r.id, i)).collect();
        let mut gone: Vec<bool> = vec![];
        let mut taken = vec![];
        for row in rows {
            let part = part(row.carrier);
            let of_gone = || {
                let mut past = row.row.past.iter().filter_map(|past| at.get(past));
                past.any(|past| gone.get(*past) == Some(&true))
            };
            let follows = row.row.keys.merge.is_some() && of_gone();
            gone.push(part != Part::Other || follows);
            taken.push(part == Part::Taken);
        }
        Self {
            rows,
            at,
            gone,
            taken,
        }
    }

    fn past(&self, row: &PastRow) -> impl Iterator<Item = usize> {
        row.row
            .past
            .iter()
            .filter_map(|past| self.at.get(past).copied())
    }

    fn is_gone(&self, row: usize) -> bool {
        self.gone.get(row) == Some(&true)
    }

    fn is_taken(&self, row: usize) -> bool {
        self.taken.get(row) == Some(&true)
    }

    /// Some of what came before is not known any more.
    fn is_cut(&self) -> bool {
        let past = |row: &PastRow| row.row.past.iter().all(|past| self.at.contains_key(past));
        !self.rows.iter().all(past)
    }

    fn writes(&self, row: usize, what: Says) -> bool {
        self.rows.get(row).is_some_and(|row| says(row, what))
    }

    fn takes(&self, what: Says) -> bool {
        (0..self.rows.len()).any(|row| self.is_taken(row) && self.writes(row, what))
    }

    /// Whether a row that stays writes one of these and has one behind it that is taken back and
    /// writes one of them, too.
    fn changed_since(&self, what: &[Says]) -> bool {
        let writes = |row| what.iter().any(|what| self.writes(row, *what));
        let mut behind = vec![false; self.rows.len()];
        for (number, row) in self.rows.iter().enumerate() {
            let is_behind = self.past(row).any(|past| {
                behind.get(past) == Some(&true) || (self.is_taken(past) && writes(past))
            });
            if is_behind && !self.is_gone(number) && writes(number) {
                return true;
            }
            if let Some(behind) = behind.get_mut(number) {
                *behind = is_behind;
            }
        }
        false
    }

    /// Rows that stay and of which `covers` says nothing that stays and is after them.
    fn newest(
        &self,
        of: impl Fn(&PastRow) -> bool,
        covers: impl Fn(&PastRow) -> bool,
    ) -> Vec<&'r PastRow> {
        let mut covered = vec![false; self.rows.len()];
        let mut found = vec![];
        for (number, row) in self.rows.iter().enumerate().rev() {
            let is_covered = covered.get(number) == Some(&true);
            if !is_covered && !self.is_gone(number) && of(row) {
                found.push(row);
            }
            if is_covered || (!self.is_gone(number) && covers(row)) {
                for past in self.past(row) {
                    if let Some(covered) = covered.get_mut(past) {
                        *covered = true;
                    }
                }
            }
        }
        found
    }

    fn has_birth(&self) -> bool {
        let mut rows = self.rows.iter().enumerate();
        rows.any(|(number, row)| row.row.is_birth() && !self.is_gone(number))
    }

    /// How it lived.
    fn life(&self, kind: Kind) -> Result<LifeBack, Stays> {
        let is_dead = |row: &PastRow| row.row.keys.life == Some(Life::Dead);
        if kind == Kind::Dir {
            let of = |row: &PastRow| row.row.keys.life.is_some() || row.row.is_birth();
            let newest = self.newest(of, of);
            return Ok(if newest.iter().all(|row| is_dead(row)) {
                LifeBack::Bury
            } else {
                LifeBack::Live(None)
            });
        }
        let is_content = |row: &PastRow| row.row.keys.content.is_some();
        let contents = self.newest(is_content, is_content);
        let alive: BTreeSet<RowId> = self
            .newest(is_content, is_dead)
            .iter()
            .map(|row| row.id)
            .collect();
        let mut found: BTreeMap<ContentId, (RowId, Content)> = BTreeMap::new();
        for row in contents.iter().filter(|row| alive.contains(&row.id)) {
            if let Some(content) = &row.row.keys.content {
                found.insert(content.id, (row.id, content.clone()));
            }
        }
        match found.len() {
            0 => Ok(LifeBack::Bury),
            1 => Ok(LifeBack::Live(found.into_values().next())),
            _ => Err(Stays::Conflict),
        }
    }
}

/// What takes rows of a node back, given all rows of its group and what they derive to.
pub fn taken_back(
    state: &NodeState,
    rows: &[PastRow],
    part: impl Fn(Carrier) -> Part,
) -> TakenBack {
    let rows = Rows::new(rows, part);
    let mut back = TakenBack::default();
    if !rows.taken.contains(&true) {
        return back;
    }
    if !rows.has_birth() {
        // It came with what goes.
        let all = [Says::Life, Says::Place, Says::Mode];
        if state.dead {
        } else if rows.is_cut() {
            back.stays = Some(Stays::Forgotten);
        } else if rows.changed_since(&all) {
            back.stays = Some(Stays::Changed);
        } else {
            back.life = Some(LifeBack::Bury);
        }
        return back;
    }
    if rows.takes(Says::Life) {
        life_back(state, &rows, &mut back);
    }
    let goes = back.life == Some(LifeBack::Bury);
    let lives = !state.dead || back.life.is_some();
    if rows.takes(Says::Place) && lives && !goes {
        place_back(state, &rows, &mut back);
    }
    if rows.takes(Says::Mode) && lives && !goes && !rows.changed_since(&[Says::Mode]) {
        let is_mode = |row: &PastRow| row.row.keys.mode.is_some();
        let modes: BTreeSet<u16> = rows
            .newest(is_mode, is_mode)
            .iter()
            .filter_map(|row| row.row.keys.mode)
            .collect();
        let one = modes.first().copied().filter(|_| modes.len() == 1);
        back.mode = one.filter(|mode| state.mode != Some(*mode));
    }
    back
}

fn life_back(state: &NodeState, rows: &Rows<'_>, back: &mut TakenBack) {
    if rows.changed_since(&[Says::Life]) {
        back.stays = Some(Stays::Changed);
        return;
    }
    let wanted = match rows.life(state.kind) {
        Ok(wanted) => wanted,
        Err(stays) => {
            back.stays = Some(stays);
            return;
        }
    };
    let is_so = match &wanted {
        LifeBack::Bury => state.dead,
        LifeBack::Live(None) => !state.dead,
        LifeBack::Live(Some((_, content))) => {
            let shown = state.content.as_ref().map(|shown| shown.content.id);
            !state.dead && state.losers.is_empty() && shown == Some(content.id)
        }
    };
    if is_so {
    } else if rows.is_cut() {
        back.stays = Some(Stays::Forgotten);
    } else {
        back.life = Some(wanted);
    }
}

fn place_back(state: &NodeState, rows: &Rows<'_>, back: &mut TakenBack) {
    let now = state.at_row.and_then(|row| rows.at.get(&row));
    if now.is_none_or(|row| !rows.is_gone(*row)) {
        // Somebody else's move is what counts.
        if rows.changed_since(&[Says::Place]) {
            back.stays.get_or_insert(Stays::Changed);
        }
        return;
    }
    let mut places: Vec<(u64, RowId, &At)> = vec![];
    for (number, row) in rows.rows.iter().enumerate() {
        if let Some(at) = row.row.keys.at.as_ref().filter(|_| !rows.is_gone(number)) {
            places.push((at.stamp, row.id, at));
        }
    }
    let Some((_, _, at)) = places
        .into_iter()
        .max_by_key(|(stamp, id, _)| (*stamp, *id))
    else {
        return;
    };
    if (state.parent, state.name.as_ref()) != (Some(at.parent), Some(&at.name)) {
        if rows.is_cut() {
            back.stays.get_or_insert(Stays::Forgotten);
        } else {
            back.at = Some(at.clone());
        }
    }
}

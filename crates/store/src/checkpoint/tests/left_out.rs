//! Checkpoints leave out what is dead for good, and nobody can tell but by asking for it.

use super::*;

/// What of a node everybody has to agree on.
fn shown(state: &NodeState) -> impl PartialEq + std::fmt::Debug + use<> {
    let content = state.content.as_ref().map(|shown| shown.content.clone());
    let losers: Vec<Content> = state.losers.iter().map(|(_, c)| c.clone()).collect();
    (
        state.dead,
        state.shown,
        state.kind,
        state.parent,
        state.name.clone(),
        content,
        losers,
        state.mode,
        state.live_children,
    )
}

impl Pac {
    /// Deletes something that lives.
    fn delete(&mut self, who: usize) {
        let state = self.state(who);
        let alive: Vec<NodeId> = state
            .nodes
            .values()
            .filter(|n| !n.dead)
            .map(|n| n.id)
            .collect();
        if let Some(node) = alive.get(self.below(alive.len())) {
            let keys = Keys {
                life: Some(Life::Dead),
                ..Keys::default()
            };
            self.over(who, *node, &keys);
        }
    }

    /// Brings back something that is dead, in one of the ways in which that is done.
    fn revive(&mut self, who: usize) {
        let state = self.state(who);
        let dead: Vec<&NodeState> = state.nodes.values().filter(|n| n.dead).collect();
        let Some(node) = dead.get(self.below(dead.len())) else {
            return;
        };
        let mut keys = Keys::default();
        match node.kind {
            Kind::File => {
                keys.content = Some(Content {
                    id: ContentId::from_bytes([77; 32]),
                    size: 1,
                    mtime_ns: 5,
                    inline: None,
                });
            }
            _ => keys.life = Some(Life::Live),
        }
        self.over(who, node.id, &keys);
    }

    fn over(&mut self, who: usize, node: NodeId, keys: &Keys) {
        let no = self.stores[who].space(&SPACE).expect("knows").no;
        let mut txn = self.stores[who].begin().expect("begins");
        let rows = txn.tree(no).expect("opens").write_over(&node, keys);
        let rows = rows.expect("rows");
        let entries = rows.iter().map(|row| Entry::Row(row.to_bytes())).collect();
        txn.append(&SPACE, entries, 7, &mut self.rng)
            .expect("appends");
        txn.commit().expect("commits");
    }

    /// Everybody gets everything; who lacks something gets a checkpoint of the first, which lacks
    /// nothing.
    fn gossip_over(&mut self, who: &[usize], stable: &VersionVector) {
        for _ in 0..4 {
            for from in who {
                for to in who {
                    if from != to {
                        self.sync(*from, *to, SPACE);
                    }
                }
            }
            for to in who.iter().skip(1) {
                let store = &self.stores[*to];
                let held = store.held(&SPACE).expect("reads");
                if store.applied(&SPACE).expect("reads") != held {
                    assert_eq!(self.checkpoint_at(who[0], *to, stable.clone()), Ok(()));
                }
            }
        }
    }

    /// Whether a replica shows what another one does, which lacks nothing.
    fn agrees(&self, who: usize, whole: usize) {
        let (lean, whole) = (self.state(who), self.state(whole));
        assert_eq!(lean.vector, whole.vector, "replica {who}");
        assert_eq!(lean.vector, lean.held, "replica {who}");
        assert_eq!(lean.stats, whole.stats, "replica {who}");
        assert_eq!(lean.settings, whole.settings);
        assert_eq!(lean.clock, whole.clock);
        for (id, state) in &whole.nodes {
            match lean.nodes.get(id) {
                // What the dead were last is known to who saw them die.
                Some(found) if state.dead && found.dead => {}
                Some(found) => assert_eq!(shown(found), shown(state), "replica {who}"),
                None => assert!(state.dead, "replica {who} lacks {state:?}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A new replica gets nothing of what is dead for good, agrees with all others, and goes on to
    /// whatever they do, also where they bring it back.
    #[test]
    fn a_new_replica_needs_nothing_of_what_is_dead(seed: u64) {
        let mut pac = Pac::new(3, seed);
        pac.live(3, 25);
        for _ in 0..4 {
            pac.delete(0);
        }
        pac.gossip(&[0, 1, 2]);
        let stable = pac.stable(&[0, 1, 2]);
        pac.live(2, 6);
        pac.delete(0);
        let new = pac.join();
        prop_assert_eq!(pac.checkpoint_at(0, new, stable.clone()), Ok(()));
        pac.agrees(new, 0);
        let header = pac.builder_at(0, stable.clone()).header().header().clone();
        for who in [0, 1, 2] {
            pac.gossip(&[0, 1, 2]);
            prop_assert_eq!(pac.stores[who].judge(&header).expect("judges"), Verdict::Same);
        }
        for who in [0, 1, 2, new] {
            pac.write(who);
            pac.delete(who);
            pac.write(who);
        }
        pac.revive(0);
        pac.revive(1);
        pac.gossip_over(&[0, 1, 2, new], &stable);
        for who in [1, 2, new] {
            pac.agrees(who, 0);
        }
        // What is known of it elsewhere is judged as before.
        for who in [0, 1, 2] {
            prop_assert_eq!(pac.stores[who].judge(&header).expect("judges"), Verdict::Same);
        }
        prop_assert_eq!(pac.stores[new].judge(&header).expect("judges"), Verdict::Unknown);
    }

    /// A replica that was put back to before something died shows it no more, unless it was
    /// written there since.
    #[test]
    fn what_died_while_a_replica_forgot_is_dead_there_too(seed: u64) {
        let mut pac = Pac::new(3, seed);
        pac.live(3, 25);
        pac.gossip(&[0, 1, 2]);
        for _ in 0..5 {
            pac.delete(0);
            pac.write(1);
        }
        pac.gossip(&[0, 1]);
        pac.write(2);
        pac.write(2);
        let stable = pac.stable(&[0, 1]);
        prop_assert_eq!(pac.checkpoint_at(0, 2, stable.clone()), Ok(()));
        pac.gossip_over(&[0, 1, 2], &stable);
        let (back, whole) = (pac.state(2), pac.state(0));
        let own = pac.stores[2].identity().keys.id();
        for (id, state) in &back.nodes {
            // Two may write the very same row, and then one cannot tell that it died.
            let written = back.written.iter().any(|(row, by)| {
                state.heads.contains(row) && by.iter().any(|by| by.device == own)
            });
            if !written {
                prop_assert_eq!(Some(state.dead), whole.nodes.get(id).map(|n| n.dead));
            }
        }
        // Of what lives on since it was written here, the others have rows.
        prop_assert_eq!(pac.checkpoint(0, 2), Ok(()));
        for who in [1, 2] {
            pac.agrees(who, 0);
        }
    }

    /// Who started without something lets others start without it, too.
    #[test]
    fn what_was_left_out_stays_out(seed: u64) {
        let mut pac = Pac::new(3, seed);
        pac.live(2, 25);
        for _ in 0..3 {
            pac.delete(0);
        }
        pac.gossip(&[0, 1]);
        let stable = pac.stable(&[0, 1]);
        prop_assert_eq!(pac.checkpoint_at(0, 2, stable), Ok(()));
        pac.write(2);
        let new = pac.join();
        prop_assert_eq!(pac.checkpoint(2, new), Ok(()));
        prop_assert_eq!(pac.state(new), pac.state(2));
        let header = pac.header_of(2);
        pac.gossip(&[0, 1, 2]);
        prop_assert_eq!(pac.stores[0].judge(&header).expect("judges"), Verdict::Same);
    }
}

#[test]
fn rows_of_what_lives_on_are_missed_until_they_come() {
    let mut pac = Pac::new(3, 2);
    let node = NodeId::from_bytes([1; 16]);
    let content = |id: u8| {
        Some(Content {
            id: ContentId::from_bytes([id; 32]),
            size: 1,
            mtime_ns: i64::from(id),
            inline: None,
        })
    };
    let mut txn = pac.stores[0].begin().expect("begins");
    let keys = Keys {
        kind: Some(Kind::File),
        at: Some(Placed {
            parent: NodeId::ROOT,
            name: Name::new("a").expect("a name"),
            stamp: txn.next_stamp(&SPACE).expect("a stamp"),
        }),
        content: content(1),
        ..Keys::default()
    };
    let birth = Entry::Row(Row::new(node, vec![], keys).to_bytes());
    txn.append(&SPACE, vec![birth], 1, &mut pac.rng)
        .expect("appends");
    txn.commit().expect("commits");
    pac.gossip(&[0, 1, 2]);
    pac.delete(0);
    pac.sync(0, 1, SPACE);
    let keys = Keys {
        content: content(2),
        ..Keys::default()
    };
    pac.over(2, node, &keys);
    let stable = pac.stable(&[0, 1]);
    assert_eq!(pac.checkpoint_at(0, 2, stable), Ok(()));
    let missed = |pac: &Pac| pac.stores[2].lacking().expect("reads");
    assert_eq!(missed(&pac), [SPACE].into());
    pac.gossip(&[0, 1, 2]);
    assert_eq!(pac.checkpoint(0, 2), Ok(()));
    assert_eq!(missed(&pac), [].into());
    pac.agrees(2, 0);
    assert_eq!(pac.state(2), pac.state(0));
}

#[test]
fn the_dead_are_left_out_with_all_that_was_in_them() {
    let mut pac = Pac::new(2, 1);
    let dead = |pac: &mut Pac, node: NodeId| {
        let keys = Keys {
            life: Some(Life::Dead),
            ..Keys::default()
        };
        pac.over(0, node, &keys);
    };
    let birth = |pac: &mut Pac, node: u8, parent: NodeId, kind: Kind| {
        let node = NodeId::from_bytes([node; 16]);
        let mut txn = pac.stores[0].begin().expect("begins");
        let keys = Keys {
            kind: Some(kind),
            at: Some(Placed {
                parent,
                name: Name::new([b'a' + node.as_bytes()[0]]).expect("a name"),
                stamp: txn.next_stamp(&SPACE).expect("a stamp"),
            }),
            content: (kind == Kind::File).then(|| Content {
                id: ContentId::from_bytes([1; 32]),
                size: 1,
                mtime_ns: 1,
                inline: None,
            }),
            ..Keys::default()
        };
        let row = Row::new(node, vec![], keys);
        txn.append(&SPACE, vec![Entry::Row(row.to_bytes())], 1, &mut pac.rng)
            .expect("appends");
        txn.commit().expect("commits");
        node
    };
    let gone = birth(&mut pac, 1, NodeId::ROOT, Kind::Dir);
    let in_gone = birth(&mut pac, 2, gone, Kind::File);
    let left = birth(&mut pac, 3, NodeId::ROOT, Kind::Dir);
    let moved = birth(&mut pac, 4, left, Kind::File);
    let keys = Keys {
        at: Some(Placed {
            parent: NodeId::ROOT,
            name: Name::new("moved").expect("a name"),
            stamp: 9,
        }),
        ..Keys::default()
    };
    pac.over(0, moved, &keys);
    for node in [in_gone, gone, left] {
        dead(&mut pac, node);
    }
    pac.sync(0, 1, SPACE);
    let stable = pac.stable(&[0, 1]);
    let late = birth(&mut pac, 5, NodeId::ROOT, Kind::File);
    dead(&mut pac, late);
    let new = pac.join();
    assert_eq!(pac.checkpoint_at(0, new, stable), Ok(()));
    // What was moved out of a directory names it, and not everybody knows that the last one died.
    assert_eq!(pac.known(new), [left, moved, late]);
}

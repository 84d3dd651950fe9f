use proptest::prelude::*;

use super::world::{World, home, roster};
use crate::content::{CHUNK_MAX, ManifestId, ObjectId};
use crate::ids::{ChunkId, ContentId};
use crate::session::*;
use crate::wire::{ChunkRef, Item, Pieces};

fn content(n: u32) -> ContentId {
    ContentId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn chunk(n: u32, len: u32) -> ChunkRef {
    ChunkRef {
        id: ChunkId::from_bytes([n as u8; 32]),
        len,
    }
}

/// Bytes that do not compress.
fn noise(n: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&n.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn want(world: &mut World, request: u64, what: Wanted, bytes: u64) {
    world.tell(
        0,
        0,
        Input::Want {
            request,
            space: home(),
            what,
            bytes,
        },
    );
}

#[test]
fn contents_arrive_in_order_and_what_is_missing_is_named() {
    let mut world = World::new(2, 1);
    for n in (0..1000).filter(|n| n % 10 != 3) {
        let item = match n % 7 {
            0 => Item::Manifest(noise(n, 500)),
            _ => Item::Whole(noise(n, 4096)),
        };
        world.nodes[1]
            .contents
            .insert(ObjectId::Content(content(n)), item);
    }
    world.connect(0, 1);
    want(
        &mut world,
        5,
        Wanted::Contents((0..1000).map(content).collect()),
        4 << 20,
    );
    world.settle();
    let expected: Vec<(ObjectId, Item)> = (0..1000)
        .filter_map(|n| {
            let id = ObjectId::Content(content(n));
            world.nodes[1]
                .contents
                .get(&id)
                .map(|item| (id, item.clone()))
        })
        .collect();
    assert_eq!(world.nodes[0].arrived, expected);
    let missing = (0..1000)
        .filter(|n| n % 10 == 3)
        .map(|n| ObjectId::Content(content(n)));
    assert_eq!(world.nodes[0].done, [(5, missing.collect())]);
    world.assert_rest();
}

#[test]
fn many_large_requests_keep_to_the_queue() {
    let mut world = World::new(2, 1);
    for n in 0..40 {
        let id = ObjectId::Chunk(chunk(n, 0).id);
        world.nodes[1]
            .contents
            .insert(id, Item::Whole(noise(n, CHUNK_MAX as usize)));
    }
    world.connect(0, 1);
    for n in 0..40 {
        let pieces = Pieces::Chunks(vec![chunk(n, CHUNK_MAX)]);
        let what = Wanted::Pieces {
            content: content(0),
            pieces,
        };
        want(&mut world, u64::from(n), what, u64::from(CHUNK_MAX));
    }
    world.settle();
    assert_eq!(world.nodes[0].arrived.len(), 40);
    assert!(
        world.nodes[0]
            .done
            .iter()
            .all(|(_, missing)| missing.is_empty())
    );
    let bound = CONTENT_QUEUE_MAX + u64::from(CHUNK_MAX) + 1024;
    assert!(
        world.content_queue_max <= bound,
        "{}",
        world.content_queue_max
    );
    world.assert_rest();
}

#[test]
fn manifests_and_chunks_of_a_wrong_length_count_as_missing() {
    let mut world = World::new(2, 1);
    let manifest = ManifestId::from_bytes([1; 32]);
    world.nodes[1]
        .contents
        .insert(ObjectId::Manifest(manifest), Item::Whole(vec![1; 100]));
    world.nodes[1]
        .contents
        .insert(ObjectId::Chunk(chunk(1, 0).id), Item::Whole(vec![1; 100]));
    world.connect(0, 1);
    for (request, pieces) in [
        (1, Pieces::Manifests(vec![manifest])),
        (2, Pieces::Chunks(vec![chunk(1, 99)])),
        (3, Pieces::Chunks(vec![chunk(1, 100)])),
    ] {
        want(
            &mut world,
            request,
            Wanted::Pieces {
                content: content(0),
                pieces,
            },
            100,
        );
    }
    world.settle();
    let missing: Vec<usize> = world.nodes[0].done.iter().map(|(_, m)| m.len()).collect();
    assert_eq!(missing, [0, 1, 0]);
    assert_eq!(world.nodes[0].arrived.len(), 2);
}

#[test]
fn impossible_requests_are_done_at_once() {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    let too_large = Pieces::Chunks(vec![chunk(1, CHUNK_MAX), chunk(2, 1)]);
    want(&mut world, 1, Wanted::Contents(vec![]), 0);
    want(
        &mut world,
        2,
        Wanted::Pieces {
            content: content(0),
            pieces: too_large,
        },
        0,
    );
    let done: Vec<usize> = world.nodes[0].done.iter().map(|(_, m)| m.len()).collect();
    assert_eq!(done, [0, 2]);
    world.settle();
    // A space that the other side does not have.
    world.tell(0, 1, Input::SpaceClose { space: home() });
    want(&mut world, 3, Wanted::Contents(vec![content(1)]), 0);
    world.settle();
    assert_eq!(
        world.nodes[0].done.last(),
        Some(&(3, vec![ObjectId::Content(content(1))]))
    );
    assert_ne!(home(), roster());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn each_request_ends_once_even_if_it_is_taken_back(
        requests in proptest::collection::vec((1..40u32, any::<bool>(), 0..20usize), 1..30),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(2, seed);
        for n in 0..30 {
            let item = Item::Whole(noise(n, 100_000));
            world.nodes[1].contents.insert(ObjectId::Content(content(n)), item);
        }
        world.connect(0, 1);
        for (n, (count, cancel, steps)) in requests.iter().enumerate() {
            let what = Wanted::Contents((0..*count).map(content).collect());
            want(&mut world, n as u64, what, u64::from(*count) * 100_000);
            for _ in 0..*steps {
                world.step();
            }
            if *cancel {
                world.tell(0, 0, Input::Cancel { request: n as u64 });
            }
        }
        world.settle();
        world.assert_rest();
        let mut done: Vec<u64> = world.nodes[0].done.iter().map(|(n, _)| *n).collect();
        done.sort_unstable();
        prop_assert_eq!(done, (0..requests.len() as u64).collect::<Vec<_>>());
        for (n, missing) in &world.nodes[0].done {
            let (count, cancel, _) = requests[*n as usize];
            if !cancel {
                prop_assert_eq!(missing.len() as u32, count.saturating_sub(30));
            }
        }
    }
}

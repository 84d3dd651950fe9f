//! Ids of content, chunks and manifests.

use pacsync_protocol::ContentId;
use pacsync_protocol::content::{ChunkParams, IdKeys, Manifest, ManifestBuilder, ObjectId};
use pacsync_protocol::crypto::Key;
use serde_json::{Value, json};

use super::{array, bytes, h, hex, items, k, stored};

fn keys() -> IdKeys {
    IdKeys::derive(&Key::from_bytes([0x99; 32]))
}

/// Bytes that look like nothing: every 32 are the hash of their number.
fn noise(len: usize) -> Vec<u8> {
    let blocks = (0..len.div_ceil(32) as u64).flat_map(|n| {
        let hash = blake3::hash(&n.to_le_bytes());
        *hash.as_bytes()
    });
    blocks.take(len).collect()
}

fn made() -> Value {
    let keys = keys();
    let params = ChunkParams::standard(&keys);
    let chunks = [noise(40_000), noise(50_000), noise(1)];
    let mut builder = ManifestBuilder::new(&keys, params);
    for (n, chunk) in chunks.iter().enumerate() {
        let len = u32::try_from(chunk.len()).expect("short");
        builder.chunk(keys.chunk_id(chunk), len).expect("fits");
        if n == 0 {
            builder.hole(1 << 30).expect("fits");
        }
    }
    let tree = builder.finish().expect("a manifest");
    let contents: Vec<Value> = [b"".to_vec(), b"hello".to_vec(), noise(100_000)]
        .iter()
        .map(|content| {
            json!({
                "noise": content.len() > 100,
                "content": if content.len() > 100 { content.len().to_string() } else { hex(content) },
                "content_id": hex(keys.content_id(content).as_bytes()),
                "chunk_id": hex(keys.chunk_id(content).as_bytes()),
            })
        })
        .collect();
    json!({
        "about": "Names of content; docs/wire.md, Content. Noise: every 32 bytes are the BLAKE3 \
            hash of their number, 8 bytes little-endian, from 0.",
        "id_key": hex([0x99; 32]),
        "boundary_seed": keys.chunk_seed().to_string(),
        "contents": contents,
        "manifest": {
            "of": "noise of 40,000 bytes, 2^30 zeros, noise of 50,000 bytes, noise of 1 byte",
            "manifest": hex(&tree.top.bytes),
            "id": hex(tree.top.id.as_bytes()),
            "size": tree.size,
        },
    })
}

#[test]
fn names_of_content_are_those_of_the_page() {
    let v = stored("content.json", &made());
    let id_key = bytes(&v, "id_key");
    let key = |domain| h(domain, &id_key);
    let content_key = key("pacsync v1 content id key");
    let chunk_key = key("pacsync v1 chunk id key");
    for found in items(&v, "contents") {
        let content = if found["noise"] == true {
            let len = found["content"].as_str().expect("text").parse();
            noise(len.expect("a length"))
        } else {
            bytes(found, "content")
        };
        assert_eq!(k(&content_key, &content), array(found, "content_id"));
        assert_eq!(k(&chunk_key, &content), array(found, "chunk_id"));
        let id = ObjectId::Content(ContentId::from_bytes(array(found, "content_id")));
        assert!(keys().names(&id, &content));
    }
    let seed = key("pacsync v1 chunk boundary seed");
    let seed = u64::from_le_bytes(seed[..8].try_into().expect("8 bytes"));
    assert_eq!(v["boundary_seed"], seed.to_string());
    let found = &v["manifest"];
    let raw = bytes(found, "manifest");
    assert_eq!(
        k(&key("pacsync v1 manifest id key"), &raw),
        array(found, "id")
    );
    let manifest = Manifest::decode(&raw).expect("a manifest");
    assert_eq!(manifest.size(), found["size"]);
    assert_eq!(manifest.entries().len(), 4);
    assert_eq!(manifest.params().seed, seed);
}

//! A device of the pac whose bytes are changed on their way out: what it holds is right, what it
//! says is not.

use std::collections::VecDeque;

use pacsync_daemon::net::Lane;
use pacsync_protocol::wire::{self, Message};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::below;

/// Frames kept to be said again.
const KEPT_MAX: usize = 32;

/// What kind of lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Any frame, any damage.
    Wild,
    /// Some of its segments are damaged, the same ones in the same way each time: its store rots.
    Rotten,
}

/// Changes what a device sends.
#[derive(Debug)]
pub(crate) struct Liar {
    style: Style,
    rng: ChaCha8Rng,
    said: VecDeque<(Lane, Vec<u8>)>,
}

fn on_wire(lane: Lane) -> wire::Lane {
    match lane {
        Lane::State => wire::Lane::State,
        Lane::Content => wire::Lane::Content,
    }
}

impl Liar {
    pub(crate) fn new(style: Style, seed: u64) -> Self {
        Self {
            style,
            rng: ChaCha8Rng::seed_from_u64(seed),
            said: VecDeque::new(),
        }
    }

    /// What is sent in a frame's place.
    pub(crate) fn tell(&mut self, lane: Lane, bytes: Vec<u8>) -> Vec<(Lane, Vec<u8>)> {
        if self.said.len() == KEPT_MAX {
            self.said.pop_front();
        }
        self.said.push_back((lane, bytes.clone()));
        let mut frames = match self.style {
            Style::Rotten => vec![(lane, rot(lane, bytes))],
            Style::Wild if below(&mut self.rng, 4) > 0 => vec![(lane, bytes)],
            Style::Wild => self.damage(lane, bytes),
        };
        // The transport takes nothing longer.
        for (lane, bytes) in &mut frames {
            bytes.truncate(on_wire(*lane).frame_max());
        }
        frames
    }

    fn damage(&mut self, lane: Lane, mut bytes: Vec<u8>) -> Vec<(Lane, Vec<u8>)> {
        let rng = &mut self.rng;
        match below(rng, 9) {
            0..=2 => {
                for _ in 0..1 + below(rng, 4) {
                    flip(rng, &mut bytes);
                }
                vec![(lane, bytes)]
            }
            3 => {
                let len = below(rng, bytes.len() as u64 + 1) as usize;
                bytes.truncate(len);
                vec![(lane, bytes)]
            }
            4 => vec![(lane, bytes.clone()), (lane, bytes)],
            5 => {
                let at = below(rng, self.said.len() as u64) as usize;
                let again = self.said.get(at).cloned();
                again.into_iter().chain([(lane, bytes)]).collect()
            }
            6 => vec![],
            7 => {
                let mut noise = vec![0; below(rng, 200) as usize];
                rng.fill_bytes(&mut noise);
                vec![(lane, noise)]
            }
            _ => vec![(lane, self.shuffle(lane, bytes))],
        }
    }

    /// Segments in another order, some twice, some not at all.
    fn shuffle(&mut self, lane: Lane, bytes: Vec<u8>) -> Vec<u8> {
        let Ok(Some(Message::Segments(mut message))) = Message::decode(on_wire(lane), &bytes)
        else {
            return bytes;
        };
        for _ in 0..2 {
            let len = message.segments.len() as u64;
            if len == 0 {
                break;
            }
            let (a, b) = (
                below(&mut self.rng, len) as usize,
                below(&mut self.rng, len) as usize,
            );
            match below(&mut self.rng, 3) {
                0 => message.segments.swap(a, b),
                1 => {
                    message.segments.remove(a);
                }
                _ => {
                    let again = message.segments.get(a).cloned();
                    message.segments.extend(again);
                }
            }
        }
        Message::Segments(message).encode()
    }
}

fn flip(rng: &mut impl RngCore, bytes: &mut [u8]) {
    let at = below(rng, (bytes.len() as u64).max(1)) as usize;
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << below(rng, 8);
    }
}

/// One segment in three has a wrong bit, always the same one.
fn rot(lane: Lane, bytes: Vec<u8>) -> Vec<u8> {
    let Ok(Some(Message::Segments(mut message))) = Message::decode(on_wire(lane), &bytes) else {
        return bytes;
    };
    for segment in &mut message.segments {
        let hash = *blake3::hash(segment).as_bytes();
        let mut rng = ChaCha8Rng::from_seed(hash);
        if below(&mut rng, 3) == 0 {
            flip(&mut rng, segment);
        }
    }
    Message::Segments(message).encode()
}

//! Two machines in memory: [`flow`] is what may happen between honest ones,
//! [`hostile`] what a stranger may try.

mod flow;
mod hostile;

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::message::{Message, Reason, Roster};
use super::*;
use crate::crypto::SigningKey;
use crate::identity::{DeviceKeys, FoundingRecord, Phrase};
use crate::ids::SpaceId;

const EXPORTER: Exporter = [5; 32];
const ROSTER_KEY: [u8; 32] = *b"the key of the roster: 32 bytes.";
const PRIVATE_KEY: [u8; 32] = *b"the other key of it: 32 bytes...";

/// Both sides of one connection, before the first message.
struct Pair {
    rng: ChaCha20Rng,
    offer: Offer,
    host_keys: DeviceKeys,
    joiner_keys: DeviceKeys,
}

fn name(text: &str) -> DeviceName {
    DeviceName::new(text).expect("a name")
}

/// What a machine asked for, by kind.
#[derive(Debug, Default)]
struct Asked {
    frames: Vec<Vec<u8>>,
    peer: Option<Peer>,
    grant: Option<Peer>,
    welcome: Option<Welcome>,
    finished: bool,
}

fn drain(mut poll: impl FnMut() -> Option<Output>) -> Asked {
    let mut asked = Asked::default();
    while let Some(output) = poll() {
        match output {
            Output::Send(frame) => asked.frames.push(frame),
            Output::Peer(peer) => asked.peer = Some(peer),
            Output::Grant(peer) => asked.grant = Some(peer),
            Output::Welcome(welcome) => asked.welcome = Some(*welcome),
            Output::Finished => asked.finished = true,
        }
    }
    asked
}

fn host_asks(host: &mut Host) -> Asked {
    drain(|| host.poll_output())
}

fn joiner_asks(joiner: &mut Joiner) -> Asked {
    drain(|| joiner.poll_output())
}

fn only(mut frames: Vec<Vec<u8>>) -> Vec<u8> {
    let frame = frames.pop().expect("a frame");
    assert!(frames.is_empty(), "one frame only");
    frame
}

impl Pair {
    fn new(role: Role) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        Self {
            offer: Offer::new(role, 0, &mut rng),
            host_keys: DeviceKeys::generate(&mut rng),
            joiner_keys: DeviceKeys::generate(&mut rng),
            rng,
        }
    }

    fn join_with(&mut self, code: &PairingCode, exporter: &Exporter) -> Joiner {
        Joiner::new(
            1,
            code,
            exporter,
            &self.joiner_keys,
            &name("phone"),
            &mut self.rng,
        )
    }

    fn join(&mut self) -> Joiner {
        let code = self.offer.code().clone();
        self.join_with(&code, &EXPORTER)
    }

    fn answer(&mut self, now_ms: u64, hello: &[u8]) -> Result<Host, Refused> {
        let Self {
            offer,
            host_keys,
            rng,
            ..
        } = self;
        offer.answer(now_ms, &EXPORTER, host_keys, &name("laptop"), hello, rng)
    }

    /// A joiner and a host whose answer is with the joiner; the joiner's proof.
    fn answered_by(&mut self, mut joiner: Joiner) -> (Host, Joiner, Vec<u8>) {
        let hello = only(joiner_asks(&mut joiner).frames);
        let mut host = self.answer(2, &hello).expect("is answered");
        joiner
            .handle(3, &only(host_asks(&mut host).frames))
            .expect("takes the answer");
        let proof = only(joiner_asks(&mut joiner).frames);
        (host, joiner, proof)
    }

    /// Both machines at the point where the users decide.
    fn deciding(&mut self) -> (Host, Joiner) {
        let joiner = self.join();
        let (mut host, mut joiner, proof) = self.answered_by(joiner);
        host.handle(4, &proof).expect("takes the proof");
        joiner
            .handle(5, &only(host_asks(&mut host).frames))
            .expect("takes the proof");
        joiner_asks(&mut joiner);
        (host, joiner)
    }

    /// Both machines after both users agreed.
    fn agreed(&mut self) -> (Host, Joiner) {
        let (mut host, mut joiner) = self.deciding();
        host.confirm(6, Consent::Person).expect("confirms");
        joiner.confirm(6).expect("confirms");
        host.handle(7, &only(joiner_asks(&mut joiner).frames))
            .expect("takes the consent");
        assert!(host_asks(&mut host).grant.is_some());
        (host, joiner)
    }
}

fn founding() -> VerifiedFounding {
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    FoundingRecord::found(&Phrase::generate(rng).root_keys(), 1, rng)
}

fn welcome(segments: Vec<Vec<u8>>) -> Welcome {
    Welcome {
        founding: founding(),
        keys: RosterKeys::Full {
            roster: Key::from_bytes(ROSTER_KEY),
            private: Key::from_bytes(PRIVATE_KEY),
        },
        segments,
        addresses: vec!["192.0.2.1:4000".into(), "[2001:db8::1]:4000".into()],
        spaces: vec![SpaceHint {
            space: SpaceId::from_bytes([3; 16]),
            name: "home".into(),
        }],
    }
}

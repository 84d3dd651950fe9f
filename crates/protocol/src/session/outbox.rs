//! What a session has to say, and how full the transport's queues are.

use std::collections::VecDeque;

use crate::wire::{CloseCode, Lane, Message};

use super::STATE_QUEUE_HIGH;
use super::io::Output;

/// Why the peer's frame ends the session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(super) struct Violation {
    pub(super) code: CloseCode,
    pub(super) why: String,
}

impl Violation {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self {
            code: CloseCode::Violation,
            why: why.into(),
        }
    }
}

/// What both lanes' queues in the transport hold, and what is to be done next.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) outputs: VecDeque<Output>,
    pub(super) state_bytes: u64,
    pub(super) content_bytes: u64,
}

impl Outbox {
    pub(super) fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn send(&mut self, message: &Message) {
        let bytes = message.encode();
        let lane = message.lane();
        let queue = self.queue(lane);
        *queue = queue.saturating_add(bytes.len() as u64);
        self.push(Output::Send { lane, bytes });
    }

    pub(super) fn queue(&mut self, lane: Lane) -> &mut u64 {
        match lane {
            Lane::State => &mut self.state_bytes,
            Lane::Content => &mut self.content_bytes,
        }
    }

    pub(super) fn state_is_full(&self) -> bool {
        self.state_bytes >= STATE_QUEUE_HIGH
    }
}

//! The messages of pairing as they travel: an array of the type's number and a
//! map with integer keys. Numbers are never used again for another meaning.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::cbor::{self, DecodeError};
use crate::crypto::{Key, Signature};
use crate::grant::Role;
use crate::identity::{DeviceName, DevicePublic};
use crate::ids::SpaceId;

/// The version that this program speaks.
pub(super) const VERSION: u16 = 1;
/// Length of a SPAKE2 message: the side's letter and a curve point.
pub(super) const SPAKE_LEN: usize = 33;
/// Length of a confirmation MAC.
pub(super) const MAC_LEN: usize = 32;

/// A message; the number is its type.
#[derive(Debug, Encode, Decode)]
#[cbor(flat)]
pub(super) enum Message {
    /// Joiner, first.
    #[n(1)]
    Hello(#[n(0)] Hello),
    /// Host; the code is spent.
    #[n(2)]
    Answer(#[n(0)] Answer),
    /// Either side: proof of the code and of the device key.
    #[n(3)]
    Confirm(#[n(0)] Confirm),
    /// Joiner: its user agrees.
    #[n(4)]
    Agree,
    /// Host: the head of what a new device needs.
    #[n(5)]
    Welcome(#[n(0)] WelcomeHead),
    /// Host: roster segments.
    #[n(6)]
    Roster(#[n(0)] Roster),
    /// Joiner: everything verified and durable.
    #[n(7)]
    Done,
    /// Either side: it is over.
    #[n(8)]
    Refuse(#[n(0)] Reason),
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    pub(super) fn decode(bytes: &[u8], len_max: usize) -> Result<Self, DecodeError> {
        cbor::at_most("pairing message", bytes.len(), len_max)?;
        cbor::decode("pairing message", bytes)
    }
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(super) struct Hello {
    #[n(0)]
    pub(super) version: u16,
    #[n(1)]
    pub(super) device: DevicePublic,
    #[n(2)]
    pub(super) name: DeviceName,
    #[n(3)]
    pub(super) spake: ByteArray<SPAKE_LEN>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(super) struct Answer {
    #[n(0)]
    pub(super) version: u16,
    #[n(1)]
    pub(super) device: DevicePublic,
    #[n(2)]
    pub(super) name: DeviceName,
    #[n(3)]
    pub(super) spake: ByteArray<SPAKE_LEN>,
    #[n(4)]
    pub(super) role: Role,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(super) struct Confirm {
    #[n(0)]
    pub(super) mac: ByteArray<MAC_LEN>,
    #[n(1)]
    pub(super) signature: Signature,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(super) struct WelcomeHead {
    #[n(0)]
    pub(super) founding: ByteVec,
    #[n(1)]
    pub(super) roster_key: Key,
    #[n(2)]
    pub(super) roster_private_key: Option<Key>,
    /// Number of roster segments that follow.
    #[n(3)]
    pub(super) segments: u32,
    /// Their length in all.
    #[n(4)]
    pub(super) bytes: u32,
    #[n(5)]
    pub(super) addresses: Vec<String>,
    #[n(6)]
    pub(super) spaces: Vec<SpaceHint>,
}

/// Tells a new device which space is which before it can read their documents.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SpaceHint {
    /// The space.
    #[n(0)]
    pub space: SpaceId,
    /// Its display name at the host, such as `home`.
    #[n(1)]
    pub name: String,
}

/// Roster segments in order. A segment that does not fit into a frame is cut,
/// and goes on as the first piece of the next one.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(super) struct Roster {
    #[n(0)]
    pub(super) pieces: Vec<ByteVec>,
    /// Says that the last piece goes on in the next frame.
    #[n(1)]
    pub(super) open: bool,
}

/// Why a side ends pairing. An unknown number reads as [`Reason::Protocol`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Something was not as it must be.
    Protocol,
    /// The user said no.
    Rejected,
    /// The MAC did not fit.
    WrongCode,
    /// The code was answered before.
    Spent,
    /// Time is up.
    Expired,
    /// Another version of the protocol.
    Version,
    /// The side could not do its part.
    Failed,
}

impl Reason {
    const ALL: [(u16, Self); 7] = [
        (0, Self::Protocol),
        (1, Self::Rejected),
        (2, Self::WrongCode),
        (3, Self::Spent),
        (4, Self::Expired),
        (5, Self::Version),
        (6, Self::Failed),
    ];
}

impl<C> Encode<C> for Reason {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let number = Self::ALL
            .iter()
            .find(|(_, reason)| reason == self)
            .map_or(0, |(n, _)| *n);
        e.u16(number)?;
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Reason {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let number = d.u16()?;
        let known = Self::ALL.iter().find(|(n, _)| *n == number);
        Ok(known.map_or(Self::Protocol, |(_, reason)| *reason))
    }
}

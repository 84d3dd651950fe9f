//! Grants: links in chains of delegation that begin at a pac's root.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use crate::cbor::{self, DecodeError, at_most};
use crate::crypto::{self, CryptoError, Entropy, Key, PublicKey, Signature, SigningKey, domain};
use crate::identity::DevicePublic;
use crate::ids::{DeviceId, PacId, SpaceId};

/// Longest clear part, in bytes.
pub const CLEAR_MAX: usize = 8 * 1024;
/// Longest sealed private part, in bytes.
pub const PRIVATE_MAX: usize = 8 * 1024;
/// Most spaces that a grant may list.
pub const SPACES_MAX: usize = 256;
/// Links that may follow the founder's grant.
pub const DEPTH_MAX: u8 = 15;

/// What a device is in a pac.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Role {
    /// Enrols and revokes.
    #[n(0)]
    Admin,
    /// Reads and writes its spaces.
    #[n(1)]
    Member,
    /// Holds and forwards ciphertext only.
    #[n(2)]
    Relay,
    /// Uses what a host serves it.
    #[n(3)]
    Guest,
}

impl Role {
    /// The word on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Member => "member",
            Self::Relay => "relay",
            Self::Guest => "guest",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = crate::ids::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Admin, Self::Member, Self::Relay, Self::Guest]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(crate::ids::ParseIdError {
                kind: "role (admin, member, relay, guest)",
            })
    }
}

/// What a grant lets its device do; a role bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Rights(#[n(0)] u32);

impl Rights {
    /// None: what is held cannot be read.
    pub const NONE: Self = Self(0);
    /// Gets the keys of its spaces.
    pub const READ: Self = Self(1);
    /// Its log in its spaces counts.
    pub const WRITE: Self = Self(2);
    /// Issues grants and revokes them.
    pub const ENROL: Self = Self(4);

    /// All that a role may have.
    pub const fn of(role: Role) -> Self {
        match role {
            Role::Admin => Self(Self::READ.0 | Self::WRITE.0 | Self::ENROL.0),
            Role::Member => Self(Self::READ.0 | Self::WRITE.0),
            Role::Relay => Self::NONE,
            Role::Guest => Self::READ,
        }
    }

    /// True if these have all of the others.
    pub const fn include(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

/// Which spaces a grant covers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Scope {
    /// All, later ones too.
    #[n(0)]
    All,
    /// The listed ones.
    #[n(1)]
    Spaces(#[n(0)] Vec<SpaceId>),
}

impl Scope {
    /// True if the space is covered.
    pub fn covers(&self, space: &SpaceId) -> bool {
        match self {
            Self::All => true,
            Self::Spaces(spaces) => spaces.contains(space),
        }
    }

    fn within(&self, outer: &Self) -> bool {
        match (self, outer) {
            (_, Self::All) => true,
            (Self::All, Self::Spaces(_)) => false,
            (Self::Spaces(inner), outer) => inner.iter().all(|space| outer.covers(space)),
        }
    }
}

/// The part of a grant that relays can read.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GrantClear {
    /// 1.
    #[n(0)]
    pub version: u8,
    /// The pac.
    #[n(1)]
    pub pac: PacId,
    /// Who is granted.
    #[n(2)]
    pub subject: DevicePublic,
    /// Which spaces.
    #[n(3)]
    pub scope: Scope,
    /// What for.
    #[n(4)]
    pub role: Role,
    /// How many links may follow this one.
    #[n(5)]
    pub depth: u8,
    /// Hash of the sealed private part.
    #[n(6)]
    pub private_hash: ByteArray<32>,
    /// Who signs: the root or a device.
    #[n(7)]
    pub issuer: PublicKey,
    /// Random, so that a repeated grant is a new one.
    #[n(8)]
    pub serial: ByteArray<16>,
    /// What it lets the device do in its spaces: at most what its role may.
    #[n(9)]
    pub rights: Rights,
}

/// The part of a grant that relays cannot read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GrantPrivate {
    /// Why it was given, for people.
    #[n(0)]
    pub purpose: String,
}

/// A signed grant as it stands in a roster log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Grant {
    /// Canonical bytes of [`GrantClear`].
    #[n(0)]
    clear: ByteVec,
    /// [`GrantPrivate`], sealed under the roster's private key: 24 bytes of nonce, then ciphertext.
    #[n(1)]
    private: ByteVec,
    /// The issuer's signature over the clear part.
    #[n(2)]
    signature: Signature,
}

/// Why a grant was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The bytes break the format.
    #[error(transparent)]
    Format(#[from] DecodeError),
    /// The signature does not hold.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// It belongs to another pac.
    #[error("the grant is for another pac")]
    OtherPac,
    /// Its issuer may not give it.
    #[error("{issuer} may not grant this: {why}")]
    NotAuthorised {
        /// Who signed.
        issuer: DeviceId,
        /// Which rule is broken.
        why: &'static str,
    },
}

/// Who signs a grant, and within which bounds.
#[derive(Debug, Clone, Copy)]
pub enum Authority<'a> {
    /// The root outranks everyone.
    Root,
    /// A device, by its own grant.
    Device(&'a GrantClear),
}

impl Grant {
    /// Issues a grant. The private part is sealed under `private_key`.
    pub fn issue(
        mut clear: GrantClear,
        private: &GrantPrivate,
        private_key: &Key,
        issuer: &SigningKey,
        rng: &mut dyn Entropy,
    ) -> Self {
        let nonce = crypto::random::<24>(rng);
        let mut sealed = nonce.to_vec();
        sealed.extend(crypto::seal(
            private_key,
            &nonce,
            &clear.serial[..],
            &cbor::encode(private),
        ));
        clear.private_hash = ByteArray::from(crypto::hash(domain::GRANT_PRIVATE, &[&sealed]));
        let clear = cbor::encode(&clear);
        let signature = issuer.sign(domain::GRANT, &clear);
        Self {
            clear: clear.into(),
            private: sealed.into(),
            signature,
        }
    }

    /// Checks format, signature and the hash of the private part; the issuer's authority is
    /// [`GrantClear::check_authority`]'s.
    ///
    /// # Errors
    /// [`GrantError`].
    pub fn verify(&self, pac: &PacId) -> Result<GrantClear, GrantError> {
        at_most("grant", self.clear.len(), CLEAR_MAX)?;
        at_most("private part of a grant", self.private.len(), PRIVATE_MAX)?;
        let clear: GrantClear = cbor::decode_canonical("grant", &self.clear)?;
        let within = Rights::of(clear.role).include(clear.rights);
        if clear.version != 1 || clear.depth > DEPTH_MAX || !within {
            return Err(DecodeError::Invalid { what: "grant" }.into());
        }
        if let Scope::Spaces(spaces) = &clear.scope {
            at_most("spaces in a grant", spaces.len(), SPACES_MAX)?;
        }
        if clear.pac != *pac {
            return Err(GrantError::OtherPac);
        }
        crypto::verify(&clear.issuer.0, domain::GRANT, &self.clear, &self.signature)?;
        if crypto::hash(domain::GRANT_PRIVATE, &[&self.private]) != *clear.private_hash {
            return Err(DecodeError::Invalid {
                what: "private part of a grant",
            }
            .into());
        }
        Ok(clear)
    }

    /// Opens the private part.
    ///
    /// # Errors
    /// [`GrantError`] if the key does not fit.
    pub fn open_private(&self, private_key: &Key) -> Result<GrantPrivate, GrantError> {
        let clear: GrantClear = cbor::decode("grant", &self.clear)?;
        let (nonce, body) = self
            .private
            .split_first_chunk::<24>()
            .ok_or(CryptoError::CannotDecrypt)?;
        let plain = crypto::open(private_key, nonce, &clear.serial[..], body)?;
        Ok(cbor::decode("private part of a grant", &plain)?)
    }
}

impl GrantClear {
    /// True if it lets its device write to the space.
    pub fn may_write(&self, space: &SpaceId) -> bool {
        self.rights.include(Rights::WRITE) && self.scope.covers(space)
    }

    /// True if it entitles its device to the keys of the space.
    pub fn may_read(&self, space: &SpaceId) -> bool {
        matches!(self.role, Role::Admin | Role::Member)
            && self.rights.include(Rights::READ)
            && self.scope.covers(space)
    }

    /// Checks that a grant stays within what its issuer holds: each link only narrows.
    ///
    /// # Errors
    /// [`GrantError::NotAuthorised`].
    pub fn check_authority(&self, authority: Authority<'_>) -> Result<(), GrantError> {
        let refuse = |why| {
            Err(GrantError::NotAuthorised {
                issuer: self.issuer.0,
                why,
            })
        };
        match authority {
            Authority::Root => Ok(()),
            Authority::Device(own) if own.subject.id != self.issuer.0 => {
                refuse("the authority is another device's")
            }
            Authority::Device(own) if own.role != Role::Admin => refuse("only an admin enrols"),
            Authority::Device(own) if !own.rights.include(Rights::ENROL) => {
                refuse("its issuer may not enrol")
            }
            Authority::Device(own) if !own.rights.include(self.rights) => {
                refuse("it gives more rights than its issuer has")
            }
            Authority::Device(own) if own.depth == 0 || self.depth >= own.depth => {
                refuse("the chain would be too long")
            }
            Authority::Device(own) if !self.scope.within(&own.scope) => {
                refuse("it covers more spaces than its issuer has")
            }
            Authority::Device(_) => Ok(()),
        }
    }
}

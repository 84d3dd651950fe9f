//! Canonical CBOR: what is signed or hashed has exactly one encoding.
//!
//! Types derive minicbor's codecs with integer keys. Canonical means: decoding
//! and encoding again gives the same bytes; [`decode_canonical`] refuses the rest.

use minicbor::{Decode, Encode};

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not the expected CBOR.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// The decoder's reason.
        why: String,
    },
    /// The bytes decode, but are not the one encoding of their value.
    #[error("{what} is not in canonical form")]
    NotCanonical {
        /// What was being read.
        what: &'static str,
    },
    /// A limit is exceeded.
    #[error("{what} exceeds its limit of {limit}")]
    TooLarge {
        /// What was being read.
        what: &'static str,
        /// The limit, in the unit of `what`.
        limit: u64,
    },
    /// A value is outside what its field allows.
    #[error("invalid {what}")]
    Invalid {
        /// What was being read.
        what: &'static str,
    },
}

/// Encodes a value. Infallible for the types of this crate: they write to memory
/// and their encoders never fail.
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("encoding to memory does not fail")
}

/// Decodes a value that must fill `bytes` exactly; the encoding may be any.
///
/// # Errors
/// [`DecodeError::Malformed`] if the bytes do not decode or bytes are left over.
pub fn decode<'b, T: Decode<'b, ()>>(
    what: &'static str,
    bytes: &'b [u8],
) -> Result<T, DecodeError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode::<T>().map_err(|e| DecodeError::Malformed {
        what,
        why: e.to_string(),
    })?;
    if decoder.position() != bytes.len() {
        return Err(DecodeError::Malformed {
            what,
            why: "bytes left over".into(),
        });
    }
    Ok(value)
}

/// Decodes a value and refuses every encoding but the canonical one.
///
/// # Errors
/// Those of [`decode`], and [`DecodeError::NotCanonical`].
pub fn decode_canonical<'b, T: Decode<'b, ()> + Encode<()>>(
    what: &'static str,
    bytes: &'b [u8],
) -> Result<T, DecodeError> {
    let value: T = decode(what, bytes)?;
    if encode(&value) != bytes {
        return Err(DecodeError::NotCanonical { what });
    }
    Ok(value)
}

/// Refuses a collection that is longer than `limit`.
///
/// # Errors
/// [`DecodeError::TooLarge`].
pub fn at_most(what: &'static str, len: usize, limit: usize) -> Result<(), DecodeError> {
    if len > limit {
        return Err(DecodeError::TooLarge {
            what,
            limit: limit as u64,
        });
    }
    Ok(())
}

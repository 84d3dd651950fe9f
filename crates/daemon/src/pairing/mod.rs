//! Pairing over the network: the two state machines of the protocol, driven on real
//! connections.
//!
//! - [`host`] runs one code on a device of the pac;
//! - [`join`] takes a code on a device that has none.
//!
//! Never here: what a pairing means for the roster (the core answers [`host::Enrol`]), the home's
//! files, how a user is asked.

pub mod host;
pub mod join;
mod link;
#[cfg(test)]
mod tests;

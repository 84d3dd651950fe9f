//! Who an owner and a device are: the 24-word phrase and the root keys made from
//! it, the founding record that names a pac, and the key pairs of one device.
//!
//! Never here: files. The daemon stores what [`DeviceKeys::to_bytes`] gives.

mod device;
mod founding;
mod phrase;

pub use device::{DEVICE_NAME_LEN_MAX, DeviceKeys, DeviceKeysError, DeviceName, DevicePublic};
pub use founding::{FOUNDING_LEN_MAX, FoundingError, FoundingRecord, VerifiedFounding};
pub(crate) use phrase::word_index;
pub use phrase::{PHRASE_WORDS, Phrase, PhraseError, RootKeys};

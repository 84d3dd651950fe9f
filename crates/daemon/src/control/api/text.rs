//! Paths in JSON: text for people, bytes beside it where the text would lose something.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $text:ident, $bytes:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name {
            /// The text; bytes that are not UTF-8 are shown as U+FFFD.
            pub $text: String,
            /// The bytes in base64, where the text is not all of it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $bytes: Option<String>,
        }

        impl $name {
            /// Makes it from the bytes of a path.
            pub fn from_bytes(bytes: &[u8]) -> Self {
                match std::str::from_utf8(bytes) {
                    Ok(text) => Self { $text: text.to_owned(), $bytes: None },
                    Err(_) => Self {
                        $text: String::from_utf8_lossy(bytes).into_owned(),
                        $bytes: Some(BASE64.encode(bytes)),
                    },
                }
            }

            /// Makes it from a path.
            pub fn from_path(path: &Path) -> Self {
                Self::from_bytes(path.as_os_str().as_bytes())
            }

            /// The bytes. Base64 that cannot be read counts as absent.
            pub fn to_bytes(&self) -> Vec<u8> {
                self.$bytes
                    .as_ref()
                    .and_then(|bytes| BASE64.decode(bytes.as_bytes()).ok())
                    .unwrap_or_else(|| self.$text.clone().into_bytes())
            }

            /// The path.
            pub fn to_path(&self) -> PathBuf {
                PathBuf::from(OsStr::from_bytes(&self.to_bytes()))
            }
        }
    };
}

text_type!(
    /// A path: `path`, and `path_bytes` when it is not UTF-8.
    TextPath, path, path_bytes
);
text_type!(
    /// The root of a space: `root`, and `root_bytes` when it is not UTF-8.
    TextRoot, root, root_bytes
);

/// Bytes as base64 text.
pub(super) mod base64_bytes {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        bytes: &[u8],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64
            .decode(text.as_bytes())
            .map_err(|_| serde::de::Error::custom("bytes are given in base64"))
    }
}

/// A path in a request: plain text, or an object as [`TextPath`] for any bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PathArg {
    /// UTF-8.
    Text(String),
    /// Any bytes.
    Full(TextPath),
}

/// Why a path in a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathArgError {
    /// The bytes are not base64.
    #[error("path_bytes is not base64: {0}")]
    NotBase64(String),
    /// The path does not start at the root.
    #[error("not an absolute path: {0}")]
    NotAbsolute(String),
    /// The path has a NUL byte in it.
    #[error("a path with a NUL byte: {0}")]
    Nul(String),
}

impl PathArg {
    /// Wraps a path as it is.
    pub fn from_path(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Full(TextPath::from_path(path)),
        }
    }

    /// The path, absolute or not.
    ///
    /// # Errors
    /// If the bytes cannot be read or hold a NUL.
    pub fn to_path(&self) -> Result<PathBuf, PathArgError> {
        let bytes = match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Full(TextPath {
                path,
                path_bytes: None,
            }) => path.clone().into_bytes(),
            Self::Full(TextPath {
                path_bytes: Some(bytes),
                ..
            }) => BASE64
                .decode(bytes.as_bytes())
                .map_err(|_| PathArgError::NotBase64(bytes.clone()))?,
        };
        if bytes.contains(&0) {
            return Err(PathArgError::Nul(
                String::from_utf8_lossy(&bytes).into_owned(),
            ));
        }
        Ok(PathBuf::from(OsStr::from_bytes(&bytes)))
    }

    /// The path, which must be absolute.
    ///
    /// # Errors
    /// Those of [`Self::to_path`], and if the path is not absolute.
    pub fn to_absolute(&self) -> Result<PathBuf, PathArgError> {
        let path = self.to_path()?;
        if path.is_absolute() {
            Ok(path)
        } else {
            Err(PathArgError::NotAbsolute(path.display().to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_json() {
        for bytes in [
            &b"plain"[..],
            b"new\nline \"q\"",
            b"\xff\xfe\x80",
            "żółw".as_bytes(),
            b"",
        ] {
            let text = TextPath::from_bytes(bytes);
            let json = serde_json::to_string(&text).expect("serializes");
            let back: TextPath = serde_json::from_str(&json).expect("reads");
            assert_eq!(back.to_bytes(), bytes);
            assert_eq!(
                text.path_bytes.is_some(),
                std::str::from_utf8(bytes).is_err()
            );

            let arg = PathArg::from_path(&text.to_path());
            let json = serde_json::to_string(&arg).expect("serializes");
            let back: PathArg = serde_json::from_str(&json).expect("reads");
            assert_eq!(back.to_path(), Ok(text.to_path()));
        }
    }

    #[test]
    fn a_request_may_give_the_path_as_a_plain_string() {
        let arg: PathArg = serde_json::from_str("\"/a/b\"").expect("reads");
        assert_eq!(arg.to_absolute(), Ok(PathBuf::from("/a/b")));
    }

    #[test]
    fn bad_paths_are_refused() {
        let bad = |json: &str| {
            serde_json::from_str::<PathArg>(json)
                .expect("reads")
                .to_absolute()
                .is_err()
        };
        assert!(bad("\"a/b\""));
        assert!(bad("\"\""));
        assert!(bad("\"/a\\u0000b\""));
        assert!(bad(r#"{"path":"/a","path_bytes":"%%"}"#));
    }
}

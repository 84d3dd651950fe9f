//! How long a space keeps what nothing shows any more, as its settings document says.

use std::fmt;
use std::str::FromStr;

use crate::documents::{Setting, Settings};

const TEXT: &str = "keep/text";
const REST: &str = "keep/rest";
const PERCENT: &str = "keep/percent";
/// Most days that can be said: a thousand years.
const DAYS_MAX: u32 = 365_000;

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepFor {
    /// Without end.
    Forever,
    /// Days, 0 included.
    Days(u32),
}

/// Why words are no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither `forever` nor a number of days up to {DAYS_MAX}, such as 30d")]
pub struct KeepPolicyError;

impl KeepFor {
    /// In milliseconds; `None` without end.
    pub(crate) fn ms(self) -> Option<u64> {
        match self {
            Self::Forever => None,
            Self::Days(days) => Some(u64::from(days) * 86_400_000),
        }
    }
}

impl fmt::Display for KeepFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => write!(f, "forever"),
            Self::Days(days) => write!(f, "{days}d"),
        }
    }
}

impl FromStr for KeepFor {
    type Err = KeepPolicyError;

    fn from_str(text: &str) -> Result<Self, KeepPolicyError> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let digits = text.strip_suffix('d').unwrap_or(text);
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(KeepPolicyError);
        }
        let days: Result<u32, _> = digits.parse();
        match days {
            Ok(days) if days <= DAYS_MAX => Ok(Self::Days(days)),
            _ => Err(KeepPolicyError),
        }
    }
}

/// What a space keeps of what nothing shows any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepPolicy {
    /// Texts of up to 1 MiB.
    pub text: KeepFor,
    /// All else.
    pub rest: KeepFor,
    /// Of the disk of a device, what all else may take. 0 to 100.
    pub percent: u8,
}

impl Default for KeepPolicy {
    fn default() -> Self {
        Self {
            text: KeepFor::Forever,
            rest: KeepFor::Days(30),
            percent: 10,
        }
    }
}

impl KeepPolicy {
    /// Reads it from a settings document; what is not there, or makes no sense, is as by default.
    pub fn from_settings(settings: &Settings) -> Self {
        let text = |key: &str| match settings.get(key) {
            Some(Setting::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let default = Self::default();
        let length = |key, default| text(key).and_then(|t| t.parse().ok()).unwrap_or(default);
        let percent = text(PERCENT).and_then(|text| text.parse().ok());
        Self {
            text: length(TEXT, default.text),
            rest: length(REST, default.rest),
            percent: percent.filter(|p| *p <= 100).unwrap_or(default.percent),
        }
    }

    /// As values of a settings document.
    pub fn to_settings(self) -> Settings {
        let text = |value: &dyn fmt::Display| Setting::Text(value.to_string());
        Settings::from([
            (TEXT.to_owned(), text(&self.text)),
            (REST.to_owned(), text(&self.rest)),
            (PERCENT.to_owned(), text(&self.percent)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_survives_the_settings_document() {
        let policy = KeepPolicy {
            text: KeepFor::Days(90),
            rest: KeepFor::Forever,
            percent: 0,
        };
        assert_eq!(KeepPolicy::from_settings(&policy.to_settings()), policy);
        assert_eq!(
            KeepPolicy::from_settings(&Settings::new()),
            KeepPolicy::default()
        );
    }

    #[test]
    fn nonsense_of_others_is_the_default() {
        for nonsense in [
            "",
            "-1",
            "+3",
            "400000",
            "1e3",
            "for ever",
            "30 d",
            "99999999999999",
        ] {
            let value = Setting::Text(nonsense.into());
            let keys = [TEXT, REST].map(|key| (key.to_owned(), value.clone()));
            let settings = Settings::from(keys);
            assert_eq!(
                KeepPolicy::from_settings(&settings),
                KeepPolicy::default(),
                "{nonsense:?}"
            );
            assert_eq!(nonsense.parse::<KeepFor>(), Err(KeepPolicyError));
        }
        for nonsense in [Setting::Text("101".into()), Setting::Flag(true)] {
            let settings = Settings::from([(PERCENT.to_owned(), nonsense)]);
            assert_eq!(KeepPolicy::from_settings(&settings).percent, 10);
        }
    }

    #[test]
    fn lengths_are_read_as_they_are_written() {
        assert_eq!("forever".parse(), Ok(KeepFor::Forever));
        assert_eq!("30".parse(), Ok(KeepFor::Days(30)));
        assert_eq!("0d".parse(), Ok(KeepFor::Days(0)));
        assert_eq!(KeepFor::Days(7).to_string(), "7d");
    }
}

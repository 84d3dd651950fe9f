//! Which format a file is in, by its name.

use super::value::Reading;
use super::{ini, json, layout, toml, yaml};

/// How a file is merged. A wrong guess is harmless: the parser refuses and lines are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Toml,
    Yaml,
    Ini(ini::Dialect),
    Lines,
}

const JSON_NAMES: &[&str] = &[
    ".babelrc",
    ".eslintrc",
    ".prettierrc",
    ".swcrc",
    ".jshintrc",
    ".stylelintrc",
    ".luarc",
    "composer.lock",
    "flake.lock",
    "pipfile.lock",
    "deno.lock",
];
const JSON_ENDINGS: &[&str] = &[
    "json",
    "jsonc",
    "json5",
    "geojson",
    "webmanifest",
    "code-workspace",
    "code-snippets",
    "sublime-settings",
    "sublime-keymap",
    "sublime-project",
    "ipynb",
    "topojson",
    "har",
];
const TOML_NAMES: &[&str] = &[
    "cargo.lock",
    "poetry.lock",
    "uv.lock",
    "pipfile",
    "gopkg.lock",
    "pdm.lock",
];
const YAML_NAMES: &[&str] = &[
    ".clang-format",
    ".clang-tidy",
    ".clangd",
    ".gemrc",
    ".yamllint",
];
const GIT_NAMES: &[&str] = &[".gitconfig", "gitconfig", ".gitmodules"];
const SYSTEMD_ENDINGS: &[&str] = &[
    "service",
    "socket",
    "timer",
    "target",
    "mount",
    "automount",
    "path",
    "slice",
    "scope",
    "swap",
    "network",
    "netdev",
    "link",
    "nspawn",
    "container",
    "volume",
    "kube",
    "pod",
    "build",
    "image",
    "desktop",
    "directory",
    "theme",
];
const INI_NAMES: &[&str] = &[
    ".hgrc",
    ".pylintrc",
    "pylintrc",
    ".flake8",
    ".coveragerc",
    ".pypirc",
    "pip.conf",
    ".my.cnf",
    "kdeglobals",
    "mimeapps.list",
    ".wslconfig",
    "wsl.conf",
    ".bumpversion.cfg",
];
const INI_ENDINGS: &[&str] = &["ini", "cfg", "cnf", "inf", "reg"];

impl Format {
    /// The format of a file with this name, by well-known names and endings.
    pub(super) fn of(name: &[u8]) -> Self {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let ending = match name.rsplit_once('.') {
            Some((_, ending)) => ending,
            None => "",
        };
        let named = |names: &[&str]| names.contains(&name.as_str());
        let ends = |endings: &[&str]| endings.contains(&ending);
        if named(JSON_NAMES) || ends(JSON_ENDINGS) {
            Self::Json
        } else if named(TOML_NAMES) || ends(&["toml"]) {
            Self::Toml
        } else if named(YAML_NAMES) || ends(&["yaml", "yml"]) {
            Self::Yaml
        } else if named(GIT_NAMES) || ends(&["gitconfig"]) {
            Self::Ini(ini::Dialect::Git)
        } else if named(&[".editorconfig"]) || ends(SYSTEMD_ENDINGS) {
            Self::Ini(ini::Dialect::Plain)
        } else if named(INI_NAMES) || ends(INI_ENDINGS) {
            Self::Ini(ini::Dialect::Indented)
        } else {
            Self::Lines
        }
    }

    /// Reads a text; `None` where the format's parser refuses it.
    pub(super) fn read(self, text: &str) -> Option<Reading> {
        match self {
            Self::Json => json::read(text),
            Self::Toml => toml::read(text),
            Self::Yaml => yaml::read(text),
            Self::Ini(dialect) => ini::read(text, dialect),
            Self::Lines => Some(Reading {
                grade: 0,
                value: None,
            }),
        }
    }

    /// Takes a text apart into entries; `None` where it cannot be told where they begin and end.
    pub(super) fn layout(self, text: &str) -> Option<layout::Entry<'_>> {
        match self {
            Self::Json => json::layout(text),
            Self::Toml => toml::layout(text),
            Self::Yaml => yaml::layout(text),
            Self::Ini(dialect) => ini::layout(text, dialect),
            Self::Lines => None,
        }
    }

    /// Where new entries may be put.
    pub(super) fn placing(self) -> layout::Placing {
        match self {
            Self::Toml | Self::Ini(_) => layout::Placing::ValuesFirst,
            Self::Json | Self::Yaml | Self::Lines => layout::Placing::Anywhere,
        }
    }
}

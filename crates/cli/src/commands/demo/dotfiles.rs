//! The user's own dotfiles, copied: a small and careful choice of them.
//!
//! Copied are well-known settings of shells, editors and the like, and small text files
//! beneath `.config`. Left out is whatever may hold a secret, by name or by content.
//! Nothing of the user's is ever written.

use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;

/// Files straight in the user's directory that are settings.
const NAMES: [&str; 26] = [
    ".bash_aliases",
    ".bash_logout",
    ".bash_profile",
    ".bashrc",
    ".clang-format",
    ".dircolors",
    ".editorconfig",
    ".emacs",
    ".gdbinit",
    ".gitattributes",
    ".gitconfig",
    ".gitignore",
    ".gitignore_global",
    ".gvimrc",
    ".inputrc",
    ".nanorc",
    ".profile",
    ".rustfmt.toml",
    ".screenrc",
    ".tmux.conf",
    ".vimrc",
    ".Xresources",
    ".zlogin",
    ".zprofile",
    ".zshenv",
    ".zshrc",
];

/// Parts of names that hint at secrets, at what others wrote, or at what is no setting.
const NAMES_LEFT_OUT: [&str; 40] = [
    "1password",
    "account",
    "auth",
    "aws",
    "azure",
    "bitwarden",
    "brave",
    "cache",
    "cert",
    "chrom",
    "cookie",
    "cred",
    "discord",
    "docker",
    "firefox",
    "gcloud",
    "gh",
    "gnupg",
    "hist",
    "hosts",
    "keepass",
    "key",
    "kube",
    "log",
    "mail",
    "mozilla",
    "npm",
    "oauth",
    "opera",
    "pass",
    "pacsync",
    "rclone",
    "recent",
    "secret",
    "session",
    "signal",
    "ssh",
    "token",
    "vpn",
    "wallet",
];

/// Parts of contents that hint at secrets.
const WORDS_LEFT_OUT: [&str; 9] = [
    "-----begin",
    "api_key",
    "apikey",
    "authorization",
    "bearer ",
    "passphrase",
    "passw",
    "secret",
    "token",
];

const FILE_LEN_MAX: u64 = 128 << 10;
const FILES_MAX: usize = 300;
const BYTES_MAX: u64 = 4 << 20;
/// How deep `.config` is looked through.
const DEPTH_MAX: usize = 3;
/// Entries of `.config` that are looked at.
const LOOKS_MAX: usize = 5_000;

/// What stands in the `home` space at the start.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Dotfiles {
    /// Files of the user, copied.
    pub(super) copied: usize,
    /// Files of the user that may hold a secret.
    pub(super) left_out: usize,
    /// Files made up, because the user has none.
    pub(super) generated: usize,
    /// What to track, relative to the root.
    #[serde(skip)]
    pub(super) tracked: Vec<PathBuf>,
}

/// Copies what there is in the user's directory, or makes some files.
pub(super) fn fill(user: Option<&Path>, to: &Path) -> io::Result<Dotfiles> {
    let mut copying = Copying {
        to,
        bytes: 0,
        done: Dotfiles::default(),
    };
    if let Some(user) = user {
        for name in NAMES {
            // Many keep them as links into a directory of their own.
            copying.copy(&user.join(name), Path::new(name), OFlags::empty())?;
        }
        let mut looks = 0;
        copying.copy_dir(user, Path::new(".config"), 0, &mut looks)?;
    }
    if copying.done.copied == 0 {
        copying.generate()?;
    }
    let Copying { mut done, .. } = copying;
    done.tracked = std::fs::read_dir(to)?
        .map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())))
        .collect::<io::Result<_>>()?;
    done.tracked.sort();
    Ok(done)
}

struct Copying<'a> {
    to: &'a Path,
    bytes: u64,
    done: Dotfiles,
}

impl Copying<'_> {
    /// Copies what is fit for it beneath a directory, never following a link.
    fn copy_dir(
        &mut self,
        user: &Path,
        dir: &Path,
        depth: usize,
        looks: &mut usize,
    ) -> io::Result<()> {
        // What cannot be read is not copied.
        let Ok(entries) = std::fs::read_dir(user.join(dir)) else {
            return Ok(());
        };
        let mut names: Vec<_> = entries.flatten().collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        for entry in names {
            *looks += 1;
            if *looks > LOOKS_MAX {
                break;
            }
            let path = dir.join(entry.file_name());
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let doubtful = hints_at_secret(&path);
            if kind.is_dir() && depth < DEPTH_MAX && !doubtful {
                self.copy_dir(user, &path, depth + 1, looks)?;
            } else if kind.is_file() && doubtful {
                self.done.left_out += 1;
            } else if kind.is_file() {
                self.copy(&user.join(&path), &path, OFlags::NOFOLLOW)?;
            }
        }
        Ok(())
    }

    /// Copies one file if it is small text without a hint at a secret.
    fn copy(&mut self, from: &Path, path: &Path, flags: OFlags) -> io::Result<()> {
        let Some((text, mode)) = read_text(from, flags) else {
            return Ok(());
        };
        let len = text.len() as u64;
        if self.done.copied >= FILES_MAX || self.bytes + len > BYTES_MAX {
            return Ok(());
        }
        let lower = text.to_lowercase();
        if WORDS_LEFT_OUT.iter().any(|word| lower.contains(word)) {
            self.done.left_out += 1;
            return Ok(());
        }
        self.write(path, &text, mode)?;
        self.bytes += len;
        self.done.copied += 1;
        Ok(())
    }

    fn generate(&mut self) -> io::Result<()> {
        let files = [
            (".profile", "export EDITOR=vi\n", 0o644),
            (".shellrc", "alias ll='ls -l'\nset -o vi\n", 0o644),
            (
                ".config/editor/settings.toml",
                "tabs = 4\ntheme = \"dark\"\n",
                0o644,
            ),
            (".config/editor/words.txt", "żółw\nслово\n言葉\n", 0o600),
            (
                ".config/prompt/prompt.sh",
                "#!/bin/sh\nprintf '%s ' \"$PWD\"\n",
                0o755,
            ),
        ];
        for (path, text, mode) in files {
            self.write(Path::new(path), text, mode)?;
            self.done.generated += 1;
        }
        Ok(())
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> io::Result<()> {
        let to = self.to.join(path);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&to, text)?;
        // Readable for the demo itself, whatever it was.
        let mode = (mode & 0o777) | 0o600;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode))
    }
}

/// A small text file and its mode; `None` for anything else.
fn read_text(path: &Path, flags: OFlags) -> Option<(String, u32)> {
    // Opening a pipe would wait for its writer.
    let flags = i32::try_from((flags | OFlags::NONBLOCK).bits()).ok()?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .ok()?;
    let found = file.metadata().ok()?;
    if !found.is_file() || found.len() > FILE_LEN_MAX {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then(|| (text, found.permissions().mode()))
}

fn hints_at_secret(path: &Path) -> bool {
    let Some(name) = path.file_name() else {
        return true;
    };
    let name = name.to_string_lossy().to_lowercase();
    NAMES_LEFT_OUT.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("creates");
        std::fs::write(path, text).expect("writes");
    }

    #[test]
    fn settings_are_copied_and_secrets_are_not() {
        let user = tempfile::tempdir().expect("a directory");
        let to = tempfile::tempdir().expect("a directory");
        put(user.path(), ".bashrc", "alias x=y\n");
        put(user.path(), ".profile", "export GITHUB_TOKEN=abc\n");
        put(user.path(), ".ssh/id_ed25519", "key\n");
        put(user.path(), ".bash_history", "ls\n");
        put(user.path(), ".config/editor/settings", "tabs = 4\n");
        put(user.path(), ".config/gh/config.yml", "a: b\n");
        put(user.path(), ".config/app/credentials.json", "{}\n");
        put(user.path(), ".config/app/data", "a\0b");
        put(user.path(), ".config/app/conf", "Password: x\n");
        symlink("/etc/passwd", user.path().join(".config/app/link")).expect("links");
        let done = fill(Some(user.path()), to.path()).expect("copies");
        assert_eq!((done.copied, done.left_out, done.generated), (2, 3, 0));
        assert_eq!(done.tracked, [Path::new(".bashrc"), Path::new(".config")]);
        assert!(to.path().join(".config/editor/settings").is_file());
        assert!(!to.path().join(".config/app").exists());
    }

    #[test]
    fn without_any_some_are_made() {
        let (user, to) = (tempfile::tempdir(), tempfile::tempdir());
        let (user, to) = (user.expect("a directory"), to.expect("a directory"));
        for user in [Some(user.path()), None] {
            let done = fill(user, to.path()).expect("makes");
            assert_eq!((done.copied, done.generated), (0, 5));
        }
    }
}

//! Paths as the user types them, and the home.

use std::path::{Component, Path, PathBuf};

use pacsync_daemon::control::CommandError;
use pacsync_daemon::control::api::PathArg;

use crate::error::CliError;

/// Makes a path absolute. A symlink at its end is kept; `..` goes where the
/// file system says, not where the text does.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    let failed =
        |error: &std::io::Error| CliError::io(format!("cannot use {}", path.display()), error);
    let made = std::path::absolute(path).map_err(|error| failed(&error))?;
    if !made.components().any(|part| part == Component::ParentDir) {
        // A slash at the end is gone then, too.
        return Ok(made.components().collect());
    }
    match (made.parent(), made.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map(|parent| parent.join(name)),
        _ => made.canonicalize(),
    }
    .map_err(|error| failed(&error))
}

/// Makes the path of something absolute that may be gone with the directories that it was in. There
/// `..` goes where the text says.
pub(crate) fn absolute_deleted(path: &Path) -> Result<PathBuf, CliError> {
    absolute(path).or_else(|_| {
        let made = std::path::absolute(path)
            .map_err(|error| CliError::io(format!("cannot use {}", path.display()), &error))?;
        let mut clean = PathBuf::new();
        for part in made.components() {
            match part {
                Component::ParentDir => {
                    clean.pop();
                }
                other => clean.push(other),
            }
        }
        Ok(clean)
    })
}

/// Makes paths absolute, for a request.
pub(crate) fn arguments(paths: &[PathBuf]) -> Result<Vec<PathArg>, CliError> {
    paths
        .iter()
        .map(|path| Ok(PathArg::from_path(&absolute(path)?)))
        .collect()
}

/// Finds the home: what was given, or the platform's place for data.
pub(crate) fn home(given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = given
        .filter(|given| !given.as_os_str().is_empty())
        .or_else(|| {
            default_home(
                var("XDG_DATA_HOME").map(PathBuf::from),
                var("HOME").map(PathBuf::from),
            )
        });
    let home = home.ok_or_else(|| {
        CommandError::failed(
            "there is no place for the home: neither HOME nor XDG_DATA_HOME is set",
        )
        .with_hint("name one with --home DIR")
    })?;
    absolute_home(&home)
}

/// The home need not be there yet.
fn absolute_home(home: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(home)
        .map(|home| home.components().collect())
        .map_err(|error| CliError::io(format!("cannot use {}", home.display()), &error))
}

fn default_home(data: Option<PathBuf>, user: Option<PathBuf>) -> Option<PathBuf> {
    // A relative XDG_DATA_HOME counts as unset, as its specification says.
    let data = data.filter(|data| data.is_absolute());
    let user = user.filter(|user| user.is_absolute());
    let data = data.or_else(|| {
        user.map(|user| {
            if cfg!(target_os = "macos") {
                user.join("Library/Application Support")
            } else {
                user.join(".local/share")
            }
        })
    });
    data.map(|data| data.join("pacsync"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn the_home_is_where_the_platform_keeps_data() {
        let found = |data: Option<&str>, user: Option<&str>| {
            default_home(data.map(PathBuf::from), user.map(PathBuf::from))
        };
        assert_eq!(
            found(None, Some("/u")),
            Some("/u/.local/share/pacsync".into())
        );
        assert_eq!(found(Some("/d"), Some("/u")), Some("/d/pacsync".into()));
        assert_eq!(
            found(Some("d"), Some("/u")),
            Some("/u/.local/share/pacsync".into())
        );
        assert_eq!(found(None, None), None);
    }

    #[test]
    fn paths_are_made_absolute_with_their_bytes() {
        let name = OsStr::from_bytes(b"a\xff\nb");
        let here = std::env::current_dir().expect("a directory");
        assert_eq!(
            absolute(Path::new(name)).expect("absolute"),
            here.join(name)
        );
        assert_eq!(
            absolute(Path::new("/x/./y/")).expect("absolute"),
            Path::new("/x/y")
        );
    }

    #[test]
    fn dot_dot_goes_where_the_file_system_says() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().canonicalize().expect("there");
        std::fs::create_dir_all(base.join("far/deep")).expect("creates");
        std::os::unix::fs::symlink(base.join("far/deep"), base.join("link")).expect("links");
        let found = absolute(&base.join("link/../x")).expect("absolute");
        assert_eq!(found, base.join("far/x"));
        let found = absolute(&base.join("link")).expect("absolute");
        assert_eq!(found, base.join("link"));
    }
}

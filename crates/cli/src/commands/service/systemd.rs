//! A systemd user unit. Where no user manager runs, unit and link are written
//! all the same, and the next login finds them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pacsync_daemon::control::CommandError;

use super::{Program, Running, ServiceReport, user_home};
use crate::error::CliError;
use crate::launch::ENVIRONMENT;

const UNIT: &str = "pacsync.service";

/// Where the unit goes.
#[derive(Debug)]
pub(super) struct Place {
    /// `~/.config/systemd/user`
    units: PathBuf,
}

/// Whether the user's systemd runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Runs,
    Absent,
}

impl Place {
    pub(super) fn find() -> Result<Self, CliError> {
        let config = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|config| config.is_absolute());
        let config = match config {
            Some(config) => config,
            None => user_home()?.join(".config"),
        };
        Ok(Self::below(&config))
    }

    fn below(config: &Path) -> Self {
        Self {
            units: config.join("systemd/user"),
        }
    }

    /// The file that describes the service.
    pub(super) fn file(&self) -> PathBuf {
        self.unit()
    }

    /// Whether a service is there that starts the daemon of another home.
    pub(super) fn is_of_another_home(&self, program: &Program) -> Result<bool, CliError> {
        match fs::read_to_string(self.unit()) {
            Ok(unit) => Ok(!unit.contains(&of_home(program)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(CliError::io(
                format!("cannot read {}", self.unit().display()),
                &error,
            )),
        }
    }

    pub(super) fn install(
        &self,
        program: &Program,
        running: Running,
    ) -> Result<ServiceReport, CliError> {
        let unit = unit(program)?;
        self.write(&unit)?;
        let mut notes = Vec::new();
        match manager() {
            Manager::Absent => notes.push(
                "no systemd user manager runs here: unit and link are written, and the daemon \
                 starts at the next login under one"
                    .into(),
            ),
            Manager::Runs => {
                systemctl(&["daemon-reload"])?;
                match running {
                    Running::No => systemctl(&["start", UNIT])?,
                    Running::Yes => notes.push(format!(
                        "a daemon runs already and goes on; hand it over with `pacsync down` and \
                         `systemctl --user start {UNIT}`"
                    )),
                }
            }
        }
        self.status(notes)
    }

    pub(super) fn uninstall(&self) -> Result<ServiceReport, CliError> {
        let manager = manager();
        let was_there = self.unit().symlink_metadata().is_ok();
        if manager == Manager::Runs && was_there {
            systemctl(&["stop", UNIT])?;
        }
        remove(&self.link())?;
        remove(&self.unit())?;
        if manager == Manager::Runs && was_there {
            systemctl(&["daemon-reload"])?;
        }
        self.status(Vec::new())
    }

    pub(super) fn status(&self, notes: Vec<String>) -> Result<ServiceReport, CliError> {
        let manager = manager();
        let active = (manager == Manager::Runs).then(|| systemctl(&["is-active", UNIT]).is_ok());
        Ok(ServiceReport {
            path: self.unit().display().to_string(),
            installed: self.unit().is_file(),
            enabled: self.link().symlink_metadata().is_ok(),
            active,
            manager: manager == Manager::Runs,
            notes,
        })
    }

    fn unit(&self) -> PathBuf {
        self.units.join(UNIT)
    }

    /// What `systemctl enable` makes for `WantedBy=default.target`.
    fn link(&self) -> PathBuf {
        self.units.join("default.target.wants").join(UNIT)
    }

    fn write(&self, unit: &str) -> Result<(), CliError> {
        let path = self.unit();
        let failed = |path: &Path, error: &io::Error| {
            CliError::io(format!("cannot write {}", path.display()), error)
        };
        let link = self.link();
        if let Some(wants) = link.parent() {
            fs::create_dir_all(wants).map_err(|error| failed(wants, &error))?;
        }
        fs::write(&path, unit).map_err(|error| failed(&path, &error))?;
        remove(&link)?;
        std::os::unix::fs::symlink(&path, &link).map_err(|error| failed(&link, &error))
    }
}

fn remove(path: &Path) -> Result<(), CliError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CliError::io(
            format!("cannot remove {}", path.display()),
            &error,
        )),
        _ => Ok(()),
    }
}

/// The manager listens on a socket in the user's runtime directory.
fn manager() -> Manager {
    let socket = std::env::var_os("XDG_RUNTIME_DIR")
        .map(|dir| PathBuf::from(dir).join("systemd/private"))
        .filter(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok());
    if socket.is_some() {
        Manager::Runs
    } else {
        Manager::Absent
    }
}

fn systemctl(args: &[&str]) -> Result<(), CliError> {
    let shown = format!("systemctl --user {}", args.join(" "));
    let done = Command::new("systemctl")
        .arg("--user")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| CliError::io(format!("cannot run `{shown}`"), &error))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(
        CommandError::failed(format!("`{shown}` failed: {}", done.status))
            .with_items(said.lines())
            .with_hint(format!("see `journalctl --user -u {UNIT}`"))
            .into(),
    )
}

/// The text of the unit.
fn unit(program: &Program) -> Result<String, CliError> {
    // In the executable a dollar stands for itself, in an argument it is doubled.
    let executable = word(&program.executable, "$")?;
    let of_home = of_home(program)?;
    let environment: String = ENVIRONMENT
        .iter()
        .map(|(name, value)| format!("Environment={name}={value}\n"))
        .collect();
    Ok(format!(
        "[Unit]\n\
         Description=pacsync: keeps this device's pac in step with the others\n\
         \n\
         [Service]\n\
         Type=exec\n\
         {environment}\
         ExecStart={executable}{of_home}\n\
         Restart=on-failure\n\
         RestartSec=5\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n"
    ))
}

/// The arguments by which a unit tells whose it is.
fn of_home(program: &Program) -> Result<String, CliError> {
    Ok(format!(" --home {} daemon", word(&program.home, "$$")?))
}

/// A path as one quoted word of a command line in a unit.
fn word(path: &Path, dollar: &str) -> Result<String, CliError> {
    let text = path
        .to_str()
        .filter(|text| !text.chars().any(char::is_control))
        .ok_or_else(|| {
            CommandError::failed(format!("{} cannot stand in a systemd unit", path.display()))
                .with_hint("use a path of plain text")
        })?;
    let mut word = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => word.extend(['\\', c]),
            '%' => word.push_str("%%"),
            '$' => word.push_str(dollar),
            c => word.push(c),
        }
    }
    word.push('"');
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            executable: "/opt/my apps/pacsync".into(),
            home: "/h/50% $x \"y\"\\".into(),
        }
    }

    #[test]
    fn the_unit_starts_the_daemon_of_its_home() {
        let unit = unit(&program()).expect("made");
        assert!(
            unit.contains(
                "\nExecStart=\"/opt/my apps/pacsync\" --home \"/h/50%% $$x \\\"y\\\"\\\\\" daemon\n"
            ),
            "{unit}"
        );
        assert!(
            unit.contains("\nEnvironment=MALLOC_ARENA_MAX=1\n"),
            "{unit}"
        );
        assert!(unit.ends_with("[Install]\nWantedBy=default.target\n"));
    }

    #[test]
    fn a_line_break_never_gets_into_a_unit() {
        let program = Program {
            home: "/h\nExecStartPre=/bin/x".into(),
            ..program()
        };
        assert!(unit(&program).is_err());
    }

    #[test]
    fn the_link_leads_to_the_unit_and_both_go_again() {
        let config = tempfile::tempdir().expect("a directory");
        let place = Place::below(config.path());
        for _ in 0..2 {
            place.write("text").expect("writes");
            assert_eq!(fs::read_link(place.link()).expect("a link"), place.unit());
            assert_eq!(
                fs::read_to_string(place.link()).expect("leads there"),
                "text"
            );
        }
        for _ in 0..2 {
            remove(&place.link()).expect("removes");
            remove(&place.unit()).expect("removes");
        }
        assert!(!place.unit().exists());
    }
}

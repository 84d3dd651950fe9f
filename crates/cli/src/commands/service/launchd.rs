//! A launchd agent of the user.

#[cfg(target_os = "macos")]
use std::path::Path;
#[cfg(target_os = "macos")]
use std::process::{Command, Stdio};

use pacsync_daemon::control::CommandError;

use super::Program;
#[cfg(target_os = "macos")]
use super::{Running, ServiceReport, user_home};
use crate::error::CliError;

const LABEL: &str = "io.pacsync.daemon";

/// Where the agent goes.
#[cfg(target_os = "macos")]
#[derive(Debug)]
pub(super) struct Place {
    plist: std::path::PathBuf,
}

#[cfg(target_os = "macos")]
impl Place {
    pub(super) fn find() -> Result<Self, CliError> {
        let agents = user_home()?.join("Library/LaunchAgents");
        Ok(Self {
            plist: agents.join(format!("{LABEL}.plist")),
        })
    }

    /// The file that describes the service.
    pub(super) fn file(&self) -> std::path::PathBuf {
        self.plist.clone()
    }

    /// Whether a service is there that starts the daemon of another home.
    pub(super) fn is_of_another_home(&self, program: &Program) -> Result<bool, CliError> {
        let home = format!("<string>{}</string>", text(&program.home)?);
        match std::fs::read_to_string(&self.plist) {
            Ok(plist) => Ok(!plist.contains(&home)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(CliError::io(
                format!("cannot read {}", self.plist.display()),
                &error,
            )),
        }
    }

    pub(super) fn install(
        &self,
        program: &Program,
        running: Running,
    ) -> Result<ServiceReport, CliError> {
        let text = plist(program)?;
        let failed = |error| CliError::io(format!("cannot write {}", self.plist.display()), &error);
        if let Some(agents) = self.plist.parent() {
            std::fs::create_dir_all(agents).map_err(failed)?;
        }
        std::fs::write(&self.plist, text).map_err(failed)?;
        let mut notes = Vec::new();
        match running {
            Running::No => launchctl(&["bootstrap".as_ref(), domain().as_ref(), &self.plist])?,
            Running::Yes => notes.push(
                "a daemon runs already and goes on; the agent starts at the next login".into(),
            ),
        }
        self.status(notes)
    }

    pub(super) fn uninstall(&self) -> Result<ServiceReport, CliError> {
        if loaded() {
            launchctl(&["bootout".as_ref(), service().as_ref()])?;
        }
        match std::fs::remove_file(&self.plist) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CliError::io(
                format!("cannot remove {}", self.plist.display()),
                &error,
            )),
            _ => self.status(Vec::new()),
        }
    }

    pub(super) fn status(&self, notes: Vec<String>) -> Result<ServiceReport, CliError> {
        let installed = self.plist.is_file();
        Ok(ServiceReport {
            path: self.plist.display().to_string(),
            installed,
            // An agent in this directory is loaded at each login.
            enabled: installed,
            active: Some(loaded()),
            manager: true,
            notes,
        })
    }
}

#[cfg(target_os = "macos")]
fn domain() -> String {
    format!("gui/{}", rustix::process::getuid().as_raw())
}

#[cfg(target_os = "macos")]
fn service() -> String {
    format!("{}/{LABEL}", domain())
}

#[cfg(target_os = "macos")]
fn loaded() -> bool {
    launchctl(&["print".as_ref(), service().as_ref()]).is_ok()
}

#[cfg(target_os = "macos")]
fn launchctl(args: &[&Path]) -> Result<(), CliError> {
    let done = Command::new("launchctl")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| CliError::io("cannot run launchctl", &error))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(
        CommandError::failed(format!("launchctl failed: {}", done.status))
            .with_items(said.lines())
            .with_hint("see `launchctl print` for the state of the agent")
            .into(),
    )
}

/// The text of the property list.
fn plist(program: &Program) -> Result<String, CliError> {
    let executable = text(&program.executable)?;
    let home = text(&program.home)?;
    Ok(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
         \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n\
         <dict>\n\
         \t<key>Label</key>\n\t<string>{LABEL}</string>\n\
         \t<key>ProgramArguments</key>\n\
         \t<array>\n\
         \t\t<string>{executable}</string>\n\
         \t\t<string>--home</string>\n\
         \t\t<string>{home}</string>\n\
         \t\t<string>daemon</string>\n\
         \t</array>\n\
         \t<key>RunAtLoad</key>\n\t<true/>\n\
         \t<key>KeepAlive</key>\n\
         \t<dict>\n\t\t<key>SuccessfulExit</key>\n\t\t<false/>\n\t</dict>\n\
         \t<key>StandardErrorPath</key>\n\t<string>{home}/daemon.log</string>\n\
         </dict>\n\
         </plist>\n"
    ))
}

/// A path as text of an XML element.
fn text(path: &std::path::Path) -> Result<String, CliError> {
    let text = path
        .to_str()
        .filter(|text| !text.chars().any(char::is_control))
        .ok_or_else(|| {
            CommandError::failed(format!(
                "{} cannot stand in a property list",
                path.display()
            ))
            .with_hint("use a path of plain text")
        })?;
    Ok(text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_starts_the_daemon_of_its_home() {
        let program = Program {
            executable: "/a/pacsync".into(),
            home: "/h/<&>".into(),
        };
        let text = plist(&program).expect("made");
        assert!(text.contains("<string>/h/&lt;&amp;&gt;</string>\n\t\t<string>daemon</string>"));
        let bad = Program {
            home: "/h\u{1}".into(),
            ..program
        };
        assert!(plist(&bad).is_err());
    }
}

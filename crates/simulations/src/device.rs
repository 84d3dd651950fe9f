//! A device for measurements: a home, a daemon of its own, and the command line to it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A running daemon in a directory of its own; ended on drop.
#[derive(Debug)]
pub struct Device {
    program: PathBuf,
    dir: PathBuf,
}

impl Device {
    /// Founds a pac in `dir` and starts its daemon.
    ///
    /// # Errors
    /// What the command said.
    pub fn found(program: &Path, dir: &Path, name: &str) -> Result<Self> {
        let device = Self {
            program: program.into(),
            dir: dir.into(),
        };
        std::fs::create_dir_all(device.root())?;
        device.run(&device.up_flags(&["up"], name))?;
        Ok(device)
    }

    /// Pairs a new device in `dir` with `host`.
    ///
    /// # Errors
    /// What the command said.
    pub fn join(program: &Path, dir: &Path, name: &str, host: &Self) -> Result<Self> {
        let device = Self {
            program: program.into(),
            dir: dir.into(),
        };
        std::fs::create_dir_all(device.root())?;
        let mut hosting = host
            .command(&["--json", "pair", "--yes"])
            .stdout(Stdio::piped())
            .spawn()
            .context("pair")?;
        let (code, address) = offered(&mut hosting)?;
        device.run(&device.up_flags(&["pair", &code, "--addr", &address, "--yes"], name))?;
        hosting.wait()?;
        Ok(device)
    }

    fn up_flags(&self, command: &[&str], name: &str) -> Vec<String> {
        let root = self.root().display().to_string();
        let flags = [
            "--root",
            &root,
            "--name",
            name,
            "--listen",
            "127.0.0.1:0",
            "--no-discovery",
        ];
        command
            .iter()
            .chain(&flags)
            .map(|word| (*word).to_owned())
            .collect()
    }

    /// Root of the `home` space.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--home")
            .arg(self.home())
            .args(words)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    /// What the command said on stderr.
    pub fn run<S: AsRef<str>>(&self, words: &[S]) -> Result<String> {
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let output = self.command(&words).output()?;
        if !output.status.success() {
            bail!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Process id of the daemon.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn pid(&self) -> Result<u64> {
        let status: Value = serde_json::from_str(&self.run(&["--json", "status"])?)?;
        status["pid"].as_u64().context("no pid in the status")
    }

    /// CPU time that the daemon has used, in clock ticks, and its resident memory in KiB now and
    /// at its peak.
    ///
    /// # Errors
    /// If the process is not there.
    pub fn usage(&self) -> Result<(u64, u64, u64)> {
        let pid = self.pid()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after = stat.rsplit(')').next().unwrap_or_default();
        let field = |n: usize| {
            after
                .split_whitespace()
                .nth(n)
                .and_then(|v| v.parse::<u64>().ok())
        };
        let ticks = field(11).unwrap_or(0) + field(12).unwrap_or(0);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .unwrap_or(0)
        };
        Ok((ticks, kib("VmRSS:"), kib("VmHWM:")))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Nothing to be done if it is gone already.
        let _ = self
            .command(&["down"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

fn offered(hosting: &mut Child) -> Result<(String, String)> {
    let stdout = hosting.stdout.as_mut().context("no stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    let code = event["code"].as_str().context("no code")?;
    let address = event["addresses"][0].as_str().context("no address")?;
    Ok((code.to_owned(), address.to_owned()))
}

//! What the demo prints: each step with its time, a table at the end.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::dotfiles::Dotfiles;
use crate::error::CliError;
use crate::output::Output;
use crate::text::{count, size, table};

/// Columns of a step before its time.
const TITLE_WIDTH: usize = 44;
/// Characters of a hash in the table.
const HASH_SHOWN: usize = 12;

/// One step that went well.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    step: String,
    took_ms: u64,
    detail: String,
}

/// Tells the steps as they go.
#[derive(Debug)]
pub(super) struct Narrator {
    output: Output,
    begun: Instant,
    mid_line: bool,
    steps: Vec<Step>,
}

impl Narrator {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            begun: Instant::now(),
            mid_line: false,
            steps: Vec::new(),
        }
    }

    /// Says a line between the steps.
    pub(super) fn say(&self, line: &str) -> Result<(), CliError> {
        if self.output.is_json() {
            return Ok(());
        }
        self.output.bytes(format!("{line}\n").as_bytes())
    }

    /// Does a step; `work` returns what there is to say about it.
    pub(super) fn step(
        &mut self,
        title: &str,
        work: impl FnOnce() -> Result<String, CliError>,
    ) -> Result<(), CliError> {
        self.print(&format!("  {title:<TITLE_WIDTH$}"))?;
        self.mid_line = true;
        let begun = Instant::now();
        let detail = work()?;
        let took = begun.elapsed();
        self.print(format!("{:>8}  {detail}", seconds(took)).trim_end())?;
        self.print("\n")?;
        self.mid_line = false;
        self.steps.push(Step {
            step: title.to_owned(),
            took_ms: millis(took),
            detail,
        });
        Ok(())
    }

    /// Ends the line of a step that was cut short.
    pub(super) fn break_line(&mut self) {
        if std::mem::take(&mut self.mid_line) {
            // What cut it short is what there is to tell.
            let _ = self.print("\n");
        }
    }

    fn print(&self, text: &str) -> Result<(), CliError> {
        if self.output.is_json() {
            return Ok(());
        }
        self.output.bytes(text.as_bytes())
    }

    /// Closes the book.
    pub(super) fn report(
        self,
        dotfiles: Dotfiles,
        devices: Vec<DeviceReport>,
        differences: Vec<String>,
    ) -> Report {
        let first = devices.first().map(|device| &device.hash);
        let same = devices.iter().all(|device| Some(&device.hash) == first);
        Report {
            identical: same && differences.is_empty(),
            took_ms: millis(self.begun.elapsed()),
            dir: None,
            dotfiles,
            steps: self.steps,
            devices,
            differences,
        }
    }
}

/// How a device stands at the end.
#[derive(Debug, Serialize)]
pub(super) struct DeviceReport {
    pub(super) name: String,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) conflicts: u64,
    pub(super) in_sync: bool,
    /// One hash of names, contents, modes and targets.
    pub(super) hash: String,
}

/// How it went.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    identical: bool,
    took_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<String>,
    dotfiles: Dotfiles,
    steps: Vec<Step>,
    devices: Vec<DeviceReport>,
    differences: Vec<String>,
}

impl Report {
    /// Whether everything has come together.
    pub(super) fn is_good(&self) -> bool {
        self.identical && self.devices.iter().all(|device| device.in_sync)
    }

    /// Prints the end of it.
    pub(super) fn finish(mut self, output: Output, kept: Option<&Path>) -> Result<bool, CliError> {
        self.dir = kept.map(|dir| dir.display().to_string());
        output.show(&self, Self::to_text)?;
        Ok(self.is_good())
    }

    fn to_text(&self) -> String {
        let mut rows = vec![
            [
                "device",
                "files",
                "size",
                "conflicts",
                "in sync",
                "hash of the tree",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows.extend(self.devices.iter().map(|device| {
            vec![
                device.name.clone(),
                // The word stands at the head of the column.
                count(device.files, "")
                    .trim_end_matches([' ', 's'])
                    .to_owned(),
                size(device.bytes),
                device.conflicts.to_string(),
                if device.in_sync { "yes" } else { "no" }.to_owned(),
                device.hash.chars().take(HASH_SHOWN).collect(),
            ]
        }));
        let mut text = format!("\n{}\n", table("  ", &rows));
        for difference in &self.differences {
            text.push_str(&format!("  {difference}\n"));
        }
        let took = seconds(Duration::from_millis(self.took_ms));
        text.push_str(&if !self.identical {
            format!("The trees differ. {took} in all.\n")
        } else if !self.is_good() {
            format!("The trees are the same, but not every device says so. {took} in all.\n")
        } else {
            format!("All three trees are the same, byte for byte. {took} in all.\n")
        });
        if let Some(dir) = &self.dir {
            text.push_str(&format!(
                "Everything is in {dir}; the daemons have stopped.\n"
            ));
        }
        text
    }
}

/// A time as it stands in the column of times.
pub(super) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn device(name: &str, hash: &str) -> DeviceReport {
        DeviceReport {
            name: name.into(),
            files: 3_001,
            bytes: 1 << 20,
            conflicts: 1,
            in_sync: true,
            hash: hash.into(),
        }
    }

    fn report(hashes: [&str; 2]) -> Report {
        let devices = hashes.map(|hash| device("laptop", hash)).into();
        let narrator = Narrator::new(Output::new(Format::Json));
        narrator.report(Dotfiles::default(), devices, vec![])
    }

    #[test]
    fn equal_hashes_and_nothing_else_are_good() {
        assert!(report(["a", "a"]).is_good());
        assert!(!report(["a", "b"]).is_good());
        let mut away = report(["a", "a"]);
        away.devices
            .iter_mut()
            .for_each(|device| device.in_sync = false);
        assert!(!away.is_good());
    }

    #[test]
    fn the_table_lines_up() {
        let text = report(["0123456789abcdef", "0123456789abcdef"]).to_text();
        assert!(
            text.contains("  laptop  3,001  1.0 MiB  1          yes      0123456789ab\n"),
            "{text}"
        );
    }
}

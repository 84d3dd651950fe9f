//! `completions`, `man`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::error::CliError;
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn completions(output: Output, args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pacsync", &mut script);
    output.bytes(&script)
}

pub(crate) fn man(output: Output) -> Result<(), CliError> {
    output.bytes(&page().map_err(|error| CliError::io("cannot make the manual page", &error))?)
}

/// One page: the overview, then each command with its options.
fn page() -> std::io::Result<Vec<u8>> {
    let mut command = Cli::command();
    // Fills in global flags and names of commands.
    command.build();
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    section(&command, &mut page)?;
    man.render_extra_section(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

fn section(command: &clap::Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = sub
            .get_bin_name()
            .unwrap_or_else(|| sub.get_name())
            .to_owned();
        page.extend_from_slice(format!(".SH \"{}\"\n", name.to_uppercase()).as_bytes());
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        page.extend_from_slice(format!("{}\n", escaped(&about)).as_bytes());
        let own = sub.clone().bin_name(name);
        // Global flags stand at the top of the page already.
        let own = own.mut_args(|arg| {
            if arg.is_global_set() {
                arg.hide(true)
            } else {
                arg
            }
        });
        if own
            .get_arguments()
            .any(|arg| !arg.is_hide_set() && arg.get_id() != "help")
        {
            clap_mangen::Man::new(own).render_options_section(page)?;
        }
        section(sub, page)?;
    }
    Ok(())
}

/// A dot or a quote at the start of a line is a command in roff, a backslash anywhere.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_the_manual() {
        let page = String::from_utf8(page().expect("makes a page")).expect("text");
        for command in Cli::command().get_subcommands() {
            let heading = format!(".SH \"PACSYNC {}\"", command.get_name().to_uppercase());
            assert!(page.contains(&heading), "{heading}");
        }
        assert!(page.contains("\\-\\-no\\-discovery"), "options are there");
    }

    #[test]
    fn completions_are_made_for_every_shell() {
        use clap::ValueEnum;
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "pacsync", &mut script);
            assert!(
                String::from_utf8(script)
                    .expect("text")
                    .contains("no-discovery"),
                "{shell}"
            );
        }
    }
}

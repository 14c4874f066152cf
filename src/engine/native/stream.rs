//! A program of this machine whose output is read while it runs (see [`crate::engine::program`]).

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use super::account::Account;
use crate::engine::program::{Input, LIFELINE, Program};
use crate::error::{Context, Result};

/// Starts `argv[0]` as `account`, with its file, if it has one, in `folder`. It ends with the returned value, and with
/// this process.
pub(super) fn start(
    account: Account,
    argv: &[&str],
    variables: &[(&'static str, String)],
    folder: &Path,
    input: Input,
) -> Result<Program> {
    let action = format!("run `{}`", argv.first().copied().unwrap_or_default());
    let what = || format!("cannot {action}");
    let mut command = account.command(Path::new("/bin/sh"));
    command.args(["-c", LIFELINE, "tfdev"]).args(input.script_arguments(&folder.display().to_string()));
    command.args(argv).envs(variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A Ctrl-C is for tfdev alone, whose end then ends the program in order.
    command.process_group(0);
    let child = tokio::process::Command::from(command).spawn().or_failed(what)?;
    Ok(Program::of_child(action, child, ()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn run(folder: &Path, script: &str, input: Input) -> Program {
        let (account, _) = Account::for_new(None).unwrap();
        account.give_path(folder).unwrap();
        start(account, &["sh", "-c", script, "sh"], &[("GREETING", "hello".to_owned())], folder, input).unwrap()
    }

    fn files(folder: &Path) -> usize {
        folder.read_dir().unwrap().count()
    }

    #[tokio::test]
    async fn output_errors_and_status_are_the_programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut program = run(folder.path(), "echo $GREETING; echo bad >&2; exit 7", Input::None);
        assert_eq!(program.read().await.unwrap().unwrap(), "hello\n");
        let ended = program.finish().await.unwrap();
        assert_eq!((ended.exit_code, ended.stderr), (7, b"bad\n".to_vec()));
    }

    #[tokio::test]
    async fn a_file_is_there_as_long_as_the_program_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tfdev-file-1-0"), "of a shell that is gone").unwrap();
        let mut program = run(folder.path(), "wc -c <\"$1\"; cat \"$1\"", Input::File(9));
        program.write(b"12345").await.unwrap();
        program.write(b"6789").await.unwrap();
        let mut output = Vec::new();
        while let Some(piece) = program.read().await.unwrap() {
            output.extend_from_slice(&piece);
        }
        assert_eq!(String::from_utf8(output).unwrap().trim_start(), "9\n123456789");
        assert_eq!(program.finish().await.unwrap().exit_code, 0);
        assert_eq!(files(folder.path()), 0);
    }

    #[tokio::test]
    async fn a_program_ends_when_nobody_is_interested() {
        let folder = tempfile::tempdir().unwrap();
        // The pipe is held open by the program alone, so its end is the program's.
        let mut program = run(folder.path(), "echo $$; exec sleep 4321", Input::None);
        let pid = program.read().await.unwrap().unwrap();
        let process = Path::new("/proc").join(String::from_utf8(pid.to_vec()).unwrap().trim());
        if !Path::new("/proc/self").exists() {
            return;
        }
        assert!(process.exists());
        drop(program);
        let begin = Instant::now();
        while process.exists() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{} lives", process.display());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut cut_off = run(folder.path(), "echo never", Input::File(9));
        cut_off.write(b"123").await.unwrap();
        drop(cut_off);
        until_empty(folder.path()).await;
    }

    #[tokio::test]
    async fn a_file_goes_with_a_program_that_dies_of_a_signal_when_nobody_is_interested() {
        let folder = tempfile::tempdir().unwrap();
        let mut program = run(folder.path(), "echo it runs; exec sleep 4321", Input::File(9));
        program.write(b"123456789").await.unwrap();
        assert_eq!(program.read().await.unwrap().unwrap(), "it runs\n");
        assert_eq!(files(folder.path()), 1);
        drop(program);
        until_empty(folder.path()).await;
    }

    async fn until_empty(folder: &Path) {
        let begin = Instant::now();
        while files(folder) > 0 {
            assert!(begin.elapsed() < Duration::from_secs(20), "the file stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

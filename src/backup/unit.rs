//! The agent as a service of the machine: a unit for systemd, or a job for launchd.
//!
//! What must hold: the file says all that the agent needs, so that it works in surroundings other than the shell's; no
//! secret is in it; and a file of someone else is not written over.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Settings;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::Instance;

/// The first line of every file of ours.
const OURS: &str = "Made by `tfdev backup agent install`";

/// What was written, and what is left to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// The file.
    pub file: PathBuf,
    /// The commands that start it, now and with the machine.
    pub commands: Vec<String>,
}

/// What runs the agent.
struct Job {
    name: String,
    words: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

/// Writes the file for the settled instance.
///
/// # Errors
/// [`ErrorKind::Refused`] if a file of that name is not ours.
pub fn install(settings: &Settings) -> Result<Installed> {
    super::store::Store::of(settings)?;
    let home = settings.home_dir.as_deref().ok_or_else(|| Error::bad_input("this user has no home folder"))?;
    let program = std::env::current_exe().or_failed(|| "cannot find the program of tfdev")?;
    let job = Job::of(settings, &program);
    let (file, text, commands) = if cfg!(target_os = "macos") {
        let label = format!("dev.{}", job.name);
        let file = home.join("Library/LaunchAgents").join(format!("{label}.plist"));
        let commands = vec![format!("launchctl bootstrap gui/$(id -u) {}", file.display())];
        (file, job.plist(&label), commands)
    } else {
        let file = home.join(".config/systemd/user").join(format!("{}.service", job.name));
        let commands = vec![
            "systemctl --user daemon-reload".to_owned(),
            format!("systemctl --user enable --now {}.service", job.name),
            "loginctl enable-linger".to_owned(),
        ];
        (file, job.unit(), commands)
    };
    write(&file, &text)?;
    Ok(Installed { file, commands })
}

fn write(file: &Path, text: &str) -> Result<()> {
    let what = || format!("cannot write `{}`", file.display());
    match std::fs::read_to_string(file) {
        Ok(there) if !there.contains(OURS) => {
            return Err(Error::new(ErrorKind::Refused, format!("`{}` was not made by tfdev", file.display()))
                .hint("move it away, then run the command again"));
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).or_failed(what),
        _ => {}
    }
    let folder = file.parent().expect("it is below the home folder");
    std::fs::create_dir_all(folder).or_failed(what)?;
    crate::instance::private_file::write(file, text.as_bytes())
}

impl Job {
    fn of(settings: &Settings, program: &Path) -> Self {
        let instance = Instance::of(settings);
        let words = [
            program.display().to_string(),
            "--project-dir".to_owned(),
            settings.project_dir.display().to_string(),
            "--instance".to_owned(),
            instance.name.clone(),
            "backup".to_owned(),
            "agent".to_owned(),
        ];
        let path = settings.search_path.as_deref().map(|path| path.to_string_lossy().into_owned());
        let variables = [
            ("TFDEV_STATE_DIR", Some(settings.state_dir.display().to_string())),
            ("TFDEV_CACHE_DIR", Some(settings.cache_dir.display().to_string())),
            ("PATH", path),
        ];
        Self {
            name: format!("tfdev-backup-{}-{}", instance.project, instance.name),
            words: words.into(),
            variables: variables.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        }
    }

    /// A unit for systemd.
    fn unit(&self) -> String {
        let words: Vec<String> = self.words.iter().map(|word| quoted(word)).collect();
        // Where systemd replaces nothing behind a `$`.
        let variable = |(name, value): &(&str, String)| quoted(&format!("{name}={value}")).replace("$$", "$");
        let variables: Vec<String> = self.variables.iter().map(variable).collect();
        format!(
            "# {OURS}; it is written anew by it.\n[Unit]\nDescription={}\n\n[Service]\nExecStart={}\nEnvironment={}\n\
             Restart=always\nRestartSec=10\n\n[Install]\nWantedBy=default.target\n",
            self.name,
            words.join(" "),
            variables.join(" ")
        )
    }

    /// A job for launchd.
    fn plist(&self, label: &str) -> String {
        let string = |text: &str| {
            format!("<string>{}</string>", text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
        };
        let words: String = self.words.iter().map(|word| string(word)).collect();
        let variable = |(name, value): &(&'static str, String)| ["<key>", name, "</key>", &string(value)].concat();
        let variables: String = self.variables.iter().map(variable).collect();
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- {OURS}; it is written anew by it. -->\n<plist version=\"1.0\"><dict>\n\
             <key>Label</key>{}\n<key>ProgramArguments</key><array>{words}</array>\n\
             <key>EnvironmentVariables</key><dict>{variables}</dict>\n\
             <key>RunAtLoad</key><true/>\n<key>KeepAlive</key><true/>\n</dict></plist>\n",
            string(label)
        )
    }
}

/// A word as systemd reads it back: in quotes, with nothing that it would replace.
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job {
            name: "tfdev-backup-shop-dev".into(),
            words: vec!["/opt/a b/tfdev".into(), "--project-dir".into(), "/srv/100%\"$x".into()],
            variables: vec![("PATH", "/usr/bin:/a&b".into())],
        }
    }

    #[test]
    fn whatever_is_in_a_path_is_one_word() {
        let unit = job().unit();
        assert!(unit.contains("ExecStart=\"/opt/a b/tfdev\" \"--project-dir\" \"/srv/100%%\\\"$$x\"\n"), "{unit}");
        assert!(unit.contains("Environment=\"PATH=/usr/bin:/a&b\"\n"), "{unit}");
        let plist = job().plist("dev.x");
        assert!(plist.contains("<string>/usr/bin:/a&amp;b</string>"), "{plist}");
    }

    #[test]
    fn a_file_of_someone_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("systemd/x.service");
        write(&file, &job().unit()).unwrap();
        write(&file, &job().unit()).unwrap();
        std::fs::write(&file, "[Unit]").unwrap();
        assert_eq!(write(&file, "x").unwrap_err().kind(), ErrorKind::Refused);
    }
}

//! What the command line gives: the strongest layer.

use super::{Setting, variable_of};

/// The flags of the command line that settle something. The binary fills this with [`Setting::flag`] for what was typed
/// and [`Setting::variable`] for what came from a `TFDEV_…` variable; what was not given stays `None`. A variable that
/// is set but empty counts as not given.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--project-dir`: the root of the checkout, relative to the current folder.
    pub project_dir: Option<Setting<String>>,
    /// `--instance`.
    pub instance: Option<Setting<String>>,
    /// `--engine`: auto, docker, native or external.
    pub engine: Option<Setting<String>>,
    /// `--profile`.
    pub profile: Option<Setting<String>>,
    /// `--image`.
    pub image: Option<Setting<String>>,
    /// `--port`: `auto` or a number.
    pub port: Option<Setting<String>>,
    /// `--dataset`.
    pub dataset: Option<Setting<String>>,
    /// `TFDEV_EXTERNAL_URL`: there is no flag, because arguments can be read by others.
    pub external_url: Option<Setting<String>>,
    /// `TFDEV_EXTERNAL_ALLOW_REMOTE`.
    pub external_allow_remote: Option<Setting<String>>,
    /// `--timeout`, in seconds.
    pub timeout: Option<Setting<String>>,
    /// `--yes`.
    pub yes: Option<Setting<bool>>,
}

impl Flags {
    /// What the variables `TFDEV_…` give, for a program that is not the command line.
    pub(crate) fn of_variables() -> crate::error::Result<Self> {
        Ok(Self {
            project_dir: variable_of("project-dir")?,
            instance: variable_of("instance")?,
            engine: variable_of("engine")?,
            profile: variable_of("profile")?,
            image: variable_of("image")?,
            port: variable_of("port")?,
            dataset: variable_of("dataset")?,
            timeout: variable_of("timeout")?,
            external_url: variable_of("external_url")?,
            external_allow_remote: variable_of("external_allow_remote")?,
            yes: None,
        })
    }

    /// What was given, with the key of the reference that each settles. `project_dir` is no key: it says where to look.
    pub(super) fn given(&self) -> Vec<(&'static str, Setting<String>)> {
        let texts = [
            ("instance", &self.instance),
            ("engine", &self.engine),
            ("profile", &self.profile),
            ("docker.image", &self.image),
            ("database.port", &self.port),
            ("seed.dataset", &self.dataset),
            ("external.url", &self.external_url),
            ("external.allow_remote", &self.external_allow_remote),
            ("timeout", &self.timeout),
        ];
        let yes = self.yes.clone().map(|yes| ("yes", yes.map(|value| value.to_string())));
        let texts = texts.into_iter().filter_map(|(key, given)| Some((key, given.clone()?)));
        texts.chain(yes).filter(|(_, given)| is_given(given)).collect()
    }

    /// `--project-dir`, if it was given.
    pub(super) fn given_project_dir(&self) -> Option<&Setting<String>> {
        self.project_dir.as_ref().filter(|given| is_given(given))
    }
}

fn is_given(setting: &Setting<String>) -> bool {
    !matches!(setting.origin, super::Origin::Environment { .. }) || !setting.value.is_empty()
}

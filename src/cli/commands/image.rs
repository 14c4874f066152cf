//! `tfdev image`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::Session;
use crate::engine::docker::connect;
use crate::error::Result;
use crate::image::{self, BuildOptions, Image as Found, Sources};

/// Get, build, load or save the server's image
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make sure that there is an image: there already, else pulled, else built offline
    Ensure {
        /// The image [default: postgres:15-alpine]
        #[arg(id = "reference", value_name = "IMAGE")]
        image: Option<String>,
    },
    /// Pull an image from its registry
    Pull {
        /// The image [default: postgres:15-alpine]
        #[arg(id = "reference", value_name = "IMAGE")]
        image: Option<String>,
    },
    /// Make tfdev/postgres:15-offline from the PostgreSQL 15 that is installed on this machine
    Build {
        /// The folder of the PostgreSQL 15 programs [default: the usual places]
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<PathBuf>,
    },
    /// Load images from a file that `save` wrote
    Load {
        /// The file
        file: PathBuf,
    },
    /// Save an image to a file
    Save {
        /// The file
        file: PathBuf,
        /// The image [default: the one that `up` would take]
        #[arg(id = "reference", value_name = "IMAGE")]
        image: Option<String>,
    },
}

pub(super) async fn run(command: Image, session: &Session) -> Result<()> {
    let settings = &session.settings;
    let events = &session.events;
    let timeout = Duration::from_secs(settings.timeout_seconds.value);
    let docker = connect::connect(&settings.docker, timeout, events).await?.docker;
    let sources = Sources::of(settings);
    let configured = settings.image.as_ref().map(|image| image.value.clone());
    let images = match command.action {
        Action::Ensure { image } => {
            vec![image::ensure(&docker, image.or(configured).as_deref(), &sources, events).await?]
        }
        Action::Pull { image } => {
            let name = image.or(configured).unwrap_or_else(|| image::OFFICIAL.to_owned());
            vec![image::pull(&docker, &name, sources.docker_config_dir.as_deref(), events).await?]
        }
        Action::Build { bin_dir } => {
            let options = BuildOptions { bin_dir: bin_dir.or(sources.bin_dir), ..BuildOptions::default() };
            vec![image::build(&docker, events, options).await?]
        }
        Action::Load { file } => image::load(&docker, &file, events).await?,
        Action::Save { file, image } => {
            let found = image::resolve(&docker, image.or(configured).as_deref(), &sources, events).await?;
            let size = image::save(&docker, &found.reference, &file, events).await?;
            let shown = file.display().to_string();
            let report = serde_json::json!({ "image": found.reference, "file": shown, "bytes": size });
            return session
                .output
                .result(&report, |out| writeln!(out, "Saved {} to {shown} ({} MB)", found.reference, megabytes(size)));
        }
    };
    write_images(&images, session)
}

fn write_images(images: &[Found], session: &Session) -> Result<()> {
    session.output.result(&images, |out| {
        for image in images {
            writeln!(
                out,
                "{} is {} ({} MB, {})",
                image.reference,
                image.source,
                megabytes(image.size_bytes),
                image.id
            )?;
        }
        Ok(())
    })
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

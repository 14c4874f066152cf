//! A logical backup: the project's database, dumped by `pg_dump`.
//!
//! What must hold: the dump and its fingerprint are of one state of the database.

use std::time::Instant;

use super::codec;
use super::fingerprint::Exported;
use super::manifest::{Kind, Manifest};
use super::{Backups, words};
use crate::archive;
use crate::engine::program::Input;
use crate::error::Result;
use crate::pg::Login;
use crate::snapshot::{self, Snapshots, Told};

impl Backups<'_> {
    pub(super) async fn logical(&self) -> Result<Manifest> {
        let begin = Instant::now();
        let server = &self.running.server;
        let mut connection = self.session().await?;
        let draft = self.draft(Kind::Logical, &mut connection).await?;
        crate::provision::close(connection).await;
        let source = archive::Source {
            project: self.running.instance.project.clone(),
            instance: self.running.instance.name.clone(),
            engine: self.running.engine.kind().to_string(),
            database: server.database.clone(),
        };
        let snapshots = Snapshots::of(self.running, self.settings, self.events)?;
        let described = snapshots.describe(&server.database, source).await?;
        self.events.started("Making a logical backup");
        let login = Login { database: server.database.clone(), ..server.admin_login() };
        let exported = Exported::begin(&login, self.limit).await?;
        let command = snapshot::dump_command(&login.user, &server.database, Some(&exported.snapshot))?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let program = self.running.engine.stream(&command, Input::None).await?;
        crate::fault::point("backup.logical.begun").await;
        let told = Told::new(self.events);
        // The dump is not looked into on its way: the whole of it is read back when it is verified.
        let look: codec::Look<()> = Box::new(|_| Ok(()));
        let (packed, ()) =
            codec::upload(&self.store, &self.folder, &draft.key(), program, "dump the database", look, told).await?;
        let mut manifest = draft.manifest(packed.payload);
        match exported.read().await {
            Ok(tables) => manifest.fingerprint = Some([(server.database.clone(), tables)].into()),
            Err(error) => manifest.no_fingerprint = Some(words(&error)),
        }
        manifest.logical = Some(archive::Manifest {
            payload: archive::Payload {
                bytes: manifest.payload.bytes,
                compressed_bytes: packed.zstd_bytes,
                sha256: packed.zstd_sha256,
                ..described.payload
            },
            ..described
        });
        manifest.finished = super::now();
        self.publish(&manifest).await?;
        self.events.finished(format!("Made the backup `{}`", manifest.id), begin.elapsed());
        Ok(manifest)
    }
}

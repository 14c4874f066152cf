//! Making a full backup.
//!
//! What must hold: the programs are the server's own, run beside it, so their version is the server's; what they write
//! goes straight into the store; every exit status counts; and the manifest is written last.

use std::cell::Cell;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::{PgConnection, Row};

use super::codec;
use super::fingerprint::{self, Fingerprint};
use super::manifest::{FORMAT, Kind, Manifest, Payload, Source};
use super::plan::{Plan, Target};
use super::position::{Lsn, Segment};
use super::state::{self, State};
use super::{Backups, Summary, base, wal, words};
use crate::engine::program::Input;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::snapshot::Told;
use crate::spec::SUPERUSER;

/// What the names of our own points in the log begin with.
pub(super) const POINT: &str = "tfdev_";

/// How often the spool is looked at while a segment is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// The timeline that the server writes.
pub(super) async fn timeline(connection: &mut PgConnection) -> Result<u32> {
    let what = || "cannot ask the server for its timeline";
    let row = sqlx::raw_sql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)").fetch_one(connection).await;
    let text: String = row.and_then(|row| row.try_get(0)).or_failed(what)?;
    u32::from_str_radix(&text, 16).or_failed(what)
}

/// Whether the copy of that name is complete, but for the server's wait until its end is archived.
async fn is_ending(connection: &mut PgConnection, id: &str) -> Result<bool> {
    let question = "SELECT EXISTS (SELECT FROM pg_stat_progress_basebackup JOIN pg_stat_activity USING (pid) \
                    WHERE application_name = $1 AND phase = 'waiting for wal archiving to finish')";
    let asked = sqlx::query_scalar(question).bind(id).fetch_one(connection).await;
    asked.or_failed(|| "cannot ask the server how far its copy is")
}

/// What all manifests have, before the contents are known.
pub(super) struct Draft {
    pub(super) id: String,
    kind: Kind,
    created: Timestamp,
    postgres: String,
    source: Source,
    /// What the names of objects end in.
    extension: &'static str,
}

impl Draft {
    /// The object with the contents, below the folder of the cluster.
    pub(super) fn key(&self) -> String {
        let file = match self.kind {
            Kind::Logical => "dump.zst",
            Kind::Physical => "base.tar.zst",
        };
        format!("full/{}/{file}{}", self.id, self.extension)
    }

    pub(super) fn manifest(self, payload: Payload) -> Manifest {
        Manifest {
            format: FORMAT,
            id: self.id,
            kind: self.kind,
            tfdev: env!("CARGO_PKG_VERSION").to_owned(),
            postgres: self.postgres,
            created: self.created,
            finished: super::now(),
            source: self.source,
            payload,
            sealed: None,
            physical: None,
            logical: None,
            fingerprint: None,
            no_fingerprint: None,
        }
    }
}

impl Backups<'_> {
    /// Makes full backups: the one that is asked for, or both where both can be had.
    pub async fn now(&self, only: Option<Kind>) -> Result<Vec<Summary>> {
        let _lock = self.lock("backup now").await?;
        self.make_full(only).await
    }

    /// As [`Backups::now`], for who holds the lock.
    pub(super) async fn make_full(&self, only: Option<Kind>) -> Result<Vec<Summary>> {
        let instance = &self.running.instance;
        let made = self.make_kinds(only).await;
        let mut state = State::read(instance, &self.folder);
        if only.is_none() {
            state.tried_full = Some(super::now());
        }
        state::note(&mut state.full, made.as_ref().err().map(words));
        state.write(instance)?;
        made
    }

    async fn make_kinds(&self, only: Option<Kind>) -> Result<Vec<Summary>> {
        let mut made = Vec::new();
        let why_not = self.no_physical()?;
        let there = self.store.list(&format!("{}/full", self.folder)).await?;
        self.store.keys().check_no_clear_text(there.iter().map(|object| object.key.as_str()))?;
        if only != Some(Kind::Physical) {
            // Boxed: each is a long way, and callers are to stay small.
            made.push(Summary::of(&Box::pin(self.logical()).await?, None));
        }
        match (only, why_not) {
            (Some(Kind::Logical), _) => {}
            (Some(Kind::Physical), Some(why)) => {
                return Err(Error::new(ErrorKind::Refused, why).hint("`tfdev backup now --only logical` makes a dump"));
            }
            (None, Some(why)) => self.events.note(format!("Only a logical backup was made: {why}")),
            (_, None) => made.push(Summary::of(&Box::pin(self.physical()).await?, None)),
        }
        Ok(made)
    }

    /// Begins a backup.
    pub(super) async fn draft(&self, kind: Kind, connection: &mut PgConnection) -> Result<Draft> {
        let what = || "cannot ask the server for its version";
        let row = sqlx::raw_sql("SELECT current_setting('server_version_num')::integer").fetch_one(connection).await;
        let version: i32 = row.and_then(|row| row.try_get(0)).or_failed(what)?;
        let created = super::now();
        let id = format!("{}-{}", created.strftime("%Y%m%dT%H%M%SZ"), kind.word());
        let running = self.running;
        let source = Source {
            project: running.instance.project.clone(),
            instance: running.instance.name.clone(),
            instance_id: running.record.uuid.clone().unwrap_or_default(),
            engine: running.engine.kind(),
            image: running.record.image.clone().unwrap_or_default(),
            profile: self.profile_name().to_owned(),
            database: running.server.database.clone(),
            user: running.server.user.name.clone(),
            system_identifier: running.record.system_identifier.clone(),
        };
        if self.store.get(&format!("{}/full/{id}/manifest.json", self.folder)).await?.is_some() {
            return Err(Error::new(ErrorKind::Conflict, format!("there is a backup `{id}` already")).hint("try again"));
        }
        let postgres = format!("{}.{}", version / 10_000, version % 10_000);
        Ok(Draft { id, kind, created, postgres, source, extension: self.store.keys().extension() })
    }

    /// Writes the manifest, which makes the backup.
    pub(super) async fn publish(&self, manifest: &Manifest) -> Result<()> {
        fault::point("backup.full.stored").await;
        let closed = manifest.closed(self.store.keys())?;
        let text = serde_json::to_vec_pretty(&closed).or_failed(|| "cannot write the manifest")?;
        self.store.put(&format!("{}/full/{}/manifest.json", self.folder, manifest.id), text.into()).await
    }

    /// Fails unless the server archives its log into our spool.
    pub(super) async fn check_archiving(&self) -> Result<()> {
        if let Some(why) = self.no_physical()? {
            return Err(Error::new(ErrorKind::Refused, why));
        }
        let what = || "cannot ask the server how it archives its log";
        let mut connection = self.session().await?;
        let question = "SELECT current_setting('archive_mode'), current_setting('archive_command'), \
                        (SELECT last_failed_wal FROM pg_stat_archiver \
                         WHERE last_failed_time > coalesce(last_archived_time, '-infinity')), \
                        (SELECT min(split_part(name, '.', 1)) FROM pg_ls_archive_statusdir() \
                         WHERE name ~ '[.]ready$' AND modification < now() - interval '20 s' AND now() - interval '20 s' > \
                         (SELECT coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver))";
        let row = sqlx::raw_sql(question).fetch_one(&mut connection).await.or_failed(what)?;
        crate::provision::close(connection).await;
        let (mode, command): (String, String) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
        if mode != "on" || !command.contains(wal::SPOOL) {
            let message = "this server does not archive its log yet";
            let error = Error::new(ErrorKind::Refused, message);
            return Err(if self.running.record.archive_off {
                error.hint("it was restored, and such an instance archives nothing until it is told to: `tfdev backup enable`, then `tfdev up`")
            } else {
                error.hint("`tfdev up` restarts it with the archive on; its data stays")
            });
        }
        // PostgreSQL counts no failure if its command is ended by a signal, or with a status above 125; then nothing is
        // archived, and that is all there is to see.
        let failed: Option<String> = row.try_get(2).or_failed(what)?;
        if let Some(failed) = failed.or(row.try_get(3).or_failed(what)?) {
            return Err(Error::failed(format!("the server cannot archive the segment {failed} of its log"))
                .hint("`tfdev logs` shows why; most of all look for room on the disk"));
        }
        Ok(())
    }

    async fn physical(&self) -> Result<Manifest> {
        self.check_archiving().await?;
        let begin = Instant::now();
        let mut connection = self.session().await?;
        let draft = self.draft(Kind::Physical, &mut connection).await?;
        self.events.started("Making a physical backup");
        let application = format!("application_name={}", draft.id);
        let command = [
            "pg_basebackup",
            "--pgdata=-",
            "--format=tar",
            "--wal-method=none",
            "--checkpoint=fast",
            base::MANIFEST_CHECKSUMS,
            "--no-estimate-size",
            "--no-password",
            "--dbname",
            &application,
            "--username",
            SUPERUSER,
            "--label",
            &draft.id,
        ];
        let program = self.running.engine.stream(&command, Input::None).await?;
        fault::point("backup.physical.begun").await;
        let told = Told::new(self.events);
        let key = draft.key();
        let name = format!("{POINT}{}", draft.id);
        let end = Cell::new(None);
        let copying = async {
            let look = Box::new(base::inspect);
            let copied = codec::upload(&self.store, &self.folder, &key, program, "copy the server", look, told).await;
            end.set(Some(copied.is_ok()));
            copied
        };
        let (copied, told) = tokio::join!(copying, self.behind(&draft.id, &name, &mut connection, &end));
        let (codec::Packed { payload, .. }, mut physical) = copied?;
        let mut point = told?;
        if point.1 < physical.stop {
            // The server says that it waits a moment before it writes the end of the copy.
            point = self.behind(&draft.id, &format!("{name}-again"), &mut connection, &end).await?;
        }
        let (name, lsn, read) = point;
        physical.point = Some((name, lsn));
        let (fingerprint, no_fingerprint) = self.told(read);
        crate::provision::close(connection).await;
        let manifest = Manifest { physical: Some(physical), fingerprint, no_fingerprint, ..draft.manifest(payload) };
        self.check_log(&manifest).await?;
        self.publish(&manifest).await?;
        self.forget_gap().await?;
        self.events.finished(format!("Made the backup `{}`", manifest.id), begin.elapsed());
        Ok(manifest)
    }

    /// Sets the point `name` behind the end of the copy `id`, brings the log up to it into the store, and reads what all
    /// tables hold there. `end` tells whether the copy succeeded, once it is over. Returns the point as well.
    async fn behind(
        &self,
        id: &str,
        name: &str,
        connection: &mut PgConnection,
        end: &Cell<Option<bool>>,
    ) -> Result<(String, Lsn, Result<Fingerprint>)> {
        // The server ends the copy in its log, and then looks only once a second whether that was archived: time enough
        // for the fingerprint.
        while end.get().is_none() && !is_ending(connection, id).await? {
            tokio::time::sleep(LOOK).await;
        }
        if end.get() == Some(false) {
            return Err(Error::failed("the server was not copied"));
        }
        let timeline = timeline(connection).await?;
        let point = fingerprint::at_point(&self.running.server.admin_login(), name, self.limit).await?;
        let lsn = point.lsn;
        // Both take their time, and neither needs the other.
        let (shipped, read) = tokio::join!(self.ship_until(connection, timeline, lsn), point.read());
        shipped?;
        Ok((name.to_owned(), lsn, read))
    }

    /// The fingerprint, or why there is none, which people are told.
    fn told(&self, read: Result<Fingerprint>) -> (Option<Fingerprint>, Option<String>) {
        match read {
            Ok(fingerprint) => (Some(fingerprint), None),
            Err(error) => {
                let why = words(&error);
                self.events
                    .warning(format!("the backup has no fingerprint, so a restore of it cannot be compared: {why}"));
                (None, Some(why))
            }
        }
    }

    /// Fails unless the store has all that a recovery to the backup's own point needs.
    async fn check_log(&self, manifest: &Manifest) -> Result<()> {
        let mut catalogue = self.catalogue().await?;
        catalogue.backups = vec![super::manifest::Backup { manifest: manifest.clone(), verified: None }];
        Plan::of(&catalogue, &Target::Backup(manifest.id.clone())).map(drop)
    }

    /// Brings the log into the store until what is at `lsn` is there. The segment with it is closed.
    pub(super) async fn ship_until(&self, connection: &mut PgConnection, timeline: u32, lsn: Lsn) -> Result<()> {
        let wanted = Segment::before(timeline, lsn);
        let begin = Instant::now();
        loop {
            self.ship(connection).await?;
            let last = State::read(&self.running.instance, &self.folder).last_segment;
            if last.and_then(|name| name.parse::<Segment>().ok()).is_some_and(|last| last >= wanted) {
                return Ok(());
            }
            if begin.elapsed() > self.limit {
                self.check_archiving().await?;
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("the segment {wanted} of the log was not archived in time"),
                )
                .hint("`--timeout SECONDS` waits longer; `tfdev logs` shows what the server does"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

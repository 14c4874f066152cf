//! `tfdev serve`.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Session;
use crate::config;
use crate::error::{Context, Result};
use crate::serve::{Listener, Service, Token, USUAL_ADDRESS};

/// Hand out fresh databases over HTTP
///
/// Clients of IntegreSQL, for any language, work with it as it is: their base URL is http://127.0.0.1:5000/api.
/// `GET /fresh` answers with a migrated database in one call, and `GET /openapi.json` lists all calls. The databases go
/// when the service ends, by Ctrl-C or SIGTERM or however that is; templates that clients have finished stay. The server is
/// the project's instance `test`, which is started if it does not run.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen: loopback, or with a token any address; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = USUAL_ADDRESS, env = "TFDEV_SERVE_LISTEN", hide_env = true)]
    listen: String,
    /// A file with the token that callers must send, as `Authorization: Bearer TOKEN` or as the password in their URL; or
    /// the variable TFDEV_SERVE_TOKEN
    #[arg(long, value_name = "FILE", env = "TFDEV_SERVE_TOKEN_FILE", hide_env = true)]
    token_file: Option<PathBuf>,
    /// Another name by which programs call the service, such as `integresql`, beside localhost; may be repeated. With the token
    /// any name will do
    #[arg(long, value_name = "NAME", value_delimiter = ',', env = "TFDEV_SERVE_ALLOW_HOST", hide_env = true)]
    allow_host: Vec<String>,
}

pub(super) async fn run(command: &Serve, session: &Session) -> Result<()> {
    // From here on, so that no signal finds a service that has begun and nobody to end it.
    let ended = interrupted()?;
    let listener = Listener::bind(&command.listen, token(command)?, &command.allow_host).await?;
    let events = &session.events;
    let mut ended = std::pin::pin!(ended);
    let service = tokio::select! {
        started = Service::start(listener, &session.settings, None, events) => started?,
        () = &mut ended => return Ok(()),
    };
    tell(&service, session)?;
    ended.await;
    events.detail("The service is ending");
    service.stop().await
}

fn token(command: &Serve) -> Result<Option<Token>> {
    if let Some(file) = &command.token_file {
        return Token::read(file).map(Some);
    }
    config::variable_of("serve_token")?.map(|token| Token::new(&token.value)).transpose()
}

fn tell(service: &Service, session: &Session) -> Result<()> {
    let url = service.url();
    let told = serde_json::json!({ "url": url, "integresql_base_url": format!("{url}/api") });
    session.output.result(&told, |out| {
        writeln!(out, "listening on {url}")?;
        writeln!(out, "clients of IntegreSQL: INTEGRESQL_BASE_URL={url}/api")?;
        writeln!(out, "a database in one call: curl {url}/fresh")
    })
}

/// Takes the signals that end the service. What it gives waits for the first of them; the next one ends the program at
/// once.
fn interrupted() -> Result<impl Future<Output = ()>> {
    let of = |kind| signal(kind).or_failed(|| "cannot take signals");
    let (mut interrupt, mut terminate, mut hang_up) =
        (of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?);
    Ok(async move {
        let mut any = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
        };
        any().await;
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            std::process::exit(130);
        });
    })
}

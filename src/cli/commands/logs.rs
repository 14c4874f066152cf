//! `tfdev logs`.

use clap::Args;

use crate::cli::Session;
use crate::cli::output::write_stdout;
use crate::engine;
use crate::error::Result;
use crate::instance::Instance;

/// Show the server's log
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on showing what is logged
    #[arg(long, short)]
    follow: bool,
    /// Begin with the last N lines
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u32>,
}

pub(super) async fn run(command: &Logs, session: &Session) -> Result<()> {
    let instance = Instance::of(&session.settings);
    let engine = engine::choose(&session.settings, &instance, &session.events).await?.engine;
    let output = &session.output;
    if !output.json {
        return engine.logs(command.tail, command.follow, &mut |bytes| write_stdout(bytes)).await;
    }
    let mut log = Vec::new();
    engine
        .logs(command.tail, false, &mut |bytes| {
            log.extend_from_slice(bytes);
            Ok(())
        })
        .await?;
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<_> = text.lines().collect();
    output.result(&serde_json::json!({ "lines": lines }), |_| Ok(()))
}

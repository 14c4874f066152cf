//! `tfdev serve`: the third door to the pool of fresh databases, over HTTP, for tests in any language.
//!
//! ```text
//! routes       paths and methods → calls; what is done with every call
//! guard        who may call: programs, and no page in a browser
//! input        bodies: JSON or a form, bounded; failure: what an error is answered with; connection: how to connect
//! integresql   IntegreSQL's calls: templates that clients fill, and databases of them; template: what is known of each
//! leases       databases of the project's own migrations, in one call, with an end
//! own          health, metrics, the description of all calls
//! shared       what calls share, and how one runs to its end; pools: the pool, and another one if its server is gone
//! upkeep       what the service does by itself
//! ```
//!
//! What must hold:
//! - What was handed out is held by the service's own session with the server: when the service ends, however that is, the
//!   databases of its clients go, and finished templates stay for the next one.
//! - A client that goes away, and one that sends nonsense, leaves nothing behind.
//! - Nobody but programs that reach the address may call.

mod connection;
mod failure;
mod guard;
mod input;
mod integresql;
mod leases;
mod metrics;
mod own;
mod pools;
mod routes;
mod shared;
mod template;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use guard::Token;

use self::guard::Guard;
use self::pools::Pools;
use self::shared::Shared;
use crate::config::Settings;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::fresh::{self, Pool};

/// Where the service listens unless it is told otherwise (IntegreSQL's port).
pub const USUAL_ADDRESS: &str = "127.0.0.1:5000";

/// How long the end may take: calls that are answered, databases that are given back and dropped.
const END_LIMIT: Duration = Duration::from_secs(20);

/// An address that is the service's own, before there is a service.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    guard: Guard,
    address: SocketAddr,
}

impl Listener {
    /// Listens on `address`: a host or an IP address, a colon and a port; port 0 is a free one. One that other machines
    /// reach wants a token. Callers may use `names` for it, beside the addresses of this machine.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if it is no address or one of the names is none, [`ErrorKind::Conflict`] if something else has it, [`ErrorKind::Refused`] if
    /// it wants a token and there is none.
    pub async fn bind(address: &str, token: Option<Token>, names: &[String]) -> Result<Self> {
        let usage = || format!("`{address}` is no address to listen on");
        let found = tokio::net::lookup_host(address).await;
        let found = found.context(ErrorKind::Usage, usage).map_err(|error| error.hint(ADDRESS_HINT))?.next();
        let found = found.ok_or_else(|| Error::new(ErrorKind::Usage, usage()).hint(ADDRESS_HINT))?;
        let guard = Guard::new(found, token, names)?;
        let socket = TcpListener::bind(found).await.map_err(|error| not_bound(found, error))?;
        let address = socket.local_addr().or_failed(|| "cannot tell the address of the service")?;
        Ok(Self { socket, guard, address })
    }
}

/// How an address is written.
const ADDRESS_HINT: &str = "write `--listen 127.0.0.1:5000`; port 0 takes a free one";

fn not_bound(address: SocketAddr, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Error::new(ErrorKind::Conflict, format!("something else listens on {address}"))
                .hint("another `tfdev serve` may run already; `--listen 127.0.0.1:0` takes a free port")
        }
        std::io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::Refused, format!("this user may not listen on {address}"))
                .hint("choose a port of 1024 or above")
        }
        _ => Error::new(ErrorKind::Usage, format!("cannot listen on {address}")).hint(ADDRESS_HINT),
    }
    .caused_by(error)
}

/// A service that runs.
#[must_use = "a service that is dropped goes on without an end"]
pub struct Service {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
    upkeep: JoinHandle<()>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Service({})", self.address)
    }
}

impl Service {
    /// Starts it. The instance of the settings is started if it does not run; with `pool` the service shares one that is
    /// open.
    pub async fn start(listener: Listener, settings: &Settings, pool: Option<Pool>, events: &Events) -> Result<Self> {
        let Listener { socket, guard, address } = listener;
        let pool = match pool {
            Some(pool) => pool,
            None => fresh::open(settings, None, fresh::holder_name(), events).await?,
        };
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let pools = Pools::new(settings.clone(), events.clone(), pool, 2 * cores);
        let shared = Arc::new(Shared::new(pools, guard));
        // Answers are short, and clients wait for each.
        let socket = socket.tap_io(|stream| drop(stream.set_nodelay(true)));
        let router = routes::router(shared.clone());
        let ended = shared.clone();
        let server = tokio::spawn(async move {
            let served = axum::serve(socket, router).with_graceful_shutdown(async move { ended.closed().await });
            // axum goes on after errors of single connections, and has no others.
            let _ = served.await;
        });
        let upkeep = tokio::spawn(upkeep::run(shared.clone()));
        Ok(Self { address, shared, server, upkeep })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Variables by which clients find it: ours, and those that clients of IntegreSQL read.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let (url, api) = (self.url(), format!("{}/api", self.url()));
        vec![
            ("TFDEV_SERVE_URL", url.clone()),
            // The client for Rust.
            ("INTEGRESQL_BASE_URL", api.clone()),
            // Those for Go and Python.
            ("INTEGRESQL_CLIENT_BASE_URL", api),
            ("INTEGRESQL_CLIENT_API_VERSION", "v1".to_owned()),
            // Those for JavaScript and .NET are told by their programs, by custom from here.
            ("INTEGRESQL_URL", url),
        ]
    }

    /// Ends it: calls that wait are answered, and all that clients had is dropped.
    pub async fn stop(self) -> Result<()> {
        self.shared.close();
        let Self { shared, mut server, upkeep, .. } = self;
        let end = async {
            if shared.is_server_gone().await {
                return Ok(());
            }
            let _ = upkeep.await;
            shared.end().await?;
            // Connections with nothing to answer are closed by now.
            let _ = tokio::time::timeout(Duration::from_secs(1), &mut server).await;
            Ok(())
        };
        let late = |_| {
            Error::new(ErrorKind::TimedOut, "what clients of the service had is not dropped yet")
                .hint("`tfdev fresh gc` drops it, as does the next tfdev that uses fresh databases")
        };
        let ended = tokio::time::timeout(END_LIMIT, end).await.map_err(late);
        server.abort();
        ended?
    }
}

//! Which port an instance is published on.
//!
//! What must hold: the engine's own bind decides, never a check before it; a port once given is kept over restarts, also
//! over those that tfdev has no part in (`docker restart`), so it is always written into the container's or the
//! server's own settings and not left to the engine to draw anew.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use sha2::{Digest, Sha256};

use crate::config::PortChoice;
use crate::engine::StartRequest;
use crate::error::{Error, ErrorKind};
use crate::event::Events;
use crate::instance::Instance;

/// The port that people expect (PostgreSQL manual, 20.3.1).
pub const PREFERRED: u16 = 5432;

/// Assigned ports start here. They end below 32768, where Linux begins to give ports to outgoing connections.
const FIRST_ASSIGNED: u16 = 20_000;
const ASSIGNED: u16 = 12_000;
const ATTEMPTS: u16 = 64;

/// The ports to try, in order: the one that the instance had, the preferred one, then ones that follow from the
/// instance's name, so that the same instance tends to get the same port again.
pub fn candidates(choice: PortChoice, last: Option<u16>, instance: &Instance) -> Vec<u16> {
    if let PortChoice::Fixed(port) = choice {
        return vec![port];
    }
    let digest = Sha256::digest(instance.container_name());
    let start = u16::from_be_bytes([digest[0], digest[1]]);
    let assigned = (0..ATTEMPTS).map(|attempt| {
        // 7,919 is a prime that does not divide 12,000: every attempt is another port.
        FIRST_ASSIGNED
            + u16::try_from((u32::from(start) + u32::from(attempt) * 7919) % u32::from(ASSIGNED)).unwrap_or(0)
    });
    let mut ports: Vec<u16> = last.into_iter().chain([PREFERRED]).chain(assigned).collect();
    let mut seen = std::collections::HashSet::new();
    ports.retain(|port| seen.insert(*port));
    ports
}

/// Says which port it became if that is not what a person would guess.
pub fn say(request: &StartRequest, port: u16, events: &Events) {
    let usual = request.last_port.unwrap_or(PREFERRED);
    if request.spec.port == PortChoice::Auto && port != usual {
        events.note(format!("Port {usual} is taken by something else, so this instance has port {port} from now on"));
    }
}

/// The error for a machine on which every candidate is taken.
pub fn none_free() -> Error {
    Error::new(ErrorKind::Conflict, "none of the ports that tfdev would use is free")
        .hint("name a free one with `port` in the section `[database]` of tfdev.toml")
}

/// Whether a program of this machine holds `port` on loopback. Only a short cut: it spares the attempt to start a
/// server that would fail; a wrong answer costs one more attempt.
pub fn looks_taken(port: u16) -> bool {
    TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

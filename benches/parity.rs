//! `health`, `verify` and `doctor`: what people wait for before they go on.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Instant;

use crate::report::{Measurement, Target};
use crate::world::World;
use crate::{Outcome, QUICK_ROUNDS, ROUNDS};

/// All three while an instance runs; and `doctor` with a daemon that takes the connection and says nothing.
pub(crate) fn parity(world: &World) -> Outcome<Vec<Measurement>> {
    let mut health = Measurement::new("health", "ms", Target::AtMost(30.0));
    let mut verify = Measurement::new("verify", "ms", Target::AtMost(3000.0));
    let mut doctor = Measurement::new("doctor", "ms", Target::AtMost(1000.0));
    let mut silent = Measurement::new("doctor, Docker silent", "ms", Target::AtMost(2000.0));
    world.timed(&["up"])?;
    for _ in 0..QUICK_ROUNDS {
        health.tfdev.push_milliseconds(world.timed(&["health"])?.0);
    }
    let daemon = TcpListener::bind("127.0.0.1:0")?;
    let host = format!("tcp://{}", daemon.local_addr()?);
    for _ in 0..ROUNDS {
        let (elapsed, report) = world.timed(&["verify"])?;
        if report["failed"] != 0 {
            return Err(format!("`verify` failed: {report}").into());
        }
        verify.tfdev.push_milliseconds(elapsed);
        for (measurement, host) in [(&mut doctor, None), (&mut silent, Some(&host))] {
            let mut command = world.tfdev(&["doctor", "--json"]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            if let Some(host) = host {
                command.env("DOCKER_HOST", host);
            }
            let begin = Instant::now();
            // Its exit status is the machine's.
            command.status()?;
            measurement.tfdev.push_milliseconds(begin.elapsed());
        }
    }
    Ok(vec![health, verify, doctor, silent])
}

//! Recovery to many moments of a history that is known.

use super::{Side, assert_prefix};
use crate::support::{TestEngine, TestEnv, one, query, run_on};

/// How many moments are recovered to, if `TFDEV_TEST_INSTANTS` does not say.
const INSTANTS: usize = 4;

/// How many transactions the history has for each moment.
const STEPS: u64 = 12;

#[test]
fn every_moment_is_exactly_the_historys_prefix() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let side = Side::up(env);
        side.base();
        let instants = instants();
        let total = STEPS * u64::try_from(instants).unwrap();
        let url = env.url();
        let superuser = side.superuser();
        let mut moments = Vec::new();
        for id in 1..=total {
            query(&url, &format!("INSERT INTO history (id) VALUES ({id})"));
            let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') || ' ' || \
                       pg_current_wal_insert_lsn()";
            let (time, lsn) = one(&url, now).split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
            moments.push((id, time, lsn));
            if id % STEPS == 0 {
                one(&superuser, "SELECT pg_switch_wal()");
            }
            if id == total / 2 {
                // A second base in the middle: recovery begins with the one before the moment.
                side.base();
            }
        }
        side.ship();
        // A moment counts as covered a second after it.
        crate::support::until("the last moment to be covered", || {
            side.ship();
            let listed = side.backup(&["list"]).ok().json();
            let until = listed[0]["recoverable"]["until"].as_str().unwrap().to_owned();
            (until > moments.last().unwrap().1).then_some(())
        });
        let mut random = 0x5eed_u64;
        for index in 0..instants {
            // Numbers of Knuth's generator (MMIX): any will do, the same each time.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The last one: nothing was committed behind it, which PostgreSQL by itself calls an error.
            let at = if index + 1 == instants {
                moments.len() - 1
            } else {
                usize::try_from(random >> 33).unwrap() % moments.len()
            };
            let (rows, time, lsn) = &moments[at];
            let target = if index % 2 == 0 { ["--to-lsn", lsn.as_str()] } else { ["--to", time.as_str()] };
            let restored = side.restore(&target, "moment");
            assert_prefix(restored["url"].as_str().unwrap(), *rows);
            side.destroy("moment");
        }
        // A server with fewer connections than the source recovers all the same.
        let restored = side.run(&["--json", "--profile", "tiny", "backup", "restore", "--as", "moment"]).ok().json();
        let url = restored["url"].as_str().unwrap();
        assert_prefix(url, total);
        assert_eq!(one(url, "SHOW max_connections"), "8");
    });
}

#[expect(clippy::disallowed_methods, reason = "how long the test is to take is for who runs it")]
fn instants() -> usize {
    std::env::var("TFDEV_TEST_INSTANTS").ok().and_then(|text| text.parse().ok()).unwrap_or(INSTANTS)
}

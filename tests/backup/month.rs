//! Many days of the agent, whose clock the test moves on: what is promised is there at the end, whatever was killed.

use serde_json::json;

use super::{Side, assert_prefix, history};
use crate::support::{ONE_SERVER, Outcome, TestEngine, TestEnv, finish, run_on, start};

/// How many days, if `TFDEV_TEST_DAYS` does not say.
const DAYS: u64 = 2;

const SECONDS_OF_A_DAY: u64 = 86_400;

/// Where the agent is killed, a place each day.
const PLACES: [&str; 6] = [
    "backup.agent.made",
    "backup.full.stored",
    "backup.verify.restored",
    "backup.forget.deleted",
    "backup.ship.stored",
    "backup.ship.put",
];

fn agent(env: &TestEnv, day: u64, fault: Option<&str>) -> Outcome {
    let mut command = env.command(&["--json", "backup", "agent", "--once"]);
    command.env("TFDEV_FAULT_CLOCK", (day * SECONDS_OF_A_DAY).to_string());
    if let Some(place) = fault {
        command.env("TFDEV_FAULT_POINT", format!("{place}=kill"));
    }
    finish(start(command))
}

#[test]
fn days_of_the_agent_end_with_all_that_is_promised() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let days = days();
        let keep = if days > 7 { 7 } else { 2 };
        let store = env.path("store");
        let lines =
            format!("store = \"file://{}\"\nkeep_full_days = {keep}\nkeep_wal_days = {keep}\n", store.display());
        let side = Side::up_with(env, &lines);
        for day in 0..=days {
            side.add_next();
            let place = PLACES[usize::try_from(day).unwrap() % PLACES.len()];
            // It may come by that place or not; what is left over is the next one's.
            agent(env, day, Some(place));
            agent(env, day, None).ok();
        }
        let listed = side.backup(&["list"]).ok().json();
        let backups = listed[0]["backups"].as_array().unwrap();
        for kind in ["logical", "physical"] {
            let kept: Vec<_> = backups.iter().filter(|one| one["kind"] == kind).collect();
            // Each day has one, or two if the first pass of the day was killed between them.
            assert!(kept.len() >= usize::try_from(keep).unwrap(), "{kind}: {listed}");
            assert!(kept.len() <= 2 * usize::try_from(keep).unwrap() + 1, "{kind}: {listed}");
            let newest = kept.last().unwrap();
            assert_eq!(newest["verified"]["passed"], json!(true), "{listed}");
            // The oldest that is kept has what was there on its day, and no more.
            let oldest = kept[0]["id"].as_str().unwrap();
            let restored = side.restore(&[oldest], "oldest");
            let rows: u64 = history(restored["url"].as_str().unwrap()).0.parse().unwrap();
            assert_prefix(restored["url"].as_str().unwrap(), rows);
            assert!((1..=days + 1).contains(&rows) && rows + keep > days, "{rows} of {}: {listed}", days + 1);
            side.destroy("oldest");
        }
        assert_prefix(side.restore(&[], "newest")["url"].as_str().unwrap(), days + 1);
        side.destroy("newest");
        assert_eq!(env.made(), ONE_SERVER);
        let manifests = side.stored().iter().filter(|path| path.ends_with("/manifest.json")).count();
        assert_eq!(manifests, backups.len());
    });
}

#[expect(clippy::disallowed_methods, reason = "how long the test is to take is for who runs it")]
fn days() -> u64 {
    std::env::var("TFDEV_TEST_DAYS").ok().and_then(|text| text.parse().ok()).unwrap_or(DAYS)
}

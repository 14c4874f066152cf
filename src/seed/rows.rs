//! The values of each row of `users` and `tasks`.
//!
//! What must hold: a row depends on the plan's distributions, its random seed and the row's index, never on how many rows
//! there are before or after it are made, nor by whom. Change [`GENERATOR_VERSION`] with every change of the values.

use uuid::Uuid;

use super::metadata;
use super::password::HASHES;
use super::people::Name;
use super::plan::Plan;
use super::random::{Key, RowRandom};
use super::words::title_and_description;

/// Part of each data set's fingerprint, so that bases and templates made by an older generator are not used again.
pub(super) const GENERATOR_VERSION: u32 = 1;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// When all data sets end: 2026-01-01T00:00:00Z, in microseconds since 2000-01-01T00:00:00Z, PostgreSQL's own epoch.
pub(super) const REFERENCE: i64 = 9_497 * DAY;

/// The status of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Todo,
    InProgress,
    Blocked,
    Done,
    Cancelled,
}

impl Status {
    /// Each status and its text in the database.
    pub(super) const ALL: [(&str, Status); 5] = [
        ("todo", Self::Todo),
        ("in_progress", Self::InProgress),
        ("blocked", Self::Blocked),
        ("done", Self::Done),
        ("cancelled", Self::Cancelled),
    ];

    /// The text in the database.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Todo => "todo",
            Self::InProgress => "in_progress",
            Self::Blocked => "blocked",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A row of `users`. Times are microseconds since PostgreSQL's epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) id: Uuid,
    pub(super) email: String,
    pub(super) password_hash: &'static str,
    pub(super) created_at: i64,
}

/// A row of `tasks`. Times are microseconds since PostgreSQL's epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) id: Uuid,
    pub(super) user_id: Uuid,
    pub(super) title: String,
    pub(super) description: Option<String>,
    pub(super) status: Status,
    pub(super) due_date: Option<i64>,
    pub(super) metadata: Vec<u8>,
    pub(super) created_at: i64,
}

/// Makes the rows of one load.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    plan: Plan,
    /// How many users of the same sequence are there already; their numbers are taken.
    first_user: u64,
    user_key: Key,
    task_key: Key,
}

impl Rows {
    /// Makes rows by `plan`, where the first `first_user` users of the sequence are in the database already.
    pub(super) fn new(plan: Plan, first_user: u64) -> Self {
        // The tasks of a later load are another sequence, so that their ids differ from all earlier ones.
        let task_key = Key::new(plan.rng, "tasks", first_user);
        Self { user_key: Key::new(plan.rng, "users", 0), task_key, plan, first_user }
    }

    /// The plan by which rows are made.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Makes user `index` of this load.
    pub(super) fn user(&self, index: u64) -> User {
        let number = self.first_user + index;
        let mut random = self.user_key.row(number);
        let (id, created_at) = self.user_identity(&mut random);
        let name = Name::draw(&mut random, &self.plan.locales);
        let email = name.email(number + 1, &mut random);
        User { id, email, password_hash: random.pick(&HASHES), created_at }
    }

    /// Draws what the tasks of a user need to know of it. These are the first values of its sequence, so a task finds
    /// them without making the whole user.
    fn user_identity(&self, random: &mut RowRandom) -> (Uuid, i64) {
        let id = random.uuid();
        // Nobody joins in the last fiftieth of the time, so everyone has had time to create tasks.
        let history = self.plan.history_days * 86_400;
        let joined = random.below(history - history / 50);
        (id, REFERENCE - seconds(history) + seconds(joined))
    }

    /// Makes task `index` of this load.
    pub(super) fn task(&self, index: u64) -> Task {
        let plan = &self.plan;
        let mut random = self.task_key.row(index);
        let id = random.uuid();
        let owner = self.first_user + random.skewed_below(plan.users, plan.ownership_skew);
        let (user_id, joined) = self.user_identity(&mut self.user_key.row(owner));
        let created_at = draw_between(&mut random, joined + SECOND, REFERENCE);
        let status = draw_status(&mut random, &plan.status, created_at);
        let due_date = random.percent(plan.due_percent).then(|| draw_due_date(&mut random, created_at));
        let colleague = Name::draw(&mut random, &plan.locales);
        let (title, description) = title_and_description(&mut random, &colleague);
        let metadata = metadata::draw(&mut random, status, plan.empty_metadata_percent, &plan.locales);
        Task { id, user_id, title, description, status, due_date, metadata, created_at }
    }
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds).expect("a history is limited to a century") * SECOND
}

/// Draws a time from `start` up to, but not including, `end`.
fn draw_between(random: &mut RowRandom, start: i64, end: i64) -> i64 {
    let span = u64::try_from(end - start).expect("the end is after the start");
    start + i64::try_from(random.below(span)).expect("it is below the span")
}

/// Draws a status. With a task's age the weights of done and cancelled grow; after a year they are 25 times as high.
fn draw_status(random: &mut RowRandom, weights: &[(Status, u64)], created_at: i64) -> Status {
    let age_days = u64::try_from((REFERENCE - created_at) / DAY).expect("tasks are created before the reference date");
    let mut aged = [(Status::Todo, 0); Status::ALL.len()];
    for (slot, (status, weight)) in aged.iter_mut().zip(weights) {
        let factor = if matches!(status, Status::Done | Status::Cancelled) { 30 + 2 * age_days } else { 30 };
        *slot = (*status, weight * factor);
    }
    random.weighted(&aged)
}

/// Draws an end of a working day, at 17:00 UTC, one to 45 days after the creation, sooner rather than later.
fn draw_due_date(random: &mut RowRandom, created_at: i64) -> i64 {
    let days = 1 + i64::try_from(random.skewed_below(45, 2)).expect("it is below 45");
    (created_at / DAY + days) * DAY + 17 * 3_600 * SECOND
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn tasks(plan: Plan) -> Vec<Task> {
        let count = plan.tasks;
        let rows = Rows::new(plan, 0);
        (0..count).map(|index| rows.task(index)).collect()
    }

    fn share(part: usize, whole: usize) -> f64 {
        f64::from(u32::try_from(part).unwrap()) / f64::from(u32::try_from(whole).unwrap())
    }

    #[test]
    fn the_reference_date_is_the_documented_one() {
        let epoch: jiff::Timestamp = "2000-01-01T00:00:00Z".parse().unwrap();
        let reference: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(reference.as_microsecond() - epoch.as_microsecond(), REFERENCE);
    }

    #[test]
    fn addresses_and_ids_of_a_hundred_thousand_users_are_unique() {
        let rows = Rows::new(Plan::new(100_000, 0), 0);
        let users: Vec<User> = (0..100_000).map(|index| rows.user(index)).collect();
        assert_eq!(users.iter().map(|user| &user.email).collect::<HashSet<_>>().len(), 100_000);
        assert_eq!(users.iter().map(|user| user.id).collect::<HashSet<_>>().len(), 100_000);
    }

    #[test]
    fn a_later_load_continues_the_users_and_has_tasks_of_its_own() {
        let first = Rows::new(Plan::new(20, 50), 0);
        let second = Rows::new(Plan::new(20, 50), 10);
        assert_eq!(second.user(0), first.user(10));
        let ids: HashSet<Uuid> = (0..50).flat_map(|index| [first.task(index).id, second.task(index).id]).collect();
        assert_eq!(ids.len(), 100);
    }

    #[test]
    fn a_task_belongs_to_a_user_and_comes_after_it_and_before_its_due_date() {
        let rows = Rows::new(Plan::new(50, 2_000), 5);
        let joined: HashMap<Uuid, i64> =
            (0..50).map(|index| rows.user(index)).map(|user| (user.id, user.created_at)).collect();
        for task in (0..2_000).map(|index| rows.task(index)) {
            assert!(joined[&task.user_id] < task.created_at);
            assert!(task.created_at < REFERENCE);
            assert!(task.due_date.is_none_or(|due| task.created_at < due));
        }
    }

    #[test]
    fn statuses_look_like_real_work() {
        let tasks = tasks(Plan::new(100, 5_000));
        let is_closed = |task: &&Task| matches!(task.status, Status::Done | Status::Cancelled);
        let closed_share = |tasks: &[&Task]| share(tasks.iter().copied().filter(is_closed).count(), tasks.len());
        let (old, young): (Vec<&Task>, Vec<&Task>) =
            tasks.iter().partition(|task| task.created_at < REFERENCE - 365 * DAY);
        let young: Vec<&Task> = young.into_iter().filter(|task| task.created_at > REFERENCE - 30 * DAY).collect();
        assert!(closed_share(&old) > 0.85, "{}", closed_share(&old));
        assert!(closed_share(&young) < 0.55, "{}", closed_share(&young));
        for (text, status) in Status::ALL {
            assert!(tasks.iter().any(|task| task.status == status), "no task is {text}");
            assert_eq!(status.as_str(), text);
        }
    }

    #[test]
    fn due_dates_descriptions_and_metadata_have_their_shares() {
        let tasks = tasks(Plan::new(100, 5_000));
        let part = |is: fn(&Task) -> bool| share(tasks.iter().filter(|task| is(task)).count(), tasks.len());
        let within = |share: f64, expected: f64| (share - expected).abs() < 0.03;
        assert!(within(part(|task| task.due_date.is_some()), 0.70));
        assert!(within(part(|task| task.metadata == b"{}"), 0.12));
        assert!(within(part(|task| task.description.is_none()), 0.15));
        assert!(tasks.iter().all(|task| serde_json::from_slice::<serde_json::Value>(&task.metadata).is_ok()));
        assert!(tasks.iter().all(|task| !task.title.contains('{')), "a placeholder is left");
        assert!(tasks.iter().filter_map(|task| task.description.as_ref()).all(|text| !text.contains('{')));
    }

    #[test]
    fn a_few_users_own_most_tasks() {
        let mut owned: HashMap<Uuid, usize> = HashMap::new();
        for task in tasks(Plan::new(200, 10_000)) {
            *owned.entry(task.user_id).or_default() += 1;
        }
        let mut counts: Vec<usize> = owned.values().copied().collect();
        counts.sort_unstable_by(|left, right| right.cmp(left));
        let heaviest = share(counts.iter().take(20).sum(), 10_000);
        assert!((0.42..0.52).contains(&heaviest), "a tenth of the users owns {heaviest}");
    }
}

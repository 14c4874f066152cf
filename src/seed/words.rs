//! Titles and descriptions of tasks: work as teams write it down, so that full-text search finds sensible words.

use super::people::Name;
use super::random::RowRandom;

/// A kind of work with the words that go together in it.
struct Area {
    verbs: &'static [&'static str],
    objects: &'static [&'static str],
    contexts: &'static [&'static str],
    reasons: &'static [&'static str],
}

/// The kinds of work, with how much of it there is.
const AREAS: [(&Area, u64); 7] =
    [(&SOFTWARE, 32), (&DESIGN, 12), (&OPERATIONS, 16), (&SUPPORT, 14), (&MARKETING, 10), (&FINANCE, 8), (&PEOPLE, 8)];

const SOFTWARE: Area = Area {
    verbs: &["Fix", "Refactor", "Review", "Test", "Document", "Speed up", "Replace", "Extend"],
    objects: &[
        "the login flow",
        "the search index",
        "the payment webhook",
        "the task export",
        "the notification service",
        "the calendar sync",
        "the permission checks",
        "the file upload",
        "the session cache",
        "the import wizard",
        "the audit log",
        "the mobile client",
        "the rate limiter",
        "the recurring tasks",
    ],
    contexts: &[
        "for large workspaces",
        "on slow networks",
        "before the next release",
        "behind a feature flag",
        "in the API",
        "for guest accounts",
        "after the framework upgrade",
        "in offline mode",
    ],
    reasons: &[
        "Since the last release {object} fails when two people save at the same time.",
        "Users with more than a thousand tasks wait several seconds for {object}.",
        "The error report shows a timeout in {object}, followed by a retry that succeeds.",
        "We have no integration test for {object}, so regressions reach production.",
        "A memory leak in {object} forces a restart every few days.",
    ],
};

const DESIGN: Area = Area {
    verbs: &["Sketch", "Redesign", "Prototype", "Polish", "Test with users", "Simplify"],
    objects: &[
        "the onboarding screens",
        "the dashboard",
        "the empty states",
        "the settings page",
        "the color palette",
        "the icon set",
        "the task detail view",
        "the keyboard shortcuts",
        "the dark theme",
        "the signup form",
    ],
    contexts: &[
        "for tablets",
        "with better contrast",
        "for new customers",
        "in the design system",
        "for screen readers",
    ],
    reasons: &[
        "In five of eight interviews people did not find {object} without help.",
        "The contrast in {object} is below the accessibility guideline.",
        "We promised customers a clearer version of {object} this quarter.",
        "Three teams have their own version of {object}; we want a single one.",
    ],
};

const OPERATIONS: Area = Area {
    verbs: &["Upgrade", "Monitor", "Migrate", "Automate", "Rotate", "Back up", "Check", "Document"],
    objects: &[
        "the database cluster",
        "the TLS certificates",
        "the staging environment",
        "the deploy pipeline",
        "the backup schedule",
        "the alert rules",
        "the access keys",
        "the container images",
        "the log retention",
        "the message queue",
    ],
    contexts: &[
        "in the Frankfurt region",
        "without downtime",
        "before the holiday freeze",
        "for the disaster recovery drill",
        "on the new hardware",
    ],
    reasons: &[
        "The on-call engineer was paged twice last week because of {object}.",
        "The auditor asked for evidence that {object} follows the written procedure.",
        "Disk usage grows by four percent a week, mostly from {object}.",
        "The vendor ends support for the version behind {object} in spring.",
    ],
};

const SUPPORT: Area = Area {
    verbs: &["Answer", "Investigate", "Follow up on", "Escalate", "Reproduce", "Close"],
    objects: &[
        "the refund request",
        "the duplicate invoice",
        "the missing attachment",
        "the password reset complaint",
        "the data export request",
        "the delayed email",
        "the broken link in the newsletter",
        "the question about team seats",
    ],
    contexts: &[
        "from the hospital account",
        "with the billing team",
        "within the agreed time",
        "for the pilot customer",
    ],
    reasons: &[
        "The customer wrote three times about {object} and wants a call.",
        "Screenshots are attached; {object} happens only in Safari.",
        "The account manager asks for an update on {object} by the end of the day.",
        "This is the fourth report about {object} this month.",
    ],
};

const MARKETING: Area = Area {
    verbs: &["Write", "Publish", "Plan", "Translate", "Proofread", "Schedule"],
    objects: &[
        "the product newsletter",
        "the case study",
        "the launch announcement",
        "the webinar slides",
        "the price comparison",
        "the conference talk",
        "the customer survey",
        "the landing page copy",
    ],
    contexts: &[
        "for the spring campaign",
        "in French and German",
        "with the partner agency",
        "for the trade fair in Lyon",
    ],
    reasons: &[
        "The draft of {object} is in the shared folder and needs a second pair of eyes.",
        "Open rates went down; {object} should be shorter and start with the benefit.",
        "The printer needs {object} two weeks before the event.",
    ],
};

const FINANCE: Area = Area {
    verbs: &["Reconcile", "Approve", "Prepare", "Archive", "Forecast", "Check"],
    objects: &[
        "the travel expenses",
        "the quarterly budget",
        "the supplier invoices",
        "the payroll report",
        "the tax filing",
        "the subscription revenue",
        "the insurance renewal",
    ],
    contexts: &["for the board meeting", "before the audit", "with the new cost centers", "for the Lisbon office"],
    reasons: &[
        "Two receipts are missing before {object} can be closed.",
        "The numbers in {object} differ from the ledger by a small amount.",
        "The bank changed its file format, which affects {object}.",
    ],
};

const PEOPLE: Area = Area {
    verbs: &["Schedule", "Prepare", "Organize", "Update", "Announce", "Collect feedback on"],
    objects: &[
        "the interview with the backend candidate",
        "the onboarding plan",
        "the team offsite",
        "the performance reviews",
        "the vacation calendar",
        "the first aid training",
        "the desk booking rules",
        "the mentoring program",
    ],
    contexts: &["for the Berlin team", "with all team leads", "before the summer break", "for remote colleagues"],
    reasons: &[
        "Several colleagues asked about {object} in the last all-hands meeting.",
        "We agreed to try a new format for {object} and to compare it after two months.",
        "The works council wants to see {object} before it is announced.",
    ],
};

/// Sentences that fit every kind of work.
const NOTES: [&str; 10] = [
    "{person} has the background and can help.",
    "Agreed with {person} on Tuesday; details are in the meeting notes.",
    "Please keep {person} in the loop.",
    "This blocks two other tasks, so a partial solution is welcome.",
    "No hurry, but it should not wait for another quarter.",
    "Done means that it is reviewed, documented and announced.",
    "Check first whether the earlier decision still holds.",
    "Split it if it takes longer than three days.",
    "See the linked document for numbers and history.",
    "Start with the smallest change that helps and measure again.",
];

/// Draws a title and, for most tasks, a description. `colleague` may be named in either.
pub(super) fn title_and_description(random: &mut RowRandom, colleague: &Name) -> (String, Option<String>) {
    let area = random.weighted(&AREAS);
    let object = random.pick(area.objects);
    let title = title(random, area, object, colleague);
    if random.percent(15) {
        return (title, None);
    }
    let mut description = random.pick(area.reasons).replace("{object}", object);
    for _ in 0..random.below(4) {
        description.push(' ');
        description.push_str(&random.pick(&NOTES).replace("{person}", &colleague.full()));
    }
    (title, Some(description))
}

fn title(random: &mut RowRandom, area: &Area, object: &str, colleague: &Name) -> String {
    if random.percent(6) {
        let occasion = random.pick(&["Ask {person} about", "Meet {person} about", "Hand over to {person}:"]);
        return format!("{} {object}", occasion.replace("{person}", &colleague.full()));
    }
    let verb = random.pick(area.verbs);
    if random.percent(55) {
        format!("{verb} {object} {}", random.pick(area.contexts))
    } else {
        format!("{verb} {object}")
    }
}

/// Draws one step of a checklist.
pub(super) fn checklist_step(random: &mut RowRandom) -> &'static str {
    random.pick(&[
        "Collect the requirements",
        "Write a first draft",
        "Ask for a review",
        "Agree on a date",
        "Inform the team",
        "Update the documentation",
        "Test on staging",
        "Get the approval",
        "Measure the result",
        "Clean up afterwards",
    ])
}

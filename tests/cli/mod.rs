//! Words in, words out: arguments, files, streams and exit statuses (`CLI.md`). Nothing here needs Docker, but where it
//! is there, tests also see that bad input starts nothing.

mod config;
mod input;
mod output;

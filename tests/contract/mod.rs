//! What people and scripts rely on when nothing is wrong (`CLI.md`, `CON-003-postgres.md`): the same cases over every
//! engine, as root and as an ordinary user. What an engine cannot do is asserted in the case, not left out.
//!
//! `container` alone is about one engine: what Docker and its tools see.

mod concurrency;
mod container;
mod data;
mod fresh;
mod lifecycle;
mod ports;
mod security;

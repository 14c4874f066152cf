//! What people and scripts rely on when nothing is wrong (`CLI.md`, `CON-003-postgres.md`).

mod concurrency;
mod container;
mod data;
mod lifecycle;
mod ports;

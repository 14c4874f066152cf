//! tfdev: a real PostgreSQL 15 for development and tests.

pub mod config;
pub mod engine;
pub mod error;
pub mod event;
pub mod image;
pub mod migrate;
pub mod pg;
pub mod profile;
pub mod seed;

pub use error::{Error, ErrorKind, Result};

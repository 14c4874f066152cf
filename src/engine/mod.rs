//! engine

pub mod docker;

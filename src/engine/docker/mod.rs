//! docker

pub mod endpoint;

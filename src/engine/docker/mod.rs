//! docker

pub mod connect;
pub mod endpoint;
pub mod errors;
pub mod exec;
#[cfg(test)]
mod testing;

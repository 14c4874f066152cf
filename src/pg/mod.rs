//! pg
#[cfg(test)]
pub(crate) mod test_server;

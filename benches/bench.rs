//! Measurements against the same work without tfdev.

fn main() {}

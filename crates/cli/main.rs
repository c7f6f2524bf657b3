//! The `zoo` command.
fn main() {}

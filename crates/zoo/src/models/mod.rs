//! One file per family. Each has the network, and `specs`: its line in the registry's table.

pub mod lenet;

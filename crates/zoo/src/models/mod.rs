//! One file per family. Each has the network, and `specs`: its line in the registry's table.

pub(crate) mod cifar_resnet;
pub(crate) mod lenet;
pub(crate) mod mlp;
pub(crate) mod resnet;

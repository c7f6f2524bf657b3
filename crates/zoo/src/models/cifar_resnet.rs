//! The ResNets for CIFAR-10 (He, Zhang, Ren and Sun, arXiv 1512.03385, section 4.2): 6n + 2 layers, n basic
//! blocks in each of three stages of 16, 32 and 64 maps.
//!
//! Without a suffix they have the paper's shortcut without parameters (option A), with the keys and the
//! initialisation of akamaster/pytorch_resnet_cifar10. With the suffix `b` the shortcut is a 1×1 convolution
//! (option B), as in chenyaofo/pytorch-cifar-models.
//!
//! Differs from the paper in option B, which the paper uses on ImageNet only.

use super::resnet::{Block, Plan, ResNet, ShortcutKind, StemKind};
use crate::layers::{KAIMING_FAN_IN, KAIMING_FAN_OUT, PYTORCH_DEFAULT};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;

/// What the two reference implementations differ in.
#[derive(Clone, Copy)]
enum Source {
    Akamaster,
    Chenyaofo,
}
use Source::{Akamaster, Chenyaofo};

/// Name, blocks per stage, and reference implementation.
const VARIANTS: [(&str, usize, Source); 10] = [
    ("cifar_resnet20", 3, Akamaster),
    ("cifar_resnet32", 5, Akamaster),
    ("cifar_resnet44", 7, Akamaster),
    ("cifar_resnet56", 9, Akamaster),
    ("cifar_resnet110", 18, Akamaster),
    ("cifar_resnet20b", 3, Chenyaofo),
    ("cifar_resnet32b", 5, Chenyaofo),
    ("cifar_resnet44b", 7, Chenyaofo),
    ("cifar_resnet56b", 9, Chenyaofo),
    ("cifar_resnet110b", 18, Chenyaofo),
];

impl Source {
    fn head(self) -> &'static str {
        match self {
            Akamaster => "linear",
            Chenyaofo => "fc",
        }
    }
}

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |&(name, depth, source): &'static (&'static str, usize, Source)| Spec {
        name,
        family: "cifar_resnet",
        input: [3, 32, 32],
        num_classes: 10,
        stem: "conv1",
        head: source.head(),
        build: Box::new(move |config, vb| build(depth, source, config, vb)),
    };
    VARIANTS.iter().map(spec).collect()
}

fn build(depth: usize, source: Source, config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let (shortcut, conv_init, head_init) = match source {
        Akamaster => (ShortcutKind::PadChannels, KAIMING_FAN_IN, KAIMING_FAN_IN),
        Chenyaofo => (ShortcutKind::Projection("downsample"), KAIMING_FAN_OUT, PYTORCH_DEFAULT),
    };
    let plan = Plan {
        stem: StemKind::FullResolution(3),
        block: Block::Basic,
        shortcut,
        squeeze: None,
        width: 16,
        depths: &[depth; 3],
        head: source.head(),
        conv_init,
        head_init,
    };
    Ok(Box::new(ResNet::new(&plan, config, vb)?))
}

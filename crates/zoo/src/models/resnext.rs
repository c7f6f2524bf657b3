//! ResNeXt (Xie, Girshick, Dollár, Tu and He, "Aggregated residual transformations for deep neural networks",
//! arXiv 1611.05431, table 1 and section 5.2 for CIFAR): ResNets whose 3×3 convolutions are in groups.
//!
//! The networks for ImageNet have the keys, shapes and initialisation of torchvision's weights, resnext29_32x4d
//! those of kuangliu/pytorch-cifar.
//!
//! Differs from the paper: resnext101_32x8d is not in it (it is the one of arXiv 1805.00932). On images of at most
//! 64 pixels the networks for ImageNet have a 3×3 convolution with stride 1 and no pooling as their stem, unless
//! [`Config::stem`] says otherwise. As in kuangliu/pytorch-cifar, the stem of resnext29_32x4d is a 1×1
//! convolution, where the paper has 3×3, and its 32 groups are 4 wide; the paper's have 8 × 64 and 16 × 64.

use super::resnet::{Block, Plan, ResNet, ShortcutKind, StemKind};
use crate::layers::PYTORCH_DEFAULT;
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;

struct Variant {
    name: &'static str,
    /// Of the 3×3 convolution of each block: the paper's C.
    cardinality: usize,
    /// Maps of each group in the first stage: the paper's d.
    base_width: usize,
    /// Blocks of each stage.
    depths: &'static [usize],
}

const VARIANTS: [Variant; 4] = [
    Variant { name: "resnext50_32x4d", cardinality: 32, base_width: 4, depths: &[3, 4, 6, 3] },
    Variant { name: "resnext101_32x8d", cardinality: 32, base_width: 8, depths: &[3, 4, 23, 3] },
    Variant { name: "resnext101_64x4d", cardinality: 64, base_width: 4, depths: &[3, 4, 23, 3] },
    Variant { name: "resnext29_32x4d", cardinality: 32, base_width: 4, depths: &[3, 3, 3] },
];

impl Variant {
    /// The networks for CIFAR have three stages.
    fn is_cifar(&self) -> bool {
        self.depths.len() == 3
    }
}

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| {
        let (side, num_classes, head) =
            if variant.is_cifar() { (32, 10, "linear") } else { (224, 1000, "fc") };
        Spec {
            name: variant.name,
            family: "resnext",
            input: [3, side, side],
            num_classes,
            stem: "conv1",
            head,
            build: Box::new(|config, vb| build(variant, config, vb)),
        }
    };
    VARIANTS.iter().map(spec).collect()
}

fn build(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let block = Block::Bottleneck { groups: variant.cardinality, base_width: variant.base_width };
    let plan = Plan { block, depths: variant.depths, ..Plan::torchvision(config) };
    let plan = if variant.is_cifar() {
        Plan {
            stem: StemKind::FullResolution(1),
            shortcut: ShortcutKind::Projection("shortcut"),
            head: "linear",
            conv_init: PYTORCH_DEFAULT,
            ..plan
        }
    } else {
        plan
    };
    Ok(Box::new(ResNet::new(&plan, config, vb)?))
}

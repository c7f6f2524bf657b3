//! Wide residual networks for ImageNet (Zagoruyko and Komodakis, "Wide residual networks", arXiv 1605.07146,
//! table 8): ResNets whose 3×3 convolutions are twice as wide, with the keys, shapes and
//! initialisation of torchvision's weights. The networks of the same paper for CIFAR are in the family `wrn`.
//!
//! Differs from the paper, as torchvision does: the normalisation comes after the convolution, not before it, and
//! where a bottleneck halves the map its 3×3 convolution has the stride. wide_resnet101_2 is torchvision's. On
//! images of at most 64 pixels the stem is a 3×3 convolution with stride 1 and no pooling, unless
//! [`Config::stem`] says otherwise.

use super::resnet::{Block, Plan, ResNet};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;

/// Name, and blocks of each stage.
const VARIANTS: [(&str, [usize; 4]); 2] =
    [("wide_resnet50_2", [3, 4, 6, 3]), ("wide_resnet101_2", [3, 4, 23, 3])];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |(name, depths): &'static (&'static str, [usize; 4])| Spec {
        name,
        family: "wide_resnet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "conv1",
        head: "fc",
        build: Box::new(|config, vb| build(depths, config, vb)),
    };
    VARIANTS.iter().map(spec).collect()
}

fn build(depths: &[usize], config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let block = Block::Bottleneck { groups: 1, base_width: 128 };
    let plan = Plan { block, depths, ..Plan::torchvision(config) };
    Ok(Box::new(ResNet::new(&plan, config, vb)?))
}

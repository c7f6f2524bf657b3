//! Wide residual networks for CIFAR (Zagoruyko and Komodakis, "Wide residual networks", arXiv 1605.07146,
//! table 1): pre-activation ResNets of (depth - 4) / 6 basic blocks per stage, whose three stages have `widen`
//! times 16, 32 and 64 maps. Keys and initialisation are those of xternalz/WideResNet-pytorch. The networks of the
//! same paper for ImageNet are in the family `wide_resnet`.
//!
//! Dropout lies between the two convolutions of a block (section 2.4). It is off by default, as in most of the
//! paper's tables; where it is on, the paper has 0.3. They are for small images, whatever [`Config::stem`] says.
//!
//! Differs from the paper in where dropout lies: before the second normalisation, as in that implementation.

use super::preact_resnet::{Plan, PreActResNet, Source};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;

/// Name, depth and widening factor.
const VARIANTS: [(&str, usize, usize); 2] = [("wrn_28_10", 28, 10), ("wrn_16_4", 16, 4)];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |&(name, depth, widen): &'static (&'static str, usize, usize)| Spec {
        name,
        family: "wrn",
        input: [3, 32, 32],
        num_classes: 10,
        stem: Source::Xternalz.stem(),
        head: Source::Xternalz.head(),
        build: Box::new(move |config, vb| build(depth, widen, config, vb)),
    };
    VARIANTS.iter().map(spec).collect()
}

fn build(depth: usize, widen: usize, config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let plan = Plan {
        source: Source::Xternalz,
        is_bottleneck: false,
        stem_width: 16,
        width: 16 * widen,
        depths: &[(depth - 4) / 6; 3],
        dropout: 0.0,
    };
    Ok(Box::new(PreActResNet::new(&plan, config, vb)?))
}

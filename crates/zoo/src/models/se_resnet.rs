//! SE-ResNet (Hu, Shen and Sun, "Squeeze-and-excitation networks", arXiv 1709.01507, table 1): a ResNet whose
//! residual functions are gated, channel by channel, before the shortcut is added. Keys and shapes are those of
//! timm's `seresnet50`.
//!
//! Differs from the paper, as timm does: where a bottleneck halves the map its 3×3 convolution has the stride. And
//! from timm in its initial values: the last scale of each residual function starts at 1, as in torchvision's
//! ResNets, where timm has 0, with which no parameter before it has a gradient in the first step. On images of at
//! most 64 pixels the stem is a 3×3 convolution with stride 1 and no pooling, unless [`Config::stem`] says otherwise.

use super::resnet::{Plan, ResNet};
use crate::registry::Spec;

/// The paper's r: so many times fewer channels between the two layers of a gate.
const REDUCTION: usize = 16;

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "se_resnet50",
        family: "se_resnet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "conv1",
        head: "fc",
        build: Box::new(|config, vb| {
            let plan = Plan { depths: &[3, 4, 6, 3], squeeze: Some(REDUCTION), ..Plan::torchvision(config) };
            Ok(Box::new(ResNet::new(&plan, config, vb)?))
        }),
    }]
}

//! ZFNet (Zeiler and Fergus, "Visualizing and understanding convolutional networks", arXiv 1311.2901, figure 3):
//! AlexNet with smaller windows in the first layers. The authors published no weights; keys are Caffe's names of
//! AlexNet's layers.
//!
//! The figure leaves paddings open. Those here give its maps: 110, 55 after pooling, 26, 13 after pooling, 13, 13,
//! 13, and 6 after pooling. The constants of the contrast normalisation across maps are AlexNet's.
//!
//! Differs from the paper: weights start as PyTorch's layers do, because its constant deviation of 0.01 suits
//! pixels of 0 to 255, and filters of a large norm are not scaled down. On images of at most 64 pixels the first
//! convolution is 3×3 with stride 1, unless [`Config::stem`](crate::Config::stem) says otherwise.

use super::alexnet::{AlexNet, DROPPED_LINEARS, NORM, Plan, SMALL_STEM, Step, row};
use crate::registry::Spec;

const POOL: Step = Step::MaxPool { ceil_mode: true };

const PLAN: Plan = Plan {
    convs: [
        row("conv1", 96, (7, 2, 1), &[POOL, NORM]),
        row("conv2", 256, (5, 2, 0), &[POOL, NORM]),
        row("conv3", 384, (3, 1, 1), &[]),
        row("conv4", 384, (3, 1, 1), &[]),
        row("conv5", 256, (3, 1, 1), &[POOL]),
    ],
    grid: None,
    linears: DROPPED_LINEARS,
};

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "zfnet",
        family: "zfnet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "conv1",
        head: "fc8",
        build: Box::new(|config, vb| {
            let mut plan = PLAN;
            if config.small_stem() {
                plan.convs[0] = row("conv1", 96, SMALL_STEM, &[POOL, NORM]);
            }
            Ok(Box::new(AlexNet::new(&plan, config, vb)?))
        }),
    }]
}

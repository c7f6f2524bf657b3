//! ShuffleNet (Zhang, Zhou, Lin and Sun, "ShuffleNet: an extremely efficient convolutional neural network for mobile
//! devices", arXiv 1707.01083, table 1, three groups). torchvision and timm lack it; keys, shapes and initialisation
//! are those of the authors' megvii-model/ShuffleNet-Series.
//!
//! Differs from the paper, as the authors' code does: the channels inside a unit are a quarter of the stage's, in
//! the units of stride 2 too; the shuffle is the inverse of figure 1's; the classifier has no bias. Differs from
//! that code: β of normalisations starts at 0, there at 0.0001, and the pooling in front of the classifier is
//! global, which for 224 pixels is the same. On images of at most 64 pixels the stem has stride 1 and no pooling, as
//! ShuffleNetV2 has it for CIFAR.

use crate::layers::{ConvNorm, Linear};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::{self, Identity, Relu};
use zoo_ops::{FeatureMap, Window2d, avg_pool2d, channel_shuffle, concat, global_avg_pool2d, max_pool2d};

/// Groups of the 1×1 convolutions.
const GROUPS: usize = 3;

/// Stages 2 to 4 of table 1 for three groups: output channels and units. The first unit of each halves the map.
const STAGES: [(usize, usize); 3] = [(240, 4), (480, 8), (960, 4)];

/// Channels of the first convolution.
const STEM: usize = 24;

/// Channels of a stage for each one inside its units.
const BOTTLENECK_RATIO: usize = 4;

const NARROW: Init = Init::Randn { mean: 0.0, stdev: 0.01 };

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "shufflenet_v1",
        family: "shufflenet_v1",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "first_conv.0",
        head: "classifier.0",
        build: Box::new(|config, vb| Ok(Box::new(ShuffleNetV1::new(config, vb)?))),
    }]
}

struct ShuffleNetV1 {
    first_conv: ConvNorm,
    max_pool: Option<Window2d>,
    units: Vec<Unit>,
    classifier: Linear,
}

impl ShuffleNetV1 {
    /// Parameters `first_conv`, `features.<unit>.…` and `classifier.0`.
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let small = config.small_stem();
        let first = vb.pp("first_conv");
        let shape = (3, if small { 1 } else { 2 }, 1);
        let first_conv =
            ConvNorm::new(config.in_chans, STEM, shape, Relu, NARROW, [first.pp(0), first.pp(1)])?;
        let (mut c_in, mut units) = (STEM, Vec::new());
        for (c_out, count) in STAGES {
            for unit in 0..count {
                let vb = vb.pp("features").pp(units.len());
                // So few channels enter the very first unit that its first convolution has no groups.
                let groups = if units.is_empty() { 1 } else { GROUPS };
                units.push(Unit::new(c_in, c_out, groups, unit == 0, vb)?);
                c_in = c_out;
            }
        }
        Ok(Self {
            first_conv,
            max_pool: (!small).then(|| Window2d::square(3, 2).padding(1)),
            units,
            classifier: Linear::without_bias(c_in, config.num_classes, NARROW, vb.pp("classifier").pp(0))?,
        })
    }
}

impl Network for ShuffleNetV1 {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.first_conv.forward(xs, train)?;
        if let Some(window) = &self.max_pool {
            xs = max_pool2d(&xs, window)?; // N x 24 x 56 x 56 from 224 pixels
        }
        for unit in &self.units {
            xs = unit.forward(&xs, train)?;
        }
        // N x 960 x 7 x 7
        self.classifier.forward(&global_avg_pool2d(&xs)?)
    }
}

/// Figure 2b, or with stride 2 figure 2c: there the pooled input lies beside the result instead of being added.
struct Unit {
    halves: bool,
    squeeze: ConvNorm,
    depthwise: ConvNorm,
    expand: ConvNorm,
}

impl Unit {
    fn new(c_in: usize, c_out: usize, groups: usize, halves: bool, vb: VarBuilder<'_>) -> Result<Self> {
        let (c, stride) = (c_out / BOTTLENECK_RATIO, if halves { 2 } else { 1 });
        let conv = |c_in, c_out, shape: (usize, usize, usize), activation: Activation, paths: [&str; 2]| {
            // The authors' rule: the inputs of a group are the inverse of the deviation.
            let init = Init::Randn { mean: 0.0, stdev: 1.0 / (c_in / shape.2) as f64 };
            ConvNorm::new(c_in, c_out, shape, activation, init, paths.map(|path| vb.pp(path)))
        };
        let added = if halves { c_out - c_in } else { c_out };
        Ok(Self {
            halves,
            squeeze: conv(c_in, c, (1, 1, groups), Relu, ["branch_main_1.0", "branch_main_1.1"])?,
            depthwise: conv(c, c, (3, stride, c), Identity, ["branch_main_1.3", "branch_main_1.4"])?,
            expand: conv(c, added, (1, 1, GROUPS), Relu, ["branch_main_2.0", "branch_main_2.1"])?,
        })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let ys = self.depthwise.forward(&self.squeeze.forward(xs, train)?, train)?;
        let (_, _, _, c) = ys.dims();
        // The inverse of a shuffle of three groups is one of a third of the channels as groups.
        let ys = channel_shuffle(&ys, c / GROUPS)?;
        if self.halves {
            let pooled = avg_pool2d(xs, &Window2d::square(3, 2).padding(1), true)?;
            concat(&[&pooled, &self.expand.forward(&ys, train)?])
        } else {
            self.expand.forward_residual(&ys, xs, train)
        }
    }
}

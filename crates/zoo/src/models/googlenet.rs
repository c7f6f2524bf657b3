//! GoogLeNet (Szegedy et al., "Going deeper with convolutions", arXiv 1409.4842, table 1), with the keys, shapes and
//! initialisation of torchvision's.
//!
//! Differs from the paper, as torchvision does: batch-norm (with eps 1e-3) follows each convolution and there is no
//! local response normalisation; the "5×5" branch has a 3×3 convolution; dropout is 0.2, not 0.4, before the last
//! layer; the auxiliary heads average maps of any size to 4×4, where the paper has 5×5 windows with stride 3 and so
//! 4×4 from 14×14.
//!
//! In training two auxiliary heads classify what 4a and 4d give; each one's loss counts 0.3 (section 5). A given
//! probability of dropout holds in them too, where it is 0.7 by default.
//!
//! On images of at most 64 pixels `conv1` is 3×3 with stride 1 and the first two pools are left out, so that 3a sees
//! the full resolution, as in kuangliu/pytorch-cifar and weiaicunzai/pytorch-cifar100 (whose stem has no other
//! convolution; here `conv2` and `conv3` stay).

use crate::inception::{Branch, ConvNorm, Layer, Sequence, Style, branch, conv, max_pool, module};
use crate::layers::Linear;
use crate::model::{Auxiliary, Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::Relu;
use zoo_ops::rng::Noise;
use zoo_ops::{FeatureMap, Window2d, activation, adaptive_avg_pool2d, dropout, flatten, global_avg_pool2d};

/// Table 1: of each module the maps of #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5 and pool proj.
const MODULES: [(&str, [usize; 6]); 9] = [
    ("3a", [64, 96, 128, 16, 32, 32]),
    ("3b", [128, 128, 192, 32, 96, 64]),
    ("4a", [192, 96, 208, 16, 48, 64]),
    ("4b", [160, 112, 224, 24, 64, 64]),
    ("4c", [128, 128, 256, 24, 64, 64]),
    ("4d", [112, 144, 288, 32, 64, 64]),
    ("4e", [256, 160, 320, 32, 128, 128]),
    ("5a", [256, 160, 320, 32, 128, 128]),
    ("5b", [384, 192, 384, 48, 128, 128]),
];

/// torchvision cuts this normal distribution off 200 standard deviations from its mean, which is nowhere.
const INIT: Init = Init::Randn { mean: 0.0, stdev: 0.01 };

const STYLE: Style = Style { bias: false, init: INIT, eps: 1e-3 };

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "googlenet",
        family: "googlenet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "conv1.conv",
        head: "fc",
        build: Box::new(build),
    }]
}

/// Figure 2b.
fn inception(name: &str, [c1, c3_reduce, c3, c5_reduce, c5, pool]: [usize; 6]) -> Layer {
    module(
        format!("inception{name}"),
        vec![
            branch![conv("branch1", (1, 1), c1)],
            branch![conv("branch2.0", (1, 1), c3_reduce), conv("branch2.1", (3, 3), c3)],
            branch![conv("branch3.0", (1, 1), c5_reduce), conv("branch3.1", (3, 3), c5)],
            branch![max_pool(1, 1), conv("branch4.1", (1, 1), pool)],
        ],
    )
}

/// The max-pools that halve the map.
fn halve(kernel: usize) -> Layer {
    Layer::MaxPool(Window2d::square(kernel, 2).ceil_mode(true))
}

/// The first rows of table 1. N x 192 x 28 x 28 from 224 pixels.
fn stem(small: bool) -> Branch {
    let (conv2, conv3) = (conv("conv2", (1, 1), 64), conv("conv3", (3, 3), 192));
    if small {
        branch![conv("conv1", (3, 3), 64), conv2, conv3]
    } else {
        branch![conv("conv1", (7, 7), 64).window(2, 3), halve(3), conv2, conv3, halve(3)]
    }
}

fn build(config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let (mut stages, mut c) = (Vec::with_capacity(3), config.in_chans);
    let mut layers = stem(config.small_stem());
    for (name, widths) in MODULES {
        layers.push(inception(name, widths));
        match name {
            "3b" => layers.push(halve(3)),
            "4e" => layers.push(halve(2)),
            "4a" | "4d" | "5b" => {
                let stage = Sequence::new(&std::mem::take(&mut layers), c, &STYLE, &vb)?;
                c = stage.c_out();
                stages.push(stage);
            }
            _ => {}
        }
    }
    let head = |name, stage: &Sequence| AuxiliaryHead::new(stage.c_out(), config, vb.pp(name));
    Ok(Box::new(GoogLeNet {
        heads: [head("aux1", &stages[0])?, head("aux2", &stages[1])?],
        stages,
        dropout: config.dropout.unwrap_or(0.2),
        noise: config.noise.clone(),
        fc: Linear::with_init(c, config.num_classes, INIT, vb.pp("fc"))?,
    }))
}

struct GoogLeNet {
    /// Up to 4a, 4d and 5b.
    stages: Vec<Sequence>,
    /// On what the first and the second stage give.
    heads: [AuxiliaryHead; 2],
    dropout: f64,
    noise: Noise,
    fc: Linear,
}

impl GoogLeNet {
    /// The logits, and what each stage gives.
    fn run(&self, xs: &FeatureMap, train: bool) -> Result<(FeatureMap, Vec<FeatureMap>)> {
        let mut maps = Vec::with_capacity(3);
        let mut xs = xs.clone();
        for stage in &self.stages {
            // N x 512 x 14 x 14, N x 528 x 14 x 14, N x 1024 x 7 x 7 from 224 pixels
            xs = stage.forward(&xs, train)?;
            maps.push(xs.clone());
        }
        let xs = dropout(&global_avg_pool2d(&xs)?, self.dropout, &self.noise, train)?;
        Ok((self.fc.forward(&xs)?, maps))
    }
}

impl Network for GoogLeNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        Ok(self.run(xs, train)?.0)
    }

    fn forward_auxiliary(&self, xs: &FeatureMap) -> Result<(FeatureMap, Vec<Auxiliary<FeatureMap>>)> {
        let (logits, maps) = self.run(xs, true)?;
        let heads = self.heads.iter().zip(&maps).map(|(head, map)| head.forward(map));
        Ok((logits, heads.collect::<Result<_>>()?))
    }
}

/// Section 5: average-pool, 1×1 convolution, two linear layers.
struct AuxiliaryHead {
    conv: ConvNorm,
    fc1: Linear,
    fc2: Linear,
    dropout: f64,
    noise: Noise,
}

impl AuxiliaryHead {
    fn new(c_in: usize, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            conv: ConvNorm::new(&conv("conv", (1, 1), 128), c_in, &STYLE, &vb)?,
            fc1: Linear::with_init(128 * 4 * 4, 1024, INIT, vb.pp("fc1"))?,
            fc2: Linear::with_init(1024, config.num_classes, INIT, vb.pp("fc2"))?,
            dropout: config.dropout.unwrap_or(0.7),
            noise: config.noise.clone(),
        })
    }

    fn forward(&self, xs: &FeatureMap) -> Result<Auxiliary<FeatureMap>> {
        let xs = self.conv.forward(&adaptive_avg_pool2d(xs, (4, 4))?, true)?; // N x 128 x 4 x 4
        let xs = activation(&self.fc1.forward(&flatten(&xs)?)?, Relu)?; // N x 1024
        let xs = dropout(&xs, self.dropout, &self.noise, true)?;
        Ok(Auxiliary { logits: self.fc2.forward(&xs)?, loss_weight: 0.3 })
    }
}

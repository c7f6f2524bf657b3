//! Inception v3 (Szegedy et al., "Rethinking the Inception architecture for computer vision", arXiv 1512.00567,
//! table 1), with the keys, shapes and initialisation of torchvision's.
//!
//! Differs from the paper, as torchvision and the released TensorFlow model do: after the first pool the stem has a
//! 1×1 convolution, a 3×3 convolution and another pool, where table 1 has three 3×3 convolutions; the 35×35 modules
//! keep a 5×5 convolution in one branch; batch-norm's eps is 1e-3.
//!
//! In training an auxiliary head classifies the last 17×17 map; its loss counts 0.4, as in the released TensorFlow
//! model. Where that map is smaller than 17×17 its 5×5 pool with stride 3 would leave too little for the 5×5
//! convolution that follows; there it averages to 5×5 whatever the map (torchvision fails).
//!
//! On images of at most 64 pixels the stem has no strides and no pools and only `Conv2d_4a_3x3` is not padded, as in
//! weiaicunzai/pytorch-cifar100: 32 pixels give maps of 30, 14 and 6.

use crate::inception::{Branch, ConvNorm, Layer, Sequence, Style, branch, conv, fork, max_pool, module};
use crate::layers::Linear;
use crate::model::{Auxiliary, Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::rng::Noise;
use zoo_ops::{FeatureMap, Window2d, adaptive_avg_pool2d, avg_pool2d, dropout, global_avg_pool2d};

/// torchvision cuts this normal distribution off twenty standard deviations from its mean, which is nowhere.
const INIT: Init = Init::Randn { mean: 0.0, stdev: 0.1 };

const STYLE: Style = Style { bias: false, init: INIT, eps: 1e-3 };

/// Maps of the pool branch of each 35×35 module.
const MODULES_35: [(&str, usize); 3] = [("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)];

/// Maps of the inner 7×7 factors of each 17×17 module.
const MODULES_17: [(&str, usize); 4] =
    [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)];

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "inception_v3",
        family: "inception_v3",
        input: [3, 299, 299],
        num_classes: 1000,
        stem: "Conv2d_1a_3x3.conv",
        head: "fc",
        build: Box::new(build),
    }]
}

/// The rows of table 1 before the modules. N x 192 x 35 x 35 from 299 pixels.
fn stem(small: bool) -> Branch {
    let conv_1a = conv("Conv2d_1a_3x3", (3, 3), 32);
    let conv_2a = conv("Conv2d_2a_3x3", (3, 3), 32);
    let conv_2b = conv("Conv2d_2b_3x3", (3, 3), 64);
    let conv_3b = conv("Conv2d_3b_1x1", (1, 1), 80);
    let conv_4a = conv("Conv2d_4a_3x3", (3, 3), 192).valid(1);
    if small {
        branch![conv_1a, conv_2a, conv_2b, conv_3b, conv_4a]
    } else {
        branch![conv_1a.valid(2), conv_2a.valid(1), conv_2b, max_pool(2, 0), conv_3b, conv_4a, max_pool(2, 0)]
    }
}

/// The branch that averages its surroundings, the padding's zeros too.
fn pool_branch(c_out: usize) -> Branch {
    branch![Layer::AvgPool { count_include_pad: true }, conv("branch_pool", (1, 1), c_out)]
}

/// Figure 5, with a 5×5 convolution: the modules on 35×35.
fn inception_a(name: &str, c_pool: usize) -> Layer {
    module(
        name,
        vec![
            branch![conv("branch1x1", (1, 1), 64)],
            branch![conv("branch5x5_1", (1, 1), 48), conv("branch5x5_2", (5, 5), 64)],
            branch![
                conv("branch3x3dbl_1", (1, 1), 64),
                conv("branch3x3dbl_2", (3, 3), 96),
                conv("branch3x3dbl_3", (3, 3), 96)
            ],
            pool_branch(c_pool),
        ],
    )
}

/// Figure 10: from 35×35 to 17×17.
fn reduction_a(name: &str) -> Layer {
    module(
        name,
        vec![
            branch![conv("branch3x3", (3, 3), 384).valid(2)],
            branch![
                conv("branch3x3dbl_1", (1, 1), 64),
                conv("branch3x3dbl_2", (3, 3), 96),
                conv("branch3x3dbl_3", (3, 3), 96).valid(2)
            ],
            branch![max_pool(2, 0)],
        ],
    )
}

/// Figure 6 with n = 7: the modules on 17×17.
fn inception_b(name: &str, c: usize) -> Layer {
    module(
        name,
        vec![
            branch![conv("branch1x1", (1, 1), 192)],
            branch![
                conv("branch7x7_1", (1, 1), c),
                conv("branch7x7_2", (1, 7), c),
                conv("branch7x7_3", (7, 1), 192)
            ],
            branch![
                conv("branch7x7dbl_1", (1, 1), c),
                conv("branch7x7dbl_2", (7, 1), c),
                conv("branch7x7dbl_3", (1, 7), c),
                conv("branch7x7dbl_4", (7, 1), c),
                conv("branch7x7dbl_5", (1, 7), 192)
            ],
            pool_branch(192),
        ],
    )
}

/// From 17×17 to 8×8.
fn reduction_b(name: &str) -> Layer {
    module(
        name,
        vec![
            branch![conv("branch3x3_1", (1, 1), 192), conv("branch3x3_2", (3, 3), 320).valid(2)],
            branch![
                conv("branch7x7x3_1", (1, 1), 192),
                conv("branch7x7x3_2", (1, 7), 192),
                conv("branch7x7x3_3", (7, 1), 192),
                conv("branch7x7x3_4", (3, 3), 192).valid(2)
            ],
            branch![max_pool(2, 0)],
        ],
    )
}

/// Figure 7: the modules on 8×8.
fn inception_c(name: &str) -> Layer {
    let spread = |name: &str| {
        fork(vec![
            branch![conv(format!("{name}a"), (1, 3), 384)],
            branch![conv(format!("{name}b"), (3, 1), 384)],
        ])
    };
    module(
        name,
        vec![
            branch![conv("branch1x1", (1, 1), 320)],
            branch![conv("branch3x3_1", (1, 1), 384), spread("branch3x3_2")],
            branch![
                conv("branch3x3dbl_1", (1, 1), 448),
                conv("branch3x3dbl_2", (3, 3), 384),
                spread("branch3x3dbl_3")
            ],
            pool_branch(192),
        ],
    )
}

fn build(config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let mut layers = stem(config.small_stem());
    layers.extend(MODULES_35.map(|(name, c_pool)| inception_a(name, c_pool))); // N x 288 x 35 x 35
    layers.push(reduction_a("Mixed_6a"));
    layers.extend(MODULES_17.map(|(name, c)| inception_b(name, c))); // N x 768 x 17 x 17
    let trunk = Sequence::new(&layers, config.in_chans, &STYLE, &vb)?;
    let top = [reduction_b("Mixed_7a"), inception_c("Mixed_7b"), inception_c("Mixed_7c")]; // N x 2048 x 8 x 8
    let top = Sequence::new(&top, trunk.c_out(), &STYLE, &vb)?;
    Ok(Box::new(InceptionV3 {
        head: AuxiliaryHead::new(trunk.c_out(), config.num_classes, vb.pp("AuxLogits"))?,
        dropout: config.dropout.unwrap_or(0.5),
        noise: config.noise.clone(),
        fc: Linear::with_init(top.c_out(), config.num_classes, INIT, vb.pp("fc"))?,
        trunk,
        top,
    }))
}

struct InceptionV3 {
    /// All up to the last 17×17 map, which the auxiliary head sees.
    trunk: Sequence,
    top: Sequence,
    head: AuxiliaryHead,
    dropout: f64,
    noise: Noise,
    fc: Linear,
}

impl InceptionV3 {
    /// The logits, and the last 17×17 map.
    fn run(&self, xs: &FeatureMap, train: bool) -> Result<(FeatureMap, FeatureMap)> {
        let map = self.trunk.forward(xs, train)?;
        let xs = global_avg_pool2d(&self.top.forward(&map, train)?)?;
        let xs = dropout(&xs, self.dropout, &self.noise, train)?;
        Ok((self.fc.forward(&xs)?, map))
    }
}

impl Network for InceptionV3 {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        Ok(self.run(xs, train)?.0)
    }

    fn forward_auxiliary(&self, xs: &FeatureMap) -> Result<(FeatureMap, Vec<Auxiliary<FeatureMap>>)> {
        let (logits, map) = self.run(xs, true)?;
        Ok((logits, vec![self.head.forward(&map)?]))
    }
}

/// Figure 8: average-pool, 1×1 and 5×5 convolution, linear layer.
struct AuxiliaryHead {
    conv0: ConvNorm,
    conv1: ConvNorm,
    fc: Linear,
}

impl AuxiliaryHead {
    fn new(c_in: usize, num_classes: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let fc_init = Init::Randn { mean: 0.0, stdev: 0.001 };
        Ok(Self {
            conv0: ConvNorm::new(&conv("conv0", (1, 1), 128), c_in, &STYLE, &vb)?,
            conv1: ConvNorm::new(&conv("conv1", (5, 5), 768).valid(1), 128, &STYLE, &vb)?,
            fc: Linear::with_init(768, num_classes, fc_init, vb.pp("fc"))?,
        })
    }

    fn forward(&self, xs: &FeatureMap) -> Result<Auxiliary<FeatureMap>> {
        let (_, h, w, _) = xs.dims();
        let xs = if h.min(w) < 17 {
            adaptive_avg_pool2d(xs, (5, 5))?
        } else {
            avg_pool2d(xs, &Window2d::square(5, 3), true)? // N x 768 x 5 x 5
        };
        let xs = self.conv1.forward(&self.conv0.forward(&xs, true)?, true)?; // N x 768 x 1 x 1
        Ok(Auxiliary { logits: self.fc.forward(&global_avg_pool2d(&xs)?)?, loss_weight: 0.4 })
    }
}

//! Inception-ResNet v2 (Szegedy et al., "Inception-v4, Inception-ResNet and the impact of residual connections on
//! learning", arXiv 1602.07261, figure 15), with the keys, shapes and initialisation of timm's.
//!
//! Differs from the paper, as timm and the released TensorFlow model do: the stem is Inception v3's, followed by an
//! Inception module, not figure 3; there are 10, 20 and 10 residual modules, not 5, 10 and 5, and their widths are
//! the released ones; the last of them has no ReLU and is not scaled, and a 1×1 convolution to 1536 maps follows it;
//! batch-norm's eps is 1e-3, and average pools leave the padding out. Dropout is the paper's (0.2), which timm leaves
//! to the user.
//!
//! On images of at most 64 pixels the stem has no strides and no pools and only `conv2d_4a` is not padded, as for
//! Inception v3: 32 pixels give maps of 30, 14 and 6.

use crate::inception::{Branch, Layer, Sequence, Style, branch, conv, fork, max_pool, module};
use crate::layers::{Conv2d, Linear, PYTORCH_DEFAULT};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::Activation::Relu;
use zoo_ops::rng::Noise;
use zoo_ops::{Conv2dConfig, FeatureMap, activation, add_scaled, dropout, global_avg_pool2d};

const STYLE: Style = Style { bias: false, init: PYTORCH_DEFAULT, eps: 1e-3 };

/// Path and number of the residual modules on 35×35, 17×17 and 8×8, and what their residuals are multiplied by
/// (section 3.3).
const REPEATS: [(&str, usize, f64); 3] = [("repeat", 10, 0.17), ("repeat_1", 20, 0.1), ("repeat_2", 9, 0.2)];

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "inception_resnet_v2",
        family: "inception_resnet_v2",
        input: [3, 299, 299],
        num_classes: 1000,
        stem: "conv2d_1a.conv",
        head: "classif",
        build: Box::new(build),
    }]
}

/// N x 192 x 35 x 35 from 299 pixels.
fn stem(small: bool) -> Branch {
    let conv_1a = conv("conv2d_1a", (3, 3), 32);
    let conv_2a = conv("conv2d_2a", (3, 3), 32);
    let conv_2b = conv("conv2d_2b", (3, 3), 64);
    let conv_3b = conv("conv2d_3b", (1, 1), 80);
    let conv_4a = conv("conv2d_4a", (3, 3), 192).valid(1);
    if small {
        branch![conv_1a, conv_2a, conv_2b, conv_3b, conv_4a]
    } else {
        branch![conv_1a.valid(2), conv_2a.valid(1), conv_2b, max_pool(2, 0), conv_3b, conv_4a, max_pool(2, 0)]
    }
}

/// From the stem to N x 320 x 35 x 35.
fn mixed_5b() -> Layer {
    module(
        "mixed_5b",
        vec![
            branch![conv("branch0", (1, 1), 96)],
            branch![conv("branch1.0", (1, 1), 48), conv("branch1.1", (5, 5), 64)],
            branch![
                conv("branch2.0", (1, 1), 64),
                conv("branch2.1", (3, 3), 96),
                conv("branch2.2", (3, 3), 96)
            ],
            branch![Layer::AvgPool { count_include_pad: false }, conv("branch3.1", (1, 1), 64)],
        ],
    )
}

/// Figure 16: the modules on 35×35.
fn block_35() -> Vec<Branch> {
    vec![
        branch![conv("branch0", (1, 1), 32)],
        branch![conv("branch1.0", (1, 1), 32), conv("branch1.1", (3, 3), 32)],
        branch![conv("branch2.0", (1, 1), 32), conv("branch2.1", (3, 3), 48), conv("branch2.2", (3, 3), 64)],
    ]
}

/// Figure 7 with table 1's k, l, m, n = 256, 256, 384, 384: to N x 1088 x 17 x 17.
fn mixed_6a() -> Layer {
    module(
        "mixed_6a",
        vec![
            branch![conv("branch0", (3, 3), 384).valid(2)],
            branch![
                conv("branch1.0", (1, 1), 256),
                conv("branch1.1", (3, 3), 256),
                conv("branch1.2", (3, 3), 384).valid(2)
            ],
            branch![max_pool(2, 0)],
        ],
    )
}

/// Figure 17: the modules on 17×17.
fn block_17() -> Vec<Branch> {
    vec![
        branch![conv("branch0", (1, 1), 192)],
        branch![
            conv("branch1.0", (1, 1), 128),
            conv("branch1.1", (1, 7), 160),
            conv("branch1.2", (7, 1), 192)
        ],
    ]
}

/// Figure 18: to N x 2080 x 8 x 8.
fn mixed_7a() -> Layer {
    module(
        "mixed_7a",
        vec![
            branch![conv("branch0.0", (1, 1), 256), conv("branch0.1", (3, 3), 384).valid(2)],
            branch![conv("branch1.0", (1, 1), 256), conv("branch1.1", (3, 3), 288).valid(2)],
            branch![
                conv("branch2.0", (1, 1), 256),
                conv("branch2.1", (3, 3), 288),
                conv("branch2.2", (3, 3), 320).valid(2)
            ],
            branch![max_pool(2, 0)],
        ],
    )
}

/// Figure 19: the modules on 8×8.
fn block_8() -> Vec<Branch> {
    vec![
        branch![conv("branch0", (1, 1), 192)],
        branch![
            conv("branch1.0", (1, 1), 192),
            conv("branch1.1", (1, 3), 224),
            conv("branch1.2", (3, 1), 256)
        ],
    ]
}

/// What precedes each group of residual modules, and the group.
struct Stage {
    before: Sequence,
    blocks: Vec<Residual>,
}

/// `relu(x + scale · conv2d(branches(x)))`
struct Residual {
    branches: Sequence,
    conv2d: Conv2d,
    scale: f64,
    relu: bool,
}

impl Residual {
    fn new(branches: Vec<Branch>, c: usize, scale: f64, relu: bool, vb: &VarBuilder<'_>) -> Result<Self> {
        let branches = Sequence::new(&[fork(branches)], c, &STYLE, vb)?;
        let config = Conv2dConfig::default();
        let conv2d = Conv2d::with_bias(branches.c_out(), c, (1, 1), config, vb.pp("conv2d"))?;
        Ok(Self { branches, conv2d, scale, relu })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let residual = self.conv2d.forward(&self.branches.forward(xs, train)?)?;
        let ys = add_scaled(xs, &residual, self.scale)?;
        if self.relu { activation(&ys, Relu) } else { Ok(ys) }
    }
}

fn build(config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let mut first = stem(config.small_stem());
    first.push(mixed_5b());
    let befores = [first, vec![mixed_6a()], vec![mixed_7a()]];
    let (mut stages, mut c) = (Vec::with_capacity(REPEATS.len()), config.in_chans);
    for ((before, block), (path, depth, scale)) in
        befores.iter().zip([block_35, block_17, block_8]).zip(REPEATS)
    {
        let before = Sequence::new(before, c, &STYLE, &vb)?;
        c = before.c_out();
        let vb = vb.pp(path);
        let blocks = (0..depth).map(|i| Residual::new(block(), c, scale, true, &vb.pp(i)));
        stages.push(Stage { before, blocks: blocks.collect::<Result<_>>()? });
    }
    let block8 = Residual::new(block_8(), c, 1.0, false, &vb.pp("block8"))?;
    let conv2d_7b = Sequence::new(&[Layer::Conv(conv("conv2d_7b", (1, 1), 1536))], c, &STYLE, &vb)?;
    Ok(Box::new(InceptionResNetV2 {
        stages,
        block8,
        dropout: config.dropout.unwrap_or(0.2),
        noise: config.noise.clone(),
        classif: Linear::new(conv2d_7b.c_out(), config.num_classes, vb.pp("classif"))?,
        conv2d_7b,
    }))
}

struct InceptionResNetV2 {
    stages: Vec<Stage>,
    block8: Residual,
    conv2d_7b: Sequence,
    dropout: f64,
    noise: Noise,
    classif: Linear,
}

impl Network for InceptionResNetV2 {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = xs.clone();
        for stage in &self.stages {
            // N x 320 x 35 x 35, N x 1088 x 17 x 17, N x 2080 x 8 x 8 from 299 pixels
            xs = stage.before.forward(&xs, train)?;
            for block in &stage.blocks {
                xs = block.forward(&xs, train)?;
            }
        }
        let xs = self.conv2d_7b.forward(&self.block8.forward(&xs, train)?, train)?;
        let xs = dropout(&global_avg_pool2d(&xs)?, self.dropout, &self.noise, train)?;
        self.classif.forward(&xs)
    }
}

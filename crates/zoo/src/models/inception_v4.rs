//! Inception v4 (Szegedy et al., "Inception-v4, Inception-ResNet and the impact of residual connections on
//! learning", arXiv 1602.07261, figure 9), with the keys, shapes and initialisation of timm's.
//!
//! Differs from the paper, as timm and the released TensorFlow model do: batch-norm's eps is 1e-3, and average pools
//! leave the padding out. Dropout is the paper's (0.2), which timm leaves to the user.
//!
//! On images of at most 64 pixels the stem has no strides and only its first convolution is not padded, as in
//! weiaicunzai/pytorch-cifar100: 32 pixels give maps of 30, 14 and 6.

use crate::inception::{Branch, Layer, Sequence, Style, branch, conv, fork, max_pool, module};
use crate::layers::{Linear, PYTORCH_DEFAULT};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::rng::Noise;
use zoo_ops::{FeatureMap, dropout, global_avg_pool2d};

/// Figure 9: modules on 35×35, 17×17 and 8×8, each group but the last followed by a reduction.
const DEPTHS: [usize; 3] = [4, 7, 3];

const STYLE: Style = Style { bias: false, init: PYTORCH_DEFAULT, eps: 1e-3 };

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "inception_v4",
        family: "inception_v4",
        input: [3, 299, 299],
        num_classes: 1000,
        stem: "features.0.conv",
        head: "last_linear",
        build: Box::new(build),
    }]
}

/// Figure 3. N x 384 x 35 x 35 from 299 pixels.
fn stem(small: bool) -> Branch {
    let (stride, padding) = if small { (1, 1) } else { (2, 0) };
    let halve = |name: &str, c_out| conv(name, (3, 3), c_out).window(stride, padding);
    let keep = |name: &str, c_out| conv(name, (3, 3), c_out).window(1, padding);
    branch![
        conv("0", (3, 3), 32).valid(stride),
        keep("1", 32),
        conv("2", (3, 3), 64),
        module("3", vec![branch![max_pool(stride, padding)], branch![halve("conv", 96)]]),
        module(
            "4",
            vec![
                branch![conv("branch0.0", (1, 1), 64), keep("branch0.1", 96)],
                branch![
                    conv("branch1.0", (1, 1), 64),
                    conv("branch1.1", (1, 7), 64),
                    conv("branch1.2", (7, 1), 64),
                    keep("branch1.3", 96)
                ],
            ]
        ),
        module("5", vec![branch![halve("conv", 192)], branch![max_pool(stride, padding)]]),
    ]
}

/// The branch that averages its surroundings within the map.
fn pool_branch(c_out: usize) -> Branch {
    branch![Layer::AvgPool { count_include_pad: false }, conv("branch3.1", (1, 1), c_out)]
}

/// Figure 4: the modules on 35×35.
fn inception_a() -> Vec<Branch> {
    vec![
        branch![conv("branch0", (1, 1), 96)],
        branch![conv("branch1.0", (1, 1), 64), conv("branch1.1", (3, 3), 96)],
        branch![conv("branch2.0", (1, 1), 64), conv("branch2.1", (3, 3), 96), conv("branch2.2", (3, 3), 96)],
        pool_branch(96),
    ]
}

/// Figure 7 with table 1's k, l, m, n = 192, 224, 256, 384: from 35×35 to 17×17.
fn reduction_a() -> Vec<Branch> {
    vec![
        branch![conv("branch0", (3, 3), 384).valid(2)],
        branch![
            conv("branch1.0", (1, 1), 192),
            conv("branch1.1", (3, 3), 224),
            conv("branch1.2", (3, 3), 256).valid(2)
        ],
        branch![max_pool(2, 0)],
    ]
}

/// Figure 5: the modules on 17×17.
fn inception_b() -> Vec<Branch> {
    vec![
        branch![conv("branch0", (1, 1), 384)],
        branch![
            conv("branch1.0", (1, 1), 192),
            conv("branch1.1", (1, 7), 224),
            conv("branch1.2", (7, 1), 256)
        ],
        branch![
            conv("branch2.0", (1, 1), 192),
            conv("branch2.1", (7, 1), 192),
            conv("branch2.2", (1, 7), 224),
            conv("branch2.3", (7, 1), 224),
            conv("branch2.4", (1, 7), 256)
        ],
        pool_branch(128),
    ]
}

/// Figure 8: from 17×17 to 8×8.
fn reduction_b() -> Vec<Branch> {
    vec![
        branch![conv("branch0.0", (1, 1), 192), conv("branch0.1", (3, 3), 192).valid(2)],
        branch![
            conv("branch1.0", (1, 1), 256),
            conv("branch1.1", (1, 7), 256),
            conv("branch1.2", (7, 1), 320),
            conv("branch1.3", (3, 3), 320).valid(2)
        ],
        branch![max_pool(2, 0)],
    ]
}

/// Figure 6: the modules on 8×8.
fn inception_c() -> Vec<Branch> {
    let spread = |name: &str| {
        fork(vec![
            branch![conv(format!("{name}a"), (1, 3), 256)],
            branch![conv(format!("{name}b"), (3, 1), 256)],
        ])
    };
    vec![
        branch![conv("branch0", (1, 1), 256)],
        branch![conv("branch1_0", (1, 1), 384), spread("branch1_1")],
        branch![
            conv("branch2_0", (1, 1), 384),
            conv("branch2_1", (3, 1), 448),
            conv("branch2_2", (1, 3), 512),
            spread("branch2_3")
        ],
        pool_branch(256),
    ]
}

fn build(config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let mut layers = stem(config.small_stem());
    let [depth_a, depth_b, depth_c] = DEPTHS;
    let mut modules = Vec::new();
    modules.extend((0..depth_a).map(|_| inception_a())); // N x 384 x 35 x 35
    modules.push(reduction_a());
    modules.extend((0..depth_b).map(|_| inception_b())); // N x 1024 x 17 x 17
    modules.push(reduction_b());
    modules.extend((0..depth_c).map(|_| inception_c())); // N x 1536 x 8 x 8
    for branches in modules {
        let index = layers.len();
        layers.push(module(index.to_string(), branches));
    }
    let features = Sequence::new(&layers, config.in_chans, &STYLE, &vb.pp("features"))?;
    Ok(Box::new(InceptionV4 {
        dropout: config.dropout.unwrap_or(0.2),
        noise: config.noise.clone(),
        last_linear: Linear::new(features.c_out(), config.num_classes, vb.pp("last_linear"))?,
        features,
    }))
}

struct InceptionV4 {
    features: Sequence,
    dropout: f64,
    noise: Noise,
    last_linear: Linear,
}

impl Network for InceptionV4 {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let xs = global_avg_pool2d(&self.features.forward(xs, train)?)?; // N x 1536 x 1 x 1
        let xs = dropout(&xs, self.dropout, &self.noise, train)?;
        self.last_linear.forward(&xs)
    }
}

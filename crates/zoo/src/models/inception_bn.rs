//! Inception with batch-norm, or Inception v2 (Ioffe and Szegedy, "Batch normalization: accelerating deep network
//! training by reducing internal covariate shift", arXiv 1502.03167, figure 5), with the keys and shapes of
//! `bninception` in Cadene/pretrained-models.pytorch.
//!
//! Differs from the paper, as that model does: convolutions have a bias beside batch-norm's; the first convolution is
//! not separable. Differs from that model: batch-norm's momentum is 0.1, where it has 0.9, Caffe's number for the
//! opposite weight. Its published weights are not listed in the facts: they want the channels in the order blue,
//! green, red.
//!
//! On images of at most 64 pixels the first convolution is 3×3 with stride 1 and the first two pools are left out,
//! as for GoogLeNet. Modules that halve an odd map pad it for their pool (Cadene's fails).

use crate::inception::{Branch, Layer, Sequence, Style, branch, conv, fork, max_pool};
use crate::layers::{Linear, PYTORCH_DEFAULT};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::{FeatureMap, Window2d, global_avg_pool2d};

/// The last column of figure 5.
#[derive(Clone, Copy)]
enum Pool {
    /// An average, then a 1×1 convolution to so many maps.
    Average(usize),
    /// A maximum, then a 1×1 convolution to so many maps.
    Max(usize),
    /// A maximum that halves the map and passes all of its channels on; the convolutions halve it too.
    Halve,
}

use Pool::{Average, Halve, Max};

/// Figure 5: of each module the maps of #1×1 (0 where there is none), #3×3 reduce, #3×3, double #3×3 reduce and
/// double #3×3, and its pool.
const MODULES: [(&str, [usize; 5], Pool); 10] = [
    ("3a", [64, 64, 64, 64, 96], Average(32)),
    ("3b", [64, 64, 96, 64, 96], Average(64)),
    ("3c", [0, 128, 160, 64, 96], Halve),
    ("4a", [224, 64, 96, 96, 128], Average(128)),
    ("4b", [192, 96, 128, 96, 128], Average(128)),
    ("4c", [160, 128, 160, 128, 160], Average(128)),
    ("4d", [96, 128, 192, 160, 192], Average(128)),
    ("4e", [0, 128, 192, 192, 256], Halve),
    ("5a", [352, 192, 320, 160, 224], Average(128)),
    ("5b", [352, 192, 320, 192, 224], Max(128)),
];

const STYLE: Style = Style { bias: true, init: PYTORCH_DEFAULT, eps: 1e-5 };

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "inception_bn",
        family: "inception_bn",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "conv1_7x7_s2",
        head: "last_linear",
        build: Box::new(build),
    }]
}

/// The first rows of figure 5. N x 192 x 28 x 28 from 224 pixels.
fn stem(small: bool) -> Branch {
    let halve = || Layer::MaxPool(Window2d::square(3, 2).ceil_mode(true));
    let reduce = conv("conv2_3x3_reduce", (1, 1), 64);
    let conv2 = conv("conv2_3x3", (3, 3), 192);
    if small {
        branch![conv("conv1_7x7_s2", (3, 3), 64), reduce, conv2]
    } else {
        branch![conv("conv1_7x7_s2", (7, 7), 64).window(2, 3), halve(), reduce, conv2, halve()]
    }
}

fn inception(module: &str, [c1, c3_reduce, c3, double_reduce, double]: [usize; 5], pool: Pool) -> Layer {
    let path = |layer: &str| format!("inception_{module}_{layer}");
    let stride = if matches!(pool, Halve) { 2 } else { 1 };
    let mut branches = vec![
        branch![conv(path("3x3_reduce"), (1, 1), c3_reduce), conv(path("3x3"), (3, 3), c3).window(stride, 1)],
        branch![
            conv(path("double_3x3_reduce"), (1, 1), double_reduce),
            conv(path("double_3x3_1"), (3, 3), double),
            conv(path("double_3x3_2"), (3, 3), double).window(stride, 1)
        ],
        match pool {
            Average(c) => {
                branch![Layer::AvgPool { count_include_pad: true }, conv(path("pool_proj"), (1, 1), c)]
            }
            Max(c) => branch![max_pool(1, 1), conv(path("pool_proj"), (1, 1), c)],
            Halve => branch![Layer::HalvingPool],
        },
    ];
    if c1 > 0 {
        branches.insert(0, branch![conv(path("1x1"), (1, 1), c1)]);
    }
    fork(branches)
}

fn build(config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let mut layers = stem(config.small_stem());
    // N x 576 x 14 x 14 after 3c, N x 1056 x 7 x 7 after 4e
    layers.extend(MODULES.map(|(name, widths, pool)| inception(name, widths, pool)));
    let features = Sequence::new(&layers, config.in_chans, &STYLE, &vb)?;
    let last_linear = Linear::new(features.c_out(), config.num_classes, vb.pp("last_linear"))?;
    Ok(Box::new(InceptionBn { features, last_linear }))
}

struct InceptionBn {
    features: Sequence,
    last_linear: Linear,
}

impl Network for InceptionBn {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let xs = self.features.forward(xs, train)?; // N x 1024 x 7 x 7
        self.last_linear.forward(&global_avg_pool2d(&xs)?)
    }
}

//! VGG (Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", arXiv
//! 1409.1556, table 1, columns A, B, D and E), with the keys, shapes and initialisation of torchvision's weights.
//!
//! Differs from the paper, as torchvision does: maps are averaged to 7×7 before the linear layers, so that images
//! of any size fit; weights start by fan-out; and the `_bn` models normalise after every convolution (arXiv
//! 1502.03167), as no model of the paper does. On images of at most 64 pixels, unless [`Config::stem`] says
//! otherwise, maps are averaged to a single pixel and the hidden linear layers have 512 units: the form of
//! chenyaofo/pytorch-cifar-models, which has torchvision's keys and published weights. (That of
//! kuangliu/pytorch-cifar is the same but for a single linear layer, under another key.)

use crate::layers::{BatchNorm2d, Conv2d, KAIMING_FAN_OUT, Linear, ZERO};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::rng::Noise;
use zoo_ops::{
    Activation::Relu, Conv2dConfig, FeatureMap, Window2d, activation, adaptive_avg_pool2d, dropout, flatten,
    max_pool2d,
};

/// A column of table 1.
struct Variant {
    name: &'static str,
    /// 3×3 convolutions of each stage, which ends with a 2×2 max-pool.
    depths: [usize; 5],
    batch_norm: bool,
}

const VARIANTS: [Variant; 8] = [
    Variant { name: "vgg11", depths: [1, 1, 2, 2, 2], batch_norm: false },
    Variant { name: "vgg13", depths: [2, 2, 2, 2, 2], batch_norm: false },
    Variant { name: "vgg16", depths: [2, 2, 3, 3, 3], batch_norm: false },
    Variant { name: "vgg19", depths: [2, 2, 4, 4, 4], batch_norm: false },
    Variant { name: "vgg11_bn", depths: [1, 1, 2, 2, 2], batch_norm: true },
    Variant { name: "vgg13_bn", depths: [2, 2, 2, 2, 2], batch_norm: true },
    Variant { name: "vgg16_bn", depths: [2, 2, 3, 3, 3], batch_norm: true },
    Variant { name: "vgg19_bn", depths: [2, 2, 4, 4, 4], batch_norm: true },
];

/// Channels of each stage.
const WIDTHS: [usize; 5] = [64, 128, 256, 512, 512];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "vgg",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "features.0",
        head: "classifier.6",
        build: Box::new(|config, vb| Ok(Box::new(Vgg::new(variant, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

struct Vgg {
    features: Vec<Step>,
    /// Height and width that maps are averaged to.
    grid: usize,
    linears: [Linear; 3],
    dropout: f64,
    noise: Noise,
}

enum Step {
    /// A convolution, its normalisation, and ReLU.
    Conv(Conv2d, Option<BatchNorm2d>),
    MaxPool,
}

impl Vgg {
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (vb_features, mut index, mut c_in) = (vb.pp("features"), 0, config.in_chans);
        let mut features = Vec::new();
        for (depth, c_out) in variant.depths.into_iter().zip(WIDTHS) {
            for _ in 0..depth {
                let (vb, config) = (vb_features.pp(index), Conv2dConfig::new(1, 1));
                let conv = Conv2d::with_inits(c_in, c_out, (3, 3), config, (KAIMING_FAN_OUT, ZERO), vb)?;
                let norm = match variant.batch_norm {
                    true => Some(BatchNorm2d::new(c_out, vb_features.pp(index + 1))?),
                    false => None,
                };
                // Its activation has an index too.
                index += 2 + usize::from(variant.batch_norm);
                features.push(Step::Conv(conv, norm));
                c_in = c_out;
            }
            features.push(Step::MaxPool);
            index += 1;
        }
        let (grid, hidden) = if config.small_stem() { (1, 512) } else { (7, 4096) };
        let linear = |c_in, c_out, index: usize| {
            let init = Init::Randn { mean: 0.0, stdev: 0.01 };
            Linear::with_zero_bias(c_in, c_out, init, vb.pp("classifier").pp(index))
        };
        Ok(Self {
            features,
            grid,
            linears: [
                linear(c_in * grid * grid, hidden, 0)?,
                linear(hidden, hidden, 3)?,
                linear(hidden, config.num_classes, 6)?,
            ],
            dropout: config.dropout.unwrap_or(0.5),
            noise: config.noise.clone(),
        })
    }
}

impl Network for Vgg {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = xs.clone();
        for step in &self.features {
            xs = match step {
                Step::Conv(conv, Some(norm)) => norm.forward(&conv.forward(&xs)?, Relu, train)?,
                Step::Conv(conv, None) => activation(&conv.forward(&xs)?, Relu)?,
                Step::MaxPool => max_pool2d(&xs, &Window2d::square(2, 2))?,
            };
        }
        let xs = adaptive_avg_pool2d(&xs, (self.grid, self.grid))?; // N x 512 x 7 x 7
        let mut xs = flatten(&xs)?;
        let [hidden @ .., output] = &self.linears;
        for linear in hidden {
            xs = activation(&linear.forward(&xs)?, Relu)?; // N x 4096
            xs = dropout(&xs, self.dropout, &self.noise, train)?;
        }
        output.forward(&xs)
    }
}

//! SqueezeNet (Iandola, Han, Moskewicz, Ashraf, Dally and Keutzer, arXiv 1602.07360, table 1) and its version 1.1,
//! which the authors published later, with the keys, shapes and initialisation of torchvision's weights.
//!
//! Differs from the paper, as torchvision does: the first convolution is not padded (109×109 maps, not 111×111), and
//! maps of odd sides are pooled with a window over the edge. On images of at most 64 pixels the first convolution
//! is 3×3 with stride 1 and padding, unless [`Config::stem`] says otherwise.

use crate::layers::{Conv2d, KAIMING_UNIFORM, ZERO};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::rng::Noise;
use zoo_ops::{
    Activation::Relu, Conv2dConfig, FeatureMap, Window2d, activation, concat, dropout, global_avg_pool2d,
    max_pool2d,
};

/// A version of the network.
struct Variant {
    name: &'static str,
    /// Kernel and channels of the first convolution, of stride 2.
    stem: (usize, usize),
    features: &'static [Row],
}

/// A row of table 1 after the first convolution.
enum Row {
    /// 3×3 with stride 2.
    MaxPool,
    /// A fire module with s1x1 maps in its squeeze layer, and e1x1 = e3x3 maps in each half of its expand layer.
    Fire(usize, usize),
}
use Row::{Fire as F, MaxPool as M};

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "squeezenet1_0",
        stem: (7, 96),
        features: &[
            M,
            F(16, 64),
            F(16, 64),
            F(32, 128),
            M,
            F(32, 128),
            F(48, 192),
            F(48, 192),
            F(64, 256),
            M,
            F(64, 256),
        ],
    },
    Variant {
        name: "squeezenet1_1",
        stem: (3, 64),
        features: &[
            M,
            F(16, 64),
            F(16, 64),
            M,
            F(32, 128),
            F(32, 128),
            M,
            F(48, 192),
            F(48, 192),
            F(64, 256),
            F(64, 256),
        ],
    },
];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "squeezenet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "features.0",
        head: "classifier.1",
        build: Box::new(|config, vb| Ok(Box::new(SqueezeNet::new(variant, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

struct SqueezeNet {
    stem: Conv2d,
    features: Vec<Step>,
    classifier: Conv2d,
    dropout: f64,
    noise: Noise,
}

enum Step {
    MaxPool,
    Fire(Box<Fire>),
}

impl SqueezeNet {
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let ((kernel, mut c_in), vb_features) = (variant.stem, vb.pp("features"));
        let (kernel, stem) = if config.small_stem() {
            (3, Conv2dConfig::new(1, 1))
        } else {
            (kernel, Conv2dConfig::new(2, 0))
        };
        let (kernel, vb_stem) = ((kernel, kernel), vb_features.pp(0));
        let stem = Conv2d::with_inits(config.in_chans, c_in, kernel, stem, (KAIMING_UNIFORM, ZERO), vb_stem)?;
        let mut features = Vec::with_capacity(variant.features.len());
        // The stem and its activation have the first two indices.
        for (index, row) in (2..).zip(variant.features) {
            features.push(match *row {
                Row::MaxPool => Step::MaxPool,
                Row::Fire(squeeze, expand) => {
                    let fire = Fire::new(c_in, squeeze, expand, vb_features.pp(index))?;
                    c_in = 2 * expand;
                    Step::Fire(Box::new(fire))
                }
            });
        }
        let (inits, vb) = ((Init::Randn { mean: 0.0, stdev: 0.01 }, ZERO), vb.pp("classifier").pp(1));
        let classifier =
            Conv2d::with_inits(c_in, config.num_classes, (1, 1), Conv2dConfig::default(), inits, vb)?;
        let dropout = config.dropout.unwrap_or(0.5);
        Ok(Self { stem, features, classifier, dropout, noise: config.noise.clone() })
    }
}

impl Network for SqueezeNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = activation(&self.stem.forward(xs)?, Relu)?; // N x 96 x 109 x 109
        for step in &self.features {
            xs = match step {
                Step::MaxPool => max_pool2d(&xs, &Window2d::square(3, 2).ceil_mode(true))?,
                Step::Fire(fire) => fire.forward(&xs)?,
            };
        }
        let xs = dropout(&xs, self.dropout, &self.noise, train)?; // N x 512 x 13 x 13
        let xs = activation(&self.classifier.forward(&xs)?, Relu)?;
        global_avg_pool2d(&xs)
    }
}

/// Section 3.1: few 1×1 filters, then 1×1 and 3×3 filters beside each other.
struct Fire {
    squeeze: Conv2d,
    expand1x1: Conv2d,
    expand3x3: Conv2d,
}

impl Fire {
    fn new(c_in: usize, squeeze: usize, expand: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let conv = |c_in, c_out, kernel: usize, name: &str| {
            let config = Conv2dConfig::new(1, kernel / 2);
            let (kernel, inits) = ((kernel, kernel), (KAIMING_UNIFORM, ZERO));
            Conv2d::with_inits(c_in, c_out, kernel, config, inits, vb.pp(name))
        };
        Ok(Self {
            squeeze: conv(c_in, squeeze, 1, "squeeze")?,
            expand1x1: conv(squeeze, expand, 1, "expand1x1")?,
            expand3x3: conv(squeeze, expand, 3, "expand3x3")?,
        })
    }

    fn forward(&self, xs: &FeatureMap) -> Result<FeatureMap> {
        let xs = activation(&self.squeeze.forward(xs)?, Relu)?;
        let ys = concat(&[&self.expand1x1.forward(&xs)?, &self.expand3x3.forward(&xs)?])?;
        activation(&ys, Relu)
    }
}

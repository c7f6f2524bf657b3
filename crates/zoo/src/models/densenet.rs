//! DenseNet (Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional networks", arXiv
//! 1608.06993, tables 1 and 2): every layer of a block sees what all layers before it gave.
//!
//! The networks for ImageNet have the keys, shapes and initialisation of torchvision's weights,
//! densenet_bc_100_12, for CIFAR, those of gpleiss/efficient_densenet_pytorch. [`Config::dropout`] acts behind
//! the last convolution of each layer, where the paper has 0.2 on CIFAR without augmentation; it is off by default.
//!
//! Differs from the paper in densenet161, which the last version of table 1 does not have. On images of at most
//! 64 pixels the stem of the networks for ImageNet is a 3×3 convolution with stride 1, a normalisation and no
//! pooling, unless [`Config::stem`] says otherwise.

use crate::layers::{BatchNorm2d, Conv2d, KAIMING_FAN_IN, KAIMING_FAN_OUT, Linear, PYTORCH_DEFAULT};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::{Result, bail};
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::Relu;
use zoo_ops::rng::Noise;
use zoo_ops::{
    Conv2dConfig, FeatureMap, Window2d, avg_pool2d, concat, dropout, global_avg_pool2d, max_pool2d,
};

/// A row of the tables.
struct Variant {
    name: &'static str,
    /// Maps that each layer adds: the paper's k.
    growth_rate: usize,
    /// Maps of the stem.
    c_stem: usize,
    /// Layers of each dense block.
    depths: &'static [usize],
}

const VARIANTS: [Variant; 5] = [
    Variant { name: "densenet121", growth_rate: 32, c_stem: 64, depths: &[6, 12, 24, 16] },
    Variant { name: "densenet161", growth_rate: 48, c_stem: 96, depths: &[6, 12, 36, 24] },
    Variant { name: "densenet169", growth_rate: 32, c_stem: 64, depths: &[6, 12, 32, 32] },
    Variant { name: "densenet201", growth_rate: 32, c_stem: 64, depths: &[6, 12, 48, 32] },
    Variant { name: "densenet_bc_100_12", growth_rate: 12, c_stem: 24, depths: &[16, 16, 16] },
];

/// Maps between the 1×1 and the 3×3 convolution of a layer, in growth rates.
const BOTTLENECK: usize = 4;

/// What part of the maps a transition keeps: one in so many, the inverse of the paper's θ.
const COMPRESSION: usize = 2;

impl Variant {
    /// The networks for CIFAR have three blocks.
    fn is_cifar(&self) -> bool {
        self.depths.len() == 3
    }

    fn conv_init(&self) -> Init {
        if self.is_cifar() { KAIMING_FAN_OUT } else { KAIMING_FAN_IN }
    }
}

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| {
        let (side, num_classes) = if variant.is_cifar() { (32, 10) } else { (224, 1000) };
        Spec {
            name: variant.name,
            family: "densenet",
            input: [3, side, side],
            num_classes,
            stem: "features.conv0",
            head: "classifier",
            build: Box::new(|config, vb| Ok(Box::new(DenseNet::new(variant, config, vb)?))),
        }
    };
    VARIANTS.iter().map(spec).collect()
}

struct DenseNet {
    conv0: Conv2d,
    /// None in the network for CIFAR.
    norm0: Option<BatchNorm2d>,
    max_pool: Option<Window2d>,
    /// Dense blocks, each with the transition behind it; the last has none.
    blocks: Vec<(Vec<DenseLayer>, Option<Transition>)>,
    last_norm: BatchNorm2d,
    classifier: Linear,
}

impl DenseNet {
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let small = variant.is_cifar() || config.small_stem();
        // Each transition halves the map, rounding down; the stem of the networks for ImageNet rounds up.
        let halved = 1 << (variant.depths.len() - 1);
        let least = if small { halved } else { 4 * halved - 3 };
        let (h, w) = config.image_size;
        if h.min(w) < least {
            bail!("{}: images of {h}x{w} pixels are too small; it needs {least}x{least}", variant.name);
        }
        let features = vb.pp("features");
        let (kernel, stem) = if small { (3, Conv2dConfig::new(1, 1)) } else { (7, Conv2dConfig::new(2, 3)) };
        let (mut c, init) = (variant.c_stem, variant.conv_init());
        let conv0 = features.pp("conv0");
        let conv0 = Conv2d::new(config.in_chans, c, (kernel, kernel), stem, init, conv0)?;
        let (norm0, last_norm) = match variant.is_cifar() {
            true => (None, "norm_final"),
            false => (Some(BatchNorm2d::new(c, features.pp("norm0"))?), "norm5"),
        };
        let mut blocks = Vec::with_capacity(variant.depths.len());
        for (i, &depth) in variant.depths.iter().enumerate() {
            let vb = features.pp(format!("denseblock{}", i + 1));
            let layer = |j| {
                let c_in = c + j * variant.growth_rate;
                DenseLayer::new(variant, config, c_in, vb.pp(format!("denselayer{}", j + 1)))
            };
            let layers = (0..depth).map(layer).collect::<Result<_>>()?;
            c += depth * variant.growth_rate;
            let transition = if i + 1 < variant.depths.len() {
                let c_in = c;
                c /= COMPRESSION;
                Some(Transition::new(c_in, c, init, features.pp(format!("transition{}", i + 1)))?)
            } else {
                None
            };
            blocks.push((layers, transition));
        }
        Ok(Self {
            conv0,
            norm0,
            max_pool: (!small).then(|| Window2d::square(3, 2).padding(1)),
            blocks,
            last_norm: BatchNorm2d::new(c, features.pp(last_norm))?,
            classifier: Linear::with_zero_bias(c, config.num_classes, PYTORCH_DEFAULT, vb.pp("classifier"))?,
        })
    }
}

impl Network for DenseNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.conv0.forward(xs)?;
        if let Some(norm) = &self.norm0 {
            xs = norm.forward(&xs, Relu, train)?;
        }
        if let Some(window) = &self.max_pool {
            xs = max_pool2d(&xs, window)?; // N x 64 x 56 x 56 from 224 pixels
        }
        for (layers, transition) in &self.blocks {
            for layer in layers {
                // One copy of all maps for each layer, which its normalisation reads, and keeps in training.
                xs = concat(&[&xs, &layer.forward(&xs, train)?])?;
            }
            if let Some(transition) = transition {
                xs = transition.forward(&xs, train)?; // densenet121: N x 128 x 28 x 28, 256 x 14 x 14, 512 x 7 x 7
            }
        }
        let xs = self.last_norm.forward(&xs, Relu, train)?; // densenet121: N x 1024 x 7 x 7
        self.classifier.forward(&global_avg_pool2d(&xs)?)
    }
}

/// From all maps so far to `growth_rate` new ones.
struct DenseLayer {
    norm1: BatchNorm2d,
    conv1: Conv2d,
    norm2: BatchNorm2d,
    conv2: Conv2d,
    dropout: f64,
    noise: Noise,
}

impl DenseLayer {
    fn new(variant: &Variant, config: &Config, c_in: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let (inner, c_out) = (BOTTLENECK * variant.growth_rate, variant.growth_rate);
        let conv = |c_in, c_out, kernel, name| {
            let config = Conv2dConfig::new(1, kernel / 2);
            Conv2d::new(c_in, c_out, (kernel, kernel), config, variant.conv_init(), vb.pp(name))
        };
        Ok(Self {
            norm1: BatchNorm2d::new(c_in, vb.pp("norm1"))?,
            conv1: conv(c_in, inner, 1, "conv1")?,
            norm2: BatchNorm2d::new(inner, vb.pp("norm2"))?,
            conv2: conv(inner, c_out, 3, "conv2")?,
            dropout: config.dropout.unwrap_or(0.0),
            noise: config.noise.clone(),
        })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let ys = self.conv1.forward(&self.norm1.forward(xs, Relu, train)?)?;
        let ys = self.conv2.forward(&self.norm2.forward(&ys, Relu, train)?)?;
        if self.dropout > 0.0 { dropout(&ys, self.dropout, &self.noise, train) } else { Ok(ys) }
    }
}

/// Between two blocks: fewer maps at half the resolution.
struct Transition {
    norm: BatchNorm2d,
    conv: Conv2d,
}

impl Transition {
    fn new(c_in: usize, c_out: usize, init: Init, vb: VarBuilder<'_>) -> Result<Self> {
        let conv = Conv2d::new(c_in, c_out, (1, 1), Conv2dConfig::new(1, 0), init, vb.pp("conv"))?;
        Ok(Self { norm: BatchNorm2d::new(c_in, vb.pp("norm"))?, conv })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let xs = self.conv.forward(&self.norm.forward(xs, Relu, train)?)?;
        avg_pool2d(&xs, &Window2d::square(2, 2), true)
    }
}

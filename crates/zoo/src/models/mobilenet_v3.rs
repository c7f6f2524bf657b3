//! MobileNetV3 (Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le and Adam, "Searching for
//! MobileNetV3", arXiv 1905.02244, tables 1 and 2), with the keys, shapes and initialisation of torchvision's
//! weights. Normalisations have eps 1e-3 and momentum 0.01.
//!
//! Differs from the paper, as torchvision does: the layers behind the pooling are linear layers with dropout
//! between them. On images of at most 64 pixels the stem and the first bottleneck that would halve the map have
//! stride 1, as MobileNetV2 has it for CIFAR.

use super::mobilenet_v2::{HEAD_INIT, InvertedResidual, multiple_of_8};
use crate::layers::{BatchNorm2d, ConvNorm, Linear, SqueezeExcitation, ZERO};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::Activation::{HardSigmoid, HardSwish, Identity, Relu};
use zoo_ops::rng::Noise;
use zoo_ops::{Activation, FeatureMap, activation, dropout, global_avg_pool2d};

/// Kernel, channels of the wide map, output channels, whether there is squeeze-and-excitation, activation, stride.
type Bottleneck = (usize, usize, usize, bool, Activation, usize);

struct Variant {
    name: &'static str,
    bottlenecks: &'static [Bottleneck],
    /// Units of the layer before the output.
    hidden: usize,
}

/// Table 1.
const LARGE: [Bottleneck; 15] = [
    (3, 16, 16, false, Relu, 1),
    (3, 64, 24, false, Relu, 2),
    (3, 72, 24, false, Relu, 1),
    (5, 72, 40, true, Relu, 2),
    (5, 120, 40, true, Relu, 1),
    (5, 120, 40, true, Relu, 1),
    (3, 240, 80, false, HardSwish, 2),
    (3, 200, 80, false, HardSwish, 1),
    (3, 184, 80, false, HardSwish, 1),
    (3, 184, 80, false, HardSwish, 1),
    (3, 480, 112, true, HardSwish, 1),
    (3, 672, 112, true, HardSwish, 1),
    (5, 672, 160, true, HardSwish, 2),
    (5, 960, 160, true, HardSwish, 1),
    (5, 960, 160, true, HardSwish, 1),
];

/// Table 2.
const SMALL: [Bottleneck; 11] = [
    (3, 16, 16, true, Relu, 2),
    (3, 72, 24, false, Relu, 2),
    (3, 88, 24, false, Relu, 1),
    (5, 96, 40, true, HardSwish, 2),
    (5, 240, 40, true, HardSwish, 1),
    (5, 240, 40, true, HardSwish, 1),
    (5, 120, 48, true, HardSwish, 1),
    (5, 144, 48, true, HardSwish, 1),
    (5, 288, 96, true, HardSwish, 2),
    (5, 576, 96, true, HardSwish, 1),
    (5, 576, 96, true, HardSwish, 1),
];

const VARIANTS: [Variant; 2] = [
    Variant { name: "mobilenet_v3_small", bottlenecks: &SMALL, hidden: 1024 },
    Variant { name: "mobilenet_v3_large", bottlenecks: &LARGE, hidden: 1280 },
];

/// Channels of the first convolution.
const STEM: usize = 16;

/// How many times wider than its input the last convolution is.
const LAST_EXPANSION: usize = 6;

const DROPOUT: f64 = 0.2;

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "mobilenet_v3",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "features.0.0",
        head: "classifier.3",
        build: Box::new(|config, vb| Ok(Box::new(MobileNetV3::new(variant, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

struct MobileNetV3 {
    stem: ConvNorm,
    blocks: Vec<InvertedResidual>,
    last: ConvNorm,
    hidden: Linear,
    dropout: (f64, Noise),
    head: Linear,
}

fn conv(
    c_in: usize,
    c_out: usize,
    shape: (usize, usize, usize),
    activation: Activation,
    vb: VarBuilder<'_>,
) -> Result<ConvNorm> {
    let conv = ConvNorm::sequence(c_in, c_out, shape, activation, vb)?;
    Ok(conv.norm(|norm: BatchNorm2d| norm.eps(1e-3).momentum(0.01)))
}

impl MobileNetV3 {
    /// Parameters `features.<i>.…`, counted from the stem to the last convolution, `classifier.0` and
    /// `classifier.3`.
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let small = config.small_stem();
        let features = |index: usize| vb.pp("features").pp(index);
        let stem = conv(config.in_chans, STEM, (3, if small { 1 } else { 2 }, 1), HardSwish, features(0))?;
        let first_stride = variant.bottlenecks.iter().position(|row| row.5 == 2);
        let (mut c_in, mut blocks) = (STEM, Vec::new());
        for (i, &(kernel, wide, c_out, squeeze, activation, stride)) in variant.bottlenecks.iter().enumerate()
        {
            let row = (kernel, wide, c_out, squeeze, activation, stride);
            let stride = if small && Some(i) == first_stride { 1 } else { stride };
            blocks.push(bottleneck(c_in, row, stride, features(i + 1).pp("block"))?);
            c_in = c_out;
        }
        let (c_out, classifier) = (LAST_EXPANSION * c_in, vb.pp("classifier"));
        Ok(Self {
            stem,
            last: conv(c_in, c_out, (1, 1, 1), HardSwish, features(blocks.len() + 1))?,
            blocks,
            hidden: Linear::with_zero_bias(c_out, variant.hidden, HEAD_INIT, classifier.pp(0))?,
            dropout: (config.dropout.unwrap_or(DROPOUT), config.noise.clone()),
            head: Linear::with_zero_bias(variant.hidden, config.num_classes, HEAD_INIT, classifier.pp(3))?,
        })
    }
}

/// Figure 4: a bottleneck of MobileNetV2, with squeeze-and-excitation on the wide map. It has the shortcut that the
/// published stride allows, so that weights mean the same in both forms.
fn bottleneck(c_in: usize, row: Bottleneck, stride: usize, vb: VarBuilder<'_>) -> Result<InvertedResidual> {
    let (kernel, wide, c_out, squeeze, activation, published) = row;
    // Layers count from 0, and not every bottleneck has all of them.
    let mut index = 0;
    let mut next = || {
        index += 1;
        vb.pp(index - 1)
    };
    Ok(InvertedResidual {
        expand: if wide == c_in { None } else { Some(conv(c_in, wide, (1, 1, 1), activation, next())?) },
        depthwise: conv(wide, wide, (kernel, stride, wide), activation, next())?,
        squeeze: if squeeze {
            let squeezed = multiple_of_8((wide / 4) as f64);
            let activations = [Relu, HardSigmoid];
            Some(SqueezeExcitation::new(wide, squeezed, activations, |_| ZERO, next())?)
        } else {
            None
        },
        project: conv(wide, c_out, (1, 1, 1), Identity, next())?,
        shortcut: published == 1 && c_in == c_out,
    })
}

impl Network for MobileNetV3 {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.stem.forward(xs, train)?; // N x 16 x 112 x 112 from 224 pixels
        for block in &self.blocks {
            xs = block.forward(&xs, train)?;
        }
        // N x 160 x 7 x 7 (large), N x 96 x 7 x 7 (small)
        let xs = global_avg_pool2d(&self.last.forward(&xs, train)?)?;
        let xs = activation(&self.hidden.forward(&xs)?, HardSwish)?;
        self.head.forward(&dropout(&xs, self.dropout.0, &self.dropout.1, train)?)
    }
}

//! EfficientNet (Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks", arXiv
//! 1905.11946, table 1), with the keys, shapes and initialisation of torchvision's weights.
//!
//! In training, the residual function of block i of n (from 0) is left out for an image with probability
//! 0.2 i / n: stochastic depth (arXiv 1603.09382), growing with depth as the reference has it;
//! [`Config::drop_path`] is the 0.2.
//!
//! Differs from the paper, as torchvision does: padding is the same on both sides, and normalisations have
//! PyTorch's constants. On images of at most 64 pixels the stem has stride 1, as in kuangliu/pytorch-cifar.

use super::mobilenet_v2::InvertedResidual;
use crate::layers::{ConvNorm, Linear, SqueezeExcitation, ZERO};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::{Identity, Sigmoid, Silu};
use zoo_ops::rng::Noise;
use zoo_ops::{FeatureMap, add, drop_path, dropout, global_avg_pool2d};

/// The MBConv rows of table 1: expansion, kernel, stride of the first block, output channels, blocks.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
];

/// Channels of the first and the last convolution.
const STEM: usize = 32;
const LAST: usize = 1280;

/// Channels of a block's input for each one between the layers of its squeeze-and-excitation.
const SQUEEZE_RATIO: usize = 4;

const DROPOUT: f64 = 0.2;
const DROP_PATH: f64 = 0.2;

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "efficientnet_b0",
        family: "efficientnet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "features.0.0",
        head: "classifier.1",
        build: Box::new(|config, vb| Ok(Box::new(EfficientNet::new(config, vb)?))),
    }]
}

struct EfficientNet {
    stem: ConvNorm,
    blocks: Vec<MbConv>,
    last: ConvNorm,
    dropout: f64,
    noise: Noise,
    classifier: Linear,
}

impl EfficientNet {
    /// Parameters `features.<stage>.…`, counted from the stem to the last convolution, and `classifier.1`.
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let features = vb.pp("features");
        let stride = if config.small_stem() { 1 } else { 2 };
        let stem = ConvNorm::sequence(config.in_chans, STEM, (3, stride, 1), Silu, features.pp(0))?;
        let (mut c_in, mut blocks) = (STEM, Vec::new());
        let count: usize = STAGES.iter().map(|stage| stage.4).sum();
        let deepest = config.drop_path.unwrap_or(DROP_PATH);
        for (stage, &(expansion, kernel, stride, c_out, depth)) in STAGES.iter().enumerate() {
            for block in 0..depth {
                let stride = if block == 0 { stride } else { 1 };
                let vb = features.pp(stage + 1).pp(block).pp("block");
                let drop_path = deepest * blocks.len() as f64 / count as f64;
                let layers = inverted_residual(c_in, c_out, expansion, (kernel, stride), vb)?;
                blocks.push(MbConv { layers, drop_path });
                c_in = c_out;
            }
        }
        let bound = 1.0 / (config.num_classes as f64).sqrt();
        let head_init = Init::Uniform { lo: -bound, up: bound };
        let head = vb.pp("classifier").pp(1);
        Ok(Self {
            stem,
            blocks,
            last: ConvNorm::sequence(c_in, LAST, (1, 1, 1), Silu, features.pp(STAGES.len() + 1))?,
            dropout: config.dropout.unwrap_or(DROPOUT),
            noise: config.noise.clone(),
            classifier: Linear::with_zero_bias(LAST, config.num_classes, head_init, head)?,
        })
    }
}

impl Network for EfficientNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.stem.forward(xs, train)?; // N x 32 x 112 x 112 from 224 pixels
        for block in &self.blocks {
            xs = block.forward(&xs, &self.noise, train)?;
        }
        // N x 320 x 7 x 7
        let xs = global_avg_pool2d(&self.last.forward(&xs, train)?)?;
        self.classifier.forward(&dropout(&xs, self.dropout, &self.noise, train)?)
    }
}

/// MobileNetV2's bottleneck, with squeeze-and-excitation whose inner layer is sized by the narrow map.
fn inverted_residual(
    c_in: usize,
    c_out: usize,
    expansion: usize,
    (kernel, stride): (usize, usize),
    vb: VarBuilder<'_>,
) -> Result<InvertedResidual> {
    let wide = c_in * expansion;
    let first = usize::from(expansion > 1);
    let (squeezed, activations) = ((c_in / SQUEEZE_RATIO).max(1), [Silu, Sigmoid]);
    let squeeze = SqueezeExcitation::new(wide, squeezed, activations, |_| ZERO, vb.pp(first + 1))?;
    Ok(InvertedResidual {
        expand: if expansion > 1 {
            Some(ConvNorm::sequence(c_in, wide, (1, 1, 1), Silu, vb.pp(0))?)
        } else {
            None
        },
        depthwise: ConvNorm::sequence(wide, wide, (kernel, stride, wide), Silu, vb.pp(first))?,
        squeeze: Some(squeeze),
        project: ConvNorm::sequence(wide, c_out, (1, 1, 1), Identity, vb.pp(first + 2))?,
        shortcut: stride == 1 && c_in == c_out,
    })
}

struct MbConv {
    layers: InvertedResidual,
    /// How probable it is in training that an image takes the shortcut alone.
    drop_path: f64,
}

impl MbConv {
    fn forward(&self, xs: &FeatureMap, noise: &Noise, train: bool) -> Result<FeatureMap> {
        if !(train && self.layers.shortcut && self.drop_path > 0.0) {
            return self.layers.forward(xs, train);
        }
        let ys = self.layers.project.forward(&self.layers.wide(xs, train)?, train)?;
        add(&drop_path(&ys, self.drop_path, noise, train)?, xs)
    }
}

//! MnasNet (Tan, Chen, Pang, Vasudevan, Sandler, Howard and Le, "MnasNet: platform-aware neural architecture search
//! for mobile", arXiv 1807.11626), with the keys, shapes and initialisation of torchvision's weights. It is
//! MnasNet-B1 (table 2), which the search found where squeeze-and-excitation was not on offer; the layers are not in
//! the paper but in the authors' code. Figure 7 shows A1.
//!
//! On images of at most 64 pixels the stem and the first stack have stride 1, as MobileNetV2 has it for CIFAR.
//!
//! Running statistics have momentum 0.0003, the reference's: they need some ten thousand steps to follow, so a
//! network trained for less does worse in evaluation than in training.

use super::mobilenet_v2::InvertedResidual;
use crate::layers::{ConvNorm, KAIMING_FAN_OUT, Linear};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::{self, Identity, Relu};
use zoo_ops::rng::Noise;
use zoo_ops::{FeatureMap, dropout, global_avg_pool2d};

/// Stacks of bottlenecks: output channels, kernel, stride of the first one, expansion, repetitions.
const STACKS: [(usize, usize, usize, usize, usize); 6] = [
    (24, 3, 2, 3, 3),
    (40, 5, 2, 3, 3),
    (80, 5, 2, 6, 3),
    (96, 3, 1, 6, 2),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
];

/// Channels of the first convolution, of the separable one behind it, and of the last one.
const STEM: usize = 32;
const SEPARABLE: usize = 16;
const LAST: usize = 1280;

const DROPOUT: f64 = 0.2;

/// 0.9997 in TensorFlow's sense.
const MOMENTUM: f64 = 3e-4;

/// Uniform by fan-out with gain 1.
const HEAD_INIT: Init = Init::Kaiming {
    dist: NormalOrUniform::Uniform,
    fan: FanInOut::FanOut,
    non_linearity: NonLinearity::ExplicitGain(1.0),
};

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "mnasnet1_0",
        family: "mnasnet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "layers.0",
        head: "classifier.1",
        build: Box::new(|config, vb| Ok(Box::new(MnasNet::new(config, vb)?))),
    }]
}

struct MnasNet {
    stem: ConvNorm,
    blocks: Vec<InvertedResidual>,
    last: ConvNorm,
    dropout: (f64, Noise),
    classifier: Linear,
}

/// The convolution `first` of a sequence and the normalisation behind it.
fn conv(
    c_in: usize,
    c_out: usize,
    shape: (usize, usize, usize),
    activation: Activation,
    vb: &VarBuilder<'_>,
    first: usize,
) -> Result<ConvNorm> {
    let paths = [vb.pp(first), vb.pp(first + 1)];
    let conv = ConvNorm::new(c_in, c_out, shape, activation, KAIMING_FAN_OUT, paths)?;
    Ok(conv.norm(|norm| norm.momentum(MOMENTUM)))
}

impl MnasNet {
    /// Parameters `layers.<i>.…`, in which activations count too, and `classifier.1`.
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (small, layers) = (config.small_stem(), vb.pp("layers"));
        let stem = conv(config.in_chans, STEM, (3, if small { 1 } else { 2 }, 1), Relu, &layers, 0)?;
        let mut blocks = vec![InvertedResidual {
            expand: None,
            depthwise: conv(STEM, STEM, (3, 1, STEM), Relu, &layers, 3)?,
            squeeze: None,
            project: conv(STEM, SEPARABLE, (1, 1, 1), Identity, &layers, 6)?,
            shortcut: false,
        }];
        let mut c_in = SEPARABLE;
        for (stack, &(c_out, kernel, stride, expansion, repetitions)) in STACKS.iter().enumerate() {
            for i in 0..repetitions {
                let stride = if i > 0 || (small && stack == 0) { 1 } else { stride };
                let (vb, wide) = (layers.pp(8 + stack).pp(i).pp("layers"), c_in * expansion);
                blocks.push(InvertedResidual {
                    expand: Some(conv(c_in, wide, (1, 1, 1), Relu, &vb, 0)?),
                    depthwise: conv(wide, wide, (kernel, stride, wide), Relu, &vb, 3)?,
                    squeeze: None,
                    project: conv(wide, c_out, (1, 1, 1), Identity, &vb, 6)?,
                    shortcut: i > 0,
                });
                c_in = c_out;
            }
        }
        Ok(Self {
            stem,
            blocks,
            last: conv(c_in, LAST, (1, 1, 1), Relu, &layers, 8 + STACKS.len())?,
            dropout: (config.dropout.unwrap_or(DROPOUT), config.noise.clone()),
            classifier: Linear::with_zero_bias(
                LAST,
                config.num_classes,
                HEAD_INIT,
                vb.pp("classifier").pp(1),
            )?,
        })
    }
}

impl Network for MnasNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.stem.forward(xs, train)?; // N x 32 x 112 x 112 from 224 pixels
        for block in &self.blocks {
            xs = block.forward(&xs, train)?;
        }
        // N x 320 x 7 x 7
        let xs = global_avg_pool2d(&self.last.forward(&xs, train)?)?;
        self.classifier.forward(&dropout(&xs, self.dropout.0, &self.dropout.1, train)?)
    }
}

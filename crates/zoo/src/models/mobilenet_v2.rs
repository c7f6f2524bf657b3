//! MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: inverted residuals and linear bottlenecks",
//! arXiv 1801.04381, table 2), with the keys, shapes and initialisation of torchvision's weights.
//!
//! Width multipliers have names: `mobilenet_v2_x0_5` has half the channels of `mobilenet_v2`, rounded as
//! [`multiple_of_8`] says. As in the paper the last convolution never has fewer than 1280.
//!
//! Differs from the paper, as torchvision does: a bottleneck whose expansion is 1 has no expanding convolution, and
//! the classifier is a linear layer behind dropout. On images of at most 64 pixels the stem and the second stage
//! have stride 1, as in kuangliu/pytorch-cifar and chenyaofo/pytorch-cifar-models, whose CIFAR weights have these
//! keys.

use crate::layers::{ConvNorm, KAIMING_FAN_OUT, Linear, SqueezeExcitation};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::{Identity, Relu6};
use zoo_ops::rng::Noise;
use zoo_ops::{FeatureMap, dropout, global_avg_pool2d};

/// Width multipliers: those of the paper's figure 5 and table 4, and the smaller ones in use.
const VARIANTS: [(&str, f64); 7] = [
    ("mobilenet_v2", 1.0),
    ("mobilenet_v2_x0_25", 0.25),
    ("mobilenet_v2_x0_35", 0.35),
    ("mobilenet_v2_x0_5", 0.5),
    ("mobilenet_v2_x0_75", 0.75),
    ("mobilenet_v2_x1_3", 1.3),
    ("mobilenet_v2_x1_4", 1.4),
];

/// The bottlenecks of table 2: expansion factor, output channels, repetitions, stride of the first one.
const BOTTLENECKS: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

/// Channels of the first and the last convolution.
const STEM: usize = 32;
const LAST: usize = 1280;

const DROPOUT: f64 = 0.2;

/// How torchvision draws the weights of the output layer.
pub(crate) const HEAD_INIT: Init = Init::Randn { mean: 0.0, stdev: 0.01 };

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |&(name, width): &(&'static str, f64)| Spec {
        name,
        family: "mobilenet_v2",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "features.0.0",
        head: "classifier.1",
        build: Box::new(move |config, vb| Ok(Box::new(MobileNetV2::new(width, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

/// The multiple of 8 that is nearest to `channels`, but at least 8 and never less than 90 % of them.
pub(crate) fn multiple_of_8(channels: f64) -> usize {
    let nearest = ((channels + 4.0) as usize / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * channels { nearest + 8 } else { nearest }
}

struct MobileNetV2 {
    stem: ConvNorm,
    blocks: Vec<InvertedResidual>,
    last: ConvNorm,
    dropout: (f64, Noise),
    classifier: Linear,
}

impl MobileNetV2 {
    /// Parameters `features.<i>.…`, counted from the stem to the last convolution, and `classifier.1`.
    fn new(width: f64, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let small = config.small_stem();
        let scaled = |channels: usize| multiple_of_8(channels as f64 * width);
        let features = |index: usize| vb.pp("features").pp(index);
        let conv = |c_in, c_out, shape, vb| ConvNorm::sequence(c_in, c_out, shape, Relu6, vb);
        let mut c_in = scaled(STEM);
        let stem = conv(config.in_chans, c_in, (3, if small { 1 } else { 2 }, 1), features(0))?;
        let mut blocks = Vec::new();
        for (stage, &(expansion, channels, repetitions, stride)) in BOTTLENECKS.iter().enumerate() {
            for i in 0..repetitions {
                let published = if i == 0 { stride } else { 1 };
                let stride = if small && stage == 1 { 1 } else { published };
                let vb = features(blocks.len() + 1).pp("conv");
                let c_out = scaled(channels);
                let mut block = bottleneck(c_in, c_out, expansion, stride, vb)?;
                // The same in both forms, so that weights mean the same.
                block.shortcut = published == 1 && c_in == c_out;
                blocks.push(block);
                c_in = c_out;
            }
        }
        let c_out = multiple_of_8(LAST as f64 * width.max(1.0));
        Ok(Self {
            stem,
            last: conv(c_in, c_out, (1, 1, 1), features(blocks.len() + 1))?,
            blocks,
            dropout: (config.dropout.unwrap_or(DROPOUT), config.noise.clone()),
            classifier: Linear::with_zero_bias(
                c_out,
                config.num_classes,
                HEAD_INIT,
                vb.pp("classifier").pp(1),
            )?,
        })
    }
}

impl Network for MobileNetV2 {
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

/// Figure 4d: its convolutions are `conv.0` and so on, the last one and its normalisation without a level of their
/// own. Without the shortcut.
fn bottleneck(
    c_in: usize,
    c_out: usize,
    expansion: usize,
    stride: usize,
    vb: VarBuilder<'_>,
) -> Result<InvertedResidual> {
    let inner = c_in * expansion;
    let conv = |c_in, shape, index: usize| ConvNorm::sequence(c_in, inner, shape, Relu6, vb.pp(index));
    let first = usize::from(expansion != 1);
    Ok(InvertedResidual {
        expand: if expansion == 1 { None } else { Some(conv(c_in, (1, 1, 1), 0)?) },
        depthwise: conv(inner, (3, stride, inner), first)?,
        squeeze: None,
        project: ConvNorm::new(
            inner,
            c_out,
            (1, 1, 1),
            Identity,
            KAIMING_FAN_OUT,
            [vb.pp(first + 1), vb.pp(first + 2)],
        )?,
        shortcut: false,
    })
}

/// A narrow map to a wide one, a depthwise convolution there, and back to a narrow one without an activation. The
/// shortcut joins the narrow maps.
pub(crate) struct InvertedResidual {
    pub(crate) expand: Option<ConvNorm>,
    pub(crate) depthwise: ConvNorm,
    /// In later networks, on the wide map.
    pub(crate) squeeze: Option<SqueezeExcitation>,
    pub(crate) project: ConvNorm,
    pub(crate) shortcut: bool,
}

impl InvertedResidual {
    /// The wide map that is projected.
    pub(crate) fn wide(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let ys = match &self.expand {
            Some(expand) => self.depthwise.forward(&expand.forward(xs, train)?, train)?,
            None => self.depthwise.forward(xs, train)?,
        };
        match &self.squeeze {
            Some(squeeze) => squeeze.forward(&ys),
            None => Ok(ys),
        }
    }

    pub(crate) fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let ys = self.wide(xs, train)?;
        if self.shortcut {
            self.project.forward_residual(&ys, xs, train)
        } else {
            self.project.forward(&ys, train)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::multiple_of_8;

    #[test]
    fn channels_are_rounded_as_the_paper_does() {
        let rounded = [83.0, 84.0, 1.0, 44.8, 33.6, 22.4, 11.2, 8.4, 12.0].map(multiple_of_8);
        // 11.2 would become 8, which is less than 90 %.
        assert_eq!(rounded, [80, 88, 8, 48, 32, 24, 16, 8, 16]);
    }
}

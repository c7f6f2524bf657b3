//! RegNet (Radosavovic, Kosaraju, Girshick, He and Dollár, "Designing network design spaces", arXiv 2003.13678,
//! figures 15 and 16), with the keys, shapes and initialisation of torchvision's weights.
//!
//! Differs from the paper, as torchvision does: the widths of stages are multiples of the group width. On images of
//! at most 64 pixels the stem and the first stage have stride 1 (kuangliu/pytorch-cifar keeps the second stage at
//! full resolution too, at four times the cost).

use super::mobilenet_v2::HEAD_INIT;
use crate::layers::{ConvNorm, Linear, SqueezeExcitation, bias_init};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::Activation::{Identity, Relu, Sigmoid};
use zoo_ops::{FeatureMap, global_avg_pool2d};

struct Variant {
    name: &'static str,
    /// Blocks and width of each stage.
    stages: [(usize, usize); 4],
    /// Channels of a group of the 3×3 convolutions.
    group_width: usize,
    /// Whether there is squeeze-and-excitation: the Y models.
    squeeze: bool,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "regnet_x_400mf",
        stages: [(1, 32), (2, 64), (7, 160), (12, 400)],
        group_width: 16,
        squeeze: false,
    },
    Variant {
        name: "regnet_y_400mf",
        stages: [(1, 48), (3, 104), (6, 208), (6, 440)],
        group_width: 8,
        squeeze: true,
    },
];

/// Channels of the first convolution.
const STEM: usize = 32;

/// Channels of a block's input for each one between the layers of its squeeze-and-excitation.
const SQUEEZE_RATIO: usize = 4;

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "regnet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "stem.0",
        head: "fc",
        build: Box::new(|config, vb| Ok(Box::new(RegNet::new(variant, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

struct RegNet {
    stem: ConvNorm,
    blocks: Vec<XBlock>,
    fc: Linear,
}

impl RegNet {
    /// Parameters `stem`, `trunk_output.block<stage>.block<stage>-<block>.…` and `fc`.
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let small = config.small_stem();
        let stem = ConvNorm::sequence(
            config.in_chans,
            STEM,
            (3, if small { 1 } else { 2 }, 1),
            Relu,
            vb.pp("stem"),
        )?;
        let (mut c_in, mut blocks) = (STEM, Vec::new());
        for (stage, (depth, width)) in variant.stages.into_iter().enumerate() {
            let vb = vb.pp("trunk_output").pp(format!("block{}", stage + 1));
            for block in 0..depth {
                let stride = if block > 0 || (small && stage == 0) { 1 } else { 2 };
                let vb = vb.pp(format!("block{}-{block}", stage + 1));
                let proj = match block {
                    0 => Some(ConvNorm::sequence(c_in, width, (1, stride, 1), Identity, vb.pp("proj"))?),
                    _ => None,
                };
                blocks.push(XBlock { proj, ..XBlock::new(variant, c_in, width, stride, vb)? });
                c_in = width;
            }
        }
        let fc = Linear::with_zero_bias(c_in, config.num_classes, HEAD_INIT, vb.pp("fc"))?;
        Ok(Self { stem, blocks, fc })
    }
}

impl Network for RegNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.stem.forward(xs, train)?; // N x 32 x 112 x 112 from 224 pixels
        for block in &self.blocks {
            xs = block.forward(&xs, train)?;
        }
        // N x 400 x 7 x 7 (X), N x 440 x 7 x 7 (Y)
        self.fc.forward(&global_avg_pool2d(&xs)?)
    }
}

/// Figure 4: a bottleneck as wide inside as outside, of a grouped convolution between two 1×1 ones; in a Y block
/// with squeeze-and-excitation behind it.
struct XBlock {
    /// In the first block of a stage.
    proj: Option<ConvNorm>,
    a: ConvNorm,
    b: ConvNorm,
    squeeze: Option<SqueezeExcitation>,
    c: ConvNorm,
}

impl XBlock {
    fn new(variant: &Variant, c_in: usize, width: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let f = vb.pp("f");
        let groups = width / variant.group_width;
        Ok(Self {
            proj: None,
            a: ConvNorm::sequence(c_in, width, (1, 1, 1), Relu, f.pp("a"))?,
            b: ConvNorm::sequence(width, width, (3, stride, groups), Relu, f.pp("b"))?,
            squeeze: if variant.squeeze {
                let activations = [Relu, Sigmoid];
                let squeezed = c_in / SQUEEZE_RATIO;
                Some(SqueezeExcitation::new(width, squeezed, activations, bias_init, f.pp("se"))?)
            } else {
                None
            },
            c: ConvNorm::sequence(width, width, (1, 1, 1), Relu, f.pp("c"))?,
        })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut ys = self.b.forward(&self.a.forward(xs, train)?, train)?;
        if let Some(squeeze) = &self.squeeze {
            ys = squeeze.forward(&ys)?;
        }
        match &self.proj {
            Some(proj) => self.c.forward_residual(&ys, &proj.forward(xs, train)?, train),
            None => self.c.forward_residual(&ys, xs, train),
        }
    }
}

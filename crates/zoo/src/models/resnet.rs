//! ResNet (He, Zhang, Ren and Sun, "Deep residual learning for image recognition", arXiv 1512.03385, table 1),
//! with the keys, shapes and initialisation of torchvision's weights.
//!
//! Differs from the paper, as torchvision does: where a bottleneck halves the map, its 3×3 convolution has the
//! stride and not the first 1×1 ("v1.5"). On images of at most 64 pixels the stem is a 3×3 convolution with
//! stride 1 and no pooling, unless [`Config::stem`] says otherwise.

use crate::layers::{
    BatchNorm2d, Conv2d, KAIMING_FAN_OUT, Linear, PYTORCH_DEFAULT, SqueezeExcitation, bias_init,
};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::{Identity, Relu, Sigmoid};
use zoo_ops::{
    Conv2dConfig, FeatureMap, Window2d, activation, add, global_avg_pool2d, max_pool2d, pad_channels,
    subsample2d,
};

/// A row of table 1.
struct Variant {
    name: &'static str,
    block: Block,
    /// Blocks of conv2_x, conv3_x, conv4_x and conv5_x.
    depths: [usize; 4],
}

const VARIANTS: [Variant; 5] = [
    Variant { name: "resnet18", block: Block::Basic, depths: [2, 2, 2, 2] },
    Variant { name: "resnet34", block: Block::Basic, depths: [3, 4, 6, 3] },
    Variant { name: "resnet50", block: RESNET_BOTTLENECK, depths: [3, 4, 6, 3] },
    Variant { name: "resnet101", block: RESNET_BOTTLENECK, depths: [3, 4, 23, 3] },
    Variant { name: "resnet152", block: RESNET_BOTTLENECK, depths: [3, 8, 36, 3] },
];

const RESNET_BOTTLENECK: Block = Block::Bottleneck { groups: 1, base_width: 64 };

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "resnet",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "conv1",
        head: "fc",
        build: Box::new(|config, vb| build(variant, config, vb)),
    };
    VARIANTS.iter().map(spec).collect()
}

fn build(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let plan = Plan { block: variant.block, depths: &variant.depths, ..Plan::torchvision(config) };
    Ok(Box::new(ResNet::new(&plan, config, vb)?))
}

/// The residual function of a block, of `width` maps.
#[derive(Clone, Copy)]
pub(crate) enum Block {
    /// Two 3×3 convolutions (figure 5, left).
    Basic,
    /// 1×1, 3×3, 1×1 (figure 5, right), the outer maps [`EXPANSION`] times as wide. The 3×3 convolution has
    /// `width · base_width / 64 · groups` maps: ResNeXt and wide ResNets differ in these two numbers.
    Bottleneck { groups: usize, base_width: usize },
}

/// How often wider a bottleneck's output is than its `width`.
const EXPANSION: usize = 4;

impl Block {
    fn c_out(self, width: usize) -> usize {
        match self {
            Self::Basic => width,
            Self::Bottleneck { .. } => width * EXPANSION,
        }
    }

    /// Kernel, stride, groups and output channels of its convolutions.
    fn convs(self, width: usize, stride: usize) -> Vec<(usize, usize, usize, usize)> {
        match self {
            Self::Basic => vec![(3, stride, 1, width), (3, 1, 1, width)],
            Self::Bottleneck { groups, base_width } => {
                let inner = width * base_width / 64 * groups;
                vec![(1, 1, 1, inner), (3, stride, groups, inner), (1, 1, 1, self.c_out(width))]
            }
        }
    }
}

/// The shortcut of a block whose output has other dimensions than its input (section 3.3 and 4.1).
#[derive(Clone, Copy)]
pub(crate) enum ShortcutKind {
    /// Option A: every stride-th pixel, with zero channels around the input's own. No parameters.
    PadChannels,
    /// Option B: a 1×1 convolution with that stride and a normalisation, under this name in its block.
    Projection(&'static str),
}

/// The layers before the first block.
#[derive(Clone, Copy)]
pub(crate) enum StemKind {
    /// A 7×7 convolution with stride 2 and a 3×3 max-pool with stride 2.
    ImageNet,
    /// A convolution of this size with stride 1.
    FullResolution(usize),
}

/// What a ResNet is built from.
pub(crate) struct Plan<'a> {
    pub(crate) stem: StemKind,
    pub(crate) block: Block,
    pub(crate) shortcut: ShortcutKind,
    /// How many times fewer channels a gate of each residual function has between its layers; `None` is no gate.
    pub(crate) squeeze: Option<usize>,
    /// Maps of the stem and of the first stage; each further stage has twice as many.
    pub(crate) width: usize,
    /// Blocks of each stage.
    pub(crate) depths: &'a [usize],
    /// Name of the output layer.
    pub(crate) head: &'a str,
    pub(crate) conv_init: Init,
    pub(crate) head_init: Init,
}

impl Plan<'_> {
    /// What torchvision's residual networks share; without blocks yet.
    pub(crate) fn torchvision(config: &Config) -> Self {
        Self {
            stem: if config.small_stem() { StemKind::FullResolution(3) } else { StemKind::ImageNet },
            block: RESNET_BOTTLENECK,
            shortcut: ShortcutKind::Projection("downsample"),
            squeeze: None,
            width: 64,
            depths: &[],
            head: "fc",
            conv_init: KAIMING_FAN_OUT,
            head_init: PYTORCH_DEFAULT,
        }
    }
}

/// A residual network.
pub(crate) struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    max_pool: Option<Window2d>,
    blocks: Vec<ResidualBlock>,
    head: Linear,
}

impl ResNet {
    /// Parameters `conv1`, `bn1`, `layer<stage>.<block>.…` and the head.
    ///
    /// # Errors
    /// If `vb` lacks a parameter or has it in another shape.
    pub(crate) fn new(plan: &Plan<'_>, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (kernel, stem, max_pool) = match plan.stem {
            StemKind::FullResolution(kernel) => (kernel, Conv2dConfig::new(1, kernel / 2), None),
            StemKind::ImageNet => (7, Conv2dConfig::new(2, 3), Some(Window2d::square(3, 2).padding(1))),
        };
        let mut c_in = plan.width;
        let conv1 =
            Conv2d::new(config.in_chans, c_in, (kernel, kernel), stem, plan.conv_init, vb.pp("conv1"))?;
        let bn1 = BatchNorm2d::new(c_in, vb.pp("bn1"))?;
        let mut blocks = Vec::with_capacity(plan.depths.iter().sum());
        for (stage, &depth) in plan.depths.iter().enumerate() {
            let vb = vb.pp(format!("layer{}", stage + 1));
            for block in 0..depth {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let width = plan.width << stage;
                blocks.push(ResidualBlock::new(plan, c_in, width, stride, vb.pp(block))?);
                c_in = plan.block.c_out(width);
            }
        }
        let head = Linear::with_init(c_in, config.num_classes, plan.head_init, vb.pp(plan.head))?;
        Ok(Self { conv1, bn1, max_pool, blocks, head })
    }
}

impl Network for ResNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.bn1.forward(&self.conv1.forward(xs)?, Relu, train)?;
        if let Some(window) = &self.max_pool {
            xs = max_pool2d(&xs, window)?; // N x 64 x 56 x 56 from 224 pixels
        }
        for block in &self.blocks {
            xs = block.forward(&xs, train)?;
        }
        self.head.forward(&global_avg_pool2d(&xs)?)
    }
}

struct ResidualBlock {
    /// Each followed by ReLU; in the last one the shortcut is added before it.
    convs: Vec<(Conv2d, BatchNorm2d)>,
    /// Before the shortcut is added.
    gate: Option<SqueezeExcitation>,
    shortcut: Shortcut,
}

enum Shortcut {
    Identity,
    PadChannels { stride: usize, before: usize, after: usize },
    Projection(Conv2d, BatchNorm2d),
}

impl ResidualBlock {
    fn new(plan: &Plan<'_>, c_in: usize, width: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let mut convs = Vec::new();
        let mut c = c_in;
        for (i, (kernel, stride, groups, c_out)) in plan.block.convs(width, stride).into_iter().enumerate() {
            let config = Conv2dConfig::new(stride, kernel / 2).groups(groups);
            let (conv, bn) = (vb.pp(format!("conv{}", i + 1)), vb.pp(format!("bn{}", i + 1)));
            let conv = Conv2d::new(c, c_out, (kernel, kernel), config, plan.conv_init, conv)?;
            convs.push((conv, BatchNorm2d::new(c_out, bn)?));
            c = c_out;
        }
        let gate = |reduction| {
            SqueezeExcitation::new(c, c / reduction, [Relu, Sigmoid], bias_init, vb.pp("se")).map(Some)
        };
        let gate = plan.squeeze.map_or(Ok(None), gate)?;
        let shortcut = match plan.shortcut {
            _ if stride == 1 && c_in == c => Shortcut::Identity,
            ShortcutKind::PadChannels => {
                let before = (c - c_in) / 2;
                Shortcut::PadChannels { stride, before, after: c - c_in - before }
            }
            ShortcutKind::Projection(name) => {
                let (vb, config) = (vb.pp(name), Conv2dConfig::new(stride, 0));
                let conv = Conv2d::new(c_in, c, (1, 1), config, plan.conv_init, vb.pp(0))?;
                Shortcut::Projection(conv, BatchNorm2d::new(c, vb.pp(1))?)
            }
        };
        Ok(Self { convs, gate, shortcut })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let shortcut = match &self.shortcut {
            Shortcut::Identity => xs.clone(),
            Shortcut::PadChannels { stride, before, after } => {
                pad_channels(&subsample2d(xs, *stride)?, *before, *after)?
            }
            Shortcut::Projection(conv, bn) => bn.forward(&conv.forward(xs)?, Identity, train)?,
        };
        let mut ys = xs.clone();
        for (i, (conv, bn)) in self.convs.iter().enumerate() {
            ys = conv.forward(&ys)?;
            ys = match &self.gate {
                _ if i + 1 < self.convs.len() => bn.forward(&ys, Relu, train)?,
                None => bn.forward_residual(&ys, &shortcut, Relu, train)?,
                Some(gate) => {
                    let ys = gate.forward(&bn.forward(&ys, Identity, train)?)?;
                    activation(&add(&ys, &shortcut)?, Relu)?
                }
            };
        }
        Ok(ys)
    }
}

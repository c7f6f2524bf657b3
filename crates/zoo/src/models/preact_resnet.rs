//! Pre-activation ResNets (He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", arXiv
//! 1603.05027, figure 1b and table 4): normalisation and ReLU come before each convolution, and nothing but
//! additions lies on the way from the first block to the last.
//!
//! preact_resnet1001 is the paper's: 111 bottlenecks in each of three stages of 16, 32 and 64 maps, four times as
//! many between blocks, with the keys and the initialisation of osmr/imgclsmob (`preresnet1001_cifar10` of
//! pytorchcv). preact_resnet18 has the keys and the initialisation of kuangliu/pytorch-cifar.
//!
//! Differs from the paper in preact_resnet18, which is kuangliu's: ResNet-18's blocks and widths behind a 3×3
//! stem, and no normalisation between the last block and the pooling. Both are for small images, whatever
//! [`Config::stem`] says.

use crate::layers::{BatchNorm2d, Conv2d, KAIMING_FAN_OUT, Linear, PYTORCH_DEFAULT};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::Relu;
use zoo_ops::rng::Noise;
use zoo_ops::{Conv2dConfig, FeatureMap, add, dropout, global_avg_pool2d};

struct Variant {
    name: &'static str,
    source: Source,
    is_bottleneck: bool,
    /// Maps of the stem, and of the residual functions of the first stage.
    width: usize,
    /// Blocks of each stage.
    depths: &'static [usize],
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "preact_resnet18",
        source: Source::Kuangliu,
        is_bottleneck: false,
        width: 64,
        depths: &[2, 2, 2, 2],
    },
    Variant {
        name: "preact_resnet1001",
        source: Source::Pytorchcv,
        is_bottleneck: true,
        width: 16,
        depths: &[111, 111, 111],
    },
];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "preact_resnet",
        input: [3, 32, 32],
        num_classes: 10,
        stem: variant.source.stem(),
        head: variant.source.head(),
        build: Box::new(|config, vb| build(variant, config, vb)),
    };
    VARIANTS.iter().map(spec).collect()
}

fn build(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let expansion = if variant.is_bottleneck { EXPANSION } else { 1 };
    let plan = Plan {
        source: variant.source,
        is_bottleneck: variant.is_bottleneck,
        stem_width: variant.width,
        width: variant.width * expansion,
        depths: variant.depths,
        dropout: 0.0,
    };
    Ok(Box::new(PreActResNet::new(&plan, config, vb)?))
}

/// How often wider a bottleneck's output is than its inner maps.
const EXPANSION: usize = 4;

/// The reference implementations, which differ in names, in initial values and in what follows the last block.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Source {
    /// kuangliu/pytorch-cifar
    Kuangliu,
    /// osmr/imgclsmob
    Pytorchcv,
    /// xternalz/WideResNet-pytorch
    Xternalz,
}

impl Source {
    pub(crate) fn stem(self) -> &'static str {
        match self {
            Self::Kuangliu | Self::Xternalz => "conv1",
            Self::Pytorchcv => "features.init_block",
        }
    }

    pub(crate) fn head(self) -> &'static str {
        match self {
            Self::Kuangliu => "linear",
            Self::Pytorchcv => "output",
            Self::Xternalz => "fc",
        }
    }

    /// Of the normalisation behind the last block, where there is one.
    fn last_norm(self) -> Option<&'static str> {
        match self {
            Self::Kuangliu => None,
            Self::Pytorchcv => Some("features.post_activ.bn"),
            Self::Xternalz => Some("bn1"),
        }
    }

    /// Both counted from 1.
    fn block(self, stage: usize, block: usize) -> String {
        match self {
            Self::Kuangliu => format!("layer{stage}.{}", block - 1),
            Self::Pytorchcv => format!("features.stage{stage}.unit{block}"),
            Self::Xternalz => format!("block{stage}.layer.{}", block - 1),
        }
    }

    /// Of the i-th normalisation and convolution of a block, counted from 1.
    fn layer(self, i: usize) -> (String, String) {
        match self {
            Self::Kuangliu | Self::Xternalz => (format!("bn{i}"), format!("conv{i}")),
            Self::Pytorchcv => (format!("body.conv{i}.bn"), format!("body.conv{i}.conv")),
        }
    }

    fn shortcut(self) -> &'static str {
        match self {
            Self::Kuangliu => "shortcut.0",
            Self::Pytorchcv => "identity_conv",
            Self::Xternalz => "convShortcut",
        }
    }

    fn conv_init(self) -> Init {
        match self {
            Self::Kuangliu => PYTORCH_DEFAULT,
            Self::Pytorchcv => Init::Kaiming {
                dist: NormalOrUniform::Uniform,
                fan: FanInOut::FanIn,
                non_linearity: NonLinearity::ReLU,
            },
            Self::Xternalz => KAIMING_FAN_OUT,
        }
    }

    fn linear(self, c_in: usize, c_out: usize, vb: VarBuilder<'_>) -> Result<Linear> {
        match self {
            Self::Kuangliu | Self::Pytorchcv => Linear::new(c_in, c_out, vb),
            Self::Xternalz => Linear::with_zero_bias(c_in, c_out, PYTORCH_DEFAULT, vb),
        }
    }
}

/// What a pre-activation ResNet is built from.
pub(crate) struct Plan<'a> {
    pub(crate) source: Source,
    /// 1×1, 3×3, 1×1 convolutions; otherwise two of 3×3.
    pub(crate) is_bottleneck: bool,
    pub(crate) stem_width: usize,
    /// Maps between the blocks of the first stage; each further stage has twice as many and half the resolution.
    pub(crate) width: usize,
    /// Blocks of each stage.
    pub(crate) depths: &'a [usize],
    /// The network's own probability of dropout, behind the first convolution of each block.
    pub(crate) dropout: f64,
}

/// A residual network of pre-activation blocks for small images.
pub(crate) struct PreActResNet {
    stem: Conv2d,
    blocks: Vec<PreActBlock>,
    last_norm: Option<BatchNorm2d>,
    head: Linear,
}

impl PreActResNet {
    /// # Errors
    /// If `vb` lacks a parameter or has it in another shape.
    pub(crate) fn new(plan: &Plan<'_>, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let source = plan.source;
        let mut c_in = plan.stem_width;
        let stem_config = Conv2dConfig::new(1, 1);
        let stem = vb.pp(source.stem());
        let stem = Conv2d::new(config.in_chans, c_in, (3, 3), stem_config, source.conv_init(), stem)?;
        let mut blocks = Vec::with_capacity(plan.depths.iter().sum());
        for (stage, &depth) in plan.depths.iter().enumerate() {
            let c_out = plan.width << stage;
            for block in 0..depth {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let vb = vb.pp(source.block(stage + 1, block + 1));
                blocks.push(PreActBlock::new(plan, config, (c_in, c_out, stride), vb)?);
                c_in = c_out;
            }
        }
        let last_norm = source.last_norm().map(|name| BatchNorm2d::new(c_in, vb.pp(name))).transpose()?;
        let head = source.linear(c_in, config.num_classes, vb.pp(source.head()))?;
        Ok(Self { stem, blocks, last_norm, head })
    }
}

impl Network for PreActResNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.stem.forward(xs)?;
        for block in &self.blocks {
            xs = block.forward(&xs, train)?;
        }
        if let Some(norm) = &self.last_norm {
            xs = norm.forward(&xs, Relu, train)?; // N x 256 x 8 x 8 in preact_resnet1001
        }
        self.head.forward(&global_avg_pool2d(&xs)?)
    }
}

struct PreActBlock {
    /// A normalisation with ReLU in front of each convolution.
    layers: Vec<(BatchNorm2d, Conv2d)>,
    /// Where the dimensions change: a convolution of what the first normalisation gives.
    shortcut: Option<Conv2d>,
    dropout: f64,
    noise: Noise,
}

impl PreActBlock {
    fn new(
        plan: &Plan<'_>,
        config: &Config,
        (c_in, c_out, stride): (usize, usize, usize),
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let inner = c_out / EXPANSION;
        // Kernel, stride and output channels.
        let convs = if plan.is_bottleneck {
            vec![(1, 1, inner), (3, stride, inner), (1, 1, c_out)]
        } else {
            vec![(3, stride, c_out), (3, 1, c_out)]
        };
        let (mut layers, mut c) = (Vec::with_capacity(convs.len()), c_in);
        let init = plan.source.conv_init();
        for (i, (kernel, stride, c_out)) in convs.into_iter().enumerate() {
            let (norm, conv) = plan.source.layer(i + 1);
            let config = Conv2dConfig::new(stride, kernel / 2);
            let norm = BatchNorm2d::new(c, vb.pp(norm))?;
            layers.push((norm, Conv2d::new(c, c_out, (kernel, kernel), config, init, vb.pp(conv))?));
            c = c_out;
        }
        let shortcut = (stride != 1 || c_in != c_out).then(|| {
            let vb = vb.pp(plan.source.shortcut());
            Conv2d::new(c_in, c_out, (1, 1), Conv2dConfig::new(stride, 0), init, vb)
        });
        Ok(Self {
            layers,
            shortcut: shortcut.transpose()?,
            dropout: config.dropout.unwrap_or(plan.dropout),
            noise: config.noise.clone(),
        })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut ys = xs.clone();
        let mut shortcut = xs.clone();
        for (i, (norm, conv)) in self.layers.iter().enumerate() {
            ys = norm.forward(&ys, Relu, train)?;
            if let (0, Some(conv)) = (i, &self.shortcut) {
                shortcut = conv.forward(&ys)?;
            }
            ys = conv.forward(&ys)?;
            if i == 0 && self.dropout > 0.0 {
                ys = dropout(&ys, self.dropout, &self.noise, train)?;
            }
        }
        add(&ys, &shortcut)
    }
}

//! ResNeSt-50 (Zhang et al., "ResNeSt: split-attention networks", arXiv 2004.08955, figure 2 and table 1): a
//! ResNet whose 3×3 convolutions give two splits, which are added with weights for each channel that depend on the
//! whole image. Stem of three 3×3 convolutions, shortcuts that average before their 1×1 convolution, and a 3×3
//! average in place of stride in the residual function. Keys and shapes are those of timm's `resnest50d`, which
//! are the authors'.
//!
//! Differs from timm in its initial values: the last scale of each residual function starts at 1, as the authors
//! have it, where timm has 0. On images of at most 64 pixels the stem's first convolution has stride 1 and no
//! pooling follows it, unless [`Config::stem`] says otherwise; no parameter has another shape.

use crate::layers::{BatchNorm2d, Conv2d, KAIMING_FAN_OUT, Linear, PYTORCH_DEFAULT, bias_init};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::Activation::{Identity, Relu};
use zoo_ops::{
    Conv2dConfig, FeatureMap, Window2d, add, avg_pool2d, gate, global_avg_pool2d, max_pool2d, radix_softmax,
    split,
};

/// Blocks of each stage.
const DEPTHS: [usize; 4] = [3, 4, 6, 3];

/// Maps of the stem's last convolution, and of the 3×3 convolutions of the first stage.
const WIDTH: usize = 64;

/// How often wider a block's output is than its inner maps.
const EXPANSION: usize = 4;

/// Splits of each 3×3 convolution.
const RADIX: usize = 2;

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "resnest50",
        family: "resnest",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "conv1.0",
        head: "fc",
        build: Box::new(|config, vb| Ok(Box::new(ResNeSt::new(config, vb)?))),
    }]
}

/// A square convolution without bias, padded by half of itself.
fn conv(
    c_in: usize,
    c_out: usize,
    (kernel, stride, groups): (usize, usize, usize),
    vb: VarBuilder<'_>,
) -> Result<Conv2d> {
    let config = Conv2dConfig::new(stride, kernel / 2).groups(groups);
    Conv2d::new(c_in, c_out, (kernel, kernel), config, KAIMING_FAN_OUT, vb)
}

struct ResNeSt {
    /// Each followed by ReLU.
    stem: [(Conv2d, BatchNorm2d); 3],
    max_pool: Option<Window2d>,
    blocks: Vec<Block>,
    fc: Linear,
}

impl ResNeSt {
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let small = config.small_stem();
        let (stem, stride) = (vb.pp("conv1"), if small { 1 } else { 2 });
        let norm = |channels, i| BatchNorm2d::new(channels, stem.pp(i));
        let half = WIDTH / 2;
        let stem = [
            (conv(config.in_chans, half, (3, stride, 1), stem.pp(0))?, norm(half, 1)?),
            (conv(half, half, (3, 1, 1), stem.pp(3))?, norm(half, 4)?),
            (conv(half, WIDTH, (3, 1, 1), stem.pp(6))?, BatchNorm2d::new(WIDTH, vb.pp("bn1"))?),
        ];
        let (mut blocks, mut c_in) = (Vec::new(), WIDTH);
        for (stage, depth) in DEPTHS.into_iter().enumerate() {
            let width = WIDTH << stage;
            for i in 0..depth {
                let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                blocks.push(Block::new(c_in, width, stride, vb.pp(format!("layer{}.{i}", stage + 1)))?);
                c_in = width * EXPANSION;
            }
        }
        let max_pool = (!small).then(|| Window2d::square(3, 2).padding(1));
        let fc = Linear::with_init(c_in, config.num_classes, PYTORCH_DEFAULT, vb.pp("fc"))?;
        Ok(Self { stem, max_pool, blocks, fc })
    }
}

impl Network for ResNeSt {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = xs.clone();
        for (conv, norm) in &self.stem {
            xs = norm.forward(&conv.forward(&xs)?, Relu, train)?; // N x 64 x 112 x 112 from 224 pixels
        }
        if let Some(window) = &self.max_pool {
            xs = max_pool2d(&xs, window)?; // N x 64 x 56 x 56
        }
        for block in &self.blocks {
            xs = block.forward(&xs, train)?; // N x 256 x 56 x 56 to N x 2048 x 7 x 7
        }
        self.fc.forward(&global_avg_pool2d(&xs)?)
    }
}

/// A bottleneck with split attention.
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: SplitAttention,
    /// In place of the stride of the 3×3 convolution.
    avg_pool: Option<Window2d>,
    conv3: Conv2d,
    bn3: BatchNorm2d,
    downsample: Option<(Option<Window2d>, Conv2d, BatchNorm2d)>,
}

impl Block {
    fn new(c_in: usize, width: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let c_out = width * EXPANSION;
        let downsample = if stride != 1 || c_in != c_out {
            let vb = vb.pp("downsample");
            let window = Window2d { ceil_mode: true, ..Window2d::square(2, 2) };
            let conv = conv(c_in, c_out, (1, 1, 1), vb.pp(1))?;
            Some(((stride > 1).then_some(window), conv, BatchNorm2d::new(c_out, vb.pp(2))?))
        } else {
            None
        };
        Ok(Self {
            conv1: conv(c_in, width, (1, 1, 1), vb.pp("conv1"))?,
            bn1: BatchNorm2d::new(width, vb.pp("bn1"))?,
            conv2: SplitAttention::new(width, vb.pp("conv2"))?,
            avg_pool: (stride > 1).then(|| Window2d::square(3, stride).padding(1)),
            conv3: conv(width, c_out, (1, 1, 1), vb.pp("conv3"))?,
            bn3: BatchNorm2d::new(c_out, vb.pp("bn3"))?,
            downsample,
        })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let shortcut = match &self.downsample {
            None => xs.clone(),
            Some((window, conv, norm)) => {
                let pooled = window.as_ref().map(|window| avg_pool2d(xs, window, false)).transpose()?;
                norm.forward(&conv.forward(pooled.as_ref().unwrap_or(xs))?, Identity, train)?
            }
        };
        let ys = self.bn1.forward(&self.conv1.forward(xs)?, Relu, train)?;
        let mut ys = self.conv2.forward(&ys, train)?;
        if let Some(window) = &self.avg_pool {
            ys = avg_pool2d(&ys, window, true)?;
        }
        self.bn3.forward_residual(&self.conv3.forward(&ys)?, &shortcut, Relu, train)
    }
}

/// A 3×3 convolution to `RADIX` splits of `width` maps, and their weighted sum (figure 2, right).
struct SplitAttention {
    width: usize,
    conv: Conv2d,
    bn0: BatchNorm2d,
    fc1: Conv2d,
    bn1: BatchNorm2d,
    fc2: Conv2d,
}

impl SplitAttention {
    fn new(width: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let splits = width * RADIX;
        // A quarter of the splits' maps, and at least 32.
        let inner = (splits / 4).max(32);
        let layer = |c_in, c_out, vb| {
            let inits = (KAIMING_FAN_OUT, bias_init(c_in));
            Conv2d::with_inits(c_in, c_out, (1, 1), Conv2dConfig::new(1, 0), inits, vb)
        };
        Ok(Self {
            width,
            conv: conv(width, splits, (3, 1, RADIX), vb.pp("conv"))?,
            bn0: BatchNorm2d::new(splits, vb.pp("bn0"))?,
            fc1: layer(width, inner, vb.pp("fc1"))?,
            bn1: BatchNorm2d::new(inner, vb.pp("bn1"))?,
            fc2: layer(inner, splits, vb.pp("fc2"))?,
        })
    }

    /// (n, h, w, width) to the same.
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let xs = self.bn0.forward(&self.conv.forward(xs)?, Relu, train)?;
        let sum = |splits: &[FeatureMap]| add(&splits[0], &splits[1]);
        let widths = [self.width; RADIX];
        // The mean of the sum is the sum of the means, of which there are few.
        let means = sum(&split(&global_avg_pool2d(&xs)?, &widths)?)?;
        let hidden = self.bn1.forward(&self.fc1.forward(&means)?, Relu, train)?;
        let factors = radix_softmax(&self.fc2.forward(&hidden)?, RADIX)?;
        sum(&split(&gate(&xs, &factors)?, &widths)?)
    }
}

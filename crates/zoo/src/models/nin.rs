//! Network in Network (Lin, Chen and Yan, arXiv 1312.4400, section 4 and figure 2): `nin` is its network for
//! CIFAR-10, `nin_imagenet` the one that its authors published for ImageNet in Caffe's model zoo. An mlpconv layer
//! is a convolution and two 1×1 convolutions, each with ReLU; the last of them has a map per class, and its average
//! is the logit.
//!
//! The paper has no table; widths, kernels and pooling are those of the authors' Caffe definitions (gists
//! e56253735ef32c3c296d and d802a5849de39225bcc6), whose second pooling on CIFAR averages. Keys are those of
//! ProGamerGov/pytorch-nin, a conversion of the latter: `features.<index>`, where activations, pools and dropout
//! have an index too.
//!
//! Differs: weights start by Kaiming's rule, because constant deviations suit pixels of 0 to 255. On images of at
//! most 64 pixels the first convolution of `nin_imagenet` is 3×3 with stride 1, unless [`Config::stem`] says
//! otherwise; `nin` is the same at every size.

use crate::layers::{Conv2d, KAIMING_FAN_IN, ZERO};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::rng::Noise;
use zoo_ops::{
    Activation::Relu, Conv2dConfig, FeatureMap, Window2d, activation, avg_pool2d, dropout, flatten,
    global_avg_pool2d, max_pool2d,
};

struct Variant {
    name: &'static str,
    input: [usize; 3],
    num_classes: usize,
    blocks: &'static [MlpConv],
    head: &'static str,
}

/// An mlpconv layer and what follows it.
struct MlpConv {
    /// Kernel, stride and padding of its first convolution, and for small images.
    window: (usize, usize, usize),
    small: (usize, usize, usize),
    /// Channels of the three convolutions; 0 stands for the number of classes.
    widths: [usize; 3],
    pool: Pool,
    dropout: bool,
}

/// 3×3 with stride 2, whose last window may hang over the edge, or nothing.
#[derive(Clone, Copy)]
enum Pool {
    Max,
    Average,
    None,
}

const fn mlpconv(window: (usize, usize, usize), widths: [usize; 3], pool: Pool, dropout: bool) -> MlpConv {
    MlpConv { window, small: window, widths, pool, dropout }
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "nin",
        input: [3, 32, 32],
        num_classes: 10,
        blocks: &[
            mlpconv((5, 1, 2), [192, 160, 96], Pool::Max, true),
            mlpconv((5, 1, 2), [192, 192, 192], Pool::Average, true),
            mlpconv((3, 1, 1), [192, 192, 0], Pool::None, false),
        ],
        head: "features.20",
    },
    Variant {
        name: "nin_imagenet",
        input: [3, 224, 224],
        num_classes: 1000,
        blocks: &[
            MlpConv { small: (3, 1, 1), ..mlpconv((11, 4, 0), [96, 96, 96], Pool::Max, false) },
            mlpconv((5, 1, 2), [256, 256, 256], Pool::Max, false),
            mlpconv((3, 1, 1), [384, 384, 384], Pool::Max, true),
            mlpconv((3, 1, 1), [1024, 1024, 0], Pool::None, false),
        ],
        head: "features.26",
    },
];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "nin",
        input: variant.input,
        num_classes: variant.num_classes,
        stem: "features.0",
        head: variant.head,
        build: Box::new(|config, vb| Ok(Box::new(NetworkInNetwork::new(variant, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

struct NetworkInNetwork {
    blocks: Vec<(Vec<Conv2d>, Pool, bool)>,
    dropout: f64,
    noise: Noise,
}

impl NetworkInNetwork {
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let (vb, mut index, mut c_in) = (vb.pp("features"), 0, config.in_chans);
        let mut blocks = Vec::with_capacity(variant.blocks.len());
        for block in variant.blocks {
            let first = if config.small_stem() { block.small } else { block.window };
            let mut convs = Vec::with_capacity(3);
            for ((kernel, stride, padding), width) in
                [first, (1, 1, 0), (1, 1, 0)].into_iter().zip(block.widths)
            {
                let c_out = if width == 0 { config.num_classes } else { width };
                let (kernel, config) = ((kernel, kernel), Conv2dConfig::new(stride, padding));
                let vb = vb.pp(index);
                convs.push(Conv2d::with_inits(c_in, c_out, kernel, config, (KAIMING_FAN_IN, ZERO), vb)?);
                c_in = c_out;
                index += 2;
            }
            index += 1 + usize::from(block.dropout);
            blocks.push((convs, block.pool, block.dropout));
        }
        Ok(Self { blocks, dropout: config.dropout.unwrap_or(0.5), noise: config.noise.clone() })
    }
}

impl Network for NetworkInNetwork {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let (mut xs, window) = (xs.clone(), Window2d::square(3, 2).ceil_mode(true));
        for (convs, pool, drop) in &self.blocks {
            for conv in convs {
                xs = activation(&conv.forward(&xs)?, Relu)?;
            }
            xs = match pool {
                Pool::Max => max_pool2d(&xs, &window)?,
                Pool::Average => avg_pool2d(&xs, &window, false)?,
                Pool::None => xs,
            };
            if *drop {
                xs = dropout(&xs, self.dropout, &self.noise, train)?;
            }
        }
        flatten(&global_avg_pool2d(&xs)?) // N x classes, from 8 x 8 pixels on CIFAR
    }
}

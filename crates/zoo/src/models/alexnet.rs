//! AlexNet (Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks",
//! NIPS 2012, figure 2): `alexnet_2012` is the paper's, under the layer names of Caffe's bvlc_alexnet; `alexnet` is
//! torchvision's, with its keys, which is the single column of "One weird trick for parallelizing convolutional
//! neural networks" (arXiv 1404.5997), without normalisation.
//!
//! Differs from the paper: the input of `alexnet_2012` has 227 pixels, because its first maps of 55×55 need them
//! (the text says 224). Weights start as PyTorch's layers do: the paper's deviation of 0.01 suits pixels of 0 to
//! 255, and normalised ones would hardly reach the output. On images of at most 64 pixels the first convolution is
//! 3×3 with stride 1, unless [`Config::stem`] says otherwise; `alexnet` then averages to 3×3 maps and not 6×6.

use crate::layers::{Conv2d, Linear};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::rng::Noise;
use zoo_ops::{
    Activation::Relu, Conv2dConfig, FeatureMap, LocalResponseNorm, Window2d, activation, adaptive_avg_pool2d,
    dropout, flatten, local_response_norm, max_pool2d,
};

/// A variant of the table below, in its form for large and for small images.
struct Variant {
    name: &'static str,
    side: usize,
    plan: Plan,
    small: (Row, Option<usize>),
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "alexnet",
        side: 224,
        plan: Plan {
            convs: [
                row("features.0", 64, (11, 4, 2), &[POOL]),
                row("features.3", 192, (5, 1, 2), &[POOL]),
                row("features.6", 384, (3, 1, 1), &[]),
                row("features.8", 256, (3, 1, 1), &[]),
                row("features.10", 256, (3, 1, 1), &[POOL]),
            ],
            grid: Some(6),
            linears: [("classifier.1", true), ("classifier.4", true), ("classifier.6", false)],
        },
        small: (row("features.0", 64, SMALL_STEM, &[POOL]), Some(3)),
    },
    Variant {
        name: "alexnet_2012",
        side: 227,
        plan: Plan {
            convs: [
                row("conv1", 96, (11, 4, 0), &[NORM, POOL]),
                row("conv2", 256, (5, 1, 2), &[NORM, POOL]).groups(2),
                row("conv3", 384, (3, 1, 1), &[]),
                row("conv4", 384, (3, 1, 1), &[]).groups(2),
                row("conv5", 256, (3, 1, 1), &[POOL]).groups(2),
            ],
            grid: None,
            linears: DROPPED_LINEARS,
        },
        small: (row("conv1", 96, SMALL_STEM, &[NORM, POOL]), None),
    },
];

/// Kernel, stride and padding of the first convolution for small images.
pub(crate) const SMALL_STEM: (usize, usize, usize) = (3, 1, 1);

/// "Overlapping pooling" of section 3.4.
const POOL: Step = Step::MaxPool { ceil_mode: false };

/// Section 3.3, n = 5. The paper sums squares where PyTorch averages them, so its α of 1e-4 is n times that here.
pub(crate) const NORM: Step = Step::Norm(LocalResponseNorm { size: 5, alpha: 5e-4, beta: 0.75, k: 2.0 });

/// The linear layers of figure 2 by Caffe's names, with dropout on what the first two of them give (section 4.2).
pub(crate) const DROPPED_LINEARS: [(&str, bool); 3] = [("fc6", false), ("fc7", true), ("fc8", true)];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "alexnet",
        input: [3, variant.side, variant.side],
        num_classes: 1000,
        stem: variant.plan.convs[0].name,
        head: variant.plan.linears[2].0,
        build: Box::new(|config, vb| {
            let mut plan = variant.plan;
            if config.small_stem() {
                (plan.convs[0], plan.grid) = variant.small;
            }
            Ok(Box::new(AlexNet::new(&plan, config, vb)?))
        }),
    };
    VARIANTS.iter().map(spec).collect()
}

/// What an AlexNet is built from.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) convs: [Row; 5],
    /// Height and width that maps are averaged to before the linear layers, which otherwise see all pixels.
    pub(crate) grid: Option<usize>,
    /// Names of the linear layers, and whether dropout precedes them.
    pub(crate) linears: [(&'static str, bool); 3],
}

/// A convolution with ReLU, and what follows.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    c_out: usize,
    kernel: usize,
    config: Conv2dConfig,
    then: &'static [Step],
}

#[derive(Clone, Copy)]
pub(crate) enum Step {
    Norm(LocalResponseNorm),
    /// 3×3 with stride 2.
    MaxPool {
        ceil_mode: bool,
    },
}

/// A row of a plan, with its (kernel, stride, padding).
pub(crate) const fn row(
    name: &'static str,
    c_out: usize,
    (kernel, stride, padding): (usize, usize, usize),
    then: &'static [Step],
) -> Row {
    let config =
        Conv2dConfig { stride: (stride, stride), padding: (padding, padding), dilation: (1, 1), groups: 1 };
    Row { name, c_out, kernel, config, then }
}

impl Row {
    const fn groups(mut self, groups: usize) -> Self {
        self.config.groups = groups;
        self
    }
}

/// Width of the hidden linear layers.
const HIDDEN: usize = 4096;

/// Five convolutions and three linear layers.
pub(crate) struct AlexNet {
    features: Features,
    /// Each with dropout before it or not.
    linears: Vec<(bool, Linear)>,
    dropout: f64,
    noise: Noise,
}

impl AlexNet {
    /// Parameters by the names in `plan`.
    ///
    /// # Errors
    /// If images are too small, or `vb` lacks a parameter or has it in another shape.
    pub(crate) fn new(plan: &Plan, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let features = Features::new(plan, config.in_chans, &vb)?;
        // The first linear layer has a weight for each value of the maps that it sees.
        let (h, w) = config.image_size;
        let (image, _) = FeatureMap::traced((1, h, w, config.in_chans), vb.dtype(), vb.device());
        let (_, h, w, c) = features.forward(&image)?.dims();
        let mut c_in = h * w * c;
        let mut linears = Vec::with_capacity(plan.linears.len());
        for ((name, drop), c_out) in plan.linears.into_iter().zip([HIDDEN, HIDDEN, config.num_classes]) {
            linears.push((drop, Linear::new(c_in, c_out, vb.pp(name))?));
            c_in = c_out;
        }
        let dropout = config.dropout.unwrap_or(0.5);
        Ok(Self { features, linears, dropout, noise: config.noise.clone() })
    }
}

impl Network for AlexNet {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = flatten(&self.features.forward(xs)?)?; // N x 9216
        for (i, (drop, linear)) in self.linears.iter().enumerate() {
            if *drop {
                xs = dropout(&xs, self.dropout, &self.noise, train)?;
            }
            xs = linear.forward(&xs)?;
            if i + 1 < self.linears.len() {
                xs = activation(&xs, Relu)?; // N x 4096
            }
        }
        Ok(xs)
    }
}

/// The convolutions, and the pooling that leaves as many pixels as the linear layers expect.
struct Features {
    convs: Vec<(Conv2d, &'static [Step])>,
    grid: Option<usize>,
}

impl Features {
    fn new(plan: &Plan, mut c_in: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let mut convs = Vec::with_capacity(plan.convs.len());
        for row in plan.convs {
            let kernel = (row.kernel, row.kernel);
            convs.push((Conv2d::with_bias(c_in, row.c_out, kernel, row.config, vb.pp(row.name))?, row.then));
            c_in = row.c_out;
        }
        Ok(Self { convs, grid: plan.grid })
    }

    fn forward(&self, xs: &FeatureMap) -> Result<FeatureMap> {
        let mut xs = xs.clone();
        for (conv, then) in &self.convs {
            xs = activation(&conv.forward(&xs)?, Relu)?;
            for step in *then {
                xs = match step {
                    Step::Norm(norm) => local_response_norm(&xs, norm)?,
                    Step::MaxPool { ceil_mode } => {
                        max_pool2d(&xs, &Window2d::square(3, 2).ceil_mode(*ceil_mode))?
                    }
                };
            }
        }
        match self.grid {
            Some(side) => adaptive_avg_pool2d(&xs, (side, side)),
            None => Ok(xs), // N x 256 x 6 x 6
        }
    }
}

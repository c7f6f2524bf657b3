//! The network of airbench94, made to reach 94 % on CIFAR-10 in the least time (Jordan, "94% on CIFAR-10 in 3.29
//! seconds on a single GPU", arXiv 2404.00498). Keys are those of the author's
//! `legacy/airbench94.py` in KellerJordan/cifar10-airbench.
//!
//! Its first convolution whitens: its filters come from the training images, and stay as they are. The filters of the
//! others that come first, one for each channel that they read, pass that channel on (Dirac's initialisation). Both are
//! values that [`Network::initialise`] gives; what is frozen is said by the settings of a run, of which the family has
//! its own.
//!
//! Differs from the paper: images of other sizes than 32 pixels are taken; the linear layer then sees all pixels that
//! the last pool leaves.

use crate::layers::{BatchNorm2d, Conv2d, Linear, PYTORCH_DEFAULT, ZERO};
use crate::model::{Config, Network};
use crate::params::Params;
use crate::registry::Spec;
use crate::whitening::whitening_filters;
use candle_core::{IndexOp, Result, Tensor, bail};
use candle_nn::VarBuilder;
use zoo_ops::{
    Activation::Gelu, Conv2dConfig, FeatureMap, Window2d, activation, add_scaled, flatten, max_pool2d,
};

/// Output channels of the two convolutions of each group.
struct Variant {
    name: &'static str,
    widths: [usize; 3],
}

const VARIANTS: [Variant; 1] = [Variant { name: "airbench94", widths: [64, 256, 256] }];

/// Side of the filters that whiten.
const PATCH: usize = 2;
/// What logits are multiplied by.
const SCALE: f64 = 1.0 / 9.0;
/// What is added to variances before they are divided by.
const WHITENING_EPS: f64 = 5e-4;
const STEM: &str = "0";
const HEAD: &str = "7";

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "airbench",
        input: [3, 32, 32],
        num_classes: 10,
        stem: STEM,
        head: HEAD,
        build: Box::new(|config, vb| Ok(Box::new(Airbench::new(variant, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

/// Two convolutions with a pool between them.
struct Group {
    convs: [Conv2d; 2],
    norms: [BatchNorm2d; 2],
}

impl Group {
    fn new(c_in: usize, c_out: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let conv = |c_in, name| {
            Conv2d::new(c_in, c_out, (3, 3), Conv2dConfig::new(1, 1), PYTORCH_DEFAULT, vb.pp(name))
        };
        let norm = |name| BatchNorm2d::new(c_out, vb.pp(name)).map(|norm| norm.eps(1e-12).momentum(0.4));
        Ok(Self {
            convs: [conv(c_in, "conv1")?, conv(c_out, "conv2")?],
            norms: [norm("norm1")?, norm("norm2")?],
        })
    }

    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let xs = max_pool2d(&self.convs[0].forward(xs)?, &Window2d::square(2, 2))?;
        let xs = self.norms[0].forward(&xs, Gelu, train)?;
        self.norms[1].forward(&self.convs[1].forward(&xs)?, Gelu, train)
    }
}

struct Airbench {
    whiten: Conv2d,
    groups: Vec<Group>,
    head: Linear,
}

impl Airbench {
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let mut channels = 2 * config.in_chans * PATCH * PATCH;
        let inits = (PYTORCH_DEFAULT, ZERO);
        let window = Conv2dConfig::new(1, 0);
        let whiten =
            Conv2d::with_inits(config.in_chans, channels, (PATCH, PATCH), window, inits, vb.pp(STEM))?;
        let mut groups = Vec::with_capacity(variant.widths.len());
        for (i, width) in variant.widths.into_iter().enumerate() {
            // Behind the first convolution and its GELU.
            groups.push(Group::new(channels, width, &vb.pp(i + 2))?);
            channels = width;
        }
        // A pool of 2 in each group and one of 3 behind them.
        let left = |side: usize| side.saturating_sub(PATCH - 1) / 2 / 2 / 2 / 3;
        let (h, w) = config.image_size;
        let pixels = left(h) * left(w);
        if pixels == 0 {
            bail!("{}: images of {h}x{w} pixels are too small", variant.name);
        }
        let head = Linear::without_bias(channels * pixels, config.num_classes, PYTORCH_DEFAULT, vb.pp(HEAD))?;
        Ok(Self { whiten, groups, head })
    }
}

impl Network for Airbench {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = activation(&self.whiten.forward(xs)?, Gelu)?;
        for group in &self.groups {
            xs = group.forward(&xs, train)?;
        }
        let xs = flatten(&max_pool2d(&xs, &Window2d::square(3, 3))?)?; // N x 256 from 32 x 32 pixels
        let logits = self.head.forward(&xs)?;
        add_scaled(&logits, &logits, SCALE - 1.0)
    }

    fn initialise(&self, params: &Params, images: &dyn Fn() -> Result<FeatureMap>) -> Result<()> {
        let filters = whitening_filters(&images()?.to_nchw()?, PATCH, WHITENING_EPS)?;
        params.set(&format!("{STEM}.weight"), &filters)?;
        for group in 0..self.groups.len() {
            for conv in ["conv1", "conv2"] {
                let name = format!("{}.{conv}.weight", group + 2);
                params.set(&name, &dirac(&params.get(&name)?)?)?;
            }
        }
        Ok(())
    }
}

/// A weight (c_out, c_in, k, k) whose first c_in filters pass their channel on, the others unchanged; with fewer filters
/// than channels, all of them.
fn dirac(weight: &Tensor) -> Result<Tensor> {
    let (c_out, c_in, kh, kw) = weight.dims4()?;
    let passing = c_out.min(c_in);
    let mut filters = vec![0f32; passing * c_in * kh * kw];
    for filter in 0..passing {
        filters[((filter * c_in + filter) * kh + kh / 2) * kw + kw / 2] = 1.0;
    }
    let filters = Tensor::from_vec(filters, (passing, c_in, kh, kw), weight.device())?;
    Tensor::cat(&[&filters, &weight.i(passing..)?], 0)
}

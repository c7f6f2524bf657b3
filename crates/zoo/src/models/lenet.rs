//! LeNet-5 (LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
//! Proceedings of the IEEE 86(11), 1998, figure 2), and the variant that Caffe ships.
//!
//! Differs from the paper: ReLU instead of scaled tanh, max-pooling instead of trainable subsampling, C3
//! connected to all maps of S2, and a linear output layer instead of radial basis functions, as in today's
//! courses. Images smaller than 32 pixels are padded by 2, the paper's 28 pixels in a field of 32.

use crate::layers::{Conv2d, Linear};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::{Result, bail};
use candle_nn::VarBuilder;
use zoo_ops::{Activation::Relu, Conv2dConfig, FeatureMap, Window2d, activation, flatten, max_pool2d};

/// A row of the table below.
struct Variant {
    name: &'static str,
    /// Output channels of the two 5×5 convolutions, each followed by a 2×2 max-pool.
    convs: [usize; 2],
    /// Names and widths of the hidden linear layers; the output layer's name.
    hidden: &'static [(&'static str, usize)],
    output: &'static str,
    /// Whether convolutions are followed by ReLU, and small images padded.
    relu_after_convs: bool,
    pad_small_images: bool,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "lenet5",
        convs: [6, 16],
        hidden: &[("fc1", 120), ("fc2", 84)],
        output: "fc3",
        relu_after_convs: true,
        pad_small_images: true,
    },
    // BVLC Caffe, examples/mnist/lenet_train_test.prototxt; keys are its layer names.
    Variant {
        name: "caffe_lenet",
        convs: [20, 50],
        hidden: &[("ip1", 500)],
        output: "ip2",
        relu_after_convs: false,
        pad_small_images: false,
    },
];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "lenet",
        input: [1, 28, 28],
        num_classes: 10,
        stem: "conv1",
        head: variant.output,
        build: Box::new(|config, vb| build(variant, config, vb)),
    };
    VARIANTS.iter().map(spec).collect()
}

struct LeNet {
    convs: [Conv2d; 2],
    hidden: Vec<Linear>,
    output: Linear,
    relu_after_convs: bool,
}

fn build(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let Variant { name, convs: [c1, c2], hidden, output, relu_after_convs, pad_small_images } = variant;
    let (h, w) = config.image_size;
    let padding = if *pad_small_images && h.min(w) < 32 { 2 } else { 0 };
    // A 5×5 convolution and a 2×2 pool, twice.
    let out = |size: usize| {
        let first = (size + 2 * padding).checked_sub(4)? / 2;
        first.checked_sub(4).map(|second| second / 2).filter(|&out| out > 0)
    };
    let (Some(h_out), Some(w_out)) = (out(h), out(w)) else {
        bail!("{name}: images of {h}x{w} pixels are too small");
    };
    let conv1 =
        Conv2d::with_bias(config.in_chans, *c1, (5, 5), Conv2dConfig::new(1, padding), vb.pp("conv1"))?;
    let conv2 = Conv2d::with_bias(*c1, *c2, (5, 5), Conv2dConfig::new(1, 0), vb.pp("conv2"))?;
    let mut features = c2 * h_out * w_out;
    let mut layers = Vec::with_capacity(hidden.len());
    for (name, width) in *hidden {
        layers.push(Linear::new(features, *width, vb.pp(name))?);
        features = *width;
    }
    Ok(Box::new(LeNet {
        convs: [conv1, conv2],
        hidden: layers,
        output: Linear::new(features, config.num_classes, vb.pp(output))?,
        relu_after_convs: *relu_after_convs,
    }))
}

impl Network for LeNet {
    fn forward(&self, xs: &FeatureMap, _train: bool) -> Result<FeatureMap> {
        let mut xs = xs.clone();
        for conv in &self.convs {
            xs = conv.forward(&xs)?;
            if self.relu_after_convs {
                xs = activation(&xs, Relu)?;
            }
            xs = max_pool2d(&xs, &Window2d::square(2, 2))?;
        }
        let mut xs = flatten(&xs)?; // N x 400 for LeNet-5
        for layer in &self.hidden {
            xs = activation(&layer.forward(&xs)?, Relu)?;
        }
        self.output.forward(&xs)
    }
}

//! Networks of fully connected layers only: softmax regression, and a perceptron with two hidden layers. They
//! are the baselines that a convolutional network has to beat, as in LeCun, Bottou, Bengio and Haffner,
//! "Gradient-based learning applied to document recognition" (1998), section III.C.
//!
//! Differs from the paper: hidden layers of 512 and 256 units with ReLU, where it has 300 and 100, or 500 and
//! 150, with tanh.

use crate::layers::Linear;
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::VarBuilder;
use zoo_ops::{Activation::Relu, FeatureMap, activation, flatten};

/// A row of the table below.
struct Variant {
    name: &'static str,
    /// Names and widths of the hidden layers, and the output layer's name.
    hidden: &'static [(&'static str, usize)],
    output: &'static str,
}

const VARIANTS: [Variant; 2] = [
    Variant { name: "softmax", hidden: &[], output: "fc" },
    Variant { name: "mlp", hidden: &[("fc1", 512), ("fc2", 256)], output: "fc3" },
];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "mlp",
        input: [1, 28, 28],
        num_classes: 10,
        stem: variant.hidden.first().map_or(variant.output, |(name, _)| name),
        head: variant.output,
        build: Box::new(|config, vb| build(variant, config, vb)),
    };
    VARIANTS.iter().map(spec).collect()
}

struct Mlp {
    hidden: Vec<Linear>,
    output: Linear,
}

fn build(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Box<dyn Network>> {
    let (h, w) = config.image_size;
    let mut features = config.in_chans * h * w;
    let mut hidden = Vec::with_capacity(variant.hidden.len());
    for (name, width) in variant.hidden {
        hidden.push(Linear::new(features, *width, vb.pp(name))?);
        features = *width;
    }
    let output = Linear::new(features, config.num_classes, vb.pp(variant.output))?;
    Ok(Box::new(Mlp { hidden, output }))
}

impl Network for Mlp {
    fn forward(&self, xs: &FeatureMap, _train: bool) -> Result<FeatureMap> {
        let mut xs = flatten(xs)?; // N x 784 on 28x28 grey images
        for layer in &self.hidden {
            xs = activation(&layer.forward(&xs)?, Relu)?;
        }
        self.output.forward(&xs)
    }
}

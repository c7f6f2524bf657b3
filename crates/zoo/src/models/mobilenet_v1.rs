//! MobileNet (Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto and Adam, "MobileNets: efficient
//! convolutional neural networks for mobile vision applications", arXiv 1704.04861, table 1), in four widths.
//! torchvision lacks it; keys, shapes and initialisation are those of timm's `mobilenetv1_100`.
//!
//! Differs from the paper, as timm and TensorFlow do: activations are ReLU6. On images of at most 64 pixels the stem
//! has stride 1, as in weiaicunzai/pytorch-cifar100 and kuangliu/pytorch-cifar.
//!
//! `mobilenet_v1_025_leaky` is the backbone of the face detector biubug6/Pytorch_Retinaface (its class
//! `MobileNetV1`), with that repository's keys: width 0.25 with leaky ReLU of slope 0.1. Its ImageNet weights,
//! `mobilenetV1X0.25_pretrain.tar`, are read in full, classifier included; a detector's weights, which hold the
//! backbone below `body.` beside feature pyramid and heads, are not.

use crate::layers::{ConvNorm, Linear, PYTORCH_DEFAULT};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::{LeakyRelu, Relu6};
use zoo_ops::{Activation, FeatureMap, global_avg_pool2d};

struct Variant {
    name: &'static str,
    /// Channels for each 4 of table 1.
    quarters: usize,
    keys: Keys,
}

/// Whose names and initial values the parameters have.
#[derive(Clone, Copy, PartialEq)]
enum Keys {
    Timm,
    RetinaFace,
}

const VARIANTS: [Variant; 5] = [
    Variant { name: "mobilenet_v1_025", quarters: 1, keys: Keys::Timm },
    Variant { name: "mobilenet_v1_050", quarters: 2, keys: Keys::Timm },
    Variant { name: "mobilenet_v1_075", quarters: 3, keys: Keys::Timm },
    Variant { name: "mobilenet_v1_100", quarters: 4, keys: Keys::Timm },
    Variant { name: "mobilenet_v1_025_leaky", quarters: 1, keys: Keys::RetinaFace },
];

/// Table 1 behind the stem, a stage for each size of map: channels of its separable convolutions and how many there
/// are. The first one of a stage halves the map, but in the first stage.
const STAGES: [(usize, usize); 5] = [(64, 1), (128, 2), (256, 2), (512, 6), (1024, 2)];

/// Channels of the first convolution.
const STEM: usize = 32;

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "mobilenet_v1",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: if variant.keys == Keys::Timm { "conv_stem" } else { "stage1.0.0" },
        head: if variant.keys == Keys::Timm { "classifier" } else { "fc" },
        build: Box::new(|config, vb| Ok(Box::new(MobileNetV1::new(variant, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

impl Keys {
    fn activation(self) -> Activation {
        match self {
            Self::Timm => Relu6,
            Self::RetinaFace => LeakyRelu(0.1),
        }
    }

    /// timm's is normal with variance 2 / fan-out of a group, which for `outputs` of a k×k convolution is
    /// k² · outputs.
    fn init(self, kernel: usize, outputs: usize) -> Init {
        match self {
            Self::Timm => Init::Randn { mean: 0.0, stdev: (2.0 / (kernel * kernel * outputs) as f64).sqrt() },
            Self::RetinaFace => PYTORCH_DEFAULT,
        }
    }

    /// The paths of the stem's convolution and normalisation.
    fn stem<'a>(self, vb: &VarBuilder<'a>) -> [VarBuilder<'a>; 2] {
        match self {
            Self::Timm => [vb.pp("conv_stem"), vb.pp("bn1")],
            Self::RetinaFace => ["0", "1"].map(|layer| vb.pp("stage1.0").pp(layer)),
        }
    }

    /// The paths of a block's depthwise convolution, its normalisation, and the same of the pointwise one. The
    /// block has the index `block` in its stage and there are `before` in the stages before.
    fn block<'a>(
        self,
        vb: &VarBuilder<'a>,
        stage: usize,
        block: usize,
        before: usize,
    ) -> [[VarBuilder<'a>; 2]; 2] {
        match self {
            Self::Timm => {
                let vb = vb.pp("blocks").pp(stage).pp(block);
                [[vb.pp("conv_dw"), vb.pp("bn1")], [vb.pp("conv_pw"), vb.pp("bn2")]]
            }
            Self::RetinaFace => {
                // Its stage 1 is the stem and three stages of the table, its stages 2 and 3 are one each.
                let (stage, block) = if stage < 3 { (1, 1 + before + block) } else { (stage - 1, block) };
                let vb = vb.pp(format!("stage{stage}")).pp(block);
                [[vb.pp(0), vb.pp(1)], [vb.pp(3), vb.pp(4)]]
            }
        }
    }
}

struct MobileNetV1 {
    stem: ConvNorm,
    /// A depthwise convolution and a pointwise one, in turn.
    layers: Vec<ConvNorm>,
    classifier: Linear,
}

impl MobileNetV1 {
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let keys = variant.keys;
        let conv = |c_in, c_out, (kernel, stride, groups), paths| {
            let init = keys.init(kernel, c_out / groups);
            ConvNorm::new(c_in, c_out, (kernel, stride, groups), keys.activation(), init, paths)
        };
        let scaled = |channels: usize| channels / 4 * variant.quarters;
        let mut c_in = scaled(STEM);
        let stride = if config.small_stem() { 1 } else { 2 };
        let stem = conv(config.in_chans, c_in, (3, stride, 1), keys.stem(&vb))?;
        let (mut layers, mut before) = (Vec::new(), 0);
        for (stage, &(channels, depth)) in STAGES.iter().enumerate() {
            for block in 0..depth {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let [depthwise, pointwise] = keys.block(&vb, stage, block, before);
                layers.push(conv(c_in, c_in, (3, stride, c_in), depthwise)?);
                layers.push(conv(c_in, scaled(channels), (1, 1, 1), pointwise)?);
                c_in = scaled(channels);
            }
            before += depth;
        }
        let classifier = match keys {
            Keys::Timm => {
                let bound = 1.0 / (config.num_classes as f64).sqrt();
                let init = Init::Uniform { lo: -bound, up: bound };
                Linear::with_zero_bias(c_in, config.num_classes, init, vb.pp("classifier"))?
            }
            Keys::RetinaFace => Linear::new(c_in, config.num_classes, vb.pp("fc"))?,
        };
        Ok(Self { stem, layers, classifier })
    }
}

impl Network for MobileNetV1 {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.stem.forward(xs, train)?; // N x 32 x 112 x 112 from 224 pixels at width 1
        for layer in &self.layers {
            xs = layer.forward(&xs, train)?;
        }
        // N x 1024 x 7 x 7
        self.classifier.forward(&global_avg_pool2d(&xs)?)
    }
}

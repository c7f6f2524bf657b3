//! ShuffleNetV2 (Ma, Zhang, Zheng and Sun, "ShuffleNet V2: practical guidelines for efficient CNN architecture
//! design", arXiv 1807.11164, table 5), with the keys, shapes and initialisation of torchvision's weights.
//!
//! Differs from the paper, as torchvision does: stage 2 of the narrowest network starts from 24 channels, like the
//! others. On images of at most 64 pixels the stem has stride 1 and no pooling, as in
//! chenyaofo/pytorch-cifar-models, whose CIFAR weights have these keys.

use crate::layers::{ConvNorm, Linear, PYTORCH_DEFAULT};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::{Result, bail};
use candle_nn::VarBuilder;
use zoo_ops::Activation::{self, Identity, Relu};
use zoo_ops::{FeatureMap, Window2d, global_avg_pool2d, interleave, max_pool2d};

/// A column of table 5.
struct Variant {
    name: &'static str,
    /// Channels of stages 2 to 4 and of the last convolution.
    channels: [usize; 4],
}

const VARIANTS: [Variant; 4] = [
    Variant { name: "shufflenet_v2_x0_5", channels: [48, 96, 192, 1024] },
    Variant { name: "shufflenet_v2_x1_0", channels: [116, 232, 464, 1024] },
    Variant { name: "shufflenet_v2_x1_5", channels: [176, 352, 704, 1024] },
    Variant { name: "shufflenet_v2_x2_0", channels: [244, 488, 976, 2048] },
];

/// Channels of the first convolution.
const STEM: usize = 24;

/// Units of stages 2 to 4; the first one of each halves the map.
const UNITS: [usize; 3] = [4, 8, 4];

pub(crate) fn specs() -> Vec<Spec> {
    let spec = |variant: &'static Variant| Spec {
        name: variant.name,
        family: "shufflenet_v2",
        input: [3, 224, 224],
        num_classes: 1000,
        stem: "conv1.0",
        head: "fc",
        build: Box::new(|config, vb| Ok(Box::new(ShuffleNetV2::new(variant, config, vb)?))),
    };
    VARIANTS.iter().map(spec).collect()
}

struct ShuffleNetV2 {
    conv1: ConvNorm,
    max_pool: Option<Window2d>,
    units: Vec<Unit>,
    conv5: ConvNorm,
    fc: Linear,
}

/// The convolution `first` of a sequence and the normalisation behind it.
fn conv(
    c_in: usize,
    c_out: usize,
    shape: (usize, usize, usize),
    activation: Activation,
    vb: &VarBuilder<'_>,
    first: usize,
) -> Result<ConvNorm> {
    ConvNorm::new(c_in, c_out, shape, activation, PYTORCH_DEFAULT, [vb.pp(first), vb.pp(first + 1)])
}

impl ShuffleNetV2 {
    /// Parameters `conv1`, `stage<s>.<unit>.…`, `conv5` and `fc`.
    fn new(variant: &Variant, config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        let small = config.small_stem();
        let conv1 = conv(config.in_chans, STEM, (3, if small { 1 } else { 2 }, 1), Relu, &vb.pp("conv1"), 0)?;
        let (mut c_in, mut units) = (STEM, Vec::new());
        let [.., last] = variant.channels;
        for (stage, (&count, c_out)) in UNITS.iter().zip(variant.channels).enumerate() {
            let vb = vb.pp(format!("stage{}", stage + 2));
            for unit in 0..count {
                units.push(Unit::new(c_in, c_out, unit == 0, vb.pp(unit))?);
                c_in = c_out;
            }
        }
        Ok(Self {
            conv1,
            max_pool: (!small).then(|| Window2d::square(3, 2).padding(1)),
            units,
            conv5: conv(c_in, last, (1, 1, 1), Relu, &vb.pp("conv5"), 0)?,
            fc: Linear::new(last, config.num_classes, vb.pp("fc"))?,
        })
    }
}

impl Network for ShuffleNetV2 {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = self.conv1.forward(xs, train)?;
        if let Some(window) = &self.max_pool {
            xs = max_pool2d(&xs, window)?; // N x 24 x 56 x 56 from 224 pixels
        }
        // A map, or its halves where each of them goes its own way.
        let mut maps = vec![xs];
        for (i, unit) in self.units.iter().enumerate() {
            let [first, second] = unit.forward(&maps, train)?;
            let parts = if self.units.get(i + 1).is_some_and(Unit::takes_halves) { 2 } else { 1 };
            maps = interleave(&first, &second, parts)?;
        }
        // N x 464 x 7 x 7 at width 1
        self.fc.forward(&global_avg_pool2d(&self.conv5.forward(&maps[0], train)?)?)
    }
}

/// Figure 3: one half of the channels, or with stride 2 a branch on all of them, beside the other half after three
/// convolutions. The two are interleaved for the next unit.
struct Unit {
    /// Empty in units of stride 1.
    branch1: Vec<ConvNorm>,
    branch2: Vec<ConvNorm>,
}

impl Unit {
    fn new(c_in: usize, c_out: usize, halves: bool, vb: VarBuilder<'_>) -> Result<Self> {
        let (c, stride) = (c_out / 2, if halves { 2 } else { 1 });
        if !halves && c_in != 2 * c {
            bail!("a unit of stride 1 from {c_in} to {c_out} channels");
        }
        let (vb1, vb2) = (vb.pp("branch1"), vb.pp("branch2"));
        let branch1 = if halves {
            vec![conv(c_in, c_in, (3, 2, c_in), Identity, &vb1, 0)?, conv(c_in, c, (1, 1, 1), Relu, &vb1, 2)?]
        } else {
            Vec::new()
        };
        let branch2 = vec![
            conv(if halves { c_in } else { c }, c, (1, 1, 1), Relu, &vb2, 0)?,
            conv(c, c, (3, stride, c), Identity, &vb2, 3)?,
            conv(c, c, (1, 1, 1), Relu, &vb2, 5)?,
        ];
        Ok(Self { branch1, branch2 })
    }

    fn takes_halves(&self) -> bool {
        self.branch1.is_empty()
    }

    /// Of two halves, or of one map that both branches see.
    fn forward(&self, maps: &[FeatureMap], train: bool) -> Result<[FeatureMap; 2]> {
        let (Some(first), Some(second)) = (maps.first(), maps.last()) else { bail!("a unit of no map") };
        let through = |layers: &[ConvNorm], xs: &FeatureMap| {
            layers.iter().try_fold(xs.clone(), |xs, layer| layer.forward(&xs, train))
        };
        Ok([through(&self.branch1, first)?, through(&self.branch2, second)?])
    }
}

//! What the Inception networks are made of: convolutions with batch-norm and ReLU, in branches that lie side by
//! side and whose outputs are concatenated. A family writes the figures of its paper down as [`Layer`]s.

use crate::layers::{BatchNorm2d, Conv2d};
use candle_core::Result;
use candle_nn::{Init, VarBuilder};
use zoo_ops::Activation::Relu;
use zoo_ops::{Conv2dConfig, FeatureMap, Window2d, avg_pool2d, concat, max_pool2d};

/// Layers one after the other.
pub(crate) type Branch = Vec<Layer>;

/// A part of a branch.
pub(crate) enum Layer {
    /// A convolution, batch-norm and ReLU.
    Conv(Conv),
    /// 3×3 with stride 1 and padding 1, which keeps the map's size.
    AvgPool { count_include_pad: bool },
    /// The maximum under each window.
    MaxPool(Window2d),
    /// 3×3 with stride 2, to lie beside a 3×3 convolution with stride 2 and padding 1: on even maps the last windows
    /// hang over the far edge, as in Caffe; odd maps, of which the two would make different sizes, are padded.
    HalvingPool,
    /// Branches from one map, whose outputs are concatenated; the path of their parameters, if they have one of
    /// their own.
    Fork(Option<String>, Vec<Branch>),
}

/// A convolution to be built.
pub(crate) struct Conv {
    name: String,
    kernel: (usize, usize),
    stride: usize,
    padding: (usize, usize),
    c_out: usize,
}

/// A convolution of stride 1 that keeps the map's size, with `c_out` maps. `kernel` is (height, width).
pub(crate) fn conv(name: impl Into<String>, kernel: (usize, usize), c_out: usize) -> Conv {
    Conv { name: name.into(), kernel, stride: 1, padding: (kernel.0 / 2, kernel.1 / 2), c_out }
}

impl Conv {
    /// With another stride and padding.
    pub(crate) fn window(self, stride: usize, padding: usize) -> Self {
        Self { stride, padding: (padding, padding), ..self }
    }

    /// Without padding.
    pub(crate) fn valid(self, stride: usize) -> Self {
        self.window(stride, 0)
    }
}

impl From<Conv> for Layer {
    fn from(conv: Conv) -> Self {
        Self::Conv(conv)
    }
}

/// Branches with a path of their own: a module of the paper.
pub(crate) fn module(name: impl Into<String>, branches: Vec<Branch>) -> Layer {
    Layer::Fork(Some(name.into()), branches)
}

/// Branches whose parameters lie on the path of what is around them.
pub(crate) fn fork(branches: Vec<Branch>) -> Layer {
    Layer::Fork(None, branches)
}

/// A 3×3 max-pool.
pub(crate) fn max_pool(stride: usize, padding: usize) -> Layer {
    Layer::MaxPool(Window2d::square(3, stride).padding(padding))
}

/// A branch of anything that is a layer.
macro_rules! branch {
    ($($layer:expr),* $(,)?) => { vec![$($crate::inception::Layer::from($layer)),*] };
}
pub(crate) use branch;

/// What the convolutions of a network have in common.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    /// Whether they have a bias. If so, its path is the convolution's own and the norm's has `_bn` behind it, as
    /// in Caffe; else a layer `x` has `x.conv` and `x.bn`.
    pub(crate) bias: bool,
    /// How the weights are drawn.
    pub(crate) init: Init,
    /// What batch-norm adds to variances.
    pub(crate) eps: f64,
}

/// Convolution, batch-norm, ReLU.
pub(crate) struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl ConvNorm {
    pub(crate) fn new(conv: &Conv, c_in: usize, style: &Style, vb: &VarBuilder<'_>) -> Result<Self> {
        let Conv { name, kernel, stride, padding, c_out } = conv;
        let config = Conv2dConfig { padding: *padding, ..Conv2dConfig::new(*stride, 0) };
        let (conv, norm) = if style.bias {
            let conv = Conv2d::with_bias(c_in, *c_out, *kernel, config, vb.pp(name))?;
            (conv, vb.pp(format!("{name}_bn")))
        } else {
            let vb = vb.pp(name);
            (Conv2d::new(c_in, *c_out, *kernel, config, style.init, vb.pp("conv"))?, vb.pp("bn"))
        };
        Ok(Self { conv, norm: BatchNorm2d::new(*c_out, norm)?.eps(style.eps) })
    }

    pub(crate) fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        self.norm.forward(&self.conv.forward(xs)?, Relu, train)
    }
}

/// A branch that is built.
pub(crate) struct Sequence {
    steps: Vec<Step>,
    c_out: usize,
}

enum Step {
    Conv(ConvNorm),
    AvgPool { count_include_pad: bool },
    MaxPool(Window2d),
    HalvingPool,
    Fork(Vec<Sequence>),
}

impl Sequence {
    /// For maps of `c_in` channels.
    ///
    /// # Errors
    /// If `vb` lacks a parameter or has it in another shape.
    pub(crate) fn new(layers: &[Layer], c_in: usize, style: &Style, vb: &VarBuilder<'_>) -> Result<Self> {
        let (mut steps, mut c) = (Vec::with_capacity(layers.len()), c_in);
        for layer in layers {
            steps.push(match layer {
                Layer::Conv(conv) => {
                    let step = ConvNorm::new(conv, c, style, vb)?;
                    c = conv.c_out;
                    Step::Conv(step)
                }
                Layer::AvgPool { count_include_pad } => {
                    Step::AvgPool { count_include_pad: *count_include_pad }
                }
                Layer::MaxPool(window) => Step::MaxPool(*window),
                Layer::HalvingPool => Step::HalvingPool,
                Layer::Fork(name, branches) => {
                    let vb = name.as_ref().map_or_else(|| vb.clone(), |name| vb.pp(name));
                    let branches = branches.iter().map(|branch| Self::new(branch, c, style, &vb));
                    let branches = branches.collect::<Result<Vec<_>>>()?;
                    c = branches.iter().map(|branch| branch.c_out).sum();
                    Step::Fork(branches)
                }
            });
        }
        Ok(Self { steps, c_out: c })
    }

    /// Channels of what comes out.
    pub(crate) fn c_out(&self) -> usize {
        self.c_out
    }

    /// # Errors
    /// If the map is too small.
    pub(crate) fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let mut xs = xs.clone();
        for step in &self.steps {
            xs = match step {
                Step::Conv(conv) => conv.forward(&xs, train)?,
                Step::AvgPool { count_include_pad } => {
                    avg_pool2d(&xs, &Window2d::square(3, 1).padding(1), *count_include_pad)?
                }
                Step::MaxPool(window) => max_pool2d(&xs, window)?,
                Step::HalvingPool => {
                    let (_, h, w, _) = xs.dims();
                    let window = Window2d { padding: (h % 2, w % 2), ..Window2d::square(3, 2) };
                    max_pool2d(&xs, &window.ceil_mode(true))?
                }
                Step::Fork(branches) => {
                    let maps = branches.iter().map(|branch| branch.forward(&xs, train));
                    let maps = maps.collect::<Result<Vec<_>>>()?;
                    concat(&maps.iter().collect::<Vec<_>>())?
                }
            };
        }
        Ok(xs)
    }
}

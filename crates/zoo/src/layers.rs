//! Layers: an operator with its parameters. Their constructors say how parameters are initialised, and their
//! `forward` puts the layer's path on a traced map.

use candle_core::{Result, Var};
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use candle_nn::{Init, VarBuilder};
use zoo_ops::{Activation, Conv2dConfig, FeatureMap};

/// Kaiming's normal initialisation by fan-out with ReLU's gain, as torchvision's ResNet has it.
pub const KAIMING_FAN_OUT: Init =
    Init::Kaiming { dist: NormalOrUniform::Normal, fan: FanInOut::FanOut, non_linearity: NonLinearity::ReLU };

/// Kaiming's normal initialisation by fan-in with ReLU's gain (arXiv 1502.01852).
pub const KAIMING_FAN_IN: Init =
    Init::Kaiming { dist: NormalOrUniform::Normal, fan: FanInOut::FanIn, non_linearity: NonLinearity::ReLU };

/// Kaiming's uniform initialisation by fan-in with ReLU's gain, as torchvision's SqueezeNet has it.
pub const KAIMING_UNIFORM: Init =
    Init::Kaiming { dist: NormalOrUniform::Uniform, fan: FanInOut::FanIn, non_linearity: NonLinearity::ReLU };

/// PyTorch's default for the weights of convolutions and linear layers: uniform within ±1/√fan_in.
pub const PYTORCH_DEFAULT: Init = Init::Kaiming {
    dist: NormalOrUniform::Uniform,
    fan: FanInOut::FanIn,
    // gain · √3 / √fan_in is the bound; PyTorch's is 1 / √fan_in.
    non_linearity: NonLinearity::ExplicitGain(0.577_350_269_189_625_8),
};

/// PyTorch's default for biases: uniform within ±1/√fan_in of the layer.
pub fn bias_init(fan_in: usize) -> Init {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// Biases of 0.
pub const ZERO: Init = Init::Const(0.0);

/// A convolution with its weight (c_out, c_in / groups, kh, kw) and optional bias (c_out).
#[derive(Debug)]
pub struct Conv2d {
    name: String,
    weight: candle_core::Tensor,
    bias: Option<candle_core::Tensor>,
    config: Conv2dConfig,
}

impl Conv2d {
    /// Without a bias, its weight drawn by `init`. `kernel` is (height, width).
    ///
    /// # Errors
    /// If `vb` lacks the parameters or has them in other shapes.
    pub fn new(
        c_in: usize,
        c_out: usize,
        kernel: (usize, usize),
        config: Conv2dConfig,
        init: Init,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let shape = (c_out, c_in / config.groups.max(1), kernel.0, kernel.1);
        let weight = vb.get_with_hints(shape, "weight", init)?;
        Ok(Self { name: vb.prefix(), weight, bias: None, config })
    }

    /// With a bias, both drawn as PyTorch's `nn.Conv2d` draws them.
    ///
    /// # Errors
    /// If `vb` lacks the parameters or has them in other shapes.
    pub fn with_bias(
        c_in: usize,
        c_out: usize,
        kernel: (usize, usize),
        config: Conv2dConfig,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let fan_in = c_in / config.groups.max(1) * kernel.0 * kernel.1;
        Self::with_inits(c_in, c_out, kernel, config, (PYTORCH_DEFAULT, bias_init(fan_in)), vb)
    }

    /// With a bias; weight and bias are drawn by `inits`.
    ///
    /// # Errors
    /// If `vb` lacks the parameters or has them in other shapes.
    pub fn with_inits(
        c_in: usize,
        c_out: usize,
        kernel: (usize, usize),
        config: Conv2dConfig,
        inits: (Init, Init),
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let bias = vb.get_with_hints(c_out, "bias", inits.1)?;
        Ok(Self { bias: Some(bias), ..Self::new(c_in, c_out, kernel, config, inits.0, vb)? })
    }

    /// (n, h, w, c_in) to (n, h_out, w_out, c_out).
    ///
    /// # Errors
    /// If the map does not fit.
    pub fn forward(&self, xs: &FeatureMap) -> Result<FeatureMap> {
        let ys = zoo_ops::conv2d(xs, &self.weight, self.bias.as_ref(), &self.config)?;
        Ok(ys.named(&self.name))
    }
}

/// Batch normalisation with γ, β and running statistics; PyTorch's eps 1e-5 and momentum 0.1 unless told.
#[derive(Debug)]
pub struct BatchNorm2d {
    name: String,
    norm: zoo_ops::BatchNorm,
    /// Whether γ and β are constants.
    frozen: bool,
}

impl BatchNorm2d {
    /// γ 1, β 0.
    ///
    /// Where both are constants and not variables, because they are frozen ([`crate::Params::freeze`]) or come
    /// from a file, this is a fixed function: in training too it normalises with its running statistics and leaves
    /// them as they are, which takes a `bn.eval()` in PyTorch.
    ///
    /// # Errors
    /// If `vb` lacks the parameters or has them in other shapes.
    pub fn new(channels: usize, vb: VarBuilder<'_>) -> Result<Self> {
        // From a `VarMap` or `Params` these are the variables themselves, so a checkpoint sees the updates.
        let running =
            |name, value| Var::from_tensor(&vb.get_with_hints(channels, name, Init::Const(value))?);
        let weight = vb.get_with_hints(channels, "weight", Init::Const(1.0))?;
        let bias = vb.get_with_hints(channels, "bias", ZERO)?;
        Ok(Self {
            frozen: !weight.track_op() && !bias.track_op(),
            norm: zoo_ops::BatchNorm {
                weight: Some(weight),
                bias: Some(bias),
                running_mean: running("running_mean", 0.0)?,
                running_var: running("running_var", 1.0)?,
                eps: 1e-5,
                momentum: 0.1,
            },
            name: vb.prefix(),
        })
    }

    /// With another eps, which is added to variances.
    pub fn eps(mut self, eps: f64) -> Self {
        self.norm.eps = eps;
        self
    }

    /// With another momentum in PyTorch's sense: the weight of the batch's statistics in the running ones.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.norm.momentum = momentum;
        self
    }

    /// `activation(norm(xs))`.
    ///
    /// # Errors
    /// If the map does not fit.
    pub fn forward(&self, xs: &FeatureMap, activation: Activation, train: bool) -> Result<FeatureMap> {
        let train = train && !self.frozen;
        Ok(zoo_ops::batch_norm(xs, &self.norm, None, activation, train)?.named(&self.name))
    }

    /// `activation(norm(xs) + residual)`.
    ///
    /// # Errors
    /// If the maps do not fit.
    pub fn forward_residual(
        &self,
        xs: &FeatureMap,
        residual: &FeatureMap,
        activation: Activation,
        train: bool,
    ) -> Result<FeatureMap> {
        let train = train && !self.frozen;
        Ok(zoo_ops::batch_norm(xs, &self.norm, Some(residual), activation, train)?.named(&self.name))
    }
}

/// A fully connected layer with weight (c_out, c_in) and optional bias (c_out), on maps of 1×1 pixels.
#[derive(Debug)]
pub struct Linear {
    name: String,
    weight: candle_core::Tensor,
    bias: Option<candle_core::Tensor>,
}

impl Linear {
    /// Drawn as PyTorch's `nn.Linear` draws them.
    ///
    /// # Errors
    /// If `vb` lacks the parameters or has them in other shapes.
    pub fn new(c_in: usize, c_out: usize, vb: VarBuilder<'_>) -> Result<Self> {
        Self::with_init(c_in, c_out, PYTORCH_DEFAULT, vb)
    }

    /// The weight drawn by `init`, the bias as PyTorch draws it.
    ///
    /// # Errors
    /// If `vb` lacks the parameters or has them in other shapes.
    pub fn with_init(c_in: usize, c_out: usize, init: Init, vb: VarBuilder<'_>) -> Result<Self> {
        let bias = vb.get_with_hints(c_out, "bias", bias_init(c_in))?;
        Ok(Self { bias: Some(bias), ..Self::without_bias(c_in, c_out, init, vb)? })
    }

    /// The weight drawn by `init`, the bias 0.
    ///
    /// # Errors
    /// If `vb` lacks the parameters or has them in other shapes.
    pub fn with_zero_bias(c_in: usize, c_out: usize, init: Init, vb: VarBuilder<'_>) -> Result<Self> {
        let bias = vb.get_with_hints(c_out, "bias", ZERO)?;
        Ok(Self { bias: Some(bias), ..Self::without_bias(c_in, c_out, init, vb)? })
    }

    /// Without a bias, the weight drawn by `init`.
    ///
    /// # Errors
    /// If `vb` lacks the weight or has it in another shape.
    pub fn without_bias(c_in: usize, c_out: usize, init: Init, vb: VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get_with_hints((c_out, c_in), "weight", init)?;
        Ok(Self { name: vb.prefix(), weight, bias: None })
    }

    /// (n, 1, 1, c_in) to (n, 1, 1, c_out).
    ///
    /// # Errors
    /// If the map does not fit.
    pub fn forward(&self, xs: &FeatureMap) -> Result<FeatureMap> {
        Ok(zoo_ops::linear(xs, &self.weight, self.bias.as_ref())?.named(&self.name))
    }
}

/// A convolution without bias, its normalisation and an activation: the building block of mobile networks, for
/// torchvision a `Conv2dNormActivation`.
#[derive(Debug)]
pub struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
    activation: Activation,
}

impl ConvNorm {
    /// A square kernel, padded by half of itself; `shape` is (kernel, stride, groups), `paths` are those of the
    /// convolution and of the normalisation.
    ///
    /// # Errors
    /// If a parameter is missing or of another shape.
    pub fn new(
        c_in: usize,
        c_out: usize,
        shape: (usize, usize, usize),
        activation: Activation,
        init: Init,
        paths: [VarBuilder<'_>; 2],
    ) -> Result<Self> {
        let ((kernel, stride, groups), [conv, norm]) = (shape, paths);
        let config = Conv2dConfig::new(stride, kernel / 2).groups(groups);
        Ok(Self {
            conv: Conv2d::new(c_in, c_out, (kernel, kernel), config, init, conv)?,
            norm: BatchNorm2d::new(c_out, norm)?,
            activation,
        })
    }

    /// As torchvision has it: a sequence of the two layers, the weight drawn by Kaiming's rule with fan-out.
    ///
    /// # Errors
    /// If a parameter is missing or of another shape.
    pub fn sequence(
        c_in: usize,
        c_out: usize,
        shape: (usize, usize, usize),
        activation: Activation,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        Self::new(c_in, c_out, shape, activation, KAIMING_FAN_OUT, [vb.pp(0), vb.pp(1)])
    }

    /// With other constants of the normalisation.
    pub fn norm(self, change: impl FnOnce(BatchNorm2d) -> BatchNorm2d) -> Self {
        Self { norm: change(self.norm), ..self }
    }

    /// `activation(norm(conv(xs)))`: (n, h, w, c_in) to (n, h / stride, w / stride, c_out), rounded up.
    ///
    /// # Errors
    /// If the map does not fit.
    pub fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        self.norm.forward(&self.conv.forward(xs)?, self.activation, train)
    }

    /// `activation(norm(conv(xs)) + residual)`.
    ///
    /// # Errors
    /// If the maps do not fit.
    pub fn forward_residual(
        &self,
        xs: &FeatureMap,
        residual: &FeatureMap,
        train: bool,
    ) -> Result<FeatureMap> {
        self.norm.forward_residual(&self.conv.forward(xs)?, residual, self.activation, train)
    }
}

/// Squeeze-and-excitation (Hu, Shen and Sun, arXiv 1709.01507): channels times factors that two layers, the 1×1
/// convolutions `fc1` and `fc2`, compute from their averages.
#[derive(Debug)]
pub struct SqueezeExcitation {
    fc1: Conv2d,
    fc2: Conv2d,
    activations: [Activation; 2],
}

impl SqueezeExcitation {
    /// Of `channels`, with `squeezed` of them between the layers, which are followed by `activations`. Weights are
    /// drawn by Kaiming's rule with fan-out, biases by `bias` of the fan-in.
    ///
    /// # Errors
    /// If `vb` lacks a parameter or has it in another shape.
    pub fn new(
        channels: usize,
        squeezed: usize,
        activations: [Activation; 2],
        bias: fn(usize) -> Init,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let layer = |c_in, c_out, vb| {
            let inits = (KAIMING_FAN_OUT, bias(c_in));
            Conv2d::with_inits(c_in, c_out, (1, 1), Conv2dConfig::new(1, 0), inits, vb)
        };
        let fc1 = layer(channels, squeezed, vb.pp("fc1"))?;
        Ok(Self { fc1, fc2: layer(squeezed, channels, vb.pp("fc2"))?, activations })
    }

    /// (n, h, w, channels) to the same.
    ///
    /// # Errors
    /// If the map does not fit.
    pub fn forward(&self, xs: &FeatureMap) -> Result<FeatureMap> {
        let mut factors = zoo_ops::global_avg_pool2d(xs)?;
        for (layer, activation) in [&self.fc1, &self.fc2].into_iter().zip(self.activations) {
            factors = zoo_ops::activation(&layer.forward(&factors)?, activation)?;
        }
        zoo_ops::gate(xs, &factors)
    }
}

//! Two-dimensional convolution, and the linear layer as its 1×1 case.

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::feature_map::View;
use crate::trace::Step;
use crate::{FeatureMap, Window2d};
use candle_core::{Result, Tensor, bail};
pub(crate) use cpu::Finish;

/// What a convolution needs beside its weights; each pair is (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Distance between neighbouring windows.
    pub stride: (usize, usize),
    /// Zero rows and columns on each side.
    pub padding: (usize, usize),
    /// Distance between neighbouring taps.
    pub dilation: (usize, usize),
    /// Number of groups of channels that do not see each other.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 }
    }
}

impl Conv2dConfig {
    /// The same `stride` and `padding` on both axes.
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride: (stride, stride), padding: (padding, padding), ..Self::default() }
    }

    /// The same convolution in `groups` groups.
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }
}

/// A convolution with all its sizes known and checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) n: usize,
    /// Input height and width.
    pub(crate) size: (usize, usize),
    pub(crate) c_in: usize,
    /// Output height and width.
    pub(crate) out: (usize, usize),
    pub(crate) c_out: usize,
    pub(crate) groups: usize,
    pub(crate) window: Window2d,
}

impl Geometry {
    fn new(
        xs: &FeatureMap,
        weight: (usize, usize, usize, usize),
        bias: Option<&Tensor>,
        config: &Conv2dConfig,
    ) -> Result<Self> {
        let (n, h, w, c_in) = xs.dims();
        let (c_out, c_in_group, kh, kw) = weight;
        let groups = config.groups;
        if groups == 0 || c_in % groups != 0 || c_out % groups != 0 {
            bail!("conv2d: {groups} groups do not divide {c_in} input and {c_out} output channels");
        }
        if c_in != c_in_group * groups {
            bail!(
                "conv2d: weight {:?} in {groups} groups expects {} input channels, found {c_in}",
                [c_out, c_in_group, kh, kw],
                c_in_group * groups
            );
        }
        if let Some(bias) = bias
            && bias.dims() != [c_out]
        {
            bail!("conv2d: expected a bias of shape [{c_out}], found {:?}", bias.dims());
        }
        let window = Window2d {
            kernel: (kh, kw),
            stride: config.stride,
            padding: config.padding,
            dilation: config.dilation,
            ceil_mode: false,
        };
        let out = window.output("conv2d", h, w)?;
        Ok(Self { n, size: (h, w), c_in, out, c_out, groups, window })
    }

    /// Pixels of the output, over the whole batch.
    pub(crate) fn pixels(&self) -> usize {
        self.n * self.out.0 * self.out.1
    }

    /// Taps of the window.
    pub(crate) fn taps(&self) -> usize {
        self.window.kernel.0 * self.window.kernel.1
    }

    /// Input and output channels of one group.
    pub(crate) fn group_channels(&self) -> (usize, usize) {
        (self.c_in / self.groups, self.c_out / self.groups)
    }

    fn macs_per_image(&self) -> u64 {
        (self.out.0 * self.out.1 * self.taps() * self.group_channels().0 * self.c_out) as u64
    }
}

/// Cross-correlation of `xs` with `weight` [c_out, c_in / groups, kh, kw], plus `bias` `[c_out]`: PyTorch's
/// `conv2d`. The output has the dtype of `xs`; parameters are f32, or f64 with f64 maps.
///
/// # Errors
/// If channels, groups or bias do not fit, or the window is larger than the padded input.
pub fn conv2d(
    xs: &FeatureMap,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
) -> Result<FeatureMap> {
    let geometry = Geometry::new(xs, weight.dims4()?, bias, config)?;
    apply("conv2d", xs, weight, bias, geometry)
}

/// `xs · weightᵀ + bias` on a map of 1×1 pixels, `weight` `[c_out, c_in]`, `bias` `[c_out]`.
///
/// # Errors
/// If the map has more than one pixel or the channels do not fit.
pub fn linear(xs: &FeatureMap, weight: &Tensor, bias: Option<&Tensor>) -> Result<FeatureMap> {
    let (c_out, c_in) = weight.dims2()?;
    let (_, h, w, c) = xs.dims();
    if (h, w, c) != (1, 1, c_in) {
        bail!("linear: weight [{c_out}, {c_in}] expects {c_in} flat features, found a map of {h}x{w}x{c}");
    }
    let geometry = Geometry::new(xs, (c_out, c_in, 1, 1), bias, &Conv2dConfig::default())?;
    apply("linear", xs, weight, bias, geometry)
}

fn apply(
    kind: &'static str,
    xs: &FeatureMap,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Geometry,
) -> Result<FeatureMap> {
    #[cfg(any(test, feature = "cuda"))]
    if let Some(xs) = xs.gpu()? {
        return Ok(FeatureMap::on_gpu(cuda::conv2d(&xs, weight, bias, geometry)?));
    }
    match xs.view()? {
        View::Traced(t) => {
            let (h, w) = geometry.out;
            let step = Step {
                kind,
                window: (kind == "conv2d").then_some(geometry.window),
                groups: geometry.groups,
                params: weight.elem_count() + bias.map_or(0, Tensor::elem_count),
                macs: geometry.macs_per_image(),
                algorithm: Some(cpu::describe(&geometry, t.dtype)),
            };
            Ok(FeatureMap::traced_step(t, (geometry.n, h, w, geometry.c_out), step))
        }
        View::Reference(xs) => {
            let (kh, kw) = geometry.window.kernel;
            let weight = weight.reshape((geometry.c_out, geometry.group_channels().0, kh, kw))?;
            Ok(FeatureMap::stored(reference::conv2d(&xs, &weight, bias, &geometry)?))
        }
        View::Cpu(xs) => Ok(FeatureMap::slot(cpu::conv2d(&xs, weight, bias, geometry)?)),
    }
}

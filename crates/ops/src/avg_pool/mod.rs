//! Average pooling in all its forms. Every one of them averages over rectangles, and a rectangle is a span of
//! rows times a span of columns: so one operator, given spans per axis, serves them all.

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::feature_map::View;
use crate::trace::Step;
use crate::{FeatureMap, Window2d};
use candle_core::{Result, bail};

/// One output row (or column): the input rows `start..end` that it sums, and what it divides the sum by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) divisor: f64,
}

/// The average under each window: PyTorch's `avg_pool2d`. With `count_include_pad`, zeros in the padding count.
///
/// # Errors
/// If the window has a dilation, its padding is more than half its kernel, or it is larger than the padded
/// input.
pub fn avg_pool2d(xs: &FeatureMap, window: &Window2d, count_include_pad: bool) -> Result<FeatureMap> {
    let (_, h, w, _) = xs.dims();
    if window.dilation != (1, 1) {
        bail!("avg_pool2d: a window with dilation {:?}", window.dilation);
    }
    if window.padding.0 > window.kernel.0 / 2 || window.padding.1 > window.kernel.1 / 2 {
        bail!("avg_pool2d: padding {:?} is more than half the kernel {:?}", window.padding, window.kernel);
    }
    let out = window.output("avg_pool2d", h, w)?;
    let spans = |out: usize, size: usize, kernel: usize, stride: usize, padding: usize| -> Vec<Span> {
        (0..out)
            .map(|i| {
                // In padded coordinates; a window cut by `ceil_mode` counts only as far as the padding goes.
                let (start, end) = (i * stride, (i * stride + kernel).min(size + 2 * padding));
                let inside = start.saturating_sub(padding)..end.saturating_sub(padding).min(size);
                let divisor = if count_include_pad { end - start } else { inside.len() };
                Span { start: inside.start, end: inside.end.max(inside.start), divisor: divisor as f64 }
            })
            .collect()
    };
    let rows = spans(out.0, h, window.kernel.0, window.stride.0, window.padding.0);
    let columns = spans(out.1, w, window.kernel.1, window.stride.1, window.padding.1);
    apply(Step::window("avg_pool2d", *window), xs, rows, columns)
}

/// Averages over `out` (height, width) rectangles that cover the map: PyTorch's `adaptive_avg_pool2d`.
///
/// # Errors
/// If the map is empty.
pub fn adaptive_avg_pool2d(xs: &FeatureMap, out: (usize, usize)) -> Result<FeatureMap> {
    let (_, h, w, _) = xs.dims();
    if h == 0 || w == 0 {
        bail!("adaptive_avg_pool2d: a map of {h}x{w} pixels");
    }
    let spans = |out: usize, size: usize| -> Vec<Span> {
        (0..out)
            .map(|i| {
                let (start, end) = (i * size / out, ((i + 1) * size).div_ceil(out));
                Span { start, end, divisor: (end - start) as f64 }
            })
            .collect()
    };
    // For the receptive field: windows of the largest span, moved by the usual step.
    let extent = |out: usize, size: usize| (size.div_ceil(out.max(1)), (size / out.max(1)).max(1));
    let ((kh, sh), (kw, sw)) = (extent(out.0, h), extent(out.1, w));
    let window = Window2d { kernel: (kh, kw), stride: (sh, sw), ..Window2d::square(1, 1) };
    apply(Step::window("adaptive_avg_pool2d", window), xs, spans(out.0, h), spans(out.1, w))
}

/// The average over all pixels: a map of 1×1 pixels.
///
/// # Errors
/// If the map is empty.
pub fn global_avg_pool2d(xs: &FeatureMap) -> Result<FeatureMap> {
    adaptive_avg_pool2d(xs, (1, 1))
}

/// Every `stride`-th pixel of every `stride`-th row, from the first.
///
/// # Errors
/// If the stride is 0.
pub fn subsample2d(xs: &FeatureMap, stride: usize) -> Result<FeatureMap> {
    let (_, h, w, _) = xs.dims();
    let window = Window2d::square(1, stride);
    let out = window.output("subsample2d", h, w)?;
    let spans = |out: usize| {
        (0..out).map(|i| Span { start: i * stride, end: i * stride + 1, divisor: 1.0 }).collect()
    };
    apply(Step::window("subsample2d", window), xs, spans(out.0), spans(out.1))
}

fn apply(step: Step, xs: &FeatureMap, rows: Vec<Span>, columns: Vec<Span>) -> Result<FeatureMap> {
    let (n, _, _, c) = xs.dims();
    #[cfg(any(test, feature = "cuda"))]
    if let Some(xs) = xs.gpu()? {
        return Ok(FeatureMap::on_gpu(cuda::avg_pool(&xs, &rows, &columns)?));
    }
    match xs.view()? {
        View::Traced(t) => Ok(FeatureMap::traced_step(t, (n, rows.len(), columns.len(), c), step)),
        View::Reference(xs) => Ok(FeatureMap::stored(reference::avg_pool(&xs, &rows, &columns)?)),
        View::Cpu(xs) => Ok(FeatureMap::slot(cpu::avg_pool(&xs, rows, columns)?)),
    }
}

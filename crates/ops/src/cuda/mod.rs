//! The kernels for GPUs of NVIDIA: maps beside candle's graph, launches, cuDNN.
//!
//! Maps and what is computed on the way are ordinary candle tensors without a graph, whose memory the kernels read and
//! write by its address. All of it happens on the device's one stream, in the order of the calls; images (`upload`) and
//! sums over ranks (`nccl`) travel on streams of their own, for which that one waits.
//!
//! In tests this runs on the CPU, too: the kernels are compiled as C (see `source`), and only cuDNN is missing.

#[cfg(all(feature = "cuda", not(test)))]
pub(crate) mod cudnn;
#[cfg(feature = "cuda")]
mod device;
mod graph;
#[cfg(feature = "cuda")]
mod libraries;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(feature = "cuda")]
mod nvrtc;
mod source;
#[cfg(test)]
mod tests;
#[cfg(all(feature = "cuda", not(test)))]
mod upload;

#[cfg(feature = "cuda")]
pub use device::{count, open, total_memory};
pub(crate) use graph::{Gradients, Map, Operator, computed, is_constant, record};
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, NcclId};

use crate::Window2d;
use crate::activation::Activation;
use candle_core::{DType, Device, Result, Storage, Tensor, bail};

/// Threads that sum over the rows of a map, about, so that a GPU has enough to do, where each sums one column.
const SUMMING_THREADS: usize = 1 << 17;
/// Blocks that sum over the rows of a map, about, where a block's threads do it together: eight for each of the 132
/// multiprocessors of an H100.
const SUMMING_BLOCKS: usize = 1056;
/// Rows that a thread of these sums at least.
const LEAST_ROWS: usize = 8;
/// Channels that a block merges the parts of.
const MERGED_CHANNELS: usize = 8;

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    /// An address on the device, or 0.
    Pointer(u64),
    Int(i32),
    Float(f32),
}

/// Sizes and positions within a map, of which [`pointer`] takes none that has more elements than an `i32` counts.
impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::Int(value as i32)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::Int(value)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

/// Height and width of a map, its channels, height and width of the result, and what a window is given by.
pub(crate) fn window_args(map: [usize; 5], window: &Window2d) -> Vec<Arg> {
    let Window2d { kernel, stride, padding, dilation, .. } = *window;
    let of_window = [kernel, stride, padding, dilation].map(|(y, x)| [Arg::from(y), Arg::from(x)]);
    map.into_iter().map(Arg::from).chain(of_window.into_iter().flatten()).collect()
}

/// How many threads run a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Grid {
    /// So many, none of which knows of another.
    Threads(usize),
    /// So many blocks of [`source::BLOCK`] threads that work together.
    Blocks(usize),
}

/// A tensor of memory as it is found, for a kernel to fill.
#[expect(unsafe_code, reason = "memory that nothing has written yet")]
pub(crate) fn uninitialised(
    shape: impl Into<candle_core::Shape>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    // SAFETY: what is asked for here is written by the kernel that it is made for before anything reads it.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// The address of a contiguous tensor's first element. It is the caller who keeps the tensor until the kernels that
/// use the address are launched; memory is given back in the order of the stream.
pub(crate) fn pointer(xs: &Tensor) -> Result<Arg> {
    if !xs.is_contiguous() {
        bail!("a kernel was given a tensor that is not contiguous");
    }
    if xs.elem_count() > i32::MAX as usize {
        bail!("a tensor of {:?} has too many elements for the GPU's kernels: use smaller batches", xs.dims());
    }
    let (storage, layout) = xs.storage_and_layout();
    let offset = (layout.start_offset() * xs.dtype().size_in_bytes()) as u64;
    let base = match &*storage {
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => device::address(storage)?,
        #[cfg(test)]
        Storage::Cpu(storage) => tests::address(storage)?,
        _ => bail!("a kernel for GPUs was given a tensor elsewhere"),
    };
    Ok(Arg::Pointer(base + offset))
}

/// The same of what may be absent.
pub(crate) fn pointer_or_null(xs: Option<&Tensor>) -> Result<Arg> {
    xs.map_or(Ok(Arg::Pointer(0)), pointer)
}

/// Lets `launch` launch what reads `bytes`, which are on the device meanwhile.
pub(crate) fn with_bytes(
    device: &Device,
    bytes: &[u8],
    launch: impl FnOnce(Arg) -> Result<()>,
) -> Result<()> {
    #[cfg(all(feature = "cuda", not(test)))]
    if device.is_cuda() {
        return upload::with_bytes(device, bytes, launch);
    }
    launch(pointer(&Tensor::from_slice(bytes, bytes.len(), device)?)?)
}

/// Runs a kernel of the element type `dtype` for `n` elements, which is its last argument.
pub(crate) fn launch(device: &Device, kernel: &str, dtype: DType, n: usize, args: &[Arg]) -> Result<()> {
    launch_common(device, &format!("{kernel}_{}", source::suffix(dtype)?), Grid::Threads(n), args)
}

/// Runs one of the kernels that all element types share; the number of threads or blocks is its last argument.
pub(crate) fn launch_common(device: &Device, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
    let (Grid::Threads(n) | Grid::Blocks(n)) = grid;
    if n == 0 {
        return Ok(());
    }
    let args: Vec<Arg> = args.iter().copied().chain([n.into()]).collect();
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::launch(device, kernel, grid, &args),
        #[cfg(test)]
        Device::Cpu => tests::launch(kernel, n, &args),
        _ => bail!("{kernel}: no kernel on this device"),
    }
}

/// Neighbouring channels that a thread takes of maps of `c` channels, and the name of a kernel of `rows.cu` for as many.
fn packed(kernel: &str, dtype: DType, c: usize, args: &[Arg]) -> Result<(usize, String)> {
    let aligned = |arg: &Arg| !matches!(arg, Arg::Pointer(address) if address % 16 != 0);
    let wide = c.is_multiple_of(source::WIDE) && args.iter().all(aligned);
    let (width, ending) = if wide { (source::WIDE, "x8") } else { (1, "") };
    Ok((width, format!("{kernel}_{}{ending}", source::suffix(dtype)?)))
}

/// Runs a kernel of `rows.cu` for `n` elements that have nothing to do with their neighbours.
pub(crate) fn launch_flat(device: &Device, kernel: &str, dtype: DType, n: usize, args: &[Arg]) -> Result<()> {
    let (width, kernel) = packed(kernel, dtype, n, args)?;
    launch_common(device, &kernel, Grid::Threads(n / width), args)
}

/// Runs a kernel of `rows.cu` for each element of a map [rows, c].
pub(crate) fn launch_rows(
    device: &Device,
    kernel: &str,
    dtype: DType,
    (rows, c): (usize, usize),
    args: &[Arg],
) -> Result<()> {
    let (width, kernel) = packed(kernel, dtype, c, args)?;
    let args: Vec<Arg> = args.iter().copied().chain([(c / width).into()]).collect();
    launch_common(device, &kernel, Grid::Threads(rows * (c / width)), &args)
}

/// Rows of threads in a block of `lanes` columns of them.
fn depth(lanes: usize) -> usize {
    1 << (source::BLOCK / lanes.max(1)).ilog2()
}

/// Rows per part, and parts, in which blocks sum over the rows of [rows, c].
pub(crate) fn parts_of_blocks(rows: usize, c: usize) -> (usize, usize) {
    let cols = if c.is_multiple_of(source::WIDE) { c / source::WIDE } else { c };
    let lanes = cols.clamp(1, source::BLOCK);
    let most = rows.div_ceil(depth(lanes) * LEAST_ROWS);
    let parts = (SUMMING_BLOCKS / cols.div_ceil(lanes).max(1)).clamp(1, most.max(1));
    let per = rows.div_ceil(parts).max(1);
    (per, rows.div_ceil(per))
}

/// Runs a kernel of `rows.cu` that sums over the rows of a map [rows, c] in the parts of [`parts_of_blocks`].
pub(crate) fn launch_sums(
    device: &Device,
    kernel: &str,
    dtype: DType,
    (rows, c): (usize, usize),
    args: &[Arg],
) -> Result<()> {
    let (width, kernel) = packed(kernel, dtype, c, args)?;
    let (per, parts) = parts_of_blocks(rows, c);
    let cols = c / width;
    let lanes = cols.clamp(1, source::BLOCK);
    let sizes = [rows, per, cols, lanes, depth(lanes)].map(Arg::from);
    let args: Vec<Arg> = args.iter().copied().chain(sizes).collect();
    launch_common(device, &kernel, Grid::Blocks(parts * cols.div_ceil(lanes)), &args)
}

/// Runs a kernel that merges the parts of sums for `c` columns.
pub(crate) fn launch_merge(device: &Device, kernel: &str, c: usize, args: &[Arg]) -> Result<()> {
    let lanes = c.clamp(1, MERGED_CHANNELS);
    let sizes = [c, lanes, depth(lanes)].map(Arg::from);
    let args: Vec<Arg> = args.iter().copied().chain(sizes).collect();
    launch_common(device, kernel, Grid::Blocks(c.div_ceil(lanes)), &args)
}

/// Rows per part, and parts, of sums over the rows of [rows, c] by threads that each sum one column.
pub(crate) fn parts(rows: usize, c: usize) -> (usize, usize) {
    let parts = (SUMMING_THREADS / c.max(1)).clamp(1, rows.max(1));
    let per = rows.div_ceil(parts).max(16);
    (per, rows.div_ceil(per))
}

/// The sum of each column of [rows, c], in f32.
pub(crate) fn column_sums(xs: &Tensor, c: usize) -> Result<Tensor> {
    let (rows, device) = (xs.elem_count() / c.max(1), xs.device());
    let (_, count) = parts_of_blocks(rows, c);
    let partial = uninitialised((count, c), DType::F32, device)?;
    launch_sums(device, "column_sums", xs.dtype(), (rows, c), &[pointer(xs)?, pointer(&partial)?])?;
    merged(&partial)
}

/// The sums of the columns of parts [count, c].
pub(crate) fn merged(partial: &Tensor) -> Result<Tensor> {
    let (count, c) = partial.dims2()?;
    let sums = uninitialised(c, DType::F32, partial.device())?;
    launch_merge(partial.device(), "sum_parts", c, &[pointer(partial)?, pointer(&sums)?, count.into()])?;
    Ok(sums)
}

/// A map times factors: `image` neighbouring elements have the same `c`, one for each channel.
pub(crate) fn times(xs: &Tensor, factors: &Tensor, (image, c): (usize, usize)) -> Result<Tensor> {
    let ys = uninitialised(xs.shape(), xs.dtype(), xs.device())?;
    let args = [pointer(xs)?, pointer(factors)?, pointer(&ys)?, image.into(), c.into()];
    launch(xs.device(), "times", xs.dtype(), ys.elem_count(), &args)?;
    Ok(ys)
}

/// The number that the kernels know an activation by, and its slope.
pub(crate) fn code(activation: Activation) -> [Arg; 2] {
    let (code, slope) = match activation {
        Activation::Identity => (0, 0.0),
        Activation::Relu => (1, 0.0),
        Activation::Relu6 => (2, 0.0),
        Activation::LeakyRelu(slope) => (3, slope),
        Activation::Sigmoid => (4, 0.0),
        Activation::Tanh => (5, 0.0),
        Activation::Gelu => (6, 0.0),
        Activation::Silu => (7, 0.0),
        Activation::HardSwish => (8, 0.0),
        Activation::HardSigmoid => (9, 0.0),
    };
    [Arg::Int(code), Arg::Float(slope)]
}

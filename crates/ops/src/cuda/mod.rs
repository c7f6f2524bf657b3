//! The kernels for GPUs of NVIDIA: maps beside candle's graph, launches, cuDNN.
//!
//! Maps and what is computed on the way are ordinary candle tensors without a graph, whose memory the kernels read and
//! write by its address. All of it happens on the device's one stream, in the order of the calls.
//!
//! In tests this runs on the CPU, too: the kernels are compiled as C (see `source`), and only cuDNN is missing.

#[cfg(all(feature = "cuda", not(test)))]
pub(crate) mod cudnn;
#[cfg(feature = "cuda")]
mod device;
mod graph;
#[cfg(feature = "nccl")]
mod nccl;
mod source;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub use device::{open, total_memory};
pub(crate) use graph::{Gradients, Map, Operator, record};
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, NcclId};

use crate::activation::Activation;
use candle_core::{DType, Device, Result, Storage, Tensor, bail};

/// Threads that sum over the rows of a map, about, so that a GPU has enough to do.
const SUMMING_THREADS: usize = 1 << 17;

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    /// An address on the device, or 0.
    Pointer(u64),
    Long(i64),
    Int(i32),
    Float(f32),
}

impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::Long(value as i64)
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

/// Runs a kernel of the element type `dtype` for `n` elements, which is its last argument.
pub(crate) fn launch(device: &Device, kernel: &str, dtype: DType, n: usize, args: &[Arg]) -> Result<()> {
    let args: Vec<Arg> = args.iter().copied().chain([n.into()]).collect();
    launch_common(device, &format!("{kernel}_{}", source::suffix(dtype)?), n, &args)
}

/// Runs one of the kernels that all element types share for `n` threads.
pub(crate) fn launch_common(device: &Device, kernel: &str, n: usize, args: &[Arg]) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device::launch(device, kernel, n, args),
        #[cfg(test)]
        Device::Cpu => tests::launch(kernel, n, args),
        _ => bail!("{kernel}: no kernel on this device"),
    }
}

/// Rows per part, and parts, of sums over the rows of [rows, c].
pub(crate) fn parts(rows: usize, c: usize) -> (usize, usize) {
    let parts = (SUMMING_THREADS / c.max(1)).clamp(1, rows.max(1));
    let per = rows.div_ceil(parts).max(16);
    (per, rows.div_ceil(per))
}

/// The sum of each column of [rows, c], in f32.
pub(crate) fn column_sums(xs: &Tensor, c: usize) -> Result<Tensor> {
    let (rows, device) = (xs.elem_count() / c.max(1), xs.device());
    let (per, count) = parts(rows, c);
    let partial = uninitialised((count, c), DType::F32, device)?;
    let args = [pointer(xs)?, pointer(&partial)?, rows.into(), per.into(), c.into()];
    launch(device, "column_sums", xs.dtype(), count * c, &args)?;
    let sums = uninitialised(c, DType::F32, device)?;
    launch_common(device, "sum_parts", c, &[pointer(&partial)?, pointer(&sums)?, count.into(), c.into()])?;
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

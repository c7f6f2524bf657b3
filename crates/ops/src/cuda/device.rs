//! Opening a GPU, and launching kernels there.

use super::{Arg, Grid, libraries, nvrtc, source};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::result::{self, DriverError};
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, LaunchConfig, PushKernelArg, sys};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, Device, Result, bail};

/// The least compute capability of which the kernels' instructions are: Ampere's, which has bf16.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);
/// The version of CUDA whose driver interface the program is built for.
const CUDA: i32 = 13_000;
const NO_GPU: &str = "this machine has no GPU of NVIDIA";

/// The number of GPUs of NVIDIA in this machine, or in one line why there is none that could be used: no driver, or a
/// driver without a GPU.
///
/// # Errors
/// If there is a driver that cannot be used: it is too old, or does not work.
pub fn count() -> Result<std::result::Result<usize, &'static str>> {
    if !libraries::has_driver() {
        return Ok(Err("this machine has no driver of NVIDIA (libcuda.so.1)"));
    }
    if !check_driver()? {
        return Ok(Err(NO_GPU));
    }
    match result::device::get_count().w()? {
        0 => Ok(Err(NO_GPU)),
        count => Ok(Ok(count as usize)),
    }
}

/// Opens GPU `ordinal` for kernels on one stream, with memory that is kept when tensors are freed.
///
/// # Errors
/// One line that says what is missing: the driver, a driver that is new enough, a library, that GPU, or a GPU that is new
/// enough.
#[expect(unsafe_code, reason = "the driver's interface is C")]
pub fn open(ordinal: usize) -> Result<Device> {
    let count = match count()? {
        Ok(count) => count,
        Err(reason) => bail!("{reason}; use --device cpu"),
    };
    if ordinal >= count {
        bail!("there is no GPU {ordinal}; this machine has {}", gpus(count));
    }
    if let Some(missing) = libraries::missing_for_one() {
        bail!(
            "a GPU needs libraries that are not found: {missing}; pip install nvidia-cudnn-cu13 nvidia-cublas \
             nvidia-curand nvidia-cuda-nvrtc has them, and LD_LIBRARY_PATH says where they are"
        );
    }
    let device = match Device::new_cuda_with_stream(ordinal) {
        Ok(device) => device,
        Err(error) => bail!("GPU {ordinal} cannot be used: {error}"),
    };
    let cuda = device.as_cuda_device()?;
    // SAFETY: all work is on the one stream of this device, in the order of the calls; the two others, `upload`'s and
    // `nccl`'s, are waited for, and wait, where they are used.
    unsafe { cuda.disable_event_tracking() };
    let context = cuda.cuda_stream().context().clone();
    let capability = context.compute_capability().w()?;
    if capability < LEAST_CAPABILITY {
        let ((major, minor), (least, _)) = (capability, LEAST_CAPABILITY);
        bail!("GPU {ordinal} has compute capability {major}.{minor}; {least}.0 is needed: Ampere or newer");
    }
    // Some virtual GPUs have no memory pools; candle then allocates without them.
    let _ = keep_memory(context.cu_device());
    Ok(device)
}

fn gpus(count: usize) -> String {
    match count {
        1 => "one, cuda:0".into(),
        n => format!("{n}, cuda:0 to cuda:{}", n - 1),
    }
}

/// Whether the driver has a GPU, once it is found to be new enough.
#[expect(unsafe_code, reason = "the driver's interface is C")]
fn check_driver() -> Result<bool> {
    if let Err(error) = result::init() {
        match error.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(false),
            sys::CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
                bail!("the driver of the GPU and its library are of two versions; restart the machine")
            }
            _ => bail!("the driver of the GPU cannot be used: {}; use --device cpu", name(error)),
        }
    }
    let mut version = 0;
    // SAFETY: the function writes one integer, to which it is given the address.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().w()?;
    if version < CUDA {
        let of = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        bail!(
            "the driver of the GPU is for CUDA {}, and this program needs one for {} (580 or newer)",
            of(version),
            of(CUDA)
        );
    }
    Ok(true)
}

fn name(error: DriverError) -> String {
    error
        .error_string()
        .ok()
        .and_then(|text| text.to_str().ok())
        .map_or(format!("{error:?}"), ToString::to_string)
}

/// Lets the device's memory pool keep what is freed; by default it gives it back to the system at each
/// synchronisation.
#[expect(unsafe_code, reason = "the driver's interface is C")]
fn keep_memory(device: sys::CUdevice) -> Result<()> {
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: the pool is the device's own, of which the first call writes the address, and the attribute is a 64-bit
    // integer that lives until the second one returns.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, device).result().w()?;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result().w()
    }
}

/// The memory of the device, in bytes.
///
/// # Errors
/// If it is no GPU, or its driver does not say.
pub fn total_memory(device: &Device) -> Result<usize> {
    let (_, total) = device.as_cuda_device()?.cuda_stream().context().mem_get_info().w()?;
    Ok(total)
}

/// The address of a storage's first element.
pub(super) fn address(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    fn of<T>(slice: &impl DevicePtr<T>, stream: &CudaStream) -> u64 {
        slice.device_ptr(stream).0
    }
    Ok(match &storage.slice {
        CudaStorageSlice::U8(slice) => of(slice, &stream),
        CudaStorageSlice::U32(slice) => of(slice, &stream),
        CudaStorageSlice::I32(slice) => of(slice, &stream),
        CudaStorageSlice::I64(slice) => of(slice, &stream),
        CudaStorageSlice::F16(slice) => of(slice, &stream),
        CudaStorageSlice::BF16(slice) => of(slice, &stream),
        CudaStorageSlice::F32(slice) => of(slice, &stream),
        CudaStorageSlice::F64(slice) => of(slice, &stream),
        _ => bail!("a kernel was given a tensor of {:?}", storage.dtype()),
    })
}

/// Puts a kernel on the device's stream.
#[expect(unsafe_code, reason = "runs a kernel")]
pub(super) fn launch(device: &CudaDevice, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
    let (function, stream) = (nvrtc::function(device, kernel)?, device.cuda_stream());
    let mut builder = stream.launch_builder(&function);
    for arg in args {
        match arg {
            Arg::Pointer(address) => builder.arg(address),
            Arg::Int(value) => builder.arg(value),
            Arg::Float(value) => builder.arg(value),
        };
    }
    let blocks = match grid {
        Grid::Threads(n) => n.div_ceil(source::BLOCK),
        Grid::Blocks(n) => n,
    };
    let config = LaunchConfig {
        grid_dim: (blocks as u32, 1, 1),
        block_dim: (source::BLOCK as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: arguments are those of the kernel in number, order and type, which the tests hold on the CPU, where the
    // same calls run the same kernels; addresses are of tensors that live until they are given back in the order of
    // the stream.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

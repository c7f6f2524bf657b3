//! Convolutions by cuDNN, on maps and weights whose channels lie side by side (NHWC, and [o, kh, kw, i]).
//!
//! The algorithm of a shape is chosen when it is first met, in cuDNN's own order, and kept with its descriptors for the
//! life of the thread; the workspace is one buffer that grows. Only algorithms that give the same bits each time are taken.

#![expect(unsafe_code, reason = "cuDNN's interface is C")]

use super::{Arg, pointer};
use crate::conv2d::Geometry;
use crate::dispatch::strict_f32;
use candle_core::cuda_backend::cudarc::cudnn::{CudnnError, result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{DType, Result, Tensor, bail};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// Products of f32 in f32; the default takes TF32.
const FMA: sys::cudnnMathType_t = sys::cudnnMathType_t::CUDNN_FMA_MATH;
/// The largest workspace that an algorithm may ask for, in bytes.
const MOST_WORKSPACE: usize = 1 << 30;
/// Algorithms that cuDNN has for one operation, at most.
const ALGORITHMS: usize = 16;

/// The operations on maps x and y and weights w.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// y of x and w.
    Forward,
    /// x of w and y.
    InputGradient,
    /// w of x and y.
    WeightGradient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    dtype: DType,
    strict: bool,
    /// n, height, width, channels in and out, groups.
    sizes: [usize; 6],
    /// Kernel, stride, padding and dilation.
    window: [(usize, usize); 4],
}

/// cuDNN on one device, for one thread.
struct Handle {
    handle: sys::cudnnHandle_t,
    stream: Arc<CudaStream>,
    workspace: Option<CudaSlice<u8>>,
    plans: HashMap<Key, Plan>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: the handle was created by `create_handle`, and nothing uses it afterwards.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Descriptors and the algorithm of one operation on one shape.
struct Plan {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
    algorithm: Algorithm,
    workspace: usize,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each descriptor was created for this plan and is destroyed once.
        unsafe {
            let _ = result::destroy_tensor_descriptor(self.x);
            let _ = result::destroy_tensor_descriptor(self.y);
            let _ = result::destroy_filter_descriptor(self.w);
            let _ = result::destroy_convolution_descriptor(self.conv);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    InputGradient(sys::cudnnConvolutionBwdDataAlgo_t),
    WeightGradient(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// Addresses of the maps and weights of an operation.
#[derive(Clone, Copy)]
struct Operands {
    x: *mut c_void,
    y: *mut c_void,
    w: *mut c_void,
}

thread_local! {
    /// cuDNN's handles belong to a thread.
    static HANDLES: RefCell<HashMap<DeviceId, Handle>> = RefCell::new(HashMap::new());
}

/// Fills `ys` [n, ho, wo, c_out] from `xs` [n, h, w, c_in] and `weight` [c_out, kh, kw, c_in / groups].
pub(crate) fn forward(g: &Geometry, xs: &Tensor, weight: &Tensor, ys: &Tensor) -> Result<()> {
    run(Kind::Forward, g, xs, weight, ys)
}

/// Fills `dxs` from the gradient of `ys` and the weight.
pub(crate) fn input_gradient(g: &Geometry, dxs: &Tensor, weight: &Tensor, dys: &Tensor) -> Result<()> {
    run(Kind::InputGradient, g, dxs, weight, dys)
}

/// Fills the gradient of the weight from `xs` and the gradient of `ys`.
pub(crate) fn weight_gradient(g: &Geometry, xs: &Tensor, of_weight: &Tensor, dys: &Tensor) -> Result<()> {
    run(Kind::WeightGradient, g, xs, of_weight, dys)
}

fn run(kind: Kind, g: &Geometry, xs: &Tensor, weight: &Tensor, ys: &Tensor) -> Result<()> {
    // cuDNN refuses maps without elements.
    if xs.elem_count() == 0 || ys.elem_count() == 0 {
        let result = match kind {
            Kind::Forward => ys,
            Kind::InputGradient => xs,
            Kind::WeightGradient => weight,
        };
        return if result.elem_count() == 0 { Ok(()) } else { result.zero_set() };
    }
    let device = xs.device().as_cuda_device()?.clone();
    let address = |tensor: &Tensor| match pointer(tensor)? {
        Arg::Pointer(address) => Ok(address as *mut c_void),
        _ => bail!("no address"),
    };
    let operands = Operands { x: address(xs)?, y: address(ys)?, w: address(weight)? };
    let window = &g.window;
    let key = Key {
        kind,
        dtype: xs.dtype(),
        strict: strict_f32(),
        sizes: [g.n, g.size.0, g.size.1, g.c_in, g.c_out, g.groups],
        window: [window.kernel, window.stride, window.padding, window.dilation],
    };
    HANDLES.with_borrow_mut(|handles| {
        let handle = match handles.entry(device.id()) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Handle::new(&device)?),
        };
        handle.run(key, g, operands)
    })
}

impl Handle {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let handle = checked(result::create_handle())?;
        // SAFETY: the handle was just created, and the stream lives as long as it does.
        checked(unsafe { result::set_stream(handle, stream.cu_stream().cast()) })?;
        Ok(Self { handle, stream, workspace: None, plans: HashMap::new() })
    }

    fn run(&mut self, key: Key, g: &Geometry, operands: Operands) -> Result<()> {
        if !self.plans.contains_key(&key) {
            let mut plan = Plan::describe(&key, g)?;
            self.choose(&key, &mut plan)?;
            self.plans.insert(key, plan);
        }
        let needed = self.plans.get(&key).map_or(0, |plan| plan.workspace);
        let (workspace, size) = self.workspace(needed)?;
        let Some(plan) = self.plans.get(&key) else { bail!("a convolution without a plan") };
        let (one, zero) = (1f32, 0f32);
        let (alpha, beta) = ((&raw const one).cast(), (&raw const zero).cast());
        let Operands { x, y, w } = operands;
        // SAFETY: descriptors are those of the tensors at these addresses, which are as long as the shapes say; the
        // workspace is as long as the algorithm needs; α and β live until the call returns.
        checked(unsafe {
            match plan.algorithm {
                Algorithm::Forward(algorithm) => result::convolution_forward(
                    self.handle,
                    alpha,
                    plan.x,
                    x,
                    plan.w,
                    w,
                    plan.conv,
                    algorithm,
                    workspace,
                    size,
                    beta,
                    plan.y,
                    y,
                ),
                Algorithm::InputGradient(algorithm) => result::convolution_backward_data(
                    self.handle,
                    alpha,
                    plan.w,
                    w,
                    plan.y,
                    y,
                    plan.conv,
                    algorithm,
                    workspace,
                    size,
                    beta,
                    plan.x,
                    x,
                ),
                Algorithm::WeightGradient(algorithm) => result::convolution_backward_filter(
                    self.handle,
                    alpha,
                    plan.x,
                    x,
                    plan.y,
                    y,
                    plan.conv,
                    algorithm,
                    workspace,
                    size,
                    beta,
                    plan.w,
                    w,
                ),
            }
        })
    }

    /// At least so many bytes on the device: their address and how many there are.
    fn workspace(&mut self, bytes: usize) -> Result<(*mut c_void, usize)> {
        if self.workspace.as_ref().is_none_or(|workspace| workspace.len() < bytes) {
            // The old one is given back in the order of the stream, after what uses it.
            self.workspace = None;
            // SAFETY: cuDNN reads nothing of its workspace that it has not written.
            self.workspace = Some(unsafe { self.stream.alloc::<u8>(bytes.max(1)) }.w()?);
        }
        match &mut self.workspace {
            Some(workspace) => {
                let size = workspace.len();
                Ok((workspace.device_ptr_mut(&self.stream).0 as *mut c_void, size))
            }
            None => bail!("no workspace"),
        }
    }

    /// Chooses the algorithm of a plan: of those that give the same bits each time, the one that cuDNN expects to be the
    /// quickest. Nothing is measured, so that every process and every rank takes the same one.
    fn choose(&self, key: &Key, plan: &mut Plan) -> Result<()> {
        use sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
        use sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;
        use sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
        let mut found = 0;
        let (x, y, w, conv) = (plan.x, plan.y, plan.w, plan.conv);
        macro_rules! choose {
            ($list:ident, $workspace:ident, $perf:ty, $algorithm:ident, $certain:ident, $($descriptor:expr),*) => {{
                // SAFETY: the structure is one of C of numbers, for which zeros are values.
                let mut results: [$perf; ALGORITHMS] = unsafe { std::mem::zeroed() };
                // SAFETY: the descriptors are the plan's; there is room for as many results as are asked for.
                checked(unsafe {
                    sys::$list(
                        self.handle, $($descriptor),*, ALGORITHMS as i32, &raw mut found, results.as_mut_ptr(),
                    )
                }
                .result())?;
                let usable = results[..found as usize].iter().find(|result| {
                    result.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                        && result.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
                        && result.memory <= MOST_WORKSPACE
                        // cuDNN lists the default type as well, which rounds f32 to TF32.
                        && (!key.strict || key.dtype != DType::F32 || result.mathType == FMA)
                });
                match usable {
                    Some(result) => (Algorithm::$algorithm(result.algo), result.memory, Some(result.mathType)),
                    // The one of which cuDNN's reference says for all shapes that its bits are the same each time.
                    None => {
                        let mut bytes = 0;
                        // SAFETY: as above; one number is written.
                        checked(unsafe {
                            sys::$workspace(self.handle, $($descriptor),*, $certain, &raw mut bytes)
                        }
                        .result())?;
                        (Algorithm::$algorithm($certain), bytes, None)
                    }
                }
            }};
        }
        let (algorithm, workspace, math) = match key.kind {
            Kind::Forward => choose!(
                cudnnGetConvolutionForwardAlgorithm_v7,
                cudnnGetConvolutionForwardWorkspaceSize,
                sys::cudnnConvolutionFwdAlgoPerf_t,
                Forward,
                CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
                x,
                w,
                conv,
                y
            ),
            Kind::InputGradient => choose!(
                cudnnGetConvolutionBackwardDataAlgorithm_v7,
                cudnnGetConvolutionBackwardDataWorkspaceSize,
                sys::cudnnConvolutionBwdDataAlgoPerf_t,
                InputGradient,
                CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
                w,
                y,
                conv,
                x
            ),
            Kind::WeightGradient => choose!(
                cudnnGetConvolutionBackwardFilterAlgorithm_v7,
                cudnnGetConvolutionBackwardFilterWorkspaceSize,
                sys::cudnnConvolutionBwdFilterAlgoPerf_t,
                WeightGradient,
                CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
                x,
                y,
                conv,
                w
            ),
        };
        (plan.algorithm, plan.workspace) = (algorithm, workspace);
        let Some(math) = math else { return Ok(()) };
        // SAFETY: the descriptor is the plan's.
        checked(unsafe { result::set_convolution_math_type(conv, math) })
    }
}

impl Plan {
    fn describe(key: &Key, g: &Geometry) -> Result<Self> {
        use sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC as NHWC;
        let dtype = match key.dtype {
            DType::F32 => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            DType::BF16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            DType::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
            dtype => bail!("cuDNN does not convolve {dtype:?}"),
        };
        let int = |size: usize| {
            i32::try_from(size).map_err(|_| candle_core::Error::msg("a map is too large for cuDNN"))
        };
        let pair = |(a, b): (usize, usize)| Ok::<_, candle_core::Error>((int(a)?, int(b)?));
        let ((h, w), (ho, wo)) = (pair(g.size)?, pair(g.out)?);
        let (n, c_in, c_out, groups) = (int(g.n)?, int(g.c_in)?, int(g.c_out)?, int(g.groups)?);
        let [kernel, stride, padding, dilation] = key.window;
        let (kernel, stride) = (pair(kernel)?, pair(stride)?);
        let (padding, dilation) = (pair(padding)?, pair(dilation)?);
        let plan = Self {
            x: checked(result::create_tensor_descriptor())?,
            y: checked(result::create_tensor_descriptor())?,
            w: checked(result::create_filter_descriptor())?,
            conv: checked(result::create_convolution_descriptor())?,
            // Replaced when it is chosen.
            algorithm: Algorithm::Forward(
                sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
            ),
            workspace: 0,
        };
        let math = match key.dtype {
            DType::F32 if key.strict => FMA,
            DType::F32 => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
            _ => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let compute = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        // SAFETY: all descriptors were created above and not destroyed.
        unsafe {
            checked(result::set_tensor4d_descriptor(plan.x, NHWC, dtype, [n, c_in, h, w]))?;
            checked(result::set_tensor4d_descriptor(plan.y, NHWC, dtype, [n, c_out, ho, wo]))?;
            let filter = [c_out, c_in / groups, kernel.0, kernel.1];
            checked(result::set_filter4d_descriptor(plan.w, dtype, NHWC, filter))?;
            checked(result::set_convolution2d_descriptor(
                plan.conv, padding.0, padding.1, stride.0, stride.1, dilation.0, dilation.1, mode, compute,
            ))?;
            checked(result::set_convolution_group_count(plan.conv, groups))?;
            checked(result::set_convolution_math_type(plan.conv, math))?;
        }
        Ok(plan)
    }
}

fn checked<T>(result: std::result::Result<T, CudnnError>) -> Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(error) => bail!("cuDNN: {:?}", error.0),
    }
}

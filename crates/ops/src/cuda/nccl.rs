//! Sums over the GPUs of a run by NCCL.

use crate::ranks::PendingSum;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use candle_core::cuda_backend::cudarc::nccl::NcclType;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Result, Storage, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// What all ranks of a run must know to find one another: the first one draws it.
pub type NcclId = [u8; 128];

/// One GPU among those of a run.
pub struct Nccl(Mutex<Communicator>);

struct Communicator(Comm);

#[expect(unsafe_code, reason = "a handle of C")]
// SAFETY: NCCL lets any thread use a communicator, one at a time, which the mutex around it holds.
unsafe impl Send for Communicator {}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nccl")
    }
}

impl Nccl {
    /// Draws what the ranks find one another by.
    ///
    /// # Errors
    /// If NCCL cannot be used.
    pub fn id() -> Result<NcclId> {
        if let Some(missing) = super::libraries::missing_for_several() {
            bail!(
                "several GPUs need a library that is not found: {missing}; pip install nvidia-nccl-cu13 has it, and \
                 LD_LIBRARY_PATH says where it is"
            );
        }
        match Id::new() {
            Ok(id) => Ok(id.internal().map(|byte| byte as u8)),
            Err(error) => bail!("NCCL cannot be used: {error:?}"),
        }
    }

    /// Meets the other ranks, each of which calls this with its own GPU.
    ///
    /// # Errors
    /// If the device is no GPU, or NCCL fails.
    pub fn join(device: &Device, rank: usize, size: usize, id: &NcclId) -> Result<Self> {
        // Of its own, so that sums are formed while gradients of other layers are computed.
        let stream = device.as_cuda_device()?.cuda_stream().fork().w()?;
        let id = Id::uninit(id.map(|byte| byte as std::ffi::c_char));
        match Comm::from_rank(stream, rank, size, id) {
            Ok(comm) => Ok(Self(Mutex::new(Communicator(comm)))),
            Err(error) => bail!("rank {rank} of {size} cannot join the others through NCCL: {error:?}"),
        }
    }

    /// Begins the sum of the ranks' tensors `[n]`, in f32 or f64, on a stream of its own; what the GPU is given to do after
    /// the result has been asked for waits for it.
    ///
    /// # Errors
    /// If the tensor is not on the GPU, or NCCL fails.
    pub fn begin_sum(&self, xs: &Tensor) -> Result<PendingSum> {
        match xs.dtype() {
            DType::F32 => self.begin_sum_of::<f32>(xs),
            DType::F64 => self.begin_sum_of::<f64>(xs),
            dtype => bail!("ranks do not add up {dtype:?}"),
        }
    }

    fn begin_sum_of<T>(&self, xs: &Tensor) -> Result<PendingSum>
    where
        T: NcclType + CudaDType + DeviceRepr + ValidAsZeroBits + 'static,
    {
        let xs = xs.contiguous()?;
        let device = xs.device().as_cuda_device()?.clone();
        let mut sums = device.alloc_zeros::<T>(xs.elem_count())?;
        let done = {
            let (storage, layout) = xs.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else { bail!("NCCL adds up what is on GPUs") };
            let start = layout.start_offset();
            let own = storage.as_cuda_slice::<T>()?.slice(start..start + xs.elem_count());
            let communicator = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let stream = communicator.0.stream();
            stream.join(&device.cuda_stream()).w()?;
            if let Err(error) = communicator.0.all_reduce(&own, &mut sums, &ReduceOp::Sum) {
                bail!("NCCL: {error:?}");
            }
            stream.record_event(None).w()?
        };
        Ok(Box::new(move || {
            device.cuda_stream().wait(&done).w()?;
            // Both were in use until here, and their memory may be given to others from here on.
            drop(xs);
            let shape = sums.len();
            let sums = Storage::Cuda(CudaStorage::wrap_cuda_slice(sums, device));
            Ok(Tensor::from_storage(sums, shape, BackpropOp::none(), false))
        }))
    }
}

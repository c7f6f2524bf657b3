//! Several processes that train one network, each on its share of every batch.

use crate::scoped::scoped;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, bail};
use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

/// The processes of a run, its *ranks*, as one of them sees them.
///
/// Every rank begins the same number of sums, in the same order, with tensors of the same size. It is all that they need
/// of one another: what one rank alone knows is the sum of its value and the others' zeros.
pub trait Communicator: Debug + Send + Sync {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// The sum of the ranks' tensors, which are `[n]` in f32 or f64: the same bits on every rank. Of one rank it is its
    /// tensor.
    ///
    /// # Errors
    /// If another rank has ended or does not answer.
    fn sum(&self, xs: &Tensor) -> Result<Tensor>;

    /// Begins a sum, and goes on meanwhile where it can: the result is asked for later.
    ///
    /// # Errors
    /// As [`Communicator::sum`]; so has the result.
    fn begin_sum(&self, xs: &Tensor) -> Result<PendingSum> {
        let sum = self.sum(xs)?;
        Ok(Box::new(|| Ok(sum)))
    }

    /// Says that this rank has come to its end, as all others will. One that has failed just ends.
    fn leave(&self) {}
}

/// Waits for a sum that has begun.
pub type PendingSum = Box<dyn FnOnce() -> Result<Tensor>>;

/// A run of one process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(xs.clone())
    }
}

/// Each rank's values, `[n]`, as the rows of a tensor [ranks, n].
///
/// # Errors
/// As [`Communicator::sum`].
pub fn gather(ranks: &dyn Communicator, xs: &Tensor) -> Result<Tensor> {
    let (n, rank, size) = (xs.elem_count(), ranks.rank(), ranks.size());
    let zeros = |rows: usize| Tensor::zeros(rows * n, xs.dtype(), xs.device());
    let padded = Tensor::cat(&[&zeros(rank)?, &xs.detach().flatten_all()?, &zeros(size - rank - 1)?], 0)?;
    ranks.sum(&padded)?.reshape((size, n))
}

thread_local! {
    static SYNCHRONISED: RefCell<Option<Arc<dyn Communicator>>> = const { RefCell::new(None) };
}

/// Runs `f` with the statistics of every batch normalisation in training taken over the batches of all ranks, as if
/// they were one: PyTorch's `SyncBatchNorm`. A backward of what `f` computes may run later; every rank must run it.
pub fn with_synchronised_batch_norm<R>(ranks: &Arc<dyn Communicator>, f: impl FnOnce() -> R) -> R {
    scoped(&SYNCHRONISED, Some(Arc::clone(ranks)), f).0
}

/// The ranks that a batch normalisation shares its statistics with.
pub(crate) fn synchronised() -> Option<Arc<dyn Communicator>> {
    SYNCHRONISED.with_borrow(|ranks| ranks.clone().filter(|ranks| ranks.size() > 1))
}

/// The sum of the ranks' tensors of any shape. Differentiable: as the sum is part of the loss of every rank, its
/// gradient is the sum of theirs.
pub(crate) fn differentiable_sum(ranks: &Arc<dyn Communicator>, xs: &Tensor) -> Result<Tensor> {
    let sum = ranks.sum(&xs.detach().flatten_all()?)?;
    xs.contiguous()?.apply_op1(Sum { ranks: Arc::clone(ranks), sum })
}

/// The sum over the ranks in candle's graph.
struct Sum {
    ranks: Arc<dyn Communicator>,
    sum: Tensor,
}

impl CustomOp1 for Sum {
    fn name(&self) -> &'static str {
        "sum over ranks"
    }

    fn cpu_fwd(&self, _: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match &*self.sum.storage_and_layout().0 {
            Storage::Cpu(sum) => Ok((sum.clone(), layout.shape().clone())),
            _ => bail!("the ranks of a run must compute on devices of one kind"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        match &*self.sum.storage_and_layout().0 {
            Storage::Cuda(sum) => Ok((sum.try_clone(self.sum.layout())?, layout.shape().clone())),
            _ => bail!("the ranks of a run must compute on devices of one kind"),
        }
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.ranks.sum(&gradient.detach().flatten_all()?)?.reshape(xs.shape()).map(Some)
    }
}

/// Whether two ranks' sums can be formed of a tensor.
///
/// # Errors
/// Says what is expected if not.
pub fn check_sum(xs: &Tensor) -> Result<()> {
    if xs.rank() != 1 || !matches!(xs.dtype(), DType::F32 | DType::F64) {
        bail!("ranks add up tensors [n] in f32 or f64, found {:?} in {:?}", xs.dims(), xs.dtype());
    }
    Ok(())
}

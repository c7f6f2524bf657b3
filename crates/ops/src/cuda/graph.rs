//! Feature maps on a GPU, beside candle's graph as those of the CPU kernels are (see `slot`): candle sees a handle of one
//! element, gradients are added up in place, and what an operator kept is freed when its backward has used it.

use super::{launch_flat, pointer};
use crate::handle::{enter, join, of_handle, untracked};
use crate::slot::{Dims, collect, without_gradients};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};

/// Where a map's gradient is added up, once it is known.
type Gradient = Arc<Mutex<Option<Tensor>>>;

/// A map [n, h, w, c].
#[derive(Debug, Clone)]
pub(crate) struct Map {
    dims: Dims,
    handle: Tensor,
    /// Contiguous and without a graph.
    values: Tensor,
    gradient: Gradient,
}

/// An operator that has been applied, with what its backward needs.
pub(crate) trait Operator: Send + Sized + 'static {
    const NAME: &'static str;

    /// The gradients of maps and parameters from that of the result, `None` where not asked for. It may be overwritten.
    fn backward(self, gradient: Tensor, of_maps: &[bool], of_params: &[bool]) -> Result<Gradients>;
}

/// Gradients of maps and of parameters.
pub(crate) type Gradients = (Vec<Option<Tensor>>, Vec<Option<Tensor>>);

impl Map {
    pub(crate) fn dims(&self) -> Dims {
        self.dims
    }

    /// The elements [n, h, w, c].
    pub(crate) fn values(&self) -> &Tensor {
        &self.values
    }

    /// The same elements under other dimensions.
    pub(crate) fn reshape(&self, dims: Dims) -> Result<Self> {
        Ok(Self { dims, values: self.values.reshape(dims)?, ..self.clone() })
    }

    /// A map that nothing is differentiated through.
    pub(crate) fn constant(values: Tensor) -> Result<Self> {
        let handle = untracked(values.device())?;
        Ok(Self { dims: values.dims4()?, handle, values, gradient: Gradient::default() })
    }

    /// From a contiguous tensor [n, h, w, c].
    pub(crate) fn enter(xs: &Tensor) -> Result<Self> {
        let map = Self::constant(xs.detach())?;
        if !xs.track_op() || without_gradients() {
            return Ok(map);
        }
        let gradient = map.gradient.clone();
        let handle = enter(xs, move |xs| take(&gradient)?.reshape(xs.shape()))?;
        Ok(Self { handle, ..map })
    }

    /// An ordinary tensor [n, h, w, c].
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        if !self.handle.track_op() {
            return self.values.reshape(self.dims);
        }
        let sum = self.gradient.clone();
        computed(&self.handle, self.values.reshape(self.dims)?, move |handle, gradient| {
            // A copy, because what comes next adds to it or overwrites it.
            accumulate(&sum, gradient.detach().contiguous()?.copy()?)?;
            of_handle(handle)
        })
    }
}

/// Whether nothing is differentiated through an operator on these.
pub(crate) fn is_constant(maps: &[&Map], params: &[&Tensor]) -> bool {
    let tracked = maps.iter().any(|map| map.handle.track_op()) || params.iter().any(|param| param.track_op());
    !tracked || without_gradients()
}

/// The result of an operator on maps and at most two parameters; `op` is made only where it is differentiated.
pub(crate) fn record<O: Operator>(
    maps: &[&Map],
    params: &[&Tensor],
    values: Tensor,
    op: impl FnOnce() -> O,
) -> Result<Map> {
    let map = Map::constant(values)?;
    if is_constant(maps, params) {
        return Ok(map);
    }
    let node = Node {
        op: Mutex::new(Some(op())),
        map_gradients: maps.iter().map(|map| map.gradient.clone()).collect(),
        gradient: map.gradient.clone(),
        of_maps: maps.iter().map(|map| map.handle.track_op()).collect(),
        of_params: params.iter().map(|param| param.track_op()).collect(),
    };
    let handles: Vec<&Tensor> = maps.iter().map(|map| &map.handle).collect();
    let handle = join(O::NAME, &handles, params, move |params| node.backward(params))?;
    Ok(Map { handle, ..map })
}

/// Adds to a gradient that other operators may have added to before.
fn accumulate(gradient: &Gradient, new: Tensor) -> Result<()> {
    let mut slot = gradient.lock().unwrap_or_else(PoisonError::into_inner);
    match slot.as_ref() {
        None => *slot = Some(new),
        Some(sum) => {
            let args = [pointer(sum)?, pointer(&new)?];
            launch_flat(sum.device(), "add_into", sum.dtype(), sum.elem_count(), &args)?;
        }
    }
    Ok(())
}

fn take(gradient: &Gradient) -> Result<Tensor> {
    match gradient.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(gradient) => Ok(gradient),
        None => bail!("a second backward through the same feature maps: run forward again before it"),
    }
}

/// An operator in candle's graph.
struct Node<O> {
    /// Taken by the backward.
    op: Mutex<Option<O>>,
    map_gradients: Vec<Gradient>,
    gradient: Gradient,
    of_maps: Vec<bool>,
    of_params: Vec<bool>,
}

impl<O: Operator> Node<O> {
    fn backward(&self, params: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        let gradient = take(&self.gradient)?;
        let Some(op) = self.op.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("a second backward through the same feature maps: run forward again before it");
        };
        let (of_maps, of_params) = op.backward(gradient, &self.of_maps, &self.of_params)?;
        for (slot, new) in self.map_gradients.iter().zip(of_maps) {
            if let Some(new) = new {
                accumulate(slot, new)?;
            }
        }
        let of_param = |((new, param), wanted): ((Option<Tensor>, &&Tensor), &bool)| match new {
            Some(new) if *wanted => collect(param, new.reshape(param.shape())?),
            _ => Ok(None),
        };
        of_params.into_iter().zip(params).zip(&self.of_params).map(of_param).collect()
    }
}

/// What has been computed from `xs`, in candle's graph. `backward` is given `xs` and the gradient of `values`, and gives
/// that of `xs`.
pub(crate) fn computed(
    xs: &Tensor,
    values: Tensor,
    backward: impl Fn(&Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
) -> Result<Tensor> {
    // What candle copies of a storage is all of it from its start.
    let whole = values.is_contiguous() && values.layout().start_offset() == 0;
    let values = if whole { values } else { values.force_contiguous()? };
    xs.apply_op1(Computed { values, backward })
}

struct Computed<F> {
    values: Tensor,
    backward: F,
}

impl<F: Fn(&Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync> CustomOp1 for Computed<F> {
    fn name(&self) -> &'static str {
        "computed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.values.storage_and_layout();
        match &*storage {
            Storage::Cpu(values) => Ok((values.clone(), layout.shape().clone())),
            _ => bail!("what was computed is on another device"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.values.storage_and_layout();
        match &*storage {
            Storage::Cuda(values) => Ok((values.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("what was computed is on another device"),
        }
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(xs, gradient)
    }
}

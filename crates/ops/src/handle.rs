//! What candle's graph sees of a feature map: a tensor of one element, its *handle*, and operators between handles.
//!
//! Candle's backward visits an operator after all operators that use its result. That order is all that is needed of
//! it here: elements and gradients of maps lie beside the graph.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail,
};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use std::sync::OnceLock;

/// The handle of a map that nothing is differentiated through: on the CPU one for all.
pub(crate) fn untracked(device: &Device) -> Result<Tensor> {
    static ON_CPU: OnceLock<Tensor> = OnceLock::new();
    match (device, ON_CPU.get()) {
        (Device::Cpu, Some(handle)) => Ok(handle.clone()),
        (Device::Cpu, None) => {
            let handle = Tensor::from_vec(vec![0f32], 1, device)?;
            Ok(ON_CPU.get_or_init(|| handle).clone())
        }
        _ => Tensor::zeros(1, DType::F32, device),
    }
}

/// The handle of what an operator makes of maps and at most two parameters. `backward` runs once, is given the
/// parameters, and gives their gradients.
pub(crate) fn join(
    name: &'static str,
    maps: &[&Tensor],
    params: &[&Tensor],
    backward: impl Fn(&[&Tensor]) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let joined = match *maps {
        [handle] => handle.clone(),
        _ => Tensor::cat(maps, 0)?,
    };
    let of_all = move |handle: &Tensor, params: &[&Tensor]| {
        let of_params = backward(params)?;
        Ok(std::iter::once(of_handle(handle)?).chain(of_params).collect())
    };
    let node = Node { name, backward: of_all };
    match *params {
        [] => joined.apply_op1(node),
        [a] => joined.apply_op2(a, node),
        [a, b] => joined.apply_op3(a, b, node),
        _ => bail!("an operator of {} parameters", params.len()),
    }
}

/// The handle of a map that is made of a tensor. `backward` gives the tensor's gradient.
pub(crate) fn enter(
    xs: &Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let of_all = move |xs: &Tensor, _: &[&Tensor]| Ok(vec![Some(backward(xs)?)]);
    xs.apply_op1(Node { name: "enter", backward: of_all })
}

/// The gradient of a handle, of the handle's shape: several maps join as a handle of as many elements. Nobody reads it;
/// candle wants one all the same. On a GPU it is left as it is found, because filling it takes a launch.
pub(crate) fn of_handle(handle: &Tensor) -> Result<Option<Tensor>> {
    if !handle.track_op() {
        return Ok(None);
    }
    #[cfg(feature = "cuda")]
    if handle.device().is_cuda() {
        return crate::cuda::uninitialised(handle.shape(), DType::F32, handle.device()).map(Some);
    }
    handle.zeros_like().map(Some)
}

/// An operator whose result is a handle. `backward` is given the first argument and the others, and gives the gradients
/// of all.
struct Node<F> {
    name: &'static str,
    backward: F,
}

fn on_cpu() -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
}

#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "memory that nothing reads")]
fn on_gpu(like: &CudaStorage) -> Result<(CudaStorage, Shape)> {
    let device = like.device();
    // SAFETY: the element is added to others, and nobody reads the sum.
    let element = unsafe { device.alloc::<f32>(1)? };
    Ok((CudaStorage::wrap_cuda_slice(element, device.clone()), Shape::from(1)))
}

impl<F: Fn(&Tensor, &[&Tensor]) -> Result<Vec<Option<Tensor>>> + Send + Sync> CustomOp1 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        on_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, first: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        on_gpu(first)
    }

    fn bwd(&self, first: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok((self.backward)(first, &[])?.into_iter().next().flatten())
    }
}

impl<F: Fn(&Tensor, &[&Tensor]) -> Result<Vec<Option<Tensor>>> + Send + Sync> CustomOp2 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        on_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        first: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        on_gpu(first)
    }

    fn bwd(
        &self,
        first: &Tensor,
        a: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut all = (self.backward)(first, &[a])?.into_iter();
        Ok((all.next().flatten(), all.next().flatten()))
    }
}

impl<F: Fn(&Tensor, &[&Tensor]) -> Result<Vec<Option<Tensor>>> + Send + Sync> CustomOp3 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        on_cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        first: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        on_gpu(first)
    }

    fn bwd(
        &self,
        first: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut all = (self.backward)(first, &[a, b])?.into_iter();
        Ok((all.next().flatten(), all.next().flatten(), all.next().flatten()))
    }
}

//! Inference: no gradients, and weights that are prepared once.

use crate::huge_pages::collapse;
use crate::pool::Buffer;
use crate::scoped::scoped;
use crate::slot::no_grad;
use candle_core::TensorId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Forward passes with parameters that stay as they are: kernels arrange weights for themselves in the first
/// one and find them arranged in the others, and no backward is prepared. Takes the memory of the weights once
/// more, up to four times for 3×3 convolutions. Only the CPU kernels heed it.
///
/// ```
/// # fn main() -> candle_core::Result<()> {
/// use candle_core::{DType, Device, Tensor};
/// use zoo_ops::{Conv2dConfig, FeatureMap, Inference, conv2d};
///
/// let weight = Tensor::ones((8, 3, 3, 3), DType::F32, &Device::Cpu)?;
/// let images = FeatureMap::from_nchw(&Tensor::ones((1, 3, 16, 16), DType::F32, &Device::Cpu)?)?;
/// let inference = Inference::default();
/// for _ in 0..10 {
///     inference.run(|| conv2d(&images, &weight, None, &Conv2dConfig::new(1, 1)))?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Inference {
    prepared: Arc<Mutex<Prepared>>,
}

/// Weights as a kernel wants them, by tensor.
type Prepared = HashMap<(TensorId, Form), Arc<Buffer<f32>>>;

/// A way in which kernels arrange weights; two of the same form and tensor are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// For AMX in `tiles`.
    Panels { bf16: bool, tiles: bool },
    /// For tiles of so many outputs along a side.
    Winograd { bf16: bool, side: usize },
    /// Tap by tap.
    Taps { bf16: bool },
    /// Of a running variance: the scales and then the shifts of its normalisation.
    Affine,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Mutex<Prepared>>>> = const { RefCell::new(None) };
}

impl Inference {
    /// Runs forward passes. Between the first and the last of them no parameter may change.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        scoped(&CURRENT, Some(self.prepared.clone()), || no_grad(f)).0
    }
}

/// Whether an [`Inference`] runs on this thread.
pub(crate) fn is_running() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// The weights of a tensor in a form, from the inference that runs on this thread or made now.
pub(crate) fn prepared(
    id: Option<TensorId>,
    form: Form,
    make: impl FnOnce() -> Buffer<f32>,
) -> Arc<Buffer<f32>> {
    let Some(id) = id else { return Arc::new(make()) };
    kept(id, form).unwrap_or_else(|| keep(id, form, make()))
}

/// What the inference that runs on this thread has of a tensor in a form.
pub(crate) fn kept(id: TensorId, form: Form) -> Option<Arc<Buffer<f32>>> {
    let current = CURRENT.with_borrow(Clone::clone)?;
    let prepared = current.lock().unwrap_or_else(PoisonError::into_inner);
    prepared.get(&(id, form)).cloned()
}

/// Keeps it there, if an inference runs.
pub(crate) fn keep(id: TensorId, form: Form, made: Buffer<f32>) -> Arc<Buffer<f32>> {
    let Some(current) = CURRENT.with_borrow(Clone::clone) else { return Arc::new(made) };
    collapse(&made);
    let mut prepared = current.lock().unwrap_or_else(PoisonError::into_inner);
    prepared.entry((id, form)).or_insert_with(|| Arc::new(made)).clone()
}

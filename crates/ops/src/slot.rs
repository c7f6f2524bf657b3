//! Feature maps of the CPU kernels, beside candle's graph.
//!
//! For each map candle's graph holds a handle (see `handle`); the elements lie in a slot, and so does their gradient. When
//! candle's backward comes to an operator, the slot of its result holds the whole gradient: gradients are added up in place, where candle makes a tensor of zeros and
//! a sum for each use, and what an operator kept for its backward is freed as soon as it has been used.
//! `loss.backward()` works as always; a second one through the same maps is an error, as in PyTorch.

use crate::activation::Activation;
use crate::element::{Element, Elements, by_element};
use crate::handle::{enter, join, of_handle, untracked};
use crate::max_pool::MaxPool;
use crate::parallel::chunks;
use crate::pool::Buffer;
use crate::scoped::scoped;
use crate::simd::multiversion;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, TensorId, bail};
use half::bf16;
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Elements of a map.
#[derive(Debug)]
pub(crate) enum Values {
    F32(Buffer<f32>),
    BF16(Buffer<bf16>),
}

impl Values {
    fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::BF16(_) => DType::BF16,
        }
    }

    pub(crate) fn slice<T: Element>(&self) -> Result<&[T]> {
        match T::of_values(self) {
            Some(values) => Ok(values),
            None => bail!("a kernel for {:?} was given a map of {:?}", T::DTYPE, self.dtype()),
        }
    }

    fn storage(&self) -> CpuStorage {
        match self {
            Self::F32(values) => CpuStorage::F32(values.to_vec()),
            Self::BF16(values) => CpuStorage::BF16(values.to_vec()),
        }
    }
}

/// Where a map's gradient is added up.
type Gradient = Arc<Mutex<Option<Values>>>;

/// (n, h, w, c)
pub(crate) type Dims = (usize, usize, usize, usize);

/// A map [n, h, w, c] on the CPU.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    dims: Dims,
    /// What candle's graph sees: one element.
    handle: Tensor,
    values: Arc<Lazy>,
    gradient: Gradient,
}

/// Elements, or how to compute them.
struct Lazy {
    dtype: DType,
    values: OnceLock<Arc<Values>>,
    deferred: Mutex<Option<Arc<dyn Deferred>>>,
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lazy").field("dtype", &self.dtype).finish_non_exhaustive()
    }
}

/// An operator whose result nothing is differentiated through, not computed yet.
pub(crate) trait Deferred: Any + Send + Sync {
    /// Its elements.
    fn run(&self) -> Result<Values>;

    /// What it is with a normalisation after it, if it can be computed with one.
    fn normalised(&self, norm: &Affine<'_>) -> Result<Option<Normalised>>;

    /// The elements of a max-pool of its result, if both can be computed together.
    fn pooled(&self, _: &MaxPool) -> Result<Option<Values>> {
        Ok(None)
    }
}

/// The elements of a map, or the operator that computes them.
pub(crate) enum Normalised {
    Now(Values),
    Later(Arc<dyn Deferred>),
}

/// `activation(x · scale + shift + residual)`.
pub(crate) struct Affine<'a> {
    /// Scale and shift for each channel, 1 and 0 where there are none.
    pub(crate) factors: Option<(&'a [f32], &'a [f32])>,
    pub(crate) residual: Option<&'a Slot>,
    pub(crate) activation: Activation,
}

impl Affine<'_> {
    /// Scale and shift of a map of so many channels; `None` where they are those of more, as of a flattened map.
    pub(crate) fn of_channels(&self, channels: usize) -> Option<(Vec<f32>, Vec<f32>)> {
        match self.factors {
            Some((scale, shift)) => (scale.len() == channels).then(|| (scale.to_vec(), shift.to_vec())),
            None => Some((vec![1.0; channels], vec![0.0; channels])),
        }
    }
}

impl Slot {
    fn new(dims: Dims, handle: Tensor, values: Arc<Values>, gradient: Gradient) -> Self {
        let lazy = Lazy { dtype: values.dtype(), values: OnceLock::from(values), deferred: Mutex::default() };
        Self { dims, handle, values: Arc::new(lazy), gradient }
    }

    /// A map that is computed when its elements are asked for.
    pub(crate) fn deferred(dims: Dims, dtype: DType, deferred: Arc<dyn Deferred>) -> Result<Self> {
        let lazy = Lazy { dtype, values: OnceLock::new(), deferred: Mutex::new(Some(deferred)) };
        Ok(Self {
            dims,
            handle: untracked(&Device::Cpu)?,
            values: Arc::new(lazy),
            gradient: Gradient::default(),
        })
    }

    /// The elements.
    pub(crate) fn values(&self) -> Result<&Arc<Values>> {
        if let Some(values) = self.values.values.get() {
            return Ok(values);
        }
        let mut deferred = self.values.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(deferred) = deferred.take() {
            let _ = self.values.values.set(Arc::new(deferred.run()?));
        }
        match self.values.values.get() {
            Some(values) => Ok(values),
            None => bail!("a map could not be computed"),
        }
    }

    /// The operator that computes this map, if it has not yet.
    fn pending(&self) -> Option<Arc<dyn Deferred>> {
        self.values.deferred.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, if it is one of that kind. Its result may have been flattened since.
    pub(crate) fn pending_of<D: Deferred>(&self) -> Option<Arc<D>> {
        let pending: Arc<dyn Any + Send + Sync> = self.pending()?;
        pending.downcast().ok()
    }

    /// This map normalised, if it is not computed yet. It stays as it is, for others that may ask.
    pub(crate) fn normalised(&self, norm: &Affine<'_>) -> Result<Option<Self>> {
        let Some(deferred) = self.pending() else { return Ok(None) };
        Ok(match deferred.normalised(norm)? {
            None => None,
            Some(Normalised::Later(deferred)) => Some(Self::deferred(self.dims, self.dtype(), deferred)?),
            Some(Normalised::Now(values)) => {
                Some(Self::new(self.dims, untracked(&Device::Cpu)?, Arc::new(values), Gradient::default()))
            }
        })
    }

    /// A max-pool of this map, which then has `dims`, if it is not computed yet.
    pub(crate) fn pooled(&self, pool: &MaxPool, dims: Dims) -> Result<Option<Self>> {
        let Some(deferred) = self.pending() else { return Ok(None) };
        let values = deferred.pooled(pool)?.map(Arc::new);
        values
            .map(|values| Ok(Self::new(dims, untracked(&Device::Cpu)?, values, Gradient::default())))
            .transpose()
    }

    /// A map that nothing is differentiated through.
    pub(crate) fn constant<T: Element>(dims: Dims, values: Buffer<T>) -> Result<Self> {
        Ok(Self::new(dims, untracked(&Device::Cpu)?, Arc::new(T::into_values(values)), Gradient::default()))
    }

    pub(crate) fn dims(&self) -> Dims {
        self.dims
    }

    pub(crate) fn dtype(&self) -> DType {
        self.values.dtype
    }

    /// The same elements under other dimensions.
    pub(crate) fn reshape(&self, dims: Dims) -> Self {
        Self { dims, ..self.clone() }
    }

    /// From a contiguous tensor [n, h, w, c] on the CPU, in f32 or bf16.
    pub(crate) fn enter(xs: &Tensor) -> Result<Self> {
        fn copy<T: Element>(xs: &Tensor) -> Result<Values> {
            Ok(T::into_values(Buffer::copy_of(&Elements::<T>::of(xs)?)))
        }
        let values = Arc::new(by_element!(xs.dtype(), copy(xs))?);
        let gradient = Gradient::default();
        let handle = match xs.track_op() && !without_gradients() {
            true => enter(xs, {
                let gradient = gradient.clone();
                move |xs| leave(&gradient, xs)
            })?,
            false => untracked(&Device::Cpu)?,
        };
        Ok(Self::new(xs.dims4()?, handle, values, gradient))
    }

    /// An ordinary tensor [n, h, w, c].
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        let exit = Exit { dims: self.dims, values: self.values()?.clone(), gradient: self.gradient.clone() };
        self.handle.apply_op1(exit)
    }
}

thread_local! {
    static WITHOUT_GRADIENTS: RefCell<bool> = const { RefCell::new(false) };
}

pub(crate) fn without_gradients() -> bool {
    WITHOUT_GRADIENTS.with_borrow(|&without| without)
}

/// Runs `f` with operators that prepare no backward, whatever their parameters are: quicker, and activations
/// are freed as soon as they have been used. PyTorch's `no_grad`. Only the CPU kernels heed it.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    scoped(&WITHOUT_GRADIENTS, true, f).0
}

/// Whether nothing is differentiated through an operator on these.
pub(crate) fn is_constant(maps: &[&Slot], params: &[&Tensor]) -> bool {
    let tracked = maps.iter().any(|map| map.handle.track_op()) || params.iter().any(|param| param.track_op());
    !tracked || without_gradients()
}

/// The gradient of a tensor that a slot is made of.
fn leave(gradient: &Gradient, xs: &Tensor) -> Result<Tensor> {
    match gradient.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(Values::F32(values)) => Tensor::from_slice(&values, xs.shape(), &Device::Cpu),
        Some(Values::BF16(values)) => Tensor::from_slice(&values, xs.shape(), &Device::Cpu),
        None => bail!("a second backward through the same feature maps: run forward again before it"),
    }
}

/// Adds to a gradient that other operators may have added to before.
fn accumulate<T: Element>(gradient: &Gradient, new: Buffer<T>) -> Result<()> {
    const CHUNK: usize = 16 * 1024;
    let mut slot = gradient.lock().unwrap_or_else(PoisonError::into_inner);
    match slot.as_mut() {
        None => *slot = Some(T::into_values(new)),
        Some(sum) => {
            let new = T::into_values(new);
            let (Some(sum), new) = (T::of_values_mut(sum), new.slice::<T>()?) else {
                bail!("gradients of one map in two dtypes");
            };
            chunks(sum, CHUNK, |i, sum| add(sum, &new[i * CHUNK..][..sum.len()]));
        }
    }
    Ok(())
}

multiversion! {
    /// Adds as many elements as there are on both sides.
    pub(crate) fn add<T: Element>(sum: &mut [T], xs: &[T]) {
        for (s, &x) in sum.iter_mut().zip(xs) {
            *s = T::from_f32(s.to_f32() + x.to_f32());
        }
    }
}

/// What an operator's backward needs of its forward.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Keeps {
    pub(crate) inputs: bool,
    pub(crate) output: bool,
}

/// What a backward computes from.
pub(crate) struct Backward<'a, T: Element> {
    /// Elements of the maps and of the result; empty unless kept.
    pub(crate) maps: Vec<&'a [T]>,
    pub(crate) output: &'a [T],
    pub(crate) params: Vec<&'a [f32]>,
    /// The gradient of the result, for the kernel to take if it can use the memory.
    pub(crate) gradient: &'a mut Buffer<T>,
    /// The gradients that the maps have from other operators. A kernel that takes one adds it to its own, which is quicker
    /// while that is at hand.
    pub(crate) before: &'a mut [Option<Values>],
    /// Whose gradients are asked for.
    pub(crate) of_map: &'a [bool],
    pub(crate) of_param: &'a [bool],
}

/// Gradients of maps and parameters, `None` where not asked for.
pub(crate) type Gradients<T> = (Vec<Option<Buffer<T>>>, Vec<Option<Vec<f32>>>);

/// An operator on slots: maps, and at most two parameters in f32, to a map.
pub(crate) trait Kernel: Sized + Send + Sync + 'static {
    const NAME: &'static str;

    /// Nothing, unless it says otherwise.
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }

    fn forward<T: Element>(&mut self, maps: &[&[T]], params: &[&[f32]]) -> Buffer<T>;

    /// # Errors
    /// Where it needs other processes, if one of them has ended.
    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>>;

    /// Applies the operator; the result has `dims`.
    fn apply(self, maps: &[&Slot], params: &[&Tensor], dims: Dims) -> Result<Slot> {
        by_element!(maps.first().map_or(DType::F32, |map| map.dtype()), apply(self, maps, params, dims))
    }
}

fn apply<T: Element>(
    mut kernel: impl Kernel,
    maps: &[&Slot],
    params: &[&Tensor],
    dims: Dims,
) -> Result<Slot> {
    let values = {
        let elements = params.iter().map(|param| Elements::<f32>::of(param)).collect::<Result<Vec<_>>>()?;
        let params: Vec<&[f32]> = elements.iter().map(|elements| &**elements).collect();
        let maps = maps.iter().map(|map| map.values()?.slice::<T>()).collect::<Result<Vec<_>>>()?;
        Arc::new(T::into_values(kernel.forward(&maps, &params)))
    };
    let gradient = Gradient::default();
    let of_map: Vec<bool> = maps.iter().map(|map| map.handle.track_op()).collect();
    let of_param: Vec<bool> = params.iter().map(|param| param.track_op()).collect();
    if is_constant(maps, params) {
        return Ok(Slot::new(dims, untracked(&Device::Cpu)?, values, gradient));
    }
    let (name, keeps) = (name_of(&kernel), kernel.keeps());
    let kept = maps.iter().filter(|_| keeps.inputs);
    let saved = Saved {
        maps: kept.map(|map| map.values().cloned()).collect::<Result<_>>()?,
        output: keeps.output.then(|| values.clone()),
    };
    let op = Op {
        kernel,
        saved: Mutex::new(Some(saved)),
        map_gradients: maps.iter().map(|map| map.gradient.clone()).collect(),
        gradient: gradient.clone(),
        of_map,
        of_param,
        dtype: T::DTYPE,
    };
    let handles: Vec<&Tensor> = maps.iter().map(|map| &map.handle).collect();
    let handle = join(name, &handles, params, move |params| op.backward(params))?;
    Ok(Slot::new(dims, handle, values, gradient))
}

fn name_of<K: Kernel>(_: &K) -> &'static str {
    K::NAME
}

struct Saved {
    maps: Vec<Arc<Values>>,
    output: Option<Arc<Values>>,
}

/// An operator in candle's graph.
struct Op<K> {
    kernel: K,
    /// Taken by the backward.
    saved: Mutex<Option<Saved>>,
    map_gradients: Vec<Gradient>,
    gradient: Gradient,
    of_map: Vec<bool>,
    of_param: Vec<bool>,
    dtype: DType,
}

impl<K: Kernel> Op<K> {
    fn backward(&self, params: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        by_element!(self.dtype, backward_of(self, params))
    }
}

fn backward_of<T: Element>(op: &Op<impl Kernel>, params: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
    let saved = op.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
    let gradient = op.gradient.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (Some(saved), Some(mut gradient)) = (saved, gradient) else {
        bail!("a second backward through the same feature maps: run forward again before it");
    };
    let Some(gradient) = T::of_values_mut(&mut gradient) else {
        bail!("a gradient in another dtype than its map");
    };
    let elements = params.iter().map(|param| Elements::<f32>::of(param)).collect::<Result<Vec<_>>>()?;
    let taken = |slot: &Gradient| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut before: Vec<Option<Values>> = op.map_gradients.iter().map(taken).collect();
    let (of_maps, of_params) = op.kernel.backward(Backward {
        maps: saved.maps.iter().map(|map| map.slice::<T>()).collect::<Result<_>>()?,
        output: saved.output.as_ref().map_or(Ok(&[] as &[T]), |output| output.slice::<T>())?,
        params: elements.iter().map(|elements| &**elements).collect(),
        gradient,
        before: &mut before,
        of_map: &op.of_map,
        of_param: &op.of_param,
    })?;
    drop(saved);
    for (slot, before) in op.map_gradients.iter().zip(before) {
        // One map may be there twice.
        if before.is_some() {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = before;
        }
    }
    for (slot, new) in op.map_gradients.iter().zip(of_maps) {
        if let Some(new) = new {
            accumulate(slot, new)?;
        }
    }
    let tensor = |((new, param), wanted): ((Option<Vec<f32>>, &&Tensor), &bool)| match new {
        Some(new) if *wanted => collect(param, Tensor::from_vec(new, param.shape(), &Device::Cpu)?),
        _ => Ok(None),
    };
    of_params.into_iter().zip(params).zip(&op.of_param).map(tensor).collect()
}

/// Takes the gradient of a variable.
type Take = Rc<dyn Fn(&Tensor, Tensor) -> Result<()>>;

thread_local! {
    /// What takes gradients of variables during a backward.
    static TAKE: RefCell<Option<Take>> = const { RefCell::new(None) };
}

/// `loss.backward()`, quicker: gradients of parameters go straight to the result, where candle adds each of
/// them to a tensor of zeros.
///
/// # Errors
/// As `loss.backward()`.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let collected = Rc::new(RefCell::new(HashMap::<TensorId, Tensor>::new()));
    let take = {
        let collected = Rc::clone(&collected);
        move |variable: &Tensor, gradient| {
            let sum = plus(collected.borrow().get(&variable.id()), gradient)?;
            collected.borrow_mut().insert(variable.id(), sum);
            Ok(())
        }
    };
    let mut gradients = backward_into(loss, take)?;
    for (id, gradient) in collected.take() {
        let sum = plus(gradients.get_id(id), gradient)?;
        gradients.insert_id(id, sum);
    }
    Ok(gradients)
}

/// The same, that gives the gradient of a variable to `take` as soon as an operator of this crate has computed it, the
/// last layer's first. Of a variable with several operators each gives a part; what candle's own operators give is in the
/// result. The gradient is the sum of all of these.
///
/// # Errors
/// As `loss.backward()`, and those of `take`.
pub fn backward_into(
    loss: &Tensor,
    take: impl Fn(&Tensor, Tensor) -> Result<()> + 'static,
) -> Result<GradStore> {
    scoped(&TAKE, Some(Rc::new(take)), || loss.backward()).0
}

fn plus(before: Option<&Tensor>, gradient: Tensor) -> Result<Tensor> {
    before.map_or(Ok(gradient.clone()), |before| before + &gradient)
}

/// Hands the gradient of a variable to what takes it; gives it back where nothing does.
pub(crate) fn collect(param: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    match TAKE.with_borrow(|take| take.clone().filter(|_| param.is_variable())) {
        Some(take) => take(param, gradient).map(|()| None),
        None => Ok(Some(gradient)),
    }
}

/// From a slot to candle's graph.
struct Exit {
    dims: Dims,
    values: Arc<Values>,
    gradient: Gradient,
}

impl CustomOp1 for Exit {
    fn name(&self) -> &'static str {
        "exit"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((self.values.storage(), Shape::from(self.dims)))
    }

    fn bwd(&self, handle: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        fn add<T: Element>(slot: &Gradient, gradient: &Tensor) -> Result<()> {
            accumulate::<T>(slot, Buffer::copy_of(&Elements::<T>::of(gradient)?))
        }
        let gradient = gradient.contiguous()?;
        by_element!(gradient.dtype(), add(&self.gradient, &gradient))?;
        of_handle(handle)
    }
}

//! The two element types of the CPU kernels, and access to the slices behind candle tensors.

use crate::pool::{Buffer, Pool};
use crate::simd::multiversion;
use crate::slot::Values;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, WithDType, bail};
use half::bf16;
use std::ops::Deref;

/// A stored element; arithmetic is always in f32.
pub(crate) trait Element: WithDType + Default {
    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
    /// The slice itself where elements are f32 already.
    fn as_f32(xs: &[Self]) -> Option<&[f32]>;
    fn as_f32_mut(xs: &mut [Self]) -> Option<&mut [f32]>;
    fn of_f32_mut(xs: &mut [f32]) -> Option<&mut [Self]>;
    /// The slice itself where elements are bf16.
    fn as_bf16(xs: &[Self]) -> Option<&[bf16]>;
    fn as_bf16_mut(xs: &mut [Self]) -> Option<&mut [bf16]>;
    #[cfg(target_arch = "x86_64")]
    fn of_bf16_mut(xs: &mut [bf16]) -> Option<&mut [Self]>;
    fn slice(storage: &CpuStorage) -> Option<&[Self]>;
    fn of_values(values: &Values) -> Option<&[Self]>;
    fn of_values_mut(values: &mut Values) -> Option<&mut Buffer<Self>>;
    fn into_values(values: Buffer<Self>) -> Values;
    /// Memory of so many floats as elements with arbitrary contents, as many as it has room for.
    fn in_memory(memory: &mut [f32]) -> &mut [Self];
    /// Free buffers.
    fn pool() -> &'static Pool<Self>;
    /// A weight as this element type sees it.
    #[inline(always)]
    fn round(x: f32) -> f32 {
        Self::from_f32(x).to_f32()
    }
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn as_f32(xs: &[Self]) -> Option<&[f32]> {
        Some(xs)
    }
    #[inline(always)]
    fn as_f32_mut(xs: &mut [Self]) -> Option<&mut [f32]> {
        Some(xs)
    }
    #[inline(always)]
    fn of_f32_mut(xs: &mut [f32]) -> Option<&mut [Self]> {
        Some(xs)
    }
    #[inline(always)]
    fn as_bf16(_: &[Self]) -> Option<&[bf16]> {
        None
    }
    #[inline(always)]
    fn as_bf16_mut(_: &mut [Self]) -> Option<&mut [bf16]> {
        None
    }
    #[cfg(target_arch = "x86_64")]
    fn of_bf16_mut(_: &mut [bf16]) -> Option<&mut [Self]> {
        None
    }
    fn slice(storage: &CpuStorage) -> Option<&[Self]> {
        match storage {
            CpuStorage::F32(v) => Some(v),
            _ => None,
        }
    }
    fn of_values(values: &Values) -> Option<&[Self]> {
        match values {
            Values::F32(values) => Some(values),
            _ => None,
        }
    }
    fn of_values_mut(values: &mut Values) -> Option<&mut Buffer<Self>> {
        match values {
            Values::F32(values) => Some(values),
            _ => None,
        }
    }
    fn into_values(values: Buffer<Self>) -> Values {
        Values::F32(values)
    }
    fn in_memory(memory: &mut [f32]) -> &mut [Self] {
        memory
    }
    fn pool() -> &'static Pool<Self> {
        static POOL: Pool<f32> = Pool::new();
        &POOL
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// Round to nearest, ties to even; NaN stays NaN. Branch-free, so that loops over it vectorise.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits((if x.is_nan() { nan } else { rounded }) as u16)
    }
    #[inline(always)]
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
    #[inline(always)]
    fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    #[inline(always)]
    fn of_f32_mut(_: &mut [f32]) -> Option<&mut [Self]> {
        None
    }
    #[inline(always)]
    fn as_bf16(xs: &[Self]) -> Option<&[bf16]> {
        Some(xs)
    }
    #[inline(always)]
    fn as_bf16_mut(xs: &mut [Self]) -> Option<&mut [bf16]> {
        Some(xs)
    }
    #[cfg(target_arch = "x86_64")]
    fn of_bf16_mut(xs: &mut [bf16]) -> Option<&mut [Self]> {
        Some(xs)
    }
    fn slice(storage: &CpuStorage) -> Option<&[Self]> {
        match storage {
            CpuStorage::BF16(v) => Some(v),
            _ => None,
        }
    }
    fn of_values(values: &Values) -> Option<&[Self]> {
        match values {
            Values::BF16(values) => Some(values),
            _ => None,
        }
    }
    fn of_values_mut(values: &mut Values) -> Option<&mut Buffer<Self>> {
        match values {
            Values::BF16(values) => Some(values),
            _ => None,
        }
    }
    fn into_values(values: Buffer<Self>) -> Values {
        Values::BF16(values)
    }
    #[expect(unsafe_code, reason = "one element type's memory as another's")]
    fn in_memory(memory: &mut [f32]) -> &mut [Self] {
        // SAFETY: two bf16 take the bytes of an f32, are aligned wherever it is, and any bits are a value of either.
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), 2 * memory.len()) }
    }
    fn pool() -> &'static Pool<Self> {
        static POOL: Pool<bf16> = Pool::new();
        &POOL
    }
}

/// Widens as many elements as both sides have.
#[inline(always)]
pub(crate) fn load<T: Element>(out: &mut [f32], xs: &[T]) {
    match T::as_f32(xs) {
        // A copy of known length is one call.
        Some(xs) if xs.len() == out.len() => out.copy_from_slice(xs),
        _ => widen(out, xs),
    }
}

multiversion! {
    fn widen<T: Element>(out: &mut [f32], xs: &[T]) {
        for (o, &x) in out.iter_mut().zip(xs) {
            *o = x.to_f32();
        }
    }
}

multiversion! {
    /// Rounds as many elements as both sides have.
    pub(crate) fn store<T: Element>(out: &mut [T], xs: &[f32]) {
        for (o, &x) in out.iter_mut().zip(xs) {
            *o = T::from_f32(x);
        }
    }
}

/// Rounds floats to those that `T` can store.
#[inline(always)]
pub(crate) fn round<T: Element>(xs: &mut [f32]) {
    if T::DTYPE != DType::F32 {
        round_each::<T>(xs);
    }
}

multiversion! {
    fn round_each<T: Element>(xs: &mut [f32]) {
        for x in xs {
            *x = T::round(*x);
        }
    }
}

/// The contiguous elements of one operand of a custom op.
pub(crate) fn operand<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a CPU kernel was given a tensor that is not contiguous");
    };
    match T::slice(storage) {
        Some(all) => Ok(&all[start..end]),
        None => bail!("a CPU kernel was given {:?} where it needs {:?}", storage_dtype(storage), T::DTYPE),
    }
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Read access to the elements of a contiguous CPU tensor.
pub(crate) struct Elements<'a, T> {
    guard: Box<dyn Deref<Target = Storage> + 'a>,
    range: (usize, usize),
    element: std::marker::PhantomData<T>,
}

impl<'a, T: Element> Elements<'a, T> {
    /// # Errors
    /// If the tensor is not on the CPU, not contiguous, or of another dtype.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        let Storage::Cpu(cpu) = &*guard else { bail!("a CPU kernel was given a tensor of another device") };
        operand::<T>(cpu, layout)?;
        let range = layout.contiguous_offsets().unwrap_or_default();
        Ok(Self { guard: Box::new(guard), range, element: std::marker::PhantomData })
    }
}

impl<T: Element> Deref for Elements<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match &**self.guard {
            // `of` has checked the device, the dtype and the range, and the guard keeps them as they were.
            Storage::Cpu(cpu) => T::slice(cpu).map_or(&[], |all| &all[self.range.0..self.range.1]),
            _ => &[],
        }
    }
}

/// Calls a kernel that is generic over [`Element`] with the element type of a dtype.
macro_rules! by_element {
    ($dtype:expr, $f:ident ( $($arg:expr),* $(,)? )) => {
        match $dtype {
            candle_core::DType::F32 => $f::<f32>($($arg),*),
            candle_core::DType::BF16 => $f::<half::bf16>($($arg),*),
            other => candle_core::bail!("the CPU kernels take f32 and bf16, found {other:?}"),
        }
    };
}
pub(crate) use by_element;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_half_does() {
        let specials =
            [0.0, -0.0, 1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::INFINITY, f32::MAX, 1e-40, -3.3e38];
        for x in specials.into_iter().chain((0..10_000).map(|i| f32::from_bits(i * 429_496))) {
            let (ours, theirs) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{x:e}: {ours} and {theirs}");
        }
        assert!(<bf16 as Element>::from_f32(f32::NAN).is_nan());
    }
}

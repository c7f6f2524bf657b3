//! What is done to a result, most often of a convolution, while it is at hand: `activation(y · scale + shift + residual)`.

use crate::activation::{Activation, Function, by_activation};
use crate::element::Element;
use crate::rows::repeated;
use crate::simd::{Vector, multiversion};
use crate::slot::add;

pub(crate) struct Finish<'a, T> {
    /// For each channel, repeated until it fills some registers. Empty where at most a residual is added.
    scale: Vec<f32>,
    shift: Vec<f32>,
    /// Of the result's shape, or empty.
    residual: &'a [T],
    activation: Activation,
}

impl<'a, T: Element> Finish<'a, T> {
    pub(crate) fn nothing() -> Self {
        Self::sum(&[])
    }

    /// Adds a residual, which may be empty.
    pub(super) fn sum(residual: &'a [T]) -> Self {
        Self { scale: Vec::new(), shift: Vec::new(), residual, activation: Activation::Identity }
    }

    /// Adds a bias, if there is one.
    pub(super) fn bias(bias: Option<&[f32]>) -> Self {
        match bias {
            Some(bias) => Self::new(&vec![1.0; bias.len()], bias, &[], Activation::Identity),
            None => Self::nothing(),
        }
    }

    /// `residual` may be empty.
    pub(crate) fn new(scale: &[f32], shift: &[f32], residual: &'a [T], activation: Activation) -> Self {
        Self { scale: repeated(scale), shift: repeated(shift), residual, activation }
    }

    /// To elements of the result, whose first is the `at`-th of all and a pixel's first.
    pub(crate) fn apply(&self, at: usize, ys: &mut [T]) {
        let residual = self.residual(at, ys.len());
        if self.scale.is_empty() {
            return add(ys, residual);
        }
        by_activation!(self.activation, finish::<T>(&self.scale, &self.shift, residual, ys));
    }

    /// The same for rows in which so many elements of each channel lie side by side, where there is no residual.
    pub(super) fn of_channels(&self, channels: usize, elements: usize) -> Option<Finish<'static, f32>> {
        if !self.residual.is_empty() {
            return None;
        }
        let spread =
            |row: &[f32]| row.iter().take(channels).flat_map(|&x| std::iter::repeat_n(x, elements)).collect();
        let (scale, shift) = (spread(&self.scale), spread(&self.shift));
        Some(Finish { scale, shift, residual: &[], activation: self.activation })
    }

    /// What is added to so many elements from the `at`-th on, or nothing.
    pub(super) fn residual(&self, at: usize, len: usize) -> &[T] {
        if self.residual.is_empty() { self.residual } else { &self.residual[at..][..len] }
    }

    /// [`Finish::apply`] for products with rows of `channels`, before they are written; if the activation can be computed there.
    /// A residual is better read from end to end, after them.
    pub(super) fn of_rows(&self, channels: usize, width: usize) -> Option<Rows> {
        let range = match self.activation {
            Activation::Identity => (f32::NEG_INFINITY, f32::INFINITY),
            Activation::Relu => (0.0, f32::INFINITY),
            Activation::Relu6 => (0.0, 6.0),
            _ => return None,
        };
        if self.scale.is_empty() || !self.residual.is_empty() {
            return None;
        }
        // A panel may end beyond the last channel.
        let all = |row: &[f32]| row.iter().copied().cycle().take(channels + width).collect();
        Some(Rows { scale: all(&self.scale), shift: all(&self.shift), range })
    }
}

/// A [`Finish`] of products in registers.
pub(super) struct Rows {
    /// For each channel, and a panel's width more.
    scale: Vec<f32>,
    shift: Vec<f32>,
    range: (f32, f32),
}

impl Rows {
    /// What becomes of columns from `channel` on.
    pub(super) fn end(&self, channel: usize) -> End<'_> {
        End::Finish { scale: &self.scale[channel..], shift: &self.shift[channel..], range: self.range }
    }
}

/// What becomes of a product.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    /// It is written.
    Set,
    /// It is added to what is there.
    Add,
    /// `y · scale + shift` is written, clamped to the range; NaN stays NaN.
    Finish {
        /// For each column, and up to a panel's width.
        scale: &'a [f32],
        shift: &'a [f32],
        range: (f32, f32),
    },
}

impl End<'_> {
    pub(super) fn add_if(add: bool) -> Self {
        if add { Self::Add } else { Self::Set }
    }

    /// Panics unless it serves columns up to `width`.
    pub(super) fn check(&self, width: usize) {
        if let Self::Finish { scale, shift, .. } = self {
            assert!(scale.len() >= width && shift.len() >= width);
        }
    }
}

/// What `end` makes of a row of a product, two registers wide, whose first column is its `first`.
///
/// # Safety
/// `end` serves the columns.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
pub(super) unsafe fn finished<V: Vector>(sums: [V; 2], end: &End<'_>, first: usize) -> [V; 2] {
    let End::Finish { scale, shift, range } = end else { return sums };
    // SAFETY: the caller's promise.
    unsafe {
        // Neither loops nor closures, for the compiler to keep the registers.
        let (scale, shift) = (scale.as_ptr().add(first), shift.as_ptr().add(first));
        let range = (V::splat(range.0), V::splat(range.1));
        let sums = [
            V::load(shift).mul_add(sums[0], V::load(scale)),
            V::load(shift.add(V::LANES)).mul_add(sums[1], V::load(scale.add(V::LANES))),
        ];
        [sums[0].clamp(range.0, range.1), sums[1].clamp(range.0, range.1)]
    }
}

/// Writes the first columns of a row of a product, two registers wide, whose first column is the `first` of `end`.
///
/// # Safety
/// As many floats as `columns` can be read and written at `out`; `end` serves the columns.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
pub(super) unsafe fn write<V: Vector>(
    sums: [V; 2],
    out: *mut f32,
    columns: usize,
    end: &End<'_>,
    first: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = finished(sums, end, first);
        let (add, next) = (matches!(end, End::Add), out.wrapping_add(V::LANES));
        if columns == 2 * V::LANES {
            if add {
                sums = [V::load(out).add(sums[0]), V::load(next).add(sums[1])];
            }
            sums[0].store(out);
            sums[1].store(next);
            return;
        }
        sums[0].store_first(out, columns.min(V::LANES), add);
        if columns > V::LANES {
            sums[1].store_first(next, columns - V::LANES, add);
        }
    }
}

multiversion! {
    /// In rows as long as `scale`, of which the last may end early.
    fn finish<T: Element, F: Function>(f: F, scale: &[f32], shift: &[f32], residual: &[T], ys: &mut [T]) {
        let c = scale.len();
        if residual.is_empty() {
            for y in ys.chunks_mut(c) {
                for ((y, &a), &b) in y.iter_mut().zip(scale).zip(shift) {
                    *y = T::from_f32(f.value(y.to_f32() * a + b));
                }
            }
            return;
        }
        for (y, r) in ys.chunks_mut(c).zip(residual.chunks(c)) {
            for (((y, &r), &a), &b) in y.iter_mut().zip(r).zip(scale).zip(shift) {
                *y = T::from_f32(f.value(y.to_f32() * a + b + r.to_f32()));
            }
        }
    }
}

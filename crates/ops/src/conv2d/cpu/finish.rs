//! What is done to the result of a convolution while it is at hand: `activation(y · scale + shift + residual)`.

use crate::activation::{Activation, Function, by_activation};
use crate::element::Element;
use crate::simd::{Vector, multiversion};

pub(super) struct Finish<'a, T> {
    /// For each channel, repeated until it fills some registers. Empty where nothing is done.
    scale: Vec<f32>,
    shift: Vec<f32>,
    /// Of the result's shape, or empty.
    residual: &'a [T],
    activation: Activation,
}

impl<'a, T: Element> Finish<'a, T> {
    pub(super) fn nothing() -> Self {
        Self { scale: Vec::new(), shift: Vec::new(), residual: &[], activation: Activation::Identity }
    }

    /// Adds a bias, if there is one.
    pub(super) fn bias(bias: Option<&[f32]>) -> Self {
        match bias {
            Some(bias) => Self::new(&vec![1.0; bias.len()], bias, &[], Activation::Identity),
            None => Self::nothing(),
        }
    }

    /// `residual` may be empty.
    pub(super) fn new(scale: &[f32], shift: &[f32], residual: &'a [T], activation: Activation) -> Self {
        Self { scale: repeated(scale), shift: repeated(shift), residual, activation }
    }

    /// To elements of the result, whose first is the `at`-th of all and a pixel's first.
    pub(super) fn apply(&self, at: usize, ys: &mut [T]) {
        if self.scale.is_empty() {
            return;
        }
        let residual =
            if self.residual.is_empty() { self.residual } else { &self.residual[at..][..ys.len()] };
        by_activation!(self.activation, finish::<T>(&self.scale, &self.shift, residual, ys));
    }

    /// The same for products in f32 with rows of `channels`, before they are written; if the activation can be
    /// computed there.
    pub(super) fn of_rows(&self, channels: usize, width: usize) -> Option<Rows<'a>> {
        let range = match self.activation {
            Activation::Identity => (f32::NEG_INFINITY, f32::INFINITY),
            Activation::Relu => (0.0, f32::INFINITY),
            Activation::Relu6 => (0.0, 6.0),
            _ => return None,
        };
        if self.scale.is_empty() {
            return None;
        }
        // A panel may end beyond the last channel.
        let all = |row: &[f32]| row.iter().copied().cycle().take(channels + width).collect();
        let (scale, shift) = (all(&self.scale), all(&self.shift));
        Some(Rows { scale, shift, residual: T::as_f32(self.residual)?, range })
    }
}

/// A [`Finish`] of products in f32.
pub(super) struct Rows<'a> {
    /// For each channel, and a panel's width more.
    scale: Vec<f32>,
    shift: Vec<f32>,
    residual: &'a [f32],
    range: (f32, f32),
}

impl Rows<'_> {
    /// That of columns from `channel` on, in rows of which the first is at `at` of the result.
    pub(super) fn columns(&self, at: usize, channel: usize) -> Affine<'_> {
        Affine {
            scale: &self.scale[channel..],
            shift: &self.shift[channel..],
            residual: self.residual.get(at + channel..).unwrap_or(&[]),
            range: self.range,
        }
    }
}

/// `clamp(y · scale + shift + residual)` of the rows of a product. NaN stays NaN.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    /// For each column, and up to a panel's width.
    pub(super) scale: &'a [f32],
    pub(super) shift: &'a [f32],
    /// Rows as far from each other as those of the result, or empty.
    pub(super) residual: &'a [f32],
    pub(super) range: (f32, f32),
}

/// What becomes of a product.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    /// It is written.
    Set,
    /// It is added to what is there.
    Add,
    /// It is finished, and written.
    Finish(Affine<'a>),
}

impl End<'_> {
    pub(super) fn add_if(add: bool) -> Self {
        if add { Self::Add } else { Self::Set }
    }

    /// Panics unless it serves `rows` rows, `stride` apart, of `columns` columns in a panel of `width`.
    pub(super) fn check(&self, rows: usize, stride: usize, columns: usize, width: usize) {
        if let Self::Finish(Affine { scale, shift, residual, .. }) = self {
            assert!(scale.len() >= width && shift.len() >= width);
            assert!(residual.is_empty() || (rows - 1) * stride + columns <= residual.len());
        }
    }

    /// That of rows from the one on which starts at `at`.
    pub(super) fn from(&self, at: usize) -> Self {
        match self {
            Self::Finish(affine) => {
                Self::Finish(Affine { residual: affine.residual.get(at..).unwrap_or(&[]), ..*affine })
            }
            other => *other,
        }
    }
}

/// Writes the first columns of a row of a product, two registers wide; `at` is its place in the residual, and
/// that of its first column among those of the factors.
///
/// # Safety
/// As many floats as `columns` can be read and written at `out`; `end` serves the row.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
pub(super) unsafe fn write<V: Vector>(
    mut sums: [V; 2],
    out: *mut f32,
    columns: usize,
    end: &End<'_>,
    at: (usize, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        if let End::Finish(affine) = end {
            sums = finished(sums, affine, at, columns);
        }
        let add = matches!(end, End::Add);
        if columns == 2 * V::LANES {
            // Without a loop, for the compiler to keep the registers.
            let next = out.add(V::LANES);
            if add {
                sums = [V::load(out).add(sums[0]), V::load(next).add(sums[1])];
            }
            sums[0].store(out);
            sums[1].store(next);
            return;
        }
        let mut row = [0f32; WIDEST];
        sums[0].store(row.as_mut_ptr());
        sums[1].store(row.as_mut_ptr().add(V::LANES));
        for (j, &sum) in row[..columns].iter().enumerate() {
            let out = &mut *out.add(j);
            *out = if add { *out + sum } else { sum };
        }
    }
}

/// Floats in two registers of the widest kind.
const WIDEST: usize = 32;

/// # Safety
/// That of [`write`].
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn finished<V: Vector>(
    sums: [V; 2],
    affine: &Affine<'_>,
    (at, first): (usize, usize),
    columns: usize,
) -> [V; 2] {
    let (mut row, mut residual) = ([0f32; WIDEST], std::ptr::null());
    if !affine.residual.is_empty() {
        residual = affine.residual.as_ptr().wrapping_add(at);
        if columns < 2 * V::LANES {
            row[..columns].copy_from_slice(&affine.residual[at..at + columns]);
            residual = row.as_ptr();
        }
    }
    let (scale, shift) =
        (affine.scale.as_ptr().wrapping_add(first), affine.shift.as_ptr().wrapping_add(first));
    let range = (V::splat(affine.range.0), V::splat(affine.range.1));
    // SAFETY: the caller's promise.
    unsafe {
        // Neither loop nor closure, for the same reason.
        let mut a = V::load(shift).mul_add(sums[0], V::load(scale));
        let mut b = V::load(shift.add(V::LANES)).mul_add(sums[1], V::load(scale.add(V::LANES)));
        if !residual.is_null() {
            a = a.add(V::load(residual));
            b = b.add(V::load(residual.add(V::LANES)));
        }
        [a.clamp(range.0, range.1), b.clamp(range.0, range.1)]
    }
}

/// A row repeated until it fills some registers, for loops that would be short.
pub(super) fn repeated(row: &[f32]) -> Vec<f32> {
    row.repeat(64 / row.len().clamp(1, 64))
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

//! The transforms of tiles and filters, along both axes, on a register of channels at a time.

use super::Store;
use super::filtering::{Filtering, Line, SIDE, line, no_line};
use crate::element::Element;
use crate::simd::{Vector, prefetch, vectorised};
use candle_core::DType;
use std::marker::PhantomData;

vectorised! {
    /// G g Gᵀ of filters: `taps` is [tap][lane] with any multiple of sixteen lanes; `out[position]` has the lanes
    /// from `at` on.
    pub(super) fn to_filters<V; F: Filtering>(taps: &[f32], out: &mut [&mut [f32]], at: usize) {
        let width = taps.len() / 9;
        for lane in (0..width).step_by(V::LANES) {
            let tap = |y: usize, x: usize| V::first_of(&taps[(y * 3 + x) * width + lane..]);
            let mut columns = [no_line::<V>(); 3];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = F::filter([tap(0, x), tap(1, x), tap(2, x)]);
            }
            for y in 0..F::INPUTS {
                let row = F::filter([columns[0][y], columns[1][y], columns[2][y]]);
                for (x, value) in row.into_iter().take(F::INPUTS).enumerate() {
                    value.write_to(&mut out[y * F::INPUTS + x][at + lane..at + width]);
                }
            }
        }
    }
}

vectorised! {
    /// Gᵀ u G of the gradients of transformed filters, laid out as in [`to_filters`].
    pub(super) fn from_filter_gradients<V; F: Filtering>(positions: &[&[f32]], at: usize, taps: &mut [f32]) {
        let width = taps.len() / 9;
        for lane in (0..width).step_by(V::LANES) {
            let zero = V::splat(0.0);
            let columns = line!([zero; 3]; x < F::INPUTS => {
                let value = |y: usize| &positions[y * F::INPUTS + x][at + lane..at + width];
                F::filter_gradient(line!(zero; y < F::INPUTS => V::first_of(value(y))))
            });
            for y in 0..3 {
                let row = F::filter_gradient(line!(zero; x < F::INPUTS => columns[x][y]));
                for (x, value) in row.into_iter().enumerate() {
                    value.write_to(&mut taps[(y * 3 + x) * width..][lane..width]);
                }
            }
        }
    }
}

/// An image [height, width, channels] and the pixel at which a tile starts, which may lie outside.
#[derive(Clone, Copy)]
pub(super) struct Window<'a, T> {
    image: &'a [T],
    size: (usize, usize),
    corner: (isize, isize),
    /// What pixels outside the image hold: zeros, a pixel's channels of them.
    outside: &'a [T],
}

impl<'a, T: Element> Window<'a, T> {
    pub(super) fn new(
        image: &'a [T],
        size: (usize, usize),
        corner: (isize, isize),
        outside: &'a [T],
    ) -> Self {
        assert!(image.len() >= size.0 * size.1 * outside.len());
        Self { image, size, corner, outside }
    }

    /// Where the pixels of a tile of `side` × `side` are if all of them lie inside.
    #[inline(always)]
    fn inside(&self, side: usize) -> Option<Inside<T>> {
        let ((h, w), channels) = (self.size, self.outside.len());
        let (y, x) = (usize::try_from(self.corner.0).ok()?, usize::try_from(self.corner.1).ok()?);
        let inside = y + side <= h && x + side <= w;
        inside.then(|| Inside {
            first: self.image[(y * w + x) * channels..].as_ptr(),
            row: w * channels,
            channels,
        })
    }

    /// Where the channels of each pixel of a tile of `side` × `side` are.
    #[inline(always)]
    fn pixels(&self, side: usize) -> [[*const T; SIDE]; SIDE] {
        let ((h, w), channels) = (self.size, self.outside.len());
        let mut pixels = [[self.outside.as_ptr(); SIDE]; SIDE];
        for (y, row) in pixels.iter_mut().take(side).enumerate() {
            // Those before the first are beyond the last when they count up from zero.
            let at_y = self.corner.0.wrapping_add_unsigned(y) as usize;
            let first = self.image.as_ptr().wrapping_add(at_y.wrapping_mul(w).wrapping_mul(channels));
            for (x, pixel) in row.iter_mut().take(side).enumerate() {
                let at_x = self.corner.1.wrapping_add_unsigned(x) as usize;
                let inside = (at_y < h) & (at_x < w);
                let at = first.wrapping_add(at_x.wrapping_mul(channels));
                *pixel = if inside { at } else { *pixel };
            }
        }
        pixels
    }

    /// Brings the pixels nearer that the tile below, in the next image for the last one, sees and this one does not.
    #[inline(always)]
    fn prefetch_below(&self, side: usize, step: usize) {
        let channels = self.outside.len();
        for y in side..side + step {
            let at = (self.corner.0 + y as isize) * self.size.1 as isize + self.corner.1 + 1;
            let row = self.image.as_ptr().wrapping_offset(at * channels as isize);
            prefetch(row, step * channels);
        }
    }
}

/// Where the channels of each pixel of a tile are.
trait Pixels<T> {
    fn at(&self, y: usize, x: usize) -> *const T;
}

impl<T> Pixels<T> for [[*const T; SIDE]; SIDE] {
    #[inline(always)]
    fn at(&self, y: usize, x: usize) -> *const T {
        self[y][x]
    }
}

/// A tile without a pixel outside: most are.
struct Inside<T> {
    first: *const T,
    row: usize,
    channels: usize,
}

impl<T> Pixels<T> for Inside<T> {
    #[inline(always)]
    fn at(&self, y: usize, x: usize) -> *const T {
        self.first.wrapping_add(y * self.row + x * self.channels)
    }
}

/// The part of every block of every position that takes some tiles: slices of one length, in the order
/// [position][block].
pub(super) struct Places<'a> {
    starts: Vec<*mut f32>,
    len: usize,
    slices: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "they stand for slices")]
// SAFETY: the pointers are those of slices that nothing else refers to.
unsafe impl Send for Places<'_> {}

impl<'a> Places<'a> {
    pub(super) fn new(slices: impl IntoIterator<Item = &'a mut [f32]>) -> Self {
        let (mut len, mut starts) = (usize::MAX, Vec::new());
        for slice in slices {
            len = len.min(slice.len());
            starts.push(slice.as_mut_ptr());
        }
        Self { starts, len, slices: PhantomData }
    }

    /// Those of all tiles of a store.
    pub(super) fn of(store: Store, data: &'a mut [f32]) -> Self {
        let positions = data.chunks_exact_mut(store.position_len());
        Self::new(positions.flat_map(|all| all.chunks_exact_mut(store.block_len()).take(store.blocks())))
    }
}

/// The first `n` elements at a place, all that a register holds if `WHOLE`, and zeros after them.
///
/// # Safety
/// They can be read.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn fetch<V: Vector, T: Element, const WHOLE: bool>(at: *const T, n: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        if !WHOLE {
            return V::first_of(std::slice::from_raw_parts(at, n));
        }
        if T::DTYPE == DType::BF16 { V::widen(at.cast()) } else { V::load(at.cast()) }
    }
}

/// Writes the first `n` lanes, all of them if `WHOLE`, rounded to the elements' type.
///
/// # Safety
/// They can be written.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
unsafe fn put<V: Vector, T: Element, const WHOLE: bool>(value: V, at: *mut T, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if !WHOLE {
            value.write_to(std::slice::from_raw_parts_mut(at, n));
        } else if T::DTYPE == DType::BF16 {
            value.narrow(at.cast());
        } else {
            value.store(at.cast());
        }
    }
}

/// Calls a function for each register of channels: `$ch` is the first of `$n`, `WHOLE` whether they fill it.
macro_rules! for_registers {
    ($v:ident, $channels:expr, ($ch:ident, $n:ident) => $function:ident::<[$($generic:ty),*], WHOLE>($($arg:expr),*)) => {
        let channels = $channels;
        for $ch in (0..channels).step_by($v::LANES) {
            let $n = $v::LANES.min(channels - $ch);
            #[expect(unsafe_code, reason = "pointers")]
            // SAFETY: the assertions before.
            unsafe {
                if $n == $v::LANES {
                    $function::<$v, $($generic,)* true>($($arg),*);
                } else {
                    $function::<$v, $($generic,)* false>($($arg),*);
                }
            }
        }
    };
}

/// A transform of pixels to positions: Bᵀ d B of a tile of inputs, or A dy Aᵀ of one of output gradients.
trait OfPixels<F: Filtering> {
    /// Pixels along a side of a tile.
    const PIXELS: usize;
    fn along<V: Vector>(line: Line<V>) -> Line<V>;
}

struct OfInputs;

impl<F: Filtering> OfPixels<F> for OfInputs {
    const PIXELS: usize = F::INPUTS;
    #[inline(always)]
    fn along<V: Vector>(line: Line<V>) -> Line<V> {
        F::input(line)
    }
}

struct OfOutputGradients;

impl<F: Filtering> OfPixels<F> for OfOutputGradients {
    const PIXELS: usize = F::OUTPUTS;
    #[inline(always)]
    fn along<V: Vector>(line: Line<V>) -> Line<V> {
        F::output_gradient(line)
    }
}

/// A register of channels of a tile: from its pixels, `ch` elements on, to each of its positions, `at` elements on, of the
/// block whose places start at `out` and come every `blocks`.
///
/// # Safety
/// `n` elements can be read and written there.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
#[expect(clippy::needless_range_loop, reason = "it indexes what the columns hold")]
unsafe fn to_positions<
    V: Vector,
    T: Element,
    F: Filtering,
    P: OfPixels<F>,
    S: Pixels<T>,
    const WHOLE: bool,
>(
    pixels: &S,
    ch: usize,
    n: usize,
    out: *const *mut f32,
    blocks: usize,
    at: usize,
) {
    let zero = V::splat(0.0);
    // SAFETY: the caller's promise.
    unsafe {
        let columns = line!([zero; SIDE]; x < P::PIXELS => {
            P::along(line!(zero; y < P::PIXELS => fetch::<V, T, WHOLE>(pixels.at(y, x).add(ch), n)))
        });
        for y in 0..F::INPUTS {
            let row = P::along(line!(zero; x < P::PIXELS => columns[x][y]));
            for (x, value) in row.into_iter().take(F::INPUTS).enumerate() {
                let out = *out.add((y * F::INPUTS + x) * blocks);
                put::<V, f32, WHOLE>(value, out.add(at), n);
            }
        }
    }
}

/// All channels of a tile.
#[inline(always)]
fn tile_to_positions<V: Vector, T: Element, F: Filtering, P: OfPixels<F>>(
    window: &Window<'_, T>,
    out: &mut Places<'_>,
    store: Store,
    tile: usize,
) {
    window.prefetch_below(P::PIXELS, F::OUTPUTS);
    // A table pays where each of its entries is used for several registers.
    let few = window.outside.len() <= 2 * V::LANES;
    match window.inside(P::PIXELS).filter(|_| few) {
        Some(inside) => pixels_to_positions::<V, T, F, P, _>(&inside, window, out, store, tile),
        None => pixels_to_positions::<V, T, F, P, _>(&window.pixels(P::PIXELS), window, out, store, tile),
    }
}

#[inline(always)]
fn pixels_to_positions<V: Vector, T: Element, F: Filtering, P: OfPixels<F>, S: Pixels<T>>(
    pixels: &S,
    window: &Window<'_, T>,
    out: &mut Places<'_>,
    store: Store,
    tile: usize,
) {
    let (blocks, channels) = (store.blocks(), store.channels);
    assert!(window.outside.len() == channels && out.starts.len() >= F::INPUTS * F::INPUTS * blocks);
    assert!((tile + 1) * store.block <= out.len);
    let starts = out.starts.as_ptr();
    let (mut block, mut first) = (0, 0);
    for_registers!(V, channels, (ch, n) => to_positions::<[T, F, P, S], WHOLE>(pixels, ch, n, {
        if ch == first + store.block {
            (block, first) = (block + 1, ch);
        }
        starts.add(block)
    }, blocks, tile * store.block + ch - first));
}

vectorised! {
    /// Bᵀ d B of a tile of inputs, the tile `tile` of the places.
    pub(super) fn input_tile<V; T: Element, F: Filtering>(window: Window<'_, T>, out: &mut Places<'_>, store: Store, tile: usize) {
        tile_to_positions::<V, T, F, OfInputs>(&window, out, store, tile);
    }
}

vectorised! {
    /// A dy Aᵀ of a tile of output gradients, placed as by [`input_tile`].
    pub(super) fn output_gradient_tile<V; T: Element, F: Filtering>(
        window: Window<'_, T>, out: &mut Places<'_>, store: Store, tile: usize
    ) {
        tile_to_positions::<V, T, F, OfOutputGradients>(&window, out, store, tile);
    }
}

/// Where a tile of outputs goes: rows of `width` pixels, as many rows and columns as lie inside.
pub(super) struct Target<'a, T> {
    pub(super) rows: &'a mut [T],
    pub(super) width: usize,
    pub(super) column: usize,
    pub(super) size: (usize, usize),
}

/// A register of channels of a tile: from the products of its positions, `position_len` apart, to pixels of `channels`
/// elements in rows of `width`.
///
/// # Safety
/// `n` elements can be written to so many rows and columns as `size` says, and a register can be read at each position.
#[inline(always)]
#[expect(unsafe_code, reason = "pointers")]
#[expect(clippy::needless_range_loop, reason = "it indexes what the columns hold")]
unsafe fn to_pixels<V: Vector, T: Element, F: Filtering, const WHOLE: bool>(
    products: *const f32,
    position_len: usize,
    n: usize,
    out: *mut T,
    (row_len, channels): (usize, usize),
    size: (usize, usize),
) {
    let zero = V::splat(0.0);
    // SAFETY: the caller's promise.
    unsafe {
        let columns = line!([zero; SIDE]; x < F::INPUTS => {
            F::output(line!(zero; y < F::INPUTS => V::load(products.add((y * F::INPUTS + x) * position_len))))
        });
        for y in 0..F::OUTPUTS {
            if y == size.0 {
                return;
            }
            let row = F::output(line!(zero; x < F::INPUTS => columns[x][y]));
            for (x, value) in row.into_iter().take(F::OUTPUTS).enumerate() {
                if x < size.1 {
                    put::<V, T, WHOLE>(value, out.add(y * row_len + x * channels), n);
                }
            }
        }
    }
}

vectorised! {
    /// Aᵀ m A of the products of the tile `tile`.
    pub(super) fn output_tile<V; T: Element, F: Filtering>(products: &[f32], store: Store, tile: usize, target: Target<'_, T>) {
        let (channels, position_len, size) = (store.channels, store.position_len(), target.size);
        let row_len = target.width * channels;
        assert!(size.0 > 0 && target.column + size.1 <= target.width && size.0 * row_len <= target.rows.len());
        // Products lie in whole panels, so that a register of them can be read.
        assert!(store.block.is_multiple_of(V::LANES) && tile < store.tiles);
        assert!(F::INPUTS * F::INPUTS * position_len <= products.len());
        let (from, out) = (products.as_ptr(), target.rows[target.column * channels..].as_mut_ptr());
        for_registers!(V, channels, (ch, n) => to_pixels::<[T, F], WHOLE>(
            from.add(store.at(tile, ch)), position_len, n, out.add(ch), (row_len, channels), size
        ));
    }
}

//! Operators that move feature maps around: sums, concatenation, shuffles, flattening. Candle's own
//! operations are right for these and serve as the reference.

mod concat;
#[cfg(any(test, feature = "cuda"))]
mod cuda;

use crate::FeatureMap;
use crate::element::Element;
use crate::feature_map::View;
use crate::parallel::{chunks, task_items};
use crate::pool::{Buffer, take};
use crate::simd::multiversion;
use crate::slot::{Backward, Gradients, Kernel, Slot, is_constant};
use crate::trace::Step;
use candle_core::{Result, Tensor, bail};

/// The sum of two maps of equal dimensions: a residual connection.
///
/// # Errors
/// If the dimensions differ.
pub fn add(a: &FeatureMap, b: &FeatureMap) -> Result<FeatureMap> {
    add_scaled(a, b, 1.0)
}

/// `a + factor · b`: a residual connection whose residual is scaled down (arXiv 1602.07261, section 3.3).
///
/// # Errors
/// If the dimensions differ.
pub fn add_scaled(a: &FeatureMap, b: &FeatureMap, factor: f64) -> Result<FeatureMap> {
    if a.dims() != b.dims() {
        bail!("add: maps of {:?} and {:?} (n, h, w, c)", a.dims(), b.dims());
    }
    #[cfg(any(test, feature = "cuda"))]
    if let (Some(a), Some(b)) = (a.gpu()?, b.gpu()?)
        && a.values().dtype() == b.values().dtype()
    {
        return Ok(FeatureMap::on_gpu(cuda::add_scaled(&a, &b, factor as f32)?));
    }
    match (a.view()?, b.view()?) {
        (View::Reference(a), View::Reference(b)) if factor == 1.0 => Ok(FeatureMap::stored((a + b)?)),
        (View::Reference(a), View::Reference(b)) => Ok(FeatureMap::stored((a + b.affine(factor, 0.0)?)?)),
        (View::Cpu(a), View::Cpu(b)) => {
            let sum = Sum { factor: factor as f32 };
            Ok(FeatureMap::slot(sum.apply(&[&a, &b], &[], a.dims())?))
        }
        (View::Traced(a), View::Traced(b)) => {
            Ok(FeatureMap::from_traced(a.clone().join(std::iter::once(b)).step(a.dims, Step::new("add"))))
        }
        _ => bail!("add: maps of different kinds: traced or not, or of two dtypes or devices"),
    }
}

/// The channels of all maps, one after the other.
///
/// # Errors
/// If there is no map, or images or pixels differ in number.
pub fn concat(maps: &[&FeatureMap]) -> Result<FeatureMap> {
    let Some(first) = maps.first() else { bail!("concat: no maps") };
    let (n, h, w, _) = first.dims();
    let mut channels = 0;
    for map in maps {
        let (n2, h2, w2, c2) = map.dims();
        if (n2, h2, w2) != (n, h, w) {
            bail!("concat: maps of {:?} and {:?} (n, h, w, c)", first.dims(), map.dims());
        }
        channels += c2;
    }
    #[cfg(any(test, feature = "cuda"))]
    if let Some(gpus) = maps.iter().map(|map| map.gpu()).collect::<Result<Option<Vec<_>>>>()?
        && gpus.iter().all(|map| map.values().dtype() == gpus[0].values().dtype())
    {
        let mut at = 0;
        let stretch = |(i, map): (usize, &crate::cuda::Map)| {
            let len = map.dims().3;
            at += len;
            cuda::Move::stretch(i, 0, at - len, len)
        };
        let moves = gpus.iter().enumerate().map(stretch).collect();
        return Ok(FeatureMap::on_gpu(cuda::moved(&gpus.iter().collect::<Vec<_>>(), channels, moves)?));
    }
    let (mut stored, mut slots, mut traced) = (Vec::new(), Vec::new(), Vec::new());
    for map in maps {
        match map.view()? {
            View::Reference(xs) => stored.push(xs),
            View::Cpu(xs) => slots.push(xs),
            View::Traced(t) => traced.push(t),
        }
    }
    if slots.len() == maps.len() {
        let slots: Vec<&Slot> = slots.iter().collect();
        if is_constant(&slots, &[]) && slots.iter().all(|slot| slot.dtype() == slots[0].dtype()) {
            return Ok(FeatureMap::slot(concat::concat(&slots)?));
        }
        let channels: Vec<usize> = slots.iter().map(|slot| slot.dims().3).collect();
        return Ok(FeatureMap::slot(Stretches::concat(&channels).of(&slots)?));
    }
    match traced.split_first() {
        _ if stored.len() == maps.len() => Ok(FeatureMap::stored(Tensor::cat(&stored, 3)?.contiguous()?)),
        Some((t, rest)) if traced.len() == maps.len() => {
            let joined = (*t).clone().join(rest.iter().copied());
            Ok(FeatureMap::from_traced(joined.step((n, h, w, channels), Step::new("concat"))))
        }
        _ => bail!("concat: maps of different kinds: traced or not, or of two dtypes or devices"),
    }
}

/// Cuts the channels into maps of the given numbers of channels.
///
/// # Errors
/// If the numbers do not add up to the map's channels.
pub fn split(xs: &FeatureMap, channels: &[usize]) -> Result<Vec<FeatureMap>> {
    let (n, h, w, c) = xs.dims();
    if channels.iter().sum::<usize>() != c {
        bail!("split: {channels:?} does not add up to {c} channels");
    }
    let mut start = 0;
    channels
        .iter()
        .map(|&len| {
            let first = start;
            start += len;
            #[cfg(any(test, feature = "cuda"))]
            if let Some(xs) = xs.gpu()? {
                let moves = vec![cuda::Move::stretch(0, first, 0, len)];
                return Ok(FeatureMap::on_gpu(cuda::moved(&[&xs], len, moves)?));
            }
            match xs.view()? {
                View::Reference(xs) => Ok(FeatureMap::stored(xs.narrow(3, first, len)?.contiguous()?)),
                View::Cpu(xs) => Ok(FeatureMap::slot(Stretches::part(c, first, len).of(&[&xs])?)),
                View::Traced(t) => Ok(FeatureMap::traced_step(t, (n, h, w, len), Step::new("split"))),
            }
        })
        .collect()
}

/// Zero channels in front of and behind the map's own.
///
/// # Errors
/// If the device is out of memory.
pub fn pad_channels(xs: &FeatureMap, before: usize, after: usize) -> Result<FeatureMap> {
    let (n, h, w, c) = xs.dims();
    #[cfg(any(test, feature = "cuda"))]
    if let Some(xs) = xs.gpu()? {
        let moves = vec![cuda::Move::stretch(0, 0, before, c)];
        return Ok(FeatureMap::on_gpu(cuda::moved(&[&xs], before + c + after, moves)?));
    }
    match xs.view()? {
        View::Reference(xs) => Ok(FeatureMap::stored(xs.pad_with_zeros(3, before, after)?.contiguous()?)),
        View::Cpu(xs) => Ok(FeatureMap::slot(Stretches::padded(c, before, after).of(&[&xs])?)),
        View::Traced(t) => {
            Ok(FeatureMap::traced_step(t, (n, h, w, before + c + after), Step::new("pad_channels")))
        }
    }
}

/// Interleaves the channels of `groups` groups (ShuffleNet, arXiv 1707.01083, figure 1): channel `i` of group
/// `g` becomes channel `i · groups + g`.
///
/// # Errors
/// If the groups do not divide the channels.
pub fn channel_shuffle(xs: &FeatureMap, groups: usize) -> Result<FeatureMap> {
    let (n, h, w, c) = xs.dims();
    if groups == 0 || c % groups != 0 {
        bail!("channel_shuffle: {groups} groups do not divide {c} channels");
    }
    #[cfg(any(test, feature = "cuda"))]
    if let Some(xs) = xs.gpu()? {
        let len = c / groups;
        let of_group = |group| {
            let to = cuda::Channels { first: group, step: groups };
            cuda::Move { map: 0, from: cuda::Channels { first: group * len, step: 1 }, to, len }
        };
        return Ok(FeatureMap::on_gpu(cuda::moved(&[&xs], c, (0..groups).map(of_group).collect())?));
    }
    match xs.view()? {
        View::Cpu(xs) => {
            let shuffled = Transposed { rows: groups, columns: c / groups };
            Ok(FeatureMap::slot(shuffled.apply(&[&xs], &[], xs.dims())?))
        }
        View::Reference(xs) => {
            let grouped = xs.reshape((n * h * w, groups, c / groups))?;
            let shuffled = grouped.transpose(1, 2)?.contiguous()?;
            Ok(FeatureMap::stored(shuffled.reshape((n, h, w, c))?))
        }
        View::Traced(t) => Ok(FeatureMap::traced_step(t, t.dims, Step::new("channel_shuffle"))),
    }
}

/// The channels of two maps in turn, `a`'s first, as so many maps with equal numbers of them: what [`channel_shuffle`]
/// makes of both maps in two groups, cut by [`split`], without writing either in between.
///
/// # Errors
/// If the dimensions differ, or `parts` does not divide the channels of a map.
pub fn interleave(a: &FeatureMap, b: &FeatureMap, parts: usize) -> Result<Vec<FeatureMap>> {
    let (n, h, w, c) = a.dims();
    if b.dims() != a.dims() {
        bail!("interleave: maps of {:?} and {:?} (n, h, w, c)", a.dims(), b.dims());
    }
    if parts == 0 || c % parts != 0 {
        bail!("interleave: maps of {c} channels are not cut into {parts}");
    }
    let composed = || split(&channel_shuffle(&concat(&[a, b])?, 2)?, &vec![2 * c / parts; parts]);
    #[cfg(any(test, feature = "cuda"))]
    if a.gpu()?.is_some() {
        return composed();
    }
    let (View::Cpu(a), View::Cpu(b)) = (a.view()?, b.view()?) else { return composed() };
    let part = |i| {
        let interleaved = Interleaved { channels: c, first: c / parts * i, len: c / parts };
        Ok(FeatureMap::slot(interleaved.apply(&[&a, &b], &[], (n, h, w, 2 * c / parts))?))
    };
    (0..parts).map(part).collect()
}

/// All elements of an image as the channels of a single pixel, in PyTorch's order (channel, row, column).
///
/// # Errors
/// If candle's permutation fails.
pub fn flatten(xs: &FeatureMap) -> Result<FeatureMap> {
    let (n, h, w, c) = xs.dims();
    let dims = (n, 1, 1, c * h * w);
    #[cfg(any(test, feature = "cuda"))]
    if let Some(xs) = xs.gpu()? {
        let flat = if c == 1 || h * w == 1 { xs.reshape(dims)? } else { cuda::transposed(&xs, dims)? };
        return Ok(FeatureMap::on_gpu(flat));
    }
    match xs.view()? {
        View::Reference(xs) => Ok(FeatureMap::stored(xs.permute((0, 3, 1, 2))?.contiguous()?.reshape(dims)?)),
        View::Cpu(xs) if c == 1 || h * w == 1 => Ok(FeatureMap::slot(xs.reshape(dims))),
        View::Cpu(xs) => {
            Ok(FeatureMap::slot(Transposed { rows: h * w, columns: c }.apply(&[&xs], &[], dims)?))
        }
        View::Traced(t) => {
            // A flat feature sees what the whole map sees.
            let window = crate::Window2d { kernel: (h, w), ..crate::Window2d::square(1, 1) };
            let step = Step { window: Some(window), ..Step::new("flatten") };
            Ok(FeatureMap::traced_step(t, (n, 1, 1, c * h * w), step))
        }
    }
}

/// Pixels per task, at most.
const PIXELS: usize = 512;

/// The first map and so many times the second.
struct Sum {
    factor: f32,
}

impl Kernel for Sum {
    const NAME: &'static str = "add";

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        const CHUNK: usize = 16 * 1024;
        let mut ys = take::<T>(maps[0].len());
        let task = task_items(ys.len(), 1, CHUNK);
        chunks(&mut ys, task, |i, ys| {
            let at = i * task..i * task + ys.len();
            sum(&maps[0][at.clone()], &maps[1][at], self.factor, ys);
        });
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let second = call.of_map[1].then(|| {
            let mut dys = take::<T>(call.gradient.len());
            scaled(call.gradient, self.factor, &mut dys);
            dys
        });
        Ok((vec![call.of_map[0].then(|| std::mem::take(call.gradient)), second], Vec::new()))
    }
}

multiversion! {
    fn sum<T: Element>(xs: &[T], others: &[T], factor: f32, ys: &mut [T]) {
        for ((y, &x), &other) in ys.iter_mut().zip(xs).zip(others) {
            *y = T::from_f32(x.to_f32() + factor * other.to_f32());
        }
    }
}

multiversion! {
    fn scaled<T: Element>(xs: &[T], factor: f32, ys: &mut [T]) {
        for (y, &x) in ys.iter_mut().zip(xs) {
            *y = T::from_f32(factor * x.to_f32());
        }
    }
}

/// A result whose channels are stretches of the maps' channels, the rest zeros.
struct Stretches {
    /// Channels of each map and of the result.
    channels: Vec<usize>,
    result: usize,
    /// For each map its first channel that is used, where that goes, and how many there are.
    stretches: Vec<(usize, usize, usize)>,
}

impl Stretches {
    fn concat(channels: &[usize]) -> Self {
        let mut at = 0;
        let stretch = |&len: &usize| {
            at += len;
            (0, at - len, len)
        };
        let stretches = channels.iter().map(stretch).collect();
        Self { channels: channels.to_vec(), result: channels.iter().sum(), stretches }
    }

    fn part(channels: usize, first: usize, len: usize) -> Self {
        Self { channels: vec![channels], result: len, stretches: vec![(first, 0, len)] }
    }

    fn padded(channels: usize, before: usize, after: usize) -> Self {
        let result = before + channels + after;
        Self { channels: vec![channels], result, stretches: vec![(0, before, channels)] }
    }

    fn of(self, maps: &[&Slot]) -> Result<Slot> {
        let (n, h, w, _) = maps[0].dims();
        let dims = (n, h, w, self.result);
        self.apply(maps, &[], dims)
    }
}

impl Kernel for Stretches {
    const NAME: &'static str = "stretches";

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let used: usize = self.stretches.iter().map(|stretch| stretch.2).sum();
        let pixels = maps[0].len() / self.channels[0].max(1);
        let mut ys = take::<T>(pixels * self.result);
        let task = task_items(pixels, self.result, PIXELS);
        chunks(&mut ys, task * self.result, |i, ys| {
            if used < self.result {
                ys.fill(T::default());
            }
            for ((xs, &channels), &(from, to, len)) in maps.iter().zip(&self.channels).zip(&self.stretches) {
                copy_channels(&xs[i * task * channels..], (channels, from), ys, (self.result, to), len);
            }
        });
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let dys: &[T] = call.gradient;
        let pixels = dys.len() / self.result.max(1);
        let of_map = |((&wanted, &channels), &(from, to, len)): ((&bool, &usize), &(usize, usize, usize))| {
            wanted.then(|| {
                let mut dxs = take::<T>(pixels * channels);
                let task = task_items(pixels, channels, PIXELS);
                chunks(&mut dxs, task * channels, |i, dxs| {
                    if len < channels {
                        dxs.fill(T::default());
                    }
                    copy_channels(
                        &dys[i * task * self.result..],
                        (self.result, to),
                        dxs,
                        (channels, from),
                        len,
                    );
                });
                dxs
            })
        };
        Ok((call.of_map.iter().zip(&self.channels).zip(&self.stretches).map(of_map).collect(), Vec::new()))
    }
}

/// Copies `len` channels of pixels to as many pixels as there are in `out`: of a number of channels, from one of them on.
fn copy_channels<T: Element>(
    xs: &[T],
    (c_xs, from): (usize, usize),
    out: &mut [T],
    (c_out, to): (usize, usize),
    len: usize,
) {
    for (out, x) in out.chunks_exact_mut(c_out.max(1)).zip(xs.chunks_exact(c_xs.max(1))) {
        out[to..to + len].copy_from_slice(&x[from..from + len]);
    }
}

/// Some of the channels of two maps in turn.
struct Interleaved {
    /// Of each map, which of them is the first that is used, and how many.
    channels: usize,
    first: usize,
    len: usize,
}

impl Kernel for Interleaved {
    const NAME: &'static str = "interleaved";

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        let pixels = maps[0].len() / self.channels.max(1);
        let mut ys = take::<T>(pixels * 2 * self.len);
        let task = task_items(pixels, 2 * self.len, PIXELS);
        chunks(&mut ys, task * 2 * self.len, |i, ys| {
            let at = i * task * self.channels + self.first;
            weave(&maps[0][at..], &maps[1][at..], self.channels, self.len, ys);
        });
        ys
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        let dys: &[T] = call.gradient;
        let pixels = dys.len() / (2 * self.len).max(1);
        let of_map = |(which, &wanted): (usize, &bool)| {
            wanted.then(|| {
                let mut dxs = take::<T>(pixels * self.channels);
                let task = task_items(pixels, self.channels, PIXELS);
                chunks(&mut dxs, task * self.channels, |i, dxs| {
                    if self.len < self.channels {
                        dxs.fill(T::default());
                    }
                    let dys = &dys[i * task * 2 * self.len..];
                    unweave(dys, which, self.channels, self.first, self.len, dxs);
                });
                dxs
            })
        };
        Ok((call.of_map.iter().enumerate().map(of_map).collect(), Vec::new()))
    }
}

multiversion! {
    /// The first `len` channels of the pixels of `a` and `b`, which are `channels` apart, in turn.
    fn weave<T: Element>(a: &[T], b: &[T], channels: usize, len: usize, ys: &mut [T]) {
        let pixels = a.chunks(channels).zip(b.chunks(channels));
        for (y, (a, b)) in ys.chunks_exact_mut(2 * len).zip(pixels) {
            for ((y, &a), &b) in y.as_chunks_mut::<2>().0.iter_mut().zip(&a[..len]).zip(&b[..len]) {
                *y = [a, b];
            }
        }
    }
}

multiversion! {
    /// Every other channel of `dys`, from the one or the other on, to those from `first` on of the pixels of `dxs`.
    fn unweave<T: Element>(dys: &[T], which: usize, channels: usize, first: usize, len: usize, dxs: &mut [T]) {
        for (dx, dy) in dxs.chunks_exact_mut(channels).zip(dys.chunks_exact(2 * len)) {
            for (dx, dy) in dx[first..first + len].iter_mut().zip(dy.as_chunks::<2>().0) {
                *dx = dy[which];
            }
        }
    }
}

/// A result in which each stretch of rows × columns elements is transposed.
struct Transposed {
    rows: usize,
    columns: usize,
}

impl Kernel for Transposed {
    const NAME: &'static str = "transposed";

    fn forward<T: Element>(&mut self, maps: &[&[T]], _: &[&[f32]]) -> Buffer<T> {
        transposed(maps[0], self.rows, self.columns)
    }

    fn backward<T: Element>(&self, call: Backward<'_, T>) -> Result<Gradients<T>> {
        Ok((vec![Some(transposed(call.gradient, self.columns, self.rows))], Vec::new()))
    }
}

fn transposed<T: Element>(xs: &[T], rows: usize, columns: usize) -> Buffer<T> {
    const TASK: usize = 8192;
    let len = (rows * columns).max(1);
    let task = len * (TASK / len).max(1);
    let mut ys = take::<T>(xs.len());
    chunks(&mut ys, task, |i, ys| transpose(&xs[i * task..][..ys.len()], rows, columns, ys));
    ys
}

multiversion! {
    /// Each stretch on its own.
    fn transpose<T: Element>(xs: &[T], rows: usize, columns: usize, ys: &mut [T]) {
        let len = rows * columns;
        for (xs, ys) in xs.chunks_exact(len).zip(ys.chunks_exact_mut(len)) {
            for (i, xs) in xs.chunks_exact(columns).enumerate() {
                for (y, &x) in ys[i..].iter_mut().step_by(rows).zip(xs) {
                    *y = x;
                }
            }
        }
    }
}

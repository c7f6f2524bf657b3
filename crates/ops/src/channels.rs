//! Operators that move feature maps around: sums, concatenation, shuffles, flattening. Candle's own
//! operations are right and quick for these, so there is one path for every device.

use crate::FeatureMap;
use crate::feature_map::View;
use crate::trace::Step;
use candle_core::{Result, Tensor, bail};

/// The sum of two maps of equal dimensions: a residual connection.
///
/// # Errors
/// If the dimensions differ.
pub fn add(a: &FeatureMap, b: &FeatureMap) -> Result<FeatureMap> {
    if a.dims() != b.dims() {
        bail!("add: maps of {:?} and {:?} (n, h, w, c)", a.dims(), b.dims());
    }
    match (a.view(), b.view()) {
        (View::Stored(a), View::Stored(b)) => Ok(FeatureMap::stored((a + b)?)),
        (View::Traced(a), View::Traced(b)) => {
            Ok(FeatureMap::from_traced(a.clone().join(std::iter::once(b)).step(a.dims, Step::new("add"))))
        }
        _ => bail!("add: one map is traced and the other is not"),
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
    let (mut stored, mut traced) = (Vec::new(), Vec::new());
    for map in maps {
        match map.view() {
            View::Stored(xs) => stored.push(xs),
            View::Traced(t) => traced.push(t),
        }
    }
    match traced.split_first() {
        None => Ok(FeatureMap::stored(Tensor::cat(&stored, 3)?.contiguous()?)),
        Some((t, rest)) if stored.is_empty() => {
            let joined = (*t).clone().join(rest.iter().copied());
            Ok(FeatureMap::from_traced(joined.step((n, h, w, channels), Step::new("concat"))))
        }
        Some(_) => bail!("concat: some maps are traced and some are not"),
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
            match xs.view() {
                View::Stored(xs) => Ok(FeatureMap::stored(xs.narrow(3, first, len)?.contiguous()?)),
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
    match xs.view() {
        View::Stored(xs) => Ok(FeatureMap::stored(xs.pad_with_zeros(3, before, after)?.contiguous()?)),
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
    match xs.view() {
        View::Stored(xs) => {
            let grouped = xs.reshape((n * h * w, groups, c / groups))?;
            let shuffled = grouped.transpose(1, 2)?.contiguous()?;
            Ok(FeatureMap::stored(shuffled.reshape((n, h, w, c))?))
        }
        View::Traced(t) => Ok(FeatureMap::traced_step(t, t.dims, Step::new("channel_shuffle"))),
    }
}

/// All elements of an image as the channels of a single pixel, in PyTorch's order (channel, row, column).
///
/// # Errors
/// If candle's permutation fails.
pub fn flatten(xs: &FeatureMap) -> Result<FeatureMap> {
    let (n, h, w, c) = xs.dims();
    match xs.view() {
        View::Stored(_) => Ok(FeatureMap::stored(xs.to_nchw()?.reshape((n, 1, 1, c * h * w))?)),
        View::Traced(t) => {
            // A flat feature sees what the whole map sees.
            let window = crate::Window2d { kernel: (h, w), ..crate::Window2d::square(1, 1) };
            let step = Step { window: Some(window), ..Step::new("flatten") };
            Ok(FeatureMap::traced_step(t, (n, 1, 1, c * h * w), step))
        }
    }
}

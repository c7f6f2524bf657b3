//! Concatenations that nothing is differentiated through: computed when they are asked for, since a normalisation that
//! comes next is best applied while the channels are brought together, and a longer concatenation does without this one.

use super::copy_channels;
use crate::conv2d::Finish;
use crate::element::{Element, by_element};
use crate::parallel::{chunks, task_items};
use crate::pool::take;
use crate::slot::{self, Affine, Dims, Normalised, Slot, Values};
use candle_core::Result;
use std::sync::Arc;

/// Elements of a piece of the result, which stays in cache until it is normalised.
const PIECE: usize = 32 * 1024;

struct Concat {
    /// (n, h, w, c) of the result.
    dims: Dims,
    maps: Vec<Slot>,
}

/// The channels of all maps, one after the other.
pub(super) fn concat(maps: &[&Slot]) -> Result<Slot> {
    let (n, h, w, _) = maps[0].dims();
    let dims = (n, h, w, maps.iter().map(|map| map.dims().3).sum());
    let parts = maps.iter().flat_map(|&map| match unfinished(map) {
        Some(inner) => inner.maps.clone(),
        None => vec![map.clone()],
    });
    let concat = Concat { dims, maps: parts.collect() };
    Slot::deferred(dims, maps[0].dtype(), Arc::new(concat))
}

/// The concatenation that a map is, if it is not computed yet.
fn unfinished(map: &Slot) -> Option<Arc<Concat>> {
    map.pending_of().filter(|concat: &Arc<Concat>| concat.dims == map.dims())
}

impl slot::Deferred for Concat {
    fn run(&self) -> Result<Values> {
        by_element!(self.maps[0].dtype(), joined(self, &Finish::nothing()))
    }

    fn normalised(&self, norm: &Affine<'_>) -> Result<Option<Normalised>> {
        let factors = norm.of_channels(self.dims.3).filter(|_| norm.residual.is_none());
        let Some((scale, shift)) = factors else { return Ok(None) };
        let dtype = self.maps[0].dtype();
        let values = by_element!(dtype, joined(self, &Finish::new(&scale, &shift, &[], norm.activation)))?;
        Ok(Some(Normalised::Now(values)))
    }
}

/// The elements of the result, and what is done to them.
fn joined<T: Element>(concat: &Concat, finish: &Finish<'_, T>) -> Result<Values> {
    let (n, h, w, channels) = concat.dims;
    let maps = concat.maps.iter().map(|map| Ok((map.values()?.slice::<T>()?, map.dims().3)));
    let maps = maps.collect::<Result<Vec<_>>>()?;
    let pixels = task_items(n * h * w, channels, (PIECE / channels.max(1)).max(1));
    let mut ys = take::<T>(n * h * w * channels);
    chunks(&mut ys, pixels * channels, |i, ys| {
        let mut to = 0;
        for &(xs, len) in &maps {
            copy_channels(&xs[i * pixels * len..], (len, 0), ys, (channels, to), len);
            to += len;
        }
        finish.apply(0, ys);
    });
    Ok(T::into_values(ys))
}

//! Concatenations that nothing is differentiated through: computed when they are asked for, since a normalisation that
//! comes next is best applied while the channels are brought together, and a longer concatenation does without this one.

use crate::conv2d::Finish;
use crate::element::{Element, by_element};
use crate::parallel::chunks;
use crate::pool::take;
use crate::slot::{self, Affine, Dims, Normalised, Slot, Values};
use candle_core::Result;
use std::any::Any;
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
    let pending: Arc<dyn Any + Send + Sync> = map.pending()?;
    let concat: Arc<Concat> = pending.downcast().ok()?;
    // A map may have been flattened since.
    (concat.dims == map.dims()).then_some(concat)
}

impl slot::Deferred for Concat {
    fn run(&self) -> Result<Values> {
        by_element!(self.maps[0].dtype(), joined(self, None))
    }

    fn normalised(&self, norm: &Affine<'_>) -> Result<Option<Normalised>> {
        // Of a flattened map it has more channels.
        let fits = norm.factors.is_none_or(|(scale, _)| scale.len() == self.dims.3);
        if norm.residual.is_some() || !fits {
            return Ok(None);
        }
        Ok(Some(Normalised::Now(by_element!(self.maps[0].dtype(), joined(self, Some(norm)))?)))
    }
}

/// The elements of the result, normalised if so.
fn joined<T: Element>(concat: &Concat, norm: Option<&Affine<'_>>) -> Result<Values> {
    let (n, h, w, channels) = concat.dims;
    let maps = concat.maps.iter().map(|map| Ok((map.values()?.slice::<T>()?, map.dims().3)));
    let maps = maps.collect::<Result<Vec<_>>>()?;
    let finish = norm.map_or_else(Finish::nothing, |norm| match norm.factors {
        Some((scale, shift)) => Finish::new(scale, shift, &[], norm.activation),
        None => Finish::new(&vec![1.0; channels], &vec![0.0; channels], &[], norm.activation),
    });
    let pixels = (PIECE / channels.max(1)).max(1);
    let mut ys = take::<T>(n * h * w * channels);
    chunks(&mut ys, pixels * channels, |i, ys| {
        let mut to = 0;
        for &(xs, len) in &maps {
            let xs = xs[i * pixels * len..].chunks_exact(len.max(1));
            for (y, x) in ys.chunks_exact_mut(channels).zip(xs) {
                y[to..to + len].copy_from_slice(x);
            }
            to += len;
        }
        finish.apply(0, ys);
    });
    Ok(T::into_values(ys))
}

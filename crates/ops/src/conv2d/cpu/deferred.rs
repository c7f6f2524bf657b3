//! Convolutions that nothing is differentiated through: computed when their result is asked for, since a batch-norm that
//! comes next is best applied while the result is in cache, and narrow groups are best computed with their neighbours.

use super::super::Geometry;
use super::finish::Finish;
use super::gemm::chain::{self, Link};
use super::gemm::pooled;
use super::{Algorithm, algorithm, few, forward, gemm};
use crate::activation::Activation;
use crate::element::{Element, Elements, by_element};
use crate::inference::is_running;
use crate::max_pool::MaxPool;
use crate::slot::{self, Affine, Normalised, Slot, Values};
use crate::timing::Place;
use candle_core::{Result, Tensor};
use std::sync::Arc;
use std::time::Instant;

/// A convolution that is not computed yet.
#[derive(Clone)]
pub(super) struct Deferred {
    g: Geometry,
    xs: Slot,
    weight: Tensor,
    bias: Option<Tensor>,
    norm: Option<Norm>,
    place: Place,
}

/// What comes after a convolution: `activation(y · scale + shift)`, the bias included.
#[derive(Clone)]
struct Norm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    activation: Activation,
}

impl Deferred {
    pub(super) fn new(g: Geometry, xs: &Slot, weight: &Tensor, bias: Option<&Tensor>) -> Self {
        let (xs, weight, bias) = (xs.clone(), weight.clone(), bias.cloned());
        Self { g, xs, weight, bias, norm: None, place: Place::next() }
    }

    fn algorithm(&self) -> Algorithm {
        algorithm(&self.g, self.xs.dtype())
    }

    fn is_narrow(&self) -> bool {
        self.algorithm() == Algorithm::Narrow
    }

    /// Whether it is computed as products, block by block.
    fn is_by_blocks(&self) -> bool {
        self.algorithm() == Algorithm::Gemm && !gemm::on_tiles(&self.g, self.xs.dtype())
    }

    /// What is to be computed, and added to a residual if there is one.
    fn link<'a, T: Element>(&'a self, residual: &'a [T]) -> Result<Link<'a, T>> {
        let finish = match (&self.norm, &self.bias) {
            (Some(norm), _) => Finish::new(&norm.scale, &norm.shift, residual, norm.activation),
            (None, Some(bias)) => Finish::bias(Some(&*Elements::<f32>::of(bias)?)),
            (None, None) => Finish::nothing(),
        };
        let id = is_running().then(|| self.weight.id());
        Ok(Link { g: self.g, values: Elements::of(&self.weight)?, id, finish })
    }

    /// Whether it may be computed together with the convolution or the max-pool that comes next.
    fn may_go_on(&self) -> bool {
        self.is_narrow() || self.is_few() || self.is_by_blocks() && self.narrow_before().is_none()
    }

    fn is_few(&self) -> bool {
        self.algorithm() == Algorithm::Few
    }

    /// The convolution of narrow groups before this one, if both may be computed together.
    fn narrow_before(&self) -> Option<Arc<Self>> {
        let may_follow = self.is_by_blocks() && chain::is_by_pixel(&self.g);
        self.before().filter(|before| may_follow && before.is_narrow())
    }

    /// The convolution whose result this one, of narrow groups, sees, if both may be computed together.
    fn wide_before(&self) -> Option<Arc<Self>> {
        self.before().filter(|before| before.is_by_blocks())
    }

    /// The convolution whose result this one sees, if that is not computed yet.
    fn before(&self) -> Option<Arc<Self>> {
        let before: Arc<Self> = self.xs.pending_of()?;
        let seen = (self.g.n, self.g.size, self.g.c_in);
        ((before.g.n, before.g.out, before.g.c_out) == seen).then_some(before)
    }
}

impl slot::Deferred for Deferred {
    fn run(&self) -> Result<Values> {
        by_element!(self.xs.dtype(), run(self, None))
    }

    fn normalised(&self, norm: &Affine<'_>) -> Result<Option<Normalised>> {
        let factors = norm.of_channels(self.g.c_out).filter(|_| self.norm.is_none());
        let Some((scale, mut shift)) = factors else { return Ok(None) };
        // The bias is normalised too.
        if let Some(bias) = &self.bias {
            for ((shift, scale), bias) in shift.iter_mut().zip(&scale).zip(&*Elements::<f32>::of(bias)?) {
                *shift += bias * scale;
            }
        }
        let (residual, norm) = (norm.residual, Norm { scale, shift, activation: norm.activation });
        let normalised = Self { norm: Some(norm), ..self.clone() };
        Ok(Some(match residual {
            None if self.may_go_on() => Normalised::Later(Arc::new(normalised)),
            _ => Normalised::Now(by_element!(self.xs.dtype(), run(&normalised, residual))?),
        }))
    }

    fn pooled(&self, pool: &MaxPool) -> Result<Option<Values>> {
        let alone = self.is_by_blocks() && self.narrow_before().is_none();
        let of_this = pool.dims == (self.g.n, self.g.out.0, self.g.out.1, self.g.c_out);
        if !of_this || !(alone || self.is_few()) {
            return Ok(None);
        }
        by_element!(self.xs.dtype(), run_pooled(self, pool))
    }
}

/// The elements of a max-pool of a convolution's result, if they are better computed together.
fn run_pooled<T: Element>(convolution: &Deferred, pool: &MaxPool) -> Result<Option<Values>> {
    let few = convolution.is_few();
    let bands = if few { None } else { pooled::bands::<T>(pool) };
    if bands.is_none() && !(few && few::pools(&convolution.g, pool)) {
        return Ok(None);
    }
    let xs = convolution.xs.values()?.slice::<T>()?;
    let link = convolution.link(&[])?;
    let pooled = || match bands {
        Some(bands) => pooled::run(&link, pool, bands, xs),
        None => few::pooled(&link.g, xs, link.weight(), &link.finish, pool),
    };
    Ok(Some(T::into_values(convolution.place.time(pooled))))
}

/// The elements of a convolution's result, added to a residual if there is one.
fn run<T: Element>(convolution: &Deferred, residual: Option<&Slot>) -> Result<Values> {
    let residual = residual.map(|residual| residual.values()?.slice::<T>()).transpose()?.unwrap_or(&[]);
    if let Some(chain) = Chain::of(convolution) {
        return chain.run(residual);
    }
    // What comes before is computed first, for its time not to count as this one's.
    let xs = convolution.xs.values()?.slice::<T>()?;
    let link = convolution.link(residual)?;
    Ok(T::into_values(convolution.place.time(|| forward(&link.g, xs, link.weight(), &link.finish))))
}

/// Convolutions that are computed together.
struct Chain<'a> {
    widen: Option<Arc<Deferred>>,
    /// That of narrow groups, where it is not the last.
    narrow: Option<Arc<Deferred>>,
    last: &'a Deferred,
    bands: usize,
}

impl<'a> Chain<'a> {
    /// That which ends with a convolution, if there is one.
    fn of(last: &'a Deferred) -> Option<Self> {
        let narrow_one = last.narrow_before();
        let narrow = match &narrow_one {
            Some(narrow) => narrow,
            None if last.is_narrow() => last,
            None => return None,
        };
        let Geometry { n, out, window, size, .. } = narrow.g;
        let bands = |made| chain::bands(n, out, &window, size.0, made);
        let widen = narrow.wide_before().zip(bands(true));
        let (widen, bands) = match widen {
            Some((widen, bands)) => (Some(widen), bands),
            None if narrow_one.is_some() => (None, bands(false)?),
            None => return None,
        };
        Some(Self { widen, narrow: narrow_one, last, bands })
    }

    fn run<T: Element>(&self, residual: &[T]) -> Result<Values> {
        let (narrow, follow) = match &self.narrow {
            Some(narrow) => (&**narrow, Some(self.last)),
            None => (self.last, None),
        };
        let xs = self.widen.as_deref().unwrap_or(narrow).xs.values()?.slice::<T>()?;
        let start = Instant::now();
        let widen_link = self.widen.as_ref().map(|widen| widen.link(&[])).transpose()?;
        let narrow_link = narrow.link(if follow.is_some() { &[] } else { residual })?;
        let follow_link = follow.map(|follow| follow.link(residual)).transpose()?;
        let (ys, shares) =
            chain::run(widen_link.as_ref(), &narrow_link, follow_link.as_ref(), self.bands, xs);
        let elapsed = start.elapsed();
        for (part, share) in [self.widen.as_deref(), Some(narrow), follow].into_iter().zip(shares) {
            part.inspect(|part| part.place.add(elapsed.mul_f64(share)));
        }
        Ok(T::into_values(ys))
    }
}

//! Convolutions that nothing is differentiated through: computed when their result is asked for, since a batch-norm that
//! comes next is best applied while the result is in cache, and narrow groups are best computed with their neighbours.

use super::super::Geometry;
use super::finish::Finish;
use super::gemm::chain::{self, Link};
use super::{Algorithm, Weight, algorithm, forward};
use crate::activation::Activation;
use crate::element::{Element, Elements, by_element};
use crate::inference::is_running;
use crate::slot::{self, Affine, Normalised, Slot, Values};
use crate::timing::Place;
use candle_core::{Result, Tensor, bail};
use std::any::Any;
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

    fn algorithm<T: Element>(&self) -> Algorithm {
        algorithm(&self.g, T::DTYPE)
    }

    /// What is to be computed, given its weights and a residual, or none.
    fn link<'a, T: Element>(&self, weight: &'a [f32], residual: &'a [T]) -> Result<Link<'a, T>> {
        let bias = self.bias.as_ref().map(Elements::<f32>::of).transpose()?;
        let finish = match &self.norm {
            Some(norm) => Finish::new(&norm.scale, &norm.shift, residual, norm.activation),
            None => Finish::bias(bias.as_deref()),
        };
        let id = is_running().then(|| self.weight.id());
        Ok(Link { g: self.g, weight: Weight { values: weight, id }, finish })
    }

    /// The elements.
    fn run<T: Element>(&self, residual: Option<&Slot>) -> Result<Values> {
        let residual = residual.map(|residual| residual.values()?.slice::<T>()).transpose()?.unwrap_or(&[]);
        if let Some(chain) = Chain::of::<T>(self) {
            return chain.run(residual);
        }
        // What comes before is computed first, for its time not to count as this one's.
        let xs = self.xs.values()?.slice::<T>()?;
        let weight = Elements::<f32>::of(&self.weight)?;
        let Link { g, weight, finish } = self.link(&weight, residual)?;
        Ok(T::into_values(self.place.time(|| forward(&g, xs, weight, &finish))))
    }

    /// Whether it may be computed together with the convolution that comes next.
    fn may_go_on<T: Element>(&self) -> bool {
        match self.algorithm::<T>() {
            Algorithm::Narrow => true,
            Algorithm::Winograd => false,
            Algorithm::Gemm => chain::may_widen::<T>(&self.g) && self.narrow_before::<T>().is_none(),
        }
    }

    /// The convolution of narrow groups before this one, if both may be computed together.
    fn narrow_before<T: Element>(&self) -> Option<Arc<Self>> {
        if self.algorithm::<T>() != Algorithm::Gemm || !chain::may_follow::<T>(&self.g) {
            return None;
        }
        self.before().filter(|before| before.algorithm::<T>() == Algorithm::Narrow)
    }

    /// The convolution whose result this one, of narrow groups, sees, if both may be computed together.
    fn wide_before<T: Element>(&self) -> Option<Arc<Self>> {
        self.before()
            .filter(|before| before.algorithm::<T>() == Algorithm::Gemm && chain::may_widen::<T>(&before.g))
    }

    /// The convolution whose result this one sees, if that is not computed yet.
    fn before(&self) -> Option<Arc<Self>> {
        let pending: Arc<dyn Any + Send + Sync> = self.xs.pending()?;
        let before: Arc<Self> = pending.downcast().ok()?;
        // A map may have been flattened in between.
        let seen = (self.g.n, self.g.size, self.g.c_in);
        ((before.g.n, before.g.out, before.g.c_out) == seen).then_some(before)
    }
}

impl slot::Deferred for Deferred {
    fn run(&self) -> Result<Values> {
        by_element!(self.xs.dtype(), run(self, None))
    }

    fn normalised(&self, norm: &Affine<'_>) -> Result<Option<Normalised>> {
        // Of a flattened map it has more channels than the convolution.
        let fits = norm.factors.is_none_or(|(scale, _)| scale.len() == self.g.c_out);
        if self.norm.is_some() || !fits {
            return Ok(None);
        }
        let (scale, mut shift) = match norm.factors {
            Some((scale, shift)) => (scale.to_vec(), shift.to_vec()),
            None => (vec![1.0; self.g.c_out], vec![0.0; self.g.c_out]),
        };
        // The bias is normalised too.
        if let Some(bias) = &self.bias {
            for ((shift, scale), bias) in shift.iter_mut().zip(&scale).zip(&*Elements::<f32>::of(bias)?) {
                *shift += bias * scale;
            }
        }
        let (residual, norm) = (norm.residual, Norm { scale, shift, activation: norm.activation });
        let normalised = Self { norm: Some(norm), ..self.clone() };
        Ok(Some(match residual {
            None if by_element!(self.xs.dtype(), may_go_on(self))? => Normalised::Later(Arc::new(normalised)),
            _ => Normalised::Now(by_element!(self.xs.dtype(), run(&normalised, residual))?),
        }))
    }
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
    fn of<T: Element>(last: &'a Deferred) -> Option<Self> {
        let narrow_one = last.narrow_before::<T>();
        let narrow = match &narrow_one {
            Some(narrow) => narrow,
            None if last.algorithm::<T>() == Algorithm::Narrow => last,
            None => return None,
        };
        let widen = narrow.wide_before::<T>().zip(chain::bands(&narrow.g, true));
        let (widen, bands) = match widen {
            Some((widen, bands)) => (Some(widen), bands),
            None if narrow_one.is_some() => (None, chain::bands(&narrow.g, false)?),
            None => return None,
        };
        Some(Self { widen, narrow: narrow_one, last, bands })
    }

    fn run<T: Element>(&self, residual: &[T]) -> Result<Values> {
        let narrow = self.narrow.as_deref().unwrap_or(self.last);
        let first = self.widen.as_deref().unwrap_or(narrow);
        let follow = self.narrow.is_some().then_some(self.last);
        let xs = first.xs.values()?.slice::<T>()?;
        let parts = [self.widen.as_deref(), Some(narrow), follow];
        let start = Instant::now();
        let [a, b, c] = parts.map(|part| part.map(|part| Elements::<f32>::of(&part.weight)).transpose());
        let weights = [a?, b?, c?];
        let [widen, narrow, follow] = [0, 1, 2].map(|i| {
            let residual = if std::ptr::eq(parts[i]?, self.last) { residual } else { &[] };
            Some(parts[i]?.link::<T>(weights[i].as_deref()?, residual))
        });
        let (widen, narrow, follow) = (widen.transpose()?, narrow.transpose()?, follow.transpose()?);
        let Some(narrow) = narrow else { bail!("a chain without a convolution of narrow groups") };
        let (ys, shares) = chain::run(widen.as_ref(), &narrow, follow.as_ref(), self.bands, xs);
        let elapsed = start.elapsed();
        for (part, share) in parts.iter().zip(shares) {
            part.inspect(|part| part.place.add(elapsed.mul_f64(share)));
        }
        Ok(T::into_values(ys))
    }
}

/// [`Deferred::run`] and [`Deferred::may_go_on`] for `by_element!`.
fn run<T: Element>(convolution: &Deferred, residual: Option<&Slot>) -> Result<Values> {
    convolution.run::<T>(residual)
}

fn may_go_on<T: Element>(convolution: &Deferred) -> Result<bool> {
    Ok(convolution.may_go_on::<T>())
}

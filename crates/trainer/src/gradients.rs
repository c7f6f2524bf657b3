//! The gradients of one optimizer step.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, Var};
use zoo_ops::parallel_map;

/// A gradient for each of a list of parameters, in the list's order; `None` where the loss does not depend on
/// the parameter.
#[derive(Debug, Clone, Default)]
pub struct Gradients(Vec<Option<Tensor>>);

impl From<Vec<Option<Tensor>>> for Gradients {
    fn from(gradients: Vec<Option<Tensor>>) -> Self {
        Self(gradients)
    }
}

impl From<Gradients> for Vec<Option<Tensor>> {
    fn from(gradients: Gradients) -> Self {
        gradients.0
    }
}

/// Elements whose squares are summed one after the other, so that the order of a sum does not depend on the
/// number of threads.
const CHUNK: usize = 16 * 1024;

/// What PyTorch's `clip_grad_norm_` adds to the norm before it divides.
const CLIP_EPSILON: f64 = 1e-6;

impl Gradients {
    /// Takes the gradients of `parameters` out of what `backward` gave.
    pub fn take(parameters: &[(String, Var)], mut store: GradStore) -> Self {
        Self(parameters.iter().map(|(_, var)| store.remove(var)).collect())
    }

    /// The gradients in the order of the parameters.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&Tensor>> {
        self.0.iter().map(Option::as_ref)
    }

    /// Adds those of another pass over the same parameters.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add(&mut self, other: Self) -> Result<()> {
        if self.0.is_empty() {
            *self = other;
            return Ok(());
        }
        for (sum, term) in self.0.iter_mut().zip(other.0) {
            *sum = match (sum.take(), term) {
                (Some(sum), Some(term)) => Some((sum + term)?),
                (sum, term) => sum.or(term),
            };
        }
        Ok(())
    }

    /// Multiplies all of them.
    ///
    /// # Errors
    /// If the device cannot compute.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in self.0.iter_mut().flatten() {
            *gradient = gradient.affine(factor, 0.0)?;
        }
        Ok(())
    }

    /// The L2 norm of all of them together, as of one long vector.
    ///
    /// # Errors
    /// If the device cannot compute.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.0.iter().flatten() {
            sum += sum_of_squares(gradient)?;
        }
        Ok(sum.sqrt())
    }

    /// Scales all of them down by one factor if their norm is above `max_norm`, as PyTorch's `clip_grad_norm_`.
    ///
    /// # Errors
    /// If the device cannot compute.
    pub fn clip(&mut self, max_norm: f64) -> Result<()> {
        if self.0.iter().flatten().any(|gradient| !gradient.device().is_cpu()) {
            return self.clip_unread(max_norm);
        }
        let factor = max_norm / (self.norm()? + CLIP_EPSILON);
        if factor < 1.0 { self.scale(factor) } else { Ok(()) }
    }

    /// The same without reading the norm, for which a GPU's work would be waited for.
    fn clip_unread(&mut self, max_norm: f64) -> Result<()> {
        let Some(norm) = self.norm_unread()? else { return Ok(()) };
        let factor = ((norm + CLIP_EPSILON)?.recip()? * max_norm)?.minimum(1.0)?;
        for gradient in self.0.iter_mut().flatten() {
            *gradient = gradient.broadcast_mul(&factor)?;
        }
        Ok(())
    }

    /// The norm as a tensor [1]; `None` where there are no gradients.
    fn norm_unread(&self) -> Result<Option<Tensor>> {
        let squares = self.0.iter().flatten().map(|gradient| gradient.flatten_all()?.sqr()?.sum_keepdim(0));
        let squares = squares.collect::<Result<Vec<_>>>()?;
        if squares.is_empty() {
            return Ok(None);
        }
        Tensor::cat(&squares, 0)?.sum_keepdim(0)?.sqrt().map(Some)
    }

    /// Whether all of them are finite, and not so large that their norm is not.
    ///
    /// # Errors
    /// If the device cannot compute.
    pub fn are_finite(&self) -> Result<bool> {
        let norm = self.norm_unread()?.map(|norm| norm.to_vec1::<f32>()).transpose()?;
        Ok(norm.is_none_or(|norm| norm.iter().all(|x| x.is_finite())))
    }
}

fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    // Not every device has f64.
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    if let (Storage::Cpu(CpuStorage::F32(all)), layout) = (&*tensor.storage_and_layout().0, tensor.layout())
        && let Some((start, end)) = layout.contiguous_offsets()
    {
        let square = |piece: &[f32]| piece.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        let pieces: Vec<&[f32]> = all[start..end].chunks(CHUNK).collect();
        return Ok(parallel_map(pieces.len(), |i| square(pieces[i])).iter().sum());
    }
    tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_without_reading_the_norm_is_the_same() -> Result<()> {
        let gradients = || -> Result<Gradients> {
            let of = |values: &[f32]| Tensor::new(values, &Device::Cpu);
            Ok(Gradients(vec![Some(of(&[3.0, -1.0, 2.0, 0.5])?.reshape((2, 2))?), None, Some(of(&[-4.0])?)]))
        };
        for max_norm in [0.5, 100.0] {
            let (mut read, mut unread) = (gradients()?, gradients()?);
            read.clip(max_norm)?;
            unread.clip_unread(max_norm)?;
            for (a, b) in read.iter().zip(unread.iter()) {
                let values = |t: Option<&Tensor>| t.map(|t| t.flatten_all()?.to_vec1::<f32>()).transpose();
                let (a, b) = (values(a)?.unwrap_or_default(), values(b)?.unwrap_or_default());
                assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{max_norm}: {a:?} {b:?}");
            }
            assert!((unread.norm()? - max_norm.min(gradients()?.norm()?)).abs() < 1e-5);
        }
        Gradients::default().clip_unread(1.0)
    }

    #[test]
    fn what_is_not_finite_is_found() -> Result<()> {
        for (values, finite) in
            [([1.0f32, -2.0], true), ([1.0, f32::NAN], false), ([f32::NEG_INFINITY, 0.0], false)]
        {
            let gradients = Gradients(vec![
                Some(Tensor::new(&[0.5f32], &Device::Cpu)?),
                Some(Tensor::new(&values, &Device::Cpu)?),
            ]);
            assert_eq!(gradients.are_finite()?, finite, "{values:?}");
        }
        assert!(Gradients::default().are_finite()?);
        Ok(())
    }
}

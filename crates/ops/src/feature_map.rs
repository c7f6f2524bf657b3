//! The type that flows through a network.

use crate::trace::{Step, Trace, Traced};
use candle_core::{DType, Device, Result, Tensor, bail};

/// A batch of feature maps: `n` images of `h` by `w` pixels with `c` channels.
///
/// How it is stored is hidden, so that it can change without touching a model; today the channels of a pixel
/// lie side by side (NHWC). Flat features are maps of 1 by 1 pixels. A map can also be *traced*: it then has
/// dimensions but no elements, see [`crate::trace`].
#[derive(Debug, Clone)]
pub struct FeatureMap(Inner);

#[derive(Debug, Clone)]
enum Inner {
    /// [n, h, w, c], contiguous.
    Stored(Tensor),
    Traced(Box<Traced>),
}

/// Either kind of map, for an operator to match on.
pub(crate) enum View<'a> {
    Stored(&'a Tensor),
    Traced(&'a Traced),
}

impl FeatureMap {
    /// From an ordinary tensor of shape [n, c, h, w], or [n, c] for flat features. Differentiable.
    ///
    /// # Errors
    /// If the tensor has another rank.
    pub fn from_nchw(xs: &Tensor) -> Result<Self> {
        match *xs.dims() {
            [n, c] => Ok(Self::stored(xs.reshape((n, 1, 1, c))?.contiguous()?)),
            [n, c, h, w] if c == 1 || (h == 1 && w == 1) => {
                Ok(Self::stored(xs.contiguous()?.reshape((n, h, w, c))?))
            }
            [_, _, _, _] => Ok(Self::stored(xs.permute((0, 2, 3, 1))?.contiguous()?)),
            _ => bail!("expected images of shape [n, c, h, w], found {:?}", xs.dims()),
        }
    }

    /// From pixels as bytes in NHWC order, each channel normalised to `(byte / 255 - mean) / std`.
    ///
    /// # Errors
    /// If the lengths of `pixels`, `mean` or `std` do not fit `dims` = (n, h, w, c).
    pub fn from_bytes(
        pixels: &[u8],
        dims: (usize, usize, usize, usize),
        (mean, std): (&[f32], &[f32]),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (n, h, w, c) = dims;
        if pixels.len() != n * h * w * c {
            bail!("expected {} bytes for {n} images of {h}x{w}x{c}, found {}", n * h * w * c, pixels.len());
        }
        if mean.len() != c || std.len() != c {
            bail!("{c} channels need {c} means and deviations, found {} and {}", mean.len(), std.len());
        }
        // A byte has 256 values, so normalising is a table look-up per channel.
        let tables: Vec<[f32; 256]> =
            (0..c).map(|ch| std::array::from_fn(|byte| (byte as f32 / 255.0 - mean[ch]) / std[ch])).collect();
        let mut values = crate::parallel::buffer::<f32>(pixels.len());
        crate::parallel::chunks(&mut values, (h * w * c).max(1), |i, image| {
            let bytes = &pixels[i * h * w * c..][..image.len()];
            for (value, byte) in image.chunks_exact_mut(c).zip(bytes.chunks_exact(c)) {
                for ((v, &b), table) in value.iter_mut().zip(byte).zip(&tables) {
                    *v = table[b as usize];
                }
            }
        });
        Ok(Self::stored(Tensor::from_vec(values, dims, device)?.to_dtype(dtype)?))
    }

    /// A map of (n, h, w, c) that has no elements and records what is done to it.
    pub fn traced(dims: (usize, usize, usize, usize), dtype: DType, device: &Device) -> (Self, Trace) {
        let (input, trace) = Traced::input(dims, dtype, device.clone());
        (Self(Inner::Traced(Box::new(input))), trace)
    }

    /// An ordinary tensor [n, c, h, w] in the map's dtype. Differentiable. A traced map gives zeros.
    ///
    /// # Errors
    /// If candle's permutation fails.
    pub fn to_nchw(&self) -> Result<Tensor> {
        match &self.0 {
            Inner::Stored(xs) => xs.permute((0, 3, 1, 2))?.contiguous(),
            Inner::Traced(t) => {
                let (n, h, w, c) = t.dims;
                Tensor::zeros((n, c, h, w), t.dtype, &t.device)
            }
        }
    }

    /// The ordinary tensor [n, c] of a map of 1 by 1 pixels, in f32 (f64 stays). Differentiable. This is how
    /// logits leave a network. A traced map gives zeros.
    ///
    /// # Errors
    /// If the map has more than one pixel.
    pub fn to_logits(&self) -> Result<Tensor> {
        let (n, h, w, c) = self.dims();
        if (h, w) != (1, 1) {
            bail!("logits come from a map of 1x1 pixels, found {h}x{w}");
        }
        let dtype = if self.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        match &self.0 {
            Inner::Stored(xs) => xs.reshape((n, c))?.to_dtype(dtype),
            Inner::Traced(t) => Tensor::zeros((n, c), dtype, &t.device),
        }
    }

    /// (n, h, w, c).
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        match &self.0 {
            // Rank 4 is an invariant of `stored`.
            Inner::Stored(xs) => match *xs.dims() {
                [n, h, w, c] => (n, h, w, c),
                _ => (0, 0, 0, 0),
            },
            Inner::Traced(t) => t.dims,
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Inner::Stored(xs) => xs.dtype(),
            Inner::Traced(t) => t.dtype,
        }
    }

    /// Where the map lives.
    pub fn device(&self) -> &Device {
        match &self.0 {
            Inner::Stored(xs) => xs.device(),
            Inner::Traced(t) => &t.device,
        }
    }

    /// The same map in another element type. Differentiable.
    ///
    /// # Errors
    /// If the device cannot convert.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        match &self.0 {
            Inner::Stored(xs) => Ok(Self::stored(xs.to_dtype(dtype)?)),
            Inner::Traced(t) => {
                let mut t = t.clone();
                t.dtype = dtype;
                Ok(Self(Inner::Traced(t)))
            }
        }
    }

    /// Whether this map has dimensions only.
    pub fn is_traced(&self) -> bool {
        matches!(self.0, Inner::Traced(_))
    }

    /// Puts a layer's parameter path on the trace's last row; does nothing on a map with elements.
    pub fn named(self, name: &str) -> Self {
        if let Inner::Traced(t) = &self.0 {
            t.name_last(name);
        }
        self
    }

    pub(crate) fn stored(xs: Tensor) -> Self {
        debug_assert!(xs.rank() == 4 && xs.is_contiguous());
        Self(Inner::Stored(xs))
    }

    pub(crate) fn view(&self) -> View<'_> {
        match &self.0 {
            Inner::Stored(xs) => View::Stored(xs),
            Inner::Traced(t) => View::Traced(t),
        }
    }

    /// The traced map behind this one after an operator, for operators of one input.
    pub(crate) fn traced_step(t: &Traced, dims: (usize, usize, usize, usize), step: Step) -> Self {
        Self::from_traced(t.step(dims, step))
    }

    pub(crate) fn from_traced(t: Traced) -> Self {
        Self(Inner::Traced(Box::new(t)))
    }
}

//! The type that flows through a network.

#[cfg(any(test, feature = "cuda"))]
use crate::cuda::{Map, launch, pointer, uninitialised, with_bytes};
use crate::dispatch::{Path, path};
use crate::element::Element;
use crate::parallel::chunks;
use crate::pool::{Buffer, take};
use crate::slot::Slot;
use crate::trace::{Step, Trace, Traced};
use candle_core::{DType, Device, Result, Tensor, bail};

/// A batch of feature maps: `n` images of `h` by `w` pixels with `c` channels.
///
/// How it is stored is hidden, so that it can change without touching a model; today the channels of a pixel
/// lie side by side (NHWC), for the CPU kernels beside candle's graph and for the reference in a tensor. Flat
/// features are maps of 1 by 1 pixels. A map can also be *traced*: it then has dimensions but no elements, see
/// [`crate::trace`].
#[derive(Debug, Clone)]
pub struct FeatureMap(Inner);

#[derive(Debug, Clone)]
enum Inner {
    /// [n, h, w, c], contiguous.
    Stored(Tensor),
    Slot(Slot),
    #[cfg(any(test, feature = "cuda"))]
    Gpu(Map),
    Traced(Box<Traced>),
}

/// A map as an operator takes it: for the path that is chosen, or traced.
pub(crate) enum View<'a> {
    Reference(Tensor),
    Cpu(Slot),
    Traced(&'a Traced),
}

impl FeatureMap {
    /// From an ordinary tensor of shape [n, c, h, w], or [n, c] for flat features. Differentiable.
    ///
    /// # Errors
    /// If the tensor has another rank.
    pub fn from_nchw(xs: &Tensor) -> Result<Self> {
        let stored = match *xs.dims() {
            [n, c] => xs.reshape((n, 1, 1, c))?.contiguous()?,
            [n, c, h, w] if c == 1 || (h == 1 && w == 1) => xs.contiguous()?.reshape((n, h, w, c))?,
            [_, _, _, _] => xs.permute((0, 2, 3, 1))?.contiguous()?,
            _ => bail!("expected images of shape [n, c, h, w], found {:?}", xs.dims()),
        };
        match path(stored.device(), stored.dtype()) {
            Path::Cpu => Ok(Self::slot(Slot::enter(&stored)?)),
            #[cfg(any(test, feature = "cuda"))]
            Path::Cuda => Ok(Self::on_gpu(Map::enter(&stored)?)),
            _ => Ok(Self::stored(stored)),
        }
    }

    /// From pixels as bytes in NHWC order, each channel normalised to `(byte / 255 - mean) / std` with `statistics` =
    /// (mean, std).
    ///
    /// # Errors
    /// If the lengths of `pixels`, mean or std do not fit `dims` = (n, h, w, c).
    pub fn from_bytes(
        pixels: &[u8],
        dims: (usize, usize, usize, usize),
        statistics: (&[f32], &[f32]),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (n, h, w, c) = dims;
        if pixels.len() != n * h * w * c {
            bail!("expected {} bytes for {n} images of {h}x{w}x{c}, found {}", n * h * w * c, pixels.len());
        }
        let tables = Self::tables(c, statistics)?;
        match (path(device, dtype), dtype) {
            (Path::Cpu, DType::BF16) => {
                Ok(Self::slot(Slot::constant(dims, normalised::<half::bf16>(pixels, h * w * c, &tables))?))
            }
            (Path::Cpu, _) => {
                Ok(Self::slot(Slot::constant(dims, normalised::<f32>(pixels, h * w * c, &tables))?))
            }
            #[cfg(any(test, feature = "cuda"))]
            (Path::Cuda, _) => {
                let tables = Tensor::from_slice(tables.as_flattened(), c * 256, device)?;
                let values = uninitialised(dims, dtype, device)?;
                let (tables_at, values_at) = (pointer(&tables)?, pointer(&values)?);
                with_bytes(device, pixels, |bytes| {
                    let args = [bytes, tables_at, values_at, c.into()];
                    launch(device, "from_bytes", dtype, pixels.len(), &args)
                })?;
                Ok(Self::on_gpu(Map::constant(values)?))
            }
            _ => {
                let values = normalised::<f32>(pixels, h * w * c, &tables);
                Ok(Self::stored(Tensor::from_slice(&values, dims, device)?.to_dtype(dtype)?))
            }
        }
    }

    /// A byte has 256 values, so normalising is a table look-up per channel.
    pub(crate) fn tables(c: usize, (mean, std): (&[f32], &[f32])) -> Result<Vec<[f32; 256]>> {
        if mean.len() != c || std.len() != c {
            bail!("{c} channels need {c} means and deviations, found {} and {}", mean.len(), std.len());
        }
        let table = |ch: usize| std::array::from_fn(|byte| (byte as f32 / 255.0 - mean[ch]) / std[ch]);
        Ok((0..c).map(table).collect())
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
        self.tensor()?.permute((0, 3, 1, 2))?.contiguous()
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
        self.tensor()?.reshape((n, c))?.to_dtype(dtype)
    }

    /// (n, h, w, c).
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        match &self.0 {
            // Rank 4 is an invariant of `stored`.
            Inner::Stored(xs) => match *xs.dims() {
                [n, h, w, c] => (n, h, w, c),
                _ => (0, 0, 0, 0),
            },
            Inner::Slot(slot) => slot.dims(),
            #[cfg(any(test, feature = "cuda"))]
            Inner::Gpu(map) => map.dims(),
            Inner::Traced(t) => t.dims,
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Inner::Stored(xs) => xs.dtype(),
            Inner::Slot(slot) => slot.dtype(),
            #[cfg(any(test, feature = "cuda"))]
            Inner::Gpu(map) => map.values().dtype(),
            Inner::Traced(t) => t.dtype,
        }
    }

    /// Where the map lives.
    pub fn device(&self) -> &Device {
        match &self.0 {
            Inner::Stored(xs) => xs.device(),
            Inner::Slot(_) => &Device::Cpu,
            #[cfg(any(test, feature = "cuda"))]
            Inner::Gpu(map) => map.values().device(),
            Inner::Traced(t) => &t.device,
        }
    }

    /// The same map in another element type. Differentiable.
    ///
    /// # Errors
    /// If the device cannot convert.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        match &self.0 {
            _ if self.dtype() == dtype => Ok(self.clone()),
            Inner::Traced(t) => {
                let mut t = t.clone();
                t.dtype = dtype;
                Ok(Self(Inner::Traced(t)))
            }
            _ => Ok(Self::stored(self.tensor()?.to_dtype(dtype)?)),
        }
    }

    /// The elements as a tensor [n, h, w, c]; zeros of a traced map.
    fn tensor(&self) -> Result<Tensor> {
        match &self.0 {
            Inner::Stored(xs) => Ok(xs.clone()),
            Inner::Slot(slot) => slot.tensor(),
            #[cfg(any(test, feature = "cuda"))]
            Inner::Gpu(map) => map.tensor(),
            Inner::Traced(t) => Tensor::zeros(t.dims, t.dtype, &t.device),
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

    pub(crate) fn slot(slot: Slot) -> Self {
        Self(Inner::Slot(slot))
    }

    pub(crate) fn view(&self) -> Result<View<'_>> {
        Ok(match (&self.0, path(self.device(), self.dtype())) {
            (Inner::Traced(t), _) => View::Traced(t),
            (Inner::Slot(slot), Path::Cpu) => View::Cpu(slot.clone()),
            (Inner::Stored(xs), Path::Cpu) => View::Cpu(Slot::enter(xs)?),
            _ => View::Reference(self.tensor()?),
        })
    }

    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn on_gpu(map: Map) -> Self {
        Self(Inner::Gpu(map))
    }

    /// The map for an operator that has kernels for GPUs, where it is to take them.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn gpu(&self) -> Result<Option<Map>> {
        Ok(match (&self.0, path(self.device(), self.dtype())) {
            (Inner::Gpu(map), Path::Cuda) => Some(map.clone()),
            (Inner::Stored(xs), Path::Cuda) => Some(Map::enter(xs)?),
            _ => None,
        })
    }

    /// The traced map behind this one after an operator, for operators of one input.
    pub(crate) fn traced_step(t: &Traced, dims: (usize, usize, usize, usize), step: Step) -> Self {
        Self::from_traced(t.step(dims, step))
    }

    pub(crate) fn from_traced(t: Traced) -> Self {
        Self(Inner::Traced(Box::new(t)))
    }
}

/// The values of pixels, by a table for each channel; `image` elements at a time.
fn normalised<T: Element>(pixels: &[u8], image: usize, tables: &[[f32; 256]]) -> Buffer<T> {
    let mut values = take::<T>(pixels.len());
    chunks(&mut values, image, |i, values| {
        let bytes = &pixels[i * image..][..values.len()];
        for (value, byte) in values.chunks_exact_mut(tables.len()).zip(bytes.chunks_exact(tables.len())) {
            for ((v, &b), table) in value.iter_mut().zip(byte).zip(tables) {
                *v = T::from_f32(table[b as usize]);
            }
        }
    });
    values
}

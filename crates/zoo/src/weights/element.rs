//! Element types of weight files, and the decoding of raw bytes into tensors.

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;

/// Torch allows 64 axes; a longer shape can only come from a damaged file.
const MAX_RANK: usize = 64;

/// The element types that are read, little endian in every format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U32,
    U8,
    Bool,
}

impl Element {
    /// From the name of a storage class of module `torch` (or `torch.cuda`).
    pub(super) fn from_storage_class(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::BF16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    pub(super) fn from_safetensors(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::I64 => Self::I64,
            Dtype::I32 => Self::I32,
            Dtype::I16 => Self::I16,
            Dtype::I8 => Self::I8,
            Dtype::U32 => Self::U32,
            Dtype::U8 => Self::U8,
            Dtype::BOOL => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of one element in the file.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Bytes of one element once decoded: f32 for floats, i64 for the rest.
    pub(super) fn decoded_size(self) -> usize {
        match self {
            Self::F64 | Self::F32 | Self::F16 | Self::BF16 => 4,
            _ => 8,
        }
    }
}

/// A tensor within a storage: strides and offset in elements, as torch keeps them.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) element: Element,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl View {
    /// A row-major view of the whole storage.
    pub(super) fn contiguous(element: Element, shape: &[usize]) -> Self {
        Self { element, offset: 0, strides: row_major(shape), shape: shape.to_vec() }
    }

    /// Checks that the view lies inside a storage of `storage_len` bytes.
    ///
    /// # Errors
    /// One phrase that says what does not fit.
    pub(super) fn check(&self, storage_len: usize) -> Result<(), String> {
        if self.shape.len() != self.strides.len() || self.shape.len() > MAX_RANK {
            let (rank, strides) = (self.shape.len(), self.strides.len());
            return Err(format!("{rank} axes with {strides} strides, expected at most {MAX_RANK} of each"));
        }
        let numel = self.numel().ok_or_else(|| format!("shape {:?} is too large", self.shape))?;
        let available = storage_len / self.element.size();
        let needed = if numel == 0 { Some(0) } else { self.end() };
        match needed {
            Some(needed) if needed <= available => Ok(()),
            _ => Err(format!(
                "shape {:?} with strides {:?} at offset {} reaches past its storage of {available} elements",
                self.shape, self.strides, self.offset
            )),
        }
    }

    /// Bytes of the decoded tensor; `None` if that overflows.
    pub(super) fn decoded_len(&self) -> Option<usize> {
        self.numel()?.checked_mul(self.element.decoded_size())
    }

    fn numel(&self) -> Option<usize> {
        // Candle multiplies the dimensions from either end, so no partial product may overflow, not even
        // where another dimension is zero.
        let numel = self.shape.iter().try_fold(1usize, |numel, &dim| numel.checked_mul(dim.max(1)))?;
        Some(if self.shape.contains(&0) { 0 } else { numel })
    }

    /// One past the last element reached, for a view that is not empty.
    fn end(&self) -> Option<usize> {
        let mut last = self.offset;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((dim - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// Decodes the view of `storage`, which [`View::check`] has accepted: floats become f32, integers and
    /// booleans i64.
    pub(super) fn decode(&self, storage: &[u8]) -> candle_core::Result<Tensor> {
        let shape = self.shape.as_slice();
        let floats = |values: Vec<f32>| Tensor::from_vec(values, shape, &Device::Cpu);
        let integers = |values: Vec<i64>| Tensor::from_vec(values, shape, &Device::Cpu);
        match self.element {
            Element::F64 => floats(self.gather(storage, |b| f64::from_le_bytes(b) as f32)),
            Element::F32 => floats(self.gather(storage, f32::from_le_bytes)),
            Element::F16 => floats(self.gather(storage, |b| f16::from_le_bytes(b).to_f32())),
            Element::BF16 => floats(self.gather(storage, |b| bf16::from_le_bytes(b).to_f32())),
            Element::I64 => integers(self.gather(storage, i64::from_le_bytes)),
            Element::I32 => integers(self.gather(storage, |b| i32::from_le_bytes(b).into())),
            Element::I16 => integers(self.gather(storage, |b| i16::from_le_bytes(b).into())),
            Element::I8 => integers(self.gather(storage, |b| i8::from_le_bytes(b).into())),
            Element::U32 => integers(self.gather(storage, |b| u32::from_le_bytes(b).into())),
            Element::U8 => integers(self.gather(storage, |b| u8::from_le_bytes(b).into())),
            Element::Bool => integers(self.gather(storage, |[b]: [u8; 1]| i64::from(b != 0))),
        }
    }

    /// The elements in row-major order of the view, whatever its strides.
    fn gather<const SIZE: usize, T>(&self, storage: &[u8], decode: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
        let numel = self.numel().unwrap_or(0);
        let (elements, _) = storage.as_chunks::<SIZE>();
        if numel == 0 {
            return Vec::new();
        }
        // The stride of an axis of length 1 is never used, and torch writes anything there.
        let axes: Vec<(usize, usize)> = self
            .shape
            .iter()
            .copied()
            .zip(self.strides.iter().copied())
            .filter(|&(dim, _)| dim > 1)
            .collect();
        if is_row_major(&axes) {
            return elements[self.offset..self.offset + numel].iter().map(|&b| decode(b)).collect();
        }
        // An odometer over the axes: `position` follows `index` by the strides.
        let mut values = Vec::with_capacity(numel);
        let mut index = vec![0; axes.len()];
        let mut position = self.offset;
        loop {
            values.push(decode(elements[position]));
            let mut axis = axes.len();
            loop {
                if axis == 0 {
                    return values;
                }
                axis -= 1;
                let (dim, stride) = axes[axis];
                if index[axis] + 1 < dim {
                    index[axis] += 1;
                    position += stride;
                    break;
                }
                position -= stride * index[axis];
                index[axis] = 0;
            }
        }
    }
}

/// Strides of a contiguous tensor whose dimensions have a product that fits.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = shape[axis].saturating_mul(strides[axis]);
    }
    strides
}

/// Whether axes of (dimension, stride) are laid out one after the other, the last one closest together.
fn is_row_major(axes: &[(usize, usize)]) -> bool {
    let mut expected = 1;
    axes.iter().rev().all(|&(dim, stride)| {
        let fits = stride == expected;
        expected *= dim;
        fits
    })
}

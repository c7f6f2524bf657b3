//! Sentences: words as numbers, and a vector for each word.
//!
//! A sentence travels as an image does, so that everything that feeds networks with images feeds them with
//! sentences too: a word is a pixel, whose three bytes are its number with the lowest byte first, and the words of
//! a sentence are pixels in row-major order, padded with [`PADDING`].

#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod reference;

use crate::FeatureMap;
use crate::feature_map::View;
use crate::trace::Step;
use candle_core::{Result, Tensor, bail};

/// The number of no word: what sentences are padded with. Its vector is zero and is not trained.
pub const PADDING: u32 = 0;

/// The number of every word without one of its own.
pub const UNKNOWN: u32 = 1;

/// Numbers that there are: rows of the table of a network that reads sentences.
pub const ROWS: usize = 20_000;

/// The bytes of a word's number.
pub fn word_bytes(word: u32) -> [u8; 3] {
    let [a, b, c, _] = word.to_le_bytes();
    [a, b, c]
}

/// The matrices of sentences: from words (n, h, w, 3), bytes normalised with mean 0.5 and standard deviation 0.5,
/// and `weight` [words, dim], the map (n, h · w, dim, 1), in which row i is the vector of word i. Numbers count
/// modulo the rows of `weight`. Differentiable in `weight`; the map has the dtype of `words`.
///
/// # Errors
/// If the map has other channels than 3, or `weight` has no rows.
pub fn embedding(words: &FeatureMap, weight: &Tensor) -> Result<FeatureMap> {
    let (n, h, w, c) = words.dims();
    let (rows, dim) = weight.dims2()?;
    if c != 3 || rows == 0 {
        bail!("embedding: expected words of 3 bytes and a table with rows, found {c} bytes and {rows} rows");
    }
    let out = (n, h * w, dim, 1);
    if let View::Traced(t) = words.view()? {
        let step = Step { params: weight.elem_count(), ..Step::new("embedding") };
        return Ok(FeatureMap::traced_step(t, out, step));
    }
    #[cfg(any(test, feature = "cuda"))]
    if let Some(words) = words.gpu()? {
        return Ok(FeatureMap::on_gpu(cuda::embedding(&words, weight)?));
    }
    let pixels = words.to_nchw()?.permute((0, 2, 3, 1))?;
    let vectors = reference::embedding(&pixels, weight)?.permute((0, 3, 1, 2))?;
    FeatureMap::from_nchw(&vectors.to_dtype(words.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::reference::number;
    use super::*;
    use candle_core::{DType, Device, Var};

    const HALF: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

    fn map(words: &[u32], dtype: DType) -> Result<FeatureMap> {
        let bytes: Vec<u8> = words.iter().flat_map(|&word| word_bytes(word)).collect();
        FeatureMap::from_bytes(&bytes, (1, 2, words.len() / 2, 3), (&HALF.0, &HALF.1), dtype, &Device::Cpu)
    }

    #[test]
    fn numbers_survive_normalising_in_every_dtype() -> Result<()> {
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            for words in [[0, 1, 255, 256], [19_999, 65_535, 65_536, (1 << 24) - 1]] {
                let values = map(&words, dtype)?.to_nchw()?.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?;
                let values = values.flatten_all()?.to_vec1::<f32>()?;
                assert_eq!(values.chunks_exact(3).map(number).collect::<Vec<_>>(), words, "{dtype:?}");
            }
            let all: Vec<u32> = (0..256).collect();
            let values = map(&all, dtype)?.to_nchw()?.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?;
            let values = values.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(values.chunks_exact(3).map(number).collect::<Vec<_>>(), all, "{dtype:?}");
        }
        Ok(())
    }

    #[test]
    fn a_word_has_its_row_and_padding_zeros() -> Result<()> {
        let weight = Var::from_vec((0..8).map(|i| i as f32).collect(), (4, 2), &Device::Cpu)?;
        let ys = embedding(&map(&[3, PADDING, 1, 7], DType::F32)?, &weight)?;
        assert_eq!(ys.dims(), (1, 4, 2, 1));
        let ys = ys.to_nchw()?;
        assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [6.0, 7.0, 0.0, 0.0, 2.0, 3.0, 6.0, 7.0]);
        // The sum of squares has gradient 2 y in each place; word 3 is there twice (7 modulo 4), padding not at all.
        let grads = ys.sqr()?.sum_all()?.backward()?;
        let Some(grad) = grads.get(&weight) else { bail!("no gradient") };
        assert_eq!(grad.flatten_all()?.to_vec1::<f32>()?, [0.0, 0.0, 4.0, 6.0, 0.0, 0.0, 24.0, 28.0]);
        Ok(())
    }

    #[test]
    fn what_are_no_words_is_refused() -> Result<()> {
        let weight = Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?;
        let grey = FeatureMap::from_nchw(&Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu)?)?;
        let message = embedding(&grey, &weight).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains("3 bytes"), "{message}");
        Ok(())
    }
}

//! Words and their vectors on a GPU. A word's row is known there only, and nothing waits for it.

use crate::cuda::{Gradients, Grid, Map, Operator, launch, launch_common, pointer, record, uninitialised};
use candle_core::{DType, Result, Tensor};

/// From words (n, h, w, 3) to the map (n, h · w, dim, 1).
pub(super) fn embedding(words: &Map, weight: &Tensor) -> Result<Map> {
    let (n, h, w, _) = words.dims();
    let (rows, dim) = weight.dims2()?;
    let (values, count) = (words.values(), n * h * w);
    let (dtype, device) = (values.dtype(), values.device());
    let rows_of = uninitialised(count, DType::I32, device)?;
    launch(device, "word_rows", dtype, count, &[pointer(values)?, pointer(&rows_of)?, rows.into()])?;
    let table = weight.detach().to_dtype(DType::F32)?.contiguous()?;
    let ys = uninitialised((n, h * w, dim, 1), dtype, device)?;
    let args = [pointer(&rows_of)?, pointer(&table)?, pointer(&ys)?, dim.into()];
    launch(device, "word_vectors", dtype, ys.elem_count(), &args)?;
    // Words are no variables: nothing is differentiated through the bytes that they came as.
    record(&[&Map::constant(values.clone())?], &[weight], ys, || Vectors { rows_of, table: (rows, dim) })
}

struct Vectors {
    /// Of each word.
    rows_of: Tensor,
    /// Rows of the table, and what a vector is long.
    table: (usize, usize),
}

impl Operator for Vectors {
    const NAME: &'static str = "embedding";

    fn backward(self, dys: Tensor, _: &[bool], _: &[bool]) -> Result<Gradients> {
        let (words, device) = (self.rows_of.elem_count(), dys.device());
        let next = uninitialised(2 * words, DType::I32, device)?;
        let args = [pointer(&self.rows_of)?, pointer(&next)?];
        launch_common(device, "word_links", Grid::Threads(words), &args)?;
        let dweight = Tensor::zeros(self.table, DType::F32, device)?;
        let tensors = [pointer(&self.rows_of)?, pointer(&next)?, pointer(&dys)?, pointer(&dweight)?];
        let args = [&tensors[..], &[self.table.1.into(), words.into()]].concat();
        launch(device, "word_gradient", dys.dtype(), words * self.table.1, &args)?;
        Ok((vec![None], vec![Some(dweight)]))
    }
}

//! Rows of a few channels, as long as loops over them need to be: the compiler's vectorised loop takes 64 elements at a
//! time, and leaves the rows of a map of 16 channels to the one that follows it, element by element.

use crate::element::Element;
use crate::simd::multiversion;

/// Elements that a row is repeated to, about.
const LONG: usize = 256;

/// A row repeated until it is long.
pub(crate) fn repeated(row: &[f32]) -> Vec<f32> {
    row.repeat(LONG / row.len().clamp(1, LONG))
}

/// The sums of `columns` columns, from those of repeated rows.
pub(crate) fn folded(sums: &[f32], columns: usize) -> Vec<f32> {
    let (first, others) = sums.split_at(columns);
    let mut total = first.to_vec();
    for row in others.chunks_exact(columns) {
        sum_rows(row, &mut total);
    }
    total
}

multiversion! {
    /// Adds all rows to `sums`; the last may end early.
    pub(crate) fn sum_rows<T: Element>(xs: &[T], sums: &mut [f32]) {
        for row in xs.chunks(sums.len()) {
            for (s, &x) in sums.iter_mut().zip(row) {
                *s += x.to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_any_width_are_summed() {
        for columns in [1, 3, 16, 100, 300] {
            let xs: Vec<f32> = (0..7 * columns).map(|i| i as f32).collect();
            let mut sums = vec![0.0; repeated(&vec![0.0; columns]).len()];
            sum_rows(&xs, &mut sums);
            let sums = folded(&sums, columns);
            let expected = |ch: usize| (0..7).map(|row| (row * columns + ch) as f32).sum::<f32>();
            assert_eq!(sums, (0..columns).map(expected).collect::<Vec<_>>(), "{columns} columns");
        }
    }
}

//! Matrices of floats, or of words as long, turned round.

/// Side of the squares that are turned round in registers.
#[cfg(target_arch = "x86_64")]
const SIDE: usize = 8;

/// Writes column by column a matrix whose rows are `pitch` apart: `out`, whose rows are `out_pitch` apart, has a row of
/// `rows` elements for each column.
///
/// # Panics
/// Where either matrix is longer than its slice.
pub(crate) fn transpose(
    xs: &[f32],
    pitch: usize,
    (rows, columns): (usize, usize),
    out: &mut [f32],
    out_pitch: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * pitch + columns <= xs.len());
    assert!((columns - 1) * out_pitch + rows <= out.len());
    if (pitch, columns) == (1, 1) {
        out[..rows].copy_from_slice(&xs[..rows]);
        return;
    }
    let (whole_rows, whole_columns) = transpose_whole(xs, pitch, (rows, columns), out, out_pitch);
    // What no square covers.
    for row in 0..rows {
        let from = if row < whole_rows { whole_columns } else { 0 };
        for column in from..columns {
            out[column * out_pitch + row] = xs[row * pitch + column];
        }
    }
}

/// As much of a matrix as its processor turns round in registers: rows and columns.
#[cfg(target_arch = "x86_64")]
fn transpose_whole(
    xs: &[f32],
    pitch: usize,
    (rows, columns): (usize, usize),
    out: &mut [f32],
    out_pitch: usize,
) -> (usize, usize) {
    if crate::dispatch::instruction_set() < crate::dispatch::InstructionSet::Avx2 {
        return (0, 0);
    }
    let whole = (rows / SIDE * SIDE, columns / SIDE * SIDE);
    #[expect(unsafe_code, reason = "processor instructions")]
    // SAFETY: AVX2 is there, and the squares lie within both matrices, as the caller has asserted.
    unsafe {
        transpose_squares(xs.as_ptr(), pitch, whole, out.as_mut_ptr(), out_pitch);
    }
    whole
}

/// The same where no processor's registers are used.
#[cfg(not(target_arch = "x86_64"))]
fn transpose_whole(_: &[f32], _: usize, _: (usize, usize), _: &mut [f32], _: usize) -> (usize, usize) {
    (0, 0)
}

/// A matrix of whole squares.
///
/// # Safety
/// The processor has AVX2, and both matrices lie in memory that may be read and written.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "processor instructions")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_squares(
    xs: *const f32,
    pitch: usize,
    (rows, columns): (usize, usize),
    out: *mut f32,
    out_pitch: usize,
) {
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            // SAFETY: the contract of this function.
            unsafe {
                let (from, to) = (xs.add(row * pitch + column), out.add(column * out_pitch + row));
                transpose_square(from, pitch, to, out_pitch);
            }
        }
    }
}

/// Eight rows of eight words, `pitch` apart, to eight that are `out_pitch` apart.
///
/// # Safety
/// The processor has AVX2, and both squares lie in memory that may be read and written.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "processor instructions")]
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn transpose_square(xs: *const f32, pitch: usize, out: *mut f32, out_pitch: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the contract of this function.
    let row = |i: usize| unsafe { _mm256_loadu_ps(xs.add(i * pitch)) };
    let rows: [__m256; 8] = std::array::from_fn(row);
    // Words of two rows, then of four, then of all.
    let pairs: [[__m256; 2]; 4] = std::array::from_fn(|i| {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)]
    });
    let fours: [[__m256; 4]; 2] = std::array::from_fn(|i| {
        let ([a, b], [c, d]) = (pairs[2 * i], pairs[2 * i + 1]);
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    });
    let [low, high] = fours;
    for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
        // SAFETY: the contract of this function.
        unsafe {
            _mm256_storeu_ps(out.add(i * out_pitch), _mm256_permute2f128_ps::<0x20>(low, high));
            _mm256_storeu_ps(out.add((i + 4) * out_pitch), _mm256_permute2f128_ps::<0x31>(low, high));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_turned_round() {
        for (rows, columns) in [(24, 32), (1, 9), (9, 1), (19, 13), (8, 8), (0, 3)] {
            let (pitch, out_pitch) = (columns + 3, rows + 5);
            let xs: Vec<f32> = (0..rows * pitch).map(|i| i as f32).collect();
            let mut out = vec![f32::NAN; columns * out_pitch];
            transpose(&xs, pitch, (rows, columns), &mut out, out_pitch);
            for (i, x) in out.into_iter().enumerate() {
                let (column, row) = (i / out_pitch, i % out_pitch);
                if row < rows {
                    assert_eq!(x, xs[row * pitch + column], "{rows} x {columns}: {row}, {column}");
                } else {
                    assert!(x.is_nan(), "{rows} x {columns}: beyond a row");
                }
            }
        }
        let mut out = [0.0; 3];
        transpose(&[1.0, 2.0, 3.0], 1, (3, 1), &mut out, 3);
        assert_eq!(out, [1.0, 2.0, 3.0]);
    }
}
